/* SPDX-License-Identifier: MIT */
/*
 * stream - ordered streams
 *
 *      WPUSH --> weir_reorder --> batch of items --> reply --> released
 *                    ^               |
 *                    |               +-- their bytes are sent from where they lie
 *      WPOP BLOCK waits here: served when the head comes, or comes back
 *
 * A batch is what one WPOP took. It ends at COUNT items, or with the first that
 * brings it to 256 KiB or is too long for memory, so that a reply stays bounded;
 * its bytes stay with the reorder buffer until the connection has sent them. An
 * item that is too long for memory is read piece by piece: it is the last of its
 * batch, and the fetched ones before it are given back first, for they hold what
 * the reading needs. A stream that is removed while batches of it are out leaves
 * the table at once and memory later.
 *
 *   T1  a stream is in the table and in the ring of all, or is_dead
 *   T2  a stream with blocked pops is in the list of those that wait
 *   T3  what is dead is destroyed with the last of its batches
 */
#include "stream.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stock.h"

#define STREAM_BATCH_BYTES (UINT64_C(256) << 10)
#define STREAM_TICK_NS     UINT64_C(5000000)
#define STREAM_INFO_BYTES  2048
#define STREAM_NONE        "-ERR no such stream\r\n"

struct stream {
    struct stream *next; /* in its bucket */
    struct stream *all_next;
    struct stream *all_previous;
    struct stream *service_next;
    struct stream *waiting_next;
    struct shard *shard;
    struct weir_reorder *reorder;
    struct request_list blocked;
    uint32_t blocked_count;
    uint32_t batch_count; /* out */
    uint32_t hash;
    bool is_in_service;
    bool is_waiting;
    bool is_dead;
    uint16_t name_bytes;
    char name[];
};

/* ---- The table ------------------------------------------------------------------ */

static struct stream **stream_bucket(struct shard *shard, uint32_t hash)
{
    return &shard->stream_table[hash & (((uint32_t)1 << shard->stream_bits) - 1)];
}

struct stream *stream_find(struct shard *shard, uint32_t hash, struct slice name)
{
    struct stream *stream = *stream_bucket(shard, hash);

    while (stream != NULL && (stream->hash != hash || stream->name_bytes != name.bytes ||
                              memcmp(stream->name, name.data, name.bytes) != 0))
        stream = stream->next;
    return stream;
}

/* Twice the buckets; without memory for them the chains grow longer instead. */
static void table_grow(struct shard *shard)
{
    const uint32_t count = (uint32_t)1 << shard->stream_bits;
    struct stream **old = shard->stream_table;
    struct stream **new = calloc((size_t)count * 2, sizeof(*new));

    if (new == NULL)
        return;
    weir_account_charge_forced(shard->tables, count * sizeof(*new));
    shard->stream_table = new;
    shard->stream_bits++;
    for (uint32_t i = 0; i < count; i++) {
        while (old[i] != NULL) {
            struct stream *stream = old[i];
            struct stream **bucket = stream_bucket(shard, stream->hash);

            old[i] = stream->next;
            stream->next = *bucket;
            *bucket = stream;
        }
    }
    free(old);
}

static size_t stream_cost(const struct stream *stream)
{
    return memory_cost(sizeof(*stream) + stream->name_bytes);
}

static void stream_mark(struct stream *stream)
{
    if (stream->is_in_service)
        return;
    stream->is_in_service = true;
    stream->service_next = stream->shard->stream_service;
    stream->shard->stream_service = stream;
}

static void stream_ready(void *context)
{
    stream_mark(context);
}

static int stream_make(struct shard *shard, uint32_t hash, struct slice name,
                       struct stream **ret_stream)
{
    struct stream *stream = calloc(1, sizeof(*stream) + name.bytes);
    const struct weir_reorder_config config = {
        .account = shard->values,
        .region = shard->region,
        .owner = SHARD_OWNER_STREAMS,
        .ready = stream_ready,
        .context = stream,
    };
    struct stream **bucket;
    int r;

    if (stream == NULL)
        return -ENOMEM;
    r = weir_reorder_create(&config, &stream->reorder);
    if (r < 0) {
        free(stream);
        return r;
    }
    stream->shard = shard;
    stream->hash = hash;
    stream->name_bytes = (uint16_t)name.bytes;
    memcpy(stream->name, name.data, name.bytes);
    weir_account_charge_forced(shard->tables, stream_cost(stream));
    if (shard->stream_count >= (uint32_t)1 << shard->stream_bits)
        table_grow(shard);
    bucket = stream_bucket(shard, hash);
    stream->next = *bucket;
    *bucket = stream;
    shard->stream_count++;
    if (shard->streams == NULL) {
        stream->all_next = stream;
        stream->all_previous = stream;
        shard->streams = stream;
    } else {
        stream->all_next = shard->streams;
        stream->all_previous = shard->streams->all_previous;
        stream->all_previous->all_next = stream;
        stream->all_next->all_previous = stream;
    }
    *ret_stream = stream;
    return 0;
}

/* T3, and not while a list of this turn still names it. */
static void stream_end(struct stream *stream)
{
    struct shard *shard = stream->shard;

    if (!stream->is_dead || stream->batch_count > 0 || stream->is_in_service || stream->is_waiting)
        return;
    weir_reorder_destroy(stream->reorder);
    shard_region_freed(shard);
    weir_account_refund(shard->tables, stream_cost(stream));
    shard->dying_count--;
    free(stream);
}

void stream_remove(struct shard *shard, struct stream *stream)
{
    struct stream **link = stream_bucket(shard, stream->hash);
    struct stream *heir = NULL;
    struct request *request;

    while (*link != stream)
        link = &(*link)->next;
    *link = stream->next;
    shard->stream_count--;
    stream->all_next->all_previous = stream->all_previous;
    stream->all_previous->all_next = stream->all_next;
    if (shard->streams == stream)
        shard->streams = stream->all_next != stream ? stream->all_next : NULL;
    stream->is_dead = true; /* T1 */
    shard->dying_count++;

    /* Who waits for items waits for those of the next stream of that name. */
    if (stream->blocked.first != NULL && !shard->is_stopping)
        (void)stream_make(shard, stream->hash,
                          (struct slice){.data = stream->name, .bytes = stream->name_bytes}, &heir);
    while ((request = request_list_take(&stream->blocked)) != NULL) {
        stream->blocked_count--;
        shard->blocked_count--;
        request->blocked_on = NULL;
        if (heir == NULL)
            request_reply_text(request, RESP_NIL_ARRAY);
        if (heir == NULL || stream_pop(shard, request) == PROGRESS_DONE)
            shard_answer(shard, request);
    }
    stream_end(stream);
}

void stream_remove_all(struct shard *shard)
{
    uint32_t count = shard->stream_count;

    while (count-- > 0 && shard->streams != NULL)
        stream_remove(shard, shard->streams);
}

/* ---- In ------------------------------------------------------------------------- */

bool stream_wants(struct shard *shard, const struct request *request)
{
    struct weir_reorder_stats stats;
    struct stream *stream;

    if (request->call.operation != OPERATION_WPUSH)
        return false;
    stream = stream_find(shard, request->hash, request->call.key);
    if (stream == NULL)
        return request->call.sequence == 0;
    weir_reorder_stats(stream->reorder, &stats);
    return stats.next_sequence == request->call.sequence;
}

static enum progress done_text(struct request *request, const char *text)
{
    request_reply_text(request, text);
    return PROGRESS_DONE;
}

static int push_payload(struct shard *shard, struct stream *stream, struct request *request)
{
    const struct call *call = &request->call;
    int r;

    if (!weir_slot_is_none(request->place.slot)) {
        r = weir_reorder_push_slot(stream->reorder, call->sequence, request->place.slot);
        if (r == 0)
            request->place.slot = (struct weir_slot){0};
        return r;
    }
    if (request->place.value != NULL) {
        r = weir_reorder_push(stream->reorder, call->sequence, request->place.value->data,
                              request->place.value->bytes);
        if (r == 0)
            stock_drop_place(shard, request);
        return r;
    }
    return weir_reorder_push(stream->reorder, call->sequence, call->payload.data,
                             call->payload.bytes);
}

enum progress stream_push(struct shard *shard, struct request *request)
{
    struct stream *stream = stream_find(shard, request->hash, request->call.key);
    int r = 0;

    if (stream == NULL)
        r = stream_make(shard, request->hash, request->call.key, &stream);
    if (r == 0)
        r = push_payload(shard, stream, request);
    switch (r) {
    case 0:
        if (stream->blocked.first != NULL)
            stream_mark(stream);
        return done_text(request, RESP_OK);
    case -EEXIST:
        return done_text(request, "-DUP this sequence is in the stream already\r\n");
    case -ERANGE:
        return done_text(request,
                         "-RANGE this sequence is delivered already, or too far ahead\r\n");
    case -EDQUOT:
    case -ENOSPC:
        shard_region_full(shard);
        return shard_wait_region(shard, request);
    case -EAGAIN:
        shard_region_behind(shard);
        return shard_wait_region(shard, request);
    default:
        shard_reply_oom(shard, request);
        return PROGRESS_DONE;
    }
}

/* ---- Out ------------------------------------------------------------------------ */

/*
 * As many items as there are, up to the bounds of a batch: PROGRESS_DONE with
 * items or an error, else PROGRESS_WAIT and why in *ret_why.
 */
static enum progress stream_take(struct shard *shard, struct stream *stream,
                                 struct request *request, int *ret_why)
{
    struct weir_item *items = shard->stream_items;
    struct batch *batch;
    uint64_t bytes = 0;
    uint32_t count = 0;
    int r = 0;

    while (count < (uint32_t)request->call.number && bytes < STREAM_BATCH_BYTES &&
           (r = weir_reorder_pop(stream->reorder, &items[count])) == 0) {
        const struct weir_item *item = &items[count++];

        bytes += item->bytes;
        if (item->data == NULL && item->bytes > 0)
            break;
    }
    if (count == 0) {
        *ret_why = r;
        if (r == -ENOENT || r == -EAGAIN)
            return PROGRESS_WAIT;
        return done_text(
            request, r == -EBADMSG ? "-ERR the next item was damaged on disk: WSKIP steps over\r\n"
                                   : "-ERR the next item could not be read from disk\r\n");
    }
    batch = malloc(sizeof(*batch) + count * sizeof(items[0]));
    if (batch == NULL)
        abort();
    batch->stream = stream;
    batch->item_count = count;
    batch->released_count = 0;
    memcpy(batch->items, items, count * sizeof(items[0]));
    stream->batch_count++;
    request->batch = batch;
    request->reply = REPLY_ITEMS;
    return PROGRESS_DONE;
}

void stream_release_some(struct batch *batch, uint32_t count)
{
    for (; batch->released_count < count; batch->released_count++)
        weir_reorder_release(batch->stream->reorder, &batch->items[batch->released_count]);
}

void stream_release(struct shard *shard, struct batch *batch)
{
    struct stream *stream = batch->stream;

    stream_release_some(batch, batch->item_count);
    free(batch);
    shard_region_freed(shard);
    stream->batch_count--;
    if (stream->blocked.first != NULL)
        stream_mark(stream); /* what was out may have been in the way of a fetch */
    stream_end(stream);
}

static void stream_block(struct shard *shard, struct stream *stream, struct request *request)
{
    request->blocked_on = stream;
    request_list_append(&stream->blocked, request);
    stream->blocked_count++;
    shard->blocked_count++;
    if (stream->is_waiting)
        return;
    stream->is_waiting = true; /* T2 */
    stream->waiting_next = shard->stream_waiting;
    shard->stream_waiting = stream;
}

static void stream_unblock(struct shard *shard, struct stream *stream, struct request *request)
{
    request_list_remove(&stream->blocked, request);
    request->blocked_on = NULL;
    stream->blocked_count--;
    shard->blocked_count--;
}

enum progress stream_pop(struct shard *shard, struct request *request)
{
    struct stream *stream = stream_find(shard, request->hash, request->call.key);
    const bool blocks = (request->call.flags & CALL_BLOCK) != 0;
    int why = -ENOENT;
    int r;

    if (stream == NULL) {
        if (!blocks)
            return done_text(request, RESP_NIL_ARRAY);
        r = stream_make(shard, request->hash, request->call.key, &stream);
        if (r < 0) {
            shard_reply_oom(shard, request);
            return PROGRESS_DONE;
        }
    }
    /* Who came first is served first. */
    if (stream->blocked.first == NULL && stream_take(shard, stream, request, &why) == PROGRESS_DONE)
        return PROGRESS_DONE;
    if ((!blocks && why == -ENOENT) || shard->is_stopping)
        return done_text(request, RESP_NIL_ARRAY);
    if (blocks && request->call.block_ms > 0 && request->deadline_ns == 0)
        request->deadline_ns = shard->now_ns + request->call.block_ms * 1000000;
    stream_block(shard, stream, request);
    return PROGRESS_LATER;
}

void stream_cancel(struct shard *shard, struct request *request)
{
    if (request->blocked_on == NULL)
        return;
    stream_unblock(shard, request->blocked_on, request);
    request_reply_text(request, RESP_NIL_ARRAY);
    shard_answer(shard, request);
}

static void stream_serve(struct shard *shard, struct stream *stream)
{
    while (stream->blocked.first != NULL) {
        struct request *request = stream->blocked.first;
        int why;

        if (stream_take(shard, stream, request, &why) == PROGRESS_WAIT)
            break;
        stream_unblock(shard, stream, request);
        shard_answer(shard, request);
    }
}

/* Those whose time is over; without BLOCK a pop waits only for what is being fetched. */
static void stream_expire(struct shard *shard, struct stream *stream)
{
    struct request *next;

    for (struct request *request = stream->blocked.first; request != NULL; request = next) {
        next = request->next;
        if (!shard->is_stopping &&
            (request->deadline_ns == 0 || request->deadline_ns > shard->now_ns))
            continue;
        stream_unblock(shard, stream, request);
        request_reply_text(request, RESP_NIL_ARRAY);
        shard_answer(shard, request);
    }
}

void stream_tick(struct shard *shard)
{
    struct stream **link = &shard->stream_waiting;

    while (shard->stream_service != NULL) {
        struct stream *stream = shard->stream_service;

        shard->stream_service = stream->service_next;
        stream->is_in_service = false;
        if (!stream->is_dead)
            stream_serve(shard, stream);
        stream_end(stream);
    }
    if (shard->now_ns - shard->stream_tick_ns < STREAM_TICK_NS && !shard->is_stopping)
        return;
    shard->stream_tick_ns = shard->now_ns;
    while (*link != NULL) {
        struct stream *stream = *link;

        if (!stream->is_dead) {
            stream_serve(shard, stream);
            stream_expire(shard, stream);
        }
        if (stream->blocked.first != NULL) {
            link = &stream->waiting_next;
            continue;
        }
        *link = stream->waiting_next;
        stream->is_waiting = false;
        stream_end(stream);
    }
}

/* ---- The rest ------------------------------------------------------------------- */

enum progress stream_skip(struct shard *shard, struct request *request)
{
    struct stream *stream = stream_find(shard, request->hash, request->call.key);
    struct weir_reorder_stats stats;

    if (stream == NULL)
        return done_text(request, STREAM_NONE);
    if (weir_reorder_skip(stream->reorder) < 0)
        return shard_wait_region(shard, request);
    weir_reorder_stats(stream->reorder, &stats);
    request->reply = REPLY_TEXT;
    request->text_bytes = (uint32_t)resp_write_unsigned(request->text, stats.next_sequence);
    if (stream->blocked.first != NULL)
        stream_mark(stream);
    return PROGRESS_DONE;
}

enum progress stream_info(struct shard *shard, struct request *request)
{
    struct stream *stream = stream_find(shard, request->hash, request->call.key);
    struct weir_reorder_stats stats;
    struct value *value;
    size_t at;

    if (stream == NULL)
        return done_text(request, STREAM_NONE);
    weir_reorder_stats(stream->reorder, &stats);
    const struct {
        const char *name;
        uint64_t value;
    } fields[] = {
        {"next", stats.next_sequence},
        {"last", stats.item_count > 0 ? stats.last_sequence : stats.next_sequence},
        {"depth", stats.item_count},
        {"in-memory", stats.memory_count},
        {"spilled", stats.spilled_count},
        {"bytes", stats.payload_bytes},
        {"memory-bytes", stats.memory_bytes},
        {"spilled-bytes", stats.spilled_bytes},
        {"metadata-bytes", stats.metadata_bytes},
        {"popped", stats.popped_count},
        {"pushed", stats.pushed_count},
        {"delivered", stats.delivered_count},
        {"skipped", stats.skipped_count},
        {"spills", stats.spill_count},
        {"fetches", stats.fetch_count},
        {"duplicates", stats.duplicate_count},
        {"out-of-range", stats.range_count},
        {"blocked", stream->blocked_count},
        {"stall-ms", stats.stall_ns / 1000000},
    };
    const size_t count = sizeof(fields) / sizeof(fields[0]);

    value = stock_make_loose(shard, STREAM_INFO_BYTES);
    if (value == NULL) {
        shard_reply_oom(shard, request);
        return PROGRESS_DONE;
    }
    at = resp_write_array(value->data, count * 2);
    for (size_t i = 0; i < count; i++) {
        at += resp_write_bulk_header(value->data + at, strlen(fields[i].name));
        at += (size_t)snprintf(value->data + at, STREAM_INFO_BYTES - at, "%s\r\n", fields[i].name);
        at += resp_write_unsigned(value->data + at, fields[i].value);
    }
    assert(at <= STREAM_INFO_BYTES);
    request->value = value;
    request->value_bytes = (uint32_t)at;
    request->reply = REPLY_RAW;
    return PROGRESS_DONE;
}
