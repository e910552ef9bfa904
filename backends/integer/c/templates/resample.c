//: over X ACC ROUNDING
//: needs divide shift
//: header
typedef struct {
    int32_t batch, channels;
    int32_t out_height, out_width;
    int32_t line_taps, pixel_taps;                /* numbers of lines and of pixels of x per pixel of y */
    const int32_t *line, *line_weight;            /* [out_height] first line; [out_height][line_taps] weights */
    const int32_t *pixel, *pixel_weight;          /* [out_width] first pixel; [out_width][pixel_taps] weights */
    const int32_t *line_divisor, *pixel_divisor;  /* [out_height], [out_width]; the divisor is their product */
    int32_t x_image, x_channel, x_line, x_pixel;  /* strides in memory */
    int32_t y_image, y_channel, y_line, y_pixel;
    int32_t zero_point;                           /* zero point of x and y */
    int32_t low, high;
} ${f}_t;

/* y = divide(sum of line_weight * pixel_weight * (x - zero_point)) + zero_point: resizes an image. */
void ${f}(
    ${X} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
void ${f}(
    ${X} *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
    enum { PART = 64 };
    const int32_t next = call->x_channel;
    for (int32_t at = 0; at < call->batch * call->out_height * call->out_width; ++at) {
        const int32_t ox = at % call->out_width, oy = at / call->out_width % call->out_height;
        const int32_t image = at / call->out_width / call->out_height;
        const ${ACC} divisor = (${ACC})call->line_divisor[oy] * call->pixel_divisor[ox];
        const int32_t *line_weight = call->line_weight + oy * call->line_taps;
        const int32_t *pixel_weight = call->pixel_weight + ox * call->pixel_taps;
        const ${X} *from = x + image * call->x_image + call->line[oy] * call->x_line + call->pixel[ox] * call->x_pixel;
        ${X} *to = y + image * call->y_image + oy * call->y_line + ox * call->y_pixel;
        int32_t power = 0;
        while (((${ACC})1 << power) < divisor && power < 30) {
            ++power;
        }
        for (int32_t c = 0; c < call->channels; c += PART) {
            const int32_t n = call->channels - c < PART ? call->channels - c : PART;
            ${ACC} sum[PART] = {0};
            for (int32_t i = 0; i < call->line_taps; ++i) {
                for (int32_t j = 0; j < call->pixel_taps; ++j) {
                    const ${X} *codes = from + i * call->x_line + j * call->x_pixel + c * next;
                    const ${ACC} weight = (${ACC})line_weight[i] * pixel_weight[j];
                    for (int32_t k = 0; k < n; ++k) {
                        sum[k] += (codes[k * next] - call->zero_point) * weight;
                    }
                }
            }
            /* A shift takes a tenth of the time of a division. */
            if (((${ACC})1 << power) == divisor) {
                for (int32_t k = 0; k < n; ++k) {
                    sum[k] = (${ACC})${shift}(sum[k]${raw_sum}, -power);
                }
            } else {
                for (int32_t k = 0; k < n; ++k) {
                    sum[k] = ${divide}(sum[k]${raw_sum}, divisor);
                }
            }
            for (int32_t k = 0; k < n; ++k) {
                const ${ACC} code = sum[k]${then}, raised = code < call->low ? call->low : code;
                to[(c + k) * call->y_channel] = (${X})(raised > call->high ? call->high : raised);
            }
        }
    }
}
