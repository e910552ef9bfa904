//: needs shift_down
//: body
/* x * significand * 2^(exponent - 31), rounded once, halves up. */
static int64_t multiply_single(int64_t x, int32_t significand, int32_t exponent)
{
    return shift_down(x * significand + ((int64_t)1 << (30 - exponent)), 31 - exponent);
}
