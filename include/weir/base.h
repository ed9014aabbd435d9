/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BASE_H
#define WEIR_BASE_H

/*
 * base - what every header of weir shares
 *
 * Errors are negative errno values with one meaning each in the whole library;
 * an outcome that is no failure is a typed enum and never shares a return value
 * with an error:
 *
 *      -EINVAL            an argument lies outside its documented range;
 *                         nothing was tried
 *      -EDQUOT            a limit of ours: bytes_max, slots, disk cap, hard level
 *      -ENOSPC            a limit of the file system
 *      -ENOMEM            the kernel refused memory or address space
 *      -ESTALE            the object of this handle is gone
 *      -EBADMSG           bytes read back fail their checksum or their shape
 *      -EPROTONOSUPPORT   a file of a version that we do not read
 *      -EAGAIN            no progress now; the call says what to wait for
 *      -EBUSY             in use: children alive, or held by another process
 *      -ENOENT            there is nothing there: a gap, an empty queue
 *      -EEXIST            it is there already: a duplicate
 *      -ERANGE            outside the window: past, or too far ahead
 *      -EFBIG             larger than the largest item
 *      -ETIMEDOUT         the deadline passed
 *      -EOPNOTSUPP        this file system or kernel cannot give the promise
 *      -ECANCELED         the worker is stopping, or the waiter was cancelled
 *
 * Any other code comes unchanged from the system call that a header names. A
 * call that fails has changed nothing: neither the object nor its ret_
 * arguments.
 *
 * Configurations are filled by designated initialisers; a field that is zero
 * means its documented default. Every configuration ends in reserved words that
 * must be zero, else -EINVAL. In C++: `weir_region_config config{};`, then assign.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
# define WEIR_EXTERN_BEGIN extern "C" {
# define WEIR_EXTERN_END   }
#else
# define WEIR_EXTERN_BEGIN
# define WEIR_EXTERN_END
#endif

#define WEIR_API        __attribute__((visibility("default")))
#define WEIR_MUST_CHECK __attribute__((warn_unused_result))

#define WEIR_VERSION "0.1.0"

WEIR_EXTERN_BEGIN

/* weir_version() - the version of the library that runs, as "major.minor.patch" */
WEIR_API const char *weir_version(void);

/*
 * struct weir_slot - the stable name of an item in a region
 *
 * Keep slots, never pointers. All zero means none.
 */
struct weir_slot {
    uint32_t index;
    uint32_t generation;
};

/* struct weir_label - the user's own words, kept with a slot and shown by weir-dump */
struct weir_label {
    uint64_t key;
    uint16_t owner;
};

/* weir_slot_is_none() - whether @slot names nothing */
static inline bool weir_slot_is_none(struct weir_slot slot)
{
    return slot.index == 0 && slot.generation == 0;
}

/*
 * struct weir_books - who is told when a module's own memory grows or shrinks
 * @charge:  called with the change in bytes, negative for less; must not fail
 *           and must not call back into the module. NULL: nobody is told.
 *
 * Tables and buffers are counted this way (payload is charged by whoever owns
 * it). weir_account_books() gives the books of an account.
 */
struct weir_books {
    void (*charge)(void *context, int64_t bytes);
    void *context;
};

/*
 * struct weir_disk_cap - who is asked before files grow, and told when they shrink
 * @take:  called before @bytes more of a file system are reserved; false: not
 *         allowed, and the call that wanted them is -EDQUOT. NULL: no cap.
 * @give:  called when @bytes that were taken are not reserved any more, or could
 *         not be; NULL only if @take is
 *
 * Counted is what is reserved: the length of the file less the holes whose
 * blocks were given back. Both are called on the thread that owns the file and
 * must not call back into the module. One cap may be shared by several.
 */
struct weir_disk_cap {
    bool (*take)(void *context, uint64_t bytes);
    void (*give)(void *context, uint64_t bytes);
    void *context;
};

#define WEIR_NODES_MAX 8

/*
 * struct weir_placement - on which NUMA nodes some memory lies, as the kernel says
 * @node_bytes:    in memory, by the number of the node
 * @beyond_bytes:  on nodes from WEIR_NODES_MAX on
 * @asked_bytes:   that were asked for; what is not among the above is not in memory,
 *                 or not in the tables of this process
 * @stride:        1: each page was asked for; n: each n-th of a range, standing for
 *                 those that follow it
 */
struct weir_placement {
    uint64_t node_bytes[WEIR_NODES_MAX];
    uint64_t beyond_bytes;
    uint64_t asked_bytes;
    uint64_t stride;
    uint64_t reserved[8];
};

/*
 * struct weir_ring - an io_uring, its completions routed to their operations
 *
 * Opaque. A worker has one; where a configuration has a ring, NULL means that
 * the object opens its own.
 */
struct weir_ring;

/*
 * struct weir_operation - one thing under way in a ring
 * @complete:  called on the ring's own thread, from its poll, with what the
 *             kernel answered: a result or a negative errno, and the flags of
 *             the completion (IORING_CQE_F_MORE: more will come)
 *
 * Embedded by whoever starts the operation, and alive until its last
 * completion.
 */
struct weir_operation {
    void (*complete)(struct weir_operation *operation, int32_t result, uint32_t flags);
};

WEIR_EXTERN_END

#endif
