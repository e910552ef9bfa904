//: over Y ACC MODE
//: needs vectors requantize_channels
//: body
#if defined(LANES)
/* Codes of channels from to from + count of some pixels; step is the distance of their sums. */
static void ${f}(
    ${Y} *y, int32_t distance, const int32_t *sum, int32_t step, int32_t pixels, const ${requantize_channels}_t *to,
    int32_t from, int32_t count)
{
    for (int32_t pixel = 0; pixel < pixels; ++pixel) {
        for (int32_t i = 0; i < count; ++i) {
            y[pixel * distance + i] = (${Y})${requantize_channels}(to, from + i, sum[pixel * step + i]);
        }
    }
}
#endif
