//: over X
//: needs place
//: header
typedef struct {
    int32_t count;                                /* elements of y */
    int32_t rank, size[${RANK}];                  /* axes in the order of y in memory */
    int32_t x_step[${RANK}], mask_step[${RANK}];  /* distances of neighbours along each axis */
    int32_t zero;                                 /* code of 0 */
} ${f}_t;

/* y = mask ? x : 0. y may be x. */
void ${f}(
    ${X} *y, const ${X} *x, const uint8_t *mask, const ${f}_t *call);
//: body
void ${f}(
    ${X} *y, const ${X} *x, const uint8_t *mask, const ${f}_t *call)
{
    for (int32_t i = 0; i < call->count; ++i) {
        const int32_t at = place(i, call->rank, call->size, call->x_step);
        y[i] = mask[place(i, call->rank, call->size, call->mask_step)] ? x[at] : (${X})call->zero;
    }
}
