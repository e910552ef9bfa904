//: over X Y ACC MODE
//: needs place requantize
//: header
typedef struct {
    int32_t count;                             /* elements of y */
    int32_t rank, size[${RANK}], step[${RANK}];             /* axes of y; strides in x */
    int32_t summed;                            /* elements of x per element of y, without the last summed axis */
    int32_t sum_rank, sum_size[${RANK}], sum_step[${RANK}];
    int32_t inner, next;                       /* size and stride of the last summed axis */
    int32_t run;                               /* contiguous elements of y that come from contiguous elements of x */
    int32_t x_zero_point;
    ${requantize}_t to;
} ${f}_t;

/* y = requantize(sum of x - x_zero_point over some axes); the number of elements is in the multiplier. */
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
    enum { PART = 64 };
    for (int32_t i = 0, n; i < call->count; i += n) {
        const ${X} *from = x + place(i, call->rank, call->size, call->step);
        const int32_t left = call->run - i % call->run;
        ${ACC} sum[PART] = {0};
        n = left < PART ? left : PART;
        for (int32_t k = 0; k < call->summed; ++k) {
            const ${X} *codes = from + place(k, call->sum_rank, call->sum_size, call->sum_step);
            if (n == 1) {
                for (int32_t j = 0; j < call->inner; ++j) {
                    sum[0] += codes[j * call->next] - call->x_zero_point;
                }
                continue;
            }
            for (int32_t j = 0; j < call->inner; ++j) {
                for (int32_t c = 0; c < n; ++c) {
                    sum[c] += codes[j * call->next + c] - call->x_zero_point;
                }
            }
        }
        for (int32_t c = 0; c < n; ++c) {
            y[i + c] = (${Y})${requantize}(&call->to, sum[c]);
        }
    }
}
