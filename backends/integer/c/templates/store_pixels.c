//: needs vectors
//: body
#if defined(LANES)
static inline void store_some(void *to, lanes codes, int32_t from, int32_t count)
{
#if LANES == 16
    const lanes there = from ? _mm512_shuffle_i64x2(codes, codes, 0xee) : codes;
    _mm512_mask_storeu_epi8(to, ~(__mmask64)0 >> (64 - count), there);
#else
    uint8_t some[4 * LANES];
    store_lanes(some, codes);
    memcpy(to, some + from, (size_t)count);
#endif
}

/* Codes of the first count channels of two pixels; the second may be left out. */
static inline void store_pixels(void *first, void *second, lanes codes, int32_t count)
{
    if (count < PANEL || !second) {
        store_some(first, codes, 0, count);
        if (second) {
            store_some(second, codes, PANEL, count);
        }
        return;
    }
#if LANES == 16
    _mm256_storeu_si256((__m256i *)first, _mm512_castsi512_si256(codes));
    _mm256_storeu_si256((__m256i *)second, _mm512_extracti64x4_epi64(codes, 1));
#else
    _mm_storeu_si128((__m128i *)first, _mm256_castsi256_si128(codes));
    _mm_storeu_si128((__m128i *)second, _mm256_extracti128_si256(codes, 1));
#endif
}
#endif
