/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BASE_RING_H
#define WEIR_BASE_RING_H

/*
 * ring - io_uring with its completions routed to operations
 *
 * One thread opens a ring, submits to it and reaps it. Where the kernel forbids
 * io_uring, a ring can be synchronous: the typed calls below then do their work
 * at once by system calls and complete at the next reap, so that callers need
 * no second path.
 */

#include <weir/base.h>

#include <stdbool.h>
#include <stdint.h>

struct io_uring_sqe;

/*
 * @may_be_synchronous: a ring of plain system calls will do. Else -EOPNOTSUPP
 * where io_uring is forbidden or missing.
 */
int weir__ring_open(uint32_t entry_count, bool may_be_synchronous, struct weir_ring **ret_ring);

/* Takes NULL. The owner has cancelled and reaped first: buffers of what is still under way are the kernel's. */
void weir__ring_close(struct weir_ring *ring);

bool weir__ring_is_synchronous(const struct weir_ring *ring);
int weir__ring_fd(const struct weir_ring *ring);

/* Operations started and not yet completed for good. */
uint32_t weir__ring_in_flight(const struct weir_ring *ring);

/* Never NULL; not for synchronous rings. */
struct io_uring_sqe *weir__ring_sqe(struct weir_ring *ring, struct weir_operation *operation);

/* Submit what is queued. */
int weir__ring_submit(struct weir_ring *ring);

/* Submit, and complete what is there; how many were completed, or a negative errno. */
int weir__ring_reap(struct weir_ring *ring);

/* The same, but sleep until something completes, at most @timeout_ns. */
int weir__ring_wait(struct weir_ring *ring, uint64_t timeout_ns);

/* ---- Typed operations, on rings of both kinds ----------------------------- */

void weir__ring_read(struct weir_ring *ring, struct weir_operation *operation, int fd, void *buffer,
                     uint32_t bytes, uint64_t offset);
void weir__ring_sync_range(struct weir_ring *ring, struct weir_operation *operation, int fd,
                           uint64_t offset, uint32_t bytes);
void weir__ring_fdatasync(struct weir_ring *ring, struct weir_operation *operation, int fd);
void weir__ring_madvise(struct weir_ring *ring, struct weir_operation *operation, void *address,
                        uint32_t bytes, int advice);

#endif
