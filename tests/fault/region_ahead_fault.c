/* SPDX-License-Identifier: MIT */
/*
 * region_ahead_fault - pages are made before they are needed, and everything goes wrong
 *
 * Where memory is counted a chunk that is made ready counts from the moment that
 * its pages are asked for. So it must not be lost count of: it is not written
 * while they are made, it is given up where memory is wanted more elsewhere, and
 * after a failed write-back it is as doubtful as what was stored to.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/region.h>

#include "base/clock.h"

#include "pattern.h"
#include "process.h"
#include "program.h"
#include "seam.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#define KIB             UINT64_C(1024)
#define MIB             (KIB << 10)
#define CHUNK_BYTES     (2 * MIB)
#define ITEM_BYTES      (60 * KIB)
#define ITEMS_MAX       2048
#define RESIDENT_BYTES  (32 * MIB) /* 13 chunks; the rest is for what is fetched and cleaned */
#define RESIDENT_CHUNKS 13
#define PATIENCE_NS     UINT64_C(100000000000)

/* ---- Doors ------------------------------------------------------------------ */

static uint64_t asked_count; /* chunks whose pages were asked for */
static uint64_t zeroed[64];  /* how often the blocks of a chunk were zeroed */
static uint64_t written[64]; /* how often it was written */

static bool sees_asking(const struct seam_use *use, void *context)
{
    (void)context;
    asked_count += use->mode == MADV_POPULATE_WRITE;
    return false;
}

static bool sees_zeroing(const struct seam_use *use, void *context)
{
    (void)context;
    if ((use->mode & FALLOC_FL_ZERO_RANGE) != 0 && use->offset / CHUNK_BYTES < 64)
        zeroed[use->offset / CHUNK_BYTES]++;
    return false;
}

static bool sees_writing(const struct seam_use *use, void *context)
{
    (void)context;
    if (use->offset / CHUNK_BYTES < 64)
        written[use->offset / CHUNK_BYTES]++;
    return false;
}

static bool is_asking(const struct seam_use *use, void *context)
{
    (void)context;
    return use->mode == MADV_POPULATE_WRITE;
}

static void watch(void)
{
    seam_lift();
    seam_arm((struct seam_rule){.call = SEAM_ring_madvise, .matches = sees_asking});
    seam_arm((struct seam_rule){.call = SEAM_sys_fallocate, .matches = sees_zeroing});
    seam_arm((struct seam_rule){.call = SEAM_ring_sync_range, .matches = sees_writing});
}

/* Writes end when somebody has waited for them for some reaps. */
struct waiting {
    bool is_expected;
    uint32_t reaps;
};

static bool has_waited(void *context)
{
    struct waiting *waiting = context;

    waiting->reaps += waiting->is_expected;
    return waiting->reaps > 8;
}

/* ---- Steps ------------------------------------------------------------------ */

struct job {
    struct weir_region *region;
    int data_fd;
    struct weir_slot slots[ITEMS_MAX];
    uint64_t seeds[ITEMS_MAX];
    size_t count;
    uint64_t next_seed;
};

static struct weir_region_stats figures(struct job *job)
{
    struct weir_region_stats stats;

    weir_region_audit(job->region);
    weir_region_stats(job->region, &stats);
    assert_true(stats.resident_bytes <= stats.resident_bytes_max);
    return stats;
}

/* What may change is lent to nobody: chunks have their part. NULL: nothing is made ahead here. */
static struct job *start_with(uint64_t resident_bytes, uint64_t resident_bytes_min)
{
    struct job *job = test_calloc(1, sizeof(*job));
    struct weir_region_config config = {
        .directory = harness_tmpdir(),
        .bytes_initial = 32 * MIB,
        .resident_bytes_max = resident_bytes,
        .resident_bytes_min = resident_bytes_min,
    };
    bool marks[HARNESS_FD_MAX];

    watch();
    harness_mark_fds(marks);
    assert_int_equal(weir_region_open(&config, &job->region), 0);
    job->data_fd = harness_data_fd(harness_tmpdir(), marks);
    assert_true(job->data_fd >= 0);
    asked_count = 0;
    memset(zeroed, 0, sizeof(zeroed)); /* open tries the first chunk */
    memset(written, 0, sizeof(written));
    if (figures(job).bounded && !figures(job).synchronous)
        return job;
    print_message("# passed over: no write-back, or no io_uring\n");
    weir_region_close(job->region);
    test_free(job);
    return NULL;
}

static struct job *start(uint64_t resident_bytes)
{
    return start_with(resident_bytes, 0);
}

static int try_put(struct job *job)
{
    unsigned char *data = test_malloc(ITEM_BYTES);

    assert_true(job->count < ITEMS_MAX);
    harness_fill(data, ITEM_BYTES, job->next_seed, 0);
    int r = weir_region_put(job->region, data, ITEM_BYTES, (struct weir_label){job->next_seed, 1},
                            &job->slots[job->count]);
    test_free(data);
    if (r == 0)
        job->seeds[job->count++] = job->next_seed++;
    return r;
}

static void put(struct job *job)
{
    assert_int_equal(try_put(job), 0);
}

static void poll_once(struct job *job)
{
    int r = weir_region_wait(job->region, 1000000);

    assert_true(r >= 0 || r == -EIO);
}

/* So much of a chunk is in memory, as the kernel knows it. */
static uint64_t cached_bytes(struct job *job, uint64_t chunk)
{
    unsigned char present[CHUNK_BYTES / 4096];
    uint64_t pages = 0;
    char path[64];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", job->data_fd);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    void *map = mmap(NULL, CHUNK_BYTES, PROT_READ, MAP_SHARED, fd, (off_t)(chunk * CHUNK_BYTES));
    assert_true(map != MAP_FAILED);
    assert_int_equal(mincore(map, CHUNK_BYTES, present), 0);
    for (size_t i = 0; i < sizeof(present); i++)
        pages += present[i] & 1;
    munmap(map, CHUNK_BYTES);
    close(fd);
    return pages * 4096;
}

static uint64_t mark_chunk(struct job *job)
{
    return figures(job).mark_bytes / CHUNK_BYTES;
}

/* Nothing is under way: what the region counts is what the kernel has. */
static void assert_kernel_agrees(struct job *job)
{
    uint64_t since = weir__clock_ns();
    int64_t cached;
    int64_t said;

    do {
        poll_once(job);
        struct weir_region_stats stats = figures(job);
        said = (int64_t)(stats.resident_bytes - stats.fetched_bytes);
        cached = harness_cached_bytes(job->data_fd);
        assert_true(cached <= said);
    } while (cached < said - (int64_t)CHUNK_BYTES && weir__clock_ns() - since < PATIENCE_NS);
    assert_true(cached >= said - (int64_t)CHUNK_BYTES);
}

/* Items until pages of the next chunk are asked for; which that is. */
static uint64_t put_until_ready(struct job *job)
{
    uint64_t asked = asked_count;

    while (asked_count == asked) {
        put(job);
        poll_once(job);
    }
    return mark_chunk(job) + 1;
}

/* While nothing is written: until no chunk more may be in memory; which is ready then. */
static uint64_t use_all_memory(struct job *job)
{
    uint64_t ready = 0;

    while (figures(job).resident_bytes / CHUNK_BYTES < RESIDENT_CHUNKS)
        ready = put_until_ready(job);
    for (uint64_t since = weir__clock_ns(); cached_bytes(job, ready) < CHUNK_BYTES; poll_once(job))
        assert_true(weir__clock_ns() - since < PATIENCE_NS);
    poll_once(job);
    assert_int_equal(zeroed[ready], 0);
    return ready;
}

static void assert_all_whole(struct job *job)
{
    unsigned char *data = test_malloc(ITEM_BYTES);

    for (size_t i = 0; i < job->count; i++) {
        size_t bytes = 0;
        assert_int_equal(weir_region_read(job->region, job->slots[i], 0, data, ITEM_BYTES, &bytes),
                         0);
        assert_int_equal(bytes, ITEM_BYTES);
        assert_int_equal(harness_differs_at(data, bytes, job->seeds[i], 0), bytes);
    }
    test_free(data);
}

static void finish(struct job *job)
{
    assert_all_whole(job);
    weir_region_audit(job->region);
    weir_region_close(job->region);
    test_free(job);
}

/* ---- Where all goes well ---------------------------------------------------------- */

/* Also when all of the memory has been in use for long. */
static void pages_are_there_before_a_chunk_is_begun(void **state)
{
    struct job *job = start(RESIDENT_BYTES);
    uint64_t begun = 0;

    (void)state;
    if (job == NULL)
        return;
    while (job->count < 1600) {
        uint64_t next = mark_chunk(job) + 1;
        uint64_t left = next * CHUNK_BYTES - figures(job).mark_bytes;
        uint64_t since = weir__clock_ns();
        if (left <= ITEM_BYTES) { /* the next item begins it, at latest */
            while (cached_bytes(job, next) < CHUNK_BYTES) {
                assert_true(weir__clock_ns() - since < PATIENCE_NS);
                poll_once(job);
            }
            begun++;
        }
        put(job);
        poll_once(job);
    }
    assert_true(begun >= 40);
    assert_true(asked_count >= begun);
    assert_kernel_agrees(job);
    finish(job);
}

/* Chunks that came free under the mark are filled first, and so made ready first. */
static void a_free_chunk_is_made_ready_too(void **state)
{
    struct job *job = start(RESIDENT_BYTES);

    (void)state;
    if (job == NULL)
        return;
    while (job->count < 1000)
        put(job);
    uint64_t above = put_until_ready(job);
    for (size_t i = 0; i < 300; i++) { /* chunks 0 to 7, and half of another */
        assert_int_equal(weir_region_free(job->region, job->slots[i]), 0);
        job->slots[i] = job->slots[--job->count];
        job->seeds[i] = job->seeds[job->count];
    }
    uint64_t before = zeroed[above];
    uint64_t since = weir__clock_ns();
    for (uint64_t chunk = 0; cached_bytes(job, chunk) < CHUNK_BYTES; chunk = (chunk + 1) % 8) {
        assert_true(weir__clock_ns() - since < PATIENCE_NS);
        poll_once(job);
    }
    assert_int_equal(zeroed[above], before + 1); /* it is of no use now */

    uint64_t mark = figures(job).mark_bytes;
    uint64_t asked = asked_count;
    while (job->count < 800) {
        put(job);
        poll_once(job);
    }
    assert_true(figures(job).mark_bytes < mark + CHUNK_BYTES);
    assert_true(asked_count >= asked + 2);
    assert_kernel_agrees(job);
    finish(job);
}

/* A chunk more would be much of what there is. */
static void with_little_memory_a_put_makes_its_own_pages(void **state)
{
    struct job *job = start(8 * MIB);

    (void)state;
    if (job == NULL)
        return;
    while (job->count < 300) {
        put(job);
        poll_once(job);
    }
    assert_int_equal(asked_count, 0);
    finish(job);
}

/* ---- Where it does not ------------------------------------------------------------- */

/* It is filled meanwhile, and all others are written: it would come back uncounted. */
static void what_is_being_made_is_not_written(void **state)
{
    struct job *job = start(RESIDENT_BYTES);

    (void)state;
    if (job == NULL)
        return;
    seam_arm((struct seam_rule){.call = SEAM_ring_madvise, .how = SEAM_HOLD, .matches = is_asking});
    uint64_t held = put_until_ready(job);
    while (mark_chunk(job) < held + 2 * RESIDENT_CHUNKS)
        put(job);
    assert_int_equal(written[held], 0);
    assert_int_equal(zeroed[held], 0);
    assert_true(written[held + 1] > 0);
    seam_release();
    while (written[held] == 0)
        put(job);
    assert_kernel_agrees(job);
    finish(job);
}

/* Pages that cannot be made are made by who stores there, as ever. */
static void what_cannot_be_made_ready_is_stored_to(void **state)
{
    const int errors[] = {ENOMEM, EFAULT, EAGAIN, EINVAL};

    (void)state;
    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
        struct job *job = start(RESIDENT_BYTES);
        if (job == NULL)
            return;
        seam_arm((struct seam_rule){.call = SEAM_ring_madvise,
                                    .times = SEAM_FOR_GOOD,
                                    .error = errors[i],
                                    .matches = is_asking});
        while (job->count < 800) {
            put(job);
            poll_once(job);
        }
        if (errors[i] == EINVAL)
            assert_int_equal(asked_count, 1); /* the kernel does not know it */
        else
            assert_true(asked_count > 10);
        seam_lift();
        finish(job);
    }
}

/* All memory is in use, and nothing of it can be written: what holds nothing goes first. */
static void what_is_ready_gives_way(void **state)
{
    struct job *job = start_with(RESIDENT_BYTES, RESIDENT_BYTES - CHUNK_BYTES);
    struct weir_slot large;

    (void)state;
    if (job == NULL)
        return;
    unsigned char *data = test_calloc(1, CHUNK_BYTES);
    put(job);
    /* Chunks 1 and 2 are all of this item's, which has no memory yet. */
    assert_int_equal(
        weir_region_alloc(job->region, 3 * CHUNK_BYTES, (struct weir_label){0, 2}, &large), 0);
    seam_arm(
        (struct seam_rule){.call = SEAM_ring_sync_range, .times = SEAM_FOR_GOOD, .how = SEAM_HOLD});
    uint64_t ready = use_all_memory(job);

    assert_int_equal(weir_region_write(job->region, large, 0, data, 2 * KIB), 0);
    assert_int_equal(weir_region_write(job->region, large, 2 * KIB, data, CHUNK_BYTES), 0);
    assert_int_equal(zeroed[ready], 1);
    assert_int_equal(cached_bytes(job, ready), 0);
    assert_int_equal(figures(job).resident_bytes / CHUNK_BYTES, RESIDENT_CHUNKS);
    seam_lift();
    assert_int_equal(weir_region_free(job->region, large), 0);
    assert_kernel_agrees(job);
    test_free(data);
    finish(job);
}

/* It goes into what is ready and beyond, where there is no memory yet: it waits for both. */
static void what_is_ready_is_no_room_for_its_own_item(void **state)
{
    struct job *job = start_with(RESIDENT_BYTES, RESIDENT_BYTES - CHUNK_BYTES);
    struct weir_slot large;
    struct waiting waiting = {0};

    (void)state;
    if (job == NULL)
        return;
    unsigned char *data = test_calloc(2, CHUNK_BYTES);
    seam_arm((struct seam_rule){.call = SEAM_ring_sync_range,
                                .times = SEAM_FOR_GOOD,
                                .how = SEAM_HOLD,
                                .releases = has_waited,
                                .context = &waiting});
    (void)use_all_memory(job);

    waiting.is_expected = true;
    assert_int_equal(
        weir_region_put(job->region, data, 2 * CHUNK_BYTES, (struct weir_label){0, 2}, &large), 0);
    assert_true(figures(job).resident_bytes / CHUNK_BYTES <= RESIDENT_CHUNKS);
    seam_lift();
    assert_int_equal(weir_region_free(job->region, large), 0);
    assert_kernel_agrees(job);
    test_free(data);
    finish(job);
}

/* The kernel may have tried to write it by itself: it gets fresh pages like all others. */
static void a_failed_write_casts_doubt_on_it(void **state)
{
    /* So much that the first write begins with room for chunks left. */
    struct job *job = start_with(2 * RESIDENT_BYTES, 2 * RESIDENT_BYTES - CHUNK_BYTES);
    uint64_t ready = 0;

    (void)state;
    if (job == NULL)
        return;
    seam_arm((struct seam_rule){
        .call = SEAM_ring_sync_range, .times = SEAM_FOR_GOOD, .how = SEAM_HOLD, .error = EIO});
    while (seam_held() == 0 || mark_chunk(job) >= ready) {
        uint64_t asked = asked_count;
        put(job);
        poll_once(job);
        ready = asked_count > asked ? mark_chunk(job) + 1 : ready;
    }
    assert_int_equal(zeroed[ready], 0);
    seam_release();
    while (!figures(job).degraded)
        poll_once(job);
    /* Again where a slow machine is past the pause already: dirty and empty, it is let go. */
    assert_in_range(zeroed[ready], 1, 2);
    watch();
    while (figures(job).degraded)
        poll_once(job);
    while (job->count < 1200) {
        int r = try_put(job);
        assert_true(r == 0 || r == -EAGAIN);
        poll_once(job);
    }
    assert_kernel_agrees(job);
    finish(job);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        SEAM_TEST("pages are there before a chunk is begun, where memory is counted too",
                  pages_are_there_before_a_chunk_is_begun),
        SEAM_TEST("a free chunk is made ready too", a_free_chunk_is_made_ready_too),
        SEAM_TEST("with little memory a put makes its own pages",
                  with_little_memory_a_put_makes_its_own_pages),
        SEAM_TEST("a chunk whose pages are being made is not written",
                  what_is_being_made_is_not_written),
        SEAM_TEST("what cannot be made ready is stored to", what_cannot_be_made_ready_is_stored_to),
        SEAM_TEST("what is ready gives way to who needs memory", what_is_ready_gives_way),
        SEAM_TEST("what is ready is no room for the item that goes there",
                  what_is_ready_is_no_room_for_its_own_item),
        SEAM_TEST("a failed write casts doubt on what is ready", a_failed_write_casts_doubt_on_it),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("region_ahead", cases, NULL, NULL);
}
