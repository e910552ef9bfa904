//: needs vectors
//: body
#if defined(LANES)
/* LANES numbers from values[from * next], the first count of them there; one for all lanes where next is 0. */
static inline lanes channel_lanes(const int32_t *values, int32_t from, int32_t next, int32_t count)
{
    int32_t some[LANES] = {0};
    if (!next) {
        return splat(values[0]);
    }
    if (count == LANES) {
        return load_lanes(values + from);
    }
    memcpy(some, values + from, (size_t)count * sizeof *values);
    return load_lanes(some);
}
#endif
