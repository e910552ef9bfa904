//: over ACC
//: body
/* x / divisor to the nearest integer, halves up; for a positive divisor. */
static ${ACC} ${f}(${ACC} x, ${ACC} divisor)
{
    const ${ACC} quotient = x / divisor, remainder = x % divisor;
    const ${ACC} floor = remainder < 0 ? quotient - 1 : quotient;
    const ${ACC} rest = remainder < 0 ? remainder + divisor : remainder;
    return floor + (rest >= divisor - rest);
}
