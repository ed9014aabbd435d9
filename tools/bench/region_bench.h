/* SPDX-License-Identifier: MIT */
#ifndef REGION_BENCH_H
#define REGION_BENCH_H

/*
 * region_bench - what the files of the cases of region share
 *
 * Each file is a theme: items and their space (region_bench.c), churn and shifting
 * sizes (region_churn_bench.c), holes that cannot merge (region_holes_bench.c),
 * the latency of growth, of emptying and under a memory limit
 * (region_latency_bench.c), and the disk (region_cold_bench.c).
 */

#include "bench.h"

#include <weir/region.h>

#define REGION_BATCH 1024u
#define REGION_TICK  64u /* puts or frees between two polls, as a server has them in a tick */
#define REGION_MIB   (UINT64_C(1) << 20)

struct weir_region *region_open(const struct bench *bench, uint64_t bytes_max,
                                uint64_t resident_bytes_max);

/* Zeroed, and in memory from now on; free() it. */
void *region_array(uint64_t count, size_t bytes);

/* A file without a name where regions lie. */
int region_file(const struct bench *bench);

/* In the order of the table. */
void region_churn(struct bench *bench);
void region_churn_cold(struct bench *bench);
void region_churn_skewed(struct bench *bench);
void region_shift(struct bench *bench);
void region_holes(struct bench *bench);
void region_holes_wide(struct bench *bench);
void region_grow(struct bench *bench);
void region_grow_paced(struct bench *bench);
void region_limited(struct bench *bench);
void region_limited_queue(struct bench *bench);
void region_emptied(struct bench *bench);
void region_emptied_cold(struct bench *bench);
void region_spill(struct bench *bench);
void region_fetch_random(struct bench *bench);
void region_fetch_order(struct bench *bench);

#endif
