/* SPDX-License-Identifier: MIT */
/*
 * keys - open addressing, linear probing, never more than 3/4 full
 *
 * An entry points to the encoded record itself, so the key is compared where it
 * lies. A tag of 32 bits spares all but one in four thousand million of those
 * looks.
 */
#include "writebuf/keys.h"

#include "base/bits.h"
#include "base/check.h"
#include "writebuf/record.h"

#include <string.h>
#include <xxhash.h>

_Static_assert(sizeof(struct weir__keys_entry) == 16, "four of them in a line");

uint64_t weir__keys_bytes(uint64_t key_count)
{
    uint64_t entry_count = weir__max(key_count + (key_count + 2) / 3, 4);

    return (UINT64_C(2) << weir__highest_bit(entry_count - 1)) * sizeof(struct weir__keys_entry);
}

void weir__keys_init(struct weir__keys *keys, void *memory, uint64_t bytes, uint64_t seed)
{
    *keys = (struct weir__keys){
        .entries = memory,
        .entry_count = bytes / sizeof(struct weir__keys_entry),
        .seed = seed,
    };
    WEIR_CHECK((keys->entry_count & (keys->entry_count - 1)) == 0);
    WEIR_CHECK(keys->entry_count >= 4);
}

static bool keys_is_key(const char *data, const struct weir_writebuf_record *record)
{
    struct weir_writebuf_record other;
    uint64_t bytes;

    /* It was decoded before it was added. */
    if (weir__record_decode(data, UINT64_MAX, &other, &bytes) < 0)
        return false;
    return other.key_bytes == record->key_bytes &&
           (record->key_bytes == 0 || memcmp(other.key, record->key, record->key_bytes) == 0);
}

/* The entry of this key, or the free one where it would be. */
static struct weir__keys_entry *keys_probe(const struct weir__keys *keys,
                                           const struct weir_writebuf_record *record,
                                           uint32_t *ret_tag)
{
    uint64_t hash = XXH3_64bits_withSeed(record->key, record->key_bytes, keys->seed);
    uint64_t mask = keys->entry_count - 1;
    uint32_t tag = (uint32_t)(hash >> 32);

    *ret_tag = tag;
    for (uint64_t i = hash & mask;; i = (i + 1) & mask) {
        struct weir__keys_entry *entry = &keys->entries[i];

        if (entry->last == NULL || (entry->tag == tag && keys_is_key(entry->last, record)))
            return entry;
    }
}

bool weir__keys_add(struct weir__keys *keys, const char *data,
                    const struct weir_writebuf_record *record)
{
    uint32_t tag;
    struct weir__keys_entry *entry = keys_probe(keys, record, &tag);

    if (entry->last == NULL) {
        if (keys->key_count >= keys->entry_count / 4 * 3)
            return false;
        keys->key_count++;
        entry->tag = tag;
        entry->was_inserted = record->operation == WEIR_WRITEBUF_INSERT;
    }
    entry->last = data;
    return true;
}

const struct weir__keys_entry *weir__keys_find(const struct weir__keys *keys,
                                               const struct weir_writebuf_record *record)
{
    uint32_t tag;
    const struct weir__keys_entry *entry = keys_probe(keys, record, &tag);

    WEIR_CHECK(entry->last != NULL);
    return entry;
}
