/* SPDX-License-Identifier: MIT */
/*
 * region_named_unit - what a region with a name promises
 *
 * Each case has a directory of its own. A power loss is a header that tells of
 * another boot; a forged table is the file of a closed region with some bytes
 * changed. tests/crash does both to regions that were killed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/region.h>

#include "base/random.h"
#include "base/region_layout.h"

#include "named.h"
#include "pattern.h"
#include "process.h"
#include "program.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define KIB UINT64_C(1024)
#define MIB (KIB << 10)

#define NAME "shard-0"

struct fixture {
    char directory[PATH_MAX];
    int fd_count;
    int64_t charged;
    struct weir_region *region;
    struct weir_region_report report;
};

static void books_charge(void *context, int64_t bytes)
{
    *(int64_t *)context += bytes;
}

static void begin(struct fixture *f)
{
    *f = (struct fixture){.fd_count = harness_fd_count()};
    snprintf(f->directory, sizeof(f->directory), "%s/named-XXXXXX", harness_tmpdir());
    assert_non_null(mkdtemp(f->directory));
}

static struct weir_region_config config_of(struct fixture *f)
{
    return (struct weir_region_config){
        .directory = f->directory,
        .name = NAME,
        .bytes_initial = 4 * MIB,
        .bytes_max = 64 * MIB,
        .resident_bytes_max = 8 * MIB,
        .books = {books_charge, &f->charged},
    };
}

static int open_with(struct fixture *f, struct weir_region_config config)
{
    int r = weir_region_open(&config, &f->region);

    if (r == 0) {
        weir_region_report(f->region, &f->report);
        weir_region_audit(f->region);
    }
    return r;
}

static void open_named(struct fixture *f)
{
    assert_int_equal(open_with(f, config_of(f)), 0);
}

static void close_named(struct fixture *f)
{
    weir_region_audit(f->region);
    weir_region_close(f->region);
    f->region = NULL;
    assert_int_equal(f->charged, 0);
    assert_int_equal(harness_fd_count(), f->fd_count);
}

static void path_of(const struct fixture *f, const char *name, char path[PATH_MAX])
{
    assert_true(snprintf(path, PATH_MAX, "%s/%s", f->directory, name) < PATH_MAX);
}

static bool is_there(const struct fixture *f, const char *name)
{
    char path[PATH_MAX];
    struct stat info;

    path_of(f, name, path);
    return lstat(path, &info) == 0;
}

static int open_file(const struct fixture *f, const char *name, int flags)
{
    char path[PATH_MAX];

    path_of(f, name, path);
    int fd = open(path, flags | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    return fd;
}

/* Every item's key is the seed of its bytes. */
static struct weir_slot put(struct fixture *f, uint64_t seed, size_t bytes)
{
    struct weir_slot slot;
    char *data = malloc(bytes + 1);

    harness_fill(data, bytes, seed, 0);
    assert_int_equal(weir_region_put(f->region, data, bytes, (struct weir_label){seed, 7}, &slot),
                     0);
    free(data);
    return slot;
}

static int check(struct fixture *f, struct weir_slot slot, uint64_t seed, size_t bytes)
{
    struct weir_slot_info info;
    size_t count = 0;
    int r = weir_region_slot(f->region, slot, &info);

    if (r < 0)
        return r;
    assert_int_equal(info.bytes, bytes);
    assert_int_equal(info.label.key, seed);
    assert_int_equal(info.label.owner, 7);
    assert_true(info.committed);
    char *data = malloc(bytes + 1);
    r = weir_region_read(f->region, slot, 0, data, bytes, &count);
    if (r == 0) {
        assert_int_equal(count, bytes);
        assert_int_equal(harness_differs_at(data, bytes, seed, 0), bytes);
    }
    free(data);
    return r;
}

/* ---- Files and lock -------------------------------------------------------- */

static void two_files_that_are_ours_alone(void **state)
{
    struct fixture f;
    struct stat info;
    char path[PATH_MAX];

    (void)state;
    begin(&f);
    mode_t mask = umask(0);
    open_named(&f);
    umask(mask);
    assert_false(f.report.existed);
    assert_int_equal(harness_name_count(f.directory), 2);
    path_of(&f, NAME ".weir", path);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 07777, 0600);
    path_of(&f, NAME ".weir-data", path);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 07777, 0600);
    close_named(&f);
    assert_int_equal(harness_name_count(f.directory), 2);

    assert_int_equal(weir_region_remove(f.directory, NAME), 0);
    assert_int_equal(harness_name_count(f.directory), 0);
    assert_int_equal(weir_region_remove(f.directory, NAME), -ENOENT);
}

static void a_second_owner_is_refused(void **state)
{
    struct fixture f;
    struct weir_region *second = NULL;

    (void)state;
    begin(&f);
    open_named(&f);
    struct weir_region_config config = config_of(&f);
    config.books = (struct weir_books){0};
    assert_int_equal(weir_region_open(&config, &second), -EBUSY);
    assert_int_equal(weir_region_remove(f.directory, NAME), -EBUSY);

    pid_t child = fork();
    if (child == 0)
        _exit(weir_region_open(&config, &second) == -EBUSY ? 0 : 1);
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);

    put(&f, 1, 100);
    close_named(&f);
    open_named(&f);
    assert_int_equal(f.report.kept_slot_count, 1);
    close_named(&f);
}

/* It has inherited the descriptors, but not the region. */
static void a_forked_child_is_no_owner(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f);
    open_named(&f);
    struct weir_slot slot = put(&f, 1, 100);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
            pause();
    }
    close_named(&f);
    open_named(&f);
    assert_int_equal(check(&f, slot, 1, 100), 0);
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
    struct weir_region_config config = config_of(&f);
    struct weir_region *second = NULL;
    config.books = (struct weir_books){0};
    assert_int_equal(weir_region_open(&config, &second), -EBUSY); /* its end took nothing away */
    close_named(&f);
}

static void a_name_is_short_and_has_no_slash(void **state)
{
    struct fixture f;
    char name[300];

    (void)state;
    begin(&f);
    struct weir_region_config config = config_of(&f);
    config.name = "";
    assert_int_equal(open_with(&f, config), -EINVAL);
    config.name = "a/b";
    assert_int_equal(open_with(&f, config), -EINVAL);
    assert_int_equal(weir_region_remove(f.directory, "a/b"), -EINVAL);
    assert_int_equal(weir_region_remove(NULL, NAME), -EINVAL);
    memset(name, 'n', 201);
    name[201] = '\0';
    config.name = name;
    assert_int_equal(open_with(&f, config), -ENAMETOOLONG);
    name[200] = '\0';
    assert_int_equal(open_with(&f, config), 0);
    close_named(&f);
    assert_int_equal(weir_region_remove(f.directory, name), 0);
    assert_int_equal(f.charged, 0);
}

static void no_symbolic_link_is_followed(void **state)
{
    struct fixture f;
    char path[PATH_MAX];
    char target[PATH_MAX];

    (void)state;
    begin(&f);
    path_of(&f, NAME ".weir", path);
    path_of(&f, "elsewhere", target);
    close(open_file(&f, "elsewhere", O_CREAT | O_RDWR));
    assert_int_equal(symlink(target, path), 0);
    assert_int_equal(open_with(&f, config_of(&f)), -ELOOP);
    assert_int_equal(weir_region_remove(f.directory, NAME), -ELOOP);
    assert_int_equal(unlink(path), 0);

    open_named(&f);
    close_named(&f);
    char data[PATH_MAX];
    path_of(&f, NAME ".weir-data", data);
    assert_int_equal(rename(data, target), 0);
    assert_int_equal(symlink(target, data), 0);
    assert_int_equal(open_with(&f, config_of(&f)), -ELOOP);
    assert_int_equal(unlink(data), 0);
    assert_int_equal(open_with(&f, config_of(&f)), -ENOENT);
    assert_int_equal(rename(target, data), 0);
    open_named(&f);
    close_named(&f);
    assert_int_equal(harness_fd_count(), f.fd_count);
}

static void a_foreign_data_file_is_left_alone(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f);
    int fd = open_file(&f, NAME ".weir-data", O_CREAT | O_RDWR);
    assert_int_equal(write(fd, "mine", 4), 4);
    close(fd);
    assert_int_equal(open_with(&f, config_of(&f)), -EEXIST);
    assert_int_equal(harness_name_count(f.directory), 1);
    assert_int_equal(f.charged, 0);
    assert_int_equal(harness_fd_count(), f.fd_count);
}

/* Where one of the files should be there is something else: it is not touched, nor waited for. */
static void what_is_no_file_is_refused(void **state)
{
    static const char *const files[] = {NAME ".weir", NAME ".weir-data"};
    struct fixture f;
    char path[PATH_MAX];

    (void)state;
    for (int file = 0; file < 2; file++) {
        for (int is_pipe = 0; is_pipe < 2; is_pipe++) {
            begin(&f);
            open_named(&f);
            close_named(&f);
            path_of(&f, files[file], path);
            assert_int_equal(unlink(path), 0);
            assert_int_equal(is_pipe ? mkfifo(path, 0600) : mkdir(path, 0700), 0);
            assert_int_equal(open_with(&f, config_of(&f)), -EBADMSG);
            assert_int_equal(weir_region_remove(f.directory, NAME), -EBADMSG);
            assert_int_equal(harness_name_count(f.directory), 2);
            assert_int_equal(harness_fd_count(), f.fd_count);
            assert_int_equal(f.charged, 0);
        }
    }
}

/* Who died between its two names left tables; the data file beside them may be another's. */
static void an_unborn_region_takes_nothing_with_it(void **state)
{
    struct weir__header header;
    struct fixture f;
    char path[PATH_MAX];
    char bytes[4] = "";

    (void)state;
    begin(&f);
    open_named(&f);
    close_named(&f);
    harness_named_header(f.directory, NAME, &header);
    header.born = 0;
    harness_named_set_header(f.directory, NAME, &header);
    path_of(&f, NAME ".weir-data", path);
    int fd = open_file(&f, "another", O_CREAT | O_RDWR); /* before the first is gone: its inode */
    assert_int_equal(write(fd, "mine", 4), 4);
    close(fd);
    char another[PATH_MAX];
    path_of(&f, "another", another);
    assert_int_equal(rename(another, path), 0);
    assert_int_equal(open_with(&f, config_of(&f)), -EEXIST);
    harness_named_read(f.directory, NAME ".weir-data", 0, bytes, 4);
    assert_memory_equal(bytes, "mine", 4);
    assert_int_equal(harness_fd_count(), f.fd_count);
}

/* A copy has other blocks than those that were confirmed: all of it is read. */
static void a_copy_is_verified(void **state)
{
    static char bytes[MIB];
    struct fixture f;
    char path[PATH_MAX];
    char copy[PATH_MAX];
    struct stat info;

    (void)state;
    begin(&f);
    open_named(&f);
    struct weir_slot slot = put(&f, 1, 100000);
    assert_int_equal(weir_region_sync(f.region), 0);
    close_named(&f);
    path_of(&f, NAME ".weir-data", path);
    path_of(&f, "copy", copy);
    assert_int_equal(stat(path, &info), 0);
    int from = open_file(&f, NAME ".weir-data", O_RDONLY);
    int to = open_file(&f, "copy", O_CREAT | O_RDWR);
    for (int64_t at = 0; at < info.st_size; at += (int64_t)sizeof(bytes)) {
        ssize_t count = pread(from, bytes, sizeof(bytes), at);
        assert_true(count > 0);
        assert_int_equal(pwrite(to, bytes, (size_t)count, at), count);
    }
    close(from);
    close(to);
    assert_int_equal(rename(copy, path), 0);
    open_named(&f);
    assert_true(f.report.existed);
    assert_true(f.report.after_power_loss);
    assert_true(f.report.clean_shutdown);
    assert_int_equal(f.report.kept_slot_count, 1);
    assert_int_equal(f.report.lost_slot_count, 0);
    assert_int_equal(check(&f, slot, 1, 100000), 0);
    close_named(&f);
    open_named(&f); /* from now on it is the one */
    assert_false(f.report.after_power_loss);
    close_named(&f);
}

/* Who may not have so large a file gets an error, not a part of it; and no signal. */
static void a_small_file_limit_is_an_error(void **state)
{
    struct fixture f;
    struct weir_slot slots[40];

    (void)state;
    begin(&f);
    open_named(&f);
    for (uint64_t i = 0; i < 40; i++) /* some of them behind it */
        slots[i] = put(&f, i, MIB - 16);
    close_named(&f);
    pid_t child = fork();
    if (child == 0) {
        struct rlimit limit = {32 * MIB, 32 * MIB}; /* of 64 */
        struct weir_region_config config = config_of(&f);
        struct weir_region *region = NULL;
        if (setrlimit(RLIMIT_FSIZE, &limit) < 0)
            _exit(2);
        _exit(weir_region_open(&config, &region) == -EDQUOT && region == NULL ? 0 : 1);
    }
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    open_named(&f);
    assert_true(f.report.clean_shutdown); /* it was not touched */
    assert_int_equal(f.report.lost_slot_count, 0);
    for (uint64_t i = 0; i < 40; i++)
        assert_int_equal(check(&f, slots[i], i, MIB - 16), 0);
    close_named(&f);
}

/* The tables of a new one are a file as well, and longer than this. */
static void a_small_file_limit_is_no_lack_of_memory(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f);
    pid_t child = fork();
    if (child == 0) {
        struct rlimit limit = {8 * MIB, 8 * MIB};
        struct weir_region_config config = config_of(&f);
        struct weir_region *region = NULL;
        if (setrlimit(RLIMIT_FSIZE, &limit) < 0)
            _exit(2);
        config.bytes_max = 4 * MIB;
        _exit(weir_region_open(&config, &region) == -EDQUOT && region == NULL ? 0 : 1);
    }
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(harness_name_count(f.directory), 0);
}

/* A close is no sync: what was confirmed before it stays where it is after it, too. */
static void what_was_confirmed_stays_so_across_a_close(void **state)
{
    struct weir_region_stats stats;
    struct fixture f;

    (void)state;
    begin(&f);
    open_named(&f);
    struct weir_slot kept = put(&f, 1, 5000);
    struct weir_slot freed = put(&f, 2, 100000);
    assert_int_equal(weir_region_sync(f.region), 0);
    close_named(&f);

    open_named(&f);
    weir_region_stats(f.region, &stats);
    assert_int_equal(stats.live_bytes, 105000);
    assert_int_equal(stats.live_bytes_peak, 105000);
    assert_int_equal(weir_region_free(f.region, freed), 0);
    weir_region_stats(f.region, &stats);
    assert_int_equal(stats.freed_bytes, 100000);
    assert_int_equal(stats.live_bytes_peak, 105000);
    for (uint64_t i = 0; i < 100; i++) /* not there */
        put(&f, 100 + i, 50000);
    close_named(&f);

    harness_named_lose_power(f.directory, NAME);
    open_named(&f);
    assert_int_equal(f.report.restored_slot_count, 1);
    assert_int_equal(f.report.sync_count, 1);
    assert_int_equal(check(&f, kept, 1, 5000), 0);
    assert_int_equal(check(&f, freed, 2, 100000), 0);
    close_named(&f);
}

struct cap {
    uint64_t taken;
    uint64_t most;
};

static bool cap_take(void *context, uint64_t bytes)
{
    struct cap *cap = context;

    if (cap->taken + bytes > cap->most)
        return false;
    cap->taken += bytes;
    return true;
}

static void cap_give(void *context, uint64_t bytes)
{
    ((struct cap *)context)->taken -= bytes;
}

/* No room to grow is no reason to be without what is there; and the cap knows of all of it. */
static void a_full_disk_keeps_nobody_out(void **state)
{
    struct fixture f;
    struct weir_region_stats stats;
    struct weir_slot slots[32];
    struct weir_slot slot = {4711, 4712};
    struct cap cap = {0, UINT64_MAX};
    char path[PATH_MAX];
    struct stat info;
    char byte = 'x';

    (void)state;
    begin(&f);
    open_named(&f);
    for (uint64_t i = 0; i < 32; i++)
        slots[i] = put(&f, i, 256 * KIB);
    close_named(&f);

    struct weir_region_config config = config_of(&f);
    config.disk_floor_bytes = UINT64_MAX / 2;
    assert_int_equal(open_with(&f, config), 0);
    assert_int_equal(f.report.kept_slot_count, 32);
    for (uint64_t i = 0; i < 32; i++)
        assert_int_equal(check(&f, slots[i], i, 256 * KIB), 0);
    for (int i = 0; i < 100; i++) {
        int r = weir_region_put(f.region, &byte, 1, (struct weir_label){0}, &slot);
        assert_true(r == 0 || r == -ENOSPC || r == -EAGAIN);
    }
    close_named(&f);

    config = config_of(&f);
    config.disk_cap = (struct weir_disk_cap){cap_take, cap_give, &cap};
    cap.most = 8 * MIB - 1; /* less than there is */
    assert_int_equal(open_with(&f, config), -EDQUOT);
    assert_int_equal(cap.taken, 0);
    assert_int_equal(f.charged, 0);
    cap.most = 10 * MIB;
    assert_int_equal(open_with(&f, config), 0);
    weir_region_stats(f.region, &stats);
    assert_int_equal(cap.taken, stats.file_bytes);
    path_of(&f, NAME ".weir-data", path);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_size, stats.file_bytes);
    for (uint64_t i = 0; i < 32; i++)
        assert_int_equal(check(&f, slots[i], i, 256 * KIB), 0);
    weir_region_free_owner(f.region, 7, NULL);
    assert_int_equal(weir_region_sync(f.region), 0);
    close_named(&f);
    assert_int_equal(cap.taken, 0);

    /* Of what was there nothing is left: the file is as long as the cap was told. */
    assert_int_equal(stat(path, &info), 0);
    assert_true(info.st_size >= (off_t)(8 * MIB));
    config.bytes_initial = 2 * MIB;
    assert_int_equal(open_with(&f, config), 0);
    weir_region_stats(f.region, &stats);
    assert_int_equal(stats.file_bytes, 2 * MIB);
    assert_int_equal(cap.taken, stats.file_bytes);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_size, stats.file_bytes);
    close_named(&f);
    assert_int_equal(cap.taken, 0);
}

static void leftovers_are_swept(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f);
    close(open_file(&f, ".weir-4711-0123456789ab", O_CREAT | O_RDWR));
    close(open_file(&f, ".weir-4711-aBc012", O_CREAT | O_RDWR));
    int held = open_file(&f, ".weir-4712-0123456789ab", O_CREAT | O_RDWR);
    assert_int_equal(harness_lock(held), 0);
    /* Not ours: other names, a directory, a link. */
    const char *others[] = {".weir-4711-",
                            ".weir-x-0123456789ab",
                            "weir-4711-0123456789ab",
                            ".weir-4711-0123456789ab.txt",
                            ".weir-4711-01234",
                            ".weir-4711-0123456789abcdefg",
                            ".weir-0123456789ab",
                            "other.weir",
                            "other.weir-data"};
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
        close(open_file(&f, others[i], O_CREAT | O_RDWR));
    char path[PATH_MAX];
    path_of(&f, ".weir-4713-0123456789ab", path);
    assert_int_equal(mkdir(path, 0700), 0);
    path_of(&f, ".weir-4714-0123456789ab", path);
    assert_int_equal(symlink("other.weir", path), 0);

    open_named(&f);
    assert_false(is_there(&f, ".weir-4711-0123456789ab"));
    assert_false(is_there(&f, ".weir-4711-aBc012"));
    assert_true(is_there(&f, ".weir-4712-0123456789ab"));
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
        assert_true(is_there(&f, others[i]));
    assert_true(is_there(&f, ".weir-4713-0123456789ab"));
    assert_true(is_there(&f, ".weir-4714-0123456789ab"));
    close(held);
    close_named(&f);
}

/* The names come in two steps; who died between them has put nothing. */
static void what_was_never_born_is_made_anew(void **state)
{
    struct fixture f;

    (void)state;
    for (int has_data = 0; has_data < 2; has_data++) {
        begin(&f);
        open_named(&f);
        close_named(&f);
        struct weir__header header;
        harness_named_header(f.directory, NAME, &header);
        header.born = 0;
        harness_named_set_header(f.directory, NAME, &header);
        char path[PATH_MAX];
        path_of(&f, NAME ".weir-data", path);
        if (!has_data)
            assert_int_equal(unlink(path), 0);
        open_named(&f);
        assert_false(f.report.existed);
        close_named(&f);
        open_named(&f);
        assert_true(f.report.existed);
        close_named(&f);
    }
}

/* ---- Finding it again ------------------------------------------------------ */

#define ITEM_COUNT 400

static size_t size_of(uint64_t seed)
{
    uint64_t random = seed;

    return seed % 17 == 0 ? 0 : weir__random_below(&random, seed % 50 == 3 ? 900000 : 20000);
}

static void put_many(struct fixture *f, struct weir_slot *slots)
{
    for (uint64_t i = 0; i < ITEM_COUNT; i++)
        slots[i] = put(f, i + 1, size_of(i + 1));
    for (uint64_t i = 0; i < ITEM_COUNT; i += 3) {
        assert_int_equal(weir_region_free(f->region, slots[i]), 0);
        if (i % 2 == 0)
            slots[i] = put(f, i + 1, size_of(i + 1));
    }
}

static void check_many(struct fixture *f, const struct weir_slot *slots)
{
    for (uint64_t i = 0; i < ITEM_COUNT; i++) {
        int r = check(f, slots[i], i + 1, size_of(i + 1));
        assert_int_equal(r, i % 3 == 0 && i % 2 != 0 ? -ESTALE : 0);
    }
}

/* Entries that were vacant are used again, and then more than the tables had room for. */
static void tables_grow_after_it_was_found_again(void **state)
{
    const uint64_t count = 6000;
    struct weir_slot slots[6000];
    struct fixture f;

    (void)state;
    begin(&f);
    open_named(&f);
    for (uint64_t i = 0; i < count; i++)
        slots[i] = put(&f, i, 16);
    for (uint64_t i = 0; i < count; i += 3)
        assert_int_equal(weir_region_free(f.region, slots[i]), 0);
    close_named(&f);
    open_named(&f);
    assert_int_equal(f.report.kept_slot_count, count - count / 3);
    for (uint64_t i = 0; i < 4 * count; i++) /* no poll in between */
        (void)put(&f, i, 16);
    for (uint64_t i = 0; i < count; i++)
        assert_int_equal(check(&f, slots[i], i, 16), i % 3 == 0 ? -ESTALE : 0);
    close_named(&f);
    assert_int_equal(weir_region_remove(f.directory, NAME), 0);
}

static void a_region_is_found_again(void **state)
{
    struct fixture f;
    struct weir_slot slots[ITEM_COUNT];
    struct weir_region_stats before;
    struct weir_region_stats after;

    (void)state;
    begin(&f);
    open_named(&f);
    put_many(&f, slots);
    weir_region_stats(f.region, &before);
    close_named(&f);
    for (int turn = 0; turn < 3; turn++) {
        open_named(&f);
        assert_true(f.report.existed);
        assert_true(f.report.clean_shutdown);
        assert_false(f.report.after_power_loss);
        assert_int_equal(f.report.first_error, 0);
        assert_int_equal(f.report.lost_slot_count, 0);
        assert_int_equal(f.report.damaged_entry_count, 0);
        assert_int_equal(f.report.kept_slot_count, before.slot_count);
        assert_int_equal(f.report.kept_bytes, before.live_bytes);
        weir_region_stats(f.region, &after);
        assert_int_equal(after.slot_count, before.slot_count);
        assert_int_equal(after.live_bytes, before.live_bytes);
        assert_int_equal(after.resident_bytes, 0);
        check_many(&f, slots);
        close_named(&f);
    }

    /* And it goes on like any other. */
    open_named(&f);
    for (uint64_t i = 0; i < ITEM_COUNT; i++)
        if (i % 3 != 0 || i % 2 == 0)
            assert_int_equal(weir_region_free(f.region, slots[i]), 0);
    weir_region_audit(f.region);
    weir_region_stats(f.region, &after);
    assert_int_equal(after.live_bytes, 0);
    assert_int_equal(after.mark_bytes, 0);
    put_many(&f, slots);
    check_many(&f, slots);
    close_named(&f);
}

/* The table of chunks comes with the file, and what the last owner left in it is not believed. */
static void what_lies_far_behind_is_found_again(void **state)
{
    struct fixture f;
    struct weir_slot space;
    struct weir_slot slots[3];
    uint64_t space_bytes = 400 * MIB;

    (void)state;
    begin(&f);
    struct weir_region_config config = config_of(&f);
    config.bytes_max = 2048 * MIB;
    for (uint64_t i = 0; i < 3; i++) {
        assert_int_equal(open_with(&f, config), 0);
        for (uint64_t k = 0; k < i; k++)
            assert_int_equal(check(&f, slots[k], k, 50000), 0);
        assert_int_equal(
            weir_region_alloc(f.region, space_bytes, (struct weir_label){i, 7}, &space), 0);
        slots[i] = put(&f, i, 50000);
        assert_int_equal(weir_region_sync(f.region), 0);
        close_named(&f); /* the space was never committed, and is free in the next turn */
    }
    assert_int_equal(weir_region_remove(f.directory, NAME), 0);
}

static bool take_any(void *context, uint64_t bytes)
{
    *(uint64_t *)context += bytes;
    return true;
}

static void give_any(void *context, uint64_t bytes)
{
    *(uint64_t *)context -= bytes;
}

/* With no slot left the file is not made longer, and nobody is asked whether it may be for long. */
static void who_has_no_slots_takes_nothing_of_the_cap(void **state)
{
    struct fixture f;
    struct weir_slot slot;
    struct weir_region_stats stats;
    struct weir_region_config config;
    uint64_t taken = 0;
    int r = 0;

    (void)state;
    begin(&f);
    config =
        (struct weir_region_config){.directory = f.directory, .name = NAME, .bytes_max = 2 * MIB};
    assert_int_equal(weir_region_open(&config, &f.region), 0);
    for (uint64_t i = 0; r == 0; i++)
        r = weir_region_put(f.region, "sixteen bytes...", 16, (struct weir_label){i, 1}, &slot);
    assert_int_equal(r, -EDQUOT);
    weir_region_close(f.region);
    config.bytes_max = 16 * MIB;
    config.disk_cap = (struct weir_disk_cap){take_any, give_any, &taken};
    assert_int_equal(weir_region_open(&config, &f.region), 0);
    for (int i = 0; i < 3; i++) {
        assert_true(weir_region_poll(f.region) >= 0);
        weir_region_stats(f.region, &stats);
        assert_int_equal(stats.file_bytes, 2 * MIB);
        assert_int_equal(taken, stats.file_bytes);
    }
    weir_region_close(f.region);
    assert_int_equal(taken, 0);
    assert_int_equal(weir_region_remove(f.directory, NAME), 0);
}

static void limits_may_change(void **state)
{
    struct fixture f;
    struct weir_slot slots[ITEM_COUNT];
    struct weir_region_stats stats;

    (void)state;
    begin(&f);
    open_named(&f);
    put_many(&f, slots);
    close_named(&f);

    struct weir_region_config config = config_of(&f);
    config.bytes_max = 62 * MIB;
    assert_int_equal(open_with(&f, config), -EINVAL);
    config.bytes_max = 0;
    config.resident_bytes_max = UINT64_MAX;
    assert_int_equal(open_with(&f, config), 0);
    weir_region_stats(f.region, &stats);
    assert_int_equal(stats.bytes_max, 64 * MIB);
    check_many(&f, slots);
    close_named(&f);

    config.bytes_max = 128 * MIB;
    config.resident_bytes_max = 16 * MIB;
    assert_int_equal(open_with(&f, config), 0);
    check_many(&f, slots);
    for (uint64_t i = 0; i < 90; i++)
        put(&f, 1000 + i, MIB - 16);
    weir_region_stats(f.region, &stats);
    assert_true(stats.mark_bytes > 64 * MIB);
    close_named(&f);
    config.bytes_max = 0;
    assert_int_equal(open_with(&f, config), 0);
    weir_region_stats(f.region, &stats);
    assert_int_equal(stats.bytes_max, 128 * MIB);
    check_many(&f, slots);
    close_named(&f);
}

/*
 * Full, all of it cold, though all of it may be in memory: what is freed is room only in
 * chunks that are brought back. What the kernel lets go of is known all the same.
 */
static void a_small_region_goes_on(void **state)
{
    struct fixture f;
    struct weir_slot slots[5];
    struct weir_region_stats before;
    struct weir_region_stats after;

    (void)state;
    begin(&f);
    struct weir_region_config config = config_of(&f);
    config.bytes_max = 4 * MIB;
    config.resident_bytes_max = 16 * MIB;
    assert_int_equal(open_with(&f, config), 0);
    weir_region_stats(f.region, &before);
    for (uint64_t i = 0; i < 5; i++)
        slots[i] = put(&f, i, 800 * KIB);
    close_named(&f);

    assert_int_equal(open_with(&f, config), 0);
    weir_region_stats(f.region, &after);
    assert_int_equal(after.bounded, before.bounded);
    for (uint64_t i = 0; i < 5; i += 2)
        assert_int_equal(weir_region_free(f.region, slots[i]), 0);
    for (uint64_t i = 0; i < 5; i += 2)
        slots[i] = put(&f, 10 + i, 800 * KIB);
    for (uint64_t i = 0; i < 5; i++)
        assert_int_equal(check(&f, slots[i], i % 2 == 0 ? 10 + i : i, 800 * KIB), 0);
    close_named(&f);
}

static void what_was_under_construction_is_gone(void **state)
{
    struct fixture f;
    struct weir_slot slot;

    (void)state;
    begin(&f);
    open_named(&f);
    struct weir_slot whole = put(&f, 5, 5000);
    assert_int_equal(weir_region_alloc(f.region, 10000, (struct weir_label){9, 9}, &slot), 0);
    assert_int_equal(weir_region_write(f.region, slot, 0, "begun", 5), 0);
    close_named(&f);
    open_named(&f);
    assert_int_equal(f.report.unfinished_slot_count, 1);
    assert_int_equal(f.report.kept_slot_count, 1);
    assert_int_equal(f.report.lost_slot_count, 0);
    struct weir_slot_info info;
    assert_int_equal(weir_region_slot(f.region, slot, &info), -ESTALE);
    assert_int_equal(check(&f, whole, 5, 5000), 0);
    close_named(&f);
}

/* ---- Power loss ------------------------------------------------------------ */

/* Of what was put since the last sync the disk may know nothing, not even its entry. */
static void a_handle_that_nobody_knows_of_comes_never_again(void **state)
{
    struct fixture f;
    struct weir__header header;
    struct weir__entry entries[128];
    struct weir_slot late[40];
    struct weir_slot_info info;

    (void)state;
    begin(&f);
    open_named(&f);
    struct weir_slot kept = put(&f, 1, 5000);
    for (uint64_t i = 0; i < 10; i++) /* these have been in use before */
        late[i] = put(&f, i, 16);
    for (uint64_t i = 0; i < 10; i++)
        assert_int_equal(weir_region_free(f.region, late[i]), 0);
    assert_int_equal(weir_region_sync(f.region), 0);
    harness_named_header(f.directory, NAME, &header);
    harness_named_read(f.directory, NAME ".weir", header.entry_offset, entries, sizeof(entries));
    for (uint64_t i = 0; i < 40; i++)
        late[i] = put(&f, 100 + i, 16);
    close_named(&f);
    harness_named_write(f.directory, NAME ".weir", header.entry_offset, entries, sizeof(entries));
    harness_named_set_header(f.directory, NAME, &header);
    harness_named_lose_power(f.directory, NAME);

    open_named(&f);
    assert_int_equal(f.report.kept_slot_count, 1);
    assert_int_equal(f.report.lost_slot_count, 0);
    for (uint64_t i = 0; i < 60; i++)
        (void)put(&f, 200 + i, 16);
    for (uint64_t i = 0; i < 40; i++)
        assert_int_equal(weir_region_slot(f.region, late[i], &info), -ESTALE);
    assert_int_equal(check(&f, kept, 1, 5000), 0);
    close_named(&f);
    open_named(&f); /* and so it goes on */
    for (uint64_t i = 0; i < 60; i++)
        (void)put(&f, 300 + i, 16);
    for (uint64_t i = 0; i < 40; i++)
        assert_int_equal(weir_region_slot(f.region, late[i], &info), -ESTALE);
    close_named(&f);
    assert_int_equal(weir_region_remove(f.directory, NAME), 0);
}

/* What was put twice since the last sync in one entry: the disk knows of the first only. */
static void a_handle_behind_one_that_is_kept_comes_never_again(void **state)
{
    struct fixture f;
    struct weir__header header;
    struct weir__entry entries[128];
    uint64_t sums[128];
    struct weir_slot first;
    struct weir_slot_info info;
    char data[6000];

    (void)state;
    begin(&f);
    open_named(&f);
    struct weir_slot kept = put(&f, 1, 5000);
    assert_int_equal(weir_region_sync(f.region), 0);
    harness_fill(data, sizeof(data), 2, 0);
    assert_int_equal(weir_region_alloc(f.region, sizeof(data), (struct weir_label){2, 7}, &first),
                     0);
    assert_int_equal(weir_region_write(f.region, first, 0, data, sizeof(data)), 0);
    assert_int_equal(weir_region_commit(f.region, first), 0); /* it has a checksum */
    int fd = harness_named_open(f.directory, NAME ".weir-data");
    int64_t at = harness_find(fd, data, sizeof(data));
    close(fd);
    harness_named_header(f.directory, NAME, &header);
    harness_named_read(f.directory, NAME ".weir", header.entry_offset, entries, sizeof(entries));
    harness_named_read(f.directory, NAME ".weir", header.sum_offset, sums, sizeof(sums));
    assert_int_equal(weir_region_free(f.region, first), 0);
    struct weir_slot late = put(&f, 3, 6000);
    assert_int_equal(late.index, first.index);
    close_named(&f);
    harness_named_write(f.directory, NAME ".weir", header.entry_offset, entries, sizeof(entries));
    harness_named_write(f.directory, NAME ".weir", header.sum_offset, sums, sizeof(sums));
    harness_named_write(f.directory, NAME ".weir-data", (uint64_t)at, data, sizeof(data));
    harness_named_set_header(f.directory, NAME, &header);
    harness_named_lose_power(f.directory, NAME);

    for (int i = 0; i < 2; i++) {
        open_named(&f);
        assert_int_equal(f.report.kept_slot_count, 2);
        assert_int_equal(check(&f, first, 2, sizeof(data)), 0);
        assert_int_equal(weir_region_slot(f.region, late, &info), -ESTALE);
        if (i == 0) /* and so it goes on */
            close_named(&f);
    }
    assert_int_equal(weir_region_free(f.region, first), 0);
    assert_int_equal(weir_region_sync(f.region), 0);
    for (uint64_t i = 0; i < 60; i++) {
        (void)put(&f, 200 + i, 6000);
        assert_int_equal(weir_region_slot(f.region, late, &info), -ESTALE);
    }
    assert_int_equal(check(&f, kept, 1, 5000), 0);
    close_named(&f);
    assert_int_equal(weir_region_remove(f.directory, NAME), 0);
}

static void a_power_loss(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f);
    open_named(&f);
    struct weir_slot kept = put(&f, 1, 5000);
    struct weir_slot freed = put(&f, 2, 6000);
    struct weir_slot hit = put(&f, 3, 7000);
    assert_int_equal(weir_region_sync(f.region), 0);
    struct weir_slot late = put(&f, 4, 8000); /* has no checksum yet */
    assert_int_equal(weir_region_free(f.region, freed), 0);
    assert_int_equal(check(&f, freed, 2, 6000), -ESTALE);
    close_named(&f);
    harness_named_lose_power(f.directory, NAME);

    int fd = open_file(&f, NAME ".weir-data", O_RDWR);
    char *needle = malloc(7000);
    harness_fill(needle, 7000, 3, 0);
    int64_t at = harness_find(fd, needle, 7000);
    free(needle);
    assert_true(at >= 0);
    assert_int_equal(pwrite(fd, "X", 1, at + 6999), 1);
    close(fd);

    open_named(&f);
    assert_true(f.report.after_power_loss);
    assert_int_equal(f.report.kept_slot_count, 2);
    assert_int_equal(f.report.restored_slot_count, 1);
    assert_int_equal(f.report.lost_slot_count, 2);
    assert_int_equal(f.report.lost_bytes, 15000);
    assert_int_equal(f.report.first_error, -EBADMSG);
    assert_int_equal(f.report.first_lost.index, hit.index);
    assert_int_equal(f.report.first_lost.generation, hit.generation);
    assert_int_equal(f.report.sync_count, 1);
    assert_int_equal(check(&f, kept, 1, 5000), 0);
    assert_int_equal(check(&f, freed, 2, 6000), 0);
    assert_int_equal(check(&f, hit, 3, 7000), -ESTALE);
    assert_int_equal(check(&f, late, 4, 8000), -ESTALE);
    close_named(&f);
}

/* Entry, checksum and bytes lie in three pages, which reach the disk as they like. */
static void bytes_of_a_successor_are_not_believed(void **state)
{
    struct fixture f;
    struct weir__header header;
    struct weir__entry before;
    struct weir__entry after;

    (void)state;
    begin(&f);
    open_named(&f);
    struct weir_slot kept = put(&f, 1, 5000);
    struct weir_slot old = put(&f, 2, 5000);
    harness_named_header(f.directory, NAME, &header);
    uint64_t at = header.entry_offset + old.index * sizeof(before);
    harness_named_read(f.directory, NAME ".weir", at, &before, sizeof(before));
    assert_int_equal(weir_region_free(f.region, old), 0);
    struct weir_slot new = put(&f, 3, 5000);
    assert_int_equal(weir_region_sync(f.region), 0);
    close_named(&f);
    harness_named_read(f.directory, NAME ".weir", at, &after, sizeof(after));
    assert_int_equal(new.index, old.index);
    assert_int_equal(after.place, before.place);

    harness_named_write(f.directory, NAME ".weir", at, &before, sizeof(before));
    harness_named_lose_power(f.directory, NAME);
    open_named(&f);
    assert_int_equal(f.report.kept_slot_count, 1);
    assert_int_equal(f.report.lost_slot_count, 1);
    assert_int_equal(f.report.first_lost.generation, old.generation);
    assert_int_equal(check(&f, kept, 1, 5000), 0);
    assert_int_equal(check(&f, old, 2, 5000), -ESTALE);
    close_named(&f);
}

/*
 * A page of entries that never reached the disk, and one behind it that did. Those
 * behind lie where others do now, which have no checksum yet.
 */
static void entries_behind_a_gap_are_forgotten(void **state)
{
    static struct weir__entry none[128];
    static struct weir_slot slots[270];
    struct fixture f;
    struct weir__header header;

    (void)state;
    begin(&f);
    open_named(&f);
    for (uint64_t i = 1; i <= 400; i++)
        put(&f, i, 100);
    close_named(&f);
    harness_named_header(f.directory, NAME, &header);
    header.figures.entry_count = 100;
    harness_named_set_header(f.directory, NAME, &header);
    harness_named_write(f.directory, NAME ".weir",
                        header.entry_offset + 128 * sizeof(struct weir__entry), none, sizeof(none));
    harness_named_lose_power(f.directory, NAME);

    open_named(&f); /* nothing was confirmed, and nothing had a checksum */
    assert_int_equal(f.report.kept_slot_count, 0);
    for (uint64_t i = 0; i < 270; i++)
        slots[i] = put(&f, 1000 + i, 300);
    close_named(&f);
    open_named(&f);
    assert_int_equal(f.report.kept_slot_count, 270);
    assert_int_equal(f.report.lost_slot_count, 0);
    assert_int_equal(f.report.damaged_entry_count, 0);
    for (uint64_t i = 0; i < 270; i++)
        assert_int_equal(check(&f, slots[i], 1000 + i, 300), 0);
    close_named(&f);
}

static void confirmed_space_waits_for_the_next_sync(void **state)
{
    struct fixture f;
    struct weir_region_stats stats;

    (void)state;
    begin(&f);
    open_named(&f);
    struct weir_slot first = put(&f, 1, 5000);
    /* Never confirmed: its space is free at once. */
    assert_int_equal(weir_region_free(f.region, first), 0);
    weir_region_stats(f.region, &stats);
    assert_int_equal(stats.freed_bytes, 0);
    assert_int_equal(stats.mark_bytes, 0);

    first = put(&f, 1, 5000);
    assert_int_equal(weir_region_sync(f.region), 0);
    assert_int_equal(weir_region_free(f.region, first), 0);
    weir_region_audit(f.region);
    weir_region_stats(f.region, &stats);
    assert_int_equal(stats.freed_bytes, 5008);
    assert_int_equal(stats.slot_count, 0);
    assert_int_equal(stats.mark_bytes, 5008);
    struct weir_slot second = put(&f, 2, 5000);
    weir_region_stats(f.region, &stats);
    assert_int_equal(stats.mark_bytes, 2 * 5008);

    /* After a kill it is freed as before, and still not free. */
    close_named(&f);
    open_named(&f);
    assert_int_equal(f.report.kept_slot_count, 1);
    assert_int_equal(f.report.restored_slot_count, 0);
    assert_int_equal(check(&f, first, 1, 5000), -ESTALE);
    weir_region_stats(f.region, &stats);
    assert_int_equal(stats.freed_bytes, 5008);

    assert_int_equal(weir_region_sync(f.region), 0);
    weir_region_audit(f.region);
    weir_region_stats(f.region, &stats);
    assert_int_equal(stats.freed_bytes, 0);
    assert_true(stats.free_bytes >= 5008);
    close_named(&f);

    /* The second sync confirmed that it is freed. */
    harness_named_lose_power(f.directory, NAME);
    open_named(&f);
    assert_int_equal(f.report.kept_slot_count, 1);
    assert_int_equal(f.report.restored_slot_count, 0);
    assert_int_equal(f.report.lost_slot_count, 0);
    assert_int_equal(check(&f, second, 2, 5000), 0);
    close_named(&f);
}

static void pins_and_syncs(void **state)
{
    struct fixture f;
    struct weir_region_stats stats;
    const void *data;

    (void)state;
    begin(&f);
    open_named(&f);
    struct weir_slot slot = put(&f, 1, 5000);
    assert_int_equal(weir_region_sync(f.region), 0);
    assert_int_equal(weir_region_pin(f.region, slot, &data, NULL), 0);
    assert_int_equal(weir_region_free(f.region, slot), 0);
    assert_int_equal(weir_region_sync(f.region), 0);
    weir_region_audit(f.region);
    assert_int_equal(harness_differs_at(data, 5000, 1, 0), 5000);
    weir_region_stats(f.region, &stats);
    assert_int_equal(stats.mark_bytes, 5008);
    weir_region_unpin(f.region, slot);
    weir_region_stats(f.region, &stats);
    assert_int_equal(stats.mark_bytes, 0);

    slot = put(&f, 1, 5000);
    assert_int_equal(weir_region_sync(f.region), 0);
    assert_int_equal(weir_region_pin(f.region, slot, &data, NULL), 0);
    assert_int_equal(weir_region_free(f.region, slot), 0);
    weir_region_unpin(f.region, slot);
    weir_region_stats(f.region, &stats);
    assert_int_equal(stats.mark_bytes, 5008);
    assert_int_equal(weir_region_sync(f.region), 0);
    weir_region_stats(f.region, &stats);
    assert_int_equal(stats.mark_bytes, 0);
    close_named(&f);
}

static void alignment_is_kept(void **state)
{
    struct fixture f;
    struct weir_slot slots[3];
    struct weir__header header;
    struct weir__entry entry;
    const uint64_t bytes = 5000;

    (void)state;
    begin(&f);
    open_named(&f);
    for (uint64_t i = 0; i < 3; i++) {
        void *data;
        assert_int_equal(weir_region_alloc_in_place(f.region, bytes, 4096,
                                                    (struct weir_label){i + 1, 7}, &slots[i],
                                                    &data),
                         0);
        harness_fill(data, bytes, i + 1, 0);
        if (i < 2)
            assert_int_equal(weir_region_commit(f.region, slots[i]), 0);
    }
    assert_int_equal(weir_region_sync(f.region), 0);
    assert_int_equal(weir_region_free(f.region, slots[0]), 0);
    weir_region_audit(f.region);
    close_named(&f);
    harness_named_lose_power(f.directory, NAME);

    open_named(&f);
    assert_int_equal(f.report.restored_slot_count, 1);
    assert_int_equal(f.report.kept_slot_count, 2);
    assert_int_equal(f.report.unfinished_slot_count, 1);
    for (uint64_t i = 0; i < 2; i++) {
        assert_int_equal(check(&f, slots[i], i + 1, bytes), 0);
    }
    close_named(&f);
    harness_named_header(f.directory, NAME, &header);
    for (uint64_t i = 0; i < 2; i++) {
        harness_named_read(f.directory, NAME ".weir",
                           header.entry_offset + slots[i].index * sizeof(entry), &entry,
                           sizeof(entry));
        assert_int_equal(weir__tag_state(entry.tag), EXTENT_LIVE);
        assert_int_equal(weir__tag_alignment(entry.tag), 4096);
        assert_int_equal(weir__place_offset(entry.place) % 4096, 0);
    }
}

static void wiping_leaves_what_lives(void **state)
{
    struct fixture f;
    struct weir_slot slots[ITEM_COUNT];
    struct weir_region *second;

    (void)state;
    begin(&f);
    struct weir_region_config config = config_of(&f);
    config.wipes = true;
    assert_int_equal(open_with(&f, config), 0);
    put_many(&f, slots);
    /* Nor does somebody wipe it who was refused. */
    assert_int_equal(weir_region_open(&config, &second), -EBUSY);
    close_named(&f);
    struct weir_region_config smaller = config;
    smaller.bytes_max = 32 * MIB;
    assert_int_equal(weir_region_open(&smaller, &second), -EINVAL);
    assert_int_equal(open_with(&f, config), 0);
    check_many(&f, slots);
    close_named(&f);
}

static void an_anonymous_region_has_no_name(void **state)
{
    struct fixture f;
    struct weir_region_report none = {0};

    (void)state;
    begin(&f);
    struct weir_region_config config = config_of(&f);
    config.name = NULL;
    assert_int_equal(open_with(&f, config), 0);
    assert_int_equal(weir_region_sync(f.region), -EOPNOTSUPP);
    assert_memory_equal(&f.report, &none, sizeof(none));
    assert_int_equal(harness_name_count(f.directory), 0);
    close_named(&f);
}

/* So many empty items that there is no slot for another: then nothing can be split either. */
static void the_last_slot_is_taken(void **state)
{
    struct fixture f;
    struct weir_slot slot = {0};
    struct weir_slot last;
    uint64_t count = 0;
    int r;

    (void)state;
    begin(&f);
    struct weir_region_config config = config_of(&f);
    config.bytes_initial = config.bytes_max = 2 * MIB;
    assert_int_equal(open_with(&f, config), 0);
    while ((r = weir_region_put(f.region, "", 0, (struct weir_label){0, 7}, &last)) == 0)
        count++;
    assert_int_equal(r, -EDQUOT);
    assert_int_equal(weir_region_sync(f.region), 0);
    close_named(&f);

    assert_int_equal(open_with(&f, config), 0);
    assert_int_equal(f.report.kept_slot_count, count);
    while (weir_region_next(f.region, &slot))
        assert_int_equal(weir_region_free(f.region, slot), 0);
    assert_int_equal(weir_region_sync(f.region), 0);
    weir_region_audit(f.region);
    put(&f, 1, 5000);
    close_named(&f);
}

/* How many items a new region takes before its tables grow. */
static uint64_t count_first_step(struct fixture *f, struct weir_region_config config)
{
    struct weir_region_stats before;
    struct weir_region_stats stats;
    uint64_t count = 0;

    assert_int_equal(open_with(f, config), 0);
    weir_region_stats(f->region, &before);
    do {
        put(f, 1, 0);
        weir_region_stats(f->region, &stats);
        count++;
    } while (stats.metadata_bytes == before.metadata_bytes);
    close_named(f);
    assert_int_equal(weir_region_remove(f->directory, NAME), 0);
    return count - 1;
}

/*
 * Items of a chunk and a bit on either side, as many as there is room for: when they
 * come free each chunk border is a cut, between what is empty and what is cold. And
 * all others have used up what entries the tables had ready.
 */
static void every_border_is_cut(void **state)
{
    struct fixture f;
    struct weir_region_stats stats;
    struct weir_slot wide[98];
    const uint64_t wide_count = sizeof(wide) / sizeof(wide[0]);

    (void)state;
    begin(&f);
    struct weir_region_config config = config_of(&f);
    config.bytes_initial = config.bytes_max = 400 * MIB;
    config.resident_bytes_max = 32 * MIB;
    uint64_t left = count_first_step(&f, config) - 2 * wide_count - 1;

    assert_int_equal(open_with(&f, config), 0);
    put(&f, 1, 2 * MIB - 16);
    for (uint64_t i = 0; i < wide_count; i++) {
        wide[i] = put(&f, 1, 2 * MIB + 32);
        put(&f, 1, 2 * MIB - 32);
    }
    for (; left > 0; left--)
        put(&f, 1, 0);
    for (uint64_t i = 0; i < wide_count; i++)
        assert_int_equal(weir_region_free(f.region, wide[i]), 0);
    weir_region_stats(f.region, &stats);
    assert_true(stats.free_extent_count > 2 * wide_count);
    close_named(&f);
}

/*
 * Of three chunks in memory two are pinned, and the only room reaches from a chunk that has
 * no memory into one on disk: each makes room for the other. The put is not to try for ever.
 */
static void a_put_gives_up_where_pins_leave_too_little(void **state)
{
    enum { ITEM_BYTES = 64 << 10, PER_CHUNK = 32, CHUNKS = 12, ITEMS = CHUNKS * PER_CHUNK };
    struct fixture f;
    static struct weir_slot slots[ITEMS];
    struct weir_region_stats before;
    struct weir_region_stats after;
    struct weir_slot built;
    struct weir_slot slot;
    const void *data;
    static char bytes[5 * ITEM_BYTES];

    (void)state;
    begin(&f);
    struct weir_region_config config = config_of(&f);
    config.bytes_initial = config.bytes_max = CHUNKS * 2 * MIB;
    assert_int_equal(open_with(&f, config), 0);
    for (uint64_t i = 0; i < ITEMS; i++) {
        slots[i] = put(&f, i, ITEM_BYTES);
        if (i == (CHUNKS - 2) * PER_CHUNK || i == (CHUNKS - 1) * PER_CHUNK)
            assert_int_equal(weir_region_pin(f.region, slots[i], &data, NULL), 0);
    }

    /* Chunk 4: space for one that is built, and 256 KiB; chunk 5: 320 KiB, and they adjoin. */
    for (uint64_t i = 4 * PER_CHUNK; i < 5 * PER_CHUNK + 5; i++)
        assert_int_equal(weir_region_free(f.region, slots[i]), 0);
    assert_int_equal(
        weir_region_alloc(f.region, 2 * MIB - 4 * ITEM_BYTES, (struct weir_label){0, 7}, &built),
        0);
    weir_region_stats(f.region, &before);
    int r = weir_region_put(f.region, bytes, sizeof(bytes) - 16, (struct weir_label){0, 7}, &slot);
    weir_region_stats(f.region, &after);
    assert_int_equal(r, -EAGAIN);
    assert_in_range(after.written_bytes - before.written_bytes, 0, 100 * 2 * MIB);

    weir_region_unpin(f.region, slots[(CHUNKS - 2) * PER_CHUNK]);
    weir_region_unpin(f.region, slots[(CHUNKS - 1) * PER_CHUNK]);
    assert_int_equal(
        weir_region_put(f.region, bytes, sizeof(bytes) - 16, (struct weir_label){0, 7}, &slot), 0);
    close_named(&f);
}

/* ---- Damage ---------------------------------------------------------------- */

static int reopen_with(struct fixture *f, const struct weir__header *header)
{
    harness_named_set_header(f->directory, NAME, header);
    int r = open_with(f, config_of(f));
    if (r == 0)
        close_named(f);
    assert_int_equal(harness_fd_count(), f->fd_count);
    assert_int_equal(f->charged, 0);
    return r;
}

static void a_damaged_head_is_an_error(void **state)
{
    struct fixture f;
    struct weir__header good;
    struct weir__header bad;

    (void)state;
    begin(&f);
    open_named(&f);
    struct weir_slot slot = put(&f, 1, 3000);
    close_named(&f);
    harness_named_header(f.directory, NAME, &good);

#define FORGE(field, value, error)                                                                 \
 do {                                                                                              \
  bad = good;                                                                                      \
  bad.field = (value);                                                                             \
  assert_int_equal(reopen_with(&f, &bad), (error));                                                \
 } while (0)
    FORGE(magic, 0, -EBADMSG);
    FORGE(version, LAYOUT_VERSION + 1, -EPROTONOSUPPORT);
    FORGE(header_bytes, 512, -EBADMSG);
    FORGE(bytes_max, 0, -EBADMSG);
    FORGE(bytes_max, good.bytes_max + 1, -EBADMSG);
    FORGE(bytes_max, 2 * LAYOUT_BYTES_LIMIT, -EBADMSG);
    FORGE(chunk_count_max, good.chunk_count_max / 2, -EBADMSG);
    FORGE(entry_count_max, 0, -EBADMSG);
    FORGE(entry_count_max, UINT64_MAX, -EBADMSG);
    FORGE(chunk_offset, 0, -EBADMSG);
    FORGE(entry_offset, good.sum_offset, -EBADMSG);
    FORGE(sum_offset, UINT64_MAX, -EBADMSG);
    FORGE(vacant_offset, 0, -EBADMSG);
    FORGE(generation, 1, -EBADMSG);
    FORGE(named, 0, -EBADMSG);
    /* These do no harm. */
    FORGE(figures.entry_count, UINT64_MAX, 0);
    FORGE(figures.entry_count, 0, 0);
    FORGE(figures.live_bytes, UINT64_MAX, 0);
    FORGE(data_inode, 0, 0);
    FORGE(pid, -1, 0);
#undef FORGE
    bad = good;
    bad.directory[0] ^= 1;
    harness_named_write(f.directory, NAME ".weir", 0, &bad, sizeof(bad));
    assert_int_equal(open_with(&f, config_of(&f)), -EBADMSG);
    assert_int_equal(weir_region_remove(f.directory, NAME), -EBADMSG);

    assert_int_equal(reopen_with(&f, &good), 0);
    open_named(&f);
    assert_int_equal(check(&f, slot, 1, 3000), 0);
    close_named(&f);

    char path[PATH_MAX];
    path_of(&f, NAME ".weir", path);
    assert_int_equal(truncate(path, 100), 0);
    assert_int_equal(open_with(&f, config_of(&f)), -EBADMSG);
    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(open_with(&f, config_of(&f)), -EBADMSG);
}

/* What one forged word of the middle one of three items costs. */
static void forge_entry(uint64_t place_xor, uint64_t tag_xor, uint64_t *ret_lost,
                        uint64_t *ret_damaged)
{
    struct fixture f;
    struct weir__header header;
    struct weir__entry entry;

    begin(&f);
    open_named(&f);
    struct weir_slot slots[3];
    for (uint64_t i = 0; i < 3; i++)
        slots[i] = put(&f, i + 1, 5000);
    assert_int_equal(weir_region_sync(f.region), 0);
    close_named(&f);
    harness_named_header(f.directory, NAME, &header);
    uint64_t at = header.entry_offset + slots[1].index * sizeof(entry);
    harness_named_read(f.directory, NAME ".weir", at, &entry, sizeof(entry));
    entry.place ^= place_xor;
    entry.tag ^= tag_xor;
    harness_named_write(f.directory, NAME ".weir", at, &entry, sizeof(entry));

    open_named(&f);
    assert_int_equal(check(&f, slots[0], 1, 5000), 0);
    assert_int_equal(check(&f, slots[2], 3, 5000), 0);
    assert_int_equal(f.report.first_error, -EBADMSG);
    struct weir_slot_info info;
    assert_int_equal(weir_region_slot(f.region, slots[1], &info), -ESTALE);
    *ret_lost = f.report.lost_slot_count;
    *ret_damaged = f.report.damaged_entry_count;
    put(&f, 9, 5000);
    close_named(&f);
    open_named(&f);
    assert_int_equal(f.report.first_error, 0); /* told once */
    assert_int_equal(f.report.kept_slot_count, 3);
    close_named(&f);
}

static void a_damaged_entry_costs_one_item(void **state)
{
    uint64_t lost;
    uint64_t damaged;

    (void)state;
    forge_entry(UINT64_C(1) << 35, 0, &lost, &damaged); /* outside the file */
    assert_int_equal(lost, 1);
    forge_entry(0, UINT64_C(1) << 63, &lost, &damaged); /* much too long */
    assert_int_equal(lost, 1);
    forge_entry(UINT64_C(313), 0, &lost, &damaged); /* 5008 / 16: the place of the first */
    assert_int_equal(lost, 1);
    forge_entry(UINT64_C(1), 0, &lost, &damaged); /* into a neighbour */
    assert_int_equal(lost, 1);
    forge_entry(UINT64_C(313) ^ 626, 0, &lost, &damaged); /* the place of the last, and before it */
    assert_int_equal(lost, 1);
    forge_entry(UINT64_C(313) ^ 314, 0, &lost, &damaged);
    assert_int_equal(lost, 1);
    forge_entry(0, 1, &lost, &damaged); /* LIVE with an even generation */
    assert_int_equal(lost, 0);
    assert_int_equal(damaged, 1);
    forge_entry(0, (uint64_t)(0xf ^ EXTENT_LIVE) << 48, &lost, &damaged); /* no such state */
    assert_int_equal(damaged, 1);
    forge_entry(0, (uint64_t)(EXTENT_FREE ^ EXTENT_LIVE) << 48, &lost, &damaged);
    assert_int_equal(damaged, 1);
}

static void files_that_were_cut_off(void **state)
{
    struct fixture f;
    char path[PATH_MAX];
    struct weir__header header;

    (void)state;
    begin(&f);
    open_named(&f);
    struct weir_slot first = put(&f, 1, 5000);
    struct weir_slot last = first;
    for (uint64_t i = 2; i < 20; i++)
        last = put(&f, i, MIB - 16);
    close_named(&f);

    path_of(&f, NAME ".weir-data", path);
    assert_int_equal(truncate(path, 3 * MIB + 5), 0);
    open_named(&f);
    assert_int_equal(f.report.kept_slot_count, 3);
    assert_int_equal(f.report.lost_slot_count, 16);
    assert_int_equal(f.report.lost_bytes, 16 * (MIB - 16));
    assert_int_equal(check(&f, first, 1, 5000), 0);
    assert_int_equal(check(&f, last, 19, MIB - 16), -ESTALE);
    close_named(&f);

    path_of(&f, NAME ".weir", path);
    harness_named_header(f.directory, NAME, &header);
    assert_int_equal(truncate(path, (off_t)(header.entry_offset + 100)), 0);
    open_named(&f);
    weir_region_audit(f.region);
    close_named(&f);
}

/* ---- A kill ---------------------------------------------------------------- */

static void a_killed_owner_leaves_every_item(void **state)
{
    struct fixture f;
    struct weir_slot slots[ITEM_COUNT];
    int pipes[2];

    (void)state;
    begin(&f);
    assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
    pid_t child = fork();
    if (child == 0) {
        open_named(&f);
        put_many(&f, slots);
        if (write(pipes[1], slots, sizeof(slots)) != (ssize_t)sizeof(slots))
            _exit(1);
        for (;;)
            pause();
    }
    close(pipes[1]);
    size_t count = 0;
    while (count < sizeof(slots)) {
        ssize_t got = read(pipes[0], (char *)slots + count, sizeof(slots) - count);
        assert_true(got > 0);
        count += (size_t)got;
    }
    close(pipes[0]);
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, NULL, 0), child);

    open_named(&f);
    assert_false(f.report.clean_shutdown);
    assert_false(f.report.after_power_loss);
    assert_int_equal(f.report.lost_slot_count, 0);
    check_many(&f, slots);
    close_named(&f);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        CASE("two files that are ours alone, and gone after remove", two_files_that_are_ours_alone),
        CASE("a second owner is refused", a_second_owner_is_refused),
        CASE("a forked child is no owner", a_forked_child_is_no_owner),
        CASE("a name is short and has no slash", a_name_is_short_and_has_no_slash),
        CASE("no symbolic link is followed", no_symbolic_link_is_followed),
        CASE("a data file that is not ours is left alone", a_foreign_data_file_is_left_alone),
        CASE("what is no file is refused", what_is_no_file_is_refused),
        CASE("an unborn region takes nothing with it", an_unborn_region_takes_nothing_with_it),
        CASE("a copy is verified", a_copy_is_verified),
        CASE("what was confirmed stays so across a close",
             what_was_confirmed_stays_so_across_a_close),
        CASE("a small RLIMIT_FSIZE is -EDQUOT for what is there, too",
             a_small_file_limit_is_an_error),
        CASE("a small RLIMIT_FSIZE is -EDQUOT for what is not there",
             a_small_file_limit_is_no_lack_of_memory),
        CASE("a full disk or cap keeps nobody out", a_full_disk_keeps_nobody_out),
        CASE("leftovers are swept, and nothing else", leftovers_are_swept),
        CASE("a region that was never born is made anew", what_was_never_born_is_made_anew),
        CASE("tables grow after it was found again", tables_grow_after_it_was_found_again),
        CASE("a region is found again as it was, and goes on", a_region_is_found_again),
        CASE("what lies far behind is found again", what_lies_far_behind_is_found_again),
        CASE("who has no slots takes nothing of the cap",
             who_has_no_slots_takes_nothing_of_the_cap),
        CASE("bytes_max may grow, the memory may change", limits_may_change),
        CASE("a small region that was full takes items again", a_small_region_goes_on),
        CASE("what was under construction is gone", what_was_under_construction_is_gone),
        CASE("after a power loss what sync confirmed is there", a_power_loss),
        CASE("what a power loss took never has its handle taken",
             a_handle_that_nobody_knows_of_comes_never_again),
        CASE("nor has what came after one that it left",
             a_handle_behind_one_that_is_kept_comes_never_again),
        CASE("entries behind a gap are forgotten", entries_behind_a_gap_are_forgotten),
        CASE("bytes of a successor are not believed", bytes_of_a_successor_are_not_believed),
        CASE("what sync confirmed keeps its space until the next",
             confirmed_space_waits_for_the_next_sync),
        CASE("a pin outlives a sync, and a sync a pin", pins_and_syncs),
        CASE("what was filled in place keeps its alignment", alignment_is_kept),
        CASE("a region without a slot left is found again, and sync frees them",
             the_last_slot_is_taken),
        CASE("a put gives up where pins leave too little",
             a_put_gives_up_where_pins_leave_too_little),
        CASE("what comes free finds the entries that it needs", every_border_is_cut),
        CASE("wiping leaves what lives", wiping_leaves_what_lives),
        CASE("an anonymous region has nothing to sync or to report",
             an_anonymous_region_has_no_name),
        CASE("a damaged head is an error", a_damaged_head_is_an_error),
        CASE("a damaged entry costs one item", a_damaged_entry_costs_one_item),
        CASE("files that were cut off open with a report", files_that_were_cut_off),
        CASE("a killed owner leaves every committed item", a_killed_owner_leaves_every_item),
    };

    if (!harness_begin(argc, argv))
        return 0;
    return cmocka_run_group_tests_name("region_named", tests, NULL, NULL);
}
