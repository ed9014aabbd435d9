/* SPDX-License-Identifier: MIT */
#ifndef WATCH_H
#define WATCH_H

/*
 * watch - how long calls took, and who had the core meanwhile
 *
 *      uint64_t begin = watch_begin(&watch);
 *      ... the call ...
 *      watch_end(&watch, begin);
 *
 * A call is slow above WATCH_SLOW_NS. It was *taken away from* if the kernel gave
 * the core to somebody else while it ran (an involuntary switch), it did not wait
 * by itself (no voluntary one), and the other threads of this process, who work
 * for us too, had less than half of that time. All other slow calls are ours.
 *
 * Between calls the counters of the thread are read only where a gap is too long
 * to have been ours, and after a call only if that took so long that a switch may
 * be in it: the watch costs two looks at the clock.
 */

#include "bench.h"

#define WATCH_SLOW_NS UINT64_C(500000)
#define WATCH_LOOK_NS UINT64_C(8000)
#define WATCH_LONG_NS UINT64_C(10000000)

struct watch {
    uint64_t end_ns; /* of the last call or look: since then nothing is known */
    int64_t voluntary_count;
    int64_t involuntary_count;
    int64_t others_ns;
    uint64_t last_ns;            /* what watch_end() has measured */
    bool last_was_taken;         /* and whether the core was taken away in it */
    uint64_t worst_ns;           /* of all calls */
    uint64_t worst_own_ns;       /* of those not taken away from */
    uint64_t slow_count;         /* above WATCH_SLOW_NS */
    uint64_t slow_taken_count;   /* of these, taken away from */
    uint64_t long_waiting_count; /* above WATCH_LONG_NS, with a voluntary switch */
};

void watch_open(struct watch *watch);

/* Nothing before now counts for the next call. */
void watch_look(struct watch *watch);

/* A slow part of watch_end(). */
void watch_judge(struct watch *watch);

static inline uint64_t watch_begin(struct watch *watch)
{
    uint64_t now = bench_wall_ns();

    if (now - watch->end_ns < WATCH_LOOK_NS)
        return now;
    watch_look(watch);
    return bench_wall_ns();
}

/* How long it took. */
static inline uint64_t watch_end(struct watch *watch, uint64_t begin_ns)
{
    watch->end_ns = bench_wall_ns();
    watch->last_ns = watch->end_ns - begin_ns;
    watch->last_was_taken = false;
    if (watch->last_ns >= WATCH_LOOK_NS)
        watch_judge(watch);
    else if (watch->last_ns > watch->worst_own_ns)
        watch->worst_own_ns = watch->last_ns;
    if (watch->last_ns > watch->worst_ns)
        watch->worst_ns = watch->last_ns;
    return watch->last_ns;
}

/* Spin until @due_ns: what a server with its own pace would do with the time is not ours. */
void watch_until(struct watch *watch, uint64_t due_ns);

/* CPU time of the other threads of this process: those that io_uring has for us. */
int64_t watch_others_ns(void);

/* The same since it was @before_ns, of each of so many operations. */
double watch_others_each(int64_t before_ns, uint64_t operations);

#endif
