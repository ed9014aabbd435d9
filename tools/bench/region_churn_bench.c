/* SPDX-License-Identifier: MIT */
/*
 * region_churn_bench - items that come and go at random, and sizes that shift
 *
 * Churn keeps 512 MiB of log-normal items alive and puts as many again some times
 * over, freeing at random what must make room. All may be in memory; or 64 MiB
 * may, and then what counts is how much is written, for how small a file. Skewed,
 * four in five births and deaths are in a fifth of the bytes, and the region is
 * not told which.
 */
#include "region_bench.h"

#include "resident.h"
#include "watch.h"
#include "workload.h"

#include <stdlib.h>
#include <string.h>

#define CHURN_LIVE          (512 * REGION_MIB)
#define CHURN_FILE_MAX      (2 * CHURN_LIVE)
#define CHURN_COLD_RESIDENT (64 * REGION_MIB)
#define CHURN_VICTIMS       (4 * REGION_BATCH)
#define CHURN_SIZES         (UINT32_C(1) << 20)
#define CHURN_COUNT_BYTES   (16 * REGION_MIB) /* between two looks at the page cache */
#define SHIFT_ITEM_BYTES    (16u << 10)
#define SHIFT_SMALL_BYTES   2048u

/* Items of one temper. */
struct churn_set {
    struct weir_slot *slots;
    uint32_t slot_count;
    struct weir_slot victims[CHURN_VICTIMS]; /* the next to be freed, in random order */
    uint32_t victim_count;
    uint64_t live_bytes;
    uint64_t live_bytes_max;
};

struct churn {
    struct bench *bench;
    struct weir_region *region;
    struct churn_set sets[2]; /* all; or hot and cold */
    uint32_t set_count;
    uint64_t live_bytes_max;
    uint64_t footprint_bytes; /* the most that the file was */
    uint64_t mark_bytes;      /* the most of it that was ever handed out */
    uint32_t *sizes;
    uint32_t size_count;
    uint32_t size_index;
    uint64_t random;
    struct workload_source source;
    struct workload_source yardstick;
    struct workload_memory memory; /* of the yardstick */
    struct resident resident;
    char out[WORKLOAD_SIZE_MAX];
};

/* Where the next birth and death are. */
static struct churn_set *churn_set(struct churn *churn)
{
    if (churn->set_count == 1)
        return &churn->sets[0];
    return &churn->sets[workload_below(&churn->random, 10) < 8 ? 0 : 1];
}

static void churn_put(struct churn *churn, struct churn_set *set, uint32_t bytes)
{
    int r = weir_region_put(churn->region, workload_source_next(&churn->source), bytes,
                            (struct weir_label){.key = 0}, &set->slots[set->slot_count]);

    bench_check(r, "weir_region_put");
    set->slot_count++;
    set->live_bytes += bytes;
}

static void churn_choose_from(struct churn *churn, struct churn_set *set)
{
    while (set->victim_count < CHURN_VICTIMS && set->slot_count > 0) {
        uint32_t victim = (uint32_t)workload_below(&churn->random, set->slot_count);
        set->victims[set->victim_count++] = set->slots[victim];
        set->slots[victim] = set->slots[--set->slot_count];
    }
}

/* Between laps: who is freed next, so that the search for a handle is nobody's time. */
static void churn_choose(struct churn *churn)
{
    for (uint32_t i = 0; i < churn->set_count; i++)
        churn_choose_from(churn, &churn->sets[i]);
}

static struct weir_slot churn_victim(struct churn *churn, struct churn_set *set)
{
    if (set->victim_count == 0)
        churn_choose_from(churn, set);
    return set->victims[--set->victim_count];
}

/* A random item is read and freed. */
static void churn_drop(struct churn *churn, struct churn_set *set)
{
    struct weir_slot victim = churn_victim(churn, set);
    const void *data;
    size_t bytes;

    bench_check(weir_region_at(churn->region, victim, &data, &bytes), "weir_region_at");
    memcpy(churn->out, data, bytes);
    workload_use(churn->out);
    bench_check(weir_region_free(churn->region, victim), "weir_region_free");
    set->live_bytes -= bytes;
}

/* The same without a look at it: it may be cold. */
static void churn_drop_unseen(struct churn *churn, struct churn_set *set)
{
    struct weir_slot victim = churn_victim(churn, set);
    struct weir_slot_info info;

    bench_check(weir_region_slot(churn->region, victim, &info), "weir_region_slot");
    bench_check(weir_region_free(churn->region, victim), "weir_region_free");
    set->live_bytes -= info.bytes;
}

static uint32_t churn_next_size(struct churn *churn)
{
    uint32_t bytes = churn->sizes[churn->size_index];

    churn->size_index = (churn->size_index + 1) % churn->size_count;
    return bytes;
}

static void churn_poll(struct churn *churn)
{
    bench_check(weir_region_poll(churn->region), "weir_region_poll");
}

static void churn_look(struct churn *churn)
{
    struct weir_region_stats stats;

    weir_region_stats(churn->region, &stats);
    if (stats.file_bytes > churn->footprint_bytes)
        churn->footprint_bytes = stats.file_bytes;
    if (stats.mark_bytes > churn->mark_bytes)
        churn->mark_bytes = stats.mark_bytes;
}

/* The same lengths once in and, where @is_read, once out again; nothing else. */
static void churn_copy(struct churn *churn, uint32_t size_index, bool is_read)
{
    for (uint32_t i = 0; i < REGION_BATCH; i++) {
        uint32_t bytes = churn->sizes[(size_index + i) % churn->size_count];
        memcpy(workload_memory_next(&churn->memory, bytes), workload_source_next(&churn->yardstick),
               bytes);
        if (!is_read)
            continue;
        memcpy(churn->out, workload_memory_next(&churn->memory, bytes), bytes);
        workload_use(churn->out);
    }
}

/* @live_bytes: of this set. */
static void churn_set_open(struct churn_set *set, uint64_t live_bytes)
{
    set->slots = region_array(CHURN_SIZES, sizeof(*set->slots));
    set->live_bytes_max = live_bytes;
}

/* Filled to the brim. */
static struct churn *churn_open(struct bench *bench, uint64_t resident_bytes_max, bool is_skewed)
{
    struct churn *churn = region_array(1, sizeof(*churn));
    struct weir_region_stats stats;

    churn->bench = bench;
    churn->live_bytes_max = bench_count(bench, CHURN_LIVE);
    churn->set_count = is_skewed ? 2 : 1;
    churn->size_count = CHURN_SIZES;
    churn->sizes = workload_sizes(6, churn->size_count);
    churn->random = 5;
    churn_set_open(&churn->sets[0], churn->live_bytes_max / (is_skewed ? 5 : 1));
    if (is_skewed)
        churn_set_open(&churn->sets[1], churn->live_bytes_max / 5 * 4);
    workload_source_open(&churn->source, 8);
    workload_source_open(&churn->yardstick, 7);
    workload_memory_open(&churn->memory, churn->live_bytes_max);
    resident_open(&churn->resident);
    churn->region = region_open(bench, CHURN_FILE_MAX, resident_bytes_max);
    weir_region_stats(churn->region, &stats);
    resident_find(&churn->resident, stats.file_bytes, CHURN_FILE_MAX);
    return churn;
}

/* Both sets are filled in turn, so that they lie mixed. */
static void churn_fill(struct churn *churn)
{
    uint64_t full_bytes = churn->live_bytes_max - churn->set_count * WORKLOAD_SIZE_MAX;
    uint64_t live_bytes = 0;

    for (uint32_t i = 0; live_bytes < full_bytes; i++) {
        struct churn_set *set = &churn->sets[churn->set_count == 1 || i % 5 == 0 ? 0 : 1];
        uint32_t bytes = churn_next_size(churn);
        live_bytes += bytes;
        churn_put(churn, set, bytes);
        if (i % REGION_TICK == 0)
            churn_poll(churn);
    }
    churn_look(churn);
}

static void churn_close(struct churn *churn)
{
    resident_close(&churn->resident);
    weir_region_close(churn->region);
    workload_memory_close(&churn->memory);
    workload_source_close(&churn->yardstick);
    workload_source_close(&churn->source);
    for (uint32_t i = 0; i < churn->set_count; i++)
        free(churn->sets[i].slots);
    free(churn->sizes);
    free(churn);
}

/* ---- All resident ----------------------------------------------------------- */

/* REGION_BATCH puts, each with as many gets and frees as make room for it; their bytes. */
static uint64_t churn_batch(struct churn *churn)
{
    struct churn_set *set = &churn->sets[0];
    uint64_t bytes_put = 0;

    for (uint32_t i = 0; i < REGION_BATCH; i++) {
        uint32_t bytes = churn_next_size(churn);
        while (set->live_bytes + bytes > set->live_bytes_max)
            churn_drop(churn, set);
        churn_put(churn, set, bytes);
        bytes_put += bytes;
        if (i % REGION_TICK == 0)
            churn_poll(churn);
    }
    return bytes_put;
}

/* To and from random places, as items lie that come and go: no allocator can do less. */
static void churn_replay(struct churn *churn, uint32_t size_index)
{
    uint64_t places = (churn->memory.bytes - WORKLOAD_SIZE_MAX) / 16;

    for (uint32_t i = 0; i < REGION_BATCH; i++) {
        uint32_t bytes = churn->sizes[(size_index + i) % churn->size_count];
        uint64_t in = workload_below(&churn->yardstick.random, places) * 16;
        uint64_t out = workload_below(&churn->yardstick.random, places) * 16;
        memcpy(churn->memory.base + in, workload_source_next(&churn->yardstick), bytes);
        memcpy(churn->out, churn->memory.base + out, bytes);
        workload_use(churn->out);
    }
}

void region_churn(struct bench *bench)
{
    struct bench_row *row = bench_row(bench, "churn 512 MiB: put + get + free");
    struct churn *churn = churn_open(bench, UINT64_MAX, false);
    uint64_t turnover_bytes = 4 * churn->live_bytes_max;
    uint64_t operation_count = 0;

    churn_fill(churn);
    int64_t others_ns = watch_others_ns();
    for (uint64_t put_bytes = 0; put_bytes < turnover_bytes; operation_count += REGION_BATCH) {
        uint32_t size_index = churn->size_index;
        churn_choose(churn);
        bench_start(bench);
        put_bytes += churn_batch(churn);
        bench_lap(bench, row, BENCH_SELF, REGION_BATCH);
        churn_copy(churn, size_index, true);
        bench_lap(bench, row, "memcpy, in order", REGION_BATCH);
        churn_replay(churn, size_index);
        bench_lap(bench, row, "memcpy, at random", REGION_BATCH);
        churn_look(churn);
    }

    struct weir_region_stats stats;
    weir_region_stats(churn->region, &stats);
    double live_bytes = (double)stats.live_bytes_peak;
    bench_figure(row, "peak file/live", (double)churn->footprint_bytes / live_bytes);
    bench_figure(row, "peak mark/live", (double)churn->mark_bytes / live_bytes);
    bench_figure(row, "tables/live", (double)stats.metadata_bytes / live_bytes);
    bench_figure(row, "ns each of io_uring's threads",
                 watch_others_each(others_ns, operation_count));
    bench_at_most(row, BENCH_RATIO, "memcpy, in order", 1.7);
    bench_at_most(row, BENCH_FIGURE, "peak file/live", 1.04);
    churn_close(churn);
}

/* ---- An eighth resident ----------------------------------------------------- */

/* Puts and the frees that make room, without gets; their bytes. */
static uint64_t churn_batch_cold(struct churn *churn, struct bench_row *row)
{
    uint64_t bytes_put = 0;

    for (uint32_t i = 0; i < REGION_BATCH; i++) {
        struct churn_set *set = churn_set(churn);
        uint32_t bytes = churn_next_size(churn);
        while (set->live_bytes + bytes > set->live_bytes_max)
            churn_drop_unseen(churn, set);
        uint64_t begin = bench_wall_ns();
        churn_put(churn, set, bytes);
        bench_latency(row, BENCH_SELF, bench_wall_ns() - begin);
        bytes_put += bytes;
        if (i % REGION_TICK == 0)
            churn_poll(churn);
    }
    return bytes_put;
}

/* Until so much was put; @row NULL: unmeasured. */
static void churn_turn_over(struct churn *churn, struct bench_row *row, uint64_t turnover_bytes)
{
    uint64_t counted_bytes = 0;

    for (uint64_t put_bytes = 0; put_bytes < turnover_bytes;) {
        uint32_t size_index = churn->size_index;
        churn_choose(churn);
        bench_start(churn->bench);
        put_bytes += churn_batch_cold(churn, row);
        bench_lap(churn->bench, row, BENCH_SELF, REGION_BATCH);
        churn_copy(churn, size_index, false);
        bench_lap(churn->bench, row, "memcpy, in order", REGION_BATCH);
        churn_look(churn);
        if (put_bytes - counted_bytes < CHURN_COUNT_BYTES)
            continue;
        resident_count(&churn->resident);
        counted_bytes = put_bytes;
    }
    resident_count(&churn->resident);
}

/*
 * The first turnover is in the time and in the peaks, but not in what was written
 * per byte put: as long as the file has no holes, writing is cheap.
 */
static void churn_cold(struct bench *bench, struct bench_row *row, bool is_skewed)
{
    struct churn *churn = churn_open(bench, CHURN_COLD_RESIDENT, is_skewed);
    struct weir_region_stats before;
    struct weir_region_stats after;

    churn_fill(churn);
    churn_turn_over(churn, row, churn->live_bytes_max);
    weir_region_stats(churn->region, &before);
    churn_turn_over(churn, row, 2 * churn->live_bytes_max);
    weir_region_stats(churn->region, &after);

    double put_bytes = (double)(after.put_bytes - before.put_bytes);
    double live_bytes = (double)after.live_bytes_peak;
    bench_figure(row, "written/put",
                 (double)(after.written_bytes - before.written_bytes) / put_bytes);
    bench_figure(row, "moved/put", (double)(after.moved_bytes - before.moved_bytes) / put_bytes);
    bench_figure(row, "staged/put", (double)(after.staged_bytes - before.staged_bytes) / put_bytes);
    bench_figure(row, "peak file/live", (double)churn->footprint_bytes / live_bytes);
    bench_figure(row, "resident MiB, own count", (double)after.resident_bytes / (double)REGION_MIB);
    bench_figure(row, "peak resident MiB, the kernel's",
                 (double)churn->resident.peak_bytes / (double)REGION_MIB);
    bench_figure(row, "of these, tables MiB", (double)after.metadata_bytes / (double)REGION_MIB);
    bench_at_most(row, BENCH_FIGURE, "written/put", is_skewed ? 2.2 : 2.0);
    bench_at_most(row, BENCH_FIGURE, "peak file/live", is_skewed ? 1.35 : 1.30);
    bench_at_most(row, BENCH_FIGURE, "peak resident MiB, the kernel's", 96);
    churn_close(churn);
}

void region_churn_cold(struct bench *bench)
{
    churn_cold(bench, bench_row(bench, "churn 512 MiB, 64 resident: put + free"), false);
}

void region_churn_skewed(struct bench *bench)
{
    churn_cold(bench, bench_row(bench, "the same, 80 %% of it in a hot 20 %%"), true);
}

/* ---- Sizes that shift ------------------------------------------------------- */

struct shift {
    struct bench *bench;
    struct bench_row *row;
    struct weir_region *region;
    uint32_t small_count;
    uint32_t large_count;
    uint64_t file_bytes; /* the most that it was */
    struct workload_source source;
    struct workload_source yardstick;
    struct workload_memory memory;
};

static void shift_put(struct shift *shift, size_t bytes, struct weir_slot *ret_slot)
{
    int r = weir_region_put(shift->region, workload_source_next(&shift->source), bytes,
                            (struct weir_label){.key = 0}, ret_slot);

    bench_check(r, "weir_region_put");
}

static void shift_poll(struct shift *shift)
{
    bench_check(weir_region_poll(shift->region), "weir_region_poll");
}

static void shift_look(struct shift *shift)
{
    struct weir_region_stats stats;

    weir_region_stats(shift->region, &stats);
    if (stats.file_bytes > shift->file_bytes)
        shift->file_bytes = stats.file_bytes;
}

/* Small ones everywhere, then a fifth of them; what poll does about it is in the time of puts. */
static void shift_thin_out(struct shift *shift)
{
    struct weir_slot *slots = region_array(shift->small_count, sizeof(*slots));
    uint32_t *order = workload_shuffle(14, shift->small_count);
    uint32_t freed_count = shift->small_count / 5 * 4;

    for (uint32_t i = 0; i < shift->small_count; i++) {
        shift_put(shift, SHIFT_SMALL_BYTES, &slots[i]);
        if (i % REGION_TICK == 0)
            shift_poll(shift);
    }
    shift_look(shift);
    for (uint32_t i = 0; i < freed_count; i++) {
        bench_check(weir_region_free(shift->region, slots[order[i]]), "weir_region_free");
        if (i % REGION_TICK != 0)
            continue;
        bench_start(shift->bench);
        shift_poll(shift);
        bench_lap(shift->bench, shift->row, BENCH_SELF, 0);
    }
    free(order);
    free(slots);
}

static void shift_put_large(struct shift *shift)
{
    for (uint32_t begin = 0; begin < shift->large_count; begin += REGION_TICK) {
        uint32_t left = shift->large_count - begin;
        uint32_t batch = left < REGION_TICK ? left : REGION_TICK;
        struct weir_slot slot;
        bench_start(shift->bench);
        for (uint32_t i = 0; i < batch; i++)
            shift_put(shift, SHIFT_ITEM_BYTES, &slot);
        shift_poll(shift);
        bench_lap(shift->bench, shift->row, BENCH_SELF, batch);
        for (uint32_t i = 0; i < batch; i++)
            memcpy(workload_memory_next(&shift->memory, SHIFT_ITEM_BYTES),
                   workload_source_next(&shift->yardstick), SHIFT_ITEM_BYTES);
        bench_lap(shift->bench, shift->row, "memcpy", batch);
        shift_look(shift);
    }
}

/* 2 KiB items, of which a fifth stays, then items of 16 KiB in the room of the others. */
void region_shift(struct bench *bench)
{
    uint64_t live_bytes = bench_count(bench, 256 * REGION_MIB);
    uint32_t small_count = (uint32_t)(live_bytes / SHIFT_SMALL_BYTES);
    struct shift shift = {
        .bench = bench,
        .row = bench_row(bench, "shift: put 16 KiB where 2 KiB were"),
        .small_count = small_count,
        .large_count = small_count / 5 * 4 / (SHIFT_ITEM_BYTES / SHIFT_SMALL_BYTES),
    };
    struct weir_region_stats stats;

    workload_source_open(&shift.source, 15);
    workload_source_open(&shift.yardstick, 21);
    workload_memory_open(&shift.memory, live_bytes);
    shift.region = region_open(bench, 1024 * REGION_MIB, UINT64_MAX);
    shift_thin_out(&shift);
    shift_put_large(&shift);
    weir_region_stats(shift.region, &stats);
    bench_figure(shift.row, "peak file/live",
                 (double)shift.file_bytes / (double)stats.live_bytes_peak);
    bench_figure(shift.row, "moved/put",
                 (double)stats.moved_bytes / (double)shift.large_count / SHIFT_ITEM_BYTES);
    bench_at_most(shift.row, BENCH_RATIO, "memcpy", 3);
    bench_at_most(shift.row, BENCH_FIGURE, "peak file/live", 1.08);
    bench_at_most(shift.row, BENCH_FIGURE, "moved/put", 0.3);
    weir_region_close(shift.region);
    workload_memory_close(&shift.memory);
    workload_source_close(&shift.yardstick);
    workload_source_close(&shift.source);
}
