//: over X PLACES
//: needs place
//: header
typedef struct {
    int32_t rows, rank, size[${RANK}];                               /* outer axes */
    int32_t x_step[${RANK}], place_step[${RANK}], y_step[${RANK}];   /* distances of neighbours along each of them */
    int32_t x_next, place_next, y_next;                              /* distances along a row */
    int32_t size_of_row, count;                                      /* elements of a row of x, and of y */
} ${f}_t;

/* Along each row: y[k] = x[places[k]]. A place outside of the row reads the nearest element. */
void ${f}(
    ${X} *restrict y, const ${X} *restrict x, const ${PLACES} *restrict places, const ${f}_t *call);
//: body
void ${f}(
    ${X} *restrict y, const ${X} *restrict x, const ${PLACES} *restrict places, const ${f}_t *call)
{
    for (int32_t row = 0; row < call->rows; ++row) {
        const ${X} *from = x + place(row, call->rank, call->size, call->x_step);
        const ${PLACES} *at = places + place(row, call->rank, call->size, call->place_step);
        ${X} *to = y + place(row, call->rank, call->size, call->y_step);
        for (int32_t k = 0; k < call->count; ++k) {
            const ${PLACES} wanted = at[k * call->place_next];
            const int32_t j = wanted < 0 ? 0 : wanted >= call->size_of_row ? call->size_of_row - 1 : (int32_t)wanted;
            to[k * call->y_next] = from[j * call->x_next];
        }
    }
}
