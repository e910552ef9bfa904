//: needs vectors
//: body
#if defined(LANES)
/* Four vectors of sums make one of codes. They are either of two pixels, two vectors of channels each, or of one pixel with
   its channels in the order of interleave; the codes then are those of one pixel behind the other, or of all channels. */

/* Which channel of its pixel a sum is of. */
static inline int32_t channel_of(int32_t vector, int32_t lane, int32_t is_deep)
{
    return is_deep ? lane / 4 * 16 + 4 * vector + lane % 4 : vector % 2 * LANES + lane;
}

/* Bytes that were packed from four vectors, part by part of 128 bits, in the order of codes. */
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
