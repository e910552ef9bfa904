//: over A B Y MODE
//: needs add bytes widen scale_lanes pack_numbers place
//: header
typedef ${add}_t ${f}_t;

/* The same for 8-bit codes, on vectors if the machine has them. */
void ${f}(
    ${Y} *y, const ${A} *a, const ${B} *b, const ${f}_t *call);
//: body
void ${f}(
    ${Y} *y, const ${A} *a, const ${B} *b, const ${f}_t *call)
{
#if defined(LANES)
    const ${f}_t own = *call;
    /* Lanes for 9-bit differences and for their sum; multipliers below 1 do not enlarge them. */
    const int64_t largest = (int64_t)255 << own.shift;
    scale_of_lanes by_a, by_b, by_sum;
    const int32_t fits = prepare_scale(&by_a, own.a_multiplier, own.a_exponent, largest)
        & prepare_scale(&by_b, own.b_multiplier, own.b_exponent, largest)
        & prepare_scale(&by_sum, own.to.multiplier, own.to.exponent, 2 * largest);
    if (fits && own.inner >= LANES && own.a_next == 1 && own.b_next == 1) {
        const lanes a_zero_point = splat(own.a_zero_point), b_zero_point = splat(own.b_zero_point);
        const lanes zero_point = splat(own.to.zero_point);
        const __m128i shift = _mm_cvtsi32_si128(own.shift);
        for (int32_t i = 0; i < own.outer; ++i) {
            const ${A} *left = a + place(i, own.rank, call->size, call->a_step);
            const ${B} *right = b + place(i, own.rank, call->size, call->b_step);
            for (int32_t j = 0; j < own.inner; j += 4 * LANES) {
                const int32_t count = own.inner - j < 4 * LANES ? own.inner - j : 4 * LANES;
                lanes p[4], q[4], numbers[4];
                widen(p, load_bytes(left + j, count), (${A})-1 < 0);
                widen(q, load_bytes(right + j, count), (${B})-1 < 0);
                for (int32_t k = 0; k < 4; ++k) {
                    const lanes r = scale_lanes(V(sll_epi32)(V(sub_epi32)(p[k], a_zero_point), shift), &by_a);
                    const lanes s = scale_lanes(V(sll_epi32)(V(sub_epi32)(q[k], b_zero_point), shift), &by_b);
                    const lanes sum = own.sign < 0 ? V(sub_epi32)(r, s) : V(add_epi32)(r, s);
                    numbers[k] = V(add_epi32)(scale_lanes(sum, &by_sum), zero_point);
                }
                store_bytes(y + i * own.inner + j, ${pack_numbers}(numbers, own.to.low, own.to.high), count);
            }
        }
        return;
    }
#endif
    ${add}(y, a, b, call);
}
