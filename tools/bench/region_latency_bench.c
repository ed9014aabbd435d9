/* SPDX-License-Identifier: MIT */
/*
 * region_latency_bench - the worst call: while the file grows, under a memory
 * limit, and while an emptied file goes back to the disk
 *
 * Each item is put by one call and then copied into warm memory by another; both
 * are timed, and so is poll, for what put does not do poll may have to. Beside all
 * calls as they were stand the same without the time in which they could have run
 * and somebody else had the core (watch.h).
 */
#include "region_bench.h"

#include "memcg.h"
#include "watch.h"
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define LATENCY_ITEM_BYTES  4096u
#define LATENCY_TICK        16u /* puts between two polls */
#define LATENCY_SECOND_NS   UINT64_C(1000000000)
#define GROW_FIRST_BYTES    (64 * REGION_MIB) /* what is reserved at open */
#define GROW_WARM_BYTES     (64 * REGION_MIB)
#define LIMITED_BYTES       (4096 * REGION_MIB)
#define LIMITED_QUEUE_BYTES (1024 * REGION_MIB)
#define LIMITED_LIMIT_BYTES (256 * REGION_MIB)
#define LIMITED_RESIDENT    (64 * REGION_MIB)
#define LIMITED_SLACK_MIB   32.0
#define LIMITED_RATE        (400 * REGION_MIB)
#define LIMITED_WARM_BYTES  REGION_MIB
#define EMPTIED_BYTES       (512 * REGION_MIB)
#define EMPTIED_LEFT_BYTES  (4 * REGION_MIB)
#define EMPTIED_SLACK_BYTES (UINT64_C(64) << 10)
#define EMPTIED_TICK_NS     UINT64_C(1000000)
#define EMPTIED_PATIENCE_NS (3 * LATENCY_SECOND_NS)

#define LATENCY_OWN "self - lost core time"

static double latency_us(uint64_t ns)
{
    return (double)ns / 1000;
}

/* What all cases here say of a watch. */
static void latency_figures(struct bench_row *row, const struct watch *puts,
                            const struct watch *polls)
{
    bench_figure(row, "puts above 0.5 ms", (double)puts->slow_count);
    bench_figure(row, "puts above 0.5 ms, less what was lost", (double)puts->slow_own_count);
    bench_figure(row, "puts above 0.5 ms, with a voluntary switch",
                 (double)puts->slow_waiting_count);
    bench_figure(row, "worst own put without such a switch, us",
                 latency_us(puts->worst_running_ns));
    bench_figure(row, "worst poll, us", latency_us(polls->worst_ns));
    bench_figure(row, "worst own poll, us", latency_us(polls->worst_own_ns));
}

static void latency_put(struct bench_row *row, uint64_t ns, uint64_t own_ns)
{
    bench_latency(row, BENCH_SELF, ns);
    bench_add(row, BENCH_SELF, ns, 1);
    bench_latency(row, LATENCY_OWN, own_ns);
    bench_add(row, LATENCY_OWN, own_ns, 1);
}

/* ---- Growth ----------------------------------------------------------------- */

struct grow {
    struct bench *bench;
    struct bench_row *row;
    struct weir_region *region;
    struct workload_source source;
    char *warm; /* a file's mapping too, but every page of it was stored to */
    struct watch puts;
    struct watch polls;
    struct watch copies;
};

static void grow_open_warm(struct grow *grow)
{
    int fd = region_file(grow->bench);

    bench_check(fallocate(fd, 0, 0, (off_t)GROW_WARM_BYTES) < 0 ? -errno : 0, "fallocate");
    grow->warm = mmap(NULL, GROW_WARM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    bench_check(grow->warm == MAP_FAILED ? -errno : 0, "mmap");
    memset(grow->warm, 0x5a, GROW_WARM_BYTES);
    close(fd);
}

static void grow_put(struct grow *grow, uint64_t item, bool is_measured)
{
    const char *data = workload_source_next(&grow->source);
    struct weir_slot slot;

    uint64_t begin = watch_begin(&grow->puts);
    int r = weir_region_put(grow->region, data, LATENCY_ITEM_BYTES,
                            (struct weir_label){.key = item}, &slot);
    uint64_t ns = watch_end(&grow->puts, begin);
    bench_check(r, "weir_region_put");
    if (!is_measured)
        return;
    latency_put(grow->row, ns, grow->puts.last_own_ns);
}

static void grow_copy(struct grow *grow, uint64_t item)
{
    const char *data = workload_source_next(&grow->source);
    char *place = grow->warm + item * LATENCY_ITEM_BYTES % GROW_WARM_BYTES;

    uint64_t begin = watch_begin(&grow->copies);
    memcpy(place, data, LATENCY_ITEM_BYTES);
    uint64_t ns = watch_end(&grow->copies, begin);
    bench_latency(grow->row, "memcpy into a file", ns);
    bench_add(grow->row, "memcpy into a file", ns, 1);
}

static void grow_poll(struct grow *grow)
{
    uint64_t begin = watch_begin(&grow->polls);
    int r = weir_region_poll(grow->region);

    bench_add(grow->row, BENCH_SELF, watch_end(&grow->polls, begin), 0);
    bench_check(r, "weir_region_poll");
}

/* @rate: bytes a second, all told; 0: as fast as it goes. */
static void grow_items(struct grow *grow, uint64_t first, uint64_t end, uint64_t rate)
{
    uint64_t start_ns = bench_wall_ns();

    for (uint64_t i = first; i < end; i++) {
        if (rate > 0)
            watch_until(&grow->puts,
                        start_ns + (i - first) * LATENCY_ITEM_BYTES * LATENCY_SECOND_NS / rate);
        grow_put(grow, i, true);
        grow_copy(grow, i);
        if (i % LATENCY_TICK == 0)
            grow_poll(grow);
    }
}

static void grow_run(struct bench *bench, struct bench_row *row, uint64_t bytes, uint64_t rate)
{
    uint64_t first = bench_count(bench, GROW_FIRST_BYTES / LATENCY_ITEM_BYTES);
    uint64_t end = first + bench_count(bench, bytes / LATENCY_ITEM_BYTES - first);
    struct grow grow = {.bench = bench, .row = row};
    struct weir_region_stats stats;

    bench_row_bytes(row, LATENCY_ITEM_BYTES);
    workload_machine(bench_count(bench, bytes + bytes / 8));
    workload_source_open(&grow.source, 16);
    grow_open_warm(&grow);
    grow.region = region_open(bench, 2 * bytes, UINT64_MAX);
    watch_open(&grow.puts);
    for (uint64_t i = 0; i < first; i++)
        grow_put(&grow, i, false);
    watch_close(&grow.puts);
    watch_open(&grow.puts);
    watch_open(&grow.polls);
    watch_open(&grow.copies);
    int64_t others_ns = watch_others_ns();
    grow_items(&grow, first, end, rate);

    latency_figures(row, &grow.puts, &grow.polls);
    bench_figure(row, "worst own memcpy, us", latency_us(grow.copies.worst_own_ns));
    bench_figure(row, "ns each of io_uring's threads", watch_others_each(others_ns, end - first));
    watch_close(&grow.copies);
    watch_close(&grow.polls);
    watch_close(&grow.puts);
    weir_region_stats(grow.region, &stats);
    bench_figure(row, "file GiB", (double)stats.file_bytes / (double)(1024 * REGION_MIB));
    weir_region_close(grow.region);
    munmap(grow.warm, GROW_WARM_BYTES);
    workload_source_close(&grow.source);
}

void region_grow(struct bench *bench)
{
    struct bench_row *row = bench_row(bench, "grow: put 4 KiB, 64 MiB to 2 GiB");

    grow_run(bench, row, 2048 * REGION_MIB, 0);
    bench_at_most(row, BENCH_MAX, BENCH_SELF, 1e6);
    bench_at_most(row, BENCH_MAX, LATENCY_OWN, 1e6);
}

void region_grow_paced(struct bench *bench)
{
    struct bench_row *row = bench_row(bench, "grow: put 4 KiB, to 4 GiB at 1 GB/s");

    grow_run(bench, row, 4096 * REGION_MIB, LATENCY_SECOND_NS);
    bench_at_most(row, BENCH_P999, BENCH_SELF, 5e5);
    bench_at_most(row, BENCH_MAX, BENCH_SELF, 5e6);
    bench_at_most(row, BENCH_P999, LATENCY_OWN, 5e5);
    bench_at_most(row, BENCH_MAX, LATENCY_OWN, 5e6);
}

/* ---- Under a memory limit --------------------------------------------------- */

/*
 * What parent and child share, touched by the parent, so that the cgroup of the
 * child counts its region and next to nothing else.
 */
struct limited {
    uint64_t put_count;
    uint64_t live_count; /* the most that live; older ones are freed, oldest first */
    struct watch puts;
    struct watch frees;
    struct watch polls;
    struct weir_region_stats stats;
    uint64_t end_ns;  /* from the first to the last put */
    double others_ns; /* of each put, in threads of io_uring */
    char warm[LIMITED_WARM_BYTES];
    uint32_t put_ns[LIMITED_BYTES / LATENCY_ITEM_BYTES];
    uint32_t copy_ns[LIMITED_BYTES / LATENCY_ITEM_BYTES];
    uint32_t own_ns[LIMITED_BYTES / LATENCY_ITEM_BYTES];
    struct weir_slot slots[LIMITED_BYTES / LATENCY_ITEM_BYTES];
};

static uint32_t limited_clamp(uint64_t ns)
{
    return ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns;
}

static void limited_item(struct limited *limited, struct weir_region *region,
                         struct workload_source *source, uint64_t item)
{
    const char *data = workload_source_next(source);
    char *place = limited->warm + item * LATENCY_ITEM_BYTES % LIMITED_WARM_BYTES;

    uint64_t begin = watch_begin(&limited->puts);
    int r = weir_region_put(region, data, LATENCY_ITEM_BYTES, (struct weir_label){.key = item},
                            &limited->slots[item]);
    limited->put_ns[item] = limited_clamp(watch_end(&limited->puts, begin));
    limited->own_ns[item] = limited_clamp(limited->puts.last_own_ns);
    bench_check(r, "weir_region_put");
    if (item >= limited->live_count) {
        begin = watch_begin(&limited->frees);
        r = weir_region_free(region, limited->slots[item - limited->live_count]);
        watch_end(&limited->frees, begin);
        bench_check(r, "weir_region_free");
    }
    begin = bench_wall_ns();
    memcpy(place, data, LATENCY_ITEM_BYTES);
    limited->copy_ns[item] = limited_clamp(bench_wall_ns() - begin);
    if (item % LATENCY_TICK != 0)
        return;
    begin = watch_begin(&limited->polls);
    r = weir_region_poll(region);
    watch_end(&limited->polls, begin);
    bench_check(r, "weir_region_poll");
}

/* In the child, and in its cgroup. */
static void limited_child(struct bench *bench, struct limited *limited,
                          struct workload_source *source)
{
    struct weir_region *region = region_open(bench, LIMITED_BYTES * 5 / 4, LIMITED_RESIDENT);

    watch_open(&limited->puts);
    watch_open(&limited->frees);
    watch_open(&limited->polls);
    int64_t others_ns = watch_others_ns();
    uint64_t start_ns = bench_wall_ns();
    for (uint64_t i = 0; i < limited->put_count; i++) {
        watch_until(&limited->puts,
                    start_ns + i * LATENCY_ITEM_BYTES * LATENCY_SECOND_NS / LIMITED_RATE);
        limited_item(limited, region, source, i);
    }
    limited->end_ns = bench_wall_ns() - start_ns;
    limited->others_ns = watch_others_each(others_ns, limited->put_count);
    weir_region_stats(region, &limited->stats);
    weir_region_close(region);
}

static void limited_report(struct bench_row *row, const struct limited *limited,
                           uint64_t peak_bytes)
{
    for (uint64_t i = 0; i < limited->put_count; i++) {
        latency_put(row, limited->put_ns[i], limited->own_ns[i]);
        bench_latency(row, "memcpy", limited->copy_ns[i]);
        bench_add(row, "memcpy", limited->copy_ns[i], 1);
    }
    latency_figures(row, &limited->puts, &limited->polls);
    bench_figure(row, "puts above 10 ms that waited", (double)limited->puts.long_waiting_count);
    bench_figure(row, "cgroup peak MiB", (double)peak_bytes / (double)REGION_MIB);
    bench_figure(row, "of these, tables MiB",
                 (double)limited->stats.metadata_bytes / (double)REGION_MIB);
    if (limited->live_count < limited->put_count)
        bench_figure(row, "worst own free, us", latency_us(limited->frees.worst_own_ns));
    bench_figure(row, "ns each of io_uring's threads", limited->others_ns);
    bench_figure(row, "MiB/s in all",
                 (double)limited->put_count * LATENCY_ITEM_BYTES / (double)REGION_MIB /
                     (double)limited->end_ns * 1e9);
    bench_at_most(row, BENCH_P999, BENCH_SELF, 4e5);
    bench_at_most(row, BENCH_P999, LATENCY_OWN, 4e5);
    bench_at_most(row, BENCH_FIGURE, "puts above 10 ms that waited", 3);
    bench_at_most(row, BENCH_FIGURE, "cgroup peak MiB",
                  (double)LIMITED_RESIDENT / (double)REGION_MIB + LIMITED_SLACK_MIB);
}

/* @signals: what the child is to hear. */
static int limited_fork(struct bench *bench, struct limited *limited, const struct memcg *memcg,
                        const sigset_t *signals)
{
    struct workload_source source;
    int status;

    workload_source_open(&source, 22);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        sigprocmask(SIG_SETMASK, signals, NULL);
        bench_check(memcg_enter(memcg), memcg->path);
        limited_child(bench, limited, &source);
        _exit(0);
    }
    int r = child < 0 || waitpid(child, &status, 0) != child ? -errno : 0;
    workload_source_close(&source);
    if (r < 0)
        return r;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -ECHILD;
}

/* A child in a cgroup, both gone when this returns. */
static int limited_run(struct bench *bench, struct bench_row *row, uint64_t live_count,
                       const sigset_t *signals)
{
    const char *reason;
    struct memcg memcg;

    if (memcg_open(&memcg, bench_directory(bench), LIMITED_LIMIT_BYTES, &reason) < 0) {
        bench_pass_over(row, reason);
        return 0;
    }
    struct limited *limited = mmap(NULL, sizeof(*limited), PROT_READ | PROT_WRITE,
                                   MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    int r = limited == MAP_FAILED ? -errno : 0;
    if (r == 0) {
        memset(limited, 0, sizeof(*limited));
        limited->put_count = bench_count(bench, LIMITED_BYTES / LATENCY_ITEM_BYTES);
        limited->live_count = bench_count(bench, live_count);
        r = limited_fork(bench, limited, &memcg, signals);
    }
    uint64_t peak_bytes = memcg_peak_bytes(&memcg);
    memcg_close(&memcg);
    /* Nothing is what would meet any bound. */
    if (r == 0 && peak_bytes == 0)
        r = -ENODATA;
    if (r == 0)
        limited_report(row, limited, peak_bytes);
    if (limited != MAP_FAILED)
        munmap(limited, sizeof(*limited));
    return r;
}

/* Signals wait until the child is gone and its cgroup with it. */
static void limited_bench(struct bench *bench, struct bench_row *row, uint64_t live_bytes)
{
    sigset_t all;
    sigset_t before;

    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &before);
    int r = limited_run(bench, row, live_bytes / LATENCY_ITEM_BYTES, &before);
    sigprocmask(SIG_SETMASK, &before, NULL);
    bench_check(r, "the region in its cgroup");
}

/* All of it stays: the tables grow to the end. */
void region_limited(struct bench *bench)
{
    limited_bench(bench, bench_row(bench, "limited: 4 KiB at 400 MiB/s in 256 MiB"), LIMITED_BYTES);
}

/* In at one end, out at the other, as a queue that is behind. */
void region_limited_queue(struct bench *bench)
{
    limited_bench(bench, bench_row(bench, "limited: the same, 1 GiB stays behind"),
                  LIMITED_QUEUE_BYTES);
}

/* ---- Everything freed ------------------------------------------------------- */

struct emptied {
    struct bench *bench;
    struct bench_row *row;
    struct weir_region *region;
    struct watch ticks;
    uint64_t tick_count;
    uint64_t self_ns;
    uint64_t done_ns; /* since the last free; EMPTIED_PATIENCE_NS: never */
    struct weir_region_stats after;
};

/* 512 MiB of items; their slots, and in @ret_count how many. */
static struct weir_slot *emptied_fill(struct emptied *emptied, uint32_t *ret_count)
{
    uint64_t bytes_max = bench_count(emptied->bench, EMPTIED_BYTES);
    uint32_t size_count = UINT32_C(1) << 20;
    uint32_t *sizes = workload_sizes(23, size_count);
    struct weir_slot *slots = region_array(size_count, sizeof(*slots));
    struct workload_source source;
    uint64_t bytes = 0;
    uint32_t count = 0;

    workload_source_open(&source, 24);
    for (; count < size_count && bytes < bytes_max; count++) {
        int r = weir_region_put(emptied->region, workload_source_next(&source), sizes[count],
                                (struct weir_label){.key = count}, &slots[count]);
        bench_check(r, "weir_region_put");
        bytes += sizes[count];
        if (count % REGION_TICK == 0)
            bench_check(weir_region_poll(emptied->region), "weir_region_poll");
    }
    workload_source_close(&source);
    free(sizes);
    *ret_count = count;
    return slots;
}

static void emptied_tick(struct emptied *emptied)
{
    uint64_t begin = watch_begin(&emptied->ticks);
    int r = weir_region_poll(emptied->region);

    emptied->self_ns += watch_end(&emptied->ticks, begin);
    emptied->tick_count++;
    bench_check(r, "weir_region_poll");
}

static void emptied_free(struct emptied *emptied, const struct weir_slot *slots, uint32_t count)
{
    uint32_t *order = workload_shuffle(25, count);

    for (uint32_t i = 0; i < count; i++) {
        bench_check(weir_region_free(emptied->region, slots[order[i]]), "weir_region_free");
        if (i % REGION_TICK == 0)
            emptied_tick(emptied);
    }
    free(order);
}

/* Blocks in which a file system notes where the file lies are counted in those of the file. */
static bool emptied_is_small(const struct weir_region_stats *stats)
{
    return stats->file_bytes <= EMPTIED_LEFT_BYTES &&
           stats->disk_bytes <= EMPTIED_LEFT_BYTES + EMPTIED_SLACK_BYTES;
}

/* A tick each millisecond, and nothing else is asked of the region. */
static void emptied_wait(struct emptied *emptied)
{
    uint64_t start_ns = bench_wall_ns();
    uint64_t patience_ns = bench_count(emptied->bench, EMPTIED_PATIENCE_NS);
    bool is_second_over = false;

    emptied->done_ns = EMPTIED_PATIENCE_NS;
    for (;;) {
        struct weir_region_stats stats;
        emptied_tick(emptied);
        weir_region_stats(emptied->region, &stats);
        uint64_t now = bench_wall_ns() - start_ns;
        bool is_small = emptied_is_small(&stats);
        if (!is_second_over)
            emptied->after = stats;
        is_second_over = is_second_over || now >= LATENCY_SECOND_NS;
        if (is_small)
            emptied->done_ns = now;
        if (is_small || now >= patience_ns)
            return;
        watch_until(&emptied->ticks, start_ns + now + EMPTIED_TICK_NS);
    }
}

/* As much in a file of our own, given back by one call. */
static void emptied_by_hand(struct emptied *emptied)
{
    uint64_t bytes = bench_count(emptied->bench, EMPTIED_BYTES);
    int fd = region_file(emptied->bench);

    bench_check(fallocate(fd, 0, 0, (off_t)bytes) < 0 ? -errno : 0, "fallocate");
    char *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    bench_check(map == MAP_FAILED ? -errno : 0, "mmap");
    memset(map, 0x5a, bytes);
    bench_start(emptied->bench);
    bench_check(ftruncate(fd, 0) < 0 ? -errno : 0, "ftruncate");
    bench_lap(emptied->bench, emptied->row, "ftruncate", 1);
    munmap(map, bytes);
    close(fd);
}

static void emptied_run(struct bench *bench, struct bench_row *row, uint64_t resident_bytes_max)
{
    struct emptied emptied = {.bench = bench, .row = row};
    uint32_t count;

    emptied.region = region_open(bench, 2 * EMPTIED_BYTES, resident_bytes_max);
    struct weir_slot *slots = emptied_fill(&emptied, &count);
    watch_open(&emptied.ticks);
    emptied_free(&emptied, slots, count);
    emptied_wait(&emptied);
    watch_close(&emptied.ticks);
    free(slots);
    weir_region_close(emptied.region);
    emptied_by_hand(&emptied);

    bench_add(row, BENCH_SELF, emptied.self_ns, 1);
    bench_figure(row, "s until <= 4 MiB (3: never)",
                 (double)emptied.done_ns / (double)LATENCY_SECOND_NS);
    bench_figure(row, "file MiB by then or after 1 s",
                 (double)emptied.after.file_bytes / (double)REGION_MIB);
    bench_figure(row, "disk MiB by then or after 1 s",
                 (double)emptied.after.disk_bytes / (double)REGION_MIB);
    bench_figure(row, "ticks", (double)emptied.tick_count);
    bench_figure(row, "worst tick, us", latency_us(emptied.ticks.worst_ns));
    bench_figure(row, "worst own tick, us", latency_us(emptied.ticks.worst_own_ns));
    bench_at_most(row, BENCH_FIGURE, "s until <= 4 MiB (3: never)", 1);
    bench_at_most(row, BENCH_FIGURE, "worst tick, us", 1000);
    bench_at_most(row, BENCH_FIGURE, "worst own tick, us", 1000);
}

void region_emptied(struct bench *bench)
{
    emptied_run(bench, bench_row(bench, "emptied: all of 512 MiB freed, ticks"), UINT64_MAX);
}

void region_emptied_cold(struct bench *bench)
{
    emptied_run(bench, bench_row(bench, "emptied: the same, 64 MiB resident"), 64 * REGION_MIB);
}
