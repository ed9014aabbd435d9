/* SPDX-License-Identifier: MIT */
/*
 * region_named_fault - the kernel, or the heap, refuses a named region something
 *
 * The N-th call fails, for N = 1, 2, ... until none does, once and from then on.
 * Whatever it was: who is told of an error finds no descriptor, charge or file
 * left, and the next open, undisturbed, finds every item. A sync that failed has
 * confirmed nothing and lost nothing, and the next one confirms.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/region.h>

#include "base/sys.h"

#include "heap_fault.h"
#include "named.h"
#include "pattern.h"
#include "process.h"
#include "tmpdir.h"

#include <errno.h>

#define KIB UINT64_C(1024)
#define MIB (KIB << 10)

#define NAME       "fault"
#define ITEM_COUNT 60
#define CALLS_MAX  400 /* more than any case makes: a loop that ends nowhere is seen */

/* ---- Faults ----------------------------------------------------------------- */

static uint64_t call_at; /* 0: none fails */
static uint64_t call_count;
static bool call_lasts;
static bool call_fired;

static void call_arm(uint64_t at, bool lasts)
{
    call_at = at;
    call_count = 0;
    call_lasts = lasts;
    call_fired = false;
}

static bool call_fails(void)
{
    call_count++;
    if (call_at == 0 || call_count < call_at || (!call_lasts && call_count > call_at))
        return false;
    call_fired = true;
    return true;
}

#define FAULT(name, parameters, arguments)                                                         \
 int __real_weir__sys_##name parameters;                                                           \
 int __wrap_weir__sys_##name parameters;                                                           \
 int __wrap_weir__sys_##name parameters                                                            \
 {                                                                                                 \
  return call_fails() ? -EIO : __real_weir__sys_##name arguments;                                  \
 }

FAULT(open_at, (int directory_fd, const char *name, int flags, int *ret_fd),
      (directory_fd, name, flags, ret_fd))
FAULT(rename_at, (int directory_fd, const char *name, const char *name_new),
      (directory_fd, name, name_new))
FAULT(lock, (int fd), (fd))
FAULT(fdatasync, (int fd), (fd))
FAULT(fsync, (int fd), (fd))
FAULT(fallocate, (int fd, int mode, uint64_t offset, uint64_t bytes), (fd, mode, offset, bytes))
FAULT(fstat, (int fd, struct stat *ret_stat), (fd, ret_stat))
FAULT(reopen, (int fd, int flags, int *ret_fd), (fd, flags, ret_fd))
FAULT(pwrite_all, (int fd, const void *buffer, size_t bytes, uint64_t offset),
      (fd, buffer, bytes, offset))
FAULT(mmap,
      (void *address, size_t bytes, int protection, int flags, int fd, uint64_t offset,
       void **ret_address),
      (address, bytes, protection, flags, fd, offset, ret_address))

/* ---- Steps ------------------------------------------------------------------ */

struct fixture {
    char directory[PATH_MAX];
    int fd_count;
    int64_t charged;
    struct weir_region *region;
    struct weir_slot slots[ITEM_COUNT];
};

static void books_charge(void *context, int64_t bytes)
{
    *(int64_t *)context += bytes;
}

static void begin(struct fixture *f)
{
    *f = (struct fixture){.fd_count = harness_fd_count()};
    snprintf(f->directory, sizeof(f->directory), "%s/fault-XXXXXX", harness_tmpdir());
    assert_non_null(mkdtemp(f->directory));
}

static int try_open(struct fixture *f)
{
    struct weir_region_config config = {
        .directory = f->directory,
        .name = NAME,
        .bytes_initial = 2 * MIB,
        .bytes_max = 32 * MIB,
        .resident_bytes_max = 8 * MIB,
        .books = {books_charge, &f->charged},
    };

    return weir_region_open(&config, &f->region);
}

static void close_all(struct fixture *f)
{
    weir_region_audit(f->region);
    weir_region_close(f->region);
    assert_int_equal(f->charged, 0);
    assert_int_equal(harness_fd_count(), f->fd_count);
}

static size_t size_of(uint64_t seed)
{
    return seed * 797 % 90000;
}

static void put_all(struct fixture *f)
{
    char *data = malloc(90000);

    for (uint64_t i = 0; i < ITEM_COUNT; i++) {
        harness_fill(data, size_of(i), i, 0);
        assert_int_equal(
            weir_region_put(f->region, data, size_of(i), (struct weir_label){i, 1}, &f->slots[i]),
            0);
    }
    free(data);
}

/* Items from @first on are there. */
static void check_all(struct fixture *f, uint64_t first)
{
    char *data = malloc(90000);

    for (uint64_t i = first; i < ITEM_COUNT; i++) {
        size_t count = 0;
        assert_int_equal(weir_region_read(f->region, f->slots[i], 0, data, 90000, &count), 0);
        assert_int_equal(count, size_of(i));
        assert_int_equal(harness_differs_at(data, count, i, 0), count);
    }
    free(data);
}

static void lose_power(struct fixture *f)
{
    struct weir__header header;

    harness_named_header(f->directory, NAME, &header);
    header.boot++;
    harness_named_set_header(f->directory, NAME, &header);
}

/* Arms one kind of fault; @kind 0: the kernel's, 1: the heap's. */
static void arm(int kind, uint64_t at, bool lasts)
{
    call_arm(kind == 0 ? at : 0, lasts);
    heap_fault_arm(kind == 1 ? at : 0, lasts);
}

static bool disarm(void)
{
    bool fired = call_fired || heap_fault_fired;

    arm(0, 0, false);
    return fired;
}

/* ---- Cases ------------------------------------------------------------------ */

static bool make_one(int kind, uint64_t at, bool lasts)
{
    struct fixture f;

    begin(&f);
    arm(kind, at, lasts);
    int r = try_open(&f);
    bool fired = disarm();
    if (r == 0) {
        close_all(&f);
    } else {
        assert_true(fired);
        assert_int_equal(f.charged, 0);
        assert_int_equal(harness_fd_count(), f.fd_count);
        int names = harness_name_count(f.directory);
        assert_true(names == 0 || names == 2); /* 2: it has its names, and that was not flushed */
    }
    assert_int_equal(try_open(&f), 0);
    put_all(&f);
    close_all(&f);
    assert_int_equal(harness_name_count(f.directory), 2);
    assert_int_equal(weir_region_remove(f.directory, NAME), 0);
    return fired;
}

static bool open_again(int kind, uint64_t at, bool lasts, bool after_power_loss)
{
    struct fixture f;
    struct weir_region_report report;

    begin(&f);
    assert_int_equal(try_open(&f), 0);
    put_all(&f);
    assert_int_equal(weir_region_sync(f.region), 0);
    close_all(&f);
    if (after_power_loss)
        lose_power(&f);
    arm(kind, at, lasts);
    int r = try_open(&f);
    bool fired = disarm();
    if (r < 0) {
        assert_true(fired);
        assert_int_equal(f.charged, 0);
        assert_int_equal(harness_fd_count(), f.fd_count);
        assert_int_equal(harness_name_count(f.directory), 2);
        assert_int_equal(try_open(&f), 0);
    }
    weir_region_report(f.region, &report);
    assert_int_equal(report.lost_slot_count, 0);
    assert_int_equal(report.kept_slot_count, ITEM_COUNT);
    check_all(&f, 0);
    close_all(&f);
    assert_int_equal(weir_region_remove(f.directory, NAME), 0);
    return fired;
}

static bool sync_once(int kind, uint64_t at, bool lasts)
{
    struct fixture f;
    struct weir_region_stats stats;

    begin(&f);
    assert_int_equal(try_open(&f), 0);
    put_all(&f);
    assert_int_equal(weir_region_free(f.region, f.slots[0]), 0);
    assert_int_equal(weir_region_sync(f.region), 0);
    assert_int_equal(weir_region_free(f.region, f.slots[1]), 0);
    weir_region_stats(f.region, &stats);
    uint64_t freed_bytes = stats.freed_bytes;
    assert_true(freed_bytes > 0);
    arm(kind, at, lasts);
    int r = weir_region_sync(f.region);
    bool fired = disarm();
    weir_region_audit(f.region);
    check_all(&f, 2);
    weir_region_stats(f.region, &stats);
    assert_int_equal(stats.freed_bytes, r == 0 ? 0 : freed_bytes);
    if (r < 0)
        assert_int_equal(weir_region_sync(f.region), 0);
    close_all(&f);
    lose_power(&f);
    assert_int_equal(try_open(&f), 0);
    check_all(&f, 2);
    struct weir_slot_info info;
    assert_int_equal(weir_region_slot(f.region, f.slots[1], &info), -ESTALE);
    close_all(&f);
    assert_int_equal(weir_region_remove(f.directory, NAME), 0);
    return fired;
}

static void making_one(void **state)
{
    (void)state;
    for (int turn = 0; turn < 4; turn++)
        for (uint64_t at = 1; make_one(turn / 2, at, turn % 2 == 1); at++)
            assert_true(at < CALLS_MAX);
}

static void opening_again(void **state)
{
    (void)state;
    for (int turn = 0; turn < 8; turn++)
        for (uint64_t at = 1; open_again(turn / 2 % 2, at, turn % 2 == 1, turn >= 4); at++)
            assert_true(at < CALLS_MAX);
}

static void syncing(void **state)
{
    (void)state;
    for (int turn = 0; turn < 4; turn++)
        for (uint64_t at = 1; sync_once(turn / 2, at, turn % 2 == 1); at++)
            assert_true(at < CALLS_MAX);
}

#define CASE(sentence, function)                                                                   \
 {                                                                                                 \
  sentence, function, NULL, NULL, NULL                                                             \
 }

int main(void)
{
    const struct CMUnitTest cases[] = {
        CASE("who cannot be made leaves nothing", making_one),
        CASE("who cannot be opened is as it was", opening_again),
        CASE("a sync that failed has lost nothing", syncing),
    };

    if (harness_tmpdir() == NULL) {
        printf("1..0 # SKIP there is no disk to write to\n");
        return 0;
    }
    return cmocka_run_group_tests_name("region_named", cases, NULL, NULL);
}
