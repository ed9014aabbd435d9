/* SPDX-License-Identifier: MIT */
/*
 * ranges - what of a region is memory, and on which nodes it lies
 *
 * Addresses by far outnumber pages: the mapping is as long as the file, the tables
 * as long as they may ever be. So chunks go by their state and tables by the
 * entries that have memory; an arena is asked for whole. Not here: buffers beyond
 * the arena, which are rare and gone soon.
 */
#include <weir/region.h>

#include "base/check.h"
#include "base/placement.h"
#include "region/region_state.h"

#define RANGES_COUNT 8

/* Not payload, which goes by chunks. */
static size_t ranges_list(const struct weir_region *region, struct weir__range *ret_ranges)
{
    const struct weir__slots *slots = &region->slots;
    const uint64_t entries = (uint64_t)slots->ready_count + 1;
    const struct weir__range ranges[RANGES_COUNT] = {
        {region, sizeof(*region)},
        {region->header,
         LAYOUT_HEADER_BYTES + region->chunks.ready_count * sizeof(struct weir__chunk)},
        {slots->entries, entries * sizeof(*slots->entries)},
        {slots->sums, entries * sizeof(*slots->sums)},
        {slots->levels[0], weir__slots_words(entries, 0) * sizeof(*slots->levels[0])},
        {region->extents.heads, EXTENT_HEAD_BYTES},
        {region->fetches.arena.base, region->fetches.arena.count * ARENA_PAGE_BYTES},
        {region->cleaner.buffer, region->cleaner.buffer_bytes},
    };
    size_t count = 0;

    for (size_t i = 0; i < RANGES_COUNT; i++)
        if (ranges[i].base != NULL)
            ret_ranges[count++] = ranges[i];
    return count;
}

static bool ranges_has_chunk(const struct weir_region *region, uint64_t chunk)
{
    enum weir__chunk_state state = weir__chunk_state(&region->chunks, chunk);

    return weir__chunk_is_resident(state) || state == CHUNK_FILLING ||
           weir__chunk_is_ready(&region->chunks, chunk);
}

int weir_region_placement(const struct weir_region *region, struct weir_placement *ret_placement)
{
    struct weir__range ranges[RANGES_COUNT];
    struct weir_placement placement;
    const uint64_t chunk_count = region->store.file_bytes / LAYOUT_CHUNK_BYTES;
    const size_t range_count = ranges_list(region, ranges);
    uint64_t bytes = 0;
    int r = 0;

    WEIR_ASSERT(pthread_equal(region->owner, pthread_self()));

    for (size_t i = 0; i < range_count; i++)
        bytes += ranges[i].bytes;
    for (uint64_t chunk = 0; chunk < chunk_count; chunk++)
        bytes += ranges_has_chunk(region, chunk) ? LAYOUT_CHUNK_BYTES : 0;

    weir__placement_begin(&placement, bytes);
    for (size_t i = 0; i < range_count && r == 0; i++)
        r = weir__placement_add(&placement, ranges[i]);
    for (uint64_t chunk = 0; chunk < chunk_count && r == 0; chunk++)
        if (ranges_has_chunk(region, chunk))
            r = weir__placement_add(
                &placement, (struct weir__range){region->store.base + chunk * LAYOUT_CHUNK_BYTES,
                                                 LAYOUT_CHUNK_BYTES});
    if (r == 0)
        *ret_placement = placement;
    return r;
}
