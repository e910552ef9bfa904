/* Inputs of ${n} for the self-test, and the expected outputs. Written by qcompiler. */
#include "vectors.h"

${definitions}
