/* SPDX-License-Identifier: MIT */
/*
 * region_bench - an allocator in a file, beside memcpy
 *
 * Here are the table of all cases of region and those of items of one size, all
 * of them resident: what is measured is the allocator and the page faults of the
 * file, and the yardstick is the copy that nobody can save.
 */
#include "region_bench.h"

#include "watch.h"
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct weir_region *region_open(const struct bench *bench, uint64_t bytes_max,
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

void *region_array(uint64_t count, size_t bytes)
{
    void *array = malloc(count * bytes);

    if (array == NULL)
        bench_check(-ENOMEM, "malloc");
    /* Not calloc, whose pages would come one by one in the middle of a lap. */
    explicit_bzero(array, count * bytes);
    return array;
}

int region_file(const struct bench *bench)
{
    int fd = open(bench_directory(bench), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    bench_check(fd < 0 ? -errno : 0, bench_directory(bench));
    return fd;
}

/* ---- Items of one size, all resident ---------------------------------------- */

struct items {
    struct bench *bench;
    struct weir_region *region;
    size_t bytes;
    uint32_t count;
    const char *size_name;
    bool is_polled;
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

static void items_poll(struct items *items)
{
    bench_check(weir_region_poll(items->region), "weir_region_poll");
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
static void items_put(struct items *items, struct bench_row *row, const uint32_t *order,
                      uint32_t count)
{
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
        if (items->is_polled)
            items_poll(items);
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
        if (items->is_polled)
            items_poll(items);
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

static struct bench_row *items_put_row(const struct items *items, const char *how)
{
    return items_row(items, "put", how);
}

/* What putting into space used before should cost. */
struct items_targets {
    double in_order_ratio;
    double random_ns;
    double holes_ns;    /* 0: a ratio is asked for */
    double holes_ratio; /* 0: ns are */
};

/*
 * All ways of using space anew: one whole, merged from random pieces, holes that cannot merge.
 * Without a poll in between, which might give the space back to the disk.
 */
static void items_cycle(struct items *items, const struct items_targets *targets)
{
    uint32_t *order = workload_shuffle(1, items->count);
    uint32_t *halves = workload_shuffle(2, items->count / 2);
    struct bench_row *row;

    for (uint32_t i = 0; i < items->count / 2; i++)
        halves[i] *= 2;
    items_put(items, items_put_row(items, ", fresh space"), NULL, items->count);
    items_at(items, order);
    items_free(items, ", in order", NULL, items->count);
    row = items_put_row(items, ", after free in order");
    items_put(items, row, NULL, items->count);
    bench_at_most(row, BENCH_RATIO, "memcpy", targets->in_order_ratio);
    items_free(items, ", at random", order, items->count);
    row = items_put_row(items, ", after free at random");
    items_put(items, row, NULL, items->count);
    bench_at_most(row, BENCH_NS, BENCH_SELF, targets->random_ns);
    items_free(items, ", every other, at random", halves, items->count / 2);
    row = items_put_row(items, ", into isolated holes");
    items_put(items, row, halves, items->count / 2);
    if (targets->holes_ns > 0)
        bench_at_most(row, BENCH_NS, BENCH_SELF, targets->holes_ns);
    else
        bench_at_most(row, BENCH_RATIO, "memcpy", targets->holes_ratio);
    free(halves);
    free(order);
}

static void items_open(struct items *items, struct bench *bench, size_t bytes, uint64_t count,
                       const char *size_name)
{
    *items = (struct items){
        .bench = bench,
        .bytes = bytes,
        .count = (uint32_t)bench_count(bench, count),
        .size_name = size_name,
    };
    /* The region, its tables and the memory beside it; both sources, and as much again. */
    workload_machine(3 * bytes * items->count + 4 * WORKLOAD_SOURCE_LINES * 64);
    items->region = region_open(bench, 2 * bytes * count, UINT64_MAX);
    items->slots = region_array(items->count, sizeof(*items->slots));
    workload_source_open(&items->source, 3);
    workload_source_open(&items->yardstick, 4);
    workload_memory_open(&items->memory, bytes * items->count);
}

static void items_close(struct items *items)
{
    workload_memory_close(&items->memory);
    workload_source_close(&items->yardstick);
    workload_source_close(&items->source);
    free(items->slots);
    weir_region_close(items->region);
}

static void items_run(struct bench *bench, size_t bytes, uint64_t count, const char *size_name,
                      const struct items_targets *targets)
{
    struct items items;

    items_open(&items, bench, bytes, count, size_name);
    items_cycle(&items, targets);
    items_close(&items);
}

static void region_items_small(struct bench *bench)
{
    items_run(bench, 64, UINT64_C(1) << 20, "64 B",
              &(struct items_targets){.in_order_ratio = 4, .random_ns = 30, .holes_ns = 180});
}

static void region_items_large(struct bench *bench)
{
    items_run(bench, 1024, UINT64_C(1) << 18, "1 KiB",
              &(struct items_targets){.in_order_ratio = 1.2, .random_ns = 80, .holes_ratio = 3.2});
}

/* ---- Fill and drain --------------------------------------------------------- */

/* Once in and once out of a region that never was used, a poll per batch, beside one copy. */
static void fill_run(struct bench *bench, size_t bytes, uint64_t count, const char *size_name,
                     double ratio)
{
    struct bench_row *row = bench_row(bench, "fill + drain %s, fresh space", size_name);
    struct items items;

    items_open(&items, bench, bytes, count, size_name);
    items.is_polled = true;
    bench_at_most(row, BENCH_RATIO, "memcpy", ratio);
    int64_t others_ns = watch_others_ns();
    items_put(&items, row, NULL, items.count);
    for (uint32_t begin = 0; begin < items.count; begin += REGION_BATCH) {
        uint32_t batch = items_batch(begin, items.count);
        bench_start(bench);
        for (uint32_t i = begin; i < begin + batch; i++)
            bench_check(weir_region_free(items.region, items.slots[i]), "weir_region_free");
        items_poll(&items);
        bench_lap(bench, row, BENCH_SELF, 0);
    }
    bench_figure(row, "ns each of io_uring's threads", watch_others_each(others_ns, items.count));
    items_close(&items);
}

static void region_fill_small(struct bench *bench)
{
    fill_run(bench, 64, UINT64_C(1) << 22, "64 B", 3.5);
}

static void region_fill_large(struct bench *bench)
{
    fill_run(bench, 1024, UINT64_C(1) << 19, "1 KiB", 1.6);
}

/* ---- The table of cases ----------------------------------------------------- */

const struct bench_case region_cases[] = {
    {"items of 64 B", BENCH_CPU, region_items_small},
    {"items of 1 KiB", BENCH_CPU, region_items_large},
    {"fill of 64 B", BENCH_CPU, region_fill_small},
    {"fill of 1 KiB", BENCH_CPU, region_fill_large},
    {"churn", BENCH_CPU, region_churn},
    {"shift", BENCH_CPU, region_shift},
    {"cold churn", BENCH_WALL, region_churn_cold},
    {"skewed churn", BENCH_WALL, region_churn_skewed},
    {"holes", BENCH_CPU, region_holes},
    {"wide holes", BENCH_CPU, region_holes_wide},
    {"grow", BENCH_WALL, region_grow},
    {"grow paced", BENCH_WALL, region_grow_paced},
    {"limited", BENCH_WALL, region_limited},
    {"limited queue", BENCH_WALL, region_limited_queue},
    {"emptied", BENCH_WALL, region_emptied},
    {"emptied cold", BENCH_WALL, region_emptied_cold},
    {"spill", BENCH_WALL, region_spill},
    {"fetch", BENCH_WALL, region_fetch_random},
    {"fetch in order", BENCH_WALL, region_fetch_order},
    {NULL, BENCH_CPU, NULL},
};
