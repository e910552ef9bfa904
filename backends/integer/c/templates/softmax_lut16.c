//: over X Y
//: needs softmax_rows softmax_parts
//: header
typedef struct {
    ${softmax_rows}_t over;
    const int16_t *table; /* [513] of 1 / (1 + x), then [entries] exp(-scale d) in Q0.15 by distance d from the largest code */
} ${f}_t;

/* y = round(table[max - x] / sum * 2^15), with an interpolated reciprocal of the sum, along each row. */
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
                sum += call->table[513 + ${softmax_rows}_entry(over, largest - from[j * over->x_next])];
            }
        }
        int32_t right, at, inverse;
        if (sum == 0) {
            sum = 1; /* no element takes part */
        }
        right = 31 - softmax_leading_zeros((uint32_t)sum);
        at = (int32_t)((((int64_t)sum << (30 - right)) + (1 << 13)) >> 14) - (1 << 15) - (1 << 16);
        at = at > 32767 ? 32767 : at + 32768;
        inverse = call->table[at / 128];
        inverse += (int32_t)softmax_floor((call->table[at / 128 + 1] - inverse) * (at % 128) + 64, 7);
        for (int32_t j = 0; j < over->count; ++j) {
            int64_t steps = 0;
            if (${softmax_rows}_kept(over, mask, j)) {
                steps = ((int64_t)call->table[513 + ${softmax_rows}_entry(over, largest - from[j * over->x_next])] * inverse + ((int64_t)1 << right >> 1)) >> right;
                steps = steps > 32767 ? 32767 : steps;
            }
            to[j * over->x_next] = (${Y})${softmax_rows}_code(over, steps);
        }
    }
}
