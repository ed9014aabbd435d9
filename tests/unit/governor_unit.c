/* SPDX-License-Identifier: MIT */
/* governor: what the header promises, call by call; then turn-taking and the machine's limits */
#include <weir/governor.h>

#include "base/clock.h"
#include "governor/budget.h"
#include "governor/ledger.h"
#include "governor/limits.h"
#include "governor/nodes.h"
#include "governor/queue.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "forbid.h"
#include "machine.h"
#include "tmpdir.h"

#define GIB         (UINT64_C(1) << 30)
#define PATIENCE_NS UINT64_C(100000000000) /* of a busy machine */

/* A governor of 1000 bytes: soft 800 (700), spill 900 (850), hard 1000 (970). */
static struct weir_governor *governor;

static int set_up(void **state)
{
    struct weir_governor_config config = {.bytes_max = 1000, .node_count = 1};

    (void)state;
    return weir_governor_create(&config, &governor);
}

static int tear_down(void **state)
{
    (void)state;
    weir_governor_destroy(governor);
    governor = NULL;
    return 0;
}

static struct weir_account *open_account(struct weir_account_config config)
{
    struct weir_account *account;

    assert_int_equal(weir_account_open(governor, &config, &account), 0);
    return account;
}

static struct weir_account *open_plain(void)
{
    return open_account((struct weir_account_config){.name = "plain"});
}

static struct weir_account *open_spillable(void)
{
    return open_account((struct weir_account_config){.name = "spillable", .spillable = true});
}

static struct weir_account *open_transient(void)
{
    return open_account((struct weir_account_config){.name = "transient", .transient = true});
}

static enum weir_verdict charge(struct weir_account *account, size_t bytes)
{
    enum weir_verdict verdict = (enum weir_verdict)99;

    assert_int_equal(weir_account_charge(account, bytes, &verdict), 0);
    return verdict;
}

static uint64_t charged_by(const struct weir_account *account)
{
    struct weir_account_stats stats;

    weir_account_stats(account, &stats);
    return stats.charged_bytes;
}

static struct weir_governor_stats figures(void)
{
    struct weir_governor_stats stats;

    weir_governor_stats(governor, &stats);
    return stats;
}

/* ---- Lifecycle -------------------------------------------------------------- */

static void test_bad_configs_are_refused(void **state)
{
    struct weir_governor *other = NULL;
    struct weir_governor_config config = {.bytes_max = 1000, .soft_percent = 89};
    struct weir_account_config account = {.bytes_max = 10, .reserve_bytes = 11};
    struct weir_account *opened = NULL;

    (void)state;
    assert_int_equal(weir_governor_create(&config, &other), -EINVAL);
    config = (struct weir_governor_config){.bytes_max = UINT64_MAX};
    assert_int_equal(weir_governor_create(&config, &other), -EINVAL);
    assert_null(other);

    assert_int_equal(weir_account_open(governor, &account, &opened), -EINVAL);
    account = (struct weir_account_config){.reserved = {[7] = 1}};
    assert_int_equal(weir_account_open(governor, &account, &opened), -EINVAL);
    assert_null(opened);
    assert_int_equal(figures().account_count, 0);
}

static void test_default_is_a_part_of_the_machine(void **state)
{
    struct weir_governor *other;
    struct weir_governor_stats stats;
    uint64_t machine_bytes = weir_governor_machine_bytes();

    (void)state;
    assert_true(machine_bytes > 0);
    assert_int_equal(weir_governor_create(NULL, &other), 0);
    weir_governor_stats(other, &stats);
    assert_int_equal(stats.bytes_max, machine_bytes / 100 * 60 + machine_bytes % 100 * 60 / 100);
    weir_governor_destroy(other);
}

static void test_closing_takes_nothing(void **state)
{
    (void)state;
    weir_account_close(NULL);
    weir_governor_destroy(NULL);
}

static void test_closing_refunds_what_is_left(void **state)
{
    struct weir_account *account = open_account((struct weir_account_config){.reserve_bytes = 100});

    (void)state;
    assert_int_equal(charge(account, 300), WEIR_ADMIT);
    assert_int_equal(figures().charged_bytes, 400);
    assert_int_equal(figures().account_count, 1);
    weir_account_close(account);
    assert_int_equal(figures().charged_bytes, 0);
    assert_int_equal(figures().account_count, 0);
}

static void test_a_reserve_is_kept_until_close(void **state)
{
    struct weir_account_config config = {.reserve_bytes = 400};
    struct weir_account *account = open_account(config);
    struct weir_account *other = NULL;

    (void)state;
    assert_int_equal(charged_by(account), 400);
    weir_account_refund(account, 1);
    assert_int_equal(charged_by(account), 400);
    assert_int_equal(charge(account, 300), WEIR_ADMIT);

    config.reserve_bytes = 301;
    assert_int_equal(weir_account_open(governor, &config, &other), -EDQUOT);
    config.reserve_bytes = UINT64_MAX;
    assert_int_equal(weir_account_open(governor, &config, &other), -EDQUOT);
    assert_null(other);
    assert_int_equal(figures().charged_bytes, 700);

    config.reserve_bytes = 300;
    assert_int_equal(weir_account_open(governor, &config, &other), 0);
    assert_int_equal(figures().charged_bytes, 1000);
    weir_account_close(other);
    weir_account_close(account);
}

/* ---- Verdicts --------------------------------------------------------------- */

static void test_the_four_verdicts(void **state)
{
    struct weir_account *account = open_spillable();
    struct weir_account *plain = open_plain();

    (void)state;
    assert_int_equal(charge(account, 800), WEIR_ADMIT);
    assert_int_equal(figures().level, WEIR_LEVEL_CALM);
    assert_int_equal(charge(account, 50), WEIR_FLUSH);
    assert_int_equal(figures().level, WEIR_LEVEL_SOFT);
    assert_int_equal(charge(account, 10), WEIR_ADMIT);
    assert_int_equal(charge(account, 41), WEIR_SPILL);
    assert_int_equal(charged_by(account), 860); /* what was refused is not charged */
    assert_int_equal(figures().level, WEIR_LEVEL_SPILL);
    assert_int_equal(charge(account, 1), WEIR_SPILL);
    assert_int_equal(charge(plain, 130), WEIR_ADMIT);
    assert_int_equal(charge(plain, 11), WEIR_WAIT);
    assert_int_equal(figures().level, WEIR_LEVEL_HARD);
    assert_int_equal(charge(plain, 1), WEIR_WAIT);
    assert_int_equal(charge(account, 1), WEIR_SPILL);
    assert_int_equal(figures().charged_bytes, 990);
    weir_account_close(account);
    weir_account_close(plain);
}

static void test_levels_are_left_where_they_say(void **state)
{
    struct weir_account *account = open_spillable();
    struct weir_account *plain = open_plain();

    (void)state;
    assert_int_equal(charge(plain, 1000), WEIR_FLUSH);
    assert_int_equal(charge(plain, 1), WEIR_WAIT);
    weir_account_refund(plain, 29);
    assert_int_equal(charge(plain, 1), WEIR_WAIT); /* 971: fits, but hard is not over */
    weir_account_refund(plain, 1);
    assert_int_equal(charge(plain, 1), WEIR_ADMIT);
    weir_account_refund(plain, 120); /* 851 */
    assert_int_equal(charge(account, 1), WEIR_SPILL);
    weir_account_refund(plain, 1);
    assert_int_equal(charge(account, 1), WEIR_FLUSH); /* has something to flush: once */
    assert_int_equal(figures().level, WEIR_LEVEL_SOFT);
    weir_account_refund(plain, 150); /* 701 */
    assert_int_equal(figures().level, WEIR_LEVEL_SOFT);
    weir_account_refund(plain, 1);
    assert_int_equal(figures().level, WEIR_LEVEL_CALM);
    assert_int_equal(figures().level_change_count, 5);
    weir_account_close(account);
    weir_account_close(plain);
}

static void test_flush_is_asked_once_per_episode(void **state)
{
    struct weir_account *opener = open_plain();
    struct weir_account *plain = open_plain();
    struct weir_account *one = open_spillable();
    struct weir_account *two = open_spillable();

    (void)state;
    for (int episode = 0; episode < 3; episode++) {
        assert_int_equal(charge(opener, 800), WEIR_ADMIT);
        assert_int_equal(charge(opener, 1), WEIR_FLUSH);
        assert_int_equal(charge(opener, 1), WEIR_ADMIT);
        assert_int_equal(charge(plain, 1), WEIR_ADMIT); /* has nothing to flush */
        assert_int_equal(charge(one, 10), WEIR_FLUSH);
        assert_int_equal(charge(one, 10), WEIR_ADMIT);
        assert_int_equal(charge(two, 10), WEIR_FLUSH);
        assert_int_equal(charge(two, 10), WEIR_ADMIT);
        assert_int_equal(charge(one, 10), WEIR_ADMIT);
        weir_account_refund(opener, 802); /* the episode ends */
        weir_account_refund(one, 30);
        weir_account_refund(two, 20);
        weir_account_refund(plain, 1);
    }
    assert_int_equal(figures().charged_bytes, 0);
    weir_account_close(opener);
    weir_account_close(plain);
    weir_account_close(one);
    weir_account_close(two);
}

static void test_a_forced_opening_owes_a_flush(void **state)
{
    struct weir_account *plain = open_plain();
    struct weir_account *other = open_plain();

    (void)state;
    weir_account_charge_forced(plain, 810);
    assert_int_equal(figures().level, WEIR_LEVEL_SOFT);
    assert_int_equal(charge(other, 1), WEIR_ADMIT);
    assert_int_equal(charge(plain, 1), WEIR_FLUSH);
    assert_int_equal(charge(plain, 1), WEIR_ADMIT);
    weir_account_close(plain);
    weir_account_close(other);
}

static void test_flush_bytes_reach_soft_leave(void **state)
{
    struct weir_account *account = open_spillable();
    struct weir_account *small =
        open_account((struct weir_account_config){.spillable = true, .reserve_bytes = 20});

    (void)state;
    assert_int_equal(charge(small, 10), WEIR_ADMIT);
    assert_int_equal(charge(account, 760), WEIR_ADMIT);
    assert_int_equal(weir_account_flush_bytes(account), 0);
    assert_int_equal(charge(account, 60), WEIR_FLUSH);
    assert_int_equal(weir_account_flush_bytes(account), 150);
    assert_int_equal(weir_account_flush_bytes(small), 10); /* not more than it has */
    weir_account_refund(account, 100);
    assert_int_equal(weir_account_flush_bytes(account), 50);
    weir_account_refund(account, 50);
    assert_int_equal(weir_account_flush_bytes(account), 0);
    weir_account_close(account);
    weir_account_close(small);
}

struct overflow {
    bool has_room;
    size_t asked_bytes;
    int asked_count;
};

static bool overflow_has_room(void *context, size_t bytes)
{
    struct overflow *overflow = context;

    overflow->asked_bytes = bytes;
    overflow->asked_count++;
    return overflow->has_room;
}

static void test_spill_only_with_room(void **state)
{
    struct overflow overflow = {.has_room = true};
    struct weir_account *account = open_account((struct weir_account_config){
        .spillable = true, .has_room = overflow_has_room, .context = &overflow});

    (void)state;
    assert_int_equal(charge(account, 850), WEIR_FLUSH);
    overflow.asked_count = 0;
    assert_int_equal(charge(account, 40), WEIR_ADMIT);
    assert_int_equal(overflow.asked_count, 0); /* below spill nobody is asked */
    assert_int_equal(charge(account, 20), WEIR_SPILL);
    assert_int_equal(overflow.asked_count, 1);
    assert_int_equal(overflow.asked_bytes, 20);

    overflow.has_room = false;
    assert_int_equal(charge(account, 110), WEIR_ADMIT);
    assert_int_equal(charged_by(account), 1000);
    assert_int_equal(charge(account, 1), WEIR_WAIT);
    overflow.has_room = true;
    assert_int_equal(charge(account, 1), WEIR_SPILL);
    weir_account_close(account);
}

static void test_room_is_asked_for(void **state)
{
    struct overflow overflow = {.has_room = true};
    struct weir_account *account = open_account((struct weir_account_config){
        .spillable = true, .has_room = overflow_has_room, .context = &overflow});
    struct weir_account *careless = open_account((struct weir_account_config){.spillable = true});

    (void)state;
    assert_true(weir_account_has_room(account, 77));
    assert_int_equal(overflow.asked_count, 1);
    assert_int_equal(overflow.asked_bytes, 77);
    overflow.has_room = false;
    assert_false(weir_account_has_room(account, 77));
    assert_true(weir_account_has_room(careless, 77));
    assert_int_equal(charged_by(account), 0);
    weir_account_close(careless);
    weir_account_close(account);
}

static void test_a_cap_waits_or_spills(void **state)
{
    struct weir_account *plain = open_account((struct weir_account_config){.bytes_max = 100});
    struct weir_account *spillable =
        open_account((struct weir_account_config){.bytes_max = 100, .spillable = true});
    enum weir_verdict verdict = WEIR_FLUSH;

    (void)state;
    assert_int_equal(charge(plain, 100), WEIR_ADMIT);
    assert_int_equal(charge(plain, 1), WEIR_WAIT);
    assert_int_equal(charge(spillable, 100), WEIR_ADMIT);
    assert_int_equal(charge(spillable, 1), WEIR_SPILL);
    assert_int_equal(figures().charged_bytes, 200);
    assert_int_equal(figures().level, WEIR_LEVEL_CALM);
    assert_int_equal(weir_account_charge(plain, 101, &verdict), -EINVAL);
    assert_int_equal(verdict, WEIR_FLUSH);
    weir_account_charge_forced(plain, 50); /* forced passes a cap too */
    assert_int_equal(charged_by(plain), 150);
    assert_int_equal(charge(plain, 1), WEIR_WAIT);
    weir_account_refund(plain, 51);
    assert_int_equal(charge(plain, 1), WEIR_ADMIT);
    weir_account_close(plain);
    weir_account_close(spillable);
}

static void test_what_can_never_fit_is_refused(void **state)
{
    struct weir_account *account = open_account((struct weir_account_config){.reserve_bytes = 10});
    struct weir_waiter waiter = {0};
    enum weir_verdict verdict = WEIR_FLUSH;
    static const size_t sizes[] = {991, 1001, SIZE_MAX, SIZE_MAX - 9, SIZE_MAX >> 4, SIZE_MAX >> 3};

    (void)state;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        assert_int_equal(weir_account_charge(account, sizes[i], &verdict), -EINVAL);
        assert_int_equal(weir_account_wait(account, &waiter, sizes[i], 0), -EINVAL);
    }
    assert_int_equal(verdict, WEIR_FLUSH);
    assert_int_equal(figures().charged_bytes, 10);
    assert_int_equal(charge(account, 990), WEIR_FLUSH);
    weir_account_close(account);
}

static void test_nothing_is_always_admitted(void **state)
{
    struct weir_account *account = open_plain();
    struct weir_waiter waiter = {0};

    (void)state;
    weir_account_charge_forced(account, 2000);
    assert_int_equal(charge(account, 1), WEIR_WAIT);
    assert_int_equal(charge(account, 0), WEIR_ADMIT);
    assert_int_equal(weir_account_wait(account, &waiter, 0, UINT64_MAX), 0);
    weir_account_refund(account, 0);
    assert_int_equal(charged_by(account), 2000);
    weir_account_close(account);
}

static void test_forced_charges_pass_hard(void **state)
{
    struct weir_account *account = open_plain();
    struct weir_account_stats stats;

    (void)state;
    assert_int_equal(charge(account, 500), WEIR_ADMIT);
    weir_account_charge_forced(account, 900);
    assert_int_equal(figures().charged_bytes, 1400);
    assert_int_equal(figures().peak_bytes, 1400);
    assert_int_equal(figures().level, WEIR_LEVEL_HARD);
    assert_int_equal(charge(account, 1), WEIR_WAIT);
    weir_account_refund(account, 1400);
    weir_account_stats(account, &stats);
    assert_int_equal(stats.forced_bytes, 900);
    assert_int_equal(stats.peak_bytes, 1400);
    assert_int_equal(stats.charged_bytes, 0);
    assert_int_equal(stats.over_refund_count, 0);
    assert_int_equal(figures().level, WEIR_LEVEL_CALM);
    weir_account_close(account);
}

static void test_over_refunds_are_counted(void **state)
{
    struct weir_account *account = open_plain();
    struct weir_account *other = open_plain();
    struct weir_account_stats stats;

    (void)state;
    assert_int_equal(charge(other, 100), WEIR_ADMIT);
    assert_int_equal(charge(account, 50), WEIR_ADMIT);
    weir_account_refund(account, 60);
    assert_int_equal(figures().charged_bytes, 100); /* only what was charged came back */
    weir_account_refund(account, SIZE_MAX);
    weir_account_refund_remote(account, SIZE_MAX);
    weir_account_stats(account, &stats);
    assert_int_equal(stats.charged_bytes, 0);
    assert_int_equal(stats.over_refund_count, 3);
    assert_int_equal(figures().charged_bytes, 100);

    /* And the account is not the worse for it. */
    assert_int_equal(charge(account, 70), WEIR_ADMIT);
    assert_int_equal(charged_by(account), 70);
    weir_account_refund_remote(account, 30);
    weir_account_refund(account, 40);
    weir_account_stats(account, &stats);
    assert_int_equal(stats.charged_bytes, 0);
    assert_int_equal(stats.over_refund_count, 3);
    weir_account_close(account);
    weir_account_close(other);
}

static void test_books_charge_and_refund(void **state)
{
    struct weir_account *account = open_plain();
    struct weir_books books = weir_account_books(account);

    (void)state;
    books.charge(books.context, 1200);
    assert_int_equal(charged_by(account), 1200);
    books.charge(books.context, -1150);
    assert_int_equal(charged_by(account), 50);
    books.charge(books.context, 0);
    books.charge(books.context, -50);
    assert_int_equal(figures().charged_bytes, 0);
    weir_account_close(account);
}

static void test_delay_between_soft_and_hard(void **state)
{
    struct weir_account *account = open_plain();

    (void)state;
    assert_int_equal(charge(account, 800), WEIR_ADMIT);
    assert_int_equal(weir_account_delay_ns(account), 0);
    assert_int_equal(charge(account, 100), WEIR_FLUSH);
    uint64_t middle_ns = weir_account_delay_ns(account);
    assert_in_range(middle_ns, 2000000, 3000000);
    assert_int_equal(charge(account, 100), WEIR_ADMIT);
    assert_int_equal(weir_account_delay_ns(account), 10000000);
    weir_account_close(account);
}

static void test_a_dwell_keeps_the_level_but_not_the_waiters(void **state)
{
    struct weir_governor *slow;
    struct weir_governor_config config = {
        .bytes_max = 1000, .dwell_ns = UINT64_C(3600000000000), .node_count = 1};
    struct weir_account_config account_config = {.transient = true};
    struct weir_account *account;
    struct weir_waiter waiter = {0};
    struct weir_governor_stats stats;

    (void)state;
    assert_int_equal(weir_governor_create(&config, &slow), 0);
    assert_int_equal(weir_account_open(slow, &account_config, &account), 0);
    assert_int_equal(charge(account, 1000), WEIR_FLUSH);
    assert_int_equal(charge(account, 1), WEIR_WAIT);
    weir_account_refund(account, 900);
    assert_int_equal(charge(account, 1), WEIR_WAIT);
    weir_governor_stats(slow, &stats);
    assert_int_equal(stats.level, WEIR_LEVEL_HARD);
    assert_int_equal(weir_account_wait(account, &waiter, 1, UINT64_MAX), 0);
    assert_int_equal(charged_by(account), 101);
    weir_account_close(account);
    weir_governor_destroy(slow);
}

/* ---- Waiting ---------------------------------------------------------------- */

/* A waiter that writes down when it was woken, and with what. */
struct sleeper {
    struct weir_waiter waiter;
    int result;
    int woken_count;
    int order;
};

static int woken_order;

static void sleeper_wake(struct weir_waiter *waiter, int result)
{
    struct sleeper *sleeper = (struct sleeper *)(void *)waiter;

    sleeper->result = result;
    sleeper->woken_count++;
    sleeper->order = ++woken_order;
}

static void queue_up(struct weir_account *account, struct sleeper *sleeper, size_t bytes)
{
    *sleeper = (struct sleeper){.waiter = {.wake = sleeper_wake}, .result = 1};
    assert_int_equal(weir_account_wait(account, &sleeper->waiter, bytes, UINT64_MAX), 0);
}

/* Whatever the relief is, its first poll wakes who waits. */
static void test_relief_is_seen_by_the_next_poll(void **state)
{
    struct weir_governor_config larger = {.bytes_max = 2000};
    struct weir_account *account = open_transient();
    struct sleeper sleepers[2];

    (void)state;
    for (int way = 0; way < 5; way++) {
        struct weir_account *holder = open_transient();

        (void)charge(holder, 900);
        (void)charge(account, 50);
        queue_up(account, &sleepers[0], 300);
        queue_up(account, &sleepers[1], 300);
        assert_int_equal(weir_account_poll(account), 0);
        switch (way) {
        case 0:
            weir_account_refund(holder, 600);
            break;
        case 1:
            weir_account_refund_remote(holder, 600);
            break;
        case 2:
            weir_account_close(holder);
            holder = NULL;
            break;
        case 3:
            weir_account_refund(holder, 300);
            assert_int_equal(weir_account_cancel(account, &sleepers[0].waiter), -ENOENT);
            weir_account_refund(holder, 300);
            break;
        default:
            assert_int_equal(weir_governor_set_limits(governor, &larger), 0);
            break;
        }
        assert_int_equal(weir_account_poll(account), 2);
        assert_int_equal(sleepers[0].result, 0);
        assert_int_equal(sleepers[1].result, 0);
        weir_account_refund(account, 650);
        weir_account_close(holder);
    }
    weir_account_close(account);
}

static void test_memory_is_charged_before_the_wake(void **state)
{
    struct weir_account *account = open_transient();
    struct sleeper sleeper;

    (void)state;
    assert_int_equal(charge(account, 1000), WEIR_FLUSH);
    queue_up(account, &sleeper, 100);
    assert_int_equal(figures().waiter_count, 1);
    assert_true(figures().oldest_waiter_ns > 0);
    assert_int_equal(weir_account_poll(account), 0);
    weir_account_refund(account, 99);
    assert_int_equal(weir_account_poll(account), 0);
    weir_account_refund(account, 1);
    assert_int_equal(charged_by(account), 1000); /* granted, and nobody called yet */
    assert_int_equal(figures().waiter_count, 0);
    assert_int_equal(figures().oldest_waiter_ns, 0);
    assert_int_equal(sleeper.woken_count, 0);
    assert_int_equal(weir_account_poll(account), 1);
    assert_int_equal(sleeper.woken_count, 1);
    assert_int_equal(sleeper.result, 0);
    assert_int_equal(weir_account_poll(account), 0);
    weir_account_refund(account, 1000);
    assert_int_equal(figures().charged_bytes, 0);
    weir_account_close(account);
}

static void test_first_come_first_served(void **state)
{
    struct weir_account *one = open_transient();
    struct weir_account *two = open_transient();
    struct sleeper sleepers[6];

    (void)state;
    assert_int_equal(charge(one, 1000), WEIR_FLUSH);
    for (int i = 0; i < 6; i++)
        queue_up(i % 2 == 0 ? one : two, &sleepers[i], 100);
    for (int i = 0; i < 6; i++) {
        weir_account_refund(one, 100);
        assert_int_equal(weir_account_poll(i % 2 == 0 ? one : two), 1);
        assert_int_equal(sleepers[i].woken_count, 1);
        assert_int_equal(figures().waiter_count, 5 - i);
    }
    weir_account_close(one);
    weir_account_close(two);
}

static void test_small_ones_pass_a_giant_a_bounded_number_of_times(void **state)
{
    struct weir_account *account = open_transient();
    struct weir_account *other = open_transient();
    struct sleeper giant;
    struct sleeper small;
    int passed_count = 0;

    (void)state;
    assert_int_equal(charge(account, 950), WEIR_FLUSH);
    queue_up(account, &giant, 500);
    for (int i = 0; i < 100; i++) {
        queue_up(other, &small, 10);
        if (weir_account_poll(other) == 0)
            break;
        weir_account_refund(other, 10);
        passed_count++;
    }
    assert_int_equal(passed_count, QUEUE_BYPASS_MAX);
    struct weir_account_stats stats;
    weir_account_stats(other, &stats);
    assert_int_equal(stats.reason, WEIR_REASON_TURN);
    assert_int_equal(charge(other, 1), WEIR_WAIT); /* nor does a charge pass it now */

    weir_account_refund(account, 450);
    assert_int_equal(weir_account_poll(account), 1);
    assert_int_equal(weir_account_poll(other), 0); /* 1000: full */
    weir_account_refund(account, 10);
    assert_int_equal(weir_account_poll(other), 1);
    weir_account_close(account);
    weir_account_close(other);
}

static void test_charges_pass_a_giant_a_bounded_number_of_times(void **state)
{
    struct weir_account *account = open_transient();
    struct weir_account *other = open_plain();
    struct weir_account *spillable = open_spillable();
    struct sleeper giant;
    int passed_count = 0;

    (void)state;
    assert_int_equal(charge(account, 600), WEIR_ADMIT);
    queue_up(account, &giant, 500);
    while (passed_count < 100 && charge(other, 1) == WEIR_ADMIT)
        passed_count++;
    assert_int_equal(passed_count, QUEUE_BYPASS_MAX);
    assert_int_equal(charge(spillable, 1), WEIR_SPILL);
    assert_int_equal(figures().level, WEIR_LEVEL_CALM);
    assert_int_equal(weir_account_cancel(account, &giant.waiter), 0);
    assert_int_equal(charge(other, 1), WEIR_ADMIT);
    weir_account_close(account);
    weir_account_close(other);
    weir_account_close(spillable);
}

static void test_a_cap_holds_only_its_own(void **state)
{
    struct weir_account *capped =
        open_account((struct weir_account_config){.bytes_max = 100, .transient = true});
    struct weir_account *other = open_transient();
    struct sleeper own;
    struct sleeper free_one;

    (void)state;
    assert_int_equal(charge(capped, 100), WEIR_ADMIT);
    queue_up(capped, &own, 50);
    for (int i = 0; i < 3 * QUEUE_BYPASS_MAX; i++)
        assert_int_equal(charge(other, 1), WEIR_ADMIT);
    queue_up(other, &free_one, 50);
    assert_int_equal(weir_account_poll(other), 1);
    assert_int_equal(weir_account_poll(capped), 0);
    weir_account_refund(capped, 49);
    assert_int_equal(weir_account_poll(capped), 0);
    weir_account_refund(capped, 1);
    assert_int_equal(weir_account_poll(capped), 1);
    assert_int_equal(charged_by(capped), 100);

    queue_up(capped, &own, 50);
    weir_account_refund_remote(capped, 50);
    assert_int_equal(weir_account_poll(capped), 1);
    assert_int_equal(charged_by(capped), 100);
    weir_account_close(capped);
    weir_account_close(other);
}

static void test_an_account_does_not_pass_its_own_waiter_for_ever(void **state)
{
    struct weir_account *capped =
        open_account((struct weir_account_config){.bytes_max = 100, .transient = true});
    struct sleeper sleeper;
    int passed_count = 0;

    (void)state;
    assert_int_equal(charge(capped, 60), WEIR_ADMIT);
    queue_up(capped, &sleeper, 50);
    while (passed_count < 100 && charge(capped, 1) == WEIR_ADMIT)
        passed_count++;
    assert_int_equal(passed_count, QUEUE_BYPASS_MAX);
    weir_account_refund(capped, 60 + QUEUE_BYPASS_MAX - 50);
    assert_int_equal(weir_account_poll(capped), 1);
    weir_account_close(capped);
}

static void test_late_waiters_are_told(void **state)
{
    struct weir_account *account = open_transient();
    struct sleeper late = {.waiter = {.wake = sleeper_wake}};
    struct sleeper behind;
    struct weir_waiter blocking = {0};

    (void)state;
    assert_int_equal(charge(account, 900), WEIR_FLUSH);
    assert_int_equal(weir_account_wait(account, &late.waiter, 500, 1), 0);
    late.waiter.bypassed_count = QUEUE_BYPASS_MAX; /* nobody passes it any more */
    queue_up(account, &behind, 100);
    assert_int_equal(figures().waiter_count, 2);
    assert_int_equal(weir_account_poll(account), 2);
    assert_int_equal(late.result, -ETIMEDOUT);
    assert_int_equal(behind.result, 0);
    assert_int_equal(figures().timeout_count, 1);
    assert_int_equal(charged_by(account), 1000);

    assert_int_equal(weir_account_wait(account, &blocking, 1, 1), -ETIMEDOUT);
    assert_int_equal(weir_account_wait(account, &blocking, 1, weir__clock_ns() + UINT64_C(1000000)),
                     -ETIMEDOUT);
    assert_int_equal(figures().timeout_count, 3);
    assert_int_equal(figures().waiter_count, 0);
    assert_int_equal(charged_by(account), 1000);
    weir_account_close(account);
}

static void test_cancel(void **state)
{
    struct weir_account *account = open_transient();
    struct sleeper first;
    struct sleeper second;
    struct weir_waiter never = {0};

    (void)state;
    assert_int_equal(weir_account_cancel(account, &never), -ENOENT);
    assert_int_equal(charge(account, 900), WEIR_FLUSH);
    queue_up(account, &first, 500);
    first.waiter.bypassed_count = QUEUE_BYPASS_MAX;
    queue_up(account, &second, 100);
    assert_int_equal(weir_account_cancel(account, &first.waiter), 0);
    assert_int_equal(weir_account_cancel(account, &first.waiter), -ENOENT);
    assert_int_equal(weir_account_cancel(account, &second.waiter), -ENOENT); /* granted */
    assert_int_equal(weir_account_poll(account), 1);
    assert_int_equal(first.woken_count, 0);
    assert_int_equal(second.woken_count, 1);
    assert_int_equal(weir_account_cancel(account, &second.waiter), -ENOENT);
    assert_int_equal(charged_by(account), 1000);
    weir_account_close(account);
}

static void test_no_wait_without_hope(void **state)
{
    struct weir_account *fixed = open_plain();
    struct weir_account *spillable =
        open_account((struct weir_account_config){.spillable = true, .reserve_bytes = 100});
    struct sleeper sleeper = {.waiter = {.wake = sleeper_wake}};
    struct weir_waiter blocking = {0};

    (void)state;
    assert_int_equal(charge(fixed, 900), WEIR_FLUSH);
    assert_int_equal(weir_account_wait(fixed, &sleeper.waiter, 1, UINT64_MAX), -EDQUOT);
    assert_int_equal(weir_account_wait(fixed, &blocking, 1, UINT64_MAX), -EDQUOT);
    assert_int_equal(weir_account_wait(spillable, &blocking, 1, UINT64_MAX), -EDQUOT);
    assert_int_equal(figures().waiter_count, 0);
    assert_int_equal(charged_by(fixed), 900);

    /* What fits needs no hope. */
    weir_account_refund(fixed, 10);
    assert_int_equal(weir_account_wait(fixed, &blocking, 5, UINT64_MAX), 0);
    assert_int_equal(charged_by(fixed), 895);

    /* One spillable byte is hope. */
    weir_account_charge_forced(spillable, 5);
    assert_int_equal(weir_account_wait(fixed, &sleeper.waiter, 1, UINT64_MAX), 0);
    weir_account_refund(spillable, 5);
    assert_int_equal(weir_account_poll(fixed), 1);
    weir_account_close(fixed);
    weir_account_close(spillable);
}

static void test_no_hope_at_a_cap_from_others(void **state)
{
    struct weir_account *capped = open_account((struct weir_account_config){.bytes_max = 100});
    struct weir_account *other = open_transient();
    struct weir_waiter blocking = {0};

    (void)state;
    assert_int_equal(charge(other, 500), WEIR_ADMIT);
    assert_int_equal(charge(capped, 100), WEIR_ADMIT);
    assert_int_equal(weir_account_wait(capped, &blocking, 1, UINT64_MAX), -EDQUOT);
    weir_account_close(capped);
    weir_account_close(other);
}

/* Notified, it does what a notified loop may do: look and refund, but not block. */
struct notified {
    struct weir_account *account;
    struct weir_account *holder;
    int count;
};

static void notify(void *context)
{
    struct notified *notified = context;

    notified->count++;
    assert_int_equal(figures().waiter_count, 0);
    if (notified->holder != NULL)
        weir_account_refund_remote(notified->holder, 1);
}

static void test_owners_are_notified_under_no_lock(void **state)
{
    struct notified notified = {0};
    struct weir_account *account = open_account(
        (struct weir_account_config){.transient = true, .notify = notify, .context = &notified});
    struct weir_account *holder = open_transient();
    struct sleeper sleeper;

    (void)state;
    notified.account = account;
    notified.holder = holder;
    assert_int_equal(charge(holder, 1000), WEIR_FLUSH);
    queue_up(account, &sleeper, 100);
    assert_int_equal(notified.count, 0);
    weir_account_refund(holder, 100);
    assert_int_equal(notified.count, 1);
    assert_int_equal(sleeper.woken_count, 0);
    assert_int_equal(weir_account_poll(account), 1);
    assert_int_equal(charged_by(holder), 899);

    /* Also when the grant comes at once: the loop may sleep next. */
    notified.holder = NULL;
    queue_up(account, &sleeper, 1);
    assert_int_equal(notified.count, 2);
    assert_int_equal(weir_account_poll(account), 1);
    weir_account_close(account);
    weir_account_close(holder);
}

static struct weir_account *chain_account;
static int chain_left;

static void chain_wake(struct weir_waiter *waiter, int result)
{
    assert_int_equal(result, 0);
    weir_account_refund(chain_account, waiter->bytes);
    if (--chain_left > 0)
        assert_int_equal(weir_account_wait(chain_account, waiter, 10, UINT64_MAX), 0);
}

static void test_a_wake_may_wait_again(void **state)
{
    struct weir_account *account = open_transient();
    struct weir_waiter waiter = {.wake = chain_wake};

    (void)state;
    chain_account = account;
    chain_left = 5;
    assert_int_equal(weir_account_wait(account, &waiter, 10, UINT64_MAX), 0);
    for (int i = 0; i < 5; i++)
        assert_int_equal(weir_account_poll(account), 1); /* one a poll: no loop without end */
    assert_int_equal(weir_account_poll(account), 0);
    assert_int_equal(charged_by(account), 0);
    weir_account_close(account);
}

static void test_grants_wait_for_forced_charges(void **state)
{
    struct weir_account *account = open_transient();
    struct sleeper sleeper;

    (void)state;
    assert_int_equal(charge(account, 1000), WEIR_FLUSH);
    weir_account_charge_forced(account, 500);
    queue_up(account, &sleeper, 100);
    weir_account_refund(account, 599);
    assert_int_equal(weir_account_poll(account), 0);
    weir_account_refund(account, 1);
    assert_int_equal(weir_account_poll(account), 1);
    assert_int_equal(figures().charged_bytes, 1000);
    weir_account_close(account);
}

static void test_closing_an_account_grants(void **state)
{
    struct weir_account *account = open_transient();
    struct weir_account *leaving = open_transient();
    struct weir_account_stats stats;
    struct sleeper sleeper;

    (void)state;
    assert_int_equal(charge(leaving, 1000), WEIR_FLUSH);
    queue_up(account, &sleeper, 1000);
    weir_account_close(leaving);
    assert_int_equal(weir_account_poll(account), 1);
    assert_int_equal(charged_by(account), 1000);
    weir_account_refund(account, 1000);
    weir_account_stats(account, &stats);
    assert_int_equal(stats.peak_bytes, 1000); /* what was granted counts */
    weir_account_close(account);
}

static void test_a_grant_that_opens_an_episode_owes_a_flush(void **state)
{
    struct weir_account *account = open_transient();
    struct sleeper sleeper;

    (void)state;
    assert_int_equal(charge(account, 500), WEIR_ADMIT);
    queue_up(account, &sleeper, 850);
    weir_account_refund(account, 500);
    assert_int_equal(weir_account_poll(account), 1);
    assert_int_equal(figures().level, WEIR_LEVEL_SOFT);
    assert_int_equal(charge(account, 1), WEIR_FLUSH);
    assert_int_equal(charge(account, 1), WEIR_ADMIT);
    weir_account_close(account);
}

static void *refund_from_afar(void *context)
{
    /* Not before the other sleeps, or at least is queued. */
    while (figures().waiter_count == 0)
        sched_yield();
    weir_account_refund_remote(context, 100);
    return NULL;
}

static void test_a_sleeping_thread_is_woken(void **state)
{
    struct weir_account *holder = open_transient();
    struct weir_account *sleeper = open_plain();
    struct weir_waiter waiter = {0};
    pthread_t thread;

    (void)state;
    for (int i = 0; i < 200; i++) {
        assert_int_equal(charge(holder, 1000), WEIR_FLUSH);
        assert_int_equal(pthread_create(&thread, NULL, refund_from_afar, holder), 0);
        assert_int_equal(weir_account_wait(sleeper, &waiter, 100, UINT64_MAX), 0);
        assert_int_equal(charged_by(sleeper), 100);
        pthread_join(thread, NULL);
        weir_account_refund(sleeper, 100);
        weir_account_refund(holder, 900);
    }
    weir_account_close(holder);
    weir_account_close(sleeper);
}

/* ---- Figures ---------------------------------------------------------------- */

static void test_figures_of_an_account(void **state)
{
    struct weir_account *account = open_account((struct weir_account_config){
        .name = "a name that is much longer than what is kept", .spillable = true});
    struct weir_account *holder = open_transient();
    struct weir_account_stats stats;
    struct sleeper sleeper;

    (void)state;
    assert_int_equal(charge(account, 700), WEIR_ADMIT);
    assert_int_equal(charge(account, 150), WEIR_FLUSH);
    assert_int_equal(charge(account, 100), WEIR_SPILL);
    assert_int_equal(charge(holder, 140), WEIR_ADMIT);
    assert_int_equal(charge(holder, 100), WEIR_WAIT);
    queue_up(account, &sleeper, 100);
    weir_account_refund(account, 50);
    weir_account_stats(account, &stats);
    assert_string_equal(stats.name, "a name that is much longer than");
    assert_int_equal(stats.charged_bytes, 800);
    assert_int_equal(stats.peak_bytes, 850);
    assert_int_equal(stats.admit_count, 1);
    assert_int_equal(stats.flush_count, 1);
    assert_int_equal(stats.spill_count, 1);
    assert_int_equal(stats.wait_count, 0);
    assert_int_equal(stats.waiter_count, 1);
    assert_true(stats.spillable);
    assert_false(stats.transient);
    for (int i = 0; i < 8; i++)
        assert_int_equal(stats.reserved[i], 0);
    weir_account_stats(holder, &stats);
    assert_int_equal(stats.wait_count, 1);
    assert_true(stats.transient);
    assert_int_equal(weir_account_cancel(account, &sleeper.waiter), 0);
    weir_account_close(account);
    weir_account_close(holder);
}

static void test_figures_of_the_governor(void **state)
{
    struct weir_account *account = open_plain();
    struct weir_governor_stats before = figures();

    (void)state;
    assert_int_equal(before.bytes_max, 1000);
    assert_int_equal(before.soft_bytes, 800);
    assert_int_equal(before.spill_bytes, 900);
    assert_int_equal(before.level_change_count, 0);
    assert_int_equal(charge(account, 850), WEIR_FLUSH);
    struct weir_governor_stats after = figures();
    assert_int_equal(after.charged_bytes, 850);
    assert_int_equal(after.peak_bytes, 850);
    assert_int_equal(after.level, WEIR_LEVEL_SOFT);
    assert_int_equal(after.level_change_count, 1);
    assert_true(after.level_since_ns >= before.level_since_ns);
    weir_account_refund(account, 850);
    assert_int_equal(figures().peak_bytes, 850);
    weir_account_close(account);
}

static uint64_t stalls(const struct weir_governor_stats *stats)
{
    uint64_t count = 0;

    for (int i = 0; i < WEIR_STALL_STEPS; i++)
        count += stats->stall_count[i];
    return count;
}

static void test_one_call_tells_everything(void **state)
{
    struct weir_account *capped = open_account(
        (struct weir_account_config){.name = "capped", .bytes_max = 100, .transient = true});
    struct weir_account *account =
        open_account((struct weir_account_config){.name = "large", .transient = true});
    struct weir_governor_figures all;
    struct weir_account_stats accounts[4];
    struct sleeper one;
    struct sleeper two;
    struct weir_waiter late = {0};
    uint64_t begin_ns = weir__clock_ns();

    (void)state;
    assert_int_equal(charge(capped, 100), WEIR_ADMIT);
    queue_up(capped, &one, 50);
    weir_governor_figures(governor, &all, accounts, 4);
    assert_int_equal(all.governor.reason, WEIR_REASON_CAP);
    assert_string_equal(all.governor.oldest_waiter_name, "capped");
    assert_int_equal(charge(account, 880), WEIR_FLUSH);
    assert_int_equal(charge(account, 100), WEIR_WAIT);
    queue_up(account, &two, 200);
    assert_int_equal(weir_account_wait(account, &late, 300, 1), -ETIMEDOUT);

    weir_governor_figures(governor, &all, accounts, 4);
    assert_int_equal(all.node_count, 1);
    assert_int_equal(all.nodes[0].bytes_max, 1000);
    assert_int_equal(all.nodes[0].charged_bytes, 980);
    assert_int_equal(all.nodes[0].level, WEIR_LEVEL_SPILL);
    assert_int_equal(all.nodes[0].account_count, 2);
    assert_int_equal(all.account_count, 2);
    assert_string_equal(accounts[0].name, "large");
    assert_int_equal(accounts[0].reason, WEIR_REASON_LIMIT);
    assert_int_equal(accounts[0].oldest_waiter_bytes, 200);
    assert_true(accounts[0].oldest_waiter_ns > 0);
    assert_int_equal(accounts[0].timeout_count, 1);
    assert_int_equal(accounts[0].wait_count, 1);
    assert_int_equal(accounts[1].reason, WEIR_REASON_CAP);
    assert_int_equal(all.governor.waiter_count, 2);
    assert_int_equal(all.governor.verdict_count[WEIR_ADMIT], 1);
    assert_int_equal(all.governor.verdict_count[WEIR_FLUSH], 1);
    assert_int_equal(all.governor.verdict_count[WEIR_WAIT], 1);
    assert_int_equal(all.governor.level, WEIR_LEVEL_HARD);
    assert_int_equal(all.governor.level_count[WEIR_LEVEL_SPILL], 1);
    assert_int_equal(all.governor.level_count[WEIR_LEVEL_HARD], 1);
    assert_int_equal(stalls(&all.governor), 1); /* the late one */

    weir_account_refund(account, 190);
    weir_account_refund(capped, 50);
    assert_int_equal(weir_account_poll(capped) + weir_account_poll(account), 2);
    uint64_t until_ns = weir__clock_ns();
    weir_governor_figures(governor, &all, accounts, 1);
    assert_int_equal(all.account_count, 1);
    assert_int_equal(stalls(&all.governor), 3);
    assert_true(all.governor.stall_ns_max > 0);
    assert_int_equal(all.governor.reason, WEIR_REASON_NONE);

    uint64_t lasted_ns = 0;
    for (int level = 0; level < 4; level++)
        lasted_ns += all.governor.level_ns[level];
    assert_true(lasted_ns >= all.governor.level_ns[WEIR_LEVEL_HARD]);
    assert_true(all.governor.level_ns[WEIR_LEVEL_HARD] > 0);
    assert_true(lasted_ns >= until_ns - begin_ns);
    weir_account_close(account);
    assert_int_equal(figures().verdict_count[WEIR_FLUSH], 1); /* also of those that are closed */
    weir_account_close(capped);
    assert_int_equal(figures().verdict_count[WEIR_WAIT], 1);

    struct weir_account *fixed = open_plain();
    assert_int_equal(charge(fixed, 1000), WEIR_FLUSH);
    assert_int_equal(weir_account_wait(fixed, &late, 1, 0), -EDQUOT);
    assert_int_equal(figures().refused_count, 1);
    weir_account_close(fixed);
}

static void test_holders_come_largest_first(void **state)
{
    static const size_t bytes[] = {50, 10, 200, 30, 100};
    struct weir_account *accounts[5];
    struct weir_account_stats holders[8];

    (void)state;
    assert_int_equal(weir_governor_holders(governor, holders, 8), 0);
    for (int i = 0; i < 5; i++) {
        accounts[i] = open_plain();
        assert_int_equal(charge(accounts[i], bytes[i]), WEIR_ADMIT);
    }
    assert_int_equal(weir_governor_holders(governor, holders, 8), 5);
    assert_int_equal(holders[0].charged_bytes, 200);
    assert_int_equal(holders[1].charged_bytes, 100);
    assert_int_equal(holders[2].charged_bytes, 50);
    assert_int_equal(holders[3].charged_bytes, 30);
    assert_int_equal(holders[4].charged_bytes, 10);
    memset(holders, 0xff, sizeof(holders));
    assert_int_equal(weir_governor_holders(governor, holders, 2), 2);
    assert_int_equal(holders[0].charged_bytes, 200);
    assert_int_equal(holders[1].charged_bytes, 100);
    assert_int_equal(holders[2].charged_bytes, UINT64_MAX);
    assert_int_equal(weir_governor_holders(governor, NULL, 0), 0);
    for (int i = 0; i < 5; i++)
        weir_account_close(accounts[i]);
}

/* ---- Reclaimers --------------------------------------------------------------- */

struct store {
    struct weir_reclaimer reclaimer;
    uint64_t has_bytes;
    uint64_t later_bytes; /* promised, and not yet given */
    uint64_t lies_bytes;  /* promised, and never given */
    uint64_t step_bytes;  /* gives no more at once; 0: no such bound */
    uint64_t wanted_bytes;
    int called_count;
};

static uint64_t store_reclaim(struct weir_reclaimer *reclaimer, uint64_t bytes)
{
    struct store *store = (struct store *)(void *)reclaimer;
    uint64_t part = bytes < store->has_bytes ? bytes : store->has_bytes;

    if (store->step_bytes > 0 && part > store->step_bytes)
        part = store->step_bytes;
    store->called_count++;
    store->wanted_bytes = bytes;
    store->has_bytes -= part;
    weir_account_refund(reclaimer->account, part);
    return part + store->later_bytes + store->lies_bytes;
}

static void store_open(struct store *store, struct weir_account *account, uint32_t cost,
                       uint64_t bytes)
{
    *store = (struct store){.reclaimer = {.name = "store", .cost = cost, .reclaim = store_reclaim},
                            .has_bytes = bytes};
    weir_account_add_reclaimer(account, &store->reclaimer);
    if (bytes > 0)
        assert_int_equal(charge(account, bytes), WEIR_ADMIT);
}

static void test_the_cheapest_is_asked_first(void **state)
{
    struct weir_account *account = open_plain();
    struct weir_account *other = open_plain();
    struct store dear;
    struct store cheap;

    (void)state;
    store_open(&dear, account, 200, 300);
    store_open(&cheap, other, 100, 100);
    weir_account_poll(other);
    assert_int_equal(cheap.called_count, 0); /* calm: nobody is asked */

    assert_int_equal(charge(account, 450), WEIR_FLUSH); /* 850: down to 700 */
    weir_account_poll(account);
    assert_int_equal(dear.called_count, 0);
    weir_account_poll(other);
    assert_int_equal(cheap.called_count, 1);
    assert_int_equal(cheap.wanted_bytes, 150);
    assert_int_equal(figures().charged_bytes, 750);

    /* It kept its promise of 100, so it is asked again, has nothing, and the other is. */
    weir_account_poll(other);
    assert_int_equal(cheap.wanted_bytes, 50);
    weir_account_poll(account);
    assert_int_equal(dear.wanted_bytes, 50);
    assert_int_equal(figures().charged_bytes, 700);
    assert_int_equal(figures().level, WEIR_LEVEL_CALM);
    weir_account_poll(account);
    weir_account_poll(other);
    assert_int_equal(dear.called_count, 1);
    assert_int_equal(cheap.called_count, 2);
    assert_int_equal(cheap.reclaimer.asked_bytes, 200);
    assert_int_equal(cheap.reclaimer.came_bytes, 100);
    assert_int_equal(cheap.reclaimer.broken_count, 0);
    assert_int_equal(dear.reclaimer.came_bytes, 50);
    weir_account_remove_reclaimer(account, &dear.reclaimer);
    weir_account_remove_reclaimer(other, &cheap.reclaimer);
    weir_account_close(account);
    weir_account_close(other);
}

static void test_what_came_is_checked(void **state)
{
    struct weir_account *account = open_plain();
    struct weir_account *other = open_plain();
    struct store liar;
    struct store honest;

    (void)state;
    store_open(&liar, account, 1, 50);
    store_open(&honest, other, 2, 300);
    liar.lies_bytes = 1000;
    assert_int_equal(charge(account, 500), WEIR_FLUSH);
    weir_account_poll(account);
    assert_int_equal(liar.called_count, 1);
    uint64_t asked_ns = weir__clock_ns();
    while (honest.called_count == 0) { /* until the promise is too old */
        weir_account_poll(account);
        weir_account_poll(other);
        assert_true(weir__clock_ns() - asked_ns < PATIENCE_NS);
    }
    assert_true(weir__clock_ns() - asked_ns >= UINT64_C(90000000));
    assert_int_equal(liar.called_count, 1);
    assert_int_equal(liar.reclaimer.broken_count, 1);
    assert_int_equal(liar.reclaimer.came_bytes, 50);
    assert_int_equal(honest.wanted_bytes, 100);
    assert_int_equal(figures().level, WEIR_LEVEL_CALM);
    weir_account_remove_reclaimer(account, &liar.reclaimer);
    weir_account_remove_reclaimer(other, &honest.reclaimer);
    weir_account_close(account);
    weir_account_close(other);
}

static void test_a_promise_may_be_kept_later(void **state)
{
    struct weir_account *account = open_plain();
    struct store store;

    (void)state;
    store_open(&store, account, 1, 0);
    store.later_bytes = 150;
    assert_int_equal(charge(account, 850), WEIR_FLUSH);
    for (int i = 0; i < 3; i++)
        weir_account_poll(account);
    assert_int_equal(store.called_count, 1); /* not again before it is due */
    weir_account_refund(account, 100);
    assert_int_equal(charge(account, 100), WEIR_ADMIT); /* what is charged anew does not count */
    weir_account_refund_remote(account, 50);
    while (store.called_count == 1) /* kept; the next look is a millisecond later at most */
        weir_account_poll(account);
    assert_int_equal(store.wanted_bytes, 100);
    assert_int_equal(store.reclaimer.broken_count, 0);
    weir_account_remove_reclaimer(account, &store.reclaimer);
    weir_account_close(account);
}

/* Use falls while the level dwells, and rises again: no level changes, yet there is need. */
static void test_need_that_comes_back_is_seen(void **state)
{
    const struct weir_governor_config config = {
        .bytes_max = 1000, .dwell_ns = UINT64_C(3600000000000), .node_count = 1};
    struct weir_account *account = open_plain();
    struct store store;

    (void)state;
    assert_int_equal(weir_governor_set_limits(governor, &config), 0);
    store_open(&store, account, 1, 0);
    assert_int_equal(charge(account, 850), WEIR_FLUSH);
    weir_account_refund(account, 250);
    for (int i = 0; i < 3; i++)
        weir_account_poll(account);
    assert_int_equal(figures().level, WEIR_LEVEL_SOFT);

    const int called_count = store.called_count;
    const uint64_t begin_ns = weir__clock_ns();

    assert_int_equal(charge(account, 200), WEIR_ADMIT);
    while (store.called_count == called_count) {
        weir_account_poll(account);
        assert_true(weir__clock_ns() - begin_ns < PATIENCE_NS);
    }
    assert_int_equal(store.wanted_bytes, 100);
    weir_account_remove_reclaimer(account, &store.reclaimer);
    weir_account_close(account);
}

static void test_equals_take_turns(void **state)
{
    struct weir_account *account = open_plain();
    struct store stores[3];
    struct store dear;
    struct weir_account_stats stats;

    (void)state;
    store_open(&dear, account, 101, 100);
    for (int i = 0; i < 3; i++) {
        store_open(&stores[i], account, 100, 100);
        stores[i].step_bytes = 20;
    }
    assert_int_equal(charge(account, 450), WEIR_FLUSH); /* 850: down to 700 */
    for (int i = 0; i < 6; i++) {
        for (int j = 0; j < 3; j++)
            assert_int_equal(stores[j].called_count, i / 3 + (i % 3 > j));
        weir_account_poll(account);
    }
    assert_int_equal(figures().charged_bytes, 730);

    /* One who leaves while it is asked has come to nothing; the others go on. */
    weir_account_remove_reclaimer(account, &stores[0].reclaimer);
    assert_null(stores[0].reclaimer.account);
    weir_account_poll(account);
    assert_int_equal(stores[1].called_count, 3);
    stores[2].has_bytes = 0;
    weir_account_poll(account);
    assert_int_equal(stores[2].called_count, 3);
    weir_account_poll(account);
    assert_int_equal(figures().level, WEIR_LEVEL_CALM);
    assert_int_equal(dear.called_count, 0);

    weir_account_stats(account, &stats);
    assert_int_equal(stats.asked_count, 3 + 4 + 3);
    assert_int_equal(stats.came_bytes, 150);
    assert_int_equal(stats.broken_count, 1);
    weir_account_remove_reclaimer(account, &stores[2].reclaimer);
    weir_account_remove_reclaimer(account, &dear.reclaimer);
    weir_account_remove_reclaimer(account, &stores[1].reclaimer);
    weir_account_close(account);
}

static int reclaim_notified_count;

static void reclaim_notify(void *context)
{
    (void)context;
    reclaim_notified_count++;
}

static void test_a_reclaimer_is_hope(void **state)
{
    struct weir_account *fixed = open_plain();
    struct weir_account *owner =
        open_account((struct weir_account_config){.notify = reclaim_notify});
    struct weir_waiter blocking = {0};
    struct sleeper sleeper;
    struct store store;

    (void)state;
    reclaim_notified_count = 0;
    assert_int_equal(charge(fixed, 700), WEIR_ADMIT);
    assert_int_equal(weir_account_wait(fixed, &blocking, 301, 0), -EDQUOT);
    store_open(&store, owner, 1, 100);
    queue_up(fixed, &sleeper, 250); /* calm, and 50 short */
    assert_int_equal(reclaim_notified_count, 1);
    weir_account_poll(owner);
    assert_int_equal(store.wanted_bytes, 50);
    assert_int_equal(weir_account_poll(fixed), 1);
    assert_int_equal(sleeper.result, 0);
    assert_int_equal(figures().charged_bytes, 1000);
    weir_account_remove_reclaimer(owner, &store.reclaimer);
    assert_int_equal(weir_account_wait(fixed, &blocking, 1, 0), -EDQUOT);
    weir_account_close(fixed);
    weir_account_close(owner);
}

/* ---- Other limits ------------------------------------------------------------- */

static int limit_to(uint64_t bytes_max)
{
    struct weir_governor_config config = {.bytes_max = bytes_max};

    return weir_governor_set_limits(governor, &config);
}

static void test_bad_limits_change_nothing(void **state)
{
    struct weir_account *account = open_account((struct weir_account_config){.reserve_bytes = 300});
    struct weir_governor_config config = {.bytes_max = 2000, .soft_percent = 89};

    (void)state;
    assert_int_equal(weir_governor_set_limits(governor, &config), -EINVAL);
    config = (struct weir_governor_config){.bytes_max = 2000, .spill_percent = 70};
    assert_int_equal(weir_governor_set_limits(governor, &config), -EINVAL);
    assert_int_equal(limit_to(299), -EDQUOT); /* below the working sets */
    assert_int_equal(figures().bytes_max, 1000);
    assert_int_equal(figures().soft_bytes, 800);
    assert_int_equal(charge(account, 700), WEIR_FLUSH);
    assert_int_equal(charge(account, 1), WEIR_WAIT);
    weir_account_close(account);
    assert_int_equal(limit_to(300), 0);
    assert_int_equal(figures().bytes_max, 300);
}

static void test_a_lower_limit_holds_at_once(void **state)
{
    struct weir_account *account = open_transient();
    struct weir_account *plain = open_plain();
    enum weir_verdict verdict;

    (void)state;
    assert_int_equal(charge(account, 700), WEIR_ADMIT);
    assert_int_equal(limit_to(500), 0); /* below what is charged */
    assert_int_equal(figures().charged_bytes, 700);
    assert_int_equal(figures().level, WEIR_LEVEL_HARD);
    assert_int_equal(charge(plain, 1), WEIR_WAIT);
    assert_int_equal(weir_account_charge(plain, 501, &verdict), -EINVAL);
    weir_account_refund(account, 250); /* 450 of 500: soft */
    assert_int_equal(figures().level, WEIR_LEVEL_SPILL);
    assert_int_equal(charge(plain, 50), WEIR_ADMIT);
    assert_int_equal(charge(plain, 1), WEIR_WAIT);
    assert_int_equal(limit_to(1000), 0);
    assert_int_equal(figures().level, WEIR_LEVEL_CALM);
    assert_int_equal(charge(plain, 300), WEIR_ADMIT);
    weir_account_close(account);
    weir_account_close(plain);
}

static void test_a_higher_limit_grants(void **state)
{
    struct weir_account *account = open_transient();
    struct sleeper small;
    struct sleeper large;

    (void)state;
    assert_int_equal(charge(account, 1000), WEIR_FLUSH);
    queue_up(account, &small, 100);
    queue_up(account, &large, 500);
    assert_int_equal(limit_to(1300), 0);
    assert_int_equal(weir_account_poll(account), 1);
    assert_int_equal(small.result, 0);
    assert_int_equal(charged_by(account), 1100);
    assert_int_equal(limit_to(1600), 0);
    assert_int_equal(weir_account_poll(account), 1);
    assert_int_equal(large.result, 0);
    weir_account_close(account);
}

static void test_who_can_never_fit_any_more_is_told(void **state)
{
    struct weir_account *account = open_transient();
    struct sleeper large;
    struct sleeper small;

    (void)state;
    assert_int_equal(charge(account, 900), WEIR_FLUSH);
    queue_up(account, &large, 800);
    queue_up(account, &small, 300);
    assert_int_equal(limit_to(700), 0);
    assert_int_equal(weir_account_poll(account), 1);
    assert_int_equal(large.result, -EDQUOT);
    assert_int_equal(small.woken_count, 0);
    assert_int_equal(charged_by(account), 900);
    weir_account_refund(account, 500);
    assert_int_equal(weir_account_poll(account), 1);
    assert_int_equal(small.result, 0);
    assert_int_equal(charged_by(account), 700);
    weir_account_close(account);
}

static void *limiter_main(void *context)
{
    (void)context;
    while (figures().waiter_count == 0)
        sched_yield();
    return limit_to(100) == 0 ? NULL : governor;
}

static void test_a_sleeper_who_can_never_fit_is_told(void **state)
{
    struct weir_account *account = open_transient();
    struct weir_waiter waiter = {0};
    void *result = governor;
    pthread_t thread;

    (void)state;
    assert_int_equal(charge(account, 900), WEIR_FLUSH);
    assert_int_equal(pthread_create(&thread, NULL, limiter_main, NULL), 0);
    assert_int_equal(weir_account_wait(account, &waiter, 200, UINT64_MAX), -EDQUOT);
    pthread_join(thread, &result);
    assert_null(result);
    assert_int_equal(charged_by(account), 900);
    weir_account_close(account);
}

static void test_levels_change_ten_times_in_ten_dwells(void **state)
{
    const uint64_t dwell_ns = UINT64_C(2000000);
    struct weir_governor_config config = {.bytes_max = 1000, .dwell_ns = dwell_ns};
    uint64_t change_ns[10] = {0};
    uint64_t seen_count = 0;

    (void)state;
    assert_int_equal(weir_governor_set_limits(governor, &config), 0);
    struct weir_account *account = open_plain();

    /* From nothing to hard and back, as fast as it goes. */
    while (seen_count < 30) {
        uint64_t use_bytes = charged_by(account);
        if (use_bytes < 1000)
            (void)charge(account, 50);
        else
            weir_account_refund(account, 1000);
        struct weir_governor_stats stats = figures();
        for (; seen_count < stats.level_change_count; seen_count++) {
            uint64_t *last_ns = &change_ns[seen_count % 10];
            if (seen_count >= 10)
                assert_true(stats.level_since_ns - *last_ns + dwell_ns / 2 >= 10 * dwell_ns);
            *last_ns = stats.level_since_ns;
        }
    }
    weir_account_close(account);
}

/* ---- Nodes ------------------------------------------------------------------- */

/* Node 0 is nearer to 2 than to 1; each has @bytes of the limit, which is @bytes_max. */
static void spread(uint64_t bytes_max, uint64_t bytes)
{
    const struct weir_node_config nodes[3] = {
        {.bytes_max = bytes, .distances = {10, 30, 20}},
        {.bytes_max = bytes, .distances = {30, 10, 20}},
        {.bytes_max = bytes, .distances = {20, 20, 10}},
    };
    struct weir_governor_config config = {.bytes_max = bytes_max, .node_count = 3, .nodes = nodes};

    weir_governor_destroy(governor);
    assert_int_equal(weir_governor_create(&config, &governor), 0);
}

static struct weir_account *open_on(uint32_t node, bool spillable)
{
    return open_account((struct weir_account_config){
        .node = node + 1, .spillable = spillable, .transient = !spillable});
}

static void expect_node(uint32_t index, uint64_t charged, uint64_t borrowed, uint64_t lent)
{
    struct weir_node_stats nodes[WEIR_NODES_MAX];

    assert_int_equal(weir_governor_nodes(governor, nodes, WEIR_NODES_MAX), 3);
    assert_int_equal(nodes[index].charged_bytes, charged);
    assert_int_equal(nodes[index].borrowed_bytes, borrowed);
    assert_int_equal(nodes[index].lent_bytes, lent);
}

static void test_bad_nodes_are_refused(void **state)
{
    struct weir_node_config nodes[WEIR_NODES_MAX + 1] = {{.bytes_max = 10}};
    struct weir_governor *other = NULL;
    struct weir_account *account = NULL;
    struct weir_governor_config config = {.bytes_max = 1000, .node_count = 2};

    (void)state;
    assert_int_equal(weir_governor_create(&config, &other), -EINVAL);
    config.nodes = nodes;
    config.borrow_percent = 101;
    assert_int_equal(weir_governor_create(&config, &other), -EINVAL);
    config.borrow_percent = 0;
    config.node_count = WEIR_NODES_MAX + 1;
    assert_int_equal(weir_governor_create(&config, &other), -EINVAL);
    config.node_count = 1;
    nodes[0].bytes_max = UINT64_MAX;
    assert_int_equal(weir_governor_create(&config, &other), 0); /* one node does not matter */
    struct weir_account_config account_config = {.node = 2};
    assert_int_equal(weir_account_open(other, &account_config, &account), -EINVAL);
    assert_int_equal(weir_governor_set_limits(other, &config), 0);
    config.node_count = 2;
    nodes[0].bytes_max = 500;
    assert_int_equal(weir_governor_set_limits(other, &config), -EINVAL); /* fixed at create */
    weir_governor_destroy(other);
    assert_null(account);
}

static void test_a_node_borrows_from_the_nearest(void **state)
{
    (void)state;
    spread(3000, 1000);
    struct weir_account *account = open_on(0, true);

    assert_int_equal(charge(account, 900), WEIR_ADMIT);
    expect_node(0, 900, 0, 0);
    assert_int_equal(charge(account, 100), WEIR_ADMIT); /* it keeps its last tenth */
    expect_node(0, 1000, 100, 0);
    expect_node(1, 0, 0, 0);
    expect_node(2, 0, 0, 100);
    assert_int_equal(charge(account, 400), WEIR_ADMIT);
    expect_node(0, 1400, 500, 0);
    expect_node(2, 0, 0, 500);
    assert_int_equal(charge(account, 1), WEIR_SPILL); /* the bound: half of its own */
    assert_int_equal(figures().level, WEIR_LEVEL_CALM);
    expect_node(0, 1400, 500, 0);

    weir_account_refund(account, 400); /* what is borrowed goes back first */
    expect_node(0, 1000, 100, 0);
    expect_node(2, 0, 0, 100);
    weir_account_refund(account, 1000);
    expect_node(0, 0, 0, 0);
    expect_node(2, 0, 0, 0);
    weir_account_close(account);
}

static void test_a_lender_keeps_what_it_would_flush_for(void **state)
{
    (void)state;
    spread(3000, 1000);
    struct weir_account *near = open_on(2, false);
    struct weir_account *far = open_on(1, false);
    struct weir_account *account = open_on(0, false);

    assert_int_equal(charge(near, 600), WEIR_ADMIT);
    assert_int_equal(charge(account, 1300), WEIR_ADMIT);
    expect_node(2, 600, 0, 200);
    expect_node(1, 0, 0, 200); /* the nearest had 200 to spare */
    weir_account_refund(account, 250);
    expect_node(1, 0, 0, 0); /* the farthest gets its own first */
    expect_node(2, 600, 0, 150);
    weir_account_close(account);
    expect_node(2, 600, 0, 0);
    weir_account_close(near);
    weir_account_close(far);
}

static void test_a_full_node_waits_alone(void **state)
{
    (void)state;
    spread(3000, 1000);
    struct weir_account *account = open_on(0, false);
    struct weir_account *other = open_on(1, false);
    struct sleeper sleeper;

    assert_int_equal(charge(account, 1500), WEIR_ADMIT); /* its own and half as much */
    assert_int_equal(charge(account, 1), WEIR_WAIT);
    assert_int_equal(figures().level, WEIR_LEVEL_CALM);
    queue_up(account, &sleeper, 100);
    assert_int_equal(figures().reason, WEIR_REASON_NODE);
    assert_int_equal(weir_account_poll(account), 0);
    for (int i = 0; i < 3 * QUEUE_BYPASS_MAX; i++)
        assert_int_equal(charge(other, 10), WEIR_ADMIT); /* nobody is in its way */
    weir_account_refund(account, 99);
    assert_int_equal(weir_account_poll(account), 0);
    weir_account_refund(account, 1);
    assert_int_equal(weir_account_poll(account), 1);
    expect_node(0, 1500, 500, 0);
    assert_int_equal(figures().charged_bytes, 1980);
    weir_account_close(account);
    weir_account_close(other);
}

static void test_what_the_limit_refuses_the_node_has_back(void **state)
{
    (void)state;
    spread(1200, 1000); /* together more than the limit */
    struct weir_account *account = open_on(0, false);
    struct weir_account *other = open_on(1, false);

    assert_int_equal(charge(other, 700), WEIR_ADMIT);
    assert_int_equal(charge(account, 501), WEIR_WAIT);
    expect_node(0, 0, 0, 0);
    assert_int_equal(charge(account, 500), WEIR_FLUSH);
    expect_node(0, 500, 0, 0);
    weir_account_charge_forced(account, 900);
    expect_node(0, 1400, 0, 0); /* forced: borrowed by nobody's leave */
    weir_account_refund(account, 1400);
    expect_node(0, 0, 0, 0);
    weir_account_close(account);
    weir_account_close(other);
}

static void test_a_working_set_must_lie_on_its_node(void **state)
{
    struct weir_account_config config = {.reserve_bytes = 1501, .node = 1};
    struct weir_account *account = NULL;

    (void)state;
    spread(3000, 1000);
    assert_int_equal(weir_account_open(governor, &config, &account), -EDQUOT);
    expect_node(0, 0, 0, 0);
    config.reserve_bytes = 1500;
    assert_int_equal(weir_account_open(governor, &config, &account), 0);
    expect_node(0, 1500, 500, 0);
    weir_account_close(account);
    expect_node(0, 0, 0, 0);
}

static void test_leases_lie_on_their_nodes(void **state)
{
    (void)state;
    spread(GIB, GIB / 3);
    struct weir_account *account = open_on(0, false);
    struct weir_account *other = open_on(0, false);

    for (int i = 0; i < 3; i++)
        assert_int_equal(charge(account, 1000), WEIR_ADMIT);
    assert_true(figures().lease_bytes > 0);
    expect_node(0, 3000, 0, 0);
    assert_int_equal(charge(other, GIB / 2 - 3000 - 10), WEIR_ADMIT); /* with all it may borrow */
    for (int i = 0; i < 3; i++)
        weir_account_refund(account, 1000);
    assert_int_equal(figures().charged_bytes, GIB / 2 - 3010);

    struct weir_node_stats node;
    assert_int_equal(weir_governor_nodes(governor, &node, 1), 1);
    assert_int_equal(node.charged_bytes, GIB / 2 - 3010);
    assert_in_range(node.borrowed_bytes, GIB / 2 - 3010 - GIB / 3, GIB / 6);
    assert_int_equal(node.account_count, 2);
    weir_account_close(account);
    weir_account_close(other);
    expect_node(0, 0, 0, 0);
}

/* ---- Leases ------------------------------------------------------------------ */

/* Large enough for leases: soft is 800 MiB less some, a lease 1 MiB and more. */
static void enlarge(void)
{
    struct weir_governor_config config = {.bytes_max = GIB, .node_count = 1};

    weir_governor_destroy(governor);
    assert_int_equal(weir_governor_create(&config, &governor), 0);
}

static void test_a_lease_is_no_charge(void **state)
{
    (void)state;
    enlarge();
    struct weir_account *account = open_plain();

    assert_int_equal(charge(account, 100), WEIR_ADMIT);
    assert_int_equal(charge(account, 100), WEIR_ADMIT); /* the first opened it, this filled it */
    assert_true(figures().lease_bytes > 0);
    assert_int_equal(figures().charged_bytes, 200);
    assert_int_equal(charged_by(account), 200);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(charge(account, 5000), WEIR_ADMIT);
    assert_int_equal(figures().charged_bytes, 5000200);
    weir_account_charge_forced(account, 100);
    weir_account_refund_remote(account, 100);
    for (int i = 0; i < 1000; i++)
        weir_account_refund(account, 5000);
    assert_int_equal(figures().charged_bytes, 200);

    struct weir_account_stats stats;
    weir_account_stats(account, &stats);
    assert_int_equal(stats.charged_bytes, 200);
    assert_int_equal(stats.admit_count, 1002);
    assert_int_equal(stats.forced_bytes, 100);
    assert_int_equal(stats.peak_bytes, 5000300);
    weir_account_refund(account, 201);
    weir_account_stats(account, &stats);
    assert_int_equal(stats.over_refund_count, 1);
    assert_int_equal(figures().charged_bytes, 0);
    weir_account_close(account);
    assert_int_equal(figures().lease_bytes, 0);
}

static void test_leases_are_at_most_a_hundredth(void **state)
{
    struct weir_account *accounts[40];

    (void)state;
    enlarge();
    for (int i = 0; i < 40; i++) {
        accounts[i] = open_plain();
        for (int j = 0; j <= i; j++) {
            assert_int_equal(charge(accounts[j], 1), WEIR_ADMIT);
            assert_int_equal(charge(accounts[j], 100000), WEIR_ADMIT);
            assert_int_equal(charge(accounts[j], 100000), WEIR_ADMIT);
            weir_account_refund(accounts[j], 100000);
            weir_account_refund(accounts[j], 100000); /* as full as it gets */
        }
        assert_in_range(figures().lease_bytes, 1, GIB / 100);
    }
    for (int i = 0; i < 40; i++)
        weir_account_close(accounts[i]);
    assert_int_equal(figures().charged_bytes, 0);
    assert_int_equal(figures().lease_bytes, 0);
}

static void test_idle_leases_flow_back(void **state)
{
    (void)state;
    enlarge();
    struct weir_account *account = open_plain();

    for (int i = 0; i < 2; i++)
        assert_int_equal(charge(account, 1), WEIR_ADMIT);
    weir_account_poll(account);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(charge(account, 10), WEIR_ADMIT);
        weir_account_refund(account, 10);
        weir_account_poll(account); /* it was used since the last */
        assert_true(figures().lease_bytes > 0);
    }
    weir_account_poll(account);
    assert_int_equal(figures().lease_bytes, 0);
    assert_int_equal(figures().charged_bytes, 2);
    assert_int_equal(charge(account, 10), WEIR_ADMIT); /* and there it is again */
    assert_true(figures().lease_bytes > 0);
    weir_account_close(account);
}

static void test_levels_do_not_see_leases(void **state)
{
    (void)state;
    enlarge();
    struct weir_account *holder = open_plain();
    struct weir_account *account = open_plain();
    uint64_t soft_bytes = figures().soft_bytes;

    for (int i = 0; i < 2; i++)
        assert_int_equal(charge(holder, 1), WEIR_ADMIT);
    assert_true(figures().lease_bytes > 0);
    assert_int_equal(charge(account, soft_bytes - 2), WEIR_ADMIT);
    assert_int_equal(figures().level, WEIR_LEVEL_CALM);
    assert_int_equal(figures().lease_bytes, 0); /* taken from its owner, who did nothing */
    assert_int_equal(charge(holder, 1), WEIR_FLUSH);
    assert_int_equal(charge(holder, 1), WEIR_ADMIT);
    assert_int_equal(figures().charged_bytes, soft_bytes + 2);
    assert_int_equal(charge(account, GIB - soft_bytes - 2), WEIR_ADMIT);
    assert_int_equal(figures().charged_bytes, GIB);
    assert_int_equal(charge(account, 1), WEIR_WAIT);
    assert_int_equal(figures().lease_bytes, 0);

    weir_account_refund(account, GIB - 4); /* calm: there are leases again */
    for (int i = 0; i < 2; i++)
        assert_int_equal(charge(holder, 1), WEIR_ADMIT);
    assert_true(figures().lease_bytes > 0);
    assert_int_equal(figures().charged_bytes, 6);
    weir_account_close(holder);
    weir_account_close(account);
}

static void test_nobody_is_refused_for_leases(void **state)
{
    (void)state;
    enlarge();
    struct weir_account *holder = open_plain();
    struct weir_account *account = open_spillable();
    uint64_t spill_bytes = figures().spill_bytes;

    for (int i = 0; i < 2; i++)
        assert_int_equal(charge(holder, 1), WEIR_ADMIT);
    assert_int_equal(charge(account, spill_bytes - 2), WEIR_FLUSH); /* not one byte early */
    assert_int_equal(figures().charged_bytes, spill_bytes);
    weir_account_refund(account, spill_bytes - 2);

    for (int i = 0; i < 2; i++)
        assert_int_equal(charge(holder, 1), WEIR_ADMIT);
    assert_true(figures().lease_bytes > 0);
    struct weir_account *reserved =
        open_account((struct weir_account_config){.reserve_bytes = GIB - 4});
    assert_int_equal(figures().charged_bytes, GIB);
    weir_account_close(reserved);
    weir_account_close(holder);
    weir_account_close(account);
}

static void test_a_cap_counts_no_lease(void **state)
{
    (void)state;
    enlarge();
    struct weir_account *account = open_account(
        (struct weir_account_config){.bytes_max = 1000, .transient = true, .name = "capped"});
    struct sleeper sleeper;

    for (int i = 0; i < 10; i++)
        assert_int_equal(charge(account, 100), WEIR_ADMIT);
    assert_int_equal(charge(account, 1), WEIR_WAIT);
    weir_account_charge_forced(account, 50);
    weir_account_refund(account, 50);
    assert_int_equal(charge(account, 1), WEIR_WAIT);
    weir_account_refund(account, 100);
    assert_int_equal(charge(account, 101), WEIR_WAIT);
    queue_up(account, &sleeper, 150);
    weir_account_refund(account, 50);
    assert_int_equal(weir_account_poll(account), 1);
    assert_int_equal(charged_by(account), 1000);
    assert_int_equal(charge(account, 1), WEIR_WAIT);
    weir_account_close(account);
}

struct lender {
    pthread_barrier_t barrier;
};

/* Has a lease, and does nothing any more. */
static void *lender_main(void *context)
{
    struct lender *lender = context;
    struct weir_account_config config = {.name = "lender", .transient = true};
    struct weir_account *account = NULL;
    enum weir_verdict verdict;

    (void)!weir_account_open(governor, &config, &account);
    for (int i = 0; i < 3; i++)
        (void)!weir_account_charge(account, 1, &verdict);
    pthread_barrier_wait(&lender->barrier);
    pthread_barrier_wait(&lender->barrier);
    weir_account_close(account);
    return NULL;
}

static void test_a_waiter_gets_what_another_thread_has_ahead(void **state)
{
    struct lender lender;
    struct weir_waiter waiter = {0};
    pthread_t thread;

    (void)state;
    enlarge();
    struct weir_account *account = open_plain();
    assert_int_equal(pthread_barrier_init(&lender.barrier, NULL, 2), 0);
    assert_int_equal(pthread_create(&thread, NULL, lender_main, &lender), 0);
    pthread_barrier_wait(&lender.barrier);
    assert_true(figures().lease_bytes > 0);
    assert_int_equal(weir_account_wait(account, &waiter, GIB - 3, 0), 0);
    assert_int_equal(figures().charged_bytes, GIB);
    assert_int_equal(figures().lease_bytes, 0);
    pthread_barrier_wait(&lender.barrier);
    pthread_join(thread, NULL);
    pthread_barrier_destroy(&lender.barrier);
    weir_account_close(account);
}

static void test_without_a_barrier_there_are_no_leases(void **state)
{
    int status = 0;
    pid_t child = fork();

    (void)state;
    assert_true(child >= 0);
    if (child == 0) {
        struct weir_governor_config config = {.bytes_max = GIB, .node_count = 1};
        struct weir_governor_stats stats;
        struct weir_account *account;
        enum weir_verdict verdict;
        bool ok = harness_forbid(__NR_membarrier) == 0 &&
                  weir_governor_create(&config, &governor) == 0 &&
                  weir_account_open(governor, NULL, &account) == 0;
        for (int i = 0; ok && i < 10; i++)
            ok = weir_account_charge(account, 10, &verdict) == 0 && verdict == WEIR_ADMIT;
        if (ok)
            weir_governor_stats(governor, &stats);
        _exit(ok && stats.lease_bytes == 0 && stats.charged_bytes == 100 ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* ---- The queue alone --------------------------------------------------------- */

static void test_tickets_are_unique(void **state)
{
    struct weir__queue queue;
    struct weir__lane lane;
    struct weir_waiter waiters[3] = {{0}};

    (void)state;
    weir__queue_init(&queue);
    weir__lane_init(&lane);
    assert_int_equal(weir__queue_oldest(&queue), UINT64_MAX);
    for (int i = 0; i < 3; i++)
        weir__queue_append(&queue, &lane, &waiters[i], 1000);
    assert_int_equal(waiters[0].since_ns, 1000);
    assert_int_equal(waiters[1].since_ns, 1001);
    assert_int_equal(waiters[2].since_ns, 1002);
    weir__queue_remove(&queue, &lane, &waiters[1]);
    weir__queue_remove(&queue, &lane, &waiters[0]);
    assert_int_equal(weir__queue_oldest(&queue), 1002);
    weir__queue_remove(&queue, &lane, &waiters[2]);
    assert_true(weir__list_is_empty(&queue.lanes));
    assert_int_equal(queue.waiter_count, 0);
}

static void test_the_look_into_a_lane_is_bounded(void **state)
{
    struct weir__queue queue;
    struct weir__lane lane;
    struct weir_waiter giants[QUEUE_LOOK_MAX] = {{0}};
    struct weir_waiter small = {.bytes = 1};

    (void)state;
    weir__queue_init(&queue);
    weir__lane_init(&lane);
    for (int i = 0; i < QUEUE_LOOK_MAX; i++) {
        giants[i].bytes = 100;
        weir__queue_append(&queue, &lane, &giants[i], 1);
    }
    weir__queue_append(&queue, &lane, &small, 1);
    lane.room_bytes = UINT64_MAX;
    lane.cap_room_bytes = UINT64_MAX;
    assert_null(weir__queue_pick(&queue, 99));
    weir__queue_remove(&queue, &lane, &giants[3]);
    assert_ptr_equal(weir__queue_pick(&queue, 99), &small);
    assert_ptr_equal(weir__queue_pick(&queue, 100), &giants[0]);
}

static void test_a_worn_waiter_stops_only_the_younger(void **state)
{
    struct weir__queue queue;
    struct weir__lane lanes[3];
    struct weir_waiter old = {.bytes = 10};
    struct weir_waiter worn = {.bytes = 100};
    struct weir_waiter young = {.bytes = 10};

    (void)state;
    weir__queue_init(&queue);
    for (int i = 0; i < 3; i++) {
        weir__lane_init(&lanes[i]);
        lanes[i].room_bytes = UINT64_MAX;
        lanes[i].cap_room_bytes = UINT64_MAX;
    }
    weir__queue_append(&queue, &lanes[0], &old, 1);
    weir__queue_append(&queue, &lanes[1], &worn, 2);
    weir__queue_append(&queue, &lanes[2], &young, 3);
    worn.bypassed_count = QUEUE_BYPASS_MAX;
    assert_ptr_equal(weir__queue_pick(&queue, 50), &old);
    weir__queue_remove(&queue, &lanes[0], &old);
    assert_null(weir__queue_pick(&queue, 50));
    assert_false(weir__queue_is_passable(&queue, &lanes[0]));

    /* Held by its cap, it stops nobody but its own lane. */
    lanes[1].room_bytes = 99;
    lanes[1].cap_room_bytes = 99;
    assert_ptr_equal(weir__queue_pick(&queue, 50), &young);
    assert_true(weir__queue_is_passable(&queue, &lanes[0]));
    assert_false(weir__queue_is_passable(&queue, &lanes[1]));

    /* Held by its node, it stops those of its node. */
    lanes[1].cap_room_bytes = UINT64_MAX;
    lanes[1].node = 1;
    assert_ptr_equal(weir__queue_pick(&queue, 50), &young);
    assert_true(weir__queue_is_passable(&queue, &lanes[0]));
    lanes[2].node = 1;
    assert_null(weir__queue_pick(&queue, 50));
    assert_false(weir__queue_is_passable(&queue, &lanes[2]));
}

/* ---- The machine's limits ---------------------------------------------------- */

/* As told without an error. */
static uint64_t limit_of(uint64_t ram_bytes)
{
    int error = 1;
    uint64_t bytes = weir__limits_bytes(tree, ram_bytes, &error);

    assert_int_equal(error, 0);
    return bytes;
}

static void test_without_cgroups_there_is_ram(void **state)
{
    (void)state;
    plant("bare");
    assert_int_equal(limit_of(8 * GIB), 8 * GIB);
    write_file("/proc/self/cgroup", "0::/\n");
    write_file("/proc/self/mountinfo", "garbage\n\n - \n1 2 3\n1 2 3 / /x - cgroup2\n");
    assert_int_equal(limit_of(8 * GIB), 8 * GIB);
}

static void test_v2_walks_up(void **state)
{
    (void)state;
    plant("v2");
    write_file("/proc/self/cgroup", "0::/app.slice/one/two\n");
    write_file("/proc/self/mountinfo",
               "22 1 0:20 / /proc rw - proc proc rw\n"
               "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n");
    write_file("/sys/fs/cgroup/app.slice/one/two/memory.max", "max\n");
    assert_int_equal(limit_of(8 * GIB), 8 * GIB);
    write_file("/sys/fs/cgroup/app.slice/memory.max", "2147483648\n");
    assert_int_equal(limit_of(8 * GIB), 2 * GIB);
    write_file("/sys/fs/cgroup/app.slice/one/memory.max", "3221225472\n");
    assert_int_equal(limit_of(8 * GIB), 2 * GIB);
    write_file("/sys/fs/cgroup/app.slice/one/two/memory.high", "1073741824\n");
    assert_int_equal(limit_of(8 * GIB), 1 * GIB);
    assert_int_equal(limit_of(GIB / 2), GIB / 2);
    write_file("/sys/fs/cgroup/app.slice/other/memory.max", "4096\n"); /* not on our way */
    assert_int_equal(limit_of(8 * GIB), 1 * GIB);
}

static void test_v1_walks_up(void **state)
{
    (void)state;
    plant("v1");
    write_file("/proc/self/cgroup", "9:name=systemd:/x\n4:cpu,memory:/a/b\n3:cpuset:/\n0::/\n");
    write_file("/proc/self/mountinfo",
               "34 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
               "35 31 0:32 / /sys/fs/cgroup/mem\\040ory rw - cgroup cgroup rw,cpu,memory\n"
               "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
    write_file("/sys/fs/cgroup/mem ory/a/b/memory.limit_in_bytes", "9223372036854771712\n");
    assert_int_equal(limit_of(8 * GIB), 8 * GIB);
    write_file("/sys/fs/cgroup/mem ory/a/memory.limit_in_bytes", "2147483648\n");
    assert_int_equal(limit_of(8 * GIB), 2 * GIB);
    write_file("/sys/fs/cgroup/mem ory/a/b/memory.stat",
               "cache 0\nhierarchical_memory_limit 1073741824\nhierarchical_memsw_limit 5\n");
    assert_int_equal(limit_of(8 * GIB), 1 * GIB);
}

static void test_containers_see_a_part_of_the_tree(void **state)
{
    (void)state;
    plant("container");
    write_file("/proc/self/cgroup", "4:memory:/docker/abc/inner\n0::/../outside\n");
    write_file("/proc/self/mountinfo",
               "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
               "41 31 0:38 / /sys/fs/cgroup/unified ro - cgroup2 cgroup2 rw\n");
    write_file("/sys/fs/cgroup/memory/inner/memory.limit_in_bytes", "3221225472\n");
    assert_int_equal(limit_of(8 * GIB), 3 * GIB);
    write_file("/sys/fs/cgroup/memory/memory.limit_in_bytes", "2147483648\n");
    assert_int_equal(limit_of(8 * GIB), 2 * GIB);
    write_file("/sys/fs/cgroup/unified/memory.max", "1073741824\n");
    assert_int_equal(limit_of(8 * GIB), 1 * GIB);
    write_file("/proc/self/cgroup", "4:memory:/docker/abcdef\n"); /* a neighbour, not below us */
    assert_int_equal(limit_of(8 * GIB), 2 * GIB);
}

static struct weir_governor_outside look(void)
{
    struct weir_governor_outside outside;

    weir__governor_look_at(governor, tree, 8 * GIB, &outside);
    return outside;
}

static void test_drift_is_a_figure(void **state)
{
    const uint64_t rss_bytes = 300 * (uint64_t)sysconf(_SC_PAGESIZE);
    struct weir_account *account = open_plain();

    (void)state;
    plant_group("drift", "v2");
    assert_int_equal(charge(account, 400), WEIR_ADMIT);
    struct weir_governor_outside outside = look();
    assert_int_equal(outside.limit_bytes, 8 * GIB);
    assert_int_equal(outside.usage_bytes, 0); /* not told */
    assert_int_equal(outside.rss_bytes, rss_bytes);
    assert_int_equal(outside.drift_bytes, (int64_t)rss_bytes - 400);
    assert_int_equal(outside.pressure_some, 730);
    assert_int_equal(outside.pressure_full, 105);
    assert_int_equal(figures().bytes_max, 1000);

    write_file("/sys/fs/cgroup/app/memory.max", "1073741824\n");
    write_file("/sys/fs/cgroup/app/memory.current", "123456\n");
    write_file("/sys/fs/cgroup/app/memory.pressure", "some avg10=0.09 avg60=0 avg300=0 total=1\n"
                                                     "full avg10=0.00 avg60=0 avg300=0 total=1\n");
    outside = look();
    assert_int_equal(outside.limit_bytes, GIB);
    assert_int_equal(outside.usage_bytes, 123456);
    assert_int_equal(outside.pressure_some, 9); /* our group's, not the machine's */
    assert_int_equal(outside.pressure_full, 0);

    plant_group("drift1", "v1");
    write_file("/sys/fs/cgroup/app/memory.limit_in_bytes", "2147483648\n");
    write_file("/sys/fs/cgroup/app/memory.usage_in_bytes", "777\n");
    outside = look();
    assert_int_equal(outside.limit_bytes, 2 * GIB);
    assert_int_equal(outside.usage_bytes, 777);
    assert_int_equal(outside.pressure_some, 730);
    weir_account_close(account);
}

static void test_a_look_at_this_machine(void **state)
{
    struct weir_governor_outside outside;

    (void)state;
    weir_governor_look(governor, NULL);
    weir_governor_look(governor, &outside);
    assert_int_equal(outside.limit_bytes, weir_governor_machine_bytes());
    assert_true(outside.rss_bytes > 0);
    assert_true(outside.look_ns > 0);
    assert_int_equal(outside.lowered_percent, 0);
}

static void test_a_share_follows_the_machine(void **state)
{
    struct weir_governor_config config = {.percent = 50};

    (void)state;
    plant_group("share", "v2");
    assert_int_equal(weir_governor_set_limits(governor, &config), 0);
    (void)look();
    assert_int_equal(figures().bytes_max, 4 * GIB);
    struct weir_account *account = open_transient();
    assert_int_equal(charge(account, GIB), WEIR_ADMIT);
    write_file("/sys/fs/cgroup/app/memory.max", "1073741824\n");
    (void)look();
    assert_int_equal(figures().bytes_max, GIB / 2);
    assert_int_equal(figures().level, WEIR_LEVEL_HARD);
    assert_int_equal(charge(account, 1), WEIR_WAIT);
    write_file("/sys/fs/cgroup/app/memory.max", "max\n");
    (void)look();
    assert_int_equal(charge(account, 1), WEIR_ADMIT);
    weir_account_close(account);
}

static void test_pressure_lowers_the_levels(void **state)
{
    struct weir_governor_config config = {.bytes_max = 1000, .pressure_percent = 101};

    (void)state;
    plant_group("pressure", "v2"); /* 7.3 % */
    assert_int_equal(weir_governor_set_limits(governor, &config), -EINVAL);
    config.pressure_percent = 8;
    assert_int_equal(weir_governor_set_limits(governor, &config), 0);
    assert_int_equal(look().lowered_percent, 0);
    config.pressure_percent = 7;
    assert_int_equal(weir_governor_set_limits(governor, &config), 0);
    assert_int_equal(look().lowered_percent, 5);
    assert_int_equal(figures().bytes_max, 950);
    assert_int_equal(figures().soft_bytes, 760);
    for (int i = 0; i < 20; i++)
        (void)look();
    assert_int_equal(figures().bytes_max, 700); /* never below */
    write_file("/proc/pressure/memory", "some avg10=3.50 avg60=0.00 avg300=0.00 total=1\n");
    assert_int_equal(look().lowered_percent, 30); /* neither much nor little */
    write_file("/proc/pressure/memory", "some avg10=3.49 avg60=0.00 avg300=0.00 total=1\n");
    assert_int_equal(look().lowered_percent, 29);
    for (int i = 0; i < 40; i++)
        (void)look();
    assert_int_equal(figures().bytes_max, 1000);

    struct weir_account *account = open_account((struct weir_account_config){.reserve_bytes = 980});
    write_file("/proc/pressure/memory", "some avg10=99.00 avg60=0.00 avg300=0.00 total=1\n");
    for (int i = 0; i < 20; i++)
        (void)look();
    assert_int_equal(figures().bytes_max, 980); /* working sets stay */
    weir_account_close(account);
}

/* What stands in a file of the way up, and how it is taken: the limit, and the error. */
static void check_limit(const char *name, const char *text, uint64_t bytes, int error)
{
    int told = 1;

    write_file(name, text);
    assert_int_equal(weir__limits_bytes(tree, 8 * GIB, &told), bytes);
    assert_int_equal(told, error);
}

static void test_what_cannot_be_read_is_told(void **state)
{
    static const char *const bad[] = {"",      "\n",     "garbage\n", "-1\n", " 5\n",
                                      "5 k\n", "0x10\n", "maximum\n", "1.5\n"};
    const char *v2 = "/sys/fs/cgroup/app/memory.max";
    const char *v1 = "/sys/fs/cgroup/app/memory.limit_in_bytes";

    (void)state;
    plant_group("bad2", "v2");
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        check_limit(v2, bad[i], 8 * GIB, -EBADMSG);
    check_limit(v2, "1073741824", GIB, 0);
    check_limit(v2, "max", 8 * GIB, 0);
    check_limit(v2, "0\n", 0, 0);                             /* nothing at all is allowed */
    check_limit(v2, "18446744073709551615\n", 8 * GIB, 0);    /* 2^64 - 1 */
    check_limit(v2, "99999999999999999999999\n", 8 * GIB, 0); /* more than any machine has */

    /* Others on the way count all the same. */
    check_limit(v2, "bad\n", 8 * GIB, -EBADMSG);
    check_limit("/sys/fs/cgroup/memory.max", "1073741824\n", GIB, -EBADMSG);
    check_limit(v2, "max\n", GIB, 0);
    check_limit("/sys/fs/cgroup/app/memory.high", "\n", GIB, -EBADMSG);

    /* Something that is no file at all. */
    plant_group("directory", "v2");
    write_file("/sys/fs/cgroup/app/memory.max/x", "");
    int told;
    assert_int_equal(weir__limits_bytes(tree, 8 * GIB, &told), 8 * GIB);
    assert_int_equal(told, -EISDIR);

    plant_group("bad1", "v1");
    check_limit(v1, "many\n", 8 * GIB, -EBADMSG);
    check_limit(v1, "9223372036854771712\n", 8 * GIB, 0);
    check_limit("/sys/fs/cgroup/app/memory.stat", "hierarchical_memory_limit x\n", 8 * GIB,
                -EBADMSG);
    check_limit("/sys/fs/cgroup/app/memory.stat", "cache 7\n", 8 * GIB, 0);

    /* Lists that are longer than any we know. */
    plant("long");
    char *lines = malloc((1 << 20) + 64);
    memset(lines, 'x', (1 << 20) + 63);
    lines[(1 << 20) + 63] = '\0';
    check_limit("/proc/self/cgroup", lines, 8 * GIB, -EFBIG);
    free(lines);

    /* Nobody tells. */
    plant("nothing");
    assert_int_equal(limit_of(0), 0);
}

/* v1 has a number for it, and there may be no RAM that is smaller. */
static void test_unlimited_is_no_limit(void **state)
{
    (void)state;
    plant_group("unlimited1", "v1");
    write_file("/sys/fs/cgroup/app/memory.limit_in_bytes", "9223372036854771712\n");
    write_file("/sys/fs/cgroup/app/memory.stat", "hierarchical_memory_limit 9223372036854771712\n");
    assert_int_equal(limit_of(0), 0);
    assert_int_equal(limit_of(8 * GIB), 8 * GIB);
    plant_group("unlimited2", "v2");
    write_file("/sys/fs/cgroup/app/memory.max", "9223372036854775807\n");
    assert_int_equal(limit_of(0), 0);
}

static void test_an_error_raises_nothing(void **state)
{
    struct weir_governor_config config = {.percent = 50, .pressure_percent = 7};

    (void)state;
    plant_group("error", "v2");
    write_file("/sys/fs/cgroup/app/memory.max", "1073741824\n");
    assert_int_equal(weir_governor_set_limits(governor, &config), 0);
    (void)look(); /* this machine's limit first, then the tree's */
    write_file("/proc/pressure/memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n");
    uint64_t before = figures().bytes_max;
    assert_in_range(before, GIB / 2 / 100 * 94, GIB / 2 / 100 * 96);
    assert_int_equal(look().lowered_percent, 4);
    before = figures().bytes_max;

    write_file("/sys/fs/cgroup/app/memory.max", "?\n");
    struct weir_governor_outside outside = look();
    assert_int_equal(outside.error, -EBADMSG);
    assert_int_equal(outside.limit_bytes, GIB);
    assert_int_equal(outside.lowered_percent, 4);
    assert_int_equal(look().limit_bytes, GIB);
    assert_int_equal(figures().bytes_max, before);

    /* But it may fall, and with the error gone it follows again. */
    write_file("/sys/fs/cgroup/memory.max", "536870912\n");
    assert_int_equal(look().limit_bytes, GIB / 2);
    write_file("/sys/fs/cgroup/memory.max", "max\n");
    write_file("/sys/fs/cgroup/app/memory.max", "max\n");
    assert_int_equal(look().error, 0);
    assert_true(figures().bytes_max > 3 * GIB);

    /* The same of pressure and size. */
    write_file("/proc/pressure/memory", "nothing\n");
    assert_int_equal(look().error, -EBADMSG);
    write_file("/proc/pressure/memory", "some avg10=99999999999999999999 full avg10=1\n");
    assert_int_equal(look().pressure_some, 10000);
    write_file("/proc/self/statm", "");
    outside = look();
    assert_int_equal(outside.error, -EBADMSG);
    assert_int_equal(outside.rss_bytes, 0);
    assert_int_equal(outside.drift_bytes, 0);
    write_file("/proc/self/statm", "1000 99999999999999999999 1\n");
    assert_int_equal(look().error, -EBADMSG);
    write_file("/proc/self/statm", "1000 300 20 1 0 100 0\n");
    write_file("/sys/fs/cgroup/app/memory.current", "all\n");
    outside = look();
    assert_int_equal(outside.error, -EBADMSG);
    assert_int_equal(outside.usage_bytes, 0);
}

static void test_nodes_are_read_from_the_machine(void **state)
{
    struct weir_governor_config config = {.bytes_max = 1000};
    struct weir__topology topology;
    struct weir__budget budget;
    struct weir__nodes nodes;

    (void)state;
    plant("nodes");
    weir__topology_read(tree, &topology);
    assert_int_equal(topology.count, 1);
    write_file("/sys/devices/system/node/node0/meminfo", "Node 0 MemTotal:  1024 kB\nx\n");
    write_file("/sys/devices/system/node/node0/distance", "10 21\n");
    write_file("/sys/devices/system/node/online", "0-1\n");
    assert_int_equal(weir__topology_read(tree, &topology), 0);
    assert_int_equal(topology.count, 1);
    write_file("/sys/devices/system/node/node1/meminfo", "Node 1 MemTotal:  3072 kB\n");
    write_file("/sys/devices/system/node/node1/distance", "21 10\n");
    weir__topology_read(tree, &topology);
    assert_int_equal(topology.count, 2);
    assert_int_equal(topology.memory_bytes[1], 3072 << 10);
    assert_int_equal(topology.distances[0][1], 21);

    assert_int_equal(weir__budget_init(&budget, &config, 0), 0);
    assert_int_equal(weir__nodes_init(&nodes, &config, &topology, &budget), 0);
    assert_int_equal(nodes.count, 2);
    assert_int_equal(nodes.nodes[0].budget_bytes, 250);
    assert_int_equal(nodes.nodes[1].budget_bytes, 750);
    assert_int_equal(nodes.nodes[1].nearest[0], 1);
    assert_int_equal(nodes.nodes[1].nearest[1], 0);

    /* What is not understood is told, and nodes do not matter. */
    static const char *const bad[] = {"", "Node 1 MemTotal: kB\n", "Node 1 MemFree: 3072 kB\n",
                                      "Node 1 MemTotal: 99999999999999999999 kB\n"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        write_file("/sys/devices/system/node/node1/meminfo", bad[i]);
        assert_int_equal(weir__topology_read(tree, &topology), -EBADMSG);
        assert_int_equal(topology.count, 1);
    }
    write_file("/sys/devices/system/node/node1/meminfo", "Node 1 MemTotal:  0 kB\n");
    assert_int_equal(weir__topology_read(tree, &topology), 0); /* a node of cpus alone */
    assert_int_equal(topology.count, 2);
    write_file("/sys/devices/system/node/node1/distance", "21\n");
    assert_int_equal(weir__topology_read(tree, &topology), -EBADMSG);
    write_file("/sys/devices/system/node/node1/distance", "21 10\n");

    /* A gap, or more than we know of: nodes do not matter. */
    write_file("/sys/devices/system/node/node3/meminfo", "");
    weir__topology_read(tree, &topology);
    assert_int_equal(topology.count, 1);
}

#define CASE(name, function)                                                                       \
 {                                                                                                 \
  name, function, set_up, tear_down, NULL                                                          \
 }

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE("bad configurations are refused", test_bad_configs_are_refused),
        CASE("the default is a part of the machine", test_default_is_a_part_of_the_machine),
        CASE("closing takes NULL", test_closing_takes_nothing),
        CASE("closing refunds what is left", test_closing_refunds_what_is_left),
        CASE("a reserve is kept until close", test_a_reserve_is_kept_until_close),
        CASE("the four verdicts come in their order", test_the_four_verdicts),
        CASE("levels are left where they say", test_levels_are_left_where_they_say),
        CASE("a flush is asked once per episode", test_flush_is_asked_once_per_episode),
        CASE("a forced opening owes a flush", test_a_forced_opening_owes_a_flush),
        CASE("flush bytes reach soft's leave level", test_flush_bytes_reach_soft_leave),
        CASE("spill is answered only with room", test_spill_only_with_room),
        CASE("who has an overflow can be asked for its room", test_room_is_asked_for),
        CASE("a cap waits or spills", test_a_cap_waits_or_spills),
        CASE("what can never fit is refused", test_what_can_never_fit_is_refused),
        CASE("nothing is always admitted", test_nothing_is_always_admitted),
        CASE("forced charges pass hard and are shown apart", test_forced_charges_pass_hard),
        CASE("over-refunds are counted and harmless", test_over_refunds_are_counted),
        CASE("books charge and refund", test_books_charge_and_refund),
        CASE("the delay grows between soft and hard", test_delay_between_soft_and_hard),
        CASE("a dwell keeps the level but not the waiters",
             test_a_dwell_keeps_the_level_but_not_the_waiters),
        CASE("relief is seen by the next poll", test_relief_is_seen_by_the_next_poll),
        CASE("memory is charged before the wake", test_memory_is_charged_before_the_wake),
        CASE("first come, first served", test_first_come_first_served),
        CASE("small ones pass a giant a bounded number of times",
             test_small_ones_pass_a_giant_a_bounded_number_of_times),
        CASE("charges pass a giant a bounded number of times",
             test_charges_pass_a_giant_a_bounded_number_of_times),
        CASE("a cap holds only its own waiters", test_a_cap_holds_only_its_own),
        CASE("an account does not pass its own waiter for ever",
             test_an_account_does_not_pass_its_own_waiter_for_ever),
        CASE("late waiters are told", test_late_waiters_are_told),
        CASE("a cancelled waiter is not woken", test_cancel),
        CASE("there is no wait without hope", test_no_wait_without_hope),
        CASE("there is no hope at a cap from others", test_no_hope_at_a_cap_from_others),
        CASE("owners are notified under no lock", test_owners_are_notified_under_no_lock),
        CASE("a wake may wait again", test_a_wake_may_wait_again),
        CASE("grants wait for forced charges too", test_grants_wait_for_forced_charges),
        CASE("closing an account grants", test_closing_an_account_grants),
        CASE("a grant that opens an episode owes a flush",
             test_a_grant_that_opens_an_episode_owes_a_flush),
        CASE("a sleeping thread is woken", test_a_sleeping_thread_is_woken),
        CASE("figures of an account", test_figures_of_an_account),
        CASE("figures of the governor", test_figures_of_the_governor),
        CASE("one call tells everything", test_one_call_tells_everything),
        CASE("holders come largest first", test_holders_come_largest_first),
        CASE("the cheapest is asked first", test_the_cheapest_is_asked_first),
        CASE("what came is checked", test_what_came_is_checked),
        CASE("a promise may be kept later", test_a_promise_may_be_kept_later),
        CASE("need that comes back is seen", test_need_that_comes_back_is_seen),
        CASE("reclaimers of the same cost take turns", test_equals_take_turns),
        CASE("a reclaimer is hope", test_a_reclaimer_is_hope),
        CASE("bad limits change nothing", test_bad_limits_change_nothing),
        CASE("a lower limit holds at once", test_a_lower_limit_holds_at_once),
        CASE("a higher limit grants", test_a_higher_limit_grants),
        CASE("who can never fit any more is told", test_who_can_never_fit_any_more_is_told),
        CASE("a sleeper who can never fit is told", test_a_sleeper_who_can_never_fit_is_told),
        CASE("levels change ten times in ten dwells", test_levels_change_ten_times_in_ten_dwells),
        CASE("bad nodes are refused", test_bad_nodes_are_refused),
        CASE("a node borrows from the nearest", test_a_node_borrows_from_the_nearest),
        CASE("a lender keeps what it would flush for", test_a_lender_keeps_what_it_would_flush_for),
        CASE("a full node waits alone", test_a_full_node_waits_alone),
        CASE("what the limit refuses the node has back",
             test_what_the_limit_refuses_the_node_has_back),
        CASE("a working set must lie on its node", test_a_working_set_must_lie_on_its_node),
        CASE("leases lie on their nodes", test_leases_lie_on_their_nodes),
        CASE("nodes are read from the machine", test_nodes_are_read_from_the_machine),
        CASE("drift is a figure", test_drift_is_a_figure),
        CASE("a look at this machine", test_a_look_at_this_machine),
        CASE("a share follows the machine", test_a_share_follows_the_machine),
        CASE("pressure lowers the levels", test_pressure_lowers_the_levels),
        CASE("a lease is no charge", test_a_lease_is_no_charge),
        CASE("leases are at most a hundredth", test_leases_are_at_most_a_hundredth),
        CASE("idle leases flow back", test_idle_leases_flow_back),
        CASE("levels do not see leases", test_levels_do_not_see_leases),
        CASE("nobody is refused for leases", test_nobody_is_refused_for_leases),
        CASE("a cap counts no lease", test_a_cap_counts_no_lease),
        CASE("a waiter gets what another thread has ahead",
             test_a_waiter_gets_what_another_thread_has_ahead),
        CASE("without a barrier there are no leases", test_without_a_barrier_there_are_no_leases),
        CASE("tickets are unique", test_tickets_are_unique),
        CASE("the look into a lane is bounded", test_the_look_into_a_lane_is_bounded),
        CASE("a worn waiter stops only the younger", test_a_worn_waiter_stops_only_the_younger),
        CASE("what cannot be read is told", test_what_cannot_be_read_is_told),
        CASE("a limit larger than any machine is none", test_unlimited_is_no_limit),
        CASE("an error raises nothing", test_an_error_raises_nothing),
        CASE("without cgroups there is RAM", test_without_cgroups_there_is_ram),
        CASE("v2 limits count all the way up", test_v2_walks_up),
        CASE("v1 limits count all the way up", test_v1_walks_up),
        CASE("containers see a part of the tree", test_containers_see_a_part_of_the_tree),
    };

    return cmocka_run_group_tests_name("governor", tests, NULL, NULL);
}
