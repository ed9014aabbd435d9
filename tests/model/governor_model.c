/* SPDX-License-Identifier: MIT */
/*
 * governor, the real code, under a scheduler that is drawn from a seed
 *
 * Some fibers, each with an account, charge, refund, wait, cancel, change limits. At
 * every atomic access another may go on. What must hold, whatever is drawn:
 *
 *      - what has been granted and not given back never passes the limit; where the
 *        limit was lowered below it, it only falls
 *      - nobody who waits is forgotten: when all is given back, all are granted
 *      - nobody is passed more often than the queue says
 *      - in any ten dwells the level changes ten times at most
 *      - leases are at most 1 % of the limit; in the end all books are empty
 *      - of the reclaimers, which come and go, one is asked at a time, in its owner's
 *        poll, and the cheapest come first
 *
 * Two nodes (--two-nodes) borrow from each other; a restless limit (--restless)
 * changes while giants are charged. Time is a number that grows a little with every
 * step. WEIR_SEED= repeats a run, --steps= says how many points it has at least.
 */
#include <weir/governor.h>

#include "base/random.h"
#include "governor/ledger.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#undef clock_gettime /* a seed is of the real time */
#include "seed.h"

#define FIBER_COUNT   4
#define STACK_BYTES   (256u << 10)
#define LIMIT_BYTES   UINT64_C(100000000)
#define ITEM_BYTES    UINT64_C(6000000)
#define ITEM_COUNT    16
#define SLEEPER_COUNT 4
#define PARCEL_COUNT  64
#define DWELL_NS      UINT64_C(100000000)
#define STEP_NS       UINT64_C(20000)    /* what a step takes at most */
#define DRIFT_NS      UINT64_C(20000000) /* between a change and our look */

#define MODEL_CHECK(x)                                                                             \
 do {                                                                                              \
  if (!(x)) {                                                                                      \
   fprintf(stderr, "%s:%d: step %llu: %s\n", __FILE__, __LINE__, (unsigned long long)step_count,   \
           #x);                                                                                    \
   abort();                                                                                        \
  }                                                                                                \
 } while (0)

struct fiber;

struct sleeper {
    struct weir_waiter waiter;
    struct fiber *fiber;
    uint64_t limit_max; /* the largest since it was queued */
    bool queued;
};

struct fiber {
    ucontext_t context;
    char *stack;
    bool ended;
    const pthread_mutex_t *wants;    /* runs when it is free */
    const pthread_cond_t *condition; /* runs when it is signalled, or late */
    bool signalled;
    uint64_t deadline_ns;

    struct weir_account *account;
    uint64_t items[ITEM_COUNT];
    int item_count;
    uint64_t forced_bytes;
    uint64_t limit_max; /* the largest during the call it is in */
    struct sleeper sleepers[SLEEPER_COUNT];
    struct weir_reclaimer reclaimer;
    bool is_giving_back;
};

struct parcel {
    struct fiber *from;
    uint64_t bytes;
};

static struct fiber fibers[FIBER_COUNT];
static struct fiber *current;
static ucontext_t outside;
static uint64_t seed;
static uint64_t now_ns = 1000000000;
static uint64_t step_count;
static uint64_t step_max;
static bool in_play;
static uint64_t interrupt_at; /* nothing is drawn: the first fiber stops once, at this point */
static uint64_t interrupt_point;
static const pthread_mutex_t *held; /* there is one lock */

static struct weir_governor *governor;
static uint64_t limit_bytes = LIMIT_BYTES; /* the larger of the two while it is changed */
static uint64_t granted_bytes;
static uint32_t node_count = 1;
static bool is_restless; /* the limit changes all the time */
static uint64_t change_ns[BUDGET_CHANGES_MAX];
static uint64_t change_count;
static struct parcel parcels[PARCEL_COUNT];
static int parcel_count;
static int busy_count;
static uint64_t woken_count;
static uint64_t lease_charge_count;
static uint64_t asked_count;
static bool is_reclaiming;

/* ---- The game ------------------------------------------------------------------- */

static void check_changes(void)
{
    for (; change_count < governor->level_change_count; change_count++) {
        uint64_t *place = &change_ns[change_count % BUDGET_CHANGES_MAX];
        if (change_count >= BUDGET_CHANGES_MAX)
            MODEL_CHECK(now_ns - *place + DRIFT_NS >= BUDGET_CHANGES_MAX * DWELL_NS);
        *place = now_ns;
    }
}

/* Above the limit, where a lower one has left it, the use only falls: nothing is forced here. */
static void check_use(void)
{
    static uint64_t last_bytes;
    uint64_t use_bytes = governor != NULL ? weir__word_bytes(governor->word) : 0;

    MODEL_CHECK(use_bytes <= limit_bytes || use_bytes <= last_bytes);
    last_bytes = use_bytes;
}

static bool fiber_can_run(const struct fiber *fiber)
{
    if (fiber->ended)
        return false;
    if (fiber->condition != NULL && !fiber->signalled && now_ns < fiber->deadline_ns)
        return false;
    return fiber->wants == NULL || held == NULL;
}

static struct fiber *draw(void)
{
    for (;;) {
        struct fiber *can[FIBER_COUNT];
        uint64_t count = 0;
        uint64_t deadline_ns = UINT64_MAX;
        bool all_ended = true;
        for (int i = 0; i < FIBER_COUNT; i++) {
            if (fiber_can_run(&fibers[i]))
                can[count++] = &fibers[i];
            if (!fibers[i].ended && fibers[i].condition != NULL)
                deadline_ns = weir__min(deadline_ns, fibers[i].deadline_ns);
            all_ended = all_ended && fibers[i].ended;
        }
        if (count > 0)
            return can[weir__random_below(&seed, count)];
        if (all_ended)
            return NULL;
        MODEL_CHECK(deadline_ns != UINT64_MAX); /* else all sleep for ever */
        now_ns = deadline_ns;
    }
}

/* NULL: all have ended. */
static void play_to(struct fiber *next)
{
    struct fiber *before = current;

    if (next == before)
        return;
    current = next;
    swapcontext(&before->context, next != NULL ? &next->context : &outside);
}

/* Whoever is drawn goes on. */
static void play_on(void)
{
    play_to(draw());
}

void schedule_point(void)
{
    if (!in_play)
        return;
    if (interrupt_at > 0) {
        if (current == &fibers[0] && ++interrupt_point == interrupt_at)
            play_to(&fibers[1]);
        return;
    }
    step_count++;
    now_ns += weir__random_below(&seed, STEP_NS);
    check_changes();
    check_use();
    if (weir__random_below(&seed, 4) == 0)
        play_on();
}

pthread_t schedule_self(void)
{
    return in_play ? (pthread_t)(current - fibers + 1) : 0;
}

int schedule_lock(pthread_mutex_t *lock)
{
    if (!in_play)
        return 0;
    schedule_point();
    while (held != NULL) {
        MODEL_CHECK(held == lock);
        current->wants = lock;
        play_on();
    }
    current->wants = NULL;
    held = lock;
    return 0;
}

int schedule_unlock(pthread_mutex_t *lock)
{
    if (!in_play)
        return 0;
    MODEL_CHECK(held == lock);
    held = NULL;
    schedule_point();
    return 0;
}

int schedule_wait(pthread_cond_t *condition, pthread_mutex_t *lock, uint64_t deadline_ns)
{
    MODEL_CHECK(held == lock);
    held = NULL;
    current->condition = condition;
    current->signalled = false;
    current->deadline_ns = deadline_ns;
    current->wants = lock;
    do
        play_on();
    while (held != NULL || (!current->signalled && now_ns < current->deadline_ns));

    bool late = !current->signalled;

    current->condition = NULL;
    current->wants = NULL;
    held = lock;
    return late ? ETIMEDOUT : 0;
}

int schedule_wake(pthread_cond_t *condition)
{
    for (int i = 0; i < FIBER_COUNT; i++)
        if (fibers[i].condition == condition)
            fibers[i].signalled = true;
    return 0;
}

int schedule_clock(struct timespec *ret_now)
{
    ret_now->tv_sec = (time_t)(now_ns / UINT64_C(1000000000));
    ret_now->tv_nsec = (long)(now_ns % UINT64_C(1000000000));
    return 0;
}

int schedule_announce_barrier(void)
{
    return 0;
}

/* ---- What a fiber does ------------------------------------------------------------ */

static uint64_t draw_below(uint64_t bound)
{
    return weir__random_below(&seed, bound);
}

static uint64_t draw_size(void)
{
    if (draw_below(is_restless ? 3 : 300) == 0)
        return draw_below(LIMIT_BYTES / 2); /* a giant; else small ones that leases are for */
    return draw_below(draw_below(3) == 0 ? ITEM_BYTES : ITEM_BYTES / 100);
}

/* @limit: the largest that was in force while it was decided. */
static void note_granted(uint64_t bytes, uint64_t limit)
{
    granted_bytes += bytes;
    MODEL_CHECK(bytes == 0 || granted_bytes <= limit);
}

static void fiber_give_back(struct fiber *fiber, uint64_t bytes)
{
    granted_bytes -= bytes;
    weir_account_refund(fiber->account, bytes);
}

static void fiber_keep(struct fiber *fiber, uint64_t bytes)
{
    if (fiber->item_count < ITEM_COUNT && !fiber->is_giving_back)
        fiber->items[fiber->item_count++] = bytes;
    else
        fiber_give_back(fiber, bytes);
}

static void fiber_charge(struct fiber *fiber)
{
    uint64_t bytes = draw_size();
    uint64_t spent = fiber->account->spent_bytes;
    enum weir_verdict verdict;

    fiber->limit_max = limit_bytes;
    int r = weir_account_charge(fiber->account, bytes, &verdict);
    if (r == -EINVAL)
        return; /* the limit is low just now */
    MODEL_CHECK(r == 0);
    if (verdict != WEIR_ADMIT && verdict != WEIR_FLUSH)
        return;
    lease_charge_count += bytes > 0 && fiber->account->spent_bytes != spent;
    note_granted(bytes, fiber->limit_max);
    fiber_keep(fiber, bytes);
}

static uint64_t fiber_take_item(struct fiber *fiber)
{
    uint64_t index = draw_below((uint64_t)fiber->item_count);
    uint64_t bytes = fiber->items[index];

    fiber->items[index] = fiber->items[--fiber->item_count];
    return bytes;
}

static void fiber_refund(struct fiber *fiber)
{
    if (fiber->item_count > 0)
        fiber_give_back(fiber, fiber_take_item(fiber));
}

/* It gives what it has, nothing, or not what it says. */
static uint64_t fiber_reclaim(struct weir_reclaimer *reclaimer, uint64_t bytes)
{
    struct fiber *fiber = reclaimer->context;
    uint64_t dice = draw_below(100);
    uint64_t given = 0;

    MODEL_CHECK(!is_reclaiming);
    MODEL_CHECK(fiber == current);
    MODEL_CHECK(governor->asked == reclaimer);
    MODEL_CHECK(bytes > 0);
    is_reclaiming = true;
    asked_count++;
    while (dice > 5 && given < bytes && fiber->item_count > 0) {
        uint64_t more = fiber_take_item(fiber);

        fiber_give_back(fiber, more);
        given += more;
    }
    is_reclaiming = false;
    return dice == 0 ? 1 : given;
}

/* The list as the next is chosen from it: R3. */
static void check_reclaimers(void)
{
    const struct weir_reclaimer *previous = NULL;

    for (const struct weir_reclaimer *at = governor->reclaimers; at != NULL; at = at->next) {
        MODEL_CHECK(at->previous == previous);
        MODEL_CHECK(previous == NULL || previous->cost <= at->cost);
        previous = at;
    }
    MODEL_CHECK(governor->reclaimers_last == previous);
}

static void fiber_turn_reclaimer(struct fiber *fiber)
{
    if (fiber->reclaimer.account != NULL) {
        weir_account_remove_reclaimer(fiber->account, &fiber->reclaimer);
        return;
    }
    fiber->reclaimer = (struct weir_reclaimer){
        .name = "fiber",
        .cost = (uint32_t)draw_below(2) * 100,
        .reclaim = fiber_reclaim,
        .context = fiber,
    };
    weir_account_add_reclaimer(fiber->account, &fiber->reclaimer);
}

static void fiber_send(struct fiber *fiber)
{
    if (fiber->item_count > 0 && parcel_count < PARCEL_COUNT)
        parcels[parcel_count++] = (struct parcel){fiber, fiber_take_item(fiber)};
}

static void fiber_receive(void)
{
    while (parcel_count > 0) {
        struct parcel parcel = parcels[--parcel_count];
        granted_bytes -= parcel.bytes;
        weir_account_refund_remote(parcel.from->account, parcel.bytes);
    }
}

static void sleeper_wake(struct weir_waiter *waiter, int result)
{
    struct sleeper *sleeper = (struct sleeper *)(void *)waiter;

    MODEL_CHECK(sleeper->queued);
    MODEL_CHECK(result == 0 || result == -ETIMEDOUT || result == -EDQUOT);
    sleeper->queued = false;
    woken_count++;
    if (result < 0)
        return;
    note_granted(waiter->bytes, sleeper->limit_max);
    fiber_keep(sleeper->fiber, waiter->bytes);
}

static uint64_t draw_deadline(void)
{
    return draw_below(3) == 0 ? now_ns + draw_below(200 * STEP_NS) : UINT64_MAX;
}

static void fiber_queue(struct fiber *fiber)
{
    struct sleeper *sleeper = &fiber->sleepers[draw_below(SLEEPER_COUNT)];

    if (sleeper->queued)
        return;
    *sleeper = (struct sleeper){.waiter.wake = sleeper_wake, .fiber = fiber, .queued = true};
    sleeper->limit_max = limit_bytes;
    int r = weir_account_wait(fiber->account, &sleeper->waiter, draw_size(), draw_deadline());
    MODEL_CHECK(r == 0 || r == -EINVAL);
    if (r == -EINVAL)
        sleeper->queued = false;
}

static void fiber_cancel(struct fiber *fiber)
{
    struct sleeper *sleeper = &fiber->sleepers[draw_below(SLEEPER_COUNT)];

    if (weir_account_cancel(fiber->account, &sleeper->waiter) == 0) {
        MODEL_CHECK(sleeper->queued);
        sleeper->queued = false;
    }
}

/* It may hold what others want, so it has a deadline. */
static void fiber_block(struct fiber *fiber)
{
    struct weir_waiter waiter = {0};
    uint64_t bytes = draw_size();

    fiber->limit_max = limit_bytes;
    int r = weir_account_wait(fiber->account, &waiter, bytes, now_ns + draw_below(500 * STEP_NS));
    MODEL_CHECK(r == 0 || r == -ETIMEDOUT || r == -EDQUOT || r == -EINVAL);
    if (r < 0)
        return;
    note_granted(bytes, fiber->limit_max);
    fiber_keep(fiber, bytes);
}

static void limit_is(uint64_t bytes)
{
    limit_bytes = bytes;
    for (int i = 0; i < FIBER_COUNT; i++) {
        fibers[i].limit_max = weir__max(fibers[i].limit_max, bytes);
        for (int j = 0; j < SLEEPER_COUNT; j++)
            fibers[i].sleepers[j].limit_max = weir__max(fibers[i].sleepers[j].limit_max, bytes);
    }
}

/* Two nodes have the limit between them, half each. */
static struct weir_governor_config limits_of(uint64_t bytes_max)
{
    static struct weir_node_config nodes[2];

    nodes[0] = (struct weir_node_config){.bytes_max = bytes_max / 2, .distances = {10, 20}};
    nodes[1] = (struct weir_node_config){.bytes_max = bytes_max / 2, .distances = {20, 10}};
    return (struct weir_governor_config){
        .bytes_max = bytes_max, .dwell_ns = DWELL_NS, .node_count = node_count, .nodes = nodes};
}

/* One at a time, by the first fiber only. */
static void fiber_limit(const struct fiber *fiber)
{
    struct weir_governor_config config = limits_of(LIMIT_BYTES / 10 * (6 + draw_below(5)));

    if (fiber != &fibers[0])
        return;
    limit_is(weir__max(limit_bytes, config.bytes_max));
    MODEL_CHECK(weir_governor_set_limits(governor, &config) == 0);
    limit_is(config.bytes_max);
}

static void fiber_look(void)
{
    struct weir_governor_stats stats;

    weir_governor_stats(governor, &stats);
    MODEL_CHECK(stats.lease_bytes <= LIMIT_BYTES / 100);
    for (int i = 0; i < FIBER_COUNT; i++)
        for (int j = 0; j < SLEEPER_COUNT; j++)
            MODEL_CHECK(fibers[i].sleepers[j].waiter.bypassed_count <= QUEUE_BYPASS_MAX);
}

static void fiber_step(struct fiber *fiber)
{
    uint64_t dice = draw_below(1000);

    if (dice < 480)
        fiber_charge(fiber);
    else if (dice < 760)
        fiber_refund(fiber);
    else if (dice < 820)
        fiber_send(fiber);
    else if (dice < 860)
        fiber_receive();
    else if (dice < 900)
        fiber_queue(fiber);
    else if (dice < 920)
        fiber_cancel(fiber);
    else if (dice < 930)
        fiber_block(fiber);
    else if (dice < 940)
        fiber_look();
    else if (dice < (is_restless ? 990 : 950))
        fiber_limit(fiber);
    else if (dice == 990)
        fiber_turn_reclaimer(fiber);
    else
        weir_account_poll(fiber->account);
    if (held == NULL)
        check_reclaimers();
    if (dice == 999) /* now and then it is away, and the rest may calm down */
        while (fiber->item_count > 0)
            fiber_refund(fiber);
}

static bool fiber_waits(const struct fiber *fiber)
{
    for (int i = 0; i < SLEEPER_COUNT; i++)
        if (fiber->sleepers[i].queued)
            return true;
    return false;
}

static void fiber_main(void)
{
    struct fiber *fiber = current;
    struct weir_account_config config = {
        .transient = true,
        .spillable = fiber == &fibers[1],
        .node = 1 + (uint32_t)(fiber - fibers) % node_count,
    };
    uint64_t idle_count = 0;
    bool busy = true;

    if (fiber == &fibers[2])
        config.bytes_max = LIMIT_BYTES / 3;
    MODEL_CHECK(weir_account_open(governor, &config, &fiber->account) == 0);
    fiber_turn_reclaimer(fiber);
    while (step_count < step_max)
        fiber_step(fiber);

    fiber->is_giving_back = true;
    while (busy_count > 0) {
        while (fiber->item_count > 0)
            fiber_refund(fiber);
        fiber_receive();
        weir_account_poll(fiber->account);
        if (busy && !fiber_waits(fiber)) {
            busy = false;
            busy_count--;
        }
        /* All give back, so each poll brings somebody nearer: this ends, or one is forgotten. */
        MODEL_CHECK(++idle_count < 100000);
        schedule_point();
    }
    while (parcel_count > 0)
        fiber_receive();
    if (fiber->reclaimer.account != NULL)
        fiber_turn_reclaimer(fiber);
    weir_account_close(fiber->account);
    fiber->ended = true;
    play_on();
}

/* ---- One interruption, at every point ----------------------------------------------- */

static void fiber_start(struct fiber *fiber, void (*entry)(void))
{
    if (fiber->stack == NULL)
        fiber->stack = malloc(STACK_BYTES);
    MODEL_CHECK(fiber->stack != NULL);
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = STACK_BYTES;
    makecontext(&fiber->context, entry, 0);
}

/* A charge that fits the limit, but not the lower one that comes while it is under way. */
static void interrupted_main(void)
{
    enum weir_verdict verdict;

    (void)!weir_account_charge(fibers[0].account, LIMIT_BYTES / 2, &verdict);
    fibers[0].ended = true;
    play_to(fibers[1].ended ? NULL : &fibers[1]);
}

static void interrupting_main(void)
{
    struct weir_governor_config config = limits_of(LIMIT_BYTES / 5 * 2);

    MODEL_CHECK(weir_governor_set_limits(governor, &config) == 0);
    fibers[1].ended = true;
    if (weir__word_bytes(governor->word) == 0) /* so from now on it gets nothing */
        granted_bytes = 1;
    play_to(fibers[0].ended ? NULL : &fibers[0]);
}

static void check_every_interruption(void)
{
    uint64_t refused_count = 0;

    for (interrupt_at = 1; interrupt_at <= 60; interrupt_at++) {
        struct weir_governor_config config = limits_of(LIMIT_BYTES);
        MODEL_CHECK(weir_governor_create(&config, &governor) == 0);
        current = &fibers[0];
        in_play = true;
        interrupt_point = interrupt_at; /* not yet */
        MODEL_CHECK(weir_account_open(governor, NULL, &fibers[0].account) == 0);
        granted_bytes = 0;
        interrupt_point = 0;
        fiber_start(&fibers[0], interrupted_main);
        fiber_start(&fibers[1], interrupting_main);
        for (int i = 0; i < FIBER_COUNT; i++)
            fibers[i].ended = i > 1;
        swapcontext(&outside, &fibers[0].context);
        current = &fibers[0];
        refused_count += granted_bytes;
        if (granted_bytes == 1)
            MODEL_CHECK(weir__word_bytes(governor->word) <= LIMIT_BYTES / 5 * 2);
        interrupt_point = interrupt_at; /* no more of it */
        weir_account_close(fibers[0].account);
        in_play = false;
        weir_governor_destroy(governor);
    }
    MODEL_CHECK(refused_count > 0 && refused_count < 60);
    interrupt_at = 0;
    granted_bytes = 0;
    for (int i = 0; i < FIBER_COUNT; i++)
        fibers[i] = (struct fiber){.stack = fibers[i].stack};
}

int main(int argument_count, char **arguments)
{
    step_max = 100000;
    for (int i = 1; i < argument_count; i++) {
        if (strncmp(arguments[i], "--steps=", 8) == 0)
            step_max = strtoull(arguments[i] + 8, NULL, 0);
        else if (strcmp(arguments[i], "--two-nodes") == 0)
            node_count = 2;
        else if (strcmp(arguments[i], "--restless") == 0)
            is_restless = true;
    }

    check_every_interruption();

    struct weir_governor_config config = limits_of(LIMIT_BYTES);

    seed = harness_seed();
    busy_count = FIBER_COUNT;
    MODEL_CHECK(weir_governor_create(&config, &governor) == 0);
    for (int i = 0; i < FIBER_COUNT; i++)
        fiber_start(&fibers[i], fiber_main);
    in_play = true;
    current = &fibers[0];
    swapcontext(&outside, &fibers[0].context);
    in_play = false;

    MODEL_CHECK(granted_bytes == 0);
    MODEL_CHECK(governor->word >> WORD_SHIFT == 0);
    MODEL_CHECK(governor->queue.waiter_count == 0);
    for (uint32_t i = 0; i < governor->nodes.count; i++)
        MODEL_CHECK(weir__nodes_use(&governor->nodes, i) == 0);
    MODEL_CHECK(woken_count > 0);
    MODEL_CHECK(asked_count > 0);
    MODEL_CHECK(is_restless || lease_charge_count > 0);
    printf(
        "1..1\nok 1 - %llu steps, %llu ms, %llu woken, %llu from leases, %llu asked, %llu level changes\n",
        (unsigned long long)step_count, (unsigned long long)(now_ns / 1000000),
        (unsigned long long)woken_count, (unsigned long long)lease_charge_count,
        (unsigned long long)asked_count, (unsigned long long)change_count);
    weir_governor_destroy(governor);
    for (int i = 0; i < FIBER_COUNT; i++)
        free(fibers[i].stack);
    return 0;
}
