/* SPDX-License-Identifier: MIT */
/*
 * region_fs_full - a region on each file system that there may be
 *
 * Images of some hundred megabytes, mounted for this process alone. On each the
 * same life: fill the disk, be told that it is full, read everything back, free,
 * fill again, give the space back. What mkfs or the kernel does not have here is
 * passed over.
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
#include "smalldisk.h"
#include "tmpdir.h"

#include <linux/fs.h>
#include <sys/ioctl.h>

#define KIB         UINT64_C(1024)
#define MIB         (KIB << 10)
#define ITEM_BYTES  (40 * KIB + 13)
#define ITEMS_MAX   16384
#define RESIDENT    (16 * MIB)
#define PATIENCE_NS UINT64_C(60000000000)

struct disk {
    char image[PATH_MAX + 32];
    char path[PATH_MAX + 32];
};

struct job {
    struct weir_region *region;
    const char *path;
    int fd;
    struct weir_slot slots[ITEMS_MAX];
    uint64_t seeds[ITEMS_MAX];
    size_t count;
    uint64_t next_seed;
    uint64_t taken; /* of the disk cap */
};

static bool cap_take(void *context, uint64_t bytes)
{
    *(uint64_t *)context += bytes;
    return true;
}

static void cap_give(void *context, uint64_t bytes)
{
    *(uint64_t *)context -= bytes;
}

/* ---- Disks ------------------------------------------------------------------ */

/* NULL, or why there is none. */
static const char *mount_disk(struct disk *disk, const char *kind, uint64_t bytes,
                              const char *const *format)
{
    static int count;
    const char *arguments[16];
    const char *reason = harness_own_mounts();
    size_t length = 0;

    if (reason != NULL)
        return reason;
    count++;
    snprintf(disk->image, sizeof(disk->image), "%s/fs-%d", harness_tmpdir(), count);
    snprintf(disk->path, sizeof(disk->path), "%s/mount-%d", harness_tmpdir(), count);
    int fd = open(disk->image, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0 || mkdir(disk->path, 0700) < 0)
        return "the image cannot be made";
    close(fd);
    while (*format != NULL)
        arguments[length++] = *format++;
    arguments[length++] = disk->image;
    arguments[length] = NULL;
    if (harness_run(arguments) != 0)
        return "mkfs is missing or failed";
    const char *const attach[] = {"mount", "-t", kind, "-o", "loop", disk->image, disk->path, NULL};
    return harness_run(attach) == 0 ? NULL
                                    : "no loop device, or the kernel has no such file system";
}

static void unmount_disk(struct disk *disk)
{
    assert_int_equal(umount2(disk->path, MNT_DETACH), 0);
    assert_int_equal(rmdir(disk->path), 0);
    assert_int_equal(unlink(disk->image), 0);
}

/* ---- Steps ------------------------------------------------------------------ */

static struct weir_region_stats figures(struct job *job)
{
    struct weir_region_stats stats;

    weir_region_stats(job->region, &stats);
    return stats;
}

static void wait_once(struct job *job)
{
    assert_true(weir_region_wait(job->region, 1000000) >= 0);
}

static int put(struct job *job)
{
    static unsigned char data[ITEM_BYTES];

    assert_true(job->count < ITEMS_MAX);
    harness_fill(data, ITEM_BYTES, job->next_seed, 0);
    int r = weir_region_put(job->region, data, ITEM_BYTES, (struct weir_label){0},
                            &job->slots[job->count]);
    if (r == 0)
        job->seeds[job->count++] = job->next_seed++;
    return r;
}

static void assert_all_whole(struct job *job)
{
    static unsigned char data[ITEM_BYTES + 1];
    size_t seen = 0;

    for (size_t i = 0; i < job->count; i++) {
        assert_int_equal(weir_region_read(job->region, job->slots[i], 0, data, sizeof(data), &seen),
                         0);
        assert_int_equal(seen, ITEM_BYTES);
        assert_int_equal(harness_differs_at(data, seen, job->seeds[i], 0), seen);
    }
}

static void fill(struct job *job, int expected)
{
    int r;

    while ((r = put(job)) == 0)
        if (job->count % 64 == 0)
            assert_true(weir_region_poll(job->region) >= 0);
    assert_int_equal(r, expected);
    weir_region_audit(job->region);
}

static void free_at(struct job *job, size_t i)
{
    assert_int_equal(weir_region_free(job->region, job->slots[i]), 0);
    job->slots[i] = job->slots[--job->count];
    job->seeds[i] = job->seeds[job->count];
}

static void assert_bound_holds(struct job *job)
{
    uint64_t since_ns = weir__clock_ns();

    assert_true(figures(job).resident_bytes <= RESIDENT);
    while (figures(job).bounded &&
           harness_cached_bytes(job->fd) > (int64_t)(figures(job).resident_bytes + 2 * MIB)) {
        assert_true(weir__clock_ns() - since_ns < PATIENCE_NS);
        wait_once(job); /* another core may hold a page for a moment */
    }
}

/* The life of a region; @error is what a put says when there is no more room. */
static void live(const char *path, bool memory_backed, int error)
{
    struct job *job = test_calloc(1, sizeof(*job));
    struct weir_region_config config = {
        .directory = path,
        .bytes_initial = 4 * MIB,
        .resident_bytes_max = RESIDENT,
        .disk_cap = {cap_take, cap_give, &job->taken},
        .memory_backed = memory_backed,
    };
    bool marks[HARNESS_FD_MAX];

    harness_mark_fds(marks);
    assert_int_equal(weir_region_open(&config, &job->region), 0);
    job->fd = harness_data_fd(path, marks);
    assert_true(job->fd >= 0);
    if (harness_fs_magic(path) == BTRFS_SUPER_MAGIC) { /* else each store would need a new block */
        int flags = 0;
        assert_int_equal(ioctl(job->fd, FS_IOC_GETFLAGS, &flags), 0);
        assert_true((flags & FS_NOCOW_FL) != 0);
    }
    print_message("# bounded: %d, synchronous: %d\n", figures(job).bounded,
                  figures(job).synchronous);

    fill(job, error);
    size_t full_count = job->count;
    print_message("# %zu items fit\n", full_count);
    assert_bound_holds(job);
    assert_all_whole(job);
    assert_int_equal(put(job), error);

    /* Every other chunk or so comes free, and is filled again. */
    for (size_t i = 0; i < job->count; i += 100)
        for (int k = 0; k < 50 && i < job->count; k++)
            free_at(job, job->count - 1 - i / 2);
    weir_region_audit(job->region);
    assert_true(job->count < full_count * 3 / 4);
    for (int i = 0; i < 10; i++)
        wait_once(job);
    assert_all_whole(job);
    fill(job, error);
    assert_true(job->count >= full_count * 7 / 8);
    assert_bound_holds(job);
    assert_all_whole(job);

    while (job->count > 0)
        free_at(job, job->count - 1);
    uint64_t since_ns = weir__clock_ns();
    /* 4 MiB, and a rest of up to 16 where the last chunks come free after a pause. */
    while (figures(job).file_bytes > 20 * MIB) {
        assert_true(weir__clock_ns() - since_ns < PATIENCE_NS);
        wait_once(job);
    }
    weir_region_audit(job->region);
    for (int i = 0; i < 100; i++)
        assert_int_equal(put(job), 0);
    assert_all_whole(job);
    assert_int_equal(figures(job).write_error_count, 0);
    assert_int_equal(figures(job).read_error_count, 0);
    weir_region_close(job->region);
    assert_int_equal(job->taken, 0);
    test_free(job);
}

static void live_on(const char *kind, uint64_t bytes, const char *const *format)
{
    struct disk disk;
    const char *reason = mount_disk(&disk, kind, bytes, format);

    if (reason != NULL) {
        print_message("# passed over: %s: %s\n", kind, reason);
        return;
    }
    live(disk.path, false, -ENOSPC);
    unmount_disk(&disk);
}

/* ---- Cases ------------------------------------------------------------------ */

static void on_ext4(void **state)
{
    (void)state;
    live_on("ext4", 96 * MIB, (const char *const[]){"mkfs.ext4", "-q", "-F", "-m", "0", NULL});
}

static void on_xfs(void **state)
{
    (void)state;
    live_on("xfs", 300 * MIB, (const char *const[]){"mkfs.xfs", "-q", "-f", NULL});
}

static void on_btrfs(void **state)
{
    (void)state;
    live_on("btrfs", 200 * MIB, (const char *const[]){"mkfs.btrfs", "-q", "-f", NULL});
}

/* One file of region "a" is one of "b" as well; @in_place: that file is told before its first byte. */
static void copy_file(const char *path, const char *suffix, bool in_place)
{
    char from[PATH_MAX + 64];
    char to[PATH_MAX + 64];
    int flags = 0;

    snprintf(from, sizeof(from), "%s/a%s", path, suffix);
    snprintf(to, sizeof(to), "%s/b%s", path, suffix);
    (void)unlink(to);
    int fd = open(to, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ioctl(fd, FS_IOC_GETFLAGS, &flags), 0);
    flags |= in_place ? FS_NOCOW_FL : 0;
    assert_int_equal(ioctl(fd, FS_IOC_SETFLAGS, &flags), 0);
    close(fd);
    const char *const copy[] = {"cp", "--sparse=always", "--reflink=never", from, to, NULL};
    assert_int_equal(harness_run(copy), 0);
}

/* btrfs hears of it only while a file is empty, and does not say that it was too late. */
static void a_copy_on_btrfs(void **state)
{
    const char *const format[] = {"mkfs.btrfs", "-q", "-f", NULL};
    struct disk disk;
    const char *reason = mount_disk(&disk, "btrfs", 200 * MIB, format);
    struct weir_region_config config = {.directory = disk.path, .name = "a", .bytes_max = 8 * MIB};
    struct weir_region *region;
    struct weir_slot slot;

    (void)state;
    if (reason != NULL) {
        print_message("# passed over: %s\n", reason);
        return;
    }
    assert_int_equal(weir_region_open(&config, &region), 0);
    assert_int_equal(weir_region_put(region, "a", 1, (struct weir_label){1, 1}, &slot), 0);
    assert_int_equal(weir_region_sync(region), 0);
    weir_region_close(region);
    config.name = "b";
    for (unsigned told = 0; told < 4; told++) {
        copy_file(disk.path, ".weir", (told & 1) != 0);
        copy_file(disk.path, ".weir-data", (told & 2) != 0);
        assert_int_equal(weir_region_open(&config, &region), told == 3 ? 0 : -EOPNOTSUPP);
    }
    weir_region_close(region);
    unmount_disk(&disk);
}

static void on_overlayfs(void **state)
{
    struct disk disk;
    char names[4][PATH_MAX + 64];
    char options[3 * (PATH_MAX + 80)];
    const char *const format[] = {"mkfs.ext4", "-q", "-F", "-m", "0", NULL};
    const char *reason = mount_disk(&disk, "ext4", 96 * MIB, format);

    (void)state;
    if (reason != NULL) {
        print_message("# passed over: %s\n", reason);
        return;
    }
    for (int i = 0; i < 4; i++) {
        static const char *const parts[] = {"lower", "upper", "work", "merged"};
        snprintf(names[i], sizeof(names[i]), "%s/%s", disk.path, parts[i]);
        assert_int_equal(mkdir(names[i], 0700), 0);
    }
    snprintf(options, sizeof(options), "lowerdir=%s,upperdir=%s,workdir=%s", names[0], names[1],
             names[2]);
    if (mount("overlay", names[3], "overlay", 0, options) < 0) {
        print_message("# passed over: overlayfs cannot be mounted\n");
    } else {
        live(names[3], false, -ENOSPC);
        assert_int_equal(umount2(names[3], MNT_DETACH), 0);
    }
    unmount_disk(&disk);
}

static void on_tmpfs(void **state)
{
    char path[PATH_MAX + 32];
    struct weir_region *region = NULL;
    const char *reason = harness_own_mounts();

    (void)state;
    snprintf(path, sizeof(path), "%s/memory", harness_tmpdir());
    if (reason != NULL || mkdir(path, 0700) < 0 ||
        mount("none", path, "tmpfs", 0, "size=48m") < 0) {
        print_message("# passed over: %s\n", reason != NULL ? reason : "no tmpfs");
        return;
    }
    struct weir_region_config config = {.directory = path};
    assert_int_equal(weir_region_open(&config, &region), -EOPNOTSUPP);
    live(path, true, -ENOSPC);
    assert_int_equal(umount2(path, MNT_DETACH), 0);
    assert_int_equal(rmdir(path), 0);
}

int main(int argc, char **argv)
{
    static const struct CMUnitTest cases[] = {
        {"a region on ext4, with a journal", on_ext4, NULL, NULL, NULL},
        {"a region on xfs", on_xfs, NULL, NULL, NULL},
        {"a region on btrfs", on_btrfs, NULL, NULL, NULL},
        {"a copy of a region on btrfs", a_copy_on_btrfs, NULL, NULL, NULL},
        {"a region on overlayfs", on_overlayfs, NULL, NULL, NULL},
        {"a region on tmpfs, on request only", on_tmpfs, NULL, NULL, NULL},
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    if (harness_tmpdir() == NULL || geteuid() != 0) {
        printf("SKIP: only root may mount\n");
        return 77;
    }
    return cmocka_run_group_tests_name("region on file systems", cases, NULL, NULL);
}
