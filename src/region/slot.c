/* SPDX-License-Identifier: MIT */
/*
 * slot - how entries are handed out
 *
 *      0   1 ............ used_count ............ ready_count ........ count_max
 *      -   | in use, recent, or a bit | have memory | reserved addresses |
 *
 *      level 1             1                   0          ...
 *      level 0   0110...0010  0000...0000  0000...0000    ...   vacant entries
 *
 * An entry that comes free is recent: it is in the cache and the next to be taken.
 * When there are too many the oldest get a bit, and when there are none the
 * lowest that have one are recent. So what comes free one by one is used again at
 * once, and what came free in great number, in whatever order, is taken in
 * ascending order: a row of entries beside each other, as the items will lie
 * beside each other, which the caches see coming. A stack of all would hand
 * them out at random for ever after.
 *
 * Each level has a bit for each word of the level below that is not 0, so the
 * lowest is found by six find-first-set at most; nearly always a change ends at
 * the first.
 *
 *   S1  the generation of a live slot, or of one freed since a sync, is odd, that
 *       of any other entry even
 *   S2  an entry is recent or has a bit exactly when it is vacant, and never both
 *   S3  generations go on from the first, SLOT_AGE_MAX far: then the entry is spent and never
 *       handed out again. After a power loss the first is another, further on, and with it
 *       begins whatever comes next in an entry
 *   S4  a bit above is set exactly when its word below is not 0
 */
#include "region/slot.h"

#include "base/bits.h"
#include "base/check.h"

#include <string.h>

#define SLOT_SPILL_COUNT (SLOT_RECENT_COUNT / 2)

_Static_assert(SLOT_COUNT_LIMIT < UINT64_C(1) << 6 * SLOT_LEVEL_COUNT, "the last level is a word");

void weir__slots_lay(struct weir__slots *slots, uint64_t *words)
{
    for (uint32_t level = 0; level < SLOT_LEVEL_COUNT; level++) {
        slots->levels[level] = words;
        words += weir__slots_words((uint64_t)slots->count_max + 1, level);
    }
}

static void slot_mark(struct weir__slots *slots, uint64_t bit)
{
    for (uint32_t level = 0; level < SLOT_LEVEL_COUNT; level++, bit /= 64) {
        uint64_t *word = &slots->levels[level][bit / 64];
        uint64_t before = *word;
        *word = before | UINT64_C(1) << bit % 64;
        if (before != 0)
            return;
    }
}

/* The word @at of the first level is 0 now. */
static void slot_unmark_word(struct weir__slots *slots, uint64_t at)
{
    for (uint32_t level = 1; level < SLOT_LEVEL_COUNT; level++, at /= 64) {
        uint64_t *word = &slots->levels[level][at / 64];
        *word &= ~(UINT64_C(1) << at % 64);
        if (*word != 0)
            return;
    }
}

/* Of the first level, that is not 0. */
static uint64_t slot_lowest_word(const struct weir__slots *slots)
{
    uint64_t at = 0;

    for (uint32_t level = SLOT_LEVEL_COUNT - 1; level > 0; level--)
        at = at * 64 + weir__lowest_bit(slots->levels[level][at]);
    return at;
}

void weir__slots_refill(struct weir__slots *slots)
{
    WEIR_ASSERT(slots->recent_count == 0 && slots->vacant_count > 0);

    uint64_t at = slot_lowest_word(slots);
    uint64_t *word = &slots->levels[0][at];
    uint32_t count = (uint32_t)weir__min((uint64_t)__builtin_popcountll(*word), SLOT_SPILL_COUNT);

    /* The lowest is on top. */
    for (uint32_t i = count; i > 0; i--) {
        uint32_t index = (uint32_t)(at * 64) + weir__lowest_bit(*word);
        slots->recent[i - 1] = index;
        __builtin_prefetch(&slots->entries[index], 1);
        *word &= *word - 1;
    }
    slots->recent_count = count;
    slots->vacant_count -= count;
    if (*word == 0)
        slot_unmark_word(slots, at);
}

void weir__slots_spill(struct weir__slots *slots)
{
    WEIR_ASSERT(slots->recent_count == SLOT_RECENT_COUNT);

    for (uint32_t i = 0; i < SLOT_SPILL_COUNT; i++)
        slot_mark(slots, slots->recent[i]);
    slots->vacant_count += SLOT_SPILL_COUNT;
    slots->recent_count -= SLOT_SPILL_COUNT;
    memcpy(slots->recent, slots->recent + SLOT_SPILL_COUNT,
           slots->recent_count * sizeof(slots->recent[0]));
}

/* ---- Audit -------------------------------------------------------------- */

static bool slot_is_marked(const struct weir__slots *slots, uint32_t level, uint64_t bit)
{
    return (slots->levels[level][bit / 64] >> bit % 64 & 1) != 0;
}

static uint64_t slot_audit_word(const struct weir__slots *slots, uint64_t at)
{
    uint64_t count = 0;

    for (uint64_t bits = slots->levels[0][at]; bits != 0; bits &= bits - 1) {
        uint64_t index = at * 64 + weir__lowest_bit(bits);
        WEIR_CHECK(index > 0 && index <= slots->used_count);
        WEIR_CHECK(weir__entry_state(&slots->entries[index]) == EXTENT_VACANT); /* S2 */
        count++;
    }
    return count;
}

void weir__slots_audit(const struct weir__slots *slots)
{
    uint64_t ready = (uint64_t)slots->ready_count + 1;
    uint64_t vacant_count = 0;

    for (uint32_t i = 0; i < slots->recent_count; i++) {
        WEIR_CHECK(weir__entry_state(&slots->entries[slots->recent[i]]) == EXTENT_VACANT); /* S2 */
        WEIR_CHECK(!slot_is_marked(slots, 0, slots->recent[i]));
    }
    for (uint64_t at = 0; at < weir__slots_words(ready, 0); at++)
        vacant_count += slot_audit_word(slots, at);
    WEIR_CHECK(vacant_count == slots->vacant_count);
    for (uint32_t level = 1; level < SLOT_LEVEL_COUNT; level++)
        for (uint64_t i = 0; i < weir__slots_words(ready, level - 1); i++) /* S4 */
            WEIR_CHECK(slot_is_marked(slots, level, i) == (slots->levels[level - 1][i] != 0));
}
