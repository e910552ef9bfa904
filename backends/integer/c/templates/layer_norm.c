//: over X Y MODE
//: needs place root divide requantize
//: header
typedef struct {
    int32_t rows;                                /* number of groups of `count` elements that are normalized together */
    int32_t rank, size[${RANK}], step[${RANK}];               /* outer axes; strides in x and y */
    int32_t weight_step[${RANK}];                       /* strides in weight and bias */
    int32_t count;
    int32_t inner_rank, inner_size[${RANK}], inner_step[${RANK}], inner_weight_step[${RANK}];
    int32_t centered;                            /* whether the mean is removed */
    int32_t x_zero_point;
    int64_t epsilon;                             /* eps * count^2 / scale^2 */
    int32_t fraction;                            /* fractional bits of the accumulator */
    const int16_t *weight;
    const int32_t *bias;
    ${requantize}_t to;
} ${f}_t;

/* y = requantize(round(t * weight / 2^8) + bias), t = round((n s - sum) 2^(fraction + 8) / root(n sum s^2 - sum^2 + e)),
   where s = x - x_zero_point, and sum is 0 unless centered. */
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
    const int64_t n = call->count;
    for (int32_t row = 0; row < call->rows; ++row) {
        const int32_t start = place(row, call->rank, call->size, call->step);
        const int32_t first = place(row, call->rank, call->size, call->weight_step);
        int64_t sum = 0, squares = 0, radicand, unit, divisor;
        for (int32_t i = 0; i < call->count; ++i) {
            const int64_t step = x[start + place(i, call->inner_rank, call->inner_size, call->inner_step)]
                - call->x_zero_point;
            sum += step;
            squares += step * step;
        }
        sum = call->centered ? sum : 0;
        radicand = n * squares - sum * sum + call->epsilon;
        radicand = radicand > 1 ? radicand : 1;
        /* The root needs 30 bits: multiply the radicand by 4 and the dividend by 2 as often as needed. */
        unit = (int64_t)1 << (call->fraction + 8);
        while (radicand < (int64_t)1 << 58) {
            radicand *= 4;
            unit *= 2;
        }
        divisor = root(radicand);
        for (int32_t i = 0; i < call->count; ++i) {
            const int32_t at = start + place(i, call->inner_rank, call->inner_size, call->inner_step);
            const int32_t w = first + place(i, call->inner_rank, call->inner_size, call->inner_weight_step);
            const int64_t step = x[at] - call->x_zero_point;
            const int64_t normalized = ${divide}((n * step - sum) * unit, divisor);
            const int64_t acc = ${divide}(normalized * call->weight[w], 256) + call->bias[w];
            y[at] = (${Y})${requantize}(&call->to, acc);
        }
    }
}
