/* SPDX-License-Identifier: MIT */
/* pace_unit - what pace.h promises */
#include "pace.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#define US UINT64_C(1000)
#define MS UINT64_C(1000000)

static struct pace_seat *resumed[1024];
static uint32_t resumed_count;

static void resume(struct pace_seat *seat)
{
    assert_false(seat->is_paused);
    resumed[resumed_count++ % 1024] = seat;
}

static void test_calm(void **state)
{
    struct pace_wheel wheel = {0};
    struct pace_seat seat = {0};

    (void)state;
    for (uint64_t i = 0; i < 1000; i++)
        assert_false(pace_add(&wheel, &seat, 5000 * MS, 0));
    assert_int_equal(wheel.paused_count, 0);
}

static void test_pause(void **state)
{
    struct pace_wheel wheel = {0};
    struct pace_seat seat = {0};
    const uint64_t start = 7777 * MS + 123;

    (void)state;
    resumed_count = 0;
    assert_true(pace_add(&wheel, &seat, start, 5 * MS));
    pace_turn(&wheel, start + 4 * MS, resume);
    assert_int_equal(resumed_count, 0);
    pace_turn(&wheel, start + 5 * MS + PACE_GRAIN_NS, resume);
    assert_int_equal(resumed_count, 1);
    assert_ptr_equal(resumed[0], &seat);
    assert_int_equal(wheel.paused_count, 0);
}

/* A closed loop that looks at the clock late, whatever the delay: a pause per slack at most. */
static void test_average(void **state)
{
    static const uint64_t delays[] = {300, 7 * US, 90 * US, 999 * US, 2500 * US, 10 * MS};

    (void)state;
    for (size_t i = 0; i < sizeof(delays) / sizeof(delays[0]); i++) {
        struct pace_wheel wheel = {0};
        struct pace_seat seat = {0};
        uint64_t seed = i + 1;
        uint64_t now = 1000 * MS;
        uint64_t pause_count = 0;
        const uint64_t item_count = 2000 * MS / delays[i] + 1;

        for (uint64_t j = 0; j < item_count; j++) {
            if (!pace_add(&wheel, &seat, now, delays[i]))
                continue;
            pause_count++;
            while (seat.is_paused) {
                seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
                now += 50 * US + (seed >> 33) % (300 * US);
                resumed_count = 0;
                pace_turn(&wheel, now, resume);
            }
        }
        const uint64_t ideal = item_count * delays[i];

        assert_in_range(now - 1000 * MS, ideal - ideal / 50 - 2 * MS, ideal + ideal / 50 + 2 * MS);
        assert_true(pause_count <= ideal / PACE_SLACK_NS + 1);
    }
}

static void test_nothing_saved(void **state)
{
    struct pace_wheel wheel = {0};
    struct pace_seat seat = {0};

    (void)state;
    assert_false(pace_add(&wheel, &seat, 1000 * MS, 1));
    /* An hour later it has no more than the slack. */
    assert_true(pace_add(&wheel, &seat, 3600000 * MS, PACE_SLACK_NS + 1));
    assert_true(seat.paid_ns > 3600000 * MS + PACE_SLACK_NS);
    pace_leave(&wheel, &seat);
    pace_leave(&wheel, &seat);
    assert_int_equal(wheel.paused_count, 0);
}

static void test_debt(void **state)
{
    struct pace_wheel wheel = {0};
    struct pace_seat seat = {0};

    (void)state;
    resumed_count = 0;
    for (int i = 0; i < 1000; i++)
        (void)pace_add(&wheel, &seat, 1000 * MS, 10 * MS);
    assert_int_equal(wheel.paused_count, 1);
    pace_turn(&wheel, 1000 * MS + PACE_DEBT_NS - PACE_GRAIN_NS, resume);
    assert_int_equal(resumed_count, 0);
    pace_turn(&wheel, 1000 * MS + PACE_DEBT_NS + PACE_GRAIN_NS, resume);
    assert_int_equal(resumed_count, 1);
}

/* Against what each owes: nobody goes on early, nobody is forgotten. */
static void test_many(void **state)
{
    static struct pace_seat seats[200];
    struct pace_wheel wheel = {0};
    uint64_t seed = 42;
    uint64_t now = 31 * MS;

    (void)state;
    for (int step = 0; step < 20000; step++) {
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
        struct pace_seat *seat = &seats[(seed >> 33) % 200];

        if (step % 7 == 0)
            pace_leave(&wheel, seat);
        else
            (void)pace_add(&wheel, seat, now, (seed >> 40) % (12 * MS));
        now += (seed >> 20) % (400 * US);
        if (step % 5000 == 4999)
            now += 700 * MS; /* longer than a round */
        resumed_count = 0;
        pace_turn(&wheel, now, resume);
        for (uint32_t i = 0; i < resumed_count; i++)
            assert_true(resumed[i]->paid_ns <= now);
        for (size_t i = 0; i < 200; i++)
            assert_true(!seats[i].is_paused || seats[i].paid_ns + PACE_GRAIN_NS > now);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"without a delay nobody pauses", test_calm, NULL, NULL, NULL},
        {"a pause ends when it is paid", test_pause, NULL, NULL, NULL},
        {"the average is exact however late the clock", test_average, NULL, NULL, NULL},
        {"nobody saves up for a burst", test_nothing_saved, NULL, NULL, NULL},
        {"a debt is bounded", test_debt, NULL, NULL, NULL},
        {"nobody goes on early and nobody is forgotten", test_many, NULL, NULL, NULL},
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
