/* ${title} Written by qcompiler.

   One call for each instruction, in order. Shapes are written N, C, H, W; memory holds images as ${layout}. */
#include "${n}.h"

#include "kernels.h"
#include "weights.h"

#if defined(_MSC_VER)
#define ALIGNED __declspec(align(${alignment}))
#elif defined(__GNUC__)
#define ALIGNED __attribute__((aligned(${alignment})))
#else
#define ALIGNED /* kernels need only the alignment of elements */
#endif

/* With ${N}_TRACE, a function of the caller gets the result of every step. */
#ifdef ${N}_TRACE
void ${n}_trace(int32_t step, void *codes);
#define TRACE(step, codes) ${n}_trace(step, codes)
#else
#define TRACE(step, codes) ((void)(codes))
#endif

/* With ${N}_HOOK, a function of the caller is called before and after every step, with the name of its result. */
#ifdef ${N}_HOOK
void ${n}_hook(int32_t step, const char *name, int32_t is_after, const void *codes);
#define HOOK(step, name, is_after, codes) ${n}_hook(step, name, is_after, codes)
#else
#define HOOK(step, name, is_after, codes) ((void)(codes))
#endif

static ALIGNED ${element} arena[${length}];

/* Places of tensors in the arena. */
${places}
/* Constant arguments of the calls. */
${structures}void ${n}_run(void)
{
${calls}}

${accessors}
