/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BASE_PLACEMENT_H
#define WEIR_BASE_PLACEMENT_H

/* placement - on which NUMA nodes ranges of our memory lie */

#include <weir/base.h>

#include <stdint.h>

struct weir__range {
    const void *base;
    uint64_t bytes;
};

/* How many pages are asked for at most; of more, each n-th. */
#define PLACEMENT_PAGES_MAX UINT64_C(32768)

/* Nothing is known yet; @bytes is what will be asked for in all, give or take. */
void weir__placement_begin(struct weir_placement *placement, uint64_t bytes);

/*
 * Add what the kernel says of @range, by whole pages. 0; -EOPNOTSUPP: it has no
 * nodes; or what move_pages(2) says.
 */
int weir__placement_add(struct weir_placement *placement, struct weir__range range);

#endif
