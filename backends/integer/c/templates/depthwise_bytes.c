//: over X Y MODE
//: needs depthwise_channels_last products interleave place_of_pixel requantize_rows
//: header
typedef ${depthwise_channels_last}_t ${f}_t;

/* The same for codes and weights of 8 bits: many channels at a time where the machine has vectors. */
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
#if defined(LANES)
/* Where the taps of a pixel begin; those outside of the image read the zero point. */
static void ${f}_find(
    const ${X} **taps, const ${X} *x, const ${X} *outside, const ${f}_t *call, place_of_pixel at)
{
    const int32_t top = at.y * call->stride_y - call->top, left = at.x * call->stride_x - call->left;
    const ${X} *from = x + at.image * call->height * call->width * call->channels;
    for (int32_t ky = 0; ky < call->kernel_height; ++ky) {
        const int32_t iy = top + ky * call->dilation_y, in_lines = iy >= 0 && iy < call->height;
        for (int32_t kx = 0; kx < call->kernel_width; ++kx) {
            const int32_t ix = left + kx * call->dilation_x, inside = in_lines && ix >= 0 && ix < call->width;
            *taps++ = inside ? from + (iy * call->width + ix) * call->channels : outside;
        }
    }
}

/* Weights of some channels in the order of interleave, four taps at a time, and what their sums begin with. */
static void ${f}_prepare(
    bytes_of_lanes *weight, lanes *first, const ${f}_t *call, int32_t from, int32_t some)
{
    const int32_t count = call->kernel_height * call->kernel_width, channels = call->channels;
    const int32_t zero_point = call->zero_point + ((${X})-1 < 0 ? 128 : 0); /* of codes from 0 to 255 */
    int32_t start[4 * LANES] = {0};
    for (int32_t i = 0; i < some; ++i) {
        int32_t weights = 0;
        for (int32_t tap = 0; tap < count; ++tap) {
            weights += call->weight[tap * channels + from + i];
        }
        start[i] = call->bias[from + i] - zero_point * weights;
    }
    for (int32_t i = 0; i < 4; ++i) {
        int32_t turned[LANES];
        for (int32_t lane = 0; lane < LANES; ++lane) {
            turned[lane] = start[lane / 4 * 16 + 4 * i + lane % 4];
        }
        first[i] = load_lanes(turned);
    }
    for (int32_t tap = 0; tap < count; tap += 4) {
        lanes w[4], turned[4];
        for (int32_t i = 0; i < 4; ++i) {
            w[i] = tap + i < count ? load_bytes(call->weight + (tap + i) * channels + from, some) : splat(0);
        }
        interleave(turned, w[0], w[1], w[2], w[3]);
        for (int32_t i = 0; i < 4; ++i) {
            weight[tap + i] = load_weights((const int8_t *)&turned[i]);
        }
    }
}

static void ${f}_vectors(${Y} *y, const ${X} *x, const ${f}_t *call)
{
    enum { CHANNELS = 4 * LANES };
    const int32_t channels = call->channels, count = call->kernel_height * call->kernel_width;
    const int32_t pixels = call->batch * call->out_height * call->out_width;
    const lanes flip = splat((${X})-1 < 0 ? (int32_t)0x80808080u : 0);
    bytes_of_lanes weight[TAPS];
    int32_t sum[ROWS * CHANNELS];
    ${X} outside[CHANNELS];
    lanes first[4];
    const ${X} *taps[TAPS];
    for (int32_t i = 0; i < CHANNELS; ++i) {
        outside[i] = (${X})call->zero_point;
    }
    for (int32_t tap = count; tap < TAPS; ++tap) {
        taps[tap] = outside;
    }

    for (int32_t c = 0; c < channels; c += CHANNELS) {
        const int32_t some = channels - c < CHANNELS ? channels - c : CHANNELS;
        ${requantize_rows}_t to[2];
        place_of_pixel at = {0, 0, 0};
        ${f}_prepare(weight, first, call, c, some);
        ${requantize_rows}_prepare(&to[0], &call->to, c, some < PANEL ? some : PANEL);
        if (some > PANEL) {
            ${requantize_rows}_prepare(&to[1], &call->to, c + PANEL, some - PANEL);
        }
        for (int32_t pixel = 0; pixel < pixels; pixel += ROWS) {
            const int32_t n = pixels - pixel < ROWS ? pixels - pixel : ROWS;
            ${Y} *codes_of_y = y + pixel * channels + c;
            for (int32_t row = 0; row < n; ++row, next_pixel(&at, call->out_width, call->out_height)) {
                lanes sums[4] = {first[0], first[1], first[2], first[3]};
                ${f}_find(taps, x, outside, call, at);
                for (int32_t tap = 0; tap < count; tap += 4) {
                    lanes codes[4], turned[4];
                    for (int32_t i = 0; i < 4; ++i) {
                        codes[i] = load_bytes(taps[tap + i] == outside ? outside : taps[tap + i] + c, some);
                    }
                    interleave(turned, codes[0], codes[1], codes[2], codes[3]);
                    for (int32_t i = 0; i < 4; ++i) {
                        sums[i] = add_products(sums[i], flip_codes(turned[i], flip), weight[tap + i]);
                    }
                }
                store_in_order(sum + row * CHANNELS, sums);
            }
            ${requantize_rows}(codes_of_y, channels, sum, CHANNELS, n, &to[0]);
            if (some > PANEL) {
                ${requantize_rows}(codes_of_y + PANEL, channels, sum + PANEL, CHANNELS, n, &to[1]);
            }
        }
    }
}
#endif

void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
#if defined(LANES)
    if (call->kernel_height * call->kernel_width <= TAPS && call->channels >= LANES) {
        ${f}_vectors(y, x, call);
        return;
    }
#endif
    ${depthwise_channels_last}(y, x, call);
}
