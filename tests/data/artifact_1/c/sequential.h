/* sequential: an integer program of 3 instructions.

   Integers in, integers out: write codes to the inputs, run, read codes from the outputs. Written by qcompiler.

   real = scale * (code - zero_point). sequential_float.h does that for those who have real numbers. Everything lives in one
   static arena: an input lasts until sequential_run() is called, an output until an input is written. Nothing is allocated,
   and one thread at a time may use it.
 */
#ifndef SEQUENTIAL_H
#define SEQUENTIAL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Memory in bytes: the arena, aligned to 16, and constants. */
#define SEQUENTIAL_ARENA_BYTES 96
#define SEQUENTIAL_CONSTANT_BYTES 182

/* Input 0, input: [1, 2, 4, 4].
   int8_t[1][4][4][2] in memory, NHWC; codes from -128 to 127. */
#define SEQUENTIAL_INPUT_0_SIZE 32
#define SEQUENTIAL_INPUT_0_SCALE 0.0197585784f
#define SEQUENTIAL_INPUT_0_ZERO_POINT 18
#define SEQUENTIAL_INPUT_0_LOW (-128)
#define SEQUENTIAL_INPUT_0_HIGH 127
int8_t *sequential_input_0(void);

/* Output 0, 3.q.real: [1, 2].
   int8_t[1][2] in memory; codes from -128 to 127. */
#define SEQUENTIAL_OUTPUT_0_SIZE 2
#define SEQUENTIAL_OUTPUT_0_SCALE 0.00205775676f
#define SEQUENTIAL_OUTPUT_0_ZERO_POINT 101
#define SEQUENTIAL_OUTPUT_0_LOW (-128)
#define SEQUENTIAL_OUTPUT_0_HIGH 127
const int8_t *sequential_output_0(void);

/* From the codes of the inputs to those of the outputs. */
void sequential_run(void);

#ifdef __cplusplus
}
#endif

#endif
