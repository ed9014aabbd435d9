/* SPDX-License-Identifier: MIT */
/*
 * scratch_fault - a store to which the kernel says no
 *
 * Six files live through all that can be asked of one, each by its own script; one
 * step of each in turn. A step that fails has an error of its own, has changed
 * nothing, and works when it is done again without the fault. After every step the
 * cap, the disk cap and the books are told what is there, to the byte. In the end
 * either all is read back whole, or everything goes while the kernel still says no.
 *
 *      scratch_fault [--synchronous] [CASE]
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/scratch.h>

#include "base/bits.h"
#include "base/ring.h"

#include "answer.h"
#include "double.h"
#include "pattern.h"
#include "program.h"
#include "seam.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define KIB         UINT64_C(1024)
#define BYTES_MAX   (UINT64_C(3) << 20)
#define LONG_NS     UINT64_C(20000000000)
#define POLLS_MAX   3 /* that fail, before we give in */
#define STEPS_MAX   12
#define BUFFER_SEED 0xee

enum what {
    END,
    CREATE,
    APPEND,
    START_APPEND,
    ABORT, /* with an append of so many bytes under way */
    SEAL,
    OPEN, /* a reader */
    READ, /* from that offset on */
    START_READ,
    DROP,
    OUTLIVE, /* reads that are under way when file and reader go */
};

struct step {
    enum what what;
    uint64_t bytes;
    uint64_t offset;
};

/* A block is 128 KiB; up to 64 KiB stay in memory. */
static const struct step scripts[][STEPS_MAX] = {
    {{CREATE, 0, 0},
     {APPEND, 1000, 0},
     {APPEND, 0, 0},
     {SEAL, 0, 0},
     {OPEN, 0, 0},
     {READ, 2000, 0},
     {START_READ, 500, 700}},
    {{CREATE, 0, 0},
     {APPEND, 40 * KIB, 0},
     {APPEND, 40 * KIB, 0},
     {APPEND, 300 * KIB, 0},
     {APPEND, 10, 0},
     {SEAL, 0, 0},
     {OPEN, 0, 0},
     {READ, 390 * KIB, 0},
     {READ, 10, 300 * KIB}},
    {{CREATE, 0, 0},
     {START_APPEND, 50 * KIB, 0},
     {START_APPEND, 400 * KIB, 0},
     {START_APPEND, 0, 0},
     {START_APPEND, 128 * KIB, 0},
     {SEAL, 0, 0},
     {OPEN, 0, 0},
     {START_READ, 300 * KIB, 0},
     {DROP, 0, 0},
     {START_READ, 10, 300 * KIB - 5}},
    {{CREATE, 0, 0}, {START_APPEND, 100 * KIB, 0}, {ABORT, 400 * KIB, 0}},
    {{CREATE, 0, 0},
     {APPEND, 256 * KIB, 0},
     {SEAL, 0, 0},
     {OPEN, 0, 0},
     {OUTLIVE, 200 * KIB, 4096}},
    {{CREATE, 0, 0}, {SEAL, 0, 0}, {OPEN, 0, 0}, {READ, 10, 0}},
};

#define LIFE_COUNT (sizeof(scripts) / sizeof(scripts[0]))

struct life {
    const struct step *next;
    uint64_t seed;
    uint64_t bytes; /* appended for good, and not given back */
    struct weir_scratch_writer *writer;
    struct weir_scratch_file *file;
    struct weir_scratch_reader *reader;
};

/* How a run is meant. */
struct plan {
    bool ends_under_fault; /* nothing is lifted */
    bool is_buffered;      /* without O_DIRECT */
    bool shares_ring;
};

struct job {
    struct plan plan;
    char directory[PATH_MAX];
    struct weir_account account;
    struct weir_ring *ring; /* if it is shared */
    struct weir_scratch *scratch;
    struct life lives[LIFE_COUNT];
    uint64_t disk_bytes; /* taken from the disk cap */
};

/* Of the kernel; not ours. */
static bool is_fault(int r)
{
    return r < 0 && r != -EINVAL && r != -EBADMSG && r != -EDQUOT && r != -ECANCELED;
}

/* ---- The books ------------------------------------------------------------ */

static bool disk_take(void *context, uint64_t bytes)
{
    *(uint64_t *)context += bytes;
    return true;
}

static void disk_give(void *context, uint64_t bytes)
{
    assert_true(*(uint64_t *)context >= bytes);
    *(uint64_t *)context -= bytes;
}

static struct weir_scratch_stats stats_of(const struct job *job)
{
    struct weir_scratch_stats stats;

    weir_scratch_stats(job->scratch, &stats);
    return stats;
}

static void assert_books(const struct job *job)
{
    struct weir_scratch_stats stats = stats_of(job);
    uint64_t bytes = 0;
    uint64_t writers = 0;
    uint64_t files = 0;
    uint64_t readers = 0;

    for (size_t i = 0; i < LIFE_COUNT; i++) {
        const struct life *life = &job->lives[i];
        bytes += life->bytes;
        writers += life->writer != NULL;
        files += life->file != NULL;
        readers += life->reader != NULL;
        if (life->writer != NULL)
            assert_int_equal(weir_scratch_writer_bytes(life->writer), life->bytes);
    }
    assert_int_equal(stats.used_bytes, bytes);
    assert_int_equal(stats.writer_count, writers);
    assert_int_equal(stats.file_count, files);
    assert_int_equal(stats.reader_count, readers);
    assert_int_equal(stats.disk_bytes, job->disk_bytes);
    assert_int_equal(stats.buffer_bytes, job->account.book_bytes);
    assert_int_equal(stats.refused_count, 0);
}

/* ---- Steps ---------------------------------------------------------------- */

static char *buffer_of(uint64_t bytes)
{
    char *buffer = aligned_alloc(4096, weir__round_up(bytes + 1, 4096));

    assert_non_null(buffer);
    memset(buffer, BUFFER_SEED, bytes + 1);
    return buffer;
}

/* A poll that fails is told, and completes nothing; one that always does is given up. */
static int32_t wait_for(struct job *job, const struct answer *answer)
{
    int failed = 0;

    while (answer->count == 0) {
        int r = job->ring == NULL ? weir_scratch_poll(job->scratch, LONG_NS)
                                  : weir__ring_wait(job->ring, LONG_NS);
        if (r >= 0)
            continue;
        assert_true(is_fault(r));
        if (++failed == POLLS_MAX)
            seam_lift();
    }
    assert_int_equal(answer->count, 1);
    assert_int_equal(answer->flags, 0);
    return answer->result;
}

static int append(struct job *job, struct life *life, const struct step *step)
{
    struct answer answer = answer_open();
    char *data = buffer_of(step->bytes);
    int r;

    harness_fill(data, step->bytes, life->seed, life->bytes);
    if (step->what == APPEND) {
        r = weir_scratch_append(life->writer, data, step->bytes);
    } else {
        r = weir_scratch_append_start(life->writer, data, step->bytes, &answer.operation);
        if (r == 0 && step->what == ABORT) {
            weir_scratch_abort(life->writer);
            life->writer = NULL;
            life->bytes = 0;
        }
        if (r == 0)
            r = wait_for(job, &answer);
        if (r > 0) {
            assert_int_equal(r, step->bytes);
            r = 0;
        }
    }
    free(data);
    if (step->what == ABORT && life->writer == NULL) {
        assert_true(r == -ECANCELED || is_fault(r));
        return 0;
    }
    life->bytes += r == 0 ? step->bytes : 0;
    return r;
}

static uint64_t expected_bytes(const struct life *life, const struct step *step)
{
    return step->offset < life->bytes ? weir__min(step->bytes, life->bytes - step->offset) : 0;
}

/* All of it and not a byte more. */
static void assert_read(const struct life *life, const struct step *step, const char *data,
                        uint64_t bytes)
{
    assert_int_equal(harness_differs_at(data, bytes, life->seed, step->offset), bytes);
    for (uint64_t i = bytes; i <= step->bytes; i++)
        assert_int_equal((unsigned char)data[i], BUFFER_SEED);
}

static int read_back(struct job *job, struct life *life, const struct step *step)
{
    struct answer answer = answer_open();
    char *data = buffer_of(step->bytes);
    size_t count = 4711;
    int r;

    if (step->what == READ) {
        r = weir_scratch_read(life->reader, step->offset, data, step->bytes, &count);
    } else {
        r = weir_scratch_read_start(life->reader, step->offset, data, step->bytes,
                                    &answer.operation);
        if (r == 0)
            r = wait_for(job, &answer);
        count = r >= 0 ? (size_t)r : count;
        r = r < 0 ? r : 0;
    }
    if (r == 0) {
        assert_int_equal(count, expected_bytes(life, step));
        assert_read(life, step, data, count);
    } else {
        assert_int_equal(count, 4711);
    }
    free(data);
    return r;
}

/* One straight into its buffer, one by way of another. */
static int outlive(struct job *job, struct life *life, const struct step *step)
{
    struct step crooked = {START_READ, step->bytes, step->offset + 77};
    struct answer answers[2] = {answer_open(), answer_open()};
    char *data[2] = {buffer_of(step->bytes), buffer_of(step->bytes)};
    int first = weir_scratch_read_start(life->reader, step->offset, data[0], step->bytes,
                                        &answers[0].operation);
    int second = weir_scratch_read_start(life->reader, crooked.offset, data[1], crooked.bytes,
                                         &answers[1].operation);

    if (first == 0 && second == 0) {
        weir_scratch_drop(life->file);
        weir_scratch_reader_close(life->reader);
        life->file = NULL;
        life->reader = NULL;
    }
    if (first == 0)
        first = wait_for(job, &answers[0]);
    if (second == 0)
        second = wait_for(job, &answers[1]);
    assert_true(is_fault(first) || first == (int)expected_bytes(life, step));
    assert_true(is_fault(second) || second == (int)expected_bytes(life, &crooked));
    if (first > 0)
        assert_read(life, step, data[0], (uint64_t)first);
    if (second > 0)
        assert_read(life, &crooked, data[1], (uint64_t)second);
    free(data[0]);
    free(data[1]);
    if (life->reader != NULL)
        return first < 0 ? first : second;
    life->bytes = 0;
    return 0;
}

static int do_step(struct job *job, struct life *life, const struct step *step)
{
    int r = 0;

    switch (step->what) {
    case CREATE:
        return weir_scratch_create(job->scratch, &life->writer);
    case APPEND:
    case START_APPEND:
    case ABORT:
        return append(job, life, step);
    case SEAL:
        r = weir_scratch_seal(life->writer, &life->file);
        if (r == 0)
            life->writer = NULL;
        return r;
    case OPEN:
        return weir_scratch_reader_open(life->file, &life->reader);
    case READ:
    case START_READ:
        return read_back(job, life, step);
    case DROP:
        weir_scratch_drop(life->file);
        life->file = NULL;
        return 0;
    case OUTLIVE:
        return outlive(job, life, step);
    case END:
        break;
    }
    fail();
    return 0;
}

/* The next step of each in turn, till the end or where it does not go on; whether all are there. */
static bool go_on(struct job *job)
{
    bool moves = true;
    bool is_done = false;

    while (moves) {
        moves = false;
        is_done = true;
        for (struct life *life = job->lives; life < job->lives + LIFE_COUNT; life++) {
            if (life->next->what == END)
                continue;
            uint64_t before = life->bytes;
            int r = do_step(job, life, life->next);
            is_done = false;
            if (r < 0) {
                assert_true(is_fault(r));
                assert_true(seam_fired() > 0);
                assert_int_equal(life->bytes, before);
            }
            assert_books(job);
            if (r < 0)
                continue;
            life->next++;
            moves = true;
        }
    }
    return is_done;
}

/* ---- A life --------------------------------------------------------------- */

static int open_store(struct job *job)
{
    struct weir_scratch_config config = {
        .directory = job->directory,
        .bytes_max = BYTES_MAX,
        .disk_floor_bytes = 4096,
        .account = &job->account,
        .disk_cap = {disk_take, disk_give, &job->disk_bytes},
    };
    int r = 0;

    if (job->plan.shares_ring)
        r = weir__ring_open(32, false, &job->ring);
    config.ring = job->ring;
    return r < 0 ? r : weir_scratch_open(&config, &job->scratch);
}

/* To the byte: what is left of the cap can be had, and not one more. */
static void fill_up(struct job *job)
{
    struct weir_scratch_writer *writer = NULL;
    uint64_t rest = BYTES_MAX - stats_of(job).used_bytes;
    char *data = buffer_of(rest);

    assert_int_equal(weir_scratch_create(job->scratch, &writer), 0);
    assert_int_equal(weir_scratch_append(writer, data, rest), 0);
    assert_int_equal(weir_scratch_append(writer, data, 1), -EDQUOT);
    weir_scratch_abort(writer);
    free(data);
}

static void close_all(struct job *job)
{
    for (struct life *life = job->lives; life < job->lives + LIFE_COUNT; life++) {
        weir_scratch_abort(life->writer);
        weir_scratch_drop(life->file);
        weir_scratch_reader_close(life->reader);
    }
    weir_scratch_close(job->scratch);
    weir__ring_close(job->ring);
    assert_int_equal(job->disk_bytes, 0);
    assert_int_equal(job->account.charged_bytes, 0);
    assert_int_equal(job->account.book_bytes, 0);
    assert_int_equal(access(job->directory, F_OK), -1);
}

static void run(void *context)
{
    struct job *job = calloc(1, sizeof(*job));
    char parent[PATH_MAX];

    assert_non_null(job);
    job->plan = *(const struct plan *)context;
    double_account_init(&job->account);
    assert_true(snprintf(parent, sizeof(parent), "%s/one", harness_tmpdir()) > 0);
    assert_true(snprintf(job->directory, sizeof(job->directory), "%s/one/two", harness_tmpdir()) >
                0);
    for (size_t i = 0; i < LIFE_COUNT; i++)
        job->lives[i] = (struct life){.next = scripts[i], .seed = i + 1};
    if (job->plan.is_buffered)
        seam_fail_on(SEAM_sys_reopen, 1);

    int r = open_store(job);
    if (r < 0) {
        assert_true(is_fault(r));
        assert_null(job->scratch);
        assert_true(seam_fired() > 0);
    } else if (!go_on(job) && !job->plan.ends_under_fault) {
        seam_lift();
        assert_true(go_on(job));
    }
    if (r == 0 && !job->plan.ends_under_fault) {
        seam_lift();
        fill_up(job);
    }
    close_all(job);
    rmdir(parent);
    free(job);
}

/* ---- Cases ---------------------------------------------------------------------- */

struct each {
    struct plan plan;
    struct seam_rule rule;
    uint64_t count_min;
};

static bool is_operation(enum seam_call call)
{
    return call == SEAM_ANY_OPERATION || call == SEAM_ring_read || call == SEAM_ring_write;
}

static void each_use(void **state)
{
    struct each each = *(const struct each *)*state;

    if (harness_is_synchronous && (each.plan.shares_ring || is_operation(each.rule.call))) {
        print_message("# passed over: there is no io_uring\n");
        return;
    }
    uint64_t count = seam_each(each.rule, 1, run, &each.plan);
    print_message("# %" PRIu64 " runs\n", count);
    assert_true(count >= each.count_min);
}

/* Two that wait in vain would wait for ever. */
static bool is_not_reaping(const struct seam_use *use, void *context)
{
    (void)context;
    return use->call != SEAM_ring_reap && use->call != SEAM_ring_wait;
}

#define FOR_GOOD .times = SEAM_FOR_GOOD
#define LIFTED   ((struct plan){0})
#define TO_END   ((struct plan){.ends_under_fault = true})
#define BUFFERED ((struct plan){.is_buffered = true})
#define SHARED   ((struct plan){.shares_ring = true})
#define EACH(sentence, plan, count_min, ...)                                                       \
 SEAM_TEST_OF(sentence, each_use, &((struct each){plan, {__VA_ARGS__}, count_min}))

int main(int argc, char **argv)
{
    const struct CMUnitTest cases[] = {
        EACH("a call that fails once harms nothing", LIFTED, 20, .call = SEAM_ANY_CALL),
        EACH("calls that fail are told, and all is well afterwards", LIFTED, 20,
             .call = SEAM_ANY_CALL, FOR_GOOD),
        EACH("a store is closed while calls fail", TO_END, 20, .call = SEAM_ANY_CALL, FOR_GOOD,
             .matches = is_not_reaping),
        EACH("a disk that fills up", LIFTED, 1, .call = SEAM_sys_pwrite_all, .how = SEAM_CUT,
             .error = ENOSPC, FOR_GOOD),
        EACH("a blocking read that ends early is an error", LIFTED, 3, .call = SEAM_sys_pread_all,
             .how = SEAM_CUT),
        EACH("an operation that fails once harms nothing", LIFTED, 5, .call = SEAM_ANY_OPERATION),
        EACH("operations that fail are told, and all is well afterwards", LIFTED, 5,
             .call = SEAM_ANY_OPERATION, FOR_GOOD),
        EACH("a store is closed while operations fail", TO_END, 5, .call = SEAM_ANY_OPERATION,
             FOR_GOOD),
        EACH("a short write goes on where it ended", LIFTED, 5, .call = SEAM_ring_write,
             .how = SEAM_CUT),
        EACH("a short read goes on where it ended", LIFTED, 5, .call = SEAM_ring_read,
             .how = SEAM_CUT),
        EACH("what is interrupted is done again", LIFTED, 5, .call = SEAM_ANY_OPERATION,
             .error = EINTR),
        EACH("a late completion is waited for", LIFTED, 5, .call = SEAM_ANY_OPERATION,
             .how = SEAM_DELAY, .reaps = 20),
        EACH("late completions are waited for", LIFTED, 5, .call = SEAM_ANY_OPERATION,
             .how = SEAM_DELAY, .reaps = 3, FOR_GOOD),
        EACH("an allocation that fails once harms nothing", LIFTED, 20, .call = SEAM_ANY_HEAP),
        EACH("without memory all stays as it is", LIFTED, 20, .call = SEAM_ANY_HEAP, FOR_GOOD),
        EACH("a store is closed without memory", TO_END, 20, .call = SEAM_ANY_HEAP, FOR_GOOD),
        EACH("without O_DIRECT a call that fails once harms nothing", BUFFERED, 20,
             .call = SEAM_ANY_CALL),
        EACH("without O_DIRECT an operation that fails once harms nothing", BUFFERED, 5,
             .call = SEAM_ANY_OPERATION),
        EACH("on the ring of another an operation that fails once harms nothing", SHARED, 5,
             .call = SEAM_ANY_OPERATION),
        EACH("on the ring of another operations that fail are told", SHARED, 5,
             .call = SEAM_ANY_OPERATION, FOR_GOOD),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("scratch", cases, NULL, NULL);
}
