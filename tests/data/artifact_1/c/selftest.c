/* Runs sequential on known codes and compares every code that comes out. Written by qcompiler. */
#include <stdio.h>

#include "sequential.h"
#include "vectors.h"

int main(void)
{
    long differing = 0, compared = 0;
    for (int32_t vector = 0; vector < SEQUENTIAL_VECTORS; ++vector) {
        for (int32_t i = 0; i < SEQUENTIAL_INPUT_0_SIZE; ++i) {
            sequential_input_0()[i] = sequential_vector_input_0[vector][i];
        }
        sequential_run();
        for (int32_t i = 0; i < SEQUENTIAL_OUTPUT_0_SIZE; ++i) {
            differing += sequential_output_0()[i] != sequential_vector_output_0[vector][i];
        }
        compared += SEQUENTIAL_OUTPUT_0_SIZE;
    }
    printf("sequential: %ld of %ld codes differ in %d vectors\n", differing, compared, SEQUENTIAL_VECTORS);
    return differing != 0;
}
