/* SPDX-License-Identifier: MIT */
/*
 * memcg - a memory cgroup of our own (version 1), with a limit
 */
#include "memcg.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <mntent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

static int file_open(const struct memcg *memcg, const char *name, int flags)
{
    char path[MEMCG_PATH_BYTES + 64];

    snprintf(path, sizeof(path), "%s/%s", memcg->path, name);
    int fd = open(path, flags | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static int file_write(const struct memcg *memcg, const char *name, uint64_t value)
{
    char text[32];
    int length = snprintf(text, sizeof(text), "%" PRIu64, value);
    int fd = file_open(memcg, name, O_WRONLY);

    if (fd < 0)
        return fd;
    int r = write(fd, text, (size_t)length) == length ? 0 : -errno;
    close(fd);
    return r;
}

/* Where the controller is mounted by whoever runs this machine. */
static int mount_find(char *path)
{
    FILE *mounts = setmntent("/proc/self/mounts", "re");
    struct mntent *entry;
    int r = -ENOENT;

    if (mounts == NULL)
        return -errno;
    while (r != 0 && (entry = getmntent(mounts)) != NULL)
        if (strcmp(entry->mnt_type, "cgroup") == 0 && hasmntopt(entry, "memory") != NULL) {
            snprintf(path, MEMCG_PATH_BYTES / 2, "%s", entry->mnt_dir);
            r = 0;
        }
    endmntent(mounts);
    return r;
}

static int mount_make(struct memcg *memcg, const char *directory)
{
    snprintf(memcg->mount, sizeof(memcg->mount), "%s/weir-bench.XXXXXX", directory);
    if (mkdtemp(memcg->mount) == NULL) {
        memcg->mount[0] = '\0';
        return -errno;
    }
    if (mount("none", memcg->mount, "cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, "memory") == 0)
        return 0;
    int r = -errno;
    rmdir(memcg->mount);
    memcg->mount[0] = '\0';
    return r;
}

int memcg_open(struct memcg *memcg, const char *directory, uint64_t limit_bytes,
               const char **ret_reason)
{
    char top[MEMCG_PATH_BYTES / 2];

    *memcg = (struct memcg){.path = ""};
    *ret_reason = "takes root";
    if (geteuid() != 0)
        return -EPERM;
    *ret_reason = "there is no memory cgroup of version 1";
    int r = mount_find(top);
    if (r == -ENOENT) {
        r = mount_make(memcg, directory);
        snprintf(top, sizeof(top), "%.200s", memcg->mount);
    }
    if (r < 0)
        return r;
    *ret_reason = "no memory cgroup can be made here";
    snprintf(memcg->path, sizeof(memcg->path), "%s/weir-bench.%ld", top, (long)getpid());
    if (mkdir(memcg->path, 0700) < 0) {
        r = -errno;
        memcg->path[0] = '\0';
        memcg_close(memcg);
        return r;
    }
    r = file_write(memcg, "memory.limit_in_bytes", limit_bytes);
    if (r < 0)
        memcg_close(memcg);
    return r;
}

int memcg_enter(const struct memcg *memcg)
{
    int r = file_write(memcg, "cgroup.procs", (uint64_t)getpid());

    return r < 0 ? r : file_write(memcg, "memory.max_usage_in_bytes", 0);
}

uint64_t memcg_peak_bytes(const struct memcg *memcg)
{
    char text[32] = "";
    int fd = file_open(memcg, "memory.max_usage_in_bytes", O_RDONLY);

    if (fd < 0)
        return 0;
    ssize_t length = read(fd, text, sizeof(text) - 1);
    close(fd);
    return length > 0 ? strtoull(text, NULL, 10) : 0;
}

void memcg_close(struct memcg *memcg)
{
    if (memcg->path[0] != '\0')
        rmdir(memcg->path);
    if (memcg->mount[0] != '\0') {
        umount(memcg->mount);
        rmdir(memcg->mount);
    }
}
