/* SPDX-License-Identifier: MIT */
/*
 * region_space_unit - growth, bytes_max, and that freed space comes to use again
 *
 * Holes in memory and in cold chunks, the mark that goes back, the tail that the
 * disk gets back. How the file grows and shrinks under faults is in growth_unit.
 *
 *      region_space_unit [--synchronous] [pattern]
 */
#include "region_fixture.h"

#include "region/slot.h"

static void growth_keeps_every_byte_and_the_address(void **state)
{
    struct fixture f;
    static struct weir_slot slots[2048];
    const void *data;
    uint64_t steps = 0;

    (void)state;
    start(&f, (struct weir_region_config){
                  .bytes_initial = 2 * MIB,
                  .bytes_max = 256 * MIB,
                  .resident_bytes_max = UINT64_MAX,
              });
    uint64_t file_bytes = figures(&f).file_bytes;
    assert_true(file_bytes <= 4 * MIB);
    struct weir_slot first = put(&f, 1000000, 1000);
    assert_int_equal(weir_region_pin(f.region, first, &data, NULL), 0);
    for (uint64_t i = 0; i < 2048; i++) {
        slots[i] = put(&f, i, 60000);
        if (i % 3 == 0)
            assert_true(poll_once(&f) >= 0);
        struct weir_region_stats stats = figures(&f);
        assert_true(stats.file_bytes >= file_bytes);
        steps += stats.file_bytes > file_bytes;
        file_bytes = stats.file_bytes;
        if (i % 64 == 0)
            weir_region_audit(f.region);
    }
    assert_true(steps >= 3);
    assert_ptr_equal(assert_here(&f, first, 1000), data);
    weir_region_unpin(f.region, first);
    for (int i = 0; i < 2048; i++)
        assert_here(&f, slots[i], 60000); /* UINT64_MAX: all of it is in memory */
    finish(&f);
}

/* As if a hole had been filled and freed 2^30 times. */
static void a_hole_with_a_spent_entry_gets_another(void **state)
{
    const size_t bytes = 160;

    (void)state;
    for (int is_alloc = 0; is_alloc < 2; is_alloc++) {
        struct fixture f;
        struct weir_slot next;
        struct stat info;
        start(&f, (struct weir_region_config){.bytes_max = 2 * MIB});
        struct weir_slot slots[3] = {put(&f, 1, bytes), put(&f, 2, bytes), put(&f, 3, bytes)};
        assert_int_equal(weir_region_free(f.region, slots[1]), 0);
        assert_int_equal(fstat(weir_region_fd(f.region), &info), 0);
        size_t table_bytes = (size_t)info.st_size;
        struct weir__header *header = mmap(NULL, table_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                                           weir_region_fd(f.region), 0);
        assert_ptr_not_equal(header, MAP_FAILED);
        struct weir__entry *entries = (void *)((char *)header + header->entry_offset);
        uint64_t *tag = &entries[slots[1].index].tag;
        *tag = *tag >> 32 << 32 | (header->generation + SLOT_AGE_MAX);
        assert_int_equal(munmap(header, table_bytes), 0);
        if (is_alloc)
            assert_int_equal(weir_region_alloc(f.region, bytes, (struct weir_label){4, 1}, &next),
                             0);
        else
            next = put(&f, 4, bytes);
        assert_int_not_equal(next.index, slots[1].index);
        weir_region_audit(f.region);
        struct weir_region_stats stats = figures(&f);
        assert_int_equal(stats.free_bytes, 0); /* it filled the hole */
        assert_here(&f, slots[0], bytes);
        assert_here(&f, slots[2], bytes);
        finish(&f);
    }
}

static void there_is_a_slot_for_each_granule(void **state)
{
    const uint64_t slot_count = 2 * MIB / 16;
    struct weir_slot slot;
    struct fixture f;
    uint64_t count = 0;
    int r = 0;

    (void)state;
    start(&f, (struct weir_region_config){.bytes_max = 2 * MIB});
    while (count <= slot_count && r == 0) {
        r = weir_region_put(f.region, "sixteen bytes...", 16, (struct weir_label){count, 1}, &slot);
        count += r == 0;
    }
    assert_int_equal(r, -EDQUOT);
    assert_int_equal(count, slot_count);
    weir_region_audit(f.region);
    weir_region_free_owner(f.region, 1, &count);
    assert_int_equal(count, slot_count);
    finish(&f);
}

static void at_bytes_max_and_on_again_after_frees(void **state)
{
    struct fixture f;
    static struct weir_slot slots[16384];
    struct weir_slot none = {4711, 4712};
    size_t count = 0;
    int r;

    (void)state;
    start(&f, (struct weir_region_config){
                  .bytes_initial = 4 * MIB,
                  .bytes_max = 32 * MIB,
                  .resident_bytes_max = UINT64_MAX,
              });
    while ((r = try_put(&f, count, 4000, OWNER_DEFAULT, &slots[count])) == 0)
        count++;
    assert_int_equal(r, -EDQUOT);
    assert_true(count * 4000 >= 30 * MIB); /* nearly all of it was of use */
    struct weir_region_stats before = figures(&f);
    assert_int_equal(try_put(&f, count, 4000, OWNER_DEFAULT, &none), -EDQUOT);
    assert_int_equal(weir_region_alloc(f.region, 4000, (struct weir_label){0}, &none), -EDQUOT);
    assert_int_equal(none.index, 4711);
    struct weir_region_stats after = figures(&f);
    assert_same_items(&before, &after);
    weir_region_audit(f.region);
    for (size_t i = 0; i < count; i++)
        assert_here(&f, slots[i], 4000);

    for (size_t i = 0; i < count; i += 2)
        assert_int_equal(weir_region_free(f.region, slots[i]), 0);
    weir_region_audit(f.region);
    for (size_t i = 0; i < count; i += 2)
        slots[i] = put(&f, 100000 + i, 4000);
    weir_region_audit(f.region);
    for (size_t i = 0; i < count; i++)
        assert_here(&f, slots[i], 4000);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(weir_region_free(f.region, slots[i]), 0);
    weir_region_audit(f.region);
    put(&f, 1, 4000);
    finish(&f);
}

/* Puts until the region says that it is full; with polls, so that holes can be made of use. */
static size_t fill_up(struct fixture *f, size_t item_bytes, struct weir_slot *slots,
                      size_t slot_count_max, uint64_t seed)
{
    size_t count = 0;

    while (count < slot_count_max) {
        int r = try_put(f, seed + count, item_bytes, OWNER_DEFAULT, &slots[count]);
        if (r == -EDQUOT || r == -EAGAIN) {
            bool moves = false;
            for (int i = 0; i < 200 && !moves; i++) {
                assert_true(wait_once(f) >= 0);
                r = try_put(f, seed + count, item_bytes, OWNER_DEFAULT, &slots[count]);
                assert_true(r == 0 || r == -EDQUOT || r == -EAGAIN);
                moves = r == 0;
            }
            if (!moves)
                return count;
        }
        assert_int_equal(r, 0);
        count++;
    }
    return count;
}

#define SPACE_SLOTS 32768u

/* A small region full of items, most of them cold; how many, 0 where nothing goes cold. */
static size_t start_full(struct fixture *f, struct weir_slot slots[SPACE_SLOTS])
{
    start(f, (struct weir_region_config){
                 .bytes_initial = 4 * MIB,
                 .bytes_max = 32 * MIB,
                 .resident_bytes_max = RESIDENT_MIN,
             });
    if (!is_bounded(f))
        return 0;
    size_t count = fill_up(f, 4000, slots, SPACE_SLOTS, 0);
    assert_true(count * 4000 >= 26 * MIB);
    assert_bound_holds(f);
    return count;
}

static void free_one(struct fixture *f, struct weir_slot *slot)
{
    assert_int_equal(weir_region_free(f->region, *slot), 0);
    *slot = (struct weir_slot){0, 0};
}

/* Half of @slots was freed: half of that, at the very least, comes to use again. */
static size_t fill_again(struct fixture *f, const struct weir_slot *slots, size_t count)
{
    static struct weir_slot others[SPACE_SLOTS];

    weir_region_audit(f->region);
    size_t more = fill_up(f, 4000, others, SPACE_SLOTS, 100000);
    assert_true(more >= count / 4);
    for (size_t i = 0; i < more; i++)
        assert_whole(f, others[i]);
    for (size_t i = 0; i < count; i++)
        if (!weir_slot_is_none(slots[i]))
            assert_whole(f, slots[i]);
    assert_bound_holds(f);
    return more;
}

static void cold_space_comes_to_use_again(void **state)
{
    struct fixture f;
    static struct weir_slot slots[SPACE_SLOTS];

    (void)state;
    size_t count = start_full(&f, slots);
    if (count == 0)
        return;
    for (size_t i = 0; i < count / 2; i++) /* neat runs */
        free_one(&f, &slots[i]);
    fill_again(&f, slots, count);

    /* All of it. */
    weir_region_free_owner(f.region, OWNER_DEFAULT, NULL);
    assert_int_equal(figures(&f).slot_count, 0);
    size_t again = fill_up(&f, 4000, slots, SPACE_SLOTS, 200000);
    assert_true(again >= count / 10 * 9);
    for (size_t i = 0; i < again; i++)
        assert_whole(&f, slots[i]);
    assert_bound_holds(&f);
    finish(&f);
}

static void small_cold_holes_come_to_use_again(void **state)
{
    struct fixture f;
    static struct weir_slot slots[SPACE_SLOTS];

    (void)state;
    size_t count = start_full(&f, slots);
    if (count == 0)
        return;
    for (size_t i = 0; i < count; i += 2)
        free_one(&f, &slots[i]);
    size_t more = fill_again(&f, slots, count);
    print_message("# of %zu single cold holes %zu were filled\n", (count + 1) / 2, more);
    finish(&f);
}

/* Random lengths in and out for long: holes of cold chunks must come to use, or the file would fill up. */
static void a_region_a_quarter_full_is_never_full(void **state)
{
    struct fixture f;
    static struct weir_slot slots[4096];
    static uint64_t sizes[4096];
    size_t count = 0;
    uint64_t live = 0;
    uint64_t random = 11;

    (void)state;
    start(&f, (struct weir_region_config){
                  .bytes_initial = 4 * MIB,
                  .bytes_max = 64 * MIB,
                  .resident_bytes_max = RESIDENT_MIN,
              });
    if (!is_bounded(&f))
        return;
    for (uint64_t i = 0; i < 20000; i++) {
        uint64_t bytes = 100 + weir__random_below(&random, 20000);
        while (live + bytes > 16 * MIB || count == 4096) {
            size_t k = weir__random_below(&random, count);
            assert_int_equal(weir_region_free(f.region, slots[k]), 0);
            live -= sizes[k];
            slots[k] = slots[--count];
            sizes[k] = sizes[count];
        }
        slots[count] = put(&f, i, bytes);
        sizes[count++] = bytes;
        live += bytes;
        if (i % 8 == 0)
            assert_true(poll_once(&f) >= 0);
        if (i % 1000 == 0)
            weir_region_audit(f.region);
    }
    struct weir_region_stats stats = figures(&f);
    print_message(
        "# live %llu MiB, mark %llu, file %llu; put %llu MiB, written %llu, read %llu\n",
        (unsigned long long)(stats.live_bytes / MIB), (unsigned long long)(stats.mark_bytes / MIB),
        (unsigned long long)(stats.file_bytes / MIB), (unsigned long long)(stats.put_bytes / MIB),
        (unsigned long long)(stats.written_bytes / MIB),
        (unsigned long long)(stats.read_bytes / MIB));
    for (size_t i = 0; i < count; i++)
        assert_whole(&f, slots[i]);
    assert_bound_holds(&f);
    finish(&f);
}

static void a_hole_is_used_before_the_mark(void **state)
{
    struct fixture f;
    struct weir_slot slots[9];
    const void *places[9];
    static const size_t sizes[9] = {16, 4096, 16, 1024, 16, 2048, 16, 1040, 16};

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = UINT64_MAX});
    for (int i = 0; i < 9; i++)
        slots[i] = put(&f, (uint64_t)i, sizes[i]);
    for (int i = 0; i < 9; i++)
        places[i] = assert_here(&f, slots[i], sizes[i]);
    for (int i = 1; i < 9; i += 2)
        assert_int_equal(weir_region_free(f.region, slots[i]), 0);
    weir_region_audit(f.region);
    struct weir_region_stats before = figures(&f);
    assert_int_equal(before.free_extent_count, 4);
    assert_int_equal(before.free_bytes, 4096 + 1024 + 2048 + 1040);

    /* The smallest that fits, each time. */
    assert_ptr_equal(assert_here(&f, put(&f, 10, 1010), 1010), places[3]);
    assert_ptr_equal(assert_here(&f, put(&f, 11, 1010), 1010), places[7]);
    assert_ptr_equal(assert_here(&f, put(&f, 12, 1010), 1010), places[5]);
    assert_ptr_equal(assert_here(&f, put(&f, 13, 1010), 1010),
                     (const char *)places[5] + 1024); /* what was split off */
    assert_ptr_equal(assert_here(&f, put(&f, 14, 4000), 4000), places[1]);
    assert_int_equal(figures(&f).mark_bytes, before.mark_bytes);
    weir_region_audit(f.region);
    finish(&f);
}

static void freed_neighbours_become_one(void **state)
{
    static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2},
                                     {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = UINT64_MAX});
    put(&f, 100, 16);
    for (int k = 0; k < 6; k++) {
        struct weir_slot slots[3];
        for (int i = 0; i < 3; i++)
            slots[i] = put(&f, (uint64_t)i, 1000);
        const void *place = assert_here(&f, slots[0], 1000);
        struct weir_slot end = put(&f, 101, 16);
        for (int i = 0; i < 3; i++) {
            assert_int_equal(weir_region_free(f.region, slots[orders[k][i]]), 0);
            weir_region_audit(f.region);
        }
        assert_int_equal(figures(&f).free_extent_count, 1);
        assert_int_equal(figures(&f).free_bytes, 3 * 1008);
        struct weir_slot whole = put(&f, 102, 3 * 1008);
        assert_ptr_equal(assert_here(&f, whole, 3 * 1008), place);
        assert_int_equal(figures(&f).free_extent_count, 0);
        assert_int_equal(weir_region_free(f.region, whole), 0);
        assert_int_equal(weir_region_free(f.region, end), 0);
        assert_int_equal(figures(&f).free_extent_count, 0); /* the tail went back to the mark */
        assert_int_equal(figures(&f).free_bytes, 0);
        weir_region_audit(f.region);
    }
    finish(&f);
}

static void an_emptied_region_gives_the_mark_back(void **state)
{
    struct fixture f;
    static struct weir_slot slots[5000];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = UINT64_MAX});
    uint64_t mark = figures(&f).mark_bytes;
    uint64_t random = 1;
    for (uint64_t i = 0; i < 5000; i++)
        slots[i] = put(&f, i, weir__random_below(&random, 9000));
    assert_true(figures(&f).mark_bytes > mark);
    for (uint64_t i = 5000; i > 0; i--) {
        uint64_t k = weir__random_below(&random, i);
        assert_int_equal(weir_region_free(f.region, slots[k]), 0);
        slots[k] = slots[i - 1];
        if (i % 100 == 0)
            weir_region_audit(f.region);
    }
    struct weir_region_stats stats = figures(&f);
    assert_int_equal(stats.mark_bytes, mark);
    assert_int_equal(stats.free_extent_count, 0);
    assert_int_equal(stats.free_bytes, 0);
    assert_int_equal(stats.live_bytes, 0);
    assert_true(stats.live_bytes_peak > 5000 * 4000);
    finish(&f);
}

static void an_empty_tail_goes_back_to_the_disk(void **state)
{
    struct fixture f;
    struct timespec since;

    (void)state;
    start(&f, (struct weir_region_config){.bytes_initial = 4 * MIB});
    struct weir_slot first = put(&f, 1, 1000);
    for (uint64_t i = 0; i < 192 * 16; i++) {
        struct weir_slot slot;
        assert_int_equal(try_put(&f, i, 64 * KIB, OWNER_FILLER, &slot), 0);
    }
    assert_true(figures(&f).file_bytes >= 192 * MIB);
    weir_region_free_owner(f.region, OWNER_FILLER, NULL);
    weir_region_audit(f.region);
    clock_gettime(CLOCK_MONOTONIC, &since);
    while (figures(&f).disk_bytes > 64 * MIB || figures(&f).file_bytes > 64 * MIB) {
        assert_true(wait_once(&f) >= 0);
        assert_false(patience_is_over(&since));
    }
    weir_region_audit(f.region);
    assert_whole(&f, first);
    for (uint64_t i = 0; i < 100 * 16; i++) { /* and grows again */
        struct weir_slot slot;
        assert_int_equal(try_put(&f, i, 64 * KIB, OWNER_FILLER, &slot), 0);
        if (i % 400 == 0)
            assert_whole(&f, slot);
    }
    finish(&f);
}

/* What is free where it is cold is free, too. */
static void free_space_is_counted_where_it_is_cold(void **state)
{
    struct fixture f;
    struct weir_slot slots[11];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 10, 3000);
    struct weir_region_stats before = figures(&f);
    assert_int_equal(weir_region_free(f.region, slots[3]), 0);
    assert_int_equal(weir_region_free(f.region, slots[6]), 0);
    assert_int_equal(figures(&f).free_bytes, before.free_bytes + 2 * UINT64_C(3008));
    assert_int_equal(figures(&f).free_extent_count, before.free_extent_count + 2);
    assert_int_equal(weir_region_free(f.region, slots[4]), 0); /* a neighbour */
    assert_int_equal(figures(&f).free_bytes, before.free_bytes + 3 * UINT64_C(3008));
    assert_int_equal(figures(&f).free_extent_count, before.free_extent_count + 2);
    finish(&f);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        CASE("free space is counted where it is cold", free_space_is_counted_where_it_is_cold),
        CASE("growth keeps every byte and the address", growth_keeps_every_byte_and_the_address),
        CASE("a hole with a spent entry gets another", a_hole_with_a_spent_entry_gets_another),
        CASE("there is a slot for each 16 bytes", there_is_a_slot_for_each_granule),
        CASE("at bytes_max puts are -EDQUOT, and go on after frees",
             at_bytes_max_and_on_again_after_frees),
        CASE("cold space that was freed comes to use again", cold_space_comes_to_use_again),
        CASE("small cold holes come to use again", small_cold_holes_come_to_use_again),
        CASE("a region a quarter full is never full", a_region_a_quarter_full_is_never_full),
        CASE("the smallest hole that fits is used before the mark", a_hole_is_used_before_the_mark),
        CASE("freed neighbours become one, in any order", freed_neighbours_become_one),
        CASE("an emptied region gives the mark back", an_emptied_region_gives_the_mark_back),
        CASE("an empty tail goes back to the disk", an_empty_tail_goes_back_to_the_disk),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("region_space", cases, NULL, NULL);
}
