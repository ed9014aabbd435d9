/* SPDX-License-Identifier: MIT */
#ifndef WEIR_GOVERNOR_LEDGER_H
#define WEIR_GOVERNOR_LEDGER_H

/*
 * ledger - the word, the books of the accounts, and who is granted what
 *
 * What charge.c, wait.c and governor.c share. The invariants G1 - G6 stand in
 * ledger.c.
 */

#include "base/bits.h"
#include "base/heap.h"
#include "base/list.h"
#include "governor/budget.h"
#include "governor/nodes.h"
#include "governor/queue.h"

#include <weir/governor.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define GOVERNOR_LINE_BYTES 64
#define GOVERNOR_NAME_BYTES sizeof(((struct weir_account_stats *)0)->name)

/* The state of a waiter; its memory is its owner's, who starts it as zeros. */
enum {
    WAITER_IDLE,
    WAITER_QUEUED,
    WAITER_GRANTED,
    WAITER_LATE,
    WAITER_TOO_LARGE, /* the limit was lowered below what it wants */
};

struct weir_governor {
    /* Changed by every charge */
    _Alignas(GOVERNOR_LINE_BYTES) _Atomic uint64_t word; /* G1, G2 */
    _Atomic uint64_t peak_bytes;

    /* Read by every charge */
    _Alignas(GOVERNOR_LINE_BYTES) struct weir__budget budget; /* under the lock */
    _Atomic uint64_t episode;        /* number of the next or present episode above calm */
    _Atomic uint64_t level_since_ns; /* under the lock */
    _Atomic uint64_t change_ns[BUDGET_CHANGES_MAX]; /* of the last changes, as a ring; as above */
    _Atomic uint64_t lease_share_bytes; /* of one account; 0: no leases; under the lock */
    _Atomic uint64_t reclaim_look_ns;   /* when a poll looks; UINT64_MAX: never; under the lock */

    struct weir__nodes nodes; /* on lines of their own */

    /* Under the lock */
    _Alignas(GOVERNOR_LINE_BYTES) pthread_mutex_t lock;
    struct weir__list accounts;
    struct weir__list untold; /* accounts whose owners have to learn of grants */
    struct weir__queue queue;
    uint32_t account_count;
    uint32_t lease_part_count;          /* what the leases are divided by; at least account_count */
    bool has_leases;                    /* fixed at create */
    struct weir_governor_config config; /* as last told */
    struct weir_governor_outside outside;
    uint32_t lowered_percent;          /* by pressure */
    struct weir_reclaimer *reclaimers; /* R3; cheapest first, by next */
    struct weir_reclaimer *reclaimers_last;
    struct weir_reclaimer *asked; /* R1 */
    uint64_t reclaim_round;       /* who failed in it is not asked again in it */
    uint64_t reclaim_pause_ns;
    uint64_t level_change_count;
    uint64_t level_ns[BUDGET_LEVEL_COUNT]; /* but for the present */
    uint64_t level_count[BUDGET_LEVEL_COUNT];
    uint64_t closed_verdict_count[WEIR_WAIT + 1]; /* of accounts that are closed */
    uint64_t refused_count;
    uint64_t stall_count[WEIR_STALL_STEPS];
    uint64_t stall_ns_max;
    uint64_t timeout_count;
    struct weir__heap heap;
};

struct weir_account {
    /* Fixed at open */
    struct weir_governor *governor;
    pthread_t owner;
    uint64_t cap_bytes;     /* UINT64_MAX: none */
    uint64_t reserve_bytes; /* in the balance; never refunded before close */
    uint32_t node;
    bool spillable;
    bool transient;
    bool (*has_room)(void *context, size_t bytes);
    void (*notify)(void *context);
    void *context;
    char name[GOVERNOR_NAME_BYTES];
    struct weir__heap heap;

    /* Written by the owner, read by all: what a charge from the lease touches is one line */
    _Alignas(GOVERNOR_LINE_BYTES) _Atomic uint64_t balance_bytes;
    _Atomic uint64_t spent_bytes;       /* charges to the lease - refunds to it, L1 */
    _Atomic uint64_t drawn_bytes;       /* the lease is what this has more than spent, L1, L2 */
    _Atomic uint64_t lease_limit_bytes; /* L4; fixed while the lease is open */
    _Atomic uint32_t lease_is_busy;     /* L1 */
    _Atomic uint32_t
        lease_is_closed;      /* L1; set by any thread under the lock, cleared by the owner */
    uint64_t peak_mark_bytes; /* while spent is not above it, there is no new peak */
    _Atomic uint64_t verdict_count[WEIR_WAIT + 1];
    _Atomic uint64_t peak_bytes;
    _Atomic uint64_t forced_bytes;
    _Atomic uint64_t over_refund_count;
    _Atomic uint64_t returned_bytes; /* refunded to the word */
    uint64_t tick_spent_bytes;       /* what the last tick saw */
    uint64_t tick_admit_count;
    uint64_t flush_episode;   /* the last in which FLUSH was answered */
    uint64_t deadline_min_ns; /* no waiter of the lane is due before */

    /* Written by others */
    _Alignas(GOVERNOR_LINE_BYTES) _Atomic uint64_t remote_bytes;
    _Atomic uint64_t remote_over_refund_count;
    _Atomic uint64_t granted_bytes; /* under the lock */
    _Atomic uint64_t owed_episode;  /* under the lock: opened by a grant or a forced charge */
    _Atomic uint32_t queued_count;  /* under the lock: waiters in the lane */
    _Atomic uint32_t done_count;    /* under the lock: waiters in the list of done */
    _Atomic uint32_t is_asked;      /* under the lock: one of its reclaimers */

    /* Under the lock */
    struct weir__list link;        /* in governor->accounts */
    struct weir__list untold_link; /* in governor->untold, or alone */
    struct weir__lane lane;
    struct weir_waiter *done_first; /* G4; by next, in order of grant */
    struct weir_waiter *done_last;
    uint32_t telling_count; /* G6; threads that tell its owner now */
    uint32_t reclaimer_count;
    uint64_t asked_count; /* of its reclaimers, as the next two */
    uint64_t came_bytes;
    uint64_t broken_count;
    uint64_t refused_count;
    uint64_t timeout_count;
    uint64_t waited_ns;
    bool notify_is_owed;
    pthread_cond_t changed; /* a waiter was granted; telling_count is 0 */
};

/* ---- Books ------------------------------------------------------------------- */

static inline bool weir__account_is_mine(const struct weir_account *account)
{
    return pthread_equal(account->owner, pthread_self());
}

static inline uint64_t weir__relaxed(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

/* Before its owner only a hint; under the lock it stays closed. */
static inline bool weir__lease_is_closed(const struct weir_account *account)
{
    return atomic_load_explicit(&account->lease_is_closed, memory_order_relaxed) != 0;
}

/* For counters with one writer: no locked instruction. */
static inline void weir__count_more(_Atomic uint64_t *counter, uint64_t more)
{
    atomic_store_explicit(counter, weir__relaxed(counter) + more, memory_order_relaxed);
}

/* For peaks with one writer. */
static inline void weir__peak_raise(_Atomic uint64_t *peak, uint64_t value)
{
    if (value > weir__relaxed(peak))
        atomic_store_explicit(peak, value, memory_order_relaxed);
}

/* For peaks that many write; while they do not rise this is one load. */
static inline void weir__peak_raise_shared(_Atomic uint64_t *peak, uint64_t value)
{
    uint64_t seen = weir__relaxed(peak);

    while (value > seen)
        if (atomic_compare_exchange_weak_explicit(peak, &seen, value, memory_order_relaxed,
                                                  memory_order_relaxed))
            return;
}

/* The order matters (ledger.c): never too little. Negative: over-refunds have raced. */
static inline int64_t weir__account_net(const struct weir_account *account)
{
    uint64_t remote = atomic_load_explicit(&account->remote_bytes, memory_order_acquire);
    uint64_t balance = atomic_load_explicit(&account->balance_bytes, memory_order_acquire);
    uint64_t spent = atomic_load_explicit(&account->spent_bytes, memory_order_acquire);
    uint64_t granted = atomic_load_explicit(&account->granted_bytes, memory_order_acquire);

    return (int64_t)(balance + spent + granted - remote);
}

static inline uint64_t weir__account_charged(const struct weir_account *account)
{
    int64_t net = weir__account_net(account);

    return net > 0 ? (uint64_t)net : 0;
}

static inline bool weir__account_has_queued(const struct weir_account *account)
{
    return atomic_load_explicit(&account->queued_count, memory_order_acquire) > 0;
}

static inline void weir__account_balance_add(struct weir_account *account, uint64_t bytes)
{
    atomic_store_explicit(&account->balance_bytes, weir__relaxed(&account->balance_bytes) + bytes,
                          memory_order_release);
}

static inline void weir__account_spent_add(struct weir_account *account, uint64_t bytes)
{
    atomic_store_explicit(&account->spent_bytes, weir__relaxed(&account->spent_bytes) + bytes,
                          memory_order_release);
}

/* By the owner, after what it charged came not from its lease. */
void weir__account_note_peak(struct weir_account *account);

/* What can ever fit. */
static inline uint64_t weir__account_request_max(const struct weir_account *account)
{
    uint64_t most = weir__min(account->cap_bytes, account->governor->budget.bytes_max);

    return most - weir__min(most, account->reserve_bytes);
}

/* What its cap leaves. */
static inline uint64_t weir__account_room(const struct weir_account *account, uint64_t charged)
{
    if (account->cap_bytes == UINT64_MAX)
        return UINT64_MAX;
    return account->cap_bytes - weir__min(charged, account->cap_bytes);
}

/* ---- The word ---------------------------------------------------------------- */

/* The level of @word after looking downwards; reads the clock only when it might fall. */
enum weir_level weir__governor_settled(const struct weir_governor *governor, uint64_t word);

/* Under the lock: the word has just got @level after @before. */
void weir__governor_note_level(struct weir_governor *governor, enum weir_level before,
                               enum weir_level level);

/* Under the lock: leave the levels that can be left. */
void weir__governor_settle(struct weir_governor *governor);

/* Take the lock, settle, grant, tell. */
void weir__governor_relieve(struct weir_governor *governor);

/*
 * Replace @word by one with @bytes more and @level. False: it changed meanwhile,
 * and *@word is what it is now. A change of level is for the lock only.
 */
static inline bool weir__governor_swap(struct weir_governor *governor, uint64_t *word,
                                       uint64_t bytes, enum weir_level level)
{
    enum weir_level level_before = weir__word_level(*word);
    uint64_t word_new = weir__word_with_level(*word + (bytes << WORD_SHIFT), level);

    if (!atomic_compare_exchange_strong_explicit(&governor->word, word, word_new,
                                                 memory_order_acq_rel, memory_order_acquire))
        return false;
    if (bytes > 0)
        weir__peak_raise_shared(&governor->peak_bytes, weir__word_bytes(word_new));
    if (level != level_before)
        weir__governor_note_level(governor, level_before, level);
    return true;
}

/* Give @bytes of @node back; @flags: which of the word's ask the caller to look after waiters. */
static inline void weir__governor_give(struct weir_governor *governor, uint32_t node,
                                       uint64_t bytes, uint64_t flags)
{
    bool owes = weir__nodes_give(&governor->nodes, node, bytes);
    uint64_t before =
        atomic_fetch_sub_explicit(&governor->word, bytes << WORD_SHIFT, memory_order_acq_rel);
    uint64_t after = before - (bytes << WORD_SHIFT);

    if (WEIR_LIKELY((before & (WORD_LEVEL | WORD_CLOSED | flags)) == 0 && !owes))
        return;
    if ((before & flags) == 0 && !owes &&
        weir__word_bytes(after) > governor->budget.leave_bytes[weir__word_level(after)])
        return;

    weir__governor_relieve(governor);
}

/* What opened an episode owes its account a FLUSH at the next charge. */
void weir__account_owe_flush(struct weir_account *account, enum weir_level before,
                             enum weir_level after);

/* Under the lock: @bytes for @account if they stay below hard; nobody is asked who was first. */
bool weir__account_take(struct weir_account *account, uint64_t bytes);

/* ---- Leases ------------------------------------------------------------------- */

/* Under the lock, by the owner: give back what @account has, and no more until it is opened. */
void weir__lease_close(struct weir_account *account);

/* By the owner: the lease may be used, unless somebody needs it closed. */
void weir__lease_open(struct weir_account *account);

/* By the owner: give back what is in the lease now. */
void weir__lease_drop(struct weir_account *account);

/* By the owner: @bytes that are in the word are now in the lease, or given back if it is closed. */
void weir__lease_fill(struct weir_account *account, uint64_t bytes);

/* By the owner, once in a tick: what was not touched since the last goes back. */
void weir__lease_tick(struct weir_account *account);

/* Somebody came for the lease while its owner was busy with it. */
void weir__lease_surrender(struct weir_account *account);

/* Under the lock: no leases, so that the word is exact; until the use is low again. */
void weir__leases_close(struct weir_governor *governor);

/* Under the lock: if the use is low and nobody waits, there are leases again. */
void weir__leases_reopen(struct weir_governor *governor);

/* Under the lock: the number of accounts has grown. */
void weir__leases_share(struct weir_governor *governor);

/* What is in the lease; read from outside it may be too much, and once too little: 0. */
static inline uint64_t weir__lease_bytes(const struct weir_account *account)
{
    int64_t bytes =
        (int64_t)(weir__relaxed(&account->drawn_bytes) - weir__relaxed(&account->spent_bytes));

    return bytes > 0 ? (uint64_t)bytes : 0;
}

/* The same for figures: what a refund under way is about to give back is not in it. */
static inline uint64_t weir__lease_kept(const struct weir_account *account)
{
    return weir__min(weir__lease_bytes(account), weir__relaxed(&account->lease_limit_bytes));
}

/* What is in leases. */
uint64_t weir__leases_sum(const struct weir_governor *governor);

static inline bool weir__leases_are_out(const struct weir_governor *governor, uint64_t word)
{
    return (word & WORD_CLOSED) == 0 && weir__relaxed(&governor->lease_share_bytes) > 0;
}

/* L1: whoever takes the lease away from outside does so before the one or after the other. */
static inline bool weir__lease_enter(struct weir_account *account)
{
    atomic_store_explicit(&account->lease_is_busy, 1, memory_order_relaxed);
    atomic_signal_fence(memory_order_seq_cst); /* the other half is a barrier from outside */
    return WEIR_LIKELY(!weir__lease_is_closed(account));
}

/* Also after an enter that failed: whoever closed it may have taken us for busy. */
static inline bool weir__lease_leave(struct weir_account *account)
{
    atomic_store_explicit(&account->lease_is_busy, 0, memory_order_release);
    atomic_signal_fence(memory_order_seq_cst);
    return WEIR_LIKELY(!weir__lease_is_closed(account));
}

/* What to do when leave answers false. */
static inline void weir__lease_left(struct weir_account *account)
{
    if (WEIR_UNLIKELY(weir__lease_bytes(account) != 0))
        weir__lease_surrender(account);
}

/* ---- The lock ---------------------------------------------------------------- */

void weir__governor_lock(const struct weir_governor *governor);
void weir__governor_unlock(const struct weir_governor *governor);

/*
 * Tell the owners of all accounts that were granted something. Lets go of the lock
 * for each, so whatever was known before may have changed.
 */
void weir__governor_tell(struct weir_governor *governor);
void weir__governor_tell_and_unlock(struct weir_governor *governor);

/* Grant whatever can be granted, and set the flags for what cannot. */
void weir__governor_grant(struct weir_governor *governor);

/* Ask somebody for what is missing, unless somebody is asked. */
void weir__governor_reclaim(struct weir_governor *governor);

/* Whether there is somebody to ask who might give something. */
bool weir__governor_may_reclaim(const struct weir_governor *governor);

/* Not under the lock, by the owner: call those of its reclaimers that are asked. */
void weir__account_poll_reclaim(struct weir_account *account);

/* Look at the machine below @root. */
void weir__governor_look_at(struct weir_governor *governor, const char *root, uint64_t ram_bytes,
                            struct weir_governor_outside *ret_outside);

/* Other limits, and what follows from them; NULL @nodes: theirs stay. */
void weir__governor_change_budget(struct weir_governor *governor, const struct weir__budget *budget,
                                  const struct weir__nodes *nodes);

/* Whoever wants more than can ever fit now is told so. */
void weir__governor_refuse_too_large(struct weir_governor *governor);

/* For the figures: @waiter has waited until now. */
void weir__account_note_stall(struct weir_account *account, const struct weir_waiter *waiter);

/* It is out of its lane, and its owner, a callback or a thread, will learn of it. */
void weir__account_finish(struct weir_account *account, struct weir_waiter *waiter, uint32_t state);

/* Out of the lane; to the list of done, where poll finds it. */
void weir__account_dequeue(struct weir_account *account, struct weir_waiter *waiter);
void weir__account_append_done(struct weir_account *account, struct weir_waiter *waiter,
                               uint32_t state);

#endif
