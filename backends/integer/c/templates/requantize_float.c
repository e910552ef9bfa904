//: over ACC
//: needs round_even
//: header
/* Convert accumulators to codes: float(x) * multiplier, clamped, then rounded to even. */
typedef struct {
    float multiplier;
    int32_t zero_point;
    int32_t low;
    int32_t high;
} ${f}_t;
//: body
static int32_t ${f}(const ${f}_t *to, ${ACC} x)
{
    /* The clamp is between the product and the sums of the rounding, so that no compiler can fuse them. */
    const float product = (float)x * to->multiplier;
    const float low = (float)(to->low - to->zero_point), high = (float)(to->high - to->zero_point);
    const float inside = product < low ? low : product > high ? high : product;
    return round_even(inside) + to->zero_point;
}
