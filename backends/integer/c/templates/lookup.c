//: over X Y
//: header
typedef struct {
    int32_t outer, channels, inner; /* sizes of x and y before, along and after the channel axis */
    const ${Y} *table;              /* one entry per code; the entries of a channel are contiguous */
    int32_t first;                  /* code of the first entry */
    int32_t entries;                /* number of entries of one channel */
    const int32_t *rows;            /* row of the table for each channel; null: the row of its index */
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
