/* SPDX-License-Identifier: MIT */
/*
 * scratch_stress - random life of many files, against what they should be
 *
 * Files are patterns of a number, so the model of one is its length. Opens,
 * appends of both forms, aborts, seals, reads of both forms and drops come at
 * random, under a cap that is often reached and on a store that often fails. After
 * each step the cap's use is the sum of the model's files, to the byte.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/scratch.h>

#include "base/bits.h"
#include "base/random.h"

#include "answer.h"
#include "pattern.h"
#include "process.h"
#include "seed.h"
#include "tmpdir.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define KIB        UINT64_C(1024)
#define FILES_MAX  24
#define BYTES_MAX  (UINT64_C(8) << 20)
#define LONG_NS    UINT64_C(20000000000)
#define DISK_BYTES (UINT64_C(5) << 20) /* of a file of the given store */

/* One file on its whole way; is_open: somebody still holds it. */
struct life {
    uint64_t seed;
    uint64_t bytes; /* appended for good */
    struct weir_scratch_writer *writer;
    struct weir_scratch_file *file;
    struct weir_scratch_reader *reader;
};

struct world {
    struct weir_scratch *scratch;
    struct life lives[FILES_MAX];
    uint64_t random;
    uint64_t seed_next;
    uint64_t fault_count;
    uint32_t fault_percent;
    int open_count; /* files of the given store */
};

static uint64_t below(struct world *world, uint64_t bound)
{
    return weir__random_below(&world->random, bound);
}

/* ---- A store that fails ----------------------------------------------------- */

static bool faulty(struct world *world)
{
    bool fails = below(world, 100) < world->fault_percent;

    world->fault_count += fails;
    return fails;
}

static int faulty_create(void *context, void **ret_file)
{
    struct world *world = context;

    if (faulty(world))
        return -EMFILE;
    *ret_file = calloc(1, DISK_BYTES);
    assert_non_null(*ret_file);
    world->open_count++;
    return 0;
}

static int faulty_write(void *context, void *file, const void *data, size_t bytes, uint64_t offset)
{
    assert_true(offset + bytes <= DISK_BYTES);
    if (faulty(context)) {
        memset((char *)file + offset, 0xee, bytes / 2); /* torn */
        return -EIO;
    }
    memcpy((char *)file + offset, data, bytes);
    return 0;
}

static int faulty_read(void *context, void *file, void *buffer, size_t bytes, uint64_t offset)
{
    struct world *world = context;

    assert_true(offset + bytes <= DISK_BYTES);
    if (faulty(world))
        return -EIO;
    memcpy(buffer, (char *)file + offset, bytes);
    if (faulty(world)) {
        ((char *)buffer)[below(world, bytes)] ^= 0x10;
        return 0;
    }
    return 0;
}

static void faulty_remove(void *context, void *file)
{
    struct world *world = context;

    world->open_count--;
    free(file);
}

/* ---- Steps -------------------------------------------------------------------- */

static int32_t wait_for(struct world *world, const struct answer *answer)
{
    assert_int_equal(answer->count, 0);
    while (answer->count == 0)
        assert_true(weir_scratch_poll(world->scratch, LONG_NS) >= 0);
    assert_int_equal(answer->count, 1);
    return answer->result;
}

static bool is_expected(const struct world *world, int r)
{
    if (r == -EDQUOT)
        return true;
    return world->fault_percent > 0 && (r == -EIO || r == -EMFILE || r == -EBADMSG);
}

static uint64_t step_bytes(struct world *world)
{
    switch (below(world, 4)) {
    case 0:
        return below(world, 200);
    case 1:
        return below(world, 20 * KIB);
    case 2:
        return below(world, 600 * KIB);
    default:
        return 128 * KIB - 2 + below(world, 5);
    }
}

static void step_append(struct world *world, struct life *life)
{
    struct answer answer = answer_open();
    uint64_t bytes = weir__min(step_bytes(world), 4 * (UINT64_C(1) << 20) - life->bytes);
    char *data = malloc(bytes + 1);
    int r;

    assert_non_null(data);
    harness_fill(data, bytes, life->seed, life->bytes);
    if (below(world, 2) == 0) {
        r = weir_scratch_append(life->writer, data, bytes);
    } else {
        r = weir_scratch_append_start(life->writer, data, bytes, &answer.operation);
        if (r == 0 && below(world, 10) == 0) {
            weir_scratch_abort(life->writer);
            r = wait_for(world, &answer);
            assert_true(r == -ECANCELED || is_expected(world, r));
            *life = (struct life){0};
            free(data);
            return;
        }
        if (r == 0) {
            r = wait_for(world, &answer);
            r = r == (int32_t)bytes ? 0 : r;
        }
    }
    free(data);
    assert_true(r == 0 || is_expected(world, r));
    life->bytes += r == 0 ? bytes : 0;
    assert_int_equal(weir_scratch_writer_bytes(life->writer), life->bytes);
}

static void step_seal(struct world *world, struct life *life)
{
    int r = weir_scratch_seal(life->writer, &life->file);

    if (r < 0) {
        assert_true(is_expected(world, r));
        return;
    }
    life->writer = NULL;
    assert_int_equal(weir_scratch_file_bytes(life->file), life->bytes);
    assert_int_equal(weir_scratch_reader_open(life->file, &life->reader), 0);
}

static void step_read(struct world *world, struct life *life)
{
    struct answer answer = answer_open();
    uint64_t offset = below(world, life->bytes + 100);
    uint64_t bytes = step_bytes(world);
    uint64_t expected = offset < life->bytes ? weir__min(bytes, life->bytes - offset) : 0;
    char *data = malloc(bytes + 1);
    size_t count = 0;
    int r;

    assert_non_null(data);
    if (below(world, 2) == 0) {
        r = weir_scratch_read(life->reader, offset, data, bytes, &count);
    } else {
        r = weir_scratch_read_start(life->reader, offset, data, bytes, &answer.operation);
        if (r == 0)
            r = wait_for(world, &answer);
        count = r > 0 ? (size_t)r : 0;
        r = r > 0 ? 0 : r;
    }
    if (r == 0) {
        assert_int_equal(count, expected);
        assert_int_equal(harness_differs_at(data, count, life->seed, offset), count);
    } else {
        assert_true(is_expected(world, r) && r != -EDQUOT);
    }
    free(data);
}

/* In any order: readers outlive files. */
static void life_end(struct life *life)
{
    weir_scratch_abort(life->writer);
    weir_scratch_drop(life->file);
    weir_scratch_reader_close(life->reader);
    *life = (struct life){0};
}

static void step(struct world *world)
{
    struct life *life = &world->lives[below(world, FILES_MAX)];

    if (life->writer == NULL && life->reader == NULL) {
        *life = (struct life){.seed = world->seed_next++};
        assert_int_equal(weir_scratch_create(world->scratch, &life->writer), 0);
    } else if (life->writer != NULL) {
        uint64_t what = below(world, 20);
        if (what == 0)
            life_end(life);
        else if (what < 5)
            step_seal(world, life);
        else
            step_append(world, life);
    } else if (below(world, 8) == 0) {
        life_end(life);
    } else {
        if (below(world, 8) == 0) {
            weir_scratch_drop(life->file);
            life->file = NULL;
        }
        step_read(world, life);
    }
}

static void assert_books(const struct world *world)
{
    struct weir_scratch_stats stats;
    uint64_t bytes = 0;

    for (int i = 0; i < FILES_MAX; i++)
        bytes += world->lives[i].bytes;
    weir_scratch_stats(world->scratch, &stats);
    assert_int_equal(stats.used_bytes, bytes);
}

static void live(struct world *world, uint64_t steps)
{
    for (uint64_t i = 0; i < steps; i++) {
        step(world);
        assert_books(world);
    }
    for (int i = 0; i < FILES_MAX; i++)
        life_end(&world->lives[i]);
    assert_books(world);
    weir_scratch_close(world->scratch);
}

static uint64_t step_count(uint64_t usual)
{
    const char *seconds = getenv("WEIR_STRESS_SECONDS");

    return seconds != NULL ? usual * strtoull(seconds, NULL, 0) : usual;
}

/* ---- Cases -------------------------------------------------------------------- */

static void files_on_disk(void **state)
{
    struct world *world = calloc(1, sizeof(*world));
    int descriptors = harness_fd_count();

    (void)state;
    assert_non_null(world);
    world->random = harness_seed();
    assert_int_equal(weir_scratch_open(&(struct weir_scratch_config){.directory = harness_tmpdir(),
                                                                     .bytes_max = BYTES_MAX},
                                       &world->scratch),
                     0);
    live(world, step_count(4000));
    assert_int_equal(harness_fd_count(), descriptors);
    assert_int_equal(harness_name_count(harness_tmpdir()), 0);
    free(world);
}

static void store_that_fails(void **state)
{
    struct world *world = calloc(1, sizeof(*world));

    (void)state;
    assert_non_null(world);
    struct weir_scratch_store store = {faulty_create, faulty_write, faulty_read, faulty_remove,
                                       world};
    world->random = harness_seed();
    world->fault_percent = 3;
    assert_int_equal(
        weir_scratch_open(&(struct weir_scratch_config){.store = &store, .bytes_max = BYTES_MAX},
                          &world->scratch),
        0);
    live(world, step_count(100000));
    assert_true(world->fault_count > 1000);
    assert_int_equal(world->open_count, 0);
    free(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"files on disk are what was appended", files_on_disk, NULL, NULL, NULL},
        {"the cap is exact on a store that fails", store_that_fails, NULL, NULL, NULL},
    };

    return cmocka_run_group_tests_name("scratch", tests, NULL, NULL);
}
