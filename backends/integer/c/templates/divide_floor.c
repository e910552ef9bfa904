//: over ACC
//: body
/* x / divisor, rounded down; for a positive divisor. */
static ${ACC} ${f}(${ACC} x, ${ACC} divisor)
{
    return x / divisor - (x % divisor < 0);
}
