/* SPDX-License-Identifier: MIT */
/*
 * region_place_unit - items that are filled in place, and where an item lies
 *
 * What include/weir/region.h says of weir_region_alloc_in_place(), and of
 * alignment: in the mapping, in fetch buffers, in the file, and after the
 * cleaner has moved things. What cannot be seen from within is asked of a view
 * of the same region.
 *
 *      region_place_unit [--synchronous] [pattern]
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/region.h>
#include <weir/view.h>

#include "base/ring.h"

#include "pattern.h"
#include "process.h"
#include "program.h"

#include <errno.h>

#define KIB          UINT64_C(1024)
#define MIB          (KIB << 10)
#define CHUNK_BYTES  (2 * MIB)
#define RESIDENT_MIN (8 * MIB)
#define FETCH_MAX    1024
#define TRIES_MAX    100000
#define OWNER_FILLER 9
#define OWNER_PLACED 5

struct fixture {
    struct weir_region *region;
    struct weir_view *view;
    int64_t charged;
    uint64_t seed; /* of the next filler */
};

/* An item under construction in place. */
struct placed {
    struct weir_slot slot;
    unsigned char *data;
    uint64_t seed;
    size_t bytes;
};

/* ---- Steps ---------------------------------------------------------------- */

static void books_charge(void *context, int64_t bytes)
{
    *(int64_t *)context += bytes;
}

static void start(struct fixture *f, struct weir_region_config config)
{
    *f = (struct fixture){.seed = UINT64_C(1) << 40};
    config.directory = harness_tmpdir();
    config.books = (struct weir_books){books_charge, &f->charged};
    assert_int_equal(weir_region_open(&config, &f->region), 0);
    assert_int_equal(weir_view_open(0, weir_region_fd(f->region), &f->view), 0);
}

static struct weir_region_stats figures(struct fixture *f)
{
    struct weir_region_stats stats;

    weir_region_audit(f->region);
    weir_region_stats(f->region, &stats);
    assert_int_equal((int64_t)stats.metadata_bytes, f->charged);
    assert_true(!stats.bounded || stats.resident_bytes <= stats.resident_bytes_max);
    return stats;
}

static void finish(struct fixture *f)
{
    figures(f);
    weir_view_close(f->view);
    weir_region_close(f->region);
    assert_int_equal(f->charged, 0);
}

/* False where nothing ever goes cold. */
static bool is_bounded(struct fixture *f)
{
    if (figures(f).bounded)
        return true;
    printf("# passed over: this file system keeps pages in memory\n");
    finish(f);
    return false;
}

static int try_place(struct fixture *f, uint64_t seed, size_t bytes, size_t alignment,
                     struct placed *ret_placed)
{
    struct weir_slot slot = {4711, 4712};
    void *data = f;
    int r = weir_region_alloc_in_place(f->region, bytes, alignment,
                                       (struct weir_label){seed, OWNER_PLACED}, &slot, &data);

    if (r < 0) {
        assert_ptr_equal(data, f);
        assert_int_equal(slot.index, 4711);
        return r;
    }
    assert_non_null(data);
    assert_false(weir_slot_is_none(slot));
    assert_int_equal((uintptr_t)data % (alignment > 0 ? alignment : 16), 0);
    memset(data, 0xee, bytes);
    *ret_placed = (struct placed){slot, data, seed, bytes};
    return r;
}

static struct placed place(struct fixture *f, uint64_t seed, size_t bytes, size_t alignment)
{
    struct placed placed = {.data = NULL};

    assert_int_equal(try_place(f, seed, bytes, alignment, &placed), 0);
    return placed;
}

static void fill(const struct placed *placed)
{
    harness_fill(placed->data, placed->bytes, placed->seed, 0);
}

static void commit(struct fixture *f, const struct placed *placed)
{
    assert_int_equal(weir_region_commit(f->region, placed->slot), 0);
}

static struct weir_slot place_whole(struct fixture *f, uint64_t seed, size_t bytes,
                                    size_t alignment)
{
    struct placed placed = place(f, seed, bytes, alignment);

    fill(&placed);
    commit(f, &placed);
    return placed.slot;
}

static int try_put(struct fixture *f, size_t bytes, struct weir_slot *ret_slot)
{
    unsigned char *data = test_malloc(bytes + 1);
    uint64_t seed = f->seed++;

    harness_fill(data, bytes, seed, 0);
    int r =
        weir_region_put(f->region, data, bytes, (struct weir_label){seed, OWNER_FILLER}, ret_slot);
    test_free(data);
    return r;
}

static struct weir_slot_info info_of(struct fixture *f, struct weir_slot slot)
{
    struct weir_slot_info info;

    assert_int_equal(weir_region_slot(f->region, slot, &info), 0);
    return info;
}

/* The item is in memory, whole, and where it should be. */
static const void *assert_here(struct fixture *f, struct weir_slot slot, size_t alignment)
{
    const void *data;
    size_t bytes;

    assert_int_equal(weir_region_at(f->region, slot, &data, &bytes), 0);
    assert_int_equal((uintptr_t)data % (alignment > 0 ? alignment : 16), 0);
    assert_int_equal(bytes, info_of(f, slot).bytes);
    assert_int_equal(harness_differs_at(data, bytes, info_of(f, slot).label.key, 0), bytes);
    return data;
}

/* What a view sees of it. */
static struct weir_view_extent extent_of(struct fixture *f, struct weir_slot slot)
{
    struct weir_view_extent extent;

    assert_int_equal(weir_view_extent(f->view, slot.index, &extent), 0);
    assert_int_equal(extent.slot.generation, slot.generation);
    assert_int_equal(extent.offset % extent.alignment, 0);
    return extent;
}

static enum weir_chunk_state chunk_state_of(struct fixture *f, struct weir_slot slot)
{
    struct weir_view_chunk chunk;

    assert_int_equal(weir_view_chunk(f->view, extent_of(f, slot).offset / WEIR_CHUNK_BYTES, &chunk),
                     0);
    return chunk.state;
}

/* Other items come and go out to the disk: more than there is memory for. */
static void flood(struct fixture *f)
{
    uint64_t written = figures(f).written_bytes;
    uint64_t resident = figures(f).resident_bytes_max;

    for (int i = 0; figures(f).written_bytes < written + resident; i++) {
        struct weir_slot slot;
        assert_true(i < 10000);
        assert_int_equal(try_put(f, 64 * KIB, &slot), 0);
        assert_true(weir_region_poll(f->region) >= 0);
    }
}

static void make_cold(struct fixture *f, struct weir_slot slot)
{
    for (int i = 0; info_of(f, slot).resident; i++) {
        struct weir_slot filler;
        assert_true(i < 10000);
        assert_int_equal(try_put(f, 64 * KIB, &filler), 0);
    }
}

struct fetched {
    struct fixture *f;
    size_t called;
    size_t alignment;
    int result; /* what is expected */
};

static void fetch_done(void *context, struct weir_slot slot, int result)
{
    struct fetched *fetched = context;

    assert_int_equal(result, fetched->result);
    if (result == 0)
        assert_here(fetched->f, slot, fetched->alignment);
    fetched->called++;
}

static void fetch_all(struct fixture *f, const struct weir_slot *slots, size_t count,
                      size_t alignment, int result)
{
    struct fetched fetched = {.f = f, .alignment = alignment, .result = result};

    for (size_t i = 0; i < count; i += FETCH_MAX) {
        size_t part = count - i < FETCH_MAX ? count - i : FETCH_MAX;
        assert_int_equal(weir_region_fetch(f->region, slots + i, part, fetch_done, &fetched), 0);
        for (int tries = 0; fetched.called < i + part; tries++) {
            assert_true(tries < TRIES_MAX);
            assert_true(weir_region_wait(f->region, UINT64_C(100000000)) >= 0);
        }
    }
}

/* ---- In place ---------------------------------------------------------------- */

static void an_item_is_filled_in_place(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){0});
    struct placed placed = place(&f, 1, 100001, 0);
    assert_false(info_of(&f, placed.slot).committed);
    assert_int_equal(figures(&f).live_bytes, 100001);
    fill(&placed);
    commit(&f, &placed);
    assert_true(info_of(&f, placed.slot).committed);
    assert_ptr_equal(assert_here(&f, placed.slot, 0), placed.data); /* no copy */
    assert_int_equal(extent_of(&f, placed.slot).alignment, 16);
    assert_int_equal(weir_region_commit(f.region, placed.slot), -ESTALE);
    assert_int_equal(weir_region_free(f.region, placed.slot), 0);
    assert_int_equal(weir_region_commit(f.region, placed.slot), -ESTALE);
    finish(&f);
}

static void what_is_in_place_is_only_committed_or_freed(void **state)
{
    struct fixture f;
    const void *data;
    size_t bytes;
    char buffer[64];
    struct weir_slot at = {0, 0};

    (void)state;
    start(&f, (struct weir_region_config){0});
    struct placed placed = place(&f, 1, 1000, 64);
    assert_int_equal(weir_region_write(f.region, placed.slot, 0, "x", 1), -EINVAL);
    assert_int_equal(weir_region_write(f.region, placed.slot, 0, "x", 0), -EINVAL);
    assert_int_equal(weir_region_at(f.region, placed.slot, &data, &bytes), -ESTALE);
    assert_int_equal(weir_region_pin(f.region, placed.slot, &data, &bytes), -ESTALE);
    assert_int_equal(weir_region_read(f.region, placed.slot, 0, buffer, 64, &bytes), -ESTALE);
    fetch_all(&f, &placed.slot, 1, 0, -ESTALE);
    assert_false(info_of(&f, placed.slot).resident);
    assert_int_equal(info_of(&f, placed.slot).label.key, 1);
    assert_int_equal(info_of(&f, placed.slot).label.owner, OWNER_PLACED);
    assert_true(weir_region_next(f.region, &at));
    assert_int_equal(at.index, placed.slot.index);

    /* A view knows of it and has none of its bytes. */
    assert_false(extent_of(&f, placed.slot).committed);
    assert_int_equal(extent_of(&f, placed.slot).alignment, 64);
    assert_int_equal(extent_of(&f, placed.slot).bytes, 1000);
    assert_int_equal(weir_view_read(f.view, placed.slot, 0, buffer, 64, &bytes), -EAGAIN);

    fill(&placed);
    commit(&f, &placed);
    assert_true(extent_of(&f, placed.slot).committed);
    assert_int_equal(weir_view_read(f.view, placed.slot, 0, buffer, 64, &bytes), 0);
    assert_int_equal(harness_differs_at(buffer, 64, 1, 0), 64);
    finish(&f);
}

static void wrong_arguments_change_nothing(void **state)
{
    static const size_t wrong[] = {3, 17, 4095, 4097, 8192, SIZE_MAX, (size_t)1 << 63};
    struct fixture f;
    struct placed placed;

    (void)state;
    start(&f, (struct weir_region_config){0});
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        assert_int_equal(try_place(&f, 1, 10, wrong[i], &placed), -EINVAL);
    uint64_t most = figures(&f).put_bytes_max;
    assert_int_equal(try_place(&f, 1, most + 1, 0, &placed), -EFBIG);
    assert_int_equal(try_place(&f, 1, SIZE_MAX, 4096, &placed), -EFBIG);
    assert_int_equal(figures(&f).slot_count, 0);
    assert_int_equal(figures(&f).mark_bytes, 0);

    placed = place(&f, 1, most, 4096);
    fill(&placed);
    commit(&f, &placed);
    assert_here(&f, placed.slot, 4096);
    finish(&f);
}

static void the_address_is_good_whatever_is_called(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    /* Small enough for the rest of its chunk to be filled by others. */
    struct placed placed = place(&f, 7, 100 * KIB + 5, 512);
    harness_fill(placed.data, 1000, 7, 0);
    for (int i = 0; i < 3; i++) {
        flood(&f);
        assert_int_equal(chunk_state_of(&f, placed.slot), WEIR_CHUNK_DIRTY);
        assert_int_equal(harness_differs_at(placed.data, 1000, 7, 0), 1000);
        assert_int_equal(figures(&f).pinned_bytes, placed.bytes);
    }
    assert_false(extent_of(&f, placed.slot).summed);
    harness_fill(placed.data + 1000, placed.bytes - 1000, 7, 1000);
    commit(&f, &placed);
    assert_int_equal(figures(&f).pinned_bytes, 0);
    assert_ptr_equal(assert_here(&f, placed.slot, 512), placed.data);

    /* From now on it is like any other: it goes, with a checksum, and comes back. */
    make_cold(&f, placed.slot);
    assert_true(extent_of(&f, placed.slot).summed);
    assert_int_equal(weir_view_verify(f.view, placed.slot), 0);
    fetch_all(&f, &placed.slot, 1, 512, 0);
    finish(&f);
}

static void two_items_in_one_chunk(void **state)
{
    struct fixture f;

    (void)state;
    for (int order = 0; order < 4; order++) {
        start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
        if (!is_bounded(&f))
            return;
        struct placed items[2] = {place(&f, 1, 50 * KIB, 4096), place(&f, 2, 50 * KIB, 16)};
        struct placed *first = &items[order % 2];
        struct placed *second = &items[1 - order % 2];
        assert_int_equal(extent_of(&f, items[0].slot).offset / CHUNK_BYTES,
                         extent_of(&f, items[1].slot).offset / CHUNK_BYTES);
        fill(first);
        if (order < 2)
            commit(&f, first);
        else
            assert_int_equal(weir_region_free(f.region, first->slot), 0);
        flood(&f);
        assert_int_equal(chunk_state_of(&f, second->slot), WEIR_CHUNK_DIRTY);
        fill(second);
        commit(&f, second);
        make_cold(&f, second->slot);
        fetch_all(&f, &second->slot, 1, 16, 0);
        if (order < 2)
            fetch_all(&f, &first->slot, 1, 16, 0);
        else
            assert_int_equal(weir_region_free(f.region, first->slot), -ESTALE);
        finish(&f);
    }
}

/* An item over a border holds both chunks, one that touches it only its own. */
static void an_item_in_two_chunks_holds_both(void **state)
{
    struct fixture f;
    struct weir_slot slot;
    struct weir_view_chunk chunk;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    assert_int_equal(try_put(&f, 1300 * KIB, &slot), 0);
    struct placed placed = place(&f, 3, 1400 * KIB, 4096);
    assert_int_equal(extent_of(&f, placed.slot).offset, 1300 * KIB);
    flood(&f);
    for (uint64_t i = 0; i < 2; i++) {
        assert_int_equal(weir_view_chunk(f.view, i, &chunk), 0);
        assert_int_equal(chunk.state, WEIR_CHUNK_DIRTY);
        assert_int_equal(chunk.pinned_count, 1);
    }
    fill(&placed);
    commit(&f, &placed);
    for (uint64_t i = 0; i < 2; i++) {
        assert_int_equal(weir_view_chunk(f.view, i, &chunk), 0);
        assert_int_equal(chunk.pinned_count, 0);
    }
    make_cold(&f, placed.slot);
    assert_int_equal(weir_view_verify(f.view, placed.slot), 0);
    finish(&f);
}

/* Who holds too much hears of it at once; the rest of the region goes on. */
static void memory_held_in_place_is_bounded(void **state)
{
    struct fixture f;
    struct placed items[256];
    struct placed more;
    size_t count = 0;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = 24 * MIB});
    if (!is_bounded(&f))
        return;
    int r = 0;
    while (count < 256 && (r = try_place(&f, count, 700 * KIB, 64, &items[count])) == 0)
        count++;
    assert_int_equal(r, -EAGAIN);
    assert_true(count * 700 * KIB >= 8 * MIB);
    assert_true(count * 700 * KIB <= 12 * MIB);
    assert_int_equal(figures(&f).pinned_bytes, count * 700 * KIB);
    flood(&f); /* for others there is the other half */
    flood(&f);
    assert_int_equal(try_place(&f, 1, 700 * KIB, 64, &more), -EAGAIN);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(chunk_state_of(&f, items[i].slot), WEIR_CHUNK_DIRTY);

    /* Every second is committed, the others are freed, and all begins again. */
    for (size_t i = 0; i < count; i++) {
        fill(&items[i]);
        if (i % 2 == 0)
            commit(&f, &items[i]);
        else
            assert_int_equal(weir_region_free(f.region, items[i].slot), 0);
    }
    assert_int_equal(figures(&f).pinned_bytes, 0);
    more = place(&f, 1000, 700 * KIB, 64);
    assert_int_equal(weir_region_free(f.region, more.slot), 0);
    flood(&f);
    for (size_t i = 0; i < count; i += 2)
        fetch_all(&f, &items[i].slot, 1, 64, 0);
    finish(&f);
}

/* The smallest memory, as much of it as may be is in place, and pins take the rest. */
static void a_put_says_eagain_and_goes_on_after_commit(void **state)
{
    struct fixture f;
    struct placed items[2];
    struct placed more;
    struct weir_slot pinned[8];
    size_t pinned_count = 0;
    struct weir_slot slot;
    const void *data;
    int r;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    uint64_t most = figures(&f).put_bytes_max;
    items[0] = place(&f, 1, most, 4096);
    items[1] = place(&f, 2, most, 4096);
    assert_int_equal(try_place(&f, 3, most, 0, &more), -EAGAIN);
    while ((r = try_put(&f, most, &slot)) == 0) {
        assert_true(pinned_count < 8);
        assert_int_equal(weir_region_pin(f.region, slot, &data, NULL), 0);
        pinned[pinned_count++] = slot;
    }
    assert_int_equal(r, -EAGAIN);
    assert_true(pinned_count > 0);
    assert_int_equal(try_put(&f, most, &slot), -EAGAIN); /* and again: it comes back each time */
    fill(&items[0]);
    commit(&f, &items[0]);
    assert_int_equal(weir_region_free(f.region, items[1].slot), 0);
    assert_int_equal(try_put(&f, most, &slot), 0);
    while (pinned_count > 0)
        weir_region_unpin(f.region, pinned[--pinned_count]);
    finish(&f);
}

static void on_a_shared_ring_nothing_waits(void **state)
{
    struct fixture f;
    struct placed items[64];
    struct weir_ring *ring;
    size_t count = 0;
    int r = 0;

    (void)state;
    assert_int_equal(weir__ring_open(256, true, &ring), 0);
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN, .ring = ring});
    while (count < 64 && (r = try_place(&f, count, 512 * KIB, 4096, &items[count])) == 0)
        count++;
    assert_int_equal(r, -EAGAIN);
    assert_true(count >= 4);
    while (count-- > 0) {
        fill(&items[count]);
        commit(&f, &items[count]);
    }
    for (int tries = 0; (r = try_place(&f, 9, 512 * KIB, 4096, &items[0])) == -EAGAIN; tries++) {
        assert_true(tries < TRIES_MAX);
        assert_true(weir__ring_wait(ring, 1000000) >= 0);
        assert_true(weir_region_poll(f.region) >= 0);
    }
    assert_int_equal(r, 0);
    finish(&f);
    weir__ring_close(ring);
}

static void close_gives_up_what_is_not_committed(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    place(&f, 1, 1000, 4096);
    place(&f, 2, MIB, 16);
    finish(&f);
}

static void an_owner_gives_back_what_is_in_place(void **state)
{
    struct fixture f;
    struct weir_slot slot;
    uint64_t count = 0;

    (void)state;
    start(&f, (struct weir_region_config){0});
    struct placed placed = place(&f, 1, 1000, 4096);
    place_whole(&f, 2, 1000, 4096);
    assert_int_equal(try_put(&f, 100, &slot), 0);
    weir_region_free_owner(f.region, OWNER_PLACED, &count);
    assert_int_equal(count, 2);
    assert_int_equal(weir_region_commit(f.region, placed.slot), -ESTALE);
    assert_int_equal(figures(&f).pinned_bytes, 0);
    assert_int_equal(figures(&f).slot_count, 1);
    finish(&f);
}

/* ---- Alignment ----------------------------------------------------------------- */

static void every_alignment_is_kept(void **state)
{
    static const size_t sizes[] = {0, 1, 15, 16, 17, 100, 4095, 4096, 4097, 70001};
    struct fixture f;
    struct weir_slot slots[256];
    size_t alignments[256];
    size_t count = 0;

    (void)state;
    start(&f, (struct weir_region_config){0});
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        for (size_t alignment = 4096; alignment > 0; alignment /= 2) {
            alignments[count] = alignment;
            slots[count] = place_whole(&f, count, sizes[i], alignment);
            size_t kept = alignment > 16 ? alignment : 16;
            assert_int_equal(extent_of(&f, slots[count]).alignment, kept);
            assert_int_equal(extent_of(&f, slots[count]).bytes, sizes[i]);
            figures(&f);
            count++;
        }
    }
    for (size_t i = 0; i < count; i++)
        assert_here(&f, slots[i], alignments[i]);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(weir_region_free(f.region, slots[i * 7 % count]), 0);
        figures(&f);
    }
    /* All that was left before aligned places has come back. */
    assert_int_equal(figures(&f).mark_bytes, 0);
    assert_int_equal(figures(&f).free_extent_count, 0);
    assert_int_equal(figures(&f).free_bytes, 0);
    finish(&f);
}

/* What lies before an aligned item is free, and taken by what fits. */
static void the_gap_before_an_aligned_item_is_used(void **state)
{
    struct fixture f;
    struct weir_slot small;
    struct weir_slot filler;

    (void)state;
    start(&f, (struct weir_region_config){0});
    assert_int_equal(try_put(&f, 16, &small), 0);
    struct weir_slot aligned = place_whole(&f, 1, 1, 4096);
    assert_int_equal(extent_of(&f, aligned).offset, 4096);
    assert_int_equal(figures(&f).mark_bytes, 4096 + 16);
    assert_int_equal(figures(&f).free_bytes, 4096 - 16);
    assert_int_equal(figures(&f).free_extent_count, 1);
    assert_int_equal(try_put(&f, 4096 - 16, &filler), 0);
    assert_int_equal(extent_of(&f, filler).offset, 16);
    assert_int_equal(figures(&f).free_bytes, 0);
    finish(&f);
}

/* A hole that fits as it lies is taken whole; one that does not is split on both sides. */
static void an_aligned_item_fits_where_it_can(void **state)
{
    struct fixture f;
    struct weir_slot holes[2];
    struct weir_slot walls[3];

    (void)state;
    start(&f, (struct weir_region_config){0});
    assert_int_equal(try_put(&f, 4096, &walls[0]), 0);
    assert_int_equal(try_put(&f, 8192, &holes[0]), 0); /* at 4096 */
    assert_int_equal(try_put(&f, 1000, &walls[1]), 0);
    assert_int_equal(try_put(&f, 20000, &holes[1]), 0); /* at 13296 */
    assert_int_equal(try_put(&f, 1000, &walls[2]), 0);
    uint64_t mark = figures(&f).mark_bytes;
    assert_int_equal(weir_region_free(f.region, holes[0]), 0);
    assert_int_equal(weir_region_free(f.region, holes[1]), 0);

    struct weir_slot exact = place_whole(&f, 1, 8192, 4096);
    assert_int_equal(extent_of(&f, exact).offset, 4096);
    assert_int_equal(figures(&f).free_extent_count, 1);
    struct weir_slot middle = place_whole(&f, 2, 4096, 4096);
    assert_int_equal(extent_of(&f, middle).offset, 16384);
    assert_int_equal(figures(&f).free_extent_count, 2);
    assert_int_equal(figures(&f).free_bytes, 20000 - 4096);
    assert_int_equal(figures(&f).mark_bytes, mark);
    assert_int_equal(weir_region_free(f.region, middle), 0);
    assert_int_equal(figures(&f).free_extent_count, 1);
    finish(&f);
}

/* Each item takes an entry or two more for what is before it; none of them is lost. */
static void entries_come_back(void **state)
{
    struct fixture f;
    struct weir_slot slots[1000];
    uint64_t metadata = 0;

    (void)state;
    start(&f, (struct weir_region_config){0});
    for (int round = 0; round < 20; round++) {
        for (size_t i = 0; i < 1000; i++)
            slots[i] = place_whole(&f, i, i % 50, (size_t)16 << i % 9);
        for (size_t i = 0; i < 1000; i++)
            assert_int_equal(weir_region_free(f.region, slots[i * 7 % 1000]), 0);
        if (round == 0)
            metadata = figures(&f).metadata_bytes;
    }
    assert_int_equal(figures(&f).metadata_bytes, metadata);
    assert_int_equal(figures(&f).mark_bytes, 0);
    finish(&f);
}

/* Out to the disk, back into a buffer, and wherever the cleaner puts it. */
static void cold_items_keep_their_alignment(void **state)
{
    struct fixture f;
    struct weir_slot aligned[400];
    uint64_t offsets[400];
    size_t moved = 0;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    struct weir_slot *fillers = test_calloc(4000, sizeof(*fillers));
    for (size_t i = 0; i < 4000; i++) {
        if (i % 10 == 0)
            aligned[i / 10] = place_whole(&f, i, i % 7 * 700, (size_t)16 << i / 10 % 9);
        assert_int_equal(try_put(&f, 10000 + i % 100, &fillers[i]), 0);
    }
    make_cold(&f, fillers[3999]);
    for (size_t i = 0; i < 400; i++) {
        offsets[i] = extent_of(&f, aligned[i]).offset;
        fetch_all(&f, &aligned[i], 1, (size_t)16 << i % 9, 0);
    }

    /* Two thirds go: the cleaner has much to do. */
    for (size_t i = 0; i < 4000; i++)
        if (i % 3 != 0)
            assert_int_equal(weir_region_free(f.region, fillers[i]), 0);
    for (int tries = 0; moved < 100; tries++) {
        struct weir_slot slot;
        assert_true(tries < TRIES_MAX);
        assert_true(weir_region_wait(f.region, 1000000) >= 0);
        assert_int_equal(try_put(&f, 1000, &slot), 0);
        moved = 0;
        for (size_t i = 0; i < 400; i++)
            moved += extent_of(&f, aligned[i]).offset != offsets[i];
    }
    assert_true(figures(&f).moved_bytes > 0);
    for (size_t i = 0; i < 400; i++) {
        assert_int_equal(extent_of(&f, aligned[i]).alignment, (size_t)16 << i % 9);
        fetch_all(&f, &aligned[i], 1, (size_t)16 << i % 9, 0);
    }
    test_free(fillers);
    finish(&f);
}

/* The last hole of a full region. */
static void a_full_region_still_has_aligned_holes(void **state)
{
    struct fixture f;
    struct weir_slot slots[1024];
    struct placed placed;
    size_t count = 0;

    (void)state;
    start(&f, (struct weir_region_config){.bytes_max = 2 * MIB, .resident_bytes_max = UINT64_MAX});
    while (count < 1024 && try_place(&f, count, 4096, 4096, &placed) == 0) {
        fill(&placed);
        commit(&f, &placed);
        slots[count++] = placed.slot;
    }
    assert_int_equal(count, 512);
    assert_int_equal(try_place(&f, 1, 0, 4096, &placed), -EDQUOT);
    assert_int_equal(weir_region_free(f.region, slots[100]), 0);
    placed = place(&f, 1000, 4096, 4096);
    assert_int_equal(extent_of(&f, placed.slot).offset, 100 * 4096);
    assert_int_equal(try_place(&f, 1, 0, 16, &placed), -EDQUOT);
    finish(&f);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        CASE("an item is filled in place, without a copy", an_item_is_filled_in_place),
        CASE("what is in place can only be committed or freed",
             what_is_in_place_is_only_committed_or_freed),
        CASE("a wrong size or alignment changes nothing", wrong_arguments_change_nothing),
        CASE("the address is good whatever is called meanwhile",
             the_address_is_good_whatever_is_called),
        CASE("two items in one chunk end in any order", two_items_in_one_chunk),
        CASE("an item in two chunks holds both", an_item_in_two_chunks_holds_both),
        CASE("memory held in place is bounded", memory_held_in_place_is_bounded),
        CASE("a put says -EAGAIN and goes on after commit",
             a_put_says_eagain_and_goes_on_after_commit),
        CASE("on a shared ring nothing waits", on_a_shared_ring_nothing_waits),
        CASE("close gives up what is not committed", close_gives_up_what_is_not_committed),
        CASE("an owner gives back what is in place", an_owner_gives_back_what_is_in_place),

        CASE("every alignment is kept", every_alignment_is_kept),
        CASE("the gap before an aligned item is used", the_gap_before_an_aligned_item_is_used),
        CASE("an aligned item fits where it can", an_aligned_item_fits_where_it_can),
        CASE("the entries of gaps come back", entries_come_back),
        CASE("cold items keep their alignment, those that are moved too",
             cold_items_keep_their_alignment),
        CASE("a full region still has aligned holes", a_full_region_still_has_aligned_holes),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("region_place", cases, NULL, NULL);
}
