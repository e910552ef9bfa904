//: needs vectors
//: body
#if defined(LANES)
#if LANES == 16 || defined(__AVXVNNI__)
typedef lanes bytes_of_lanes;
#else
/* The even and the odd bytes of four, as 16-bit numbers: sums of two products of bytes do not fit into 16 bits. */
typedef struct {
    lanes even, odd;
} bytes_of_lanes;
#endif

/* Load four signed bytes per lane. */
static inline bytes_of_lanes signed_bytes(lanes four)
{
#if LANES == 16 || defined(__AVXVNNI__)
    return four;
#else
    return (bytes_of_lanes){_mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8), _mm256_srai_epi16(four, 8)};
#endif
}

static inline bytes_of_lanes load_weights(const int8_t *from)
{
    return signed_bytes(load_lanes(from));
}

/* Load four codes per lane; flip converts them to numbers from 0 to 255. */
static inline bytes_of_lanes flip_codes(lanes codes, lanes flip)
{
#if LANES == 16
    return _mm512_xor_si512(codes, flip);
#elif defined(__AVXVNNI__)
    return _mm256_xor_si256(codes, flip);
#else
    const lanes four = _mm256_xor_si256(codes, flip);
    return (bytes_of_lanes){_mm256_and_si256(four, _mm256_set1_epi16(255)), _mm256_srli_epi16(four, 8)};
#endif
}

/* Load the same four codes into all lanes. */
static inline bytes_of_lanes splat_codes(const void *from, lanes flip)
{
    int32_t four;
    memcpy(&four, from, sizeof four);
    return flip_codes(splat(four), flip);
}

/* Add the four products of its lane to each sum. */
static inline lanes add_products(lanes sum, bytes_of_lanes codes, bytes_of_lanes weights)
{
#if LANES == 16 && defined(__GNUC__) && !defined(__clang__)
    /* With the intrinsic for this instruction, GCC 12 moves every sum between registers and memory in each iteration of the
       loop, which takes twice the time. */
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(weights));
    return sum;
#elif LANES == 16
    return _mm512_dpbusd_epi32(sum, codes, weights);
#elif defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sum, codes, weights);
#else
    const lanes even = _mm256_madd_epi16(codes.even, weights.even);
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, _mm256_madd_epi16(codes.odd, weights.odd)));
#endif
}
#endif
