/* SPDX-License-Identifier: MIT */
/*
 * sys - system calls with one kind of answer
 *
 * No policy here: what a failure means is known by whoever called.
 */
#include "base/sys.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/random.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/membarrier.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define SYS_MINCORE_PAGES  4096
#define SYS_ZFS_MAGIC      0x2fc12fc1 /* in no header of the kernel's */
#define SYS_BCACHEFS_MAGIC 0xca451a4e

/* ---- Files ---------------------------------------------------------------- */

int weir__sys_open(const char *path, int flags, int *ret_fd)
{
    int fd;

    do
        fd = open(path, flags | O_CLOEXEC, 0600);
    while (fd < 0 && errno == EINTR);
    if (fd < 0)
        return -errno;
    *ret_fd = fd;
    return 0;
}

int weir__sys_open_at(int directory_fd, const char *name, int flags, int *ret_fd)
{
    int fd;

    do
        fd = openat(directory_fd, name, flags | O_CLOEXEC, 0600);
    while (fd < 0 && errno == EINTR);
    if (fd < 0)
        return -errno;
    *ret_fd = fd;
    return 0;
}

int weir__sys_unlink_at(int directory_fd, const char *name)
{
    return unlinkat(directory_fd, name, 0) < 0 ? -errno : 0;
}

int weir__sys_rename_at(int directory_fd, const char *name, const char *name_new)
{
    if (renameat2(directory_fd, name, directory_fd, name_new, RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS)
        return -errno;
    /* This file system cannot: a link refuses too, and for a moment there are two names. */
    if (linkat(directory_fd, name, directory_fd, name_new, 0) < 0)
        return -errno;
    return weir__sys_unlink_at(directory_fd, name);
}

int weir__sys_lock(int fd)
{
    int r;

    do
        r = flock(fd, LOCK_EX | LOCK_NB);
    while (r < 0 && errno == EINTR);
    if (r < 0)
        return errno == EWOULDBLOCK ? -EBUSY : -errno;
    return 0;
}

void weir__sys_unlock(int fd)
{
    if (fd >= 0)
        flock(fd, LOCK_UN);
}

/* Where O_TMPFILE is not known: a name of our own that nobody else can have, gone at once. */
static int sys_open_unlinked(const char *directory, int *ret_fd)
{
    char path[PATH_MAX];
    int length = snprintf(path, sizeof(path), "%s/.weir-%ld-XXXXXX", directory, (long)getpid());

    if (length < 0 || (size_t)length >= sizeof(path))
        return -ENAMETOOLONG;

    int fd = mkostemp(path, O_CLOEXEC);
    if (fd < 0)
        return -errno;
    /* Whoever opened a named region here may have swept it already. */
    if (unlink(path) < 0 && errno != ENOENT) {
        int r = -errno;
        close(fd);
        return r;
    }
    *ret_fd = fd;
    return 0;
}

int weir__sys_open_unnamed(const char *directory, int *ret_fd)
{
    int r = weir__sys_open(directory, O_TMPFILE | O_RDWR, ret_fd);

    if (r == -EOPNOTSUPP || r == -EISDIR)
        return sys_open_unlinked(directory, ret_fd);
    return r;
}

int weir__sys_make_directory(const char *path)
{
    return mkdir(path, 0700) < 0 ? -errno : 0;
}

void weir__sys_remove_directory(const char *path)
{
    (void)rmdir(path);
}

int weir__sys_reopen(int fd, int flags, int *ret_fd)
{
    char path[64];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    return weir__sys_open(path, flags, ret_fd);
}

int weir__sys_memfd(const char *name, int *ret_fd)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0)
        return -errno;
    *ret_fd = fd;
    return 0;
}

int weir__sys_seal_length(int fd)
{
    return fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0 ? -errno : 0;
}

int weir__sys_length_is_sealed(int fd)
{
    int seals = fcntl(fd, F_GET_SEALS);

    return seals < 0 ? -errno : (seals & F_SEAL_SHRINK) != 0;
}

void weir__sys_close(int fd)
{
    if (fd >= 0)
        close(fd);
}

int weir__sys_fstat(int fd, struct stat *ret_stat)
{
    return fstat(fd, ret_stat) < 0 ? -errno : 0;
}

int weir__sys_fstatfs(int fd, uint64_t *ret_free_bytes, bool *ret_memory_backed)
{
    struct statfs info;

    if (fstatfs(fd, &info) < 0)
        return -errno;
    *ret_free_bytes = (uint64_t)info.f_bavail * (uint64_t)info.f_bsize;
    *ret_memory_backed = info.f_type == TMPFS_MAGIC || info.f_type == RAMFS_MAGIC;
    return 0;
}

/* Whether it is told; @ret_flags: all that it is told. */
static bool sys_is_in_place(int fd, int *ret_flags)
{
    *ret_flags = 0;
    return ioctl(fd, FS_IOC_GETFLAGS, ret_flags) == 0 && (*ret_flags & FS_NOCOW_FL) != 0;
}

/*
 * btrfs copies unless it is told so before the first byte, and does not say that it was
 * too late; of ext4 and others NOCOW is no flag.
 */
int weir__sys_write_in_place(int fd)
{
    struct statfs info;
    int flags;

    if (fstatfs(fd, &info) < 0)
        return -errno;
    if (info.f_type == SYS_ZFS_MAGIC || info.f_type == SYS_BCACHEFS_MAGIC)
        return -EOPNOTSUPP;
    if (sys_is_in_place(fd, &flags))
        return 0;
    flags |= FS_NOCOW_FL;
    if (ioctl(fd, FS_IOC_SETFLAGS, &flags) == 0 && sys_is_in_place(fd, &flags))
        return 0;
    return info.f_type == BTRFS_SUPER_MAGIC ? -EOPNOTSUPP : 0;
}

int weir__sys_ftruncate(int fd, uint64_t bytes)
{
    int r;

    do
        r = ftruncate(fd, (off_t)bytes);
    while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

int weir__sys_fallocate(int fd, int mode, uint64_t offset, uint64_t bytes)
{
    int r;

    do
        r = fallocate(fd, mode, (off_t)offset, (off_t)bytes);
    while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

int weir__sys_sync_file_range(int fd, uint64_t offset, uint64_t bytes, unsigned flags)
{
    int r;

    do
        r = sync_file_range(fd, (off_t)offset, (off_t)bytes, flags);
    while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

int weir__sys_fdatasync(int fd)
{
    int r;

    do
        r = fdatasync(fd);
    while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

int weir__sys_fsync(int fd)
{
    int r;

    do
        r = fsync(fd);
    while (r < 0 && errno == EINTR);
    return r < 0 ? -errno : 0;
}

int weir__sys_fadvise(int fd, uint64_t offset, uint64_t bytes, int advice)
{
    return -posix_fadvise(fd, (off_t)offset, (off_t)bytes, advice);
}

int weir__sys_pread_all(int fd, void *buffer, size_t bytes, uint64_t offset)
{
    char *to = buffer;

    while (bytes > 0) {
        ssize_t count = pread(fd, to, bytes, (off_t)offset);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return -errno;
        if (count == 0)
            return -EIO;
        to += count;
        bytes -= (size_t)count;
        offset += (uint64_t)count;
    }
    return 0;
}

int weir__sys_pwrite_all(int fd, const void *buffer, size_t bytes, uint64_t offset)
{
    const char *from = buffer;

    while (bytes > 0) {
        ssize_t count = pwrite(fd, from, bytes, (off_t)offset);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return -errno;
        from += count;
        bytes -= (size_t)count;
        offset += (uint64_t)count;
    }
    return 0;
}

int weir__sys_eventfd(int *ret_fd)
{
    int fd = eventfd(0, EFD_CLOEXEC);

    if (fd < 0)
        return -errno;
    *ret_fd = fd;
    return 0;
}

void weir__sys_eventfd_signal(int fd)
{
    uint64_t one = 1;
    ssize_t count;

    do
        count = write(fd, &one, sizeof(one));
    while (count < 0 && errno == EINTR);
    WEIR_CHECK(count == (ssize_t)sizeof(one));
}

int weir__sys_duplicate(int fd, int place, int *ret_fd)
{
    int fd_new;

    do
        fd_new = place < 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : dup3(fd, place, O_CLOEXEC);
    while (fd_new < 0 && (errno == EINTR || errno == EBUSY));
    if (fd_new < 0)
        return -errno;
    *ret_fd = fd_new;
    return 0;
}

/* ---- Memory --------------------------------------------------------------- */

int weir__sys_mmap(void *address, size_t bytes, int protection, int flags, int fd, uint64_t offset,
                   void **ret_address)
{
    void *result = mmap(address, bytes, protection, flags, fd, (off_t)offset);

    if (result == MAP_FAILED)
        return -errno;
    *ret_address = result;
    return 0;
}

int weir__sys_mremap(void *address, size_t bytes, size_t bytes_new, int flags, void *address_new,
                     void **ret_address)
{
    void *result = mremap(address, bytes, bytes_new, flags, address_new);

    if (result == MAP_FAILED)
        return -errno;
    *ret_address = result;
    return 0;
}

void weir__sys_munmap(void *address, size_t bytes)
{
    if (address == NULL)
        return;

    int r = munmap(address, bytes);
    WEIR_CHECK(r == 0);
}

int weir__sys_madvise(void *address, size_t bytes, int advice)
{
    return madvise(address, bytes, advice) < 0 ? -errno : 0;
}

int weir__sys_resident(void *address, size_t bytes, uint64_t *ret_pages)
{
    unsigned char present[SYS_MINCORE_PAGES];
    size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    char *at = address;
    uint64_t pages = 0;

    while (bytes > 0) {
        size_t step =
            bytes < SYS_MINCORE_PAGES * page_bytes ? bytes : SYS_MINCORE_PAGES * page_bytes;
        if (mincore(at, step, present) < 0)
            return -errno;
        for (size_t i = 0; i < (step + page_bytes - 1) / page_bytes; i++)
            pages += present[i] & 1;
        at += step;
        bytes -= step;
    }
    *ret_pages = pages;
    return 0;
}

/* ---- The machine ---------------------------------------------------------- */

uint64_t weir__sys_file_bytes_max(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_FSIZE, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY)
        return UINT64_MAX;
    return limit.rlim_cur;
}

uint64_t weir__sys_entropy(void)
{
    uint64_t value;

    if (getrandom(&value, sizeof(value), GRND_NONBLOCK) == (ssize_t)sizeof(value))
        return value;
    return weir__mix(weir__clock_ns() ^ (uint64_t)getpid() << 32);
}

int weir__sys_readlink(const char *path, char *buffer, size_t buffer_bytes)
{
    ssize_t length = readlink(path, buffer, buffer_bytes);

    if (length < 0)
        return -errno;
    if ((size_t)length >= buffer_bytes)
        return -ENAMETOOLONG;
    buffer[length] = '\0';
    return 0;
}

int weir__sys_list(const char *path, int (*each)(void *context, const char *name), void *context)
{
    DIR *directory = opendir(path);

    if (directory == NULL)
        return -errno;

    int r = 0;
    while (r == 0) {
        errno = 0;
        struct dirent *entry = readdir(directory);
        if (entry == NULL) {
            r = -errno;
            break;
        }
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            r = each(context, entry->d_name);
    }
    closedir(directory);
    return r;
}

int weir__sys_read_text(const char *path, char *buffer, size_t buffer_bytes)
{
    int fd = -1;
    int r = weir__sys_open(path, O_RDONLY, &fd);

    if (r < 0)
        return r;

    size_t length = 0;
    while (length < buffer_bytes - 1) {
        ssize_t count = read(fd, buffer + length, buffer_bytes - 1 - length);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0) {
            r = -errno;
            close(fd);
            return r;
        }
        if (count == 0)
            break;
        length += (size_t)count;
    }
    close(fd);
    buffer[length] = '\0';
    return 0;
}

int weir__sys_announce_barrier(void)
{
    long r = syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0);

    return r < 0 ? -errno : 0;
}

void weir__sys_barrier(void)
{
    long r = syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);

    WEIR_CHECK(r == 0);
}

int weir__sys_page_nodes(void **pages, size_t count, int *ret_nodes)
{
    long r = syscall(SYS_move_pages, 0, count, pages, NULL, ret_nodes, 0);

    return r < 0 ? -errno : 0;
}

uint64_t weir__sys_page_bytes(void)
{
    return (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t sys_ns(const struct timeval *time)
{
    return (uint64_t)time->tv_sec * UINT64_C(1000000000) + (uint64_t)time->tv_usec * 1000;
}

void weir__sys_thread_usage(struct weir__usage *ret_usage)
{
    struct rusage usage;

    int r = getrusage(RUSAGE_THREAD, &usage);
    WEIR_CHECK(r == 0);
    *ret_usage = (struct weir__usage){
        .cpu_ns = sys_ns(&usage.ru_utime) + sys_ns(&usage.ru_stime),
        .blocked_count = (uint64_t)usage.ru_nvcsw,
        .preempted_count = (uint64_t)usage.ru_nivcsw,
        .major_fault_count = (uint64_t)usage.ru_majflt,
    };
}

uint64_t weir__sys_ram_bytes(void)
{
    long pages = sysconf(_SC_PHYS_PAGES);
    long page_bytes = sysconf(_SC_PAGESIZE);

    return pages > 0 && page_bytes > 0 ? (uint64_t)pages * (uint64_t)page_bytes : 0;
}
