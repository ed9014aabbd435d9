/* SPDX-License-Identifier: MIT */
#ifndef WEIR_REGION_CHUNK_H
#define WEIR_REGION_CHUNK_H

/*
 * chunk - what of the file is in memory, in pieces of 2 MiB
 *
 * Pure book-keeping: states, queues, counts. What the kernel is told is in
 * store.
 */

#include "base/region_layout.h"

#include <stdbool.h>
#include <stdint.h>

enum weir__chunk_state {
    CHUNK_NONE,    /* not part of the file */
    CHUNK_FRESH,   /* reserved on disk, nothing stored, no memory unless ready; may be stored to */
    CHUNK_DIRTY,   /* in memory, newer than the disk; may be stored to */
    CHUNK_WRITING, /* in memory, on its way to the disk */
    CHUNK_CLEAN,   /* in memory and on disk */
    CHUNK_COLD,    /* on disk only */
    CHUNK_FILLING, /* on disk, being brought back to be stored to */
    CHUNK_HOLE,    /* nothing in it, no memory, no blocks: reserved again before it is stored to */
    CHUNK_STATE_COUNT,
};

/* In order of arrival; chunk numbers + 1, 0 ends. */
struct weir__chunk_queue {
    uint32_t head;
    uint32_t tail;
    uint32_t count;
};

/* Kinds of chunks of which somebody looks for the fullest or the emptiest. */
enum weir__chunk_kind {
    CHUNK_KIND_FRESH,
    CHUNK_KIND_DIRTY,
    CHUNK_KIND_WRITTEN, /* CLEAN and COLD */
    CHUNK_KIND_COUNT,
};

#define CHUNK_NO         UINT64_MAX
#define CHUNK_FILL_COUNT 64
#define CHUNK_FILL_BYTES (LAYOUT_CHUNK_BYTES / CHUNK_FILL_COUNT)
#define CHUNK_FILL_ASIDE UINT32_MAX
#define CHUNK_FILL_ROOM  (UINT32_MAX - 1) /* aside as well: something in it found no room */
#define CHUNK_FILL_MASK  (2 * LAYOUT_CHUNK_BYTES - CHUNK_FILL_BYTES) /* of live bytes */

_Static_assert((CHUNK_FILL_BYTES & (CHUNK_FILL_BYTES - 1)) == 0, "the lists part at a bit");

/* By live bytes: a list for each 32 KiB, and which of them are not empty. */
struct weir__chunk_fills {
    uint64_t bits;
    struct weir__chunk_queue lists[CHUNK_FILL_COUNT];
};

struct weir__chunks {
    struct weir__chunk *table;                          /* fixed */
    uint64_t ready_count;                               /* rows that have memory */
    uint64_t resident_max;                              /* in chunks; now: see bound */
    uint64_t resident_count;                            /* C1 */
    uint64_t pinned_count;                              /* C4 */
    uint64_t placed_count;                              /* C5 */
    uint64_t fresh_count;                               /* C6 */
    uint64_t hole_count;                                /* C6 */
    struct weir__chunk_queue queues[CHUNK_STATE_COUNT]; /* C2 */
    struct weir__chunk_fills fills[CHUNK_KIND_COUNT];   /* C7 */
};

static inline uint64_t weir__chunk_of(uint64_t offset)
{
    return offset / LAYOUT_CHUNK_BYTES;
}

static inline enum weir__chunk_state weir__chunk_state(const struct weir__chunks *chunks,
                                                       uint64_t chunk)
{
    return (enum weir__chunk_state)weir__chunk_word_state(
        weir__word_load(&chunks->table[chunk].word));
}

static inline bool weir__chunk_is_storable(enum weir__chunk_state state)
{
    return state == CHUNK_FRESH || state == CHUNK_DIRTY;
}

static inline bool weir__chunk_is_resident(enum weir__chunk_state state)
{
    return state == CHUNK_DIRTY || state == CHUNK_WRITING || state == CHUNK_CLEAN;
}

static inline uint32_t weir__chunk_live(const struct weir__chunks *chunks, uint64_t chunk)
{
    return weir__chunk_word_live(weir__word_load(&chunks->table[chunk].word));
}

static inline uint32_t weir__chunk_pins(const struct weir__chunks *chunks, uint64_t chunk)
{
    return weir__chunk_word_pins(weir__word_load(&chunks->table[chunk].word));
}

/* Change its state, and with it queue, list and resident count. */
void weir__chunk_turn(struct weir__chunks *chunks, uint64_t chunk, enum weir__chunk_state state);

/* It is FRESH, and gets its memory before it is stored to; or that is given up again. */
void weir__chunk_make_ready(struct weir__chunks *chunks, uint64_t chunk);
void weir__chunk_unmake_ready(struct weir__chunks *chunks, uint64_t chunk);

static inline bool weir__chunk_is_ready(const struct weir__chunks *chunks, uint64_t chunk)
{
    return chunks->table[chunk].ready != 0;
}

/* How many are in memory and not on disk, as the kernel sees it: what is ready is, too. */
static inline uint64_t weir__chunks_dirty(const struct weir__chunks *chunks)
{
    return (uint64_t)chunks->queues[CHUNK_DIRTY].count + chunks->queues[CHUNK_WRITING].count +
           chunks->queues[CHUNK_FRESH].count;
}

/* Whether [offset, offset + space) lies in one chunk, as nearly every item does. */
static inline bool weir__chunk_is_one(uint64_t offset, uint64_t space)
{
    WEIR_ASSERT(space > 0);
    return weir__chunk_of(offset) == weir__chunk_of(offset + space - 1);
}

/*
 * The chunk with the fewest live bytes of this kind, to 32 KiB; of several the one
 * that is so for longest. @chunk is the answer before, for the next one, or
 * CHUNK_NO; so is the answer at the end. O(1) each.
 */
uint64_t weir__chunks_emptiest(const struct weir__chunks *chunks, enum weir__chunk_kind kind,
                               uint64_t chunk);

/* The same from the other end. */
uint64_t weir__chunks_fullest(const struct weir__chunks *chunks, enum weir__chunk_kind kind,
                              uint64_t chunk);

static inline bool weir__chunk_is_aside(const struct weir__chunks *chunks, uint64_t chunk)
{
    return chunks->table[chunk].fill >= CHUNK_FILL_ROOM;
}

/* How many of this kind stand in the lists. */
uint64_t weir__chunks_count(const struct weir__chunks *chunks, enum weir__chunk_kind kind);

/* Nobody is told of it again before something in it is freed or unpinned, or its state changes. */
void weir__chunk_set_aside(struct weir__chunks *chunks, uint64_t chunk);

/* The same, until there is room elsewhere, too: who knows of that files it again. */
void weir__chunk_set_aside_for_room(struct weir__chunks *chunks, uint64_t chunk);

static inline bool weir__chunk_lacks_room(const struct weir__chunks *chunks, uint64_t chunk)
{
    return chunks->table[chunk].fill == CHUNK_FILL_ROOM;
}

/* It stands in the list where it belongs: its live bytes have passed a border, or it was set aside. */
void weir__chunk_file(struct weir__chunks *chunks, uint64_t chunk);

static inline void weir__chunk_add_live(struct weir__chunks *chunks, uint64_t chunk, uint64_t bytes)
{
    struct weir__chunk *entry = &chunks->table[chunk];
    uint64_t before = weir__word_load(&entry->word);

    weir__word_store(&entry->word, before + bytes);
    if (WEIR_UNLIKELY(((before ^ (before + bytes)) & CHUNK_FILL_MASK) != 0))
        weir__chunk_file(chunks, chunk);
}

static inline void weir__chunk_sub_live(struct weir__chunks *chunks, uint64_t chunk, uint64_t bytes)
{
    struct weir__chunk *entry = &chunks->table[chunk];
    uint64_t before = weir__word_load(&entry->word);

    WEIR_ASSERT(weir__chunk_word_live(before) >= bytes);
    weir__word_store(&entry->word, before - bytes);
    if (WEIR_UNLIKELY(((before ^ (before - bytes)) & CHUNK_FILL_MASK) != 0 ||
                      entry->fill >= CHUNK_FILL_ROOM))
        weir__chunk_file(chunks, chunk);
}

/* The space of [offset, offset + space) became live, or stopped being so. */
void weir__chunks_add_live_many(struct weir__chunks *chunks, uint64_t offset, uint64_t space);
void weir__chunks_sub_live_many(struct weir__chunks *chunks, uint64_t offset, uint64_t space);

static inline void weir__chunks_add_live(struct weir__chunks *chunks, uint64_t offset,
                                         uint64_t space)
{
    if (WEIR_LIKELY(weir__chunk_is_one(offset, space)))
        weir__chunk_add_live(chunks, weir__chunk_of(offset), space);
    else
        weir__chunks_add_live_many(chunks, offset, space);
}

static inline void weir__chunks_sub_live(struct weir__chunks *chunks, uint64_t offset,
                                         uint64_t space)
{
    if (WEIR_LIKELY(weir__chunk_is_one(offset, space)))
        weir__chunk_sub_live(chunks, weir__chunk_of(offset), space);
    else
        weir__chunks_sub_live_many(chunks, offset, space);
}

/* All chunks of [offset, offset + space) get a pin more, or less. */
void weir__chunks_pin(struct weir__chunks *chunks, uint64_t offset, uint64_t space);
void weir__chunks_unpin(struct weir__chunks *chunks, uint64_t offset, uint64_t space);

/*
 * An item in [offset, offset + space) is filled in place by its owner, or is not
 * any more: meanwhile its chunks are pinned and stay DIRTY (C5).
 */
void weir__chunks_place(struct weir__chunks *chunks, uint64_t offset, uint64_t space);
void weir__chunks_unplace(struct weir__chunks *chunks, uint64_t offset, uint64_t space);

/* How many chunks of [offset, offset + space) have nothing in place yet. */
uint64_t weir__chunks_unplaced(const struct weir__chunks *chunks, uint64_t offset, uint64_t space);

/* Whether all of [offset, offset + space) is in memory; may be stored to. */
bool weir__chunks_are_resident_many(const struct weir__chunks *chunks, uint64_t offset,
                                    uint64_t space);
bool weir__chunks_are_storable(const struct weir__chunks *chunks, uint64_t offset, uint64_t space);

static inline bool weir__chunks_are_resident(const struct weir__chunks *chunks, uint64_t offset,
                                             uint64_t space)
{
    if (WEIR_LIKELY(weir__chunk_is_one(offset, space)))
        return weir__chunk_is_resident(weir__chunk_state(chunks, weir__chunk_of(offset)));
    return weir__chunks_are_resident_many(chunks, offset, space);
}

/* How many chunks of [offset, offset + space) would come into memory by a store. */
uint64_t weir__chunks_absent(const struct weir__chunks *chunks, uint64_t offset, uint64_t space);

/* How many would be begun by it: those, and what is ready. */
uint64_t weir__chunks_fresh_many(const struct weir__chunks *chunks, uint64_t offset,
                                 uint64_t space);

static inline uint64_t weir__chunks_fresh(const struct weir__chunks *chunks, uint64_t offset,
                                          uint64_t space)
{
    if (WEIR_LIKELY(weir__chunk_is_one(offset, space)))
        return weir__chunk_state(chunks, weir__chunk_of(offset)) == CHUNK_FRESH;
    return weir__chunks_fresh_many(chunks, offset, space);
}

/* A store touches [offset, offset + space): FRESH becomes DIRTY. */
void weir__chunks_touch_many(struct weir__chunks *chunks, uint64_t offset, uint64_t space);

static inline void weir__chunks_touch(struct weir__chunks *chunks, uint64_t offset, uint64_t space)
{
    if (weir__chunk_is_one(offset, space) &&
        weir__chunk_state(chunks, weir__chunk_of(offset)) == CHUNK_DIRTY)
        return;
    weir__chunks_touch_many(chunks, offset, space);
}

/* Walk and check every invariant; all chunks from @file_chunks on must be NONE. */
void weir__chunks_audit(const struct weir__chunks *chunks, uint64_t file_chunks);

#endif
