/* SPDX-License-Identifier: MIT */
/*
 * region_unit - items, handles and ticks: what include/weir/region.h promises
 *
 * Written from the header alone: items go in, whole or in pieces, and out; slots
 * are walked and go stale; polls, waits, signals, and a ring shared with others.
 * What has a program of its own: region_open, _space, _clean, _fetch, _damage,
 * _pin, _place, _compact, _named, _resident, _secret, and growth.
 *
 *      region_unit [--synchronous] [pattern]
 *
 * With --synchronous io_uring is forbidden first, as a container's filter does,
 * and the same sentences must hold.
 */
#include "region_fixture.h"

#include <pthread.h>
#include <signal.h>
#include <sys/time.h>

/* ---- Items in ------------------------------------------------------------------ */

static void an_item_comes_back_byte_for_byte(void **state)
{
    static const size_t sizes[] = {1,    2,    15,   16,    17,    31,    32,    33,     63,
                                   64,   65,   100,  255,   1000,  4095,  4096,  4097,   8191,
                                   8192, 8193, 9999, 65535, 65536, 65537, 99999, 262144, 500000};
    struct weir_slot slots[sizeof(sizes) / sizeof(sizes[0])];
    struct fixture f;
    uint64_t live = 0;

    (void)state;
    start(&f, (struct weir_region_config){0});
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        slots[i] = put(&f, i, sizes[i]);
        live += sizes[i];
        weir_region_audit(f.region);
        struct weir_region_stats stats = figures(&f);
        assert_int_equal(stats.live_bytes, live);
        assert_int_equal(stats.slot_count, i + 1);
        assert_int_equal(stats.put_count, i + 1);
        assert_int_equal(stats.put_bytes, live);
    }
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        assert_here(&f, slots[i], sizes[i]);
        assert_whole(&f, slots[i]);
    }
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i += 2) {
        assert_int_equal(weir_region_free(f.region, slots[i]), 0);
        weir_region_audit(f.region);
        live -= sizes[i];
        assert_int_equal(figures(&f).live_bytes, live);
    }
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        if (i % 2 == 0)
            assert_stale(&f, slots[i]);
        else
            assert_here(&f, slots[i], sizes[i]);
    }
    finish(&f);
}

static void an_item_of_no_bytes_is_an_item(void **state)
{
    struct fixture f;
    struct weir_slot a = {0, 0};
    struct weir_slot b = {0, 0};
    size_t bytes = 1;
    char byte = 'x';

    (void)state;
    start(&f, (struct weir_region_config){0});
    assert_int_equal(weir_region_put(f.region, NULL, 0, (struct weir_label){1, 2}, &a), 0);
    assert_int_equal(weir_region_put(f.region, "", 0, (struct weir_label){3, 4}, &b), 0);
    assert_false(weir_slot_is_none(a));
    assert_true(a.index != b.index);
    assert_here(&f, a, 0);
    assert_here(&f, b, 0);
    assert_int_equal(info_of(&f, a).label.key, 1);
    assert_int_equal(info_of(&f, b).label.key, 3);
    assert_int_equal(weir_region_read(f.region, a, 0, &byte, 1, &bytes), 0);
    assert_int_equal(bytes, 0);
    assert_int_equal(byte, 'x');
    fetch_one(&f, a, 0);
    assert_int_equal(figures(&f).live_bytes, 0);
    assert_int_equal(figures(&f).slot_count, 2);
    assert_int_equal(weir_region_free(f.region, a), 0);
    assert_stale(&f, a);
    assert_here(&f, b, 0);
    finish(&f);
}

static void an_item_of_no_bytes_goes_cold_too(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    struct weir_slot slot = put(&f, 5, 0);
    struct weir_slot next = put(&f, 6, 100);
    make_cold(&f, next);
    size_t bytes = 1;
    char byte;
    assert_int_equal(weir_region_read(f.region, slot, 0, &byte, 1, &bytes), 0);
    assert_int_equal(bytes, 0);
    fetch_one(&f, slot, 0);
    finish(&f);
}

static void labels_are_kept(void **state)
{
    static const struct weir_label labels[] = {
        {0, 0}, {UINT64_MAX, UINT16_MAX}, {1, 0}, {0, 1}, {UINT64_C(1) << 63, 1u << 15}};
    struct weir_slot slots[5];
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){0});
    for (int i = 0; i < 5; i++)
        assert_int_equal(weir_region_put(f.region, "abc", 3, labels[i], &slots[i]), 0);
    for (int i = 0; i < 5; i++) {
        struct weir_slot_info info = info_of(&f, slots[i]);
        assert_int_equal(info.label.key, labels[i].key);
        assert_int_equal(info.label.owner, labels[i].owner);
        assert_int_equal(info.bytes, 3);
        assert_true(info.committed);
        assert_true(info.resident);
    }
    finish(&f);
}

static void the_largest_put(void **state)
{
    struct fixture f;
    struct weir_slot none = {4711, 4712};

    (void)state;
    start(&f, (struct weir_region_config){0});
    struct weir_region_stats before = figures(&f);
    size_t most = before.put_bytes_max;
    struct weir_slot slot = put(&f, 42, most);
    assert_here(&f, slot, most);
    assert_whole(&f, slot);
    before = figures(&f);
    assert_int_equal(try_put(&f, 43, most + 1, 0, &none), -EFBIG);
    assert_int_equal(weir_region_put(f.region, "x", SIZE_MAX, (struct weir_label){0}, &none),
                     -EFBIG);
    assert_int_equal(weir_region_put(f.region, "x", SIZE_MAX - 15, (struct weir_label){0}, &none),
                     -EFBIG);
    assert_int_equal(none.index, 4711);
    assert_int_equal(none.generation, 4712);
    struct weir_region_stats after = figures(&f);
    assert_same_items(&before, &after);
    finish(&f);
}

static void assert_whole_in_pieces(struct fixture *f, struct weir_slot slot, uint64_t piece_bytes)
{
    struct weir_slot_info info = info_of(f, slot);
    char *piece = test_malloc(piece_bytes);

    for (uint64_t at = 0; at < info.bytes; at += piece_bytes) {
        size_t bytes = 0;
        uint64_t now = info.bytes - at < piece_bytes ? info.bytes - at : piece_bytes;
        assert_int_equal(weir_region_read(f->region, slot, at, piece, piece_bytes, &bytes), 0);
        assert_int_equal(bytes, now);
        assert_pattern(piece, bytes, info.label.key, at);
    }
    test_free(piece);
}

static void the_largest_item_comes_in_pieces(void **state)
{
    struct fixture f;
    struct weir_slot slot = {0, 0};
    struct weir_slot none = {4711, 4712};

    (void)state;
    start(&f, (struct weir_region_config){
                  .bytes_max = 128 * MIB,
                  .resident_bytes_max = RESIDENT_MIN,
              });
    if (!is_bounded(&f))
        return;
    struct weir_region_stats stats = figures(&f);
    uint64_t most = stats.item_bytes_max;
    assert_true(most >= 16 * MIB); /* a stated fraction, not a token */
    assert_int_equal(weir_region_alloc(f.region, most + 1, (struct weir_label){0}, &none), -EFBIG);
    assert_int_equal(weir_region_alloc(f.region, SIZE_MAX, (struct weir_label){0}, &none), -EFBIG);
    assert_int_equal(none.index, 4711);
    assert_int_equal(figures(&f).slot_count, 0);

    assert_int_equal(weir_region_alloc(f.region, most, (struct weir_label){77, 1}, &slot), 0);
    weir_region_audit(f.region);
    assert_int_equal(write_pieces(&f, slot, 77, most, stats.put_bytes_max), 0);
    assert_bound_holds(&f);
    assert_int_equal(weir_region_commit(f.region, slot), 0);
    weir_region_audit(f.region);
    assert_int_equal(info_of(&f, slot).bytes, most);
    assert_whole_in_pieces(&f, slot, 333333);
    assert_bound_holds(&f);
    assert_int_equal(weir_region_free(f.region, slot), 0);
    assert_stale(&f, slot);
    finish(&f);
}

static void an_item_larger_than_memory(void **state)
{
    struct fixture f;
    struct weir_slot slot = {0, 0};
    const void *data;
    uint64_t bytes = 24 * MIB;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    struct weir_region_stats stats = figures(&f);
    assert_true(stats.item_bytes_max >= bytes);
    assert_true(stats.fetch_bytes_max < bytes);
    assert_int_equal(weir_region_alloc(f.region, bytes, (struct weir_label){78, 1}, &slot), 0);
    assert_int_equal(write_pieces(&f, slot, 78, bytes, 100000), 0);
    assert_int_equal(weir_region_commit(f.region, slot), 0);
    assert_bound_holds(&f);
    assert_int_equal(weir_region_at(f.region, slot, &data, NULL), -EAGAIN);
    assert_int_equal(weir_region_pin(f.region, slot, &data, NULL), -EAGAIN);
    assert_int_equal(weir_region_fetch(f.region, &slot, 1, never_called, NULL), -EFBIG);

    /* One that is too large spoils the call for all, and changes nothing. */
    struct weir_slot both[2] = {put(&f, 1, 10), slot};
    assert_int_equal(weir_region_fetch(f.region, both, 2, never_called, NULL), -EFBIG);
    for (int i = 0; i < 10; i++)
        assert_true(wait_once(&f) >= 0);

    char *buffer = test_malloc(MIB);
    for (uint64_t at = 0; at < bytes; at += MIB) {
        struct piece piece = {.operation = {piece_done}, .f = &f};
        memset(buffer, 0xee, MIB);
        assert_int_equal(weir_region_fetch_into(f.region, slot, at, buffer, MIB, &piece.operation),
                         0);
        assert_false(piece.done); /* never from the call */
        piece_finish(&f, &piece);
        assert_int_equal(piece.result, MIB);
        assert_pattern(buffer, MIB, 78, at);
    }
    test_free(buffer);
    assert_whole(&f, slot); /* read at once, verified */
    assert_bound_holds(&f);
    finish(&f);
}

static void pieces_come_in_order(void **state)
{
    struct fixture f;
    struct weir_slot slot = {0, 0};
    char bytes[1000];

    (void)state;
    start(&f, (struct weir_region_config){0});
    harness_fill(bytes, sizeof(bytes), 9, 0);
    assert_int_equal(weir_region_alloc(f.region, 1000, (struct weir_label){9, 1}, &slot), 0);
    assert_false(info_of(&f, slot).committed);
    assert_int_equal(info_of(&f, slot).bytes, 1000);
    assert_int_equal(weir_region_write(f.region, slot, 1, bytes + 1, 10), -EINVAL);   /* a gap */
    assert_int_equal(weir_region_write(f.region, slot, 0, bytes, 1001), -EINVAL);     /* too long */
    assert_int_equal(weir_region_write(f.region, slot, 0, bytes, SIZE_MAX), -EINVAL); /* wraps */
    assert_int_equal(weir_region_write(f.region, slot, UINT64_MAX, bytes, 1), -EINVAL);
    assert_int_equal(weir_region_commit(f.region, slot), -EINVAL);
    assert_int_equal(weir_region_write(f.region, slot, 0, bytes, 300), 0);
    assert_int_equal(weir_region_write(f.region, slot, 0, bytes, 300), -EINVAL); /* again */
    assert_int_equal(weir_region_write(f.region, slot, 299, bytes, 2), -EINVAL); /* an overlap */
    assert_int_equal(weir_region_write(f.region, slot, 301, bytes, 2), -EINVAL);
    assert_int_equal(weir_region_write(f.region, slot, 300, bytes, 701), -EINVAL);
    assert_int_equal(weir_region_write(f.region, slot, 300, NULL, 0), 0);
    assert_int_equal(weir_region_write(f.region, slot, 300, bytes + 300, 699), 0);
    assert_int_equal(weir_region_commit(f.region, slot), -EINVAL); /* a byte is missing */
    assert_false(info_of(&f, slot).committed);
    assert_int_equal(weir_region_write(f.region, slot, 999, bytes + 999, 1), 0);
    assert_int_equal(weir_region_write(f.region, slot, 1000, bytes, 1), -EINVAL);
    assert_int_equal(weir_region_commit(f.region, slot), 0);
    assert_here(&f, slot, 1000);
    /* What is committed is not written again. */
    assert_true(weir_region_write(f.region, slot, 0, bytes, 1) < 0);
    assert_true(weir_region_write(f.region, slot, 1000, bytes, 0) <= 0);
    assert_true(weir_region_commit(f.region, slot) < 0);
    assert_here(&f, slot, 1000);
    finish(&f);
}

static void a_piece_has_a_largest_size(void **state)
{
    struct fixture f;
    struct weir_slot slot;

    (void)state;
    start(&f, (struct weir_region_config){0});
    size_t most = figures(&f).put_bytes_max;
    char *bytes = test_calloc(1, most + 1);
    harness_fill(bytes, most + 1, 5, 0);
    assert_int_equal(weir_region_alloc(f.region, most + 1, (struct weir_label){5, 0}, &slot), 0);
    assert_int_equal(weir_region_write(f.region, slot, 0, bytes, most + 1), -EINVAL);
    assert_int_equal(weir_region_write(f.region, slot, 0, bytes, most), 0);
    assert_int_equal(weir_region_write(f.region, slot, most, bytes + most, 1), 0);
    assert_int_equal(weir_region_commit(f.region, slot), 0);
    assert_whole(&f, slot);
    test_free(bytes);
    finish(&f);
}

static void an_unfinished_item_cannot_be_read(void **state)
{
    struct fixture f;
    struct weir_slot slot;
    const void *data = &f;
    size_t bytes = 4711;
    char buffer[8] = "before";
    struct weir_operation operation = {operation_never_completed};

    (void)state;
    start(&f, (struct weir_region_config){0});
    assert_int_equal(weir_region_alloc(f.region, 6, (struct weir_label){1, 3}, &slot), 0);
    assert_int_equal(weir_region_write(f.region, slot, 0, "secret", 6), 0);
    assert_int_equal(weir_region_at(f.region, slot, &data, &bytes), -ESTALE);
    assert_int_equal(weir_region_pin(f.region, slot, &data, &bytes), -ESTALE);
    assert_int_equal(weir_region_read(f.region, slot, 0, buffer, 6, &bytes), -ESTALE);
    assert_int_equal(weir_region_fetch_into(f.region, slot, 0, buffer, 6, &operation), -ESTALE);
    assert_ptr_equal(data, &f);
    assert_int_equal(bytes, 4711);
    assert_string_equal(buffer, "before");
    assert_false(info_of(&f, slot).resident);
    struct fetches *fetches = fetch_many(&f, &slot, 1);
    fetch_finish(&f, fetches);
    assert_int_equal(fetches->results[0], -ESTALE);
    assert_int_equal(weir_region_commit(f.region, slot), 0);
    assert_int_equal(weir_region_at(f.region, slot, &data, &bytes), 0);
    assert_memory_equal(data, "secret", 6);
    test_free(fetches);
    finish(&f);
}

static void an_unfinished_item_is_given_up_by_free(void **state)
{
    struct fixture f;
    struct weir_slot slot;

    (void)state;
    start(&f, (struct weir_region_config){0});
    uint64_t mark = figures(&f).mark_bytes;
    uint64_t metadata = figures(&f).metadata_bytes;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(weir_region_alloc(f.region, 100000, (struct weir_label){1, 3}, &slot), 0);
        assert_int_equal(write_pieces(&f, slot, 1, (uint64_t)i * 50000, 10000), 0);
        assert_int_equal(weir_region_free(f.region, slot), 0);
        weir_region_audit(f.region);
        assert_stale(&f, slot);
        assert_int_equal(figures(&f).metadata_bytes, metadata);
    }
    assert_int_equal(figures(&f).mark_bytes, mark);
    assert_int_equal(figures(&f).slot_count, 0);
    assert_int_equal(figures(&f).live_bytes, 0);
    finish(&f);
}

static void several_items_are_built_at_once(void **state)
{
    struct fixture f;
    struct weir_slot slots[8];
    char bytes[1000];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    for (uint64_t i = 0; i < 8; i++)
        assert_int_equal(
            weir_region_alloc(f.region, 600 * 1000, (struct weir_label){i, 3}, &slots[i]), 0);
    for (uint64_t at = 0; at < 600 * 1000; at += 1000) {
        for (uint64_t i = 0; i < 8; i++) {
            harness_fill(bytes, 1000, i, at);
            assert_int_equal(weir_region_write(f.region, slots[i], at, bytes, 1000), 0);
        }
        if (at % 100000 == 0) {
            struct weir_slot other;
            assert_int_equal(try_put(&f, at, 300000, OWNER_FILLER, &other), 0);
            weir_region_audit(f.region);
        }
    }
    for (int i = 0; i < 8; i++)
        assert_int_equal(weir_region_commit(f.region, slots[i]), 0);
    for (int i = 0; i < 8; i++)
        assert_whole(&f, slots[i]);
    assert_bound_holds(&f);
    finish(&f);
}

static void an_item_of_no_bytes_is_whole_at_once(void **state)
{
    struct fixture f;
    struct weir_slot slot;

    (void)state;
    start(&f, (struct weir_region_config){0});
    assert_int_equal(weir_region_alloc(f.region, 0, (struct weir_label){1, 3}, &slot), 0);
    assert_int_equal(weir_region_write(f.region, slot, 0, "x", 1), -EINVAL);
    assert_int_equal(weir_region_commit(f.region, slot), 0);
    assert_here(&f, slot, 0);
    finish(&f);
}

static void a_pinned_item_can_be_put_again(void **state)
{
    struct fixture f;
    struct weir_slot copies[512];
    const void *data;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    struct weir_slot first = put(&f, 77, 50000);
    assert_int_equal(weir_region_pin(f.region, first, &data, NULL), 0);
    for (int i = 0; i < 512; i++) /* from its own address, while all else goes cold */
        assert_int_equal(
            weir_region_put(f.region, data, 50000, (struct weir_label){77, 1}, &copies[i]), 0);
    for (int i = 0; i < 512; i++)
        assert_whole(&f, copies[i]);
    assert_here(&f, first, 50000);
    weir_region_unpin(f.region, first);
    finish(&f);
}

/* ---- Free ---------------------------------------------------------------------- */

static void a_freed_slot_is_stale(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){0});
    struct weir_slot slot = put(&f, 1, 100);
    struct weir_slot other = put(&f, 2, 100);
    assert_int_equal(weir_region_free(f.region, slot), 0);
    weir_region_audit(f.region);
    assert_stale(&f, slot);
    fetch_one(&f, slot, -ESTALE);
    assert_int_equal(weir_region_free(f.region, slot), -ESTALE); /* twice, thrice */
    assert_int_equal(weir_region_free(f.region, slot), -ESTALE);
    for (uint64_t i = 0; i < 1000; i++) { /* its place is taken, it stays stale */
        struct weir_slot taken = put(&f, 10 + i, 100);
        assert_true(taken.index != slot.index || taken.generation != slot.generation);
        assert_stale(&f, slot);
        if (i % 2 == 0)
            assert_int_equal(weir_region_free(f.region, taken), 0);
    }
    assert_here(&f, other, 100);
    finish(&f);
}

static void foreign_slots_are_stale(void **state)
{
    struct fixture f;
    struct weir_region_config config = {.directory = harness_tmpdir()};
    struct weir_region *other = NULL;
    static const struct weir_slot wild[] = {
        {0, 0},          {0, 1},        {1, 0},        {UINT32_MAX, UINT32_MAX},
        {UINT32_MAX, 1}, {1u << 24, 1}, {1u << 31, 3}, {0, UINT32_MAX}};

    (void)state;
    start(&f, (struct weir_region_config){0});
    struct weir_slot mine[100];
    for (uint64_t i = 0; i < 100; i++)
        mine[i] = put(&f, i, 50);
    for (size_t i = 0; i < sizeof(wild) / sizeof(wild[0]); i++) {
        assert_stale(&f, wild[i]);
        fetch_one(&f, wild[i], -ESTALE);
    }
    assert_int_equal(weir_region_open(&config, &other), 0);
    for (uint64_t i = 0; i < 100; i++) {
        struct weir_slot slot;
        assert_int_equal(weir_region_put(other, "theirs", 6, (struct weir_label){0}, &slot), 0);
        assert_stale(&f, slot);
    }
    for (int i = 0; i < 100; i++) /* the right place, the wrong life */
        for (uint32_t k = 1; k < 5; k++) {
            assert_stale(&f, (struct weir_slot){mine[i].index, mine[i].generation + k});
            assert_stale(&f, (struct weir_slot){mine[i].index, mine[i].generation - k});
        }
    weir_region_close(other);
    for (int i = 0; i < 100; i++)
        assert_here(&f, mine[i], 50);
    finish(&f);
}

static void a_handle_never_comes_twice(void **state)
{
    struct fixture f;
    struct weir_slot last = {0, 0};
    static struct weir_slot old[64];

    (void)state;
    start(&f, (struct weir_region_config){0});
    for (uint64_t i = 0; i < 200000; i++) {
        struct weir_slot slot;
        assert_int_equal(weir_region_put(f.region, &i, sizeof(i), (struct weir_label){i, 1}, &slot),
                         0);
        assert_true(slot.index != last.index || slot.generation != last.generation);
        if (i >= 64)
            assert_int_equal(weir_region_free(f.region, old[i % 64]), -ESTALE);
        assert_int_equal(weir_region_free(f.region, slot), 0);
        old[i % 64] = slot;
        last = slot;
    }
    assert_int_equal(figures(&f).put_count, 200000);
    finish(&f);
}

static void an_owner_gives_all_its_slots_back(void **state)
{
    struct fixture f;
    struct weir_slot slots[300];
    struct weir_slot built;
    const void *data;
    uint64_t count = 4711;

    (void)state;
    start(&f, (struct weir_region_config){0});
    for (uint64_t i = 0; i < 300; i++)
        assert_int_equal(try_put(&f, i, i, (uint16_t)(i % 3), &slots[i]), 0);
    assert_int_equal(weir_region_alloc(f.region, 10, (struct weir_label){5, 1}, &built), 0);
    assert_int_equal(weir_region_pin(f.region, slots[100], &data, NULL), 0); /* owner 1 */
    weir_region_free_owner(f.region, 4, &count);
    assert_int_equal(count, 0);
    weir_region_free_owner(f.region, 1, &count);
    assert_int_equal(count, 101); /* the unfinished one and the pinned one too */
    weir_region_audit(f.region);
    assert_stale(&f, built);
    assert_pattern(data, 100, 100, 0);
    for (uint64_t i = 0; i < 300; i++) {
        if (i % 3 == 1)
            assert_stale(&f, slots[i]);
        else
            assert_here(&f, slots[i], i);
    }
    weir_region_free_owner(f.region, 1, &count);
    assert_int_equal(count, 0);
    weir_region_unpin(f.region, slots[100]);
    weir_region_free_owner(f.region, 0, NULL);
    weir_region_free_owner(f.region, 2, NULL);
    assert_int_equal(figures(&f).slot_count, 0);
    assert_int_equal(figures(&f).live_bytes, 0);
    finish(&f);
}

/* ---- Slots ----------------------------------------------------------------------- */

static void every_live_slot_is_walked_once(void **state)
{
    struct fixture f;
    static struct weir_slot slots[1000];
    static uint32_t seen[1000];
    struct weir_slot at = {0, 0};

    (void)state;
    start(&f, (struct weir_region_config){0});
    assert_false(weir_region_next(f.region, &at)); /* of nothing, nothing */
    for (uint64_t i = 0; i < 1000; i++)
        slots[i] = put(&f, i, i % 50);
    for (uint64_t i = 0; i < 1000; i += 3)
        assert_int_equal(weir_region_free(f.region, slots[i]), 0);
    memset(seen, 0, sizeof(seen));
    at = (struct weir_slot){0, 0};
    for (uint64_t count = 0; weir_region_next(f.region, &at); count++) {
        assert_true(count < 1000);
        uint64_t key = info_of(&f, at).label.key;
        assert_true(key < 1000);
        assert_int_equal(at.index, slots[key].index);
        assert_int_equal(at.generation, slots[key].generation);
        seen[key]++;
    }
    for (uint64_t i = 0; i < 1000; i++)
        assert_int_equal(seen[i], i % 3 == 0 ? 0 : 1);

    /* To free what one walks over is the usual thing to do. */
    assert_true(weir_slot_is_none(at)); /* at the end, which is the beginning */
    while (weir_region_next(f.region, &at))
        assert_int_equal(weir_region_free(f.region, at), 0);
    assert_int_equal(figures(&f).slot_count, 0);
    weir_region_audit(f.region);
    finish(&f);
}

static void unfinished_items_are_walked_too(void **state)
{
    struct fixture f;
    struct weir_slot slot;
    struct weir_slot at = {0, 0};

    (void)state;
    start(&f, (struct weir_region_config){0});
    assert_int_equal(weir_region_alloc(f.region, 100, (struct weir_label){8, 9}, &slot), 0);
    assert_true(weir_region_next(f.region, &at));
    assert_int_equal(at.index, slot.index);
    assert_int_equal(at.generation, slot.generation);
    assert_false(info_of(&f, at).committed);
    assert_int_equal(info_of(&f, at).label.key, 8);
    assert_int_equal(info_of(&f, at).label.owner, 9);
    assert_false(weir_region_next(f.region, &at));
    finish(&f);
}

/* ---- Background ------------------------------------------------------------------- */

static void wait_does_not_sleep_for_nothing(void **state)
{
    struct fixture f;
    struct timespec before;
    struct timespec after;

    (void)state;
    start(&f, (struct weir_region_config){0});
    become_idle(&f);
    clock_gettime(CLOCK_MONOTONIC, &before);
    assert_int_equal(weir_region_wait(f.region, UINT64_C(20000000000)), 0);
    clock_gettime(CLOCK_MONOTONIC, &after);
    assert_true(after.tv_sec - before.tv_sec < 10);
    finish(&f);
}

static void the_longest_wait_is_no_error(void **state)
{
    struct fixture f;
    struct weir_slot slots[11];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 10, 3000);
    for (int i = 0; i < 10; i++)
        assert_true(weir_region_wait(f.region, 0) >= 0); /* none at all, too */
    struct fetches *fetches = fetch_many(&f, slots, 10);
    f.in_poll = true;
    for (int i = 0; i < 1000 && fetches->called < 10; i++)
        assert_true(weir_region_wait(f.region, UINT64_MAX) >= 0);
    f.in_poll = false;
    assert_int_equal(fetches->called, 10);
    test_free(fetches);
    finish(&f);
}

static void on_signal(int number)
{
    (void)number;
}

static void signals_do_no_harm(void **state)
{
    struct fixture f;
    static struct weir_slot slots[512];
    struct sigaction before;
    struct sigaction action = {.sa_handler = on_signal}; /* no SA_RESTART */
    struct itimerval often = {{0, 300}, {0, 300}};
    struct itimerval never = {{0, 0}, {0, 0}};

    (void)state;
    assert_int_equal(sigaction(SIGALRM, &action, &before), 0);
    assert_int_equal(setitimer(ITIMER_REAL, &often, NULL), 0);
    start(&f, (struct weir_region_config){
                  .bytes_initial = 2 * MIB,
                  .resident_bytes_max = RESIDENT_MIN,
              });
    if (!is_bounded(&f)) {
        assert_int_equal(setitimer(ITIMER_REAL, &never, NULL), 0);
        return;
    }
    for (uint64_t i = 0; i < 512; i++)
        slots[i] = put(&f, i, 64 * KIB);
    struct fetches *fetches = fetch_many(&f, slots, 400);
    fetch_finish(&f, fetches);
    for (int i = 0; i < 400; i++)
        assert_int_equal(fetches->results[i], 0);
    for (int i = 0; i < 512; i++)
        assert_whole(&f, slots[i]);
    assert_bound_holds(&f);
    assert_int_equal(setitimer(ITIMER_REAL, &never, NULL), 0);
    assert_int_equal(sigaction(SIGALRM, &before, NULL), 0);
    test_free(fetches);
    finish(&f);
}

static void poll_of_an_idle_region_is_zero(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){0});
    become_idle(&f);
    for (int i = 0; i < 100; i++)
        assert_int_equal(poll_once(&f), 0);
    finish(&f);
}

static void on_a_shared_ring_nothing_waits(void **state)
{
    struct fixture f;
    static struct weir_slot slots[1024];
    uint64_t refused = 0;

    (void)state;
    start_on_ring(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN}, 256);
    if (!is_bounded(&f))
        return;
    for (uint64_t i = 0; i < 1024; i++) {
        struct timespec since;
        clock_gettime(CLOCK_MONOTONIC, &since);
        for (;;) {
            struct weir_region_stats before = figures(&f);
            slots[i] = (struct weir_slot){4711, 4712};
            int r = try_put(&f, i, 64 * KIB, OWNER_DEFAULT, &slots[i]);
            assert_true(figures(&f).resident_bytes <= RESIDENT_MIN);
            if (r == 0)
                break;
            struct weir_region_stats after = figures(&f);
            assert_int_equal(r, -EAGAIN);
            assert_int_equal(slots[i].index, 4711);
            assert_same_items(&before, &after);
            refused++;
            assert_true(wait_once(&f) >= 0);
            assert_false(patience_is_over(&since));
        }
        if (i % 64 == 0)
            weir_region_audit(f.region);
    }
    assert_true(refused > 0); /* nobody reaped in between: it had to say so */
    assert_bound_holds(&f);

    struct fetches *fetches = fetch_many(&f, slots, 32);
    fetch_finish(&f, fetches);
    for (int i = 0; i < 32; i++)
        assert_int_equal(fetches->results[i], 0);
    test_free(fetches);

    /* And closed with reads under way, whose buffers the ring must not touch again. */
    assert_int_equal(weir_region_fetch(f.region, slots + 100, 16, never_called, NULL), 0);
    weir_region_close(f.region);
    nothing_left(&f);
}

static void an_unfinished_item_on_a_shared_ring(void **state)
{
    struct fixture f;
    struct weir_slot slot;
    uint64_t refused = 0;
    static char bytes[64 * 1024];

    (void)state;
    start_on_ring(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN}, 256);
    if (!is_bounded(&f))
        return;
    assert_int_equal(weir_region_alloc(f.region, 32 * MIB, (struct weir_label){6, 1}, &slot), 0);
    for (uint64_t at = 0; at < 32 * MIB; at += sizeof(bytes)) {
        struct timespec since;
        clock_gettime(CLOCK_MONOTONIC, &since);
        harness_fill(bytes, sizeof(bytes), 6, at);
        int r;
        while ((r = weir_region_write(f.region, slot, at, bytes, sizeof(bytes))) == -EAGAIN) {
            refused++;
            assert_true(wait_once(&f) >= 0);
            assert_false(patience_is_over(&since));
        }
        assert_int_equal(r, 0);
    }
    assert_true(refused > 0);
    assert_int_equal(weir_region_commit(f.region, slot), 0);
    assert_whole(&f, slot);
    assert_bound_holds(&f);
    finish(&f);
}

static void the_tables_have_a_descriptor(void **state)
{
    struct fixture f;
    char path[64];
    char target[256];

    (void)state;
    start(&f, (struct weir_region_config){0});
    int fd = weir_region_fd(f.region);
    assert_true(fd >= 0);
    assert_int_equal(fd, weir_region_fd(f.region));
    assert_true(fd != f.data_fd);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    ssize_t length = readlink(path, target, sizeof(target) - 1);
    assert_true(length > 0);
    target[length] = '\0';
    assert_non_null(strstr(target, "memfd:weir.region"));
    finish(&f);
    assert_int_equal(fcntl(fd, F_GETFD), -1);
}

/* ---- Breaches of the contract, in debug builds ------------------------------------ */

#ifdef NDEBUG
static const bool asserts_are_on = false;
#else
static const bool asserts_are_on = true;
#endif

static void assert_child_is_stopped(int (*run)(const char *directory))
{
    int status = child_status(run, true);

    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
}

static int close_while_pinned(const char *directory)
{
    struct weir_region_config config = {.directory = directory};
    struct weir_region *region;
    struct weir_slot slot;
    const void *data;

    CHILD_CHECK(weir_region_open(&config, &region) == 0);
    CHILD_CHECK(weir_region_put(region, "x", 1, (struct weir_label){0}, &slot) == 0);
    CHILD_CHECK(weir_region_pin(region, slot, &data, NULL) == 0);
    weir_region_close(region);
    return 0;
}

static int unpin_what_is_not_pinned(const char *directory)
{
    struct weir_region_config config = {.directory = directory};
    struct weir_region *region;
    struct weir_slot slot;

    CHILD_CHECK(weir_region_open(&config, &region) == 0);
    CHILD_CHECK(weir_region_put(region, "x", 1, (struct weir_label){0}, &slot) == 0);
    weir_region_unpin(region, slot);
    return 0;
}

static int from_callback(const char *directory, weir_fetch_fn *done)
{
    struct weir_region_config config = {.directory = directory};
    struct weir_region *region;
    struct weir_slot slot;

    CHILD_CHECK(weir_region_open(&config, &region) == 0);
    CHILD_CHECK(weir_region_put(region, "x", 1, (struct weir_label){0}, &slot) == 0);
    CHILD_CHECK(weir_region_fetch(region, &slot, 1, done, region) == 0);
    return weir_region_poll(region) == 1 ? 0 : __LINE__;
}

static void poll_again(void *region, struct weir_slot slot, int result)
{
    (void)slot;
    (void)result;
    (void)!weir_region_poll(region);
}

static void wait_inside(void *region, struct weir_slot slot, int result)
{
    (void)slot;
    (void)result;
    (void)!weir_region_wait(region, 0);
}

static void close_inside(void *region, struct weir_slot slot, int result)
{
    (void)slot;
    (void)result;
    weir_region_close(region);
    _exit(0); /* where it is not stopped it would not come back */
}

static int poll_from_a_callback(const char *directory)
{
    return from_callback(directory, poll_again);
}

static int wait_from_a_callback(const char *directory)
{
    return from_callback(directory, wait_inside);
}

static int close_from_a_callback(const char *directory)
{
    return from_callback(directory, close_inside);
}

struct poller {
    struct weir_operation operation;
    struct weir_region *region;
};

static void piece_polls(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct poller *poller = (struct poller *)(void *)operation;

    (void)result;
    (void)flags;
    (void)!weir_region_poll(poller->region);
}

static int poll_from_a_piece(const char *directory)
{
    struct weir_region_config config = {.directory = directory};
    struct poller poller = {.operation = {piece_polls}};
    struct weir_slot slot;
    char byte;

    CHILD_CHECK(weir_region_open(&config, &poller.region) == 0);
    CHILD_CHECK(weir_region_put(poller.region, "x", 1, (struct weir_label){0}, &slot) == 0);
    CHILD_CHECK(weir_region_fetch_into(poller.region, slot, 0, &byte, 1, &poller.operation) == 0);
    return weir_region_poll(poller.region) == 1 ? 0 : __LINE__;
}

static void *put_from_elsewhere(void *region)
{
    struct weir_slot slot;

    return weir_region_put(region, "x", 1, (struct weir_label){0}, &slot) == 0 ? region : NULL;
}

static int put_on_another_thread(const char *directory)
{
    struct weir_region_config config = {.directory = directory};
    struct weir_region *region;
    pthread_t thread;

    CHILD_CHECK(weir_region_open(&config, &region) == 0);
    CHILD_CHECK(pthread_create(&thread, NULL, put_from_elsewhere, region) == 0);
    CHILD_CHECK(pthread_join(thread, NULL) == 0);
    return 0;
}

/* In any build: what follows would be done to a region that is half through its poll. */
static void no_poll_inside_a_poll(void **state)
{
    (void)state;
    assert_child_is_stopped(poll_from_a_callback);
    assert_child_is_stopped(wait_from_a_callback);
    assert_child_is_stopped(close_from_a_callback);
    assert_child_is_stopped(poll_from_a_piece);
}

static void breaches_stop_the_process(void **state)
{
    (void)state;
    if (!asserts_are_on) {
        pass_over("asserts are off in this build");
        return;
    }
    assert_child_is_stopped(close_while_pinned);
    assert_child_is_stopped(unpin_what_is_not_pinned);
    assert_child_is_stopped(put_on_another_thread);
}

/* ---- All of them ------------------------------------------------------------------- */

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        CASE("an item comes back byte for byte, with its exact length",
             an_item_comes_back_byte_for_byte),
        CASE("an item of no bytes is an item", an_item_of_no_bytes_is_an_item),
        CASE("an item of no bytes goes cold and comes back", an_item_of_no_bytes_goes_cold_too),
        CASE("labels are kept", labels_are_kept),
        CASE("the largest put works, and one byte more is -EFBIG", the_largest_put),
        CASE("the largest item works in pieces, and one byte more is -EFBIG",
             the_largest_item_comes_in_pieces),
        CASE("an item may be larger than the memory", an_item_larger_than_memory),
        CASE("pieces come in order, without gaps, and all of them", pieces_come_in_order),
        CASE("a piece has a largest size", a_piece_has_a_largest_size),
        CASE("an unfinished item cannot be read", an_unfinished_item_cannot_be_read),
        CASE("an unfinished item is given up by free", an_unfinished_item_is_given_up_by_free),
        CASE("several items are built at once", several_items_are_built_at_once),
        CASE("an item of no bytes is whole at once", an_item_of_no_bytes_is_whole_at_once),
        CASE("a pinned item can be put again from its own address", a_pinned_item_can_be_put_again),
        CASE("a freed slot is stale, also when its place is taken", a_freed_slot_is_stale),
        CASE("slots of others and wild slots are stale", foreign_slots_are_stale),
        CASE("a handle never comes twice", a_handle_never_comes_twice),
        CASE("an owner gives all its slots back at once", an_owner_gives_all_its_slots_back),
        CASE("every live slot is walked once", every_live_slot_is_walked_once),
        CASE("unfinished items are walked too", unfinished_items_are_walked_too),
        CASE("wait does not sleep when nothing is under way", wait_does_not_sleep_for_nothing),
        CASE("the longest wait is no error, nor is none", the_longest_wait_is_no_error),
        CASE("signals do no harm", signals_do_no_harm),
        CASE("a poll of an idle region finds nothing", poll_of_an_idle_region_is_zero),
        CASE("on a shared ring a put says -EAGAIN and does not wait",
             on_a_shared_ring_nothing_waits),
        CASE("on a shared ring a large item goes in between polls",
             an_unfinished_item_on_a_shared_ring),
        CASE("the tables have a descriptor until close", the_tables_have_a_descriptor),
        CASE("a callback that polls, waits or closes stops the process", no_poll_inside_a_poll),
        CASE("breaches of the contract stop the process", breaches_stop_the_process),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("region", cases, NULL, NULL);
}
