/* SPDX-License-Identifier: MIT */
/* writebuf - what is appended arrives once, whatever the sink, the region and the account say */
#include <weir/writebuf.h>

#include "base/random.h"
#include "double.h"
#include "target.h"
#include "writebuf/keys.h"
#include "writebuf/piece.h"
#include "writebuf/record.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#define KIB    UINT64_C(1024)
#define MIB    (UINT64_C(1024) * KIB)
#define SECOND UINT64_C(1000000000)

#define TABLES 8
#define KEYS   4096

struct fixture {
    struct weir_region region;
    struct weir_account account;
    struct target target;
    struct weir_writebuf_set *set;
    struct weir_writebuf *buffers[TABLES];
    uint64_t sequences[TABLES];
    uint64_t now_ns;
    uint32_t ready_count;
};

static void on_ready(void *context)
{
    ((struct fixture *)context)->ready_count++;
}

/* A set with triggers and quiet times off, but for what @config asks for. */
static void make(struct fixture *fixture, struct weir_writebuf_config config)
{
    config.account = &fixture->account;
    if (config.sink.begin == NULL)
        config.sink = target_sink(&fixture->target);
    if (config.trigger_bytes == 0)
        config.trigger_bytes = UINT64_MAX;
    if (config.trigger_age_ns == 0)
        config.trigger_age_ns = UINT64_MAX;
    if (config.quiet_ns == 0)
        config.quiet_ns = UINT64_MAX;
    if (config.ready == NULL)
        config.ready = on_ready;
    config.context = fixture;
    assert_int_equal(weir_writebuf_create(&config, &fixture->set), 0);
    for (uint64_t i = 0; i < TABLES; i++)
        assert_int_equal(weir_writebuf_ensure(fixture->set, i, &fixture->buffers[i]), 0);
}

static int begin(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));

    double_region_init(&fixture->region);
    fixture->region.put_bytes_max = MIB;
    double_account_init(&fixture->account);
    target_init(&fixture->target, TABLES, KEYS, 7);
    fixture->now_ns = SECOND;
    *state = fixture;
    return 0;
}

static int end(void **state)
{
    struct fixture *fixture = *state;

    if (fixture->set != NULL)
        weir_writebuf_audit(fixture->set);
    weir_writebuf_destroy(fixture->set);
    assert_int_equal(fixture->account.charged_bytes, 0);
    assert_int_equal(fixture->account.book_bytes, 0);
    weir_region_poll(&fixture->region);
    double_region_deinit(&fixture->region);
    target_deinit(&fixture->target);
    free(fixture);
    return 0;
}

static struct weir_writebuf_stats stats_of(const struct fixture *fixture)
{
    struct weir_writebuf_stats stats;

    weir_writebuf_stats(fixture->set, &stats);
    return stats;
}

static struct weir_writebuf_buffer_stats buffer_of(const struct fixture *fixture, uint64_t id)
{
    struct weir_writebuf_buffer_stats stats;

    weir_writebuf_buffer_stats(fixture->buffers[id], &stats);
    return stats;
}

/* One change of @value_bytes, whose content the sequence decides. */
static int change(struct fixture *fixture, uint64_t id, enum weir_writebuf_operation operation,
                  uint32_t key, size_t value_bytes)
{
    char *value = malloc(value_bytes + 1);
    uint64_t sequence = fixture->sequences[id] + 1;
    int r;

    for (size_t i = 0; i < value_bytes; i++)
        value[i] = (char)weir__mix(id * 1000003 + sequence * 31 + i / 8);
    r = target_append(&fixture->target, fixture->buffers[id], id, sequence, operation, key, value,
                      value_bytes);
    free(value);
    if (r == 0)
        fixture->sequences[id] = sequence;
    return r;
}

static void changes(struct fixture *fixture, uint64_t id, enum weir_writebuf_operation operation,
                    uint32_t count, size_t value_bytes)
{
    for (uint32_t i = 0; i < count; i++)
        assert_int_equal(change(fixture, id, operation, i % KEYS, value_bytes), 0);
}

/* Polls of set and region until neither has anything to do. */
static void settle(struct fixture *fixture)
{
    int idle = 0;

    for (int i = 0; idle < 3; i++) {
        int count = weir_writebuf_poll(fixture->set, fixture->now_ns);

        assert_true(i < 100000);
        weir_writebuf_audit(fixture->set);
        count += weir_region_poll(&fixture->region);
        idle = count > 0 ? 0 : idle + 1;
    }
}

static void flush(struct fixture *fixture, uint64_t id)
{
    weir_writebuf_flush(fixture->buffers[id], NULL, UINT64_MAX);
    settle(fixture);
}

struct told {
    struct weir_writebuf_ticket ticket;
    struct weir_writebuf *buffer; /* of those that ask again */
    uint32_t count;
    int result;
};

static void on_done(struct weir_writebuf_ticket *ticket, int result)
{
    struct told *told = (struct told *)(void *)ticket;

    told->count++;
    told->result = result;
}

/* ---- Life ------------------------------------------------------------------------- */

static void test_buffers_are_made_when_needed(void **state)
{
    struct fixture *fixture = *state;
    struct weir_writebuf *buffer;
    struct weir_writebuf *again;
    uint64_t count = 0;

    make(fixture, (struct weir_writebuf_config){0});
    for (uint64_t id = 0; id < 500; id++) {
        assert_int_equal(weir_writebuf_ensure(fixture->set, id * 7919, &buffer), 0);
        assert_int_equal(weir_writebuf_ensure(fixture->set, id * 7919, &again), 0);
        assert_ptr_equal(buffer, again);
    }
    for (buffer = NULL; (buffer = weir_writebuf_next(fixture->set, buffer)) != NULL;)
        count++;
    assert_int_equal(count, stats_of(fixture).buffer_count);
    assert_int_equal(count, 500 + TABLES - 1);
    assert_int_equal(weir_writebuf_poll(fixture->set, fixture->now_ns), 0);
    assert_true(weir_writebuf_due_ns(fixture->set) == UINT64_MAX);
    assert_int_equal(stats_of(fixture).mapped_bytes, 0);
}

static void test_what_is_appended_arrives(void **state)
{
    struct fixture *fixture = *state;

    make(fixture, (struct weir_writebuf_config){0});
    changes(fixture, 1, WEIR_WRITEBUF_INSERT, 100, 50);
    changes(fixture, 1, WEIR_WRITEBUF_UPDATE, 30, 60);
    changes(fixture, 1, WEIR_WRITEBUF_DELETE, 10, 0);
    assert_int_equal(buffer_of(fixture, 1).record_count, 140);
    assert_int_equal(fixture->target.tables[1].begin_count, 0);
    flush(fixture, 1);
    assert_true(target_is_equal(&fixture->target, 1));
    assert_int_equal(buffer_of(fixture, 1).position, 140);
    assert_int_equal(buffer_of(fixture, 1).record_count, 0);
    assert_int_equal(buffer_of(fixture, 1).held_bytes, 0);
    assert_int_equal(fixture->target.tables[1].remove_count, 10);
    assert_int_equal(fixture->target.tables[1].put_count, 90);
    assert_int_equal(stats_of(fixture).compacted_count, 40);
    flush(fixture, 1);
    assert_int_equal(fixture->target.tables[1].begin_count, 1);
}

static void test_clear_drops_all(void **state)
{
    struct fixture *fixture = *state;
    struct told told = {.ticket.done = on_done};

    make(fixture, (struct weir_writebuf_config){.region = &fixture->region});
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 1000, 500);
    changes(fixture, 1, WEIR_WRITEBUF_UPDATE, 10, 10);
    assert_true(weir_writebuf_spill(fixture->set, 128 * KIB) >= 128 * KIB);
    assert_true(fixture->region.live_count > 0);
    weir_writebuf_flush(fixture->buffers[0], &told.ticket, UINT64_MAX);
    weir_writebuf_poll(fixture->set, fixture->now_ns);
    weir_writebuf_clear(fixture->buffers[0]);
    assert_int_equal(told.count, 1);
    assert_int_equal(told.result, -ECANCELED);
    weir_writebuf_audit(fixture->set);
    assert_int_equal(fixture->region.live_count, 0);
    assert_int_equal(stats_of(fixture).buffer_count, TABLES - 1);
    assert_int_equal(stats_of(fixture).record_count, 10);
    /* The region calls back for nobody. */
    settle(fixture);
    assert_int_equal(weir_writebuf_ensure(fixture->set, 0, &fixture->buffers[0]), 0);
    assert_int_equal(buffer_of(fixture, 0).last_sequence, 0);
}

static void test_config_is_checked(void **state)
{
    struct fixture *fixture = *state;
    struct weir_writebuf_set *set = NULL;
    struct weir_writebuf_config good = {.sink = target_sink(&fixture->target)};
    struct weir_writebuf_config config = good;

    assert_int_equal(weir_writebuf_create(NULL, &set), -EINVAL);
    config.reserved[7] = 1;
    assert_int_equal(weir_writebuf_create(&config, &set), -EINVAL);
    config = good;
    config.sink.commit = NULL;
    assert_int_equal(weir_writebuf_create(&config, &set), -EINVAL);
    config = good;
    config.collect_bytes_max = 64 * KIB;
    assert_int_equal(weir_writebuf_create(&config, &set), -EINVAL);
    config = good;
    config.working_bytes = 4 * (256 + 64) * KIB;
    assert_int_equal(weir_writebuf_create(&config, &set), -EINVAL);
    config = good;
    config.flushes_max = 65;
    assert_int_equal(weir_writebuf_create(&config, &set), -EINVAL);
    config = good;
    config.region = &fixture->region;
    fixture->region.put_bytes_max = 100 * KIB;
    assert_int_equal(weir_writebuf_create(&config, &set), -EINVAL);
    fixture->region.put_bytes_max = MIB;
    config = good;
    config.account = &fixture->account;
    fixture->account.wait_at = MIB;
    assert_int_equal(weir_writebuf_create(&config, &set), -EDQUOT);
    assert_int_equal(fixture->account.charged_bytes, 0);
    assert_null(set);
    fixture->account.wait_at = UINT64_MAX;
    make(fixture, (struct weir_writebuf_config){0});
    assert_true(fixture->account.charged_bytes >= stats_of(fixture).working_bytes);
    assert_int_equal(stats_of(fixture).working_bytes, 4 * (1024 + 64) * KIB);
    weir_writebuf_destroy(fixture->set);
    make(fixture, (struct weir_writebuf_config){.working_bytes = 3 * MIB, .flushes_max = 2});
    assert_int_equal(stats_of(fixture).working_bytes, 3 * MIB);
}

static void test_a_refused_append_changes_nothing(void **state)
{
    struct fixture *fixture = *state;
    struct weir_writebuf_stats before;
    struct weir_writebuf_stats after;
    static char value[70000];
    struct weir_writebuf_record record = {.sequence = 5, .key = value, .value = value};

    make(fixture, (struct weir_writebuf_config){.record_bytes_max = 70000});
    changes(fixture, 0, WEIR_WRITEBUF_INSERT, 5, 10);
    before = stats_of(fixture);
    assert_int_equal(weir_writebuf_append(fixture->buffers[0], &record), -ERANGE);
    record.sequence = 6;
    record.value_bytes = 70001;
    assert_int_equal(weir_writebuf_append(fixture->buffers[0], &record), -EFBIG);
    record.value_bytes = 69999;
    record.key_bytes = 2;
    assert_int_equal(weir_writebuf_append(fixture->buffers[0], &record), -EFBIG);
    record.value_bytes = 0;
    record.key_bytes = 65536;
    assert_int_equal(weir_writebuf_append(fixture->buffers[0], &record), -EFBIG);
    record.key_bytes = 4;
    record.operation = (enum weir_writebuf_operation)4;
    assert_int_equal(weir_writebuf_append(fixture->buffers[0], &record), -EINVAL);
    record.operation = WEIR_WRITEBUF_INSERT;
    record.sequence = 0;
    assert_int_equal(weir_writebuf_append(fixture->buffers[0], &record), -EINVAL);
    after = stats_of(fixture);
    assert_memory_equal(&before, &after, sizeof(before));
    flush(fixture, 0);
    assert_true(target_is_equal(&fixture->target, 0));
    record.sequence = 5;
    assert_int_equal(weir_writebuf_append(fixture->buffers[0], &record), -ERANGE);
}

static void test_records_of_any_size(void **state)
{
    struct fixture *fixture = *state;

    make(fixture, (struct weir_writebuf_config){.region = &fixture->region});
    for (uint32_t i = 0; i < 200; i++) {
        size_t bytes = i % 7 == 0 ? 256 * KIB - 4 : (i * 7919) % (100 * KIB);

        assert_int_equal(change(fixture, 2, WEIR_WRITEBUF_UPDATE, i, bytes), 0);
        if (i % 3 == 0)
            assert_int_equal(change(fixture, 2, WEIR_WRITEBUF_UPDATE, i, 0), 0);
    }
    weir_writebuf_spill(fixture->set, 4 * MIB);
    flush(fixture, 2);
    assert_true(target_is_equal(&fixture->target, 2));
}

/* ---- Compaction ------------------------------------------------------------------- */

static void test_the_last_change_of_a_key_wins(void **state)
{
    struct fixture *fixture = *state;
    struct target_table *table = &fixture->target.tables[0];

    make(fixture, (struct weir_writebuf_config){0});
    for (int i = 0; i < 100; i++)
        changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 10, 20);
    assert_int_equal(change(fixture, 0, WEIR_WRITEBUF_DELETE, 3, 0), 0);
    assert_int_equal(change(fixture, 0, WEIR_WRITEBUF_DELETE, 4, 0), 0);
    assert_int_equal(change(fixture, 0, WEIR_WRITEBUF_INSERT, 4, 9), 0);
    flush(fixture, 0);
    assert_true(target_is_equal(&fixture->target, 0));
    assert_int_equal(table->put_count, 9);
    assert_int_equal(table->remove_count, 1);
    assert_int_equal(table->insert_count, 0);
    assert_int_equal(stats_of(fixture).compacted_count, 1003 - 10);
    assert_int_equal(stats_of(fixture).plain_count, 0);
}

/* A key that was inserted in the same batch was not there before: the sink need not look. */
static void test_inserted_keys_are_told_apart(void **state)
{
    struct fixture *fixture = *state;
    struct target_table *table = &fixture->target.tables[0];

    make(fixture, (struct weir_writebuf_config){0});
    assert_int_equal(change(fixture, 0, WEIR_WRITEBUF_INSERT, 1, 5), 0);
    assert_int_equal(change(fixture, 0, WEIR_WRITEBUF_UPDATE, 1, 6), 0);
    assert_int_equal(change(fixture, 0, WEIR_WRITEBUF_UPDATE, 2, 7), 0);
    assert_int_equal(change(fixture, 0, WEIR_WRITEBUF_DELETE, 3, 0), 0);
    assert_int_equal(change(fixture, 0, WEIR_WRITEBUF_INSERT, 3, 8), 0);
    flush(fixture, 0);
    assert_true(target_is_equal(&fixture->target, 0));
    assert_int_equal(table->put_count, 3);
    assert_int_equal(table->insert_count, 1);
}

static void test_inserts_only_need_no_table(void **state)
{
    struct fixture *fixture = *state;

    make(fixture, (struct weir_writebuf_config){0});
    for (uint32_t flushes = 1; flushes < 4; flushes++) {
        for (uint32_t i = 0; i < 1000; i++)
            assert_int_equal(
                change(fixture, 0, WEIR_WRITEBUF_INSERT, (flushes - 1) * 1000 + i, 100), 0);
        flush(fixture, 0);
        /* In each flush, not only in the first. */
        assert_int_equal(stats_of(fixture).plain_count, flushes);
    }
    assert_true(target_is_equal(&fixture->target, 0));
    assert_int_equal(stats_of(fixture).index_bytes, 0);
    assert_int_equal(fixture->target.tables[0].insert_count, 3000);
}

static void test_barriers_keep_order(void **state)
{
    struct fixture *fixture = *state;
    struct target_table *table = &fixture->target.tables[0];

    make(fixture, (struct weir_writebuf_config){.region = &fixture->region});
    assert_int_equal(change(fixture, 0, WEIR_WRITEBUF_BARRIER, 0, 3), 0);
    for (int i = 0; i < 20; i++) {
        changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 100, 90);
        assert_int_equal(change(fixture, 0, WEIR_WRITEBUF_BARRIER, 0, 3), 0);
        if (i % 4 == 0)
            assert_int_equal(change(fixture, 0, WEIR_WRITEBUF_BARRIER, 0, 3), 0);
    }
    changes(fixture, 0, WEIR_WRITEBUF_DELETE, 5, 0);
    weir_writebuf_spill(fixture->set, 64 * KIB);
    flush(fixture, 0);
    /* The content at each of them is what was appended before it. */
    assert_true(target_is_equal(&fixture->target, 0));
    assert_int_equal(table->barrier_count, 26);
    assert_int_equal(table->commit_count, 26 + 20 + 1);
}

static void test_a_sink_may_not_care_for_barriers(void **state)
{
    struct fixture *fixture = *state;
    struct weir_writebuf_sink sink = target_sink(&fixture->target);

    sink.barrier = NULL;
    sink.position = NULL;
    make(fixture, (struct weir_writebuf_config){.sink = sink});
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 10, 9);
    assert_int_equal(change(fixture, 0, WEIR_WRITEBUF_BARRIER, 0, 0), 0);
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 10, 9);
    flush(fixture, 0);
    assert_int_equal(fixture->target.tables[0].position, 21);
    assert_int_equal(fixture->target.tables[0].put_count, 20);
}

/* ---- Failure ---------------------------------------------------------------------- */

static void test_a_failed_flush_keeps_all(void **state)
{
    struct fixture *fixture = *state;
    struct target_table *table = &fixture->target.tables[0];
    struct told told = {.ticket.done = on_done};

    make(fixture, (struct weir_writebuf_config){.region = &fixture->region});
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 2000, 100);
    weir_writebuf_spill(fixture->set, 100 * KIB);
    table->fails = -ENOSPC;
    weir_writebuf_flush(fixture->buffers[0], &told.ticket, UINT64_MAX);
    settle(fixture);
    assert_int_equal(told.count, 1);
    assert_int_equal(told.result, -ENOSPC);
    assert_int_equal(table->abort_count, 1);
    assert_int_equal(buffer_of(fixture, 0).record_count, 2000);
    assert_int_equal(buffer_of(fixture, 0).position, 0);
    assert_int_equal(buffer_of(fixture, 0).failure_count, 1);
    assert_int_equal(buffer_of(fixture, 0).last_error, -ENOSPC);
    assert_int_equal(buffer_of(fixture, 0).loaded_bytes, 0);
    assert_int_equal(stats_of(fixture).failing_count, 1);
    changes(fixture, 0, WEIR_WRITEBUF_DELETE, 7, 0);
    table->fails = 0;
    fixture->now_ns += SECOND;
    settle(fixture);
    assert_true(target_is_equal(&fixture->target, 0));
    assert_int_equal(buffer_of(fixture, 0).failure_count, 0);
    assert_int_equal(stats_of(fixture).failing_count, 0);
}

static void test_back_off_grows_and_ends(void **state)
{
    struct fixture *fixture = *state;
    struct target_table *table = &fixture->target.tables[0];
    const uint64_t expected[] = {1, 2, 4, 8, 10, 10, 10};

    make(fixture, (struct weir_writebuf_config){.retry_ns = SECOND, .retry_ns_max = 10 * SECOND});
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 5, 10);
    table->fails = -EIO;
    flush(fixture, 0);
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        uint64_t retry_ns = buffer_of(fixture, 0).retry_ns;

        assert_int_equal(retry_ns - fixture->now_ns, expected[i] * SECOND);
        assert_int_equal(weir_writebuf_due_ns(fixture->set), retry_ns);
        /* Not before, whoever asks. */
        fixture->now_ns = retry_ns - 1;
        flush(fixture, 0);
        assert_int_equal(table->abort_count, i + 1);
        fixture->now_ns = retry_ns;
        settle(fixture);
        assert_int_equal(table->abort_count, i + 2);
    }
    table->fails = 0;
    weir_writebuf_resume(fixture->buffers[0]);
    settle(fixture);
    assert_true(target_is_equal(&fixture->target, 0));
    table->fails = -EIO;
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 5, 10);
    flush(fixture, 0);
    assert_int_equal(buffer_of(fixture, 0).retry_ns - fixture->now_ns, SECOND);
}

static void test_back_off_may_have_no_end(void **state)
{
    struct fixture *fixture = *state;
    struct target_table *table = &fixture->target.tables[0];

    make(fixture, (struct weir_writebuf_config){.retry_ns = UINT64_MAX});
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 5, 10);
    table->fails = -EIO;
    flush(fixture, 0);
    fixture->now_ns += 1000 * SECOND;
    settle(fixture);
    assert_int_equal(table->abort_count, 1);
    assert_true(weir_writebuf_due_ns(fixture->set) == UINT64_MAX);
    table->fails = 0;
    weir_writebuf_resume(fixture->buffers[0]);
    settle(fixture);
    assert_true(target_is_equal(&fixture->target, 0));
}

static void test_a_failing_buffer_is_alone(void **state)
{
    struct fixture *fixture = *state;

    make(fixture, (struct weir_writebuf_config){.flushes_max = 1});
    fixture->target.tables[0].fails = -EIO;
    for (int round = 0; round < 10; round++) {
        for (uint64_t id = 0; id < TABLES; id++) {
            changes(fixture, id, WEIR_WRITEBUF_UPDATE, 50, 30);
            weir_writebuf_flush(fixture->buffers[id], NULL, UINT64_MAX);
        }
        settle(fixture);
        for (uint64_t id = 1; id < TABLES; id++)
            assert_true(target_is_equal(&fixture->target, id));
        fixture->now_ns += 100 * SECOND;
    }
    assert_int_equal(stats_of(fixture).failing_count, 1);
    assert_int_equal(buffer_of(fixture, 0).record_count, 500);
    assert_int_equal(fixture->target.tables[0].position, 0);
    fixture->target.tables[0].fails = 0;
    fixture->now_ns += 100 * SECOND;
    settle(fixture);
    assert_true(target_is_equal(&fixture->target, 0));
}

/* A commit that was done and said not to be: the sink is asked, and nothing is doubled. */
static void test_a_commit_that_lies_doubles_nothing(void **state)
{
    struct fixture *fixture = *state;
    struct target_table *table = &fixture->target.tables[0];

    make(fixture, (struct weir_writebuf_config){.region = &fixture->region});
    changes(fixture, 0, WEIR_WRITEBUF_INSERT, 3000, 100);
    weir_writebuf_spill(fixture->set, 128 * KIB);
    table->lie_ppm = 1000000;
    flush(fixture, 0);
    assert_int_equal(buffer_of(fixture, 0).failure_count, 1);
    table->lie_ppm = 0;
    fixture->now_ns += SECOND;
    settle(fixture);
    assert_true(target_is_equal(&fixture->target, 0));
    assert_int_equal(table->put_count, 3000);
    assert_int_equal(stats_of(fixture).duplicate_count, 3000);
    assert_int_equal(stats_of(fixture).put_count, 0);
}

/* A producer that starts again from an older place: what the target has is not handed on. */
static void test_a_replayed_stream_is_not_doubled(void **state)
{
    struct fixture *fixture = *state;
    struct target_table *table = &fixture->target.tables[0];

    make(fixture, (struct weir_writebuf_config){.region = &fixture->region});
    table->position = 1500;
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 2000, 100);
    flush(fixture, 0);
    assert_int_equal(table->put_count, 500);
    assert_int_equal(table->position, 2000);
    assert_int_equal(stats_of(fixture).duplicate_count, 1500);

    table = &fixture->target.tables[1];
    table->position = 5000;
    changes(fixture, 1, WEIR_WRITEBUF_UPDATE, 100, 100);
    flush(fixture, 1);
    assert_int_equal(table->begin_count, 0);
    assert_int_equal(buffer_of(fixture, 1).position, 5000);
    assert_int_equal(buffer_of(fixture, 1).record_count, 0);
    assert_int_equal(change(fixture, 1, WEIR_WRITEBUF_UPDATE, 0, 1), -ERANGE);

    /* A target that has lost what it confirmed is not written over. */
    table = &fixture->target.tables[2];
    changes(fixture, 2, WEIR_WRITEBUF_UPDATE, 100, 100);
    flush(fixture, 2);
    table->fails = -EIO;
    changes(fixture, 2, WEIR_WRITEBUF_UPDATE, 100, 100);
    flush(fixture, 2);
    table->fails = 0;
    table->position = 50;
    fixture->now_ns += SECOND;
    settle(fixture);
    assert_int_equal(buffer_of(fixture, 2).last_error, -ESTALE);
    assert_int_equal(buffer_of(fixture, 2).record_count, 100);
}

static void test_a_sink_that_stalls_is_given_up(void **state)
{
    struct fixture *fixture = *state;
    struct target_table *table = &fixture->target.tables[0];

    make(fixture, (struct weir_writebuf_config){.flushes_max = 1, .stall_ns_max = 3 * SECOND});
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 10, 10);
    changes(fixture, 1, WEIR_WRITEBUF_UPDATE, 10, 10);
    table->fails = -EAGAIN;
    weir_writebuf_flush(fixture->buffers[0], NULL, UINT64_MAX);
    weir_writebuf_flush(fixture->buffers[1], NULL, UINT64_MAX);
    settle(fixture);
    assert_true(buffer_of(fixture, 0).flushing);
    assert_true(buffer_of(fixture, 1).queued);
    fixture->now_ns += 3 * SECOND - 1;
    settle(fixture);
    assert_true(buffer_of(fixture, 0).flushing);
    assert_true(weir_writebuf_due_ns(fixture->set) <= fixture->now_ns + 1);
    fixture->now_ns += 1;
    settle(fixture);
    assert_int_equal(buffer_of(fixture, 0).last_error, -ETIMEDOUT);
    assert_true(target_is_equal(&fixture->target, 1));
    table->fails = 0;
    fixture->now_ns += SECOND;
    settle(fixture);
    assert_true(target_is_equal(&fixture->target, 0));
}

/* ---- Memory ----------------------------------------------------------------------- */

static void test_spill_goes_to_the_region_in_order(void **state)
{
    struct fixture *fixture = *state;

    make(fixture, (struct weir_writebuf_config){.region = &fixture->region, .owner = 9});
    fixture->account.spill_at = fixture->account.charged_bytes + 512 * KIB;
    fixture->region.puts_are_cold = true;
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 20000, 200);
    weir_writebuf_audit(fixture->set);
    assert_true(buffer_of(fixture, 0).spilled_bytes > 3 * MIB);
    assert_true(buffer_of(fixture, 0).memory_bytes <= 512 * KIB);
    /* Many records in each slot. */
    assert_true(fixture->region.live_count <= 20000 * 220 / (64 * KIB) + 2);
    assert_int_equal(fixture->region.slots[0].label.owner, 9);
    assert_int_equal(fixture->region.slots[0].label.key, 0);
    flush(fixture, 0);
    assert_true(target_is_equal(&fixture->target, 0));
    assert_int_equal(fixture->region.live_count, 0);
    assert_int_equal(buffer_of(fixture, 0).spilled_bytes, 0);
    /* Each block was written once. */
    assert_int_equal(fixture->region.put_count, stats_of(fixture).block_count);
}

static void test_a_collecting_buffer_keeps_its_cap(void **state)
{
    struct fixture *fixture = *state;

    make(fixture, (struct weir_writebuf_config){
                      .region = &fixture->region,
                      .collect_bytes_max = MIB,
                  });
    weir_writebuf_pause(fixture->buffers[0]);
    for (int i = 0; i < 100; i++) {
        changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 1000, 100);
        assert_true(buffer_of(fixture, 0).memory_bytes <= MIB);
    }
    assert_true(buffer_of(fixture, 0).spilled_bytes > 10 * MIB);
    weir_writebuf_resume(fixture->buffers[0]);
    flush(fixture, 0);
    assert_true(target_is_equal(&fixture->target, 0));
}

static void test_without_a_region_the_cap_refuses(void **state)
{
    struct fixture *fixture = *state;
    int r = 0;

    make(fixture, (struct weir_writebuf_config){.collect_bytes_max = MIB});
    for (int i = 0; r == 0; i++) {
        assert_true(i < 20000);
        r = change(fixture, 0, WEIR_WRITEBUF_UPDATE, (uint32_t)i % KEYS, 100);
    }
    assert_int_equal(r, -EAGAIN);
    assert_int_equal(stats_of(fixture).refused_count, 1);
    assert_int_equal(weir_writebuf_due_ns(fixture->set), 0);
    /* It has asked for a flush itself; ready says when to try again. */
    settle(fixture);
    assert_int_equal(fixture->ready_count, 1);
    assert_int_equal(change(fixture, 0, WEIR_WRITEBUF_UPDATE, 1, 100), 0);
    flush(fixture, 0);
    assert_true(target_is_equal(&fixture->target, 0));
}

static void on_ready_append(void *context)
{
    struct fixture *fixture = context;

    fixture->ready_count++;
    while (fixture->sequences[0] < 20000)
        if (change(fixture, 0, WEIR_WRITEBUF_UPDATE, 1, 100) < 0)
            return;
}

/* Nothing gets on, and who is told asks again each time: that must not keep a core busy. */
static void test_ready_has_a_pace(void **state)
{
    struct fixture *fixture = *state;

    make(fixture, (struct weir_writebuf_config){.collect_bytes_max = MIB,
                                                .flush_bytes_max = MIB,
                                                .retry_ns = UINT64_MAX,
                                                .ready = on_ready_append});
    fixture->target.tables[0].fails = -EIO;
    on_ready_append(fixture);
    settle(fixture);
    assert_int_equal(buffer_of(fixture, 0).failure_count, 1);
    for (int i = 0; i < 10; i++) {
        uint32_t before = fixture->ready_count;
        uint64_t due_ns = weir_writebuf_due_ns(fixture->set);

        assert_in_range(due_ns, fixture->now_ns + 1, fixture->now_ns + SECOND / 1000);
        settle(fixture);
        assert_int_equal(fixture->ready_count, before);
        fixture->now_ns = due_ns;
        settle(fixture);
        assert_int_equal(fixture->ready_count, before + 1);
    }
    fixture->target.tables[0].fails = 0;
    weir_writebuf_resume(fixture->buffers[0]);
    settle(fixture);
    assert_int_equal(fixture->sequences[0], 20000);
    flush(fixture, 0);
    assert_true(target_is_equal(&fixture->target, 0));
}

static void test_wait_is_told_and_ends(void **state)
{
    struct fixture *fixture = *state;
    int r = 0;

    make(fixture, (struct weir_writebuf_config){.region = &fixture->region});
    fixture->account.wait_at = fixture->account.charged_bytes + 300 * KIB;
    fixture->region.put_result = -EAGAIN;
    for (int i = 0; r == 0; i++) {
        assert_true(i < 20000);
        r = change(fixture, (uint64_t)i % 3, WEIR_WRITEBUF_UPDATE, (uint32_t)i % KEYS, 100);
    }
    assert_int_equal(r, -EAGAIN);
    fixture->region.put_result = -ENOSPC;
    for (uint64_t id = 0; id < 3; id++) {
        for (r = 0; r == 0;)
            r = change(fixture, id, WEIR_WRITEBUF_UPDATE, 3, 100);
        assert_int_equal(r, -ENOSPC);
    }
    assert_true(stats_of(fixture).failed_spill_count > 0);
    weir_writebuf_audit(fixture->set);
    /* What is refused asks for flushes: they need no memory, nor the region. */
    settle(fixture);
    fixture->region.put_result = 0;
    for (uint64_t id = 0; id < 3; id++) {
        assert_int_equal(change(fixture, id, WEIR_WRITEBUF_UPDATE, 3, 100), 0);
        flush(fixture, id);
        assert_true(target_is_equal(&fixture->target, id));
    }
}

/* All memory is refused: a flush of what is in the region lives on the working set. */
static void test_a_flush_needs_no_memory_that_is_refused(void **state)
{
    struct fixture *fixture = *state;
    uint64_t working_bytes;
    uint64_t commits;

    make(fixture, (struct weir_writebuf_config){.region = &fixture->region});
    working_bytes = stats_of(fixture).working_bytes;
    fixture->region.puts_are_cold = true;
    for (int i = 0; i < 40; i++)
        changes(fixture, 0, WEIR_WRITEBUF_UPDATE, KEYS, 100);
    weir_writebuf_spill(fixture->set, UINT64_MAX);
    assert_int_equal(buffer_of(fixture, 0).memory_bytes, 0);
    fixture->account.wait_at = 0;
    fixture->account.peak_bytes = 0;
    double_region_chill(&fixture->region);
    flush(fixture, 0);
    assert_true(target_is_equal(&fixture->target, 0));
    commits = fixture->target.tables[0].commit_count;
    assert_true(commits > 10); /* in prefixes */
    assert_true(fixture->account.forced_bytes == 0);
    assert_true(stats_of(fixture).working_bytes == working_bytes);

    /* With memory it is one batch, each key once. */
    fixture->account.wait_at = UINT64_MAX;
    for (int i = 0; i < 10; i++)
        changes(fixture, 0, WEIR_WRITEBUF_UPDATE, KEYS, 100);
    weir_writebuf_spill(fixture->set, UINT64_MAX);
    double_region_chill(&fixture->region);
    flush(fixture, 0);
    assert_true(target_is_equal(&fixture->target, 0));
    assert_int_equal(fixture->target.tables[0].commit_count, commits + 1);
    assert_int_equal(fixture->target.tables[0].batch_count_max, KEYS);
}

static void test_a_flush_keeps_its_cap(void **state)
{
    struct fixture *fixture = *state;

    make(fixture, (struct weir_writebuf_config){
                      .region = &fixture->region,
                      .collect_bytes_max = MIB,
                      .flush_bytes_max = 2 * MIB,
                  });
    for (int i = 0; i < 10; i++)
        changes(fixture, 0, WEIR_WRITEBUF_UPDATE, KEYS, 200);
    fixture->region.puts_are_cold = true;
    double_region_chill(&fixture->region);
    weir_writebuf_flush(fixture->buffers[0], NULL, UINT64_MAX);
    for (int i = 0; i < 100000 && buffer_of(fixture, 0).record_count > 0; i++) {
        struct weir_writebuf_buffer_stats stats;

        weir_writebuf_poll(fixture->set, fixture->now_ns);
        weir_region_poll(&fixture->region);
        stats = buffer_of(fixture, 0);
        assert_true(stats.memory_bytes + stats.loaded_bytes <= 3 * MIB);
        assert_true(stats.loaded_bytes + stats_of(fixture).index_bytes <= 2 * MIB);
    }
    assert_true(target_is_equal(&fixture->target, 0));
    assert_true(fixture->target.tables[0].commit_count > 3);
}

/*
 * A table without memory is full within the first block, and the next round begins while the
 * blocks behind it are still on their way: they are not asked for twice.
 */
static void test_a_full_table_waits_for_what_is_fetched(void **state)
{
    struct fixture *fixture = *state;

    make(fixture, (struct weir_writebuf_config){.region = &fixture->region});
    fixture->region.puts_are_cold = true;
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 4 * KEYS, 0);
    weir_writebuf_spill(fixture->set, UINT64_MAX);
    uint64_t block_count = stats_of(fixture).block_count;
    fixture->account.wait_at = 0;
    fixture->region.answers_max = 1;
    flush(fixture, 0);
    assert_true(target_is_equal(&fixture->target, 0));
    assert_true(fixture->target.tables[0].commit_count > 4);
    assert_int_equal(stats_of(fixture).fetch_count, block_count);
}

/*
 * A block spills between two rounds, and stands before one that was fetched:
 *
 *      | A, fetched, half of it committed | B, in memory until now | C, fetched | ...
 *
 * B ends with a change of @bytes. The account refuses all from here on.
 */
static void spill_between_fetched(struct fixture *fixture, size_t bytes)
{
    struct target_table *table = &fixture->target.tables[0];

    make(fixture, (struct weir_writebuf_config){
                      .region = &fixture->region,
                      .record_bytes_max = 100 * 1000,
                      .working_bytes = (64 + 2 * 68) * KIB,
                      .flushes_max = 1,
                  });
    fixture->region.puts_are_cold = true;
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 64 * KIB / 20, 0);
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 1, bytes);
    table->fails = -EAGAIN;
    flush(fixture, 0);
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 8000, 0);
    weir_writebuf_spill(fixture->set, UINT64_MAX);
    table->fails = -EIO;
    settle(fixture);
    assert_int_equal(stats_of(fixture).failed_count, 1);
    assert_true(weir_writebuf_spill(fixture->set, 1) > 0);
    assert_true(buffer_of(fixture, 0).memory_bytes >= bytes);

    table->fails = 0;
    fixture->account.wait_at = 0;
    fixture->now_ns += SECOND;
    for (int i = 0; table->commit_count == 0; i++) {
        assert_true(i < 100);
        weir_writebuf_poll(fixture->set, fixture->now_ns);
        weir_region_poll(&fixture->region);
    }
    assert_int_equal(buffer_of(fixture, 0).loaded_bytes, 2 * 64 * KIB);
    assert_true(weir_writebuf_spill(fixture->set, 1) > 0);
    assert_int_equal(buffer_of(fixture, 0).memory_bytes, 0);
}

static void test_what_stands_before_fetched_blocks_may_spill(void **state)
{
    struct fixture *fixture = *state;
    struct target_table *table = &fixture->target.tables[0];

    spill_between_fetched(fixture, 60 * KIB);
    table->fails = -EIO;
    settle(fixture);
    assert_int_equal(stats_of(fixture).failed_count, 2);
    assert_int_equal(buffer_of(fixture, 0).loaded_bytes, 0);
    table->fails = 0;
    fixture->now_ns = buffer_of(fixture, 0).retry_ns;
    settle(fixture);
    assert_true(target_is_equal(&fixture->target, 0));
}

/* What was fetched gives its memory up to a block that comes before it. */
static void test_the_first_block_has_its_memory(void **state)
{
    struct fixture *fixture = *state;

    spill_between_fetched(fixture, 100 * 1000 - 4);
    settle(fixture);
    assert_int_equal(stats_of(fixture).failed_count, 1);
    assert_true(target_is_equal(&fixture->target, 0));
}

/* Nothing of the set is in memory, and the account admits nothing: records go in one by one. */
static void test_an_append_has_a_block(void **state)
{
    struct fixture *fixture = *state;
    uint64_t forced_bytes;

    make(fixture, (struct weir_writebuf_config){.region = &fixture->region});
    fixture->region.puts_are_cold = true;
    fixture->account.wait_at = 0;
    fixture->account.hard_at = 0;
    forced_bytes = stats_of(fixture).metadata_bytes;
    for (uint32_t i = 0; i < 2000; i++)
        changes(fixture, i / 16 % TABLES, WEIR_WRITEBUF_UPDATE, 1, i % 100 == 0 ? 100000 : 1000);
    weir_writebuf_audit(fixture->set);
    assert_in_range(stats_of(fixture).memory_bytes, 1, (256 + 4) * KIB);
    assert_true(stats_of(fixture).spilled_bytes > 3 * MIB);
    /* Of the account only tables. */
    assert_int_equal(stats_of(fixture).charged_bytes, stats_of(fixture).working_bytes);
    assert_true(stats_of(fixture).metadata_bytes - forced_bytes < 256 * KIB);

    /* What is lent is no memory that comes back, and the working set has it again. */
    assert_int_equal(weir_writebuf_spill(fixture->set, UINT64_MAX), 0);
    assert_int_equal(stats_of(fixture).memory_bytes, 0);
    weir_writebuf_audit(fixture->set);
    for (uint64_t id = 0; id < TABLES; id++) {
        changes(fixture, id, WEIR_WRITEBUF_UPDATE, 1, 1000);
        flush(fixture, id);
        assert_true(target_is_equal(&fixture->target, id));
    }
    assert_int_equal(stats_of(fixture).held_bytes, 0);
}

/* Without a region it is as much, until that is flushed; and a flush has its window. */
static void test_an_append_has_a_block_without_a_region(void **state)
{
    struct fixture *fixture = *state;

    make(fixture, (struct weir_writebuf_config){0});
    fixture->account.wait_at = 0;
    for (uint32_t round = 0; round < 20; round++) {
        uint32_t count = 0;

        while (change(fixture, 0, WEIR_WRITEBUF_UPDATE, count % KEYS, 1000) == 0)
            count++;
        assert_in_range(count, 180, 270);
        assert_int_equal(stats_of(fixture).charged_bytes, stats_of(fixture).working_bytes);
        weir_writebuf_audit(fixture->set);
        flush(fixture, 0);
        assert_true(target_is_equal(&fixture->target, 0));
    }

    /* A working set that is no larger than flushes need has none to lend. */
    weir_writebuf_destroy(fixture->set);
    fixture->account.wait_at = UINT64_MAX;
    make(fixture, (struct weir_writebuf_config){.record_bytes_max = 60 * KIB,
                                                .working_bytes = (64 + 64) * KIB,
                                                .flushes_max = 1});
    fixture->account.wait_at = 0;
    assert_int_equal(change(fixture, 0, WEIR_WRITEBUF_UPDATE, 0, 1000), -EAGAIN);
}

static void test_memory_goes_back(void **state)
{
    struct fixture *fixture = *state;
    uint64_t charged_bytes;
    uint64_t mapped_bytes;

    make(fixture, (struct weir_writebuf_config){0});
    charged_bytes = fixture->account.charged_bytes;
    for (uint64_t id = 0; id < TABLES; id++)
        changes(fixture, id, WEIR_WRITEBUF_UPDATE, 10000, 500);
    mapped_bytes = stats_of(fixture).mapped_bytes;
    assert_true(mapped_bytes > TABLES * 4 * MIB);
    assert_int_equal(fixture->account.charged_bytes,
                     stats_of(fixture).charged_bytes + stats_of(fixture).metadata_bytes);
    assert_true(stats_of(fixture).memory_bytes > TABLES * 4 * MIB);
    for (uint64_t id = 0; id < TABLES; id++)
        flush(fixture, id);
    assert_int_equal(stats_of(fixture).memory_bytes, 0);
    assert_int_equal(stats_of(fixture).charged_bytes, stats_of(fixture).working_bytes);
    assert_true(fixture->account.charged_bytes <= charged_bytes + KIB);
    assert_true(stats_of(fixture).mapped_bytes <= 2 * MIB);
    assert_int_equal(stats_of(fixture).held_bytes, 0);
}

/* What the governor asks for is flushed: the largest first, and no more than is asked for. */
static void test_a_flush_verdict_flushes_the_largest(void **state)
{
    struct fixture *fixture = *state;

    make(fixture, (struct weir_writebuf_config){0});
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 1000, 100);
    changes(fixture, 1, WEIR_WRITEBUF_UPDATE, 9000, 100);
    changes(fixture, 2, WEIR_WRITEBUF_UPDATE, 2000, 100);
    fixture->account.flush_next = true;
    fixture->account.flush_bytes = 500 * KIB;
    changes(fixture, 2, WEIR_WRITEBUF_UPDATE, 2000, 100);
    weir_writebuf_poll(fixture->set, fixture->now_ns);
    fixture->account.flush_bytes = 0;
    settle(fixture);
    assert_true(target_is_equal(&fixture->target, 1));
    assert_int_equal(buffer_of(fixture, 0).record_count, 1000);
    assert_int_equal(buffer_of(fixture, 2).record_count, 4000);
}

/* Nobody appends: the account is asked for memory that somebody else needs. */
static void test_an_asked_account_flushes(void **state)
{
    struct fixture *fixture = *state;

    make(fixture, (struct weir_writebuf_config){.flushes_max = 1});
    assert_int_equal(fixture->account.reclaimer_count, 1);
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 1000, 100);
    changes(fixture, 1, WEIR_WRITEBUF_UPDATE, 9000, 100);
    assert_int_equal(weir_writebuf_poll(fixture->set, fixture->now_ns), 0);

    /* How fast the sink is nobody knows: no promise, but it begins. */
    assert_int_equal(double_account_ask(&fixture->account, "writebuf flush", 100 * KIB), 0);
    assert_int_equal(buffer_of(fixture, 1).record_count, 9000);
    assert_int_equal(weir_writebuf_due_ns(fixture->set), fixture->now_ns);
    settle(fixture);
    assert_int_equal(buffer_of(fixture, 1).record_count, 0);
    assert_int_equal(buffer_of(fixture, 0).record_count, 1000);
    weir_writebuf_audit(fixture->set);
}

/* A promise is counted on: nobody else is asked meanwhile. */
static uint64_t promise_flushes(struct fixture *fixture, uint64_t bytes)
{
    /* Not kept at once: the double would mind. */
    return fixture->account.reclaimers[0]->reclaim(fixture->account.reclaimers[0], bytes);
}

static void test_a_flush_is_promised_after_a_fast_one(void **state)
{
    struct fixture *fixture = *state;
    uint64_t before;

    make(fixture, (struct weir_writebuf_config){.flushes_max = 1});
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 1000, 100);
    flush(fixture, 0); /* in no time */
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 1000, 100);
    assert_int_equal(promise_flushes(fixture, 100 * MIB), 0); /* more than there is */
    before = fixture->account.returned_bytes;
    assert_int_equal(promise_flushes(fixture, 64 * KIB), 64 * KIB);
    assert_int_equal(promise_flushes(fixture, 64 * KIB), 0); /* without a batch in between */
    settle(fixture);
    assert_true(fixture->account.returned_bytes - before >= 64 * KIB);

    /* A sink that takes its time: what has to wait for several such batches is not promised. */
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 1000, 100);
    fixture->target.tables[0].wait_ppm = 1000000;
    weir_writebuf_flush(fixture->buffers[0], NULL, UINT64_MAX);
    weir_writebuf_poll(fixture->set, fixture->now_ns);
    fixture->now_ns += SECOND / 50;
    fixture->target.tables[0].wait_ppm = 0;
    settle(fixture);
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 9000, 100);
    assert_int_equal(promise_flushes(fixture, 400 * KIB), 0);
    assert_int_equal(promise_flushes(fixture, 64 * KIB), 64 * KIB);
    settle(fixture);

    /* What is held up is not promised. */
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 1000, 100);
    weir_writebuf_pause(fixture->buffers[0]);
    assert_int_equal(promise_flushes(fixture, 4 * KIB), 0);
    weir_writebuf_resume(fixture->buffers[0]);
}

static void test_an_asked_account_spills(void **state)
{
    struct fixture *fixture = *state;
    struct weir_writebuf_stats stats;

    make(fixture, (struct weir_writebuf_config){.region = &fixture->region, .flushes_max = 1});
    assert_int_equal(fixture->account.reclaimer_count, 2);
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 20000, 100);
    changes(fixture, 1, WEIR_WRITEBUF_UPDATE, 3000, 100);
    weir_writebuf_pause(fixture->buffers[1]);

    /* Who is held up first; what came was promised. */
    uint64_t held_up = buffer_of(fixture, 1).memory_bytes;
    assert_in_range(double_account_ask(&fixture->account, "writebuf spill", 64 * KIB), 64 * KIB,
                    128 * KIB);
    assert_int_equal(buffer_of(fixture, 0).spilled_bytes, 0);
    assert_true(buffer_of(fixture, 1).memory_bytes < held_up);
    assert_in_range(double_account_ask(&fixture->account, "writebuf spill", UINT64_MAX), MIB,
                    MIB + 64 * KIB);

    /* What the region does not take is not promised. */
    fixture->region.put_result = -ENOSPC;
    assert_int_equal(double_account_ask(&fixture->account, "writebuf spill", UINT64_MAX), 0);
    fixture->region.put_result = 0;
    while (double_account_ask(&fixture->account, "writebuf spill", UINT64_MAX) > 0)
        weir_writebuf_audit(fixture->set);
    stats = stats_of(fixture);
    assert_int_equal(stats.memory_bytes, 0);
    weir_writebuf_resume(fixture->buffers[1]);
    flush(fixture, 0);
    flush(fixture, 1);
    assert_true(target_is_equal(&fixture->target, 0));
    assert_true(target_is_equal(&fixture->target, 1));
}

static struct fixture *sinking;

/* As a sink that polls the account does. */
static int put_that_asks(void *context, void *batch, const struct weir_writebuf_record *record)
{
    struct weir_account *account = &sinking->account;

    if (sinking->ready_count++ % 100 == 0) {
        assert_int_equal(double_account_ask(account, "writebuf spill", UINT64_MAX), 0);
        assert_int_equal(double_account_ask(account, "writebuf flush", 100 * MIB), 0);
    }
    return target_put(context, batch, record);
}

static void test_asked_in_the_sink(void **state)
{
    struct fixture *fixture = *state;
    struct weir_writebuf_sink sink = target_sink(&fixture->target);

    sinking = fixture;
    sink.put = put_that_asks;
    make(fixture, (struct weir_writebuf_config){.region = &fixture->region, .sink = sink});
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 3000, 100);
    changes(fixture, 1, WEIR_WRITEBUF_UPDATE, 3000, 100);
    flush(fixture, 0);
    settle(fixture);
    assert_true(fixture->ready_count >= 6000);
    assert_true(target_is_equal(&fixture->target, 0));
    assert_true(target_is_equal(&fixture->target, 1)); /* what was asked for, too */

    /* Both are gone with the set. */
    weir_writebuf_destroy(fixture->set);
    fixture->set = NULL;
    assert_int_equal(fixture->account.reclaimer_count, 0);
}

static void test_held_bytes_have_a_limit(void **state)
{
    struct fixture *fixture = *state;
    int r = 0;

    make(fixture, (struct weir_writebuf_config){
                      .region = &fixture->region,
                      .held_bytes_max = MIB,
                  });
    fixture->target.tables[0].fails = -EIO;
    for (int i = 0; r == 0; i++) {
        assert_true(i < 20000);
        r = change(fixture, 0, WEIR_WRITEBUF_UPDATE, (uint32_t)i % KEYS, 100);
    }
    assert_int_equal(r, -EDQUOT);
    assert_true(buffer_of(fixture, 0).held_bytes <= MIB);
    assert_int_equal(change(fixture, 1, WEIR_WRITEBUF_UPDATE, 1, 100), 0);
    fixture->target.tables[0].fails = 0;
    settle(fixture);
    assert_int_equal(change(fixture, 0, WEIR_WRITEBUF_UPDATE, 1, 100), 0);
}

/* Paused and failing buffers hold nobody up. */
static void test_the_backlog_leaves_out_who_is_held_up(void **state)
{
    struct fixture *fixture = *state;
    int r = 0;

    make(fixture, (struct weir_writebuf_config){
                      .region = &fixture->region,
                      .backlog_bytes_max = MIB,
                  });
    weir_writebuf_pause(fixture->buffers[0]);
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 20000, 100);
    assert_int_equal(stats_of(fixture).backlog_bytes, 0);
    fixture->target.tables[1].fails = -EIO;
    changes(fixture, 1, WEIR_WRITEBUF_UPDATE, 1000, 100);
    flush(fixture, 1);
    changes(fixture, 1, WEIR_WRITEBUF_UPDATE, 20000, 100);
    assert_int_equal(stats_of(fixture).backlog_bytes, 0);

    changes(fixture, 4, WEIR_WRITEBUF_UPDATE, 400, 100);
    for (int i = 0; r == 0; i++) {
        assert_true(i < 20000);
        r = change(fixture, 2 + (uint64_t)i % 2, WEIR_WRITEBUF_UPDATE, (uint32_t)i % KEYS, 100);
    }
    assert_int_equal(r, -EAGAIN);
    assert_true(stats_of(fixture).backlog_bytes <= MIB);
    assert_int_equal(change(fixture, 0, WEIR_WRITEBUF_UPDATE, 1, 100), 0);
    /* A little less is not enough. */
    weir_writebuf_clear(fixture->buffers[4]);
    assert_int_equal(weir_writebuf_ensure(fixture->set, 4, &fixture->buffers[4]), 0);
    assert_true(stats_of(fixture).backlog_bytes < MIB - 20 * KIB);
    assert_int_equal(change(fixture, 2, WEIR_WRITEBUF_UPDATE, 1, 100), -EAGAIN);
    settle(fixture);
    assert_true(stats_of(fixture).backlog_bytes <= MIB / 8 * 7);
    assert_int_equal(change(fixture, 2, WEIR_WRITEBUF_UPDATE, 1, 100), 0);
    assert_false(buffer_of(fixture, 0).flushing);
    assert_int_equal(fixture->target.tables[0].begin_count, 0);
    weir_writebuf_resume(fixture->buffers[0]);
    assert_true(stats_of(fixture).backlog_bytes > MIB);
    flush(fixture, 0);
    assert_true(target_is_equal(&fixture->target, 0));
}

static void test_held_up_buffers_spill_first(void **state)
{
    struct fixture *fixture = *state;

    make(fixture, (struct weir_writebuf_config){.region = &fixture->region});
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 2000, 100);
    changes(fixture, 1, WEIR_WRITEBUF_UPDATE, 9000, 100);
    weir_writebuf_pause(fixture->buffers[0]);
    weir_writebuf_spill(fixture->set, 128 * KIB);
    assert_true(buffer_of(fixture, 0).spilled_bytes >= 120 * KIB);
    assert_int_equal(buffer_of(fixture, 1).spilled_bytes, 0);
    weir_writebuf_spill(fixture->set, MIB / 2);
    assert_true(buffer_of(fixture, 1).spilled_bytes > 0);
}

/* ---- The gate --------------------------------------------------------------------- */

static void test_few_flush_at_once_in_turn(void **state)
{
    struct fixture *fixture = *state;

    make(fixture, (struct weir_writebuf_config){.flushes_max = 2});
    for (uint64_t id = 0; id < TABLES; id++) {
        fixture->target.tables[id].fails = -EAGAIN;
        changes(fixture, id, WEIR_WRITEBUF_UPDATE, 10, 10);
        weir_writebuf_flush(fixture->buffers[id], NULL, UINT64_MAX);
        weir_writebuf_flush(fixture->buffers[id], NULL, UINT64_MAX);
    }
    settle(fixture);
    for (uint64_t id = 0; id < TABLES; id++) {
        assert_int_equal(stats_of(fixture).flushing_count, id < TABLES - 1 ? 2 : 1);
        assert_true(buffer_of(fixture, id).flushing);
        fixture->target.tables[id].fails = 0;
        settle(fixture);
        assert_true(target_is_equal(&fixture->target, id));
    }
    assert_int_equal(fixture->target.open_count_max, 2);
}

/* One that times out behind others, or in front, leaves nothing behind. */
static void test_a_ticket_that_times_out_loses_no_turn(void **state)
{
    struct fixture *fixture = *state;
    struct told told[TABLES];

    make(fixture, (struct weir_writebuf_config){.flushes_max = 1});
    for (uint64_t id = 0; id < TABLES; id++) {
        told[id] = (struct told){.ticket.done = on_done};
        changes(fixture, id, WEIR_WRITEBUF_UPDATE, 10, 10);
        fixture->target.tables[id].fails = -EAGAIN;
        /* Later ones have shorter times. */
        weir_writebuf_flush(fixture->buffers[id], &told[id].ticket,
                            id % 2 == 0 ? UINT64_MAX : fixture->now_ns + (10 - id) * SECOND);
    }
    settle(fixture);
    fixture->now_ns += 10 * SECOND;
    settle(fixture);
    for (uint64_t id = 0; id < TABLES; id++) {
        assert_int_equal(told[id].count, id % 2);
        assert_int_equal(told[id].result, id % 2 == 0 ? 0 : -ETIMEDOUT);
        assert_false(id % 2 == 1 && buffer_of(fixture, id).queued);
        fixture->target.tables[id].fails = 0;
    }
    assert_int_equal(stats_of(fixture).timeout_count, TABLES / 2);
    settle(fixture);
    for (uint64_t id = 0; id < TABLES; id++) {
        assert_int_equal(told[id].count, 1);
        assert_int_equal(buffer_of(fixture, id).record_count, id % 2 == 0 ? 0 : 10);
    }
    for (uint64_t id = 1; id < TABLES; id += 2) {
        told[id] = (struct told){.ticket.done = on_done};
        weir_writebuf_flush(fixture->buffers[id], &told[id].ticket, fixture->now_ns + 1);
    }
    settle(fixture);
    for (uint64_t id = 0; id < TABLES; id++) {
        assert_int_equal(told[id].count, 1);
        assert_int_equal(told[id].result, 0);
        assert_true(target_is_equal(&fixture->target, id));
    }
    assert_true(stats_of(fixture).gate_wait_ns_max >= 10 * SECOND);
}

static void test_a_ticket_covers_what_came_before_it(void **state)
{
    struct fixture *fixture = *state;
    struct told early = {.ticket.done = on_done};
    struct told late = {.ticket.done = on_done};
    struct told never = {.ticket.done = on_done};

    make(fixture, (struct weir_writebuf_config){0});
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 10, 10);
    fixture->target.tables[0].fails = -EAGAIN;
    weir_writebuf_flush(fixture->buffers[0], &early.ticket, UINT64_MAX);
    settle(fixture);
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 10, 10);
    weir_writebuf_flush(fixture->buffers[0], &late.ticket, UINT64_MAX);
    weir_writebuf_flush(fixture->buffers[0], &never.ticket, UINT64_MAX);
    assert_int_equal(weir_writebuf_cancel(fixture->buffers[0], &never.ticket), 0);
    assert_int_equal(weir_writebuf_cancel(fixture->buffers[0], &never.ticket), -ENOENT);
    fixture->target.tables[0].fails = 0;
    for (int i = 0; early.count == 0; i++) {
        assert_true(i < 100);
        weir_writebuf_poll(fixture->set, fixture->now_ns);
    }
    assert_int_equal(fixture->target.tables[0].position, 10);
    assert_int_equal(late.count, 0);
    settle(fixture);
    assert_int_equal(late.count, 1);
    assert_int_equal(never.count, 0);
    assert_true(target_is_equal(&fixture->target, 0));
    /* Nothing to flush: done with the next poll, not from the call. */
    early.count = 0;
    weir_writebuf_flush(fixture->buffers[0], &early.ticket, 0);
    assert_int_equal(early.count, 0);
    settle(fixture);
    assert_int_equal(early.count, 1);
    assert_int_equal(early.result, 0);
}

/* A flush that hangs is not the one that a later ticket waits for. */
static void test_a_ticket_times_out_behind_a_flush(void **state)
{
    struct fixture *fixture = *state;
    struct told early = {.ticket.done = on_done};
    struct told late = {.ticket.done = on_done};

    make(fixture, (struct weir_writebuf_config){.stall_ns_max = UINT64_MAX});
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 10, 10);
    fixture->target.tables[0].fails = -EAGAIN;
    weir_writebuf_flush(fixture->buffers[0], &early.ticket, fixture->now_ns + SECOND);
    settle(fixture);
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 10, 10);
    weir_writebuf_flush(fixture->buffers[0], &late.ticket, fixture->now_ns + SECOND);
    settle(fixture);
    assert_int_equal(weir_writebuf_due_ns(fixture->set), fixture->now_ns + SECOND);
    fixture->now_ns += SECOND;
    settle(fixture);
    assert_int_equal(late.count, 1);
    assert_int_equal(late.result, -ETIMEDOUT);
    assert_int_equal(early.count, 0); /* its flush has begun */
    assert_true(weir_writebuf_due_ns(fixture->set) == UINT64_MAX);
    fixture->target.tables[0].fails = 0;
    settle(fixture);
    assert_int_equal(early.count, 1);
    assert_int_equal(early.result, 0);
    assert_int_equal(buffer_of(fixture, 0).record_count, 10);
}

static void on_done_again(struct weir_writebuf_ticket *ticket, int result)
{
    struct told *told = (struct told *)(void *)ticket;

    on_done(ticket, result);
    assert_true(told->count < 100);
    weir_writebuf_flush(told->buffer, ticket, UINT64_MAX);
}

/* One that asks again from its call, of a buffer that is empty, is told by the next poll. */
static void test_a_ticket_that_asks_again_ends_the_poll(void **state)
{
    struct fixture *fixture = *state;
    struct told told = {.ticket.done = on_done_again};

    make(fixture, (struct weir_writebuf_config){0});
    told.buffer = fixture->buffers[0];
    weir_writebuf_flush(told.buffer, &told.ticket, UINT64_MAX);
    for (uint32_t i = 1; i <= 10; i++) {
        assert_int_equal(weir_writebuf_poll(fixture->set, fixture->now_ns), 1);
        assert_int_equal(told.count, i);
        assert_int_equal(told.result, 0);
    }
    assert_int_equal(weir_writebuf_cancel(told.buffer, &told.ticket), 0);
    assert_int_equal(weir_writebuf_poll(fixture->set, fixture->now_ns), 0);
}

/* ---- Triggers --------------------------------------------------------------------- */

static void test_bytes_and_rows_trigger(void **state)
{
    struct fixture *fixture = *state;

    make(fixture, (struct weir_writebuf_config){.trigger_rows = 100, .trigger_bytes = 50 * KIB});
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 99, 10);
    settle(fixture);
    assert_int_equal(fixture->target.tables[0].begin_count, 0);
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 1, 10);
    settle(fixture);
    assert_true(target_is_equal(&fixture->target, 0));
    changes(fixture, 1, WEIR_WRITEBUF_UPDATE, 49, 1004);
    settle(fixture);
    assert_int_equal(fixture->target.tables[1].begin_count, 0);
    changes(fixture, 1, WEIR_WRITEBUF_UPDATE, 1, 1004);
    settle(fixture);
    assert_true(target_is_equal(&fixture->target, 1));
}

static void test_age_triggers(void **state)
{
    struct fixture *fixture = *state;

    make(fixture, (struct weir_writebuf_config){.trigger_age_ns = 5 * SECOND});
    /* What came before the first poll is not as old as the clock. */
    fixture->now_ns = 1000 * SECOND;
    changes(fixture, 1, WEIR_WRITEBUF_UPDATE, 3, 10);
    settle(fixture);
    assert_int_equal(fixture->target.tables[1].begin_count, 0);
    weir_writebuf_clear(fixture->buffers[1]);
    assert_int_equal(weir_writebuf_ensure(fixture->set, 1, &fixture->buffers[1]), 0);
    fixture->now_ns += 5 * SECOND;
    settle(fixture);
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 3, 10);
    assert_int_equal(weir_writebuf_due_ns(fixture->set), fixture->now_ns + 5 * SECOND);
    fixture->now_ns += 5 * SECOND - 1;
    settle(fixture);
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 3, 10);
    settle(fixture);
    assert_int_equal(fixture->target.tables[0].begin_count, 0);
    fixture->now_ns += 1;
    settle(fixture);
    assert_true(target_is_equal(&fixture->target, 0));
    assert_true(weir_writebuf_due_ns(fixture->set) > fixture->now_ns + 5 * SECOND);
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 3, 10);
    assert_int_equal(weir_writebuf_due_ns(fixture->set), fixture->now_ns + 5 * SECOND);
}

static void test_quiet_times_replay_what_was_spilled(void **state)
{
    struct fixture *fixture = *state;

    make(fixture,
         (struct weir_writebuf_config){.region = &fixture->region, .quiet_ns = SECOND / 10});
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 2000, 100);
    changes(fixture, 1, WEIR_WRITEBUF_UPDATE, 4000, 100);
    changes(fixture, 2, WEIR_WRITEBUF_UPDATE, 5, 100);
    weir_writebuf_spill(fixture->set, 500 * KIB);
    settle(fixture);
    /* As long as somebody appends it is not quiet. */
    for (int i = 0; i < 5; i++) {
        fixture->now_ns += SECOND / 10 - 1;
        changes(fixture, 2, WEIR_WRITEBUF_UPDATE, 1, 100);
        settle(fixture);
    }
    assert_int_equal(fixture->target.tables[1].begin_count, 0);
    assert_true(weir_writebuf_due_ns(fixture->set) <= fixture->now_ns + SECOND / 10);
    fixture->now_ns += SECOND / 10;
    settle(fixture);
    assert_int_equal(stats_of(fixture).spilled_bytes, 0);
    assert_int_equal(fixture->region.live_count, 0);
    assert_true(stats_of(fixture).replay_count >= 1);
    assert_true(fixture->target.tables[1].position > 2000);
    /* What is in memory only waits for its own trigger. */
    assert_true(buffer_of(fixture, 0).record_count > 0);
    assert_true(buffer_of(fixture, 1).record_count > 0);
    assert_int_equal(fixture->target.tables[2].begin_count, 0);
    for (uint64_t id = 0; id < 3; id++) {
        flush(fixture, id);
        assert_true(target_is_equal(&fixture->target, id));
    }
}

/* ---- The region fails ------------------------------------------------------------- */

static void test_a_failed_fetch_is_tried_again(void **state)
{
    struct fixture *fixture = *state;

    make(fixture, (struct weir_writebuf_config){.region = &fixture->region});
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 3000, 100);
    fixture->region.puts_are_cold = true;
    fixture->region.forgets = true;
    weir_writebuf_spill(fixture->set, UINT64_MAX);
    fixture->region.fetch_result = -EIO;
    flush(fixture, 0);
    assert_int_equal(buffer_of(fixture, 0).last_error, -EIO);
    assert_int_equal(buffer_of(fixture, 0).record_count, 3000);
    assert_true(stats_of(fixture).failed_fetch_count > 0);
    assert_int_equal(fixture->target.tables[0].commit_count, 0);
    fixture->region.fetch_result = 0;
    fixture->now_ns += SECOND;
    settle(fixture);
    assert_true(target_is_equal(&fixture->target, 0));
}

static void test_damaged_bytes_are_not_handed_on(void **state)
{
    struct fixture *fixture = *state;

    make(fixture, (struct weir_writebuf_config){.region = &fixture->region});
    changes(fixture, 0, WEIR_WRITEBUF_UPDATE, 100, 100);
    changes(fixture, 1, WEIR_WRITEBUF_INSERT, 100, 100);
    weir_writebuf_spill(fixture->set, UINT64_MAX);
    for (uint32_t i = 0; i < 2; i++)
        fixture->region.slots[i].data[8] ^= 0x70;
    flush(fixture, 0);
    flush(fixture, 1);
    for (uint64_t id = 0; id < 2; id++) {
        assert_int_equal(buffer_of(fixture, id).last_error, -EBADMSG);
        assert_int_equal(fixture->target.tables[id].commit_count, 0);
    }
    for (uint32_t i = 0; i < 2; i++)
        fixture->region.slots[i].data[8] ^= 0x70;
    fixture->now_ns += SECOND;
    settle(fixture);
    assert_true(target_is_equal(&fixture->target, 0));
    assert_true(target_is_equal(&fixture->target, 1));
}

/* ---- The parts --------------------------------------------------------------- */

static uint32_t pages_of(const struct weir__piece *piece)
{
    unsigned char pages[256];
    uint32_t count = 0;

    assert_true(piece->bytes / 4096 <= sizeof(pages));
    assert_int_equal(mincore(piece->data, piece->bytes, pages), 0);
    for (uint64_t i = 0; i < piece->bytes / 4096; i++)
        count += pages[i] & 1;
    return count;
}

static void test_pages_of_a_free_piece_leave(void **state)
{
    struct weir__heap heap = {0};
    struct weir__pieces arena;
    struct weir__piece pieces[40] = {0};
    struct weir__piece given;

    (void)state;
    weir__pieces_init(&arena, &heap);
    for (int i = 0; i < 40; i++) {
        assert_int_equal(weir__pieces_take(&arena, i == 7 ? 100000 : 1, &pieces[i]), 0);
        assert_int_equal(pages_of(&pieces[i]), 0);
        memset(pieces[i].data, i, 5000);
        assert_int_equal(pages_of(&pieces[i]), 2);
    }
    given = pieces[3];
    weir__pieces_give(&arena, &pieces[3]);
    assert_null(pieces[3].data);
    assert_int_equal(pages_of(&given), 0);
    assert_int_equal(pages_of(&pieces[4]), 2);
    assert_int_equal(given.data[4999], 0);
    assert_int_equal(weir__pieces_take(&arena, 65536, &pieces[3]), 0);
    assert_true(arena.mapped_bytes >= 4 * MIB);
    for (int i = 0; i < 40; i++)
        weir__pieces_give(&arena, &pieces[i]);
    assert_true(arena.mapped_bytes <= 2 * MIB);
    weir__pieces_deinit(&arena);
    assert_int_equal(arena.mapped_bytes, 0);
    assert_int_equal(heap.bytes, 0);
}

static void test_objects_come_from_pieces(void **state)
{
    struct weir__heap heap = {0};
    struct weir__pieces arena;
    struct weir__pool pool;
    static uint64_t *objects[2000];
    uint64_t random = 5;

    (void)state;
    weir__pieces_init(&arena, &heap);
    weir__pool_init(&pool, &arena, &heap, 200);
    for (int i = 0; i < 20000; i++) {
        uint64_t **object = &objects[weir__random_below(&random, 2000)];

        if (*object == NULL) {
            *object = weir__pool_take(&pool);
            assert_non_null(*object);
            for (int k = 0; k < 25; k++) {
                assert_int_equal((*object)[k], 0);
                (*object)[k] = (uint64_t)(uintptr_t)object;
            }
            continue;
        }
        for (int k = 0; k < 25; k++)
            assert_int_equal((*object)[k], (uint64_t)(uintptr_t)object);
        weir__pool_give(&pool, *object);
        *object = NULL;
    }
    assert_true(pool.bytes >= 3 * 64 * KIB && pool.bytes <= 8 * 64 * KIB);
    for (int i = 0; i < 2000; i++)
        weir__pool_give(&pool, objects[i]);
    assert_int_equal(pool.bytes, 0);
    weir__pieces_deinit(&arena);
    assert_int_equal(heap.bytes, 0);
}

static void test_a_record_comes_back(void **state)
{
    char data[256];
    struct weir_writebuf_record record = {
        .sequence = UINT64_MAX,
        .key = "key",
        .value = "value",
        .key_bytes = 3,
        .value_bytes = 5,
        .operation = WEIR_WRITEBUF_BARRIER,
    };
    struct weir_writebuf_record other;
    uint64_t bytes;

    (void)state;
    weir__record_encode(data, &record);
    assert_int_equal(weir__record_bytes(&record), 24);
    for (uint64_t i = 0; i < 24; i++)
        assert_int_equal(weir__record_decode(data, i, &other, &bytes), -EBADMSG);
    assert_int_equal(weir__record_decode(data, 24, &other, &bytes), 0);
    assert_int_equal(bytes, 24);
    assert_true(other.sequence == UINT64_MAX);
    assert_int_equal(other.operation, WEIR_WRITEBUF_BARRIER);
    assert_memory_equal(other.key, "key", 3);
    assert_memory_equal(other.value, "value", 5);
    data[14] = 4;
    assert_int_equal(weir__record_decode(data, 24, &other, &bytes), -EBADMSG);
}

static void test_a_full_table_says_so(void **state)
{
    static _Alignas(16) char memory[1024];
    static char records[64][32];
    struct weir__keys compact;
    uint32_t count = 0;

    (void)state;
    assert_int_equal(weir__keys_bytes(48), sizeof(memory));
    assert_int_equal(weir__keys_bytes(49), 2 * sizeof(memory));
    assert_int_equal(weir__keys_bytes(3072), 65536);
    weir__keys_init(&compact, memory, sizeof(memory), 1);
    for (uint32_t i = 0; i < 64; i++) {
        struct weir_writebuf_record record = {
            .sequence = i + 1, .key = &i, .key_bytes = 4, .operation = WEIR_WRITEBUF_INSERT};

        weir__record_encode(records[i], &record);
        if (!weir__keys_add(&compact, records[i], &record))
            break;
        count++;
        assert_ptr_equal(weir__keys_find(&compact, &record)->last, records[i]);
    }
    assert_int_equal(count, 48);
    /* A key that is there has its place. */
    struct weir_writebuf_record record = {
        .sequence = 64, .key = &(uint32_t){7}, .key_bytes = 4, .operation = WEIR_WRITEBUF_UPDATE};
    weir__record_encode(records[63], &record);
    assert_true(weir__keys_add(&compact, records[63], &record));
    assert_ptr_equal(weir__keys_find(&compact, &record)->last, records[63]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"buffers are made when needed", test_buffers_are_made_when_needed, begin, end, NULL},
        {"what is appended arrives", test_what_is_appended_arrives, begin, end, NULL},
        {"clear drops all", test_clear_drops_all, begin, end, NULL},
        {"a config is checked, the working set is charged", test_config_is_checked, begin, end,
         NULL},
        {"a refused append changes nothing", test_a_refused_append_changes_nothing, begin, end,
         NULL},
        {"records of any size", test_records_of_any_size, begin, end, NULL},
        {"the last change of a key wins", test_the_last_change_of_a_key_wins, begin, end, NULL},
        {"inserted keys are told apart", test_inserted_keys_are_told_apart, begin, end, NULL},
        {"inserts only need no table", test_inserts_only_need_no_table, begin, end, NULL},
        {"barriers keep order", test_barriers_keep_order, begin, end, NULL},
        {"a sink may not care for barriers", test_a_sink_may_not_care_for_barriers, begin, end,
         NULL},
        {"a failed flush keeps all", test_a_failed_flush_keeps_all, begin, end, NULL},
        {"back-off grows and ends", test_back_off_grows_and_ends, begin, end, NULL},
        {"back-off may have no end", test_back_off_may_have_no_end, begin, end, NULL},
        {"a failing buffer is alone", test_a_failing_buffer_is_alone, begin, end, NULL},
        {"a commit that lies doubles nothing", test_a_commit_that_lies_doubles_nothing, begin, end,
         NULL},
        {"a replayed stream is not doubled", test_a_replayed_stream_is_not_doubled, begin, end,
         NULL},
        {"a sink that stalls is given up", test_a_sink_that_stalls_is_given_up, begin, end, NULL},
        {"spill goes to the region in order", test_spill_goes_to_the_region_in_order, begin, end,
         NULL},
        {"a collecting buffer keeps its cap", test_a_collecting_buffer_keeps_its_cap, begin, end,
         NULL},
        {"without a region the cap refuses", test_without_a_region_the_cap_refuses, begin, end,
         NULL},
        {"ready has a pace", test_ready_has_a_pace, begin, end, NULL},
        {"wait is told and ends", test_wait_is_told_and_ends, begin, end, NULL},
        {"a flush needs no memory that is refused", test_a_flush_needs_no_memory_that_is_refused,
         begin, end, NULL},
        {"a flush keeps its cap", test_a_flush_keeps_its_cap, begin, end, NULL},
        {"a full table waits for what is fetched", test_a_full_table_waits_for_what_is_fetched,
         begin, end, NULL},
        {"what stands before fetched blocks may spill",
         test_what_stands_before_fetched_blocks_may_spill, begin, end, NULL},
        {"an append has a block that nobody refuses", test_an_append_has_a_block, begin, end, NULL},
        {"also without a region, until it is flushed", test_an_append_has_a_block_without_a_region,
         begin, end, NULL},
        {"the first block has its memory", test_the_first_block_has_its_memory, begin, end, NULL},
        {"memory goes back", test_memory_goes_back, begin, end, NULL},
        {"a flush verdict flushes the largest", test_a_flush_verdict_flushes_the_largest, begin,
         end, NULL},
        {"an account that is asked has flushes begun", test_an_asked_account_flushes, begin, end,
         NULL},
        {"flushes are promised where the sink is fast", test_a_flush_is_promised_after_a_fast_one,
         begin, end, NULL},
        {"an account that is asked gets what spills", test_an_asked_account_spills, begin, end,
         NULL},
        {"in the sink nothing spills", test_asked_in_the_sink, begin, end, NULL},
        {"held bytes have a limit", test_held_bytes_have_a_limit, begin, end, NULL},
        {"the backlog leaves out who is held up", test_the_backlog_leaves_out_who_is_held_up, begin,
         end, NULL},
        {"held-up buffers spill first", test_held_up_buffers_spill_first, begin, end, NULL},
        {"few flush at once, in turn", test_few_flush_at_once_in_turn, begin, end, NULL},
        {"a ticket that times out loses no turn", test_a_ticket_that_times_out_loses_no_turn, begin,
         end, NULL},
        {"a ticket covers what came before it", test_a_ticket_covers_what_came_before_it, begin,
         end, NULL},
        {"a ticket times out behind a flush", test_a_ticket_times_out_behind_a_flush, begin, end,
         NULL},
        {"a ticket that asks again ends the poll", test_a_ticket_that_asks_again_ends_the_poll,
         begin, end, NULL},
        {"bytes and rows trigger", test_bytes_and_rows_trigger, begin, end, NULL},
        {"age triggers", test_age_triggers, begin, end, NULL},
        {"quiet times replay what was spilled", test_quiet_times_replay_what_was_spilled, begin,
         end, NULL},
        {"a failed fetch is tried again", test_a_failed_fetch_is_tried_again, begin, end, NULL},
        {"damaged bytes are not handed on", test_damaged_bytes_are_not_handed_on, begin, end, NULL},
        {"pages of a free piece leave", test_pages_of_a_free_piece_leave, NULL, NULL, NULL},
        {"objects come from pieces", test_objects_come_from_pieces, NULL, NULL, NULL},
        {"a record comes back", test_a_record_comes_back, NULL, NULL, NULL},
        {"a full table says so", test_a_full_table_says_so, NULL, NULL, NULL},
    };

    return cmocka_run_group_tests_name("writebuf", tests, NULL, NULL);
}
