//: needs vectors
//: body
#if defined(LANES)
/* Products have 64 bits: those of lanes at even places and those at odd ones are computed apart. */
typedef struct {
    lanes even, odd;
} pair_of_lanes;

typedef struct {
    pair_of_lanes multiplier, shift, half;
} multiplier_of_lanes;

static inline pair_of_lanes split_lanes(lanes x)
{
    return (pair_of_lanes){V(srli_epi64)(V(slli_epi64)(x, 32), 32), V(srli_epi64)(x, 32)};
}

/* 2^(shift - 1). */
static inline lanes half_of(lanes shift)
{
    return V(srli_epi64)(V(sllv_epi64)(splat_long(1), shift), 1);
}

static inline multiplier_of_lanes multiplier_of(lanes significand, lanes exponent)
{
    const pair_of_lanes shift = split_lanes(V(sub_epi32)(splat(31), exponent));
    return (multiplier_of_lanes){split_lanes(significand), shift, {half_of(shift.even), half_of(shift.odd)}};
}

static inline lanes shift_down_lanes(lanes x, lanes shift)
{
#if LANES == 16
    return _mm512_srav_epi64(x, shift);
#else
    /* There is no arithmetic shift: 2^62 makes all of these numbers positive, and is taken away where it went. */
    const lanes far = splat_long((int64_t)1 << 62);
    return _mm256_sub_epi64(_mm256_srlv_epi64(_mm256_add_epi64(x, far), shift), _mm256_srlv_epi64(far, shift));
#endif
}

/* x * significand * 2^(exponent - 31), rounded once, halves up, where exponent <= 0. */
static inline lanes multiply_lanes(lanes x, const multiplier_of_lanes *by)
{
    const lanes even = V(add_epi64)(V(mul_epi32)(x, by->multiplier.even), by->half.even);
    const lanes odd = V(add_epi64)(V(mul_epi32)(V(srli_epi64)(x, 32), by->multiplier.odd), by->half.odd);
    return join_halves(shift_down_lanes(even, by->shift.even), shift_down_lanes(odd, by->shift.odd));
}
#endif
