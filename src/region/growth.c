/* SPDX-License-Identifier: MIT */
/*
 * growth - how long the file is, and where it has blocks
 *
 *      0            mark       file           end
 *      | live | hole | live | room ahead | being reserved, or given back |
 *
 * A put should find its room ready: blocks reserved, and pages there. So when
 * little of it is left the next step is reserved through the ring, and the chunks
 * next to the mark are faulted in there; how far ahead follows from how fast the
 * mark rises. A put that is faster than that does the same by itself, while the
 * other is under way: to reserve a block twice is to reserve it once. But it waits
 * for the lock of the file, and that may be held for as long as the disk takes to
 * say which blocks are free, so blocks come far ahead.
 *
 * A chunk that has its pages is ready, and in memory. Where memory is counted it is
 * one at most, the one that is begun next, and it is given back if anybody needs
 * the memory.
 *
 * Space goes back unasked. The tail above what the mark reached lately is cut by
 * steps: its blocks and pages are freed through the ring, then the empty tail is
 * cut off, which is cheap. Whole chunks under the mark that were free for two
 * looks become holes, except a reserve. A hole rests like a cold chunk: it is in
 * no index until its blocks are reserved again, so a full disk cannot meet a
 * store.
 *
 * One thing at a time is under way in the ring. Nobody cuts the file meanwhile;
 * what failed is cut off when it has ended.
 *
 *   G1  file_bytes <= end_bytes; the file is never longer than end_bytes
 *   G2  taken_bytes, what the cap gave, is end_bytes less hole_bytes
 *   G3  hole_bytes counts the HOLE chunks that nothing is under way for
 *   G4  what lies above the mark may be stored to
 */
#include "region/region_state.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#define GROWTH_STEP_BYTES      LAYOUT_CHUNK_BYTES
#define GROWTH_STEP_FAST_BYTES (2 * LAYOUT_CHUNK_BYTES)
#define GROWTH_AHEAD_MIN       (LAYOUT_CHUNK_BYTES / 4)
#define GROWTH_AHEAD_MAX       (16 * LAYOUT_CHUNK_BYTES)
#define GROWTH_AHEAD_PART      64                 /* of the file: no more is held ready */
#define GROWTH_AHEAD_NS        UINT64_C(30000000) /* what is held ready is filled in that time */
#define GROWTH_PAGES_PART      2                  /* of what is held ready: with pages */
#define GROWTH_RETRY_NS        UINT64_C(100000000)
#define GROWTH_WINDOW_NS       UINT64_C(100000000)
#define GROWTH_PACE_NS         UINT64_C(4000000) /* between two steps of giving back */
#define GROWTH_TRIM_BYTES      (8 * LAYOUT_CHUNK_BYTES)
#define GROWTH_KEEP_BYTES      (2 * LAYOUT_CHUNK_BYTES)
#define GROWTH_BACK_BYTES      (8 * LAYOUT_CHUNK_BYTES) /* given back at once, through the ring */
#define GROWTH_BACK_SYNC_BYTES LAYOUT_CHUNK_BYTES       /* and without one */
#define GROWTH_LOOK_COUNT      256                      /* chunks in one tick */
#define GROWTH_LOOK_NS         UINT64_C(200000000)      /* between two looks */
#define GROWTH_IDLE_LOOKS      2
#define GROWTH_REFUSED_NS      UINT64_C(2000000000) /* a disk that said so is full for that time */
#define GROWTH_RESERVE_CHUNKS  4 /* free chunks that stay reserved, and a part of what is live */
#define GROWTH_RESERVE_PART    16
#define GROWTH_READY_MIN       8 /* chunks in memory, of which one may be ready and yet hold nothing */

/* ---- The cap ------------------------------------------------------------ */

static bool growth_take(struct weir__growth *growth, uint64_t bytes)
{
    if (bytes > 0 && growth->cap.take != NULL && !growth->cap.take(growth->cap.context, bytes))
        return false;
    growth->taken_bytes += bytes;
    return true;
}

static void growth_give(struct weir__growth *growth, uint64_t bytes)
{
    WEIR_ASSERT(growth->taken_bytes >= bytes);
    growth->taken_bytes -= bytes;
    if (bytes > 0 && growth->cap.take != NULL)
        growth->cap.give(growth->cap.context, bytes);
}

/* ---- Length ------------------------------------------------------------- */

static void growth_publish(struct weir_region *region)
{
    struct weir__figures *figures = weir__region_figures(region);
    struct stat file;

    weir__word_store(&figures->file_bytes, region->store.file_bytes);
    if (weir__sys_fstat(region->store.data_fd, &file) == 0)
        weir__word_store(&figures->disk_bytes, (uint64_t)file.st_blocks * 512);
}

/* Whether the file system has room for @bytes more, the floor left alone; 0, -ENOSPC. */
static int growth_has_space(const struct weir_region *region, uint64_t bytes)
{
    uint64_t floor_bytes = region->store.floor_bytes;
    uint64_t free_bytes;
    bool memory_backed;
    int r = weir__sys_fstatfs(region->store.data_fd, &free_bytes, &memory_backed);

    if (r < 0)
        return r;
    return free_bytes < floor_bytes || free_bytes - floor_bytes < bytes ? -ENOSPC : 0;
}

/*
 * What failed lies behind the end of the file: ext4 keeps what it got of it, and
 * the disk full. Not while something is under way there; where it cannot be cut
 * off (a file system that has become read-only) it is tried again.
 */
static void growth_settle(struct weir_region *region)
{
    struct weir__growth *growth = &region->growth;
    uint64_t file_bytes = region->store.file_bytes;

    if (growth->end_bytes == file_bytes || growth->kind == GROWTH_EXTEND ||
        growth->kind == GROWTH_SHRINK)
        return;
    if (weir__sys_ftruncate(region->store.data_fd, file_bytes) < 0)
        return;
    growth_give(growth, growth->end_bytes - file_bytes);
    growth->end_bytes = file_bytes;
    growth_publish(region);
}

/* Its blocks are there: map it, and stores may go there; 0, or what mmap(2) says. */
static int growth_accept(struct weir_region *region, uint64_t end)
{
    struct weir__store *store = &region->store;
    int r = weir__store_map(region, end);

    if (r < 0)
        return r;
    for (uint64_t chunk = weir__chunk_of(store->file_bytes); chunk < weir__chunk_of(end); chunk++)
        weir__chunk_turn(&region->chunks, chunk, CHUNK_FRESH);
    store->file_bytes = end;
    weir__table_spare(region, end);
    growth_publish(region);
    return 0;
}

/* Ask whether the file may reach @end, before it does. */
static int growth_ask(struct weir_region *region, uint64_t end)
{
    struct weir__growth *growth = &region->growth;

    /* The limit may have been lowered since open; to pass it would be a signal. */
    if (end > region->bytes_max || end > weir__sys_file_bytes_max())
        return -EDQUOT;
    int r = weir__table_cover(region, end);
    if (r < 0 || end <= growth->end_bytes)
        return r;
    if (!growth_take(growth, end - growth->end_bytes))
        return -EDQUOT;
    growth->end_bytes = end;
    return 0;
}

static int growth_extend(struct weir_region *region, uint64_t end)
{
    struct weir__store *store = &region->store;
    int r = growth_ask(region, end);

    if (r < 0)
        return r;
    r = weir__table_ready(region, weir__region_spare(end));
    if (r < 0) {
        growth_settle(region);
        return r;
    }
    if (store->floor_bytes > 0)
        r = growth_has_space(region, end - store->file_bytes);
    if (r == 0)
        r = weir__sys_fallocate(store->data_fd, 0, store->file_bytes, end - store->file_bytes);
    if (r == 0)
        r = growth_accept(region, end);
    if (r < 0)
        growth_settle(region);
    return r == -EDQUOT ? -ENOSPC : r; /* a quota of the file system is its limit, not ours */
}

/* Where the next step behind @end ends; it is not for a step ahead that chunks are cleaned. */
static uint64_t growth_step_end(const struct weir_region *region, uint64_t end)
{
    bool is_fast = region->growth.ahead_bytes > GROWTH_STEP_BYTES;
    uint64_t step = is_fast ? GROWTH_STEP_FAST_BYTES : GROWTH_STEP_BYTES;

    while (step > 0 && !weir__clean_may_grow(region, end + step - region->store.file_bytes))
        step -= LAYOUT_CHUNK_BYTES;
    return end + step;
}

int weir__growth_reach(struct weir_region *region, uint64_t end)
{
    const struct weir__growth *growth = &region->growth;
    uint64_t need = weir__round_up(end, LAYOUT_CHUNK_BYTES);

    /* A hole that was just filled may have lowered the mark. */
    if (need <= region->store.file_bytes)
        return 0;
    if (need > region->bytes_max)
        return -EDQUOT;
    if (region->store.reserved_bytes == 0 && region->pin_count > 0)
        return -EAGAIN; /* the mapping may move, and somebody holds an address */
    if (growth->kind == GROWTH_SHRINK)
        return -EAGAIN; /* there, at this moment, blocks are given back */

    /* A step ahead where there is room for it, else what fits. */
    uint64_t step = growth->kind == GROWTH_EXTEND ? growth->to : growth_step_end(region, need);
    step = weir__min(weir__round_up(weir__max(step, end), LAYOUT_CHUNK_BYTES), region->bytes_max);
    int r = growth_extend(region, step);
    if ((r == -ENOSPC || r == -EDQUOT) && need < step)
        r = growth_extend(region, need);
    region->growth_error_count += r < 0;
    if (r == -ENOSPC)
        region->growth.refused_ns = weir__clock_ns();
    return r;
}

/* ---- Holes -------------------------------------------------------------- */

/* Blocks are reserved in [from, to) again: it may be stored to. */
static void growth_fill_holes(struct weir_region *region, uint64_t from, uint64_t to)
{
    for (uint64_t chunk = weir__chunk_of(from); chunk < weir__chunk_of(to); chunk++) {
        region->chunks.table[chunk].idle = 0;
        weir__chunk_turn(&region->chunks, chunk, CHUNK_FRESH);
    }
    /* Waking the last may lower the mark, and an extent may reach over all of them. */
    for (uint64_t chunk = weir__chunk_of(from); chunk < weir__chunk_of(to); chunk++)
        weir__space_wake(region, chunk);
    growth_publish(region);
}

/* They stay holes; what a failed fallocate() got there goes back. */
static void growth_leave_holes(struct weir_region *region, uint64_t from, uint64_t to)
{
    struct weir__growth *growth = &region->growth;

    (void)!weir__sys_fallocate(region->store.data_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                               from, to - from);
    growth->hole_bytes += to - from;
    growth_give(growth, to - from);
}

/* The first run of @count holes that nothing is under way for; false: none. */
static bool growth_find_holes(const struct weir_region *region, uint64_t count, uint64_t *ret_from)
{
    const struct weir__growth *growth = &region->growth;
    bool is_busy = growth->kind == GROWTH_PUNCH || growth->kind == GROWTH_REFILL;
    uint64_t end = weir__chunk_of(region->mark_bytes);
    uint64_t run = 0;

    if (growth->hole_bytes < count * LAYOUT_CHUNK_BYTES)
        return false;
    for (uint64_t chunk = weir__chunk_of(growth->hole_low); chunk < end; chunk++) {
        uint64_t at = chunk * LAYOUT_CHUNK_BYTES;
        bool is_free = weir__chunk_state(&region->chunks, chunk) == CHUNK_HOLE &&
                       !(is_busy && at >= growth->from && at < growth->to);
        run = is_free ? run + 1 : 0;
        if (run == count) {
            *ret_from = at + LAYOUT_CHUNK_BYTES - count * LAYOUT_CHUNK_BYTES;
            return true;
        }
    }
    return false;
}

int weir__growth_refill(struct weir_region *region, uint64_t space)
{
    struct weir__growth *growth = &region->growth;
    uint64_t count = (space + LAYOUT_CHUNK_BYTES - 1) / LAYOUT_CHUNK_BYTES;
    uint64_t bytes = count * LAYOUT_CHUNK_BYTES;
    uint64_t from;

    if (!growth_find_holes(region, count, &from))
        return -ENOSPC;
    if (!growth_take(growth, bytes))
        return -EDQUOT;
    growth->hole_bytes -= bytes;
    int r = region->store.floor_bytes > 0 ? growth_has_space(region, bytes) : 0;
    if (r == 0)
        r = weir__sys_fallocate(region->store.data_fd, 0, from, bytes);
    if (r < 0) {
        growth->refused_ns = weir__clock_ns();
        growth_leave_holes(region, from, from + bytes);
        return r == -EDQUOT ? -ENOSPC : r;
    }
    growth_fill_holes(region, from, from + bytes);
    return 0;
}

/* ---- Ahead -------------------------------------------------------------- */

static void growth_begin(struct weir_region *region, enum weir__growth_kind kind, uint64_t from,
                         uint64_t to)
{
    struct weir__growth *growth = &region->growth;
    bool gives_back = kind == GROWTH_SHRINK || kind == GROWTH_PUNCH;

    WEIR_ASSERT(growth->kind == GROWTH_NONE);
    growth->kind = kind;
    growth->from = from;
    growth->to = to;
    weir__ring_fallocate(region->ring, &growth->operation, region->store.data_fd,
                         gives_back ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE : 0, from,
                         to - from);
}

static void growth_complete(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct weir__growth *growth = WEIR_CONTAINER_OF(operation, struct weir__growth, operation);
    struct weir_region *region = growth->region;
    enum weir__growth_kind kind = growth->kind;

    (void)flags;
    growth->kind = GROWTH_NONE;
    if (result < 0)
        growth->retry_ns = weir__clock_ns() + GROWTH_RETRY_NS;
    switch (kind) {
    case GROWTH_EXTEND: /* a put may have reached further meanwhile */
        if (result == 0 && growth->to > region->store.file_bytes)
            (void)!growth_accept(region, growth->to);
        growth_settle(region);
        break;
    case GROWTH_SHRINK: /* where nothing could be punched, the cut frees it */
        growth_settle(region);
        break;
    case GROWTH_PUNCH:
        if (result == 0) {
            growth->hole_bytes += growth->to - growth->from;
            growth_give(growth, growth->to - growth->from);
            growth_publish(region);
        } else {
            /* What is missing of it is not known, so all is reserved anew. */
            growth->cannot_punch = true;
            growth_begin(region, GROWTH_REFILL, growth->from, growth->to);
        }
        break;
    case GROWTH_REFILL:
        if (result == 0)
            growth_fill_holes(region, growth->from, growth->to);
        else
            growth_leave_holes(region, growth->from, growth->to);
        break;
    case GROWTH_NONE:
        WEIR_CHECK(kind != GROWTH_NONE);
    }
}

static void growth_prefault_complete(struct weir_operation *operation, int32_t result,
                                     uint32_t flags)
{
    struct weir__prefault *prefault =
        WEIR_CONTAINER_OF(operation, struct weir__prefault, operation);

    (void)flags;
    prefault->chunk = CHUNK_NO;
    prefault->region->growth.prefault_count--;
    if (result == -EINVAL) /* before 5.14 */
        prefault->region->growth.cannot_prefault = true;
}

/*
 * How much is held ready: what the mark needs in some milliseconds, and never
 * more than a small part of the file.
 */
static void growth_pace(struct weir_region *region, uint64_t now_ns)
{
    struct weir__growth *growth = &region->growth;
    uint64_t chunk = weir__chunk_of(region->mark_bytes);
    uint64_t most = weir__max(region->store.file_bytes / GROWTH_AHEAD_PART, LAYOUT_CHUNK_BYTES);

    if (chunk != growth->pace_chunk) {
        uint64_t risen = chunk > growth->pace_chunk ? chunk - growth->pace_chunk : 0;
        uint64_t elapsed_ns = weir__max(now_ns - growth->pace_ns, 1);
        uint64_t ahead =
            risen * LAYOUT_CHUNK_BYTES * (GROWTH_AHEAD_NS / 1000) / weir__max(elapsed_ns / 1000, 1);
        growth->ahead_bytes =
            weir__max(weir__min(weir__min(ahead, most), GROWTH_AHEAD_MAX), GROWTH_AHEAD_MIN);
        growth->pace_chunk = chunk;
        growth->pace_ns = now_ns;
    }
    growth->look_at = (chunk + 1) * LAYOUT_CHUNK_BYTES;
}

/* ---- Pages ahead -------------------------------------------------------- */

bool weir__growth_is_prefaulting(const struct weir_region *region, uint64_t chunk)
{
    const struct weir__growth *growth = &region->growth;

    for (uint32_t i = 0; growth->prefault_count > 0 && i < REGION_PREFAULT_COUNT; i++)
        if (growth->prefaults[i].chunk == chunk)
            return true;
    return false;
}

/* With its pages there @chunk costs a put no fault; it is in memory from now on. */
static void growth_prefault(struct weir_region *region, uint64_t chunk)
{
    struct weir__growth *growth = &region->growth;
    struct weir__prefault *prefault = growth->prefaults;

    WEIR_ASSERT(growth->prefault_count < REGION_PREFAULT_COUNT);
    while (prefault->chunk != CHUNK_NO)
        prefault++;
    weir__chunk_make_ready(&region->chunks, chunk);
    prefault->chunk = chunk;
    growth->prefault_count++;
    weir__ring_madvise(region->ring, &prefault->operation, weir__store_address(region, chunk),
                       (uint32_t)LAYOUT_CHUNK_BYTES, MADV_POPULATE_WRITE);
}

static bool growth_wants_pages(const struct weir_region *region, uint64_t chunk)
{
    return weir__chunk_state(&region->chunks, chunk) == CHUNK_FRESH &&
           !weir__chunk_is_ready(&region->chunks, chunk);
}

/* The next chunk that the mark reaches soon; CHUNK_NO: its pages are there. */
static uint64_t growth_choose_mark(const struct weir_region *region)
{
    uint64_t chunk = weir__chunk_of(region->mark_bytes);
    uint64_t ahead = weir__max(region->growth.ahead_bytes / GROWTH_PAGES_PART, GROWTH_AHEAD_MIN);
    uint64_t end = weir__min(region->mark_bytes + ahead, region->store.file_bytes);

    for (; chunk * LAYOUT_CHUNK_BYTES < end; chunk++)
        if (growth_wants_pages(region, chunk))
            return chunk;
    return CHUNK_NO;
}

/*
 * A free chunk under the mark, for the mark does not rise before that is filled: the
 * one that a put would begin for which there is room nowhere else. CHUNK_NO: none.
 */
static uint64_t growth_choose_free(const struct weir_region *region)
{
    uint32_t index = weir__extents_find(&region->extents, LAYOUT_CHUNK_BYTES);
    const struct weir__entry *entry = weir__region_entry(region, index);

    if (index == 0)
        return CHUNK_NO;
    uint64_t end = weir__entry_offset(entry) + weir__entry_space(entry);
    uint64_t chunk = weir__chunk_of(weir__round_up(weir__entry_offset(entry), LAYOUT_CHUNK_BYTES));
    for (; (chunk + 1) * LAYOUT_CHUNK_BYTES <= end; chunk++)
        if (growth_wants_pages(region, chunk))
            return chunk;
    return CHUNK_NO;
}

bool weir__growth_take_back(struct weir_region *region)
{
    uint32_t i = region->chunks.queues[CHUNK_FRESH].head;

    while (i != 0 && weir__growth_is_prefaulting(region, i - 1))
        i = region->chunks.table[i - 1].next;
    if (i == 0)
        return false;
    if (weir__store_zero(region, i - 1) == 0) {
        weir__chunk_unmake_ready(&region->chunks, i - 1);
        return true;
    }
    weir__chunk_turn(&region->chunks, i - 1, CHUNK_DIRTY); /* then it must be written to go */
    return false;
}

static bool growth_is_above_mark(const struct weir_region *region, uint64_t chunk)
{
    return chunk * LAYOUT_CHUNK_BYTES >= region->mark_bytes;
}

/*
 * Whether @chunk may be ready where memory is counted: one at a time, and not where
 * that is much of the memory that is there for all. What was made ready above the
 * mark is not needed soon when chunks came free under it.
 */
static bool growth_may_be_ready(struct weir_region *region, uint64_t chunk)
{
    const struct weir__chunks *chunks = &region->chunks;
    uint32_t other = chunks->queues[CHUNK_FRESH].head;

    if (region->growth.prefault_count > 0 ||
        chunks->resident_max < chunks->pinned_count + GROWTH_READY_MIN)
        return false;
    if (other != 0 && (!growth_is_above_mark(region, other - 1) ||
                       growth_is_above_mark(region, chunk) || !weir__growth_take_back(region)))
        return false;
    return weir__pager_has_room(region);
}

/* Pages for what is stored to next: under the mark while there is a free chunk, else above it. */
static void growth_pages_ahead(struct weir_region *region)
{
    struct weir__growth *growth = &region->growth;
    bool writes_back = region->pager.writes_back;

    while (growth->prefault_count < REGION_PREFAULT_COUNT) {
        uint64_t chunk = writes_back ? growth_choose_free(region) : CHUNK_NO;
        if (chunk == CHUNK_NO)
            chunk = growth_choose_mark(region);
        if (chunk == CHUNK_NO || (writes_back && !growth_may_be_ready(region, chunk)))
            return;
        growth_prefault(region, chunk);
    }
}

void weir__growth_doubt(struct weir_region *region)
{
    while (region->chunks.queues[CHUNK_FRESH].count > 0)
        weir__chunk_turn(&region->chunks, region->chunks.queues[CHUNK_FRESH].head - 1, CHUNK_DIRTY);
}

/* ---- Blocks ahead ------------------------------------------------------- */

/* The next step, if little is left and nobody says no: only a put that needs it hears why not. */
static void growth_extend_ahead(struct weir_region *region, uint64_t now_ns)
{
    struct weir__growth *growth = &region->growth;
    uint64_t file_bytes = region->store.file_bytes;
    /* A mark that rises fast needs pages, not only blocks: these come a step before them. */
    bool is_fast = growth->ahead_bytes > GROWTH_STEP_BYTES;
    uint64_t room = growth->ahead_bytes + (is_fast ? GROWTH_STEP_BYTES : 0);
    uint64_t from;

    if (growth->kind != GROWTH_NONE || now_ns < growth->retry_ns ||
        file_bytes - region->mark_bytes >= room || growth->end_bytes != file_bytes ||
        !weir__clean_may_grow(region, LAYOUT_CHUNK_BYTES))
        return;
    uint64_t end = weir__min(growth_step_end(region, file_bytes), region->bytes_max);
    bool has_hole = growth_find_holes(region, 1, &from);
    /* More than stays reserved anyway would soon be a hole again. */
    uint64_t refill = weir__min(growth->ahead_bytes, GROWTH_RESERVE_CHUNKS * LAYOUT_CHUNK_BYTES);
    if (has_hole && region->chunks.fresh_count * LAYOUT_CHUNK_BYTES >= refill)
        return;
    if (!has_hole && end == file_bytes)
        return;

    growth->retry_ns = now_ns + GROWTH_RETRY_NS;
    if (growth_has_space(region, has_hole ? LAYOUT_CHUNK_BYTES : end - file_bytes) < 0)
        return;
    if (has_hole) {
        if (!growth_take(growth, LAYOUT_CHUNK_BYTES))
            return;
        growth->hole_bytes -= LAYOUT_CHUNK_BYTES;
        growth_begin(region, GROWTH_REFILL, from, from + LAYOUT_CHUNK_BYTES);
    } else {
        if (growth_ask(region, end) < 0)
            return;
        if (weir__table_ready(region, weir__region_spare(end)) < 0) {
            growth_settle(region);
            return;
        }
        growth_begin(region, GROWTH_EXTEND, file_bytes, end);
    }
    growth->retry_ns = 0;
}

void weir__growth_ahead(struct weir_region *region)
{
    const struct weir__growth *growth = &region->growth;
    uint64_t now_ns = weir__clock_ns();

    growth_pace(region, now_ns);
    /* A mapping that may move is not prepared: somebody may hold an address in it. */
    if (region->mark_bytes == 0 || region->store.reserved_bytes == 0)
        return;
    growth_extend_ahead(region, now_ns);
    if (!growth->cannot_prefault && !weir__ring_is_synchronous(region->ring))
        growth_pages_ahead(region);
}

/* ---- Back to the file system -------------------------------------------- */

/* What the mark reached within the last windows. */
static void growth_watch(struct weir_region *region, uint64_t now_ns)
{
    struct weir__growth *growth = &region->growth;

    if (now_ns - growth->window_ns < GROWTH_WINDOW_NS)
        return;
    growth->window_ns = now_ns;
    growth->peak_before = weir__region_mark_peak(region);
    growth->peak_ever = weir__max(growth->peak_ever, growth->peak_before);
    region->mark_peak = region->mark_bytes;
}

static uint64_t growth_back_bytes(const struct weir_region *region)
{
    return weir__ring_is_synchronous(region->ring) ? GROWTH_BACK_SYNC_BYTES : GROWTH_BACK_BYTES;
}

/* Nothing above @from is stored to any more; false: some of it is on its way to the disk. */
static bool growth_shrink(struct weir_region *region, uint64_t from)
{
    struct weir__store *store = &region->store;
    uint64_t to = store->file_bytes;

    WEIR_ASSERT(from >= region->mark_bytes);
    for (uint64_t chunk = weir__chunk_of(from); chunk < weir__chunk_of(to); chunk++)
        if (!weir__chunk_is_storable(weir__chunk_state(&region->chunks, chunk)))
            return false;
    for (uint64_t chunk = weir__chunk_of(from); chunk < weir__chunk_of(to); chunk++) {
        weir__pager_forget_suspect(region, chunk);
        weir__chunk_turn(&region->chunks, chunk, CHUNK_NONE);
    }
    store->file_bytes = from;
    growth_publish(region);
    growth_begin(region, GROWTH_SHRINK, from, to);
    return true;
}

/* Holes up to the end of the file have no blocks: they are simply cut off. */
static bool growth_cut_holes(struct weir_region *region)
{
    struct weir__growth *growth = &region->growth;
    struct weir__store *store = &region->store;
    uint64_t from = store->file_bytes;

    while (from > 0 && weir__chunk_state(&region->chunks, weir__chunk_of(from) - 1) == CHUNK_HOLE)
        from -= LAYOUT_CHUNK_BYTES;
    uint64_t bytes = store->file_bytes - from;
    if (bytes == 0 || weir__table_ready(region, region->spare_min) < 0 ||
        weir__sys_ftruncate(store->data_fd, from) < 0)
        return false;
    weir__space_cut(region, from);
    for (uint64_t chunk = weir__chunk_of(from); chunk < weir__chunk_of(from + bytes); chunk++)
        weir__chunk_turn(&region->chunks, chunk, CHUNK_NONE);
    growth->hole_bytes -= bytes;
    growth->end_bytes -= bytes;
    store->file_bytes = from;
    growth_publish(region);
    return true;
}

/* What stays reserved behind the mark: a small rest, or what is wanted ahead of it while it rises. */
static uint64_t growth_keep(const struct weir_region *region, uint64_t now_ns)
{
    const struct weir__growth *growth = &region->growth;
    bool rises = now_ns - growth->pace_ns < GROWTH_WINDOW_NS;

    return rises ? weir__max(growth->ahead_bytes, GROWTH_KEEP_BYTES) : GROWTH_KEEP_BYTES;
}

/*
 * The tail above what the mark reached lately goes, by steps. A first reservation
 * that was never used stays.
 */
static bool growth_trim(struct weir_region *region, uint64_t now_ns)
{
    struct weir__growth *growth = &region->growth;
    uint64_t file_bytes = region->store.file_bytes;
    uint64_t peak = weir__max(weir__region_mark_peak(region), growth->peak_before);
    uint64_t mark = weir__round_up(region->mark_bytes, LAYOUT_CHUNK_BYTES);
    uint64_t goal = weir__round_up(peak + growth_keep(region, now_ns), LAYOUT_CHUNK_BYTES);
    bool ends_in_hole = peak == region->mark_bytes && mark > 0 && mark == region->mark_bytes &&
                        weir__chunk_state(&region->chunks, weir__chunk_of(mark) - 1) == CHUNK_HOLE;

    if (ends_in_hole && file_bytes == mark)
        return growth_cut_holes(region);
    if (ends_in_hole)
        goal = mark;
    else if (!growth->is_trimming)
        growth->is_trimming =
            growth->peak_ever >= goal + GROWTH_TRIM_BYTES && file_bytes >= goal + GROWTH_TRIM_BYTES;
    if (file_bytes <= goal) {
        if (growth->is_trimming)
            growth->peak_ever = peak;
        growth->is_trimming = false;
        return false;
    }
    if (!growth->is_trimming && !ends_in_hole)
        return false;
    uint64_t step = weir__min(growth_back_bytes(region), file_bytes - goal);
    return growth_shrink(region, file_bytes - step);
}

/* Whether @chunk is free and of no use: where its blocks could not be zeroed it still rests. */
static bool growth_is_stuck(const struct weir_region *region, uint64_t chunk)
{
    enum weir__chunk_state state = weir__chunk_state(&region->chunks, chunk);

    return (state == CHUNK_CLEAN || state == CHUNK_COLD) &&
           weir__chunk_live(&region->chunks, chunk) == 0 &&
           weir__chunk_pins(&region->chunks, chunk) == 0 && region->chunks.table[chunk].staged == 0;
}

static bool growth_is_free(const struct weir_region *region, uint64_t chunk)
{
    const struct weir__chunk *entry = &region->chunks.table[chunk];

    return weir__chunk_is_storable(weir__chunk_state(&region->chunks, chunk)) &&
           weir__chunk_live(&region->chunks, chunk) == 0 &&
           weir__chunk_pins(&region->chunks, chunk) == 0 && entry->open == 0;
}

static void growth_punch(struct weir_region *region, uint64_t first, uint64_t count)
{
    if (weir__table_ready(region, region->spare_min) < 0)
        return;
    for (uint64_t chunk = first; chunk < first + count; chunk++) {
        weir__pager_forget_suspect(region, chunk);
        weir__chunk_turn(&region->chunks, chunk, CHUNK_HOLE);
        weir__space_rest(region, chunk);
    }
    uint64_t from = first * LAYOUT_CHUNK_BYTES;
    region->growth.hole_low = weir__min(region->growth.hole_low, from);
    growth_begin(region, GROWTH_PUNCH, from, from + count * LAYOUT_CHUNK_BYTES);
}

/*
 * Whether a put that needed room heard lately that the disk is full. btrfs has no
 * room to zero blocks then, and gives a hole no blocks again while another chunk has
 * part of its extent: a free chunk that could not be zeroed is better brought back.
 */
static bool growth_is_refused(const struct weir_region *region, uint64_t now_ns)
{
    uint64_t refused_ns = region->growth.refused_ns;

    return refused_ns != 0 && now_ns - refused_ns < GROWTH_REFUSED_NS;
}

/*
 * A look at some more chunks; the free ones that are old enough become holes. The
 * lowest free chunks are passed over: they are the reserve, and used first.
 */
static void growth_look(struct weir_region *region, uint64_t now_ns)
{
    struct weir__growth *growth = &region->growth;
    uint64_t end = weir__chunk_of(region->mark_bytes);
    uint64_t live_bytes = weir__word_load(&weir__region_figures(region)->live_bytes);
    uint64_t reserve =
        GROWTH_RESERVE_CHUNKS + live_bytes / GROWTH_RESERVE_PART / LAYOUT_CHUNK_BYTES;
    bool is_refused = growth_is_refused(region, now_ns);
    uint64_t run = 0;

    if (growth->look_chunk >= end) {
        if (now_ns - growth->look_ns < GROWTH_LOOK_NS)
            return;
        growth->look_chunk = 0;
        growth->look_free_count = 0;
        growth->look_ns = now_ns;
        growth->hole_low = growth->hole_bytes == 0 ? UINT64_MAX : growth->hole_low;
    }
    for (uint32_t left = GROWTH_LOOK_COUNT; left > 0 && growth->look_chunk < end; left--) {
        struct weir__chunk *entry = &region->chunks.table[growth->look_chunk];
        if (growth_is_stuck(region, growth->look_chunk)) {
            if (run > 0)
                break;
            weir__pager_empty(region, growth->look_chunk); /* it was freed at a bad moment */
            if (!growth_is_stuck(region, growth->look_chunk))
                return; /* the mark may be another */
        }
        bool is_free = growth_is_free(region, growth->look_chunk);
        bool is_stuck = growth_is_stuck(region, growth->look_chunk);
        entry->idle = is_free || is_stuck ? (uint16_t)weir__min(entry->idle + 1u, UINT16_MAX) : 0;
        growth->look_free_count += is_free;
        growth->look_chunk++;
        bool may_go = entry->idle >= GROWTH_IDLE_LOOKS &&
                      (is_stuck ? !is_refused : growth->look_free_count > reserve);
        run += may_go;
        if ((run > 0 && !may_go) || run * LAYOUT_CHUNK_BYTES >= growth_back_bytes(region)) {
            growth_punch(region, growth->look_chunk - run - !may_go, run);
            return;
        }
    }
    if (run > 0)
        growth_punch(region, growth->look_chunk - run, run);
}

void weir__growth_advance(struct weir_region *region)
{
    struct weir__growth *growth = &region->growth;
    uint64_t now_ns = weir__clock_ns();

    growth_settle(region);
    growth_watch(region, now_ns);
    weir__growth_ahead(region);
    if (growth->kind != GROWTH_NONE || growth->prefault_count > 0 ||
        growth->end_bytes != region->store.file_bytes || now_ns - growth->back_ns < GROWTH_PACE_NS)
        return;
    growth->back_ns = now_ns;
    if (!growth_trim(region, now_ns) && !growth->cannot_punch)
        growth_look(region, now_ns);
}

/* ---- Lifecycle ---------------------------------------------------------- */

bool weir__growth_is_under_way(const struct weir_region *region)
{
    return region->growth.kind != GROWTH_NONE || region->growth.prefault_count > 0;
}

/*
 * What a named region holds: all of it is cold. What lies behind it is cut off,
 * so that no chunk above the mark was ever stored to.
 */
static int growth_adopt(struct weir_region *region, uint64_t end)
{
    struct weir__store *store = &region->store;
    int r = growth_ask(region, end);

    if (r == 0)
        r = weir__sys_ftruncate(store->data_fd, end);
    if (r == 0)
        r = weir__store_map(region, end);
    if (r < 0)
        return r;
    for (uint64_t chunk = 0; chunk < weir__chunk_of(end); chunk++)
        weir__chunk_turn(&region->chunks, chunk, CHUNK_COLD);
    store->file_bytes = end;
    weir__table_spare(region, end);
    growth_publish(region);
    return 0;
}

/* The first reservation takes what fits; one chunk must, if there is none. */
static int growth_extend_first(struct weir_region *region, uint64_t bytes_initial)
{
    const struct weir__store *store = &region->store;
    uint64_t initial = bytes_initial > 0 ? bytes_initial : UINT64_C(64) << 20;
    uint64_t least = weir__min(store->file_bytes + LAYOUT_CHUNK_BYTES, region->bytes_max);

    initial = weir__min(weir__round_up(weir__min(initial, region->bytes_max), LAYOUT_CHUNK_BYTES),
                        region->bytes_max);
    initial = weir__max(initial, least);
    if (initial == store->file_bytes)
        return 0;
    int r = growth_extend(region, initial);
    if (r == -ENOSPC || r == -EDQUOT || r == -ENOMEM)
        r = growth_extend(region, least);
    bool is_full = r == -ENOSPC || r == -EDQUOT;
    return is_full && store->file_bytes > 0 ? 0 : r;
}

int weir__growth_open(struct weir_region *region, const struct weir_region_config *config)
{
    struct weir__growth *growth = &region->growth;

    *growth = (struct weir__growth){
        .operation = {growth_complete},
        .region = region,
        .cap = config->disk_cap,
        .hole_low = UINT64_MAX,
        .ahead_bytes = GROWTH_AHEAD_MIN,
    };
    for (uint32_t i = 0; i < REGION_PREFAULT_COUNT; i++)
        growth->prefaults[i] = (struct weir__prefault){
            .operation = {growth_prefault_complete},
            .region = region,
            .chunk = CHUNK_NO,
        };

    int r = region->named.report.existed ? growth_adopt(region, region->named.kept_bytes) : 0;
    return r < 0 ? r : growth_extend_first(region, config->bytes_initial);
}

void weir__growth_close(struct weir_region *region)
{
    struct weir__growth *growth = &region->growth;

    growth_give(growth, growth->taken_bytes);
}

/* ---- Audit -------------------------------------------------------------- */

void weir__growth_audit(const struct weir_region *region)
{
    const struct weir__growth *growth = &region->growth;
    bool is_busy = growth->kind == GROWTH_PUNCH || growth->kind == GROWTH_REFILL;
    uint64_t busy_bytes = is_busy ? growth->to - growth->from : 0;

    WEIR_CHECK(region->store.file_bytes <= growth->end_bytes);                 /* G1 */
    WEIR_CHECK(growth->taken_bytes == growth->end_bytes - growth->hole_bytes); /* G2 */
    for (uint64_t chunk = region->mark_bytes / LAYOUT_CHUNK_BYTES;
         chunk < weir__chunk_of(region->store.file_bytes); chunk++) /* G4 */
        WEIR_CHECK(weir__chunk_is_storable(weir__chunk_state(&region->chunks, chunk)));
    WEIR_CHECK(growth->hole_bytes + busy_bytes ==
               region->chunks.hole_count * LAYOUT_CHUNK_BYTES); /* G3 */
}
