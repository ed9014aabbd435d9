/* SPDX-License-Identifier: MIT */
/*
 * ring - submission, completion, and the way without io_uring
 *
 * user_data of every entry is its operation. Completions are copied out of the
 * queue in small batches before they are called, so that an operation may
 * submit, and may even reap, from its own completion.
 */
#include "base/ring.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/heap.h"
#include "base/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>

#define RING_BATCH_COUNT 64
#define RING_QUEUE_COUNT 1024

struct ring_result {
    struct weir_operation *operation;
    int32_t result;
    uint32_t flags;
};

struct weir_ring {
    struct io_uring uring;
    bool synchronous;
    uint32_t in_flight;
    uint32_t result_count;       /* synchronous: done, not yet completed */
    struct ring_result *results; /* RING_QUEUE_COUNT, synchronous only */
};

/* ---- Lifecycle ---------------------------------------------------------- */

static int ring_open_synchronous(struct weir_ring *ring)
{
    ring->results = weir__heap_alloc(NULL, RING_QUEUE_COUNT * sizeof(*ring->results));
    if (ring->results == NULL)
        return -ENOMEM;
    ring->synchronous = true;
    return 0;
}

int weir__ring_open(uint32_t entry_count, bool may_be_synchronous, struct weir_ring **ret_ring)
{
    struct weir_ring *ring = weir__heap_alloc(NULL, sizeof(*ring));
    struct io_uring_params params = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQSIZE,
        .cq_entries = entry_count * 4,
    };

    if (ring == NULL)
        return -ENOMEM;

    int r = io_uring_queue_init_params(entry_count, &ring->uring, &params);
    if (r == -EINVAL) { /* before 6.1 */
        params =
            (struct io_uring_params){.flags = IORING_SETUP_CQSIZE, .cq_entries = entry_count * 4};
        r = io_uring_queue_init_params(entry_count, &ring->uring, &params);
    }
    if (r == -EPERM || r == -ENOSYS || r == -EACCES)
        r = may_be_synchronous ? ring_open_synchronous(ring) : -EOPNOTSUPP;
    if (r < 0) {
        weir__heap_free(NULL, ring, sizeof(*ring));
        return r;
    }
    *ret_ring = ring;
    return 0;
}

void weir__ring_close(struct weir_ring *ring)
{
    if (ring == NULL)
        return;

    if (!ring->synchronous)
        io_uring_queue_exit(&ring->uring);
    weir__heap_free(NULL, ring->results, RING_QUEUE_COUNT * sizeof(*ring->results));
    weir__heap_free(NULL, ring, sizeof(*ring));
}

bool weir__ring_is_synchronous(const struct weir_ring *ring)
{
    return ring->synchronous;
}

int weir__ring_fd(const struct weir_ring *ring)
{
    return ring->synchronous ? -1 : ring->uring.ring_fd;
}

uint32_t weir__ring_in_flight(const struct weir_ring *ring)
{
    return ring->in_flight;
}

/* ---- Submission --------------------------------------------------------- */

int weir__ring_submit(struct weir_ring *ring)
{
    if (ring->synchronous || io_uring_sq_ready(&ring->uring) == 0)
        return 0;

    int r;
    do
        r = io_uring_submit(&ring->uring);
    while (r == -EINTR);
    return r < 0 ? r : 0;
}

struct io_uring_sqe *weir__ring_sqe(struct weir_ring *ring, struct weir_operation *operation)
{
    WEIR_CHECK(!ring->synchronous);

    struct io_uring_sqe *entry = io_uring_get_sqe(&ring->uring);
    while (entry == NULL) {
        /* -EBUSY and -EAGAIN: the kernel wants completions taken first; they stay queued there. */
        int r = weir__ring_submit(ring);
        WEIR_CHECK(r == 0 || r == -EBUSY || r == -EAGAIN);
        entry = io_uring_get_sqe(&ring->uring);
    }
    io_uring_sqe_set_data(entry, operation);
    ring->in_flight++;
    return entry;
}

/* ---- Completion --------------------------------------------------------- */

static int ring_reap_synchronous(struct weir_ring *ring)
{
    int count = 0;

    /* What a completion starts completes at the next reap. */
    for (uint32_t left = ring->result_count; left > 0; left--) {
        struct ring_result first = ring->results[0];
        ring->result_count--;
        for (uint32_t i = 0; i < ring->result_count; i++)
            ring->results[i] = ring->results[i + 1];
        ring->in_flight--;
        first.operation->complete(first.operation, first.result, 0);
        count++;
    }
    return count;
}

static int ring_complete_ready(struct weir_ring *ring)
{
    int count = 0;

    for (;;) {
        struct io_uring_cqe *entries[RING_BATCH_COUNT];
        struct ring_result results[RING_BATCH_COUNT];
        unsigned ready = io_uring_peek_batch_cqe(&ring->uring, entries, RING_BATCH_COUNT);
        if (ready == 0)
            return count;

        for (unsigned i = 0; i < ready; i++)
            results[i] = (struct ring_result){io_uring_cqe_get_data(entries[i]), entries[i]->res,
                                              entries[i]->flags};
        io_uring_cq_advance(&ring->uring, ready);
        for (unsigned i = 0; i < ready; i++) {
            if (results[i].operation == NULL) /* a time-out of liburing's, a doorbell */
                continue;
            if ((results[i].flags & IORING_CQE_F_MORE) == 0)
                ring->in_flight--;
            results[i].operation->complete(results[i].operation, results[i].result,
                                           results[i].flags);
        }
        count += (int)ready;
    }
}

int weir__ring_reap(struct weir_ring *ring)
{
    if (ring->synchronous)
        return ring_reap_synchronous(ring);

    /* With deferred task work completions appear only when we enter the kernel. */
    int r;
    do
        r = io_uring_submit_and_get_events(&ring->uring);
    while (r == -EINTR);
    if (r < 0 && r != -EBUSY && r != -EAGAIN)
        return r;
    return ring_complete_ready(ring);
}

int weir__ring_wait(struct weir_ring *ring, uint64_t timeout_ns)
{
    if (ring->synchronous)
        return ring_reap_synchronous(ring);

    struct io_uring_cqe *first;
    struct __kernel_timespec timeout = {
        .tv_sec = (long long)(timeout_ns / UINT64_C(1000000000)),
        .tv_nsec = (long long)(timeout_ns % UINT64_C(1000000000)),
    };
    int r = io_uring_submit_and_wait_timeout(&ring->uring, &first, 1, &timeout, NULL);
    if (r < 0 && r != -EINTR && r != -ETIME && r != -EBUSY && r != -EAGAIN)
        return r;
    return ring_complete_ready(ring);
}

/* ---- Typed operations --------------------------------------------------- */

static void ring_complete_later(struct weir_ring *ring, struct weir_operation *operation,
                                int result)
{
    WEIR_CHECK(ring->result_count < RING_QUEUE_COUNT);
    ring->results[ring->result_count++] = (struct ring_result){operation, result, 0};
    ring->in_flight++;
}

void weir__ring_read(struct weir_ring *ring, struct weir_operation *operation, int fd, void *buffer,
                     uint32_t bytes, uint64_t offset)
{
    if (ring->synchronous) {
        int r = weir__sys_pread_all(fd, buffer, bytes, offset);
        ring_complete_later(ring, operation, r < 0 ? r : (int)bytes);
        return;
    }
    io_uring_prep_read(weir__ring_sqe(ring, operation), fd, buffer, bytes, offset);
}

void weir__ring_sync_range(struct weir_ring *ring, struct weir_operation *operation, int fd,
                           uint64_t offset, uint32_t bytes)
{
    unsigned flags =
        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;

    if (ring->synchronous) {
        ring_complete_later(ring, operation, weir__sys_sync_file_range(fd, offset, bytes, flags));
        return;
    }
    io_uring_prep_sync_file_range(weir__ring_sqe(ring, operation), fd, bytes, offset, (int)flags);
}

void weir__ring_fdatasync(struct weir_ring *ring, struct weir_operation *operation, int fd)
{
    if (ring->synchronous) {
        ring_complete_later(ring, operation, weir__sys_fdatasync(fd));
        return;
    }
    io_uring_prep_fsync(weir__ring_sqe(ring, operation), fd, IORING_FSYNC_DATASYNC);
}

void weir__ring_madvise(struct weir_ring *ring, struct weir_operation *operation, void *address,
                        uint32_t bytes, int advice)
{
    if (ring->synchronous) {
        ring_complete_later(ring, operation, weir__sys_madvise(address, bytes, advice));
        return;
    }
    io_uring_prep_madvise(weir__ring_sqe(ring, operation), address, bytes, advice);
}
