/* The constants of ${n}, read from a little-endian file when the program starts. */
#include <stdint.h>
#include <stdio.h>

${declarations}
int load_constants(const char *path);

static int load(FILE *from, void *numbers, int32_t size, int32_t elements)
{
    const uint16_t one = 1;
    unsigned char *bytes = numbers;
    if (fread(numbers, (size_t)size, (size_t)elements, from) != (size_t)elements) {
        return 1;
    }
    for (int32_t at = 0; *(const unsigned char *)&one == 0 && at < elements; ++at, bytes += size) {
        for (int32_t i = 0; i < size / 2; ++i) {
            const unsigned char byte = bytes[i];
            bytes[i] = bytes[size - 1 - i];
            bytes[size - 1 - i] = byte;
        }
    }
    return 0;
}

int load_constants(const char *path)
{
    FILE *file = fopen(path, "rb");
    int failed = file == 0;
${loads}    if (file) {
        fclose(file);
    }
    return failed;
}
