//: needs vectors
//: body
#if defined(LANES)
/* Four vectors of sums become one vector of codes. The sums belong to two pixels with two vectors of channels each, or to
   one pixel with its channels in the order of interleave. The codes are those of both pixels in order, or of all channels. */

/* The channel of a sum within its pixel. */
static inline int32_t channel_of(int32_t vector, int32_t lane, int32_t is_deep)
{
    return is_deep ? lane / 4 * 16 + 4 * vector + lane % 4 : vector % 2 * LANES + lane;
}
#endif
