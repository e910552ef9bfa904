//: needs softmax_parts
//: body
typedef int32_t softmax_lut16_sum;
typedef struct {
    int32_t inverse, right;
} softmax_lut16_row;

static int32_t softmax_lut16_addend(int32_t entry)
{
    return entry;
}

/* The reciprocal of the sum, interpolated in the first 513 entries of the table: 1 / (1 + x) for x from 0 to 1. */
static softmax_lut16_row softmax_lut16_begin(const int16_t *table, int32_t sum, int32_t numerator, int32_t shift)
{
    const int32_t divisor = sum == 0 ? 1 : sum; /* 0: no element takes part */
    const int32_t right = 31 - softmax_leading_zeros((uint32_t)divisor);
    const int32_t x = (int32_t)((((int64_t)divisor << (30 - right)) + (1 << 13)) >> 14) - (1 << 15) - (1 << 16);
    const int32_t at = x > 32767 ? 32767 : x + 32768;
    const int32_t before = table[at / 128];
    const int32_t rise = (int32_t)softmax_floor((table[at / 128 + 1] - before) * (at % 128) + 64, 7);
    const softmax_lut16_row row = {before + rise, right};
    (void)numerator;
    (void)shift;
    return row;
}

/* entry / sum * 2^15, halves up. */
static int64_t softmax_lut16_steps(const softmax_lut16_row *row, int32_t entry)
{
    const int64_t steps = ((int64_t)entry * row->inverse + ((int64_t)1 << row->right >> 1)) >> row->right;
    return steps > 32767 ? 32767 : steps;
}
