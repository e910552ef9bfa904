//: over MODE
//: needs multiply
//: header
/* Convert accumulators to codes: round(x * multiplier * 2^(exponent - ${WIDTH})) + zero_point, between low and high. */
typedef struct {
    int32_t multiplier; /* below 2^${WIDTH} */
    int32_t exponent;
    int32_t zero_point;
    int32_t low;
    int32_t high;
} ${f}_t;
//: body
static int32_t ${f}(const ${f}_t *to, int64_t x)
{
    const int64_t code = ${multiply}(x, to->multiplier, to->exponent) + to->zero_point;
    return code < to->low ? to->low : code > to->high ? to->high : (int32_t)code;
}
