/* SPDX-License-Identifier: MIT */
/*
 * chunk_unit - the lists of chunks by live bytes against a look at all of them
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "region/chunk.h"

#include "seed.h"

#include <stdlib.h>

#define CHUNK_COUNT 50u
#define STEP_COUNT  20000u

static uint64_t test_seed;

static void start(struct weir__chunks *chunks)
{
    *chunks = (struct weir__chunks){
        .table = test_calloc(CHUNK_COUNT, sizeof(*chunks->table)),
        .ready_count = CHUNK_COUNT,
        .resident_max = CHUNK_COUNT,
    };
    for (uint64_t i = 0; i < CHUNK_COUNT; i++)
        weir__chunk_turn(chunks, i, CHUNK_FRESH);
}

static void finish(struct weir__chunks *chunks)
{
    weir__chunks_audit(chunks, CHUNK_COUNT);
    test_free(chunks->table);
}

static bool is_of(const struct weir__chunks *chunks, uint64_t chunk, enum weir__chunk_kind kind)
{
    enum weir__chunk_state state = weir__chunk_state(chunks, chunk);

    if (weir__chunk_is_aside(chunks, chunk))
        return false;
    switch (kind) {
    case CHUNK_KIND_FRESH:
        return state == CHUNK_FRESH;
    case CHUNK_KIND_DIRTY:
        return state == CHUNK_DIRTY;
    case CHUNK_KIND_WRITTEN:
        return state == CHUNK_CLEAN || state == CHUNK_COLD;
    case CHUNK_KIND_COUNT:
        break;
    }
    return false;
}

/* Each of the kind comes once, each at most 32 KiB out of order, from both ends. */
static void check_kind(const struct weir__chunks *chunks, enum weir__chunk_kind kind)
{
    uint64_t count = 0;
    uint64_t model = 0;
    uint64_t last = 0;

    for (uint64_t i = 0; i < CHUNK_COUNT; i++)
        model += is_of(chunks, i, kind);
    assert_int_equal(weir__chunks_count(chunks, kind), model);

    for (uint64_t i = weir__chunks_emptiest(chunks, kind, CHUNK_NO); i != CHUNK_NO;
         i = weir__chunks_emptiest(chunks, kind, i)) {
        uint64_t fill = weir__chunk_live(chunks, i) / (32u << 10);
        assert_true(is_of(chunks, i, kind));
        assert_true(count == 0 || fill + (fill == 64) >= last - (last == 64));
        last = fill;
        count++;
    }
    assert_int_equal(count, model);

    count = 0;
    for (uint64_t i = weir__chunks_fullest(chunks, kind, CHUNK_NO); i != CHUNK_NO;
         i = weir__chunks_fullest(chunks, kind, i)) {
        uint64_t fill = weir__chunk_live(chunks, i) / (32u << 10);
        assert_true(count == 0 || fill - (fill == 64) <= last);
        last = fill;
        count++;
    }
    assert_int_equal(count, model);
}

/* Live bytes come and go, states change, some are set aside. */
static void the_lists_are_in_order(void **state)
{
    struct weir__chunks chunks;
    uint64_t random = test_seed;

    (void)state;
    start(&chunks);
    for (uint32_t step = 0; step < STEP_COUNT; step++) {
        uint64_t chunk = weir__random(&random) % CHUNK_COUNT;
        uint64_t live = weir__chunk_live(&chunks, chunk);
        uint64_t bytes = weir__random(&random) % (LAYOUT_CHUNK_BYTES / 8) / 16 * 16 + 16;
        uint64_t begin = chunk * LAYOUT_CHUNK_BYTES;
        enum weir__chunk_state other = (enum weir__chunk_state)(
            CHUNK_FRESH + weir__random(&random) % (CHUNK_STATE_COUNT - CHUNK_FRESH));
        switch (weir__random(&random) % 4) {
        case 0:
            if (live + bytes <= LAYOUT_CHUNK_BYTES &&
                weir__chunk_state(&chunks, chunk) != CHUNK_HOLE)
                weir__chunks_add_live(&chunks, begin, bytes);
            break;
        case 1:
            if (live >= bytes)
                weir__chunks_sub_live(&chunks, begin, bytes);
            break;
        case 2:
            if (other != weir__chunk_state(&chunks, chunk) && (other != CHUNK_HOLE || live == 0))
                weir__chunk_turn(&chunks, chunk, other);
            break;
        default:
            if (is_of(&chunks, chunk, CHUNK_KIND_WRITTEN))
                weir__chunk_set_aside(&chunks, chunk);
            break;
        }
        for (uint32_t kind = 0; kind < CHUNK_KIND_COUNT; kind++)
            check_kind(&chunks, (enum weir__chunk_kind)kind);
        weir__chunks_audit(&chunks, CHUNK_COUNT);
    }
    finish(&chunks);
}

/* What was set aside is told again as soon as something in it is freed, unpinned or turned. */
static void what_changes_is_no_longer_aside(void **state)
{
    struct weir__chunks chunks;

    (void)state;
    start(&chunks);
    weir__chunks_add_live(&chunks, 0, 1 << 20);
    weir__chunk_turn(&chunks, 0, CHUNK_DIRTY);
    weir__chunk_turn(&chunks, 0, CHUNK_CLEAN);

    weir__chunk_set_aside(&chunks, 0);
    assert_true(weir__chunks_emptiest(&chunks, CHUNK_KIND_WRITTEN, CHUNK_NO) == CHUNK_NO);
    weir__chunks_sub_live(&chunks, 0, 16);
    assert_int_equal(weir__chunks_emptiest(&chunks, CHUNK_KIND_WRITTEN, CHUNK_NO), 0);

    weir__chunks_pin(&chunks, 0, 16);
    weir__chunk_set_aside(&chunks, 0);
    assert_true(weir__chunks_fullest(&chunks, CHUNK_KIND_WRITTEN, CHUNK_NO) == CHUNK_NO);
    weir__chunks_unpin(&chunks, 0, 16);
    assert_int_equal(weir__chunks_fullest(&chunks, CHUNK_KIND_WRITTEN, CHUNK_NO), 0);

    weir__chunk_set_aside(&chunks, 0);
    weir__chunk_turn(&chunks, 0, CHUNK_DIRTY);
    assert_int_equal(weir__chunks_emptiest(&chunks, CHUNK_KIND_DIRTY, CHUNK_NO), 0);
    finish(&chunks);
}

/* Of several that are as empty, the one that is so for longest. */
static void the_oldest_of_equals_comes_first(void **state)
{
    struct weir__chunks chunks;
    uint64_t chunk = CHUNK_NO;

    (void)state;
    start(&chunks);
    for (uint64_t i = 0; i < CHUNK_COUNT; i++)
        weir__chunk_turn(&chunks, (i + 7) % CHUNK_COUNT, CHUNK_COLD);
    for (uint64_t i = 0; i < CHUNK_COUNT; i++) {
        chunk = weir__chunks_emptiest(&chunks, CHUNK_KIND_WRITTEN, chunk);
        assert_int_equal(chunk, (i + 7) % CHUNK_COUNT);
    }
    finish(&chunks);
}

int main(void)
{
    static const struct CMUnitTest cases[] = {
        {"the lists are in order", the_lists_are_in_order, NULL, NULL, NULL},
        {"what changes is no longer aside", what_changes_is_no_longer_aside, NULL, NULL, NULL},
        {"the oldest of equals comes first", the_oldest_of_equals_comes_first, NULL, NULL, NULL},
    };

    test_seed = harness_seed();
    return cmocka_run_group_tests_name("chunk", cases, NULL, NULL);
}
