//: over X Y MODE
//: needs depthwise_channels_last products interleave requantize_rows
//: header
typedef ${depthwise_channels_last}_t ${f}_t;

/* The same for codes and weights of 8 bits: many channels at a time where the machine has vectors. */
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
#if defined(LANES)
/* Weights of some channels in the order of interleave, four lines of a column at a time, and what sums begin with. */
static void ${f}_prepare(bytes_of_lanes *weight, lanes *first, const ${f}_t *call, int32_t from, int32_t some)
{
    const int32_t lines = call->kernel_height, columns = call->kernel_width, channels = call->channels;
    const int32_t zero_point = call->zero_point + ((${X})-1 < 0 ? 128 : 0); /* of codes from 0 to 255 */
    int32_t start[4 * LANES] = {0};
    for (int32_t i = 0; i < some; ++i) {
        int32_t weights = 0;
        for (int32_t tap = 0; tap < lines * columns; ++tap) {
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
    for (int32_t kx = 0; kx < columns; ++kx) {
        for (int32_t line = 0; line < lines; line += 4, weight += 4) {
            lanes w[4], turned[4];
            for (int32_t i = 0; i < 4; ++i) {
                const int8_t *at = call->weight + ((line + i) * columns + kx) * channels + from;
                w[i] = line + i < lines ? load_bytes(at, some) : splat(0);
            }
            interleave(turned, w);
            for (int32_t i = 0; i < 4; ++i) {
                weight[i] = load_weights((const int8_t *)&turned[i]);
            }
        }
    }
}

/* The codes of one column of x below a window, in the order of the weights; outside of the image the zero point. */
static inline void ${f}_column(
    bytes_of_lanes *column, const ${X} *const *line, int32_t lines, int32_t offset, int32_t is_inside, int32_t some,
    lanes outside, lanes flip)
{
    for (int32_t ky = 0; ky < lines; ky += 4, column += 4) {
        lanes codes[4], turned[4];
        for (int32_t i = 0; i < 4; ++i) {
            codes[i] = ky + i < lines && is_inside && line[ky + i] ? load_bytes(line[ky + i] + offset, some) : outside;
        }
        interleave(turned, codes);
        for (int32_t i = 0; i < 4; ++i) {
            column[i] = flip_codes(turned[i], flip);
        }
    }
}

static void ${f}_vectors(${Y} *y, const ${X} *x, const ${f}_t *call)
{
    enum { CHANNELS = 4 * LANES };
    const int32_t channels = call->channels, lines = call->kernel_height, width = call->width;
    const int32_t span = (call->kernel_width - 1) * call->dilation_x + 1, parts = (lines + 3) / 4 * 4;
    const int32_t is_signed = (${X})-1 < 0;
    const lanes flip = splat(is_signed ? (int32_t)0x80808080u : 0), outside = V(set1_epi8)((int8_t)call->zero_point);
    bytes_of_lanes weight[4 * COLUMNS], window[4 * COLUMNS];
    int32_t sum[ROWS * CHANNELS];

    for (int32_t c = 0; c < channels; c += CHANNELS) {
        const int32_t some = channels - c < CHANNELS ? channels - c : CHANNELS;
        ${requantize_rows}_t to[2];
        lanes first[4];
        ${f}_prepare(weight, first, call, c, some);
        ${requantize_rows}_prepare(&to[0], &call->to, c, some < PANEL ? some : PANEL);
        if (some > PANEL) {
            ${requantize_rows}_prepare(&to[1], &call->to, c + PANEL, some - PANEL);
        }
        for (int32_t oy = 0; oy < call->batch * call->out_height; ++oy) {
            const int32_t image = oy / call->out_height, top = oy % call->out_height * call->stride_y - call->top;
            const ${X} *line[4 * COLUMNS];
            for (int32_t ky = 0; ky < lines; ++ky) {
                const int32_t iy = top + ky * call->dilation_y, inside = iy >= 0 && iy < call->height;
                line[ky] = inside ? x + (image * call->height + iy) * width * channels + c : 0;
            }
            /* The window keeps the columns that the next pixel reads again; ix is the first one that is not there. */
            for (int32_t ox = 0, ix = -call->left; ox < call->out_width;) {
                const int32_t n = call->out_width - ox < ROWS ? call->out_width - ox : ROWS;
                ${Y} *to_y = y + (oy * call->out_width + ox) * channels + c;
                for (int32_t row = 0; row < n; ++row, ++ox) {
                    const int32_t left = ox * call->stride_x - call->left;
                    lanes sums[4] = {first[0], first[1], first[2], first[3]};
                    for (ix = ix < left ? left : ix; ix < left + span; ++ix) {
                        ${f}_column(window + (ix + call->left) % span * parts, line, lines, ix * channels,
                            ix >= 0 && ix < width, some, outside, flip);
                    }
                    for (int32_t kx = 0; kx < call->kernel_width; ++kx) {
                        const int32_t slot = (left + kx * call->dilation_x + call->left) % span;
                        for (int32_t part = 0; part < parts; part += 4) {
                            for (int32_t i = 0; i < 4; ++i) {
                                sums[i] = add_products(
                                    sums[i], window[slot * parts + part + i], weight[kx * parts + part + i]);
                            }
                        }
                    }
                    store_in_order(sum + row * CHANNELS, sums);
                }
                ${requantize_rows}(to_y, channels, sum, CHANNELS, n, &to[0]);
                if (some > PANEL) {
                    ${requantize_rows}(to_y + PANEL, channels, sum + PANEL, CHANNELS, n, &to[1]);
                }
            }
        }
    }
}
#endif

void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
#if defined(LANES)
    const int32_t columns = (call->kernel_width - 1) * call->dilation_x + 1;
    if (columns * ((call->kernel_height + 3) / 4) <= COLUMNS && call->channels >= LANES) {
        ${f}_vectors(y, x, call);
        return;
    }
#endif
    ${depthwise_channels_last}(y, x, call);
}
