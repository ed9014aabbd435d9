/* SPDX-License-Identifier: MIT */
/*
 * worker_start_fault - what a kernel lacks or forbids is told, and the worker works
 *
 * Each fall-back that a start knows is brought about, one at a time; the report
 * hook hears of that one alone, before on_start, and then messages, operations and
 * the region do what they always do.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/worker.h>

#include "base/bits.h"
#include "base/ring.h"

#include "pattern.h"
#include "program.h"
#include "seam.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB        (UINT64_C(1) << 20)
#define REPORT_MAX 8
#define ITEM_COUNT 64u
#define ITEM_BYTES 100000u

/* ---- An older kernel ---------------------------------------------------------- */

static bool kernel_is_old;

int __real_io_uring_queue_init_params(unsigned entries, struct io_uring *ring,
                                      struct io_uring_params *params);
int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *ring,
                                      struct io_uring_params *params);

/* As a kernel before 6.0 does: SINGLE_ISSUER and what came after it are unknown flags. */
int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *ring,
                                      struct io_uring_params *params)
{
    if (kernel_is_old &&
        (params->flags & (IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN)) != 0)
        return -EINVAL;
    return __real_io_uring_queue_init_params(entries, ring, params);
}

/* ---- A worker, and all that it does ----------------------------------------------- */

struct job {
    struct weir_mesh *mesh;
    struct weir_worker *worker;
    struct weir_message message;
    struct weir_operation operation;
    const char *texts[REPORT_MAX];
    int errors[REPORT_MAX];
    uint32_t text_count;
    uint32_t told_before_start;
    uint32_t received_count;
    uint32_t completed_count;
    uint32_t fetched_count;
};

static void on_report(struct weir_worker *worker, const struct weir_report *report, void *context)
{
    struct job *job = context;

    (void)worker;
    if (report->kind != WEIR_REPORT_FALLBACK)
        return;
    assert_true(job->text_count < REPORT_MAX);
    job->texts[job->text_count] = report->text;
    job->errors[job->text_count++] = report->error;
}

static int on_start(struct weir_worker *worker, void *context)
{
    struct job *job = context;

    (void)worker;
    job->told_before_start = job->text_count;
    return 0;
}

static struct job *job_open(void)
{
    struct job *job = calloc(1, sizeof(*job));
    struct weir_worker_config config = {
        .region = {.directory = harness_tmpdir(),
                   .bytes_initial = 4 * MIB,
                   .bytes_max = 64 * MIB,
                   .resident_bytes_max = 16 * MIB},
        .report = on_report,
        .on_start = on_start,
        .context = job,
    };

    assert_int_equal(weir_mesh_create(1, 8, &job->mesh), 0);
    config.mesh = job->mesh;
    assert_int_equal(weir_worker_attach(&config, &job->worker), 0);
    assert_int_equal(job->told_before_start, job->text_count);
    return job;
}

static void received(struct weir_worker *worker, struct weir_message *message)
{
    (void)worker;
    WEIR_CONTAINER_OF(message, struct job, message)->received_count++;
}

static void completed(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    (void)flags;
    assert_int_equal(result, 0);
    WEIR_CONTAINER_OF(operation, struct job, operation)->completed_count++;
}

static void fetched(void *context, struct weir_slot slot, int result)
{
    struct job *job = context;
    const void *data;

    assert_int_equal(result, 0);
    assert_int_equal(weir_region_at(weir_worker_region(job->worker), slot, &data, NULL), 0);
    assert_int_equal(harness_differs_at(data, ITEM_BYTES, 7, 0), ITEM_BYTES);
    job->fetched_count++;
}

static void job_work(struct job *job)
{
    struct weir_region *region = weir_worker_region(job->worker);
    static char item[ITEM_BYTES];
    struct weir_slot slots[ITEM_COUNT];

    job->message.receive = received;
    assert_int_equal(weir_worker_send(job->worker, 0, &job->message), 0);
    job->operation.complete = completed;
    io_uring_prep_nop(weir_worker_sqe(job->worker, &job->operation));
    harness_fill(item, sizeof(item), 7, 0);
    for (uint32_t i = 0; i < ITEM_COUNT; i++)
        assert_int_equal(
            weir_region_put(region, item, sizeof(item), (struct weir_label){.key = i}, &slots[i]),
            0);
    assert_int_equal(weir_region_fetch(region, slots, ITEM_COUNT, fetched, job), 0);
    while (job->received_count == 0 || job->completed_count == 0 || job->fetched_count < ITEM_COUNT)
        weir_worker_poll(job->worker, 1000000);
    assert_int_equal(job->received_count, 1);
    assert_int_equal(job->completed_count, 1);
    weir_region_audit(region);
}

static void job_close(struct job *job)
{
    weir_worker_stop(job->worker);
    weir_mesh_destroy(job->mesh);
    free(job);
}

/* What was told without any fault: of the file system below the directory. */
static uint32_t usual_count;

/* One report more than usual, with this in its text. */
static void assert_told(const struct job *job, const char *part, int error)
{
    assert_int_equal(job->text_count, usual_count + 1);
    for (uint32_t i = 0; i < job->text_count; i++) {
        if (strstr(job->texts[i], part) == NULL)
            continue;
        assert_int_equal(job->errors[i], error);
        return;
    }
    fail_msg("nothing of %s was told", part);
}

/* ---- Cases ---------------------------------------------------------------------- */

static void test_nothing_to_tell(void **state)
{
    struct job *job = job_open();

    (void)state;
    usual_count = job->text_count;
    for (uint32_t i = 0; i < usual_count; i++)
        print_message("# told here: %s\n", job->texts[i]);
    assert_true(usual_count <= 1); /* this disk may have no O_DIRECT */
    job_work(job);
    job_close(job);
}

static void test_locked_memory(void **state)
{
    (void)state;
    seam_arm((struct seam_rule){.call = SEAM_ring_open, .times = 2, .error = ENOMEM});
    struct job *job = job_open();
    assert_int_equal(seam_fired(), 2);
    assert_told(job, "RLIMIT_MEMLOCK", -ENOMEM);

    /* 256 entries twice halved: 64 bytes each, and completions for four of each. */
    struct weir_worker_stats stats;
    weir_worker_stats(job->worker, &stats);
    struct weir_ring *ring;
    assert_int_equal(weir__ring_open(64, false, &ring), 0);
    assert_int_equal(stats.ring_bytes, weir__ring_kernel_bytes(ring));
    weir__ring_close(ring);
    job_work(job);
    job_close(job);
}

static void test_locked_memory_for_good(void **state)
{
    struct weir_worker *worker = NULL;

    (void)state;
    seam_arm((struct seam_rule){.call = SEAM_ring_open, .times = SEAM_FOR_GOOD, .error = ENOMEM});
    assert_int_equal(weir_worker_attach(&(struct weir_worker_config){0}, &worker), -ENOMEM);
    assert_int_equal(seam_fired(), 4); /* 256, 128, 64, 32 */
    assert_null(worker);
}

static void test_old_kernel(void **state)
{
    (void)state;
    kernel_is_old = true;
    struct job *job = job_open();
    kernel_is_old = false;
    assert_told(job, "before 6.1", 0);
    assert_false(weir__ring_is_deferred(weir_worker_ring(job->worker)));
    job_work(job);
    job_close(job);
}

static void test_helpers(void **state)
{
    (void)state;
    seam_fail_on(SEAM_ring_bound_helpers, 1);
    struct job *job = job_open();
    assert_told(job, "helper", -EINVAL);
    job_work(job);
    job_close(job);
}

static bool is_direct(const struct seam_use *use, void *context)
{
    (void)context;
    return (use->mode & O_DIRECT) != 0;
}

static void test_direct(void **state)
{
    (void)state;
    if (usual_count > 0) {
        print_message("# passed over: this disk has no O_DIRECT as it is\n");
        return;
    }
    seam_arm((struct seam_rule){
        .call = SEAM_sys_reopen, .times = SEAM_FOR_GOOD, .error = EINVAL, .matches = is_direct});
    struct job *job = job_open();
    assert_told(job, "O_DIRECT", 0);
    job_work(job);
    job_close(job);
}

static bool is_reservation(const struct seam_use *use, void *context)
{
    (void)context;
    return use->bytes == 64 * MIB && use->fd >= 0;
}

static void test_address_space(void **state)
{
    (void)state;
    seam_arm((struct seam_rule){.call = SEAM_sys_mmap, .matches = is_reservation});
    struct job *job = job_open();
    assert_true(seam_fired() > 0);
    assert_told(job, "address space", 0);
    job_work(job);
    job_close(job);
}

static void test_forbidden(void **state)
{
    struct weir_worker *worker = NULL;

    (void)state;
    seam_arm((struct seam_rule){.call = SEAM_ring_open, .error = EOPNOTSUPP});
    assert_int_equal(weir_worker_attach(&(struct weir_worker_config){0}, &worker), -EOPNOTSUPP);
    assert_null(worker);
}

/* Where memory lies may not be asked, or there is nobody to ask. */
static void test_nodes(void **state)
{
    struct job *job = job_open();
    struct weir_worker_memory memory = {.node = 77};
    struct weir_placement placement = {.stride = 77};

    (void)state;
    seam_fail(SEAM_sys_page_nodes, 1);
    assert_int_equal(weir_worker_memory(job->worker, &memory), -EPERM);
    seam_arm((struct seam_rule){.call = SEAM_sys_page_nodes, .at = 4, .error = ENOSYS});
    assert_int_equal(weir_worker_memory(job->worker, &memory), -EOPNOTSUPP);
    seam_arm((struct seam_rule){.call = SEAM_sys_page_nodes, .error = ENOSYS});
    assert_int_equal(weir_region_placement(weir_worker_region(job->worker), &placement),
                     -EOPNOTSUPP);
    assert_int_equal(memory.node, 77);
    assert_int_equal(placement.stride, 77);
    job_close(job);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        SEAM_TEST("where nothing is missing nothing is told", test_nothing_to_tell),
        SEAM_TEST("a ring too large for locked memory is halved, and told", test_locked_memory),
        SEAM_TEST("without any ring there is no worker", test_locked_memory_for_good),
        SEAM_TEST("a kernel before 6.1 is told, and will do", test_old_kernel),
        SEAM_TEST("helpers that cannot be bounded are told", test_helpers),
        SEAM_TEST("a disk without O_DIRECT is told", test_direct),
        SEAM_TEST("address space that is refused is told", test_address_space),
        SEAM_TEST("a ring that is forbidden is refused", test_forbidden),
        SEAM_TEST("where nodes cannot be asked it says so", test_nodes),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("worker_start", cases, NULL, NULL);
}
