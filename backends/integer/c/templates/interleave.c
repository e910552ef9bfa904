//: needs vectors bytes
//: body
#if defined(LANES)
/* Four bytes for each channel from vectors of the first, second, third and fourth bytes. Unpacking works within parts of 128
   bits: out[j] holds channels 4 * j to 4 * j + 3 of each part of 16. */
static inline void interleave(lanes *out, const lanes *in)
{
    const lanes ab = V(unpacklo_epi8)(in[0], in[1]), cd = V(unpacklo_epi8)(in[2], in[3]);
    const lanes ab2 = V(unpackhi_epi8)(in[0], in[1]), cd2 = V(unpackhi_epi8)(in[2], in[3]);
    out[0] = V(unpacklo_epi16)(ab, cd);
    out[1] = V(unpackhi_epi16)(ab, cd);
    out[2] = V(unpacklo_epi16)(ab2, cd2);
    out[3] = V(unpackhi_epi16)(ab2, cd2);
}
#endif
