/* SPDX-License-Identifier: MIT */
#ifndef WEIR_REORDER_STATE_H
#define WEIR_REORDER_STATE_H

/*
 * reorder_state - what the files of reorder share
 *
 * The invariants are numbered in reorder.c.
 */

#include <weir/reorder.h>

#include "base/bits.h"
#include "base/check.h"
#include "base/heap.h"
#include "base/list.h"
#include "reorder/relief.h"
#include "reorder/window.h"

#include <weir/governor.h>
#include <weir/region.h>

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* Payload that leaves for tables leaves in runs: scattered items are read back one by one. */
#define REORDER_CREDIT_BYTES_MAX (UINT64_C(32) << 10)

struct reorder_fetch; /* of ahead.c */

/* A large item on its way to the region in pieces. */
struct reorder_partial {
    uint64_t sequence;
    struct weir_slot slot; /* none: there is no such item */
    uint64_t offset;
};

struct weir_reorder {
    struct weir__window window;
    uint64_t next;
    uint64_t window_items_max; /* O1; fixed at create, as all up to @owner */
    uint64_t window_bytes_max;
    uint64_t working_bytes;
    struct weir_account *account;
    struct weir_region *region;
    void (*ready)(void *context);
    void *context;
    struct weir_reorder_codec codec;
    uint64_t put_bytes_max; /* of the region */
    uint64_t fetch_bytes_max;
    uint64_t ahead_bytes_max;
    uint32_t hot_items;
    bool passes_through;
    uint16_t label_owner;
    pthread_t owner;

    bool head_is_here;
    bool is_take_due; /* ready is owed for what take asked for; nothing of the head ends that */
    bool is_waiting;  /* pop said -EAGAIN: ready is owed; counted in ahead_waiting_count */

    uint64_t charged_bytes; /* O2 */
    uint64_t memory_bytes;  /* payload of what waits in memory */
    uint64_t popped_bytes;  /* payload in memory of what is out */
    uint64_t object_bytes;  /* of both, what objects take: not from packs */
    uint64_t lent_bytes;    /* O3 */
    uint64_t tables_bytes; /* O8; of lent_bytes, to tables: what is more than those was paid back */
    uint64_t spilled_bytes;
    uint64_t spilled_count;
    uint64_t credit_bytes; /* have left for tables that are still to grow */
    uint64_t debt_bytes;   /* still to be spilled for a flush */
    uint64_t slack_bytes;  /* told to the books for packs beyond their payload */
    uint64_t room_bytes;   /* may go to the region without asking the account again */
    uint64_t tail;         /* what comes next, if it passes through */
    struct reorder_partial partial;

    struct reorder_fetch *fetches; /* O4; from @fetch_first on */
    uint32_t fetch_first;
    uint32_t fetch_count;
    uint32_t fetch_capacity;
    uint64_t ahead_bytes;
    uint64_t extra_bytes;            /* what an item is believed to take beyond its bytes */
    uint64_t scan;                   /* O5 */
    uint64_t id;                     /* the context of our fetches */
    struct weir_reorder *busy_next;  /* O6 */
    struct weir_reorder **busy_link; /* what points to us; NULL: not in the table */
    struct weir__list starved;
    struct weir__list ready_due;
    struct weir__relief_member relief;

    struct weir__heap heap;
    uint64_t stall_since_ns; /* 0: no stall now */
    uint64_t stall_count;
    uint64_t stall_ns;
    uint64_t stall_max_ns;
    uint64_t item_count_max;
    uint64_t popped_count;
    uint64_t pushed_count;
    uint64_t delivered_count;
    uint64_t taken_count;
    uint64_t skipped_count;
    uint64_t spill_count;
    uint64_t spill_bytes;
    uint64_t rewritten_bytes;
    uint64_t fetch_done_count;
    uint64_t duplicate_count;
    uint64_t range_count;
    uint64_t failed_spill_count;
    uint64_t failed_fetch_count;
    uint64_t reclaim_count;
    uint64_t reclaim_bytes;
};

/* Not of a popped one that the caller keeps: that is NULL. */
static inline void weir__reorder_let_go(struct weir_reorder *reorder, void *object)
{
    if (object != NULL)
        reorder->codec.release(reorder->codec.context, object);
}

/* ---- reorder.c ------------------------------------------------------------------ */

bool weir__reorder_is_mine(const struct weir_reorder *reorder);

/* @bytes of payload are charged, come what may: on the working set as far as it goes. */
void weir__reorder_charge_head(struct weir_reorder *reorder, uint64_t bytes);

/* Of the working set, @bytes are refunded for tables that grow by them; false: it has not got them. */
bool weir__reorder_lend_tables(struct weir_reorder *reorder, uint64_t bytes);

/* Up to @bytes that were lent to tables are charged again, whatever the level. */
void weir__reorder_restore_tables(struct weir_reorder *reorder, uint64_t bytes);

/* Tell the books @bytes of slack. */
void weir__reorder_set_slack(struct weir_reorder *reorder, uint64_t bytes);

void weir__reorder_begin_stall(struct weir_reorder *reorder);
void weir__reorder_end_stall(struct weir_reorder *reorder);

/* @bytes of payload left the memory; what the working set lent comes back first. */
static inline void weir__reorder_refund(struct weir_reorder *reorder, uint64_t bytes)
{
    uint64_t lent = weir__min(bytes, reorder->lent_bytes);

    if (reorder->account == NULL)
        return;
    reorder->lent_bytes -= lent;
    if (bytes > lent)
        weir_account_refund(reorder->account, bytes - lent);
    WEIR_ASSERT(reorder->charged_bytes >= bytes - lent);
    reorder->charged_bytes -= bytes - lent;
}

/*
 * Tell the books what packs take beyond their payload. Not with every item:
 * what was told is never below the truth, and above it by a part of it.
 */
static inline void weir__reorder_tell_slack(struct weir_reorder *reorder)
{
    uint64_t held = reorder->window.packs.bytes;
    uint64_t filled = reorder->memory_bytes + reorder->popped_bytes - reorder->object_bytes;
    uint64_t slack = held - weir__min(held, filled);
    uint64_t step = 256 + held / 64;
    uint64_t told = reorder->slack_bytes;

    if (WEIR_UNLIKELY(told < slack || told > slack + 2 * step))
        weir__reorder_set_slack(reorder, slack == 0 ? 0 : slack + step);
}

/* A stall begins when the head is missing while others wait, and ends with it. */
static inline void weir__reorder_watch_stall(struct weir_reorder *reorder)
{
    bool is_stalled = !reorder->head_is_here && reorder->window.item_count > 0;

    if (is_stalled == (reorder->stall_since_ns != 0))
        return;
    if (is_stalled)
        weir__reorder_begin_stall(reorder);
    else
        weir__reorder_end_stall(reorder);
}

/* ---- intake.c ------------------------------------------------------------------- */

/* What the region took of a large item is of no use any more. */
void weir__intake_drop_partial(struct weir_reorder *reorder);

/* A verdict asked for a flush: this and the next pushes pay for it. */
void weir__intake_take_flush(struct weir_reorder *reorder);

/* ---- ahead.c -------------------------------------------------------------------- */

/* 0 or -ENOMEM. */
int weir__ahead_init(struct weir_reorder *reorder);
void weir__ahead_deinit(struct weir_reorder *reorder);

void weir__ahead_end_wait(struct weir_reorder *reorder);
void weir__ahead_fetch_more(struct weir_reorder *reorder);

/* The head is not what it was: nobody waits for a fetch of it any more. */
static inline void weir__ahead_stop_waiting(struct weir_reorder *reorder)
{
    if (!weir__list_is_empty(&reorder->starved))
        WEIR_ASSERT(reorder->is_waiting);
    if (reorder->is_waiting || !weir__list_is_empty(&reorder->ready_due))
        weir__ahead_end_wait(reorder);
}

/* Fetch what comes soon, in batches. */
static inline void weir__ahead_fetch(struct weir_reorder *reorder)
{
    if (reorder->spilled_count > 0)
        weir__ahead_fetch_more(reorder);
}

/* Something was let go of, or came in: the starved try again. */
void weir__ahead_feed_starved(void);

/* What was fetched of @sequence, or is about to be, is of no use any more. */
void weir__ahead_forget(struct weir_reorder *reorder, uint64_t sequence);

/*
 * The address of an item that lies in the region, pinned; NULL if it is read in
 * pieces or has no bytes. 0; -EAGAIN: it will come, and ready is owed; or why not.
 */
int weir__ahead_pin(struct weir_reorder *reorder, uint64_t sequence,
                    const struct weir__window_view *view, const void **ret_data);

void weir__ahead_audit(const struct weir_reorder *reorder);

#endif
