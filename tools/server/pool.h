/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SERVER_POOL_H
#define WEIR_SERVER_POOL_H

/*
 * pool - buffers of one core, all of one size, told to its books
 *
 * Some are always granted (the input of a connection, its first output); those
 * beyond share what the pool may hold.
 */

#include <stdbool.h>
#include <stdint.h>

#include <weir/base.h>

#define POOL_CHUNK_BYTES 16384

struct chunk {
    struct chunk *next;
    uint32_t reference_count;
    char data[];
};

struct pool {
    struct weir_books books;
    struct chunk *vacant;
    uint32_t vacant_count;
    uint32_t idle_count; /* of these nobody had any since pool_age() */
    uint32_t used_count;
    uint32_t spare_max; /* used beyond those that must be: refused above */
    uint32_t spare_count;
};

void pool_init(struct pool *pool, struct weir_books books, uint32_t spare_max);
void pool_deinit(struct pool *pool); /* all chunks are back */

/* NULL: no memory, or a spare one beyond spare_max. */
struct chunk *pool_take(struct pool *pool, bool is_spare);
void pool_give(struct pool *pool, struct chunk *chunk, bool is_spare);

/* What is vacant from now to the next time is idle. */
void pool_age(struct pool *pool);

/* Gives about @bytes of idle chunks back to the system; returns how many. */
uint64_t pool_trim(struct pool *pool, uint64_t bytes);

#endif
