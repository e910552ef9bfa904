//: body
/* The largest integer whose square is at most x, for 0 <= x < 2^60. */
static int64_t root(int64_t x)
{
    int64_t found = 0, bit = (int64_t)1 << 58;
    while (bit > 0) {
        if (x >= found + bit) {
            x -= found + bit;
            found = found / 2 + bit;
        } else {
            found /= 2;
        }
        bit /= 4;
    }
    return found;
}
