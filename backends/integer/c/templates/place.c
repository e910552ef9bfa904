//: body
/* Where element `index` of a box lies: `size` of each axis, the last one running fastest, and `step` along each. */
static int32_t place(int32_t index, int32_t rank, const int32_t *size, const int32_t *step)
{
    int32_t at = 0;
    for (int32_t axis = rank - 1; axis >= 0; --axis) {
        at += index % size[axis] * step[axis];
        index /= size[axis];
    }
    return at;
}
