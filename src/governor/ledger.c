/* SPDX-License-Identifier: MIT */
/*
 * ledger - one word that everybody charges, one lock for those who wait
 *
 *      account A ---- charge: compare-and-swap ----\
 *      account B ---- refund: fetch-and-subtract ---+--> word: use | flags | level
 *      any thread --- remote refund ---------------/             |
 *                                                    flags set, or a level to leave
 *                                                                v
 *                                       lock: level, queue, grants, who is told
 *
 * Below soft an account has a lease (lease.c), which is in the word as if it were
 * used; without one a charge is one compare-and-swap on the word and a refund one
 * subtraction. The word carries level and queue, so that a charge which finds it
 * changed decides anew, and a refund sees in the value it replaced whether it
 * must look after somebody: there is no second variable to be late on. The level
 * and the flags change only under the lock; the bytes change without it.
 *
 * An account's charge is kept in four counters, each written from one side only:
 *
 *      charged = balance + spent (the owner: charges - refunds, of the word and of
 *                         its lease)
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
 * machine has (limits.c), what a charge is answered (charge.c), what a waiter may
 * hope for (wait.c).
 *
 * The word is the machine; NUMA nodes come between account and word (nodes.c). A
 * charge takes from its node first and from the word then, and gives its node back
 * what the word refuses; a refund goes to the node first.
 */
#include "governor/ledger.h"

#include "base/check.h"
#include "base/clock.h"

/* ---- Books ----------------------------------------------------------------- */

/* Out of line: below a peak that was reached once, nobody comes here from a lease. */
__attribute__((noinline)) void weir__account_note_peak(struct weir_account *account)
{
    uint64_t charged = weir__account_charged(account);

    weir__peak_raise(&account->peak_bytes, charged);
    account->peak_mark_bytes =
        weir__relaxed(&account->spent_bytes) + weir__relaxed(&account->peak_bytes) - charged;
}

/* ---- The word -------------------------------------------------------------- */

static uint64_t governor_lasted_ns(const struct weir_governor *governor)
{
    uint64_t since_ns = weir__relaxed(&governor->level_since_ns);
    uint64_t now_ns = weir__clock_ns();

    return now_ns > since_ns ? now_ns - since_ns : 0;
}

/* B4: how often the level has changed in the last BUDGET_CHANGES_MAX dwells. */
static uint32_t governor_change_count(const struct weir_governor *governor)
{
    uint64_t dwell_ns = governor->budget.dwell_ns;
    uint64_t now_ns = dwell_ns > 0 ? weir__clock_ns() : 0;
    uint32_t count = 0;

    for (int i = 0; i < BUDGET_CHANGES_MAX && dwell_ns > 0; i++) {
        uint64_t at_ns = weir__relaxed(&governor->change_ns[i]);
        if (at_ns > 0 && (now_ns < at_ns || (now_ns - at_ns) / BUDGET_CHANGES_MAX < dwell_ns))
            count++;
    }
    return count;
}

/* The level of @word after looking downwards; reads the clock only when it might fall. */
enum weir_level weir__governor_settled(const struct weir_governor *governor, uint64_t word)
{
    enum weir_level level = weir__word_level(word);
    uint64_t use_bytes = weir__word_bytes(word);

    if (level == WEIR_LEVEL_CALM || use_bytes > governor->budget.leave_bytes[level])
        return level;
    return weir__budget_settle(&governor->budget, level, use_bytes, governor_lasted_ns(governor),
                               governor_change_count(governor));
}

/* Under the lock: the word has just got @level after @before. */
void weir__governor_note_level(struct weir_governor *governor, enum weir_level before,
                               enum weir_level level)
{
    uint64_t now_ns = weir__clock_ns();
    uint64_t place = governor->level_change_count++ % BUDGET_CHANGES_MAX;

    governor->level_ns[before] += now_ns - weir__relaxed(&governor->level_since_ns);
    governor->level_count[level]++;
    atomic_store_explicit(&governor->change_ns[place], now_ns, memory_order_relaxed);
    atomic_store_explicit(&governor->level_since_ns, now_ns, memory_order_relaxed);
    /* Whoever opens the next episode takes the lock after us, so all of it has this number. */
    if (level == WEIR_LEVEL_CALM)
        atomic_fetch_add_explicit(&governor->episode, 1, memory_order_relaxed);
}

void weir__governor_settle(struct weir_governor *governor)
{
    uint64_t word = atomic_load_explicit(&governor->word, memory_order_acquire);
    enum weir_level level;

    do {
        level = weir__governor_settled(governor, word);
        if (level == weir__word_level(word))
            return;
    } while (!weir__governor_swap(governor, &word, 0, level)); /* G2 */
}

/* What opened an episode owes its account a FLUSH at the next charge. */
void weir__account_owe_flush(struct weir_account *account, enum weir_level before,
                             enum weir_level after)
{
    if (before == WEIR_LEVEL_CALM && after != WEIR_LEVEL_CALM)
        atomic_store_explicit(&account->owed_episode, weir__relaxed(&account->governor->episode),
                              memory_order_relaxed);
}

/* Of its node, or of those that lend to it. */
static bool account_take_node(struct weir_account *account, uint64_t bytes)
{
    struct weir_governor *governor = account->governor;

    if (weir__nodes_take(&governor->nodes, account->node, bytes, 0) ||
        weir__nodes_borrow(&governor->nodes, account->node, bytes, 0))
        return true;
    if (!weir__leases_are_out(governor, weir__relaxed(&governor->word)))
        return false;
    weir__leases_close(governor);
    return weir__nodes_borrow(&governor->nodes, account->node, bytes, 0);
}

/* Under the lock: @bytes for @account if they stay below hard; nobody is asked who was first. */
bool weir__account_take(struct weir_account *account, uint64_t bytes)
{
    struct weir_governor *governor = account->governor;
    if (!account_take_node(account, bytes))
        return false;

    uint64_t word = atomic_load_explicit(&governor->word, memory_order_acquire);

    for (;;) {
        uint64_t use_bytes = weir__word_bytes(word);
        enum weir_level before = weir__word_level(word);
        enum weir_level after = weir__budget_raise(&governor->budget, before, use_bytes + bytes);
        bool fits = weir__budget_fits(&governor->budget, use_bytes, bytes); /* G1 */

        if ((!fits || after != before) && weir__leases_are_out(governor, word)) {
            weir__leases_close(governor); /* what nobody uses is neither in the way nor a level */
            word = atomic_load_explicit(&governor->word, memory_order_acquire);
            continue;
        }
        if (!fits) {
            (void)weir__nodes_give(&governor->nodes, account->node, bytes);
            return false;
        }
        if (!weir__governor_swap(governor, &word, bytes, after))
            continue;
        weir__account_owe_flush(account, before, after);
        return true;
    }
}

/* ---- Grants (under the lock) ------------------------------------------------ */

void weir__governor_lock(const struct weir_governor *governor)
{
    int r = pthread_mutex_lock(&((struct weir_governor *)governor)->lock);

    WEIR_CHECK(r == 0);
}

void weir__governor_unlock(const struct weir_governor *governor)
{
    int r = pthread_mutex_unlock(&((struct weir_governor *)governor)->lock);

    WEIR_CHECK(r == 0);
}

/*
 * Tell the owners of all accounts on the list. The lock is let go for each, so
 * another thread may put the same account there again: then it is told again.
 */
void weir__governor_tell(struct weir_governor *governor)
{
    while (!weir__list_is_empty(&governor->untold)) {
        struct weir_account *account =
            WEIR_CONTAINER_OF(governor->untold.next, struct weir_account, untold_link);
        bool notify = account->notify_is_owed && account->notify != NULL;

        weir__list_remove(&account->untold_link);
        account->notify_is_owed = false;
        account->telling_count++; /* G6 */
        weir__governor_unlock(governor);

        pthread_cond_broadcast(&account->changed);
        if (notify)
            account->notify(account->context);

        weir__governor_lock(governor);
        if (--account->telling_count == 0)
            pthread_cond_broadcast(&account->changed);
    }
}

void weir__governor_tell_and_unlock(struct weir_governor *governor)
{
    weir__governor_tell(governor);
    weir__governor_unlock(governor);
}

void weir__account_append_done(struct weir_account *account, struct weir_waiter *waiter,
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

void weir__account_dequeue(struct weir_account *account, struct weir_waiter *waiter)
{
    weir__queue_remove(&account->governor->queue, &account->lane, waiter);
    /* After what it was granted: an owner who sees its lane empty sees the bytes too. */
    atomic_fetch_sub_explicit(&account->queued_count, 1, memory_order_release);
}

void weir__account_note_stall(struct weir_account *account, const struct weir_waiter *waiter)
{
    struct weir_governor *governor = account->governor;
    uint64_t now_ns = weir__clock_ns();
    uint64_t stall_ns = now_ns > waiter->since_ns ? now_ns - waiter->since_ns : 0;
    uint64_t step = stall_ns >> 10 > 0 ? weir__highest_bit(stall_ns >> 10) + 1 : 0;

    governor->stall_count[weir__min(step, WEIR_STALL_STEPS - 1)]++;
    governor->stall_ns_max = weir__max(governor->stall_ns_max, stall_ns);
    account->waited_ns += stall_ns;
}

/* It is out of its lane: its owner learns of it. */
void weir__account_finish(struct weir_account *account, struct weir_waiter *waiter, uint32_t state)
{
    if (waiter->wake != NULL) {
        weir__account_append_done(account, waiter, state);
        account->notify_is_owed = true;
    } else {
        waiter->state = state;
    }
    weir__list_remove(&account->untold_link);
    weir__list_append(&account->governor->untold, &account->untold_link);
}

/* The bytes are in the word already. */
static void account_grant(struct weir_account *account, struct weir_waiter *waiter)
{
    uint64_t granted = weir__relaxed(&account->granted_bytes) + waiter->bytes;

    atomic_store_explicit(&account->granted_bytes, granted, memory_order_release);
    weir__account_dequeue(account, waiter);
    weir__account_note_stall(account, waiter);
    weir__account_finish(account, waiter, WAITER_GRANTED); /* G5 */
}

static void governor_measure_lanes(struct weir_governor *governor)
{
    WEIR_LIST_FOREACH (link, &governor->queue.lanes) {
        struct weir__lane *lane = WEIR_CONTAINER_OF(link, struct weir__lane, link);
        const struct weir_account *account = WEIR_CONTAINER_OF(lane, struct weir_account, lane);

        lane->cap_room_bytes = weir__account_room(account, weir__account_charged(account));
        lane->room_bytes =
            weir__min(lane->cap_room_bytes, weir__nodes_reach(&governor->nodes, account->node));
    }
}

/* One look at the word: grant whom it has room for. */
static void governor_grant_fitting(struct weir_governor *governor)
{
    const struct weir__budget *budget = &governor->budget;

    for (;;) {
        uint64_t word = atomic_load_explicit(&governor->word, memory_order_acquire);
        uint64_t use_bytes = weir__min(weir__word_bytes(word), budget->bytes_max);

        governor_measure_lanes(governor);
        struct weir_waiter *waiter =
            weir__queue_pick(&governor->queue, budget->bytes_max - use_bytes);
        if (waiter == NULL)
            return;
        struct weir_account *account = waiter->account;
        if (!weir__account_take(account, waiter->bytes))
            continue;
        weir__queue_count_pass(&governor->queue, &account->lane, waiter->since_ns);
        account_grant(account, waiter);
    }
}

/* Grant whatever can be granted, and set the flags for what cannot. */
void weir__governor_grant(struct weir_governor *governor)
{
    bool by_budget;
    bool by_cap;

    if (governor->queue.waiter_count > 0) {
        /* G3: first the flags, then the look. */
        atomic_fetch_or_explicit(&governor->word, WORD_WAITING | WORD_CAPPED, memory_order_acq_rel);
        governor_grant_fitting(governor);
    }

    weir__queue_holds(&governor->queue, &by_budget, &by_cap);
    if (by_budget && weir__leases_are_out(governor, weir__relaxed(&governor->word))) {
        weir__leases_close(governor); /* L3: what is in them is what somebody waits for */
        governor_grant_fitting(governor);
        weir__queue_holds(&governor->queue, &by_budget, &by_cap);
    }

    uint64_t word = weir__relaxed(&governor->word);
    uint64_t flags = (by_budget ? WORD_WAITING : 0) | (by_cap ? WORD_CAPPED : 0);
    uint64_t stale = ~flags & (WORD_WAITING | WORD_CAPPED);
    if ((word & stale) != 0)
        atomic_fetch_and_explicit(&governor->word, ~stale, memory_order_acq_rel);
}

/*
 * Under the lock: other limits. Their edition is in the word, so nobody can publish a
 * sum that he compared with the old ones.
 */
void weir__governor_change_budget(struct weir_governor *governor, const struct weir__budget *budget,
                                  const struct weir__nodes *nodes)
{
    uint64_t word = atomic_load_explicit(&governor->word, memory_order_acquire);
    uint64_t word_new;

    weir__budget_publish(&governor->budget, budget);
    if (nodes != NULL)
        weir__nodes_change(&governor->nodes, nodes);
    do {
        uint64_t edition = (word + WORD_EDITION_ONE) & WORD_EDITION;
        word_new = (word & ~WORD_EDITION) | edition;
    } while (!atomic_compare_exchange_strong_explicit(&governor->word, &word, word_new,
                                                      memory_order_acq_rel, memory_order_acquire));

    if (weir__leases_are_out(governor, word_new))
        weir__leases_close(governor);
    weir__leases_share(governor);
    weir__governor_refuse_too_large(governor);
    weir__governor_settle(governor);

    enum weir_level before;
    enum weir_level after;
    word = atomic_load_explicit(&governor->word, memory_order_acquire);
    do {
        before = weir__word_level(word);
        after = weir__budget_raise(&governor->budget, before, weir__word_bytes(word));
    } while (after != before && !weir__governor_swap(governor, &word, 0, after));
    weir__governor_grant(governor);
    weir__leases_reopen(governor);
    weir__governor_reclaim(governor);
}

/* Something has come back: look at the level, grant, tell, and let there be leases again. */
void weir__governor_relieve(struct weir_governor *governor)
{
    weir__governor_lock(governor);
    /* As often as there are nodes: one may owe what is owed to it. */
    for (uint32_t i = 0; i < governor->nodes.count * governor->nodes.count; i++)
        weir__nodes_repay(&governor->nodes, i % governor->nodes.count);
    weir__governor_settle(governor);
    weir__governor_grant(governor);
    weir__leases_reopen(governor);
    weir__governor_tell_and_unlock(governor);
}
