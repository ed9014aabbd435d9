/* SPDX-License-Identifier: MIT */
#ifndef WEIR_WRITEBUF_KEYS_H
#define WEIR_WRITEBUF_KEYS_H

/*
 * keys - which record is the last of its key
 *
 * A hash table over records that stay where they are. Pure: the memory is given.
 */

#include <weir/writebuf.h>

#include <stdbool.h>
#include <stdint.h>

struct weir__keys_entry {
    const char *last; /* the encoded record; NULL: free */
    uint32_t tag;
    uint32_t was_inserted; /* the first change of the key in this batch was an insert */
};

struct weir__keys {
    struct weir__keys_entry *entries; /* zeroed */
    uint64_t entry_count;             /* a power of two */
    uint64_t key_count;               /* at most 3/4 of it */
    uint64_t seed;
};

/* What a table for @key_count keys needs. */
uint64_t weir__keys_bytes(uint64_t key_count);

/*
 * @bytes: a power of two of zeroed memory, at least 64; @seed: by chance, so that
 * nobody can choose keys that collide
 */
void weir__keys_init(struct weir__keys *keys, void *memory, uint64_t bytes, uint64_t seed);

/* @data is now the last record of its key. False: the table is full, nothing was done. */
bool weir__keys_add(struct weir__keys *keys, const char *data,
                    const struct weir_writebuf_record *record);

/* The entry of a key that was added. */
const struct weir__keys_entry *weir__keys_find(const struct weir__keys *keys,
                                               const struct weir_writebuf_record *record);

#endif
