/* SPDX-License-Identifier: MIT */
/*
 * pace - a wheel of pauses
 *
 *      paid          now      paid'           a producer that is ahead by more
 *      --+------------+---------+---->        than the slack pauses until paid'
 *        late <= PACE_LATE   debt <= PACE_DEBT
 *
 * Slot i holds those that may go on at grain i of the wheel; the debt is bounded by
 * less than one round, so a slot is of one grain only and turning past it ends all
 * of its pauses. Adding, leaving and resuming are a few stores each, however many
 * producers pause.
 *
 *   P1  a seat is in the slot that it names, or does not pause
 *   P2  what is owed is at most PACE_DEBT_NS, which is less than a round
 */
#include "pace.h"

#include <assert.h>
#include <stddef.h>

_Static_assert(PACE_DEBT_NS / PACE_GRAIN_NS + 2 < PACE_SLOTS, "P2");

static void wheel_put(struct pace_wheel *wheel, struct pace_seat *seat)
{
    struct pace_seat **slot;

    seat->slot = (uint32_t)((seat->paid_ns + PACE_GRAIN_NS - 1) / PACE_GRAIN_NS % PACE_SLOTS);
    slot = &wheel->slots[seat->slot];
    seat->previous = NULL;
    seat->next = *slot;
    if (seat->next != NULL)
        seat->next->previous = seat;
    *slot = seat;
    seat->is_paused = true; /* P1 */
    wheel->paused_count++;
}

void pace_leave(struct pace_wheel *wheel, struct pace_seat *seat)
{
    if (!seat->is_paused)
        return;
    if (seat->previous != NULL)
        seat->previous->next = seat->next;
    else
        wheel->slots[seat->slot] = seat->next;
    if (seat->next != NULL)
        seat->next->previous = seat->previous;
    seat->is_paused = false;
    wheel->paused_count--;
}

bool pace_add(struct pace_wheel *wheel, struct pace_seat *seat, uint64_t now_ns, uint64_t delay_ns)
{
    /* What a pause was too long is made good, but nobody saves up for a burst. */
    const uint64_t from_ns = seat->paid_ns + PACE_LATE_NS > now_ns ? seat->paid_ns : now_ns;

    if (delay_ns == 0)
        return seat->is_paused;
    pace_leave(wheel, seat);
    if (wheel->paused_count == 0)
        wheel->grain = now_ns / PACE_GRAIN_NS;
    seat->paid_ns = from_ns + delay_ns;
    if (seat->paid_ns > now_ns + PACE_DEBT_NS)
        seat->paid_ns = now_ns + PACE_DEBT_NS; /* P2 */
    if (seat->paid_ns > now_ns + PACE_SLACK_NS)
        wheel_put(wheel, seat);
    return seat->is_paused;
}

void pace_turn(struct pace_wheel *wheel, uint64_t now_ns, void (*resume)(struct pace_seat *seat))
{
    const uint64_t now = now_ns / PACE_GRAIN_NS;

    if (wheel->paused_count == 0 || now - wheel->grain > PACE_SLOTS)
        wheel->grain = now - (wheel->paused_count == 0 ? 0 : PACE_SLOTS);
    while (wheel->grain < now) {
        struct pace_seat *seat;
        struct pace_seat *next;

        wheel->grain++;
        seat = wheel->slots[wheel->grain % PACE_SLOTS];
        for (; seat != NULL; seat = next) {
            next = seat->next;
            pace_leave(wheel, seat);
            resume(seat);
        }
    }
}
