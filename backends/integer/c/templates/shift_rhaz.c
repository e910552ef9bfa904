//: body
/* x * 2^exponent, rounded to the nearest integer, halves away from zero. */
static int64_t shift_rhaz(int64_t x, int32_t exponent)
{
    const int32_t left = exponent > 0 ? exponent : 0;
    const int32_t right = exponent < 0 ? -exponent : 0;
    const int64_t shifted = x * ((int64_t)1 << left);
    const int64_t magnitude = shifted < 0 ? -shifted : shifted;
    const int64_t half = right > 0 ? (magnitude >> (right - 1)) & 1 : 0;
    const int64_t whole = (magnitude >> right) + half;
    return shifted < 0 ? -whole : whole;
}
