//: over X Y MODE
//: needs depthwise_channels_last products interleave requantize_lanes
//: header
typedef ${depthwise_channels_last}_t ${f}_t;

/* The same for 8-bit codes and weights, on vectors of channels if the machine has them. */
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
#if defined(LANES)
/* Weights of some channels in the order of interleave, four lines of a column at a time, and the initial sums. Returns an
   upper bound of the sums. */
static int64_t ${f}_prepare(bytes_of_lanes *weight, lanes *first, const ${f}_t *call, int32_t from, int32_t some)
{
    const int32_t lines = call->kernel_height, columns = call->kernel_width, channels = call->channels;
    const int32_t zero_point = call->zero_point + ((${X})-1 < 0 ? 128 : 0); /* for codes from 0 to 255 */
    int32_t start[4 * LANES] = {0};
    int64_t largest = 0;
    for (int32_t i = 0; i < some; ++i) {
        int32_t weights = 0, magnitude = 0;
        int64_t reach;
        for (int32_t tap = 0; tap < lines * columns; ++tap) {
            const int32_t w = call->weight[tap * channels + from + i];
            weights += w;
            magnitude += w < 0 ? -w : w;
        }
        start[i] = call->bias[from + i] - zero_point * weights;
        reach = (start[i] < 0 ? -(int64_t)start[i] : start[i]) + (int64_t)255 * magnitude;
        largest = reach > largest ? reach : largest;
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
    return largest;
}

/* The codes of one column of a window, in the order of the weights, with the zero point outside of the image. */
static inline ALWAYS_INLINE void ${f}_column(
    bytes_of_lanes *column, const ${X} *const *line, const int32_t lines, int32_t offset, int32_t is_inside, int32_t some,
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

/* The lines of x for the lines of a kernel; null outside of the image. */
static inline void ${f}_lines(const ${X} **line, const ${X} *x, const ${f}_t *call, int32_t oy)
{
    const int32_t image = oy / call->out_height, top = oy % call->out_height * call->stride_y - call->top;
    for (int32_t ky = 0; ky < call->kernel_height; ++ky) {
        const int32_t iy = top + ky * call->dilation_y, inside = iy >= 0 && iy < call->height;
        line[ky] = inside ? x + (image * call->height + iy) * call->width * call->channels : 0;
    }
}

/* A kernel of any size. The window keeps the columns that the next pixel needs. */
static void ${f}_any(
    ${Y} *y, const ${X} *x, const ${f}_t *call, const bytes_of_lanes *weight, const lanes *first,
    const ${requantize_lanes}_t *to, int32_t some, lanes outside, lanes flip)
{
    const int32_t channels = call->channels, width = call->width, columns = call->kernel_width;
    const int32_t lines = call->kernel_height, parts = (lines + 3) / 4 * 4;
    const int32_t span = (columns - 1) * call->dilation_x + 1;
    bytes_of_lanes window[4 * COLUMNS];
    for (int32_t oy = 0; oy < call->batch * call->out_height; ++oy) {
        const ${X} *line[4 * COLUMNS];
        /* Columns form a ring: column left is at place begin, and the first missing column, ix, goes to place end. */
        int32_t ix = -call->left, end = 0, begin = 0;
        ${f}_lines(line, x, call, oy);
        for (int32_t ox = 0, left = ix; ox < call->out_width; ++ox, left += call->stride_x, y += channels) {
            lanes sums[4] = {first[0], first[1], first[2], first[3]};
            if (ix < left) {
                ix = left;
                end = begin = 0;
            }
            for (; ix < left + span; ++ix, end = end + 1 == span ? 0 : end + 1) {
                const int32_t is_inside = ix >= 0 && ix < width;
                ${f}_column(window + end * parts, line, lines, ix * channels, is_inside, some, outside, flip);
            }
            for (int32_t kx = 0, slot = begin; kx < columns; ++kx) {
                for (int32_t part = 0; part < parts; ++part) {
                    sums[part % 4] =
                        add_products(sums[part % 4], window[slot * parts + part], weight[kx * parts + part]);
                }
                slot += call->dilation_x;
                slot = slot >= span ? slot - span : slot;
            }
            store_bytes(y, ${requantize_lanes}(to, sums), some);
            begin += call->stride_x;
            begin = begin >= span ? begin - span : begin;
        }
    }
}

/* A 3x3 kernel, whose columns stay in registers. */
static inline ALWAYS_INLINE void ${f}_three(
    ${Y} *y, const ${X} *x, const ${f}_t *call, const bytes_of_lanes *weight, const lanes *first,
    const ${requantize_lanes}_t *to, const int32_t some, lanes outside, lanes flip)
{
    const int32_t channels = call->channels, width = call->width, stride = call->stride_x;
    const ${requantize_lanes}_t with = *to; /* a local copy, which stays in registers */
    const lanes begin[4] = {first[0], first[1], first[2], first[3]};
    for (int32_t oy = 0; oy < call->batch * call->out_height; ++oy) {
        const ${X} *line[3];
        bytes_of_lanes a[4], b[4], c[4];
        int32_t ix = 2 - call->left;
        ${f}_lines(line, x, call, oy);
        ${f}_column(a, line, 3, (ix - 2) * channels, ix - 2 >= 0 && ix - 2 < width, some, outside, flip);
        ${f}_column(b, line, 3, (ix - 1) * channels, ix - 1 >= 0 && ix - 1 < width, some, outside, flip);
        for (int32_t ox = 0; ox < call->out_width; ++ox, ix += stride, y += channels) {
            lanes sums[4];
            ${f}_column(c, line, 3, ix * channels, ix >= 0 && ix < width, some, outside, flip);
            for (int32_t i = 0; i < 4; ++i) {
                sums[i] = add_products(begin[i], a[i], weight[i]);
                sums[i] = add_products(sums[i], b[i], weight[4 + i]);
                sums[i] = add_products(sums[i], c[i], weight[8 + i]);
            }
            store_bytes(y, ${requantize_lanes}(&with, sums), some);
            for (int32_t i = 0; i < 4; ++i) {
                a[i] = stride == 1 ? b[i] : c[i];
                b[i] = c[i];
            }
            if (stride > 1) {
                const int32_t next = ix + stride - 1;
                ${f}_column(b, line, 3, next * channels, next >= 0 && next < width, some, outside, flip);
            }
            if (stride > 2) {
                const int32_t next = ix + stride - 2;
                ${f}_column(a, line, 3, next * channels, next >= 0 && next < width, some, outside, flip);
            }
        }
    }
}

static void ${f}_vectors(${Y} *y, const ${X} *x, const ${f}_t *call)
{
    const int32_t channels = call->channels;
    const int32_t is_three = call->kernel_height == 3 && call->kernel_width == 3 && call->dilation_x == 1;
    const lanes flip = splat((${X})-1 < 0 ? (int32_t)0x80808080u : 0);
    const lanes outside = V(set1_epi8)((int8_t)call->zero_point);
    for (int32_t done = 0; done < channels; done += 4 * LANES) {
        /* The last channels are computed together with some of the preceding ones. */
        const int32_t left = channels - done, some = channels < 4 * LANES ? channels : 4 * LANES;
        const int32_t c = left < some ? channels - some : done;
        bytes_of_lanes weight[4 * COLUMNS];
        lanes first[4];
        ${requantize_lanes}_t to;
        const int64_t largest = ${f}_prepare(weight, first, call, c, some);
        ${requantize_lanes}_prepare(&to, &call->to, c, some, 1, largest);
        if (!is_three) {
            ${f}_any(y + c, x + c, call, weight, first, &to, some, outside, flip);
        } else if (some == 4 * LANES) {
            ${f}_three(y + c, x + c, call, weight, first, &to, 4 * LANES, outside, flip);
        } else {
            ${f}_three(y + c, x + c, call, weight, first, &to, some, outside, flip);
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
