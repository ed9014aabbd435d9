/* SPDX-License-Identifier: MIT */
/*
 * writer - appends, all or nothing
 *
 *      block   |old end|new ............| full: written, but kept until the end
 *      spares          |new ............| two of them in turn, each written as
 *                      |new ............| the other is filled
 *
 * An append that fails half-way leaves the writer as it was: the block that held
 * the old end is not used again before the append has succeeded, so that its
 * front is still there. Appends that end in the block, as most do, copy and
 * nothing else. The spare that holds the new end becomes the block.
 *
 * Both forms walk the same steps. The blocking one writes each full block where it
 * stands; the other starts a transfer and goes on with the next spare that is not
 * on its way.
 *
 *   A1  block_fill bytes of the block lie behind disk_end; that sum is what was
 *       appended for good, outside of an append
 *   A2  an append that is under way has the writer; nothing else gets in
 */
#include "scratch/scratch_state.h"

#include "base/bits.h"
#include "base/check.h"

#include <errno.h>
#include <string.h>

#define WRITER_SPARE_COUNT 2

/* A buffer beyond the first block, and its way to the disk. */
struct writer_buffer {
    struct weir__transfer transfer;
    struct weir_scratch_writer *writer;
    char *data; /* the block itself, for the first */
    bool is_under_way;
};

struct weir_scratch_writer {
    struct weir__body *body;
    uint64_t disk_end;   /* A1 */
    uint64_t block_fill; /* A1 */
    bool is_aborted;

    /* What follows is of the append that is under way (A2). */
    bool is_appending;
    struct weir_operation *operation; /* NULL: it blocks */
    const char *data;
    uint64_t bytes;
    uint64_t copied_bytes;
    uint64_t end;  /* on disk, of what was given to transfers */
    uint64_t fill; /* of the buffer that is being filled */
    int error;
    struct writer_buffer first; /* the block */
    struct writer_buffer spares[WRITER_SPARE_COUNT];
    struct writer_buffer *filling;
    struct weir__transfer nothing; /* completes what had nothing to write */
};

/* ---- Lifecycle ---------------------------------------------------------- */

int weir_scratch_create(struct weir_scratch *scratch, struct weir_scratch_writer **ret_writer)
{
    WEIR_ASSERT(weir__scratch_is_mine(scratch));

    struct weir_scratch_writer *writer = weir__heap_alloc(&scratch->heap, sizeof(*writer));
    if (writer == NULL)
        return -ENOMEM;
    *writer = (struct weir_scratch_writer){.body = weir__body_new(scratch)};
    if (writer->body == NULL) {
        weir__heap_free(&scratch->heap, writer, sizeof(*writer));
        return -ENOMEM;
    }
    writer->first.writer = writer;
    for (int i = 0; i < WRITER_SPARE_COUNT; i++)
        writer->spares[i].writer = writer;
    scratch->figures.writer_count++;
    *ret_writer = writer;
    return 0;
}

/* Its body goes with it, or lives on in a file. */
static void writer_free(struct weir_scratch_writer *writer)
{
    struct weir_scratch *scratch = writer->body->scratch;

    weir__body_let_go(writer->body);
    weir__heap_free(&scratch->heap, writer, sizeof(*writer));
}

void weir_scratch_abort(struct weir_scratch_writer *writer)
{
    if (writer == NULL)
        return;

    WEIR_ASSERT(weir__scratch_is_mine(writer->body->scratch));
    WEIR_CHECK(!writer->is_aborted);
    writer->body->scratch->figures.writer_count--;
    writer->is_aborted = true;
    if (!writer->is_appending)
        writer_free(writer);
}

uint64_t weir_scratch_writer_bytes(const struct weir_scratch_writer *writer)
{
    return writer->disk_end + writer->block_fill;
}

/* ---- Steps of an append ------------------------------------------------- */

/* The next bytes into the buffer that is being filled; whether it is full now. */
static bool writer_fill(struct weir_scratch_writer *writer)
{
    uint64_t part =
        weir__min(SCRATCH_BLOCK_BYTES - writer->fill, writer->bytes - writer->copied_bytes);

    memcpy(writer->filling->data + writer->fill, writer->data + writer->copied_bytes, part);
    writer->fill += part;
    writer->copied_bytes += part;
    return writer->fill == SCRATCH_BLOCK_BYTES;
}

/* A spare that is not on its way; 0: both are; or -ENOMEM. */
static int writer_next_spare(struct weir_scratch_writer *writer)
{
    struct weir__heap *heap = &writer->body->scratch->heap;

    for (int i = 0; i < WRITER_SPARE_COUNT; i++) {
        struct writer_buffer *spare = &writer->spares[i];
        if (spare->is_under_way)
            continue;
        if (spare->data == NULL)
            spare->data = weir__heap_alloc_aligned(heap, SCRATCH_BLOCK_BYTES, SCRATCH_PAGE_BYTES);
        if (spare->data == NULL)
            return -ENOMEM;
        writer->filling = spare;
        writer->fill = 0;
        return 1;
    }
    return 0;
}

static void writer_begin(struct weir_scratch_writer *writer, const void *data, uint64_t bytes,
                         struct weir_operation *operation)
{
    writer->is_appending = true;
    writer->operation = operation;
    writer->data = data;
    writer->bytes = bytes;
    writer->copied_bytes = 0;
    writer->end = writer->disk_end;
    writer->fill = writer->block_fill;
    writer->error = 0;
    writer->first.data = writer->body->block;
    writer->filling = &writer->first;
}

/* It succeeded: the buffer with the new end is the block. */
static void writer_keep_end(struct weir_scratch_writer *writer)
{
    struct weir__body *body = writer->body;

    if (writer->filling != &writer->first) {
        char *old = body->block;
        body->block = writer->filling->data;
        writer->filling->data = old;
    }
    writer->disk_end = writer->end;
    writer->block_fill = writer->fill;
}

/* The cap gets back what a failed append took, and memory its spares. */
static void writer_end(struct weir_scratch_writer *writer)
{
    struct weir__body *body = writer->body;
    struct weir_scratch *scratch = body->scratch;

    if (writer->error == 0) {
        writer_keep_end(writer);
    } else {
        scratch->figures.error_count++;
        body->bytes -= writer->bytes;
        weir__scratch_give(scratch, writer->bytes);
    }
    for (int i = 0; i < WRITER_SPARE_COUNT; i++) {
        weir__heap_free(&scratch->heap, writer->spares[i].data, SCRATCH_BLOCK_BYTES);
        writer->spares[i].data = NULL;
    }
    writer->is_appending = false;
}

/* ---- In memory ---------------------------------------------------------- */

/* Whether the file may stay in memory with @bytes more. */
static bool writer_fits_memory(const struct weir_scratch_writer *writer, uint64_t bytes)
{
    const struct weir__body *body = writer->body;
    uint64_t total = writer->block_fill + bytes;

    if (body->has_rolled || total > body->scratch->memory_max)
        return false;
    return total <= body->block_bytes ||
           weir__scratch_has_memory(body->scratch, total - body->block_bytes);
}

/*
 * Take what comes from the cap and make room in the block for it, or a file. What
 * is not yet appended is part of bytes from here on (B1).
 */
static int writer_prepare(struct weir_scratch_writer *writer, uint64_t bytes)
{
    struct weir__body *body = writer->body;
    struct weir_scratch *scratch = body->scratch;
    int r = weir__scratch_take(scratch, bytes);

    if (r < 0)
        return r;
    if (writer_fits_memory(writer, bytes))
        r = weir__body_grow_block(body, writer->block_fill + bytes);
    else
        r = weir__body_roll(body);
    if (r < 0) {
        weir__scratch_give(scratch, bytes);
        return r;
    }
    body->bytes += bytes;
    if (!body->has_rolled)
        scratch->figures.memory_bytes += bytes;
    return 0;
}

/* Most appends: nothing is full yet. */
static bool writer_ends_in_block(const struct weir_scratch_writer *writer, uint64_t bytes)
{
    return writer->block_fill + bytes < SCRATCH_BLOCK_BYTES || !writer->body->has_rolled;
}

static void writer_copy(struct weir_scratch_writer *writer, const void *data, uint64_t bytes)
{
    if (bytes > 0)
        memcpy(writer->body->block + writer->block_fill, data, bytes);
    writer->block_fill += bytes;
}

/* ---- Blocking ----------------------------------------------------------- */

/* What is full goes to the disk, and the next is filled. */
static int writer_write_full(struct weir_scratch_writer *writer)
{
    struct weir__body *body = writer->body;
    int r = weir__body_reserve(body, writer->end, SCRATCH_BLOCK_BYTES);

    if (r < 0)
        return r;
    weir__body_sum(body, writer->filling->data, SCRATCH_BLOCK_BYTES, writer->end);
    r = weir__body_write(body, writer->filling->data, SCRATCH_BLOCK_BYTES, writer->end);
    if (r < 0)
        return r;
    body->scratch->figures.written_bytes += SCRATCH_BLOCK_BYTES;
    writer->end += SCRATCH_BLOCK_BYTES;
    r = writer_next_spare(writer);
    return r < 0 ? r : 0;
}

int weir_scratch_append(struct weir_scratch_writer *writer, const void *data, size_t bytes)
{
    WEIR_ASSERT(weir__scratch_is_mine(writer->body->scratch));
    WEIR_CHECK(!writer->is_aborted);

    if (writer->is_appending)
        return -EBUSY;
    int r = writer_prepare(writer, bytes);
    if (r < 0)
        return r;
    if (writer_ends_in_block(writer, bytes)) {
        writer_copy(writer, data, bytes);
        return 0;
    }
    writer_begin(writer, data, bytes, NULL);
    while (writer->error == 0 && writer_fill(writer))
        writer->error = writer_write_full(writer);
    writer_end(writer);
    return writer->error;
}

/* ---- Operations --------------------------------------------------------- */

static void writer_written(struct weir__transfer *transfer, int result);

static void writer_finish(struct weir_scratch_writer *writer)
{
    struct weir_operation *operation = writer->operation;
    bool is_aborted = writer->is_aborted;
    int result = writer->error < 0 ? writer->error : (int)writer->bytes;

    if (is_aborted && writer->error == 0) {
        writer->error = -ECANCELED;
        result = -ECANCELED;
    }
    writer_end(writer);
    if (is_aborted)
        writer_free(writer);
    operation->complete(operation, result, 0);
}

static bool writer_is_writing(const struct weir_scratch_writer *writer)
{
    bool is_writing = writer->first.is_under_way;

    for (int i = 0; i < WRITER_SPARE_COUNT; i++)
        is_writing |= writer->spares[i].is_under_way;
    return is_writing;
}

static int writer_start_full(struct weir_scratch_writer *writer)
{
    struct writer_buffer *full = writer->filling;
    struct weir__body *body = writer->body;
    int r = weir__body_reserve(body, writer->end, SCRATCH_BLOCK_BYTES);

    if (r < 0)
        return r;
    weir__body_sum(body, full->data, SCRATCH_BLOCK_BYTES, writer->end);
    full->is_under_way = true;
    full->transfer.complete = writer_written;
    weir__transfer_write(&full->transfer, body, full->data, SCRATCH_BLOCK_BYTES, writer->end);
    writer->end += SCRATCH_BLOCK_BYTES;
    writer->filling = NULL;
    return 0;
}

/* As far as buffers go; the rest when one of them has been written. */
static void writer_advance(struct weir_scratch_writer *writer)
{
    while (writer->error == 0 && !writer->is_aborted) {
        if (writer->filling == NULL) {
            int r = writer_next_spare(writer);
            writer->error = r < 0 ? r : 0;
            if (r <= 0)
                return;
        }
        if (!writer_fill(writer))
            return;
        writer->error = writer_start_full(writer);
    }
}

static void writer_written(struct weir__transfer *transfer, int result)
{
    struct writer_buffer *buffer = WEIR_CONTAINER_OF(transfer, struct writer_buffer, transfer);
    struct weir_scratch_writer *writer = buffer->writer;

    buffer->is_under_way = false;
    if (result < 0 && writer->error == 0)
        writer->error = result;
    if (result == 0)
        writer->body->scratch->figures.written_bytes += SCRATCH_BLOCK_BYTES;
    writer_advance(writer);
    if (!writer_is_writing(writer))
        writer_finish(writer);
}

static void writer_had_nothing(struct weir__transfer *transfer, int result)
{
    struct weir_scratch_writer *writer =
        WEIR_CONTAINER_OF(transfer, struct weir_scratch_writer, nothing);

    (void)result;
    writer_finish(writer);
}

int weir_scratch_append_start(struct weir_scratch_writer *writer, const void *data, size_t bytes,
                              struct weir_operation *operation)
{
    WEIR_ASSERT(weir__scratch_is_mine(writer->body->scratch));
    WEIR_CHECK(!writer->is_aborted);

    if (bytes > SCRATCH_START_MAX || operation == NULL)
        return -EINVAL;
    if (writer->is_appending)
        return -EBUSY;
    int r = writer_prepare(writer, bytes);
    if (r < 0)
        return r;
    writer_begin(writer, data, bytes, operation);
    if (writer_ends_in_block(writer, bytes)) {
        if (bytes > 0)
            memcpy(writer->first.data + writer->fill, data, bytes);
        writer->copied_bytes = bytes;
        writer->fill += bytes;
    } else {
        writer_advance(writer);
    }
    if (!writer_is_writing(writer)) {
        writer->nothing.complete = writer_had_nothing;
        weir__transfer_nothing(&writer->nothing, writer->body, 0);
    }
    return 0;
}

/* ---- Seal --------------------------------------------------------------- */

/* The end, filled up with zeroes to whole pages. */
static int writer_write_end(struct weir_scratch_writer *writer)
{
    struct weir__body *body = writer->body;
    uint64_t bytes = weir__round_up(writer->block_fill, SCRATCH_PAGE_BYTES);

    if (bytes == 0)
        return 0;
    int r = weir__body_reserve(body, writer->disk_end, bytes);
    if (r < 0)
        return r;
    memset(body->block + writer->block_fill, 0, bytes - writer->block_fill);
    weir__body_sum(body, body->block, bytes, writer->disk_end);
    r = weir__body_write(body, body->block, bytes, writer->disk_end);
    if (r == 0)
        body->scratch->figures.written_bytes += bytes;
    return r;
}

int weir_scratch_seal(struct weir_scratch_writer *take_writer, struct weir_scratch_file **ret_file)
{
    struct weir_scratch_writer *writer = take_writer;
    struct weir__body *body = writer->body;
    struct weir_scratch *scratch = body->scratch;

    WEIR_ASSERT(weir__scratch_is_mine(scratch));
    WEIR_CHECK(!writer->is_aborted);
    if (writer->is_appending)
        return -EBUSY;
    struct weir_scratch_file *file = weir__file_new(body);
    if (file == NULL)
        return -ENOMEM;
    int r = body->has_rolled ? writer_write_end(writer) : 0;
    if (r < 0) {
        scratch->figures.error_count++;
        weir_scratch_drop(file);
        return r;
    }
    if (body->has_rolled)
        weir__body_free_block(body);
    scratch->figures.writer_count--;
    writer_free(writer);
    *ret_file = file;
    return 0;
}
