//: over Y
//: needs vectors
//: body
#if defined(LANES) && LANES == 16
/* The first count of LANES numbers, all of them codes. */
static inline void ${f}(${Y} *to, lanes codes, int32_t count)
{
    const __mmask16 wanted = (__mmask16)((1u << count) - 1u);
    _mm_mask_storeu_epi8(to, wanted, _mm512_cvtepi32_epi8(codes));
}
#elif defined(LANES)
/* The first count of LANES numbers, all of them codes. */
static inline void ${f}(${Y} *to, lanes codes, int32_t count)
{
    /* Of each word its lowest byte, to the front of both halves. */
    const __m256i front = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12,
        -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i bytes = _mm256_shuffle_epi8(codes, front);
    const __m128i all = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    if (count == LANES) {
        _mm_storel_epi64((__m128i *)to, all);
    } else {
        ${Y} some[16];
        _mm_storeu_si128((__m128i *)some, all);
        memcpy(to, some, (size_t)count);
    }
}
#endif
