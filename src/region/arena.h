/* SPDX-License-Identifier: MIT */
#ifndef WEIR_REGION_ARENA_H
#define WEIR_REGION_ARENA_H

/*
 * arena - memory for payload that is not in the mapping: fetch buffers, copies
 *
 * Whole pages that stay out of core dumps and of children, as the mapping does.
 */

#include <stdbool.h>
#include <stdint.h>

#define ARENA_PAGE_BYTES UINT64_C(4096)

struct weir__arena {
    char *base;         /* fixed; NULL: each buffer has a mapping of its own */
    uint64_t *taken;    /* a bit for each page; lies in front of base */
    uint64_t count;     /* fixed; pages */
    uint64_t limit;     /* of these, the first that may be taken now */
    uint64_t over;      /* taken behind the limit, from before */
    uint64_t from;      /* every page before it is taken */
    bool wipes;         /* fixed: what comes back is overwritten */
    uint64_t own_count; /* buffers with a mapping of their own */
};

/* Addresses for @bytes, whole pages; memory comes with the first store. */
void weir__arena_open(struct weir__arena *arena, uint64_t bytes, bool wipes);

/* All that was taken must have come back. */
void weir__arena_close(struct weir__arena *arena);

/* Not more than @bytes of memory from now on, beside what is taken: at most as at open. */
void weir__arena_limit(struct weir__arena *arena, uint64_t bytes);

/* Aligned to a page, not zeroed; NULL when the kernel refuses. @bytes > 0. */
void *weir__arena_alloc(struct weir__arena *arena, uint64_t bytes);

/* @bytes as it was asked for. */
void weir__arena_free(struct weir__arena *arena, void *data, uint64_t bytes);

#endif
