/* SPDX-License-Identifier: MIT */
/* window - the sparse index alone */
#include "base/random.h"
#include "reorder/window.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct fixture {
    struct weir__heap heap;
    struct weir__window window;
};

static int begin(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));

    weir__window_init(&fixture->window, &fixture->heap);
    *state = fixture;
    return 0;
}

static int end(void **state)
{
    struct fixture *fixture = *state;

    weir__window_audit(&fixture->window);
    weir__window_deinit(&fixture->window);
    assert_int_equal(fixture->heap.bytes, 0);
    free(fixture);
    return 0;
}

static int add(struct weir__window *window, uint64_t sequence, size_t bytes)
{
    void *data;
    int r = weir__window_add(window, sequence, bytes, &data);

    if (r == 0 && bytes > 0)
        memset(data, (int)(sequence & 0xff), bytes);
    return r;
}

static void drop(struct weir__window *window, uint64_t sequence)
{
    struct weir__window_view view;

    weir__window_remove(window, sequence, &view);
    if (view.kind == WINDOW_MEMORY)
        weir__window_release(window, view.pack);
}

static struct weir_slot slot_of(uint64_t sequence)
{
    return (struct weir_slot){.index = (uint32_t)sequence + 1, .generation = 7};
}

/* ---- Cases -------------------------------------------------------------------- */

static void test_find(void **state)
{
    struct weir__window *window = &((struct fixture *)*state)->window;
    struct weir__window_view view;

    assert_false(weir__window_contains(window, 0));
    assert_int_equal(add(window, 5, 100), 0);
    assert_int_equal(add(window, 6, 0), 0);
    assert_int_equal(weir__window_add_slot(window, 7, 70, slot_of(7), false), 0);
    assert_false(weir__window_contains(window, 4));
    assert_int_equal(window->item_count, 3);

    assert_true(weir__window_get(window, 5, &view));
    assert_int_equal(view.kind, WINDOW_MEMORY);
    assert_int_equal(view.bytes, 100);
    assert_int_equal(((unsigned char *)view.data)[99], 5);
    assert_true(weir__window_get(window, 6, &view));
    assert_int_equal(view.kind, WINDOW_EMPTY);
    assert_true(weir__window_get(window, 7, &view));
    assert_int_equal(view.kind, WINDOW_REGION);
    assert_int_equal(view.bytes, 70);
    assert_int_equal(view.slot.index, 8);
    assert_null(view.data);
}

static void test_duplicate(void **state)
{
    struct fixture *fixture = *state;
    struct weir__window *window = &fixture->window;
    uint64_t bytes;

    assert_int_equal(add(window, 5, 100), 0);
    bytes = fixture->heap.bytes + window->packs.bytes;
    assert_int_equal(add(window, 5, 100), -EEXIST);
    assert_int_equal(add(window, 5, 0), -EEXIST);
    assert_int_equal(weir__window_add_slot(window, 5, 70, slot_of(5), false), -EEXIST);
    assert_int_equal(fixture->heap.bytes + window->packs.bytes, bytes);
}

static void test_far(void **state)
{
    struct fixture *fixture = *state;
    struct weir__window *window = &fixture->window;
    uint64_t sequence;

    assert_int_equal(add(window, 0, 8), 0);
    assert_int_equal(add(window, 10000000, 8), 0);
    assert_int_equal(window->node_count, 3);
    assert_int_equal(add(window, UINT64_MAX, 8), 0);
    assert_int_equal(window->node_count, 5);
    assert_true(fixture->heap.bytes < 2048);
    assert_true(weir__window_last(window, WINDOW_MARK_ANY, UINT64_MAX, &sequence));
    assert_true(sequence == UINT64_MAX);
    assert_true(weir__window_first(window, WINDOW_MARK_ANY, 1, &sequence));
    assert_int_equal(sequence, 10000000);
    weir__window_audit(window);
    drop(window, 0);
    assert_int_equal(window->node_count, 3);
    drop(window, UINT64_MAX);
    assert_int_equal(window->node_count, 1);
}

static void test_empty_nodes_go(void **state)
{
    struct fixture *fixture = *state;
    struct weir__window *window = &fixture->window;

    for (uint64_t i = 0; i < 20000; i++)
        assert_int_equal(add(window, i * 37, 24), 0);
    weir__window_audit(window);
    for (uint64_t i = 0; i < 20000; i++)
        drop(window, i * 37);
    assert_int_equal(window->node_count, 0);
    assert_int_equal(window->pack_count, 0);
    assert_int_equal(fixture->heap.bytes, 0);
    assert_int_equal(window->packs.bytes, 0);
}

static void test_marks(void **state)
{
    struct weir__window *window = &((struct fixture *)*state)->window;
    uint64_t sequence;

    for (uint64_t i = 0; i < 1000; i++)
        assert_int_equal(add(window, i * 100, 16), 0);
    assert_false(weir__window_first(window, WINDOW_MARK_REGION, 0, &sequence));
    for (uint64_t i = 999; i >= 500; i--) {
        assert_true(weir__window_last(window, WINDOW_MARK_MEMORY, UINT64_MAX, &sequence));
        assert_int_equal(sequence, i * 100);
        weir__window_spill(window, sequence, slot_of(sequence), 70);
    }
    assert_true(weir__window_first(window, WINDOW_MARK_REGION, 0, &sequence));
    assert_int_equal(sequence, 50000);
    assert_true(weir__window_first(window, WINDOW_MARK_REGION, 50001, &sequence));
    assert_int_equal(sequence, 50100);
    assert_false(weir__window_first(window, WINDOW_MARK_REGION, 99901, &sequence));
    assert_true(weir__window_last(window, WINDOW_MARK_REGION, 99899, &sequence));
    assert_int_equal(sequence, 99800);
    assert_false(weir__window_last(window, WINDOW_MARK_REGION, 49999, &sequence));
    assert_true(weir__window_last(window, WINDOW_MARK_ANY, 49999, &sequence));
    assert_int_equal(sequence, 49900);
    weir__window_audit(window);
}

static void test_spilled_memory_goes(void **state)
{
    struct weir__window *window = &((struct fixture *)*state)->window;
    uint64_t before;

    for (uint64_t i = 0; i < 6400; i++)
        assert_int_equal(add(window, i, 64), 0);
    before = window->packs.bytes;
    for (uint64_t i = 6399; i >= 3200; i--)
        weir__window_spill(window, i, slot_of(i), 70);
    /* Furthest first empties packs whole: half of the items is half of the memory, heads apart. */
    assert_true(window->packs.bytes <= before / 2 + 3200 / 64 * 16 * 8);
}

/* In a dense window packs are used again, and none is kept when it is not dense any more. */
static void test_packs_are_used_again(void **state)
{
    struct weir__window *window = &((struct fixture *)*state)->window;
    uint64_t most = 0;

    for (uint64_t i = 0; i < 6400; i++)
        assert_int_equal(add(window, i, 64), 0);
    most = window->packs.bytes + 64 * 1024;
    for (uint64_t i = 0; i < 20000; i++) {
        drop(window, i);
        assert_int_equal(add(window, i + 6400, 64), 0);
        assert_true(window->packs.bytes <= most);
    }
    assert_in_range(window->spare_count, 0, 16);
    weir__window_audit(window);
    for (uint64_t i = 20000; i < 26400; i++)
        drop(window, i);
    assert_int_equal(window->packs.bytes, 0);
}

/* All memory of a leaf has left it, and with it the pack that it filled, which had room. */
static void test_memory_comes_again(void **state)
{
    struct weir__window *window = &((struct fixture *)*state)->window;
    struct weir__window_view view;

    for (uint64_t i = 0; i < 6400; i++)
        if (i % 64 < 60)
            assert_int_equal(add(window, i, 64), 0);
    for (uint64_t i = 6336; i < 6396; i++)
        weir__window_spill(window, i, slot_of(i), 70);
    assert_int_equal(add(window, 6396, 64), 0);
    assert_int_equal(add(window, 6397, 64), 0);
    weir__window_audit(window);
    assert_true(weir__window_get(window, 6397, &view));
    assert_int_equal(view.kind, WINDOW_MEMORY);
    assert_int_equal(((unsigned char *)view.data)[63], 6397 & 0xff);
}

static void test_popped_stays(void **state)
{
    struct weir__window *window = &((struct fixture *)*state)->window;
    struct weir__window_view view;

    assert_int_equal(add(window, 3, 64), 0);
    assert_int_equal(add(window, 4, 64), 0);
    weir__window_remove(window, 3, &view);
    drop(window, 4);
    assert_int_equal(window->node_count, 0);
    assert_int_equal(((unsigned char *)view.data)[63], 3);
    assert_true(window->packs.bytes >= 64);
    weir__window_release(window, view.pack);
    assert_int_equal(window->packs.bytes, 0);
}

static void test_sparse_is_small(void **state)
{
    struct fixture *fixture = *state;
    struct weir__window *window = &fixture->window;
    uint64_t seed = 1;

    for (uint64_t i = 0; i < 20000; i++)
        assert_int_equal(add(window, weir__random(&seed) >> 20, 16), 0);
    assert_true(fixture->heap.bytes / 20000 < 700);
    assert_true(window->packs.bytes / 20000 < 64);
}

static void test_large_payload(void **state)
{
    struct weir__window *window = &((struct fixture *)*state)->window;
    struct weir__window_view view;

    for (uint64_t i = 0; i < 64; i++)
        assert_int_equal(add(window, i, (size_t)1 << (i % 20)), 0);
    weir__window_audit(window);
    for (uint64_t i = 0; i < 64; i++) {
        assert_true(weir__window_get(window, i, &view));
        assert_int_equal(view.bytes, 1u << (i % 20));
        assert_int_equal((uintptr_t)view.data % 8, 0);
        for (size_t at = 0; at < view.bytes; at++)
            assert_int_equal(((unsigned char *)view.data)[at], i);
    }
}

/* ---- Against a plain model ------------------------------------------------------ */

#define MODEL_SPAN 3000u

struct model {
    uint8_t kind[MODEL_SPAN]; /* 0: not there; else 1 + kind */
};

static uint64_t model_sequence(bool is_dense, uint32_t index)
{
    uint64_t base = UINT64_C(1) << 40;

    if (is_dense)
        return base + index;
    /* Clusters and gaps, over a width that needs several levels. */
    return base + (index % 3 == 0 ? (uint64_t)index << 23 : index);
}

/* It is there: found, taken out, and its bytes are its own. */
static void model_drop(struct weir__window *window, struct model *model, uint32_t index,
                       uint64_t sequence)
{
    struct weir__window_view found;
    struct weir__window_view view;

    assert_true(weir__window_get(window, sequence, &found));
    weir__window_remove(window, sequence, &view);
    assert_int_equal(view.kind + 1, model->kind[index]);
    assert_int_equal(found.kind, view.kind);
    assert_int_equal(found.bytes, view.bytes);
    if (view.kind != WINDOW_REGION)
        assert_int_equal(view.is_object, view.kind == WINDOW_OBJECT);
    assert_ptr_equal(view.object, view.kind == WINDOW_OBJECT ? &model->kind[index] : NULL);
    assert_int_equal(view.slot.index, view.kind == WINDOW_REGION ? slot_of(index).index : 0);
    assert_int_equal(view.data != NULL, view.kind == WINDOW_MEMORY);
    assert_ptr_equal(view.data, found.data);
    if (view.kind == WINDOW_MEMORY) {
        for (size_t at = 0; at < view.bytes; at++)
            assert_int_equal(((unsigned char *)view.data)[at], sequence & 0xff);
        weir__window_release(window, view.pack);
    }
    model->kind[index] = 0;
}

static void model_run(struct weir__window *window, bool is_dense)
{
    struct model *model = calloc(1, sizeof(*model));
    uint64_t seed = 42;

    for (uint32_t step = 0; step < 100000; step++) {
        uint32_t index = (uint32_t)weir__random_below(&seed, MODEL_SPAN);
        uint64_t sequence = model_sequence(is_dense, index);
        uint64_t dice = weir__random_below(&seed, 100);
        bool is_here = model->kind[index] != 0;

        assert_int_equal(weir__window_contains(window, sequence), is_here);
        assert_int_equal(weir__window_touch(window, sequence), is_here);
        if (dice < 40) {
            size_t bytes = weir__random_below(&seed, 200);

            assert_int_equal(add(window, sequence, bytes), is_here ? -EEXIST : 0);
            if (!is_here)
                model->kind[index] = 1 + (bytes == 0 ? WINDOW_EMPTY : WINDOW_MEMORY);
        } else if (dice < 50) {
            assert_int_equal(weir__window_add_slot(window, sequence, 9, slot_of(index), false),
                             is_here ? -EEXIST : 0);
            if (!is_here)
                model->kind[index] = 1 + WINDOW_REGION;
        } else if (dice < 54) {
            assert_int_equal(weir__window_add_object(window, sequence, 9, &model->kind[index]),
                             is_here ? -EEXIST : 0);
            if (!is_here)
                model->kind[index] = 1 + WINDOW_OBJECT;
        } else if (dice < 60 && (model->kind[index] == 1 + WINDOW_MEMORY ||
                                 model->kind[index] == 1 + WINDOW_OBJECT)) {
            weir__window_spill(window, sequence, slot_of(index), 70);
            model->kind[index] = 1 + WINDOW_REGION;
        } else if (dice < 95 && is_here) {
            model_drop(window, model, index, sequence);
        } else if (dice >= 95) {
            enum weir__window_mark mark = (enum weir__window_mark)weir__random_below(&seed, 3);
            uint64_t lowest = UINT64_MAX;
            uint64_t highest = 0;
            uint64_t found;

            for (uint32_t i = 0; i < MODEL_SPAN; i++) {
                uint64_t other = model_sequence(is_dense, i);

                if (model->kind[i] == 0 ||
                    (mark == WINDOW_MARK_MEMORY && model->kind[i] != 1 + WINDOW_MEMORY &&
                     model->kind[i] != 1 + WINDOW_OBJECT) ||
                    (mark == WINDOW_MARK_REGION && model->kind[i] != 1 + WINDOW_REGION))
                    continue;
                if (other >= sequence && other < lowest)
                    lowest = other;
                if (other <= sequence && other > highest)
                    highest = other;
            }
            assert_int_equal(weir__window_first(window, mark, sequence, &found),
                             lowest != UINT64_MAX);
            if (lowest != UINT64_MAX)
                assert_true(found == lowest);
            assert_int_equal(weir__window_last(window, mark, sequence, &found), highest != 0);
            if (highest != 0)
                assert_true(found == highest);
        }
        if (step % 512 == 0)
            weir__window_audit(window);
    }
    free(model);
}

static void test_model(void **state)
{
    model_run(&((struct fixture *)*state)->window, false);
}

/* Leaves of 64, which begin with packs that came free: add and remove in a line. */
static void test_dense_model(void **state)
{
    model_run(&((struct fixture *)*state)->window, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"items are found by sequence", test_find, begin, end, NULL},
        {"a duplicate costs nothing", test_duplicate, begin, end, NULL},
        {"a distance costs nothing", test_far, begin, end, NULL},
        {"empty nodes and packs go", test_empty_nodes_go, begin, end, NULL},
        {"searches follow the marks", test_marks, begin, end, NULL},
        {"spilling the furthest frees packs whole", test_spilled_memory_goes, begin, end, NULL},
        {"packs are used again while leaves fill", test_packs_are_used_again, begin, end, NULL},
        {"memory comes again to a leaf that it has left", test_memory_comes_again, begin, end,
         NULL},
        {"a removed payload stays until it is released", test_popped_stays, begin, end, NULL},
        {"sparse items cost little", test_sparse_is_small, begin, end, NULL},
        {"payloads of any length keep their bytes", test_large_payload, begin, end, NULL},
        {"random operations agree with a plain model", test_model, begin, end, NULL},
        {"and so they do in a dense window", test_dense_model, begin, end, NULL},
    };

    return cmocka_run_group_tests_name("window", tests, NULL, NULL);
}
