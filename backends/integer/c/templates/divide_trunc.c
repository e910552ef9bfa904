//: over ACC
//: body
/* x / divisor, rounded towards zero; for a positive divisor. */
static ${ACC} ${f}(${ACC} x, ${ACC} divisor)
{
    return x / divisor;
}
