/* SPDX-License-Identifier: MIT */
#ifndef WEIR_WRITEBUF_H
#define WEIR_WRITEBUF_H

/*
 * writebuf - collect, compact, flush
 *
 * A set holds one buffer per table or stream, hundreds at once, each made when
 * it is first needed. Changes are appended and, a batch at a time, handed to a
 * sink:
 *
 *      ensure --> append ... --> flush --> sink: begin, put | remove ..., commit
 *                    |             ^
 *                    | SPILL       | fetched ahead
 *                    `--> region --'
 *
 * A flush compacts by key: the last change of a key wins, and only that is
 * handed on. A barrier keeps order: what was appended before it is committed
 * first, then the barrier alone, then what came after. The position of a buffer
 * moves only over what the sink has committed. A flush that fails keeps
 * everything, backs off, and is nobody else's business.
 *
 * While it collects a buffer holds little memory; what is above that, and what
 * the governor has no room for, goes to the region in order, in blocks. A flush
 * of much under little memory goes on in prefixes. It needs no memory that can
 * be refused: the working set is charged at create.
 *
 * Nothing runs by itself: weir_writebuf_poll() does the work in small steps and
 * is told the time. Poll the region as well, and the account: when memory is short
 * elsewhere, that is where the set is asked to give some back.
 *
 * Units    bytes, nanoseconds of the clock that poll is given
 * Thread   the thread that made the set, and no other
 * Errors   0 on success, negative errno on failure. A call that fails has
 *          changed nothing.
 */

#include <stddef.h>
#include <stdint.h>

#include <weir/base.h>

WEIR_EXTERN_BEGIN

struct weir_account;
struct weir_region;
struct weir_writebuf_set;
struct weir_writebuf;

enum weir_writebuf_operation {
    WEIR_WRITEBUF_INSERT, /* a key that is not in the target */
    WEIR_WRITEBUF_UPDATE,
    WEIR_WRITEBUF_DELETE,
    WEIR_WRITEBUF_BARRIER, /* a change of shape, a truncation: yours to read */
};

/*
 * struct weir_writebuf_record - one change
 * @sequence:   greater than that of the record before it in this buffer; not 0
 * @key_bytes:  at most 65535
 */
struct weir_writebuf_record {
    uint64_t sequence;
    const void *key;
    const void *value;
    size_t key_bytes;
    size_t value_bytes;
    enum weir_writebuf_operation operation;
};

/*
 * struct weir_writebuf_sink - where changes go
 * @position:  up to where this target has committed; asked before the first
 *             flush and after each that failed, and what it has already is not
 *             handed on again. 0: nothing. Less than it has confirmed fails the
 *             flush with -ESTALE. NULL: what this set has seen committed.
 * @begin:     a new batch of the buffer @id
 * @put:       the key has this value now. operation: WEIR_WRITEBUF_INSERT if
 *             the key was not there before this batch, as far as the producer
 *             said, else WEIR_WRITEBUF_UPDATE.
 * @remove:    the key is gone; it may not have been there
 * @barrier:   alone in its batch; NULL: barriers only keep order
 * @commit:    all of the batch, and @sequence as its position, or nothing
 * @abort:     after begin, instead of commit or when commit has failed
 *
 * A batch holds a key at most once, unless all its changes are inserts. A call
 * that answers -EAGAIN is made again from the next poll, all others that answer
 * a negative errno fail the flush. Called from weir_writebuf_poll() only, abort
 * also from clear and destroy; must not call the set.
 */
struct weir_writebuf_sink {
    int (*position)(void *context, uint64_t id, uint64_t *ret_sequence);
    int (*begin)(void *context, uint64_t id, void **ret_batch);
    int (*put)(void *context, void *batch, const struct weir_writebuf_record *record);
    int (*remove)(void *context, void *batch, const struct weir_writebuf_record *record);
    int (*barrier)(void *context, void *batch, const struct weir_writebuf_record *record);
    int (*commit)(void *context, void *batch, uint64_t sequence);
    void (*abort)(void *context, void *batch);
    void *context;
};

/*
 * struct weir_writebuf_config - how a set is made
 * @account:            charged with records, working set and tables; NULL: nobody.
 *                      It has two reclaimers as long as there is the set: "writebuf
 *                      flush", of cost 50, has the next poll begin flushes, and
 *                      promises them where the sink was fast enough lately; with a
 *                      region "writebuf spill", of cost 100, spills as
 *                      weir_writebuf_spill() does, at most 1 MiB at once.
 * @region:             where to spill; NULL: never spills
 * @sink:               copied
 * @record_bytes_max:   key and value of the largest record; 0: 256 KiB; at most 1 GiB
 * @collect_bytes_max:  memory of one buffer that collects; 0: 16 MiB
 * @flush_bytes_max:    memory of one buffer that is flushed; 0: 512 MiB
 * @held_bytes_max:     of one buffer, in memory and spilled; 0: none
 * @backlog_bytes_max:  of all buffers, in memory and spilled, the paused and the
 *                      failing apart; 0: none. Left at 7/8 of it.
 * @working_bytes:      charged at create and kept: what flushes live on where
 *                      the account admits nothing, in equal parts; 0: what they
 *                      need at least, and 1 MiB each. A part needs a record of
 *                      the largest and 64 KiB; what it has beyond that is lent to
 *                      appends, up to one such record
 * @flushes_max:        how many are flushed at once; 0: 4; at most 64
 * @owner:              the owner tag of its slots in the region; the key is the id
 * @trigger_bytes:      flush a buffer that holds so much; 0: half of
 *                      collect_bytes_max; UINT64_MAX: never
 * @trigger_rows:       or so many records; 0: never
 * @trigger_age_ns:     or one whose first record is so old, as the polls tell the
 *                      time; 0: 5 s; UINT64_MAX: never
 * @quiet_ns:           without an append for so long, spilled records are
 *                      replayed; 0: 100 ms; UINT64_MAX: never
 * @retry_ns:           back-off after the first failure, doubled with each
 *                      further one; 0: 1 s; UINT64_MAX: until it is resumed
 * @retry_ns_max:       its end; 0: 60 s
 * @stall_ns_max:       a flush that does not get on for so long has failed with
 *                      -ETIMEDOUT; 0: 60 s; UINT64_MAX: never
 * @ready:              an append was refused with -EAGAIN and may go now; from
 *                      poll, each millisecond if nothing gets on; may be NULL
 * @context:            passed to @ready
 */
struct weir_writebuf_config {
    struct weir_account *account;
    struct weir_region *region;
    struct weir_writebuf_sink sink;
    uint64_t record_bytes_max;
    uint64_t collect_bytes_max;
    uint64_t flush_bytes_max;
    uint64_t held_bytes_max;
    uint64_t backlog_bytes_max;
    uint64_t working_bytes;
    uint32_t flushes_max;
    uint16_t owner;
    uint64_t trigger_bytes;
    uint64_t trigger_rows;
    uint64_t trigger_age_ns;
    uint64_t quiet_ns;
    uint64_t retry_ns;
    uint64_t retry_ns_max;
    uint64_t stall_ns_max;
    void (*ready)(void *context);
    void *context;
    uint64_t reserved[8];
};

/*
 * weir_writebuf_create() - a set without buffers
 *
 * Return: 0, -EINVAL (a cap or the working set is too small for the largest
 *         record, or the region does not take one), -ENOMEM, -EDQUOT: the working
 *         set does not fit.
 */
WEIR_API WEIR_MUST_CHECK int weir_writebuf_create(const struct weir_writebuf_config *config,
                                                  struct weir_writebuf_set **ret_set);

/* weir_writebuf_destroy() - takes NULL; clears all buffers: flush first what should stay */
WEIR_API void weir_writebuf_destroy(struct weir_writebuf_set *set);

/* ---- Buffers ---------------------------------------------------------------- */

/*
 * weir_writebuf_ensure() - the buffer of this name, made if it is not there
 * @id:  yours, told to the sink
 *
 * Return: 0, -ENOMEM.
 */
WEIR_API WEIR_MUST_CHECK int weir_writebuf_ensure(struct weir_writebuf_set *set, uint64_t id,
                                                  struct weir_writebuf **ret_buffer);

/*
 * weir_writebuf_clear() - drop a buffer and all that it holds
 *
 * Takes NULL. Its tickets are done with -ECANCELED, a flush of it is aborted.
 * Not from a callback of the set.
 */
WEIR_API void weir_writebuf_clear(struct weir_writebuf *buffer);

/* weir_writebuf_next() - the buffer after this one, the first after NULL; NULL at the end */
WEIR_API struct weir_writebuf *weir_writebuf_next(const struct weir_writebuf_set *set,
                                                  const struct weir_writebuf *buffer);

/*
 * weir_writebuf_append() - one change more, by copy
 *
 * Where the account admits nothing a block of the set spills for it; where none can,
 * it lives on the working set, if that has some to lend.
 *
 * Cost:    a copy; a verdict per block of 64 KiB; where it says spill, a region
 *          put of such a block.
 *
 * Return: 0; -ERANGE: the sequence is not greater than the last one, or is
 *         committed already; -EFBIG: larger than record_bytes_max; -EDQUOT: over
 *         held_bytes_max; -EAGAIN: no memory now and no room in the region, or
 *         over backlog_bytes_max: poll, or wait for the account, then append
 *         again; -EDQUOT, -ENOSPC, -EIO, ... from the region: it is full or
 *         degraded, and memory is full, too; -ENOMEM; -EINVAL.
 */
WEIR_API WEIR_MUST_CHECK int weir_writebuf_append(struct weir_writebuf *buffer,
                                                  const struct weir_writebuf_record *record);

/*
 * struct weir_writebuf_ticket - one demand for a flush; embedded by the caller
 * @done:  called once, from weir_writebuf_poll(), weir_writebuf_clear() or
 *         weir_writebuf_destroy(): 0: all that was appended before the demand is
 *         committed; -ETIMEDOUT: it had not begun at the deadline; -ECANCELED:
 *         cleared, and @buffer is gone; else why the flush failed. May append,
 *         flush and cancel.
 *
 * Starts as zeros but for @done; the rest is ours until then.
 */
struct weir_writebuf_ticket {
    void (*done)(struct weir_writebuf_ticket *ticket, int result);
    void *link[2];
    struct weir_writebuf *buffer;
    uint64_t sequence;
    uint64_t deadline_ns;
    int result;
};

/*
 * weir_writebuf_flush() - ask for a flush of what is there now
 * @ticket:       told the end; NULL: nobody is
 * @deadline_ns:  of the wait at the gate, a back-off included; UINT64_MAX: none
 *
 * Buffers that want to be flushed queue, first come, first served; one whose
 * deadline passes leaves the queue and changes nothing for the others.
 */
WEIR_API void weir_writebuf_flush(struct weir_writebuf *buffer, struct weir_writebuf_ticket *ticket,
                                  uint64_t deadline_ns);

/* weir_writebuf_cancel() - @ticket is not interesting any more; 0, or -ENOENT: it is done */
WEIR_API int weir_writebuf_cancel(struct weir_writebuf *buffer,
                                  struct weir_writebuf_ticket *ticket);

/*
 * weir_writebuf_pause() - collect, but do not flush: a snapshot is being taken
 *
 * A flush that is under way goes on; a demand waits. What a paused buffer holds
 * spills first and holds nobody up.
 */
WEIR_API void weir_writebuf_pause(struct weir_writebuf *buffer);

/* weir_writebuf_resume() - flush it again: ends a pause, and a back-off too */
WEIR_API void weir_writebuf_resume(struct weir_writebuf *buffer);

/* ---- Background work -------------------------------------------------------- */

/*
 * weir_writebuf_poll() - one tick: begin flushes, go on with those under way
 * @now_ns:  the time; never less than before
 *
 * Does a bounded piece of each flush. Blocks only if the sink does.
 *
 * Return: how much was done; 0: nothing to do until weir_writebuf_due_ns(), the
 *         next append, or what the region or the sink has under way.
 */
WEIR_API int weir_writebuf_poll(struct weir_writebuf_set *set, uint64_t now_ns);

/* weir_writebuf_due_ns() - when poll has something to do by the clock; UINT64_MAX: never */
WEIR_API uint64_t weir_writebuf_due_ns(const struct weir_writebuf_set *set);

/*
 * weir_writebuf_spill() - move up to @bytes of memory to the region
 *
 * Of paused and failing buffers first, then of the largest.
 *
 * Return: how many came free for others; 0 also when the region took none, or when the
 *         working set had lent them.
 */
WEIR_API uint64_t weir_writebuf_spill(struct weir_writebuf_set *set, uint64_t bytes);

/* ---- Statistics ------------------------------------------------------------- */

/* struct weir_writebuf_buffer_stats - one buffer */
struct weir_writebuf_buffer_stats {
    uint64_t id;
    uint64_t position;      /* committed up to here; 0: nothing */
    uint64_t last_sequence; /* appended up to here */
    uint64_t record_count;  /* held */
    uint64_t held_bytes;    /* of them, encoded */
    uint64_t memory_bytes;  /* charged for what is in memory and not spilled */
    uint64_t spilled_bytes; /* in the region */
    uint64_t loaded_bytes;  /* memory of what was fetched back for a flush */
    uint64_t oldest_ns;     /* since when; 0: empty */
    uint64_t flush_count;   /* flushes that came to their end */
    uint64_t failure_count; /* in a row */
    uint64_t retry_ns;      /* backs off until then; 0: does not */
    int last_error;         /* of the last flush that failed */
    bool paused;
    bool queued;
    bool flushing;
    uint64_t reserved[8];
};

WEIR_API void weir_writebuf_buffer_stats(const struct weir_writebuf *buffer,
                                         struct weir_writebuf_buffer_stats *ret_stats);

/* struct weir_writebuf_stats - the whole set */
struct weir_writebuf_stats {
    uint64_t buffer_count;
    uint64_t queued_count; /* at the gate */
    uint64_t flushing_count;
    uint64_t paused_count;
    uint64_t failing_count;  /* whose last flush failed */
    uint64_t record_count;   /* held */
    uint64_t held_bytes;     /* of them, encoded */
    uint64_t backlog_bytes;  /* of these, what backlog_bytes_max counts */
    uint64_t memory_bytes;   /* as of the buffers, summed */
    uint64_t spilled_bytes;  /* likewise */
    uint64_t loaded_bytes;   /* likewise */
    uint64_t index_bytes;    /* of compaction, beyond the working set */
    uint64_t working_bytes;  /* charged at create and kept */
    uint64_t charged_bytes;  /* the working set; memory, loaded and index beyond it */
    uint64_t metadata_bytes; /* tables, told to the account's books */
    uint64_t mapped_bytes;   /* address space for records; pages that are free are not in memory */
    uint64_t appended_count; /* ever, as all that follows */
    uint64_t appended_bytes; /* keys and values */
    uint64_t put_count;      /* handed to the sink and committed */
    uint64_t remove_count;
    uint64_t barrier_count;
    uint64_t compacted_count; /* overtaken by a later change of their key */
    uint64_t duplicate_count; /* the target had them already */
    uint64_t flush_count;     /* that came to their end */
    uint64_t commit_count;
    uint64_t plain_count; /* of these, of inserts only: without an index */
    uint64_t failed_count;
    uint64_t replay_count; /* flushes begun in quiet times */
    uint64_t block_count;  /* spilled */
    uint64_t block_bytes;
    uint64_t fetch_count; /* blocks fetched back */
    uint64_t failed_spill_count;
    uint64_t failed_fetch_count;
    uint64_t refused_count; /* -EAGAIN of append */
    uint64_t timeout_count; /* tickets */
    uint64_t gate_wait_ns;  /* all waits at the gate, summed */
    uint64_t gate_wait_ns_max;
    uint64_t flush_ns; /* all flushes, summed */
    uint64_t flush_ns_max;
    uint64_t reserved[8];
};

WEIR_API void weir_writebuf_stats(const struct weir_writebuf_set *set,
                                  struct weir_writebuf_stats *ret_stats);

/* weir_writebuf_audit() - walk all and check every invariant; for tests */
WEIR_API void weir_writebuf_audit(const struct weir_writebuf_set *set);

WEIR_EXTERN_END

#endif
