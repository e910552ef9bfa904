//: needs vectors
//: body
#if defined(LANES)
#if LANES == 16
typedef __m512 reals_of_lanes;
#else
typedef __m256 reals_of_lanes;
#endif

/* Round to the nearest integer, halves to even, in every rounding mode of the machine. */
static inline lanes round_even_lanes(reals_of_lanes x)
{
#if LANES == 16
    return _mm512_cvt_roundps_epi32(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    return _mm256_cvttps_epi32(_mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
}
#endif
