/* SPDX-License-Identifier: MIT */
/*
 * A view of a region whose owner puts, builds, frees and polls as fast as it
 * can, most of it cold: from another thread, and from another process. And with
 * all of it in memory, where items change places to keep the file short.
 *
 *   kept    items that stay: each look must find them, exactly
 *   others  exact, -ESTALE, or -EAGAIN while under construction
 *   freed   what was freed before the look began: -ESTALE, always
 *
 * An item's bytes follow from its key, and so does its length: what a look found
 * can be checked without asking the owner, and tearing is seen.
 */
#include <weir/region.h>
#include <weir/view.h>

#include "pattern.h"
#include "process.h"
#include "seed.h"
#include "tmpdir.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define KEPT_COUNT     40u
#define OTHER_COUNT    600u
#define ITEM_BYTES_MAX UINT64_C(300000)
#define RESIDENT_BYTES (UINT64_C(8) << 20)
#define TAG_KEPT       1
#define TAG_OTHER      2

static uint64_t seed_given;

struct owner {
    struct weir_region *region;
    bool *stop;
    uint64_t *freed; /* the slot freed last, as one word */
    uint64_t resident_bytes_max;
    uint64_t seed;
    unsigned char *item;
};

static uint64_t slot_word(struct weir_slot slot)
{
    return (uint64_t)slot.index | (uint64_t)slot.generation << 32;
}

static struct weir_slot word_slot(uint64_t word)
{
    return (struct weir_slot){.index = (uint32_t)word, .generation = (uint32_t)(word >> 32)};
}

static uint64_t key_bytes(uint64_t key)
{
    uint64_t word = weir__mix(key + 1);

    return word % 8 == 0 ? word / 8 % ITEM_BYTES_MAX : word / 8 % 5000;
}

/* ---- The owner -------------------------------------------------------------- */

/* cmocka's asserts are for its own thread: the owner stops the process instead. */
static void owner_expect(bool holds, const char *what, int r)
{
    if (holds)
        return;
    fprintf(stderr, "owner: %s: %s\n", what, strerror(-r));
    abort();
}

static struct weir_slot owner_put(struct owner *owner, uint64_t key, uint16_t tag)
{
    uint64_t bytes = key_bytes(key);
    struct weir_label label = {.key = key, .owner = tag};
    struct weir_slot slot;
    int r;

    harness_fill(owner->item, bytes, key, 0);
    while ((r = weir_region_put(owner->region, owner->item, bytes, label, &slot)) == -EAGAIN)
        weir_region_wait(owner->region, UINT64_C(1000000));
    owner_expect(r == 0, "put", r);
    return slot;
}

/* The same in pieces; every third is given up on the way. */
static bool owner_build(struct owner *owner, uint64_t key, struct weir_slot *ret_slot)
{
    uint64_t bytes = key_bytes(key);
    struct weir_label label = {.key = key, .owner = TAG_OTHER};
    int r;

    harness_fill(owner->item, bytes, key, 0);
    while ((r = weir_region_alloc(owner->region, bytes, label, ret_slot)) == -EAGAIN)
        weir_region_wait(owner->region, UINT64_C(1000000));
    owner_expect(r == 0, "alloc", r);
    for (uint64_t offset = 0; offset < bytes;) {
        uint64_t step = bytes - offset < 40000 ? bytes - offset : 40000;
        r = weir_region_write(owner->region, *ret_slot, offset, owner->item + offset, step);
        if (r == -EAGAIN) {
            weir_region_wait(owner->region, UINT64_C(1000000));
            continue;
        }
        owner_expect(r == 0, "write", r);
        offset += step;
        if (key % 3 == 0 && offset < bytes) {
            owner_expect(weir_region_free(owner->region, *ret_slot) == 0, "free", -ESTALE);
            return false;
        }
    }
    r = weir_region_commit(owner->region, *ret_slot);
    owner_expect(r == 0, "commit", r);
    return true;
}

static void owner_open(struct owner *owner)
{
    struct weir_region_config config = {
        .directory = harness_tmpdir(),
        .bytes_max = UINT64_C(256) << 20,
        .resident_bytes_max = owner->resident_bytes_max,
    };

    int r = weir_region_open(&config, &owner->region);
    owner_expect(r == 0, "open", r);
    owner->item = malloc(ITEM_BYTES_MAX);
    owner_expect(owner->item != NULL, "malloc", -ENOMEM);
    for (uint64_t key = 0; key < KEPT_COUNT; key++)
        owner_put(owner, key, TAG_KEPT);
}

static void owner_step(struct owner *owner, struct weir_slot slots[OTHER_COUNT])
{
    struct weir_slot *slot = &slots[weir__random_below(&owner->seed, OTHER_COUNT)];
    uint64_t key = weir__random(&owner->seed) | UINT64_C(1) << 63;

    if (!weir_slot_is_none(*slot)) {
        uint64_t word = slot_word(*slot);
        owner_expect(weir_region_free(owner->region, *slot) == 0, "free", -ESTALE);
        __atomic_store_n(owner->freed, word, __ATOMIC_RELEASE);
        *slot = (struct weir_slot){0, 0};
    } else if (weir__random_below(&owner->seed, 4) == 0) {
        if (!owner_build(owner, key, slot))
            *slot = (struct weir_slot){0, 0};
    } else {
        *slot = owner_put(owner, key, TAG_OTHER);
    }
    if (weir__random_below(&owner->seed, 4) == 0) {
        int r = weir_region_poll(owner->region);
        owner_expect(r >= 0, "poll", r);
    }
}

static void owner_close(struct owner *owner)
{
    weir_region_audit(owner->region);
    weir_region_close(owner->region);
    free(owner->item);
}

/* ---- Who looks -------------------------------------------------------------- */

struct tally {
    uint64_t kept;
    uint64_t exact;
    uint64_t cold; /* of these, from a chunk that was cold before */
    uint64_t verified;
    uint64_t stale;
    uint64_t built;
    uint64_t freed;
    uint64_t moved; /* more often than a look may be repeated */
    bool may_move;
};

static void look_at_payload(const struct weir_view *view, const struct weir_view_extent *extent,
                            unsigned char *buffer, struct tally *tally)
{
    struct weir_view_chunk chunk = {.state = WEIR_CHUNK_NONE};
    uint64_t bytes = key_bytes(extent->label.key);
    size_t count = 0;

    (void)!weir_view_chunk(view, extent->offset / WEIR_CHUNK_BYTES, &chunk);
    int r = weir_view_read(view, extent->slot, 0, buffer, ITEM_BYTES_MAX, &count);
    if (r == -EAGAIN && tally->may_move) { /* again and again, says the header */
        tally->moved++;
    } else if (extent->label.owner == TAG_KEPT || r == 0) {
        assert_int_equal(r, 0);
        assert_int_equal(count, bytes);
        assert_int_equal(extent->bytes, bytes);
        assert_int_equal(harness_differs_at(buffer, count, extent->label.key, 0), count);
        tally->kept += extent->label.owner == TAG_KEPT;
        tally->cold += chunk.state == WEIR_CHUNK_COLD;
        tally->exact++;
    } else {
        assert_true(r == -ESTALE || (r == -EAGAIN && !extent->committed));
        tally->stale += r == -ESTALE;
        tally->built += r == -EAGAIN;
    }

    uint64_t offset = bytes / 3;
    r = weir_view_read(view, extent->slot, offset, buffer, 1000, &count);
    if (r == 0) {
        assert_int_equal(count, bytes - offset < 1000 ? bytes - offset : 1000);
        assert_int_equal(harness_differs_at(buffer, count, extent->label.key, offset), count);
    }

    r = weir_view_verify(view, extent->slot);
    assert_true(r == 0 || r == -ENOENT || r == -ESTALE || r == -EAGAIN);
    tally->verified += r == 0;
}

static void look_at_freed(const struct weir_view *view, struct weir_slot slot, struct tally *tally)
{
    unsigned char byte;
    size_t count;

    assert_int_equal(weir_view_read(view, slot, 0, &byte, 1, &count), -ESTALE);
    assert_int_equal(weir_view_verify(view, slot), -ESTALE);
    tally->freed++;
}

static void look(const struct weir_view *view, const uint64_t *freed, unsigned char *buffer,
                 struct tally *tally)
{
    struct weir_view_summary summary;
    uint64_t kept = 0;

    weir_view_summary(view, &summary);
    for (uint32_t index = 1; index <= summary.entry_count; index++) {
        struct weir_view_extent extent;
        uint64_t gone = __atomic_load_n(freed, __ATOMIC_ACQUIRE);
        if (gone != 0)
            look_at_freed(view, word_slot(gone), tally);
        int r = weir_view_extent(view, index, &extent);
        assert_true(r == 0 || r == -ENOENT || r == -EAGAIN);
        if (r < 0 || weir_slot_is_none(extent.slot))
            continue;
        kept += extent.label.owner == TAG_KEPT;
        look_at_payload(view, &extent, buffer, tally);
    }
    assert_int_equal(kept, KEPT_COUNT);
}

static bool tally_is_enough(const struct tally *tally)
{
    if (tally->may_move)
        return tally->exact >= 20000 && tally->stale >= 4;
    return tally->exact >= 20000 && tally->cold >= 2000 && tally->verified >= 2000 &&
           tally->stale >= 20 && tally->built >= 1;
}

static void tally_print(const struct tally *tally)
{
    print_message(
        "# exact %lu (cold %lu, kept %lu), verified %lu, stale %lu, built %lu, freed %lu, moved %lu\n",
        tally->exact, tally->cold, tally->kept, tally->verified, tally->stale, tally->built,
        tally->freed, tally->moved);
}

/* ---- Another thread --------------------------------------------------------- */

struct stage {
    pthread_barrier_t barrier;
    bool stop;
    uint64_t freed;
    int fd;
    uint64_t moved_bytes; /* in the end */
    struct owner owner;
};

static void *owner_thread(void *context)
{
    struct stage *stage = context;
    struct weir_region_stats stats;
    struct weir_slot slots[OTHER_COUNT] = {{0, 0}};

    owner_open(&stage->owner);
    stage->fd = weir_region_fd(stage->owner.region);
    pthread_barrier_wait(&stage->barrier);
    while (!__atomic_load_n(&stage->stop, __ATOMIC_ACQUIRE))
        owner_step(&stage->owner, slots);

    /* What is under way ends; what must leave the memory leaves it. */
    for (int i = 0; i < 200; i++)
        weir_region_wait(stage->owner.region, UINT64_C(1000000));
    weir_region_stats(stage->owner.region, &stats);
    stage->moved_bytes = stats.moved_bytes;
    pthread_barrier_wait(&stage->barrier);
    pthread_barrier_wait(&stage->barrier);
    owner_close(&stage->owner);
    return NULL;
}

static void test_thread(void **state)
{
    unsigned char *buffer = malloc(ITEM_BYTES_MAX);
    struct stage stage = {.freed = 0};
    struct tally tally = {0};
    struct weir_view_summary summary;
    struct weir_view *view = NULL;
    pthread_t thread;

    (void)state;
    assert_non_null(buffer);
    stage.owner = (struct owner){
        .stop = &stage.stop,
        .freed = &stage.freed,
        .resident_bytes_max = RESIDENT_BYTES,
        .seed = seed_given,
    };
    assert_int_equal(pthread_barrier_init(&stage.barrier, NULL, 2), 0);
    assert_int_equal(pthread_create(&thread, NULL, owner_thread, &stage), 0);
    pthread_barrier_wait(&stage.barrier);
    assert_int_equal(weir_view_open(0, stage.fd, &view), 0);
    while (!tally_is_enough(&tally))
        look(view, &stage.freed, buffer, &tally);
    assert_true(tally.freed > 0);
    tally_print(&tally);

    /* All of it was looked at, again and again; none of it is in memory for that. */
    __atomic_store_n(&stage.stop, true, __ATOMIC_RELEASE);
    pthread_barrier_wait(&stage.barrier);
    look(view, &stage.freed, buffer, &tally);
    weir_view_summary(view, &summary);
    if (summary.bounded) {
        int64_t cached = harness_cached_bytes(summary.data_fd);
        assert_true(summary.file_bytes > 2 * RESIDENT_BYTES);
        assert_true(cached >= 0);
        if (cached > (int64_t)(RESIDENT_BYTES + WEIR_CHUNK_BYTES))
            fail_msg("%ld bytes in the page cache", (long)cached);
    }
    pthread_barrier_wait(&stage.barrier);
    assert_int_equal(pthread_join(thread, NULL), 0);
    pthread_barrier_destroy(&stage.barrier);
    weir_view_close(view);
    free(buffer);
}

/* All in memory: what is looked at is moved now and then, and found all the same. */
static void test_moves(void **state)
{
    unsigned char *buffer = malloc(ITEM_BYTES_MAX);
    struct stage stage = {.freed = 0};
    struct tally tally = {.may_move = true};
    struct weir_view *view = NULL;
    pthread_t thread;

    (void)state;
    assert_non_null(buffer);
    stage.owner = (struct owner){
        .stop = &stage.stop,
        .freed = &stage.freed,
        .resident_bytes_max = UINT64_MAX,
        .seed = seed_given + 2,
    };
    assert_int_equal(pthread_barrier_init(&stage.barrier, NULL, 2), 0);
    assert_int_equal(pthread_create(&thread, NULL, owner_thread, &stage), 0);
    pthread_barrier_wait(&stage.barrier);
    assert_int_equal(weir_view_open(0, stage.fd, &view), 0);
    while (!tally_is_enough(&tally))
        look(view, &stage.freed, buffer, &tally);
    tally_print(&tally);
    __atomic_store_n(&stage.stop, true, __ATOMIC_RELEASE);
    pthread_barrier_wait(&stage.barrier);
    look(view, &stage.freed, buffer, &tally);
    print_message("# moved %lu MiB\n", (unsigned long)(stage.moved_bytes >> 20));
    assert_true(stage.moved_bytes > 0);
    pthread_barrier_wait(&stage.barrier);
    assert_int_equal(pthread_join(thread, NULL), 0);
    pthread_barrier_destroy(&stage.barrier);
    weir_view_close(view);
    free(buffer);
}

/* ---- Another process -------------------------------------------------------- */

static _Noreturn void owner_process(int to_parent, int from_parent)
{
    struct weir_slot slots[OTHER_COUNT] = {{0, 0}};
    uint64_t freed = 0;
    struct owner owner = {
        .freed = &freed,
        .resident_bytes_max = RESIDENT_BYTES,
        .seed = seed_given + 1,
    };
    char byte = 0;

    owner_open(&owner);
    owner_expect(write(to_parent, "x", 1) == 1, "write", -EIO);
    while (read(from_parent, &byte, 1) < 0) /* nothing there, and not yet the end */
        owner_step(&owner, slots);
    owner_close(&owner);
    _exit(0);
}

static void test_process(void **state)
{
    unsigned char *buffer = malloc(ITEM_BYTES_MAX);
    struct tally tally = {0};
    struct weir_view *view = NULL;
    uint64_t freed = 0;
    int to_parent[2];
    int to_child[2];
    int status;
    int fd;
    char byte;

    (void)state;
    assert_non_null(buffer);
    assert_int_equal(pipe2(to_parent, O_CLOEXEC), 0);
    assert_int_equal(pipe2(to_child, O_CLOEXEC | O_NONBLOCK), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        free(buffer);
        close(to_child[1]);
        owner_process(to_parent[1], to_child[0]);
    }
    close(to_child[0]);
    assert_int_equal(read(to_parent[0], &byte, 1), 1);
    assert_int_equal(weir_view_scan(child, &fd, 1), 1);
    assert_int_equal(weir_view_open(child, fd, &view), 0);
    while (!tally_is_enough(&tally))
        look(view, &freed, buffer, &tally);
    tally_print(&tally);

    close(to_child[1]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);

    /* Nobody changes it any more, nobody owns it: every item that is there is exact. */
    uint64_t stale = tally.stale;
    look(view, &freed, buffer, &tally);
    assert_int_equal(tally.stale, stale);
    weir_view_close(view);
    close(to_parent[0]);
    close(to_parent[1]);
    free(buffer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"a view is exact while another thread changes all", test_thread, NULL, NULL, NULL},
        {"a view is exact while items change places", test_moves, NULL, NULL, NULL},
        {"a view is exact while another process changes all", test_process, NULL, NULL, NULL},
    };

    seed_given = harness_seed();
    if (harness_tmpdir() == NULL) {
        printf("1..0 # SKIP no directory on a disk\n");
        return 0;
    }
    return cmocka_run_group_tests_name("view", tests, NULL, NULL);
}
