/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SERVER_OUTPUT_H
#define WEIR_SERVER_OUTPUT_H

/*
 * output - what one connection has yet to send
 *
 * Pure but for the pool: short bytes are copied into chunks, long ones stay
 * where they are and are referred to, and marks between them say when all
 * before was sent. Bounded by segments, by bytes and by the pool.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "pool.h"

#define OUTPUT_SEGMENTS  32
#define OUTPUT_BYTES_MAX (UINT32_C(256) << 10)

struct output_segment {
    const char *data;
    uint32_t bytes;
    uint32_t mark_kind;
    struct chunk *chunk; /* the bytes lie in it; NULL: somewhere else */
    void *mark;          /* not NULL: no bytes, but something to tell */
};

struct output {
    struct output_segment segments[OUTPUT_SEGMENTS];
    uint32_t first;
    uint32_t count;
    uint32_t sending;    /* of these, in the kernel's hands: they do not grow */
    struct chunk *chunk; /* where copies go; counted by the output itself */
    uint32_t chunk_bytes;
    uint32_t chunk_count;
    uint64_t bytes;
};

/* Whether there is nothing left to send or to tell. */
static inline bool output_is_empty(const struct output *output)
{
    return output->count == 0;
}

/* Whether a short header and what belongs to it can be added now. */
bool output_has_room(const struct output *output);

/* Copies what there is room for; returns how many bytes were taken. */
size_t output_copy(struct output *output, struct pool *pool, const char *data, size_t bytes);

/* These bytes, where they are; false: no room now. */
bool output_refer(struct output *output, const char *data, size_t bytes);

/* Tell @mark once all before it was sent; false: no room now. */
bool output_mark(struct output *output, uint32_t kind, void *mark);

/* What to send next; those segments stay as they are until output_advance(). */
int output_gather(struct output *output, struct iovec *ret_vectors, int vector_max,
                  size_t *ret_bytes);

/* @bytes were sent; marks that were passed are told. */
void output_advance(struct output *output, struct pool *pool, size_t bytes,
                    void (*passed)(void *context, uint32_t kind, void *mark), void *context);

/* Forget what was not sent; the marks are told. */
void output_drop(struct output *output, struct pool *pool,
                 void (*passed)(void *context, uint32_t kind, void *mark), void *context);

#endif
