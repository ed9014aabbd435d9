/* SPDX-License-Identifier: MIT */
/* writebuf - the N-th allocation or mapping fails: nothing is lost, nothing stays charged */
#include <weir/writebuf.h>

#include "double.h"
#include "seam.h"
#include "target.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SECOND UINT64_C(1000000000)
#define TABLES 3
#define KEYS   300

/* To writebuf a mapping is memory like any other: they are counted together. */
static bool is_memory(const struct seam_use *use, void *context)
{
    (void)context;
    return use->call == SEAM_sys_mmap || use->call == SEAM_heap_alloc ||
           use->call == SEAM_heap_alloc_aligned || use->call == SEAM_heap_resize;
}

/* The @at-th from now on is refused, or all from there. */
static void refuse(uint64_t at, bool lasts)
{
    seam_reset();
    seam_arm((struct seam_rule){
        .call = SEAM_ANY,
        .at = at,
        .times = lasts ? SEAM_FOR_GOOD : 1,
        .error = ENOMEM,
        .matches = is_memory,
    });
}

struct job {
    struct weir_region region;
    struct weir_account account;
    struct target target;
    struct weir_writebuf_set *set;
    struct weir_writebuf *buffers[TABLES];
    uint64_t sequences[TABLES];
    uint64_t now_ns;
    bool has_fired;
};

static void ensure(struct job *job, uint64_t id)
{
    int r = weir_writebuf_ensure(job->set, id, &job->buffers[id]);

    if (r == 0)
        return;
    assert_int_equal(r, -ENOMEM);
    weir_writebuf_audit(job->set);
    job->has_fired = true;
    seam_lift();
    assert_int_equal(weir_writebuf_ensure(job->set, id, &job->buffers[id]), 0);
}

/* An append that fails has changed nothing; the same again, without fault, goes in. */
static void append(struct job *job, uint64_t id, enum weir_writebuf_operation operation,
                   uint32_t key, size_t bytes)
{
    static char value[100000];
    struct weir_writebuf_stats before;
    struct weir_writebuf_stats after;
    uint64_t sequence = ++job->sequences[id];
    int r;

    memset(value, (int)sequence, bytes);
    weir_writebuf_stats(job->set, &before);
    r = target_append(&job->target, job->buffers[id], id, sequence, operation, key, value, bytes);
    if (r == 0)
        return;
    assert_int_equal(r, -ENOMEM);
    weir_writebuf_audit(job->set);
    weir_writebuf_stats(job->set, &after);
    assert_int_equal(after.record_count, before.record_count);
    assert_int_equal(after.held_bytes, before.held_bytes);
    assert_int_equal(after.charged_bytes, before.charged_bytes);
    job->has_fired = true;
    seam_lift();
    assert_int_equal(
        target_append(&job->target, job->buffers[id], id, sequence, operation, key, value, bytes),
        0);
}

static void settle(struct job *job)
{
    int idle = 0;

    for (int i = 0; idle < 3; i++) {
        int count = weir_writebuf_poll(job->set, job->now_ns);

        assert_true(i < 100000);
        count += weir_region_poll(&job->region);
        idle = count > 0 ? 0 : idle + 1;
    }
    weir_writebuf_audit(job->set);
}

static void flush(struct job *job)
{
    for (uint64_t id = 0; id < TABLES; id++)
        weir_writebuf_flush(job->buffers[id], NULL, UINT64_MAX);
    settle(job);
    job->has_fired |= seam_fired() > 0;
    /* A flush that had no memory has failed and kept all. */
    seam_lift();
    job->now_ns += 100 * SECOND;
    settle(job);
    for (uint64_t id = 0; id < TABLES; id++)
        assert_true(target_is_equal(&job->target, id));
}

static void run(struct job *job)
{
    struct weir_writebuf_config config = {
        .account = &job->account,
        .region = &job->region,
        .sink = target_sink(&job->target),
        .trigger_bytes = UINT64_MAX,
        .trigger_age_ns = UINT64_MAX,
        .quiet_ns = UINT64_MAX,
    };
    int r = weir_writebuf_create(&config, &job->set);

    if (r < 0) {
        assert_int_equal(r, -ENOMEM);
        assert_int_equal(job->account.charged_bytes, 0);
        job->has_fired = true;
        return;
    }
    for (uint64_t id = 0; id < TABLES; id++)
        ensure(job, id);
    job->region.puts_are_cold = true;
    for (uint32_t i = 0; i < 4000; i++)
        append(job, i % TABLES, i % 3 == 0 ? WEIR_WRITEBUF_INSERT : WEIR_WRITEBUF_UPDATE, i % KEYS,
               i % 1000 == 7 ? 90000 : i % 200);
    /* A spill needs none at all. */
    job->has_fired |= seam_fired() > 0;
    refuse(1, true);
    assert_true(weir_writebuf_spill(job->set, 200000) >= 200000);
    assert_int_equal(seam_fired(), 0);
    seam_reset();
}

/* What is spilled comes back, what is in memory is flushed; the N-th is of these. */
static void run_flush(struct job *job, uint64_t at, bool lasts)
{
    double_region_chill(&job->region);
    if (at > 0)
        refuse(at, lasts);
    flush(job);
}

static void deinit(struct job *job)
{
    seam_lift();
    weir_writebuf_destroy(job->set);
    assert_int_equal(job->account.charged_bytes, 0);
    weir_region_poll(&job->region);
    double_region_deinit(&job->region);
    target_deinit(&job->target);
    free(job);
}

static struct job *init(void)
{
    struct job *job = calloc(1, sizeof(*job));

    double_region_init(&job->region);
    job->region.put_bytes_max = 1 << 20;
    double_account_init(&job->account);
    target_init(&job->target, TABLES, KEYS, 1);
    job->now_ns = SECOND;
    return job;
}

static uint64_t fail_each(bool lasts, bool in_flush)
{
    uint64_t at = 0;
    bool has_fired = true;

    while (has_fired) {
        struct job *job = init();

        at++;
        assert_true(at < 1000);
        if (!in_flush)
            refuse(at, lasts);
        run(job);
        has_fired = job->has_fired;
        if (job->set != NULL) {
            run_flush(job, in_flush ? at : 0, lasts);
            has_fired = job->has_fired;
        }
        deinit(job);
    }
    return at - 1;
}

static void test_in_life(void **state)
{
    (void)state;
    assert_true(fail_each(false, false) > 10);
    assert_true(fail_each(true, false) > 10);
}

static void test_in_flush(void **state)
{
    (void)state;
    assert_true(fail_each(false, true) > 0);
    assert_true(fail_each(true, true) > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SEAM_TEST("an append without memory changes nothing", test_in_life),
        SEAM_TEST("a flush without memory keeps all", test_in_flush),
    };

    return cmocka_run_group_tests_name("writebuf", tests, NULL, NULL);
}
