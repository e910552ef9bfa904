//: over Y
//: needs vectors in_order
//: body
#if defined(LANES)
/* Convert four consecutive vectors of numbers to codes between low and high. Packing saturates. */
static inline ALWAYS_INLINE lanes ${f}(const lanes *numbers, int32_t low, int32_t high)
{
    const lanes first = V(packs_epi32)(numbers[0], numbers[1]), second = V(packs_epi32)(numbers[2], numbers[3]);
    const lanes codes = in_order(V(${packs})(first, second), 0);
    return V(${min})(V(${max})(codes, V(set1_epi8)((int8_t)low)), V(set1_epi8)((int8_t)high));
}
#endif
