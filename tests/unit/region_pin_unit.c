/* SPDX-License-Identifier: MIT */
/*
 * region_pin_unit - what is pinned keeps slot and address
 *
 * And whatever is pinned, other calls do their work or refuse; none waits in vain.
 *
 *      region_pin_unit [--synchronous] [pattern]
 */
#include "region_fixture.h"

static void a_pin_keeps_the_address(void **state)
{
    struct fixture f;
    struct weir_slot slots[20];
    const void *places[20];
    uint64_t seed = 1000;

    (void)state;
    start(&f, (struct weir_region_config){
                  .bytes_initial = 4 * MIB,
                  .resident_bytes_max = RESIDENT_MIN,
              });
    if (!is_bounded(&f))
        return;
    for (uint64_t i = 0; i < 20; i++) {
        size_t bytes = 0;
        slots[i] = put(&f, i, 10000);
        if (i % 5 == 0) {
            assert_int_equal(weir_region_pin(f.region, slots[i], &places[i], &bytes), 0);
            assert_int_equal(bytes, 10000);
        }
    }
    assert_true(figures(&f).pinned_bytes >= 4 * 10000);
    for (int i = 0; i < 1024; i++) {
        struct weir_slot filler;
        assert_int_equal(try_put(&f, seed++, 64 * KIB, OWNER_FILLER, &filler), 0);
        if (i % 2 == 0)
            assert_int_equal(weir_region_free(f.region, filler), 0);
        if (i % 64 == 0) {
            assert_true(poll_once(&f) >= 0);
            weir_region_audit(f.region);
        }
    }
    for (uint64_t i = 0; i < 20; i += 5) {
        assert_pattern(places[i], 10000, i, 0);
        assert_ptr_equal(assert_here(&f, slots[i], 10000), places[i]);
    }
    assert_bound_holds(&f);
    for (uint64_t i = 0; i < 20; i += 5)
        weir_region_unpin(f.region, slots[i]);
    assert_int_equal(figures(&f).pinned_bytes, 0);
    make_cold(&f, slots[0]); /* now it may go */
    assert_whole(&f, slots[0]);
    finish(&f);
}

static void pins_count(void **state)
{
    struct fixture f;
    const void *data;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    struct weir_slot slot = put(&f, 1, 1000);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(weir_region_pin(f.region, slot, &data, NULL), 0);
    uint64_t pinned = figures(&f).pinned_bytes;
    assert_true(pinned >= 1000);
    for (int i = 0; i < 999; i++)
        weir_region_unpin(f.region, slot);
    assert_int_equal(figures(&f).pinned_bytes, pinned); /* bytes, not pins */
    for (uint64_t i = 0; i < 4 * RESIDENT_MIN / (64 * KIB); i++)
        put(&f, 100 + i, 64 * KIB);
    assert_pattern(data, 1000, 1, 0);
    assert_ptr_equal(assert_here(&f, slot, 1000), data);
    weir_region_unpin(f.region, slot);
    assert_int_equal(figures(&f).pinned_bytes, 0);
    make_cold(&f, slot);
    finish(&f);
}

static void a_pinned_item_is_freed_with_its_last_pin(void **state)
{
    struct fixture f;
    const void *data;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = UINT64_MAX});
    struct weir_slot before = put(&f, 1, 1000);
    struct weir_slot slot = put(&f, 2, 1000);
    struct weir_slot after = put(&f, 3, 1000);
    assert_int_equal(weir_region_pin(f.region, slot, &data, NULL), 0);
    assert_int_equal(weir_region_pin(f.region, slot, &data, NULL), 0);
    assert_int_equal(weir_region_free(f.region, slot), 0);
    weir_region_audit(f.region);
    assert_stale(&f, slot); /* at once */
    fetch_one(&f, slot, -ESTALE);
    struct weir_region_stats stats = figures(&f);
    assert_int_equal(stats.slot_count, 2);
    assert_int_equal(stats.live_bytes, 2000);
    assert_int_equal(stats.free_bytes, 0); /* but its space is not there yet */
    assert_int_equal(weir_region_free(f.region, before), 0);
    assert_int_equal(weir_region_free(f.region, after), 0);
    weir_region_audit(f.region);
    for (uint64_t i = 0; i < 100; i++)
        put(&f, 10 + i, 1000);
    assert_pattern(data, 1000, 2, 0);
    weir_region_unpin(f.region, slot);
    weir_region_audit(f.region);
    assert_pattern(data, 1000, 2, 0);
    uint64_t free_bytes = figures(&f).free_bytes;
    weir_region_unpin(f.region, slot); /* by the handle that is stale for all else */
    weir_region_audit(f.region);
    assert_int_equal(figures(&f).free_bytes, free_bytes + 1008);
    assert_int_equal(figures(&f).pinned_bytes, 0);
    finish(&f);
}

static void a_fetched_item_can_be_pinned(void **state)
{
    struct fixture f;
    struct weir_slot slots[33];
    const void *places[32];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 32, 10000);
    for (int turn = 0; turn < 8; turn++) { /* other fetches do not disturb it */
        struct fetches *fetches = fetch_many(&f, slots + turn * 4, 4);
        fetch_finish(&f, fetches);
        test_free(fetches);
        if (turn == 0)
            for (int i = 0; i < 4; i++)
                assert_int_equal(weir_region_pin(f.region, slots[i], &places[i], NULL), 0);
    }
    for (uint64_t i = 0; i < 200; i++)
        put(&f, 5000 + i, 64 * KIB);
    for (uint64_t i = 0; i < 4; i++) {
        assert_pattern(places[i], 10000, i, 0);
        assert_ptr_equal(assert_here(&f, slots[i], 10000), places[i]);
    }
    assert_bound_holds(&f);
    assert_int_equal(weir_region_free(f.region, slots[0]), 0);
    assert_stale(&f, slots[0]);
    assert_pattern(places[0], 10000, 0, 0);
    for (int i = 0; i < 4; i++)
        weir_region_unpin(f.region, slots[i]);
    weir_region_audit(f.region);
    assert_int_equal(figures(&f).pinned_bytes, 0);
    assert_whole(&f, slots[1]);
    finish(&f);
}

/* What was fetched lingers; pinned, it is no more what goes when another read needs its room. */
static void what_lingers_can_be_pinned(void **state)
{
    struct fixture f;
    static struct weir_slot slots[301];
    const void *data;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 300, 16 * KIB); /* several times what may be fetched at once */
    fetch_one(&f, slots[7], 0);
    assert_here(&f, slots[7], 16 * KIB);
    assert_int_equal(weir_region_pin(f.region, slots[7], &data, NULL), 0);
    for (int i = 0; i < 2; i++) {
        struct fetches *fetches = fetch_many(&f, slots, 300);
        fetch_finish(&f, fetches);
        test_free(fetches);
        assert_pattern(data, 16 * KIB, 7, 0);
        assert_ptr_equal(assert_here(&f, slots[7], 16 * KIB), data);
        assert_int_equal(figures(&f).pinned_bytes, 16 * KIB);
    }
    weir_region_unpin(f.region, slots[7]);
    assert_int_equal(figures(&f).pinned_bytes, 0);
    finish(&f);
}

/* A pinned copy is the item, also when its chunk comes back because another item there goes on. */
static void a_pinned_copy_keeps_its_address(void **state)
{
    struct fixture f;
    struct cold_chunk chunk;
    const void *data;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_chunk(&f, &chunk);
    fetch_one(&f, chunk.slots[3], 0);
    assert_int_equal(weir_region_pin(f.region, chunk.slots[3], &data, NULL), 0);
    assert_pattern(data, 3000, 3, 0);
    bring_back_cold_chunk(&f, &chunk);
    assert_true(info_of(&f, chunk.slots[4]).resident); /* the chunk is back */
    for (int i = 0; i < 2; i++) {
        const void *again;
        assert_ptr_equal(assert_here(&f, chunk.slots[3], 3000), data);
        assert_int_equal(weir_region_pin(f.region, chunk.slots[3], &again, NULL), 0);
        assert_ptr_equal(again, data);
        weir_region_unpin(f.region, chunk.slots[3]);
        make_cold(&f, chunk.slots[4]);
    }
    assert_int_equal(figures(&f).pinned_bytes, 3000);
    weir_region_unpin(f.region, chunk.slots[3]);
    for (size_t i = 0; i < 10; i++)
        assert_whole(&f, chunk.slots[i]);
    finish(&f);
}

static void pin_it(struct fetches *fetches, struct weir_slot slot, int result)
{
    const void *data;

    assert_int_equal(result, 0);
    assert_int_equal(weir_region_pin(fetches->f->region, slot, &data, NULL), 0);
}

static void what_is_pinned_holds_its_buffer(void **state)
{
    struct fixture f;
    static struct weir_slot slots[257];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 256, 64 * KIB); /* twice the memory */
    struct fetches *fetches = fetch_many(&f, slots, 256);
    fetches->then = pin_it;
    for (int idle = 0; idle < 50; idle++) {
        size_t called = fetches->called;
        assert_true(wait_once(&f) >= 0);
        if (fetches->called > called)
            idle = 0;
        assert_true(figures(&f).resident_bytes <= RESIDENT_MIN);
    }
    assert_true(fetches->called > 0);
    assert_true(fetches->called < 256); /* not more than the memory there is */
    weir_region_audit(f.region);
    fetches->then = NULL;
    for (size_t i = 0; i < 256; i++)
        if (fetches->done[i])
            weir_region_unpin(f.region, slots[i]);
    assert_int_equal(figures(&f).pinned_bytes, 0);
    fetch_finish(&f, fetches); /* and the rest comes */
    for (size_t i = 0; i < 256; i++)
        assert_int_equal(fetches->results[i], 0);
    assert_bound_holds(&f);
    test_free(fetches);
    finish(&f);
}

/* Who pins may need a piece of something else before it can unpin. */
static void a_piece_comes_whatever_is_pinned(void **state)
{
    struct fixture f;
    static struct weir_slot slots[257];
    static char piece_bytes[64 * KIB];
    struct piece piece = {.operation = {piece_done}};

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 256, 64 * KIB);
    struct fetches *fetches = fetch_many(&f, slots, 255);
    fetches->then = pin_it;
    for (int idle = 0; idle < 50; idle++) {
        size_t called = fetches->called;
        assert_true(wait_once(&f) >= 0);
        if (fetches->called > called)
            idle = 0;
    }
    assert_true(fetches->called < 255); /* the others wait for room */

    assert_int_equal(weir_region_fetch_into(f.region, slots[255], 0, piece_bytes,
                                            sizeof(piece_bytes), &piece.operation),
                     0);
    piece_finish(&f, &piece);
    assert_int_equal(piece.result, sizeof(piece_bytes));
    assert_pattern(piece_bytes, sizeof(piece_bytes), 255, 0);
    assert_true(fetches->called < 255);

    fetches->then = NULL;
    for (size_t i = 0; i < 255; i++)
        if (fetches->done[i])
            weir_region_unpin(f.region, slots[i]);
    fetch_finish(&f, fetches);
    assert_bound_holds(&f);
    test_free(fetches);
    finish(&f);
}

/* With all but one chunk pinned: what is asked for is done or refused, but never waited for in vain. */
static int put_between_pins(const char *directory)
{
    struct weir_region_config config = {
        .directory = directory,
        .resident_bytes_max = RESIDENT_MIN,
    };
    struct weir_region *region;
    struct weir_region_stats stats;
    struct weir_slot pinned[8];
    struct weir_slot slot;
    static char item[100000];
    const void *data;
    int pin_count = 0;

    alarm(PATIENCE_S);
    CHILD_CHECK(weir_region_open(&config, &region) == 0);
    weir_region_stats(region, &stats);
    if (!stats.bounded)
        return 0;
    /* One item of each chunk, until there is room for one chunk or for none. */
    for (int i = 0; i < 21 * 8; i++) {
        int r = weir_region_put(region, item, sizeof(item), (struct weir_label){0, 1}, &slot);
        CHILD_CHECK(r == 0 || r == -EAGAIN);
        if (r == 0 && i % 21 == 10) {
            CHILD_CHECK(weir_region_pin(region, slot, &data, NULL) == 0);
            pinned[pin_count++] = slot;
        }
        for (int k = 0; k < 50; k++) /* straddles chunks now and then */
            if (weir_region_put(region, item, 1000, (struct weir_label){0, 2}, &slot) == 0)
                weir_region_free(region, slot);

        struct weir_slot built; /* and pieces do */
        r = weir_region_alloc(region, 3 * sizeof(item), (struct weir_label){0, 3}, &built);
        CHILD_CHECK(r == 0 || r == -EAGAIN);
        for (size_t at = 0; r == 0 && at < 3 * sizeof(item); at += sizeof(item)) {
            r = weir_region_write(region, built, at, item, sizeof(item));
            CHILD_CHECK(r == 0 || r == -EAGAIN);
            if (r == 0 &&
                weir_region_put(region, item, sizeof(item), (struct weir_label){0, 4}, &slot) != 0)
                weir_region_free_owner(region, 4, NULL);
        }
        weir_region_free_owner(region, 3, NULL);
        CHILD_CHECK(weir_region_poll(region) >= 0);
        weir_region_audit(region);
    }
    CHILD_CHECK(pin_count >= 2);
    while (pin_count > 0)
        weir_region_unpin(region, pinned[--pin_count]);
    CHILD_CHECK(weir_region_put(region, item, sizeof(item), (struct weir_label){0, 1}, &slot) == 0);
    weir_region_close(region);
    return 0;
}

static void pins_never_make_a_call_wait_for_ever(void **state)
{
    (void)state;
    assert_child_passes(put_between_pins);
}

/* A cold piece of an unfinished item goes on where the next chunk is needed too. */
static int write_across_between_pins(const char *directory)
{
    struct weir_region_config config = {
        .directory = directory,
        .resident_bytes_max = RESIDENT_MIN,
    };
    struct weir_region *region;
    struct weir_region_stats stats;
    struct weir_slot pinned[4];
    struct weir_slot built;
    struct weir_slot slot;
    static char item[64 * 1024];
    const void *data;
    int r = 0;

    alarm(PATIENCE_S);
    CHILD_CHECK(weir_region_open(&config, &region) == 0);
    weir_region_stats(region, &stats);
    if (!stats.bounded)
        return 0;
    /* 3 MiB from chunk 0 on, written up to 16 KiB before the end of that chunk. */
    CHILD_CHECK(weir_region_alloc(region, 3 * MIB, (struct weir_label){0, 3}, &built) == 0);
    for (uint64_t at = 0; at < 31 * sizeof(item); at += sizeof(item))
        CHILD_CHECK(weir_region_write(region, built, at, item, sizeof(item)) == 0);
    CHILD_CHECK(weir_region_write(region, built, 31 * sizeof(item), item, 48 * KIB) == 0);
    /* Two pinned chunks, and others until nothing else is in memory. */
    for (int i = 0; i < 160; i++) {
        r = weir_region_put(region, item, sizeof(item), (struct weir_label){0, 1}, &slot);
        CHILD_CHECK(r == 0);
        if (i == 24 || i == 56) {
            CHILD_CHECK(weir_region_pin(region, slot, &data, NULL) == 0);
            pinned[i / 56] = slot;
        }
    }
    for (int tries = 0; tries < 100; tries++) {
        r = weir_region_write(region, built, 31 * sizeof(item) + 48 * KIB, item, 32 * KIB);
        if (r == 0)
            break;
        CHILD_CHECK(r == -EAGAIN);
        CHILD_CHECK(weir_region_wait(region, 1000000) >= 0);
    }
    weir_region_stats(region, &stats);
    CHILD_CHECK(stats.written_bytes < 64 * MIB); /* it was not written back again and again */
    weir_region_unpin(region, pinned[0]);
    weir_region_unpin(region, pinned[1]);
    if (r != 0)
        CHILD_CHECK(
            weir_region_write(region, built, 31 * sizeof(item) + 48 * KIB, item, 32 * KIB) == 0);
    weir_region_audit(region);
    weir_region_close(region);
    return 0;
}

static void a_piece_across_chunks_between_pins(void **state)
{
    (void)state;
    assert_child_passes(write_across_between_pins);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        CASE("a pin keeps slot and address", a_pin_keeps_the_address),
        CASE("pins count", pins_count),
        CASE("a pinned item that is freed goes with its last pin",
             a_pinned_item_is_freed_with_its_last_pin),
        CASE("a fetched item can be pinned", a_fetched_item_can_be_pinned),
        CASE("what was fetched and lingers can be pinned", what_lingers_can_be_pinned),
        CASE("a pinned copy keeps its address when its chunk comes back",
             a_pinned_copy_keeps_its_address),
        CASE("what is pinned holds its buffer, and fetches go on after unpins",
             what_is_pinned_holds_its_buffer),
        CASE("a piece comes whatever is pinned", a_piece_comes_whatever_is_pinned),
        CASE("pins never make a call wait for ever", pins_never_make_a_call_wait_for_ever),
        CASE("a piece across two chunks goes in or is refused, whatever is pinned",
             a_piece_across_chunks_between_pins),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("region_pin", cases, NULL, NULL);
}
