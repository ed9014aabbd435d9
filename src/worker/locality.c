/* SPDX-License-Identifier: MIT */
/*
 * locality - what of a worker's memory lies on its node, and what elsewhere
 *
 * Page cache follows who touches it first, whatever mbind(2) was told, so that it
 * is local has to be looked at and not to be believed. Small things are told by
 * the page they lie in, shared with neighbours as it may be.
 */
#include <weir/worker.h>

#include "worker/pin.h"

#include "base/placement.h"
#include "base/ring.h"

/* The ring; a page for the account and one for the worker itself. */
static int locality_own(const struct weir_worker *worker, struct weir_placement *ret_placement)
{
    struct weir_worker *asked = (struct weir_worker *)(uintptr_t)worker;
    const struct weir_account *account = weir_worker_account(asked);
    struct weir__range ranges[WEIR_RING_RANGES + 2];
    size_t count = weir__ring_ranges(weir_worker_ring(asked), ranges);
    uint64_t bytes = 0;
    int r = 0;

    ranges[count++] = (struct weir__range){worker, 1};
    if (account != NULL)
        ranges[count++] = (struct weir__range){account, 1};
    for (size_t i = 0; i < count; i++)
        bytes += ranges[i].bytes;
    weir__placement_begin(ret_placement, bytes);
    for (size_t i = 0; i < count && r == 0; i++)
        r = weir__placement_add(ret_placement, ranges[i]);
    return r;
}

/* Those on @node, and the others. */
static void locality_sum(const struct weir_placement *placement, struct weir_worker_memory *memory)
{
    for (uint32_t i = 0; i < WEIR_NODES_MAX; i++)
        *(i == memory->node ? &memory->local_bytes : &memory->remote_bytes) +=
            placement->node_bytes[i];
    *(memory->node >= WEIR_NODES_MAX ? &memory->local_bytes : &memory->remote_bytes) +=
        placement->beyond_bytes;
}

int weir_worker_memory(const struct weir_worker *worker, struct weir_worker_memory *ret_memory)
{
    const struct weir_region *region = weir_worker_region((struct weir_worker *)(uintptr_t)worker);
    struct weir_worker_memory memory = {.node = weir__pin_node()};
    int r = locality_own(worker, &memory.own);

    if (r == 0 && region != NULL)
        r = weir_region_placement(region, &memory.region);
    if (r < 0)
        return r;
    locality_sum(&memory.own, &memory);
    locality_sum(&memory.region, &memory);
    *ret_memory = memory;
    return 0;
}
