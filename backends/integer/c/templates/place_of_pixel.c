//: needs vectors
//: body
#if defined(LANES)
typedef struct {
    int32_t image, y, x;
} place_of_pixel;

static inline void next_pixel(place_of_pixel *at, int32_t width, int32_t height)
{
    if (++at->x == width) {
        at->x = 0;
        if (++at->y == height) {
            at->y = 0;
            ++at->image;
        }
    }
}
#endif
