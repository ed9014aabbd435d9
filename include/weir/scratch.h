/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SCRATCH_H
#define WEIR_SCRATCH_H

/*
 * scratch - temporary files under one cap, written once
 *
 *      writer --append--> --seal--> file --open--> readers
 *         |                          |       which may outlive the file
 *         +--abort                   +--drop
 *
 * For sort runs, shuffles, index builds. The order of life is in the types: only
 * a writer appends; weir_scratch_seal() takes the writer and gives a file; only a
 * file is read. Nothing has a name, so nothing is left after a kill -9.
 *
 * All files of a store share one cap, counted in the bytes that were appended:
 * what a call was refused, and what is aborted or dropped, is given back to the
 * byte. A small file stays in memory; one that outgrows memory_bytes_max, or for
 * which the account has no room, rolls to a file in the directory and leaves no
 * page of it in the page cache. What comes back from there is compared with its
 * checksum.
 *
 * Whatever moves bytes has two forms: one returns when they are there and may
 * block; one starts an operation, which completes from weir_scratch_poll(), or
 * from the worker's loop on a worker's ring.
 *
 * Units    bytes
 * Thread   the thread that opened the store, and no other
 * Errors   0 on success, negative errno on failure. A call that fails has
 *          changed nothing; an append that fails can be tried again.
 *
 *          -EINVAL   an argument is outside its stated range
 *          -EDQUOT   over the cap: weir_scratch_stats() tells cap and use
 *          -ENOSPC   the file system is full, or at the floor of free space
 *          -ENOMEM   the kernel refused the memory
 *          -EBUSY    an operation of this writer is under way
 *          -EBADMSG  the bytes on disk are not those that were appended
 */

#include <stddef.h>
#include <stdint.h>

#include <weir/base.h>

WEIR_EXTERN_BEGIN

struct weir_account;
struct weir_scratch;
struct weir_scratch_writer;
struct weir_scratch_file;
struct weir_scratch_reader;

/*
 * struct weir_scratch_store - where files lie, for a host or a test that knows better
 * @create:  a new, empty file
 * @write:   all of @bytes at @offset, or a negative errno. Blocks come in order,
 *           but the next may be on its way before one has failed; nothing of a
 *           gap is read before it is written.
 * @read:    all of @bytes, which were written
 * @remove:  the file is not used any more
 *
 * Offsets and lengths are multiples of 4096. Called on the owner's thread; may
 * block; operations complete after them.
 */
struct weir_scratch_store {
    int (*create)(void *context, void **ret_file);
    int (*write)(void *context, void *file, const void *data, size_t bytes, uint64_t offset);
    int (*read)(void *context, void *file, void *buffer, size_t bytes, uint64_t offset);
    void (*remove)(void *context, void *file);
    void *context;
};

/*
 * struct weir_scratch_config - how a store is opened
 * @directory:         where files lie; made, parents too, when the first file
 *                     rolls; required unless @store is given
 * @bytes_max:         over all files, in memory or not; 0: 1 GiB
 * @memory_bytes_max:  of one file, before it rolls; 0: 64 KiB; at most 128 KiB;
 *                     UINT64_MAX: none stays in memory
 * @disk_floor_bytes:  free space of the file system that is left alone
 * @account:           charged with buffers, small files and tables; NULL: nobody
 * @ring:              the ring of a worker, or NULL for one of its own
 * @disk_cap:          who is asked before a file grows on disk
 * @store:             instead of files in @directory; copied; NULL: files
 */
struct weir_scratch_config {
    const char *directory;
    uint64_t bytes_max;
    uint64_t memory_bytes_max;
    uint64_t disk_floor_bytes;
    struct weir_account *account;
    struct weir_ring *ring;
    struct weir_disk_cap disk_cap;
    const struct weir_scratch_store *store;
    uint64_t reserved[8];
};

/*
 * weir_scratch_open() - a store; touches no disk
 *
 * Return: 0, -EINVAL, -ENOMEM, or what io_uring_setup(2) says.
 */
WEIR_API WEIR_MUST_CHECK int weir_scratch_open(const struct weir_scratch_config *config,
                                               struct weir_scratch **ret_scratch);

/*
 * weir_scratch_close() - takes NULL
 *
 * No writer, file or reader may be left, and nothing under way. A directory that
 * the store made goes if it is empty; parents that it made stay.
 */
WEIR_API void weir_scratch_close(struct weir_scratch *scratch);

/* ---- Writing ---------------------------------------------------------------- */

/* weir_scratch_create() - a new file, to be written; 0 or -ENOMEM; touches no disk */
WEIR_API WEIR_MUST_CHECK int weir_scratch_create(struct weir_scratch *scratch,
                                                 struct weir_scratch_writer **ret_writer);

/*
 * weir_scratch_append() - @bytes more, all or none of them
 *
 * Cost:    a copy; a write of 128 KiB each time that many have come together.
 *
 * Return: 0, -EDQUOT, -ENOSPC, -ENOMEM, -EBUSY, -EOPNOTSUPP (the directory is on
 *         tmpfs), or what mkdir(2), open(2) or pwrite(2) say.
 */
WEIR_API WEIR_MUST_CHECK int weir_scratch_append(struct weir_scratch_writer *writer,
                                                 const void *data, size_t bytes);

/*
 * weir_scratch_append_start() - the same, without blocking
 * @data:       unchanged until @operation completes
 * @bytes:      at most 1 GiB
 * @operation:  completed, never from this call, with @bytes or what append says
 *
 * One at a time for each writer.
 *
 * Return: 0: it will complete; -EINVAL, -EDQUOT, -ENOMEM, -EBUSY.
 */
WEIR_API WEIR_MUST_CHECK int weir_scratch_append_start(struct weir_scratch_writer *writer,
                                                       const void *data, size_t bytes,
                                                       struct weir_operation *operation);

/* weir_scratch_writer_bytes() - what has been appended; not what is under way */
WEIR_API uint64_t weir_scratch_writer_bytes(const struct weir_scratch_writer *writer);

/*
 * weir_scratch_seal() - nothing more comes
 * @take_writer:  ours on success
 *
 * Cost:    at most one write of 128 KiB.
 *
 * Return: 0, -EBUSY, -EDQUOT (the disk cap), -ENOSPC, -ENOMEM, or what pwrite(2)
 *         says: try again, or abort.
 */
WEIR_API WEIR_MUST_CHECK int weir_scratch_seal(struct weir_scratch_writer *take_writer,
                                               struct weir_scratch_file **ret_file);

/*
 * weir_scratch_abort() - give all of it back
 *
 * Takes NULL. An append that is under way completes all the same, with
 * -ECANCELED, and until then @data is in use.
 */
WEIR_API void weir_scratch_abort(struct weir_scratch_writer *writer);

/* ---- Reading ---------------------------------------------------------------- */

/* weir_scratch_file_bytes() - its length */
WEIR_API uint64_t weir_scratch_file_bytes(const struct weir_scratch_file *file);

/*
 * weir_scratch_drop() - nobody opens it any more
 *
 * Takes NULL. Its bytes come back when its last reader is closed.
 */
WEIR_API void weir_scratch_drop(struct weir_scratch_file *file);

/* weir_scratch_reader_open() - any number for each file; 0 or -ENOMEM */
WEIR_API WEIR_MUST_CHECK int weir_scratch_reader_open(struct weir_scratch_file *file,
                                                      struct weir_scratch_reader **ret_reader);

/* weir_scratch_reader_close() - takes NULL; reads under way complete all the same */
WEIR_API void weir_scratch_reader_close(struct weir_scratch_reader *reader);

/* weir_scratch_reader_bytes() - the length of the file */
WEIR_API uint64_t weir_scratch_reader_bytes(const struct weir_scratch_reader *reader);

/*
 * weir_scratch_read() - copy a piece out
 * @ret_bytes:  how many were copied: less than asked for only at the end
 *
 * Return: 0, -EBADMSG, -ENOMEM, or what pread(2) says.
 */
WEIR_API WEIR_MUST_CHECK int weir_scratch_read(struct weir_scratch_reader *reader, uint64_t offset,
                                               void *buffer, size_t bytes, size_t *ret_bytes);

/*
 * weir_scratch_read_start() - the same, without blocking
 * @buffer:     filled until @operation completes
 * @bytes:      at most 1 GiB
 * @operation:  completed, never from this call, with the bytes that were copied
 *              or what read says
 *
 * Any number at once. Straight into @buffer where buffer, offset and length are
 * multiples of 4096, else in steps of 128 KiB.
 *
 * Return: 0: it will complete; -EINVAL, -ENOMEM.
 */
WEIR_API WEIR_MUST_CHECK int weir_scratch_read_start(struct weir_scratch_reader *reader,
                                                     uint64_t offset, void *buffer, size_t bytes,
                                                     struct weir_operation *operation);

/* ---- Background and figures ------------------------------------------------- */

/*
 * weir_scratch_poll() - complete what has come, for a store with its own ring
 * @timeout_ns:  sleep at most this long if something is under way; 0: do not
 *
 * Return: how many operations were completed, or a negative errno of the ring.
 */
WEIR_API int weir_scratch_poll(struct weir_scratch *scratch, uint64_t timeout_ns);

struct weir_scratch_stats {
    uint64_t bytes_max;
    uint64_t used_bytes; /* of it */
    uint64_t used_bytes_peak;
    uint64_t memory_bytes; /* of these, in files that have not rolled */
    uint64_t disk_bytes;   /* reserved on disk, as the disk cap was told */
    uint64_t buffer_bytes; /* of small files, blocks and tables: what the account is charged */
    uint64_t writer_count;
    uint64_t file_count; /* sealed and not dropped */
    uint64_t reader_count;
    uint64_t rolled_count;
    uint64_t written_bytes; /* ever, to disk */
    uint64_t read_bytes;    /* ever, from disk */
    uint64_t refused_count; /* -EDQUOT */
    uint64_t error_count;   /* of writes and reads, checksums too */
    bool direct;            /* files pass by the page cache (O_DIRECT) */
    bool synchronous;       /* no io_uring: operations block */
    uint64_t reserved[8];
};

/* weir_scratch_stats() - a snapshot */
WEIR_API void weir_scratch_stats(const struct weir_scratch *scratch,
                                 struct weir_scratch_stats *ret_stats);

WEIR_EXTERN_END

#endif
