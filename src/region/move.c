/* SPDX-License-Identifier: MIT */
/*
 * move - what sync() confirmed changes places with the next sync()
 *
 *      cleaner           sync(): payload, tables      the count            after it
 *      | a |    a'   ->  | a |    a'   on disk    ->  | -- |   a       ->  | free |  a
 *      the entry names   the entry                    the entry names      nobody needs
 *      the old place     as before                    the new place        the old place
 *
 * A confirmed item cannot be moved as others are: after a power loss its entry may
 * be that of now and its bytes those of then. So the cleaner copies it and the
 * entry says nothing of that. The next sync() has the copy on the disk with its
 * first flush, and with its second that the new place is nobody else's. Then the
 * entries name the new places, one aligned store each, and its last flush makes
 * that durable. Until that has ended either place may be the one that a power loss
 * leaves, and both are whole; then the old ones are free.
 *
 * No table remembers the pairs. The extent beside the item is a zombie, which
 * recovery throws away; its key names the item, and sync() looks at each entry
 * anyway. Whatever happens to the item in between makes of the copy a place to be
 * given back, and it is sync() that sees it: freed, pinned, damaged.
 *
 *   N4  moving_bytes is the space of the places beside; an item has at most one
 *       that is new, and a bit exactly then
 */
#include "region/region_state.h"
#include "region/space.h"

#include "base/check.h"

static void move_set_bit(struct weir_region *region, uint32_t index, bool is_moving)
{
    uint64_t *word = &region->named.marks[index / 64].moving;

    *word = (*word & ~(UINT64_C(1) << index % 64)) | (uint64_t)is_moving << index % 64;
}

static void move_set_kind(struct weir_region *region, uint32_t index, enum weir__beside kind)
{
    struct weir__entry *entry = weir__region_entry(region, index);

    weir__word_store(&entry->tag, weir__entry_tag(weir__entry_generation(entry), (uint16_t)kind,
                                                  EXTENT_ZOMBIE, weir__entry_space(entry)));
}

void weir__move_begin(struct weir_region *region, uint32_t index, uint32_t target)
{
    struct weir__named *named = &region->named;
    struct weir__entry *beside = weir__region_entry(region, target);

    WEIR_ASSERT(weir__sync_is_confirmed(region, index) && !weir__move_is_under_way(region, index));
    WEIR_ASSERT(weir__space_bytes(region, target) == weir__space_bytes(region, index));
    WEIR_ASSERT(weir__entry_generation(beside) % 2 == 0);

    weir__word_store(&beside->key,
                     (uint64_t)weir__entry_generation(weir__region_entry(region, index)) << 32 |
                         index);
    move_set_kind(region, target, BESIDE_NEW);
    move_set_bit(region, index, true);
    named->moving_bytes += weir__space_bytes(region, target);
    named->moving_count++;
}

/* Whether it is still the item that was copied, and nobody has an address of it. */
static bool move_is_good(const struct weir_region *region, struct weir_slot slot)
{
    return weir__slots_find(&region->slots, slot, EXTENT_LIVE) != NULL &&
           !weir__fetches_are_held(region, slot);
}

void weir__move_switch(struct weir_region *region)
{
    uint64_t left = region->named.moving_count;
    bool is_first = true;

    for (uint32_t index = 1; index <= region->slots.used_count && left > 0; index++) {
        const struct weir__entry *entry = weir__region_entry(region, index);
        enum weir__beside kind = weir__entry_beside(entry);
        if (kind == BESIDE_NOTHING)
            continue;
        left--;
        if (kind == BESIDE_OLD) /* of a sync that failed */
            continue;
        uint64_t key = weir__word_load(&entry->key);
        struct weir_slot slot = {(uint32_t)key, (uint32_t)(key >> 32)};
        if (move_is_good(region, slot)) {
            weir__space_trade(region, slot.index, index, is_first);
            is_first = false;
        }
        move_set_bit(region, slot.index, false);
        move_set_kind(region, index, BESIDE_OLD);
    }
    WEIR_CHECK(left == 0); /* N4 */
}

void weir__move_settle(struct weir_region *region)
{
    struct weir__named *named = &region->named;

    for (uint32_t index = 1; index <= region->slots.used_count && named->moving_count > 0;
         index++) {
        if (weir__entry_beside(weir__region_entry(region, index)) != BESIDE_OLD)
            continue;
        named->moving_bytes -= weir__space_bytes(region, index);
        named->moving_count--;
        move_set_kind(region, index, BESIDE_NOTHING);
        weir__space_release(region, index);
    }
}

void weir__move_audit(const struct weir_region *region)
{
    const struct weir__named *named = &region->named;
    uint64_t moving_bytes = 0;
    uint64_t moving_count = 0;
    uint64_t new_count = 0;
    uint64_t bit_count = 0;

    for (uint32_t index = 1; index <= region->slots.used_count; index++) {
        const struct weir__entry *entry = weir__region_entry(region, index);
        enum weir__beside kind = weir__entry_beside(entry);
        bit_count += weir__move_is_under_way(region, index);
        if (kind == BESIDE_NOTHING)
            continue;
        uint32_t item = (uint32_t)weir__word_load(&entry->key);
        moving_bytes += weir__entry_space(entry);
        moving_count++;
        new_count += kind == BESIDE_NEW;
        WEIR_CHECK(kind != BESIDE_NEW || weir__move_is_under_way(region, item));
    }
    WEIR_CHECK(moving_bytes == named->moving_bytes); /* N4 */
    WEIR_CHECK(moving_count == named->moving_count);
    WEIR_CHECK(new_count == bit_count);
}
