/* SPDX-License-Identifier: MIT */
#ifndef WEIR_HARNESS_MACHINE_H
#define WEIR_HARNESS_MACHINE_H

/* machine - files of /proc and /sys that say what a test wants, below a tree of its own */

#include "tmpdir.h"

#include "base/check.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static char tree[PATH_MAX];

static inline void write_file(const char *name, const char *text)
{
    char path[2 * PATH_MAX];

    snprintf(path, sizeof(path), "%s%s", tree, name);
    for (char *at = path + strlen(tree) + 1; *at != '\0'; at++) {
        if (*at != '/')
            continue;
        *at = '\0';
        mkdir(path, 0700);
        *at = '/';
    }

    FILE *file = fopen(path, "w");
    WEIR_CHECK(file != NULL);
    WEIR_CHECK(fputs(text, file) >= 0);
    WEIR_CHECK(fclose(file) == 0);
}

/* A fresh tree for each case. */
static inline void plant(const char *name)
{
    const char *directory = harness_tmpdir();

    WEIR_CHECK(directory != NULL);
    WEIR_CHECK(snprintf(tree, sizeof(tree), "%s/%s", directory, name) < (int)sizeof(tree));
    WEIR_CHECK(mkdir(tree, 0700) == 0);
}

/* One in which we are in the group /app. */
static inline void plant_group(const char *name, const char *version)
{
    plant(name);
    write_file("/proc/self/statm", "1000 300 20 1 0 100 0\n");
    write_file("/proc/pressure/memory", "some avg10=7.30 avg60=0.00 avg300=0.00 total=1\n"
                                        "full avg10=1.05 avg60=0.00 avg300=0.00 total=1\n");
    write_file("/proc/self/cgroup", strcmp(version, "v2") == 0 ? "0::/app\n" : "4:memory:/app\n");
    write_file("/proc/self/mountinfo",
               strcmp(version, "v2") == 0
                   ? "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
                   : "35 31 0:32 / /sys/fs/cgroup rw - cgroup cgroup rw,memory\n");
}

#endif
