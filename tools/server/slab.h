/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SERVER_SLAB_H
#define WEIR_SERVER_SLAB_H

/*
 * slab - memory for small things that live long
 *
 * Keys stay when their values go to the region. Were both in one heap, every
 * page would keep some key and none could go back to the kernel; so keys lie
 * together, in blocks of their own, by size.
 */

#include <stddef.h>
#include <stdint.h>

#include <weir/base.h>

#define SLAB_BLOCK_BYTES 65536
#define SLAB_GRANULE     16
#define SLAB_BYTES_MAX   1024 /* longer ones are malloc()'s */
#define SLAB_CLASS_COUNT (SLAB_BYTES_MAX / SLAB_GRANULE + 1)

struct slab_block;

struct slab {
    struct slab_block *vacant[SLAB_CLASS_COUNT]; /* blocks with room, by class */
    struct slab_block *empty;                    /* one is kept: no thrashing at a border */
    uint64_t block_bytes;                        /* of all blocks */
    uint64_t used_bytes;                         /* handed out */
};

void slab_init(struct slab *slab);
void slab_deinit(struct slab *slab); /* all is given back */

/* Not zeroed; NULL: no memory. */
void *slab_alloc(struct slab *slab, size_t bytes);
void slab_free(struct slab *slab, void *data, size_t bytes);

/* What @bytes take. */
static inline size_t slab_cost(size_t bytes)
{
    return (bytes + SLAB_GRANULE - 1) & ~(size_t)(SLAB_GRANULE - 1);
}

#endif
