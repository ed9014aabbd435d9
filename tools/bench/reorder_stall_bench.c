/* SPDX-License-Identifier: MIT */
/*
 * reorder_stall_bench - a gibibyte behind one missing head, in 32 MiB of memory
 *
 * All items but the first arrive, in order or shuffled, and nearly all go to the
 * disk; then the head comes and all is delivered. Beside the delivery, in turn,
 * another file is read past the page cache: in large blocks one after another,
 * or items at random, as many at a time as the buffer fetches ahead.
 */
#include "direct.h"
#include "reorder_bench.h"
#include "resident.h"
#include "workload.h"

#include <weir/governor.h>
#include <weir/region.h>
#include <weir/reorder.h>

#include <errno.h>
#include <malloc.h>
#include <stdlib.h>

#define STALL_MIB          (UINT64_C(1) << 20)
#define STALL_LIMIT        (32 * STALL_MIB) /* all that is charged, the region's memory too */
#define STALL_RESIDENT     (24 * STALL_MIB)
#define STALL_BYTES        (1024 * STALL_MIB)
#define STALL_ITEM_BYTES   (16u << 10)
#define STALL_BLOCK_BYTES  (256u << 10)
#define STALL_BLOCK_DEPTH  4u
#define STALL_RANDOM_DEPTH 96u
#define STALL_LAP          4096u /* items: what is on its way between laps is little of it */
#define STALL_COUNT_EACH   512u  /* items between two counts of the memory */
#define STALL_WAIT_NS      UINT64_C(1000000000)

struct stall {
    struct bench *bench;
    struct bench_row *row;
    struct weir_governor *governor;
    struct weir_account *region_account;
    struct weir_account *account;
    struct weir_region *region;
    struct weir_reorder *reorder;
    struct workload_source source;
    struct resident resident;
    struct direct direct;
    uint64_t *blocks; /* what the yardstick reads in a lap */
    uint64_t random;
    uint64_t block; /* the next in order */
    uint64_t count;
    uint64_t wait_count;
    uint64_t sum;
    bool is_shuffled;
};

static void stall_open(struct stall *stall)
{
    struct weir_governor_config governor_config = {.bytes_max = STALL_LIMIT};
    struct weir_account_config account_config = {.name = "reorder", .spillable = true};
    struct weir_region_config region_config = {
        .directory = bench_directory(stall->bench),
        .bytes_max = 2 * STALL_BYTES,
        .resident_bytes_max = STALL_RESIDENT,
    };
    struct weir_region_stats stats;

    bench_check(weir_governor_create(&governor_config, &stall->governor), "weir_governor_create");
    bench_check(weir_account_open(stall->governor,
                                  &(struct weir_account_config){.name = "region",
                                                                .reserve_bytes = STALL_RESIDENT},
                                  &stall->region_account),
                "weir_account_open");
    bench_check(weir_account_open(stall->governor, &account_config, &stall->account),
                "weir_account_open");
    region_config.books = weir_account_books(stall->region_account);
    malloc_trim(0); /* what cases before have left is not to be used unseen */
    resident_open(&stall->resident);
    bench_check(weir_region_open(&region_config, &stall->region), "weir_region_open");
    weir_region_stats(stall->region, &stats);
    resident_find(&stall->resident, stats.file_bytes, 2 * STALL_BYTES);
    bench_check(weir_reorder_create(&(struct weir_reorder_config){.account = stall->account,
                                                                  .region = stall->region},
                                    &stall->reorder),
                "weir_reorder_create");
}

static void stall_close(struct stall *stall)
{
    weir_reorder_destroy(stall->reorder);
    weir_region_close(stall->region);
    weir_account_close(stall->account);
    weir_account_close(stall->region_account);
    weir_governor_destroy(stall->governor);
}

static void stall_push(struct stall *stall, uint64_t sequence)
{
    const char *data = workload_source_next(&stall->source);
    int r;

    while ((r = weir_reorder_push(stall->reorder, sequence, data, STALL_ITEM_BYTES)) == -EAGAIN)
        bench_check(weir_region_wait(stall->region, STALL_WAIT_NS), "weir_region_wait");
    bench_check(r, "weir_reorder_push");
}

/* All but the head arrive. */
static void stall_fill(struct stall *stall)
{
    uint32_t *order = stall->is_shuffled ? workload_shuffle(21, (uint32_t)stall->count) : NULL;

    for (uint64_t i = 0; i < stall->count; i++) {
        stall_push(stall, 1 + (order != NULL ? order[i] : i));
        if (i % 16 == 0)
            bench_check(weir_region_poll(stall->region), "weir_region_poll");
        if (i % STALL_COUNT_EACH == 0)
            resident_count(&stall->resident);
    }
    free(order);
}

/* A lap of items, delivered in order. */
static void stall_deliver(struct stall *stall, uint64_t count)
{
    bench_start(stall->bench);
    for (uint64_t i = 0; i < count;) {
        struct weir_item item;
        int r = weir_reorder_pop(stall->reorder, &item);
        if (r == -EAGAIN) {
            stall->wait_count++;
            bench_check(weir_region_wait(stall->region, STALL_WAIT_NS), "weir_region_wait");
            continue;
        }
        bench_check(r, "weir_reorder_pop");
        stall->sum += *(const unsigned char *)item.data;
        weir_reorder_release(stall->reorder, &item);
        i++;
        if (i % 16 == 0)
            bench_check(weir_region_poll(stall->region), "weir_region_poll");
    }
    bench_lap(stall->bench, stall->row, BENCH_SELF, count);
    resident_count(&stall->resident);
}

/* As many bytes of the other file. */
static void stall_yardstick(struct stall *stall, const char *name, uint64_t count)
{
    uint64_t block_count = count * STALL_ITEM_BYTES / stall->direct.block_bytes;

    for (uint64_t i = 0; i < block_count; i++) {
        stall->blocks[i] = stall->is_shuffled
                               ? workload_below(&stall->random, stall->direct.block_count)
                               : stall->block++ % stall->direct.block_count;
    }
    bench_start(stall->bench);
    direct_read(&stall->direct, stall->blocks, block_count, NULL, NULL);
    bench_lap(stall->bench, stall->row, name, count);
}

static void stall_report(struct stall *stall)
{
    struct weir_reorder_stats stats;
    struct weir_region_stats region_stats;
    struct bench_row *row = stall->row;

    weir_reorder_stats(stall->reorder, &stats);
    weir_region_stats(stall->region, &region_stats);
    bench_figure(row, "device/spilled",
                 (double)region_stats.written_bytes / (double)stats.spill_bytes);
    bench_at_most(row, BENCH_FIGURE, "device/spilled", 1.05);
    bench_figure(row, "rewritten", (double)stats.rewritten_bytes);
    bench_at_most(row, BENCH_FIGURE, "rewritten", 0);
    bench_figure(row, "memory MiB", (double)stall->resident.peak_bytes / (double)STALL_MIB);
    bench_at_most(row, BENCH_FIGURE, "memory MiB", (double)(STALL_LIMIT / STALL_MIB + 4));
    bench_figure(row, "spilled of all", (double)stats.spill_count / (double)stall->count);
    bench_figure(row, "read/fetched",
                 (double)region_stats.read_bytes / ((double)stats.fetch_count * STALL_ITEM_BYTES));
    bench_figure(row, "waits", (double)stall->wait_count);
}

static void stall_run(struct bench *bench, bool is_shuffled)
{
    const char *yardstick = is_shuffled ? "random 16 KiB" : "sequential 256 KiB";
    struct stall stall = {
        .bench = bench,
        .row = bench_row(bench, "after a stall, 1 GiB %s", is_shuffled ? "shuffled" : "in order"),
        .count = bench_count(bench, STALL_BYTES / STALL_ITEM_BYTES) / STALL_LAP * STALL_LAP,
        .random = 22,
        .is_shuffled = is_shuffled,
    };

    if (stall.count == 0)
        stall.count = STALL_LAP;
    bench_row_bytes(stall.row, STALL_ITEM_BYTES);
    stall.blocks = calloc(STALL_LAP, sizeof(*stall.blocks));
    bench_check(stall.blocks == NULL ? -ENOMEM : 0, "calloc");
    workload_source_open(&stall.source, 20);
    if (is_shuffled)
        direct_open(&stall.direct, bench, stall.count, STALL_ITEM_BYTES, STALL_RANDOM_DEPTH);
    else
        direct_open(&stall.direct, bench, stall.count * STALL_ITEM_BYTES / STALL_BLOCK_BYTES,
                    STALL_BLOCK_BYTES, STALL_BLOCK_DEPTH);
    /* All that the yardstick has was touched before memory is counted. */
    for (uint64_t i = 0; i < STALL_LAP; i++)
        stall.blocks[i] = 0;
    direct_read(&stall.direct, stall.blocks, STALL_RANDOM_DEPTH, NULL, NULL);

    stall_open(&stall);
    stall_fill(&stall);
    stall_push(&stall, 0);
    for (uint64_t i = 0; i < stall.count; i += STALL_LAP) {
        stall_deliver(&stall, STALL_LAP);
        stall_yardstick(&stall, yardstick, STALL_LAP);
    }
    workload_use(&stall.sum);
    stall_report(&stall);
    bench_at_least(stall.row, BENCH_SPEED, yardstick, 0.8);

    stall_close(&stall);
    resident_close(&stall.resident);
    direct_close(&stall.direct);
    workload_source_close(&stall.source);
    free(stall.blocks);
}

void reorder_stall_order(struct bench *bench)
{
    stall_run(bench, false);
}

void reorder_stall_shuffled(struct bench *bench)
{
    stall_run(bench, true);
}
