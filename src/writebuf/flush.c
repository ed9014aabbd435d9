/* SPDX-License-Identifier: MIT */
/*
 * flush - one buffer on its way into the sink
 *
 *      position -> plan -> scan -> begin -> hand -> commit --> plan ... --> end
 *         |         |       |        |       |        |
 *         `---------'-------'--------'-------'--------'--> fail: back off
 *
 * Each step does a bounded piece and can be asked again; where it waits, for the
 * region or for the sink, the next poll asks. A flush is one or more rounds, and a
 * round is one batch of the sink. The plan takes as many of the first blocks as
 * there is memory for; what is in the region is fetched into pieces that belong to
 * the working set or are admitted by the account, all at once, and scanned as it
 * comes. The scan enters keys into a table and ends the round before a barrier, or
 * when the table is full; a round of inserts only has no table and no scan.
 *
 * A round that could not take all leaves its records where they are, and what was
 * fetched stays for the next. A flush that fails gives its memory back and leaves
 * blocks and slots as they were: there is nothing to undo.
 *
 * Not here: who is flushed, and when (gate.c).
 */
#include "writebuf/writebuf_state.h"

#include "base/bits.h"
#include "base/check.h"
#include "writebuf/record.h"

#include <errno.h>
#include <string.h>

/* What one poll does for one flush. */
#define FLUSH_STEP_BYTES   (UINT64_C(256) << 10)
#define FLUSH_STEP_RECORDS 4096u

/* ---- Leaving -------------------------------------------------------------------- */

static void flush_drop_index(struct writebuf_flush *flush)
{
    struct weir_writebuf_set *set = flush->buffer->set;

    weir__pieces_give(&set->pieces, &flush->index_piece);
    set->credit_bytes += flush->index_charged_bytes;
    flush->index_charged_bytes = 0;
}

/* What the round has not consumed is as any other block. */
static void flush_leave_round(struct writebuf_flush *flush)
{
    struct weir_writebuf *buffer = flush->buffer;
    struct writebuf_block *first = weir__writebuf_first(buffer);
    bool is_spillable = false;

    for (struct writebuf_block *block = first; block != NULL && block->is_in_round;
         block = weir__writebuf_after(buffer, block)) {
        block->is_in_round = false;
        is_spillable |= weir_slot_is_none(block->slot);
    }
    /* They stand before all that spills now. */
    if (is_spillable)
        weir__writebuf_spill_from(buffer, first);
    flush->last = NULL;
    flush_drop_index(flush);
}

/* What was fetched is only in the region again. */
static void flush_unload(struct writebuf_flush *flush)
{
    struct weir_writebuf *buffer = flush->buffer;

    /* It stands in front, but others may lie between that have spilled since. */
    for (struct writebuf_block *block = weir__writebuf_first(buffer); buffer->loaded_bytes > 0;
         block = weir__writebuf_after(buffer, block)) {
        if (!weir_slot_is_none(block->slot))
            weir__writebuf_unload(buffer, block);
    }
    WEIR_CHECK(flush->window_bytes == 0 && flush->load_count == 0);
    weir__writebuf_settle(buffer->set);
}

void weir__flush_leave(struct writebuf_flush *flush)
{
    struct weir_writebuf *buffer = flush->buffer;
    struct weir_writebuf_set *set = buffer->set;

    if (flush->has_batch) {
        set->in_callback = true;
        set->config.sink.abort(set->config.sink.context, flush->batch);
        set->in_callback = false;
        flush->has_batch = false;
    }
    flush_leave_round(flush);
    flush_unload(flush);
    buffer->flush = NULL;
    flush->buffer = NULL;
    set->flushing_count--;
}

static void flush_end(struct writebuf_flush *flush)
{
    struct weir_writebuf *buffer = flush->buffer;
    struct weir_writebuf_set *set = buffer->set;
    uint64_t ns = set->now_ns - flush->started_ns;

    buffer->oldest_ns = flush->started_ns;
    buffer->flush_count++;
    set->failing_count -= buffer->failure_count > 0;
    buffer->failure_count = 0;
    set->ever.flush_count++;
    set->ever.flush_ns += ns;
    set->ever.flush_ns_max = weir__max(set->ever.flush_ns_max, ns);
    weir__flush_leave(flush);
    weir__writebuf_count(buffer);
    weir__gate_finish(buffer, 0);
    weir__gate_again(buffer);
    /* Was it enough? */
    set->is_short = true;
}

static uint64_t flush_back_off_ns(const struct weir_writebuf *buffer)
{
    const struct weir_writebuf_config *config = &buffer->set->config;
    uint64_t ns = config->retry_ns;

    for (uint64_t i = 1; i < buffer->failure_count && ns < config->retry_ns_max; i++)
        ns = ns > UINT64_MAX / 2 ? UINT64_MAX : ns * 2;
    return weir__min(ns, config->retry_ns_max);
}

static void flush_fail(struct writebuf_flush *flush, int result)
{
    struct weir_writebuf *buffer = flush->buffer;
    struct weir_writebuf_set *set = buffer->set;

    set->ever.failed_count++;
    set->failing_count += buffer->failure_count == 0;
    buffer->failure_count++;
    buffer->last_error = result;
    buffer->retry_ns = set->now_ns + weir__min(flush_back_off_ns(buffer), UINT64_MAX - set->now_ns);
    /* It may have committed all the same. */
    buffer->is_position_known = set->config.sink.position == NULL;
    weir__flush_leave(flush);
    weir__writebuf_count(buffer);
    weir__gate_finish(buffer, result);
    buffer->reasons = WRITEBUF_FOR_REST;
    weir__writebuf_due(set, buffer->retry_ns);
}

/* ---- From the region ------------------------------------------------------------ */

static void flush_fetched(void *context, struct weir_slot slot, int result)
{
    struct weir_writebuf_set *set = weir__writebuf_set_of((uint64_t)(uintptr_t)context);
    struct writebuf_block *block = NULL;
    const void *data;
    size_t bytes;

    if (set == NULL)
        return;
    WEIR_LIST_FOREACH (link, &set->loads) {
        struct writebuf_block *at = WEIR_CONTAINER_OF(link, struct writebuf_block, loading);

        if (at->slot.index == slot.index && at->slot.generation == slot.generation) {
            block = at;
            break;
        }
    }
    if (block == NULL)
        return;

    if (result == 0)
        result = weir_region_at(set->config.region, slot, &data, &bytes);
    if (result == 0 && bytes != block->fill_bytes)
        result = -EBADMSG;
    if (result == 0) {
        memcpy(block->piece.data, data, bytes);
        set->ever.fetch_count++;
    } else {
        set->ever.failed_fetch_count++;
    }
    block->load_result = result;
    block->is_loading = false;
    block->asked_by->load_count--;
    block->asked_by->moved_ns = set->now_ns;
    block->asked_by = NULL;
    weir__list_remove(&block->loading);
}

/* Ask for what is not under way yet; 0 or why not. */
static int flush_ask(struct writebuf_flush *flush)
{
    struct weir_writebuf_set *set = flush->buffer->set;
    struct weir_slot slots[WRITEBUF_LOADS_MAX];
    struct writebuf_block *blocks[WRITEBUF_LOADS_MAX];
    uint32_t count = 0;
    int r;

    while (flush->load_next != NULL && flush->load_count + count < WRITEBUF_LOADS_MAX) {
        struct writebuf_block *block = flush->load_next;

        /* The round before may have ended without some that it has asked for. */
        if (block->is_loading && block->asked_by == NULL) {
            blocks[count] = block;
            slots[count++] = block->slot;
        }
        flush->load_next = block == flush->last ? NULL : weir__writebuf_after(flush->buffer, block);
    }
    if (count == 0)
        return 0;
    r = weir_region_fetch(set->config.region, slots, count, flush_fetched,
                          (void *)(uintptr_t)set->id);
    if (r < 0) {
        flush->load_next = blocks[0];
        return r;
    }
    for (uint32_t i = 0; i < count; i++) {
        blocks[i]->asked_by = flush;
        weir__list_append(&set->loads, &blocks[i]->loading);
        flush->load_count++;
    }
    return 0;
}

/* ---- The plan ------------------------------------------------------------------- */

static int flush_ask_position(struct writebuf_flush *flush)
{
    struct weir_writebuf *buffer = flush->buffer;
    const struct weir_writebuf_sink *sink = &buffer->set->config.sink;
    uint64_t sequence = 0;
    int r = sink->position(sink->context, buffer->id, &sequence);

    if (r < 0)
        return r;
    /* What it has confirmed is not there any more, and not here either. */
    if (sequence < buffer->position)
        return -ESTALE;
    buffer->position = sequence;
    buffer->last_sequence = weir__max(buffer->last_sequence, sequence);
    buffer->is_position_known = true;
    flush->step = WRITEBUF_STEP_PLAN;
    return 1;
}

/* Memory for a block that lies in the region; 0, -EAGAIN: refused, -ENOMEM. */
static int flush_take_piece(struct writebuf_flush *flush, struct writebuf_block *block)
{
    struct weir_writebuf_set *set = flush->buffer->set;
    uint64_t bytes = weir__round_up(block->fill_bytes, WRITEBUF_PAGE_BYTES);
    bool is_window = flush->window_bytes + bytes <= set->window_bytes_max - set->lent_bytes;
    int r;

    if (!is_window && !weir__writebuf_may_take(set, bytes))
        return -EAGAIN;
    r = weir__pieces_take(&set->pieces, bytes, &block->piece);
    if (r < 0) {
        if (!is_window)
            weir__writebuf_refund(set, bytes);
        return r;
    }
    if (is_window) {
        flush->window_bytes += bytes;
        block->window_bytes = bytes;
    } else {
        block->charged_bytes = bytes;
    }
    flush->buffer->loaded_bytes += bytes;
    set->loaded_bytes += bytes;
    block->is_loading = true;
    block->load_result = 0;
    return 0;
}

/* A table for as many keys, or the one of the working set. */
static void flush_make_index(struct writebuf_flush *flush, uint64_t record_count,
                             uint64_t bytes_max)
{
    struct weir_writebuf_set *set = flush->buffer->set;
    uint64_t bytes = weir__keys_bytes(record_count);

    if (bytes > WRITEBUF_INDEX_BYTES && bytes <= bytes_max && weir__writebuf_may_take(set, bytes)) {
        if (weir__pieces_take(&set->pieces, bytes, &flush->index_piece) == 0) {
            flush->index_charged_bytes = bytes;
            weir__keys_init(&flush->keys, flush->index_piece.data, bytes, set->keys_seed);
            return;
        }
        weir__writebuf_refund(set, bytes);
    }
    bytes = weir__min(bytes, WRITEBUF_INDEX_BYTES);
    memset(flush->index_memory, 0, bytes);
    weir__keys_init(&flush->keys, flush->index_memory, bytes, set->keys_seed);
}

/* Take blocks from the first on, while there is memory; 0, or -ENOMEM for the first. */
static int flush_take_blocks(struct writebuf_flush *flush, uint64_t *ret_bytes,
                             uint64_t *ret_records)
{
    struct weir_writebuf *buffer = flush->buffer;
    uint64_t bytes_max = buffer->set->config.flush_bytes_max;
    struct writebuf_block *block = weir__writebuf_first(buffer);

    for (; block != NULL; block = weir__writebuf_after(buffer, block)) {
        bool is_first = flush->last == NULL;
        uint64_t bytes = weir__round_up(block->fill_bytes, WRITEBUF_PAGE_BYTES);

        if (!is_first &&
            (block->first_sequence > flush->target_sequence || *ret_bytes + bytes > bytes_max))
            break;
        if (block->piece.data == NULL) {
            int r = flush_take_piece(flush, block);

            if (r < 0 && is_first)
                return r;
            if (r < 0)
                break;
        }
        block->is_in_round = true;
        if (buffer->spill_next == block)
            weir__writebuf_spill_from(buffer, weir__writebuf_after(buffer, block));
        flush->last = block;
        flush->is_plain &= block->insert_count == block->record_count;
        *ret_bytes += bytes;
        *ret_records += block->record_count;
        /* The round ends at the barrier: what is behind it comes later. */
        if (block->barrier_count > (is_first ? buffer->head_barriers : 0))
            break;
    }
    return 0;
}

static void flush_rewind(struct writebuf_flush *flush)
{
    flush->cursor = weir__writebuf_first(flush->buffer);
    flush->cursor_offset = flush->buffer->head_offset;
    flush->cursor_records = 0;
}

static int flush_plan(struct writebuf_flush *flush)
{
    struct weir_writebuf *buffer = flush->buffer;
    struct weir_writebuf_set *set = buffer->set;
    struct writebuf_block *first = weir__writebuf_first(buffer);
    uint64_t bytes = 0;
    uint64_t records = 0;
    int r;

    while (first != NULL && first->last_sequence <= buffer->position) {
        set->ever.duplicate_count += first->record_count - buffer->head_records;
        weir__writebuf_drop_block(buffer, first);
        first = weir__writebuf_first(buffer);
    }
    weir__writebuf_settle(set);
    if (first == NULL || flush->target_sequence <= buffer->position) {
        flush_end(flush);
        return 0;
    }

    flush->round_ns = set->now_ns;
    flush->is_plain = true;
    r = flush_take_blocks(flush, &bytes, &records);
    if (r == -EAGAIN && buffer->loaded_bytes > 0) {
        /* What lies behind it has the memory: that has to come again. */
        flush_unload(flush);
        r = flush_take_blocks(flush, &bytes, &records);
    }
    if (r < 0)
        return r == -EAGAIN ? -ENOMEM : r;
    flush->load_next = first;
    flush->end = flush->last;
    flush->end_offset = flush->last->fill_bytes;
    flush->end_sequence = flush->last->last_sequence;
    flush->put_count = 0;
    flush->remove_count = 0;
    flush->barrier_count = 0;
    flush->compacted_count = 0;
    flush->duplicate_count = 0;
    flush->is_barrier = false;
    flush->has_live = flush->is_plain;
    if (!flush->is_plain)
        flush_make_index(flush, records - buffer->head_records,
                         set->config.flush_bytes_max -
                             weir__min(bytes, set->config.flush_bytes_max));
    flush_rewind(flush);
    flush->step = flush->is_plain ? WRITEBUF_STEP_BEGIN : WRITEBUF_STEP_SCAN;
    return 1;
}

/* ---- The walk ------------------------------------------------------------------- */

/*
 * The record at the cursor. 1; 0: the round ends here; -EAGAIN: it is being
 * fetched; or why not.
 */
static int flush_look(struct writebuf_flush *flush, struct weir_writebuf_record *ret_record,
                      const char **ret_data, uint64_t *ret_bytes)
{
    for (;;) {
        struct writebuf_block *block = flush->cursor;
        uint64_t limit = block == flush->end ? flush->end_offset : block->fill_bytes;
        int r;

        if (flush->cursor_offset >= limit) {
            if (block == flush->end)
                return 0;
            flush->cursor = weir__writebuf_after(flush->buffer, block);
            flush->cursor_offset = 0;
            flush->cursor_records = 0;
            continue;
        }
        if (block->is_loading)
            return -EAGAIN;
        if (block->load_result < 0)
            return block->load_result;
        *ret_data = block->piece.data + flush->cursor_offset;
        r = weir__record_decode(*ret_data, limit - flush->cursor_offset, ret_record, ret_bytes);
        return r < 0 ? r : 1;
    }
}

static void flush_pass(struct writebuf_flush *flush, uint64_t bytes)
{
    flush->cursor_offset += bytes;
    flush->cursor_records++;
}

/* The round ends before the record at the cursor, or with it. */
static void flush_cut(struct writebuf_flush *flush)
{
    flush->end = flush->cursor;
    flush->end_offset = flush->cursor_offset;
}

/* One record of the scan: 1: it is in, 0: the round ends before it. */
static int flush_scan_one(struct writebuf_flush *flush, const struct weir_writebuf_record *record,
                          const char *data, uint64_t bytes)
{
    if (record->sequence > flush->buffer->position) {
        if (record->operation == WEIR_WRITEBUF_BARRIER) {
            if (flush->has_live)
                return 0;
            flush->is_barrier = true;
        } else if (flush->is_barrier || !weir__keys_add(&flush->keys, data, record)) {
            return 0;
        }
        flush->has_live = true;
    }
    flush->end_sequence = record->sequence;
    flush_pass(flush, bytes);
    return flush->is_barrier ? 0 : 1;
}

static int flush_scan(struct writebuf_flush *flush)
{
    uint64_t done = 0;

    for (uint32_t count = 0; count < FLUSH_STEP_RECORDS && done < FLUSH_STEP_BYTES; count++) {
        struct weir_writebuf_record record;
        const char *data;
        uint64_t bytes;
        int r = flush_look(flush, &record, &data, &bytes);

        if (r < 0)
            return r;
        if (r == 1) {
            r = flush_scan_one(flush, &record, data, bytes);
            flush->moved_ns = flush->buffer->set->now_ns;
        }
        if (r == 0) {
            flush_cut(flush);
            flush_rewind(flush);
            flush->step = flush->has_live ? WRITEBUF_STEP_BEGIN : WRITEBUF_STEP_HAND;
            return 1;
        }
        done += bytes;
    }
    return 2;
}

static int flush_begin(struct writebuf_flush *flush)
{
    struct weir_writebuf *buffer = flush->buffer;
    const struct weir_writebuf_sink *sink = &buffer->set->config.sink;
    void *batch = NULL;
    int r = sink->begin(sink->context, buffer->id, &batch);

    if (r < 0)
        return r;
    flush->batch = batch;
    flush->has_batch = true;
    flush->step = WRITEBUF_STEP_HAND;
    return 1;
}

/* One record to the sink, if it is the last of its key; 0 or what the sink says. */
static int flush_hand_one(struct writebuf_flush *flush, struct weir_writebuf_record *record,
                          const char *data)
{
    const struct weir_writebuf_sink *sink = &flush->buffer->set->config.sink;
    bool is_remove = record->operation == WEIR_WRITEBUF_DELETE;
    int r;

    if (record->sequence <= flush->buffer->position) {
        flush->duplicate_count++;
        return 0;
    }
    if (record->operation == WEIR_WRITEBUF_BARRIER) {
        r = sink->barrier != NULL ? sink->barrier(sink->context, flush->batch, record) : 0;
        flush->barrier_count += r == 0;
        return r;
    }
    if (!flush->is_plain) {
        const struct weir__keys_entry *entry = weir__keys_find(&flush->keys, record);

        if (entry->last != data) {
            flush->compacted_count++;
            return 0;
        }
        if (!is_remove)
            record->operation = entry->was_inserted ? WEIR_WRITEBUF_INSERT : WEIR_WRITEBUF_UPDATE;
    }
    r = is_remove ? sink->remove(sink->context, flush->batch, record)
                  : sink->put(sink->context, flush->batch, record);
    flush->remove_count += is_remove && r >= 0;
    flush->put_count += !is_remove && r >= 0;
    return r;
}

static int flush_hand(struct writebuf_flush *flush)
{
    uint64_t done = 0;

    for (uint32_t count = 0; count < FLUSH_STEP_RECORDS && done < FLUSH_STEP_BYTES; count++) {
        struct weir_writebuf_record record;
        const char *data;
        uint64_t bytes;
        int r = flush_look(flush, &record, &data, &bytes);

        if (r == 0) {
            flush->step = WRITEBUF_STEP_COMMIT;
            return 1;
        }
        if (r == 1)
            r = flush_hand_one(flush, &record, data);
        if (r < 0)
            return r;
        flush_pass(flush, bytes);
        flush->moved_ns = flush->buffer->set->now_ns;
        done += bytes;
    }
    return 2;
}

/* ---- The commit ----------------------------------------------------------------- */

/* What the round has handed on is gone from here. */
static void flush_consume(struct writebuf_flush *flush)
{
    struct weir_writebuf *buffer = flush->buffer;
    struct writebuf_block *end = flush->end;
    uint64_t head_offset = flush->end_offset;
    uint64_t head_records = flush->cursor_records;

    WEIR_CHECK(flush->cursor == end && flush->cursor_offset == head_offset);
    if (end == weir__writebuf_first(buffer))
        head_records += buffer->head_records;
    while (weir__writebuf_first(buffer) != end)
        weir__writebuf_drop_block(buffer, weir__writebuf_first(buffer));
    if (head_offset == end->fill_bytes) {
        weir__writebuf_drop_block(buffer, end);
        return;
    }
    weir__writebuf_add_held(buffer, (int64_t)(buffer->head_offset - head_offset),
                            (int64_t)(buffer->head_records - head_records));
    buffer->head_offset = head_offset;
    buffer->head_records = head_records;
    buffer->head_barriers += flush->is_barrier;
}

static int flush_commit(struct writebuf_flush *flush)
{
    struct weir_writebuf *buffer = flush->buffer;
    struct weir_writebuf_set *set = buffer->set;
    const struct weir_writebuf_sink *sink = &set->config.sink;

    if (flush->has_batch) {
        int r = sink->commit(sink->context, flush->batch, flush->end_sequence);

        if (r < 0)
            return r;
        flush->has_batch = false;
        set->ever.commit_count++;
        set->ever.plain_count += flush->is_plain;
    }
    buffer->position = weir__max(buffer->position, flush->end_sequence);
    set->ever.put_count += flush->put_count;
    set->ever.remove_count += flush->remove_count;
    set->ever.barrier_count += flush->barrier_count;
    set->ever.compacted_count += flush->compacted_count;
    set->ever.duplicate_count += flush->duplicate_count;
    set->pace_bytes = set->held_bytes;
    flush_consume(flush);
    set->pace_bytes -= set->held_bytes;
    set->pace_ns = set->now_ns - flush->round_ns;
    flush_leave_round(flush);
    weir__writebuf_settle(set);
    flush->step = WRITEBUF_STEP_PLAN;
    return 1;
}

/* ---- One tick ------------------------------------------------------------------- */

/* 1: the next step can be taken, 2: there is more to do in this one, 0: it waits. */
static int flush_do(struct writebuf_flush *flush)
{
    switch (flush->step) {
    case WRITEBUF_STEP_POSITION:
        return flush_ask_position(flush);
    case WRITEBUF_STEP_PLAN:
        return flush_plan(flush);
    case WRITEBUF_STEP_SCAN:
        return flush_scan(flush);
    case WRITEBUF_STEP_BEGIN:
        return flush_begin(flush);
    case WRITEBUF_STEP_HAND:
        return flush_hand(flush);
    case WRITEBUF_STEP_COMMIT:
        return flush_commit(flush);
    }
    return -EINVAL;
}

int weir__flush_go_on(struct writebuf_flush *flush)
{
    struct weir_writebuf_set *set = flush->buffer->set;
    uint64_t moved_ns = flush->moved_ns;
    int steps = 0;
    int r = flush->last != NULL ? flush_ask(flush) : 0;

    while (r >= 0) {
        set->in_callback = true;
        r = flush_do(flush);
        set->in_callback = false;
        if (flush->buffer == NULL)
            return steps + 1;
        if (r <= 0)
            break;
        steps++;
        flush->moved_ns = set->now_ns;
        /* A commit is enough for one tick: a sink may take its time for it. */
        if (r == 2 || flush->step == WRITEBUF_STEP_PLAN)
            return steps;
        if (flush->last != NULL)
            r = flush_ask(flush);
    }
    if (r == -EAGAIN) {
        if (set->config.stall_ns_max == UINT64_MAX ||
            set->now_ns - flush->moved_ns < set->config.stall_ns_max)
            return steps + (flush->moved_ns != moved_ns);
        r = -ETIMEDOUT;
    }
    flush_fail(flush, r);
    return steps + 1;
}
