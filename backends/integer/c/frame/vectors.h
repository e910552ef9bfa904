/* Inputs of ${n} for the self-test, and the expected outputs. Written by qcompiler. */
#ifndef ${N}_VECTORS_H
#define ${N}_VECTORS_H

#include <stdint.h>

#define ${N}_VECTORS ${count}

${declarations}
#endif
