/* SPDX-License-Identifier: MIT */
#ifndef WEIR_WORKER_H
#define WEIR_WORKER_H

/*
 * worker - a core and what it owns
 *
 * A worker is one thread, pinned if asked, with one io_uring, one region, one
 * account and a mailbox. weir runs the loop: completions, messages, the region's
 * background work and granted waiters, then the user's tick.
 *
 *      producers        mesh: a bounded single-producer queue per pair
 *          |         worker 0 <---------------------> worker 1
 *          v            |  ring, region, account        |
 *
 * Units    bytes, nanoseconds of CLOCK_MONOTONIC
 * Thread   the worker's own, except where a call says Thread: any
 * Errors   0 on success, negative errno on failure
 */

#include <stddef.h>
#include <stdint.h>

#include <weir/base.h>
#include <weir/governor.h>
#include <weir/region.h>

WEIR_EXTERN_BEGIN

struct io_uring_sqe;
struct weir_mesh;
struct weir_worker;

/*
 * weir_mesh_create() - the queues between @worker_count workers, 1 .. 1024
 * @messages_max:  in each queue; 0: 1024; at most 2^20; rounded up to a power of two
 *
 * Thread: any.
 *
 * Return: 0, -EINVAL, -ENOMEM, or what eventfd(2) says: one descriptor for each.
 */
WEIR_API WEIR_MUST_CHECK int weir_mesh_create(uint32_t worker_count, uint32_t messages_max,
                                              struct weir_mesh **ret_mesh);

/* weir_mesh_destroy() - takes NULL; all its workers must have stopped */
WEIR_API void weir_mesh_destroy(struct weir_mesh *mesh);

enum weir_report_kind {
    WEIR_REPORT_FALLBACK, /* the kernel lacks or forbids something: it goes on another way */
    WEIR_REPORT_DEGRADED, /* the region's write-back failed; error 0: it succeeds again */
    WEIR_REPORT_STALL,    /* a turn took longer than stall_ns */
};

/* Where a turn spent most of its time. */
enum weir_station {
    WEIR_STATION_COMPLETIONS,
    WEIR_STATION_MESSAGES,
    WEIR_STATION_REGION, /* and granted waiters */
    WEIR_STATION_TICK,
    WEIR_STATION_COUNT,
};

/* Why it took so long. */
enum weir_stall_cause {
    WEIR_STALL_BUSY,      /* it computed for longer than the limit */
    WEIR_STALL_PREEMPTED, /* something else had the cpu */
    WEIR_STALL_BLOCKED,   /* it slept in the kernel: a disk, a lock, a page fault */
};

/*
 * struct weir_report - something that whoever runs the server should know
 * @text:               one line, no full stop; lives as long as the program
 * @error:              negative errno, or 0
 * @ns:                 stall: how long the turn took
 * @station, @cause:    stall
 * @major_fault_count:  stall: page faults that read from a disk
 */
struct weir_report {
    enum weir_report_kind kind;
    const char *text;
    int error;
    uint64_t ns;
    enum weir_station station;
    enum weir_stall_cause cause;
    uint64_t major_fault_count;
};

/*
 * struct weir_worker_config - what a core gets
 * @name:           of the thread (a started one) and its account; at most 15
 *                  bytes kept; NULL: weir- and the index
 * @pinned, @cpu:   run on this cpu only, with memory of its node
 * @mesh, @index:   its place among the others; NULL: alone, no messages
 * @governor:       NULL: none, and no account
 * @account:        of the worker's account; name, notify and context are set by
 *                  the worker: has_room is called with the worker
 * @region:         .directory NULL: no region; ring and books are set by the
 *                  worker; resident_bytes_max is charged at start, as part of
 *                  the account's reserve. With a resident_bytes_min only that is:
 *                  the rest (of a small file, up to 5/4 of bytes_max) is charged as
 *                  far as use stays well below soft, at start and whenever there is
 *                  room again, by steps, and given back when the governor asks (a
 *                  reclaimer of cost 100, where the kernel lets go of what is
 *                  dropped)
 * @ring_entries:   0: 256; at most 32768
 * @tick_ns:        sleeps no longer than this; 0: 10 ms
 * @turn_ns:        a turn that has taken this long leaves further completions and
 *                  messages to the next; 0: 1 ms
 * @stall_ns:       a turn longer than this is a stall; 0: 25 ms
 * @report:         told of fall-backs (before on_start), of a degraded region and
 *                  of stalls, on the worker's thread; must not call the worker;
 *                  may be NULL. The library itself never logs.
 * @on_start:       first thing on the thread; an error ends the worker; may be
 *                  NULL
 * @on_tick:        after each turn of the loop; may be NULL
 * @on_stop:        last thing on the thread, the region and the account are
 *                  still there; may be NULL. Until it returns true the loop goes
 *                  on, so that what is under way can end. Operations that are
 *                  under way even then are cancelled and completed, without the
 *                  region.
 */
struct weir_worker_config {
    const char *name;
    bool pinned;
    uint32_t cpu;
    struct weir_mesh *mesh;
    uint32_t index;
    struct weir_governor *governor;
    struct weir_account_config account;
    struct weir_region_config region;
    uint32_t ring_entries;
    uint64_t tick_ns;
    uint64_t turn_ns;
    uint64_t stall_ns;
    void (*report)(struct weir_worker *worker, const struct weir_report *report, void *context);
    int (*on_start)(struct weir_worker *worker, void *context);
    void (*on_tick)(struct weir_worker *worker, void *context);
    bool (*on_stop)(struct weir_worker *worker, void *context);
    void *context;
    uint64_t reserved[8];
};

/*
 * weir_worker_start() - a new thread with all of it
 *
 * Returns when on_start has returned. Thread: any.
 *
 * Return: 0, -EINVAL, -ENOMEM, -EDQUOT (the reserve, with what it has of the
 *         region, does not fit under the governor's hard level), -EOPNOTSUPP (the
 *         kernel forbids io_uring), what weir_region_open() or on_start say, or what
 *         pthread_create(3) says.
 */
WEIR_API WEIR_MUST_CHECK int weir_worker_start(const struct weir_worker_config *config,
                                               struct weir_worker **ret_worker);

/*
 * weir_worker_attach() - the same on the caller's thread, who then polls
 *
 * Return: as weir_worker_start().
 */
WEIR_API WEIR_MUST_CHECK int weir_worker_attach(const struct weir_worker_config *config,
                                                struct weir_worker **ret_worker);

/*
 * weir_worker_stop() - ask it to end and wait until it has
 *
 * Takes NULL. Of a started worker: from any thread but its own. Of an attached
 * one: its own thread.
 */
WEIR_API void weir_worker_stop(struct weir_worker *worker);

/*
 * weir_worker_poll() - one turn of the loop, for attached workers
 * @timeout_ns:  sleep at most this long when there is nothing to do; 0: do not
 *
 * Return: how many completions and messages were handled.
 */
WEIR_API int weir_worker_poll(struct weir_worker *worker, uint64_t timeout_ns);

/*
 * weir_worker_fd() - a descriptor for a foreign loop (epoll, libuv)
 *
 * Readable when an armed worker has something to do. Owned by the worker; good
 * until stop.
 */
WEIR_API int weir_worker_fd(const struct weir_worker *worker);

/*
 * weir_worker_arm() - the foreign loop is about to sleep
 *
 * For attached workers, after weir_worker_poll() with no time-out. The loop then
 * sleeps until the descriptor is readable, at most tick_ns, and polls.
 *
 * Return: true: sleep; false: there is something to do already, poll instead.
 */
WEIR_API WEIR_MUST_CHECK bool weir_worker_arm(struct weir_worker *worker);

/*
 * weir_worker_wake() - run a turn soon: end its sleep, or skip the next
 *
 * By its own thread: go on without a sleep, there is more to do. Thread: any.
 */
WEIR_API void weir_worker_wake(struct weir_worker *worker);

WEIR_API struct weir_ring *weir_worker_ring(struct weir_worker *worker);
WEIR_API struct weir_region *weir_worker_region(struct weir_worker *worker);
WEIR_API struct weir_account *weir_worker_account(struct weir_worker *worker);
WEIR_API uint32_t weir_worker_index(const struct weir_worker *worker);

/*
 * weir_worker_sqe() - a submission entry of the ring, for any operation
 * @operation:  completed from the loop; alive until its last completion
 *
 * Fill it with an io_uring_prep_*() of liburing, which leaves user_data alone;
 * it is submitted with the next turn of the loop at the latest. Never NULL: a
 * full queue is submitted first. Not with IOSQE_CQE_SKIP_SUCCESS: the worker
 * waits for its completion before the ring is closed.
 */
WEIR_API struct io_uring_sqe *weir_worker_sqe(struct weir_worker *worker,
                                              struct weir_operation *operation);

/* ---- Messages --------------------------------------------------------------- */

/*
 * struct weir_message - embedded by whoever sends it
 * @receive:  called on the receiving worker, which then owns the message
 */
struct weir_message {
    void (*receive)(struct weir_worker *worker, struct weir_message *message);
};

/*
 * weir_worker_send() - pass @message to another worker of the mesh
 * @worker:   the sender; its own thread
 * @index:    of the receiver; may be the sender itself
 *
 * In order per pair. A receiver that sleeps is woken through its ring, at the
 * end of the sender's turn; one that has not started yet finds it then. What a
 * receiver has not received when it stops stays where it is: end the traffic
 * first.
 *
 * Return: 0; -EAGAIN: that queue is full, keep the message and try at the next
 *         tick; -ECANCELED: the receiver has stopped; -EINVAL: no such worker, or
 *         no mesh.
 */
WEIR_API WEIR_MUST_CHECK int weir_worker_send(struct weir_worker *worker, uint32_t index,
                                              struct weir_message *message);

/* ---- Statistics ------------------------------------------------------------- */

struct weir_worker_stats {
    uint64_t turn_count;
    uint64_t sleep_count;
    uint64_t completion_count;
    uint64_t message_count;
    uint64_t doorbell_count; /* sleepers woken by this worker */
    uint64_t busy_ns;        /* not asleep */
    uint64_t longest_turn_ns;
    uint64_t stall_count;
    uint64_t ring_bytes; /* estimate of what the kernel holds for the ring */
    uint32_t cpu;
    uint64_t region_charged_bytes; /* for what the region may have in memory; not for its tables */
    uint64_t region_given_bytes;   /* of that, ever given back when the governor asked */
    uint64_t reserved[8];
};

/*
 * struct weir_worker_memory - where a worker's memory lies
 * @node:          of the cpu it runs on: config.cpu, or of the moment if it is not
 *                 pinned
 * @local_bytes:   in memory on @node
 * @remote_bytes:  in memory elsewhere
 * @region:        of these, the region's; @own: its ring, its account and itself. The
 *                 queues of the mesh lie with those who write them.
 */
struct weir_worker_memory {
    uint32_t node;
    uint64_t local_bytes;
    uint64_t remote_bytes;
    struct weir_placement region;
    struct weir_placement own;
    uint64_t reserved[8];
};

/*
 * weir_worker_memory() - local and remote bytes, as the kernel sees them
 *
 * Return and cost: as weir_region_placement().
 */
WEIR_API int weir_worker_memory(const struct weir_worker *worker,
                                struct weir_worker_memory *ret_memory);

/* weir_worker_stats() - a snapshot; Thread: any */
WEIR_API void weir_worker_stats(const struct weir_worker *worker,
                                struct weir_worker_stats *ret_stats);

WEIR_EXTERN_END

#endif
