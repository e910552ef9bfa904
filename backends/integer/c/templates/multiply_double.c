//: needs shift_down
//: body
/* x * significand * 2^(exponent - 31), rounded twice: halves up to 32 bits, then halves away from zero. */
static int64_t multiply_double(int64_t x, int32_t significand, int32_t exponent)
{
    const int32_t left = exponent > 0 ? exponent : 0;
    const int32_t right = exponent < 0 ? -exponent : 0;
    const int64_t half = right > 0 ? (int64_t)1 << (right - 1) : 0;
    const int64_t product = x * ((int64_t)1 << left) * significand;
    const int64_t word = shift_down(product + ((int64_t)1 << 30), 31);
    return word >= 0 ? (word + half) >> right : -((half - word) >> right);
}
