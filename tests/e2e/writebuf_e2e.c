/* SPDX-License-Identifier: MIT */
/*
 * writebuf_e2e - many tables at once into a real database, under one limit
 *
 *      writebuf_e2e [--long] [--sanitized]
 *
 * Changes go round many tables, far more of them than memory; the sink of three
 * tables fails all the time. The others must not notice: they wait for each other
 * where the database is slower than we are, and all of theirs is committed while
 * those three still fail. Then these are healed, and the database is what a plain
 * replay makes of the changes: each row, no row more, and each position. Memory,
 * as the kernel counts it, is under the limit meanwhile and comes back afterwards.
 *
 * A value says which change wrote it: key and sequence decide all its bytes. So
 * the replay need only keep the sequence that each key was last written with.
 */
#include <weir/governor.h>
#include <weir/region.h>
#include <weir/writebuf.h>

#include "../../tools/sqlite/sqlite_sink.h"

#include <errno.h>
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define MIB          (UINT64_C(1) << 20)
#define SECOND       UINT64_C(1000000000)
#define FAILING      3
#define VALUE_BYTES  1000
#define TABLES_MAX   200
#define TICK_RECORDS 4096
#define DIRECTORY    "/var/tmp/weir-writebuf-XXXXXX"

/* What SQLite takes for itself, and what a read of /proc is late by. */
#define FOREIGN_BYTES (UINT64_C(24) * MIB)

struct plan {
    uint64_t tables;
    uint64_t bytes;     /* of keys and values, in all */
    uint64_t bytes_max; /* the limit */
    uint64_t resident_bytes;
    uint64_t keys;
};

static struct plan plan = {
    .tables = 20, .bytes = 64 * MIB, .bytes_max = 32 * MIB, .resident_bytes = 8 * MIB, .keys = 700};
static bool is_sanitized;

struct world {
    struct weir_governor *governor;
    struct weir_account *account;
    struct weir_account *region_account;
    struct weir_region *region;
    struct weir_writebuf_set *set;
    struct weir_writebuf *buffers[TABLES_MAX];
    struct sqlite_sink *sqlite;
    struct weir_writebuf_sink real;
    uint64_t *expected; /* [table][key]: the sequence that wrote it; 0: absent */
    uint64_t sequences[TABLES_MAX];
    uint64_t random;
    uint64_t batch_table; /* of the batch that is open in the database */
    uint64_t failed_commits;
    uint64_t refused_count;
    uint64_t rss_max;
    bool is_healed;
    char directory[64];
    char path[80];
};

static uint64_t random_of(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static uint64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

/* All that this process has in memory, as the kernel counts. */
static uint64_t rss_bytes(void)
{
    FILE *file = fopen("/proc/self/statm", "r");
    unsigned long total = 0;
    unsigned long resident = 0;

    assert_non_null(file);
    assert_int_equal(fscanf(file, "%lu %lu", &total, &resident), 2);
    fclose(file);
    return (uint64_t)resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void fill(char *value, uint64_t table, uint64_t key, uint64_t sequence)
{
    uint64_t state = table * UINT64_C(0x9e3779b97f4a7c15) + key * 1000003 + sequence * 7919 + 1;

    for (size_t i = 0; i < VALUE_BYTES; i += 8) {
        uint64_t word = random_of(&state);

        memcpy(value + i, &word, 8);
    }
}

/* ---- A sink that fails for some ------------------------------------------------- */

static bool is_failing(const struct world *world, uint64_t table)
{
    return !world->is_healed && table % (plan.tables / FAILING) == 1 &&
           table / (plan.tables / FAILING) < FAILING;
}

static int sick_position(void *context, uint64_t id, uint64_t *ret_sequence)
{
    struct world *world = context;

    return world->real.position(world->real.context, id, ret_sequence);
}

static int sick_begin(void *context, uint64_t id, void **ret_batch)
{
    struct world *world = context;
    int r = world->real.begin(world->real.context, id, ret_batch);

    if (r == 0)
        world->batch_table = id;
    return r;
}

static int sick_put(void *context, void *batch, const struct weir_writebuf_record *record)
{
    struct world *world = context;

    return world->real.put(world->real.context, batch, record);
}

static int sick_remove(void *context, void *batch, const struct weir_writebuf_record *record)
{
    struct world *world = context;

    return world->real.remove(world->real.context, batch, record);
}

static int sick_commit(void *context, void *batch, uint64_t sequence)
{
    struct world *world = context;

    if (is_failing(world, world->batch_table)) {
        world->failed_commits++;
        return -EIO;
    }
    return world->real.commit(world->real.context, batch, sequence);
}

static void sick_abort(void *context, void *batch)
{
    struct world *world = context;

    world->real.abort(world->real.context, batch);
}

/* ---- The world ------------------------------------------------------------------ */

static int begin(void **state)
{
    static struct world worlds;
    struct world *world = &worlds;
    struct weir_governor_config governor_config = {.bytes_max = plan.bytes_max};
    struct weir_account_config account_config = {.name = "writebuf", .spillable = true};
    struct weir_account_config region_account_config = {.name = "region",
                                                        .reserve_bytes = plan.resident_bytes};
    struct weir_region_config region_config = {
        .directory = world->directory,
        .bytes_max = plan.bytes,
        .resident_bytes_max = plan.resident_bytes,
    };
    struct weir_writebuf_config config = {
        .sink =
            {
                .position = sick_position,
                .begin = sick_begin,
                .put = sick_put,
                .remove = sick_remove,
                .commit = sick_commit,
                .abort = sick_abort,
                .context = world,
            },
        .backlog_bytes_max = plan.bytes / 4,
        .retry_ns = SECOND / 100,
        .retry_ns_max = SECOND,
    };

    memset(world, 0, sizeof(*world));
    memcpy(world->directory, DIRECTORY, sizeof(DIRECTORY));
    assert_non_null(mkdtemp(world->directory));
    assert_true(snprintf(world->path, sizeof(world->path), "%s/target.db", world->directory) <
                (int)sizeof(world->path));
    world->random = 88172645463325252u;
    world->expected = calloc(plan.tables * plan.keys, sizeof(*world->expected));
    assert_non_null(world->expected);
    for (uint64_t i = 0; i < plan.tables * plan.keys; i += 64)
        *(volatile uint64_t *)&world->expected[i] = 0;
    assert_int_equal(sqlite_sink_open(world->path, &world->sqlite), 0);
    world->real = sqlite_sink_functions(world->sqlite);
    assert_int_equal(weir_governor_create(&governor_config, &world->governor), 0);
    assert_int_equal(weir_account_open(world->governor, &account_config, &world->account), 0);
    assert_int_equal(
        weir_account_open(world->governor, &region_account_config, &world->region_account), 0);
    region_config.books = weir_account_books(world->region_account);
    assert_int_equal(weir_region_open(&region_config, &world->region), 0);
    config.account = world->account;
    config.region = world->region;
    assert_int_equal(weir_writebuf_create(&config, &world->set), 0);
    for (uint64_t i = 0; i < plan.tables; i++)
        assert_int_equal(weir_writebuf_ensure(world->set, i, &world->buffers[i]), 0);
    *state = world;
    return 0;
}

static int end(void **state)
{
    struct world *world = *state;
    static const char *const names[] = {"", "-wal", "-shm"};

    weir_writebuf_destroy(world->set);
    weir_region_close(world->region);
    weir_account_close(world->region_account);
    weir_account_close(world->account);
    weir_governor_destroy(world->governor);
    sqlite_sink_close(world->sqlite);
    for (size_t i = 0; i < 3; i++) {
        char path[96];

        assert_true(snprintf(path, sizeof(path), "%s%s", world->path, names[i]) <
                    (int)sizeof(path));
        unlink(path);
    }
    rmdir(world->directory);
    free(world->expected);
    return 0;
}

static void poll_all(struct world *world)
{
    int count = weir_writebuf_poll(world->set, clock_ns());
    uint64_t rss = rss_bytes();

    world->rss_max = rss > world->rss_max ? rss : world->rss_max;
    assert_true(weir_region_poll(world->region) >= 0);
    weir_account_poll(world->account);
    /* All wait: for the region, or for a back-off to end. */
    if (count == 0)
        assert_true(weir_region_wait(world->region, SECOND / 1000) >= 0);
}

static void append_one(struct world *world)
{
    uint64_t table = random_of(&world->random) % plan.tables;
    uint64_t key = random_of(&world->random) % plan.keys;
    uint64_t sequence = world->sequences[table] + 1;
    uint64_t *expected = &world->expected[table * plan.keys + key];
    bool is_delete = random_of(&world->random) % 8 == 0;
    char value[VALUE_BYTES];
    struct weir_writebuf_record record = {
        .sequence = sequence,
        .key = &key,
        .value = value,
        .key_bytes = sizeof(key),
        .value_bytes = is_delete ? 0 : VALUE_BYTES,
        .operation = is_delete        ? WEIR_WRITEBUF_DELETE
                     : *expected == 0 ? WEIR_WRITEBUF_INSERT
                                      : WEIR_WRITEBUF_UPDATE,
    };
    int r;

    fill(value, table, key, sequence);
    for (;;) {
        r = weir_writebuf_append(world->buffers[table], &record);
        if (r != -EAGAIN)
            break;
        world->refused_count++;
        poll_all(world);
    }
    assert_int_equal(r, 0);
    world->sequences[table] = sequence;
    *expected = is_delete ? 0 : sequence;
}

/* Until all that is not failing is committed. */
static void flush_all(struct world *world)
{
    bool is_done = false;
    uint64_t end_ns = clock_ns() + 600 * SECOND;

    for (uint64_t i = 0; i < plan.tables; i++)
        weir_writebuf_flush(world->buffers[i], NULL, UINT64_MAX);
    while (!is_done) {
        is_done = true;
        assert_true(clock_ns() < end_ns);
        poll_all(world);
        for (uint64_t i = 0; i < plan.tables; i++) {
            struct weir_writebuf_buffer_stats stats;

            if (is_failing(world, i))
                continue;
            weir_writebuf_buffer_stats(world->buffers[i], &stats);
            is_done &= stats.record_count == 0;
            assert_int_equal(world->is_healed ? 0 : stats.failure_count, 0);
        }
    }
}

/* ---- The comparison ------------------------------------------------------------- */

struct comparison {
    struct world *world;
    uint64_t table;
    uint64_t row_count;
};

static int compare_row(void *context, const void *key_data, size_t key_bytes, const void *value,
                       size_t value_bytes)
{
    struct comparison *comparison = context;
    uint64_t key;
    char expected[VALUE_BYTES];

    assert_int_equal(key_bytes, sizeof(key));
    memcpy(&key, key_data, sizeof(key));
    assert_true(key < plan.keys);
    uint64_t sequence = comparison->world->expected[comparison->table * plan.keys + key];
    assert_true(sequence != 0);
    fill(expected, comparison->table, key, sequence);
    assert_int_equal(value_bytes, VALUE_BYTES);
    assert_memory_equal(value, expected, VALUE_BYTES);
    comparison->row_count++;
    return 0;
}

static void compare_table(struct world *world, uint64_t table)
{
    struct comparison comparison = {.world = world, .table = table};
    uint64_t position = 0;
    uint64_t row_count = 0;

    for (uint64_t key = 0; key < plan.keys; key++)
        row_count += world->expected[table * plan.keys + key] != 0;
    assert_int_equal(sqlite_sink_rows(world->sqlite, table, compare_row, &comparison), 0);
    assert_int_equal(comparison.row_count, row_count);
    assert_int_equal(world->real.position(world->real.context, table, &position), 0);
    assert_int_equal(position, world->sequences[table]);
}

/* An empty region gives its file back tick by tick, and with it what of it was in memory. */
static void settle(struct world *world)
{
    uint64_t end_ns = clock_ns() + 30 * SECOND;
    struct weir_region_stats stats;

    do {
        poll_all(world);
        weir_region_stats(world->region, &stats);
    } while (stats.resident_bytes > 0 && clock_ns() < end_ns);
}

static void test_many_tables_under_one_limit(void **state)
{
    struct world *world = *state;
    struct weir_writebuf_stats stats;
    struct weir_governor_stats governor_stats;
    uint64_t rss_start;
    uint64_t start_ns = clock_ns();
    uint64_t position;

    /* Code and caches of all that takes part are there once everybody has had his turn. */
    for (uint64_t i = 0; i < plan.tables; i++)
        append_one(world);
    flush_all(world);
    rss_start = rss_bytes();
    do {
        /* More comes than a tick can hand on: memory fills up to the limit. */
        poll_all(world);
        for (uint64_t i = 0; i < TICK_RECORDS; i++)
            append_one(world);
        weir_writebuf_stats(world->set, &stats);
    } while (stats.appended_bytes < plan.bytes);
    flush_all(world);
    weir_writebuf_stats(world->set, &stats);
    print_message("# %lu MiB to %lu tables in %.1f s: %lu put, %lu removed, %lu overtaken, "
                  "%lu commits\n",
                  stats.appended_bytes / MIB, plan.tables,
                  (double)(clock_ns() - start_ns) / (double)SECOND, stats.put_count,
                  stats.remove_count, stats.compacted_count, stats.commit_count);
    print_message("# %lu MiB spilled, %lu appends waited, %lu flushes failed\n",
                  stats.block_bytes / MIB, world->refused_count, stats.failed_count);
    assert_int_equal(stats.failing_count, FAILING);
    assert_true(world->failed_commits >= FAILING);
    assert_true(stats.block_bytes > 0);
    for (uint64_t i = 0; i < plan.tables; i++) {
        if (!is_failing(world, i)) {
            compare_table(world, i);
            continue;
        }
        assert_int_equal(world->real.position(world->real.context, i, &position), 0);
        assert_int_equal(position, 0);
    }

    world->is_healed = true;
    for (uint64_t i = 0; i < plan.tables; i++)
        weir_writebuf_resume(world->buffers[i]);
    flush_all(world);
    for (uint64_t i = 0; i < plan.tables; i++)
        compare_table(world, i);
    weir_writebuf_stats(world->set, &stats);
    assert_int_equal(stats.held_bytes, 0);
    assert_int_equal(stats.charged_bytes, stats.working_bytes);
    assert_int_equal(stats.put_count + stats.remove_count + stats.compacted_count +
                         stats.duplicate_count,
                     stats.appended_count);
    weir_governor_stats(world->governor, &governor_stats);
    assert_true(governor_stats.peak_bytes <= plan.bytes_max);
    settle(world);
    print_message("# resident: %lu MiB at the start, at most %lu, %lu at the end; charged at most "
                  "%lu of %lu MiB\n",
                  rss_start / MIB, world->rss_max / MIB, rss_bytes() / MIB,
                  governor_stats.peak_bytes / MIB, plan.bytes_max / MIB);
    if (is_sanitized)
        return;
    assert_true(world->rss_max <= rss_start + plan.bytes_max + FOREIGN_BYTES);
    assert_true(rss_bytes() <= rss_start + 16 * MIB);
}

/* ---- The sink alone ------------------------------------------------------------- */

struct small {
    struct sqlite_sink *sqlite;
    struct weir_writebuf_set *set;
    struct weir_writebuf *buffer;
    uint64_t row_count;
};

static void small_open(struct small *small, const char *path)
{
    struct weir_writebuf_config config = {0};

    assert_int_equal(sqlite_sink_open(path, &small->sqlite), 0);
    config.sink = sqlite_sink_functions(small->sqlite);
    assert_int_equal(weir_writebuf_create(&config, &small->set), 0);
    assert_int_equal(weir_writebuf_ensure(small->set, 7, &small->buffer), 0);
}

static void small_close(struct small *small)
{
    weir_writebuf_destroy(small->set);
    sqlite_sink_close(small->sqlite);
}

static void small_append(struct small *small, enum weir_writebuf_operation operation,
                         uint64_t sequence, const char *key, const char *value)
{
    struct weir_writebuf_record record = {sequence,    key,           value,
                                          strlen(key), strlen(value), operation};

    assert_int_equal(weir_writebuf_append(small->buffer, &record), 0);
}

static struct weir_writebuf_buffer_stats small_flush(struct small *small)
{
    struct weir_writebuf_buffer_stats stats;

    weir_writebuf_flush(small->buffer, NULL, UINT64_MAX);
    for (int i = 0; i < 100; i++)
        weir_writebuf_poll(small->set, 1);
    weir_writebuf_buffer_stats(small->buffer, &stats);
    return stats;
}

static int small_row(void *context, const void *key, size_t key_bytes, const void *value,
                     size_t value_bytes)
{
    struct small *small = context;

    assert_int_equal(key_bytes, 1);
    assert_int_equal(value_bytes, 1);
    /* Each value is its key in capitals. */
    assert_int_equal(*(const char *)key - 'a', *(const char *)value - 'A');
    small->row_count++;
    return 0;
}

static uint64_t small_rows(struct small *small)
{
    small->row_count = 0;
    assert_int_equal(sqlite_sink_rows(small->sqlite, 7, small_row, small), 0);
    return small->row_count;
}

static void small_begin(struct small *small, const struct world *world, char path[96])
{
    assert_true(snprintf(path, 96, "%s/small.db", world->directory) < 96);
    small_open(small, path);
}

static void test_a_database_outlives_its_sets(void **state)
{
    struct small small;
    char path[96];

    small_begin(&small, *state, path);
    small_append(&small, WEIR_WRITEBUF_INSERT, 10, "a", "A");
    small_append(&small, WEIR_WRITEBUF_INSERT, 11, "b", "x");
    small_append(&small, WEIR_WRITEBUF_UPDATE, 12, "b", "B");
    small_append(&small, WEIR_WRITEBUF_UPDATE, 13, "c", "C");
    assert_int_equal(small_flush(&small).position, 13);
    assert_int_equal(small_rows(&small), 3);
    /* What is not flushed is lost with the set ... */
    small_append(&small, WEIR_WRITEBUF_DELETE, 14, "c", "");
    small_close(&small);

    /* ... and comes again from a producer that begins at an older place. */
    small_open(&small, path);
    assert_int_equal(small_rows(&small), 3);
    small_append(&small, WEIR_WRITEBUF_UPDATE, 12, "b", "y");
    small_append(&small, WEIR_WRITEBUF_DELETE, 14, "c", "");
    assert_int_equal(small_flush(&small).position, 14);
    assert_int_equal(small_rows(&small), 2);
    small_close(&small);
    unlink(path);
}

static void test_a_barrier_runs_its_statement(void **state)
{
    struct small small;
    char path[96];

    small_begin(&small, *state, path);
    small_append(&small, WEIR_WRITEBUF_INSERT, 1, "a", "A");
    small_append(&small, WEIR_WRITEBUF_BARRIER, 2, "", "");
    small_append(&small, WEIR_WRITEBUF_BARRIER, 3, "", "DELETE FROM weir_7");
    small_append(&small, WEIR_WRITEBUF_INSERT, 4, "d", "D");
    assert_int_equal(small_flush(&small).position, 4);
    assert_int_equal(small_rows(&small), 1);
    /* All of several, with nothing behind the last. */
    small_append(&small, WEIR_WRITEBUF_INSERT, 5, "e", "E");
    small_append(&small, WEIR_WRITEBUF_BARRIER, 6, "",
                 "DELETE FROM weir_7 WHERE key = CAST('d' AS BLOB); /* and */\n"
                 "DELETE FROM weir_7 WHERE key = CAST('e' AS BLOB); ");
    small_append(&small, WEIR_WRITEBUF_BARRIER, 7, "", " ");
    small_append(&small, WEIR_WRITEBUF_INSERT, 8, "d", "D");
    assert_int_equal(small_flush(&small).position, 8);
    assert_int_equal(small_rows(&small), 1);
    /* One that cannot be run keeps what is behind it. */
    small_append(&small, WEIR_WRITEBUF_INSERT, 9, "e", "E");
    small_append(&small, WEIR_WRITEBUF_BARRIER, 10, "", "DELETE FROM nowhere");
    small_append(&small, WEIR_WRITEBUF_INSERT, 11, "f", "F");
    assert_int_equal(small_flush(&small).position, 9);
    assert_int_equal(small_flush(&small).last_error, -EIO);
    assert_int_equal(small_rows(&small), 2);
    assert_non_null(strstr(sqlite_sink_error(small.sqlite), "nowhere"));
    small_close(&small);
    unlink(path);
}

static void test_what_is_no_database_is_refused(void **state)
{
    struct world *world = *state;
    struct sqlite_sink *sqlite = NULL;
    char path[96];
    FILE *file;

    assert_int_equal(sqlite_sink_open("/nowhere/there.db", &sqlite), -EACCES);
    assert_true(snprintf(path, sizeof(path), "%s/small.db", world->directory) < 96);
    file = fopen(path, "w");
    assert_non_null(file);
    for (int i = 0; i < 1000; i++)
        fputs("not a database\n", file);
    fclose(file);
    assert_int_equal(sqlite_sink_open(path, &sqlite), -EBADMSG);
    assert_null(sqlite);
    unlink(path);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        {"a database outlives its sets", test_a_database_outlives_its_sets, begin, end, NULL},
        {"a barrier runs its statement", test_a_barrier_runs_its_statement, begin, end, NULL},
        {"what is no database is refused", test_what_is_no_database_is_refused, begin, end, NULL},
        {"many tables at once under one limit", test_many_tables_under_one_limit, begin, end, NULL},
    };

    /* As weir-server does: what is freed of fetch buffers must not stay with malloc. */
    mallopt(M_MMAP_THRESHOLD, 64 << 10);
    mallopt(M_TRIM_THRESHOLD, 64 << 10);

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--sanitized") == 0)
            is_sanitized = true;
        if (strcmp(argv[i], "--long") == 0)
            plan = (struct plan){.tables = 200,
                                 .bytes = UINT64_C(8192) * MIB,
                                 .bytes_max = 512 * MIB,
                                 .resident_bytes = 64 * MIB,
                                 .keys = 1024};
    }
    return cmocka_run_group_tests_name("writebuf", tests, NULL, NULL);
}
