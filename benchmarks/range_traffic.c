/* A layer with a static range, as it was emitted, and with a dynamic range: accumulators to memory, their range, and back.

   Appended to the emitted files of a layer in one unit; words in braces after a dollar sign are filled in. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#if !defined(LANES)
#error "This benchmark needs the vectors of AVX2 or AVX-512: compile with -march=native."
#endif

enum { BLOCK = 64 }; /* pixels that are quantized per panel of channels, so that its constants stay in registers */

static int32_t read_range(int32_t *most)
{
    int32_t low[LANES], high[LANES];
    store_lanes(low, least_sums);
    store_lanes(high, most_sums);
    *most = high[0];
    for (int32_t i = 1; i < LANES; ++i) {
        low[0] = low[i] < low[0] ? low[i] : low[0];
        *most = high[i] > *most ? high[i] : *most;
    }
    return low[0];
}

/* The codes of two pixels, count channels each. */
static inline void store_two(int8_t *first, int8_t *second, lanes codes, int32_t count)
{
    int8_t all[4 * LANES];
    store_lanes(all, codes);
    if (count == PANEL) { /* a constant size, which becomes one instruction */
        memcpy(first, all, PANEL);
        if (second) {
            memcpy(second, all + PANEL, PANEL);
        }
        return;
    }
    memcpy(first, all, (size_t)count);
    if (second) {
        memcpy(second, all + PANEL, (size_t)count);
    }
}

/* Accumulators [pixel][channel] to codes. */
static void quantize_sums(int8_t *y, const ${CALL} *call)
{
    const int32_t pixels = call->batch * call->out_height * call->out_width, channels = ${CHANNELS};
    for (int32_t first = 0; first < pixels; first += BLOCK) {
        const int32_t some = pixels - first < BLOCK ? pixels - first : BLOCK;
        for (int32_t o = 0; o < channels; o += PANEL) {
            const int32_t count = channels - o < PANEL ? channels - o : PANEL;
            const ${LANES_OF}_t with = prepared[o / PANEL];
            for (int32_t i = 0; i < some; i += 2) {
                const int32_t at = (first + i) * channels + o;
                const int32_t two = i + 1 < some, far = count > LANES ? LANES : 0;
                lanes sums[4];
                sums[0] = load_lanes(wide + at);
                sums[1] = load_lanes(wide + at + far);
                sums[2] = load_lanes(wide + at + (two ? channels : 0));
                sums[3] = load_lanes(wide + at + (two ? channels : 0) + far);
                store_two(y + at, two ? y + at + channels : 0, ${LANES_OF}(&with, sums), count);
            }
        }
    }
}

static void dynamic_run(void)
{
    const int32_t channels = ${CHANNELS};
    const ${CALL} *call = &${PLAIN};
    int32_t least, most;
    int64_t largest;
    least_sums = splat(INT32_MAX);
    most_sums = splat(INT32_MIN);
    base = ${Y};
    dynamic_${KERNEL}(${Y}, ${X}, &${CONSTANTS});
    least = read_range(&most);
    largest = -(int64_t)least > most ? -(int64_t)least : most;
    for (int32_t o = 0; o < channels; o += PANEL) {
        ${LANES_OF}_prepare(&prepared[o / PANEL], &call->to, o, channels - o < PANEL ? channels - o : PANEL, 0, largest);
    }
    quantize_sums(${Y}, call);
}

static double seconds(void (*run)(void), int32_t count)
{
    struct timespec begin, end;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
    for (int32_t i = 0; i < count; ++i) {
        run();
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
    return ((double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec)) / count;
}

int main(int argc, char **argv)
{
    const int32_t inputs = ${INPUTS}, outputs = ${OUTPUTS}, rounds = argc > 1 ? atoi(argv[1]) : 9;
    const double wanted = 0.02;
    int8_t *static_codes = malloc((size_t)outputs);
    uint32_t state = 1;
    int32_t least, most, count;
    for (int32_t i = 0; i < inputs; ++i) {
        state = state * 1664525u + 1013904223u;
        ${X}[i] = (int8_t)(state >> 24);
    }
    ${PREFIX}_run();
    memcpy(static_codes, ${Y}, (size_t)outputs);
    memset(${Y}, 0, (size_t)outputs);
    dynamic_run();
    if (memcmp(static_codes, ${Y}, (size_t)outputs)) {
        fprintf(stderr, "the codes with a dynamic range differ\n");
        return 1;
    }
    least = read_range(&most);
    for (int32_t i = 0; i < outputs; ++i) {
        if (wide[i] < least || wide[i] > most) {
            fprintf(stderr, "an accumulator is outside of its range\n");
            return 1;
        }
    }
    count = 1 + (int32_t)(wanted / seconds(${PREFIX}_run, 3));
    for (int32_t round = 0; round < rounds; ++round) {
        const double still = seconds(${PREFIX}_run, count);
        printf("%.9f %.9f\n", still, seconds(dynamic_run, count));
    }
    free(static_codes);
    return 0;
}
