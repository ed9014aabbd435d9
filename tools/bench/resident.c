/* SPDX-License-Identifier: MIT */
/*
 * resident - what of a region is in memory, as the kernel counts
 *
 * The library does not give its descriptor away, so it is looked for among those
 * of the process. The mapping made here has no page of its own in use, so that it
 * keeps nothing in memory.
 */
#include "resident.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* A line "Name:   123 kB" of /proc/self/status; 0: the kernel has none. */
static uint64_t status_bytes(const char *name)
{
    FILE *file = fopen("/proc/self/status", "re");
    size_t name_bytes = strlen(name);
    uint64_t kib = 0;
    char line[256];

    bench_check(file == NULL ? -errno : 0, "/proc/self/status");
    while (fgets(line, sizeof(line), file) != NULL)
        if (strncmp(line, name, name_bytes) == 0)
            kib = strtoull(line + name_bytes, NULL, 10);
    fclose(file);
    return kib << 10;
}

static uint64_t process_bytes(void)
{
    return status_bytes("RssAnon:") + status_bytes("RssShmem:");
}

void resident_open(struct resident *resident)
{
    *resident = (struct resident){.process_bytes = process_bytes()};
}

static int resident_fd(uint64_t file_bytes)
{
    DIR *directory = opendir("/proc/self/fd");
    struct dirent *entry;
    int found = -ENOENT;

    bench_check(directory == NULL ? -errno : 0, "/proc/self/fd");
    while ((entry = readdir(directory)) != NULL) {
        char path[256];
        struct stat is;
        ssize_t length = readlinkat(dirfd(directory), entry->d_name, path, sizeof(path) - 1);
        int fd = (int)strtol(entry->d_name, NULL, 10);
        if (length < 0 || fstat(fd, &is) < 0)
            continue;
        path[length] = '\0';
        if (S_ISREG(is.st_mode) && (uint64_t)is.st_size == file_bytes &&
            strncmp(path, "/memfd:", 7) != 0)
            found = fd;
    }
    closedir(directory);
    return found;
}

void resident_find(struct resident *resident, uint64_t file_bytes, uint64_t bytes_max)
{
    int fd = resident_fd(file_bytes);

    bench_check(fd, "the file of the region");
    resident->map = mmap(NULL, bytes_max, PROT_NONE, MAP_SHARED, fd, 0);
    bench_check(resident->map == MAP_FAILED ? -errno : 0, "mmap");
    resident->map_bytes = bytes_max;
    resident->pages = malloc(bytes_max / (uint64_t)sysconf(_SC_PAGESIZE) + 1);
    bench_check(resident->pages == NULL ? -ENOMEM : 0, "malloc");
}

void resident_count(struct resident *resident)
{
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t page_count = resident->map_bytes / page_bytes;
    uint64_t bytes = 0;

    int r = mincore(resident->map, resident->map_bytes, resident->pages);
    bench_check(r < 0 ? -errno : 0, "mincore");
    for (uint64_t i = 0; i < page_count; i++)
        bytes += (resident->pages[i] & 1) * page_bytes;
    uint64_t process = process_bytes();
    if (process > resident->process_bytes)
        bytes += process - resident->process_bytes;
    if (bytes > resident->peak_bytes)
        resident->peak_bytes = bytes;
}

void resident_close(struct resident *resident)
{
    if (resident->map != NULL)
        munmap(resident->map, resident->map_bytes);
    free(resident->pages);
}
