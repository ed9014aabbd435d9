/* SPDX-License-Identifier: MIT */
/*
 * cold - values in the region
 *
 *      GET ---> hold ---> in the region's memory?  copied at once
 *                |        else queued, fetched with others of this turn,
 *                |        copied in the callback, all that wait answered
 *                +------> long: sent in pieces, each read when it is wanted
 *
 * A hold stands for a slot that replies need: however many wait for it, it is
 * fetched once, and if its key gets another value meanwhile it is the last hold
 * that frees the slot, so that a reply is what was there when the command was
 * carried out.
 *
 * Copies made for replies are bounded by loose_max; beyond, holds wait in their
 * queue until replies were sent. Values are pushed out by cold_push() alone, a
 * bounded number of bytes at a time: for the flush that begins at soft, on all
 * cores at once, and for the governor when it asks this core's reclaimer. Items
 * of streams are for their reorder buffers, which have a reclaimer of their own.
 *
 *   C1  a slot is in the keyspace or its hold is dead
 *   C2  a hold with requests waiting is queued or being fetched
 */
#include "cold.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "stock.h"
#include "stream.h"

#define COLD_FETCH_MAX   64                    /* slots of one call */
#define COLD_PUSH_BYTES  (UINT64_C(512) << 10) /* pushed out at a time */
#define COLD_CLOCK_STEPS 256

/* ---- Holds ---------------------------------------------------------------------- */

static struct hold **hold_link(struct shard *shard, struct weir_slot slot)
{
    struct hold **link = &shard->holds[slot.index % SHARD_HOLD_BUCKETS];

    while (*link != NULL &&
           ((*link)->slot.index != slot.index || (*link)->slot.generation != slot.generation))
        link = &(*link)->next;
    return link;
}

struct hold *cold_hold(struct shard *shard, struct weir_slot slot, uint32_t bytes)
{
    struct hold **link = hold_link(shard, slot);

    if (*link == NULL) {
        struct hold *hold = calloc(1, sizeof(*hold));

        if (hold == NULL)
            abort();
        hold->slot = slot;
        hold->bytes = bytes;
        *link = hold;
        shard->hold_count++;
    }
    (*link)->reference_count++;
    return *link;
}

void cold_release(struct shard *shard, struct hold *hold)
{
    assert(hold->reference_count > 0);
    if (--hold->reference_count > 0)
        return;
    assert(hold->waiting.first == NULL && !hold->is_fetching); /* C2 */
    *hold_link(shard, hold->slot) = hold->next;
    shard->hold_count--;
    if (hold->is_dead) {
        weir_region_free(shard->region, hold->slot);
        shard_region_freed(shard);
    }
    free(hold);
}

void cold_drop_slot(struct shard *shard, struct weir_slot slot)
{
    struct hold *hold = shard->hold_count > 0 ? *hold_link(shard, slot) : NULL;

    if (hold != NULL) {
        hold->is_dead = true; /* C1 */
        return;
    }
    weir_region_free(shard->region, slot);
    shard_region_freed(shard);
}

/* ---- Getting -------------------------------------------------------------------- */

static void hold_queue(struct shard *shard, struct hold *hold)
{
    hold->is_fetching = true;
    hold->fetch_next = NULL;
    if (shard->fetch_first == NULL)
        shard->fetch_first = hold;
    else
        shard->fetch_last->fetch_next = hold;
    shard->fetch_last = hold;
}

static bool loose_has_room(const struct shard *shard, const struct hold *hold)
{
    return shard->loose_bytes == 0 ||
           shard->loose_bytes + value_cost(hold->bytes) <= shard->loose_max;
}

/* A copy of what the region has in memory; NULL: it is cold after all, or no memory. */
static struct value *hold_copy(struct shard *shard, struct hold *hold)
{
    struct value *value;
    const void *data;
    size_t bytes;

    if (weir_region_at(shard->region, hold->slot, &data, &bytes) < 0)
        return NULL;
    assert(bytes == hold->bytes);
    value = stock_make_loose(shard, bytes);
    if (value != NULL && bytes > 0)
        memcpy(value->data, data, bytes);
    return value;
}

enum progress cold_get(struct shard *shard, struct request *request, struct hold *hold)
{
    if (hold->bytes > shard->whole_bytes_max) {
        request->hold = hold;
        request->reply = REPLY_PIECES;
        return PROGRESS_DONE;
    }
    if (!hold->is_fetching && loose_has_room(shard, hold)) {
        struct value *value = hold_copy(shard, hold);

        if (value != NULL) {
            request->value = value;
            request->reply = REPLY_VALUE;
            cold_release(shard, hold);
            return PROGRESS_DONE;
        }
    }
    request_list_append(&hold->waiting, request);
    if (!hold->is_fetching)
        hold_queue(shard, hold);
    return PROGRESS_LATER;
}

static void answer_error(struct shard *shard, struct request *request, int result)
{
    request_reply_text(request, result == -EBADMSG
                                    ? "-ERR the value was damaged on disk\r\n"
                                    : "-ERR the value could not be read from disk\r\n");
    shard_answer(shard, request);
}

/* A value that is read again and again comes back to memory, if there is plenty. */
static void hold_promote(struct shard *shard, struct hold *hold, const struct request *request,
                         struct value *value)
{
    struct entry *entry;
    enum weir_verdict verdict;

    if (!shard->is_calm || hold->is_dead || value->bytes <= KEYSPACE_INLINE_MAX)
        return;
    entry = keyspace_find(&shard->keys, request->hash, request->call.key);
    if (entry == NULL || entry->where != WHERE_SLOT || entry->slot.index != hold->slot.index ||
        entry->slot.generation != hold->slot.generation)
        return;
    if (!entry->was_read_cold) {
        entry->was_read_cold = true;
        return;
    }
    if (weir_account_charge(shard->values, value_cost(value->bytes), &verdict) < 0 ||
        verdict == WEIR_SPILL || verdict == WEIR_WAIT)
        return;
    /* The forced charge of the copy is the value's from now on: the new one goes back. */
    weir_account_refund(shard->values, value_cost(value->bytes));
    shard->loose_bytes -= value_cost(value->bytes);
    value->is_loose = 0;
    value->reference_count++;
    cold_drop_slot(shard, keyspace_take_slot(&shard->keys, entry));
    keyspace_set_value(&shard->keys, entry, value);
    entry->was_read_cold = false;
    shard->figures.promoted_count++;
}

static void hold_answer(struct shard *shard, struct hold *hold, int result)
{
    struct value *value = NULL;
    struct request_list waiting = hold->waiting;
    struct request *request;

    hold->waiting = (struct request_list){0};
    hold->is_fetching = false;
    if (result == 0) {
        value = hold_copy(shard, hold);
        result = value != NULL ? 0 : -ENOMEM;
    }
    if (value != NULL) {
        shard->figures.fetched_count++;
        hold_promote(shard, hold, waiting.first, value);
    }
    while ((request = request_list_take(&waiting)) != NULL) {
        if (value != NULL) {
            value->reference_count++;
            request->value = value;
            request->reply = REPLY_VALUE;
            shard_answer(shard, request);
        } else {
            answer_error(shard, request, result);
        }
        cold_release(shard, hold); /* the last one ends it */
    }
    if (value != NULL)
        stock_unref(shard, value);
}

static void cold_fetched(void *context, struct weir_slot slot, int result)
{
    struct shard *shard = context;
    struct hold *hold = *hold_link(shard, slot);

    assert(hold != NULL && hold->is_fetching);
    shard->fetching_bytes -= value_cost(hold->bytes);
    hold_answer(shard, hold, result);
}

void cold_fetch(struct shard *shard)
{
    struct weir_slot slots[COLD_FETCH_MAX];
    struct hold *hold = shard->fetch_first;
    uint64_t bytes = shard->loose_bytes + shard->fetching_bytes;
    size_t count = 0;
    int r;

    for (; hold != NULL && count < COLD_FETCH_MAX; hold = hold->fetch_next) {
        if (bytes > 0 && bytes + value_cost(hold->bytes) > shard->loose_max)
            break;
        bytes += value_cost(hold->bytes);
        slots[count++] = hold->slot;
    }
    if (count == 0)
        return;
    r = weir_region_fetch(shard->region, slots, count, cold_fetched, shard);
    if (r == -EAGAIN)
        return; /* what is under way ends a turn */
    for (size_t i = 0; i < count; i++) {
        hold = shard->fetch_first;
        shard->fetch_first = hold->fetch_next;
        if (r < 0)
            hold_answer(shard, hold, r);
        else
            shard->fetching_bytes += value_cost(hold->bytes);
    }
    if (shard->fetch_first != NULL && r == 0)
        shard_nudge(shard);
}

/* ---- Pieces --------------------------------------------------------------------- */

static void read_complete(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct request *request =
        (struct request *)(void *)((char *)operation - offsetof(struct request, operation));

    (void)flags;
    request->piece_result = result;
    shard_answer(request->shard, request);
}

static void cold_read_piece(struct shard *shard, struct request *request)
{
    const struct weir_slot slot = request->hold != NULL
                                      ? request->hold->slot
                                      : request->batch->items[request->emit_index].slot;
    int r;

    request->operation.complete = read_complete;
    r = weir_region_fetch_into(shard->region, slot, request->piece_offset, request->piece,
                               request->piece_bytes, &request->operation);
    if (r == 0)
        return;
    if (r == -EAGAIN) {
        request_list_append(&shard->reads, request);
        return;
    }
    request->piece_result = r;
    shard_answer(shard, request);
}

void cold_read(struct shard *shard, struct request *request)
{
    /* The pieces of an item need what the items before it hold. */
    if (request->batch != NULL)
        stream_release_some(request->batch, request->emit_index);
    cold_read_piece(shard, request);
}

/* ---- Pushing out ---------------------------------------------------------------- */

/* One value; 0, or why not. */
static int push_value(struct shard *shard, struct value *value, uint64_t *freed_bytes)
{
    struct entry *entry = value->entry;
    const uint32_t bytes = value->bytes;
    struct weir_slot slot;
    const int r =
        weir_region_put(shard->region, value->data, bytes,
                        (struct weir_label){.key = entry->hash, .owner = SHARD_OWNER_KEYS}, &slot);

    if (r < 0)
        return r;
    (void)keyspace_take_value(&shard->keys, entry);
    keyspace_set_slot(&shard->keys, entry, slot, bytes);
    entry->was_read_cold = false;
    *freed_bytes += value_cost(bytes);
    stock_unref(shard, value);
    shard->figures.spilled_count++;
    return 0;
}

static int push_values(struct shard *shard, uint64_t bytes, uint64_t *freed_bytes)
{
    uint32_t spared = 0;
    struct value *value;

    while (*freed_bytes < bytes && spared < COLD_CLOCK_STEPS &&
           (value = keyspace_coldest(&shard->keys, COLD_CLOCK_STEPS)) != NULL) {
        int r;

        if (value->reference_count > 1) {
            /* A reply sends it: it would not leave the memory. */
            keyspace_spare(&shard->keys, value);
            spared++;
            continue;
        }
        r = push_value(shard, value, freed_bytes);
        if (r < 0)
            return r;
    }
    return 0;
}

uint64_t cold_push(struct shard *shard, uint64_t bytes)
{
    uint64_t freed = 0;
    int r;

    if (bytes == 0 || !shard_has_room(shard, COLD_PUSH_BYTES) || shard->is_stopping)
        return 0;
    if (bytes > COLD_PUSH_BYTES)
        bytes = COLD_PUSH_BYTES;
    r = push_values(shard, bytes, &freed);
    if (r == -EDQUOT || r == -ENOSPC)
        shard_region_full(shard);
    if (r == -EAGAIN)
        shard_region_behind(shard);
    else if (freed > 0)
        shard->region_is_behind = false;
    return freed;
}

bool cold_flush(struct shard *shard)
{
    return cold_push(shard, weir_account_flush_bytes(shard->values)) > 0 &&
           !shard->region_is_behind; /* what is being written ends a turn */
}
