/* SPDX-License-Identifier: MIT */
/*
 * slot - how entries are handed out
 *
 *      0   1 ........ used_count ........ ready_count ........ count_max
 *      -   | in use, or on the stack | have memory | reserved addresses |
 *
 * An entry that comes free goes onto a stack and is the next to be taken: the
 * stack is an array, so that taking needs no cold link, and entries further
 * down can be prefetched.
 *
 *   S1  the generation of a live slot, or of one freed since a sync, is odd, that
 *       of any other entry even
 *   S2  an entry is on the stack exactly when it is vacant
 *   S3  an entry whose generation is spent is never handed out again
 */
#include "region/slot.h"

#include "base/check.h"

#define SLOT_PREFETCH_COUNT 8

uint32_t weir__slots_take(struct weir__slots *slots)
{
    if (slots->vacant_count > 0) {
        uint32_t index = slots->vacant[--slots->vacant_count];
        if (slots->vacant_count >= SLOT_PREFETCH_COUNT) {
            uint32_t ahead = slots->vacant[slots->vacant_count - SLOT_PREFETCH_COUNT];
            __builtin_prefetch(&slots->entries[ahead], 1);
        }
        WEIR_ASSERT(weir__entry_state(&slots->entries[index]) == EXTENT_VACANT); /* S2 */
        return index;
    }

    WEIR_CHECK(slots->used_count < slots->ready_count);
    uint32_t index = ++slots->used_count;
    weir__word_store(&slots->entries[index].tag,
                     weir__entry_tag(slots->generation, 0, EXTENT_VACANT, 0));
    return index;
}

void weir__slots_give(struct weir__slots *slots, uint32_t index)
{
    struct weir__entry *entry = &slots->entries[index];
    uint32_t generation = weir__entry_generation(entry);

    WEIR_ASSERT(index != 0 && index <= slots->used_count);
    WEIR_ASSERT(generation % 2 == 0); /* S1 */

    weir__word_store(&entry->tag, weir__entry_tag(generation, 0, EXTENT_VACANT, 0));
    weir__word_store(&entry->place, 0);
    weir__word_store(&entry->span, 0);
    weir__word_store(&entry->key, 0);
    if (generation == slots->generation - 2) /* S3: the next round would repeat old handles */
        return;
    slots->vacant[slots->vacant_count++] = index;
}
