//: over A B Y MODE
//: needs mul bytes widen scale_lanes pack_numbers place
//: header
typedef ${mul}_t ${f}_t;

/* The same for 8-bit codes, on vectors if the machine has them. */
void ${f}(
    ${Y} *y, const ${A} *a, const ${B} *b, const ${f}_t *call);
//: body
void ${f}(
    ${Y} *y, const ${A} *a, const ${B} *b, const ${f}_t *call)
{
#if defined(LANES)
    const ${f}_t own = *call;
    scale_of_lanes by;
    const int32_t fits = prepare_scale(&by, own.to.multiplier, own.to.exponent, 255 * 255);
    if (fits && own.inner >= LANES && own.a_next == 1 && own.b_next == 1) {
        const lanes a_zero_point = splat(own.a_zero_point), b_zero_point = splat(own.b_zero_point);
        const lanes zero_point = splat(own.to.zero_point);
        for (int32_t i = 0; i < own.outer; ++i) {
            const ${A} *left = a + place(i, own.rank, call->size, call->a_step);
            const ${B} *right = b + place(i, own.rank, call->size, call->b_step);
            for (int32_t j = 0; j < own.inner; j += 4 * LANES) {
                const int32_t count = own.inner - j < 4 * LANES ? own.inner - j : 4 * LANES;
                lanes p[4], q[4], numbers[4];
                widen(p, load_bytes(left + j, count), (${A})-1 < 0);
                widen(q, load_bytes(right + j, count), (${B})-1 < 0);
                for (int32_t k = 0; k < 4; ++k) {
                    const lanes first = V(sub_epi32)(p[k], a_zero_point), second = V(sub_epi32)(q[k], b_zero_point);
                    numbers[k] = V(add_epi32)(scale_lanes(V(mullo_epi32)(first, second), &by), zero_point);
                }
                store_bytes(y + i * own.inner + j, ${pack_numbers}(numbers, own.to.low, own.to.high), count);
            }
        }
        return;
    }
#endif
    ${mul}(y, a, b, call);
}
