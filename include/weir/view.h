/* SPDX-License-Identifier: MIT */
#ifndef WEIR_VIEW_H
#define WEIR_VIEW_H

/*
 * view - a read-only look into a live region, or into the files of a named one
 *
 * From another core or another process, without the owner's help and without
 * disturbing it: the tables are mapped, the payload is copied by pread(2) and
 * what was read is checked against the tables afterwards. An answer is exact,
 * or -ESTALE, or -EAGAIN; never torn.
 *
 * Units    bytes
 * Thread   one at a time
 * Errors   0 on success, negative errno on failure; -EINVAL: an argument is
 *          outside its stated range
 */

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <weir/base.h>

WEIR_EXTERN_BEGIN

struct weir_view;

/* enum weir_chunk_state - where the 2 MiB of a chunk are */
enum weir_chunk_state {
    WEIR_CHUNK_NONE,    /* not part of the file */
    WEIR_CHUNK_FRESH,   /* reserved on disk, nothing in it; no memory, unless it comes next */
    WEIR_CHUNK_DIRTY,   /* in memory, newer than the disk */
    WEIR_CHUNK_WRITING, /* in memory, on its way to the disk */
    WEIR_CHUNK_CLEAN,   /* in memory and on disk */
    WEIR_CHUNK_COLD,    /* on disk only */
    WEIR_CHUNK_FILLING, /* on disk, being brought back into memory */
    WEIR_CHUNK_HOLE,    /* nothing in it, and its blocks were given back to the file system */
};

#define WEIR_CHUNK_BYTES (UINT64_C(2) << 20)

/*
 * weir_view_scan() - the live regions of a process, named ones included
 * @pid:      0: this process
 * @ret_fds:  the descriptors of their tables, as numbers in that process
 *
 * Return: how many there are (more than @fd_count: not all were stored), or what
 *         opendir(3) and readlink(2) say of /proc/PID/fd: -EACCES, -ENOENT.
 */
WEIR_API int weir_view_scan(pid_t pid, int *ret_fds, size_t fd_count);

/*
 * weir_view_open() - look into the region with these tables
 * @pid:  0: this process
 * @fd:   in that process: from weir_view_scan() or weir_region_fd(), or opened
 *        on NAME.weir, whether that region has an owner or not
 *
 * Tables of a named region are read by pread(2), word by word, never mapped:
 * their length cannot be sealed.
 *
 * What was seen of a region stays readable until weir_view_close(), even when
 * its owner closes it or dies.
 *
 * Return: 0, -EBADMSG (these are no tables of a region, or its data file is not
 *         where they say), -EPROTONOSUPPORT, -EAGAIN (it is just being made),
 *         -ENOMEM, or what open(2) and mmap(2) say.
 */
WEIR_API WEIR_MUST_CHECK int weir_view_open(pid_t pid, int fd, struct weir_view **ret_view);

/* weir_view_close() - takes NULL */
WEIR_API void weir_view_close(struct weir_view *view);

/* struct weir_view_summary - the figures that the owner publishes */
struct weir_view_summary {
    pid_t pid;
    int table_fd;
    int data_fd;
    char directory[256];
    uint64_t bytes_max;
    uint64_t resident_bytes_max;
    uint64_t file_bytes;
    uint64_t disk_bytes;
    uint64_t mark_bytes;
    uint64_t live_bytes;
    uint64_t free_bytes;
    uint64_t resident_bytes;
    uint64_t dirty_bytes;
    uint64_t fetched_bytes;
    uint64_t pinned_bytes;
    uint64_t metadata_bytes;
    uint64_t put_bytes;
    uint64_t written_bytes;
    uint64_t read_bytes;
    uint64_t slot_count;
    uint64_t free_extent_count;
    uint64_t entry_count; /* indexes ever used: slots are 1 .. entry_count */
    uint64_t chunk_count;
    bool bounded;
    bool degraded;
    uint64_t reserved[8];
};

/*
 * weir_view_summary() - a snapshot
 *
 * Single figures are exact, their sum may be a moment apart. Of tables that cannot
 * be read they are zero.
 */
WEIR_API void weir_view_summary(const struct weir_view *view,
                                struct weir_view_summary *ret_summary);

/* struct weir_view_extent - one entry of the table */
struct weir_view_extent {
    struct weir_slot slot; /* all zero: a free extent */
    struct weir_label label;
    uint64_t offset;
    uint64_t bytes;        /* exact length of an item; whole length of a free extent */
    uint64_t extent_bytes; /* space taken in the file */
    uint64_t alignment;    /* of an item: @offset is a multiple of it; 16 unless asked for */
    bool committed;        /* false: under construction, or on its way into the file */
    bool held;    /* freed while pinned, or since a sync(): no slot any more, space not yet free */
    bool summed;  /* its checksum is known */
    bool damaged; /* its owner found its bytes to be others than were put */
};

/*
 * weir_view_extent() - what entry @index is
 *
 * Return: 0, -EINVAL for 0 and past entry_count, -ENOENT: the entry is not in use,
 *         -EAGAIN: it changes all the time, -EBADMSG: it makes no sense, or, of a
 *         named region, what pread(2) says.
 */
WEIR_API WEIR_MUST_CHECK int weir_view_extent(const struct weir_view *view, uint32_t index,
                                              struct weir_view_extent *ret_extent);

/* struct weir_view_chunk - one chunk of the file */
struct weir_view_chunk {
    enum weir_chunk_state state;
    uint32_t live_bytes; /* of live extents in it */
    uint32_t pinned_count;
};

/*
 * weir_view_chunk() - what is known of chunk @index
 *
 * Return: 0, -EINVAL past chunk_count, -EBADMSG: no such state, or, of a named
 *         region, what pread(2) says.
 */
WEIR_API WEIR_MUST_CHECK int weir_view_chunk(const struct weir_view *view, uint64_t index,
                                             struct weir_view_chunk *ret_chunk);

/*
 * weir_view_read() - copy an item, or a piece of it
 * @buffer:     on failure its content is anything
 * @ret_bytes:  how many were copied: less than asked for only at the end
 *
 * Cold chunks are read past the page cache: looking does not warm them.
 *
 * Return: 0, -ESTALE, -EAGAIN (under construction, on its way into the file, or
 *         moved again and again), -EBADMSG (its entry makes no sense, or its owner
 *         found it damaged), or what pread(2) says.
 */
WEIR_API WEIR_MUST_CHECK int weir_view_read(const struct weir_view *view, struct weir_slot slot,
                                            uint64_t offset, void *buffer, size_t buffer_bytes,
                                            size_t *ret_bytes);

/*
 * weir_view_verify() - compare an item with its checksum
 *
 * Return: 0, -ENOENT: it has no checksum yet, or as weir_view_read(), where
 *         -EBADMSG also says that the bytes are not those that were put.
 */
WEIR_API WEIR_MUST_CHECK int weir_view_verify(const struct weir_view *view, struct weir_slot slot);

WEIR_EXTERN_END

#endif
