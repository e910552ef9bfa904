//: over X Y W ACC MODE
//: needs dot4 requantize_channels
//: header
typedef struct {
    int32_t rows;
    int32_t inputs;
    int32_t outputs;
    const ${W} *weight; /* [outputs][inputs] */
    const ${ACC} *bias; /* [outputs], minus the zero point of x times the sum of the weights */
    ${requantize_channels}_t to;
} ${f}_t;

/* y[row][o] = requantize(sum of x[row][i] * weight[o][i] + bias[o]). */
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
    const int32_t inputs = call->inputs, outputs = call->outputs;
    for (int32_t o = 0; o < outputs; o += 4) {
        /* Four channels at a time share one read of x; missing channels are replaced by the last one. */
        const int32_t count = outputs - o < 4 ? outputs - o : 4;
        const ${W} *w[4];
        for (int32_t i = 0; i < 4; ++i) {
            w[i] = call->weight + (o + (i < count ? i : count - 1)) * inputs;
        }
        for (int32_t row = 0; row < call->rows; ++row) {
            ${ACC} sum[4] = {0, 0, 0, 0};
            ${dot4}(sum, x + row * inputs, w, 0, inputs);
            for (int32_t i = 0; i < count; ++i) {
                y[row * outputs + o + i] =
                    (${Y})${requantize_channels}(&call->to, o + i, sum[i] + call->bias[o + i]);
            }
        }
    }
}
