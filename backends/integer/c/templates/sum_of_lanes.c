//: needs vectors
//: body
#if defined(LANES)
/* Their sum, less what leaves 32 bits. */
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
