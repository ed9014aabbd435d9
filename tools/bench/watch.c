/* SPDX-License-Identifier: MIT */
/*
 * watch - how long calls took, and who had the core meanwhile
 */
#include "watch.h"

#include <sys/resource.h>
#include <time.h>

/* Two clocks that are read one after the other: small steps back are possible. */
int64_t watch_others_ns(void)
{
    struct timespec process;

    int64_t own_ns = (int64_t)bench_cpu_ns();
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &process);
    return (int64_t)process.tv_sec * INT64_C(1000000000) + process.tv_nsec - own_ns;
}

double watch_others_each(int64_t before_ns, uint64_t operations)
{
    int64_t ns = watch_others_ns() - before_ns;

    return ns > 0 ? (double)ns / (double)operations : 0;
}

void watch_look(struct watch *watch)
{
    struct rusage usage;

    getrusage(RUSAGE_THREAD, &usage);
    watch->voluntary_count = usage.ru_nvcsw;
    watch->involuntary_count = usage.ru_nivcsw;
    watch->others_ns = watch_others_ns();
    watch->end_ns = bench_wall_ns();
}

void watch_open(struct watch *watch)
{
    *watch = (struct watch){.end_ns = 0};
    watch_look(watch);
}

void watch_judge(struct watch *watch)
{
    struct watch before = *watch;

    watch_look(watch);
    bool has_waited = watch->voluntary_count > before.voluntary_count;
    bool was_preempted = watch->involuntary_count > before.involuntary_count;
    bool was_for_us = 2 * (watch->others_ns - before.others_ns) >= (int64_t)watch->last_ns;
    watch->last_was_taken = was_preempted && !has_waited && !was_for_us;
    if (!watch->last_was_taken && watch->last_ns > watch->worst_own_ns)
        watch->worst_own_ns = watch->last_ns;
    if (watch->last_ns >= WATCH_SLOW_NS)
        watch->slow_count++;
    if (watch->last_ns >= WATCH_SLOW_NS && watch->last_was_taken)
        watch->slow_taken_count++;
    if (watch->last_ns >= WATCH_LONG_NS && has_waited)
        watch->long_waiting_count++;
}

void watch_until(struct watch *watch, uint64_t due_ns)
{
    for (;;) {
        uint64_t now = bench_wall_ns();
        if (now - watch->end_ns >= WATCH_LOOK_NS) {
            watch_look(watch);
            now = watch->end_ns;
        }
        watch->end_ns = now;
        if (now >= due_ns)
            return;
    }
}
