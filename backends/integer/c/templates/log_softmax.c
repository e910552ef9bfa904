//: over X Y
//: needs softmax_rows shift_down
//: header
typedef struct {
    ${softmax_rows}_t over;      /* numerator / 2^shift: the scale of x by that of y */
    int32_t rise;                /* further bits of shift, which logarithms lack */
    const int32_t *exponentials; /* 2^30 exp(-scale d) by distance d from the largest code */
    const int32_t *logarithms;   /* [257]: 2^(shift - rise) log(1 + i / 256) in steps of y */
} ${f}_t;

/* Along each row: y = x less its largest code and less the logarithm of the sum of exponentials, rounded once. */
void ${f}(${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
/* 2^(shift - rise) log(sum / 2^30) in steps of y, for sums from 2^30 on: from the highest bit and the 30 bits after it. */
static int64_t ${f}_level(const int32_t *logarithms, int64_t sum)
{
    int64_t exponent = 0;
    while (sum >> 31) {
        sum >>= 1;
        ++exponent;
    }
    const int32_t part = (int32_t)(sum - ((int64_t)1 << 30));
    const int32_t *at = logarithms + part / (1 << 22);
    const int64_t rise = (int64_t)(at[1] - at[0]) * (part % (1 << 22)) / (1 << 22);
    return exponent * logarithms[256] + at[0] + rise;
}

void ${f}(${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
    const ${softmax_rows}_t *over = &call->over;
    const int64_t half = ((int64_t)1 << over->shift) / 2;
    for (int32_t row = 0; row < over->rows; ++row) {
        const uint8_t *mask;
        const int32_t begin = ${softmax_rows}_begin(over, row, 0, &mask);
        const ${X} *from = x + begin;
        ${Y} *to = y + begin;
        const int32_t largest = ${softmax_rows}_largest(over, from, mask);
        int64_t level = 0;
        for (int32_t j = 0; j < over->count; ++j) {
            level += call->exponentials[${softmax_rows}_entry(over, largest - from[j * over->x_next])];
        }
        level = ${f}_level(call->logarithms, level) * ((int64_t)1 << call->rise) - half;
        for (int32_t j = 0; j < over->count; ++j) {
            const int64_t down = (int64_t)over->numerator * (largest - from[j * over->x_next]) + level;
            to[j * over->x_next] = (${Y})${softmax_rows}_code(over, shift_down(-down, over->shift));
        }
    }
}
