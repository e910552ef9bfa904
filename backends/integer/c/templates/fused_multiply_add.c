//: needs float_assumptions
//: body
/* x * y + z, rounded once to float, on machines with and without such an instruction.

   The product is exact in double. The rounding error of the sum is known exactly (Knuth's two-sum), and an inexact sum is
   moved to its odd neighbour, which rounds to the same float as the exact value (Boldo and Melquiond 2008). A
   compiler that fuses the product into a sum changes nothing, because the product is exact. */
static float fused_multiply_add(float x, float y, float z)
{
    union {
        double real;
        uint64_t bits;
    } total;
    const double product = (double)x * (double)y;
    const double addend = (double)z;
    double share, error;
    total.real = product + addend;
    share = total.real - product;
    error = (product - (total.real - share)) + (addend - share);
    if (error != 0.0 && (total.bits & 1u) == 0u) {
        total.bits += (error > 0.0) == (total.real > 0.0) ? (uint64_t)1 : ~(uint64_t)0;
    }
    return (float)total.real;
}
