/* SPDX-License-Identifier: MIT */
/* reorder - in order, whatever the region and the account say */
#include <weir/reorder.h>

#include "base/random.h"
#include "double.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

struct fixture {
    struct weir_region region;
    struct weir_account account;
    struct weir_reorder *reorder;
    uint32_t ready_count;
};

static void on_ready(void *context)
{
    ((struct fixture *)context)->ready_count++;
}

static struct weir_reorder *make(struct fixture *fixture, struct weir_reorder_config config)
{
    struct weir_reorder *reorder;

    config.account = &fixture->account;
    config.region = &fixture->region;
    if (config.ready == NULL) {
        config.ready = on_ready;
        config.context = fixture;
    }
    assert_int_equal(weir_reorder_create(&config, &reorder), 0);
    return reorder;
}

static int begin(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));

    double_region_init(&fixture->region);
    double_account_init(&fixture->account);
    fixture->reorder = make(fixture, (struct weir_reorder_config){.owner = 3});
    *state = fixture;
    return 0;
}

static int end(void **state)
{
    struct fixture *fixture = *state;

    if (fixture->reorder != NULL)
        weir_reorder_audit(fixture->reorder);
    weir_reorder_destroy(fixture->reorder);
    assert_int_equal(fixture->account.charged_bytes, 0);
    assert_int_equal(fixture->account.book_bytes, 0);
    weir_region_poll(&fixture->region);
    double_region_deinit(&fixture->region);
    free(fixture);
    return 0;
}

static void fill(char *data, uint64_t sequence, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        data[i] = (char)weir__mix(sequence * 31 + i / 8 + 1);
}

static int push(struct weir_reorder *reorder, uint64_t sequence, size_t bytes)
{
    char *data = malloc(bytes > 0 ? bytes : 1);
    int r;

    fill(data, sequence, bytes);
    r = weir_reorder_push(reorder, sequence, data, bytes);
    free(data);
    return r;
}

static void check(const struct weir_item *item, uint64_t sequence, size_t bytes)
{
    char *data = malloc(bytes > 0 ? bytes : 1);

    fill(data, sequence, bytes);
    assert_int_equal(item->sequence, sequence);
    assert_int_equal(item->bytes, bytes);
    if (bytes > 0)
        assert_memory_equal(item->data, data, bytes);
    else
        assert_null(item->data);
    free(data);
}

/* Pop, polling the region as a loop would; the item is checked and released. */
static void take(struct fixture *fixture, uint64_t sequence, size_t bytes)
{
    struct weir_item item;
    int r = weir_reorder_pop(fixture->reorder, &item);

    for (int i = 0; r == -EAGAIN && i < 100; i++) {
        weir_region_poll(&fixture->region);
        r = weir_reorder_pop(fixture->reorder, &item);
    }
    assert_int_equal(r, 0);
    check(&item, sequence, bytes);
    weir_reorder_release(fixture->reorder, &item);
}

static struct weir_reorder_stats stats_of(const struct weir_reorder *reorder)
{
    struct weir_reorder_stats stats;

    weir_reorder_stats(reorder, &stats);
    return stats;
}

/* All that the account was charged is in the figures. */
static void check_books(const struct fixture *fixture)
{
    struct weir_reorder_stats stats = stats_of(fixture->reorder);

    weir_reorder_audit(fixture->reorder);
    assert_int_equal(fixture->account.charged_bytes,
                     65536 - stats.lent_bytes + stats.memory_bytes + stats.metadata_bytes);
    assert_int_equal(fixture->account.book_bytes, stats.metadata_bytes);
}

/* ---- In memory ------------------------------------------------------------------ */

static void test_order(void **state)
{
    struct fixture *fixture = *state;
    struct weir_item item;

    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), -ENOENT);
    assert_int_equal(push(fixture->reorder, 2, 20), 0);
    assert_int_equal(push(fixture->reorder, 1, 10), 0);
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), -ENOENT);
    assert_int_equal(push(fixture->reorder, 0, 0), 0);
    check_books(fixture);
    take(fixture, 0, 0);
    take(fixture, 1, 10);
    take(fixture, 2, 20);
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), -ENOENT);
    assert_int_equal(stats_of(fixture->reorder).next_sequence, 3);
    assert_int_equal(stats_of(fixture->reorder).delivered_count, 3);
    check_books(fixture);
}

static void test_shuffled(void **state)
{
    struct fixture *fixture = *state;
    uint32_t order[5000];
    uint64_t seed = 7;

    for (uint32_t round = 0; round < 3; round++) {
        uint64_t first = round * UINT64_C(5000);

        for (uint32_t i = 0; i < 5000; i++)
            order[i] = i;
        for (uint32_t i = 4999; i > 0; i--) {
            uint32_t other = (uint32_t)weir__random_below(&seed, i + 1);
            uint32_t kept = order[i];

            order[i] = order[other];
            order[other] = kept;
        }
        for (uint32_t i = 0; i < 5000; i++)
            assert_int_equal(push(fixture->reorder, first + order[i], order[i] % 150), 0);
        check_books(fixture);
        for (uint32_t i = 0; i < 5000; i++)
            take(fixture, first + i, i % 150);
        check_books(fixture);
    }
}

static void test_refused(void **state)
{
    struct fixture *fixture = *state;
    struct weir_reorder *reorder;
    uint64_t charged;

    weir_reorder_destroy(fixture->reorder);
    fixture->reorder =
        make(fixture, (struct weir_reorder_config){.first_sequence = 100, .window_items_max = 10});
    reorder = fixture->reorder;
    assert_int_equal(push(reorder, 105, 50), 0);
    charged = fixture->account.charged_bytes;

    assert_int_equal(push(reorder, 99, 50), -ERANGE);
    assert_int_equal(push(reorder, 110, 50), -ERANGE);
    for (int i = 0; i < 10; i++)
        assert_int_equal(push(reorder, 105, 50), -EEXIST);
    assert_int_equal(fixture->account.charged_bytes, charged);
    assert_int_equal(stats_of(reorder).duplicate_count, 10);
    assert_int_equal(stats_of(reorder).range_count, 2);
    assert_int_equal(push(reorder, 109, 50), 0);
    assert_int_equal(stats_of(reorder).last_sequence, 109);
    check_books(fixture);
}

static void test_window_bytes(void **state)
{
    struct fixture *fixture = *state;

    weir_reorder_destroy(fixture->reorder);
    fixture->reorder = make(fixture, (struct weir_reorder_config){.window_bytes_max = 1000});
    assert_int_equal(push(fixture->reorder, 5, 900), 0);
    assert_int_equal(push(fixture->reorder, 6, 101), -EDQUOT);
    assert_int_equal(push(fixture->reorder, 6, 100), 0);
    /* Spilled payload counts too. */
    assert_int_equal(weir_reorder_spill(fixture->reorder, 1), 0);
    assert_int_equal(push(fixture->reorder, 7, 1), -EDQUOT);
    assert_int_equal(push(fixture->reorder, 0, 500), 0);
    take(fixture, 0, 500);
}

static void test_far_ahead(void **state)
{
    struct fixture *fixture = *state;
    uint64_t before = fixture->account.charged_bytes;

    assert_int_equal(push(fixture->reorder, 10000000, 42), 0);
    assert_true(fixture->account.charged_bytes - before < 1024);
}

static void test_popped(void **state)
{
    struct fixture *fixture = *state;
    struct weir_item items[50];

    for (uint64_t i = 0; i < 50; i++)
        assert_int_equal(push(fixture->reorder, i, 300), 0);
    for (uint64_t i = 0; i < 50; i++)
        assert_int_equal(weir_reorder_pop(fixture->reorder, &items[i]), 0);
    assert_int_equal(stats_of(fixture->reorder).popped_count, 50);
    assert_int_equal(stats_of(fixture->reorder).item_count, 0);
    assert_int_equal(stats_of(fixture->reorder).memory_bytes, 50 * 300);
    check_books(fixture);
    for (uint64_t i = 50; i-- > 0;) {
        check(&items[i], i, 300);
        weir_reorder_release(fixture->reorder, &items[i]);
    }
    assert_int_equal(stats_of(fixture->reorder).memory_bytes, 0);
    check_books(fixture);
}

static void test_skip(void **state)
{
    struct fixture *fixture = *state;

    assert_int_equal(push(fixture->reorder, 1, 10), 0);
    assert_int_equal(push(fixture->reorder, 2, 20), 0);
    assert_int_equal(push(fixture->reorder, 3, 30), 0);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    take(fixture, 1, 10);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    check_books(fixture);
    take(fixture, 3, 30);
    assert_int_equal(stats_of(fixture->reorder).skipped_count, 2);
    assert_int_equal(push(fixture->reorder, 2, 20), -ERANGE);
}

static void test_last_of_all(void **state)
{
    struct fixture *fixture = *state;

    weir_reorder_destroy(fixture->reorder);
    fixture->reorder =
        make(fixture, (struct weir_reorder_config){.first_sequence = UINT64_MAX - 1});
    assert_int_equal(push(fixture->reorder, UINT64_MAX, 1), -ERANGE);
    assert_int_equal(push(fixture->reorder, UINT64_MAX - 1, 1), 0);
    take(fixture, UINT64_MAX - 1, 1);
    assert_int_equal(weir_reorder_skip(fixture->reorder), -ERANGE);
}

static void test_invalid(void **state)
{
    struct fixture *fixture = *state;
    struct weir_reorder_config config = {.account = &fixture->account};
    struct weir_reorder *reorder = NULL;
    uint64_t charged_bytes = fixture->account.charged_bytes;
    uint32_t reclaimer_count = fixture->account.reclaimer_count;

    config.reserved[3] = 1;
    assert_int_equal(weir_reorder_create(&config, &reorder), -EINVAL);
    assert_int_equal(weir_reorder_create(NULL, &reorder), -EINVAL);
    config.reserved[3] = 0;
    fixture->account.spill_at = fixture->account.charged_bytes + 65535;
    assert_int_equal(weir_reorder_create(&config, &reorder), -EDQUOT);
    assert_null(reorder);
    assert_int_equal(fixture->account.charged_bytes, charged_bytes);
    assert_int_equal(fixture->account.reclaimer_count, reclaimer_count);
    weir_reorder_destroy(NULL);
}

static void test_alone(void **state)
{
    struct weir_reorder_config config = {0};
    struct weir_reorder *reorder;
    struct weir_item item;

    (void)state;
    assert_int_equal(weir_reorder_create(&config, &reorder), 0);
    assert_int_equal(push(reorder, 1, 10), 0);
    assert_int_equal(push(reorder, 0, 10), 0);
    assert_int_equal(weir_reorder_spill(reorder, 100), 0);
    assert_int_equal(weir_reorder_push_slot(reorder, 2, (struct weir_slot){1, 1}), -EINVAL);
    assert_int_equal(weir_reorder_pop(reorder, &item), 0);
    check(&item, 0, 10);
    weir_reorder_audit(reorder);
    weir_reorder_release(reorder, &item);
    weir_reorder_destroy(reorder);
}

static void test_stall(void **state)
{
    struct fixture *fixture = *state;
    uint64_t stalled;

    assert_int_equal(stats_of(fixture->reorder).stall_ns, 0);
    assert_int_equal(push(fixture->reorder, 1, 1), 0);
    while (stats_of(fixture->reorder).stall_ns == 0)
        ;
    assert_int_equal(push(fixture->reorder, 0, 1), 0);
    stalled = stats_of(fixture->reorder).stall_ns;
    assert_true(stalled > 0);
    assert_int_equal(stats_of(fixture->reorder).stall_max_ns, stalled);
    assert_int_equal(stats_of(fixture->reorder).stall_count, 1);
    take(fixture, 0, 1);
    take(fixture, 1, 1);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(stats_of(fixture->reorder).stall_ns, stalled);
    /* The next one is counted, and the longest stays. */
    assert_int_equal(push(fixture->reorder, 3, 1), 0);
    assert_int_equal(push(fixture->reorder, 2, 1), 0);
    assert_int_equal(stats_of(fixture->reorder).stall_count, 2);
    assert_in_range(stats_of(fixture->reorder).stall_max_ns, stalled, UINT64_MAX);
}

/* ---- Spilling ------------------------------------------------------------------- */

static void test_furthest_first(void **state)
{
    struct fixture *fixture = *state;

    for (uint64_t i = 1; i <= 100; i++)
        assert_int_equal(push(fixture->reorder, i, 100), 0);
    assert_int_equal(weir_reorder_spill(fixture->reorder, 1000), 1000);
    assert_int_equal(stats_of(fixture->reorder).spilled_count, 10);
    assert_int_equal(stats_of(fixture->reorder).spilled_bytes, 1000);
    assert_int_equal(stats_of(fixture->reorder).memory_bytes, 9000);
    for (uint32_t i = 0; i < fixture->region.slot_count; i++)
        if (fixture->region.slots[i].generation % 2 == 1) {
            assert_true(fixture->region.slots[i].label.key > 90);
            assert_int_equal(fixture->region.slots[i].label.owner, 3);
        }
    check_books(fixture);

    /* The hot zone stays: 16 behind next, which is 0 and missing. */
    assert_int_equal(weir_reorder_spill(fixture->reorder, UINT64_MAX), 7500);
    assert_int_equal(stats_of(fixture->reorder).memory_count, 15);
    assert_int_equal(push(fixture->reorder, 0, 100), 0);
    for (uint64_t i = 0; i <= 100; i++)
        take(fixture, i, 100);
    assert_int_equal(fixture->region.live_count, 0);
    assert_int_equal(stats_of(fixture->reorder).spill_count, 85);
    check_books(fixture);
}

/* The account is asked for memory that somebody else needs. */
static void test_relief(void **state)
{
    struct fixture *fixture = *state;
    struct weir_item item;

    for (uint64_t i = 0; i <= 100; i++)
        assert_int_equal(push(fixture->reorder, i, 100), 0);
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), 0);
    assert_int_equal(double_account_ask(&fixture->account, "reorder", 950), 1000);
    assert_int_equal(stats_of(fixture->reorder).spilled_bytes, 1000);
    for (uint32_t i = 0; i < fixture->region.slot_count; i++)
        if (fixture->region.slots[i].generation % 2 == 1)
            assert_true(fixture->region.slots[i].label.key > 90);
    check_books(fixture);

    /* What the region does not take is not promised, and stays. */
    fixture->region.put_result = -ENOSPC;
    assert_int_equal(double_account_ask(&fixture->account, "reorder", 1000), 0);
    assert_int_equal(stats_of(fixture->reorder).failed_spill_count, 1);
    fixture->region.put_result = 0;
    fixture->account.room_bytes = 99;
    assert_int_equal(double_account_ask(&fixture->account, "reorder", 1000), 0);
    fixture->account.room_bytes = UINT64_MAX;
    check_books(fixture);

    /* The hot zone and what is popped stay. */
    assert_int_equal(double_account_ask(&fixture->account, "reorder", UINT64_MAX), 7400);
    assert_int_equal(stats_of(fixture->reorder).memory_count, 16);
    assert_int_equal(stats_of(fixture->reorder).memory_bytes, 1700);
    assert_int_equal(double_account_ask(&fixture->account, "reorder", UINT64_MAX), 0);
    assert_int_equal(stats_of(fixture->reorder).reclaim_count, 2);
    assert_int_equal(stats_of(fixture->reorder).reclaim_bytes, 8400);
    check_books(fixture);

    check(&item, 0, 100);
    weir_reorder_release(fixture->reorder, &item);
    for (uint64_t i = 1; i <= 100; i++)
        take(fixture, i, 100);
    check_books(fixture);
}

/* What the working set has lent comes back first, and is not promised. */
static void test_relief_pays_the_working_set(void **state)
{
    struct fixture *fixture = *state;

    for (uint64_t i = 40; i < 50; i++)
        assert_int_equal(push(fixture->reorder, i, 5000), 0);
    fixture->account.wait_at = 0;
    fixture->region.put_result = -EAGAIN;
    assert_int_equal(push(fixture->reorder, 0, 20000), 0);
    fixture->region.put_result = 0;
    assert_int_equal(double_account_ask(&fixture->account, "reorder", 15000), 0);
    assert_int_equal(stats_of(fixture->reorder).spilled_bytes, 15000);
    assert_int_equal(double_account_ask(&fixture->account, "reorder", 15000), 15000);
    assert_int_equal(stats_of(fixture->reorder).spilled_bytes, 35000);
    weir_reorder_audit(fixture->reorder);
}

static void test_relief_goes_round(void **state)
{
    struct fixture *fixture = *state;
    struct weir_reorder *others[3];

    for (int i = 0; i < 3; i++)
        others[i] = make(fixture, (struct weir_reorder_config){0});
    assert_int_equal(fixture->account.reclaimer_count, 1);
    for (uint64_t i = 20; i < 60; i++)
        for (int j = 0; j < 2; j++) /* the last has nothing */
            assert_int_equal(push(others[j], i, 65536), 0);

    /* A mebibyte at once, and from each who has some. */
    assert_int_equal(double_account_ask(&fixture->account, "reorder", UINT64_MAX), 1 << 20);
    assert_int_equal(stats_of(others[0]).spilled_count, 8);
    assert_int_equal(stats_of(others[1]).spilled_count, 8);
    weir_reorder_destroy(others[0]);
    assert_int_equal(double_account_ask(&fixture->account, "reorder", 3 * 65536), 3 * 65536);
    assert_int_equal(stats_of(others[1]).spilled_count, 11);
    for (int i = 1; i < 3; i++) {
        weir_reorder_audit(others[i]);
        weir_reorder_destroy(others[i]);
    }
    assert_int_equal(fixture->account.reclaimer_count, 1);
    weir_reorder_destroy(fixture->reorder);
    fixture->reorder = NULL;
    assert_int_equal(fixture->account.reclaimer_count, 0);
}

static void test_verdict_spill(void **state)
{
    struct fixture *fixture = *state;
    uint64_t limit;

    weir_reorder_destroy(fixture->reorder);
    fixture->reorder = make(fixture, (struct weir_reorder_config){.hot_items = 1000});
    for (uint64_t i = 1; i <= 10; i++)
        assert_int_equal(push(fixture->reorder, i * 2, 100), 0);
    limit = fixture->account.charged_bytes;
    fixture->account.spill_at = limit;

    /* 21 is the furthest of all and goes itself; 1 takes the place of 20. */
    assert_int_equal(push(fixture->reorder, 21, 100), 0);
    assert_int_equal(stats_of(fixture->reorder).spilled_count, 1);
    assert_int_equal(stats_of(fixture->reorder).memory_count, 10);
    assert_int_equal(push(fixture->reorder, 1, 100), 0);
    /* Its place and that of the tables. */
    assert_int_equal(stats_of(fixture->reorder).spilled_count, 3);
    assert_int_equal(stats_of(fixture->reorder).memory_count, 9);
    assert_int_equal(stats_of(fixture->reorder).memory_bytes, 900);
    check_books(fixture);
    assert_int_equal(fixture->account.forced_bytes, 0);

    /* A larger one takes as many places as it needs. */
    assert_int_equal(push(fixture->reorder, 3, 250), 0);
    assert_int_equal(stats_of(fixture->reorder).spilled_count, 6);
    assert_int_equal(stats_of(fixture->reorder).memory_bytes, 850);
    check_books(fixture);
}

/* Ten times the limit goes through, and the tables are made up for: no level is passed. */
static void test_tables(void **state)
{
    struct fixture *fixture = *state;
    uint64_t limit;
    uint64_t count = 0;

    for (uint64_t i = 1; i <= 1000; i++)
        assert_int_equal(push(fixture->reorder, i, 500), 0);
    limit = fixture->account.charged_bytes;
    fixture->account.spill_at = limit - 8192;
    fixture->account.wait_at = limit;
    fixture->account.peak_bytes = 0;
    for (uint64_t i = 1001; i <= 10000; i++)
        assert_int_equal(push(fixture->reorder, i, 500), 0);
    /* A pack that is not empty yet, and what the books are ahead of the truth. */
    assert_true(fixture->account.peak_bytes <= limit + 24576);
    assert_true(stats_of(fixture->reorder).spilled_count > 8000);
    check_books(fixture);

    /*
     * At hard the region may have room: without something that leaves nothing enters, but
     * for what the working set has for the index.
     */
    assert_int_equal(stats_of(fixture->reorder).lent_bytes, 0);
    fixture->account.hard_at = 0;
    for (uint64_t i = 10001; push(fixture->reorder, i, 500) == 0; i++)
        count++;
    assert_in_range(count, 100, 22000);
    assert_in_range(stats_of(fixture->reorder).lent_bytes, 32768 - 2047, 32768);
    assert_true(fixture->account.peak_bytes <= limit + 32768);
    check_books(fixture);
    fixture->account.hard_at = UINT64_MAX;
    assert_int_equal(push(fixture->reorder, 40000, 500), 0);
    check_books(fixture);
}

/* @bytes at @sequence at hard: in, and nothing more is charged than before. */
static void push_at_hard(struct fixture *fixture, uint64_t sequence, size_t bytes)
{
    uint64_t charged = fixture->account.charged_bytes;

    fixture->account.hard_at = charged;
    fixture->account.peak_bytes = 0;
    assert_int_equal(push(fixture->reorder, sequence, bytes), 0);
    assert_int_equal(fixture->account.charged_bytes, charged);
    assert_int_equal(fixture->account.peak_bytes, charged);
    check_books(fixture);
}

/* Nothing can leave for its tables, and who pushed it has to free what it takes elsewhere. */
static void test_tables_lent(void **state)
{
    struct fixture *fixture = *state;
    uint64_t lent;

    fixture->account.spill_at = 0;
    push_at_hard(fixture, 10, 100);
    lent = stats_of(fixture->reorder).lent_bytes;
    assert_in_range(lent, 64, 2048);

    /* Far apart, each with a leaf and a node of its own; then one that has no bytes. */
    for (uint64_t i = 1; i < 10; i++)
        push_at_hard(fixture, UINT64_C(1) << 3 * i, 100);
    push_at_hard(fixture, 100000, 0);
    assert_int_equal(stats_of(fixture->reorder).spilled_count, 10);

    /* What does not enter has taken nothing. */
    lent = stats_of(fixture->reorder).lent_bytes;
    fixture->account.hard_at = fixture->account.charged_bytes;
    fixture->account.wait_at = 0;
    fixture->account.room_bytes = 99;
    assert_int_equal(push(fixture->reorder, 200000, 100), -EAGAIN);
    fixture->account.room_bytes = 100;
    fixture->region.put_result = -ENOSPC;
    assert_int_equal(push(fixture->reorder, 200000, 100), -EAGAIN);
    fixture->region.put_result = -EIO;
    assert_int_equal(push(fixture->reorder, 200000, 100), -EIO);
    fixture->region.put_result = 0;
    assert_int_equal(push(fixture->reorder, 200000, 5000), -EFBIG);
    assert_int_equal(stats_of(fixture->reorder).lent_bytes, lent);
    check_books(fixture);
}

/* Below hard the working set comes back, whatever the verdicts are; so it never runs dry. */
static void test_tables_restored(void **state)
{
    struct fixture *fixture = *state;
    uint64_t sequence = 64;

    fixture->account.spill_at = 0;
    for (uint64_t i = 0; i < 200; i++, sequence += 128) {
        push_at_hard(fixture, sequence, 100);
        /* It was freed elsewhere. */
        fixture->account.hard_at = UINT64_MAX;
        assert_int_equal(push(fixture->reorder, sequence + 64, 100), 0);
        assert_in_range(stats_of(fixture->reorder).lent_bytes, 0, 4096);
    }
    assert_int_equal(push(fixture->reorder, sequence, 100), 0);
    assert_int_equal(stats_of(fixture->reorder).lent_bytes, 0);

    /* By what is granted, too, and by payload that leaves. */
    push_at_hard(fixture, sequence + 64, 100);
    fixture->account.hard_at = UINT64_MAX;
    fixture->account.spill_at = UINT64_MAX;
    assert_true(stats_of(fixture->reorder).lent_bytes > 0);
    assert_int_equal(push(fixture->reorder, 1, 3000), 0);
    assert_int_equal(stats_of(fixture->reorder).lent_bytes, 0);
    fixture->account.spill_at = 0;
    push_at_hard(fixture, sequence + 128, 100);
    assert_true(stats_of(fixture->reorder).lent_bytes > 0);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    take(fixture, 1, 3000);
    assert_int_equal(stats_of(fixture->reorder).lent_bytes, 0);
    check_books(fixture);
}

/* Half of it is the head's, whatever the tables want; and a head that has all of it leaves none. */
static void test_tables_bounded(void **state)
{
    struct fixture *fixture = *state;
    struct weir_item item;
    uint64_t sequence = 64;
    uint64_t forced;

    fixture->account.spill_at = 0;
    fixture->account.hard_at = 0;
    while (push(fixture->reorder, sequence, 100) == 0)
        sequence += 64;
    assert_in_range(sequence / 64, 30, 1000);
    assert_in_range(stats_of(fixture->reorder).lent_bytes, 32768 - 2047, 32768);
    forced = fixture->account.forced_bytes;
    assert_int_equal(push(fixture->reorder, 0, 32768), 0);
    assert_int_equal(fixture->account.forced_bytes, forced);
    check_books(fixture);

    take(fixture, 0, 32768);
    fixture->account.hard_at = UINT64_MAX;
    for (uint32_t i = 0; i < 16; i++, sequence += 64)
        assert_int_equal(push(fixture->reorder, sequence, 100), 0);
    assert_int_equal(stats_of(fixture->reorder).lent_bytes, 0);

    fixture->account.hard_at = 0;
    assert_int_equal(push(fixture->reorder, 1, 65000), 0);
    assert_int_equal(push(fixture->reorder, sequence, 100), -EAGAIN);
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), 0);
    weir_reorder_release(fixture->reorder, &item);
    push_at_hard(fixture, sequence, 100);

    /* Where only the account's own cap says wait, no level will end that. */
    fixture->account.spill_at = UINT64_MAX;
    fixture->account.wait_at = 0;
    fixture->account.hard_at = UINT64_MAX;
    assert_int_equal(push(fixture->reorder, sequence + 64, 100), -EAGAIN);
    check_books(fixture);
}

static void test_tables_of_empty(void **state)
{
    struct fixture *fixture = *state;
    uint64_t limit;
    uint64_t count = 0;

    for (uint64_t i = 1; i <= 1000; i++)
        assert_int_equal(push(fixture->reorder, i, 500), 0);
    limit = fixture->account.charged_bytes;

    /* Items of no bytes ask too: at hard they are let in as long as something makes up for it. */
    fixture->account.wait_at = 0;
    for (uint64_t i = 10001; push(fixture->reorder, i, 0) == 0; i++)
        count++;
    assert_in_range(count, 100, 10000);
    assert_true(fixture->account.peak_bytes <= limit + 32768);
    assert_int_equal(push(fixture->reorder, 0, 0), 0);
    check_books(fixture);
    fixture->account.wait_at = UINT64_MAX;
    fixture->account.spill_at = UINT64_MAX;
    assert_int_equal(push(fixture->reorder, 30000, 0), 0);
    check_books(fixture);
}

static void test_wait(void **state)
{
    struct fixture *fixture = *state;
    struct weir_reorder_stats before;

    assert_int_equal(push(fixture->reorder, 5, 100), 0);
    fixture->account.wait_at = fixture->account.charged_bytes;
    fixture->region.put_result = -EAGAIN;
    before = stats_of(fixture->reorder);
    assert_int_equal(push(fixture->reorder, 6, 100), -EAGAIN);
    assert_int_equal(push(fixture->reorder, 4, 100), -EAGAIN);
    fixture->region.put_result = -ENOSPC;
    assert_int_equal(push(fixture->reorder, 6, 100), -EAGAIN);
    assert_int_equal(push(fixture->reorder, 4, 100), -ENOSPC);
    assert_int_equal(stats_of(fixture->reorder).item_count, before.item_count);
    assert_int_equal(stats_of(fixture->reorder).memory_bytes, before.memory_bytes);
    assert_int_equal(stats_of(fixture->reorder).failed_spill_count, 1);
    check_books(fixture);
    fixture->region.put_result = 0;
    assert_int_equal(push(fixture->reorder, 4, 100), 0);
    assert_int_equal(stats_of(fixture->reorder).spilled_count, 1);
    check_books(fixture);
    fixture->account.spill_at = 0;
    fixture->account.wait_at = UINT64_MAX;
    fixture->region.put_result = -EDQUOT;
    assert_int_equal(push(fixture->reorder, 7, 100), -EDQUOT);
    fixture->region.put_result = 0;
    assert_int_equal(push(fixture->reorder, 7, 5000), -EFBIG);
    check_books(fixture);
}

static void test_wait_without_region(void **state)
{
    struct fixture *fixture = *state;
    struct weir_reorder_config config = {.account = &fixture->account};

    weir_reorder_destroy(fixture->reorder);
    assert_int_equal(weir_reorder_create(&config, &fixture->reorder), 0);
    fixture->account.wait_at = fixture->account.charged_bytes;
    fixture->account.never_at = 5000;
    assert_int_equal(push(fixture->reorder, 4, 100), -EAGAIN);
    assert_int_equal(push(fixture->reorder, 4, 5001), -EDQUOT);
    assert_int_equal(push(fixture->reorder, 0, 5001), 0);
    take(fixture, 0, 5001);
    check_books(fixture);
}

static void test_head_enters(void **state)
{
    struct fixture *fixture = *state;
    uint64_t hard;

    assert_int_equal(push(fixture->reorder, 1, 100), 0);
    /* Room for the index, not for payload. */
    hard = fixture->account.charged_bytes + 1024;
    fixture->account.wait_at = 0;
    fixture->region.put_result = -EDQUOT;
    assert_int_equal(push(fixture->reorder, 2, 100), -EAGAIN);
    assert_int_equal(push(fixture->reorder, 0, 60000), 0);
    /* The working set has paid for it. */
    assert_int_equal(fixture->account.forced_bytes, 0);
    weir_reorder_audit(fixture->reorder);
    take(fixture, 0, 60000);
    weir_reorder_audit(fixture->reorder);
    take(fixture, 1, 100);
    assert_true(fixture->account.charged_bytes <= hard);

    /* Larger than the working set: the rest is forced. */
    assert_int_equal(push(fixture->reorder, 2, 100000), 0);
    assert_int_equal(fixture->account.forced_bytes, 100000 - 65536);
    weir_reorder_audit(fixture->reorder);
    take(fixture, 2, 100000);
    check_books(fixture);
}

static void test_head_swaps(void **state)
{
    struct fixture *fixture = *state;

    for (uint64_t i = 1; i <= 200; i++)
        assert_int_equal(push(fixture->reorder, i, 1000), 0);
    fixture->account.wait_at = fixture->account.charged_bytes;
    assert_int_equal(push(fixture->reorder, 0, 150000), 0);
    assert_int_equal(fixture->account.forced_bytes, 0);
    check_books(fixture);
    for (uint64_t i = 0; i <= 200; i++)
        take(fixture, i, i == 0 ? 150000 : 1000);
}

static void test_flush(void **state)
{
    struct fixture *fixture = *state;

    for (uint64_t i = 1; i <= 1000; i++)
        assert_int_equal(push(fixture->reorder, i, 1000), 0);
    fixture->account.flush_next = true;
    fixture->account.flush_bytes = 600000;
    assert_int_equal(push(fixture->reorder, 1001, 1000), 0);
    /* In pieces: no push pays for all of it. */
    assert_in_range(stats_of(fixture->reorder).spilled_bytes, 1000, 300000);
    for (uint64_t i = 1002; i <= 1010; i++)
        assert_int_equal(push(fixture->reorder, i, 1000), 0);
    assert_in_range(stats_of(fixture->reorder).spilled_bytes, 600000, 602000);
    check_books(fixture);

    /* Others have freed what was wanted. */
    fixture->account.flush_next = true;
    assert_int_equal(push(fixture->reorder, 1011, 1000), 0);
    fixture->account.flush_bytes = 0;
    assert_int_equal(push(fixture->reorder, 1012, 1000), 0);
    assert_in_range(stats_of(fixture->reorder).spilled_bytes, 600000, 870000);
}

static void test_failed_spill(void **state)
{
    struct fixture *fixture = *state;

    for (uint64_t i = 0; i < 100; i++)
        assert_int_equal(push(fixture->reorder, i, 100), 0);
    fixture->region.put_result = -EIO;
    assert_int_equal(weir_reorder_spill(fixture->reorder, 1000), 0);
    assert_int_equal(stats_of(fixture->reorder).failed_spill_count, 1);
    check_books(fixture);
    fixture->region.put_result = 0;
    fixture->region.bytes_max = 250;
    assert_int_equal(weir_reorder_spill(fixture->reorder, 1000), 200);
    check_books(fixture);
    for (uint64_t i = 0; i < 100; i++)
        take(fixture, i, 100);
}

static void test_large_spill(void **state)
{
    struct fixture *fixture = *state;

    weir_reorder_destroy(fixture->reorder);
    fixture->reorder = make(fixture, (struct weir_reorder_config){.hot_items = 1});
    fixture->region.item_bytes_max = 65536;
    assert_int_equal(push(fixture->reorder, 7, 70000), 0); /* larger than any item of the region */
    assert_int_equal(push(fixture->reorder, 6, 20000), 0); /* larger than one put */
    assert_int_equal(push(fixture->reorder, 5, 100), 0);
    assert_int_equal(weir_reorder_spill(fixture->reorder, 20000), 20000);
    assert_int_equal(stats_of(fixture->reorder).spilled_count, 1);
    check_books(fixture);
    assert_int_equal(weir_reorder_spill(fixture->reorder, UINT64_MAX), 100);
    check_books(fixture);
}

/* One that the region took half of: what it has stays for the next try, or goes with the item. */
static void test_partial_spill(void **state)
{
    struct fixture *fixture = *state;

    weir_reorder_destroy(fixture->reorder);
    fixture->reorder = make(fixture, (struct weir_reorder_config){.hot_items = 1});
    assert_int_equal(push(fixture->reorder, 1, 20000), 0);
    fixture->region.writes_left = 3;
    assert_int_equal(weir_reorder_spill(fixture->reorder, 1), 0);
    assert_int_equal(fixture->region.live_count, 1);
    assert_int_equal(stats_of(fixture->reorder).failed_spill_count, 0);
    check_books(fixture);
    fixture->region.writes_left = 4; /* three are left */
    assert_int_equal(weir_reorder_spill(fixture->reorder, 1), 20000);
    assert_int_equal(fixture->region.live_count, 1);

    assert_int_equal(push(fixture->reorder, 2, 20000), 0);
    assert_int_equal(push(fixture->reorder, 3, 20000), 0);
    fixture->region.writes_left = 3;
    assert_int_equal(weir_reorder_spill(fixture->reorder, 1), 0);
    assert_int_equal(fixture->region.live_count, 2);
    fixture->region.writes_left = 0;
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    assert_int_equal(fixture->region.live_count, 1);
    take(fixture, 3, 20000);
    assert_int_equal(fixture->region.live_count, 0);
    check_books(fixture);
}

/* What the account says of the overflow counts for a flush and a swap, not for the head. */
static void test_room(void **state)
{
    struct fixture *fixture = *state;

    for (uint64_t i = 1; i <= 100; i++)
        assert_int_equal(push(fixture->reorder, i, 100), 0);
    fixture->account.room_bytes = 99;
    assert_int_equal(weir_reorder_spill(fixture->reorder, 1000), 0);
    assert_int_equal(fixture->region.put_count, 0);
    fixture->account.wait_at = fixture->account.charged_bytes;
    assert_int_equal(push(fixture->reorder, 50000, 100), -EAGAIN);
    assert_int_equal(push(fixture->reorder, 101, 100), -EAGAIN);
    assert_int_equal(fixture->region.put_count, 0);
    assert_int_equal(stats_of(fixture->reorder).failed_spill_count, 0);
    check_books(fixture);

    /* A verdict that says spill has asked for as much already. */
    fixture->account.wait_at = UINT64_MAX;
    fixture->account.spill_at = fixture->account.charged_bytes;
    assert_int_equal(push(fixture->reorder, 101, 100), 0);
    assert_int_equal(fixture->region.put_count, 1);
    fixture->account.wait_at = fixture->account.spill_at;
    assert_int_equal(push(fixture->reorder, 0, 100), 0);
    assert_true(fixture->region.put_count > 1);
    assert_int_equal(fixture->account.forced_bytes, 0);

    fixture->account.room_bytes = 100;
    assert_int_equal(weir_reorder_spill(fixture->reorder, 1000), 1000);
    check_books(fixture);
}

/* ---- Fetching ------------------------------------------------------------------- */

/* Sequences 1 .. count lie cold in the region; 0 is missing. */
static void spill_all(struct fixture *fixture, uint64_t count, size_t bytes)
{
    fixture->region.puts_are_cold = true;
    fixture->account.spill_at = 0;
    for (uint64_t i = 1; i <= count; i++)
        assert_int_equal(push(fixture->reorder, i, bytes), 0);
    fixture->account.spill_at = UINT64_MAX;
    assert_int_equal(stats_of(fixture->reorder).spilled_count, count);
}

static void test_fetch(void **state)
{
    struct fixture *fixture = *state;
    struct weir_item item;

    spill_all(fixture, 1, 100);
    assert_int_equal(push(fixture->reorder, 0, 1), 0);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), -EAGAIN);
    assert_int_equal(fixture->ready_count, 0);
    weir_region_poll(&fixture->region);
    assert_int_equal(fixture->ready_count, 1);
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), 0);
    check(&item, 1, 100);
    assert_false(weir_slot_is_none(item.slot));
    assert_int_equal(fixture->region.pinned_bytes, 100);
    /* It stays whatever the region does. */
    weir_region_poll(&fixture->region);
    double_region_chill(&fixture->region);
    check(&item, 1, 100);
    weir_reorder_release(fixture->reorder, &item);
    assert_true(weir_slot_is_none(item.slot));
    assert_null(item.data);
    assert_int_equal(fixture->region.live_count, 0);
    assert_int_equal(stats_of(fixture->reorder).fetch_count, 1);
    check_books(fixture);
}

static void test_fetch_ahead(void **state)
{
    struct fixture *fixture = *state;
    uint64_t puts;

    spill_all(fixture, 1000, 40);
    puts = fixture->region.put_count;
    assert_int_equal(push(fixture->reorder, 0, 40), 0);
    take(fixture, 0, 40);
    weir_region_poll(&fixture->region);
    /* As much as may be held, in a few parts, so that the next are read while one is used. */
    assert_in_range(stats_of(fixture->reorder).fetch_count, 100, 300);
    assert_in_range(fixture->region.fetch_calls, 2, 8);
    for (uint64_t i = 1; i <= 1000; i++) {
        take(fixture, i, 40);
        weir_region_poll(&fixture->region);
        if (i % 50 == 0)
            check_books(fixture);
    }
    assert_true(fixture->region.fetch_calls <= 30);
    assert_int_equal(fixture->region.fetched_count, 1000);
    assert_int_equal(fixture->region.put_count, puts);
}

/* Large items are bounded by their bytes: three quarters of what the region fetches at most. */
static void test_fetch_bytes(void **state)
{
    struct fixture *fixture = *state;

    spill_all(fixture, 1000, 4000);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    for (uint64_t i = 1; i <= 1000; i++) {
        take(fixture, i, 4000);
        weir_region_poll(&fixture->region);
        assert_true(fixture->region.pinned_bytes <= 3 << 18);
    }
}

/* With a poll between pops, as a loop does it, delivery never waits but for the first. */
static void test_fetch_is_ahead(void **state)
{
    struct fixture *fixture = *state;
    struct weir_item item;

    spill_all(fixture, 1000, 40);
    assert_int_equal(push(fixture->reorder, 0, 40), 0);
    for (uint64_t i = 0; i <= 1000; i++) {
        assert_int_equal(weir_reorder_pop(fixture->reorder, &item), 0);
        check(&item, i, 40);
        weir_reorder_release(fixture->reorder, &item);
        weir_region_poll(&fixture->region);
    }
}

/* Copies that nobody pinned are gone by the next poll: they are fetched again. */
static void test_unkind_region(void **state)
{
    struct fixture *fixture = *state;

    spill_all(fixture, 1000, 40);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    fixture->region.forgets = true;
    for (uint64_t i = 1; i <= 500; i++)
        take(fixture, i, 40);
    assert_true(fixture->region.fetched_count > 1000);
    fixture->region.forgets = false;
    fixture->region.fetched_count = 0;
    for (uint64_t i = 501; i <= 1000; i++)
        take(fixture, i, 40);
    assert_true(fixture->region.fetched_count <= 500);
}

static void test_resident(void **state)
{
    struct fixture *fixture = *state;
    struct weir_item item;

    spill_all(fixture, 20, 40);
    for (uint32_t i = 0; i < fixture->region.slot_count; i++)
        fixture->region.slots[i].cold = false;
    for (uint64_t i = 0; i < 20; i++) {
        if (i > 0) {
            assert_int_equal(weir_reorder_pop(fixture->reorder, &item), 0);
            check(&item, i, 40);
            weir_reorder_release(fixture->reorder, &item);
        } else {
            assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
        }
    }
    assert_int_equal(fixture->region.fetch_calls, 0);
}

static void test_failed_fetch(void **state)
{
    struct fixture *fixture = *state;
    struct weir_item item;

    spill_all(fixture, 3, 100);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    fixture->region.fetch_result = -EIO;
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), -EAGAIN);
    weir_region_poll(&fixture->region);
    assert_int_equal(fixture->ready_count, 1);
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), -EIO);
    check_books(fixture);

    /* Again, and it fails again; then it works. */
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), -EAGAIN);
    weir_region_poll(&fixture->region);
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), -EIO);
    fixture->region.fetch_result = 0;
    take(fixture, 1, 100);

    /* Or it is given up. */
    double_region_chill(&fixture->region);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    take(fixture, 3, 100);
    assert_int_equal(fixture->region.live_count, 0);
    assert_true(stats_of(fixture->reorder).failed_fetch_count >= 2);
}

static void test_stale(void **state)
{
    struct fixture *fixture = *state;
    struct weir_slot slot = {.index = 1, .generation = 1};
    struct weir_item item;

    spill_all(fixture, 2, 100);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    assert_int_equal(weir_region_free(&fixture->region, slot), 0);
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), -ESTALE);
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), -ESTALE);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    take(fixture, 2, 100);
    check_books(fixture);
    assert_int_equal(stats_of(fixture->reorder).spilled_bytes, 0);
}

/* Freed by others while a fetch is under way. */
static void test_stale_fetch(void **state)
{
    struct fixture *fixture = *state;
    struct weir_item item;

    spill_all(fixture, 2, 100);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), -EAGAIN);
    assert_int_equal(
        weir_region_free(&fixture->region, (struct weir_slot){.index = 1, .generation = 1}), 0);
    weir_region_poll(&fixture->region);
    assert_int_equal(fixture->ready_count, 1);
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), -ESTALE);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    take(fixture, 2, 100);
}

static void test_skip_while_fetched(void **state)
{
    struct fixture *fixture = *state;
    struct weir_item item;

    spill_all(fixture, 3, 100);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), -EAGAIN);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    check_books(fixture);
    weir_region_poll(&fixture->region);
    assert_int_equal(fixture->ready_count, 0);
    take(fixture, 2, 100);
    take(fixture, 3, 100);
}

static void test_destroy_while_fetched(void **state)
{
    struct fixture *fixture = *state;
    struct weir_item item;

    spill_all(fixture, 3, 100);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), -EAGAIN);
    weir_reorder_destroy(fixture->reorder);
    fixture->reorder = NULL;
    weir_region_poll(&fixture->region);
    assert_int_equal(fixture->ready_count, 0);
    assert_int_equal(fixture->region.live_count, 0);
}

/* What ready does is its own business: here it ends the buffer. */
static void on_ready_destroy(void *context)
{
    struct fixture *fixture = context;

    fixture->ready_count++;
    weir_reorder_destroy(fixture->reorder);
    fixture->reorder = NULL;
}

static void test_destroy_in_ready(void **state)
{
    struct fixture *fixture = *state;
    struct weir_item item;

    weir_reorder_destroy(fixture->reorder);
    fixture->reorder =
        make(fixture, (struct weir_reorder_config){.ready = on_ready_destroy, .context = fixture});
    spill_all(fixture, 30, 100);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), -EAGAIN);
    weir_region_poll(&fixture->region);
    assert_int_equal(fixture->ready_count, 1);
    assert_null(fixture->reorder);
}

static void test_late_arrival(void **state)
{
    struct fixture *fixture = *state;

    /* 5 is spilled although 6 .. are being fetched already. */
    fixture->region.puts_are_cold = true;
    fixture->account.spill_at = 0;
    for (uint64_t i = 1; i <= 10; i++)
        if (i != 5)
            assert_int_equal(push(fixture->reorder, i, 100), 0);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    take(fixture, 1, 100);
    weir_region_poll(&fixture->region);
    assert_int_equal(stats_of(fixture->reorder).fetch_count, 9);
    assert_int_equal(push(fixture->reorder, 5, 100), 0);
    assert_int_equal(stats_of(fixture->reorder).spill_count, 10);
    for (uint64_t i = 2; i <= 10; i++)
        take(fixture, i, 100);
    assert_int_equal(fixture->region.fetched_count, 10);
}

static void test_push_slot(void **state)
{
    struct fixture *fixture = *state;
    struct weir_label label = {.key = 77, .owner = 9};
    struct weir_slot slot;
    struct weir_item item;
    char data[12000];

    weir_reorder_destroy(fixture->reorder);
    fixture->region.fetch_bytes_max = 8192;
    fixture->reorder = make(fixture, (struct weir_reorder_config){.owner = 3});
    fixture->region.puts_are_cold = true;
    fill(data, 0, sizeof(data));
    assert_int_equal(weir_region_alloc(&fixture->region, sizeof(data), label, &slot), 0);
    assert_int_equal(weir_reorder_push_slot(fixture->reorder, 0, slot), -EINVAL);
    for (size_t at = 0; at < sizeof(data); at += 4000)
        assert_int_equal(weir_region_write(&fixture->region, slot, at, data + at, 4000), 0);
    assert_int_equal(weir_region_commit(&fixture->region, slot), 0);
    assert_int_equal(weir_reorder_push_slot(fixture->reorder, 0, slot), 0);
    assert_int_equal(weir_reorder_push_slot(fixture->reorder, 0, slot), -EEXIST);
    check_books(fixture);

    /* Too large to be fetched: by its slot. */
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), 0);
    assert_null(item.data);
    assert_int_equal(item.bytes, 12000);
    assert_int_equal(item.slot.index, slot.index);
    assert_int_equal(item.slot.generation, slot.generation);
    weir_reorder_release(fixture->reorder, &item);
    assert_int_equal(fixture->region.live_count, 0);
    assert_int_equal(weir_reorder_push_slot(fixture->reorder, 1, slot), -ESTALE);
    assert_int_equal(weir_reorder_push_slot(fixture->reorder, 0, slot), -ERANGE);

    /* Small, with a key that is not its sequence; and one of no bytes. */
    fill(data, 1, 100);
    assert_int_equal(weir_region_put(&fixture->region, data, 100, label, &slot), 0);
    assert_int_equal(weir_reorder_push_slot(fixture->reorder, 1, slot), 0);
    assert_int_equal(weir_region_put(&fixture->region, data, 0, label, &slot), 0);
    assert_int_equal(weir_reorder_push_slot(fixture->reorder, 2, slot), 0);
    take(fixture, 1, 100);
    take(fixture, 2, 0);
    assert_int_equal(fixture->region.live_count, 0);
    check_books(fixture);
}

/* ---- Several buffers -------------------------------------------------------------- */

static void test_others_yield(void **state)
{
    struct fixture *fixture = *state;
    struct fixture other = {0};
    struct weir_item item;

    /* The first buffer holds all that may be pinned, ahead of a gap. */
    spill_all(fixture, 100, 100);
    fixture->region.pinned_bytes_max = 10500;
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), -ENOENT);
    weir_region_poll(&fixture->region);
    assert_int_equal(fixture->region.pinned_bytes, 10000);

    /* The second needs one item, and gets it. */
    double_account_init(&other.account);
    other.reorder = NULL;
    {
        struct weir_reorder_config config = {
            .account = &fixture->account,
            .region = &fixture->region,
            .ready = on_ready,
            .context = &other,
        };

        assert_int_equal(weir_reorder_create(&config, &other.reorder), 0);
    }
    fixture->account.spill_at = 0;
    assert_int_equal(push(other.reorder, 1, 1000), 0);
    fixture->account.spill_at = UINT64_MAX;
    assert_int_equal(weir_reorder_skip(other.reorder), 0);
    assert_int_equal(weir_reorder_pop(other.reorder, &item), -EAGAIN);
    assert_int_equal(fixture->region.pinned_bytes, 0);
    weir_reorder_audit(fixture->reorder);
    weir_reorder_audit(other.reorder);
    weir_region_poll(&fixture->region);
    assert_int_equal(other.ready_count, 1);
    assert_int_equal(weir_reorder_pop(other.reorder, &item), 0);
    check(&item, 1, 1000);
    weir_reorder_release(other.reorder, &item);
    weir_reorder_destroy(other.reorder);

    assert_int_equal(push(fixture->reorder, 0, 100), 0);
    for (uint64_t i = 0; i <= 100; i++)
        take(fixture, i, 100);
}

static void test_starved(void **state)
{
    struct fixture *fixture = *state;
    struct weir_item out;
    struct weir_item item;

    /* What is out keeps the head from being fetched; its release lets it go on. */
    spill_all(fixture, 2, 3000);
    fixture->region.pinned_bytes_max = 5000;
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    assert_int_equal(weir_reorder_pop(fixture->reorder, &out), -EAGAIN);
    weir_region_poll(&fixture->region);
    assert_int_equal(weir_reorder_pop(fixture->reorder, &out), 0);
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), -EAGAIN);
    weir_region_poll(&fixture->region);
    assert_int_equal(fixture->ready_count, 1);
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), -EAGAIN);
    weir_reorder_audit(fixture->reorder);
    weir_reorder_release(fixture->reorder, &out);
    weir_region_poll(&fixture->region);
    assert_int_equal(fixture->ready_count, 2);
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), 0);
    check(&item, 2, 3000);
    weir_reorder_release(fixture->reorder, &item);
}

/* ---- Out of turn ---------------------------------------------------------------- */

static void take_out(struct fixture *fixture, uint64_t sequence, size_t bytes)
{
    struct weir_item item;

    assert_int_equal(weir_reorder_take(fixture->reorder, sequence, &item), 0);
    check(&item, sequence, bytes);
    weir_reorder_release(fixture->reorder, &item);
}

static void test_take(void **state)
{
    struct fixture *fixture = *state;
    struct weir_item item;

    for (uint64_t i = 0; i < 10; i++)
        assert_int_equal(push(fixture->reorder, i, 100 + i), 0);
    take_out(fixture, 7, 107);
    take_out(fixture, 0, 100);
    assert_int_equal(stats_of(fixture->reorder).next_sequence, 0);
    assert_int_equal(stats_of(fixture->reorder).item_count, 8);
    assert_int_equal(stats_of(fixture->reorder).taken_count, 2);
    assert_int_equal(weir_reorder_take(fixture->reorder, 7, &item), -ENOENT);
    assert_int_equal(weir_reorder_take(fixture->reorder, 50, &item), -ENOENT);
    check_books(fixture);

    /* What was taken is a gap: skipped, or filled again. */
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), -ENOENT);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    assert_int_equal(weir_reorder_take(fixture->reorder, 0, &item), -ENOENT);
    for (uint64_t i = 1; i < 7; i++)
        take(fixture, i, 100 + i);
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), -ENOENT);
    assert_int_equal(push(fixture->reorder, 7, 30), 0);
    take(fixture, 7, 30);
    take(fixture, 8, 108);
    assert_int_equal(stats_of(fixture->reorder).delivered_count, 8);
    check_books(fixture);
}

/* Taken ahead of its turn from the disk: told when it is there, and the head waits for nobody. */
static void test_take_cold(void **state)
{
    struct fixture *fixture = *state;
    struct weir_item item;

    spill_all(fixture, 20, 100);
    assert_int_equal(weir_reorder_take(fixture->reorder, 15, &item), -EAGAIN);
    assert_int_equal(weir_reorder_take(fixture->reorder, 15, &item), -EAGAIN);
    assert_int_equal(fixture->region.fetch_calls, 1);
    assert_int_equal(fixture->ready_count, 0);
    weir_region_poll(&fixture->region);
    assert_int_equal(fixture->ready_count, 1);
    assert_int_equal(weir_reorder_take(fixture->reorder, 15, &item), 0);
    check(&item, 15, 100);
    assert_int_equal(item.slot.index, 15);
    weir_region_poll(&fixture->region);
    double_region_chill(&fixture->region);
    check(&item, 15, 100);
    weir_reorder_release(fixture->reorder, &item);
    assert_int_equal(fixture->region.live_count, 19);
    assert_int_equal(fixture->region.pinned_bytes, 0);

    /* A failure is told once, then tried again. */
    fixture->region.fetch_result = -EBADMSG;
    assert_int_equal(weir_reorder_take(fixture->reorder, 9, &item), -EAGAIN);
    weir_region_poll(&fixture->region);
    assert_int_equal(fixture->ready_count, 2);
    assert_int_equal(weir_reorder_take(fixture->reorder, 9, &item), -EBADMSG);
    fixture->region.fetch_result = 0;
    assert_int_equal(weir_reorder_take(fixture->reorder, 9, &item), -EAGAIN);
    weir_region_poll(&fixture->region);
    take_out(fixture, 9, 100);
    fixture->region.pinned_bytes_max = 0;
    assert_int_equal(weir_reorder_take(fixture->reorder, 10, &item), -ENOMEM);
    fixture->region.pinned_bytes_max = UINT64_MAX;

    /* One that was asked for and never taken is delivered in its turn. */
    assert_int_equal(weir_reorder_take(fixture->reorder, 3, &item), -EAGAIN);
    weir_region_poll(&fixture->region);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    for (uint64_t i = 1; i <= 20; i++) {
        if (i == 9 || i == 15)
            assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
        else
            take(fixture, i, 100);
    }
    check_books(fixture);
    assert_int_equal(fixture->region.live_count, 0);
}

/* What take asked for yields to a head that needs the room, and the head to nobody. */
static void test_take_yields(void **state)
{
    struct fixture *fixture = *state;
    struct weir_item item;

    spill_all(fixture, 20, 100);
    assert_int_equal(weir_reorder_take(fixture->reorder, 15, &item), -EAGAIN);
    weir_region_poll(&fixture->region);
    assert_int_equal(fixture->region.pinned_bytes, 100);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    assert_int_equal(weir_reorder_pop(fixture->reorder, &item), -EAGAIN);
    assert_int_equal(fixture->region.pinned_bytes, 0);
    take(fixture, 1, 100);
}

static void test_passes_through(void **state)
{
    struct fixture *fixture = *state;

    weir_reorder_destroy(fixture->reorder);
    fixture->reorder =
        make(fixture, (struct weir_reorder_config){.first_sequence = 100, .passes_through = true});
    for (uint64_t i = 0; i < 50; i++) {
        char data[40];

        fill(data, 100 + i, sizeof(data));
        assert_int_equal(weir_reorder_push(fixture->reorder, 7000 - i % 3, data, sizeof(data)), 0);
    }
    /* The newest goes first. */
    fixture->region.puts_are_cold = true;
    assert_int_equal(weir_reorder_spill(fixture->reorder, 400), 400);
    take_out(fixture, 102, 40);
    for (uint64_t i = 100; i < 150; i++) {
        if (i == 102)
            assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
        else
            take(fixture, i, 40);
    }
    /* Over what was skipped while nothing was there too. */
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    assert_int_equal(push(fixture->reorder, 151, 10), 0);
    take(fixture, 151, 10);
    check_books(fixture);
}

/* Each item is written once: a figure says so, and says otherwise where it was not. */
static void test_written_once(void **state)
{
    struct fixture *fixture = *state;
    struct weir_reorder_stats stats;

    weir_reorder_destroy(fixture->reorder);
    fixture->reorder = make(fixture, (struct weir_reorder_config){.hot_items = 1});
    spill_all(fixture, 300, 40);
    assert_int_equal(push(fixture->reorder, 0, 1), 0);
    for (uint64_t i = 0; i <= 100; i++) {
        take(fixture, i, i == 0 ? 1 : 40);
        weir_reorder_spill(fixture->reorder, UINT64_MAX);
    }
    stats = stats_of(fixture->reorder);
    assert_int_equal(stats.item_count_max, 301);
    assert_int_equal(stats.spill_count, 300);
    assert_int_equal(stats.spill_bytes, 300 * 40);
    assert_int_equal(fixture->region.put_count, 300);
    assert_int_equal(stats.rewritten_bytes, 0);

    /* A large one that comes half way: its pieces go with it when it leaves from memory. */
    assert_int_equal(push(fixture->reorder, 400, 20000), 0);
    fixture->region.writes_left = 3;
    assert_int_equal(weir_reorder_spill(fixture->reorder, 1), 0);
    take_out(fixture, 400, 20000);
    assert_int_equal(stats_of(fixture->reorder).rewritten_bytes, 8192);
    check_books(fixture);
}

static const struct CMUnitTest tests[] = {
    {"items leave in order", test_order, begin, end, NULL},
    {"shuffled items leave in order", test_shuffled, begin, end, NULL},
    {"duplicates and the past cost nothing", test_refused, begin, end, NULL},
    {"the window ends at its bytes, but not for the head", test_window_bytes, begin, end, NULL},
    {"a gap of ten million costs a few nodes", test_far_ahead, begin, end, NULL},
    {"a popped item stays charged until release", test_popped, begin, end, NULL},
    {"skip steps over a gap and drops a head", test_skip, begin, end, NULL},
    {"the last number of all is never next", test_last_of_all, begin, end, NULL},
    {"a create that fails leaves nothing", test_invalid, begin, end, NULL},
    {"it works without account and region", test_alone, begin, end, NULL},
    {"a stall is counted", test_stall, begin, end, NULL},
    {"the furthest is spilled first, the hot zone stays", test_furthest_first, begin, end, NULL},
    {"an account that is asked for memory gets what is furthest", test_relief, begin, end, NULL},
    {"relief pays the working set first", test_relief_pays_the_working_set, begin, end, NULL},
    {"the buffers of an account give in turn", test_relief_goes_round, begin, end, NULL},
    {"a nearer item takes the place of further ones", test_verdict_spill, begin, end, NULL},
    {"what waits in the region makes up for its tables", test_tables, begin, end, NULL},
    {"items of no bytes ask for their place", test_tables_of_empty, begin, end, NULL},
    {"at hard the tables live on the working set", test_tables_lent, begin, end, NULL},
    {"what it lent comes back as soon as it may", test_tables_restored, begin, end, NULL},
    {"tables have no more than half of it", test_tables_bounded, begin, end, NULL},
    {"a refusal changes nothing", test_wait, begin, end, NULL},
    {"without a region a refusal says wait", test_wait_without_region, begin, end, NULL},
    {"the head enters by the working set", test_head_enters, begin, end, NULL},
    {"a large head takes the place of others", test_head_swaps, begin, end, NULL},
    {"a flush is paid in pieces", test_flush, begin, end, NULL},
    {"the account is asked for room before a spill, but not for the head", test_room, begin, end,
     NULL},
    {"a failed spill keeps the item", test_failed_spill, begin, end, NULL},
    {"large items are spilled in pieces", test_large_spill, begin, end, NULL},
    {"a spill that stopped half way goes on", test_partial_spill, begin, end, NULL},
    {"a cold head is fetched", test_fetch, begin, end, NULL},
    {"what follows is fetched ahead, in batches", test_fetch_ahead, begin, end, NULL},
    {"what is fetched ahead is bounded by bytes", test_fetch_bytes, begin, end, NULL},
    {"a copy that went again is fetched again", test_unkind_region, begin, end, NULL},
    {"delivery does not wait for what was fetched ahead", test_fetch_is_ahead, begin, end, NULL},
    {"what the region has in memory is not fetched", test_resident, begin, end, NULL},
    {"a failed fetch can be tried again", test_failed_fetch, begin, end, NULL},
    {"a slot that others freed is told, and skipped", test_stale, begin, end, NULL},
    {"a slot freed during its fetch is told", test_stale_fetch, begin, end, NULL},
    {"a head that is being fetched can be skipped", test_skip_while_fetched, begin, end, NULL},
    {"a fetch can outlive its buffer", test_destroy_while_fetched, begin, end, NULL},
    {"ready may destroy the buffer", test_destroy_in_ready, begin, end, NULL},
    {"an item spilled late is fetched in its turn", test_late_arrival, begin, end, NULL},
    {"slots are pushed and popped", test_push_slot, begin, end, NULL},
    {"what is held ahead yields to another buffer", test_others_yield, begin, end, NULL},
    {"a starved head goes on when room comes back", test_starved, begin, end, NULL},
    {"an item is taken out of its turn, and next stays", test_take, begin, end, NULL},
    {"a cold item is taken when it has come", test_take_cold, begin, end, NULL},
    {"what take asked for yields to a head", test_take_yields, begin, end, NULL},
    {"what passes through leaves as it came", test_passes_through, begin, end, NULL},
    {"each item is written once, and what was not is counted", test_written_once, begin, end, NULL},
};

int main(void)
{
    return cmocka_run_group_tests_name("reorder", tests, NULL, NULL);
}
