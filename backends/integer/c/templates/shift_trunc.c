//: body
/* x * 2^exponent, rounded towards zero. */
static int64_t shift_trunc(int64_t x, int32_t exponent)
{
    const int32_t left = exponent > 0 ? exponent : 0;
    const int32_t right = exponent < 0 ? -exponent : 0;
    const int64_t shifted = x * ((int64_t)1 << left);
    return shifted < 0 ? -(-shifted >> right) : shifted >> right;
}
