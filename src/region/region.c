/* SPDX-License-Identifier: MIT */
/*
 * region - how one core's overflow file works
 *
 *      0      first                        mark          file
 *      | live | free | live | free | live  | never used  |
 *
 * An item gets the smallest free extent that holds it, else the mark moves right
 * over it. Its entry in the table tells where it lies; the slot handle names the
 * entry and its generation. Free extents are kept by space, what of the file is
 * in memory by pager, what is brought back for a while by fetch, what is moved
 * out of sparse chunks by clean: here are the public calls and the checks at the
 * door.
 *
 * A put becomes visible to views with one store: payload and words first, then
 * the tag with an odd generation. A free is the reverse.
 *
 * Who fills an item in place holds its chunks: they are neither written nor
 * dropped before commit or free, so only some of the memory may be held so.
 */
#include <weir/region.h>

#include "base/bits.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/fence.h"
#include "base/sys.h"
#include "region/quick.h"
#include "region/region_state.h"
#include "region/space.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#define REGION_BYTES_DEFAULT    (UINT64_C(1) << 30)
#define REGION_RESIDENT_DEFAULT (UINT64_C(64) << 20)
#define REGION_RESIDENT_MIN     (UINT64_C(8) << 20)
#define REGION_RING_ENTRIES     64
#define REGION_STEP_BYTES       (UINT64_C(64) << 10) /* put between two looks at the background */
#define REGION_PREFETCH_MAX     2048                 /* of the source of a put */
#define REGION_PREFETCH_TO      1024 /* of where it goes; an address without memory does no harm */
#define REGION_WAIT_NS          UINT64_C(100000000)
#define REGION_REAP_FAILURES    1000                   /* one after the other, at close */
#define REGION_PATIENCE_NS      UINT64_C(100000000000) /* of one call; a disk may be that slow */
#define REGION_IDLE_COUNT       50
#define REGION_REVIVAL_COUNT    32 /* that one call waits for */

/* What somebody asks for. */
struct region_need {
    uint64_t space;
    uint64_t alignment;
    uint64_t touched; /* of the space, what is stored to at once */
    bool is_placed;   /* it is filled in place */
};

static bool region_is_mine(const struct weir_region *region)
{
    return pthread_equal(region->owner, pthread_self());
}

/* ---- Lifecycle ------------------------------------------------------------ */

static uint64_t region_resident_bytes(const struct weir_region_config *config)
{
    return config->resident_bytes_max != 0 ? config->resident_bytes_max : REGION_RESIDENT_DEFAULT;
}

static int region_check_config(const struct weir_region_config *config)
{
    if (config == NULL || config->directory == NULL)
        return -EINVAL;
    if (!weir__reserved_is_zero(config->reserved))
        return -EINVAL;
    if (config->bytes_max != 0 &&
        (config->bytes_max < LAYOUT_CHUNK_BYTES || config->bytes_max > LAYOUT_BYTES_LIMIT))
        return -EINVAL;
    if (config->resident_bytes_max != 0 && config->resident_bytes_max < REGION_RESIDENT_MIN)
        return -EINVAL;
    if ((config->disk_cap.take == NULL) != (config->disk_cap.give == NULL))
        return -EINVAL;

    uint64_t resident = region_resident_bytes(config);
    uint64_t least = config->resident_bytes_min;
    if (least != 0 && (least < REGION_RESIDENT_MIN || least > resident || resident == UINT64_MAX))
        return -EINVAL;
    return 0;
}

/* Sizes that follow from the configuration. */
static int region_set_limits(struct weir_region *region, const struct weir_region_config *config)
{
    uint64_t found = region->named.found.bytes_max; /* 0: it was not there */
    uint64_t bytes_max = found != 0 ? found : REGION_BYTES_DEFAULT;

    if (config->bytes_max != 0)
        bytes_max = config->bytes_max;
    if (weir__round_down(bytes_max, LAYOUT_CHUNK_BYTES) < found)
        return -EINVAL;
    bytes_max = weir__min(bytes_max, weir__sys_file_bytes_max());
    region->bytes_max = weir__round_down(bytes_max, LAYOUT_CHUNK_BYTES);
    if (region->bytes_max == 0 || region->bytes_max < found)
        return -EDQUOT;
    weir__bound_init(region, region_resident_bytes(config), config->resident_bytes_min);

    /* What is promised of items must hold with the least memory, too. */
    struct weir__bound_split split = weir__bound_split(region, region->resident_bytes_max);
    struct weir__bound_split least = weir__bound_split(region, region->bound.bytes_min);
    region->chunks.resident_max = split.chunk_count;
    weir__fetches_init(region, split.fetch_bytes, least.fetch_bytes);
    weir__clean_init(region, split.clean_bytes);

    region->item_bytes_max = weir__min(region->bytes_max / 4, LAYOUT_ITEM_LIMIT - LAYOUT_GRANULE);
    region->put_bytes_max =
        weir__min(region->item_bytes_max,
                  weir__min(least.chunk_count, UINT64_C(1) << 16) * LAYOUT_CHUNK_BYTES / 4);
    /* Enough for any item of put_bytes_max, wherever it begins; the rest is for puts. */
    region->placed_max = least.chunk_count / 2 + least.chunk_count % 2;
    region->spare_min = weir__region_spare(0);
    return 0;
}

static int region_open_parts(struct weir_region *region, const struct weir_region_config *config)
{
    int r = config->name != NULL ? weir__named_open(region, config) : 0;

    if (r < 0)
        return r;
    r = region_set_limits(region, config);
    if (r < 0)
        return r;
    r = weir__table_open(region);
    if (r < 0)
        return r;
    if (region->named.report.existed) {
        r = weir__recover_load(region);
        if (r < 0)
            return r;
    }
    if (config->ring == NULL) {
        r = weir__ring_open(REGION_RING_ENTRIES, true, &region->ring);
        if (r < 0)
            return r;
        region->owns_ring = true;
    } else {
        region->ring = config->ring;
    }
    weir__pager_init(region);
    r = weir__store_open(region, config);
    if (r < 0)
        return r;
    weir__stage_init(region);
    if (region->named.report.existed) {
        r = weir__recover_rebuild(region);
        if (r < 0)
            return r;
    }
    r = weir__table_publish(region, config->directory);
    if (r < 0)
        return r;
    return config->name != NULL ? weir__named_publish(region) : 0;
}

int weir_region_open(const struct weir_region_config *config, struct weir_region **ret_region)
{
    int r = region_check_config(config);

    if (r < 0)
        return r;
    if (ret_region == NULL)
        return -EINVAL;

    struct weir_region *region = weir__heap_alloc(NULL, sizeof(*region));
    if (region == NULL)
        return -ENOMEM;
    region->heap.books = config->books;
    weir__heap_account(&region->heap, sizeof(*region));
    region->owner = pthread_self();
    region->wipes = config->wipes;
    region->table_fd = -1;
    region->compactor.chunk = UINT64_MAX;
    region->store.data_fd = -1;
    region->store.direct_fd = -1;
    region->named.directory_fd = -1;
    region->named.sync_fd = -1;
    region->named.found_data_fd = -1;
    r = region_open_parts(region, config);
    if (r < 0) {
        weir_region_close(region);
        return r;
    }
    weir__table_publish_figures(region);
    *ret_region = region;
    return 0;
}

/* Buffers and pages that the kernel works on must outlive its work. */
static void region_quiesce(struct weir_region *region)
{
    uint32_t failures = 0;

    while (region->ring != NULL &&
           (region->fetches.reading_count > 0 || weir__pager_is_busy(region) ||
            weir__clean_is_reading(region) || weir__growth_is_under_way(region) ||
            region->stager.under_way_count > 0 || region->tables.is_under_way)) {
        int r = weir__ring_wait(region->ring, REGION_WAIT_NS);
        failures = r < 0 ? failures + 1 : 0;
        WEIR_CHECK(failures < REGION_REAP_FAILURES); /* nobody knows what is still written to */
    }
}

void weir_region_close(struct weir_region *region)
{
    if (region == NULL)
        return;

    WEIR_CHECK(region_is_mine(region));
    WEIR_CHECK(!region->delivers);
    region_quiesce(region);
    if (region->fetches.bytes_max > 0) {
        weir__stage_deinit(region);
        weir__clean_deinit(region);
        weir__fetches_deinit(region);
    }
    weir__store_close(region);
    if (region->owns_ring)
        weir__ring_close(region->ring);
    weir__named_close(region);
    weir__table_close(region);

    /* What is still on the books is the tables and ourselves. */
    struct weir__heap heap = region->heap;
    weir__heap_account(&heap, -(int64_t)heap.bytes);
    weir__heap_free(NULL, region, sizeof(*region));
}

int weir_region_fd(const struct weir_region *region)
{
    return region->table_fd;
}

/* ---- Items in --------------------------------------------------------------- */

/* Memory for what a store to [offset, offset + space) would bring in. */
static int region_admit(struct weir_region *region, uint64_t offset, uint64_t space)
{
    uint64_t absent = weir__chunks_fresh(&region->chunks, offset, space) > 0
                          ? weir__chunks_absent(&region->chunks, offset, space)
                          : 0;

    /* A chunk of it that was ready may be given up to make room for the others. */
    for (uint64_t made = 0; made < absent;
         absent = weir__chunks_absent(&region->chunks, offset, space)) {
        made = absent;
        if (!weir__pager_make_room(region, made))
            return region->pager.suspect_count > 0 ? region->pager.error : -EAGAIN;
    }
    return 0;
}

/*
 * Bytes were stored; if that began chunks, older ones may have to be
 * written, and if the mark began another chunk, the next may have to be made
 * ready. Not before the bytes are there: what is sealed is stored to no more.
 * What takes long is done a piece at a time, as bytes are put.
 */
WEIR_COLD static void region_look(struct weir_region *region, bool has_begun)
{
    region->step_bytes = 0;
    if (has_begun || region->mark_bytes >= region->growth.look_at)
        weir__growth_ahead(region);
    weir__clean_advance(region, false, CLEAN_PUT_BYTES);
    weir__pager_advance(region, PAGER_PUT_BYTES);
    if (region->owns_ring)
        (void)!weir__ring_reap(region->ring); /* what went wrong is told by poll */
}

static inline void region_stored(struct weir_region *region, uint64_t space, uint64_t fresh_before)
{
    bool has_begun = region->chunks.fresh_count != fresh_before;

    if (region->pager.writes_back)
        region->step_bytes += space;
    if (WEIR_UNLIKELY(has_begun) || WEIR_UNLIKELY(region->mark_bytes >= region->growth.look_at) ||
        WEIR_UNLIKELY(region->step_bytes >= REGION_STEP_BYTES))
        region_look(region, has_begun);
}

/* Whether no more chunks than may be are held by what is filled in place, with one at @offset. */
static bool region_may_place(const struct weir_region *region, uint64_t offset, uint64_t space)
{
    if (!region->pager.writes_back)
        return true;
    uint64_t more = weir__chunks_unplaced(&region->chunks, offset, space);
    return more == 0 || region->chunks.placed_count + more <= region->placed_max;
}

/*
 * In place of @index, which begins a chunk without memory, one that begins a chunk
 * that is ready. 0: at the mark, where that is ready: it rises once too often, and
 * from then on a chunk is free under it early enough.
 */
static uint32_t region_fit_ready(const struct weir_region *region, const struct region_need *need,
                                 uint32_t index)
{
    const struct weir__chunks *chunks = &region->chunks;
    uint64_t offset = weir__space_place(region, index, need->alignment);

    if (need->is_placed || weir__chunks_absent(chunks, offset, need->space) == 0)
        return index;
    for (uint32_t i = chunks->queues[CHUNK_FRESH].head; i != 0; i = chunks->table[i - 1].next) {
        uint32_t ready = chunks->table[i - 1].first;
        const struct weir__entry *entry = weir__region_entry(region, ready);
        if (ready == 0 || weir__entry_state(entry) != EXTENT_FREE)
            continue;
        offset = weir__space_place(region, ready, need->alignment);
        if (offset + need->space <= weir__entry_offset(entry) + weir__entry_space(entry) &&
            weir__chunks_absent(chunks, offset, need->space) == 0)
            return ready;
    }
    offset = weir__space_place(region, 0, need->alignment);
    if (chunks->queues[CHUNK_FRESH].count > 0 && offset + need->space <= region->store.file_bytes &&
        weir__chunks_absent(chunks, offset, need->space) == 0)
        return 0;
    return index;
}

/*
 * The best fit among what is in memory; but before a chunk that has no memory is
 * begun the mark's own is filled, so that little memory is not spread over many
 * chunks that are all half full when they must be written. 0: at the mark.
 */
static uint32_t region_fit(const struct weir_region *region, const struct region_need *need)
{
    uint32_t index = weir__space_find(region, need->space, need->alignment);

    if (index == 0 || !region->pager.writes_back)
        return index;
    uint64_t offset = weir__space_place(region, index, need->alignment);
    if (need->is_placed && !region_may_place(region, offset, need->space))
        return 0;
    uint64_t left = -weir__space_place(region, 0, need->alignment) % LAYOUT_CHUNK_BYTES;
    if (weir__chunks_fresh(&region->chunks, offset, need->space) == 0)
        return index;
    return left < need->space ? region_fit_ready(region, need, index) : 0;
}

/* Whether a put at @index, or at the mark for 0, begins another chunk or more. */
static bool region_begins_chunk(const struct weir_region *region, uint32_t index,
                                const struct region_need *need)
{
    uint64_t offset = weir__space_place(region, index, need->alignment);

    return offset + need->space > region->store.file_bytes ||
           weir__chunks_fresh(&region->chunks, offset, need->space) > 0;
}

/* Room where there was none: in a hole whose blocks are reserved again, or behind the file. */
static int region_grow(struct weir_region *region, const struct region_need *need,
                       uint32_t *ret_index)
{
    if (region->chunks.hole_count > 0 &&
        weir__growth_refill(region, weir__space_most(need->space, need->alignment)) == 0) {
        *ret_index = region_fit(region, need);
        if (*ret_index != 0)
            return 0;
    }
    return weir__growth_reach(region, weir__space_place(region, 0, need->alignment) + need->space);
}

/* Where it goes: a free extent, or 0 for the mark; the file reaches there. */
static int region_place(struct weir_region *region, const struct region_need *need,
                        uint32_t *ret_index)
{
    bool writes_back = region->pager.writes_back;
    uint32_t index = region_fit(region, need);

    if (index == 0 && (!writes_back || region_begins_chunk(region, 0, need)) &&
        weir__compact_make_place(region, weir__space_most(need->space, need->alignment)))
        index = region_fit(region, need);
    if (writes_back && region_begins_chunk(region, index, need)) {
        if (!weir__clean_lets_begin(region, need->space))
            return -EAGAIN;
        index = region_fit(region, need);
    }
    *ret_index = index;
    if (index != 0 ||
        weir__space_place(region, 0, need->alignment) + need->space <= region->store.file_bytes)
        return 0;

    int r = region_grow(region, need, ret_index);
    if (r != -EDQUOT && r != -ENOSPC)
        return r;
    *ret_index = weir__space_find(region, need->space, need->alignment);
    if (*ret_index != 0) /* there is room, but not in a chunk that may be held as well */
        return 0;
    if (!weir__pager_revive(region, weir__space_most(need->space, need->alignment)))
        return r;
    /* A clean chunk is back at once, a cold one must be read. */
    *ret_index = weir__space_find(region, need->space, need->alignment);
    return *ret_index != 0 ? 0 : -EAGAIN;
}

/* An extent at @index, or at the mark for 0, with memory for what is touched of it. */
static int region_take_at(struct weir_region *region, uint32_t index,
                          const struct region_need *need, uint32_t *ret_index)
{
    uint64_t offset = weir__space_place(region, index, need->alignment);

    for (uint64_t i = 0; i < weir__min(need->touched, REGION_PREFETCH_TO); i += 64)
        __builtin_prefetch(region->store.base + offset + i, 1);
    if (need->is_placed && !region_may_place(region, offset, need->space))
        return -EBUSY;
    int r = need->touched > 0 ? region_admit(region, offset, need->touched) : 0;
    if (r < 0)
        return r;
    *ret_index = index != 0 ? weir__space_take(region, index, need->space, need->alignment)
                            : weir__space_bump_aligned(region, need->space, need->alignment);
    return 0;
}

/*
 * No waiting: -EAGAIN when something must be written, moved or brought back first,
 * -EBUSY when only the owner can help, who holds too much in place.
 */
static int region_take(struct weir_region *region, const struct region_need *need,
                       uint32_t *ret_index)
{
    uint32_t index = 0;
    int r = weir__table_ready(region, region->spare_min);

    if (r == 0)
        r = region_place(region, need, &index);
    return r < 0 ? r : region_take_at(region, index, need, ret_index);
}

int weir__region_take(struct weir_region *region, uint64_t space, uint64_t alignment,
                      uint32_t *ret_index)
{
    struct region_need need = {.space = space, .alignment = alignment, .touched = space};
    uint64_t end = weir__space_place(region, 0, alignment) + space;
    int r = weir__table_ready(region, region->spare_min);

    if (r < 0)
        return r;
    uint32_t index = region_fit(region, &need);
    if (index == 0 && end > region->store.file_bytes)
        r = region_grow(region, &need, &index);
    return r < 0 ? r : region_take_at(region, index, &need, ret_index);
}

/* How long one call has waited for room. */
struct region_patience {
    uint64_t until_ns; /* 0: not yet */
    uint64_t revival_count;
    uint32_t idle_count;
};

/*
 * After -EAGAIN, for a region with its own ring: get on with what stands in the
 * way; false: it has been tried long enough. Where nothing is under way the next
 * try may find what was just done without the ring, or nothing can be done: so
 * such tries are counted. And chunks that were brought back: where pins leave little
 * memory one may be written for the sake of another, and brought back, for ever.
 */
static bool region_wait_room(struct weir_region *region, struct region_patience *patience)
{
    if (!region->owns_ring || patience->idle_count > REGION_IDLE_COUNT)
        return false;
    uint64_t now_ns = weir__clock_ns();
    if (patience->until_ns == 0) {
        patience->until_ns = now_ns + REGION_PATIENCE_NS;
        patience->revival_count = region->pager.revival.count;
    }
    if (now_ns > patience->until_ns ||
        region->pager.revival.count - patience->revival_count > REGION_REVIVAL_COUNT)
        return false;

    weir__clean_advance(region, false, CLEAN_WAIT_BYTES);
    weir__pager_advance(region, PAGER_WAIT_BYTES);
    weir__fetches_start(region);
    bool is_idle = weir__ring_in_flight(region->ring) == 0;
    patience->idle_count += is_idle;
    return is_idle || weir__ring_wait(region->ring, REGION_WAIT_NS) >= 0;
}

static int region_take_or_wait(struct weir_region *region, const struct region_need *need,
                               uint32_t *ret_index)
{
    struct region_patience patience = {0};
    int r = region_take(region, need, ret_index);

    while (WEIR_UNLIKELY(r == -EAGAIN) && region_wait_room(region, &patience))
        r = region_take(region, need, ret_index);
    return r;
}

/* The copy comes after the tables: its source can be on its way meanwhile. */
static void region_prefetch(const void *data, size_t bytes)
{
    const char *at = data;
    const char *end = at + weir__min(bytes, REGION_PREFETCH_MAX);

    for (; at < end; at += 64)
        __builtin_prefetch(at);
}

/* Entries for later puts; what is under way may have ended. Before anything is decided. */
static void region_table_ahead(struct weir_region *region)
{
    if (WEIR_LIKELY(weir__slots_spare(&region->slots) >= region->spare_ahead))
        return;
    if (region->tables.is_under_way && region->owns_ring)
        (void)!weir__ring_reap(region->ring); /* what went wrong is told by poll */
    weir__table_ahead(region);
}

/* As weir_region_put(), where something has to be decided, waited for or begun. */
WEIR_COLD static int region_put_slowly(struct weir_region *region, const void *data, size_t bytes,
                                       struct weir_label label, struct weir_slot *ret_slot)
{
    uint64_t space = weir__extent_space(bytes);
    struct region_need need = {.space = space, .alignment = LAYOUT_GRANULE, .touched = space};
    uint32_t index;

    region_table_ahead(region);
    int r = region_take_or_wait(region, &need, &index);
    if (r < 0)
        return r;
    uint64_t offset = weir__space_offset(region, index);
    uint64_t fresh = region->chunks.fresh_count;
    weir__chunks_touch(&region->chunks, offset, space);
    if (bytes > 0)
        memcpy(region->store.base + offset, data, bytes);
    *ret_slot = weir__space_name(region, index, offset, bytes, label, EXTENT_LIVE);
    region_stored(region, space, fresh);
    return 0;
}

int weir_region_put(struct weir_region *region, const void *data, size_t bytes,
                    struct weir_label label, struct weir_slot *ret_slot)
{
    WEIR_ASSERT(region_is_mine(region));
    WEIR_ASSERT(data != NULL || bytes == 0);
    if (bytes > region->put_bytes_max)
        return -EFBIG;

    region_prefetch(data, bytes);
    if (bytes >= STAGE_BYTES_MIN && weir__stage_put(region, data, bytes, label, ret_slot)) {
        region_stored(region, bytes, region->chunks.fresh_count);
        return 0;
    }
    if (WEIR_UNLIKELY(!weir__quick_put(region, data, bytes, label, ret_slot)))
        return region_put_slowly(region, data, bytes, label, ret_slot);
    region_stored(region, weir__extent_space(bytes), region->chunks.fresh_count);
    return 0;
}

int weir_region_alloc(struct weir_region *region, size_t bytes, struct weir_label label,
                      struct weir_slot *ret_slot)
{
    uint32_t index;

    WEIR_ASSERT(region_is_mine(region));
    if (bytes > region->item_bytes_max)
        return -EFBIG;

    struct region_need need = {.space = weir__extent_space(bytes), .alignment = LAYOUT_GRANULE};
    int r = region_take_or_wait(region, &need, &index);
    if (r < 0)
        return r;
    uint32_t generation = weir__slots_next_generation(&region->slots, index);
    r = weir__build_begin(region, (struct weir_slot){index, generation}, bytes);
    if (r < 0) {
        weir__space_release(region, index);
        return r;
    }
    *ret_slot = weir__space_name(region, index, weir__space_offset(region, index), bytes, label,
                                 EXTENT_BUILT);
    return 0;
}

/* The item is not filled in place any more: its chunks may be written again. */
static void region_unplace(struct weir_region *region, uint64_t offset, uint64_t bytes)
{
    weir__pager_unplace(region, offset, weir__extent_space(bytes));
    weir__word_add(&weir__region_figures(region)->pinned_bytes, -bytes);
    region->pin_count--;
}

int weir_region_alloc_in_place(struct weir_region *region, size_t bytes, size_t alignment,
                               struct weir_label label, struct weir_slot *ret_slot, void **ret_data)
{
    uint32_t index;

    WEIR_ASSERT(region_is_mine(region));
    if ((alignment & (alignment - 1)) != 0 || alignment > LAYOUT_ALIGN_LIMIT)
        return -EINVAL;
    if (bytes > region->put_bytes_max)
        return -EFBIG;

    uint64_t space = weir__extent_space(bytes);
    struct region_need need = {
        .space = space,
        .alignment = weir__max(alignment, LAYOUT_GRANULE),
        .touched = space,
        .is_placed = true,
    };
    int r = region_take_or_wait(region, &need, &index);
    if (r < 0)
        return r == -EBUSY ? -EAGAIN : r;

    struct weir__entry *entry = weir__region_entry(region, index);
    uint64_t offset = weir__entry_offset(entry);
    uint64_t fresh = region->chunks.fresh_count;
    weir__chunks_touch(&region->chunks, offset, space);
    weir__chunks_place(&region->chunks, offset, space);
    weir__word_add(&weir__region_figures(region)->pinned_bytes, bytes);
    region->pin_count++; /* its address is held: where the mapping may move, it may not now */
    *ret_slot = weir__space_name(region, index, weir__space_offset(region, index), bytes, label,
                                 EXTENT_PLACED);
    weir__word_store(&entry->tag, weir__tag_align(weir__word_load(&entry->tag), need.alignment));
    *ret_data = region->store.base + offset;
    region_stored(region, space, fresh);
    return 0;
}

/* Memory for a store to [offset, offset + bytes), which lies in one chunk. */
static int region_admit_part(struct weir_region *region, uint64_t offset, uint64_t bytes)
{
    uint64_t chunk = weir__chunk_of(offset);

    if (!weir__chunk_is_storable(weir__chunk_state(&region->chunks, chunk)))
        weir__pager_revive_chunk(region, chunk);
    if (region->chunks.table[chunk].unfillable != 0)
        return -EIO;
    if (!weir__chunk_is_storable(weir__chunk_state(&region->chunks, chunk)))
        return region->pager.suspect_count > 0 ? region->pager.error : -EAGAIN;
    return region_admit(region, offset, bytes);
}

/*
 * The next part of a piece, up to the end of its chunk: no more than one chunk
 * is needed at a time, however little memory is not pinned. A piece that stops
 * half way is given again by the caller; what of it is here is passed over.
 */
static int region_write_part(struct weir_region *region, struct weir_slot slot, uint64_t at,
                             const char *data, uint64_t bytes)
{
    uint64_t fresh;
    struct region_patience patience = {0};
    int r = region_admit_part(region, at, bytes);

    while (r == -EAGAIN && region_wait_room(region, &patience))
        r = region_admit_part(region, at, bytes);
    if (r < 0)
        return r;
    fresh = region->chunks.fresh_count;
    weir__chunks_touch(&region->chunks, at, bytes);
    memcpy(region->store.base + at, data, bytes);
    weir__build_wrote(region, slot, data, bytes);
    region_stored(region, bytes, fresh);
    return 0;
}

int weir_region_write(struct weir_region *region, struct weir_slot slot, uint64_t offset,
                      const void *data, size_t bytes)
{
    struct weir__entry *entry = weir__slots_find(&region->slots, slot, EXTENT_BUILT);

    WEIR_ASSERT(region_is_mine(region));
    if (entry == NULL)
        return weir__slots_find(&region->slots, slot, EXTENT_PLACED) != NULL ? -EINVAL : -ESTALE;
    uint64_t length = weir__entry_bytes(entry);
    if (offset != weir__build_given(region, slot) || bytes > region->put_bytes_max ||
        bytes > length - offset)
        return -EINVAL;

    uint64_t written = weir__build_written(region, slot);
    while (written < offset + bytes) {
        uint64_t at = weir__entry_offset(entry) + written;
        uint64_t chunk_end = weir__round_down(at, LAYOUT_CHUNK_BYTES) + LAYOUT_CHUNK_BYTES;
        uint64_t part = weir__min(offset + bytes - written, chunk_end - at);
        int r = region_write_part(region, slot, at, (const char *)data + (written - offset), part);
        if (r < 0)
            return r;
        written += part;
    }
    weir__build_give(region, slot, offset + bytes);
    return 0;
}

/* The entry of @slot if it is an item, whole, under construction or damaged. */
static struct weir__entry *region_find(const struct weir_region *region, struct weir_slot slot)
{
    struct weir__entry *entry = weir__slots_find(&region->slots, slot, EXTENT_LIVE);

    if (WEIR_UNLIKELY(entry == NULL))
        entry = weir__slots_find(&region->slots, slot, EXTENT_BUILT);
    if (WEIR_UNLIKELY(entry == NULL))
        entry = weir__slots_find(&region->slots, slot, EXTENT_PLACED);
    if (WEIR_UNLIKELY(entry == NULL))
        entry = weir__slots_find(&region->slots, slot, EXTENT_DAMAGED);
    if (WEIR_UNLIKELY(entry == NULL))
        entry = weir__slots_find(&region->slots, slot, EXTENT_STAGED);
    return entry;
}

int weir_region_commit(struct weir_region *region, struct weir_slot slot)
{
    struct weir__entry *entry = region_find(region, slot);

    WEIR_ASSERT(region_is_mine(region));
    if (entry == NULL)
        return -ESTALE;
    bool is_placed = weir__entry_state(entry) == EXTENT_PLACED;
    if (!is_placed && weir__entry_state(entry) != EXTENT_BUILT)
        return -ESTALE;
    uint64_t bytes = weir__entry_bytes(entry);
    if (!is_placed && weir__build_given(region, slot) != bytes)
        return -EINVAL;

    if (is_placed) /* its checksum is computed when its chunk is written, as of any put */
        region_unplace(region, weir__entry_offset(entry), bytes);
    else
        weir__word_store(&region->slots.sums[slot.index], weir__build_end(region, slot));
    weir__fence_release();
    weir__word_store(&entry->tag, weir__tag_turn(weir__word_load(&entry->tag), EXTENT_LIVE));
    return 0;
}

WEIR_COLD static int region_free_slowly(struct weir_region *region, struct weir_slot slot)
{
    struct weir__entry *entry = region_find(region, slot);

    if (entry == NULL)
        return -ESTALE;

    uint64_t bytes = weir__entry_bytes(entry);
    enum weir__extent_state state = weir__entry_state(entry);
    if (WEIR_UNLIKELY(state == EXTENT_BUILT))
        weir__build_end(region, slot);
    else if (WEIR_UNLIKELY(state == EXTENT_PLACED))
        region_unplace(region, weir__entry_offset(entry), bytes);
    region->damaged_count -= state == EXTENT_DAMAGED;
    weir__space_count_free(region, bytes);
    bool is_confirmed = weir__sync_is_confirmed(region, slot.index);
    weir__word_store(&entry->tag,
                     is_confirmed ? weir__sync_freed_tag(region, slot.index)
                                  : weir__entry_tag(slot.generation + 1, 0, EXTENT_ZOMBIE, bytes));
    /* A view that sees bytes of the next item sees this tag too. */
    weir__fence_release();
    bool is_held = region->fetches.hold_count > 0 && weir__fetches_free(region, slot);
    if (!is_held && !is_confirmed)
        weir__space_release(region, slot.index);
    return 0;
}

int weir_region_free(struct weir_region *region, struct weir_slot slot)
{
    WEIR_ASSERT(region_is_mine(region));
    if (WEIR_LIKELY(weir__quick_free(region, slot)))
        return 0;
    return region_free_slowly(region, slot);
}

void weir_region_free_owner(struct weir_region *region, uint16_t owner, uint64_t *ret_slot_count)
{
    uint64_t count = 0;

    WEIR_ASSERT(region_is_mine(region));
    for (uint32_t index = 1; index <= region->slots.used_count; index++) {
        const struct weir__entry *entry = weir__region_entry(region, index);
        uint64_t tag = weir__word_load(&entry->tag);
        if (!weir__state_is_item(weir__tag_state(tag)) || weir__tag_generation(tag) % 2 == 0 ||
            weir__tag_owner(tag) != owner)
            continue;
        int r = weir_region_free(region, (struct weir_slot){index, weir__tag_generation(tag)});
        WEIR_CHECK(r == 0);
        count++;
    }
    if (ret_slot_count != NULL)
        *ret_slot_count = count;
}

/* ---- Items out -------------------------------------------------------------- */

/* It is not in the file: on its way there in a buffer, or lost. */
WEIR_COLD static int region_at_staged(struct weir_region *region, struct weir_slot slot,
                                      const void **ret_data, size_t *ret_bytes)
{
    const struct weir__entry *entry = weir__slots_find(&region->slots, slot, EXTENT_STAGED);

    if (entry == NULL)
        return weir__slots_lost(&region->slots, slot);
    *ret_data = weir__fetches_at(region, slot);
    WEIR_ASSERT(*ret_data != NULL);
    if (ret_bytes != NULL)
        *ret_bytes = weir__entry_bytes(entry);
    return 0;
}

int weir_region_at(struct weir_region *region, struct weir_slot slot, const void **ret_data,
                   size_t *ret_bytes)
{
    const struct weir__entry *entry = weir__slots_find(&region->slots, slot, EXTENT_LIVE);
    const void *data;

    WEIR_ASSERT(region_is_mine(region));
    if (WEIR_UNLIKELY(entry == NULL))
        return region_at_staged(region, slot, ret_data, ret_bytes);

    bool is_resident = weir__region_is_resident(region, entry);
    data = region->store.base + weir__entry_offset(entry);
    if (WEIR_UNLIKELY(!is_resident || region->fetched_pin_count > 0)) {
        /* A pinned copy keeps its address, also when its chunk has come back. */
        const void *fetched = weir__fetches_at(region, slot);
        if (fetched == NULL && !is_resident)
            return -EAGAIN;
        data = fetched != NULL ? fetched : data;
    }
    *ret_data = data;
    if (ret_bytes != NULL)
        *ret_bytes = weir__entry_bytes(entry);
    return 0;
}

static bool region_is_whole(enum weir__extent_state state)
{
    return state == EXTENT_LIVE || state == EXTENT_DAMAGED || state == EXTENT_STAGED;
}

/* Twice at worst: what came may be the fault of the way. */
static int region_read_whole(struct weir_region *region, struct weir_slot slot,
                             const struct weir__entry *entry, void *buffer)
{
    uint64_t bytes = weir__entry_bytes(entry);
    uint64_t sum = region->slots.sums[slot.index];

    for (int tries = 0; tries < 2; tries++) {
        int r = weir__fetches_read(region, weir__entry_offset(entry), buffer, bytes);
        if (r < 0)
            return r;
        if (sum == 0 || weir__sum(entry, buffer) == sum)
            return 0;
    }
    region->read_error_count++;
    if (weir__entry_state(entry) == EXTENT_LIVE)
        weir__space_damage(region, slot.index);
    return -EBADMSG;
}

int weir_region_read(struct weir_region *region, struct weir_slot slot, uint64_t offset,
                     void *buffer, size_t buffer_bytes, size_t *ret_bytes)
{
    const struct weir__entry *entry = region_find(region, slot);

    WEIR_ASSERT(region_is_mine(region));
    if (entry == NULL || !region_is_whole(weir__entry_state(entry)))
        return -ESTALE;

    uint64_t length = weir__entry_bytes(entry);
    uint64_t bytes = offset < length ? weir__min(length - offset, buffer_bytes) : 0;
    const void *data;
    int r = 0;
    if (bytes > 0 && weir_region_at(region, slot, &data, NULL) == 0)
        memcpy(buffer, (const char *)data + offset, bytes);
    else if (bytes == length)
        r = bytes > 0 ? region_read_whole(region, slot, entry, buffer) : 0;
    else if (bytes > 0)
        r = weir__fetches_read(region, weir__entry_offset(entry) + offset, buffer, bytes);
    if (r < 0)
        return r;
    *ret_bytes = bytes;
    return 0;
}

/* ---- Slots ------------------------------------------------------------------ */

int weir_region_slot(const struct weir_region *region, struct weir_slot slot,
                     struct weir_slot_info *ret_info)
{
    const struct weir__entry *entry = region_find(region, slot);

    WEIR_ASSERT(region_is_mine(region));
    if (entry == NULL)
        return -ESTALE;
    enum weir__extent_state state = weir__entry_state(entry);
    bool committed = region_is_whole(state);
    *ret_info = (struct weir_slot_info){
        .bytes = weir__entry_bytes(entry),
        .label = {weir__word_load(&entry->key), weir__tag_owner(weir__word_load(&entry->tag))},
        .resident = state == EXTENT_STAGED ||
                    (state == EXTENT_LIVE && (weir__region_is_resident(region, entry) ||
                                              weir__fetches_at(region, slot) != NULL)),
        .committed = committed,
        .damaged = state == EXTENT_DAMAGED,
    };
    return 0;
}

bool weir_region_next(const struct weir_region *region, struct weir_slot *slot)
{
    WEIR_ASSERT(region_is_mine(region));
    for (uint64_t index = (uint64_t)slot->index + 1; index <= region->slots.used_count; index++) {
        uint64_t tag = weir__word_load(&weir__region_entry(region, (uint32_t)index)->tag);
        if (weir__tag_generation(tag) % 2 == 1 && weir__state_is_item(weir__tag_state(tag))) {
            *slot = (struct weir_slot){(uint32_t)index, weir__tag_generation(tag)};
            return true;
        }
    }
    *slot = (struct weir_slot){0};
    return false;
}

/* ---- Background work -------------------------------------------------------- */

static int region_tick(struct weir_region *region, int completions)
{
    if (completions < 0)
        return completions;
    completions += weir__fetches_advance(region);
    weir__stage_advance(region);
    weir__clean_advance(region, false, CLEAN_TICK_BYTES);
    weir__pager_advance(region, PAGER_TICK_BYTES);
    weir__growth_advance(region);
    weir__bound_advance(region);
    /* Ahead of need; where that fails, put says so when it needs them. */
    weir__table_ahead(region);
    (void)!weir__table_ready(region, region->spare_min + TABLE_ENTRY_STEP / 4);
    weir__table_publish_figures(region);

    if (region->owns_ring) {
        int r = weir__ring_submit(region->ring);
        if (r < 0 && r != -EBUSY && r != -EAGAIN)
            return r;
    }

    int error = region->pager.error_fresh;
    region->pager.error_fresh = 0;
    return error < 0 ? error : completions;
}

int weir_region_poll(struct weir_region *region)
{
    WEIR_ASSERT(region_is_mine(region));
    WEIR_CHECK(!region->delivers);

    return region_tick(region, region->owns_ring ? weir__ring_reap(region->ring) : 0);
}

int weir_region_wait(struct weir_region *region, uint64_t timeout_ns)
{
    WEIR_ASSERT(region_is_mine(region));
    WEIR_CHECK(!region->delivers);

    bool is_idle = !region->owns_ring || weir__ring_in_flight(region->ring) == 0 ||
                   weir__pager_has_sums(region) || !weir__list_is_empty(&region->fetches.told) ||
                   !weir__list_is_empty(&region->fetches.told_pieces);
    if (is_idle)
        return weir_region_poll(region);
    return region_tick(region, weir__ring_wait(region->ring, timeout_ns));
}

/* ---- Statistics ------------------------------------------------------------- */

void weir_region_stats(const struct weir_region *region, struct weir_region_stats *ret_stats)
{
    const struct weir__figures *figures = weir__region_figures(region);
    const struct weir__chunks *chunks = &region->chunks;
    struct stat file;

    WEIR_ASSERT(region_is_mine(region));
    bool is_known = weir__sys_fstat(region->store.data_fd, &file) == 0;
    *ret_stats = (struct weir_region_stats){
        .bytes_max = region->bytes_max,
        .resident_bytes_max = region->bound.bound_bytes,
        .item_bytes_max = region->item_bytes_max,
        .put_bytes_max = region->put_bytes_max,
        .fetch_bytes_max = weir__fetches_item_max(region),
        .live_bytes = weir__word_load(&figures->live_bytes),
        .live_bytes_peak =
            weir__max(region->live_bytes_peak, weir__word_load(&figures->live_bytes)),
        .file_bytes = region->store.file_bytes,
        .disk_bytes = is_known ? (uint64_t)file.st_blocks * 512 : 0,
        .mark_bytes = region->mark_bytes,
        .free_bytes = region->extents.free_bytes + region->resting_bytes,
        .resident_bytes = chunks->resident_count * LAYOUT_CHUNK_BYTES + region->fetches.bytes +
                          weir__clean_bytes(region),
        .dirty_bytes = weir__chunks_dirty(chunks) * LAYOUT_CHUNK_BYTES,
        .fetched_bytes = region->fetches.bytes + weir__clean_bytes(region),
        .pinned_bytes = weir__word_load(&figures->pinned_bytes),
        .metadata_bytes = region->heap.bytes,
        .slot_count = weir__word_load(&figures->slot_count),
        .free_extent_count = region->extents.free_count + region->resting_count,
        .put_count = region->put_count,
        .put_bytes = weir__word_load(&figures->put_bytes),
        .written_bytes = weir__word_load(&figures->written_bytes),
        .fetch_count = region->fetch_count,
        .read_bytes = weir__word_load(&figures->read_bytes),
        .moved_bytes = region->cleaner.moved_bytes + region->compactor.moved_bytes,
        .write_error_count = region->write_error_count,
        .read_error_count = region->read_error_count,
        .growth_error_count = region->growth_error_count,
        .freed_bytes = region->named.freed_bytes,
        .moving_bytes = region->named.moving_bytes,
        .damaged_count = region->damaged_count,
        .bounded = region->store.bounded,
        .direct = region->store.direct,
        .degraded = weir__region_is_degraded(region),
        .synchronous = weir__ring_is_synchronous(region->ring),
        .movable = region->store.reserved_bytes == 0,
        .resident_wish_bytes = region->bound.wish_bytes,
        .staged_bytes = region->stager.staged_bytes,
    };
}

/* ---- Audit ------------------------------------------------------------------ */

void weir_region_audit(const struct weir_region *region)
{
    uint64_t live_bytes = 0;
    uint64_t slot_count = 0;
    uint64_t freed_bytes = 0;
    uint64_t damaged_count = 0;
    uint64_t placed_bytes = 0;

    WEIR_CHECK(region->mark_bytes <= region->store.file_bytes); /* R1 */
    WEIR_CHECK(region->store.file_bytes <= region->bytes_max);
    weir__slots_audit(&region->slots);
    weir__extents_audit(&region->extents);
    weir__space_audit(region);
    weir__growth_audit(region);
    weir__chunks_audit(&region->chunks, weir__chunk_of(region->store.file_bytes));
    for (uint32_t index = 1; index <= region->slots.used_count; index++) {
        const struct weir__entry *entry = weir__region_entry(region, index);
        enum weir__extent_state state = weir__entry_state(entry);
        bool is_named = weir__state_is_item(state);
        bool is_odd = weir__entry_generation(entry) % 2 == 1;
        WEIR_CHECK(is_odd == (is_named || weir__state_is_freed(state))); /* S1 */
        placed_bytes += state == EXTENT_PLACED ? weir__entry_bytes(entry) : 0;
        live_bytes += is_named ? weir__entry_bytes(entry) : 0;
        slot_count += is_named;
        freed_bytes += weir__state_is_freed(state) ? weir__entry_space(entry) : 0;
        damaged_count += state == EXTENT_DAMAGED;
    }
    WEIR_CHECK(damaged_count == region->damaged_count);
    WEIR_CHECK(live_bytes == weir__word_load(&weir__region_figures(region)->live_bytes));
    WEIR_CHECK(slot_count == weir__word_load(&weir__region_figures(region)->slot_count));
    WEIR_CHECK(placed_bytes <= weir__word_load(&weir__region_figures(region)->pinned_bytes));
    WEIR_CHECK(freed_bytes == region->named.freed_bytes); /* N2 */
    WEIR_CHECK(region->fetches.bytes <= region->fetches.bytes_max ||
               region->bound.is_changing); /* F1 */
    weir__move_audit(region);
    weir__bound_audit(region);
    weir__stage_audit(region);
}
