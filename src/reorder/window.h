/* SPDX-License-Identifier: MIT */
#ifndef WEIR_REORDER_WINDOW_H
#define WEIR_REORDER_WINDOW_H

/*
 * window - what waits, by sequence
 *
 * A sparse ordered index whose items hold their payload in memory, or a slot
 * where it lies, or nothing at all (an item of no bytes), or are objects of the
 * caller, who says what they take. It costs what is in it, whatever the distance
 * between sequences. It charges nobody: nodes are told to the heap of its owner,
 * payload is counted in packs.bytes.
 */

#include "base/heap.h"

#include <weir/base.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct weir__pack;
struct weir__window_node;
struct weir__window_leaf;

/* Where the payload of an item is. */
enum weir__window_kind {
    WINDOW_EMPTY,  /* there is none */
    WINDOW_MEMORY, /* @data */
    WINDOW_OBJECT, /* @object: in memory as well */
    WINDOW_REGION, /* @slot */
};

/* One more item makes the index grow by no more than this, as the books see it. */
#define WINDOW_GROWTH_BYTES_MAX UINT64_C(2048)

/* What a search looks for. */
enum weir__window_mark {
    WINDOW_MARK_ANY,
    WINDOW_MARK_MEMORY,
    WINDOW_MARK_REGION,
    WINDOW_MARK_COUNT,
};

struct weir__window {
    struct weir__heap *heap; /* nodes */
    struct weir__heap packs; /* payload, with all that its allocation costs; told to nobody */
    struct weir__window_node *root;
    struct weir__window_leaf *hint_in;  /* the leaf of the last search; NULL: none */
    struct weir__window_leaf *hint_out; /* the leaf of the last removal */
    uint64_t item_count;
    uint64_t node_count;
    uint64_t pack_count;
    struct weir__pack *spare; /* packs that came free while leaves fill, to be used again */
    uint32_t spare_count;
};

/* An item as a search shows it; valid until the window changes. */
struct weir__window_view {
    enum weir__window_kind kind;
    bool is_object;        /* WINDOW_OBJECT, or what was one before it was spilled */
    struct weir_slot slot; /* WINDOW_REGION only */
    void *object;          /* WINDOW_OBJECT only */
    void *data;            /* WINDOW_MEMORY only; aligned to 8 */
    size_t bytes;
    struct weir__pack *pack; /* WINDOW_MEMORY only: what holds @data */
};

void weir__window_init(struct weir__window *window, struct weir__heap *heap);

/* Frees nodes and payload; objects, and what the slots name, are the owner's. */
void weir__window_deinit(struct weir__window *window);

bool weir__window_contains(struct weir__window *window, uint64_t sequence);

bool weir__window_get(struct weir__window *window, uint64_t sequence,
                      struct weir__window_view *ret_view);

/* Whether @sequence is here. If it is, its payload is on its way into the cache. */
bool weir__window_touch(struct weir__window *window, uint64_t sequence);

/*
 * A new item; 0, -EEXIST or -ENOMEM. @ret_data is room for @bytes that the
 * caller fills, NULL if they are 0.
 */
int weir__window_add(struct weir__window *window, uint64_t sequence, size_t bytes, void **ret_data);

/* A new item that is an object of the caller; 0, -EEXIST or -ENOMEM. */
int weir__window_add_object(struct weir__window *window, uint64_t sequence, size_t bytes,
                            void *object);

/* A new item whose payload lies in the region; 0, -EEXIST or -ENOMEM. */
int weir__window_add_slot(struct weir__window *window, uint64_t sequence, size_t bytes,
                          struct weir_slot slot, bool is_object);

/*
 * The payload of @sequence, in memory until now, lies in @slot with @bytes. Its
 * memory comes back; an object is the caller's to let go of.
 */
void weir__window_spill(struct weir__window *window, uint64_t sequence, struct weir_slot slot,
                        size_t bytes);

/*
 * Take @sequence out, which is there. Its payload stays where it is until the
 * caller gives view.pack back.
 */
void weir__window_remove(struct weir__window *window, uint64_t sequence,
                         struct weir__window_view *ret_view);

/* Let go of one payload in @pack. */
void weir__window_release(struct weir__window *window, struct weir__pack *pack);

/* The lowest sequence at or after @from with @mark. */
bool weir__window_first(const struct weir__window *window, enum weir__window_mark mark,
                        uint64_t from, uint64_t *ret_sequence);

/* The highest sequence up to @until with @mark. */
bool weir__window_last(const struct weir__window *window, enum weir__window_mark mark,
                       uint64_t until, uint64_t *ret_sequence);

void weir__window_audit(const struct weir__window *window);

#endif
