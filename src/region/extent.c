/* SPDX-License-Identifier: MIT */
/*
 * extent - how free extents are found again
 *
 *      16 B   32 B   48 B  ...  65536 B   larger
 *      |bin 0 |bin 1 |bin 2|...|bin 4095| treap by (length, offset)
 *
 * A bin holds extents of exactly one length, so the first bin at or above the
 * wanted one that is not empty is the best fit: two find-first-set over a
 * two-level bitmap. Inside a bin there is one list per zone of the file (a 64th
 * of bytes_max each); the lowest zone that is not empty serves first, last in
 * first out, so that live bytes drift left at no cost per extent. Above 64 KiB,
 * where the copy outweighs a walk, a treap (Seidel and Aragon, 1996) gives exact
 * best fit with the lowest offset among equals.
 *
 *   E1  an extent is in the bin of its length, or in the treap if it is longer
 *   E2  a bit is set exactly when its list, bin or word is not empty
 *   E3  treap: lengths and offsets in order, priorities in heap order
 */
#include "region/extent.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/random.h"

#define EXTENT_BIN_BYTES_MAX (EXTENT_BIN_COUNT * LAYOUT_GRANULE)

_Static_assert(EXTENT_BIN_COUNT == 64 * 64, "two levels of 64-bit words");
_Static_assert(EXTENT_ZONE_COUNT == 64, "one word of zones per bin");

/* ---- Links -------------------------------------------------------------- */

enum extent_side {
    EXTENT_LEFT,  /* in a list: previous; the low half */
    EXTENT_RIGHT, /* in a list: next */
};

static uint32_t extent_link(const struct weir__extents *extents, uint32_t index,
                            enum extent_side side)
{
    return weir__half_load(&extents->entries[index].key, side);
}

static void extent_link_set(struct weir__extents *extents, uint32_t index, enum extent_side side,
                            uint32_t to)
{
    weir__half_store(&extents->entries[index].key, side, to);
}

static void extent_links_set(struct weir__extents *extents, uint32_t index, uint32_t left,
                             uint32_t right)
{
    weir__word_store(&extents->entries[index].key, (uint64_t)left | (uint64_t)right << 32);
}

static uint64_t extent_offset(const struct weir__extents *extents, uint32_t index)
{
    return weir__place_offset(weir__word_load(&extents->entries[index].place));
}

static uint64_t extent_bytes(const struct weir__extents *extents, uint32_t index)
{
    const struct weir__entry *entry = &extents->entries[index];

    return weir__entry_bytes_of(weir__word_load(&entry->place), weir__word_load(&entry->tag));
}

/* ---- Bins --------------------------------------------------------------- */

static uint32_t extent_bin(uint64_t bytes)
{
    WEIR_ASSERT(bytes >= LAYOUT_GRANULE);
    WEIR_ASSERT(bytes <= EXTENT_BIN_BYTES_MAX);
    return (uint32_t)(bytes / LAYOUT_GRANULE) - 1;
}

static uint32_t *extent_head(const struct weir__extents *extents, uint32_t bin, uint32_t zone)
{
    return &extents->heads[bin * EXTENT_ZONE_COUNT + zone];
}

static uint32_t extent_zone(const struct weir__extents *extents, uint32_t index)
{
    uint64_t zone = extent_offset(extents, index) / extents->zone_bytes;

    WEIR_ASSERT(zone < EXTENT_ZONE_COUNT);
    return (uint32_t)zone;
}

static void extent_bin_insert(struct weir__extents *extents, uint32_t index, uint32_t bin)
{
    uint32_t zone = extent_zone(extents, index);
    uint32_t *head = extent_head(extents, bin, zone);

    extent_links_set(extents, index, 0, *head);
    if (*head != 0)
        extent_link_set(extents, *head, EXTENT_LEFT, index);
    *head = index;
    extents->zone_map[bin] |= UINT64_C(1) << zone;
    extents->bin_map[bin / 64] |= UINT64_C(1) << bin % 64;
    extents->summary |= UINT64_C(1) << bin / 64;
}

static void extent_bin_remove(struct weir__extents *extents, uint32_t index, uint32_t bin)
{
    uint32_t previous = extent_link(extents, index, EXTENT_LEFT);
    uint32_t next = extent_link(extents, index, EXTENT_RIGHT);

    if (next != 0)
        extent_link_set(extents, next, EXTENT_LEFT, previous);
    if (previous != 0) {
        extent_link_set(extents, previous, EXTENT_RIGHT, next);
        return;
    }

    uint32_t zone = extent_zone(extents, index);
    WEIR_ASSERT(*extent_head(extents, bin, zone) == index);
    *extent_head(extents, bin, zone) = next;
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
static uint32_t extent_bin_find(const struct weir__extents *extents, uint32_t bin)
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

/* ---- Treap -------------------------------------------------------------- */

static uint64_t extent_priority(uint32_t index)
{
    return weir__mix(index);
}

/* Whether (bytes, offset) stands before entry @index. */
static bool extent_before(const struct weir__extents *extents, uint64_t bytes, uint64_t offset,
                          uint32_t index)
{
    uint64_t other = extent_bytes(extents, index);

    return bytes != other ? bytes < other : offset < extent_offset(extents, index);
}

/* What points to a node: the root, or one side of another node. */
struct extent_place {
    uint32_t parent; /* 0: the root */
    enum extent_side side;
};

static uint32_t extent_at(const struct weir__extents *extents, struct extent_place place)
{
    return place.parent == 0 ? extents->root : extent_link(extents, place.parent, place.side);
}

static void extent_put_at(struct weir__extents *extents, struct extent_place place, uint32_t index)
{
    if (place.parent == 0)
        extents->root = index;
    else
        extent_link_set(extents, place.parent, place.side, index);
}

static void extent_treap_insert(struct weir__extents *extents, uint32_t index)
{
    uint64_t bytes = extent_bytes(extents, index);
    uint64_t offset = extent_offset(extents, index);
    uint64_t priority = extent_priority(index);
    struct extent_place place = {0, EXTENT_LEFT};
    uint32_t node = extents->root;

    while (node != 0 && extent_priority(node) >= priority) {
        place.parent = node;
        place.side = extent_before(extents, bytes, offset, node) ? EXTENT_LEFT : EXTENT_RIGHT;
        node = extent_at(extents, place);
    }
    extent_put_at(extents, place, index);

    /* What stood here is split into what comes before us and what comes after. */
    struct extent_place before = {index, EXTENT_LEFT};
    struct extent_place after = {index, EXTENT_RIGHT};
    extent_links_set(extents, index, 0, 0);
    while (node != 0) {
        if (extent_before(extents, bytes, offset, node)) {
            extent_put_at(extents, after, node);
            after = (struct extent_place){node, EXTENT_LEFT};
        } else {
            extent_put_at(extents, before, node);
            before = (struct extent_place){node, EXTENT_RIGHT};
        }
        node = extent_at(extents, node == after.parent ? after : before);
    }
    extent_put_at(extents, before, 0);
    extent_put_at(extents, after, 0);
}

static void extent_treap_remove(struct weir__extents *extents, uint32_t index)
{
    uint64_t bytes = extent_bytes(extents, index);
    uint64_t offset = extent_offset(extents, index);
    struct extent_place place = {0, EXTENT_LEFT};

    for (uint32_t node = extents->root; node != index; node = extent_at(extents, place)) {
        WEIR_ASSERT(node != 0);
        place.parent = node;
        place.side = extent_before(extents, bytes, offset, node) ? EXTENT_LEFT : EXTENT_RIGHT;
    }

    /* Our two sides are merged where we stood. */
    uint32_t left = extent_link(extents, index, EXTENT_LEFT);
    uint32_t right = extent_link(extents, index, EXTENT_RIGHT);
    while (left != 0 && right != 0) {
        if (extent_priority(left) >= extent_priority(right)) {
            extent_put_at(extents, place, left);
            place = (struct extent_place){left, EXTENT_RIGHT};
            left = extent_at(extents, place);
        } else {
            extent_put_at(extents, place, right);
            place = (struct extent_place){right, EXTENT_LEFT};
            right = extent_at(extents, place);
        }
    }
    extent_put_at(extents, place, left != 0 ? left : right);
}

static uint32_t extent_treap_find(const struct weir__extents *extents, uint64_t space)
{
    uint32_t best = 0;
    uint32_t node = extents->root;

    while (node != 0) {
        if (extent_bytes(extents, node) >= space) {
            best = node;
            node = extent_link(extents, node, EXTENT_LEFT);
        } else {
            node = extent_link(extents, node, EXTENT_RIGHT);
        }
    }
    return best;
}

/* ---- The index ---------------------------------------------------------- */

void weir__extents_init(struct weir__extents *extents, struct weir__entry *entries, uint32_t *heads,
                        uint64_t bytes_max)
{
    *extents = (struct weir__extents){
        .entries = entries,
        .heads = heads,
        .zone_bytes = weir__round_up(bytes_max, EXTENT_ZONE_COUNT) / EXTENT_ZONE_COUNT,
    };
}

void weir__extents_insert(struct weir__extents *extents, uint32_t index)
{
    uint64_t bytes = extent_bytes(extents, index);

    WEIR_ASSERT(index != 0);
    WEIR_ASSERT(bytes % LAYOUT_GRANULE == 0);

    extents->free_count++;
    extents->free_bytes += bytes;
    if (bytes <= EXTENT_BIN_BYTES_MAX)
        extent_bin_insert(extents, index, extent_bin(bytes));
    else
        extent_treap_insert(extents, index);
}

void weir__extents_remove(struct weir__extents *extents, uint32_t index)
{
    uint64_t bytes = extent_bytes(extents, index);

    WEIR_ASSERT(index != 0);
    WEIR_ASSERT(extents->free_count > 0);

    extents->free_count--;
    extents->free_bytes -= bytes;
    if (bytes <= EXTENT_BIN_BYTES_MAX)
        extent_bin_remove(extents, index, extent_bin(bytes));
    else
        extent_treap_remove(extents, index);
}

uint32_t weir__extents_find(const struct weir__extents *extents, uint64_t space)
{
    WEIR_ASSERT(space % LAYOUT_GRANULE == 0);
    WEIR_ASSERT(space > 0);

    if (space <= EXTENT_BIN_BYTES_MAX) {
        uint32_t bin = extent_bin_find(extents, extent_bin(space));
        if (bin < EXTENT_BIN_COUNT)
            return *extent_head(extents, bin, weir__lowest_bit(extents->zone_map[bin]));
    }
    return extent_treap_find(extents, space);
}

/* From the right: the longest first. */
static uint32_t extent_treap_largest(const struct weir__extents *extents, uint32_t node,
                                     uint32_t *ret_indices, uint32_t count, uint32_t count_max)
{
    if (node == 0 || count == count_max)
        return count;
    count = extent_treap_largest(extents, extent_link(extents, node, EXTENT_RIGHT), ret_indices,
                                 count, count_max);
    if (count == count_max)
        return count;
    ret_indices[count++] = node;
    return extent_treap_largest(extents, extent_link(extents, node, EXTENT_LEFT), ret_indices,
                                count, count_max);
}

static uint32_t extent_bin_largest(const struct weir__extents *extents, uint32_t bin,
                                   uint32_t *ret_indices, uint32_t count, uint32_t count_max)
{
    for (uint64_t zones = extents->zone_map[bin]; zones != 0; zones &= zones - 1) {
        uint32_t index = *extent_head(extents, bin, weir__lowest_bit(zones));
        for (; index != 0 && count < count_max; index = extent_link(extents, index, EXTENT_RIGHT))
            ret_indices[count++] = index;
    }
    return count;
}

uint64_t weir__extents_max(const struct weir__extents *extents)
{
    uint32_t index = 0;

    return weir__extents_largest(extents, &index, 1) > 0 ? extent_bytes(extents, index) : 0;
}

uint32_t weir__extents_largest(const struct weir__extents *extents, uint32_t *ret_indices,
                               uint32_t count_max)
{
    uint32_t count = extent_treap_largest(extents, extents->root, ret_indices, 0, count_max);

    for (uint64_t words = extents->summary; words != 0 && count < count_max;) {
        uint32_t word = weir__highest_bit(words);
        for (uint64_t bins = extents->bin_map[word]; bins != 0 && count < count_max;) {
            uint32_t bin = weir__highest_bit(bins);
            count = extent_bin_largest(extents, word * 64 + bin, ret_indices, count, count_max);
            bins &= ~(UINT64_C(1) << bin);
        }
        words &= ~(UINT64_C(1) << word);
    }
    return count;
}

/* ---- Audit -------------------------------------------------------------- */

static void extent_audit_bin(const struct weir__extents *extents, uint32_t bin, uint64_t *count,
                             uint64_t *bytes)
{
    for (uint32_t zone = 0; zone < EXTENT_ZONE_COUNT; zone++) {
        uint32_t index = *extent_head(extents, bin, zone);
        uint32_t previous = 0;

        WEIR_CHECK((index != 0) == (extents->zone_map[bin] >> zone & 1)); /* E2 */
        for (; index != 0; index = extent_link(extents, index, EXTENT_RIGHT)) {
            WEIR_CHECK(extent_bytes(extents, index) == (bin + 1) * LAYOUT_GRANULE); /* E1 */
            WEIR_CHECK(extent_zone(extents, index) == zone);
            WEIR_CHECK(extent_link(extents, index, EXTENT_LEFT) == previous);
            previous = index;
            (*count)++;
            *bytes += extent_bytes(extents, index);
        }
    }
}

static void extent_audit_treap(const struct weir__extents *extents, uint32_t node, uint64_t *count,
                               uint64_t *bytes)
{
    if (node == 0)
        return;

    uint32_t left = extent_link(extents, node, EXTENT_LEFT);
    uint32_t right = extent_link(extents, node, EXTENT_RIGHT);
    WEIR_CHECK(extent_bytes(extents, node) > EXTENT_BIN_BYTES_MAX); /* E1 */
    if (left != 0) {
        WEIR_CHECK(extent_priority(left) <= extent_priority(node)); /* E3 */
        WEIR_CHECK(extent_before(extents, extent_bytes(extents, left), extent_offset(extents, left),
                                 node));
    }
    if (right != 0) {
        WEIR_CHECK(extent_priority(right) <= extent_priority(node));
        WEIR_CHECK(!extent_before(extents, extent_bytes(extents, right),
                                  extent_offset(extents, right), node));
    }
    (*count)++;
    *bytes += extent_bytes(extents, node);
    extent_audit_treap(extents, left, count, bytes);
    extent_audit_treap(extents, right, count, bytes);
}

void weir__extents_audit(const struct weir__extents *extents)
{
    uint64_t count = 0;
    uint64_t bytes = 0;

    for (uint32_t bin = 0; bin < EXTENT_BIN_COUNT; bin++) {
        bool is_marked = extents->bin_map[bin / 64] >> bin % 64 & 1;
        WEIR_CHECK(is_marked == (extents->zone_map[bin] != 0)); /* E2 */
        if (is_marked)
            extent_audit_bin(extents, bin, &count, &bytes);
    }
    for (uint32_t i = 0; i < EXTENT_BIN_COUNT / 64; i++)
        WEIR_CHECK((extents->summary >> i & 1) == (extents->bin_map[i] != 0)); /* E2 */
    extent_audit_treap(extents, extents->root, &count, &bytes);
    WEIR_CHECK(count == extents->free_count);
    WEIR_CHECK(bytes == extents->free_bytes);
}
