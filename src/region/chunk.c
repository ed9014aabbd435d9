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
 *   C1  resident_count counts DIRTY, WRITING, CLEAN, FILLING and what is ready
 *   C2  a chunk is in the queue of its state if that is DIRTY, WRITING or CLEAN, or
 *       if it is ready; only what is FRESH is ready
 *   C3  live bytes of a chunk are those of live extents that lie in it
 *   C4  pinned_count counts the chunks that have pins
 *   C5  a chunk in which something is filled in place is DIRTY and pinned until
 *       that ends; placed_count counts these chunks
 *   C6  fresh_count and hole_count count the chunks in these states; nothing is
 *       live in a hole
 *   C7  a chunk that is FRESH, DIRTY, CLEAN or COLD and not set aside is in the list of
 *       its kind and of its live bytes; a bit is set exactly when its list is not empty
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

/* A queue runs through one pair of links or the other. */
struct chunk_links {
    uint32_t *next;
    uint32_t *previous;
};

typedef struct chunk_links chunk_links_fn(struct weir__chunk *entry);

static struct chunk_links chunk_state_links(struct weir__chunk *entry)
{
    return (struct chunk_links){&entry->next, &entry->previous};
}

static struct chunk_links chunk_fill_links(struct weir__chunk *entry)
{
    return (struct chunk_links){&entry->fill_next, &entry->fill_previous};
}

static inline void chunk_queue_append(struct weir__chunks *chunks, struct weir__chunk_queue *queue,
                                      chunk_links_fn *links, uint64_t chunk)
{
    struct chunk_links entry = links(&chunks->table[chunk]);
    uint32_t number = (uint32_t)chunk + 1;

    *entry.next = 0;
    *entry.previous = queue->tail;
    if (queue->tail != 0)
        *links(&chunks->table[queue->tail - 1]).next = number;
    else
        queue->head = number;
    queue->tail = number;
    queue->count++;
}

static inline void chunk_queue_remove(struct weir__chunks *chunks, struct weir__chunk_queue *queue,
                                      chunk_links_fn *links, uint64_t chunk)
{
    struct chunk_links entry = links(&chunks->table[chunk]);

    WEIR_ASSERT(queue->count > 0);
    if (*entry.previous != 0)
        *links(&chunks->table[*entry.previous - 1]).next = *entry.next;
    else
        queue->head = *entry.next;
    if (*entry.next != 0)
        *links(&chunks->table[*entry.next - 1]).previous = *entry.previous;
    else
        queue->tail = *entry.previous;
    *entry.next = 0;
    *entry.previous = 0;
    queue->count--;
}

/* ---- Lists by live bytes ------------------------------------------------ */

/* CHUNK_KIND_COUNT: nobody looks for those. */
static enum weir__chunk_kind chunk_kind(enum weir__chunk_state state)
{
    switch (state) {
    case CHUNK_FRESH:
        return CHUNK_KIND_FRESH;
    case CHUNK_DIRTY:
        return CHUNK_KIND_DIRTY;
    case CHUNK_CLEAN:
    case CHUNK_COLD:
        return CHUNK_KIND_WRITTEN;
    case CHUNK_NONE:
    case CHUNK_WRITING:
    case CHUNK_FILLING:
    case CHUNK_HOLE:
    case CHUNK_STATE_COUNT:
        break;
    }
    return CHUNK_KIND_COUNT;
}

static uint32_t chunk_fill(uint32_t live)
{
    return weir__min(live / (uint32_t)CHUNK_FILL_BYTES, CHUNK_FILL_COUNT - 1);
}

static void chunk_unlist(struct weir__chunks *chunks, uint64_t chunk, enum weir__chunk_kind kind)
{
    struct weir__chunk *entry = &chunks->table[chunk];

    if (entry->fill >= CHUNK_FILL_ROOM)
        entry->fill = 0;
    if (entry->fill == 0)
        return;

    struct weir__chunk_fills *fills = &chunks->fills[kind];
    uint32_t fill = entry->fill - 1;
    chunk_queue_remove(chunks, &fills->lists[fill], chunk_fill_links, chunk);
    if (fills->lists[fill].count == 0)
        fills->bits &= ~(UINT64_C(1) << fill);
    entry->fill = 0;
}

static void chunk_list(struct weir__chunks *chunks, uint64_t chunk, enum weir__chunk_kind kind)
{
    struct weir__chunk *entry = &chunks->table[chunk];

    if (kind == CHUNK_KIND_COUNT)
        return;

    uint32_t fill = chunk_fill(weir__chunk_live(chunks, chunk));
    chunk_queue_append(chunks, &chunks->fills[kind].lists[fill], chunk_fill_links, chunk);
    chunks->fills[kind].bits |= UINT64_C(1) << fill;
    entry->fill = fill + 1;
}

void weir__chunk_file(struct weir__chunks *chunks, uint64_t chunk)
{
    struct weir__chunk *entry = &chunks->table[chunk];
    enum weir__chunk_kind kind = chunk_kind(weir__chunk_state(chunks, chunk));

    if (entry->fill == chunk_fill(weir__chunk_live(chunks, chunk)) + 1)
        return;
    chunk_unlist(chunks, chunk, kind);
    chunk_list(chunks, chunk, kind);
}

void weir__chunk_set_aside(struct weir__chunks *chunks, uint64_t chunk)
{
    chunk_unlist(chunks, chunk, chunk_kind(weir__chunk_state(chunks, chunk)));
    chunks->table[chunk].fill = CHUNK_FILL_ASIDE;
}

void weir__chunk_set_aside_for_room(struct weir__chunks *chunks, uint64_t chunk)
{
    weir__chunk_set_aside(chunks, chunk);
    chunks->table[chunk].fill = CHUNK_FILL_ROOM;
}

uint64_t weir__chunks_emptiest(const struct weir__chunks *chunks, enum weir__chunk_kind kind,
                               uint64_t chunk)
{
    const struct weir__chunk_fills *fills = &chunks->fills[kind];
    uint64_t bits = fills->bits;

    if (chunk != CHUNK_NO) {
        const struct weir__chunk *entry = &chunks->table[chunk];
        WEIR_ASSERT(entry->fill > 0);
        if (entry->fill_next != 0)
            return entry->fill_next - 1;
        bits &= -(UINT64_C(1) << (entry->fill - 1)) << 1;
    }
    return bits != 0 ? fills->lists[__builtin_ctzll(bits)].head - 1 : CHUNK_NO;
}

uint64_t weir__chunks_fullest(const struct weir__chunks *chunks, enum weir__chunk_kind kind,
                              uint64_t chunk)
{
    const struct weir__chunk_fills *fills = &chunks->fills[kind];
    uint64_t bits = fills->bits;

    if (chunk != CHUNK_NO) {
        const struct weir__chunk *entry = &chunks->table[chunk];
        WEIR_ASSERT(entry->fill > 0);
        if (entry->fill_next != 0)
            return entry->fill_next - 1;
        bits &= (UINT64_C(1) << (entry->fill - 1)) - 1;
    }
    return bits != 0 ? fills->lists[63 - __builtin_clzll(bits)].head - 1 : CHUNK_NO;
}

uint64_t weir__chunks_count(const struct weir__chunks *chunks, enum weir__chunk_kind kind)
{
    uint64_t count = 0;

    for (uint64_t bits = chunks->fills[kind].bits; bits != 0; bits &= bits - 1)
        count += chunks->fills[kind].lists[__builtin_ctzll(bits)].count;
    return count;
}

void weir__chunk_turn(struct weir__chunks *chunks, uint64_t chunk, enum weir__chunk_state state)
{
    uint64_t *word = &chunks->table[chunk].word;
    uint64_t value = weir__word_load(word);
    enum weir__chunk_state before = weir__chunk_state(chunks, chunk);

    WEIR_ASSERT(chunk < chunks->ready_count);
    WEIR_ASSERT(state != before);
    WEIR_CHECK(chunks->table[chunk].placed == 0); /* C5 */
    if (weir__chunk_is_ready(chunks, chunk))
        weir__chunk_unmake_ready(chunks, chunk);

    if (chunk_is_queued(before))
        chunk_queue_remove(chunks, &chunks->queues[before], chunk_state_links, chunk);
    if (chunk_is_queued(state))
        chunk_queue_append(chunks, &chunks->queues[state], chunk_state_links, chunk);
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
    if (chunk_kind(before) != chunk_kind(state)) {
        chunk_unlist(chunks, chunk, chunk_kind(before));
        chunk_list(chunks, chunk, chunk_kind(state));
    }
}

void weir__chunk_make_ready(struct weir__chunks *chunks, uint64_t chunk)
{
    WEIR_ASSERT(weir__chunk_state(chunks, chunk) == CHUNK_FRESH);
    WEIR_ASSERT(!weir__chunk_is_ready(chunks, chunk));

    chunks->table[chunk].ready = 1;
    chunk_queue_append(chunks, &chunks->queues[CHUNK_FRESH], chunk_state_links, chunk);
    chunks->resident_count++;
}

void weir__chunk_unmake_ready(struct weir__chunks *chunks, uint64_t chunk)
{
    WEIR_ASSERT(weir__chunk_is_ready(chunks, chunk));

    chunks->table[chunk].ready = 0;
    chunk_queue_remove(chunks, &chunks->queues[CHUNK_FRESH], chunk_state_links, chunk);
    chunks->resident_count--;
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
        weir__chunk_add_live(chunks, i, chunk_overlap(i, offset, offset + space));
}

void weir__chunks_sub_live_many(struct weir__chunks *chunks, uint64_t offset, uint64_t space)
{
    for (uint64_t i = weir__chunk_of(offset); i <= chunk_last(offset, space); i++)
        weir__chunk_sub_live(chunks, i, chunk_overlap(i, offset, offset + space));
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
        if (weir__chunk_is_aside(chunks, i))
            weir__chunk_file(chunks, i);
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

uint64_t weir__chunks_absent(const struct weir__chunks *chunks, uint64_t offset, uint64_t space)
{
    uint64_t count = 0;

    for (uint64_t i = weir__chunk_of(offset); i <= chunk_last(offset, space); i++)
        count += weir__chunk_state(chunks, i) == CHUNK_FRESH && !weir__chunk_is_ready(chunks, i);
    return count;
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

static void chunk_audit_fill(const struct weir__chunks *chunks, uint64_t chunk)
{
    const struct weir__chunk *entry = &chunks->table[chunk];
    bool has_kind = chunk_kind(weir__chunk_state(chunks, chunk)) != CHUNK_KIND_COUNT;

    if (!has_kind)
        WEIR_CHECK(entry->fill == 0); /* C7 */
    else if (entry->fill < CHUNK_FILL_ROOM)
        WEIR_CHECK(entry->fill == chunk_fill(weir__chunk_live(chunks, chunk)) + 1);
}

static uint64_t chunk_audit_kind(const struct weir__chunks *chunks, enum weir__chunk_kind kind)
{
    uint64_t count = 0;

    for (uint64_t i = weir__chunks_emptiest(chunks, kind, CHUNK_NO); i != CHUNK_NO;
         i = weir__chunks_emptiest(chunks, kind, i)) {
        WEIR_CHECK(chunk_kind(weir__chunk_state(chunks, i)) == kind); /* C7 */
        count++;
    }
    WEIR_CHECK(count == weir__chunks_count(chunks, kind));
    for (uint32_t i = 0; i < CHUNK_FILL_COUNT; i++)
        WEIR_CHECK((chunks->fills[kind].bits >> i & 1) == (chunks->fills[kind].lists[i].count > 0));
    return count;
}

void weir__chunks_audit(const struct weir__chunks *chunks, uint64_t file_chunks)
{
    uint64_t counts[CHUNK_STATE_COUNT] = {0};
    uint64_t resident = 0;
    uint64_t pinned = 0;
    uint64_t listed = 0;
    uint64_t placed = 0;
    uint64_t ready = 0;

    for (uint64_t i = 0; i < file_chunks; i++) {
        enum weir__chunk_state state = weir__chunk_state(chunks, i);
        WEIR_CHECK(state != CHUNK_NONE && state < CHUNK_STATE_COUNT);
        WEIR_CHECK(weir__chunk_live(chunks, i) <= LAYOUT_CHUNK_BYTES);
        if (state == CHUNK_HOLE)
            WEIR_CHECK(weir__chunk_live(chunks, i) == 0); /* C6 */
        counts[state]++;
        resident += chunk_is_counted(state) || weir__chunk_is_ready(chunks, i);
        ready += weir__chunk_is_ready(chunks, i);
        if (weir__chunk_is_ready(chunks, i))
            WEIR_CHECK(state == CHUNK_FRESH); /* C2 */
        pinned += weir__chunk_pins(chunks, i) > 0;
        placed += chunks->table[i].placed > 0;
        if (chunks->table[i].placed > 0) {
            WEIR_CHECK(state == CHUNK_DIRTY); /* C5 */
            WEIR_CHECK(weir__chunk_pins(chunks, i) >= chunks->table[i].placed);
        }
        if (chunks->table[i].doubted != 0)
            WEIR_CHECK(chunks->table[i].placed > 0);
        listed += chunks->table[i].fill > 0 && !weir__chunk_is_aside(chunks, i);
        chunk_audit_fill(chunks, i);
    }
    for (uint32_t kind = 0; kind < CHUNK_KIND_COUNT; kind++)
        listed -= chunk_audit_kind(chunks, (enum weir__chunk_kind)kind);
    WEIR_CHECK(listed == 0);
    for (uint64_t i = file_chunks; i < chunks->ready_count; i++)
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
            WEIR_CHECK(weir__chunk_is_ready(chunks, i - 1) == (state == CHUNK_FRESH));
            queued++;
        }
        WEIR_CHECK(queued == chunks->queues[state].count);
        if (state == CHUNK_FRESH)
            WEIR_CHECK(queued == ready);
        if (chunk_is_queued((enum weir__chunk_state)state))
            WEIR_CHECK(queued == counts[state]);
    }
}
