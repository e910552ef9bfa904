//: over Y MODE
//: needs vectors channel_lanes multiply_lanes_single narrow requantize_channels
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
        int32_t exponent[LANES] = {0};
        for (int32_t lane = 0; lane < some; ++lane) {
            exponent[lane] = to->exponent[(from + i + lane) * to->next];
        }
        const lanes significand = channel_lanes(to->multiplier, from + i, to->next, some);
        const multiplier_of_lanes by = multiplier_of(significand, load_lanes(exponent));
        const lanes low = to->lows ? channel_lanes(to->lows, from + i, 1, some) : splat(to->low);
        const lanes high = to->highs ? channel_lanes(to->highs, from + i, 1, some) : splat(to->high);
        const lanes least = V(sub_epi32)(low, zero_point), most = V(sub_epi32)(high, zero_point);
        for (int32_t pixel = 0; pixel < pixels; ++pixel) {
            const lanes inside = clamp_lanes(multiply_lanes(load_lanes(sum + pixel * step + i), &by), least, most);
            ${narrow}(y + pixel * distance + i, V(add_epi32)(inside, zero_point), some);
        }
    }
}
#endif
