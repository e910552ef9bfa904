//: over X
//: needs place
//: header
typedef struct {
    int32_t rows;                                              /* number of rows */
    int32_t rank, size[${RANK}];                               /* outer axes */
    int32_t x_step[${RANK}], mask_step[${RANK}];               /* strides in x and y, and in the mask */
    int32_t count, x_next, mask_next;                          /* elements of a row, and their strides */
    int32_t zero_point, low, high;                             /* of y */
    int32_t numerator, shift;                                  /* 1 / scale of y = numerator / 2^shift */
    int32_t first, entries;                                    /* the exponentials in the table */
} ${f}_t;

//: body
/* The first elements of a row in x and in the mask, which is null if all elements take part. */
static int32_t ${f}_begin(const ${f}_t *call, int32_t row, const uint8_t *all, const uint8_t **mask)
{
    *mask = all ? all + place(row, call->rank, call->size, call->mask_step) : 0;
    return place(row, call->rank, call->size, call->x_step);
}

/* Whether element j of a row takes part. */
static int32_t ${f}_kept(const ${f}_t *call, const uint8_t *mask, int32_t j)
{
    return !mask || mask[j * call->mask_next];
}

/* The largest code of a row. */
static int32_t ${f}_largest(const ${f}_t *call, const ${X} *x, const uint8_t *mask)
{
    int32_t largest = INT32_MIN;
    for (int32_t j = 0; j < call->count; ++j) {
        const int32_t code = x[j * call->x_next];
        if (code > largest && ${f}_kept(call, mask, j)) {
            largest = code;
        }
    }
    return largest;
}

/* The entry of the table for a distance from the largest code. */
static int32_t ${f}_entry(const ${f}_t *call, int32_t distance)
{
    return call->first + (distance < call->entries ? distance : call->entries - 1);
}

/* A number of steps as a code. */
static int32_t ${f}_code(const ${f}_t *call, int64_t steps)
{
    const int64_t code = steps + call->zero_point;
    return code < call->low ? call->low : code > call->high ? call->high : (int32_t)code;
}
