/* What the self-test feeds to sequential, and what must come out. Written by qcompiler. */
#ifndef SEQUENTIAL_VECTORS_H
#define SEQUENTIAL_VECTORS_H

#include <stdint.h>

#define SEQUENTIAL_VECTORS 2

extern const int8_t sequential_vector_input_0[SEQUENTIAL_VECTORS][32];
extern const int8_t sequential_vector_output_0[SEQUENTIAL_VECTORS][2];

#endif
