/* SPDX-License-Identifier: MIT */
/*
 * lease - bytes that an account has ahead, so that it need not ask for each
 *
 *      word    | used by A | lease of A | used by B | lease of B |  free  |
 *                        <-->                     <-->
 *                  charge and refund move this border: no atomic instruction
 *
 * What is in leases is in the word as if it were used, so granted charges stay at
 * or below hard whatever leases do. An empty lease is filled to its half, a full
 * one emptied to its half, so a border that swings around anything touches the word
 * only when it has gone half a lease.
 *
 * Near soft, and while somebody waits for memory, bytes that nobody uses are too
 * dear: whoever finds it so takes all leases away at once, without the help of
 * their owners. The two meet as in Dekker's algorithm, whose expensive half is given
 * to the one that is rare:
 *
 *      owner, some nanoseconds       taker, some microseconds, under the lock
 *      busy = 1                      closed = 1 for all accounts
 *      closed? then not              a barrier that all running threads pass
 *      spent += bytes                not busy? then drawn = spent, and the
 *      busy = 0                      difference is ours
 *      closed? then give back
 *
 * A lease is the difference of two numbers, so that a charge stores only one of
 * them: the time of a charge and its refund is that of passing one number on.
 *
 * After the barrier an owner that was not yet busy sees closed and keeps away; one
 * that is busy sees it at the end, and brings what it has. Nobody waits for anybody,
 * also not for an owner that lost its core in between.
 *
 *   L1  a lease changes only by its owner between enter and leave while it is open,
 *       or under the lock while it is closed
 *   L2  the word holds all that is charged, and all that is in leases
 *   L3  while WAITING is set or the level is above calm, leases are closed: no refund
 *       goes where a waiter does not look
 *   L4  a lease is at most its share, and the shares of all accounts are at most
 *       1 % of the limit
 *   L5  what is charged and in the lease is at most the cap together; an account
 *       with a queue of its own, or that is forced above its cap, has no lease
 *
 * Where the kernel has no such barrier there are no leases.
 */
#include "base/check.h"
#include "base/sys.h"
#include "governor/ledger.h"

#define LEASE_PART_COUNT_MIN 8
#define LEASE_BYTES_MIN      4096 /* less is not worth a line */

/* ---- Taking away (under the lock) ---------------------------------------------- */

/* All that is in @account's lease, which is closed and not busy. */
static uint64_t lease_take(struct weir_account *account)
{
    uint64_t bytes = weir__lease_bytes(account);

    atomic_store_explicit(&account->drawn_bytes, weir__relaxed(&account->spent_bytes),
                          memory_order_relaxed);
    return bytes;
}

/* Close them all, and put what was in them back into the word. */
static void leases_recall(struct weir_governor *governor)
{
    bool needs_barrier = false;
    uint64_t bytes = 0;

    WEIR_LIST_FOREACH (link, &governor->accounts) {
        struct weir_account *account = WEIR_CONTAINER_OF(link, struct weir_account, link);
        if (!weir__lease_is_closed(account) && !weir__account_is_mine(account))
            needs_barrier = true;
        atomic_store_explicit(&account->lease_is_closed, 1, memory_order_relaxed);
    }
    if (needs_barrier)
        weir__sys_barrier();
    WEIR_LIST_FOREACH (link, &governor->accounts) {
        struct weir_account *account = WEIR_CONTAINER_OF(link, struct weir_account, link);
        if (atomic_load_explicit(&account->lease_is_busy, memory_order_acquire) != 0)
            continue;
        uint64_t lease = lease_take(account);
        (void)weir__nodes_give(&governor->nodes, account->node, lease);
        bytes += lease;
    }
    if (bytes > 0)
        atomic_fetch_sub_explicit(&governor->word, bytes << WORD_SHIFT, memory_order_acq_rel);
}

void weir__leases_close(struct weir_governor *governor)
{
    atomic_fetch_or_explicit(&governor->word, WORD_CLOSED, memory_order_acq_rel);
    leases_recall(governor);
}

/*
 * Only after something came back: whoever closed them under the lock finds them
 * closed until he has done what he wanted.
 */
void weir__leases_reopen(struct weir_governor *governor)
{
    uint64_t word = weir__relaxed(&governor->word);

    if ((word & (WORD_LEVEL | WORD_WAITING)) == 0 && (word & WORD_CLOSED) != 0 &&
        weir__word_bytes(word) <= governor->budget.leave_bytes[WEIR_LEVEL_CALM])
        atomic_fetch_and_explicit(&governor->word, ~WORD_CLOSED, memory_order_acq_rel);
}

void weir__leases_share(struct weir_governor *governor)
{
    uint32_t count = governor->lease_part_count;

    while (count < governor->account_count || count < LEASE_PART_COUNT_MIN)
        count = count > 0 ? 2 * count : 1;
    governor->lease_part_count = count;

    uint64_t share = governor->budget.lease_bytes / count;

    if (share < LEASE_BYTES_MIN || !governor->has_leases)
        share = 0;
    if (share == weir__relaxed(&governor->lease_share_bytes))
        return;
    leases_recall(governor); /* L4: none keeps what was its share before */
    atomic_store_explicit(&governor->lease_share_bytes, share, memory_order_relaxed);
}

uint64_t weir__leases_sum(const struct weir_governor *governor)
{
    uint64_t bytes = 0;

    WEIR_LIST_FOREACH (link, &governor->accounts)
        bytes += weir__lease_kept(WEIR_CONTAINER_OF(link, struct weir_account, link));
    return bytes;
}

/* ---- The owner's side ----------------------------------------------------------- */

void weir__lease_close(struct weir_account *account)
{
    WEIR_ASSERT(weir__account_is_mine(account));
    atomic_store_explicit(&account->lease_is_closed, 1, memory_order_relaxed);

    uint64_t bytes = lease_take(account);

    (void)weir__nodes_give(&account->governor->nodes, account->node, bytes);
    if (bytes > 0)
        atomic_fetch_sub_explicit(&account->governor->word, bytes << WORD_SHIFT,
                                  memory_order_acq_rel);
}

void weir__lease_open(struct weir_account *account)
{
    struct weir_governor *governor = account->governor;

    if (!weir__lease_is_closed(account) || weir__account_has_queued(account) ||
        weir__account_room(account, weir__account_charged(account)) == 0 ||
        !weir__leases_are_out(governor, weir__relaxed(&governor->word)))
        return;

    weir__governor_lock(governor);
    if (weir__leases_are_out(governor, weir__relaxed(&governor->word))) { /* L3 */
        WEIR_CHECK(weir__lease_bytes(account) == 0);
        atomic_store_explicit(&account->lease_limit_bytes,
                              weir__relaxed(&governor->lease_share_bytes), memory_order_relaxed);
        atomic_store_explicit(&account->lease_is_closed, 0, memory_order_relaxed);
    }
    weir__governor_unlock(governor);
}

void weir__lease_surrender(struct weir_account *account)
{
    struct weir_governor *governor = account->governor;

    weir__governor_lock(governor);
    weir__lease_close(account);
    weir__governor_settle(governor);
    weir__governor_grant(governor);
    weir__governor_tell_and_unlock(governor);
}

void weir__lease_drop(struct weir_account *account)
{
    uint64_t bytes = 0;

    if (weir__lease_enter(account))
        bytes = lease_take(account);
    if (!weir__lease_leave(account))
        weir__lease_left(account);
    weir__governor_give(account->governor, account->node, bytes, WORD_WAITING);
}

void weir__lease_fill(struct weir_account *account, uint64_t bytes)
{
    bool open = weir__lease_enter(account);

    if (open)
        atomic_store_explicit(&account->drawn_bytes, weir__relaxed(&account->drawn_bytes) + bytes,
                              memory_order_relaxed);
    if (!weir__lease_leave(account))
        weir__lease_left(account);
    if (!open)
        weir__governor_give(account->governor, account->node, bytes, WORD_WAITING);
}

void weir__lease_tick(struct weir_account *account)
{
    uint64_t spent = weir__relaxed(&account->spent_bytes);
    uint64_t admit_count = weir__relaxed(&account->verdict_count[WEIR_ADMIT]);
    bool idle = spent == account->tick_spent_bytes && admit_count == account->tick_admit_count;

    account->tick_spent_bytes = spent;
    account->tick_admit_count = admit_count;
    if (idle)
        weir__lease_drop(account);
}
