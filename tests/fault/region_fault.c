/* SPDX-License-Identifier: MIT */
/*
 * region_fault - a region to which memory, zeroing or single reads are refused
 *
 * The N-th allocation fails, or one kind of request to the kernel does. What was
 * refused is answered by its error code and has changed nothing; what was there
 * before is whole; and nothing else is harmed, nor waits for ever.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/region.h>

#include "base/clock.h"

#include "pattern.h"
#include "seam.h"
#include "tmpdir.h"

#include <errno.h>
#include <fcntl.h>

#define KIB       UINT64_C(1024)
#define MIB       (KIB << 10)
#define ITEMS_MAX 10240

static bool is_zeroing(const struct seam_use *use, void *context)
{
    (void)context;
    return (use->mode & FALLOC_FL_ZERO_RANGE) != 0;
}

/* The tables grow by less. */
static bool is_growing(const struct seam_use *use, void *context)
{
    (void)context;
    return use->mode == 0 && use->bytes % (2 * MIB) == 0;
}

static bool covers(const struct seam_use *use, void *context)
{
    uint64_t offset = *(const uint64_t *)context;

    return offset >= use->offset && offset < use->offset + use->bytes;
}

/* ---- Steps ---------------------------------------------------------------- */

struct job {
    struct weir_region *region;
    int64_t charged;
    struct weir_slot slots[ITEMS_MAX];
    size_t count;
};

static void books_charge(void *context, int64_t bytes)
{
    *(int64_t *)context += bytes;
}

static struct job *start(struct weir_region_config config)
{
    struct job *job = calloc(1, sizeof(*job));

    config.directory = config.directory != NULL ? config.directory : harness_tmpdir();
    config.books = (struct weir_books){books_charge, &job->charged};
    assert_int_equal(weir_region_open(&config, &job->region), 0);
    return job;
}

static void finish(struct job *job)
{
    weir_region_audit(job->region);
    weir_region_close(job->region);
    assert_int_equal(job->charged, 0);
    free(job);
}

static int put(struct job *job, size_t bytes)
{
    unsigned char *data = malloc(bytes + 1);

    harness_fill(data, bytes, job->count, 0);
    int r = weir_region_put(job->region, data, bytes, (struct weir_label){job->count, 1},
                            &job->slots[job->count]);
    free(data);
    job->count += r == 0;
    assert_true(job->count < ITEMS_MAX);
    return r;
}

static struct weir_region_stats figures(struct job *job)
{
    struct weir_region_stats stats;

    weir_region_stats(job->region, &stats);
    return stats;
}

static bool is_resident(struct job *job, size_t i)
{
    struct weir_slot_info info;

    assert_int_equal(weir_region_slot(job->region, job->slots[i], &info), 0);
    return info.resident;
}

static void assert_whole(struct job *job, size_t i, size_t bytes)
{
    unsigned char *data = malloc(bytes + 1);
    size_t seen = 0;

    assert_int_equal(weir_region_read(job->region, job->slots[i], 0, data, bytes + 1, &seen), 0);
    assert_int_equal(seen, bytes);
    assert_int_equal(harness_differs_at(data, bytes, i, 0), bytes);
    free(data);
}

/* ---- Memory --------------------------------------------------------------- */

static void an_alloc_without_memory(void **state)
{
    struct job *job = start((struct weir_region_config){.bytes_max = 16 * MIB});
    bool fired = true;

    (void)state;
    for (uint64_t at = 1; fired; at++) {
        struct weir_region_stats before = figures(job);
        struct weir_slot slot = {4711, 4712};
        seam_reset();
        seam_fail(SEAM_ANY_HEAP, at);
        int r = weir_region_alloc(job->region, 1000, (struct weir_label){1, 1}, &slot);
        fired = seam_fired() > 0;
        seam_lift();
        weir_region_audit(job->region);
        if (r == 0) {
            assert_false(fired);
            assert_int_equal(weir_region_free(job->region, slot), 0);
            continue;
        }
        struct weir_region_stats after = figures(job);
        assert_int_equal(r, -ENOMEM);
        assert_int_equal(slot.index, 4711);
        assert_int_equal(after.slot_count, before.slot_count);
        assert_int_equal(after.live_bytes, before.live_bytes);
        assert_int_equal(after.put_count, before.put_count);
        assert_int_equal(after.put_bytes, before.put_bytes);
        assert_int_equal(after.metadata_bytes, before.metadata_bytes);
    }
    finish(job);
}

/* ---- Zeroing -------------------------------------------------------------- */

static void emptied_chunks_that_cannot_be_zeroed(void **state)
{
    struct job *job =
        start((struct weir_region_config){.bytes_max = 64 * MIB, .resident_bytes_max = 16 * MIB});

    (void)state;
    seam_arm((struct seam_rule){.call = SEAM_sys_fallocate,
                                .times = SEAM_FOR_GOOD,
                                .error = EOPNOTSUPP,
                                .matches = is_zeroing});
    for (int round = 0; round < 4; round++) {
        /* Four chunks in memory, more than is left dirty, none of them full. */
        job->count = 0;
        for (int i = 0; i < 96; i++)
            assert_int_equal(put(job, 64 * KIB), 0);
        for (size_t i = 0; i < job->count; i += 4)
            assert_int_equal(weir_region_free(job->region, job->slots[i]), 0);
        for (int i = 0; i < 10; i++)
            assert_int_equal(put(job, 100 * KIB), 0);
        for (size_t i = 0; i < job->count; i++)
            weir_region_free(job->region, job->slots[i]);
        assert_int_equal(figures(job).slot_count, 0);
        for (int i = 0; i < 10; i++)
            assert_true(weir_region_wait(job->region, 1000000) >= 0);
        weir_region_audit(job->region);
    }
    seam_lift();
    finish(job);
}

/* ---- Writing -------------------------------------------------------------- */

static void a_suspect_chunk_at_the_mark(void **state)
{
    struct job *job =
        start((struct weir_region_config){.bytes_max = 64 * MIB, .resident_bytes_max = 8 * MIB});
    int r;

    (void)state;
    if (!figures(job).bounded) {
        finish(job);
        return; /* nothing goes cold here */
    }
    seam_fail_on(SEAM_ring_sync_range, 1);
    seam_fail_on(SEAM_ring_fdatasync, 1);
    while ((r = put(job, 60 * KIB)) == 0)
        assert_true(job->count < 200);
    assert_int_equal(r, -EIO);
    assert_true(figures(job).degraded);
    for (size_t i = 10; i < job->count; i++) /* what is left ends inside the chunk that failed */
        assert_int_equal(weir_region_free(job->region, job->slots[i]), 0);
    job->count = 10;
    weir_region_audit(job->region);

    seam_lift();
    for (uint64_t since = weir__clock_ns(); figures(job).degraded;) {
        assert_true(weir__clock_ns() - since < UINT64_C(10000000000)); /* tries have their time */
        r = weir_region_wait(job->region, 1000000);
        assert_true(r >= 0 || r == -EIO);
    }
    weir_region_audit(job->region);
    while (job->count < 500) {
        r = put(job, 60 * KIB);
        assert_true(r == 0 || r == -EAGAIN);
        assert_true(weir_region_wait(job->region, 1000000) >= 0);
    }
    for (size_t i = 0; i < job->count; i++)
        assert_whole(job, i, 60 * KIB);
    finish(job);
}

/* ---- Reads ---------------------------------------------------------------- */

struct answers {
    size_t count;
    size_t errors;
    struct weir_slot bad;
};

static void answered(void *context, struct weir_slot slot, int result)
{
    struct answers *answers = context;

    answers->count++;
    if (result == 0)
        return;
    answers->errors++;
    answers->bad = slot;
}

static void one_bad_place_harms_no_neighbour(void **state)
{
    struct job *job = start((struct weir_region_config){.resident_bytes_max = 16 * MIB});
    struct answers answers = {0};
    uint64_t bad_offset = 20 * 16 * KIB + 100; /* items lie one after the other */

    (void)state;
    if (!figures(job).bounded) {
        finish(job);
        return; /* nothing goes cold here */
    }
    while (job->count < 64 || is_resident(job, 63))
        assert_int_equal(put(job, 16 * KIB), 0);
    seam_arm((struct seam_rule){
        .call = SEAM_ring_read, .times = SEAM_FOR_GOOD, .matches = covers, .context = &bad_offset});
    assert_int_equal(weir_region_fetch(job->region, job->slots, 64, answered, &answers), 0);
    for (int tries = 0; answers.count < 64; tries++) {
        assert_true(tries < 10000);
        assert_true(weir_region_wait(job->region, 10000000) >= 0);
    }
    seam_lift();
    assert_int_equal(answers.errors, 1);
    assert_int_equal(answers.bad.index, job->slots[20].index);
    for (size_t i = 0; i < 64; i++)
        assert_whole(job, i, 16 * KIB);
    finish(job);
}

/* ---- Filling -------------------------------------------------------------- */

static void a_chunk_that_cannot_come_back(void **state)
{
    struct job *job =
        start((struct weir_region_config){.bytes_max = 40 * MIB, .resident_bytes_max = 8 * MIB});
    int r;

    (void)state;
    if (!figures(job).bounded) {
        finish(job);
        return; /* nothing goes cold here */
    }
    /* Too large to be moved, so that holes are only filled where they are. */
    while ((r = put(job, 600 * KIB)) == 0)
        ;
    assert_int_equal(r, -EDQUOT);
    for (size_t i = 0; i < job->count; i += 2)
        assert_int_equal(weir_region_free(job->region, job->slots[i]), 0);
    seam_arm(
        (struct seam_rule){.call = SEAM_ring_madvise, .times = SEAM_FOR_GOOD, .error = EINVAL});
    for (int i = 0; i < 1000 && (r = put(job, 600 * KIB)) != -EDQUOT; i++) {
        int p = weir_region_wait(job->region, 1000000);
        assert_true(p >= 0 || p == -EINVAL || p == -EIO);
    }
    assert_int_equal(r, -EDQUOT); /* and not -EAGAIN for ever */
    seam_lift();
    weir_region_audit(job->region);
    for (size_t i = 1; i < 40; i += 2)
        assert_whole(job, i, 600 * KIB);
    finish(job);
}

/* ---- Cleaning ------------------------------------------------------------- */

/* Each item that must move asks for more file; to be told once that there is none is enough. */
static void cleaning_on_a_full_disk(void **state)
{
    struct job *job = start((struct weir_region_config){
        .bytes_initial = 4 * MIB,
        .bytes_max = 64 * MIB,
        .resident_bytes_max = 8 * MIB,
    });
    int r;

    (void)state;
    if (!figures(job).bounded) {
        finish(job);
        return; /* nothing goes cold here */
    }
    while (job->count < 6000)
        assert_int_equal(put(job, 4000), 0);
    seam_arm((struct seam_rule){
        .call = SEAM_sys_fallocate, .times = SEAM_FOR_GOOD, .matches = is_growing});
    while ((r = put(job, 4000)) == 0)
        ;
    assert_int_equal(r, -ENOSPC);
    uint64_t before = figures(job).growth_error_count;
    for (size_t i = 0; is_resident(job, i) == false; i++)
        if (i % 3 != 0)
            assert_int_equal(weir_region_free(job->region, job->slots[i]), 0);
    for (int i = 0; i < 200; i++)
        assert_true(weir_region_wait(job->region, 1000000) >= 0);
    seam_lift();
    weir_region_audit(job->region);
    print_message("# %llu growths failed, %llu bytes moved\n",
                  (unsigned long long)(figures(job).growth_error_count - before),
                  (unsigned long long)figures(job).moved_bytes);
    assert_true(figures(job).growth_error_count - before <= 64);
    finish(job);
}

static void fetch_answered(void *context, struct weir_slot slot, int result)
{
    (void)slot;
    assert_int_equal(result, 0);
    *(bool *)context = true;
}

/* What the cleaner has fetched and cannot store is in nobody's way. */
static void a_fetch_beside_a_cleaner_without_room(void **state)
{
    struct job *job =
        start((struct weir_region_config){.bytes_max = 64 * MIB, .resident_bytes_max = 8 * MIB});
    struct weir_slot large;
    struct weir_slot pinned[64];
    const void *data;
    size_t pin_count = 0;
    bool is_answered = false;

    (void)state;
    if (!figures(job).bounded) {
        finish(job);
        return; /* nothing goes cold here */
    }
    uint64_t bytes = figures(job).fetch_bytes_max;
    unsigned char *item = calloc(1, bytes);
    assert_int_equal(weir_region_put(job->region, item, bytes, (struct weir_label){0, 2}, &large),
                     0);
    while (job->count < 7400)
        assert_int_equal(put(job, 4000), 0);
    for (size_t i = 7399; i > 0 && is_resident(job, i) && pin_count < 64; i -= 100) {
        assert_int_equal(weir_region_pin(job->region, job->slots[i], &data, NULL), 0);
        pinned[pin_count++] = job->slots[i];
    }
    while (put(job, 4000) == 0) { /* until nothing is left to store to */
        struct weir_slot newest = job->slots[job->count - 1];
        if (job->count % 100 != 0)
            continue;
        assert_true(pin_count < 64);
        assert_int_equal(weir_region_pin(job->region, newest, &data, NULL), 0);
        pinned[pin_count++] = newest;
    }
    for (size_t i = 0; is_resident(job, i) == false; i++)
        if (i % 3 != 0)
            assert_int_equal(weir_region_free(job->region, job->slots[i]), 0);
    for (int i = 0; i < 20; i++)
        assert_true(weir_region_wait(job->region, 1000000) >= 0);
    assert_int_equal(weir_region_fetch(job->region, &large, 1, fetch_answered, &is_answered), 0);
    for (int tries = 0; tries < 1000 && !is_answered; tries++)
        assert_true(weir_region_wait(job->region, 1000000) >= 0);
    assert_true(is_answered);
    while (pin_count > 0)
        weir_region_unpin(job->region, pinned[--pin_count]);
    free(item);
    finish(job);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        SEAM_TEST("an alloc without memory has changed nothing", an_alloc_without_memory),
        SEAM_TEST("emptied chunks that cannot be zeroed are used again",
                  emptied_chunks_that_cannot_be_zeroed),
        SEAM_TEST("a suspect chunk at the mark is written too", a_suspect_chunk_at_the_mark),
        SEAM_TEST("one bad place on the disk harms no neighbour", one_bad_place_harms_no_neighbour),
        SEAM_TEST("a chunk that cannot be brought back is not asked for for ever",
                  a_chunk_that_cannot_come_back),
        SEAM_TEST("on a full disk the cleaner asks once for more of it", cleaning_on_a_full_disk),
        SEAM_TEST("a fetch comes beside a cleaner without room",
                  a_fetch_beside_a_cleaner_without_room),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    if (harness_tmpdir() == NULL) {
        printf("1..0 # SKIP there is no disk to write to\n");
        return 0;
    }
    return cmocka_run_group_tests_name("region", cases, NULL, NULL);
}
