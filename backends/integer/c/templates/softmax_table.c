//: over X Y
//: needs softmax_rows
//: header
typedef struct {
    ${softmax_rows}_t over;
    const int32_t *table; /* [entries] exp(-scale d) by distance d from the largest code */
} ${f}_t;

/* y = round(table[max - x] * numerator / (sum * 2^shift)), halves up, along each row. */
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
        int64_t sum = 0;
        for (int32_t j = 0; j < over->count; ++j) {
            if (${softmax_rows}_kept(over, mask, j)) {
                sum += call->table[${softmax_rows}_entry(over, largest - from[j * over->x_next])];
            }
        }
        sum *= (int64_t)1 << over->shift;
        for (int32_t j = 0; j < over->count; ++j) {
            int64_t steps = 0;
            if (${softmax_rows}_kept(over, mask, j)) {
                const int64_t part = (int64_t)call->table[${softmax_rows}_entry(over, largest - from[j * over->x_next])] * over->numerator;
                steps = (part + (sum >> 1)) / sum;
            }
            to[j * over->x_next] = (${Y})${softmax_rows}_code(over, steps);
        }
    }
}
