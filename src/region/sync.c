/* SPDX-License-Identifier: MIT */
/*
 * sync - what survives a power loss
 *
 *      put  -->  committed  -- sync() -->  confirmed  -- free -->  freed  -- sync() -->  free
 *               survives kill -9          survives a power loss     still does           gone
 *
 * The kernel writes pages whenever it likes, so after a power loss the tables
 * hold any mixture of what they were since the last sync, and the data file
 * another. Three things make that harmless.
 *
 * Each item is compared with its checksum then, so what is not whole is not
 * taken for an item. What was confirmed cannot be anything but whole: its entry
 * and its checksum do not change while it lives, it is moved by a sync only (move.c;
 * else its new place could be on disk before its bytes), and its space is used for
 * nothing else, even when it is freed. And a freed item keeps all that it takes to
 * be one again, until the next sync: so what the last sync confirmed is there,
 * whatever of the frees since has reached the disk.
 *
 * The order in sync():
 *
 *      1  checksums for what has none      else the tables would promise what
 *      2  the payload                      nobody could check, or is not there
 *      3  the tables
 *      4  the count, and what has been     one word. Before it is on disk the last
 *         copied names its new place       sync is valid, after it this one: items
 *                                          freed before are told from those freed
 *                                          later by the count's parity. Of what is
 *                                          moved both places are whole
 *      5  what was freed is free, and
 *         old places are
 *
 * A failed write makes the kernel forget that the pages are newer than the disk.
 * So after an error all of it is stored anew, and the next sync begins again. If it
 * was the last flush, the disk may have either count. What is freed then is to be an
 * item again under both, so it has a state of its own, until the next sync has
 * written its tables, with the old count; that takes one flush more.
 *
 *   N2  freed_bytes is the space of the entries that are FREED
 *   N3  what is confirmed is LIVE or FREED, and lies where it did at the last sync that
 *       succeeded, or where the next that got so far has put it
 */
#include "region/region_state.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/sys.h"

#include <errno.h>
#include <string.h>

/* ---- Confirmed and freed ------------------------------------------------ */

uint64_t weir__sync_freed_tag(struct weir_region *region, uint32_t index)
{
    struct weir__named *named = &region->named;
    const struct weir__entry *entry = weir__region_entry(region, index);
    uint64_t tag = weir__word_load(&entry->tag);
    uint64_t bytes = weir__entry_bytes(entry);

    WEIR_ASSERT(weir__sync_is_confirmed(region, index));
    WEIR_ASSERT(weir__state_is_item(weir__tag_state(tag))); /* N3 */
    named->freed_bytes += weir__extent_space(bytes);
    return weir__tag_with(tag, named->is_doubted ? EXTENT_FREED_DOUBTED
                                                 : weir__state_freed(named->sync_count));
}

void weir__sync_release(struct weir_region *region, uint32_t index)
{
    if (!weir__state_is_freed(weir__entry_state(weir__region_entry(region, index))))
        weir__space_release(region, index);
}

/* What was freed before this sync is free now; who holds it gives it back later. */
static void sync_free(struct weir_region *region, uint32_t index)
{
    struct weir__entry *entry = weir__region_entry(region, index);
    uint64_t tag = weir__word_load(&entry->tag);
    uint64_t bytes = weir__entry_bytes(entry);
    uint32_t generation = weir__tag_generation(tag);

    region->named.freed_bytes -= weir__extent_space(bytes);
    weir__word_store(&entry->tag, weir__entry_tag(generation + 1, 0, EXTENT_ZOMBIE, bytes));
    if (!weir__fetches_are_held(region, (struct weir_slot){index, generation}))
        weir__space_release(region, index);
}

static void sync_free_all(struct weir_region *region)
{
    for (uint32_t index = 1; index <= region->slots.used_count && region->named.freed_bytes > 0;
         index++)
        if (weir__state_is_freed(weir__entry_state(weir__region_entry(region, index))))
            sync_free(region, index);
}

static int sync_make_bits(struct weir_region *region)
{
    struct weir__named *named = &region->named;
    uint64_t count = weir__round_up((uint64_t)region->slots.used_count + 1, 64);
    struct weir__marks *marks;

    if (count <= named->mark_count)
        return 0;
    marks = weir__heap_resize(&region->heap, named->marks, named->mark_count / 64 * sizeof(*marks),
                              count / 64 * sizeof(*marks));
    if (marks == NULL)
        return -ENOMEM;
    memset(marks + named->mark_count / 64, 0, (count - named->mark_count) / 64 * sizeof(*marks));
    named->marks = marks;
    named->mark_count = count;
    return 0;
}

/* What has no bit yet is no item: free extents that were split off meanwhile. */
static void sync_set_bits(struct weir_region *region)
{
    struct weir__named *named = &region->named;

    memset(named->marks, 0, named->mark_count / 64 * sizeof(*named->marks));
    for (uint32_t index = 1; index <= region->slots.used_count && index < named->mark_count;
         index++) {
        enum weir__extent_state state = weir__entry_state(weir__region_entry(region, index));
        bool is_confirmed = state == EXTENT_LIVE || state == weir__state_freed(named->sync_count);
        named->marks[index / 64].confirmed |= (uint64_t)is_confirmed << index % 64;
    }
}

int weir__sync_confirm(struct weir_region *region)
{
    int r = sync_make_bits(region);

    if (r == 0)
        sync_set_bits(region);
    return r;
}

uint32_t weir__sync_next_kept(const struct weir_region *region, uint32_t index, uint64_t end)
{
    if (region->named.mark_count == 0)
        return 0;
    while (index != 0 && weir__entry_offset(weir__region_entry(region, index)) < end) {
        if (weir__sync_is_confirmed(region, index) ||
            weir__entry_beside(weir__region_entry(region, index)) == BESIDE_OLD)
            return index;
        index = weir__entry_next(weir__region_entry(region, index));
    }
    return 0;
}

bool weir__sync_has_confirmed(const struct weir_region *region, uint64_t chunk)
{
    uint64_t end = (chunk + 1) * LAYOUT_CHUNK_BYTES;

    return weir__sync_next_kept(region, region->chunks.table[chunk].first, end) != 0;
}

/* ---- sync() ------------------------------------------------------------- */

/* An item without a checksum has bytes that were never written: they are in memory. */
static void sync_sum(struct weir_region *region)
{
    for (uint32_t index = 1; index <= region->slots.used_count; index++) {
        const struct weir__entry *entry = weir__region_entry(region, index);
        if (weir__entry_state(entry) == EXTENT_LIVE && region->slots.sums[index] == 0)
            weir__word_store(&region->slots.sums[index],
                             weir__sum(entry, region->store.base + weir__entry_offset(entry)));
    }
}

static int sync_tables(struct weir_region *region)
{
    int r = weir__sys_fdatasync(region->table_fd);

    if (r < 0)
        weir__table_renew(region);
    return r;
}

/* The pager's own description hears of errors too, but only if it writes. */
static int sync_data(struct weir_region *region)
{
    int r = weir__pager_in_doubt(region); /* a flush would not see it */

    if (r < 0)
        return r;
    r = weir__sys_fdatasync(region->named.sync_fd);
    if (r < 0)
        weir__pager_doubt(region, r);
    return r;
}

/* The disk has our count again: what was freed while nobody knew says the same. */
static int sync_end_doubt(struct weir_region *region)
{
    struct weir__named *named = &region->named;

    if (!named->is_doubted)
        return 0;
    named->is_doubted = false;
    for (uint32_t index = 1; index <= region->slots.used_count; index++) {
        struct weir__entry *entry = weir__region_entry(region, index);
        uint64_t tag = weir__word_load(&entry->tag);
        if (weir__tag_state(tag) == EXTENT_FREED_DOUBTED)
            weir__word_store(&entry->tag,
                             weir__tag_with(tag, weir__state_freed(named->sync_count)));
    }
    return sync_tables(region);
}

int weir_region_sync(struct weir_region *region)
{
    struct weir__named *named = &region->named;
    const struct weir__figures *figures = weir__region_figures(region);

    WEIR_CHECK(pthread_equal(region->owner, pthread_self()));
    if (!named->has_name)
        return -EOPNOTSUPP;

    int r = sync_make_bits(region);
    if (r < 0)
        return r;
    sync_sum(region);
    r = sync_data(region);
    if (r == 0)
        r = sync_tables(region);
    if (r == 0)
        r = sync_end_doubt(region);
    if (r < 0)
        return r;
    weir__move_switch(region);
    weir__word_store(&region->header->sync_count, named->sync_count + 1);
    r = sync_tables(region);
    if (r < 0) {
        weir__word_store(&region->header->sync_count, named->sync_count);
        named->is_doubted = true;
        return r;
    }

    named->sync_count++;
    sync_free_all(region);
    weir__move_settle(region);
    sync_set_bits(region);
    named->put_before = weir__word_load(&figures->put_bytes) - named->put_bytes;
    named->put_bytes += named->put_before;
    weir__clean_resume(region);
    return 0;
}

void weir_region_report(const struct weir_region *region, struct weir_region_report *ret_report)
{
    WEIR_ASSERT(pthread_equal(region->owner, pthread_self()));
    *ret_report = region->named.report;
    ret_report->sync_count = region->named.sync_count;
}
