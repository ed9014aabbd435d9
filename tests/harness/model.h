/* SPDX-License-Identifier: MIT */
#ifndef WEIR_HARNESS_MODEL_H
#define WEIR_HARNESS_MODEL_H

/*
 * model - what a region should be: an array of items with copies from malloc()
 *
 *      step(choice, a, b) --> the same call on region and model --> compare
 *
 * A step is one call that a user could make, right or wrong; stress draws steps
 * by weight, fuzz reads them from bytes. After a step the answer of the region
 * is the one the model gives, or one that the header allows there (-EDQUOT only
 * near bytes_max, -EAGAIN only where something is to be waited for). The first
 * difference stops the process with the seed and the number of the step.
 *
 *   M1  an item's slot, label and length are those it was put with, and its
 *       bytes, however they come out, are those of its copy
 *   M2  items[] holds every live slot; what was freed answers -ESTALE
 *   M3  each fetch is called back once per slot, each piece completes once,
 *       both from poll alone; 0 for what lives then, -ESTALE for what does not
 *   M4  pinned bytes stay where they are, those of freed items too, and what is
 *       filled in place stays as far as it is filled
 *   M5  an item's address is a multiple of the alignment it was asked for
 *   M6  the figures are the sums over items[]; the books are told metadata_bytes
 *   M7  what bounds the memory rises only to what the owner has said, and never on
 *       its way down: what it fell by has been refunded
 *
 * Where faults are armed (seam.h) the model is told that it suffers: then what the
 * kernel says is an answer too. It never stands for what we know: a live item is
 * not stale, no byte is wrong, and what was refused has changed nothing.
 */

#include <weir/region.h>

#include "base/list.h"
#include "base/ring.h"

#include "pattern.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODEL_DEAD_COUNT  256
#define MODEL_FETCH_MAX   1024
#define MODEL_AWAITED_MAX 8192 /* a region queues without end; we do not */
#define MODEL_TRIES_MAX   10000
#define MODEL_CHUNK_BYTES (UINT64_C(2) << 20)

/* What a step does; a and b choose the item, the size, the offset. */
enum model_choice {
    MODEL_PUT,
    MODEL_PUT_TOO_LARGE,
    MODEL_FREE,
    MODEL_FREE_MANY,
    MODEL_FREE_OWNER,
    MODEL_AT,
    MODEL_READ,
    MODEL_STALE,
    MODEL_PIN,
    MODEL_UNPIN,
    MODEL_BUILD,
    MODEL_WRITE,
    MODEL_WRITE_WRONG,
    MODEL_COMMIT,
    MODEL_FETCH,
    MODEL_FETCH_INTO,
    MODEL_POLL,
    MODEL_WAIT,
    MODEL_WALK,
    MODEL_FLOOD,
    MODEL_PLACE,
    MODEL_RESIDENT,
    MODEL_CHOICE_COUNT,
};

/* What came about, counted: a run that never saw one of these has proved less than it says. */
enum model_event {
    MODEL_SAW_HOT,
    MODEL_SAW_COLD,
    MODEL_SAW_FULL,
    MODEL_SAW_BEHIND,
    MODEL_SAW_FETCHED,
    MODEL_SAW_FETCH_STALE,
    MODEL_SAW_FETCH_TOO_LARGE,
    MODEL_SAW_PIECE,
    MODEL_SAW_PIECE_STALE,
    MODEL_SAW_ZOMBIE,
    MODEL_SAW_BUILT,
    MODEL_SAW_BUILD_GIVEN_UP,
    MODEL_SAW_GROWTH,
    MODEL_SAW_SHRINKING,
    MODEL_SAW_HOLES,
    MODEL_SAW_COMPACTION,
    MODEL_SAW_PLACED,
    MODEL_SAW_PLACED_COLD,
    MODEL_SAW_MOVES,
    MODEL_SAW_LESS,
    MODEL_SAW_STAGED,
    MODEL_EVENT_COUNT,
};

static const char *const model_event_names[MODEL_EVENT_COUNT] = {
    [MODEL_SAW_HOT] = "at() answered",
    [MODEL_SAW_COLD] = "at() said -EAGAIN",
    [MODEL_SAW_FULL] = "put said -EDQUOT",
    [MODEL_SAW_BEHIND] = "put said -EAGAIN",
    [MODEL_SAW_FETCHED] = "an item was fetched",
    [MODEL_SAW_FETCH_STALE] = "a fetch was stale",
    [MODEL_SAW_FETCH_TOO_LARGE] = "fetch said -EFBIG",
    [MODEL_SAW_PIECE] = "a piece was fetched",
    [MODEL_SAW_PIECE_STALE] = "a piece was stale",
    [MODEL_SAW_ZOMBIE] = "a pinned item was freed",
    [MODEL_SAW_BUILT] = "an item was built in pieces",
    [MODEL_SAW_BUILD_GIVEN_UP] = "an unfinished item was freed",
    [MODEL_SAW_GROWTH] = "the file grew",
    [MODEL_SAW_SHRINKING] = "the file shrank",
    [MODEL_SAW_HOLES] = "there were free extents",
    [MODEL_SAW_COMPACTION] = "items moved with all in memory",
    [MODEL_SAW_PLACED] = "an item was filled in place",
    [MODEL_SAW_PLACED_COLD] = "an aligned item was fetched",
    [MODEL_SAW_MOVES] = "items were moved",
    [MODEL_SAW_LESS] = "less was in memory than before",
    [MODEL_SAW_STAGED] = "an item was written into a hole",
};

struct model_item {
    struct weir_slot slot;
    struct weir_label label;
    unsigned char *copy;
    uint64_t bytes;
    uint64_t written; /* of an unfinished item */
    bool unfinished;
    bool built;           /* in pieces */
    unsigned char *place; /* of an unfinished item that is filled in place */
    uint64_t alignment;   /* 0: nothing was asked for */
    uint32_t pins;
    const void *pinned_at;
    uint32_t walk; /* the last walk that saw it */
};

struct model {
    struct weir_region *region;
    struct weir_ring *ring; /* shared with the region, or NULL; ours */
    uint64_t random;        /* for choices inside callbacks */
    uint64_t size_max;      /* of the items that put makes */
    uint64_t live_max;      /* over this a put frees first; UINT64_MAX: up to -EDQUOT */
    uint64_t build_max;     /* of unfinished items */
    bool canary;            /* a model that is wrong on purpose */
    bool suffers;           /* the kernel may refuse anything */
    bool has_suffered;      /* errors have been counted */

    struct model_item *items; /* M2 */
    size_t item_count;
    size_t item_room;
    struct model_item *zombies; /* freed, still pinned */
    size_t zombie_count;
    size_t zombie_room;
    uint32_t *by_index; /* slot index to position in items[], plus one */
    size_t by_index_room;
    struct weir_slot dead[MODEL_DEAD_COUNT];
    size_t dead_count;

    uint64_t resident_least;  /* of the config; 0: nothing is changed */
    uint64_t paid_bytes;      /* M7 */
    uint64_t committed_bytes; /* M6 */
    uint64_t unfinished_bytes;
    uint64_t placed_bytes; /* of these, filled in place */
    uint64_t placed_count;
    uint64_t pin_count; /* zombies' too */
    uint64_t put_count;
    uint64_t awaited; /* callbacks and completions to come, M3 */
    struct weir__list requests;
    struct weir__list pieces;
    uint64_t file_bytes;
    uint32_t walk;
    bool in_poll;
    bool in_callback;

    struct weir_region_stats fixed; /* the limits, as they were after open */
    int64_t charged;
    uint64_t step;
    uint64_t seed; /* told when a check fails */
    uint64_t events[MODEL_EVENT_COUNT];
};

struct model_request {
    struct weir__list link; /* of model.requests */
    struct model *model;
    size_t left;
    size_t count;
    bool in_fetch;
    struct weir_slot slots[MODEL_FETCH_MAX];
    bool done[MODEL_FETCH_MAX];
};

struct model_piece {
    struct weir_operation operation;
    struct weir__list link; /* of model.pieces */
    struct model *model;
    struct weir_slot slot;
    uint64_t offset;
    size_t bytes;
    unsigned char *buffer;
};

_Noreturn static inline void model_fail(const struct model *model, const char *expression, int line,
                                        int64_t value)
{
    fprintf(stderr, "model.h:%d: step %" PRIu64 ": %s (value %" PRId64 ") WEIR_SEED=%" PRIu64 "\n",
            line, model->step, expression, value, model->seed);
    fflush(NULL);
    abort();
}

#define MODEL_CHECK(model, x)                                                                      \
 do {                                                                                              \
  if (!(x))                                                                                        \
   model_fail(model, #x, __LINE__, 0);                                                             \
 } while (0)

#define MODEL_EQUAL(model, a, b)                                                                   \
 do {                                                                                              \
  int64_t model_a = (int64_t)(a);                                                                  \
  int64_t model_b = (int64_t)(b);                                                                  \
  if (model_a != model_b)                                                                          \
   model_fail(model, #a " == " #b, __LINE__, model_a);                                             \
 } while (0)

/* Whether @r is no answer of ours but the kernel's, at a time when it may be. */
static inline bool model_is_fault(const struct model *model, int r)
{
    return model->suffers && r < 0 && r != -EINVAL && r != -ESTALE && r != -EBADMSG && r != -EFBIG;
}

static inline void model_books(void *context, int64_t bytes)
{
    struct model *model = context;

    model->charged += bytes;
    MODEL_CHECK(model, model->charged >= 0);
}

static inline void *model_alloc(size_t bytes)
{
    void *data = calloc(1, bytes > 0 ? bytes : 1);

    if (data == NULL) {
        fprintf(stderr, "model.h: no memory for %zu bytes\n", bytes);
        exit(99);
    }
    return data;
}

/* ---- Items ---------------------------------------------------------------- */

static inline bool model_same(struct weir_slot a, struct weir_slot b)
{
    return a.index == b.index && a.generation == b.generation;
}

static inline struct model_item *model_find(struct model *model, struct weir_slot slot)
{
    if (slot.index >= model->by_index_room || model->by_index[slot.index] == 0)
        return NULL;

    struct model_item *item = &model->items[model->by_index[slot.index] - 1];
    return model_same(item->slot, slot) ? item : NULL;
}

static inline void model_bury(struct model *model, struct weir_slot slot)
{
    model->dead[model->dead_count++ % MODEL_DEAD_COUNT] = slot;
}

static inline struct model_item *model_add(struct model *model, struct model_item item)
{
    MODEL_CHECK(model, !weir_slot_is_none(item.slot));
    MODEL_CHECK(model, item.slot.index < (1u << 28));
    if (item.slot.index >= model->by_index_room) {
        size_t room = ((size_t)item.slot.index + 1024) * 2;
        uint32_t *by_index = model_alloc(room * sizeof(*by_index));
        if (model->by_index_room > 0)
            memcpy(by_index, model->by_index, model->by_index_room * sizeof(*by_index));
        free(model->by_index);
        model->by_index = by_index;
        model->by_index_room = room;
    }
    MODEL_EQUAL(model, model->by_index[item.slot.index], 0); /* no index lives twice */
    if (model->item_count == model->item_room) {
        model->item_room = model->item_room * 2 + 64;
        model->items = realloc(model->items, model->item_room * sizeof(*model->items));
        if (model->items == NULL)
            exit(99);
    }
    model->items[model->item_count++] = item;
    model->by_index[item.slot.index] = (uint32_t)model->item_count;
    return &model->items[model->item_count - 1];
}

/* The item is freed: what is pinned of it goes on as a zombie. */
static inline void model_forget(struct model *model, struct model_item *item)
{
    size_t position = (size_t)(item - model->items);

    model_bury(model, item->slot);
    if (item->unfinished)
        model->unfinished_bytes -= item->bytes;
    else
        model->committed_bytes -= item->bytes;
    if (item->pins > 0) {
        if (model->zombie_count == model->zombie_room) {
            model->zombie_room = model->zombie_room * 2 + 64;
            model->zombies = realloc(model->zombies, model->zombie_room * sizeof(*model->zombies));
            if (model->zombies == NULL)
                exit(99);
        }
        model->zombies[model->zombie_count++] = *item;
        model->events[MODEL_SAW_ZOMBIE]++;
    } else {
        free(item->copy);
    }
    if (item->unfinished)
        model->events[MODEL_SAW_BUILD_GIVEN_UP]++;
    if (item->place != NULL) {
        model->placed_bytes -= item->bytes;
        model->placed_count--;
    }

    model->by_index[item->slot.index] = 0;
    struct model_item last = model->items[--model->item_count];
    if (position < model->item_count) {
        model->items[position] = last;
        model->by_index[last.slot.index] = (uint32_t)position + 1;
    }
}

static inline struct model_item *model_pick(struct model *model, uint64_t a)
{
    return model->item_count > 0 ? &model->items[a % model->item_count] : NULL;
}

/* ---- Comparison ------------------------------------------------------------- */

static inline void model_check_info(struct model *model, const struct model_item *item,
                                    struct weir_slot_info *info)
{
    MODEL_EQUAL(model, weir_region_slot(model->region, item->slot, info), 0);
    MODEL_EQUAL(model, info->bytes, item->bytes);
    MODEL_EQUAL(model, info->label.key, item->label.key);
    MODEL_EQUAL(model, info->label.owner, item->label.owner);
    MODEL_EQUAL(model, info->committed, !item->unfinished);
    if (item->pins > 0)
        MODEL_CHECK(model, info->resident);
}

/* at() tells the truth about @item: its bytes, or that it is cold. */
static inline void model_check_at(struct model *model, const struct model_item *item)
{
    struct weir_slot_info info;
    const void *data = model;
    size_t bytes = 4711;

    model_check_info(model, item, &info);
    int r = weir_region_at(model->region, item->slot, &data, &bytes);
    if (item->unfinished) {
        MODEL_CHECK(model, r < 0);
    } else if (info.resident) {
        MODEL_EQUAL(model, r, 0);
    } else {
        MODEL_EQUAL(model, r, -EAGAIN);
    }
    if (r < 0) {
        MODEL_CHECK(model, data == model && bytes == 4711);
        if (!item->unfinished)
            model->events[MODEL_SAW_COLD]++;
        return;
    }
    model->events[MODEL_SAW_HOT]++;
    MODEL_EQUAL(model, bytes, item->bytes);
    MODEL_EQUAL(model, memcmp(data, item->copy, bytes), 0);
    if (item->alignment > 0) /* M5 */
        MODEL_EQUAL(model, (uintptr_t)data % item->alignment, 0);
    if (item->pins > 0) /* M4 */
        MODEL_CHECK(model, data == item->pinned_at);
}

static inline void model_check_read(struct model *model, const struct model_item *item,
                                    uint64_t offset, size_t room)
{
    unsigned char *buffer = model_alloc(room + 1);
    size_t bytes = 4711;

    memset(buffer, 0xe5, room + 1);
    int r = weir_region_read(model->region, item->slot, offset, buffer, room, &bytes);
    if (item->unfinished || model_is_fault(model, r)) {
        MODEL_CHECK(model, r < 0 && bytes == 4711);
    } else {
        size_t want = item->bytes - offset < room ? item->bytes - offset : room;
        MODEL_EQUAL(model, r, 0);
        MODEL_EQUAL(model, bytes, want);
        MODEL_EQUAL(model, memcmp(buffer, item->copy + offset, want), 0);
        MODEL_EQUAL(model, buffer[want], 0xe5);
    }
    free(buffer);
}

static inline void model_check_stale(struct model *model, struct weir_slot slot)
{
    const void *data = model;
    size_t bytes = 4711;
    unsigned char byte = 0x77;
    struct weir_slot_info info;

    MODEL_EQUAL(model, weir_region_at(model->region, slot, &data, &bytes), -ESTALE);
    MODEL_EQUAL(model, weir_region_pin(model->region, slot, &data, &bytes), -ESTALE);
    MODEL_EQUAL(model, weir_region_read(model->region, slot, 0, &byte, 1, &bytes), -ESTALE);
    MODEL_EQUAL(model, weir_region_slot(model->region, slot, &info), -ESTALE);
    MODEL_EQUAL(model, weir_region_write(model->region, slot, 0, &byte, 1), -ESTALE);
    MODEL_EQUAL(model, weir_region_commit(model->region, slot), -ESTALE);
    MODEL_EQUAL(model, weir_region_free(model->region, slot), -ESTALE);
    MODEL_CHECK(model, data == model && bytes == 4711 && byte == 0x77);
}

static inline void model_check_figures(struct model *model)
{
    struct weir_region_stats stats;

    weir_region_stats(model->region, &stats);
    MODEL_EQUAL(model, stats.slot_count, model->item_count);
    MODEL_CHECK(model, stats.live_bytes >= model->committed_bytes);
    MODEL_CHECK(model, stats.live_bytes <= model->committed_bytes + model->unfinished_bytes);
    MODEL_CHECK(model, stats.live_bytes + stats.free_bytes <= stats.mark_bytes);
    MODEL_CHECK(model, stats.mark_bytes <= stats.file_bytes);
    MODEL_CHECK(model, stats.file_bytes <= stats.bytes_max);
    MODEL_CHECK(model, stats.live_bytes <= stats.live_bytes_peak);
    MODEL_CHECK(model, stats.dirty_bytes <= stats.resident_bytes);
    MODEL_CHECK(model, stats.fetched_bytes <= stats.resident_bytes);
    if (stats.bounded)
        MODEL_CHECK(model, stats.resident_bytes <= stats.resident_bytes_max);
    MODEL_CHECK(model, stats.resident_bytes_max <= model->paid_bytes); /* M7 */
    MODEL_CHECK(model, stats.resident_wish_bytes <= stats.resident_bytes_max);
    if (stats.resident_bytes_max < model->paid_bytes)
        model->events[MODEL_SAW_LESS]++;
    model->paid_bytes = stats.resident_bytes_max;
    if (model->pin_count == 0)
        MODEL_EQUAL(model, stats.pinned_bytes, model->placed_bytes);
    MODEL_EQUAL(model, stats.metadata_bytes, model->charged);
    if (!model->has_suffered) {
        MODEL_EQUAL(model, stats.write_error_count, 0);
        MODEL_EQUAL(model, stats.read_error_count, 0);
        MODEL_EQUAL(model, stats.degraded, false);
    }
    if (stats.file_bytes > model->file_bytes)
        model->events[MODEL_SAW_GROWTH]++;
    if (stats.file_bytes < model->file_bytes)
        model->events[MODEL_SAW_SHRINKING]++;
    if (stats.free_extent_count > 0)
        model->events[MODEL_SAW_HOLES]++;
    if (stats.moved_bytes > 0)
        model->events[MODEL_SAW_MOVES]++;
    if (stats.staged_bytes > 0)
        model->events[MODEL_SAW_STAGED]++;
    if (stats.resident_bytes_max == UINT64_MAX && stats.moved_bytes > 0)
        model->events[MODEL_SAW_COMPACTION]++;
    model->file_bytes = stats.file_bytes;
}

static inline void model_check_walk(struct model *model)
{
    struct weir_slot at = {0, 0};
    size_t count = 0;

    model->walk++;
    while (weir_region_next(model->region, &at)) {
        struct model_item *item = model_find(model, at);
        MODEL_CHECK(model, item != NULL);
        MODEL_CHECK(model, item->walk != model->walk);
        item->walk = model->walk;
        count++;
    }
    MODEL_EQUAL(model, count, model->item_count);
}

/* M4: what is pinned has not moved and has not changed. */
static inline void model_check_pins(struct model *model)
{
    for (size_t i = 0; i < model->item_count; i++) {
        const struct model_item *item = &model->items[i];
        if (item->pins > 0)
            MODEL_EQUAL(model, memcmp(item->pinned_at, item->copy, item->bytes), 0);
        if (item->place != NULL)
            MODEL_EQUAL(model, memcmp(item->place, item->copy, item->written), 0);
    }
    for (size_t i = 0; i < model->zombie_count; i++)
        MODEL_EQUAL(
            model,
            memcmp(model->zombies[i].pinned_at, model->zombies[i].copy, model->zombies[i].bytes),
            0);
}

/* Everything, slowly. */
static inline void model_check_all(struct model *model)
{
    weir_region_audit(model->region);
    model_check_figures(model);
    model_check_walk(model);
    model_check_pins(model);
    for (size_t i = 0; i < model->item_count; i++)
        model_check_at(model, &model->items[i]);
    for (size_t i = 0; i < model->dead_count && i < MODEL_DEAD_COUNT; i++)
        model_check_stale(model, model->dead[i]);
}

/* ---- Polls ------------------------------------------------------------------ */

static inline void model_poll(struct model *model)
{
    MODEL_CHECK(model, !model->in_callback);
    if (model->ring != NULL) {
        model->in_poll = true; /* pieces complete here */
        int r = weir__ring_reap(model->ring);
        MODEL_CHECK(model, r >= 0 || model_is_fault(model, r));
    }
    model->in_poll = true;
    int r = weir_region_poll(model->region);
    model->in_poll = false;
    if (r < 0 && !model_is_fault(model, r))
        MODEL_EQUAL(model, r, 0);
}

static inline void model_wait(struct model *model)
{
    MODEL_CHECK(model, !model->in_callback);
    if (model->ring != NULL) {
        model->in_poll = true;
        int r = weir__ring_wait(model->ring, 1000000);
        MODEL_CHECK(model, r >= 0 || model_is_fault(model, r));
        model_poll(model);
        return;
    }
    model->in_poll = true;
    int r = weir_region_wait(model->region, 10000000);
    model->in_poll = false;
    if (r < 0 && !model_is_fault(model, r))
        MODEL_EQUAL(model, r, 0);
}

/* ---- Steps -------------------------------------------------------------------- */

static inline void model_free_item(struct model *model, struct model_item *item)
{
    MODEL_EQUAL(model, weir_region_free(model->region, item->slot), 0);
    model_forget(model, item);
}

/* Charged first, then said. */
static inline void model_set_resident(struct model *model, uint64_t bytes)
{
    model->paid_bytes = bytes > model->paid_bytes ? bytes : model->paid_bytes;
    MODEL_EQUAL(model, weir_region_set_resident(model->region, bytes), 0);
    model_check_figures(model);
}

/* Whether the region may say that it has no room for @bytes more. */
static inline bool model_may_be_full(struct model *model, uint64_t bytes)
{
    struct weir_region_stats stats;

    weir_region_stats(model->region, &stats);
    return stats.mark_bytes + bytes + 4 * MODEL_CHUNK_BYTES >= stats.bytes_max;
}

static inline void model_check_refusal(struct model *model, int r, uint64_t bytes)
{
    if (model_is_fault(model, r))
        return;
    if (r == -EDQUOT) {
        MODEL_CHECK(model, model_may_be_full(model, bytes));
        model->events[MODEL_SAW_FULL]++;
        return;
    }
    MODEL_EQUAL(model, r, -EAGAIN);
    model->events[MODEL_SAW_BEHIND]++;
    /* On a ring of its own a region waits; only what we hold can be in its way. */
    if (model->ring == NULL)
        MODEL_CHECK(model, model->pin_count > 0 || model->placed_count > 0 || model->awaited > 0 ||
                               model_may_be_full(model, bytes) || model->in_callback);
}

static inline int model_put(struct model *model, uint64_t bytes, uint16_t owner)
{
    struct model_item item = {.bytes = bytes, .label = {model->put_count, owner}};
    struct weir_slot slot = {4711, 4712};

    item.copy = model_alloc(bytes);
    harness_fill(item.copy, bytes, model->seed ^ item.label.key, 0);
    int r = weir_region_put(model->region, item.copy, bytes, item.label, &slot);
    if (r < 0) {
        MODEL_CHECK(model, slot.index == 4711 && slot.generation == 4712);
        free(item.copy);
        if (bytes > model->fixed.put_bytes_max)
            MODEL_EQUAL(model, r, -EFBIG);
        else
            model_check_refusal(model, r, bytes);
        return r;
    }
    MODEL_CHECK(model, bytes <= model->fixed.put_bytes_max);
    if (model->canary && bytes % 5 == 3)
        item.copy[bytes / 2] ^= 1;
    item.slot = slot;
    model->put_count++;
    model->committed_bytes += bytes;
    model_add(model, item);
    return 0;
}

static inline void model_make_room(struct model *model, uint64_t bytes)
{
    while (model->item_count > 0 &&
           model->committed_bytes + model->unfinished_bytes + bytes > model->live_max)
        model_free_item(model, model_pick(model, weir__random(&model->random)));
}

/* Small sizes most of the time, all of them sometimes. */
static inline uint64_t model_size(uint64_t a, uint64_t size_max)
{
    switch (a % 8) {
    case 0:
        return a / 8 % 20;
    case 1:
        return a / 8 % (size_max + 1);
    case 2: /* around powers of two */
        a = (UINT64_C(1) << a / 8 % 20) + a / 256 % 3 - 1;
        return a < size_max ? a : size_max;
    default:
        a = a / 8 % (size_max + 1) >> a / 512 % 10;
        return a;
    }
}

static inline void model_pin_item(struct model *model, struct model_item *item)
{
    const void *data = model;
    size_t bytes = 4711;
    struct weir_slot_info info;

    model_check_info(model, item, &info);
    int r = weir_region_pin(model->region, item->slot, &data, &bytes);
    if (item->unfinished || !info.resident) {
        MODEL_CHECK(model, item->unfinished ? r < 0 : r == -EAGAIN);
        MODEL_CHECK(model, data == model && bytes == 4711);
        return;
    }
    if (model_is_fault(model, r)) {
        MODEL_CHECK(model, r == -ENOMEM && data == model && bytes == 4711);
        return;
    }
    MODEL_EQUAL(model, r, 0);
    MODEL_EQUAL(model, bytes, item->bytes);
    MODEL_EQUAL(model, memcmp(data, item->copy, bytes), 0);
    if (item->pins > 0)
        MODEL_CHECK(model, data == item->pinned_at);
    item->pinned_at = data;
    item->pins++;
    model->pin_count++;
}

static inline void model_unpin_zombie(struct model *model, size_t i)
{
    struct model_item *zombie = &model->zombies[i];

    MODEL_EQUAL(model, memcmp(zombie->pinned_at, zombie->copy, zombie->bytes), 0);
    weir_region_unpin(model->region, zombie->slot);
    model->pin_count--;
    if (--zombie->pins > 0)
        return;
    free(zombie->copy);
    *zombie = model->zombies[--model->zombie_count];
}

static inline void model_unpin_item(struct model *model, struct model_item *item)
{
    MODEL_EQUAL(model, memcmp(item->pinned_at, item->copy, item->bytes), 0);
    weir_region_unpin(model->region, item->slot);
    model->pin_count--;
    item->pins--;
}

static inline void model_unpin_all(struct model *model)
{
    while (model->zombie_count > 0)
        model_unpin_zombie(model, model->zombie_count - 1);
    for (size_t i = 0; i < model->item_count; i++)
        while (model->items[i].pins > 0)
            model_unpin_item(model, &model->items[i]);
    MODEL_EQUAL(model, model->pin_count, 0);
}

/* Until all that was asked for has come; something comes every now and then. */
static inline void model_settle(struct model *model)
{
    uint64_t awaited = model->awaited;

    for (int tries = 0; model->awaited > 0; tries++) {
        MODEL_CHECK(model, tries < MODEL_TRIES_MAX);
        if (tries % 64 == 63) /* what is pinned holds its buffer */
            model_unpin_all(model);
        model_wait(model);
        if (model->awaited < awaited) {
            awaited = model->awaited;
            tries = 0;
        }
    }
}

/* Something pinned, near @a; never all items are looked at. */
static inline void model_unpin_some(struct model *model, uint64_t a)
{
    if (model->zombie_count > 0 && a % 2 == 0) {
        model_unpin_zombie(model, a / 2 % model->zombie_count);
        return;
    }
    for (size_t i = 0; i < model->item_count && i < 64; i++) {
        struct model_item *item = model_pick(model, a / 2 + i);
        if (item->pins > 0) {
            model_unpin_item(model, item);
            return;
        }
    }
    if (model->zombie_count > 0)
        model_unpin_zombie(model, a / 2 % model->zombie_count);
}

static inline void model_build(struct model *model, uint64_t bytes, uint16_t owner)
{
    struct model_item item = {
        .bytes = bytes, .label = {model->put_count, owner}, .unfinished = true, .built = true};
    struct weir_slot slot = {4711, 4712};

    if (model->unfinished_bytes + bytes > model->build_max && bytes <= model->fixed.item_bytes_max)
        return;

    int r = weir_region_alloc(model->region, bytes, item.label, &slot);
    if (r < 0) {
        MODEL_CHECK(model, slot.index == 4711 && slot.generation == 4712);
        if (bytes > model->fixed.item_bytes_max)
            MODEL_EQUAL(model, r, -EFBIG);
        else
            model_check_refusal(model, r, bytes);
        return;
    }
    MODEL_CHECK(model, bytes <= model->fixed.item_bytes_max);
    item.slot = slot;
    item.copy = model_alloc(bytes);
    harness_fill(item.copy, bytes, model->seed ^ item.label.key, 0);
    model->put_count++;
    model->unfinished_bytes += bytes;
    model_add(model, item);
}

/* The rest of it is filled before commit; a power of two is not always asked for. */
static inline void model_place(struct model *model, uint64_t bytes, uint64_t alignment,
                               uint16_t owner)
{
    struct model_item item = {
        .bytes = bytes, .label = {model->put_count, owner}, .unfinished = true, .built = true};
    struct weir_slot slot = {4711, 4712};
    void *data = model;
    bool is_wrong = (alignment & (alignment - 1)) != 0 || alignment > 4096;

    if (model->unfinished_bytes + bytes > model->build_max && bytes <= model->fixed.put_bytes_max)
        return;

    int r = weir_region_alloc_in_place(model->region, bytes, alignment, item.label, &slot, &data);
    if (r < 0) {
        MODEL_CHECK(model, slot.index == 4711 && slot.generation == 4712 && data == model);
        if (is_wrong)
            MODEL_EQUAL(model, r, -EINVAL);
        else if (bytes > model->fixed.put_bytes_max)
            MODEL_EQUAL(model, r, -EFBIG);
        else if (r == -EAGAIN && model->placed_count > 0)
            model->events[MODEL_SAW_BEHIND]++; /* what is in place is in the way, at any time */
        else
            model_check_refusal(model, r, bytes + alignment);
        return;
    }
    MODEL_CHECK(model, !is_wrong && bytes <= model->fixed.put_bytes_max && data != NULL);
    item.slot = slot;
    item.alignment = alignment > 16 ? alignment : 16;
    item.place = data;
    MODEL_EQUAL(model, (uintptr_t)data % item.alignment, 0); /* M5 */
    item.copy = model_alloc(bytes);
    harness_fill(item.copy, bytes, model->seed ^ item.label.key, 0);
    item.written = bytes / 2;
    memset(item.place, 0xdd, bytes);
    memcpy(item.place, item.copy, item.written);
    model->put_count++;
    model->unfinished_bytes += bytes;
    model->placed_bytes += bytes;
    model->placed_count++;
    model_add(model, item);
}

static inline struct model_item *model_pick_unfinished(struct model *model, uint64_t a)
{
    for (size_t i = 0; i < model->item_count && model->unfinished_bytes > 0 && i < 512; i++) {
        struct model_item *item = model_pick(model, a + i);
        if (item->unfinished)
            return item;
    }
    return NULL;
}

static inline void model_write(struct model *model, struct model_item *item, uint64_t bytes)
{
    if (bytes > item->bytes - item->written)
        bytes = item->bytes - item->written;
    if (bytes > model->fixed.put_bytes_max)
        bytes = model->fixed.put_bytes_max;
    if (item->place != NULL) {
        memcpy(item->place + item->written, item->copy + item->written, bytes);
        item->written += bytes;
        return;
    }

    int r = weir_region_write(model->region, item->slot, item->written, item->copy + item->written,
                              bytes);
    if (r < 0)
        model_check_refusal(model, r, bytes);
    else
        item->written += bytes;
}

static inline void model_write_wrong(struct model *model, struct model_item *item, uint64_t a)
{
    uint64_t rest = item->bytes - item->written;
    static const unsigned char wrong[64] = {0xbb};

    if (item->place != NULL) { /* in pieces, into what is not */
        MODEL_EQUAL(model, weir_region_write(model->region, item->slot, 0, wrong, 0), -EINVAL);
        MODEL_EQUAL(model, weir_region_write(model->region, item->slot, a % 64, wrong, 1), -EINVAL);
        return;
    }
    MODEL_EQUAL(model,
                weir_region_write(model->region, item->slot, item->written + 1 + a % 64, wrong, 1),
                -EINVAL);
    if (item->written > 0)
        MODEL_EQUAL(model,
                    weir_region_write(model->region, item->slot, a % item->written, wrong, 1),
                    -EINVAL);
    if (rest < sizeof(wrong))
        MODEL_EQUAL(model,
                    weir_region_write(model->region, item->slot, item->written, wrong, rest + 1),
                    -EINVAL);
    if (rest > 0)
        MODEL_EQUAL(model, weir_region_commit(model->region, item->slot), -EINVAL);
}

static inline void model_commit(struct model *model, struct model_item *item)
{
    if (item->place != NULL) {
        MODEL_EQUAL(model, memcmp(item->place, item->copy, item->written), 0); /* M4 */
        memcpy(item->place, item->copy, item->bytes);
        model->placed_bytes -= item->bytes;
        model->placed_count--;
        item->place = NULL;
        item->written = item->bytes;
        model->events[MODEL_SAW_PLACED]++;
    }
    if (item->written < item->bytes) {
        MODEL_EQUAL(model, weir_region_commit(model->region, item->slot), -EINVAL);
        return;
    }
    MODEL_EQUAL(model, weir_region_commit(model->region, item->slot), 0);
    item->unfinished = false;
    model->unfinished_bytes -= item->bytes;
    model->committed_bytes += item->bytes;
    model->events[MODEL_SAW_BUILT]++;
}

/* ---- Fetches ---------------------------------------------------------------- */

static inline void model_in_callback(struct model *model, struct weir_slot slot, int result);

static inline void model_fetched(void *context, struct weir_slot slot, int result)
{
    struct model_request *request = context;
    struct model *model = request->model;
    struct model_item *item = model_find(model, slot);
    size_t i = 0;

    MODEL_CHECK(model, model->in_poll && !request->in_fetch);
    while (i < request->count && (request->done[i] || !model_same(request->slots[i], slot)))
        i++;
    MODEL_CHECK(model, i < request->count);
    request->done[i] = true;
    MODEL_CHECK(model, model->awaited > 0);
    model->awaited--;
    if (item == NULL) {
        MODEL_EQUAL(model, result, -ESTALE);
        model->events[MODEL_SAW_FETCH_STALE]++;
    } else if (result == 0) {
        struct weir_slot_info info;
        model_check_info(model, item, &info);
        MODEL_CHECK(model, !item->unfinished && info.resident);
        model_check_at(model, item);
        model->events[MODEL_SAW_FETCHED]++;
        model->events[MODEL_SAW_PLACED_COLD] += item->alignment > 16;
    } else if (!model_is_fault(model, result)) { /* was not whole when it was asked for */
        MODEL_CHECK(model, item->built);
    }

    model->in_callback = true;
    model_in_callback(model, slot, result);
    model->in_callback = false;
    if (--request->left == 0) {
        weir__list_remove(&request->link);
        free(request);
    }
}

/* @count items from @a on, among them some that are gone. */
static inline void model_fetch(struct model *model, uint64_t a, size_t count)
{
    struct model_request *request = model_alloc(sizeof(*request));
    bool too_large = false;

    if (model->awaited > MODEL_AWAITED_MAX) {
        free(request);
        return;
    }
    request->model = model;
    if (count > MODEL_FETCH_MAX)
        count = MODEL_FETCH_MAX;
    for (size_t i = 0; i < count; i++) {
        uint64_t random = weir__mix(a + i / 8); /* runs of neighbours */
        struct model_item *item = model_pick(model, random + i % 8);
        for (uint64_t k = 1; k < 64 && count == 1; k++) /* alone: a large one */
            if (item != NULL && model_pick(model, random + k)->bytes > item->bytes)
                item = model_pick(model, random + k);
        if (item == NULL || random % 64 == 0) {
            request->slots[i] = model->dead[random % MODEL_DEAD_COUNT];
            continue;
        }
        too_large |= item->bytes > model->fixed.fetch_bytes_max;
        request->slots[i] = item->slot;
    }
    request->count = count;
    request->left = count;

    struct weir_slot *slots = model_alloc(count * sizeof(*slots));
    memcpy(slots, request->slots, count * sizeof(*slots));
    request->in_fetch = true;
    int r = weir_region_fetch(model->region, slots, count, model_fetched, request);
    request->in_fetch = false;
    free(slots);
    if (r < 0) {
        if (count == 0)
            MODEL_EQUAL(model, r, -EINVAL);
        else
            MODEL_CHECK(model, (r == -EFBIG && too_large) || model_is_fault(model, r));
        if (r == -EFBIG)
            model->events[MODEL_SAW_FETCH_TOO_LARGE]++;
        free(request);
        return;
    }
    MODEL_CHECK(model, r == 0 && count > 0);
    weir__list_append(&model->requests, &request->link);
    model->awaited += count;
}

static inline void model_piece_done(struct weir_operation *operation, int32_t result,
                                    uint32_t flags)
{
    struct model_piece *piece = WEIR_CONTAINER_OF(operation, struct model_piece, operation);
    struct model *model = piece->model;
    struct model_item *item = model_find(model, piece->slot);

    (void)flags;
    MODEL_CHECK(model, model->in_poll);
    MODEL_CHECK(model, model->awaited > 0);
    model->awaited--;
    if (item == NULL) {
        MODEL_EQUAL(model, result, -ESTALE);
        model->events[MODEL_SAW_PIECE_STALE]++;
    } else if (!model_is_fault(model, result)) {
        MODEL_EQUAL(model, result, piece->bytes);
        MODEL_EQUAL(model, memcmp(piece->buffer, item->copy + piece->offset, piece->bytes), 0);
        model->events[MODEL_SAW_PIECE]++;
    }
    weir__list_remove(&piece->link);
    free(piece->buffer);
    free(piece);
}

static inline void model_fetch_into(struct model *model, struct model_item *item, uint64_t a,
                                    uint64_t b)
{
    struct model_piece *piece = model_alloc(sizeof(*piece));

    *piece = (struct model_piece){
        .operation = {model_piece_done},
        .model = model,
        .slot = item->slot,
        .offset = a % (item->bytes + 1),
    };
    piece->bytes = item->bytes - piece->offset;
    if (piece->bytes > 1)
        piece->bytes = 1 + b % (piece->bytes < 262144 ? piece->bytes : 262144);
    piece->buffer = model_alloc(piece->bytes);
    if (piece->bytes == 0 && item->bytes > 0) { /* the end of it: one byte more is too many */
        MODEL_CHECK(model, weir_region_fetch_into(model->region, item->slot, piece->offset,
                                                  piece->buffer, 1, &piece->operation) < 0);
        piece->offset--;
        piece->bytes = 1;
    }

    int r = piece->bytes == 0
                ? -EINVAL
                : weir_region_fetch_into(model->region, item->slot, piece->offset, piece->buffer,
                                         piece->bytes, &piece->operation);
    if (item->unfinished)
        MODEL_CHECK(model, r < 0);
    if (r < 0) {
        MODEL_CHECK(model, piece->bytes == 0 || item->unfinished || model_is_fault(model, r));
        free(piece->buffer);
        free(piece);
        return;
    }
    weir__list_append(&model->pieces, &piece->link);
    model->awaited++;
}

/* A user may do anything here but poll and close. */
static inline void model_in_callback(struct model *model, struct weir_slot slot, int result)
{
    uint64_t a = weir__random(&model->random);
    struct model_item *item = model_find(model, slot);

    switch (a % 16) {
    case 0:
        if (item != NULL)
            model_free_item(model, item);
        break;
    case 1:
        if (model->item_count > 0) /* perhaps one under way */
            model_free_item(model, model_pick(model, a / 16));
        break;
    case 2:
        model_make_room(model, 1000);
        model_put(model, a / 16 % 1000, (uint16_t)(a >> 60));
        break;
    case 3:
        if (item != NULL && result == 0 && model->pin_count < 64)
            model_pin_item(model, item);
        break;
    case 4:
        model_fetch(model, a / 16, 1 + a / 64 % 4);
        break;
    case 5:
        if (item != NULL && !item->unfinished)
            model_check_read(model, item, a / 16 % (item->bytes + 1), a / 64 % 4096);
        break;
    case 6:
        model_unpin_some(model, a / 16);
        break;
    default:
        break;
    }
}

/* ---- A step ------------------------------------------------------------------- */

static inline void model_flood(struct model *model, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        model_make_room(model, 65536);
        if (model_put(model, 65536 - i % 7, 15) != 0)
            return;
    }
}

/* Items until live_max or the region's own limit is reached. */
static inline void model_fill(struct model *model)
{
    int refusals = 0;

    while (refusals < 64 && model->committed_bytes + model->size_max < model->live_max) {
        uint64_t a = weir__random(&model->random);
        if (model_put(model, model_size(a, model->size_max), (uint16_t)(a >> 60)) == 0)
            continue;
        refusals++;
        model_wait(model);
    }
}

static inline void model_free_owner(struct model *model, uint16_t owner)
{
    uint64_t count = 0;
    uint64_t want = 0;

    for (size_t i = 0; i < model->item_count; i++)
        want += model->items[i].label.owner == owner;
    weir_region_free_owner(model->region, owner, &count);
    MODEL_EQUAL(model, count, want);
    for (size_t i = model->item_count; i-- > 0;)
        if (model->items[i].label.owner == owner)
            model_forget(model, &model->items[i]);
}

static inline void model_step(struct model *model, enum model_choice choice, uint64_t a, uint64_t b)
{
    struct model_item *item = model_pick(model, a);

    model->step++;
    switch (choice) {
    case MODEL_PUT: {
        uint64_t bytes = model_size(a, model->size_max);
        model_make_room(model, bytes);
        model_put(model, bytes, (uint16_t)(b % 16));
        break;
    }
    case MODEL_PUT_TOO_LARGE: {
        struct weir_slot slot = {1, 2};
        uint64_t bytes = model->fixed.put_bytes_max + 1 + a % (UINT64_C(1) << a % 40);
        MODEL_EQUAL(model,
                    weir_region_put(model->region, model, bytes, (struct weir_label){0, 0}, &slot),
                    -EFBIG);
        break;
    }
    case MODEL_FREE:
        if (item != NULL)
            model_free_item(model, item);
        break;
    case MODEL_FREE_MANY:
        for (uint64_t i = 0; i < b % 24 && model->item_count > 0; i++)
            model_free_item(model, model_pick(model, weir__mix(a + i)));
        break;
    case MODEL_FREE_OWNER:
        model_free_owner(model, (uint16_t)(a % 16));
        break;
    case MODEL_AT:
        if (item != NULL)
            model_check_at(model, item);
        break;
    case MODEL_READ:
        if (item != NULL && b % 2 == 0)
            model_check_read(model, item, 0, item->bytes);
        else if (item != NULL)
            model_check_read(model, item, b / 2 % (item->bytes + 1), b / 4096 % 70000);
        break;
    case MODEL_STALE:
        model_check_stale(model, model->dead[a % MODEL_DEAD_COUNT]);
        if (item != NULL)
            model_check_stale(model,
                              (struct weir_slot){item->slot.index,
                                                 item->slot.generation + (uint32_t)(b % 1000 + 1)});
        break;
    case MODEL_PIN:
        if (item != NULL)
            model_pin_item(model, item);
        break;
    case MODEL_UNPIN:
        model_unpin_some(model, a);
        break;
    case MODEL_BUILD:
        if (b % 8 == 0) /* large ones, the largest seldom */
            model_build(model, a % (model->fixed.item_bytes_max + 2) >> b / 8 % 8,
                        (uint16_t)(b % 16));
        else
            model_build(model, a % 200000, (uint16_t)(b % 16));
        break;
    case MODEL_WRITE:
        item = model_pick_unfinished(model, a);
        if (item != NULL)
            model_write(model, item, b % 3 == 0 ? UINT64_MAX : b % 50000);
        break;
    case MODEL_WRITE_WRONG:
        item = model_pick_unfinished(model, a);
        if (item != NULL)
            model_write_wrong(model, item, b);
        break;
    case MODEL_COMMIT:
        item = model_pick_unfinished(model, a);
        if (item != NULL)
            model_commit(model, item);
        break;
    case MODEL_FETCH:
        model_fetch(model, a, b % 16 == 0 ? b / 16 % (MODEL_FETCH_MAX + 1) : b / 16 % 24);
        break;
    case MODEL_FETCH_INTO:
        if (item != NULL)
            model_fetch_into(model, item, b, b >> 32);
        break;
    case MODEL_POLL:
        model_poll(model);
        break;
    case MODEL_WAIT:
        model_wait(model);
        break;
    case MODEL_WALK:
        model_check_walk(model);
        break;
    case MODEL_FLOOD:
        model_flood(model, 16 + a % 112);
        break;
    case MODEL_PLACE: {
        uint64_t bytes =
            b % 32 == 0 ? a % (model->fixed.put_bytes_max + 2) : model_size(a, model->size_max);
        uint64_t alignment = b / 32 % 64 == 0 ? b / 2048 % 5000 : UINT64_C(1) << b / 32 % 13;
        model_place(model, bytes, b / 32 % 64 == 1 ? 0 : alignment, (uint16_t)(b % 16));
        break;
    }
    case MODEL_RESIDENT: {
        uint64_t most = model->fixed.resident_bytes_max;
        uint64_t least = model->resident_least;
        if (least > 0)
            model_set_resident(model, b % 4 == 0   ? least
                                      : b % 4 == 1 ? most
                                                   : least + a % (most - least + 1));
        break;
    }
    case MODEL_CHOICE_COUNT:
        break;
    }
}

/* ---- Begin and end --------------------------------------------------------------- */

/* @config without books and ring; a shared ring is opened if @ring_is_shared. Returns what open said. */
static inline int model_open(struct model *model, struct weir_region_config config,
                             bool ring_is_shared)
{
    int r;

    weir__list_init(&model->requests);
    weir__list_init(&model->pieces);
    if (ring_is_shared) {
        r = weir__ring_open(256, true, &model->ring);
        if (r < 0)
            return r;
    }
    config.ring = model->ring;
    config.books = (struct weir_books){model_books, model};
    r = weir_region_open(&config, &model->region);
    if (r < 0) {
        weir__ring_close(model->ring);
        model->ring = NULL;
        return r;
    }
    weir_region_stats(model->region, &model->fixed);
    model->file_bytes = model->fixed.file_bytes;
    model->resident_least = config.resident_bytes_min;
    model->paid_bytes = model->fixed.resident_bytes_max;
    return 0;
}

/* Frees what is left, closes, and finds the books at zero. @settle: wait for what is under way first. */
static inline void model_close(struct model *model, bool settle)
{
    model_unpin_all(model);
    if (settle)
        model_settle(model);
    model_unpin_all(model); /* pinned in the last callbacks */
    if (settle) {
        model_check_all(model);
        while (model->item_count > 0)
            model_free_item(model, &model->items[model->item_count - 1]);
        model_check_all(model);
        MODEL_EQUAL(model, model->pin_count, 0);
    }
    weir_region_close(model->region);
    MODEL_EQUAL(model, model->charged, 0);
    if (model->ring != NULL)
        MODEL_EQUAL(model, weir__ring_in_flight(model->ring), 0);
    weir__ring_close(model->ring);
    while (!weir__list_is_empty(&model->requests)) { /* forgotten by close */
        struct model_request *request =
            WEIR_CONTAINER_OF(model->requests.next, struct model_request, link);
        weir__list_remove(&request->link);
        free(request);
    }
    while (!weir__list_is_empty(&model->pieces)) {
        struct model_piece *piece = WEIR_CONTAINER_OF(model->pieces.next, struct model_piece, link);
        weir__list_remove(&piece->link);
        free(piece->buffer);
        free(piece);
    }
    model->awaited = 0;
    for (size_t i = 0; i < model->item_count; i++)
        free(model->items[i].copy);
    free(model->items);
    free(model->zombies);
    free(model->by_index);
    model->items = NULL;
    model->zombies = NULL;
    model->by_index = NULL;
    model->item_count = 0;
    model->item_room = 0;
    model->zombie_room = 0;
    model->by_index_room = 0;
    model->region = NULL;
    model->ring = NULL;
}

#endif
