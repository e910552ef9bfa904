//: over X ACC ROUNDING
//: needs divide
//: header
typedef struct {
    int32_t batch, channels;
    int32_t height, width, out_height, out_width;
    int32_t kernel_height, kernel_width;
    int32_t stride_y, stride_x;
    int32_t top, left;                             /* padding before and after */
    int32_t counts_padding;                        /* 1 if padding counts as elements of a window */
    int32_t divisor;                               /* divisor that replaces the number of elements, or 0 */
    int32_t x_image, x_channel, x_line, x_pixel;   /* strides in memory */
    int32_t y_image, y_channel, y_line, y_pixel;
    int32_t zero_point;                            /* zero point of x and y */
    int32_t low, high;
} ${f}_t;

/* y = divide(sum of x - zero_point over a window) + zero_point${about}. */
void ${f}(
    ${X} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
void ${f}(
    ${X} *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
    for (int32_t pixel = 0; pixel < call->batch * call->out_height * call->out_width; ++pixel) {
        const int32_t ox = pixel % call->out_width, oy = pixel / call->out_width % call->out_height;
        const int32_t image = pixel / call->out_width / call->out_height;
        /* The window, clipped to the padded image, and its part inside of the image. */
        const int32_t top = oy * call->stride_y - call->top, left = ox * call->stride_x - call->left;
        const int32_t full_bottom = top + call->kernel_height, last_line = call->height + call->top;
        const int32_t full_right = left + call->kernel_width, last_column = call->width + call->left;
        const int32_t bottom = full_bottom < last_line ? full_bottom : last_line;
        const int32_t right = full_right < last_column ? full_right : last_column;
        const int32_t y0 = top > 0 ? top : 0, y1 = bottom < call->height ? bottom : call->height;
        const int32_t x0 = left > 0 ? left : 0, x1 = right < call->width ? right : call->width;
        const int32_t inside = (y1 - y0) * (x1 - x0), all = (bottom - top) * (right - left);
        const int32_t divisor = call->divisor ? call->divisor : call->counts_padding ? all : inside;
        for (int32_t c = 0; c < call->channels; ++c) {
            const ${X} *from = x + image * call->x_image + c * call->x_channel;
            ${X} *to = y + image * call->y_image + oy * call->y_line + ox * call->y_pixel + c * call->y_channel;
            ${ACC} sum = 0, code;
            for (int32_t iy = y0; iy < y1; ++iy) {
                for (int32_t ix = x0; ix < x1; ++ix) {
                    sum += from[iy * call->x_line + ix * call->x_pixel] - call->zero_point;
                }
            }
            code = ${divide}(sum${raw_sum}, divisor)${then};
            *to = (${X})(code < call->low ? call->low : code > call->high ? call->high : code);
        }
    }
}
