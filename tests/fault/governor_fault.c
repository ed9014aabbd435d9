/* SPDX-License-Identifier: MIT */
/*
 * governor_fault - a governor to which the kernel says no
 *
 * It asks the kernel for little: memory for itself and its accounts, a barrier, and
 * files that say how large the machine is. Where memory is refused nothing is left;
 * without the barrier charges cost more; and what cannot be read is not known. The
 * books, the order of waiters and the verdicts are the same under each of them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/governor.h>

#include "base/bits.h"
#include "base/sys.h"
#include "governor/ledger.h"

#include "machine.h"
#include "program.h"
#include "seam.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#define GIB       (UINT64_C(1) << 30)
#define MIB       (UINT64_C(1) << 20)
#define LIMIT     (512 * MIB) /* half of what the tree says */
#define TRIES_MAX 2

struct job {
    struct weir_governor *governor;
    struct weir_account *plain;
    struct weir_account *spillable;
    struct weir_waiter waiter;
    int woken;
    int result;
};

static void woken(struct weir_waiter *waiter, int result)
{
    struct job *job = WEIR_CONTAINER_OF(waiter, struct job, waiter);

    job->woken++;
    job->result = result;
}

static struct weir_governor_stats figures(const struct job *job)
{
    struct weir_governor_stats stats;

    weir_governor_stats(job->governor, &stats);
    return stats;
}

static enum weir_verdict charge(struct weir_account *account, size_t bytes)
{
    enum weir_verdict verdict = (enum weir_verdict)99;

    assert_int_equal(weir_account_charge(account, bytes, &verdict), 0);
    return verdict;
}

/* ---- Steps ---------------------------------------------------------------- */

/* The machine is this one: how large it is, nobody here knows. */
static int create(struct job *job)
{
    struct weir_governor_config config = {.percent = 50, .node_count = 1};
    int r = weir_governor_create(&config, &job->governor);

    if (r == 0) {
        assert_true(figures(job).bytes_max > 0);
        return 0;
    }
    assert_null(job->governor);
    assert_true(seam_fired() > 0);
    assert_true(r == -ENOMEM || r == -EACCES || r == -EOPNOTSUPP); /* these: nobody tells */
    return r;
}

static int open_accounts(struct job *job)
{
    struct weir_account_config plain = {.name = "plain", .reserve_bytes = MIB};
    struct weir_account_config spillable = {.name = "spillable", .spillable = true};
    int r = weir_account_open(job->governor, &plain, &job->plain);

    if (r == 0)
        r = weir_account_open(job->governor, &spillable, &job->spillable);
    assert_true(r == 0 || (r == -ENOMEM && seam_fired() > 0));
    assert_int_equal(figures(job).account_count,
                     (job->plain != NULL) + (uint64_t)(job->spillable != NULL));
    assert_int_equal(figures(job).charged_bytes, job->plain != NULL ? MIB : 0);
    return r;
}

/* What it says, it says truly; what it does not is an error, and raises nothing. */
static bool look(struct job *job)
{
    struct weir_governor_outside outside;
    uint64_t before = figures(job).bytes_max;

    weir__governor_look_at(job->governor, tree, 8 * GIB, &outside);
    assert_true(outside.usage_bytes == 0 || outside.usage_bytes == 123456);
    assert_true(outside.rss_bytes == 0 ||
                outside.rss_bytes == 300 * (uint64_t)sysconf(_SC_PAGESIZE));
    assert_true(outside.pressure_some == 0 || outside.pressure_some == 730);
    assert_int_equal(figures(job).charged_bytes, MIB);
    if (outside.error < 0) {
        assert_true(outside.error == -EACCES || outside.error == -ENOMEM);
        assert_true(figures(job).bytes_max <= before);
        return false;
    }
    assert_int_equal(outside.limit_bytes, GIB);
    assert_int_equal(figures(job).bytes_max, LIMIT);
    assert_true(outside.usage_bytes != 0 && outside.rss_bytes != 0 && outside.pressure_some != 0);
    return true;
}

/* All verdicts, and a waiter: nothing of this asks the kernel for what it could refuse. */
static void charge_all(struct job *job)
{
    struct weir_governor_config config = {.bytes_max = 1000 * MIB, .node_count = 1};
    uint64_t before = seam_fired();

    job->waiter.wake = woken;
    job->woken = 0;
    assert_int_equal(weir_governor_set_limits(job->governor, &config), 0);
    assert_int_equal(charge(job->plain, 700 * MIB), WEIR_ADMIT);
    assert_int_equal(charge(job->plain, 150 * MIB), WEIR_FLUSH);
    assert_int_equal(charge(job->spillable, 60 * MIB), WEIR_SPILL);
    assert_int_equal(charge(job->plain, 148 * MIB), WEIR_ADMIT);
    assert_int_equal(charge(job->plain, 2 * MIB), WEIR_WAIT);
    weir_account_charge_forced(job->spillable, MIB);
    assert_int_equal(figures(job).charged_bytes, 1000 * MIB);
    assert_int_equal(weir_account_wait(job->spillable, &job->waiter, 10 * MIB, UINT64_MAX), 0);
    weir_account_refund(job->plain, 998 * MIB);
    assert_int_equal(weir_account_poll(job->spillable), 1);
    assert_int_equal(job->woken, 1);
    assert_int_equal(job->result, 0);
    assert_int_equal(figures(job).charged_bytes, 12 * MIB);
    weir_account_refund(job->spillable, 11 * MIB);
    assert_int_equal(figures(job).charged_bytes, MIB);
    assert_int_equal(seam_fired(), before);
}

static void close_all(struct job *job)
{
    weir_account_close(job->plain);
    weir_account_close(job->spillable);
    if (job->governor != NULL) {
        assert_int_equal(figures(job).account_count, 0);
        assert_int_equal(figures(job).charged_bytes, 0);
    }
    weir_governor_destroy(job->governor);
}

static void run(void *context)
{
    struct job job = {0};
    int r = -ENOMEM;

    (void)context;
    for (int i = 0; i < TRIES_MAX && r < 0; i++)
        r = create(&job);
    if (r == 0)
        r = open_accounts(&job);
    for (int i = 0; i < 2 && r == 0; i++) /* what the first has found the second may lose */
        if (!look(&job))
            assert_true(seam_fired() > 0);
    if (r == 0)
        charge_all(&job);
    if (r == 0) {
        struct weir_governor_config config = {.percent = 50, .node_count = 1};
        seam_lift();
        assert_int_equal(weir_governor_set_limits(job.governor, &config), 0);
        assert_true(look(&job));
        assert_int_equal(figures(&job).bytes_max, LIMIT);
        charge_all(&job);
    }
    close_all(&job);
}

/* ---- Cases ---------------------------------------------------------------------- */

/* How much RAM there is does not fail, but where nothing is known at all: below. */
static bool can_fail(const struct seam_use *use, void *context)
{
    (void)context;
    return use->call != SEAM_sys_ram_bytes;
}

static void each_use(void **state)
{
    struct seam_rule rule = *(const struct seam_rule *)*state;

    rule.matches = can_fail;
    uint64_t count = seam_each(rule, 1, run, NULL);
    print_message("# %" PRIu64 " runs\n", count);
    assert_true(count >= 3);
}

static void a_machine_of_unknown_size(void **state)
{
    struct weir_governor_config config = {.percent = 50};
    struct weir_governor *governor = NULL;

    /* Why nobody tells, if somebody would have; else that it is not to be had. */
    (void)state;
    seam_fail_on(SEAM_sys_ram_bytes, 1);
    seam_fail_on(SEAM_sys_read_text, 1);
    assert_int_equal(weir_governor_machine_bytes(), 0);
    assert_int_equal(weir_governor_create(&config, &governor), -EACCES);
    assert_null(governor);
    seam_lift();
    seam_fail_on(SEAM_sys_ram_bytes, 1);
    seam_arm(
        (struct seam_rule){.call = SEAM_sys_read_text, .times = SEAM_FOR_GOOD, .error = ENOENT});
    assert_int_equal(weir_governor_create(&config, &governor), -EOPNOTSUPP);
    assert_null(governor);
    config.bytes_max = GIB;
    assert_int_equal(weir_governor_create(&config, &governor), 0);
    assert_true(seam_fired() > 0);
    weir_governor_destroy(governor);
}

static void a_machine_that_tells_in_part(void **state)
{
    struct weir_governor_config config = {.percent = 50, .node_count = 1};
    struct weir_governor_figures all;
    struct weir_governor *governor = NULL;

    (void)state;
    seam_fail_on(SEAM_sys_read_text, 1);
    assert_int_equal(weir_governor_create(&config, &governor), 0);
    weir_governor_figures(governor, &all, NULL, 0);
    assert_int_equal(all.outside.error, -EACCES);
    assert_int_equal(all.outside.limit_bytes, weir__sys_ram_bytes());
    assert_int_equal(all.governor.bytes_max,
                     all.outside.limit_bytes / 100 * 50 + all.outside.limit_bytes % 100 * 50 / 100);

    /* A limit that is read later comes down to it, and an error keeps it there. */
    struct weir_governor_outside outside;
    seam_lift();
    weir_governor_look(governor, &outside);
    assert_int_equal(outside.error, 0);
    uint64_t bytes_max = outside.limit_bytes;
    seam_fail_on(SEAM_sys_read_text, 1);
    weir_governor_look(governor, &outside);
    assert_int_equal(outside.error, -EACCES);
    assert_int_equal(outside.limit_bytes, bytes_max);
    weir_governor_destroy(governor);
}

static const struct seam_rule call_once = {.call = SEAM_ANY_CALL};
static const struct seam_rule call_for_good = {.call = SEAM_ANY_CALL, .times = SEAM_FOR_GOOD};
static const struct seam_rule heap_once = {.call = SEAM_ANY_HEAP};
static const struct seam_rule heap_for_good = {.call = SEAM_ANY_HEAP, .times = SEAM_FOR_GOOD};

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        SEAM_TEST_OF("a call that fails once changes no verdict", each_use, &call_once),
        SEAM_TEST_OF("calls that fail for good neither", each_use, &call_for_good),
        SEAM_TEST_OF("an allocation that fails once leaves nothing", each_use, &heap_once),
        SEAM_TEST_OF("without the heap nothing is left either", each_use, &heap_for_good),
        SEAM_TEST("of a machine of unknown size there is no part", a_machine_of_unknown_size),
        SEAM_TEST("a machine that tells in part says so", a_machine_that_tells_in_part),
    };

    if (!harness_begin(argc, argv))
        return 0;
    plant_group("machine", "v2");
    write_file("/sys/fs/cgroup/app/memory.max", "1073741824\n");
    write_file("/sys/fs/cgroup/app/memory.current", "123456\n");
    return cmocka_run_group_tests_name("governor", cases, NULL, NULL);
}
