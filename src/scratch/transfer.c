/* SPDX-License-Identifier: MIT */
/*
 * transfer - one piece on its way to the disk or back
 *
 *      ring        write or read, again from where a short one ended
 *      page cache  where there is no O_DIRECT: written out, then dropped
 *      no ring     done at once by system calls or by the given store
 *
 * However it is done, it completes from poll and never from the call that
 * started it: whoever starts one need not be ready for its end. Without a ring
 * it waits for that in a list of the store.
 */
#include "scratch/scratch_state.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/sys.h"

#include <errno.h>
#include <fcntl.h>

static void transfer_end(struct weir__transfer *transfer, int result)
{
    struct weir__body *body = transfer->body;

    WEIR_ASSERT(body->scratch->under_way_count > 0);
    body->scratch->under_way_count--;
    transfer->complete(transfer, result);
    weir__body_let_go(body);
}

static void transfer_submit(struct weir__transfer *transfer)
{
    struct weir_ring *ring = transfer->body->scratch->ring;
    int fd = transfer->body->fd;
    char *buffer = transfer->buffer + transfer->moved_bytes;
    uint32_t bytes = (uint32_t)(transfer->bytes - transfer->moved_bytes);
    uint64_t offset = transfer->offset + transfer->moved_bytes;

    if (transfer->flushes)
        weir__ring_sync_range(ring, &transfer->operation, fd, transfer->offset,
                              (uint32_t)transfer->bytes);
    else if (transfer->writes)
        weir__ring_write(ring, &transfer->operation, fd, buffer, bytes, offset);
    else
        weir__ring_read(ring, &transfer->operation, fd, buffer, bytes, offset);
}

/* All of it has moved; what went through the page cache has to leave it. */
static void transfer_moved(struct weir__transfer *transfer)
{
    bool direct = transfer->body->direct;

    if (!direct && transfer->writes && !transfer->flushes) {
        transfer->flushes = true;
        transfer_submit(transfer);
        return;
    }
    if (!direct)
        (void)weir__sys_fadvise(transfer->body->fd, transfer->offset, transfer->bytes,
                                POSIX_FADV_DONTNEED);
    transfer_end(transfer, 0);
}

static void transfer_complete(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct weir__transfer *transfer =
        WEIR_CONTAINER_OF(operation, struct weir__transfer, operation);

    (void)flags;
    if (result == -EINTR || result == -EAGAIN) {
        transfer_submit(transfer);
        return;
    }
    if (result < 0 || (result == 0 && !transfer->flushes)) {
        transfer_end(transfer, result < 0 ? result : -EIO);
        return;
    }
    if (!transfer->flushes)
        transfer->moved_bytes += (uint32_t)result;
    if (transfer->moved_bytes < transfer->bytes)
        transfer_submit(transfer);
    else
        transfer_moved(transfer);
}

static void transfer_nothing_complete(struct weir_operation *operation, int32_t result,
                                      uint32_t flags)
{
    struct weir__transfer *transfer =
        WEIR_CONTAINER_OF(operation, struct weir__transfer, operation);

    (void)result;
    (void)flags;
    transfer_end(transfer, transfer->result);
}

/* It is done; told by the next poll. */
static void transfer_later(struct weir__transfer *transfer, int result)
{
    struct weir_scratch *scratch = transfer->body->scratch;

    transfer->result = result;
    if (weir__ring_is_synchronous(scratch->ring)) {
        weir__list_append(&scratch->done, &transfer->link);
        scratch->done_count++;
        return;
    }
    transfer->operation.complete = transfer_nothing_complete;
    weir__ring_nop(scratch->ring, &transfer->operation);
}

static void transfer_begin(struct weir__transfer *transfer, struct weir__body *body, char *buffer,
                           uint64_t bytes, uint64_t offset)
{
    transfer->operation.complete = transfer_complete;
    transfer->body = body;
    transfer->buffer = buffer;
    transfer->bytes = bytes;
    transfer->offset = offset;
    transfer->moved_bytes = 0;
    transfer->flushes = false;
    weir__list_init(&transfer->link);
    weir__body_hold(body);
    body->scratch->under_way_count++;
}

static bool transfer_blocks(const struct weir__body *body)
{
    return body->fd < 0 || weir__ring_is_synchronous(body->scratch->ring);
}

void weir__transfer_write(struct weir__transfer *transfer, struct weir__body *body, char *buffer,
                          uint64_t bytes, uint64_t offset)
{
    transfer_begin(transfer, body, buffer, bytes, offset);
    transfer->writes = true;
    if (transfer_blocks(body))
        transfer_later(transfer, weir__body_write(body, buffer, bytes, offset));
    else
        transfer_submit(transfer);
}

void weir__transfer_read(struct weir__transfer *transfer, struct weir__body *body, char *buffer,
                         uint64_t bytes, uint64_t offset)
{
    transfer_begin(transfer, body, buffer, bytes, offset);
    transfer->writes = false;
    if (transfer_blocks(body))
        transfer_later(transfer, weir__body_read(body, buffer, bytes, offset));
    else
        transfer_submit(transfer);
}

void weir__transfer_nothing(struct weir__transfer *transfer, struct weir__body *body, int result)
{
    transfer_begin(transfer, body, NULL, 0, 0);
    transfer_later(transfer, result);
}

/* Those that were there: what a completion starts comes with the next poll. */
int weir__transfers_complete(struct weir_scratch *scratch)
{
    uint32_t count = scratch->done_count;

    for (uint32_t left = count; left > 0; left--) {
        struct weir__transfer *transfer =
            WEIR_CONTAINER_OF(scratch->done.next, struct weir__transfer, link);
        weir__list_remove(&transfer->link);
        scratch->done_count--;
        transfer_end(transfer, transfer->result);
    }
    return (int)count;
}
