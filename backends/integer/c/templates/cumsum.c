//: over X U
//: header
typedef struct {
    int32_t outer, count, inner; /* elements before, along and after the axis */
} ${f}_t;

/* Sums from the first element of an axis to each element. They wrap around. */
void ${f}(
    ${X} *y, const ${X} *x, const ${f}_t *call);
//: body
void ${f}(
    ${X} *y, const ${X} *x, const ${f}_t *call)
{
    for (int32_t i = 0; i < call->outer; ++i) {
        for (int32_t j = 0; j < call->inner; ++j) {
            int32_t at = i * call->count * call->inner + j;
            ${U} sum = 0;
            for (int32_t k = 0; k < call->count; ++k, at += call->inner) {
                sum += (${U})x[at];
                y[at] = (${X})sum;
            }
        }
    }
}
