/* SPDX-License-Identifier: MIT */
/*
 * region_stage_unit - large items that are written into holes of cold chunks
 *
 * A region that is full has large holes on disk and little room in memory. What is
 * put then goes there by a write of its own, on the seam: so it can be held, be
 * refused or stop half way, and the item must be there all the same.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/region.h>
#include <weir/view.h>

#include "pattern.h"
#include "program.h"
#include "seam.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define KIB         UINT64_C(1024)
#define MIB         (KIB << 10)
#define ITEM_BYTES  (64 * KIB)
#define FILE_BYTES  (32 * MIB)
#define ITEMS_MAX   2048
#define HOLE_COUNT  80 /* fewer bytes than the cleaner begins at */
#define WAIT_NS     UINT64_C(10000000)
#define SETTLE_NS   UINT64_C(100000000)
#define TURNS_MAX   2000
#define SHARE_BYTES (256 * KIB) /* of staged buffers, with 8 MiB */

struct job {
    struct weir_region *region;
    struct weir_slot slots[ITEMS_MAX]; /* index 0: none */
    size_t bytes[ITEMS_MAX];
    size_t count;
    unsigned char buffer[MIB];
    unsigned char other[MIB];
};

static struct job the_job;

/* ---- Steps ---------------------------------------------------------------- */

static struct weir_region_stats figures(struct job *job)
{
    struct weir_region_stats stats;

    weir_region_stats(job->region, &stats);
    return stats;
}

static int put(struct job *job, size_t bytes)
{
    harness_fill(job->buffer, bytes, job->count, 0);
    int r = weir_region_put(job->region, job->buffer, bytes, (struct weir_label){job->count, 1},
                            &job->slots[job->count]);
    if (r == 0)
        job->bytes[job->count++] = bytes;
    assert_true(job->count < ITEMS_MAX);
    return r;
}

static void drop(struct job *job, size_t i)
{
    assert_int_equal(weir_region_free(job->region, job->slots[i]), 0);
    job->slots[i] = (struct weir_slot){0};
}

static void assert_whole(struct job *job, size_t i)
{
    size_t seen = 0;

    assert_int_equal(
        weir_region_read(job->region, job->slots[i], 0, job->other, sizeof(job->other), &seen), 0);
    assert_int_equal(seen, job->bytes[i]);
    assert_int_equal(harness_differs_at(job->other, seen, i, 0), seen);
}

static void assert_all_whole(struct job *job)
{
    weir_region_audit(job->region);
    for (size_t i = 0; i < job->count; i++)
        if (job->slots[i].index != 0)
            assert_whole(job, i);
}

static const void *address(struct job *job, size_t i)
{
    const void *data = NULL;
    size_t bytes;

    assert_int_equal(weir_region_at(job->region, job->slots[i], &data, &bytes), 0);
    assert_int_equal(bytes, job->bytes[i]);
    return data;
}

/* Until nothing is dirty that could be written, or held by the seam. */
static void settle(struct job *job)
{
    int idle = 0;

    for (int turn = 0; turn < TURNS_MAX && idle < 20; turn++) {
        int r = weir_region_wait(job->region, seam_held() > 0 ? WAIT_NS : SETTLE_NS);
        idle = r == 0 ? idle + 1 : 0;
    }
}

static void turn(struct job *job)
{
    assert_true(weir_region_wait(job->region, WAIT_NS) >= 0);
    weir_region_audit(job->region);
}

/*
 * A region that is full but for holes of ITEM_BYTES in chunks that are on disk only.
 * NULL: nothing is staged on this file system or without a ring.
 */
static struct job *start_with(struct weir_region_config config)
{
    struct job *job = &the_job;

    memset(job, 0, sizeof(*job));
    config.directory = harness_tmpdir();
    config.bytes_max = FILE_BYTES;
    config.resident_bytes_max =
        config.resident_bytes_max != 0 ? config.resident_bytes_max : 8 * MIB;
    assert_int_equal(weir_region_open(&config, &job->region), 0);
    while (figures(job).mark_bytes + 3 * MIB < FILE_BYTES)
        assert_int_equal(put(job, ITEM_BYTES), 0);
    settle(job);
    for (size_t i = 1; i < 3 * HOLE_COUNT; i += 3)
        drop(job, i);
    settle(job);
    weir_region_audit(job->region);
    return job;
}

static void finish(struct job *job)
{
    weir_region_audit(job->region);
    weir_region_close(job->region);
}

static struct job *start_wiping(bool wipes)
{
    struct job *job = start_with((struct weir_region_config){.wipes = wipes});
    struct weir_region_stats stats = figures(job);

    if (stats.bounded && stats.direct && !stats.synchronous)
        return job;
    print_message("# passed over: nothing is staged here\n");
    finish(job);
    return NULL;
}

static struct job *start(void)
{
    return start_wiping(false);
}

/* The next items are written, and completed when the seam says so. */
static void hold_writes(void)
{
    seam_arm((struct seam_rule){.call = SEAM_ring_write, .times = SEAM_FOR_GOOD, .how = SEAM_HOLD});
}

/* The disk refuses them, now and when they are tried again. */
static void fail_writes(void)
{
    seam_arm((struct seam_rule){.call = SEAM_ring_write, .times = SEAM_FOR_GOOD, .error = EIO});
}

static void release(struct job *job)
{
    seam_lift();
    settle(job);
}

/* One item of @bytes goes into a hole; its number. */
static size_t put_staged(struct job *job, size_t bytes)
{
    uint64_t before = figures(job).staged_bytes;

    assert_int_equal(put(job, bytes), 0);
    assert_int_equal(figures(job).staged_bytes, before + bytes);
    return job->count - 1;
}

/* ---- Which ---------------------------------------------------------------- */

static void a_large_item_goes_into_a_hole(void **state)
{
    struct job *job = start();

    (void)state;
    if (job == NULL)
        return;
    struct weir_region_stats before = figures(job);
    put_staged(job, 50 * KIB + 1);
    settle(job);
    struct weir_region_stats after = figures(job);
    assert_int_equal(after.written_bytes, before.written_bytes + 52 * KIB); /* whole pages */
    assert_int_equal(after.file_bytes, before.file_bytes);
    assert_int_equal(after.mark_bytes, before.mark_bytes);
    assert_int_equal(after.dirty_bytes, before.dirty_bytes);
    assert_int_equal(after.live_bytes, before.live_bytes + 50 * KIB + 1);
    assert_all_whole(job);
    finish(job);
}

static void small_items_are_not_staged(void **state)
{
    struct job *job = start();

    (void)state;
    if (job == NULL)
        return;
    assert_int_equal(put(job, 16 * KIB - 1), 0);
    assert_int_equal(figures(job).staged_bytes, 0);
    put_staged(job, 16 * KIB);
    assert_all_whole(job);
    finish(job);
}

static void what_fits_in_no_hole_is_not_staged(void **state)
{
    struct job *job = start();

    (void)state;
    if (job == NULL)
        return;
    assert_int_equal(put(job, ITEM_BYTES + 1), 0);
    assert_int_equal(figures(job).staged_bytes, 0);
    finish(job);
}

static void with_room_in_the_file_nothing_is_staged(void **state)
{
    struct job *job = &the_job;
    struct weir_region_config config = {
        .directory = harness_tmpdir(),
        .bytes_max = 8 * FILE_BYTES,
        .resident_bytes_max = 8 * MIB,
    };

    (void)state;
    memset(job, 0, sizeof(*job));
    assert_int_equal(weir_region_open(&config, &job->region), 0);
    for (int i = 0; i < 400; i++)
        assert_int_equal(put(job, ITEM_BYTES), 0);
    settle(job);
    for (size_t i = 1; i < 100; i += 3)
        drop(job, i);
    for (int i = 0; i < 20; i++)
        assert_int_equal(put(job, ITEM_BYTES), 0);
    assert_int_equal(figures(job).staged_bytes, 0);
    assert_all_whole(job);
    finish(job);
}

/* In the file nothing is behind it, in its last page, of what was there before. */
static void its_last_page_ends_in_zeroes(void **state)
{
    struct job *job = start_wiping(true);
    struct weir_view_extent extent;
    struct weir_view *view;
    char path[64];

    (void)state;
    if (job == NULL)
        return;
    size_t i = put_staged(job, 50 * KIB + 1);
    settle(job);
    assert_int_equal(weir_view_open(0, weir_region_fd(job->region), &view), 0);
    assert_int_equal(weir_view_extent(view, job->slots[i].index, &extent), 0);
    struct weir_view_summary summary;
    weir_view_summary(view, &summary);
    assert_int_equal(extent.offset % (4 * KIB), 0);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", summary.data_fd);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fseek(file, (long)extent.offset, SEEK_SET), 0);
    assert_int_equal(fread(job->other, 1, 52 * KIB, file), 52 * KIB);
    fclose(file);
    assert_int_equal(harness_differs_at(job->other, extent.bytes, i, 0), extent.bytes);
    for (uint64_t at = extent.bytes; at < 52 * KIB; at++)
        assert_int_equal(job->other[at], 0);
    weir_view_close(view);
    assert_all_whole(job);
    finish(job);
}

static void nothing_is_staged_with(struct weir_region_config config)
{
    struct job *job = start_with(config);

    for (int i = 0; i < 20; i++)
        (void)put(job, ITEM_BYTES);
    assert_int_equal(figures(job).staged_bytes, 0);
    assert_all_whole(job);
    finish(job);
}

static void who_must_not_stage_does_not(void **state)
{
    (void)state;
    nothing_is_staged_with((struct weir_region_config){.resident_bytes_max = UINT64_MAX});
    nothing_is_staged_with((struct weir_region_config){.name = "stage"});
    assert_int_equal(weir_region_remove(harness_tmpdir(), "stage"), 0);
}

static void no_more_is_staged_than_has_a_share(void **state)
{
    struct job *job = start();

    (void)state;
    if (job == NULL)
        return;
    hold_writes();
    for (int i = 0; i < 10; i++)
        assert_int_equal(put(job, 60 * KIB), 0);
    assert_int_equal(figures(job).staged_bytes, SHARE_BYTES / (60 * KIB) * (60 * KIB));
    assert_true(figures(job).resident_bytes <= 8 * MIB);
    release(job);
    put_staged(job, 60 * KIB);
    assert_all_whole(job);
    finish(job);
}

static int the_signals;

static void count_signal(int number)
{
    (void)number;
    the_signals++;
}

static void a_limit_lowered_later_is_no_signal(void **state)
{
    struct job *job = start();
    struct sigaction count = {.sa_handler = count_signal};
    struct sigaction before;
    struct rlimit limit;

    (void)state;
    if (job == NULL)
        return;
    put_staged(job, 40 * KIB);
    settle(job);
    the_signals = 0;
    assert_int_equal(sigaction(SIGXFSZ, &count, &before), 0);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    struct rlimit lower = {.rlim_cur = 1 * MIB, .rlim_max = limit.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &lower), 0);
    int r = 0;
    for (int i = 0; i < 8 && r == 0; i++)
        r = put(job, 40 * KIB);
    settle(job);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    assert_int_equal(sigaction(SIGXFSZ, &before, NULL), 0);
    assert_int_equal(r, 0);
    assert_int_equal(the_signals, 0);
    assert_int_equal(figures(job).write_error_count, 0);
    assert_all_whole(job);
    finish(job);
}

/* ---- While it is written -------------------------------------------------- */

struct answer {
    struct weir_operation operation;
    struct job *job;
    size_t item;
    int count;
    int result;
};

static void fetched(void *context, struct weir_slot slot, int result)
{
    struct answer *answer = context;
    const void *data;

    answer->count++;
    answer->result = result;
    if (result == 0)
        assert_int_equal(weir_region_at(answer->job->region, slot, &data, NULL), 0);
}

static void piece_came(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct answer *answer = (struct answer *)(void *)operation;

    (void)flags;
    answer->count++;
    answer->result = result;
}

static void assert_there(struct job *job, size_t i)
{
    struct answer answer = {.job = job, .item = i};
    struct answer piece = {.operation = {piece_came}, .job = job, .item = i};
    struct weir_slot_info info;
    size_t bytes = job->bytes[i];
    const void *data;

    assert_int_equal(harness_differs_at(address(job, i), bytes, i, 0), bytes);
    assert_whole(job, i);
    assert_int_equal(weir_region_slot(job->region, job->slots[i], &info), 0);
    assert_true(info.resident && info.committed && !info.damaged);
    assert_int_equal(info.bytes, bytes);
    assert_int_equal(weir_region_commit(job->region, job->slots[i]), -ESTALE);
    assert_int_equal(weir_region_pin(job->region, job->slots[i], &data, NULL), 0);
    assert_int_equal(weir_region_fetch(job->region, &job->slots[i], 1, fetched, &answer), 0);
    assert_int_equal(weir_region_fetch_into(job->region, job->slots[i], 1000, job->other, 5000,
                                            &piece.operation),
                     0);
    turn(job);
    assert_int_equal(answer.count, 1);
    assert_int_equal(answer.result, 0);
    assert_int_equal(piece.count, 1);
    assert_int_equal(piece.result, 5000);
    assert_int_equal(harness_differs_at(job->other, 5000, i, 1000), 5000);
    assert_int_equal(harness_differs_at(data, bytes, i, 0), bytes);
    weir_region_unpin(job->region, job->slots[i]);
    weir_region_audit(job->region);
}

static void it_is_there_while_it_is_written(void **state)
{
    struct job *job = start();

    (void)state;
    if (job == NULL)
        return;
    hold_writes();
    size_t i = put_staged(job, 40 * KIB);
    assert_there(job, i);
    release(job);
    assert_there(job, i);
    assert_all_whole(job);
    finish(job);
}

static void a_view_sees_it_when_it_is_written(void **state)
{
    struct job *job = start();
    struct weir_view *view;
    size_t seen = 0;

    (void)state;
    if (job == NULL)
        return;
    assert_int_equal(weir_view_open(0, weir_region_fd(job->region), &view), 0);
    hold_writes();
    size_t i = put_staged(job, 40 * KIB);
    struct weir_slot slot = job->slots[i];
    struct weir_view_extent extent;
    turn(job);
    assert_int_equal(weir_view_read(view, slot, 0, job->other, MIB, &seen), -EAGAIN);
    assert_int_equal(weir_view_verify(view, slot), -EAGAIN);
    assert_int_equal(weir_view_extent(view, slot.index, &extent), 0);
    assert_int_equal(extent.bytes, 40 * KIB);
    assert_false(extent.committed);
    release(job);
    assert_int_equal(weir_view_read(view, slot, 0, job->other, MIB, &seen), 0);
    assert_int_equal(seen, 40 * KIB);
    assert_int_equal(harness_differs_at(job->other, seen, i, 0), seen);
    assert_int_equal(weir_view_verify(view, slot), 0);

    hold_writes();
    slot = job->slots[put_staged(job, 40 * KIB)];
    drop(job, job->count - 1);
    assert_int_equal(weir_view_read(view, slot, 0, job->other, MIB, &seen), -ESTALE);
    release(job);
    weir_view_close(view);
    finish(job);
}

static void freed_meanwhile(struct job *job, bool is_pinned)
{
    const void *data;
    uint64_t free_bytes = figures(job).free_bytes;

    hold_writes();
    size_t i = put_staged(job, 40 * KIB);
    struct weir_slot slot = job->slots[i];
    if (is_pinned)
        assert_int_equal(weir_region_pin(job->region, slot, &data, NULL), 0);
    drop(job, i);
    assert_int_equal(weir_region_at(job->region, slot, &data, NULL), -ESTALE);
    turn(job);
    /* Its place is nobody's before the disk is done with it. */
    assert_int_equal(figures(job).free_bytes, free_bytes - 40 * KIB);
    release(job);
    if (is_pinned) {
        assert_int_equal(figures(job).free_bytes, free_bytes - 40 * KIB);
        weir_region_unpin(job->region, slot);
    }
    assert_int_equal(figures(job).free_bytes, free_bytes);
    assert_int_equal(figures(job).pinned_bytes, 0);
    assert_all_whole(job);
}

static void it_may_be_freed_meanwhile(void **state)
{
    struct job *job = start();

    (void)state;
    if (job == NULL)
        return;
    freed_meanwhile(job, false);
    freed_meanwhile(job, true);

    /* Unpinned before the write has ended: then that gives the space back. */
    uint64_t free_bytes = figures(job).free_bytes;
    const void *data;
    hold_writes();
    size_t i = put_staged(job, 40 * KIB);
    struct weir_slot slot = job->slots[i];
    assert_int_equal(weir_region_pin(job->region, slot, &data, NULL), 0);
    drop(job, i);
    weir_region_unpin(job->region, slot);
    assert_int_equal(figures(job).free_bytes, free_bytes - 40 * KIB);
    release(job);
    assert_int_equal(figures(job).free_bytes, free_bytes);
    assert_all_whole(job);
    finish(job);
}

static uint64_t place(struct job *job, size_t i)
{
    struct weir_view_extent extent;
    struct weir_view *view;

    assert_int_equal(weir_view_open(0, weir_region_fd(job->region), &view), 0);
    assert_int_equal(weir_view_extent(view, job->slots[i].index, &extent), 0);
    weir_view_close(view);
    return extent.offset;
}

/* All else goes: the cleaner would empty the chunk, or its blocks be zeroed, at any time. */
static void its_chunk_stays_meanwhile(void **state)
{
    struct job *job = start();

    (void)state;
    if (job == NULL)
        return;
    hold_writes();
    size_t first = put_staged(job, 40 * KIB);
    size_t second = put_staged(job, 20 * KIB);
    uint64_t offset = place(job, first);
    uint64_t moved_bytes = figures(job).moved_bytes;
    for (size_t i = 0; i < first; i++)
        if (job->slots[i].index != 0 && i % 32 != 0)
            drop(job, i);
    for (int i = 0; i < 200; i++) {
        turn(job);
        assert_int_equal(harness_differs_at(address(job, first), 40 * KIB, first, 0), 40 * KIB);
        assert_int_equal(place(job, first), offset);
    }
    assert_true(figures(job).moved_bytes > moved_bytes); /* others were */
    drop(job, second);
    for (size_t i = 0; i < first; i += 32)
        if (job->slots[i].index != 0)
            drop(job, i);
    for (int i = 0; i < 200; i++)
        turn(job);
    release(job);
    assert_all_whole(job);
    /* And is cleaned afterwards like any. */
    while (figures(job).put_bytes < 4 * FILE_BYTES) {
        assert_int_equal(put(job, 3 * KIB + job->count % 7 * 8 * KIB), 0);
        if (job->count % 4 != 0)
            drop(job, job->count - 1);
        if (job->count == ITEMS_MAX - 2)
            break;
        turn(job);
    }
    assert_all_whole(job);
    finish(job);
}

/* Nothing is left that may be stored to, and no hole of 100 KiB. */
static void fill_up(struct job *job)
{
    int r = 0;

    while (r == 0)
        r = put(job, 100 * KIB);
    assert_int_equal(r, -EDQUOT);
    settle(job);
}

static void delay(enum seam_call call)
{
    seam_arm(
        (struct seam_rule){.call = call, .times = SEAM_FOR_GOOD, .how = SEAM_DELAY, .reaps = 3});
}

/* What comes free in a moment is waited for: the region is not full. */
static void space_that_is_zeroed_is_waited_for(void **state)
{
    struct job *job = start();

    (void)state;
    if (job == NULL)
        return;
    fill_up(job);
    hold_writes();
    put_staged(job, 40 * KIB);
    delay(SEAM_ring_fallocate);
    uint64_t chunk = place(job, 32) / (2 * MIB);
    for (size_t i = 0; i < job->count - 1; i++)
        if (job->slots[i].index != 0 && place(job, i) / (2 * MIB) == chunk)
            drop(job, i);
    assert_int_equal(put(job, 100 * KIB), 0);
    release(job);
    assert_all_whole(job);
    finish(job);
}

static void a_hole_beside_it_is_waited_for(void **state)
{
    struct job *job = start();

    (void)state;
    if (job == NULL)
        return;
    fill_up(job);
    for (size_t i = 260; i < 265; i++)
        drop(job, i);
    delay(SEAM_ring_write);
    put_staged(job, 200 * KIB); /* 120 are left of the hole; of the share, less than 100 */
    assert_int_equal(put(job, 100 * KIB), 0);
    release(job);
    assert_all_whole(job);
    finish(job);
}

static void space_freed_on_its_way_is_waited_for(void **state)
{
    struct job *job = start();

    (void)state;
    if (job == NULL)
        return;
    fill_up(job);
    drop(job, 260);
    drop(job, 261);
    delay(SEAM_ring_write);
    put_staged(job, 2 * ITEM_BYTES);
    drop(job, job->count - 1);
    assert_int_equal(put(job, 100 * KIB), 0);
    release(job);
    assert_all_whole(job);
    finish(job);
}

static void it_may_be_closed_meanwhile(void **state)
{
    struct job *job = start();

    (void)state;
    if (job == NULL)
        return;
    delay(SEAM_ring_write);
    put_staged(job, 40 * KIB);
    put_staged(job, 20 * KIB);
    drop(job, job->count - 1);
    weir_region_close(job->region);
    seam_lift();
}

static void memory_may_be_lowered_meanwhile(void **state)
{
    struct job *job = start_with(
        (struct weir_region_config){.resident_bytes_max = 16 * MIB, .resident_bytes_min = 8 * MIB});

    (void)state;
    if (!figures(job).bounded || !figures(job).direct || figures(job).synchronous) {
        print_message("# passed over: nothing is staged here\n");
        finish(job);
        return;
    }
    hold_writes();
    size_t i = put_staged(job, 60 * KIB);
    put_staged(job, 60 * KIB);
    assert_int_equal(weir_region_set_resident(job->region, 8 * MIB), 0);
    for (int tick = 0; tick < 100; tick++)
        turn(job);
    assert_int_equal(harness_differs_at(address(job, i), 60 * KIB, i, 0), 60 * KIB);
    release(job);
    assert_int_equal(figures(job).resident_bytes_max, 8 * MIB);
    assert_all_whole(job);
    finish(job);
}

static void without_memory_it_is_put_as_any_other(void **state)
{
    struct job *job = start();

    (void)state;
    if (job == NULL)
        return;
    uint64_t staged_bytes = 0;
    for (uint64_t at = 1; staged_bytes == 0; at++) {
        seam_reset();
        seam_fail(SEAM_ANY_HEAP, at);
        assert_int_equal(put(job, 20 * KIB), 0);
        assert_true(seam_fired() > 0 || figures(job).staged_bytes > 0);
        staged_bytes = figures(job).staged_bytes;
        seam_lift();
        weir_region_audit(job->region);
    }
    settle(job);
    assert_all_whole(job);
    finish(job);
}

/* ---- When the disk fails -------------------------------------------------- */

/* Polls until the error is told, once; it is. */
static void assert_told(struct job *job, int error)
{
    int told = 0;

    for (int tick = 0; tick < 200; tick++) {
        int r = weir_region_wait(job->region, WAIT_NS);
        told += r < 0;
        if (r < 0)
            assert_int_equal(r, error);
        weir_region_audit(job->region);
    }
    assert_int_equal(told, error < 0);
}

static void a_refused_item_is_put_elsewhere(void **state)
{
    struct job *job = start();
    const void *data;

    (void)state;
    if (job == NULL)
        return;
    fail_writes();
    size_t i = put_staged(job, 40 * KIB);
    assert_int_equal(weir_region_pin(job->region, job->slots[i], &data, NULL), 0);
    uint64_t errors = figures(job).write_error_count;
    assert_told(job, -EIO);
    assert_int_equal(figures(job).write_error_count, errors + 1);
    assert_false(figures(job).degraded); /* there was room */
    assert_int_equal(harness_differs_at(data, 40 * KIB, i, 0), 40 * KIB);
    weir_region_unpin(job->region, job->slots[i]);
    assert_all_whole(job);
    seam_lift();
    finish(job);
}

static void without_room_it_stays_in_its_buffer(void **state)
{
    struct job *job = start();

    (void)state;
    if (job == NULL)
        return;
    /* It takes all of the only hole in its chunk, which is then of no use to others. */
    drop(job, 260);
    drop(job, 261);
    settle(job);
    fail_writes();
    size_t i = put_staged(job, 2 * ITEM_BYTES);
    /* Nothing may be stored to any more. */
    while (put(job, 100 * KIB) == 0)
        continue;
    while (put(job, 10 * KIB) == 0 && job->count < ITEMS_MAX - 1)
        continue;
    seam_lift();
    settle(job);
    assert_true(figures(job).degraded);
    assert_int_equal(harness_differs_at(address(job, i), 2 * ITEM_BYTES, i, 0), 2 * ITEM_BYTES);
    assert_all_whole(job);

    for (size_t other = i + 1; other < job->count; other++)
        drop(job, other);
    settle(job);
    assert_false(figures(job).degraded);
    assert_all_whole(job);
    finish(job);
}

static void a_freed_item_need_not_be_put_anew(void **state)
{
    struct job *job = start();

    (void)state;
    if (job == NULL)
        return;
    uint64_t free_bytes = figures(job).free_bytes;
    fail_writes();
    put_staged(job, 40 * KIB);
    drop(job, job->count - 1);
    assert_told(job, -EIO);
    assert_false(figures(job).degraded);
    assert_int_equal(figures(job).free_bytes, free_bytes);
    seam_lift();
    assert_all_whole(job);
    finish(job);
}

/* One error may be that of an earlier write; a write may stop half way. */
static void goes_wrong_once(struct job *job, struct seam_rule rule)
{
    uint64_t errors = figures(job).write_error_count;
    uint64_t written = figures(job).written_bytes;

    seam_reset();
    seam_arm(rule);
    put_staged(job, 44 * KIB);
    assert_told(job, 0);
    assert_int_equal(seam_fired(), rule.times != 0 ? rule.times : 1);
    seam_lift();
    assert_int_equal(figures(job).write_error_count, errors);
    assert_int_equal(figures(job).written_bytes, written + 44 * KIB);
    assert_all_whole(job);
}

static void what_goes_wrong_once_is_tried_again(void **state)
{
    struct job *job = start();

    (void)state;
    if (job == NULL)
        return;
    goes_wrong_once(job, (struct seam_rule){.call = SEAM_ring_write});
    goes_wrong_once(job, (struct seam_rule){.call = SEAM_ring_write, .times = 3, .error = EAGAIN});
    goes_wrong_once(job, (struct seam_rule){.call = SEAM_ring_write, .how = SEAM_CUT});
    goes_wrong_once(job, (struct seam_rule){.call = SEAM_ring_write, .times = 3, .how = SEAM_CUT});
    finish(job);
}

static void a_disk_of_larger_blocks_is_no_error(void **state)
{
    struct job *job = start();

    (void)state;
    if (job == NULL)
        return;
    seam_arm((struct seam_rule){.call = SEAM_ring_write, .times = SEAM_FOR_GOOD, .error = EINVAL});
    put_staged(job, 40 * KIB);
    assert_told(job, 0);
    assert_int_equal(figures(job).write_error_count, 0);
    assert_false(figures(job).degraded);
    uint64_t staged_bytes = figures(job).staged_bytes;
    assert_int_equal(put(job, 40 * KIB), 0);
    assert_int_equal(figures(job).staged_bytes, staged_bytes);
    seam_lift();
    assert_all_whole(job);
    finish(job);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        SEAM_TEST("a large item goes into a hole", a_large_item_goes_into_a_hole),
        SEAM_TEST("small items are not staged", small_items_are_not_staged),
        SEAM_TEST("what fits in no hole is not staged", what_fits_in_no_hole_is_not_staged),
        SEAM_TEST("with room in the file nothing is staged",
                  with_room_in_the_file_nothing_is_staged),
        SEAM_TEST("who must not stage does not", who_must_not_stage_does_not),
        SEAM_TEST("its last page ends in zeroes", its_last_page_ends_in_zeroes),
        SEAM_TEST("no more is staged than has a share of memory",
                  no_more_is_staged_than_has_a_share),
        SEAM_TEST("a file limit lowered later is no signal", a_limit_lowered_later_is_no_signal),

        SEAM_TEST("an item is there while it is written", it_is_there_while_it_is_written),
        SEAM_TEST("a view sees an item when it is written", a_view_sees_it_when_it_is_written),
        SEAM_TEST("an item may be freed while it is written", it_may_be_freed_meanwhile),
        SEAM_TEST("its chunk stays while an item is written", its_chunk_stays_meanwhile),
        SEAM_TEST("space that is zeroed meanwhile is waited for",
                  space_that_is_zeroed_is_waited_for),
        SEAM_TEST("a hole beside an item on its way is waited for", a_hole_beside_it_is_waited_for),
        SEAM_TEST("space of an item freed on its way is waited for",
                  space_freed_on_its_way_is_waited_for),
        SEAM_TEST("a region may be closed while an item is written", it_may_be_closed_meanwhile),
        SEAM_TEST("memory may be lowered while an item is written",
                  memory_may_be_lowered_meanwhile),
        SEAM_TEST("without memory it is put as any other", without_memory_it_is_put_as_any_other),

        SEAM_TEST("a refused item is put elsewhere", a_refused_item_is_put_elsewhere),
        SEAM_TEST("without room a refused item stays in its buffer",
                  without_room_it_stays_in_its_buffer),
        SEAM_TEST("a refused item that was freed is gone", a_freed_item_need_not_be_put_anew),
        SEAM_TEST("what goes wrong once is tried again", what_goes_wrong_once_is_tried_again),
        SEAM_TEST("a disk of larger blocks is no error", a_disk_of_larger_blocks_is_no_error),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("region_stage", cases, NULL, NULL);
}
