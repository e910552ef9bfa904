//: over X Y MODE
//: needs conv_channels_last panels tile place_of_pixel store_pixels requantize_lanes
//: header
typedef struct {
    ${conv_channels_last}_t plain;
    int32_t panels; /* offset of the weights in the order of vectors */
} ${f}_t;

/* The same for 8-bit codes and weights, on vectors of pixels and channels if the machine has them. */
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
#if defined(LANES)
/* codes[segment][ROWS]: the first code of each pixel of a tile. A segment is a tap, or a line of taps that are contiguous in
   memory; lines that leave the image are copied to edge. */
static void ${f}_find(
    const uint8_t **codes, uint8_t *edge, const ${X} *x, const ${conv_channels_last}_t *call, int32_t skipped,
    place_of_pixel *at, int32_t pixels, int32_t joined)
{
    const int32_t height = call->height, width = call->width, channels = call->channels;
    const int32_t depth = channels / call->groups, lines = call->kernel_height, columns = call->kernel_width;
    const int32_t next_line = call->dilation_y * width * channels, next_tap = call->dilation_x * channels;
    const int32_t below = (lines - 1) * call->dilation_y, beside = (columns - 1) * call->dilation_x;
    /* Codes after the last tap that are read with the tap. */
    const int32_t behind = joined ? (columns * depth + 3) / 4 * 4 - columns * depth : 0;
    const int32_t size = call->batch * height * width * channels;
    const int32_t taps = joined ? 1 : columns;
    for (int32_t i = 0; i < pixels; ++i) {
        const int32_t top = at->y * call->stride_y - call->top, left = at->x * call->stride_x - call->left;
        const int32_t last = ((at->image * height + top + below) * width + left + beside + 1) * channels;
        if (top >= 0 && top + below < height && left >= 0 && left + beside < width && last + behind <= size) {
            const ${X} *from = x + ((at->image * height + top) * width + left) * channels + skipped;
            for (int32_t ky = 0; ky < lines; ++ky, from += next_line) {
                for (int32_t kx = 0; kx < taps; ++kx) {
                    codes[(ky * taps + kx) * ROWS + i] = (const uint8_t *)(from + kx * next_tap);
                }
            }
        } else {
            for (int32_t ky = 0; ky < lines; ++ky) {
                const int32_t iy = top + ky * call->dilation_y, in_lines = iy >= 0 && iy < height;
                const ${X} *from = x + (in_lines ? (at->image * height + iy) * width * channels + skipped : 0);
                for (int32_t kx = 0; !joined && kx < columns; ++kx) {
                    const int32_t ix = left + kx * call->dilation_x;
                    const ${X} *tap = in_lines && ix >= 0 && ix < width ? from + ix * channels : call->outside;
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
    /* Missing pixels of a tile are replaced by the first one. */
    for (int32_t i = pixels; i < ROWS; ++i) {
        for (int32_t segment = 0; segment < lines * taps; ++segment) {
            codes[segment * ROWS + i] = codes[segment * ROWS];
        }
    }
}

typedef struct {
    ${requantize_lanes}_t to;
    int32_t start[PANEL];
    int32_t is_ready;
} ${f}_head;

typedef char ${f}_fits[sizeof(${f}_head) <= HEAD ? 1 : -1];

static void ${f}_pack(
    int8_t *panel, const ${conv_channels_last}_t *call, int32_t segments, int32_t length, int32_t o, int32_t count)
{
    int32_t offset[TAPS];
    int64_t largest;
    ${f}_head head;
    for (int32_t i = 0; i < segments; ++i) {
        offset[i] = i * length;
    }
    largest = pack_panel(panel + HEAD, head.start, call->bias + o, (${X})-1 < 0 ? 128 : 0,
        call->weight + o * segments * length, count, segments * length, offset, segments, length);
    ${requantize_lanes}_prepare(&head.to, &call->to, o, count, 0, largest);
    head.is_ready = 1;
    memcpy(panel, &head, sizeof head);
}

static void ${f}_vectors(
    ${Y} *y, const ${X} *x, const ${conv_channels_last}_t *call, int8_t *panel_of_layer, int32_t joined)
{
    const int32_t depth = call->channels / call->groups, rows = call->out_channels / call->groups;
    const int32_t segments = joined ? call->kernel_height : call->kernel_height * call->kernel_width;
    const int32_t length = joined ? call->kernel_width * depth : depth, quads = (length + 3) / 4;
    const int32_t pixels = call->batch * call->out_height * call->out_width;
    const int32_t size = HEAD + 4 * PANEL * quads * segments; /* bytes of a panel */
    const lanes flip = splat((${X})-1 < 0 ? (int32_t)0x80808080u : 0);
    /* Whether each output pixel depends only on the input pixel at the same place. */
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
                        const ${X} *from = x + (first + pixel + (i < n ? i : 0)) * call->channels + skipped;
                        codes[tile_at][i] = (const uint8_t *)from;
                    }
                } else {
                    ${f}_find(codes[tile_at], edge[tile_at], x, call, skipped, &at, n, joined);
                }
            }
            for (int32_t o = begin; o < end; o += PANEL, panel += size) {
                const int32_t count = end - o < PANEL ? end - o : PANEL;
                ${f}_head head;
                memcpy(&head, panel, sizeof head);
                if (!head.is_ready) {
                    ${f}_pack(panel, call, segments, length, o, count);
                    memcpy(&head, panel, sizeof head);
                }
                for (int32_t pixel = 0, tile_at = 0; pixel < some; pixel += ROWS, ++tile_at) {
                    const int32_t n = some - pixel < ROWS ? some - pixel : ROWS;
                    const ${requantize_lanes}_t with = head.to; /* a local copy, which stays in registers */
                    ${Y} *to_y = y + (first + pixel) * call->out_channels + o;
                    lanes sums[2 * ROWS];
                    tile(sums, codes[tile_at], segments, quads, panel + HEAD, head.start, flip, n, count);
                    for (int32_t i = 0; i < n; i += 2, to_y += 2 * call->out_channels) {
                        const lanes made = ${requantize_lanes}(&with, sums + 2 * i);
                        store_pixels(to_y, i + 1 < n ? to_y + call->out_channels : 0, made, count);
                    }
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
    const ${conv_channels_last}_t *plain = &call->plain;
    const int32_t depth = plain->channels / plain->groups, line = plain->kernel_width * depth;
    const int32_t joined =
        line <= LINE && plain->kernel_height <= LINES && plain->groups == 1 && plain->dilation_x == 1;
    /* For one or two pixels, reordering the weights would take longer than the convolution. */
    const int32_t many = plain->batch * plain->out_height * plain->out_width >= ROWS / 2;
    if (many && plain->kernel_height * plain->kernel_width <= TAPS && (joined || depth % 4 == 0)) {
        ${f}_vectors(y, x, plain, (int8_t *)panels + call->panels, joined);
        return;
    }
#endif
    ${conv_channels_last}(y, x, &call->plain);
}
