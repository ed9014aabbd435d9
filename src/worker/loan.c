/* SPDX-License-Identifier: MIT */
/*
 * loan - the part of a region's memory that goes back when the governor asks
 *
 *      |------ least ------|----------- lent -----------|- not charged -|
 *      0                reserve       wish .. charged                 whole
 *
 * Region and governor are strangers: here the owner of both turns what the one asks
 * for into what the other can do. On the way down the region is told first, and what
 * its bound has fallen by is refunded, turn after turn. On the way up the account is
 * charged first.
 *
 * Who is asked begins at most what the disk should manage while the governor waits:
 * it asks again when that has come, unless others were faster. A promise that was
 * broken makes the next ones cautious.
 *
 * A chunk is summed by several polls before it is written, and nothing wakes a worker
 * for that. So on the way down some turns follow each other without a sleep.
 *
 * To grow is never urgent. So it is done by steps, while nobody waits, and only as far
 * as use stays well below soft, for everybody's sake: of the machine, of the node, of
 * the account's cap.
 *
 *   N1  charged_bytes is at least what bounds the region's memory
 *   N2  least <= wish <= charged <= whole
 */
#include "worker/loan.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/clock.h"

#define LOAN_REGION_BYTES_DEFAULT   (UINT64_C(1) << 30)
#define LOAN_RESIDENT_BYTES_DEFAULT (UINT64_C(64) << 20)
#define LOAN_COST                   100
#define LOAN_GRAIN_BYTES            (UINT64_C(256) << 10)
#define LOAN_STEP_BYTES             (UINT64_C(2) << 20)
#define LOAN_STEPS                  16
#define LOAN_WRITE_BYTES            (UINT64_C(8) << 20) /* that a disk should write in time */
#define LOAN_GROW_NS                UINT64_C(10000000)  /* between two steps */
#define LOAN_QUIET_NS               UINT64_C(500000000) /* after it was asked */
#define LOAN_TURNS                  64                  /* in a row, without a sleep */
#define LOAN_PROMPT_NS              UINT64_C(100000000) /* the governor's patience */

/* ---- What there is -------------------------------------------------------- */

/* The defaults that region.h states: what is charged must be what is opened. */
static uint64_t loan_resident_bytes(const struct weir_region_config *config)
{
    return config->resident_bytes_max != 0 ? config->resident_bytes_max
                                           : LOAN_RESIDENT_BYTES_DEFAULT;
}

static uint64_t loan_file_bytes(const struct weir_region_config *config)
{
    return config->bytes_max != 0 ? config->bytes_max : LOAN_REGION_BYTES_DEFAULT;
}

/* Beside its file a region has buffers, to fetch and to clean: less than a quarter of it. */
static uint64_t loan_whole_bytes(const struct weir_region_config *config)
{
    return weir__min(loan_resident_bytes(config), loan_file_bytes(config) / 4 * 5);
}

bool weir__loan_is_possible(const struct weir_region_config *config)
{
    if (config->directory == NULL || config->memory_backed || config->resident_bytes_min == 0)
        return false;
    return config->resident_bytes_min <
           weir__min(loan_resident_bytes(config), loan_file_bytes(config));
}

uint64_t weir__loan_reserve(const struct weir_region_config *config)
{
    if (config->directory == NULL)
        return 0;
    if (config->memory_backed) /* there, what left the memory is still in it */
        return loan_file_bytes(config);
    if (weir__loan_is_possible(config))
        return config->resident_bytes_min;
    return weir__min(loan_resident_bytes(config), loan_file_bytes(config));
}

static void loan_wish(struct weir__loan *loan, uint64_t bytes)
{
    WEIR_ASSERT(bytes >= loan->least_bytes && bytes <= loan->charged_bytes); /* N2 */
    int r = weir_region_set_resident(loan->region, bytes);
    WEIR_CHECK(r == 0);
    loan->wish_bytes = bytes;
}

/* ---- Down ----------------------------------------------------------------- */

/* What the bound has fallen by comes back. */
static uint64_t loan_refund(struct weir__loan *loan)
{
    struct weir_region_stats stats;

    weir_region_stats(loan->region, &stats);
    WEIR_CHECK(stats.resident_bytes_max <= loan->charged_bytes); /* N1 */

    uint64_t bytes = loan->charged_bytes - stats.resident_bytes_max;
    if (bytes == 0)
        return 0;
    weir_account_refund(loan->account, bytes);
    loan->charged_bytes -= bytes;
    loan->given_bytes += bytes;
    return bytes;
}

/* How much more is to go, beside what is on its way: what should come in time. */
static uint64_t loan_begin(const struct weir__loan *loan, const struct weir_region_stats *stats,
                           uint64_t bytes)
{
    uint64_t pending = loan->charged_bytes - loan->wish_bytes;
    uint64_t most = stats->resident_bytes_max - stats->dirty_bytes + LOAN_WRITE_BYTES;

    if (bytes <= pending || most <= pending)
        return 0;
    bytes = weir__round_up(weir__min(bytes, loan->whole_bytes) - pending, LOAN_GRAIN_BYTES);
    return weir__min(weir__min(bytes, most - pending), loan->wish_bytes - loan->least_bytes);
}

static uint64_t loan_reclaim(struct weir_reclaimer *reclaimer, uint64_t bytes)
{
    struct weir__loan *loan = WEIR_CONTAINER_OF(reclaimer, struct weir__loan, reclaimer);
    struct weir_region_stats stats;

    weir_region_stats(loan->region, &stats);
    loan->was_asked = true;
    loan->turns_left = LOAN_TURNS;
    loan->asked_ns = weir__clock_ns();
    loan->is_slow |= reclaimer->broken_count != loan->broken_seen;
    loan->broken_seen = reclaimer->broken_count;

    uint64_t more = loan_begin(loan, &stats, bytes);
    if (more > 0)
        loan_wish(loan, loan->wish_bytes - more);
    uint64_t pending = loan->charged_bytes - loan->wish_bytes;
    uint64_t came = loan_refund(loan);
    if (loan->is_slow || stats.degraded)
        return came;
    uint64_t clean = stats.resident_bytes - stats.dirty_bytes - stats.fetched_bytes;
    return weir__min(pending, came + clean + LOAN_WRITE_BYTES);
}

/* ---- Up ------------------------------------------------------------------- */

/* Well below @soft_bytes: what has just been given back is not taken again. */
static bool loan_is_low(uint64_t use_bytes, uint64_t bytes, uint64_t soft_bytes)
{
    return use_bytes + bytes <= soft_bytes / 8 * 7;
}

static bool loan_has_room(const struct weir__loan *loan, uint64_t bytes)
{
    struct weir_node_stats nodes[WEIR_NODES_MAX];
    struct weir_governor_stats stats;
    struct weir_account_stats account;

    weir_governor_stats(loan->governor, &stats);
    if (stats.level != WEIR_LEVEL_CALM || stats.waiter_count > 0 ||
        !loan_is_low(stats.charged_bytes, bytes, stats.soft_bytes))
        return false;
    weir_account_stats(loan->account, &account);
    if (loan->account_max > 0 && account.charged_bytes + bytes > loan->account_max)
        return false;
    if (account.node >= weir_governor_nodes(loan->governor, nodes, WEIR_NODES_MAX))
        return true;

    const struct weir_node_stats *node = &nodes[account.node];
    __uint128_t soft_bytes = (__uint128_t)node->bytes_max * stats.soft_bytes / stats.bytes_max;
    return node->borrowed_bytes == 0 &&
           loan_is_low(node->charged_bytes, bytes, (uint64_t)soft_bytes);
}

/* One step; false: not now. */
static bool loan_grow(struct weir__loan *loan)
{
    uint64_t bytes = weir__min(loan->step_bytes, loan->whole_bytes - loan->wish_bytes);
    enum weir_verdict verdict = WEIR_WAIT;

    if (bytes == 0 || !loan_has_room(loan, bytes))
        return false;
    int r = weir_account_charge(loan->account, bytes, &verdict);
    if (r < 0 || verdict == WEIR_SPILL || verdict == WEIR_WAIT)
        return false;
    if (verdict == WEIR_FLUSH) { /* others were faster */
        weir_account_refund(loan->account, bytes);
        return false;
    }
    loan->charged_bytes += bytes;
    loan_wish(loan, loan->wish_bytes + bytes);
    return true;
}

/* What pins hold up need not go any more: the region has it for its puts again. */
static void loan_give_up(struct weir__loan *loan)
{
    if (loan_has_room(loan, 0))
        loan_wish(loan, loan->charged_bytes);
}

/* ---- Turns ---------------------------------------------------------------- */

bool weir__loan_was_asked(struct weir__loan *loan)
{
    bool was_asked = loan->was_asked;

    loan->was_asked = false;
    return was_asked;
}

bool weir__loan_advance(struct weir__loan *loan)
{
    if (WEIR_LIKELY(loan->charged_bytes == loan->whole_bytes &&
                    loan->wish_bytes == loan->whole_bytes))
        return false;

    uint64_t now_ns = weir__clock_ns();

    if (loan->charged_bytes > loan->wish_bytes) {
        if (loan_refund(loan) > 0)
            loan->turns_left = LOAN_TURNS;
        if (loan->charged_bytes == loan->wish_bytes && now_ns - loan->asked_ns < LOAN_PROMPT_NS)
            loan->is_slow = false;
        if (loan->turns_left > 0) {
            loan->turns_left--;
            return true;
        }
    }
    if (now_ns < loan->grow_ns || now_ns - loan->asked_ns < LOAN_QUIET_NS)
        return false;
    loan->grow_ns = now_ns + LOAN_GROW_NS;
    if (loan->charged_bytes > loan->wish_bytes)
        loan_give_up(loan);
    else
        (void)loan_grow(loan);
    return false;
}

/* ---- Lifecycle ------------------------------------------------------------ */

void weir__loan_open(struct weir__loan *loan, struct weir_governor *governor,
                     struct weir_account *account, uint64_t account_max, struct weir_region *region,
                     const struct weir_region_config *config)
{
    struct weir_region_stats stats;
    uint64_t least = weir__loan_reserve(config);
    uint64_t whole = loan_whole_bytes(config);

    weir_region_stats(region, &stats);
    *loan = (struct weir__loan){
        .governor = governor,
        .account = account,
        .region = region,
        .reclaimer = {.name = "region", .cost = LOAN_COST, .reclaim = loan_reclaim},
        .account_max = account_max,
        .least_bytes = least,
        .whole_bytes = whole,
        .step_bytes = weir__max(weir__round_down((whole - least) / LOAN_STEPS, LOAN_STEP_BYTES),
                                LOAN_STEP_BYTES),
        .charged_bytes = least,
    };
    loan_wish(loan, least);
    while (loan_grow(loan))
        continue;
    /* What a file system keeps in memory all the same is not given back by dropping it. */
    loan->is_registered = stats.bounded;
    if (stats.bounded)
        weir_account_add_reclaimer(account, &loan->reclaimer);
}

void weir__loan_close(struct weir__loan *loan)
{
    if (loan->governor == NULL)
        return;
    if (loan->is_registered)
        weir_account_remove_reclaimer(loan->account, &loan->reclaimer);
    weir_account_refund(loan->account, loan->charged_bytes - loan->least_bytes);
    *loan = (struct weir__loan){.governor = NULL};
}
