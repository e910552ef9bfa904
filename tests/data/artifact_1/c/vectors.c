/* What the self-test feeds to sequential, and what must come out. Written by qcompiler. */
#include "vectors.h"

const int8_t sequential_vector_input_0[SEQUENTIAL_VECTORS][32] = {
    {
    27,53,-64,-100,-6,-43,11,28,2,-42,67,15,-32,0,33,-61,22,42,62,-23,17,65,
    68,5,-21,-54,34,-37,29,-18,12,92,
    },
    {
    -33,56,2,104,66,77,89,-50,79,41,107,-67,-113,-3,35,-118,-95,-99,87,112,89,-62,
    2,-109,120,54,61,-89,-112,-69,-59,-124,
    },
};

const int8_t sequential_vector_output_0[SEQUENTIAL_VECTORS][2] = {
    {
    102,-128,
    },
    {
    111,111,
    },
};
