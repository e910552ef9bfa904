//: over X Y
//: needs softmax_rows softmax_parts
//: header
typedef struct {
    ${softmax_rows}_t over;
    const int32_t *table; /* [entries] exp(-scale d) in Q0.31 by distance d from the largest code */
} ${f}_t;

/* y = round(table[max - x] / sum * 2^8), with the reciprocal of the sum by three Newton steps, along each row. */
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
    const ${softmax_rows}_t *over = &call->over;
    for (int32_t row = 0; row < over->rows; ++row) {
        const uint8_t *mask;
        const int32_t begin = ${softmax_rows}_begin(over, row, &mask);
        const ${X} *from = x + begin;
        ${Y} *to = y + begin;
        const int32_t largest = ${softmax_rows}_largest(over, from, mask);
        int32_t sum = 0;
        for (int32_t j = 0; j < over->count; ++j) {
            if (${softmax_rows}_kept(over, mask, j)) {
                sum += softmax_shifted(call->table[${softmax_rows}_entry(over, largest - from[j * over->x_next])], 12);
            }
        }
        int32_t headroom = 0;
        int64_t inverse;
        if (sum == 0) {
            sum = 1; /* no element takes part */
        }
        headroom = softmax_leading_zeros((uint32_t)sum);
        inverse = softmax_inverse(((int64_t)sum << headroom) >> 1);
        for (int32_t j = 0; j < over->count; ++j) {
            int64_t steps = 0;
            if (${softmax_rows}_kept(over, mask, j)) {
                steps = softmax_shifted(softmax_product(inverse, call->table[${softmax_rows}_entry(over, largest - from[j * over->x_next])]), 35 - headroom);
            }
            to[j * over->x_next] = (${Y})${softmax_rows}_code(over, steps);
        }
    }
}
