/* Constants of ${n}. Written by qcompiler. */
#ifndef ${N}_WEIGHTS_H
#define ${N}_WEIGHTS_H

#include <stdint.h>

${declarations}
#endif
