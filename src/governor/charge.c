/* SPDX-License-Identifier: MIT */
/*
 * charge - what a charge is answered, and what comes back
 *
 *      calm, alone       from the lease (lease.c), or one            ADMIT
 *                        compare-and-swap that fills it too
 *      above, alone      plan for the word as it is; has_room asked  ADMIT FLUSH
 *                        at most once; one compare-and-swap          SPILL WAIT
 *      a level changes,  under the lock: grant those who came        the same, but not
 *      or a queue        first, then plan again                      past who was passed
 *                                                                    too often
 *
 * A charge is in the word before it is in the books of its account, and a refund
 * is in the books first. So what is under way makes the word the larger, never the
 * smaller: who compares the two (wait.c) knows that nothing is under way when they
 * are equal.
 *
 * No path here reads the clock but the one where a level may end.
 */
#include <weir/governor.h>

#include "base/check.h"
#include "governor/ledger.h"

#include <errno.h>

#define CHARGE_EXTRA_PART 16 /* of what is left below soft, a lease takes at most this part */

/* ---- Charging ---------------------------------------------------------------- */

/* Without an answer that could be no: whatever it does to the level. */
static void account_force(struct weir_account *account, uint64_t bytes)
{
    struct weir_governor *governor = account->governor;

    weir__nodes_force(&governor->nodes, account->node, bytes);

    uint64_t word =
        atomic_fetch_add_explicit(&governor->word, bytes << WORD_SHIFT, memory_order_acq_rel) +
        (bytes << WORD_SHIFT);
    enum weir_level level = weir__word_level(word);

    weir__peak_raise_shared(&governor->peak_bytes, weir__word_bytes(word));
    if (WEIR_LIKELY(weir__budget_raise(&governor->budget, level, weir__word_bytes(word)) == level))
        return;

    weir__governor_lock(governor);
    if (weir__leases_are_out(governor, weir__relaxed(&governor->word)))
        weir__leases_close(governor);
    word = atomic_load_explicit(&governor->word, memory_order_acquire);
    enum weir_level before;
    enum weir_level after;
    do {
        before = weir__word_level(word);
        after = weir__budget_raise(&governor->budget, before, weir__word_bytes(word));
    } while (after != before && !weir__governor_swap(governor, &word, 0, after));
    weir__account_owe_flush(account, before, after);
    weir__governor_reclaim(governor);
    weir__governor_tell_and_unlock(governor);
}

/* Over-refunds have raced and were both believed: what is missing goes back. */
static __attribute__((noinline)) void account_heal(struct weir_account *account, int64_t net)
{
    uint64_t missing = account->reserve_bytes - (uint64_t)net;

    weir__count_more(&account->over_refund_count, 1);
    account_force(account, missing);
    weir__account_balance_add(account, missing);
}

/* What the owner has charged; never less than its reserve. */
static inline uint64_t account_audited(struct weir_account *account)
{
    int64_t net = weir__account_net(account);

    if (WEIR_LIKELY(net >= (int64_t)account->reserve_bytes))
        return (uint64_t)net;

    account_heal(account, net);
    return account->reserve_bytes;
}

/* The last step of a charge that did not come from the lease. */
static void account_count(struct weir_account *account, enum weir_verdict verdict)
{
    weir__account_note_peak(account);
    weir__count_more(&account->verdict_count[verdict], 1);
}

/* An admitted charge that found itself above calm: is it the one that is told to flush? */
static enum weir_verdict account_flush_once(struct weir_account *account, uint64_t episode,
                                            bool opened)
{
    if (account->flush_episode == episode)
        return WEIR_ADMIT;
    if (!opened && !account->spillable && weir__relaxed(&account->owed_episode) != episode)
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
    bool has_node;    /* its node has given the bytes already */
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
    return !charge->has_node ||
           charge->bytes > weir__account_room(charge->account, charge->charged);
}

/* From its node, or from those that lend to it; with @keep to stay. */
static bool charge_find_node(const struct charge *charge, uint64_t keep)
{
    struct weir_governor *governor = charge->account->governor;
    struct weir__nodes *nodes = &governor->nodes;
    uint32_t node = charge->account->node;

    if (weir__nodes_take(nodes, node, charge->bytes, keep))
        return true;

    weir__governor_lock(governor);
    bool found = weir__nodes_borrow(nodes, node, charge->bytes, keep);
    if (!found && weir__leases_are_out(governor, weir__relaxed(&governor->word)) &&
        weir__nodes_reach(nodes, node) + governor->budget.lease_bytes >= charge->bytes + keep) {
        weir__leases_close(governor);
        found = weir__nodes_borrow(nodes, node, charge->bytes, keep);
    }
    weir__governor_unlock(governor);
    return found;
}

/* First where it lies: a node borrows before it spills, and before anybody waits. */
static void charge_enter_node(struct charge *charge)
{
    const struct weir__nodes *nodes = &charge->account->governor->nodes;

    if (nodes->count == 0) {
        charge->has_node = true;
        return;
    }
    charge->has_node = charge_find_node(charge, nodes->nodes[charge->account->node].spill_bytes) ||
                       (!charge_may_spill(charge) && charge_find_node(charge, 0));
}

static void charge_leave_node(const struct charge *charge)
{
    const struct weir_account *account = charge->account;

    if (charge->has_node &&
        weir__nodes_give(&account->governor->nodes, account->node, charge->bytes))
        weir__governor_relieve(account->governor);
}

/* Somebody came before: no charge goes past without having been counted. */
static bool charge_is_crowded(const struct charge *charge, uint64_t word)
{
    return (word & WORD_WAITING) != 0 || weir__account_has_queued(charge->account);
}

static struct weir__plan charge_plan(struct charge *charge, uint64_t word)
{
    const struct weir__budget *budget = &charge->account->governor->budget;
    enum weir_level level = weir__governor_settled(charge->account->governor, word);
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
    return weir__budget_refuse(&governor->budget, weir__governor_settled(governor, word),
                               weir__word_bytes(word), charge->bytes, charge->room);
}

/* Make @plan true. False: the word has changed, and *@word is what it is now. */
static bool charge_carry_out(struct charge *charge, uint64_t *word, const struct weir__plan *plan,
                             enum weir_verdict *ret_verdict)
{
    struct weir_account *account = charge->account;
    struct weir_governor *governor = account->governor;
    uint64_t episode = weir__relaxed(&governor->episode);
    bool opened = weir__word_level(*word) == WEIR_LEVEL_CALM && plan->level != WEIR_LEVEL_CALM;
    bool admitted = plan->verdict == WEIR_ADMIT;

    if (!weir__governor_swap(governor, word, admitted ? charge->bytes : 0, plan->level))
        return false;

    /* With a waiter in our lane we hold the lock: nobody measures the cap between the two. */
    if (admitted)
        weir__account_balance_add(account, charge->bytes);
    *ret_verdict = plan->verdict;
    if (admitted && plan->level != WEIR_LEVEL_CALM)
        *ret_verdict = account_flush_once(account, episode, opened);
    else if (opened)
        weir__account_owe_flush(account, WEIR_LEVEL_CALM, plan->level);
    return true;
}

/* Under the lock: the level changes, or there is a queue. */
static bool charge_locked(struct charge *charge, enum weir_verdict *ret_verdict)
{
    struct weir_account *account = charge->account;
    struct weir_governor *governor = account->governor;

    weir__governor_grant(governor);
    charge->charged = weir__account_charged(account);

    uint64_t word = atomic_load_explicit(&governor->word, memory_order_acquire);
    bool crowded = charge_is_crowded(charge, word);

    if (account->spillable)
        WEIR_ASSERT(charge->room_known); /* G6 */

    struct weir__plan plan =
        crowded ? charge_plan_crowded(charge, word) : charge_plan(charge, word);
    if (plan.level != WEIR_LEVEL_CALM && weir__leases_are_out(governor, word)) {
        weir__leases_close(governor); /* L3 */
        return false;
    }
    if (!charge_carry_out(charge, &word, &plan, ret_verdict))
        return false;
    if (crowded && plan.verdict == WEIR_ADMIT)
        weir__queue_count_pass(&governor->queue, &account->lane, UINT64_MAX);
    return true;
}

/* Whether @plan might be another one if nothing were in leases. */
static bool charge_is_held_by_leases(struct charge *charge, uint64_t word,
                                     const struct weir__plan *plan)
{
    const struct weir_governor *governor = charge->account->governor;
    const struct weir__budget *budget = &governor->budget;
    uint64_t use_bytes = weir__word_bytes(word);

    if (plan->verdict == WEIR_ADMIT || !weir__leases_are_out(governor, word))
        return false;

    uint64_t least_bytes = use_bytes - weir__min(use_bytes, budget->lease_bytes);
    struct weir__plan best = weir__budget_plan(budget, plan->level, least_bytes, charge->bytes,
                                               plan->verdict == WEIR_SPILL);
    return best.verdict != plan->verdict && !charge_is_over_cap(charge);
}

/* One look at the word, and what follows from it. False: it changed meanwhile. */
static bool charge_try(struct charge *charge, enum weir_verdict *ret_verdict)
{
    struct weir_governor *governor = charge->account->governor;
    uint64_t word = atomic_load_explicit(&governor->word, memory_order_acquire);
    bool crowded = charge_is_crowded(charge, word);

    charge->charged = weir__account_charged(charge->account);
    struct weir__plan plan = charge_plan(charge, word);
    bool keeps_level = plan.level == weir__word_level(word);

    if (charge_is_held_by_leases(charge, word, &plan)) {
        weir__governor_lock(governor);
        if (weir__leases_are_out(governor, weir__relaxed(&governor->word)))
            weir__leases_close(governor);
        weir__governor_unlock(governor);
        return false;
    }
    *ret_verdict = plan.verdict;
    if (keeps_level && plan.verdict != WEIR_ADMIT)
        return true;
    if (keeps_level && !crowded)
        return charge_carry_out(charge, &word, &plan, ret_verdict);

    (void)charge_may_spill(charge); /* asked now, for under the lock it may not be */
    weir__governor_lock(governor);
    bool done = charge_locked(charge, ret_verdict);
    weir__governor_reclaim(governor);
    weir__governor_tell_and_unlock(governor);
    return done;
}

/* Above soft, near a level, at a cap or behind a queue. */
static __attribute__((noinline)) enum weir_verdict charge_slowly(struct weir_account *account,
                                                                 uint64_t bytes)
{
    struct charge charge = {.account = account, .bytes = bytes};
    enum weir_verdict verdict = WEIR_ADMIT;

    if (bytes > 0)
        charge_enter_node(&charge);
    while (bytes > 0 && !charge_try(&charge, &verdict))
        continue;
    if (verdict == WEIR_SPILL || verdict == WEIR_WAIT)
        charge_leave_node(&charge);

    account_count(account, verdict);
    return verdict;
}

/* How much to put into the lease beside a charge: to its half, within the cap. */
static uint64_t charge_extra(const struct weir_account *account, uint64_t bytes, uint64_t charged)
{
    if (weir__lease_is_closed(account))
        return 0;

    uint64_t lease = weir__lease_bytes(account);
    uint64_t half = weir__relaxed(&account->lease_limit_bytes) / 2;
    uint64_t room = weir__account_room(account, charged + lease + bytes); /* L5 */

    return weir__min(half - weir__min(half, lease), room);
}

/* Less and less toward soft. */
static uint64_t charge_extra_now(const struct weir_governor *governor, uint64_t word,
                                 uint64_t bytes, uint64_t extra)
{
    uint64_t soft_bytes = governor->budget.enter_bytes[WEIR_LEVEL_SOFT];
    uint64_t wanted_bytes = weir__word_bytes(word) + bytes;

    if ((word & WORD_CLOSED) != 0 || wanted_bytes >= soft_bytes)
        return 0;
    return weir__min(extra, (soft_bytes - wanted_bytes) / CHARGE_EXTRA_PART);
}

/* Below soft with nobody queued. False: it is not so, and nothing is charged. */
static bool charge_calmly(struct weir_account *account, uint64_t bytes, uint64_t charged)
{
    struct weir_governor *governor = account->governor;
    struct weir__nodes *nodes = &governor->nodes;

    if ((weir__relaxed(&governor->word) & (WORD_LEVEL | WORD_WAITING)) != 0)
        return false; /* above soft nothing of this is worth a look */
    if (account->cap_bytes != UINT64_MAX &&
        charged + weir__lease_bytes(account) + bytes > account->cap_bytes)
        weir__lease_drop(account); /* L5 */

    uint64_t extra_max = charge_extra(account, bytes, charged);
    uint64_t keep = nodes->nodes[account->node].spill_bytes;

    if (!weir__nodes_take(nodes, account->node, bytes + extra_max, keep)) {
        extra_max = 0;
        if (!weir__nodes_take(nodes, account->node, bytes, keep))
            return false;
    }

    uint64_t word = atomic_load_explicit(&governor->word, memory_order_acquire);

    /* The limits are read after the word: if they are another edition's, the swap fails. */
    while ((word & (WORD_LEVEL | WORD_WAITING)) == 0 &&
           weir__word_bytes(word) + bytes <= governor->budget.enter_bytes[WEIR_LEVEL_SOFT]) {
        uint64_t extra = charge_extra_now(governor, word, bytes, extra_max);
        if (!weir__governor_swap(governor, &word, bytes + extra, WEIR_LEVEL_CALM))
            continue;
        weir__account_balance_add(account, bytes);
        (void)weir__nodes_give(nodes, account->node, extra_max - extra);
        if (extra > 0)
            weir__lease_fill(account, extra);
        else
            weir__lease_open(account);
        return true;
    }
    (void)weir__nodes_give(nodes, account->node, bytes + extra_max);
    return false;
}

/* What the lease does not admit. */
static __attribute__((noinline)) int
charge_without_lease(struct weir_account *account, uint64_t bytes, enum weir_verdict *ret_verdict)
{
    if (bytes > weir__account_request_max(account))
        return -EINVAL;

    bool queued = weir__account_has_queued(account);
    uint64_t charged = account_audited(account);

    if (!queued && bytes <= weir__account_room(account, charged) &&
        charge_calmly(account, bytes, charged)) {
        account_count(account, WEIR_ADMIT);
        *ret_verdict = WEIR_ADMIT;
        return 0;
    }
    *ret_verdict = charge_slowly(account, bytes);
    return 0;
}

/* Charge @bytes to the lease. False: it has not so many, and nothing has changed. */
static inline bool charge_lease(struct weir_account *account, uint64_t bytes)
{
    bool has = false;

    if (WEIR_UNLIKELY(weir__lease_is_closed(account)))
        return false;
    if (weir__lease_enter(account)) {
        uint64_t spent = weir__relaxed(&account->spent_bytes);
        has = bytes <= weir__relaxed(&account->drawn_bytes) - spent;
        if (WEIR_LIKELY(has))
            atomic_store_explicit(&account->spent_bytes, spent + bytes, memory_order_release);
    }
    if (WEIR_UNLIKELY(!weir__lease_leave(account)))
        weir__lease_left(account);
    return has;
}

static inline void account_count_spent(struct weir_account *account)
{
    int64_t above = (int64_t)(weir__relaxed(&account->spent_bytes) - account->peak_mark_bytes);

    if (WEIR_UNLIKELY(above > 0))
        weir__account_note_peak(account);
}

int weir_account_charge(struct weir_account *account, size_t bytes, enum weir_verdict *ret_verdict)
{
    WEIR_ASSERT(weir__account_is_mine(account));
    if (WEIR_UNLIKELY(!charge_lease(account, bytes)))
        return charge_without_lease(account, bytes, ret_verdict);

    *ret_verdict = WEIR_ADMIT;
    weir__count_more(&account->verdict_count[WEIR_ADMIT], 1);
    account_count_spent(account);
    return 0;
}

static void charge_forced_without_lease(struct weir_account *account, uint64_t bytes)
{
    WEIR_CHECK(bytes <= BUDGET_BYTES_LIMIT);

    uint64_t charged = account_audited(account);

    if (bytes > weir__account_room(account, charged)) { /* L5 */
        weir__governor_lock(account->governor);
        weir__lease_close(account);
        weir__governor_unlock(account->governor);
    }
    if (charge_calmly(account, bytes, charged))
        return;
    account_force(account, bytes);
    weir__account_balance_add(account, bytes);
}

void weir_account_charge_forced(struct weir_account *account, size_t bytes)
{
    WEIR_ASSERT(weir__account_is_mine(account));
    if (charge_lease(account, bytes)) {
        account_count_spent(account);
    } else {
        charge_forced_without_lease(account, bytes);
        weir__account_note_peak(account);
    }
    weir__count_more(&account->forced_bytes, bytes);
}

/* More than is charged, or no open lease. */
static __attribute__((noinline)) void refund_without_lease(struct weir_account *account,
                                                           uint64_t bytes)
{
    uint64_t refundable = account_audited(account) - account->reserve_bytes;
    uint64_t back = weir__min(bytes, refundable);
    bool queued = weir__account_has_queued(account);

    if (WEIR_UNLIKELY(back != bytes))
        weir__count_more(&account->over_refund_count, 1);
    weir__account_balance_add(account, 0 - back);
    weir__count_more(&account->returned_bytes, back);
    weir__governor_give(account->governor, account->node, back,
                        queued ? WORD_WAITING | WORD_CAPPED : WORD_WAITING);
}

/* Refund @bytes to the lease. False: it is closed, and nothing has changed. */
static inline bool refund_lease(struct weir_account *account, uint64_t bytes)
{
    uint64_t excess = 0;

    if (WEIR_UNLIKELY(weir__lease_is_closed(account)))
        return false;

    bool open = weir__lease_enter(account);

    if (WEIR_LIKELY(open)) {
        uint64_t spent = weir__relaxed(&account->spent_bytes) - bytes;
        uint64_t limit = weir__relaxed(&account->lease_limit_bytes);
        uint64_t lease = weir__relaxed(&account->drawn_bytes) - spent;
        atomic_store_explicit(&account->spent_bytes, spent, memory_order_release);
        if (WEIR_UNLIKELY(lease > limit)) {
            excess = lease - limit / 2;
            atomic_store_explicit(&account->drawn_bytes, spent + limit / 2, memory_order_relaxed);
        }
    }
    if (WEIR_UNLIKELY(!weir__lease_leave(account)))
        weir__lease_left(account);
    if (WEIR_UNLIKELY(excess > 0))
        weir__governor_give(account->governor, account->node, excess, WORD_WAITING);
    return open;
}

void weir_account_refund(struct weir_account *account, size_t bytes)
{
    WEIR_ASSERT(weir__account_is_mine(account));

    /* A branch and no minimum: what follows does not wait for this sum. */
    int64_t refundable = weir__account_net(account) - (int64_t)account->reserve_bytes;
    bool plain = refundable >= 0 && bytes <= (uint64_t)refundable;

    if (WEIR_UNLIKELY(!plain) || WEIR_UNLIKELY(!refund_lease(account, bytes)))
        refund_without_lease(account, bytes);
}

/*
 * The account may be closed by its owner as soon as it sees these bytes gone:
 * after the swap only the governor is touched.
 */
void weir_account_refund_remote(struct weir_account *account, size_t bytes)
{
    struct weir_governor *governor = account->governor;
    uint64_t remote = atomic_load_explicit(&account->remote_bytes, memory_order_acquire);
    uint32_t node = account->node;
    bool counted = false;
    uint64_t back;

    do {
        uint64_t balance = atomic_load_explicit(&account->balance_bytes, memory_order_acquire);
        uint64_t spent = atomic_load_explicit(&account->spent_bytes, memory_order_acquire);
        uint64_t granted = atomic_load_explicit(&account->granted_bytes, memory_order_acquire);
        int64_t refundable = (int64_t)(balance + spent + granted - remote - account->reserve_bytes);
        back = weir__min(bytes, refundable > 0 ? (uint64_t)refundable : 0);
        if (back != bytes && !counted)
            atomic_fetch_add_explicit(&account->remote_over_refund_count, 1, memory_order_relaxed);
        counted = counted || back != bytes;
    } while (!atomic_compare_exchange_strong_explicit(&account->remote_bytes, &remote,
                                                      remote + back, memory_order_acq_rel,
                                                      memory_order_acquire));
    weir__governor_give(governor, node, back, WORD_WAITING | WORD_CAPPED);
}

uint64_t weir_account_flush_bytes(const struct weir_account *account)
{
    const struct weir_governor *governor = account->governor;
    uint64_t word = weir__relaxed(&governor->word);
    uint64_t charged = weir__account_charged(account);
    uint64_t own = charged - weir__min(charged, account->reserve_bytes);

    return weir__min(own, weir__budget_excess(&governor->budget, weir__word_level(word),
                                              weir__word_bytes(word)));
}

uint64_t weir_account_delay_ns(const struct weir_account *account)
{
    const struct weir_governor *governor = account->governor;

    return weir__budget_delay_ns(&governor->budget,
                                 weir__word_bytes(weir__relaxed(&governor->word)));
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
