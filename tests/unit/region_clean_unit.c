/* SPDX-License-Identifier: MIT */
/*
 * region_clean_unit - cold chunks are emptied, and the bound of memory holds
 *
 * With several times the memory in items, and while they come and go at random:
 * the kernel agrees with the bound, sparse chunks are emptied, and a tick moves no
 * more than it may.
 *
 *      region_clean_unit [--synchronous] [pattern]
 */
#include "region_fixture.h"

#define CHURN_COUNT 8192u

/* Items of 8 KiB, most of them cold, that die and are born at random. */
static struct churn {
    struct weir_slot slots[CHURN_COUNT];
    uint64_t keys[CHURN_COUNT];
    uint64_t key; /* of the next */
    uint64_t random;
} churn;

static void churn_put(struct fixture *f, size_t k)
{
    churn.keys[k] = churn.key;
    churn.slots[k] = put(f, churn.key++, 8 * KIB);
}

static void churn_replace(struct fixture *f, size_t k)
{
    bool has_tick = churn.key % 8 == 0;

    assert_int_equal(weir_region_free(f->region, churn.slots[k]), 0);
    churn_put(f, k);
    if (has_tick)
        assert_true(poll_once(f) >= 0);
}

/* False: nothing goes cold here. */
static bool churn_start(struct fixture *f, uint64_t random)
{
    start(f, (struct weir_region_config){.bytes_initial = 4 * MIB,
                                         .resident_bytes_max = 2 * RESIDENT_MIN});
    if (!is_bounded(f))
        return false;
    churn.random = random;
    churn.key = 0;
    while (churn.key < CHURN_COUNT)
        churn_put(f, churn.key);
    return true;
}

/*
 * Births and deaths at random in cold chunks: without cleaning the file grows to
 * more than three times what is live.
 */
static void sparse_chunks_are_emptied(void **state)
{
    struct fixture f;

    (void)state;
    if (!churn_start(&f, 12))
        return;
    while (churn.key < 4 * CHURN_COUNT)
        churn_replace(&f, weir__random_below(&churn.random, CHURN_COUNT));
    weir_region_audit(f.region);

    struct weir_region_stats stats = figures(&f);
    print_message("# footprint / live %.2f, written / put %.2f\n",
                  (double)stats.file_bytes / (double)stats.live_bytes,
                  (double)stats.written_bytes / (double)stats.put_bytes);
    assert_true(stats.moved_bytes > 0);
    assert_true(stats.file_bytes <= stats.live_bytes / 100 * 152);
    assert_true(stats.written_bytes <= 2 * stats.put_bytes);
    assert_bound_holds(&f);
    for (size_t k = 0; k < CHURN_COUNT; k++) { /* the handles are good, wherever their items went */
        assert_int_equal(info_of(&f, churn.slots[k]).label.key, churn.keys[k]);
        assert_whole(&f, churn.slots[k]);
    }

    /* What the cleaner keeps for itself goes when there is nothing to clean. */
    weir_region_free_owner(f.region, OWNER_DEFAULT, NULL);
    struct timespec since;
    clock_gettime(CLOCK_MONOTONIC, &since);
    while (figures(&f).mark_bytes > 0 || figures(&f).fetched_bytes > 0) {
        assert_false(patience_is_over(&since)); /* freed at a bad moment, it is looked at later */
        assert_true(wait_once(&f) >= 0);
    }
    assert_int_equal(figures(&f).free_bytes, 0);
    finish(&f);
}

/*
 * At bytes_max all that is free is in small pieces, and each chunk on disk holds an
 * item that fits in none: to read these again and again would help nobody.
 */
static void what_has_no_place_is_not_read_again(void **state)
{
    struct fixture f;
    struct weir_slot large[64];
    struct weir_slot small[2][64 * 84];
    size_t large_count = 0;
    size_t small_count = 0;

    (void)state;
    start(&f,
          (struct weir_region_config){.bytes_max = 32 * MIB, .resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    for (; large_count < 64; large_count++) {
        if (try_put(&f, large_count, 700 * KIB, OWNER_DEFAULT, &large[large_count]) != 0)
            break;
        for (size_t i = 0; i < 84; i++) {
            struct weir_slot slot;
            if (try_put(&f, 1000 + small_count, 16 * KIB, OWNER_DEFAULT, &slot) != 0)
                break;
            small[small_count % 2][small_count / 2] = slot;
            small_count++;
        }
    }
    assert_true(large_count >= 8);
    for (size_t i = 0; i < small_count / 2; i++)
        assert_int_equal(weir_region_free(f.region, small[1][i]), 0);
    for (int i = 0; i < 20; i++)
        assert_true(poll_once(&f) >= 0);

    struct weir_region_stats before = figures(&f);
    for (uint64_t i = 0; i < 16; i++) {
        struct weir_slot slot;
        int r = try_put(&f, 5000 + i, 900 * KIB, OWNER_DEFAULT, &slot);
        assert_true(r == 0 || r == -EDQUOT || r == -EAGAIN);
        assert_true(wait_once(&f) >= 0);
    }
    print_message("# read %llu KiB\n",
                  (unsigned long long)((figures(&f).read_bytes - before.read_bytes) / KIB));
    assert_true(figures(&f).read_bytes - before.read_bytes <= 2 * before.file_bytes);
    weir_region_audit(f.region);
    for (size_t i = 0; i < large_count; i++)
        assert_whole(&f, large[i]);
    assert_bound_holds(&f);
    finish(&f);
}

/*
 * As long as each tick sees fewer items than the one before, none of them is moved
 * but for the few chunks that are kept ready for puts.
 */
static void little_is_moved_while_all_goes(void **state)
{
    struct fixture f;
    static struct weir_slot slots[8192];
    uint64_t random = 13;

    (void)state;
    start(&f, (struct weir_region_config){.bytes_initial = 4 * MIB,
                                          .resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    for (uint64_t key = 0; key < 8192; key++)
        slots[key] = put(&f, key, 8 * KIB);
    for (size_t count = 8192; count > 2048;) {
        for (int i = 0; i < 16; i++) {
            size_t k = weir__random_below(&random, count);
            assert_int_equal(weir_region_free(f.region, slots[k]), 0);
            slots[k] = slots[--count];
        }
        assert_true(wait_once(&f) >= 0);
    }
    uint64_t moved_bytes = figures(&f).moved_bytes;
    print_message("# moved %llu KiB\n", (unsigned long long)(moved_bytes / KIB));
    assert_in_range(moved_bytes, 0, 8 * MIB);

    /* Left alone it is cleaned. */
    struct timespec since;
    clock_gettime(CLOCK_MONOTONIC, &since);
    while (figures(&f).moved_bytes < moved_bytes + MIB) {
        assert_true(wait_once(&f) >= 0);
        assert_false(patience_is_over(&since));
    }
    finish(&f);
}

/* Items that take most of the cleaner's memory are moved like small ones. */
static void large_items_move_out_of_sparse_chunks(void **state)
{
    struct fixture f;
    struct weir_slot large[24];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    for (uint64_t i = 0; i < 24; i++) {
        large[i] = put(&f, i, 700 * KIB);
        for (uint64_t j = 0; j < 80; j++) {
            struct weir_slot small;
            assert_int_equal(try_put(&f, 1000 + j, 16 * KIB, OWNER_FILLER, &small), 0);
        }
    }
    weir_region_free_owner(f.region, OWNER_FILLER, NULL);
    for (int i = 0; i < 2000 && figures(&f).free_bytes > 16 * MIB; i++)
        assert_true(wait_once(&f) >= 0);
    assert_true(figures(&f).moved_bytes >= 8 * 700 * KIB);
    for (size_t i = 0; i < 24; i++)
        assert_whole(&f, large[i]);
    assert_bound_holds(&f);
    finish(&f);
}

/* The cleaner meets damaged items: they are named, and all others move on whole. */
static void cleaning_names_what_is_damaged(void **state)
{
    struct fixture f;

    (void)state;
    if (!churn_start(&f, 13))
        return;
    for (size_t k = 0; k < 3; k++) {
        assert_false(info_of(&f, churn.slots[700 * k]).resident);
        damage(&f, 700 * k, 8 * KIB - 1);
    }
    while (figures(&f).damaged_count < 3) {
        size_t k = weir__random_below(&churn.random, CHURN_COUNT);
        assert_true(churn.key < UINT64_C(20) * CHURN_COUNT);
        if (k == 0 || k == 700 || k == 1400)
            continue;
        churn_replace(&f, k);
    }
    weir_region_audit(f.region);
    assert_true(figures(&f).moved_bytes > 0);
    for (size_t k = 0; k < CHURN_COUNT; k++) {
        assert_int_equal(info_of(&f, churn.slots[k]).label.key, churn.keys[k]);
        if (k == 0 || k == 700 || k == 1400)
            assert_true(info_of(&f, churn.slots[k]).damaged);
        else
            assert_whole(&f, churn.slots[k]);
    }
    finish(&f);
}

static void eight_times_the_memory_stays_bounded(void **state)
{
    struct fixture f;
    static struct weir_slot slots[1024];
    size_t cold = 0;
    const void *data;

    (void)state;
    start(&f, (struct weir_region_config){
                  .bytes_initial = 4 * MIB,
                  .resident_bytes_max = RESIDENT_MIN,
              });
    if (!is_bounded(&f))
        return;
    for (uint64_t i = 0; i < 1024; i++) {
        slots[i] = put(&f, i, 64 * KIB); /* a region on its own ring waits, and is never behind */
        assert_true(figures(&f).resident_bytes <= RESIDENT_MIN);
        if (i % 32 == 0) {
            weir_region_audit(f.region);
            assert_bound_holds(&f);
        }
    }
    weir_region_audit(f.region);
    assert_bound_holds(&f);
    struct weir_region_stats stats = figures(&f);
    assert_int_equal(stats.live_bytes, 64 * MIB);
    assert_true(stats.written_bytes >= 64 * MIB - RESIDENT_MIN);
    assert_true(stats.written_bytes <= 2 * 64 * MIB);
    for (uint64_t i = 0; i < 1024; i++) {
        bool resident = info_of(&f, slots[i]).resident;
        const void *const mark = &cold;
        size_t bytes = 4711;
        data = mark;
        int r = weir_region_at(f.region, slots[i], &data, &bytes);
        assert_int_equal(r, resident ? 0 : -EAGAIN);
        if (r < 0) {
            assert_ptr_equal(data, mark);
            assert_int_equal(bytes, 4711);
            assert_int_equal(weir_region_pin(f.region, slots[i], &data, &bytes), -EAGAIN);
            assert_ptr_equal(data, mark);
            cold++;
        } else {
            assert_here(&f, slots[i], 64 * KIB);
        }
    }
    assert_true(cold >= 1024 - RESIDENT_MIN / (64 * KIB));
    assert_bound_holds(&f); /* asking brought nothing in */
    for (uint64_t i = 0; i < 1024; i++)
        assert_whole(&f, slots[i]);
    assert_bound_holds(&f); /* nor did reading */
    assert_true(figures(&f).read_bytes >= cold * 64 * KIB);
    finish(&f);
}

/*
 * The default memory, three times that live, and births and deaths at random: what
 * the kernel has of the file is what the region says, also while it is cleaned.
 */
static void the_kernel_agrees_while_it_is_cleaned(void **state)
{
    struct fixture f;
    static struct weir_slot slots[6144];
    static uint64_t keys[6144];
    uint64_t random = 14;
    uint64_t key = 0;

    (void)state;
    start(&f, (struct weir_region_config){.bytes_max = 0});
    if (!is_bounded(&f))
        return;
    for (; key < 6144; key++) {
        keys[key] = key;
        slots[key] = put(&f, key, 32 * KIB);
    }
    for (; key < 4 * 6144; key++) {
        size_t k = weir__random_below(&random, 6144);
        assert_int_equal(weir_region_free(f.region, slots[k]), 0);
        keys[k] = key;
        slots[k] = put(&f, key, 32 * KIB);
        if (key % 64 == 0) /* a tick, for which a slow disk is waited for */
            assert_true(wait_once(&f) >= 0);
        if (key % 256 == 0) {
            assert_bound_holds(&f);
            assert_true(harness_cached_bytes(f.data_fd) <= (int64_t)(66 * MIB));
        }
    }
    struct weir_region_stats stats = figures(&f);
    assert_true(stats.moved_bytes > 0);
    assert_true(stats.file_bytes <= stats.live_bytes / 100 * 134);
    for (size_t k = 0; k < 6144; k += 7) {
        assert_int_equal(info_of(&f, slots[k]).label.key, keys[k]);
        assert_whole(&f, slots[k]);
    }
    assert_bound_holds(&f);
    finish(&f);
}

/* Items that come and go at random, so that chunks are cleaned. */
struct crowd {
    struct weir_slot slots[1024];
    uint64_t count;
    uint64_t random;
};

/* All of them lie in chunks: what comes in one piece may be written into a hole, from a buffer. */
static struct weir_slot crowd_build(struct fixture *f, uint64_t key)
{
    static unsigned char bytes[48 * KIB];
    struct weir_slot slot;

    harness_fill(bytes, sizeof(bytes), key, 0);
    assert_int_equal(weir_region_alloc(f->region, sizeof(bytes),
                                       (struct weir_label){.key = key, .owner = OWNER_DEFAULT},
                                       &slot),
                     0);
    assert_int_equal(weir_region_write(f->region, slot, 0, bytes, sizeof(bytes)), 0);
    assert_int_equal(weir_region_commit(f->region, slot), 0);
    return slot;
}

static void crowd_put(struct fixture *f, struct crowd *crowd)
{
    size_t i = crowd->count < 1024 ? crowd->count : weir__random_below(&crowd->random, 1024);

    if (crowd->count >= 1024)
        assert_int_equal(weir_region_free(f->region, crowd->slots[i]), 0);
    crowd->slots[i] = crowd_build(f, ++crowd->count);
    assert_true(figures(f).resident_bytes <= figures(f).resident_bytes_max);
}

/* Until chunks have what is set aside for fetches, too, and the cleaner its buffer. */
static void crowd_put_until_lent(struct fixture *f, struct crowd *crowd)
{
    struct timespec since;
    struct weir_region_stats stats;

    clock_gettime(CLOCK_MONOTONIC, &since);
    do {
        crowd_put(f, crowd);
        assert_true(poll_once(f) >= 0);
        stats = figures(f);
        assert_false(patience_is_over(&since));
    } while (crowd->count < 1024 || stats.moved_bytes == 0 || stats.fetched_bytes == 0 ||
             stats.resident_bytes - stats.fetched_bytes <= stats.resident_bytes_max / 16 * 13);
}

/* What is set aside for fetches is for chunks while there are none, and for fetches when there are. */
static void memory_that_no_fetch_uses_is_lent(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){.bytes_max = 256 * MIB, .resident_bytes_max = 16 * MIB});
    if (!is_bounded(&f))
        return;
    struct crowd *crowd = test_calloc(1, sizeof(*crowd));
    struct weir_slot large = put(&f, 0, figures(&f).fetch_bytes_max);
    crowd_put_until_lent(&f, crowd);
    assert_bound_holds(&f);

    fetch_one(&f, large, 0);
    struct weir_region_stats stats = figures(&f);
    assert_true(stats.fetched_bytes >= stats.fetch_bytes_max);
    for (int i = 0; i < 512; i++) { /* and puts do not take it away again */
        crowd_put(&f, crowd);
        assert_true(poll_once(&f) >= 0);
    }
    assert_here(&f, large, stats.fetch_bytes_max);
    assert_bound_holds(&f);

    assert_int_equal(weir_region_free(f.region, large), 0); /* with it its buffer goes */
    crowd_put_until_lent(&f, crowd);
    assert_bound_holds(&f);
    finish(&f);
    test_free(crowd);
}

/* What is pinned cannot be had back: a fetch comes all the same, with what the cleaner has. */
static void a_fetch_beside_pins_everywhere(void **state)
{
    struct fixture f;
    bool is_pinned[1024];
    const void *data;

    (void)state;
    start(&f, (struct weir_region_config){.bytes_max = 256 * MIB, .resident_bytes_max = 16 * MIB});
    if (!is_bounded(&f))
        return;
    struct crowd *crowd = test_calloc(1, sizeof(*crowd));
    struct weir_slot large = put(&f, 0, figures(&f).fetch_bytes_max);
    crowd_put_until_lent(&f, crowd);
    assert_false(info_of(&f, large).resident);
    for (size_t i = 0; i < 1024; i++) {
        is_pinned[i] = info_of(&f, crowd->slots[i]).resident;
        if (is_pinned[i])
            assert_int_equal(weir_region_pin(f.region, crowd->slots[i], &data, NULL), 0);
    }
    fetch_one(&f, large, 0);
    struct weir_region_stats stats = figures(&f);
    assert_true(stats.resident_bytes <= stats.resident_bytes_max);
    assert_true(stats.resident_bytes - stats.fetched_bytes > 13 * MIB); /* nothing was given up */
    for (size_t i = 0; i < 1024; i++)
        if (is_pinned[i])
            weir_region_unpin(f.region, crowd->slots[i]);
    finish(&f);
    test_free(crowd);
}

/* Cleaning takes its time: a poll moves so much and no more, and so does a put that waits for nothing. */
static void a_tick_moves_a_bounded_number_of_bytes(void **state)
{
    struct fixture f;
    static struct weir_slot slots[4096];
    uint64_t random = 15;
    uint64_t moved_most = 0;
    uint64_t moved = 0;

    (void)state;
    start_on_ring(&f, (struct weir_region_config){.resident_bytes_max = 16 * MIB}, 64);
    for (uint64_t i = 0; i < 4 * 4096; i++) {
        size_t k = i < 4096 ? i : weir__random_below(&random, 4096);
        int r;
        if (i >= 4096)
            assert_int_equal(weir_region_free(f.region, slots[k]), 0);
        for (int tries = 0; (r = try_put(&f, i, 16 * KIB, OWNER_DEFAULT, &slots[k])) == -EAGAIN;
             tries++) {
            assert_true(tries < 100000);
            uint64_t now = figures(&f).moved_bytes;
            assert_true(now - moved <= 128 * KIB + 16 * KIB); /* in the put */
            assert_true(weir__ring_wait(f.ring, 1000000) >= 0);
            assert_true(weir_region_poll(f.region) >= 0);
            moved = figures(&f).moved_bytes;
            assert_true(moved - now <= 256 * KIB + 16 * KIB); /* in the poll */
            moved_most = moved - now > moved_most ? moved - now : moved_most;
        }
        assert_int_equal(r, 0);
        uint64_t now = figures(&f).moved_bytes;
        assert_true(now - moved <= 2 * (128 * KIB + 16 * KIB)); /* to begin a chunk, and after it */
        moved = now;
    }
    assert_true(!figures(&f).bounded || moved_most > 0);
    weir_region_audit(f.region);
    weir_region_close(f.region);
    nothing_left(&f);
}

static void polls_alone_keep_the_bound(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = 16 * MIB});
    if (!is_bounded(&f))
        return;
    for (uint64_t i = 0; i < 4000; i++) {
        put(&f, i, 16 * KIB);
        if (i % 16 == 0)
            assert_true(poll_once(&f) >= 0);
    }
    assert_bound_holds(&f);
    for (int i = 0; i < 100; i++)
        assert_true(wait_once(&f) >= 0);
    assert_bound_holds(&f);
    finish(&f);
}

static void freeing_cold_items_touches_nothing(void **state)
{
    struct fixture f;
    static struct weir_slot slots[1024];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    for (uint64_t i = 0; i < 1024; i++)
        slots[i] = put(&f, i, 64 * KIB);
    for (uint64_t i = 0; i < 1024; i += 2)
        assert_int_equal(weir_region_free(f.region, slots[i]), 0);
    weir_region_audit(f.region);
    assert_bound_holds(&f);
    for (uint64_t i = 0; i < 1024; i += 2) { /* new items of other lengths, old bytes never seen */
        slots[i] = put(&f, 5000 + i, 1 + i * 60);
        if (i % 64 == 0)
            weir_region_audit(f.region);
    }
    for (uint64_t i = 0; i < 1024; i++)
        assert_whole(&f, slots[i]);
    assert_bound_holds(&f);
    finish(&f);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        CASE("sparse chunks are emptied", sparse_chunks_are_emptied),
        CASE("little is moved while all is taken out", little_is_moved_while_all_goes),
        CASE("large items move out of sparse chunks", large_items_move_out_of_sparse_chunks),
        CASE("with eight times the memory the kernel agrees with the bound",
             eight_times_the_memory_stays_bounded),
        CASE("what has no place is not read again", what_has_no_place_is_not_read_again),
        CASE("memory that no fetch uses is lent", memory_that_no_fetch_uses_is_lent),
        CASE("a fetch beside pins everywhere", a_fetch_beside_pins_everywhere),
        CASE("the kernel agrees with the bound while it is cleaned",
             the_kernel_agrees_while_it_is_cleaned),
        CASE("a tick moves a bounded number of bytes", a_tick_moves_a_bounded_number_of_bytes),
        CASE("polls between puts keep the bound too", polls_alone_keep_the_bound),
        CASE("freeing cold items touches nothing", freeing_cold_items_touches_nothing),
        CASE("cleaning names what is damaged", cleaning_names_what_is_damaged),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("region_clean", cases, NULL, NULL);
}
