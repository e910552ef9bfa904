//: over X Y W ACC MODE
//: needs requantize_channels
//: header
typedef struct {
    int32_t batch;
    int32_t channels, out_channels;
    int32_t size[3], out_size[3]; /* depth, height, width */
    int32_t kernel[3], stride[3], dilation[3];
    int32_t padding[3];           /* padding before the first element */
    int32_t groups;
    int32_t zero_point;           /* zero point of x */
    const ${W} *weight;           /* [out_channels][channels / groups][kernel] */
    const ${ACC} *bias;           /* [out_channels] */
    ${requantize_channels}_t to;
} ${f}_t;

/* Convolution of x: [batch][channels][size] to y: [batch][out_channels][out_size]. */
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
/* Add one tap to the sums of a row of pixels for which the tap is inside of the image. */
static void ${f}_tap(
    ${ACC} *restrict sum, const ${X} *restrict row, int32_t count, int32_t first, int32_t stride, int32_t width,
    ${STEP} zero_point, ${W} weight)
{
    const int32_t begin = first >= 0 ? 0 : (stride - 1 - first) / stride;
    const int32_t inside = first >= width ? 0 : (width - first + stride - 1) / stride;
    const int32_t end = inside < count ? inside : count;
    for (int32_t i = begin; i < end; ++i) {
        const ${STEP} step = (${STEP})(row[first + i * stride] - zero_point);
        sum[i] += (${ACC})step * weight;
    }
}

void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
    enum { BLOCK = 64 };
    const int32_t depth = call->size[0], height = call->size[1], width = call->size[2];
    const int32_t out_height = call->out_size[1], out_width = call->out_size[2];
    const int32_t per_group = call->channels / call->groups, rows = call->out_channels / call->groups;
    const int32_t taps = call->kernel[0] * call->kernel[1] * call->kernel[2];

    for (int32_t plane = 0; plane < call->batch * call->out_channels; ++plane) {
        const int32_t o = plane % call->out_channels, image = plane / call->out_channels;
        for (int32_t line = 0; line < call->out_size[0] * out_height; ++line) {
            const int32_t front = line / out_height * call->stride[0] - call->padding[0];
            const int32_t top = line % out_height * call->stride[1] - call->padding[1];
            ${Y} *out = y + (plane * call->out_size[0] * out_height + line) * out_width;
            for (int32_t begin = 0; begin < out_width; begin += BLOCK) {
                const int32_t count = out_width - begin < BLOCK ? out_width - begin : BLOCK;
                const int32_t left = begin * call->stride[2] - call->padding[2];
                ${ACC} sum[BLOCK];
                for (int32_t i = 0; i < count; ++i) {
                    sum[i] = call->bias[o];
                }
                for (int32_t c = 0; c < per_group; ++c) {
                    const ${X} *channel =
                        x + (image * call->channels + o / rows * per_group + c) * depth * height * width;
                    const ${W} *w = call->weight + (o * per_group + c) * taps;
                    for (int32_t tap = 0; tap < taps; ++tap) {
                        const int32_t kx = tap % call->kernel[2], ky = tap / call->kernel[2] % call->kernel[1];
                        const int32_t kz = tap / call->kernel[2] / call->kernel[1];
                        const int32_t iz = front + kz * call->dilation[0], iy = top + ky * call->dilation[1];
                        if (iz >= 0 && iz < depth && iy >= 0 && iy < height) {
                            ${f}_tap(sum, channel + (iz * height + iy) * width, count, left + kx * call->dilation[2],
                                call->stride[2], width, (${STEP})call->zero_point, w[tap]);
                        }
                    }
                }
                for (int32_t i = 0; i < count; ++i) {
                    out[begin + i] = (${Y})${requantize_channels}(&call->to, o, sum[i]);
                }
            }
        }
    }
}
