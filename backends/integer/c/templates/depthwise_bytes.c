//: over X Y MODE
//: needs depthwise_channels_last products interleave requantize_rows
//: header
typedef ${depthwise_channels_last}_t ${f}_t;

/* The same for codes and weights of 8 bits: many channels at a time where the machine has vectors. */
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
#if defined(LANES)
/* Where the taps of a pixel begin; those outside of the image read the zero point. */
static void ${f}_find(const ${X} **taps, const ${X} *x, const ${X} *outside, const ${f}_t *call, int32_t pixel)
{
    const int32_t line = pixel / call->out_width, image = line / call->out_height;
    const int32_t top = line % call->out_height * call->stride_y - call->top;
    const int32_t left = pixel % call->out_width * call->stride_x - call->left;
    const ${X} *from = x + image * call->height * call->width * call->channels;
    for (int32_t ky = 0; ky < call->kernel_height; ++ky) {
        const int32_t iy = top + ky * call->dilation_y, in_lines = iy >= 0 && iy < call->height;
        for (int32_t kx = 0; kx < call->kernel_width; ++kx) {
            const int32_t ix = left + kx * call->dilation_x, inside = in_lines && ix >= 0 && ix < call->width;
            *taps++ = inside ? from + (iy * call->width + ix) * call->channels : outside;
        }
    }
}

static void ${f}_vectors(${Y} *y, const ${X} *x, const ${f}_t *call)
{
    enum { CHANNELS = 4 * LANES };
    const int32_t channels = call->channels, count = call->kernel_height * call->kernel_width, quads = (count + 3) / 4;
    const int32_t pixels = call->batch * call->out_height * call->out_width;
    const int32_t is_signed = (${X})-1 < 0;
    const lanes flip = splat(is_signed ? (int32_t)0x80808080u : 0);
    bytes_of_lanes weight[TAPS];
    int32_t sum[ROWS * CHANNELS], start[CHANNELS];
    ${X} outside[CHANNELS];
    for (int32_t i = 0; i < CHANNELS; ++i) {
        outside[i] = (${X})call->zero_point;
    }

    for (int32_t c = 0; c < channels; c += CHANNELS) {
        const int32_t some = channels - c < CHANNELS ? channels - c : CHANNELS;
        lanes first[4];
        for (int32_t i = 0; i < CHANNELS; ++i) {
            int32_t weights = 0;
            for (int32_t tap = 0; i < some && tap < count; ++tap) {
                weights += call->weight[tap * channels + c + i];
            }
            start[i] = i < some ? call->bias[c + i] - (call->zero_point + (is_signed ? 128 : 0)) * weights : 0;
        }
        for (int32_t quad = 0; quad < quads; ++quad) {
            lanes w[4], turned[4];
            for (int32_t i = 0; i < 4; ++i) {
                const int32_t tap = 4 * quad + i;
                w[i] = tap < count ? load_bytes(call->weight + tap * channels + c, some) : splat(0);
            }
            interleave(turned, w[0], w[1], w[2], w[3]);
            for (int32_t i = 0; i < 4; ++i) {
                weight[4 * quad + i] = load_weights((const int8_t *)&turned[i]);
            }
        }
        for (int32_t i = 0; i < 4; ++i) {
            int32_t turned[LANES];
            for (int32_t lane = 0; lane < LANES; ++lane) {
                turned[lane] = start[lane / 4 * 16 + 4 * i + lane % 4];
            }
            first[i] = load_lanes(turned);
        }
        for (int32_t pixel = 0; pixel < pixels; pixel += ROWS) {
            const int32_t n = pixels - pixel < ROWS ? pixels - pixel : ROWS;
            for (int32_t row = 0; row < n; ++row) {
                const ${X} *taps[TAPS];
                lanes sums[4] = {first[0], first[1], first[2], first[3]};
                ${f}_find(taps, x, outside, call, pixel + row);
                for (int32_t tap = count; tap < 4 * quads; ++tap) {
                    taps[tap] = outside;
                }
                for (int32_t quad = 0; quad < quads; ++quad) {
                    lanes codes[4], turned[4];
                    for (int32_t i = 0; i < 4; ++i) {
                        const ${X} *from = taps[4 * quad + i];
                        codes[i] = load_bytes(from == outside ? from : from + c, some);
                    }
                    interleave(turned, codes[0], codes[1], codes[2], codes[3]);
                    for (int32_t i = 0; i < 4; ++i) {
                        sums[i] = add_products(sums[i], flip_codes(turned[i], flip), weight[4 * quad + i]);
                    }
                }
                store_in_order(sum + row * CHANNELS, sums);
            }
            ${requantize_rows}(y + pixel * channels + c, channels, sum, CHANNELS, n, &call->to, c, some);
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
