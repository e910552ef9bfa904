//: over X Y
//: header
typedef struct {
    int32_t outer, channels, inner; /* sizes of x and y before, along and after the channel axis */
    const int32_t *low;             /* [channels] */
    const int32_t *high;            /* [channels] */
} ${f}_t;

/* y = x clamped to the limits of its channel. y may be x. */
void ${f}(
    ${Y} *y, const ${X} *x, const ${f}_t *call);
//: body
void ${f}(
    ${Y} *y, const ${X} *x, const ${f}_t *call)
{
    const ${f}_t own = *call;
    int32_t at = 0;
    for (int32_t i = 0; i < own.outer * own.channels; ++i) {
        const int32_t low = own.low[i % own.channels], high = own.high[i % own.channels];
        for (int32_t end = at + own.inner; at < end; ++at) {
            y[at] = (${Y})(x[at] < low ? low : x[at] > high ? high : x[at]);
        }
    }
}
