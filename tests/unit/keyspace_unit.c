/* SPDX-License-Identifier: MIT */
/* keyspace_unit - what keyspace.h and slab.h promise */
#include "keyspace.h"
#include "slab.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static int64_t told_bytes;

static void tell(void *context, int64_t bytes)
{
    (void)context;
    told_bytes += bytes;
}

static const struct weir_books books = {.charge = tell};

static uint64_t next_random(uint64_t *seed)
{
    *seed = *seed * UINT64_C(6364136223846793005) + 1442695040888963407;
    return *seed >> 33;
}

/* A poor hash on purpose: chains, and equal hashes of different keys. */
static uint32_t hash_of(uint32_t number)
{
    return number / 3 * 2654435761u;
}

static struct slice key_of(uint32_t number, char *text)
{
    const int bytes = snprintf(text, 40, "key:%u", number);

    return (struct slice){.data = text, .bytes = (size_t)bytes};
}

static struct value *make_value(uint32_t number, size_t bytes)
{
    struct value *value = calloc(1, sizeof(*value) + bytes);

    assert_non_null(value);
    value->bytes = (uint32_t)bytes;
    value->reference_count = 1;
    memset(value->data, (int)(number & 0xff), bytes);
    return value;
}

static void give_up(struct keyspace *keys, struct entry *entry)
{
    if (entry->where == WHERE_MEMORY)
        free(keyspace_take_value(keys, entry));
    else if (entry->where == WHERE_SLOT)
        (void)keyspace_take_slot(keys, entry);
}

#define MODEL_KEYS 6000

/* Against an array: 0: not there; 1: inline, 2: memory, 3: slot. */
static void test_it_agrees_with_a_model(void **state)
{
    static uint8_t model[MODEL_KEYS];
    struct slab slab;
    struct keyspace keys;
    uint64_t seed = 3;
    size_t count = 0;
    size_t bytes_of[4] = {0, 5, 300, 70};

    (void)state;
    told_bytes = 0;
    slab_init(&slab);
    assert_int_equal(keyspace_init(&keys, &slab, books), 0);
    for (int round = 0; round < 300000; round++) {
        const uint32_t number = (uint32_t)(next_random(&seed) % MODEL_KEYS);
        const uint64_t dice = next_random(&seed) % 8;
        char text[40];
        const struct slice key = key_of(number, text);
        struct entry *entry = keyspace_find(&keys, hash_of(number), key);

        assert_int_equal(entry != NULL, model[number] != 0);
        if (entry != NULL) {
            static const int where[] = {0, WHERE_INLINE, WHERE_MEMORY, WHERE_SLOT};

            assert_int_equal(entry->where, where[model[number]]);
            assert_int_equal(entry->bytes, bytes_of[model[number]]);
            assert_int_equal(entry->key_bytes, key.bytes);
            if (model[number] == 3)
                assert_int_equal(entry->slot.index, number + 1);
            if (model[number] == 2)
                assert_int_equal((uint8_t)entry->value->data[299], number & 0xff);
            if (model[number] == 1)
                assert_memory_equal(entry_inline(entry), "hello", 5);
        }
        if (dice < 2) {
            if (entry == NULL)
                continue;
            give_up(&keys, entry);
            keyspace_remove(&keys, entry);
            model[number] = 0;
            count--;
            continue;
        }
        if (entry == NULL) {
            entry = keyspace_add(&keys, hash_of(number), key, 5);
            assert_non_null(entry);
            count++;
        } else {
            give_up(&keys, entry);
            entry = keyspace_resize(&keys, entry, 5 + dice);
            assert_non_null(entry);
        }
        model[number] = (uint8_t)(1 + dice % 3);
        if (model[number] == 1)
            keyspace_set_inline(&keys, entry, "hello", 5);
        else if (model[number] == 2)
            keyspace_set_value(&keys, entry, make_value(number, 300));
        else
            keyspace_set_slot(&keys, entry, (struct weir_slot){number + 1, 1}, 70);
        keyspace_set_expire(&keys, entry, dice == 7 ? 1 : 0);
        if (round % 1000 == 0) {
            size_t in_model[4] = {0};

            for (uint32_t i = 0; i < MODEL_KEYS; i++)
                in_model[model[i]]++;
            assert_int_equal(keys.count, count);
            assert_int_equal(keys.memory_count, in_model[2]);
            assert_int_equal(keys.slot_count, in_model[3]);
            assert_int_equal(keys.value_bytes,
                             in_model[1] * 5 + in_model[2] * 300 + in_model[3] * 70);
        }
    }
    for (uint64_t cursor = 0; keys.count > 0;) {
        struct entry *entry = keyspace_any(&keys, &cursor);

        give_up(&keys, entry);
        keyspace_remove(&keys, entry);
    }
    assert_int_equal(keys.expire_count, 0);
    assert_int_equal(keys.value_bytes, 0);
    keyspace_deinit(&keys);
    assert_int_equal(told_bytes, 0);
    assert_int_equal(slab.used_bytes, 0);
    slab_deinit(&slab);
    assert_int_equal(slab.block_bytes, 0);
}

static void test_a_key_is_cheap(void **state)
{
    struct slab slab;
    struct keyspace keys;
    const uint32_t count = 262144;
    uint64_t cursor = 0;

    (void)state;
    told_bytes = 0;
    slab_init(&slab);
    assert_int_equal(keyspace_init(&keys, &slab, books), 0);
    for (uint32_t i = 0; i < count; i++) {
        char text[40];
        const struct slice key = key_of(i, text);
        struct entry *entry = keyspace_add(&keys, i * 2654435761u, key, 0);

        assert_non_null(entry);
        keyspace_set_slot(&keys, entry, (struct weir_slot){i + 1, 1}, 4096);
    }
    while (keyspace_step(&keys, 4096))
        ;
    /* Beyond its own 10 bytes a key takes no more than 64. */
    assert_true(((uint64_t)told_bytes + slab.block_bytes) / count <= 64 + 10);
    while (keys.count > 0) {
        struct entry *entry = keyspace_any(&keys, &cursor);

        (void)keyspace_take_slot(&keys, entry);
        keyspace_remove(&keys, entry);
    }
    keyspace_deinit(&keys);
    slab_deinit(&slab);
}

static void test_the_clock_spares_what_was_used(void **state)
{
    struct slab slab;
    struct keyspace keys;
    uint32_t order[10];
    uint64_t cursor = 0;

    (void)state;
    slab_init(&slab);
    assert_int_equal(keyspace_init(&keys, &slab, books), 0);
    for (uint32_t i = 0; i < 10; i++) {
        char text[40];
        struct entry *entry = keyspace_add(&keys, hash_of(i), key_of(i, text), 0);

        assert_non_null(entry);
        keyspace_set_value(&keys, entry, make_value(i, 200));
        entry->was_used = i % 2 == 0;
    }
    for (uint32_t i = 0; i < 10; i++) {
        struct value *value = keyspace_coldest(&keys, 100);

        assert_non_null(value);
        order[i] = (uint8_t)value->data[0];
        free(keyspace_take_value(&keys, value->entry));
    }
    assert_null(keyspace_coldest(&keys, 100));
    for (uint32_t i = 0; i < 5; i++) {
        assert_int_equal(order[i], 2 * i + 1);
        assert_int_equal(order[5 + i], 2 * i);
    }
    while (keys.count > 0)
        keyspace_remove(&keys, keyspace_any(&keys, &cursor));
    keyspace_deinit(&keys);
    slab_deinit(&slab);
}

struct seen {
    struct keyspace *keys;
    uint32_t count;
};

static void visit(void *context, struct entry *entry)
{
    struct seen *seen = context;

    seen->count++;
    if (entry->hash % 2 == 0)
        keyspace_remove(seen->keys, entry);
}

static void test_a_scan_sees_every_key_and_may_remove(void **state)
{
    struct slab slab;
    struct keyspace keys;
    struct seen seen = {.keys = &keys};
    uint64_t cursor = 0;
    uint32_t even = 0;

    (void)state;
    slab_init(&slab);
    assert_int_equal(keyspace_init(&keys, &slab, books), 0);
    for (uint32_t i = 0; i < 3000; i++) {
        char text[40];

        assert_non_null(keyspace_add(&keys, i * 2654435761u, key_of(i, text), 0));
        even += i * 2654435761u % 2 == 0;
    }
    while (keyspace_step(&keys, 100))
        ;
    keyspace_scan(&keys, &cursor, 1u << keys.bits[0], visit, &seen);
    assert_int_equal(seen.count, 3000);
    assert_int_equal(keys.count, 3000 - even);
    while (keys.count > 0)
        keyspace_remove(&keys, keyspace_any(&keys, &cursor));
    keyspace_deinit(&keys);
    slab_deinit(&slab);
}

static void test_slab_cells_are_apart_aligned_and_come_back(void **state)
{
    enum { COUNT = 3000 };
    static char *cells[COUNT];
    static size_t sizes[COUNT];
    struct slab slab;
    uint64_t seed = 11;

    (void)state;
    slab_init(&slab);
    for (int round = 0; round < 60000; round++) {
        const size_t at = next_random(&seed) % COUNT;

        if (cells[at] != NULL) {
            for (size_t i = 0; i < sizes[at]; i++)
                assert_int_equal((uint8_t)cells[at][i], at & 0xff);
            slab_free(&slab, cells[at], sizes[at]);
            cells[at] = NULL;
            continue;
        }
        sizes[at] = 8 + next_random(&seed) % (SLAB_BYTES_MAX + 100);
        cells[at] = slab_alloc(&slab, sizes[at]);
        assert_non_null(cells[at]);
        assert_int_equal((uintptr_t)cells[at] % SLAB_GRANULE, 0);
        memset(cells[at], (int)(at & 0xff), sizes[at]);
    }
    for (size_t at = 0; at < COUNT; at++)
        if (cells[at] != NULL)
            slab_free(&slab, cells[at], sizes[at]);
    assert_int_equal(slab.used_bytes, 0);
    assert_true(slab.block_bytes <= SLAB_BLOCK_BYTES);
    slab_deinit(&slab);
    assert_int_equal(slab.block_bytes, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"it agrees with a model", test_it_agrees_with_a_model, NULL, NULL, NULL},
        {"a key is cheap", test_a_key_is_cheap, NULL, NULL, NULL},
        {"the clock spares what was used", test_the_clock_spares_what_was_used, NULL, NULL, NULL},
        {"a scan sees every key and may remove", test_a_scan_sees_every_key_and_may_remove, NULL,
         NULL, NULL},
        {"slab cells are apart, aligned, and come back",
         test_slab_cells_are_apart_aligned_and_come_back, NULL, NULL, NULL},
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
