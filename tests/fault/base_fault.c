/* SPDX-License-Identifier: MIT */
/*
 * base_fault - the seam itself, and what base does when the kernel says no
 *
 * What a rule says is what happens: to a ring of either kind, to calls and to
 * allocations; and a rule that is lifted is gone.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/heap.h"
#include "base/ring.h"
#include "base/sys.h"

#include "answer.h"
#include "program.h"
#include "seam.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_BYTES 65536u

static int data_fd(void)
{
    static char data[FILE_BYTES];
    int fd = -1;

    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (char)(i / 256 + 1);
    assert_int_equal(weir__sys_open_unnamed(harness_tmpdir(), &fd), 0);
    assert_int_equal(weir__sys_pwrite_all(fd, data, sizeof(data), 0), 0);
    return fd;
}

/* ---- Calls ------------------------------------------------------------------ */

static void the_nth_use(void **state)
{
    int fd = data_fd();

    (void)state;
    seam_reset();
    seam_fail(SEAM_sys_fallocate, 3);
    for (int i = 1; i <= 5; i++)
        assert_int_equal(weir__sys_fallocate(fd, 0, 0, 4096), i == 3 ? -ENOSPC : 0);
    assert_int_equal(seam_fired(), 1);
    assert_int_equal(seam_used(SEAM_sys_fallocate), 5);

    seam_reset();
    seam_fail_on(SEAM_ANY_CALL, 2);
    assert_int_equal(weir__sys_fdatasync(fd), 0);
    assert_int_equal(weir__sys_fdatasync(fd), -EIO);
    assert_int_equal(weir__sys_ftruncate(fd, FILE_BYTES), -EROFS);
    assert_int_equal(weir__sys_ram_bytes(), 0);
    void *data = weir__heap_alloc(NULL, 10); /* not of that kind */
    assert_non_null(data);
    seam_lift();
    assert_int_equal(seam_fired(), 3);
    assert_int_equal(weir__sys_ftruncate(fd, FILE_BYTES), 0);

    seam_reset();
    seam_arm((struct seam_rule){.call = SEAM_sys_fallocate, .at = 2, .times = 2, .error = EINTR});
    for (int i = 1; i <= 5; i++)
        assert_int_equal(weir__sys_fallocate(fd, 0, 0, 4096), i == 2 || i == 3 ? -EINTR : 0);

    seam_reset();
    seam_fail(SEAM_ANY_HEAP, 2);
    weir__heap_free(NULL, data, 10);
    data = weir__heap_alloc(NULL, 10);
    assert_null(weir__heap_resize(NULL, data, 10, 20));
    weir__heap_free(NULL, data, 10);
    weir__sys_close(fd);
}

static bool is_at_8192(const struct seam_use *use, void *context)
{
    ++*(int *)context;
    return use->offset == 8192;
}

static void a_close_look(void **state)
{
    char buffer[256];
    int asked = 0;
    int fd = data_fd();

    (void)state;
    seam_arm((struct seam_rule){.call = SEAM_sys_pread_all,
                                .times = SEAM_FOR_GOOD,
                                .matches = is_at_8192,
                                .context = &asked});
    assert_int_equal(weir__sys_pread_all(fd, buffer, sizeof(buffer), 0), 0);
    assert_int_equal(weir__sys_pread_all(fd, buffer, sizeof(buffer), 8192), -EIO);
    assert_int_equal(weir__sys_pread_all(fd, buffer, sizeof(buffer), 16384), 0);
    assert_int_equal(weir__sys_pread_all(fd, buffer, sizeof(buffer), 8192), -EIO);
    assert_int_equal(asked, 4);
    seam_lift();
    assert_int_equal(weir__sys_pread_all(fd, buffer, sizeof(buffer), 8192), 0);
    weir__sys_close(fd);
}

static void half_of_it(void **state)
{
    char buffer[FILE_BYTES];
    struct stat file;
    int fd = data_fd();

    (void)state;
    seam_arm((struct seam_rule){.call = SEAM_ANY_CALL, .times = SEAM_FOR_GOOD, .how = SEAM_CUT});
    assert_int_equal(weir__sys_fallocate(fd, 0, FILE_BYTES, FILE_BYTES), -ENOSPC);
    assert_int_equal(weir__sys_pread_all(fd, buffer, sizeof(buffer), 0), -EIO);
    assert_int_equal(buffer[FILE_BYTES / 2 - 1], (char)(FILE_BYTES / 2 / 256));
    assert_int_equal((unsigned char)buffer[FILE_BYTES / 2], 0xee);
    assert_int_equal(weir__sys_pwrite_all(fd, "xy", 2, 0), -ENOSPC);
    seam_lift();
    assert_int_equal(weir__sys_fstat(fd, &file), 0);
    assert_int_equal(file.st_size, FILE_BYTES + FILE_BYTES / 2);
    assert_int_equal(weir__sys_pread_all(fd, buffer, 2, 0), 0);
    assert_memory_equal(buffer, "x\1", 2);
    weir__sys_close(fd);
}

/* ---- Operations --------------------------------------------------------------- */

struct job {
    struct weir_ring *ring;
    int fd;
    struct answer answers[8];
    char buffer[8192];
};

static struct job *start(void)
{
    struct job *job = calloc(1, sizeof(*job));

    for (size_t i = 0; i < sizeof(job->answers) / sizeof(job->answers[0]); i++)
        job->answers[i] = answer_open();
    job->fd = data_fd();
    assert_int_equal(weir__ring_open(8, true, &job->ring), 0);
    return job;
}

static void finish(struct job *job)
{
    assert_int_equal(weir__ring_in_flight(job->ring), 0);
    weir__ring_close(job->ring);
    weir__sys_close(job->fd);
    free(job);
}

static struct answer *read_in(struct job *job, int i)
{
    weir__ring_read(job->ring, &job->answers[i].operation, job->fd, job->buffer,
                    sizeof(job->buffer), 0);
    return &job->answers[i];
}

static void operations_that_fail(void **state)
{
    struct job *job = start();

    (void)state;
    seam_fail(SEAM_ANY_OPERATION, 2);
    struct answer *first = read_in(job, 0);
    struct answer *second = read_in(job, 1);
    weir__ring_fdatasync(job->ring, &job->answers[2].operation, job->fd);
    assert_int_equal(weir__ring_in_flight(job->ring), 3);
    assert_int_equal(second->count, 0); /* never from the call itself */
    for (int i = 0; i < 100 && weir__ring_in_flight(job->ring) > 0; i++)
        assert_true(weir__ring_wait(job->ring, 100000000) >= 0);
    assert_int_equal(first->result, sizeof(job->buffer));
    assert_int_equal(second->result, -EIO);
    assert_int_equal(second->count, 1);
    assert_int_equal(job->answers[2].result, 0);
    assert_int_equal(job->answers[2].count, 1);
    finish(job);
}

static void a_read_that_is_short(void **state)
{
    struct job *job = start();

    (void)state;
    seam_arm((struct seam_rule){.call = SEAM_ring_read, .how = SEAM_CUT});
    struct answer *answer = read_in(job, 0);
    while (answer->count == 0)
        assert_true(weir__ring_wait(job->ring, 100000000) >= 0);
    assert_int_equal(answer->result, sizeof(job->buffer) / 2);
    assert_int_equal(job->buffer[sizeof(job->buffer) / 2 - 1], sizeof(job->buffer) / 2 / 256);
    assert_int_equal((unsigned char)job->buffer[sizeof(job->buffer) / 2], 0xee);
    finish(job);
}

static void a_late_completion(void **state)
{
    struct job *job = start();
    int reaps = 0;

    (void)state;
    seam_arm((struct seam_rule){.call = SEAM_ring_read, .how = SEAM_DELAY, .reaps = 5});
    struct answer *late = read_in(job, 0);
    struct answer *next = read_in(job, 1);
    while (next->count == 0)
        assert_true(weir__ring_wait(job->ring, 100000000) >= 0);
    while (seam_held() == 0)
        assert_true(weir__ring_wait(job->ring, 100000000) >= 0);
    for (; late->count == 0; reaps++)
        assert_true(weir__ring_reap(job->ring) >= 0);
    assert_in_range(reaps, 5, 6);
    assert_int_equal(late->result, sizeof(job->buffer));
    finish(job);
}

static bool has_come(void *context)
{
    return ((const struct answer *)context)->count > 0;
}

static void never_before(void **state)
{
    struct job *job = start();

    (void)state;
    seam_arm((struct seam_rule){.call = SEAM_ring_read,
                                .how = SEAM_HOLD,
                                .releases = has_come,
                                .context = &job->answers[1]});
    struct answer *held = read_in(job, 0);
    for (int i = 0; i < 20; i++)
        assert_true(weir__ring_wait(job->ring, 1000000) >= 0);
    assert_int_equal(held->count, 0);
    assert_int_equal(weir__ring_in_flight(job->ring), 1);
    assert_true(weir__ring_is_ready(job->ring));
    struct answer *first = read_in(job, 1);
    while (held->count == 0) {
        assert_true(weir__ring_wait(job->ring, 100000000) >= 0);
        assert_true(held->count <= first->count);
    }

    seam_arm((struct seam_rule){.call = SEAM_ring_fdatasync, .how = SEAM_HOLD});
    weir__ring_fdatasync(job->ring, &job->answers[2].operation, job->fd);
    weir__ring_cancel_all(job->ring);
    assert_int_equal(job->answers[2].count, 1);

    seam_reset();
    seam_arm((struct seam_rule){.call = SEAM_ring_fdatasync, .how = SEAM_HOLD, .error = EIO});
    weir__ring_fdatasync(job->ring, &job->answers[3].operation, job->fd);
    while (seam_held() == 0)
        assert_true(weir__ring_wait(job->ring, 100000000) >= 0);
    seam_release();
    assert_int_equal(weir__ring_reap(job->ring), 1);
    assert_int_equal(job->answers[3].result, -EIO);
    finish(job);
}

static uint64_t block_count(const struct job *job)
{
    struct stat file;

    assert_int_equal(weir__sys_fstat(job->fd, &file), 0);
    return (uint64_t)file.st_blocks;
}

/* A hole is there when what was late has been done, and not before. */
static void what_is_late(void **state)
{
    const int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    struct job *job = start();
    uint64_t before = block_count(job);

    (void)state;
    seam_arm(
        (struct seam_rule){.call = SEAM_ring_fallocate, .times = SEAM_FOR_GOOD, .how = SEAM_LATE});
    for (int i = 0; i < 2; i++) {
        weir__ring_fallocate(job->ring, &job->answers[i].operation, job->fd, punch, 0, FILE_BYTES);
        for (int j = 0; j < 20; j++)
            assert_true(weir__ring_wait(job->ring, 1000000) >= 0);
        assert_int_equal(job->answers[i].count, 0);
        assert_int_equal(weir__ring_in_flight(job->ring), 1);
        assert_int_equal(block_count(job), before);
        if (i == 0)
            seam_release_failed();
        else
            seam_release();
        while (job->answers[i].count == 0)
            assert_true(weir__ring_wait(job->ring, 100000000) >= 0);
    }
    assert_int_equal(job->answers[0].result, -ENOSPC);
    assert_int_equal(job->answers[1].result, 0);
    assert_true(block_count(job) < before);
    finish(job);
}

static void an_entry_that_fails(void **state)
{
    struct job *job = start();

    (void)state;
    if (weir__ring_is_synchronous(job->ring)) {
        finish(job);
        return; /* such a ring has no entries */
    }
    seam_fail(SEAM_ring_sqe, 1);
    io_uring_prep_nop(weir__ring_sqe(job->ring, &job->answers[0].operation));
    io_uring_prep_nop(weir__ring_sqe(job->ring, &job->answers[1].operation));
    while (weir__ring_in_flight(job->ring) > 0)
        assert_true(weir__ring_wait(job->ring, 100000000) >= 0);
    assert_int_equal(job->answers[0].result, -EIO);
    assert_int_equal(job->answers[1].result, 0);
    finish(job);
}

/* ---- One after the other -------------------------------------------------------- */

static void open_and_close(void *context)
{
    int fds[3] = {-1, -1, -1};

    for (int i = 0; i < 3; i++)
        (void)!weir__sys_eventfd(&fds[i]);
    for (int i = 0; i < 3; i++)
        weir__sys_close(fds[i]);
    ++*(int *)context;
}

static void until_none_fires(void **state)
{
    int runs = 0;

    (void)state;
    assert_int_equal(seam_each((struct seam_rule){.call = SEAM_ANY_CALL}, 1, open_and_close, &runs),
                     3);
    assert_int_equal(runs, 4);
    assert_int_equal(seam_each((struct seam_rule){.call = SEAM_ANY_CALL}, 2, open_and_close, &runs),
                     2);
    assert_int_equal(
        seam_each((struct seam_rule){.call = SEAM_sys_memfd}, 1, open_and_close, &runs), 0);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        SEAM_TEST("the N-th use goes wrong, once or for good", the_nth_use),
        SEAM_TEST("a rule may look closely", a_close_look),
        SEAM_TEST("what is cut short has done the first half", half_of_it),
        SEAM_TEST("an operation that fails completes once, with its error", operations_that_fail),
        SEAM_TEST("a read that is short says so", a_read_that_is_short),
        SEAM_TEST("a completion comes as late as it should", a_late_completion),
        SEAM_TEST("a completion comes not before another", never_before),
        SEAM_TEST("what is late is not begun before it is released", what_is_late),
        SEAM_TEST("an entry that fails is never the kernel's", an_entry_that_fails),
        SEAM_TEST("runs end when none goes wrong", until_none_fires),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("base", cases, NULL, NULL);
}
