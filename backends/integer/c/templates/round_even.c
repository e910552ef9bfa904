//: needs float_assumptions
//: body
/* Round to the nearest integer, halves to even, for |x| < 2^24. Every step is exact. */
static int32_t round_even(float x)
{
    const int32_t whole = (int32_t)x; /* towards zero */
    const float rest = x - (float)whole;
    const int32_t odd = whole & 1;
    const int32_t up = (rest > 0.5f) | ((rest == 0.5f) & odd);
    const int32_t down = (rest < -0.5f) | ((rest == -0.5f) & odd);
    return whole + up - down;
}
