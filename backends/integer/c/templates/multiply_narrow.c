//: needs shift_down
//: body
/* x * significand * 2^(exponent - 15), rounded once, halves up. */
static int64_t multiply_narrow(int64_t x, int32_t significand, int32_t exponent)
{
    return shift_down(x * significand + ((int64_t)1 << (14 - exponent)), 15 - exponent);
}
