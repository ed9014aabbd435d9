/* SPDX-License-Identifier: MIT */
#ifndef WEIR_REGION_H
#define WEIR_REGION_H

/*
 * region - the overflow file of one core
 *
 * A region is one file, mapped by one thread, which puts items there when the
 * governor says SPILL and frees them in any order. What is not needed in memory
 * goes cold: it stays in the file and leaves the memory. So keep slots, not
 * pointers:
 *
 *      struct weir_slot  --- weir_region_at() --->  const void *
 *      lives until freed                            lives until the next put,
 *                                                   alloc, write, free, poll,
 *                                                   fetch or sync on the region
 *
 * At most resident_bytes_max of the file are in memory, and fetched items are
 * part of it: a region is one charge, made by its owner at open. It changes only
 * by weir_region_set_resident(), for owners whose memory gets short and ample
 * again. Its tables come on top and are told to config.books: they grow to what the
 * most items at once need, some 40 bytes for each, and stay until close.
 *
 * Items enter by copy (put), in place (alloc_in_place, commit) or in pieces
 * (alloc, write, commit) and leave by address (at, pin), by copy (read, may
 * block) or through the ring (fetch, fetch_into). A cold item is never read
 * through the mapping.
 *
 * One signal is left. What is resident lies in the page cache, where the kernel may
 * take clean pages back when others press for memory, and reads them again when
 * they are touched, by the owner or by a call here. If the disk fails in that
 * moment it is SIGBUS, at the address that was touched. A failed write and a cold
 * item never are a signal, nor is a full disk, but of btrfs: it wants free space for
 * a store even where it has reserved the blocks. Where others leave it none a put
 * waits long in the kernel, or is SIGBUS: what fills up besides should not lie there.
 *
 * The file grows ahead of need and gives back what is free unasked, both from
 * poll; in memory are also the pages that are made ahead of the next put.
 *
 * A region that has its own ring (config.ring is NULL) waits in put, alloc and
 * write where a chunk must first be written out or emptied, or where at this
 * moment the tail of the file is given back. One on a worker's ring answers
 * -EAGAIN there and goes on when the worker turns: return to it before the next
 * try, for poll alone takes no completions of a ring that is not the region's.
 * Where the kernel forbids io_uring, all of it is done by plain system calls.
 *
 * An anonymous region ends with its owner. A named one is found again by the next
 * weir_region_open() of that name: after a kill -9 with every committed slot, after
 * a power loss with what weir_region_sync() confirmed. Handles stay what they were.
 *
 * A forked child has nothing of a region: it may only exec or exit. While one that
 * has done neither outlives an owner that was killed, a named region has an owner.
 *
 * Units    bytes
 * Thread   the thread that opened the region, and no other
 * Errors   0 on success, negative errno on failure. A call that fails has
 *          changed nothing: not the region, not its ret_ arguments.
 *
 *          -EINVAL   an argument is outside its stated range
 *          -EDQUOT   the region is at bytes_max, out of slots, or at the disk cap
 *          -ENOSPC   the file system is full, or at the floor of free space
 *          -ENOMEM   the kernel refused the memory
 *          -ESTALE   the slot was freed earlier; or its item is not committed yet
 *                    where it must be, or is where it must not
 *          -EAGAIN   not now: the call says what to wait for
 *          -EFBIG    larger than this way in or out takes; another does
 *          -EBADMSG  the bytes on disk are not those that were put
 */

#include <stddef.h>
#include <stdint.h>

#include <weir/base.h>

WEIR_EXTERN_BEGIN

struct weir_region;

/*
 * struct weir_region_config - how a region is opened
 * @directory:           where the file lives; required. Of a directory of which only a
 *                       descriptor is known: "/proc/self/fd/<descriptor>"
 * @name:                NULL: anonymous, nothing is left of it after a crash. Else
 *                       the files are NAME.weir (tables; sparse, so far longer than
 *                       what it takes of the disk) and NAME.weir-data, mode 0600; no
 *                       '/' in it, at most 200 bytes
 * @bytes_initial:       a first reservation on disk; 0: 64 MiB (or bytes_max)
 * @bytes_max:           the largest file; 0: 1 GiB; 2 MiB .. 1 TiB, rounded down to
 *                       2 MiB. Of a region that is there already: 0: as it is; more
 *                       lets it grow; less is -EINVAL. There is a slot for each 16
 *                       bytes, at most 2^32 - 1, fewer where RLIMIT_AS or RLIMIT_FSIZE
 *                       leave no room for so many; a named region keeps as many as
 *                       it was made with
 * @resident_bytes_max:  what of it may be in memory, fetched items included;
 *                       0: 64 MiB; at least 8 MiB; UINT64_MAX: all of it
 * @resident_bytes_min:  how far weir_region_set_resident() may lower that: 8 MiB ..
 *                       resident_bytes_max; 0: not at all. What is promised of
 *                       items in the stats (put_bytes_max, fetch_bytes_max) holds
 *                       there, too, and so follows from this. -EINVAL where
 *                       resident_bytes_max is UINT64_MAX
 * @disk_floor_bytes:    free space of the file system that growth leaves alone
 * @ring:                the ring of a worker, or NULL for one of its own
 * @books:               who is told how large the tables are
 * @disk_cap:            who is asked before the file grows; what is refused is
 *                       -EDQUOT
 * @memory_backed:       accept a directory on tmpfs, where every byte is memory
 * @wipes:               what is freed is overwritten: at once where it lies in
 *                       memory and may be stored to, else when its chunk is
 *                       brought back, or given up with its last item; the file
 *                       at close, unless it has a name. A disk may keep what it
 *                       was told to forget.
 */
struct weir_region_config {
    const char *directory;
    const char *name;
    uint64_t bytes_initial;
    uint64_t bytes_max;
    uint64_t resident_bytes_max;
    uint64_t disk_floor_bytes;
    struct weir_ring *ring;
    struct weir_books books;
    bool memory_backed;
    bool wipes;
    struct weir_disk_cap disk_cap;
    uint64_t resident_bytes_min;
    uint64_t reserved[8];
};

/*
 * weir_region_open() - make a region in @config->directory
 * @ret_region:  set on success only; give back with weir_region_close()
 *
 * Writes one chunk, drops it and asks the kernel whether it left the memory;
 * where it did not, stats.bounded is false and resident_bytes_max is a wish.
 *
 * A named region is made if it is not there. If it is, all of it is cold at first
 * and weir_region_report() tells what was found; damage costs the items that it
 * hit, not the region. weir_region_next() walks the slots. Files in @directory
 * that an earlier weir made and did not live to name are removed.
 *
 * Cost:    some milliseconds and one chunk of I/O. A region that is there: O(its
 *          slots) and what of it had not reached the disk; after a power loss, or
 *          where the files were copied, all that is live is read.
 *
 * Return: 0, -EINVAL, -ENOSPC, -EDQUOT (RLIMIT_FSIZE or the disk cap is too
 *         small), -ENOMEM, -EOPNOTSUPP (tmpfs without memory_backed, or a file
 *         system that cannot reserve blocks or copies them when they are written:
 *         btrfs does not, it is told while they are empty; files of a named region
 *         that were copied there are refused, unless chattr(1) "+C" came first), or
 *         what open(2) or io_uring_setup(2) say.
 *         Named also: -ENAMETOOLONG, -EBUSY (it has an owner), -ELOOP (one of the
 *         files is a symbolic link), -EEXIST (a data file without tables that is
 *         not ours), -ENOENT (the data file is gone), -EPROTONOSUPPORT (another
 *         version), -EBADMSG (not a region, or the head of it is damaged), -EIO (the
 *         tables cannot be read; or what was in memory cannot be written, and who
 *         opens next finds what is on the disk, as after a power loss), or -EAGAIN
 *         (others removed what was being made, again and again: try once more).
 */
WEIR_API WEIR_MUST_CHECK int weir_region_open(const struct weir_region_config *config,
                                              struct weir_region **ret_region);

/*
 * weir_region_close() - wait for what is under way, and give the file back
 *
 * The files of a named region stay; they are the caller's to delete, with
 * weir_region_remove(). Closing confirms nothing: weir_region_sync() first.
 *
 * Takes NULL. No item may be pinned; what is not committed is given up, and its
 * address with it. Calls back nothing: fetches that are under way are forgotten
 * once the kernel has let go of their buffers.
 */
WEIR_API void weir_region_close(struct weir_region *region);

/* ---- Named regions ---------------------------------------------------------- */

/*
 * weir_region_sync() - what is committed now survives a power loss
 *
 * After a power loss the region holds every item that the last sync() which
 * returned 0 confirmed, byte for byte, those freed since included; what was put
 * since is there if it is whole. For that, what was confirmed stays where it is
 * until the next sync(): space freed since is used again only after it
 * (stats.freed_bytes), and confirmed items that the cleaner moves are held twice
 * (stats.moving_bytes). So sync() gives room back: where it is called seldom a put
 * may find none, and says -EDQUOT, that would find it after another sync(). Of
 * what is put between two some twice as much must fit beside what lives.
 *
 * Cost: O(slots); blocks while the disk writes and flushes.
 *
 * Return: 0; -EOPNOTSUPP: the region has no name; -ENOMEM; or what fdatasync(2)
 *         says: nothing is confirmed then, and nothing in memory is lost. If the
 *         power goes before the next, what was freed before this one may be gone.
 *         The same again until poll has stored anew what was under way when a write
 *         failed, and what was filled in place then is committed or freed.
 */
WEIR_API WEIR_MUST_CHECK int weir_region_sync(struct weir_region *region);

/*
 * struct weir_region_report - what opening a named region found
 *
 * Lost items are stale from then on, also those of which the disk knows nothing and this
 * report cannot tell. After a kill there are none, unless a write had failed and a chunk
 * was being stored anew at that moment. After a power loss they may all be such as were
 * put since the last sync(), which nobody promised: the report does not tell them from
 * confirmed ones. What could not be read, and has a checksum, is kept: it is compared
 * when it is read. Bytes are lengths of items.
 */
struct weir_region_report {
    bool existed;                   /* false: it was made, and all below but sync_count is 0 */
    bool clean_shutdown;            /* the last owner closed it */
    bool after_power_loss;          /* another boot, or a flush at open failed: all was verified */
    int first_error;                /* -EBADMSG: damage; -EIO: not all could be read; 0: none */
    uint64_t kept_slot_count;       /* live now */
    uint64_t kept_bytes;            /* of these */
    uint64_t restored_slot_count;   /* of these, freed since the last sync() and there again */
    uint64_t unfinished_slot_count; /* were under construction, and are gone */
    uint64_t lost_slot_count;       /* committed, and gone: their bytes or their place are wrong */
    uint64_t lost_bytes;            /* of these */
    uint64_t damaged_entry_count;   /* made no sense at all */
    struct weir_slot first_lost;    /* all zero: none */
    uint64_t sync_count;            /* how often sync() has confirmed this region, ever */
    uint64_t reserved[8];
};

/* weir_region_report() - what weir_region_open() found; all zero for an anonymous region */
WEIR_API void weir_region_report(const struct weir_region *region,
                                 struct weir_region_report *ret_report);

/*
 * weir_region_remove() - delete the files of a named region
 *
 * Return: 0, -EINVAL, -ENAMETOOLONG, -ENOENT, -EBUSY (it has an owner), -ELOOP,
 *         -EPROTONOSUPPORT or -EBADMSG (NAME.weir is no region that we know), or
 *         what open(2), read(2) or unlink(2) say.
 */
WEIR_API WEIR_MUST_CHECK int weir_region_remove(const char *directory, const char *name);

/* ---- Items in --------------------------------------------------------------- */

/*
 * weir_region_put() - copy an item in
 * @data:   not in this region, unless pinned
 * @bytes:  0 .. stats.put_bytes_max; larger items go in pieces
 * @label:  yours, kept with the slot and shown by weir-dump
 *
 * Touches no cold page and allocates nothing; only the first cleaning does, which
 * takes its buffer, and a large item that is written by itself into a hole on disk
 * (from 16 KiB on, where the file is as long as it gets: stats.staged_bytes): it
 * has a buffer of those for fetches. Now and then a put does a piece of the work of
 * poll: at most 128 KiB of checksums, and of items to be moved.
 *
 * Cost:    O(log free extents); no syscall, but a submission for each new chunk.
 *          Faster than the file grows ahead: at worst one growth step, which waits
 *          for the disk. Before it grows items in memory are moved, if that
 *          makes room: about as many bytes as are put, at most 256 KiB.
 *
 * Return: 0, -EFBIG, -EDQUOT, -ENOSPC, -ENOMEM, what fallocate(2) says, or
 *         -EAGAIN while write-back or cleaning is behind: poll, then try again.
 *         While the region is degraded and no room is left, what the write-back
 *         said: -EIO, ...
 */
WEIR_API WEIR_MUST_CHECK int weir_region_put(struct weir_region *region, const void *data,
                                             size_t bytes, struct weir_label label,
                                             struct weir_slot *ret_slot);

/*
 * weir_region_alloc() - room for an item that comes in pieces
 * @bytes:  its whole length, 0 .. stats.item_bytes_max
 *
 * Until weir_region_commit() the slot can only be written, committed or freed.
 *
 * Return: as weir_region_put().
 */
WEIR_API WEIR_MUST_CHECK int weir_region_alloc(struct weir_region *region, size_t bytes,
                                               struct weir_label label, struct weir_slot *ret_slot);

/*
 * weir_region_write() - the next piece of an item under construction
 * @offset:  where the piece before it ended: pieces come in order
 * @bytes:   at most stats.put_bytes_max
 *
 * Return: 0, -EINVAL (also if @slot is filled in place), -ESTALE, -EIO (what came
 *         before cannot be brought back), or -EAGAIN while write-back is behind:
 *         poll, then try again with the same bytes, for some of them may be there
 *         already. While the region is degraded, what the write-back said: the
 *         same is to be done once it is not.
 */
WEIR_API WEIR_MUST_CHECK int weir_region_write(struct weir_region *region, struct weir_slot slot,
                                               uint64_t offset, const void *data, size_t bytes);

/*
 * weir_region_alloc_in_place() - room for an item that the caller fills by itself
 * @bytes:      its whole length, 0 .. stats.put_bytes_max
 * @alignment:  of its address: a power of two up to 4096; 0: 16
 * @ret_data:   @bytes to be stored to until commit or free; what is there before
 *              may be anything
 *
 * The address is good until weir_region_commit() or weir_region_free(), whatever
 * is called meanwhile; until then the slot can only be committed or freed, and
 * its bytes count as pinned. A committed item keeps its alignment, in the
 * mapping, in a fetch buffer and wherever it is moved.
 *
 * Chunks with such an item are neither written nor dropped. At most half of what
 * is for chunks, with config.resident_bytes_min, is held so (rounded up, so that
 * one item always fits): who has more in place gets -EAGAIN at once, whatever the
 * ring does, and a put may be told -EAGAIN that needs the other half. Nobody but
 * the caller can end that: it must not wait for room before it has committed or
 * freed. The same is true of a region that is degraded: it stays so while such a
 * chunk is to be written again. Nor are sparse chunks cleaned while fewer than
 * three are left unheld.
 *
 * Cost:    as weir_region_put(), without the copy.
 *
 * Return: as weir_region_put(), or -EINVAL.
 */
WEIR_API WEIR_MUST_CHECK int weir_region_alloc_in_place(struct weir_region *region, size_t bytes,
                                                        size_t alignment, struct weir_label label,
                                                        struct weir_slot *ret_slot,
                                                        void **ret_data);

/* weir_region_commit() - the item is whole; 0, -ESTALE, or -EINVAL if pieces are missing */
WEIR_API WEIR_MUST_CHECK int weir_region_commit(struct weir_region *region, struct weir_slot slot);

/*
 * weir_region_free() - give @slot back
 *
 * A pinned item is stale at once, its space comes back with the last unpin. A
 * fetch of it that is under way answers -ESTALE.
 *
 * Return: 0, or -ESTALE if it is not live.
 */
WEIR_API int weir_region_free(struct weir_region *region, struct weir_slot slot);

/*
 * weir_region_free_owner() - give back all slots with this owner tag
 * @ret_slot_count:  how many there were; may be NULL
 *
 * Cost: O(slots of the region).
 */
WEIR_API void weir_region_free_owner(struct weir_region *region, uint16_t owner,
                                     uint64_t *ret_slot_count);

/* ---- Items out -------------------------------------------------------------- */

/*
 * weir_region_at() - the address of an item that is in memory
 * @ret_bytes:  its exact length, as it was put in; may be NULL
 *
 * Return: 0, -ESTALE, -EBADMSG (it was found damaged), or -EAGAIN if the item is
 *         cold: weir_region_fetch() it.
 */
WEIR_API WEIR_MUST_CHECK int weir_region_at(struct weir_region *region, struct weir_slot slot,
                                            const void **ret_data, size_t *ret_bytes);

/*
 * weir_region_pin() - like at(), and keep slot and address until unpin
 *
 * Pins count. Pinned bytes stay in memory: pin little, and not for long.
 *
 * Return: 0, -ESTALE, -EBADMSG, -EAGAIN if the item is cold, or -ENOMEM.
 */
WEIR_API WEIR_MUST_CHECK int weir_region_pin(struct weir_region *region, struct weir_slot slot,
                                             const void **ret_data, size_t *ret_bytes);

/* weir_region_unpin() - let go of one pin; @slot must be pinned */
WEIR_API void weir_region_unpin(struct weir_region *region, struct weir_slot slot);

/*
 * weir_fetch_fn - an item that was asked for is there, or is not
 * @result:  0: weir_region_at() and weir_region_pin() answer for @slot, until
 *           the next call that may end an address; -ESTALE, -EBADMSG, -ENOMEM or
 *           what the read said: -EIO, ...
 *
 * Called once per slot, in any order, from weir_region_poll() and never from
 * weir_region_fetch() itself. May call the region, except poll, wait and close.
 */
typedef void weir_fetch_fn(void *context, struct weir_slot slot, int result);

/*
 * weir_region_fetch() - bring cold items in, through the ring
 * @slots:       need not outlive the call; items that are in memory are called
 *               back too
 * @slot_count:  1 .. 1024; a slot that cannot be fetched is told by its own call
 *
 * Neighbours in the file are read together. What is fetched lies in buffers
 * that count as resident, never in the mapping, and is verified against the
 * checksum.
 *
 * Reads start as buffers come free, so many slots can be asked for at once; what
 * is pinned holds its buffer. Memory of fetches that none has used for a while is
 * lent to what is dirty, and comes back once that is written: as long as writes
 * fail, or pins hold it, an item that needs more than resident_bytes_max / 32 may
 * have to wait.
 *
 * Return: 0: each slot will be called back once; -EINVAL; -EFBIG: an item is
 *         larger than stats.fetch_bytes_max, also if it is in memory now
 *         (weir_region_fetch_into() or weir_region_read() it in pieces); -ENOMEM.
 */
WEIR_API WEIR_MUST_CHECK int weir_region_fetch(struct weir_region *region,
                                               const struct weir_slot *slots, size_t slot_count,
                                               weir_fetch_fn *done, void *context);

/*
 * weir_region_fetch_into() - one piece of an item into the caller's buffer
 * @offset:     into the item; @offset + @bytes must not pass its end
 * @bytes:      0 .. INT32_MAX
 * @buffer:     filled until @operation completes; the caller's charge
 * @operation:  completed from poll, never from this call, with @bytes or a
 *              negative errno (-ESTALE: freed meanwhile); may do what a
 *              weir_fetch_fn may
 *
 * For items too large for memory. Pieces are not verified one by one; the
 * checksum of the whole is in the slot. What is left of a damaged item comes so.
 *
 * Return: 0, -EINVAL, -ESTALE, -ENOMEM.
 */
WEIR_API WEIR_MUST_CHECK int weir_region_fetch_into(struct weir_region *region,
                                                    struct weir_slot slot, uint64_t offset,
                                                    void *buffer, size_t bytes,
                                                    struct weir_operation *operation);

/*
 * weir_region_read() - copy an item, or a piece of it, out
 * @offset:        into the item
 * @buffer_bytes:  room in @buffer
 * @ret_bytes:     how many were copied: less than asked for only at the end
 *
 * Blocks while a cold item is read. The whole item at once is verified; of a
 * damaged one a piece can be read.
 *
 * Return: 0, -ESTALE, -EBADMSG, -ENOMEM, or what pread(2) says.
 */
WEIR_API WEIR_MUST_CHECK int weir_region_read(struct weir_region *region, struct weir_slot slot,
                                              uint64_t offset, void *buffer, size_t buffer_bytes,
                                              size_t *ret_bytes);

/* ---- Slots ------------------------------------------------------------------ */

/* struct weir_slot_info - what is known of a live slot without its bytes */
struct weir_slot_info {
    uint64_t bytes;
    struct weir_label label;
    bool resident;  /* at() would answer */
    bool committed; /* false: still under construction */
    bool damaged;   /* its bytes came back from disk other than they were put */
};

/* weir_region_slot() - what @slot is; 0 or -ESTALE */
WEIR_API WEIR_MUST_CHECK int weir_region_slot(const struct weir_region *region,
                                              struct weir_slot slot,
                                              struct weir_slot_info *ret_info);

/*
 * weir_region_next() - the next live slot after @slot, in no useful order
 * @slot:  all zero to begin
 *
 * Slots put or freed meanwhile may or may not be seen.
 *
 * Return: true and @slot, or false at the end and all zero, to begin again.
 */
WEIR_API bool weir_region_next(const struct weir_region *region, struct weir_slot *slot);

/* ---- Background work -------------------------------------------------------- */

/*
 * weir_region_poll() - one tick of background work
 *
 * Takes completions (of its own ring), calls back fetches, starts write-back,
 * drops clean chunks, moves items out of sparse ones, grows file and tables
 * ahead, and gives free space back to the file system by steps: the tail above
 * what was in use of late, and whole chunks that stay free, a reserve left out. A
 * first reservation that was never used stays.
 * Never blocks. Checksums and items to be moved: at most 256 KiB of each, so that
 * a tick stays below a millisecond; of checksums 768 KiB while the memory gets
 * less.
 *
 * Return: how many completions were handled, or a negative errno: a write-back
 *         failed (stats.degraded; nothing in memory was lost), or a chunk could
 *         not be brought back to be filled. What else was to be read is told to
 *         whoever asked for it.
 */
WEIR_API int weir_region_poll(struct weir_region *region);

/*
 * weir_region_wait() - poll, but sleep until there is something to handle
 * @timeout_ns:  at most this long
 *
 * For a region that has its own ring; on a worker's ring the worker sleeps.
 *
 * Return: as weir_region_poll(); 0 also when nothing is under way.
 */
WEIR_API int weir_region_wait(struct weir_region *region, uint64_t timeout_ns);

/*
 * weir_region_set_resident() - another bound for what is in memory, from now on
 * @bytes:  config.resident_bytes_min .. config.resident_bytes_max
 *
 * More than stats.resident_bytes_max may be in memory at once: charge it first.
 * Less is a wish, for poll to carry out: chunks are written back and dropped,
 * fetched items that nobody pins are given up. Meanwhile stats.resident_bytes_max
 * is what really bounds the memory: it never rises on its way down to @bytes, and
 * what it has fallen by can be refunded. Nothing leaves the memory in this call:
 * addresses stay good.
 *
 * What is pinned or filled in place stays, and nothing is dropped while the region
 * is degraded: that holds the bound up. Until it has come down no further chunk
 * comes into memory: a put, alloc or write that needs one finds write-back behind.
 *
 * Cost: O(fetch buffers); never blocks.
 *
 * Return: 0 or -EINVAL.
 */
WEIR_API WEIR_MUST_CHECK int weir_region_set_resident(struct weir_region *region, uint64_t bytes);

/* ---- Statistics ------------------------------------------------------------- */

struct weir_region_stats {
    uint64_t bytes_max;
    uint64_t resident_bytes_max; /* what bounds the memory now: weir_region_set_resident() */
    uint64_t item_bytes_max;     /* largest item, in pieces; less than 64 GiB */
    uint64_t put_bytes_max;      /* largest item at once, and largest piece */
    uint64_t fetch_bytes_max;    /* largest item that fetch() brings in whole */
    uint64_t live_bytes;         /* lengths of live items */
    uint64_t live_bytes_peak;
    uint64_t file_bytes;     /* length of the file; a step more while that is changed */
    uint64_t disk_bytes;     /* blocks really allocated to it: less where there are holes */
    uint64_t mark_bytes;     /* space ever handed out, less the tail given back */
    uint64_t free_bytes;     /* in free extents under the mark */
    uint64_t resident_bytes; /* chunks in memory and fetched items */
    uint64_t dirty_bytes;    /* of these, not yet on disk */
    uint64_t fetched_bytes;  /* of these, in buffers beside the file */
    uint64_t pinned_bytes;   /* also of what is filled in place */
    uint64_t metadata_bytes; /* tables and indexes; told to config.books */
    uint64_t slot_count;
    uint64_t free_extent_count;
    uint64_t put_count;
    uint64_t put_bytes;     /* ever put */
    uint64_t written_bytes; /* ever written back, or by themselves */
    uint64_t fetch_count;
    uint64_t read_bytes;  /* ever read back */
    uint64_t moved_bytes; /* ever moved, out of sparse chunks or to make room */
    uint64_t write_error_count;
    uint64_t read_error_count; /* checksums too */
    uint64_t growth_error_count;
    uint64_t damaged_count; /* live slots that are damaged: weir_region_next() finds them */
    uint64_t freed_bytes;   /* named: freed since the last sync(), space again after the next */
    bool bounded;           /* the kernel lets go of what is dropped */
    bool direct;            /* fetches pass by the page cache (O_DIRECT) */
    bool degraded;          /* a write failed; not written since, nor put elsewhere */
    bool synchronous;       /* no io_uring: plain system calls */
    bool movable;           /* no address space: growth moves the mapping, or waits for pins */
    uint64_t resident_wish_bytes; /* where resident_bytes_max is, or is on its way to */
    uint64_t staged_bytes; /* of put_bytes, written by themselves into holes of cold chunks */
    uint64_t moving_bytes; /* named: held beside confirmed items that are moved, until sync() */
    uint64_t reserved[4];
};

/* weir_region_stats() - a snapshot; one fstat(2) */
WEIR_API void weir_region_stats(const struct weir_region *region,
                                struct weir_region_stats *ret_stats);

/*
 * weir_region_placement() - on which NUMA nodes its memory lies
 *
 * Payload of chunks in memory, tables, and buffers for reads; what only the page
 * cache has is not told. For figures: it is of one moment.
 *
 * Cost:    a tenth of a microsecond for each page, in calls for 512; of more than
 *          32768 pages each n-th. Some milliseconds at most.
 *
 * Return: 0; -EOPNOTSUPP: a kernel without nodes; -EPERM: containers forbid
 *         move_pages(2) often; or what it says.
 */
WEIR_API int weir_region_placement(const struct weir_region *region,
                                   struct weir_placement *ret_placement);

/*
 * weir_region_audit() - walk all tables and check every invariant
 *
 * A violation is our bug and stops the process with a report. For tests.
 *
 * Cost: O(extents).
 */
WEIR_API void weir_region_audit(const struct weir_region *region);

/*
 * weir_region_fd() - the descriptor of the tables, for weir_view_open()
 *
 * Owned by the region; good until close.
 */
WEIR_API int weir_region_fd(const struct weir_region *region);

WEIR_EXTERN_END

#endif
