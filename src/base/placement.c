/* SPDX-License-Identifier: MIT */
/*
 * placement - asking the kernel where pages are
 *
 * move_pages(2) without a wish for a node answers for each address on which node its
 * page is, or that there is none. It moves nothing and brings nothing in. Many pages
 * go into one call; where there are very many, one of each n stands for its
 * neighbours: pages that were touched one after the other by one thread lie alike.
 */
#include "base/placement.h"

#include "base/bits.h"
#include "base/sys.h"

#include <errno.h>

#define PLACEMENT_BATCH 512u /* pages in one call: a chunk of a region */

void weir__placement_begin(struct weir_placement *placement, uint64_t bytes)
{
    uint64_t pages = bytes / weir__sys_page_bytes();

    *placement = (struct weir_placement){
        .stride = 1 + (pages - weir__min(pages, 1)) / PLACEMENT_PAGES_MAX,
    };
}

/* @node: what the kernel said of the page that stands for @bytes. */
static void placement_count(struct weir_placement *placement, int node, uint64_t bytes)
{
    placement->asked_bytes += bytes;
    if (node < 0) /* nothing is there */
        return;
    if ((unsigned)node < WEIR_NODES_MAX)
        placement->node_bytes[node] += bytes;
    else
        placement->beyond_bytes += bytes;
}

int weir__placement_add(struct weir_placement *placement, struct weir__range range)
{
    const uint64_t page_bytes = weir__sys_page_bytes();
    const uint64_t step = placement->stride * page_bytes;
    uint64_t at = weir__round_down((uint64_t)(uintptr_t)range.base, page_bytes);
    const uint64_t end = weir__round_up((uint64_t)(uintptr_t)range.base + range.bytes, page_bytes);

    while (at < end) {
        void *pages[PLACEMENT_BATCH];
        int nodes[PLACEMENT_BATCH];
        const uint64_t first = at;
        size_t count = 0;

        for (; at < end && count < PLACEMENT_BATCH; at += step)
            pages[count++] = (void *)(uintptr_t)at;
        int r = weir__sys_page_nodes(pages, count, nodes);
        if (r < 0)
            return r == -ENOSYS ? -EOPNOTSUPP : r;
        for (size_t i = 0; i < count; i++)
            placement_count(placement, nodes[i], weir__min(step, end - (first + i * step)));
    }
    return 0;
}
