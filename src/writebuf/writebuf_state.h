/* SPDX-License-Identifier: MIT */
#ifndef WEIR_WRITEBUF_STATE_H
#define WEIR_WRITEBUF_STATE_H

/*
 * writebuf_state - what the files of writebuf share
 *
 * The invariants are numbered in writebuf.c.
 */

#include <weir/writebuf.h>

#include "base/heap.h"
#include "base/list.h"
#include "writebuf/keys.h"
#include "writebuf/piece.h"

#include <weir/governor.h>
#include <weir/region.h>

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define WRITEBUF_PAGE_BYTES UINT64_C(4096)

/* The table of one flush that needs no memory beyond the working set: 3072 keys. */
#define WRITEBUF_INDEX_BYTES UINT64_C(65536)

/* What a flush may have of blocks under way from the region. */
#define WRITEBUF_LOADS_MAX 64u

/* Why a buffer wants to be flushed. */
enum writebuf_reason {
    WRITEBUF_FOR_BYTES = 1 << 0,
    WRITEBUF_FOR_ROWS = 1 << 1,
    WRITEBUF_FOR_AGE = 1 << 2,
    WRITEBUF_FOR_DEMAND = 1 << 3,
    WRITEBUF_FOR_MEMORY = 1 << 4, /* the account asks, or the collecting cap is reached */
    WRITEBUF_FOR_REPLAY = 1 << 5,
    WRITEBUF_FOR_REST = 1 << 6,    /* the flush before it failed */
    WRITEBUF_FOR_REQUEST = 1 << 7, /* a demand without a ticket */
};

/* Some records one after the other; in memory, in the region, or in both. */
struct writebuf_block {
    struct weir__list link;    /* of buffer.blocks, oldest first */
    struct weir__list loading; /* of set.loads */
    struct weir__piece piece;  /* none: only in the region */
    struct weir_slot slot;     /* none: only in memory */
    uint64_t charged_bytes;    /* of the account, for the piece */
    uint64_t window_bytes;     /* of the working set, for the piece */
    uint64_t fill_bytes;
    uint64_t first_sequence;
    uint64_t last_sequence;
    uint32_t record_count;
    uint32_t insert_count;
    uint32_t barrier_count;
    int load_result;                 /* of the last fetch */
    struct writebuf_flush *asked_by; /* in set.loads; NULL: nobody has asked the region */
    bool is_loading;                 /* the piece is there, its bytes are not */
    bool is_in_round;
};

struct writebuf_flush;

struct weir_writebuf {
    struct weir_writebuf_set *set;
    uint64_t id;
    struct weir_writebuf *hash_next;
    struct weir__list link;    /* of set.buffers */
    struct weir__list waiting; /* of set.gate, while it is queued */
    struct weir__list tickets;
    struct weir__list blocks;          /* W1 */
    struct writebuf_block *tail;       /* open: appended to; NULL: none */
    struct writebuf_block *spill_next; /* W3 */
    struct writebuf_flush *flush;      /* under way; NULL: none */
    uint64_t head_offset;              /* of the first block: what is before it is committed */
    uint64_t head_records;             /* as many */
    uint32_t head_barriers;            /* of these, barriers */
    uint64_t position;
    uint64_t last_sequence;
    uint64_t record_count;
    uint64_t held_bytes;
    uint64_t memory_bytes; /* W2 */
    uint64_t loaded_bytes; /* W2 */
    uint64_t spilled_bytes;
    uint64_t oldest_ns;
    uint64_t retry_ns; /* 0: no back-off */
    uint64_t queued_ns;
    uint64_t failure_count;
    uint64_t flush_count;
    uint32_t reasons;
    int last_error;
    bool is_paused;
    bool is_queued;
    bool is_position_known; /* the sink was asked */
    bool is_counted;        /* part of set.backlog_bytes */
};

enum writebuf_step {
    WRITEBUF_STEP_POSITION, /* ask the sink */
    WRITEBUF_STEP_PLAN,     /* which blocks */
    WRITEBUF_STEP_SCAN,     /* which records are the last of their key */
    WRITEBUF_STEP_BEGIN,
    WRITEBUF_STEP_HAND, /* records to the sink */
    WRITEBUF_STEP_COMMIT,
};

/* One buffer on its way into the sink; a round of it is one batch. */
struct writebuf_flush {
    struct weir_writebuf *buffer; /* NULL: nobody */
    enum writebuf_step step;
    uint64_t target_sequence; /* of the flush */
    uint64_t window_bytes;    /* of the working set, used */
    uint32_t load_count;      /* under way */
    struct weir__keys keys;
    void *index_memory;             /* WRITEBUF_INDEX_BYTES, made at create */
    struct weir__piece index_piece; /* instead, if there was room */
    uint64_t index_charged_bytes;

    /* The round. */
    struct writebuf_block *last;      /* W4 */
    struct writebuf_block *load_next; /* to be asked for */
    struct writebuf_block *end;       /* the round goes up to here */
    uint64_t end_offset;
    uint64_t end_sequence;
    struct writebuf_block *cursor;
    uint64_t cursor_offset;
    uint64_t cursor_records; /* walked, of the cursor's block */
    uint64_t put_count;
    uint64_t remove_count;
    uint64_t barrier_count;
    uint64_t compacted_count;
    uint64_t duplicate_count;
    bool is_plain;   /* inserts only: no table */
    bool is_barrier; /* one record, a barrier */
    bool has_live;   /* something for the sink */
    bool has_batch;
    void *batch;

    uint64_t started_ns;
    uint64_t moved_ns; /* when it last got on */
    uint64_t round_ns; /* when the round was planned */
};

struct weir_writebuf_set {
    struct weir_writebuf_config config; /* defaults filled in */
    pthread_t owner;
    struct weir__list link; /* of the sets of this thread */
    uint64_t id;            /* the context of its fetches */
    struct weir__list buffers;
    struct weir_writebuf **hash;
    uint64_t hash_count; /* a power of two */
    uint64_t keys_seed;
    uint64_t buffer_count;
    struct weir__list gate;
    struct weir__list loads;
    struct weir__list finished; /* tickets that are to be told */
    struct writebuf_flush *flushes;
    uint64_t flushing_count;

    struct weir__heap heap; /* tables: told to the account's books */
    struct weir__pool blocks;
    struct weir__pieces pieces; /* records; charged where they are taken */
    uint64_t window_bytes_max;  /* of each flush: its part of the working set */
    uint64_t working_bytes;
    uint64_t lend_bytes_max; /* W7 */
    uint64_t charged_bytes;  /* W2; the working set apart */
    uint64_t lent_bytes;     /* W7 */
    uint64_t credit_bytes;   /* W5 */
    uint64_t now_ns;
    uint64_t due_ns;   /* W6 */
    uint64_t ready_ns; /* ready is not called before, unless something was done */
    uint64_t quiet_since_ns;
    uint64_t quiet_count;  /* appended_count then */
    uint64_t demand_bytes; /* the account was asked for so much; the next poll looks at it */
    uint64_t pace_bytes;   /* of the last batch */
    uint64_t pace_ns;
    uint64_t promised_commit_count; /* commit_count when flushes were promised */
    struct weir_reclaimer flush_reclaimer;
    struct weir_reclaimer spill_reclaimer;
    bool is_short;   /* the account has refused since the last poll, or asked for a flush */
    bool is_refused; /* ready is owed */
    bool is_full;    /* the backlog has reached its limit and not left it */
    bool is_busy;    /* the last poll has left work */
    bool in_callback;

    uint64_t record_count;
    uint64_t held_bytes;
    uint64_t backlog_bytes;
    uint64_t memory_bytes;
    uint64_t loaded_bytes;
    uint64_t spilled_bytes;
    uint64_t queued_count;
    uint64_t paused_count;
    uint64_t failing_count;
    struct weir_writebuf_stats ever; /* of it, what only counts up */
};

static inline struct writebuf_block *weir__writebuf_first(const struct weir_writebuf *buffer)
{
    return weir__list_is_empty(&buffer->blocks)
               ? NULL
               : WEIR_CONTAINER_OF(buffer->blocks.next, struct writebuf_block, link);
}

static inline struct writebuf_block *weir__writebuf_after(const struct weir_writebuf *buffer,
                                                          const struct writebuf_block *block)
{
    return block->link.next == &buffer->blocks
               ? NULL
               : WEIR_CONTAINER_OF(block->link.next, struct writebuf_block, link);
}

bool weir__writebuf_is_mine(const struct weir_writebuf_set *set);

/* The set of this thread with this number; NULL: it is gone. */
struct weir_writebuf_set *weir__writebuf_set_of(uint64_t id);

/* Whether a flush of it is of no use now. */
static inline bool weir__writebuf_is_held_up(const struct weir_writebuf *buffer)
{
    return buffer->is_paused || buffer->failure_count > 0;
}

/* ---- writebuf.c ----------------------------------------------------------------- */

/* Poll has something to do at @ns. */
void weir__writebuf_due(struct weir_writebuf_set *set, uint64_t ns);

/* ---- demand.c ------------------------------------------------------------------- */

/* From now on the account is asked, and no more. */
void weir__demand_open(struct weir_writebuf_set *set);
void weir__demand_close(struct weir_writebuf_set *set);

/* ---- spill.c -------------------------------------------------------------------- */

/* Give back what was put aside and not used. */
void weir__writebuf_settle(struct weir_writebuf_set *set);

/* Give @bytes of a charge back: to the working set first, as far as that has lent. */
void weir__writebuf_refund(struct weir_writebuf_set *set, uint64_t bytes);

/* Whether the account admits @bytes without anybody making room; then they are charged. */
bool weir__writebuf_may_take(struct weir_writebuf_set *set, uint64_t bytes);

/*
 * Charge @bytes, by what others of the set give up if need be, but for the block
 * @kept. 0, -EAGAIN, or why the region takes no more.
 */
int weir__writebuf_charge(struct weir_writebuf_set *set, uint64_t bytes,
                          const struct writebuf_block *kept);

/* The oldest block that is only in memory goes to the region; 0 or why not. */
int weir__writebuf_spill_block(struct weir_writebuf *buffer);

/* spill_next is @block or, if that cannot spill, the first behind it that can. */
void weir__writebuf_spill_from(struct weir_writebuf *buffer, struct writebuf_block *block);

/* It holds so much more, or less. */
void weir__writebuf_add_held(struct weir_writebuf *buffer, int64_t bytes, int64_t records);

/* Whether it is part of the backlog, after something that decides it has changed. */
void weir__writebuf_count(struct weir_writebuf *buffer);

/* The block and all that it holds, slot too, are gone. */
void weir__writebuf_drop_block(struct weir_writebuf *buffer, struct writebuf_block *block);

/* The memory of a block that is in the region as well. */
void weir__writebuf_unload(struct weir_writebuf *buffer, struct writebuf_block *block);

/* ---- gate.c --------------------------------------------------------------------- */

/* It wants to be flushed, and queues if it may. */
void weir__gate_want(struct weir_writebuf *buffer, enum writebuf_reason reason);

/* It waits no more. */
void weir__gate_leave(struct weir_writebuf *buffer);

/* After a flush: what wants it flushed now. */
void weir__gate_again(struct weir_writebuf *buffer);

/* Tickets whose records are committed, or all if the flush failed, have their result. */
void weir__gate_finish(struct weir_writebuf *buffer, int result);

/* It leaves the gate, what runs is aborted, its tickets are told @result. */
void weir__gate_stop(struct weir_writebuf *buffer, int result);

/* Tell those whose tickets are done; how many. */
int weir__gate_tell(struct weir_writebuf_set *set);

/* ---- flush.c -------------------------------------------------------------------- */

/* A piece of this flush; how much was done. */
int weir__flush_go_on(struct writebuf_flush *flush);

/* The flush has no more of the buffer, nor the buffer of it. */
void weir__flush_leave(struct writebuf_flush *flush);

#endif
