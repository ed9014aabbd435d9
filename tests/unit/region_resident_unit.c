/* SPDX-License-Identifier: MIT */
/*
 * region_resident_unit - another bound for what is in memory, while the region lives
 *
 * What include/weir/region.h says of weir_region_set_resident(): the owner of a
 * region plays here, in every step of every case. He charges before he raises the
 * bound and refunds what it has fallen by, and after each step what is in memory
 * must be covered by what he has charged. The kernel is asked, too.
 *
 *      region_resident_unit [--synchronous] [pattern]
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/region.h>

#include "base/random.h"
#include "base/ring.h"

#include "pattern.h"
#include "process.h"
#include "program.h"
#include "seed.h"

#include <errno.h>

#define KIB         UINT64_C(1024)
#define MIB         (KIB << 10)
#define CHUNK_BYTES (2 * MIB)
#define LEAST       (8 * MIB)
#define MOST        (64 * MIB)
#define ITEM_BYTES  (64 * KIB)
#define ITEMS_MAX   8192
#define TURNS_MAX   100000

struct fixture {
    struct weir_region *region;
    struct weir_ring *ring; /* shared with the region, or NULL */
    int64_t charged;        /* by the books, for tables */
    uint64_t paid;          /* by the owner, for what is in memory */
    bool marks[HARNESS_FD_MAX];
    int data_fd;
    struct weir_slot slots[ITEMS_MAX];
    size_t count;
    size_t called; /* by fetch */
    size_t good;
    bool frees; /* a fetched item may be stale */
};

/* ---- Steps ---------------------------------------------------------------- */

static void books_charge(void *context, int64_t bytes)
{
    *(int64_t *)context += bytes;
}

/* The books of the owner: what the bound fell by comes back; what is held is always paid for. */
static struct weir_region_stats look(struct fixture *f)
{
    struct weir_region_stats stats;

    weir_region_stats(f->region, &stats);
    assert_true(stats.resident_bytes_max <= f->paid);
    assert_true(stats.resident_wish_bytes <= stats.resident_bytes_max);
    assert_true(stats.resident_bytes <= stats.resident_bytes_max);
    f->paid = stats.resident_bytes_max;
    return stats;
}

static struct fixture *start(struct weir_region_config config)
{
    struct fixture *f = test_calloc(1, sizeof(*f));

    config.directory = harness_tmpdir();
    config.books = (struct weir_books){books_charge, &f->charged};
    f->ring = config.ring;
    harness_mark_fds(f->marks);
    assert_int_equal(weir_region_open(&config, &f->region), 0);
    f->data_fd = harness_data_fd(config.directory, f->marks);
    assert_true(f->data_fd >= 0);
    f->paid = config.resident_bytes_max;
    look(f);
    return f;
}

static struct fixture *start_usual(void)
{
    return start((struct weir_region_config){
        .resident_bytes_max = MOST, .resident_bytes_min = LEAST, .bytes_max = 512 * MIB});
}

static void finish(struct fixture *f)
{
    weir_region_audit(f->region);
    weir_region_close(f->region);
    assert_int_equal(f->charged, 0);
    test_free(f);
}

static bool is_bounded(struct fixture *f)
{
    if (look(f).bounded)
        return true;
    printf("# passed over: this file system keeps pages in memory\n");
    finish(f);
    return false;
}

/* Charged first, then said. */
static void set(struct fixture *f, uint64_t bytes)
{
    f->paid = bytes > f->paid ? bytes : f->paid;
    assert_int_equal(weir_region_set_resident(f->region, bytes), 0);
    assert_int_equal(look(f).resident_wish_bytes, bytes);
    weir_region_audit(f->region);
}

static void turn(struct fixture *f)
{
    if (f->ring != NULL) {
        assert_true(weir__ring_wait(f->ring, 1000000) >= 0);
        assert_true(weir_region_poll(f->region) >= 0);
    } else {
        assert_true(weir_region_wait(f->region, 100000000) >= 0);
    }
    look(f);
}

/* Turns until the bound is where it was wished. */
static void fall(struct fixture *f)
{
    struct weir_region_stats stats = look(f);

    for (uint32_t turns = 0; stats.resident_bytes_max > stats.resident_wish_bytes; turns++) {
        assert_true(turns < TURNS_MAX);
        turn(f);
        stats = look(f);
    }
    weir_region_audit(f->region);
}

static void assert_kernel_agrees(struct fixture *f)
{
    struct weir_region_stats stats = look(f);
    int64_t cached = harness_cached_bytes(f->data_fd);

    assert_true(cached >= 0);
    assert_true((uint64_t)cached <= stats.resident_bytes - stats.fetched_bytes + CHUNK_BYTES / 4);
}

static uint64_t anonymous_bytes(void)
{
    char line[256];
    unsigned long long kib = 0;
    FILE *status = fopen("/proc/self/status", "re");

    assert_non_null(status);
    while (fgets(line, sizeof(line), status) != NULL)
        if (sscanf(line, "RssAnon: %llu", &kib) == 1)
            break;
    fclose(status);
    return kib * KIB;
}

static unsigned char item[ITEM_BYTES];

static int try_put(struct fixture *f)
{
    assert_true(f->count < ITEMS_MAX);
    harness_fill(item, ITEM_BYTES, f->count, 0);
    int r = weir_region_put(f->region, item, ITEM_BYTES, (struct weir_label){f->count, 1},
                            &f->slots[f->count]);
    f->count += r == 0;
    look(f);
    return r;
}

static void fill(struct fixture *f, uint64_t bytes)
{
    for (uint64_t done = 0; done < bytes; done += ITEM_BYTES)
        assert_int_equal(try_put(f), 0);
}

static bool is_resident(struct fixture *f, size_t i)
{
    struct weir_slot_info info;

    assert_int_equal(weir_region_slot(f->region, f->slots[i], &info), 0);
    return info.resident;
}

static void assert_whole(struct fixture *f)
{
    for (size_t i = 0; i < f->count; i++) {
        size_t bytes = 0;
        assert_int_equal(weir_region_read(f->region, f->slots[i], 0, item, sizeof(item), &bytes),
                         0);
        assert_int_equal(bytes, ITEM_BYTES);
        assert_int_equal(harness_differs_at(item, bytes, i, 0), bytes);
    }
}

static void fetched(void *context, struct weir_slot slot, int result)
{
    struct fixture *f = context;
    struct weir_slot_info info;
    const void *data;
    size_t bytes;

    f->called++;
    if (f->frees && result == -ESTALE) {
        f->good++;
        return;
    }
    assert_int_equal(result, 0);
    assert_int_equal(weir_region_slot(f->region, slot, &info), 0);
    assert_int_equal(weir_region_at(f->region, slot, &data, &bytes), 0);
    f->good += harness_differs_at(data, bytes, info.label.key, 0) == bytes;
}

static void fetch(struct fixture *f, size_t from, size_t count)
{
    f->called = 0;
    f->good = 0;
    assert_int_equal(weir_region_fetch(f->region, &f->slots[from], count, fetched, f), 0);
}

static void fetch_finish(struct fixture *f, size_t count)
{
    for (uint32_t turns = 0; f->called < count; turns++) {
        assert_true(turns < TURNS_MAX);
        turn(f);
    }
    assert_int_equal(f->good, count);
}

/* ---- Open ----------------------------------------------------------------- */

static void open_says_how_far(void **state)
{
    struct weir_region_config config = {.directory = harness_tmpdir()};
    struct weir_region *region = NULL;
    static const uint64_t wrong[][2] = {
        {MOST, LEAST - 1}, {MOST, MOST + 1}, {0, MOST + 1}, {UINT64_MAX, LEAST}};

    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        config.resident_bytes_max = wrong[i][0];
        config.resident_bytes_min = wrong[i][1];
        assert_int_equal(weir_region_open(&config, &region), -EINVAL);
        assert_null(region);
    }

    /* Without it nothing may be changed, and to say so again is no change. */
    struct fixture *f = start((struct weir_region_config){.resident_bytes_max = MOST});
    assert_int_equal(weir_region_set_resident(f->region, MOST - 1), -EINVAL);
    assert_int_equal(weir_region_set_resident(f->region, MOST + 1), -EINVAL);
    set(f, MOST);
    finish(f);
    f = start((struct weir_region_config){.resident_bytes_max = UINT64_MAX});
    assert_int_equal(weir_region_set_resident(f->region, MOST), -EINVAL);
    set(f, UINT64_MAX);
    finish(f);

    f = start_usual();
    assert_int_equal(weir_region_set_resident(f->region, LEAST - 1), -EINVAL);
    assert_int_equal(weir_region_set_resident(f->region, MOST + 1), -EINVAL);
    assert_int_equal(look(f).resident_bytes_max, MOST);
    assert_int_equal(look(f).resident_wish_bytes, MOST);
    finish(f);
}

/* The largest items are those of a region that was opened with so little. */
static void promises_hold_with_the_least(void **state)
{
    struct fixture *f = start((struct weir_region_config){.resident_bytes_max = LEAST});
    struct weir_region_stats small = look(f);

    (void)state;
    finish(f);
    f = start((struct weir_region_config){.resident_bytes_max = MOST, .resident_bytes_min = LEAST});
    struct weir_region_stats stats = look(f);
    assert_int_equal(stats.put_bytes_max, small.put_bytes_max);
    assert_int_equal(stats.fetch_bytes_max, small.fetch_bytes_max);
    if (!is_bounded(f))
        return;

    /* And they do: the largest goes in, gets cold, and comes back. */
    set(f, LEAST);
    fall(f);
    unsigned char *data = test_calloc(1, stats.put_bytes_max);
    struct weir_slot slots[8];
    for (int i = 0; i < 8; i++)
        assert_int_equal(weir_region_put(f->region, data, stats.put_bytes_max,
                                         (struct weir_label){(uint64_t)i, 2}, &slots[i]),
                         0);
    for (int i = 0; i < 8; i++)
        assert_int_equal(weir_region_free(f->region, slots[i]), 0);
    harness_fill(data, stats.fetch_bytes_max, 0, 0);
    for (int i = 0; i < 12; i++)
        assert_int_equal(weir_region_put(f->region, data, stats.fetch_bytes_max,
                                         (struct weir_label){0, 2}, &f->slots[i]),
                         0);
    fetch(f, 0, 12);
    fetch_finish(f, 12);
    test_free(data);
    finish(f);
}

/* ---- Down ----------------------------------------------------------------- */

static void room_that_is_not_used_comes_back_at_once(void **state)
{
    struct fixture *f = start_usual();

    (void)state;
    set(f, LEAST);
    assert_int_equal(look(f).resident_bytes_max, LEAST);
    set(f, MOST);
    assert_int_equal(look(f).resident_bytes_max, MOST);
    set(f, LEAST + 4711);
    assert_int_equal(look(f).resident_bytes_max, LEAST + 4711);
    finish(f);
}

static void what_is_dirty_is_written(void **state)
{
    struct fixture *f = start_usual();
    const void *before;
    const void *after;

    (void)state;
    if (!is_bounded(f))
        return;
    fill(f, 40 * MIB);
    assert_true(look(f).dirty_bytes >= 40 * MIB);

    /* The call itself takes nothing away. */
    assert_int_equal(weir_region_at(f->region, f->slots[0], &before, NULL), 0);
    set(f, LEAST);
    assert_true(look(f).resident_bytes_max >= 40 * MIB);
    assert_int_equal(weir_region_at(f->region, f->slots[0], &after, NULL), 0);
    assert_ptr_equal(before, after);
    for (size_t i = 0; i < f->count; i++)
        assert_true(is_resident(f, i));

    fall(f);
    assert_int_equal(look(f).resident_bytes_max, LEAST);
    assert_true(look(f).resident_bytes <= LEAST);
    assert_true(look(f).written_bytes >= 32 * MIB);
    assert_kernel_agrees(f);
    assert_whole(f);

    /* It lives on with little, and takes more again when it may. */
    fill(f, 40 * MIB);
    assert_true(look(f).resident_bytes <= LEAST);
    assert_kernel_agrees(f);
    set(f, MOST);
    fill(f, 80 * MIB);
    assert_true(look(f).resident_bytes > MOST / 2);
    assert_kernel_agrees(f);
    set(f, LEAST);
    fall(f);
    assert_kernel_agrees(f);
    assert_whole(f);
    finish(f);
}

static void what_is_clean_goes_without_being_written(void **state)
{
    struct fixture *f = start_usual();
    const void *data;

    (void)state;
    if (!is_bounded(f))
        return;
    fill(f, 24 * MIB);
    for (size_t i = 0; i < f->count; i += 32)
        assert_int_equal(weir_region_pin(f->region, f->slots[i], &data, NULL), 0);
    set(f, LEAST); /* written, but kept by the pins */
    for (uint32_t turns = 0; look(f).dirty_bytes > 6 * MIB; turns++) {
        assert_true(turns < TURNS_MAX);
        turn(f);
    }
    set(f, MOST);
    uint64_t written; /* what is under way ends, and no more begins */
    do {
        written = look(f).written_bytes;
        for (int i = 0; i < 20; i++)
            turn(f);
    } while (look(f).written_bytes != written);
    for (size_t i = 0; i < f->count; i += 32)
        weir_region_unpin(f->region, f->slots[i]);
    struct weir_region_stats before = look(f);
    assert_true(before.resident_bytes >= 24 * MIB);
    set(f, LEAST);
    fall(f);
    assert_int_equal(look(f).written_bytes, before.written_bytes);
    assert_kernel_agrees(f);
    assert_whole(f);
    finish(f);
}

/* Nobody would write these yet: there is room in them. */
static void what_is_half_full_is_written(void **state)
{
    struct fixture *f = start_usual();

    (void)state;
    if (!is_bounded(f))
        return;
    fill(f, 48 * MIB);
    for (size_t i = 0; i < f->count; i += 2)
        assert_int_equal(weir_region_free(f->region, f->slots[i]), 0);
    for (int i = 0; i < 20; i++)
        turn(f);
    assert_true(look(f).resident_bytes > 40 * MIB);
    set(f, LEAST);
    fall(f);
    assert_kernel_agrees(f);
    for (size_t i = 1; i < f->count; i += 2) {
        size_t bytes = 0;
        assert_int_equal(weir_region_read(f->region, f->slots[i], 0, item, sizeof(item), &bytes),
                         0);
        assert_int_equal(harness_differs_at(item, bytes, i, 0), ITEM_BYTES);
    }
    finish(f);
}

/* A put that needs another chunk waits on its own ring, and says so on another's. */
static void puts_wait_for_the_bound(void **state)
{
    struct weir_ring *ring = NULL;

    (void)state;
    assert_int_equal(weir__ring_open(256, true, &ring), 0);
    struct fixture *f = start((struct weir_region_config){
        .resident_bytes_max = MOST, .resident_bytes_min = LEAST, .ring = ring});
    if (is_bounded(f)) {
        fill(f, 40 * MIB);
        set(f, LEAST);
        uint64_t most = look(f).resident_bytes;
        uint32_t refused = 0;
        for (uint32_t turns = 0; f->count < 1200; turns++) {
            assert_true(turns < TURNS_MAX);
            if (try_put(f) == -EAGAIN) {
                refused++;
                turn(f);
            }
            assert_true(look(f).resident_bytes <= most + MIB); /* a buffer of the cleaner's */
        }
        assert_true(refused > 0);
        fall(f);
        assert_kernel_agrees(f);
        for (uint32_t turns = 0; weir__ring_in_flight(ring) > 0; turns++) {
            assert_true(turns < TURNS_MAX);
            turn(f);
        }
        assert_whole(f);
        finish(f);
    }
    weir__ring_close(ring);
}

static void fetches_are_answered_meanwhile(void **state)
{
    struct fixture *f = start_usual();

    (void)state;
    if (!is_bounded(f))
        return;
    fill(f, 160 * MIB);
    fetch(f, 0, 1000);
    set(f, LEAST); /* with buffers in the ring, and most still waiting for one */
    fetch_finish(f, 1000);
    fall(f);
    assert_true(look(f).fetched_bytes <= 2 * MIB);
    fetch(f, 0, 1000);
    fetch_finish(f, 1000);
    set(f, MOST);
    fetch(f, 0, 1000);
    fetch_finish(f, 1000);
    assert_true(look(f).fetched_bytes > 4 * MIB);
    finish(f);
}

/* What was fetched leaves the memory of the process, not only the books. */
static void buffers_leave_the_memory(void **state)
{
    struct fixture *f = start((struct weir_region_config){
        .resident_bytes_max = 256 * MIB, .resident_bytes_min = LEAST, .bytes_max = 512 * MIB});

    (void)state;
    if (!is_bounded(f))
        return;
    fill(f, 80 * MIB);
    set(f, LEAST);
    fall(f);
    set(f, 256 * MIB);
    uint64_t before = anonymous_bytes();
    fetch(f, 0, 450);
    fetch_finish(f, 450);
    uint64_t held = anonymous_bytes();
    assert_true(look(f).fetched_bytes > 24 * MIB);
    assert_true(held > before + 20 * MIB);

    /* One is pinned, as far behind as it may be: what is fetched now lies in other places. */
    const void *data;
    size_t pinned = 450;
    while (weir_region_pin(f->region, f->slots[--pinned], &data, NULL) < 0)
        assert_true(pinned > 0);
    set(f, LEAST);
    fall(f);
    assert_true(anonymous_bytes() + 20 * MIB < held);
    uint64_t left = anonymous_bytes();
    for (size_t i = 600; i < 900; i++) {
        fetch(f, i, 1);
        fetch_finish(f, 1);
    }
    assert_true(anonymous_bytes() <= left + 2 * MIB);
    assert_int_equal(harness_differs_at(data, ITEM_BYTES, pinned, 0), ITEM_BYTES);
    weir_region_unpin(f->region, f->slots[pinned]);

    /* What was freed before is nobody's, but was in memory all the same. */
    set(f, 256 * MIB);
    fetch(f, 0, 450);
    fetch_finish(f, 450);
    held = anonymous_bytes();
    for (size_t i = 0; i < 450; i++)
        assert_int_equal(weir_region_free(f->region, f->slots[i]), 0);
    assert_true(look(f).fetched_bytes < 2 * MIB);
    set(f, LEAST);
    assert_true(anonymous_bytes() + 20 * MIB < held);
    finish(f);
}

/* ---- What holds it up ----------------------------------------------------- */

static void pins_hold_it_up(void **state)
{
    struct fixture *f = start_usual();
    const void *data[400];
    const void *now;

    (void)state;
    if (!is_bounded(f))
        return;
    fill(f, 24 * MIB);
    for (size_t i = 0; i < f->count; i += 32) /* one in each chunk */
        assert_int_equal(weir_region_pin(f->region, f->slots[i], &data[i], NULL), 0);
    set(f, LEAST);
    for (int i = 0; i < 200; i++)
        turn(f);
    assert_true(look(f).resident_bytes_max >= 24 * MIB);
    for (size_t i = 0; i < f->count; i += 32) {
        assert_int_equal(weir_region_at(f->region, f->slots[i], &now, NULL), 0);
        assert_ptr_equal(now, data[i]);
        assert_int_equal(harness_differs_at(now, ITEM_BYTES, i, 0), ITEM_BYTES);
    }
    for (size_t i = 0; i < f->count; i += 32) {
        uint64_t before = look(f).resident_bytes_max;
        weir_region_unpin(f->region, f->slots[i]);
        for (uint32_t turns = 0; before > LEAST + 4 * MIB && look(f).resident_bytes_max >= before;
             turns++) {
            assert_true(turns < TURNS_MAX);
            turn(f);
        }
    }
    fall(f);
    assert_kernel_agrees(f);
    assert_whole(f);
    finish(f);
}

static void what_is_filled_in_place_is_no_hindrance(void **state)
{
    struct fixture *f = start_usual();
    struct weir_slot slots[2];
    void *data[2];

    (void)state;
    if (!is_bounded(f))
        return;
    fill(f, 20 * MIB);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(weir_region_alloc_in_place(f->region, MIB, 0, (struct weir_label){0, 1},
                                                    &slots[i], &data[i]),
                         0);
        memset(data[i], 0x5a, MIB);
    }
    fill(f, 20 * MIB);
    set(f, LEAST);
    fall(f);
    for (int i = 0; i < 2; i++) {
        memset(data[i], 0x5b, MIB);
        assert_int_equal(weir_region_commit(f->region, slots[i]), 0);
    }
    fill(f, 20 * MIB);
    assert_whole(f);
    finish(f);
}

struct piece {
    struct weir_operation operation;
    int32_t result;
    bool is_done;
};

static void piece_done(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct piece *piece = (struct piece *)(void *)operation;

    (void)flags;
    piece->result = result;
    piece->is_done = true;
}

_Static_assert(offsetof(struct piece, operation) == 0, "the cast in piece_done()");

/* Of what is pinned in buffers there is more than may be: a piece comes all the same. */
static void a_piece_comes_to_its_end(void **state)
{
    struct fixture *f = start_usual();
    static unsigned char bytes[ITEM_BYTES];
    size_t pinned = 0;
    const void *data;

    (void)state;
    if (!is_bounded(f))
        return;
    fill(f, 120 * MIB);
    fetch(f, 0, 60);
    fetch_finish(f, 60);
    while (pinned < 60 && weir_region_pin(f->region, f->slots[pinned], &data, NULL) == 0)
        pinned++;
    assert_int_equal(pinned, 60);
    set(f, LEAST);
    for (int i = 0; i < 50; i++)
        turn(f);
    assert_true(look(f).resident_bytes_max > LEAST + 2 * MIB);

    fetch(f, 200, 1); /* must wait for a pin to go */
    for (size_t i = 300; i < 316; i++) {
        struct piece piece = {.operation = {piece_done}};
        assert_int_equal(
            weir_region_fetch_into(f->region, f->slots[i], 0, bytes, ITEM_BYTES, &piece.operation),
            0);
        for (uint32_t turns = 0; !piece.is_done; turns++) {
            assert_true(turns < TURNS_MAX);
            turn(f);
        }
        assert_int_equal(piece.result, ITEM_BYTES);
        assert_int_equal(harness_differs_at(bytes, ITEM_BYTES, i, 0), ITEM_BYTES);
    }
    assert_int_equal(f->called, 0);
    for (size_t i = 0; i < pinned; i++)
        weir_region_unpin(f->region, f->slots[i]);
    fetch_finish(f, 1);
    fall(f);
    finish(f);
}

/* ---- Up and down ---------------------------------------------------------- */

static void up_and_down_at_random(void **state)
{
    struct fixture *f = start((struct weir_region_config){
        .resident_bytes_max = MOST, .resident_bytes_min = LEAST, .bytes_max = 256 * MIB});
    uint64_t random = harness_seed();
    size_t oldest = 0;
    size_t pinned = SIZE_MAX;

    (void)state;
    f->frees = true;
    if (!is_bounded(f))
        return;
    for (uint32_t step = 0; step < 6000; step++) {
        uint64_t choice = weir__random_below(&random, 100);
        if (choice < 4) {
            set(f, LEAST + weir__random_below(&random, MOST - LEAST + 1));
        } else if (choice < 6) {
            set(f, weir__random_below(&random, 2) ? LEAST : MOST);
        } else if (choice < 10 && f->count > oldest + 200) {
            size_t from = oldest + weir__random_below(&random, f->count - oldest - 100);
            fetch(f, from, 1 + weir__random_below(&random, 100));
        } else if (choice < 12 && pinned == SIZE_MAX && f->count > oldest) {
            const void *data;
            size_t i = oldest + weir__random_below(&random, f->count - oldest);
            if (weir_region_pin(f->region, f->slots[i], &data, NULL) == 0)
                pinned = i;
        } else if (choice < 14 && pinned != SIZE_MAX) {
            weir_region_unpin(f->region, f->slots[pinned]);
            pinned = SIZE_MAX;
        } else if (choice < 70 && f->count < ITEMS_MAX) {
            assert_int_equal(try_put(f), 0);
            if (f->count - oldest > 1600 && oldest != pinned)
                assert_int_equal(weir_region_free(f->region, f->slots[oldest++]), 0);
        } else {
            turn(f);
        }
        if (step % 64 == 0)
            weir_region_audit(f->region);
    }
    if (pinned != SIZE_MAX)
        weir_region_unpin(f->region, f->slots[pinned]);
    set(f, LEAST);
    fall(f);
    assert_kernel_agrees(f);
    finish(f);
}

/* ---- All ------------------------------------------------------------------ */

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        CASE("open says how far", open_says_how_far),
        CASE("what is promised of items holds with the least memory", promises_hold_with_the_least),
        CASE("room that is not used comes back at once", room_that_is_not_used_comes_back_at_once),
        CASE("what is dirty is written, and the kernel agrees", what_is_dirty_is_written),
        CASE("what is clean goes without being written", what_is_clean_goes_without_being_written),
        CASE("what is half full is written", what_is_half_full_is_written),
        CASE("puts wait for the bound", puts_wait_for_the_bound),
        CASE("fetches are answered meanwhile", fetches_are_answered_meanwhile),
        CASE("buffers leave the memory of the process", buffers_leave_the_memory),
        CASE("pins hold it up", pins_hold_it_up),
        CASE("what is filled in place does not hinder it", what_is_filled_in_place_is_no_hindrance),
        CASE("a piece comes to its end beside too many pins", a_piece_comes_to_its_end),
        CASE("up and down at random, what is held is paid for", up_and_down_at_random),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("region_resident", cases, NULL, NULL);
}
