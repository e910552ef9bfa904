//: needs softmax_parts
//: body
typedef int32_t softmax_gemmlowp_sum;
typedef struct {
    int64_t inverse;
    int32_t shift;
} softmax_gemmlowp_row;

/* An entry in Q0.31 as Q12.19. */
static int32_t softmax_gemmlowp_addend(int32_t entry)
{
    return softmax_shifted(entry, 12);
}

/* The reciprocal of the sum by three Newton steps. */
static softmax_gemmlowp_row softmax_gemmlowp_begin(const int32_t *table, int32_t sum, int32_t numerator, int32_t shift)
{
    const int32_t divisor = sum == 0 ? 1 : sum; /* 0: no element takes part */
    const int32_t headroom = softmax_leading_zeros((uint32_t)divisor);
    const softmax_gemmlowp_row row = {softmax_inverse(((int64_t)divisor << headroom) >> 1), 35 - headroom};
    (void)table;
    (void)numerator;
    (void)shift;
    return row;
}

/* entry / sum * 2^8, halves away from zero. */
static int64_t softmax_gemmlowp_steps(const softmax_gemmlowp_row *row, int32_t entry)
{
    return softmax_shifted(softmax_product(row->inverse, entry), row->shift);
}
