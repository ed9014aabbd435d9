/* SPDX-License-Identifier: MIT */
/*
 * keyspace - a chained table that grows without a pause, and a clock
 *
 *      tables[0]  |empty|empty|  e  |  e  |      move_at: 2
 *                                 \
 *      tables[1]  |  |  |e |  |  |  |e |  |      twice as large
 *
 * When there are more keys than buckets, a table of twice the size is made and
 * every operation moves a few buckets over; until all have moved a key is in
 * the old table if its bucket there is not below move_at, else in the new one.
 * The old is never asked twice: the place of a key is known from its hash.
 *
 * The clock is a list of the values in memory, by age. A value that was used
 * since it last came to the old end goes round once more; reading a value
 * costs one store, not a list operation.
 *
 * Invariants
 *
 *   I1  a key is in exactly one bucket, the one that its hash names
 *   I2  a value is in the clock if and only if an entry has it
 *   I3  count = keys inline + memory_count + slot_count
 */
#include "keyspace.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define KEYSPACE_BITS_MIN 10
#define KEYSPACE_BITS_MAX 31
#define KEYSPACE_MOVE     4 /* buckets per operation while keys move over */

static void books_tell(struct keyspace *keyspace, int64_t bytes)
{
    if (keyspace->books.charge != NULL)
        keyspace->books.charge(keyspace->books.context, bytes);
}

static int64_t table_bytes(uint32_t bits)
{
    return (int64_t)(sizeof(struct entry *) << bits);
}

/* ---- Lifecycle -------------------------------------------------------------- */

static struct entry **table_make(struct keyspace *keyspace, uint32_t bits)
{
    struct entry **table = calloc((size_t)1 << bits, sizeof(*table));

    if (table != NULL)
        books_tell(keyspace, table_bytes(bits));
    return table;
}

static void table_drop(struct keyspace *keyspace, int which)
{
    if (keyspace->tables[which] == NULL)
        return;
    free(keyspace->tables[which]);
    books_tell(keyspace, -table_bytes(keyspace->bits[which]));
    keyspace->tables[which] = NULL;
}

int keyspace_init(struct keyspace *keyspace, struct slab *slab, struct weir_books books)
{
    memset(keyspace, 0, sizeof(*keyspace));
    keyspace->slab = slab;
    keyspace->books = books;
    keyspace->bits[0] = KEYSPACE_BITS_MIN;
    keyspace->tables[0] = table_make(keyspace, KEYSPACE_BITS_MIN);
    return keyspace->tables[0] != NULL ? 0 : -ENOMEM;
}

void keyspace_deinit(struct keyspace *keyspace)
{
    assert(keyspace->count == 0);
    table_drop(keyspace, 0);
    table_drop(keyspace, 1);
}

/* ---- Buckets ---------------------------------------------------------------- */

static struct entry **bucket_of(struct keyspace *keyspace, uint32_t hash)
{
    const uint32_t at = hash & (((uint32_t)1 << keyspace->bits[0]) - 1);

    if (keyspace->tables[1] == NULL || at >= keyspace->move_at)
        return &keyspace->tables[0][at];
    return &keyspace->tables[1][hash & (((uint32_t)1 << keyspace->bits[1]) - 1)];
}

bool keyspace_step(struct keyspace *keyspace, uint32_t buckets)
{
    const uint32_t mask = ((uint32_t)1 << keyspace->bits[1]) - 1;

    if (keyspace->tables[1] == NULL)
        return false;
    for (; buckets > 0 && keyspace->move_at < (uint32_t)1 << keyspace->bits[0]; buckets--) {
        struct entry *entry = keyspace->tables[0][keyspace->move_at];

        keyspace->tables[0][keyspace->move_at++] = NULL;
        while (entry != NULL) {
            struct entry *next = entry->next;
            struct entry **bucket = &keyspace->tables[1][entry->hash & mask];

            entry->next = *bucket;
            *bucket = entry;
            entry = next;
        }
    }
    if (keyspace->move_at < (uint32_t)1 << keyspace->bits[0])
        return true;
    table_drop(keyspace, 0);
    keyspace->tables[0] = keyspace->tables[1];
    keyspace->bits[0] = keyspace->bits[1];
    keyspace->tables[1] = NULL;
    keyspace->move_at = 0;
    return false;
}

static void keyspace_grow(struct keyspace *keyspace)
{
    if (keyspace_step(keyspace, KEYSPACE_MOVE))
        return;
    if (keyspace->count <= (size_t)1 << keyspace->bits[0] || keyspace->bits[0] == KEYSPACE_BITS_MAX)
        return;
    /* Without memory for it the chains grow a little longer instead. */
    keyspace->bits[1] = keyspace->bits[0] + 1;
    keyspace->tables[1] = table_make(keyspace, keyspace->bits[1]);
    keyspace->move_at = 0;
}

/* The link that points to @entry. */
static struct entry **link_of(struct keyspace *keyspace, const struct entry *entry)
{
    struct entry **link = bucket_of(keyspace, entry->hash);

    while (*link != entry)
        link = &(*link)->next;
    return link;
}

/* ---- Keys ------------------------------------------------------------------- */

struct entry *keyspace_find(struct keyspace *keyspace, uint32_t hash, struct slice key)
{
    struct entry *entry = *bucket_of(keyspace, hash);

    while (entry != NULL && (entry->hash != hash || entry->key_bytes != key.bytes ||
                             memcmp(entry->data, key.data, key.bytes) != 0))
        entry = entry->next;
    return entry;
}

struct entry *keyspace_add(struct keyspace *keyspace, uint32_t hash, struct slice key,
                           size_t capacity)
{
    struct entry *entry = slab_alloc(keyspace->slab, sizeof(*entry) + key.bytes + capacity);
    struct entry **bucket;

    assert(key.bytes <= UINT16_MAX && capacity <= UINT16_MAX);
    if (entry == NULL)
        return NULL;
    keyspace_grow(keyspace);
    memset(entry, 0, sizeof(*entry));
    entry->hash = hash;
    entry->key_bytes = (uint16_t)key.bytes;
    entry->capacity = (uint16_t)capacity;
    entry->where = WHERE_INLINE;
    memcpy(entry->data, key.data, key.bytes);
    bucket = bucket_of(keyspace, hash);
    entry->next = *bucket;
    *bucket = entry;
    keyspace->count++;
    return entry;
}

static void entry_free(struct keyspace *keyspace, struct entry *entry)
{
    slab_free(keyspace->slab, entry, sizeof(*entry) + entry->key_bytes + entry->capacity);
}

struct entry *keyspace_resize(struct keyspace *keyspace, struct entry *entry, size_t capacity)
{
    struct entry **link = link_of(keyspace, entry);
    struct entry *moved = slab_alloc(keyspace->slab, sizeof(*entry) + entry->key_bytes + capacity);

    assert(capacity <= UINT16_MAX);
    if (moved == NULL)
        return NULL;
    memcpy(moved, entry, sizeof(*entry) + entry->key_bytes);
    moved->capacity = (uint16_t)capacity;
    if (moved->where == WHERE_MEMORY)
        moved->value->entry = moved;
    if (moved->where == WHERE_INLINE) {
        keyspace->value_bytes -= moved->bytes;
        moved->bytes = 0;
    }
    *link = moved;
    entry_free(keyspace, entry);
    return moved;
}

void keyspace_remove(struct keyspace *keyspace, struct entry *entry)
{
    assert(entry->where == WHERE_INLINE);
    *link_of(keyspace, entry) = entry->next;
    keyspace->value_bytes -= entry->bytes;
    keyspace->expire_count -= entry->expire_ms != 0;
    keyspace->count--;
    entry_free(keyspace, entry);
}

void keyspace_set_expire(struct keyspace *keyspace, struct entry *entry, int64_t expire_ms)
{
    keyspace->expire_count -= entry->expire_ms != 0;
    keyspace->expire_count += expire_ms != 0;
    entry->expire_ms = expire_ms;
}

/* ---- Values ----------------------------------------------------------------- */

static void clock_add(struct keyspace *keyspace, struct value *value)
{
    value->newer = NULL;
    value->older = keyspace->newest;
    if (keyspace->newest != NULL)
        keyspace->newest->newer = value;
    else
        keyspace->oldest = value;
    keyspace->newest = value;
}

static void clock_remove(struct keyspace *keyspace, struct value *value)
{
    if (value->newer != NULL)
        value->newer->older = value->older;
    else
        keyspace->newest = value->older;
    if (value->older != NULL)
        value->older->newer = value->newer;
    else
        keyspace->oldest = value->newer;
    value->newer = NULL;
    value->older = NULL;
}

static void entry_empty(struct keyspace *keyspace, struct entry *entry)
{
    assert(entry->where == WHERE_INLINE);
    keyspace->value_bytes -= entry->bytes;
    entry->bytes = 0;
}

void keyspace_set_value(struct keyspace *keyspace, struct entry *entry, struct value *value)
{
    entry_empty(keyspace, entry);
    entry->where = WHERE_MEMORY;
    entry->value = value;
    entry->bytes = value->bytes;
    value->entry = entry;
    clock_add(keyspace, value);
    keyspace->memory_count++;
    keyspace->value_bytes += entry->bytes;
}

void keyspace_set_slot(struct keyspace *keyspace, struct entry *entry, struct weir_slot slot,
                       uint32_t bytes)
{
    entry_empty(keyspace, entry);
    entry->where = WHERE_SLOT;
    entry->slot = slot;
    entry->bytes = bytes;
    keyspace->slot_count++;
    keyspace->value_bytes += bytes;
}

void keyspace_set_inline(struct keyspace *keyspace, struct entry *entry, const char *data,
                         size_t bytes)
{
    assert(bytes <= entry->capacity);
    entry_empty(keyspace, entry);
    if (bytes > 0)
        memcpy(entry_inline(entry), data, bytes);
    entry->bytes = (uint32_t)bytes;
    keyspace->value_bytes += bytes;
}

struct value *keyspace_take_value(struct keyspace *keyspace, struct entry *entry)
{
    struct value *value = entry->value;

    assert(entry->where == WHERE_MEMORY);
    clock_remove(keyspace, value);
    value->entry = NULL;
    entry->where = WHERE_INLINE;
    keyspace->memory_count--;
    entry_empty(keyspace, entry);
    return value;
}

struct weir_slot keyspace_take_slot(struct keyspace *keyspace, struct entry *entry)
{
    const struct weir_slot slot = entry->slot;

    assert(entry->where == WHERE_SLOT);
    entry->where = WHERE_INLINE;
    keyspace->slot_count--;
    entry_empty(keyspace, entry);
    return slot;
}

void keyspace_spare(struct keyspace *keyspace, struct value *value)
{
    clock_remove(keyspace, value);
    clock_add(keyspace, value);
}

struct value *keyspace_coldest(struct keyspace *keyspace, uint32_t steps)
{
    for (; steps > 0 && keyspace->oldest != NULL; steps--) {
        struct value *value = keyspace->oldest;

        if (!value->entry->was_used)
            return value;
        value->entry->was_used = false;
        keyspace_spare(keyspace, value);
    }
    return NULL;
}

/* ---- Walks ------------------------------------------------------------------ */

void keyspace_scan(struct keyspace *keyspace, uint64_t *cursor, uint32_t buckets,
                   void (*visit)(void *context, struct entry *entry), void *context)
{
    for (; buckets > 0; buckets--) {
        const uint64_t first = UINT64_C(1) << keyspace->bits[0];
        const uint64_t second = keyspace->tables[1] != NULL ? UINT64_C(1) << keyspace->bits[1] : 0;
        struct entry *entry;

        if (*cursor >= first + second)
            *cursor = 0;
        entry =
            *cursor < first ? keyspace->tables[0][*cursor] : keyspace->tables[1][*cursor - first];
        ++*cursor;
        while (entry != NULL) {
            struct entry *next = entry->next;

            visit(context, entry);
            entry = next;
        }
    }
}

struct entry *keyspace_any(struct keyspace *keyspace, uint64_t *cursor)
{
    const uint64_t first = UINT64_C(1) << keyspace->bits[0];
    const uint64_t all =
        first + (keyspace->tables[1] != NULL ? UINT64_C(1) << keyspace->bits[1] : 0);

    if (keyspace->count == 0)
        return NULL;
    for (;; ++*cursor) {
        struct entry *entry;

        if (*cursor >= all)
            *cursor = 0;
        entry =
            *cursor < first ? keyspace->tables[0][*cursor] : keyspace->tables[1][*cursor - first];
        if (entry != NULL)
            return entry;
    }
}
