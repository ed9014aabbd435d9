/* SPDX-License-Identifier: MIT */
/*
 * extent_unit - the index of free extents against a list that is searched from end to end
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "region/extent.h"

#include "seed.h"

#include <stdlib.h>

#define GRANULE     LAYOUT_GRANULE
#define BIN_MAX     (EXTENT_BIN_COUNT * LAYOUT_GRANULE)
#define ENTRIES_MAX 20001u
#define GIB         (UINT64_C(1) << 30)
#define TIB         (UINT64_C(1) << 40)

struct index {
    struct weir__extents extents;
    struct weir__entry *entries;
    uint32_t *heads;
    bool *is_in; /* the model: which entries are free extents */
};

static uint64_t test_seed;

static uint64_t offset_of(const struct index *index, uint32_t i)
{
    return weir__place_offset(index->entries[i].place);
}

static uint64_t bytes_of(const struct index *index, uint32_t i)
{
    return weir__entry_bytes_of(index->entries[i].place, index->entries[i].tag);
}

static uint64_t zone_of(const struct index *index, uint64_t offset)
{
    return offset / index->extents.zone_bytes;
}

static void start(struct index *index, uint64_t bytes_max)
{
    index->entries = test_calloc(ENTRIES_MAX, sizeof(*index->entries));
    index->is_in = test_calloc(ENTRIES_MAX, sizeof(*index->is_in));
    index->heads = test_calloc(1, EXTENT_HEAD_BYTES);
    weir__extents_init(&index->extents, index->entries, index->heads, bytes_max);
    weir__extents_audit(&index->extents);
}

static void insert(struct index *index, uint32_t i, uint64_t offset, uint64_t bytes)
{
    struct weir__entry *entry = &index->entries[i];

    assert_false(index->is_in[i]);
    entry->place = weir__entry_place(offset, bytes);
    entry->tag = weir__entry_tag(2, 0, EXTENT_FREE, bytes);
    entry->span = UINT64_C(0x1111111122222222);
    entry->key = UINT64_C(0xdeadbeefdeadbeef); /* whatever the item's key was */
    assert_int_equal(bytes_of(index, i), bytes);
    assert_int_equal(offset_of(index, i), offset);
    weir__extents_insert(&index->extents, i);
    index->is_in[i] = true;
}

static void take_out(struct index *index, uint32_t i)
{
    assert_true(index->is_in[i]);
    weir__extents_remove(&index->extents, i);
    index->is_in[i] = false;
    assert_int_equal(index->entries[i].span, UINT64_C(0x1111111122222222)); /* not ours to touch */
}

static void resize(struct index *index, uint32_t i, uint64_t offset, uint64_t bytes)
{
    assert_true(index->is_in[i]);
    weir__extents_resize(&index->extents, i, offset, bytes);
    assert_int_equal(offset_of(index, i), offset);
    assert_int_equal(bytes_of(index, i), bytes);
    assert_int_equal(index->entries[i].tag, weir__entry_tag(2, 0, EXTENT_FREE, bytes));
    assert_int_equal(index->entries[i].span, UINT64_C(0x1111111122222222));
}

/* The answer is a best fit, in the lowest zone that has one; or there is none. */
static uint32_t assert_find(const struct index *index, uint64_t space, uint32_t count)
{
    uint64_t best = UINT64_MAX;
    uint64_t zone = UINT64_MAX;
    uint32_t found = weir__extents_find(&index->extents, space);

    for (uint32_t i = 1; i < count; i++) {
        if (!index->is_in[i] || bytes_of(index, i) < space)
            continue;
        uint64_t bytes = bytes_of(index, i);
        uint64_t at = zone_of(index, offset_of(index, i));
        if (bytes < best || (bytes == best && at < zone)) {
            best = bytes;
            zone = at;
        }
    }
    if (best == UINT64_MAX) {
        assert_int_equal(found, 0);
        return 0;
    }
    assert_true(found > 0 && found < count);
    assert_true(index->is_in[found]);
    assert_int_equal(bytes_of(index, found), best);
    assert_int_equal(zone_of(index, offset_of(index, found)), zone);
    return found;
}

/* The @wanted largest: nothing that is not among them is longer than one of them. */
static void assert_largest(const struct index *index, uint32_t wanted, uint32_t count)
{
    uint32_t found[8];
    bool is_found[ENTRIES_MAX] = {false};
    uint64_t least = UINT64_MAX;
    uint64_t most = 0;
    uint32_t found_count = weir__extents_largest(&index->extents, found, wanted);

    assert_int_equal(found_count, wanted < index->extents.free_count
                                      ? wanted
                                      : (uint32_t)index->extents.free_count);
    for (uint32_t i = 0; i < found_count; i++) {
        assert_true(index->is_in[found[i]]);
        assert_false(is_found[found[i]]);
        is_found[found[i]] = true;
        least = bytes_of(index, found[i]) < least ? bytes_of(index, found[i]) : least;
        most = bytes_of(index, found[i]) > most ? bytes_of(index, found[i]) : most;
    }
    for (uint32_t i = 1; i < count; i++)
        if (index->is_in[i] && !is_found[i])
            assert_true(bytes_of(index, i) <= least);
    assert_int_equal(weir__extents_max(&index->extents), most);
}

static void finish(struct index *index)
{
    uint32_t count = 0;
    uint64_t bytes = 0;

    for (uint32_t i = 1; i < ENTRIES_MAX; i++) {
        count += index->is_in[i];
        bytes += index->is_in[i] ? bytes_of(index, i) : 0;
    }
    weir__extents_audit(&index->extents);
    assert_int_equal(index->extents.free_count, count);
    assert_int_equal(index->extents.free_bytes, bytes);
    for (uint32_t i = 1; i < ENTRIES_MAX; i++)
        if (index->is_in[i])
            take_out(index, i);
    weir__extents_audit(&index->extents);
    assert_int_equal(index->extents.free_count, 0);
    assert_int_equal(index->extents.free_bytes, 0);
    assert_int_equal(weir__extents_find(&index->extents, GRANULE), 0);
    assert_int_equal(weir__extents_find(&index->extents, BIN_MAX + GRANULE), 0);
    assert_int_equal(weir__extents_max(&index->extents), 0);
    test_free(index->entries);
    test_free(index->is_in);
    test_free(index->heads);
}

/* ---- Cases ------------------------------------------------------------------ */

static void nothing_is_found_in_an_empty_index(void **state)
{
    struct index index;

    (void)state;
    start(&index, GIB);
    assert_int_equal(weir__extents_find(&index.extents, GRANULE), 0);
    assert_int_equal(weir__extents_find(&index.extents, BIN_MAX), 0);
    assert_int_equal(weir__extents_find(&index.extents, BIN_MAX + GRANULE), 0);
    assert_int_equal(weir__extents_find(&index.extents, TIB), 0);
    finish(&index);
}

static void the_smallest_that_fits_is_found(void **state)
{
    static const uint64_t sizes[] = {16,           32,           4096,    BIN_MAX - 16, BIN_MAX,
                                     BIN_MAX + 16, BIN_MAX + 32, 1 << 20, GIB / 2 - 16};
    struct index index;
    uint64_t offset = 0;

    (void)state;
    start(&index, 2 * GIB);
    for (uint32_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        insert(&index, i + 1, offset, sizes[i]);
        offset += sizes[i] + GRANULE;
        weir__extents_audit(&index.extents);
    }
    for (uint32_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        assert_int_equal(weir__extents_find(&index.extents, sizes[i]), i + 1);
        if (i > 0)
            assert_int_equal(weir__extents_find(&index.extents, sizes[i - 1] + GRANULE), i + 1);
    }
    assert_int_equal(weir__extents_find(&index.extents, GIB / 2), 0);
    finish(&index);
}

static void the_lowest_zone_among_equals_is_found(void **state)
{
    static const uint64_t sizes[] = {16, 4096, BIN_MAX, BIN_MAX + 16, 1 << 20};
    struct index index;

    (void)state;
    for (uint32_t k = 0; k < sizeof(sizes) / sizeof(sizes[0]); k++) {
        start(&index, GIB);
        for (uint32_t i = 1; i <= 64; i++) { /* one in each zone, highest first in, then mixed */
            uint64_t zone = (i * 37) % 64;
            insert(&index, i, zone * (GIB / 64) + (i % 7) * GRANULE, sizes[k]);
        }
        for (uint64_t zone = 0; zone < 64; zone++) {
            uint32_t found = assert_find(&index, sizes[k], 65);
            assert_int_equal(zone_of(&index, offset_of(&index, found)), zone);
            take_out(&index, found);
            weir__extents_audit(&index.extents);
        }
        finish(&index);
    }
}

static void the_last_byte_of_the_largest_region_has_a_zone(void **state)
{
    static const uint64_t limits[] = {TIB, TIB - 4096, GIB + 4096, 4096, 2 << 20, 3 << 20};
    struct index index;

    (void)state;
    for (uint32_t k = 0; k < sizeof(limits) / sizeof(limits[0]); k++) {
        start(&index, limits[k]);
        insert(&index, 1, limits[k] - GRANULE, GRANULE);
        insert(&index, 2, 0, GRANULE);
        weir__extents_audit(&index.extents);
        assert_int_equal(weir__extents_find(&index.extents, GRANULE), 2);
        take_out(&index, 2);
        assert_int_equal(weir__extents_find(&index.extents, GRANULE), 1);
        finish(&index);
    }
}

static void the_largest_extent_is_found(void **state)
{
    struct index index;

    (void)state;
    start(&index, TIB);
    insert(&index, 1, 0, TIB - GRANULE);
    assert_int_equal(bytes_of(&index, 1), TIB - GRANULE);
    assert_int_equal(weir__extents_find(&index.extents, TIB - GRANULE), 1);
    assert_int_equal(weir__extents_find(&index.extents, TIB), 0);
    assert_int_equal(weir__extents_find(&index.extents, GRANULE), 1);
    assert_int_equal(index.extents.free_bytes, TIB - GRANULE);
    finish(&index);
}

/* Lengths in order and the other way round: a search tree without luck would be a list. */
static void ordered_lengths_do_no_harm(void **state)
{
    struct index index;

    (void)state;
    for (int turn = 0; turn < 2; turn++) {
        start(&index, TIB);
        for (uint32_t i = 1; i < ENTRIES_MAX; i++) {
            uint64_t bytes =
                BIN_MAX + GRANULE * (turn == 0 ? (uint64_t)i : (uint64_t)(ENTRIES_MAX - i));
            insert(&index, i, (uint64_t)i * (1 << 21), bytes);
        }
        weir__extents_audit(&index.extents);
        for (uint32_t i = 1; i < ENTRIES_MAX; i += 97)
            assert_find(&index, bytes_of(&index, i), ENTRIES_MAX);
        for (uint32_t i = 1; i < ENTRIES_MAX; i++)
            take_out(&index, i);
        finish(&index);
    }
}

static void many_equals_come_out_one_by_one(void **state)
{
    struct index index;

    (void)state;
    for (int turn = 0; turn < 2; turn++) {
        uint64_t bytes = turn == 0 ? 4096 : 1 << 20;
        uint64_t zone = 0;
        start(&index, 64 * GIB);
        for (uint32_t i = 1; i < ENTRIES_MAX; i++)
            insert(&index, i, (uint64_t)((i * 7919) % ENTRIES_MAX) * (1 << 21), bytes);
        for (uint32_t i = 1; i < ENTRIES_MAX; i++) {
            uint32_t found = weir__extents_find(&index.extents, bytes);
            assert_true(found != 0 && index.is_in[found]);
            assert_true(zone_of(&index, offset_of(&index, found)) >= zone);
            zone = zone_of(&index, offset_of(&index, found));
            take_out(&index, found);
        }
        finish(&index);
    }
}

static uint64_t random_bytes(uint64_t *random)
{
    uint64_t a = weir__random(random);

    switch (a % 4) {
    case 0:
        return GRANULE * (1 + a / 4 % 8);
    case 1:
        return GRANULE * (1 + a / 4 % EXTENT_BIN_COUNT);
    case 2:
        return BIN_MAX - 64 + GRANULE * (a / 4 % 9); /* around the border of bins and treap */
    default:
        return BIN_MAX + GRANULE * (1 + a / 4 % 4096);
    }
}

static void random_steps_equal_the_model(void **state)
{
    uint64_t random = test_seed;
    uint32_t count = 400;
    struct index index;

    (void)state;
    start(&index, 8 * GIB);
    for (int step = 0; step < 30000; step++) {
        uint32_t i = 1 + (uint32_t)weir__random_below(&random, count - 1);
        uint64_t offset = weir__random_below(&random, 8 * GIB / GRANULE - (1 << 17)) * GRANULE;
        if (index.is_in[i])
            take_out(&index, i);
        else
            insert(&index, i, offset, random_bytes(&random));
        assert_find(&index, random_bytes(&random), count);
        if (step % 64 == 0) {
            assert_largest(&index, 1 + (uint32_t)(step / 64) % 8, count);
            weir__extents_audit(&index.extents);
        }
        if (step % 4096 == 0) /* empty it, nearly */
            for (i = 1; i < count - 3; i++)
                if (index.is_in[i])
                    take_out(&index, i);
    }
    finish(&index);
}

/* Bins, the treap, from one to the other; equals among them, where the offset decides. */
static void what_is_resized_is_found_where_it_belongs(void **state)
{
    uint64_t random = test_seed + 2;
    uint32_t count = 60;
    struct index index;

    (void)state;
    start(&index, 8 * GIB);
    for (uint32_t i = 1; i < count; i++)
        insert(&index, i, i * (UINT64_C(64) << 20), random_bytes(&random));
    for (int step = 0; step < 30000; step++) {
        uint32_t i = 1 + (uint32_t)weir__random_below(&random, count - 1);
        uint64_t offset = i * (UINT64_C(64) << 20) + weir__random_below(&random, 1024) * GRANULE;
        uint64_t bytes = bytes_of(&index, i) + weir__random_below(&random, 64) * GRANULE;
        uint64_t less = weir__random_below(&random, 64) * GRANULE;
        bytes = less < bytes ? bytes - less : bytes;
        if (step % 5 == 0) /* as long as another one */
            bytes = bytes_of(&index, 1 + (uint32_t)weir__random_below(&random, count - 1));
        resize(&index, i, offset, step % 7 == 0 ? random_bytes(&random) : bytes);
        assert_find(&index, random_bytes(&random), count);
        weir__extents_audit(&index.extents);
    }
    finish(&index);
}

/* As a queue does it: the only long one, from both ends. */
static void one_that_is_alone_grows_and_shrinks(void **state)
{
    struct index index;

    (void)state;
    start(&index, GIB);
    insert(&index, 1, 0, BIN_MAX);
    for (uint64_t bytes = BIN_MAX; bytes < 2 * BIN_MAX; bytes += 3 * GRANULE) {
        resize(&index, 1, 0, bytes);
        assert_int_equal(assert_find(&index, bytes, 2), 1);
        assert_int_equal(assert_find(&index, bytes + GRANULE, 2), 0);
    }
    for (uint64_t bytes = 2 * BIN_MAX; bytes > GRANULE; bytes -= GRANULE) {
        resize(&index, 1, 2 * BIN_MAX - bytes, bytes);
        assert_int_equal(assert_find(&index, bytes, 2), 1);
        assert_int_equal(assert_find(&index, bytes + GRANULE, 2), 0);
    }
    finish(&index);
}

/* As a region does it: find, cut off what is wanted, put the rest back. */
static void splitting_down_to_nothing(void **state)
{
    uint64_t random = test_seed + 1;
    struct index index;
    uint64_t left;
    uint32_t i;

    (void)state;
    start(&index, GIB);
    insert(&index, 1, 0, 64 << 20);
    insert(&index, 2, 512 << 20, 3 << 20);
    left = (64 << 20) + (3 << 20);
    while (left > 0) {
        uint64_t space = random_bytes(&random);
        while ((i = assert_find(&index, space, 3)) == 0) {
            space = space / 2 / GRANULE * GRANULE;
            if (space == 0)
                space = GRANULE;
        }
        uint64_t offset = offset_of(&index, i);
        uint64_t bytes = bytes_of(&index, i);
        take_out(&index, i);
        if (bytes > space)
            insert(&index, i, offset + space, bytes - space);
        left -= space;
        assert_int_equal(index.extents.free_bytes, left);
    }
    assert_int_equal(index.extents.free_count, 0);
    finish(&index);
}

int main(void)
{
    static const struct CMUnitTest cases[] = {
        {"nothing is found in an empty index", nothing_is_found_in_an_empty_index, NULL, NULL,
         NULL},
        {"the smallest that fits is found", the_smallest_that_fits_is_found, NULL, NULL, NULL},
        {"the lowest zone among equals is found", the_lowest_zone_among_equals_is_found, NULL, NULL,
         NULL},
        {"the last granule of a region has a zone", the_last_byte_of_the_largest_region_has_a_zone,
         NULL, NULL, NULL},
        {"the largest extent is found", the_largest_extent_is_found, NULL, NULL, NULL},
        {"lengths in order do no harm", ordered_lengths_do_no_harm, NULL, NULL, NULL},
        {"many equals come out one by one", many_equals_come_out_one_by_one, NULL, NULL, NULL},
        {"random steps equal the model", random_steps_equal_the_model, NULL, NULL, NULL},
        {"what is resized is found where it belongs", what_is_resized_is_found_where_it_belongs,
         NULL, NULL, NULL},
        {"one that is alone grows and shrinks", one_that_is_alone_grows_and_shrinks, NULL, NULL,
         NULL},
        {"an extent is split down to nothing", splitting_down_to_nothing, NULL, NULL, NULL},
    };

    test_seed = harness_seed();
    return cmocka_run_group_tests_name("extent", cases, NULL, NULL);
}
