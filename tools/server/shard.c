/* SPDX-License-Identifier: MIT */
/*
 * shard - a turn of one core, and the way between cores
 *
 *      connection --submit--> owner's shard --run--> stock, stream
 *          ^                      |  parked? later, in the order of its lane
 *          +-------answer---------+
 *
 * A command that must wait for memory is parked: in the governor's queue, or,
 * when the region is behind with writing, in our list of those to try again.
 * What the same connection sends to the same core after it waits in the lane
 * behind it, so that commands of one client take effect in their order. The one
 * exception is WPUSH behind WPUSH: their sequence numbers order them, and the
 * head that everybody waits for may be among them.
 *
 * Memory that a request was granted stays with the request until the command
 * takes it over, so that it can be run again from its beginning: a run either
 * takes effect, or leaves no trace but those charges.
 *
 * At the end all shards go the same way together: no new clients, no new waits,
 * connections closed; nobody leaves before everybody has no connection and no
 * release is under way, for until then messages may come.
 *
 *   I1  a request is in one place: with its origin, in a queue between cores,
 *       or with its owner
 *   I2  a request in a lane is parked or behind one that is
 *   I3  the charges of a request are 0 once it is answered
 */
#include "shard.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <malloc.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cold.h"
#include "connection.h"
#include "stock.h"
#include "stream.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
# define SHARD_HEAP_IS_TRUE 0 /* the sanitizer's own memory is no business of ours */
#elif defined(__has_feature)
# if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#  define SHARD_HEAP_IS_TRUE 0
# endif
#endif
#ifndef SHARD_HEAP_IS_TRUE
# define SHARD_HEAP_IS_TRUE 1
#endif

#define SHARD_MIB           (UINT64_C(1) << 20)
#define SHARD_TICK_NS       UINT64_C(10000000)
#define SHARD_SLOW_NS       UINT64_C(100000000)
#define SHARD_FULL_NS       UINT64_C(50000000) /* then a full region is asked again */
#define SHARD_BEHIND_NS     UINT64_C(5000000)  /* and one that was behind */
#define SHARD_TRIM_NS       UINT64_C(100000000)
#define SHARD_FREE_REQUESTS 512
#define SHARD_HEAD_BYTES    (UINT64_C(8) << 20) /* of the region, left for heads of streams */

static _Thread_local struct shard *here;

struct shard *shard_here(void)
{
    return here;
}

static void shard_run(struct shard *shard, struct request *request);

static void shard_look_at_clock(struct shard *shard)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    shard->now_ns = (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
    shard->now_ms = (int64_t)(shard->now_ns / 1000000);
}

/* ---- Requests ----------------------------------------------------------------- */

struct request *request_make(struct shard *shard, struct connection *connection)
{
    struct request *request = shard->free_requests;

    if (request != NULL) {
        shard->free_requests = request->next;
        shard->free_count--;
    } else {
        request = malloc(sizeof(*request));
        if (request == NULL) {
            fputs("weir-server: no memory for a request\n", stderr);
            abort();
        }
    }
    memset(request, 0, offsetof(struct request, text));
    request->connection = connection;
    request->origin = shard->index;
    request->owner = shard->index;
    return request;
}

void request_drop(struct shard *shard, struct request *request)
{
    if (shard->free_count >= SHARD_FREE_REQUESTS) {
        free(request);
        return;
    }
    request->next = shard->free_requests;
    shard->free_requests = request;
    shard->free_count++;
}

void request_reply_text(struct request *request, const char *text)
{
    const size_t bytes = strnlen(text, RESP_TEXT_MAX - 1);

    request->reply = REPLY_TEXT;
    request->is_failed = text[0] == '-';
    memmove(request->text, text, bytes);
    request->text_bytes = (uint32_t)bytes;
}

void request_reply_integer(struct request *request, int64_t value)
{
    request->reply = REPLY_TEXT;
    request->text_bytes = (uint32_t)resp_write_integer(request->text, value);
    request->sum = value;
}

void request_reply_bulk(struct request *request, const char *data, size_t bytes)
{
    size_t at = resp_write_bulk_header(request->text, bytes);

    assert(at + bytes + RESP_LINE_BYTES <= RESP_TEXT_MAX);
    if (bytes > 0)
        memcpy(request->text + at, data, bytes);
    memcpy(request->text + at + bytes, RESP_LINE_END, RESP_LINE_BYTES);
    request->reply = REPLY_TEXT;
    request->text_bytes = (uint32_t)(at + bytes + RESP_LINE_BYTES);
}

/* ---- Between cores ------------------------------------------------------------ */

static void shard_send(struct shard *shard, uint32_t index, struct request *request,
                       void (*receive)(struct weir_worker *, struct weir_message *))
{
    struct request_list *outbox = &shard->outbox[index];

    request->message.receive = receive;
    if (outbox->first == NULL && weir_worker_send(shard->worker, index, &request->message) == 0)
        return;
    request_list_append(outbox, request);
    shard_nudge(shard);
}

static void shard_send_outboxes(struct shard *shard)
{
    for (uint32_t i = 0; i < shard->server->config.worker_count; i++) {
        struct request_list *outbox = &shard->outbox[i];

        while (outbox->first != NULL) {
            struct request *next = outbox->first->next;

            /* Sent is gone: its next is read before. */
            if (weir_worker_send(shard->worker, i, &outbox->first->message) < 0) {
                shard_nudge(shard);
                break;
            }
            outbox->first = next;
        }
    }
}

static void shard_let_go(struct shard *shard, struct request *request)
{
    shard_take_back(shard, request);
    stock_drop_place(shard, request);
    if (request->value != NULL)
        stock_unref(shard, request->value);
    if (request->hold != NULL)
        cold_release(shard, request->hold);
    if (request->batch != NULL)
        stream_release(shard, request->batch);
    request_drop(shard, request);
}

/* Whether it waits behind others of its connection. */
static bool lane_defers(const struct lane *lane, const struct request *request)
{
    if (lane->first == NULL)
        return false;
    return lane->other_count > 0 || request->call.operation != OPERATION_WPUSH;
}

static void lane_append(struct lane *lane, struct request *request)
{
    request->is_in_lane = true;
    request->lane_next = NULL;
    if (lane->first == NULL)
        lane->first = request;
    else
        lane->last->lane_next = request;
    lane->last = request;
    lane->other_count += request->call.operation != OPERATION_WPUSH;
}

static void lane_remove(struct lane *lane, struct request *request)
{
    struct request **link = &lane->first;
    struct request *before = NULL;

    while (*link != request) {
        before = *link;
        link = &before->lane_next;
    }
    *link = request->lane_next;
    if (lane->last == request)
        lane->last = before;
    lane->other_count -= request->call.operation != OPERATION_WPUSH;
    request->is_in_lane = false;
}

static void shard_accept(struct shard *shard, struct request *request)
{
    request->shard = shard;
    request->deadline_ns = 0;
    request->wake_result = 0;
    switch (request->stage) {
    case STAGE_COMMAND: {
        struct lane *lane = connection_lane(request->connection, shard->index);

        if (lane_defers(lane, request)) {
            lane_append(lane, request);
            return;
        }
        shard_run(shard, request);
        return;
    }
    case STAGE_BEGIN:
    case STAGE_PIECE:
        shard_run(shard, request);
        return;
    case STAGE_READ:
        cold_read(shard, request);
        return;
    case STAGE_RELEASE:
        shard_let_go(shard, request);
        return;
    }
}

static void shard_receive(struct weir_worker *worker, struct weir_message *message)
{
    struct request *request = (struct request *)(void *)message;
    struct shard *shard = here;

    (void)worker;
    if (request->stage == STAGE_RELEASE)
        atomic_fetch_sub_explicit(&shard->server->message_count, 1, memory_order_release);
    else
        shard->figures.hop_count++;
    shard_accept(shard, request);
}

static void shard_receive_answer(struct weir_worker *worker, struct weir_message *message)
{
    (void)worker;
    connection_answered(here, (struct request *)(void *)message);
}

void shard_submit(struct shard *shard, struct request *request)
{
    if (request->owner == shard->index)
        shard_accept(shard, request);
    else
        shard_send(shard, request->owner, request, shard_receive);
}

void shard_answer(struct shard *shard, struct request *request)
{
    assert(request->entry_charge == 0 && request->value_charge == 0); /* I3 */
    if (request->origin == shard->index)
        connection_answered(shard, request);
    else
        shard_send(shard, request->origin, request, shard_receive_answer);
}

void shard_release(struct shard *shard, struct request *request)
{
    const bool holds_nothing = request->value == NULL && request->hold == NULL &&
                               request->batch == NULL && request->place.value == NULL &&
                               weir_slot_is_none(request->place.slot);

    if (holds_nothing) {
        request_drop(shard, request);
        return;
    }
    request->stage = STAGE_RELEASE;
    if (request->owner == shard->index) {
        shard_let_go(shard, request);
        return;
    }
    atomic_fetch_add_explicit(&shard->server->message_count, 1, memory_order_relaxed);
    shard_send(shard, request->owner, request, shard_receive);
}

/* ---- Running and waiting ------------------------------------------------------ */

/* One run; whether the first of its lane may run now. */
static bool shard_step(struct shard *shard, struct request *request)
{
    enum progress progress = PROGRESS_DONE;
    struct lane *lane;
    bool is_next_free = false;

    request->is_parked = false;
    if (request->stage == STAGE_COMMAND)
        progress = stock_run(shard, request);
    else if (request->stage == STAGE_BEGIN)
        progress = stock_begin(shard, request);
    else
        progress = stock_piece(shard, request);

    if (progress == PROGRESS_WAIT) {
        request->is_parked = true;
        if (request->stage == STAGE_COMMAND && !request->is_in_lane)
            lane_append(connection_lane(request->connection, shard->index), request);
        return false;
    }
    if (request->is_in_lane) {
        /* Others in the lane keep the connection alive; the answer may not. */
        lane = connection_lane(request->connection, shard->index);
        lane_remove(lane, request);
        is_next_free = lane->first != NULL && !lane->first->is_parked;
    }
    if (progress == PROGRESS_DONE) {
        shard_take_back(shard, request);
        shard_answer(shard, request);
    }
    return is_next_free;
}

static void shard_run(struct shard *shard, struct request *request)
{
    struct connection *connection = request->connection;

    while (shard_step(shard, request))
        request = connection_lane(connection, shard->index)->first;
}

/* Who has the memory is told to whoever gets none of it. */
void shard_reply_oom(struct shard *shard, struct request *request)
{
    struct weir_account_stats holders[2];
    const size_t holder_count = weir_governor_holders(shard->server->governor, holders, 2);
    const char *why = "";
    char text[RESP_TEXT_MAX];
    int length;

    shard->figures.refused_count++;
    if (!shard_has_room(shard, 1))
        why = " and the spill file is full";
    else if (shard->region_is_behind)
        why = " and the disk is slow";
    length =
        snprintf(text, sizeof(text), "-OOM command not allowed when used memory > limit%s", why);
    for (size_t i = 0; i < holder_count && (size_t)length < sizeof(text); i++)
        length +=
            snprintf(text + length, sizeof(text) - (size_t)length, "%s %s %" PRIu64 "M",
                     i == 0 ? "; held by" : ",", holders[i].name, holders[i].charged_bytes >> 20);
    length = (size_t)length < sizeof(text) - 3 ? length : (int)sizeof(text) - 3;
    memcpy(text + length, "\r\n", 3);
    request_reply_text(request, text);
}

static void waiting_add(struct shard *shard, struct request *request)
{
    request->wait_previous = NULL;
    request->wait_next = shard->waiting;
    if (shard->waiting != NULL)
        shard->waiting->wait_previous = request;
    shard->waiting = request;
}

static void waiting_remove(struct shard *shard, struct request *request)
{
    if (request->wait_previous != NULL)
        request->wait_previous->wait_next = request->wait_next;
    else
        shard->waiting = request->wait_next;
    if (request->wait_next != NULL)
        request->wait_next->wait_previous = request->wait_previous;
}

static void shard_woken(struct weir_waiter *waiter, int result)
{
    struct request *request =
        (struct request *)(void *)((char *)waiter - offsetof(struct request, waiter));
    struct shard *shard = request->shard;

    waiting_remove(shard, request);
    request->wake_result = result;
    if (result == 0 && request->wait_account == shard->tables)
        request->entry_charge += request->wait_bytes;
    else if (result == 0)
        request->value_charge += request->wait_bytes;
    request_list_append(&shard->ready, request);
}

static uint64_t shard_deadline(struct shard *shard, struct request *request)
{
    if (request->deadline_ns == 0) {
        request->deadline_ns = shard->now_ns + shard->server->config.wait_ms * 1000000;
        shard->figures.parked_count++;
    }
    return request->deadline_ns;
}

static enum grant shard_never(struct shard *shard, struct request *request)
{
    shard_reply_oom(shard, request);
    return GRANT_NEVER;
}

static enum grant shard_take(struct shard *shard, struct request *request,
                             struct weir_account *account, size_t *charge, size_t bytes)
{
    enum weir_verdict verdict;

    if (*charge >= bytes) {
        weir_account_refund(account, *charge - bytes);
        *charge = bytes;
        return GRANT_YES;
    }
    weir_account_refund(account, *charge);
    *charge = 0;
    if (request->wake_result < 0)
        return shard_never(shard, request);
    if (weir_account_charge(account, bytes, &verdict) < 0)
        return shard_never(shard, request);

    switch (verdict) {
    case WEIR_ADMIT:
    case WEIR_FLUSH:
        *charge = bytes;
        return GRANT_YES;
    case WEIR_SPILL:
        return GRANT_SPILL;
    case WEIR_WAIT:
        break;
    }
    if (shard->is_stopping)
        return shard_never(shard, request);
    memset(&request->waiter, 0, sizeof(request->waiter));
    request->waiter.wake = shard_woken;
    request->wait_account = account;
    request->wait_bytes = bytes;
    if (weir_account_wait(account, &request->waiter, bytes, shard_deadline(shard, request)) < 0)
        return shard_never(shard, request);
    waiting_add(shard, request);
    return GRANT_WAIT;
}

enum grant shard_take_value(struct shard *shard, struct request *request, size_t bytes)
{
    return shard_take(shard, request, shard->values, &request->value_charge, bytes);
}

enum grant shard_take_entry(struct shard *shard, struct request *request, size_t bytes)
{
    return shard_take(shard, request, shard->tables, &request->entry_charge, bytes);
}

void shard_take_back(struct shard *shard, struct request *request)
{
    if (request->value_charge > 0)
        weir_account_refund(shard->values, request->value_charge);
    if (request->entry_charge > 0)
        weir_account_refund(shard->tables, request->entry_charge);
    request->value_charge = 0;
    request->entry_charge = 0;
}

enum progress shard_wait_region(struct shard *shard, struct request *request)
{
    if (shard->is_stopping || shard->now_ns >= shard_deadline(shard, request)) {
        shard_reply_oom(shard, request);
        return PROGRESS_DONE;
    }
    request_list_append(&shard->retry, request);
    return PROGRESS_WAIT;
}

void shard_region_full(struct shard *shard)
{
    shard->region_is_full = true;
    shard->region_full_ns = shard->now_ns;
}

/* Not longer than from the first time on: who waits for memory says -EAGAIN too. */
void shard_region_behind(struct shard *shard)
{
    if (shard->region_is_behind)
        return;
    shard->region_is_behind = true;
    shard->region_behind_ns = shard->now_ns;
}

/*
 * A share of the file is left for heads of streams: when everything else waits,
 * what they all wait for must have a place.
 */
bool shard_has_room(struct shard *shard, uint64_t bytes)
{
    return !shard->region_is_full && bytes <= shard->room_bytes;
}

/* Asked before something goes there: until the next tick it is taken as gone. */
static bool shard_account_has_room(void *context, size_t bytes)
{
    (void)context;
    if (here->region_is_behind || !shard_has_room(here, bytes))
        return false;
    here->room_bytes -= bytes;
    return true;
}

static void shard_measure_room(struct shard *shard)
{
    struct weir_region_stats stats;
    uint64_t used_bytes;
    uint64_t reserve_bytes;

    weir_region_stats(shard->region, &stats);
    used_bytes = stats.mark_bytes - stats.free_bytes;
    reserve_bytes = stats.bytes_max / 4 < SHARD_HEAD_BYTES ? stats.bytes_max / 4 : SHARD_HEAD_BYTES;
    shard->room_bytes = stats.bytes_max - reserve_bytes > used_bytes
                            ? stats.bytes_max - reserve_bytes - used_bytes
                            : 0;
}

/* ---- The turn ----------------------------------------------------------------- */

void shard_nudge(struct shard *shard)
{
    weir_worker_wake(shard->worker);
}

static void run_list(struct shard *shard, struct request_list *list)
{
    struct request_list now = *list;
    struct request *request;

    *list = (struct request_list){0};
    while ((request = request_list_take(&now)) != NULL) {
        if (request->stage == STAGE_READ)
            cold_read(shard, request);
        else
            shard_run(shard, request);
    }
}

#if SHARD_HEAP_IS_TRUE
/* Anonymous and shared memory of this process, as the kernel counts; 0: unknown. */
static uint64_t kernel_bytes(void)
{
    char line[128];
    uint64_t all = 0;
    FILE *file = fopen("/proc/self/status", "re");

    if (file == NULL)
        return 0;
    while (fgets(line, sizeof(line), file) != NULL) {
        unsigned long long kib;

        if (sscanf(line, "RssAnon: %llu", &kib) == 1 || sscanf(line, "RssShmem: %llu", &kib) == 1)
            all += (uint64_t)kib * 1024;
    }
    fclose(file);
    return all;
}

/*
 * What the process really holds beyond what the books say (holes in the heap,
 * stacks, libraries) is charged too, so that the limit is true.
 */
static void shard_charge_drift(struct shard *shard)
{
    const struct server *server = shard->server;
    const uint64_t truth = kernel_bytes();
    struct weir_governor_stats stats;
    struct weir_region_stats region;
    uint64_t books;
    uint64_t drift;

    weir_governor_stats(server->governor, &stats);
    weir_region_stats(shard->region, &region);
    books = stats.charged_bytes - shard->drift_bytes;
    books -= server->config.worker_count * region.resident_bytes_max;
    drift = truth > books ? truth - books : 0;
    if (drift > shard->drift_bytes)
        weir_account_charge_forced(shard->drift, drift - shard->drift_bytes);
    else
        weir_account_refund(shard->drift, shard->drift_bytes - drift);
    shard->drift_bytes = drift;
}

/* Holes go back to the kernel, and with them the drift; not again soon if that was little. */
static uint64_t shard_reclaim_heap(struct weir_reclaimer *reclaimer, uint64_t bytes)
{
    struct shard *shard = reclaimer->context;
    const uint64_t before = shard->drift_bytes;
    uint64_t came;

    (void)bytes;
    if (shard->now_ns < shard->trim_again_ns || before < SHARD_MIB)
        return 0;
    malloc_trim(0);
    shard_charge_drift(shard);
    came = before > shard->drift_bytes ? before - shard->drift_bytes : 0;
    shard->trim_again_ns = shard->now_ns + (came > before / 8 ? SHARD_TRIM_NS : 10 * SHARD_TRIM_NS);
    return came;
}
#endif

static uint64_t shard_reclaim_buffers(struct weir_reclaimer *reclaimer, uint64_t bytes)
{
    struct shard *shard = reclaimer->context;

    return pool_trim(&shard->pool, bytes);
}

static uint64_t shard_reclaim_values(struct weir_reclaimer *reclaimer, uint64_t bytes)
{
    return cold_push(reclaimer->context, bytes);
}

static void shard_add_reclaimers(struct shard *shard)
{
    struct weir_reclaimer *reclaimers = shard->reclaimers;

    reclaimers[SHARD_RECLAIM_BUFFERS] = (struct weir_reclaimer){
        .name = "buffers",
        .reclaim = shard_reclaim_buffers,
        .context = shard,
    };
    weir_account_add_reclaimer(shard->tables, &reclaimers[SHARD_RECLAIM_BUFFERS]);
#if SHARD_HEAP_IS_TRUE
    reclaimers[SHARD_RECLAIM_HEAP] = (struct weir_reclaimer){
        .name = "heap",
        .cost = 50,
        .reclaim = shard_reclaim_heap,
        .context = shard,
    };
    if (shard->drift != NULL)
        weir_account_add_reclaimer(shard->drift, &reclaimers[SHARD_RECLAIM_HEAP]);
#endif
    reclaimers[SHARD_RECLAIM_VALUES] = (struct weir_reclaimer){
        .name = "values",
        .cost = 100,
        .reclaim = shard_reclaim_values,
        .context = shard,
    };
    weir_account_add_reclaimer(shard->values, &reclaimers[SHARD_RECLAIM_VALUES]);
}

static void shard_remove_reclaimers(struct shard *shard)
{
    for (int i = 0; i < SHARD_RECLAIMERS; i++)
        if (shard->reclaimers[i].account != NULL)
            weir_account_remove_reclaimer(shard->reclaimers[i].account, &shard->reclaimers[i]);
}

static void shard_slow_tick(struct shard *shard)
{
    struct weir_governor_stats stats;

    weir_governor_stats(shard->server->governor, &stats);
    shard->is_calm = stats.level == WEIR_LEVEL_CALM;
    pool_age(&shard->pool);
#if SHARD_HEAP_IS_TRUE
    if (shard->index == 0)
        shard_charge_drift(shard);
#endif
}

static void shard_tick_timed(struct shard *shard)
{
    if (shard->now_ns - shard->tick_ns < SHARD_TICK_NS)
        return;
    shard->tick_ns = shard->now_ns;
    if (keyspace_step(&shard->keys, 512))
        shard_nudge(shard);
    stock_sweep(shard);
    shard_measure_room(shard);
    if (shard->region_is_full && shard->now_ns - shard->region_full_ns > SHARD_FULL_NS)
        shard->region_is_full = false;
    if (shard->now_ns - shard->slow_tick_ns >= SHARD_SLOW_NS) {
        shard->slow_tick_ns = shard->now_ns;
        shard_slow_tick(shard);
    }
}

/* No new clients, no new waits; those who wait are told. */
static void shard_begin_to_stop(struct shard *shard)
{
    struct request *request;
    struct request *next;

    shard->is_stopping = true;
    connection_close_all(shard);
    for (request = shard->waiting; request != NULL; request = next) {
        next = request->wait_next;
        if (weir_account_cancel(request->wait_account, &request->waiter) < 0)
            continue; /* granted already: its wake is still to come */
        waiting_remove(shard, request);
        request->wake_result = -ECANCELED;
        request_list_append(&shard->ready, request);
    }
}

static void shard_clear(struct shard *shard)
{
    struct request *request;

    shard_remove_reclaimers(shard);
    stream_remove_all(shard);
    stock_clear(shard);
    while ((request = shard->free_requests) != NULL) {
        shard->free_requests = request->next;
        free(request);
    }
    pool_deinit(&shard->pool);
    slab_deinit(&shard->slab);
    if (shard->drift != NULL)
        weir_account_refund(shard->drift, shard->drift_bytes);
    weir_account_close(shard->drift);
    weir_account_close(shard->tables);
    free(shard->stream_table);
    free(shard->stream_items);
    free(shard->outbox);
    shard->drift = NULL;
    shard->tables = NULL;
    shard->stream_table = NULL;
    shard->outbox = NULL;
    shard->is_done = true;
}

static void shard_go_on_stopping(struct shard *shard)
{
    struct server *server = shard->server;

    if (!shard->is_stopping)
        shard_begin_to_stop(shard);
    if (shard->connection_count > 0 || shard->accept_is_armed)
        return;
    if (!shard->is_quiet) {
        shard->is_quiet = true;
        atomic_fetch_add(&server->quiet_count, 1);
    }
    if (atomic_load(&server->quiet_count) < server->config.worker_count ||
        atomic_load_explicit(&server->message_count, memory_order_acquire) > 0 ||
        shard->fetch_first != NULL || shard->hold_count > 0)
        return;
    shard_clear(shard);
}

static void shard_tick(struct weir_worker *worker, void *context)
{
    struct shard *shard = context;

    (void)worker;
    if (shard->is_done)
        return;
    shard_look_at_clock(shard);
    if (shard->region_is_behind && shard->now_ns - shard->region_behind_ns > SHARD_BEHIND_NS)
        shard->region_is_behind = false;
    if (shard->drift != NULL)
        (void)weir_account_poll(shard->drift);
    if (weir_account_poll(shard->tables) > 0)
        shard_look_at_clock(shard);
    run_list(shard, &shard->ready);
    run_list(shard, &shard->retry);
    run_list(shard, &shard->reads);
    connection_tick(shard);
    stream_tick(shard);
    connection_tick(shard);
    cold_fetch(shard);
    if (cold_flush(shard) || shard->ready.first != NULL || shard->touched != NULL)
        shard_nudge(shard);
    shard_tick_timed(shard);
    shard_send_outboxes(shard);
    if (atomic_load_explicit(&shard->server->stopping, memory_order_relaxed))
        shard_go_on_stopping(shard);
}

static bool shard_may_end(struct weir_worker *worker, void *context)
{
    const struct shard *shard = context;

    (void)worker;
    return shard->is_done;
}

/* ---- Lifecycle ---------------------------------------------------------------- */

static uint64_t clamp(uint64_t value, uint64_t low, uint64_t high)
{
    if (value < low)
        return low;
    return value > high ? high : value;
}

static uint64_t region_resident_bytes(const struct server_config *config)
{
    const uint64_t share = config->memory_bytes / 3 / config->worker_count;

    return clamp(share, 8 * SHARD_MIB, 64 * SHARD_MIB) & ~(2 * SHARD_MIB - 1);
}

/* What is small beside the limit, and beside the region. */
static void shard_set_bounds(struct shard *shard)
{
    const uint64_t memory = shard->server->config.memory_bytes;
    struct weir_region_stats stats;

    weir_region_stats(shard->region, &stats);
    shard->value_memory_max = memory / 16;
    if (shard->value_memory_max > stats.put_bytes_max)
        shard->value_memory_max = stats.put_bytes_max;
    shard->piece_bytes = stats.put_bytes_max < 128 * 1024 ? stats.put_bytes_max : 128 * 1024;
    shard->whole_bytes_max = stats.fetch_bytes_max < 64 * 1024 ? stats.fetch_bytes_max : 64 * 1024;
    shard->staged_max =
        clamp(memory / 32 / shard->server->config.worker_count, 2 * SHARD_MIB, 32 * SHARD_MIB);
    shard->head_bytes_max = clamp(memory / 8, 0, SHARD_HEAD_BYTES);
    shard->builder_max =
        (uint32_t)clamp(stats.resident_bytes_max / (8 * SHARD_MIB), 1, SHARD_BUILDERS_MAX - 1);
    shard->loose_max =
        clamp(memory / 32 / shard->server->config.worker_count, SHARD_MIB / 2, 16 * SHARD_MIB);
    shard->piece_max = (uint32_t)clamp(
        memory / 32 / shard->server->config.worker_count / shard->piece_bytes, 4, 64);
}

static void shard_notify(void *context)
{
    weir_worker_wake(context);
}

static int shard_start(struct weir_worker *worker, void *context)
{
    struct shard *shard = context;
    const struct server *server = shard->server;
    char name[32];
    const struct weir_account_config tables = {
        .name = name,
        .notify = shard_notify,
        .context = worker,
    };
    const struct weir_account_config drift = {
        .name = "drift",
        .notify = shard_notify,
        .context = worker,
    };
    uint64_t spare;
    int r;

    here = shard;
    shard->worker = worker;
    shard->region = weir_worker_region(worker);
    shard->values = weir_worker_account(worker);
    shard_look_at_clock(shard);
    shard->tick_ns = shard->now_ns;
    shard->slow_tick_ns = shard->now_ns;
    shard->is_calm = true;
    snprintf(name, sizeof(name), "tables-%" PRIu32, shard->index);
    r = weir_account_open(server->governor, &tables, &shard->tables);
    if (r < 0)
        return r;
    if (shard->index == 0) {
        r = weir_account_open(server->governor, &drift, &shard->drift);
        if (r < 0)
            goto fail;
    }
    spare = server->config.memory_bytes / 16 / server->config.worker_count / POOL_CHUNK_BYTES;
    pool_init(&shard->pool, weir_account_books(shard->tables), (uint32_t)clamp(spare, 16, 4096));
    shard->outbox = calloc(server->config.worker_count, sizeof(*shard->outbox));
    shard->stream_bits = 6;
    shard->stream_table = calloc((size_t)1 << shard->stream_bits, sizeof(struct stream *));
    shard->stream_items = calloc(COMMAND_COUNT_MAX, sizeof(*shard->stream_items));
    r = -ENOMEM;
    if (shard->outbox == NULL || shard->stream_table == NULL || shard->stream_items == NULL)
        goto fail;
    slab_init(&shard->slab);
    r = keyspace_init(&shard->keys, &shard->slab, weir_account_books(shard->tables));
    if (r < 0)
        goto fail;
    shard_set_bounds(shard);
    shard_measure_room(shard);
    shard_add_reclaimers(shard);
    connection_listen(shard);
    return 0;

fail:
    free(shard->outbox);
    free(shard->stream_items);
    free(shard->stream_table);
    weir_account_close(shard->drift);
    weir_account_close(shard->tables);
    shard->is_done = true;
    return r;
}

/* What whoever runs the server should know: a line each, stalls only in INFO. */
static void shard_report(struct weir_worker *worker, const struct weir_report *report,
                         void *context)
{
    struct shard *shard = context;

    if (report->kind == WEIR_REPORT_STALL) {
        shard->figures.stall_counts[report->cause]++;
        return;
    }
    fprintf(stderr, "weir-server: core %u: %s%s%s\n", weir_worker_index(worker), report->text,
            report->error != 0 ? ": " : "",
            report->error != 0 ? strerrordesc_np(-report->error) : "");
}

static int server_start_shard(struct server *server, uint32_t index, uint32_t cpu,
                              struct weir_worker **ret_worker)
{
    const struct server_config *config = &server->config;
    const uint64_t spill_bytes = config->spill_bytes / config->worker_count;
    char name[16];
    struct weir_worker_config worker = {
        .name = name,
        .pinned = true,
        .cpu = cpu,
        .mesh = server->mesh,
        .index = index,
        .governor = server->governor,
        .account = {.spillable = true, .has_room = shard_account_has_room},
        .region =
            {
                .directory = config->spill_directory,
                .bytes_initial = spill_bytes < 8 * SHARD_MIB ? spill_bytes : 8 * SHARD_MIB,
                .bytes_max = spill_bytes,
                .resident_bytes_max = region_resident_bytes(config),
            },
        .ring_entries = 1024,
        .report = shard_report,
        .on_start = shard_start,
        .on_tick = shard_tick,
        .on_stop = shard_may_end,
        .context = &server->shards[index],
    };

    snprintf(name, sizeof(name), "weir-core-%u", index);
    return weir_worker_start(&worker, ret_worker);
}

int server_start(struct server *server, const int *listen_fds, const uint32_t *cpus)
{
    const uint32_t worker_count = server->config.worker_count;
    int r = 0;

    server->shards = calloc(worker_count, sizeof(*server->shards));
    if (server->shards == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < worker_count; i++) {
        server->shards[i].server = server;
        server->shards[i].index = i;
        server->shards[i].listen_fd = listen_fds[i];
        server->shards[i].is_done = true;
    }
    for (uint32_t i = 0; i < worker_count; i++) {
        struct weir_worker *worker;

        server->shards[i].is_done = false;
        r = server_start_shard(server, i, cpus[i], &worker);
        if (r < 0) {
            server->shards[i].worker = NULL;
            server->shards[i].is_done = true;
            break;
        }
    }
    if (r < 0)
        server_stop(server);
    return r;
}

void server_stop(struct server *server)
{
    const uint32_t worker_count = server->config.worker_count;

    if (server->shards == NULL)
        return;
    /* All together: none of them ends while another one may still write to it. */
    for (uint32_t i = 0; i < worker_count; i++)
        if (server->shards[i].worker == NULL)
            atomic_fetch_add(&server->quiet_count, 1);
    atomic_store(&server->stopping, true);
    for (uint32_t i = 0; i < worker_count; i++)
        if (server->shards[i].worker != NULL)
            weir_worker_wake(server->shards[i].worker);
    for (uint32_t i = 0; i < worker_count; i++)
        weir_worker_stop(server->shards[i].worker);
    for (uint32_t i = 0; i < worker_count; i++)
        close(server->shards[i].listen_fd);
    free(server->shards);
    server->shards = NULL;
}
