//: over X Y NAME
//: header
typedef struct {
    int32_t count; /* elements of x and y */
} ${f}_t;

/* y = ${FORMULA}. */
void ${f}(
    ${Y} *y, const ${X} *x, const ${f}_t *call);
//: body
void ${f}(
    ${Y} *y, const ${X} *x, const ${f}_t *call)
{
    for (int32_t i = 0; i < call->count; ++i) {
        const ${X} p = x[i];
        y[i] = (${Y})(${FORMULA});
    }
}
