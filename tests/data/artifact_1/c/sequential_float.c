/* Real numbers for sequential: to codes and back, as the program defines it to the last bit. Written by qcompiler. */
#include "sequential_float.h"

#include <float.h>

#if defined(__FAST_MATH__) || FLT_RADIX != 2 || FLT_MANT_DIG != 24
#error "needs IEEE 754 float, rounded to nearest, and no -ffast-math"
#endif
#if FLT_EVAL_METHOD < 0 || FLT_EVAL_METHOD > 1
#error "needs floats that hold no more digits than they say: on x86, -msse2 -mfpmath=sse"
#endif

/* Real numbers are quantized in parts, in two loops: compilers turn one that does both into branches. */
enum { PART = 256 };

/* Steps of the grid between the limits, or one more: beyond them the code is a limit anyhow, and an int32_t holds the
   rest. NaN counts as 0. */
static float limited(float steps, int32_t zero_point, int32_t low, int32_t high)
{
    const float least = (float)(low - zero_point - 1), most = (float)(high - zero_point + 1);
    const float number = steps == steps ? steps : 0.0f;
    const float raised = number < least ? least : number;
    return raised > most ? most : raised;
}

/* Steps of the grid, rounded to the nearest integer, halves to the even one, plus the zero point, between low and high. */
static int32_t code_rne(float steps, int32_t zero_point, int32_t low, int32_t high)
{
    const int32_t whole = (int32_t)steps; /* towards zero */
    const float rest = steps - (float)whole; /* exact */
    const int32_t odd = whole & 1, up = (rest > 0.5f) | ((rest == 0.5f) & odd);
    const int32_t down = (rest < -0.5f) | ((rest == -0.5f) & odd);
    const int32_t code = whole + up - down + zero_point;
    const int32_t at_least = code < low ? low : code;
    return at_least > high ? high : at_least;
}

void sequential_quantize_input_0(const float *real)
{
    int8_t *codes = sequential_input_0();
    for (int32_t i = 0; i < SEQUENTIAL_INPUT_0_SIZE; i += PART) {
        float steps[PART];
        const int32_t count = SEQUENTIAL_INPUT_0_SIZE - i < PART ? SEQUENTIAL_INPUT_0_SIZE - i : PART;
        for (int32_t k = 0; k < count; ++k) {
            steps[k] = limited(real[i + k] / SEQUENTIAL_INPUT_0_SCALE, SEQUENTIAL_INPUT_0_ZERO_POINT, SEQUENTIAL_INPUT_0_LOW, SEQUENTIAL_INPUT_0_HIGH);
        }
        for (int32_t k = 0; k < count; ++k) {
            codes[i + k] = (int8_t)code_rne(steps[k], SEQUENTIAL_INPUT_0_ZERO_POINT, SEQUENTIAL_INPUT_0_LOW, SEQUENTIAL_INPUT_0_HIGH);
        }
    }
}

void sequential_dequantize_output_0(float *real)
{
    const int8_t *codes = sequential_output_0();
    for (int32_t i = 0; i < SEQUENTIAL_OUTPUT_0_SIZE; ++i) {
        real[i] = (float)(codes[i] - SEQUENTIAL_OUTPUT_0_ZERO_POINT) * SEQUENTIAL_OUTPUT_0_SCALE;
    }
}
