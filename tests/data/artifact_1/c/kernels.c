/* The kernels of sequential. Written by qcompiler. */
#include "kernels.h"

#define PANELS_BYTES 2816

/* Add to four sums the products of n codes with the weights of four output channels. */
static void dot4_i8(int32_t sum[4], const int8_t *x, const int8_t *const w[4], int32_t from, int32_t n)
{
    const int8_t *w0 = w[0] + from, *w1 = w[1] + from, *w2 = w[2] + from, *w3 = w[3] + from;
    int32_t s0 = sum[0], s1 = sum[1], s2 = sum[2], s3 = sum[3];
    for (int32_t i = 0; i < n; ++i) {
        const int32_t code = x[i];
        s0 += code * w0[i];
        s1 += code * w1[i];
        s2 += code * w2[i];
        s3 += code * w3[i];
    }
    sum[0] = s0;
    sum[1] = s1;
    sum[2] = s2;
    sum[3] = s3;
}

/* x / 2^shift, rounded down, for shifts of 0 to 62. C leaves to the implementation what >> does to a negative number,
   so it never sees one here; compilers make one arithmetic shift of this. */
static int64_t shift_down(int64_t x, int32_t shift)
{
    return x >= 0 ? x >> shift : ~(~x >> shift);
}

/* x * significand * 2^(exponent - 31), rounded once, halves up. */
static int64_t multiply_single(int64_t x, int32_t significand, int32_t exponent)
{
    return shift_down(x * significand + ((int64_t)1 << (30 - exponent)), 31 - exponent);
}

static int32_t sequential_requantize_channels_single(const sequential_requantize_channels_single_t *to, int32_t channel, int64_t x)
{
    const int32_t at = channel * to->next;
    const int64_t code = multiply_single(x, to->multiplier[at], to->exponent[at]) + to->zero_point;
    const int32_t low = to->lows ? to->lows[channel] : to->low;
    const int32_t high = to->highs ? to->highs[channel] : to->high;
    return code < low ? low : code > high ? high : (int32_t)code;
}

void sequential_conv_channels_last_i8_i8_single(
    int8_t *restrict y, const int8_t *restrict x, const sequential_conv_channels_last_i8_i8_single_t *call)
{
    const int32_t height = call->height, width = call->width, channels = call->channels;
    const int32_t depth = channels / call->groups, rows = call->out_channels / call->groups;
    const int32_t size = call->kernel_height * call->kernel_width * depth;
    /* Taps that lie side by side in memory make one long sum. */
    const int32_t joined = call->groups == 1 && call->dilation_x == 1;

    for (int32_t first = 0; first < call->out_channels; first += rows) {
        const int32_t skipped = first / rows * depth;
        for (int32_t row = 0; row < rows; row += 4) {
            /* Four channels at a time read x once; where fewer are left, the last one stands in for those that lack. */
            const int32_t o = first + row, count = rows - row < 4 ? rows - row : 4;
            const int8_t *w[4];
            for (int32_t i = 0; i < 4; ++i) {
                w[i] = call->weight + (o + (i < count ? i : count - 1)) * size;
            }
            for (int32_t pixel = 0; pixel < call->batch * call->out_height * call->out_width; ++pixel) {
                const int32_t line = pixel / call->out_width, image = line / call->out_height;
                const int32_t top = line % call->out_height * call->stride_y - call->top;
                const int32_t left = pixel % call->out_width * call->stride_x - call->left;
                int32_t sum[4] = {0, 0, 0, 0};
                for (int32_t ky = 0; ky < call->kernel_height; ++ky) {
                    const int32_t iy = top + ky * call->dilation_y;
                    for (int32_t kx = 0, taps = 1; kx < call->kernel_width; kx += taps) {
                        const int32_t ix = left + kx * call->dilation_x;
                        const int8_t *codes = call->outside;
                        taps = 1;
                        if (iy >= 0 && iy < height && ix >= 0 && ix < width) {
                            codes = x + ((image * height + iy) * width + ix) * channels + skipped;
                            if (joined) {
                                taps = width - ix < call->kernel_width - kx ? width - ix : call->kernel_width - kx;
                            }
                        }
                        dot4_i8(sum, codes, w, (ky * call->kernel_width + kx) * depth, taps * depth);
                    }
                }
                for (int32_t i = 0; i < count; ++i) {
                    y[pixel * call->out_channels + o + i] =
                        (int8_t)sequential_requantize_channels_single(&call->to, o + i, sum[i] + call->bias[o + i]);
                }
            }
        }
    }
}

/* Vectors of LANES numbers of 32 bits, where the compiler may use them: -march=native or the like. They give the same
   bits as the loops without; -DSEQUENTIAL_PORTABLE leaves them out. */
#if !defined(SEQUENTIAL_PORTABLE) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)
#define LANES 16
#elif !defined(SEQUENTIAL_PORTABLE) && defined(__AVX2__)
#define LANES 8
#endif

#if defined(LANES)
#include <immintrin.h>
#include <string.h>

/* Instructions for that many lanes, and pixels that a tile computes at once: as many as there are registers for. */
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
#endif

#if defined(LANES)
/* The weights of all layers, panel by panel, in the order in which tiles read them. A panel is made when its layer runs
   for the first time, and begins with what else its channels need. */
static lanes panels[PANELS_BYTES / sizeof(lanes)];

enum { HEAD = 128 * LANES };

/* Four channels at a time: 16 weights of each to four quads, as 4x4 words turned round. */
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

/* From weight[count][size], of which segments of a length are wanted that begin at some offsets, to
   panel[segment][quad][PANEL][4], with zeros behind segments that end within a quad, and the last channel in place of those
   that lack. start[PANEL] is the bias less below times the sum of these weights. Gives the largest sum of their products
   with codes from 0 to 255, or more. */
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

#if defined(LANES)
#if LANES == 16 || defined(__AVXVNNI__)
typedef lanes bytes_of_lanes;
#else
/* Of four bytes those at even and those at odd places, in 16 bits: sums of two products of bytes do not fit 16 bits. */
typedef struct {
    lanes even, odd;
} bytes_of_lanes;
#endif

/* Four signed bytes for each lane. */
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

/* Four codes for each lane, which flip makes numbers from 0 to 255. */
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

/* Four codes for all lanes. */
static inline bytes_of_lanes splat_codes(const void *from, lanes flip)
{
    int32_t four;
    memcpy(&four, from, sizeof four);
    return flip_codes(splat(four), flip);
}

/* To each sum the four products of its lane. */
static inline lanes add_products(lanes sum, bytes_of_lanes codes, bytes_of_lanes weights)
{
#if LANES == 16 && defined(__GNUC__) && !defined(__clang__)
    /* GCC 12 moves every sum to another register in each turn of a loop over the function for this instruction, and to
       memory: that takes twice the time. */
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

#if defined(LANES)
/* sums[pixel][2] = start[PANEL] + products of the codes of each pixel with a panel of weights.

   codes[segment * ROWS + pixel] points to 4 * quads codes, which flip makes numbers from 0 to 255. Where the last two
   numbers are constants, all sums are in registers. */
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

/* A tile of some pixels and channels. */
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

#if defined(LANES)
typedef struct {
    int32_t image, y, x;
} place_of_pixel;

static inline void next_pixel(place_of_pixel *at, int32_t width, int32_t height)
{
    if (++at->x == width) {
        at->x = 0;
        if (++at->y == height) {
            at->y = 0;
            ++at->image;
        }
    }
}
#endif

#if defined(LANES)
/* 4 * LANES bytes, of which the first count are there. Instructions that leave some out are slow; most counts are whole. */
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

/* The first count of 4 * LANES bytes. */
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

#if defined(LANES)
/* Codes of the first count channels of two pixels; the second may be left out. */
static inline void store_pixels(void *first, void *second, lanes codes, int32_t count)
{
    if (count < PANEL || !second) {
        store_bytes(first, codes, count);
        if (second) {
#if LANES == 16
            store_bytes(second, _mm512_shuffle_i64x2(codes, codes, 0xee), count);
#else
            store_bytes(second, _mm256_permute2x128_si256(codes, codes, 0x11), count);
#endif
        }
        return;
    }
#if LANES == 16
    _mm256_storeu_si256((__m256i *)first, _mm512_castsi512_si256(codes));
    _mm256_storeu_si256((__m256i *)second, _mm512_extracti64x4_epi64(codes, 1));
#else
    _mm_storeu_si128((__m128i *)first, _mm256_castsi256_si128(codes));
    _mm_storeu_si128((__m128i *)second, _mm256_extracti128_si256(codes, 1));
#endif
}
#endif

#if defined(LANES)
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

#if defined(LANES)
/* Four vectors of sums make one of codes. They are either of two pixels, two vectors of channels each, or of one pixel with
   its channels in the order of interleave; the codes then are those of one pixel behind the other, or of all channels. */

/* Which channel of its pixel a sum is of. */
static inline int32_t channel_of(int32_t vector, int32_t lane, int32_t is_deep)
{
    return is_deep ? lane / 4 * 16 + 4 * vector + lane % 4 : vector % 2 * LANES + lane;
}
#endif

#if defined(LANES)
/* Bytes that were packed from four vectors, part by part of 128 bits, in the order of codes. */
static inline lanes in_order(lanes packed, int32_t is_deep)
{
#if LANES == 16
    const lanes order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return is_deep ? packed : _mm512_permutexvar_epi32(order, packed);
#else
    return is_deep ? packed : _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
#endif
}
#endif

#if defined(LANES)
typedef struct {
    const sequential_requantize_channels_single_t *to;
    int32_t from, count, is_deep;
} requantize_four_i8_single_t;

/* What count channels need, none of whose sums is larger than largest. */
static void requantize_four_i8_single_prepare(
    requantize_four_i8_single_t *with, const sequential_requantize_channels_single_t *to, int32_t from, int32_t count, int32_t is_deep,
    int64_t largest)
{
    with->to = to;
    with->from = from;
    with->count = count;
    with->is_deep = is_deep;
    (void)largest;
}

/* Codes of four vectors of sums. */
static inline lanes requantize_four_i8_single(const requantize_four_i8_single_t *with, const lanes *sums)
{
    int8_t codes[4 * LANES] = {0};
    for (int32_t i = 0; i < 4; ++i) {
        int32_t sum[LANES];
        store_lanes(sum, sums[i]);
        for (int32_t lane = 0; lane < LANES; ++lane) {
            const int32_t channel = channel_of(i, lane, with->is_deep);
            const int32_t at = channel + (with->is_deep ? 0 : i / 2 * PANEL);
            if (channel < with->count) {
                codes[at] = (int8_t)sequential_requantize_channels_single(with->to, with->from + channel, sum[lane]);
            }
        }
    }
    return load_lanes(codes);
}
#endif

#if defined(LANES)
typedef struct {
    lanes significand[4], odd_significand[4];
    lanes half[4], shift[4]; /* of the upper halves of products */
    lanes zero_point, low, high;
    int32_t is_deep;
    int32_t up;     /* bits that sums are shifted left, so that multipliers are below 1/4 */
    int32_t is_far; /* whether that is too far */
    requantize_four_i8_single_t plain;
} requantize_four_single_i8_single_t;

/* What count channels need, none of whose sums is larger than largest. */
static void requantize_four_single_i8_single_prepare(
    requantize_four_single_i8_single_t *with, const sequential_requantize_channels_single_t *to, int32_t from, int32_t count, int32_t is_deep,
    int64_t largest)
{
    const int32_t all = is_deep ? 4 * LANES : PANEL;
    int8_t low[4 * LANES], high[4 * LANES];
    requantize_four_i8_single_prepare(&with->plain, to, from, count, is_deep, largest);
    with->zero_point = splat(to->zero_point);
    with->is_deep = is_deep;
    with->up = 0;
    for (int32_t i = 0; i < 4 * LANES; ++i) {
        const int32_t channel = from + (i % all < count ? i % all : count - 1);
        low[i] = (int8_t)(to->lows ? to->lows[channel] : to->low);
        high[i] = (int8_t)(to->highs ? to->highs[channel] : to->high);
        if (to->exponent[channel * to->next] + 2 > with->up) {
            with->up = to->exponent[channel * to->next] + 2;
        }
    }
    with->is_far = largest > INT32_MAX >> with->up;
    with->low = load_lanes(low);
    with->high = load_lanes(high);
    for (int32_t i = 0; i < 4; ++i) {
        int32_t significand[LANES], shift[LANES];
        for (int32_t lane = 0; lane < LANES; ++lane) {
            const int32_t channel = channel_of(i, lane, is_deep);
            const int32_t at = (from + (channel < count ? channel : count - 1)) * to->next;
            significand[lane] = to->multiplier[at];
            shift[lane] = with->up - 1 - to->exponent[at];
        }
        with->shift[i] = load_lanes(shift);
        with->half[i] = V(srlv_epi32)(V(sllv_epi32)(splat(1), with->shift[i]), splat(1));
        with->significand[i] = load_lanes(significand);
        with->odd_significand[i] = V(srli_epi64)(with->significand[i], 32);
    }
}

/* round(x * multiplier), halves up. Products have 64 bits: those of lanes at even and at odd places are computed apart. Of a
   multiplier below 1/4 the lower half of the product does not matter but for where it is rounded down to the upper one. */
static inline ALWAYS_INLINE lanes requantize_four_single_i8_single_multiply(const requantize_four_single_i8_single_t *with, lanes x, int32_t i)
{
    const lanes even = V(mul_epi32)(x, with->significand[i]);
    const lanes odd = V(mul_epi32)(V(srli_epi64)(x, 32), with->odd_significand[i]);
    return V(srav_epi32)(V(add_epi32)(join_upper_halves(even, odd), with->half[i]), with->shift[i]);
}

/* Codes of four vectors of sums. */
static inline ALWAYS_INLINE lanes requantize_four_single_i8_single(const requantize_four_single_i8_single_t *with, const lanes *sums)
{
    lanes numbers[4], packed;
    if (with->is_far) {
        return requantize_four_i8_single(&with->plain, sums);
    }
    for (int32_t i = 0; i < 4; ++i) {
        const lanes x = with->up ? V(sll_epi32)(sums[i], _mm_cvtsi32_si128(with->up)) : sums[i];
        numbers[i] = V(add_epi32)(requantize_four_single_i8_single_multiply(with, x, i), with->zero_point);
    }
    /* Packing saturates. */
    packed = V(packs_epi16)(V(packs_epi32)(numbers[0], numbers[1]), V(packs_epi32)(numbers[2], numbers[3]));
    return V(min_epi8)(V(max_epi8)(in_order(packed, with->is_deep), with->low), with->high);
}
#endif

#if defined(LANES)
/* codes[segment][ROWS]: where the codes of each pixel of a tile begin. A segment is a tap, or a line of taps that lie side by
   side in memory; lines that leave the image are copied to edge. */
static void sequential_conv_bytes_i8_i8_single_find(
    const uint8_t **codes, uint8_t *edge, const int8_t *x, const sequential_conv_channels_last_i8_i8_single_t *call, int32_t skipped,
    place_of_pixel *at, int32_t pixels, int32_t joined)
{
    const int32_t height = call->height, width = call->width, channels = call->channels;
    const int32_t depth = channels / call->groups, lines = call->kernel_height, columns = call->kernel_width;
    const int32_t next_line = call->dilation_y * width * channels, next_tap = call->dilation_x * channels;
    const int32_t below = (lines - 1) * call->dilation_y, beside = (columns - 1) * call->dilation_x;
    /* Codes behind the last tap that are read with it. */
    const int32_t behind = joined ? (columns * depth + 3) / 4 * 4 - columns * depth : 0;
    const int32_t size = call->batch * height * width * channels;
    const int32_t taps = joined ? 1 : columns;
    for (int32_t i = 0; i < pixels; ++i) {
        const int32_t top = at->y * call->stride_y - call->top, left = at->x * call->stride_x - call->left;
        const int32_t last = ((at->image * height + top + below) * width + left + beside + 1) * channels;
        if (top >= 0 && top + below < height && left >= 0 && left + beside < width && last + behind <= size) {
            const int8_t *from = x + ((at->image * height + top) * width + left) * channels + skipped;
            for (int32_t ky = 0; ky < lines; ++ky, from += next_line) {
                for (int32_t kx = 0; kx < taps; ++kx) {
                    codes[(ky * taps + kx) * ROWS + i] = (const uint8_t *)(from + kx * next_tap);
                }
            }
        } else {
            for (int32_t ky = 0; ky < lines; ++ky) {
                const int32_t iy = top + ky * call->dilation_y, in_lines = iy >= 0 && iy < height;
                const int8_t *from = x + (in_lines ? (at->image * height + iy) * width * channels + skipped : 0);
                for (int32_t kx = 0; !joined && kx < columns; ++kx) {
                    const int32_t ix = left + kx * call->dilation_x;
                    const int8_t *tap = in_lines && ix >= 0 && ix < width ? from + ix * channels : call->outside;
                    codes[(ky * taps + kx) * ROWS + i] = (const uint8_t *)tap;
                }
                if (joined) {
                    uint8_t *to = edge + (ky * ROWS + i) * LINE;
                    const int32_t begin = left < 0 ? -left : 0, right = width - left;
                    const int32_t end = !in_lines ? begin : right < columns ? right : columns;
                    codes[ky * ROWS + i] = to;
                    if (begin > 0 || end < columns) {
                        memset(to, call->outside[0], (size_t)(columns * depth));
                    }
                    if (begin < end) {
                        memcpy(to + begin * depth, from + (left + begin) * channels, (size_t)((end - begin) * depth));
                    }
                }
            }
        }
        next_pixel(at, call->out_width, call->out_height);
    }
    /* Where pixels are fewer the first one stands in. */
    for (int32_t i = pixels; i < ROWS; ++i) {
        for (int32_t segment = 0; segment < lines * taps; ++segment) {
            codes[segment * ROWS + i] = codes[segment * ROWS];
        }
    }
}

typedef struct {
    requantize_four_single_i8_single_t to;
    int32_t start[PANEL];
    int32_t is_ready;
} sequential_conv_bytes_i8_i8_single_head;

typedef char sequential_conv_bytes_i8_i8_single_fits[sizeof(sequential_conv_bytes_i8_i8_single_head) <= HEAD ? 1 : -1];

static void sequential_conv_bytes_i8_i8_single_pack(
    int8_t *panel, const sequential_conv_channels_last_i8_i8_single_t *call, int32_t segments, int32_t length, int32_t o, int32_t count)
{
    int32_t offset[TAPS];
    int64_t largest;
    sequential_conv_bytes_i8_i8_single_head head;
    for (int32_t i = 0; i < segments; ++i) {
        offset[i] = i * length;
    }
    largest = pack_panel(panel + HEAD, head.start, call->bias + o, (int8_t)-1 < 0 ? 128 : 0,
        call->weight + o * segments * length, count, segments * length, offset, segments, length);
    requantize_four_single_i8_single_prepare(&head.to, &call->to, o, count, 0, largest);
    head.is_ready = 1;
    memcpy(panel, &head, sizeof head);
}

static void sequential_conv_bytes_i8_i8_single_vectors(
    int8_t *y, const int8_t *x, const sequential_conv_channels_last_i8_i8_single_t *call, int8_t *panel_of_layer, int32_t joined)
{
    const int32_t depth = call->channels / call->groups, rows = call->out_channels / call->groups;
    const int32_t segments = joined ? call->kernel_height : call->kernel_height * call->kernel_width;
    const int32_t length = joined ? call->kernel_width * depth : depth, quads = (length + 3) / 4;
    const int32_t pixels = call->batch * call->out_height * call->out_width;
    const int32_t size = HEAD + 4 * PANEL * quads * segments; /* of a panel */
    const lanes flip = splat((int8_t)-1 < 0 ? (int32_t)0x80808080u : 0);
    /* Whether each pixel is made of the one at the same place. */
    const int32_t is_flat = segments == 1 && call->kernel_width == 1 && depth % 4 == 0 && call->stride_y == 1
        && call->stride_x == 1 && !call->top && !call->left && call->out_height == call->height
        && call->out_width == call->width;
    static const uint8_t *codes[TILES][TAPS * ROWS];
    static uint8_t edge[TILES][LINES * ROWS * LINE];

    for (int32_t group = 0; group < call->groups; ++group) {
        const int32_t begin = group * rows, end = begin + rows, skipped = group * depth;
        place_of_pixel at = {0, 0, 0};
        for (int32_t first = 0; first < pixels; first += TILES * ROWS) {
            const int32_t some = pixels - first < TILES * ROWS ? pixels - first : TILES * ROWS;
            int8_t *panel = panel_of_layer + group * ((rows + PANEL - 1) / PANEL) * size;
            for (int32_t pixel = 0, tile_at = 0; pixel < some; pixel += ROWS, ++tile_at) {
                const int32_t n = some - pixel < ROWS ? some - pixel : ROWS;
                if (is_flat) {
                    for (int32_t i = 0; i < ROWS; ++i) {
                        const int8_t *from = x + (first + pixel + (i < n ? i : 0)) * call->channels + skipped;
                        codes[tile_at][i] = (const uint8_t *)from;
                    }
                } else {
                    sequential_conv_bytes_i8_i8_single_find(codes[tile_at], edge[tile_at], x, call, skipped, &at, n, joined);
                }
            }
            for (int32_t o = begin; o < end; o += PANEL, panel += size) {
                const int32_t count = end - o < PANEL ? end - o : PANEL;
                sequential_conv_bytes_i8_i8_single_head head;
                memcpy(&head, panel, sizeof head);
                if (!head.is_ready) {
                    sequential_conv_bytes_i8_i8_single_pack(panel, call, segments, length, o, count);
                    memcpy(&head, panel, sizeof head);
                }
                for (int32_t pixel = 0, tile_at = 0; pixel < some; pixel += ROWS, ++tile_at) {
                    const int32_t n = some - pixel < ROWS ? some - pixel : ROWS;
                    const requantize_four_single_i8_single_t with = head.to; /* in registers: no pointer leads to it */
                    int8_t *to_y = y + (first + pixel) * call->out_channels + o;
                    lanes sums[2 * ROWS];
                    tile(sums, codes[tile_at], segments, quads, panel + HEAD, head.start, flip, n, count);
                    for (int32_t i = 0; i < n; i += 2, to_y += 2 * call->out_channels) {
                        const lanes made = requantize_four_single_i8_single(&with, sums + 2 * i);
                        store_pixels(to_y, i + 1 < n ? to_y + call->out_channels : 0, made, count);
                    }
                }
            }
        }
    }
}
#endif

void sequential_conv_bytes_i8_i8_single(
    int8_t *restrict y, const int8_t *restrict x, const sequential_conv_bytes_i8_i8_single_t *call)
{
#if defined(LANES)
    const sequential_conv_channels_last_i8_i8_single_t *plain = &call->plain;
    const int32_t depth = plain->channels / plain->groups, line = plain->kernel_width * depth;
    const int32_t joined =
        line <= LINE && plain->kernel_height <= LINES && plain->groups == 1 && plain->dilation_x == 1;
    /* One pixel or two are done before their weights are in order. */
    const int32_t many = plain->batch * plain->out_height * plain->out_width >= ROWS / 2;
    if (many && plain->kernel_height * plain->kernel_width <= TAPS && (joined || depth % 4 == 0)) {
        sequential_conv_bytes_i8_i8_single_vectors(y, x, plain, (int8_t *)panels + call->panels, joined);
        return;
    }
#endif
    sequential_conv_channels_last_i8_i8_single(y, x, &call->plain);
}

/* Where element `index` of a box lies: `size` of each axis, the last one running fastest, and `step` along each. */
static int32_t place(int32_t index, int32_t rank, const int32_t *size, const int32_t *step)
{
    int32_t at = 0;
    for (int32_t axis = rank - 1; axis >= 0; --axis) {
        at += index % size[axis] * step[axis];
        index /= size[axis];
    }
    return at;
}

void sequential_move_i8(
    int8_t *restrict y, const int8_t *restrict x, const sequential_move_i8_t *call)
{
    const int32_t x_next = call->x_next, y_next = call->y_next;
    for (int32_t i = 0; i < call->outer; ++i) {
        const int8_t *from = x + call->x_first + place(i, call->rank, call->size, call->x_step);
        int8_t *to = y + call->y_first + place(i, call->rank, call->size, call->y_step);
        for (int32_t j = 0; j < call->inner; ++j) {
            to[j * y_next] = from[j * x_next];
        }
    }
}

void sequential_linear_i8_i8_single(
    int8_t *restrict y, const int8_t *restrict x, const sequential_linear_i8_i8_single_t *call)
{
    const int32_t inputs = call->inputs, outputs = call->outputs;
    for (int32_t o = 0; o < outputs; o += 4) {
        /* Four channels at a time read x once; where fewer are left, the last one stands in for those that lack. */
        const int32_t count = outputs - o < 4 ? outputs - o : 4;
        const int8_t *w[4];
        for (int32_t i = 0; i < 4; ++i) {
            w[i] = call->weight + (o + (i < count ? i : count - 1)) * inputs;
        }
        for (int32_t row = 0; row < call->rows; ++row) {
            int32_t sum[4] = {0, 0, 0, 0};
            dot4_i8(sum, x + row * inputs, w, 0, inputs);
            for (int32_t i = 0; i < count; ++i) {
                y[row * outputs + o + i] =
                    (int8_t)sequential_requantize_channels_single(&call->to, o + i, sum[i] + call->bias[o + i]);
            }
        }
    }
}

#if defined(LANES)
/* Their sum, less what leaves 32 bits. */
static inline uint32_t sum_of_lanes(lanes values)
{
    uint32_t each[LANES], sum = 0;
    store_lanes(each, values);
    for (int32_t i = 0; i < LANES; ++i) {
        sum += each[i];
    }
    return sum;
}
#endif

#if defined(LANES)
static void sequential_linear_bytes_i8_i8_single_row(int8_t *y, const int8_t *x, const sequential_linear_bytes_i8_i8_single_t *call)
{
    /* Instructions multiply unsigned bytes by signed ones. Where the codes are signed the weights are made unsigned: they
       are 128 too large, and the products too large by 128 times the sum of the codes. */
    const int32_t inputs = call->inputs, is_signed = (int8_t)-1 < 0;
    const lanes flip = splat(is_signed ? (int32_t)0x80808080u : 0);
    int32_t codes = 0;
    for (int32_t i = 0; is_signed && i < inputs; ++i) {
        codes += x[i];
    }
    for (int32_t o = 0; o < call->outputs; o += 4) {
        /* Where fewer are left, the last one stands in for those that lack. */
        const int32_t count = call->outputs - o < 4 ? call->outputs - o : 4;
        lanes sums[4] = {splat(0), splat(0), splat(0), splat(0)};
        for (int32_t i = 0; i < inputs; i += 4 * LANES) {
            const int32_t some = inputs - i < 4 * LANES ? inputs - i : 4 * LANES;
            const lanes from_x = load_bytes(x + i, some);
            for (int32_t k = 0; k < 4; ++k) {
                const lanes w = load_bytes(call->weight + (o + (k < count ? k : count - 1)) * inputs + i, some);
                sums[k] = is_signed ? add_products(sums[k], flip_codes(w, flip), signed_bytes(from_x))
                                    : add_products(sums[k], flip_codes(from_x, flip), signed_bytes(w));
            }
        }
        for (int32_t k = 0; k < count; ++k) {
            /* Unsigned, which may wrap on the way. */
            const uint32_t sum = sum_of_lanes(sums[k]) - 128u * (uint32_t)codes + (uint32_t)call->bias[o + k];
            y[o + k] = (int8_t)sequential_requantize_channels_single(&call->to, o + k, (int32_t)sum);
        }
    }
}
#endif

void sequential_linear_bytes_i8_i8_single(
    int8_t *restrict y, const int8_t *restrict x, const sequential_linear_bytes_i8_i8_single_t *call)
{
#if defined(LANES)
    if (call->inputs >= 4 * LANES) {
        for (int32_t row = 0; row < call->rows; ++row) {
            sequential_linear_bytes_i8_i8_single_row(y + row * call->outputs, x + row * call->inputs, call);
        }
        return;
    }
#endif
    sequential_linear_i8_i8_single(y, x, call);
}
