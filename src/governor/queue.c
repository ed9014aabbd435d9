/* SPDX-License-Identifier: MIT */
/*
 * queue - first come, first served, with a bounded exception
 *
 *      lanes   A: 8 MiB (ticket 1)   4 KiB (5)
 *              B: 4 KiB (ticket 3)
 *
 * With 1 MiB left, strict order would hold B for the sake of A's giant, and all
 * others with it. So the oldest who fits goes first, and everybody who was there
 * before it is passed once more; whoever has been passed QUEUE_BYPASS_MAX times
 * is a barrier: nobody younger goes before it, and what is freed gathers until
 * it fits.
 *
 *   Q1  tickets rise along each lane and are unique in the queue
 *   Q2  a lane is in the list of lanes exactly while it has waiters
 *   Q3  a waiter that has been passed QUEUE_BYPASS_MAX times and that the budget
 *       holds is the next of all to be picked; one that its cap holds is the next
 *       of its lane
 *
 * The look into a lane is bounded, so the cost of a grant is that of the lanes,
 * not of the waiters. Who stands behind the look waits for those before it, who
 * are protected themselves.
 */
#include "governor/queue.h"

#include "base/check.h"

#include <stddef.h>

#define QUEUE_FOREACH(lane, queue)                                                                 \
 WEIR_LIST_FOREACH (lane##_link, &(queue)->lanes)                                                  \
  for (const struct weir__lane *lane = WEIR_CONTAINER_OF(lane##_link, struct weir__lane, link);    \
       lane != NULL; lane = NULL)

void weir__queue_init(struct weir__queue *queue)
{
    *queue = (struct weir__queue){0};
    weir__list_init(&queue->lanes);
}

void weir__lane_init(struct weir__lane *lane)
{
    *lane = (struct weir__lane){0};
    weir__list_init(&lane->link);
}

void weir__queue_append(struct weir__queue *queue, struct weir__lane *lane,
                        struct weir_waiter *waiter, uint64_t now_ns)
{
    queue->ticket_ns = now_ns > queue->ticket_ns ? now_ns : queue->ticket_ns + 1;
    waiter->since_ns = queue->ticket_ns; /* Q1 */
    waiter->bypassed_count = 0;
    waiter->next = NULL;
    waiter->previous = lane->last;
    if (lane->last != NULL)
        lane->last->next = waiter;
    else
        lane->first = waiter;
    lane->last = waiter;
    if (lane->first == waiter)
        weir__list_append(&queue->lanes, &lane->link); /* Q2 */
    queue->waiter_count++;
}

void weir__queue_remove(struct weir__queue *queue, struct weir__lane *lane,
                        struct weir_waiter *waiter)
{
    WEIR_CHECK(queue->waiter_count > 0);
    if (waiter->previous != NULL)
        waiter->previous->next = waiter->next;
    else
        lane->first = waiter->next;
    if (waiter->next != NULL)
        waiter->next->previous = waiter->previous;
    else
        lane->last = waiter->previous;
    waiter->next = NULL;
    waiter->previous = NULL;
    if (lane->first == NULL)
        weir__list_remove(&lane->link); /* Q2 */
    queue->waiter_count--;
}

static bool queue_is_worn(const struct weir_waiter *waiter)
{
    return waiter->bypassed_count >= QUEUE_BYPASS_MAX;
}

/* Who or what a waiter waits for, whatever the budget has. */
static bool queue_cap_holds(const struct weir__lane *lane, const struct weir_waiter *waiter)
{
    return waiter->bytes > lane->cap_room_bytes;
}

static bool queue_node_holds(const struct weir__lane *lane, const struct weir_waiter *waiter)
{
    return !queue_cap_holds(lane, waiter) && waiter->bytes > lane->room_bytes;
}

/* Whether @waiter of @lane stands in the way of those of @other. */
static bool queue_is_in_the_way(const struct weir__lane *lane, const struct weir_waiter *waiter,
                                const struct weir__lane *other)
{
    if (lane == other)
        return true;
    if (queue_cap_holds(lane, waiter))
        return false;
    return !queue_node_holds(lane, waiter) || lane->node == other->node;
}

/* Whether somebody older than @ticket_ns, in the way of @own, has been passed too often. */
static bool queue_is_barred(const struct weir__queue *queue, const struct weir__lane *own,
                            uint64_t ticket_ns)
{
    QUEUE_FOREACH(lane, queue)
    {
        const struct weir_waiter *waiter = lane->first;
        for (int i = 0; i < QUEUE_LOOK_MAX && waiter != NULL; i++, waiter = waiter->next)
            if (waiter->since_ns < ticket_ns && queue_is_worn(waiter) &&
                queue_is_in_the_way(lane, waiter, own))
                return true;
    }
    return false;
}

/* The first of @lane who fits, unless one before him has been passed too often. */
static struct weir_waiter *queue_first_fitting(const struct weir__lane *lane, uint64_t room_bytes)
{
    struct weir_waiter *waiter = lane->first;

    for (int i = 0; i < QUEUE_LOOK_MAX && waiter != NULL; i++, waiter = waiter->next) {
        if (waiter->bytes <= lane->room_bytes && waiter->bytes <= room_bytes)
            return waiter;
        if (queue_is_worn(waiter))
            return NULL;
    }
    return NULL;
}

struct weir_waiter *weir__queue_pick(const struct weir__queue *queue, uint64_t room_bytes)
{
    struct weir_waiter *best = NULL;

    QUEUE_FOREACH(lane, queue)
    {
        struct weir_waiter *waiter = queue_first_fitting(lane, room_bytes);
        if (waiter != NULL && (best == NULL || waiter->since_ns < best->since_ns) &&
            !queue_is_barred(queue, lane, waiter->since_ns)) /* Q3 */
            best = waiter;
    }
    return best;
}

bool weir__queue_is_passable(const struct weir__queue *queue, const struct weir__lane *own)
{
    return !queue_is_barred(queue, own, UINT64_MAX);
}

void weir__queue_count_pass(const struct weir__queue *queue, const struct weir__lane *own,
                            uint64_t ticket_ns)
{
    QUEUE_FOREACH(lane, queue)
    {
        struct weir_waiter *waiter = lane->first;
        for (int i = 0; i < QUEUE_LOOK_MAX && waiter != NULL; i++, waiter = waiter->next) {
            if (waiter->since_ns >= ticket_ns)
                break;
            if (queue_is_in_the_way(lane, waiter, own))
                waiter->bypassed_count++;
        }
    }
}

void weir__queue_holds(const struct weir__queue *queue, bool *ret_by_budget, bool *ret_by_cap)
{
    *ret_by_budget = false;
    *ret_by_cap = false;
    QUEUE_FOREACH(lane, queue)
    {
        const struct weir_waiter *waiter = lane->first;
        for (int i = 0; i < QUEUE_LOOK_MAX && waiter != NULL; i++, waiter = waiter->next) {
            if (queue_cap_holds(lane, waiter))
                *ret_by_cap = true;
            else
                *ret_by_budget = true;
        }
    }
}

uint64_t weir__queue_first_bytes(const struct weir__queue *queue)
{
    const struct weir_waiter *first = NULL;

    QUEUE_FOREACH(lane, queue)
    {
        const struct weir_waiter *waiter = lane->first;
        for (int i = 0; i < QUEUE_LOOK_MAX && waiter != NULL; i++, waiter = waiter->next)
            if (!queue_cap_holds(lane, waiter) &&
                (first == NULL || waiter->since_ns < first->since_ns))
                first = waiter;
    }
    return first != NULL ? first->bytes : 0;
}

uint64_t weir__queue_oldest(const struct weir__queue *queue)
{
    uint64_t oldest_ns = UINT64_MAX;

    QUEUE_FOREACH(lane, queue)
    {
        if (lane->first->since_ns < oldest_ns)
            oldest_ns = lane->first->since_ns;
    }
    return oldest_ns;
}
