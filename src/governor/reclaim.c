/* SPDX-License-Identifier: MIT */
/*
 * reclaim - asking the cheapest for what is missing, and seeing what came
 *
 *      need --> asked --notify, poll--> reclaim() --> promised --> kept
 *       ^         |                        | 0           |
 *       |         '--- too late ------.    v             '--- too late: broken
 *       '------------- the next of the round -----------'
 *
 * What is needed is the way down to soft's leave level, or what the first waiter
 * lacks. One reclaimer is asked at a time, the cheapest that has not failed in this
 * round; it is asked by a flag and its owner's notify, so its callback runs in
 * weir_account_poll() on its own thread, under no lock, and no core waits for
 * another. What it promises is measured by what its account gives back. Who promises
 * nothing, breaks a promise or is not there in time is passed over until a pause
 * after the end of the round; who keeps one may be asked again at once, but after
 * those that cost the same.
 *
 *   R1  at most one reclaimer is asked at any moment; it is in the list
 *   R2  a callback is made without the lock, for an account that cannot be closed
 *       meanwhile, for closing is for the same thread
 *   R3  the list is sorted by cost; of the same cost, who was asked last is last
 *   R4  need is looked at whenever a level rises, a waiter is queued, an answer comes
 *       and, while there is any, with polls a millisecond apart
 */
#include <weir/governor.h>

#include "base/check.h"
#include "base/clock.h"
#include "governor/ledger.h"

#define RECLAIM_ANSWER_NS UINT64_C(100000000) /* for all of it: being told, freeing, giving back */
#define RECLAIM_PAUSE_NS  UINT64_C(10000000)  /* after a round in which all have failed */
#define RECLAIM_LOOK_NS   UINT64_C(1000000)

enum {
    RECLAIM_IDLE,
    RECLAIM_ASKED,
    RECLAIM_CALLED,
    RECLAIM_PROMISED,
};

/* What must come back before nobody needs to be asked. */
static uint64_t reclaim_need(const struct weir_governor *governor)
{
    uint64_t word = atomic_load_explicit(&governor->word, memory_order_acquire);
    uint64_t use_bytes = weir__word_bytes(word);
    uint64_t need = weir__budget_excess(&governor->budget, weir__word_level(word), use_bytes);
    uint64_t free_bytes =
        governor->budget.bytes_max - weir__min(use_bytes, governor->budget.bytes_max);
    uint64_t wanted = (word & WORD_WAITING) != 0 ? weir__queue_first_bytes(&governor->queue) : 0;

    return weir__max(need, wanted - weir__min(wanted, free_bytes));
}

/* All that @account has given back above calm; leases are closed there. */
static uint64_t reclaim_returned(const struct weir_account *account)
{
    return weir__relaxed(&account->returned_bytes) + weir__relaxed(&account->remote_bytes);
}

static void reclaim_finish(struct weir_governor *governor, struct weir_reclaimer *reclaimer,
                           uint64_t came_bytes)
{
    struct weir_account *account = reclaimer->account;
    bool kept = reclaimer->promised_bytes > 0 && came_bytes >= reclaimer->promised_bytes;

    if (!kept)
        reclaimer->round = governor->reclaim_round;
    if (!kept && (reclaimer->promised_bytes > 0 || reclaimer->state == RECLAIM_ASKED)) {
        reclaimer->broken_count++;
        account->broken_count++;
    }
    reclaimer->came_bytes += came_bytes;
    account->came_bytes += came_bytes;
    reclaimer->state = RECLAIM_IDLE;
    atomic_store_explicit(&account->is_asked, 0, memory_order_relaxed);
    governor->asked = NULL; /* R1 */
}

/* Whether the one who is asked is done, in one way or the other. */
static bool reclaim_is_done(struct weir_governor *governor, uint64_t now_ns)
{
    struct weir_reclaimer *reclaimer = governor->asked;

    if (reclaimer == NULL)
        return true;
    if (reclaimer->state == RECLAIM_CALLED)
        return false;

    uint64_t came = reclaim_returned(reclaimer->account) - reclaimer->before_bytes;
    bool kept = reclaimer->state == RECLAIM_PROMISED && came >= reclaimer->promised_bytes;

    if (!kept && now_ns < reclaimer->deadline_ns)
        return false;
    reclaim_finish(governor, reclaimer, came);
    return true;
}

/* The cheapest that has not failed in this round. */
static struct weir_reclaimer *reclaim_pick(const struct weir_governor *governor)
{
    struct weir_reclaimer *reclaimer = governor->reclaimers;

    while (reclaimer != NULL && reclaimer->round == governor->reclaim_round)
        reclaimer = reclaimer->next;
    return reclaimer;
}

/* R3. From the end: most are added behind all others. */
static void reclaim_insert(struct weir_governor *governor, struct weir_reclaimer *reclaimer)
{
    struct weir_reclaimer *previous = governor->reclaimers_last;

    while (previous != NULL && previous->cost > reclaimer->cost)
        previous = previous->previous;
    reclaimer->previous = previous;
    reclaimer->next = previous != NULL ? previous->next : governor->reclaimers;
    *(previous != NULL ? &previous->next : &governor->reclaimers) = reclaimer;
    *(reclaimer->next != NULL ? &reclaimer->next->previous : &governor->reclaimers_last) =
        reclaimer;
}

static void reclaim_take_out(struct weir_governor *governor, struct weir_reclaimer *reclaimer)
{
    struct weir_reclaimer *previous = reclaimer->previous;
    struct weir_reclaimer *next = reclaimer->next;

    *(previous != NULL ? &previous->next : &governor->reclaimers) = next;
    *(next != NULL ? &next->previous : &governor->reclaimers_last) = previous;
}

static void reclaim_ask(struct weir_governor *governor, struct weir_reclaimer *reclaimer,
                        uint64_t bytes, uint64_t now_ns)
{
    struct weir_account *account = reclaimer->account;

    reclaim_take_out(governor, reclaimer);
    reclaim_insert(governor, reclaimer); /* R3 */
    governor->asked = reclaimer;         /* R1 */
    reclaimer->state = RECLAIM_ASKED;
    reclaimer->wanted_bytes = bytes;
    reclaimer->promised_bytes = 0;
    reclaimer->before_bytes = reclaim_returned(account);
    reclaimer->deadline_ns = now_ns + RECLAIM_ANSWER_NS;
    reclaimer->asked_bytes += bytes;
    reclaimer->asked_count++;
    account->asked_count++;
    atomic_store_explicit(&account->is_asked, 1, memory_order_release);
    account->notify_is_owed = true;
    weir__list_remove(&account->untold_link);
    weir__list_append(&governor->untold, &account->untold_link);
}

void weir__governor_reclaim(struct weir_governor *governor)
{
    if (governor->reclaimers == NULL)
        return;

    uint64_t now_ns = weir__clock_ns();

    if (!reclaim_is_done(governor, now_ns))
        return;

    uint64_t need = reclaim_need(governor);
    bool is_calm = weir__word_level(weir__relaxed(&governor->word)) == WEIR_LEVEL_CALM;
    /* A level that dwells has no need, and may have one again without a rise. */
    uint64_t look_ns = need > 0 || !is_calm ? now_ns + RECLAIM_LOOK_NS : UINT64_MAX;

    atomic_store_explicit(&governor->reclaim_look_ns, look_ns, memory_order_relaxed);
    if (need == 0) {
        governor->reclaim_round++;
        return;
    }
    if (now_ns < governor->reclaim_pause_ns)
        return;

    struct weir_reclaimer *reclaimer = reclaim_pick(governor);

    if (reclaimer == NULL) {
        governor->reclaim_round++;
        governor->reclaim_pause_ns = now_ns + RECLAIM_PAUSE_NS;
        return;
    }
    reclaim_ask(governor, reclaimer, need, now_ns);
}

/* Hope: somebody is asked, or may be and has not failed lately. */
bool weir__governor_may_reclaim(const struct weir_governor *governor)
{
    return governor->asked != NULL ||
           (weir__clock_ns() >= governor->reclaim_pause_ns && reclaim_pick(governor) != NULL);
}

/* Under the lock, which it lets go of for the callback. */
static void account_answer(struct weir_account *account)
{
    struct weir_governor *governor = account->governor;
    struct weir_reclaimer *reclaimer = governor->asked;

    if (reclaimer == NULL || reclaimer->account != account || reclaimer->state != RECLAIM_ASKED)
        return;

    uint64_t wanted_bytes = reclaimer->wanted_bytes;

    reclaimer->state = RECLAIM_CALLED;
    weir__governor_tell_and_unlock(governor);
    uint64_t promised_bytes = reclaimer->reclaim(reclaimer, wanted_bytes); /* R2 */
    weir__governor_lock(governor);

    reclaimer->promised_bytes = promised_bytes;
    reclaimer->state = RECLAIM_PROMISED;
    if (promised_bytes == 0)
        reclaim_finish(governor, reclaimer, reclaim_returned(account) - reclaimer->before_bytes);
}

void weir__account_poll_reclaim(struct weir_account *account)
{
    struct weir_governor *governor = account->governor;

    weir__governor_lock(governor);
    account_answer(account);
    weir__governor_settle(governor);
    weir__governor_reclaim(governor);
    weir__governor_tell_and_unlock(governor);
}

/* ---- Lifecycle ------------------------------------------------------------------ */

void weir_account_add_reclaimer(struct weir_account *account, struct weir_reclaimer *reclaimer)
{
    struct weir_governor *governor = account->governor;

    WEIR_ASSERT(weir__account_is_mine(account));
    WEIR_CHECK(reclaimer->reclaim != NULL);
    weir__governor_lock(governor);
    reclaimer->account = account;
    reclaimer->state = RECLAIM_IDLE;
    reclaimer->round = 0;
    reclaim_insert(governor, reclaimer);
    account->reclaimer_count++;
    weir__governor_reclaim(governor);
    weir__governor_tell_and_unlock(governor);
}

void weir_account_remove_reclaimer(struct weir_account *account, struct weir_reclaimer *reclaimer)
{
    struct weir_governor *governor = account->governor;

    WEIR_ASSERT(weir__account_is_mine(account));
    weir__governor_lock(governor);
    WEIR_CHECK(reclaimer->account == account);
    WEIR_CHECK(reclaimer->state != RECLAIM_CALLED);
    if (governor->asked == reclaimer)
        reclaim_finish(governor, reclaimer, 0);
    reclaim_take_out(governor, reclaimer);
    reclaimer->account = NULL;
    account->reclaimer_count--;
    weir__governor_reclaim(governor);
    weir__governor_tell_and_unlock(governor);
}
