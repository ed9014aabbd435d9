/* SPDX-License-Identifier: MIT */
/*
 * region_fetch_unit - what is cold comes back
 *
 * weir_region_fetch(), weir_region_fetch_into() and weir_region_read(): any number
 * of items at once, freed under way, and whatever a callback does meanwhile.
 *
 *      region_fetch_unit [--synchronous] [pattern]
 */
#include "region_fixture.h"

/* ---- Fetch ----------------------------------------------------------------------- */

static void a_cold_item_is_fetched(void **state)
{
    struct fixture f;
    struct weir_slot slots[11];
    const void *data;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 10, 3000);
    assert_int_equal(weir_region_at(f.region, slots[3], &data, NULL), -EAGAIN);
    struct weir_region_stats before = figures(&f);
    fetch_one(&f, slots[3], 0);
    /* Until the next fetch or poll: still there after the poll that called back. */
    assert_here(&f, slots[3], 3000);
    put(&f, 50, 100);
    assert_here(&f, slots[3], 3000);
    struct weir_region_stats after = figures(&f);
    assert_int_equal(after.fetch_count, before.fetch_count + 1);
    struct weir_slot both[2] = {slots[10], (struct weir_slot){0, 0}};
    struct fetches *fetches = fetch_many(&f, both, 2);
    fetch_finish(&f, fetches);
    test_free(fetches);
    assert_int_equal(figures(&f).fetch_count, before.fetch_count + 3); /* slots, not calls */
    assert_true(after.read_bytes >= before.read_bytes + 3000);
    assert_true(after.fetched_bytes >= 3000);
    assert_bound_holds(&f);
    assert_int_equal(weir_region_pin(f.region, slots[3], &data, NULL), 0);
    assert_pattern(data, 3000, 3, 0);
    weir_region_unpin(f.region, slots[3]);
    fetch_one(&f, slots[10], 0); /* what is in memory is called back too */
    assert_bound_holds(&f);
    finish(&f);
}

static void each_slot_is_called_back_once(void **state)
{
    struct fixture f;
    static struct weir_slot slots[1001];
    static struct weir_slot wanted[FETCH_MAX];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = 16 * MIB});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 1000, 2000);
    assert_int_equal(weir_region_free(f.region, slots[5]), 0);
    for (size_t i = 0; i < FETCH_MAX; i++)
        wanted[i] = slots[(i * 7) % 1001]; /* some twice, one freed, one in memory */
    wanted[100] = (struct weir_slot){0, 0};
    struct fetches *fetches = fetch_many(&f, wanted, FETCH_MAX);
    weir_region_audit(f.region);
    fetch_finish(&f, fetches);
    for (size_t i = 0; i < FETCH_MAX; i++) {
        bool is_gone = i == 100 || wanted[i].index == slots[5].index;
        assert_int_equal(fetches->results[i], is_gone ? -ESTALE : 0);
    }
    for (int i = 0; i < 20; i++) /* and no more */
        assert_true(poll_once(&f) >= 0);
    assert_int_equal(fetches->called, FETCH_MAX);
    assert_bound_holds(&f);
    test_free(fetches);
    finish(&f);
}

static void fetch_has_a_range(void **state)
{
    struct fixture f;
    static struct weir_slot slots[FETCH_MAX + 1];

    (void)state;
    start(&f, (struct weir_region_config){0});
    for (size_t i = 0; i < FETCH_MAX + 1; i++)
        slots[i] = put(&f, i, 10);
    assert_int_equal(weir_region_fetch(f.region, slots, 0, never_called, NULL), -EINVAL);
    assert_int_equal(weir_region_fetch(f.region, slots, FETCH_MAX + 1, never_called, NULL),
                     -EINVAL);
    assert_int_equal(weir_region_fetch(f.region, slots, SIZE_MAX, never_called, NULL), -EINVAL);
    assert_int_equal(figures(&f).fetch_count, 0);
    for (int i = 0; i < 5; i++)
        assert_true(poll_once(&f) >= 0);
    finish(&f);
}

static void the_largest_fetch(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = 16 * MIB});
    if (!is_bounded(&f))
        return;
    struct weir_region_stats stats = figures(&f);
    uint64_t most = stats.fetch_bytes_max;
    if (most > stats.item_bytes_max)
        most = stats.item_bytes_max;
    put(&f, 1, 4080); /* it begins and ends in the middle of a page */
    struct weir_slot slot;
    assert_int_equal(weir_region_alloc(f.region, most, (struct weir_label){3, 1}, &slot), 0);
    assert_int_equal(write_pieces(&f, slot, 3, most, stats.put_bytes_max), 0);
    assert_int_equal(weir_region_commit(f.region, slot), 0);
    make_cold(&f, slot);
    fetch_one(&f, slot, 0);
    assert_here(&f, slot, most);
    assert_bound_holds(&f);
    if (stats.fetch_bytes_max < stats.item_bytes_max) {
        struct weir_slot larger;
        most = stats.fetch_bytes_max + 1;
        assert_int_equal(weir_region_alloc(f.region, most, (struct weir_label){4, 1}, &larger), 0);
        assert_int_equal(write_pieces(&f, larger, 4, most, stats.put_bytes_max), 0);
        assert_int_equal(weir_region_commit(f.region, larger), 0);
        make_cold(&f, larger);
        assert_int_equal(weir_region_fetch(f.region, &larger, 1, never_called, NULL), -EFBIG);
        assert_whole(&f, larger);
    }
    finish(&f);
}

/* Asked for while it is in memory, told when it is no more: it is refused or answered, never forgotten. */
static void an_item_too_large_to_fetch_is_never_forgotten(void **state)
{
    struct fixture f;
    struct weir_slot large;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    struct weir_region_stats stats = figures(&f);
    uint64_t bytes = stats.fetch_bytes_max + MIB;
    struct weir_slot small = put(&f, 1, 1000);
    assert_int_equal(weir_region_alloc(f.region, bytes, (struct weir_label){3, 1}, &large), 0);
    assert_int_equal(write_pieces(&f, large, 3, bytes, stats.put_bytes_max), 0);
    assert_int_equal(weir_region_commit(f.region, large), 0);
    struct fetches *fetches = test_calloc(1, sizeof(*fetches));
    fetches->count = 1;
    fetches->slots[0] = large;
    int r = fetch_start(&f, fetches);
    assert_true(r == 0 || r == -EFBIG);
    make_cold(&f, large);
    if (r == 0) {
        fetch_finish(&f, fetches);
        assert_true(fetches->results[0] == 0 || fetches->results[0] == -EFBIG);
    }
    fetch_one(&f, small, 0); /* and it is in nobody's way */
    test_free(fetches);
    finish(&f);
}

static void all_of_it_is_fetched_in_turns(void **state)
{
    struct fixture f;
    static struct weir_slot slots[2001];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 2000, 16 * KIB); /* four times what may be in memory */
    for (size_t at = 0; at < 2000; at += 50) {
        struct fetches *fetches = fetch_many(&f, slots + at, 50);
        fetch_finish(&f, fetches);
        for (size_t i = 0; i < 50; i++)
            assert_int_equal(fetches->results[i], 0);
        assert_bound_holds(&f);
        test_free(fetches);
    }
    finish(&f);
}

static void more_than_the_memory_is_asked_for_at_once(void **state)
{
    struct fixture f;
    static struct weir_slot slots[1025];
    struct fetches *fetches[2];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 1024, 64 * KIB); /* 64 MiB through 8 */
    for (int i = 0; i < 2; i++) {
        fetches[i] = fetch_many(&f, slots, FETCH_MAX);
        assert_true(figures(&f).resident_bytes <= RESIDENT_MIN);
    }
    while (fetches[0]->called < FETCH_MAX || fetches[1]->called < FETCH_MAX) {
        size_t called = fetches[0]->called + fetches[1]->called;
        for (int tries = 0; fetches[0]->called + fetches[1]->called == called; tries++) {
            assert_true(tries < 1000);
            assert_true(wait_once(&f) >= 0);
        }
        assert_bound_holds(&f);
    }
    for (size_t i = 0; i < FETCH_MAX; i++) {
        assert_int_equal(fetches[0]->results[i], 0);
        assert_int_equal(fetches[1]->results[i], 0);
    }
    weir_region_audit(f.region);
    for (int i = 0; i < 2; i++)
        test_free(fetches[i]);
    finish(&f);
}

/* Each a read of its own: more than a queue of any length takes at once. */
static void thousands_of_scattered_items(void **state)
{
    struct fixture f;
    static struct weir_slot slots[2048];
    struct fetches *fetches[2];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = 64 * MIB});
    if (!is_bounded(&f))
        return;
    for (uint64_t i = 0; i < 2048; i++) {
        slots[i] = put(&f, i, 100);
        put(&f, UINT64_C(1) << 32 | i, 48 * KIB);
    }
    make_cold(&f, slots[2047]);
    for (size_t i = 0; i < 2; i++)
        fetches[i] = fetch_many(&f, slots + i * FETCH_MAX, FETCH_MAX);
    for (int i = 0; i < 2; i++) {
        fetch_finish(&f, fetches[i]);
        for (size_t j = 0; j < FETCH_MAX; j++)
            assert_int_equal(fetches[i]->results[j], 0);
        test_free(fetches[i]);
    }
    finish(&f);
}

static void a_fetched_item_freed_under_way_is_stale(void **state)
{
    struct fixture f;
    struct weir_slot slots[101];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 100, 5000);
    struct fetches *fetches = fetch_many(&f, slots, 101);
    for (size_t i = 0; i < 101; i += 2)
        assert_int_equal(weir_region_free(f.region, slots[i]), 0);
    for (uint64_t i = 0; i < 51; i++) /* their places are taken at once */
        put(&f, 1000 + i, 5000);
    weir_region_audit(f.region);
    fetch_finish(&f, fetches);
    for (size_t i = 0; i < 101; i++)
        assert_int_equal(fetches->results[i], i % 2 == 0 ? -ESTALE : 0);
    assert_int_equal(figures(&f).read_error_count, 0); /* nothing was wrong with the disk */
    test_free(fetches);
    finish(&f);
}

/* Every answer frees one that has not been answered yet. */
static void free_another(struct fetches *fetches, struct weir_slot slot, int result)
{
    (void)slot;
    (void)result;
    for (size_t i = fetches->count; i-- > 0;)
        if (!fetches->done[i] && weir_region_free(fetches->f->region, fetches->slots[i]) == 0)
            break;
    weir_region_audit(fetches->f->region);
}

static void a_callback_may_free_what_is_under_way(void **state)
{
    struct fixture f;
    struct weir_slot slots[65];
    size_t stale = 0;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 64, 5000);
    struct fetches *fetches = fetch_many(&f, slots, 64);
    fetches->then = free_another;
    fetch_finish(&f, fetches);
    for (size_t i = 0; i < 64; i++) {
        assert_true(fetches->results[i] == 0 || fetches->results[i] == -ESTALE);
        stale += fetches->results[i] == -ESTALE;
    }
    assert_true(stale >= 31);
    test_free(fetches);
    finish(&f);
}

static void free_itself_and_put(struct fetches *fetches, struct weir_slot slot, int result)
{
    struct weir_slot fresh;

    assert_int_equal(result, 0);
    assert_int_equal(weir_region_free(fetches->f->region, slot), 0);
    assert_stale(fetches->f, slot);
    assert_int_equal(try_put(fetches->f, 7000, 9000, OWNER_FILLER, &fresh), 0);
    assert_here(fetches->f, fresh, 9000);
    weir_region_audit(fetches->f->region);
}

static void a_callback_may_use_the_region(void **state)
{
    struct fixture f;
    struct weir_slot slots[65];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 64, 5000);
    struct fetches *fetches = fetch_many(&f, slots, 64);
    fetches->then = free_itself_and_put;
    fetch_finish(&f, fetches);
    assert_bound_holds(&f);
    test_free(fetches);
    finish(&f);
}

/* A chain: each answer asks for the next item. */
struct chain {
    struct fixture *f;
    struct weir_slot *slots;
    size_t at;
    size_t count;
    bool in_fetch;
};

static void chain_next(void *context, struct weir_slot slot, int result)
{
    struct chain *chain = context;

    assert_true(chain->f->in_poll);
    assert_false(chain->in_fetch);
    assert_int_equal(result, 0);
    assert_int_equal(slot.index, chain->slots[chain->at].index);
    assert_here(chain->f, slot, 3000);
    chain->at++;
    if (chain->at < chain->count) {
        chain->in_fetch = true;
        assert_int_equal(
            weir_region_fetch(chain->f->region, &chain->slots[chain->at], 1, chain_next, chain), 0);
        chain->in_fetch = false;
    }
}

static void a_callback_may_fetch(void **state)
{
    struct fixture f;
    struct weir_slot slots[201];
    struct timespec since;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 200, 3000);
    struct chain chain = {.f = &f, .slots = slots, .count = 201};
    assert_int_equal(weir_region_fetch(f.region, slots, 1, chain_next, &chain), 0);
    clock_gettime(CLOCK_MONOTONIC, &since);
    while (chain.at < chain.count) {
        assert_true(wait_once(&f) >= 0);
        assert_false(patience_is_over(&since));
    }
    weir_region_audit(f.region);
    finish(&f);
}

/* All that a callback may do, but to poll and to close. */
static void do_everything(struct fetches *fetches, struct weir_slot slot, int result)
{
    struct fixture *f = fetches->f;
    struct weir_label label = {8000, OWNER_FILLER};
    struct weir_operation *operation = (struct weir_operation *)(void *)fetches->context;
    static char byte[1];
    struct weir_region_report report;
    struct weir_placement placement;
    struct weir_slot built;
    struct weir_slot at = {0, 0};
    const void *data;
    char buffer[5000];
    size_t bytes;
    void *room;

    assert_int_equal(result, 0);
    assert_int_equal(weir_region_pin(f->region, slot, &data, &bytes), 0);
    assert_int_equal(weir_region_alloc(f->region, 100, label, &built), 0);
    assert_int_equal(weir_region_write(f->region, built, 0, data, 100), 0);
    assert_int_equal(weir_region_commit(f->region, built), 0);
    assert_int_equal(weir_region_alloc_in_place(f->region, 100, 0, label, &built, &room), 0);
    memcpy(room, data, 100);
    assert_int_equal(weir_region_commit(f->region, built), 0);
    assert_int_equal(weir_region_read(f->region, slot, 0, buffer, sizeof(buffer), &bytes), 0);
    assert_memory_equal(buffer, data, bytes);
    assert_int_equal(weir_region_fetch_into(f->region, slot, 0, byte, 1, operation), 0);
    assert_int_equal(weir_region_set_resident(f->region, RESIDENT_MIN), 0);
    assert_int_equal(weir_region_set_resident(f->region, 16 * MIB), 0);
    assert_int_equal(weir_region_sync(f->region), -EOPNOTSUPP);
    weir_region_report(f->region, &report);
    (void)weir_region_placement(f->region, &placement);
    assert_true(weir_region_next(f->region, &at));
    weir_region_free_owner(f->region, OWNER_FILLER, NULL);
    figures(f);
    weir_region_unpin(f->region, slot);
    weir_region_audit(f->region);
}

static void a_callback_may_do_anything_else(void **state)
{
    struct fixture f;
    struct weir_slot slots[33];
    static struct piece piece;

    (void)state;
    start(&f, (struct weir_region_config){
                  .resident_bytes_max = 16 * MIB,
                  .resident_bytes_min = RESIDENT_MIN,
              });
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 32, 5000);
    for (size_t i = 0; i < 33; i++) {
        piece = (struct piece){.operation = {piece_done}, .f = &f};
        struct fetches *fetches = fetch_many(&f, &slots[i], 1);
        fetches->then = do_everything;
        fetches->context = &piece.operation;
        fetch_finish(&f, fetches);
        piece_finish(&f, &piece);
        assert_int_equal(piece.result, 1);
        assert_whole(&f, slots[i]);
        test_free(fetches);
    }
    finish(&f);
}

/* And so may who is told of a piece: each frees the item of the next and asks for another. */
struct pieces_chain {
    struct weir_operation operation;
    struct fixture *f;
    struct weir_slot *slots;
    size_t at;
    size_t count;
    char buffer[3000];
};

static void piece_asks_for_the_next(struct weir_operation *operation, int32_t result,
                                    uint32_t flags)
{
    struct pieces_chain *chain = (struct pieces_chain *)(void *)operation;
    struct weir_slot fresh;

    (void)flags;
    assert_true(chain->f->in_poll);
    assert_int_equal(result, 3000);
    assert_pattern(chain->buffer, 3000, chain->at, 0);
    assert_int_equal(weir_region_free(chain->f->region, chain->slots[chain->at]), 0);
    assert_int_equal(try_put(chain->f, 7000, 3000, OWNER_FILLER, &fresh), 0);
    chain->at++;
    if (chain->at < chain->count)
        assert_int_equal(weir_region_fetch_into(chain->f->region, chain->slots[chain->at], 0,
                                                chain->buffer, 3000, operation),
                         0);
    weir_region_audit(chain->f->region);
}

_Static_assert(offsetof(struct pieces_chain, operation) == 0, "the cast");

static void a_piece_may_use_the_region(void **state)
{
    struct fixture f;
    struct weir_slot slots[65];
    struct timespec since;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 64, 3000);
    struct pieces_chain *chain = test_calloc(1, sizeof(*chain));
    *chain = (struct pieces_chain){
        .operation = {piece_asks_for_the_next}, .f = &f, .slots = slots, .count = 64};
    assert_int_equal(
        weir_region_fetch_into(f.region, slots[0], 0, chain->buffer, 3000, &chain->operation), 0);
    clock_gettime(CLOCK_MONOTONIC, &since);
    while (chain->at < chain->count) {
        assert_true(wait_once(&f) >= 0);
        assert_false(patience_is_over(&since));
    }
    test_free(chain);
    finish(&f);
}

/* Nothing is a piece, too, at any offset that there is. */
static void a_piece_of_no_bytes(void **state)
{
    struct weir_operation operation = {operation_never_completed};
    struct weir_slot slots[4];
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 3, 5000);
    for (uint64_t offset = 0; offset <= 5000; offset += 2500) {
        struct piece piece = {.operation = {piece_done}, .f = &f};
        assert_int_equal(
            weir_region_fetch_into(f.region, slots[0], offset, NULL, 0, &piece.operation), 0);
        assert_false(piece.done);
        piece_finish(&f, &piece);
        assert_int_equal(piece.result, 0);
    }
    assert_int_equal(weir_region_fetch_into(f.region, slots[0], 5001, NULL, 0, &operation),
                     -EINVAL);
    finish(&f);
}

static void one_item_is_fetched_by_several(void **state)
{
    struct fixture f;
    struct weir_slot slots[11];
    struct fetches *fetches[8];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 10, 70000);
    for (int i = 0; i < 8; i++)
        fetches[i] = fetch_many(&f, &slots[4], 1);
    for (int i = 0; i < 8; i++) {
        fetch_finish(&f, fetches[i]);
        assert_int_equal(fetches[i]->results[0], 0);
        test_free(fetches[i]);
    }
    finish(&f);
}

/* ---- Pieces out ------------------------------------------------------------------ */

static void a_piece_goes_into_the_callers_buffer(void **state)
{
    struct fixture f;
    struct weir_slot slots[4];
    static const struct {
        uint64_t offset;
        size_t bytes;
    } cases[] = {{0, 1},     {0, 100000}, {1, 99999}, {4095, 2},  {4096, 4096},
                 {99999, 1}, {17, 65536}, {512, 512}, {50000, 3}, {65535, 34465}};

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 3, 100000);
    for (size_t k = 0; k < 4; k += 3) /* a cold one, and one in memory */
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            struct piece piece = {.operation = {piece_done}, .f = &f};
            char *buffer = test_malloc(cases[i].bytes);
            memset(buffer, 0xee, cases[i].bytes);
            assert_int_equal(weir_region_fetch_into(f.region, slots[k], cases[i].offset, buffer,
                                                    cases[i].bytes, &piece.operation),
                             0);
            assert_false(piece.done);
            piece_finish(&f, &piece);
            assert_int_equal(piece.result, cases[i].bytes);
            assert_pattern(buffer, cases[i].bytes, k == 3 ? 999 : k, cases[i].offset);
            test_free(buffer);
        }

    struct weir_operation operation = {operation_never_completed};
    char byte;
    assert_int_equal(weir_region_fetch_into(f.region, slots[0], 100000, &byte, 1, &operation),
                     -EINVAL);
    assert_int_equal(weir_region_fetch_into(f.region, slots[0], 99999, &byte, 2, &operation),
                     -EINVAL);
    assert_int_equal(weir_region_fetch_into(f.region, slots[0], UINT64_MAX, &byte, 2, &operation),
                     -EINVAL);
    assert_int_equal(weir_region_fetch_into(f.region, slots[0], 1, &byte, SIZE_MAX, &operation),
                     -EINVAL);
    for (int i = 0; i < 5; i++)
        assert_true(poll_once(&f) >= 0);
    assert_bound_holds(&f);
    finish(&f);
}

static void a_piece_freed_under_way_is_stale(void **state)
{
    struct fixture f;
    struct weir_slot slots[4];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    char *buffer = test_malloc(100000);
    make_cold_items(&f, slots, 3, 100000);
    for (size_t k = 0; k < 4; k += 3) {
        struct piece piece = {.operation = {piece_done}, .f = &f};
        assert_int_equal(
            weir_region_fetch_into(f.region, slots[k], 0, buffer, 100000, &piece.operation), 0);
        assert_int_equal(weir_region_free(f.region, slots[k]), 0);
        weir_region_audit(f.region);
        piece_finish(&f, &piece);
        assert_int_equal(piece.result, -ESTALE);
    }
    assert_int_equal(figures(&f).read_error_count, 0);
    test_free(buffer);
    finish(&f);
}

static void many_pieces_are_under_way(void **state)
{
    struct fixture f;
    struct weir_slot slots[2];
    static struct piece pieces[4096];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    char *buffer = test_malloc(4096 * 16);
    make_cold_items(&f, slots, 1, 65536);
    for (size_t i = 0; i < 4096; i++) {
        pieces[i] = (struct piece){.operation = {piece_done}, .f = &f};
        assert_int_equal(weir_region_fetch_into(f.region, slots[0], i * 16, buffer + i * 16, 16,
                                                &pieces[i].operation),
                         0);
    }
    for (size_t i = 0; i < 4096; i++) {
        piece_finish(&f, &pieces[i]);
        assert_int_equal(pieces[i].result, 16);
    }
    assert_pattern(buffer, 4096 * 16, 0, 0);
    test_free(buffer);
    finish(&f);
}

static void read_takes_offsets(void **state)
{
    struct fixture f;
    struct weir_slot slots[4];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    char *buffer = test_malloc(100001);
    make_cold_items(&f, slots, 3, 100000);
    uint64_t read_bytes = figures(&f).read_bytes;
    assert_whole(&f, slots[3]);
    assert_int_equal(figures(&f).read_bytes, read_bytes); /* it is in memory */
    assert_whole(&f, slots[0]);
    assert_true(figures(&f).read_bytes >= read_bytes + 100000);
    for (size_t k = 0; k < 4; k += 3) {
        uint64_t seed = k == 3 ? 999 : k;
        uint64_t random = 5;
        for (int i = 0; i < 200; i++) {
            uint64_t offset = weir__random_below(&random, 100001);
            size_t room = weir__random_below(&random, 100001);
            size_t want = 100000 - offset < room ? 100000 - offset : room;
            size_t bytes = SIZE_MAX;
            memset(buffer, 0xee, 100001);
            assert_int_equal(weir_region_read(f.region, slots[k], offset, buffer, room, &bytes), 0);
            assert_int_equal(bytes, want);
            assert_pattern(buffer, bytes, seed, offset);
            assert_int_equal((unsigned char)buffer[want], 0xee);
        }
        size_t bytes = 4711; /* past the end there is nothing, or it is an error */
        int r = weir_region_read(f.region, slots[k], 100001, buffer, 10, &bytes);
        assert_true((r == 0 && bytes == 0) || (r == -EINVAL && bytes == 4711));
        bytes = 4711;
        r = weir_region_read(f.region, slots[k], UINT64_MAX, buffer, 10, &bytes);
        assert_true((r == 0 && bytes == 0) || (r == -EINVAL && bytes == 4711));
    }
    test_free(buffer);
    assert_bound_holds(&f);
    finish(&f);
}

static void reading_disturbs_no_fetch(void **state)
{
    struct fixture f;
    static struct weir_slot slots[101];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 100, 20000);
    struct fetches *fetches = fetch_many(&f, slots, 100);
    for (int i = 0; i < 100; i++)
        assert_whole(&f, slots[i]); /* blocks, but calls back nothing */
    assert_int_equal(fetches->called, 0);
    fetch_finish(&f, fetches);
    for (int i = 0; i < 100; i++)
        assert_int_equal(fetches->results[i], 0);
    test_free(fetches);
    finish(&f);
}

/* ---- All of them ------------------------------------------------------------------- */

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        CASE("a cold item is fetched", a_cold_item_is_fetched),
        CASE("each slot is called back once", each_slot_is_called_back_once),
        CASE("fetch takes 1 to 1024 slots", fetch_has_a_range),
        CASE("the largest fetch works, and one byte more is -EFBIG", the_largest_fetch),
        CASE("an item too large to fetch is refused or answered, never forgotten",
             an_item_too_large_to_fetch_is_never_forgotten),
        CASE("four times the memory is fetched in turns", all_of_it_is_fetched_in_turns),
        CASE("more than the memory may be asked for at once",
             more_than_the_memory_is_asked_for_at_once),
        CASE("thousands of scattered items may be asked for at once", thousands_of_scattered_items),
        CASE("an item freed while it is fetched is stale", a_fetched_item_freed_under_way_is_stale),
        CASE("a callback may free what is under way", a_callback_may_free_what_is_under_way),
        CASE("a callback may free, put and read", a_callback_may_use_the_region),
        CASE("a callback may fetch the next", a_callback_may_fetch),
        CASE("a callback may do anything else", a_callback_may_do_anything_else),
        CASE("who is told of a piece may use the region", a_piece_may_use_the_region),
        CASE("a piece of no bytes is told as well", a_piece_of_no_bytes),
        CASE("one item may be fetched by several at once", one_item_is_fetched_by_several),
        CASE("a piece goes into the caller's buffer", a_piece_goes_into_the_callers_buffer),
        CASE("a piece whose item is freed under way is stale", a_piece_freed_under_way_is_stale),
        CASE("many pieces are under way", many_pieces_are_under_way),
        CASE("read takes offsets and stops at the end", read_takes_offsets),
        CASE("reading disturbs no fetch", reading_disturbs_no_fetch),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("region_fetch", cases, NULL, NULL);
}
