//: body
/* Offset of element `index` of a box with the sizes `size`, the last axis fastest, and the strides `step`. */
static int32_t place(int32_t index, int32_t rank, const int32_t *size, const int32_t *step)
{
    int32_t at = 0;
    for (int32_t axis = rank - 1; axis >= 0; --axis) {
        at += index % size[axis] * step[axis];
        index /= size[axis];
    }
    return at;
}
