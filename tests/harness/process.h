/* SPDX-License-Identifier: MIT */
#ifndef WEIR_HARNESS_PROCESS_H
#define WEIR_HARNESS_PROCESS_H

/* process - what the kernel knows of this process: descriptors, mappings, page cache */

#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Open descriptors, the one that counts them not counted. */
static inline int harness_fd_count(void)
{
    DIR *directory = opendir("/proc/self/fd");
    int count = 0;

    if (directory == NULL)
        return -1;
    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count - 3; /* ".", ".." and its own */
}

/* Names in @path, "." and ".." not counted; -1 if it cannot be read. */
static inline int harness_name_count(const char *path)
{
    DIR *directory = opendir(path);
    int count = 0;

    if (directory == NULL)
        return -1;
    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count - 2;
}

/* Mappings of files, memfds and rings whose line in maps holds one of these words. */
static inline int harness_map_count(const char *directory)
{
    const char *words[] = {directory, "memfd:", "io_uring", "(deleted)"};
    char line[8192];
    FILE *maps = fopen("/proc/self/maps", "re");
    int count = 0;

    if (maps == NULL)
        return -1;
    while (fgets(line, sizeof(line), maps) != NULL)
        for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
            if (strstr(line, words[i]) != NULL) {
                count++;
                break;
            }
    fclose(maps);
    return count;
}

/* Whether the mapping that holds @address stays out of dumps and children. */
static inline bool harness_is_hidden(const void *address)
{
    char line[4096];
    bool is_it = false;
    bool is_hidden = false;
    FILE *maps = fopen("/proc/self/smaps", "re");

    if (maps == NULL)
        return false;
    while (fgets(line, sizeof(line), maps) != NULL) {
        unsigned long low;
        unsigned long high;
        if (sscanf(line, "%lx-%lx ", &low, &high) == 2)
            is_it = (uintptr_t)address >= low && (uintptr_t)address < high;
        else if (is_it && strncmp(line, "VmFlags:", 8) == 0)
            is_hidden = strstr(line, " dd") != NULL && strstr(line, " dc") != NULL;
    }
    fclose(maps);
    return is_hidden;
}

/* Address space in bytes, reservations included. */
static inline uint64_t harness_address_bytes(void)
{
    FILE *statm = fopen("/proc/self/statm", "re");
    unsigned long pages = 0;

    if (statm == NULL)
        return 0;
    if (fscanf(statm, "%lu", &pages) != 1)
        pages = 0;
    fclose(statm);
    return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

#define HARNESS_FD_MAX 1024

/* Which descriptors there are, before a region is opened. */
static inline void harness_mark_fds(bool marks[HARNESS_FD_MAX])
{
    for (int fd = 0; fd < HARNESS_FD_MAX; fd++)
        marks[fd] = fcntl(fd, F_GETFD) >= 0;
}

/*
 * A descriptor of this process for a nameless regular file on the device of
 * @directory, not among @marks (may be NULL): the data file of a region there.
 * -1: none, -2: there are several files.
 */
static inline int harness_data_fd(const char *directory, const bool *marks)
{
    struct stat home;
    int found = -1;
    ino_t inode = 0;

    if (stat(directory, &home) < 0)
        return -1;
    for (int fd = 3; fd < HARNESS_FD_MAX; fd++) {
        struct stat file;
        if ((marks != NULL && marks[fd]) || fstat(fd, &file) < 0 || !S_ISREG(file.st_mode) ||
            file.st_dev != home.st_dev || file.st_nlink != 0)
            continue;
        if (found >= 0 && file.st_ino != inode)
            return -2;
        if (found < 0) {
            found = fd;
            inode = file.st_ino;
        }
    }
    return found;
}

/* How much of a file is in the page cache, in bytes, by mincore() on a mapping of our own. */
static inline int64_t harness_cached_bytes(int fd)
{
    struct stat file;
    char path[64];
    int64_t pages = 0;
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int own = open(path, O_RDONLY | O_CLOEXEC);
    if (own < 0)
        return -1;
    if (fstat(own, &file) < 0 || file.st_size == 0) {
        close(own);
        return 0;
    }

    size_t bytes = (size_t)file.st_size;
    void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, own, 0);
    unsigned char *present = malloc(bytes / page_bytes + 1);
    if (map == MAP_FAILED || present == NULL || mincore(map, bytes, present) < 0)
        pages = -1;
    else
        for (size_t i = 0; i < (bytes + page_bytes - 1) / page_bytes; i++)
            pages += present[i] & 1;
    free(present);
    if (map != MAP_FAILED)
        munmap(map, bytes);
    close(own);
    return pages < 0 ? -1 : pages * (int64_t)page_bytes;
}

/* What the kernel has taken back of files' pages in memory, in all, since it runs. */
static inline int64_t harness_stolen_bytes(void)
{
    FILE *vmstat = fopen("/proc/vmstat", "re");
    char line[256];
    long long pages = 0;

    if (vmstat == NULL)
        return 0;
    while (fgets(line, sizeof(line), vmstat) != NULL)
        if (sscanf(line, "pgsteal_file %lld", &pages) == 1)
            break;
    fclose(vmstat);
    return (int64_t)pages * sysconf(_SC_PAGESIZE);
}

/*
 * Where @needle stands in the file, -1 if nowhere. What the search brought into
 * the page cache is let go again.
 */
static inline int64_t harness_find(int fd, const void *needle, size_t needle_bytes)
{
    size_t window = (size_t)1 << 20;
    unsigned char *buffer = malloc(window + needle_bytes);
    struct stat file;
    char path[64];
    int64_t found = -1;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int own = open(path, O_RDONLY | O_CLOEXEC);
    if (own < 0 || buffer == NULL || fstat(own, &file) < 0) {
        free(buffer);
        return -1;
    }
    for (off_t at = 0; at < file.st_size && found < 0; at += (off_t)window) {
        ssize_t count = pread(own, buffer, window + needle_bytes, at);
        if (count <= 0)
            break;
        unsigned char *hit = memmem(buffer, (size_t)count, needle, needle_bytes);
        if (hit != NULL)
            found = at + (hit - buffer);
    }
    posix_fadvise(own, 0, 0, POSIX_FADV_DONTNEED);
    close(own);
    free(buffer);
    return found;
}

#endif
