/* SPDX-License-Identifier: MIT */
#ifndef WEIR_GOVERNOR_QUEUE_H
#define WEIR_GOVERNOR_QUEUE_H

/*
 * queue - who waits for memory, and whose turn it is
 *
 * Pure, and under the lock of whoever owns it. One lane per account, in order of
 * arrival; a waiter's since_ns is its ticket, unique in the queue. A lane has
 * room_bytes (what its account's cap and its node leave), the queue has what the
 * budget leaves: a waiter that its own cap holds stands in nobody else's way, one
 * that its node holds in nobody's way on other nodes.
 */

#include "base/list.h"

#include <weir/governor.h>

#include <stdbool.h>
#include <stdint.h>

#define QUEUE_BYPASS_MAX 16 /* how often a waiter is passed by younger ones at most */
#define QUEUE_LOOK_MAX   8  /* how far into a lane one looks for somebody who fits */

struct weir__lane {
    struct weir__list link; /* in queue->lanes while it has waiters */
    struct weir_waiter *first;
    struct weir_waiter *last;
    uint32_t node;           /* of its account; fixed */
    uint64_t room_bytes;     /* what cap and node leave; set by the owner before it asks */
    uint64_t cap_room_bytes; /* what the cap leaves */
};

struct weir__queue {
    struct weir__list lanes;
    uint64_t ticket_ns; /* the last that was given */
    uint64_t waiter_count;
};

void weir__queue_init(struct weir__queue *queue);
void weir__lane_init(struct weir__lane *lane);

/* Sets @waiter's since_ns: @now_ns, or a little later to be unique. */
void weir__queue_append(struct weir__queue *queue, struct weir__lane *lane,
                        struct weir_waiter *waiter, uint64_t now_ns);
void weir__queue_remove(struct weir__queue *queue, struct weir__lane *lane,
                        struct weir_waiter *waiter);

/*
 * Whose turn it is with @room_bytes left: the oldest who fits, unless that would
 * pass somebody too often. NULL: nobody's. Counts nothing.
 */
struct weir_waiter *weir__queue_pick(const struct weir__queue *queue, uint64_t room_bytes);

/*
 * Whether somebody who comes now, with a charge of @lane's account, may go before
 * all whom the budget holds, and before its own lane. Counts nothing.
 */
bool weir__queue_is_passable(const struct weir__queue *queue, const struct weir__lane *lane);

/* Those whom one with @ticket_ns of @lane went before have been passed once more. */
void weir__queue_count_pass(const struct weir__queue *queue, const struct weir__lane *lane,
                            uint64_t ticket_ns);

/* Whether there are waiters that the budget or a node, and that only their caps hold. */
void weir__queue_holds(const struct weir__queue *queue, bool *ret_by_budget, bool *ret_by_cap);

/* What the oldest wants whom the budget or a node holds; 0: nobody. */
uint64_t weir__queue_first_bytes(const struct weir__queue *queue);

/* The ticket of the oldest; UINT64_MAX: nobody waits. */
uint64_t weir__queue_oldest(const struct weir__queue *queue);

#endif
