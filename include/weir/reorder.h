/* SPDX-License-Identifier: MIT */
#ifndef WEIR_REORDER_H
#define WEIR_REORDER_H

/*
 * reorder - in order, whatever arrives
 *
 * Items come with sequence numbers in any order and leave strictly in order.
 * What waits long is kept in the overflow region as slot handles: on
 * WEIR_SPILL those furthest from delivery go first, the hot zone right behind
 * `next` last. As `next` nears spilled items they are fetched ahead.
 *
 *      next     hot zone         in memory        spilled, as slots
 *      |--------------------|------------------|---------------------|
 *      gap? the head is always let in           furthest goes first
 *
 * Memory is bounded whatever the gap: an item far ahead costs what it holds and
 * a bounded index, not the distance. An item is written at most once.
 *
 * When memory is short elsewhere, the account of the buffer is asked to give some
 * back, in weir_account_poll(): then its buffers spill, furthest first, without a
 * push. The hot zone and what is popped stay.
 *
 * Items are bytes, which are copied in, or objects of the caller, which are
 * encoded only if they spill. One buffer may have both.
 *
 * Units    bytes, items
 * Thread   the thread that owns account and region
 * Errors   0 on success, negative errno on failure. A call that fails has
 *          changed nothing; what it was given stays with the caller.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <weir/base.h>

WEIR_EXTERN_BEGIN

struct weir_account;
struct weir_region;
struct weir_reorder;

/*
 * struct weir_reorder_codec - items that are objects of the caller
 * @measure:  what @object takes of memory: charged while it is in memory
 * @encode:   write it to @buffer; returns how many bytes it takes, whatever
 *            @buffer_bytes, and writes only if that is enough. Called with no buffer
 *            first, to learn how many. Where it is negative, or more than the region
 *            puts or fetches at once, the object stays in memory.
 * @decode:   make an object of what encode wrote; 0 or a negative errno. @data is
 *            gone after the call.
 * @release:  the buffer lets go of @object: it is encoded and spilled, skipped or
 *            released, or the buffer is destroyed
 * @context:  passed to all four
 *
 * Called from calls of this buffer and from weir_account_poll(); must not call the
 * buffer, the region or the account. All four are needed; none: there are no objects.
 */
struct weir_reorder_codec {
    size_t (*measure)(void *context, const void *object);
    int64_t (*encode)(void *context, const void *object, void *buffer, size_t buffer_bytes);
    int (*decode)(void *context, const void *data, size_t bytes, void **ret_object);
    void (*release)(void *context, void *object);
    void *context;
};

/*
 * struct weir_reorder_config - how a reorder buffer is made
 * @account:           charged with payload and tables; NULL: unbounded by bytes.
 *                     Its has_room is asked before anything spills, but for the head.
 * @region:            where to spill; NULL: never spills. With an account, that has
 *                     a reclaimer "reorder" of cost 100 as long as it has such
 *                     buffers: one for all of them, which are asked in turn, and
 *                     which gives at most 1 MiB at once.
 * @first_sequence:    the first to be delivered
 * @window_items_max:  how far ahead of next a sequence may be; 0: 2^32
 * @window_bytes_max:  payload held, in memory and spilled, the head apart; 0: no limit
 * @hot_items:         this many behind next spill last; 0: 16
 * @working_bytes:     charged at create and kept: the missing head and fetches
 *                     live on it, whatever the level, and at hard up to half of it
 *                     is for the index; 0: 64 KiB. Below 4 KiB the index has none.
 * @owner:             the owner tag of its slots in the region
 * @ready:             an item that weir_reorder_pop() or weir_reorder_take()
 *                     answered -EAGAIN for has come back, or failed to: ask again.
 *                     From poll; may be NULL.
 * @context:           passed to @ready
 * @passes_through:    items leave as they come: they are numbered from
 *                     @first_sequence on, and the sequence that push is given is
 *                     not looked at
 * @codec:             for weir_reorder_push_object()
 */
struct weir_reorder_config {
    struct weir_account *account;
    struct weir_region *region;
    uint64_t first_sequence;
    uint64_t window_items_max;
    uint64_t window_bytes_max;
    uint32_t hot_items;
    uint16_t owner;
    uint64_t working_bytes;
    void (*ready)(void *context);
    void *context;
    bool passes_through;
    struct weir_reorder_codec codec;
    uint64_t reserved[8];
};

/* weir_reorder_create() - 0, -EINVAL, -ENOMEM, -EDQUOT: the working set does not fit */
WEIR_API WEIR_MUST_CHECK int weir_reorder_create(const struct weir_reorder_config *config,
                                                 struct weir_reorder **ret_reorder);

/* weir_reorder_destroy() - takes NULL; frees what it holds, slots too; nothing may be popped */
WEIR_API void weir_reorder_destroy(struct weir_reorder *reorder);

/* ---- In --------------------------------------------------------------------- */

/*
 * weir_reorder_push() - an item of this sequence, by copy
 *
 * The head (sequence == next) is always let in. Any other is charged: on
 * WEIR_SPILL the furthest items go to the region, this one too if it is among
 * them.
 *
 * Cost:    O(log of the distance); spills may cost a region put each.
 *
 * At hard the region still takes what it has room for. The index grows in the place
 * of items that are further; where none can leave, on the working set, which is whole
 * again as soon as memory is: so whoever frees elsewhere what he has pushed, no less
 * than the index took for it, always gets on.
 *
 * Return: 0; -EEXIST: this sequence is here already; -ERANGE: delivered already,
 *         or too far ahead; -EAGAIN: no memory now and no room in the region, or
 *         none for the index either (at hard, where nothing further ahead can
 *         leave and half of the working set is lent): wait for the account, free what
 *         was pushed (or poll the region), then push again; -EFBIG:
 *         larger than the region takes at once: weir_reorder_push_slot();
 *         -EDQUOT, -ENOSPC: the region is full, and memory too, or
 *         window_bytes_max is reached; -EIO, ...: memory is full, and the region
 *         is degraded; -ENOMEM.
 */
WEIR_API WEIR_MUST_CHECK int weir_reorder_push(struct weir_reorder *reorder, uint64_t sequence,
                                               const void *data, size_t bytes);

/*
 * weir_reorder_push_slot() - an item that is in the region already
 * @take_slot:  committed, of this buffer's region; ours on success
 *
 * For items that came in pieces. Charges no payload.
 *
 * Return: 0, -EEXIST, -ERANGE, -ESTALE, -EDQUOT (window_bytes_max), -ENOMEM,
 *         -EINVAL: there is no region, or the item is not committed.
 */
WEIR_API WEIR_MUST_CHECK int weir_reorder_push_slot(struct weir_reorder *reorder, uint64_t sequence,
                                                    struct weir_slot take_slot);

/*
 * weir_reorder_push_object() - an item that is an object; config.codec knows it
 * @take_object:  not NULL; ours on success
 *
 * Return: as weir_reorder_push(), -EFBIG also where encode refuses what has to go
 *         to the region at once; -EINVAL: there is no codec.
 */
WEIR_API WEIR_MUST_CHECK int weir_reorder_push_object(struct weir_reorder *reorder,
                                                      uint64_t sequence, void *take_object);

/*
 * weir_reorder_spill() - move up to @bytes of payload to the region, furthest first
 *
 * What a flush asks for. The hot zone stays. A push that is answered WEIR_FLUSH
 * begins one by itself, and this and the next pushes spill a part of it each.
 *
 * Return: how many bytes of memory came free; 0 also when the region took none.
 */
WEIR_API uint64_t weir_reorder_spill(struct weir_reorder *reorder, uint64_t bytes);

/* ---- Out -------------------------------------------------------------------- */

/*
 * struct weir_item - an item on its way out
 * @data:    NULL for an item of no bytes, and for one that is larger than
 *           stats.fetch_bytes_max of the region: read @slot in pieces, by
 *           weir_region_fetch_into() or weir_region_read()
 * @bytes:   of an object: what it measured
 * @slot:    all zero unless the item lies in the region
 * @object:  of weir_reorder_push_object(), decoded if it was spilled, @data is NULL
 *           then; set it to NULL to keep it: it is yours from then on
 */
struct weir_item {
    uint64_t sequence;
    const void *data;
    size_t bytes;
    struct weir_slot slot;
    void *object;
    void *hold; /* the buffer's own */
};

/*
 * weir_reorder_pop() - the next item, in order
 * @ret_item:  its bytes stay until weir_reorder_release()
 *
 * Return: 0; -ENOENT: a gap, or empty; -EAGAIN: it is being fetched, config.ready
 *         will tell; -EBADMSG, -EIO, ...: it could not be read back, or decode
 *         said so: pop again to try again, or weir_reorder_skip() it.
 */
WEIR_API WEIR_MUST_CHECK int weir_reorder_pop(struct weir_reorder *reorder,
                                              struct weir_item *ret_item);

/*
 * weir_reorder_take() - an item out of its turn; next stays where it is
 *
 * What was taken is a gap: skip it when it is the head, or push it again.
 *
 * Return: 0; -ENOENT: it is not here; -EAGAIN: it is being fetched, config.ready
 *         will tell, and until it is taken it may be in memory; -ENOMEM: no more
 *         can be fetched now; -EBADMSG, -EIO, ...: as weir_reorder_pop().
 */
WEIR_API WEIR_MUST_CHECK int weir_reorder_take(struct weir_reorder *reorder, uint64_t sequence,
                                               struct weir_item *ret_item);

/* weir_reorder_release() - done with a popped or taken item: memory, charge and slot come back */
WEIR_API void weir_reorder_release(struct weir_reorder *reorder, struct weir_item *item);

/*
 * weir_reorder_skip() - give up the head: next moves on by one
 *
 * A gap is stepped over, a head that is there is dropped; a fetch of it that is
 * under way is forgotten.
 *
 * Return: 0, or -ERANGE: there is no number behind this one.
 */
WEIR_API int weir_reorder_skip(struct weir_reorder *reorder);

/* ---- Statistics ------------------------------------------------------------- */

struct weir_reorder_stats {
    uint64_t next_sequence;
    uint64_t last_sequence;  /* the furthest that is here; valid if item_count */
    uint64_t item_count;     /* here: in memory, spilled or being fetched */
    uint64_t item_count_max; /* the most that were ever here */
    uint64_t memory_count;   /* of these, payload in memory */
    uint64_t spilled_count;  /* of these, in the region */
    uint64_t payload_bytes;  /* of all that are here */
    uint64_t memory_bytes;   /* payload in memory; equals what is charged for it */
    uint64_t spilled_bytes;  /* payload in the region */
    uint64_t popped_count;   /* out, not yet released */
    uint64_t pushed_count;   /* ever */
    uint64_t delivered_count;
    uint64_t taken_count;
    uint64_t skipped_count;
    uint64_t spill_count;     /* items ever written to the region */
    uint64_t spill_bytes;     /* their bytes there, each item once */
    uint64_t rewritten_bytes; /* written there besides, for what then did not stay there */
    uint64_t fetch_count;     /* items ever fetched back */
    uint64_t duplicate_count;
    uint64_t range_count; /* refused with -ERANGE */
    uint64_t failed_spill_count;
    uint64_t failed_fetch_count;
    uint64_t stall_count; /* times that items were here and the head was missing */
    uint64_t stall_ns;    /* how long in all, the present one included */
    uint64_t stall_max_ns;
    uint64_t metadata_bytes;
    uint64_t reclaim_count; /* times that it has spilled because its account was asked */
    uint64_t reclaim_bytes; /* what the account got back by that */
    uint64_t lent_bytes;    /* of the working set, to heads and tables now: not charged as long */
    uint64_t reserved[7];
};

WEIR_API void weir_reorder_stats(const struct weir_reorder *reorder,
                                 struct weir_reorder_stats *ret_stats);

/* weir_reorder_audit() - walk all and check every invariant; for tests */
WEIR_API void weir_reorder_audit(const struct weir_reorder *reorder);

WEIR_EXTERN_END

#endif
