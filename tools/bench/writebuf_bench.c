/* SPDX-License-Identifier: MIT */
/*
 * writebuf_bench - appending and flushing, beside a copy
 *
 * A sink that reads each record and does nothing with it, so that what is measured
 * is ours. The yardstick of both is a copy of the same bytes.
 */
#include "bench.h"
#include "workload.h"

#include <weir/writebuf.h>

#include <errno.h>
#include <string.h>

#define WRITEBUF_COUNT (UINT64_C(1) << 20)
#define WRITEBUF_ROUND (UINT64_C(1) << 16) /* appended, then flushed */
#define WRITEBUF_BYTES 100u
#define WRITEBUF_KEYS  20000u

static int null_begin(void *context, uint64_t id, void **ret_batch)
{
    (void)id;
    *ret_batch = context;
    return 0;
}

static int null_take(void *context, void *batch, const struct weir_writebuf_record *record)
{
    (void)context;
    (void)batch;
    workload_use(record->value);
    return 0;
}

static int null_commit(void *context, void *batch, uint64_t sequence)
{
    (void)context;
    (void)batch;
    (void)sequence;
    return 0;
}

static void null_abort(void *context, void *batch)
{
    (void)context;
    (void)batch;
}

static void writebuf_rounds(struct bench *bench, enum weir_writebuf_operation operation,
                            const char *name)
{
    struct bench_row *append = bench_row(bench, "append 100 B, %s", name);
    struct bench_row *flush = bench_row(bench, "flush 100 B, %s", name);
    struct weir_writebuf_config config = {
        .sink = {NULL, null_begin, null_take, null_take, NULL, null_commit, null_abort, bench},
        .collect_bytes_max = UINT64_C(1) << 30,
        .trigger_bytes = UINT64_MAX,
        .trigger_age_ns = UINT64_MAX,
    };
    struct weir_writebuf_set *set = NULL;
    struct weir_writebuf *buffer = NULL;
    struct workload_source source;
    struct workload_memory memory;
    uint64_t count = bench_count(bench, WRITEBUF_COUNT);
    uint64_t random = 3;

    bench_row_bytes(append, WRITEBUF_BYTES);
    bench_row_bytes(flush, WRITEBUF_BYTES);
    bench_check(weir_writebuf_create(&config, &set), "weir_writebuf_create");
    bench_check(weir_writebuf_ensure(set, 1, &buffer), "weir_writebuf_ensure");
    workload_source_open(&source, 2);
    workload_memory_open(&memory, WRITEBUF_ROUND * 2 * WRITEBUF_BYTES);
    for (uint64_t begin = 0; begin < count; begin += WRITEBUF_ROUND) {
        uint64_t end = begin + WRITEBUF_ROUND < count ? begin + WRITEBUF_ROUND : count;
        struct weir_writebuf_buffer_stats stats;

        bench_start(bench);
        for (uint64_t i = begin; i < end; i++) {
            uint64_t key = workload_below(&random, WRITEBUF_KEYS);
            struct weir_writebuf_record record = {
                .sequence = i + 1,
                .key = &key,
                .value = workload_source_next(&source),
                .key_bytes = sizeof(key),
                .value_bytes = WRITEBUF_BYTES - sizeof(key),
                .operation = operation,
            };
            bench_check(weir_writebuf_append(buffer, &record), "weir_writebuf_append");
        }
        bench_lap(bench, append, BENCH_SELF, end - begin);
        for (uint64_t i = begin; i < end; i++)
            memcpy(workload_memory_next(&memory, WRITEBUF_BYTES), workload_source_next(&source),
                   WRITEBUF_BYTES);
        bench_lap(bench, append, "memcpy", end - begin);

        weir_writebuf_flush(buffer, NULL, UINT64_MAX);
        bench_start(bench);
        do {
            weir_writebuf_poll(set, 1);
            weir_writebuf_buffer_stats(buffer, &stats);
        } while (stats.record_count > 0);
        bench_lap(bench, flush, BENCH_SELF, end - begin);
        for (uint64_t i = begin; i < end; i++)
            memcpy(workload_memory_next(&memory, WRITEBUF_BYTES), workload_source_next(&source),
                   WRITEBUF_BYTES);
        bench_lap(bench, flush, "memcpy", end - begin);
    }
    workload_memory_close(&memory);
    workload_source_close(&source);
    weir_writebuf_destroy(set);
}

static void writebuf_inserts(struct bench *bench)
{
    writebuf_rounds(bench, WEIR_WRITEBUF_INSERT, "inserts only");
}

static void writebuf_updates(struct bench *bench)
{
    writebuf_rounds(bench, WEIR_WRITEBUF_UPDATE, "3 changes a key");
}

const struct bench_case writebuf_cases[] = {
    {"inserts", BENCH_CPU, writebuf_inserts},
    {"updates", BENCH_CPU, writebuf_updates},
    {NULL, BENCH_CPU, NULL},
};
