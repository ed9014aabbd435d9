/* SPDX-License-Identifier: MIT */
/*
 * stock - keys and values under a budget
 *
 *      value            charged to   above spill         at hard
 *      up to 127 bytes  tables       (stays in memory)   waits
 *      longer           values       into the region     waits
 *      very long        nothing      into the region     into the region
 *
 * Every command is run in two parts. First it takes what it needs: charges, and
 * for a new value in the region its slot; this part may end with "wait", and is
 * run again from its beginning. Then it changes the keys, which cannot fail but
 * for malloc() of an entry, tried before anything is given up.
 *
 * A value is never changed while a reply holds it; one that nobody holds and
 * that has the right length is overwritten where it is.
 *
 *   S1  what is charged for an entry follows from its fields: entry_cost()
 *   S2  what is charged for a value follows from its length: value_cost()
 */
#include "stock.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cold.h"
#include "stream.h"

#define STOCK_NUMBER_BYTES  21 /* a signed 64-bit number in decimal */
#define STOCK_SWEEP_BUCKETS 64
#define STOCK_FREE_KEYS     2000 /* of those flushed, per tick */
#define STOCK_WRONG_TYPE    "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"

static struct weir_label stock_label(uint64_t hash)
{
    return (struct weir_label){.key = hash, .owner = SHARD_OWNER_KEYS};
}

/* ---- Values ------------------------------------------------------------------- */

static struct value *value_make(size_t bytes)
{
    struct value *value = malloc(sizeof(*value) + bytes);

    if (value == NULL)
        return NULL;
    memset(value, 0, sizeof(*value));
    value->bytes = (uint32_t)bytes;
    value->reference_count = 1;
    return value;
}

void stock_unref(struct shard *shard, struct value *value)
{
    assert(value->reference_count > 0);
    if (--value->reference_count > 0)
        return;
    if (value->is_loose)
        shard->loose_bytes -= value_cost(value->bytes);
    if (value->is_staged)
        shard->staged_bytes -= value_cost(value->bytes);
    weir_account_refund(shard->values, value_cost(value->bytes));
    free(value);
}

struct value *stock_make_loose(struct shard *shard, size_t bytes)
{
    struct value *value = value_make(bytes);

    if (value == NULL)
        return NULL;
    value->is_loose = 1;
    shard->loose_bytes += value_cost(bytes);
    weir_account_charge_forced(shard->values, value_cost(bytes));
    return value;
}

/* Whatever @entry has, it has it no more. */
static void entry_give_up(struct shard *shard, struct entry *entry)
{
    switch ((enum where)entry->where) {
    case WHERE_INLINE:
        break;
    case WHERE_MEMORY:
        stock_unref(shard, keyspace_take_value(&shard->keys, entry));
        break;
    case WHERE_SLOT:
        cold_drop_slot(shard, keyspace_take_slot(&shard->keys, entry));
        break;
    }
}

static void entry_remove(struct shard *shard, struct entry *entry)
{
    entry_give_up(shard, entry);
    weir_account_refund(shard->tables, entry_cost(entry->key_bytes, entry->capacity));
    keyspace_remove(&shard->keys, entry);
}

/* The key of a request, unless it has expired. */
static struct entry *entry_find(struct shard *shard, const struct request *request)
{
    struct entry *entry = keyspace_find(&shard->keys, request->hash, request->call.key);

    if (entry == NULL || entry->expire_ms == 0 || entry->expire_ms > shard->now_ms)
        return entry;
    shard->figures.expired_count++;
    entry_remove(shard, entry);
    return NULL;
}

static bool is_stream(struct shard *shard, const struct request *request)
{
    return shard->stream_count > 0 && stream_find(shard, request->hash, request->call.key) != NULL;
}

static enum progress done_text(struct request *request, const char *text)
{
    request_reply_text(request, text);
    return PROGRESS_DONE;
}

static enum progress done_integer(struct request *request, int64_t value)
{
    request_reply_integer(request, value);
    return PROGRESS_DONE;
}

/* ---- Writing ------------------------------------------------------------------ */

/* Capacity for @bytes that uses up what malloc() gives anyway. */
static size_t inline_capacity(size_t key_bytes, size_t bytes)
{
    if (bytes < STOCK_NUMBER_BYTES)
        bytes = STOCK_NUMBER_BYTES;
    const size_t cost = slab_cost(sizeof(struct entry) + key_bytes + bytes);

    return cost > SLAB_BYTES_MAX ? bytes : cost - sizeof(struct entry) - key_bytes;
}

/*
 * An entry for the key with this capacity: the one that is there, changed, or a
 * new one. Its value is given up. The charge was taken; NULL: no memory.
 */
static struct entry *entry_prepare(struct shard *shard, struct request *request,
                                   struct entry *entry, size_t capacity)
{
    const size_t cost = entry_cost(request->call.key.bytes, capacity);

    if (entry != NULL && entry->capacity == capacity) {
        entry_give_up(shard, entry);
        return entry;
    }
    if (entry == NULL) {
        entry = keyspace_add(&shard->keys, request->hash, request->call.key, capacity);
        if (entry == NULL)
            return NULL;
    } else {
        const size_t cost_before = entry_cost(entry->key_bytes, entry->capacity);

        entry = keyspace_resize(&shard->keys, entry, capacity);
        if (entry == NULL)
            return NULL;
        weir_account_refund(shard->tables, cost_before);
        entry_give_up(shard, entry);
    }
    assert(request->entry_charge == cost); /* S1 */
    (void)cost;
    request->entry_charge = 0;
    return entry;
}

/* Charge for what entry_prepare() will need. */
static enum grant take_entry(struct shard *shard, struct request *request,
                             const struct entry *entry, size_t capacity)
{
    if (entry != NULL && entry->capacity == capacity)
        return GRANT_YES;
    return shard_take_entry(shard, request, entry_cost(request->call.key.bytes, capacity));
}

/* The value becomes an inline one. GRANT_NEVER: it was answered with an error. */
static enum grant set_inline(struct shard *shard, struct request *request, struct entry **ret_entry,
                             struct slice data)
{
    struct entry *entry = *ret_entry;
    size_t capacity = inline_capacity(request->call.key.bytes, data.bytes);
    enum grant grant;

    if (entry != NULL && entry->capacity >= data.bytes && entry->where == WHERE_INLINE)
        capacity = entry->capacity;
    grant = take_entry(shard, request, entry, capacity);
    if (grant != GRANT_YES)
        return grant;
    entry = entry_prepare(shard, request, entry, capacity);
    if (entry == NULL) {
        shard_reply_oom(shard, request);
        return GRANT_NEVER;
    }
    keyspace_set_inline(&shard->keys, entry, data.data, data.bytes);
    *ret_entry = entry;
    return GRANT_YES;
}

static enum grant wait_region(struct shard *shard, struct request *request)
{
    return shard_wait_region(shard, request) == PROGRESS_WAIT ? GRANT_WAIT : GRANT_NEVER;
}

/* Memory or a slot for @data, with its bytes in it. */
static enum grant make_long(struct shard *shard, struct request *request, struct slice data,
                            struct value **ret_value, struct weir_slot *ret_slot)
{
    for (;;) {
        const enum grant grant = shard_take_value(shard, request, value_cost(data.bytes));
        int r;

        if (grant == GRANT_YES) {
            *ret_value = value_make(data.bytes);
            if (*ret_value == NULL) {
                shard_reply_oom(shard, request);
                return GRANT_NEVER;
            }
            memcpy((*ret_value)->data, data.data, data.bytes);
            request->value_charge = 0;
            return GRANT_YES;
        }
        if (grant != GRANT_SPILL)
            return grant;
        r = weir_region_put(shard->region, data.data, data.bytes, stock_label(request->hash),
                            ret_slot);
        if (r == 0) {
            shard->figures.direct_count++;
            return GRANT_YES;
        }
        /* From now on the governor admits up to the limit, then lets wait. */
        if ((r == -EDQUOT || r == -ENOSPC) && !shard->region_is_full)
            shard_region_full(shard);
        else if (r == -EAGAIN && !shard->region_is_behind)
            shard_region_behind(shard);
        else
            return wait_region(shard, request);
    }
}

/* A value of its own, in memory or in the region. */
static enum grant set_long(struct shard *shard, struct request *request, struct entry **ret_entry,
                           struct slice data)
{
    struct entry *entry = *ret_entry;
    struct value *staged = request->place.value;
    struct value *value = staged;
    struct weir_slot slot = request->place.slot;
    enum grant grant = take_entry(shard, request, entry, 0);

    if (staged != NULL && staged->is_staged) {
        data.data = staged->data;
        value = NULL;
    }

    if (grant == GRANT_YES && value == NULL && weir_slot_is_none(slot))
        grant = make_long(shard, request, data, &value, &slot);
    if (grant != GRANT_YES)
        return grant;

    if (staged != NULL && value != staged)
        stock_unref(shard, staged);
    request->place = (struct place){.value = value, .slot = slot};
    entry = entry_prepare(shard, request, entry, 0);
    if (entry == NULL) {
        stock_drop_place(shard, request);
        shard_reply_oom(shard, request);
        return GRANT_NEVER;
    }
    if (value != NULL)
        keyspace_set_value(&shard->keys, entry, value);
    else
        keyspace_set_slot(&shard->keys, entry, slot, (uint32_t)data.bytes);
    request->place = (struct place){0};
    *ret_entry = entry;
    return GRANT_YES;
}

/* The same length, in memory, held by nobody: overwrite it. */
static bool set_in_place(const struct request *request, struct entry *entry, struct slice data)
{
    if (entry == NULL || entry->where != WHERE_MEMORY || entry->bytes != data.bytes ||
        entry->value->reference_count > 1 || data.data == NULL)
        return false;
    memcpy(entry->value->data, data.data, data.bytes);
    entry->was_used = true;
    (void)request;
    return true;
}

static enum grant set_value(struct shard *shard, struct request *request, struct entry **ret_entry)
{
    const struct slice data = request->call.payload;

    if (data.bytes <= KEYSPACE_INLINE_MAX)
        return set_inline(shard, request, ret_entry, data);
    if (set_in_place(request, *ret_entry, data))
        return GRANT_YES;
    return set_long(shard, request, ret_entry, data);
}

/* An old value that is to be the reply, held while it is replaced. */
struct kept {
    struct value *value;
    struct hold *hold;
    size_t bytes;
    char text[KEYSPACE_INLINE_MAX];
};

static void keep(struct shard *shard, struct entry *entry, struct kept *ret_kept)
{
    ret_kept->value = NULL;
    ret_kept->hold = NULL;
    ret_kept->bytes = entry->bytes;
    switch ((enum where)entry->where) {
    case WHERE_INLINE:
        memcpy(ret_kept->text, entry_inline(entry), entry->bytes);
        break;
    case WHERE_MEMORY:
        ret_kept->value = entry->value;
        entry->value->reference_count++;
        break;
    case WHERE_SLOT:
        ret_kept->hold = cold_hold(shard, entry->slot, entry->bytes);
        break;
    }
}

static void keep_not(struct shard *shard, struct kept *kept)
{
    if (kept->value != NULL)
        stock_unref(shard, kept->value);
    if (kept->hold != NULL)
        cold_release(shard, kept->hold);
}

static enum progress reply_kept(struct shard *shard, struct request *request, struct kept *kept)
{
    if (kept->hold != NULL)
        return cold_get(shard, request, kept->hold);
    if (kept->value != NULL) {
        request->value = kept->value;
        request->reply = REPLY_VALUE;
        return PROGRESS_DONE;
    }
    request_reply_bulk(request, kept->text, kept->bytes);
    return PROGRESS_DONE;
}

static enum progress reply_entry(struct shard *shard, struct request *request, struct entry *entry)
{
    struct kept kept;

    entry->was_used = true;
    keep(shard, entry, &kept);
    return reply_kept(shard, request, &kept);
}

static int64_t call_expire_ms(const struct shard *shard, const struct call *call)
{
    int64_t at_ms = shard->now_ms + call->ttl_ms;

    if (call->flags & CALL_AT)
        at_ms = call->ttl_ms - shard->server->start_unix_ms + shard->server->start_ms;
    return at_ms > 0 ? at_ms : 1;
}

static enum progress run_set(struct shard *shard, struct request *request)
{
    const struct call *call = &request->call;
    struct entry *entry = entry_find(shard, request);
    const bool was_there = entry != NULL;
    const bool must_keep = was_there && (call->flags & CALL_GET) != 0;
    struct kept kept = {0};
    enum grant grant;

    if (entry == NULL && is_stream(shard, request))
        return done_text(request, STOCK_WRONG_TYPE);
    if (((call->flags & CALL_IF_MISSING) && was_there) ||
        ((call->flags & CALL_IF_THERE) && !was_there))
        return must_keep ? reply_entry(shard, request, entry) : done_text(request, RESP_NIL);

    if (must_keep)
        keep(shard, entry, &kept);
    grant = set_value(shard, request, &entry);
    if (grant != GRANT_YES) {
        keep_not(shard, &kept);
        return grant == GRANT_WAIT ? PROGRESS_WAIT : PROGRESS_DONE;
    }
    if (call->flags & CALL_TTL)
        keyspace_set_expire(&shard->keys, entry, call_expire_ms(shard, call));
    else if (!(call->flags & CALL_KEEP_TTL) && entry->expire_ms != 0)
        keyspace_set_expire(&shard->keys, entry, 0);
    if (must_keep)
        return reply_kept(shard, request, &kept);
    return done_text(request, call->flags & CALL_GET ? RESP_NIL : RESP_OK);
}

static enum progress run_incr(struct shard *shard, struct request *request)
{
    struct entry *entry = entry_find(shard, request);
    char digits[STOCK_NUMBER_BYTES + 1];
    int64_t value = 0;
    enum grant grant;

    if (entry == NULL && is_stream(shard, request))
        return done_text(request, STOCK_WRONG_TYPE);
    if (entry != NULL &&
        (entry->where != WHERE_INLINE ||
         !resp_integer((struct slice){.data = entry_inline(entry), .bytes = entry->bytes}, &value)))
        return done_text(request, "-ERR value is not an integer or out of range\r\n");
    if (__builtin_add_overflow(value, request->call.number, &value))
        return done_text(request, "-ERR increment or decrement would overflow\r\n");
    grant = set_inline(shard, request, &entry,
                       (struct slice){.data = digits,
                                      .bytes = (size_t)snprintf(digits, sizeof(digits), "%lld",
                                                                (long long)value)});
    if (grant != GRANT_YES)
        return grant == GRANT_WAIT ? PROGRESS_WAIT : PROGRESS_DONE;
    return done_integer(request, value);
}

/* ---- Reading, removing, expiry -------------------------------------------------- */

static enum progress run_get(struct shard *shard, struct request *request)
{
    struct entry *entry = entry_find(shard, request);

    if (entry != NULL) {
        shard->figures.hit_count++;
        return reply_entry(shard, request, entry);
    }
    shard->figures.miss_count++;
    if (is_stream(shard, request))
        return done_text(request, STOCK_WRONG_TYPE);
    return done_text(request, RESP_NIL);
}

static enum progress run_del(struct shard *shard, struct request *request)
{
    struct entry *entry = entry_find(shard, request);
    struct stream *stream;

    if (entry != NULL) {
        entry_remove(shard, entry);
        return done_integer(request, 1);
    }
    stream = shard->stream_count > 0 ? stream_find(shard, request->hash, request->call.key) : NULL;
    if (stream == NULL)
        return done_integer(request, 0);
    stream_remove(shard, stream);
    return done_integer(request, 1);
}

static enum progress run_expire(struct shard *shard, struct request *request)
{
    const struct call *call = &request->call;
    struct entry *entry = entry_find(shard, request);
    const int64_t expire_ms = shard->now_ms + call->ttl_ms;

    if (entry == NULL)
        return done_integer(request, 0);
    if (((call->flags & CALL_IF_MISSING) && entry->expire_ms != 0) ||
        ((call->flags & CALL_IF_THERE) && entry->expire_ms == 0) ||
        ((call->flags & CALL_IF_LATER) &&
         (entry->expire_ms == 0 || expire_ms <= entry->expire_ms)) ||
        ((call->flags & CALL_IF_EARLIER) && entry->expire_ms != 0 && expire_ms >= entry->expire_ms))
        return done_integer(request, 0);
    if (call->ttl_ms <= 0)
        entry_remove(shard, entry);
    else
        keyspace_set_expire(&shard->keys, entry, expire_ms);
    return done_integer(request, 1);
}

static enum progress run_ttl(struct shard *shard, struct request *request)
{
    const struct entry *entry = entry_find(shard, request);
    const int64_t unit_ms = request->call.number;

    if (entry == NULL)
        return done_integer(request, is_stream(shard, request) ? -1 : -2);
    if (entry->expire_ms == 0)
        return done_integer(request, -1);
    return done_integer(request, (entry->expire_ms - shard->now_ms + unit_ms / 2) / unit_ms);
}

static enum progress run_persist(struct shard *shard, struct request *request)
{
    struct entry *entry = entry_find(shard, request);

    if (entry == NULL || entry->expire_ms == 0)
        return done_integer(request, 0);
    keyspace_set_expire(&shard->keys, entry, 0);
    return done_integer(request, 1);
}

static enum progress run_type(struct shard *shard, struct request *request)
{
    if (entry_find(shard, request) != NULL)
        return done_text(request, "+string\r\n");
    return done_text(request, is_stream(shard, request) ? "+weir-stream\r\n" : "+none\r\n");
}

static enum progress run_strlen(struct shard *shard, struct request *request)
{
    const struct entry *entry = entry_find(shard, request);

    if (entry == NULL && is_stream(shard, request))
        return done_text(request, STOCK_WRONG_TYPE);
    return done_integer(request, entry != NULL ? (int64_t)entry->bytes : 0);
}

static enum progress run_flush(struct shard *shard, struct request *request)
{
    struct dying *dying = malloc(sizeof(*dying));
    struct keyspace keys;

    stream_remove_all(shard);
    if (dying == NULL || keyspace_init(&keys, &shard->slab, shard->keys.books) < 0) {
        free(dying);
        shard_reply_oom(shard, request);
        return PROGRESS_DONE;
    }
    *dying = (struct dying){.next = shard->dying, .keys = shard->keys};
    shard->dying = dying;
    shard->keys = keys;
    return done_text(request, RESP_OK);
}

/* A copy of the figures goes with the answer: nobody reads those of another core. */
static enum progress run_figures(struct shard *shard, struct request *request)
{
    struct shard_figures *figures = &shard->figures;

    weir_region_stats(shard->region, &figures->region);
    weir_account_stats(shard->values, &figures->values);
    weir_account_stats(shard->tables, &figures->keys);
    weir_worker_stats(shard->worker, &figures->worker);
    figures->key_count = shard->keys.count;
    figures->expire_count = shard->keys.expire_count;
    figures->memory_count = shard->keys.memory_count;
    figures->slot_count = shard->keys.slot_count;
    figures->value_bytes = shard->keys.value_bytes;
    figures->stream_count = shard->stream_count;
    figures->connection_count = shard->connection_count;
    figures->blocked_count = shard->blocked_count;
    figures->drift_bytes = shard->drift_bytes;
    memcpy(figures->reclaimers, shard->reclaimers, sizeof(figures->reclaimers));
    request->value = stock_make_loose(shard, sizeof(*figures));
    if (request->value != NULL)
        memcpy(request->value->data, figures, sizeof(*figures));
    return done_integer(request, 0);
}

enum progress stock_run(struct shard *shard, struct request *request)
{
    switch (request->call.operation) {
    case OPERATION_GET:
        return run_get(shard, request);
    case OPERATION_SET:
        return run_set(shard, request);
    case OPERATION_DEL:
        return run_del(shard, request);
    case OPERATION_EXISTS:
        return done_integer(request,
                            entry_find(shard, request) != NULL || is_stream(shard, request));
    case OPERATION_INCR:
        return run_incr(shard, request);
    case OPERATION_STRLEN:
        return run_strlen(shard, request);
    case OPERATION_EXPIRE:
        return run_expire(shard, request);
    case OPERATION_TTL:
        return run_ttl(shard, request);
    case OPERATION_PERSIST:
        return run_persist(shard, request);
    case OPERATION_TYPE:
        return run_type(shard, request);
    case OPERATION_WPUSH:
        if (entry_find(shard, request) != NULL)
            return done_text(request, STOCK_WRONG_TYPE);
        return stream_push(shard, request);
    case OPERATION_WPOP:
        if (entry_find(shard, request) != NULL)
            return done_text(request, STOCK_WRONG_TYPE);
        return stream_pop(shard, request);
    case OPERATION_WSKIP:
        if (entry_find(shard, request) != NULL)
            return done_text(request, STOCK_WRONG_TYPE);
        return stream_skip(shard, request);
    case OPERATION_WINFO:
        if (entry_find(shard, request) != NULL)
            return done_text(request, STOCK_WRONG_TYPE);
        return stream_info(shard, request);
    case OPERATION_DBSIZE:
        return done_integer(request, (int64_t)(shard->keys.count + shard->stream_count));
    case OPERATION_FLUSHALL:
        return run_flush(shard, request);
    case OPERATION_INFO:
        return run_figures(shard, request);
    case OPERATION_PING:
    case OPERATION_ECHO:
    case OPERATION_SELECT:
    case OPERATION_CONFIG:
    case OPERATION_COMMAND:
    case OPERATION_CLIENT:
    case OPERATION_HELLO:
    case OPERATION_QUIT:
        break; /* the session's own */
    }
    abort();
}

/* ---- Payloads in pieces --------------------------------------------------------- */

/*
 *      short, admitted   a value in memory: for SET it is the value itself
 *      short, spilled    staged in memory, put into the region when it is whole
 *      long              grows in the region, piece by piece
 *
 * WPUSH copies what is in memory once more, when it is whole.
 */
static bool place_in_memory(struct shard *shard, struct request *request, bool is_staged)
{
    const size_t bytes = request->call.payload.bytes;
    struct value *value = value_make(bytes);

    if (value == NULL)
        return false;
    if (is_staged) {
        weir_account_charge_forced(shard->values, value_cost(bytes));
        shard->staged_bytes += value_cost(bytes);
        value->is_staged = 1;
    } else {
        request->value_charge = 0;
    }
    request->place.value = value;
    return true;
}

static enum progress begin_short(struct shard *shard, struct request *request)
{
    const size_t cost = value_cost(request->call.payload.bytes);

    /* What all others wait for gets in whatever there is. */
    if (stream_wants(shard, request)) {
        if (!place_in_memory(shard, request, true))
            shard_reply_oom(shard, request);
        return PROGRESS_DONE;
    }
    switch (shard_take_value(shard, request, cost)) {
    case GRANT_YES:
        if (!place_in_memory(shard, request, false))
            shard_reply_oom(shard, request);
        return PROGRESS_DONE;
    case GRANT_WAIT:
        return PROGRESS_WAIT;
    case GRANT_NEVER:
        return PROGRESS_DONE;
    case GRANT_SPILL:
        break;
    }
    if (shard->staged_bytes > 0 && shard->staged_bytes + cost > shard->staged_max)
        return shard_wait_region(shard, request);
    if (!place_in_memory(shard, request, true))
        shard_reply_oom(shard, request);
    return PROGRESS_DONE;
}

static struct builder *builder_of(struct shard *shard, struct weir_slot slot)
{
    for (uint32_t i = 0; i < SHARD_BUILDERS_MAX; i++)
        if (shard->builders[i].slot.index == slot.index &&
            shard->builders[i].slot.generation == slot.generation)
            return &shard->builders[i];
    return NULL;
}

/* A vacant place, or that of a client that has stopped sending; NULL: all are busy. */
static struct builder *builder_take(struct shard *shard, bool is_wanted)
{
    const uint32_t count = is_wanted ? SHARD_BUILDERS_MAX : shard->builder_max;
    const uint64_t patience_ns = shard->server->config.wait_ms * 1000000 / 2;

    for (uint32_t i = 0; i < count; i++) {
        struct builder *builder = &shard->builders[i];

        if (weir_slot_is_none(builder->slot))
            return builder;
        if (shard->now_ns - builder->touched_ns > patience_ns) {
            /* Its next piece meets a stale slot, and its write is refused. */
            weir_region_free(shard->region, builder->slot);
            builder->slot = (struct weir_slot){0};
            return builder;
        }
    }
    return NULL;
}

static enum progress begin_long(struct shard *shard, struct request *request)
{
    const size_t bytes = request->call.payload.bytes;
    const bool is_push = request->call.operation == OPERATION_WPUSH;
    const struct weir_label label = {
        .key = request->hash,
        .owner = is_push ? SHARD_OWNER_STREAMS : SHARD_OWNER_KEYS,
    };
    const bool is_head = is_push && stream_wants(shard, request);
    struct builder *builder = builder_take(shard, is_head);
    int r;

    if (builder == NULL || (!is_head && !shard_has_room(shard, bytes)))
        return shard_wait_region(shard, request);
    r = weir_region_alloc(shard->region, bytes, label, &request->place.slot);
    if (r == 0) {
        builder->slot = request->place.slot;
        builder->touched_ns = shard->now_ns;
        return PROGRESS_DONE;
    }
    if (r == -EFBIG || r == -EINVAL)
        return done_text(request, "-ERR value is larger than the spill file takes\r\n");
    if (r == -EDQUOT || r == -ENOSPC) {
        shard_region_full(shard);
        if (is_head && bytes <= shard->head_bytes_max && place_in_memory(shard, request, true))
            return PROGRESS_DONE;
    }
    return shard_wait_region(shard, request);
}

enum progress stock_begin(struct shard *shard, struct request *request)
{
    return request->call.payload.bytes <= shard->value_memory_max ? begin_short(shard, request)
                                                                  : begin_long(shard, request);
}

static void builder_end(struct shard *shard, struct weir_slot slot)
{
    struct builder *builder = builder_of(shard, slot);

    if (builder != NULL)
        builder->slot = (struct weir_slot){0};
}

enum progress stock_piece(struct shard *shard, struct request *request)
{
    struct place *place = &request->place;
    struct builder *builder = builder_of(shard, place->slot);
    int r = weir_region_write(shard->region, place->slot, place->written_bytes, request->piece,
                              request->piece_bytes);

    if (builder != NULL)
        builder->touched_ns = shard->now_ns;
    if (r == 0) {
        place->written_bytes += request->piece_bytes;
        if (place->written_bytes < request->call.payload.bytes)
            return PROGRESS_DONE;
        builder_end(shard, place->slot);
        r = weir_region_commit(shard->region, place->slot);
        if (r == 0)
            return PROGRESS_DONE;
    }
    if (r == -EAGAIN)
        return shard_wait_region(shard, request);
    return done_text(request, "-OOM the spill file did not take the value in time\r\n");
}

void stock_drop_place(struct shard *shard, struct request *request)
{
    if (request->place.value != NULL)
        stock_unref(shard, request->place.value);
    if (!weir_slot_is_none(request->place.slot)) {
        builder_end(shard, request->place.slot);
        weir_region_free(shard->region, request->place.slot);
        shard_region_freed(shard);
    }
    request->place = (struct place){0};
}

/* ---- Sweeping ------------------------------------------------------------------- */

static void sweep_visit(void *context, struct entry *entry)
{
    struct shard *shard = context;

    if (entry->expire_ms == 0 || entry->expire_ms > shard->now_ms)
        return;
    shard->figures.expired_count++;
    entry_remove(shard, entry);
}

/* Frees some keys of a keyspace that is not the shard's any more; whether it is empty. */
static bool dying_free(struct shard *shard, struct dying *dying, uint64_t count)
{
    const struct keyspace keys = shard->keys;
    struct entry *entry;

    /* The helpers know one keyspace: it is put in the place of the living one for a moment. */
    shard->keys = dying->keys;
    while (count-- > 0 && (entry = keyspace_any(&shard->keys, &dying->cursor)) != NULL)
        entry_remove(shard, entry);
    dying->keys = shard->keys;
    shard->keys = keys;
    return dying->keys.count == 0;
}

void stock_sweep(struct shard *shard)
{
    struct dying *dying = shard->dying;

    if (shard->keys.expire_count > 0)
        keyspace_scan(&shard->keys, &shard->sweep_cursor, STOCK_SWEEP_BUCKETS, sweep_visit, shard);
    if (dying == NULL)
        return;
    if (dying_free(shard, dying, STOCK_FREE_KEYS)) {
        shard->dying = dying->next;
        keyspace_deinit(&dying->keys);
        free(dying);
    }
    if (shard->dying != NULL)
        shard_nudge(shard);
}

void stock_clear(struct shard *shard)
{
    struct dying all = {.keys = shard->keys};

    while (shard->dying != NULL) {
        struct dying *dying = shard->dying;

        (void)dying_free(shard, dying, UINT64_MAX);
        shard->dying = dying->next;
        keyspace_deinit(&dying->keys);
        free(dying);
    }
    (void)dying_free(shard, &all, UINT64_MAX);
    keyspace_deinit(&all.keys);
    memset(&shard->keys, 0, sizeof(shard->keys));
}
