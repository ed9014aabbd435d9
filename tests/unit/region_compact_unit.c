/* SPDX-License-Identifier: MIT */
/*
 * region_compact_unit - what stays true while items in memory change places
 *
 * Sizes shift: small items, most of them freed at random, then large ones, for
 * which no hole is long enough. What lives is moved to make such holes, within
 * bounds, and nobody who keeps to the header can tell but by the figures.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/region.h>
#include <weir/view.h>

#include "base/random.h"

#include "pattern.h"
#include "program.h"

#include <stdlib.h>

#define KIB         UINT64_C(1024)
#define MIB         (KIB << 10)
#define SMALL_BYTES (2 * KIB)
#define LARGE_BYTES (16 * KIB)
#define LIVE_BYTES  (16 * MIB)
#define SMALL_COUNT (LIVE_BYTES / SMALL_BYTES)
#define LARGE_COUNT (LIVE_BYTES / LARGE_BYTES)
#define MOVE_MAX    (256 * KIB) /* of one call */

struct fixture {
    struct weir_region *region;
    struct weir_slot small[SMALL_COUNT]; /* none: freed */
    struct weir_slot large[LARGE_COUNT];
    uint64_t large_count;
    uint64_t random;
    unsigned char bytes[MIB];
};

static struct fixture fixture;

/* ---- Steps ---------------------------------------------------------------- */

static struct fixture *start(uint64_t resident_bytes_max)
{
    struct fixture *f = &fixture;
    struct weir_region_config config = {
        .directory = harness_tmpdir(),
        .bytes_initial = 2 * MIB,
        .bytes_max = 256 * MIB,
        .resident_bytes_max = resident_bytes_max,
    };

    memset(f, 0, sizeof(*f));
    f->random = 5;
    assert_int_equal(weir_region_open(&config, &f->region), 0);
    return f;
}

static void finish(struct fixture *f)
{
    weir_region_audit(f->region);
    weir_region_close(f->region);
}

static struct weir_region_stats figures(const struct fixture *f)
{
    struct weir_region_stats stats;

    weir_region_stats(f->region, &stats);
    return stats;
}

static struct weir_slot put(struct fixture *f, uint64_t key, size_t bytes)
{
    struct weir_slot slot;

    harness_fill(f->bytes, bytes, key, 0);
    assert_int_equal(
        weir_region_put(f->region, f->bytes, bytes, (struct weir_label){.key = key}, &slot), 0);
    return slot;
}

static void assert_whole(struct fixture *f, struct weir_slot slot, uint64_t key, size_t bytes)
{
    struct weir_slot_info info;
    size_t copied;

    assert_int_equal(weir_region_slot(f->region, slot, &info), 0);
    assert_int_equal(info.label.key, key);
    assert_int_equal(info.bytes, bytes);
    assert_int_equal(weir_region_read(f->region, slot, 0, f->bytes, sizeof(f->bytes), &copied), 0);
    assert_int_equal(copied, bytes);
    assert_int_equal(harness_differs_at(f->bytes, bytes, key, 0), bytes);
}

static const void *address(struct fixture *f, struct weir_slot slot)
{
    const void *data;

    assert_int_equal(weir_region_at(f->region, slot, &data, NULL), 0);
    return data;
}

static void fill_small(struct fixture *f)
{
    for (uint64_t i = 0; i < SMALL_COUNT; i++)
        f->small[i] = put(f, i, SMALL_BYTES);
}

/* Of each five one stays, at random. */
static void free_small(struct fixture *f)
{
    for (uint64_t i = 0; i < SMALL_COUNT; i++) {
        if (weir__random_below(&f->random, 5) == 0)
            continue;
        assert_int_equal(weir_region_free(f->region, f->small[i]), 0);
        f->small[i] = (struct weir_slot){0};
    }
}

static struct fixture *start_with_holes(void)
{
    struct fixture *f = start(UINT64_MAX);

    fill_small(f);
    free_small(f);
    return f;
}

/* With all in memory, what a put moved is no more than it brought. */
static void put_large(struct fixture *f)
{
    uint64_t moved_bytes = figures(f).moved_bytes;

    f->large[f->large_count] = put(f, SMALL_COUNT + f->large_count, LARGE_BYTES);
    f->large_count++;
    moved_bytes = figures(f).moved_bytes - moved_bytes;
    if (figures(f).resident_bytes_max == UINT64_MAX)
        assert_true(moved_bytes <= LARGE_BYTES);
    if (f->large_count % 64 == 0)
        weir_region_audit(f->region);
}

static void fill_large(struct fixture *f)
{
    while (figures(f).live_bytes + LARGE_BYTES <= LIVE_BYTES)
        put_large(f);
}

static void assert_all_whole(struct fixture *f)
{
    for (uint64_t i = 0; i < SMALL_COUNT; i++)
        if (!weir_slot_is_none(f->small[i]))
            assert_whole(f, f->small[i], i, SMALL_BYTES);
    for (uint64_t i = 0; i < f->large_count; i++)
        assert_whole(f, f->large[i], SMALL_COUNT + i, LARGE_BYTES);
}

/* ---- The file stays as it is ---------------------------------------------- */

static void sizes_may_shift(void **state)
{
    struct fixture *f = start_with_holes();

    (void)state;
    fill_large(f);
    struct weir_region_stats stats = figures(f);
    uint64_t large_bytes = f->large_count * LARGE_BYTES;
    print_message("# mark / live %.3f, moved / put %.3f\n",
                  (double)stats.mark_bytes / (double)stats.live_bytes,
                  (double)stats.moved_bytes / (double)large_bytes);
    assert_true(stats.mark_bytes <= LIVE_BYTES / 100 * 108);
    assert_true(stats.moved_bytes > 0);
    assert_true(stats.moved_bytes <= large_bytes / 10 * 3);
    assert_all_whole(f);
    finish(f);
}

/* All sizes at once, born and freed at random: best fit alone comes to 1.1 here. */
static void churn_stays_small(void **state)
{
    static struct weir_slot slots[8192];
    static uint64_t keys[8192];
    struct fixture *f = start(UINT64_MAX);
    uint64_t count = 0;
    uint64_t key = 0;
    uint64_t mark_bytes = 0;

    (void)state;
    for (uint64_t put_bytes = 0; put_bytes < 8 * LIVE_BYTES;) {
        size_t bytes = (size_t)(64 << weir__random_below(&f->random, 10)) +
                       weir__random_below(&f->random, 1000);
        while (count == 8192 || figures(f).live_bytes + bytes > LIVE_BYTES) {
            uint64_t victim = weir__random_below(&f->random, count);
            assert_int_equal(weir_region_free(f->region, slots[victim]), 0);
            slots[victim] = slots[--count];
            keys[victim] = keys[count];
        }
        uint64_t moved_bytes = figures(f).moved_bytes;
        slots[count] = put(f, key, bytes);
        keys[count++] = key++;
        assert_true(figures(f).moved_bytes - moved_bytes <= bytes + 15);
        put_bytes += bytes;
        mark_bytes = figures(f).mark_bytes > mark_bytes ? figures(f).mark_bytes : mark_bytes;
    }

    struct weir_region_stats stats = figures(f);
    print_message("# mark / live %.3f, moved / put %.3f\n",
                  (double)mark_bytes / (double)stats.live_bytes_peak,
                  (double)stats.moved_bytes / (double)stats.put_bytes);
    assert_true(mark_bytes <= LIVE_BYTES / 100 * 108);
    assert_true(stats.moved_bytes <= stats.put_bytes / 10);
    for (uint64_t i = 0; i < count; i++) {
        struct weir_slot_info info;
        assert_int_equal(weir_region_slot(f->region, slots[i], &info), 0);
        assert_whole(f, slots[i], keys[i], info.bytes);
    }
    finish(f);
}

static void with_little_free_nothing_moves(void **state)
{
    struct fixture *f = start(UINT64_MAX);

    (void)state;
    fill_small(f);
    for (uint64_t i = 0; i < SMALL_COUNT; i += 64) {
        assert_int_equal(weir_region_free(f->region, f->small[i]), 0);
        f->small[i] = (struct weir_slot){0};
    }
    for (int i = 0; i < 64; i++)
        put_large(f);
    assert_int_equal(figures(f).moved_bytes, 0);
    assert_all_whole(f);
    finish(f);
}

static void a_very_large_put_moves_nothing(void **state)
{
    struct fixture *f = start_with_holes();
    void *data = test_calloc(1, 4 * MIB);
    struct weir_slot slot;

    (void)state;
    assert_int_equal(
        weir_region_put(f->region, data, 4 * MIB, (struct weir_label){.key = 0}, &slot), 0);
    test_free(data);
    assert_int_equal(figures(f).moved_bytes, 0);
    assert_all_whole(f);
    finish(f);
}

/* A put of any length that moves at all keeps to the bound of one call. */
static void a_put_moves_little(void **state)
{
    struct fixture *f = start_with_holes();
    uint64_t moved_before = 0;

    (void)state;
    for (size_t bytes = LARGE_BYTES; bytes <= MIB; bytes += 24 * KIB) {
        put(f, 1, bytes);
        uint64_t moved_bytes = figures(f).moved_bytes - moved_before;
        assert_true(moved_bytes <= MOVE_MAX);
        assert_true(moved_bytes <= bytes);
        moved_before += moved_bytes;
        weir_region_audit(f->region);
    }
    assert_true(moved_before > 0);
    assert_all_whole(f);
    finish(f);
}

/* ---- What stays where it is ------------------------------------------------ */

static void a_pinned_item_keeps_its_place(void **state)
{
    static const void *pinned[SMALL_COUNT];
    static const void *before[SMALL_COUNT];
    struct fixture *f = start_with_holes();
    uint64_t moved_count = 0;

    (void)state;
    memset(pinned, 0, sizeof(pinned));
    for (uint64_t i = 0; i < SMALL_COUNT; i++) {
        if (weir_slot_is_none(f->small[i]))
            continue;
        before[i] = address(f, f->small[i]);
        if (weir__random_below(&f->random, 8) == 0)
            assert_int_equal(weir_region_pin(f->region, f->small[i], &pinned[i], NULL), 0);
    }
    fill_large(f);
    for (uint64_t i = 0; i < SMALL_COUNT; i++) {
        if (weir_slot_is_none(f->small[i]))
            continue;
        if (pinned[i] == NULL) {
            moved_count += address(f, f->small[i]) != before[i];
            continue;
        }
        assert_ptr_equal(address(f, f->small[i]), pinned[i]);
        assert_int_equal(harness_differs_at(pinned[i], SMALL_BYTES, i, 0), SMALL_BYTES);
        weir_region_unpin(f->region, f->small[i]);
    }
    assert_true(moved_count > 0); /* or there was nothing to see */
    assert_all_whole(f);
    finish(f);
}

/* Where nothing can be moved puts go on, and the file grows. */
static void where_all_is_pinned_the_file_grows(void **state)
{
    struct fixture *f = start_with_holes();
    const void *data;

    (void)state;
    for (uint64_t i = 0; i < SMALL_COUNT; i++)
        if (!weir_slot_is_none(f->small[i]))
            assert_int_equal(weir_region_pin(f->region, f->small[i], &data, NULL), 0);
    fill_large(f);
    assert_int_equal(figures(f).moved_bytes, 0);
    assert_true(figures(f).mark_bytes > LIVE_BYTES / 100 * 120);
    for (uint64_t i = 0; i < SMALL_COUNT; i++)
        if (!weir_slot_is_none(f->small[i]))
            weir_region_unpin(f->region, f->small[i]);
    assert_all_whole(f);
    finish(f);
}

/* Freed and still pinned: the bytes belong to whoever holds the pin. */
static void a_pinned_item_that_was_freed_keeps_its_bytes(void **state)
{
    static const void *pinned[SMALL_COUNT];
    struct fixture *f = start_with_holes();

    (void)state;
    memset(pinned, 0, sizeof(pinned));
    for (uint64_t i = 0; i < SMALL_COUNT; i++) {
        if (weir_slot_is_none(f->small[i]) || weir__random_below(&f->random, 8) != 0)
            continue;
        assert_int_equal(weir_region_pin(f->region, f->small[i], &pinned[i], NULL), 0);
        assert_int_equal(weir_region_free(f->region, f->small[i]), 0);
    }
    fill_large(f);
    assert_true(figures(f).moved_bytes > 0);
    for (uint64_t i = 0; i < SMALL_COUNT; i++) {
        if (pinned[i] == NULL)
            continue;
        assert_int_equal(harness_differs_at(pinned[i], SMALL_BYTES, i, 0), SMALL_BYTES);
        weir_region_unpin(f->region, f->small[i]);
        f->small[i] = (struct weir_slot){0};
    }
    weir_region_audit(f->region);
    assert_all_whole(f);
    finish(f);
}

static void an_item_under_construction_stays_whole(void **state)
{
    static struct weir_slot built[64];
    struct fixture *f = start(UINT64_MAX);
    size_t half = SMALL_BYTES / 2;

    (void)state;
    for (uint64_t i = 0; i < SMALL_COUNT; i++) {
        f->small[i] = put(f, i, SMALL_BYTES);
        if (i % 128 != 0)
            continue;
        harness_fill(f->bytes, half, i + 1000000, 0);
        assert_int_equal(weir_region_alloc(f->region, SMALL_BYTES,
                                           (struct weir_label){.key = i + 1000000},
                                           &built[i / 128]),
                         0);
        assert_int_equal(weir_region_write(f->region, built[i / 128], 0, f->bytes, half), 0);
    }
    free_small(f);
    fill_large(f);
    assert_true(figures(f).moved_bytes > 0);
    for (uint64_t i = 0; i < 64; i++) {
        harness_fill(f->bytes, half, i * 128 + 1000000, half);
        assert_int_equal(weir_region_write(f->region, built[i], half, f->bytes, half), 0);
        assert_int_equal(weir_region_commit(f->region, built[i]), 0);
        assert_whole(f, built[i], i * 128 + 1000000, SMALL_BYTES);
    }
    assert_all_whole(f);
    finish(f);
}

/* The header names the calls that end a loan; no other one moves anything. */
static void to_look_moves_nothing(void **state)
{
    static const void *before[SMALL_COUNT];
    struct fixture *f = start_with_holes();
    struct weir_slot slot = {0};

    (void)state;
    fill_large(f);
    uint64_t moved_bytes = figures(f).moved_bytes;
    assert_true(moved_bytes > 0);
    for (uint64_t i = 0; i < SMALL_COUNT; i++)
        if (!weir_slot_is_none(f->small[i]))
            before[i] = address(f, f->small[i]);
    while (weir_region_next(f->region, &slot)) {
        const void *data;
        assert_int_equal(weir_region_pin(f->region, slot, &data, NULL), 0);
        weir_region_unpin(f->region, slot);
    }
    assert_all_whole(f);
    for (uint64_t i = 0; i < SMALL_COUNT; i++) {
        if (weir_slot_is_none(f->small[i]))
            continue;
        assert_ptr_equal(address(f, f->small[i]), before[i]);
        assert_int_equal(harness_differs_at(before[i], SMALL_BYTES, i, 0), SMALL_BYTES);
    }
    assert_int_equal(figures(f).moved_bytes, moved_bytes);
    finish(f);
}

/* ---- Others ---------------------------------------------------------------- */

static void a_view_finds_what_was_moved(void **state)
{
    struct fixture *f = start_with_holes();
    struct weir_view *view;

    (void)state;
    assert_int_equal(weir_view_open(0, weir_region_fd(f->region), &view), 0);
    fill_large(f);
    assert_true(figures(f).moved_bytes > 0);
    for (uint64_t i = 0; i < SMALL_COUNT; i++) {
        size_t copied;
        if (weir_slot_is_none(f->small[i]))
            continue;
        assert_int_equal(weir_view_read(view, f->small[i], 0, f->bytes, sizeof(f->bytes), &copied),
                         0);
        assert_int_equal(copied, SMALL_BYTES);
        assert_int_equal(harness_differs_at(f->bytes, SMALL_BYTES, i, 0), SMALL_BYTES);
    }
    weir_view_close(view);
    finish(f);
}

/* With little memory what is cold is left to the cleaner, and all of it stays right. */
static void with_little_memory_too(void **state)
{
    struct fixture *f = start(8 * MIB);

    (void)state;
    fill_small(f);
    free_small(f);
    for (uint64_t i = 0; i < LARGE_COUNT / 2; i++) {
        put_large(f);
        assert_true(weir_region_poll(f->region) >= 0);
    }
    assert_all_whole(f);
    finish(f);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        CASE("sizes may shift and the file stays", sizes_may_shift),
        CASE("churn of all sizes stays small", churn_stays_small),
        CASE("with little free nothing is moved", with_little_free_nothing_moves),
        CASE("a very large put moves nothing", a_very_large_put_moves_nothing),
        CASE("a put moves no more than it brings", a_put_moves_little),
        CASE("a pinned item keeps its place", a_pinned_item_keeps_its_place),
        CASE("where all is pinned the file grows", where_all_is_pinned_the_file_grows),
        CASE("a pinned item that was freed keeps its bytes",
             a_pinned_item_that_was_freed_keeps_its_bytes),
        CASE("an item under construction stays whole", an_item_under_construction_stays_whole),
        CASE("to look moves nothing", to_look_moves_nothing),
        CASE("a view finds what was moved", a_view_finds_what_was_moved),
        CASE("with little memory too", with_little_memory_too),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("region_compact", tests, NULL, NULL);
}
