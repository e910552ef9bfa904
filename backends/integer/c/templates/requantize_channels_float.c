//: over ACC
//: needs round_even
//: header
/* Convert the accumulator of a channel to its code: float(x) * multiplier, clamped, then rounded to even. */
typedef struct {
    const float *multiplier;
    int32_t next;         /* 1 for one multiplier per channel, 0 for one in all */
    int32_t zero_point;
    int32_t low;
    int32_t high;
    const int32_t *lows;  /* limits per channel that replace low and high, or null */
    const int32_t *highs;
} ${f}_t;
//: body
static int32_t ${f}(const ${f}_t *to, int32_t channel, ${ACC} x)
{
    /* The clamp is between the product and the sums of the rounding, so that no compiler can fuse them. */
    const float product = (float)x * to->multiplier[channel * to->next];
    const float low = (float)((to->lows ? to->lows[channel] : to->low) - to->zero_point);
    const float high = (float)((to->highs ? to->highs[channel] : to->high) - to->zero_point);
    const float inside = product < low ? low : product > high ? high : product;
    return round_even(inside) + to->zero_point;
}
