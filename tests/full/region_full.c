/* SPDX-License-Identifier: MIT */
/*
 * region_full - what a region does on a disk of 64 MiB, and on one that fails
 *
 * A full disk is an error code: never a signal, never an item lost, and the
 * region goes on as soon as there is space again, ours or that of others. What
 * growth could not get whole is given back at once.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/region.h>

#include "base/clock.h"
#include "base/random.h"

#include "pattern.h"
#include "process.h"
#include "smalldisk.h"
#include "tmpdir.h"

#include <signal.h>

#define KIB         UINT64_C(1024)
#define MIB         (KIB << 10)
#define DISK_BYTES  (64 * MIB)
#define CHUNK_BYTES (2 * MIB)
#define ITEMS_MAX   8192
#define PATIENCE_NS UINT64_C(60000000000)
#define WAIT_NS     UINT64_C(10000000)

static const char *full_disk;

struct items {
    struct weir_region *region;
    struct weir_slot slots[ITEMS_MAX];
    size_t bytes;
    size_t count;
};

static int put(struct items *items)
{
    uint64_t seed = items->count;
    unsigned char *data = test_malloc(items->bytes);

    assert_true(items->count < ITEMS_MAX);
    harness_fill(data, items->bytes, seed, 0);
    int r = weir_region_put(items->region, data, items->bytes, (struct weir_label){seed, 1},
                            &items->slots[items->count]);
    test_free(data);
    items->count += r == 0;
    return r;
}

static void put_up_to(struct items *items, size_t count)
{
    while (items->count < count)
        assert_int_equal(put(items), 0);
}

/* Holes come to use in poll, so the next item may have to wait for one. */
static void put_in_time(struct items *items)
{
    uint64_t since_ns = weir__clock_ns();
    int r;

    while ((r = put(items)) == -ENOSPC || r == -EAGAIN) {
        assert_true(weir_region_wait(items->region, WAIT_NS) >= 0);
        assert_true(weir__clock_ns() - since_ns < PATIENCE_NS);
    }
    assert_int_equal(r, 0);
}

static void free_at(struct items *items, size_t i)
{
    assert_int_equal(weir_region_free(items->region, items->slots[i]), 0);
    items->slots[i] = (struct weir_slot){0, 0};
}

static int fill(struct items *items)
{
    int r;

    while ((r = put(items)) == 0)
        if (items->count % 64 == 0)
            weir_region_audit(items->region);
    weir_region_audit(items->region);
    return r;
}

static void assert_all_whole(struct items *items)
{
    unsigned char *data = test_malloc(items->bytes + 1);

    for (size_t i = 0; i < items->count; i++) {
        size_t bytes = 0;
        if (weir_slot_is_none(items->slots[i]))
            continue;
        assert_int_equal(
            weir_region_read(items->region, items->slots[i], 0, data, items->bytes + 1, &bytes), 0);
        assert_int_equal(bytes, items->bytes);
        assert_int_equal(harness_differs_at(data, bytes, i, 0), bytes);
    }
    test_free(data);
}

static struct weir_region_stats figures(struct weir_region *region)
{
    struct weir_region_stats stats;
    struct stat file;
    uint64_t since_ns = weir__clock_ns();
    int fd = harness_data_fd(full_disk, NULL);

    weir_region_stats(region, &stats);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &file), 0);
    while (stats.file_bytes != (uint64_t)file.st_size) {
        /* What is reserved ahead, or given back, comes to its end. */
        assert_true(weir__clock_ns() - since_ns < PATIENCE_NS);
        assert_true(weir_region_wait(region, WAIT_NS) >= 0);
        assert_int_equal(fstat(fd, &file), 0);
        weir_region_stats(region, &stats);
    }
    assert_int_equal(stats.disk_bytes, (uint64_t)file.st_blocks * 512);
    assert_false(stats.degraded);
    assert_int_equal(stats.write_error_count, 0);
    return stats;
}

/* A file of another owner takes all but @left_bytes of the disk. */
static int take_disk(uint64_t left_bytes)
{
    char path[PATH_MAX + 32];

    snprintf(path, sizeof(path), "%s/other", full_disk);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    off_t at = 0;
    /* By small steps: what a file takes for itself besides its bytes is not known. */
    while (harness_free_bytes(full_disk) > left_bytes &&
           posix_fallocate(fd, at, 64 * (off_t)KIB) == 0)
        at += 64 * (off_t)KIB;
    return fd;
}

/* The last blocks too, one by one. */
static void take_the_rest(int fd)
{
    struct stat file;

    assert_int_equal(fstat(fd, &file), 0);
    off_t at = file.st_size;
    while (posix_fallocate(fd, at, 4096) == 0)
        at += 4096;
}

static void give_disk(int fd)
{
    char path[PATH_MAX + 32];

    snprintf(path, sizeof(path), "%s/other", full_disk);
    assert_int_equal(unlink(path), 0);
    close(fd);
    sync();
}

static struct items *start_in(const char *directory, struct weir_region_config config, size_t bytes)
{
    struct items *items = test_calloc(1, sizeof(*items));

    config.directory = directory;
    items->bytes = bytes;
    assert_int_equal(weir_region_open(&config, &items->region), 0);
    return items;
}

static struct items *start(struct weir_region_config config, size_t bytes)
{
    return start_in(full_disk, config, bytes);
}

static void finish(struct items *items)
{
    weir_region_audit(items->region);
    weir_region_close(items->region);
    test_free(items);
    sync();
    assert_true(harness_free_bytes(full_disk) > 50 * MIB);
    assert_int_equal(harness_name_count(full_disk), 1); /* lost+found */
}

/* ---- Cases ------------------------------------------------------------------ */

static void a_full_disk_is_an_error_code(void **state)
{
    struct items *items = start((struct weir_region_config){.bytes_initial = 4 * MIB}, 20000);

    (void)state;
    assert_int_equal(fill(items), -ENOSPC);
    assert_true(items->count * items->bytes >= 40 * MIB); /* growth takes what fits */
    struct weir_region_stats before = figures(items->region);
    uint64_t free_bytes = harness_free_bytes(full_disk);
    for (int i = 0; i < 20; i++) {
        struct weir_slot slot = {4711, 4712};
        assert_int_equal(put(items), -ENOSPC);
        assert_int_equal(
            weir_region_alloc(items->region, 5 * MIB, (struct weir_label){0, 0}, &slot), -ENOSPC);
        assert_int_equal(slot.index, 4711);
    }
    struct weir_region_stats after = figures(items->region);
    assert_int_equal(after.file_bytes, before.file_bytes); /* what failed was undone */
    assert_int_equal(after.disk_bytes, before.disk_bytes);
    assert_int_equal(harness_free_bytes(full_disk), free_bytes);
    assert_int_equal(after.slot_count, items->count);
    assert_true(after.growth_error_count > 0);
    assert_all_whole(items);
    for (int i = 0; i < 100; i++)
        assert_true(weir_region_poll(items->region) >= 0);
    assert_all_whole(items);
    finish(items);
}

static void freed_items_make_room(void **state)
{
    struct items *items = start((struct weir_region_config){.bytes_initial = 4 * MIB}, 20000);

    (void)state;
    assert_int_equal(fill(items), -ENOSPC);
    size_t count = items->count;
    for (size_t i = 0; i < count; i += 2)
        free_at(items, i);
    weir_region_audit(items->region);
    for (size_t i = 0; i < count / 4; i++)
        put_in_time(items);
    assert_all_whole(items);
    finish(items);
}

static void space_of_others_makes_room(void **state)
{
    struct items *items = start((struct weir_region_config){.bytes_initial = 4 * MIB}, 20000);

    (void)state;
    int other = take_disk(6 * MIB);
    assert_int_equal(fill(items), -ENOSPC);
    size_t count = items->count;
    assert_true(count * items->bytes < 16 * MIB);
    give_disk(other);
    assert_int_equal(fill(items), -ENOSPC);
    assert_true((items->count - count) * items->bytes >= 30 * MIB);
    assert_all_whole(items);
    finish(items);
}

static void what_was_reserved_is_never_a_signal(void **state)
{
    struct items *items = start(
        (struct weir_region_config){
            .bytes_initial = 24 * MIB,
            .bytes_max = 24 * MIB,
            .resident_bytes_max = 8 * MIB,
        },
        20000);

    (void)state;
    assert_int_equal(figures(items->region).file_bytes, 24 * MIB);
    int other = take_disk(0);
    take_the_rest(other);
    assert_true(harness_free_bytes(full_disk) < MIB);
    while (items->count * items->bytes < 20 * MIB) /* stores to blocks that are ours */
        assert_int_equal(put(items), 0);
    assert_int_equal(fill(items), -EDQUOT);
    assert_all_whole(items); /* written back, dropped and read on a full disk */
    assert_true(figures(items->region).resident_bytes <= 8 * MIB);
    give_disk(other);
    finish(items);
}

static void the_first_reservation_is_no_minimum(void **state)
{
    (void)state;
    int other = take_disk(20 * MIB);
    struct items *items = start((struct weir_region_config){.bytes_initial = 0}, 20000);
    assert_true(figures(items->region).file_bytes <= 20 * MIB);
    while (items->count * items->bytes < 8 * MIB)
        assert_int_equal(put(items), 0);
    assert_all_whole(items);
    give_disk(other);
    finish(items);
}

static void on_a_full_disk_open_fails_and_leaves_nothing(void **state)
{
    struct weir_region *region = NULL;
    struct weir_region_config config = {.directory = full_disk};
    int fd_count = harness_fd_count();

    (void)state;
    int other = take_disk(0);
    take_the_rest(other);
    uint64_t free_bytes = harness_free_bytes(full_disk);
    assert_int_equal(weir_region_open(&config, &region), -ENOSPC);
    assert_null(region);
    assert_int_equal(harness_fd_count(), fd_count + 1);
    assert_int_equal(harness_free_bytes(full_disk), free_bytes);
    give_disk(other);
    assert_int_equal(weir_region_open(&config, &region), 0);
    weir_region_close(region);
}

static void a_named_region_opens_on_a_full_disk(void **state)
{
    struct weir_region_config config = {
        .directory = full_disk,
        .name = "full",
        .bytes_initial = 4 * MIB,
        .resident_bytes_max = 8 * MIB,
    };
    struct items *items = start(config, 20000);
    struct weir_region_report report;

    (void)state;
    assert_int_equal(fill(items), -ENOSPC);
    assert_int_equal(weir_region_sync(items->region), 0);
    weir_region_audit(items->region);
    weir_region_close(items->region);
    int other = take_disk(0);
    take_the_rest(other);

    assert_int_equal(weir_region_open(&config, &items->region), 0);
    weir_region_report(items->region, &report);
    assert_int_equal(report.kept_slot_count, items->count);
    assert_all_whole(items);
    assert_int_equal(put(items), -ENOSPC);
    for (size_t i = 0; i < items->count; i += 2)
        free_at(items, i);
    assert_int_equal(put(items), -ENOSPC); /* still what the last sync confirmed */
    assert_int_equal(weir_region_sync(items->region), 0);
    assert_int_equal(put(items), 0);
    assert_all_whole(items);
    weir_region_audit(items->region);
    weir_region_close(items->region);
    test_free(items);
    give_disk(other);
    assert_int_equal(weir_region_remove(full_disk, "full"), 0);
    assert_int_equal(harness_name_count(full_disk), 1); /* lost+found */
}

static void the_floor_is_left_alone(void **state)
{
    struct items *items = start(
        (struct weir_region_config){
            .bytes_initial = 4 * MIB,
            .disk_floor_bytes = 24 * MIB,
        },
        20000);

    (void)state;
    assert_int_equal(fill(items), -ENOSPC);
    assert_true(harness_free_bytes(full_disk) >= 24 * MIB - 512 * KIB); /* its own tables */
    assert_true(harness_free_bytes(full_disk) <= 24 * MIB + 2 * CHUNK_BYTES);
    assert_all_whole(items);
    finish(items);
}

static void cold_items_live_on_a_full_disk(void **state)
{
    struct items *items = start(
        (struct weir_region_config){
            .bytes_initial = 4 * MIB,
            .resident_bytes_max = 8 * MIB,
        },
        20000);

    (void)state;
    assert_int_equal(fill(items), -ENOSPC);
    assert_true(items->count * items->bytes >= 40 * MIB);
    assert_true(figures(items->region).resident_bytes <= 8 * MIB);
    assert_all_whole(items);
    for (size_t i = 0; i < items->count; i++)
        free_at(items, i);
    weir_region_audit(items->region);
    size_t count = items->count;
    while ((items->count - count) * items->bytes < 30 * MIB)
        put_in_time(items);
    assert_all_whole(items);
    finish(items);
}

/*
 * Births and deaths at random on a full disk, most of it live: the cleaner cannot
 * let the file grow, so puts leave it room, and nothing comes to a stop.
 */
static void a_full_disk_is_cleaned_too(void **state)
{
    struct items *items = start(
        (struct weir_region_config){
            .bytes_initial = 4 * MIB,
            .resident_bytes_max = 8 * MIB,
        },
        20000);
    uint64_t random = 3;

    (void)state;
    assert_int_equal(fill(items), -ENOSPC);
    size_t live_max = items->count / 4 * 3;
    size_t first = 0;
    size_t live = items->count;
    while (live > live_max) {
        size_t i = weir__random_below(&random, items->count);
        if (weir_slot_is_none(items->slots[i]))
            continue;
        free_at(items, i);
        live--;
    }
    uint64_t written = figures(items->region).written_bytes;
    uint64_t put_bytes = figures(items->region).put_bytes;
    while (items->count < ITEMS_MAX) {
        while (weir_slot_is_none(items->slots[first]))
            first++;
        size_t i = first + weir__random_below(&random, items->count - first);
        if (weir_slot_is_none(items->slots[i]))
            continue;
        free_at(items, i);
        put_in_time(items);
    }
    struct weir_region_stats stats = figures(items->region);
    print_message("# written / put %.2f\n",
                  (double)(stats.written_bytes - written) / (double)(stats.put_bytes - put_bytes));
    assert_true(stats.moved_bytes + stats.staged_bytes > 0); /* in the one way or the other */
    assert_all_whole(items);
    finish(items);
}

/* With ticks between the puts, so that growth goes ahead through the ring. */
static int fill_with_ticks(struct items *items)
{
    int r;

    while ((r = put(items)) == 0) {
        assert_true(weir_region_poll(items->region) >= 0);
        if (items->count % 64 == 0)
            weir_region_audit(items->region);
    }
    return r;
}

/* What the file system has for itself beside the file comes and goes with it: some blocks. */
static void assert_nothing_kept(struct items *items, uint64_t free_bytes)
{
    struct weir_region_stats stats = figures(items->region); /* what is under way has ended */
    uint64_t now = harness_free_bytes(full_disk);

    assert_true(stats.disk_bytes <= stats.file_bytes + MIB);
    assert_true(now + 64 * KIB >= free_bytes && now <= free_bytes + 64 * KIB);
}

/* With each amount of free space growth gets it, or leaves it. */
static void full_at_every_step(void **state)
{
    (void)state;
    for (uint64_t left = 0; left < 12 * MIB; left += 350 * KIB) {
        struct items *items = start((struct weir_region_config){.bytes_initial = 4 * MIB}, 9000);
        int other = take_disk(left);
        bool has_ticks = left / (350 * KIB) % 2 == 1;
        assert_int_equal(has_ticks ? fill_with_ticks(items) : fill(items), -ENOSPC);
        figures(items->region);
        uint64_t kept = harness_free_bytes(full_disk);
        for (int i = 0; i < 10; i++) {
            assert_true(weir_region_poll(items->region) >= 0);
            assert_int_equal(put(items), -ENOSPC);
            assert_nothing_kept(items, kept);
        }
        take_the_rest(other);
        assert_all_whole(items);
        give_disk(other);
        for (int i = 0; i < 500; i++) /* usable again, for more than a step */
            assert_int_equal(put(items), 0);
        assert_all_whole(items);
        finish(items);
    }
}

/* ---- A disk that fails ------------------------------------------------------ */

/* Puts until something goes wrong; what it was. */
static int put_until_it_fails(struct items *items)
{
    struct weir_region_stats stats;

    for (;;) {
        int r = put(items);
        if (r < 0)
            return r;
        r = weir_region_poll(items->region);
        if (r < 0)
            return r;
        weir_region_stats(items->region, &stats);
        if (stats.degraded)
            return -EIO;
        assert_true(items->count * items->bytes < DISK_BYTES);
    }
}

/* @count items on a disk that is well so far; where there is none the case is skipped. */
static struct items *start_thin(struct harness_thindisk *disk, struct weir_region_config config,
                                size_t count)
{
    const char *reason = harness_thindisk(disk, DISK_BYTES, 2 * DISK_BYTES);

    if (reason != NULL) {
        print_message("SKIP: %s\n", reason);
        skip();
    }
    if (config.resident_bytes_max == 0)
        config.resident_bytes_max = 8 * MIB;
    struct items *items = start_in(disk->path, config, 20000);
    put_up_to(items, count);
    return items;
}

static void finish_thin(struct harness_thindisk *disk, struct items *items)
{
    weir_region_audit(items->region);
    weir_region_close(items->region);
    test_free(items);
    harness_thindisk_remove(disk);
}

/* What is new to the disk fails from now on. */
static void stop_disk(struct harness_thindisk *disk, struct items *items)
{
    for (int i = 0; i < 50; i++)
        assert_true(weir_region_wait(items->region, WAIT_NS) >= 0);
    assert_int_equal(harness_thindisk_stop(disk), 0);
}

/* A tick; what it said. */
static int wait_on_failing_disk(struct items *items)
{
    int r = weir_region_wait(items->region, WAIT_NS);

    assert_true(r >= 0 || r == -EIO || r == -ENOSPC);
    return r;
}

static void a_failed_write_back_loses_nothing(void **state)
{
    struct harness_thindisk disk;
    struct weir_region_stats stats;
    struct items *items =
        start_thin(&disk, (struct weir_region_config){.bytes_initial = 4 * MIB}, 700);

    (void)state;
    stop_disk(&disk, items);
    int r = put_until_it_fails(items);
    assert_true(r == -EIO || r == -ENOSPC);
    weir_region_stats(items->region, &stats);
    assert_true(stats.degraded);
    assert_true(stats.write_error_count > 0);
    weir_region_audit(items->region);
    assert_all_whole(items); /* what is cold was confirmed, what was not is still in memory */

    /* It goes on as long as there is memory, then says why not. */
    while ((r = put(items)) == 0)
        assert_true(items->count * items->bytes < DISK_BYTES);
    assert_true(r == -EIO || r == -ENOSPC || r == -EAGAIN);
    bool told = r != -EAGAIN;
    uint64_t since_ns = weir__clock_ns();
    for (int i = 0; i < 20 || !told; i++) {
        told |= wait_on_failing_disk(items) < 0;
        assert_true(weir__clock_ns() - since_ns < PATIENCE_NS);
    }
    weir_region_stats(items->region, &stats);
    assert_true(stats.degraded);
    assert_true(stats.resident_bytes <= 8 * MIB);
    assert_int_equal(stats.slot_count, items->count);
    weir_region_audit(items->region);
    assert_all_whole(items);

    /* The disk is mended: all is written, and it goes on. */
    assert_int_equal(harness_thindisk_grow(&disk, 2 * DISK_BYTES), 0);
    since_ns = weir__clock_ns();
    do {
        wait_on_failing_disk(items);
        weir_region_stats(items->region, &stats);
        assert_true(weir__clock_ns() - since_ns < PATIENCE_NS);
    } while (stats.degraded);
    size_t count = items->count;
    while (items->count < count + 1000) {
        r = put(items);
        assert_true(r == 0 || r == -EAGAIN);
        if (r < 0)
            assert_true(weir_region_wait(items->region, WAIT_NS) >= 0);
    }
    assert_all_whole(items);
    weir_region_audit(items->region);
    weir_region_stats(items->region, &stats);
    assert_false(stats.degraded);
    assert_true(stats.resident_bytes <= 8 * MIB);
    finish_thin(&disk, items);
}

/*
 * The kernel writes dirty pages when it likes, fails, and calls them clean. Who
 * hears of it is the next write-back of the file, of whatever chunk.
 */
static void what_the_kernel_failed_to_write_is_not_lost(void **state)
{
    struct harness_thindisk disk;
    struct weir_region_stats stats;
    struct weir_slot built;
    struct items *items =
        start_thin(&disk, (struct weir_region_config){.bytes_initial = 32 * MIB}, 400);

    (void)state;
    stop_disk(&disk, items);

    /* An unfinished item keeps its chunk from being written for a while. */
    assert_int_equal(weir_region_alloc(items->region, 100, (struct weir_label){0, 2}, &built), 0);
    assert_int_equal(weir_region_write(items->region, built, 0, "half", 4), 0);
    put_up_to(items, 500);
    int home = open(disk.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(home >= 0);
    (void)!syncfs(home); /* as the flusher would after some time */
    close(home);
    assert_int_equal(harness_thindisk_grow(&disk, 2 * DISK_BYTES), 0);

    uint64_t since_ns = weir__clock_ns();
    while (items->count < 1400) {
        int r = put(items);
        assert_true(r == 0 || r == -EAGAIN || r == -EIO || r == -ENOSPC);
        wait_on_failing_disk(items);
        assert_true(weir__clock_ns() - since_ns < PATIENCE_NS);
        if (r == 0 && items->count == 600)
            assert_int_equal(weir_region_free(items->region, built), 0);
    }
    weir_region_stats(items->region, &stats);
    assert_true(stats.write_error_count > 0); /* the kernel did fail, and it was heard of */
    assert_false(stats.degraded);
    assert_all_whole(items);
    finish_thin(&disk, items);
}

/*
 * An open that cannot flush what the last owner left: the kernel calls it clean then,
 * and the next open is not to take for stored what is only in memory.
 */
static void what_open_failed_to_write_is_not_believed(void **state)
{
    enum { CONFIRMED = 100, ALL = 400 };
    struct harness_thindisk disk;
    struct weir_region_report report;
    struct weir_slot_info info;
    struct weir_region_config config = {
        .name = "full",
        .bytes_initial = 32 * MIB,
        .resident_bytes_max = 16 * MIB,
    };
    struct items *items = start_thin(&disk, config, CONFIRMED);

    (void)state;
    config.directory = disk.path;
    assert_int_equal(weir_region_sync(items->region), 0);
    assert_int_equal(harness_thindisk_stop(&disk), 0);
    put_up_to(items, ALL);
    weir_region_close(items->region);

    int r = weir_region_open(&config, &items->region);
    assert_true(r == -EIO || r == -ENOSPC);
    assert_int_equal(harness_thindisk_grow(&disk, 2 * DISK_BYTES), 0);
    for (int turn = 0; turn < 2; turn++) { /* and what was found stays */
        assert_int_equal(weir_region_open(&config, &items->region), 0);
        weir_region_report(items->region, &report);
        assert_int_equal(report.after_power_loss, turn == 0);
        uint64_t kept = 0;
        for (size_t i = 0; i < ALL; i++) {
            r = weir_region_slot(items->region, items->slots[i], &info);
            if (r < 0 && i >= CONFIRMED)
                items->slots[i] = (struct weir_slot){0, 0};
            else
                assert_int_equal(r, 0);
            kept += r == 0;
        }
        assert_int_equal(report.kept_slot_count, kept);
        assert_all_whole(items);
        weir_region_close(items->region);
    }
    assert_int_equal(weir_region_remove(disk.path, "full"), 0);
    test_free(items);
    harness_thindisk_remove(&disk);
}

static void close_while_degraded(void **state)
{
    struct harness_thindisk disk;
    int fd_count = harness_fd_count();
    struct items *items =
        start_thin(&disk, (struct weir_region_config){.bytes_initial = 4 * MIB}, 700);

    (void)state;
    stop_disk(&disk, items);
    int r = put_until_it_fails(items);
    assert_true(r == -EIO || r == -ENOSPC);
    for (size_t i = 0; i < items->count; i += 2) /* frees need no disk */
        assert_int_equal(weir_region_free(items->region, items->slots[i]), 0);
    finish_thin(&disk, items);
    assert_int_equal(harness_fd_count(), fd_count);
}

struct answers {
    size_t count;
    size_t errors;
};

static void answered(void *context, struct weir_slot slot, int result)
{
    struct answers *answers = context;

    (void)slot;
    /* Of a device that ends too early the kernel may also read zeroes. */
    assert_true(result == 0 || result == -EIO || result == -EBADMSG);
    answers->count++;
    answers->errors += result < 0;
}

static void a_failed_read_is_an_error_code(void **state)
{
    struct harness_thindisk disk;
    struct weir_region_stats stats;
    struct answers answers = {0, 0};
    size_t errors = 0;
    size_t bytes = 0;
    struct items *items = start_thin(&disk,
                                     (struct weir_region_config){
                                         .bytes_initial = 4 * MIB,
                                         .bytes_max = 40 * MIB,
                                     },
                                     1700);
    unsigned char *data = test_malloc(20001);

    (void)state;
    assert_int_equal(truncate(disk.image, 4 * (off_t)MIB), 0); /* most of the disk is gone */

    for (size_t i = 0; i < items->count; i++) {
        struct weir_slot_info info;
        assert_int_equal(weir_region_slot(items->region, items->slots[i], &info), 0);
        int r = weir_region_read(items->region, items->slots[i], 0, data, 20001, &bytes);
        assert_true(r == 0 || r == -EIO || r == -EBADMSG);
        if (info.resident) /* what is in memory is not touched by it */
            assert_int_equal(r, 0);
        if (r == 0)
            assert_int_equal(harness_differs_at(data, bytes, i, 0), bytes);
        errors += r < 0;
    }
    assert_true(errors > 500);
    for (size_t i = 0; i < 1000; i += 100)
        assert_int_equal(
            weir_region_fetch(items->region, items->slots + i, 100, answered, &answers), 0);
    uint64_t since_ns = weir__clock_ns();
    while (answers.count < 1000) {
        assert_true(weir__clock_ns() - since_ns < PATIENCE_NS);
        assert_true(weir_region_wait(items->region, WAIT_NS) >= 0);
    }
    assert_true(answers.errors > 100);
    weir_region_stats(items->region, &stats);
    assert_true(stats.read_error_count > 0);

    /* Cold holes are of no use on such a disk, but nothing dies of it. */
    for (size_t i = 0; i < items->count; i += 2)
        assert_int_equal(weir_region_free(items->region, items->slots[i]), 0);
    for (int i = 0; i < 2000; i++) {
        struct weir_slot slot;
        int r = weir_region_put(items->region, data, 18000, (struct weir_label){0, 9}, &slot);
        assert_true(r == 0 || r == -EAGAIN || r == -EDQUOT || r == -EIO || r == -ENOSPC);
        r = weir_region_poll(items->region);
        assert_true(r >= 0 || r == -EIO || r == -ENOSPC);
        if (i % 100 == 0)
            weir_region_audit(items->region);
    }
    test_free(data);
    finish_thin(&disk, items);
}

static sigjmp_buf before_signal;
static const void *volatile signal_address;

static void on_signal(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)context;
    signal_address = info->si_addr;
    siglongjmp(before_signal, 1);
}

/* Reads all of it; the address that the kernel could not read, or NULL. */
static const void *touch(const void *data, size_t bytes)
{
    const volatile unsigned char *at = data;
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
    struct sigaction before;

    signal_address = NULL;
    assert_int_equal(sigaction(SIGBUS, &action, &before), 0);
    if (sigsetjmp(before_signal, 1) == 0)
        for (size_t i = 0; i < bytes; i++)
            (void)at[i];
    assert_int_equal(sigaction(SIGBUS, &before, NULL), 0);
    return signal_address;
}

/*
 * The one signal there is: memory of an item that is resident was taken back by
 * the kernel, which may do that to clean pages of any file, and the disk does not
 * give it again. Who reads there by address gets SIGBUS, at that address; what was
 * not taken back, and the region, are as they were.
 */
static void what_the_kernel_took_back_may_be_a_signal(void **state)
{
    struct harness_thindisk disk;
    const unsigned char *data;
    const void *taken = NULL;
    size_t bytes;
    size_t i;
    struct items *items =
        start_thin(&disk, (struct weir_region_config){.bytes_initial = 32 * MIB}, 1000);

    (void)state;
    sync(); /* nothing of what is in memory is dirty for the kernel */
    for (i = 0; i < items->count && taken == NULL; i++) {
        int r = weir_region_at(items->region, items->slots[i], (const void **)&data, &bytes);
        assert_true(r == 0 || r == -EAGAIN);
        if (r < 0)
            continue;
        /* All of the chunk, which is one large page; as memory pressure would. */
        uintptr_t chunk = (uintptr_t)data & ~(CHUNK_BYTES - 1);
        uintptr_t page = ((uintptr_t)data + 4095) & ~(uintptr_t)4095;
        unsigned char present;
        (void)madvise((void *)chunk, CHUNK_BYTES, MADV_PAGEOUT);
        assert_int_equal(mincore((void *)page, 1, &present), 0);
        if ((present & 1) == 0)
            taken = (const void *)page;
    }
    assert_non_null(taken);
    assert_null(touch(data, bytes)); /* while the disk is well nobody notices */
    (void)madvise((void *)((uintptr_t)data & ~(CHUNK_BYTES - 1)), CHUNK_BYTES, MADV_PAGEOUT);
    assert_int_equal(truncate(disk.image, 4 * (off_t)MIB), 0); /* most of the disk is gone */

    const unsigned char *hit = touch(data, bytes);
    assert_true(hit >= data && hit < data + bytes);
    weir_region_audit(items->region);
    assert_int_equal(weir_region_free(items->region, items->slots[i - 1]), 0);
    finish_thin(&disk, items);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        {"a full disk is an error code, and what failed is undone", a_full_disk_is_an_error_code,
         NULL, NULL, NULL},
        {"freed items make room", freed_items_make_room, NULL, NULL, NULL},
        {"space that others give back makes room", space_of_others_makes_room, NULL, NULL, NULL},
        {"what was reserved is never a signal", what_was_reserved_is_never_a_signal, NULL, NULL,
         NULL},
        {"the first reservation is no minimum", the_first_reservation_is_no_minimum, NULL, NULL,
         NULL},
        {"on a full disk open fails and leaves nothing",
         on_a_full_disk_open_fails_and_leaves_nothing, NULL, NULL, NULL},
        {"a named region opens on a full disk", a_named_region_opens_on_a_full_disk, NULL, NULL,
         NULL},
        {"the floor of free space is left alone", the_floor_is_left_alone, NULL, NULL, NULL},
        {"a full disk is cleaned too", a_full_disk_is_cleaned_too, NULL, NULL, NULL},
        {"cold items live on a full disk", cold_items_live_on_a_full_disk, NULL, NULL, NULL},
        {"the disk may be full at every step", full_at_every_step, NULL, NULL, NULL},
        {"a failed write-back loses nothing, and a mended disk goes on",
         a_failed_write_back_loses_nothing, NULL, NULL, NULL},
        {"what the kernel failed to write by itself is not lost",
         what_the_kernel_failed_to_write_is_not_lost, NULL, NULL, NULL},
        {"what an open failed to write is not believed by the next",
         what_open_failed_to_write_is_not_believed, NULL, NULL, NULL},
        {"a region can be closed while it is degraded", close_while_degraded, NULL, NULL, NULL},
        {"a failed read is an error code", a_failed_read_is_an_error_code, NULL, NULL, NULL},
        {"what the kernel took back may be a signal on a failing disk",
         what_the_kernel_took_back_may_be_a_signal, NULL, NULL, NULL},
    };
    const char *reason = harness_smalldisk(DISK_BYTES, &full_disk);

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    if (reason != NULL) {
        printf("SKIP: %s\n", reason);
        return 77;
    }
    int failures = cmocka_run_group_tests_name("region on a small disk", cases, NULL, NULL);
    harness_smalldisk_remove(full_disk);
    return failures;
}
