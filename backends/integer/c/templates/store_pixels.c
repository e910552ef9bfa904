//: needs vectors bytes
//: body
#if defined(LANES)
/* Store the codes of the first count channels of two pixels, or of one. */
static inline void store_pixels(void *first, void *second, lanes codes, int32_t count)
{
    if (count < PANEL || !second) {
        store_bytes(first, codes, count);
        if (second) {
#if LANES == 16
            store_bytes(second, _mm512_shuffle_i64x2(codes, codes, 0xee), count);
#else
            store_bytes(second, _mm256_permute2x128_si256(codes, codes, 0x11), count);
#endif
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
