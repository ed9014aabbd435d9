/* SPDX-License-Identifier: MIT */
#ifndef REORDER_BENCH_H
#define REORDER_BENCH_H

/* reorder_bench - what the files of the cases of reorder share */

#include "bench.h"

/* In the order of the table. */
void reorder_stall_order(struct bench *bench);
void reorder_stall_shuffled(struct bench *bench);

#endif
