/* SPDX-License-Identifier: MIT */
/*
 * clean - space back from chunks that are mostly holes
 *
 *      cold, sparse          fetched, verified         stored anew
 *      | a |  | b |    |  -> a b c in buffers  ->  | a b c ...   |
 *      nothing live: the chunk is emptied, all of it can be stored to
 *
 * Holes in chunks that are on disk cannot be filled without reading the chunk
 * back. So when they are more than a quarter of what is live, the chunk with the
 * fewest live bytes (greedy, as in the log-structured file system of Rosenblum
 * and Ousterhout, 1991) is emptied: its items are fetched like any others, in
 * small batches inside the fetch budget, and stored at a new place. The slot
 * stays, for it names the entry and not the place. With everything in memory
 * nothing rests, and none of this happens.
 *
 * What is pinned, under construction or too large for a buffer stays; a chunk
 * that holds such an item is left alone until something in it is freed.
 *
 *   L1  asked_count requests of ours are under way or told
 */
#include "region/region_state.h"

#include "base/bits.h"
#include "base/check.h"

#include <errno.h>
#include <string.h>

#define CLEAN_NONE        CHUNK_NO
#define CLEAN_BATCH_COUNT 1024
#define CLEAN_CHUNKS_MIN  3 /* one is filled, one is written, one is read */
#define CLEAN_LIVE_MAX    (LAYOUT_CHUNK_BYTES * 3 / 4)
#define CLEAN_REST_MIN    (4 * LAYOUT_CHUNK_BYTES) /* below that it is not worth it */

static uint64_t clean_live(const struct weir_region *region)
{
    return region->mark_bytes - region->extents.free_bytes - region->resting_bytes;
}

/* Too much rests: a quarter of what is live. */
static bool clean_is_due(const struct weir_region *region)
{
    return region->resting_bytes > CLEAN_REST_MIN && region->resting_bytes > clean_live(region) / 4;
}

bool weir__clean_is_behind(const struct weir_region *region)
{
    return region->resting_bytes > 2 * CLEAN_REST_MIN &&
           region->resting_bytes > clean_live(region) * 2 / 5;
}

/*
 * With most of the memory pinned the chunk that is filled must be written before
 * it is full, and as much rests there as was gained elsewhere.
 */
static bool clean_is_cramped(const struct weir_region *region)
{
    return region->chunks.resident_max < region->chunks.pinned_count + CLEAN_CHUNKS_MIN;
}

static bool clean_may_take(const struct weir_region *region, uint64_t chunk)
{
    enum weir__chunk_state state = weir__chunk_state(&region->chunks, chunk);

    if (state != CHUNK_CLEAN && state != CHUNK_COLD)
        return false;
    return weir__chunk_pins(&region->chunks, chunk) == 0 &&
           !weir__chunk_is_aside(&region->chunks, chunk);
}

void weir__clean_look_again(struct weir_region *region, const struct weir__entry *entry)
{
    uint64_t first = weir__chunk_of(weir__entry_offset(entry));
    uint64_t last = weir__chunk_of(weir__entry_offset(entry) + weir__entry_space(entry) - 1);

    for (uint64_t chunk = first; chunk <= last; chunk++)
        if (weir__chunk_is_aside(&region->chunks, chunk))
            weir__chunk_file(&region->chunks, chunk);
}

/*
 * The chunk with the fewest live bytes, if at least a quarter of it rests. What is
 * pinned is set aside until it is not.
 */
static uint64_t clean_choose(struct weir_region *region)
{
    uint64_t chunk;

    while ((chunk = weir__chunks_emptiest(&region->chunks, CHUNK_KIND_WRITTEN, CHUNK_NO)) !=
           CHUNK_NO) {
        if (weir__chunk_live(&region->chunks, chunk) >= CLEAN_LIVE_MAX)
            return CLEAN_NONE;
        if (clean_may_take(region, chunk))
            return chunk;
        weir__chunk_set_aside(&region->chunks, chunk);
    }
    return CLEAN_NONE;
}

/* Not again before something in it is freed or unpinned. */
static void clean_leave(struct weir_region *region)
{
    weir__chunk_set_aside(&region->chunks, region->cleaner.chunk);
    region->cleaner.chunk = CLEAN_NONE;
}

/* The next live items of the chunk, a batch of them; 0: one of them cannot be moved. */
static size_t clean_gather(const struct weir_region *region, struct weir_slot *slots)
{
    const struct weir__cleaner *cleaner = &region->cleaner;
    uint64_t end = (cleaner->chunk + 1) * LAYOUT_CHUNK_BYTES;
    uint64_t bytes_max = (region->fetches.bytes_max - region->fetches.step_bytes) / 2;
    uint64_t bytes = 0;
    size_t count = 0;

    for (uint32_t index = region->chunks.table[cleaner->chunk].first; index != 0;) {
        const struct weir__entry *entry = weir__region_entry(region, index);
        struct weir_slot slot = {index, weir__entry_generation(entry)};
        enum weir__extent_state state = weir__entry_state(entry);

        if (weir__entry_offset(entry) >= end || count == CLEAN_BATCH_COUNT)
            break;
        index = weir__entry_next(entry);
        if (state == EXTENT_FREE || state == EXTENT_RESTING)
            continue;
        if (state != EXTENT_LIVE || weir__entry_bytes(entry) > bytes_max ||
            weir__fetches_are_held(region, slot))
            return 0;
        bytes += weir__entry_space(entry);
        if (bytes > bytes_max && count > 0)
            break;
        slots[count++] = slot;
    }
    return count;
}

/* One item has come: give it a new place. 1: moved; 0: it stays; -EAGAIN: no room now. */
static int clean_move(struct weir_region *region, struct weir_slot slot)
{
    struct weir__entry *entry = weir__slots_find(&region->slots, slot, EXTENT_LIVE);
    const void *data;
    uint32_t target;

    if (entry == NULL || weir__fetches_are_held(region, slot))
        return 0;

    uint64_t bytes = weir__entry_bytes(entry);
    uint64_t space = weir__entry_space(entry);
    if (weir__chunks_are_storable(&region->chunks, weir__entry_offset(entry), space))
        return 0; /* it is out already */
    int r = weir__region_take(region, space, !region->cleaner.is_full, &target);
    region->cleaner.is_full |= r == -ENOSPC || r == -EDQUOT;
    if (r < 0)
        return r == -EAGAIN ? r : 0;
    /* Only now: room for the new place may have been made by dropping the old one. */
    if (weir_region_at(region, slot, &data, NULL) < 0) {
        weir__space_release(region, target);
        return 0;
    }

    uint64_t to = weir__entry_offset(weir__region_entry(region, target));
    weir__chunks_touch(&region->chunks, to, space);
    if (bytes > 0)
        memcpy(region->store.base + to, data, bytes);
    weir__space_move(region, slot.index, target);
    region->cleaner.moved_bytes += bytes;
    return 1;
}

/* Whether waiting helps: something is being read, or there will be room for what came. */
static bool clean_is_moving(const struct weir_region *region)
{
    if (region->cleaner.asked_count == 0)
        return false;
    return region->fetches.reading_count > 0 || region->chunks.queues[CHUNK_WRITING].count > 0;
}

/*
 * What has come is moved, as far as there is room. Where nothing is under way
 * that could make room, what is in memory is pinned: it stays, and its buffers
 * are for those who perhaps wait for them before they unpin.
 */
static void clean_take_told(struct weir_region *region)
{
    struct weir__cleaner *cleaner = &region->cleaner;
    struct weir_slot slot;
    bool has_room = true;

    while (weir__fetches_next_own(region, &slot)) {
        int r = has_room ? clean_move(region, slot) : 0;
        if (r == -EAGAIN) {
            weir__pager_advance(region);
            if (region->chunks.queues[CHUNK_WRITING].count > 0)
                return;
            has_room = false;
            r = 0;
        }
        WEIR_ASSERT(cleaner->asked_count > 0); /* L1 */
        cleaner->moved_count += (uint32_t)r;
        cleaner->asked_count--;
        weir__fetches_done_own(region);
    }
}

static void clean_ask(struct weir_region *region)
{
    struct weir__cleaner *cleaner = &region->cleaner;
    struct weir_slot slots[CLEAN_BATCH_COUNT];
    size_t count = clean_gather(region, slots);

    cleaner->moved_count = 0;
    cleaner->is_full = false;
    cleaner->asked_count = (uint32_t)weir__fetches_ask_own(region, slots, count);
    if (cleaner->asked_count == 0)
        clean_leave(region);
}

bool weir__clean_advance(struct weir_region *region, bool urgent)
{
    struct weir__cleaner *cleaner = &region->cleaner;

    if (!region->pager.writes_back)
        return false;

    bool had_batch = cleaner->asked_count > 0;
    clean_take_told(region);
    if (cleaner->asked_count > 0)
        return clean_is_moving(region);
    if (cleaner->chunk != CLEAN_NONE && !clean_may_take(region, cleaner->chunk))
        cleaner->chunk = CLEAN_NONE; /* emptied, or brought back by somebody else */
    if (cleaner->chunk != CLEAN_NONE && had_batch && cleaner->moved_count == 0)
        clean_leave(region);
    if (region->pager.suspect_count > 0 || clean_is_cramped(region))
        return false;
    if (cleaner->chunk == CLEAN_NONE && (urgent || clean_is_due(region)))
        cleaner->chunk = clean_choose(region);
    if (cleaner->chunk != CLEAN_NONE)
        clean_ask(region);
    return clean_is_moving(region) || !weir__list_is_empty(&region->fetches.told_own);
}
