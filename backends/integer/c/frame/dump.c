/* The dump of ${n}: see ${n}_dump.h. Written by qcompiler.

   The file is a zip archive without compression, with one array in NumPy's format for each tensor, in the order N, C, H, W. */
#include "${n}_dump.h"

#ifdef ${N}_HOOK /* otherwise this file is empty, so that a board without files may compile all files */

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "${n}.h"

void ${n}_hook(int32_t step, const char *name, int32_t is_after, const void *codes);

/* A tensor in memory is [outer][pixels][channels]; in the file it is [outer][channels][pixels]. */
typedef struct {
    const char *name, *header; /* name of the file in the archive, and the header of the array */
    int32_t header_bytes, size, outer, channels, pixels;
} tensor_t;

enum { INPUTS = ${inputs}, STEPS = ${steps} };

static const tensor_t tensors[INPUTS + STEPS] = {
${tensors}};

static FILE *file;
static int failed;
static uint32_t written, count;
static struct {
    uint32_t crc, bytes, offset;
    int32_t tensor;
} entries[INPUTS + STEPS];

static void put(const void *bytes, uint32_t size)
{
    failed = failed || fwrite(bytes, 1, size, file) != size;
    written += size;
}

static void put16(uint32_t number)
{
    const unsigned char bytes[2] = {(unsigned char)(number & 255), (unsigned char)(number >> 8 & 255)};
    put(bytes, 2);
}

static void put32(uint32_t number)
{
    put16(number & 65535);
    put16(number >> 16);
}

static uint32_t add_to_crc(uint32_t crc, const unsigned char *bytes, uint32_t size)
{
    for (uint32_t i = 0; i < size; ++i) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; ++bit) {
            crc = crc & 1 ? crc >> 1 ^ 0xedb88320u : crc >> 1;
        }
    }
    return crc;
}

/* One element, little endian. */
static void element(unsigned char *to, const void *codes, int32_t size, int32_t at)
{
    uint32_t number = 0;
    if (size == 1) {
        to[0] = ((const unsigned char *)codes)[at];
        return;
    }
    if (size == 2) {
        number = (uint32_t)((const uint16_t *)codes)[at];
    } else {
        number = ((const uint32_t *)codes)[at];
    }
    for (int32_t i = 0; i < size; ++i) {
        to[i] = (unsigned char)(number >> (8 * i) & 255);
    }
}

/* The elements in the order of the file: first their checksum, then the file itself. */
static uint32_t elements(const tensor_t *tensor, const void *codes, uint32_t crc, int is_written)
{
    unsigned char bytes[4];
    for (int32_t outer = 0; outer < tensor->outer; ++outer) {
        for (int32_t channel = 0; channel < tensor->channels; ++channel) {
            for (int32_t pixel = 0; pixel < tensor->pixels; ++pixel) {
                element(bytes, codes, tensor->size, (outer * tensor->pixels + pixel) * tensor->channels + channel);
                if (is_written) {
                    put(bytes, (uint32_t)tensor->size);
                } else {
                    crc = add_to_crc(crc, bytes, (uint32_t)tensor->size);
                }
            }
        }
    }
    return crc;
}

/* What the local and the central header of an entry have in common. */
static void common(uint32_t entry)
{
    const uint32_t length = (uint32_t)strlen(tensors[entries[entry].tensor].name);
    put16(20);   /* version */
    put16(2048); /* names in UTF-8 */
    put16(0);    /* no compression */
    put16(0);    /* time */
    put16(33);   /* 1 January 1980 */
    put32(entries[entry].crc);
    put32(entries[entry].bytes);
    put32(entries[entry].bytes);
    put16(length);
    put16(0);
}

static void add(int32_t index, const void *codes)
{
    const tensor_t *tensor = &tensors[index];
    const uint32_t header = (uint32_t)tensor->header_bytes;
    if (!file || count == INPUTS + STEPS) {
        return;
    }
    entries[count].tensor = index;
    entries[count].offset = written;
    entries[count].bytes = header + (uint32_t)(tensor->size * tensor->outer * tensor->channels * tensor->pixels);
    entries[count].crc = add_to_crc(0xffffffffu, (const unsigned char *)tensor->header, header);
    entries[count].crc = ~elements(tensor, codes, entries[count].crc, 0);
    put32(0x04034b50);
    common(count);
    put(tensor->name, (uint32_t)strlen(tensor->name));
    put(tensor->header, header);
    elements(tensor, codes, 0, 1);
    ++count;
}

void ${n}_hook(int32_t step, const char *name, int32_t is_after, const void *codes)
{
    (void)name;
    if (is_after) {
        add(INPUTS + step, codes);
    } else if (step == 0) {
${given}    }
}

int ${n}_dump_open(const char *path)
{
    file = fopen(path, "wb");
    failed = !file;
    written = count = 0;
    return failed;
}

int ${n}_dump_close(void)
{
    const uint32_t begin = written;
    if (!file) {
        return 1;
    }
    for (uint32_t entry = 0; entry < count; ++entry) {
        const char *name = tensors[entries[entry].tensor].name;
        put32(0x02014b50);
        put16(20);
        common(entry);
        put16(0);
        put16(0);
        put16(0);
        put32(0);
        put32(entries[entry].offset);
        put(name, (uint32_t)strlen(name));
    }
    {
        const uint32_t size = written - begin;
        put32(0x06054b50);
        put32(0);
        put16(count);
        put16(count);
        put32(size);
        put32(begin);
        put16(0);
    }
    failed = fclose(file) || failed;
    file = 0;
    return failed;
}

#endif
