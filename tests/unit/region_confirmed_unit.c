/* SPDX-License-Identifier: MIT */
/*
 * region_confirmed_unit - what sync() confirmed is moved as well
 *
 *      put, sync, free at random   ->  holes in chunks that are on disk
 *      poll                        ->  copies beside what lives there
 *      sync                        ->  it lies there now; the chunk is empty
 *
 * A region that syncs now and then must not fill up with holes; and whatever
 * happens to an item between its copy and the sync, the item is what it was.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/region.h>
#include <weir/view.h>

#include "base/bits.h"
#include "base/random.h"

#include "named.h"
#include "pattern.h"
#include "process.h"
#include "program.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#define KIB UINT64_C(1024)
#define MIB (KIB << 10)

#define NAME           "confirmed"
#define ITEMS_MAX      12000
#define ITEM_BYTES_MAX 24576
#define PIN_COUNT      40
#define WAITS_MAX      20000
#define WAIT_NS        UINT64_C(100000000)

struct item {
    struct weir_slot slot;
    uint64_t seed; /* of its bytes, and its key */
    uint64_t bytes;
};

struct fixture {
    char directory[PATH_MAX];
    int fd_count;
    int64_t charged;
    struct weir_region *region;
    struct weir_region_report report;
    uint64_t random;
    uint64_t seed_last;
    struct item items[ITEMS_MAX];
    size_t count;
    uint64_t live_bytes;
};

static void books_charge(void *context, int64_t bytes)
{
    *(int64_t *)context += bytes;
}

static void open_named(struct fixture *f, uint64_t bytes_max)
{
    struct weir_region_config config = {
        .directory = f->directory,
        .name = NAME,
        .bytes_initial = 4 * MIB,
        .bytes_max = bytes_max,
        .resident_bytes_max = 8 * MIB,
        .books = {books_charge, &f->charged},
    };

    assert_int_equal(weir_region_open(&config, &f->region), 0);
    weir_region_report(f->region, &f->report);
    weir_region_audit(f->region);
}

static struct fixture *begin(uint64_t bytes_max)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    f->fd_count = harness_fd_count();
    f->random = 11;
    snprintf(f->directory, sizeof(f->directory), "%s/confirmed-XXXXXX", harness_tmpdir());
    assert_non_null(mkdtemp(f->directory));
    open_named(f, bytes_max);
    return f;
}

static void close_named(struct fixture *f)
{
    weir_region_audit(f->region);
    weir_region_close(f->region);
    f->region = NULL;
    assert_int_equal(f->charged, 0);
    assert_int_equal(harness_fd_count(), f->fd_count);
}

static void end(struct fixture *f)
{
    close_named(f);
    assert_int_equal(weir_region_remove(f->directory, NAME), 0);
    free(f);
}

static struct weir_region_stats stats_of(const struct fixture *f)
{
    struct weir_region_stats stats;

    weir_region_stats(f->region, &stats);
    return stats;
}

static void sync_now(struct fixture *f)
{
    assert_int_equal(weir_region_sync(f->region), 0);
}

static void put_one(struct fixture *f, uint64_t bytes)
{
    struct item *item = &f->items[f->count];
    char *data = malloc(bytes + 1);

    assert_true(f->count < ITEMS_MAX);
    *item = (struct item){.seed = ++f->seed_last, .bytes = bytes};
    harness_fill(data, bytes, item->seed, 0);
    assert_int_equal(
        weir_region_put(f->region, data, bytes, (struct weir_label){item->seed, 7}, &item->slot),
        0);
    free(data);
    f->count++;
    f->live_bytes += bytes;
}

static void free_one(struct fixture *f, size_t which)
{
    assert_int_equal(weir_region_free(f->region, f->items[which].slot), 0);
    f->live_bytes -= f->items[which].bytes;
    f->items[which] = f->items[--f->count];
}

static void check_one(struct fixture *f, const struct item *item)
{
    char *data = malloc(item->bytes + 1);
    size_t count = 0;

    assert_int_equal(weir_region_read(f->region, item->slot, 0, data, item->bytes, &count), 0);
    assert_int_equal(count, item->bytes);
    assert_int_equal(harness_differs_at(data, count, item->seed, 0), count);
    free(data);
}

static void check_all(struct fixture *f)
{
    for (size_t i = 0; i < f->count; i++)
        check_one(f, &f->items[i]);
}

/* Until nothing goes on: what is to be copied before the next sync is. */
static void settle(struct fixture *f)
{
    uint64_t moved = stats_of(f).moved_bytes;

    for (int i = 0, quiet = 0; i < WAITS_MAX && quiet < 64; i++) {
        assert_true(weir_region_wait(f->region, WAIT_NS) >= 0);
        uint64_t now = stats_of(f).moved_bytes;
        quiet = now == moved ? quiet + 1 : 0;
        moved = now;
    }
}

/* All of it is confirmed, then most of it is not there any more: chunks on disk are sparse. */
static void make_sparse(struct fixture *f)
{
    while (f->live_bytes < 24 * MIB)
        put_one(f, 1000 + weir__random_below(&f->random, 6000));
    sync_now(f);
    for (size_t i = f->count; i > 0; i--)
        if (weir__random_below(&f->random, 4) != 0)
            free_one(f, i - 1);
    sync_now(f);
    settle(f);
}

/* ---- Cases ------------------------------------------------------------------ */

static void it_does_not_fill_with_holes(void **state)
{
    const uint64_t live_max = 72 * MIB;
    struct fixture *f = begin(144 * MIB);
    uint64_t file_max = 0;
    uint64_t moving_max = 0;
    uint64_t put = 0;
    uint64_t synced = 0;

    (void)state;
    while (put < 5 * live_max / 2) {
        uint64_t bytes = 64 + weir__random_below(&f->random, 24000);
        while (f->live_bytes + bytes > live_max)
            free_one(f, weir__random_below(&f->random, f->count));
        put_one(f, bytes);
        put += bytes;
        if (weir__random_below(&f->random, 8) == 0)
            assert_true(weir_region_poll(f->region) >= 0);
        if (put < synced + 4 * MIB)
            continue;
        struct weir_region_stats stats = stats_of(f);
        moving_max = weir__max(moving_max, stats.moving_bytes);
        file_max = weir__max(file_max, stats.file_bytes);
        sync_now(f);
        assert_int_equal(stats_of(f).moving_bytes, 0);
        synced = put;
    }
    weir_region_audit(f->region);
    struct weir_region_stats stats = stats_of(f);
    print_message("# file / live %.3f, moved / put %.2f, written / put %.2f\n",
                  (double)file_max / (double)live_max,
                  (double)stats.moved_bytes / (double)stats.put_bytes,
                  (double)stats.written_bytes / (double)stats.put_bytes);
    assert_true(moving_max > 0);
    assert_true(moving_max <= live_max / 4 + 16 * MIB);
    assert_true(file_max < 132 * MIB); /* with holes it would be all of bytes_max */
    check_all(f);
    sync_now(f);
    close_named(f);
    harness_named_lose_power(f->directory, NAME);
    open_named(f, 144 * MIB);
    assert_int_equal(f->report.kept_slot_count, f->count);
    assert_int_equal(f->report.lost_slot_count, 0);
    check_all(f);
    end(f);
}

static void space_comes_back_with_the_sync(void **state)
{
    struct fixture *f = begin(64 * MIB);

    (void)state;
    make_sparse(f);
    struct weir_region_stats before = stats_of(f);
    assert_true(before.moving_bytes > MIB);
    assert_true(before.moving_bytes < 16 * MIB);
    check_all(f);
    sync_now(f);
    weir_region_audit(f->region);
    struct weir_region_stats after = stats_of(f);
    assert_int_equal(after.moving_bytes, 0);
    /* What was copied is held once; nothing was put or freed. */
    assert_true(after.mark_bytes - after.free_bytes <
                before.mark_bytes - before.free_bytes - before.moving_bytes / 2);
    check_all(f);
    end(f);
}

static void a_power_loss_before_the_sync(void **state)
{
    struct fixture *f = begin(64 * MIB);

    (void)state;
    make_sparse(f);
    assert_true(stats_of(f).moving_bytes > 0);
    close_named(f);
    harness_named_lose_power(f->directory, NAME);
    open_named(f, 64 * MIB);
    assert_int_equal(f->report.kept_slot_count, f->count);
    assert_int_equal(f->report.lost_slot_count, 0);
    /* Nobody knows of the copies any more. */
    assert_int_equal(stats_of(f).moving_bytes, 0);
    check_all(f);
    end(f);
}

static size_t answered;

static void count_answer(void *context, struct weir_slot slot, int result)
{
    (void)context;
    (void)slot;
    assert_int_equal(result, 0);
    answered++;
}

/* Where the item with this number lies, NULL if it is not pinned. */
static void pin_some(struct fixture *f, const void **pinned)
{
    for (size_t i = 0; i < PIN_COUNT; i++) {
        size_t which = i * f->count / PIN_COUNT;
        size_t bytes;
        answered = 0;
        assert_int_equal(weir_region_fetch(f->region, &f->items[which].slot, 1, count_answer, NULL),
                         0);
        while (answered == 0)
            assert_true(weir_region_wait(f->region, WAIT_NS) >= 0);
        assert_int_equal(weir_region_pin(f->region, f->items[which].slot, &pinned[which], &bytes),
                         0);
        assert_int_equal(bytes, f->items[which].bytes);
    }
}

/* Of those that were copied a third is freed and some are pinned. */
static void what_happens_to_an_item_meanwhile(void **state)
{
    struct fixture *f = begin(64 * MIB);
    const void **pinned = calloc(ITEMS_MAX, sizeof(*pinned));
    struct item freed = {0};
    struct weir_slot_info info;

    (void)state;
    make_sparse(f);
    assert_true(stats_of(f).moving_bytes > MIB);
    for (size_t i = f->count; i > 0; i--) {
        if (i % 3 == 0) {
            freed = f->items[i - 1];
            free_one(f, i - 1);
        }
    }
    pin_some(f, pinned);
    weir_region_audit(f->region);
    sync_now(f);
    weir_region_audit(f->region);
    assert_int_equal(stats_of(f).moving_bytes, 0);
    assert_int_equal(weir_region_slot(f->region, freed.slot, &info), -ESTALE);
    /* What came free is stored to, and no address of a pin is any of it. */
    size_t count = f->count;
    while (f->live_bytes < 24 * MIB)
        put_one(f, 1000 + weir__random_below(&f->random, 6000));
    settle(f);
    for (size_t i = 0; i < count; i++) {
        if (pinned[i] == NULL)
            continue;
        assert_int_equal(harness_differs_at(pinned[i], f->items[i].bytes, f->items[i].seed, 0),
                         f->items[i].bytes);
        weir_region_unpin(f->region, f->items[i].slot);
    }
    check_all(f);
    sync_now(f);
    close_named(f);
    harness_named_lose_power(f->directory, NAME);
    open_named(f, 64 * MIB);
    assert_int_equal(f->report.kept_slot_count, f->count);
    check_all(f);
    free(pinned);
    end(f);
}

/* Somebody who reads all the while; what he reads is not freed. */
struct watcher {
    struct weir_view *view;
    const struct item *items;
    size_t count;
    _Atomic uint64_t exact;
    atomic_bool is_over;
    atomic_bool is_wrong;
};

static void *watch(void *context)
{
    struct watcher *watcher = context;
    char *data = malloc(ITEM_BYTES_MAX);

    for (uint64_t i = 0; !watcher->is_over; i++) {
        const struct item *item = &watcher->items[i * 31 % watcher->count];
        size_t count = 0;
        int r = weir_view_read(watcher->view, item->slot, 0, data, ITEM_BYTES_MAX, &count);
        bool is_exact = r == 0 && count == item->bytes &&
                        harness_differs_at(data, count, item->seed, 0) == count;
        watcher->exact += is_exact;
        if (!is_exact && r != -EAGAIN)
            watcher->is_wrong = true;
    }
    free(data);
    return NULL;
}

static void a_view_is_exact_meanwhile(void **state)
{
    struct fixture *f = begin(64 * MIB);
    struct item *watched = malloc(ITEMS_MAX * sizeof(*watched));
    struct watcher watcher = {.items = watched};
    pthread_t thread;
    uint64_t moved = 0;

    (void)state;
    make_sparse(f);
    for (; watcher.count < f->count / 2; watcher.count++)
        watched[watcher.count] = f->items[watcher.count];
    assert_int_equal(weir_view_open(0, weir_region_fd(f->region), &watcher.view), 0);
    assert_int_equal(pthread_create(&thread, NULL, watch, &watcher), 0);
    for (int turn = 0; turn < 8; turn++) {
        uint64_t seen = watcher.exact;
        moved += stats_of(f).moving_bytes;
        sync_now(f);
        /* What came free is stored to, and free again with the next sync. */
        while (f->live_bytes < 16 * MIB)
            put_one(f, 1000 + weir__random_below(&f->random, 6000));
        sync_now(f);
        while (f->count > watcher.count + 50)
            free_one(f, watcher.count + weir__random_below(&f->random, f->count - watcher.count));
        sync_now(f);
        settle(f);
        while (watcher.exact == seen && !watcher.is_wrong)
            sched_yield();
    }
    watcher.is_over = true;
    assert_int_equal(pthread_join(thread, NULL), 0);
    print_message("# %" PRIu64 " reads, %" PRIu64 " KiB moved\n", watcher.exact, moved / KIB);
    assert_false(watcher.is_wrong);
    assert_true(moved > MIB);
    weir_view_close(watcher.view);
    check_all(f);
    free(watched);
    end(f);
}

/* All that happens at random, with power losses that take what the last sync did not confirm. */
static void syncs_come_at_any_time(void **state)
{
    struct fixture *f = begin(64 * MIB);
    uint64_t syncs_moving = 0;

    (void)state;
    for (int turn = 0; turn < 3; turn++) {
        for (int step = 0; step < 6000; step++) {
            if (f->live_bytes > 30 * MIB || weir__random_below(&f->random, 20) < 9)
                f->count > 0 ? free_one(f, weir__random_below(&f->random, f->count)) : (void)0;
            else
                put_one(f, weir__random_below(&f->random, 14000));
            if (weir__random_below(&f->random, 4) == 0)
                assert_true(weir_region_poll(f->region) >= 0);
            if (weir__random_below(&f->random, 200) != 0)
                continue;
            syncs_moving += stats_of(f).moving_bytes > 0;
            sync_now(f);
            weir_region_audit(f->region);
        }
        sync_now(f);
        close_named(f);
        harness_named_lose_power(f->directory, NAME);
        open_named(f, 64 * MIB);
        assert_int_equal(f->report.kept_slot_count, f->count);
        check_all(f);
    }
    print_message("# %" PRIu64 " syncs that moved\n", syncs_moving);
    assert_true(syncs_moving > 0);
    end(f);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        CASE("a region that syncs does not fill with holes", it_does_not_fill_with_holes),
        CASE("what was moved gives its space back with the sync", space_comes_back_with_the_sync),
        CASE("a power loss before the sync leaves what it confirmed", a_power_loss_before_the_sync),
        CASE("freed or pinned meanwhile, an item is not moved", what_happens_to_an_item_meanwhile),
        CASE("a view is exact meanwhile", a_view_is_exact_meanwhile),
        CASE("syncs come at any time", syncs_come_at_any_time),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("region_confirmed", tests, NULL, NULL);
}
