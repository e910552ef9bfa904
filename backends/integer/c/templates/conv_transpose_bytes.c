//: over X Y MODE
//: needs conv_transpose panels tile store_pixels requantize_lanes
//: header
typedef struct {
    ${conv_transpose}_t plain;
    int32_t panels; /* offset of the weights in the order of vectors */
} ${f}_t;

/* The same for 8-bit codes and weights, on vectors of pixels and channels if the machine has them. */
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
#if defined(LANES)
enum { ${f}_DEPTH = 1024 }; /* largest number of channels of x */

typedef struct {
    ${requantize_lanes}_t to;
    int32_t start[PANEL];
    int32_t is_ready;
} ${f}_head;

typedef char ${f}_fits[sizeof(${f}_head) <= HEAD ? 1 : -1];

/* Output pixels with the same phase of the stride use the same taps, so they form a convolution. Returns the first byte
   after its panels. */
static int8_t *${f}_place(
    ${Y} *y, const ${X} *x, const ${conv_transpose}_t *call, int8_t *weights, int32_t place_y, int32_t place_x)
{
    const int32_t depth = call->channels, quads = depth / 4, size = call->kernel[1] * call->kernel[2] * depth;
    const int32_t is_signed = (${X})-1 < 0;
    const lanes flip = splat(is_signed ? (int32_t)0x80808080u : 0);
    /* The first pixels of this phase, and the reach of their taps. */
    const int32_t first_y = (place_y - call->padding[1] % call->stride[1] + call->stride[1]) % call->stride[1];
    const int32_t first_x = (place_x - call->padding[2] % call->stride[2] + call->stride[2]) % call->stride[2];
    const uint8_t *codes[TAPS * ROWS];
    int32_t offset[TAPS], back_y[TAPS], back_x[TAPS], segments = 0;
    ${X} outside[${f}_DEPTH];
    lanes sums[2 * ROWS];
    for (int32_t ky = 0; ky < call->kernel[1]; ++ky) {
        for (int32_t kx = 0; kx < call->kernel[2]; ++kx) {
            const int32_t by = ky * call->dilation[1], bx = kx * call->dilation[2];
            if (by % call->stride[1] == place_y && bx % call->stride[2] == place_x) {
                offset[segments] = (ky * call->kernel[2] + kx) * depth;
                back_y[segments] = by;
                back_x[segments++] = bx;
            }
        }
    }
    memset(outside, call->zero_point, sizeof outside);

    for (int32_t o = 0; o < call->out_channels; o += PANEL, weights += HEAD + 4 * PANEL * quads * segments) {
        const int32_t count = call->out_channels - o < PANEL ? call->out_channels - o : PANEL;
        ${f}_head head;
        memcpy(&head, weights, sizeof head);
        if (!head.is_ready) {
            const int64_t largest = pack_panel(weights + HEAD, head.start, call->bias + o,
                call->zero_point + (is_signed ? 128 : 0), call->weight + o * size, count, size, offset, segments, depth);
            ${requantize_lanes}_prepare(&head.to, &call->to, o, count, 0, largest);
            head.is_ready = 1;
            memcpy(weights, &head, sizeof head);
        }
        const ${requantize_lanes}_t with = head.to; /* a local copy, which stays in registers */
        for (int32_t line = 0; line < call->batch * call->out_size[1]; ++line) {
            const int32_t image = line / call->out_size[1], oy = line % call->out_size[1];
            const ${X} *from = x + image * call->x_image;
            ${Y} *to_line = y + image * call->y_image + oy * call->y_step[1] + o;
            if (oy % call->stride[1] != first_y) {
                continue;
            }
            for (int32_t ox = first_x; ox < call->out_size[2]; ox += ROWS * call->stride[2]) {
                const int32_t left = (call->out_size[2] - 1 - ox) / call->stride[2] + 1, n = left < ROWS ? left : ROWS;
                for (int32_t i = 0; i < ROWS; ++i) {
                    for (int32_t segment = 0; segment < segments; ++segment) {
                        const int32_t reach_y = oy + call->padding[1] - back_y[segment];
                        const int32_t reach_x =
                            ox + (i < n ? i : 0) * call->stride[2] + call->padding[2] - back_x[segment];
                        const int32_t iy = reach_y / call->stride[1], ix = reach_x / call->stride[2];
                        const int32_t inside =
                            reach_y >= 0 && iy < call->size[1] && reach_x >= 0 && ix < call->size[2];
                        const ${X} *tap = inside ? from + iy * call->x_step[1] + ix * call->x_step[2] : outside;
                        codes[segment * ROWS + i] = (const uint8_t *)tap;
                    }
                }
                tile(sums, codes, segments, quads, weights + HEAD, head.start, flip, ROWS, count);
                for (int32_t i = 0; i < n; i += 2) {
                    ${Y} *to_y = to_line + (ox + i * call->stride[2]) * call->y_step[2];
                    const lanes made = ${requantize_lanes}(&with, sums + 2 * i);
                    store_pixels(to_y, i + 1 < n ? to_y + call->stride[2] * call->y_step[2] : 0, made, count);
                }
            }
        }
    }
    return weights;
}
#endif

void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
#if defined(LANES)
    const ${conv_transpose}_t *plain = &call->plain;
    const int32_t is_image = plain->size[0] == 1 && plain->out_size[0] == 1 && plain->kernel[0] == 1;
    const int32_t is_last = plain->x_channel == 1 && plain->y_channel == 1;
    if (is_image && is_last && plain->groups == 1 && plain->channels % 4 == 0 && plain->channels <= ${f}_DEPTH
        && plain->kernel[1] * plain->kernel[2] <= TAPS) {
        int8_t *weights = (int8_t *)panels + call->panels;
        for (int32_t place = 0; place < plain->stride[1] * plain->stride[2]; ++place) {
            weights = ${f}_place(y, x, plain, weights, place / plain->stride[2], place % plain->stride[2]);
        }
        return;
    }
#endif
    ${conv_transpose}(y, x, &call->plain);
}
