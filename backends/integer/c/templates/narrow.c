//: over Y
//: needs vectors
//: body
#if defined(LANES)
/* The first count of LANES numbers, all of them codes. */
static inline void ${f}(${Y} *to, lanes codes, int32_t count)
{
    int32_t all[LANES];
    store_lanes(all, codes);
    for (int32_t i = 0; i < count; ++i) {
        to[i] = (${Y})all[i];
    }
}
#endif
