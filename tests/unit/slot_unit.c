/* SPDX-License-Identifier: MIT */
/*
 * slot_unit - which entry is handed out next, against a list of who is vacant
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "region/slot.h"

#include "seed.h"

#include <stdlib.h>
#include <string.h>

#define COUNT_MAX  300000u /* four levels */
#define GENERATION 1000u

struct table {
    struct weir__slots slots;
    bool *is_taken; /* the model */
    uint32_t *order;
};

static uint64_t test_seed;

static void start(struct table *table)
{
    uint64_t words = 0;

    for (uint32_t level = 0; level < SLOT_LEVEL_COUNT; level++)
        words += weir__slots_words(COUNT_MAX + 1, level);
    table->slots = (struct weir__slots){
        .entries = test_calloc(COUNT_MAX + 1, sizeof(struct weir__entry)),
        .ready_count = COUNT_MAX,
        .count_max = COUNT_MAX,
        .generation = GENERATION,
    };
    weir__slots_lay(&table->slots, test_calloc(words, sizeof(uint64_t)));
    table->is_taken = test_calloc(COUNT_MAX + 1, sizeof(*table->is_taken));
    table->order = test_calloc(COUNT_MAX, sizeof(*table->order));
    weir__slots_audit(&table->slots);
}

static void finish(struct table *table)
{
    weir__slots_audit(&table->slots);
    test_free(table->order);
    test_free(table->is_taken);
    test_free(table->slots.levels[0]);
    test_free(table->slots.entries);
}

static uint32_t take(struct table *table)
{
    uint32_t index = weir__slots_take(&table->slots);
    struct weir__entry *entry = &table->slots.entries[index];

    assert_in_range(index, 1, COUNT_MAX);
    assert_false(table->is_taken[index]);
    assert_int_equal(weir__entry_state(entry), EXTENT_VACANT);
    entry->tag = weir__entry_tag(weir__entry_generation(entry), 0, EXTENT_FREE, 16);
    table->is_taken[index] = true;
    return index;
}

static void give(struct table *table, uint32_t index)
{
    assert_true(table->is_taken[index]);
    weir__slots_give(&table->slots, index);
    table->is_taken[index] = false;
}

/* Entries 1 .. @count, taken; order holds them in random order. */
static void fill(struct table *table, uint32_t count, uint64_t *random)
{
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(take(table), i + 1);
        uint32_t j = (uint32_t)(weir__random(random) % (i + 1));
        table->order[i] = table->order[j];
        table->order[j] = i + 1;
    }
}

static void what_was_never_used_is_taken_in_order(void **state)
{
    uint64_t random = test_seed;
    struct table table;

    (void)state;
    start(&table);
    assert_int_equal(weir__slots_spare(&table.slots), COUNT_MAX);
    fill(&table, COUNT_MAX, &random);
    assert_int_equal(weir__slots_spare(&table.slots), 0);
    finish(&table);
}

static void the_last_to_come_free_is_the_next(void **state)
{
    uint64_t random = test_seed + 1;
    struct table table;

    (void)state;
    start(&table);
    fill(&table, 1000, &random);
    for (uint32_t i = 0; i < SLOT_RECENT_COUNT; i++)
        give(&table, table.order[i]);
    for (uint32_t i = SLOT_RECENT_COUNT; i > 0; i--)
        assert_int_equal(take(&table), table.order[i - 1]);
    assert_int_equal(take(&table), 1001);
    finish(&table);
}

/* All but those that came free last. */
static void what_came_free_together_is_taken_in_order(void **state)
{
    uint64_t random = test_seed + 2;
    struct table table;
    uint32_t before = 0;

    (void)state;
    start(&table);
    fill(&table, COUNT_MAX, &random);
    for (uint32_t i = 0; i < COUNT_MAX; i++)
        give(&table, table.order[i]);
    weir__slots_audit(&table.slots);
    assert_int_equal(weir__slots_spare(&table.slots), COUNT_MAX);
    while (table.slots.recent_count > 0)
        (void)take(&table);
    while (weir__slots_spare(&table.slots) > 0) {
        uint32_t index = take(&table);
        assert_true(index > before);
        before = index;
    }
    assert_int_equal(weir__slots_spare(&table.slots), 0);
    finish(&table);
}

static void a_few_far_apart_are_found(void **state)
{
    static const uint32_t far[] = {1, 63, 64, 4095, 4096, 65537, 262143, 262144, COUNT_MAX};
    const uint32_t count = sizeof(far) / sizeof(far[0]);
    uint64_t random = test_seed + 3;
    struct table table;

    (void)state;
    start(&table);
    fill(&table, COUNT_MAX, &random);
    for (uint32_t round = 0; round < 2; round++) {
        /* What comes free after them pushes them out of the recent ones. */
        for (uint32_t i = 0; i < count; i++)
            give(&table, far[count - 1 - i]);
        for (uint32_t i = 0; i < SLOT_RECENT_COUNT; i++)
            give(&table, 1000 + i);
        weir__slots_audit(&table.slots);
        for (uint32_t i = 0; i < SLOT_RECENT_COUNT + count; i++)
            (void)take(&table);
        assert_int_equal(weir__slots_spare(&table.slots), 0);
        weir__slots_audit(&table.slots);
    }
    finish(&table);
}

static void a_spent_generation_is_retired(void **state)
{
    struct table table;

    (void)state;
    start(&table);
    uint32_t index = take(&table);
    table.slots.entries[index].tag = weir__entry_tag(GENERATION + SLOT_AGE_MAX, 0, EXTENT_FREE, 16);
    give(&table, index);
    assert_int_equal(take(&table), index + 1);
    assert_int_equal(weir__slots_spare(&table.slots), COUNT_MAX - 2);
    finish(&table);
}

/* What is older than the first generation is of before a power loss. */
static void an_older_generation_is_not_gone_on_with(void **state)
{
    static const uint32_t generations[][2] = {
        {GENERATION, GENERATION + 1},
        {GENERATION + 2, GENERATION + 3},
        {GENERATION + SLOT_AGE_MAX, GENERATION + SLOT_AGE_MAX + 1},
        {GENERATION + SLOT_AGE_MAX + 2, GENERATION + 1},
        {GENERATION - 2, GENERATION + 1},
    };
    struct table table;

    (void)state;
    start(&table);
    for (size_t i = 0; i < sizeof(generations) / sizeof(generations[0]); i++) {
        uint32_t index = take(&table);
        struct weir__entry *entry = &table.slots.entries[index];
        entry->tag = weir__entry_tag(generations[i][0], 0, EXTENT_FREE, 16);
        assert_int_equal(weir__slots_next_generation(&table.slots, index), generations[i][1]);
    }
    finish(&table);
}

/* Waves of takes and gives, so that all kinds of words come about. */
static void random_steps_equal_the_model(void **state)
{
    uint64_t random = test_seed + 4;
    struct table table;
    uint32_t taken_count = 0;

    (void)state;
    start(&table);
    for (uint32_t wave = 0; wave < 60; wave++) {
        uint32_t goal = (uint32_t)(weir__random(&random) % 20000);
        while (taken_count != goal) {
            bool gives =
                taken_count > 0 && weir__random(&random) % 8 < (taken_count > goal ? 7 : 1);
            if (gives) {
                uint32_t i = (uint32_t)(weir__random(&random) % taken_count);
                give(&table, table.order[i]);
                table.order[i] = table.order[--taken_count];
            } else {
                table.order[taken_count++] = take(&table);
            }
        }
        weir__slots_audit(&table.slots);
        assert_int_equal(weir__slots_spare(&table.slots), COUNT_MAX - taken_count);
    }
    finish(&table);
}

int main(void)
{
    static const struct CMUnitTest cases[] = {
        {"what was never used is taken in order", what_was_never_used_is_taken_in_order, NULL, NULL,
         NULL},
        {"the last to come free is the next", the_last_to_come_free_is_the_next, NULL, NULL, NULL},
        {"what came free together is taken in order", what_came_free_together_is_taken_in_order,
         NULL, NULL, NULL},
        {"a few far apart are found", a_few_far_apart_are_found, NULL, NULL, NULL},
        {"a spent generation is retired", a_spent_generation_is_retired, NULL, NULL, NULL},
        {"an older generation is not gone on with", an_older_generation_is_not_gone_on_with, NULL,
         NULL, NULL},
        {"random steps equal the model", random_steps_equal_the_model, NULL, NULL, NULL},
    };

    test_seed = harness_seed();
    return cmocka_run_group_tests_name("slot", cases, NULL, NULL);
}
