/* SPDX-License-Identifier: MIT */
/*
 * compact - holes of chunks in memory become one before the file grows
 *
 *      | live | hole |a| hole | b | hole | live |      no hole is large enough
 *             |<--------- window -------->|
 *      | live |           free            | live |     a and b lie elsewhere
 *
 * Best fit leaves holes that are too small for what comes, and more of them when
 * sizes shift. So before the mark moves, a place is made: a row of neighbours,
 * holes and items, is cleared by moving its items to holes that fit them, all of
 * them or none. What a put moves is at most as much as it brings: its price is
 * bounded by its own size, and no chunk has to be emptied as a whole.
 *
 *      window       the cheapest row of extents that is long enough
 *      wall         what no window can hold: items that are pinned or under
 *                   construction, or longer than any hole; chunks that may not
 *                   be stored to
 *      targets      best fit, taken for all before the first byte is moved, while
 *                   the holes of the window stand in no index
 *
 * A window beside a wall leaves one remainder, one in the middle two, and what
 * is too short for the sizes that come is lost until they change again: so the
 * one in the middle costs its whole length more.
 *
 * Windows are looked for in one chunk after the other, in a round, from where
 * the last look ended, some extents at a time; only then around the largest
 * holes. No index is kept for this: put and free pay nothing.
 *
 * With little free there is nothing to be gained, and the file grows; so it does
 * for a while after some looks in vain, longer each time. Nothing here waits for I/O:
 * cold chunks are the cleaner's.
 *
 *   K1  what is moved in one call is at most COMPACT_BYTES_MAX, and at most the
 *       space that is asked for
 *   K2  an item is moved only if all of its window can be
 */
#include "region/region_state.h"

#include "base/bits.h"
#include "base/check.h"

#include <string.h>

#define COMPACT_NONE        UINT64_MAX
#define COMPACT_STEPS       128                   /* extents that are looked at at a time */
#define COMPACT_LOOK_MAX    UINT64_C(256)         /* chunks that are passed over at a time */
#define COMPACT_SWEEP_BYTES (UINT64_C(64) << 10)  /* for so many more there is one more look */
#define COMPACT_SEED_COUNT  4                     /* of the largest holes */
#define COMPACT_ITEMS_MAX   128                   /* moved at once */
#define COMPACT_BYTES_MAX   (UINT64_C(256) << 10) /* moved at once (K1) */
#define COMPACT_SPACE_MAX   (UINT64_C(1) << 20)   /* for larger items the file grows */
#define COMPACT_VAIN_COUNT  16 /* looks in vain in a row, then there is a pause */
#define COMPACT_PAUSE_MIN   (LAYOUT_CHUNK_BYTES / 16) /* of so much that the mark moves */
#define COMPACT_PAUSE_MAX   LAYOUT_CHUNK_BYTES

/* Extents in the order of the file: @first .. @last. */
struct compact_window {
    uint32_t first;
    uint32_t last;
    uint32_t item_count;
    uint64_t bytes;
    uint64_t moved_bytes; /* of these, live */
    bool is_at_wall;      /* it begins beside something that stays */
};

static const struct weir__entry *compact_entry(const struct weir_region *region, uint32_t index)
{
    return weir__region_entry(region, index);
}

/* ---- The window --------------------------------------------------------- */

/* Whether it can be in a window; of items, those that can be moved. */
static bool compact_may_take(const struct weir_region *region, uint32_t index, uint64_t target_max)
{
    const struct weir__entry *entry = compact_entry(region, index);
    enum weir__extent_state state = weir__entry_state(entry);

    if (state == EXTENT_FREE)
        return true;
    if (state != EXTENT_LIVE || weir__entry_space(entry) > target_max)
        return false;
    if (!weir__chunks_are_storable(&region->chunks, weir__entry_offset(entry),
                                   weir__entry_space(entry)))
        return false;
    if (weir__sync_is_confirmed(region, index))
        return false;
    struct weir_slot slot = {index, weir__entry_generation(entry)};
    return region->fetches.hold_count == 0 || !weir__fetches_are_held(region, slot);
}

static void compact_add(const struct weir_region *region, struct compact_window *window,
                        uint32_t index)
{
    const struct weir__entry *entry = compact_entry(region, index);
    uint64_t bytes = weir__entry_space(entry);
    bool is_live = weir__entry_state(entry) == EXTENT_LIVE;

    if (window->first == 0)
        window->first = index;
    window->last = index;
    window->bytes += bytes;
    window->moved_bytes += is_live ? bytes : 0;
    window->item_count += is_live;
}

/* It begins one extent later. */
static void compact_shorten(const struct weir_region *region, struct compact_window *window)
{
    const struct weir__entry *entry = compact_entry(region, window->first);
    uint64_t bytes = weir__entry_space(entry);
    bool is_live = weir__entry_state(entry) == EXTENT_LIVE;

    window->first = window->first == window->last ? 0 : weir__entry_next(entry);
    window->bytes -= bytes;
    window->moved_bytes -= is_live ? bytes : 0;
    window->item_count -= is_live;
    window->is_at_wall = false;
}

/* The bytes that are moved, and for a window in the middle of others its length. */
static uint64_t compact_cost(const struct compact_window *window, uint64_t space)
{
    return window->moved_bytes + (window->is_at_wall ? 0 : space);
}

static bool compact_is_better(const struct compact_window *window, uint64_t space,
                              const struct compact_window *best)
{
    return window->bytes >= space && window->item_count <= COMPACT_ITEMS_MAX &&
           window->moved_bytes <= weir__min(space, COMPACT_BYTES_MAX) &&
           (best->first == 0 || compact_cost(window, space) < compact_cost(best, space));
}

/*
 * A window of @space bytes slides from @from to the right over @steps extents,
 * or until one begins at @end; where it stopped, 0: at @end. It stops early at
 * one that costs no more than @good.
 */
static uint32_t compact_slide(const struct weir_region *region, uint32_t from, uint64_t end,
                              uint32_t steps, uint64_t space, uint64_t good,
                              struct compact_window *best)
{
    uint64_t target_max = weir__extents_max(&region->extents);
    uint32_t before = weir__entry_previous(compact_entry(region, from));
    struct compact_window window = {
        .is_at_wall = before == 0 || !compact_may_take(region, before, target_max),
    };
    uint32_t index = from;

    for (; index != 0 && steps > 0; steps--) {
        const struct weir__entry *entry = compact_entry(region, index);
        if (weir__entry_offset(entry) >= end)
            return 0;
        if (!compact_may_take(region, index, target_max)) {
            window = (struct compact_window){.is_at_wall = true};
            index = weir__entry_next(entry);
            continue;
        }
        compact_add(region, &window, index);
        while (window.bytes >= space) {
            if (compact_is_better(&window, space, best))
                *best = window;
            if (best->first != 0 && compact_cost(best, space) <= good)
                return best->first;
            compact_shorten(region, &window);
        }
        index = weir__entry_next(entry);
    }
    return window.first != 0 ? window.first : index;
}

/* ---- Where to look ------------------------------------------------------ */

/*
 * The next chunk in the order of the file, and in a round, that is no fuller than
 * the average; a chunk where nothing was found is so left alone for a round.
 */
static uint64_t compact_next_chunk(struct weir_region *region)
{
    struct weir__compactor *compactor = &region->compactor;
    uint64_t chunk_count = (region->mark_bytes + LAYOUT_CHUNK_BYTES - 1) / LAYOUT_CHUNK_BYTES;
    uint64_t full_count = (region->mark_bytes - region->resting_bytes) / LAYOUT_CHUNK_BYTES + 1;
    uint64_t live_max = weir__min(weir__region_live(region) / full_count, LAYOUT_CHUNK_BYTES - 1);

    for (uint64_t left = weir__min(chunk_count, COMPACT_LOOK_MAX); left > 0; left--) {
        uint64_t chunk = compactor->next_chunk < chunk_count ? compactor->next_chunk : 0;
        compactor->next_chunk = chunk + 1;
        if (weir__chunk_state(&region->chunks, chunk) == CHUNK_DIRTY &&
            weir__chunk_live(&region->chunks, chunk) <= live_max)
            return chunk;
    }
    return COMPACT_NONE;
}

/* Where the last look at this chunk ended, if that is still an extent of it. */
static uint32_t compact_cursor(const struct weir_region *region)
{
    const struct weir__compactor *compactor = &region->compactor;
    const struct weir__entry *entry = compact_entry(region, compactor->cursor);
    bool is_there = compactor->cursor != 0 && weir__entry_state(entry) != EXTENT_VACANT &&
                    weir__chunk_of(weir__entry_offset(entry)) == compactor->chunk;

    return is_there ? compactor->cursor : region->chunks.table[compactor->chunk].first;
}

/* A look at the next extents; what is no dearer than the average of the chunk is taken. */
static void compact_sweep(struct weir_region *region, uint64_t space, struct compact_window *best)
{
    struct weir__compactor *compactor = &region->compactor;

    if (compactor->chunk == COMPACT_NONE) {
        compactor->chunk = compact_next_chunk(region);
        compactor->cursor = 0;
    }
    if (compactor->chunk == COMPACT_NONE)
        return;

    uint64_t live = weir__chunk_live(&region->chunks, compactor->chunk);
    uint64_t end = (compactor->chunk + 1) * LAYOUT_CHUNK_BYTES;
    uint64_t good = space * live / LAYOUT_CHUNK_BYTES;
    compactor->cursor =
        compact_slide(region, compact_cursor(region), end, COMPACT_STEPS, space, good, best);
    if (compactor->cursor == 0)
        compactor->chunk = COMPACT_NONE;
}

/* Around @hole: it begins as far to the left as @space bytes reach. */
static void compact_look_around(struct weir_region *region, uint32_t hole, uint64_t space,
                                struct compact_window *best)
{
    uint64_t offset = weir__entry_offset(compact_entry(region, hole));
    uint64_t end = offset + weir__entry_space(compact_entry(region, hole));
    uint64_t begin = end > space ? end - space : 0;
    uint32_t from = hole;

    for (uint32_t i = 0; i < COMPACT_STEPS; i++) {
        uint32_t previous = weir__entry_previous(compact_entry(region, from));
        if (previous == 0 || weir__entry_offset(compact_entry(region, previous)) < begin)
            break;
        from = previous;
    }
    compact_slide(region, from, offset + space, 2 * COMPACT_STEPS, space, space / 8, best);
}

static struct compact_window compact_choose(struct weir_region *region, uint64_t space)
{
    struct compact_window best = {0};
    uint32_t seeds[COMPACT_SEED_COUNT];

    /* A larger item may look further, in proportion to what its put costs anyway. */
    uint64_t looks = 1 + weir__min(space, COMPACT_BYTES_MAX) / COMPACT_SWEEP_BYTES;
    for (; looks > 0 && best.first == 0; looks--)
        compact_sweep(region, space, &best);
    if (best.first != 0)
        return best;
    uint32_t count = weir__extents_largest(&region->extents, seeds, COMPACT_SEED_COUNT);
    for (uint32_t i = 0; i < count; i++)
        compact_look_around(region, seeds[i], space, &best);
    return best;
}

/* ---- Moving ------------------------------------------------------------- */

/* What of a window is held back or taken meanwhile. */
struct compact_work {
    uint32_t hole_count;
    uint32_t item_count;
    uint32_t holes[COMPACT_ITEMS_MAX + 1];
    uint32_t items[COMPACT_ITEMS_MAX];
    uint32_t targets[COMPACT_ITEMS_MAX];
};

/* A place outside of the window that is in memory; 0: none. */
static uint32_t compact_take(struct weir_region *region, uint32_t index)
{
    uint64_t space = weir__entry_space(compact_entry(region, index));
    uint64_t alignment = weir__entry_alignment(compact_entry(region, index));
    uint32_t target = weir__space_find(region, space, alignment);

    if (target == 0)
        return 0;
    uint64_t offset = weir__space_place(region, target, alignment);
    if (weir__chunks_fresh(&region->chunks, offset, space) > 0)
        return 0;
    return weir__space_take(region, target, space, alignment);
}

/* Holes of the window leave the index, so that no item is moved to one of them. */
static bool compact_prepare(struct weir_region *region, const struct compact_window *window,
                            struct compact_work *work)
{
    uint32_t index = window->first;
    uint32_t next;
    bool is_last;

    work->hole_count = 0;
    work->item_count = 0;
    do {
        const struct weir__entry *entry = compact_entry(region, index);
        next = weir__entry_next(entry);
        is_last = index == window->last;
        if (weir__entry_state(entry) == EXTENT_FREE) {
            work->holes[work->hole_count++] =
                weir__space_take(region, index, weir__entry_space(entry), LAYOUT_GRANULE);
        } else if (work->item_count < COMPACT_ITEMS_MAX) {
            work->targets[work->item_count] = 0;
            work->items[work->item_count++] = index;
        } else {
            return false;
        }
        index = next;
    } while (!is_last);

    for (uint32_t i = 0; i < work->item_count; i++) {
        work->targets[i] = compact_take(region, work->items[i]);
        if (work->targets[i] == 0)
            return false;
    }
    return true;
}

static void compact_move(struct weir_region *region, uint32_t index, uint32_t target, bool is_first)
{
    uint64_t from = weir__entry_offset(compact_entry(region, index));
    uint64_t to = weir__entry_offset(compact_entry(region, target));
    uint64_t bytes = weir__entry_bytes(compact_entry(region, index));

    memcpy(region->store.base + to, region->store.base + from, bytes);
    if (is_first)
        weir__space_move(region, index, target);
    else
        weir__space_move_next(region, index, target);
    region->compactor.moved_bytes += bytes;
}

static bool compact_run(struct weir_region *region, const struct compact_window *window)
{
    struct compact_work work;
    bool is_ready = compact_prepare(region, window, &work); /* K2 */

    for (uint32_t i = 0; i < work.item_count; i++) {
        if (is_ready)
            compact_move(region, work.items[i], work.targets[i], i == 0);
        else if (work.targets[i] != 0)
            weir__space_release(region, work.targets[i]);
    }
    for (uint32_t i = 0; i < work.hole_count; i++)
        weir__space_release(region, work.holes[i]);
    return is_ready;
}

/* After some looks in vain the mark moves first, further each time. */
static void compact_pause(struct weir_region *region, bool is_made)
{
    struct weir__compactor *compactor = &region->compactor;

    compactor->left_mark = region->mark_bytes;
    compactor->vain_count = is_made ? 0 : compactor->vain_count + 1;
    if (compactor->vain_count < COMPACT_VAIN_COUNT)
        compactor->pause_bytes = 0;
    else
        compactor->pause_bytes =
            weir__min(weir__max(2 * compactor->pause_bytes, COMPACT_PAUSE_MIN), COMPACT_PAUSE_MAX);
}

bool weir__compact_make_place(struct weir_region *region, uint64_t space)
{
    struct weir__compactor *compactor = &region->compactor;

    if (space > COMPACT_SPACE_MAX || !weir__compact_is_due(region))
        return false;
    /* A mark that came down is another one. */
    if (region->mark_bytes - compactor->left_mark < compactor->pause_bytes)
        return false;
    /* An aligned target may cut a hole in three. */
    if (weir__table_ready(region, region->spare_min + 2 * COMPACT_ITEMS_MAX) < 0)
        return false;

    struct compact_window window = compact_choose(region, space);
    bool is_made = window.first != 0 && compact_run(region, &window);
    compact_pause(region, is_made);
    return is_made;
}
