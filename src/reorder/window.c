/* SPDX-License-Identifier: MIT */
/*
 * window - a radix tree of 64-way nodes that skips what is empty
 *
 *      inner   covers 64^(n+1) sequences     |A..M...R|   one bit per child and
 *                |            \                           mark: any, memory,
 *      leaf    covers 64      leaf           |..AM.R..|   region
 *                | items: pack + place, or slot
 *      pack    | payload | payload | payload | room |
 *
 * A node says which sequences it covers, so levels with a single child are left
 * out: an item ten million ahead costs one leaf and one inner node. Each node
 * tells for each of its 64 parts whether something there is in memory, or in
 * the region; "furthest in memory" and "next in the region" follow one bit per
 * level.
 *
 * A leaf begins with room for 4 items, kept packed in order, and grows to 16,
 * then to 64, which are found by position; where leaves fill it begins with 64.
 * Payloads of one leaf share packs: allocations that are filled from the front,
 * and given back when the last payload in them goes. Neighbours in sequence leave
 * together, whether they are delivered or spilled furthest first, so packs come
 * free whole; and since a sequence enters memory at most once, but for one that was
 * taken, no leaf ever fills the holes of a pack. An object has no pack, only its
 * place in the leaf.
 *
 * What the push of a small item waits for is its source. How many sources are on
 * their way at once is how many instructions lie between them, so add and remove
 * have the usual case first, in a line, and all others out of it.
 *
 *   W1  a leaf has an item, an inner node at least two children
 *   W2  a node's bit is set exactly if that part of it has such an item
 *   W3  an item is in memory or in the region, or it has no bytes
 *   W4  a pack lives as long as one payload in it, or as a leaf fills it
 *
 * Not here: who is charged, what is spilled when (reorder.c).
 */
#include "reorder/window.h"

#include "base/bits.h"
#include "base/check.h"

#include <errno.h>
#include <string.h>

#define WINDOW_FAN          64u
#define WINDOW_LEVEL_BITS   6u
#define WINDOW_DEPTH_MAX    11u /* 64 bits in steps of 6 */
#define WINDOW_OFFSET_BITS  24u
#define WINDOW_OFFSET_LIMIT (UINT64_C(1) << WINDOW_OFFSET_BITS)
#define WINDOW_BYTES_LIMIT  (UINT64_C(1) << (64 - WINDOW_OFFSET_BITS))
#define WINDOW_ALIGN        UINT64_C(8)
#define WINDOW_IS_OBJECT    UINT64_C(1) /* no place in a pack, for those are aligned */

/* Packs double with what their leaf has taken, up to this; a larger payload has its own. */
#define PACK_BYTES_MAX UINT64_C(16384)

/* A pack that is kept for the next leaf, and how many are at most. */
#define SPARE_BYTES UINT64_C(2048)
#define SPARE_MAX   16u

/* Items to a node from which on new leaves are expected to fill. */
#define WINDOW_DENSE 16u

/* Stands in for the leaf that fills a pack, so that filling it need not touch its head. */
#define PACK_OPEN UINT32_C(0x40000000)

_Static_assert(1u << WINDOW_LEVEL_BITS == WINDOW_FAN, "a level is one bit of a word each");
_Static_assert(WINDOW_DEPTH_MAX *WINDOW_LEVEL_BITS >= 64, "the tree is deep enough");
_Static_assert(PACK_BYTES_MAX < WINDOW_OFFSET_LIMIT, "places in a pack fit");

struct weir__pack {
    union {
        uint64_t bytes;          /* room behind this head */
        struct weir__pack *next; /* of a spare one, which has SPARE_BYTES */
    };
    uint32_t live_count; /* payloads in it; PACK_OPEN more while a leaf fills it */
    uint32_t padding;
};

_Static_assert(sizeof(struct weir__pack) % WINDOW_ALIGN == 0, "payload is aligned");

struct window_item {
    union {
        struct weir__pack *pack;
        struct weir_slot slot;
        void *object;
    };
    uint64_t measure; /* length << WINDOW_OFFSET_BITS | place in the pack, or WINDOW_IS_OBJECT */
};

_Static_assert(sizeof(struct window_item) == 16, "four to a cache line");

struct weir__window_node {
    uint64_t prefix; /* the lowest sequence that it covers */
    uint64_t marks[WINDOW_MARK_COUNT];
    uint16_t shift;    /* a child covers 1 << shift; 0: a leaf */
    uint16_t capacity; /* items of a leaf */
    uint32_t padding;
};

struct window_inner {
    struct weir__window_node node;
    struct weir__window_node *children[WINDOW_FAN];
};

struct weir__window_leaf {
    struct weir__window_node node;
    struct weir__pack *open; /* being filled; NULL: none */
    uint32_t open_used;      /* of open->bytes */
    uint32_t open_bytes;
    uint32_t open_count; /* payloads put there */
    uint32_t pack_bytes; /* of all packs so far */
    struct window_item items[];
};

/* A leaf, full at once, and a node above it; and what the allocator puts before each. */
_Static_assert(sizeof(struct window_inner) + sizeof(struct weir__window_leaf) +
                       WINDOW_FAN * sizeof(struct window_item) + 2 * 16 <=
                   WINDOW_GROWTH_BYTES_MAX,
               "no item makes the index grow by more");

/* The way from the root to a sequence. */
struct window_path {
    struct weir__window_node **links[WINDOW_DEPTH_MAX + 1]; /* what points to each node */
    uint32_t depth;                                         /* inner nodes passed */
};

/* ---- Places ----------------------------------------------------------------- */

static uint32_t node_index(const struct weir__window_node *node, uint64_t sequence)
{
    return (uint32_t)(sequence >> node->shift) & (WINDOW_FAN - 1);
}

static bool node_covers(const struct weir__window_node *node, uint64_t sequence)
{
    uint32_t width = node->shift + WINDOW_LEVEL_BITS;

    return width >= 64 || (node->prefix ^ sequence) >> width == 0;
}

static bool node_has(const struct weir__window_node *node, enum weir__window_mark mark,
                     uint32_t index)
{
    return (node->marks[mark] >> index & 1) != 0;
}

static uint32_t leaf_index(uint64_t sequence)
{
    return (uint32_t)sequence & (WINDOW_FAN - 1);
}

static uint64_t window_prefix(uint64_t sequence, uint32_t shift)
{
    uint32_t width = shift + WINDOW_LEVEL_BITS;

    return width >= 64 ? 0 : sequence >> width << width;
}

static struct weir__window_leaf *node_leaf(struct weir__window_node *node)
{
    WEIR_ASSERT(node->shift == 0);
    return WEIR_CONTAINER_OF(node, struct weir__window_leaf, node);
}

static struct window_inner *node_inner(struct weir__window_node *node)
{
    WEIR_ASSERT(node->shift != 0);
    return WEIR_CONTAINER_OF(node, struct window_inner, node);
}

static bool leaf_covers(const struct weir__window_leaf *leaf, uint64_t sequence)
{
    return (leaf->node.prefix ^ sequence) < WINDOW_FAN;
}

static size_t leaf_bytes(uint32_t capacity)
{
    return sizeof(struct weir__window_leaf) + capacity * sizeof(struct window_item);
}

/* Where the item @index is kept, or would be. */
static uint32_t leaf_position(const struct weir__window_leaf *leaf, uint32_t index)
{
    if (leaf->node.capacity == WINDOW_FAN)
        return index;
    return (uint32_t)__builtin_popcountll(leaf->node.marks[WINDOW_MARK_ANY] &
                                          ~weir__bits_from(index));
}

static enum weir__window_kind leaf_kind(const struct weir__window_leaf *leaf, uint32_t index)
{
    if (node_has(&leaf->node, WINDOW_MARK_MEMORY, index))
        return WINDOW_MEMORY;
    return node_has(&leaf->node, WINDOW_MARK_REGION, index) ? WINDOW_REGION : WINDOW_EMPTY;
}

static bool item_is_object(const struct window_item *item)
{
    return (item->measure & WINDOW_IS_OBJECT) != 0;
}

static void *item_data(const struct window_item *item)
{
    return (char *)(item->pack + 1) + (item->measure & (WINDOW_OFFSET_LIMIT - 1));
}

/* Field by field: what was cleared first in wide stores, then set in narrow ones, reads slowly. */
static inline void leaf_view(const struct weir__window_leaf *leaf, uint32_t index,
                             struct weir__window_view *ret_view)
{
    const struct window_item *item = &leaf->items[leaf_position(leaf, index)];
    enum weir__window_kind kind = leaf_kind(leaf, index);
    bool is_object = item_is_object(item);

    ret_view->bytes = item->measure >> WINDOW_OFFSET_BITS;
    ret_view->is_object = is_object;
    ret_view->slot = kind == WINDOW_REGION ? item->slot : (struct weir_slot){0};
    ret_view->object = NULL;
    ret_view->data = NULL;
    ret_view->pack = NULL;
    if (kind == WINDOW_MEMORY && is_object) {
        kind = WINDOW_OBJECT;
        ret_view->object = item->object;
    } else if (kind == WINDOW_MEMORY) {
        ret_view->pack = item->pack;
        ret_view->data = item_data(item);
    }
    ret_view->kind = kind;
}

/* ---- Packs ------------------------------------------------------------------ */

/*
 * Whether leaves fill, so that a new one need not begin small. Lone ones make the
 * average fall: what they waste is a part of what is there.
 */
static bool window_is_dense(const struct weir__window *window)
{
    return window->item_count > (uint64_t)WINDOW_FAN * WINDOW_DENSE &&
           window->item_count / WINDOW_DENSE > window->node_count;
}

static void pack_drop_spare(struct weir__window *window)
{
    while (window->spare != NULL) {
        struct weir__pack *pack = window->spare;

        window->spare = pack->next;
        weir__heap_free(&window->packs, pack, sizeof(*pack) + SPARE_BYTES);
    }
    window->spare_count = 0;
}

static void pack_free(struct weir__window *window, struct weir__pack *pack)
{
    window->pack_count--;
    weir__heap_free(&window->packs, pack, sizeof(*pack) + pack->bytes);
}

/* @count payloads fewer are in @pack; true: none is left, and it is the caller's. */
static bool pack_empties(struct weir__pack *pack, uint32_t count)
{
    WEIR_ASSERT(pack->live_count >= count);

    pack->live_count -= count;
    return pack->live_count == 0;
}

static void pack_drop(struct weir__window *window, struct weir__pack *pack, uint32_t count)
{
    if (pack_empties(pack, count))
        pack_free(window, pack);
}

/* W4: nothing more goes into the pack that @leaf fills. */
static void leaf_close_pack(struct weir__window *window, struct weir__window_leaf *leaf)
{
    struct weir__pack *pack = leaf->open;

    if (pack == NULL)
        return;
    leaf->open = NULL;
    pack_drop(window, pack, PACK_OPEN - leaf->open_count);
}

/* What the next pack of @leaf has room for, if an item needs no more. */
static uint64_t leaf_pack_bytes(const struct weir__window *window,
                                const struct weir__window_leaf *leaf)
{
    if (leaf->pack_bytes <= SPARE_BYTES && window->packs.bytes / window->node_count > SPARE_BYTES &&
        window_is_dense(window))
        return SPARE_BYTES;
    return weir__min(leaf->pack_bytes, PACK_BYTES_MAX);
}

static struct weir__pack *pack_create(struct weir__window *window, uint64_t bytes)
{
    struct weir__pack *pack = window->spare;

    if (bytes == SPARE_BYTES && pack != NULL) {
        window->spare = pack->next;
        window->spare_count--;
    } else {
        /* Not zeroed: all of it that is ever read is written first. */
        pack = weir__heap_resize(&window->packs, NULL, 0, sizeof(*pack) + bytes);
        if (pack == NULL)
            return NULL;
    }
    *pack = (struct weir__pack){.bytes = bytes};
    window->pack_count++;
    return pack;
}

/* Room for @bytes; sets pack and measure of @item. */
static int leaf_place(struct weir__window *window, struct weir__window_leaf *leaf, uint64_t bytes,
                      struct window_item *item)
{
    uint64_t room = weir__round_up(bytes, WINDOW_ALIGN);
    struct weir__pack *pack;

    if (leaf->open == NULL || leaf->open_bytes - leaf->open_used < room) {
        uint64_t pack_bytes = weir__max(room, leaf_pack_bytes(window, leaf));

        pack = pack_create(window, pack_bytes);
        if (pack == NULL)
            return -ENOMEM;
        if (room > PACK_BYTES_MAX) {
            pack->live_count = 1;
            *item = (struct window_item){.pack = pack, .measure = bytes << WINDOW_OFFSET_BITS};
            return 0;
        }

        leaf_close_pack(window, leaf);
        pack->live_count = PACK_OPEN;
        leaf->open = pack;
        leaf->open_used = 0;
        leaf->open_bytes = (uint32_t)pack_bytes;
        leaf->open_count = 0;
        leaf->pack_bytes += (uint32_t)pack_bytes;
    }

    *item = (struct window_item){.pack = leaf->open,
                                 .measure = bytes << WINDOW_OFFSET_BITS | leaf->open_used};
    leaf->open_used += (uint32_t)room;
    leaf->open_count++;
    return 0;
}

/* ---- Nodes ------------------------------------------------------------------ */

static struct weir__window_leaf *leaf_create(struct weir__window *window, uint64_t sequence,
                                             uint32_t capacity)
{
    struct weir__window_leaf *leaf = weir__heap_resize(window->heap, NULL, 0, leaf_bytes(capacity));

    if (leaf == NULL)
        return NULL;
    memset(leaf, 0, sizeof(*leaf));
    leaf->node.prefix = window_prefix(sequence, 0);
    leaf->node.capacity = (uint16_t)capacity;
    window->node_count++;
    return leaf;
}

static void leaf_destroy(struct weir__window *window, struct weir__window_leaf *leaf)
{
    if (window->hint_in == leaf)
        window->hint_in = NULL;
    if (window->hint_out == leaf)
        window->hint_out = NULL;
    leaf_close_pack(window, leaf);
    window->node_count--;
    weir__heap_free(window->heap, leaf, leaf_bytes(leaf->node.capacity));
}

static struct window_inner *inner_create(struct weir__window *window, uint64_t sequence,
                                         uint32_t shift)
{
    struct window_inner *inner = weir__heap_alloc(window->heap, sizeof(*inner));

    if (inner == NULL)
        return NULL;
    inner->node.shift = (uint16_t)shift;
    inner->node.prefix = window_prefix(sequence, shift);
    window->node_count++;
    return inner;
}

static void inner_destroy(struct weir__window *window, struct window_inner *inner)
{
    window->node_count--;
    weir__heap_free(window->heap, inner, sizeof(*inner));
}

static void inner_link(struct window_inner *inner, struct weir__window_node *child)
{
    uint32_t index = node_index(&inner->node, child->prefix);

    WEIR_ASSERT(inner->children[index] == NULL);
    inner->children[index] = child;
    for (int mark = 0; mark < WINDOW_MARK_COUNT; mark++)
        if (child->marks[mark] != 0)
            inner->node.marks[mark] |= UINT64_C(1) << index;
}

/* ---- Ways down -------------------------------------------------------------- */

/*
 * The leaf that covers @sequence, or NULL. A wrong turn at a node that does not
 * cover it ends at a leaf that does not either, and only that is looked at.
 */
static inline struct weir__window_leaf *window_leaf(struct weir__window *window, uint64_t sequence,
                                                    struct weir__window_leaf **hint)
{
    struct weir__window_node *node = window->root;

    if (*hint != NULL && leaf_covers(*hint, sequence))
        return *hint;
    while (node != NULL && node->shift != 0)
        node = node_inner(node)->children[node_index(node, sequence)];
    if (node == NULL || !leaf_covers(node_leaf(node), sequence))
        return NULL;
    *hint = node_leaf(node);
    return *hint;
}

/*
 * The way to @sequence as far as it goes: the last link points to a leaf, to a
 * node that does not cover it, or to nothing.
 */
static void window_walk(struct weir__window *window, uint64_t sequence,
                        struct window_path *ret_path)
{
    struct weir__window_node **link = &window->root;

    ret_path->depth = 0;
    ret_path->links[0] = link;
    while (*link != NULL && (*link)->shift != 0 && node_covers(*link, sequence)) {
        link = &node_inner(*link)->children[node_index(*link, sequence)];
        ret_path->links[++ret_path->depth] = link;
    }
}

/* W2 for all nodes above the last one of @path, after marks were lost or won there. */
static void path_mend(const struct window_path *path, uint64_t sequence)
{
    for (uint32_t depth = path->depth; depth-- > 0;) {
        struct weir__window_node *node = *path->links[depth];
        const struct weir__window_node *child = *path->links[depth + 1];
        uint64_t bit = UINT64_C(1) << node_index(node, sequence);

        for (int mark = 0; mark < WINDOW_MARK_COUNT; mark++) {
            if (child != NULL && child->marks[mark] != 0)
                node->marks[mark] |= bit;
            else
                node->marks[mark] &= ~bit;
        }
    }
}

/* W1: drop the empty leaf at the end of @path, and the node above it if one child is left. */
static void path_prune(struct weir__window *window, struct window_path *path, uint64_t sequence)
{
    struct weir__window_node **link = path->links[path->depth];
    struct weir__window_node **link_above;
    struct window_inner *inner;

    leaf_destroy(window, node_leaf(*link));
    *link = NULL;
    path_mend(path, sequence);
    if (path->depth == 0)
        return;

    link_above = path->links[path->depth - 1];
    inner = node_inner(*link_above);
    if (__builtin_popcountll(inner->node.marks[WINDOW_MARK_ANY]) > 1)
        return;
    *link_above = inner->children[weir__lowest_bit(inner->node.marks[WINDOW_MARK_ANY])];
    inner_destroy(window, inner);
}

/* ---- Lifecycle -------------------------------------------------------------- */

void weir__window_init(struct weir__window *window, struct weir__heap *heap)
{
    *window = (struct weir__window){.heap = heap};
}

/* As deep as the tree. */
static void window_free(struct weir__window *window, struct weir__window_node *node)
{
    if (node->shift != 0) {
        struct window_inner *inner = node_inner(node);

        for (uint64_t left = node->marks[WINDOW_MARK_ANY]; left != 0; left &= left - 1)
            window_free(window, inner->children[weir__lowest_bit(left)]);
        inner_destroy(window, inner);
        return;
    }

    for (uint64_t left = node->marks[WINDOW_MARK_MEMORY]; left != 0; left &= left - 1) {
        struct weir__window_view view;

        leaf_view(node_leaf(node), weir__lowest_bit(left), &view);
        if (view.kind == WINDOW_MEMORY)
            pack_drop(window, view.pack, 1);
    }
    leaf_destroy(window, node_leaf(node));
}

void weir__window_deinit(struct weir__window *window)
{
    if (window->root != NULL)
        window_free(window, window->root);
    pack_drop_spare(window);
    WEIR_CHECK(window->node_count == 0);
    WEIR_CHECK(window->pack_count == 0);
    WEIR_CHECK(window->packs.bytes == 0);
    *window = (struct weir__window){.heap = window->heap};
}

/* ---- Items ------------------------------------------------------------------ */

bool weir__window_contains(struct weir__window *window, uint64_t sequence)
{
    const struct weir__window_leaf *leaf = window_leaf(window, sequence, &window->hint_in);

    return leaf != NULL && node_has(&leaf->node, WINDOW_MARK_ANY, leaf_index(sequence));
}

bool weir__window_get(struct weir__window *window, uint64_t sequence,
                      struct weir__window_view *ret_view)
{
    const struct weir__window_leaf *leaf = window_leaf(window, sequence, &window->hint_out);
    uint32_t index = leaf_index(sequence);

    if (leaf == NULL || !node_has(&leaf->node, WINDOW_MARK_ANY, index))
        return false;
    leaf_view(leaf, index, ret_view);
    return true;
}

bool weir__window_touch(struct weir__window *window, uint64_t sequence)
{
    const struct weir__window_leaf *leaf = window_leaf(window, sequence, &window->hint_out);
    uint32_t index = leaf_index(sequence);

    if (leaf == NULL || !node_has(&leaf->node, WINDOW_MARK_ANY, index))
        return false;
    /* Leaves that do not fill are no place where much is delivered in a row. */
    if (leaf->node.capacity == WINDOW_FAN && node_has(&leaf->node, WINDOW_MARK_MEMORY, index) &&
        !item_is_object(&leaf->items[index]))
        __builtin_prefetch(item_data(&leaf->items[index]));
    return true;
}

/* Put an empty leaf for @sequence into the tree; its marks are still to be told upwards. */
static struct weir__window_leaf *window_plant(struct weir__window *window, uint64_t sequence)
{
    struct weir__window_leaf *leaf =
        leaf_create(window, sequence, window_is_dense(window) ? WINDOW_FAN : 4);
    struct weir__window_node *node;
    struct window_inner *inner;
    struct window_path path;
    uint32_t shift;

    if (leaf == NULL)
        return NULL;
    window_walk(window, sequence, &path);
    node = *path.links[path.depth];
    if (node == NULL) {
        *path.links[path.depth] = &leaf->node;
        return leaf;
    }

    /* Both meet under the lowest node that covers them. */
    shift =
        weir__highest_bit(node->prefix ^ leaf->node.prefix) / WINDOW_LEVEL_BITS * WINDOW_LEVEL_BITS;
    WEIR_ASSERT(shift > node->shift);
    inner = inner_create(window, sequence, shift);
    if (inner == NULL) {
        leaf_destroy(window, leaf);
        return NULL;
    }
    inner_link(inner, node);
    inner_link(inner, &leaf->node);
    *path.links[path.depth] = &inner->node;
    return leaf;
}

/* The same leaf with four times the room; NULL: as it was. */
static struct weir__window_leaf *window_enlarge(struct weir__window *window,
                                                struct weir__window_leaf *leaf)
{
    uint32_t capacity = leaf->node.capacity * 4u;
    struct weir__window_leaf *larger = leaf_create(window, leaf->node.prefix, capacity);
    struct window_path path;
    uint32_t position = 0;

    if (larger == NULL)
        return NULL;
    memcpy(larger, leaf, sizeof(*leaf));
    larger->node.capacity = (uint16_t)capacity;
    for (uint64_t left = leaf->node.marks[WINDOW_MARK_ANY]; left != 0; left &= left - 1) {
        uint32_t place = capacity == WINDOW_FAN ? weir__lowest_bit(left) : position;

        larger->items[place] = leaf->items[position++];
    }

    window_walk(window, leaf->node.prefix, &path);
    WEIR_ASSERT(*path.links[path.depth] == &leaf->node);
    *path.links[path.depth] = &larger->node;
    leaf->open = NULL;
    leaf_destroy(window, leaf);
    return larger;
}

/* A leaf that covers @sequence, without it and with room for it; *ret_leaf or -EEXIST, -ENOMEM. */
static int window_prepare(struct weir__window *window, uint64_t sequence,
                          struct weir__window_leaf **ret_leaf)
{
    struct weir__window_leaf *leaf = window_leaf(window, sequence, &window->hint_in);

    if (leaf == NULL) {
        leaf = window_plant(window, sequence);
    } else {
        uint64_t any = leaf->node.marks[WINDOW_MARK_ANY];

        if (node_has(&leaf->node, WINDOW_MARK_ANY, node_index(&leaf->node, sequence)))
            return -EEXIST;
        if (leaf->node.capacity < WINDOW_FAN &&
            (uint32_t)__builtin_popcountll(any) == leaf->node.capacity)
            leaf = window_enlarge(window, leaf);
    }
    if (leaf == NULL)
        return -ENOMEM;

    window->hint_in = leaf;
    *ret_leaf = leaf;
    return 0;
}

/* Nothing came of a new leaf. */
static void window_abandon(struct weir__window *window, struct weir__window_leaf *leaf,
                           uint64_t sequence)
{
    struct window_path path;

    if (leaf->node.marks[WINDOW_MARK_ANY] != 0)
        return;
    window_walk(window, sequence, &path);
    path_prune(window, &path, sequence);
}

static void window_enter(struct weir__window *window, struct weir__window_leaf *leaf,
                         uint64_t sequence, struct window_item item, enum weir__window_kind kind)
{
    uint64_t *marks = leaf->node.marks;
    uint32_t index = node_index(&leaf->node, sequence);
    uint32_t position = leaf_position(leaf, index);
    uint64_t bit = UINT64_C(1) << index;
    bool is_first = marks[WINDOW_MARK_ANY] == 0;

    if (leaf->node.capacity < WINDOW_FAN) {
        uint32_t behind = (uint32_t)__builtin_popcountll(marks[WINDOW_MARK_ANY]) - position;

        memmove(&leaf->items[position + 1], &leaf->items[position], behind * sizeof(item));
    }
    leaf->items[position] = item;

    marks[WINDOW_MARK_ANY] |= bit;
    if (kind == WINDOW_MEMORY) {
        is_first |= marks[WINDOW_MARK_MEMORY] == 0;
        marks[WINDOW_MARK_MEMORY] |= bit;
    } else if (kind == WINDOW_REGION) {
        is_first |= marks[WINDOW_MARK_REGION] == 0;
        marks[WINDOW_MARK_REGION] |= bit;
    }
    window->item_count++;

    if (is_first) {
        struct window_path path;

        window_walk(window, sequence, &path);
        path_mend(&path, sequence);
    }
}

static __attribute__((noinline)) int
window_add_slowly(struct weir__window *window, uint64_t sequence, size_t bytes, void **ret_data)
{
    struct weir__window_leaf *leaf;
    struct window_item item = {.measure = 0};
    int r;

    if (bytes >= WINDOW_BYTES_LIMIT)
        return -ENOMEM;
    r = window_prepare(window, sequence, &leaf);
    if (r < 0)
        return r;
    if (bytes == 0) {
        window_enter(window, leaf, sequence, item, WINDOW_EMPTY);
        *ret_data = NULL;
        return 0;
    }

    r = leaf_place(window, leaf, bytes, &item);
    if (r < 0) {
        window_abandon(window, leaf, sequence);
        return r;
    }
    window_enter(window, leaf, sequence, item, WINDOW_MEMORY);
    *ret_data = item_data(&item);
    return 0;
}

/* In a line: there is a full-sized leaf, and its pack has room. */
int weir__window_add(struct weir__window *window, uint64_t sequence, size_t bytes, void **ret_data)
{
    struct weir__window_leaf *leaf = window_leaf(window, sequence, &window->hint_in);
    uint32_t index = leaf_index(sequence);
    uint64_t bit = UINT64_C(1) << index;
    uint64_t offset;

    /* No bytes are too many as well. */
    if (leaf == NULL || leaf->node.capacity != WINDOW_FAN || leaf->open == NULL ||
        bytes - 1 >= leaf->open_bytes - leaf->open_used ||
        (leaf->node.marks[WINDOW_MARK_ANY] & bit) != 0)
        return window_add_slowly(window, sequence, bytes, ret_data);

    offset = leaf->open_used;
    leaf->open_used += (uint32_t)weir__round_up(bytes, WINDOW_ALIGN);
    leaf->open_count++;
    leaf->items[index].pack = leaf->open;
    leaf->items[index].measure = (uint64_t)bytes << WINDOW_OFFSET_BITS | offset;
    leaf->node.marks[WINDOW_MARK_ANY] |= bit;
    leaf->node.marks[WINDOW_MARK_MEMORY] |= bit;
    window->item_count++;
    *ret_data = (char *)(leaf->open + 1) + offset;
    return 0;
}

int weir__window_add_object(struct weir__window *window, uint64_t sequence, size_t bytes,
                            void *object)
{
    struct weir__window_leaf *leaf;
    int r;

    if (bytes >= WINDOW_BYTES_LIMIT)
        return -ENOMEM;
    r = window_prepare(window, sequence, &leaf);
    if (r < 0)
        return r;
    window_enter(window, leaf, sequence,
                 (struct window_item){
                     .object = object,
                     .measure = (uint64_t)bytes << WINDOW_OFFSET_BITS | WINDOW_IS_OBJECT,
                 },
                 WINDOW_MEMORY);
    return 0;
}

int weir__window_add_slot(struct weir__window *window, uint64_t sequence, size_t bytes,
                          struct weir_slot slot, bool is_object)
{
    struct weir__window_leaf *leaf;
    int r;

    WEIR_ASSERT(bytes < WINDOW_BYTES_LIMIT);

    r = window_prepare(window, sequence, &leaf);
    if (r < 0)
        return r;
    window_enter(
        window, leaf, sequence,
        (struct window_item){
            .slot = slot,
            .measure = (uint64_t)bytes << WINDOW_OFFSET_BITS | (is_object ? WINDOW_IS_OBJECT : 0),
        },
        WINDOW_REGION);
    return 0;
}

void weir__window_spill(struct weir__window *window, uint64_t sequence, struct weir_slot slot,
                        size_t bytes)
{
    struct weir__window_leaf *leaf = window_leaf(window, sequence, &window->hint_in);
    uint64_t bit = UINT64_C(1) << leaf_index(sequence);
    struct window_item *item;
    struct weir__pack *pack;
    uint64_t *marks;
    bool is_first;

    WEIR_CHECK(leaf != NULL);
    WEIR_CHECK((leaf->node.marks[WINDOW_MARK_MEMORY] & bit) != 0);

    marks = leaf->node.marks;
    item = &leaf->items[leaf_position(leaf, node_index(&leaf->node, sequence))];
    pack = item_is_object(item) ? NULL : item->pack;
    item->slot = slot;
    item->measure = (uint64_t)bytes << WINDOW_OFFSET_BITS | (pack == NULL ? WINDOW_IS_OBJECT : 0);
    is_first = marks[WINDOW_MARK_REGION] == 0;
    marks[WINDOW_MARK_REGION] |= bit;
    marks[WINDOW_MARK_MEMORY] &= ~bit;
    if (marks[WINDOW_MARK_MEMORY] == 0)
        leaf_close_pack(window, leaf);
    if (pack != NULL)
        pack_drop(window, pack, 1);
    /* Who spills wants memory back. */
    pack_drop_spare(window);

    if (is_first || marks[WINDOW_MARK_MEMORY] == 0) {
        struct window_path path;

        window_walk(window, sequence, &path);
        path_mend(&path, sequence);
    }
}

static __attribute__((noinline)) void window_remove_slowly(struct weir__window *window,
                                                           struct weir__window_leaf *leaf,
                                                           uint64_t sequence,
                                                           struct weir__window_view *ret_view)
{
    uint64_t bit = UINT64_C(1) << leaf_index(sequence);
    bool is_last = false;
    uint32_t position;
    uint32_t index;

    WEIR_CHECK(leaf != NULL);
    WEIR_CHECK((leaf->node.marks[WINDOW_MARK_ANY] & bit) != 0);

    index = node_index(&leaf->node, sequence);
    leaf_view(leaf, index, ret_view);
    position = leaf_position(leaf, index);
    for (int mark = 0; mark < WINDOW_MARK_COUNT; mark++) {
        uint64_t *word = &leaf->node.marks[mark];

        is_last |= *word == bit;
        *word &= ~bit;
    }
    if (leaf->node.capacity < WINDOW_FAN) {
        uint32_t left = (uint32_t)__builtin_popcountll(leaf->node.marks[WINDOW_MARK_ANY]);

        memmove(&leaf->items[position], &leaf->items[position + 1],
                (left - position) * sizeof(leaf->items[0]));
    }
    window->item_count--;

    if (is_last) {
        struct window_path path;

        if (leaf->node.marks[WINDOW_MARK_MEMORY] == 0)
            leaf_close_pack(window, leaf);
        window_walk(window, sequence, &path);
        if (leaf->node.marks[WINDOW_MARK_ANY] == 0)
            path_prune(window, &path, sequence);
        else
            path_mend(&path, sequence);
    }
}

/* In a line: one of several payloads in the memory of a full-sized leaf. */
void weir__window_remove(struct weir__window *window, uint64_t sequence,
                         struct weir__window_view *ret_view)
{
    struct weir__window_leaf *leaf = window_leaf(window, sequence, &window->hint_out);
    uint32_t index = leaf_index(sequence);
    uint64_t bit = UINT64_C(1) << index;

    if (leaf == NULL || leaf->node.capacity != WINDOW_FAN ||
        (leaf->node.marks[WINDOW_MARK_MEMORY] & bit) == 0 ||
        leaf->node.marks[WINDOW_MARK_MEMORY] == bit) {
        window_remove_slowly(window, leaf, sequence, ret_view);
        return;
    }

    leaf_view(leaf, index, ret_view);
    leaf->node.marks[WINDOW_MARK_ANY] &= ~bit;
    leaf->node.marks[WINDOW_MARK_MEMORY] &= ~bit;
    window->item_count--;
}

void weir__window_release(struct weir__window *window, struct weir__pack *pack)
{
    if (!pack_empties(pack, 1))
        return;
    if (!window_is_dense(window)) {
        pack_drop_spare(window);
        pack_free(window, pack);
    } else if (pack->bytes == SPARE_BYTES && window->spare_count < SPARE_MAX) {
        window->pack_count--;
        pack->next = window->spare;
        window->spare = pack;
        window->spare_count++;
    } else {
        pack_free(window, pack);
    }
}

/* ---- Searches --------------------------------------------------------------- */

/* At most one child is searched in vain at each level: the one that holds @from. */
static bool node_first(const struct weir__window_node *node, enum weir__window_mark mark,
                       uint64_t from, uint64_t *ret_sequence)
{
    uint64_t left = node->marks[mark];

    if (from > node->prefix) {
        if (!node_covers(node, from))
            return false;
        left &= weir__bits_from(node_index(node, from));
    }
    if (node->shift == 0) {
        if (left == 0)
            return false;
        *ret_sequence = node->prefix + weir__lowest_bit(left);
        return true;
    }
    for (; left != 0; left &= left - 1) {
        const struct window_inner *inner = (const struct window_inner *)(const void *)node;

        if (node_first(inner->children[weir__lowest_bit(left)], mark, from, ret_sequence))
            return true;
    }
    return false;
}

bool weir__window_first(const struct weir__window *window, enum weir__window_mark mark,
                        uint64_t from, uint64_t *ret_sequence)
{
    return window->root != NULL && node_first(window->root, mark, from, ret_sequence);
}

/* The same from the other end. */
static bool node_last(const struct weir__window_node *node, enum weir__window_mark mark,
                      uint64_t until, uint64_t *ret_sequence)
{
    uint64_t left = node->marks[mark];

    if (until < node->prefix)
        return false;
    if (node_covers(node, until))
        left &= ~(weir__bits_from(node_index(node, until)) << 1);
    if (node->shift == 0) {
        if (left == 0)
            return false;
        *ret_sequence = node->prefix + weir__highest_bit(left);
        return true;
    }
    while (left != 0) {
        const struct window_inner *inner = (const struct window_inner *)(const void *)node;
        uint32_t index = weir__highest_bit(left);

        if (node_last(inner->children[index], mark, until, ret_sequence))
            return true;
        left &= ~(UINT64_C(1) << index);
    }
    return false;
}

bool weir__window_last(const struct weir__window *window, enum weir__window_mark mark,
                       uint64_t until, uint64_t *ret_sequence)
{
    return window->root != NULL && node_last(window->root, mark, until, ret_sequence);
}

/* ---- Audit ------------------------------------------------------------------ */

struct window_census {
    uint64_t item_count;
    uint64_t node_count;
    uint64_t pack_item_count;
};

static void leaf_audit(const struct weir__window_leaf *leaf, struct window_census *census)
{
    const uint64_t *marks = leaf->node.marks;
    uint32_t count = (uint32_t)__builtin_popcountll(marks[WINDOW_MARK_ANY]);

    WEIR_CHECK(leaf->node.capacity == 4 || leaf->node.capacity == 16 ||
               leaf->node.capacity == WINDOW_FAN);
    WEIR_CHECK(count <= leaf->node.capacity);
    WEIR_CHECK((marks[WINDOW_MARK_MEMORY] & marks[WINDOW_MARK_REGION]) == 0);
    WEIR_CHECK(
        ((marks[WINDOW_MARK_MEMORY] | marks[WINDOW_MARK_REGION]) & ~marks[WINDOW_MARK_ANY]) == 0);
    if (leaf->open != NULL) {
        WEIR_CHECK(marks[WINDOW_MARK_MEMORY] != 0);
        WEIR_CHECK(leaf->open_used <= leaf->open_bytes);
        WEIR_CHECK(leaf->open->bytes == leaf->open_bytes);
        WEIR_CHECK(leaf->open_bytes % WINDOW_ALIGN == 0);
        WEIR_CHECK(leaf->open->live_count <= PACK_OPEN);
        WEIR_CHECK(leaf->open->live_count >= PACK_OPEN - leaf->open_count);
    }
    for (uint64_t left = marks[WINDOW_MARK_ANY]; left != 0; left &= left - 1) {
        struct weir__window_view view;

        leaf_view(leaf, weir__lowest_bit(left), &view);
        if (view.kind == WINDOW_EMPTY)
            WEIR_CHECK(view.bytes == 0);
        if (view.kind == WINDOW_REGION)
            WEIR_CHECK(!weir_slot_is_none(view.slot));
        if (view.kind == WINDOW_MEMORY) {
            WEIR_CHECK(view.bytes > 0);
            WEIR_CHECK(view.pack->live_count > 0);
            WEIR_CHECK((char *)view.data + view.bytes <=
                       (char *)(view.pack + 1) + view.pack->bytes);
            census->pack_item_count++;
        }
    }
    census->item_count += count;
}

static void node_audit(const struct weir__window_node *node, struct window_census *census)
{
    const struct window_inner *inner = (const struct window_inner *)(const void *)node;

    census->node_count++;
    WEIR_CHECK(node->marks[WINDOW_MARK_ANY] != 0);
    WEIR_CHECK(node->prefix == window_prefix(node->prefix, node->shift));
    if (node->shift == 0) {
        leaf_audit((const struct weir__window_leaf *)(const void *)node, census);
        return;
    }

    WEIR_CHECK(node->shift % WINDOW_LEVEL_BITS == 0);
    WEIR_CHECK(__builtin_popcountll(node->marks[WINDOW_MARK_ANY]) >= 2);
    for (uint32_t index = 0; index < WINDOW_FAN; index++) {
        const struct weir__window_node *child = inner->children[index];

        WEIR_CHECK((child != NULL) == node_has(node, WINDOW_MARK_ANY, index));
        if (child == NULL)
            continue;
        WEIR_CHECK(child->shift < node->shift);
        WEIR_CHECK(node_covers(node, child->prefix));
        WEIR_CHECK(node_index(node, child->prefix) == index);
        for (int mark = 0; mark < WINDOW_MARK_COUNT; mark++)
            WEIR_CHECK((child->marks[mark] != 0) ==
                       node_has(node, (enum weir__window_mark)mark, index));
        node_audit(child, census);
    }
}

void weir__window_audit(const struct weir__window *window)
{
    struct window_census census = {0};

    if (window->root != NULL)
        node_audit(window->root, &census);
    WEIR_CHECK(census.item_count == window->item_count);
    WEIR_CHECK(census.node_count == window->node_count);
    if (census.pack_item_count > 0)
        WEIR_CHECK(window->pack_count > 0);
}
