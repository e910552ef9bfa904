//: body
/* x * 2^exponent, rounded to the nearest integer, halves to even. */
static int64_t shift_rne(int64_t x, int32_t exponent)
{
    const int32_t left = exponent > 0 ? exponent : 0;
    const int32_t right = exponent < 0 ? -exponent : 0;
    const int64_t shifted = x * ((int64_t)1 << left);
    const int64_t magnitude = shifted < 0 ? -shifted : shifted;
    const int64_t unit = (int64_t)1 << right, whole = magnitude >> right;
    const int64_t rest = magnitude & (unit - 1);
    const int64_t nearest = whole + (rest > unit - rest || (rest == unit - rest && whole % 2 == 1));
    return shifted < 0 ? -nearest : nearest;
}
