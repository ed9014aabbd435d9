/* SPDX-License-Identifier: MIT */
/*
 * wait - queueing for memory, and being woken
 *
 *      wait --> lane --grant, any thread--> list of done --poll, owner--> wake(0)
 *                 |                              ^
 *                 |----- deadline, poll ---------'              wake(-ETIMEDOUT)
 *                 '----- cancel
 *
 * A waiter without a wake is its thread: it sleeps on its account's condition
 * variable under the governor's lock, and finds itself granted or late.
 */
#include <weir/governor.h>

#include "base/check.h"
#include "base/clock.h"
#include "governor/ledger.h"

#include <errno.h>

#define WAIT_LOOK_MAX 100

/* Whether waiting for what @account holds, @charged bytes, makes sense. */
static bool account_is_reclaimable(const struct weir_account *account, uint64_t charged)
{
    return (account->spillable || account->transient) && charged > account->reserve_bytes;
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
    uint64_t own_bytes = weir__account_charged(account);
    uint64_t books_bytes = 0;

    if (waiter->bytes > weir__account_room(account, own_bytes))
        return account_is_reclaimable(account, own_bytes) ? HOPE_SOME : HOPE_NONE;

    if (weir__governor_may_reclaim(governor))
        return HOPE_SOME;
    WEIR_LIST_FOREACH (link, &governor->accounts) {
        const struct weir_account *holder = WEIR_CONTAINER_OF(link, struct weir_account, link);
        uint64_t charged = weir__account_charged(holder);
        if (account_is_reclaimable(holder, charged))
            return HOPE_SOME;
        books_bytes += charged;
    }

    uint64_t use_bytes =
        weir__word_bytes(atomic_load_explicit(&governor->word, memory_order_acquire));
    bool fits_now = weir__budget_fits(&governor->budget, use_bytes, waiter->bytes) &&
                    waiter->bytes <= weir__nodes_reach(&governor->nodes, account->node);

    return use_bytes != books_bytes || fits_now ? HOPE_UNSURE : HOPE_NONE;
}

/* Under the lock: queue @waiter. False: there is no hope, and it is not queued. */
static bool account_enqueue(struct weir_account *account, struct weir_waiter *waiter)
{
    struct weir_governor *governor = account->governor;
    enum hope hope = HOPE_UNSURE;

    weir__queue_append(&governor->queue, &account->lane, waiter, weir__clock_ns());
    atomic_fetch_add_explicit(&account->queued_count, 1, memory_order_relaxed);
    weir__lease_close(account); /* L5 */

    /* Where all is in motion for so long, motion is hope. */
    for (int look = 0; look < WAIT_LOOK_MAX && hope == HOPE_UNSURE; look++) {
        weir__governor_grant(governor);
        weir__governor_tell(governor);
        if (waiter->state != WAITER_QUEUED)
            return true;
        hope = governor_hope(governor, waiter);
    }
    if (hope != HOPE_NONE)
        return true;

    weir__account_dequeue(account, waiter);
    waiter->state = WAITER_IDLE;
    weir__governor_grant(governor);
    return false;
}

static void account_note_late(struct weir_account *account, const struct weir_waiter *waiter)
{
    weir__account_note_stall(account, waiter);
    account->timeout_count++;
    account->governor->timeout_count++;
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
        weir__account_dequeue(account, waiter);
        waiter->state = WAITER_IDLE;
        account_note_late(account, waiter);
        weir__governor_grant(governor); /* those whom it stood in the way of */
        return -ETIMEDOUT;
    }

    bool granted = waiter->state == WAITER_GRANTED;

    waiter->state = WAITER_IDLE;
    return granted ? 0 : -EDQUOT;
}

int weir_account_wait(struct weir_account *account, struct weir_waiter *waiter, size_t bytes,
                      uint64_t deadline_ns)
{
    WEIR_ASSERT(weir__account_is_mine(account));
    if (bytes > weir__account_request_max(account))
        return -EINVAL;

    struct weir_governor *governor = account->governor;
    int r = 0;

    waiter->account = account;
    waiter->bytes = bytes;
    waiter->deadline_ns = deadline_ns;
    waiter->state = WAITER_QUEUED;

    weir__governor_lock(governor);
    bool queued = account_enqueue(account, waiter);
    weir__governor_reclaim(governor);
    weir__governor_tell(governor);
    if (!queued) {
        account->refused_count++;
        governor->refused_count++;
        r = -EDQUOT;
    }
    if (queued && waiter->wake == NULL)
        r = account_sleep(account, waiter);
    else if (queued)
        account->deadline_min_ns = weir__min(account->deadline_min_ns, deadline_ns);
    weir__governor_tell_and_unlock(governor);

    weir__account_note_peak(account);
    return r;
}

int weir_account_cancel(struct weir_account *account, struct weir_waiter *waiter)
{
    struct weir_governor *governor = account->governor;
    int r = -ENOENT;

    WEIR_ASSERT(weir__account_is_mine(account));
    weir__governor_lock(governor);
    if (waiter->account == account && waiter->state == WAITER_QUEUED) {
        weir__account_dequeue(account, waiter);
        waiter->state = WAITER_IDLE;
        weir__governor_grant(governor);
        r = 0;
    }
    weir__governor_tell_and_unlock(governor);
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
        weir__account_dequeue(account, waiter);
        weir__account_append_done(account, waiter, WAITER_LATE);
        account_note_late(account, waiter);
        expired = true;
    }
    return expired;
}

/* Under the lock: those whom no sum can ever grant go to the list of done, or wake up. */
void weir__governor_refuse_too_large(struct weir_governor *governor)
{
    WEIR_LIST_FOREACH (link, &governor->accounts) {
        struct weir_account *account = WEIR_CONTAINER_OF(link, struct weir_account, link);
        uint64_t bytes_max = weir__account_request_max(account);
        struct weir_waiter *next;
        for (struct weir_waiter *waiter = account->lane.first; waiter != NULL; waiter = next) {
            next = waiter->next;
            if (waiter->bytes <= bytes_max)
                continue;
            weir__account_dequeue(account, waiter);
            weir__account_finish(account, waiter, WAITER_TOO_LARGE);
        }
    }
}

/* What its wake is told. */
static int waiter_result(const struct weir_waiter *waiter)
{
    switch (waiter->state) {
    case WAITER_GRANTED:
        return 0;
    case WAITER_LATE:
        return -ETIMEDOUT;
    default:
        WEIR_CHECK(waiter->state == WAITER_TOO_LARGE);
        return -EDQUOT;
    }
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
    bool none_due = account->deadline_min_ns == UINT64_MAX;
    int woken_count = 0;

    WEIR_ASSERT(weir__account_is_mine(account));
    if (weir__lease_bytes(account) > 0)
        weir__lease_tick(account);
    bool none_asked = atomic_load_explicit(&account->is_asked, memory_order_acquire) == 0;
    uint64_t look_ns = weir__relaxed(&governor->reclaim_look_ns);

    if (!none_asked || (look_ns != UINT64_MAX && weir__clock_ns() >= look_ns))
        weir__account_poll_reclaim(account);

    bool none_done = atomic_load_explicit(&account->done_count, memory_order_relaxed) == 0;
    if (none_done && none_due)
        return 0;

    uint64_t now_ns = weir__clock_ns();
    if (none_done && now_ns < account->deadline_min_ns)
        return 0;

    weir__governor_lock(governor);
    if (now_ns >= account->deadline_min_ns && account_expire(account, now_ns))
        weir__governor_grant(governor);
    struct weir_waiter *waiter = account_take_done(account);
    weir__governor_tell_and_unlock(governor);

    /* A wake may wait, charge or refund: whatever it causes comes with the next poll. */
    weir__account_note_peak(account);
    while (waiter != NULL) {
        struct weir_waiter *next = waiter->next;
        int result = waiter_result(waiter);
        waiter->state = WAITER_IDLE;
        waiter->next = NULL;
        waiter->wake(waiter, result);
        waiter = next;
        woken_count++;
    }
    return woken_count;
}
