/* SPDX-License-Identifier: MIT */
#ifndef WEIR_HARNESS_HEAP_FAULT_H
#define WEIR_HARNESS_HEAP_FAULT_H

/*
 * heap_fault - the N-th call of the charged allocator fails, once or from then on
 *
 * For programs linked with -Wl,--wrap=weir__heap_alloc,--wrap=weir__heap_alloc_aligned,
 * --wrap=weir__heap_resize; one source of a program includes it.
 */

#include "base/heap.h"

#include <stdbool.h>
#include <stdint.h>

static uint64_t heap_fault_at; /* 0: none fails */
static uint64_t heap_fault_count;
static bool heap_fault_lasts;
static bool heap_fault_fired;

void *__real_weir__heap_alloc(struct weir__heap *heap, size_t bytes);
void *__real_weir__heap_alloc_aligned(struct weir__heap *heap, size_t bytes, size_t alignment);
void *__real_weir__heap_resize(struct weir__heap *heap, void *data, size_t bytes, size_t bytes_new);
void *__wrap_weir__heap_alloc(struct weir__heap *heap, size_t bytes);
void *__wrap_weir__heap_alloc_aligned(struct weir__heap *heap, size_t bytes, size_t alignment);
void *__wrap_weir__heap_resize(struct weir__heap *heap, void *data, size_t bytes, size_t bytes_new);

static inline void heap_fault_arm(uint64_t at, bool lasts)
{
    heap_fault_at = at;
    heap_fault_count = 0;
    heap_fault_lasts = lasts;
    heap_fault_fired = false;
}

static inline bool heap_fault_now(void)
{
    heap_fault_count++;
    if (heap_fault_at == 0 || heap_fault_count < heap_fault_at ||
        (!heap_fault_lasts && heap_fault_count > heap_fault_at))
        return false;
    heap_fault_fired = true;
    return true;
}

void *__wrap_weir__heap_alloc(struct weir__heap *heap, size_t bytes)
{
    return heap_fault_now() ? NULL : __real_weir__heap_alloc(heap, bytes);
}

void *__wrap_weir__heap_alloc_aligned(struct weir__heap *heap, size_t bytes, size_t alignment)
{
    return heap_fault_now() ? NULL : __real_weir__heap_alloc_aligned(heap, bytes, alignment);
}

void *__wrap_weir__heap_resize(struct weir__heap *heap, void *data, size_t bytes, size_t bytes_new)
{
    return heap_fault_now() ? NULL : __real_weir__heap_resize(heap, data, bytes, bytes_new);
}

#endif
