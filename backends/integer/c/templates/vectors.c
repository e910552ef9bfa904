//: body
/* Vectors of LANES numbers of 32 bits, where the compiler may use them: -march=native or the like. They give the same
   bits as the loops without; -D${N}_PORTABLE leaves them out. */
#if !defined(${N}_PORTABLE) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define LANES 16
#define ROWS 8 /* pixels that a tile computes at once: as many as there are registers for */
#define V(name) _mm512_##name
#elif !defined(${N}_PORTABLE) && defined(__AVX2__)
#define LANES 8
#define ROWS 4
#define V(name) _mm256_##name
#endif

#if defined(LANES)
#include <immintrin.h>
#include <string.h>

#if defined(__GNUC__)
#define ALWAYS_INLINE __attribute__((always_inline))
#else
#define ALWAYS_INLINE
#endif

enum {
    PANEL = 2 * LANES, /* channels that a tile computes at once */
    TAPS = 64,         /* most taps of a kernel */
    TILES = 8,         /* whose codes are found at once */
    LINES = 8,         /* most lines of a kernel whose taps are read line by line */
    LINE = 256,        /* most codes in a line of taps that are read as one */
    COLUMNS = 16       /* most columns of a kernel for single channels, of four lines each */
};

#if LANES == 16
typedef __m512i lanes;
#else
typedef __m256i lanes;
#endif

static inline lanes load_lanes(const void *from)
{
#if LANES == 16
    return _mm512_loadu_si512(from);
#else
    return _mm256_loadu_si256((const __m256i *)from);
#endif
}

static inline void store_lanes(void *to, lanes values)
{
#if LANES == 16
    _mm512_storeu_si512(to, values);
#else
    _mm256_storeu_si256((__m256i *)to, values);
#endif
}

static inline lanes splat(int32_t value)
{
    return V(set1_epi32)(value);
}

/* Of numbers of 64 bits the upper halves, those of odd in the places between those of even. */
static inline lanes join_upper_halves(lanes even, lanes odd)
{
#if LANES == 16
    return _mm512_mask_shuffle_epi32(odd, 0x5555, even, (_MM_PERM_ENUM)0xf5);
#else
    return _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
#endif
}
#endif
