//: needs round_even
//: body
typedef float softmax_f32_sum;
typedef struct {
    float numerator, sum;
} softmax_f32_row;

static float softmax_f32_addend(float entry)
{
    return entry;
}

static softmax_f32_row softmax_f32_begin(const float *table, float sum, int32_t numerator, int32_t shift)
{
    const softmax_f32_row row = {(float)numerator, sum};
    (void)table;
    (void)shift;
    return row;
}

/* entry * numerator / sum in float, halves to even. */
static int64_t softmax_f32_steps(const softmax_f32_row *row, float entry)
{
    const float product = entry * row->numerator;
    return round_even(product / row->sum);
}
