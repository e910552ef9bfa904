//: needs vectors
//: body
#if defined(LANES)
/* The first count of 4 * LANES bytes. Masked instructions are slow, and most counts are 4 * LANES. */
static inline lanes load_bytes(const void *from, int32_t count)
{
#if LANES == 16
    if (count == 2 * LANES) {
        return _mm512_zextsi256_si512(_mm256_loadu_si256((const __m256i *)from));
    }
    return count == 4 * LANES ? load_lanes(from) : _mm512_maskz_loadu_epi8(~(__mmask64)0 >> (64 - count), from);
#else
    uint8_t some[4 * LANES] = {0};
    if (count == 4 * LANES) {
        return load_lanes(from);
    }
    memcpy(some, from, (size_t)count);
    return load_lanes(some);
#endif
}

/* Store the first count of 4 * LANES bytes. */
static inline void store_bytes(void *to, lanes bytes, int32_t count)
{
#if LANES == 16
    if (count == 4 * LANES) {
        store_lanes(to, bytes);
    } else if (count == 2 * LANES) {
        _mm256_storeu_si256((__m256i *)to, _mm512_castsi512_si256(bytes));
    } else {
        _mm512_mask_storeu_epi8(to, ~(__mmask64)0 >> (64 - count), bytes);
    }
#else
    uint8_t some[4 * LANES];
    if (count == 4 * LANES) {
        store_lanes(to, bytes);
        return;
    }
    store_lanes(some, bytes);
    memcpy(to, some, (size_t)count);
#endif
}
#endif
