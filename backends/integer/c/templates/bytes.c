//: needs vectors
//: body
#if defined(LANES)
/* 4 * LANES bytes, of which the first count are there. Instructions that leave some out are slow; most counts are whole. */
static inline lanes load_bytes(const void *from, int32_t count)
{
#if LANES == 16
    if (count == 2 * LANES) {
        return _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)from));
    }
    return count == 4 * LANES ? load_lanes(from) : _mm512_maskz_loadu_epi8(~(__mmask64)0 >> (64 - count), from);
#else
    uint8_t some[4 * LANES] = {0};
    if (count == 4 * LANES) {
        return load_lanes(from);
    }
    memcpy(some, from, (size_t)count);
    return load_lanes(some);
#endif
}

/* The first count of 4 * LANES bytes. */
static inline void store_bytes(void *to, lanes bytes, int32_t count)
{
#if LANES == 16
    if (count == 4 * LANES) {
        store_lanes(to, bytes);
    } else if (count == 2 * LANES) {
        _mm256_storeu_si256((__m256i *)to, _mm512_castsi512_si256(bytes));
    } else {
        _mm512_mask_storeu_epi8(to, ~(__mmask64)0 >> (64 - count), bytes);
    }
#else
    uint8_t some[4 * LANES];
    if (count == 4 * LANES) {
        store_lanes(to, bytes);
        return;
    }
    store_lanes(some, bytes);
    memcpy(to, some, (size_t)count);
#endif
}

/* Bytes as four vectors of numbers. */
static inline ALWAYS_INLINE void widen(lanes *out, lanes bytes, int32_t is_signed)
{
#if LANES == 16
    const __m128i parts[4] = {_mm512_castsi512_si128(bytes), _mm512_extracti32x4_epi32(bytes, 1),
        _mm512_extracti32x4_epi32(bytes, 2), _mm512_extracti32x4_epi32(bytes, 3)};
#else
    const __m128i lower = _mm256_castsi256_si128(bytes), upper = _mm256_extracti128_si256(bytes, 1);
    const __m128i parts[4] = {lower, _mm_srli_si128(lower, 8), upper, _mm_srli_si128(upper, 8)};
#endif
    for (int32_t i = 0; i < 4; ++i) {
        out[i] = is_signed ? V(cvtepi8_epi32)(parts[i]) : V(cvtepu8_epi32)(parts[i]);
    }
}
#endif
