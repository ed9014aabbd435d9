/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BASE_SYS_H
#define WEIR_BASE_SYS_H

/*
 * sys - the only door to the kernel
 *
 * Every call returns a negative errno instead of -1 and goes on after EINTR.
 * What the ring does not carry passes here.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

/* An unnamed file in @directory: O_TMPFILE, or created and unlinked at once. */
int weir__sys_open_unnamed(const char *directory, int *ret_fd);

/* One directory, for its owner only; -EEXIST: something is there already. */
int weir__sys_make_directory(const char *path);
void weir__sys_remove_directory(const char *path); /* if it is empty */

/* A second description of the same file with these open(2) flags. */
int weir__sys_reopen(int fd, int flags, int *ret_fd);

int weir__sys_open(const char *path, int flags, int *ret_fd);
int weir__sys_open_at(int directory_fd, const char *name, int flags, int *ret_fd);
int weir__sys_unlink_at(int directory_fd, const char *name);

/* Another name for the file, never in the place of one that is there: -EEXIST. */
int weir__sys_rename_at(int directory_fd, const char *name, const char *name_new);

/*
 * The file is ours until its last descriptor is closed, also of those that children
 * inherited, or until it is unlocked; -EBUSY: it is somebody's already.
 */
int weir__sys_lock(int fd);
void weir__sys_unlock(int fd);

int weir__sys_memfd(const char *name, int *ret_fd);

/* The length of a memfd is final: who maps all of it is safe from SIGBUS. */
int weir__sys_seal_length(int fd);
int weir__sys_length_is_sealed(int fd); /* 1, 0, or -EINVAL: no file that can be sealed */

void weir__sys_close(int fd); /* takes -1 */

int weir__sys_fstat(int fd, struct stat *ret_stat);

/* What the file system of @fd has free for us, and whether it is memory (tmpfs, ramfs). */
int weir__sys_fstatfs(int fd, uint64_t *ret_free_bytes, bool *ret_memory_backed);

/*
 * Blocks that are reserved for this empty file are written where they are: no
 * store needs another. -EOPNOTSUPP where the file system copies all the same.
 */
int weir__sys_write_in_place(int fd);

int weir__sys_ftruncate(int fd, uint64_t bytes);
int weir__sys_fallocate(int fd, int mode, uint64_t offset, uint64_t bytes);
int weir__sys_sync_file_range(int fd, uint64_t offset, uint64_t bytes, unsigned flags);
int weir__sys_fdatasync(int fd);
int weir__sys_fsync(int fd);
int weir__sys_fadvise(int fd, uint64_t offset, uint64_t bytes, int advice);

/* All of it, or -EIO at an early end; a short count goes on. */
int weir__sys_pread_all(int fd, void *buffer, size_t bytes, uint64_t offset);
int weir__sys_pwrite_all(int fd, const void *buffer, size_t bytes, uint64_t offset);

int weir__sys_mmap(void *address, size_t bytes, int protection, int flags, int fd, uint64_t offset,
                   void **ret_address);
int weir__sys_mremap(void *address, size_t bytes, size_t bytes_new, int flags, void *address_new,
                     void **ret_address);
void weir__sys_munmap(void *address, size_t bytes); /* takes NULL */
int weir__sys_madvise(void *address, size_t bytes, int advice);

/* How many pages of [address, address + bytes) are in memory. */
int weir__sys_resident(void *address, size_t bytes, uint64_t *ret_pages);

/* A counter that a read takes whole; signal adds 1 and never blocks: a full counter is signal enough. */
int weir__sys_eventfd(int *ret_fd);
void weir__sys_eventfd_signal(int fd);

/* A second descriptor of @fd's description; at @place, closing what is there, unless that is -1. */
int weir__sys_duplicate(int fd, int place, int *ret_fd);

/* The largest file that RLIMIT_FSIZE allows; UINT64_MAX: no limit. */
uint64_t weir__sys_file_bytes_max(void);

/* Bytes that no one can guess; falls back to the clock. */
uint64_t weir__sys_entropy(void);

/* Where a symbolic link points, as a string. */
int weir__sys_readlink(const char *path, char *buffer, size_t buffer_bytes);

/* Calls @each with every name in a directory, "." and ".." left out, until it answers other than 0. */
int weir__sys_list(const char *path, int (*each)(void *context, const char *name), void *context);

/* The content of a small file of /proc or /sys, as a string. */
int weir__sys_read_text(const char *path, char *buffer, size_t buffer_bytes);

/*
 * A barrier that all threads of this process that run now pass before it returns, so
 * that those which are often in a hurry need none of their own. Announced once; from
 * then on it does not fail.
 */
int weir__sys_announce_barrier(void); /* 0, or -ENOSYS, -EPERM: there is none */
void weir__sys_barrier(void);

/* What the kernel knows of the calling thread, since it began. */
struct weir__usage {
    uint64_t cpu_ns;
    uint64_t blocked_count;   /* times it slept in the kernel */
    uint64_t preempted_count; /* times it was made to wait for a cpu */
    uint64_t major_fault_count;
};

void weir__sys_thread_usage(struct weir__usage *ret_usage);

/* On which node each page is, or a negative errno: -ENOENT: nowhere now. Moves nothing. */
int weir__sys_page_nodes(void **pages, size_t count, int *ret_nodes);

/* Bytes of RAM in this machine, and of a page. */
uint64_t weir__sys_ram_bytes(void);
uint64_t weir__sys_page_bytes(void);

#endif
