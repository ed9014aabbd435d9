/* SPDX-License-Identifier: MIT */
/*
 * reader - pieces of a sealed file
 *
 *      asked for           |.......................|
 *      pages      |    :   |    |    |    |    | : |
 *      steps      |  bounce     |  straight    |bounce|
 *
 * What is whole pages, and lies right in the caller's buffer, is read straight
 * into it; the rest passes through a bounce buffer, in steps of a block. Every page
 * is compared with its checksum before any byte of it counts.
 */
#include "scratch/scratch_state.h"

#include "base/bits.h"
#include "base/check.h"

#include <errno.h>
#include <string.h>

struct weir_scratch_file {
    struct weir__body *body;
};

struct weir_scratch_reader {
    struct weir__body *body;
};

/* One call, of either form. */
struct read_request {
    struct weir__transfer transfer;
    struct weir__body *body; /* held */
    struct weir_operation *operation;
    char *buffer;
    uint64_t offset; /* in the file, of the next byte to come */
    uint64_t bytes;  /* still to come */
    uint64_t copied_bytes;
    char *bounce;
    uint64_t page_offset; /* of the present step */
    uint64_t page_bytes;
    bool is_straight;
};

/* ---- Files and readers -------------------------------------------------- */

struct weir_scratch_file *weir__file_new(struct weir__body *body)
{
    struct weir_scratch_file *file = weir__heap_alloc(&body->scratch->heap, sizeof(*file));

    if (file == NULL)
        return NULL;
    file->body = body;
    weir__body_hold(body);
    body->scratch->figures.file_count++;
    return file;
}

uint64_t weir_scratch_file_bytes(const struct weir_scratch_file *file)
{
    return file->body->bytes;
}

void weir_scratch_drop(struct weir_scratch_file *file)
{
    if (file == NULL)
        return;

    struct weir__body *body = file->body;
    struct weir_scratch *scratch = body->scratch;
    WEIR_ASSERT(weir__scratch_is_mine(scratch));
    weir__heap_free(&scratch->heap, file, sizeof(*file));
    scratch->figures.file_count--;
    weir__body_let_go(body);
}

int weir_scratch_reader_open(struct weir_scratch_file *file,
                             struct weir_scratch_reader **ret_reader)
{
    struct weir_scratch *scratch = file->body->scratch;

    WEIR_ASSERT(weir__scratch_is_mine(scratch));
    struct weir_scratch_reader *reader = weir__heap_alloc(&scratch->heap, sizeof(*reader));
    if (reader == NULL)
        return -ENOMEM;
    reader->body = file->body;
    weir__body_hold(reader->body);
    scratch->figures.reader_count++;
    *ret_reader = reader;
    return 0;
}

void weir_scratch_reader_close(struct weir_scratch_reader *reader)
{
    if (reader == NULL)
        return;

    struct weir__body *body = reader->body;
    struct weir_scratch *scratch = body->scratch;
    WEIR_ASSERT(weir__scratch_is_mine(scratch));
    weir__heap_free(&scratch->heap, reader, sizeof(*reader));
    scratch->figures.reader_count--;
    weir__body_let_go(body);
}

uint64_t weir_scratch_reader_bytes(const struct weir_scratch_reader *reader)
{
    return reader->body->bytes;
}

/* ---- Steps -------------------------------------------------------------- */

static void read_begin(struct read_request *request, struct weir__body *body, uint64_t offset,
                       void *buffer, uint64_t bytes)
{
    *request = (struct read_request){
        .body = body,
        .buffer = buffer,
        .offset = offset,
        .bytes = offset < body->bytes ? weir__min(bytes, body->bytes - offset) : 0,
    };
}

/* Which pages come next, and whether straight to where they are wanted; or -ENOMEM. */
static int read_aim(struct read_request *request)
{
    uint64_t end = request->offset + request->bytes;
    char *to = request->buffer + request->copied_bytes;
    bool fits = request->offset % SCRATCH_PAGE_BYTES == 0 &&
                (uintptr_t)to % SCRATCH_PAGE_BYTES == 0 && request->bytes >= SCRATCH_PAGE_BYTES;

    request->is_straight = fits;
    request->page_offset = weir__round_down(request->offset, SCRATCH_PAGE_BYTES);
    if (fits) {
        request->page_bytes = weir__round_down(request->bytes, SCRATCH_PAGE_BYTES);
        return 0;
    }
    request->page_bytes = weir__min(weir__round_up(end, SCRATCH_PAGE_BYTES) - request->page_offset,
                                    SCRATCH_BLOCK_BYTES);
    if (request->bounce == NULL)
        request->bounce = weir__heap_alloc_aligned(&request->body->scratch->heap,
                                                   SCRATCH_BLOCK_BYTES, SCRATCH_PAGE_BYTES);
    return request->bounce != NULL ? 0 : -ENOMEM;
}

static char *read_target(const struct read_request *request)
{
    return request->is_straight ? request->buffer + request->copied_bytes : request->bounce;
}

/* The pages have come: 0 or -EBADMSG. */
static int read_take(struct read_request *request)
{
    const char *pages = read_target(request);
    uint64_t skipped = request->offset - request->page_offset;
    uint64_t bytes = weir__min(request->bytes, request->page_bytes - skipped);
    int r = weir__body_verify(request->body, pages, request->page_bytes, request->page_offset);

    if (r < 0)
        return r;
    if (!request->is_straight)
        memcpy(request->buffer + request->copied_bytes, pages + skipped, bytes);
    request->body->scratch->figures.read_bytes += request->page_bytes;
    request->offset += bytes;
    request->bytes -= bytes;
    request->copied_bytes += bytes;
    return 0;
}

static void read_end(struct read_request *request, int error)
{
    struct weir_scratch *scratch = request->body->scratch;

    scratch->figures.error_count += error < 0;
    weir__heap_free(&scratch->heap, request->bounce, SCRATCH_BLOCK_BYTES);
    request->bounce = NULL;
}

static void read_memory(struct read_request *request)
{
    if (request->bytes > 0)
        memcpy(request->buffer, request->body->block + request->offset, request->bytes);
    request->copied_bytes = request->bytes;
    request->bytes = 0;
}

/* ---- Blocking ----------------------------------------------------------- */

int weir_scratch_read(struct weir_scratch_reader *reader, uint64_t offset, void *buffer,
                      size_t bytes, size_t *ret_bytes)
{
    struct read_request request;
    int r = 0;

    WEIR_ASSERT(weir__scratch_is_mine(reader->body->scratch));
    read_begin(&request, reader->body, offset, buffer, bytes);
    if (!reader->body->has_rolled)
        read_memory(&request);
    while (r == 0 && request.bytes > 0) {
        r = read_aim(&request);
        if (r == 0)
            r = weir__body_read(request.body, read_target(&request), request.page_bytes,
                                request.page_offset);
        if (r == 0)
            r = read_take(&request);
    }
    read_end(&request, r);
    if (r == 0)
        *ret_bytes = request.copied_bytes;
    return r;
}

/* ---- Operations --------------------------------------------------------- */

static void read_finish(struct read_request *request, int error)
{
    struct weir__body *body = request->body;
    struct weir_scratch *scratch = body->scratch;
    struct weir_operation *operation = request->operation;
    int result = error < 0 ? error : (int)request->copied_bytes;

    read_end(request, error);
    weir__heap_free(&scratch->heap, request, sizeof(*request));
    weir__body_let_go(body);
    operation->complete(operation, result, 0);
}

static void read_came(struct weir__transfer *transfer, int result);

/* The next step, if there is one: 1: under way; 0: all has come; or -ENOMEM. */
static int read_go_on(struct read_request *request)
{
    if (request->bytes == 0)
        return 0;
    int r = read_aim(request);
    if (r < 0)
        return r;
    request->transfer.complete = read_came;
    weir__transfer_read(&request->transfer, request->body, read_target(request),
                        request->page_bytes, request->page_offset);
    return 1;
}

static void read_came(struct weir__transfer *transfer, int result)
{
    struct read_request *request = WEIR_CONTAINER_OF(transfer, struct read_request, transfer);

    if (result == 0 && transfer->bytes > 0)
        result = read_take(request);
    if (result == 0)
        result = read_go_on(request);
    if (result <= 0)
        read_finish(request, result);
}

int weir_scratch_read_start(struct weir_scratch_reader *reader, uint64_t offset, void *buffer,
                            size_t bytes, struct weir_operation *operation)
{
    struct weir__body *body = reader->body;
    struct weir_scratch *scratch = body->scratch;

    WEIR_ASSERT(weir__scratch_is_mine(scratch));
    if (bytes > SCRATCH_START_MAX || operation == NULL)
        return -EINVAL;
    struct read_request *request = weir__heap_alloc(&scratch->heap, sizeof(*request));
    if (request == NULL)
        return -ENOMEM;
    read_begin(request, body, offset, buffer, bytes);
    request->operation = operation;
    weir__body_hold(body);
    if (!body->has_rolled)
        read_memory(request);

    int r = read_go_on(request);
    if (r < 0) {
        read_end(request, r);
        weir__heap_free(&scratch->heap, request, sizeof(*request));
        weir__body_let_go(body);
        return r;
    }
    if (r == 0) {
        request->transfer.complete = read_came;
        weir__transfer_nothing(&request->transfer, body, 0);
    }
    return 0;
}
