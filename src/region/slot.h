/* SPDX-License-Identifier: MIT */
#ifndef WEIR_REGION_SLOT_H
#define WEIR_REGION_SLOT_H

/*
 * slot - the table of entries: which are in use, and their generations
 *
 * Pure: the tables lie in memory that the region mapped and grows ahead; what
 * is taken here is there.
 */

#include "base/check.h"
#include "base/region_layout.h"

#include <weir/base.h>

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>

#define SLOT_RECENT_COUNT 64
#define SLOT_LEVEL_COUNT  6
#define SLOT_COUNT_LIMIT  ((UINT64_C(1) << 32) - 1)
#define SLOT_AGE_MAX      (UINT32_C(1) << 31) /* so far a generation goes on */

struct weir__slots {
    struct weir__entry *entries;        /* fixed; entry 0 is never used */
    uint64_t *sums;                     /* fixed; XXH3 of the item, 0: not yet known */
    uint64_t *levels[SLOT_LEVEL_COUNT]; /* fixed; a bit for each vacant entry; for each word; ... */
    uint32_t recent[SLOT_RECENT_COUNT]; /* a stack: vacant as well, but without a bit */
    uint32_t recent_count;
    uint32_t vacant_count; /* bits of the first level */
    uint32_t used_count;   /* entries 1 .. used_count were ever used */
    uint32_t ready_count;  /* entries up to here have their memory */
    uint32_t count_max;    /* fixed */
    uint32_t generation;   /* fixed; even: what a new entry begins with */
};

/* How many entries can be taken before the tables must grow. */
static inline uint64_t weir__slots_spare(const struct weir__slots *slots)
{
    return (uint64_t)slots->recent_count + slots->vacant_count +
           (slots->ready_count - slots->used_count);
}

/* How many words a level has for entries 0 .. @count - 1. */
static inline uint64_t weir__slots_words(uint64_t count, uint32_t level)
{
    uint64_t unit = UINT64_C(1) << 6 * (level + 1);

    return (count + unit - 1) / unit;
}

/* All levels lie one behind the other from @words on, for entries up to count_max. */
void weir__slots_lay(struct weir__slots *slots, uint64_t *words);

/* The lowest that have a bit become the recent ones; there are some. Or the oldest of these get bits. */
void weir__slots_refill(struct weir__slots *slots);
void weir__slots_spill(struct weir__slots *slots);

void weir__slots_audit(const struct weir__slots *slots);

/* The entry of @slot if it is that item, in state @state; else NULL. */
static inline struct weir__entry *weir__slots_find(const struct weir__slots *slots,
                                                   struct weir_slot slot,
                                                   enum weir__extent_state state)
{
    if (slot.index == 0 || slot.index > slots->used_count || slot.generation % 2 == 0)
        return NULL;

    struct weir__entry *entry = &slots->entries[slot.index];
    uint64_t tag = weir__word_load(&entry->tag);
    if (weir__tag_generation(tag) != slot.generation || weir__tag_state(tag) != state)
        return NULL;
    return entry;
}

/* Why it is not found: its bytes are not those that were put, or it was freed. */
static inline int weir__slots_lost(const struct weir__slots *slots, struct weir_slot slot)
{
    return weir__slots_find(slots, slot, EXTENT_DAMAGED) != NULL ? -EBADMSG : -ESTALE;
}

static inline uint64_t weir__entry_offset(const struct weir__entry *entry)
{
    return weir__place_offset(weir__word_load(&entry->place));
}

static inline uint64_t weir__entry_bytes(const struct weir__entry *entry)
{
    return weir__entry_bytes_of(weir__word_load(&entry->place), weir__word_load(&entry->tag));
}

static inline uint64_t weir__entry_alignment(const struct weir__entry *entry)
{
    return weir__tag_alignment(weir__word_load(&entry->tag));
}

static inline uint64_t weir__entry_space(const struct weir__entry *entry)
{
    return weir__extent_space(weir__entry_bytes(entry));
}

static inline enum weir__extent_state weir__entry_state(const struct weir__entry *entry)
{
    return weir__tag_state(weir__word_load(&entry->tag));
}

static inline uint32_t weir__entry_generation(const struct weir__entry *entry)
{
    return weir__tag_generation(weir__word_load(&entry->tag));
}

static inline uint32_t weir__entry_previous(const struct weir__entry *entry)
{
    return weir__half_load(&entry->span, 0);
}

static inline uint32_t weir__entry_next(const struct weir__entry *entry)
{
    return weir__half_load(&entry->span, 1);
}

static inline void weir__entry_set_previous(struct weir__entry *entry, uint32_t previous)
{
    weir__half_store(&entry->span, 0, previous);
}

static inline void weir__entry_set_next(struct weir__entry *entry, uint32_t next)
{
    weir__half_store(&entry->span, 1, next);
}

/*
 * That of the next item in entry @index, which holds none. Where it has one from before a
 * power loss nobody knows which came behind that: it begins anew, as what is vacant did.
 */
static inline uint32_t weir__slots_next_generation(const struct weir__slots *slots, uint32_t index)
{
    uint32_t generation = weir__entry_generation(&slots->entries[index]);
    bool is_older = generation - slots->generation > SLOT_AGE_MAX;

    WEIR_ASSERT(generation % 2 == 0); /* S1 */
    return (WEIR_UNLIKELY(is_older) ? slots->generation : generation) + 1;
}

/* Whether there is no next generation (S3). */
static inline bool weir__slots_is_spent(const struct weir__slots *slots, uint32_t index)
{
    return weir__entry_generation(&slots->entries[index]) - slots->generation == SLOT_AGE_MAX;
}

/* An entry of state EXTENT_VACANT with an even generation; there must be a spare one. */
static inline uint32_t weir__slots_take(struct weir__slots *slots)
{
    uint32_t index;

    if (slots->recent_count == 0 && slots->vacant_count > 0)
        weir__slots_refill(slots);
    if (slots->recent_count > 0) {
        index = slots->recent[--slots->recent_count];
        WEIR_ASSERT(weir__entry_state(&slots->entries[index]) == EXTENT_VACANT); /* S2 */
        return index;
    }

    WEIR_CHECK(slots->used_count < slots->ready_count);
    index = ++slots->used_count;
    weir__word_store(&slots->entries[index].tag,
                     weir__entry_tag(slots->generation, 0, EXTENT_VACANT, 0));
    return index;
}

/* Give it back; it is in no list and no index any more. */
static inline void weir__slots_give(struct weir__slots *slots, uint32_t index)
{
    struct weir__entry *entry = &slots->entries[index];
    uint32_t generation = weir__entry_generation(entry);

    WEIR_ASSERT(index != 0 && index <= slots->used_count);
    WEIR_ASSERT(generation % 2 == 0); /* S1 */

    weir__word_store(&entry->tag, weir__entry_tag(generation, 0, EXTENT_VACANT, 0));
    weir__word_store(&entry->place, 0);
    weir__word_store(&entry->span, 0);
    weir__word_store(&entry->key, 0);
    if (weir__slots_is_spent(slots, index))
        return;
    if (WEIR_UNLIKELY(slots->recent_count == SLOT_RECENT_COUNT))
        weir__slots_spill(slots);
    slots->recent[slots->recent_count++] = index;
}

#endif
