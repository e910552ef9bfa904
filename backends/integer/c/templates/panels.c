//: needs vectors
//: body
#if defined(LANES)
/* The weights of all layers in panels, in the order in which tiles read them. The first run of a layer writes its panels. A
   panel begins with the other constants of its channels. */
static lanes panels[PANELS_BYTES / sizeof(lanes)];

enum { HEAD = 128 * LANES };

/* Four channels at a time: 16 weights of each become four quads, a transposition of 4x4 words. */
static void turn(int8_t *to, const int8_t *w0, const int8_t *w1, const int8_t *w2, const int8_t *w3)
{
    const __m128i a = _mm_loadu_si128((const __m128i *)w0), b = _mm_loadu_si128((const __m128i *)w1);
    const __m128i c = _mm_loadu_si128((const __m128i *)w2), d = _mm_loadu_si128((const __m128i *)w3);
    const __m128i ab = _mm_unpacklo_epi32(a, b), cd = _mm_unpacklo_epi32(c, d);
    const __m128i a2 = _mm_unpackhi_epi32(a, b), c2 = _mm_unpackhi_epi32(c, d);
    _mm_storeu_si128((__m128i *)to, _mm_unpacklo_epi64(ab, cd));
    _mm_storeu_si128((__m128i *)(to + 4 * PANEL), _mm_unpackhi_epi64(ab, cd));
    _mm_storeu_si128((__m128i *)(to + 8 * PANEL), _mm_unpacklo_epi64(a2, c2));
    _mm_storeu_si128((__m128i *)(to + 12 * PANEL), _mm_unpackhi_epi64(a2, c2));
}

/* Copy segments of one length from some offsets of weight[count][size] to panel[segment][quad][PANEL][4], with zeros after
   segments that end within a quad, and the last channel in place of missing ones. start[PANEL] is the bias minus below times
   the sum of these weights. Returns an upper bound of the sums of their products with codes from 0 to 255. */
static int64_t pack_panel(
    int8_t *panel, int32_t *start, const int32_t *bias, int32_t below, const int8_t *weight, int32_t count, int32_t size,
    const int32_t *offset, int32_t segments, int32_t length)
{
    const int32_t quads = (length + 3) / 4;
    const int8_t *w[PANEL];
    int64_t largest = 0;
    for (int32_t o = 0; o < PANEL; ++o) {
        const int32_t channel = o < count ? o : count - 1;
        int32_t sum = 0, magnitude = 0;
        int64_t reach;
        w[o] = weight + channel * size;
        for (int32_t segment = 0; segment < segments; ++segment) {
            const int8_t *part = w[o] + offset[segment];
            for (int32_t i = 0; i < length; ++i) {
                sum += part[i];
                magnitude += part[i] < 0 ? -part[i] : part[i];
            }
        }
        start[o] = bias[channel] - below * sum;
        reach = (start[o] < 0 ? -(int64_t)start[o] : start[o]) + (int64_t)255 * magnitude;
        largest = reach > largest ? reach : largest;
    }
    for (int32_t segment = 0; segment < segments; ++segment) {
        const int32_t from = offset[segment];
        for (int32_t o = 0; o < PANEL; o += 4) {
            int8_t *to = panel + (segment * quads * PANEL + o) * 4;
            int32_t i = 0;
            for (; i + 16 <= length; i += 16, to += 16 * PANEL) {
                turn(to, w[o] + from + i, w[o + 1] + from + i, w[o + 2] + from + i, w[o + 3] + from + i);
            }
            for (; i < length; i += 4, to += 4 * PANEL) {
                const int32_t rest = length - i < 4 ? length - i : 4;
                memset(to, 0, 16);
                for (int32_t k = 0; k < 4; ++k) {
                    memcpy(to + 4 * k, w[o + k] + from + i, (size_t)rest);
                }
            }
        }
    }
    return largest;
}
#endif
