//: needs shift_down
//: body
/* x * 2^exponent, rounded to the nearest integer, halves up. */
static int64_t shift_rhup(int64_t x, int32_t exponent)
{
    const int32_t left = exponent > 0 ? exponent : 0;
    const int32_t right = exponent < 0 ? -exponent : 0;
    const int64_t shifted = x * ((int64_t)1 << left);
    /* The last removed bit decides the rounding: adding one half first could exceed 64 bits. */
    const int64_t whole = shift_down(shifted, right);
    return right > 0 ? whole + (shift_down(shifted, right - 1) & 1) : whole;
}
