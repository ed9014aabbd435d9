/* SPDX-License-Identifier: MIT */
/*
 * region_cold_bench - a region of which a sixteenth may stay in memory, beside the
 * disk by the shortest way that keeps as little
 */
#include "region_bench.h"

#include "direct.h"
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#define COLD_BYTES       (2048 * REGION_MIB)
#define COLD_ITEM_BYTES  (16u << 10)
#define COLD_STEP_BYTES  (2 * REGION_MIB)
#define COLD_FETCH_DEPTH 16u
#define COLD_RESIDENT    (64 * REGION_MIB)
#define COLD_WAIT_NS     UINT64_C(1000000000)

/* ---- Spill: out of memory at the speed of the disk -------------------------- */

/* Puts that wait where a chunk must be written first, as a region with its own ring does. */
static void spill_region(struct bench *bench, struct bench_row *row, struct workload_source *source,
                         uint64_t count)
{
    struct weir_region *region = region_open(bench, 2 * COLD_BYTES, COLD_RESIDENT);
    struct weir_region_stats stats;
    struct weir_slot slot;

    bench_start(bench);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t begin = bench_wall_ns();
        int r = weir_region_put(region, workload_source_next(source), COLD_ITEM_BYTES,
                                (struct weir_label){.key = i}, &slot);
        bench_check(r, "weir_region_put");
        bench_latency(row, BENCH_SELF, bench_wall_ns() - begin);
        if (i % 64 == 0)
            bench_check(weir_region_poll(region), "weir_region_poll");
    }
    bench_lap(bench, row, BENCH_SELF, count);
    weir_region_stats(region, &stats);
    bench_figure(row, "resident MiB", (double)stats.resident_bytes / (double)REGION_MIB);
    weir_region_close(region);
}

/*
 * The shortest way by hand: pwrite, and behind it each 2 MiB written out and, 32
 * MiB later, dropped.
 */
static void spill_by_hand(struct bench *bench, struct bench_row *row,
                          struct workload_source *source, uint64_t count)
{
    int fd = region_file(bench);
    uint64_t at = 0;

    bench_start(bench);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t begin = bench_wall_ns();
        if (at % COLD_STEP_BYTES == 0)
            (void)fallocate(fd, 0, (off_t)at, COLD_STEP_BYTES);
        if (pwrite(fd, workload_source_next(source), COLD_ITEM_BYTES, (off_t)at) !=
            (ssize_t)COLD_ITEM_BYTES)
            bench_check(-EIO, "pwrite");
        at += COLD_ITEM_BYTES;
        if (at % COLD_STEP_BYTES == 0) {
            uint64_t lag = 16 * COLD_STEP_BYTES;
            (void)sync_file_range(fd, (off_t)(at - COLD_STEP_BYTES), COLD_STEP_BYTES,
                                  SYNC_FILE_RANGE_WRITE);
            if (at > lag) {
                (void)sync_file_range(fd, (off_t)(at - lag), COLD_STEP_BYTES,
                                      SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                                          SYNC_FILE_RANGE_WAIT_AFTER);
                (void)posix_fadvise(fd, (off_t)(at - lag), COLD_STEP_BYTES, POSIX_FADV_DONTNEED);
            }
        }
        bench_latency(row, "pwrite + write-back", bench_wall_ns() - begin);
    }
    bench_lap(bench, row, "pwrite + write-back", count);
    close(fd);
}

void region_spill(struct bench *bench)
{
    struct bench_row *row = bench_row(bench, "spill: put 16 KiB, 64 MiB resident");
    uint64_t count = bench_count(bench, COLD_BYTES / COLD_ITEM_BYTES);
    struct workload_source source;

    bench_row_bytes(row, COLD_ITEM_BYTES);
    workload_source_open(&source, 9);
    spill_region(bench, row, &source, count);
    spill_by_hand(bench, row, &source, count);
    workload_source_close(&source);
}

/* ---- Fetch: back from the disk ---------------------------------------------- */

struct fetch {
    struct bench *bench;
    struct bench_row *row;
    struct weir_region *region;
    struct weir_slot *slots;
    uint64_t *asked_ns; /* by index of the slot */
    uint64_t count;
    uint64_t random;
    uint64_t cursor; /* the item before the next, in order */
    bool is_random;
    bool is_cold;                 /* most items are; with --quick all may be in memory */
    uint64_t items[REGION_BATCH]; /* what is asked for in this round */
    uint64_t asked_count;
    uint64_t done_count;
    struct weir_slot again[COLD_FETCH_DEPTH]; /* to be asked for when poll is over */
    uint32_t again_count;
    uint64_t sum;
};

/* One item after the other, or one at random. */
static uint64_t fetch_next(struct fetch *fetch)
{
    fetch->cursor = (fetch->cursor + 1) % fetch->count;
    return fetch->is_random ? workload_below(&fetch->random, fetch->count) : fetch->cursor;
}

/* Between laps: which items come next. What is in memory is passed over: that would be no read. */
static void fetch_plan(struct fetch *fetch)
{
    for (uint32_t i = 0; i < REGION_BATCH; i++) {
        struct weir_slot_info info;
        do {
            fetch->items[i] = fetch_next(fetch);
            bench_check(weir_region_slot(fetch->region, fetch->slots[fetch->items[i]], &info),
                        "weir_region_slot");
        } while (info.resident && fetch->is_cold);
    }
}

static void fetch_choose(struct fetch *fetch)
{
    if (fetch->asked_count == REGION_BATCH)
        return;
    uint64_t item = fetch->items[fetch->asked_count];
    fetch->asked_count++;
    fetch->asked_ns[fetch->slots[item].index] = bench_wall_ns();
    fetch->again[fetch->again_count++] = fetch->slots[item];
}

static void fetch_done(void *context, struct weir_slot slot, int result)
{
    struct fetch *fetch = context;
    const void *data;

    bench_check(result, "weir_region_fetch");
    bench_check(weir_region_at(fetch->region, slot, &data, NULL), "weir_region_at");
    bench_latency(fetch->row, BENCH_SELF, bench_wall_ns() - fetch->asked_ns[slot.index]);
    fetch->sum += *(const unsigned char *)data;
    fetch->done_count++;
    fetch_choose(fetch);
}

/* A round of items, COLD_FETCH_DEPTH asked for at any time. */
static void fetch_region(struct fetch *fetch)
{
    fetch->asked_count = 0;
    fetch->done_count = 0;
    fetch_plan(fetch);
    bench_start(fetch->bench);
    while (fetch->again_count < COLD_FETCH_DEPTH)
        fetch_choose(fetch);
    while (fetch->done_count < REGION_BATCH) {
        if (fetch->again_count > 0) {
            int r = weir_region_fetch(fetch->region, fetch->again, fetch->again_count, fetch_done,
                                      fetch);
            bench_check(r, "weir_region_fetch");
        }
        fetch->again_count = 0;
        bench_check(weir_region_wait(fetch->region, COLD_WAIT_NS), "weir_region_wait");
    }
    bench_lap(fetch->bench, fetch->row, BENCH_SELF, REGION_BATCH);
}

/* All items are put; nearly all are on disk only. */
static void fetch_fill(struct fetch *fetch)
{
    struct workload_source source;

    workload_source_open(&source, 11);
    for (uint64_t i = 0; i < fetch->count; i++) {
        int r = weir_region_put(fetch->region, workload_source_next(&source), COLD_ITEM_BYTES,
                                (struct weir_label){.key = i}, &fetch->slots[i]);
        bench_check(r, "weir_region_put");
        if (i % REGION_TICK == 0)
            bench_check(weir_region_poll(fetch->region), "weir_region_poll");
    }
    workload_source_close(&source);
}

static void fetch_run(struct bench *bench, struct bench_row *row, bool is_random)
{
    uint64_t count = bench_count(bench, COLD_BYTES / 2 / COLD_ITEM_BYTES);
    uint64_t rounds = bench_count(bench, 1u << 15) / REGION_BATCH;
    struct fetch fetch = {
        .bench = bench,
        .row = row,
        .region = region_open(bench, COLD_BYTES, COLD_RESIDENT),
        .slots = region_array(count, sizeof(struct weir_slot)),
        .count = count,
        .random = 13,
        .cursor = count - 1,
        .is_random = is_random,
        .is_cold = count * COLD_ITEM_BYTES > 2 * COLD_RESIDENT,
    };
    struct direct direct;

    bench_row_bytes(row, COLD_ITEM_BYTES);
    fetch.asked_ns = calloc(2 * count + 2, sizeof(*fetch.asked_ns));
    if (fetch.asked_ns == NULL)
        bench_check(-ENOMEM, "calloc");
    fetch_fill(&fetch);
    direct_open(&direct, bench, count, COLD_ITEM_BYTES, COLD_FETCH_DEPTH);
    for (uint64_t i = 0; i < rounds; i++) {
        fetch_region(&fetch);
        bench_start(bench);
        direct_read(&direct, fetch.items, REGION_BATCH, row, "O_DIRECT read");
        bench_lap(bench, row, "O_DIRECT read", REGION_BATCH);
    }
    workload_use(&fetch.sum);
    direct_close(&direct);

    struct weir_region_stats stats;
    weir_region_stats(fetch.region, &stats);
    bench_figure(row, "read/fetched",
                 (double)stats.read_bytes / (double)(rounds * REGION_BATCH) / COLD_ITEM_BYTES);
    bench_at_least(row, BENCH_SPEED, "O_DIRECT read", 0.85);
    free(fetch.asked_ns);
    free(fetch.slots);
    weir_region_close(fetch.region);
}

void region_fetch_random(struct bench *bench)
{
    fetch_run(bench, bench_row(bench, "fetch 16 KiB at random, 16 ahead"), true);
}

void region_fetch_order(struct bench *bench)
{
    fetch_run(bench, bench_row(bench, "fetch 16 KiB in order, 16 ahead"), false);
}
