//: over Y
//: needs vectors halves
//: body
#if defined(LANES)
/* Numbers of two pixels, two vectors of channels each, to codes between low and high; the second pixel may be left out. */
static inline void ${f}(
    ${Y} *y, int32_t distance, const lanes *numbers, int32_t pixels, int32_t count, lanes low, lanes high)
{
    /* Packing saturates, and keeps to parts of 128 bits: words of the four vectors take turns. */
    const lanes first = V(packs_epi32)(numbers[0], numbers[1]), second = V(packs_epi32)(numbers[2], numbers[3]);
    const lanes codes = in_order(V(${packs})(first, second));
    const lanes inside = V(${min})(V(${max})(codes, low), high);
    if (count == PANEL && pixels == 2) {
        store_halves(y, y + distance, inside);
    } else {
        ${Y} some[4 * LANES];
        store_lanes(some, inside);
        memcpy(y, some, (size_t)count);
        if (pixels == 2) {
            memcpy(y + distance, some + PANEL, (size_t)count);
        }
    }
}
#endif
