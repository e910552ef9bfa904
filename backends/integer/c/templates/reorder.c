//: over X
//: needs place
//: header
typedef struct {
    int32_t count;
    int32_t x_rank, x_size[${RANK}], x_step[${RANK}]; /* sizes in the order of the graph, strides */
    int32_t y_rank, y_size[${RANK}], y_step[${RANK}];
} ${f}_t;

/* A reshape for axes whose order in memory differs from the graph. */
void ${f}(
    ${X} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
void ${f}(
    ${X} *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
    for (int32_t i = 0; i < call->count; ++i) {
        y[place(i, call->y_rank, call->y_size, call->y_step)] = x[place(i, call->x_rank, call->x_size, call->x_step)];
    }
}
