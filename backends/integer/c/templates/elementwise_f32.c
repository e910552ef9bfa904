//: over A B Y OPERATION
//: needs place round_even
//: header
typedef struct {
    int32_t outer, inner;      /* elements of y: along all axes except the last, and along the last axis */
    int32_t rank;              /* number of outer axes */
    int32_t size[${RANK}];
    int32_t a_step[${RANK}], a_next; /* strides along each axis; 0 if broadcast */
    int32_t b_step[${RANK}], b_next;
    int32_t a_zero_point, b_zero_point;
    float a_scale, b_scale, scale;
    int32_t zero_point;
    int32_t low, high;
} ${f}_t;

/* y = round((a_scale * (a - a_zero_point) ${SIGN} b_scale * (b - b_zero_point)) / scale) + zero_point between low and
   high, each step a float. y may be a or b. */
void ${f}(
    ${Y} *y, const ${A} *a, const ${B} *b, const ${f}_t *call);
//: body
void ${f}(
    ${Y} *y, const ${A} *a, const ${B} *b, const ${f}_t *call)
{
    const ${f}_t own = *call;
    const float least = (float)(own.low - own.zero_point), most = (float)(own.high - own.zero_point);
    for (int32_t i = 0; i < own.outer; ++i) {
        const ${A} *left = a + place(i, own.rank, call->size, call->a_step);
        const ${B} *right = b + place(i, own.rank, call->size, call->b_step);
        for (int32_t j = 0; j < own.inner; ++j) {
            const float p = (float)(left[j * own.a_next] - own.a_zero_point) * own.a_scale;
            const float q = (float)(right[j * own.b_next] - own.b_zero_point) * own.b_scale;
            /* Clamping to the largest numbers changes only infinities, and keeps compilers from fusing the products
               and the sum into one rounding. */
            const float x = p < -FLT_MAX ? -FLT_MAX : p > FLT_MAX ? FLT_MAX : p;
            const float z = q < -FLT_MAX ? -FLT_MAX : q > FLT_MAX ? FLT_MAX : q;
            const float steps = (x ${SIGN} z) / own.scale;
            const float inside = steps < least ? least : steps > most ? most : steps;
            y[i * own.inner + j] = (${Y})(round_even(inside) + own.zero_point);
        }
    }
}
