/* SPDX-License-Identifier: MIT */
/*
 * growth_unit - the file of a region is as long as it must be, and no longer
 *
 * Blocks are reserved ahead of need and given back unasked, both through the
 * ring (on the seam): what reserves or gives back can be refused, and what goes
 * through the ring can be late, so that a put comes exactly while it is under way.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/region.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/random.h"
#include "base/ring.h"

#include "pattern.h"
#include "process.h"
#include "program.h"
#include "seam.h"
#include "seed.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define KIB         UINT64_C(1024)
#define MIB         (KIB << 10)
#define CHUNK_BYTES (2 * MIB)
#define ITEM_BYTES  (64 * KIB)
#define ITEMS_MAX   8192
#define OWN_BYTES   (256 * KIB)            /* of the file system, for one file: at most */
#define PATIENCE_NS UINT64_C(100000000000) /* of a busy machine */

/* ---- Doors ---------------------------------------------------------------- */

static bool growing_fails;   /* whoever reserves blocks */
static bool ahead_fails;     /* only the ring */
static bool punching_fails;  /* in the ring */
static bool cutting_fails;   /* ftruncate */
static uint32_t fails_in_10; /* of whatever reserves, at random */
static bool in_put;
static uint64_t put_growth_count; /* reservations that a put made by itself */
static uint64_t zero_count;       /* chunks that were made unwritten */
static uint64_t random_state;

static bool holds;           /* what goes through the ring waits for release() */
static bool held_fails;      /* and is then refused */
static struct seam_use held; /* its ring is NULL: nothing is held */

static bool is_refused(void)
{
    return growing_fails || weir__random_below(&random_state, 10) < fails_in_10;
}

static bool watch_fallocate(const struct seam_use *use, void *context)
{
    bool reserves = use->mode == 0 && use->bytes % CHUNK_BYTES == 0; /* the tables grow by less */

    (void)context;
    put_growth_count += reserves && in_put;
    zero_count += (use->mode & FALLOC_FL_ZERO_RANGE) != 0;
    return reserves && is_refused();
}

static bool watch_ftruncate(const struct seam_use *use, void *context)
{
    (void)use;
    (void)context;
    return cutting_fails;
}

static bool is_bad(const struct seam_use *use)
{
    return use->mode == 0 ? ahead_fails || is_refused() : punching_fails;
}

static bool watch_ring(const struct seam_use *use, void *context)
{
    (void)context;
    return !holds && is_bad(use);
}

static bool hold(const struct seam_use *use, void *context)
{
    (void)context;
    if (!holds)
        return false;
    WEIR_CHECK(held.ring == NULL); /* one thing at a time */
    held = *use;
    held_fails = is_bad(use);
    return true;
}

static void release(void)
{
    holds = false;
    held.ring = NULL;
    if (held_fails)
        seam_release_failed();
    else
        seam_release();
    held_fails = false;
}

/* What a file system does that runs full on the way: half of it is kept. */
static void open_doors(void)
{
    growing_fails = false; /* whatever the case before left */
    ahead_fails = false;
    punching_fails = false;
    cutting_fails = false;
    release();
    seam_reset();
    seam_arm((struct seam_rule){.call = SEAM_sys_fallocate,
                                .times = SEAM_FOR_GOOD,
                                .how = SEAM_CUT,
                                .matches = watch_fallocate});
    seam_arm((struct seam_rule){
        .call = SEAM_sys_ftruncate, .times = SEAM_FOR_GOOD, .matches = watch_ftruncate});
    seam_arm((struct seam_rule){
        .call = SEAM_ring_fallocate, .times = SEAM_FOR_GOOD, .matches = watch_ring});
    seam_arm((struct seam_rule){
        .call = SEAM_ring_fallocate, .times = SEAM_FOR_GOOD, .how = SEAM_LATE, .matches = hold});
}

/* ---- Steps ---------------------------------------------------------------- */

struct cap {
    uint64_t taken;
    uint64_t most; /* what it allows */
    uint64_t refused_count;
};

struct job {
    struct weir_region *region;
    struct weir_ring *ring; /* shared; NULL: its own */
    struct cap cap;
    int fd;
    struct weir_slot slots[ITEMS_MAX];
    uint64_t seeds[ITEMS_MAX];
    size_t count;
    uint64_t next_seed;
};

static bool cap_take(void *context, uint64_t bytes)
{
    struct cap *cap = context;

    assert_true(bytes > 0);
    if (cap->taken + bytes > cap->most) {
        cap->refused_count++;
        return false;
    }
    cap->taken += bytes;
    return true;
}

static void cap_give(void *context, uint64_t bytes)
{
    struct cap *cap = context;

    assert_true(bytes > 0);
    assert_true(cap->taken >= bytes);
    cap->taken -= bytes;
}

static struct job *start(struct weir_region_config config, uint64_t cap_bytes, bool shares_ring)
{
    struct job *job = test_calloc(1, sizeof(*job));
    bool marks[HARNESS_FD_MAX];

    open_doors();
    harness_mark_fds(marks);
    config.directory = harness_tmpdir();
    config.resident_bytes_max =
        config.resident_bytes_max > 0 ? config.resident_bytes_max : UINT64_MAX;
    job->cap.most = cap_bytes;
    config.disk_cap = (struct weir_disk_cap){cap_take, cap_give, &job->cap};
    if (shares_ring) {
        assert_int_equal(weir__ring_open(64, true, &job->ring), 0);
        config.ring = job->ring;
    }
    assert_int_equal(weir_region_open(&config, &job->region), 0);
    job->fd = harness_data_fd(harness_tmpdir(), marks);
    assert_true(job->fd >= 0);
    put_growth_count = 0;
    return job;
}

static struct weir_region_stats figures(struct job *job)
{
    struct weir_region_stats stats;

    weir_region_stats(job->region, &stats);
    return stats;
}

static void poll_once(struct job *job)
{
    if (job->ring != NULL)
        assert_true(weir__ring_wait(job->ring, 1000000) >= 0);
    assert_true(job->ring != NULL ? weir_region_poll(job->region) >= 0
                                  : weir_region_wait(job->region, 1000000) >= 0);
}

static int put_bytes(struct job *job, size_t bytes)
{
    unsigned char *data = test_malloc(bytes + 1);

    assert_true(job->count < ITEMS_MAX);
    harness_fill(data, bytes, job->next_seed, 0);
    in_put = true;
    int r = weir_region_put(job->region, data, bytes, (struct weir_label){bytes, 1},
                            &job->slots[job->count]);
    in_put = false;
    test_free(data);
    if (r == 0)
        job->seeds[job->count++] = job->next_seed++;
    return r;
}

static void free_at(struct job *job, size_t i)
{
    assert_int_equal(weir_region_free(job->region, job->slots[i]), 0);
    job->slots[i] = job->slots[--job->count];
    job->seeds[i] = job->seeds[job->count];
}

static void assert_all_whole(struct job *job)
{
    struct weir_slot_info info;

    for (size_t i = 0; i < job->count; i++) {
        size_t seen = 0;
        assert_int_equal(weir_region_slot(job->region, job->slots[i], &info), 0);
        unsigned char *data = test_malloc(info.bytes + 1);
        assert_int_equal(
            weir_region_read(job->region, job->slots[i], 0, data, info.bytes + 1, &seen), 0);
        assert_int_equal(seen, info.label.key);
        assert_int_equal(harness_differs_at(data, seen, job->seeds[i], 0), seen);
        test_free(data);
    }
}

/* Whether the file is as long as is said, and the cap knows how many blocks it has. */
static bool is_settled(struct job *job)
{
    struct stat file;

    weir_region_audit(job->region);
    assert_int_equal(fstat(job->fd, &file), 0);
    return (uint64_t)file.st_size == figures(job).file_bytes &&
           llabs((int64_t)job->cap.taken - (int64_t)file.st_blocks * 512) <= (int64_t)OWN_BYTES;
}

static void settle(struct job *job)
{
    uint64_t since_ns = weir__clock_ns();

    while (!is_settled(job)) {
        if (weir__clock_ns() - since_ns > PATIENCE_NS)
            fail_msg("the cap gave %llu bytes, %llu are there", (unsigned long long)job->cap.taken,
                     (unsigned long long)figures(job).disk_bytes);
        poll_once(job);
    }
}

/* Until so much time is over, as an idle owner does: the core is left to others in between. */
static void poll_for(struct job *job, uint64_t ns)
{
    uint64_t since_ns = weir__clock_ns();

    poll_once(job);
    while (weir__clock_ns() - since_ns < ns) {
        (void)poll(NULL, 0, 1);
        poll_once(job);
    }
}

static void poll_until_disk_is(struct job *job, uint64_t bytes)
{
    uint64_t since_ns = weir__clock_ns();

    while (figures(job).disk_bytes > bytes + OWN_BYTES) {
        assert_true(weir__clock_ns() - since_ns < PATIENCE_NS);
        poll_once(job);
        weir_region_audit(job->region);
    }
}

static void finish(struct job *job)
{
    release();
    settle(job);
    assert_all_whole(job);
    weir_region_close(job->region);
    weir__ring_close(job->ring);
    assert_int_equal(job->cap.taken, 0);
    test_free(job);
}

/* Items one after the other; then all but the first and the last are freed. */
static void hollow_out(struct job *job, uint64_t bytes)
{
    while (job->count < bytes / ITEM_BYTES) {
        int r = put_bytes(job, ITEM_BYTES);
        assert_true(r == 0 || r == -EAGAIN);
        if (r == -EAGAIN)
            poll_once(job);
    }
    while (job->count > 2)
        free_at(job, job->count - 2);
    weir_region_audit(job->region);
}

static struct job *start_plain(void)
{
    return start((struct weir_region_config){.bytes_initial = 4 * MIB}, UINT64_MAX, false);
}

/* Of 64 MiB all but the ends has been freed, and given back. */
static struct job *start_hollow(void)
{
    struct job *job = start_plain();

    hollow_out(job, 64 * MIB);
    poll_until_disk_is(job, 16 * MIB);
    settle(job);
    return job;
}

/* What the ring reserves ahead is under way, until it is released. */
static void hold_what_is_reserved(struct job *job)
{
    holds = true;
    while (held.ring == NULL) {
        assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
        poll_once(job);
    }
}

/* The same of what is given back; what is reserved meanwhile is not held. */
static void hold_what_is_given_back(struct job *job)
{
    holds = true;
    for (uint64_t since_ns = weir__clock_ns(); held.ring == NULL || held.mode == 0;) {
        assert_true(weir__clock_ns() - since_ns < PATIENCE_NS);
        if (held.ring != NULL) {
            release();
            holds = true;
        }
        poll_once(job);
    }
}

/* ---- Ahead ---------------------------------------------------------------- */

static void room_is_there_before_it_is_needed(void **state)
{
    struct job *job = start_plain();

    (void)state;
    while (job->count < 1000) {
        assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
        struct weir_region_stats stats = figures(job);
        assert_true(stats.file_bytes - stats.mark_bytes <= 8 * MIB);
        for (int i = 0; i < 100 && stats.file_bytes - stats.mark_bytes < 256 * KIB; i++) {
            poll_once(job);
            stats = figures(job);
        }
        poll_once(job);
        /* And its pages, of which the region knows. */
        uint64_t left = CHUNK_BYTES - stats.mark_bytes % CHUNK_BYTES;
        if (left < 256 * KIB && !harness_is_synchronous)
            assert_true(figures(job).resident_bytes >= stats.mark_bytes + left + CHUNK_BYTES);
        assert_true(figures(job).resident_bytes <= stats.mark_bytes + 8 * MIB);
    }
    assert_true(put_growth_count == 0 || harness_is_synchronous);
    assert_int_equal(figures(job).growth_error_count, 0);
    finish(job);
}

/* An idle region reserves nothing more, and makes no page. */
static void an_idle_region_stays_as_it_is(void **state)
{
    struct job *job = start_plain();

    (void)state;
    for (int i = 0; i < 100; i++)
        poll_once(job);
    assert_int_equal(figures(job).file_bytes, 4 * MIB);
    assert_int_equal(figures(job).resident_bytes, 0);
    for (int i = 0; i < 10; i++)
        assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
    for (int i = 0; i < 100; i++)
        poll_once(job);
    assert_int_equal(figures(job).file_bytes, 4 * MIB);
    assert_int_equal(figures(job).resident_bytes, CHUNK_BYTES);
    finish(job);
}

static void what_fails_ahead_is_told_to_nobody(void **state)
{
    struct job *job = start_plain();

    (void)state;
    ahead_fails = true;
    while (job->count < 500) {
        assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
        poll_once(job);
    }
    ahead_fails = false;
    assert_true(put_growth_count > 0 || harness_is_synchronous);
    assert_int_equal(figures(job).growth_error_count, 0);
    finish(job);
}

/* The put reserves what is being reserved, and further; the ring comes late. */
static void a_put_overtakes_the_ring(void **state)
{
    (void)state;
    for (int round = 0; round < 4; round++) {
        bool shares_ring = round % 2 == 1;
        struct job *job =
            start((struct weir_region_config){.bytes_initial = 4 * MIB}, UINT64_MAX, shares_ring);
        hold_what_is_reserved(job);
        assert_int_equal(held.mode, 0);
        uint64_t end = held.offset + held.bytes;
        while (figures(job).mark_bytes < end + 8 * MIB)
            assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
        weir_region_audit(job->region);
        if (round >= 2)
            held_fails = true;
        finish(job);
    }
}

static void a_full_disk_while_the_ring_reserves(void **state)
{
    struct job *job = start_plain();
    int r;

    (void)state;
    hold_what_is_reserved(job);
    growing_fails = true;
    while ((r = put_bytes(job, ITEM_BYTES)) == 0)
        ;
    assert_int_equal(r, -ENOSPC);
    weir_region_audit(job->region);
    held_fails = true;
    release();
    settle(job);
    assert_int_equal(put_bytes(job, ITEM_BYTES), -ENOSPC);
    settle(job);
    growing_fails = false;
    for (int i = 0; i < 100; i++)
        assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
    finish(job);
}

/* A file system that has become read-only: the rest is cut off when it can be. */
static void what_cannot_be_undone_is_undone_later(void **state)
{
    struct job *job = start_plain();
    int r;

    (void)state;
    cutting_fails = true;
    growing_fails = true;
    while ((r = put_bytes(job, ITEM_BYTES)) == 0)
        ;
    assert_int_equal(r, -ENOSPC);
    weir_region_audit(job->region);
    poll_once(job);
    growing_fails = false;
    assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
    growing_fails = true;
    while ((r = put_bytes(job, ITEM_BYTES)) == 0)
        ;
    cutting_fails = false;
    settle(job);
    growing_fails = false;
    finish(job);
}

/* The flags of the mapping that holds @address, as smaps names them. */
static void flags_of(const void *address, char *flags, size_t flags_bytes)
{
    FILE *maps = fopen("/proc/self/smaps", "re");
    char line[4096];
    bool is_here = false;

    assert_non_null(maps);
    flags[0] = '\0';
    while (fgets(line, sizeof(line), maps) != NULL && flags[0] == '\0') {
        unsigned long from;
        unsigned long to;
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
            is_here = (uintptr_t)address >= from && (uintptr_t)address < to;
        else if (is_here && strncmp(line, "VmFlags:", 8) == 0)
            snprintf(flags, flags_bytes, "%.*s", (int)flags_bytes - 1, line + 8);
    }
    fclose(maps);
}

static void the_advice_is_kept_across_growth(void **state)
{
    struct job *job = start_plain();
    char first[512];
    char last[512];
    const void *data;

    (void)state;
    assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
    assert_int_equal(weir_region_at(job->region, job->slots[0], &data, NULL), 0);
    flags_of(data, first, sizeof(first));
    while (job->count < 40 * MIB / ITEM_BYTES)
        assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
    assert_int_equal(weir_region_at(job->region, job->slots[job->count - 1], &data, NULL), 0);
    flags_of(data, last, sizeof(last));
    assert_string_equal(first, last);
    assert_non_null(strstr(first, " dc")); /* not in children */
    assert_non_null(strstr(first, " dd")); /* not in core dumps */
    if (strstr(first, " hg") != NULL)      /* huge pages, and then nothing is read ahead */
        assert_non_null(strstr(first, " rr"));
    finish(job);
}

/* ---- The cap -------------------------------------------------------------- */

static void the_cap_is_edquot(void **state)
{
    struct job *job = start((struct weir_region_config){.bytes_initial = 4 * MIB}, 20 * MIB, false);
    int r;

    (void)state;
    while ((r = put_bytes(job, ITEM_BYTES)) == 0)
        poll_once(job);
    assert_int_equal(r, -EDQUOT);
    assert_true(job->count * ITEM_BYTES >= 19 * MIB); /* all of it is used */
    assert_true(job->cap.taken <= 20 * MIB);
    assert_true(job->cap.refused_count > 0);
    assert_true(figures(job).growth_error_count > 0);
    job->cap.most = 40 * MIB;
    for (int i = 0; i < 100; i++)
        assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
    finish(job);

    struct weir_region *region = NULL;
    struct cap cap = {.most = CHUNK_BYTES - 1};
    struct weir_region_config config = {
        .directory = harness_tmpdir(),
        .disk_cap = {cap_take, cap_give, &cap},
    };
    assert_int_equal(weir_region_open(&config, &region), -EDQUOT);
    assert_null(region);
    assert_int_equal(cap.taken, 0);
    struct weir_region_config half = {.directory = harness_tmpdir(),
                                      .disk_cap = {.take = cap_take}};
    assert_int_equal(weir_region_open(&half, &region), -EINVAL);
    cap.most = CHUNK_BYTES; /* less than the first reservation will do */
    assert_int_equal(weir_region_open(&config, &region), 0);
    assert_int_equal(cap.taken, CHUNK_BYTES);
    weir_region_close(region);
    assert_int_equal(cap.taken, 0);
}

/* Grown, refused, freed, punched, refilled, trimmed in any order: not a byte is lost. */
static void the_cap_is_exact(void **state)
{
    (void)state;
    for (int round = 0; round < 4; round++) {
        struct job *job = start(
            (struct weir_region_config){
                .bytes_initial = 4 * MIB,
                .bytes_max = 256 * MIB,
                .resident_bytes_max = round % 2 == 0 ? UINT64_MAX : 16 * MIB,
            },
            96 * MIB, round >= 2);
        fails_in_10 = (uint32_t)round;
        for (int turn = 0; turn < 12; turn++) {
            uint64_t want = weir__random_below(&random_state, 120 * MIB) / ITEM_BYTES;
            int refusals = 0;
            while (job->count < want && refusals < 100) {
                int r = put_bytes(job, weir__random_below(&random_state, 2 * ITEM_BYTES));
                assert_true(r == 0 || r == -EAGAIN || r == -EDQUOT || r == -ENOSPC);
                refusals += r < 0;
                if (r < 0 || weir__random_below(&random_state, 8) == 0)
                    poll_once(job);
            }
            want = weir__random_below(&random_state, job->count + 1);
            bool in_order = weir__random_below(&random_state, 2) == 0;
            while (job->count > want)
                free_at(job, in_order ? want : weir__random_below(&random_state, job->count));
            job->cap.most = (32 + weir__random_below(&random_state, 64)) * MIB;
            poll_for(job, weir__random_below(&random_state, 3) * UINT64_C(300000000));
            weir_region_audit(job->region);
        }
        settle(job);
        fails_in_10 = 0;
        finish(job);
    }
}

/* ---- Back ----------------------------------------------------------------- */

static void everything_freed_gives_the_file_back(void **state)
{
    struct job *job = start((struct weir_region_config){.bytes_initial = 0}, UINT64_MAX, false);
    uint64_t worst_ns = 0;

    (void)state;
    while (job->count < 256 * MIB / ITEM_BYTES)
        assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
    while (job->count > 0)
        free_at(job, job->count - 1);
    uint64_t since_ns = weir__clock_ns();
    while (figures(job).file_bytes > 4 * MIB) {
        uint64_t begin_ns = weir__clock_ns();
        assert_true(weir_region_poll(job->region) >= 0);
        uint64_t took_ns = weir__clock_ns() - begin_ns;
        worst_ns = took_ns > worst_ns ? took_ns : worst_ns;
        assert_true(weir__clock_ns() - since_ns < PATIENCE_NS);
    }
    print_message("# given back in %llu ms, longest tick %llu us\n",
                  (unsigned long long)(weir__clock_ns() - since_ns) / 1000000,
                  (unsigned long long)worst_ns / 1000);
    settle(job);
    assert_int_equal(figures(job).resident_bytes % CHUNK_BYTES, 0);
    assert_true(figures(job).resident_bytes <= 4 * MIB);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
    finish(job);
}

static void a_first_reservation_that_was_never_used_stays(void **state)
{
    struct job *job =
        start((struct weir_region_config){.bytes_initial = 64 * MIB}, UINT64_MAX, false);

    (void)state;
    for (int i = 0; i < 100; i++)
        assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
    while (job->count > 0)
        free_at(job, 0);
    poll_for(job, 500000000);
    assert_int_equal(figures(job).file_bytes, 64 * MIB);
    finish(job);
}

/* While the tail is being freed there is none to put into. */
static void a_put_into_a_tail_under_way(void **state)
{
    (void)state;
    for (int shares_ring = 0; shares_ring < 2; shares_ring++) {
        struct job *job = start((struct weir_region_config){.bytes_initial = 4 * MIB}, UINT64_MAX,
                                shares_ring == 1);
        while (job->count < 24 * MIB / ITEM_BYTES)
            assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
        while (job->count > 1)
            free_at(job, job->count - 1);
        hold_what_is_given_back(job);
        assert_true(figures(job).file_bytes <= held.offset);
        int r = 0;
        while (figures(job).mark_bytes < held.offset - ITEM_BYTES)
            assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
        for (int i = 0; i < 3 && r == 0; i++)
            r = shares_ring == 1 ? put_bytes(job, ITEM_BYTES) : -EAGAIN;
        assert_int_equal(r, -EAGAIN);
        weir_region_audit(job->region);
        release();
        while (job->count < 24 * MIB / ITEM_BYTES) {
            r = put_bytes(job, ITEM_BYTES);
            assert_true(r == 0 || (r == -EAGAIN && shares_ring == 1));
            if (r < 0)
                poll_once(job);
        }
        finish(job);
    }
}

static void free_chunks_become_holes_and_are_used_again(void **state)
{
    (void)state;
    for (int round = 0; round < 2; round++) {
        struct job *job = start(
            (struct weir_region_config){
                .bytes_initial = 4 * MIB,
                .resident_bytes_max = round == 0 ? UINT64_MAX : 16 * MIB,
            },
            UINT64_MAX, false);
        hollow_out(job, 64 * MIB);
        uint64_t file_bytes = figures(job).file_bytes;
        assert_true(file_bytes >= 64 * MIB);
        poll_until_disk_is(job, 16 * MIB);
        settle(job);
        assert_true(job->cap.taken <= 16 * MIB);
        assert_true(figures(job).resident_bytes <= 16 * MIB);
        assert_true(figures(job).file_bytes <= file_bytes + 8 * MIB);
        assert_all_whole(job);

        /* All of it comes to use again before the file grows. */
        while (job->count < 60 * MIB / ITEM_BYTES) {
            assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
            if (job->count % 64 == 0)
                weir_region_audit(job->region);
        }
        assert_true(figures(job).file_bytes <= file_bytes + 8 * MIB);
        assert_true(job->cap.taken >= 60 * MIB);
        finish(job);
    }
}

static void an_item_larger_than_a_chunk_goes_into_holes(void **state)
{
    struct job *job = start_hollow();

    (void)state;
    uint64_t mark_bytes = figures(job).mark_bytes;
    uint64_t file_bytes = figures(job).file_bytes;
    assert_int_equal(put_bytes(job, 9 * MIB), 0);
    assert_int_equal(put_bytes(job, 20 * MIB), 0);
    assert_int_equal(figures(job).mark_bytes, mark_bytes);
    assert_true(figures(job).file_bytes <= file_bytes + 8 * MIB);
    finish(job);
}

static void a_hole_is_no_room_on_a_full_disk(void **state)
{
    struct job *job = start_hollow();
    int r;

    (void)state;
    growing_fails = true;
    while ((r = put_bytes(job, ITEM_BYTES)) == 0)
        assert_true(job->count < 20 * MIB / ITEM_BYTES);
    assert_int_equal(r, -ENOSPC);
    settle(job);
    uint64_t taken = job->cap.taken;
    for (int i = 0; i < 20; i++) {
        assert_int_equal(put_bytes(job, ITEM_BYTES), -ENOSPC);
        poll_once(job);
    }
    settle(job);
    assert_int_equal(job->cap.taken, taken); /* undone, each time */
    assert_all_whole(job);
    growing_fails = false;
    while (job->count < 60 * MIB / ITEM_BYTES)
        assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
    finish(job);
}

static void the_cap_refuses_holes_too(void **state)
{
    struct job *job = start_hollow();
    int r;

    (void)state;
    job->cap.most = job->cap.taken + 4 * MIB;
    while ((r = put_bytes(job, ITEM_BYTES)) == 0)
        assert_true(job->count < 24 * MIB / ITEM_BYTES);
    assert_int_equal(r, -EDQUOT);
    finish(job);
}

/* Where no holes can be punched nothing is lost, and it is not tried again and again. */
static void holes_that_cannot_be_punched(void **state)
{
    struct job *job = start_plain();

    (void)state;
    punching_fails = true;
    hollow_out(job, 64 * MIB);
    for (uint64_t since_ns = weir__clock_ns(); weir__clock_ns() - since_ns < 1000000000;) {
        poll_once(job);
        weir_region_audit(job->region);
    }
    settle(job);
    assert_true(figures(job).disk_bytes > 60 * MIB);
    while (job->count < 60 * MIB / ITEM_BYTES)
        assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
    while (job->count > 0) /* the tail goes all the same */
        free_at(job, job->count - 1);
    poll_until_disk_is(job, 4 * MIB);
    punching_fails = false;
    finish(job);
}

/* Freed while blocks are given back, where a change of the file would have to wait. */
static void a_free_does_not_wait_for_what_is_given_back(void **state)
{
    struct job *job =
        start((struct weir_region_config){.bytes_initial = 4 * MIB, .resident_bytes_max = 16 * MIB},
              UINT64_MAX, false);

    (void)state;
    if (!figures(job).bounded) {
        finish(job);
        return; /* nothing goes cold here */
    }
    while (job->count < 96 * MIB / ITEM_BYTES)
        assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
    holds = true;
    while (job->count > 48 * MIB / ITEM_BYTES)
        free_at(job, job->count - 1);
    hold_what_is_given_back(job);
    uint64_t before = zero_count;
    for (int i = 0; i < (int)(8 * MIB / ITEM_BYTES); i++)
        free_at(job, 4 * MIB / ITEM_BYTES); /* cold ones, and the last of their chunks */
    while (job->count > 4 * MIB / ITEM_BYTES)
        free_at(job, job->count - 1);
    assert_int_equal(zero_count, before);
    weir_region_audit(job->region);
    release();
    poll_until_disk_is(job, 20 * MIB);
    while (job->count < 96 * MIB / ITEM_BYTES)
        assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
    finish(job);
}

/* Holes are passed when what lies above them is freed. */
static void holes_at_the_end_are_cut_off(void **state)
{
    struct job *job = start_hollow();

    (void)state;
    free_at(job, 1);
    uint64_t since_ns = weir__clock_ns();
    while (figures(job).file_bytes > 16 * MIB) {
        assert_true(weir__clock_ns() - since_ns < PATIENCE_NS);
        poll_once(job);
        weir_region_audit(job->region);
    }
    settle(job);
    assert_true(figures(job).mark_bytes <= 16 * MIB);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
    finish(job);
}

/* What is used again and again keeps its blocks. */
static void churn_punches_nothing(void **state)
{
    struct job *job = start_plain();

    (void)state;
    while (job->count < 32 * MIB / ITEM_BYTES)
        assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
    uint64_t least = UINT64_MAX;
    for (uint64_t since_ns = weir__clock_ns(); weir__clock_ns() - since_ns < 1500000000;) {
        for (int i = 0; i < 64; i++)
            free_at(job, weir__random_below(&random_state, job->count));
        for (int i = 0; i < 64; i++)
            assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
        poll_once(job);
        uint64_t disk_bytes = figures(job).disk_bytes;
        least = disk_bytes < least ? disk_bytes : least;
    }
    assert_true(least >= 32 * MIB);
    assert_true(figures(job).file_bytes <= 44 * MIB);
    finish(job);
}

/* ---- Limits --------------------------------------------------------------- */

static int grow_under_a_lower_limit(void)
{
    static char item[ITEM_BYTES];
    struct weir_region_config config = {
        .directory = harness_tmpdir(),
        .bytes_initial = 4 * MIB,
        .resident_bytes_max = UINT64_MAX,
    };
    struct weir_region *region;
    struct weir_slot slot;
    struct rlimit limit;

    if (weir_region_open(&config, &region) < 0 || getrlimit(RLIMIT_FSIZE, &limit) < 0)
        return 1;
    limit.rlim_cur = 20 * MIB;
    if (setrlimit(RLIMIT_FSIZE, &limit) < 0)
        return 2;
    int r = 0;
    for (int i = 0; i < 1000 && r == 0; i++) {
        r = weir_region_put(region, item, sizeof(item), (struct weir_label){0}, &slot);
        if (weir_region_wait(region, 1000000) < 0)
            return 3;
    }
    weir_region_audit(region);
    weir_region_close(region);
    return r == -EDQUOT ? 0 : 4;
}

static void a_limit_lowered_later_is_no_signal(void **state)
{
    int status;

    (void)state;
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(grow_under_a_lower_limit());
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status))
        fail_msg("child died of signal %d", WTERMSIG(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void closed_with_growth_under_way(void **state)
{
    (void)state;
    for (uint64_t stop = 20; stop < 200; stop += 7) {
        struct job *job =
            start((struct weir_region_config){.bytes_initial = 4 * MIB}, UINT64_MAX, stop % 2 == 0);
        while (job->count < stop)
            assert_int_equal(put_bytes(job, ITEM_BYTES), 0);
        weir_region_close(job->region);
        weir__ring_close(job->ring);
        assert_int_equal(job->cap.taken, 0);
        test_free(job);
    }
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        CASE("room is there before a put needs it", room_is_there_before_it_is_needed),
        CASE("an idle region stays as it is", an_idle_region_stays_as_it_is),
        CASE("what fails ahead of need is told to nobody", what_fails_ahead_is_told_to_nobody),
        CASE("a put overtakes what the ring reserves", a_put_overtakes_the_ring),
        CASE("a full disk while the ring reserves", a_full_disk_while_the_ring_reserves),
        CASE("what cannot be undone at once is undone later",
             what_cannot_be_undone_is_undone_later),

        CASE("the advice is kept across growth", the_advice_is_kept_across_growth),

        CASE("what the cap refuses is -EDQUOT", the_cap_is_edquot),
        CASE("the cap is exact to the byte, failures included", the_cap_is_exact),
        CASE("the cap refuses holes too", the_cap_refuses_holes_too),

        CASE("everything freed, polls alone give the file back",
             everything_freed_gives_the_file_back),
        CASE("a first reservation that was never used stays",
             a_first_reservation_that_was_never_used_stays),
        CASE("a put into a tail that is being given back", a_put_into_a_tail_under_way),
        CASE("free chunks become holes, and are used again",
             free_chunks_become_holes_and_are_used_again),
        CASE("an item larger than a chunk goes into holes",
             an_item_larger_than_a_chunk_goes_into_holes),
        CASE("a hole is no room on a full disk, and nothing is lost",
             a_hole_is_no_room_on_a_full_disk),
        CASE("holes that cannot be punched do no harm", holes_that_cannot_be_punched),
        CASE("a free does not wait for what is given back",
             a_free_does_not_wait_for_what_is_given_back),
        CASE("holes at the end are cut off", holes_at_the_end_are_cut_off),
        CASE("churn punches nothing", churn_punches_nothing),

        CASE("a file limit lowered later is -EDQUOT and no signal",
             a_limit_lowered_later_is_no_signal),
        CASE("a region is closed with growth under way", closed_with_growth_under_way),
    };

    if (!harness_begin(argc, argv))
        return 0;
    random_state = harness_seed();
    return cmocka_run_group_tests_name("growth", cases, NULL, NULL);
}
