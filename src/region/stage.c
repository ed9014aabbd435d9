/* SPDX-License-Identifier: MIT */
/*
 * stage - large items go into holes of chunks that are not in memory
 *
 *      COLD chunk    | a |      hole        | b |     on disk only
 *                          ^ whole pages
 *      buffer              |    item    |0|           O_DIRECT, through the ring
 *
 * Whatever is stored to memory must be written with all of its chunk, and for the
 * room that it takes as much is moved out of other chunks. A large item may do
 * without: a hole on disk that holds its pages takes it by one write of its own,
 * and what remains of the hole rests as before. The bytes wait in a buffer of
 * fetch, which answers for the item meanwhile, and lingers after that like any.
 *
 * Later is better here, too: what is stored to memory may be freed before it is
 * written. So this is done where the cleaner would have to make room, and only
 * with memory that is idle: a put never waits for it. No view sees the item (state
 * STAGED) before its write has ended.
 *
 * What the disk refuses is told by poll, and put anew where it is stored to memory;
 * till there is room for it, it stays in its buffer.
 *
 *   D1  holes has each RESTING extent with at least STAGE_BYTES_MIN of whole pages
 *   D2  chunk.staged counts the writes under way into it; it is COLD until they
 *       have ended, and their space is nobody's before, also if the item is freed
 *   D3  an item is STAGED while its write is under way or has failed; its buffer is
 *       kept as long
 */
#include "region/region_state.h"
#include "region/space.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/fence.h"
#include "base/sys.h"

#include <errno.h>
#include <string.h>

#define STAGE_TRIES     16 /* holes that are looked at for one that will do */
#define STAGE_AGAIN_MAX 8
#define STAGE_RETRY_NS  UINT64_C(100000000)

/* ---- Holes -------------------------------------------------------------- */

static bool stage_is_hole(const struct weir_region *region, uint32_t index)
{
    uint64_t from = weir__round_up(weir__space_offset(region, index), STAGE_PAGE_BYTES);
    uint64_t end = weir__round_down(weir__space_end(region, index), STAGE_PAGE_BYTES);

    return region->stager.is_able && from + STAGE_BYTES_MIN <= end;
}

void weir__stage_add_hole(struct weir_region *region, uint32_t index)
{
    if (stage_is_hole(region, index))
        weir__extent_tree_insert(&region->stager.holes, index);
}

void weir__stage_remove_hole(struct weir_region *region, uint32_t index)
{
    if (stage_is_hole(region, index))
        weir__extent_tree_remove(&region->stager.holes, index);
}

static bool stage_takes(const struct weir_region *region, uint64_t chunk)
{
    return weir__chunk_state(&region->chunks, chunk) == CHUNK_COLD &&
           weir__chunk_live(&region->chunks, chunk) > 0 &&
           region->chunks.table[chunk].unfillable == 0 && !weir__clean_is_at(region, chunk);
}

static bool stage_takes_at(const struct weir_region *region, uint64_t offset, uint64_t bytes,
                           uint64_t end)
{
    return offset + bytes <= end && weir__chunk_is_one(offset, bytes) &&
           stage_takes(region, weir__chunk_of(offset));
}

/*
 * Where in @index whole pages of @bytes lie in one chunk that takes them: the first or
 * the last, for in those between nothing is live. CHUNK_NO: nowhere.
 */
static uint64_t stage_place(const struct weir_region *region, uint32_t index, uint64_t bytes)
{
    uint64_t first = weir__round_up(weir__space_offset(region, index), STAGE_PAGE_BYTES);
    uint64_t end = weir__space_end(region, index);
    uint64_t last = weir__round_down(end - 1, LAYOUT_CHUNK_BYTES);

    if (stage_takes_at(region, first, bytes, end))
        return first;
    return last > first && stage_takes_at(region, last, bytes, end) ? last : CHUNK_NO;
}

/* The shortest hole that takes @bytes, whole pages, of some that may; 0: none. */
static uint32_t stage_find(const struct weir_region *region, uint64_t bytes, uint64_t *ret_offset)
{
    const struct weir__extent_tree *holes = &region->stager.holes;
    uint32_t index = weir__extent_tree_find(holes, bytes);

    for (uint32_t left = STAGE_TRIES; left > 0 && index != 0; left--) {
        *ret_offset = stage_place(region, index, bytes);
        if (*ret_offset != CHUNK_NO)
            return index;
        /* Those that begin or end inside of a page are passed over half way. */
        index = left == STAGE_TRIES / 2
                    ? weir__extent_tree_find(holes, bytes + STAGE_PAGE_BYTES - LAYOUT_GRANULE)
                    : weir__extent_tree_next(holes, index);
    }
    return 0;
}

/* ---- Writing ------------------------------------------------------------ */

static void stage_submit(struct weir__stage *stage)
{
    struct weir_region *region = stage->region;

    weir__ring_write(region->ring, &stage->operation, region->store.direct_fd,
                     stage->buffer + stage->written_bytes,
                     (uint32_t)(stage->bytes - stage->written_bytes),
                     stage->offset + stage->written_bytes);
}

/* The entry of its item; NULL: that was freed meanwhile. */
static struct weir__entry *stage_entry(const struct weir__stage *stage)
{
    return weir__slots_find(&stage->region->slots, stage->slot, EXTENT_STAGED);
}

/* The item is where its entry says, for all to see. */
static void stage_turn_live(struct weir__entry *entry)
{
    weir__fence_release();
    weir__word_store(&entry->tag, weir__tag_turn(weir__word_load(&entry->tag), EXTENT_LIVE));
}

/* It is over, in one way or the other: what lies there may be cleaned, and the buffer may go. */
static void stage_end(struct weir__stage *stage)
{
    struct weir_region *region = stage->region;
    struct weir_slot slot = stage->slot;

    stage->slot.index = 0;
    weir__clean_look_again(region, weir__region_entry(region, slot.index));
    weir__fetches_unkeep(region, slot);
}

static void stage_written(struct weir__stage *stage)
{
    struct weir_region *region = stage->region;
    struct weir__entry *entry = stage_entry(stage);

    weir__word_add(&weir__region_figures(region)->written_bytes, stage->bytes);
    if (entry != NULL)
        stage_turn_live(entry);
    stage_end(stage);
}

/* The disk's own alignment may be larger than a page: then that is no error, and not tried again. */
static void stage_failed(struct weir__stage *stage, int error)
{
    struct weir_region *region = stage->region;
    struct weir__stager *stager = &region->stager;

    if (error == -EINVAL || error == -EOPNOTSUPP) {
        stager->is_refused = true;
    } else {
        region->write_error_count++;
        region->pager.error_fresh = error;
        stager->retry_ns = weir__clock_ns() + STAGE_RETRY_NS;
    }
    if (stage_entry(stage) == NULL) {
        stage_end(stage);
        return;
    }
    stage->is_failed = true;
    stager->failed_count++;
}

static void stage_complete(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct weir__stage *stage = WEIR_CONTAINER_OF(operation, struct weir__stage, operation);
    struct weir_region *region = stage->region;
    bool is_short = result >= (int32_t)STAGE_PAGE_BYTES;

    (void)flags;
    if (result > 0)
        stage->written_bytes += weir__round_down((uint64_t)result, STAGE_PAGE_BYTES);
    if (stage->written_bytes < stage->bytes) {
        /* Once more in any case: a direct write can answer with the error of an earlier one. */
        uint32_t again_max = result == -EAGAIN || result == -EINTR ? STAGE_AGAIN_MAX : 1;
        if (is_short || stage->again_count++ < again_max) {
            stage_submit(stage);
            return;
        }
    }
    region->stager.under_way_count--;
    region->chunks.table[weir__chunk_of(stage->offset)].staged--;
    if (stage->written_bytes == stage->bytes)
        stage_written(stage);
    else
        stage_failed(stage, result < 0 ? result : -EIO);
}

/* ---- Put ---------------------------------------------------------------- */

static struct weir__stage *stage_idle(struct weir__stager *stager)
{
    for (uint32_t i = 0; i < REGION_STAGE_COUNT; i++)
        if (stager->stages[i].slot.index == 0)
            return &stager->stages[i];
    return NULL;
}

/*
 * Whether it is time: the disk is well, and room would have to be made. And no write may
 * pass RLIMIT_FSIZE, which may have been lowered since open: that would be a signal.
 */
static bool stage_is_due(struct weir_region *region)
{
    struct weir__stager *stager = &region->stager;

    if (stager->is_refused || region->pager.is_slow || weir__region_is_degraded(region) ||
        region->bound.is_changing || !weir__clean_is_tight(region))
        return false;
    if (stager->retry_ns != 0 && weir__clock_ns() < stager->retry_ns)
        return false;
    stager->retry_ns = 0;
    return region->store.file_bytes <= weir__sys_file_bytes_max();
}

/* Named, and on its way. */
static void stage_begin(struct weir__stage *stage, const void *data, uint64_t bytes,
                        struct weir_label label)
{
    struct weir_region *region = stage->region;
    uint32_t index = stage->slot.index;

    memcpy(stage->buffer, data, bytes);
    memset(stage->buffer + bytes, 0, stage->bytes - bytes);
    stage->slot = weir__space_name(region, index, stage->offset, bytes, label, EXTENT_STAGED);
    weir__word_store(&region->slots.sums[index],
                     weir__sum(weir__region_entry(region, index), stage->buffer));
    region->chunks.table[weir__chunk_of(stage->offset)].staged++;
    region->stager.under_way_count++;
    region->stager.staged_bytes += bytes;
    stage_submit(stage);
}

bool weir__stage_put(struct weir_region *region, const void *data, uint64_t bytes,
                     struct weir_label label, struct weir_slot *ret_slot)
{
    struct weir__stager *stager = &region->stager;
    uint64_t pages_bytes = weir__round_up(bytes, STAGE_PAGE_BYTES);
    uint64_t offset;

    if (stager->holes.root == 0 || !stage_is_due(region))
        return false;
    struct weir__stage *stage = stage_idle(stager);
    uint32_t hole = stage != NULL ? stage_find(region, pages_bytes, &offset) : 0;
    if (hole == 0 || !weir__fetches_may_keep(region, pages_bytes) ||
        weir__table_ready(region, region->spare_min) < 0)
        return false;

    uint32_t index = weir__space_take_resting(region, hole, offset, weir__extent_space(bytes));
    uint32_t generation = weir__slots_next_generation(&region->slots, index);
    struct weir_slot slot = {index, generation};
    char *buffer = weir__fetches_keep(region, slot, offset, bytes);
    if (buffer == NULL) {
        weir__space_release(region, index);
        return false;
    }
    *stage = (struct weir__stage){
        .operation = {stage_complete},
        .region = region,
        .slot = slot,
        .buffer = buffer,
        .offset = offset,
        .bytes = pages_bytes,
    };
    stage_begin(stage, data, bytes, label);
    *ret_slot = slot;
    return true;
}

bool weir__stage_has_freed(const struct weir_region *region)
{
    for (uint32_t i = 0; i < REGION_STAGE_COUNT; i++) {
        const struct weir__stage *stage = &region->stager.stages[i];
        if (stage->slot.index != 0 && stage_entry(stage) == NULL)
            return true;
    }
    return false;
}

/* ---- What was refused --------------------------------------------------- */

/* As the cleaner moves an item: the slot stays. */
static int stage_put_anew(struct weir__stage *stage, struct weir__entry *entry)
{
    struct weir_region *region = stage->region;
    uint64_t bytes = weir__entry_bytes(entry);
    uint64_t space = weir__entry_space(entry);
    uint32_t target;
    int r = weir__region_take(region, space, weir__entry_alignment(entry), &target);

    if (r < 0)
        return r;
    uint64_t to = weir__space_offset(region, target);
    weir__chunks_touch(&region->chunks, to, space);
    memcpy(region->store.base + to, stage->buffer, bytes);
    weir__space_move(region, stage->slot.index, target);
    stage_turn_live(entry);
    return 0;
}

void weir__stage_advance(struct weir_region *region)
{
    struct weir__stager *stager = &region->stager;
    uint64_t budget = CLEAN_TICK_BYTES;

    if (WEIR_LIKELY(stager->failed_count == 0))
        return;
    for (uint32_t i = 0; i < REGION_STAGE_COUNT && budget > 0; i++) {
        struct weir__stage *stage = &stager->stages[i];
        if (stage->slot.index == 0 || !stage->is_failed)
            continue;
        struct weir__entry *entry = stage_entry(stage);
        if (entry != NULL && stage_put_anew(stage, entry) < 0)
            continue;
        budget -= weir__min(budget, stage->bytes);
        stager->failed_count--;
        stage_end(stage);
    }
}

/* ---- Lifecycle ---------------------------------------------------------- */

/*
 * Not where all is in memory, or what is dropped stays; not for what must be in the
 * mapping when the owner is killed; not where the ring would block.
 */
void weir__stage_init(struct weir_region *region)
{
    const struct weir__store *store = &region->store;

    region->stager.holes.entries = region->slots.entries;
    region->stager.is_able = region->pager.writes_back && store->direct && store->bounded &&
                             !weir__region_is_named(region) &&
                             !weir__ring_is_synchronous(region->ring);
}

void weir__stage_deinit(struct weir_region *region)
{
    struct weir__stager *stager = &region->stager;

    WEIR_CHECK(stager->under_way_count == 0);
    for (uint32_t i = 0; i < REGION_STAGE_COUNT; i++)
        if (stager->stages[i].slot.index != 0)
            stage_end(&stager->stages[i]);
}

/* ---- Audit -------------------------------------------------------------- */

static void stage_audit_holes(const struct weir_region *region)
{
    uint64_t hole_count = 0;
    uint64_t hole_bytes = 0;
    uint64_t count;
    uint64_t bytes;

    for (uint32_t index = 1; index <= region->slots.used_count; index++) {
        if (weir__space_state(region, index) != EXTENT_RESTING || !stage_is_hole(region, index))
            continue;
        hole_count++;
        hole_bytes += weir__space_bytes(region, index);
    }
    weir__extent_tree_audit(&region->stager.holes, &count, &bytes);
    WEIR_CHECK(count == hole_count && bytes == hole_bytes); /* D1 */
}

void weir__stage_audit(const struct weir_region *region)
{
    const struct weir__stager *stager = &region->stager;
    uint64_t under_way_count = 0;
    uint64_t staged_count = 0;
    uint64_t failed_count = 0;

    stage_audit_holes(region);
    for (uint32_t i = 0; i < REGION_STAGE_COUNT; i++) {
        const struct weir__stage *stage = &stager->stages[i];
        if (stage->slot.index == 0)
            continue;
        failed_count += stage->is_failed;
        staged_count -= stage_entry(stage) != NULL;
        if (stage_entry(stage) != NULL)
            WEIR_CHECK(weir__fetches_at(region, stage->slot) == stage->buffer); /* D3 */
    }
    for (uint64_t chunk = 0; chunk < weir__chunk_of(region->store.file_bytes); chunk++) {
        under_way_count += region->chunks.table[chunk].staged;
        if (region->chunks.table[chunk].staged > 0)
            WEIR_CHECK(weir__chunk_state(&region->chunks, chunk) == CHUNK_COLD); /* D2 */
    }
    for (uint32_t index = 1; index <= region->slots.used_count; index++)
        staged_count += weir__space_state(region, index) == EXTENT_STAGED;
    WEIR_CHECK(under_way_count ==
               stager->under_way_count + region->pager.zeroing_count); /* D2, T6 */
    WEIR_CHECK(failed_count == stager->failed_count);
    WEIR_CHECK(staged_count == 0); /* D3 */
}
