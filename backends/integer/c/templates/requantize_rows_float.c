//: over Y
//: needs vectors real_lanes store_codes requantize_channels
//: body
#if defined(LANES)
typedef struct {
    lanes zero_point;
    int32_t count;
    reals_of_lanes multiplier[2], least[2], most[2];
    lanes low, high; /* codes of two pixels */
} ${f}_t;

/* What the channels from to from + count of a panel need. */
static void ${f}_prepare(${f}_t *panel_to, const ${requantize_channels}_t *to, int32_t from, int32_t count)
{
    float multiplier[PANEL], least[PANEL], most[PANEL];
    ${Y} low[2 * PANEL], high[2 * PANEL];
    panel_to->zero_point = splat(to->zero_point);
    panel_to->count = count;
    for (int32_t i = 0; i < PANEL; ++i) {
        const int32_t channel = from + (i < count ? i : count - 1);
        const int32_t lowest = to->lows ? to->lows[channel] : to->low;
        const int32_t highest = to->highs ? to->highs[channel] : to->high;
        multiplier[i] = to->multiplier[channel * to->next];
        least[i] = (float)(lowest - to->zero_point);
        most[i] = (float)(highest - to->zero_point);
        low[i] = low[PANEL + i] = (${Y})lowest;
        high[i] = high[PANEL + i] = (${Y})highest;
    }
    for (int32_t i = 0; i < 2; ++i) {
        panel_to->multiplier[i] = V(loadu_ps)(multiplier + LANES * i);
        panel_to->least[i] = V(loadu_ps)(least + LANES * i);
        panel_to->most[i] = V(loadu_ps)(most + LANES * i);
    }
    panel_to->low = load_lanes(low);
    panel_to->high = load_lanes(high);
}

/* Codes of the channels of a panel, of some pixels: step is the distance of their sums, distance that of their codes. */
static void ${f}(
    ${Y} *y, int32_t distance, const int32_t *sum, int32_t step, int32_t pixels, const ${f}_t *panel_to)
{
    for (int32_t pixel = 0; pixel < pixels; pixel += 2) {
        const int32_t some = pixels - pixel < 2 ? 1 : 2;
        lanes numbers[4];
        for (int32_t i = 0; i < 4; ++i) {
            const int32_t row = i < 2 ? pixel : pixel + some - 1;
            const reals_of_lanes x = V(cvtepi32_ps)(load_lanes(sum + row * step + i % 2 * LANES));
            const reals_of_lanes product = V(mul_ps)(x, panel_to->multiplier[i % 2]);
            const reals_of_lanes inside = V(min_ps)(V(max_ps)(product, panel_to->least[i % 2]), panel_to->most[i % 2]);
            numbers[i] = V(add_epi32)(round_even_lanes(inside), panel_to->zero_point);
        }
        ${store_codes}(
            y + pixel * distance, distance, numbers, some, panel_to->count, panel_to->low, panel_to->high);
    }
}
#endif
