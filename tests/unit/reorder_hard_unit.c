/* SPDX-License-Identifier: MIT */
/*
 * reorder_hard - at hard whoever frees what he pushed gets on
 *
 * The real governor and the real region. A producer has parcels charged to an account
 * of its own, which fill the limit to the brim; each is freed when it was pushed, and
 * not before. The head comes last of all, so nothing is delivered meanwhile, and no
 * payload of the buffer is in memory that could leave for tables.
 */
#include <weir/reorder.h>

#include "base/random.h"
#include "pattern.h"
#include "tmpdir.h"

#include <weir/governor.h>
#include <weir/region.h>

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#define MIB          (UINT64_C(1) << 20)
#define LIMIT_BYTES  (8 * MIB)
#define PARCEL_BYTES 1000u
#define HEAD_BYTES   64u /* of a parcel, beside its payload */
#define BLOCK        4096u
#define BLOCKS       16u

struct fixture {
    struct weir_governor *governor;
    struct weir_region *region;
    struct weir_account *producer;
    struct weir_account *holder;
    struct weir_reorder *reorder;
    uint64_t order[BLOCK]; /* of the parcels that there are, in the order they come */
    uint32_t first, count; /* which of them are charged and not pushed */
    uint64_t base;
    uint64_t stuffed_bytes; /* forced, as tables are */
};

static int begin_with(void **state, bool is_spillable)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    struct weir_account_config holder = {.name = "holder", .spillable = is_spillable};

    assert_int_equal(weir_governor_create(
                         &(struct weir_governor_config){.bytes_max = LIMIT_BYTES, .node_count = 1},
                         &fixture->governor),
                     0);
    assert_int_equal(weir_account_open(fixture->governor, &holder, &fixture->holder), 0);
    assert_int_equal(
        weir_account_open(fixture->governor,
                          &(struct weir_account_config){.name = "producer", .transient = true},
                          &fixture->producer),
        0);
    assert_int_equal(weir_region_open(
                         &(struct weir_region_config){
                             .directory = harness_tmpdir(),
                             .bytes_initial = 16 * MIB,
                             .bytes_max = 256 * MIB,
                             .books = weir_account_books(fixture->holder),
                         },
                         &fixture->region),
                     0);
    assert_int_equal(weir_reorder_create(&(struct weir_reorder_config){.account = fixture->holder,
                                                                       .region = fixture->region},
                                         &fixture->reorder),
                     0);
    *state = fixture;
    return 0;
}

static int begin(void **state)
{
    return begin_with(state, true);
}

static int begin_unspillable(void **state)
{
    return begin_with(state, false);
}

static int end(void **state)
{
    struct fixture *fixture = *state;
    struct weir_governor_stats stats;

    weir_reorder_audit(fixture->reorder);
    weir_reorder_destroy(fixture->reorder);
    weir_region_close(fixture->region);
    weir_account_refund(fixture->producer, fixture->stuffed_bytes);
    weir_governor_stats(fixture->governor, &stats);
    assert_int_equal(stats.charged_bytes, 0);
    weir_account_close(fixture->holder);
    weir_account_close(fixture->producer);
    weir_governor_destroy(fixture->governor);
    free(fixture);
    return 0;
}

static uint64_t charged(const struct fixture *fixture)
{
    struct weir_governor_stats stats;

    weir_governor_stats(fixture->governor, &stats);
    return stats.charged_bytes;
}

/* All are late by up to a block, and the first of all comes last. */
static void shuffle(struct fixture *fixture, uint64_t base, uint64_t *seed)
{
    fixture->base = base;
    fixture->first = 0;
    fixture->count = 0;
    for (uint32_t i = 0; i < BLOCK; i++)
        fixture->order[i] = base + i;
    for (uint32_t i = BLOCK - 1; i > 0; i--) {
        uint32_t other = (uint32_t)weir__random_below(seed, i + 1);
        uint64_t kept = fixture->order[i];

        fixture->order[i] = fixture->order[other];
        fixture->order[other] = kept;
    }
}

/* As many parcels as there is memory for, and then the limit is full to the last byte. */
static void produce(struct fixture *fixture)
{
    enum weir_verdict verdict = WEIR_ADMIT;

    while (fixture->first + fixture->count < BLOCK) {
        assert_int_equal(
            weir_account_charge(fixture->producer, PARCEL_BYTES + HEAD_BYTES, &verdict), 0);
        if (verdict == WEIR_WAIT)
            break;
        assert_true(verdict == WEIR_ADMIT || verdict == WEIR_FLUSH);
        fixture->count++;
    }
    if (charged(fixture) < LIMIT_BYTES) {
        uint64_t bytes = LIMIT_BYTES - charged(fixture);

        weir_account_charge_forced(fixture->producer, bytes);
        fixture->stuffed_bytes += bytes;
    }
}

static int push(struct fixture *fixture)
{
    uint64_t sequence = fixture->order[fixture->first];
    char data[PARCEL_BYTES];
    int r;

    harness_fill(data, sizeof(data), sequence, 0);
    r = weir_reorder_push(fixture->reorder, sequence + 1, data, sizeof(data));
    if (r < 0)
        return r;
    weir_account_refund(fixture->producer, PARCEL_BYTES + HEAD_BYTES);
    fixture->first++;
    fixture->count--;
    return 0;
}

/* What is there goes in, one by one; each time some wait for the disk at most. */
static void push_all(struct fixture *fixture)
{
    uint32_t tries = 0;

    while (fixture->count > 0) {
        int r = push(fixture);

        if (r == 0) {
            tries = 0;
            continue;
        }
        assert_int_equal(r, -EAGAIN);
        assert_in_range(++tries, 0, 100);
        assert_true(weir_region_wait(fixture->region, UINT64_C(100000000)) >= 0);
    }
}

static void deliver(struct fixture *fixture, uint64_t count)
{
    char head[16] = {0};
    struct weir_item item;

    assert_int_equal(weir_reorder_push(fixture->reorder, 0, head, sizeof(head)), 0);
    for (uint64_t sequence = 0; sequence <= count; sequence++) {
        int r;

        while ((r = weir_reorder_pop(fixture->reorder, &item)) == -EAGAIN)
            assert_true(weir_region_wait(fixture->region, UINT64_C(100000000)) >= 0);
        assert_int_equal(r, 0);
        assert_int_equal(item.sequence, sequence);
        if (sequence > 0)
            assert_int_equal(harness_differs_at(item.data, item.bytes, sequence - 1, 0),
                             PARCEL_BYTES);
        weir_reorder_release(fixture->reorder, &item);
    }
}

static void test_first(void **state)
{
    struct fixture *fixture = *state;
    uint64_t seed = 5;

    /* One push, and the use is what it was; then it falls by what is freed. */
    shuffle(fixture, 0, &seed);
    produce(fixture);
    assert_true(charged(fixture) >= LIMIT_BYTES);
    while (charged(fixture) + PARCEL_BYTES + HEAD_BYTES > LIMIT_BYTES) {
        uint64_t before = charged(fixture);

        assert_int_equal(push(fixture), 0);
        assert_true(charged(fixture) <= before - PARCEL_BYTES - HEAD_BYTES);
        weir_reorder_audit(fixture->reorder);
    }
    push_all(fixture);
    deliver(fixture, 0);
}

static void test_always(void **state)
{
    struct fixture *fixture = *state;
    struct weir_governor_stats stats;
    uint64_t seed = 6;

    for (uint64_t block = 0; block < BLOCKS; block++) {
        shuffle(fixture, block * BLOCK, &seed);
        while (fixture->first < BLOCK) {
            produce(fixture);
            push_all(fixture);
            weir_account_refund(fixture->producer, fixture->stuffed_bytes);
            fixture->stuffed_bytes = 0;
        }
        weir_reorder_audit(fixture->reorder);
    }
    /* Beyond it are tables of the region, in steps, and what is on its way into them. */
    weir_governor_stats(fixture->governor, &stats);
    assert_in_range(stats.peak_bytes, LIMIT_BYTES, LIMIT_BYTES + MIB);
    deliver(fixture, (uint64_t)BLOCK * BLOCKS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"what is pushed at hard is paid by the working set", test_first, begin, end, NULL},
        {"whoever frees what he pushed gets on", test_always, begin, end, NULL},
        {"and where the account is not spillable", test_first, begin_unspillable, end, NULL},
    };

    return cmocka_run_group_tests_name("reorder_hard", tests, NULL, NULL);
}
