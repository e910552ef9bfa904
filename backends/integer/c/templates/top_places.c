//: over X
//: needs place
//: header
typedef struct {
    int32_t rows, rank, size[${RANK}];            /* outer axes */
    int32_t x_step[${RANK}], y_step[${RANK}];     /* distances of neighbours along each of them */
    int32_t x_next, y_next;                       /* distances along a row */
    int32_t size_of_row, count;                   /* elements of a row of x, and of y */
    int32_t largest;                              /* 1: the largest elements first; 0: the smallest */
} ${f}_t;

/* Places of the largest or smallest elements of each row, in their order; of equal ones, the first first. */
void ${f}(int64_t *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
/* Whether element i of a row comes before element j. */
static int32_t ${f}_before(const ${f}_t *call, const ${X} *row, int32_t i, int32_t j)
{
    const ${X} p = row[i * call->x_next], q = row[j * call->x_next];
    return p == q ? i < j : (p > q) == call->largest;
}

void ${f}(int64_t *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
    for (int32_t row = 0; row < call->rows; ++row) {
        const ${X} *from = x + place(row, call->rank, call->size, call->x_step);
        int64_t *to = y + place(row, call->rank, call->size, call->y_step);
        int32_t last = -1;
        for (int32_t k = 0; k < call->count; ++k) {
            int32_t best = -1;
            for (int32_t j = 0; j < call->size_of_row; ++j) {
                if ((last < 0 || ${f}_before(call, from, last, j)) && (best < 0 || ${f}_before(call, from, j, best))) {
                    best = j;
                }
            }
            to[k * call->y_next] = best;
            last = best;
        }
    }
}
