/* SPDX-License-Identifier: MIT */
/*
 * governor - one word that everybody charges, one lock for those who wait
 *
 *      account A ---- charge: compare-and-swap ----\
 *      account B ---- refund: fetch-and-subtract ---+--> word: use | flags | level
 *      any thread --- remote refund ---------------/             |
 *                                                    flags set, or a level to leave
 *                                                                v
 *                                       lock: level, queue, grants, who is told
 *
 * Below soft a charge is one compare-and-swap on the word and a refund one
 * subtraction. The word carries level and queue, so that a charge which finds it
 * changed decides anew, and a refund sees in the value it replaced whether it
 * must look after somebody: there is no second variable to be late on. The level
 * and the flags change only under the lock; the bytes change without it.
 *
 * An account's charge is kept in three counters, each written from one side only:
 *
 *      charged = balance (the owner: charges - refunds)
 *              + granted (under the lock: what its waiters got)
 *              - remote  (any thread: compare-and-swap)
 *
 * Whoever reads them from outside takes remote first and granted last: so it may
 * see too much, never too little, and a correct refund is never called one too
 * many. Two wrong ones that race may both be believed; the owner's next call finds
 * the account below its reserve, puts the difference back and counts it.
 *
 *   G1  a charge or a grant is added to the word only by a compare-and-swap whose
 *       sum is at or below hard: granted charges never pass hard
 *   G2  the level in the word changes only together with the use it was decided
 *       on, in one compare-and-swap, under the lock
 *   G3  WAITING is set before a waiter's last look at the use: a refund either is
 *       in what was seen, or sees the flag; CAPPED the same for remote refunds
 *       and caps
 *   G4  a waiter is in exactly one place: its lane, its account's list of done, or
 *       back with its owner
 *   G5  memory is charged for a waiter before anybody is told
 *   G6  callbacks are made under no lock, and an account is not freed while a
 *       thread tells its owner
 *
 * Not here: what a level means (budget.c), whose turn it is (queue.c), what the
 * machine has (limits.c).
 *
 * The word with its budget and its queue is one node of the tree. Nodes and
 * leases per core come between account and word: account_take() and
 * governor_give() are the two places that touch the word for an account.
 */
#include <weir/governor.h>

#include "base/bits.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/heap.h"
#include "base/list.h"
#include "base/sys.h"
#include "governor/budget.h"
#include "governor/limits.h"
#include "governor/queue.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define GOVERNOR_LINE_BYTES 64
#define GOVERNOR_LOOK_MAX   100
#define GOVERNOR_NAME_BYTES sizeof(((struct weir_account_stats *)0)->name)

/* The state of a waiter; its memory is its owner's, who starts it as zeros. */
enum {
    WAITER_IDLE,
    WAITER_QUEUED,
    WAITER_GRANTED,
    WAITER_LATE,
};

struct weir_governor {
    /* Changed by every charge */
    _Alignas(GOVERNOR_LINE_BYTES) _Atomic uint64_t word; /* G1, G2 */
    _Atomic uint64_t peak_bytes;

    /* Read by every charge */
    _Alignas(GOVERNOR_LINE_BYTES) struct weir__budget budget; /* fixed at create */
    _Atomic uint64_t episode;        /* number of the next or present episode above calm */
    _Atomic uint64_t level_since_ns; /* under the lock */

    /* Under the lock */
    _Alignas(GOVERNOR_LINE_BYTES) pthread_mutex_t lock;
    struct weir__list accounts;
    struct weir__list untold; /* accounts whose owners have to learn of grants */
    struct weir__queue queue;
    uint32_t account_count;
    uint64_t level_change_count;
    uint64_t timeout_count;
    struct weir__heap heap;
};

struct weir_account {
    /* Fixed at open */
    struct weir_governor *governor;
    pthread_t owner;
    uint64_t cap_bytes;         /* UINT64_MAX: none */
    uint64_t reserve_bytes;     /* in the balance; never refunded before close */
    uint64_t request_bytes_max; /* what can ever fit */
    bool spillable;
    bool transient;
    bool (*has_room)(void *context, size_t bytes);
    void (*notify)(void *context);
    void *context;
    char name[GOVERNOR_NAME_BYTES];
    struct weir__heap heap;

    /* Written by the owner, read by all */
    _Alignas(GOVERNOR_LINE_BYTES) _Atomic uint64_t balance_bytes;
    _Atomic uint64_t peak_bytes;
    _Atomic uint64_t forced_bytes;
    _Atomic uint64_t verdict_count[WEIR_WAIT + 1];
    _Atomic uint64_t over_refund_count;
    uint64_t flush_episode;   /* the last in which FLUSH was answered */
    uint64_t deadline_min_ns; /* no waiter of the lane is due before */

    /* Written by others */
    _Alignas(GOVERNOR_LINE_BYTES) _Atomic uint64_t remote_bytes;
    _Atomic uint64_t remote_over_refund_count;
    _Atomic uint64_t granted_bytes; /* under the lock */
    _Atomic uint64_t owed_episode;  /* under the lock: opened by a grant or a forced charge */
    _Atomic uint32_t queued_count;  /* under the lock: waiters in the lane */
    _Atomic uint32_t done_count;    /* under the lock: waiters in the list of done */

    /* Under the lock */
    struct weir__list link;        /* in governor->accounts */
    struct weir__list untold_link; /* in governor->untold, or alone */
    struct weir__lane lane;
    struct weir_waiter *done_first; /* G4; by next, in order of grant */
    struct weir_waiter *done_last;
    uint32_t telling_count; /* G6; threads that tell its owner now */
    bool notify_is_owed;
    pthread_cond_t changed; /* a waiter was granted; telling_count is 0 */
};

static bool account_is_mine(const struct weir_account *account)
{
    return pthread_equal(account->owner, pthread_self());
}

static uint64_t relaxed(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

/* For counters with one writer: no locked instruction. */
static void count_more(_Atomic uint64_t *counter, uint64_t more)
{
    atomic_store_explicit(counter, relaxed(counter) + more, memory_order_relaxed);
}

/* For peaks with one writer. */
static void peak_raise(_Atomic uint64_t *peak, uint64_t value)
{
    if (value > relaxed(peak))
        atomic_store_explicit(peak, value, memory_order_relaxed);
}

/* For peaks that many write; while they do not rise this is one load. */
static void peak_raise_shared(_Atomic uint64_t *peak, uint64_t value)
{
    uint64_t seen = relaxed(peak);

    while (value > seen)
        if (atomic_compare_exchange_weak_explicit(peak, &seen, value, memory_order_relaxed,
                                                  memory_order_relaxed))
            return;
}

/* The order matters, see above: never too little. Negative: over-refunds have raced. */
static int64_t account_net(const struct weir_account *account)
{
    uint64_t remote = atomic_load_explicit(&account->remote_bytes, memory_order_acquire);
    uint64_t balance = atomic_load_explicit(&account->balance_bytes, memory_order_acquire);
    uint64_t granted = atomic_load_explicit(&account->granted_bytes, memory_order_acquire);

    return (int64_t)(balance + granted - remote);
}

static uint64_t account_charged(const struct weir_account *account)
{
    int64_t net = account_net(account);

    return net > 0 ? (uint64_t)net : 0;
}

static bool account_has_queued(const struct weir_account *account)
{
    return atomic_load_explicit(&account->queued_count, memory_order_acquire) > 0;
}

static void account_balance_add(struct weir_account *account, uint64_t bytes)
{
    atomic_store_explicit(&account->balance_bytes, relaxed(&account->balance_bytes) + bytes,
                          memory_order_release);
}

/* Whether waiting for what @account holds, @charged bytes, makes sense. */
static bool account_is_reclaimable(const struct weir_account *account, uint64_t charged)
{
    return (account->spillable || account->transient) && charged > account->reserve_bytes;
}

/* What its cap leaves. */
static uint64_t account_room(const struct weir_account *account, uint64_t charged)
{
    if (account->cap_bytes == UINT64_MAX)
        return UINT64_MAX;
    return account->cap_bytes - weir__min(charged, account->cap_bytes);
}

/* ---- The word -------------------------------------------------------------- */

static uint64_t governor_lasted_ns(const struct weir_governor *governor)
{
    uint64_t since_ns = relaxed(&governor->level_since_ns);
    uint64_t now_ns = weir__clock_ns();

    return now_ns > since_ns ? now_ns - since_ns : 0;
}

/* The level of @word after looking downwards; reads the clock only when it might fall. */
static enum weir_level governor_settled(const struct weir_governor *governor, uint64_t word)
{
    enum weir_level level = weir__word_level(word);
    uint64_t use_bytes = weir__word_bytes(word);

    if (level == WEIR_LEVEL_CALM || use_bytes > governor->budget.leave_bytes[level])
        return level;
    return weir__budget_settle(&governor->budget, level, use_bytes, governor_lasted_ns(governor));
}

/*
 * Replace @word by one with @bytes more and @level. False: it changed meanwhile,
 * and *@word is what it is now. A change of level is for the lock only.
 */
static bool governor_swap(struct weir_governor *governor, uint64_t *word, uint64_t bytes,
                          enum weir_level level)
{
    enum weir_level level_before = weir__word_level(*word);
    uint64_t word_new = weir__word_with_level(*word + (bytes << WORD_SHIFT), level);

    if (!atomic_compare_exchange_strong_explicit(&governor->word, word, word_new,
                                                 memory_order_acq_rel, memory_order_acquire))
        return false;
    if (bytes > 0)
        peak_raise_shared(&governor->peak_bytes, weir__word_bytes(word_new));
    if (level == level_before)
        return true;

    governor->level_change_count++;
    atomic_store_explicit(&governor->level_since_ns, weir__clock_ns(), memory_order_relaxed);
    /* Whoever opens the next episode takes the lock after us, so all of it has this number. */
    if (level == WEIR_LEVEL_CALM)
        atomic_fetch_add_explicit(&governor->episode, 1, memory_order_relaxed);
    return true;
}

static void governor_settle(struct weir_governor *governor)
{
    uint64_t word = atomic_load_explicit(&governor->word, memory_order_acquire);
    enum weir_level level;

    do {
        level = governor_settled(governor, word);
        if (level == weir__word_level(word))
            return;
    } while (!governor_swap(governor, &word, 0, level)); /* G2 */
}

/* What opened an episode owes its account a FLUSH at the next charge. */
static void account_owe_flush(struct weir_account *account, enum weir_level before,
                              enum weir_level after)
{
    if (before == WEIR_LEVEL_CALM && after != WEIR_LEVEL_CALM)
        atomic_store_explicit(&account->owed_episode, relaxed(&account->governor->episode),
                              memory_order_relaxed);
}

/* Under the lock: @bytes for @account if they stay below hard; nobody is asked who was first. */
static bool account_take(struct weir_account *account, uint64_t bytes)
{
    struct weir_governor *governor = account->governor;
    uint64_t word = atomic_load_explicit(&governor->word, memory_order_acquire);
    enum weir_level before;
    enum weir_level after;

    do {
        uint64_t use_bytes = weir__word_bytes(word);
        if (!weir__budget_fits(&governor->budget, use_bytes, bytes)) /* G1 */
            return false;
        before = weir__word_level(word);
        after = weir__budget_raise(&governor->budget, before, use_bytes + bytes);
    } while (!governor_swap(governor, &word, bytes, after));

    account_owe_flush(account, before, after);
    return true;
}

/* ---- Grants (under the lock) ------------------------------------------------ */

static void governor_lock(const struct weir_governor *governor)
{
    int r = pthread_mutex_lock(&((struct weir_governor *)governor)->lock);

    WEIR_CHECK(r == 0);
}

static void governor_unlock(const struct weir_governor *governor)
{
    int r = pthread_mutex_unlock(&((struct weir_governor *)governor)->lock);

    WEIR_CHECK(r == 0);
}

/*
 * Tell the owners of all accounts on the list. The lock is let go for each, so
 * another thread may put the same account there again: then it is told again.
 */
static void governor_tell(struct weir_governor *governor)
{
    while (!weir__list_is_empty(&governor->untold)) {
        struct weir_account *account =
            WEIR_CONTAINER_OF(governor->untold.next, struct weir_account, untold_link);
        bool notify = account->notify_is_owed && account->notify != NULL;

        weir__list_remove(&account->untold_link);
        account->notify_is_owed = false;
        account->telling_count++; /* G6 */
        governor_unlock(governor);

        pthread_cond_broadcast(&account->changed);
        if (notify)
            account->notify(account->context);

        governor_lock(governor);
        if (--account->telling_count == 0)
            pthread_cond_broadcast(&account->changed);
    }
}

static void governor_tell_and_unlock(struct weir_governor *governor)
{
    governor_tell(governor);
    governor_unlock(governor);
}

static void account_append_done(struct weir_account *account, struct weir_waiter *waiter,
                                uint32_t state)
{
    waiter->state = state;
    waiter->next = NULL;
    if (account->done_last != NULL)
        account->done_last->next = waiter;
    else
        account->done_first = waiter;
    account->done_last = waiter;
    atomic_fetch_add_explicit(&account->done_count, 1, memory_order_relaxed);
}

static void account_dequeue(struct weir_account *account, struct weir_waiter *waiter)
{
    weir__queue_remove(&account->governor->queue, &account->lane, waiter);
    /* After what it was granted: an owner who sees its lane empty sees the bytes too. */
    atomic_fetch_sub_explicit(&account->queued_count, 1, memory_order_release);
}

/* The bytes are in the word already. */
static void account_grant(struct weir_account *account, struct weir_waiter *waiter)
{
    uint64_t granted = relaxed(&account->granted_bytes) + waiter->bytes;

    atomic_store_explicit(&account->granted_bytes, granted, memory_order_release);
    account_dequeue(account, waiter);
    if (waiter->wake != NULL) {
        account_append_done(account, waiter, WAITER_GRANTED);
        account->notify_is_owed = true;
    } else {
        waiter->state = WAITER_GRANTED;
    }
    weir__list_remove(&account->untold_link);
    weir__list_append(&account->governor->untold, &account->untold_link); /* G5 */
}

static void governor_measure_lanes(struct weir_governor *governor)
{
    WEIR_LIST_FOREACH (link, &governor->queue.lanes) {
        struct weir__lane *lane = WEIR_CONTAINER_OF(link, struct weir__lane, link);
        const struct weir_account *account = WEIR_CONTAINER_OF(lane, struct weir_account, lane);

        lane->room_bytes = account_room(account, account_charged(account));
    }
}

/* Grant whatever can be granted, and set the flags for what cannot. */
static void governor_grant(struct weir_governor *governor)
{
    const struct weir__budget *budget = &governor->budget;
    bool by_budget;
    bool by_cap;

    if (governor->queue.waiter_count > 0) {
        /* G3: first the flags, then the look. */
        atomic_fetch_or_explicit(&governor->word, WORD_WAITING | WORD_CAPPED, memory_order_acq_rel);
        for (;;) {
            uint64_t word = atomic_load_explicit(&governor->word, memory_order_acquire);
            uint64_t use_bytes = weir__min(weir__word_bytes(word), budget->bytes_max);

            governor_measure_lanes(governor);
            struct weir_waiter *waiter =
                weir__queue_pick(&governor->queue, budget->bytes_max - use_bytes);
            if (waiter == NULL)
                break;
            struct weir_account *account = waiter->account;
            if (!account_take(account, waiter->bytes))
                continue;
            weir__queue_count_pass(&governor->queue, &account->lane, waiter->since_ns);
            account_grant(account, waiter);
        }
    }

    weir__queue_holds(&governor->queue, &by_budget, &by_cap);
    uint64_t flags = (by_budget ? WORD_WAITING : 0) | (by_cap ? WORD_CAPPED : 0);
    uint64_t stale = ~flags & (WORD_WAITING | WORD_CAPPED);
    if ((relaxed(&governor->word) & stale) != 0)
        atomic_fetch_and_explicit(&governor->word, ~stale, memory_order_acq_rel);
}

/* Give @bytes back; @flags: which of the word's ask the caller to look after waiters. */
static void governor_give(struct weir_governor *governor, uint64_t bytes, uint64_t flags)
{
    uint64_t before =
        atomic_fetch_sub_explicit(&governor->word, bytes << WORD_SHIFT, memory_order_acq_rel);
    uint64_t after = before - (bytes << WORD_SHIFT);

    if (WEIR_LIKELY((before & (WORD_LEVEL | flags)) == 0))
        return;
    if ((before & flags) == 0 &&
        weir__word_bytes(after) > governor->budget.leave_bytes[weir__word_level(after)])
        return;

    governor_lock(governor);
    governor_settle(governor);
    governor_grant(governor);
    governor_tell_and_unlock(governor);
}

/* ---- Lifecycle --------------------------------------------------------------- */

uint64_t weir_governor_machine_bytes(void)
{
    return weir__limits_bytes("", weir__sys_ram_bytes());
}

int weir_governor_create(const struct weir_governor_config *config,
                         struct weir_governor **ret_governor)
{
    bool needs_machine = config == NULL || config->bytes_max == 0;
    struct weir__heap heap = {0};
    struct weir__budget budget;
    int r = weir__budget_init(&budget, config, needs_machine ? weir_governor_machine_bytes() : 0);

    if (r < 0)
        return r;

    struct weir_governor *governor =
        weir__heap_alloc_aligned(&heap, sizeof(*governor), GOVERNOR_LINE_BYTES);
    if (governor == NULL)
        return -ENOMEM;

    memset(governor, 0, sizeof(*governor));
    governor->heap = heap;
    governor->budget = budget;
    atomic_init(&governor->episode, 1);
    atomic_init(&governor->level_since_ns, weir__clock_ns());
    weir__list_init(&governor->accounts);
    weir__list_init(&governor->untold);
    weir__queue_init(&governor->queue);
    r = pthread_mutex_init(&governor->lock, NULL);
    if (r != 0) {
        weir__heap_free(&heap, governor, sizeof(*governor));
        return -r;
    }
    *ret_governor = governor;
    return 0;
}

void weir_governor_destroy(struct weir_governor *governor)
{
    if (governor == NULL)
        return;

    struct weir__heap heap = governor->heap;

    WEIR_CHECK(governor->account_count == 0);
    WEIR_CHECK(relaxed(&governor->word) >> WORD_SHIFT == 0);
    pthread_mutex_destroy(&governor->lock);
    weir__heap_free(&heap, governor, sizeof(*governor));
}

static int account_init_changed(struct weir_account *account)
{
    pthread_condattr_t attributes;
    int r = pthread_condattr_init(&attributes);

    if (r != 0)
        return -r;
    r = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    if (r == 0)
        r = pthread_cond_init(&account->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    return -r;
}

static struct weir_account *account_new(struct weir_governor *governor,
                                        const struct weir_account_config *config)
{
    struct weir__heap heap = {0};
    struct weir_account *account =
        weir__heap_alloc_aligned(&heap, sizeof(*account), GOVERNOR_LINE_BYTES);

    if (account == NULL)
        return NULL;

    memset(account, 0, sizeof(*account));
    account->heap = heap;
    account->governor = governor;
    account->owner = pthread_self();
    account->cap_bytes = config->bytes_max != 0 ? config->bytes_max : UINT64_MAX;
    account->reserve_bytes = config->reserve_bytes;
    account->request_bytes_max =
        weir__min(account->cap_bytes, governor->budget.bytes_max) - config->reserve_bytes;
    account->spillable = config->spillable;
    account->transient = config->transient;
    account->has_room = config->has_room;
    account->notify = config->notify;
    account->context = config->context;
    account->deadline_min_ns = UINT64_MAX;
    if (config->name != NULL)
        snprintf(account->name, sizeof(account->name), "%s", config->name);
    weir__list_init(&account->link);
    weir__list_init(&account->untold_link);
    weir__lane_init(&account->lane);
    return account;
}

static void account_delete(struct weir_account *account)
{
    struct weir__heap heap = account->heap;

    weir__heap_free(&heap, account, sizeof(*account));
}

int weir_account_open(struct weir_governor *governor, const struct weir_account_config *config,
                      struct weir_account **ret_account)
{
    static const struct weir_account_config defaults;

    if (config == NULL)
        config = &defaults;
    if (!weir__reserved_is_zero(config->reserved))
        return -EINVAL;
    if (config->bytes_max != 0 && config->reserve_bytes > config->bytes_max)
        return -EINVAL;
    if (config->reserve_bytes > governor->budget.bytes_max)
        return -EDQUOT;

    struct weir_account *account = account_new(governor, config);
    if (account == NULL)
        return -ENOMEM;

    int r = account_init_changed(account);
    if (r < 0) {
        account_delete(account);
        return r;
    }

    governor_lock(governor);
    bool fits = account_take(account, account->reserve_bytes);
    if (fits) {
        account_balance_add(account, account->reserve_bytes);
        peak_raise(&account->peak_bytes, account->reserve_bytes);
        weir__list_append(&governor->accounts, &account->link);
        governor->account_count++;
    }
    governor_unlock(governor);

    if (!fits) {
        pthread_cond_destroy(&account->changed);
        account_delete(account);
        return -EDQUOT;
    }
    *ret_account = account;
    return 0;
}

void weir_account_close(struct weir_account *account)
{
    if (account == NULL)
        return;

    struct weir_governor *governor = account->governor;

    WEIR_ASSERT(account_is_mine(account));
    governor_lock(governor);
    WEIR_CHECK(account->lane.first == NULL);
    WEIR_CHECK(account->done_first == NULL);
    weir__list_remove(&account->untold_link);
    while (account->telling_count > 0) /* G6 */
        pthread_cond_wait(&account->changed, &governor->lock);
    weir__list_remove(&account->link);
    governor->account_count--;
    governor_unlock(governor);

    /* Net, not charged: if over-refunds have raced, this puts the difference back. */
    governor_give(governor, (uint64_t)account_net(account), WORD_WAITING);
    pthread_cond_destroy(&account->changed);
    account_delete(account);
}

/* ---- Charging ---------------------------------------------------------------- */

/* Without an answer that could be no: whatever it does to the level. */
static void account_force(struct weir_account *account, uint64_t bytes)
{
    struct weir_governor *governor = account->governor;
    uint64_t word =
        atomic_fetch_add_explicit(&governor->word, bytes << WORD_SHIFT, memory_order_acq_rel) +
        (bytes << WORD_SHIFT);
    enum weir_level level = weir__word_level(word);

    peak_raise_shared(&governor->peak_bytes, weir__word_bytes(word));
    if (WEIR_LIKELY(weir__budget_raise(&governor->budget, level, weir__word_bytes(word)) == level))
        return;

    governor_lock(governor);
    word = atomic_load_explicit(&governor->word, memory_order_acquire);
    enum weir_level before;
    enum weir_level after;
    do {
        before = weir__word_level(word);
        after = weir__budget_raise(&governor->budget, before, weir__word_bytes(word));
    } while (after != before && !governor_swap(governor, &word, 0, after));
    account_owe_flush(account, before, after);
    governor_tell_and_unlock(governor);
}

/* What the owner has charged; a racing over-refund is found and undone here. */
static uint64_t account_audited(struct weir_account *account)
{
    int64_t net = account_net(account);

    if (WEIR_LIKELY(net >= (int64_t)account->reserve_bytes))
        return (uint64_t)net;

    uint64_t missing = account->reserve_bytes - (uint64_t)net;
    count_more(&account->over_refund_count, 1);
    account_balance_add(account, missing);
    account_force(account, missing);
    return account->reserve_bytes;
}

/* The last step of a charge; @bytes: what it added, 0 if it was refused. */
static void account_count(struct weir_account *account, uint64_t bytes, uint64_t charged,
                          enum weir_verdict verdict)
{
    peak_raise(&account->peak_bytes, charged + bytes);
    count_more(&account->verdict_count[verdict], 1);
}

/* An admitted charge that found itself above calm: is it the one that is told to flush? */
static enum weir_verdict account_flush_once(struct weir_account *account, uint64_t episode,
                                            bool opened)
{
    if (account->flush_episode == episode)
        return WEIR_ADMIT;
    if (!opened && !account->spillable && relaxed(&account->owed_episode) != episode)
        return WEIR_ADMIT;
    account->flush_episode = episode;
    return WEIR_FLUSH;
}

static bool account_has_room(const struct weir_account *account, size_t bytes)
{
    return account->has_room == NULL || account->has_room(account->context, bytes);
}

/* A charge on its way: what does not change while it is decided again and again. */
struct charge {
    struct weir_account *account;
    uint64_t bytes;
    uint64_t charged; /* before it; read after the lane was seen empty, or under the lock */
    bool room_known;
    bool room;
};

/* Whether the overflow takes it; asked at most once, and only when it matters. */
static bool charge_may_spill(struct charge *charge)
{
    if (!charge->account->spillable)
        return false;
    if (!charge->room_known)
        charge->room = account_has_room(charge->account, charge->bytes);
    charge->room_known = true;
    return charge->room;
}

static bool charge_is_over_cap(const struct charge *charge)
{
    return charge->bytes > account_room(charge->account, charge->charged);
}

/* Somebody came before: no charge goes past without having been counted. */
static bool charge_is_crowded(const struct charge *charge, uint64_t word)
{
    return (word & WORD_WAITING) != 0 || account_has_queued(charge->account);
}

static struct weir__plan charge_plan(struct charge *charge, uint64_t word)
{
    const struct weir__budget *budget = &charge->account->governor->budget;
    enum weir_level level = governor_settled(charge->account->governor, word);
    uint64_t use_bytes = weir__word_bytes(word);

    if (charge_is_over_cap(charge))
        return (struct weir__plan){charge_may_spill(charge) ? WEIR_SPILL : WEIR_WAIT, level};

    bool spill_matters = level >= WEIR_LEVEL_SPILL ||
                         use_bytes + charge->bytes > budget->enter_bytes[WEIR_LEVEL_SPILL] ||
                         charge_is_crowded(charge, word);
    return weir__budget_plan(budget, level, use_bytes, charge->bytes,
                             spill_matters && charge_may_spill(charge));
}

/* Under the lock, with a queue: the plan, unless those who came first forbid it. */
static struct weir__plan charge_plan_crowded(struct charge *charge, uint64_t word)
{
    struct weir_governor *governor = charge->account->governor;
    struct weir__plan plan = charge_plan(charge, word);

    if (plan.verdict != WEIR_ADMIT ||
        weir__queue_is_passable(&governor->queue, &charge->account->lane))
        return plan;
    return weir__budget_refuse(&governor->budget, governor_settled(governor, word),
                               weir__word_bytes(word), charge->bytes, charge->room);
}

/* Make @plan true. False: the word has changed, and *@word is what it is now. */
static bool charge_carry_out(struct charge *charge, uint64_t *word, const struct weir__plan *plan,
                             enum weir_verdict *ret_verdict)
{
    struct weir_account *account = charge->account;
    struct weir_governor *governor = account->governor;
    uint64_t episode = relaxed(&governor->episode);
    bool opened = weir__word_level(*word) == WEIR_LEVEL_CALM && plan->level != WEIR_LEVEL_CALM;
    bool admitted = plan->verdict == WEIR_ADMIT;

    if (!governor_swap(governor, word, admitted ? charge->bytes : 0, plan->level))
        return false;

    /* With a waiter in our lane we hold the lock: nobody measures the cap between the two. */
    if (admitted)
        account_balance_add(account, charge->bytes);
    *ret_verdict = plan->verdict;
    if (admitted && plan->level != WEIR_LEVEL_CALM)
        *ret_verdict = account_flush_once(account, episode, opened);
    else if (opened)
        account_owe_flush(account, WEIR_LEVEL_CALM, plan->level);
    return true;
}

/* Under the lock: the level changes, or there is a queue. */
static bool charge_locked(struct charge *charge, enum weir_verdict *ret_verdict)
{
    struct weir_account *account = charge->account;
    struct weir_governor *governor = account->governor;

    governor_grant(governor);
    charge->charged = account_charged(account);

    uint64_t word = atomic_load_explicit(&governor->word, memory_order_acquire);
    bool crowded = charge_is_crowded(charge, word);

    if (account->spillable)
        WEIR_ASSERT(charge->room_known); /* G6 */

    struct weir__plan plan =
        crowded ? charge_plan_crowded(charge, word) : charge_plan(charge, word);
    if (!charge_carry_out(charge, &word, &plan, ret_verdict))
        return false;
    if (crowded && plan.verdict == WEIR_ADMIT)
        weir__queue_count_pass(&governor->queue, &account->lane, UINT64_MAX);
    return true;
}

/* Above soft, near a level, at a cap or behind a queue. */
static __attribute__((noinline)) enum weir_verdict charge_slowly(struct charge *charge)
{
    struct weir_governor *governor = charge->account->governor;
    enum weir_verdict verdict = WEIR_WAIT;
    bool done = false;

    while (!done) {
        uint64_t word = atomic_load_explicit(&governor->word, memory_order_acquire);
        bool crowded = charge_is_crowded(charge, word);

        charge->charged = account_charged(charge->account);
        struct weir__plan plan = charge_plan(charge, word);
        if (plan.level == weir__word_level(word) && plan.verdict != WEIR_ADMIT)
            return plan.verdict;
        if (plan.level == weir__word_level(word) && !crowded) {
            done = charge_carry_out(charge, &word, &plan, &verdict);
            continue;
        }
        (void)charge_may_spill(charge); /* asked now, for under the lock it may not be */
        governor_lock(governor);
        done = charge_locked(charge, &verdict);
        governor_tell_and_unlock(governor);
    }
    return verdict;
}

int weir_account_charge(struct weir_account *account, size_t bytes, enum weir_verdict *ret_verdict)
{
    WEIR_ASSERT(account_is_mine(account));
    if (bytes > account->request_bytes_max)
        return -EINVAL;

    struct weir_governor *governor = account->governor;
    bool queued = account_has_queued(account);
    struct charge charge = {
        .account = account, .bytes = bytes, .charged = account_audited(account)};
    uint64_t word = atomic_load_explicit(&governor->word, memory_order_relaxed);

    while ((word & (WORD_LEVEL | WORD_WAITING)) == 0 && !queued && !charge_is_over_cap(&charge) &&
           weir__word_bytes(word) + bytes <= governor->budget.enter_bytes[WEIR_LEVEL_SOFT]) {
        if (governor_swap(governor, &word, bytes, WEIR_LEVEL_CALM)) {
            account_balance_add(account, bytes);
            account_count(account, bytes, charge.charged, WEIR_ADMIT);
            *ret_verdict = WEIR_ADMIT;
            return 0;
        }
    }

    enum weir_verdict verdict = bytes > 0 ? charge_slowly(&charge) : WEIR_ADMIT;
    bool admitted = verdict == WEIR_ADMIT || verdict == WEIR_FLUSH;

    account_count(account, admitted ? bytes : 0, charge.charged, verdict);
    *ret_verdict = verdict;
    return 0;
}

void weir_account_charge_forced(struct weir_account *account, size_t bytes)
{
    WEIR_ASSERT(account_is_mine(account));
    WEIR_CHECK(bytes <= BUDGET_BYTES_LIMIT);

    uint64_t charged = account_audited(account);

    account_balance_add(account, bytes);
    peak_raise(&account->peak_bytes, charged + bytes);
    count_more(&account->forced_bytes, bytes);
    account_force(account, bytes);
}

void weir_account_refund(struct weir_account *account, size_t bytes)
{
    WEIR_ASSERT(account_is_mine(account));

    uint64_t refundable = account_audited(account) - account->reserve_bytes;
    uint64_t back = weir__min(bytes, refundable);
    bool queued = account_has_queued(account);

    if (WEIR_UNLIKELY(back != bytes))
        count_more(&account->over_refund_count, 1);
    account_balance_add(account, 0 - back);
    governor_give(account->governor, back, queued ? WORD_WAITING | WORD_CAPPED : WORD_WAITING);
}

/*
 * The account may be closed by its owner as soon as it sees these bytes gone:
 * after the swap only the governor is touched.
 */
void weir_account_refund_remote(struct weir_account *account, size_t bytes)
{
    struct weir_governor *governor = account->governor;
    uint64_t remote = atomic_load_explicit(&account->remote_bytes, memory_order_acquire);
    bool counted = false;
    uint64_t back;

    do {
        uint64_t balance = atomic_load_explicit(&account->balance_bytes, memory_order_acquire);
        uint64_t granted = atomic_load_explicit(&account->granted_bytes, memory_order_acquire);
        int64_t refundable = (int64_t)(balance + granted - remote - account->reserve_bytes);
        back = weir__min(bytes, refundable > 0 ? (uint64_t)refundable : 0);
        if (back != bytes && !counted)
            atomic_fetch_add_explicit(&account->remote_over_refund_count, 1, memory_order_relaxed);
        counted = counted || back != bytes;
    } while (!atomic_compare_exchange_strong_explicit(&account->remote_bytes, &remote,
                                                      remote + back, memory_order_acq_rel,
                                                      memory_order_acquire));
    governor_give(governor, back, WORD_WAITING | WORD_CAPPED);
}

uint64_t weir_account_flush_bytes(const struct weir_account *account)
{
    const struct weir_governor *governor = account->governor;
    uint64_t word = relaxed(&governor->word);
    uint64_t charged = account_charged(account);
    uint64_t own = charged - weir__min(charged, account->reserve_bytes);

    return weir__min(own, weir__budget_excess(&governor->budget, weir__word_level(word),
                                              weir__word_bytes(word)));
}

uint64_t weir_account_delay_ns(const struct weir_account *account)
{
    const struct weir_governor *governor = account->governor;

    return weir__budget_delay_ns(&governor->budget, weir__word_bytes(relaxed(&governor->word)));
}

static void account_keep_books(void *context, int64_t bytes)
{
    if (bytes >= 0)
        weir_account_charge_forced(context, (size_t)bytes);
    else
        weir_account_refund(context, 0 - (size_t)bytes);
}

struct weir_books weir_account_books(struct weir_account *account)
{
    return (struct weir_books){.charge = account_keep_books, .context = account};
}

/* ---- Waiting ----------------------------------------------------------------- */

/* Whether what holds a waiter can come back by itself or by being asked. */
enum hope {
    HOPE_NONE,
    HOPE_UNSURE, /* charges or refunds are under way: look again */
    HOPE_SOME,
};

/*
 * A charge is in the word before it is in the books of its account, and a refund
 * is in the books first: what is under way makes the word the larger. Only when
 * both agree is it certain that nothing else is there.
 */
static enum hope governor_hope(const struct weir_governor *governor,
                               const struct weir_waiter *waiter)
{
    const struct weir_account *account = waiter->account;
    uint64_t own_bytes = account_charged(account);
    uint64_t books_bytes = 0;

    if (waiter->bytes > account_room(account, own_bytes))
        return account_is_reclaimable(account, own_bytes) ? HOPE_SOME : HOPE_NONE;

    WEIR_LIST_FOREACH (link, &governor->accounts) {
        const struct weir_account *holder = WEIR_CONTAINER_OF(link, struct weir_account, link);
        uint64_t charged = account_charged(holder);
        if (account_is_reclaimable(holder, charged))
            return HOPE_SOME;
        books_bytes += charged;
    }

    uint64_t use_bytes =
        weir__word_bytes(atomic_load_explicit(&governor->word, memory_order_acquire));
    bool fits_now = weir__budget_fits(&governor->budget, use_bytes, waiter->bytes);

    return use_bytes != books_bytes || fits_now ? HOPE_UNSURE : HOPE_NONE;
}

/* Under the lock: queue @waiter. False: there is no hope, and it is not queued. */
static bool account_enqueue(struct weir_account *account, struct weir_waiter *waiter)
{
    struct weir_governor *governor = account->governor;
    enum hope hope = HOPE_UNSURE;

    weir__queue_append(&governor->queue, &account->lane, waiter, weir__clock_ns());
    atomic_fetch_add_explicit(&account->queued_count, 1, memory_order_relaxed);

    /* Where all is in motion for so long, motion is hope. */
    for (int look = 0; look < GOVERNOR_LOOK_MAX && hope == HOPE_UNSURE; look++) {
        governor_grant(governor);
        governor_tell(governor);
        if (waiter->state != WAITER_QUEUED)
            return true;
        hope = governor_hope(governor, waiter);
    }
    if (hope != HOPE_NONE)
        return true;

    account_dequeue(account, waiter);
    waiter->state = WAITER_IDLE;
    governor_grant(governor);
    return false;
}

/* Under the lock: sleep until @waiter is granted or late. */
static int account_sleep(struct weir_account *account, struct weir_waiter *waiter)
{
    struct weir_governor *governor = account->governor;
    struct timespec deadline = {
        .tv_sec = (time_t)(waiter->deadline_ns / UINT64_C(1000000000)),
        .tv_nsec = (long)(waiter->deadline_ns % UINT64_C(1000000000)),
    };

    while (waiter->state == WAITER_QUEUED) {
        int r = 0;
        if (waiter->deadline_ns == UINT64_MAX)
            r = pthread_cond_wait(&account->changed, &governor->lock);
        else
            r = pthread_cond_timedwait(&account->changed, &governor->lock, &deadline);
        WEIR_CHECK(r == 0 || r == ETIMEDOUT);
        if (r == 0 || waiter->state != WAITER_QUEUED)
            continue;
        account_dequeue(account, waiter);
        waiter->state = WAITER_IDLE;
        governor->timeout_count++;
        governor_grant(governor); /* those whom it stood in the way of */
        return -ETIMEDOUT;
    }
    waiter->state = WAITER_IDLE;
    return 0;
}

int weir_account_wait(struct weir_account *account, struct weir_waiter *waiter, size_t bytes,
                      uint64_t deadline_ns)
{
    WEIR_ASSERT(account_is_mine(account));
    if (bytes > account->request_bytes_max)
        return -EINVAL;

    struct weir_governor *governor = account->governor;
    int r = 0;

    waiter->account = account;
    waiter->bytes = bytes;
    waiter->deadline_ns = deadline_ns;
    waiter->state = WAITER_QUEUED;

    governor_lock(governor);
    if (!account_enqueue(account, waiter))
        r = -EDQUOT;
    else if (waiter->wake == NULL)
        r = account_sleep(account, waiter);
    else
        account->deadline_min_ns = weir__min(account->deadline_min_ns, deadline_ns);
    governor_tell_and_unlock(governor);

    peak_raise(&account->peak_bytes, account_charged(account));
    return r;
}

int weir_account_cancel(struct weir_account *account, struct weir_waiter *waiter)
{
    struct weir_governor *governor = account->governor;
    int r = -ENOENT;

    WEIR_ASSERT(account_is_mine(account));
    governor_lock(governor);
    if (waiter->account == account && waiter->state == WAITER_QUEUED) {
        account_dequeue(account, waiter);
        waiter->state = WAITER_IDLE;
        governor_grant(governor);
        r = 0;
    }
    governor_tell_and_unlock(governor);
    return r;
}

/* Under the lock: those who are due go to the list of done. */
static bool account_expire(struct weir_account *account, uint64_t now_ns)
{
    struct weir_waiter *next;
    bool expired = false;

    account->deadline_min_ns = UINT64_MAX;
    for (struct weir_waiter *waiter = account->lane.first; waiter != NULL; waiter = next) {
        next = waiter->next;
        if (waiter->deadline_ns > now_ns) {
            account->deadline_min_ns = weir__min(account->deadline_min_ns, waiter->deadline_ns);
            continue;
        }
        account_dequeue(account, waiter);
        account_append_done(account, waiter, WAITER_LATE);
        account->governor->timeout_count++;
        expired = true;
    }
    return expired;
}

/* Under the lock: all who are done, as a chain by next. */
static struct weir_waiter *account_take_done(struct weir_account *account)
{
    struct weir_waiter *first = account->done_first;

    account->done_first = NULL;
    account->done_last = NULL;
    atomic_store_explicit(&account->done_count, 0, memory_order_relaxed);
    weir__list_remove(&account->untold_link);
    account->notify_is_owed = false;
    return first;
}

int weir_account_poll(struct weir_account *account)
{
    struct weir_governor *governor = account->governor;
    bool none_done = atomic_load_explicit(&account->done_count, memory_order_relaxed) == 0;
    bool none_due = account->deadline_min_ns == UINT64_MAX;
    int woken_count = 0;

    WEIR_ASSERT(account_is_mine(account));
    if (none_done && none_due)
        return 0;

    uint64_t now_ns = weir__clock_ns();
    if (none_done && now_ns < account->deadline_min_ns)
        return 0;

    governor_lock(governor);
    if (now_ns >= account->deadline_min_ns && account_expire(account, now_ns))
        governor_grant(governor);
    struct weir_waiter *waiter = account_take_done(account);
    governor_tell_and_unlock(governor);

    /* A wake may wait, charge or refund: whatever it causes comes with the next poll. */
    peak_raise(&account->peak_bytes, account_charged(account));
    while (waiter != NULL) {
        struct weir_waiter *next = waiter->next;
        int result = waiter->state == WAITER_GRANTED ? 0 : -ETIMEDOUT;
        waiter->state = WAITER_IDLE;
        waiter->next = NULL;
        waiter->wake(waiter, result);
        waiter = next;
        woken_count++;
    }
    return woken_count;
}

/* ---- Statistics --------------------------------------------------------------- */

void weir_account_stats(const struct weir_account *account, struct weir_account_stats *ret_stats)
{
    uint64_t charged = account_charged(account);

    *ret_stats = (struct weir_account_stats){
        .charged_bytes = charged,
        .peak_bytes = weir__max(relaxed(&account->peak_bytes), charged),
        .forced_bytes = relaxed(&account->forced_bytes),
        .admit_count = relaxed(&account->verdict_count[WEIR_ADMIT]),
        .flush_count = relaxed(&account->verdict_count[WEIR_FLUSH]),
        .spill_count = relaxed(&account->verdict_count[WEIR_SPILL]),
        .wait_count = relaxed(&account->verdict_count[WEIR_WAIT]),
        .over_refund_count =
            relaxed(&account->over_refund_count) + relaxed(&account->remote_over_refund_count),
        .waiter_count = atomic_load_explicit(&account->queued_count, memory_order_relaxed),
        .spillable = account->spillable,
        .transient = account->transient,
    };
    memcpy(ret_stats->name, account->name, sizeof(ret_stats->name));
}

void weir_governor_stats(const struct weir_governor *governor,
                         struct weir_governor_stats *ret_stats)
{
    governor_lock(governor);
    governor_settle((struct weir_governor *)governor); /* a dwell may have ended unseen */

    uint64_t word = atomic_load_explicit(&governor->word, memory_order_acquire);
    uint64_t oldest_ns = weir__queue_oldest(&governor->queue);
    uint64_t now_ns = weir__clock_ns();

    *ret_stats = (struct weir_governor_stats){
        .bytes_max = governor->budget.bytes_max,
        .charged_bytes = weir__word_bytes(word),
        .peak_bytes = weir__max(relaxed(&governor->peak_bytes), weir__word_bytes(word)),
        .soft_bytes = governor->budget.enter_bytes[WEIR_LEVEL_SOFT],
        .spill_bytes = governor->budget.enter_bytes[WEIR_LEVEL_SPILL],
        .level = weir__word_level(word),
        .account_count = governor->account_count,
        .level_change_count = governor->level_change_count,
        .level_since_ns = relaxed(&governor->level_since_ns),
        .waiter_count = governor->queue.waiter_count,
        .oldest_waiter_ns = now_ns > oldest_ns ? now_ns - oldest_ns : 0,
        .timeout_count = governor->timeout_count,
    };
    governor_unlock(governor);
}

size_t weir_governor_holders(const struct weir_governor *governor,
                             struct weir_account_stats *ret_holders, size_t holder_count)
{
    size_t filled = 0;

    governor_lock(governor);
    WEIR_LIST_FOREACH (link, &governor->accounts) {
        struct weir_account_stats stats;
        weir_account_stats(WEIR_CONTAINER_OF(link, struct weir_account, link), &stats);

        size_t place = filled;
        while (place > 0 && ret_holders[place - 1].charged_bytes < stats.charged_bytes)
            place--;
        if (place == holder_count)
            continue;
        if (filled < holder_count)
            filled++;
        memmove(&ret_holders[place + 1], &ret_holders[place],
                (filled - place - 1) * sizeof(*ret_holders));
        ret_holders[place] = stats;
    }
    governor_unlock(governor);
    return filled;
}
