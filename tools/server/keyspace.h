/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SERVER_KEYSPACE_H
#define WEIR_SERVER_KEYSPACE_H

/*
 * keyspace - the keys of one core
 *
 * Pure but for memory: knows no region, no account and no clock. It says what
 * things cost; who owns it charges. A key's value is in one of three places:
 *
 *      WHERE_INLINE   in the entry itself: short values
 *      WHERE_MEMORY   in a struct value, which replies may hold
 *      WHERE_SLOT     in the region, as a slot handle
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <weir/base.h>

#include "resp.h"
#include "slab.h"

#define KEYSPACE_INLINE_MAX 127 /* bytes of a value in its entry; longer ones may spill */

enum where {
    WHERE_INLINE,
    WHERE_MEMORY,
    WHERE_SLOT,
};

struct entry;

/* Bytes that do not change, counted: by their entry, and by each reply that sends them. */
struct value {
    struct value *newer; /* in the clock; NULL at the ends and when not in it */
    struct value *older;
    struct entry *entry; /* NULL: no key has it (any more) */
    uint32_t bytes;
    uint32_t reference_count : 30;
    uint32_t is_staged : 1; /* a payload on its way into the region: counted apart */
    uint32_t is_loose : 1;  /* made for replies only: counted apart by the shard */
    char data[];
};

struct entry {
    struct entry *next;
    int64_t expire_ms; /* 0: never */
    union {
        struct value *value;
        struct weir_slot slot;
    };
    uint32_t hash;
    uint32_t bytes; /* of the value */
    uint16_t key_bytes;
    uint16_t capacity; /* bytes for an inline value behind the key */
    uint8_t where;
    bool was_used;      /* since the clock passed */
    bool was_read_cold; /* from the region, since it went there */
    char data[];        /* key, inline value */
};

_Static_assert(sizeof(struct entry) <= 48, "a key is cheap");

struct keyspace {
    struct entry **tables[2]; /* the second one is the larger, while keys move over */
    uint32_t bits[2];
    uint32_t move_at; /* buckets of the first below this are empty */
    size_t count;
    size_t expire_count;
    size_t slot_count;    /* keys whose value is in the region */
    size_t memory_count;  /* in a struct value */
    uint64_t value_bytes; /* of all values, wherever they are */
    struct value *newest; /* the clock: values in memory that may spill */
    struct value *oldest;
    struct weir_books books; /* told of the tables */
    struct slab *slab;       /* the entries, not charged here */
};

/* What malloc() really takes for @bytes. */
static inline size_t memory_cost(size_t bytes)
{
    if (bytes >= 65536 - 64)
        return (bytes + 16 + 4095) & ~(size_t)4095;
    bytes = (bytes + 8 + 15) & ~(size_t)15;
    return bytes < 32 ? 32 : bytes;
}

static inline size_t value_cost(size_t bytes)
{
    return memory_cost(sizeof(struct value) + bytes);
}

static inline size_t entry_cost(size_t key_bytes, size_t capacity)
{
    const size_t bytes = sizeof(struct entry) + key_bytes + capacity;

    return bytes > SLAB_BYTES_MAX ? memory_cost(bytes) : slab_cost(bytes);
}

static inline const char *entry_key(const struct entry *entry)
{
    return entry->data;
}

static inline char *entry_inline(struct entry *entry)
{
    return entry->data + entry->key_bytes;
}

/* 0 or -ENOMEM; several may share @slab. */
int keyspace_init(struct keyspace *keyspace, struct slab *slab, struct weir_books books);

/* The tables only: it must be empty. Takes one that is all zero. */
void keyspace_deinit(struct keyspace *keyspace);

/* NULL: not there. Expiry is the caller's. */
struct entry *keyspace_find(struct keyspace *keyspace, uint32_t hash, struct slice key);

/*
 * A new key with an empty inline value, and room for @capacity; NULL: no
 * memory. It must not be there yet.
 */
struct entry *keyspace_add(struct keyspace *keyspace, uint32_t hash, struct slice key,
                           size_t capacity);

/* The same key with another capacity, its inline value dropped; NULL: no memory, and nothing changed. */
struct entry *keyspace_resize(struct keyspace *keyspace, struct entry *entry, size_t capacity);

/* Takes it out and frees it; its value is inline, or was taken away. */
void keyspace_remove(struct keyspace *keyspace, struct entry *entry);

/* Where the value is from now on; the place before it was inline or taken away. */
void keyspace_set_value(struct keyspace *keyspace, struct entry *entry, struct value *value);
void keyspace_set_slot(struct keyspace *keyspace, struct entry *entry, struct weir_slot slot,
                       uint32_t bytes);
void keyspace_set_inline(struct keyspace *keyspace, struct entry *entry, const char *data,
                         size_t bytes); /* fits the capacity */

/* Takes the value away: the entry is left with an empty inline one. */
struct value *keyspace_take_value(struct keyspace *keyspace, struct entry *entry);
struct weir_slot keyspace_take_slot(struct keyspace *keyspace, struct entry *entry);

void keyspace_set_expire(struct keyspace *keyspace, struct entry *entry, int64_t expire_ms);

/* The next value to spill: the oldest that was not used since the clock passed; looks at @steps at most. */
struct value *keyspace_coldest(struct keyspace *keyspace, uint32_t steps);

/* One that could not be spilled now goes to the young end. */
void keyspace_spare(struct keyspace *keyspace, struct value *value);

/* Moves some keys over to the larger table; whether there is more to do. */
bool keyspace_step(struct keyspace *keyspace, uint32_t buckets);

/*
 * Calls @visit with the entries of @buckets buckets from *cursor on; it may
 * remove the entry it is given, and no other.
 */
void keyspace_scan(struct keyspace *keyspace, uint64_t *cursor, uint32_t buckets,
                   void (*visit)(void *context, struct entry *entry), void *context);

/* Some entry, NULL when empty; *cursor begins at 0 and is kept between calls. */
struct entry *keyspace_any(struct keyspace *keyspace, uint64_t *cursor);

#endif
