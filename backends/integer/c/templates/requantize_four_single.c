//: over Y ACC MODE
//: needs vectors join_upper_halves channel_of in_order requantize_four requantize_channels
//: body
#if defined(LANES)
typedef struct {
    lanes significand[4], odd_significand[4];
    lanes half[4], shift[4]; /* rounding and shift of the upper halves of products */
    lanes zero_point, low, high;
    int32_t is_deep;
    int32_t up;     /* left shift of sums in bits, which brings multipliers below 1/4 */
    int32_t is_far; /* whether that shift is too large */
    ${requantize_four}_t plain;
} ${f}_t;

/* Constants of count channels, whose sums are at most largest. */
static void ${f}_prepare(
    ${f}_t *with, const ${requantize_channels}_t *to, int32_t from, int32_t count, int32_t is_deep,
    int64_t largest)
{
    const int32_t all = is_deep ? 4 * LANES : PANEL;
    ${Y} low[4 * LANES], high[4 * LANES];
    ${requantize_four}_prepare(&with->plain, to, from, count, is_deep, largest);
    with->zero_point = splat(to->zero_point);
    with->is_deep = is_deep;
    with->up = 0;
    for (int32_t i = 0; i < 4 * LANES; ++i) {
        const int32_t channel = from + (i % all < count ? i % all : count - 1);
        low[i] = (${Y})(to->lows ? to->lows[channel] : to->low);
        high[i] = (${Y})(to->highs ? to->highs[channel] : to->high);
        if (to->exponent[channel * to->next] + 2 > with->up) {
            with->up = to->exponent[channel * to->next] + 2;
        }
    }
    with->is_far = largest > INT32_MAX >> with->up;
    with->low = load_lanes(low);
    with->high = load_lanes(high);
    for (int32_t i = 0; i < 4; ++i) {
        int32_t significand[LANES], shift[LANES];
        for (int32_t lane = 0; lane < LANES; ++lane) {
            const int32_t channel = channel_of(i, lane, is_deep);
            const int32_t at = (from + (channel < count ? channel : count - 1)) * to->next;
            significand[lane] = to->multiplier[at];
            shift[lane] = with->up - 1 - to->exponent[at];
        }
        with->shift[i] = load_lanes(shift);
        with->half[i] = V(srlv_epi32)(V(sllv_epi32)(splat(1), with->shift[i]), splat(1));
        with->significand[i] = load_lanes(significand);
        with->odd_significand[i] = V(srli_epi64)(with->significand[i], 32);
    }
}

/* round(x * multiplier), halves up. 64-bit products of even and odd lanes are computed separately. For multipliers
   below 1/4 the lower half of the product only matters for its rounding into the upper half. */
static inline ALWAYS_INLINE lanes ${f}_multiply(const ${f}_t *with, lanes x, int32_t i)
{
    const lanes even = V(mul_epi32)(x, with->significand[i]);
    const lanes odd = V(mul_epi32)(V(srli_epi64)(x, 32), with->odd_significand[i]);
    return V(srav_epi32)(V(add_epi32)(join_upper_halves(even, odd), with->half[i]), with->shift[i]);
}

/* Convert four vectors of sums to codes. */
static inline ALWAYS_INLINE lanes ${f}(const ${f}_t *with, const lanes *sums)
{
    lanes numbers[4], packed;
    if (with->is_far) {
        return ${requantize_four}(&with->plain, sums);
    }
    for (int32_t i = 0; i < 4; ++i) {
        const lanes x = with->up ? V(sll_epi32)(sums[i], _mm_cvtsi32_si128(with->up)) : sums[i];
        numbers[i] = V(add_epi32)(${f}_multiply(with, x, i), with->zero_point);
    }
    /* Packing saturates. */
    packed = V(${packs})(V(packs_epi32)(numbers[0], numbers[1]), V(packs_epi32)(numbers[2], numbers[3]));
    return V(${min})(V(${max})(in_order(packed, with->is_deep), with->low), with->high);
}
#endif
