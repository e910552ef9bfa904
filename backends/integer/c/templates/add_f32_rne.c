//: over A B Y
//: needs place round_even fused_multiply_add
//: header
typedef struct {
    int32_t outer, inner;      /* elements of y: along all axes except the last, and along the last axis */
    int32_t rank;              /* number of outer axes */
    int32_t size[${RANK}];
    int32_t a_step[${RANK}], a_next; /* strides along each axis; 0 if broadcast */
    int32_t b_step[${RANK}], b_next;
    float a_multiplier, b_multiplier;
    float offset;              /* includes all zero points */
    int32_t low, high;
} ${f}_t;

/* y = round(fma(a, a_multiplier, fma(b, b_multiplier, offset))) between low and high. y may be a or b. */
void ${f}(
    ${Y} *y, const ${A} *a, const ${B} *b, const ${f}_t *call);
//: body
void ${f}(
    ${Y} *y, const ${A} *a, const ${B} *b, const ${f}_t *call)
{
    const ${f}_t own = *call;
    const float low = (float)own.low, high = (float)own.high;
    for (int32_t i = 0; i < own.outer; ++i) {
        const ${A} *left = a + place(i, own.rank, call->size, call->a_step);
        const ${B} *right = b + place(i, own.rank, call->size, call->b_step);
        for (int32_t j = 0; j < own.inner; ++j) {
            const float inner = fused_multiply_add((float)right[j * own.b_next], own.b_multiplier, own.offset);
            const float sum = fused_multiply_add((float)left[j * own.a_next], own.a_multiplier, inner);
            y[i * own.inner + j] = (${Y})round_even(sum < low ? low : sum > high ? high : sum);
        }
    }
}
