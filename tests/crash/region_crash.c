/* SPDX-License-Identifier: MIT */
/*
 * region_crash - a named region whose owner is killed, again and again
 *
 *      parent                     child
 *      fork ------------------->  open, compare with the log, go on at random
 *      wait for some step         log: what I am about to do
 *      kill -9                    region
 *      next child                 log: done
 *
 * The log is memory that parent and children share, so it survives a child as the
 * page cache does. What the region must hold follows from it: an item whose put
 * had returned is there, byte for byte; one whose free had returned is not; of
 * the one call that was under way either may be true. Nothing else may be there,
 * nothing may be lost or damaged. The kill may hit open itself, and the
 * comparison.
 *
 *      region_crash [--kills COUNT]
 */
#include <weir/region.h>

#include "pattern.h"
#include "process.h"
#include "seed.h"
#include "tmpdir.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#define KIB UINT64_C(1024)
#define MIB (KIB << 10)

#define CRASH_ITEMS      700
#define CRASH_BYTES_MAX  (40 * MIB)
#define CRASH_LIVE_BYTES (14 * MIB)
#define CRASH_PIECE      (128 * KIB)
#define CRASH_STEPS_MAX  1500 /* of one child before it is killed, at most */
#define CRASH_WAIT_MS    60000
#define CRASH_OWNER      3

#define CHECK(condition) crash_check((condition), #condition, __LINE__)

/* What was said last of an item; the order of stores is the order of events. */
enum crash_state {
    CRASH_NONE,
    CRASH_PUTTING,    /* may be there, under a handle that nobody was told */
    CRASH_BUILDING,   /* may not be there */
    CRASH_COMMITTING, /* may be there */
    CRASH_LIVE,
    CRASH_FREEING, /* may be there */
};

struct crash_item {
    _Atomic int state;
    uint64_t key; /* the seed of its bytes */
    uint64_t bytes;
    struct weir_slot slot;
};

struct crash_log {
    _Atomic uint64_t steps; /* of this child, opening included */
    _Atomic int is_open;
    uint64_t random;
    uint64_t key_last;
    uint64_t syncs;
    uint64_t cold_reads;
    uint64_t moved_bytes;
    uint64_t closes;
    uint64_t either; /* calls under way that were found done */
    uint64_t neither;
    struct crash_item items[CRASH_ITEMS];
};

static struct crash_log *crash_log;

static void crash_check(bool condition, const char *text, int line)
{
    if (condition)
        return;
    printf("# line %d: %s\n", line, text);
    fflush(stdout);
    abort();
}

/* ---- What must be there ---------------------------------------------------- */

static void crash_compare(struct weir_region *region, struct weir_slot slot,
                          const struct crash_item *item)
{
    struct weir_slot_info info;
    size_t count = 0;

    CHECK(weir_region_slot(region, slot, &info) == 0);
    CHECK(info.committed);
    CHECK(info.bytes == item->bytes);
    CHECK(info.label.key == item->key);
    CHECK(info.label.owner == CRASH_OWNER);
    char *data = malloc(item->bytes + 1);
    CHECK(weir_region_read(region, slot, 0, data, item->bytes, &count) == 0);
    CHECK(count == item->bytes);
    CHECK(harness_differs_at(data, count, item->key, 0) == count);
    free(data);
}

static bool crash_is_there(const struct weir_region *region, struct weir_slot slot)
{
    struct weir_slot_info info;

    return weir_region_slot(region, slot, &info) == 0;
}

/* The live slot with this key, all zero if there is none. */
static struct weir_slot crash_find(const struct weir_region *region, uint64_t key)
{
    struct weir_slot slot = {0};
    struct weir_slot_info info;

    while (weir_region_next(region, &slot))
        if (weir_region_slot(region, slot, &info) == 0 && info.label.key == key)
            return slot;
    return (struct weir_slot){0};
}

/* 1 if it is there; the log says so from now on. */
static uint64_t crash_settle(struct weir_region *region, struct crash_item *item)
{
    int state = item->state;
    bool is_there = false;

    if (state == CRASH_NONE)
        return 0;
    if (state == CRASH_PUTTING) {
        struct weir_slot slot = crash_find(region, item->key);
        is_there = slot.index != 0;
        item->slot = slot;
    } else {
        is_there = crash_is_there(region, item->slot);
    }
    CHECK(is_there || state != CRASH_LIVE);
    CHECK(!is_there || state != CRASH_BUILDING);
    if (is_there)
        crash_compare(region, item->slot, item);
    if (state != CRASH_LIVE && state != CRASH_BUILDING) {
        crash_log->either += is_there;
        crash_log->neither += !is_there;
    }
    item->state = is_there ? CRASH_LIVE : CRASH_NONE;
    return is_there;
}

static void crash_compare_all(struct weir_region *region)
{
    struct weir_region_report report;
    struct weir_slot slot = {0};
    uint64_t expected = 0;
    uint64_t found = 0;

    weir_region_report(region, &report);
    CHECK(report.lost_slot_count == 0);
    CHECK(report.damaged_entry_count == 0);
    CHECK(report.first_error == 0);
    CHECK(!report.after_power_loss);
    weir_region_audit(region);
    for (size_t i = 0; i < CRASH_ITEMS; i++) {
        expected += crash_settle(region, &crash_log->items[i]);
        crash_log->steps++;
    }
    while (weir_region_next(region, &slot))
        found++;
    CHECK(found == expected);
    CHECK(found == report.kept_slot_count);
}

/* ---- Steps ----------------------------------------------------------------- */

static uint64_t crash_live_bytes(const struct weir_region *region)
{
    struct weir_region_stats stats;

    weir_region_stats(region, &stats);
    return stats.live_bytes + stats.freed_bytes;
}

static uint64_t crash_size(uint64_t *random)
{
    uint64_t kind = weir__random_below(random, 20);

    if (kind == 0)
        return 0;
    if (kind == 1)
        return weir__random_below(random, 1500 * KIB);
    return weir__random_below(random, kind < 12 ? 3000 : 60000);
}

static void crash_put(struct weir_region *region, struct crash_item *item)
{
    struct weir_slot slot;
    char *data = malloc(item->bytes + 1);

    harness_fill(data, item->bytes, item->key, 0);
    item->state = CRASH_PUTTING;
    int r = weir_region_put(region, data, item->bytes, (struct weir_label){item->key, CRASH_OWNER},
                            &slot);
    free(data);
    if (r < 0) {
        CHECK(r == -EAGAIN || r == -EDQUOT || r == -ENOSPC);
        item->state = CRASH_NONE;
        return;
    }
    item->slot = slot;
    item->state = CRASH_LIVE;
}

static void crash_build(struct weir_region *region, struct crash_item *item)
{
    struct weir_slot slot;
    int r =
        weir_region_alloc(region, item->bytes, (struct weir_label){item->key, CRASH_OWNER}, &slot);

    if (r < 0) {
        CHECK(r == -EAGAIN || r == -EDQUOT || r == -ENOSPC);
        return;
    }
    item->slot = slot;
    item->state = CRASH_BUILDING;
    char *piece = malloc(CRASH_PIECE);
    for (uint64_t at = 0; at < item->bytes && r == 0;) {
        uint64_t bytes = item->bytes - at < CRASH_PIECE ? item->bytes - at : CRASH_PIECE;
        harness_fill(piece, bytes, item->key, at);
        r = weir_region_write(region, slot, at, piece, bytes);
        at += bytes;
    }
    free(piece);
    if (r < 0) {
        CHECK(r == -EAGAIN);
        CHECK(weir_region_free(region, slot) == 0);
        item->state = CRASH_NONE;
        return;
    }
    item->state = CRASH_COMMITTING;
    CHECK(weir_region_commit(region, slot) == 0);
    item->state = CRASH_LIVE;
}

static void crash_change(struct weir_region *region, uint64_t *random)
{
    struct crash_item *item = &crash_log->items[weir__random_below(random, CRASH_ITEMS)];

    if (item->state == CRASH_LIVE) {
        item->state = CRASH_FREEING;
        CHECK(weir_region_free(region, item->slot) == 0);
        item->state = CRASH_NONE;
        return;
    }
    if (crash_live_bytes(region) > CRASH_LIVE_BYTES)
        return;
    item->key = ++crash_log->key_last;
    item->bytes = crash_size(random);
    if (weir__random_below(random, 8) == 0)
        crash_build(region, item);
    else
        crash_put(region, item);
}

static void crash_read(struct weir_region *region, uint64_t *random)
{
    const struct crash_item *item = &crash_log->items[weir__random_below(random, CRASH_ITEMS)];
    struct weir_slot_info info;

    if (item->state != CRASH_LIVE)
        return;
    CHECK(weir_region_slot(region, item->slot, &info) == 0);
    crash_log->cold_reads += !info.resident;
    crash_compare(region, item->slot, item);
}

static void crash_step(struct weir_region *region, uint64_t *random)
{
    uint64_t choice = weir__random_below(random, 100);

    if (choice < 75)
        crash_change(region, random);
    else if (choice < 80)
        crash_read(region, random);
    else if (choice == 99)
        CHECK(weir_region_wait(region, 1000000) >= 0);
    else
        CHECK(weir_region_poll(region) >= 0);
    if (weir__random_below(random, 300) == 0) {
        CHECK(weir_region_sync(region) == 0);
        crash_log->syncs++;
    }
    crash_log->steps++;
}

static void crash_child(const char *directory)
{
    struct weir_region_config config = {
        .directory = directory,
        .name = "crash",
        .bytes_initial = 2 * MIB,
        .bytes_max = CRASH_BYTES_MAX,
        .resident_bytes_max = 8 * MIB,
    };
    struct weir_region *region;
    struct weir_region_stats stats;
    uint64_t random = crash_log->random;

    crash_log->is_open = 1;
    CHECK(weir_region_open(&config, &region) == 0);
    crash_log->is_open = 2;
    crash_compare_all(region);
    crash_log->is_open = 3;
    do
        crash_step(region, &random);
    while (weir__random_below(&random, CRASH_STEPS_MAX) != 0);
    weir_region_stats(region, &stats);
    crash_log->moved_bytes += stats.moved_bytes;
    weir_region_audit(region);
    weir_region_close(region);
    crash_log->closes++;
    _exit(0);
}

/* ---- The parent ------------------------------------------------------------ */

static uint64_t crash_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/*
 * Until the child has done @steps, or has ended by itself: looked at every 50 us,
 * and then a moment more that is not a multiple of anything.
 */
static void crash_wait(int pid_fd, uint64_t steps, uint64_t spin_ns)
{
    struct pollfd child = {.fd = pid_fd, .events = POLLIN};
    struct timespec moment = {.tv_nsec = 50000};
    uint64_t end = crash_now_ns() + CRASH_WAIT_MS * UINT64_C(1000000);

    while (crash_log->steps < steps && ppoll(&child, 1, &moment, NULL) == 0)
        CHECK(crash_now_ns() < end);
    end = crash_now_ns() + spin_ns;
    while (crash_now_ns() < end)
        ;
}

static void crash_turn(const char *directory, uint64_t *random, uint64_t *opening)
{
    uint64_t steps = weir__random_below(random, CRASH_ITEMS + CRASH_STEPS_MAX);
    int status;

    /* One in eight is killed as it opens. */
    if (weir__random_below(random, 8) == 0)
        steps = 0;
    crash_log->steps = 0;
    crash_log->is_open = 0;
    crash_log->random = weir__random(random);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        crash_child(directory);
    }
    int pid_fd = (int)syscall(SYS_pidfd_open, child, 0);
    CHECK(pid_fd >= 0);
    crash_wait(pid_fd, steps, weir__random_below(random, steps == 0 ? 8000000 : 100000));
    kill(child, SIGKILL);
    CHECK(waitpid(child, &status, 0) == child);
    close(pid_fd);
    bool is_killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    CHECK(is_killed || (WIFEXITED(status) && WEXITSTATUS(status) == 0));
    *opening += is_killed && crash_log->is_open < 3;
}

/* ---- Making one ------------------------------------------------------------ */

static struct weir_region_config crash_new_config(const char *directory)
{
    return (struct weir_region_config){
        .directory = directory,
        .name = "new",
        .bytes_initial = 2 * MIB,
        .bytes_max = 8 * MIB,
    };
}

/*
 * Killed while it is made: there is a whole region, or one that was not born, or
 * none. What is left besides is gone with the next open.
 */
static void crash_making(const char *parent, uint64_t *random)
{
    struct weir_region *region;
    char directory[PATH_MAX];
    struct timespec moment = {.tv_nsec = (long)weir__random_below(random, 12000000)};

    snprintf(directory, sizeof(directory), "%.4000s/making-XXXXXX", parent);
    CHECK(mkdtemp(directory) != NULL);
    struct weir_region_config config = crash_new_config(directory);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        while (weir_region_open(&config, &region) == 0) {
            weir_region_close(region);
            if (weir_region_remove(directory, "new") < 0)
                break;
        }
        abort();
    }
    ppoll(NULL, 0, &moment, NULL);
    kill(child, SIGKILL);
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);

    /* Or the data file was gone already, and the tables were not. */
    int r = weir_region_open(&config, &region);
    CHECK(r == 0 || r == -ENOENT);
    if (r == -ENOENT) {
        CHECK(weir_region_remove(directory, "new") == 0);
        CHECK(weir_region_open(&config, &region) == 0);
    }
    CHECK(harness_name_count(directory) == 2);
    weir_region_close(region);
    CHECK(weir_region_remove(directory, "new") == 0);
    CHECK(rmdir(directory) == 0);
}

int main(int argc, char **argv)
{
    uint64_t kills = 50;
    uint64_t opening = 0;
    char directory[PATH_MAX];

    for (int i = 1; i + 1 < argc; i += 2)
        if (strcmp(argv[i], "--kills") == 0)
            kills = strtoull(argv[i + 1], NULL, 0);
    if (harness_tmpdir() == NULL) {
        printf("there is no disk to write to\n");
        return 77;
    }
    snprintf(directory, sizeof(directory), "%s/crash-XXXXXX", harness_tmpdir());
    CHECK(mkdtemp(directory) != NULL);
    crash_log =
        mmap(NULL, sizeof(*crash_log), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(crash_log != MAP_FAILED);

    uint64_t random = harness_seed();
    for (uint64_t i = 0; i < kills; i++)
        crash_making(directory, &random);
    for (uint64_t i = 0; i < kills; i++)
        crash_turn(directory, &random, &opening);
    printf("# %" PRIu64 " owners, %" PRIu64 " killed while opening, %" PRIu64 " closed; %" PRIu64
           " items put, %" PRIu64 " syncs, %" PRIu64 " cold reads\n",
           kills, opening, crash_log->closes, crash_log->key_last, crash_log->syncs,
           crash_log->cold_reads);
    printf("# calls under way: %" PRIu64 " done, %" PRIu64 " not; %" PRIu64 " bytes moved\n",
           crash_log->either, crash_log->neither, crash_log->moved_bytes);
    CHECK(harness_name_count(directory) == 2);
    CHECK(crash_log->key_last > 0);
    CHECK(kills < 500 || (opening > 0 && crash_log->syncs > 0 && crash_log->cold_reads > 0));
    CHECK(weir_region_remove(directory, "crash") == 0);
    printf("ok\n");
    return 0;
}
