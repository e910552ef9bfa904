//: over Y
//: needs vectors real_lanes channel_lanes narrow requantize_channels
//: body
#if defined(LANES)
/* Codes of channels from to from + count of some pixels; step is the distance of their sums. */
static void ${f}(
    ${Y} *y, int32_t distance, const int32_t *sum, int32_t step, int32_t pixels, const ${requantize_channels}_t *to,
    int32_t from, int32_t count)
{
    const lanes zero_point = splat(to->zero_point);
    for (int32_t i = 0; i < count; i += LANES) {
        const int32_t some = count - i < LANES ? count - i : LANES;
        float multipliers[LANES] = {0};
        for (int32_t lane = 0; lane < some; ++lane) {
            multipliers[lane] = to->multiplier[(from + i + lane) * to->next];
        }
        const lanes low = to->lows ? channel_lanes(to->lows, from + i, 1, some) : splat(to->low);
        const lanes high = to->highs ? channel_lanes(to->highs, from + i, 1, some) : splat(to->high);
        const reals_of_lanes multiplier = V(loadu_ps)(multipliers);
        const reals_of_lanes least = V(cvtepi32_ps)(V(sub_epi32)(low, zero_point));
        const reals_of_lanes most = V(cvtepi32_ps)(V(sub_epi32)(high, zero_point));
        for (int32_t pixel = 0; pixel < pixels; ++pixel) {
            const reals_of_lanes x = V(cvtepi32_ps)(load_lanes(sum + pixel * step + i));
            const reals_of_lanes inside = V(min_ps)(V(max_ps)(V(mul_ps)(x, multiplier), least), most);
            ${narrow}(y + pixel * distance + i, V(add_epi32)(round_even_lanes(inside), zero_point), some);
        }
    }
}
#endif
