//: over A B Y ACC MODE
//: needs place requantize
//: header
typedef struct {
    int32_t batch;                                             /* number of products */
    int32_t rank, size[${RANK}];                               /* outer axes */
    int32_t a_step[${RANK}], b_step[${RANK}], y_step[${RANK}]; /* strides along them; 0 if broadcast */
    int32_t rows, columns, terms;
    int32_t a_row, a_term;                                     /* strides along the axes of each matrix */
    int32_t b_term, b_column;
    int32_t y_row, y_column;
    int32_t a_zero_point, b_zero_point;
    ${requantize}_t to;
} ${f}_t;

/* y[row][column] = requantize(sum of (a[row][k] - a_zero_point) * (b[k][column] - b_zero_point)). */
void ${f}(
    ${Y} *restrict y, const ${A} *restrict a, const ${B} *restrict b, const ${f}_t *call);
//: body
/* Add the products of one row of a with up to 16 columns of b, whose elements are next to each other. */
static void ${f}_columns(
    ${ACC} *restrict sum, const ${A} *restrict a, const ${B} *restrict b, const ${f}_t *call, int32_t count)
{
    for (int32_t k = 0; k < call->terms; ++k) {
        const ${ACC} step = (${ACC})a[k * call->a_term] - call->a_zero_point;
        const ${B} *from = b + k * call->b_term;
        for (int32_t j = 0; j < count; ++j) {
            sum[j] += step * (from[j] - call->b_zero_point);
        }
    }
}

/* The sum of one element. */
static ${ACC} ${f}_element(const ${A} *restrict a, const ${B} *restrict b, const ${f}_t *call)
{
    const int32_t a_zero_point = call->a_zero_point, b_zero_point = call->b_zero_point;
    ${ACC} sum = 0;
    if (call->a_term == 1 && call->b_term == 1) {
        for (int32_t k = 0; k < call->terms; ++k) {
            sum += (${ACC})(a[k] - a_zero_point) * (b[k] - b_zero_point);
        }
        return sum;
    }
    for (int32_t k = 0; k < call->terms; ++k) {
        sum += (${ACC})(a[k * call->a_term] - a_zero_point) * (b[k * call->b_term] - b_zero_point);
    }
    return sum;
}

void ${f}(
    ${Y} *restrict y, const ${A} *restrict a, const ${B} *restrict b, const ${f}_t *call)
{
    for (int32_t i = 0; i < call->batch; ++i) {
        const ${A} *left = a + place(i, call->rank, call->size, call->a_step);
        const ${B} *right = b + place(i, call->rank, call->size, call->b_step);
        ${Y} *to = y + place(i, call->rank, call->size, call->y_step);
        for (int32_t row = 0; row < call->rows; ++row) {
            const ${A} *x = left + row * call->a_row;
            for (int32_t column = 0; column < call->columns; column += 16) {
                const int32_t count = call->columns - column < 16 ? call->columns - column : 16;
                ${ACC} sum[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
                if (call->b_column == 1 && count == 16) {
                    ${f}_columns(sum, x, right + column, call, 16);
                } else {
                    for (int32_t j = 0; j < count; ++j) {
                        sum[j] = ${f}_element(x, right + (column + j) * call->b_column, call);
                    }
                }
                for (int32_t j = 0; j < count; ++j) {
                    to[row * call->y_row + (column + j) * call->y_column] = (${Y})${requantize}(&call->to, sum[j]);
                }
            }
        }
    }
}
