/* SPDX-License-Identifier: MIT */
/*
 * body - the bytes of a file
 *
 *      not rolled   | block: all of it                    |
 *      rolled       | pages on disk, a checksum each | block: the end, while it is written |
 *
 * On disk are whole pages in whole blocks; the last is filled up with zeroes when
 * the file is sealed. O_DIRECT where the file system has it, so that the page
 * cache holds nothing of it; elsewhere what was written is flushed and dropped at
 * once. The length of the file on disk never shrinks: what a failed append left
 * there is written over by the next.
 *
 *   B1  bytes is what was appended for good plus what is being appended, and all of
 *       it is taken from the cap
 *   B2  a body lives as long as it is held
 */
#include "scratch/scratch_state.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <xxhash.h>

#define BODY_BLOCK_MIN SCRATCH_PAGE_BYTES
#define BODY_SUM_MIN   UINT64_C(32) /* pages of a block */

/* ---- Lifecycle ---------------------------------------------------------- */

struct weir__body *weir__body_new(struct weir_scratch *scratch)
{
    struct weir__body *body = weir__heap_alloc(&scratch->heap, sizeof(*body));

    if (body == NULL)
        return NULL;
    *body = (struct weir__body){.scratch = scratch, .holder_count = 1, .fd = -1};
    return body;
}

void weir__body_hold(struct weir__body *body)
{
    body->holder_count++;
}

static void body_count_memory(const struct weir__body *body, int64_t bytes)
{
    if (!body->has_rolled)
        body->scratch->figures.memory_bytes += (uint64_t)bytes;
}

void weir__body_let_go(struct weir__body *body)
{
    struct weir_scratch *scratch = body->scratch;

    WEIR_ASSERT(body->holder_count > 0);
    if (--body->holder_count > 0) /* B2 */
        return;

    weir__body_free_block(body);
    weir__heap_free(&scratch->heap, body->sums, body->sum_count * sizeof(*body->sums));
    weir__sys_close(body->fd);
    if (body->has_rolled && scratch->directory == NULL)
        scratch->store.remove(scratch->store.context, body->file);
    if (scratch->cap.give != NULL && body->disk_bytes > 0)
        scratch->cap.give(scratch->cap.context, body->disk_bytes);
    scratch->figures.disk_bytes -= body->disk_bytes;
    body_count_memory(body, -(int64_t)body->bytes);
    weir__scratch_give(scratch, body->bytes);
    weir__heap_free(&scratch->heap, body, sizeof(*body));
}

/* ---- The block ---------------------------------------------------------- */

int weir__body_grow_block(struct weir__body *body, uint64_t bytes)
{
    struct weir__heap *heap = &body->scratch->heap;

    WEIR_ASSERT(bytes <= SCRATCH_BLOCK_BYTES);
    if (bytes <= body->block_bytes)
        return 0;

    uint64_t wanted = weir__max(body->block_bytes, BODY_BLOCK_MIN);
    while (wanted < bytes)
        wanted *= 2;
    char *block = weir__heap_alloc_aligned(heap, wanted, SCRATCH_PAGE_BYTES);
    if (block == NULL)
        return -ENOMEM;
    if (body->block != NULL)
        memcpy(block, body->block, body->block_bytes);
    weir__heap_free(heap, body->block, body->block_bytes);
    body->block = block;
    body->block_bytes = wanted;
    return 0;
}

void weir__body_free_block(struct weir__body *body)
{
    weir__heap_free(&body->scratch->heap, body->block, body->block_bytes);
    body->block = NULL;
    body->block_bytes = 0;
}

/* ---- On disk ------------------------------------------------------------ */

/* Unnamed from birth; nothing of it stays in the page cache if that can be had. */
static int body_open_file(struct weir__body *body)
{
    struct weir_scratch *scratch = body->scratch;
    bool memory_backed;
    uint64_t free_bytes;
    int direct_fd;
    int fd;
    int r = weir__scratch_prepare(scratch);

    if (r == 0)
        r = weir__sys_open_unnamed(scratch->directory, &fd);
    if (r < 0)
        return r;
    r = weir__sys_fstatfs(fd, &free_bytes, &memory_backed);
    if (r == 0 && memory_backed)
        r = -EOPNOTSUPP;
    if (r < 0) {
        weir__sys_close(fd);
        return r;
    }
    body->direct = weir__sys_reopen(fd, O_RDWR | O_DIRECT, &direct_fd) == 0;
    scratch->figures.direct = body->direct;
    if (body->direct) {
        weir__sys_close(fd);
        fd = direct_fd;
    }
    body->fd = fd;
    return 0;
}

int weir__body_roll(struct weir__body *body)
{
    struct weir_scratch *scratch = body->scratch;
    int r;

    if (body->has_rolled)
        return 0;
    r = weir__body_grow_block(body, SCRATCH_BLOCK_BYTES);
    if (r < 0)
        return r;
    if (scratch->directory != NULL)
        r = body_open_file(body);
    else
        r = scratch->store.create(scratch->store.context, &body->file);
    if (r < 0)
        return r;
    body_count_memory(body, -(int64_t)body->bytes);
    body->has_rolled = true;
    scratch->figures.rolled_count++;
    return 0;
}

static int body_reserve_sums(struct weir__body *body, uint64_t count)
{
    uint64_t wanted = weir__max(body->sum_count, BODY_SUM_MIN);

    if (count <= body->sum_count)
        return 0;
    while (wanted < count)
        wanted *= 2;
    uint64_t *sums = weir__heap_resize(&body->scratch->heap, body->sums,
                                       body->sum_count * sizeof(*sums), wanted * sizeof(*sums));
    if (sums == NULL)
        return -ENOMEM;
    body->sums = sums;
    body->sum_count = wanted;
    return 0;
}

static int body_reserve_disk(struct weir__body *body, uint64_t bytes)
{
    struct weir_scratch *scratch = body->scratch;
    bool memory_backed;
    uint64_t free_bytes;

    if (body->fd >= 0 && scratch->floor_bytes > 0) {
        int r = weir__sys_fstatfs(body->fd, &free_bytes, &memory_backed);
        if (r < 0)
            return r;
        if (free_bytes < scratch->floor_bytes || free_bytes - scratch->floor_bytes < bytes)
            return -ENOSPC;
    }
    if (scratch->cap.take != NULL && !scratch->cap.take(scratch->cap.context, bytes)) {
        scratch->figures.refused_count++;
        return -EDQUOT;
    }
    body->disk_bytes += bytes;
    scratch->figures.disk_bytes += bytes;
    return 0;
}

int weir__body_reserve(struct weir__body *body, uint64_t offset, uint64_t bytes)
{
    int r = body_reserve_sums(body, (offset + bytes) / SCRATCH_PAGE_BYTES);

    if (r == 0 && offset + bytes > body->disk_bytes)
        r = body_reserve_disk(body, offset + bytes - body->disk_bytes);
    return r;
}

void weir__body_sum(struct weir__body *body, const char *data, uint64_t bytes, uint64_t offset)
{
    for (uint64_t at = 0; at < bytes; at += SCRATCH_PAGE_BYTES)
        body->sums[(offset + at) / SCRATCH_PAGE_BYTES] = XXH3_64bits(data + at, SCRATCH_PAGE_BYTES);
}

int weir__body_verify(const struct weir__body *body, const char *data, uint64_t bytes,
                      uint64_t offset)
{
    for (uint64_t at = 0; at < bytes; at += SCRATCH_PAGE_BYTES)
        if (body->sums[(offset + at) / SCRATCH_PAGE_BYTES] !=
            XXH3_64bits(data + at, SCRATCH_PAGE_BYTES))
            return -EBADMSG;
    return 0;
}

/* ---- Blocking ----------------------------------------------------------- */

/* Where the page cache takes part: out, and gone. */
static int body_flush(const struct weir__body *body, uint64_t bytes, uint64_t offset)
{
    unsigned flags =
        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    int r = weir__sys_sync_file_range(body->fd, offset, bytes, flags);

    return r < 0 ? r : weir__sys_fadvise(body->fd, offset, bytes, POSIX_FADV_DONTNEED);
}

int weir__body_write(struct weir__body *body, const char *data, uint64_t bytes, uint64_t offset)
{
    const struct weir_scratch *scratch = body->scratch;

    if (body->fd < 0)
        return scratch->store.write(scratch->store.context, body->file, data, bytes, offset);
    int r = weir__sys_pwrite_all(body->fd, data, bytes, offset);
    if (r == 0 && !body->direct)
        r = body_flush(body, bytes, offset);
    return r;
}

int weir__body_read(struct weir__body *body, char *data, uint64_t bytes, uint64_t offset)
{
    const struct weir_scratch *scratch = body->scratch;

    if (body->fd < 0)
        return scratch->store.read(scratch->store.context, body->file, data, bytes, offset);
    int r = weir__sys_pread_all(body->fd, data, bytes, offset);
    if (r == 0 && !body->direct)
        r = weir__sys_fadvise(body->fd, offset, bytes, POSIX_FADV_DONTNEED);
    return r;
}
