/* SPDX-License-Identifier: MIT */
#ifndef WEIR_REGION_EXTENT_H
#define WEIR_REGION_EXTENT_H

/*
 * extent - the index of free extents: true best fit, lowest zone among equals
 *
 * Pure: no system calls, no allocation. Works on the entries of a region's
 * table; the links of a free entry lie in its key word.
 */

#include "base/bits.h"
#include "base/check.h"
#include "base/region_layout.h"

#include <stdbool.h>
#include <stdint.h>

#define EXTENT_BIN_COUNT     4096 /* exact sizes: 16, 32, ... 65536 bytes */
#define EXTENT_ZONE_COUNT    64
#define EXTENT_BIN_BYTES_MAX (EXTENT_BIN_COUNT * LAYOUT_GRANULE)
#define EXTENT_HEAD_BYTES    (EXTENT_BIN_COUNT * EXTENT_ZONE_COUNT * sizeof(uint32_t))

/* Extents in order of (length, offset). */
struct weir__extent_tree {
    struct weir__entry *entries; /* fixed */
    uint32_t root;
};

struct weir__extents {
    struct weir__extent_tree tree; /* of larger extents */
    uint32_t *heads;               /* [bin][zone], EXTENT_HEAD_BYTES of zeroes; fixed */
    uint64_t zone_bytes;           /* fixed; a power of two is not needed */
    uint64_t free_count;
    uint64_t free_bytes;
    uint64_t summary;                        /* bit i: bin_map[i] is not 0 */
    uint64_t bin_map[EXTENT_BIN_COUNT / 64]; /* bit j of word i: bin i * 64 + j is not empty */
    uint64_t zone_map[EXTENT_BIN_COUNT];     /* bit z: the bin's list of zone z is not empty */
};

void weir__extents_init(struct weir__extents *extents, struct weir__entry *entries, uint32_t *heads,
                        uint64_t bytes_max);

/* ---- Links -------------------------------------------------------------- */

enum weir__extent_side {
    EXTENT_LEFT,  /* in a list: previous; the low half */
    EXTENT_RIGHT, /* in a list: next */
};

static inline uint32_t weir__extent_link(const struct weir__extent_tree *tree, uint32_t index,
                                         enum weir__extent_side side)
{
    return weir__half_load(&tree->entries[index].key, side);
}

static inline void weir__extent_link_set(struct weir__extent_tree *tree, uint32_t index,
                                         enum weir__extent_side side, uint32_t to)
{
    weir__half_store(&tree->entries[index].key, side, to);
}

static inline void weir__extent_links_set(struct weir__extent_tree *tree, uint32_t index,
                                          uint32_t left, uint32_t right)
{
    weir__word_store(&tree->entries[index].key, (uint64_t)left | (uint64_t)right << 32);
}

static inline uint64_t weir__extent_offset(const struct weir__extent_tree *tree, uint32_t index)
{
    return weir__place_offset(weir__word_load(&tree->entries[index].place));
}

static inline uint64_t weir__extent_bytes(const struct weir__extent_tree *tree, uint32_t index)
{
    const struct weir__entry *entry = &tree->entries[index];

    return weir__entry_bytes_of(weir__word_load(&entry->place), weir__word_load(&entry->tag));
}

/* ---- Bins --------------------------------------------------------------- */

static inline uint32_t weir__extent_bin(uint64_t bytes)
{
    WEIR_ASSERT(bytes >= LAYOUT_GRANULE);
    WEIR_ASSERT(bytes <= EXTENT_BIN_BYTES_MAX);
    return (uint32_t)(bytes / LAYOUT_GRANULE) - 1;
}

static inline uint32_t *weir__extent_head(const struct weir__extents *extents, uint32_t bin,
                                          uint32_t zone)
{
    return &extents->heads[bin * EXTENT_ZONE_COUNT + zone];
}

static inline uint32_t weir__extent_zone(const struct weir__extents *extents, uint32_t index)
{
    uint64_t zone = weir__extent_offset(&extents->tree, index) / extents->zone_bytes;

    WEIR_ASSERT(zone < EXTENT_ZONE_COUNT);
    return (uint32_t)zone;
}

static inline void weir__extent_bin_insert(struct weir__extents *extents, uint32_t index,
                                           uint32_t bin)
{
    uint32_t zone = weir__extent_zone(extents, index);
    uint32_t *head = weir__extent_head(extents, bin, zone);

    weir__extent_links_set(&extents->tree, index, 0, *head);
    if (*head != 0)
        weir__extent_link_set(&extents->tree, *head, EXTENT_LEFT, index);
    *head = index;
    extents->zone_map[bin] |= UINT64_C(1) << zone;
    extents->bin_map[bin / 64] |= UINT64_C(1) << bin % 64;
    extents->summary |= UINT64_C(1) << bin / 64;
}

static inline void weir__extent_bin_remove(struct weir__extents *extents, uint32_t index,
                                           uint32_t bin)
{
    uint32_t previous = weir__extent_link(&extents->tree, index, EXTENT_LEFT);
    uint32_t next = weir__extent_link(&extents->tree, index, EXTENT_RIGHT);

    if (next != 0)
        weir__extent_link_set(&extents->tree, next, EXTENT_LEFT, previous);
    if (previous != 0) {
        weir__extent_link_set(&extents->tree, previous, EXTENT_RIGHT, next);
        return;
    }

    uint32_t zone = weir__extent_zone(extents, index);
    WEIR_ASSERT(*weir__extent_head(extents, bin, zone) == index);
    *weir__extent_head(extents, bin, zone) = next;
    if (next != 0)
        return;
    extents->zone_map[bin] &= ~(UINT64_C(1) << zone);
    if (extents->zone_map[bin] != 0)
        return;
    extents->bin_map[bin / 64] &= ~(UINT64_C(1) << bin % 64);
    if (extents->bin_map[bin / 64] == 0)
        extents->summary &= ~(UINT64_C(1) << bin / 64);
}

/* The first bin at or above @bin that is not empty; EXTENT_BIN_COUNT: none. */
static inline uint32_t weir__extent_bin_find(const struct weir__extents *extents, uint32_t bin)
{
    uint64_t word = extents->bin_map[bin / 64] & weir__bits_from(bin % 64);

    if (word != 0)
        return weir__round_down(bin, 64) + weir__lowest_bit(word);
    if (bin / 64 == 63)
        return EXTENT_BIN_COUNT;
    word = extents->summary & weir__bits_from(bin / 64 + 1);
    if (word == 0)
        return EXTENT_BIN_COUNT;
    bin = weir__lowest_bit(word);
    return bin * 64 + weir__lowest_bit(extents->bin_map[bin]);
}

/* ---- Tree --------------------------------------------------------------- */

/* Entry @index is an extent of it, or is none any more; its key word is the tree's. O(log n). */
void weir__extent_tree_insert(struct weir__extent_tree *tree, uint32_t index);
void weir__extent_tree_remove(struct weir__extent_tree *tree, uint32_t index);

/* The first that holds @space; 0: none. */
uint32_t weir__extent_tree_find(const struct weir__extent_tree *tree, uint64_t space);

/* What comes after @index; 0: nothing. */
uint32_t weir__extent_tree_next(const struct weir__extent_tree *tree, uint32_t index);

/* Whether one that is [offset, offset + bytes) from now on stays where it stands. */
bool weir__extent_tree_keeps_place(const struct weir__extent_tree *tree, uint32_t index,
                                   uint64_t offset, uint64_t bytes);

/* Walk it and check that all is in order (E3); how many there are, and their bytes. */
void weir__extent_tree_audit(const struct weir__extent_tree *tree, uint64_t *ret_count,
                             uint64_t *ret_bytes);

/* ---- The index ---------------------------------------------------------- */

/* Entry @index is a free extent now; offset and length are set, its key word becomes ours. */
static inline void weir__extents_insert(struct weir__extents *extents, uint32_t index)
{
    uint64_t bytes = weir__extent_bytes(&extents->tree, index);

    WEIR_ASSERT(index != 0);
    WEIR_ASSERT(bytes % LAYOUT_GRANULE == 0);

    extents->free_count++;
    extents->free_bytes += bytes;
    if (WEIR_LIKELY(bytes <= EXTENT_BIN_BYTES_MAX))
        weir__extent_bin_insert(extents, index, weir__extent_bin(bytes));
    else
        weir__extent_tree_insert(&extents->tree, index);
}

/* It is none any more, or its offset or length are about to change. */
static inline void weir__extents_remove(struct weir__extents *extents, uint32_t index)
{
    uint64_t bytes = weir__extent_bytes(&extents->tree, index);

    WEIR_ASSERT(index != 0);
    WEIR_ASSERT(extents->free_count > 0);

    extents->free_count--;
    extents->free_bytes -= bytes;
    if (WEIR_LIKELY(bytes <= EXTENT_BIN_BYTES_MAX))
        weir__extent_bin_remove(extents, index, weir__extent_bin(bytes));
    else
        weir__extent_tree_remove(&extents->tree, index);
}

/*
 * It is [offset, offset + bytes) from now on, which is set here. A long one that is
 * filled or emptied by small items nearly always stays where it stands.
 */
static inline void weir__extents_resize(struct weir__extents *extents, uint32_t index,
                                        uint64_t offset, uint64_t bytes)
{
    struct weir__extent_tree *tree = &extents->tree;
    struct weir__entry *entry = &tree->entries[index];
    uint64_t tag = weir__word_load(&entry->tag);
    uint64_t before = weir__extent_bytes(tree, index);
    bool is_alone = tree->root == index && weir__word_load(&entry->key) == 0;
    bool stays = weir__min(before, bytes) > EXTENT_BIN_BYTES_MAX &&
                 (is_alone || weir__extent_tree_keeps_place(tree, index, offset, bytes));

    if (stays)
        extents->free_bytes += bytes - before;
    else
        weir__extents_remove(extents, index);
    weir__word_store(&entry->place, weir__entry_place(offset, bytes));
    weir__word_store(&entry->tag,
                     weir__entry_tag(weir__tag_generation(tag), 0, weir__tag_state(tag), bytes));
    if (!stays)
        weir__extents_insert(extents, index);
}

/* The smallest that holds @space (whole granules), the lowest zone among equals; 0: none. */
static inline uint32_t weir__extents_find(const struct weir__extents *extents, uint64_t space)
{
    WEIR_ASSERT(space % LAYOUT_GRANULE == 0);
    WEIR_ASSERT(space > 0);

    if (extents->free_count == 0)
        return 0;
    if (WEIR_LIKELY(space <= EXTENT_BIN_BYTES_MAX)) {
        uint32_t bin = weir__extent_bin_find(extents, weir__extent_bin(space));
        if (bin < EXTENT_BIN_COUNT)
            return *weir__extent_head(extents, bin, weir__lowest_bit(extents->zone_map[bin]));
    }
    return extents->tree.root == 0 ? 0 : weir__extent_tree_find(&extents->tree, space);
}

/* How long the longest is; 0: there is none. */
uint64_t weir__extents_max(const struct weir__extents *extents);

/* The largest, at most @count_max of them in no useful order; how many. */
uint32_t weir__extents_largest(const struct weir__extents *extents, uint32_t *ret_indices,
                               uint32_t count_max);

/* Walk the index and check every invariant. */
void weir__extents_audit(const struct weir__extents *extents);

#endif
