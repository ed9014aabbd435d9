/* SPDX-License-Identifier: MIT */
/*
 * reorder_reclaim - memory that one account needs and another gives
 *
 * The real governor and the real region. Nobody pushes and nobody asks for a spill
 * while somebody waits: there are only polls.
 */
#include <weir/reorder.h>

#include "base/clock.h"
#include "pattern.h"
#include "tmpdir.h"

#include <weir/governor.h>
#include <weir/region.h>
#include <weir/writebuf.h>

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MIB         (UINT64_C(1) << 20)
#define ITEM_BYTES  4096u
#define SECOND      UINT64_C(1000000000)
#define PATIENCE_NS (100 * SECOND) /* of a busy machine */

struct fixture {
    struct weir_governor *governor;
    struct weir_region *region;
    struct weir_account *giver;
    struct weir_account *taker;
    struct weir_reorder *reorder;
    struct weir_writebuf_set *set;
    bool has_no_room;
    int woken_count;
    int result;
};

static bool has_room(void *context, size_t bytes)
{
    (void)bytes;
    return !((struct fixture *)context)->has_no_room;
}

static int begin(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));

    assert_int_equal(
        weir_governor_create(&(struct weir_governor_config){.bytes_max = 8 * MIB, .node_count = 1},
                             &fixture->governor),
        0);
    assert_int_equal(weir_region_open(
                         &(struct weir_region_config){
                             .directory = harness_tmpdir(),
                             .bytes_initial = 16 * MIB,
                             .bytes_max = 64 * MIB,
                         },
                         &fixture->region),
                     0);
    assert_int_equal(weir_account_open(fixture->governor,
                                       &(struct weir_account_config){.name = "giver",
                                                                     .has_room = has_room,
                                                                     .context = fixture},
                                       &fixture->giver),
                     0);
    assert_int_equal(weir_account_open(fixture->governor,
                                       &(struct weir_account_config){.name = "taker"},
                                       &fixture->taker),
                     0);
    *state = fixture;
    return 0;
}

static int end(void **state)
{
    struct fixture *fixture = *state;

    weir_reorder_destroy(fixture->reorder);
    weir_writebuf_destroy(fixture->set);
    weir_account_close(fixture->giver);
    weir_account_close(fixture->taker);
    weir_region_close(fixture->region);
    weir_governor_destroy(fixture->governor);
    free(fixture);
    return 0;
}

/* A buffer on @account with items 1 to @count in memory; the head is missing. */
static struct weir_reorder *make(struct fixture *fixture, struct weir_account *account,
                                 uint32_t hot_items, uint64_t count)
{
    struct weir_reorder *reorder;
    char item[ITEM_BYTES];

    assert_int_equal(weir_reorder_create(&(struct weir_reorder_config){.account = account,
                                                                       .region = fixture->region,
                                                                       .hot_items = hot_items},
                                         &reorder),
                     0);
    for (uint64_t i = 1; i <= count; i++) {
        harness_fill(item, sizeof(item), i, 0);
        assert_int_equal(weir_reorder_push(reorder, i, item, sizeof(item)), 0);
    }
    return reorder;
}

static struct weir_reorder_stats stats_of(const struct weir_reorder *reorder)
{
    struct weir_reorder_stats stats;

    weir_reorder_stats(reorder, &stats);
    return stats;
}

static struct weir_account_stats account_of(const struct weir_account *account)
{
    struct weir_account_stats stats;

    weir_account_stats(account, &stats);
    return stats;
}

static struct fixture *waiting;

static void on_wake(struct weir_waiter *waiter, int result)
{
    (void)waiter;
    waiting->woken_count++;
    waiting->result = result;
}

/* Until memory is granted, by so many rounds of polls at most. */
static void poll_until_woken(struct fixture *fixture, int rounds_max)
{
    for (int i = 0; fixture->woken_count == 0; i++) {
        assert_true(i < rounds_max);
        weir_account_poll(fixture->giver);
        weir_account_poll(fixture->taker);
    }
}

/* All items, in order, as they were pushed. */
static void drain(struct fixture *fixture, struct weir_reorder *reorder, uint64_t count)
{
    struct weir_item item;

    assert_int_equal(weir_reorder_skip(reorder), 0);
    for (uint64_t i = 1; i <= count; i++) {
        int r = weir_reorder_pop(reorder, &item);

        for (; r == -EAGAIN; r = weir_reorder_pop(reorder, &item))
            weir_region_poll(fixture->region);
        assert_int_equal(r, 0);
        assert_int_equal(item.sequence, i);
        assert_int_equal(harness_differs_at(item.data, item.bytes, i, 0), ITEM_BYTES);
        weir_reorder_release(reorder, &item);
    }
}

/* ---- Cases ------------------------------------------------------------------------ */

static void test_a_waiter_is_granted(void **state)
{
    struct fixture *fixture = *state;
    struct weir_waiter waiter = {.wake = on_wake};

    waiting = fixture;
    fixture->reorder = make(fixture, fixture->giver, 0, 1400); /* 5.5 MiB and a little: calm */
    assert_int_equal(stats_of(fixture->reorder).spill_count, 0);
    assert_int_equal(weir_account_wait(fixture->taker, &waiter, 5 * MIB, UINT64_MAX), 0);
    poll_until_woken(fixture, 100);
    assert_int_equal(fixture->result, 0);

    /* What came is in the figures, of the account and of the buffer. */
    struct weir_reorder_stats stats = stats_of(fixture->reorder);
    struct weir_account_stats account = account_of(fixture->giver);
    assert_in_range(stats.reclaim_bytes, 2 * MIB, 4 * MIB);
    assert_int_equal(stats.spill_bytes, stats.reclaim_bytes);
    assert_in_range(account.asked_count, 2, 8); /* a mebibyte at a time */
    assert_true(account.came_bytes >= stats.reclaim_bytes);
    assert_int_equal(account.broken_count, 0);
    assert_int_equal(account_of(fixture->taker).asked_count, 0);
    weir_reorder_audit(fixture->reorder);

    weir_account_refund(fixture->taker, 5 * MIB);
    drain(fixture, fixture->reorder, 1400);
    weir_reorder_audit(fixture->reorder);
}

static void *sleep_for_memory(void *context)
{
    struct fixture *fixture = context;
    struct weir_account *account;
    struct weir_waiter waiter = {0};

    assert_int_equal(weir_account_open(fixture->governor, NULL, &account), 0);
    fixture->result = weir_account_wait(account, &waiter, 5 * MIB, weir__clock_ns() + 60 * SECOND);
    weir_account_close(account);
    __atomic_store_n(&fixture->woken_count, 1, __ATOMIC_RELEASE);
    return NULL;
}

static void test_a_thread_is_granted(void **state)
{
    struct fixture *fixture = *state;
    pthread_t thread;

    fixture->result = -1;
    fixture->reorder = make(fixture, fixture->giver, 0, 1400);
    assert_int_equal(pthread_create(&thread, NULL, sleep_for_memory, fixture), 0);
    while (__atomic_load_n(&fixture->woken_count, __ATOMIC_ACQUIRE) == 0)
        weir_account_poll(fixture->giver);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(fixture->result, 0);
    assert_true(stats_of(fixture->reorder).reclaim_bytes >= 2 * MIB);
    drain(fixture, fixture->reorder, 1400);
}

/* Above soft, too: nobody waits, and the use falls to where soft ends. */
static void test_soft_is_left(void **state)
{
    struct fixture *fixture = *state;
    struct weir_governor_stats stats;
    enum weir_verdict verdict;

    fixture->reorder = make(fixture, fixture->giver, 0, 1400);
    assert_int_equal(weir_account_charge(fixture->taker, MIB, &verdict), 0);
    assert_int_equal(verdict, WEIR_FLUSH); /* to one who has nothing to flush */
    for (int i = 0; i < 10; i++) {
        weir_account_poll(fixture->taker);
        weir_account_poll(fixture->giver);
    }
    weir_governor_stats(fixture->governor, &stats);
    assert_int_equal(stats.level, WEIR_LEVEL_CALM);
    assert_in_range(stats.charged_bytes, 8 * MIB / 10 * 6, 8 * MIB / 10 * 7);
    weir_account_refund(fixture->taker, MIB);
}

struct store {
    struct weir_reclaimer reclaimer;
    uint64_t has_bytes;
    int called_count;
};

static uint64_t store_reclaim(struct weir_reclaimer *reclaimer, uint64_t bytes)
{
    struct store *store = (struct store *)(void *)reclaimer;

    (void)bytes;
    store->called_count++;
    weir_account_refund(reclaimer->account, store->has_bytes);
    return store->has_bytes;
}

/* Whom the buffer cannot help, the next in cost does, and soon. */
static void pass_over(struct fixture *fixture, uint64_t charged_bytes)
{
    struct weir_waiter waiter = {.wake = on_wake};
    struct store store = {
        .reclaimer = {.name = "store", .cost = 200, .reclaim = store_reclaim},
        .has_bytes = charged_bytes,
    };
    enum weir_verdict verdict;

    waiting = fixture;
    assert_int_equal(weir_account_charge(fixture->taker, charged_bytes, &verdict), 0);
    weir_account_add_reclaimer(fixture->taker, &store.reclaimer);
    assert_int_equal(weir_account_wait(fixture->taker, &waiter, 4 * MIB, UINT64_MAX), 0);
    poll_until_woken(fixture, 20);
    assert_int_equal(store.called_count, 1);
    assert_true(account_of(fixture->giver).asked_count > 0);
    assert_int_equal(account_of(fixture->giver).broken_count, 0);
    weir_account_remove_reclaimer(fixture->taker, &store.reclaimer);
    weir_account_refund(fixture->taker, 4 * MIB);
}

static void test_nothing_to_spill(void **state)
{
    struct fixture *fixture = *state;

    /* All of it is in the hot zone. */
    fixture->reorder = make(fixture, fixture->giver, 1000, 900);
    pass_over(fixture, 2 * MIB);
    assert_int_equal(stats_of(fixture->reorder).spill_count, 0);
}

static void test_no_room(void **state)
{
    struct fixture *fixture = *state;

    fixture->reorder = make(fixture, fixture->giver, 0, 900);
    fixture->has_no_room = true;
    pass_over(fixture, 2 * MIB);
    assert_int_equal(stats_of(fixture->reorder).spill_count, 0);

    /* And when there is room, it is asked again. */
    fixture->has_no_room = false;
    waiting->woken_count = 0;
    struct weir_waiter waiter = {.wake = on_wake};
    uint64_t since_ns = weir__clock_ns();
    while (weir_account_wait(fixture->taker, &waiter, 7 * MIB, UINT64_MAX) < 0)
        assert_true(weir__clock_ns() - since_ns < PATIENCE_NS); /* the pause after a round */
    while (fixture->woken_count == 0) {
        weir_account_poll(fixture->giver);
        weir_account_poll(fixture->taker);
        assert_true(weir__clock_ns() - since_ns < PATIENCE_NS);
    }
    assert_true(stats_of(fixture->reorder).reclaim_bytes >= 2 * MIB);
    weir_account_refund(fixture->taker, 7 * MIB);
}

/* It is asked, and gone before it polls. */
static void test_destroyed_while_asked(void **state)
{
    struct fixture *fixture = *state;
    struct weir_waiter waiter = {.wake = on_wake};

    waiting = fixture;
    fixture->reorder = make(fixture, fixture->giver, 0, 900);
    assert_int_equal(weir_account_wait(fixture->taker, &waiter, 6 * MIB, UINT64_MAX), 0);
    assert_int_equal(account_of(fixture->giver).asked_count, 1);
    weir_reorder_destroy(fixture->reorder);
    fixture->reorder = NULL;
    weir_account_poll(fixture->giver);
    weir_account_poll(fixture->taker);
    assert_int_equal(fixture->woken_count, 1); /* by what the buffer had */
    weir_account_refund(fixture->taker, 6 * MIB);
}

static void test_many_buffers(void **state)
{
    struct fixture *fixture = *state;
    struct weir_reorder *reorders[500];
    struct weir_waiter waiter = {.wake = on_wake};
    uint64_t spilled_count = 0;

    waiting = fixture;
    for (uint32_t i = 0; i < 500; i++)
        assert_int_equal(
            weir_reorder_create(&(struct weir_reorder_config){.account = fixture->giver,
                                                              .region = fixture->region,
                                                              .hot_items = 1,
                                                              .working_bytes = 16},
                                &reorders[i]),
            0);
    for (uint32_t i = 0; i < 500; i += 50) {
        char item[ITEM_BYTES] = {0};

        for (uint64_t j = 1; j <= 50; j++)
            assert_int_equal(weir_reorder_push(reorders[i], j, item, sizeof(item)), 0);
    }
    assert_int_equal(weir_account_wait(fixture->taker, &waiter, 6 * MIB, UINT64_MAX), 0);
    poll_until_woken(fixture, 50);
    for (uint32_t i = 0; i < 500; i++) {
        spilled_count += stats_of(reorders[i]).reclaim_count > 0;
        weir_reorder_destroy(reorders[i]);
    }
    assert_int_equal(spilled_count, 10);
    weir_account_refund(fixture->taker, 6 * MIB);
}

/* ---- With a set of write buffers -------------------------------------------------- */

static int sink_begin(void *context, uint64_t id, void **ret_batch)
{
    (void)context;
    (void)id;
    *ret_batch = NULL;
    return 0;
}

static int sink_take(void *context, void *batch, const struct weir_writebuf_record *record)
{
    (void)context;
    (void)batch;
    (void)record;
    return 0;
}

static int sink_commit(void *context, void *batch, uint64_t sequence)
{
    (void)batch;
    (void)sequence;
    return *(const int *)context;
}

static void sink_abort(void *context, void *batch)
{
    (void)context;
    (void)batch;
}

/* A set whose commits answer *@result, with @count records of 4 KiB that nothing flushes. */
static struct weir_writebuf_set *make_set(struct fixture *fixture, struct weir_region *region,
                                          int *result, uint64_t count)
{
    char value[ITEM_BYTES] = {0};
    struct weir_writebuf_config config = {
        .account = fixture->giver,
        .region = region,
        .sink =
            {
                .begin = sink_begin,
                .put = sink_take,
                .remove = sink_take,
                .commit = sink_commit,
                .abort = sink_abort,
                .context = result,
            },
        .flushes_max = 1,
        .trigger_bytes = UINT64_MAX,
        .trigger_age_ns = UINT64_MAX,
        .quiet_ns = UINT64_MAX,
    };
    struct weir_writebuf_set *set;
    struct weir_writebuf *buffer;

    assert_int_equal(weir_writebuf_create(&config, &set), 0);
    fixture->set = set;
    for (uint64_t i = 0; i < count; i++) {
        struct weir_writebuf_record record = {
            .sequence = 1 + i / 4,
            .value = value,
            .value_bytes = sizeof(value),
        };

        assert_int_equal(weir_writebuf_ensure(set, i % 4, &buffer), 0);
        assert_int_equal(weir_writebuf_append(buffer, &record), 0);
    }
    assert_int_equal(weir_writebuf_poll(set, SECOND), 0);
    return set;
}

static uint64_t spilled_of(const struct weir_writebuf_set *set)
{
    struct weir_writebuf_stats stats;

    weir_writebuf_stats(set, &stats);
    return stats.block_bytes;
}

static void test_a_set_flushes(void **state)
{
    struct fixture *fixture = *state;
    struct weir_waiter waiter = {.wake = on_wake};
    int result = 0;
    struct weir_writebuf_set *set = make_set(fixture, NULL, &result, 900);

    waiting = fixture;
    assert_int_equal(weir_account_wait(fixture->taker, &waiter, 5 * MIB, UINT64_MAX), 0);
    for (int i = 0; fixture->woken_count == 0; i++) {
        assert_true(i < 1000);
        weir_account_poll(fixture->giver);
        weir_account_poll(fixture->taker);
        weir_writebuf_poll(set, SECOND + (uint64_t)i);
    }
    weir_account_refund(fixture->taker, 5 * MIB);
}

/* A sink that hangs delays nobody: what can spill does. */
static void test_a_set_spills(void **state)
{
    struct fixture *fixture = *state;
    struct weir_waiter waiter = {.wake = on_wake};
    int result = -EAGAIN;
    struct weir_writebuf_set *set = make_set(fixture, fixture->region, &result, 900);

    waiting = fixture;
    assert_int_equal(weir_account_wait(fixture->taker, &waiter, 5 * MIB, UINT64_MAX), 0);
    poll_until_woken(fixture, 100);
    assert_in_range(spilled_of(set), MIB, 3 * MIB);
    assert_int_equal(account_of(fixture->giver).broken_count, 0);
    weir_account_refund(fixture->taker, 5 * MIB);
}

/* Flushes were promised, and the sink stops: then others are asked. */
static void test_a_broken_promise(void **state)
{
    struct fixture *fixture = *state;
    struct weir_waiter waiter = {.wake = on_wake};
    int result = 0;
    struct weir_writebuf_set *set = make_set(fixture, NULL, &result, 200);
    struct weir_writebuf *buffer = weir_writebuf_next(set, NULL);
    struct weir_governor_stats stats;

    waiting = fixture;
    weir_writebuf_flush(buffer, NULL, UINT64_MAX);
    while (weir_writebuf_poll(set, SECOND) > 0)
        continue;
    result = -EAGAIN;
    fixture->reorder = make(fixture, fixture->giver, 0, 900);
    weir_governor_stats(fixture->governor, &stats);
    uint64_t wanted = stats.bytes_max - stats.charged_bytes + MIB / 4;
    assert_int_equal(weir_account_wait(fixture->taker, &waiter, wanted, UINT64_MAX), 0);
    uint64_t since_ns = weir__clock_ns();
    while (fixture->woken_count == 0) {
        weir_account_poll(fixture->giver);
        weir_account_poll(fixture->taker);
        weir_writebuf_poll(set, SECOND);
        assert_true(weir__clock_ns() - since_ns < PATIENCE_NS);
    }
    assert_int_equal(account_of(fixture->giver).broken_count, 1);
    assert_true(stats_of(fixture->reorder).reclaim_bytes > 0);
    weir_account_refund(fixture->taker, wanted);
}

/* One account, two modules: neither gives all before the other has given some. */
static void test_both_give(void **state)
{
    struct fixture *fixture = *state;
    struct weir_waiter waiter = {.wake = on_wake};
    int result = -EAGAIN;
    struct weir_writebuf_set *set = make_set(fixture, fixture->region, &result, 500);

    waiting = fixture;
    fixture->reorder = make(fixture, fixture->giver, 0, 500);
    assert_int_equal(weir_account_wait(fixture->taker, &waiter, 11 * MIB / 2, UINT64_MAX), 0);
    poll_until_woken(fixture, 100);
    assert_true(stats_of(fixture->reorder).reclaim_bytes >= MIB);
    assert_true(spilled_of(set) >= MIB);
    weir_account_refund(fixture->taker, 11 * MIB / 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"a waiter is granted because a buffer of another account spills", test_a_waiter_is_granted,
         begin, end, NULL},
        {"so is a thread that sleeps", test_a_thread_is_granted, begin, end, NULL},
        {"buffers spill until soft is left", test_soft_is_left, begin, end, NULL},
        {"a buffer with nothing to spill is passed over", test_nothing_to_spill, begin, end, NULL},
        {"a buffer without room is passed over, and asked again", test_no_room, begin, end, NULL},
        {"a buffer may go while it is asked", test_destroyed_while_asked, begin, end, NULL},
        {"of hundreds of buffers those give that have", test_many_buffers, begin, end, NULL},
        {"a set that is idle flushes for a waiter", test_a_set_flushes, begin, end, NULL},
        {"a set whose sink hangs spills for a waiter", test_a_set_spills, begin, end, NULL},
        {"a flush that was promised and does not come is passed over", test_a_broken_promise, begin,
         end, NULL},
        {"a reorder buffer and a set give in turn", test_both_give, begin, end, NULL},
    };

    return cmocka_run_group_tests_name("reorder_reclaim", tests, NULL, NULL);
}
