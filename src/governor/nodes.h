/* SPDX-License-Identifier: MIT */
#ifndef WEIR_GOVERNOR_NODES_H
#define WEIR_GOVERNOR_NODES_H

/*
 * nodes - how much of the limit lies on which NUMA node, and who borrows from whom
 *
 * A machine with one node has none of this: count is 0, and every call answers at
 * once. Moving budget from node to node is under the governor's lock; taking and
 * giving is not.
 */

#include "base/check.h"

#include <weir/governor.h>

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct weir__budget;

/* What the machine tells of its nodes, or a test. */
struct weir__topology {
    uint32_t count;
    uint64_t memory_bytes[WEIR_NODES_MAX];
    uint32_t distances[WEIR_NODES_MAX][WEIR_NODES_MAX];
};

struct weir__node {
    _Alignas(64) _Atomic int64_t room_bytes; /* N1 */
    _Atomic uint64_t debt_bytes;             /* all of debts */
    uint64_t budget_bytes;                   /* what follows is under the lock */
    uint64_t debts[WEIR_NODES_MAX];          /* what it has borrowed from each */
    uint64_t lent_bytes;
    uint64_t borrow_max_bytes;
    uint64_t lend_keep_bytes;     /* not lent: what it would be told to flush for */
    _Atomic uint64_t spill_bytes; /* the last of its room is for those who cannot spill */
    uint32_t nearest[WEIR_NODES_MAX];
};

struct weir__nodes {
    uint32_t count; /* 0: one node, and nothing to do */
    struct weir__node nodes[WEIR_NODES_MAX];
};

/*
 * @root stands before every path: "" is the machine. No nodes are told as one. 0; or what
 * is wrong with a file of a node: then they are told as one, too.
 */
int weir__topology_read(const char *root, struct weir__topology *ret_topology);

/* From @config, or where it says nothing from @topology. 0, or -EINVAL. */
int weir__nodes_init(struct weir__nodes *nodes, const struct weir_governor_config *config,
                     const struct weir__topology *topology, const struct weir__budget *budget);

/* Other budgets; what is charged and owed stays. */
void weir__nodes_change(struct weir__nodes *nodes, const struct weir__nodes *other);

/* The node of the thread that calls; always one that there is. */
uint32_t weir__nodes_here(const struct weir__nodes *nodes);

/* Under the lock: @bytes for @index from itself and others; at least @keep of its own stays. */
bool weir__nodes_borrow(struct weir__nodes *nodes, uint32_t index, uint64_t bytes, uint64_t keep);

/* Under the lock: what it has room for goes back to those it is owed to, farthest first. */
void weir__nodes_repay(struct weir__nodes *nodes, uint32_t index);

/* Under the lock: what weir__nodes_borrow() would find. */
uint64_t weir__nodes_reach(const struct weir__nodes *nodes, uint32_t index);

/* What its own accounts use; leases included. */
uint64_t weir__nodes_use(const struct weir__nodes *nodes, uint32_t index);

static inline uint64_t weir__nodes_room(const struct weir__nodes *nodes, uint32_t index)
{
    int64_t room = atomic_load_explicit(&nodes->nodes[index].room_bytes, memory_order_acquire);

    return room > 0 ? (uint64_t)room : 0;
}

/* @bytes of @index's own room, if @keep of it stays. */
static inline bool weir__nodes_take(struct weir__nodes *nodes, uint32_t index, uint64_t bytes,
                                    uint64_t keep)
{
    if (WEIR_LIKELY(nodes->count == 0))
        return true;

    struct weir__node *node = &nodes->nodes[index];
    int64_t room = atomic_load_explicit(&node->room_bytes, memory_order_acquire);

    while (room > 0 && (uint64_t)room >= keep && (uint64_t)room - keep >= bytes)
        if (atomic_compare_exchange_weak_explicit(&node->room_bytes, &room, room - (int64_t)bytes,
                                                  memory_order_acq_rel, memory_order_acquire))
            return true;
    return bytes == 0;
}

/* Whatever there is. */
static inline void weir__nodes_force(struct weir__nodes *nodes, uint32_t index, uint64_t bytes)
{
    if (nodes->count > 0)
        atomic_fetch_sub_explicit(&nodes->nodes[index].room_bytes, (int64_t)bytes,
                                  memory_order_acq_rel);
}

/* True: it owes something to others, so weir__nodes_repay(). */
static inline bool weir__nodes_give(struct weir__nodes *nodes, uint32_t index, uint64_t bytes)
{
    if (WEIR_LIKELY(nodes->count == 0))
        return false;
    atomic_fetch_add_explicit(&nodes->nodes[index].room_bytes, (int64_t)bytes,
                              memory_order_acq_rel);
    return atomic_load_explicit(&nodes->nodes[index].debt_bytes, memory_order_relaxed) > 0;
}

#endif
