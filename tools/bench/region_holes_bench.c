/* SPDX-License-Identifier: MIT */
/*
 * region_holes_bench - a region full of holes that cannot merge
 *
 *      | hole | keeper | live | keeper | hole | keeper | hole | keeper | ...
 *
 * Between any two that come and go stands a keeper of 64 B that stays. A pair
 * frees a live item at random and puts one of another length that fits some hole,
 * so the number of holes and of each length stays what it was.
 *
 * More holes are more memory, and what is touched of it at random is missed by
 * more caches: that is the machine's share, and no allocator can save it. The
 * second yardstick has only that, in as much memory as the tables and the file
 * have, with lines at random: the line of the item that goes, the two lines that
 * it names as its neighbours, for they must be looked at to merge; the line of the
 * hole, and the place that it names, where the same bytes are copied.
 */
#include "region_bench.h"

#include "workload.h"

#include <stdlib.h>
#include <string.h>

#define HOLES_CLASS_BYTES  16u
#define HOLES_BYTES_MIN    64u
#define HOLES_KEEPER_BYTES 64u
#define HOLES_BATCH        256u
#define HOLES_PAIRS        (UINT64_C(1) << 17)
#define HOLES_LINE_BYTES   64u
#define HOLES_LINE_WORDS   (HOLES_LINE_BYTES / sizeof(uint64_t))

struct holes {
    struct bench *bench;
    struct weir_region *region;
    uint32_t class_count;
    uint32_t hole_count;
    struct weir_slot *slots; /* of the live ones between keepers */
    uint32_t *sizes;         /* theirs */
    uint32_t live_count;
    uint32_t batch;
    uint32_t sizes_next[HOLES_BATCH]; /* what is put where the first of slots were */
    uint64_t random;
    struct workload_source source;
    struct workload_source yardstick;
    struct workload_memory memory; /* as much as the file */
    struct workload_memory tables; /* as much as the tables */
};

static uint32_t holes_size(struct holes *holes)
{
    return HOLES_BYTES_MIN +
           HOLES_CLASS_BYTES * (uint32_t)workload_below(&holes->random, holes->class_count);
}

static struct weir_slot holes_put(struct holes *holes, uint32_t bytes)
{
    struct weir_slot slot;
    int r = weir_region_put(holes->region, workload_source_next(&holes->source), bytes,
                            (struct weir_label){.key = 0}, &slot);

    bench_check(r, "weir_region_put");
    return slot;
}

/* All places are taken, then some of them at random become holes. */
static void holes_build(struct holes *holes)
{
    uint32_t place_count = holes->hole_count + holes->live_count;
    struct weir_slot *slots = region_array(place_count, sizeof(*slots));
    uint32_t *sizes = region_array(place_count, sizeof(*sizes));
    uint32_t *order = workload_shuffle(17, place_count);

    for (uint32_t i = 0; i < place_count; i++) {
        sizes[i] = holes_size(holes);
        slots[i] = holes_put(holes, sizes[i]);
        (void)holes_put(holes, HOLES_KEEPER_BYTES);
        if (i % REGION_TICK == 0)
            bench_check(weir_region_poll(holes->region), "weir_region_poll");
    }
    for (uint32_t i = 0; i < holes->hole_count; i++)
        bench_check(weir_region_free(holes->region, slots[order[i]]), "weir_region_free");
    for (uint32_t i = 0; i < holes->live_count; i++) {
        holes->slots[i] = slots[order[holes->hole_count + i]];
        holes->sizes[i] = sizes[order[holes->hole_count + i]];
    }
    free(order);
    free(sizes);
    free(slots);
}

/* Between laps: the first of slots are those to be freed, and their lengths come back shuffled. */
static void holes_choose(struct holes *holes)
{
    for (uint32_t i = 0; i < holes->batch; i++) {
        uint32_t j = i + (uint32_t)workload_below(&holes->random, holes->live_count - i);
        struct weir_slot slot = holes->slots[i];
        uint32_t size = holes->sizes[i];
        holes->slots[i] = holes->slots[j];
        holes->sizes[i] = holes->sizes[j];
        holes->slots[j] = slot;
        holes->sizes[j] = size;
    }
    for (uint32_t i = 0; i < holes->batch; i++) {
        uint32_t j = (uint32_t)workload_below(&holes->random, i + 1);
        holes->sizes_next[i] = holes->sizes_next[j];
        holes->sizes_next[j] = holes->sizes[i];
    }
}

static void holes_pairs(struct holes *holes)
{
    for (uint32_t i = 0; i < holes->batch; i++) {
        bench_check(weir_region_free(holes->region, holes->slots[i]), "weir_region_free");
        holes->sizes[i] = holes->sizes_next[i];
        holes->slots[i] = holes_put(holes, holes->sizes[i]);
    }
    bench_check(weir_region_poll(holes->region), "weir_region_poll");
}

static void holes_copy(struct holes *holes)
{
    for (uint32_t i = 0; i < holes->batch; i++)
        memcpy(workload_memory_next(&holes->memory, holes->sizes_next[i]),
               workload_source_next(&holes->yardstick), holes->sizes_next[i]);
}

/* A line of the tables at random: the first word names another, the second changes. */
static uint64_t holes_line(struct holes *holes, uint64_t random)
{
    uint64_t *line = (uint64_t *)(void *)holes->tables.base +
                     random % (holes->tables.bytes / HOLES_LINE_BYTES) * HOLES_LINE_WORDS;

    line[1]++;
    return line[0];
}

static void holes_scatter(struct holes *holes)
{
    uint64_t places = (holes->memory.bytes - WORKLOAD_SIZE_MAX) / HOLES_CLASS_BYTES;
    uint64_t *random = &holes->yardstick.random;

    for (uint32_t i = 0; i < holes->batch; i++) {
        uint64_t neighbours = holes_line(holes, workload_random(random));
        (void)holes_line(holes, neighbours);
        (void)holes_line(holes, neighbours >> 32);
        uint64_t place = holes_line(holes, workload_random(random)) % places;
        memcpy(holes->memory.base + place * HOLES_CLASS_BYTES,
               workload_source_next(&holes->yardstick), holes->sizes_next[i]);
    }
}

static void holes_open_tables(struct holes *holes, uint64_t bytes)
{
    uint64_t seed = 26;

    workload_memory_open(&holes->tables, bytes);
    uint64_t *words = (uint64_t *)(void *)holes->tables.base;
    for (uint64_t i = 0; i < holes->tables.bytes / sizeof(*words); i++)
        words[i] = workload_random(&seed);
}

static void holes_measure(struct holes *holes, struct bench_row *row)
{
    uint64_t pair_count = bench_count(holes->bench, HOLES_PAIRS);

    for (uint64_t i = 0; i < pair_count; i += holes->batch) {
        holes_choose(holes);
        bench_start(holes->bench);
        holes_pairs(holes);
        bench_lap(holes->bench, row, BENCH_SELF, holes->batch);
        holes_copy(holes);
        bench_lap(holes->bench, row, "memcpy", holes->batch);
        holes_scatter(holes);
        bench_lap(holes->bench, row, "memcpy + lines of tables", holes->batch);
    }
}

static void holes_run(struct bench *bench, struct bench_row *row, uint32_t class_count,
                      uint64_t hole_count)
{
    struct holes *holes = region_array(1, sizeof(*holes));
    struct weir_region_stats stats;

    holes->bench = bench;
    holes->class_count = class_count;
    holes->hole_count = (uint32_t)hole_count;
    holes->live_count = holes->hole_count / 4;
    holes->batch = holes->live_count / 2 < HOLES_BATCH ? holes->live_count / 2 : HOLES_BATCH;
    holes->random = 18;
    holes->slots = region_array(holes->live_count, sizeof(*holes->slots));
    holes->sizes = region_array(holes->live_count, sizeof(*holes->sizes));
    holes->region = region_open(bench, 4096 * REGION_MIB, UINT64_MAX);
    workload_source_open(&holes->source, 19);
    workload_source_open(&holes->yardstick, 20);
    holes_build(holes);
    weir_region_stats(holes->region, &stats);
    workload_memory_open(&holes->memory, stats.mark_bytes);
    holes_open_tables(holes, stats.metadata_bytes);
    holes_measure(holes, row);
    weir_region_stats(holes->region, &stats);
    bench_figure(row, "holes", (double)stats.free_extent_count);
    workload_memory_close(&holes->tables);
    workload_memory_close(&holes->memory);
    workload_source_close(&holes->yardstick);
    workload_source_close(&holes->source);
    weir_region_close(holes->region);
    free(holes->sizes);
    free(holes->slots);
    free(holes);
}

/* 10^3 holes and more; what ten times as many cost is compared with the first. */
static void holes_series(struct bench *bench, uint32_t class_count, const char *sizes,
                         uint32_t decade_count)
{
    double first_ns = 0;
    double first_machine_ns = 0;
    uint64_t hole_count = 1000;

    for (uint32_t i = 0; i < decade_count; i++, hole_count *= 10) {
        struct bench_row *row = bench_row(bench, "10^%u holes, %s: free + put", i + 3, sizes);
        holes_run(bench, row, class_count, bench_count(bench, hole_count));
        double ns = bench_ns(row, BENCH_SELF);
        double machine_ns = bench_ns(row, "memcpy + lines of tables");
        if (i == 0) {
            first_ns = ns;
            first_machine_ns = machine_ns;
            continue;
        }
        bench_figure(row, "ns / ns at 10^3", ns / first_ns);
        bench_figure(row, "memcpy + lines, ns / ns at 10^3", machine_ns / first_machine_ns);
        if (hole_count == 10000)
            bench_at_most(row, BENCH_RATIO, "memcpy", 1.1);
        if (hole_count == 1000000)
            bench_at_most(row, BENCH_FIGURE, "ns / ns at 10^3", 1.2);
    }
}

void region_holes(struct bench *bench)
{
    holes_series(bench, 124, "64 B-2 KiB", 4);
}

void region_holes_wide(struct bench *bench)
{
    holes_series(bench, 2000, "64 B-32 KiB", 3);
}
