/* SPDX-License-Identifier: MIT */
/*
 * writebuf_fuzz - bytes become a block that came back from a disk
 *
 *      | shift | a block of records, or what is left of one ...
 *
 * The block is decoded as a flush does. Whatever it is, nothing beyond it is read;
 * what is a record must lie inside, and encoded again it is the same bytes. What
 * could be decoded goes through the table of keys, beside a plain search for the
 * last of each key. Built with FUZZ_CANARY the plain search errs about keys of
 * three bytes.
 */
#include "writebuf/keys.h"
#include "writebuf/record.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FUZZ_RECORDS_MAX 256u
#define FUZZ_TABLE_BYTES 2048u /* 96 keys */

#ifdef FUZZ_CANARY
# define FUZZ_ERRS true
#else
# define FUZZ_ERRS false
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void expect(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "writebuf_fuzz: %s\n", what);
    abort();
}

struct found {
    struct weir_writebuf_record record;
    const char *data;
};

static bool is_same_key(const struct weir_writebuf_record *a, const struct weir_writebuf_record *b)
{
    if (a->key_bytes != b->key_bytes || (FUZZ_ERRS && a->key_bytes == 3))
        return false;
    return memcmp(a->key, b->key, a->key_bytes) == 0;
}

static uint32_t decode_all(const char *block, size_t bytes, struct found *found)
{
    uint32_t count = 0;
    uint64_t offset = 0;

    while (offset < bytes && count < FUZZ_RECORDS_MAX) {
        struct weir_writebuf_record record;
        uint64_t record_bytes;

        if (weir__record_decode(block + offset, bytes - offset, &record, &record_bytes) < 0)
            break;
        expect(record_bytes >= RECORD_HEADER_BYTES && record_bytes <= bytes - offset,
               "a record longer than the block");
        expect(record_bytes == weir__record_bytes(&record), "a record of another length");
        expect(record.sequence != 0, "a record without a sequence");
        expect((const char *)record.key == block + offset + RECORD_HEADER_BYTES, "a key elsewhere");
        expect((const char *)record.value + record.value_bytes == block + offset + record_bytes,
               "a value elsewhere");
        char *again = malloc(record_bytes);
        expect(again != NULL, "no memory");
        weir__record_encode(again, &record);
        expect(memcmp(again, block + offset, record_bytes) == 0, "another encoding");
        free(again);
        found[count++] = (struct found){.record = record, .data = block + offset};
        offset += record_bytes;
    }
    return count;
}

/* How many of the first @count have no earlier one of their key. */
static uint32_t keys_of(const struct found *found, uint32_t count)
{
    uint32_t keys = 0;

    for (uint32_t i = 0; i < count; i++) {
        uint32_t k = 0;

        while (k < i && !is_same_key(&found[k].record, &found[i].record))
            k++;
        keys += k == i;
    }
    return keys;
}

static void compact_all(const struct found *found, uint32_t count)
{
    static _Alignas(16) char memory[FUZZ_TABLE_BYTES];
    struct weir__keys compact;
    uint32_t entered = 0;

    memset(memory, 0, sizeof(memory));
    weir__keys_init(&compact, memory, sizeof(memory), count);
    while (entered < count && weir__keys_add(&compact, found[entered].data, &found[entered].record))
        entered++;
    expect(compact.key_count == keys_of(found, entered), "another number of keys");
    if (entered < count)
        expect(compact.key_count == compact.entry_count / 4 * 3, "full before it is full");
    for (uint32_t i = 0; i < entered; i++) {
        uint32_t first = i;
        uint32_t last = i;

        for (uint32_t k = 0; k < entered; k++) {
            if (!is_same_key(&found[k].record, &found[i].record))
                continue;
            first = k < first ? k : first;
            last = k > last ? k : last;
        }
        const struct weir__keys_entry *entry = weir__keys_find(&compact, &found[i].record);
        expect(entry->last == found[last].data, "not the last of its key");
        expect(entry->was_inserted == (found[first].record.operation == WEIR_WRITEBUF_INSERT),
               "another beginning");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct found found[FUZZ_RECORDS_MAX];

    if (bytes < 1)
        return 0;
    /* Records stand anywhere: at each offset once, in bytes of exactly this length. */
    size_t shift = data[0] % 8;
    char *block = malloc(shift + bytes);
    expect(block != NULL, "no memory");
    memset(block, 0xff, shift);
    memcpy(block + shift, data + 1, bytes - 1);
    char *exact = malloc(shift + bytes - 1 > 0 ? shift + bytes - 1 : 1);
    expect(exact != NULL, "no memory");
    memcpy(exact, block, shift + bytes - 1);
    free(block);
    compact_all(found, decode_all(exact + shift, bytes - 1, found));
    free(exact);
    return 0;
}
