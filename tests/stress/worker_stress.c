/* SPDX-License-Identifier: MIT */
/*
 * worker_stress - nothing lost, nothing out of order, nobody left asleep
 *
 * Ticks are so long that a lost wake-up is a hang, and a hang is a failure: no
 * case relies on time otherwise. Three games:
 *
 *   litmus   two threads, the queue and the sleep protocol alone, no ring: the
 *            window between 'empty' and 'asleep' is hit as often as can be
 *   storm    N workers send numbered messages to all, sleep and wake at random,
 *            ask for answers, find queues full
 *   calls    threads outside wake workers and wait until a turn has seen what
 *            they left before
 */
#include <weir/worker.h>

#include "base/bits.h"
#include "base/fence.h"
#include "base/sys.h"
#include "seed.h"
#include "worker/mailbox.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define HANG_SECONDS     120
#define LONG_NS          UINT64_C(3600000000000)
#define STRESS_SECONDS   2
#define WORKERS_MAX      6
#define LITMUS_ROUNDS    100000
#define STORM_PER_PAIR   300
#define CALLERS          3
#define CALLS_PER_CALLER 1000

static uint64_t stress_seed;

/* ---- Helpers -------------------------------------------------------------- */

static void hang_is_failure(sem_t *done)
{
    struct timespec end;

    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += HANG_SECONDS;
    while (sem_timedwait(done, &end) < 0) {
        if (errno == EINTR)
            continue;
        fprintf(stderr, "somebody is left asleep\n");
        abort();
    }
}

static bool time_is_left(time_t begin)
{
    const char *given = getenv("WEIR_STRESS_SECONDS");
    time_t seconds = given != NULL ? (time_t)strtoul(given, NULL, 10) : STRESS_SECONDS;

    return time(NULL) - begin < seconds;
}

/* ---- Litmus --------------------------------------------------------------- */

struct litmus {
    struct weir_mesh *mesh;
    uint32_t me;
    uint64_t random;
    uint64_t sleeps;
    sem_t *done;
};

static void litmus_send(struct litmus *litmus, struct weir_message *message)
{
    struct weir__port *peer = &litmus->mesh->ports[1 - litmus->me];

    if (!weir__mesh_push(litmus->mesh, litmus->me, 1 - litmus->me, message))
        abort();
    weir__fence();
    if (weir__port_sleep(peer) != 0)
        weir__sys_eventfd_signal(peer->event_fd);
}

static void litmus_receive(struct litmus *litmus, const struct weir_message *expected)
{
    struct weir__port *port = &litmus->mesh->ports[litmus->me];
    uint64_t patience = UINT64_C(1) << weir__random_below(&litmus->random, 14);

    for (;;) {
        struct weir_message *message = weir__mesh_pop(litmus->mesh, 1 - litmus->me, litmus->me);
        if (message != NULL) {
            if (message != expected)
                abort();
            return;
        }
        /* Awake for as long as a wake-up takes, more or less: else both always meet asleep. */
        if (patience-- > 0)
            continue;
        patience = UINT64_C(1) << weir__random_below(&litmus->random, 14);
        weir__port_lie_down(port);
        if (weir__mesh_is_quiet(litmus->mesh, litmus->me)) {
            uint64_t value;
            if (read(port->event_fd, &value, sizeof(value)) != (ssize_t)sizeof(value))
                abort();
            litmus->sleeps++;
        }
        weir__port_get_up(port);
    }
}

static void *litmus_main(void *context)
{
    struct litmus *litmus = context;
    static struct weir_message messages[8];

    for (uint32_t i = 0; i < LITMUS_ROUNDS; i++) {
        struct weir_message *message = &messages[i % 8];
        if (litmus->me == 0) {
            litmus_send(litmus, message);
            litmus_receive(litmus, message);
        } else {
            litmus_receive(litmus, message);
            litmus_send(litmus, message);
        }
    }
    sem_post(litmus->done);
    return NULL;
}

static void nobody_sleeps_over_a_message(void **state)
{
    struct weir_mesh *mesh;
    struct litmus sides[2];
    pthread_t threads[2];
    sem_t done;

    (void)state;
    sem_init(&done, 0, 0);
    assert_int_equal(weir_mesh_create(2, 8, &mesh), 0);
    for (uint32_t i = 0; i < 2; i++) {
        sides[i] = (struct litmus){mesh, i, stress_seed + i, 0, &done};
        assert_int_equal(pthread_create(&threads[i], NULL, litmus_main, &sides[i]), 0);
    }
    for (uint32_t i = 0; i < 2; i++)
        hang_is_failure(&done);
    for (uint32_t i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    printf("# %d rounds, %" PRIu64 " sleeps\n", LITMUS_ROUNDS, sides[0].sleeps + sides[1].sleeps);
    weir_mesh_destroy(mesh);
    sem_destroy(&done);
}

/* ---- Storm ---------------------------------------------------------------- */

struct storm;

struct drop {
    struct weir_message message;
    struct storm *storm;
    uint32_t sender;
    uint32_t number;
    bool wants_answer;
    bool is_answer;
};

struct storm_side {
    struct storm *storm;
    uint64_t random;
    uint32_t left[WORKERS_MAX];      /* still to send to each, answers come on top */
    uint32_t sent[WORKERS_MAX];      /* numbers given to each */
    uint32_t received[WORKERS_MAX];  /* numbers seen of each */
    uint32_t answers[WORKERS_MAX];   /* owed to each */
    struct drop *stuck[WORKERS_MAX]; /* the queue was full */
    uint32_t questions;              /* asked and not answered */
    uint64_t stuck_count;
};

struct storm {
    uint32_t worker_count;
    struct storm_side sides[WORKERS_MAX];
    uint64_t wanted;   /* plain messages in all */
    uint64_t received; /* of these; atomic */
    sem_t done;
};

static void storm_receive(struct weir_worker *worker, struct weir_message *message)
{
    struct drop *drop = WEIR_CONTAINER_OF(message, struct drop, message);
    uint32_t me = weir_worker_index(worker);
    struct storm_side *side = &drop->storm->sides[me];

    if (drop->number != side->received[drop->sender]++) {
        fprintf(stderr, "worker %u: %u of %u is not in order\n", me, drop->number, drop->sender);
        abort();
    }
    if (drop->wants_answer)
        side->answers[drop->sender]++;
    if (drop->is_answer)
        side->questions--;
    else if (__atomic_add_fetch(&side->storm->received, 1, __ATOMIC_ACQ_REL) == side->storm->wanted)
        sem_post(&side->storm->done);
    free(drop);
}

/* Whether it is gone; else it is stuck, and goes before all others to @to. */
static bool storm_push(struct weir_worker *worker, struct storm_side *side, uint32_t to,
                       struct drop *drop)
{
    int r = weir_worker_send(worker, to, &drop->message);

    if (r == 0) {
        side->stuck[to] = NULL;
        return true;
    }
    if (r == -ECANCELED && drop->is_answer) { /* the storm is over, the asker has gone */
        side->sent[to]--;
        side->stuck[to] = NULL;
        free(drop);
        return true;
    }
    if (r != -EAGAIN) {
        fprintf(stderr, "worker %u cannot send to %u: %d\n", drop->sender, to, r);
        abort();
    }
    side->stuck[to] = drop;
    side->stuck_count++;
    return false;
}

static bool storm_send(struct weir_worker *worker, struct storm_side *side, uint32_t to,
                       bool wants_answer, bool is_answer)
{
    struct drop *drop = malloc(sizeof(*drop));

    if (drop == NULL)
        abort();
    *drop = (struct drop){{storm_receive},  side->storm,  weir_worker_index(worker),
                          side->sent[to]++, wants_answer, is_answer};
    side->questions += wants_answer;
    return storm_push(worker, side, to, drop);
}

/* Whether nothing is stuck and nothing owed. */
static bool storm_settle(struct weir_worker *worker, struct storm_side *side)
{
    bool settled = true;

    for (uint32_t to = 0; to < side->storm->worker_count; to++) {
        if (side->stuck[to] != NULL && !storm_push(worker, side, to, side->stuck[to])) {
            settled = false;
            continue;
        }
        while (side->answers[to] > 0 && side->stuck[to] == NULL) {
            side->answers[to]--;
            (void)storm_send(worker, side, to, false, true);
        }
        settled = settled && side->stuck[to] == NULL;
    }
    return settled;
}

static bool storm_has_left(const struct storm_side *side)
{
    for (uint32_t to = 0; to < side->storm->worker_count; to++)
        if (side->left[to] > 0)
            return true;
    return false;
}

static void storm_tick(struct weir_worker *worker, void *context)
{
    struct storm *storm = context;
    struct storm_side *side = &storm->sides[weir_worker_index(worker)];
    uint64_t burst = weir__random_below(&side->random, 12);

    if (!storm_settle(worker, side)) {
        weir_worker_wake(worker); /* somebody's queue is full: look again, do not sleep */
        sched_yield();
        return;
    }
    while (burst-- > 0) {
        uint32_t to = (uint32_t)weir__random_below(&side->random, storm->worker_count);
        if (side->left[to] == 0 || side->stuck[to] != NULL)
            continue;
        side->left[to]--;
        bool question = weir__random_below(&side->random, 4) == 0;
        (void)storm_send(worker, side, to, question, false);
    }
    for (uint32_t to = 0; to < storm->worker_count; to++)
        if (side->stuck[to] != NULL)
            weir_worker_wake(worker);

    /* Sleep only when an answer is to come: it must wake us. */
    if (storm_has_left(side) && (side->questions == 0 || weir__random_below(&side->random, 2) == 0))
        weir_worker_wake(worker);
}

static bool storm_stop(struct weir_worker *worker, void *context)
{
    struct storm *storm = context;
    struct storm_side *side = &storm->sides[weir_worker_index(worker)];
    bool quiet = storm_settle(worker, side);

    if (!quiet)
        weir_worker_wake(worker);
    return quiet;
}

struct storm_sum {
    uint64_t rounds;
    uint64_t messages;
    uint64_t sleeps;
    uint64_t doorbells;
    uint64_t stuck;
};

static void storm_round(uint64_t *random, struct storm_sum *sum)
{
    struct storm *storm = calloc(1, sizeof(*storm));
    struct weir_worker *workers[WORKERS_MAX];
    struct weir_worker_stats stats;
    struct weir_mesh *mesh;

    assert_non_null(storm);
    storm->worker_count = 1 + (uint32_t)weir__random_below(random, WORKERS_MAX);
    uint32_t messages_max =
        1u << (weir__random_below(random, 4) == 0 ? weir__random_below(random, 4)
                                                  : weir__random_below(random, 9));
    sem_init(&storm->done, 0, 0);
    storm->wanted = (uint64_t)storm->worker_count * storm->worker_count * STORM_PER_PAIR;
    assert_int_equal(weir_mesh_create(storm->worker_count, messages_max, &mesh), 0);
    for (uint32_t i = 0; i < storm->worker_count; i++) {
        storm->sides[i].storm = storm;
        storm->sides[i].random = weir__random(random);
        for (uint32_t to = 0; to < storm->worker_count; to++)
            storm->sides[i].left[to] = STORM_PER_PAIR;
    }

    for (uint32_t i = 0; i < storm->worker_count; i++) {
        struct weir_worker_config config = {
            .mesh = mesh,
            .index = i,
            .ring_entries = 1u << weir__random_below(random, 8),
            .tick_ns = LONG_NS,
            .on_tick = storm_tick,
            .on_stop = storm_stop,
            .context = storm,
        };
        assert_int_equal(weir_worker_start(&config, &workers[i]), 0);
        weir_worker_wake(workers[i]);
    }
    hang_is_failure(&storm->done);

    for (uint32_t i = 0; i < storm->worker_count; i++) {
        weir_worker_stats(workers[i], &stats);
        sum->sleeps += stats.sleep_count;
        sum->doorbells += stats.doorbell_count;
    }
    for (uint32_t i = 0; i < storm->worker_count; i++)
        weir_worker_stop(workers[i]);

    /* Answers may still be under way when the last plain message has come. */
    for (uint32_t to = 0; to < storm->worker_count; to++) {
        for (uint32_t from = 0; from < storm->worker_count; from++) {
            uint32_t left = 0;
            for (struct weir_message *message = weir__mesh_pop(mesh, from, to); message != NULL;
                 message = weir__mesh_pop(mesh, from, to)) {
                struct drop *drop = WEIR_CONTAINER_OF(message, struct drop, message);
                assert_int_equal(drop->number, storm->sides[to].received[from] + left++);
                assert_true(drop->is_answer);
                free(drop);
            }
            assert_int_equal(storm->sides[to].received[from] + left, storm->sides[from].sent[to]);
        }
        sum->stuck += storm->sides[to].stuck_count;
    }
    sum->rounds++;
    sum->messages += storm->wanted;
    weir_mesh_destroy(mesh);
    sem_destroy(&storm->done);
    free(storm);
}

static void nothing_is_lost_in_a_storm(void **state)
{
    uint64_t random = stress_seed;
    struct storm_sum sum = {0};
    time_t begin = time(NULL);

    (void)state;
    do
        storm_round(&random, &sum);
    while (time_is_left(begin));
    printf("# %" PRIu64 " rounds, %" PRIu64 " messages, %" PRIu64 " sleeps, %" PRIu64
           " doorbells, %" PRIu64 " times full\n",
           sum.rounds, sum.messages, sum.sleeps, sum.doorbells, sum.stuck);
    assert_true(sum.doorbells > 0); /* else nothing was tried */
    assert_true(sum.stuck > 0);
}

/* ---- Calls ---------------------------------------------------------------- */

struct call {
    uint32_t asked; /* atomic: written by the caller before it calls */
    uint32_t seen;  /* the worker's */
    sem_t answered;
};

struct calls {
    struct call calls[2][CALLERS];
    struct weir_worker *workers[2];
    uint64_t seed;
    sem_t done;
};

struct caller {
    struct calls *calls;
    uint32_t me;
};

static void calls_tick(struct weir_worker *worker, void *context)
{
    struct calls *calls = context;

    for (uint32_t i = 0; i < CALLERS; i++) {
        struct call *call = &calls->calls[weir_worker_index(worker)][i];
        uint32_t asked = __atomic_load_n(&call->asked, __ATOMIC_ACQUIRE);
        if (asked == call->seen)
            continue;
        call->seen = asked;
        sem_post(&call->answered);
    }
}

static void *caller_main(void *context)
{
    struct caller *caller = context;
    struct calls *calls = caller->calls;
    uint64_t random = calls->seed + caller->me;

    for (uint32_t i = 0; i < CALLS_PER_CALLER; i++) {
        uint64_t index = weir__random_below(&random, 2);
        struct call *call = &calls->calls[index][caller->me];
        __atomic_store_n(&call->asked, call->asked + 1, __ATOMIC_RELEASE);
        weir_worker_wake(calls->workers[index]);
        hang_is_failure(&call->answered);
    }
    sem_post(&calls->done);
    return NULL;
}

static void every_call_is_heard(void **state)
{
    struct calls calls = {.seed = stress_seed};
    struct caller callers[CALLERS];
    pthread_t threads[CALLERS];

    (void)state;
    sem_init(&calls.done, 0, 0);
    for (uint32_t i = 0; i < 2; i++) {
        for (uint32_t j = 0; j < CALLERS; j++)
            sem_init(&calls.calls[i][j].answered, 0, 0);
        struct weir_worker_config config = {
            .index = i, .tick_ns = LONG_NS, .on_tick = calls_tick, .context = &calls};
        assert_int_equal(weir_worker_start(&config, &calls.workers[i]), 0);
    }
    for (uint32_t j = 0; j < CALLERS; j++) {
        callers[j] = (struct caller){&calls, j};
        assert_int_equal(pthread_create(&threads[j], NULL, caller_main, &callers[j]), 0);
    }
    for (uint32_t j = 0; j < CALLERS; j++)
        hang_is_failure(&calls.done);
    for (uint32_t j = 0; j < CALLERS; j++)
        pthread_join(threads[j], NULL);
    for (uint32_t i = 0; i < 2; i++) {
        weir_worker_stop(calls.workers[i]);
        for (uint32_t j = 0; j < CALLERS; j++)
            sem_destroy(&calls.calls[i][j].answered);
    }
    sem_destroy(&calls.done);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"nobody sleeps over a message", nobody_sleeps_over_a_message, NULL, NULL, NULL},
        {"nothing is lost in a storm", nothing_is_lost_in_a_storm, NULL, NULL, NULL},
        {"every call from outside is heard", every_call_is_heard, NULL, NULL, NULL},
    };

    stress_seed = harness_seed();
    return cmocka_run_group_tests_name("worker", tests, NULL, NULL);
}
