//: needs vectors
//: body
#if defined(LANES)
/* Restore the order of bytes that were packed from four vectors in parts of 128 bits. */
static inline lanes in_order(lanes packed, int32_t is_deep)
{
#if LANES == 16
    const lanes order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return is_deep ? packed : _mm512_permutexvar_epi32(order, packed);
#else
    return is_deep ? packed : _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
#endif
}
#endif
