/* SPDX-License-Identifier: MIT */
#ifndef WEIR_REGION_EXTENT_H
#define WEIR_REGION_EXTENT_H

/*
 * extent - the index of free extents: true best fit, lowest zone among equals
 *
 * Pure: no system calls, no allocation. Works on the entries of a region's
 * table; the links of a free entry lie in its key word.
 */

#include "base/region_layout.h"

#include <stdbool.h>
#include <stdint.h>

#define EXTENT_BIN_COUNT  4096 /* exact sizes: 16, 32, ... 65536 bytes */
#define EXTENT_ZONE_COUNT 64
#define EXTENT_HEAD_BYTES (EXTENT_BIN_COUNT * EXTENT_ZONE_COUNT * sizeof(uint32_t))

struct weir__extents {
    struct weir__entry *entries; /* fixed */
    uint32_t *heads;             /* [bin][zone], EXTENT_HEAD_BYTES of zeroes; fixed */
    uint64_t zone_bytes;         /* fixed; a power of two is not needed */
    uint32_t root;               /* of the treap of larger extents */
    uint64_t free_count;
    uint64_t free_bytes;
    uint64_t summary;                        /* bit i: bin_map[i] is not 0 */
    uint64_t bin_map[EXTENT_BIN_COUNT / 64]; /* bit j of word i: bin i * 64 + j is not empty */
    uint64_t zone_map[EXTENT_BIN_COUNT];     /* bit z: the bin's list of zone z is not empty */
};

void weir__extents_init(struct weir__extents *extents, struct weir__entry *entries, uint32_t *heads,
                        uint64_t bytes_max);

/* Entry @index is a free extent now; offset and length are set, its key word becomes ours. */
void weir__extents_insert(struct weir__extents *extents, uint32_t index);

/* It is none any more, or its offset or length are about to change. */
void weir__extents_remove(struct weir__extents *extents, uint32_t index);

/* The smallest that holds @space (whole granules), the lowest zone among equals; 0: none. */
uint32_t weir__extents_find(const struct weir__extents *extents, uint64_t space);

/* How long the longest is; 0: there is none. */
uint64_t weir__extents_max(const struct weir__extents *extents);

/* The largest, at most @count_max of them in no useful order; how many. */
uint32_t weir__extents_largest(const struct weir__extents *extents, uint32_t *ret_indices,
                               uint32_t count_max);

/* Walk the index and check every invariant. */
void weir__extents_audit(const struct weir__extents *extents);

#endif
