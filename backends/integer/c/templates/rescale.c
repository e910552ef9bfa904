//: over X Y MODE
//: needs requantize
//: header
typedef struct {
    int32_t count;
    int32_t x_zero_point;
    ${requantize}_t to;
} ${f}_t;

/* y = requantize(x - x_zero_point), which changes the grid. y may be x. */
void ${f}(
    ${Y} *y, const ${X} *x, const ${f}_t *call);
//: body
void ${f}(
    ${Y} *y, const ${X} *x, const ${f}_t *call)
{
    const ${f}_t own = *call;
    for (int32_t i = 0; i < own.count; ++i) {
        y[i] = (${Y})${requantize}(&own.to, x[i] - own.x_zero_point);
    }
}
