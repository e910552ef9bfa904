//: over X
//: header
/* y = code, `count` times. */
void ${f}(${X} *y, int32_t count, ${X} code);
//: body
void ${f}(${X} *y, int32_t count, ${X} code)
{
    for (int32_t i = 0; i < count; ++i) {
        y[i] = code;
    }
}
