//: over Y ACC MODE
//: needs vectors channel_of requantize_channels
//: body
#if defined(LANES)
typedef struct {
    const ${requantize_channels}_t *to;
    int32_t from, count, is_deep;
} ${f}_t;

/* Constants of count channels, whose sums are at most largest. */
static void ${f}_prepare(
    ${f}_t *with, const ${requantize_channels}_t *to, int32_t from, int32_t count, int32_t is_deep,
    int64_t largest)
{
    with->to = to;
    with->from = from;
    with->count = count;
    with->is_deep = is_deep;
    (void)largest;
}

/* Convert four vectors of sums to codes. */
static inline lanes ${f}(const ${f}_t *with, const lanes *sums)
{
    ${Y} codes[4 * LANES] = {0};
    for (int32_t i = 0; i < 4; ++i) {
        int32_t sum[LANES];
        store_lanes(sum, sums[i]);
        for (int32_t lane = 0; lane < LANES; ++lane) {
            const int32_t channel = channel_of(i, lane, with->is_deep);
            const int32_t at = channel + (with->is_deep ? 0 : i / 2 * PANEL);
            if (channel < with->count) {
                codes[at] = (${Y})${requantize_channels}(with->to, with->from + channel, sum[lane]);
            }
        }
    }
    return load_lanes(codes);
}
#endif
