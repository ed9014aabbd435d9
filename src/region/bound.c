/* SPDX-License-Identifier: MIT */
/*
 * bound - how much of a region may be in memory, and how that changes
 *
 *      bound   --------.
 *                       '--.          what is held above its part is written back,
 *                           '----     dropped, given up: a little by each poll
 *      wish    --------.
 *                      '---------     set at once
 *
 * The memory has three parts: chunks, fetch buffers, the cleaner's buffer. Each has
 * a size that follows from the wish, and takes nothing more once it holds as much.
 * So on the way down what a part really bounds is the larger of the two, and neither
 * rises: the sum falls and never rises, and the owner may refund what it fell by.
 *
 * On the way up a part that still holds too much would be counted beside the others'
 * new sizes. So as long as that would be more than the owner knows of, the old sizes
 * stay (applied_bytes), and the wish waits for the part to come down.
 *
 *   B1  what is held is at most bound_bytes, at any moment
 *   B2  bound_bytes rises only to a wish
 *   B3  while nothing changes, bound, wish and applied are one, and each part holds no
 *       more than its size
 */
#include "region/region_state.h"

#include "base/bits.h"
#include "base/check.h"

#include <errno.h>

#define BOUND_FETCH_BYTES_LIMIT (UINT64_C(64) << 20)
#define BOUND_FETCH_BYTES_MIN   (UINT64_C(512) << 10)
#define BOUND_CLEAN_BYTES_LIMIT (UINT64_C(8) << 20)
#define BOUND_CLEAN_BYTES_MIN   (UINT64_C(1) << 20)
#define BOUND_STEP_BYTES        (UINT64_C(256) << 10)
#define BOUND_DROP_COUNT        2                     /* chunks, by one poll */
#define BOUND_SUM_BYTES         (UINT64_C(512) << 10) /* of checksums, beside those of any poll */

/*
 * An eighth for fetched items, a little for the cleaner, the rest for chunks. In
 * whole steps, so that no part gets smaller when the sum gets larger.
 */
struct weir__bound_split weir__bound_split(const struct weir_region *region, uint64_t bytes)
{
    uint64_t whole = weir__round_down(bytes, BOUND_STEP_BYTES);
    uint64_t fetch_bytes =
        weir__min(weir__min(whole, region->bytes_max) / 8, BOUND_FETCH_BYTES_LIMIT);
    uint64_t clean_bytes = weir__min(whole / 32, BOUND_CLEAN_BYTES_LIMIT);

    fetch_bytes = weir__max(fetch_bytes, BOUND_FETCH_BYTES_MIN);
    clean_bytes = weir__max(clean_bytes, BOUND_CLEAN_BYTES_MIN);
    return (struct weir__bound_split){
        .fetch_bytes = fetch_bytes,
        .clean_bytes = clean_bytes,
        .chunk_count = bytes == UINT64_MAX
                           ? UINT64_MAX / 2
                           : (whole - fetch_bytes - clean_bytes) / LAYOUT_CHUNK_BYTES,
    };
}

/* The sum of what bounds each part, if their sizes were those of @split. */
static uint64_t bound_sum(const struct weir_region *region, struct weir__bound_split split)
{
    uint64_t chunk_count = weir__max(split.chunk_count, region->chunks.resident_count);

    return chunk_count * LAYOUT_CHUNK_BYTES +
           weir__max(split.fetch_bytes, weir__fetches_bound(region)) +
           weir__max(split.clean_bytes, weir__clean_bytes(region));
}

static bool bound_is_over(const struct weir_region *region, struct weir__bound_split split)
{
    return region->chunks.resident_count > split.chunk_count ||
           weir__fetches_bound(region) > split.fetch_bytes ||
           weir__clean_bytes(region) > split.clean_bytes;
}

static void bound_apply(struct weir_region *region, uint64_t bytes)
{
    struct weir__bound_split split = weir__bound_split(region, bytes);

    region->bound.applied_bytes = bytes;
    region->chunks.resident_max = split.chunk_count;
    weir__fetches_resize(region, split.fetch_bytes);
    weir__clean_resize(region, split.clean_bytes);
}

/* Where the bound is now, and whether there is still something to be done. */
static void bound_look(struct weir_region *region)
{
    struct weir__bound *own = &region->bound;
    struct weir__bound_split split = weir__bound_split(region, own->wish_bytes);

    own->bound_bytes = weir__max(own->bound_bytes, own->wish_bytes); /* B2 */
    if (own->applied_bytes != own->wish_bytes && bound_sum(region, split) <= own->bound_bytes)
        bound_apply(region, own->wish_bytes);

    split = weir__bound_split(region, own->applied_bytes);
    uint64_t sum = weir__max(bound_sum(region, split), own->wish_bytes);
    WEIR_ASSERT(sum <= own->bound_bytes); /* B1 */
    own->bound_bytes = weir__min(sum, own->bound_bytes);
    own->is_changing = own->bound_bytes != own->wish_bytes ||
                       own->applied_bytes != own->wish_bytes || region->cleaner.is_resizing ||
                       bound_is_over(region, split);
}

int weir_region_set_resident(struct weir_region *region, uint64_t bytes)
{
    struct weir__bound *own = &region->bound;

    WEIR_ASSERT(pthread_equal(region->owner, pthread_self()));
    if (bytes < own->bytes_min || bytes > region->resident_bytes_max)
        return -EINVAL;
    if (bytes == own->wish_bytes)
        return 0;

    own->wish_bytes = bytes;
    if (bytes < own->applied_bytes)
        bound_apply(region, bytes);
    bound_look(region);
    return 0;
}

void weir__bound_advance(struct weir_region *region)
{
    const struct weir__chunks *chunks = &region->chunks;

    if (WEIR_LIKELY(!region->bound.is_changing))
        return;
    for (uint32_t left = BOUND_DROP_COUNT;
         left > 0 && chunks->resident_count > chunks->resident_max; left--)
        if (!weir__pager_drop(region))
            break;
    weir__pager_advance(region, BOUND_SUM_BYTES);
    weir__fetches_shrink(region);
    weir__clean_resize(region, weir__bound_split(region, region->bound.applied_bytes).clean_bytes);
    bound_look(region);
}

void weir__bound_audit(const struct weir_region *region)
{
    const struct weir__bound *own = &region->bound;
    struct weir__bound_split split = weir__bound_split(region, own->applied_bytes);

    if (own->wish_bytes == UINT64_MAX)
        return;
    WEIR_CHECK(own->applied_bytes <= own->wish_bytes);
    WEIR_CHECK(own->wish_bytes <= own->bound_bytes);
    WEIR_CHECK(bound_sum(region, split) <= own->bound_bytes); /* B1 */
    if (!own->is_changing)                                    /* B3 */
        WEIR_CHECK(own->bound_bytes == own->wish_bytes && !bound_is_over(region, split));
}

void weir__bound_init(struct weir_region *region, uint64_t bytes_max, uint64_t bytes_min)
{
    region->resident_bytes_max = bytes_max;
    region->bound = (struct weir__bound){
        .bytes_min = bytes_min != 0 ? bytes_min : bytes_max,
        .wish_bytes = bytes_max,
        .applied_bytes = bytes_max,
        .bound_bytes = bytes_max,
    };
}
