/* SPDX-License-Identifier: MIT */
#ifndef WEIR_HARNESS_TMPDIR_H
#define WEIR_HARNESS_TMPDIR_H

/*
 * tmpdir - a fresh directory on a real file system
 *
 * In TMPDIR or in /var/tmp, whichever is no memory; removed at exit by the
 * process that made it, not by its children.
 */

#include <ftw.h>
#include <limits.h>
#include <linux/magic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/statfs.h>
#include <sys/types.h>
#include <unistd.h>

static char harness_tmpdir_path[PATH_MAX];
static pid_t harness_tmpdir_owner;

/* What kind of file system @path is on: a magic number, 0 if it cannot be told. */
static inline long harness_fs_magic(const char *path)
{
    struct statfs fs;

    return statfs(path, &fs) == 0 ? (long)fs.f_type : 0;
}

static inline bool harness_is_memory(const char *path)
{
    long magic = harness_fs_magic(path);

    return magic == TMPFS_MAGIC || magic == (long)RAMFS_MAGIC;
}

static inline int harness_tmpdir_remove_one(const char *path, const struct stat *stat, int type,
                                            struct FTW *walk)
{
    (void)stat;
    (void)type;
    (void)walk;
    return remove(path);
}

static inline void harness_tmpdir_remove(void)
{
    if (harness_tmpdir_path[0] != '\0' && harness_tmpdir_owner == getpid())
        nftw(harness_tmpdir_path, harness_tmpdir_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* The same directory at each call; NULL where there is no disk to write to. */
static inline const char *harness_tmpdir(void)
{
    const char *given = getenv("TMPDIR");
    const char *parents[] = {given, "/var/tmp", "/tmp"};

    if (harness_tmpdir_path[0] != '\0')
        return harness_tmpdir_path;

    for (size_t i = 0; i < sizeof(parents) / sizeof(parents[0]); i++) {
        if (parents[i] == NULL || *parents[i] == '\0' || harness_is_memory(parents[i]))
            continue;
        snprintf(harness_tmpdir_path, sizeof(harness_tmpdir_path), "%s/weir-test-XXXXXX",
                 parents[i]);
        if (mkdtemp(harness_tmpdir_path) != NULL) {
            harness_tmpdir_owner = getpid();
            atexit(harness_tmpdir_remove);
            return harness_tmpdir_path;
        }
    }
    harness_tmpdir_path[0] = '\0';
    return NULL;
}

#endif
