//: needs vectors
//: body
#if defined(LANES)
/* Words of four vectors that took turns in parts of 128 bits, one vector behind the other. */
static inline lanes in_order(lanes words)
{
#if LANES == 16
    const lanes order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, words);
#else
    return _mm256_permutevar8x32_epi32(words, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
#endif
}

static inline void store_halves(void *lower, void *upper, lanes values)
{
#if LANES == 16
    _mm256_storeu_si256((__m256i *)lower, _mm512_castsi512_si256(values));
    _mm256_storeu_si256((__m256i *)upper, _mm512_extracti64x4_epi64(values, 1));
#else
    _mm_storeu_si128((__m128i *)lower, _mm256_castsi256_si128(values));
    _mm_storeu_si128((__m128i *)upper, _mm256_extracti128_si256(values, 1));
#endif
}
#endif
