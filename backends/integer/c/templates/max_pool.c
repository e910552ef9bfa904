//: over X
//: header
typedef struct {
    int32_t batch, channels;
    int32_t height, width, out_height, out_width;
    int32_t kernel_height, kernel_width;
    int32_t stride_y, stride_x;
    int32_t dilation_y, dilation_x;
    int32_t top, left;                            /* padding before the first pixel, which is never the maximum */
    int32_t x_image, x_channel, x_line, x_pixel;  /* strides in memory */
    int32_t y_image, y_channel, y_line, y_pixel;
    int32_t lowest;                               /* initial code of the maximum */
} ${f}_t;

/* y = the maximum of x in a window. */
void ${f}(
    ${X} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
void ${f}(
    ${X} *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
    const ${X} lowest = (${X})call->lowest;
    for (int32_t pixel = 0; pixel < call->batch * call->out_height * call->out_width; ++pixel) {
        const int32_t ox = pixel % call->out_width, oy = pixel / call->out_width % call->out_height;
        const int32_t image = pixel / call->out_width / call->out_height;
        ${X} *to = y + image * call->y_image + oy * call->y_line + ox * call->y_pixel;
        for (int32_t c = 0; c < call->channels; ++c) {
            to[c * call->y_channel] = lowest;
        }
        for (int32_t ky = 0; ky < call->kernel_height; ++ky) {
            const int32_t iy = oy * call->stride_y - call->top + ky * call->dilation_y;
            for (int32_t kx = 0; kx < call->kernel_width; ++kx) {
                const int32_t ix = ox * call->stride_x - call->left + kx * call->dilation_x;
                if (iy < 0 || iy >= call->height || ix < 0 || ix >= call->width) {
                    continue;
                }
                const ${X} *from = x + image * call->x_image + iy * call->x_line + ix * call->x_pixel;
                for (int32_t c = 0; c < call->channels; ++c) {
                    const ${X} code = from[c * call->x_channel], best = to[c * call->y_channel];
                    to[c * call->y_channel] = code > best ? code : best;
                }
            }
        }
    }
}
