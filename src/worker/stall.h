/* SPDX-License-Identifier: MIT */
#ifndef WEIR_WORKER_STALL_H
#define WEIR_WORKER_STALL_H

/*
 * stall - turns that took too long, where they did and why
 *
 * Of one thread. Marks cost a look at the clock; the kernel is asked about the
 * thread only after a sleep, and a few times per limit.
 */

#include <weir/worker.h>

#include "base/sys.h"

struct weir__stall {
    uint64_t limit_ns;                       /* fixed */
    uint64_t begin_ns;                       /* of the turn */
    uint64_t mark_ns;                        /* where the present station began */
    uint64_t station_ns[WEIR_STATION_COUNT]; /* of the turn */
    uint64_t sample_ns;                      /* when the kernel was asked last */
    struct weir__usage sample;
};

void weir__stall_init(struct weir__stall *stall, uint64_t limit_ns);

/* A turn begins at @now_ns; @slept: it slept just before. */
void weir__stall_begin(struct weir__stall *stall, uint64_t now_ns, bool slept);

/* What passed since the last mark was spent there. */
void weir__stall_mark(struct weir__stall *stall, enum weir_station station, uint64_t now_ns);

/* The turn ends with the last mark. Whether it was a stall, and which. */
bool weir__stall_end(struct weir__stall *stall, struct weir_report *ret_report);

#endif
