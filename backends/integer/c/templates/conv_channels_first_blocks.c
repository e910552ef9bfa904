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
    const ${W} *weight;           /* [groups][blocks of 16 output channels][kernel][channels / groups][16] */
    const ${ACC} *bias;           /* [out_channels] */
    ${requantize_channels}_t to;
} ${f}_t;

/* Convolution of x: [batch][channels][size] to y: [batch][out_channels][out_size]. */
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
    enum { BLOCK = 16 };
    const int32_t depth = call->size[0], height = call->size[1], width = call->size[2];
    const int32_t *out = call->out_size, *kernel = call->kernel;
    const int32_t taps = kernel[0] * kernel[1] * kernel[2];
    const int32_t per_group = call->channels / call->groups, rows = call->out_channels / call->groups;
    const int32_t blocks = (rows + BLOCK - 1) / BLOCK, plane = depth * height * width;
    const int32_t out_plane = out[0] * out[1] * out[2];
    const ${STEP} zero_point = (${STEP})call->zero_point;

    for (int32_t at = 0; at < call->groups * blocks; ++at) {
        const int32_t group = at / blocks, first = at % blocks * BLOCK;
        const int32_t count = rows - first < BLOCK ? rows - first : BLOCK;
        const ${W} *weight = call->weight + at * taps * per_group * BLOCK;
        for (int32_t pixel = 0; pixel < call->batch * out_plane; ++pixel) {
            const int32_t image = pixel / out_plane;
            const int32_t front = pixel / out[2] / out[1] % out[0] * call->stride[0] - call->padding[0];
            const int32_t top = pixel / out[2] % out[1] * call->stride[1] - call->padding[1];
            const int32_t left = pixel % out[2] * call->stride[2] - call->padding[2];
            const ${X} *from = x + (image * call->channels + group * per_group) * plane;
            ${Y} *to = y + (image * call->out_channels + group * rows + first) * out_plane + pixel % out_plane;
            ${ACC} sum[BLOCK] = {0};
            for (int32_t tap = 0; tap < taps; ++tap) {
                const int32_t iz = front + tap / kernel[2] / kernel[1] * call->dilation[0];
                const int32_t iy = top + tap / kernel[2] % kernel[1] * call->dilation[1];
                const int32_t ix = left + tap % kernel[2] * call->dilation[2];
                if (iz < 0 || iz >= depth || iy < 0 || iy >= height || ix < 0 || ix >= width) {
                    continue;
                }
                const ${X} *codes = from + (iz * height + iy) * width + ix;
                const ${W} *w = weight + tap * per_group * BLOCK;
                for (int32_t c = 0; c < per_group; ++c) {
                    const ${ACC} step = (${ACC})codes[c * plane] - zero_point;
                    for (int32_t i = 0; i < BLOCK; ++i) {
                        sum[i] += step * w[c * BLOCK + i];
                    }
                }
            }
            for (int32_t i = 0; i < count; ++i) {
                const int32_t o = group * rows + first + i;
                to[i * out_plane] = (${Y})${requantize_channels}(&call->to, o, sum[i] + call->bias[o]);
            }
        }
    }
}
