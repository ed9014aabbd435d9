/* SPDX-License-Identifier: MIT */
/*
 * clean - space back from chunks that are mostly holes
 *
 *      written, sparse       read as it is         verified, stored anew
 *      | a |  | b |    |  -> | a |  | b |    |  -> | a | b | ...       |
 *      nothing live: the chunk is emptied, all of it can be stored to
 *
 * Holes in chunks that are on disk cannot be filled without reading the chunk
 * back. So the file is let grow to 1.27 of what is live, and from
 * then on chunks to be stored to come from here: the one with the fewest live
 * bytes (greedy, as in the log-structured file system of Rosenblum and
 * Ousterhout, 1991) is emptied. It is read into a buffer that is the cleaner's
 * own, and its items are stored at a new place, a bounded number of bytes each
 * tick. The slot stays, for it names the entry and not the place. With
 * everything in memory nothing rests, and none of this happens.
 *
 * Later is better: whatever is freed before a chunk is emptied need not be moved.
 * So the next chunk is begun only when few are left that can be stored to; the
 * last of these are for the cleaner, and puts wait rather than take them.
 *
 * What survived lives on longer than what was just put, so it is not mixed with
 * that: it is packed into chunks of its own (the nest), which are soon written.
 *
 * What a sync confirmed is only copied: it moves with the next one (move.c), and so
 * its chunk is empty then and not before. Such chunks are begun earlier, and puts
 * that come too fast wait for them, for room that others will need.
 *
 * What is pinned, under construction or too large for the buffer stays; a chunk
 * that holds such an item is not begun, and set aside until something in it is
 * freed or unpinned. One with an item that has no place in one piece is so, too,
 * until there is such a place.
 *
 *   L1  a window that is being read has its half of the buffer, or all of it
 *   L2  what a window holds is as it was in the file, unless it is void
 *   L3  the nest is an extent of nobody at the end of a chunk that counts as open
 */
#include "region/region_state.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/clock.h"

#include <errno.h>
#include <string.h>

#define CLEAN_ALIGNMENT    UINT64_C(4096)
#define CLEAN_CHUNKS_MIN   3 /* one is filled, one is written, one is read */
#define CLEAN_NEST_MIN     3 /* chunks in memory, to have one for survivors */
#define CLEAN_REST_MIN     (4 * LAYOUT_CHUNK_BYTES) /* below that it is not worth it */
#define CLEAN_ITEM_COST    UINT64_C(512) /* a small item takes as long as so many bytes */
#define CLEAN_LIVE_MAX     (LAYOUT_CHUNK_BYTES * 3 / 4)
#define CLEAN_LOW_BYTES    (3 * LAYOUT_CHUNK_BYTES) /* that can be stored to: with less more is made */
#define CLEAN_KEEP_BYTES   (1 * LAYOUT_CHUNK_BYTES) /* of these, for the cleaner */
#define CLEAN_NEST_WASTE   (LAYOUT_CHUNK_BYTES / 8) /* of it, where an item does not fit any more */
#define CLEAN_FALLS        16                       /* ticks with fewer items than before */
#define CLEAN_QUIET_NS     UINT64_C(200000000)      /* after the last of many frees */
#define CLEAN_FULL_NS      UINT64_C(100000000)      /* after the file could not grow */
#define CLEAN_START_TRIES  64 /* chunks that are looked at for one that can be emptied */
#define CLEAN_PASS_MAX     16 /* chunks that would have to wait for a sync, that are passed over */
#define CLEAN_MOVING_COUNT (UINT64_C(1) << 16)
#define CLEAN_MOVING_MIN   (4 * LAYOUT_CHUNK_BYTES)
#define CLEAN_MOVING_PART  8 /* of what is live */

/* ---- When --------------------------------------------------------------- */

/* Bytes of the file that have blocks. */
static uint64_t clean_file(const struct weir_region *region)
{
    return region->store.file_bytes - region->chunks.hole_count * LAYOUT_CHUNK_BYTES;
}

/* So many are no reason to clean; what waits for a sync comes on top. */
static uint64_t clean_goal(const struct weir_region *region)
{
    uint64_t live = weir__region_live(region) - weir__move_waiting(region);

    return live / 128 * 163 + CLEAN_REST_MIN;
}

static uint64_t clean_fresh(const struct weir_region *region)
{
    return region->chunks.fresh_count * LAYOUT_CHUNK_BYTES;
}

bool weir__clean_may_grow(const struct weir_region *region, uint64_t bytes)
{
    uint64_t end = clean_file(region) + bytes;

    if (!region->pager.writes_back)
        return true;
    return region->cleaner.full_until_ns == 0 && end <= region->bytes_max &&
           end <= clean_goal(region) + weir__move_waiting(region);
}

/*
 * Whether it is a while since there were fewer and fewer items: while all is being
 * taken out, what is moved now is freed soon.
 */
static bool clean_is_quiet(struct weir_region *region)
{
    struct weir__cleaner *cleaner = &region->cleaner;
    uint64_t slot_count = weir__word_load(&weir__region_figures(region)->slot_count);

    /* What goes all at once, in a few ticks, is no draining; nor is what comes and goes. */
    if (slot_count > cleaner->seen_count)
        cleaner->fall_count = 0;
    if (slot_count < cleaner->seen_count && ++cleaner->fall_count > CLEAN_FALLS)
        cleaner->drained_ns = weir__clock_coarse_ns();
    cleaner->seen_count = slot_count;
    return cleaner->drained_ns == 0 ||
           weir__clock_coarse_ns() - cleaner->drained_ns > CLEAN_QUIET_NS;
}

bool weir__clean_is_tight(const struct weir_region *region)
{
    uint64_t soon = region->pager.zeroing_count * LAYOUT_CHUNK_BYTES;

    return !weir__clean_may_grow(region, LAYOUT_CHUNK_BYTES) &&
           clean_fresh(region) + soon < CLEAN_LOW_BYTES + region->cleaner.borrowed_bytes;
}

/* There was a time when far more was live. */
static bool clean_is_sparse(struct weir_region *region)
{
    bool is_quiet = clean_is_quiet(region);

    return is_quiet &&
           weir__growth_resting(region) > CLEAN_REST_MIN + weir__region_live(region) / 5 * 2;
}

static uint64_t clean_since_sync(const struct weir_region *region)
{
    return weir__word_load(&weir__region_figures(region)->put_bytes) - region->named.put_bytes;
}

static uint64_t clean_promised(const struct weir_region *region)
{
    return region->cleaner.promised_count * LAYOUT_CHUNK_BYTES;
}

/*
 * The same with the next sync: what it empties must last until the one after it,
 * and that is as much as was put from the last to this, or to now. When it comes
 * nobody knows, so later is not better here.
 */
static bool clean_is_short_of_promises(const struct weir_region *region)
{
    uint64_t last = weir__max(clean_since_sync(region), region->named.put_before);

    return clean_file(region) + LAYOUT_CHUNK_BYTES > clean_goal(region) &&
           clean_fresh(region) + clean_promised(region) < last + CLEAN_LOW_BYTES;
}

/* What is held twice until then is bounded. */
static bool clean_may_promise(const struct weir_region *region)
{
    const struct weir__named *named = &region->named;

    return named->mark_count > 0 && named->moving_count < CLEAN_MOVING_COUNT &&
           named->moving_bytes < CLEAN_MOVING_MIN + weir__region_live(region) / CLEAN_MOVING_PART;
}

/*
 * A put waits rather than begin a chunk for which none was promised, nor for the
 * copies, since it began to be short; five are for four, so that what is short
 * becomes less. Where it would make the file longer than its goal @ahead more are.
 */
static bool clean_is_behind(struct weir_region *region, uint64_t ahead)
{
    struct weir__cleaner *cleaner = &region->cleaner;
    uint64_t put_bytes = weir__word_load(&weir__region_figures(region)->put_bytes);

    if (!clean_may_promise(region) || !clean_is_short_of_promises(region)) {
        cleaner->short_bytes = put_bytes;
        return false;
    }
    uint64_t since = put_bytes - weir__max(cleaner->short_bytes, region->named.put_bytes);
    return clean_promised(region) < (since + region->named.moving_bytes) / 4 * 5 + ahead;
}

/* What begins now: nothing, a chunk that can be emptied at once, or any. */
enum clean_due {
    CLEAN_NOT_DUE,
    CLEAN_DUE_AT_ONCE,
    CLEAN_DUE,
};

static enum clean_due clean_is_due(struct weir_region *region, bool urgent)
{
    bool is_sparse = clean_is_sparse(region);

    if (weir__growth_resting(region) <= CLEAN_REST_MIN)
        return urgent ? CLEAN_DUE_AT_ONCE : CLEAN_NOT_DUE;
    bool is_worth_it = is_sparse && clean_promised(region) < CLEAN_LOW_BYTES;
    if (clean_may_promise(region) && (is_worth_it || clean_is_short_of_promises(region)))
        return CLEAN_DUE;
    return urgent || is_sparse || weir__clean_is_tight(region) ? CLEAN_DUE_AT_ONCE : CLEAN_NOT_DUE;
}

/*
 * With most of the memory pinned the chunk that is filled must be written before
 * it is full, and as much rests there as was gained elsewhere.
 */
static bool clean_is_cramped(const struct weir_region *region)
{
    return region->chunks.resident_max < region->chunks.pinned_count + CLEAN_CHUNKS_MIN;
}

/* One chunk more, from a hole or behind the file. */
static bool clean_grow(struct weir_region *region)
{
    int r = -ENOSPC;

    if (region->chunks.hole_count > 0)
        r = weir__growth_refill(region, LAYOUT_CHUNK_BYTES);
    if (r < 0)
        r = weir__growth_reach(region, region->store.file_bytes + LAYOUT_CHUNK_BYTES);
    if (r == -EDQUOT || r == -ENOSPC)
        region->cleaner.full_until_ns = weir__clock_ns() + CLEAN_FULL_NS;
    return r == 0;
}

/*
 * Whether what is left of the nest takes all of the chunk that is being emptied:
 * then that needs no other. A few items may be too long for the rest of the nest.
 */
static bool clean_has_nest(const struct weir_region *region)
{
    const struct weir__cleaner *cleaner = &region->cleaner;
    uint64_t chunk = cleaner->windows[cleaner->first].chunk;

    return cleaner->nest != 0 && chunk != CHUNK_NO &&
           weir__chunk_state(&region->chunks, cleaner->nest_chunk) == CHUNK_DIRTY &&
           weir__entry_space(weir__region_entry(region, cleaner->nest)) >=
               weir__chunk_live(&region->chunks, chunk) + CLEAN_NEST_WASTE;
}

/*
 * Whether waiting helps: something is being read, or there will be room for what
 * came. What is empty only with the next sync may be no help.
 */
static bool clean_is_moving(const struct weir_region *region, bool counts_waiting)
{
    bool has_read = false;

    for (uint32_t i = 0; i < CLEAN_WINDOW_COUNT; i++) {
        if (region->cleaner.windows[i].waits && !counts_waiting)
            continue;
        if (region->cleaner.windows[i].is_reading)
            return true;
        has_read |= region->cleaner.windows[i].is_read;
    }
    return has_read &&
           (!region->cleaner.is_stuck || region->chunks.queues[CHUNK_WRITING].count > 0 ||
            region->pager.zeroing_count > 0);
}

bool weir__clean_lets_begin(struct weir_region *region, uint64_t space)
{
    struct weir__cleaner *cleaner = &region->cleaner;
    uint64_t keep = clean_has_nest(region) ? 0 : CLEAN_KEEP_BYTES;

    if (clean_is_behind(region, 0)) {
        weir__clean_advance(region, false, CLEAN_PUT_BYTES);
        if (clean_is_behind(region, 0) && clean_is_moving(region, true))
            return false;
    }
    if (clean_file(region) <= clean_goal(region) + weir__move_waiting(region))
        cleaner->borrowed_bytes = 0;
    if (clean_fresh(region) >
        keep + cleaner->borrowed_bytes + weir__round_down(space, LAYOUT_CHUNK_BYTES))
        return true;
    bool may_grow =
        weir__clean_may_grow(region, LAYOUT_CHUNK_BYTES) ||
        (space > LAYOUT_CHUNK_BYTES / 2 && clean_is_due(region, false) == CLEAN_NOT_DUE);
    if (may_grow && clean_grow(region))
        return true;
    weir__clean_advance(region, true, CLEAN_PUT_BYTES);
    return !clean_is_moving(region, clean_is_behind(region, CLEAN_LOW_BYTES));
}

/* ---- What --------------------------------------------------------------- */

void weir__clean_look_again(struct weir_region *region, const struct weir__entry *entry)
{
    uint64_t first = weir__chunk_of(weir__entry_offset(entry));
    uint64_t last = weir__chunk_of(weir__entry_offset(entry) + weir__entry_space(entry) - 1);

    for (uint64_t chunk = first; chunk <= last; chunk++)
        if (weir__chunk_is_aside(&region->chunks, chunk))
            weir__chunk_file(&region->chunks, chunk);
}

bool weir__clean_is_at(const struct weir_region *region, uint64_t chunk)
{
    for (uint32_t i = 0; i < CLEAN_WINDOW_COUNT; i++)
        if (region->cleaner.windows[i].chunk == chunk)
            return true;
    return false;
}

/* What may be stored to, in pieces as it may be. */
static uint64_t clean_storable(const struct weir_region *region)
{
    return region->extents.free_bytes + (region->store.file_bytes - region->mark_bytes);
}

/* Whether @bytes fit in one piece, without the file being longer. */
static bool clean_has_place(const struct weir_region *region, uint64_t bytes)
{
    const struct weir__cleaner *cleaner = &region->cleaner;

    if (region->store.file_bytes - region->mark_bytes >= bytes ||
        weir__extents_max(&region->extents) >= bytes)
        return true;
    return cleaner->nest != 0 &&
           weir__entry_space(weir__region_entry(region, cleaner->nest)) >= bytes;
}

/* Whether growth may make such a place. */
static bool clean_may_make_place(const struct weir_region *region, uint64_t bytes)
{
    return region->cleaner.full_until_ns == 0 &&
           (region->bytes_max - region->mark_bytes >= bytes ||
            region->chunks.hole_count * LAYOUT_CHUNK_BYTES >= bytes);
}

/*
 * @bytes of it have no place in one piece: not again before there is one. Else it
 * would only be read again, and again, and puts wait for that.
 */
static void clean_lacks_room(struct weir_region *region, uint64_t chunk, uint64_t bytes)
{
    struct weir__cleaner *cleaner = &region->cleaner;
    enum weir__chunk_state state = weir__chunk_state(&region->chunks, chunk);

    if (state != CHUNK_CLEAN && state != CHUNK_COLD)
        return;
    weir__chunk_set_aside_for_room(&region->chunks, chunk);
    if (cleaner->no_room_bytes == 0 || bytes < cleaner->no_room_bytes)
        cleaner->no_room_bytes = bytes;
}

/* Chunks that were set aside for want of a place, when there is one. */
static void clean_look_for_room(struct weir_region *region)
{
    struct weir__cleaner *cleaner = &region->cleaner;

    if (cleaner->no_room_bytes == 0 || !clean_has_place(region, cleaner->no_room_bytes))
        return;
    cleaner->no_room_bytes = 0;
    for (uint64_t chunk = 0; chunk < weir__chunk_of(region->store.file_bytes); chunk++)
        if (weir__chunk_lacks_room(&region->chunks, chunk))
            weir__chunk_file(&region->chunks, chunk);
}

/* Whether what is live in @chunk has room elsewhere: on a full disk, too, before it is read. */
static bool clean_has_room(const struct weir_region *region, uint64_t chunk)
{
    uint64_t bytes = clean_storable(region);

    if (region->cleaner.full_until_ns == 0)
        bytes += region->bytes_max - clean_file(region);
    return bytes >= weir__chunk_live(&region->chunks, chunk);
}

/*
 * The chunk with the fewest live bytes, if at least a quarter of it rests; of those
 * that can be emptied at once, or (@may_wait) any.
 */
static uint64_t clean_choose(struct weir_region *region, bool may_wait)
{
    struct weir__chunks *chunks = &region->chunks;
    uint64_t chunk = weir__chunks_emptiest(chunks, CHUNK_KIND_WRITTEN, CHUNK_NO);
    uint32_t left = CLEAN_PASS_MAX;

    while (chunk != CHUNK_NO && weir__chunk_live(chunks, chunk) < CLEAN_LIVE_MAX) {
        uint64_t next = weir__chunks_emptiest(chunks, CHUNK_KIND_WRITTEN, chunk);
        if (weir__chunk_pins(chunks, chunk) > 0)
            weir__chunk_set_aside(chunks, chunk);
        else if (!may_wait && weir__sync_has_confirmed(region, chunk))
            left--;
        else if (!weir__clean_is_at(region, chunk))
            return chunk;
        if (left == 0)
            return CHUNK_NO;
        chunk = next;
    }
    return CHUNK_NO;
}

/* ---- Windows ------------------------------------------------------------ */

static char *clean_buffer(const struct weir_region *region, const struct weir__window *window)
{
    const struct weir__cleaner *cleaner = &region->cleaner;
    uint64_t half = cleaner->buffer_bytes / 2;

    return cleaner->buffer + (window == &cleaner->windows[0] ? 0 : half);
}

static bool clean_is_alone(const struct weir_region *region, const struct weir__window *window)
{
    for (uint32_t i = 0; i < CLEAN_WINDOW_COUNT; i++)
        if (&region->cleaner.windows[i] != window && region->cleaner.windows[i].chunk != CHUNK_NO)
            return false;
    return true;
}

/* Half of the buffer; for an item that is longer all of it, if nobody has the other half (L1). */
static uint64_t clean_room(const struct weir_region *region, const struct weir__window *window,
                           uint64_t bytes)
{
    const struct weir__cleaner *cleaner = &region->cleaner;
    bool has_all = bytes > cleaner->buffer_bytes / 2 && window == &cleaner->windows[0] &&
                   clean_is_alone(region, window);

    return has_all ? cleaner->buffer_bytes : cleaner->buffer_bytes / 2;
}

static bool clean_may_start(struct weir_region *region, const struct weir__window *window)
{
    struct weir__cleaner *cleaner = &region->cleaner;
    const struct weir__window *first = &cleaner->windows[0];

    if (window->chunk != CHUNK_NO || cleaner->is_resizing)
        return false;
    if (cleaner->needs_all && !clean_is_alone(region, window))
        return false; /* an item waits for the whole buffer */
    cleaner->needs_all = false;
    return window == first || first->chunk == CHUNK_NO || first->bytes <= cleaner->buffer_bytes / 2;
}

static void clean_end(struct weir__window *window)
{
    const struct weir__cleaner *cleaner = &window->region->cleaner;
    bool has_all = window->bytes > cleaner->buffer_bytes / 2;

    if (window->region->wipes && cleaner->buffer != NULL)
        memset(clean_buffer(window->region, window), 0, cleaner->buffer_bytes / (has_all ? 1 : 2));
    window->chunk = CHUNK_NO;
    window->is_read = false;
    window->waits = false;
}

/* Not again before something in it is freed or unpinned. */
static void clean_leave(struct weir_region *region, struct weir__window *window)
{
    enum weir__chunk_state state = weir__chunk_state(&region->chunks, window->chunk);

    if (state == CHUNK_CLEAN || state == CHUNK_COLD)
        weir__chunk_set_aside(&region->chunks, window->chunk);
    clean_end(window);
}

static bool clean_is_movable(const struct weir_region *region, uint32_t index)
{
    const struct weir__entry *entry = weir__region_entry(region, index);
    struct weir_slot slot = {index, weir__entry_generation(entry)};

    enum weir__extent_state state = weir__entry_state(entry);

    /* Damaged, it is confirmed no more from the next sync on. */
    return (state == EXTENT_LIVE ||
            (state == EXTENT_DAMAGED && !weir__sync_is_confirmed(region, index))) &&
           !weir__fetches_are_held(region, slot);
}

/*
 * The first item of the chunk from extent @index on that begins at @from or behind
 * it, and must be moved if the chunk is to be empty; 0: none.
 */
static uint32_t clean_item_from(const struct weir_region *region, uint32_t index, uint64_t chunk,
                                uint64_t from)
{
    uint64_t end = (chunk + 1) * LAYOUT_CHUNK_BYTES;

    while (index != 0) {
        const struct weir__entry *entry = weir__region_entry(region, index);
        enum weir__extent_state state = weir__entry_state(entry);
        uint64_t offset = weir__entry_offset(entry);
        if (offset >= end)
            return 0;
        if (offset >= from && state != EXTENT_FREE && state != EXTENT_RESTING &&
            !weir__move_frees(region, index))
            return index;
        index = weir__entry_next(entry);
    }
    return 0;
}

/* The first item of the chunk that begins at @from or behind it and is not free; 0: none. */
static uint32_t clean_next_item(const struct weir_region *region, uint64_t chunk, uint64_t from)
{
    return clean_item_from(region, region->chunks.table[chunk].first, chunk, from);
}

/* There is nothing more to be read of the chunk, or not now. */
static void clean_stop(struct weir_region *region, struct weir__window *window)
{
    if (window->waits && clean_next_item(region, window->chunk, 0) == 0)
        region->cleaner.promised_count++;
    if (region->cleaner.needs_all)
        clean_end(window);
    else
        clean_leave(region, window);
}

/*
 * Read what comes next of the chunk: as many items as there is room for. false:
 * there are none, or one of them cannot be moved, and then the others need not.
 */
static bool clean_read(struct weir_region *region, struct weir__window *window)
{
    uint32_t index = clean_next_item(region, window->chunk, window->next);
    uint64_t end = 0;

    window->from = 0;
    while (index != 0) {
        const struct weir__entry *entry = weir__region_entry(region, index);
        uint64_t offset = weir__entry_offset(entry);
        uint64_t item_end = offset + weir__entry_space(entry);
        uint64_t from = end == 0 ? weir__round_down(offset, CLEAN_ALIGNMENT) : window->from;
        if (!clean_is_movable(region, index))
            return false;
        uint64_t bytes = weir__round_up(item_end, CLEAN_ALIGNMENT) - from;
        if (bytes > clean_room(region, window, end == 0 ? bytes : 0)) {
            region->cleaner.needs_all |= end == 0 && bytes <= region->cleaner.buffer_bytes;
            break;
        }
        window->from = from;
        end = item_end;
        index = clean_item_from(region, weir__entry_next(entry), window->chunk, item_end);
    }
    if (end == 0)
        return false;

    window->next = end;
    window->is_void = false;
    window->is_reading = true;
    window->is_read = false;
    window->bytes = weir__round_up(end, CLEAN_ALIGNMENT) - window->from;
    weir__fetches_read_own(region, &window->operation, clean_buffer(region, window), window->bytes,
                           window->from);
    return true;
}

static void clean_read_complete(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct weir__window *window = WEIR_CONTAINER_OF(operation, struct weir__window, operation);
    struct weir_region *region = window->region;

    (void)flags;
    window->is_reading = false;
    weir__fetches_uncache(region, window->from, window->bytes);
    if (window->is_void) {
        clean_end(window);
    } else if (result < 0 || (uint64_t)result != window->bytes) {
        region->read_error_count++;
        clean_leave(region, window);
    } else {
        weir__word_add(&weir__region_figures(region)->read_bytes, window->bytes);
        window->is_read = true;
    }
}

void weir__clean_forget(struct weir_region *region, uint64_t chunk)
{
    for (uint32_t i = 0; i < CLEAN_WINDOW_COUNT; i++) {
        struct weir__window *window = &region->cleaner.windows[i];
        if (window->chunk != chunk)
            continue;
        window->is_void = true;
        if (!window->is_reading)
            clean_end(window);
    }
}

/* ---- The nest ----------------------------------------------------------- */

static void clean_close_nest(struct weir_region *region)
{
    struct weir__cleaner *cleaner = &region->cleaner;
    uint32_t nest = cleaner->nest;

    if (cleaner->nest_chunk == CHUNK_NO)
        return;
    WEIR_ASSERT(region->chunks.table[cleaner->nest_chunk].open > 0); /* L3 */
    region->chunks.table[cleaner->nest_chunk].open--;
    cleaner->nest_chunk = CHUNK_NO;
    cleaner->nest = 0;
    if (nest != 0)
        weir__space_release(region, nest);
}

/* What is ready, or else any. */
static uint64_t clean_choose_nest(const struct weir_region *region)
{
    uint32_t i = region->chunks.queues[CHUNK_FRESH].head;

    while (i != 0 && weir__chunk_live(&region->chunks, i - 1) > 0)
        i = region->chunks.table[i - 1].next;
    return i != 0 ? i - 1 : weir__chunks_emptiest(&region->chunks, CHUNK_KIND_FRESH, CHUNK_NO);
}

/* A chunk in which nothing is, for survivors only. */
static bool clean_open_nest(struct weir_region *region)
{
    struct weir__cleaner *cleaner = &region->cleaner;
    uint64_t chunk = clean_choose_nest(region);

    if (region->chunks.resident_max < region->chunks.pinned_count + CLEAN_NEST_MIN)
        return false;
    if (chunk != CHUNK_NO && chunk * LAYOUT_CHUNK_BYTES >= region->mark_bytes)
        chunk = weir__chunk_of(weir__round_up(region->mark_bytes, LAYOUT_CHUNK_BYTES));
    if (chunk == CHUNK_NO || (chunk + 1) * LAYOUT_CHUNK_BYTES > region->store.file_bytes ||
        weir__chunk_state(&region->chunks, chunk) != CHUNK_FRESH ||
        weir__chunk_live(&region->chunks, chunk) > 0)
        return false;
    if (weir__table_ready(region, region->spare_min) < 0)
        return false;
    cleaner->nest = weir__space_take_chunk(region, chunk);
    cleaner->nest_chunk = chunk;
    region->chunks.table[chunk].open++;
    return true;
}

/* Where @space bytes of a survivor go; -EAGAIN: no memory now. */
static int clean_place(struct weir_region *region, uint64_t space, uint64_t alignment,
                       uint32_t *ret_target)
{
    struct weir__cleaner *cleaner = &region->cleaner;
    bool fits;

    if (cleaner->nest_chunk != CHUNK_NO &&
        !weir__chunk_is_storable(weir__chunk_state(&region->chunks, cleaner->nest_chunk)))
        clean_close_nest(region); /* written, for others were pinned */
    fits =
        cleaner->nest != 0 && weir__entry_space(weir__region_entry(region, cleaner->nest)) >= space;
    if (alignment > LAYOUT_GRANULE) {
        fits = false; /* it would leave gaps */
    } else if (!fits && space <= LAYOUT_CHUNK_BYTES / 4) {
        clean_close_nest(region);
        fits = clean_open_nest(region);
    }
    /* One is zeroed, and free in a moment: the file need not be longer. */
    if (!fits && region->pager.zeroing_count > 0 && clean_fresh(region) == 0)
        return -EAGAIN;
    if (!fits) {
        uint64_t file_bytes = clean_file(region);
        int r = weir__region_take(region, space, alignment, ret_target);
        cleaner->borrowed_bytes += clean_file(region) - file_bytes;
        if (r == -EDQUOT || r == -ENOSPC)
            cleaner->full_until_ns = weir__clock_ns() + CLEAN_FULL_NS;
        return r;
    }

    if (weir__chunk_state(&region->chunks, cleaner->nest_chunk) == CHUNK_FRESH &&
        !weir__chunk_is_ready(&region->chunks, cleaner->nest_chunk) &&
        !weir__pager_make_room(region, 1))
        return -EAGAIN;
    int r = weir__table_ready(region, region->spare_min);
    if (r < 0)
        return r;
    *ret_target = weir__space_carve(region, &cleaner->nest, space);
    return 0;
}

/* ---- Moving ------------------------------------------------------------- */

/* One item, as it came: 0, -EAGAIN (no room now), or why it stays. */
static int clean_move(struct weir_region *region, struct weir__window *window, uint32_t index)
{
    struct weir__entry *entry = weir__region_entry(region, index);
    uint64_t offset = weir__entry_offset(entry);
    uint64_t bytes = weir__entry_bytes(entry);
    uint64_t space = weir__entry_space(entry);
    char *data = clean_buffer(region, window) + (offset - window->from);
    uint32_t target;

    weir__fetches_overlay(region, offset, bytes, data);
    /* A damaged one is no better elsewhere, but it must not hold its chunk for ever. */
    if (weir__entry_state(entry) == EXTENT_LIVE &&
        weir__sum(entry, data) != region->slots.sums[index])
        return -EBADMSG;
    int r = clean_place(region, space, weir__entry_alignment(entry), &target);
    if (r < 0)
        return r;

    uint64_t to = weir__entry_offset(weir__region_entry(region, target));
    weir__chunks_touch(&region->chunks, to, space);
    if (bytes > 0)
        memcpy(region->store.base + to, data, bytes);
    if (weir__sync_is_confirmed(region, index))
        weir__move_begin(region, index, target);
    else
        weir__space_move(region, index, target);
    region->cleaner.moved_bytes += bytes;
    return 0;
}

/*
 * An item came back other than it was put. It is read once more, as the first of
 * its window; then it is damaged, unless part of it is in another chunk, which may
 * have been on its way to the disk meanwhile.
 */
static void clean_doubt(struct weir_region *region, struct weir__window *window, uint32_t index)
{
    const struct weir__entry *entry = weir__region_entry(region, index);
    uint64_t offset = weir__entry_offset(entry);

    window->is_read = false;
    if (window->doubted == index) {
        region->read_error_count++;
        window->doubted = 0;
        if (!weir__chunk_is_one(offset, weir__entry_space(entry))) {
            clean_leave(region, window);
            return;
        }
        weir__space_damage(region, index);
    } else {
        window->doubted = index;
    }
    window->next = offset;
    if (!clean_read(region, window))
        clean_stop(region, window);
}

/*
 * Items of a window that has come, as far as there is room, up to @budget bytes;
 * what is left of the budget. A window that is done with goes on to the next.
 */
static uint64_t clean_move_window(struct weir_region *region, struct weir__window *window,
                                  uint64_t budget)
{
    while (window->is_read && budget > 0) {
        uint32_t index = clean_next_item(region, window->chunk, window->from);
        const struct weir__entry *entry = index != 0 ? weir__region_entry(region, index) : NULL;
        uint64_t space = entry != NULL ? weir__entry_space(entry) : 0;

        if (entry == NULL || weir__entry_offset(entry) + space > window->next) {
            window->is_read = false;
            if (!clean_read(region, window))
                clean_stop(region, window);
            break;
        }
        int r = clean_is_movable(region, index) ? clean_move(region, window, index) : -EBUSY;
        region->cleaner.is_stuck = r == -EAGAIN;
        if (r == -EAGAIN)
            return 0;
        if (r == -EDQUOT || r == -ENOSPC || r == -ENOMEM) {
            clean_lacks_room(region, window->chunk,
                             weir__space_most(space, weir__entry_alignment(entry)));
            clean_end(window);
            break;
        }
        if (r == -EBADMSG) {
            clean_doubt(region, window, index);
            break;
        }
        if (r < 0) {
            clean_leave(region, window);
            break;
        }
        budget -= weir__min(budget, weir__max(space, CLEAN_ITEM_COST));
    }
    return budget;
}

/*
 * One chunk after the other: two that are half emptied have taken room and given
 * none. What is behind the first is only read ahead.
 */
static void clean_move_read(struct weir_region *region, uint64_t budget)
{
    struct weir__cleaner *cleaner = &region->cleaner;

    for (uint32_t i = 0; i < CLEAN_WINDOW_COUNT && budget > 0; i++) {
        if (cleaner->windows[cleaner->first].chunk == CHUNK_NO)
            cleaner->first = (cleaner->first + 1) % CLEAN_WINDOW_COUNT;
        budget = clean_move_window(region, &cleaner->windows[cleaner->first], budget);
        if (cleaner->windows[cleaner->first].chunk != CHUNK_NO)
            return;
    }
}

/* ---- Advancing ---------------------------------------------------------- */

static bool clean_has_buffer(struct weir_region *region)
{
    struct weir__cleaner *cleaner = &region->cleaner;

    if (cleaner->buffer == NULL && weir__pager_yield(region, cleaner->buffer_bytes))
        cleaner->buffer = weir__arena_alloc(&cleaner->arena, cleaner->buffer_bytes);
    return cleaner->buffer != NULL;
}

/*
 * Whether all that is live in @chunk can be moved and has a place: else nothing of
 * it is, for a chunk that is half emptied has cost reads and room and gives none.
 */
static bool clean_can_empty(struct weir_region *region, uint64_t chunk)
{
    uint32_t index = clean_next_item(region, chunk, 0);
    uint64_t most = 0;

    if (index == 0) { /* but for the next sync nothing is left to be done */
        weir__chunk_set_aside(&region->chunks, chunk);
        region->cleaner.promised_count++;
        return false;
    }
    while (index != 0) {
        const struct weir__entry *entry = weir__region_entry(region, index);
        uint64_t from = weir__round_down(weir__entry_offset(entry), CLEAN_ALIGNMENT);
        uint64_t end = weir__entry_offset(entry) + weir__entry_space(entry);
        bool is_too_long =
            weir__round_up(end, CLEAN_ALIGNMENT) - from > region->cleaner.buffer_bytes;
        if (is_too_long || !clean_is_movable(region, index)) {
            weir__chunk_set_aside(&region->chunks, chunk);
            return false;
        }
        most = weir__max(most,
                         weir__space_most(weir__entry_space(entry), weir__entry_alignment(entry)));
        index = clean_item_from(region, weir__entry_next(entry), chunk, end);
    }
    if (clean_has_place(region, most) || clean_may_make_place(region, most))
        return true;
    clean_lacks_room(region, chunk, most);
    return false;
}

/* The next chunk to be emptied; those that cannot be are set aside. */
static uint64_t clean_find(struct weir_region *region, bool may_wait)
{
    clean_look_for_room(region);
    for (uint32_t left = CLEAN_START_TRIES; left > 0; left--) {
        uint64_t chunk = clean_choose(region, may_wait);
        if (chunk == CHUNK_NO || !clean_has_room(region, chunk))
            return CHUNK_NO;
        if (clean_can_empty(region, chunk))
            return chunk;
    }
    return CHUNK_NO;
}

static void clean_start(struct weir_region *region, struct weir__window *window, bool may_wait)
{
    if (weir__table_ready(region, region->spare_min) < 0)
        return; /* nothing can be moved */
    uint64_t chunk = clean_find(region, may_wait);
    if (chunk == CHUNK_NO || !clean_has_buffer(region))
        return;
    window->waits = weir__sync_has_confirmed(region, chunk);
    window->chunk = chunk;
    window->next = 0;
    window->bytes = 0;
    window->doubted = 0;
    if (!clean_read(region, window))
        clean_stop(region, window);
}

static void clean_free_buffer(struct weir__cleaner *cleaner)
{
    if (cleaner->buffer != NULL)
        weir__arena_free(&cleaner->arena, cleaner->buffer, cleaner->buffer_bytes);
    cleaner->buffer = NULL;
}

/* No chunk is being emptied, and little rests: what the cleaner holds goes. */
static void clean_retire(struct weir_region *region)
{
    struct weir__cleaner *cleaner = &region->cleaner;

    if (weir__growth_resting(region) > CLEAN_REST_MIN / 2)
        return;
    for (uint32_t i = 0; i < CLEAN_WINDOW_COUNT; i++)
        if (cleaner->windows[i].chunk != CHUNK_NO)
            return;
    clean_close_nest(region);
    clean_free_buffer(cleaner);
}

bool weir__clean_is_idle(const struct weir_region *region)
{
    return region->pager.suspect_count > 0 || clean_is_cramped(region);
}

bool weir__clean_yield(struct weir_region *region)
{
    struct weir__cleaner *cleaner = &region->cleaner;

    for (uint32_t i = 0; i < CLEAN_WINDOW_COUNT; i++) {
        struct weir__window *window = &cleaner->windows[i];
        if (window->is_reading)
            window->is_void = true;
        else if (window->chunk != CHUNK_NO)
            clean_end(window);
    }
    if (weir__clean_is_reading(region))
        return false;
    clean_free_buffer(cleaner);
    return true;
}

void weir__clean_advance(struct weir_region *region, bool urgent, uint64_t budget)
{
    struct weir__cleaner *cleaner = &region->cleaner;

    if (!region->pager.writes_back)
        return;

    if (cleaner->full_until_ns != 0 && weir__clock_ns() >= cleaner->full_until_ns)
        cleaner->full_until_ns = 0;
    clean_move_read(region, budget);
    if (cleaner->is_stuck)
        weir__pager_advance(region, PAGER_PUT_BYTES);
    if (weir__clean_is_idle(region))
        return;
    for (uint32_t i = 0; i < CLEAN_WINDOW_COUNT; i++) {
        enum clean_due due = clean_may_start(region, &cleaner->windows[i])
                                 ? clean_is_due(region, urgent)
                                 : CLEAN_NOT_DUE;
        if (due != CLEAN_NOT_DUE)
            clean_start(region, &cleaner->windows[i], due == CLEAN_DUE);
    }
    clean_retire(region);
}

/* ---- Lifecycle ---------------------------------------------------------- */

void weir__clean_init(struct weir_region *region, uint64_t bytes)
{
    struct weir__cleaner *cleaner = &region->cleaner;

    cleaner->buffer_bytes = bytes;
    cleaner->nest_chunk = CHUNK_NO;
    for (uint32_t i = 0; i < CLEAN_WINDOW_COUNT; i++)
        cleaner->windows[i] = (struct weir__window){
            .operation = {clean_read_complete},
            .region = region,
            .chunk = CHUNK_NO,
        };
}

bool weir__clean_is_reading(const struct weir_region *region)
{
    for (uint32_t i = 0; i < CLEAN_WINDOW_COUNT; i++)
        if (region->cleaner.windows[i].is_reading)
            return true;
    return false;
}

/* Chunks that were set aside may have been so for an item that was too long. */
static void clean_look_at_all_again(struct weir_region *region)
{
    for (uint64_t chunk = 0; chunk < weir__chunk_of(region->store.file_bytes); chunk++)
        if (weir__chunk_is_aside(&region->chunks, chunk))
            weir__chunk_file(&region->chunks, chunk);
}

void weir__clean_resize(struct weir_region *region, uint64_t bytes)
{
    struct weir__cleaner *cleaner = &region->cleaner;

    if (bytes == cleaner->buffer_bytes) {
        cleaner->is_resizing = false;
        return;
    }
    cleaner->is_resizing = true;
    if (!weir__clean_yield(region))
        return;
    if (bytes > cleaner->buffer_bytes)
        clean_look_at_all_again(region);
    cleaner->buffer_bytes = bytes;
    cleaner->is_resizing = false;
}

void weir__clean_resume(struct weir_region *region)
{
    struct weir__cleaner *cleaner = &region->cleaner;

    cleaner->promised_count = 0;
    for (uint32_t i = 0; i < CLEAN_WINDOW_COUNT; i++)
        cleaner->windows[i].waits = cleaner->windows[i].chunk != CHUNK_NO;
    clean_look_at_all_again(region);
}

uint64_t weir__clean_bytes(const struct weir_region *region)
{
    return region->cleaner.buffer != NULL ? region->cleaner.buffer_bytes : 0;
}

void weir__clean_deinit(struct weir_region *region)
{
    struct weir__cleaner *cleaner = &region->cleaner;

    WEIR_CHECK(!weir__clean_is_reading(region));
    clean_free_buffer(cleaner);
}
