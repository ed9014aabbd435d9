/* SPDX-License-Identifier: MIT */
#ifndef WEIR_HARNESS_NAMED_H
#define WEIR_HARNESS_NAMED_H

/* named - the files of a named region, to be looked at and spoiled while nobody owns them */

#include "base/region_layout.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>
#include <xxhash.h>

static inline int harness_lock(int fd)
{
    return flock(fd, LOCK_EX | LOCK_NB);
}

static inline int harness_named_open(const char *directory, const char *file)
{
    char path[PATH_MAX + NAME_MAX + 2];

    if (snprintf(path, sizeof(path), "%s/%s", directory, file) >= (int)sizeof(path))
        abort();
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        perror(path);
        abort();
    }
    return fd;
}

static inline void harness_named_read(const char *directory, const char *file, uint64_t offset,
                                      void *data, size_t bytes)
{
    int fd = harness_named_open(directory, file);

    if (pread(fd, data, bytes, (off_t)offset) != (ssize_t)bytes)
        abort();
    close(fd);
}

static inline void harness_named_write(const char *directory, const char *file, uint64_t offset,
                                       const void *data, size_t bytes)
{
    int fd = harness_named_open(directory, file);

    if (pwrite(fd, data, bytes, (off_t)offset) != (ssize_t)bytes)
        abort();
    close(fd);
}

static inline void harness_named_header(const char *directory, const char *name,
                                        struct weir__header *ret_header)
{
    char file[NAME_MAX + 1];

    if (snprintf(file, sizeof(file), "%s" LAYOUT_TABLE_SUFFIX, name) >= (int)sizeof(file))
        abort();
    harness_named_read(directory, file, 0, ret_header, sizeof(*ret_header));
}

/* With a sum that is right, whatever it says. */
static inline void harness_named_set_header(const char *directory, const char *name,
                                            const struct weir__header *header)
{
    struct weir__header copy = *header;
    char file[NAME_MAX + 1];

    copy.fixed_sum =
        XXH3_64bits((const char *)&copy.version, offsetof(struct weir__header, fixed_sum) -
                                                     offsetof(struct weir__header, version));
    if (snprintf(file, sizeof(file), "%s" LAYOUT_TABLE_SUFFIX, name) >= (int)sizeof(file))
        abort();
    harness_named_write(directory, file, 0, &copy, sizeof(copy));
}

/* The machine was started anew since its owner had it. */
static inline void harness_named_lose_power(const char *directory, const char *name)
{
    struct weir__header header;

    harness_named_header(directory, name, &header);
    header.boot++;
    harness_named_set_header(directory, name, &header);
}

#endif
