//: over Y
//: needs vectors real_lanes channel_of in_order requantize_channels
//: body
#if defined(LANES)
typedef struct {
    reals_of_lanes multiplier[4], least[4], most[4];
    lanes zero_point;
    int32_t is_deep;
} ${f}_t;

/* Constants of count channels, whose sums are at most largest. */
static void ${f}_prepare(
    ${f}_t *with, const ${requantize_channels}_t *to, int32_t from, int32_t count, int32_t is_deep,
    int64_t largest)
{
    (void)largest;
    with->zero_point = splat(to->zero_point);
    with->is_deep = is_deep;
    for (int32_t i = 0; i < 4; ++i) {
        float multiplier[LANES], least[LANES], most[LANES];
        for (int32_t lane = 0; lane < LANES; ++lane) {
            const int32_t channel = channel_of(i, lane, is_deep);
            const int32_t at = from + (channel < count ? channel : count - 1);
            multiplier[lane] = to->multiplier[at * to->next];
            least[lane] = (float)((to->lows ? to->lows[at] : to->low) - to->zero_point);
            most[lane] = (float)((to->highs ? to->highs[at] : to->high) - to->zero_point);
        }
        with->multiplier[i] = V(loadu_ps)(multiplier);
        with->least[i] = V(loadu_ps)(least);
        with->most[i] = V(loadu_ps)(most);
    }
}

/* Convert four vectors of sums to codes. */
static inline ALWAYS_INLINE lanes ${f}(const ${f}_t *with, const lanes *sums)
{
    lanes numbers[4], packed;
    for (int32_t i = 0; i < 4; ++i) {
        const reals_of_lanes product = V(mul_ps)(V(cvtepi32_ps)(sums[i]), with->multiplier[i]);
        const reals_of_lanes inside = V(min_ps)(V(max_ps)(product, with->least[i]), with->most[i]);
        numbers[i] = V(add_epi32)(round_even_lanes(inside), with->zero_point);
    }
    packed = V(${packs})(V(packs_epi32)(numbers[0], numbers[1]), V(packs_epi32)(numbers[2], numbers[3]));
    return in_order(packed, with->is_deep);
}
#endif
