//: over X Y W ACC MODE
//: needs requantize_channels
//: header
typedef struct {
    int32_t batch;
    int32_t channels, out_channels;
    int32_t size[3], out_size[3];           /* depth, height, width */
    int32_t kernel[3], stride[3], dilation[3];
    int32_t padding[3];                     /* number of pixels removed before the first one */
    int32_t groups;
    int32_t zero_point;                     /* zero point of x */
    int32_t x_image, x_channel, x_step[3];  /* strides in memory */
    int32_t y_image, y_channel, y_step[3];
    const ${W} *weight;                     /* [out_channels][kernel][channels / groups] */
    const ${ACC} *bias;                     /* [out_channels] */
    ${requantize_channels}_t to;
} ${f}_t;

/* Transposed convolution: the input pixel i adds tap k to the output pixel stride * i - padding + dilation * k. */
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
/* The input pixel that adds tap `tap` to the output pixel `out` along an axis; -1 if there is none. */
static int32_t ${f}_source(const ${f}_t *call, int32_t axis, int32_t out, int32_t tap)
{
    const int32_t reach = out + call->padding[axis] - tap * call->dilation[axis];
    const int32_t at = reach / call->stride[axis];
    return reach >= 0 && reach % call->stride[axis] == 0 && at < call->size[axis] ? at : -1;
}

void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
    const int32_t depth = call->channels / call->groups, rows = call->out_channels / call->groups;
    const int32_t *kernel = call->kernel, *out = call->out_size;
    const ${STEP} zero_point = (${STEP})call->zero_point;

    for (int32_t pixel = 0; pixel < call->batch * out[0] * out[1] * out[2]; ++pixel) {
        const int32_t ox = pixel % out[2], oy = pixel / out[2] % out[1], oz = pixel / out[2] / out[1] % out[0];
        const int32_t image = pixel / out[2] / out[1] / out[0];
        ${Y} *to = y + image * call->y_image + oz * call->y_step[0] + oy * call->y_step[1] + ox * call->y_step[2];
        for (int32_t o = 0; o < call->out_channels; ++o) {
            const ${X} *from = x + image * call->x_image + o / rows * depth * call->x_channel;
            const ${W} *w = call->weight + o * kernel[0] * kernel[1] * kernel[2] * depth;
            ${ACC} sum = call->bias[o];
            for (int32_t tap = 0; tap < kernel[0] * kernel[1] * kernel[2]; ++tap, w += depth) {
                const int32_t iz = ${f}_source(call, 0, oz, tap / kernel[2] / kernel[1]);
                const int32_t iy = ${f}_source(call, 1, oy, tap / kernel[2] % kernel[1]);
                const int32_t ix = ${f}_source(call, 2, ox, tap % kernel[2]);
                if (iz < 0 || iy < 0 || ix < 0) {
                    continue;
                }
                const ${X} *codes = from + iz * call->x_step[0] + iy * call->x_step[1] + ix * call->x_step[2];
                for (int32_t c = 0; c < depth; ++c) {
                    const ${STEP} step = (${STEP})(codes[c * call->x_channel] - zero_point);
                    sum += (${ACC})step * w[c];
                }
            }
            to[o * call->y_channel] = (${Y})${requantize_channels}(&call->to, o, sum);
        }
    }
}
