/* SPDX-License-Identifier: MIT */
/*
 * output - a ring of segments
 *
 *      first     sending                          count
 *      | header | value | CRLF, header | value | mark | ...
 *         chunk   refer      chunk       refer
 *
 * Copies that follow each other in one chunk are one segment, unless the kernel
 * has it already. A chunk counts its segments and, while copies go there, the
 * output itself; the first chunk of a connection is always granted, so that a
 * reply gets on whatever the others hold.
 *
 * Invariants
 *
 *   I1  bytes is the sum of the segments' bytes
 *   I2  the first `sending` segments do not change until output_advance()
 */
#include "output.h"

#include <assert.h>
#include <string.h>

#define CHUNK_ROOM (POOL_CHUNK_BYTES - (uint32_t)sizeof(struct chunk))

static struct output_segment *segment_at(struct output *output, uint32_t position)
{
    return &output->segments[(output->first + position) % OUTPUT_SEGMENTS];
}

static struct output_segment *segment_add(struct output *output)
{
    struct output_segment *segment = segment_at(output, output->count);

    assert(output->count < OUTPUT_SEGMENTS);
    output->count++;
    *segment = (struct output_segment){0};
    return segment;
}

static void chunk_unref(struct output *output, struct pool *pool, struct chunk *chunk)
{
    if (--chunk->reference_count > 0)
        return;
    output->chunk_count--;
    pool_give(pool, chunk, output->chunk_count > 0);
}

bool output_has_room(const struct output *output)
{
    return output->count + 4 <= OUTPUT_SEGMENTS && output->bytes < OUTPUT_BYTES_MAX;
}

/* Somewhere to copy to; false: no segment or no chunk now. */
static bool chunk_ensure(struct output *output, struct pool *pool)
{
    struct chunk *chunk;

    if (output->chunk != NULL && output->chunk_bytes < CHUNK_ROOM)
        return true;
    chunk = pool_take(pool, output->chunk_count > 0);
    if (chunk == NULL)
        return false;
    output->chunk_count++;
    if (output->chunk != NULL)
        chunk_unref(output, pool, output->chunk);
    output->chunk = chunk;
    output->chunk_bytes = 0;
    return true;
}

size_t output_copy(struct output *output, struct pool *pool, const char *data, size_t bytes)
{
    size_t taken = 0;

    while (taken < bytes && output->bytes < OUTPUT_BYTES_MAX) {
        struct output_segment *last;
        size_t piece = bytes - taken;
        char *target;

        if (output->count + 2 > OUTPUT_SEGMENTS || !chunk_ensure(output, pool))
            break;
        if (piece > CHUNK_ROOM - output->chunk_bytes)
            piece = CHUNK_ROOM - output->chunk_bytes;
        target = output->chunk->data + output->chunk_bytes;
        memcpy(target, data + taken, piece);
        last = output->count > output->sending ? segment_at(output, output->count - 1) : NULL;
        if (last == NULL || last->chunk != output->chunk || last->data + last->bytes != target) {
            last = segment_add(output);
            last->data = target;
            last->chunk = output->chunk;
            output->chunk->reference_count++;
        }
        last->bytes += (uint32_t)piece;
        output->chunk_bytes += (uint32_t)piece;
        output->bytes += piece;
        taken += piece;
    }
    return taken;
}

bool output_refer(struct output *output, const char *data, size_t bytes)
{
    struct output_segment *segment;

    assert(bytes <= UINT32_MAX);
    if (output->count + 2 > OUTPUT_SEGMENTS)
        return false;
    segment = segment_add(output);
    segment->data = data;
    segment->bytes = (uint32_t)bytes;
    output->bytes += bytes;
    return true;
}

bool output_mark(struct output *output, uint32_t kind, void *mark)
{
    struct output_segment *segment;

    assert(mark != NULL);
    if (output->count == OUTPUT_SEGMENTS)
        return false;
    segment = segment_add(output);
    segment->mark = mark;
    segment->mark_kind = kind;
    return true;
}

int output_gather(struct output *output, struct iovec *ret_vectors, int vector_max,
                  size_t *ret_bytes)
{
    int count = 0;

    *ret_bytes = 0;
    for (uint32_t i = 0; i < output->count; i++) {
        const struct output_segment *segment = segment_at(output, i);

        if (segment->bytes > 0) {
            if (count == vector_max)
                break;
            ret_vectors[count].iov_base = (void *)(uintptr_t)segment->data;
            ret_vectors[count].iov_len = segment->bytes;
            *ret_bytes += segment->bytes;
            count++;
        }
        output->sending = i + 1;
    }
    return count;
}

void output_advance(struct output *output, struct pool *pool, size_t bytes,
                    void (*passed)(void *context, uint32_t kind, void *mark), void *context)
{
    assert(bytes <= output->bytes);
    output->bytes -= bytes;
    output->sending = 0;
    while (output->count > 0) {
        struct output_segment segment = *segment_at(output, 0);

        if (segment.bytes > bytes) {
            segment_at(output, 0)->data += bytes;
            segment_at(output, 0)->bytes -= (uint32_t)bytes;
            break;
        }
        bytes -= segment.bytes;
        output->first = (output->first + 1) % OUTPUT_SEGMENTS;
        output->count--;
        if (segment.chunk != NULL)
            chunk_unref(output, pool, segment.chunk);
        if (segment.mark != NULL)
            passed(context, segment.mark_kind, segment.mark);
    }
    if (output->count == 0 && output->chunk != NULL) {
        chunk_unref(output, pool, output->chunk);
        output->chunk = NULL;
    }
}

void output_drop(struct output *output, struct pool *pool,
                 void (*passed)(void *context, uint32_t kind, void *mark), void *context)
{
    output_advance(output, pool, output->bytes, passed, context);
}
