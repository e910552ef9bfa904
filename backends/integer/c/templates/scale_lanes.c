//: needs vectors join_upper_halves
//: body
#if defined(LANES)
/* A multiplier below 1 for all lanes. */
typedef struct {
    lanes significand, half, shift;
    int32_t up;
} scale_of_lanes;

/* Whether numbers up to largest can be multiplied in lanes. Numbers are shifted left until their
   multiplier is below 1/4; the lower half of the product then only matters for its rounding into the upper half. */
static inline int32_t prepare_scale(scale_of_lanes *by, int32_t significand, int32_t exponent, int64_t largest)
{
    const int32_t up = exponent + 2 > 0 ? exponent + 2 : 0, shift = up - 1 - exponent;
    by->significand = splat(significand);
    by->shift = splat(shift);
    by->half = splat(1 << (shift - 1));
    by->up = up;
    return exponent <= 0 && largest <= INT32_MAX >> up;
}

/* round(x * multiplier), once, halves up. */
static inline ALWAYS_INLINE lanes scale_lanes(lanes x, const scale_of_lanes *by)
{
    const lanes moved = by->up ? V(sll_epi32)(x, _mm_cvtsi32_si128(by->up)) : x;
    const lanes even = V(mul_epi32)(moved, by->significand);
    const lanes odd = V(mul_epi32)(V(srli_epi64)(moved, 32), by->significand);
    return V(srav_epi32)(V(add_epi32)(join_upper_halves(even, odd), by->half), by->shift);
}
#endif
