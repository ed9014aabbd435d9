/* SPDX-License-Identifier: MIT */
#ifndef WEIR_WRITEBUF_PIECE_H
#define WEIR_WRITEBUF_PIECE_H

/*
 * piece - memory for blocks, which goes back to the kernel when it is given back
 *
 * Pieces of 64 KiB are cut from slabs of 2 MiB; larger ones are mappings of their
 * own. Only pages that are written are in memory, so a piece may be charged as it
 * fills, and those of a piece that is given back leave at once: what the books say
 * and what the kernel counts stay together, whatever the holes in a slab.
 */

#include "base/heap.h"
#include "base/list.h"

#include <stdint.h>

#define PIECE_BYTES UINT64_C(65536)

struct weir__piece_slab;

struct weir__piece {
    char *data; /* zeroed; NULL: none */
    uint64_t bytes;
    struct weir__piece_slab *slab; /* NULL: a mapping of its own */
};

struct weir__pieces {
    struct weir__heap *heap; /* for what is known of slabs */
    struct weir__list free;  /* slabs with room */
    struct weir__list full;
    uint64_t mapped_bytes;
    uint64_t piece_bytes; /* given out */
};

void weir__pieces_init(struct weir__pieces *pieces, struct weir__heap *heap);

/* All pieces must be back. */
void weir__pieces_deinit(struct weir__pieces *pieces);

/* At least @bytes; 0 or -ENOMEM. */
int weir__pieces_take(struct weir__pieces *pieces, uint64_t bytes, struct weir__piece *ret_piece);

/* Takes an empty piece; leaves one. */
void weir__pieces_give(struct weir__pieces *pieces, struct weir__piece *piece);

/*
 * Objects of one size, cut from pieces. There is one for each block that lies in the
 * region: by the hundred thousand, and malloc would keep their memory.
 */
struct weir__pool {
    struct weir__pieces *pieces;
    struct weir__heap *heap; /* told of whole pieces */
    uint64_t object_bytes;   /* a multiple of 8 */
    struct weir__list free;  /* shelves with room */
    struct weir__list full;
    uint64_t bytes; /* of its pieces */
};

void weir__pool_init(struct weir__pool *pool, struct weir__pieces *pieces, struct weir__heap *heap,
                     uint64_t object_bytes);

/* Zeroed; NULL when the kernel refuses. */
void *weir__pool_take(struct weir__pool *pool);

/* Takes NULL. */
void weir__pool_give(struct weir__pool *pool, void *object);

#endif
