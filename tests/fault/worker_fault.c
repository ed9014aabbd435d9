/* SPDX-License-Identifier: MIT */
/*
 * worker_fault - two workers to whom the kernel says no
 *
 * A mesh, a worker of its own thread and one on ours, with governor and region.
 * Where anything of it cannot be had the call says so and nothing is left; where
 * it could be had every message arrives, every operation completes once, and the
 * books end at zero.
 *
 * What a worker sleeps and reaps with is left alone: a ring that does not say
 * what has completed stops the process by design (worker.c), and so does an
 * eventfd that cannot be read.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/worker.h>

#include "base/bits.h"
#include "base/clock.h"

#include "program.h"
#include "seam.h"

#include <errno.h>
#include <inttypes.h>
#include <liburing.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>

#define MIB           (UINT64_C(1) << 20)
#define MESSAGE_COUNT 40u
#define LONG_NS       UINT64_C(3600000000000) /* a lost wake-up is a hang */

struct job;

struct letter {
    struct weir_message message;
    struct job *job;
    bool is_answer;
};

struct job {
    struct weir_governor *governor;
    struct weir_mesh *mesh;
    struct weir_worker *ours;
    struct weir_worker *theirs;
    struct letter letters[MESSAGE_COUNT];
    uint32_t answer_count;
    struct weir_operation operation;
    uint32_t completed_count;
    int32_t result;
};

static bool is_fault(int r)
{
    return r < 0 && r != -EINVAL && r != -ESTALE && r != -EBADMSG;
}

/* ---- Steps ---------------------------------------------------------------- */

static void received(struct weir_worker *worker, struct weir_message *message)
{
    struct letter *letter = WEIR_CONTAINER_OF(message, struct letter, message);

    if (letter->is_answer) {
        letter->job->answer_count++;
        return;
    }
    letter->is_answer = true;
    /* One letter is under way per entry, so there is always room. */
    assert_int_equal(weir_worker_send(worker, 0, message), 0);
}

static void completed(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct job *job = WEIR_CONTAINER_OF(operation, struct job, operation);

    (void)flags;
    job->result = result;
    job->completed_count++;
}

static int start(struct job *job)
{
    struct weir_worker_config config = {
        .region = {.directory = harness_tmpdir(),
                   .bytes_initial = 2 * MIB,
                   .bytes_max = 16 * MIB,
                   .resident_bytes_max = 14 * MIB,
                   .resident_bytes_min = 8 * MIB},
        .ring_entries = 16,
        .tick_ns = LONG_NS,
    };
    int r =
        weir_governor_create(&(struct weir_governor_config){.bytes_max = 64 * MIB}, &job->governor);

    if (r == 0)
        r = weir_mesh_create(2, 64, &job->mesh);
    config.governor = job->governor;
    config.mesh = job->mesh;
    if (r == 0)
        r = weir_worker_attach(&config, &job->ours);
    config.index = 1;
    if (r == 0)
        r = weir_worker_start(&config, &job->theirs);
    return r;
}

static void correspond(struct job *job)
{
    for (uint32_t i = 0; i < MESSAGE_COUNT; i++) {
        job->letters[i] = (struct letter){.message = {received}, .job = job};
        assert_int_equal(weir_worker_send(job->ours, 1, &job->letters[i].message), 0);
        if (i % 8 == 7)
            weir_worker_poll(job->ours, LONG_NS);
    }
    while (job->answer_count < MESSAGE_COUNT)
        weir_worker_poll(job->ours, LONG_NS);
}

static void operate(struct job *job)
{
    job->operation.complete = completed;
    io_uring_prep_nop(weir_worker_sqe(job->ours, &job->operation));
    while (job->completed_count == 0)
        weir_worker_poll(job->ours, LONG_NS);
    assert_int_equal(job->completed_count, 1);
    assert_true(job->result == 0 || is_fault(job->result));
}

static void store(struct job *job)
{
    static const char data[100000];
    struct weir_region *region = weir_worker_region(job->ours);

    for (int i = 0; i < 80; i++) {
        struct weir_slot slot;
        int r = weir_region_put(region, data, sizeof(data), (struct weir_label){1, 1}, &slot);
        assert_true(r == 0 || is_fault(r));
        weir_worker_poll(job->ours, 0);
    }
    weir_region_audit(region);
}

/* Memory gets short, and ample again: the region is paid for all the time. */
static void lend(struct job *job)
{
    struct weir_account *other = NULL;
    int r = weir_account_open(job->governor, &(struct weir_account_config){.name = "o"}, &other);

    assert_true(r == 0 || is_fault(r));
    if (r < 0)
        return;
    weir_account_charge_forced(other, 60 * MIB);
    for (int i = 0; i < 60; i++) {
        struct weir_worker_stats stats;
        struct weir_region_stats region;
        weir_worker_poll(job->ours, 0);
        weir_worker_stats(job->ours, &stats);
        weir_region_stats(weir_worker_region(job->ours), &region);
        assert_true(region.resident_bytes <= region.resident_bytes_max);
        assert_true(region.resident_bytes_max <= stats.region_charged_bytes);
        if (i == 40)
            weir_account_refund(other, 60 * MIB);
    }
    weir_account_close(other);
}

static void run(void *context)
{
    struct job *job = calloc(1, sizeof(*job));
    int r = start(job);

    (void)context;
    assert_true(r == 0 || is_fault(r));
    if (r == 0) {
        correspond(job);
        operate(job);
        store(job);
        lend(job);
    } else {
        assert_true(seam_fired() > 0);
        assert_null(job->theirs);
    }
    weir_worker_stop(job->theirs);
    weir_worker_stop(job->ours);
    weir_mesh_destroy(job->mesh);
    if (job->governor != NULL) {
        struct weir_governor_stats stats;
        weir_governor_stats(job->governor, &stats);
        assert_int_equal(stats.charged_bytes, 0);
    }
    weir_governor_destroy(job->governor);
    free(job);
}

/* ---- Cases ---------------------------------------------------------------------- */

/* Neither what a worker sleeps and reaps with, nor its bell. */
static bool is_no_lifeline(const struct seam_use *use, void *context)
{
    (void)context;
    return use->call != SEAM_ring_sleep && use->call != SEAM_ring_reap_some &&
           use->call != SEAM_ring_reap && use->call != SEAM_ring_wait &&
           (use->call != SEAM_ring_read || use->bytes != sizeof(uint64_t));
}

static void each_use(void **state)
{
    struct seam_rule rule = *(const struct seam_rule *)*state;
    uint64_t since = weir__clock_ns();

    rule.matches = is_no_lifeline;
    uint64_t count = seam_each(rule, 1, run, NULL);
    print_message("# %" PRIu64 " runs, %" PRIu64 " ms\n", count,
                  (weir__clock_ns() - since) / 1000000);
    assert_true(count > 0);
}

static const struct seam_rule call_once = {.call = SEAM_ANY_CALL};
static const struct seam_rule call_for_good = {.call = SEAM_ANY_CALL, .times = SEAM_FOR_GOOD};
static const struct seam_rule operation_once = {.call = SEAM_ANY_OPERATION};
static const struct seam_rule operation_for_good = {.call = SEAM_ANY_OPERATION,
                                                    .times = SEAM_FOR_GOOD};
static const struct seam_rule operation_late = {
    .call = SEAM_ANY_OPERATION, .times = SEAM_FOR_GOOD, .how = SEAM_DELAY, .reaps = 20};
static const struct seam_rule heap_once = {.call = SEAM_ANY_HEAP};
static const struct seam_rule heap_for_good = {.call = SEAM_ANY_HEAP, .times = SEAM_FOR_GOOD};

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        SEAM_TEST_OF("a call that fails once leaves nothing and loses nothing", each_use,
                     &call_once),
        SEAM_TEST_OF("calls that fail for good neither", each_use, &call_for_good),
        SEAM_TEST_OF("an operation that fails once completes once", each_use, &operation_once),
        SEAM_TEST_OF("without doorbells messages arrive", each_use, &operation_for_good),
        SEAM_TEST_OF("late completions are waited for", each_use, &operation_late),
        SEAM_TEST_OF("an allocation that fails once leaves nothing", each_use, &heap_once),
        SEAM_TEST_OF("without the heap nothing is left either", each_use, &heap_for_good),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("worker", cases, NULL, NULL);
}
