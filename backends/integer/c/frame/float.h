/* Conversion of real numbers for ${n}. Optional: no other file needs it. Written by qcompiler. */
#ifndef ${N}_FLOAT_H
#define ${N}_FLOAT_H

#include "${n}.h"

#ifdef __cplusplus
extern "C" {
#endif

${prototypes}
#ifdef __cplusplus
}
#endif

#endif
