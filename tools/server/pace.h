/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SERVER_PACE_H
#define WEIR_SERVER_PACE_H

/*
 * pace - when a producer may go on
 *
 * Pure: time is passed in. Each item that a producer gives costs it a delay; what
 * it owes beyond PACE_SLACK_NS makes it pause until all is paid. So many short
 * delays make few pauses, and the average is exact however late the clock is
 * looked at.
 */

#include <stdbool.h>
#include <stdint.h>

#define PACE_GRAIN_NS UINT64_C(1000000)   /* pauses end on these */
#define PACE_SLACK_NS UINT64_C(1000000)   /* owed without a pause */
#define PACE_LATE_NS  UINT64_C(4000000)   /* by which a pause may end late and be made good */
#define PACE_DEBT_NS  UINT64_C(100000000) /* owed at most: more is forgiven */
#define PACE_SLOTS    128

/* Embedded in a producer; all zero: owes nothing. */
struct pace_seat {
    struct pace_seat *next; /* of a slot, while it pauses */
    struct pace_seat *previous;
    uint64_t paid_ns; /* when everything up to now is paid */
    uint32_t slot;
    bool is_paused;
};

struct pace_wheel {
    struct pace_seat *slots[PACE_SLOTS];
    uint64_t grain; /* the last one that was turned past */
    uint32_t paused_count;
};

/* An item that costs @delay_ns; whether the producer pauses from now on. */
bool pace_add(struct pace_wheel *wheel, struct pace_seat *seat, uint64_t now_ns, uint64_t delay_ns);

/* Calls @resume for each whose pause has ended; it may add that one again. */
void pace_turn(struct pace_wheel *wheel, uint64_t now_ns, void (*resume)(struct pace_seat *seat));

/* It is gone; takes one that does not pause. */
void pace_leave(struct pace_wheel *wheel, struct pace_seat *seat);

#endif
