/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BASE_HEAP_H
#define WEIR_BASE_HEAP_H

/*
 * heap - the charged allocator
 *
 * Every byte that a module takes after its creation passes here and is told to
 * the books that the module was given. The only door to malloc().
 *
 * Where @heap is NULL nobody is told: for the object itself, which open and
 * create take before there are books, and which close and destroy give back.
 */

#include <weir/base.h>

#include <stddef.h>
#include <stdint.h>

struct weir__heap {
    struct weir_books books; /* fixed at creation */
    uint64_t bytes;          /* now held; equals what the books were told */
};

/* Zeroed; NULL when the kernel refuses. @bytes may be 0. */
void *weir__heap_alloc(struct weir__heap *heap, size_t bytes);

/* New bytes are not zeroed; NULL leaves @data as it was. */
void *weir__heap_resize(struct weir__heap *heap, void *data, size_t bytes, size_t bytes_new);

/* @bytes as it was asked for; takes NULL */
void weir__heap_free(struct weir__heap *heap, void *data, size_t bytes);

/* As weir__heap_alloc(), aligned to @alignment (a power of two), not zeroed. */
void *weir__heap_alloc_aligned(struct weir__heap *heap, size_t bytes, size_t alignment);

/* Tell the books of memory that came from elsewhere: a mapping, a table. */
void weir__heap_account(struct weir__heap *heap, int64_t bytes);

#endif
