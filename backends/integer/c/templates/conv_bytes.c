//: over X Y MODE
//: needs conv_channels_last pack_panel tile place_of_pixel store_pixels requantize_lanes
//: header
typedef ${conv_channels_last}_t ${f}_t;

/* The same for codes and weights of 8 bits: many pixels and channels at a time where the machine has vectors. */
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
#if defined(LANES)
/* codes[segment][ROWS]: where the codes of each pixel of a tile begin. A segment is a tap; where a tap ends within a quad,
   it is a line of taps, of which those that leave the image are copied to edge. */
static void ${f}_find(
    const uint8_t **codes, uint8_t *edge, const ${X} *x, const ${f}_t *call, int32_t skipped, place_of_pixel at,
    int32_t pixels, int32_t joined)
{
    const int32_t height = call->height, width = call->width, channels = call->channels;
    const int32_t depth = channels / call->groups, lines = call->kernel_height, columns = call->kernel_width;
    const int32_t next_line = call->dilation_y * width * channels, next_tap = call->dilation_x * channels;
    const int32_t below = (lines - 1) * call->dilation_y, beside = (columns - 1) * call->dilation_x;
    /* Codes behind the last tap that are read with it. */
    const int32_t behind = joined ? (columns * depth + 3) / 4 * 4 - columns * depth : 0;
    const int32_t size = call->batch * height * width * channels;
    const int32_t taps = joined ? 1 : columns;
    for (int32_t i = 0; i < ROWS; ++i) {
        const int32_t top = at.y * call->stride_y - call->top, left = at.x * call->stride_x - call->left;
        const int32_t last = ((at.image * height + top + below) * width + left + beside + 1) * channels;
        if (top >= 0 && top + below < height && left >= 0 && left + beside < width && last + behind <= size) {
            const ${X} *from = x + ((at.image * height + top) * width + left) * channels + skipped;
            for (int32_t ky = 0; ky < lines; ++ky, from += next_line) {
                for (int32_t kx = 0; kx < taps; ++kx) {
                    codes[(ky * taps + kx) * ROWS + i] = (const uint8_t *)(from + kx * next_tap);
                }
            }
        } else {
            for (int32_t ky = 0; ky < lines; ++ky) {
                const int32_t iy = top + ky * call->dilation_y, in_lines = iy >= 0 && iy < height;
                const ${X} *from = x + (in_lines ? (at.image * height + iy) * width * channels + skipped : 0);
                for (int32_t kx = 0; kx < columns; ++kx) {
                    const int32_t ix = left + kx * call->dilation_x;
                    const ${X} *tap = in_lines && ix >= 0 && ix < width ? from + ix * channels : call->outside;
                    if (joined) {
                        memcpy(edge + (ky * ROWS + i) * LINE + kx * depth, tap, (size_t)depth);
                    } else {
                        codes[(ky * taps + kx) * ROWS + i] = (const uint8_t *)tap;
                    }
                }
                if (joined) {
                    codes[ky * ROWS + i] = edge + (ky * ROWS + i) * LINE;
                }
            }
        }
        /* Where pixels are fewer the last one stands in. */
        if (i + 1 < pixels) {
            next_pixel(&at, call->out_width, call->out_height);
        }
    }
}

static void ${f}_vectors(${Y} *y, const ${X} *x, const ${f}_t *call, int32_t joined)
{
    const int32_t depth = call->channels / call->groups, rows = call->out_channels / call->groups;
    const int32_t segments = joined ? call->kernel_height : call->kernel_height * call->kernel_width;
    const int32_t length = joined ? call->kernel_width * depth : depth;
    const int32_t pixels = call->batch * call->out_height * call->out_width;
    const int32_t is_signed = (${X})-1 < 0;
    const lanes flip = splat(is_signed ? (int32_t)0x80808080u : 0);
    /* Whether each pixel is made of the one at the same place. */
    const int32_t is_flat = segments == 1 && !joined && call->stride_y == 1 && call->stride_x == 1 && !call->top
        && !call->left && call->out_height == call->height && call->out_width == call->width;
    const uint8_t *codes[TAPS * ROWS];
    uint8_t edge[TAPS * ROWS * LINE];
    int32_t start[PANEL], offset[TAPS];
    lanes sums[2 * ROWS];
    ${requantize_lanes}_t to;
    if (joined) {
        memset(edge, 0, sizeof edge);
    }
    for (int32_t i = 0; i < segments; ++i) {
        offset[i] = i * length;
    }

    for (int32_t o = 0; o < call->out_channels;) {
        const int32_t group = o / rows, end = (group + 1) * rows, count = end - o < PANEL ? end - o : PANEL;
        const int8_t *weight = call->weight + o * segments * length;
        place_of_pixel at = {0, 0, 0};
        const int64_t largest = pack_panel(
            start, call->bias + o, is_signed ? 128 : 0, weight, count, segments * length, offset, segments, length);
        ${requantize_lanes}_prepare(&to, &call->to, o, count, 0, largest);
        for (int32_t pixel = 0, n; pixel < pixels; pixel += n) {
            n = pixels_of_tile(pixels - pixel);
            if (is_flat) {
                for (int32_t i = 0; i < ROWS; ++i) {
                    codes[i] = (const uint8_t *)(x + (pixel + (i < n ? i : 0)) * call->channels + group * depth);
                }
            } else {
                ${f}_find(codes, edge, x, call, group * depth, at, n, joined);
                for (int32_t i = 0; i < n; ++i) {
                    next_pixel(&at, call->out_width, call->out_height);
                }
            }
            tile(sums, codes, segments, (length + 3) / 4, start, flip, n, count);
            const ${requantize_lanes}_t with = to; /* in registers: no pointer leads to it */
            for (int32_t i = 0; i < n; i += 2) {
                ${Y} *to_y = y + (pixel + i) * call->out_channels + o;
                const lanes made = ${requantize_lanes}(&with, sums + 2 * i);
                store_pixels(to_y, i + 1 < n ? to_y + call->out_channels : 0, made, count);
            }
        }
        o += count;
    }
}
#endif

void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
#if defined(LANES)
    const int32_t depth = call->channels / call->groups, line = call->kernel_width * depth;
    const int32_t joined = depth % 4 != 0, quads = joined ? (line + 3) / 4 : line / 4;
    const int32_t one_line = line <= LINE && call->groups == 1 && call->dilation_x == 1;
    const int32_t fits = call->kernel_height * call->kernel_width <= TAPS && (!joined || one_line);
    /* One pixel or two are done before their weights are in order. */
    const int32_t many = call->batch * call->out_height * call->out_width >= ROWS / 2;
    if (many && fits && 4 * PANEL * quads * call->kernel_height <= PANEL_BYTES) {
        ${f}_vectors(y, x, call, joined);
        return;
    }
#endif
    ${conv_channels_last}(y, x, call);
}
