//: needs shift_down
//: body
/* Leading zeros of a number above 0. */
static int32_t softmax_leading_zeros(uint32_t x)
{
    int32_t zeros = 0;
    while (x < (uint32_t)1 << 31) {
        x *= 2;
        ++zeros;
    }
    return zeros;
}

/* x / 2^shift, rounded down. */
static int64_t softmax_floor(int64_t x, int32_t shift)
{
    return shift_down(x, shift);
}

/* x / 2^shift, halves away from zero. */
static int32_t softmax_shifted(int64_t x, int32_t shift)
{
    const int64_t half = (int64_t)1 << (shift - 1);
    return (int32_t)(x < 0 ? -((half - x) >> shift) : (x + half) >> shift);
}

/* a * b / 2^31, halves up. */
static int64_t softmax_product(int64_t a, int64_t b)
{
    return shift_down(a * b + ((int64_t)1 << 30), 31);
}

/* A number in 32 bits, saturated. */
static int64_t softmax_saturated(int64_t x)
{
    return x > INT32_MAX ? INT32_MAX : x < INT32_MIN ? INT32_MIN : x;
}

/* 1 / x in Q0.31 for x from 1/2 to 1 in Q0.31, by Newton's method. */
static int64_t softmax_inverse(int64_t x)
{
    int64_t found = 1515870810 + softmax_product(x, -1010580540);
    for (int32_t step = 0; step < 3; ++step) {
        const int64_t rest = ((int64_t)1 << 29) - softmax_product(x, found);
        found += softmax_saturated(softmax_product(found, rest) * 4);
    }
    return softmax_saturated(found * 2);
}
