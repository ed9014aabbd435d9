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

_Static_assert(EXTENT_BIN_COUNT == 64 * 64, "two levels of 64-bit words");
_Static_assert(EXTENT_ZONE_COUNT == 64, "one word of zones per bin");

/* ---- Treap -------------------------------------------------------------- */

static uint64_t extent_priority(uint32_t index)
{
    return weir__mix(index);
}

/* Whether (bytes, offset) stands before entry @index. */
static bool extent_before(const struct weir__extent_tree *tree, uint64_t bytes, uint64_t offset,
                          uint32_t index)
{
    uint64_t other = weir__extent_bytes(tree, index);

    return bytes != other ? bytes < other : offset < weir__extent_offset(tree, index);
}

/* What points to a node: the root, or one side of another node. */
struct extent_place {
    uint32_t parent; /* 0: the root */
    enum weir__extent_side side;
};

static uint32_t extent_at(const struct weir__extent_tree *tree, struct extent_place place)
{
    return place.parent == 0 ? tree->root : weir__extent_link(tree, place.parent, place.side);
}

static void extent_put_at(struct weir__extent_tree *tree, struct extent_place place, uint32_t index)
{
    if (place.parent == 0)
        tree->root = index;
    else
        weir__extent_link_set(tree, place.parent, place.side, index);
}

void weir__extent_tree_insert(struct weir__extent_tree *tree, uint32_t index)
{
    uint64_t bytes = weir__extent_bytes(tree, index);
    uint64_t offset = weir__extent_offset(tree, index);
    uint64_t priority = extent_priority(index);
    struct extent_place place = {0, EXTENT_LEFT};
    uint32_t node = tree->root;

    while (node != 0 && extent_priority(node) >= priority) {
        place.parent = node;
        place.side = extent_before(tree, bytes, offset, node) ? EXTENT_LEFT : EXTENT_RIGHT;
        node = extent_at(tree, place);
    }
    extent_put_at(tree, place, index);

    /* What stood here is split into what comes before us and what comes after. */
    struct extent_place before = {index, EXTENT_LEFT};
    struct extent_place after = {index, EXTENT_RIGHT};
    weir__extent_links_set(tree, index, 0, 0);
    while (node != 0) {
        if (extent_before(tree, bytes, offset, node)) {
            extent_put_at(tree, after, node);
            after = (struct extent_place){node, EXTENT_LEFT};
        } else {
            extent_put_at(tree, before, node);
            before = (struct extent_place){node, EXTENT_RIGHT};
        }
        node = extent_at(tree, node == after.parent ? after : before);
    }
    extent_put_at(tree, before, 0);
    extent_put_at(tree, after, 0);
}

void weir__extent_tree_remove(struct weir__extent_tree *tree, uint32_t index)
{
    uint64_t bytes = weir__extent_bytes(tree, index);
    uint64_t offset = weir__extent_offset(tree, index);
    struct extent_place place = {0, EXTENT_LEFT};

    for (uint32_t node = tree->root; node != index; node = extent_at(tree, place)) {
        WEIR_ASSERT(node != 0);
        place.parent = node;
        place.side = extent_before(tree, bytes, offset, node) ? EXTENT_LEFT : EXTENT_RIGHT;
    }

    /* Our two sides are merged where we stood. */
    uint32_t left = weir__extent_link(tree, index, EXTENT_LEFT);
    uint32_t right = weir__extent_link(tree, index, EXTENT_RIGHT);
    while (left != 0 && right != 0) {
        if (extent_priority(left) >= extent_priority(right)) {
            extent_put_at(tree, place, left);
            place = (struct extent_place){left, EXTENT_RIGHT};
            left = extent_at(tree, place);
        } else {
            extent_put_at(tree, place, right);
            place = (struct extent_place){right, EXTENT_LEFT};
            right = extent_at(tree, place);
        }
    }
    extent_put_at(tree, place, left != 0 ? left : right);
}

/* The node at the end of the links of @side, from @node on. */
static uint32_t extent_outermost(const struct weir__extent_tree *tree, uint32_t node,
                                 enum weir__extent_side side)
{
    for (uint32_t next = node; next != 0; next = weir__extent_link(tree, node, side))
        node = next;
    return node;
}

bool weir__extent_tree_keeps_place(const struct weir__extent_tree *tree, uint32_t index,
                                   uint64_t offset, uint64_t bytes)
{
    uint64_t bytes_before = weir__extent_bytes(tree, index);
    uint64_t offset_before = weir__extent_offset(tree, index);
    uint32_t lower = 0; /* the last before it in order, the first behind it; 0: none */
    uint32_t upper = 0;

    for (uint32_t node = tree->root; node != index;) {
        WEIR_ASSERT(node != 0);
        bool is_left = extent_before(tree, bytes_before, offset_before, node);
        if (is_left)
            upper = node;
        else
            lower = node;
        node = weir__extent_link(tree, node, is_left ? EXTENT_LEFT : EXTENT_RIGHT);
    }
    uint32_t left = weir__extent_link(tree, index, EXTENT_LEFT);
    uint32_t right = weir__extent_link(tree, index, EXTENT_RIGHT);
    lower = left != 0 ? extent_outermost(tree, left, EXTENT_RIGHT) : lower;
    upper = right != 0 ? extent_outermost(tree, right, EXTENT_LEFT) : upper;
    return (lower == 0 || !extent_before(tree, bytes, offset, lower)) &&
           (upper == 0 || extent_before(tree, bytes, offset, upper));
}

uint32_t weir__extent_tree_find(const struct weir__extent_tree *tree, uint64_t space)
{
    uint32_t best = 0;
    uint32_t node = tree->root;

    while (node != 0) {
        if (weir__extent_bytes(tree, node) >= space) {
            best = node;
            node = weir__extent_link(tree, node, EXTENT_LEFT);
        } else {
            node = weir__extent_link(tree, node, EXTENT_RIGHT);
        }
    }
    return best;
}

uint32_t weir__extent_tree_next(const struct weir__extent_tree *tree, uint32_t index)
{
    uint64_t bytes = weir__extent_bytes(tree, index);
    uint64_t offset = weir__extent_offset(tree, index);
    uint32_t best = 0;
    uint32_t node = tree->root;

    while (node != 0) {
        if (extent_before(tree, bytes, offset, node)) {
            best = node;
            node = weir__extent_link(tree, node, EXTENT_LEFT);
        } else {
            node = weir__extent_link(tree, node, EXTENT_RIGHT);
        }
    }
    return best;
}

/* ---- The index ---------------------------------------------------------- */

void weir__extents_init(struct weir__extents *extents, struct weir__entry *entries, uint32_t *heads,
                        uint64_t bytes_max)
{
    *extents = (struct weir__extents){
        .tree = {.entries = entries},
        .heads = heads,
        .zone_bytes = weir__round_up(bytes_max, EXTENT_ZONE_COUNT) / EXTENT_ZONE_COUNT,
    };
}

/* From the right: the longest first. */
static uint32_t extent_treap_largest(const struct weir__extent_tree *tree, uint32_t node,
                                     uint32_t *ret_indices, uint32_t count, uint32_t count_max)
{
    if (node == 0 || count == count_max)
        return count;
    count = extent_treap_largest(tree, weir__extent_link(tree, node, EXTENT_RIGHT), ret_indices,
                                 count, count_max);
    if (count == count_max)
        return count;
    ret_indices[count++] = node;
    return extent_treap_largest(tree, weir__extent_link(tree, node, EXTENT_LEFT), ret_indices,
                                count, count_max);
}

static uint32_t extent_bin_largest(const struct weir__extents *extents, uint32_t bin,
                                   uint32_t *ret_indices, uint32_t count, uint32_t count_max)
{
    for (uint64_t zones = extents->zone_map[bin]; zones != 0; zones &= zones - 1) {
        uint32_t index = *weir__extent_head(extents, bin, weir__lowest_bit(zones));
        for (; index != 0 && count < count_max;
             index = weir__extent_link(&extents->tree, index, EXTENT_RIGHT))
            ret_indices[count++] = index;
    }
    return count;
}

uint64_t weir__extents_max(const struct weir__extents *extents)
{
    uint32_t index = 0;

    return weir__extents_largest(extents, &index, 1) > 0 ? weir__extent_bytes(&extents->tree, index)
                                                         : 0;
}

uint32_t weir__extents_largest(const struct weir__extents *extents, uint32_t *ret_indices,
                               uint32_t count_max)
{
    uint32_t count =
        extent_treap_largest(&extents->tree, extents->tree.root, ret_indices, 0, count_max);

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
        uint32_t index = *weir__extent_head(extents, bin, zone);
        uint32_t previous = 0;

        WEIR_CHECK((index != 0) == (extents->zone_map[bin] >> zone & 1)); /* E2 */
        for (; index != 0; index = weir__extent_link(&extents->tree, index, EXTENT_RIGHT)) {
            WEIR_CHECK(weir__extent_bytes(&extents->tree, index) ==
                       (bin + 1) * LAYOUT_GRANULE); /* E1 */
            WEIR_CHECK(weir__extent_zone(extents, index) == zone);
            WEIR_CHECK(weir__extent_link(&extents->tree, index, EXTENT_LEFT) == previous);
            previous = index;
            (*count)++;
            *bytes += weir__extent_bytes(&extents->tree, index);
        }
    }
}

static void extent_audit_treap(const struct weir__extent_tree *tree, uint32_t node, uint64_t *count,
                               uint64_t *bytes)
{
    if (node == 0)
        return;

    uint32_t left = weir__extent_link(tree, node, EXTENT_LEFT);
    uint32_t right = weir__extent_link(tree, node, EXTENT_RIGHT);
    if (left != 0) {
        WEIR_CHECK(extent_priority(left) <= extent_priority(node)); /* E3 */
        WEIR_CHECK(extent_before(tree, weir__extent_bytes(tree, left),
                                 weir__extent_offset(tree, left), node));
    }
    if (right != 0) {
        WEIR_CHECK(extent_priority(right) <= extent_priority(node));
        WEIR_CHECK(!extent_before(tree, weir__extent_bytes(tree, right),
                                  weir__extent_offset(tree, right), node));
    }
    (*count)++;
    *bytes += weir__extent_bytes(tree, node);
    extent_audit_treap(tree, left, count, bytes);
    extent_audit_treap(tree, right, count, bytes);
}

void weir__extent_tree_audit(const struct weir__extent_tree *tree, uint64_t *ret_count,
                             uint64_t *ret_bytes)
{
    *ret_count = 0;
    *ret_bytes = 0;
    extent_audit_treap(tree, tree->root, ret_count, ret_bytes);
}

void weir__extents_audit(const struct weir__extents *extents)
{
    uint64_t count;
    uint64_t bytes;

    weir__extent_tree_audit(&extents->tree, &count, &bytes);
    if (extents->tree.root != 0) /* E1: the shortest of them */
        WEIR_CHECK(weir__extent_bytes(&extents->tree, weir__extent_tree_find(&extents->tree, 0)) >
                   EXTENT_BIN_BYTES_MAX);
    for (uint32_t bin = 0; bin < EXTENT_BIN_COUNT; bin++) {
        bool is_marked = extents->bin_map[bin / 64] >> bin % 64 & 1;
        WEIR_CHECK(is_marked == (extents->zone_map[bin] != 0)); /* E2 */
        if (is_marked)
            extent_audit_bin(extents, bin, &count, &bytes);
    }
    for (uint32_t i = 0; i < EXTENT_BIN_COUNT / 64; i++)
        WEIR_CHECK((extents->summary >> i & 1) == (extents->bin_map[i] != 0)); /* E2 */
    WEIR_CHECK(count == extents->free_count);
    WEIR_CHECK(bytes == extents->free_bytes);
}
