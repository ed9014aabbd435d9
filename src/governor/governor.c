/* SPDX-License-Identifier: MIT */
/*
 * governor - the life of governors and accounts, and their figures
 *
 *      governor.c     life, figures          limits.c   what the machine has
 *      charge.c       charge, refund         budget.c   what a sum means
 *      wait.c         wait, cancel, poll     queue.c    whose turn it is
 *      reclaim.c      who is asked           nodes.c    where it lies
 *      lease.c        what is ahead
 *                 \      |      /
 *                   ledger.[ch]   the word, the books, grants; the invariants
 *
 * Figures are read under the lock, but charges go on without it: each figure is
 * exact, those that charges change are of slightly different moments.
 */
#include <weir/governor.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/sys.h"
#include "governor/ledger.h"
#include "governor/limits.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define OUTSIDE_LOWERED_MAX  30
#define OUTSIDE_LOWER_POINTS 5
#define OUTSIDE_RAISE_POINTS 1

/* ---- Lifecycle --------------------------------------------------------------- */

uint64_t weir_governor_machine_bytes(void)
{
    int error;

    return weir__limits_bytes("", weir__sys_ram_bytes(), &error);
}

/* What percentages in @config are of; 0 or why nobody tells. */
static int governor_read_machine(const struct weir_governor_config *config, uint64_t *ret_bytes,
                                 int *ret_error)
{
    *ret_bytes = 0;
    *ret_error = 0;
    if (config != NULL && config->bytes_max != 0)
        return 0;
    *ret_bytes = weir__limits_bytes("", weir__sys_ram_bytes(), ret_error);
    if (*ret_bytes != 0)
        return 0;
    return *ret_error < 0 ? *ret_error : -EOPNOTSUPP;
}

/* *ret_error, unless there is one already: nodes do not matter because they cannot be read. */
static int governor_read_nodes(const struct weir_governor_config *config,
                               const struct weir__budget *budget, struct weir__nodes *ret_nodes,
                               int *ret_error)
{
    struct weir__topology topology = {.count = 1};
    int r = 0;

    if (config == NULL || config->node_count == 0)
        r = weir__topology_read("", &topology);
    if (*ret_error == 0)
        *ret_error = r;
    return weir__nodes_init(ret_nodes, config, &topology, budget);
}

/* What a look at the machine needs again; the nodes are not ours. */
static void governor_keep_config(struct weir_governor *governor,
                                 const struct weir_governor_config *config)
{
    governor->config = config != NULL ? *config : (struct weir_governor_config){0};
    governor->config.nodes = NULL;
    governor->config.node_count = 0;
    governor->lowered_percent = 0;
}

int weir_governor_create(const struct weir_governor_config *config,
                         struct weir_governor **ret_governor)
{
    struct weir__heap heap = {0};
    struct weir__budget budget;
    struct weir__nodes nodes;
    uint64_t machine_bytes;
    int error;
    int r = governor_read_machine(config, &machine_bytes, &error);

    if (r == 0)
        r = weir__budget_init(&budget, config, machine_bytes);
    if (r == 0)
        r = governor_read_nodes(config, &budget, &nodes, &error);
    if (r < 0)
        return r;

    struct weir_governor *governor =
        weir__heap_alloc_aligned(&heap, sizeof(*governor), GOVERNOR_LINE_BYTES);
    if (governor == NULL)
        return -ENOMEM;

    memset(governor, 0, sizeof(*governor));
    governor->heap = heap;
    weir__budget_publish(&governor->budget, &budget);
    governor->nodes = nodes;
    governor->outside.error = error;
    governor->outside.limit_bytes = machine_bytes;
    governor_keep_config(governor, config);
    atomic_init(&governor->episode, 1);
    atomic_init(&governor->reclaim_look_ns, UINT64_MAX);
    governor->reclaim_round = 1;
    atomic_init(&governor->level_since_ns, weir__clock_ns());
    weir__list_init(&governor->accounts);
    weir__list_init(&governor->untold);
    weir__queue_init(&governor->queue);
    r = pthread_mutex_init(&governor->lock, NULL);
    if (r != 0) {
        weir__heap_free(&heap, governor, sizeof(*governor));
        return -r;
    }
    governor->has_leases = weir__sys_announce_barrier() == 0;
    weir__leases_share(governor);
    *ret_governor = governor;
    return 0;
}

static uint64_t governor_reserve_bytes(const struct weir_governor *governor)
{
    uint64_t bytes = 0;

    WEIR_LIST_FOREACH (link, &governor->accounts)
        bytes += WEIR_CONTAINER_OF(link, struct weir_account, link)->reserve_bytes;
    return bytes;
}

int weir_governor_set_limits(struct weir_governor *governor,
                             const struct weir_governor_config *config)
{
    struct weir__budget budget;
    struct weir__nodes nodes;
    uint64_t machine_bytes;
    int error;
    int r = governor_read_machine(config, &machine_bytes, &error);

    if (r == 0)
        r = weir__budget_init(&budget, config, machine_bytes);

    bool has_nodes = governor->nodes.count > 0 || (config != NULL && config->node_count > 1);

    nodes.count = 0;
    if (r == 0 && has_nodes)
        r = governor_read_nodes(config, &budget, &nodes, &error);
    if (r == 0 && nodes.count != governor->nodes.count)
        r = -EINVAL;
    if (r < 0)
        return r;

    weir__governor_lock(governor);
    if (governor_reserve_bytes(governor) > budget.bytes_max)
        r = -EDQUOT;
    if (r == 0) {
        governor_keep_config(governor, config);
        if (machine_bytes != 0) {
            governor->outside.limit_bytes = machine_bytes;
            governor->outside.error = error;
        }
        weir__governor_change_budget(governor, &budget, &nodes);
    }
    weir__governor_tell_and_unlock(governor);
    return r;
}

/* ---- Outside --------------------------------------------------------------------- */

/* By how much the limit is lowered now, in per cent of it. */
static uint32_t outside_lowered(const struct weir_governor *governor,
                                const struct weir__outside *outside)
{
    uint32_t threshold = governor->config.pressure_percent * 100;
    uint32_t lowered = governor->lowered_percent;

    if (threshold == 0)
        return 0;
    if (outside->pressure_some >= threshold)
        return (uint32_t)weir__min(lowered + OUTSIDE_LOWER_POINTS, OUTSIDE_LOWERED_MAX);
    if (outside->pressure_some < threshold / 2 && outside->error == 0)
        return lowered - (uint32_t)weir__min(lowered, OUTSIDE_RAISE_POINTS);
    return lowered;
}

/* Under the lock: what cannot be read may be lower than what was; never believe it is higher. */
static uint64_t outside_limit(const struct weir_governor *governor,
                              const struct weir__outside *outside)
{
    uint64_t known_bytes = governor->outside.limit_bytes;

    if (outside->error == 0 || known_bytes == 0)
        return outside->limit_bytes;
    return outside->limit_bytes != 0 ? weir__min(outside->limit_bytes, known_bytes) : known_bytes;
}

/* Under the lock: the limit follows the machine and its pressure. */
static void governor_follow(struct weir_governor *governor, const struct weir__outside *outside)
{
    struct weir_governor_config config = governor->config;
    struct weir__budget budget;
    uint32_t lowered = outside_lowered(governor, outside);

    if (weir__budget_init(&budget, &config, outside->limit_bytes) < 0)
        return;
    config.bytes_max =
        weir__max(governor_reserve_bytes(governor), budget.bytes_max / 100 * (100 - lowered));
    if (lowered == 0)
        config.bytes_max = weir__max(governor_reserve_bytes(governor), budget.bytes_max);
    governor->lowered_percent = lowered;
    if (config.bytes_max == governor->budget.bytes_max)
        return;
    if (weir__budget_init(&budget, &config, 0) == 0)
        weir__governor_change_budget(governor, &budget, NULL);
}

void weir__governor_look_at(struct weir_governor *governor, const char *root, uint64_t ram_bytes,
                            struct weir_governor_outside *ret_outside)
{
    struct weir__outside outside;

    weir__limits_look(root, ram_bytes, &outside);

    weir__governor_lock(governor);
    outside.limit_bytes = outside_limit(governor, &outside);
    governor_follow(governor, &outside);

    uint64_t use_bytes = weir__word_bytes(weir__relaxed(&governor->word));
    uint64_t lease_bytes = weir__leases_sum(governor);

    use_bytes -= weir__min(use_bytes, lease_bytes);
    governor->outside = (struct weir_governor_outside){
        .limit_bytes = outside.limit_bytes,
        .usage_bytes = outside.usage_bytes,
        .rss_bytes = outside.rss_bytes,
        .drift_bytes = outside.rss_bytes != 0 ? (int64_t)(outside.rss_bytes - use_bytes) : 0,
        .pressure_some = outside.pressure_some,
        .pressure_full = outside.pressure_full,
        .lowered_percent = governor->lowered_percent,
        .look_ns = weir__clock_ns(),
        .error = outside.error,
    };
    if (ret_outside != NULL)
        *ret_outside = governor->outside;
    weir__governor_tell_and_unlock(governor);
}

void weir_governor_look(struct weir_governor *governor, struct weir_governor_outside *ret_outside)
{
    weir__governor_look_at(governor, "", weir__sys_ram_bytes(), ret_outside);
}

/* ---- The end of a governor ------------------------------------------------------- */

void weir_governor_destroy(struct weir_governor *governor)
{
    if (governor == NULL)
        return;

    struct weir__heap heap = governor->heap;

    WEIR_CHECK(governor->account_count == 0);
    WEIR_CHECK(weir__relaxed(&governor->word) >> WORD_SHIFT == 0);
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
    account->node = config->node > 0 ? config->node - 1 : weir__nodes_here(&governor->nodes);
    account->spillable = config->spillable;
    account->transient = config->transient;
    account->has_room = config->has_room;
    account->notify = config->notify;
    account->context = config->context;
    account->deadline_min_ns = UINT64_MAX;
    atomic_init(&account->lease_is_closed, 1);
    if (config->name != NULL)
        snprintf(account->name, sizeof(account->name), "%s", config->name);
    weir__list_init(&account->link);
    weir__list_init(&account->untold_link);
    weir__lane_init(&account->lane);
    account->lane.node = account->node;
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
    if (config->node > weir__max(governor->nodes.count, 1))
        return -EINVAL;
    struct weir_account *account = account_new(governor, config);
    if (account == NULL)
        return -ENOMEM;

    int r = account_init_changed(account);
    if (r < 0) {
        account_delete(account);
        return r;
    }

    weir__governor_lock(governor);
    bool fits = account->reserve_bytes <= governor->budget.bytes_max &&
                weir__account_take(account, account->reserve_bytes);
    if (fits) {
        weir__account_balance_add(account, account->reserve_bytes);
        weir__account_note_peak(account);
        weir__list_append(&governor->accounts, &account->link);
        governor->account_count++;
        weir__leases_share(governor);
    }
    weir__governor_unlock(governor);

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

    WEIR_ASSERT(weir__account_is_mine(account));
    weir__governor_lock(governor);
    WEIR_CHECK(account->lane.first == NULL);
    WEIR_CHECK(account->done_first == NULL);
    WEIR_CHECK(account->reclaimer_count == 0);
    weir__list_remove(&account->untold_link);
    while (account->telling_count > 0) /* G6 */
        pthread_cond_wait(&account->changed, &governor->lock);
    weir__lease_close(account);
    weir__list_remove(&account->link);
    governor->account_count--;
    for (int verdict = 0; verdict <= WEIR_WAIT; verdict++)
        governor->closed_verdict_count[verdict] += weir__relaxed(&account->verdict_count[verdict]);
    weir__governor_unlock(governor);

    /* Net, not charged: if over-refunds have raced, this puts the difference back. */
    weir__governor_give(governor, account->node, (uint64_t)weir__account_net(account),
                        WORD_WAITING);
    pthread_cond_destroy(&account->changed);
    account_delete(account);
}

/* ---- Statistics --------------------------------------------------------------- */

/* Under the lock: what holds @waiter now. */
static enum weir_wait_reason account_reason(const struct weir_account *account,
                                            const struct weir_waiter *waiter)
{
    const struct weir_governor *governor = account->governor;
    uint64_t use_bytes = weir__word_bytes(weir__relaxed(&governor->word));

    if (waiter == NULL)
        return WEIR_REASON_NONE;
    if (waiter->bytes > weir__account_room(account, weir__account_charged(account)))
        return WEIR_REASON_CAP;
    if (waiter->bytes > weir__nodes_reach(&governor->nodes, account->node))
        return WEIR_REASON_NODE;
    return weir__budget_fits(&governor->budget, use_bytes, waiter->bytes) ? WEIR_REASON_TURN
                                                                          : WEIR_REASON_LIMIT;
}

static uint64_t waiter_age(const struct weir_waiter *waiter)
{
    uint64_t now_ns = weir__clock_ns();

    return waiter != NULL && now_ns > waiter->since_ns ? now_ns - waiter->since_ns : 0;
}

/* Under the lock. */
static void account_stats(const struct weir_account *account, struct weir_account_stats *ret_stats)
{
    uint64_t charged = weir__account_charged(account);

    *ret_stats = (struct weir_account_stats){
        .charged_bytes = charged,
        .peak_bytes = weir__max(weir__relaxed(&account->peak_bytes), charged),
        .forced_bytes = weir__relaxed(&account->forced_bytes),
        .admit_count = weir__relaxed(&account->verdict_count[WEIR_ADMIT]),
        .flush_count = weir__relaxed(&account->verdict_count[WEIR_FLUSH]),
        .spill_count = weir__relaxed(&account->verdict_count[WEIR_SPILL]),
        .wait_count = weir__relaxed(&account->verdict_count[WEIR_WAIT]),
        .over_refund_count = weir__relaxed(&account->over_refund_count) +
                             weir__relaxed(&account->remote_over_refund_count),
        .waiter_count = atomic_load_explicit(&account->queued_count, memory_order_relaxed),
        .spillable = account->spillable,
        .transient = account->transient,
        .node = account->node,
        .lease_bytes = weir__lease_kept(account),
        .refused_count = account->refused_count,
        .timeout_count = account->timeout_count,
        .waited_ns = account->waited_ns,
        .asked_count = account->asked_count,
        .came_bytes = account->came_bytes,
        .broken_count = account->broken_count,
        .oldest_waiter_ns = waiter_age(account->lane.first),
        .oldest_waiter_bytes = account->lane.first != NULL ? account->lane.first->bytes : 0,
        .reason = account_reason(account, account->lane.first),
    };
    memcpy(ret_stats->name, account->name, sizeof(ret_stats->name));
}

void weir_account_stats(const struct weir_account *account, struct weir_account_stats *ret_stats)
{
    weir__governor_lock(account->governor);
    account_stats(account, ret_stats);
    weir__governor_unlock(account->governor);
}

/* Under the lock: the account whose waiter has waited longest. */
static const struct weir_account *governor_oldest(const struct weir_governor *governor)
{
    const struct weir_account *oldest = NULL;

    WEIR_LIST_FOREACH (link, &governor->accounts) {
        const struct weir_account *account = WEIR_CONTAINER_OF(link, struct weir_account, link);
        if (account->lane.first != NULL &&
            (oldest == NULL || account->lane.first->since_ns < oldest->lane.first->since_ns))
            oldest = account;
    }
    return oldest;
}

/* Under the lock. */
static void governor_stats(struct weir_governor *governor, struct weir_governor_stats *ret_stats)
{
    weir__governor_settle(governor); /* a dwell may have ended unseen */

    uint64_t word = atomic_load_explicit(&governor->word, memory_order_acquire);
    uint64_t lease_bytes = weir__leases_sum(governor);
    uint64_t use_bytes = weir__word_bytes(word) - weir__min(weir__word_bytes(word), lease_bytes);
    uint64_t since_ns = weir__relaxed(&governor->level_since_ns);
    const struct weir_account *oldest = governor_oldest(governor);
    const struct weir_waiter *waiter = oldest != NULL ? oldest->lane.first : NULL;

    *ret_stats = (struct weir_governor_stats){
        .bytes_max = governor->budget.bytes_max,
        .charged_bytes = use_bytes,
        .peak_bytes = weir__max(weir__relaxed(&governor->peak_bytes), weir__word_bytes(word)),
        .soft_bytes = governor->budget.enter_bytes[WEIR_LEVEL_SOFT],
        .spill_bytes = governor->budget.enter_bytes[WEIR_LEVEL_SPILL],
        .level = weir__word_level(word),
        .account_count = governor->account_count,
        .level_change_count = governor->level_change_count,
        .level_since_ns = since_ns,
        .waiter_count = governor->queue.waiter_count,
        .oldest_waiter_ns = waiter_age(waiter),
        .timeout_count = governor->timeout_count,
        .reason = oldest != NULL ? account_reason(oldest, waiter) : WEIR_REASON_NONE,
        .refused_count = governor->refused_count,
        .stall_ns_max = governor->stall_ns_max,
        .lease_bytes = lease_bytes,
    };
    if (oldest != NULL)
        memcpy(ret_stats->oldest_waiter_name, oldest->name, sizeof(oldest->name));
    memcpy(ret_stats->level_ns, governor->level_ns, sizeof(ret_stats->level_ns));
    memcpy(ret_stats->level_count, governor->level_count, sizeof(ret_stats->level_count));
    memcpy(ret_stats->stall_count, governor->stall_count, sizeof(ret_stats->stall_count));
    ret_stats->level_ns[ret_stats->level] += weir__clock_ns() - since_ns;
    for (int verdict = 0; verdict <= WEIR_WAIT; verdict++) {
        ret_stats->verdict_count[verdict] = governor->closed_verdict_count[verdict];
        WEIR_LIST_FOREACH (link, &governor->accounts)
            ret_stats->verdict_count[verdict] += weir__relaxed(
                &WEIR_CONTAINER_OF(link, struct weir_account, link)->verdict_count[verdict]);
    }
}

void weir_governor_stats(const struct weir_governor *governor,
                         struct weir_governor_stats *ret_stats)
{
    weir__governor_lock(governor);
    governor_stats((struct weir_governor *)governor, ret_stats);
    weir__governor_unlock(governor);
}

/* Without hysteresis: of all it has, lent and borrowed. */
static enum weir_level node_level(const struct weir_governor *governor, uint64_t bytes_max,
                                  uint64_t use_bytes)
{
    const struct weir__budget *budget = &governor->budget;
    int level = WEIR_LEVEL_HARD;

    while (level > WEIR_LEVEL_CALM &&
           (__uint128_t)use_bytes * budget->bytes_max <
               (__uint128_t)budget->enter_bytes[level] * bytes_max + (level != WEIR_LEVEL_HARD))
        level--;
    return (enum weir_level)level;
}

static void node_stats(const struct weir_governor *governor, uint32_t index,
                       struct weir_node_stats *ret_stats)
{
    const struct weir__nodes *nodes = &governor->nodes;
    const struct weir__node *node = &nodes->nodes[index];
    bool alone = nodes->count == 0;
    uint64_t use_bytes =
        alone ? weir__word_bytes(weir__relaxed(&governor->word)) : weir__nodes_use(nodes, index);
    uint64_t lease_bytes = 0;

    *ret_stats = (struct weir_node_stats){
        .bytes_max = alone ? governor->budget.bytes_max : node->budget_bytes,
        .borrowed_bytes = node->debt_bytes,
        .lent_bytes = node->lent_bytes,
    };
    WEIR_LIST_FOREACH (link, &governor->accounts) {
        const struct weir_account *account = WEIR_CONTAINER_OF(link, struct weir_account, link);
        if (account->node != index)
            continue;
        ret_stats->account_count++;
        lease_bytes += weir__lease_kept(account);
    }
    ret_stats->charged_bytes = use_bytes - weir__min(use_bytes, lease_bytes);
    ret_stats->level = node_level(
        governor, ret_stats->bytes_max + ret_stats->borrowed_bytes - ret_stats->lent_bytes,
        ret_stats->charged_bytes);
}

size_t weir_governor_nodes(const struct weir_governor *governor, struct weir_node_stats *ret_nodes,
                           size_t node_count)
{
    size_t filled = weir__min(node_count, weir__max(governor->nodes.count, 1));

    weir__governor_lock(governor);
    for (size_t i = 0; i < filled; i++)
        node_stats(governor, (uint32_t)i, &ret_nodes[i]);
    weir__governor_unlock(governor);
    return filled;
}

/* Under the lock. */
static size_t governor_holders(const struct weir_governor *governor,
                               struct weir_account_stats *ret_holders, size_t holder_count)
{
    size_t filled = 0;

    WEIR_LIST_FOREACH (link, &governor->accounts) {
        struct weir_account_stats stats;
        account_stats(WEIR_CONTAINER_OF(link, struct weir_account, link), &stats);

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
    return filled;
}

size_t weir_governor_holders(const struct weir_governor *governor,
                             struct weir_account_stats *ret_holders, size_t holder_count)
{
    weir__governor_lock(governor);
    size_t filled = governor_holders(governor, ret_holders, holder_count);
    weir__governor_unlock(governor);
    return filled;
}

void weir_governor_figures(const struct weir_governor *governor,
                           struct weir_governor_figures *ret_figures,
                           struct weir_account_stats *ret_accounts, size_t account_count)
{
    memset(ret_figures, 0, sizeof(*ret_figures));
    weir__governor_lock(governor);
    governor_stats((struct weir_governor *)governor, &ret_figures->governor);
    ret_figures->outside = governor->outside;
    ret_figures->node_count = weir__max(governor->nodes.count, 1);
    for (uint32_t i = 0; i < ret_figures->node_count; i++)
        node_stats(governor, i, &ret_figures->nodes[i]);
    ret_figures->account_count = governor_holders(governor, ret_accounts, account_count);
    weir__governor_unlock(governor);
}
