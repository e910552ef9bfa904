/* ${title}

   Integers in, integers out: write codes to the inputs, run, read codes from the outputs. Written by qcompiler.

   real = scale * (code - zero_point). ${n}_float.h does that for those who have real numbers. Everything lives in one
   static arena: an input lasts until ${n}_run() is called, an output until an input is written. Nothing is allocated,
   and one thread at a time may use it.
${unread} */
#ifndef ${N}_H
#define ${N}_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Memory in bytes: the arena, aligned to ${alignment}, and constants. */
#define ${N}_ARENA_BYTES ${arena}
#define ${N}_CONSTANT_BYTES ${constants}

${ends}/* From the codes of the inputs to those of the outputs. */
void ${n}_run(void);

#ifdef __cplusplus
}
#endif

#endif
