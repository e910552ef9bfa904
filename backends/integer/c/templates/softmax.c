//: over X Y SOFTMAX
//: needs softmax_rows softmax_mode
//: header
typedef struct {
    ${softmax_rows}_t over;
    const ${TABLE} *table; /* exp(-scale d) by distance d from the largest code, from entry over.first on */
} ${f}_t;

/* Along each row: y = steps of the exponential of x by the sum of exponentials; see ${softmax_mode}_steps. The mask
   `all` has 1 for elements that take part; null: all do. */
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const uint8_t *all, const ${f}_t *call);
//: body
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const uint8_t *all, const ${f}_t *call)
{
    const ${softmax_rows}_t *over = &call->over;
    for (int32_t row = 0; row < over->rows; ++row) {
        const uint8_t *mask;
        const int32_t begin = ${softmax_rows}_begin(over, row, all, &mask);
        const ${X} *from = x + begin;
        ${Y} *to = y + begin;
        const int32_t largest = ${softmax_rows}_largest(over, from, mask);
        ${softmax_mode}_sum sum = 0;
        ${softmax_mode}_row part;
        for (int32_t j = 0; j < over->count; ++j) {
            if (${softmax_rows}_kept(over, mask, j)) {
                sum += ${softmax_mode}_addend(call->table[${softmax_rows}_entry(over, largest - from[j * over->x_next])]);
            }
        }
        part = ${softmax_mode}_begin(call->table, sum, over->numerator, over->shift);
        for (int32_t j = 0; j < over->count; ++j) {
            int64_t steps = 0;
            if (${softmax_rows}_kept(over, mask, j)) {
                steps = ${softmax_mode}_steps(&part, call->table[${softmax_rows}_entry(over, largest - from[j * over->x_next])]);
            }
            to[j * over->x_next] = (${Y})${softmax_rows}_code(over, steps);
        }
    }
}
