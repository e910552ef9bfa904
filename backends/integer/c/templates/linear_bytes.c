//: over X Y MODE
//: needs linear products bytes sum_of_lanes requantize_channels
//: header
typedef ${linear}_t ${f}_t;

/* The same for 8-bit codes and weights, on vectors of inputs if the machine has them. */
void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call);
//: body
#if defined(LANES)
static void ${f}_row(${Y} *y, const ${X} *x, const ${f}_t *call)
{
    /* Instructions multiply unsigned bytes by signed bytes. For signed codes 128 is added to the weights, which enlarges the
       sum of the products by 128 times the sum of the codes. */
    const int32_t inputs = call->inputs, is_signed = (${X})-1 < 0;
    const lanes flip = splat(is_signed ? (int32_t)0x80808080u : 0);
    int32_t codes = 0;
    for (int32_t i = 0; is_signed && i < inputs; ++i) {
        codes += x[i];
    }
    for (int32_t o = 0; o < call->outputs; o += 4) {
        /* Missing channels are replaced by the last one. */
        const int32_t count = call->outputs - o < 4 ? call->outputs - o : 4;
        lanes sums[4] = {splat(0), splat(0), splat(0), splat(0)};
        for (int32_t i = 0; i < inputs; i += 4 * LANES) {
            const int32_t some = inputs - i < 4 * LANES ? inputs - i : 4 * LANES;
            const lanes from_x = load_bytes(x + i, some);
            for (int32_t k = 0; k < 4; ++k) {
                const lanes w = load_bytes(call->weight + (o + (k < count ? k : count - 1)) * inputs + i, some);
                sums[k] = is_signed ? add_products(sums[k], flip_codes(w, flip), signed_bytes(from_x))
                                    : add_products(sums[k], flip_codes(from_x, flip), signed_bytes(w));
            }
        }
        for (int32_t k = 0; k < count; ++k) {
            /* Unsigned, because intermediate sums may wrap. */
            const uint32_t sum = sum_of_lanes(sums[k]) - 128u * (uint32_t)codes + (uint32_t)call->bias[o + k];
            y[o + k] = (${Y})${requantize_channels}(&call->to, o + k, (int32_t)sum);
        }
    }
}
#endif

void ${f}(
    ${Y} *restrict y, const ${X} *restrict x, const ${f}_t *call)
{
#if defined(LANES)
    if (call->inputs >= 4 * LANES) {
        for (int32_t row = 0; row < call->rows; ++row) {
            ${f}_row(y + row * call->outputs, x + row * call->inputs, call);
        }
        return;
    }
#endif
    ${linear}(y, x, call);
}
