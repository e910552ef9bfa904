//: over X Y
//: header
typedef struct {
    int32_t outer, channels, inner; /* sizes of x and y in front of the axis of the channels, along it, behind it */
    const ${Y} *table;              /* an entry for each code; all codes of a channel side by side */
    int32_t first;                  /* code of the first entry */
    int32_t entries;                /* of one channel */
    const int32_t *rows;            /* which part of the table each channel reads; none: its own */
} ${f}_t;

/* y = table[x]. y may be x. */
void ${f}(
    ${Y} *y, const ${X} *x, const ${f}_t *call);
//: body
void ${f}(
    ${Y} *y, const ${X} *x, const ${f}_t *call)
{
    const ${f}_t own = *call;
    int32_t at = 0;
    for (int32_t i = 0; i < own.outer * own.channels; ++i) {
        const int32_t channel = i % own.channels;
        const ${Y} *entry = own.table + (own.rows ? own.rows[channel] : channel) * own.entries;
        for (int32_t end = at + own.inner; at < end; ++at) {
            y[at] = entry[x[at] - own.first];
        }
    }
}
