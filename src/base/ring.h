/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BASE_RING_H
#define WEIR_BASE_RING_H

/*
 * ring - io_uring with its completions routed to operations
 *
 * One thread opens a ring, submits to it, reaps it and closes it. Where the
 * kernel forbids io_uring, a ring can be synchronous: the typed calls below then
 * do their work at once by system calls and complete at the next reap, so that
 * callers need no second path.
 */

#include "base/placement.h"

#include <weir/base.h>

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

struct io_uring_sqe;

/*
 * @entry_count: rounded up to a power of two, at most 32768
 * @may_be_synchronous: a ring of plain system calls will do. Else -EOPNOTSUPP
 * where io_uring is forbidden or missing.
 */
int weir__ring_open(uint32_t entry_count, bool may_be_synchronous, struct weir_ring **ret_ring);

/* Takes NULL. The owner has cancelled and reaped first: buffers of what is still under way are the kernel's. */
void weir__ring_close(struct weir_ring *ring);

bool weir__ring_is_synchronous(const struct weir_ring *ring);
int weir__ring_fd(const struct weir_ring *ring);

/* Whether completions come only when we ask for them, and not at any system call. */
bool weir__ring_is_deferred(const struct weir_ring *ring);

/* Operations started and not yet completed for good. */
uint32_t weir__ring_in_flight(const struct weir_ring *ring);

/* What of it is memory of ours or shared with us; how many. */
#define WEIR_RING_RANGES 4
size_t weir__ring_ranges(const struct weir_ring *ring,
                         struct weir__range ret_ranges[WEIR_RING_RANGES]);

/* An estimate of what the kernel holds for the queues. */
uint64_t weir__ring_kernel_bytes(const struct weir_ring *ring);

/*
 * Bound the kernel's helper threads for operations that block. They belong to
 * the calling thread, not to the ring: the last call counts. @cpus may be NULL.
 * Where the kernel does not know these bounds, it keeps its own, and the answer
 * is a negative errno.
 */
int weir__ring_bound_helpers(struct weir_ring *ring, uint32_t count_max, const cpu_set_t *cpus);

/*
 * Never NULL; not for synchronous rings. The operation must complete: no
 * IOSQE_CQE_SKIP_SUCCESS.
 */
struct io_uring_sqe *weir__ring_sqe(struct weir_ring *ring, struct weir_operation *operation);

/* Submit what is queued. */
int weir__ring_submit(struct weir_ring *ring);

/* Whether a reap would find completions. Enters no kernel. */
bool weir__ring_is_ready(const struct weir_ring *ring);

/*
 * Submit, and complete what is there at this moment; how many were completed, or
 * a negative errno. Enters the kernel only if there is something to do in it.
 */
int weir__ring_reap(struct weir_ring *ring);

/* The same, but at most @count_max of them: what is left is taken by the next. */
int weir__ring_reap_some(struct weir_ring *ring, uint32_t count_max);

/* Submit, and sleep until there is something to reap, at most @timeout_ns. Completes nothing. */
int weir__ring_sleep(struct weir_ring *ring, uint64_t timeout_ns);

/* Sleep, then reap. */
int weir__ring_wait(struct weir_ring *ring, uint64_t timeout_ns);

/*
 * Wake who sleeps in the ring of which @fd is a descriptor, with the next
 * submission. @failed is completed with a negative errno only if that did not
 * work; it is not counted in flight and may be given again at once.
 */
void weir__ring_wake(struct weir_ring *ring, int fd, struct weir_operation *failed);

/*
 * Cancel everything that is under way and reap until it has completed. For
 * owners who are about to close the ring.
 */
void weir__ring_cancel_all(struct weir_ring *ring);

/* ---- Typed operations, on rings of both kinds ----------------------------- */

void weir__ring_read(struct weir_ring *ring, struct weir_operation *operation, int fd, void *buffer,
                     uint32_t bytes, uint64_t offset);
void weir__ring_write(struct weir_ring *ring, struct weir_operation *operation, int fd,
                      const void *buffer, uint32_t bytes, uint64_t offset);

/* Nothing: completes with 0 at the next reap. */
void weir__ring_nop(struct weir_ring *ring, struct weir_operation *operation);

void weir__ring_sync_range(struct weir_ring *ring, struct weir_operation *operation, int fd,
                           uint64_t offset, uint32_t bytes);
void weir__ring_fdatasync(struct weir_ring *ring, struct weir_operation *operation, int fd);
void weir__ring_madvise(struct weir_ring *ring, struct weir_operation *operation, void *address,
                        uint32_t bytes, int advice);
void weir__ring_fallocate(struct weir_ring *ring, struct weir_operation *operation, int fd,
                          int mode, uint64_t offset, uint64_t bytes);

#endif
