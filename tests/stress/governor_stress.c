/* SPDX-License-Identifier: MIT */
/*
 * governor under threads: no grant above hard, no waiter lost, no byte lost
 *
 * Run with -Db_sanitize=thread too. WEIR_SEED= repeats the choices, WEIR_STEPS=
 * is steps per thread. A lost waiter shows as a test that does not end.
 */
#include <weir/governor.h>

#include "base/clock.h"
#include "base/random.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "seed.h"

#define THREAD_COUNT  4
#define BYTES_MAX     UINT64_C(100000) /* times the scale of the stage */
#define ITEM_BYTES    UINT64_C(4000)
#define SCALE         UINT64_C(1000) /* there are leases */
#define WAITER_COUNT  16
#define ITEM_COUNT    64
#define PARCEL_COUNT  256
#define RECLAIMERS    2
#define STEPS_DEFAULT 100000

/* cmocka's asserts belong to its own thread. */
#define STRESS_CHECK(x)                                                                            \
 do {                                                                                              \
  if (!(x)) {                                                                                      \
   fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);                                         \
   abort();                                                                                        \
  }                                                                                                \
 } while (0)

struct actor;

/* Bytes of one account, on their way to be given back by another thread. */
struct parcel {
    struct actor *from;
    uint64_t bytes;
};

struct sleeper {
    struct weir_waiter waiter;
    struct actor *actor;
    bool queued;
};

struct actor {
    struct stage *stage;
    int index;
    uint64_t seed;
    struct weir_account *account;
    uint64_t item_bytes[ITEM_COUNT];
    int item_count;
    uint64_t forced_bytes;
    uint64_t cap_bytes;
    _Atomic uint64_t held_bytes; /* as granted_bytes of the stage, for this account */
    struct sleeper sleepers[WAITER_COUNT];
    uint64_t queued_count;
    uint64_t woken_count;
    uint64_t late_count;
    uint64_t cancelled_count;
    struct weir_reclaimer reclaimers[RECLAIMERS];
    uint64_t asked_count;
    pthread_mutex_t inbox_lock;
    struct parcel inbox[PARCEL_COUNT];
    int inbox_count;
    _Atomic uint32_t notified;
};

struct stage {
    struct weir_governor *governor;
    struct actor actors[THREAD_COUNT];
    _Atomic uint64_t granted_bytes; /* added after a charge, taken before its refund: never more */
    _Atomic uint32_t busy_count;
    bool forces;
    uint64_t scale;
    uint32_t node_count;
    uint64_t step_count;
    pthread_barrier_t barrier;
};

static uint64_t steps(void)
{
    const char *text = getenv("WEIR_STEPS");

    return text != NULL ? strtoull(text, NULL, 0) : STEPS_DEFAULT;
}

/* Where there are leases, most are so small that they come from one. */
static uint64_t actor_size(struct actor *actor)
{
    uint64_t scale = actor->stage->scale;

    if (scale > 1 && weir__random_below(&actor->seed, 4) != 0)
        scale /= 50;
    return weir__random_below(&actor->seed, ITEM_BYTES * scale);
}

static void actor_granted(struct actor *actor, uint64_t bytes)
{
    STRESS_CHECK(atomic_fetch_add(&actor->stage->granted_bytes, bytes) + bytes <=
                 BYTES_MAX * actor->stage->scale);
    STRESS_CHECK(atomic_fetch_add(&actor->held_bytes, bytes) + bytes <= actor->cap_bytes);
}

static void actor_gives(struct actor *actor, uint64_t bytes)
{
    atomic_fetch_sub(&actor->stage->granted_bytes, bytes);
    atomic_fetch_sub(&actor->held_bytes, bytes);
}

static void actor_notify(void *context)
{
    struct actor *actor = context;

    atomic_store(&actor->notified, 1);
}

static bool actor_has_room(void *context, size_t bytes)
{
    struct actor *actor = context;

    (void)bytes;
    return weir__random_below(&actor->seed, 2) == 0;
}

/* ---- What an actor does ------------------------------------------------------- */

static void actor_keep(struct actor *actor, uint64_t bytes)
{
    actor_granted(actor, bytes);
    if (actor->item_count < ITEM_COUNT) {
        actor->item_bytes[actor->item_count++] = bytes;
        return;
    }
    actor_gives(actor, bytes);
    weir_account_refund(actor->account, bytes);
}

static uint64_t actor_pick_item(struct actor *actor)
{
    uint64_t index = weir__random_below(&actor->seed, (uint64_t)actor->item_count);
    uint64_t bytes = actor->item_bytes[index];

    actor->item_bytes[index] = actor->item_bytes[--actor->item_count];
    return bytes;
}

static void actor_drain(struct actor *actor)
{
    struct parcel parcels[PARCEL_COUNT];

    pthread_mutex_lock(&actor->inbox_lock);
    int count = actor->inbox_count;
    memcpy(parcels, actor->inbox, (size_t)count * sizeof(parcels[0]));
    actor->inbox_count = 0;
    pthread_mutex_unlock(&actor->inbox_lock);
    for (int i = 0; i < count; i++) {
        actor_gives(parcels[i].from, parcels[i].bytes);
        weir_account_refund_remote(parcels[i].from->account, parcels[i].bytes);
    }
}

static void actor_send(struct actor *actor)
{
    uint64_t other = weir__random_below(&actor->seed, THREAD_COUNT);
    struct actor *to = &actor->stage->actors[other];

    pthread_mutex_lock(&to->inbox_lock);
    if (to->inbox_count < PARCEL_COUNT)
        to->inbox[to->inbox_count++] =
            (struct parcel){.from = actor, .bytes = actor_pick_item(actor)};
    pthread_mutex_unlock(&to->inbox_lock);
}

static void actor_charge(struct actor *actor)
{
    uint64_t bytes = actor_size(actor);
    enum weir_verdict verdict;

    if (weir__random_below(&actor->seed, 50) == 0)
        bytes *= 8;
    STRESS_CHECK(weir_account_charge(actor->account, bytes, &verdict) == 0);
    if (verdict == WEIR_ADMIT || verdict == WEIR_FLUSH)
        actor_keep(actor, bytes);
}

static void actor_refund(struct actor *actor)
{
    uint64_t bytes = actor_pick_item(actor);

    actor_gives(actor, bytes);
    weir_account_refund(actor->account, bytes);
}

static void sleeper_wake(struct weir_waiter *waiter, int result)
{
    struct sleeper *sleeper = (struct sleeper *)(void *)waiter;
    struct actor *actor = sleeper->actor;

    STRESS_CHECK(sleeper->queued);
    STRESS_CHECK(result == 0 || result == -ETIMEDOUT);
    sleeper->queued = false;
    actor->woken_count++;
    if (result == 0)
        actor_keep(actor, waiter->bytes);
    else
        actor->late_count++;
}

/* From its poll: it gives what it has; or nothing, or much too little. */
static uint64_t actor_reclaim(struct weir_reclaimer *reclaimer, uint64_t bytes)
{
    struct actor *actor = reclaimer->context;
    uint64_t dice = weir__random_below(&actor->seed, 1000);
    uint64_t given = 0;

    STRESS_CHECK(reclaimer->account == actor->account);
    STRESS_CHECK(bytes > 0);
    actor->asked_count++;
    if (dice == 0)
        return bytes;
    while (dice < 900 && given < bytes && actor->item_count > 0) {
        uint64_t more = actor_pick_item(actor);

        actor_gives(actor, more);
        weir_account_refund(actor->account, more);
        given += more;
    }
    return given;
}

/* One that is there goes, whether it is asked now or not; one that is not comes. */
static void actor_turn_reclaimer(struct actor *actor)
{
    uint64_t index = weir__random_below(&actor->seed, RECLAIMERS);
    struct weir_reclaimer *reclaimer = &actor->reclaimers[index];

    if (reclaimer->account != NULL) {
        weir_account_remove_reclaimer(actor->account, reclaimer);
        return;
    }
    *reclaimer = (struct weir_reclaimer){
        .name = "actor",
        .cost = (uint32_t)weir__random_below(&actor->seed, 3) * 100,
        .reclaim = actor_reclaim,
        .context = actor,
    };
    weir_account_add_reclaimer(actor->account, reclaimer);
}

static uint64_t actor_deadline(struct actor *actor)
{
    switch (weir__random_below(&actor->seed, 4)) {
    case 0:
        return weir__clock_ns() + weir__random_below(&actor->seed, 200000);
    case 1:
        return 0;
    default:
        return UINT64_MAX;
    }
}

static void actor_queue(struct actor *actor)
{
    struct sleeper *sleeper = &actor->sleepers[weir__random_below(&actor->seed, WAITER_COUNT)];

    if (sleeper->queued)
        return;
    sleeper->queued = true;
    sleeper->actor = actor;
    sleeper->waiter.wake = sleeper_wake;

    uint64_t bytes = 2 * actor_size(actor);
    int r = weir_account_wait(actor->account, &sleeper->waiter, bytes, actor_deadline(actor));
    STRESS_CHECK(r == 0); /* all that is charged is transient: never -EDQUOT */
    actor->queued_count++;
}

static void actor_cancel(struct actor *actor)
{
    struct sleeper *sleeper = &actor->sleepers[weir__random_below(&actor->seed, WAITER_COUNT)];
    int r = weir_account_cancel(actor->account, &sleeper->waiter);

    if (r == 0) {
        STRESS_CHECK(sleeper->queued);
        sleeper->queued = false;
        actor->cancelled_count++;
        return;
    }
    STRESS_CHECK(r == -ENOENT);
}

/* It may hold what others want, so it does not sleep for ever. */
static void actor_block(struct actor *actor)
{
    struct weir_waiter waiter = {0};
    uint64_t bytes = actor_size(actor);
    uint64_t deadline_ns = weir__clock_ns() + weir__random_below(&actor->seed, 300000);
    int r = weir_account_wait(actor->account, &waiter, bytes, deadline_ns);

    STRESS_CHECK(r == 0 || r == -ETIMEDOUT);
    if (r == 0)
        actor_keep(actor, bytes);
}

static void actor_force(struct actor *actor)
{
    if (actor->forced_bytes > 0) {
        weir_account_refund(actor->account, actor->forced_bytes);
        actor->forced_bytes = 0;
        return;
    }
    actor->forced_bytes = actor_size(actor);
    weir_account_charge_forced(actor->account, actor->forced_bytes);
}

static void actor_look(struct actor *actor)
{
    struct weir_governor_stats stats;
    struct weir_account_stats holders[THREAD_COUNT];

    weir_governor_stats(actor->stage->governor, &stats);
    if (!actor->stage->forces)
        STRESS_CHECK(stats.peak_bytes <= BYTES_MAX * actor->stage->scale);
    STRESS_CHECK(stats.lease_bytes <= BYTES_MAX * actor->stage->scale / 100);
    STRESS_CHECK(stats.charged_bytes <= stats.peak_bytes);
    STRESS_CHECK(weir_governor_holders(actor->stage->governor, holders, THREAD_COUNT) ==
                 THREAD_COUNT);
}

static void actor_step(struct actor *actor)
{
    uint64_t dice = weir__random_below(&actor->seed, 1000);

    if (dice < 450)
        actor_charge(actor);
    else if (dice < 700 && actor->item_count > 0)
        actor_refund(actor);
    else if (dice < 800 && actor->item_count > 0)
        actor_send(actor);
    else if (dice < 870)
        actor_queue(actor);
    else if (dice < 900)
        actor_cancel(actor);
    else if (dice < 905)
        actor_block(actor);
    else if (dice < 910)
        actor_look(actor);
    else if (dice < 940 && actor->stage->forces)
        actor_force(actor);
    else if (dice >= 995)
        actor_turn_reclaimer(actor);
    else
        actor_drain(actor);

    if (atomic_exchange(&actor->notified, 0) != 0 || dice % 16 == 0)
        weir_account_poll(actor->account);
}

static uint64_t actor_open_waiters(const struct actor *actor)
{
    return actor->queued_count - actor->woken_count - actor->cancelled_count;
}

/* Everything back, and then nobody may be left waiting: each was granted or is late. */
static void actor_finish(struct actor *actor)
{
    struct stage *stage = actor->stage;
    bool busy = true;

    if (actor->forced_bytes > 0)
        actor_force(actor);
    while (atomic_load(&stage->busy_count) > 0) {
        actor_drain(actor);
        weir_account_poll(actor->account);
        while (actor->item_count > 0)
            actor_refund(actor);
        if (busy && actor_open_waiters(actor) == 0) {
            busy = false;
            atomic_fetch_sub(&stage->busy_count, 1);
        }
        sched_yield();
    }
    actor_drain(actor); /* nobody sends any more */
}

static void *actor_main(void *context)
{
    struct actor *actor = context;
    struct stage *stage = actor->stage;
    struct weir_account_config config = {
        .name = "actor",
        .bytes_max = actor->index == 0 ? actor->cap_bytes : 0,
        .node = 1 + (uint32_t)actor->index % stage->node_count,
        .spillable = actor->index == 1,
        .transient = true,
        .has_room = actor_has_room,
        .notify = actor_notify,
        .context = actor,
    };

    STRESS_CHECK(weir_account_open(stage->governor, &config, &actor->account) == 0);
    pthread_barrier_wait(&stage->barrier);
    actor_turn_reclaimer(actor);
    for (uint64_t i = 0; i < stage->step_count; i++)
        actor_step(actor);
    actor_finish(actor);
    pthread_barrier_wait(&stage->barrier);

    struct weir_account_stats stats;
    weir_account_stats(actor->account, &stats);
    STRESS_CHECK(stats.charged_bytes == 0);
    STRESS_CHECK(stats.over_refund_count == 0);
    STRESS_CHECK(stats.waiter_count == 0);
    STRESS_CHECK(stats.asked_count >= actor->asked_count);
    pthread_barrier_wait(&stage->barrier);
    for (int i = 0; i < RECLAIMERS; i++)
        if (actor->reclaimers[i].account != NULL)
            weir_account_remove_reclaimer(actor->account, &actor->reclaimers[i]);
    weir_account_close(actor->account);
    return NULL;
}

static void play(bool forces, uint64_t scale, uint32_t node_count)
{
    static struct stage stage;
    struct weir_governor_config config = {.bytes_max = BYTES_MAX * scale,
                                          .dwell_ns = forces ? 10000 : 0};
    struct weir_governor_stats stats;
    const struct weir_node_config nodes[2] = {
        {.bytes_max = BYTES_MAX * scale / 2, .distances = {10, 20}},
        {.bytes_max = BYTES_MAX * scale / 2, .distances = {20, 10}},
    };
    struct weir_node_stats node_stats[2];
    pthread_t threads[THREAD_COUNT];
    uint64_t seed = harness_seed();
    uint64_t woken_count = 0;
    uint64_t asked_count = 0;

    config.nodes = nodes;
    config.node_count = node_count;

    memset(&stage, 0, sizeof(stage));
    stage.forces = forces;
    stage.scale = scale;
    stage.step_count = steps();
    atomic_init(&stage.busy_count, THREAD_COUNT);
    stage.node_count = node_count;
    assert_int_equal(weir_governor_create(&config, &stage.governor), 0);
    assert_int_equal(pthread_barrier_init(&stage.barrier, NULL, THREAD_COUNT), 0);
    for (int i = 0; i < THREAD_COUNT; i++) {
        struct actor *actor = &stage.actors[i];
        actor->stage = &stage;
        actor->index = i;
        actor->cap_bytes = (i == 0 ? BYTES_MAX * 2 / 5 : BYTES_MAX) * scale;
        actor->seed = seed + (uint64_t)i;
        assert_int_equal(pthread_mutex_init(&actor->inbox_lock, NULL), 0);
    }
    for (int i = 0; i < THREAD_COUNT; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, actor_main, &stage.actors[i]), 0);
    for (int i = 0; i < THREAD_COUNT; i++)
        pthread_join(threads[i], NULL);

    for (int i = 0; i < THREAD_COUNT; i++) {
        woken_count += stage.actors[i].woken_count;
        asked_count += stage.actors[i].asked_count;
    }
    weir_governor_stats(stage.governor, &stats);
    print_message("# woken %llu asked %llu late %llu level changes %llu peak %llu\n",
                  (unsigned long long)woken_count, (unsigned long long)asked_count,
                  (unsigned long long)stats.timeout_count,
                  (unsigned long long)stats.level_change_count,
                  (unsigned long long)stats.peak_bytes);
    assert_int_equal(stats.charged_bytes, 0);
    assert_int_equal(stats.level, WEIR_LEVEL_CALM);
    assert_int_equal(stats.waiter_count, 0);
    assert_int_equal(weir_governor_nodes(stage.governor, node_stats, 2), node_count);
    for (uint32_t i = 0; i < node_count; i++) {
        assert_int_equal(node_stats[i].charged_bytes, 0);
        assert_int_equal(node_stats[i].borrowed_bytes, 0);
        assert_int_equal(node_stats[i].lent_bytes, 0);
    }
    assert_true(woken_count > 0);
    assert_true(asked_count > 0);
    if (!forces)
        assert_in_range(stats.peak_bytes, 1, BYTES_MAX * scale);
    weir_governor_destroy(stage.governor);
}

static void test_granted_charges_never_pass_hard(void **state)
{
    (void)state;
    play(false, 1, 1);
}

static void test_nor_do_they_beside_forced_ones(void **state)
{
    (void)state;
    play(true, 1, 1);
}

static void test_nor_from_leases(void **state)
{
    (void)state;
    play(false, SCALE, 1);
    play(true, SCALE, 1);
}

static void test_nor_do_they_on_two_nodes(void **state)
{
    (void)state;
    play(false, 1, 2);
    play(true, SCALE, 2);
}

/* ---- A governor as a semaphore: one forgotten wake and it stands still ---------- */

struct turnstile {
    struct weir_governor *governor;
    _Atomic uint64_t inside_count;
    uint64_t round_count;
};

static void *turnstile_main(void *context)
{
    struct turnstile *turnstile = context;
    struct weir_account_config config = {.transient = true};
    struct weir_account *account;

    STRESS_CHECK(weir_account_open(turnstile->governor, &config, &account) == 0);
    for (uint64_t i = 0; i < turnstile->round_count; i++) {
        struct weir_waiter waiter = {0};
        int r = weir_account_wait(account, &waiter, 40, UINT64_MAX);
        STRESS_CHECK(r == 0);
        STRESS_CHECK(atomic_fetch_add(&turnstile->inside_count, 1) < 2); /* 100 / 40 */
        if (i % 8 == 0)
            sched_yield();
        atomic_fetch_sub(&turnstile->inside_count, 1);
        if (i % 2 == 0)
            weir_account_refund(account, 40);
        else
            weir_account_refund_remote(account, 40);
    }
    weir_account_close(account);
    return NULL;
}

static void test_no_sleeper_is_forgotten(void **state)
{
    struct weir_governor_config config = {.bytes_max = 100, .node_count = 1};
    struct turnstile turnstile = {.round_count = steps() / 4};
    pthread_t threads[THREAD_COUNT];

    (void)state;
    assert_int_equal(weir_governor_create(&config, &turnstile.governor), 0);
    for (int i = 0; i < THREAD_COUNT; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, turnstile_main, &turnstile), 0);
    for (int i = 0; i < THREAD_COUNT; i++)
        pthread_join(threads[i], NULL);
    weir_governor_destroy(turnstile.governor);
}

/* ---- Two threads that meet ------------------------------------------------------ */

/* Two threads leave it within some nanoseconds of each other; a kernel's barrier takes longer. */
struct meeting {
    _Atomic uint64_t arrived_count;
};

static void meet(struct meeting *meeting)
{
    uint64_t place = atomic_fetch_add(&meeting->arrived_count, 1);

    for (int spin = 0; atomic_load(&meeting->arrived_count) / 2 <= place / 2; spin++)
        if (spin > 1000)
            sched_yield();
}

/* A moment of random length, so that all orders of two short calls come up. */
static void dawdle(uint64_t *seed)
{
    static _Atomic uint64_t nothing;

    for (uint64_t i = weir__random_below(seed, 64); i > 0; i--)
        atomic_load_explicit(&nothing, memory_order_relaxed);
}

struct race {
    struct weir_governor *governor;
    struct weir_account *account;
    struct meeting meeting;
    uint64_t round_count;
};

static void *race_main(void *context)
{
    struct race *race = context;
    uint64_t seed = 1;

    for (uint64_t i = 0; i < race->round_count; i++) {
        meet(&race->meeting);
        dawdle(&seed);
        weir_account_refund_remote(race->account, 10);
        meet(&race->meeting);
    }
    return NULL;
}

/* Twice the same bytes at the same time: one of the two is believed in the end. */
static void test_racing_over_refunds_heal(void **state)
{
    struct weir_governor_config config = {.bytes_max = 1000, .node_count = 1};
    struct weir_account_config account_config = {.reserve_bytes = 5};
    struct race race = {.round_count = steps() / 2};
    uint64_t seed = harness_seed();
    struct weir_governor *governor;
    struct weir_account_stats stats;
    struct weir_governor_stats figures;
    enum weir_verdict verdict;
    pthread_t thread;

    (void)state;
    assert_int_equal(weir_governor_create(&config, &governor), 0);
    assert_int_equal(weir_account_open(governor, &account_config, &race.account), 0);
    assert_int_equal(pthread_create(&thread, NULL, race_main, &race), 0);
    for (uint64_t i = 0; i < race.round_count; i++) {
        STRESS_CHECK(weir_account_charge(race.account, 10, &verdict) == 0);
        STRESS_CHECK(verdict == WEIR_ADMIT);
        meet(&race.meeting);
        dawdle(&seed);
        weir_account_refund(race.account, 10);
        meet(&race.meeting);
        weir_account_refund(race.account, 0); /* the owner looks */
        weir_account_stats(race.account, &stats);
        weir_governor_stats(governor, &figures);
        STRESS_CHECK(stats.charged_bytes == 5);
        STRESS_CHECK(figures.charged_bytes == 5);
        STRESS_CHECK(stats.over_refund_count == i + 1);
    }
    pthread_join(thread, NULL);
    weir_account_close(race.account);
    weir_governor_destroy(governor);
}

/* Fills everything and gives it back at once, while the other begins to wait. */
static void *passer_main(void *context)
{
    struct race *race = context;
    struct weir_account_config config = {.transient = true};
    struct weir_account *account;
    uint64_t seed = 2;

    STRESS_CHECK(weir_account_open(race->governor, &config, &account) == 0);
    for (uint64_t i = 0; i < race->round_count; i++) {
        enum weir_verdict verdict;
        meet(&race->meeting);
        dawdle(&seed);
        STRESS_CHECK(weir_account_charge(account, 80, &verdict) == 0);
        dawdle(&seed);
        if (verdict == WEIR_ADMIT)
            weir_account_refund(account, 80);
        meet(&race->meeting);
    }
    weir_account_close(account);
    return NULL;
}

static void test_what_is_under_way_is_hope(void **state)
{
    struct weir_governor_config config = {.bytes_max = 100, .node_count = 1};
    struct weir_account_config fixed = {.name = "fixed"};
    struct race race = {.round_count = steps() / 2};
    uint64_t seed = harness_seed();
    struct weir_account *account;
    pthread_t thread;

    (void)state;
    assert_int_equal(weir_governor_create(&config, &race.governor), 0);
    assert_int_equal(weir_account_open(race.governor, &fixed, &account), 0);
    assert_int_equal(pthread_create(&thread, NULL, passer_main, &race), 0);
    for (uint64_t i = 0; i < race.round_count; i++) {
        struct weir_waiter waiter = {0};
        meet(&race.meeting);
        dawdle(&seed);
        STRESS_CHECK(weir_account_wait(account, &waiter, 50, UINT64_MAX) == 0);
        weir_account_refund(account, 50);
        meet(&race.meeting);
    }
    pthread_join(thread, NULL);
    weir_account_close(account);
    weir_governor_destroy(race.governor);
}

/* ---- Owners that leave as soon as they have what they waited for ------------------ */

struct leaver {
    bool *alive; /* of the owner, on the heap: a call after close is a use after free */
    struct weir_waiter waiter;
    bool woken;
};

static void leaver_notify(void *context)
{
    struct leaver *leaver = context;

    STRESS_CHECK(*leaver->alive);
}

static void leaver_wake(struct weir_waiter *waiter, int result)
{
    struct leaver *leaver =
        (struct leaver *)(void *)((char *)waiter - offsetof(struct leaver, waiter));

    STRESS_CHECK(result == 0);
    leaver->woken = true;
}

static void *freer_main(void *context)
{
    struct race *race = context;

    for (uint64_t i = 0; i < race->round_count; i++) {
        meet(&race->meeting);
        weir_account_refund_remote(race->account, 50);
        meet(&race->meeting);
    }
    return NULL;
}

static void leave_once(struct weir_governor *governor, struct meeting *meeting)
{
    struct leaver *leaver = calloc(1, sizeof(*leaver));
    struct weir_account_config config = {.notify = leaver_notify, .context = leaver};
    struct weir_account *account;

    STRESS_CHECK(leaver != NULL);
    leaver->alive = malloc(sizeof(bool));
    STRESS_CHECK(leaver->alive != NULL);
    *leaver->alive = true;
    leaver->waiter.wake = leaver_wake;
    STRESS_CHECK(weir_account_open(governor, &config, &account) == 0);
    STRESS_CHECK(weir_account_wait(account, &leaver->waiter, 50, UINT64_MAX) == 0);
    meet(meeting);
    while (!leaver->woken)
        weir_account_poll(account);
    weir_account_close(account);
    free(leaver->alive);
    free(leaver);
    meet(meeting);
}

static void test_owners_may_leave_at_once(void **state)
{
    struct weir_governor_config config = {.bytes_max = 100, .node_count = 1};
    struct weir_account_config holder = {.transient = true};
    struct race race = {.round_count = steps() / 8};
    struct weir_governor *governor;
    enum weir_verdict verdict;
    pthread_t thread;

    (void)state;
    assert_int_equal(weir_governor_create(&config, &governor), 0);
    assert_int_equal(weir_account_open(governor, &holder, &race.account), 0);
    assert_int_equal(weir_account_charge(race.account, 100, &verdict), 0);
    assert_int_equal(pthread_create(&thread, NULL, freer_main, &race), 0);
    for (uint64_t i = 0; i < race.round_count; i++) {
        leave_once(governor, &race.meeting);
        weir_account_charge_forced(race.account, 50);
    }
    pthread_join(thread, NULL);
    weir_account_close(race.account);
    weir_governor_destroy(governor);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"granted charges never pass hard", test_granted_charges_never_pass_hard, NULL, NULL, NULL},
        {"nor do they beside forced ones", test_nor_do_they_beside_forced_ones, NULL, NULL, NULL},
        {"nor from leases", test_nor_from_leases, NULL, NULL, NULL},
        {"nor do they on two nodes", test_nor_do_they_on_two_nodes, NULL, NULL, NULL},
        {"no sleeper is forgotten", test_no_sleeper_is_forgotten, NULL, NULL, NULL},
        {"racing over-refunds heal", test_racing_over_refunds_heal, NULL, NULL, NULL},
        {"what is under way is hope", test_what_is_under_way_is_hope, NULL, NULL, NULL},
        {"owners may leave as soon as they are woken", test_owners_may_leave_at_once, NULL, NULL,
         NULL},
    };

    return cmocka_run_group_tests_name("governor", tests, NULL, NULL);
}
