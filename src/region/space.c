/* SPDX-License-Identifier: MIT */
/*
 * space - which extent an item gets
 *
 *      0                                      mark          file
 *      | live | free | live | resting | live  | never used  |
 *
 * Each byte left of the mark is in exactly one extent. A free extent whose
 * chunks may be stored to is FREE and stands in the index; one whose chunks are
 * on their way to the disk or there already is RESTING and stands in none: it
 * comes back when its chunk is brought back, or when nothing in the chunk is
 * live any more. So a fit never leads to a cold page, and no list is walked to
 * learn that.
 *
 *   R1  mark <= file <= bytes_max; each byte left of the mark is in one extent
 *   R2  no two FREE extents touch, and no two RESTING ones
 *   R3  a FREE extent lies in chunks that may be stored to, a RESTING one in
 *       chunks that may not
 *   R4  chunk.first is the extent that holds the chunk's first byte
 *   R5  the extent that ends at the mark is not FREE: it gave the mark back
 *   R6  an item lies at a multiple of its alignment, wherever it is moved
 */
#include "region/space.h"
#include "region/region_state.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/fence.h"

#include <string.h>

#define SPACE_ITEM_COST                                                                            \
 UINT64_C(512) /* a small item takes as long as so many bytes of a large one */

/* ---- Split and merge, of extents in no index ---------------------------- */

/* The first @bytes of @index become an extent of their own, of the same state. */
static uint32_t space_split(struct weir_region *region, uint32_t index, uint64_t bytes)
{
    uint64_t offset = weir__space_offset(region, index);
    uint64_t end = weir__space_end(region, index);
    enum weir__extent_state state = weir__space_state(region, index);
    uint32_t front = weir__slots_take(&region->slots);
    uint32_t previous = weir__space_previous(region, index);

    WEIR_ASSERT(bytes > 0 && bytes < end - offset);

    weir__space_set(region, front, offset, bytes, state);
    weir__space_set(region, index, offset + bytes, end - offset - bytes, state);
    weir__space_link(region, previous, front);
    weir__space_link(region, front, index);
    weir__space_claim(region, front, offset, offset + bytes);
    return front;
}

/*
 * Two neighbours, [from, middle) and [middle, end), become one, whose words are
 * still to be set; the longer keeps its entry, so that fewer chunks change hands.
 */
static inline uint32_t space_join(struct weir_region *region, uint32_t front, uint32_t back,
                                  uint64_t from, uint64_t middle, uint64_t end)
{
    WEIR_ASSERT(from < middle && middle < end);

    if (middle - from >= end - middle) {
        weir__space_link(region, front, weir__space_next(region, back));
        weir__space_claim(region, front, middle, end);
        weir__slots_give(&region->slots, back);
        return front;
    }
    weir__space_link(region, weir__space_previous(region, front), back);
    weir__space_claim(region, back, from, middle);
    weir__slots_give(&region->slots, front);
    return back;
}

WEIR_COLD uint32_t weir__space_change_entry(struct weir_region *region, uint32_t index)
{
    uint64_t offset = weir__space_offset(region, index);
    uint64_t end = weir__space_end(region, index);
    uint32_t fresh = weir__slots_take(&region->slots);

    weir__space_set(region, fresh, offset, end - offset, weir__space_state(region, index));
    weir__space_link(region, weir__space_previous(region, index), fresh);
    weir__space_link(region, fresh, weir__space_next(region, index));
    weir__space_claim(region, fresh, offset, end);
    weir__slots_give(&region->slots, index);
    return fresh;
}

/* ---- Free extents ------------------------------------------------------- */

static void space_list_as(struct weir_region *region, uint32_t index, enum weir__extent_state state)
{
    WEIR_ASSERT(weir__space_state(region, index) == state);
    if (WEIR_LIKELY(state == EXTENT_FREE)) {
        weir__extents_insert(&region->extents, index);
    } else {
        region->resting_count++;
        region->resting_bytes += weir__space_bytes(region, index);
        weir__stage_add_hole(region, index);
    }
}

static void space_unlist_as(struct weir_region *region, uint32_t index,
                            enum weir__extent_state state)
{
    WEIR_ASSERT(weir__space_state(region, index) == state);
    if (WEIR_LIKELY(state == EXTENT_FREE)) {
        weir__extents_remove(&region->extents, index);
    } else {
        WEIR_ASSERT(state == EXTENT_RESTING);
        weir__stage_remove_hole(region, index);
        region->resting_count--;
        region->resting_bytes -= weir__space_bytes(region, index);
    }
}

static void space_list(struct weir_region *region, uint32_t index)
{
    space_list_as(region, index, weir__space_state(region, index));
}

static void space_unlist(struct weir_region *region, uint32_t index)
{
    space_unlist_as(region, index, weir__space_state(region, index));
}

/*
 * An extent in no index is free in this way: join it with its neighbours of the
 * same kind (R2) and list it; returns what it became.
 */
static inline uint32_t space_add_range(struct weir_region *region, uint32_t index, uint64_t from,
                                       uint64_t end, enum weir__extent_state state)
{
    uint32_t previous = weir__space_previous(region, index);
    uint32_t next = weir__space_next(region, index);
    /* Both are looked at before either is changed: each may be a cache miss. */
    bool joins_previous = previous != 0 && weir__space_state(region, previous) == state;
    bool joins_next = next != 0 && weir__space_state(region, next) == state;

    if (joins_previous) {
        uint64_t middle = from;
        WEIR_ASSERT(weir__space_end(region, previous) == middle);
        space_unlist_as(region, previous, state);
        from = weir__space_offset(region, previous);
        index = space_join(region, previous, index, from, middle, end);
    }
    if (joins_next) {
        uint64_t middle = end;
        WEIR_ASSERT(weir__space_offset(region, next) == middle);
        space_unlist_as(region, next, state);
        end = weir__space_end(region, next);
        index = space_join(region, index, next, from, middle, end);
    }
    weir__space_set(region, index, from, end - from, state);
    space_list_as(region, index, state);
    return index;
}

static uint32_t space_add(struct weir_region *region, uint32_t index, enum weir__extent_state state)
{
    return space_add_range(region, index, weir__space_offset(region, index),
                           weir__space_end(region, index), state);
}

/* It comes down; how high it was is not noted as it rises, which every put would do. */
static void space_set_mark(struct weir_region *region, uint64_t offset)
{
    region->mark_peak = weir__region_mark_peak(region);
    region->mark_bytes = offset;
}

/* The last free extent gives the mark back (R5). */
static void space_lower_mark(struct weir_region *region)
{
    uint32_t last = region->last;

    if (last == 0 || weir__space_state(region, last) != EXTENT_FREE)
        return;

    uint64_t offset = weir__space_offset(region, last);
    space_unlist(region, last);
    weir__space_claim(region, 0, offset, region->mark_bytes);
    weir__space_link(region, weir__space_previous(region, last), 0);
    weir__slots_give(&region->slots, last);
    space_set_mark(region, offset);
}

bool weir__space_extend_root(struct weir_region *region, uint32_t index, uint64_t from,
                             uint64_t end)
{
    uint32_t previous = weir__space_previous(region, index);
    uint32_t next = weir__space_next(region, index);

    WEIR_ASSERT(previous == region->extents.tree.root);
    if (next == 0 || weir__space_state(region, next) == EXTENT_FREE)
        return false;

    weir__space_link(region, previous, next);
    weir__space_claim(region, previous, from, end);
    weir__slots_give(&region->slots, index);
    uint64_t offset = weir__space_offset(region, previous);
    weir__extents_resize(&region->extents, previous, offset, end - offset);
    return true;
}

void weir__space_add_free(struct weir_region *region, uint32_t index, uint64_t from, uint64_t end)
{
    index = space_add_range(region, index, from, end, EXTENT_FREE);
    if (WEIR_UNLIKELY(index == region->last)) /* else nothing new is there */
        space_lower_mark(region);
}

static enum weir__extent_state space_kind(const struct weir_region *region, uint64_t offset)
{
    enum weir__chunk_state state = weir__chunk_state(&region->chunks, weir__chunk_of(offset));

    return weir__chunk_is_storable(state) ? EXTENT_FREE : EXTENT_RESTING;
}

/* Where the run of chunks of one kind that holds @offset ends, at most @end. */
static uint64_t space_run_end(const struct weir_region *region, uint64_t offset, uint64_t end)
{
    enum weir__extent_state kind = space_kind(region, offset);
    uint64_t at = weir__round_down(offset, LAYOUT_CHUNK_BYTES) + LAYOUT_CHUNK_BYTES;

    while (at < end && space_kind(region, at) == kind)
        at += LAYOUT_CHUNK_BYTES;
    return weir__min(at, end);
}

/*
 * Nothing is left of what was in [offset, end), as far as it may be stored to now;
 * the rest follows when its chunk is emptied or brought back.
 */
static void space_wipe(const struct weir_region *region, uint64_t offset, uint64_t end)
{
    while (offset < end) {
        uint64_t chunk = weir__chunk_of(offset);
        uint64_t part_end = weir__min(end, (chunk + 1) * LAYOUT_CHUNK_BYTES);
        if (weir__chunk_state(&region->chunks, chunk) == CHUNK_DIRTY)
            memset(region->store.base + offset, 0, part_end - offset);
        offset = part_end;
    }
}

/* An extent of several chunks, which may be of both kinds. */
static void space_release_many(struct weir_region *region, uint32_t index)
{
    uint64_t offset = weir__space_offset(region, index);
    uint64_t end = weir__space_end(region, index);

    weir__space_set(region, index, offset, end - offset, EXTENT_ZOMBIE);
    for (uint64_t at = offset; at < end;) {
        uint64_t run_end = space_run_end(region, at, end);
        uint32_t piece = run_end < end ? space_split(region, index, run_end - at) : index;
        space_add(region, piece, space_kind(region, at));
        at = run_end;
    }
    for (uint64_t chunk = weir__chunk_of(offset); chunk <= weir__chunk_of(end - 1); chunk++)
        if (weir__chunk_live(&region->chunks, chunk) == 0)
            weir__pager_empty(region, chunk);
}

void weir__space_release(struct weir_region *region, uint32_t index)
{
    uint64_t offset = weir__space_offset(region, index);
    uint64_t bytes = weir__space_bytes(region, index);

    WEIR_ASSERT(weir__entry_generation(weir__region_entry(region, index)) % 2 == 0);

    if (WEIR_UNLIKELY(region->wipes))
        space_wipe(region, offset, offset + bytes);
    weir__chunks_sub_live(&region->chunks, offset, bytes);
    if (WEIR_LIKELY(weir__chunk_is_one(offset, bytes))) {
        uint64_t chunk = weir__chunk_of(offset);
        index = space_add(region, index, space_kind(region, offset));
        if (WEIR_UNLIKELY(weir__chunk_live(&region->chunks, chunk) == 0))
            weir__pager_empty(region, chunk);
        else if (WEIR_LIKELY(index != region->last)) /* R5: else nothing new is there */
            return;
    } else {
        space_release_many(region, index);
    }
    space_lower_mark(region);
}

/*
 * Free extents of @chunk turn from one kind into the other, as its state just
 * did; what of them lies outside stays as it is.
 */
static void space_turn(struct weir_region *region, uint64_t chunk, enum weir__extent_state from,
                       enum weir__extent_state to)
{
    uint64_t begin = chunk * LAYOUT_CHUNK_BYTES;
    uint64_t end = weir__min(begin + LAYOUT_CHUNK_BYTES, region->mark_bytes);
    uint32_t index = begin < end ? region->chunks.table[chunk].first : 0;

    while (index != 0 && weir__space_offset(region, index) < end) {
        if (weir__space_state(region, index) == from) {
            space_unlist(region, index);
            if (weir__space_offset(region, index) < begin)
                space_list(region,
                           space_split(region, index, begin - weir__space_offset(region, index)));
            if (weir__space_end(region, index) > end) {
                uint32_t inside =
                    space_split(region, index, end - weir__space_offset(region, index));
                space_list(region, index);
                index = inside;
            }
            if (region->wipes && to == EXTENT_FREE)
                space_wipe(region, weir__space_offset(region, index),
                           weir__space_end(region, index));
            index = space_add(region, index, to);
        }
        index = weir__space_next(region, index);
    }
}

void weir__space_rest(struct weir_region *region, uint64_t chunk)
{
    space_turn(region, chunk, EXTENT_FREE, EXTENT_RESTING);
}

void weir__space_wake(struct weir_region *region, uint64_t chunk)
{
    space_turn(region, chunk, EXTENT_RESTING, EXTENT_FREE);
    space_lower_mark(region);
}

void weir__space_cut(struct weir_region *region, uint64_t offset)
{
    uint32_t last = region->last;

    WEIR_ASSERT(last != 0 && weir__space_state(region, last) == EXTENT_RESTING);
    WEIR_ASSERT(weir__space_offset(region, last) <= offset &&
                weir__space_end(region, last) > offset);

    space_unlist(region, last);
    if (weir__space_offset(region, last) < offset)
        space_list(region, space_split(region, last, offset - weir__space_offset(region, last)));
    weir__space_claim(region, 0, offset, region->mark_bytes);
    weir__space_link(region, weir__space_previous(region, last), 0);
    weir__slots_give(&region->slots, last);
    space_set_mark(region, offset);
    space_lower_mark(region);
}

/* ---- Taking ------------------------------------------------------------- */

uint64_t weir__space_place(const struct weir_region *region, uint32_t index, uint64_t alignment)
{
    uint64_t offset = index != 0 ? weir__space_offset(region, index) : region->mark_bytes;

    return weir__round_up(offset, alignment);
}

/*
 * The best fit, if that happens to be aligned or to be large enough as well; else
 * the best of those that always are.
 */
uint32_t weir__space_find(const struct weir_region *region, uint64_t space, uint64_t alignment)
{
    uint32_t index = weir__extents_find(&region->extents, space);

    if (WEIR_LIKELY(alignment == LAYOUT_GRANULE) || index == 0)
        return index;
    if (weir__space_place(region, index, alignment) + space <= weir__space_end(region, index))
        return index;
    return weir__extents_find(&region->extents, weir__space_most(space, alignment));
}

/* [offset, offset + space) of the listed extent @index; the rest is listed again. */
static uint32_t space_take(struct weir_region *region, uint32_t index, uint64_t offset,
                           uint64_t space)
{
    space_unlist(region, index);
    if (offset > weir__space_offset(region, index))
        space_list(region, space_split(region, index, offset - weir__space_offset(region, index)));
    if (weir__space_bytes(region, index) > space) {
        uint32_t front = space_split(region, index, space);
        space_list(region, index);
        index = front;
    }
    if (WEIR_UNLIKELY(weir__slots_is_spent(&region->slots, index)))
        index = weir__space_change_entry(region, index);
    weir__space_set(region, index, offset, space, EXTENT_BUILT);
    weir__chunks_add_live(&region->chunks, offset, space);
    return index;
}

uint32_t weir__space_take(struct weir_region *region, uint32_t index, uint64_t space,
                          uint64_t alignment)
{
    uint64_t offset = weir__space_place(region, index, alignment);

    WEIR_ASSERT(weir__space_state(region, index) == EXTENT_FREE);
    WEIR_ASSERT(offset + space <= weir__space_end(region, index));
    return space_take(region, index, offset, space);
}

uint32_t weir__space_take_resting(struct weir_region *region, uint32_t index, uint64_t offset,
                                  uint64_t space)
{
    WEIR_ASSERT(weir__space_state(region, index) == EXTENT_RESTING);
    WEIR_ASSERT(offset + space <= weir__space_end(region, index));
    return space_take(region, index, offset, space);
}

/* The extent @index begins at the mark, which moves right over it. */
static void space_append(struct weir_region *region, uint32_t index)
{
    uint64_t offset = region->mark_bytes;
    uint64_t space = weir__space_bytes(region, index);

    WEIR_ASSERT(weir__space_offset(region, index) == offset);
    WEIR_ASSERT(offset + space <= region->store.file_bytes); /* R1 */

    weir__entry_set_previous(weir__region_entry(region, index), 0);
    weir__entry_set_next(weir__region_entry(region, index), 0);
    weir__space_link(region, region->last, index);
    region->last = index;
    weir__space_claim(region, index, offset, offset + space);
    region->mark_bytes += space;
    weir__chunks_add_live(&region->chunks, offset, space);
}

uint32_t weir__space_bump(struct weir_region *region, uint64_t space)
{
    uint32_t index = weir__slots_take(&region->slots);

    weir__space_set(region, index, region->mark_bytes, space, EXTENT_BUILT);
    space_append(region, index);
    return index;
}

void weir__space_adopt(struct weir_region *region, uint32_t index)
{
    space_append(region, index);
}

uint32_t weir__space_take_chunk(struct weir_region *region, uint64_t chunk)
{
    uint64_t begin = chunk * LAYOUT_CHUNK_BYTES;
    uint64_t end = begin + LAYOUT_CHUNK_BYTES;
    uint32_t index;

    if (region->mark_bytes < end) {
        uint64_t mark = region->mark_bytes;
        WEIR_ASSERT(mark <= begin && begin - mark < LAYOUT_CHUNK_BYTES);
        index = weir__space_bump(region, end - mark);
        if (mark < begin)
            weir__space_release(region, space_split(region, index, begin - mark));
    } else {
        index = region->chunks.table[chunk].first;
        WEIR_ASSERT(weir__space_state(region, index) == EXTENT_FREE);
        space_unlist(region, index);
        if (weir__space_offset(region, index) < begin)
            space_list(region,
                       space_split(region, index, begin - weir__space_offset(region, index)));
        if (weir__space_end(region, index) > end) {
            uint32_t front = space_split(region, index, LAYOUT_CHUNK_BYTES);
            space_list(region, index);
            index = front;
        }
        weir__chunks_add_live(&region->chunks, begin, LAYOUT_CHUNK_BYTES);
    }
    weir__space_set(region, index, begin, LAYOUT_CHUNK_BYTES, EXTENT_ZOMBIE);
    return index;
}

uint32_t weir__space_carve(struct weir_region *region, uint32_t *extent, uint64_t space)
{
    uint32_t index = *extent;

    WEIR_ASSERT(weir__space_state(region, index) == EXTENT_ZOMBIE);
    WEIR_ASSERT(weir__space_bytes(region, index) >= space);

    if (weir__space_bytes(region, index) > space)
        index = space_split(region, index, space);
    else
        *extent = 0;
    weir__space_set(region, index, weir__space_offset(region, index), space, EXTENT_BUILT);
    return index;
}

/* What lies between the mark and an aligned place is given back as soon as the mark is over it. */
uint32_t weir__space_bump_aligned(struct weir_region *region, uint64_t space, uint64_t alignment)
{
    uint64_t gap = weir__space_place(region, 0, alignment) - region->mark_bytes;
    uint32_t front = gap > 0 ? weir__space_bump(region, gap) : 0;
    uint32_t index = weir__space_bump(region, space);

    if (front != 0)
        weir__space_release(region, front);
    return index;
}

/* ---- Moving ------------------------------------------------------------- */

/*
 * The handle names the entry, so the entry keeps the item and takes the place of
 * @target, which gets the old one. The bytes are there already: a view that looks
 * meanwhile sees one place or the other.
 */
void weir__space_trade(struct weir_region *region, uint32_t index, uint32_t target, bool is_first)
{
    struct weir__entry *entry = weir__region_entry(region, index);
    uint64_t from = weir__space_offset(region, index);
    uint64_t to = weir__space_offset(region, target);
    uint64_t bytes = weir__entry_bytes(entry);
    uint64_t space = weir__space_bytes(region, index);
    uint32_t before_index = weir__space_previous(region, index);
    uint32_t after_index = weir__space_next(region, index);
    uint32_t before_target = weir__space_previous(region, target);
    uint32_t after_target = weir__space_next(region, target);

    WEIR_ASSERT(weir__space_bytes(region, target) == space);
    WEIR_CHECK(to % weir__entry_alignment(entry) == 0); /* R6 */

    if (is_first)
        weir__word_add(&weir__region_figures(region)->move_count, 1);
    region->move_marks[index % REGION_MOVE_MARKS]++;
    weir__fence_release();
    weir__word_store(&entry->place, weir__entry_place(to, bytes));
    weir__fence_release();
    weir__space_set(region, target, from, space, EXTENT_ZOMBIE);

    if (after_index == target) {
        weir__space_link(region, before_index, target);
        weir__space_link(region, target, index);
        weir__space_link(region, index, after_target);
    } else if (after_target == index) {
        weir__space_link(region, before_target, index);
        weir__space_link(region, index, target);
        weir__space_link(region, target, after_index);
    } else {
        weir__space_link(region, before_index, target);
        weir__space_link(region, target, after_index);
        weir__space_link(region, before_target, index);
        weir__space_link(region, index, after_target);
    }
    weir__space_claim(region, index, to, to + space);
    weir__space_claim(region, target, from, from + space);
}

static void space_move(struct weir_region *region, uint32_t index, uint32_t target, bool is_first)
{
    /* On disk its place could change before its bytes are there. */
    WEIR_CHECK(!weir__sync_is_confirmed(region, index));
    weir__space_trade(region, index, target, is_first);
    weir__space_release(region, target);
}

void weir__space_move(struct weir_region *region, uint32_t index, uint32_t target)
{
    space_move(region, index, target, true);
}

void weir__space_move_next(struct weir_region *region, uint32_t index, uint32_t target)
{
    space_move(region, index, target, false);
}

/* ---- Checksums and holes ------------------------------------------------ */

/* Where to begin, or to go on: an item that was freed or moved meanwhile says nothing. */
static uint32_t space_walk_from(const struct weir_region *region, const struct weir__walk *walk)
{
    uint64_t begin = walk->chunk * LAYOUT_CHUNK_BYTES;

    if (walk->index != 0 && weir__space_state(region, walk->index) == EXTENT_LIVE &&
        weir__entry_generation(weir__region_entry(region, walk->index)) == walk->generation &&
        weir__space_end(region, walk->index) > begin &&
        weir__space_offset(region, walk->index) < begin + LAYOUT_CHUNK_BYTES)
        return walk->index;
    return region->chunks.table[walk->chunk].first;
}

/* The next item of the walk that is whole; 0: there is none, or (not done) the budget is spent. */
static uint32_t space_walk(const struct weir_region *region, struct weir__walk *walk,
                           uint32_t index, uint64_t *budget)
{
    uint64_t end = (walk->chunk + 1) * LAYOUT_CHUNK_BYTES;

    while (index != 0 && weir__space_offset(region, index) < end &&
           weir__space_state(region, index) != EXTENT_LIVE)
        index = weir__space_next(region, index);
    if (index == 0 || weir__space_offset(region, index) >= end) {
        walk->is_done = true;
        return 0;
    }
    walk->index = index;
    walk->generation = weir__entry_generation(weir__region_entry(region, index));
    if (*budget == 0)
        return 0;
    *budget -= weir__min(*budget, SPACE_ITEM_COST);
    return index;
}

static uint64_t space_sum_of(const struct weir_region *region, uint32_t index, uint64_t *budget)
{
    const struct weir__entry *entry = weir__region_entry(region, index);

    *budget -= weir__min(*budget, weir__entry_bytes(entry));
    return weir__sum(entry, region->store.base + weir__entry_offset(entry));
}

uint64_t weir__space_sum(struct weir_region *region, struct weir__walk *walk, uint64_t budget)
{
    uint32_t index = space_walk(region, walk, space_walk_from(region, walk), &budget);

    while (index != 0) {
        uint64_t *sum = &region->slots.sums[index];
        if (weir__word_load(sum) == 0)
            weir__word_store(sum, space_sum_of(region, index, &budget));
        index = space_walk(region, walk, weir__space_next(region, index), &budget);
    }
    return budget;
}

/* Whether all chunks of the item but @chunk, which is just coming back, are in memory. */
static bool space_is_here(const struct weir_region *region, uint32_t index, uint64_t chunk)
{
    for (uint64_t i = weir__chunk_of(weir__space_offset(region, index));
         i <= weir__chunk_of(weir__space_end(region, index) - 1); i++)
        if (i != chunk && !weir__chunk_is_resident(weir__chunk_state(&region->chunks, i)))
            return false;
    return true;
}

uint64_t weir__space_verify(struct weir_region *region, struct weir__walk *walk, uint64_t budget)
{
    uint32_t index = space_walk(region, walk, space_walk_from(region, walk), &budget);

    while (index != 0) {
        uint64_t sum = weir__word_load(&region->slots.sums[index]);
        uint32_t next = weir__space_next(region, index);
        if (sum != 0 && space_is_here(region, index, walk->chunk) &&
            sum != space_sum_of(region, index, &budget)) {
            region->read_error_count++;
            weir__space_damage(region, index);
        }
        index = space_walk(region, walk, next, &budget);
    }
    return budget;
}

void weir__space_damage(struct weir_region *region, uint32_t index)
{
    struct weir__entry *entry = weir__region_entry(region, index);
    uint64_t tag = weir__word_load(&entry->tag);

    WEIR_ASSERT(weir__tag_state(tag) == EXTENT_LIVE);
    weir__word_store(&entry->tag, weir__tag_turn(tag, EXTENT_DAMAGED));
    region->damaged_count++;
}

bool weir__space_has_hole(const struct weir_region *region, uint64_t chunk, uint64_t space)
{
    uint64_t begin = chunk * LAYOUT_CHUNK_BYTES;
    uint64_t end = begin + LAYOUT_CHUNK_BYTES;
    uint32_t index = region->chunks.table[chunk].first;

    for (; index != 0 && weir__space_offset(region, index) < end;
         index = weir__space_next(region, index)) {
        if (weir__space_state(region, index) != EXTENT_RESTING)
            continue;
        uint64_t from = weir__max(begin, weir__space_offset(region, index));
        uint64_t to = weir__min(end, weir__space_end(region, index));
        if (to - from >= space)
            return true;
    }
    return false;
}

/* ---- Audit -------------------------------------------------------------- */

static void space_audit_free(const struct weir_region *region, uint32_t index)
{
    enum weir__extent_state state = weir__space_state(region, index);
    uint32_t previous = weir__space_previous(region, index);

    if (previous != 0)
        WEIR_CHECK(weir__space_state(region, previous) != state); /* R2 */
    for (uint64_t at = weir__space_offset(region, index); at < weir__space_end(region, index);
         at += LAYOUT_GRANULE) {
        WEIR_CHECK(space_kind(region, at) == state); /* R3 */
        at = weir__round_down(at, LAYOUT_CHUNK_BYTES) + LAYOUT_CHUNK_BYTES - LAYOUT_GRANULE;
    }
}

void weir__space_audit(const struct weir_region *region)
{
    uint64_t at = 0;
    uint64_t free_bytes = 0;
    uint64_t resting_bytes = 0;
    uint32_t previous = 0;
    uint32_t index = region->mark_bytes > 0 ? region->chunks.table[0].first : 0;

    for (; index != 0; index = weir__space_next(region, index)) {
        enum weir__extent_state state = weir__space_state(region, index);

        WEIR_CHECK(weir__space_offset(region, index) == at); /* R1 */
        WEIR_CHECK(weir__space_previous(region, index) == previous);
        WEIR_CHECK(state != EXTENT_VACANT);
        if (state == EXTENT_FREE || state == EXTENT_RESTING)
            space_audit_free(region, index);
        if (weir__state_is_item(state)) /* R6 */
            WEIR_CHECK(at % weir__entry_alignment(weir__region_entry(region, index)) == 0);
        free_bytes += state == EXTENT_FREE ? weir__space_bytes(region, index) : 0;
        resting_bytes += state == EXTENT_RESTING ? weir__space_bytes(region, index) : 0;
        for (uint64_t chunk = (at + LAYOUT_CHUNK_BYTES - 1) / LAYOUT_CHUNK_BYTES;
             chunk * LAYOUT_CHUNK_BYTES < weir__space_end(region, index); chunk++)
            WEIR_CHECK(region->chunks.table[chunk].first == index); /* R4 */
        at = weir__space_end(region, index);
        previous = index;
    }
    WEIR_CHECK(at == region->mark_bytes); /* R1 */
    WEIR_CHECK(previous == region->last);
    if (previous != 0)
        WEIR_CHECK(weir__space_state(region, previous) != EXTENT_FREE); /* R5 */
    WEIR_CHECK(free_bytes == region->extents.free_bytes);
    WEIR_CHECK(resting_bytes == region->resting_bytes);
}
