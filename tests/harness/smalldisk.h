/* SPDX-License-Identifier: MIT */
#ifndef WEIR_HARNESS_SMALLDISK_H
#define WEIR_HARNESS_SMALLDISK_H

/*
 * smalldisk - an ext4 file system of a few megabytes, for this process alone
 *
 * An image in the temporary directory, mounted through a loop device in a mount
 * namespace of our own: whatever way the process ends, mount and device go with
 * it.
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

/* NULL and the path of the mounted disk, or why there is none. */
static inline const char *harness_smalldisk(uint64_t bytes, const char **ret_path)
{
    static char image[PATH_MAX + 16];
    static char path[PATH_MAX + 16];

    if (geteuid() != 0)
        return "only root may mount";
    if (harness_tmpdir() == NULL)
        return "there is no disk to write to";
    snprintf(image, sizeof(image), "%s/image", harness_tmpdir());
    snprintf(path, sizeof(path), "%s/disk", harness_tmpdir());
    int fd = open(image, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
        return "the image cannot be made";
    close(fd);
    if (mkdir(path, 0700) < 0)
        return "the mount point cannot be made";

    const char *const format[] = {"mkfs.ext4", "-q", "-F", "-m", "0", image, NULL};
    if (harness_run(format) != 0)
        return "mkfs.ext4 is missing or failed";
    if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return "no mount namespace";
    const char *const attach[] = {"mount", "-o", "loop", image, path, NULL};
    if (harness_run(attach) != 0)
        return "no loop device";
    *ret_path = path;
    return NULL;
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
