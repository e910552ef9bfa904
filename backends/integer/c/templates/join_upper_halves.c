//: needs vectors
//: body
#if defined(LANES)
/* Upper halves of 64-bit numbers, with the odd ones between the even ones. */
static inline lanes join_upper_halves(lanes even, lanes odd)
{
#if LANES == 16
    return _mm512_mask_shuffle_epi32(odd, 0x5555, even, (_MM_PERM_ENUM)0xf5);
#else
    return _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
#endif
}
#endif
