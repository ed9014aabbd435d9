/* SPDX-License-Identifier: MIT */
/*
 * region_bench - an allocator in a file, beside memcpy and beside the disk
 *
 * Resident: everything may stay in memory, so that what is measured is the
 * allocator and the page faults of the file, and the yardstick is the copy that
 * nobody can save. Cold: 64 MiB may, and the yardstick is the disk by the
 * shortest way that keeps as little in memory.
 */
#include "bench.h"
#include "workload.h"

#include <weir/region.h>

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REGION_BATCH       1024u
#define REGION_VICTIMS     (4 * REGION_BATCH)
#define REGION_MIB         (UINT64_C(1) << 20)
#define REGION_CHURN_LIVE  (512 * REGION_MIB)
#define REGION_COLD_BYTES  (2048 * REGION_MIB)
#define REGION_ITEM_BYTES  (16u << 10)
#define REGION_FETCH_DEPTH 16u
#define REGION_STEP_BYTES  (2 * REGION_MIB)
#define REGION_WAIT_NS     UINT64_C(1000000000)

static struct weir_region *region_open(const struct bench *bench, uint64_t bytes_max,
                                       uint64_t resident_bytes_max)
{
    struct weir_region *region = NULL;
    int r = weir_region_open(
        &(struct weir_region_config){
            .directory = bench_directory(bench),
            .bytes_max = bytes_max,
            .resident_bytes_max = resident_bytes_max,
        },
        &region);

    bench_check(r, "weir_region_open");
    return region;
}

static struct weir_slot *region_slots(uint64_t count)
{
    struct weir_slot *slots = calloc(count, sizeof(*slots));

    if (slots == NULL)
        bench_check(-ENOMEM, "calloc");
    return slots;
}

/* ---- Items of one size, all resident ---------------------------------------- */

struct items {
    struct bench *bench;
    struct weir_region *region;
    size_t bytes;
    uint32_t count;
    const char *size_name;
    struct weir_slot *slots;
    struct workload_source source;    /* of puts */
    struct workload_source yardstick; /* of the copies beside them */
    struct workload_memory memory;
    char out[4096];
};

static struct bench_row *items_row(const struct items *items, const char *what, const char *how)
{
    return bench_row(items->bench, "%s %s%s", what, items->size_name, how);
}

static void items_copy(struct items *items, struct bench_row *row, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        memcpy(workload_memory_next(&items->memory, items->bytes),
               workload_source_next(&items->yardstick), items->bytes);
    bench_lap(items->bench, row, "memcpy", count);
}

/* How many of @count are in the batch at @begin. */
static uint32_t items_batch(uint32_t begin, uint32_t count)
{
    return count - begin < REGION_BATCH ? count - begin : REGION_BATCH;
}

/* Put those of @order, or with NULL all. */
static void items_put(struct items *items, const char *how, const uint32_t *order, uint32_t count)
{
    struct bench_row *row = items_row(items, "put", how);

    for (uint32_t begin = 0; begin < count; begin += REGION_BATCH) {
        uint32_t batch = items_batch(begin, count);
        bench_start(items->bench);
        for (uint32_t i = begin; i < begin + batch; i++) {
            uint32_t item = order != NULL ? order[i] : i;
            int r =
                weir_region_put(items->region, workload_source_next(&items->source), items->bytes,
                                (struct weir_label){.key = item}, &items->slots[item]);
            bench_check(r, "weir_region_put");
        }
        bench_lap(items->bench, row, BENCH_SELF, batch);
        items_copy(items, row, batch);
    }
}

static void items_free(struct items *items, const char *how, const uint32_t *order, uint32_t count)
{
    struct bench_row *row = items_row(items, "free", how);

    for (uint32_t begin = 0; begin < count; begin += REGION_BATCH) {
        uint32_t batch = items_batch(begin, count);
        bench_start(items->bench);
        for (uint32_t i = begin; i < begin + batch; i++)
            bench_check(weir_region_free(items->region, items->slots[order != NULL ? order[i] : i]),
                        "weir_region_free");
        bench_lap(items->bench, row, BENCH_SELF, batch);
        items_copy(items, row, batch);
    }
}

/* Only the address, and beside it a copy of what would be read there. */
static void items_at(struct items *items, const uint32_t *order)
{
    struct bench_row *row = items_row(items, "at", ", at random");

    for (uint32_t begin = 0; begin < items->count; begin += REGION_BATCH) {
        uint32_t batch = items_batch(begin, items->count);
        const void *data;
        bench_start(items->bench);
        for (uint32_t i = begin; i < begin + batch; i++) {
            bench_check(weir_region_at(items->region, items->slots[order[i]], &data, NULL),
                        "weir_region_at");
            workload_use(data);
        }
        bench_lap(items->bench, row, BENCH_SELF, batch);
        for (uint32_t i = begin; i < begin + batch; i++) {
            memcpy(items->out, workload_source_next(&items->yardstick), items->bytes);
            workload_use(items->out);
        }
        bench_lap(items->bench, row, "memcpy", batch);
    }
}

/* All ways of using space anew: one whole, merged from random pieces, holes that cannot merge. */
static void items_cycle(struct items *items)
{
    uint32_t *order = workload_shuffle(1, items->count);
    uint32_t *halves = workload_shuffle(2, items->count / 2);

    for (uint32_t i = 0; i < items->count / 2; i++)
        halves[i] *= 2;
    items_put(items, ", fresh space", NULL, items->count);
    items_at(items, order);
    items_free(items, ", in order", NULL, items->count);
    items_put(items, ", after free in order", NULL, items->count);
    items_free(items, ", at random", order, items->count);
    items_put(items, ", after free at random", NULL, items->count);
    items_free(items, ", every other, at random", halves, items->count / 2);
    items_put(items, ", into isolated holes", halves, items->count / 2);
    free(halves);
    free(order);
}

static void items_run(struct bench *bench, size_t bytes, uint64_t count, const char *size_name)
{
    struct items items = {
        .bench = bench,
        .bytes = bytes,
        .count = (uint32_t)bench_count(bench, count),
        .size_name = size_name,
    };

    items.region = region_open(bench, 2 * bytes * count, UINT64_MAX);
    items.slots = region_slots(items.count);
    workload_source_open(&items.source, 3);
    workload_source_open(&items.yardstick, 4);
    workload_memory_open(&items.memory, bytes * items.count);
    items_cycle(&items);
    workload_memory_close(&items.memory);
    workload_source_close(&items.yardstick);
    workload_source_close(&items.source);
    free(items.slots);
    weir_region_close(items.region);
}

static void region_items_small(struct bench *bench)
{
    items_run(bench, 64, UINT64_C(1) << 20, "64 B");
}

static void region_items_large(struct bench *bench)
{
    items_run(bench, 1024, UINT64_C(1) << 18, "1 KiB");
}

/* ---- Churn, all resident ---------------------------------------------------- */

struct churn {
    struct bench *bench;
    struct weir_region *region;
    struct weir_slot *slots;
    uint32_t slot_count;
    struct weir_slot victims[REGION_VICTIMS]; /* the next to be freed, in random order */
    uint32_t victim_count;
    uint64_t live_bytes;
    uint64_t live_bytes_max;
    uint64_t footprint_bytes; /* the most that the file was */
    uint64_t mark_bytes;      /* the most of it that was ever handed out */
    uint32_t *sizes;
    uint32_t size_count;
    uint32_t size_index;
    uint64_t random;
    struct workload_source source;
    char out[WORKLOAD_SIZE_MAX];
};

static void churn_put(struct churn *churn, uint32_t bytes)
{
    int r = weir_region_put(churn->region, workload_source_next(&churn->source), bytes,
                            (struct weir_label){.key = 0}, &churn->slots[churn->slot_count]);

    bench_check(r, "weir_region_put");
    churn->slot_count++;
    churn->live_bytes += bytes;
}

/* Between laps: who is freed next, so that the search for a handle is nobody's time. */
static void churn_choose(struct churn *churn)
{
    while (churn->victim_count < REGION_VICTIMS && churn->slot_count > 0) {
        uint32_t victim = (uint32_t)workload_below(&churn->random, churn->slot_count);
        churn->victims[churn->victim_count++] = churn->slots[victim];
        churn->slots[victim] = churn->slots[--churn->slot_count];
    }
}

/* A random item is read and freed. */
static void churn_drop(struct churn *churn)
{
    if (churn->victim_count == 0)
        churn_choose(churn);
    struct weir_slot victim = churn->victims[--churn->victim_count];
    const void *data;
    size_t bytes;

    bench_check(weir_region_at(churn->region, victim, &data, &bytes), "weir_region_at");
    memcpy(churn->out, data, bytes);
    workload_use(churn->out);
    bench_check(weir_region_free(churn->region, victim), "weir_region_free");
    churn->live_bytes -= bytes;
}

/* The same without a look at it: it may be cold. */
static void churn_drop_unseen(struct churn *churn)
{
    struct weir_slot_info info;

    if (churn->victim_count == 0)
        churn_choose(churn);
    struct weir_slot victim = churn->victims[--churn->victim_count];
    bench_check(weir_region_slot(churn->region, victim, &info), "weir_region_slot");
    bench_check(weir_region_free(churn->region, victim), "weir_region_free");
    churn->live_bytes -= info.bytes;
}

static uint32_t churn_next_size(struct churn *churn)
{
    uint32_t bytes = churn->sizes[churn->size_index];

    churn->size_index = (churn->size_index + 1) % churn->size_count;
    return bytes;
}

static void churn_look(struct churn *churn)
{
    struct weir_region_stats stats;

    bench_check(weir_region_poll(churn->region), "weir_region_poll");
    weir_region_stats(churn->region, &stats);
    if (stats.file_bytes > churn->footprint_bytes)
        churn->footprint_bytes = stats.file_bytes;
    if (stats.mark_bytes > churn->mark_bytes)
        churn->mark_bytes = stats.mark_bytes;
}

/* REGION_BATCH puts, each with as many gets and frees as make room for it; their bytes. */
static uint64_t churn_batch(struct churn *churn)
{
    uint64_t bytes_put = 0;

    for (uint32_t i = 0; i < REGION_BATCH; i++) {
        uint32_t bytes = churn_next_size(churn);
        while (churn->live_bytes + bytes > churn->live_bytes_max)
            churn_drop(churn);
        churn_put(churn, bytes);
        bytes_put += bytes;
    }
    return bytes_put;
}

/* The same lengths once in and once out again, nothing else. */
static void churn_copy(struct churn *churn, struct workload_memory *memory,
                       struct workload_source *source, uint32_t size_index)
{
    for (uint32_t i = 0; i < REGION_BATCH; i++) {
        uint32_t bytes = churn->sizes[(size_index + i) % churn->size_count];
        memcpy(workload_memory_next(memory, bytes), workload_source_next(source), bytes);
        memcpy(churn->out, workload_memory_next(memory, bytes), bytes);
        workload_use(churn->out);
    }
}

/* The same to and from random places, as items lie that come and go: no allocator can do less. */
static void churn_replay(struct churn *churn, struct workload_memory *memory,
                         struct workload_source *source, uint32_t size_index)
{
    uint64_t places = (memory->bytes - WORKLOAD_SIZE_MAX) / 16;

    for (uint32_t i = 0; i < REGION_BATCH; i++) {
        uint32_t bytes = churn->sizes[(size_index + i) % churn->size_count];
        uint64_t in = workload_random(&source->random) % places * 16;
        uint64_t out = workload_random(&source->random) % places * 16;
        memcpy(memory->base + in, workload_source_next(source), bytes);
        memcpy(churn->out, memory->base + out, bytes);
        workload_use(churn->out);
    }
}

static void churn_measure(struct churn *churn)
{
    struct bench_row *row = bench_row(churn->bench, "churn 512 MiB: put + get + free");
    uint64_t turnover_bytes = 4 * churn->live_bytes_max;
    struct workload_source source;
    struct workload_memory memory;

    workload_source_open(&source, 7);
    workload_memory_open(&memory, churn->live_bytes_max);
    for (uint64_t put_bytes = 0; put_bytes < turnover_bytes;) {
        uint32_t size_index = churn->size_index;
        churn_choose(churn);
        bench_start(churn->bench);
        put_bytes += churn_batch(churn);
        bench_lap(churn->bench, row, BENCH_SELF, REGION_BATCH);
        churn_copy(churn, &memory, &source, size_index);
        bench_lap(churn->bench, row, "memcpy, in order", REGION_BATCH);
        churn_replay(churn, &memory, &source, size_index);
        bench_lap(churn->bench, row, "memcpy, at random", REGION_BATCH);
        churn_look(churn);
    }
    workload_memory_close(&memory);
    workload_source_close(&source);

    struct weir_region_stats stats;
    weir_region_stats(churn->region, &stats);
    double live_bytes = (double)stats.live_bytes_peak;
    bench_figure(row, "peak file/live", (double)churn->footprint_bytes / live_bytes);
    bench_figure(row, "peak mark/live", (double)churn->mark_bytes / live_bytes);
    bench_figure(row, "tables/live", (double)stats.metadata_bytes / live_bytes);
}

/* 512 MiB are live, and perhaps not all in memory. */
static struct churn *churn_open(struct bench *bench, uint64_t bytes_max,
                                uint64_t resident_bytes_max)
{
    static struct churn churn;

    churn = (struct churn){
        .bench = bench,
        .live_bytes_max = bench_count(bench, REGION_CHURN_LIVE),
        .size_count = 1u << 20,
        .random = 5,
    };
    churn.sizes = workload_sizes(6, churn.size_count);
    churn.region = region_open(bench, bytes_max, resident_bytes_max);
    churn.slots = region_slots(churn.size_count);
    workload_source_open(&churn.source, 8);
    while (churn.live_bytes + WORKLOAD_SIZE_MAX < churn.live_bytes_max)
        churn_put(&churn, churn_next_size(&churn));
    return &churn;
}

static void churn_close(struct churn *churn)
{
    workload_source_close(&churn->source);
    free(churn->slots);
    weir_region_close(churn->region);
    free(churn->sizes);
}

static void region_churn(struct bench *bench)
{
    struct churn *churn = churn_open(bench, 2 * REGION_CHURN_LIVE, UINT64_MAX);

    churn_measure(churn);
    churn_close(churn);
}

/* ---- Churn, an eighth resident ---------------------------------------------- */

static void region_churn_cold(struct bench *bench)
{
    struct bench_row *row = bench_row(bench, "churn 512 MiB, 64 resident: put + free");
    struct churn *churn = churn_open(bench, 2 * REGION_CHURN_LIVE, 64 * REGION_MIB);
    uint64_t turnover_bytes = 2 * churn->live_bytes_max;
    struct workload_source source;
    struct workload_memory memory;
    struct weir_region_stats before;
    struct weir_region_stats after;

    workload_source_open(&source, 7);
    workload_memory_open(&memory, churn->live_bytes_max);
    weir_region_stats(churn->region, &before);
    for (uint64_t put_bytes = 0; put_bytes < turnover_bytes;) {
        uint32_t size_index = churn->size_index;
        churn_choose(churn);
        bench_start(bench);
        for (uint32_t i = 0; i < REGION_BATCH; i++) {
            uint32_t bytes = churn_next_size(churn);
            while (churn->live_bytes + bytes > churn->live_bytes_max)
                churn_drop_unseen(churn);
            uint64_t begin = bench_wall_ns();
            churn_put(churn, bytes);
            bench_latency(row, BENCH_SELF, bench_wall_ns() - begin);
            put_bytes += bytes;
        }
        bench_lap(bench, row, BENCH_SELF, REGION_BATCH);
        churn_copy(churn, &memory, &source, size_index);
        bench_lap(bench, row, "memcpy, in order", REGION_BATCH);
        churn_look(churn);
    }
    workload_memory_close(&memory);
    workload_source_close(&source);

    weir_region_stats(churn->region, &after);
    double put_bytes = (double)(after.put_bytes - before.put_bytes);
    bench_figure(row, "written/put",
                 (double)(after.written_bytes - before.written_bytes) / put_bytes);
    bench_figure(row, "moved/put", (double)(after.moved_bytes - before.moved_bytes) / put_bytes);
    bench_figure(row, "peak file/live",
                 (double)churn->footprint_bytes / (double)after.live_bytes_peak);
    bench_figure(row, "resident MiB", (double)after.resident_bytes / (double)REGION_MIB);
    churn_close(churn);
}

/* ---- Sizes that shift ------------------------------------------------------- */

/* 2 KiB items, of which a fifth stays, then items of 16 KiB in the room of the others. */
static void region_shift(struct bench *bench)
{
    struct bench_row *row = bench_row(bench, "shift: put 16 KiB where 2 KiB were");
    uint64_t live_bytes = bench_count(bench, 256 * REGION_MIB);
    uint32_t count = (uint32_t)(live_bytes / 2048);
    uint32_t large_count = (uint32_t)(live_bytes / 5 * 4 / REGION_ITEM_BYTES);
    struct weir_region *region = region_open(bench, 1024 * REGION_MIB, UINT64_MAX);
    struct weir_slot *slots = region_slots(count);
    uint32_t *order = workload_shuffle(14, count);
    struct workload_source source;
    struct workload_memory memory;
    struct weir_region_stats stats;

    workload_source_open(&source, 15);
    workload_memory_open(&memory, live_bytes);
    for (uint32_t i = 0; i < count; i++)
        bench_check(weir_region_put(region, workload_source_next(&source), 2048,
                                    (struct weir_label){.key = i}, &slots[i]),
                    "weir_region_put");
    for (uint32_t i = 0; i < count / 5 * 4; i++)
        bench_check(weir_region_free(region, slots[order[i]]), "weir_region_free");
    for (uint32_t begin = 0; begin < large_count; begin += 64) {
        uint32_t batch = large_count - begin < 64 ? large_count - begin : 64;
        bench_start(bench);
        for (uint32_t i = 0; i < batch; i++)
            bench_check(weir_region_put(region, workload_source_next(&source), REGION_ITEM_BYTES,
                                        (struct weir_label){.key = i}, &slots[0]),
                        "weir_region_put");
        bench_check(weir_region_poll(region), "weir_region_poll");
        bench_lap(bench, row, BENCH_SELF, batch);
        for (uint32_t i = 0; i < batch; i++)
            memcpy(workload_memory_next(&memory, REGION_ITEM_BYTES), workload_source_next(&source),
                   REGION_ITEM_BYTES);
        bench_lap(bench, row, "memcpy", batch);
    }
    weir_region_stats(region, &stats);
    bench_figure(row, "file/live", (double)stats.file_bytes / (double)stats.live_bytes_peak);
    bench_figure(row, "moved/put",
                 (double)stats.moved_bytes / (double)large_count / REGION_ITEM_BYTES);
    workload_memory_close(&memory);
    workload_source_close(&source);
    free(order);
    free(slots);
    weir_region_close(region);
}

/* ---- Growth ----------------------------------------------------------------- */

static void region_growth(struct bench *bench)
{
    struct bench_row *row = bench_row(bench, "grow: put 4 KiB, 64 MiB to 2 GiB");
    uint64_t count = bench_count(bench, 2048 * REGION_MIB / 4096);
    struct weir_region *region = region_open(bench, 4096 * REGION_MIB, UINT64_MAX);
    struct workload_source source;
    struct workload_memory memory;
    struct weir_slot slot;

    bench_row_bytes(row, 4096);
    workload_source_open(&source, 16);
    workload_memory_open(&memory, 64 * REGION_MIB);
    for (uint64_t i = 0; i < count; i += REGION_BATCH) {
        bench_start(bench);
        for (uint32_t j = 0; j < REGION_BATCH; j++) {
            uint64_t begin = bench_wall_ns();
            int r = weir_region_put(region, workload_source_next(&source), 4096,
                                    (struct weir_label){.key = i + j}, &slot);
            bench_check(r, "weir_region_put");
            bench_latency(row, BENCH_SELF, bench_wall_ns() - begin);
        }
        bench_check(weir_region_poll(region), "weir_region_poll");
        bench_lap(bench, row, BENCH_SELF, REGION_BATCH);
        for (uint32_t j = 0; j < REGION_BATCH; j++) {
            uint64_t begin = bench_wall_ns();
            memcpy(workload_memory_next(&memory, 4096), workload_source_next(&source), 4096);
            bench_latency(row, "memcpy", bench_wall_ns() - begin);
        }
        bench_lap(bench, row, "memcpy", REGION_BATCH);
    }
    workload_memory_close(&memory);
    workload_source_close(&source);
    weir_region_close(region);
}

/* ---- Spill: out of memory at the speed of the disk -------------------------- */

/* Puts that wait where a chunk must be written first, as a region with its own ring does. */
static void spill_region(struct bench *bench, struct bench_row *row, struct workload_source *source,
                         uint64_t count)
{
    struct weir_region *region = region_open(bench, 2 * REGION_COLD_BYTES, 64 * REGION_MIB);
    struct weir_region_stats stats;
    struct weir_slot slot;

    bench_start(bench);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t begin = bench_wall_ns();
        int r = weir_region_put(region, workload_source_next(source), REGION_ITEM_BYTES,
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

static int spill_open(const struct bench *bench)
{
    int fd = open(bench_directory(bench), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    bench_check(fd < 0 ? -errno : 0, bench_directory(bench));
    return fd;
}

/*
 * The shortest way by hand: pwrite, and behind it each 2 MiB written out and, 32
 * MiB later, dropped.
 */
static void spill_by_hand(struct bench *bench, struct bench_row *row,
                          struct workload_source *source, uint64_t count)
{
    int fd = spill_open(bench);
    uint64_t at = 0;

    bench_start(bench);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t begin = bench_wall_ns();
        if (at % REGION_STEP_BYTES == 0)
            (void)fallocate(fd, 0, (off_t)at, REGION_STEP_BYTES);
        if (pwrite(fd, workload_source_next(source), REGION_ITEM_BYTES, (off_t)at) !=
            (ssize_t)REGION_ITEM_BYTES)
            bench_check(-EIO, "pwrite");
        at += REGION_ITEM_BYTES;
        if (at % REGION_STEP_BYTES == 0) {
            uint64_t lag = 16 * REGION_STEP_BYTES;
            (void)sync_file_range(fd, (off_t)(at - REGION_STEP_BYTES), REGION_STEP_BYTES,
                                  SYNC_FILE_RANGE_WRITE);
            if (at > lag) {
                (void)sync_file_range(fd, (off_t)(at - lag), REGION_STEP_BYTES,
                                      SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                                          SYNC_FILE_RANGE_WAIT_AFTER);
                (void)posix_fadvise(fd, (off_t)(at - lag), REGION_STEP_BYTES, POSIX_FADV_DONTNEED);
            }
        }
        bench_latency(row, "pwrite + write-back", bench_wall_ns() - begin);
    }
    bench_lap(bench, row, "pwrite + write-back", count);
    close(fd);
}

static void region_spill(struct bench *bench)
{
    struct bench_row *row = bench_row(bench, "spill: put 16 KiB, 64 MiB resident");
    uint64_t count = bench_count(bench, REGION_COLD_BYTES / REGION_ITEM_BYTES);
    struct workload_source source;

    bench_row_bytes(row, REGION_ITEM_BYTES);
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
    uint64_t *asked_ns; /* by item */
    uint64_t count;
    uint64_t random;
    uint64_t asked_count;
    uint64_t done_count;
    uint64_t wanted_count;
    struct weir_slot again[REGION_FETCH_DEPTH]; /* to be asked for when poll is over */
    uint32_t again_count;
    uint64_t sum;
};

static void fetch_choose(struct fetch *fetch)
{
    if (fetch->asked_count == fetch->wanted_count)
        return;
    uint64_t item = workload_below(&fetch->random, fetch->count);
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

/* @count items, REGION_FETCH_DEPTH asked for at any time. */
static void fetch_region(struct fetch *fetch, uint64_t count)
{
    fetch->asked_count = 0;
    fetch->done_count = 0;
    fetch->wanted_count = count;
    bench_start(fetch->bench);
    while (fetch->again_count < REGION_FETCH_DEPTH)
        fetch_choose(fetch);
    while (fetch->done_count < count) {
        if (fetch->again_count > 0) {
            int r = weir_region_fetch(fetch->region, fetch->again, fetch->again_count, fetch_done,
                                      fetch);
            bench_check(r, "weir_region_fetch");
        }
        fetch->again_count = 0;
        bench_check(weir_region_wait(fetch->region, REGION_WAIT_NS), "weir_region_wait");
    }
    bench_lap(fetch->bench, fetch->row, BENCH_SELF, count);
}

struct direct {
    struct io_uring ring;
    int fd;
    char *buffers;
    uint64_t asked_ns[REGION_FETCH_DEPTH];
    uint64_t random;
};

/* A file of the same length, and a ring that reads it past the page cache. */
static void direct_open(struct direct *direct, const struct bench *bench, uint64_t count)
{
    char path[64];
    int fd = spill_open(bench);
    struct workload_source source;

    workload_source_open(&source, 10);
    for (uint64_t i = 0; i < count; i++)
        if (pwrite(fd, workload_source_next(&source), REGION_ITEM_BYTES,
                   (off_t)(i * REGION_ITEM_BYTES)) != (ssize_t)REGION_ITEM_BYTES)
            bench_check(-EIO, "pwrite");
    workload_source_close(&source);
    bench_check(fsync(fd) < 0 ? -errno : 0, "fsync");
    bench_check(-posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), "posix_fadvise");
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    direct->fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    bench_check(direct->fd < 0 ? -errno : 0, "open O_DIRECT");
    close(fd);
    direct->buffers = aligned_alloc(4096, (size_t)REGION_FETCH_DEPTH * REGION_ITEM_BYTES);
    if (direct->buffers == NULL)
        bench_check(-ENOMEM, "aligned_alloc");
    bench_check(io_uring_queue_init(REGION_FETCH_DEPTH, &direct->ring, 0), "io_uring_queue_init");
    direct->random = 12;
}

static void direct_close(struct direct *direct)
{
    io_uring_queue_exit(&direct->ring);
    free(direct->buffers);
    close(direct->fd);
}

static void direct_ask(struct direct *direct, uint64_t buffer, uint64_t count)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&direct->ring);
    uint64_t item = workload_below(&direct->random, count);

    io_uring_prep_read(sqe, direct->fd, direct->buffers + buffer * REGION_ITEM_BYTES,
                       REGION_ITEM_BYTES, item * REGION_ITEM_BYTES);
    io_uring_sqe_set_data64(sqe, buffer);
    direct->asked_ns[buffer] = bench_wall_ns();
}

static void direct_read(struct fetch *fetch, struct direct *direct, uint64_t count)
{
    uint64_t asked_count = 0;
    uint64_t done_count = 0;

    bench_start(fetch->bench);
    for (; asked_count < REGION_FETCH_DEPTH; asked_count++)
        direct_ask(direct, asked_count, fetch->count);
    while (done_count < count) {
        struct io_uring_cqe *cqe;
        unsigned head;
        unsigned seen = 0;
        bench_check(io_uring_submit_and_wait(&direct->ring, 1), "io_uring_submit_and_wait");
        io_uring_for_each_cqe(&direct->ring, head, cqe)
        {
            uint64_t buffer = io_uring_cqe_get_data64(cqe);
            bench_check(cqe->res == (int)REGION_ITEM_BYTES ? 0 : -EIO, "read");
            bench_latency(fetch->row, "O_DIRECT read", bench_wall_ns() - direct->asked_ns[buffer]);
            fetch->sum += (unsigned char)direct->buffers[buffer * REGION_ITEM_BYTES];
            seen++;
            done_count++;
            if (asked_count < count) {
                direct_ask(direct, buffer, fetch->count);
                asked_count++;
            }
        }
        io_uring_cq_advance(&direct->ring, seen);
    }
    bench_lap(fetch->bench, fetch->row, "O_DIRECT read", count);
}

/* All items are put; nearly all are on disk only. */
static void fetch_fill(struct fetch *fetch)
{
    struct workload_source source;

    workload_source_open(&source, 11);
    for (uint64_t i = 0; i < fetch->count; i++) {
        int r = weir_region_put(fetch->region, workload_source_next(&source), REGION_ITEM_BYTES,
                                (struct weir_label){.key = i}, &fetch->slots[i]);
        bench_check(r, "weir_region_put");
    }
    workload_source_close(&source);
}

static void region_fetch(struct bench *bench)
{
    uint64_t count = bench_count(bench, REGION_COLD_BYTES / 2 / REGION_ITEM_BYTES);
    uint64_t rounds = bench_count(bench, 1u << 15) / REGION_BATCH;
    struct fetch fetch = {
        .bench = bench,
        .row = bench_row(bench, "fetch 16 KiB at random, 16 ahead"),
        .region = region_open(bench, REGION_COLD_BYTES, 64 * REGION_MIB),
        .slots = region_slots(count),
        .count = count,
        .random = 13,
    };
    struct direct direct;

    bench_row_bytes(fetch.row, REGION_ITEM_BYTES);
    fetch.asked_ns = calloc(2 * count + 2, sizeof(*fetch.asked_ns));
    if (fetch.asked_ns == NULL)
        bench_check(-ENOMEM, "calloc");
    fetch_fill(&fetch);
    direct_open(&direct, bench, count);
    for (uint64_t i = 0; i < rounds; i++) {
        fetch_region(&fetch, REGION_BATCH);
        direct_read(&fetch, &direct, REGION_BATCH);
    }
    workload_use(&fetch.sum);
    direct_close(&direct);

    struct weir_region_stats stats;
    weir_region_stats(fetch.region, &stats);
    if (stats.fetch_count > 0)
        bench_figure(fetch.row, "read/fetched",
                     (double)stats.read_bytes / (double)stats.fetch_count / REGION_ITEM_BYTES);
    free(fetch.asked_ns);
    free(fetch.slots);
    weir_region_close(fetch.region);
}

const struct bench_case region_cases[] = {
    {"items of 64 B", BENCH_CPU, region_items_small},
    {"items of 1 KiB", BENCH_CPU, region_items_large},
    {"churn", BENCH_CPU, region_churn},
    {"cold churn", BENCH_WALL, region_churn_cold},
    {"shift", BENCH_CPU, region_shift},
    {"grow", BENCH_WALL, region_growth},
    {"spill", BENCH_WALL, region_spill},
    {"fetch", BENCH_WALL, region_fetch},
    {NULL, BENCH_CPU, NULL},
};
