/* SPDX-License-Identifier: MIT */
#ifndef WEIR_HARNESS_SMALLDISK_H
#define WEIR_HARNESS_SMALLDISK_H

/*
 * smalldisk - an ext4 file system of a few megabytes, for this process alone
 *
 * An image in the temporary directory, mounted through a loop device in a mount
 * namespace of our own: whatever way the process ends, mount and device go with
 * it. The image of a *thin* disk lies on a tmpfs of its own: once that is stopped,
 * blocks never written before fail like those of a broken disk, until it is given
 * more.
 */

#include "tmpdir.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>

/* Runs a program with its output thrown away; its status, or -1. */
static inline int harness_run(const char *const *arguments)
{
    int status;
    pid_t child = fork();

    if (child < 0)
        return -1;
    if (child == 0) {
        int null = open("/dev/null", O_RDWR);
        dup2(null, 0);
        dup2(null, 1);
        dup2(null, 2);
        execvp(arguments[0], (char *const *)(uintptr_t)arguments);
        _exit(127);
    }
    if (waitpid(child, &status, 0) != child || !WIFEXITED(status))
        return -1;
    return WEXITSTATUS(status);
}

/* A mount namespace of our own, once; NULL, or why not. */
static inline const char *harness_own_mounts(void)
{
    static bool is_ours;

    if (is_ours)
        return NULL;
    if (geteuid() != 0)
        return "only root may mount";
    if (harness_tmpdir() == NULL)
        return "there is no disk to write to";
    if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return "no mount namespace";
    is_ours = true;
    return NULL;
}

/* ext4 of @bytes in the new file @image, mounted at the new directory @path. */
static inline const char *harness_mount_image(const char *image, const char *path, uint64_t bytes)
{
    int fd = open(image, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
        return "the image cannot be made";
    close(fd);
    if (mkdir(path, 0700) < 0)
        return "the mount point cannot be made";

    /* No journal and no stop at errors: what is to be seen is the region's answer, not ext4's. */
    const char *const format[] = {"mkfs.ext4",    "-q", "-F",       "-m",  "0", "-O",
                                  "^has_journal", "-e", "continue", image, NULL};
    if (harness_run(format) != 0)
        return "mkfs.ext4 is missing or failed";
    const char *const attach[] = {"mount", "-o", "loop", image, path, NULL};
    return harness_run(attach) == 0 ? NULL : "no loop device";
}

/* NULL and the path of the mounted disk, or why there is none. */
static inline const char *harness_smalldisk(uint64_t bytes, const char **ret_path)
{
    static char image[PATH_MAX + 16];
    static char path[PATH_MAX + 16];
    const char *reason = harness_own_mounts();

    if (reason != NULL)
        return reason;
    snprintf(image, sizeof(image), "%s/image", harness_tmpdir());
    snprintf(path, sizeof(path), "%s/disk", harness_tmpdir());
    reason = harness_mount_image(image, path, bytes);
    if (reason == NULL)
        *ret_path = path;
    return reason;
}

struct harness_thindisk {
    char below[PATH_MAX + 32]; /* the tmpfs */
    char image[PATH_MAX + 48];
    char path[PATH_MAX + 32];
};

/* A disk that says @bytes on a tmpfs of @bytes_real; NULL, or why there is none. */
static inline const char *harness_thindisk(struct harness_thindisk *disk, uint64_t bytes,
                                           uint64_t bytes_real)
{
    static int count;
    char options[64];
    const char *reason = harness_own_mounts();

    if (reason != NULL)
        return reason;
    count++;
    snprintf(disk->below, sizeof(disk->below), "%s/below-%d", harness_tmpdir(), count);
    snprintf(disk->image, sizeof(disk->image), "%s/image", disk->below);
    snprintf(disk->path, sizeof(disk->path), "%s/thin-%d", harness_tmpdir(), count);
    snprintf(options, sizeof(options), "size=%llu", (unsigned long long)bytes_real);
    if (mkdir(disk->below, 0700) < 0 || mount("none", disk->below, "tmpfs", 0, options) < 0)
        return "no tmpfs";
    return harness_mount_image(disk->image, disk->path, bytes);
}

/*
 * Nothing is to be written at this moment: of a write that fits in part, the
 * loop device says that all of it was written.
 */
static inline int harness_thindisk_stop(const struct harness_thindisk *disk)
{
    char options[64];
    struct statvfs fs;

    sync();
    if (statvfs(disk->below, &fs) < 0)
        return -errno;
    snprintf(options, sizeof(options), "size=%llu",
             (unsigned long long)(fs.f_blocks - fs.f_bfree) * fs.f_frsize);
    return mount("none", disk->below, "tmpfs", MS_REMOUNT, options);
}

/* It is given more. */
static inline int harness_thindisk_grow(const struct harness_thindisk *disk, uint64_t bytes_real)
{
    char options[64];

    snprintf(options, sizeof(options), "size=%llu", (unsigned long long)bytes_real);
    return mount("none", disk->below, "tmpfs", MS_REMOUNT, options);
}

static inline void harness_thindisk_remove(const struct harness_thindisk *disk)
{
    umount2(disk->path, MNT_DETACH);
    umount2(disk->below, MNT_DETACH);
    rmdir(disk->path);
    rmdir(disk->below);
}

/* Before exit, so that the temporary directory can be removed. */
static inline void harness_smalldisk_remove(const char *path)
{
    umount2(path, MNT_DETACH);
}

static inline uint64_t harness_free_bytes(const char *path)
{
    struct statvfs fs;

    return statvfs(path, &fs) == 0 ? (uint64_t)fs.f_bavail * fs.f_frsize : 0;
}

#endif
