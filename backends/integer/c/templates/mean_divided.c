//: over X Y ACC ROUNDING
//: needs place divide
//: header
typedef struct {
    int32_t count;                             /* elements of y */
    int32_t rank, size[${RANK}], step[${RANK}];             /* axes of y; strides in x */
    int32_t summed;                            /* elements of x per element of y, without the last summed axis */
    int32_t sum_rank, sum_size[${RANK}], sum_step[${RANK}];
    int32_t inner, next;                       /* size and stride of the last summed axis */
    int32_t x_zero_point;
    ${ACC} factor, divisor;                    /* factor and divisor of the sum */
    int32_t zero_point;                        /* zero point of y */
    int32_t low, high;
} ${f}_t;

/* y = divide(factor * sum of x - x_zero_point over some axes) + zero_point; the number of elements is in the divisor. */
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
    for (int32_t i = 0; i < call->count; ++i) {
        const ${X} *from = x + place(i, call->rank, call->size, call->step);
        ${ACC} sum = 0, code;
        for (int32_t k = 0; k < call->summed; ++k) {
            const ${X} *codes = from + place(k, call->sum_rank, call->sum_size, call->sum_step);
            for (int32_t j = 0; j < call->inner; ++j) {
                sum += codes[j * call->next] - call->x_zero_point;
            }
        }
        code = ${divide}(sum * call->factor${raw_sum}, call->divisor)${then};
        y[i] = (${Y})(code < call->low ? call->low : code > call->high ? call->high : code);
    }
}
