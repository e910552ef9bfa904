//: body
typedef int64_t softmax_table_sum;
typedef struct {
    int64_t numerator, divisor;
} softmax_table_row;

static int64_t softmax_table_addend(int32_t entry)
{
    return entry;
}

static softmax_table_row softmax_table_begin(const int32_t *table, int64_t sum, int32_t numerator, int32_t shift)
{
    const softmax_table_row row = {numerator, sum * ((int64_t)1 << shift)};
    (void)table;
    return row;
}

/* entry * numerator / (sum * 2^shift), halves up. */
static int64_t softmax_table_steps(const softmax_table_row *row, int32_t entry)
{
    return ((int64_t)entry * row->numerator + (row->divisor >> 1)) / row->divisor;
}
