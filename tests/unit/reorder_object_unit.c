/* SPDX-License-Identifier: MIT */
/* reorder - objects wait as they are, and are encoded only to be spilled */
#include <weir/reorder.h>

#include "double.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define WORKING_BYTES 4096u

/* A record as it is in memory; what it is encoded to is smaller. */
struct record {
    uint64_t number;
    size_t memory_bytes;
    size_t encoded_bytes;
};

struct fixture {
    struct weir_region region;
    struct weir_account account;
    struct weir_reorder *reorder;
    uint32_t live_count; /* records that exist */
    uint32_t encode_count;
    uint32_t decode_count;
    int encode_result; /* not 0: what encode answers when it is to write */
    int decode_result;
};

static size_t record_measure(void *context, const void *object)
{
    (void)context;
    return ((const struct record *)object)->memory_bytes;
}

static int64_t record_encode(void *context, const void *object, void *buffer, size_t buffer_bytes)
{
    struct fixture *fixture = context;
    const struct record *record = object;

    if (buffer_bytes < record->encoded_bytes || buffer == NULL)
        return (int64_t)record->encoded_bytes;
    if (fixture->encode_result != 0)
        return fixture->encode_result;
    memset(buffer, 0, record->encoded_bytes);
    memcpy(buffer, record, sizeof(*record));
    fixture->encode_count++;
    return (int64_t)record->encoded_bytes;
}

static int record_decode(void *context, const void *data, size_t bytes, void **ret_object)
{
    struct fixture *fixture = context;
    struct record *record;

    if (fixture->decode_result != 0)
        return fixture->decode_result;
    record = malloc(sizeof(*record));
    assert_non_null(record);
    memcpy(record, data, sizeof(*record));
    assert_int_equal(bytes, record->encoded_bytes);
    fixture->decode_count++;
    fixture->live_count++;
    *ret_object = record;
    return 0;
}

static void record_release(void *context, void *object)
{
    ((struct fixture *)context)->live_count--;
    free(object);
}

static struct weir_reorder_codec record_codec(struct fixture *fixture)
{
    return (struct weir_reorder_codec){
        .measure = record_measure,
        .encode = record_encode,
        .decode = record_decode,
        .release = record_release,
        .context = fixture,
    };
}

static int begin(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));

    double_region_init(&fixture->region);
    double_account_init(&fixture->account);
    assert_int_equal(weir_reorder_create(
                         &(struct weir_reorder_config){
                             .account = &fixture->account,
                             .region = &fixture->region,
                             .hot_items = 4,
                             .working_bytes = WORKING_BYTES,
                             .codec = record_codec(fixture),
                         },
                         &fixture->reorder),
                     0);
    *state = fixture;
    return 0;
}

static int end(void **state)
{
    struct fixture *fixture = *state;

    weir_reorder_audit(fixture->reorder);
    weir_reorder_destroy(fixture->reorder);
    /* Whatever was left in the buffer is released. */
    assert_int_equal(fixture->live_count, 0);
    assert_int_equal(fixture->account.charged_bytes, 0);
    weir_region_poll(&fixture->region);
    double_region_deinit(&fixture->region);
    free(fixture);
    return 0;
}

static struct weir_reorder_stats stats_of(const struct fixture *fixture)
{
    struct weir_reorder_stats stats;

    weir_reorder_stats(fixture->reorder, &stats);
    return stats;
}

/* The account holds what the records measure, and the tables; nothing is lent. */
static void check_books(const struct fixture *fixture)
{
    struct weir_reorder_stats stats = stats_of(fixture);

    weir_reorder_audit(fixture->reorder);
    assert_int_equal(fixture->account.charged_bytes,
                     WORKING_BYTES + stats.memory_bytes + stats.metadata_bytes);
}

/* 0, or what push said: the record is gone then. */
static int push(struct fixture *fixture, uint64_t sequence, size_t memory_bytes,
                size_t encoded_bytes)
{
    struct record *record = malloc(sizeof(*record));
    int r;

    assert_non_null(record);
    *record = (struct record){sequence, memory_bytes, encoded_bytes};
    r = weir_reorder_push_object(fixture->reorder, sequence, record);
    if (r < 0)
        free(record);
    else
        fixture->live_count++;
    return r;
}

/* -EAGAIN is waited for. */
static int pop(struct fixture *fixture, struct weir_item *item)
{
    int r = weir_reorder_pop(fixture->reorder, item);

    for (int i = 0; r == -EAGAIN && i < 100; i++) {
        weir_region_poll(&fixture->region);
        r = weir_reorder_pop(fixture->reorder, item);
    }
    return r;
}

static void deliver(struct fixture *fixture, uint64_t sequence, size_t memory_bytes)
{
    struct weir_item item;

    assert_int_equal(pop(fixture, &item), 0);
    assert_int_equal(item.sequence, sequence);
    assert_int_equal(item.bytes, memory_bytes);
    assert_null(item.data);
    assert_non_null(item.object);
    assert_int_equal(((struct record *)item.object)->number, sequence);
    weir_reorder_release(fixture->reorder, &item);
    assert_null(item.object);
}

/* ---- Cases ---------------------------------------------------------------------- */

static void test_never_encoded(void **state)
{
    struct fixture *fixture = *state;
    struct weir_item item;

    for (uint64_t i = 100; i-- > 0;)
        assert_int_equal(push(fixture, i, 200, 40), 0);
    assert_int_equal(stats_of(fixture).memory_bytes, 20000 - 0);
    assert_int_equal(push(fixture, 50, 200, 40), -EEXIST);
    for (uint64_t i = 0; i < 99; i++)
        deliver(fixture, i, 200);
    assert_int_equal(fixture->encode_count, 0);
    assert_int_equal(fixture->live_count, 1);
    assert_int_equal(push(fixture, 3, 200, 40), -ERANGE);

    /* The caller keeps one. */
    assert_int_equal(pop(fixture, &item), 0);
    free(item.object);
    item.object = NULL;
    fixture->live_count--;
    weir_reorder_release(fixture->reorder, &item);
    assert_int_equal(stats_of(fixture).memory_bytes, 0);
    check_books(fixture);
}

static void test_spilled(void **state)
{
    struct fixture *fixture = *state;

    for (uint64_t i = 1; i <= 100; i++)
        assert_int_equal(push(fixture, i, 200, 40), 0);
    check_books(fixture);
    fixture->region.puts_are_cold = true;
    assert_int_equal(weir_reorder_spill(fixture->reorder, 10000), 10000);
    assert_int_equal(fixture->encode_count, 50);
    assert_int_equal(fixture->live_count, 50);
    assert_int_equal(fixture->region.live_bytes, 50 * 40);
    assert_int_equal(stats_of(fixture).spilled_bytes, 50 * 40);
    assert_int_equal(stats_of(fixture).spill_bytes, 50 * 40);
    assert_int_equal(stats_of(fixture).memory_bytes, 50 * 200);
    check_books(fixture);

    /* The account takes no more: the furthest goes there at once, and is let go. */
    fixture->account.spill_at = fixture->account.charged_bytes;
    assert_int_equal(push(fixture, 5000, 200, 40), 0);
    fixture->account.spill_at = UINT64_MAX;
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    for (uint64_t i = 1; i <= 100; i++) {
        deliver(fixture, i, 200);
        if (i % 10 == 0)
            weir_reorder_audit(fixture->reorder);
    }
    assert_true(fixture->decode_count >= 50);
    assert_int_equal(fixture->region.live_count, 1);
    assert_int_equal(fixture->live_count, 0);
    check_books(fixture);
}

static void test_refused_encode(void **state)
{
    struct fixture *fixture = *state;

    assert_int_equal(push(fixture, 10, 200, 40), 0);
    assert_int_equal(push(fixture, 11, 200, 5000), 0); /* more than one put */
    assert_int_equal(push(fixture, 12, 200, 40), 0);
    fixture->encode_result = -EIO;
    assert_int_equal(weir_reorder_spill(fixture->reorder, UINT64_MAX), 0);
    assert_int_equal(stats_of(fixture).failed_spill_count, 3);
    assert_int_equal(fixture->region.live_count, 0);
    assert_int_equal(fixture->live_count, 3);
    check_books(fixture);

    /* One that cannot go keeps nobody else in memory. */
    fixture->encode_result = 0;
    assert_int_equal(weir_reorder_spill(fixture->reorder, UINT64_MAX), 400);
    assert_int_equal(fixture->live_count, 1);
    fixture->account.wait_at = 0;
    fixture->account.hard_at = UINT64_MAX;
    assert_int_equal(push(fixture, 20, 200, 5000), -EAGAIN);
    fixture->account.wait_at = UINT64_MAX;
    fixture->account.spill_at = 0;
    assert_int_equal(push(fixture, 20, 200, 5000), -EFBIG);
    fixture->account.spill_at = UINT64_MAX;
    check_books(fixture);
}

static void test_failed_decode(void **state)
{
    struct fixture *fixture = *state;
    struct weir_item item;

    assert_int_equal(push(fixture, 10, 200, 40), 0);
    fixture->region.puts_are_cold = true;
    assert_int_equal(weir_reorder_spill(fixture->reorder, 1), 200);
    fixture->decode_result = -EBADMSG;
    assert_int_equal(weir_reorder_take(fixture->reorder, 10, &item), -EAGAIN);
    weir_region_poll(&fixture->region);
    assert_int_equal(weir_reorder_take(fixture->reorder, 10, &item), -EBADMSG);
    assert_int_equal(fixture->region.pinned_bytes, 0);
    for (int i = 0; i < 10; i++)
        assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    assert_int_equal(pop(fixture, &item), -EBADMSG);
    assert_int_equal(pop(fixture, &item), -EBADMSG);
    assert_int_equal(stats_of(fixture).item_count, 1);
    assert_int_equal(fixture->region.live_count, 1);
    check_books(fixture);
    fixture->decode_result = 0;
    deliver(fixture, 10, 200);
    check_books(fixture);
}

static void test_out_of_turn(void **state)
{
    struct fixture *fixture = *state;
    struct weir_item item;

    for (uint64_t i = 0; i < 20; i++)
        assert_int_equal(push(fixture, i, 200, 40), 0);
    assert_int_equal(weir_reorder_spill(fixture->reorder, 1000), 1000);
    assert_int_equal(weir_reorder_take(fixture->reorder, 18, &item), 0);
    assert_int_equal(((struct record *)item.object)->number, 18);
    /* Decoded, it is in memory and charged until it is released. */
    assert_true(weir_slot_is_none(item.slot));
    assert_int_equal(stats_of(fixture).memory_bytes, 16 * 200);
    weir_reorder_release(fixture->reorder, &item);
    assert_int_equal(weir_reorder_take(fixture->reorder, 3, &item), 0);
    weir_reorder_release(fixture->reorder, &item);
    assert_int_equal(weir_reorder_skip(fixture->reorder), 0);
    assert_int_equal(fixture->live_count, 13);
    check_books(fixture);
}

static void test_mixed(void **state)
{
    struct fixture *fixture = *state;
    struct weir_item item;

    fixture->region.puts_are_cold = true;
    for (uint64_t i = 0; i < 200; i++) {
        if (i % 2 == 0)
            assert_int_equal(push(fixture, i, 100, 30), 0);
        else
            assert_int_equal(weir_reorder_push(fixture->reorder, i, &i, sizeof(i)), 0);
    }
    check_books(fixture);
    assert_int_equal(weir_reorder_spill(fixture->reorder, 5400), 5400);
    check_books(fixture);
    for (uint64_t i = 0; i < 200; i++) {
        if (i % 2 == 0) {
            deliver(fixture, i, 100);
            continue;
        }
        assert_int_equal(pop(fixture, &item), 0);
        assert_null(item.object);
        assert_memory_equal(item.data, &i, sizeof(i));
        weir_reorder_release(fixture->reorder, &item);
    }
    check_books(fixture);
    assert_int_equal(fixture->region.live_count, 0);
}

static void test_codec_is_whole(void **state)
{
    struct fixture *fixture = *state;
    struct weir_reorder_config config = {.codec = record_codec(fixture)};
    struct weir_reorder *reorder;
    int object;

    config.codec.decode = NULL;
    assert_int_equal(weir_reorder_create(&config, &reorder), -EINVAL);
    config.codec = (struct weir_reorder_codec){0};
    assert_int_equal(weir_reorder_create(&config, &reorder), 0);
    assert_int_equal(weir_reorder_push_object(reorder, 0, &object), -EINVAL);
    weir_reorder_destroy(reorder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"what never spills is never encoded", test_never_encoded, begin, end, NULL},
        {"a spilled object is let go, and decoded in its turn", test_spilled, begin, end, NULL},
        {"an object that cannot be encoded stays", test_refused_encode, begin, end, NULL},
        {"a failed decode can be tried again", test_failed_decode, begin, end, NULL},
        {"objects are taken and skipped", test_out_of_turn, begin, end, NULL},
        {"bytes and objects wait side by side", test_mixed, begin, end, NULL},
        {"a codec is whole or is not there", test_codec_is_whole, begin, end, NULL},
    };

    return cmocka_run_group_tests_name("reorder_object", tests, NULL, NULL);
}
