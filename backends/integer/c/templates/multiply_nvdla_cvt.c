//: body
/* x * significand * 2^(exponent - 15), rounded once, halves away from zero. */
static int64_t multiply_nvdla_cvt(int64_t x, int32_t significand, int32_t exponent)
{
    const int32_t shift = 15 - exponent;
    const int64_t half = shift > 0 ? (int64_t)1 << (shift - 1) : 0;
    const int64_t product = x * significand;
    return product >= 0 ? (product + half) >> shift : -((half - product) >> shift);
}
