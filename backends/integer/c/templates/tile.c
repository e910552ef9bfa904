//: needs vectors products
//: body
#if defined(LANES)
/* sums[pixel][2] = start[PANEL] + products of the codes of each pixel with a panel of weights.

   codes[segment * ROWS + pixel] points to 4 * quads codes; flip converts them to numbers from 0 to 255. If the last two
   arguments are constants, all sums stay in registers. */
static inline ALWAYS_INLINE void tile_of(
    lanes *sums, const uint8_t *const *codes, int32_t segments, int32_t quads, const int8_t *weight, const int32_t *start,
    lanes flip, const int32_t pixels, const int32_t vectors)
{
    lanes low[ROWS], high[ROWS];
    for (int32_t i = 0; i < pixels; ++i) {
        low[i] = load_lanes(start);
        high[i] = load_lanes(start + LANES);
    }
    for (int32_t segment = 0; segment < segments; ++segment) {
        const uint8_t *x[ROWS];
        for (int32_t i = 0; i < pixels; ++i) {
            x[i] = codes[segment * ROWS + i];
        }
        for (int32_t quad = 0; quad < quads; ++quad, weight += 4 * PANEL) {
            const bytes_of_lanes w0 = load_weights(weight), w1 = load_weights(weight + 4 * LANES);
            for (int32_t i = 0; i < pixels; ++i) {
                const bytes_of_lanes four = splat_codes(x[i] + 4 * quad, flip);
                low[i] = add_products(low[i], four, w0);
                if (vectors == 2) {
                    high[i] = add_products(high[i], four, w1);
                }
            }
        }
    }
    for (int32_t i = 0; i < pixels; ++i) {
        sums[2 * i] = low[i];
        sums[2 * i + 1] = high[i];
    }
}

/* Compute a tile of pixels and channels. */
static void tile(
    lanes *sums, const uint8_t *const *codes, int32_t segments, int32_t quads, const int8_t *weight, const int32_t *start,
    lanes flip, int32_t pixels, int32_t channels)
{
    if (pixels == 1) {
        tile_of(sums, codes, segments, quads, weight, start, flip, 1, 2);
    } else if (channels <= LANES) {
        tile_of(sums, codes, segments, quads, weight, start, flip, ROWS, 1);
    } else {
        tile_of(sums, codes, segments, quads, weight, start, flip, ROWS, 2);
    }
}
#endif
