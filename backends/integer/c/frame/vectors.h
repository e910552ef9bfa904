/* What the self-test feeds to ${n}, and what must come out. Written by qcompiler. */
#ifndef ${N}_VECTORS_H
#define ${N}_VECTORS_H

#include <stdint.h>

#define ${N}_VECTORS ${count}

${declarations}
#endif
