//: over A B Y
//: needs place round_even
//: header
typedef struct {
    int32_t outer, inner;      /* elements of y: along all axes except the last, and along the last axis */
    int32_t rank;              /* number of outer axes */
    int32_t size[${RANK}];
    int32_t a_step[${RANK}], a_next; /* strides along each axis; 0 if broadcast */
    int32_t b_step[${RANK}], b_next;
    int32_t a_zero_point, b_zero_point;
    float multiplier;
    int32_t zero_point;
    int32_t low, high;
} ${f}_t;

/* y = round((a - a_zero_point) * (b - b_zero_point) * multiplier + zero_point) between low and high, each step a
   float. y may be a or b. */
void ${f}(
    ${Y} *y, const ${A} *a, const ${B} *b, const ${f}_t *call);
//: body
void ${f}(
    ${Y} *y, const ${A} *a, const ${B} *b, const ${f}_t *call)
{
    const ${f}_t own = *call;
    /* Limits of the sum, plus one: beyond them the result is a limit in any case. The clamp also keeps compilers from fusing
       the product and the sum. */
    const float least = (float)(own.low - own.zero_point - 1), most = (float)(own.high - own.zero_point + 1);
    for (int32_t i = 0; i < own.outer; ++i) {
        const ${A} *left = a + place(i, own.rank, call->size, call->a_step);
        const ${B} *right = b + place(i, own.rank, call->size, call->b_step);
        for (int32_t j = 0; j < own.inner; ++j) {
            const int64_t p = left[j * own.a_next] - own.a_zero_point;
            const int64_t q = right[j * own.b_next] - own.b_zero_point;
            const float product = (float)(p * q) * own.multiplier;
            const float inside = product < least ? least : product > most ? most : product;
            const int32_t code = round_even(inside + (float)own.zero_point);
            y[i * own.inner + j] = (${Y})(code < own.low ? own.low : code > own.high ? own.high : code);
        }
    }
}
