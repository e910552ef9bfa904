/* Runs ${n} on known codes and compares every output code. Written by qcompiler. */
#include <stdio.h>

#include "${n}.h"
#include "vectors.h"

int main(void)
{
    long differing = 0, compared = 0;
    for (int32_t vector = 0; vector < ${N}_VECTORS; ++vector) {
${inputs}        ${n}_run();
${outputs}    }
    printf("${n}: %ld of %ld codes differ in %d vectors\n", differing, compared, ${N}_VECTORS);
    return differing != 0;
}
