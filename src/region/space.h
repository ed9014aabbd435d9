/* SPDX-License-Identifier: MIT */
#ifndef WEIR_REGION_SPACE_H
#define WEIR_REGION_SPACE_H

/*
 * space - the row of extents, for space.c and for quick.c, which does the same
 * in fewer steps
 */

#include "region/region_state.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/fence.h"

static inline uint64_t weir__space_offset(const struct weir_region *region, uint32_t index)
{
    return weir__entry_offset(weir__region_entry(region, index));
}

static inline uint64_t weir__space_bytes(const struct weir_region *region, uint32_t index)
{
    return weir__entry_space(weir__region_entry(region, index));
}

static inline uint64_t weir__space_end(const struct weir_region *region, uint32_t index)
{
    return weir__space_offset(region, index) + weir__space_bytes(region, index);
}

static inline enum weir__extent_state weir__space_state(const struct weir_region *region,
                                                        uint32_t index)
{
    return weir__entry_state(weir__region_entry(region, index));
}

static inline uint32_t weir__space_previous(const struct weir_region *region, uint32_t index)
{
    return weir__entry_previous(weir__region_entry(region, index));
}

static inline uint32_t weir__space_next(const struct weir_region *region, uint32_t index)
{
    return weir__entry_next(weir__region_entry(region, index));
}

/* Extents of whole granules without an owner: everything that is not an item. */
static inline void weir__space_set(struct weir_region *region, uint32_t index, uint64_t offset,
                                   uint64_t bytes, enum weir__extent_state state)
{
    struct weir__entry *entry = weir__region_entry(region, index);

    weir__word_store(&entry->place, weir__entry_place(offset, bytes));
    weir__word_store(&entry->tag, weir__entry_tag(weir__entry_generation(entry), 0, state, bytes));
}

/* @index holds [offset, end) now, and with it the first bytes of chunks there (R4). */
static inline void weir__space_claim(struct weir_region *region, uint32_t index, uint64_t offset,
                                     uint64_t end)
{
    uint64_t chunk = (offset + LAYOUT_CHUNK_BYTES - 1) / LAYOUT_CHUNK_BYTES;

    for (; chunk * LAYOUT_CHUNK_BYTES < end; chunk++)
        region->chunks.table[chunk].first = index;
}

static inline void weir__space_link(struct weir_region *region, uint32_t previous, uint32_t next)
{
    if (previous != 0)
        weir__entry_set_next(weir__region_entry(region, previous), next);
    if (next != 0)
        weir__entry_set_previous(weir__region_entry(region, next), previous);
    else
        region->last = previous;
}

/*
 * What is said of the item that @index holds, but that it is one. Returns the tag
 * that says so, which is stored when its bytes are there; then views may look.
 */
static inline uint64_t weir__space_describe(struct weir_region *region, uint32_t index,
                                            uint64_t offset, uint64_t bytes,
                                            struct weir_label label, enum weir__extent_state state)
{
    struct weir__entry *entry = weir__region_entry(region, index);
    struct weir__figures *figures = weir__region_figures(region);
    uint32_t generation = weir__slots_next_generation(&region->slots, index);

    weir__word_store(&region->slots.sums[index], 0);
    weir__word_store(&entry->place, weir__entry_place(offset, bytes));
    weir__word_store(&entry->key, label.key);

    /* Not left to the tick: a view compares handles with it. */
    weir__word_store(&figures->entry_count, region->slots.used_count);
    weir__word_add(&figures->slot_count, 1);
    weir__word_add(&figures->live_bytes, bytes);
    weir__word_add(&figures->put_bytes, bytes);
    region->put_count++;
    return weir__entry_tag(generation, label.owner, state, bytes);
}

static inline void weir__space_publish(struct weir_region *region, uint32_t index, uint64_t tag)
{
    weir__fence_release();
    weir__word_store(&weir__region_entry(region, index)->tag, tag);
}

/* Both at once, for one whose bytes are there, or come later. */
static inline struct weir_slot weir__space_name(struct weir_region *region, uint32_t index,
                                                uint64_t offset, uint64_t bytes,
                                                struct weir_label label,
                                                enum weir__extent_state state)
{
    uint64_t tag = weir__space_describe(region, index, offset, bytes, label, state);

    weir__space_publish(region, index, tag);
    return (struct weir_slot){index, weir__tag_generation(tag)};
}

/* An item of @bytes is none any more. */
static inline void weir__space_count_free(struct weir_region *region, uint64_t bytes)
{
    struct weir__figures *figures = weir__region_figures(region);
    uint64_t live_bytes = weir__word_load(&figures->live_bytes);

    region->live_bytes_peak = weir__max(region->live_bytes_peak, live_bytes);
    weir__word_store(&figures->live_bytes, live_bytes - bytes);
    weir__word_add(&figures->slot_count, -UINT64_C(1));
}

/*
 * Whether the free extent in front of @index is the root of the treap, as it nearly
 * always is in a queue: frees at random find out without a look at its entry.
 */
static inline bool weir__space_follows_root(const struct weir_region *region, uint32_t index)
{
    uint32_t previous = weir__space_previous(region, index);

    return previous != 0 && previous == region->extents.tree.root;
}

/* All of the extent @index, which is in no index and whose entry is spent, under another entry. */
uint32_t weir__space_change_entry(struct weir_region *region, uint32_t index);

/*
 * It does, and what @index holds, [from, end) of one chunk that may be stored to, is
 * free and makes the root longer. False: there is more to be joined, nothing has
 * changed.
 */
bool weir__space_extend_root(struct weir_region *region, uint32_t index, uint64_t from,
                             uint64_t end);

/* What @index holds, [from, end) of one chunk that may be stored to, is free; the mark may come down. */
void weir__space_add_free(struct weir_region *region, uint32_t index, uint64_t from, uint64_t end);

#endif
