/* What the self-test feeds to ${n}, and what must come out. Written by qcompiler. */
#include "vectors.h"

${definitions}
