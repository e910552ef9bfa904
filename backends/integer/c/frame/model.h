/* ${title}

   Integers in, integers out: write codes to the inputs, run, read codes from the outputs. Written by qcompiler.

   real = scale * (code - zero_point); if your data is float, ${n}_float.h converts it. All tensors are in one static arena:
   an input is valid until ${n}_run() is called, an output until an input is written. Nothing is allocated, and only one
   thread at a time may use the arena.
${unread} */
#ifndef ${N}_H
#define ${N}_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Memory in bytes: the arena, aligned to ${alignment}, and the constants. */
#define ${N}_ARENA_BYTES ${arena}
#define ${N}_CONSTANT_BYTES ${constants}

${ends}/* Compute the codes of the outputs from the codes of the inputs. */
void ${n}_run(void);

#ifdef __cplusplus
}
#endif

#endif
