/* SPDX-License-Identifier: MIT */
#ifndef WEIR_REGION_QUICK_H
#define WEIR_REGION_QUICK_H

/*
 * quick - the way of nearly every put and free
 *
 *      put     find a place   -> may be stored to at once? -> take, copy, name it
 *      free    is it that one -> nobody else is concerned?  -> take its name, merge
 *
 * Here is what region.c and space.c do, in one piece and in as few steps as it
 * can be, where nothing has to be decided, admitted, moved or waited for: the
 * item lies in one chunk, which is DIRTY. Everything else is left to them, as
 * if it had not been tried.
 *
 * Few steps are not only less work. The bytes of a put and the entry of a free
 * come from memory as a rule, and a core has some 450 instructions under way: as
 * many calls as fit in there wait at the same time, and not one after the other.
 */
#include "region/region_state.h"
#include "region/space.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/fence.h"

#include <string.h>

/* Whether a store to it needs nobody's leave: no chunk is begun and none has to come back. */
static inline bool weir__quick_may_store(const struct weir_region *region, uint64_t offset,
                                         uint64_t space)
{
    return offset + space <= region->store.file_bytes && weir__chunk_is_one(offset, space) &&
           weir__chunk_state(&region->chunks, weir__chunk_of(offset)) == CHUNK_DIRTY;
}

/* ---- Put ---------------------------------------------------------------- */

/* An entry at the mark, which moves right over it; its place and tag are still to be set. */
static inline uint32_t weir__quick_bump(struct weir_region *region, uint64_t offset, uint64_t space)
{
    uint32_t index = weir__slots_take(&region->slots);
    uint32_t last = region->last;

    weir__word_store(&weir__region_entry(region, index)->span, last);
    if (WEIR_LIKELY(last != 0))
        weir__entry_set_next(weir__region_entry(region, last), index);
    region->last = index;
    if (WEIR_UNLIKELY(offset % LAYOUT_CHUNK_BYTES == 0))
        region->chunks.table[weir__chunk_of(offset)].first = index;
    region->mark_bytes = offset + space;
    return index;
}

/* The front of the free extent @hole, or all of it; the same is still to be done. */
static inline uint32_t weir__quick_carve(struct weir_region *region, uint32_t hole, uint64_t offset,
                                         uint64_t space)
{
    uint64_t bytes = weir__space_bytes(region, hole);

    WEIR_ASSERT(weir__space_state(region, hole) == EXTENT_FREE);
    if (bytes == space) {
        weir__extents_remove(&region->extents, hole);
        return WEIR_LIKELY(!weir__slots_is_spent(&region->slots, hole))
                   ? hole
                   : weir__space_change_entry(region, hole);
    }
    uint32_t index = weir__slots_take(&region->slots);
    if (bytes - space > EXTENT_BIN_BYTES_MAX) {
        weir__extents_resize(&region->extents, hole, offset + space, bytes - space);
    } else {
        weir__extents_remove(&region->extents, hole);
        weir__space_set(region, hole, offset + space, bytes - space, EXTENT_FREE);
        weir__extents_insert(&region->extents, hole);
    }
    weir__space_link(region, weir__space_previous(region, hole), index);
    weir__space_link(region, index, hole);
    weir__space_claim(region, index, offset, offset + space);
    return index;
}

/* As weir_region_put(); false: the long way, nothing has changed. */
static inline bool weir__quick_put(struct weir_region *region, const void *data, size_t bytes,
                                   struct weir_label label, struct weir_slot *ret_slot)
{
    uint64_t space = weir__extent_space(bytes);
    uint32_t hole = weir__extents_find(&region->extents, space);
    uint64_t offset = hole != 0 ? weir__space_offset(region, hole) : region->mark_bytes;

    if (WEIR_UNLIKELY(!weir__quick_may_store(region, offset, space)) ||
        WEIR_UNLIKELY(weir__slots_spare(&region->slots) < region->spare_ahead))
        return false;
    if (hole == 0 && !region->pager.writes_back && WEIR_UNLIKELY(weir__compact_is_due(region)))
        return false;

    uint32_t index = hole == 0 ? weir__quick_bump(region, offset, space)
                               : weir__quick_carve(region, hole, offset, space);
    weir__chunk_add_live(&region->chunks, weir__chunk_of(offset), space);
    uint64_t tag = weir__space_describe(region, index, offset, bytes, label, EXTENT_LIVE);
    *ret_slot = (struct weir_slot){index, weir__tag_generation(tag)};
    /* As late as can be: what comes behind it waits for its source. */
    if (WEIR_LIKELY(bytes > 0))
        memcpy(region->store.base + offset, data, bytes);
    weir__space_publish(region, index, tag);
    return true;
}

/* ---- Free --------------------------------------------------------------- */

/* As weir_region_free(); false: the long way, nothing has changed. */
static inline bool weir__quick_free(struct weir_region *region, struct weir_slot slot)
{
    struct weir__entry *entry = weir__slots_find(&region->slots, slot, EXTENT_LIVE);

    if (WEIR_UNLIKELY(entry == NULL) || WEIR_UNLIKELY(region->wipes) ||
        WEIR_UNLIKELY(region->fetches.hold_count > 0) ||
        weir__sync_is_confirmed(region, slot.index))
        return false;

    uint64_t offset = weir__entry_offset(entry);
    uint64_t bytes = weir__entry_bytes(entry);
    uint64_t space = weir__extent_space(bytes);
    if (WEIR_UNLIKELY(!weir__quick_may_store(region, offset, space)))
        return false;

    weir__space_count_free(region, bytes);
    weir__chunk_sub_live(&region->chunks, weir__chunk_of(offset), space);
    weir__word_store(&entry->tag, weir__entry_tag(slot.generation + 1, 0, EXTENT_ZOMBIE, space));
    /* A view that sees bytes of the next item sees this tag too. */
    weir__fence_release();
    if (!weir__space_follows_root(region, slot.index) ||
        !weir__space_extend_root(region, slot.index, offset, offset + space))
        weir__space_add_free(region, slot.index, offset, offset + space);
    return true;
}

#endif
