/* Conversion of real numbers to codes of ${n} and back, exact to the last bit. Written by qcompiler. */
#include "${n}_float.h"

#include <float.h>

#if defined(__FAST_MATH__) || FLT_RADIX != 2 || FLT_MANT_DIG != 24
#error "needs IEEE 754 float, rounded to nearest, and no -ffast-math"
#endif
#if FLT_EVAL_METHOD < 0 || FLT_EVAL_METHOD > 1
#error "needs floats that hold no more digits than they say: on x86, -msse2 -mfpmath=sse"
#endif

${body}
