/* SPDX-License-Identifier: MIT */
/*
 * spill - what blocks are charged, where they lie, and who gives way
 *
 * Whatever a block gives up goes into the credit of the set first, so that one who
 * needs memory takes over the charge of another without asking the account, which
 * could say no in between. What is not taken over is refunded at the end of the
 * call.
 */
#include "writebuf/writebuf_state.h"

#include "base/bits.h"
#include "base/check.h"

#include <weir/governor.h>

#include <errno.h>

/* ---- Charges -------------------------------------------------------------------- */

void weir__writebuf_refund(struct weir_writebuf_set *set, uint64_t bytes)
{
    uint64_t lent = weir__min(bytes, set->lent_bytes);

    set->lent_bytes -= lent;
    bytes -= lent;
    WEIR_CHECK(bytes <= set->charged_bytes);
    set->charged_bytes -= bytes;
    if (set->config.account != NULL && bytes > 0)
        weir_account_refund(set->config.account, bytes);
}

void weir__writebuf_settle(struct weir_writebuf_set *set)
{
    uint64_t bytes = set->credit_bytes;

    set->credit_bytes = 0;
    weir__writebuf_refund(set, bytes);
}

/* What the account says; on WEIR_ADMIT and WEIR_FLUSH it is charged. */
static enum weir_verdict writebuf_ask(struct weir_writebuf_set *set, uint64_t bytes)
{
    enum weir_verdict verdict = WEIR_ADMIT;

    /* What can never fit is no different from what does not fit now: it can spill. */
    if (set->config.account != NULL &&
        weir_account_charge(set->config.account, bytes, &verdict) < 0)
        verdict = WEIR_WAIT;
    switch (verdict) {
    case WEIR_FLUSH:
        set->is_short = true;
        set->charged_bytes += bytes;
        break;
    case WEIR_ADMIT:
        set->charged_bytes += bytes;
        break;
    case WEIR_SPILL:
    case WEIR_WAIT:
        set->is_short = true;
        break;
    }
    return verdict;
}

bool weir__writebuf_may_take(struct weir_writebuf_set *set, uint64_t bytes)
{
    enum weir_verdict verdict = writebuf_ask(set, bytes);

    return verdict == WEIR_ADMIT || verdict == WEIR_FLUSH;
}

/* ---- Blocks --------------------------------------------------------------------- */

void weir__writebuf_add_held(struct weir_writebuf *buffer, int64_t bytes, int64_t records)
{
    struct weir_writebuf_set *set = buffer->set;

    buffer->held_bytes += (uint64_t)bytes;
    set->held_bytes += (uint64_t)bytes;
    buffer->record_count += (uint64_t)records;
    set->record_count += (uint64_t)records;
    if (buffer->is_counted)
        set->backlog_bytes += (uint64_t)bytes;
}

void weir__writebuf_count(struct weir_writebuf *buffer)
{
    bool is_counted = !weir__writebuf_is_held_up(buffer);

    if (is_counted == buffer->is_counted)
        return;
    buffer->is_counted = is_counted;
    buffer->set->backlog_bytes += is_counted ? buffer->held_bytes : -buffer->held_bytes;
}

/* The charge of a piece that is given back goes into the credit. */
static void writebuf_give_piece(struct weir_writebuf *buffer, struct writebuf_block *block)
{
    struct weir_writebuf_set *set = buffer->set;

    if (block->piece.data == NULL)
        return;
    weir__pieces_give(&set->pieces, &block->piece);
    if (weir_slot_is_none(block->slot)) {
        buffer->memory_bytes -= block->charged_bytes;
        set->memory_bytes -= block->charged_bytes;
    } else {
        buffer->loaded_bytes -= block->charged_bytes + block->window_bytes;
        set->loaded_bytes -= block->charged_bytes + block->window_bytes;
        if (block->window_bytes > 0)
            buffer->flush->window_bytes -= block->window_bytes;
    }
    set->credit_bytes += block->charged_bytes;
    block->charged_bytes = 0;
    block->window_bytes = 0;
}

void weir__writebuf_unload(struct weir_writebuf *buffer, struct writebuf_block *block)
{
    WEIR_CHECK(!weir_slot_is_none(block->slot));
    if (block->asked_by != NULL) {
        /* It will be called back, and nobody will know it. */
        weir__list_remove(&block->loading);
        block->asked_by->load_count--;
        block->asked_by = NULL;
    }
    block->is_loading = false;
    writebuf_give_piece(buffer, block);
}

void weir__writebuf_drop_block(struct weir_writebuf *buffer, struct writebuf_block *block)
{
    struct weir_writebuf_set *set = buffer->set;
    uint64_t bytes = block->fill_bytes;
    uint64_t records = block->record_count;

    if (block == weir__writebuf_first(buffer)) {
        bytes -= buffer->head_offset;
        records -= buffer->head_records;
        buffer->head_offset = 0;
        buffer->head_records = 0;
        buffer->head_barriers = 0;
    }
    weir__writebuf_add_held(buffer, -(int64_t)bytes, -(int64_t)records);
    if (!weir_slot_is_none(block->slot)) {
        weir__writebuf_unload(buffer, block);
        weir_region_free(set->config.region, block->slot);
        buffer->spilled_bytes -= block->fill_bytes;
        set->spilled_bytes -= block->fill_bytes;
    } else {
        writebuf_give_piece(buffer, block);
    }
    if (buffer->spill_next == block)
        weir__writebuf_spill_from(buffer, weir__writebuf_after(buffer, block));
    if (buffer->tail == block)
        buffer->tail = NULL;
    weir__list_remove(&block->link);
    weir__pool_give(&set->blocks, block);
}

void weir__writebuf_spill_from(struct weir_writebuf *buffer, struct writebuf_block *block)
{
    while (block != NULL && (!weir_slot_is_none(block->slot) || block->is_in_round))
        block = weir__writebuf_after(buffer, block);
    buffer->spill_next = block;
}

/* ---- Spill ---------------------------------------------------------------------- */

int weir__writebuf_spill_block(struct weir_writebuf *buffer)
{
    struct weir_writebuf_set *set = buffer->set;
    struct writebuf_block *block = buffer->spill_next;
    struct weir_label label = {.key = buffer->id, .owner = set->config.owner};
    struct weir_slot slot;
    int r;

    WEIR_ASSERT(block != NULL && weir_slot_is_none(block->slot) && !block->is_in_round);

    r = weir_region_put(set->config.region, block->piece.data, block->fill_bytes, label, &slot);
    if (r < 0) {
        set->ever.failed_spill_count++;
        return r;
    }
    writebuf_give_piece(buffer, block);
    block->slot = slot;
    buffer->spilled_bytes += block->fill_bytes;
    set->spilled_bytes += block->fill_bytes;
    set->ever.block_count++;
    set->ever.block_bytes += block->fill_bytes;
    if (buffer->tail == block)
        buffer->tail = NULL;
    weir__writebuf_spill_from(buffer, weir__writebuf_after(buffer, block));
    if (set->config.quiet_ns != UINT64_MAX)
        weir__writebuf_due(set, set->now_ns + set->config.quiet_ns);
    return 0;
}

/*
 * Whose block goes: of those that no flush will help soon, else of all, the one
 * that holds most memory. @kept: a block that must stay.
 */
static struct weir_writebuf *writebuf_victim(const struct weir_writebuf_set *set,
                                             const struct writebuf_block *kept)
{
    struct weir_writebuf *found = NULL;
    bool found_is_held_up = false;

    WEIR_LIST_FOREACH (link, &set->buffers) {
        struct weir_writebuf *buffer = WEIR_CONTAINER_OF(link, struct weir_writebuf, link);
        bool is_held_up = weir__writebuf_is_held_up(buffer);

        if (buffer->spill_next == NULL || buffer->spill_next == kept)
            continue;
        if (found != NULL &&
            (is_held_up < found_is_held_up ||
             (is_held_up == found_is_held_up && buffer->memory_bytes <= found->memory_bytes)))
            continue;
        found = buffer;
        found_is_held_up = is_held_up;
    }
    return found;
}

uint64_t weir_writebuf_spill(struct weir_writebuf_set *set, uint64_t bytes)
{
    uint64_t charged_bytes = set->charged_bytes;

    WEIR_ASSERT(weir__writebuf_is_mine(set));
    WEIR_ASSERT(set->credit_bytes == 0);

    if (set->config.region == NULL)
        return 0;
    while (set->credit_bytes < bytes) {
        struct weir_writebuf *victim = writebuf_victim(set, NULL);

        if (victim == NULL || weir__writebuf_spill_block(victim) < 0)
            break;
    }
    weir__writebuf_settle(set);
    return charged_bytes - set->charged_bytes;
}

/*
 * Nothing of the set can make room, so nobody but others can; and they may wait for
 * just this append to free what they hold. What flushes do not use of the working set
 * is enough for a block, and the next one takes it over (W7).
 */
static bool writebuf_lend(struct weir_writebuf_set *set, uint64_t bytes)
{
    uint64_t lent = set->lent_bytes + bytes;

    if (lent > set->lend_bytes_max)
        return false;
    for (uint32_t i = 0; i < set->config.flushes_max; i++)
        if (set->flushes[i].window_bytes + lent > set->window_bytes_max)
            return false;
    set->lent_bytes = lent;
    return true;
}

int weir__writebuf_charge(struct weir_writebuf_set *set, uint64_t bytes,
                          const struct writebuf_block *kept)
{
    for (;;) {
        struct weir_writebuf *victim;
        int r;

        if (set->credit_bytes >= bytes) {
            set->credit_bytes -= bytes;
            return 0;
        }
        if (set->credit_bytes == 0 && weir__writebuf_may_take(set, bytes))
            return 0;
        victim = set->config.region != NULL ? writebuf_victim(set, kept) : NULL;
        if (victim == NULL) {
            if (!writebuf_lend(set, bytes - set->credit_bytes))
                return -EAGAIN;
            set->credit_bytes = 0;
            return 0;
        }
        r = weir__writebuf_spill_block(victim);
        if (r < 0)
            return r;
    }
}
