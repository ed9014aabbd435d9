/* SPDX-License-Identifier: MIT */
#include <weir/scratch.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/governor.h>

#include "base/bits.h"

#include "answer.h"
#include "pattern.h"
#include "process.h"
#include "program.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define KIB     UINT64_C(1024)
#define MIB     (KIB << 10)
#define LONG_NS UINT64_C(20000000000) /* longer than any test may take */

/* ---- Helpers -------------------------------------------------------------- */

static struct weir_scratch *scratch_of(struct weir_scratch_config config)
{
    struct weir_scratch *scratch = NULL;

    if (config.directory == NULL && config.store == NULL)
        config.directory = harness_tmpdir();
    assert_int_equal(weir_scratch_open(&config, &scratch), 0);
    return scratch;
}

static struct weir_scratch_stats stats_of(const struct weir_scratch *scratch)
{
    struct weir_scratch_stats stats;

    weir_scratch_stats(scratch, &stats);
    return stats;
}

static struct weir_scratch_writer *writer_of(struct weir_scratch *scratch)
{
    struct weir_scratch_writer *writer = NULL;

    assert_int_equal(weir_scratch_create(scratch, &writer), 0);
    return writer;
}

/* Append the next @bytes of pattern @seed, in one piece. */
static int append(struct weir_scratch_writer *writer, uint64_t seed, uint64_t bytes)
{
    char *data = malloc(bytes + 1);

    assert_non_null(data);
    harness_fill(data, bytes, seed, weir_scratch_writer_bytes(writer));
    int r = weir_scratch_append(writer, data, bytes);
    free(data);
    return r;
}

static void assert_reads(struct weir_scratch_reader *reader, uint64_t seed, uint64_t offset,
                         uint64_t bytes)
{
    uint64_t length = weir_scratch_reader_bytes(reader);
    uint64_t expected = offset < length ? weir__min(bytes, length - offset) : 0;
    char *data = malloc(bytes + 1);
    size_t count = 77;

    assert_non_null(data);
    memset(data, 0xaa, bytes + 1);
    assert_int_equal(weir_scratch_read(reader, offset, data, bytes, &count), 0);
    assert_int_equal(count, expected);
    assert_int_equal(harness_differs_at(data, count, seed, offset), count);
    for (uint64_t i = count; i <= bytes; i++)
        assert_int_equal((unsigned char)data[i], 0xaa); /* not a byte more */
    free(data);
}

static struct weir_scratch_file *file_of(struct weir_scratch *scratch, uint64_t seed,
                                         uint64_t bytes)
{
    struct weir_scratch_writer *writer = writer_of(scratch);
    struct weir_scratch_file *file = NULL;

    assert_int_equal(append(writer, seed, bytes), 0);
    assert_int_equal(weir_scratch_seal(writer, &file), 0);
    assert_int_equal(weir_scratch_file_bytes(file), bytes);
    return file;
}

static struct weir_scratch_reader *reader_of(struct weir_scratch_file *file)
{
    struct weir_scratch_reader *reader = NULL;

    assert_int_equal(weir_scratch_reader_open(file, &reader), 0);
    return reader;
}

static void wait_for(struct weir_scratch *scratch, const struct answer *answer)
{
    assert_int_equal(answer->count, 0); /* never from the call that started it */
    while (answer->count == 0)
        assert_true(weir_scratch_poll(scratch, LONG_NS) >= 0);
    assert_int_equal(answer->count, 1);
    assert_int_equal(answer->flags, 0);
}

static int append_async(struct weir_scratch *scratch, struct weir_scratch_writer *writer,
                        uint64_t seed, uint64_t bytes)
{
    struct answer answer = answer_open();
    char *data = malloc(bytes + 1);

    assert_non_null(data);
    harness_fill(data, bytes, seed, weir_scratch_writer_bytes(writer));
    int r = weir_scratch_append_start(writer, data, bytes, &answer.operation);
    if (r == 0) {
        wait_for(scratch, &answer);
        r = answer.result == (int32_t)bytes ? 0 : answer.result;
    }
    free(data);
    return r;
}

/* A store in memory that fails at the N-th call of a kind. */
struct given {
    char *data;
    uint64_t bytes;
    int live_count;
    int fail_create;
    int fail_write; /* this many calls succeed first; -1: never fails */
    int fail_read;
    uint64_t flip; /* this byte comes back wrong; UINT64_MAX: none */
};

static bool given_fails(int *left)
{
    if (*left < 0)
        return false;
    return (*left)-- == 0;
}

static int given_create(void *context, void **ret_file)
{
    struct given *given = context;

    if (given_fails(&given->fail_create))
        return -EMFILE;
    *ret_file = NULL; /* any value is a file */
    given->live_count++;
    return 0;
}

static int given_write(void *context, void *file, const void *data, size_t bytes, uint64_t offset)
{
    struct given *given = context;

    assert_null(file);
    assert_int_equal(bytes % 4096, 0);
    assert_int_equal(offset % 4096, 0);
    if (given_fails(&given->fail_write))
        return -ENOSPC;
    if (offset + bytes > given->bytes) {
        given->data = realloc(given->data, offset + bytes);
        assert_non_null(given->data);
        memset(given->data + given->bytes, 0xcc, offset + bytes - given->bytes);
        given->bytes = offset + bytes;
    }
    memcpy(given->data + offset, data, bytes);
    return 0;
}

static int given_read(void *context, void *file, void *buffer, size_t bytes, uint64_t offset)
{
    struct given *given = context;

    assert_null(file);
    assert_int_equal(bytes % 4096, 0);
    assert_true(offset + bytes <= given->bytes);
    if (given_fails(&given->fail_read))
        return -EIO;
    memcpy(buffer, given->data + offset, bytes);
    if (given->flip >= offset && given->flip < offset + bytes)
        ((char *)buffer)[given->flip - offset] ^= 1;
    return 0;
}

static void given_remove(void *context, void *file)
{
    struct given *given = context;

    assert_null(file);
    given->live_count--;
    free(given->data);
    given->data = NULL;
    given->bytes = 0;
}

static struct given given_new(void)
{
    return (struct given){.fail_create = -1, .fail_write = -1, .fail_read = -1, .flip = UINT64_MAX};
}

static struct weir_scratch_store given_store(struct given *given)
{
    return (struct weir_scratch_store){given_create, given_write, given_read, given_remove, given};
}

/* ---- The store -------------------------------------------------------------- */

static void nonsense_is_refused(void **state)
{
    struct weir_scratch *scratch = NULL;
    struct weir_scratch_store half = {.create = given_create};
    struct weir_disk_cap lopsided = {.take =
                                         (bool (*)(void *, uint64_t))(void (*)(void))given_remove};
    const struct weir_scratch_config configs[] = {
        {.directory = NULL},
        {.directory = ""},
        {.directory = "/var/tmp", .memory_bytes_max = 128 * KIB + 1},
        {.directory = "/var/tmp", .disk_cap = lopsided},
        {.directory = "/var/tmp", .reserved = {0, 1}},
        {.store = &half},
    };

    (void)state;
    assert_int_equal(weir_scratch_open(NULL, &scratch), -EINVAL);
    for (size_t i = 0; i < sizeof(configs) / sizeof(configs[0]); i++)
        assert_int_equal(weir_scratch_open(&configs[i], &scratch), -EINVAL);
    assert_null(scratch);
    weir_scratch_close(NULL);
    weir_scratch_abort(NULL);
    weir_scratch_drop(NULL);
    weir_scratch_reader_close(NULL);
}

static void small_file_touches_no_disk(void **state)
{
    char path[PATH_MAX + 32];
    int descriptors = harness_fd_count();

    (void)state;
    snprintf(path, sizeof(path), "%s/never/made", harness_tmpdir());
    struct weir_scratch *scratch = scratch_of((struct weir_scratch_config){.directory = path});
    int descriptors_open = harness_fd_count();
    struct weir_scratch_file *file = file_of(scratch, 1, 64 * KIB);
    struct weir_scratch_reader *reader = reader_of(file);
    assert_reads(reader, 1, 0, 64 * KIB);
    assert_reads(reader, 1, 100, 5000);
    assert_reads(reader, 1, 64 * KIB - 1, 10);
    assert_reads(reader, 1, 64 * KIB, 10);
    assert_reads(reader, 1, UINT64_MAX, 10);
    assert_int_equal(harness_fd_count(), descriptors_open);
    assert_int_equal(access(path, F_OK), -1);
    struct weir_scratch_stats stats = stats_of(scratch);
    assert_int_equal(stats.used_bytes, 64 * KIB);
    assert_int_equal(stats.memory_bytes, 64 * KIB);
    assert_int_equal(stats.disk_bytes, 0);
    assert_int_equal(stats.rolled_count, 0);
    weir_scratch_reader_close(reader);
    weir_scratch_drop(file);
    assert_int_equal(stats_of(scratch).used_bytes, 0);
    assert_int_equal(stats_of(scratch).memory_bytes, 0);
    weir_scratch_close(scratch);
    assert_int_equal(harness_fd_count(), descriptors);
}

static void large_file_rolls_and_leaves_nothing(void **state)
{
    char path[PATH_MAX + 32];
    char parent[PATH_MAX + 8];

    (void)state;
    snprintf(parent, sizeof(parent), "%s/made", harness_tmpdir());
    snprintf(path, sizeof(path), "%s/with/parents", parent);
    struct weir_scratch *scratch = scratch_of((struct weir_scratch_config){.directory = path});
    struct weir_scratch_file *file = file_of(scratch, 2, MIB + 12345);
    struct weir_scratch_stats stats = stats_of(scratch);
    assert_int_equal(stats.used_bytes, MIB + 12345);
    assert_int_equal(stats.memory_bytes, 0);
    assert_int_equal(stats.disk_bytes, MIB + 16384);
    assert_int_equal(stats.rolled_count, 1);
    assert_int_equal(stats.synchronous, harness_is_synchronous);
    assert_int_equal(harness_name_count(path), 0); /* unnamed */

    struct weir_scratch_reader *reader = reader_of(file);
    assert_reads(reader, 2, 0, MIB + 12345);
    assert_reads(reader, 2, 4096, 128 * KIB);
    assert_reads(reader, 2, 4095, 2);
    assert_reads(reader, 2, MIB + 12344, 5000);
    assert_reads(reader, 2, MIB + 12345, 1);
    weir_scratch_reader_close(reader);
    weir_scratch_drop(file);
    assert_int_equal(stats_of(scratch).disk_bytes, 0);
    weir_scratch_close(scratch);
    assert_int_equal(access(path, F_OK), -1); /* made by the store, gone with it */
    char with[PATH_MAX + 16];
    snprintf(with, sizeof(with), "%s/with", parent);
    assert_int_equal(rmdir(with), 0); /* parents stay: others may use them */
    assert_int_equal(rmdir(parent), 0);
}

static void file_grows_in_any_steps(void **state)
{
    static const uint64_t steps[] = {1,         4095,          4096,          65535,     65536,
                                     128 * KIB, 128 * KIB - 1, 128 * KIB + 1, 300 * KIB, MIB};
    struct weir_scratch *scratch = scratch_of((struct weir_scratch_config){0});

    (void)state;
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        for (int form = 0; form < 2; form++) {
            struct weir_scratch_writer *writer = writer_of(scratch);
            struct weir_scratch_file *file = NULL;
            uint64_t total = 0;
            while (total < 3 * steps[i] || total < 5000) {
                int r = form == 0 ? append(writer, i, steps[i])
                                  : append_async(scratch, writer, i, steps[i]);
                assert_int_equal(r, 0);
                total += steps[i];
                assert_int_equal(weir_scratch_writer_bytes(writer), total);
            }
            assert_int_equal(append(writer, i, 0), 0);
            assert_int_equal(append_async(scratch, writer, i, 0), 0);
            assert_int_equal(weir_scratch_seal(writer, &file), 0);
            struct weir_scratch_reader *reader = reader_of(file);
            assert_reads(reader, i, 0, total);
            weir_scratch_reader_close(reader);
            weir_scratch_drop(file);
        }
    }
    assert_int_equal(stats_of(scratch).used_bytes, 0);
    weir_scratch_close(scratch);
}

static void empty_file_is_a_file(void **state)
{
    struct weir_scratch *scratch =
        scratch_of((struct weir_scratch_config){.memory_bytes_max = UINT64_MAX});
    struct answer answer = answer_open();
    char byte;

    (void)state;
    struct weir_scratch_file *file = file_of(scratch, 0, 0);
    struct weir_scratch_reader *reader = reader_of(file);
    assert_reads(reader, 0, 0, 1);
    assert_int_equal(weir_scratch_read_start(reader, 0, &byte, 1, &answer.operation), 0);
    wait_for(scratch, &answer);
    assert_int_equal(answer.result, 0);
    weir_scratch_reader_close(reader);
    weir_scratch_drop(file);
    weir_scratch_close(scratch);
}

/* ---- The cap ---------------------------------------------------------------- */

static void cap_is_exact(void **state)
{
    struct weir_scratch *scratch =
        scratch_of((struct weir_scratch_config){.bytes_max = MIB, .memory_bytes_max = 4096});
    struct weir_scratch_writer *writers[2] = {writer_of(scratch), writer_of(scratch)};
    struct weir_scratch_file *file = NULL;

    (void)state;
    assert_int_equal(append(writers[0], 1, MIB - 10), 0);
    assert_int_equal(append(writers[1], 2, 11), -EDQUOT);
    assert_int_equal(append_async(scratch, writers[1], 2, 11), -EDQUOT);
    assert_int_equal(stats_of(scratch).used_bytes, MIB - 10);
    assert_int_equal(stats_of(scratch).bytes_max, MIB);
    assert_int_equal(stats_of(scratch).refused_count, 2);
    assert_int_equal(append(writers[1], 2, 10), 0); /* to the byte */
    assert_int_equal(append(writers[0], 1, 1), -EDQUOT);
    assert_int_equal(append(writers[0], 1, UINT64_C(1) << 20), -EDQUOT);

    weir_scratch_abort(writers[1]); /* not sealed: its bytes are back all the same */
    assert_int_equal(stats_of(scratch).used_bytes, MIB - 10);
    assert_int_equal(append(writers[0], 1, 10), 0);
    assert_int_equal(weir_scratch_seal(writers[0], &file), 0);

    /* A reader keeps what it reads, and the cap knows. */
    struct weir_scratch_reader *reader = reader_of(file);
    weir_scratch_drop(file);
    assert_int_equal(stats_of(scratch).used_bytes, MIB);
    assert_reads(reader, 1, 0, MIB);
    weir_scratch_reader_close(reader);
    assert_int_equal(stats_of(scratch).used_bytes, 0);
    assert_int_equal(stats_of(scratch).used_bytes_peak, MIB);
    weir_scratch_close(scratch);
}

struct cap {
    uint64_t taken_bytes;
    uint64_t bytes_max;
};

static bool cap_take(void *context, uint64_t bytes)
{
    struct cap *cap = context;

    if (bytes > cap->bytes_max - cap->taken_bytes)
        return false;
    cap->taken_bytes += bytes;
    return true;
}

static void cap_give(void *context, uint64_t bytes)
{
    struct cap *cap = context;

    assert_true(bytes <= cap->taken_bytes);
    cap->taken_bytes -= bytes;
}

static void disk_cap_is_asked(void **state)
{
    struct cap cap = {.bytes_max = 256 * KIB};
    struct weir_scratch *scratch =
        scratch_of((struct weir_scratch_config){.disk_cap = {cap_take, cap_give, &cap}});
    struct weir_scratch_writer *writer = writer_of(scratch);
    struct weir_scratch_file *file = NULL;

    (void)state;
    assert_int_equal(append(writer, 3, 60 * KIB), 0);
    assert_int_equal(cap.taken_bytes, 0); /* in memory */
    assert_int_equal(append(writer, 3, 200 * KIB), 0);
    assert_int_equal(cap.taken_bytes, 256 * KIB);
    assert_int_equal(append(writer, 3, 128 * KIB), -EDQUOT);
    assert_int_equal(weir_scratch_writer_bytes(writer), 260 * KIB);
    assert_int_equal(weir_scratch_seal(writer, &file), -EDQUOT); /* 4 KiB more than there are */
    cap.bytes_max += 4096;
    assert_int_equal(weir_scratch_seal(writer, &file), 0);
    assert_int_equal(stats_of(scratch).disk_bytes, cap.taken_bytes);
    struct weir_scratch_reader *reader = reader_of(file);
    assert_reads(reader, 3, 0, 260 * KIB);
    weir_scratch_reader_close(reader);
    weir_scratch_drop(file);
    assert_int_equal(cap.taken_bytes, 0);
    weir_scratch_close(scratch);
}

static void floor_is_left_alone(void **state)
{
    struct weir_scratch *scratch =
        scratch_of((struct weir_scratch_config){.disk_floor_bytes = UINT64_MAX / 2});
    struct weir_scratch_writer *writer = writer_of(scratch);

    (void)state;
    assert_int_equal(append(writer, 4, 60 * KIB), 0);
    assert_int_equal(append(writer, 4, 100 * KIB), -ENOSPC);
    assert_int_equal(append_async(scratch, writer, 4, 100 * KIB), -ENOSPC);
    assert_int_equal(stats_of(scratch).used_bytes, 60 * KIB);
    weir_scratch_abort(writer);
    weir_scratch_close(scratch);
}

static void account_decides_what_stays_in_memory(void **state)
{
    struct weir_governor *governor = NULL;
    struct weir_account *account = NULL;
    struct weir_account *other = NULL;
    enum weir_verdict verdict;
    struct weir_account_stats charged;

    (void)state;
    /* One node, for of a part of the limit no account gets nearly all. */
    assert_int_equal(
        weir_governor_create(&(struct weir_governor_config){.bytes_max = 16 * MIB, .node_count = 1},
                             &governor),
        0);
    assert_int_equal(
        weir_account_open(governor,
                          &(struct weir_account_config){.name = "scratch", .spillable = true},
                          &account),
        0);
    assert_int_equal(
        weir_account_open(governor, &(struct weir_account_config){.name = "other"}, &other), 0);
    struct weir_scratch *scratch = scratch_of((struct weir_scratch_config){.account = account});
    struct weir_scratch_file *calm = file_of(scratch, 1, 50 * KIB);
    assert_int_equal(stats_of(scratch).memory_bytes, 50 * KIB);
    weir_account_stats(account, &charged);
    assert_true(charged.charged_bytes >= 50 * KIB);
    assert_int_equal(charged.charged_bytes, stats_of(scratch).buffer_bytes);

    assert_int_equal(weir_account_charge(other, 15 * MIB, &verdict), 0);
    struct weir_scratch_file *pressed = file_of(scratch, 2, 50 * KIB);
    assert_int_equal(stats_of(scratch).memory_bytes, 50 * KIB); /* the second is on disk */
    assert_int_equal(stats_of(scratch).rolled_count, 1);
    weir_scratch_drop(pressed);
    weir_scratch_drop(calm);
    weir_scratch_close(scratch);
    weir_account_stats(account, &charged);
    assert_int_equal(charged.charged_bytes, 0);
    weir_account_close(other);
    weir_account_close(account);
    weir_governor_destroy(governor);
}

/* ---- Operations --------------------------------------------------------------- */

static void one_append_at_a_time(void **state)
{
    struct weir_scratch *scratch =
        scratch_of((struct weir_scratch_config){.memory_bytes_max = UINT64_MAX});
    struct weir_scratch_writer *writer = writer_of(scratch);
    struct weir_scratch_file *file = NULL;
    struct answer answers[2] = {answer_open(), answer_open()};
    char *data = calloc(1, MIB);

    (void)state;
    assert_non_null(data);
    harness_fill(data, MIB, 5, 0);
    assert_int_equal(weir_scratch_append_start(writer, data, MIB, NULL), -EINVAL);
    assert_int_equal(
        weir_scratch_append_start(writer, data, (size_t)1 << 31, &answers[0].operation), -EINVAL);
    assert_int_equal(weir_scratch_append_start(writer, data, MIB, &answers[0].operation), 0);
    assert_int_equal(weir_scratch_append_start(writer, data, 1, &answers[1].operation), -EBUSY);
    assert_int_equal(weir_scratch_append(writer, data, 1), -EBUSY);
    assert_int_equal(weir_scratch_seal(writer, &file), -EBUSY);
    assert_int_equal(weir_scratch_writer_bytes(writer), 0); /* not what is under way */
    wait_for(scratch, &answers[0]);
    assert_int_equal(answers[0].result, MIB);
    assert_int_equal(weir_scratch_seal(writer, &file), 0);
    struct weir_scratch_reader *reader = reader_of(file);
    assert_reads(reader, 5, 0, MIB);
    weir_scratch_reader_close(reader);
    weir_scratch_drop(file);
    weir_scratch_close(scratch);
    free(data);
}

static void many_reads_at_once(void **state)
{
    struct weir_scratch *scratch = scratch_of((struct weir_scratch_config){0});
    struct weir_scratch_file *file = file_of(scratch, 6, 3 * MIB + 100);
    struct weir_scratch_reader *reader = reader_of(file);
    struct answer *answers = calloc(100, sizeof(*answers));
    char *data = aligned_alloc(4096, 100 * 64 * KIB);

    (void)state;
    assert_non_null(answers);
    assert_non_null(data);
    for (uint64_t i = 0; i < 100; i++) {
        /* Every other one as O_DIRECT likes it. */
        uint64_t offset = i * 32 * KIB + (i % 2) * i;
        answers[i] = answer_open();
        assert_int_equal(weir_scratch_read_start(reader, offset, data + i * 64 * KIB, 64 * KIB,
                                                 &answers[i].operation),
                         0);
    }
    weir_scratch_reader_close(reader); /* reads outlive it, and the file */
    weir_scratch_drop(file);
    for (uint64_t i = 0; i < 100; i++) {
        while (answers[i].count == 0)
            assert_true(weir_scratch_poll(scratch, LONG_NS) >= 0);
        uint64_t offset = i * 32 * KIB + (i % 2) * i;
        uint64_t left = offset < 3 * MIB + 100 ? 3 * MIB + 100 - offset : 0;
        assert_int_equal(answers[i].result, weir__min(64 * KIB, left));
        size_t count = (size_t)answers[i].result;
        assert_int_equal(harness_differs_at(data + i * 64 * KIB, count, 6, offset), count);
    }
    assert_int_equal(stats_of(scratch).used_bytes, 0);
    weir_scratch_close(scratch);
    free(data);
    free(answers);
}

static void aborted_append_completes(void **state)
{
    struct weir_scratch *scratch = scratch_of((struct weir_scratch_config){0});
    struct weir_scratch_writer *writer = writer_of(scratch);
    struct answer answer = answer_open();
    char *data = calloc(1, 2 * MIB);

    (void)state;
    assert_non_null(data);
    assert_int_equal(append(writer, 7, 10000), 0);
    assert_int_equal(weir_scratch_append_start(writer, data, 2 * MIB, &answer.operation), 0);
    weir_scratch_abort(writer);
    wait_for(scratch, &answer);
    assert_int_equal(answer.result, -ECANCELED);
    assert_int_equal(stats_of(scratch).used_bytes, 0);
    assert_int_equal(stats_of(scratch).disk_bytes, 0);
    assert_int_equal(stats_of(scratch).writer_count, 0);
    weir_scratch_close(scratch);
    free(data);
}

/* ---- Failures ----------------------------------------------------------------- */

/* The append that fails at its N-th write has changed nothing; the next one goes on. */
static void failed_append_changes_nothing(void **state)
{
    (void)state;
    for (int form = 0; form < 2; form++) {
        for (int n = 0; n < 9; n++) {
            struct given given = given_new();
            struct weir_scratch_store store = given_store(&given);
            struct weir_scratch *scratch =
                scratch_of((struct weir_scratch_config){.store = &store});
            struct weir_scratch_writer *writer = writer_of(scratch);
            struct weir_scratch_file *file = NULL;

            assert_int_equal(append(writer, 8, 200 * KIB), 0); /* one write */
            given.fail_write = n;
            int r = form == 0 ? append(writer, 8, MIB) : append_async(scratch, writer, 8, MIB);
            assert_int_equal(r, n < 8 ? -ENOSPC : 0); /* 200 KiB + 1 MiB: eight more */
            if (r < 0) {
                assert_int_equal(weir_scratch_writer_bytes(writer), 200 * KIB);
                assert_int_equal(stats_of(scratch).used_bytes, 200 * KIB);
                given.fail_write = -1;
                assert_int_equal(append(writer, 8, 77), 0);
                assert_int_equal(append_async(scratch, writer, 8, 300 * KIB), 0);
            }
            uint64_t bytes = weir_scratch_writer_bytes(writer);
            given.fail_write = 0; /* of the end */
            assert_int_equal(weir_scratch_seal(writer, &file), -ENOSPC);
            assert_int_equal(weir_scratch_seal(writer, &file), 0);
            struct weir_scratch_reader *reader = reader_of(file);
            assert_reads(reader, 8, 0, bytes);
            weir_scratch_reader_close(reader);
            weir_scratch_drop(file);
            assert_int_equal(stats_of(scratch).used_bytes, 0);
            weir_scratch_close(scratch);
            assert_int_equal(given.live_count, 0);
        }
    }
}

static void failed_create_is_told(void **state)
{
    struct given given = given_new();
    struct weir_scratch_store store = given_store(&given);
    struct weir_scratch *scratch = scratch_of((struct weir_scratch_config){.store = &store});
    struct weir_scratch_writer *writer = writer_of(scratch);

    (void)state;
    assert_int_equal(append(writer, 9, 50 * KIB), 0);
    given.fail_create = 0;
    assert_int_equal(append(writer, 9, 100 * KIB), -EMFILE);
    assert_int_equal(weir_scratch_writer_bytes(writer), 50 * KIB);
    assert_int_equal(stats_of(scratch).used_bytes, 50 * KIB);
    assert_int_equal(stats_of(scratch).memory_bytes, 50 * KIB);
    assert_int_equal(append(writer, 9, 100 * KIB), 0);
    weir_scratch_abort(writer);
    assert_int_equal(given.live_count, 0);
    weir_scratch_close(scratch);
}

static void wrong_byte_is_found(void **state)
{
    struct given given = given_new();
    struct weir_scratch_store store = given_store(&given);
    struct weir_scratch *scratch = scratch_of((struct weir_scratch_config){.store = &store});
    struct weir_scratch_file *file = file_of(scratch, 10, 300 * KIB);
    struct weir_scratch_reader *reader = reader_of(file);
    struct answer answer = answer_open();
    char data[10000];
    size_t count = 77;

    (void)state;
    given.flip = 50000;
    assert_int_equal(weir_scratch_read(reader, 45000, data, sizeof(data), &count), -EBADMSG);
    assert_int_equal(count, 77);
    assert_int_equal(weir_scratch_read_start(reader, 45000, data, sizeof(data), &answer.operation),
                     0);
    wait_for(scratch, &answer);
    assert_int_equal(answer.result, -EBADMSG);
    assert_reads(reader, 10, 0, 49152); /* the page before is none the worse */
    given.flip = UINT64_MAX;
    assert_reads(reader, 10, 45000, 10000);

    given.fail_read = 0; /* a failed read can be tried again */
    assert_int_equal(weir_scratch_read(reader, 0, data, 100, &count), -EIO);
    assert_reads(reader, 10, 0, 100);
    assert_int_equal(stats_of(scratch).error_count, 3);
    weir_scratch_reader_close(reader);
    weir_scratch_drop(file);
    weir_scratch_close(scratch);
}

static void directory_that_cannot_be_is_told(void **state)
{
    char path[PATH_MAX + 32];

    (void)state;
    snprintf(path, sizeof(path), "%s/file", harness_tmpdir());
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fclose(file);
    snprintf(path, sizeof(path), "%s/file/below", harness_tmpdir());
    struct weir_scratch *scratch = scratch_of((struct weir_scratch_config){.directory = path});
    struct weir_scratch_writer *writer = writer_of(scratch);
    assert_int_equal(append(writer, 1, 100), 0);
    assert_int_equal(append(writer, 1, MIB), -ENOTDIR);
    assert_int_equal(weir_scratch_writer_bytes(writer), 100);
    weir_scratch_abort(writer);
    weir_scratch_close(scratch);

    scratch = scratch_of((struct weir_scratch_config){.directory = "/dev/shm"});
    writer = writer_of(scratch);
    assert_int_equal(append(writer, 1, MIB), -EOPNOTSUPP); /* tmpfs is memory */
    weir_scratch_abort(writer);
    weir_scratch_close(scratch);
}

static void killed_process_leaves_nothing(void **state)
{
    char path[PATH_MAX + 32];
    int ends[2];
    char byte;

    (void)state;
    snprintf(path, sizeof(path), "%s/killed", harness_tmpdir());
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct weir_scratch *scratch = scratch_of((struct weir_scratch_config){.directory = path});
        struct weir_scratch_writer *writer = writer_of(scratch);
        (void)file_of(scratch, 1, MIB);
        if (append(writer, 2, MIB) < 0 || write(ends[1], "x", 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    assert_int_equal(read(ends[0], &byte, 1), 1);
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_int_equal(harness_name_count(path), 0);
    close(ends[0]);
    close(ends[1]);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        {"nonsense is refused", nonsense_is_refused, NULL, NULL, NULL},
        {"a small file touches no disk", small_file_touches_no_disk, NULL, NULL, NULL},
        {"a large file rolls, unnamed, and leaves nothing", large_file_rolls_and_leaves_nothing,
         NULL, NULL, NULL},
        {"a file grows in any steps", file_grows_in_any_steps, NULL, NULL, NULL},
        {"an empty file is a file", empty_file_is_a_file, NULL, NULL, NULL},
        {"the cap is exact to the byte", cap_is_exact, NULL, NULL, NULL},
        {"the disk cap is asked and told", disk_cap_is_asked, NULL, NULL, NULL},
        {"the floor of free space is left alone", floor_is_left_alone, NULL, NULL, NULL},
        {"the account decides what stays in memory", account_decides_what_stays_in_memory, NULL,
         NULL, NULL},
        {"one append at a time", one_append_at_a_time, NULL, NULL, NULL},
        {"many reads at once outlive reader and file", many_reads_at_once, NULL, NULL, NULL},
        {"an aborted append completes", aborted_append_completes, NULL, NULL, NULL},
        {"a failed append changes nothing", failed_append_changes_nothing, NULL, NULL, NULL},
        {"a file that cannot be made is told", failed_create_is_told, NULL, NULL, NULL},
        {"a wrong byte is found", wrong_byte_is_found, NULL, NULL, NULL},
        {"a directory that cannot be is told", directory_that_cannot_be_is_told, NULL, NULL, NULL},
        {"a killed process leaves nothing", killed_process_leaves_nothing, NULL, NULL, NULL},
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("scratch", tests, NULL, NULL);
}
