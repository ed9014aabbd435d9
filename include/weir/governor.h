/* SPDX-License-Identifier: MIT */
#ifndef WEIR_GOVERNOR_H
#define WEIR_GOVERNOR_H

/*
 * governor - one truth about memory
 *
 * A governor has one limit; accounts charge it before they use memory. Each
 * charge is answered by one of four verdicts:
 *
 *      verdict      charged?   what the caller does
 *      WEIR_ADMIT   yes        goes on
 *      WEIR_FLUSH   yes        goes on, and starts a flush of the bytes that
 *                              weir_account_flush_bytes() tells; given once per
 *                              episode above soft, not with each charge: to the
 *                              account that opens it, then to each spillable one
 *      WEIR_SPILL   no         puts this item into its overflow region
 *      WEIR_WAIT    no         queues: weir_account_wait(), or passes the
 *                              back-pressure on
 *
 *      0 ............ soft 80 % ...... spill 90 % ...... hard 100 %
 *        admit          flush once       spill             wait
 *
 * Between the limit and its accounts there are the NUMA nodes. Each has a budget; an
 * account charges that of its node, too. A node without room borrows from the nearest
 * by distance, within a bound, before anybody on it is answered SPILL or WAIT for it,
 * and what comes back to it goes on to those it has borrowed from, farthest first.
 *
 * Each level has a leave level below it: it ends only when use has fallen
 * there. A charge that wants to pass spill or hard begins that level, provided
 * that use is above its leave level. SPILL is answered only to accounts that are
 * spillable and whose has_room says yes; without room a charge is admitted up to
 * hard and waits there. Granted charges never pass hard; forced ones may.
 *
 * Units    bytes, nanoseconds of CLOCK_MONOTONIC
 * Thread   the governor: any. An account: the thread that opened it, except
 *          where a call says Thread: any.
 * Errors   0 on success, negative errno on failure; a call that fails has
 *          charged nothing.
 */

#include <stddef.h>
#include <stdint.h>

#include <weir/base.h>

WEIR_EXTERN_BEGIN

struct weir_governor;
struct weir_account;

enum weir_verdict {
    WEIR_ADMIT,
    WEIR_FLUSH,
    WEIR_SPILL,
    WEIR_WAIT,
};

enum weir_level {
    WEIR_LEVEL_CALM,
    WEIR_LEVEL_SOFT,
    WEIR_LEVEL_SPILL,
    WEIR_LEVEL_HARD,
};

/*
 * struct weir_node_config - a NUMA node, where the machine is not asked
 * @bytes_max:  its budget; all together need not be the limit
 * @distances:  to each node by number, as numactl --hardware shows them
 */
struct weir_node_config {
    uint64_t bytes_max;
    uint32_t distances[WEIR_NODES_MAX];
};

/*
 * struct weir_governor_config - how a governor is made
 * @bytes_max:      the limit (hard = 100 %), at most 2^54; 0: @percent of the machine
 * @percent:        of the smallest of cgroup limit (v2, v1) and RAM, when
 *                  @bytes_max is 0; 0: 60; at most 100
 * @soft_percent:   0: 80    @soft_leave_percent:   0: 70
 * @spill_percent:  0: 90    @spill_leave_percent:  0: 85
 * @hard_leave_percent:      0: 97
 * @dwell_ns:       how long a level lasts at least before it is left downwards; in
 *                  any ten dwells it changes at most ten times. 0: none
 *
 * @pressure_percent: at which memory pressure (PSI, some, of ten seconds) each
 *                  weir_governor_look() lowers the limit with its levels by 5 points,
 *                  never below 70 %; below half of it, it rises by 1 point. At most 100;
 *                  0: never
 * @borrow_percent: how much a node borrows from others, of its own budget, before
 *                  it spills or waits; 0: 50; at most 100
 * @node_count:     0: the nodes of the machine, each with the part of the limit that
 *                  it has of the memory; 1: nodes do not matter; at most
 *                  WEIR_NODES_MAX. Fixed at create: later 0, or the same
 * @nodes:          as many; read in the call
 *
 * Soft is at least 2 points below spill, and spill below 100; each leave level is at
 * least 1 point below its own level: else -EINVAL.
 */
struct weir_governor_config {
    uint64_t bytes_max;
    uint32_t percent;
    uint32_t soft_percent;
    uint32_t soft_leave_percent;
    uint32_t spill_percent;
    uint32_t spill_leave_percent;
    uint32_t hard_leave_percent;
    uint64_t dwell_ns;
    uint32_t pressure_percent;
    uint32_t borrow_percent;
    uint32_t node_count;
    const struct weir_node_config *nodes;
    uint64_t reserved[8];
};

/*
 * weir_governor_create() - one limit for all accounts of this process
 * @config:  NULL: all defaults
 *
 * Where a percentage is asked for, weir_governor_figures() has what it was taken of, and
 * in outside.error whether part of that could not be read.
 *
 * Return: 0, -EINVAL, -ENOMEM; where nobody tells what a percentage would be of: why its
 *         files could not be read, or -EOPNOTSUPP.
 */
WEIR_API WEIR_MUST_CHECK int weir_governor_create(const struct weir_governor_config *config,
                                                  struct weir_governor **ret_governor);

/* weir_governor_destroy() - takes NULL; all accounts must be closed */
WEIR_API void weir_governor_destroy(struct weir_governor *governor);

/*
 * weir_governor_set_limits() - other limits from now on
 * @config:  as at create, all of it; NULL: all defaults
 *
 * May be called at any time. What is charged stays charged, also where it is more
 * than the new limit: then the level is hard, and nothing is granted until enough
 * has come back. Once this has returned, no charge passes the new limit. Waiters
 * are looked at again: who fits is granted, who can never fit any more is woken
 * with -EDQUOT. Reserves are kept, so a limit below them is refused.
 *
 * Thread: any.
 *
 * Return: 0; -EINVAL and others: as at create; -EDQUOT: the reserves of all accounts are more
 *         than the limit. What is refused has changed nothing.
 */
WEIR_API WEIR_MUST_CHECK int weir_governor_set_limits(struct weir_governor *governor,
                                                      const struct weir_governor_config *config);

/*
 * weir_governor_machine_bytes() - the smallest of cgroup limit (v2, v1) and RAM
 *
 * What percentages are taken of. 0: the machine does not say. Thread: any.
 */
WEIR_API uint64_t weir_governor_machine_bytes(void);

/*
 * struct weir_governor_outside - what the machine says, and how far our books are from it
 * @error:  0, or what went wrong with the first file that is there: -EBADMSG: it was not
 *          understood; -EFBIG: it was longer than expected; else what open(2) or read(2)
 *          say. A file that is not there says nothing, and is no error.
 *
 * 0: it does not say, for whatever reason.
 */
struct weir_governor_outside {
    uint64_t limit_bytes;   /* as weir_governor_machine_bytes(); with an error it never rises */
    uint64_t usage_bytes;   /* of our cgroup: others in it and the page cache included */
    uint64_t rss_bytes;     /* of this process */
    int64_t drift_bytes;    /* rss_bytes - what is charged */
    uint32_t pressure_some; /* PSI of our cgroup or the machine, hundredths of a per cent */
    uint32_t pressure_full;
    uint32_t lowered_percent; /* what pressure takes off the limit now */
    uint64_t look_ns;         /* when; 0: not yet */
    int error;
    uint64_t reserved[8];
};

/*
 * weir_governor_look() - compare the books with the kernel
 * @ret_outside:  NULL: only for what follows from it
 *
 * A limit that was given in per cent follows the machine's: a cgroup whose limit is
 * lowered lowers ours. Pressure does where the config says so. Both as by
 * weir_governor_set_limits(), but never below the reserves; the budgets of nodes stay.
 * A look with an error raises nothing: what could not be read may be lower.
 *
 * Cost:    reads some files of /proc and /sys: a fifth of a millisecond and more. Once
 *          a second is enough.
 * Thread:  any.
 */
WEIR_API void weir_governor_look(struct weir_governor *governor,
                                 struct weir_governor_outside *ret_outside);

/*
 * struct weir_account_config - who charges
 * @name:           shown in holders and figures; copied, at most 31 bytes kept
 * @bytes_max:      its own cap; 0: none. At the cap the verdict is WEIR_WAIT
 *                  (WEIR_SPILL to a spillable account with room).
 * @reserve_bytes:  a working set: charged at open, kept until close
 * @spillable:      may be answered WEIR_SPILL
 * @node:           where its memory lies: 1 + the number of the node; 0: where the
 *                  calling thread runs now
 * @transient:      its charges end by themselves (requests), so that waiting
 *                  for them makes sense
 * @has_room:       whether the overflow takes @bytes now; NULL: always. Called
 *                  from charge and weir_account_has_room(), on the owner's
 *                  thread; must not charge.
 * @notify:         memory was granted to a waiter of this account: call
 *                  weir_account_poll() on the owner's thread soon. Called from
 *                  any thread that refunds, under no lock; must not block.
 *                  NULL: the owner polls anyway.
 * @context:        passed to both
 */
struct weir_account_config {
    const char *name;
    uint64_t bytes_max;
    uint64_t reserve_bytes;
    uint32_t node;
    bool spillable;
    bool transient;
    bool (*has_room)(void *context, size_t bytes);
    void (*notify)(void *context);
    void *context;
    uint64_t reserved[8];
};

/*
 * weir_account_open() - an account for this thread
 *
 * Return: 0, -EINVAL, -ENOMEM, -EDQUOT (the reserve does not fit under hard, or on
 *         its node with all that it may borrow).
 */
WEIR_API WEIR_MUST_CHECK int weir_account_open(struct weir_governor *governor,
                                               const struct weir_account_config *config,
                                               struct weir_account **ret_account);

/* weir_account_close() - takes NULL; refunds what is still charged; no waiter may be queued */
WEIR_API void weir_account_close(struct weir_account *account);

/* ---- Charging --------------------------------------------------------------- */

/*
 * weir_account_charge() - take @bytes of the budget, or learn what to do instead
 * @ret_verdict:  always set on 0; WEIR_SPILL and WEIR_WAIT have charged nothing
 *
 * Zero bytes are always admitted.
 *
 * Below soft an account has bytes ahead, its lease, and pays from it. Leases are at
 * most 1 % of the limit together, and are taken back from all accounts at once
 * before anybody is refused, told to flush or made to wait for want of them; a thread
 * that lost its core in the middle of a charge may be late with its own. What was
 * not used between two weir_account_poll() flows back too.
 *
 * Cost:    some nanoseconds, without an atomic instruction below soft, with one
 *          above it; no syscall but for the charge that takes the leases back.
 *
 * Return: 0; -EINVAL: no sum can ever fit @bytes (larger than the limit or than
 *         the account's own cap).
 */
WEIR_API WEIR_MUST_CHECK int weir_account_charge(struct weir_account *account, size_t bytes,
                                                 enum weir_verdict *ret_verdict);

/*
 * weir_account_charge_forced() - account for what is there already
 *
 * Never refused, may pass hard; shown apart in the figures.
 */
WEIR_API void weir_account_charge_forced(struct weir_account *account, size_t bytes);

/*
 * weir_account_refund() - give @bytes back
 *
 * More than is charged is our caller's bug: counted as over_refund_count, and
 * only what is charged comes back.
 */
WEIR_API void weir_account_refund(struct weir_account *account, size_t bytes);

/* weir_account_refund_remote() - the same from another thread; Thread: any, while it is open */
WEIR_API void weir_account_refund_remote(struct weir_account *account, size_t bytes);

/*
 * weir_account_flush_bytes() - how much a flush should free now to reach soft's leave level
 *
 * At most what the account holds itself; less as anybody frees, so ask it again
 * while flushing.
 */
WEIR_API uint64_t weir_account_flush_bytes(const struct weir_account *account);

/*
 * weir_account_has_room() - whether the overflow takes @bytes now, as config.has_room says
 *
 * For whoever moves more there than a verdict spoke of: a WEIR_SPILL has asked
 * for the bytes of its charge already.
 */
WEIR_API bool weir_account_has_room(const struct weir_account *account, size_t bytes);

/*
 * weir_account_delay_ns() - what a producer should pause before its next item
 *
 * 0 up to soft, growing to 10 ms at hard.
 */
WEIR_API uint64_t weir_account_delay_ns(const struct weir_account *account);

/* weir_account_books() - charge_forced and refund, for tables and buffers of a module */
WEIR_API struct weir_books weir_account_books(struct weir_account *account);

/* ---- Waiting ---------------------------------------------------------------- */

/*
 * struct weir_waiter - one place in the queue; embedded by the caller
 * @wake:  called once on the owner's thread, from weir_account_poll(), with 0:
 *         the bytes are charged already; -ETIMEDOUT; or -EDQUOT: the limit was
 *         lowered below what it wants. NULL: the thread sleeps in
 *         weir_account_wait() itself.
 *
 * Starts as zeros but for @wake. The fields below belong to the governor from
 * wait until wake or cancel.
 */
struct weir_waiter {
    void (*wake)(struct weir_waiter *waiter, int result);
    struct weir_account *account;
    struct weir_waiter *next;
    struct weir_waiter *previous;
    uint64_t bytes;
    uint64_t deadline_ns;
    uint64_t since_ns;
    uint32_t state;
    uint32_t bypassed_count;
};

/*
 * weir_account_wait() - queue for @bytes
 * @deadline_ns:  absolute; UINT64_MAX: none
 *
 * First come, first served, except that a small waiter or charge may pass a large
 * waiter a bounded number of times; one that only its account's cap holds is in
 * nobody's way. Memory is charged before the wake. It is granted as soon as it
 * fits under hard, also while the level is still hard.
 *
 * With @waiter->wake the account's notify may be called before this returns, and
 * a deadline is seen by the poll that comes after it.
 *
 * Return: with @waiter->wake: 0, it is queued and will be woken once. Without:
 *         0, charged; -ETIMEDOUT. Both: -EINVAL (can never fit); -EDQUOT: no
 *         reclaimer is left to ask, and nothing that is charged is spillable or
 *         transient (when its cap holds the waiter: nothing of this account is,
 *         whatever reclaimers it has), so waiting would never end:
 *         weir_governor_holders() tells who has it. To a thread that sleeps also:
 *         the limit was lowered below @bytes.
 */
WEIR_API WEIR_MUST_CHECK int weir_account_wait(struct weir_account *account,
                                               struct weir_waiter *waiter, size_t bytes,
                                               uint64_t deadline_ns);

/*
 * weir_account_cancel() - leave the queue
 *
 * Return: 0: left, wake will not be called; -ENOENT: it was not queued, or was
 *         granted already and wake is still to come from the next poll.
 */
WEIR_API int weir_account_cancel(struct weir_account *account, struct weir_waiter *waiter);

/* weir_account_poll() - wake granted and late waiters of this account; returns how many */
WEIR_API int weir_account_poll(struct weir_account *account);

/* ---- Reclaiming ------------------------------------------------------------- */

/*
 * struct weir_reclaimer - what an account can free when memory is short; embedded
 * @name:     yours, for figures; kept as a pointer
 * @cost:     the lowest are asked first: 0 caches, 100 what can be spilled, 200 what
 *            must be fetched again soon, or as you like
 * @reclaim:  free about @bytes, or begin to. Called from weir_account_poll() on the
 *            owner's thread, under no lock: may charge and refund, must not add or
 *            remove. Returns how many bytes will have come back to this account 100 ms
 *            after the governor chose it, counting what has already; 0: nothing now.
 * @context:  yours
 *
 * Starts as zeros but for these. One reclaimer is asked at a time, when the level
 * is above calm or somebody waits; of the same cost they take turns. What comes back is
 * measured; who promises nothing, breaks a promise, or does not poll in time, is passed
 * over for the next in cost.
 *
 * Reorder buffers, sets of write buffers and a worker's region have reclaimers of their
 * own on their account: weir/reorder.h, weir/writebuf.h and weir/worker.h say what they
 * give.
 */
struct weir_reclaimer {
    const char *name;
    uint32_t cost;
    uint64_t (*reclaim)(struct weir_reclaimer *reclaimer, uint64_t bytes);
    void *context;

    /* Figures, for the owner */
    uint64_t asked_count;
    uint64_t asked_bytes;
    uint64_t came_bytes; /* while it was asked, whether promised or not */
    uint64_t broken_count;

    /* The governor's from add to remove */
    struct weir_account *account;
    struct weir_reclaimer *next;
    struct weir_reclaimer *previous;
    uint64_t wanted_bytes;
    uint64_t promised_bytes;
    uint64_t before_bytes;
    uint64_t deadline_ns;
    uint64_t round;
    uint32_t state;
};

/*
 * weir_account_add_reclaimer() - @account can free something
 *
 * Cost:    a walk over the reclaimers of this governor that cost more; to remove
 *          one: O(1).
 */
WEIR_API void weir_account_add_reclaimer(struct weir_account *account,
                                         struct weir_reclaimer *reclaimer);

/* weir_account_remove_reclaimer() - all must be removed before the account is closed */
WEIR_API void weir_account_remove_reclaimer(struct weir_account *account,
                                            struct weir_reclaimer *reclaimer);

/* ---- Figures ---------------------------------------------------------------- */

#define WEIR_STALL_STEPS 24

/* Why somebody waits. */
enum weir_wait_reason {
    WEIR_REASON_NONE,  /* nobody waits */
    WEIR_REASON_LIMIT, /* the limit of all */
    WEIR_REASON_NODE,  /* its node, with all that it may borrow */
    WEIR_REASON_CAP,   /* its account's cap */
    WEIR_REASON_TURN,  /* its turn: it fits, but somebody before it does not */
};

struct weir_account_stats {
    char name[32];
    uint64_t charged_bytes; /* reserve included */
    uint64_t peak_bytes;
    uint64_t forced_bytes; /* ever forced */
    uint64_t admit_count;
    uint64_t flush_count;
    uint64_t spill_count;
    uint64_t wait_count;
    uint64_t over_refund_count;
    uint64_t waiter_count; /* queued now */
    bool spillable;
    bool transient;
    uint32_t node;
    uint64_t lease_bytes;      /* ahead of it; not in charged_bytes */
    uint64_t refused_count;    /* waits that were answered -EDQUOT */
    uint64_t timeout_count;    /* waits that were late */
    uint64_t waited_ns;        /* by all who have been granted or were late */
    uint64_t oldest_waiter_ns; /* how long it has waited; 0: none */
    uint64_t oldest_waiter_bytes;
    enum weir_wait_reason reason; /* of the oldest */
    uint64_t asked_count;         /* of its reclaimers, as the next two */
    uint64_t came_bytes;
    uint64_t broken_count;
    uint64_t reserved[8];
};

struct weir_governor_stats {
    uint64_t bytes_max;
    uint64_t charged_bytes;
    uint64_t peak_bytes;
    uint64_t soft_bytes; /* levels, as configured */
    uint64_t spill_bytes;
    enum weir_level level;
    uint32_t account_count;
    uint64_t level_change_count;
    uint64_t level_since_ns; /* when the present level began */
    uint64_t waiter_count;
    uint64_t oldest_waiter_ns;              /* how long it has waited; 0: none */
    enum weir_wait_reason reason;           /* of the oldest */
    char oldest_waiter_name[32];            /* of its account */
    uint64_t level_ns[4];                   /* how long each level has lasted in all */
    uint64_t level_count[4];                /* how often each has begun */
    uint64_t verdict_count[4];              /* by all accounts there ever were */
    uint64_t refused_count;                 /* waits that were answered -EDQUOT */
    uint64_t stall_count[WEIR_STALL_STEPS]; /* waits that took less than 1.024 us * 2^i and not
                                             * less than half of that; the last: all longer */
    uint64_t stall_ns_max;
    uint64_t lease_bytes; /* set aside for accounts below soft, in none of the sums above but
                                * the peak; at most 1 % of bytes_max */
    uint64_t timeout_count;
    uint64_t reserved[8];
};

struct weir_node_stats {
    uint64_t bytes_max;      /* its budget */
    uint64_t charged_bytes;  /* by its accounts, wherever it is borrowed from */
    uint64_t borrowed_bytes; /* from others */
    uint64_t lent_bytes;     /* to others */
    uint32_t account_count;
    enum weir_level level; /* by use alone; a node asks nobody to flush */
    uint64_t reserved[8];
};

/*
 * weir_governor_nodes() - what lies on which node, in the order of their numbers
 *
 * Thread: any.
 *
 * Return: how many of @ret_nodes were filled; where nodes do not matter, 1.
 */
WEIR_API size_t weir_governor_nodes(const struct weir_governor *governor,
                                    struct weir_node_stats *ret_nodes, size_t node_count);

/* weir_account_stats() - a snapshot; Thread: any, while it is open */
WEIR_API void weir_account_stats(const struct weir_account *account,
                                 struct weir_account_stats *ret_stats);

/* weir_governor_stats() - a snapshot; Thread: any */
WEIR_API void weir_governor_stats(const struct weir_governor *governor,
                                  struct weir_governor_stats *ret_stats);

/*
 * struct weir_governor_figures - everything, in one piece of plain data
 */
struct weir_governor_figures {
    struct weir_governor_stats governor;
    struct weir_governor_outside outside; /* of the last look */
    struct weir_node_stats nodes[WEIR_NODES_MAX];
    size_t node_count;
    size_t account_count; /* how many of @ret_accounts were filled */
};

/*
 * weir_governor_figures() - all figures, of one moment under the governor's lock
 * @ret_accounts:  those that hold most, largest first; at most @account_count
 *
 * Thread: any.
 */
WEIR_API void weir_governor_figures(const struct weir_governor *governor,
                                    struct weir_governor_figures *ret_figures,
                                    struct weir_account_stats *ret_accounts, size_t account_count);

/*
 * weir_governor_holders() - the accounts that hold most, largest first
 *
 * Thread: any.
 *
 * Return: how many of @ret_holders were filled.
 */
WEIR_API size_t weir_governor_holders(const struct weir_governor *governor,
                                      struct weir_account_stats *ret_holders, size_t holder_count);

WEIR_EXTERN_END

#endif
