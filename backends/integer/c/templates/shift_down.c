//: body
/* x / 2^shift, rounded down, for shifts of 0 to 62. C leaves to the implementation what >> does to a negative number,
   so it never sees one here; compilers make one arithmetic shift of this. */
static int64_t shift_down(int64_t x, int32_t shift)
{
    return x >= 0 ? x >> shift : ~(~x >> shift);
}
