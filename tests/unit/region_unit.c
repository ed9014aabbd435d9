/* SPDX-License-Identifier: MIT */
/*
 * region_unit - what include/weir/region.h promises, sentence by sentence
 *
 * Written from the header alone. An item's key is the seed of its bytes, so
 * that whoever finds an item can tell whether it is whole. What the region says
 * of itself is checked against the kernel: descriptors, mappings, page cache,
 * blocks. Each case ends in finish(), which closes the region and finds nothing
 * left of it.
 *
 *      region_unit [--synchronous] [pattern]
 *
 * With --synchronous io_uring is forbidden first, as a container's filter does,
 * and the same sentences must hold.
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
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/time.h>
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

static void books_charge(void *context, int64_t bytes)
{
    *(int64_t *)context += bytes;
}

static void begin(struct fixture *f)
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

static int open_as(struct fixture *f, struct weir_region_config config)
{
    if (config.directory == NULL)
        config.directory = f->directory;
    config.ring = f->ring;
    config.books = (struct weir_books){books_charge, &f->charged};
    return weir_region_open(&config, &f->region);
}

static void start(struct fixture *f, struct weir_region_config config)
{
    begin(f);
    assert_int_equal(open_as(f, config), 0);
    assert_non_null(f->region);
    f->data_fd = harness_data_fd(f->directory, f->marks);
    assert_true(f->data_fd >= 0);
    weir_region_audit(f->region);
}

/* The figures, after they have been compared with each other, the books and the kernel. */
static struct weir_region_stats figures(struct fixture *f)
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
static void nothing_left(struct fixture *f)
{
    assert_int_equal(f->charged, 0);
    assert_int_equal(harness_fd_count(), f->fd_count);
    assert_int_equal(harness_map_count(f->directory), f->map_count);
    assert_int_equal(harness_name_count(f->directory), 0);
}

/* An item with bytes of its own: heap, so that a sanitizer sees each byte too many that is read. */
static int try_put(struct fixture *f, uint64_t seed, size_t bytes, uint16_t owner,
                   struct weir_slot *ret_slot)
{
    void *data = test_malloc(bytes > 0 ? bytes : 1);

    harness_fill(data, bytes, seed, 0);
    int r = weir_region_put(f->region, data, bytes, (struct weir_label){seed, owner}, ret_slot);
    memset(data, 0xee, bytes);
    test_free(data);
    return r;
}

static struct weir_slot put(struct fixture *f, uint64_t seed, size_t bytes)
{
    struct weir_slot slot = {0, 0};

    assert_int_equal(try_put(f, seed, bytes, OWNER_DEFAULT, &slot), 0);
    assert_false(weir_slot_is_none(slot));
    return slot;
}

static void assert_pattern(const void *data, size_t bytes, uint64_t seed, uint64_t offset)
{
    size_t at = harness_differs_at(data, bytes, seed, offset);

    if (at != bytes)
        fail_msg("item %llu of %zu bytes differs at %zu (offset %llu)", (unsigned long long)seed,
                 bytes, at, (unsigned long long)offset);
}

static struct weir_slot_info info_of(struct fixture *f, struct weir_slot slot)
{
    struct weir_slot_info info;

    memset(&info, 0xa5, sizeof(info));
    assert_int_equal(weir_region_slot(f->region, slot, &info), 0);
    return info;
}

/* The item is in memory, whole, and nothing but itself. */
static const void *assert_here(struct fixture *f, struct weir_slot slot, size_t bytes)
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
static void assert_whole(struct fixture *f, struct weir_slot slot)
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

static void never_called(void *context, struct weir_slot slot, int result)
{
    (void)context;
    (void)slot;
    (void)result;
    fail_msg("called back, though nothing was asked for");
}

static void operation_never_completed(struct weir_operation *operation, int32_t result,
                                      uint32_t flags)
{
    (void)operation;
    (void)result;
    (void)flags;
    fail_msg("completed, though nothing was started");
}

/* No call takes this handle, and none of them changes what it returns into. */
static void assert_stale(struct fixture *f, struct weir_slot slot)
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

static int poll_once(struct fixture *f)
{
    if (f->ring != NULL)
        assert_true(weir__ring_reap(f->ring) >= 0);
    f->in_poll = true;
    int r = weir_region_poll(f->region);
    f->in_poll = false;
    return r;
}

static int wait_once(struct fixture *f)
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

static bool patience_is_over(const struct timespec *since)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec - since->tv_sec > PATIENCE_S;
}

/* What is reserved ahead or given back has come to its end. */
static void settle(struct fixture *f)
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

static void finish(struct fixture *f)
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
};

static void fetch_done(void *context, struct weir_slot slot, int result)
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

static int fetch_start(struct fixture *f, struct fetches *fetches)
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

static void fetch_finish(struct fixture *f, struct fetches *fetches)
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

static void fetch_one(struct fixture *f, struct weir_slot slot, int result)
{
    struct fetches *fetches = test_calloc(1, sizeof(*fetches));

    fetches->count = 1;
    fetches->slots[0] = slot;
    assert_int_equal(fetch_start(f, fetches), 0);
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

static void piece_done(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct piece *piece = (struct piece *)(void *)operation;

    (void)flags;
    assert_false(piece->done);
    piece->done = true;
    piece->result = result;
}

_Static_assert(offsetof(struct piece, operation) == 0, "the cast in piece_done()");

static void piece_finish(struct fixture *f, struct piece *piece)
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
static void pass_over(const char *reason)
{
    printf("# passed over: %s\n", reason);
}

/* False where the file system keeps pages; where it must not keep them, that is a failure. */
static bool is_bounded(struct fixture *f)
{
    long magic = harness_fs_magic(f->directory);

    if (figures(f).bounded)
        return true;
    assert_true(magic != EXT4_SUPER_MAGIC && magic != XFS_SUPER_MAGIC);
    pass_over("this file system keeps pages in memory");
    weir_region_close(f->region);
    return false;
}

/* Other items come until @slot leaves the memory. */
static void make_cold(struct fixture *f, struct weir_slot slot)
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
static void assert_bound_holds(struct fixture *f)
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

/* ---- Children --------------------------------------------------------------- */

/* What a child does ends in 0 or in the line that failed. */
#define CHILD_CHECK(x)                                                                             \
 do {                                                                                              \
  if (!(x))                                                                                        \
   return __LINE__;                                                                                \
 } while (0)

static int child_status(int (*run)(const char *directory), bool quiet)
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

static void assert_child_passes(int (*run)(const char *directory))
{
    int status = child_status(run, false);

    if (WIFSIGNALED(status))
        fail_msg("child died of signal %d", WTERMSIG(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

#ifdef NDEBUG
static const bool asserts_are_on = false;
#else
static const bool asserts_are_on = true;
#endif

static void assert_child_is_stopped(int (*run)(const char *directory))
{
    int status = child_status(run, true);

    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGABRT);
}

/* ---- Open and close ----------------------------------------------------------- */

static void closing_leaves_nothing(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){0});
    assert_int_equal(harness_name_count(f.directory), 0); /* not even while it is open */
    finish(&f);
    weir_region_close(NULL);
}

static void defaults_are_the_headers(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){0});
    struct weir_region_stats stats = figures(&f);
    assert_int_equal(stats.bytes_max, GIB);
    assert_int_equal(stats.resident_bytes_max, 64 * MIB);
    assert_int_equal(stats.file_bytes, 64 * MIB);
    assert_true(stats.disk_bytes >= 64 * MIB); /* a reservation: the blocks are there */
    assert_int_equal(stats.live_bytes, 0);
    assert_int_equal(stats.live_bytes_peak, 0);
    assert_int_equal(stats.slot_count, 0);
    assert_int_equal(stats.put_count, 0);
    assert_int_equal(stats.put_bytes, 0);
    assert_int_equal(stats.pinned_bytes, 0);
    assert_int_equal(stats.fetched_bytes, 0);
    assert_int_equal(stats.write_error_count, 0);
    assert_int_equal(stats.read_error_count, 0);
    assert_int_equal(stats.growth_error_count, 0);
    assert_true(stats.resident_bytes <= CHUNK_BYTES); /* the chunk of the probe was dropped */
    assert_true(stats.put_bytes_max >= 4 * KIB);
    assert_true(stats.fetch_bytes_max >= 4 * KIB);
    assert_false(stats.degraded);
    assert_false(stats.movable);
    finish(&f);
}

static void initial_is_cut_to_max(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){.bytes_max = 16 * MIB});
    assert_int_equal(figures(&f).bytes_max, 16 * MIB);
    assert_int_equal(figures(&f).file_bytes, 16 * MIB);
    finish(&f);

    start(&f, (struct weir_region_config){.bytes_initial = 4 * MIB, .bytes_max = 16 * MIB});
    assert_int_equal(figures(&f).file_bytes, 4 * MIB);
    finish(&f);
}

static void assert_open_fails(const struct weir_region_config *config, int error)
{
    struct weir_region *const mark = (struct weir_region *)(void *)&harness_is_synchronous;
    struct weir_region *region = mark;
    int fd_count = harness_fd_count();
    int map_count = harness_map_count(harness_tmpdir());

    assert_int_equal(weir_region_open(config, &region), error);
    assert_ptr_equal(region, mark);
    assert_int_equal(harness_fd_count(), fd_count);
    assert_int_equal(harness_map_count(harness_tmpdir()), map_count);
    assert_int_equal(harness_name_count(harness_tmpdir()), 0);
}

static void reserved_words_are_zero(void **state)
{
    (void)state;
    for (int i = 0; i < 8; i++) {
        struct weir_region_config config = {.directory = harness_tmpdir()};
        config.reserved[i] = UINT64_C(1) << (i * 8);
        assert_open_fails(&config, -EINVAL);
    }
}

static void a_directory_is_required(void **state)
{
    struct weir_region_config config = {0};

    (void)state;
    assert_open_fails(&config, -EINVAL);
}

static void a_bad_directory_says_what_open_says(void **state)
{
    struct weir_region_config config = {.directory = ""};
    char path[PATH_MAX + 16];

    (void)state;
    assert_open_fails(&config, -ENOENT);
    snprintf(path, sizeof(path), "%s/missing", harness_tmpdir());
    config.directory = path;
    assert_open_fails(&config, -ENOENT);
    config.directory = "/proc/self/status";
    assert_open_fails(&config, -ENOTDIR);
}

static int open_where_nobody_may(const char *directory)
{
    struct weir_region *region = NULL;
    struct weir_region_config config = {.directory = directory};

    if (geteuid() == 0)
        CHILD_CHECK(setresgid(65534, 65534, 65534) == 0 && setresuid(65534, 65534, 65534) == 0);
    else
        CHILD_CHECK(chmod(directory, 0500) == 0);
    int r = weir_region_open(&config, &region);
    if (geteuid() != 65534)
        CHILD_CHECK(chmod(directory, 0700) == 0);
    CHILD_CHECK(r == -EACCES);
    CHILD_CHECK(region == NULL);
    return 0;
}

static void a_directory_not_ours_is_refused(void **state)
{
    (void)state;
    assert_child_passes(open_where_nobody_may);
}

static void a_long_directory_name_is_fine(void **state)
{
    char path[1024];
    struct fixture f;
    size_t length = (size_t)snprintf(path, sizeof(path), "%s", harness_tmpdir());

    (void)state;
    begin(&f);
    for (int i = 0; i < 4; i++) {
        path[length++] = '/';
        memset(path + length, 'a' + i, 120);
        length += 120;
        path[length] = '\0';
        assert_int_equal(mkdir(path, 0700), 0);
    }
    int r = open_as(&f, (struct weir_region_config){.directory = path});
    if (r == 0) {
        assert_here(&f, put(&f, 1, 100), 100);
        weir_region_close(f.region);
    }
    for (int i = 0; i < 4; i++) {
        assert_int_equal(rmdir(path), 0);
        *strrchr(path, '/') = '\0';
    }
    assert_int_equal(r, 0);
    nothing_left(&f);
}

/* A directory of which only a descriptor is known: /proc has a name for it. */
static void a_descriptor_of_a_directory_will_do(void **state)
{
    struct fixture f;
    char name[64];
    int fd = open(harness_tmpdir(), O_PATH | O_DIRECTORY | O_CLOEXEC);

    (void)state;
    assert_true(fd >= 0);
    snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
    start(&f, (struct weir_region_config){.directory = name});
    assert_whole(&f, put(&f, 1, 100000));
    finish(&f);
    close(fd);
}

static void the_largest_region_is_a_tebibyte(void **state)
{
    struct weir_region_config config = {.directory = harness_tmpdir(), .bytes_max = TIB + 1};
    struct fixture f;

    (void)state;
    assert_open_fails(&config, -EINVAL);
    config.bytes_max = UINT64_MAX;
    assert_open_fails(&config, -EINVAL);

    uint64_t address_bytes = harness_address_bytes();
    start(&f, (struct weir_region_config){.bytes_initial = 4 * MIB, .bytes_max = TIB});
    assert_int_equal(figures(&f).bytes_max, TIB);
    assert_true(figures(&f).metadata_bytes <
                64 * MIB); /* an empty region is not a charge of its own */
    assert_here(&f, put(&f, 1, 1000), 1000);
    finish(&f);
    assert_true(harness_address_bytes() < address_bytes + GIB); /* the reservation is gone too */
}

static void resident_has_a_least_value(void **state)
{
    struct weir_region_config config = {
        .directory = harness_tmpdir(),
        .resident_bytes_max = RESIDENT_MIN - 1,
    };
    struct fixture f;

    (void)state;
    assert_open_fails(&config, -EINVAL);
    config.resident_bytes_max = 1;
    assert_open_fails(&config, -EINVAL);
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    assert_int_equal(figures(&f).resident_bytes_max, RESIDENT_MIN);
    finish(&f);
    start(&f, (struct weir_region_config){.resident_bytes_max = UINT64_MAX});
    finish(&f);
}

static void small_regions_work_or_are_refused(void **state)
{
    static const uint64_t sizes[] = {
        1, 4096, 65536, MIB, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * MIB + 5, 4 * MIB, 8 * MIB - 4096};

    (void)state;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct fixture f;
        begin(&f);
        int r = open_as(&f, (struct weir_region_config){.bytes_max = sizes[i]});
        assert_true(r == 0 || r == -EINVAL);
        if (r == 0) {
            struct weir_slot slot;
            f.data_fd = harness_data_fd(f.directory, f.marks);
            assert_true(figures(&f).bytes_max <= sizes[i]);
            r = try_put(&f, 1, 16, 0, &slot);
            assert_true(r == 0 || r == -EDQUOT || r == -EFBIG);
            weir_region_audit(f.region);
            weir_region_close(f.region);
        }
        nothing_left(&f);
    }
}

static void memory_is_no_place_for_overflow(void **state)
{
    struct weir_region_config config = {.directory = "/dev/shm"};
    struct weir_region *region = NULL;
    struct weir_region_stats stats;
    struct weir_slot slot;
    const void *data;
    size_t bytes;

    (void)state;
    if (!harness_is_memory("/dev/shm") || access("/dev/shm", W_OK) < 0) {
        pass_over("/dev/shm is no memory that we may write to");
        return;
    }
    assert_open_fails(&config, -EOPNOTSUPP);

    int fd_count = harness_fd_count();
    int name_count = harness_name_count("/dev/shm");
    config.memory_backed = true;
    config.bytes_initial = 4 * MIB;
    config.bytes_max = 64 * MIB;
    assert_int_equal(weir_region_open(&config, &region), 0);
    for (uint32_t i = 0; i < 200; i++) {
        char item[64 * 1024];
        harness_fill(item, sizeof(item), i, 0);
        assert_int_equal(
            weir_region_put(region, item, sizeof(item), (struct weir_label){i, 1}, &slot), 0);
    }
    assert_int_equal(weir_region_at(region, slot, &data, &bytes),
                     0); /* no item is ever cold there */
    assert_pattern(data, bytes, 199, 0);
    weir_region_stats(region, &stats);
    assert_true(stats.resident_bytes >= stats.live_bytes); /* and every byte counts */
    weir_region_audit(region);
    weir_region_close(region);
    assert_int_equal(harness_fd_count(), fd_count);
    assert_int_equal(harness_name_count("/dev/shm"), name_count);
}

static void the_books_end_at_zero(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){.bytes_initial = 4 * MIB, .bytes_max = 256 * MIB});
    uint64_t before = figures(&f).metadata_bytes;
    assert_true(before > 0);
    for (uint64_t i = 0; i < 100000; i++) {
        put(&f, i, 16);
        if (i % 1000 == 0) {
            assert_true(poll_once(&f) >= 0);
            figures(&f);
        }
    }
    assert_true(figures(&f).metadata_bytes > before);
    /* At most 48 bytes for each extent, and 2 MiB. */
    assert_in_range(figures(&f).metadata_bytes, 0, 100000 * 48 + 2 * MIB);
    finish(&f);
}

/* Before the next entry needs it, and without a put that made it. */
static void tables_grow_ahead_of_need(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){.bytes_initial = 4 * MIB, .bytes_max = 256 * MIB});
    uint64_t before = figures(&f).metadata_bytes;
    for (uint64_t i = 0; i < 2600; i++) /* of 4096 at least */
        put(&f, i, 16);
    for (int i = 0; i < 1000 && figures(&f).metadata_bytes == before; i++)
        assert_true(wait_once(&f) >= 0);
    assert_true(figures(&f).metadata_bytes > before);
    finish(&f);
}

/* So many that their tables come by large pages, where the kernel has them. */
static void many_small_items_are_whole(void **state)
{
    const uint32_t count = 600000;
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){.bytes_initial = 4 * MIB, .bytes_max = 64 * MIB});
    struct weir_slot *slots = test_calloc(count, sizeof(*slots));
    for (uint64_t i = 0; i < count; i++) {
        assert_int_equal(
            weir_region_put(f.region, &i, sizeof(i), (struct weir_label){.key = i}, &slots[i]), 0);
        if (i % 1000 == 0)
            assert_true(wait_once(&f) >= 0);
    }
    assert_in_range(figures(&f).metadata_bytes, 0, count * 48 + 2 * MIB);
    weir_region_audit(f.region);
    for (uint64_t i = 0; i < count; i++) {
        const void *data;
        size_t bytes;
        assert_int_equal(weir_region_at(f.region, slots[i], &data, &bytes), 0);
        assert_int_equal(bytes, sizeof(i));
        assert_memory_equal(data, &i, sizeof(i));
        assert_int_equal(info_of(&f, slots[i]).label.key, i);
    }
    test_free(slots);
    finish(&f);
}

static int open_under_file_limits(const char *directory)
{
    static const uint64_t hopeless[] = {0, 1, 4096, 65536};
    struct weir_region_config config = {.directory = directory, .bytes_initial = 2 * MIB};
    struct weir_region_stats stats;
    struct weir_region *region = NULL;
    struct rlimit limit;

    /* SIGXFSZ is not handled here: whoever passes the limit dies. */
    CHILD_CHECK(getrlimit(RLIMIT_FSIZE, &limit) == 0);
    for (size_t i = 0; i < sizeof(hopeless) / sizeof(hopeless[0]); i++) {
        limit.rlim_cur = hopeless[i];
        CHILD_CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
        CHILD_CHECK(weir_region_open(&config, &region) == -EDQUOT);
        CHILD_CHECK(region == NULL);
    }

    limit.rlim_cur = 32 * MIB;
    CHILD_CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    CHILD_CHECK(weir_region_open(&config, &region) == 0);
    weir_region_stats(region, &stats);
    CHILD_CHECK(stats.bytes_max <= 32 * MIB);

    static char item[65536];
    struct weir_slot slot;
    uint64_t put_bytes = 0;
    int r;
    while ((r = weir_region_put(region, item, sizeof(item), (struct weir_label){0}, &slot)) == 0) {
        put_bytes += sizeof(item);
        CHILD_CHECK(put_bytes < GIB);
    }
    CHILD_CHECK(r == -EDQUOT);
    CHILD_CHECK(put_bytes >= 8 * MIB);
    weir_region_audit(region);
    weir_region_close(region);
    return 0;
}

static void the_largest_file_allowed_is_a_limit(void **state)
{
    (void)state;
    assert_child_passes(open_under_file_limits);
}

static int open_without_address_space(const char *directory)
{
    struct weir_region_config config = {
        .directory = directory,
        .bytes_initial = 4 * MIB,
        .bytes_max = TIB,
    };
    struct weir_region_stats stats;
    struct weir_region *region = NULL;
    struct rlimit limit;
    static char item[65536];
    static struct weir_slot slots[1024];

    CHILD_CHECK(getrlimit(RLIMIT_AS, &limit) == 0);
    limit.rlim_cur = harness_address_bytes() + GIB;
    CHILD_CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
    CHILD_CHECK(weir_region_open(&config, &region) == 0);
    weir_region_stats(region, &stats);
    CHILD_CHECK(stats.movable);
    for (uint64_t i = 0; i < 1024; i++) {
        harness_fill(item, sizeof(item), i, 0);
        CHILD_CHECK(
            weir_region_put(region, item, sizeof(item), (struct weir_label){i, 0}, &slots[i]) == 0);
    }
    for (uint64_t i = 0; i < 1024; i++) {
        size_t bytes = 0;
        CHILD_CHECK(weir_region_read(region, slots[i], 0, item, sizeof(item), &bytes) == 0);
        CHILD_CHECK(bytes == sizeof(item) && harness_differs_at(item, bytes, i, 0) == bytes);
    }
    weir_region_audit(region);
    weir_region_close(region);
    return 0;
}

/* A pin keeps the address, also where growth would move it. */
static int pin_without_address_space(const char *directory)
{
    struct weir_region_config config = {
        .directory = directory,
        .bytes_initial = 4 * MIB,
        .bytes_max = TIB,
        .resident_bytes_max = UINT64_MAX,
    };
    struct weir_region *region = NULL;
    struct rlimit limit;
    static char item[65536];
    struct weir_slot first;
    struct weir_slot slot;
    const void *data;
    int r = 0;

    CHILD_CHECK(getrlimit(RLIMIT_AS, &limit) == 0);
    limit.rlim_cur = harness_address_bytes() + GIB;
    CHILD_CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
    CHILD_CHECK(weir_region_open(&config, &region) == 0);
    harness_fill(item, sizeof(item), 1, 0);
    CHILD_CHECK(weir_region_put(region, item, sizeof(item), (struct weir_label){1, 0}, &first) ==
                0);
    CHILD_CHECK(weir_region_pin(region, first, &data, NULL) == 0);
    for (uint64_t i = 0; i < 2048 && r == 0; i++) {
        r = weir_region_put(region, item, sizeof(item), (struct weir_label){i, 0}, &slot);
        CHILD_CHECK(r == 0 || r == -ENOMEM || r == -EAGAIN);
        CHILD_CHECK(weir_region_poll(region) >= 0);
        CHILD_CHECK(harness_differs_at(data, sizeof(item), 1, 0) == sizeof(item));
    }
    weir_region_unpin(region, first);
    CHILD_CHECK(weir_region_put(region, item, sizeof(item), (struct weir_label){1, 0}, &slot) == 0);
    weir_region_audit(region);
    weir_region_close(region);
    return 0;
}

static void a_pin_holds_without_address_space(void **state)
{
    (void)state;
    assert_child_passes(pin_without_address_space);
}

static void without_address_space_the_mapping_moves(void **state)
{
    (void)state;
    assert_child_passes(open_without_address_space);
}

static void a_floor_above_free_space_is_enospc(void **state)
{
    struct weir_region_config config = {
        .directory = harness_tmpdir(),
        .disk_floor_bytes = UINT64_MAX,
    };

    (void)state;
    assert_open_fails(&config, -ENOSPC);
    config.disk_floor_bytes = UINT64_MAX / 2;
    assert_open_fails(&config, -ENOSPC);
}

static void a_failed_open_leaks_no_descriptor(void **state)
{
    struct weir_region_config config = {.directory = harness_tmpdir(), .bytes_initial = 4 * MIB};
    struct weir_region *region = NULL;
    struct rlimit limit;
    struct rlimit before;
    int fd_count = harness_fd_count();
    int failures = 0;
    int r = -EMFILE;

    (void)state;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    for (rlim_t fds = 1; fds < 64 && r != 0; fds++) {
        limit = before;
        limit.rlim_cur = fds;
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
        r = weir_region_open(&config, &region);
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
        assert_true(r == 0 || r == -EMFILE);
        if (r == 0)
            weir_region_close(region);
        failures += r < 0;
        assert_int_equal(harness_fd_count(), fd_count);
        assert_int_equal(harness_name_count(harness_tmpdir()), 0);
    }
    assert_int_equal(r, 0);
    assert_true(failures >= 3);
}

static int put_and_die(const char *directory)
{
    struct weir_region_config config = {.directory = directory};
    struct weir_region *region;
    struct weir_slot slot;

    CHILD_CHECK(weir_region_open(&config, &region) == 0);
    for (int i = 0; i < 100; i++)
        CHILD_CHECK(weir_region_put(region, config.directory, 10, (struct weir_label){0}, &slot) ==
                    0);
    kill(getpid(), SIGKILL);
    return __LINE__;
}

static void nothing_is_left_after_a_crash(void **state)
{
    (void)state;
    int status = child_status(put_and_die, false);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_int_equal(harness_name_count(harness_tmpdir()), 0);
}

static void payload_stays_out_of_dumps_and_children(void **state)
{
    struct fixture f;
    char line[4096];
    char flags[4096] = "";
    const char *at;
    bool is_ours = false;

    (void)state;
    start(&f, (struct weir_region_config){0});
    at = assert_here(&f, put(&f, 1, 100), 100);
    FILE *maps = fopen("/proc/self/smaps", "re");
    assert_non_null(maps);
    while (fgets(line, sizeof(line), maps) != NULL) {
        unsigned long low;
        unsigned long high;
        if (sscanf(line, "%lx-%lx ", &low, &high) == 2)
            is_ours = (uintptr_t)at >= low && (uintptr_t)at < high;
        else if (is_ours && strncmp(line, "VmFlags:", 8) == 0)
            snprintf(flags, sizeof(flags), "%s", line);
    }
    fclose(maps);
    assert_non_null(strstr(flags, " dd")); /* not dumped */
    assert_non_null(strstr(flags, " dc")); /* not copied on fork */
    finish(&f);
}

static void no_descriptor_survives_exec(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){0});
    for (int fd = 3; fd < 256; fd++) {
        int flags = fcntl(fd, F_GETFD);
        if (fd == f.data_fd || fd == weir_region_fd(f.region))
            assert_true((flags & FD_CLOEXEC) != 0);
    }
    finish(&f);
}

static void close_with_work_under_way(void **state)
{
    struct fixture f;
    struct weir_slot slots[256];
    char *buffer = test_malloc(4 * KIB);
    struct piece piece = {.operation = {operation_never_completed}};

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    for (uint64_t i = 0; i < 256; i++)
        slots[i] = put(&f, i, 4 * KIB);
    make_cold(&f, slots[255]);
    assert_int_equal(weir_region_fetch(f.region, slots, 200, never_called, NULL), 0);
    assert_int_equal(
        weir_region_fetch_into(f.region, slots[201], 0, buffer, 4 * KIB, &piece.operation), 0);
    weir_region_close(f.region); /* calls back nothing */
    test_free(buffer);
    nothing_left(&f);
}

static int open_here_and_leave(const char *directory)
{
    struct weir_region_config config = {.directory = ".", .bytes_initial = 2 * MIB};
    struct weir_region *region;
    static char item[65536];
    char path[PATH_MAX + 16];
    struct weir_slot slot;

    snprintf(path, sizeof(path), "%s/gone", directory);
    CHILD_CHECK(mkdir(path, 0700) == 0);
    CHILD_CHECK(chdir(path) == 0);
    CHILD_CHECK(weir_region_open(&config, &region) == 0);
    CHILD_CHECK(chdir("/") == 0);
    CHILD_CHECK(rmdir(path) == 0);
    for (int i = 0; i < 1000; i++)
        CHILD_CHECK(weir_region_put(region, item, sizeof(item), (struct weir_label){0, 0}, &slot) ==
                    0);
    weir_region_audit(region);
    weir_region_close(region);
    return 0;
}

static void the_directory_may_go_away(void **state)
{
    (void)state;
    assert_child_passes(open_here_and_leave);
}

static void a_first_reservation_beyond_the_largest_file(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f);
    int r = open_as(&f, (struct weir_region_config){.bytes_initial = GIB, .bytes_max = 16 * MIB});
    assert_true(r == 0 || r == -EINVAL);
    if (r == 0) {
        f.data_fd = harness_data_fd(f.directory, f.marks);
        assert_int_equal(figures(&f).file_bytes, 16 * MIB);
        weir_region_close(f.region);
    }
    nothing_left(&f);
}

static void many_regions_at_once(void **state)
{
    struct weir_region *regions[64];
    struct weir_slot slots[64];
    struct weir_region_config config = {.directory = harness_tmpdir(), .bytes_initial = 2 * MIB};
    int fd_count = harness_fd_count();
    int map_count = harness_map_count(config.directory);

    (void)state;
    for (uint64_t i = 0; i < 64; i++) {
        assert_int_equal(weir_region_open(&config, &regions[i]), 0);
        assert_int_equal(
            weir_region_put(regions[i], &i, sizeof(i), (struct weir_label){i, 1}, &slots[i]), 0);
    }
    for (uint64_t i = 0; i < 64; i++) {
        const void *data;
        size_t bytes;
        assert_int_equal(weir_region_at(regions[i], slots[i], &data, &bytes), 0);
        assert_int_equal(bytes, sizeof(i));
        assert_memory_equal(data, &i, sizeof(i));
        assert_int_equal(weir_region_at(regions[(i + 1) % 64], slots[i], &data, &bytes), -ESTALE);
    }
    for (int i = 0; i < 64; i++)
        weir_region_close(regions[(i * 37) % 64]);
    assert_int_equal(harness_fd_count(), fd_count);
    assert_int_equal(harness_map_count(config.directory), map_count);
}

/* ---- Items in ------------------------------------------------------------------ */

static void an_item_comes_back_byte_for_byte(void **state)
{
    static const size_t sizes[] = {1,    2,    15,   16,    17,    31,    32,    33,     63,
                                   64,   65,   100,  255,   1000,  4095,  4096,  4097,   8191,
                                   8192, 8193, 9999, 65535, 65536, 65537, 99999, 262144, 500000};
    struct weir_slot slots[sizeof(sizes) / sizeof(sizes[0])];
    struct fixture f;
    uint64_t live = 0;

    (void)state;
    start(&f, (struct weir_region_config){0});
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        slots[i] = put(&f, i, sizes[i]);
        live += sizes[i];
        weir_region_audit(f.region);
        struct weir_region_stats stats = figures(&f);
        assert_int_equal(stats.live_bytes, live);
        assert_int_equal(stats.slot_count, i + 1);
        assert_int_equal(stats.put_count, i + 1);
        assert_int_equal(stats.put_bytes, live);
    }
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        assert_here(&f, slots[i], sizes[i]);
        assert_whole(&f, slots[i]);
    }
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i += 2) {
        assert_int_equal(weir_region_free(f.region, slots[i]), 0);
        weir_region_audit(f.region);
        live -= sizes[i];
        assert_int_equal(figures(&f).live_bytes, live);
    }
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        if (i % 2 == 0)
            assert_stale(&f, slots[i]);
        else
            assert_here(&f, slots[i], sizes[i]);
    }
    finish(&f);
}

static void an_item_of_no_bytes_is_an_item(void **state)
{
    struct fixture f;
    struct weir_slot a = {0, 0};
    struct weir_slot b = {0, 0};
    size_t bytes = 1;
    char byte = 'x';

    (void)state;
    start(&f, (struct weir_region_config){0});
    assert_int_equal(weir_region_put(f.region, NULL, 0, (struct weir_label){1, 2}, &a), 0);
    assert_int_equal(weir_region_put(f.region, "", 0, (struct weir_label){3, 4}, &b), 0);
    assert_false(weir_slot_is_none(a));
    assert_true(a.index != b.index);
    assert_here(&f, a, 0);
    assert_here(&f, b, 0);
    assert_int_equal(info_of(&f, a).label.key, 1);
    assert_int_equal(info_of(&f, b).label.key, 3);
    assert_int_equal(weir_region_read(f.region, a, 0, &byte, 1, &bytes), 0);
    assert_int_equal(bytes, 0);
    assert_int_equal(byte, 'x');
    fetch_one(&f, a, 0);
    assert_int_equal(figures(&f).live_bytes, 0);
    assert_int_equal(figures(&f).slot_count, 2);
    assert_int_equal(weir_region_free(f.region, a), 0);
    assert_stale(&f, a);
    assert_here(&f, b, 0);
    finish(&f);
}

static void an_item_of_no_bytes_goes_cold_too(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    struct weir_slot slot = put(&f, 5, 0);
    struct weir_slot next = put(&f, 6, 100);
    make_cold(&f, next);
    size_t bytes = 1;
    char byte;
    assert_int_equal(weir_region_read(f.region, slot, 0, &byte, 1, &bytes), 0);
    assert_int_equal(bytes, 0);
    fetch_one(&f, slot, 0);
    finish(&f);
}

static void labels_are_kept(void **state)
{
    static const struct weir_label labels[] = {
        {0, 0}, {UINT64_MAX, UINT16_MAX}, {1, 0}, {0, 1}, {UINT64_C(1) << 63, 1u << 15}};
    struct weir_slot slots[5];
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){0});
    for (int i = 0; i < 5; i++)
        assert_int_equal(weir_region_put(f.region, "abc", 3, labels[i], &slots[i]), 0);
    for (int i = 0; i < 5; i++) {
        struct weir_slot_info info = info_of(&f, slots[i]);
        assert_int_equal(info.label.key, labels[i].key);
        assert_int_equal(info.label.owner, labels[i].owner);
        assert_int_equal(info.bytes, 3);
        assert_true(info.committed);
        assert_true(info.resident);
    }
    finish(&f);
}

static void assert_same_items(const struct weir_region_stats *a, const struct weir_region_stats *b)
{
    assert_int_equal(a->live_bytes, b->live_bytes);
    assert_int_equal(a->slot_count, b->slot_count);
    assert_int_equal(a->put_count, b->put_count);
    assert_int_equal(a->put_bytes, b->put_bytes);
    assert_int_equal(a->mark_bytes, b->mark_bytes);
    assert_int_equal(a->free_bytes, b->free_bytes);
    assert_int_equal(a->free_extent_count, b->free_extent_count);
}

static void the_largest_put(void **state)
{
    struct fixture f;
    struct weir_slot none = {4711, 4712};

    (void)state;
    start(&f, (struct weir_region_config){0});
    struct weir_region_stats before = figures(&f);
    size_t most = before.put_bytes_max;
    struct weir_slot slot = put(&f, 42, most);
    assert_here(&f, slot, most);
    assert_whole(&f, slot);
    before = figures(&f);
    assert_int_equal(try_put(&f, 43, most + 1, 0, &none), -EFBIG);
    assert_int_equal(weir_region_put(f.region, "x", SIZE_MAX, (struct weir_label){0}, &none),
                     -EFBIG);
    assert_int_equal(weir_region_put(f.region, "x", SIZE_MAX - 15, (struct weir_label){0}, &none),
                     -EFBIG);
    assert_int_equal(none.index, 4711);
    assert_int_equal(none.generation, 4712);
    struct weir_region_stats after = figures(&f);
    assert_same_items(&before, &after);
    finish(&f);
}

/* The whole item @seed, in pieces of at most @piece_bytes. */
static int write_pieces(struct fixture *f, struct weir_slot slot, uint64_t seed, uint64_t bytes,
                        uint64_t piece_bytes)
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

static void assert_whole_in_pieces(struct fixture *f, struct weir_slot slot, uint64_t piece_bytes)
{
    struct weir_slot_info info = info_of(f, slot);
    char *piece = test_malloc(piece_bytes);

    for (uint64_t at = 0; at < info.bytes; at += piece_bytes) {
        size_t bytes = 0;
        uint64_t now = info.bytes - at < piece_bytes ? info.bytes - at : piece_bytes;
        assert_int_equal(weir_region_read(f->region, slot, at, piece, piece_bytes, &bytes), 0);
        assert_int_equal(bytes, now);
        assert_pattern(piece, bytes, info.label.key, at);
    }
    test_free(piece);
}

static void the_largest_item_comes_in_pieces(void **state)
{
    struct fixture f;
    struct weir_slot slot = {0, 0};
    struct weir_slot none = {4711, 4712};

    (void)state;
    start(&f, (struct weir_region_config){
                  .bytes_max = 128 * MIB,
                  .resident_bytes_max = RESIDENT_MIN,
              });
    if (!is_bounded(&f))
        return;
    struct weir_region_stats stats = figures(&f);
    uint64_t most = stats.item_bytes_max;
    assert_true(most >= 16 * MIB); /* a stated fraction, not a token */
    assert_int_equal(weir_region_alloc(f.region, most + 1, (struct weir_label){0}, &none), -EFBIG);
    assert_int_equal(weir_region_alloc(f.region, SIZE_MAX, (struct weir_label){0}, &none), -EFBIG);
    assert_int_equal(none.index, 4711);
    assert_int_equal(figures(&f).slot_count, 0);

    assert_int_equal(weir_region_alloc(f.region, most, (struct weir_label){77, 1}, &slot), 0);
    weir_region_audit(f.region);
    assert_int_equal(write_pieces(&f, slot, 77, most, stats.put_bytes_max), 0);
    assert_bound_holds(&f);
    assert_int_equal(weir_region_commit(f.region, slot), 0);
    weir_region_audit(f.region);
    assert_int_equal(info_of(&f, slot).bytes, most);
    assert_whole_in_pieces(&f, slot, 333333);
    assert_bound_holds(&f);
    assert_int_equal(weir_region_free(f.region, slot), 0);
    assert_stale(&f, slot);
    finish(&f);
}

static void an_item_larger_than_memory(void **state)
{
    struct fixture f;
    struct weir_slot slot = {0, 0};
    const void *data;
    uint64_t bytes = 24 * MIB;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    struct weir_region_stats stats = figures(&f);
    assert_true(stats.item_bytes_max >= bytes);
    assert_true(stats.fetch_bytes_max < bytes);
    assert_int_equal(weir_region_alloc(f.region, bytes, (struct weir_label){78, 1}, &slot), 0);
    assert_int_equal(write_pieces(&f, slot, 78, bytes, 100000), 0);
    assert_int_equal(weir_region_commit(f.region, slot), 0);
    assert_bound_holds(&f);
    assert_int_equal(weir_region_at(f.region, slot, &data, NULL), -EAGAIN);
    assert_int_equal(weir_region_pin(f.region, slot, &data, NULL), -EAGAIN);
    assert_int_equal(weir_region_fetch(f.region, &slot, 1, never_called, NULL), -EFBIG);

    /* One that is too large spoils the call for all, and changes nothing. */
    struct weir_slot both[2] = {put(&f, 1, 10), slot};
    assert_int_equal(weir_region_fetch(f.region, both, 2, never_called, NULL), -EFBIG);
    for (int i = 0; i < 10; i++)
        assert_true(wait_once(&f) >= 0);

    char *buffer = test_malloc(MIB);
    for (uint64_t at = 0; at < bytes; at += MIB) {
        struct piece piece = {.operation = {piece_done}, .f = &f};
        memset(buffer, 0xee, MIB);
        assert_int_equal(weir_region_fetch_into(f.region, slot, at, buffer, MIB, &piece.operation),
                         0);
        assert_false(piece.done); /* never from the call */
        piece_finish(&f, &piece);
        assert_int_equal(piece.result, MIB);
        assert_pattern(buffer, MIB, 78, at);
    }
    test_free(buffer);
    assert_whole(&f, slot); /* read at once, verified */
    assert_bound_holds(&f);
    finish(&f);
}

static void pieces_come_in_order(void **state)
{
    struct fixture f;
    struct weir_slot slot = {0, 0};
    char bytes[1000];

    (void)state;
    start(&f, (struct weir_region_config){0});
    harness_fill(bytes, sizeof(bytes), 9, 0);
    assert_int_equal(weir_region_alloc(f.region, 1000, (struct weir_label){9, 1}, &slot), 0);
    assert_false(info_of(&f, slot).committed);
    assert_int_equal(info_of(&f, slot).bytes, 1000);
    assert_int_equal(weir_region_write(f.region, slot, 1, bytes + 1, 10), -EINVAL);   /* a gap */
    assert_int_equal(weir_region_write(f.region, slot, 0, bytes, 1001), -EINVAL);     /* too long */
    assert_int_equal(weir_region_write(f.region, slot, 0, bytes, SIZE_MAX), -EINVAL); /* wraps */
    assert_int_equal(weir_region_write(f.region, slot, UINT64_MAX, bytes, 1), -EINVAL);
    assert_int_equal(weir_region_commit(f.region, slot), -EINVAL);
    assert_int_equal(weir_region_write(f.region, slot, 0, bytes, 300), 0);
    assert_int_equal(weir_region_write(f.region, slot, 0, bytes, 300), -EINVAL); /* again */
    assert_int_equal(weir_region_write(f.region, slot, 299, bytes, 2), -EINVAL); /* an overlap */
    assert_int_equal(weir_region_write(f.region, slot, 301, bytes, 2), -EINVAL);
    assert_int_equal(weir_region_write(f.region, slot, 300, bytes, 701), -EINVAL);
    assert_int_equal(weir_region_write(f.region, slot, 300, NULL, 0), 0);
    assert_int_equal(weir_region_write(f.region, slot, 300, bytes + 300, 699), 0);
    assert_int_equal(weir_region_commit(f.region, slot), -EINVAL); /* a byte is missing */
    assert_false(info_of(&f, slot).committed);
    assert_int_equal(weir_region_write(f.region, slot, 999, bytes + 999, 1), 0);
    assert_int_equal(weir_region_write(f.region, slot, 1000, bytes, 1), -EINVAL);
    assert_int_equal(weir_region_commit(f.region, slot), 0);
    assert_here(&f, slot, 1000);
    /* What is committed is not written again. */
    assert_true(weir_region_write(f.region, slot, 0, bytes, 1) < 0);
    assert_true(weir_region_write(f.region, slot, 1000, bytes, 0) <= 0);
    assert_true(weir_region_commit(f.region, slot) < 0);
    assert_here(&f, slot, 1000);
    finish(&f);
}

static void a_piece_has_a_largest_size(void **state)
{
    struct fixture f;
    struct weir_slot slot;

    (void)state;
    start(&f, (struct weir_region_config){0});
    size_t most = figures(&f).put_bytes_max;
    char *bytes = test_calloc(1, most + 1);
    harness_fill(bytes, most + 1, 5, 0);
    assert_int_equal(weir_region_alloc(f.region, most + 1, (struct weir_label){5, 0}, &slot), 0);
    assert_int_equal(weir_region_write(f.region, slot, 0, bytes, most + 1), -EINVAL);
    assert_int_equal(weir_region_write(f.region, slot, 0, bytes, most), 0);
    assert_int_equal(weir_region_write(f.region, slot, most, bytes + most, 1), 0);
    assert_int_equal(weir_region_commit(f.region, slot), 0);
    assert_whole(&f, slot);
    test_free(bytes);
    finish(&f);
}

static void an_unfinished_item_cannot_be_read(void **state)
{
    struct fixture f;
    struct weir_slot slot;
    const void *data = &f;
    size_t bytes = 4711;
    char buffer[8] = "before";
    struct fetches *fetches = test_calloc(1, sizeof(*fetches));
    struct weir_operation operation = {operation_never_completed};

    (void)state;
    start(&f, (struct weir_region_config){0});
    assert_int_equal(weir_region_alloc(f.region, 6, (struct weir_label){1, 3}, &slot), 0);
    assert_int_equal(weir_region_write(f.region, slot, 0, "secret", 6), 0);
    assert_true(weir_region_at(f.region, slot, &data, &bytes) < 0);
    assert_true(weir_region_pin(f.region, slot, &data, &bytes) < 0);
    assert_true(weir_region_read(f.region, slot, 0, buffer, 6, &bytes) < 0);
    assert_true(weir_region_fetch_into(f.region, slot, 0, buffer, 6, &operation) < 0);
    assert_ptr_equal(data, &f);
    assert_int_equal(bytes, 4711);
    assert_string_equal(buffer, "before");
    assert_false(info_of(&f, slot).resident);
    fetches->count = 1;
    fetches->slots[0] = slot;
    assert_int_equal(fetch_start(&f, fetches), 0);
    fetch_finish(&f, fetches);
    assert_true(fetches->results[0] < 0);
    assert_int_equal(weir_region_commit(f.region, slot), 0);
    assert_int_equal(weir_region_at(f.region, slot, &data, &bytes), 0);
    assert_memory_equal(data, "secret", 6);
    test_free(fetches);
    finish(&f);
}

static void an_unfinished_item_is_given_up_by_free(void **state)
{
    struct fixture f;
    struct weir_slot slot;

    (void)state;
    start(&f, (struct weir_region_config){0});
    uint64_t mark = figures(&f).mark_bytes;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(weir_region_alloc(f.region, 100000, (struct weir_label){1, 3}, &slot), 0);
        assert_int_equal(write_pieces(&f, slot, 1, (uint64_t)i * 50000, 10000), 0);
        assert_int_equal(weir_region_free(f.region, slot), 0);
        weir_region_audit(f.region);
        assert_stale(&f, slot);
    }
    assert_int_equal(figures(&f).mark_bytes, mark);
    assert_int_equal(figures(&f).slot_count, 0);
    assert_int_equal(figures(&f).live_bytes, 0);
    finish(&f);
}

static void several_items_are_built_at_once(void **state)
{
    struct fixture f;
    struct weir_slot slots[8];
    char bytes[1000];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    for (uint64_t i = 0; i < 8; i++)
        assert_int_equal(
            weir_region_alloc(f.region, 600 * 1000, (struct weir_label){i, 3}, &slots[i]), 0);
    for (uint64_t at = 0; at < 600 * 1000; at += 1000) {
        for (uint64_t i = 0; i < 8; i++) {
            harness_fill(bytes, 1000, i, at);
            assert_int_equal(weir_region_write(f.region, slots[i], at, bytes, 1000), 0);
        }
        if (at % 100000 == 0) {
            struct weir_slot other;
            assert_int_equal(try_put(&f, at, 300000, OWNER_FILLER, &other), 0);
            weir_region_audit(f.region);
        }
    }
    for (int i = 0; i < 8; i++)
        assert_int_equal(weir_region_commit(f.region, slots[i]), 0);
    for (int i = 0; i < 8; i++)
        assert_whole(&f, slots[i]);
    assert_bound_holds(&f);
    finish(&f);
}

static void an_item_of_no_bytes_is_whole_at_once(void **state)
{
    struct fixture f;
    struct weir_slot slot;

    (void)state;
    start(&f, (struct weir_region_config){0});
    assert_int_equal(weir_region_alloc(f.region, 0, (struct weir_label){1, 3}, &slot), 0);
    assert_int_equal(weir_region_write(f.region, slot, 0, "x", 1), -EINVAL);
    assert_int_equal(weir_region_commit(f.region, slot), 0);
    assert_here(&f, slot, 0);
    finish(&f);
}

static void a_pinned_item_can_be_put_again(void **state)
{
    struct fixture f;
    struct weir_slot copies[512];
    const void *data;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    struct weir_slot first = put(&f, 77, 50000);
    assert_int_equal(weir_region_pin(f.region, first, &data, NULL), 0);
    for (int i = 0; i < 512; i++) /* from its own address, while all else goes cold */
        assert_int_equal(
            weir_region_put(f.region, data, 50000, (struct weir_label){77, 1}, &copies[i]), 0);
    for (int i = 0; i < 512; i++)
        assert_whole(&f, copies[i]);
    assert_here(&f, first, 50000);
    weir_region_unpin(f.region, first);
    finish(&f);
}

/* ---- Space --------------------------------------------------------------------- */

static void growth_keeps_every_byte_and_the_address(void **state)
{
    struct fixture f;
    static struct weir_slot slots[2048];
    const void *data;
    uint64_t steps = 0;

    (void)state;
    start(&f, (struct weir_region_config){
                  .bytes_initial = 2 * MIB,
                  .bytes_max = 256 * MIB,
                  .resident_bytes_max = UINT64_MAX,
              });
    uint64_t file_bytes = figures(&f).file_bytes;
    assert_true(file_bytes <= 4 * MIB);
    struct weir_slot first = put(&f, 1000000, 1000);
    assert_int_equal(weir_region_pin(f.region, first, &data, NULL), 0);
    for (uint64_t i = 0; i < 2048; i++) {
        slots[i] = put(&f, i, 60000);
        if (i % 3 == 0)
            assert_true(poll_once(&f) >= 0);
        struct weir_region_stats stats = figures(&f);
        assert_true(stats.file_bytes >= file_bytes);
        steps += stats.file_bytes > file_bytes;
        file_bytes = stats.file_bytes;
        if (i % 64 == 0)
            weir_region_audit(f.region);
    }
    assert_true(steps >= 3);
    assert_ptr_equal(assert_here(&f, first, 1000), data);
    weir_region_unpin(f.region, first);
    for (int i = 0; i < 2048; i++)
        assert_here(&f, slots[i], 60000); /* UINT64_MAX: all of it is in memory */
    finish(&f);
}

static void at_bytes_max_and_on_again_after_frees(void **state)
{
    struct fixture f;
    static struct weir_slot slots[16384];
    struct weir_slot none = {4711, 4712};
    size_t count = 0;
    int r;

    (void)state;
    start(&f, (struct weir_region_config){
                  .bytes_initial = 4 * MIB,
                  .bytes_max = 32 * MIB,
                  .resident_bytes_max = UINT64_MAX,
              });
    while ((r = try_put(&f, count, 4000, OWNER_DEFAULT, &slots[count])) == 0)
        count++;
    assert_int_equal(r, -EDQUOT);
    assert_true(count * 4000 >= 30 * MIB); /* nearly all of it was of use */
    struct weir_region_stats before = figures(&f);
    assert_int_equal(try_put(&f, count, 4000, OWNER_DEFAULT, &none), -EDQUOT);
    assert_int_equal(weir_region_alloc(f.region, 4000, (struct weir_label){0}, &none), -EDQUOT);
    assert_int_equal(none.index, 4711);
    struct weir_region_stats after = figures(&f);
    assert_same_items(&before, &after);
    weir_region_audit(f.region);
    for (size_t i = 0; i < count; i++)
        assert_here(&f, slots[i], 4000);

    for (size_t i = 0; i < count; i += 2)
        assert_int_equal(weir_region_free(f.region, slots[i]), 0);
    weir_region_audit(f.region);
    for (size_t i = 0; i < count; i += 2)
        slots[i] = put(&f, 100000 + i, 4000);
    weir_region_audit(f.region);
    for (size_t i = 0; i < count; i++)
        assert_here(&f, slots[i], 4000);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(weir_region_free(f.region, slots[i]), 0);
    weir_region_audit(f.region);
    put(&f, 1, 4000);
    finish(&f);
}

/* Puts until the region says that it is full; with polls, so that holes can be made of use. */
static size_t fill_up(struct fixture *f, size_t item_bytes, struct weir_slot *slots,
                      size_t slot_count_max, uint64_t seed)
{
    size_t count = 0;

    while (count < slot_count_max) {
        int r = try_put(f, seed + count, item_bytes, OWNER_DEFAULT, &slots[count]);
        if (r == -EDQUOT || r == -EAGAIN) {
            bool moves = false;
            for (int i = 0; i < 200 && !moves; i++) {
                assert_true(wait_once(f) >= 0);
                r = try_put(f, seed + count, item_bytes, OWNER_DEFAULT, &slots[count]);
                assert_true(r == 0 || r == -EDQUOT || r == -EAGAIN);
                moves = r == 0;
            }
            if (!moves)
                return count;
        }
        assert_int_equal(r, 0);
        count++;
    }
    return count;
}

static void cold_space_comes_to_use_again(void **state)
{
    struct fixture f;
    static struct weir_slot slots[32768];
    static struct weir_slot others[32768];

    (void)state;
    start(&f, (struct weir_region_config){
                  .bytes_initial = 4 * MIB,
                  .bytes_max = 32 * MIB,
                  .resident_bytes_max = RESIDENT_MIN,
              });
    if (!is_bounded(&f))
        return;
    size_t count = fill_up(&f, 4000, slots, 32768, 0);
    assert_true(count * 4000 >= 26 * MIB);
    assert_bound_holds(&f);

    /* Half of it in neat runs. */
    for (size_t i = 0; i < count / 2; i++)
        assert_int_equal(weir_region_free(f.region, slots[i]), 0);
    weir_region_audit(f.region);
    size_t more = fill_up(&f, 4000, others, 32768, 100000);
    assert_true(more >= count / 4);
    for (size_t i = 0; i < more; i++)
        assert_whole(&f, others[i]);
    for (size_t i = count / 2; i < count; i++)
        assert_whole(&f, slots[i]);
    assert_bound_holds(&f);

    /* All of it. */
    weir_region_free_owner(f.region, OWNER_DEFAULT, NULL);
    assert_int_equal(figures(&f).slot_count, 0);
    size_t again = fill_up(&f, 4000, slots, 32768, 200000);
    assert_true(again >= count / 10 * 9);
    for (size_t i = 0; i < again; i++)
        assert_whole(&f, slots[i]);
    assert_bound_holds(&f);
    finish(&f);
}

static void small_cold_holes_come_to_use_again(void **state)
{
    struct fixture f;
    static struct weir_slot slots[32768];
    static struct weir_slot others[32768];

    (void)state;
    start(&f, (struct weir_region_config){
                  .bytes_initial = 4 * MIB,
                  .bytes_max = 32 * MIB,
                  .resident_bytes_max = RESIDENT_MIN,
              });
    if (!is_bounded(&f))
        return;
    size_t count = fill_up(&f, 4000, slots, 32768, 0);
    for (size_t i = 0; i < count; i += 2)
        assert_int_equal(weir_region_free(f.region, slots[i]), 0);
    size_t more = fill_up(&f, 4000, others, 32768, 100000);
    print_message("# of %zu single cold holes %zu were filled\n", (count + 1) / 2, more);
    assert_true(more >= count / 4); /* half of the holes at the very least */
    for (size_t i = 1; i < count; i += 2)
        assert_whole(&f, slots[i]);
    for (size_t i = 0; i < more; i++)
        assert_whole(&f, others[i]);
    assert_bound_holds(&f);
    finish(&f);
}

/* Random lengths in and out for long: holes of cold chunks must come to use, or the file would fill up. */
static void a_region_a_quarter_full_is_never_full(void **state)
{
    struct fixture f;
    static struct weir_slot slots[4096];
    static uint64_t sizes[4096];
    size_t count = 0;
    uint64_t live = 0;
    uint64_t random = 11;

    (void)state;
    start(&f, (struct weir_region_config){
                  .bytes_initial = 4 * MIB,
                  .bytes_max = 64 * MIB,
                  .resident_bytes_max = RESIDENT_MIN,
              });
    if (!is_bounded(&f))
        return;
    for (uint64_t i = 0; i < 20000; i++) {
        uint64_t bytes = 100 + weir__random_below(&random, 20000);
        while (live + bytes > 16 * MIB || count == 4096) {
            size_t k = weir__random_below(&random, count);
            assert_int_equal(weir_region_free(f.region, slots[k]), 0);
            live -= sizes[k];
            slots[k] = slots[--count];
            sizes[k] = sizes[count];
        }
        slots[count] = put(&f, i, bytes);
        sizes[count++] = bytes;
        live += bytes;
        if (i % 8 == 0)
            assert_true(poll_once(&f) >= 0);
        if (i % 1000 == 0)
            weir_region_audit(f.region);
    }
    struct weir_region_stats stats = figures(&f);
    print_message(
        "# live %llu MiB, mark %llu, file %llu; put %llu MiB, written %llu, read %llu\n",
        (unsigned long long)(stats.live_bytes / MIB), (unsigned long long)(stats.mark_bytes / MIB),
        (unsigned long long)(stats.file_bytes / MIB), (unsigned long long)(stats.put_bytes / MIB),
        (unsigned long long)(stats.written_bytes / MIB),
        (unsigned long long)(stats.read_bytes / MIB));
    for (size_t i = 0; i < count; i++)
        assert_whole(&f, slots[i]);
    assert_bound_holds(&f);
    finish(&f);
}

#define CHURN_COUNT 8192u

/* Items of 8 KiB, most of them cold, that die and are born at random. */
static struct churn {
    struct weir_slot slots[CHURN_COUNT];
    uint64_t keys[CHURN_COUNT];
    uint64_t key; /* of the next */
    uint64_t random;
} churn;

static void churn_put(struct fixture *f, size_t k)
{
    churn.keys[k] = churn.key;
    churn.slots[k] = put(f, churn.key++, 8 * KIB);
}

static void churn_replace(struct fixture *f, size_t k)
{
    bool has_tick = churn.key % 8 == 0;

    assert_int_equal(weir_region_free(f->region, churn.slots[k]), 0);
    churn_put(f, k);
    if (has_tick)
        assert_true(poll_once(f) >= 0);
}

/* False: nothing goes cold here. */
static bool churn_start(struct fixture *f, uint64_t random)
{
    start(f, (struct weir_region_config){.bytes_initial = 4 * MIB,
                                         .resident_bytes_max = 2 * RESIDENT_MIN});
    if (!is_bounded(f))
        return false;
    churn.random = random;
    churn.key = 0;
    while (churn.key < CHURN_COUNT)
        churn_put(f, churn.key);
    return true;
}

/*
 * Births and deaths at random in cold chunks: without cleaning the file grows to
 * more than three times what is live.
 */
static void sparse_chunks_are_emptied(void **state)
{
    struct fixture f;

    (void)state;
    if (!churn_start(&f, 12))
        return;
    while (churn.key < 4 * CHURN_COUNT)
        churn_replace(&f, weir__random_below(&churn.random, CHURN_COUNT));
    weir_region_audit(f.region);

    struct weir_region_stats stats = figures(&f);
    print_message("# footprint / live %.2f, written / put %.2f\n",
                  (double)stats.file_bytes / (double)stats.live_bytes,
                  (double)stats.written_bytes / (double)stats.put_bytes);
    assert_true(stats.moved_bytes > 0);
    assert_true(stats.file_bytes <= stats.live_bytes / 100 * 152);
    assert_true(stats.written_bytes <= 2 * stats.put_bytes);
    assert_bound_holds(&f);
    for (size_t k = 0; k < CHURN_COUNT; k++) { /* the handles are good, wherever their items went */
        assert_int_equal(info_of(&f, churn.slots[k]).label.key, churn.keys[k]);
        assert_whole(&f, churn.slots[k]);
    }

    /* What the cleaner keeps for itself goes when there is nothing to clean. */
    weir_region_free_owner(f.region, OWNER_DEFAULT, NULL);
    struct timespec since;
    clock_gettime(CLOCK_MONOTONIC, &since);
    while (figures(&f).mark_bytes > 0 || figures(&f).fetched_bytes > 0) {
        assert_false(patience_is_over(&since)); /* freed at a bad moment, it is looked at later */
        assert_true(wait_once(&f) >= 0);
    }
    assert_int_equal(figures(&f).free_bytes, 0);
    finish(&f);
}

/*
 * At bytes_max all that is free is in small pieces, and each chunk on disk holds an
 * item that fits in none: to read these again and again would help nobody.
 */
static void what_has_no_place_is_not_read_again(void **state)
{
    struct fixture f;
    struct weir_slot large[64];
    struct weir_slot small[2][64 * 84];
    size_t large_count = 0;
    size_t small_count = 0;

    (void)state;
    start(&f,
          (struct weir_region_config){.bytes_max = 32 * MIB, .resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    for (; large_count < 64; large_count++) {
        if (try_put(&f, large_count, 700 * KIB, OWNER_DEFAULT, &large[large_count]) != 0)
            break;
        for (size_t i = 0; i < 84; i++) {
            struct weir_slot slot;
            if (try_put(&f, 1000 + small_count, 16 * KIB, OWNER_DEFAULT, &slot) != 0)
                break;
            small[small_count % 2][small_count / 2] = slot;
            small_count++;
        }
    }
    assert_true(large_count >= 8);
    for (size_t i = 0; i < small_count / 2; i++)
        assert_int_equal(weir_region_free(f.region, small[1][i]), 0);
    for (int i = 0; i < 20; i++)
        assert_true(poll_once(&f) >= 0);

    struct weir_region_stats before = figures(&f);
    for (uint64_t i = 0; i < 16; i++) {
        struct weir_slot slot;
        int r = try_put(&f, 5000 + i, 900 * KIB, OWNER_DEFAULT, &slot);
        assert_true(r == 0 || r == -EDQUOT || r == -EAGAIN);
        assert_true(wait_once(&f) >= 0);
    }
    print_message("# read %llu KiB\n",
                  (unsigned long long)((figures(&f).read_bytes - before.read_bytes) / KIB));
    assert_true(figures(&f).read_bytes - before.read_bytes <= 2 * before.file_bytes);
    weir_region_audit(f.region);
    for (size_t i = 0; i < large_count; i++)
        assert_whole(&f, large[i]);
    assert_bound_holds(&f);
    finish(&f);
}

/*
 * As long as each tick sees fewer items than the one before, none of them is moved
 * but for the few chunks that are kept ready for puts.
 */
static void little_is_moved_while_all_goes(void **state)
{
    struct fixture f;
    static struct weir_slot slots[8192];
    uint64_t random = 13;

    (void)state;
    start(&f, (struct weir_region_config){.bytes_initial = 4 * MIB,
                                          .resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    for (uint64_t key = 0; key < 8192; key++)
        slots[key] = put(&f, key, 8 * KIB);
    for (size_t count = 8192; count > 2048;) {
        for (int i = 0; i < 16; i++) {
            size_t k = weir__random_below(&random, count);
            assert_int_equal(weir_region_free(f.region, slots[k]), 0);
            slots[k] = slots[--count];
        }
        assert_true(wait_once(&f) >= 0);
    }
    uint64_t moved_bytes = figures(&f).moved_bytes;
    print_message("# moved %llu KiB\n", (unsigned long long)(moved_bytes / KIB));
    assert_in_range(moved_bytes, 0, 8 * MIB);

    /* Left alone it is cleaned. */
    for (int i = 0; i < 10000000 && figures(&f).moved_bytes < moved_bytes + MIB; i++)
        assert_true(wait_once(&f) >= 0);
    assert_true(figures(&f).moved_bytes >= moved_bytes + MIB);
    finish(&f);
}

/* Items that take most of the cleaner's memory are moved like small ones. */
static void large_items_move_out_of_sparse_chunks(void **state)
{
    struct fixture f;
    struct weir_slot large[24];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    for (uint64_t i = 0; i < 24; i++) {
        large[i] = put(&f, i, 700 * KIB);
        for (uint64_t j = 0; j < 80; j++) {
            struct weir_slot small;
            assert_int_equal(try_put(&f, 1000 + j, 16 * KIB, OWNER_FILLER, &small), 0);
        }
    }
    weir_region_free_owner(f.region, OWNER_FILLER, NULL);
    for (int i = 0; i < 2000 && figures(&f).free_bytes > 16 * MIB; i++)
        assert_true(wait_once(&f) >= 0);
    assert_true(figures(&f).moved_bytes >= 8 * 700 * KIB);
    for (size_t i = 0; i < 24; i++)
        assert_whole(&f, large[i]);
    assert_bound_holds(&f);
    finish(&f);
}

static void a_hole_is_used_before_the_mark(void **state)
{
    struct fixture f;
    struct weir_slot slots[9];
    const void *places[9];
    static const size_t sizes[9] = {16, 4096, 16, 1024, 16, 2048, 16, 1040, 16};

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = UINT64_MAX});
    for (int i = 0; i < 9; i++)
        slots[i] = put(&f, (uint64_t)i, sizes[i]);
    for (int i = 0; i < 9; i++)
        places[i] = assert_here(&f, slots[i], sizes[i]);
    for (int i = 1; i < 9; i += 2)
        assert_int_equal(weir_region_free(f.region, slots[i]), 0);
    weir_region_audit(f.region);
    struct weir_region_stats before = figures(&f);
    assert_int_equal(before.free_extent_count, 4);
    assert_int_equal(before.free_bytes, 4096 + 1024 + 2048 + 1040);

    /* The smallest that fits, each time. */
    assert_ptr_equal(assert_here(&f, put(&f, 10, 1010), 1010), places[3]);
    assert_ptr_equal(assert_here(&f, put(&f, 11, 1010), 1010), places[7]);
    assert_ptr_equal(assert_here(&f, put(&f, 12, 1010), 1010), places[5]);
    assert_ptr_equal(assert_here(&f, put(&f, 13, 1010), 1010),
                     (const char *)places[5] + 1024); /* what was split off */
    assert_ptr_equal(assert_here(&f, put(&f, 14, 4000), 4000), places[1]);
    assert_int_equal(figures(&f).mark_bytes, before.mark_bytes);
    weir_region_audit(f.region);
    finish(&f);
}

static void freed_neighbours_become_one(void **state)
{
    static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2},
                                     {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = UINT64_MAX});
    put(&f, 100, 16);
    for (int k = 0; k < 6; k++) {
        struct weir_slot slots[3];
        for (int i = 0; i < 3; i++)
            slots[i] = put(&f, (uint64_t)i, 1000);
        const void *place = assert_here(&f, slots[0], 1000);
        struct weir_slot end = put(&f, 101, 16);
        for (int i = 0; i < 3; i++) {
            assert_int_equal(weir_region_free(f.region, slots[orders[k][i]]), 0);
            weir_region_audit(f.region);
        }
        assert_int_equal(figures(&f).free_extent_count, 1);
        assert_int_equal(figures(&f).free_bytes, 3 * 1008);
        struct weir_slot whole = put(&f, 102, 3 * 1008);
        assert_ptr_equal(assert_here(&f, whole, 3 * 1008), place);
        assert_int_equal(figures(&f).free_extent_count, 0);
        assert_int_equal(weir_region_free(f.region, whole), 0);
        assert_int_equal(weir_region_free(f.region, end), 0);
        assert_int_equal(figures(&f).free_extent_count, 0); /* the tail went back to the mark */
        assert_int_equal(figures(&f).free_bytes, 0);
        weir_region_audit(f.region);
    }
    finish(&f);
}

static void an_emptied_region_gives_the_mark_back(void **state)
{
    struct fixture f;
    static struct weir_slot slots[5000];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = UINT64_MAX});
    uint64_t mark = figures(&f).mark_bytes;
    uint64_t random = 1;
    for (uint64_t i = 0; i < 5000; i++)
        slots[i] = put(&f, i, weir__random_below(&random, 9000));
    assert_true(figures(&f).mark_bytes > mark);
    for (uint64_t i = 5000; i > 0; i--) {
        uint64_t k = weir__random_below(&random, i);
        assert_int_equal(weir_region_free(f.region, slots[k]), 0);
        slots[k] = slots[i - 1];
        if (i % 100 == 0)
            weir_region_audit(f.region);
    }
    struct weir_region_stats stats = figures(&f);
    assert_int_equal(stats.mark_bytes, mark);
    assert_int_equal(stats.free_extent_count, 0);
    assert_int_equal(stats.free_bytes, 0);
    assert_int_equal(stats.live_bytes, 0);
    assert_true(stats.live_bytes_peak > 5000 * 4000);
    finish(&f);
}

static void an_empty_tail_goes_back_to_the_disk(void **state)
{
    struct fixture f;
    struct timespec since;

    (void)state;
    start(&f, (struct weir_region_config){.bytes_initial = 4 * MIB});
    struct weir_slot first = put(&f, 1, 1000);
    for (uint64_t i = 0; i < 192 * 16; i++) {
        struct weir_slot slot;
        assert_int_equal(try_put(&f, i, 64 * KIB, OWNER_FILLER, &slot), 0);
    }
    assert_true(figures(&f).file_bytes >= 192 * MIB);
    weir_region_free_owner(f.region, OWNER_FILLER, NULL);
    weir_region_audit(f.region);
    clock_gettime(CLOCK_MONOTONIC, &since);
    while (figures(&f).disk_bytes > 64 * MIB || figures(&f).file_bytes > 64 * MIB) {
        assert_true(wait_once(&f) >= 0);
        assert_false(patience_is_over(&since));
    }
    weir_region_audit(f.region);
    assert_whole(&f, first);
    for (uint64_t i = 0; i < 100 * 16; i++) { /* and grows again */
        struct weir_slot slot;
        assert_int_equal(try_put(&f, i, 64 * KIB, OWNER_FILLER, &slot), 0);
        if (i % 400 == 0)
            assert_whole(&f, slot);
    }
    finish(&f);
}

/* ---- Free ---------------------------------------------------------------------- */

static void a_freed_slot_is_stale(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){0});
    struct weir_slot slot = put(&f, 1, 100);
    struct weir_slot other = put(&f, 2, 100);
    assert_int_equal(weir_region_free(f.region, slot), 0);
    weir_region_audit(f.region);
    assert_stale(&f, slot);
    fetch_one(&f, slot, -ESTALE);
    assert_int_equal(weir_region_free(f.region, slot), -ESTALE); /* twice, thrice */
    assert_int_equal(weir_region_free(f.region, slot), -ESTALE);
    for (uint64_t i = 0; i < 1000; i++) { /* its place is taken, it stays stale */
        struct weir_slot taken = put(&f, 10 + i, 100);
        assert_true(taken.index != slot.index || taken.generation != slot.generation);
        assert_stale(&f, slot);
        if (i % 2 == 0)
            assert_int_equal(weir_region_free(f.region, taken), 0);
    }
    assert_here(&f, other, 100);
    finish(&f);
}

static void foreign_slots_are_stale(void **state)
{
    struct fixture f;
    struct weir_region_config config = {.directory = harness_tmpdir()};
    struct weir_region *other = NULL;
    static const struct weir_slot wild[] = {
        {0, 0},          {0, 1},        {1, 0},        {UINT32_MAX, UINT32_MAX},
        {UINT32_MAX, 1}, {1u << 24, 1}, {1u << 31, 3}, {0, UINT32_MAX}};

    (void)state;
    start(&f, (struct weir_region_config){0});
    struct weir_slot mine[100];
    for (uint64_t i = 0; i < 100; i++)
        mine[i] = put(&f, i, 50);
    for (size_t i = 0; i < sizeof(wild) / sizeof(wild[0]); i++) {
        assert_stale(&f, wild[i]);
        fetch_one(&f, wild[i], -ESTALE);
    }
    assert_int_equal(weir_region_open(&config, &other), 0);
    for (uint64_t i = 0; i < 100; i++) {
        struct weir_slot slot;
        assert_int_equal(weir_region_put(other, "theirs", 6, (struct weir_label){0}, &slot), 0);
        assert_stale(&f, slot);
    }
    for (int i = 0; i < 100; i++) /* the right place, the wrong life */
        for (uint32_t k = 1; k < 5; k++) {
            assert_stale(&f, (struct weir_slot){mine[i].index, mine[i].generation + k});
            assert_stale(&f, (struct weir_slot){mine[i].index, mine[i].generation - k});
        }
    weir_region_close(other);
    for (int i = 0; i < 100; i++)
        assert_here(&f, mine[i], 50);
    finish(&f);
}

static void a_handle_never_comes_twice(void **state)
{
    struct fixture f;
    struct weir_slot last = {0, 0};
    static struct weir_slot old[64];

    (void)state;
    start(&f, (struct weir_region_config){0});
    for (uint64_t i = 0; i < 200000; i++) {
        struct weir_slot slot;
        assert_int_equal(weir_region_put(f.region, &i, sizeof(i), (struct weir_label){i, 1}, &slot),
                         0);
        assert_true(slot.index != last.index || slot.generation != last.generation);
        if (i >= 64)
            assert_int_equal(weir_region_free(f.region, old[i % 64]), -ESTALE);
        assert_int_equal(weir_region_free(f.region, slot), 0);
        old[i % 64] = slot;
        last = slot;
    }
    assert_int_equal(figures(&f).put_count, 200000);
    finish(&f);
}

static void an_owner_gives_all_its_slots_back(void **state)
{
    struct fixture f;
    struct weir_slot slots[300];
    struct weir_slot built;
    const void *data;
    uint64_t count = 4711;

    (void)state;
    start(&f, (struct weir_region_config){0});
    for (uint64_t i = 0; i < 300; i++)
        assert_int_equal(try_put(&f, i, i, (uint16_t)(i % 3), &slots[i]), 0);
    assert_int_equal(weir_region_alloc(f.region, 10, (struct weir_label){5, 1}, &built), 0);
    assert_int_equal(weir_region_pin(f.region, slots[100], &data, NULL), 0); /* owner 1 */
    weir_region_free_owner(f.region, 4, &count);
    assert_int_equal(count, 0);
    weir_region_free_owner(f.region, 1, &count);
    assert_int_equal(count, 101); /* the unfinished one and the pinned one too */
    weir_region_audit(f.region);
    assert_stale(&f, built);
    assert_pattern(data, 100, 100, 0);
    for (uint64_t i = 0; i < 300; i++) {
        if (i % 3 == 1)
            assert_stale(&f, slots[i]);
        else
            assert_here(&f, slots[i], i);
    }
    weir_region_free_owner(f.region, 1, &count);
    assert_int_equal(count, 0);
    weir_region_unpin(f.region, slots[100]);
    weir_region_free_owner(f.region, 0, NULL);
    weir_region_free_owner(f.region, 2, NULL);
    assert_int_equal(figures(&f).slot_count, 0);
    assert_int_equal(figures(&f).live_bytes, 0);
    finish(&f);
}

/* ---- Memory ---------------------------------------------------------------------- */

static void eight_times_the_memory_stays_bounded(void **state)
{
    struct fixture f;
    static struct weir_slot slots[1024];
    size_t cold = 0;
    const void *data;

    (void)state;
    start(&f, (struct weir_region_config){
                  .bytes_initial = 4 * MIB,
                  .resident_bytes_max = RESIDENT_MIN,
              });
    if (!is_bounded(&f))
        return;
    for (uint64_t i = 0; i < 1024; i++) {
        slots[i] = put(&f, i, 64 * KIB); /* a region on its own ring waits, and is never behind */
        assert_true(figures(&f).resident_bytes <= RESIDENT_MIN);
        if (i % 32 == 0) {
            weir_region_audit(f.region);
            assert_bound_holds(&f);
        }
    }
    weir_region_audit(f.region);
    assert_bound_holds(&f);
    struct weir_region_stats stats = figures(&f);
    assert_int_equal(stats.live_bytes, 64 * MIB);
    assert_true(stats.written_bytes >= 64 * MIB - RESIDENT_MIN);
    assert_true(stats.written_bytes <= 2 * 64 * MIB);
    for (uint64_t i = 0; i < 1024; i++) {
        bool resident = info_of(&f, slots[i]).resident;
        const void *const mark = &cold;
        size_t bytes = 4711;
        data = mark;
        int r = weir_region_at(f.region, slots[i], &data, &bytes);
        assert_int_equal(r, resident ? 0 : -EAGAIN);
        if (r < 0) {
            assert_ptr_equal(data, mark);
            assert_int_equal(bytes, 4711);
            assert_int_equal(weir_region_pin(f.region, slots[i], &data, &bytes), -EAGAIN);
            assert_ptr_equal(data, mark);
            cold++;
        } else {
            assert_here(&f, slots[i], 64 * KIB);
        }
    }
    assert_true(cold >= 1024 - RESIDENT_MIN / (64 * KIB));
    assert_bound_holds(&f); /* asking brought nothing in */
    for (uint64_t i = 0; i < 1024; i++)
        assert_whole(&f, slots[i]);
    assert_bound_holds(&f); /* nor did reading */
    assert_true(figures(&f).read_bytes >= cold * 64 * KIB);
    finish(&f);
}

/*
 * The default memory, three times that live, and births and deaths at random: what
 * the kernel has of the file is what the region says, also while it is cleaned.
 */
static void the_kernel_agrees_while_it_is_cleaned(void **state)
{
    struct fixture f;
    static struct weir_slot slots[6144];
    static uint64_t keys[6144];
    uint64_t random = 14;
    uint64_t key = 0;

    (void)state;
    start(&f, (struct weir_region_config){.bytes_max = 0});
    if (!is_bounded(&f))
        return;
    for (; key < 6144; key++) {
        keys[key] = key;
        slots[key] = put(&f, key, 32 * KIB);
    }
    for (; key < 4 * 6144; key++) {
        size_t k = weir__random_below(&random, 6144);
        assert_int_equal(weir_region_free(f.region, slots[k]), 0);
        keys[k] = key;
        slots[k] = put(&f, key, 32 * KIB);
        if (key % 64 == 0) /* a tick, for which a slow disk is waited for */
            assert_true(wait_once(&f) >= 0);
        if (key % 256 == 0) {
            assert_bound_holds(&f);
            assert_true(harness_cached_bytes(f.data_fd) <= (int64_t)(66 * MIB));
        }
    }
    struct weir_region_stats stats = figures(&f);
    assert_true(stats.moved_bytes > 0);
    assert_true(stats.file_bytes <= stats.live_bytes / 100 * 134);
    for (size_t k = 0; k < 6144; k += 7) {
        assert_int_equal(info_of(&f, slots[k]).label.key, keys[k]);
        assert_whole(&f, slots[k]);
    }
    assert_bound_holds(&f);
    finish(&f);
}

/* Items that come and go at random, so that chunks are cleaned. */
struct crowd {
    struct weir_slot slots[1024];
    uint64_t count;
    uint64_t random;
};

static void crowd_put(struct fixture *f, struct crowd *crowd)
{
    size_t i = crowd->count < 1024 ? crowd->count : weir__random_below(&crowd->random, 1024);

    if (crowd->count >= 1024)
        assert_int_equal(weir_region_free(f->region, crowd->slots[i]), 0);
    crowd->slots[i] = put(f, ++crowd->count, 48 * KIB);
    assert_true(figures(f).resident_bytes <= figures(f).resident_bytes_max);
}

/* Until chunks have what is set aside for fetches, too, and the cleaner its buffer. */
static void crowd_put_until_lent(struct fixture *f, struct crowd *crowd)
{
    struct timespec since;
    struct weir_region_stats stats;

    clock_gettime(CLOCK_MONOTONIC, &since);
    do {
        crowd_put(f, crowd);
        assert_true(poll_once(f) >= 0);
        stats = figures(f);
        assert_false(patience_is_over(&since));
    } while (crowd->count < 1024 || stats.moved_bytes == 0 || stats.fetched_bytes == 0 ||
             stats.resident_bytes - stats.fetched_bytes <= stats.resident_bytes_max / 16 * 13);
}

/* What is set aside for fetches is for chunks while there are none, and for fetches when there are. */
static void memory_that_no_fetch_uses_is_lent(void **state)
{
    struct fixture f;
    struct crowd *crowd = test_calloc(1, sizeof(*crowd));

    (void)state;
    start(&f, (struct weir_region_config){.bytes_max = 256 * MIB, .resident_bytes_max = 16 * MIB});
    if (!is_bounded(&f))
        return;
    struct weir_slot large = put(&f, 0, figures(&f).fetch_bytes_max);
    crowd_put_until_lent(&f, crowd);
    assert_bound_holds(&f);

    fetch_one(&f, large, 0);
    struct weir_region_stats stats = figures(&f);
    assert_true(stats.fetched_bytes >= stats.fetch_bytes_max);
    for (int i = 0; i < 512; i++) { /* and puts do not take it away again */
        crowd_put(&f, crowd);
        assert_true(poll_once(&f) >= 0);
    }
    assert_here(&f, large, stats.fetch_bytes_max);
    assert_bound_holds(&f);

    assert_int_equal(weir_region_free(f.region, large), 0); /* with it its buffer goes */
    crowd_put_until_lent(&f, crowd);
    assert_bound_holds(&f);
    finish(&f);
    test_free(crowd);
}

/* What is pinned cannot be had back: a fetch comes all the same, with what the cleaner has. */
static void a_fetch_beside_pins_everywhere(void **state)
{
    struct fixture f;
    struct crowd *crowd = test_calloc(1, sizeof(*crowd));
    bool is_pinned[1024];
    const void *data;

    (void)state;
    start(&f, (struct weir_region_config){.bytes_max = 256 * MIB, .resident_bytes_max = 16 * MIB});
    if (!is_bounded(&f))
        return;
    struct weir_slot large = put(&f, 0, figures(&f).fetch_bytes_max);
    crowd_put_until_lent(&f, crowd);
    assert_false(info_of(&f, large).resident);
    for (size_t i = 0; i < 1024; i++) {
        is_pinned[i] = info_of(&f, crowd->slots[i]).resident;
        if (is_pinned[i])
            assert_int_equal(weir_region_pin(f.region, crowd->slots[i], &data, NULL), 0);
    }
    fetch_one(&f, large, 0);
    struct weir_region_stats stats = figures(&f);
    assert_true(stats.resident_bytes <= stats.resident_bytes_max);
    assert_true(stats.resident_bytes - stats.fetched_bytes > 13 * MIB); /* nothing was given up */
    for (size_t i = 0; i < 1024; i++)
        if (is_pinned[i])
            weir_region_unpin(f.region, crowd->slots[i]);
    finish(&f);
    test_free(crowd);
}

/* Cleaning takes its time: a poll moves so much and no more, and so does a put that waits for nothing. */
static void a_tick_moves_a_bounded_number_of_bytes(void **state)
{
    struct fixture f;
    static struct weir_slot slots[4096];
    uint64_t random = 15;
    uint64_t moved_most = 0;
    uint64_t moved = 0;

    (void)state;
    begin(&f);
    if (weir__ring_open(64, true, &f.ring) < 0)
        fail_msg("no ring");
    assert_int_equal(open_as(&f, (struct weir_region_config){.resident_bytes_max = 16 * MIB}), 0);
    f.data_fd = harness_data_fd(f.directory, f.marks);
    for (uint64_t i = 0; i < 4 * 4096; i++) {
        size_t k = i < 4096 ? i : weir__random_below(&random, 4096);
        int r;
        if (i >= 4096)
            assert_int_equal(weir_region_free(f.region, slots[k]), 0);
        for (int tries = 0; (r = try_put(&f, i, 16 * KIB, OWNER_DEFAULT, &slots[k])) == -EAGAIN;
             tries++) {
            assert_true(tries < 100000);
            uint64_t now = figures(&f).moved_bytes;
            assert_true(now - moved <= 128 * KIB + 16 * KIB); /* in the put */
            assert_true(weir__ring_wait(f.ring, 1000000) >= 0);
            assert_true(weir_region_poll(f.region) >= 0);
            moved = figures(&f).moved_bytes;
            assert_true(moved - now <= 256 * KIB + 16 * KIB); /* in the poll */
            moved_most = moved - now > moved_most ? moved - now : moved_most;
        }
        assert_int_equal(r, 0);
        uint64_t now = figures(&f).moved_bytes;
        assert_true(now - moved <= 2 * (128 * KIB + 16 * KIB)); /* to begin a chunk, and after it */
        moved = now;
    }
    assert_true(!figures(&f).bounded || moved_most > 0);
    weir_region_audit(f.region);
    weir_region_close(f.region);
    weir__ring_close(f.ring);
    nothing_left(&f);
}

static void polls_alone_keep_the_bound(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = 16 * MIB});
    if (!is_bounded(&f))
        return;
    for (uint64_t i = 0; i < 4000; i++) {
        put(&f, i, 16 * KIB);
        if (i % 16 == 0)
            assert_true(poll_once(&f) >= 0);
    }
    assert_bound_holds(&f);
    for (int i = 0; i < 100; i++)
        assert_true(wait_once(&f) >= 0);
    assert_bound_holds(&f);
    finish(&f);
}

static void freeing_cold_items_touches_nothing(void **state)
{
    struct fixture f;
    static struct weir_slot slots[1024];

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    for (uint64_t i = 0; i < 1024; i++)
        slots[i] = put(&f, i, 64 * KIB);
    for (uint64_t i = 0; i < 1024; i += 2)
        assert_int_equal(weir_region_free(f.region, slots[i]), 0);
    weir_region_audit(f.region);
    assert_bound_holds(&f);
    for (uint64_t i = 0; i < 1024; i += 2) { /* new items of other lengths, old bytes never seen */
        slots[i] = put(&f, 5000 + i, 1 + i * 60);
        if (i % 64 == 0)
            weir_region_audit(f.region);
    }
    for (uint64_t i = 0; i < 1024; i++)
        assert_whole(&f, slots[i]);
    assert_bound_holds(&f);
    finish(&f);
}

/* ---- Fetch ----------------------------------------------------------------------- */

/* @count items that are cold, and one that is not, last. */
static void make_cold_items(struct fixture *f, struct weir_slot *slots, size_t count, size_t bytes)
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

static void a_cold_item_is_fetched(void **state)
{
    struct fixture f;
    struct weir_slot slots[11];
    const void *data;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 10, 3000);
    assert_int_equal(weir_region_at(f.region, slots[3], &data, NULL), -EAGAIN);
    struct weir_region_stats before = figures(&f);
    fetch_one(&f, slots[3], 0);
    /* Until the next fetch or poll: still there after the poll that called back. */
    assert_here(&f, slots[3], 3000);
    put(&f, 50, 100);
    assert_here(&f, slots[3], 3000);
    struct weir_region_stats after = figures(&f);
    assert_int_equal(after.fetch_count, before.fetch_count + 1);
    assert_true(after.read_bytes >= before.read_bytes + 3000);
    assert_true(after.fetched_bytes >= 3000);
    assert_bound_holds(&f);
    assert_int_equal(weir_region_pin(f.region, slots[3], &data, NULL), 0);
    assert_pattern(data, 3000, 3, 0);
    weir_region_unpin(f.region, slots[3]);
    fetch_one(&f, slots[10], 0); /* what is in memory is called back too */
    assert_bound_holds(&f);
    finish(&f);
}

static void each_slot_is_called_back_once(void **state)
{
    struct fixture f;
    static struct weir_slot slots[1001];
    struct fetches *fetches = test_calloc(1, sizeof(*fetches));

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = 16 * MIB});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 1000, 2000);
    assert_int_equal(weir_region_free(f.region, slots[5]), 0);
    fetches->count = FETCH_MAX;
    for (size_t i = 0; i < FETCH_MAX; i++)
        fetches->slots[i] = slots[(i * 7) % 1001]; /* some twice, one freed, one in memory */
    fetches->slots[100] = (struct weir_slot){0, 0};
    assert_int_equal(fetch_start(&f, fetches), 0);
    weir_region_audit(f.region);
    fetch_finish(&f, fetches);
    for (size_t i = 0; i < FETCH_MAX; i++) {
        bool is_gone = i == 100 || fetches->slots[i].index == slots[5].index;
        assert_int_equal(fetches->results[i], is_gone ? -ESTALE : 0);
    }
    for (int i = 0; i < 20; i++) /* and no more */
        assert_true(poll_once(&f) >= 0);
    assert_int_equal(fetches->called, FETCH_MAX);
    assert_bound_holds(&f);
    test_free(fetches);
    finish(&f);
}

static void fetch_has_a_range(void **state)
{
    struct fixture f;
    static struct weir_slot slots[FETCH_MAX + 1];

    (void)state;
    start(&f, (struct weir_region_config){0});
    for (size_t i = 0; i < FETCH_MAX + 1; i++)
        slots[i] = put(&f, i, 10);
    assert_int_equal(weir_region_fetch(f.region, slots, 0, never_called, NULL), -EINVAL);
    assert_int_equal(weir_region_fetch(f.region, slots, FETCH_MAX + 1, never_called, NULL),
                     -EINVAL);
    assert_int_equal(weir_region_fetch(f.region, slots, SIZE_MAX, never_called, NULL), -EINVAL);
    for (int i = 0; i < 5; i++)
        assert_true(poll_once(&f) >= 0);
    finish(&f);
}

static void the_largest_fetch(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = 16 * MIB});
    if (!is_bounded(&f))
        return;
    struct weir_region_stats stats = figures(&f);
    uint64_t most = stats.fetch_bytes_max;
    if (most > stats.item_bytes_max)
        most = stats.item_bytes_max;
    struct weir_slot slot;
    assert_int_equal(weir_region_alloc(f.region, most, (struct weir_label){3, 1}, &slot), 0);
    assert_int_equal(write_pieces(&f, slot, 3, most, stats.put_bytes_max), 0);
    assert_int_equal(weir_region_commit(f.region, slot), 0);
    make_cold(&f, slot);
    fetch_one(&f, slot, 0);
    assert_here(&f, slot, most);
    assert_bound_holds(&f);
    if (stats.fetch_bytes_max < stats.item_bytes_max) {
        struct weir_slot larger;
        most = stats.fetch_bytes_max + 1;
        assert_int_equal(weir_region_alloc(f.region, most, (struct weir_label){4, 1}, &larger), 0);
        assert_int_equal(write_pieces(&f, larger, 4, most, stats.put_bytes_max), 0);
        assert_int_equal(weir_region_commit(f.region, larger), 0);
        make_cold(&f, larger);
        assert_int_equal(weir_region_fetch(f.region, &larger, 1, never_called, NULL), -EFBIG);
        assert_whole(&f, larger);
    }
    finish(&f);
}

/* Asked for while it is in memory, told when it is no more: it is refused or answered, never forgotten. */
static void an_item_too_large_to_fetch_is_never_forgotten(void **state)
{
    struct fixture f;
    struct fetches *fetches = test_calloc(2, sizeof(*fetches));
    struct weir_slot large;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    struct weir_region_stats stats = figures(&f);
    uint64_t bytes = stats.fetch_bytes_max + MIB;
    struct weir_slot small = put(&f, 1, 1000);
    assert_int_equal(weir_region_alloc(f.region, bytes, (struct weir_label){3, 1}, &large), 0);
    assert_int_equal(write_pieces(&f, large, 3, bytes, stats.put_bytes_max), 0);
    assert_int_equal(weir_region_commit(f.region, large), 0);
    fetches[0].count = 1;
    fetches[0].slots[0] = large;
    int r = fetch_start(&f, &fetches[0]);
    assert_true(r == 0 || r == -EFBIG);
    make_cold(&f, large);
    if (r == 0) {
        fetch_finish(&f, &fetches[0]);
        assert_true(fetches[0].results[0] == 0 || fetches[0].results[0] == -EFBIG);
    }
    fetch_one(&f, small, 0); /* and it is in nobody's way */
    test_free(fetches);
    finish(&f);
}

static void all_of_it_is_fetched_in_turns(void **state)
{
    struct fixture f;
    static struct weir_slot slots[2001];
    struct fetches *fetches = test_calloc(1, sizeof(*fetches));

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 2000, 16 * KIB); /* four times what may be in memory */
    for (size_t at = 0; at < 2000; at += 50) {
        fetches->count = 50;
        memcpy(fetches->slots, slots + at, 50 * sizeof(slots[0]));
        assert_int_equal(fetch_start(&f, fetches), 0);
        fetch_finish(&f, fetches);
        for (size_t i = 0; i < 50; i++)
            assert_int_equal(fetches->results[i], 0);
        assert_bound_holds(&f);
    }
    test_free(fetches);
    finish(&f);
}

static void more_than_the_memory_is_asked_for_at_once(void **state)
{
    struct fixture f;
    static struct weir_slot slots[1025];
    struct fetches *fetches = test_calloc(2, sizeof(*fetches));

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 1024, 64 * KIB); /* 64 MiB through 8 */
    for (int i = 0; i < 2; i++) {
        fetches[i].count = FETCH_MAX;
        memcpy(fetches[i].slots, slots, FETCH_MAX * sizeof(slots[0]));
        assert_int_equal(fetch_start(&f, &fetches[i]), 0);
        assert_true(figures(&f).resident_bytes <= RESIDENT_MIN);
    }
    while (fetches[0].called < FETCH_MAX || fetches[1].called < FETCH_MAX) {
        size_t called = fetches[0].called + fetches[1].called;
        for (int tries = 0; fetches[0].called + fetches[1].called == called; tries++) {
            assert_true(tries < 1000);
            assert_true(wait_once(&f) >= 0);
        }
        assert_bound_holds(&f);
    }
    for (size_t i = 0; i < FETCH_MAX; i++) {
        assert_int_equal(fetches[0].results[i], 0);
        assert_int_equal(fetches[1].results[i], 0);
    }
    weir_region_audit(f.region);
    test_free(fetches);
    finish(&f);
}

/* Each a read of its own: more than a queue of any length takes at once. */
static void thousands_of_scattered_items(void **state)
{
    struct fixture f;
    static struct weir_slot slots[2048];
    struct fetches *fetches = test_calloc(2, sizeof(*fetches));

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = 64 * MIB});
    if (!is_bounded(&f))
        return;
    for (uint64_t i = 0; i < 2048; i++) {
        slots[i] = put(&f, i, 100);
        put(&f, UINT64_C(1) << 32 | i, 48 * KIB);
    }
    make_cold(&f, slots[2047]);
    for (int i = 0; i < 2; i++) {
        fetches[i].count = FETCH_MAX;
        memcpy(fetches[i].slots, slots + (size_t)i * FETCH_MAX, FETCH_MAX * sizeof(slots[0]));
        assert_int_equal(fetch_start(&f, &fetches[i]), 0);
    }
    for (int i = 0; i < 2; i++) {
        fetch_finish(&f, &fetches[i]);
        for (size_t j = 0; j < FETCH_MAX; j++)
            assert_int_equal(fetches[i].results[j], 0);
    }
    test_free(fetches);
    finish(&f);
}

static void a_fetched_item_freed_under_way_is_stale(void **state)
{
    struct fixture f;
    struct weir_slot slots[101];
    struct fetches *fetches = test_calloc(1, sizeof(*fetches));

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 100, 5000);
    fetches->count = 101;
    memcpy(fetches->slots, slots, sizeof(slots));
    assert_int_equal(fetch_start(&f, fetches), 0);
    for (size_t i = 0; i < 101; i += 2)
        assert_int_equal(weir_region_free(f.region, slots[i]), 0);
    for (uint64_t i = 0; i < 51; i++) /* their places are taken at once */
        put(&f, 1000 + i, 5000);
    weir_region_audit(f.region);
    fetch_finish(&f, fetches);
    for (size_t i = 0; i < 101; i++)
        assert_int_equal(fetches->results[i], i % 2 == 0 ? -ESTALE : 0);
    test_free(fetches);
    finish(&f);
}

/* Every answer frees one that has not been answered yet. */
static void free_another(struct fetches *fetches, struct weir_slot slot, int result)
{
    (void)slot;
    (void)result;
    for (size_t i = fetches->count; i-- > 0;)
        if (!fetches->done[i] && weir_region_free(fetches->f->region, fetches->slots[i]) == 0)
            break;
    weir_region_audit(fetches->f->region);
}

static void a_callback_may_free_what_is_under_way(void **state)
{
    struct fixture f;
    struct weir_slot slots[65];
    struct fetches *fetches = test_calloc(1, sizeof(*fetches));
    size_t stale = 0;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 64, 5000);
    fetches->count = 64;
    fetches->then = free_another;
    memcpy(fetches->slots, slots, 64 * sizeof(slots[0]));
    assert_int_equal(fetch_start(&f, fetches), 0);
    fetch_finish(&f, fetches);
    for (size_t i = 0; i < 64; i++) {
        assert_true(fetches->results[i] == 0 || fetches->results[i] == -ESTALE);
        stale += fetches->results[i] == -ESTALE;
    }
    assert_true(stale >= 31);
    test_free(fetches);
    finish(&f);
}

static void free_itself_and_put(struct fetches *fetches, struct weir_slot slot, int result)
{
    struct weir_slot fresh;

    assert_int_equal(result, 0);
    assert_int_equal(weir_region_free(fetches->f->region, slot), 0);
    assert_stale(fetches->f, slot);
    assert_int_equal(try_put(fetches->f, 7000, 9000, OWNER_FILLER, &fresh), 0);
    assert_here(fetches->f, fresh, 9000);
    weir_region_audit(fetches->f->region);
}

static void a_callback_may_use_the_region(void **state)
{
    struct fixture f;
    struct weir_slot slots[65];
    struct fetches *fetches = test_calloc(1, sizeof(*fetches));

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 64, 5000);
    fetches->count = 64;
    fetches->then = free_itself_and_put;
    memcpy(fetches->slots, slots, 64 * sizeof(slots[0]));
    assert_int_equal(fetch_start(&f, fetches), 0);
    fetch_finish(&f, fetches);
    assert_bound_holds(&f);
    test_free(fetches);
    finish(&f);
}

/* A chain: each answer asks for the next item. */
struct chain {
    struct fixture *f;
    struct weir_slot *slots;
    size_t at;
    size_t count;
    bool in_fetch;
};

static void chain_next(void *context, struct weir_slot slot, int result)
{
    struct chain *chain = context;

    assert_true(chain->f->in_poll);
    assert_false(chain->in_fetch);
    assert_int_equal(result, 0);
    assert_int_equal(slot.index, chain->slots[chain->at].index);
    assert_here(chain->f, slot, 3000);
    chain->at++;
    if (chain->at < chain->count) {
        chain->in_fetch = true;
        assert_int_equal(
            weir_region_fetch(chain->f->region, &chain->slots[chain->at], 1, chain_next, chain), 0);
        chain->in_fetch = false;
    }
}

static void a_callback_may_fetch(void **state)
{
    struct fixture f;
    struct weir_slot slots[201];
    struct timespec since;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 200, 3000);
    struct chain chain = {.f = &f, .slots = slots, .count = 201};
    assert_int_equal(weir_region_fetch(f.region, slots, 1, chain_next, &chain), 0);
    clock_gettime(CLOCK_MONOTONIC, &since);
    while (chain.at < chain.count) {
        assert_true(wait_once(&f) >= 0);
        assert_false(patience_is_over(&since));
    }
    weir_region_audit(f.region);
    finish(&f);
}

static void one_item_is_fetched_by_several(void **state)
{
    struct fixture f;
    struct weir_slot slots[11];
    struct fetches *fetches = test_calloc(8, sizeof(*fetches));

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 10, 70000);
    for (int i = 0; i < 8; i++) {
        fetches[i].count = 1;
        fetches[i].slots[0] = slots[4];
        assert_int_equal(fetch_start(&f, &fetches[i]), 0);
    }
    for (int i = 0; i < 8; i++) {
        fetch_finish(&f, &fetches[i]);
        assert_int_equal(fetches[i].results[0], 0);
    }
    test_free(fetches);
    finish(&f);
}

/* ---- Pieces out ------------------------------------------------------------------ */

static void a_piece_goes_into_the_callers_buffer(void **state)
{
    struct fixture f;
    struct weir_slot slots[4];
    static const struct {
        uint64_t offset;
        size_t bytes;
    } cases[] = {{0, 1},     {0, 100000}, {1, 99999}, {4095, 2},  {4096, 4096},
                 {99999, 1}, {17, 65536}, {512, 512}, {50000, 3}, {65535, 34465}};

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 3, 100000);
    for (size_t k = 0; k < 4; k += 3) /* a cold one, and one in memory */
        for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
            struct piece piece = {.operation = {piece_done}, .f = &f};
            char *buffer = test_malloc(cases[i].bytes);
            memset(buffer, 0xee, cases[i].bytes);
            assert_int_equal(weir_region_fetch_into(f.region, slots[k], cases[i].offset, buffer,
                                                    cases[i].bytes, &piece.operation),
                             0);
            assert_false(piece.done);
            piece_finish(&f, &piece);
            assert_int_equal(piece.result, cases[i].bytes);
            assert_pattern(buffer, cases[i].bytes, k == 3 ? 999 : k, cases[i].offset);
            test_free(buffer);
        }

    struct weir_operation operation = {operation_never_completed};
    char byte;
    assert_int_equal(weir_region_fetch_into(f.region, slots[0], 100000, &byte, 1, &operation),
                     -EINVAL);
    assert_int_equal(weir_region_fetch_into(f.region, slots[0], 99999, &byte, 2, &operation),
                     -EINVAL);
    assert_int_equal(weir_region_fetch_into(f.region, slots[0], UINT64_MAX, &byte, 2, &operation),
                     -EINVAL);
    assert_int_equal(weir_region_fetch_into(f.region, slots[0], 1, &byte, SIZE_MAX, &operation),
                     -EINVAL);
    for (int i = 0; i < 5; i++)
        assert_true(poll_once(&f) >= 0);
    assert_bound_holds(&f);
    finish(&f);
}

static void a_piece_freed_under_way_is_stale(void **state)
{
    struct fixture f;
    struct weir_slot slots[4];
    char *buffer = test_malloc(100000);

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 3, 100000);
    for (size_t k = 0; k < 4; k += 3) {
        struct piece piece = {.operation = {piece_done}, .f = &f};
        assert_int_equal(
            weir_region_fetch_into(f.region, slots[k], 0, buffer, 100000, &piece.operation), 0);
        assert_int_equal(weir_region_free(f.region, slots[k]), 0);
        weir_region_audit(f.region);
        piece_finish(&f, &piece);
        assert_int_equal(piece.result, -ESTALE);
    }
    test_free(buffer);
    finish(&f);
}

static void many_pieces_are_under_way(void **state)
{
    struct fixture f;
    struct weir_slot slots[2];
    static struct piece pieces[4096];
    char *buffer = test_malloc(4096 * 16);

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 1, 65536);
    for (size_t i = 0; i < 4096; i++) {
        pieces[i] = (struct piece){.operation = {piece_done}, .f = &f};
        assert_int_equal(weir_region_fetch_into(f.region, slots[0], i * 16, buffer + i * 16, 16,
                                                &pieces[i].operation),
                         0);
    }
    for (size_t i = 0; i < 4096; i++) {
        piece_finish(&f, &pieces[i]);
        assert_int_equal(pieces[i].result, 16);
    }
    assert_pattern(buffer, 4096 * 16, 0, 0);
    test_free(buffer);
    finish(&f);
}

static void read_takes_offsets(void **state)
{
    struct fixture f;
    struct weir_slot slots[4];
    char *buffer = test_malloc(100001);

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 3, 100000);
    for (size_t k = 0; k < 4; k += 3) {
        uint64_t seed = k == 3 ? 999 : k;
        uint64_t random = 5;
        for (int i = 0; i < 200; i++) {
            uint64_t offset = weir__random_below(&random, 100001);
            size_t room = weir__random_below(&random, 100001);
            size_t want = 100000 - offset < room ? 100000 - offset : room;
            size_t bytes = SIZE_MAX;
            memset(buffer, 0xee, 100001);
            assert_int_equal(weir_region_read(f.region, slots[k], offset, buffer, room, &bytes), 0);
            assert_int_equal(bytes, want);
            assert_pattern(buffer, bytes, seed, offset);
            assert_int_equal((unsigned char)buffer[want], 0xee);
        }
        size_t bytes = 4711; /* past the end there is nothing, or it is an error */
        int r = weir_region_read(f.region, slots[k], 100001, buffer, 10, &bytes);
        assert_true((r == 0 && bytes == 0) || (r == -EINVAL && bytes == 4711));
        bytes = 4711;
        r = weir_region_read(f.region, slots[k], UINT64_MAX, buffer, 10, &bytes);
        assert_true((r == 0 && bytes == 0) || (r == -EINVAL && bytes == 4711));
    }
    test_free(buffer);
    assert_bound_holds(&f);
    finish(&f);
}

static void reading_disturbs_no_fetch(void **state)
{
    struct fixture f;
    static struct weir_slot slots[101];
    struct fetches *fetches = test_calloc(1, sizeof(*fetches));

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 100, 20000);
    fetches->count = 100;
    memcpy(fetches->slots, slots, 100 * sizeof(slots[0]));
    assert_int_equal(fetch_start(&f, fetches), 0);
    for (int i = 0; i < 100; i++)
        assert_whole(&f, slots[i]); /* blocks, but calls back nothing */
    assert_int_equal(fetches->called, 0);
    fetch_finish(&f, fetches);
    for (int i = 0; i < 100; i++)
        assert_int_equal(fetches->results[i], 0);
    test_free(fetches);
    finish(&f);
}

/* ---- Trust ----------------------------------------------------------------------- */

/* Turns one byte of a cold item on the disk. */
static void damage(struct fixture *f, uint64_t seed, uint64_t offset)
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

static void a_damaged_item_is_named_and_harms_no_other(void **state)
{
    struct fixture f;
    struct weir_slot slots[11];
    struct fetches *fetches = test_calloc(1, sizeof(*fetches));
    char buffer[3001];
    size_t bytes = 4711;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 10, 3000);
    damage(&f, 4, 2999);
    damage(&f, 7, 0 + 100);
    uint64_t errors = figures(&f).read_error_count;
    fetches->count = 10;
    memcpy(fetches->slots, slots, 10 * sizeof(slots[0]));
    assert_int_equal(fetch_start(&f, fetches), 0);
    fetch_finish(&f, fetches);
    for (size_t i = 0; i < 10; i++)
        assert_int_equal(fetches->results[i], i == 4 || i == 7 ? -EBADMSG : 0);
    assert_true(figures(&f).read_error_count >= errors + 2);
    for (size_t i = 0; i < 10; i++) {
        bytes = 4711;
        int r = weir_region_read(f.region, slots[i], 0, buffer, sizeof(buffer), &bytes);
        assert_int_equal(r, i == 4 || i == 7 ? -EBADMSG : 0);
        assert_int_equal(bytes, i == 4 || i == 7 ? 4711 : 3000);
    }
    /* A piece is not verified: what is there can be saved. */
    assert_int_equal(weir_region_read(f.region, slots[4], 0, buffer, 2000, &bytes), 0);
    assert_int_equal(bytes, 2000);
    assert_pattern(buffer, 2000, 4, 0);
    const void *data;
    assert_int_equal(weir_region_at(f.region, slots[4], &data, NULL), -EBADMSG);
    assert_int_equal(weir_region_pin(f.region, slots[4], &data, NULL), -EBADMSG);
    assert_false(info_of(&f, slots[4]).resident);
    assert_true(info_of(&f, slots[4]).committed);
    fetch_one(&f, slots[4], -EBADMSG);

    /* They are found without being asked for one by one. */
    size_t count = 0;
    for (struct weir_slot slot = {0, 0}; weir_region_next(f.region, &slot);) {
        if (!info_of(&f, slot).damaged)
            continue;
        assert_true(info_of(&f, slot).label.key == 4 || info_of(&f, slot).label.key == 7);
        count++;
    }
    assert_int_equal(count, 2);
    assert_int_equal(figures(&f).damaged_count, 2);
    assert_int_equal(weir_region_free(f.region, slots[4]), 0);
    assert_stale(&f, slots[4]);
    assert_int_equal(figures(&f).damaged_count, 1);
    weir_region_free_owner(f.region, OWNER_DEFAULT, NULL);
    assert_int_equal(figures(&f).damaged_count, 0);
    test_free(fetches);
    finish(&f);
}

/*
 * A chunk comes back because an unfinished item in it goes on: nobody gets an
 * address of bytes that are not those that were put.
 */
static void what_is_brought_back_is_verified(void **state)
{
    struct fixture f;
    struct weir_slot slots[10];
    struct weir_slot pinned[2];
    struct weir_slot built;
    static char piece[16 * 1024];
    const void *data;
    size_t pin_count = 0;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    assert_int_equal(
        weir_region_alloc(f.region, 2 * sizeof(piece), (struct weir_label){500, 1}, &built), 0);
    harness_fill(piece, sizeof(piece), 500, 0);
    assert_int_equal(weir_region_write(f.region, built, 0, piece, sizeof(piece)), 0);
    for (size_t i = 0; i < 10; i++)
        slots[i] = put(&f, i, 3000);
    /* It leaves the memory only when there is nothing else that could. */
    for (uint64_t i = 0; info_of(&f, slots[9]).resident; i++) {
        assert_true(i < 1000);
        struct weir_slot slot;
        assert_int_equal(try_put(&f, 10000 + i, 64 * KIB, OWNER_FILLER, &slot), 0);
        if (i == 40 || i == 80) {
            assert_int_equal(weir_region_pin(f.region, slot, &data, NULL), 0);
            pinned[pin_count++] = slot;
        }
    }
    assert_int_equal(pin_count, 2);
    damage(&f, 4, 100);
    weir_region_unpin(f.region, pinned[0]);
    weir_region_unpin(f.region, pinned[1]);

    harness_fill(piece, sizeof(piece), 500, sizeof(piece));
    int r = weir_region_write(f.region, built, sizeof(piece), piece, sizeof(piece));
    for (int i = 0; i < 1000 && r == -EAGAIN; i++) {
        assert_true(wait_once(&f) >= 0);
        r = weir_region_write(f.region, built, sizeof(piece), piece, sizeof(piece));
    }
    assert_int_equal(r, 0);
    assert_int_equal(weir_region_commit(f.region, built), 0);
    assert_whole(&f, built);
    for (size_t i = 0; i < 10; i++) {
        if (i == 4)
            assert_int_equal(weir_region_at(f.region, slots[i], &data, NULL), -EBADMSG);
        else
            assert_here(&f, slots[i], 3000);
    }
    assert_true(info_of(&f, slots[4]).damaged);

    /* What is written again is no better for it. */
    make_cold(&f, slots[9]);
    fetch_one(&f, slots[4], -EBADMSG);
    for (size_t i = 0; i < 10; i++)
        if (i != 4)
            assert_whole(&f, slots[i]);
    finish(&f);
}

/* The cleaner meets damaged items: they are named, and all others move on whole. */
static void cleaning_names_what_is_damaged(void **state)
{
    struct fixture f;

    (void)state;
    if (!churn_start(&f, 13))
        return;
    for (size_t k = 0; k < 3; k++) {
        assert_false(info_of(&f, churn.slots[700 * k]).resident);
        damage(&f, 700 * k, 8 * KIB - 1);
    }
    while (figures(&f).damaged_count < 3) {
        size_t k = weir__random_below(&churn.random, CHURN_COUNT);
        assert_true(churn.key < UINT64_C(20) * CHURN_COUNT);
        if (k == 0 || k == 700 || k == 1400)
            continue;
        churn_replace(&f, k);
    }
    weir_region_audit(f.region);
    assert_true(figures(&f).moved_bytes > 0);
    for (size_t k = 0; k < CHURN_COUNT; k++) {
        assert_int_equal(info_of(&f, churn.slots[k]).label.key, churn.keys[k]);
        if (k == 0 || k == 700 || k == 1400)
            assert_true(info_of(&f, churn.slots[k]).damaged);
        else
            assert_whole(&f, churn.slots[k]);
    }
    finish(&f);
}

/* ---- Pins ------------------------------------------------------------------------ */

static void a_pin_keeps_the_address(void **state)
{
    struct fixture f;
    struct weir_slot slots[20];
    const void *places[20];
    uint64_t seed = 1000;

    (void)state;
    start(&f, (struct weir_region_config){
                  .bytes_initial = 4 * MIB,
                  .resident_bytes_max = RESIDENT_MIN,
              });
    if (!is_bounded(&f))
        return;
    for (uint64_t i = 0; i < 20; i++) {
        size_t bytes = 0;
        slots[i] = put(&f, i, 10000);
        if (i % 5 == 0) {
            assert_int_equal(weir_region_pin(f.region, slots[i], &places[i], &bytes), 0);
            assert_int_equal(bytes, 10000);
        }
    }
    assert_true(figures(&f).pinned_bytes >= 4 * 10000);
    for (int i = 0; i < 1024; i++) {
        struct weir_slot filler;
        assert_int_equal(try_put(&f, seed++, 64 * KIB, OWNER_FILLER, &filler), 0);
        if (i % 2 == 0)
            assert_int_equal(weir_region_free(f.region, filler), 0);
        if (i % 64 == 0) {
            assert_true(poll_once(&f) >= 0);
            weir_region_audit(f.region);
        }
    }
    for (uint64_t i = 0; i < 20; i += 5) {
        assert_pattern(places[i], 10000, i, 0);
        assert_ptr_equal(assert_here(&f, slots[i], 10000), places[i]);
    }
    assert_bound_holds(&f);
    for (uint64_t i = 0; i < 20; i += 5)
        weir_region_unpin(f.region, slots[i]);
    assert_int_equal(figures(&f).pinned_bytes, 0);
    make_cold(&f, slots[0]); /* now it may go */
    assert_whole(&f, slots[0]);
    finish(&f);
}

static void pins_count(void **state)
{
    struct fixture f;
    const void *data;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    struct weir_slot slot = put(&f, 1, 1000);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(weir_region_pin(f.region, slot, &data, NULL), 0);
    uint64_t pinned = figures(&f).pinned_bytes;
    assert_true(pinned >= 1000);
    for (int i = 0; i < 999; i++)
        weir_region_unpin(f.region, slot);
    assert_int_equal(figures(&f).pinned_bytes, pinned); /* bytes, not pins */
    for (uint64_t i = 0; i < 4 * RESIDENT_MIN / (64 * KIB); i++)
        put(&f, 100 + i, 64 * KIB);
    assert_pattern(data, 1000, 1, 0);
    assert_ptr_equal(assert_here(&f, slot, 1000), data);
    weir_region_unpin(f.region, slot);
    assert_int_equal(figures(&f).pinned_bytes, 0);
    make_cold(&f, slot);
    finish(&f);
}

static void a_pinned_item_is_freed_with_its_last_pin(void **state)
{
    struct fixture f;
    const void *data;

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = UINT64_MAX});
    struct weir_slot before = put(&f, 1, 1000);
    struct weir_slot slot = put(&f, 2, 1000);
    struct weir_slot after = put(&f, 3, 1000);
    assert_int_equal(weir_region_pin(f.region, slot, &data, NULL), 0);
    assert_int_equal(weir_region_pin(f.region, slot, &data, NULL), 0);
    assert_int_equal(weir_region_free(f.region, slot), 0);
    weir_region_audit(f.region);
    assert_stale(&f, slot); /* at once */
    fetch_one(&f, slot, -ESTALE);
    struct weir_region_stats stats = figures(&f);
    assert_int_equal(stats.slot_count, 2);
    assert_int_equal(stats.live_bytes, 2000);
    assert_int_equal(stats.free_bytes, 0); /* but its space is not there yet */
    assert_int_equal(weir_region_free(f.region, before), 0);
    assert_int_equal(weir_region_free(f.region, after), 0);
    weir_region_audit(f.region);
    for (uint64_t i = 0; i < 100; i++)
        put(&f, 10 + i, 1000);
    assert_pattern(data, 1000, 2, 0);
    weir_region_unpin(f.region, slot);
    weir_region_audit(f.region);
    assert_pattern(data, 1000, 2, 0);
    uint64_t free_bytes = figures(&f).free_bytes;
    weir_region_unpin(f.region, slot); /* by the handle that is stale for all else */
    weir_region_audit(f.region);
    assert_int_equal(figures(&f).free_bytes, free_bytes + 1008);
    assert_int_equal(figures(&f).pinned_bytes, 0);
    finish(&f);
}

static void a_fetched_item_can_be_pinned(void **state)
{
    struct fixture f;
    struct weir_slot slots[33];
    const void *places[32];
    struct fetches *fetches = test_calloc(1, sizeof(*fetches));

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 32, 10000);
    fetches->count = 4;
    memcpy(fetches->slots, slots, 4 * sizeof(slots[0]));
    assert_int_equal(fetch_start(&f, fetches), 0);
    fetch_finish(&f, fetches);
    for (int i = 0; i < 4; i++)
        assert_int_equal(weir_region_pin(f.region, slots[i], &places[i], NULL), 0);
    for (int turn = 0; turn < 7; turn++) { /* other fetches do not disturb it */
        memcpy(fetches->slots, slots + 4 + turn * 4, 4 * sizeof(slots[0]));
        assert_int_equal(fetch_start(&f, fetches), 0);
        fetch_finish(&f, fetches);
    }
    for (uint64_t i = 0; i < 200; i++)
        put(&f, 5000 + i, 64 * KIB);
    for (uint64_t i = 0; i < 4; i++) {
        assert_pattern(places[i], 10000, i, 0);
        assert_ptr_equal(assert_here(&f, slots[i], 10000), places[i]);
    }
    assert_bound_holds(&f);
    assert_int_equal(weir_region_free(f.region, slots[0]), 0);
    assert_stale(&f, slots[0]);
    assert_pattern(places[0], 10000, 0, 0);
    for (int i = 0; i < 4; i++)
        weir_region_unpin(f.region, slots[i]);
    weir_region_audit(f.region);
    assert_int_equal(figures(&f).pinned_bytes, 0);
    assert_whole(&f, slots[1]);
    test_free(fetches);
    finish(&f);
}

static void pin_it(struct fetches *fetches, struct weir_slot slot, int result)
{
    const void *data;

    assert_int_equal(result, 0);
    assert_int_equal(weir_region_pin(fetches->f->region, slot, &data, NULL), 0);
}

static void what_is_pinned_holds_its_buffer(void **state)
{
    struct fixture f;
    static struct weir_slot slots[257];
    struct fetches *fetches = test_calloc(1, sizeof(*fetches));

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 256, 64 * KIB); /* twice the memory */
    fetches->count = 256;
    fetches->then = pin_it;
    memcpy(fetches->slots, slots, 256 * sizeof(slots[0]));
    assert_int_equal(fetch_start(&f, fetches), 0);
    for (int idle = 0; idle < 50; idle++) {
        size_t called = fetches->called;
        assert_true(wait_once(&f) >= 0);
        if (fetches->called > called)
            idle = 0;
        assert_true(figures(&f).resident_bytes <= RESIDENT_MIN);
    }
    assert_true(fetches->called > 0);
    assert_true(fetches->called < 256); /* not more than the memory there is */
    weir_region_audit(f.region);
    fetches->then = NULL;
    for (size_t i = 0; i < 256; i++)
        if (fetches->done[i])
            weir_region_unpin(f.region, slots[i]);
    assert_int_equal(figures(&f).pinned_bytes, 0);
    fetch_finish(&f, fetches); /* and the rest comes */
    for (size_t i = 0; i < 256; i++)
        assert_int_equal(fetches->results[i], 0);
    assert_bound_holds(&f);
    test_free(fetches);
    finish(&f);
}

/* Who pins may need a piece of something else before it can unpin. */
static void a_piece_comes_whatever_is_pinned(void **state)
{
    struct fixture f;
    static struct weir_slot slots[257];
    static char piece_bytes[64 * KIB];
    struct fetches *fetches = test_calloc(1, sizeof(*fetches));
    struct piece piece = {.operation = {piece_done}};

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 256, 64 * KIB);
    fetches->count = 255;
    fetches->then = pin_it;
    memcpy(fetches->slots, slots, 255 * sizeof(slots[0]));
    assert_int_equal(fetch_start(&f, fetches), 0);
    for (int idle = 0; idle < 50; idle++) {
        size_t called = fetches->called;
        assert_true(wait_once(&f) >= 0);
        if (fetches->called > called)
            idle = 0;
    }
    assert_true(fetches->called < 255); /* the others wait for room */

    assert_int_equal(weir_region_fetch_into(f.region, slots[255], 0, piece_bytes,
                                            sizeof(piece_bytes), &piece.operation),
                     0);
    piece_finish(&f, &piece);
    assert_int_equal(piece.result, sizeof(piece_bytes));
    assert_pattern(piece_bytes, sizeof(piece_bytes), 255, 0);
    assert_true(fetches->called < 255);

    fetches->then = NULL;
    for (size_t i = 0; i < 255; i++)
        if (fetches->done[i])
            weir_region_unpin(f.region, slots[i]);
    fetch_finish(&f, fetches);
    assert_bound_holds(&f);
    test_free(fetches);
    finish(&f);
}

/* With all but one chunk pinned: what is asked for is done or refused, but never waited for in vain. */
static int put_between_pins(const char *directory)
{
    struct weir_region_config config = {
        .directory = directory,
        .resident_bytes_max = RESIDENT_MIN,
    };
    struct weir_region *region;
    struct weir_region_stats stats;
    struct weir_slot pinned[8];
    struct weir_slot slot;
    static char item[100000];
    const void *data;
    int pin_count = 0;

    alarm(PATIENCE_S);
    CHILD_CHECK(weir_region_open(&config, &region) == 0);
    weir_region_stats(region, &stats);
    if (!stats.bounded)
        return 0;
    /* One item of each chunk, until there is room for one chunk or for none. */
    for (int i = 0; i < 21 * 8; i++) {
        int r = weir_region_put(region, item, sizeof(item), (struct weir_label){0, 1}, &slot);
        CHILD_CHECK(r == 0 || r == -EAGAIN);
        if (r == 0 && i % 21 == 10) {
            CHILD_CHECK(weir_region_pin(region, slot, &data, NULL) == 0);
            pinned[pin_count++] = slot;
        }
        for (int k = 0; k < 50; k++) /* straddles chunks now and then */
            if (weir_region_put(region, item, 1000, (struct weir_label){0, 2}, &slot) == 0)
                weir_region_free(region, slot);

        struct weir_slot built; /* and pieces do */
        r = weir_region_alloc(region, 3 * sizeof(item), (struct weir_label){0, 3}, &built);
        CHILD_CHECK(r == 0 || r == -EAGAIN);
        for (size_t at = 0; r == 0 && at < 3 * sizeof(item); at += sizeof(item)) {
            r = weir_region_write(region, built, at, item, sizeof(item));
            CHILD_CHECK(r == 0 || r == -EAGAIN);
            if (r == 0 &&
                weir_region_put(region, item, sizeof(item), (struct weir_label){0, 4}, &slot) != 0)
                weir_region_free_owner(region, 4, NULL);
        }
        weir_region_free_owner(region, 3, NULL);
        CHILD_CHECK(weir_region_poll(region) >= 0);
        weir_region_audit(region);
    }
    CHILD_CHECK(pin_count >= 2);
    while (pin_count > 0)
        weir_region_unpin(region, pinned[--pin_count]);
    CHILD_CHECK(weir_region_put(region, item, sizeof(item), (struct weir_label){0, 1}, &slot) == 0);
    weir_region_close(region);
    return 0;
}

static void pins_never_make_a_call_wait_for_ever(void **state)
{
    (void)state;
    assert_child_passes(put_between_pins);
}

/* A cold piece of an unfinished item goes on where the next chunk is needed too. */
static int write_across_between_pins(const char *directory)
{
    struct weir_region_config config = {
        .directory = directory,
        .resident_bytes_max = RESIDENT_MIN,
    };
    struct weir_region *region;
    struct weir_region_stats stats;
    struct weir_slot pinned[4];
    struct weir_slot built;
    struct weir_slot slot;
    static char item[64 * 1024];
    const void *data;
    int r = 0;

    alarm(PATIENCE_S);
    CHILD_CHECK(weir_region_open(&config, &region) == 0);
    weir_region_stats(region, &stats);
    if (!stats.bounded)
        return 0;
    /* 3 MiB from chunk 0 on, written up to 16 KiB before the end of that chunk. */
    CHILD_CHECK(weir_region_alloc(region, 3 * MIB, (struct weir_label){0, 3}, &built) == 0);
    for (uint64_t at = 0; at < 31 * sizeof(item); at += sizeof(item))
        CHILD_CHECK(weir_region_write(region, built, at, item, sizeof(item)) == 0);
    CHILD_CHECK(weir_region_write(region, built, 31 * sizeof(item), item, 48 * KIB) == 0);
    /* Two pinned chunks, and others until nothing else is in memory. */
    for (int i = 0; i < 160; i++) {
        r = weir_region_put(region, item, sizeof(item), (struct weir_label){0, 1}, &slot);
        CHILD_CHECK(r == 0);
        if (i == 24 || i == 56) {
            CHILD_CHECK(weir_region_pin(region, slot, &data, NULL) == 0);
            pinned[i / 56] = slot;
        }
    }
    for (int tries = 0; tries < 100; tries++) {
        r = weir_region_write(region, built, 31 * sizeof(item) + 48 * KIB, item, 32 * KIB);
        if (r == 0)
            break;
        CHILD_CHECK(r == -EAGAIN);
        CHILD_CHECK(weir_region_wait(region, 1000000) >= 0);
    }
    weir_region_stats(region, &stats);
    CHILD_CHECK(stats.written_bytes < 64 * MIB); /* it was not written back again and again */
    weir_region_unpin(region, pinned[0]);
    weir_region_unpin(region, pinned[1]);
    if (r != 0)
        CHILD_CHECK(
            weir_region_write(region, built, 31 * sizeof(item) + 48 * KIB, item, 32 * KIB) == 0);
    weir_region_audit(region);
    weir_region_close(region);
    return 0;
}

static void a_piece_across_chunks_between_pins(void **state)
{
    (void)state;
    assert_child_passes(write_across_between_pins);
}

/* ---- Slots ----------------------------------------------------------------------- */

static void every_live_slot_is_walked_once(void **state)
{
    struct fixture f;
    static struct weir_slot slots[1000];
    static uint32_t seen[1000];
    struct weir_slot at = {0, 0};

    (void)state;
    start(&f, (struct weir_region_config){0});
    assert_false(weir_region_next(f.region, &at)); /* of nothing, nothing */
    for (uint64_t i = 0; i < 1000; i++)
        slots[i] = put(&f, i, i % 50);
    for (uint64_t i = 0; i < 1000; i += 3)
        assert_int_equal(weir_region_free(f.region, slots[i]), 0);
    memset(seen, 0, sizeof(seen));
    at = (struct weir_slot){0, 0};
    for (uint64_t count = 0; weir_region_next(f.region, &at); count++) {
        assert_true(count < 1000);
        uint64_t key = info_of(&f, at).label.key;
        assert_true(key < 1000);
        assert_int_equal(at.index, slots[key].index);
        assert_int_equal(at.generation, slots[key].generation);
        seen[key]++;
    }
    for (uint64_t i = 0; i < 1000; i++)
        assert_int_equal(seen[i], i % 3 == 0 ? 0 : 1);

    /* To free what one walks over is the usual thing to do. */
    at = (struct weir_slot){0, 0};
    while (weir_region_next(f.region, &at))
        assert_int_equal(weir_region_free(f.region, at), 0);
    assert_int_equal(figures(&f).slot_count, 0);
    weir_region_audit(f.region);
    finish(&f);
}

static void unfinished_items_are_walked_too(void **state)
{
    struct fixture f;
    struct weir_slot slot;
    struct weir_slot at = {0, 0};

    (void)state;
    start(&f, (struct weir_region_config){0});
    assert_int_equal(weir_region_alloc(f.region, 100, (struct weir_label){8, 9}, &slot), 0);
    assert_true(weir_region_next(f.region, &at));
    assert_int_equal(at.index, slot.index);
    assert_int_equal(at.generation, slot.generation);
    assert_false(info_of(&f, at).committed);
    assert_int_equal(info_of(&f, at).label.key, 8);
    assert_int_equal(info_of(&f, at).label.owner, 9);
    assert_false(weir_region_next(f.region, &at));
    finish(&f);
}

/* ---- Background ------------------------------------------------------------------- */

static void wait_does_not_sleep_for_nothing(void **state)
{
    struct fixture f;
    struct timespec before;
    struct timespec after;

    (void)state;
    start(&f, (struct weir_region_config){0});
    for (int i = 0; i < 10; i++) /* whatever open() left to do */
        assert_true(weir_region_wait(f.region, 1000000) >= 0);
    clock_gettime(CLOCK_MONOTONIC, &before);
    assert_int_equal(weir_region_wait(f.region, UINT64_C(20000000000)), 0);
    clock_gettime(CLOCK_MONOTONIC, &after);
    assert_true(after.tv_sec - before.tv_sec < 10);
    finish(&f);
}

static void the_longest_wait_is_no_error(void **state)
{
    struct fixture f;
    struct weir_slot slots[11];
    struct fetches *fetches = test_calloc(1, sizeof(*fetches));

    (void)state;
    start(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN});
    if (!is_bounded(&f))
        return;
    make_cold_items(&f, slots, 10, 3000);
    for (int i = 0; i < 10; i++)
        assert_true(weir_region_wait(f.region, 0) >= 0); /* none at all, too */
    fetches->count = 10;
    memcpy(fetches->slots, slots, 10 * sizeof(slots[0]));
    assert_int_equal(fetch_start(&f, fetches), 0);
    f.in_poll = true;
    for (int i = 0; i < 1000 && fetches->called < 10; i++)
        assert_true(weir_region_wait(f.region, UINT64_MAX) >= 0);
    f.in_poll = false;
    assert_int_equal(fetches->called, 10);
    test_free(fetches);
    finish(&f);
}

static void on_signal(int number)
{
    (void)number;
}

static void signals_do_no_harm(void **state)
{
    struct fixture f;
    static struct weir_slot slots[512];
    struct fetches *fetches = test_calloc(1, sizeof(*fetches));
    struct sigaction before;
    struct sigaction action = {.sa_handler = on_signal}; /* no SA_RESTART */
    struct itimerval often = {{0, 300}, {0, 300}};
    struct itimerval never = {{0, 0}, {0, 0}};

    (void)state;
    assert_int_equal(sigaction(SIGALRM, &action, &before), 0);
    assert_int_equal(setitimer(ITIMER_REAL, &often, NULL), 0);
    start(&f, (struct weir_region_config){
                  .bytes_initial = 2 * MIB,
                  .resident_bytes_max = RESIDENT_MIN,
              });
    if (!is_bounded(&f))
        return;
    for (uint64_t i = 0; i < 512; i++)
        slots[i] = put(&f, i, 64 * KIB);
    fetches->count = 400;
    memcpy(fetches->slots, slots, 400 * sizeof(slots[0]));
    assert_int_equal(fetch_start(&f, fetches), 0);
    fetch_finish(&f, fetches);
    for (int i = 0; i < 400; i++)
        assert_int_equal(fetches->results[i], 0);
    for (int i = 0; i < 512; i++)
        assert_whole(&f, slots[i]);
    assert_bound_holds(&f);
    assert_int_equal(setitimer(ITIMER_REAL, &never, NULL), 0);
    assert_int_equal(sigaction(SIGALRM, &before, NULL), 0);
    test_free(fetches);
    finish(&f);
}

static void poll_of_an_idle_region_is_zero(void **state)
{
    struct fixture f;

    (void)state;
    start(&f, (struct weir_region_config){0});
    for (int i = 0; i < 10; i++)
        assert_true(poll_once(&f) >= 0);
    for (int i = 0; i < 100; i++)
        assert_int_equal(poll_once(&f), 0);
    finish(&f);
}

static void on_a_shared_ring_nothing_waits(void **state)
{
    struct fixture f;
    static struct weir_slot slots[1024];
    uint64_t refused = 0;
    int fd_count = harness_fd_count();

    (void)state;
    begin(&f);
    assert_int_equal(weir__ring_open(256, true, &f.ring), 0);
    f.fd_count = harness_fd_count();
    f.map_count = harness_map_count(f.directory);
    assert_int_equal(open_as(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN}),
                     0);
    f.data_fd = harness_data_fd(f.directory, f.marks);
    if (!is_bounded(&f))
        return;
    for (uint64_t i = 0; i < 1024; i++) {
        struct timespec since;
        clock_gettime(CLOCK_MONOTONIC, &since);
        for (;;) {
            struct weir_region_stats before = figures(&f);
            slots[i] = (struct weir_slot){4711, 4712};
            int r = try_put(&f, i, 64 * KIB, OWNER_DEFAULT, &slots[i]);
            assert_true(figures(&f).resident_bytes <= RESIDENT_MIN);
            if (r == 0)
                break;
            struct weir_region_stats after = figures(&f);
            assert_int_equal(r, -EAGAIN);
            assert_int_equal(slots[i].index, 4711);
            assert_same_items(&before, &after);
            refused++;
            assert_true(wait_once(&f) >= 0);
            assert_false(patience_is_over(&since));
        }
        if (i % 64 == 0)
            weir_region_audit(f.region);
    }
    assert_true(refused > 0); /* nobody reaped in between: it had to say so */
    assert_bound_holds(&f);

    struct fetches *fetches = test_calloc(1, sizeof(*fetches));
    fetches->count = 32;
    memcpy(fetches->slots, slots, 32 * sizeof(slots[0]));
    assert_int_equal(fetch_start(&f, fetches), 0);
    fetch_finish(&f, fetches);
    for (int i = 0; i < 32; i++)
        assert_int_equal(fetches->results[i], 0);
    test_free(fetches);

    /* And closed with reads under way, whose buffers the ring must not touch again. */
    assert_int_equal(weir_region_fetch(f.region, slots + 100, 16, never_called, NULL), 0);
    weir_region_close(f.region);
    assert_int_equal(weir__ring_in_flight(f.ring), 0);
    nothing_left(&f);
    weir__ring_close(f.ring);
    assert_int_equal(harness_fd_count(), fd_count);
}

static void an_unfinished_item_on_a_shared_ring(void **state)
{
    struct fixture f;
    struct weir_slot slot;
    uint64_t refused = 0;
    static char bytes[64 * 1024];

    (void)state;
    begin(&f);
    assert_int_equal(weir__ring_open(256, true, &f.ring), 0);
    f.fd_count = harness_fd_count();
    f.map_count = harness_map_count(f.directory);
    assert_int_equal(open_as(&f, (struct weir_region_config){.resident_bytes_max = RESIDENT_MIN}),
                     0);
    f.data_fd = harness_data_fd(f.directory, f.marks);
    if (!is_bounded(&f))
        return;
    assert_int_equal(weir_region_alloc(f.region, 32 * MIB, (struct weir_label){6, 1}, &slot), 0);
    for (uint64_t at = 0; at < 32 * MIB; at += sizeof(bytes)) {
        struct timespec since;
        clock_gettime(CLOCK_MONOTONIC, &since);
        harness_fill(bytes, sizeof(bytes), 6, at);
        int r;
        while ((r = weir_region_write(f.region, slot, at, bytes, sizeof(bytes))) == -EAGAIN) {
            refused++;
            assert_true(wait_once(&f) >= 0);
            assert_false(patience_is_over(&since));
        }
        assert_int_equal(r, 0);
    }
    assert_true(refused > 0);
    assert_int_equal(weir_region_commit(f.region, slot), 0);
    assert_whole(&f, slot);
    assert_bound_holds(&f);
    finish(&f);
    weir__ring_close(f.ring);
}

static void the_tables_have_a_descriptor(void **state)
{
    struct fixture f;
    char path[64];
    char target[256];

    (void)state;
    start(&f, (struct weir_region_config){0});
    int fd = weir_region_fd(f.region);
    assert_true(fd >= 0);
    assert_int_equal(fd, weir_region_fd(f.region));
    assert_true(fd != f.data_fd);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    ssize_t length = readlink(path, target, sizeof(target) - 1);
    assert_true(length > 0);
    target[length] = '\0';
    assert_non_null(strstr(target, "memfd:weir.region"));
    finish(&f);
    assert_int_equal(fcntl(fd, F_GETFD), -1);
}

/* ---- Breaches of the contract, in debug builds ------------------------------------ */

static int close_while_pinned(const char *directory)
{
    struct weir_region_config config = {.directory = directory};
    struct weir_region *region;
    struct weir_slot slot;
    const void *data;

    CHILD_CHECK(weir_region_open(&config, &region) == 0);
    CHILD_CHECK(weir_region_put(region, "x", 1, (struct weir_label){0}, &slot) == 0);
    CHILD_CHECK(weir_region_pin(region, slot, &data, NULL) == 0);
    weir_region_close(region);
    return 0;
}

static int unpin_what_is_not_pinned(const char *directory)
{
    struct weir_region_config config = {.directory = directory};
    struct weir_region *region;
    struct weir_slot slot;

    CHILD_CHECK(weir_region_open(&config, &region) == 0);
    CHILD_CHECK(weir_region_put(region, "x", 1, (struct weir_label){0}, &slot) == 0);
    weir_region_unpin(region, slot);
    return 0;
}

static void *put_from_elsewhere(void *region)
{
    struct weir_slot slot;

    return weir_region_put(region, "x", 1, (struct weir_label){0}, &slot) == 0 ? region : NULL;
}

static int put_on_another_thread(const char *directory)
{
    struct weir_region_config config = {.directory = directory};
    struct weir_region *region;
    pthread_t thread;

    CHILD_CHECK(weir_region_open(&config, &region) == 0);
    CHILD_CHECK(pthread_create(&thread, NULL, put_from_elsewhere, region) == 0);
    CHILD_CHECK(pthread_join(thread, NULL) == 0);
    return 0;
}

static void breaches_stop_the_process(void **state)
{
    (void)state;
    if (!asserts_are_on) {
        pass_over("asserts are off in this build");
        return;
    }
    assert_child_is_stopped(close_while_pinned);
    assert_child_is_stopped(unpin_what_is_not_pinned);
    assert_child_is_stopped(put_on_another_thread);
}

/* ---- All of them ------------------------------------------------------------------- */

#define CASE(sentence, function)                                                                   \
 {                                                                                                 \
  sentence, function, NULL, NULL, NULL                                                             \
 }

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        CASE("closing a region leaves no descriptor, mapping, name or charge",
             closing_leaves_nothing),
        CASE("the defaults are those of the header", defaults_are_the_headers),
        CASE("the first reservation is cut to bytes_max", initial_is_cut_to_max),
        CASE("reserved words that are not zero are refused", reserved_words_are_zero),
        CASE("a directory is required", a_directory_is_required),
        CASE("a bad directory answers what open(2) says", a_bad_directory_says_what_open_says),
        CASE("a directory we may not write to is refused", a_directory_not_ours_is_refused),
        CASE("a directory may have a long name", a_long_directory_name_is_fine),
        CASE("a descriptor of a directory will do", a_descriptor_of_a_directory_will_do),
        CASE("the largest region is one tebibyte", the_largest_region_is_a_tebibyte),
        CASE("resident_bytes_max has a least value", resident_has_a_least_value),
        CASE("very small regions work or are refused", small_regions_work_or_are_refused),
        CASE("tmpfs is refused unless asked for, and then every byte counts",
             memory_is_no_place_for_overflow),
        CASE("the books are told what the stats say, and end at zero", the_books_end_at_zero),
        CASE("tables grow ahead of need", tables_grow_ahead_of_need),
        CASE("many small items are whole", many_small_items_are_whole),
        CASE("a small RLIMIT_FSIZE is -EDQUOT, never a signal",
             the_largest_file_allowed_is_a_limit),
        CASE("without address space to reserve the mapping may move",
             without_address_space_the_mapping_moves),
        CASE("a pin holds its address, also where the mapping may move",
             a_pin_holds_without_address_space),
        CASE("a floor above the free space is -ENOSPC", a_floor_above_free_space_is_enospc),
        CASE("an open that fails at any descriptor leaks none", a_failed_open_leaks_no_descriptor),
        CASE("nothing is left after a crash", nothing_is_left_after_a_crash),
        CASE("payload stays out of core dumps and out of children",
             payload_stays_out_of_dumps_and_children),
        CASE("no descriptor survives an exec", no_descriptor_survives_exec),
        CASE("the directory may go away", the_directory_may_go_away),
        CASE("a first reservation beyond the largest file is cut or refused",
             a_first_reservation_beyond_the_largest_file),
        CASE("many regions live side by side", many_regions_at_once),
        CASE("close forgets fetches that are under way", close_with_work_under_way),

        CASE("an item comes back byte for byte, with its exact length",
             an_item_comes_back_byte_for_byte),
        CASE("an item of no bytes is an item", an_item_of_no_bytes_is_an_item),
        CASE("an item of no bytes goes cold and comes back", an_item_of_no_bytes_goes_cold_too),
        CASE("labels are kept", labels_are_kept),
        CASE("the largest put works, and one byte more is -EFBIG", the_largest_put),
        CASE("the largest item works in pieces, and one byte more is -EFBIG",
             the_largest_item_comes_in_pieces),
        CASE("an item may be larger than the memory", an_item_larger_than_memory),
        CASE("pieces come in order, without gaps, and all of them", pieces_come_in_order),
        CASE("a piece has a largest size", a_piece_has_a_largest_size),
        CASE("an unfinished item cannot be read", an_unfinished_item_cannot_be_read),
        CASE("an unfinished item is given up by free", an_unfinished_item_is_given_up_by_free),
        CASE("several items are built at once", several_items_are_built_at_once),
        CASE("an item of no bytes is whole at once", an_item_of_no_bytes_is_whole_at_once),

        CASE("a pinned item can be put again from its own address", a_pinned_item_can_be_put_again),

        CASE("growth keeps every byte and the address", growth_keeps_every_byte_and_the_address),
        CASE("at bytes_max puts are -EDQUOT, and go on after frees",
             at_bytes_max_and_on_again_after_frees),
        CASE("cold space that was freed comes to use again", cold_space_comes_to_use_again),
        CASE("small cold holes come to use again", small_cold_holes_come_to_use_again),
        CASE("a region a quarter full is never full", a_region_a_quarter_full_is_never_full),
        CASE("sparse chunks are emptied", sparse_chunks_are_emptied),
        CASE("little is moved while all is taken out", little_is_moved_while_all_goes),
        CASE("large items move out of sparse chunks", large_items_move_out_of_sparse_chunks),
        CASE("the smallest hole that fits is used before the mark", a_hole_is_used_before_the_mark),
        CASE("freed neighbours become one, in any order", freed_neighbours_become_one),
        CASE("an emptied region gives the mark back", an_emptied_region_gives_the_mark_back),
        CASE("an empty tail goes back to the disk", an_empty_tail_goes_back_to_the_disk),

        CASE("a freed slot is stale, also when its place is taken", a_freed_slot_is_stale),
        CASE("slots of others and wild slots are stale", foreign_slots_are_stale),
        CASE("a handle never comes twice", a_handle_never_comes_twice),
        CASE("an owner gives all its slots back at once", an_owner_gives_all_its_slots_back),

        CASE("with eight times the memory the kernel agrees with the bound",
             eight_times_the_memory_stays_bounded),
        CASE("what has no place is not read again", what_has_no_place_is_not_read_again),
        CASE("memory that no fetch uses is lent", memory_that_no_fetch_uses_is_lent),
        CASE("a fetch beside pins everywhere", a_fetch_beside_pins_everywhere),
        CASE("the kernel agrees with the bound while it is cleaned",
             the_kernel_agrees_while_it_is_cleaned),
        CASE("a tick moves a bounded number of bytes", a_tick_moves_a_bounded_number_of_bytes),
        CASE("polls between puts keep the bound too", polls_alone_keep_the_bound),
        CASE("freeing cold items touches nothing", freeing_cold_items_touches_nothing),

        CASE("a cold item is fetched", a_cold_item_is_fetched),
        CASE("each slot is called back once", each_slot_is_called_back_once),
        CASE("fetch takes 1 to 1024 slots", fetch_has_a_range),
        CASE("the largest fetch works, and one byte more is -EFBIG", the_largest_fetch),
        CASE("an item too large to fetch is refused or answered, never forgotten",
             an_item_too_large_to_fetch_is_never_forgotten),
        CASE("four times the memory is fetched in turns", all_of_it_is_fetched_in_turns),
        CASE("more than the memory may be asked for at once",
             more_than_the_memory_is_asked_for_at_once),
        CASE("thousands of scattered items may be asked for at once", thousands_of_scattered_items),
        CASE("an item freed while it is fetched is stale", a_fetched_item_freed_under_way_is_stale),
        CASE("a callback may free what is under way", a_callback_may_free_what_is_under_way),
        CASE("a callback may free, put and read", a_callback_may_use_the_region),
        CASE("a callback may fetch the next", a_callback_may_fetch),
        CASE("one item may be fetched by several at once", one_item_is_fetched_by_several),

        CASE("a piece goes into the caller's buffer", a_piece_goes_into_the_callers_buffer),
        CASE("a piece whose item is freed under way is stale", a_piece_freed_under_way_is_stale),
        CASE("many pieces are under way", many_pieces_are_under_way),
        CASE("read takes offsets and stops at the end", read_takes_offsets),
        CASE("reading disturbs no fetch", reading_disturbs_no_fetch),

        CASE("a damaged item is named and harms no other",
             a_damaged_item_is_named_and_harms_no_other),

        CASE("what is brought back to be stored to is verified", what_is_brought_back_is_verified),
        CASE("cleaning names what is damaged", cleaning_names_what_is_damaged),
        CASE("a pin keeps slot and address", a_pin_keeps_the_address),
        CASE("pins count", pins_count),
        CASE("a pinned item that is freed goes with its last pin",
             a_pinned_item_is_freed_with_its_last_pin),
        CASE("a fetched item can be pinned", a_fetched_item_can_be_pinned),
        CASE("what is pinned holds its buffer, and fetches go on after unpins",
             what_is_pinned_holds_its_buffer),
        CASE("a piece comes whatever is pinned", a_piece_comes_whatever_is_pinned),

        CASE("pins never make a call wait for ever", pins_never_make_a_call_wait_for_ever),
        CASE("a piece across two chunks goes in or is refused, whatever is pinned",
             a_piece_across_chunks_between_pins),

        CASE("every live slot is walked once", every_live_slot_is_walked_once),
        CASE("unfinished items are walked too", unfinished_items_are_walked_too),

        CASE("wait does not sleep when nothing is under way", wait_does_not_sleep_for_nothing),
        CASE("the longest wait is no error, nor is none", the_longest_wait_is_no_error),
        CASE("signals do no harm", signals_do_no_harm),
        CASE("a poll of an idle region finds nothing", poll_of_an_idle_region_is_zero),
        CASE("on a shared ring a put says -EAGAIN and does not wait",
             on_a_shared_ring_nothing_waits),
        CASE("on a shared ring a large item goes in between polls",
             an_unfinished_item_on_a_shared_ring),
        CASE("the tables have a descriptor until close", the_tables_have_a_descriptor),

        CASE("breaches of the contract stop the process", breaches_stop_the_process),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("region", cases, NULL, NULL);
}
