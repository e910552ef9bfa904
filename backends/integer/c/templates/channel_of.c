//: needs vectors
//: body
#if defined(LANES)
/* Four vectors of sums make one of codes. They are either of two pixels, two vectors of channels each, or of one pixel with
   its channels in the order of interleave; the codes then are those of one pixel behind the other, or of all channels. */

/* Which channel of its pixel a sum is of. */
static inline int32_t channel_of(int32_t vector, int32_t lane, int32_t is_deep)
{
    return is_deep ? lane / 4 * 16 + 4 * vector + lane % 4 : vector % 2 * LANES + lane;
}
#endif
