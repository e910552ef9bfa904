//: over X OPERATION
//: needs place
//: header
typedef struct {
    int32_t outer, inner;      /* elements of y: all axes but the last, and along the last */
    int32_t rank;              /* of the outer axes */
    int32_t size[${RANK}];
    int32_t a_step[${RANK}], a_next; /* distances of neighbours along each axis: 0 where one element serves all */
    int32_t b_step[${RANK}], b_next;
} ${f}_t;

/* maximum, minimum: y = a ${ORDER} b ? a : b, on one grid. y may be a or b. */
void ${f}(
    ${X} *y, const ${X} *a, const ${X} *b, const ${f}_t *call);
//: body
void ${f}(
    ${X} *y, const ${X} *a, const ${X} *b, const ${f}_t *call)
{
    const ${f}_t own = *call;
    for (int32_t i = 0; i < own.outer; ++i) {
        const ${X} *left = a + place(i, own.rank, call->size, call->a_step);
        const ${X} *right = b + place(i, own.rank, call->size, call->b_step);
        for (int32_t j = 0; j < own.inner; ++j) {
            const ${X} p = left[j * own.a_next], q = right[j * own.b_next];
            y[i * own.inner + j] = p ${ORDER} q ? p : q;
        }
    }
}
