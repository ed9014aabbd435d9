/* SPDX-License-Identifier: MIT */
/*
 * store - the mapped chunk store: the file, and what a chunk of it is made of
 *
 *      base                       file_bytes          reserved_bytes
 *      | mapped, blocks reserved  | addresses only    |
 *
 * Growth reserves blocks before it publishes an address: fallocate(), then a
 * new piece is mapped elsewhere, given its advice and moved onto the
 * reservation by mremap(), which is atomic and leaves one mapping. A store into
 * the file can therefore not meet a full disk.
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
#define STORE_PROBE_TRIES 3
#define STORE_PAGE_BYTES  4096

_Static_assert(STORE_STEP_BYTES % LAYOUT_CHUNK_BYTES == 0, "growth is by whole chunks");

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

/* ext4 keeps what it got of a failed fallocate(), and the disk full with it: undone at once. */
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
    if (r < 0) {
        int undone = weir__sys_ftruncate(store->data_fd, store->file_bytes);
        WEIR_CHECK(undone == 0);
    }
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
        int undone = weir__sys_ftruncate(store->data_fd, store->file_bytes);
        WEIR_CHECK(undone == 0);
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

    if (region->mark_peak - region->mark_bytes < STORE_TRIM_BYTES ||
        store->file_bytes < end + STORE_TRIM_BYTES)
        return;
    for (uint64_t chunk = weir__chunk_of(end); chunk < weir__chunk_of(store->file_bytes); chunk++)
        if (!weir__chunk_is_storable(weir__chunk_state(&region->chunks, chunk)))
            return; /* its write-back ends first */

    if (weir__sys_ftruncate(store->data_fd, end) < 0)
        return;
    for (uint64_t chunk = weir__chunk_of(end); chunk < weir__chunk_of(store->file_bytes); chunk++) {
        weir__pager_forget_suspect(region, chunk);
        weir__chunk_turn(&region->chunks, chunk, CHUNK_NONE);
    }
    store->file_bytes = end;
    region->mark_peak = region->mark_bytes;
    store_publish(region);
}

/* ---- Chunks ------------------------------------------------------------- */

/* Page cache leaves only when it is clean and unmapped: both calls, in this order. */
int weir__store_drop(struct weir_region *region, uint64_t chunk)
{
    int r =
        weir__sys_madvise(weir__store_address(region, chunk), LAYOUT_CHUNK_BYTES, MADV_DONTNEED);

    if (r < 0)
        return r;
    return weir__sys_fadvise(region->store.data_fd, chunk * LAYOUT_CHUNK_BYTES, LAYOUT_CHUNK_BYTES,
                             POSIX_FADV_DONTNEED);
}

/*
 * ZERO_RANGE makes the blocks unwritten again but keeps them: what is in memory
 * goes without being written, the next store needs no read, and still no disk
 * can be full.
 */
int weir__store_zero(struct weir_region *region, uint64_t chunk)
{
    return weir__sys_fallocate(region->store.data_fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                               chunk * LAYOUT_CHUNK_BYTES, LAYOUT_CHUNK_BYTES);
}

void weir__store_write(struct weir_region *region, struct weir_operation *operation, uint64_t chunk)
{
    struct weir__store *store = &region->store;

    if (store->syncs_file)
        weir__ring_fdatasync(region->ring, operation, store->data_fd);
    else
        weir__ring_sync_range(region->ring, operation, store->data_fd, chunk * LAYOUT_CHUNK_BYTES,
                              (uint32_t)LAYOUT_CHUNK_BYTES);
}

void weir__store_fill(struct weir_region *region, struct weir_operation *operation, uint64_t chunk)
{
    weir__ring_madvise(region->ring, operation, weir__store_address(region, chunk),
                       (uint32_t)LAYOUT_CHUNK_BYTES, MADV_POPULATE_WRITE);
}

/*
 * What the kernel failed to write is dirty again. To touch the pages is not
 * enough: after a failed write into blocks that were reserved but never written,
 * ext4 writes the same pages to the right place and never marks the blocks as
 * written, so that zeroes come back once the pages are dropped. Fresh pages over
 * blocks that are unwritten again know nothing of the failure.
 */
void weir__store_renew(struct weir_region *region, uint64_t chunk)
{
    struct weir__heap *heap = &region->fetches.heap;
    char *address = weir__store_address(region, chunk);
    char *copy = weir__heap_alloc(heap, LAYOUT_CHUNK_BYTES);
    bool is_fresh = false;

    if (copy != NULL) {
        memcpy(copy, address, LAYOUT_CHUNK_BYTES);
        is_fresh = weir__store_zero(region, chunk) == 0;
        if (is_fresh)
            memcpy(address, copy, LAYOUT_CHUNK_BYTES);
        weir__heap_free(heap, copy, LAYOUT_CHUNK_BYTES);
    }
    for (uint64_t at = 0; at < LAYOUT_CHUNK_BYTES && !is_fresh; at += STORE_PAGE_BYTES) {
        volatile char *byte = address + at;
        *byte = *byte;
    }
}

/* ---- Lifecycle ---------------------------------------------------------- */

/*
 * Write the first chunk in the one way or the other, drop it, and see whether it
 * left the memory. More than once: somebody may hold a page for a moment.
 */
static int store_probe_way(struct weir_region *region, bool syncs_file, bool *ret_bounded)
{
    struct weir__store *store = &region->store;
    char *address = weir__store_address(region, 0);
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
        weir__store_drop(region, 0);
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
    if (weir__store_zero(region, 0) < 0) {
        /* Without ZERO_RANGE the chunk is in memory from now on, as after any store. */
        memset(weir__store_address(region, 0), 0, LAYOUT_CHUNK_BYTES);
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
    store->reads_direct = r == 0;
    store->direct = r == 0;
    if (r == -EINVAL || r == -ENOENT || r == -ENXIO)
        r = weir__sys_reopen(store->data_fd, O_RDONLY, &store->direct_fd);
    return r;
}

int weir__store_open(struct weir_region *region, const struct weir_region_config *config)
{
    struct weir__store *store = &region->store;
    uint64_t initial = config->bytes_initial > 0 ? config->bytes_initial : UINT64_C(64) << 20;

    store->floor_bytes = config->disk_floor_bytes;

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
