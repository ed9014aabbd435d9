/* SPDX-License-Identifier: MIT */
/*
 * pool - a stack of vacant buffers, and how many there may be
 *
 * A vacant chunk is still memory, so it is still in the books: what the pool
 * tells them is what it has taken from malloc, no matter who uses it. Those that
 * come and go with each reply are no surplus: only what nobody had for a while is
 * given back when memory is short.
 */
#include "pool.h"

#include <assert.h>
#include <stdlib.h>

#include "keyspace.h"

#define POOL_VACANT_MAX 64

static const int64_t chunk_cost = (int64_t)(POOL_CHUNK_BYTES + 16);

static void pool_tell(struct pool *pool, int64_t bytes)
{
    if (pool->books.charge != NULL)
        pool->books.charge(pool->books.context, bytes);
}

void pool_init(struct pool *pool, struct weir_books books, uint32_t spare_max)
{
    *pool = (struct pool){.books = books, .spare_max = spare_max};
}

static void pool_shrink(struct pool *pool, uint32_t vacant_max)
{
    while (pool->vacant_count > vacant_max) {
        struct chunk *chunk = pool->vacant;

        pool->vacant = chunk->next;
        pool->vacant_count--;
        free(chunk);
        pool_tell(pool, -chunk_cost);
    }
    if (pool->idle_count > pool->vacant_count)
        pool->idle_count = pool->vacant_count;
}

void pool_deinit(struct pool *pool)
{
    assert(pool->used_count == 0 && pool->spare_count == 0);
    pool_shrink(pool, 0);
}

struct chunk *pool_take(struct pool *pool, bool is_spare)
{
    struct chunk *chunk = pool->vacant;

    if (is_spare && pool->spare_count >= pool->spare_max)
        return NULL;
    if (chunk != NULL) {
        pool->vacant = chunk->next;
        pool->vacant_count--;
        if (pool->idle_count > pool->vacant_count)
            pool->idle_count = pool->vacant_count;
    } else {
        chunk = malloc(POOL_CHUNK_BYTES);
        if (chunk == NULL)
            return NULL;
        pool_tell(pool, chunk_cost);
    }
    chunk->next = NULL;
    chunk->reference_count = 1;
    pool->used_count++;
    pool->spare_count += is_spare;
    return chunk;
}

void pool_give(struct pool *pool, struct chunk *chunk, bool is_spare)
{
    assert(pool->used_count > 0);
    chunk->next = pool->vacant;
    pool->vacant = chunk;
    pool->vacant_count++;
    pool->used_count--;
    pool->spare_count -= is_spare;
    pool_shrink(pool, POOL_VACANT_MAX);
}

void pool_age(struct pool *pool)
{
    pool->idle_count = pool->vacant_count;
}

uint64_t pool_trim(struct pool *pool, uint64_t bytes)
{
    uint64_t count = bytes / (uint64_t)chunk_cost + 1;

    if (count > pool->idle_count)
        count = pool->idle_count;
    pool->idle_count -= (uint32_t)count;
    pool_shrink(pool, pool->vacant_count - (uint32_t)count);
    return count * (uint64_t)chunk_cost;
}
