//: body
#if defined(__FAST_MATH__) || FLT_RADIX != 2 || FLT_MANT_DIG != 24 || DBL_MANT_DIG != 53
#error "needs IEEE 754 float and double, rounded to nearest, and no -ffast-math"
#endif
#if FLT_EVAL_METHOD < 0 || FLT_EVAL_METHOD > 1
#error "needs floats that hold no more digits than they say: on x86, -msse2 -mfpmath=sse"
#endif
