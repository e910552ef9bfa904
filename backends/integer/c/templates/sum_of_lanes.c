//: needs vectors
//: body
#if defined(LANES)
/* Sum of the lanes, modulo 2^32. */
static inline uint32_t sum_of_lanes(lanes values)
{
    uint32_t each[LANES], sum = 0;
    store_lanes(each, values);
    for (int32_t i = 0; i < LANES; ++i) {
        sum += each[i];
    }
    return sum;
}
#endif
