//: over X ACC ROUNDING
//: needs divide
//: header
typedef struct {
    int32_t batch, channels;
    int32_t out_height, out_width;
    int32_t line_taps, pixel_taps;                /* how many lines, and how many pixels of them, make one of y */
    const int32_t *line, *line_weight;            /* [out_height]: the first; [out_height][line_taps] */
    const int32_t *pixel, *pixel_weight;          /* [out_width]: the first; [out_width][pixel_taps] */
    const int32_t *line_divisor, *pixel_divisor;  /* [out_height], [out_width]: the divisor is their product */
    int32_t x_image, x_channel, x_line, x_pixel;  /* distances in memory of neighbours along each axis */
    int32_t y_image, y_channel, y_line, y_pixel;
    int32_t zero_point;                           /* of x and y */
    int32_t low, high;
} ${f}_t;

/* y = divide(sum of line_weight * pixel_weight * (x - zero_point)) + zero_point: an image of another size. */
void ${f}(
    ${X} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
void ${f}(
    ${X} *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
    for (int32_t at = 0; at < call->batch * call->out_height * call->out_width; ++at) {
        const int32_t ox = at % call->out_width, oy = at / call->out_width % call->out_height;
        const int32_t image = at / call->out_width / call->out_height;
        const ${ACC} divisor = (${ACC})call->line_divisor[oy] * call->pixel_divisor[ox];
        const int32_t *line_weight = call->line_weight + oy * call->line_taps;
        const int32_t *pixel_weight = call->pixel_weight + ox * call->pixel_taps;
        for (int32_t c = 0; c < call->channels; ++c) {
            const ${X} *from = x + image * call->x_image + c * call->x_channel
                + call->line[oy] * call->x_line + call->pixel[ox] * call->x_pixel;
            ${X} *to = y + image * call->y_image + oy * call->y_line + ox * call->y_pixel + c * call->y_channel;
            ${ACC} sum = 0, code;
            for (int32_t i = 0; i < call->line_taps; ++i) {
                ${ACC} along = 0;
                for (int32_t j = 0; j < call->pixel_taps; ++j) {
                    const ${ACC} step = from[i * call->x_line + j * call->x_pixel] - call->zero_point;
                    along += step * pixel_weight[j];
                }
                sum += along * line_weight[i];
            }
            code = ${divide}(sum, divisor) + call->zero_point;
            *to = (${X})(code < call->low ? call->low : code > call->high ? call->high : code);
        }
    }
}
