//: over MODE
//: needs multiply
//: header
/* Convert the accumulator of a channel to its code: round(x * 2^exponent) + zero_point. */
typedef struct {
    const int8_t *exponent;
    int32_t next;         /* 1 for one exponent per channel, 0 for one in all */
    int32_t zero_point;
    int32_t low;
    int32_t high;
    const int32_t *lows;  /* limits per channel that replace low and high, or null */
    const int32_t *highs;
} ${f}_t;
//: body
static int32_t ${f}(const ${f}_t *to, int32_t channel, int64_t x)
{
    const int64_t code = ${multiply}(x, to->exponent[channel * to->next]) + to->zero_point;
    const int32_t low = to->lows ? to->lows[channel] : to->low;
    const int32_t high = to->highs ? to->highs[channel] : to->high;
    return code < low ? low : code > high ? high : (int32_t)code;
}
