//: over X Y NAME
//: needs place
//: header
typedef struct {
    int32_t count;                            /* elements of y */
    int32_t rank, size[${RANK}];              /* axes in the order of y in memory */
    int32_t a_step[${RANK}], b_step[${RANK}]; /* distances of neighbours: 0 where one element serves all */
} ${f}_t;

/* y = ${FORMULA}. */
void ${f}(
    ${Y} *y, const ${X} *a, const ${X} *b, const ${f}_t *call);
//: body
void ${f}(
    ${Y} *y, const ${X} *a, const ${X} *b, const ${f}_t *call)
{
    for (int32_t i = 0; i < call->count; ++i) {
        const ${X} p = a[place(i, call->rank, call->size, call->a_step)];
        const ${X} q = b[place(i, call->rank, call->size, call->b_step)];
        y[i] = (${Y})(${FORMULA});
    }
}
