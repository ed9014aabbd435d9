/* SPDX-License-Identifier: MIT */
#ifndef WATCH_H
#define WATCH_H

/*
 * watch - how long calls took, and for how long of it the core was somebody else's
 *
 *      uint64_t begin = watch_begin(&watch);
 *      ... the call ...
 *      watch_end(&watch, begin);
 *
 * Lost is the time in which this thread could have run and did not, less what the
 * other threads of this process had of the cores meanwhile: they work for us. A
 * wait of its own, for the disk or a lock, is a voluntary switch and not lost. In a
 * call without one, all is lost that is not CPU time of the thread: others' turns,
 * and where the kernel is told of it (CONFIG_PARAVIRT_TIME_ACCOUNTING) what the
 * host took from the machine. In a call with one it is the scheduler's run delay
 * (/proc/thread-self/schedstat).
 *
 * The counters are read only where the gap to the call before is too long to have
 * been ours, and after a call only if that took so long that a switch may be in
 * it: mostly the watch costs two looks at the clock.
 */

#include "bench.h"

#define WATCH_SLOW_NS UINT64_C(500000)
#define WATCH_LOOK_NS UINT64_C(8000)
#define WATCH_LONG_NS UINT64_C(10000000)

struct watch {
    int fd;          /* of the scheduler's figures of this thread; negative: it has none */
    uint64_t end_ns; /* of the last call or look: since then nothing is known */
    int64_t voluntary_count;
    int64_t delay_ns; /* runnable, but not running */
    int64_t off_ns;   /* not running, for whatever reason */
    int64_t others_ns;
    uint64_t last_ns;            /* what watch_end() has measured */
    uint64_t last_own_ns;        /* and without what was lost */
    uint64_t worst_ns;           /* of all calls */
    uint64_t worst_own_ns;       /* of all calls, each without what it lost */
    uint64_t slow_count;         /* calls above WATCH_SLOW_NS */
    uint64_t slow_own_count;     /* of these, still so without what they lost */
    uint64_t slow_waiting_count; /* of all slow ones, with a voluntary switch: disk or lock */
    uint64_t worst_running_ns;   /* as worst_own_ns, of calls without such a wait */
    uint64_t long_waiting_count; /* above WATCH_LONG_NS, with a voluntary switch */
};

/* For the thread that calls. */
void watch_open(struct watch *watch);
void watch_close(struct watch *watch);

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
    watch->last_own_ns = watch->last_ns;
    if (watch->last_ns >= WATCH_LOOK_NS)
        watch_judge(watch);
    else if (watch->last_ns > watch->worst_running_ns)
        watch->worst_running_ns = watch->last_ns;
    if (watch->last_ns > watch->worst_ns)
        watch->worst_ns = watch->last_ns;
    if (watch->last_own_ns > watch->worst_own_ns)
        watch->worst_own_ns = watch->last_own_ns;
    return watch->last_ns;
}

/* Spin until @due_ns: what a server with its own pace would do with the time is not ours. */
void watch_until(struct watch *watch, uint64_t due_ns);

/* CPU time of the other threads of this process: those that io_uring has for us. */
int64_t watch_others_ns(void);

/* The same since it was @before_ns, of each of so many operations. */
double watch_others_each(int64_t before_ns, uint64_t operations);

#endif
