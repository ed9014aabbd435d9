/* SPDX-License-Identifier: MIT */
/*
 * store - the mapped chunk store: the file, and what of it is in memory
 *
 *      base                       file_bytes          reserved_bytes
 *      | mapped, blocks reserved  | addresses only    |
 *
 * Growth reserves blocks before it publishes an address: fallocate(), then a
 * new piece is mapped elsewhere, given its advice and moved onto the
 * reservation by mremap(), which is atomic and leaves one mapping. A store into
 * the file can therefore not meet a full disk.
 *
 * Write-back and drop are two steps. The kernel tells of a failed write once,
 * and not always to the range that failed; so a clean chunk is dropped only when
 * all write-backs that were under way when it became clean have succeeded. After
 * an error everything that is still in memory is dirtied again, and nothing is
 * dropped until all of that has been written.
 *
 *   T1  a chunk in state WRITING has exactly one write under way
 *   T2  no store goes to a chunk that is WRITING, CLEAN, COLD or FILLING
 *   T3  while suspect_count > 0 nothing is dropped
 */
#include "region/region_state.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define STORE_STEP_BYTES  (UINT64_C(8) << 20)
#define STORE_TRIM_BYTES  (UINT64_C(16) << 20)
#define STORE_KEEP_BYTES  (UINT64_C(4) << 20)
#define STORE_FULL_BYTES  (LAYOUT_CHUNK_BYTES / 8 * 7)
#define STORE_RETRY_NS    UINT64_C(100000000)
#define STORE_SUSPECT     UINT64_MAX /* as the ticket of a chunk that must be written again */
#define STORE_HOLE_TRIES  8
#define STORE_PROBE_TRIES 3
#define STORE_PAGE_BYTES  4096

_Static_assert(STORE_STEP_BYTES % LAYOUT_CHUNK_BYTES == 0, "growth is by whole chunks");

static char *store_address(const struct weir_region *region, uint64_t chunk)
{
    return region->store.base + chunk * LAYOUT_CHUNK_BYTES;
}

/* ---- Mapping ------------------------------------------------------------ */

/*
 * Each advice is a call of its own: two in one would be a third. HUGEPAGE lets
 * one fault take a whole chunk (one folio of 2 MiB); it also reads a second one
 * ahead, into memory that nobody counts, unless RANDOM forbids that. RANDOM
 * alone would be a fault per page. None of them is needed to be right, so a
 * kernel that does not know one is no error.
 */
static void store_advise(void *address, uint64_t bytes)
{
    weir__sys_madvise(address, bytes, MADV_DONTDUMP);
    weir__sys_madvise(address, bytes, MADV_DONTFORK);
    if (weir__sys_madvise(address, bytes, MADV_HUGEPAGE) == 0)
        weir__sys_madvise(address, bytes, MADV_RANDOM);
}

static int store_map_movable(struct weir__store *store, uint64_t end)
{
    void *base;
    int r;

    if (store->base == NULL)
        r = weir__sys_mmap(NULL, end, PROT_READ | PROT_WRITE, MAP_SHARED, store->data_fd, 0, &base);
    else
        r = weir__sys_mremap(store->base, store->mapped_bytes, end, MREMAP_MAYMOVE, NULL, &base);
    if (r < 0)
        return r;
    store->base = base;
    store_advise(base, end);
    return 0;
}

/* Map [mapped_bytes, end) of the file; its blocks are there. */
static int store_map(struct weir__store *store, uint64_t end)
{
    uint64_t bytes = end - store->mapped_bytes;
    void *piece;
    void *moved;
    int r;

    if (end <= store->mapped_bytes)
        return 0;
    if (store->reserved_bytes == 0) {
        r = store_map_movable(store, end);
        if (r < 0)
            return r;
        store->mapped_bytes = end;
        return 0;
    }

    r = weir__sys_mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, store->data_fd,
                       store->mapped_bytes, &piece);
    if (r < 0)
        return r;
    store_advise(piece, bytes);
    r = weir__sys_mremap(piece, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
                         store->base + store->mapped_bytes, &moved);
    if (r < 0) {
        weir__sys_munmap(piece, bytes);
        return r;
    }
    WEIR_CHECK(moved == store->base + store->mapped_bytes);
    store->mapped_bytes = end;
    return 0;
}

/* Address space for all of bytes_max; where it is refused the mapping may move. */
static void store_reserve(struct weir__store *store, uint64_t bytes_max)
{
    void *base;

    if (weir__sys_mmap(NULL, bytes_max, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                       0, &base) < 0)
        return;
    store->base = base;
    store->reserved_bytes = bytes_max;
}

/* ---- Growth ------------------------------------------------------------- */

/*
 * ext4 keeps what it got of a failed fallocate(), and the disk full with it: undone
 * at once. A disk that refuses that too (it is read-only by now) keeps blocks beyond
 * file_bytes that nobody uses, until it lets them go.
 */
static void store_undo_growth(struct weir__store *store)
{
    store->overhangs = weir__sys_ftruncate(store->data_fd, store->file_bytes) < 0;
}

static int store_extend_file(struct weir__store *store, uint64_t end)
{
    uint64_t free_bytes;
    bool memory_backed;
    int r = weir__sys_fstatfs(store->data_fd, &free_bytes, &memory_backed);

    if (r < 0)
        return r;
    if (store->floor_bytes > 0 && (free_bytes < store->floor_bytes ||
                                   free_bytes - store->floor_bytes < end - store->file_bytes))
        return -ENOSPC;

    r = weir__sys_fallocate(store->data_fd, 0, store->file_bytes, end - store->file_bytes);
    if (r < 0)
        store_undo_growth(store);
    return r;
}

static void store_publish(struct weir_region *region)
{
    struct weir__figures *figures = weir__region_figures(region);
    struct stat file;

    weir__word_store(&figures->file_bytes, region->store.file_bytes);
    if (weir__sys_fstat(region->store.data_fd, &file) == 0)
        weir__word_store(&figures->disk_bytes, (uint64_t)file.st_blocks * 512);
}

static int store_grow_to(struct weir_region *region, uint64_t end)
{
    struct weir__store *store = &region->store;
    int r = store_extend_file(store, end);

    if (r < 0)
        return r;
    r = store_map(store, end);
    if (r < 0) {
        store_undo_growth(store);
        return r;
    }
    for (uint64_t chunk = weir__chunk_of(store->file_bytes); chunk < weir__chunk_of(end); chunk++)
        weir__chunk_turn(&region->chunks, chunk, CHUNK_FRESH);
    store->file_bytes = end;
    store_publish(region);
    return 0;
}

int weir__store_grow(struct weir_region *region, uint64_t end)
{
    uint64_t need = weir__round_up(end, LAYOUT_CHUNK_BYTES);

    if (need > region->bytes_max)
        return -EDQUOT;
    if (region->store.reserved_bytes == 0 && region->pin_count > 0)
        return -EAGAIN; /* the mapping may move, and somebody holds an address */

    /* A step ahead where there is room for it, else what fits. */
    uint64_t step = weir__min(weir__round_up(end, STORE_STEP_BYTES), region->bytes_max);
    int r = store_grow_to(region, step);
    if (r == -ENOSPC && need < step)
        r = store_grow_to(region, need);
    if (r == -EDQUOT) /* a quota of the file system is its limit, not ours */
        r = -ENOSPC;
    region->growth_error_count += r < 0;
    return r;
}

void weir__store_trim(struct weir_region *region)
{
    struct weir__store *store = &region->store;
    uint64_t end = weir__round_up(region->mark_bytes, LAYOUT_CHUNK_BYTES) + STORE_KEEP_BYTES;

    if (store->overhangs)
        store_undo_growth(store);
    if (region->mark_peak - region->mark_bytes < STORE_TRIM_BYTES ||
        store->file_bytes < end + STORE_TRIM_BYTES)
        return;
    for (uint64_t chunk = weir__chunk_of(end); chunk < weir__chunk_of(store->file_bytes); chunk++)
        if (!weir__chunk_is_storable(weir__chunk_state(&region->chunks, chunk)))
            return; /* its write-back ends first */

    if (weir__sys_ftruncate(store->data_fd, end) < 0)
        return;
    for (uint64_t chunk = weir__chunk_of(end); chunk < weir__chunk_of(store->file_bytes); chunk++) {
        if (region->chunks.table[chunk].ticket == STORE_SUSPECT) {
            region->chunks.table[chunk].ticket = 0;
            store->suspect_count--;
        }
        weir__chunk_turn(&region->chunks, chunk, CHUNK_NONE);
    }
    store->file_bytes = end;
    region->mark_peak = region->mark_bytes;
    store_publish(region);
}

/* ---- Dropping ----------------------------------------------------------- */

/* Page cache leaves only when it is clean and unmapped: both calls, in this order. */
static int store_drop_pages(struct weir_region *region, uint64_t chunk)
{
    int r = weir__sys_madvise(store_address(region, chunk), LAYOUT_CHUNK_BYTES, MADV_DONTNEED);

    if (r < 0)
        return r;
    return weir__sys_fadvise(region->store.data_fd, chunk * LAYOUT_CHUNK_BYTES, LAYOUT_CHUNK_BYTES,
                             POSIX_FADV_DONTNEED);
}

static uint64_t store_oldest_ticket(const struct weir__store *store)
{
    uint64_t oldest = UINT64_MAX;

    for (uint32_t i = 0; i < REGION_WRITE_COUNT; i++)
        if (store->writes[i].ticket != 0)
            oldest = weir__min(oldest, store->writes[i].ticket);
    return oldest;
}

static bool store_drop_one(struct weir_region *region)
{
    struct weir__store *store = &region->store;
    uint64_t oldest = store_oldest_ticket(store);

    if (store->suspect_count > 0) /* T3 */
        return false;
    for (uint32_t i = region->chunks.queues[CHUNK_CLEAN].head; i != 0;
         i = region->chunks.table[i - 1].next) {
        if (region->chunks.table[i - 1].ticket >= oldest)
            return false;
        if (weir__chunk_pins(&region->chunks, i - 1) > 0)
            continue;
        if (store_drop_pages(region, i - 1) < 0)
            return false;
        weir__chunk_turn(&region->chunks, i - 1, CHUNK_COLD);
        return true;
    }
    return false;
}

bool weir__store_make_room(struct weir_region *region, uint64_t chunk_count)
{
    while (region->chunks.resident_count + chunk_count > region->chunks.resident_max) {
        if (!store_drop_one(region)) {
            region->store.wanted = true;
            return false;
        }
    }
    return true;
}

/*
 * ZERO_RANGE makes the blocks unwritten again but keeps them: what is in memory
 * goes without being written, the next store needs no read, and still no disk
 * can be full.
 */
void weir__store_empty(struct weir_region *region, uint64_t chunk)
{
    enum weir__chunk_state state = weir__chunk_state(&region->chunks, chunk);

    if (state != CHUNK_CLEAN && state != CHUNK_COLD)
        return;
    if (weir__chunk_pins(&region->chunks, chunk) > 0)
        return;
    if (weir__sys_fallocate(region->store.data_fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                            chunk * LAYOUT_CHUNK_BYTES, LAYOUT_CHUNK_BYTES) < 0)
        return; /* it rests until it is revived */
    region->store.cannot_zero = false;
    region->chunks.table[chunk].unfillable = 0;
    weir__chunk_turn(&region->chunks, chunk, CHUNK_FRESH);
    weir__space_wake(region, chunk);
}

/* ---- Write-back --------------------------------------------------------- */

/*
 * What the kernel failed to write is dirty again. To touch the pages is not
 * enough: after a failed write into blocks that were reserved but never written,
 * ext4 writes the same pages to the right place and never marks the blocks as
 * written, so that zeroes come back once the pages are dropped. Fresh pages over
 * blocks that are unwritten again know nothing of the failure.
 */
static void store_dirty_again(struct weir_region *region, uint64_t chunk)
{
    struct weir__heap *heap = &region->fetches.heap;
    char *address = store_address(region, chunk);
    char *copy = weir__heap_alloc(heap, LAYOUT_CHUNK_BYTES);
    bool is_fresh = false;

    if (copy != NULL) {
        memcpy(copy, address, LAYOUT_CHUNK_BYTES);
        is_fresh =
            weir__sys_fallocate(region->store.data_fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                                chunk * LAYOUT_CHUNK_BYTES, LAYOUT_CHUNK_BYTES) == 0;
        if (is_fresh)
            memcpy(address, copy, LAYOUT_CHUNK_BYTES);
        weir__heap_free(heap, copy, LAYOUT_CHUNK_BYTES);
    }
    for (uint64_t at = 0; at < LAYOUT_CHUNK_BYTES && !is_fresh; at += STORE_PAGE_BYTES) {
        volatile char *byte = address + at;
        *byte = *byte;
    }
}

static void store_suspect(struct weir_region *region, uint64_t chunk)
{
    store_dirty_again(region, chunk);
    if (region->chunks.table[chunk].ticket != STORE_SUSPECT)
        region->store.suspect_count++;
    region->chunks.table[chunk].ticket = STORE_SUSPECT;
    weir__chunk_turn(&region->chunks, chunk, CHUNK_DIRTY);
    weir__space_wake(region, chunk);
}

static void store_failed(struct weir_region *region, uint64_t chunk, int error)
{
    struct weir__store *store = &region->store;

    region->write_error_count++;
    store->error = error;
    store->error_fresh = error;
    store->retry_ns = weir__clock_ns() + STORE_RETRY_NS;
    for (uint32_t i = 0; i < REGION_WRITE_COUNT; i++)
        store->writes[i].doubted = store->writes[i].ticket != 0;
    /* The kernel may have tried to write these by itself, and told only now. */
    for (uint32_t i = region->chunks.queues[CHUNK_DIRTY].head; i != 0;
         i = region->chunks.table[i - 1].next)
        store_dirty_again(region, i - 1);
    store_suspect(region, chunk);
    while (region->chunks.queues[CHUNK_CLEAN].count > 0)
        store_suspect(region, region->chunks.queues[CHUNK_CLEAN].head - 1);
}

static void store_written(struct weir_region *region, uint64_t chunk)
{
    struct weir__store *store = &region->store;

    weir__word_add(&weir__region_figures(region)->written_bytes, LAYOUT_CHUNK_BYTES);
    if (region->chunks.table[chunk].ticket == STORE_SUSPECT && --store->suspect_count == 0)
        store->error = 0;
    region->chunks.table[chunk].ticket = store->ticket_last;
    weir__chunk_turn(&region->chunks, chunk, CHUNK_CLEAN);
    weir__clean_look_again(region);
    if (weir__chunk_live(&region->chunks, chunk) == 0)
        weir__store_empty(region, chunk);
}

static void store_write_complete(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct weir__write *write = WEIR_CONTAINER_OF(operation, struct weir__write, operation);
    struct weir_region *region = write->region;

    (void)flags;
    WEIR_ASSERT(weir__chunk_state(&region->chunks, write->chunk) == CHUNK_WRITING); /* T1 */
    write->ticket = 0;
    if (result < 0)
        store_failed(region, write->chunk, result);
    else if (write->doubted)
        store_suspect(region, write->chunk);
    else
        store_written(region, write->chunk);
}

static bool store_is_suspect(const struct weir_region *region, uint64_t chunk)
{
    return region->chunks.table[chunk].ticket == STORE_SUSPECT;
}

/* What is above the mark belongs to no extent that could rest: it is never written. */
static bool store_is_above_mark(const struct weir_region *region, uint64_t chunk)
{
    return chunk * LAYOUT_CHUNK_BYTES >= region->mark_bytes;
}

/* What is left of the chunk of the mark becomes an extent, that it may rest like any other. */
static void store_raise_mark(struct weir_region *region, uint64_t chunk)
{
    uint64_t end = (chunk + 1) * LAYOUT_CHUNK_BYTES;

    WEIR_ASSERT(!store_is_above_mark(region, chunk));

    if (end > region->mark_bytes)
        weir__space_release(region, weir__space_bump(region, end - region->mark_bytes));
}

static void store_write(struct weir_region *region, struct weir__write *write, uint64_t chunk)
{
    struct weir__store *store = &region->store;

    weir__space_sum(region, chunk);
    weir__chunk_turn(&region->chunks, chunk, CHUNK_WRITING);
    store_raise_mark(region, chunk);
    weir__space_rest(region, chunk);
    write->chunk = chunk;
    write->ticket = ++store->ticket_last;
    write->doubted = false;
    if (store->syncs_file)
        weir__ring_fdatasync(region->ring, &write->operation, store->data_fd);
    else
        weir__ring_sync_range(region->ring, &write->operation, store->data_fd,
                              chunk * LAYOUT_CHUNK_BYTES, (uint32_t)LAYOUT_CHUNK_BYTES);
}

/*
 * The chunk of the mark is being filled. But a suspect one is written all the
 * same: puts may need new chunks, and get none before nothing is suspect.
 */
static bool store_may_write(const struct weir_region *region, uint64_t chunk)
{
    if (store_is_suspect(region, chunk))
        return true;
    if (store_is_above_mark(region, chunk))
        return !region->store.cannot_zero;
    return (chunk + 1) * LAYOUT_CHUNK_BYTES <= region->mark_bytes;
}

/*
 * The chunk to write next; false: none. In order of age those that are nearly
 * full; or none of that, what dies in memory need never be written. For somebody
 * who waits the fullest: its free space rests from then on.
 */
static bool store_choose(const struct weir_region *region, bool urgent, uint64_t *ret_chunk)
{
    uint64_t best_live = 0;
    bool found = false;

    for (uint32_t i = region->chunks.queues[CHUNK_DIRTY].head; i != 0;
         i = region->chunks.table[i - 1].next) {
        uint64_t live = weir__chunk_live(&region->chunks, i - 1);
        bool is_open = region->chunks.table[i - 1].open > 0;
        if (!store_may_write(region, i - 1))
            continue;
        if (!is_open &&
            (live >= STORE_FULL_BYTES || live == 0 || store_is_suspect(region, i - 1))) {
            *ret_chunk = i - 1;
            return true;
        }
        /* One with open items only if there is no other; but who builds may take his time. */
        live = is_open ? 1 : live;
        if ((urgent || store_is_suspect(region, i - 1)) && live >= best_live) {
            *ret_chunk = i - 1;
            best_live = live;
            found = true;
        }
    }
    return found;
}

/* A dirty chunk in which nothing is live gives its memory up without being written. */
static bool store_forget(struct weir_region *region, uint64_t chunk)
{
    struct weir__store *store = &region->store;

    int r = weir__sys_fallocate(store->data_fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                                chunk * LAYOUT_CHUNK_BYTES, LAYOUT_CHUNK_BYTES);

    store->cannot_zero = r < 0;
    if (r < 0 && !store_is_above_mark(region, chunk))
        return false;
    /* Above the mark it stays as it is and is stored to next: what it holds is nobody's. */
    if (store_is_suspect(region, chunk) && --store->suspect_count == 0)
        store->error = 0;
    region->chunks.table[chunk].ticket = 0;
    if (r == 0)
        weir__chunk_turn(&region->chunks, chunk, CHUNK_FRESH);
    return true;
}

static struct weir__write *store_idle_write(struct weir__store *store)
{
    for (uint32_t i = 0; i < REGION_WRITE_COUNT; i++)
        if (store->writes[i].ticket == 0)
            return &store->writes[i];
    return NULL;
}

static bool store_should_write(const struct weir_region *region)
{
    const struct weir__store *store = &region->store;

    if (store->suspect_count > 0)
        return weir__clock_ns() >= store->retry_ns;
    uint64_t target = weir__max(region->chunks.resident_max / 2, 2);
    return store->wanted || region->chunks.queues[CHUNK_DIRTY].count > target;
}

void weir__store_advance(struct weir_region *region)
{
    struct weir__store *store = &region->store;
    struct weir__write *write;
    uint64_t chunk;

    if (!store->writes_back)
        return;

    /* One write per pass is enough for somebody who waits; more follow with the next dirty chunk. */
    while ((write = store_idle_write(store)) != NULL && store_should_write(region)) {
        if (weir__region_tables_ready(region, region->spare_min) < 0)
            break;
        bool urgent = store->wanted && region->chunks.queues[CHUNK_WRITING].count == 0;
        if (!store_choose(region, urgent, &chunk))
            break;
        store->wanted = false;
        if (weir__chunk_live(&region->chunks, chunk) == 0 && store_forget(region, chunk))
            continue;
        store_write(region, write, chunk);
    }

    if (region->chunks.resident_count >= region->chunks.resident_max)
        store_drop_one(region);
}

/* ---- Revival ------------------------------------------------------------ */

static void store_revived(struct weir_region *region, uint64_t chunk)
{
    weir__chunk_turn(&region->chunks, chunk, CHUNK_DIRTY);
    weir__space_wake(region, chunk);
}

static void store_revival_complete(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct weir__revival *revival = WEIR_CONTAINER_OF(operation, struct weir__revival, operation);
    struct weir_region *region = revival->region;

    (void)flags;
    revival->is_under_way = false;
    WEIR_ASSERT(weir__chunk_state(&region->chunks, revival->chunk) == CHUNK_FILLING);
    if (result < 0) { /* EFAULT where a store would have raised SIGBUS */
        region->read_error_count++;
        region->store.error_fresh = result == -EFAULT ? -EIO : result;
        region->chunks.table[revival->chunk].unfillable =
            result != -EAGAIN && result != -EINTR && result != -ENOMEM;
        store_drop_pages(region, revival->chunk);
        weir__chunk_turn(&region->chunks, revival->chunk, CHUNK_COLD);
        if (weir__chunk_live(&region->chunks, revival->chunk) == 0)
            weir__store_empty(region, revival->chunk);
        return;
    }
    store_revived(region, revival->chunk);
}

void weir__store_revive_chunk(struct weir_region *region, uint64_t chunk)
{
    struct weir__revival *revival = &region->store.revival;
    enum weir__chunk_state state = weir__chunk_state(&region->chunks, chunk);

    if (state == CHUNK_CLEAN) {
        store_revived(region, chunk);
        return;
    }
    if (state != CHUNK_COLD || revival->is_under_way ||
        region->chunks.table[chunk].unfillable != 0 || !weir__store_make_room(region, 1))
        return;
    weir__chunk_turn(&region->chunks, chunk, CHUNK_FILLING);
    revival->chunk = chunk;
    revival->is_under_way = true;
    weir__ring_madvise(region->ring, &revival->operation, store_address(region, chunk),
                       (uint32_t)LAYOUT_CHUNK_BYTES, MADV_POPULATE_WRITE);
}

bool weir__store_revive(struct weir_region *region, uint64_t space)
{
    uint64_t file_chunks = weir__chunk_of(region->store.file_bytes);
    uint64_t ceiling = UINT64_MAX; /* each try takes a fuller chunk than the one before */

    if (region->resting_bytes < space)
        return false;
    if (region->store.revival.is_under_way)
        return true;
    for (uint32_t tries = 0; tries < STORE_HOLE_TRIES; tries++) {
        uint64_t best = UINT64_MAX;
        uint64_t best_free = 0;
        for (uint64_t chunk = 0; chunk < file_chunks; chunk++) {
            enum weir__chunk_state state = weir__chunk_state(&region->chunks, chunk);
            uint64_t free_bytes = LAYOUT_CHUNK_BYTES - weir__chunk_live(&region->chunks, chunk);
            if (state != CHUNK_CLEAN && state != CHUNK_COLD)
                continue;
            if (region->chunks.table[chunk].unfillable != 0)
                continue;
            if (free_bytes > best_free && free_bytes < ceiling) {
                best = chunk;
                best_free = free_bytes;
            }
        }
        if (best == UINT64_MAX || best_free < space)
            return false;
        if (weir__space_has_hole(region, best, space)) {
            weir__store_revive_chunk(region, best);
            return true;
        }
        ceiling = best_free;
    }
    return false;
}

/* ---- Lifecycle ---------------------------------------------------------- */

/*
 * Write the first chunk in the one way or the other, drop it, and see whether it
 * left the memory. More than once: somebody may hold a page for a moment.
 */
static int store_probe_way(struct weir_region *region, bool syncs_file, bool *ret_bounded)
{
    struct weir__store *store = &region->store;
    char *address = store_address(region, 0);
    unsigned flags = 7; /* wait before, write, wait after */

    *ret_bounded = false;
    for (int tries = 0; tries < STORE_PROBE_TRIES && !*ret_bounded; tries++) {
        uint64_t pages = 0;
        for (uint64_t at = 0; at < LAYOUT_CHUNK_BYTES; at += STORE_PAGE_BYTES)
            address[at] = 1;
        int r = syncs_file
                    ? weir__sys_fdatasync(store->data_fd)
                    : weir__sys_sync_file_range(store->data_fd, 0, LAYOUT_CHUNK_BYTES, flags);
        if (r < 0)
            return r;
        store_drop_pages(region, 0);
        *ret_bounded = weir__sys_resident(address, LAYOUT_CHUNK_BYTES, &pages) == 0 && pages == 0;
    }
    return 0;
}

/* What can this file system do? */
static int store_probe(struct weir_region *region)
{
    struct weir__store *store = &region->store;
    int r = store_probe_way(region, false, &store->bounded);

    if (r == 0 && !store->bounded) {
        store->syncs_file = true;
        r = store_probe_way(region, true, &store->bounded);
    }
    if (r < 0)
        return r;
    weir__word_store(&weir__region_figures(region)->bounded, store->bounded);
    if (weir__sys_fallocate(store->data_fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 0,
                            LAYOUT_CHUNK_BYTES) < 0) {
        /* Without ZERO_RANGE the chunk is in memory from now on, as after any store. */
        memset(store_address(region, 0), 0, LAYOUT_CHUNK_BYTES);
        weir__chunk_turn(&region->chunks, 0, CHUNK_DIRTY);
    }
    return 0;
}

static int store_open_files(struct weir__store *store, const struct weir_region_config *config)
{
    uint64_t free_bytes;
    bool memory_backed;
    int r = weir__sys_open_unnamed(config->directory, &store->data_fd);

    if (r < 0)
        return r;
    r = weir__sys_fstatfs(store->data_fd, &free_bytes, &memory_backed);
    if (r < 0)
        return r;
    if (memory_backed && !config->memory_backed)
        return -EOPNOTSUPP;
    r = weir__sys_reopen(store->data_fd, O_RDONLY | O_DIRECT, &store->direct_fd);
    if (r == -EINVAL || r == -ENOENT || r == -ENXIO)
        r = weir__sys_reopen(store->data_fd, O_RDONLY, &store->direct_fd);
    return r;
}

int weir__store_open(struct weir_region *region, const struct weir_region_config *config)
{
    struct weir__store *store = &region->store;
    uint64_t initial = config->bytes_initial > 0 ? config->bytes_initial : UINT64_C(64) << 20;

    store->floor_bytes = config->disk_floor_bytes;
    store->writes_back = region->chunks.resident_max < weir__chunk_of(region->bytes_max);
    for (uint32_t i = 0; i < REGION_WRITE_COUNT; i++)
        store->writes[i] = (struct weir__write){
            .operation = {store_write_complete},
            .region = region,
        };
    store->revival = (struct weir__revival){
        .operation = {store_revival_complete},
        .region = region,
    };

    int r = store_open_files(store, config);
    if (r < 0)
        return r;
    store_reserve(store, region->bytes_max);

    /* The first reservation takes what fits; one chunk must. */
    initial = weir__min(weir__round_up(weir__min(initial, region->bytes_max), LAYOUT_CHUNK_BYTES),
                        region->bytes_max);
    r = store_grow_to(region, initial);
    if (r == -ENOSPC || r == -EDQUOT)
        r = store_grow_to(region, LAYOUT_CHUNK_BYTES);
    if (r == -EDQUOT)
        r = -ENOSPC;
    if (r < 0)
        return r;
    return store_probe(region);
}

void weir__store_close(struct weir_region *region)
{
    struct weir__store *store = &region->store;
    uint64_t bytes = store->reserved_bytes > 0 ? store->reserved_bytes : store->mapped_bytes;

    if (bytes > 0)
        weir__sys_munmap(store->base, bytes);
    weir__sys_close(store->direct_fd);
    weir__sys_close(store->data_fd);
}
