/* SPDX-License-Identifier: MIT */
/*
 * ring - submission, completion, and the way without io_uring
 *
 * user_data of every entry is its operation:
 *
 *      operation       counted in flight, completed
 *      operation | 1   a wake of another ring: not counted, speaks up only when
 *                      it failed
 *      0               nobody's: a wake from another ring, a cancellation
 *
 * With deferred task work the kernel posts completions only when we enter it
 * and ask for events. It says in the flags of the submission queue that there
 * are some, so that looking costs two loads and not a system call.
 *
 * Completions are copied out of the queue in small batches before they are
 * called, so that an operation may submit, and may even reap, from its own
 * completion. Such a reap goes on with the batch where the outer one stands: what
 * it waits for may have been copied already. A reap takes what was there when it
 * began: operations that complete at once and start their next cannot hold it
 * for ever.
 */
#include "base/ring.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/heap.h"
#include "base/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>

#define RING_BATCH_COUNT    64
#define RING_REAP_COUNT_MAX 1024
#define RING_QUEUE_COUNT    1024
#define RING_UNCOUNTED      UINT64_C(1)
#define RING_SLEEP_NS_MAX   UINT64_C(3600000000000) /* the kernel adds it to its clock: no overflow */
#define RING_CONTEXT_BYTES  UINT64_C(8192)          /* of the kernel's own, beside the queues */
#define RING_CANCEL_NS      UINT64_C(10000000)

_Static_assert(_Alignof(struct weir_operation) > RING_UNCOUNTED, "the mark fits into the pointer");

struct ring_result {
    struct weir_operation *operation;
    int32_t result;
    uint32_t flags;
    bool counted;
};

struct weir_ring {
    struct io_uring uring;
    bool synchronous;
    bool deferred; /* fixed: by IORING_SETUP_DEFER_TASKRUN */
    uint32_t in_flight;
    uint32_t result_count;       /* synchronous: done, not yet completed */
    struct ring_result *results; /* RING_QUEUE_COUNT, synchronous only */
    uint32_t batch_next;         /* of the batch, those from here on are not yet called */
    uint32_t batch_count;
    struct ring_result batch[RING_BATCH_COUNT];
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

static int ring_open_uring(struct weir_ring *ring, uint32_t entry_count)
{
    struct io_uring_params params = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                 IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
        .cq_entries = entry_count * 4,
    };

    int r = io_uring_queue_init_params(entry_count, &ring->uring, &params);
    ring->deferred = r == 0;
    if (r == -EINVAL) { /* before 6.1 */
        params = (struct io_uring_params){.flags = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
                                          .cq_entries = entry_count * 4};
        r = io_uring_queue_init_params(entry_count, &ring->uring, &params);
    }
    if (r < 0)
        return r;

    /* Spares the lookup of the descriptor in each enter; it works without. */
    (void)io_uring_register_ring_fd(&ring->uring);
    return 0;
}

int weir__ring_open(uint32_t entry_count, bool may_be_synchronous, struct weir_ring **ret_ring)
{
    if (entry_count == 0 || entry_count > 32768)
        return -EINVAL;

    struct weir_ring *ring = weir__heap_alloc(NULL, sizeof(*ring));
    if (ring == NULL)
        return -ENOMEM;

    int r = ring_open_uring(ring, entry_count);
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

bool weir__ring_is_deferred(const struct weir_ring *ring)
{
    return ring->deferred;
}

uint32_t weir__ring_in_flight(const struct weir_ring *ring)
{
    return ring->in_flight;
}

size_t weir__ring_ranges(const struct weir_ring *ring,
                         struct weir__range ret_ranges[WEIR_RING_RANGES])
{
    const struct io_uring_sq *sq = &ring->uring.sq;
    const struct io_uring_cq *cq = &ring->uring.cq;

    ret_ranges[0] = (struct weir__range){ring, sizeof(*ring)};
    if (ring->synchronous)
        return 1;
    ret_ranges[1] = (struct weir__range){sq->sqes, *sq->kring_entries * sizeof(*sq->sqes)};
    ret_ranges[2] = (struct weir__range){sq->ring_ptr, sq->ring_sz};
    ret_ranges[3] = (struct weir__range){cq->ring_ptr, cq->ring_sz};
    return cq->ring_ptr != sq->ring_ptr ? 4 : 3;
}

uint64_t weir__ring_kernel_bytes(const struct weir_ring *ring)
{
    if (ring->synchronous)
        return 0;

    uint64_t entries = *ring->uring.sq.kring_entries * sizeof(struct io_uring_sqe);
    return weir__round_up(entries, 4096) + weir__round_up(ring->uring.cq.ring_sz, 4096) +
           RING_CONTEXT_BYTES;
}

int weir__ring_bound_helpers(struct weir_ring *ring, uint32_t count_max, const cpu_set_t *cpus)
{
    if (ring->synchronous)
        return 0;

    unsigned counts[2] = {count_max, count_max}; /* of files and devices; of all else */
    int r = io_uring_register_iowq_max_workers(&ring->uring, counts);
    if (r == 0 && cpus != NULL)
        r = io_uring_register_iowq_aff(&ring->uring, sizeof(*cpus), cpus);
    return r;
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

static struct io_uring_sqe *ring_entry(struct weir_ring *ring, uint64_t data)
{
    WEIR_CHECK(!ring->synchronous);

    struct io_uring_sqe *entry = io_uring_get_sqe(&ring->uring);
    while (entry == NULL) {
        /* -EBUSY and -EAGAIN: the kernel wants completions taken first; they stay queued there. */
        int r = weir__ring_submit(ring);
        WEIR_CHECK(r == 0 || r == -EBUSY || r == -EAGAIN);
        entry = io_uring_get_sqe(&ring->uring);
    }
    io_uring_sqe_set_data64(entry, data);
    return entry;
}

struct io_uring_sqe *weir__ring_sqe(struct weir_ring *ring, struct weir_operation *operation)
{
    WEIR_ASSERT(operation != NULL);

    ring->in_flight++;
    return ring_entry(ring, (uintptr_t)operation);
}

void weir__ring_wake(struct weir_ring *ring, int fd, struct weir_operation *failed)
{
    struct io_uring_sqe *entry = ring_entry(ring, (uintptr_t)failed | RING_UNCOUNTED);

    io_uring_prep_msg_ring(entry, fd, 0, 0, 0);
    io_uring_sqe_set_flags(entry, IOSQE_CQE_SKIP_SUCCESS);
}

/* ---- Completion --------------------------------------------------------- */

static int ring_reap_synchronous(struct weir_ring *ring)
{
    int count = 0;

    /* What a completion starts completes at the next reap. */
    for (uint32_t left = ring->result_count; left > 0 && ring->result_count > 0; left--) {
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

/* Copies at most RING_BATCH_COUNT completions out; how many. Enters no kernel. */
static uint32_t ring_take(struct weir_ring *ring, struct ring_result *ret_results, uint32_t limit)
{
    uint32_t count = 0;
    unsigned head;
    struct io_uring_cqe *entry;

    io_uring_for_each_cqe(&ring->uring, head, entry)
    {
        if (count == limit || count == RING_BATCH_COUNT)
            break;
        uint64_t data = entry->user_data;
        if (data == LIBURING_UDATA_TIMEOUT) /* before 5.11 time-outs are entries of their own */
            data = 0;
        ret_results[count++] = (struct ring_result){
            .operation = (struct weir_operation *)(uintptr_t)(data & ~RING_UNCOUNTED),
            .result = entry->res,
            .flags = entry->flags,
            .counted = (data & RING_UNCOUNTED) == 0,
        };
    }
    io_uring_cq_advance(&ring->uring, count);
    return count;
}

static void ring_complete(struct weir_ring *ring, const struct ring_result *result)
{
    if (result->operation == NULL)
        return;
    if (result->counted && (result->flags & IORING_CQE_F_MORE) == 0) {
        WEIR_ASSERT(ring->in_flight > 0);
        ring->in_flight--;
    }
    result->operation->complete(result->operation, result->result, result->flags);
}

static uint32_t ring_batch_left(const struct weir_ring *ring)
{
    return ring->batch_count - ring->batch_next;
}

static int ring_complete_ready(struct weir_ring *ring, uint32_t count_max)
{
    uint32_t left =
        (uint32_t)weir__min(ring_batch_left(ring) + io_uring_cq_ready(&ring->uring), count_max);
    int completed = 0;

    for (; left > 0; left--) {
        if (ring_batch_left(ring) == 0) {
            ring->batch_next = 0;
            ring->batch_count = ring_take(ring, ring->batch, left);
        }
        if (ring->batch_count == 0) /* a completion has reaped the rest itself */
            break;
        struct ring_result result = ring->batch[ring->batch_next++];
        ring_complete(ring, &result);
        completed++;
    }
    return completed;
}

/* Whether the kernel has completions that it posts only when we enter it. */
static bool ring_must_enter(const struct weir_ring *ring)
{
    uint32_t flags = __atomic_load_n(ring->uring.sq.kflags, __ATOMIC_RELAXED);

    return (flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}

bool weir__ring_is_ready(const struct weir_ring *ring)
{
    if (ring->synchronous)
        return ring->result_count > 0;
    return ring_batch_left(ring) > 0 || io_uring_cq_ready(&ring->uring) > 0 ||
           ring_must_enter(ring);
}

static bool ring_error_is_passing(int r)
{
    return r == -EINTR || r == -ETIME || r == -EBUSY || r == -EAGAIN;
}

int weir__ring_reap_some(struct weir_ring *ring, uint32_t count_max)
{
    if (ring->synchronous)
        return ring_reap_synchronous(ring);

    if (io_uring_sq_ready(&ring->uring) > 0 || ring_must_enter(ring)) {
        int r = io_uring_submit_and_get_events(&ring->uring);
        if (r < 0 && !ring_error_is_passing(r))
            return r;
    }
    return ring_complete_ready(ring, count_max);
}

int weir__ring_reap(struct weir_ring *ring)
{
    return weir__ring_reap_some(ring, RING_REAP_COUNT_MAX);
}

int weir__ring_sleep(struct weir_ring *ring, uint64_t timeout_ns)
{
    if (ring->synchronous)
        return 0;

    struct io_uring_cqe *first;
    uint64_t sleep_ns = weir__min(timeout_ns, RING_SLEEP_NS_MAX);
    struct __kernel_timespec timeout = {
        .tv_sec = (long long)(sleep_ns / UINT64_C(1000000000)),
        .tv_nsec = (long long)(sleep_ns % UINT64_C(1000000000)),
    };
    int r = io_uring_submit_and_wait_timeout(&ring->uring, &first, 1, &timeout, NULL);
    return r < 0 && !ring_error_is_passing(r) ? r : 0;
}

int weir__ring_wait(struct weir_ring *ring, uint64_t timeout_ns)
{
    if (ring->synchronous)
        return ring_reap_synchronous(ring);

    int r = ring_batch_left(ring) > 0 ? 0 : weir__ring_sleep(ring, timeout_ns);
    return r < 0 ? r : ring_complete_ready(ring, RING_REAP_COUNT_MAX);
}

void weir__ring_cancel_all(struct weir_ring *ring)
{
    /* No end but the kernel's: what it cannot cancel (a disk) it completes some time. */
    while (ring->in_flight > 0) {
        if (!ring->synchronous) {
            struct io_uring_sqe *entry = ring_entry(ring, 0);
            io_uring_prep_cancel64(entry, 0, IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL);
        }
        int r = weir__ring_wait(ring, RING_CANCEL_NS);
        WEIR_CHECK(r >= 0);
    }
}

/* ---- Typed operations --------------------------------------------------- */

static void ring_complete_later(struct weir_ring *ring, struct weir_operation *operation,
                                int result)
{
    WEIR_CHECK(ring->result_count < RING_QUEUE_COUNT);
    ring->results[ring->result_count++] = (struct ring_result){operation, result, 0, true};
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

void weir__ring_write(struct weir_ring *ring, struct weir_operation *operation, int fd,
                      const void *buffer, uint32_t bytes, uint64_t offset)
{
    if (ring->synchronous) {
        int r = weir__sys_pwrite_all(fd, buffer, bytes, offset);
        ring_complete_later(ring, operation, r < 0 ? r : (int)bytes);
        return;
    }
    io_uring_prep_write(weir__ring_sqe(ring, operation), fd, buffer, bytes, offset);
}

void weir__ring_nop(struct weir_ring *ring, struct weir_operation *operation)
{
    if (ring->synchronous)
        ring_complete_later(ring, operation, 0);
    else
        io_uring_prep_nop(weir__ring_sqe(ring, operation));
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

void weir__ring_fallocate(struct weir_ring *ring, struct weir_operation *operation, int fd,
                          int mode, uint64_t offset, uint64_t bytes)
{
    if (ring->synchronous) {
        ring_complete_later(ring, operation, weir__sys_fallocate(fd, mode, offset, bytes));
        return;
    }
    io_uring_prep_fallocate(weir__ring_sqe(ring, operation), fd, mode, (off_t)offset, (off_t)bytes);
}
