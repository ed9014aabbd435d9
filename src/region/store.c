/* SPDX-License-Identifier: MIT */
/*
 * store - the mapped chunk store: the file, and what a chunk of it is made of
 *
 *      base                       file_bytes           mapped_bytes
 *      | blocks reserved          | behind the end of the file |
 *
 * All of bytes_max is mapped at open, and addresses are given out only as far as
 * blocks are reserved (see growth): a store into the file cannot meet a full
 * disk. To map piece by piece would cost a put up to two milliseconds now and
 * then: a change of the mapping waits for the kernel's own write-back of the file.
 */
#include "region/region_state.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define STORE_PROBE_TRIES 3
#define STORE_PAGE_BYTES  4096

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

int weir__store_map(struct weir_region *region, uint64_t end)
{
    struct weir__store *store = &region->store;
    int r = 0;

    if (end > store->mapped_bytes)
        r = store_map_movable(store, end);
    if (r == 0)
        store->mapped_bytes = weir__max(store->mapped_bytes, end);
    return r;
}

/*
 * All of bytes_max at once, far behind the end of the file: then growth changes
 * nothing in the address space. Addresses there are nobody's before the file
 * reaches them. Where so much is refused the mapping grows, and may move.
 */
static void store_map_whole(struct weir__store *store, uint64_t bytes_max)
{
    void *base;

    if (weir__sys_mmap(NULL, bytes_max, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                       store->data_fd, 0, &base) < 0)
        return;
    store->base = base;
    store->reserved_bytes = bytes_max;
    store->mapped_bytes = bytes_max;
    store_advise(base, bytes_max);
}

/* ---- Chunks ------------------------------------------------------------- */

/* Page cache leaves only when it is clean and unmapped: both calls, in this order. */
static int store_drop(int fd, void *address, uint64_t offset)
{
    int r = weir__sys_madvise(address, LAYOUT_CHUNK_BYTES, MADV_DONTNEED);

    return r < 0 ? r : weir__sys_fadvise(fd, offset, LAYOUT_CHUNK_BYTES, POSIX_FADV_DONTNEED);
}

int weir__store_drop(struct weir_region *region, uint64_t chunk)
{
    return store_drop(region->store.data_fd, weir__store_address(region, chunk),
                      chunk * LAYOUT_CHUNK_BYTES);
}

/*
 * ZERO_RANGE makes the blocks unwritten again but keeps them: what is in memory
 * goes without being written, the next store needs no read, and still no disk
 * can be full.
 */
static int store_zero(struct weir_region *region, uint64_t from, uint64_t to)
{
    return weir__sys_fallocate(region->store.data_fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                               from, to - from);
}

int weir__store_zero(struct weir_region *region, uint64_t chunk)
{
    return store_zero(region, chunk * LAYOUT_CHUNK_BYTES, (chunk + 1) * LAYOUT_CHUNK_BYTES);
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
 * Whole pages between @from and @to are fresh ones, with the bytes of @copy, which is of their
 * chunk. Where that is refused some may be fresh and empty, or have been written once more, in vain.
 */
static void store_renew_pages(struct weir_region *region, const char *copy, uint64_t from,
                              uint64_t to)
{
    from = weir__round_up(from, STORE_PAGE_BYTES);
    to = weir__round_down(to, STORE_PAGE_BYTES);
    if (from >= to)
        return;
    (void)!store_zero(region, from, to);
    memcpy(region->store.base + from, copy + from % LAYOUT_CHUNK_BYTES, to - from);
}

/* All but what a sync confirmed: that must not leave the disk for a moment. */
static void store_renew_chunk(struct weir_region *region, uint64_t chunk, const char *copy)
{
    uint64_t from = chunk * LAYOUT_CHUNK_BYTES;
    uint64_t end = from + LAYOUT_CHUNK_BYTES;
    uint32_t index = weir__sync_next_kept(region, region->chunks.table[chunk].first, end);

    while (index != 0) {
        const struct weir__entry *entry = weir__region_entry(region, index);
        store_renew_pages(region, copy, from, weir__entry_offset(entry));
        from = weir__entry_offset(entry) + weir__entry_space(entry);
        index = weir__sync_next_kept(region, weir__entry_next(entry), end);
    }
    store_renew_pages(region, copy, from, end);
}

/*
 * What the kernel failed to write is dirty again. To touch the pages is not
 * enough: after a failed write into blocks that were reserved but never written,
 * ext4 writes the same pages to the right place and never marks the blocks as
 * written, so that zeroes come back once the pages are dropped. Fresh pages over
 * blocks that are unwritten again know nothing of the failure. Of what a sync
 * confirmed the blocks were written then: there it is enough. It comes last, for
 * XFS and btrfs write before they zero, and what fails then is clean again.
 */
void weir__store_renew(struct weir_region *region, uint64_t chunk)
{
    struct weir__arena *arena = &region->fetches.arena;
    char *address = weir__store_address(region, chunk);

    /* For the copy, that memory stays within its limit; cleaning stands still now. */
    (void)weir__clean_yield(region);
    char *copy = weir__arena_alloc(arena, LAYOUT_CHUNK_BYTES);

    if (copy != NULL) {
        memcpy(copy, address, LAYOUT_CHUNK_BYTES);
        store_renew_chunk(region, chunk, copy);
        weir__arena_free(arena, copy, LAYOUT_CHUNK_BYTES);
    }
    for (uint64_t at = 0; at < LAYOUT_CHUNK_BYTES; at += STORE_PAGE_BYTES) {
        volatile char *byte = address + at;
        *byte = *byte;
    }
}

/* ---- Lifecycle ---------------------------------------------------------- */

/*
 * Write a chunk in the one way or the other, drop it, and see whether it left
 * the memory. More than once: somebody may hold a page for a moment.
 */
static int store_probe_way(int fd, char *address, uint64_t offset, bool syncs_file,
                           bool *ret_bounded)
{
    unsigned flags = 7; /* wait before, write, wait after */

    *ret_bounded = false;
    for (int tries = 0; tries < STORE_PROBE_TRIES && !*ret_bounded; tries++) {
        uint64_t pages = 0;
        for (uint64_t at = 0; at < LAYOUT_CHUNK_BYTES; at += STORE_PAGE_BYTES)
            address[at] = 1;
        int r = syncs_file ? weir__sys_fdatasync(fd)
                           : weir__sys_sync_file_range(fd, offset, LAYOUT_CHUNK_BYTES, flags);
        if (r < 0)
            return r;
        store_drop(fd, address, offset);
        *ret_bounded = weir__sys_resident(address, LAYOUT_CHUNK_BYTES, &pages) == 0 && pages == 0;
    }
    return 0;
}

/* What can this file system do? A chunk of @fd at @offset holds nothing. */
static int store_probe(struct weir_region *region, int fd, char *address, uint64_t offset)
{
    struct weir__store *store = &region->store;
    int r = store_probe_way(fd, address, offset, false, &store->bounded);

    if (r == 0 && !store->bounded) {
        store->syncs_file = true;
        r = store_probe_way(fd, address, offset, true, &store->bounded);
    }
    weir__word_store(&weir__region_figures(region)->bounded, store->bounded);
    return r;
}

static int store_probe_chunk(struct weir_region *region, uint64_t chunk)
{
    char *address = weir__store_address(region, chunk);
    int r = store_probe(region, region->store.data_fd, address, chunk * LAYOUT_CHUNK_BYTES);

    if (r < 0)
        return r;
    if (weir__store_zero(region, chunk) < 0) {
        /* Without ZERO_RANGE the chunk is in memory from now on, as after any store. */
        memset(address, 0, LAYOUT_CHUNK_BYTES);
        weir__chunk_turn(&region->chunks, chunk, CHUNK_DIRTY);
    }
    return 0;
}

static int store_probe_file(struct weir_region *region, const char *directory)
{
    WEIR_CLEANUP_CLOSE int fd = -1;
    void *address;
    int r = weir__sys_open_unnamed(directory, &fd);

    if (r == 0)
        r = weir__sys_fallocate(fd, 0, 0, LAYOUT_CHUNK_BYTES);
    if (r == 0)
        r = weir__sys_mmap(NULL, LAYOUT_CHUNK_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0,
                           &address);
    if (r < 0)
        return r;
    r = store_probe(region, fd, address, 0);
    weir__sys_munmap(address, LAYOUT_CHUNK_BYTES);
    return r;
}

/*
 * Every chunk holds items: for a moment there is another file beside it. Where that is refused
 * (the disk is full as well) the way that works everywhere is taken, with no promise.
 */
static void store_probe_beside(struct weir_region *region, const struct weir_region_config *config)
{
    const struct weir_disk_cap *cap = &config->disk_cap;
    int r = -EDQUOT;

    if (cap->take == NULL || cap->take(cap->context, LAYOUT_CHUNK_BYTES)) {
        r = store_probe_file(region, config->directory);
        if (cap->take != NULL)
            cap->give(cap->context, LAYOUT_CHUNK_BYTES);
    }
    if (r < 0)
        region->store.syncs_file = true;
}

static int store_open_files(struct weir__store *store, const struct weir_region_config *config)
{
    uint64_t free_bytes;
    bool memory_backed;
    int r = 0;

    if (store->data_fd < 0)
        r = weir__sys_open_unnamed(config->directory, &store->data_fd);
    if (r < 0)
        return r;
    r = weir__sys_fstatfs(store->data_fd, &free_bytes, &memory_backed);
    if (r < 0)
        return r;
    if (memory_backed && !config->memory_backed)
        return -EOPNOTSUPP;
    r = weir__sys_write_in_place(store->data_fd);
    if (r < 0)
        return r;
    r = weir__sys_reopen(store->data_fd, O_RDWR | O_DIRECT, &store->direct_fd);
    store->direct = r == 0;
    if (r == -EINVAL || r == -ENOENT || r == -ENXIO)
        r = weir__sys_reopen(store->data_fd, O_RDONLY, &store->direct_fd);
    return r;
}

int weir__store_open(struct weir_region *region, const struct weir_region_config *config)
{
    struct weir__store *store = &region->store;
    uint64_t kept = region->named.kept_bytes; /* 0 if it is new */

    store->floor_bytes = config->disk_floor_bytes;

    int r = store_open_files(store, config);
    if (r < 0)
        return r;
    store_map_whole(store, region->bytes_max);

    r = weir__growth_open(region, config);
    if (r < 0)
        return r;
    if (store->file_bytes > kept)
        return store_probe_chunk(region, weir__chunk_of(kept));
    store_probe_beside(region, config);
    return 0;
}

/* The file has no name, but may lie in a descriptor of somebody else, and its blocks on the disk. */
static void store_wipe(const struct weir_region *region)
{
    const struct weir__store *store = &region->store;
    /* Zeroed, a hole would get blocks that nobody was asked for. */
    int mode = region->chunks.hole_count > 0 ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;

    if (weir__sys_fallocate(store->data_fd, mode | FALLOC_FL_KEEP_SIZE, 0, store->file_bytes) == 0)
        return;
    (void)!weir__sys_ftruncate(store->data_fd, 0);
}

void weir__store_close(struct weir_region *region)
{
    struct weir__store *store = &region->store;

    if (region->wipes && store->file_bytes > 0 && !weir__region_is_named(region))
        store_wipe(region);
    if (store->mapped_bytes > 0)
        weir__sys_munmap(store->base, store->mapped_bytes);
    weir__sys_close(store->direct_fd);
    weir__sys_close(store->data_fd);
    weir__growth_close(region);
}
