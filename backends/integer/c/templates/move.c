//: over X
//: needs place
//: header
typedef struct {
    int32_t x_first, y_first;        /* offsets of the first element */
    int32_t outer, inner;            /* moved elements: along all axes except the last, and along the last axis */
    int32_t rank;                    /* number of outer axes */
    int32_t size[${RANK}];
    int32_t x_step[${RANK}], x_next; /* strides along each axis */
    int32_t y_step[${RANK}], y_next;
} ${f}_t;

/* Copy codes to other places. */
void ${f}(
    ${X} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
void ${f}(
    ${X} *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
    const int32_t x_next = call->x_next, y_next = call->y_next;
    for (int32_t i = 0; i < call->outer; ++i) {
        const ${X} *from = x + call->x_first + place(i, call->rank, call->size, call->x_step);
        ${X} *to = y + call->y_first + place(i, call->rank, call->size, call->y_step);
        for (int32_t j = 0; j < call->inner; ++j) {
            to[j * y_next] = from[j * x_next];
        }
    }
}
