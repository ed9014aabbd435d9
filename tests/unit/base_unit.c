/* SPDX-License-Identifier: MIT */
/*
 * What every module stands on: sums, lists, the heap and its books, the kernel's
 * answers, and a ring that gives each completion to its operation.
 */
#include <weir/base.h>

#include "base/bits.h"
#include "base/clock.h"
#include "base/heap.h"
#include "base/list.h"
#include "base/placement.h"
#include "base/random.h"
#include "base/ring.h"
#include "base/sys.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Under a sanitizer too, a refused allocation is an answer. */
const char *__asan_default_options(void);
const char *__tsan_default_options(void);

const char *__asan_default_options(void)
{
    return "allocator_may_return_null=1";
}

const char *__tsan_default_options(void)
{
    return "allocator_may_return_null=1";
}

static void test_version(void **state)
{
    (void)state;
    assert_string_equal(weir_version(), WEIR_VERSION);
}

static void test_none(void **state)
{
    (void)state;
    assert_true(weir_slot_is_none((struct weir_slot){0, 0}));
    assert_false(weir_slot_is_none((struct weir_slot){1, 0}));
    assert_false(weir_slot_is_none((struct weir_slot){0, 1}));
}

/* ---- Bits and lists ------------------------------------------------------- */

static void test_bits(void **state)
{
    (void)state;
    assert_int_equal(weir__round_up(0, 16), 0);
    assert_int_equal(weir__round_up(1, 16), 16);
    assert_int_equal(weir__round_up(16, 16), 16);
    assert_int_equal(weir__round_down(31, 16), 16);
    assert_int_equal(weir__lowest_bit(UINT64_C(0x50)), 4);
    assert_int_equal(weir__highest_bit(UINT64_C(0x50)), 6);
    assert_int_equal(weir__highest_bit(UINT64_MAX), 63);
    assert_true(weir__bits_from(63) == UINT64_C(1) << 63);
    assert_true(weir__bits_from(0) == UINT64_MAX);
}

static void test_reserved(void **state)
{
    uint64_t reserved[8] = {0};

    (void)state;
    assert_true(weir__reserved_is_zero(reserved));
    for (int i = 0; i < 8; i++) {
        reserved[i] = UINT64_C(1) << (i * 8);
        assert_false(weir__reserved_is_zero(reserved));
        reserved[i] = 0;
    }
}

static void test_list(void **state)
{
    struct weir__list list;
    struct weir__list links[3];
    int count = 0;

    (void)state;
    weir__list_init(&list);
    assert_true(weir__list_is_empty(&list));
    for (int i = 0; i < 3; i++)
        weir__list_append(&list, &links[i]);
    WEIR_LIST_FOREACH (link, &list)
        assert_ptr_equal(link, &links[count++]);
    assert_int_equal(count, 3);

    weir__list_remove(&links[1]);
    weir__list_remove(&links[1]);
    assert_ptr_equal(links[0].next, &links[2]);
    assert_ptr_equal(links[2].previous, &links[0]);
    weir__list_remove(&links[0]);
    weir__list_remove(&links[2]);
    assert_true(weir__list_is_empty(&list));
}

static void test_random(void **state)
{
    uint64_t one = 7;
    uint64_t two = 7;
    uint64_t other = 8;

    (void)state;
    for (int i = 0; i < 100; i++) {
        uint64_t number = weir__random(&one);
        assert_true(number == weir__random(&two));
        assert_true(number != weir__random(&other));
    }
    for (int i = 0; i < 1000; i++)
        assert_true(weir__random_below(&one, 10) < 10);
}

/* ---- The heap ------------------------------------------------------------- */

static void charge(void *context, int64_t bytes)
{
    *(int64_t *)context += bytes;
}

static void test_books(void **state)
{
    int64_t told = 0;
    struct weir__heap heap = {.books = {.charge = charge, .context = &told}};

    (void)state;
    unsigned char *data = weir__heap_alloc(&heap, 100);
    assert_non_null(data);
    for (int i = 0; i < 100; i++)
        assert_int_equal(data[i], 0);
    assert_true(told >= 100 && told < 200);
    assert_true((int64_t)heap.bytes == told);

    data[99] = 7;
    int64_t before = told;
    data = weir__heap_resize(&heap, data, 100, 1100);
    assert_non_null(data);
    assert_int_equal(data[99], 7);
    assert_true(told == before + 1000);

    void *aligned = weir__heap_alloc_aligned(&heap, 10000, 4096);
    assert_non_null(aligned);
    assert_int_equal((uintptr_t)aligned % 4096, 0);
    weir__heap_account(&heap, 5);
    weir__heap_account(&heap, -5);

    weir__heap_free(&heap, NULL, 123);
    weir__heap_free(&heap, aligned, 10000);
    weir__heap_free(&heap, data, 1100);
    assert_true(told == 0);
    assert_true(heap.bytes == 0);
}

static void test_refused(void **state)
{
    int64_t told = 0;
    struct weir__heap heap = {.books = {.charge = charge, .context = &told}};

    (void)state;
    char *data = weir__heap_alloc(&heap, 16);
    assert_non_null(data);
    data[0] = 'x';

    int64_t before = told;
    assert_null(weir__heap_resize(&heap, data, 16, (size_t)1 << 62));
    assert_null(weir__heap_alloc(&heap, (size_t)1 << 62));
    assert_int_equal(data[0], 'x');
    assert_true(told == before);
    weir__heap_free(&heap, data, 16);
}

static void test_silent(void **state)
{
    struct weir__heap silent = {0};

    (void)state;
    void *data = weir__heap_alloc(&silent, 0);
    assert_non_null(data);
    assert_true(silent.bytes > 0);
    weir__heap_free(&silent, data, 0);
    assert_true(silent.bytes == 0);

    char *object = weir__heap_alloc(NULL, 64);
    assert_non_null(object);
    assert_int_equal(object[63], 0);
    object = weir__heap_resize(NULL, object, 64, 128);
    assert_non_null(object);
    weir__heap_free(NULL, object, 128);
}

/* ---- The kernel ----------------------------------------------------------- */

static const char *directory(void)
{
    const char *given = getenv("TMPDIR");

    return given != NULL ? given : "/var/tmp";
}

static void test_failures(void **state)
{
    int fd = 77;
    char text[8];

    (void)state;
    assert_int_equal(weir__sys_open("/no/such/file", O_RDONLY, &fd), -ENOENT);
    assert_int_equal(fd, 77);
    assert_int_equal(weir__sys_ftruncate(-1, 0), -EBADF);
    assert_int_equal(weir__sys_pread_all(-1, text, sizeof(text), 0), -EBADF);
    assert_int_equal(weir__sys_read_text("/no/such/file", text, sizeof(text)), -ENOENT);
    weir__sys_close(-1);
    weir__sys_munmap(NULL, 0);
}

static void test_unnamed(void **state)
{
    char path[64];
    char target[4096];
    char bytes[4];
    struct stat info;
    int fd = -1;

    (void)state;
    assert_int_equal(weir__sys_open_unnamed(directory(), &fd), 0);
    assert_int_equal(weir__sys_pwrite_all(fd, "weir", 4, 10), 0);
    assert_int_equal(weir__sys_pread_all(fd, bytes, 4, 10), 0);
    assert_memory_equal(bytes, "weir", 4);
    assert_int_equal(weir__sys_pread_all(fd, bytes, 4, 12), -EIO);
    assert_int_equal(weir__sys_fstat(fd, &info), 0);
    assert_int_equal(info.st_nlink, 0);
    assert_int_equal(info.st_size, 14);

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    assert_true(readlink(path, target, sizeof(target)) > 0);
    assert_int_equal(access(target, F_OK), -1);
    weir__sys_close(fd);
}

static void test_machine(void **state)
{
    char text[256];

    (void)state;
    assert_true(weir__sys_ram_bytes() > UINT64_C(16) << 20);
    assert_int_equal(weir__sys_read_text("/proc/self/stat", text, sizeof(text)), 0);
    assert_int_equal(strtol(text, NULL, 10), getpid());
    assert_true(weir__sys_entropy() != weir__sys_entropy());

    uint64_t before = weir__clock_ns();
    uint64_t after = weir__clock_ns();
    assert_true(before > 0 && after >= before);
}

/* ---- The ring ------------------------------------------------------------- */

struct reading {
    struct weir_operation operation; /* first: an operation is its reading */
    int32_t result;
    int completed_count;
};

static void reading_complete(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct reading *reading = WEIR_CONTAINER_OF(operation, struct reading, operation);

    (void)flags;
    reading->result = result;
    reading->completed_count++;
}

/* More operations than the ring has entries: the queue is submitted on the way. */
static void test_ring(void **state)
{
    enum { COUNT = 40 };
    struct reading readings[COUNT];
    uint64_t words[COUNT];
    struct weir_ring *ring = NULL;
    int completed = 0;
    int fd = -1;

    (void)state;
    assert_int_equal(weir__sys_open_unnamed(directory(), &fd), 0);
    for (uint64_t i = 0; i < COUNT; i++)
        assert_int_equal(weir__sys_pwrite_all(fd, &i, sizeof(i), i * sizeof(i)), 0);
    assert_int_equal(weir__ring_open(8, true, &ring), 0);

    for (int i = 0; i < COUNT; i++) {
        readings[i] = (struct reading){.operation = {reading_complete}};
        weir__ring_read(ring, &readings[i].operation, fd, &words[i], sizeof(words[i]),
                        (uint64_t)i * sizeof(words[i]));
        assert_int_equal(readings[i].completed_count, 0);
    }
    while (weir__ring_in_flight(ring) > 0) {
        int r = weir__ring_wait(ring, UINT64_C(1000000000));
        assert_true(r >= 0);
        completed += r;
    }

    assert_int_equal(completed, COUNT);
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(readings[i].completed_count, 1);
        assert_int_equal(readings[i].result, sizeof(words[i]));
        assert_int_equal(words[i], i);
    }
    weir__ring_close(ring);
    weir__sys_close(fd);
}

static void test_ring_failure(void **state)
{
    struct reading reading = {.operation = {reading_complete}};
    struct weir_ring *ring = NULL;
    char byte;

    (void)state;
    assert_int_equal(weir__ring_open(8, true, &ring), 0);
    weir__ring_read(ring, &reading.operation, -1, &byte, 1, 0);
    while (weir__ring_in_flight(ring) > 0)
        assert_true(weir__ring_wait(ring, UINT64_C(1000000000)) >= 0);
    assert_int_equal(reading.completed_count, 1);
    assert_int_equal(reading.result, -EBADF);

    assert_int_equal(weir__ring_wait(ring, 1000), 0); /* nothing under way: the time is up */
    weir__ring_close(ring);
    weir__ring_close(NULL);
}

struct waiting {
    struct weir_operation operation; /* first: an operation is its waiting */
    struct weir_ring *ring;
    const struct reading *other;
};

static void waiting_complete(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct waiting *waiting = WEIR_CONTAINER_OF(operation, struct waiting, operation);

    (void)result;
    (void)flags;
    for (int tries = 0; waiting->other->completed_count == 0; tries++) {
        assert_true(tries < 100);
        assert_true(weir__ring_wait(waiting->ring, UINT64_C(1000000000)) >= 0);
    }
}

/* Both are in the queue, and taken from it, before the first is called. */
static void test_ring_nested(void **state)
{
    struct reading reading = {.operation = {reading_complete}};
    struct waiting waiting = {.operation = {waiting_complete}, .other = &reading};
    char bytes[2];

    (void)state;
    assert_int_equal(weir__ring_open(8, true, &waiting.ring), 0);
    weir__ring_read(waiting.ring, &waiting.operation, -1, &bytes[0], 1, 0);
    weir__ring_read(waiting.ring, &reading.operation, -1, &bytes[1], 1, 0);
    while (weir__ring_in_flight(waiting.ring) > 0)
        assert_true(weir__ring_wait(waiting.ring, UINT64_C(1000000000)) >= 0);
    assert_int_equal(reading.completed_count, 1);
    assert_int_equal(weir__ring_wait(waiting.ring, 1000), 0);
    weir__ring_close(waiting.ring);
}

/* ---- Where memory lies ---------------------------------------------------- */

static uint64_t placed(const struct weir_placement *placement)
{
    uint64_t bytes = placement->beyond_bytes;

    for (uint32_t i = 0; i < WEIR_NODES_MAX; i++)
        bytes += placement->node_bytes[i];
    return bytes;
}

static void test_placement(void **state)
{
    const uint64_t page = weir__sys_page_bytes();
    const uint64_t limit = PLACEMENT_PAGES_MAX * page;
    const uint64_t bytes = limit * 3;
    struct weir_placement placement;
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    (void)state;
    assert_ptr_not_equal(memory, MAP_FAILED);
    assert_int_equal(madvise(memory, bytes, MADV_NOHUGEPAGE), 0);
    weir__placement_begin(&placement, 0);
    assert_int_equal(placement.stride, 1);
    int r = weir__placement_add(&placement, (struct weir__range){memory, 10 * page});
    if (r == -EPERM || r == -EOPNOTSUPP) {
        print_message("# passed over: move_pages says %s\n", strerror(-r));
        munmap(memory, bytes);
        return;
    }
    assert_int_equal(r, 0);
    assert_int_equal(placement.asked_bytes, 10 * page);
    assert_int_equal(placed(&placement), 0); /* to ask brings nothing in */

    /* Whole pages, whatever lies in them. */
    memory[3 * page] = 1;
    memory[5 * page] = 1;
    assert_int_equal(
        weir__placement_add(&placement, (struct weir__range){memory + 3 * page + 7, 1}), 0);
    assert_int_equal(placement.asked_bytes, 11 * page);
    assert_int_equal(placed(&placement), page);
    assert_int_equal(
        weir__placement_add(&placement, (struct weir__range){memory + 4 * page - 1, page + 2}), 0);
    assert_int_equal(placement.asked_bytes, 14 * page);
    assert_int_equal(placed(&placement), 3 * page); /* the fourth and the sixth */

    /* More than one call takes; all but the last page. */
    memset(memory, 1, 1300 * page);
    weir__placement_begin(&placement, limit);
    assert_int_equal(placement.stride, 1);
    assert_int_equal(weir__placement_add(&placement, (struct weir__range){memory, 1301 * page}), 0);
    assert_int_equal(placement.asked_bytes, 1301 * page);
    assert_int_equal(placed(&placement), 1300 * page);

    /* A page too many, and each stands for two; what is asked for is what there is. */
    weir__placement_begin(&placement, limit + page);
    assert_int_equal(placement.stride, 2);
    assert_int_equal(weir__placement_add(&placement, (struct weir__range){memory, 1301 * page}), 0);
    assert_int_equal(placement.asked_bytes, 1301 * page);
    assert_int_equal(placed(&placement), 1300 * page);
    weir__placement_begin(&placement, bytes);
    assert_int_equal(placement.stride, 3);
    assert_int_equal(weir__placement_add(&placement, (struct weir__range){memory, bytes}), 0);
    assert_int_equal(placement.asked_bytes, bytes);
    assert_in_range(placed(&placement), 1300 * page, 1302 * page);
    munmap(memory, bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"the library is of its headers' version", test_version, NULL, NULL, NULL},
        {"only a slot of zeroes is none", test_none, NULL, NULL, NULL},
        {"rounding stays or moves to a multiple", test_bits, NULL, NULL, NULL},
        {"one reserved word that is set is seen", test_reserved, NULL, NULL, NULL},
        {"a list keeps its order, and removing twice does no harm", test_list, NULL, NULL, NULL},
        {"a seed gives the same numbers again", test_random, NULL, NULL, NULL},
        {"the books are told of every byte, and of none in the end", test_books, NULL, NULL, NULL},
        {"a refused resize leaves data and books alone", test_refused, NULL, NULL, NULL},
        {"without books the heap still gives and takes", test_silent, NULL, NULL, NULL},
        {"failures are negative errno values", test_failures, NULL, NULL, NULL},
        {"an unnamed file leaves no name", test_unnamed, NULL, NULL, NULL},
        {"the machine has memory, and a clock that does not go back", test_machine, NULL, NULL,
         NULL},
        {"the kernel is asked where pages lie, and brings none in", test_placement, NULL, NULL,
         NULL},
        {"every completion finds its operation, also when the ring is full", test_ring, NULL, NULL,
         NULL},
        {"a completion may wait for another of its batch", test_ring_nested, NULL, NULL, NULL},
        {"an operation that fails says so", test_ring_failure, NULL, NULL, NULL},
    };

    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
