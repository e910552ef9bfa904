//: over Y ACC MODE
//: needs vectors requantize_channels
//: body
#if defined(LANES)
typedef struct {
    const ${requantize_channels}_t *to;
    int32_t from, count;
} ${f}_t;

/* What the channels from to from + count of a panel need. */
static void ${f}_prepare(${f}_t *panel_to, const ${requantize_channels}_t *to, int32_t from, int32_t count)
{
    panel_to->to = to;
    panel_to->from = from;
    panel_to->count = count;
}

/* Codes of the channels of a panel, of some pixels: step is the distance of their sums, distance that of their codes. */
static void ${f}(
    ${Y} *y, int32_t distance, const int32_t *sum, int32_t step, int32_t pixels, const ${f}_t *panel_to)
{
    for (int32_t pixel = 0; pixel < pixels; ++pixel) {
        for (int32_t i = 0; i < panel_to->count; ++i) {
            const int32_t code = ${requantize_channels}(panel_to->to, panel_to->from + i, sum[pixel * step + i]);
            y[pixel * distance + i] = (${Y})code;
        }
    }
}
#endif
