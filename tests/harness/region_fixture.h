/* SPDX-License-Identifier: MIT */
#ifndef WEIR_HARNESS_REGION_FIXTURE_H
#define WEIR_HARNESS_REGION_FIXTURE_H

/*
 * region_fixture - the steps of the programs that take region.h sentence by sentence
 *
 * An item's key is the seed of its bytes, so that whoever finds an item can tell
 * whether it is whole. What the region says of itself is checked against the
 * kernel: descriptors, mappings, page cache, blocks. Each case ends in finish(),
 * which closes the region and finds nothing left of it.
 *
 * The names are as short as a program's own: nothing but these programs includes
 * this.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/region.h>

#include "base/ring.h"

#include "pattern.h"
#include "process.h"
#include "program.h"

#include <errno.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

#define KIB         UINT64_C(1024)
#define MIB         (KIB << 10)
#define GIB         (MIB << 10)
#define TIB         (GIB << 10)
#define CHUNK_BYTES (2 * MIB)
#define STEP_BYTES  (16 * MIB) /* reserved or given back at once, at most */

#define RESIDENT_MIN  (8 * MIB)
#define FETCH_MAX     1024
#define OWNER_DEFAULT 7
#define OWNER_FILLER  9
#define PATIENCE_S    60

struct fixture {
    const char *directory;
    struct weir_region *region;
    struct weir_ring *ring; /* shared with the region, or NULL */
    int64_t charged;        /* what the books were told in all */
    int fd_count;           /* before open */
    int map_count;
    int data_fd;
    int64_t stolen_bytes;       /* before open */
    bool marks[HARNESS_FD_MAX]; /* descriptors before open */
    bool in_poll;
};

/* ---- Steps ---------------------------------------------------------------- */

static inline void books_charge(void *context, int64_t bytes)
{
    *(int64_t *)context += bytes;
}

static inline void begin(struct fixture *f)
{
    *f = (struct fixture){
        .directory = harness_tmpdir(),
        .fd_count = harness_fd_count(),
        .data_fd = -1,
        .stolen_bytes = harness_stolen_bytes(),
    };
    f->map_count = harness_map_count(f->directory);
    harness_mark_fds(f->marks);
}

static inline int open_as(struct fixture *f, struct weir_region_config config)
{
    if (config.directory == NULL)
        config.directory = f->directory;
    config.ring = f->ring;
    config.books = (struct weir_books){books_charge, &f->charged};
    return weir_region_open(&config, &f->region);
}

static inline void start_begun(struct fixture *f, struct weir_region_config config)
{
    assert_int_equal(open_as(f, config), 0);
    assert_non_null(f->region);
    f->data_fd = harness_data_fd(f->directory, f->marks);
    assert_true(f->data_fd >= 0);
    weir_region_audit(f->region);
}

static inline void start(struct fixture *f, struct weir_region_config config)
{
    begin(f);
    start_begun(f, config);
}

/* On a ring that is shared with others; nothing_left() closes it. */
static inline void start_on_ring(struct fixture *f, struct weir_region_config config,
                                 uint32_t entry_count)
{
    begin(f);
    assert_int_equal(weir__ring_open(entry_count, true, &f->ring), 0);
    start_begun(f, config);
}

/* The figures, after they have been compared with each other, the books and the kernel. */
static inline struct weir_region_stats figures(struct fixture *f)
{
    struct weir_region_stats stats;
    struct stat file;

    memset(&stats, 0xa5, sizeof(stats));
    weir_region_stats(f->region, &stats);
    assert_true(stats.live_bytes <= stats.live_bytes_peak);
    assert_true(stats.live_bytes + stats.free_bytes <= stats.mark_bytes);
    assert_true(stats.mark_bytes <= stats.file_bytes);
    assert_true(stats.file_bytes <= stats.bytes_max);
    assert_true(stats.dirty_bytes <= stats.resident_bytes);
    assert_true(stats.fetched_bytes <= stats.resident_bytes);
    assert_true(stats.put_bytes_max <= stats.item_bytes_max);
    assert_true(stats.item_bytes_max <= stats.bytes_max);
    assert_int_equal((int64_t)stats.metadata_bytes, f->charged);
    assert_int_equal(stats.synchronous, harness_is_synchronous);
    for (size_t i = 0; i < sizeof(stats.reserved) / sizeof(stats.reserved[0]); i++)
        assert_int_equal(stats.reserved[i], 0);
    if (f->data_fd >= 0) {
        assert_int_equal(fstat(f->data_fd, &file), 0);
        /* A step more while it is being reserved, or given back. */
        assert_true((uint64_t)file.st_size >= stats.file_bytes);
        assert_true((uint64_t)file.st_size <= stats.file_bytes + STEP_BYTES);
        /* The file system adds blocks for its own tables when it likes. */
        assert_true((uint64_t)llabs((int64_t)stats.disk_bytes - (int64_t)file.st_blocks * 512) <=
                    STEP_BYTES + 64 * KIB);
    }
    return stats;
}

/* What remains after close() is compared with what was before begin(). */
static inline void nothing_left(struct fixture *f)
{
    if (f->ring != NULL)
        assert_int_equal(weir__ring_in_flight(f->ring), 0);
    weir__ring_close(f->ring);
    f->ring = NULL;
    assert_int_equal(f->charged, 0);
    assert_int_equal(harness_fd_count(), f->fd_count);
    assert_int_equal(harness_map_count(f->directory), f->map_count);
    assert_int_equal(harness_name_count(f->directory), 0);
}

/* An item with bytes of its own: heap, so that a sanitizer sees each byte too many that is read. */
static inline int try_put(struct fixture *f, uint64_t seed, size_t bytes, uint16_t owner,
                          struct weir_slot *ret_slot)
{
    void *data = test_malloc(bytes > 0 ? bytes : 1);

    harness_fill(data, bytes, seed, 0);
    int r = weir_region_put(f->region, data, bytes, (struct weir_label){seed, owner}, ret_slot);
    memset(data, 0xee, bytes);
    test_free(data);
    return r;
}

static inline struct weir_slot put(struct fixture *f, uint64_t seed, size_t bytes)
{
    struct weir_slot slot = {0, 0};

    assert_int_equal(try_put(f, seed, bytes, OWNER_DEFAULT, &slot), 0);
    assert_false(weir_slot_is_none(slot));
    return slot;
}

static inline void assert_pattern(const void *data, size_t bytes, uint64_t seed, uint64_t offset)
{
    size_t at = harness_differs_at(data, bytes, seed, offset);

    if (at != bytes)
        fail_msg("item %llu of %zu bytes differs at %zu (offset %llu)", (unsigned long long)seed,
                 bytes, at, (unsigned long long)offset);
}

static inline struct weir_slot_info info_of(struct fixture *f, struct weir_slot slot)
{
    struct weir_slot_info info;

    memset(&info, 0xa5, sizeof(info));
    assert_int_equal(weir_region_slot(f->region, slot, &info), 0);
    return info;
}

/* The item is in memory, whole, and nothing but itself. */
static inline const void *assert_here(struct fixture *f, struct weir_slot slot, size_t bytes)
{
    struct weir_slot_info info = info_of(f, slot);
    const void *data = NULL;
    size_t bytes_seen = SIZE_MAX;

    assert_int_equal(weir_region_at(f->region, slot, &data, &bytes_seen), 0);
    assert_true(info.resident);
    assert_true(info.committed);
    assert_int_equal(info.bytes, bytes);
    assert_int_equal(bytes_seen, bytes);
    assert_non_null(data);
    assert_pattern(data, bytes, info.label.key, 0);
    return data;
}

/* The item is whole, wherever it is. */
static inline void assert_whole(struct fixture *f, struct weir_slot slot)
{
    struct weir_slot_info info = info_of(f, slot);
    unsigned char *buffer = test_malloc(info.bytes + 1);
    size_t bytes = SIZE_MAX;

    buffer[info.bytes] = 0x5a;
    assert_int_equal(weir_region_read(f->region, slot, 0, buffer, info.bytes + 1, &bytes), 0);
    assert_int_equal(bytes, info.bytes);
    assert_pattern(buffer, bytes, info.label.key, 0);
    assert_int_equal(buffer[info.bytes], 0x5a);
    test_free(buffer);
}

static inline void never_called(void *context, struct weir_slot slot, int result)
{
    (void)context;
    (void)slot;
    (void)result;
    fail_msg("called back, though nothing was asked for");
}

static inline void operation_never_completed(struct weir_operation *operation, int32_t result,
                                             uint32_t flags)
{
    (void)operation;
    (void)result;
    (void)flags;
    fail_msg("completed, though nothing was started");
}

/* No call takes this handle, and none of them changes what it returns into. */
static inline void assert_stale(struct fixture *f, struct weir_slot slot)
{
    const void *const mark = &harness_is_synchronous;
    const void *data = mark;
    size_t bytes = 4711;
    char buffer[16] = "untouched";
    struct weir_slot_info info;
    struct weir_slot_info info_before;
    struct weir_operation operation = {operation_never_completed};

    memset(&info, 0xa5, sizeof(info));
    memcpy(&info_before, &info, sizeof(info));
    assert_int_equal(weir_region_at(f->region, slot, &data, &bytes), -ESTALE);
    assert_int_equal(weir_region_pin(f->region, slot, &data, &bytes), -ESTALE);
    assert_int_equal(weir_region_read(f->region, slot, 0, buffer, sizeof(buffer), &bytes), -ESTALE);
    assert_int_equal(weir_region_slot(f->region, slot, &info), -ESTALE);
    assert_int_equal(weir_region_write(f->region, slot, 0, "x", 1), -ESTALE);
    assert_int_equal(weir_region_commit(f->region, slot), -ESTALE);
    assert_int_equal(weir_region_free(f->region, slot), -ESTALE);
    assert_int_equal(weir_region_fetch_into(f->region, slot, 0, buffer, 1, &operation), -ESTALE);
    assert_ptr_equal(data, mark);
    assert_int_equal(bytes, 4711);
    assert_string_equal(buffer, "untouched");
    assert_memory_equal(&info, &info_before, sizeof(info));
}

static inline int poll_once(struct fixture *f)
{
    if (f->ring != NULL)
        assert_true(weir__ring_reap(f->ring) >= 0);
    f->in_poll = true;
    int r = weir_region_poll(f->region);
    f->in_poll = false;
    return r;
}

static inline int wait_once(struct fixture *f)
{
    if (f->ring != NULL) {
        assert_true(weir__ring_wait(f->ring, 1000000) >= 0);
        return poll_once(f);
    }
    f->in_poll = true;
    int r = weir_region_wait(f->region, UINT64_C(100000000));
    f->in_poll = false;
    return r;
}

/* What was begun has come to its end, however busy the disk is, and nothing more begins. */
static inline void become_idle(struct fixture *f)
{
    for (int quiet = 0; quiet < 10;) {
        f->in_poll = true;
        int r = weir_region_wait(f->region, PATIENCE_S * UINT64_C(1000000000));
        f->in_poll = false;
        assert_true(r >= 0);
        quiet = r > 0 ? 0 : quiet + 1;
    }
}

static inline bool patience_is_over(const struct timespec *since)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec - since->tv_sec > PATIENCE_S;
}

/* What is reserved ahead or given back has come to its end. */
static inline void settle(struct fixture *f)
{
    struct timespec since;
    struct stat file;
    bool is_settled = f->data_fd < 0;

    clock_gettime(CLOCK_MONOTONIC, &since);
    while (!is_settled) {
        struct weir_region_stats stats = figures(f);
        assert_int_equal(fstat(f->data_fd, &file), 0);
        is_settled =
            stats.file_bytes == (uint64_t)file.st_size &&
            (uint64_t)llabs((int64_t)stats.disk_bytes - (int64_t)file.st_blocks * 512) <= 64 * KIB;
        if (!is_settled)
            (void)wait_once(f);
        assert_false(patience_is_over(&since));
    }
}

static inline void finish(struct fixture *f)
{
    weir_region_audit(f->region);
    settle(f);
    weir_region_audit(f->region);
    weir_region_close(f->region);
    f->region = NULL;
    nothing_left(f);
}

/* What fetch() was asked for and what came of it. */
struct fetches {
    struct fixture *f;
    size_t count;
    size_t called;
    struct weir_slot slots[FETCH_MAX];
    int results[FETCH_MAX];
    bool done[FETCH_MAX];
    /* More to do inside the callback, after the usual checks; NULL: nothing. */
    void (*then)(struct fetches *fetches, struct weir_slot slot, int result);
    void *context; /* of that */
};

static inline void fetch_done(void *context, struct weir_slot slot, int result)
{
    struct fetches *fetches = context;
    size_t i = 0;

    assert_true(fetches->f->in_poll);
    while (i < fetches->count && (fetches->done[i] || fetches->slots[i].index != slot.index ||
                                  fetches->slots[i].generation != slot.generation))
        i++;
    assert_true(i < fetches->count); /* asked for, and not called back before */
    fetches->done[i] = true;
    fetches->results[i] = result;
    fetches->called++;
    assert_true(result <= 0);
    if (result == 0) {
        const void *data;
        assert_here(fetches->f, slot, info_of(fetches->f, slot).bytes);
        assert_int_equal(weir_region_pin(fetches->f->region, slot, &data, NULL), 0);
        weir_region_unpin(fetches->f->region, slot);
    }
    if (fetches->then != NULL)
        fetches->then(fetches, slot, result);
}

static inline int fetch_start(struct fixture *f, struct fetches *fetches)
{
    struct weir_slot slots[FETCH_MAX];

    fetches->f = f;
    fetches->called = 0;
    memset(fetches->done, 0, sizeof(fetches->done));
    memcpy(slots, fetches->slots, sizeof(slots));
    int r = weir_region_fetch(f->region, slots, fetches->count, fetch_done, fetches);
    memset(slots, 0xee, sizeof(slots)); /* they need not outlive the call */
    assert_int_equal(fetches->called, 0);
    assert_true(figures(f).resident_bytes <= figures(f).resident_bytes_max);
    return r;
}

static inline void fetch_finish(struct fixture *f, struct fetches *fetches)
{
    struct timespec since;

    clock_gettime(CLOCK_MONOTONIC, &since);
    while (fetches->called < fetches->count) {
        assert_true(wait_once(f) >= 0);
        assert_false(patience_is_over(&since));
    }
    assert_int_equal(fetches->called, fetches->count);
    weir_region_audit(f->region);
}

/* What was asked for and taken on: fetch_finish() waits for it, and test_free() gives it back. */
static inline struct fetches *fetch_many(struct fixture *f, const struct weir_slot *slots,
                                         size_t count)
{
    struct fetches *fetches = test_calloc(1, sizeof(*fetches));

    assert_true(count <= FETCH_MAX);
    fetches->count = count;
    memcpy(fetches->slots, slots, count * sizeof(slots[0]));
    assert_int_equal(fetch_start(f, fetches), 0);
    return fetches;
}

static inline void fetch_one(struct fixture *f, struct weir_slot slot, int result)
{
    struct fetches *fetches = fetch_many(f, &slot, 1);

    fetch_finish(f, fetches);
    assert_int_equal(fetches->results[0], result);
    test_free(fetches);
}

/* One fetch_into() under way. */
struct piece {
    struct weir_operation operation;
    struct fixture *f;
    bool done;
    int32_t result;
};

static inline void piece_done(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct piece *piece = (struct piece *)(void *)operation;

    (void)flags;
    assert_false(piece->done);
    piece->done = true;
    piece->result = result;
}

_Static_assert(offsetof(struct piece, operation) == 0, "the cast in piece_done()");

static inline void piece_finish(struct fixture *f, struct piece *piece)
{
    struct timespec since;

    clock_gettime(CLOCK_MONOTONIC, &since);
    while (!piece->done) {
        assert_true(wait_once(f) >= 0);
        assert_false(patience_is_over(&since));
    }
}

/*
 * A case that cannot be shown here says so and passes: cmocka's own skip is "not
 * ok" in TAP.
 */
static inline void pass_over(const char *reason)
{
    printf("# passed over: %s\n", reason);
}

/* False where the file system keeps pages; where it must not keep them, that is a failure. */
static inline bool is_bounded(struct fixture *f)
{
    long magic = harness_fs_magic(f->directory);

    if (figures(f).bounded)
        return true;
    assert_true(magic != EXT4_SUPER_MAGIC && magic != XFS_SUPER_MAGIC);
    pass_over("this file system keeps pages in memory");
    weir_region_close(f->region);
    nothing_left(f);
    return false;
}

/* Other items come until @slot leaves the memory. */
static inline void make_cold(struct fixture *f, struct weir_slot slot)
{
    uint64_t limit = figures(f).resident_bytes_max * 6;
    uint64_t seed = UINT64_C(1) << 40;

    for (uint64_t bytes = 0; info_of(f, slot).resident; bytes += 64 * KIB) {
        struct weir_slot filler;
        assert_true(bytes < limit);
        assert_int_equal(try_put(f, seed++, 64 * KIB, OWNER_FILLER, &filler), 0);
    }
    weir_region_audit(f->region);
}

/* The kernel has in memory what the region says, and no more than it may. */
static inline void assert_bound_holds(struct fixture *f)
{
    struct weir_region_stats stats = figures(f);
    int64_t cached = harness_cached_bytes(f->data_fd);
    int64_t said = (int64_t)(stats.resident_bytes - stats.fetched_bytes);

    assert_true(cached >= 0);
    assert_true(stats.resident_bytes <= stats.resident_bytes_max);
    /* Less, too, where the kernel was short of memory and took pages. */
    int64_t stolen = harness_stolen_bytes() - f->stolen_bytes;
    if (cached > said + (int64_t)CHUNK_BYTES || cached + stolen < said - (int64_t)CHUNK_BYTES)
        fail_msg("resident: the books say %lld KiB, the kernel %lld KiB", (long long)said / 1024,
                 (long long)cached / 1024);
}

/* @count items that are cold, and one that is not, last. */
static inline void make_cold_items(struct fixture *f, struct weir_slot *slots, size_t count,
                                   size_t bytes)
{
    for (size_t i = 0; i < count; i++)
        slots[i] = put(f, i, bytes);
    make_cold(f, slots[count - 1]);
    for (size_t i = 0; i < count; i++) /* writes may end in another order */
        if (info_of(f, slots[i]).resident)
            make_cold(f, slots[i]);
    for (size_t i = 0; i < count; i++)
        assert_false(info_of(f, slots[i]).resident);
    slots[count] = put(f, 999, bytes);
}

static inline void assert_same_items(const struct weir_region_stats *a,
                                     const struct weir_region_stats *b)
{
    assert_int_equal(a->live_bytes, b->live_bytes);
    assert_int_equal(a->slot_count, b->slot_count);
    assert_int_equal(a->put_count, b->put_count);
    assert_int_equal(a->put_bytes, b->put_bytes);
    assert_int_equal(a->mark_bytes, b->mark_bytes);
    assert_int_equal(a->free_bytes, b->free_bytes);
    assert_int_equal(a->free_extent_count, b->free_extent_count);
}

/* The whole item @seed, in pieces of at most @piece_bytes. */
static inline int write_pieces(struct fixture *f, struct weir_slot slot, uint64_t seed,
                               uint64_t bytes, uint64_t piece_bytes)
{
    char *piece = test_malloc(piece_bytes);
    int r = 0;

    for (uint64_t at = 0; at < bytes && r == 0; at += piece_bytes) {
        uint64_t now = bytes - at < piece_bytes ? bytes - at : piece_bytes;
        harness_fill(piece, now, seed, at);
        r = weir_region_write(f->region, slot, at, piece, now);
    }
    test_free(piece);
    return r;
}

/* Turns one byte of a cold item on the disk. */
static inline void damage(struct fixture *f, uint64_t seed, uint64_t offset)
{
    char start_bytes[32];
    char path[64];
    char byte;

    harness_fill(start_bytes, sizeof(start_bytes), seed, 0);
    int64_t place = harness_find(f->data_fd, start_bytes, sizeof(start_bytes));
    assert_true(place >= 0);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", f->data_fd);
    int own = open(path, O_RDWR | O_CLOEXEC);
    assert_true(own >= 0);
    assert_int_equal(pread(own, &byte, 1, place + (off_t)offset), 1);
    byte ^= 0x10;
    assert_int_equal(pwrite(own, &byte, 1, place + (off_t)offset), 1);
    assert_int_equal(fdatasync(own), 0);
    assert_int_equal(posix_fadvise(own, 0, 0, POSIX_FADV_DONTNEED), 0);
    close(own);
}

/*
 * A cold chunk with ten items of 3000 bytes, their index as key, and the first half
 * of one that is under construction. With such a one in it a chunk leaves the
 * memory only when nothing else could: two pins see to that until it comes back.
 */
struct cold_chunk {
    struct weir_slot slots[10];
    struct weir_slot built;
    struct weir_slot pinned[2];
};

#define COLD_BUILT_SEED UINT64_C(500)
#define COLD_BUILT_HALF (16 * KIB)

static inline void make_cold_chunk(struct fixture *f, struct cold_chunk *chunk)
{
    const void *data;
    size_t pin_count = 0;

    assert_int_equal(weir_region_alloc(f->region, 2 * COLD_BUILT_HALF,
                                       (struct weir_label){COLD_BUILT_SEED, 1}, &chunk->built),
                     0);
    assert_int_equal(
        write_pieces(f, chunk->built, COLD_BUILT_SEED, COLD_BUILT_HALF, COLD_BUILT_HALF), 0);
    for (size_t i = 0; i < 10; i++)
        chunk->slots[i] = put(f, i, 3000);
    for (uint64_t i = 0; info_of(f, chunk->slots[9]).resident; i++) {
        assert_true(i < 1000);
        struct weir_slot slot;
        assert_int_equal(try_put(f, 10000 + i, 64 * KIB, OWNER_FILLER, &slot), 0);
        if (i == 40 || i == 80) {
            assert_int_equal(weir_region_pin(f->region, slot, &data, NULL), 0);
            chunk->pinned[pin_count++] = slot;
        }
    }
    assert_int_equal(pin_count, 2);
}

/* The other half goes in: for that the chunk comes back. */
static inline void bring_back_cold_chunk(struct fixture *f, struct cold_chunk *chunk)
{
    static char piece[COLD_BUILT_HALF];
    int r = -EAGAIN;

    weir_region_unpin(f->region, chunk->pinned[0]);
    weir_region_unpin(f->region, chunk->pinned[1]);
    harness_fill(piece, sizeof(piece), COLD_BUILT_SEED, sizeof(piece));
    for (int tries = 0; r == -EAGAIN && tries < 1000; tries++) {
        r = weir_region_write(f->region, chunk->built, sizeof(piece), piece, sizeof(piece));
        if (r == -EAGAIN)
            assert_true(wait_once(f) >= 0);
    }
    assert_int_equal(r, 0);
    assert_int_equal(weir_region_commit(f->region, chunk->built), 0);
    assert_whole(f, chunk->built);
}

/* ---- Children --------------------------------------------------------------- */

/* What a child does ends in 0 or in the line that failed. */
#define CHILD_CHECK(x)                                                                             \
 do {                                                                                              \
  if (!(x))                                                                                        \
   return __LINE__;                                                                                \
 } while (0)

static inline int child_status(int (*run)(const char *directory), bool quiet)
{
    struct rlimit none = {0, 0};
    int status = -1;

    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        setrlimit(RLIMIT_CORE, &none);
        if (quiet && freopen("/dev/null", "w", stderr) == NULL)
            _exit(125);
        int line = run(harness_tmpdir());
        if (line != 0 && !quiet) {
            fprintf(stderr, "# child failed at line %d, errno %d\n", line, errno);
            fflush(stderr);
        }
        _exit(line == 0 ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static inline void assert_child_passes(int (*run)(const char *directory))
{
    int status = child_status(run, false);

    if (WIFSIGNALED(status))
        fail_msg("child died of signal %d", WTERMSIG(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

#endif
