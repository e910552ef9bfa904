//: over ACC
//: body
/* x / divisor to the nearest integer, halves to even; for a positive divisor. */
static ${ACC} ${f}(${ACC} x, ${ACC} divisor)
{
    const ${ACC} magnitude = x < 0 ? -x : x;
    const ${ACC} whole = magnitude / divisor, rest = magnitude % divisor;
    const ${ACC} result = whole + (rest > divisor - rest || (rest == divisor - rest && whole % 2 == 1));
    return x < 0 ? -result : result;
}
