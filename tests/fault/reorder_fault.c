/* SPDX-License-Identifier: MIT */
/* reorder - the N-th allocation fails: nothing is lost, nothing is charged too much */
#include <weir/reorder.h>

#include "double.h"
#include "pattern.h"
#include "seam.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define ITEMS 700u

struct job {
    struct weir_region region;
    struct weir_account account;
    struct weir_reorder *reorder;
    char data[8192];
    bool is_for_good;
};

static size_t bytes_of(uint64_t sequence)
{
    return sequence % 13 == 0 ? 0 : sequence % 97 == 5 ? 6000 : 20 + sequence % 300;
}

/* A push that fails has changed nothing; the same again, without fault, goes in. */
static void push(struct job *job, uint64_t sequence)
{
    struct weir_reorder_stats before;
    struct weir_reorder_stats after;
    int r;

    harness_fill(job->data, bytes_of(sequence), sequence, 0);
    weir_reorder_stats(job->reorder, &before);
    r = weir_reorder_push(job->reorder, sequence, job->data, bytes_of(sequence));
    if (r == 0)
        return;

    assert_int_equal(r, -ENOMEM);
    weir_reorder_audit(job->reorder);
    weir_reorder_stats(job->reorder, &after);
    assert_int_equal(after.item_count, before.item_count);
    assert_int_equal(after.payload_bytes, before.payload_bytes);
    assert_int_equal(after.pushed_count, before.pushed_count);
    assert_in_range(after.lent_bytes, 0, before.lent_bytes);
    if (job->is_for_good)
        assert_int_equal(weir_reorder_push(job->reorder, sequence, job->data, bytes_of(sequence)),
                         -ENOMEM);
    seam_lift();
    assert_int_equal(weir_reorder_push(job->reorder, sequence, job->data, bytes_of(sequence)), 0);
}

static void push_slot(struct job *job, uint64_t sequence)
{
    struct weir_slot slot;

    harness_fill(job->data, 50, sequence, 0);
    assert_int_equal(weir_region_put(&job->region, job->data, 50,
                                     (struct weir_label){.key = 1, .owner = 1}, &slot),
                     0);
    if (weir_reorder_push_slot(job->reorder, sequence, slot) == 0)
        return;
    /* It is the caller's still. */
    assert_int_equal(weir_region_free(&job->region, slot), 0);
    weir_reorder_audit(job->reorder);
    push(job, sequence);
}

static void pop(struct job *job, uint64_t sequence)
{
    struct weir_item item;
    int r = weir_reorder_pop(job->reorder, &item);

    for (int i = 0; r == -EAGAIN && i < 10; i++) {
        weir_region_poll(&job->region);
        r = weir_reorder_pop(job->reorder, &item);
    }
    assert_int_equal(r, 0);
    assert_int_equal(item.sequence, sequence);
    if (item.data != NULL)
        assert_int_equal(harness_differs_at(item.data, item.bytes, sequence, 0), item.bytes);
    weir_reorder_release(job->reorder, &item);
}

/* At hard the index grows on the working set, and where it cannot grow nothing is lent. */
static void pass_at_hard(struct job *job)
{
    struct weir_reorder_config config = {.account = &job->account, .region = &job->region};
    int r = weir_reorder_create(&config, &job->reorder);

    if (r < 0) {
        assert_int_equal(r, -ENOMEM);
        return;
    }
    job->account.spill_at = 0;
    job->account.hard_at = job->account.charged_bytes;
    for (uint64_t i = 1; i <= 8; i++) {
        push(job, 100 * i * i);
        assert_int_equal(job->account.charged_bytes, job->account.hard_at);
        weir_reorder_audit(job->reorder);
    }
    weir_reorder_destroy(job->reorder);
    job->account.spill_at = UINT64_MAX;
    job->account.hard_at = UINT64_MAX;
}

/* All ways into a buffer, and out of it again. */
static void pass(struct job *job)
{
    struct weir_reorder_config config = {
        .account = &job->account,
        .region = &job->region,
        .hot_items = 4,
    };
    int r = weir_reorder_create(&config, &job->reorder);

    if (r < 0) {
        assert_int_equal(r, -ENOMEM);
        return;
    }
    for (uint64_t i = ITEMS; i-- > 100;)
        push(job, i);
    push(job, UINT64_C(1) << 31);
    job->region.puts_are_cold = true;
    assert_true(weir_reorder_spill(job->reorder, 40000) >= 40000);
    job->account.spill_at = job->account.charged_bytes;
    for (uint64_t i = 99; i > 20; i--)
        push(job, i);
    for (uint64_t i = 20; i > 0; i--)
        push_slot(job, i);
    push(job, 0);
    weir_reorder_audit(job->reorder);

    /* From here on nothing needs the heap, or can do without. */
    seam_lift();
    seam_arm(
        (struct seam_rule){.call = SEAM_ANY_HEAP, .times = job->is_for_good ? SEAM_FOR_GOOD : 1});
    weir_reorder_spill(job->reorder, UINT64_MAX);
    for (uint64_t i = 0; i < ITEMS; i++)
        pop(job, i);
    weir_reorder_audit(job->reorder);
    weir_reorder_destroy(job->reorder);
}

static void run(void *context)
{
    struct job *job = calloc(1, sizeof(*job));

    job->is_for_good = *(const bool *)context;
    double_region_init(&job->region);
    double_account_init(&job->account);
    pass_at_hard(job);
    pass(job);
    seam_lift();
    assert_int_equal(job->account.charged_bytes, 0);
    assert_int_equal(job->account.book_bytes, 0);
    double_region_deinit(&job->region);
    free(job);
}

/* ---- Cases ---------------------------------------------------------------------- */

static void test_once(void **state)
{
    bool is_for_good = false;

    (void)state;
    uint64_t count = seam_each((struct seam_rule){.call = SEAM_ANY_HEAP}, 1, run, &is_for_good);
    assert_in_range(count, 49, 398);
}

static void test_for_good(void **state)
{
    bool is_for_good = true;

    (void)state;
    uint64_t count = seam_each((struct seam_rule){.call = SEAM_ANY_HEAP, .times = SEAM_FOR_GOOD}, 1,
                               run, &is_for_good);
    assert_in_range(count, 49, 398);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SEAM_TEST("an allocation that fails once loses nothing", test_once),
        SEAM_TEST("without the heap what is in still comes out", test_for_good),
    };

    return cmocka_run_group_tests_name("reorder", tests, NULL, NULL);
}
