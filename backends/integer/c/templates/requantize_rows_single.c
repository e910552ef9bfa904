//: over Y MODE
//: needs vectors store_codes requantize_channels
//: body
#if defined(LANES)
typedef struct {
    const ${requantize_channels}_t *to;
    int32_t from, count;
    int32_t is_small; /* whether no multiplier is 1/2 or more */
    lanes significand[2], odd_significand[2], half[2], odd_half[2];
    lanes shift[2]; /* right, of the upper halves of products */
    lanes low, high; /* codes of two pixels */
} ${f}_t;

/* What the channels from to from + count of a panel need. */
static void ${f}_prepare(${f}_t *panel_to, const ${requantize_channels}_t *to, int32_t from, int32_t count)
{
    int32_t significand[PANEL], shift[PANEL];
    ${Y} low[2 * PANEL], high[2 * PANEL];
    panel_to->to = to;
    panel_to->from = from;
    panel_to->count = count;
    panel_to->is_small = 1;
    for (int32_t i = 0; i < PANEL; ++i) {
        const int32_t channel = from + (i < count ? i : count - 1);
        significand[i] = to->multiplier[channel * to->next];
        shift[i] = -1 - to->exponent[channel * to->next];
        panel_to->is_small &= shift[i] >= 0;
        low[i] = low[PANEL + i] = (${Y})(to->lows ? to->lows[channel] : to->low);
        high[i] = high[PANEL + i] = (${Y})(to->highs ? to->highs[channel] : to->high);
    }
    for (int32_t i = 0; i < 2; ++i) {
        const lanes shifts = load_lanes(shift + LANES * i);
        panel_to->significand[i] = load_lanes(significand + LANES * i);
        panel_to->odd_significand[i] = V(srli_epi64)(panel_to->significand[i], 32);
        panel_to->shift[i] = shifts;
        panel_to->half[i] = V(sllv_epi64)(splat_long((int64_t)1 << 31), V(srli_epi64)(V(slli_epi64)(shifts, 32), 32));
        panel_to->odd_half[i] = V(sllv_epi64)(splat_long((int64_t)1 << 31), V(srli_epi64)(shifts, 32));
    }
    panel_to->low = load_lanes(low);
    panel_to->high = load_lanes(high);
}

/* round(x * multiplier), halves up: products have 64 bits, those of lanes at even and at odd places are computed apart. */
static inline lanes ${f}_multiply(lanes x, const ${f}_t *panel_to, int32_t i)
{
    const lanes even = V(add_epi64)(V(mul_epi32)(x, panel_to->significand[i]), panel_to->half[i]);
    const lanes odd_x = V(srli_epi64)(x, 32);
    const lanes odd = V(add_epi64)(V(mul_epi32)(odd_x, panel_to->odd_significand[i]), panel_to->odd_half[i]);
    return V(srav_epi32)(join_upper_halves(even, odd), panel_to->shift[i]);
}

/* Codes of the channels of a panel, of some pixels: step is the distance of their sums, distance that of their codes. */
static void ${f}(
    ${Y} *y, int32_t distance, const int32_t *sum, int32_t step, int32_t pixels, const ${f}_t *panel_to)
{
    const lanes zero_point = splat(panel_to->to->zero_point);
    if (!panel_to->is_small) {
        for (int32_t i = 0; i < pixels * panel_to->count; ++i) {
            const int32_t pixel = i / panel_to->count, at = i % panel_to->count;
            const int32_t code = ${requantize_channels}(panel_to->to, panel_to->from + at, sum[pixel * step + at]);
            y[pixel * distance + at] = (${Y})code;
        }
        return;
    }
    for (int32_t pixel = 0; pixel < pixels; pixel += 2) {
        const int32_t some = pixels - pixel < 2 ? 1 : 2;
        lanes numbers[4];
        for (int32_t i = 0; i < 4; ++i) {
            const int32_t row = i < 2 ? pixel : pixel + some - 1;
            const lanes x = load_lanes(sum + row * step + i % 2 * LANES);
            numbers[i] = V(add_epi32)(${f}_multiply(x, panel_to, i % 2), zero_point);
        }
        ${store_codes}(
            y + pixel * distance, distance, numbers, some, panel_to->count, panel_to->low, panel_to->high);
    }
}
#endif
