/* SPDX-License-Identifier: MIT */
/*
 * inspect - figures, and the invariants that writebuf.c numbers
 */
#include "writebuf/writebuf_state.h"

#include "base/bits.h"
#include "base/check.h"
#include "writebuf/record.h"

/* ---- Statistics ----------------------------------------------------------------- */

void weir_writebuf_buffer_stats(const struct weir_writebuf *buffer,
                                struct weir_writebuf_buffer_stats *ret_stats)
{
    WEIR_ASSERT(weir__writebuf_is_mine(buffer->set));

    *ret_stats = (struct weir_writebuf_buffer_stats){
        .id = buffer->id,
        .position = buffer->position,
        .last_sequence = buffer->last_sequence,
        .record_count = buffer->record_count,
        .held_bytes = buffer->held_bytes,
        .memory_bytes = buffer->memory_bytes,
        .spilled_bytes = buffer->spilled_bytes,
        .loaded_bytes = buffer->loaded_bytes,
        .oldest_ns = buffer->record_count > 0 ? buffer->oldest_ns : 0,
        .flush_count = buffer->flush_count,
        .failure_count = buffer->failure_count,
        .retry_ns = buffer->retry_ns,
        .last_error = buffer->last_error,
        .paused = buffer->is_paused,
        .queued = buffer->is_queued,
        .flushing = buffer->flush != NULL,
    };
}

void weir_writebuf_stats(const struct weir_writebuf_set *set, struct weir_writebuf_stats *ret_stats)
{
    struct weir_writebuf_stats stats = set->ever;

    WEIR_ASSERT(weir__writebuf_is_mine(set));

    stats.buffer_count = set->buffer_count;
    stats.queued_count = set->queued_count;
    stats.flushing_count = set->flushing_count;
    stats.paused_count = set->paused_count;
    stats.failing_count = set->failing_count;
    stats.record_count = set->record_count;
    stats.held_bytes = set->held_bytes;
    stats.backlog_bytes = set->backlog_bytes;
    stats.memory_bytes = set->memory_bytes;
    stats.spilled_bytes = set->spilled_bytes;
    stats.loaded_bytes = set->loaded_bytes;
    for (uint32_t i = 0; i < set->config.flushes_max; i++)
        stats.index_bytes += set->flushes[i].index_charged_bytes;
    stats.working_bytes = set->working_bytes;
    stats.charged_bytes = set->charged_bytes + set->working_bytes;
    stats.metadata_bytes = set->heap.bytes;
    stats.mapped_bytes = set->pieces.mapped_bytes;
    *ret_stats = stats;
}

/* ---- Audit ---------------------------------------------------------------------- */

struct writebuf_sums {
    uint64_t records;
    uint64_t held;
    uint64_t memory;
    uint64_t loaded;
    uint64_t spilled;
    uint64_t charged;
    uint64_t window;
    uint64_t pieces;
    uint32_t loads;
};

static void writebuf_audit_records(const struct writebuf_block *block, uint64_t *sequence)
{
    uint64_t offset = 0;
    uint32_t count = 0;
    uint32_t inserts = 0;
    uint32_t barriers = 0;

    while (offset < block->fill_bytes) {
        struct weir_writebuf_record record;
        uint64_t bytes;

        WEIR_CHECK(weir__record_decode(block->piece.data + offset, block->fill_bytes - offset,
                                       &record, &bytes) == 0);
        WEIR_CHECK(record.sequence > *sequence);
        *sequence = record.sequence;
        if (count++ == 0)
            WEIR_CHECK(record.sequence == block->first_sequence);
        inserts += record.operation == WEIR_WRITEBUF_INSERT;
        barriers += record.operation == WEIR_WRITEBUF_BARRIER;
        offset += bytes;
    }
    WEIR_CHECK(*sequence == block->last_sequence);
    WEIR_CHECK(count == block->record_count);
    WEIR_CHECK(inserts == block->insert_count);
    WEIR_CHECK(barriers == block->barrier_count);
}

static void writebuf_audit_block(const struct weir_writebuf *buffer,
                                 const struct writebuf_block *block, uint64_t *sequence,
                                 struct writebuf_sums *sums)
{
    const struct weir_writebuf_set *set = buffer->set;
    struct weir_slot_info info;

    WEIR_CHECK(block->record_count > 0 || block == buffer->tail);
    WEIR_CHECK(block->first_sequence > *sequence || block->record_count == 0); /* W1 */
    sums->records += block->record_count;
    sums->held += block->fill_bytes;
    sums->charged += block->charged_bytes;
    sums->window += block->window_bytes;
    sums->pieces += block->piece.bytes;
    sums->loads += block->asked_by != NULL;
    if (weir_slot_is_none(block->slot)) {
        WEIR_CHECK(block->piece.data != NULL);
        WEIR_CHECK(block->fill_bytes <= block->charged_bytes);
        WEIR_CHECK(block->charged_bytes <= block->piece.bytes);
        WEIR_CHECK(block->window_bytes == 0 && !block->is_loading);
        sums->memory += block->charged_bytes;
        if (block->record_count > 0)
            writebuf_audit_records(block, sequence);
        return;
    }
    WEIR_CHECK(block != buffer->tail);
    WEIR_CHECK(weir_region_slot(set->config.region, block->slot, &info) == 0);
    WEIR_CHECK(info.bytes == block->fill_bytes);
    WEIR_CHECK(info.label.key == buffer->id && info.label.owner == set->config.owner);
    sums->spilled += block->fill_bytes;
    sums->loaded += block->charged_bytes + block->window_bytes;
    if (block->piece.data == NULL) {
        WEIR_CHECK(block->charged_bytes + block->window_bytes == 0);
        WEIR_CHECK(!block->is_loading);
    } else {
        WEIR_CHECK(buffer->flush != NULL);
    }
    *sequence = block->last_sequence;
}

static void writebuf_audit_buffer(const struct weir_writebuf *buffer, struct writebuf_sums *all)
{
    struct writebuf_sums sums = {0};
    uint64_t sequence = 0;
    bool is_round = buffer->flush != NULL && buffer->flush->last != NULL;
    bool is_spillable = false;

    WEIR_LIST_FOREACH (link, &buffer->blocks) {
        const struct writebuf_block *block = WEIR_CONTAINER_OF(link, struct writebuf_block, link);

        writebuf_audit_block(buffer, block, &sequence, &sums);
        WEIR_CHECK(block->is_in_round == is_round); /* W4 */
        if (is_round && block == buffer->flush->last)
            is_round = false;
        if (!is_spillable && weir_slot_is_none(block->slot) && !block->is_in_round) {
            WEIR_CHECK(block == buffer->spill_next); /* W3 */
            is_spillable = true;
        }
    }
    WEIR_CHECK(!is_round);
    WEIR_CHECK(is_spillable == (buffer->spill_next != NULL));
    WEIR_CHECK(sequence <= buffer->last_sequence);
    WEIR_CHECK(buffer->position <= buffer->last_sequence);
    WEIR_CHECK(sums.records - buffer->head_records == buffer->record_count);
    WEIR_CHECK(sums.held - buffer->head_offset == buffer->held_bytes);
    WEIR_CHECK(sums.memory == buffer->memory_bytes);
    WEIR_CHECK(sums.loaded == buffer->loaded_bytes);
    WEIR_CHECK(sums.spilled == buffer->spilled_bytes);
    if (buffer->flush != NULL) {
        WEIR_CHECK(sums.window == buffer->flush->window_bytes);
        WEIR_CHECK(sums.window + buffer->set->lent_bytes <= buffer->set->window_bytes_max);
        WEIR_CHECK(sums.loads == buffer->flush->load_count);
        WEIR_CHECK(!buffer->is_queued);
    } else {
        WEIR_CHECK(sums.window == 0 && sums.loads == 0);
    }
    WEIR_CHECK(buffer->is_counted == !weir__writebuf_is_held_up(buffer));
    if (buffer->is_queued)
        WEIR_CHECK(!buffer->is_paused && buffer->retry_ns == 0 && buffer->reasons != 0);

    all->records += buffer->record_count;
    all->held += buffer->held_bytes;
    all->memory += sums.memory;
    all->loaded += sums.loaded;
    all->spilled += sums.spilled;
    all->charged += sums.charged;
    all->pieces += sums.pieces;
    all->window += buffer->is_counted ? buffer->held_bytes : 0;
}

void weir_writebuf_audit(const struct weir_writebuf_set *set)
{
    struct writebuf_sums sums = {0};
    uint64_t buffers = 0;
    uint64_t flushing = 0;
    uint64_t queued = 0;

    WEIR_CHECK(weir__writebuf_is_mine(set));
    WEIR_LIST_FOREACH (link, &set->buffers) {
        const struct weir_writebuf *buffer = WEIR_CONTAINER_OF(link, struct weir_writebuf, link);

        writebuf_audit_buffer(buffer, &sums);
        buffers++;
        queued += buffer->is_queued;
        flushing += buffer->flush != NULL;
    }
    for (uint32_t i = 0; i < set->config.flushes_max; i++) {
        const struct writebuf_flush *flush = &set->flushes[i];

        WEIR_CHECK(flush->buffer == NULL || flush->buffer->flush == flush);
        sums.charged += flush->index_charged_bytes;
        sums.pieces += flush->index_piece.bytes;
    }
    WEIR_CHECK(buffers == set->buffer_count);
    WEIR_CHECK(queued == set->queued_count);
    WEIR_CHECK(flushing == set->flushing_count);
    WEIR_CHECK(flushing <= set->config.flushes_max);
    WEIR_CHECK(sums.records == set->record_count);
    WEIR_CHECK(sums.held == set->held_bytes);
    WEIR_CHECK(sums.window == set->backlog_bytes);
    WEIR_CHECK(sums.memory == set->memory_bytes);
    WEIR_CHECK(sums.loaded == set->loaded_bytes);
    WEIR_CHECK(sums.spilled == set->spilled_bytes);
    WEIR_CHECK(sums.charged == set->charged_bytes + set->lent_bytes); /* W2 */
    WEIR_CHECK(set->lent_bytes <= set->lend_bytes_max);               /* W7 */
    WEIR_CHECK(sums.pieces + set->blocks.bytes == set->pieces.piece_bytes);
    WEIR_CHECK(set->credit_bytes == 0); /* W5 */
}
