/* SPDX-License-Identifier: MIT */
/*
 * sqlite_sink_fault - a database without memory
 *
 * The N-th allocation of SQLite fails, for N = 1, 2, ... until none does, once and
 * for good, while batches are handed on as a flush does. What is told is -ENOMEM; a
 * batch that failed is given up, comes again, and is in the database once; one whose
 * commit failed is there whole or not at all, as the position says.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sqlite_sink.h"

#include "program.h"

#include <errno.h>
#include <limits.h>
#include <sqlite3.h>
#include <string.h>
#include <unistd.h>

#define BATCHES     3u
#define KEYS        10u
#define VALUE_BYTES 3000u
#define RUNS_MAX    5000u

/* ---- Memory ----------------------------------------------------------------- */

static sqlite3_mem_methods usual;
static uint64_t fails_at; /* 0: none */
static bool fails_for_good;
static uint64_t used;
static uint64_t fired;

static bool memory_fails(void)
{
    used++;
    bool fails = fails_at != 0 && (used == fails_at || (fails_for_good && used > fails_at));
    fired += fails;
    return fails;
}

static void *fault_malloc(int bytes)
{
    return memory_fails() ? NULL : usual.xMalloc(bytes);
}

static void *fault_realloc(void *data, int bytes)
{
    return memory_fails() ? NULL : usual.xRealloc(data, bytes);
}

static void arm(uint64_t at, bool is_for_good)
{
    fails_at = at;
    fails_for_good = is_for_good;
    used = 0;
    fired = 0;
}

/* ---- Steps ------------------------------------------------------------------ */

struct job {
    char path[PATH_MAX];
    struct sqlite_sink *sqlite;
    struct weir_writebuf_sink sink;
    uint64_t row_count;
};

static void value_of(uint64_t batch, uint32_t key, char *value)
{
    memset(value, (int)('a' + (batch * 7 + key) % 26), VALUE_BYTES);
}

/* Of every batch all keys, and the first of them is removed again by the next. */
static int hand_on_all(struct job *job, void *open, uint64_t batch)
{
    char value[VALUE_BYTES];
    struct weir_writebuf_record record = {
        .operation = WEIR_WRITEBUF_UPDATE,
        .value = value,
        .key_bytes = sizeof(uint32_t),
        .value_bytes = VALUE_BYTES,
    };
    int r = 0;

    for (uint32_t key = 0; key < KEYS && r == 0; key++) {
        record.key = &key;
        record.sequence = batch * KEYS + key + 1;
        value_of(batch, key, value);
        if (key == 0 && batch % 2 == 1)
            r = job->sink.remove(job->sink.context, open, &record);
        else
            r = job->sink.put(job->sink.context, open, &record);
    }
    return r;
}

static int hand_on(struct job *job, uint64_t batch)
{
    uint64_t sequence = (batch + 1) * KEYS;
    void *open = NULL;
    int r = job->sink.begin(job->sink.context, 7, &open);

    if (r < 0)
        return r;
    r = hand_on_all(job, open, batch);
    if (r == 0)
        r = job->sink.commit(job->sink.context, open, sequence);
    if (r < 0)
        job->sink.abort(job->sink.context, open);
    return r;
}

static int check_row(void *context, const void *key, size_t key_bytes, const void *value,
                     size_t value_bytes)
{
    struct job *job = context;
    char expected[VALUE_BYTES];
    uint32_t number;

    assert_int_equal(key_bytes, sizeof(number));
    assert_int_equal(value_bytes, VALUE_BYTES);
    memcpy(&number, key, sizeof(number));
    value_of(BATCHES - 1, number, expected);
    assert_memory_equal(value, expected, VALUE_BYTES);
    job->row_count++;
    return 0;
}

static int open_sink(struct job *job)
{
    int r = sqlite_sink_open(job->path, &job->sqlite);

    if (r == 0)
        job->sink = sqlite_sink_functions(job->sqlite);
    else
        assert_null(job->sqlite);
    return r;
}

/* As a flush: what failed is asked for its position, and comes again if it is not there. */
static void flush(struct job *job)
{
    for (uint64_t batch = 0; batch < BATCHES;) {
        uint64_t position = UINT64_MAX;
        int r = hand_on(job, batch);
        if (r == 0) {
            batch++;
            continue;
        }
        assert_int_equal(r, -ENOMEM);
        assert_true(fired > 0);
        r = job->sink.position(job->sink.context, 7, &position);
        if (r < 0) {
            assert_int_equal(r, -ENOMEM);
            fails_at = 0;
            assert_int_equal(job->sink.position(job->sink.context, 7, &position), 0);
        }
        assert_true(position == batch * KEYS || position == (batch + 1) * KEYS);
        batch = position / KEYS;
        if (fails_for_good)
            fails_at = 0; /* it has been told, and there is memory again */
    }
}

static bool run(uint64_t at, bool is_for_good)
{
    struct job job = {0};
    uint64_t position = 0;

    /* Where it need not wait for a disk: that is not what fails here. */
    const char *directory = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : harness_tmpdir();
    assert_true(
        snprintf(job.path, sizeof(job.path), "%s/weir-test-%ld.db", directory, (long)getpid()) > 0);
    arm(at, is_for_good);
    int r = open_sink(&job);
    if (r < 0) {
        assert_int_equal(r, -ENOMEM);
        assert_true(fired > 0);
        fails_at = 0;
        assert_int_equal(open_sink(&job), 0);
    }
    flush(&job);
    fails_at = 0;
    assert_int_equal(job.sink.position(job.sink.context, 7, &position), 0);
    assert_int_equal(position, BATCHES * KEYS);
    assert_int_equal(sqlite_sink_rows(job.sqlite, 7, check_row, &job), 0);
    assert_int_equal(job.row_count, KEYS);
    sqlite_sink_close(job.sqlite);
    assert_int_equal(sqlite3_memory_used(), 0);
    assert_int_equal(unlink(job.path), 0);
    return fired > 0;
}

/* ---- Cases ------------------------------------------------------------------ */

static void each_use(bool is_for_good)
{
    uint64_t at = 1;

    for (; run(at, is_for_good); at++)
        assert_true(at < RUNS_MAX);
    print_message("# %llu uses\n", (unsigned long long)at);
    assert_true(at > 50);
}

static void test_once(void **state)
{
    (void)state;
    each_use(false);
}

static void test_for_good(void **state)
{
    (void)state;
    each_use(true);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        {"a batch without memory comes again, once", test_once, NULL, NULL, NULL},
        {"without memory for long nothing is half there", test_for_good, NULL, NULL, NULL},
    };
    sqlite3_mem_methods methods;

    if (!harness_begin(argc, argv))
        return 0;
    if (sqlite3_config(SQLITE_CONFIG_GETMALLOC, &usual) != SQLITE_OK)
        return 77;
    methods = usual;
    methods.xMalloc = fault_malloc;
    methods.xRealloc = fault_realloc;
    /* Small pieces have memory of their own, which would hide most of it. */
    if (sqlite3_config(SQLITE_CONFIG_MALLOC, &methods) != SQLITE_OK ||
        sqlite3_config(SQLITE_CONFIG_LOOKASIDE, 0, 0) != SQLITE_OK)
        return 77;
    return cmocka_run_group_tests_name("sqlite_sink", tests, NULL, NULL);
}
