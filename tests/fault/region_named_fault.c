/* SPDX-License-Identifier: MIT */
/*
 * region_named_fault - the kernel, or the heap, refuses a named region something
 *
 * Whatever fails: who is told of an error finds no descriptor, charge or file left,
 * and the next open, undisturbed, finds every item. A sync that failed has confirmed
 * nothing and lost nothing, and the next one confirms.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/region.h>

#include "named.h"
#include "pattern.h"
#include "process.h"
#include "program.h"
#include "seam.h"
#include "tmpdir.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define KIB UINT64_C(1024)
#define MIB (KIB << 10)

#define NAME       "fault"
#define ITEM_COUNT 60

#define SMALL_COUNT  3500
#define SMALL_BYTES  4000
#define SMALL_KEPT   8 /* one of so many */
#define MOVING_BYTES (256 * KIB)
#define WAITS_MAX    20000
#define WAIT_NS      UINT64_C(1000000)

/* ---- Faults ----------------------------------------------------------------- */

/* Only what a case is about is counted, and can go wrong. */
static bool is_armed;

static bool counts(const struct seam_use *use, void *context)
{
    (void)use;
    (void)context;
    return is_armed;
}

static void arm(void)
{
    is_armed = true;
}

/* Whether anything went wrong. */
static bool disarm(void)
{
    is_armed = false;
    seam_lift();
    return seam_fired() > 0;
}

/* ---- Steps ------------------------------------------------------------------ */

struct fixture {
    char directory[PATH_MAX];
    int fd_count;
    int64_t charged;
    struct weir_region *region;
    struct weir_slot slots[ITEM_COUNT];
};

static void books_charge(void *context, int64_t bytes)
{
    *(int64_t *)context += bytes;
}

static void begin(struct fixture *f)
{
    *f = (struct fixture){.fd_count = harness_fd_count()};
    snprintf(f->directory, sizeof(f->directory), "%s/fault-XXXXXX", harness_tmpdir());
    assert_non_null(mkdtemp(f->directory));
}

static int try_open_with(struct fixture *f, uint64_t resident_bytes_max)
{
    struct weir_region_config config = {
        .directory = f->directory,
        .name = NAME,
        .bytes_initial = 2 * MIB,
        .bytes_max = 32 * MIB,
        .resident_bytes_max = resident_bytes_max,
        .books = {books_charge, &f->charged},
    };

    return weir_region_open(&config, &f->region);
}

static int try_open(struct fixture *f)
{
    return try_open_with(f, 8 * MIB);
}

static void assert_nothing_held(struct fixture *f)
{
    assert_int_equal(f->charged, 0);
    assert_int_equal(harness_fd_count(), f->fd_count);
}

static void close_all(struct fixture *f)
{
    weir_region_audit(f->region);
    weir_region_close(f->region);
    assert_nothing_held(f);
}

static void end(struct fixture *f)
{
    close_all(f);
    assert_int_equal(weir_region_remove(f->directory, NAME), 0);
}

static size_t size_of(uint64_t seed)
{
    return seed * 797 % 90000;
}

static void put_one(struct fixture *f, uint64_t i)
{
    char *data = malloc(90000);

    harness_fill(data, size_of(i), i, 0);
    assert_int_equal(
        weir_region_put(f->region, data, size_of(i), (struct weir_label){i, 1}, &f->slots[i]), 0);
    free(data);
}

static void put_all(struct fixture *f)
{
    for (uint64_t i = 0; i < ITEM_COUNT; i++)
        put_one(f, i);
}

static void begin_with_items(struct fixture *f)
{
    begin(f);
    assert_int_equal(try_open(f), 0);
    put_all(f);
}

/* Items from @first on are there. */
static void check_all(struct fixture *f, uint64_t first)
{
    char *data = malloc(90000);

    for (uint64_t i = first; i < ITEM_COUNT; i++) {
        size_t count = 0;
        assert_int_equal(weir_region_read(f->region, f->slots[i], 0, data, 90000, &count), 0);
        assert_int_equal(count, size_of(i));
        assert_int_equal(harness_differs_at(data, count, i, 0), count);
    }
    free(data);
}

static void open_after_power_loss(struct fixture *f)
{
    close_all(f);
    harness_named_lose_power(f->directory, NAME);
    assert_int_equal(try_open(f), 0);
}

/* ---- Cases ------------------------------------------------------------------ */

static void make_one(void *context)
{
    struct fixture f;

    (void)context;
    begin(&f);
    arm();
    int r = try_open(&f);
    bool fired = disarm();
    if (r == 0) {
        close_all(&f);
    } else {
        assert_true(fired);
        assert_nothing_held(&f);
        int names = harness_name_count(f.directory);
        /* Names that cannot be taken back: who opens next begins anew, or sweeps it. */
        assert_true(names == 0 || seam_fired() > 1);
    }
    assert_int_equal(try_open(&f), 0);
    put_all(&f);
    close_all(&f);
    assert_int_equal(harness_name_count(f.directory), 2);
    assert_int_equal(weir_region_remove(f.directory, NAME), 0);
}

static void open_again(void *context)
{
    struct fixture f;
    struct weir_region_report report;

    begin_with_items(&f);
    assert_int_equal(weir_region_sync(f.region), 0);
    close_all(&f);
    if (context != NULL)
        harness_named_lose_power(f.directory, NAME);
    arm();
    int r = try_open(&f);
    bool fired = disarm();
    if (r < 0) {
        assert_true(fired);
        assert_nothing_held(&f);
        assert_int_equal(harness_name_count(f.directory), 2);
        assert_int_equal(try_open(&f), 0);
    }
    weir_region_report(f.region, &report);
    assert_int_equal(report.lost_slot_count, 0);
    assert_int_equal(report.kept_slot_count, ITEM_COUNT);
    assert_true(report.first_error == 0 || (fired && report.first_error == -EIO));
    check_all(&f, 0);
    end(&f);
}

static void sync_once(void *context)
{
    struct fixture f;
    struct weir_region_stats stats;

    (void)context;
    begin_with_items(&f);
    assert_int_equal(weir_region_free(f.region, f.slots[0]), 0);
    assert_int_equal(weir_region_sync(f.region), 0);
    assert_int_equal(weir_region_free(f.region, f.slots[1]), 0);
    weir_region_stats(f.region, &stats);
    uint64_t freed_bytes = stats.freed_bytes;
    assert_true(freed_bytes > 0);
    arm();
    int r = weir_region_sync(f.region);
    assert_true(disarm() || r == 0);
    weir_region_audit(f.region);
    check_all(&f, 2);
    weir_region_stats(f.region, &stats);
    assert_int_equal(stats.freed_bytes, r == 0 ? 0 : freed_bytes);
    if (r < 0)
        assert_int_equal(weir_region_sync(f.region), 0);
    open_after_power_loss(&f);
    check_all(&f, 2);
    struct weir_slot_info info;
    assert_int_equal(weir_region_slot(f.region, f.slots[1], &info), -ESTALE);
    end(&f);
}

/* Chunks on disk of which little lives, and what does was copied: the next sync moves it. */
static void make_moving(struct fixture *f, struct weir_slot small[SMALL_COUNT])
{
    struct weir_region_stats stats;
    char data[SMALL_BYTES];

    for (uint64_t i = 0; i < SMALL_COUNT; i++) {
        harness_fill(data, sizeof(data), ITEM_COUNT + i, 0);
        assert_int_equal(
            weir_region_put(f->region, data, sizeof(data), (struct weir_label){i, 2}, &small[i]),
            0);
    }
    assert_int_equal(weir_region_sync(f->region), 0);
    for (uint64_t i = 0; i < SMALL_COUNT; i++)
        if (i % SMALL_KEPT != 0)
            assert_int_equal(weir_region_free(f->region, small[i]), 0);
    assert_int_equal(weir_region_sync(f->region), 0);
    for (int i = 0; i < WAITS_MAX; i++) {
        assert_true(weir_region_wait(f->region, WAIT_NS) >= 0);
        weir_region_stats(f->region, &stats);
        if (stats.moving_bytes > MOVING_BYTES)
            return;
    }
    fail();
}

static void check_small(struct fixture *f, const struct weir_slot small[SMALL_COUNT])
{
    char data[SMALL_BYTES];
    size_t count = 0;

    for (uint64_t i = 0; i < SMALL_COUNT; i += SMALL_KEPT) {
        assert_int_equal(weir_region_read(f->region, small[i], 0, data, sizeof(data), &count), 0);
        assert_int_equal(count, sizeof(data));
        assert_int_equal(harness_differs_at(data, count, ITEM_COUNT + i, 0), count);
    }
}

/* A sync that moves; whatever it says, what the one before confirmed is there at any time. */
static void sync_moving(void *context)
{
    struct fixture f;
    struct weir_region_stats stats;
    static struct weir_slot small[SMALL_COUNT];

    begin(&f);
    assert_int_equal(try_open(&f), 0);
    make_moving(&f, small);
    arm();
    int r = weir_region_sync(f.region);
    assert_true(disarm() || r == 0);
    weir_region_audit(f.region);
    check_small(&f, small);
    if (context != NULL) { /* the power goes now */
        open_after_power_loss(&f);
        check_small(&f, small);
    }
    put_all(&f);
    weir_region_audit(f.region);
    assert_int_equal(weir_region_sync(f.region), 0);
    weir_region_stats(f.region, &stats);
    assert_int_equal(stats.moving_bytes, 0);
    open_after_power_loss(&f);
    check_all(&f, 0);
    check_small(&f, small);
    end(&f);
}

/* Each use of each kind once, and a third of them for good. */
static void each_use(void (*run)(void *context), void *context)
{
    static const struct seam_rule rules[] = {
        {.call = SEAM_ANY_CALL, .matches = counts},
        {.call = SEAM_ANY_CALL, .times = SEAM_FOR_GOOD, .matches = counts},
        {.call = SEAM_ANY_OPERATION, .matches = counts},
        {.call = SEAM_ANY_OPERATION, .times = SEAM_FOR_GOOD, .matches = counts},
        {.call = SEAM_ANY_HEAP, .matches = counts},
        {.call = SEAM_ANY_HEAP, .times = SEAM_FOR_GOOD, .matches = counts},
    };

    for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
        uint64_t stride = rules[i].times == SEAM_FOR_GOOD ? 3 : 1;
        uint64_t count = seam_each(rules[i], stride, run, context);
        print_message("# %s: %" PRIu64 " runs\n", seam_name(rules[i].call), count);
        assert_true(count > 0 || rules[i].call != SEAM_ANY_CALL);
    }
}

static void making_one(void **state)
{
    (void)state;
    each_use(make_one, NULL);
}

static void opening_again(void **state)
{
    (void)state;
    each_use(open_again, NULL);
}

static void opening_after_power_loss(void **state)
{
    bool is_power_lost = true;

    (void)state;
    each_use(open_again, &is_power_lost);
}

static void syncing(void **state)
{
    (void)state;
    each_use(sync_once, NULL);
}

static void syncing_what_moves(void **state)
{
    bool is_power_lost = true;

    (void)state;
    each_use(sync_moving, NULL);
    each_use(sync_moving, &is_power_lost);
}

struct steps {
    struct fixture *f;
    uint64_t counts[8]; /* sync_count of the header when a file was flushed */
    size_t step_count;
};

static bool sees_a_step(const struct seam_use *use, void *context)
{
    struct steps *steps = context;
    struct weir__header header;

    (void)use;
    harness_named_header(steps->f->directory, NAME, &header);
    assert_true(steps->step_count < 8);
    steps->counts[steps->step_count++] = header.sync_count;
    return false;
}

/* Payload and tables are on the disk before the word that says so, and that before sync returns. */
static void the_count_comes_last(void **state)
{
    struct fixture f;
    struct steps steps = {&f, {0}, 0};

    (void)state;
    begin_with_items(&f);
    seam_reset();
    seam_arm((struct seam_rule){.call = SEAM_sys_fdatasync,
                                .times = SEAM_FOR_GOOD,
                                .matches = sees_a_step,
                                .context = &steps});
    assert_int_equal(weir_region_sync(f.region), 0);
    seam_reset();
    assert_int_equal(steps.step_count, 3);
    assert_int_equal(steps.counts[0], 0);
    assert_int_equal(steps.counts[1], 0);
    assert_int_equal(steps.counts[2], 1);
    end(&f);
}

/* Whichever of its steps failed: what counts after a power loss is the sync before. */
static void a_failed_sync_confirms_nothing(void **state)
{
    struct fixture f;
    struct weir_region_report report;
    struct weir_region_stats stats;
    struct weir_slot_info info;

    (void)state;
    for (uint64_t step = 1; step <= 3; step++) {
        begin_with_items(&f);
        seam_reset();
        seam_fail(SEAM_ANY_HEAP, 1); /* a bit for each slot */
        assert_int_equal(weir_region_sync(f.region), -ENOMEM);
        seam_reset();
        weir_region_report(f.region, &report);
        assert_int_equal(report.sync_count, 0);
        assert_int_equal(weir_region_sync(f.region), 0);
        assert_int_equal(weir_region_free(f.region, f.slots[1]), 0);
        seam_reset();
        seam_fail(SEAM_sys_fdatasync, step);
        assert_int_equal(weir_region_sync(f.region), -EIO);
        assert_int_equal(seam_fired(), 1);
        seam_reset();
        assert_int_equal(weir_region_slot(f.region, f.slots[1], &info), -ESTALE);
        weir_region_report(f.region, &report);
        assert_int_equal(report.sync_count, 1);
        weir_region_stats(f.region, &stats);
        assert_int_equal(stats.write_error_count, step == 1); /* its payload is written again */
        assert_true(stats.freed_bytes > 0);
        open_after_power_loss(&f);
        weir_region_report(f.region, &report);
        assert_int_equal(report.sync_count, 1);
        assert_int_equal(report.restored_slot_count, 1);
        assert_int_equal(report.lost_slot_count, 0);
        check_all(&f, 0);
        end(&f);
    }
}

/* The last byte of item @key is another. */
static void damage(struct fixture *f, uint64_t key)
{
    size_t size = size_of(key);
    char *data = malloc(size);
    int fd = harness_named_open(f->directory, NAME ".weir-data");

    harness_fill(data, size, key, 0);
    int64_t at = harness_find(fd, data, size);
    close(fd);
    free(data);
    assert_true(at >= 0);
    harness_named_write(f->directory, NAME ".weir-data", (uint64_t)at + size - 1, "X", 1);
}

/* A flush that fails leaves clean pages of which the disk has others. */
static void what_cannot_be_written_is_not_believed(void **state)
{
    struct fixture f;
    struct weir_region_report report;
    struct weir_slot_info info;

    (void)state;
    for (uint64_t step = 1; step <= 2; step++) {
        begin(&f);
        assert_int_equal(try_open(&f), 0);
        put_all(&f);
        assert_int_equal(weir_region_sync(f.region), 0);
        struct weir_slot late; /* without a checksum nothing speaks for it */
        assert_int_equal(weir_region_put(f.region, "late", 4, (struct weir_label){1, 2}, &late), 0);
        close_all(&f);
        seam_reset();
        seam_fail(SEAM_sys_fdatasync, step);
        assert_int_equal(try_open(&f), -EIO);
        assert_int_equal(seam_fired(), 1);
        seam_reset();
        assert_int_equal(f.charged, 0);
        assert_int_equal(harness_fd_count(), f.fd_count);
        damage(&f, 1);
        assert_int_equal(try_open(&f), 0);
        weir_region_report(f.region, &report);
        assert_true(report.after_power_loss);
        assert_int_equal(report.first_error, -EBADMSG);
        assert_int_equal(report.lost_slot_count, 2);
        assert_int_equal(report.kept_slot_count, ITEM_COUNT - 1);
        assert_int_equal(weir_region_slot(f.region, f.slots[1], &info), -ESTALE);
        assert_int_equal(weir_region_slot(f.region, late, &info), -ESTALE);
        check_all(&f, 2);
        close_all(&f);
        assert_int_equal(try_open(&f), 0); /* this once */
        weir_region_report(f.region, &report);
        assert_false(report.after_power_loss);
        close_all(&f);
        assert_int_equal(weir_region_remove(f.directory, NAME), 0);
    }
}

/* What happened to the tables since an open began whose mark is in memory only. */
struct mark_watch {
    struct stat tables;
    bool is_written;
    bool is_flushed;
    bool is_dropped; /* before it was on the disk, and with it */
    bool has_begun_to_drop;
    struct fixture *f;
    struct weir__header disk;
};

static bool is_tables(const struct mark_watch *watch, int fd)
{
    struct stat info;

    return fstat(fd, &info) == 0 && info.st_ino == watch->tables.st_ino &&
           info.st_dev == watch->tables.st_dev;
}

static bool sees_mark(const struct seam_use *use, void *context)
{
    struct mark_watch *watch = context;

    if (!is_tables(watch, use->fd))
        return false;
    if (use->call == SEAM_sys_pwrite_all)
        watch->is_written = true;
    if (use->call == SEAM_sys_fdatasync)
        watch->is_flushed = watch->is_written;
    if (use->call == SEAM_sys_fadvise)
        watch->has_begun_to_drop = true;
    if (use->call == SEAM_sys_fadvise && !watch->is_flushed && !watch->is_dropped) {
        harness_named_write(watch->f->directory, NAME ".weir", 0, &watch->disk,
                            sizeof(watch->disk));
        watch->is_dropped = true;
    }
    return false;
}

static bool is_behind_drop(const struct seam_use *use, void *context)
{
    const struct mark_watch *watch = context;

    (void)use;
    return watch->has_begun_to_drop;
}

static void watch_mark(struct mark_watch *watch)
{
    const enum seam_call calls[] = {SEAM_sys_pwrite_all, SEAM_sys_fdatasync, SEAM_sys_fadvise};

    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
        seam_arm((struct seam_rule){.call = calls[i], .matches = sees_mark, .context = watch});
}

/* The disk took nothing of an open that failed, not even its mark, and then works again. */
static void refuse_mark(struct fixture *f, struct mark_watch *watch)
{
    struct weir__header header;
    int fd = harness_named_open(f->directory, NAME ".weir");

    *watch = (struct mark_watch){.f = f};
    assert_int_equal(fstat(fd, &watch->tables), 0);
    close(fd);
    harness_named_header(f->directory, NAME, &watch->disk);
    header = watch->disk;
    header.sync_count++; /* he was killed in his second sync */
    harness_named_set_header(f->directory, NAME, &header);
    seam_reset();
    seam_fail_on(SEAM_sys_fdatasync, 1);
    assert_int_equal(try_open(f), -EIO);
    seam_reset();
}

static void a_mark_that_is_not_on_the_disk_is_kept(void **state)
{
    struct fixture f;
    struct mark_watch watch;
    struct weir__header header;
    struct weir_region_report report;

    (void)state;
    for (int fails = 0; fails <= 1; fails++) {
        begin(&f);
        assert_int_equal(try_open(&f), 0);
        put_all(&f);
        assert_int_equal(weir_region_sync(f.region), 0);
        close_all(&f);
        refuse_mark(&f, &watch);
        watch_mark(&watch);
        if (fails)
            seam_arm((struct seam_rule){
                .call = SEAM_ANY_HEAP, .matches = is_behind_drop, .context = &watch});
        assert_int_equal(try_open(&f), fails ? -ENOMEM : 0);
        seam_reset();
        if (fails)
            assert_int_equal(try_open(&f), 0);
        weir_region_report(f.region, &report);
        assert_true(report.after_power_loss);
        harness_named_header(f.directory, NAME, &header);
        assert_int_equal(report.sync_count, header.sync_count);
        check_all(&f, 0);
        close_all(&f);
        assert_int_equal(weir_region_remove(f.directory, NAME), 0);
    }
}

/* What was under way is stored anew when it has ended; a flush before that would find nothing. */
static void what_is_under_way_is_not_confirmed(void **state)
{
    struct fixture f;
    struct weir_region_stats stats;
    static char data[60 * KIB];

    (void)state;
    begin(&f);
    assert_int_equal(try_open_with(&f, 16 * MIB), 0);
    seam_reset();
    seam_arm(
        (struct seam_rule){.call = SEAM_ring_sync_range, .times = SEAM_FOR_GOOD, .how = SEAM_HOLD});
    seam_arm(
        (struct seam_rule){.call = SEAM_ring_fdatasync, .times = SEAM_FOR_GOOD, .how = SEAM_HOLD});
    for (uint64_t i = 0; seam_fired() == 0 && i < 28 * MIB / sizeof(data); i++) {
        struct weir_slot slot;
        assert_int_equal(
            weir_region_put(f.region, data, sizeof(data), (struct weir_label){i, 1}, &slot), 0);
    }
    weir_region_stats(f.region, &stats);
    assert_true(seam_fired() > 0 || !stats.bounded); /* a write-back is under way */
    bool is_writing = seam_fired() > 0;
    seam_fail(SEAM_sys_fdatasync, 1);
    assert_int_equal(weir_region_sync(f.region), -EIO);
    assert_int_equal(weir_region_sync(f.region), is_writing ? -EIO : 0);
    seam_lift();
    int r = -EIO;
    for (int i = 0; i < WAITS_MAX && r == -EIO; i++) {
        int told = weir_region_wait(f.region, WAIT_NS);
        assert_true(told >= 0 || told == -EIO);
        r = weir_region_sync(f.region);
    }
    assert_int_equal(r, 0);
    end(&f);
}

/* Done, and the owner is killed before what was there is stored again. */
static bool dies_when_it_has_zeroed(const struct seam_use *use, void *context)
{
    (void)context;
    if ((use->mode & FALLOC_FL_ZERO_RANGE) != 0 &&
        fallocate(use->fd, use->mode, (off_t)use->offset, (off_t)use->bytes) == 0)
        kill(getpid(), SIGKILL);
    return false;
}

/* A flush fails, or a write of poll, and the owner is killed while a chunk is stored anew. */
static void be_killed_storing_anew(struct fixture *f, bool is_sync, uint64_t *put_count)
{
    int r = try_open(f);

    seam_reset();
    seam_fail(SEAM_sys_fdatasync, 1);
    seam_fail(SEAM_ring_sync_range, 1);
    seam_fail(SEAM_ring_fdatasync, 1);
    seam_arm((struct seam_rule){.call = SEAM_sys_fallocate, .matches = dies_when_it_has_zeroed});
    char *data = malloc(90000);
    for (int i = 0; i < WAITS_MAX && !(is_sync && *put_count == ITEM_COUNT); i++) {
        struct weir_slot slot;
        uint64_t key = 9000 * *put_count; /* one in ten is empty, and so it is whole */
        harness_fill(data, size_of(key), key, 0);
        r = weir_region_put(f->region, data, size_of(key), (struct weir_label){key, 1}, &slot);
        *put_count += r == 0;
        if (r < 0)
            r = weir_region_wait(f->region, WAIT_NS);
    }
    r = weir_region_sync(f->region);
    _exit(r == 0);
}

static void zeroes_are_not_believed(void **state)
{
    struct weir_region_report report;
    struct weir__header header;
    int status = 0;

    (void)state;
    char *data = malloc(90000);
    uint64_t *put_count =
        mmap(NULL, sizeof(*put_count), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(put_count, MAP_FAILED);
    for (int is_sync = 0; is_sync < 2; is_sync++) {
        struct weir_slot slot = {0};
        uint64_t empty_count = 0;
        struct fixture f;
        begin(&f);
        *put_count = 0;
        pid_t child = fork();
        if (child == 0)
            be_killed_storing_anew(&f, is_sync != 0, put_count);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));

        assert_int_equal(try_open(&f), 0);
        weir_region_report(f.region, &report);
        harness_named_header(f.directory, NAME, &header);
        assert_int_equal(header.figures.renewing, 0);
        assert_false(report.after_power_loss);
        while (weir_region_next(f.region, &slot)) {
            struct weir_slot_info info;
            size_t count = 0;
            assert_int_equal(weir_region_slot(f.region, slot, &info), 0);
            assert_int_equal(weir_region_read(f.region, slot, 0, data, 90000, &count), 0);
            assert_int_equal(count, size_of(info.label.key));
            assert_int_equal(harness_differs_at(data, count, info.label.key, 0), count);
            empty_count += count == 0;
        }
        assert_true(empty_count >= *put_count / 10);
        assert_true(report.kept_slot_count > 0);
        assert_true(report.lost_slot_count > 0);
        assert_int_equal(report.first_error, -EBADMSG);
        uint64_t found = report.kept_slot_count + report.lost_slot_count;
        assert_in_range(found, *put_count, *put_count + 1); /* it may have died in a put */
        close_all(&f);
        assert_int_equal(weir_region_remove(f.directory, NAME), 0);
    }
    assert_int_equal(munmap(put_count, sizeof(*put_count)), 0);
    free(data);
}

/* Where confirmed items lie, and what has been zeroed beside them. */
struct beside {
    uint64_t places[ITEM_COUNT]; /* of even ones */
    uint64_t zeroed_bytes;
    bool is_hit;
};

static bool spares_what_is_confirmed(const struct seam_use *use, void *context)
{
    struct beside *beside = context;

    if ((use->mode & FALLOC_FL_ZERO_RANGE) == 0)
        return false;
    beside->zeroed_bytes += use->bytes;
    for (uint64_t i = 0; i < ITEM_COUNT; i += 2)
        beside->is_hit |= size_of(i) > 0 && beside->places[i] < use->offset + use->bytes &&
                          beside->places[i] + size_of(i) > use->offset;
    return false;
}

/*
 * What a sync confirmed keeps its blocks when a later write fails. What lies between
 * gets fresh ones all the same: the kernel may never mark the old ones as written.
 */
static void between_confirmed_items_all_is_stored_anew(void **state)
{
    struct beside beside = {.zeroed_bytes = 0};
    struct fixture f;
    uint64_t whole_bytes = 0;
    char *data = malloc(90000);

    (void)state;
    begin_with_items(&f);
    for (uint64_t i = 1; i < ITEM_COUNT; i += 2)
        assert_int_equal(weir_region_free(f.region, f.slots[i]), 0);
    assert_int_equal(weir_region_sync(f.region), 0);
    int fd = harness_named_open(f.directory, NAME ".weir-data");
    for (uint64_t i = 0; i < ITEM_COUNT; i += 2) {
        harness_fill(data, size_of(i), i, 0);
        beside.places[i] = (uint64_t)harness_find(fd, data, size_of(i));
    }
    close(fd);
    for (uint64_t i = 1; i < ITEM_COUNT; i += 2) {
        harness_fill(data, size_of(i), i, 0);
        assert_int_equal(
            weir_region_put(f.region, data, size_of(i), (struct weir_label){i, 1}, &f.slots[i]), 0);
        whole_bytes += size_of(i) > 8192 ? size_of(i) - 8192 : 0;
    }
    free(data);
    seam_reset();
    seam_arm((struct seam_rule){.call = SEAM_sys_fallocate,
                                .times = SEAM_FOR_GOOD,
                                .matches = spares_what_is_confirmed,
                                .context = &beside});
    seam_fail(SEAM_sys_fdatasync, 1);
    assert_int_equal(weir_region_sync(f.region), -EIO);
    seam_reset();
    assert_false(beside.is_hit);
    assert_in_range(beside.zeroed_bytes, whole_bytes, UINT64_MAX);
    weir_region_audit(f.region);
    check_all(&f, 0);
    assert_int_equal(weir_region_sync(f.region), 0);
    open_after_power_loss(&f);
    check_all(&f, 0);
    end(&f);
}

static bool is_zeroing(const struct seam_use *use, void *context)
{
    (void)context;
    return (use->mode & FALLOC_FL_ZERO_RANGE) != 0;
}

/* A full disk: some blocks are fresh and empty, the others as they were. What was put is there. */
static void what_is_stored_anew_in_part_is_whole(void **state)
{
    (void)state;
    for (int is_confirmed = 0; is_confirmed < 2; is_confirmed++) {
        struct fixture f;
        begin_with_items(&f);
        for (uint64_t i = 1; i < ITEM_COUNT; i += 2)
            assert_int_equal(weir_region_free(f.region, f.slots[i]), 0);
        if (is_confirmed)
            assert_int_equal(weir_region_sync(f.region), 0);
        for (uint64_t i = 1; i < ITEM_COUNT; i += 2)
            put_one(&f, i);
        seam_reset();
        seam_arm((struct seam_rule){.call = SEAM_sys_fallocate,
                                    .times = SEAM_FOR_GOOD,
                                    .how = SEAM_CUT,
                                    .matches = is_zeroing});
        seam_fail(SEAM_sys_fdatasync, 1);
        assert_int_equal(weir_region_sync(f.region), -EIO);
        assert_in_range(seam_fired(), 2, UINT64_MAX);
        seam_reset();
        weir_region_audit(f.region);
        check_all(&f, 0);
        assert_int_equal(weir_region_sync(f.region), 0);
        open_after_power_loss(&f);
        check_all(&f, 0);
        end(&f);
    }
}

/* The last flush failed: whichever count is on disk, what is freed since is there again. */
static void either_count_restores(void **state)
{
    struct weir_region_report report;
    struct weir__header header;
    struct weir_slot_info info;
    struct fixture f;

    (void)state;
    for (uint64_t more = 0; more < 2; more++) {
        begin_with_items(&f);
        assert_int_equal(weir_region_sync(f.region), 0);
        seam_reset();
        seam_fail(SEAM_sys_fdatasync, 3);
        assert_int_equal(weir_region_sync(f.region), -EIO);
        seam_reset();
        assert_int_equal(weir_region_free(f.region, f.slots[1]), 0);
        close_all(&f);
        harness_named_header(f.directory, NAME, &header);
        assert_int_equal(header.sync_count, 1);
        header.sync_count += more;
        harness_named_set_header(f.directory, NAME, &header);
        harness_named_lose_power(f.directory, NAME);
        assert_int_equal(try_open(&f), 0);
        weir_region_report(f.region, &report);
        assert_int_equal(report.restored_slot_count, 1);
        check_all(&f, 0);
        /* Known again: freed, and synced twice, it does not come back. */
        assert_int_equal(weir_region_free(f.region, f.slots[1]), 0);
        seam_fail(SEAM_sys_fdatasync, 3);
        assert_int_equal(weir_region_sync(f.region), -EIO);
        seam_reset();
        assert_int_equal(weir_region_free(f.region, f.slots[2]), 0);
        close_all(&f);
        assert_int_equal(try_open(&f), 0); /* as after a kill: it is not there */
        assert_int_equal(weir_region_slot(f.region, f.slots[2], &info), -ESTALE);
        assert_int_equal(weir_region_sync(f.region), 0);
        open_after_power_loss(&f);
        weir_region_report(f.region, &report);
        assert_int_equal(report.restored_slot_count, 0);
        check_all(&f, 3);
        end(&f);
    }
}

static bool is_payload(const struct seam_use *use, void *context)
{
    (void)context;
    return use->bytes > 8 * KIB; /* more than is read of tables at once */
}

/* A disk that is silent for a moment: nobody is to think that there is no region. */
static void a_head_that_cannot_be_read_is_no_damage(void **state)
{
    struct fixture f;

    (void)state;
    begin_with_items(&f);
    close_all(&f);
    seam_reset();
    seam_fail(SEAM_sys_pread_all, 1);
    assert_int_equal(try_open(&f), -EIO);
    assert_int_equal(seam_fired(), 1);
    seam_reset();
    seam_fail(SEAM_sys_pread_all, 1);
    assert_int_equal(weir_region_remove(f.directory, NAME), -EIO);
    seam_reset();
    assert_nothing_held(&f);
    assert_int_equal(try_open(&f), 0);
    check_all(&f, 0);
    end(&f);
}

static bool sees_generation(const struct seam_use *use, void *context)
{
    struct mark_watch *watch = context;

    if (is_tables(watch, use->fd))
        assert_int_equal(pread(use->fd, &watch->disk, sizeof(watch->disk), 0), sizeof(watch->disk));
    return false;
}

/* Where the power goes again at once, the next owner goes on behind what we gave out. */
static void the_first_generation_is_on_the_disk(void **state)
{
    struct fixture f;
    struct mark_watch watch = {.f = &f};
    struct weir__header header;
    struct weir__header header_before;

    (void)state;
    begin_with_items(&f);
    assert_int_equal(weir_region_sync(f.region), 0);
    harness_named_header(f.directory, NAME, &header_before);
    assert_int_equal(fstat(weir_region_fd(f.region), &watch.tables), 0);
    seam_reset();
    seam_arm((struct seam_rule){
        .call = SEAM_sys_fdatasync, .matches = sees_generation, .context = &watch});
    open_after_power_loss(&f);
    seam_reset();
    harness_named_header(f.directory, NAME, &header);
    assert_int_not_equal(header.generation, header_before.generation);
    assert_int_equal(header.generation, watch.disk.generation);
    check_all(&f, 0);
    end(&f);
}

/* The tables are dropped, and the disk has none of them any more: to touch them is a signal. */
static bool cuts_what_is_dropped(const struct seam_use *use, void *context)
{
    struct mark_watch *watch = context;

    if (is_tables(watch, use->fd))
        assert_int_equal(ftruncate(use->fd, 0), 0);
    return false;
}

static void a_head_that_was_dropped_is_no_signal(void **state)
{
    struct fixture f;
    struct mark_watch watch;

    (void)state;
    begin_with_items(&f);
    close_all(&f);
    refuse_mark(&f, &watch);
    seam_arm((struct seam_rule){
        .call = SEAM_sys_fadvise, .matches = cuts_what_is_dropped, .context = &watch});
    assert_int_equal(try_open(&f), -EIO);
    seam_reset();
    assert_nothing_held(&f);
    harness_named_set_header(f.directory, NAME, &watch.disk);
    assert_int_equal(weir_region_remove(f.directory, NAME), 0);
}

/* A disk that does not answer says nothing of what is there: that is kept, and compared later. */
static void what_cannot_be_read_is_kept(void **state)
{
    struct weir_region_report report;
    struct fixture f;

    (void)state;
    begin_with_items(&f);
    assert_int_equal(weir_region_sync(f.region), 0);
    close_all(&f);
    harness_named_lose_power(f.directory, NAME);
    seam_reset();
    seam_arm((struct seam_rule){
        .call = SEAM_sys_pread_all, .times = SEAM_FOR_GOOD, .error = EIO, .matches = is_payload});
    assert_int_equal(try_open(&f), 0);
    assert_true(seam_fired() > ITEM_COUNT / 2);
    seam_reset();
    weir_region_report(f.region, &report);
    assert_true(report.after_power_loss);
    assert_int_equal(report.first_error, -EIO);
    assert_int_equal(report.kept_slot_count, ITEM_COUNT);
    assert_int_equal(report.lost_slot_count, 0);
    check_all(&f, 0);
    end(&f);
}

struct birth {
    uint64_t synced_count; /* before the first name was given */
    uint64_t renamed_count;
    uint64_t directory_count; /* flushed, after the last name */
};

static bool sees_a_sync(const struct seam_use *use, void *context)
{
    struct birth *birth = context;

    (void)use;
    birth->synced_count += birth->renamed_count == 0;
    return false;
}

static bool sees_a_name(const struct seam_use *use, void *context)
{
    struct birth *birth = context;

    (void)use;
    birth->renamed_count++;
    birth->directory_count = 0;
    return false;
}

static bool sees_a_directory(const struct seam_use *use, void *context)
{
    struct birth *birth = context;

    (void)use;
    birth->directory_count++;
    return false;
}

/* What sync() confirms is found by its name: so that is on the disk when open() returns. */
static void names_are_on_the_disk(void **state)
{
    struct fixture f;
    struct birth birth = {0, 0, 0};

    (void)state;
    begin(&f);
    seam_reset();
    seam_arm(
        (struct seam_rule){.call = SEAM_sys_fdatasync, .matches = sees_a_sync, .context = &birth});
    seam_arm(
        (struct seam_rule){.call = SEAM_sys_rename_at, .matches = sees_a_name, .context = &birth});
    seam_arm(
        (struct seam_rule){.call = SEAM_sys_fsync, .matches = sees_a_directory, .context = &birth});
    assert_int_equal(try_open(&f), 0);
    seam_reset();
    assert_true(birth.synced_count >= 1);
    assert_int_equal(birth.renamed_count, 2);
    assert_int_equal(birth.directory_count, 1);
    end(&f);
}

/* A failed open has changed nothing: what has no certain name has none. */
static void names_that_cannot_be_flushed(void **state)
{
    struct weir_region_report report;
    struct fixture f;

    (void)state;
    for (int is_stuck = 0; is_stuck < 2; is_stuck++) {
        begin(&f);
        seam_reset();
        seam_fail(SEAM_sys_fsync, 1);
        if (is_stuck) /* nor can they be taken back */
            seam_fail_on(SEAM_sys_unlink_at, 1);
        assert_int_equal(try_open(&f), -EIO);
        seam_reset();
        assert_int_equal(harness_name_count(f.directory), is_stuck ? 2 : 0);
        assert_nothing_held(&f);
        assert_int_equal(try_open(&f), 0);
        weir_region_report(f.region, &report);
        assert_false(report.existed);
        put_all(&f);
        check_all(&f, 0);
        close_all(&f);
        assert_int_equal(try_open(&f), 0);
        weir_region_report(f.region, &report);
        assert_true(report.existed);
        check_all(&f, 0);
        end(&f);
    }
}

/* Two make it at once: the slower one finds the name taken, and an owner there. */
static void who_was_faster_is_the_owner(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f);
    seam_reset();
    seam_arm((struct seam_rule){.call = SEAM_sys_rename_at, .error = EEXIST});
    assert_int_equal(try_open(&f), -EBUSY);
    assert_int_equal(seam_fired(), 1);
    seam_reset();
    assert_int_equal(harness_name_count(f.directory), 0);
    assert_nothing_held(&f);
    assert_int_equal(try_open(&f), 0);
    end(&f);
}

/* Others open a region there, and sweep what is being made before it is locked. */
static void who_is_swept_each_time_tries_again(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f);
    seam_reset();
    seam_arm((struct seam_rule){.call = SEAM_sys_lock, .times = SEAM_FOR_GOOD, .error = EBUSY});
    assert_int_equal(try_open(&f), -EAGAIN);
    assert_true(seam_fired() > 1);
    seam_reset();
    assert_nothing_held(&f);
    assert_int_equal(try_open(&f), 0); /* it sweeps what the others did not here */
    close_all(&f);
    assert_int_equal(harness_name_count(f.directory), 2);
    assert_int_equal(weir_region_remove(f.directory, NAME), 0);
}

struct remover {
    struct fixture *f;
    bool is_done;
};

/* The owner removes both files and ends, just before somebody else gets its lock. */
static bool removes(const struct seam_use *use, void *context)
{
    struct remover *remover = context;
    char path[PATH_MAX + 32];

    (void)use;
    if (!remover->is_done) {
        snprintf(path, sizeof(path), "%s/" NAME ".weir-data", remover->f->directory);
        assert_int_equal(unlink(path), 0);
        snprintf(path, sizeof(path), "%s/" NAME ".weir", remover->f->directory);
        assert_int_equal(unlink(path), 0);
    }
    remover->is_done = true;
    return false;
}

static void who_waits_for_a_lock_may_find_nothing(void **state)
{
    struct fixture f;
    struct remover remover = {&f, false};
    struct weir_region_report report;

    (void)state;
    begin(&f);
    for (int opens = 0; opens < 2; opens++) {
        assert_int_equal(try_open(&f), 0);
        put_all(&f);
        close_all(&f);
        remover.is_done = false;
        seam_reset();
        seam_arm((struct seam_rule){.call = SEAM_sys_lock,
                                    .times = SEAM_FOR_GOOD,
                                    .matches = removes,
                                    .context = &remover});
        if (opens == 0) {
            assert_int_equal(weir_region_remove(f.directory, NAME), -ENOENT);
        } else {
            assert_int_equal(try_open(&f), 0);
            weir_region_report(f.region, &report);
            assert_false(report.existed);
            put_all(&f);
            close_all(&f);
        }
        seam_reset();
        assert_true(remover.is_done);
        assert_int_equal(harness_name_count(f.directory), opens == 0 ? 0 : 2);
    }
    assert_int_equal(try_open(&f), 0);
    check_all(&f, 0);
    end(&f);
}

/* Payload that nobody describes would be nobody's to remove. */
static void remove_leaves_no_payload_alone(void **state)
{
    struct fixture f;

    (void)state;
    begin_with_items(&f);
    close_all(&f);
    seam_reset();
    seam_arm((struct seam_rule){.call = SEAM_sys_unlink_at, .error = EACCES});
    assert_int_equal(weir_region_remove(f.directory, NAME), -EACCES);
    assert_int_equal(harness_name_count(f.directory), 2);
    assert_int_equal(try_open(&f), 0);
    check_all(&f, 0);
    close_all(&f);

    seam_reset();
    seam_arm((struct seam_rule){.call = SEAM_sys_unlink_at, .at = 2, .error = EACCES});
    assert_int_equal(weir_region_remove(f.directory, NAME), -EACCES);
    assert_int_equal(seam_fired(), 1);
    seam_reset();
    assert_int_equal(harness_name_count(f.directory), 1);
    assert_int_equal(weir_region_remove(f.directory, NAME), 0); /* the tables, that were left */
    assert_int_equal(harness_name_count(f.directory), 0);
    assert_int_equal(harness_fd_count(), f.fd_count);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest cases[] = {
        SEAM_TEST("who cannot be made leaves nothing", making_one),
        SEAM_TEST("who cannot be opened is as it was", opening_again),
        SEAM_TEST("who cannot be opened after a power loss neither", opening_after_power_loss),
        SEAM_TEST("a sync that failed has lost nothing", syncing),
        SEAM_TEST("nor has one that moves", syncing_what_moves),
        SEAM_TEST("the count comes last", the_count_comes_last),
        SEAM_TEST("a sync that failed has confirmed nothing", a_failed_sync_confirms_nothing),
        SEAM_TEST("what is under way is not confirmed after a failure",
                  what_is_under_way_is_not_confirmed),
        SEAM_TEST("zeroes where a chunk was to be stored anew are not believed",
                  zeroes_are_not_believed),
        SEAM_TEST("between confirmed items all is stored anew",
                  between_confirmed_items_all_is_stored_anew),
        SEAM_TEST("what is stored anew in part is whole", what_is_stored_anew_in_part_is_whole),
        SEAM_TEST("whichever count is on the disk, what is freed since is there",
                  either_count_restores),
        SEAM_TEST("what cannot be written keeps it closed, and is not believed",
                  what_cannot_be_written_is_not_believed),
        SEAM_TEST("a mark that is not on the disk is kept", a_mark_that_is_not_on_the_disk_is_kept),
        SEAM_TEST("a head that cannot be read is no damage",
                  a_head_that_cannot_be_read_is_no_damage),
        SEAM_TEST("the first generation is on the disk", the_first_generation_is_on_the_disk),
        SEAM_TEST("nor is one a signal that was dropped", a_head_that_was_dropped_is_no_signal),
        SEAM_TEST("what cannot be read is kept", what_cannot_be_read_is_kept),
        SEAM_TEST("the names are on the disk when open returns", names_are_on_the_disk),
        SEAM_TEST("names that cannot be flushed are taken back", names_that_cannot_be_flushed),
        SEAM_TEST("who was faster is the owner", who_was_faster_is_the_owner),
        SEAM_TEST("who is swept each time may try again", who_is_swept_each_time_tries_again),
        SEAM_TEST("who gets the lock may find nothing under it",
                  who_waits_for_a_lock_may_find_nothing),
        SEAM_TEST("remove leaves no payload without tables", remove_leaves_no_payload_alone),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("region_named", cases, NULL, NULL);
}
