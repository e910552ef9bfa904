//: needs vectors products
//: body
#if defined(LANES)
/* sums[pixel][2] = start[PANEL] + products of the codes of each pixel with a panel of weights.

   codes[segment * ROWS + pixel] points to 4 * quads codes, which flip makes numbers from 0 to 255; the panel holds
   [segment][quad][PANEL][4]. Where pixels is a constant, all sums are in registers. */
static inline ALWAYS_INLINE void tile(
    lanes *sums, const uint8_t *const *codes, int32_t segments, int32_t quads, const int8_t *panel,
    const int32_t *start, lanes flip, const int32_t pixels)
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
        for (int32_t quad = 0; quad < quads; ++quad, panel += 4 * PANEL) {
            const bytes_of_lanes w0 = load_weights(panel), w1 = load_weights(panel + 4 * LANES);
            for (int32_t i = 0; i < pixels; ++i) {
                const bytes_of_lanes four = splat_codes(x[i] + 4 * quad, flip);
                low[i] = add_products(low[i], four, w0);
                high[i] = add_products(high[i], four, w1);
            }
        }
    }
    for (int32_t i = 0; i < pixels; ++i) {
        sums[2 * i] = low[i];
        sums[2 * i + 1] = high[i];
    }
}

static void tile_rows(
    lanes *sums, const uint8_t *const *codes, int32_t segments, int32_t quads, const int8_t *panel,
    const int32_t *start, lanes flip)
{
    tile(sums, codes, segments, quads, panel, start, flip, ROWS);
}

static void tile_one(
    lanes *sums, const uint8_t *const *codes, int32_t segments, int32_t quads, const int8_t *panel,
    const int32_t *start, lanes flip)
{
    tile(sums, codes, segments, quads, panel, start, flip, 1);
}
#endif
