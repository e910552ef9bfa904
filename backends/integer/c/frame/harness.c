/* Reads the inputs of ${n} from standard input and writes the outputs to standard output, for a comparison with other forms.
   Arguments: the number of runs; 1 for real numbers, 0 for codes; a file with the constants, if they are not compiled in.
   Numbers are little endian. */
#include <stdio.h>
#include <stdlib.h>

#include "${n}.h"
#include "${n}_float.h"

int load_constants(const char *path);

static const int32_t step_size[] = {${step_sizes}0};
static const int32_t step_elements[] = {${step_elements}0};
static unsigned char replaced[${steps} + 1];

static int is_big_endian(void)
{
    const uint16_t one = 1;
    return *(const unsigned char *)&one == 0;
}

/* Convert numbers in place from or to little endian. */
static void order(unsigned char *bytes, int32_t size, int32_t elements)
{
    if (!is_big_endian()) {
        return;
    }
    for (int32_t at = 0; at < elements; ++at, bytes += size) {
        for (int32_t i = 0; i < size / 2; ++i) {
            const unsigned char byte = bytes[i];
            bytes[i] = bytes[size - 1 - i];
            bytes[size - 1 - i] = byte;
        }
    }
}

static void take(FILE *from, void *numbers, int32_t size, int32_t elements)
{
    if (fread(numbers, (size_t)size, (size_t)elements, from) != (size_t)elements) {
        fputs("the input ends too early\n", stderr);
        exit(3);
    }
    order(numbers, size, elements);
}

static void give(const void *numbers, int32_t size, int32_t elements)
{
    unsigned char number[8];
    if (!is_big_endian()) {
        fwrite(numbers, (size_t)size, (size_t)elements, stdout);
        return;
    }
    for (int32_t at = 0; at < elements; ++at) {
        for (int32_t i = 0; i < size; ++i) {
            number[i] = ((const unsigned char *)numbers)[at * size + size - 1 - i];
        }
        fwrite(number, (size_t)size, 1, stdout);
    }
}

void ${n}_trace(int32_t step, void *codes);
void ${n}_trace(int32_t step, void *codes)
{
    give(codes, step_size[step], step_elements[step]);
    if (replaced[step]) {
        take(stdin, codes, step_size[step], step_elements[step]);
    }
}

int main(int argc, char **argv)
{
    const long runs = argc > 2 ? strtol(argv[1], 0, 10) : 0;
    const int real = argc > 2 && argv[2][0] == '1';
${load}    take(stdin, replaced, 1, ${steps});
    for (long run = 0; run < runs; ++run) {
${inputs}        ${n}_run();
${outputs}    }
    return 0;
}
