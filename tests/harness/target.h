/* SPDX-License-Identifier: MIT */
#ifndef WEIR_HARNESS_TARGET_H
#define WEIR_HARNESS_TARGET_H

/*
 * target - tables that a writebuf flushes into, and what they should be
 *
 *      target_append() --> weir_writebuf_append() --> ... --> the sink: rows
 *            `--> the plain replay: expected rows, and how they were at each barrier
 *
 * Keys are numbers below key_count, a value is kept as its hash. A batch is
 * staged and applied by commit, all or nothing. The first promise that a sink
 * could see broken stops the process: a key twice in a batch, a commit that goes
 * back, two batches of one table at once, a barrier that is not alone.
 */

#include <weir/writebuf.h>

#include "base/check.h"
#include "base/random.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define TARGET_ABSENT UINT64_C(0)

struct target_change {
    uint32_t key;
    uint64_t row; /* TARGET_ABSENT: removed */
};

struct target;

struct target_table {
    struct target *target;
    uint64_t *rows;     /* committed */
    uint64_t *expected; /* plain replay of what was appended */
    uint64_t position;
    uint64_t last_sequence; /* appended */
    uint64_t barrier_expected;
    uint64_t barrier_sum; /* of what the rows were at each barrier */
    uint64_t barrier_sum_expected;
    struct target_change *batch;
    size_t batch_count;
    size_t batch_room;
    uint32_t *batch_of; /* by key: the batch that last had it */
    uint32_t batch_number;
    bool is_open;
    bool has_updates; /* the batch is not of inserts only */
    bool has_barrier;

    /* The test's to set. */
    int fails;         /* what commit answers, until it is 0 again */
    uint32_t fail_ppm; /* of all calls: -EIO */
    uint32_t wait_ppm; /* of all calls: -EAGAIN */
    uint32_t lie_ppm;  /* of commits: done, and said not to be */

    /* The test's to read. */
    uint64_t begin_count;
    uint64_t commit_count;
    uint64_t abort_count;
    uint64_t put_count;
    uint64_t insert_count; /* of these */
    uint64_t remove_count;
    uint64_t barrier_count;
    uint64_t batch_count_max;
};

struct target {
    struct target_table *tables;
    uint64_t table_count;
    uint32_t key_count;
    uint64_t seed;
    uint64_t open_count;
    uint64_t open_count_max;
};

static inline uint64_t target_row(const void *value, size_t bytes)
{
    return XXH3_64bits(value, bytes) | 1;
}

static inline uint64_t target_sum(const struct target_table *table, const uint64_t *rows)
{
    return XXH3_64bits(rows, table->target->key_count * sizeof(*rows));
}

static inline void target_init(struct target *target, uint64_t table_count, uint32_t key_count,
                               uint64_t seed)
{
    *target = (struct target){.table_count = table_count, .key_count = key_count, .seed = seed};
    target->tables = calloc(table_count, sizeof(*target->tables));
    WEIR_CHECK(target->tables != NULL);
    for (uint64_t i = 0; i < table_count; i++) {
        struct target_table *table = &target->tables[i];

        table->target = target;
        table->rows = calloc(key_count, sizeof(*table->rows));
        table->expected = calloc(key_count, sizeof(*table->expected));
        table->batch_of = calloc(key_count, sizeof(*table->batch_of));
        WEIR_CHECK(table->rows != NULL && table->expected != NULL && table->batch_of != NULL);
    }
}

static inline void target_deinit(struct target *target)
{
    for (uint64_t i = 0; i < target->table_count; i++) {
        WEIR_CHECK(!target->tables[i].is_open);
        free(target->tables[i].rows);
        free(target->tables[i].expected);
        free(target->tables[i].batch_of);
        free(target->tables[i].batch);
    }
    free(target->tables);
}

/* ---- The sink --------------------------------------------------------------- */

static inline int target_chance(struct target_table *table)
{
    uint64_t chance = weir__random_below(&table->target->seed, 1000000);

    if (chance < table->fail_ppm)
        return -EIO;
    return chance < (uint64_t)table->fail_ppm + table->wait_ppm ? -EAGAIN : 0;
}

static inline int target_position(void *context, uint64_t id, uint64_t *ret_sequence)
{
    struct target *target = context;
    int r = target_chance(&target->tables[id]);

    if (r < 0)
        return r;
    *ret_sequence = target->tables[id].position;
    return 0;
}

static inline int target_begin(void *context, uint64_t id, void **ret_batch)
{
    struct target *target = context;
    struct target_table *table = &target->tables[id];
    int r = target_chance(table);

    WEIR_CHECK(id < target->table_count);
    WEIR_CHECK(!table->is_open);
    if (r < 0)
        return r;
    table->is_open = true;
    table->has_updates = false;
    table->has_barrier = false;
    table->batch_count = 0;
    table->batch_number++;
    table->begin_count++;
    target->open_count++;
    if (target->open_count > target->open_count_max)
        target->open_count_max = target->open_count;
    *ret_batch = table;
    return 0;
}

static inline void target_stage(struct target_table *table,
                                const struct weir_writebuf_record *record, uint64_t row)
{
    uint32_t key;

    WEIR_CHECK(record->key_bytes == sizeof(key));
    memcpy(&key, record->key, sizeof(key));
    WEIR_CHECK(key < table->target->key_count);
    WEIR_CHECK(record->sequence > table->position);
    WEIR_CHECK(!table->has_barrier);
    table->has_updates |= record->operation != WEIR_WRITEBUF_INSERT;
    if (table->batch_of[key] == table->batch_number)
        WEIR_CHECK(!table->has_updates);
    table->batch_of[key] = table->batch_number;
    if (table->batch_count == table->batch_room) {
        table->batch_room = table->batch_room * 2 + 64;
        table->batch = realloc(table->batch, table->batch_room * sizeof(*table->batch));
        WEIR_CHECK(table->batch != NULL);
    }
    table->batch[table->batch_count++] = (struct target_change){.key = key, .row = row};
    if (table->batch_count > table->batch_count_max)
        table->batch_count_max = table->batch_count;
}

static inline int target_put(void *context, void *batch, const struct weir_writebuf_record *record)
{
    struct target_table *table = batch;
    int r = target_chance(table);

    (void)context;
    WEIR_CHECK(table->is_open);
    if (r < 0)
        return r;
    target_stage(table, record, target_row(record->value, record->value_bytes));
    table->put_count++;
    table->insert_count += record->operation == WEIR_WRITEBUF_INSERT;
    return 0;
}

static inline int target_remove(void *context, void *batch,
                                const struct weir_writebuf_record *record)
{
    struct target_table *table = batch;
    int r = target_chance(table);

    (void)context;
    WEIR_CHECK(table->is_open);
    if (r < 0)
        return r;
    target_stage(table, record, TARGET_ABSENT);
    table->remove_count++;
    return 0;
}

static inline int target_barrier(void *context, void *batch,
                                 const struct weir_writebuf_record *record)
{
    struct target_table *table = batch;
    int r = target_chance(table);

    (void)context;
    WEIR_CHECK(table->is_open);
    WEIR_CHECK(record->operation == WEIR_WRITEBUF_BARRIER);
    WEIR_CHECK(record->sequence > table->position);
    if (r < 0)
        return r;
    WEIR_CHECK(table->batch_count == 0 && !table->has_barrier);
    table->has_barrier = true;
    return 0;
}

static inline void target_close(struct target_table *table)
{
    WEIR_CHECK(table->is_open);
    table->is_open = false;
    table->target->open_count--;
}

static inline void target_abort(void *context, void *batch)
{
    struct target_table *table = batch;

    (void)context;
    target_close(table);
    table->abort_count++;
}

static inline int target_commit(void *context, void *batch, uint64_t sequence)
{
    struct target_table *table = batch;
    int r = target_chance(table);

    (void)context;
    WEIR_CHECK(table->is_open);
    WEIR_CHECK(sequence > table->position);
    if (r == 0)
        r = table->fails;
    if (r < 0)
        return r;
    for (size_t i = 0; i < table->batch_count; i++)
        table->rows[table->batch[i].key] = table->batch[i].row;
    if (table->has_barrier) {
        table->barrier_count++;
        table->barrier_sum = weir__mix(table->barrier_sum ^ target_sum(table, table->rows));
    }
    table->position = sequence;
    table->batch_count = 0;
    table->has_barrier = false;
    table->commit_count++;
    if (weir__random_below(&table->target->seed, 1000000) < table->lie_ppm)
        return -EIO;
    target_close(table);
    return 0;
}

static inline struct weir_writebuf_sink target_sink(struct target *target)
{
    return (struct weir_writebuf_sink){
        .position = target_position,
        .begin = target_begin,
        .put = target_put,
        .remove = target_remove,
        .barrier = target_barrier,
        .commit = target_commit,
        .abort = target_abort,
        .context = target,
    };
}

/* ---- The plain replay --------------------------------------------------------- */

/* Append, and remember what it should lead to; what append says. */
static inline int target_append(struct target *target, struct weir_writebuf *buffer, uint64_t id,
                                uint64_t sequence, enum weir_writebuf_operation operation,
                                uint32_t key, const void *value, size_t value_bytes)
{
    struct target_table *table = &target->tables[id];
    struct weir_writebuf_record record = {
        .sequence = sequence,
        .key = &key,
        .value = value,
        .key_bytes = sizeof(key),
        .value_bytes = value_bytes,
        .operation = operation,
    };
    int r = weir_writebuf_append(buffer, &record);

    if (r < 0)
        return r;
    table->last_sequence = sequence;
    switch (operation) {
    case WEIR_WRITEBUF_INSERT:
    case WEIR_WRITEBUF_UPDATE:
        table->expected[key] = target_row(value, value_bytes);
        break;
    case WEIR_WRITEBUF_DELETE:
        table->expected[key] = TARGET_ABSENT;
        break;
    case WEIR_WRITEBUF_BARRIER:
        table->barrier_expected++;
        table->barrier_sum_expected =
            weir__mix(table->barrier_sum_expected ^ target_sum(table, table->expected));
        break;
    }
    return 0;
}

/* Whether the table is what was appended: content, position, and content at each barrier. */
static inline bool target_is_equal(const struct target *target, uint64_t id)
{
    const struct target_table *table = &target->tables[id];

    return table->position == table->last_sequence &&
           table->barrier_count == table->barrier_expected &&
           table->barrier_sum == table->barrier_sum_expected &&
           memcmp(table->rows, table->expected, target->key_count * sizeof(*table->rows)) == 0;
}

#endif
