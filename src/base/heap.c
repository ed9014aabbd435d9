/* SPDX-License-Identifier: MIT */
/*
 * heap - malloc() with books
 *
 * The books are told what was asked for plus the allocator's header, not the
 * rounding of its size classes: the governor's drift figure shows that.
 */
#include "base/heap.h"

#include "base/bits.h"
#include "base/check.h"

#include <stdlib.h>

#define HEAP_HEADER_BYTES 16

void weir__heap_account(struct weir__heap *heap, int64_t bytes)
{
    if (heap == NULL)
        return;

    heap->bytes += (uint64_t)bytes;
    if (heap->books.charge != NULL)
        heap->books.charge(heap->books.context, bytes);
}

void *weir__heap_alloc(struct weir__heap *heap, size_t bytes)
{
    void *data = calloc(1, bytes > 0 ? bytes : 1);

    if (data == NULL)
        return NULL;
    weir__heap_account(heap, (int64_t)bytes + HEAP_HEADER_BYTES);
    return data;
}

void *weir__heap_alloc_aligned(struct weir__heap *heap, size_t bytes, size_t alignment)
{
    void *data = aligned_alloc(alignment, weir__round_up(bytes > 0 ? bytes : 1, alignment));

    if (data == NULL)
        return NULL;
    weir__heap_account(heap, (int64_t)bytes + HEAP_HEADER_BYTES);
    return data;
}

void *weir__heap_resize(struct weir__heap *heap, void *data, size_t bytes, size_t bytes_new)
{
    void *data_new = realloc(data, bytes_new > 0 ? bytes_new : 1);

    if (data_new == NULL)
        return NULL;
    weir__heap_account(heap, (int64_t)bytes_new - (int64_t)bytes +
                                 (data == NULL ? HEAP_HEADER_BYTES : 0));
    return data_new;
}

void weir__heap_free(struct weir__heap *heap, void *data, size_t bytes)
{
    if (data == NULL)
        return;

    free(data);
    if (heap != NULL)
        WEIR_ASSERT(heap->bytes >= bytes + HEAP_HEADER_BYTES);
    weir__heap_account(heap, -(int64_t)bytes - HEAP_HEADER_BYTES);
}
