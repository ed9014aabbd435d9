/* SPDX-License-Identifier: MIT */
/*
 * slab - blocks of 64 KiB, each for one size
 *
 *      | head | cell | cell | ... |
 *
 * A block is aligned to its size, so that a cell finds its head. Vacant cells
 * are a list inside the block; cells never used yet are above `fresh` and have
 * not been touched. A block whose cells are all vacant goes back to the kernel,
 * but for one.
 *
 *   L1  a block is in the list of its class if and only if it has a vacant cell
 *   L2  used_count cells of a block are handed out
 */
#include "slab.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct cell {
    struct cell *next;
};

struct slab_block {
    struct slab_block *next;
    struct slab_block *previous;
    struct cell *vacant;
    uint32_t cell_bytes;
    uint32_t used_count;
    uint32_t fresh; /* offset of the first cell that was never used */
};

#define SLAB_HEAD_BYTES 48
_Static_assert(SLAB_HEAD_BYTES >= sizeof(struct slab_block), "the head fits");
_Static_assert(SLAB_HEAD_BYTES % SLAB_GRANULE == 0, "cells are aligned");

void slab_init(struct slab *slab)
{
    memset(slab, 0, sizeof(*slab));
}

static void block_unmap(struct slab *slab, struct slab_block *block)
{
    munmap(block, SLAB_BLOCK_BYTES);
    slab->block_bytes -= SLAB_BLOCK_BYTES;
}

void slab_deinit(struct slab *slab)
{
    assert(slab->used_bytes == 0);
    if (slab->empty != NULL)
        block_unmap(slab, slab->empty);
    slab->empty = NULL;
}

/* Twice as much is mapped, and what is not aligned given back. */
static struct slab_block *block_map(struct slab *slab)
{
    char *start = mmap(NULL, (size_t)2 * SLAB_BLOCK_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    size_t before;

    if (start == MAP_FAILED)
        return NULL;
    before = (0 - (uintptr_t)start) % SLAB_BLOCK_BYTES;
    if (before > 0)
        munmap(start, before);
    munmap(start + before + SLAB_BLOCK_BYTES, SLAB_BLOCK_BYTES - before);
    slab->block_bytes += SLAB_BLOCK_BYTES;
    return (struct slab_block *)(void *)(start + before);
}

static void block_enlist(struct slab *slab, struct slab_block *block)
{
    struct slab_block **first = &slab->vacant[block->cell_bytes / SLAB_GRANULE];

    block->previous = NULL;
    block->next = *first;
    if (*first != NULL)
        (*first)->previous = block;
    *first = block;
}

static void block_delist(struct slab *slab, struct slab_block *block)
{
    if (block->previous != NULL)
        block->previous->next = block->next;
    else
        slab->vacant[block->cell_bytes / SLAB_GRANULE] = block->next;
    if (block->next != NULL)
        block->next->previous = block->previous;
}

static bool block_is_full(const struct slab_block *block)
{
    return block->vacant == NULL && block->fresh + block->cell_bytes > SLAB_BLOCK_BYTES;
}

static struct slab_block *block_make(struct slab *slab, uint32_t cell_bytes)
{
    struct slab_block *block = slab->empty;

    slab->empty = NULL;
    if (block == NULL)
        block = block_map(slab);
    if (block == NULL)
        return NULL;
    block->vacant = NULL;
    block->cell_bytes = cell_bytes;
    block->used_count = 0;
    block->fresh = SLAB_HEAD_BYTES;
    block_enlist(slab, block);
    return block;
}

void *slab_alloc(struct slab *slab, size_t bytes)
{
    const uint32_t cell_bytes = (uint32_t)slab_cost(bytes);
    struct slab_block *block;
    void *data;

    if (bytes > SLAB_BYTES_MAX)
        return malloc(bytes);
    assert(bytes >= sizeof(struct cell));
    block = slab->vacant[cell_bytes / SLAB_GRANULE];
    if (block == NULL)
        block = block_make(slab, cell_bytes);
    if (block == NULL)
        return NULL;
    if (block->vacant != NULL) {
        data = block->vacant;
        block->vacant = block->vacant->next;
    } else {
        data = (char *)block + block->fresh;
        block->fresh += cell_bytes;
    }
    block->used_count++;
    slab->used_bytes += cell_bytes;
    if (block_is_full(block))
        block_delist(slab, block); /* L1 */
    return data;
}

void slab_free(struct slab *slab, void *data, size_t bytes)
{
    struct slab_block *block;
    struct cell *cell = data;
    bool was_full;

    if (bytes > SLAB_BYTES_MAX) {
        free(data);
        return;
    }
    block = (struct slab_block *)(void *)((char *)data - (uintptr_t)data % SLAB_BLOCK_BYTES);
    assert(block->cell_bytes == slab_cost(bytes) && block->used_count > 0); /* L2 */
    was_full = block_is_full(block);
    cell->next = block->vacant;
    block->vacant = cell;
    block->used_count--;
    slab->used_bytes -= block->cell_bytes;
    if (was_full)
        block_enlist(slab, block);
    if (block->used_count > 0)
        return;
    block_delist(slab, block);
    if (slab->empty == NULL)
        slab->empty = block;
    else
        block_unmap(slab, block);
}
