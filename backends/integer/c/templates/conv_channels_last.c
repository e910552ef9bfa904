//: over X Y W ACC MODE
//: needs dot4 requantize_channels
//: header
typedef struct {
    int32_t batch;
    int32_t height, width, channels;
    int32_t out_height, out_width, out_channels;
    int32_t kernel_height, kernel_width;
    int32_t stride_y, stride_x;
    int32_t dilation_y, dilation_x;
    int32_t top, left;    /* padding before the first pixel */
    int32_t groups;
    const ${W} *weight;   /* [out_channels][kernel_height][kernel_width][channels / groups] */
    const ${ACC} *bias;   /* [out_channels], minus the zero point of x times the sum of the weights */
    const ${X} *outside;  /* [channels / groups] zero points of x, read by taps outside of the image */
    ${requantize_channels}_t to;
} ${f}_t;

/* Convolution of x: [batch][height][width][channels] to y: [batch][out_height][out_width][out_channels]. */
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
    const int32_t height = call->height, width = call->width, channels = call->channels;
    const int32_t depth = channels / call->groups, rows = call->out_channels / call->groups;
    const int32_t size = call->kernel_height * call->kernel_width * depth;
    /* Taps that are contiguous in memory form one long sum. */
    const int32_t joined = call->groups == 1 && call->dilation_x == 1;

    for (int32_t first = 0; first < call->out_channels; first += rows) {
        const int32_t skipped = first / rows * depth;
        for (int32_t row = 0; row < rows; row += 4) {
            /* Four channels at a time share one read of x; missing channels are replaced by the last one. */
            const int32_t o = first + row, count = rows - row < 4 ? rows - row : 4;
            const ${W} *w[4];
            for (int32_t i = 0; i < 4; ++i) {
                w[i] = call->weight + (o + (i < count ? i : count - 1)) * size;
            }
            for (int32_t pixel = 0; pixel < call->batch * call->out_height * call->out_width; ++pixel) {
                const int32_t line = pixel / call->out_width, image = line / call->out_height;
                const int32_t top = line % call->out_height * call->stride_y - call->top;
                const int32_t left = pixel % call->out_width * call->stride_x - call->left;
                ${ACC} sum[4] = {0, 0, 0, 0};
                for (int32_t ky = 0; ky < call->kernel_height; ++ky) {
                    const int32_t iy = top + ky * call->dilation_y;
                    for (int32_t kx = 0, taps = 1; kx < call->kernel_width; kx += taps) {
                        const int32_t ix = left + kx * call->dilation_x;
                        const ${X} *codes = call->outside;
                        taps = 1;
                        if (iy >= 0 && iy < height && ix >= 0 && ix < width) {
                            codes = x + ((image * height + iy) * width + ix) * channels + skipped;
                            if (joined) {
                                taps = width - ix < call->kernel_width - kx ? width - ix : call->kernel_width - kx;
                            }
                        }
                        ${dot4}(sum, codes, w, (ky * call->kernel_width + kx) * depth, taps * depth);
                    }
                }
                for (int32_t i = 0; i < count; ++i) {
                    y[pixel * call->out_channels + o + i] =
                        (${Y})${requantize_channels}(&call->to, o + i, sum[i] + call->bias[o + i]);
                }
            }
        }
    }
}
