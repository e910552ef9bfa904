//: needs vectors
//: body
#if defined(LANES)
/* Widen bytes to four vectors of numbers. */
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
