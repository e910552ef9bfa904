//: over X IDS
//: needs place
//: header
typedef struct {
    int32_t count;                                  /* ids */
    int32_t rank, size[${RANK}];                    /* axes of the ids */
    int32_t id_step[${RANK}], y_step[${RANK}];      /* distances of neighbours along each axis */
    int32_t width, y_next;                          /* elements of a row, and their distance in y */
    int32_t rows;                                   /* rows of the matrix */
} ${f}_t;

/* y[i] = rows[ids[i]]. An id outside of the matrix reads the nearest row. */
void ${f}(
    ${X} *restrict y, const ${X} *restrict rows, const ${IDS} *restrict ids, const ${f}_t *call);
//: body
void ${f}(
    ${X} *restrict y, const ${X} *restrict rows, const ${IDS} *restrict ids, const ${f}_t *call)
{
    for (int32_t i = 0; i < call->count; ++i) {
        const ${IDS} id = ids[place(i, call->rank, call->size, call->id_step)];
        const int32_t row = id < 0 ? 0 : id >= call->rows ? call->rows - 1 : (int32_t)id;
        const ${X} *from = rows + row * call->width;
        ${X} *to = y + place(i, call->rank, call->size, call->y_step);
        for (int32_t j = 0; j < call->width; ++j) {
            to[j * call->y_next] = from[j];
        }
    }
}
