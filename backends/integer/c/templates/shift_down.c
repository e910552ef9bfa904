//: body
/* x / 2^shift, rounded down, for shifts of 0 to 62. In C, >> of a negative number is
   implementation-defined and therefore avoided; compilers turn this into one arithmetic shift. */
static int64_t shift_down(int64_t x, int32_t shift)
{
    return x >= 0 ? x >> shift : ~(~x >> shift);
}
