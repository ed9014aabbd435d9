/* SPDX-License-Identifier: MIT */
/*
 * region_place_fault - a disk fails while items are filled in place
 *
 * After a failed write-back the region gives what is in memory fresh pages, for
 * the kernel may have lost what it knew of the old ones. Not so where somebody
 * holds an address: those chunks follow when the last item there is committed or
 * freed. That is seen by the zeroing of their blocks.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/region.h>

#include "base/clock.h"

#include "pattern.h"
#include "program.h"
#include "seam.h"

#include <errno.h>
#include <fcntl.h>

#define KIB         UINT64_C(1024)
#define MIB         (KIB << 10)
#define CHUNK_BYTES (2 * MIB)
#define ITEM_BYTES  (60 * KIB)
#define ITEMS_MAX   400
#define PATIENCE_NS UINT64_C(100000000000) /* of a busy machine */

static uint64_t renewed[64]; /* how often the blocks of a chunk were zeroed */

static bool sees_zeroing(const struct seam_use *use, void *context)
{
    uint64_t chunk = use->offset / CHUNK_BYTES;

    (void)context;
    if ((use->mode & FALLOC_FL_ZERO_RANGE) != 0 && chunk < 64)
        renewed[chunk]++;
    return false;
}

/* Writing fails from now on, or does so no more; zeroing is watched in any case. */
static void writing_fails(bool fails)
{
    seam_lift();
    seam_arm((struct seam_rule){.call = SEAM_sys_fallocate, .matches = sees_zeroing});
    if (fails)
        seam_fail_on(SEAM_ring_sync_range, 1);
}

/* ---- Steps ---------------------------------------------------------------- */

struct job {
    struct weir_region *region;
    struct weir_slot slots[ITEMS_MAX];
    size_t count;
};

struct placed {
    struct weir_slot slot;
    unsigned char *data;
};

static void start(struct job *job)
{
    struct weir_region_config config = {
        .directory = harness_tmpdir(),
        .resident_bytes_max = 16 * MIB,
    };

    memset(job, 0, sizeof(*job));
    writing_fails(false);
    assert_int_equal(weir_region_open(&config, &job->region), 0);
    memset(renewed, 0, sizeof(renewed)); /* open tries the first chunk */
}

static void finish(struct job *job)
{
    weir_region_audit(job->region);
    weir_region_close(job->region);
}

static bool is_degraded(struct job *job)
{
    struct weir_region_stats stats;

    weir_region_audit(job->region);
    weir_region_stats(job->region, &stats);
    return stats.degraded;
}

static int put(struct job *job)
{
    unsigned char *data = test_malloc(ITEM_BYTES);

    assert_true(job->count < ITEMS_MAX);
    harness_fill(data, ITEM_BYTES, job->count, 0);
    int r = weir_region_put(job->region, data, ITEM_BYTES, (struct weir_label){job->count, 1},
                            &job->slots[job->count]);
    test_free(data);
    job->count += r == 0;
    return r;
}

static struct placed place(struct job *job, uint64_t seed)
{
    struct placed placed;
    void *data;

    assert_int_equal(weir_region_alloc_in_place(job->region, ITEM_BYTES, 16,
                                                (struct weir_label){seed, 2}, &placed.slot, &data),
                     0);
    placed.data = data;
    harness_fill(placed.data, ITEM_BYTES / 2, seed, 0);
    return placed;
}

/* The rest comes at the address that was told then. */
static void commit(struct job *job, const struct placed *placed, uint64_t seed)
{
    assert_int_equal(harness_differs_at(placed->data, ITEM_BYTES / 2, seed, 0), ITEM_BYTES / 2);
    harness_fill(placed->data + ITEM_BYTES / 2, ITEM_BYTES / 2, seed, ITEM_BYTES / 2);
    assert_int_equal(weir_region_commit(job->region, placed->slot), 0);
}

static void assert_whole(struct job *job, struct weir_slot slot, uint64_t seed)
{
    unsigned char *data = test_malloc(ITEM_BYTES);
    size_t bytes = 0;

    assert_int_equal(weir_region_read(job->region, slot, 0, data, ITEM_BYTES, &bytes), 0);
    assert_int_equal(bytes, ITEM_BYTES);
    assert_int_equal(harness_differs_at(data, bytes, seed, 0), bytes);
    test_free(data);
}

/* Until it is well again, or for a while; tries have their time. */
static bool heals(struct job *job, uint64_t patience_ns)
{
    for (uint64_t since = weir__clock_ns(); is_degraded(job);) {
        if (weir__clock_ns() - since > patience_ns)
            return false;
        int r = weir_region_wait(job->region, 1000000);
        assert_true(r >= 0 || r == -EIO);
    }
    return true;
}

/* Everything goes cold and is whole. */
static void all_is_whole(struct job *job, const struct placed *placed, uint64_t seed)
{
    struct weir_slot_info info;
    size_t count = job->count;

    do {
        int r = put(job);
        assert_true(r == 0 || r == -EAGAIN);
        assert_true(weir_region_wait(job->region, 1000000) >= 0);
        assert_int_equal(weir_region_slot(job->region, placed->slot, &info), 0);
    } while (info.resident && job->count < ITEMS_MAX);
    assert_false(info.resident);
    assert_whole(job, placed->slot, seed);
    for (size_t i = 0; i < count; i++)
        if (weir_region_slot(job->region, job->slots[i], &info) == 0)
            assert_whole(job, job->slots[i], i);
}

/* ---- Failures ------------------------------------------------------------------- */

static void no_page_changes_under_an_address(void **state)
{
    struct job *job = test_calloc(1, sizeof(*job));
    int r;

    (void)state;
    start(job);
    struct placed placed = place(job, 1000); /* in chunk 0 */
    while (job->count < 40)
        assert_int_equal(put(job), 0);
    writing_fails(true);
    while ((r = put(job)) == 0)
        ;
    assert_int_equal(r, -EIO);
    assert_true(is_degraded(job));
    assert_int_equal(renewed[0], 0);
    uint64_t others = 0;
    for (size_t i = 1; i < 64; i++)
        others += renewed[i];
    assert_true(others > 0);

    commit(job, &placed, 1000);
    assert_int_equal(renewed[0], 1); /* it follows */
    writing_fails(false);
    assert_true(heals(job, PATIENCE_NS));
    all_is_whole(job, &placed, 1000);
    finish(job);
    test_free(job);
}

/* It has a hole, and somebody fills it in place: until then there is nothing to be written. */
static void what_is_to_be_written_again_waits(void **state)
{
    struct job *job = test_calloc(1, sizeof(*job));
    int r;

    (void)state;
    start(job);
    writing_fails(true);
    while ((r = put(job)) == 0)
        ;
    assert_int_equal(r, -EIO);
    assert_true(is_degraded(job));
    assert_int_equal(weir_region_free(job->region, job->slots[2]), 0); /* in chunk 0, the oldest */
    struct placed placed = place(job, 1001);
    uint64_t before = renewed[0];
    assert_true(before > 0);

    writing_fails(false);
    assert_false(heals(job, UINT64_C(500000000)));
    assert_int_equal(renewed[0], before);
    commit(job, &placed, 1001);
    assert_true(heals(job, PATIENCE_NS));
    all_is_whole(job, &placed, 1001);
    finish(job);
    test_free(job);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        SEAM_TEST("no page changes under an address", no_page_changes_under_an_address),
        SEAM_TEST("what is to be written again waits for who fills it",
                  what_is_to_be_written_again_waits),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("region_place", cases, NULL, NULL);
}
