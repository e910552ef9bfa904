/* Real numbers for sequential. Optional: nothing else needs it. Written by qcompiler. */
#ifndef SEQUENTIAL_FLOAT_H
#define SEQUENTIAL_FLOAT_H

#include "sequential.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Input 0: SEQUENTIAL_INPUT_0_SIZE real numbers, in the order of the codes in memory, to codes. */
void sequential_quantize_input_0(const float *real);

/* Output 0: its SEQUENTIAL_OUTPUT_0_SIZE codes to real numbers, in the order of the codes in memory. */
void sequential_dequantize_output_0(float *real);


#ifdef __cplusplus
}
#endif

#endif
