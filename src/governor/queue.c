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

struct weir_waiter *weir__queue_pick(const struct weir__queue *queue, uint64_t room_bytes)
{
    struct weir_waiter *best = NULL;
    uint64_t barrier_ns = UINT64_MAX;

    QUEUE_FOREACH(lane, queue)
    {
        struct weir_waiter *waiter = lane->first;
        for (int i = 0; i < QUEUE_LOOK_MAX && waiter != NULL; i++, waiter = waiter->next) {
            bool cap_holds = waiter->bytes > lane->room_bytes;
            if (!cap_holds && waiter->bytes <= room_bytes) {
                if (best == NULL || waiter->since_ns < best->since_ns)
                    best = waiter;
                break;
            }
            if (!queue_is_worn(waiter))
                continue;
            if (!cap_holds && waiter->since_ns < barrier_ns)
                barrier_ns = waiter->since_ns;
            break;
        }
    }
    return best != NULL && best->since_ns < barrier_ns ? best : NULL; /* Q3 */
}

bool weir__queue_is_passable(const struct weir__queue *queue, const struct weir__lane *own)
{
    QUEUE_FOREACH(lane, queue)
    {
        const struct weir_waiter *waiter = lane->first;
        for (int i = 0; i < QUEUE_LOOK_MAX && waiter != NULL; i++, waiter = waiter->next)
            if (queue_is_worn(waiter) && (lane == own || waiter->bytes <= lane->room_bytes))
                return false;
    }
    return true;
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
            if (lane == own || waiter->bytes <= lane->room_bytes)
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
            if (waiter->bytes <= lane->room_bytes)
                *ret_by_budget = true;
            else
                *ret_by_cap = true;
        }
    }
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
