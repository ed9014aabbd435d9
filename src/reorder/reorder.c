/* SPDX-License-Identifier: MIT */
/*
 * reorder - how items wait for their turn
 *
 *      push --> charge --admit, flush--> memory (window, packs)
 *                  |                        | furthest first
 *                  `--spill, wait--> swap --+--> region (slot in the window)
 *                                                   |
 *      pop <-- memory, or pinned <-- fetched ahead -'
 *
 * Payload in memory is charged when it enters and refunded when it leaves. Where
 * the governor refuses, an item that is nearer to delivery takes over the charge
 * of one that is further and goes to the region for it: a swap passes no level,
 * because it frees what the tables grow by as well. The missing head lives on
 * the working set, charged at create.
 *
 * An item in the region keeps its slot until it is released, so it is written
 * once, and a copy fetched ahead can be dropped at any time. Copies are pinned
 * when they come, so that later ones cannot push them out; the fetch records are
 * in order and only the first may be the head. What the region holds in memory
 * anyway is pinned when it is popped.
 *
 * A pin can hold more of the region's room than its item: all that was read with
 * it. So as soon as anybody on the thread waits for a head, all that is only held
 * ahead is let loose, and until the head is there nothing but heads is pinned:
 * whoever waits, waits for reads and for consumers, never for a gap. What is
 * loose lingers in the region as long as there is room. It counts as held ahead,
 * so that we do not push it out ourselves; and each time it was gone when its
 * turn came, items are believed to take twice the room.
 *
 * Numbers in comments name the invariant that a check defends:
 *
 *   O1  what waits lies in [next, next + window_items_max)
 *   O2  charged == working_bytes + memory_bytes + popped_bytes - lent_bytes
 *   O3  lent_bytes <= working_bytes
 *   O4  fetch records are sorted, of items in the region, and their cost sums to
 *       ahead_bytes
 *   O5  before `scan`, what lies in the region has a record, or was in memory when
 *       it was looked at, or cannot be fetched, or has failed once
 *   O6  a buffer is in the busy table of its thread exactly if it has records
 *   O7  nothing is held ahead that has come while a buffer of the thread waited
 *   O8  tables have at most half of the working set
 *
 * A region calls back what was asked for, even when the one who asked is gone,
 * and after its own end it calls back nothing. Neither a pointer nor a count of
 * calls to come would survive both, so the context of a fetch is a number, and
 * the busy table of the thread tells whose it is. The same table lets a buffer
 * whose fetch the region refuses take back what others only hold ahead.
 *
 * Not here: who may enter and what leaves for it (intake.c), what is fetched when
 * (ahead.c), the index and the payload in memory (window.c), who is asked when the
 * account has to give memory back (relief.c).
 */
#include <weir/reorder.h>

#include "base/bits.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/heap.h"
#include "reorder/reorder_state.h"

#include <weir/governor.h>
#include <weir/region.h>

#include <errno.h>
#include <pthread.h>

#define REORDER_WINDOW_ITEMS  (UINT64_C(1) << 32)
#define REORDER_HOT_ITEMS     16u
#define REORDER_WORKING_BYTES (UINT64_C(64) << 10)

bool weir__reorder_is_mine(const struct weir_reorder *reorder)
{
    return pthread_equal(reorder->owner, pthread_self());
}

/* ---- Books -------------------------------------------------------------------- */

void weir__reorder_charge_head(struct weir_reorder *reorder, uint64_t bytes)
{
    uint64_t lent = weir__min(bytes, reorder->working_bytes - reorder->lent_bytes);

    if (reorder->account == NULL)
        return;
    reorder->tables_bytes = weir__min(reorder->tables_bytes, reorder->lent_bytes);
    reorder->lent_bytes += lent;
    if (bytes > lent)
        weir_account_charge_forced(reorder->account, bytes - lent);
    reorder->charged_bytes += bytes - lent;
}

bool weir__reorder_lend_tables(struct weir_reorder *reorder, uint64_t bytes)
{
    reorder->tables_bytes = weir__min(reorder->tables_bytes, reorder->lent_bytes);
    if (reorder->tables_bytes + bytes > reorder->working_bytes / 2 ||
        reorder->lent_bytes + bytes > reorder->working_bytes)
        return false;
    reorder->tables_bytes += bytes;
    reorder->lent_bytes += bytes;
    weir_account_refund(reorder->account, bytes);
    reorder->charged_bytes -= bytes;
    return true;
}

void weir__reorder_restore_tables(struct weir_reorder *reorder, uint64_t bytes)
{
    reorder->tables_bytes = weir__min(reorder->tables_bytes, reorder->lent_bytes);
    bytes = weir__min(bytes, reorder->tables_bytes);
    if (bytes == 0)
        return;
    reorder->tables_bytes -= bytes;
    reorder->lent_bytes -= bytes;
    weir_account_charge_forced(reorder->account, bytes);
    reorder->charged_bytes += bytes;
}

void weir__reorder_set_slack(struct weir_reorder *reorder, uint64_t bytes)
{
    weir__heap_account(&reorder->heap, (int64_t)(bytes - reorder->slack_bytes));
    reorder->slack_bytes = bytes;
}

void weir__reorder_begin_stall(struct weir_reorder *reorder)
{
    reorder->stall_since_ns = weir__clock_coarse_ns();
    reorder->stall_count++;
}

void weir__reorder_end_stall(struct weir_reorder *reorder)
{
    uint64_t stall_ns = weir__clock_coarse_ns() - reorder->stall_since_ns;

    reorder->stall_ns += stall_ns;
    reorder->stall_max_ns = weir__max(reorder->stall_max_ns, stall_ns);
    reorder->stall_since_ns = 0;
}

/* ---- Lifecycle -------------------------------------------------------------------- */

static int reorder_charge_working(struct weir_account *account, uint64_t bytes, bool *ret_flush)
{
    enum weir_verdict verdict;
    int r;

    *ret_flush = false;
    if (account == NULL || bytes == 0)
        return 0;
    r = weir_account_charge(account, bytes, &verdict);
    if (r < 0)
        return -EDQUOT;
    switch (verdict) {
    case WEIR_FLUSH:
        *ret_flush = true;
        return 0;
    case WEIR_ADMIT:
        return 0;
    case WEIR_SPILL:
    case WEIR_WAIT:
        break;
    }
    return -EDQUOT;
}

static void reorder_configure(struct weir_reorder *reorder,
                              const struct weir_reorder_config *config)
{
    reorder->next = config->first_sequence;
    reorder->tail = config->first_sequence;
    reorder->window_items_max =
        config->window_items_max > 0 ? config->window_items_max : REORDER_WINDOW_ITEMS;
    reorder->window_bytes_max =
        config->window_bytes_max > 0 ? config->window_bytes_max : UINT64_MAX;
    reorder->hot_items = config->hot_items > 0 ? config->hot_items : REORDER_HOT_ITEMS;
    reorder->account = config->account;
    reorder->region = config->region;
    reorder->ready = config->ready;
    reorder->context = config->context;
    reorder->passes_through = config->passes_through;
    reorder->codec = config->codec;
    reorder->label_owner = config->owner;
    reorder->owner = pthread_self();
    if (config->region != NULL) {
        struct weir_region_stats stats;

        weir_region_stats(config->region, &stats);
        reorder->put_bytes_max = stats.put_bytes_max;
        reorder->fetch_bytes_max = stats.fetch_bytes_max;
        reorder->ahead_bytes_max = stats.fetch_bytes_max / 4 * 3;
    }
}

/* All four, or none. */
static bool reorder_codec_is_whole(const struct weir_reorder_codec *codec)
{
    bool has_all = codec->measure != NULL && codec->encode != NULL && codec->decode != NULL &&
                   codec->release != NULL;
    bool has_any = codec->measure != NULL || codec->encode != NULL || codec->decode != NULL ||
                   codec->release != NULL;

    return has_all == has_any;
}

int weir_reorder_create(const struct weir_reorder_config *config, struct weir_reorder **ret_reorder)
{
    struct weir__heap heap = {0};
    struct weir_reorder *reorder;
    uint64_t working_bytes;
    bool is_flush;
    int r;

    if (config == NULL || config->first_sequence == UINT64_MAX ||
        !weir__reserved_is_zero(config->reserved) || !reorder_codec_is_whole(&config->codec))
        return -EINVAL;
    working_bytes = config->working_bytes > 0 ? config->working_bytes : REORDER_WORKING_BYTES;
    r = reorder_charge_working(config->account, working_bytes, &is_flush);
    if (r < 0)
        return r;

    if (config->account != NULL)
        heap.books = weir_account_books(config->account);
    reorder = weir__heap_alloc(&heap, sizeof(*reorder));
    if (reorder == NULL)
        goto fail;
    reorder->heap = heap;
    reorder->working_bytes = config->account != NULL ? working_bytes : 0;
    reorder->charged_bytes = reorder->working_bytes;
    weir__window_init(&reorder->window, &reorder->heap);
    reorder_configure(reorder, config);
    r = weir__ahead_init(reorder);
    if (r == 0 && config->account != NULL && config->region != NULL) {
        r = weir__relief_join(&reorder->relief, config->account);
        if (r < 0)
            weir__ahead_deinit(reorder);
    }
    heap = reorder->heap;
    if (r < 0)
        goto fail;
    if (is_flush)
        weir__intake_take_flush(reorder);

    *ret_reorder = reorder;
    return 0;

fail:
    weir__heap_free(&heap, reorder, sizeof(*reorder));
    if (config->account != NULL)
        weir_account_refund(config->account, working_bytes);
    return -ENOMEM;
}

static void reorder_release_objects(struct weir_reorder *reorder)
{
    uint64_t sequence = 0;

    while (weir__window_first(&reorder->window, WINDOW_MARK_MEMORY, sequence, &sequence)) {
        struct weir__window_view view;

        weir__window_get(&reorder->window, sequence, &view);
        weir__reorder_let_go(reorder, view.object);
        sequence++;
    }
}

void weir_reorder_destroy(struct weir_reorder *reorder)
{
    struct weir__heap heap;
    uint64_t sequence = 0;

    if (reorder == NULL)
        return;
    WEIR_ASSERT(weir__reorder_is_mine(reorder));
    WEIR_CHECK(reorder->popped_count == 0);

    weir__relief_leave(&reorder->relief);
    weir__ahead_deinit(reorder);
    if (reorder->region != NULL)
        weir__intake_drop_partial(reorder);
    if (reorder->codec.release != NULL)
        reorder_release_objects(reorder);
    while (weir__window_first(&reorder->window, WINDOW_MARK_REGION, sequence, &sequence)) {
        struct weir__window_view view;

        weir__window_get(&reorder->window, sequence, &view);
        weir_region_free(reorder->region, view.slot);
        sequence++;
    }
    weir__window_deinit(&reorder->window);
    if (reorder->region != NULL)
        weir__ahead_feed_starved();

    weir__reorder_refund(reorder, reorder->memory_bytes);
    /* Nothing is popped: what is still lent, tables have, and gave back with themselves. */
    WEIR_CHECK(reorder->lent_bytes <= reorder->tables_bytes);
    WEIR_CHECK(reorder->charged_bytes == reorder->working_bytes - reorder->lent_bytes);
    if (reorder->account != NULL)
        weir_account_refund(reorder->account, reorder->charged_bytes);
    weir__heap_account(&reorder->heap, -(int64_t)reorder->slack_bytes);
    heap = reorder->heap;
    weir__heap_free(&heap, reorder, sizeof(*reorder));
    WEIR_CHECK(heap.bytes == 0);
}

/* ---- Out ------------------------------------------------------------------------------ */

/* What follows the head will be asked for next: have its bytes near. */
static void reorder_look_ahead(struct weir_reorder *reorder)
{
    reorder->head_is_here = weir__window_touch(&reorder->window, reorder->next);
    weir__reorder_watch_stall(reorder);
}

/* The item at @sequence leaves the window; its payload stays with @ret_view. */
static void reorder_leave(struct weir_reorder *reorder, uint64_t sequence,
                          struct weir__window_view *ret_view)
{
    weir__window_remove(&reorder->window, sequence, ret_view);
    if (ret_view->kind == WINDOW_REGION) {
        reorder->spilled_bytes -= ret_view->bytes;
        reorder->spilled_count--;
        return;
    }
    reorder->memory_bytes -= ret_view->bytes;
    if (reorder->partial.sequence == sequence)
        weir__intake_drop_partial(reorder);
}

/* The head leaves, and next moves on. */
static inline void reorder_advance(struct weir_reorder *reorder, struct weir__window_view *ret_view)
{
    reorder_leave(reorder, reorder->next, ret_view);
    reorder->next++;
    weir__ahead_stop_waiting(reorder);
    reorder_look_ahead(reorder);
}

/* The object that was encoded to @data, which is pinned unless NULL; 0 or what decode said. */
static int reorder_decode(struct weir_reorder *reorder, const struct weir__window_view *view,
                          const void *data, void **ret_object)
{
    const struct weir_reorder_codec *codec = &reorder->codec;
    int r = codec->decode(codec->context, data, view->bytes, ret_object);

    if (data != NULL)
        weir_region_unpin(reorder->region, view->slot);
    if (r < 0)
        reorder->failed_fetch_count++;
    return r < 0 ? r : 0;
}

/* An item that lies in the region comes to hand: 0, and data or object are set; or why not. */
static int reorder_bring(struct weir_reorder *reorder, uint64_t sequence,
                         const struct weir__window_view *view, struct weir_item *ret_item)
{
    const void *data;
    void *object = NULL;
    int r = weir__ahead_pin(reorder, sequence, view, &data);

    if (r == 0 && view->is_object)
        r = reorder_decode(reorder, view, data, &object);
    if (r < 0)
        return r;
    *ret_item = (struct weir_item){
        .sequence = sequence,
        .data = view->is_object ? NULL : data,
        .bytes = view->bytes,
        .slot = view->slot,
        .object = object,
    };
    return 0;
}

/* The item that was @view is out; @item is filled in already if it lies in the region. */
static inline void reorder_hand_out(struct weir_reorder *reorder, uint64_t sequence,
                                    const struct weir__window_view *view, struct weir_item *item)
{
    reorder->popped_count++;
    if (view->kind != WINDOW_REGION) {
        item->sequence = sequence;
        item->data = view->data;
        item->bytes = view->bytes;
        item->slot = (struct weir_slot){0};
        item->object = view->object;
        item->hold = view->is_object ? (void *)reorder : view->pack;
        reorder->popped_bytes += view->bytes;
    } else if (view->is_object) {
        /* What it was decoded from is of no use any more, and it is in memory now. */
        weir_region_free(reorder->region, view->slot);
        item->slot = (struct weir_slot){0};
        item->bytes = reorder->codec.measure(reorder->codec.context, item->object);
        item->hold = reorder;
        weir__reorder_charge_head(reorder, item->bytes);
        reorder->popped_bytes += item->bytes;
        reorder->object_bytes += item->bytes;
        weir__ahead_feed_starved();
    }
}

int weir_reorder_pop(struct weir_reorder *reorder, struct weir_item *ret_item)
{
    struct weir__window_view view;
    uint64_t sequence = reorder->next;
    int r;

    WEIR_ASSERT(weir__reorder_is_mine(reorder));

    if (!reorder->head_is_here) {
        weir__ahead_fetch(reorder);
        return -ENOENT;
    }
    if (reorder->spilled_count > 0) {
        weir__window_get(&reorder->window, sequence, &view);
        r = view.kind == WINDOW_REGION ? reorder_bring(reorder, sequence, &view, ret_item) : 0;
        if (r < 0)
            return r;
    }

    reorder_advance(reorder, &view);
    reorder_hand_out(reorder, sequence, &view, ret_item);
    reorder->delivered_count++;
    weir__ahead_fetch(reorder);
    return 0;
}

int weir_reorder_take(struct weir_reorder *reorder, uint64_t sequence, struct weir_item *ret_item)
{
    struct weir__window_view view;
    int r;

    WEIR_ASSERT(weir__reorder_is_mine(reorder));

    if (!weir__window_get(&reorder->window, sequence, &view))
        return -ENOENT;
    if (view.kind == WINDOW_REGION) {
        r = reorder_bring(reorder, sequence, &view, ret_item);
        if (r < 0)
            return r;
    }

    reorder_leave(reorder, sequence, &view);
    if (sequence == reorder->next) {
        reorder->head_is_here = false;
        weir__ahead_stop_waiting(reorder);
    }
    weir__reorder_watch_stall(reorder);
    reorder_hand_out(reorder, sequence, &view, ret_item);
    reorder->taken_count++;
    return 0;
}

void weir_reorder_release(struct weir_reorder *reorder, struct weir_item *item)
{
    WEIR_ASSERT(weir__reorder_is_mine(reorder));
    WEIR_CHECK(reorder->popped_count > 0);

    reorder->popped_count--;
    if (item->hold != NULL) {
        if (item->hold == reorder) {
            weir__reorder_let_go(reorder, item->object);
            reorder->object_bytes -= item->bytes;
        } else {
            weir__window_release(&reorder->window, item->hold);
        }
        reorder->popped_bytes -= item->bytes;
        weir__reorder_refund(reorder, item->bytes);
        weir__reorder_tell_slack(reorder);
    } else if (!weir_slot_is_none(item->slot)) {
        if (item->data != NULL)
            weir_region_unpin(reorder->region, item->slot);
        weir_region_free(reorder->region, item->slot);
        weir__ahead_feed_starved();
    }
    *item = (struct weir_item){.sequence = item->sequence};
}

int weir_reorder_skip(struct weir_reorder *reorder)
{
    struct weir__window_view view;

    WEIR_ASSERT(weir__reorder_is_mine(reorder));

    if (reorder->next == UINT64_MAX)
        return -ERANGE;
    reorder->skipped_count++;
    if (!reorder->head_is_here) {
        reorder->next++;
        reorder_look_ahead(reorder);
        return 0;
    }

    weir__ahead_forget(reorder, reorder->next);
    reorder_advance(reorder, &view);
    if (view.kind == WINDOW_REGION) {
        weir_region_free(reorder->region, view.slot);
        weir__ahead_feed_starved();
        return 0;
    }
    if (view.kind == WINDOW_MEMORY)
        weir__window_release(&reorder->window, view.pack);
    reorder->object_bytes -= view.is_object ? view.bytes : 0;
    weir__reorder_let_go(reorder, view.object);
    weir__reorder_refund(reorder, view.bytes);
    weir__reorder_tell_slack(reorder);
    return 0;
}

/* ---- Statistics ----------------------------------------------------------------------- */

void weir_reorder_stats(const struct weir_reorder *reorder, struct weir_reorder_stats *ret_stats)
{
    struct weir_reorder_stats stats = {
        .next_sequence = reorder->next,
        .item_count = reorder->window.item_count,
        .item_count_max = reorder->item_count_max,
        .memory_count = reorder->window.item_count - reorder->spilled_count,
        .spilled_count = reorder->spilled_count,
        .payload_bytes = reorder->memory_bytes + reorder->spilled_bytes,
        .memory_bytes = reorder->memory_bytes + reorder->popped_bytes,
        .spilled_bytes = reorder->spilled_bytes,
        .popped_count = reorder->popped_count,
        .pushed_count = reorder->pushed_count,
        .delivered_count = reorder->delivered_count,
        .taken_count = reorder->taken_count,
        .skipped_count = reorder->skipped_count,
        .spill_count = reorder->spill_count,
        .spill_bytes = reorder->spill_bytes,
        .rewritten_bytes = reorder->rewritten_bytes,
        .fetch_count = reorder->fetch_done_count,
        .duplicate_count = reorder->duplicate_count,
        .range_count = reorder->range_count,
        .failed_spill_count = reorder->failed_spill_count,
        .failed_fetch_count = reorder->failed_fetch_count,
        .stall_count = reorder->stall_count,
        .stall_ns = reorder->stall_ns,
        .stall_max_ns = reorder->stall_max_ns,
        .metadata_bytes = reorder->heap.bytes,
        .reclaim_count = reorder->reclaim_count,
        .reclaim_bytes = reorder->reclaim_bytes,
        .lent_bytes = reorder->lent_bytes,
    };

    WEIR_ASSERT(weir__reorder_is_mine(reorder));

    weir__window_last(&reorder->window, WINDOW_MARK_ANY, UINT64_MAX, &stats.last_sequence);
    if (reorder->stall_since_ns != 0) {
        uint64_t stall_ns = weir__clock_coarse_ns() - reorder->stall_since_ns;

        stats.stall_ns += stall_ns;
        stats.stall_max_ns = weir__max(stats.stall_max_ns, stall_ns);
    }
    *ret_stats = stats;
}

/* ---- Audit ------------------------------------------------------------------------------ */

void weir_reorder_audit(const struct weir_reorder *reorder)
{
    /* A search moves a hint: nothing that shows. */
    struct weir__window *window = (struct weir__window *)(uintptr_t)&reorder->window;
    uint64_t memory_bytes = 0;
    uint64_t pack_bytes = 0;
    uint64_t spilled_bytes = 0;
    uint64_t spilled_count = 0;
    uint64_t item_count = 0;
    uint64_t sequence = 0;

    WEIR_CHECK(weir__reorder_is_mine(reorder));
    weir__window_audit(window);
    while (weir__window_first(window, WINDOW_MARK_ANY, sequence, &sequence)) {
        struct weir__window_view view;
        struct weir_slot_info info;

        WEIR_CHECK(weir__window_get(window, sequence, &view));
        WEIR_CHECK(sequence >= reorder->next);
        WEIR_CHECK(sequence - reorder->next < reorder->window_items_max);
        item_count++;
        if (view.kind != WINDOW_REGION)
            memory_bytes += view.bytes;
        if (view.kind == WINDOW_MEMORY)
            pack_bytes += view.bytes;
        if (view.kind == WINDOW_REGION) {
            spilled_count++;
            spilled_bytes += view.bytes;
            if (weir_region_slot(reorder->region, view.slot, &info) == 0) {
                WEIR_CHECK(info.bytes == view.bytes);
                WEIR_CHECK(info.committed);
            }
        }
        sequence++;
    }
    WEIR_CHECK(item_count == window->item_count);
    WEIR_CHECK(memory_bytes == reorder->memory_bytes);
    WEIR_CHECK(spilled_bytes == reorder->spilled_bytes);
    WEIR_CHECK(spilled_count == reorder->spilled_count);
    WEIR_CHECK(reorder->head_is_here == weir__window_contains(window, reorder->next));
    WEIR_CHECK((reorder->stall_since_ns != 0) == (!reorder->head_is_here && item_count > 0));

    if (reorder->account != NULL)
        WEIR_CHECK(reorder->charged_bytes == reorder->working_bytes + memory_bytes +
                                                 reorder->popped_bytes - reorder->lent_bytes);
    else
        WEIR_CHECK(reorder->charged_bytes == 0);
    WEIR_CHECK(reorder->lent_bytes <= reorder->working_bytes);
    WEIR_CHECK(reorder->tables_bytes <= reorder->working_bytes / 2);
    WEIR_CHECK(reorder->credit_bytes <= REORDER_CREDIT_BYTES_MAX);
    WEIR_CHECK(memory_bytes - pack_bytes <= reorder->object_bytes);
    pack_bytes = memory_bytes + reorder->popped_bytes - reorder->object_bytes;
    WEIR_CHECK(window->packs.bytes >= pack_bytes);
    WEIR_CHECK(reorder->slack_bytes >= window->packs.bytes - pack_bytes);
    if (reorder->region != NULL)
        weir__ahead_audit(reorder);
}
