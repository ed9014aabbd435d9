/* SPDX-License-Identifier: MIT */
/*
 * chunk - the states of 2 MiB
 *
 *           store                 seal              written            drop
 *      FRESH ---> DIRTY (in memory) ---> WRITING ------> CLEAN ------> COLD
 *        ^          ^                                      |             |
 *        |          +-- revive ----------------------------+---FILLING <-+
 *        +-- nothing live in it any more: zeroed, blocks kept
 *        |
 *        +-- HOLE: its blocks were given back; reserved again
 *
 * 2 MiB because the kernel drops whole folios only, and the largest are 2 MiB:
 * smaller or unaligned steps leave most of the page cache where it was.
 *
 *   C1  resident_count counts DIRTY, WRITING, CLEAN and FILLING
 *   C2  a chunk is in the queue of its state if that is DIRTY, WRITING or CLEAN
 *   C3  live bytes of a chunk are those of live extents that lie in it
 *   C4  pinned_count counts the chunks that have pins
 *   C5  a chunk in which something is filled in place is DIRTY and pinned until
 *       that ends; placed_count counts these chunks
 *   C6  fresh_count and hole_count count the chunks in these states; nothing is
 *       live in a hole
 */
#include "region/chunk.h"

#include "base/check.h"

static bool chunk_is_queued(enum weir__chunk_state state)
{
    return state == CHUNK_DIRTY || state == CHUNK_WRITING || state == CHUNK_CLEAN;
}

static bool chunk_is_counted(enum weir__chunk_state state)
{
    return weir__chunk_is_resident(state) || state == CHUNK_FILLING;
}

/* ---- Queues ------------------------------------------------------------- */

static void chunk_queue_append(struct weir__chunks *chunks, struct weir__chunk_queue *queue,
                               uint64_t chunk)
{
    struct weir__chunk *entry = &chunks->table[chunk];
    uint32_t number = (uint32_t)chunk + 1;

    entry->next = 0;
    entry->previous = queue->tail;
    if (queue->tail != 0)
        chunks->table[queue->tail - 1].next = number;
    else
        queue->head = number;
    queue->tail = number;
    queue->count++;
}

static void chunk_queue_remove(struct weir__chunks *chunks, struct weir__chunk_queue *queue,
                               uint64_t chunk)
{
    struct weir__chunk *entry = &chunks->table[chunk];

    WEIR_ASSERT(queue->count > 0);
    if (entry->previous != 0)
        chunks->table[entry->previous - 1].next = entry->next;
    else
        queue->head = entry->next;
    if (entry->next != 0)
        chunks->table[entry->next - 1].previous = entry->previous;
    else
        queue->tail = entry->previous;
    entry->next = 0;
    entry->previous = 0;
    queue->count--;
}

void weir__chunk_turn(struct weir__chunks *chunks, uint64_t chunk, enum weir__chunk_state state)
{
    uint64_t *word = &chunks->table[chunk].word;
    uint64_t value = weir__word_load(word);
    enum weir__chunk_state before = weir__chunk_state(chunks, chunk);

    WEIR_ASSERT(chunk < chunks->count_max);
    WEIR_ASSERT(state != before);
    WEIR_CHECK(chunks->table[chunk].placed == 0); /* C5 */

    if (chunk_is_queued(before))
        chunk_queue_remove(chunks, &chunks->queues[before], chunk);
    if (chunk_is_queued(state))
        chunk_queue_append(chunks, &chunks->queues[state], chunk);
    if (chunk_is_counted(before))
        chunks->resident_count--;
    if (chunk_is_counted(state))
        chunks->resident_count++;
    chunks->fresh_count -= before == CHUNK_FRESH;
    chunks->fresh_count += state == CHUNK_FRESH;
    chunks->hole_count -= before == CHUNK_HOLE;
    chunks->hole_count += state == CHUNK_HOLE;
    weir__word_store(
        word, weir__chunk_word(weir__chunk_word_live(value), weir__chunk_word_pins(value), state));
}

/* ---- Ranges ------------------------------------------------------------- */

/* The part of [offset, end) that lies in @chunk. */
static uint32_t chunk_overlap(uint64_t chunk, uint64_t offset, uint64_t end)
{
    uint64_t from = weir__max(offset, chunk * LAYOUT_CHUNK_BYTES);
    uint64_t to = weir__min(end, (chunk + 1) * LAYOUT_CHUNK_BYTES);

    return (uint32_t)(to - from);
}

static uint64_t chunk_last(uint64_t offset, uint64_t space)
{
    WEIR_ASSERT(space > 0);
    return weir__chunk_of(offset + space - 1);
}

void weir__chunks_add_live_many(struct weir__chunks *chunks, uint64_t offset, uint64_t space)
{
    for (uint64_t i = weir__chunk_of(offset); i <= chunk_last(offset, space); i++)
        weir__word_add(&chunks->table[i].word, chunk_overlap(i, offset, offset + space));
}

void weir__chunks_sub_live_many(struct weir__chunks *chunks, uint64_t offset, uint64_t space)
{
    for (uint64_t i = weir__chunk_of(offset); i <= chunk_last(offset, space); i++) {
        uint32_t bytes = chunk_overlap(i, offset, offset + space);
        WEIR_ASSERT(weir__chunk_live(chunks, i) >= bytes);
        weir__word_add(&chunks->table[i].word, -(uint64_t)bytes);
    }
}

void weir__chunks_pin(struct weir__chunks *chunks, uint64_t offset, uint64_t space)
{
    for (uint64_t i = weir__chunk_of(offset); i <= chunk_last(offset, space); i++) {
        chunks->pinned_count += weir__chunk_pins(chunks, i) == 0;
        weir__word_add(&chunks->table[i].word, weir__chunk_word(0, 1, 0));
    }
}

void weir__chunks_unpin(struct weir__chunks *chunks, uint64_t offset, uint64_t space)
{
    for (uint64_t i = weir__chunk_of(offset); i <= chunk_last(offset, space); i++) {
        WEIR_ASSERT(weir__chunk_pins(chunks, i) > 0);
        weir__word_add(&chunks->table[i].word, -weir__chunk_word(0, 1, 0));
        chunks->pinned_count -= weir__chunk_pins(chunks, i) == 0;
    }
}

void weir__chunks_place(struct weir__chunks *chunks, uint64_t offset, uint64_t space)
{
    weir__chunks_pin(chunks, offset, space);
    for (uint64_t i = weir__chunk_of(offset); i <= chunk_last(offset, space); i++) {
        WEIR_ASSERT(weir__chunk_state(chunks, i) == CHUNK_DIRTY); /* C5 */
        chunks->placed_count += chunks->table[i].placed++ == 0;
    }
}

void weir__chunks_unplace(struct weir__chunks *chunks, uint64_t offset, uint64_t space)
{
    for (uint64_t i = weir__chunk_of(offset); i <= chunk_last(offset, space); i++) {
        WEIR_ASSERT(chunks->table[i].placed > 0);
        chunks->placed_count -= --chunks->table[i].placed == 0;
    }
    weir__chunks_unpin(chunks, offset, space);
}

uint64_t weir__chunks_unplaced(const struct weir__chunks *chunks, uint64_t offset, uint64_t space)
{
    uint64_t count = 0;

    for (uint64_t i = weir__chunk_of(offset); i <= chunk_last(offset, space); i++)
        count += chunks->table[i].placed == 0;
    return count;
}

bool weir__chunks_are_resident_many(const struct weir__chunks *chunks, uint64_t offset,
                                    uint64_t space)
{
    for (uint64_t i = weir__chunk_of(offset); i <= chunk_last(offset, space); i++)
        if (!weir__chunk_is_resident(weir__chunk_state(chunks, i)))
            return false;
    return true;
}

bool weir__chunks_are_storable(const struct weir__chunks *chunks, uint64_t offset, uint64_t space)
{
    for (uint64_t i = weir__chunk_of(offset); i <= chunk_last(offset, space); i++)
        if (!weir__chunk_is_storable(weir__chunk_state(chunks, i)))
            return false;
    return true;
}

uint64_t weir__chunks_fresh_many(const struct weir__chunks *chunks, uint64_t offset, uint64_t space)
{
    uint64_t count = 0;

    for (uint64_t i = weir__chunk_of(offset); i <= chunk_last(offset, space); i++)
        count += weir__chunk_state(chunks, i) == CHUNK_FRESH;
    return count;
}

void weir__chunks_touch_many(struct weir__chunks *chunks, uint64_t offset, uint64_t space)
{
    for (uint64_t i = weir__chunk_of(offset); i <= chunk_last(offset, space); i++) {
        WEIR_ASSERT(weir__chunk_is_storable(weir__chunk_state(chunks, i)));
        if (weir__chunk_state(chunks, i) == CHUNK_FRESH)
            weir__chunk_turn(chunks, i, CHUNK_DIRTY);
    }
}

/* ---- Audit -------------------------------------------------------------- */

void weir__chunks_audit(const struct weir__chunks *chunks, uint64_t file_chunks)
{
    uint64_t counts[CHUNK_STATE_COUNT] = {0};
    uint64_t resident = 0;
    uint64_t pinned = 0;
    uint64_t placed = 0;

    for (uint64_t i = 0; i < file_chunks; i++) {
        enum weir__chunk_state state = weir__chunk_state(chunks, i);
        WEIR_CHECK(state != CHUNK_NONE && state < CHUNK_STATE_COUNT);
        WEIR_CHECK(weir__chunk_live(chunks, i) <= LAYOUT_CHUNK_BYTES);
        if (state == CHUNK_HOLE)
            WEIR_CHECK(weir__chunk_live(chunks, i) == 0); /* C6 */
        counts[state]++;
        resident += chunk_is_counted(state);
        pinned += weir__chunk_pins(chunks, i) > 0;
        placed += chunks->table[i].placed > 0;
        if (chunks->table[i].placed > 0) {
            WEIR_CHECK(state == CHUNK_DIRTY); /* C5 */
            WEIR_CHECK(weir__chunk_pins(chunks, i) >= chunks->table[i].placed);
        }
        if (chunks->table[i].doubted != 0)
            WEIR_CHECK(chunks->table[i].placed > 0);
    }
    for (uint64_t i = file_chunks; i < chunks->count_max; i++)
        WEIR_CHECK(weir__chunk_state(chunks, i) == CHUNK_NONE);
    WEIR_CHECK(resident == chunks->resident_count); /* C1 */
    WEIR_CHECK(pinned == chunks->pinned_count);     /* C4 */
    WEIR_CHECK(placed == chunks->placed_count);     /* C5 */
    WEIR_CHECK(counts[CHUNK_FRESH] == chunks->fresh_count);
    WEIR_CHECK(counts[CHUNK_HOLE] == chunks->hole_count); /* C6 */

    for (uint32_t state = 0; state < CHUNK_STATE_COUNT; state++) {
        uint64_t queued = 0;
        for (uint32_t i = chunks->queues[state].head; i != 0; i = chunks->table[i - 1].next) {
            WEIR_CHECK(weir__chunk_state(chunks, i - 1) == state); /* C2 */
            queued++;
        }
        WEIR_CHECK(queued == chunks->queues[state].count);
        if (chunk_is_queued((enum weir__chunk_state)state))
            WEIR_CHECK(queued == counts[state]);
    }
}
