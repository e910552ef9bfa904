//: over X Y W ACC MODE
//: needs requantize_channels
//: header
typedef struct {
    int32_t batch;
    int32_t height, width, channels;
    int32_t out_height, out_width;
    int32_t kernel_height, kernel_width;
    int32_t stride_y, stride_x;
    int32_t dilation_y, dilation_x;
    int32_t top, left;  /* padding before the first pixel */
    int32_t zero_point; /* zero point of x */
    const ${W} *weight; /* [kernel_height][kernel_width][channels] */
    const ${ACC} *bias; /* [channels] */
    ${requantize_channels}_t to;
} ${f}_t;

/* Convolution of each channel with its own kernel, x: [batch][height][width][channels]. */
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
    enum { BLOCK = 32 };
    const int32_t height = call->height, width = call->width, channels = call->channels;
    const ${STEP} zero_point = (${STEP})call->zero_point;

    for (int32_t pixel = 0; pixel < call->batch * call->out_height * call->out_width; ++pixel) {
        const int32_t line = pixel / call->out_width, image = line / call->out_height;
        const int32_t top = line % call->out_height * call->stride_y - call->top;
        const int32_t left = pixel % call->out_width * call->stride_x - call->left;
        for (int32_t c = 0; c < channels; c += BLOCK) {
            const int32_t count = channels - c < BLOCK ? channels - c : BLOCK;
            ${ACC} sum[BLOCK];
            for (int32_t i = 0; i < count; ++i) {
                sum[i] = call->bias[c + i];
            }
            for (int32_t ky = 0; ky < call->kernel_height; ++ky) {
                const int32_t iy = top + ky * call->dilation_y;
                if (iy < 0 || iy >= height) {
                    continue;
                }
                for (int32_t kx = 0; kx < call->kernel_width; ++kx) {
                    const int32_t ix = left + kx * call->dilation_x;
                    if (ix < 0 || ix >= width) {
                        continue;
                    }
                    const ${W} *w = call->weight + (ky * call->kernel_width + kx) * channels + c;
                    const ${X} *codes = x + ((image * height + iy) * width + ix) * channels + c;
                    for (int32_t i = 0; i < count; ++i) {
                        const ${STEP} step = (${STEP})(codes[i] - zero_point);
                        sum[i] += (${ACC})step * w[i];
                    }
                }
            }
            for (int32_t i = 0; i < count; ++i) {
                y[pixel * channels + c + i] = (${Y})${requantize_channels}(&call->to, c + i, sum[i]);
            }
        }
    }
}
