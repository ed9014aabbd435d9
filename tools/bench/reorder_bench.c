/* SPDX-License-Identifier: MIT */
/*
 * reorder_bench - putting in order, beside a copy and beside an ordered map
 *
 * Items come late by up to 10^5 places and leave in order as soon as they can;
 * all is in memory. The ordered map is tsearch(3), the red-black tree of the C
 * library, keyed by sequence, its items by malloc(): what one would write in an
 * hour.
 */
#include "reorder_bench.h"
#include "workload.h"

#include <weir/governor.h>
#include <weir/reorder.h>

#include <errno.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>

#define REORDER_COUNT  (UINT64_C(10) * 100000)
#define REORDER_WINDOW 100000u
#define REORDER_BATCH  1000u
#define REORDER_BYTES  64u

struct map_item {
    uint64_t sequence;
    char data[REORDER_BYTES];
};

static int map_order(const void *a, const void *b)
{
    uint64_t left = ((const struct map_item *)a)->sequence;
    uint64_t right = ((const struct map_item *)b)->sequence;

    return (left > right) - (left < right);
}

static void map_push(void **root, uint64_t sequence, const void *data)
{
    struct map_item *item = malloc(sizeof(*item));

    if (item == NULL)
        bench_check(-ENOMEM, "malloc");
    item->sequence = sequence;
    memcpy(item->data, data, REORDER_BYTES);
    if (tsearch(item, root, map_order) == NULL)
        bench_check(-ENOMEM, "tsearch");
}

static bool map_pop(void **root, uint64_t sequence)
{
    struct map_item key = {.sequence = sequence};
    struct map_item *const *found = tfind(&key, root, map_order);

    if (found == NULL)
        return false;
    struct map_item *item = *found;
    workload_use(item->data);
    tdelete(item, root, map_order);
    free(item);
    return true;
}

static void reorder_pop_all(struct weir_reorder *reorder)
{
    struct weir_item item;
    int r;

    while ((r = weir_reorder_pop(reorder, &item)) == 0) {
        workload_use(item.data);
        weir_reorder_release(reorder, &item);
    }
    if (r != -ENOENT)
        bench_check(r, "weir_reorder_pop");
}

static void reorder_pairs(struct bench *bench, struct weir_account *account)
{
    struct bench_row *row =
        bench_row(bench, "push + pop 64 B, 10^5 shuffled%s", account != NULL ? ", charged" : "");
    uint32_t count = (uint32_t)bench_count(bench, REORDER_COUNT);
    uint32_t *order = workload_jumble(1, count, REORDER_WINDOW);
    struct weir_reorder *reorder = NULL;
    struct workload_source source;
    struct workload_memory memory;
    void *root = NULL;
    uint64_t next = 0;

    bench_check(weir_reorder_create(&(struct weir_reorder_config){.account = account}, &reorder),
                "weir_reorder_create");
    workload_source_open(&source, 2);
    workload_memory_open(&memory, (size_t)REORDER_WINDOW * REORDER_BYTES);
    for (uint32_t begin = 0; begin < count; begin += REORDER_BATCH) {
        uint32_t end = begin + REORDER_BATCH < count ? begin + REORDER_BATCH : count;
        bench_start(bench);
        for (uint32_t i = begin; i < end; i++) {
            int r =
                weir_reorder_push(reorder, order[i], workload_source_next(&source), REORDER_BYTES);
            bench_check(r, "weir_reorder_push");
            reorder_pop_all(reorder);
        }
        bench_lap(bench, row, BENCH_SELF, end - begin);
        for (uint32_t i = begin; i < end; i++)
            memcpy(workload_memory_next(&memory, REORDER_BYTES), workload_source_next(&source),
                   REORDER_BYTES);
        bench_lap(bench, row, "memcpy", end - begin);
        for (uint32_t i = begin; i < end; i++) {
            map_push(&root, order[i], workload_source_next(&source));
            while (map_pop(&root, next))
                next++;
        }
        bench_lap(bench, row, "tsearch + malloc", end - begin);
    }
    bench_check(next == count ? 0 : -EBADMSG, "the map");
    workload_memory_close(&memory);
    workload_source_close(&source);
    weir_reorder_destroy(reorder);
    free(order);
}

static void reorder_alone(struct bench *bench)
{
    reorder_pairs(bench, NULL);
}

static void reorder_charged(struct bench *bench)
{
    struct weir_governor *governor = NULL;
    struct weir_account *account = NULL;

    bench_check(weir_governor_create(&(struct weir_governor_config){.bytes_max = UINT64_C(1) << 30},
                                     &governor),
                "weir_governor_create");
    bench_check(
        weir_account_open(governor, &(struct weir_account_config){.name = "bench"}, &account),
        "weir_account_open");
    reorder_pairs(bench, account);
    weir_account_close(account);
    weir_governor_destroy(governor);
}

const struct bench_case reorder_cases[] = {
    {"pairs", BENCH_CPU, reorder_alone},
    {"pairs, charged", BENCH_CPU, reorder_charged},
    {"stall, in order", BENCH_WALL, reorder_stall_order},
    {"stall, shuffled", BENCH_WALL, reorder_stall_shuffled},
    {NULL, BENCH_CPU, NULL},
};
