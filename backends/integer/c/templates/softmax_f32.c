//: over X Y
//: needs softmax_rows round_even
//: header
typedef struct {
    ${softmax_rows}_t over;
    const float *table; /* [entries] exp(-scale d) times a constant, by distance d from the largest code */
} ${f}_t;

/* y = round(table[max - x] * numerator / sum) in float, halves to even, along each row. */
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
        float sum = 0;
        for (int32_t j = 0; j < over->count; ++j) {
            if (${softmax_rows}_kept(over, mask, j)) {
                sum += call->table[${softmax_rows}_entry(over, largest - from[j * over->x_next])];
            }
        }
        const float numerator = (float)over->numerator;
        for (int32_t j = 0; j < over->count; ++j) {
            int64_t steps = 0;
            if (${softmax_rows}_kept(over, mask, j)) {
                const float part = call->table[${softmax_rows}_entry(over, largest - from[j * over->x_next])] * numerator;
                steps = round_even(part / sum);
            }
            to[j * over->x_next] = (${Y})${softmax_rows}_code(over, steps);
        }
    }
}
