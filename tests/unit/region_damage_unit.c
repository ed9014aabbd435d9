/* SPDX-License-Identifier: MIT */
/*
 * region_damage_unit - bytes that changed on the disk are never handed out
 *
 * A byte of a cold item is turned in the file. That the cleaner names what is
 * damaged is in region_clean_unit.
 *
 *      region_damage_unit [--synchronous] [pattern]
 */
#include "region_fixture.h"

static void a_damaged_item_is_named_and_harms_no_other(void **state)
{
    struct fixture f;
    struct weir_slot slots[11];
    char buffer[3001];
    size_t bytes = 4711;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 10, 3000);
    damage(&f, 4, 2999);
    damage(&f, 7, 100);
    uint64_t errors = figures(&f).read_error_count;
    struct fetches *fetches = fetch_many(&f, slots, 10);
    fetch_finish(&f, fetches);
    for (size_t i = 0; i < 10; i++)
        assert_int_equal(fetches->results[i], i == 4 || i == 7 ? -EBADMSG : 0);
    assert_true(figures(&f).read_error_count >= errors + 2);
    assert_int_equal(figures(&f).damaged_count, 2);
    for (size_t i = 0; i < 10; i++) {
        assert_int_equal(info_of(&f, slots[i]).damaged, i == 4 || i == 7);
        bytes = 4711;
        int r = weir_region_read(f.region, slots[i], 0, buffer, sizeof(buffer), &bytes);
        assert_int_equal(r, i == 4 || i == 7 ? -EBADMSG : 0);
        assert_int_equal(bytes, i == 4 || i == 7 ? 4711 : 3000);
    }
    /* A piece is not verified: what is there can be saved. */
    assert_int_equal(weir_region_read(f.region, slots[4], 0, buffer, 2000, &bytes), 0);
    assert_int_equal(bytes, 2000);
    assert_pattern(buffer, 2000, 4, 0);
    const void *data;
    assert_int_equal(weir_region_at(f.region, slots[4], &data, NULL), -EBADMSG);
    assert_int_equal(weir_region_pin(f.region, slots[4], &data, NULL), -EBADMSG);
    assert_false(info_of(&f, slots[4]).resident);
    assert_true(info_of(&f, slots[4]).committed);
    fetch_one(&f, slots[4], -EBADMSG);

    /* They are found without being asked for one by one. */
    size_t count = 0;
    for (struct weir_slot slot = {0, 0}; weir_region_next(f.region, &slot);) {
        if (!info_of(&f, slot).damaged)
            continue;
        assert_true(info_of(&f, slot).label.key == 4 || info_of(&f, slot).label.key == 7);
        count++;
    }
    assert_int_equal(count, 2);
    assert_int_equal(figures(&f).damaged_count, 2);
    assert_int_equal(weir_region_free(f.region, slots[4]), 0);
    assert_stale(&f, slots[4]);
    assert_int_equal(figures(&f).damaged_count, 1);
    weir_region_free_owner(f.region, OWNER_DEFAULT, NULL);
    assert_int_equal(figures(&f).damaged_count, 0);
    test_free(fetches);
    finish(&f);
}

/* A read that finds damage names it, as a fetch does; what is left of it comes in pieces. */
static void a_read_finds_damage_too(void **state)
{
    struct fixture f;
    struct weir_slot slots[4];
    size_t bytes = 4711;
    const void *data;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    char *buffer = test_malloc(100000);
    make_cold_items(&f, slots, 3, 100000);
    damage(&f, 1, 70000);
    uint64_t errors = figures(&f).read_error_count;
    assert_int_equal(weir_region_at(f.region, slots[1], &data, NULL), -EAGAIN);
    assert_int_equal(weir_region_read(f.region, slots[1], 0, buffer, 100000, &bytes), -EBADMSG);
    assert_int_equal(bytes, 4711);
    struct weir_region_stats stats = figures(&f);
    assert_int_equal(stats.read_error_count, errors + 1);
    assert_int_equal(stats.damaged_count, 1);
    assert_true(info_of(&f, slots[1]).damaged);
    assert_int_equal(weir_region_at(f.region, slots[1], &data, NULL), -EBADMSG);
    for (int i = 0; i < 3; i += 2)
        assert_whole(&f, slots[i]);

    for (uint64_t at = 0; at < 100000; at += 10000) {
        struct piece piece = {.operation = {piece_done}, .f = &f};
        memset(buffer, 0xee, 10000);
        assert_int_equal(
            weir_region_fetch_into(f.region, slots[1], at, buffer, 10000, &piece.operation), 0);
        piece_finish(&f, &piece);
        assert_int_equal(piece.result, 10000);
        if (at != 70000)
            assert_pattern(buffer, 10000, 1, at);
        else
            assert_int_equal(harness_differs_at(buffer, 10000, 1, at), 0);
        assert_int_equal(weir_region_read(f.region, slots[1], at, buffer, 10000, &bytes), 0);
        assert_int_equal(bytes, 10000);
    }
    assert_int_equal(figures(&f).damaged_count, 1);
    weir_region_audit(f.region);
    test_free(buffer);
    finish(&f);
}

/*
 * A chunk comes back because an unfinished item in it goes on: nobody gets an
 * address of bytes that are not those that were put.
 */
static void what_is_brought_back_is_verified(void **state)
{
    struct fixture f;
    struct cold_chunk chunk;
    const void *data;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_chunk(&f, &chunk);
    damage(&f, 4, 100);
    bring_back_cold_chunk(&f, &chunk);
    for (size_t i = 0; i < 10; i++) {
        if (i == 4)
            assert_int_equal(weir_region_at(f.region, chunk.slots[i], &data, NULL), -EBADMSG);
        else
            assert_here(&f, chunk.slots[i], 3000);
    }
    assert_true(info_of(&f, chunk.slots[4]).damaged);

    /* What is written again is no better for it. */
    make_cold(&f, chunk.slots[9]);
    fetch_one(&f, chunk.slots[4], -EBADMSG);
    for (size_t i = 0; i < 10; i++)
        if (i != 4)
            assert_whole(&f, chunk.slots[i]);
    finish(&f);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        CASE("a damaged item is named and harms no other",
             a_damaged_item_is_named_and_harms_no_other),
        CASE("a read finds damage too, and pieces can be had of it", a_read_finds_damage_too),
        CASE("what is brought back to be stored to is verified", what_is_brought_back_is_verified),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("region_damage", cases, NULL, NULL);
}
