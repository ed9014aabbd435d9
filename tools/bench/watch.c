/* SPDX-License-Identifier: MIT */
/*
 * watch - how long calls took, and for how long of it the core was somebody else's
 */
#include "watch.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

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

/* "ran waited turns", ns and a count. */
static int64_t watch_delay_ns(const struct watch *watch)
{
    char text[96];
    char *ran_end;

    if (watch->fd < 0)
        return 0;
    ssize_t length = pread(watch->fd, text, sizeof(text) - 1, 0);
    text[length > 0 ? length : 0] = '\0';
    (void)strtoll(text, &ran_end, 10);
    return strtoll(ran_end, NULL, 10);
}

void watch_look(struct watch *watch)
{
    struct rusage usage;

    getrusage(RUSAGE_THREAD, &usage);
    watch->voluntary_count = usage.ru_nvcsw;
    watch->delay_ns = watch_delay_ns(watch);
    watch->others_ns = watch_others_ns();
    watch->end_ns = bench_wall_ns();
    watch->off_ns = (int64_t)watch->end_ns - (int64_t)bench_cpu_ns();
}

void watch_open(struct watch *watch)
{
    *watch = (struct watch){.fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC)};
    watch_look(watch);
}

void watch_close(struct watch *watch)
{
    if (watch->fd >= 0)
        close(watch->fd);
}

void watch_judge(struct watch *watch)
{
    struct watch before = *watch;

    watch_look(watch);
    bool has_waited = watch->voluntary_count > before.voluntary_count;
    int64_t others_ns = watch->others_ns - before.others_ns;
    int64_t lost_ns =
        has_waited ? watch->delay_ns - before.delay_ns : watch->off_ns - before.off_ns;
    lost_ns -= others_ns > 0 ? others_ns : 0;
    if (lost_ns > (int64_t)watch->last_ns)
        lost_ns = (int64_t)watch->last_ns;
    if (lost_ns > 0)
        watch->last_own_ns -= (uint64_t)lost_ns;
    if (watch->last_ns >= WATCH_SLOW_NS)
        watch->slow_count++;
    if (watch->last_own_ns >= WATCH_SLOW_NS)
        watch->slow_own_count++;
    if (watch->last_ns >= WATCH_SLOW_NS && has_waited)
        watch->slow_waiting_count++;
    if (!has_waited && watch->last_own_ns > watch->worst_running_ns)
        watch->worst_running_ns = watch->last_own_ns;
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
