//: body
/* Vectors of LANES 32-bit numbers, if the compiler may use them, for example with -march=native. The results equal those of
   the plain loops in every bit; -D${N}_PORTABLE disables vectors. */
#if !defined(${N}_PORTABLE) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define LANES 16
#elif !defined(${N}_PORTABLE) && defined(__AVX2__)
#define LANES 8
#endif

#if defined(LANES)
#include <immintrin.h>
#include <string.h>

/* Instructions for LANES lanes, and the number of pixels of a tile, for which there are enough registers. */
#if LANES == 16
#define V(name) _mm512_##name
#define ROWS 8
#else
#define V(name) _mm256_##name
#define ROWS 4
#endif

#if defined(__GNUC__)
#define ALWAYS_INLINE __attribute__((always_inline))
#else
#define ALWAYS_INLINE
#endif

enum {
    PANEL = 2 * LANES, /* channels of a tile */
    TAPS = 64,         /* largest number of taps of a kernel */
    TILES = 8,         /* number of tiles whose codes are located at a time */
    LINES = 8,         /* largest number of lines of a kernel that is read line by line */
    LINE = 256,        /* largest number of codes in a line of taps that is read as one segment */
    COLUMNS = 16       /* largest number of columns of a depthwise kernel, each of four lines */
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
#endif
