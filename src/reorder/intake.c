/* SPDX-License-Identifier: MIT */
/*
 * intake - who may enter, and what leaves for it
 *
 * A verdict of the governor decides: into memory; or in the place of items that
 * are further, which go to the region for it; or to the region at once. Besides, a
 * flush, or an account that is asked for memory (relief.c), takes the furthest:
 * there is no other way out of memory before delivery.
 */
#include "reorder/reorder_state.h"

#include "base/bits.h"
#include "base/check.h"

#include <weir/governor.h>

#include <errno.h>
#include <string.h>

/* A flush is paid in pieces, so that no push pays for all of it. */
#define FLUSH_STEP_BYTES (UINT64_C(256) << 10)

/* What an item in the region takes in memory: its share of a leaf here, its tables there. */
#define SPILLED_ITEM_BYTES UINT64_C(64)

/* What the working set lent to tables comes back in steps of this. */
#define RESTORE_STEP_BYTES UINT64_C(2048)

/* What weir_account_delay_ns() says at hard. */
#define HARD_DELAY_NS UINT64_C(10000000)

#define PUSH_PREFETCH_MAX 2048u

/* What a push brings. */
struct reorder_load {
    const void *data;
    void *object; /* NULL: @data */
    size_t bytes; /* in memory */
};

/* ---- Spilling ------------------------------------------------------------------- */

static struct weir_label intake_label(const struct weir_reorder *reorder, uint64_t sequence)
{
    return (struct weir_label){.key = sequence, .owner = reorder->label_owner};
}

void weir__intake_drop_partial(struct weir_reorder *reorder)
{
    if (weir_slot_is_none(reorder->partial.slot))
        return;
    reorder->rewritten_bytes += reorder->partial.offset;
    weir_region_free(reorder->region, reorder->partial.slot);
    reorder->partial = (struct reorder_partial){0};
}

/* Larger than a put: in pieces. What the region took stays there for the next try. */
static int intake_put_pieces(struct weir_reorder *reorder, uint64_t sequence, const char *data,
                             size_t bytes, struct weir_slot *ret_slot)
{
    struct reorder_partial *partial = &reorder->partial;
    int r;

    if (partial->sequence != sequence)
        weir__intake_drop_partial(reorder);
    if (weir_slot_is_none(partial->slot)) {
        r = weir_region_alloc(reorder->region, bytes, intake_label(reorder, sequence),
                              &partial->slot);
        if (r < 0)
            return r;
        partial->sequence = sequence;
        partial->offset = 0;
    }
    while (partial->offset < bytes) {
        uint64_t piece = weir__min(bytes - partial->offset, reorder->put_bytes_max);

        r = weir_region_write(reorder->region, partial->slot, partial->offset,
                              data + partial->offset, piece);
        if (r < 0)
            goto fail;
        partial->offset += piece;
    }
    r = weir_region_commit(reorder->region, partial->slot);
    if (r < 0)
        goto fail;

    *ret_slot = partial->slot;
    *partial = (struct reorder_partial){0};
    return 0;

fail:
    if (r != -EAGAIN)
        weir__intake_drop_partial(reorder);
    return r;
}

/* Encoded where it will lie. -EFBIG: this one cannot go there, others may. */
static int intake_put_object(struct weir_reorder *reorder, uint64_t sequence, const void *object,
                             struct weir_slot *ret_slot, size_t *ret_bytes)
{
    const struct weir_reorder_codec *codec = &reorder->codec;
    int64_t bytes = codec->encode(codec->context, object, NULL, 0);
    struct weir_slot slot;
    void *buffer;
    int r;

    if (bytes < 0 || (uint64_t)bytes > weir__min(reorder->put_bytes_max, reorder->fetch_bytes_max))
        return -EFBIG;
    r = weir_region_alloc_in_place(reorder->region, (size_t)bytes, 0,
                                   intake_label(reorder, sequence), &slot, &buffer);
    if (r < 0)
        return r;
    r = -EFBIG;
    if (codec->encode(codec->context, object, buffer, (size_t)bytes) == bytes)
        r = weir_region_commit(reorder->region, slot);
    if (r < 0) {
        weir_region_free(reorder->region, slot);
        return r;
    }
    *ret_slot = slot;
    *ret_bytes = (size_t)bytes;
    return 0;
}

/*
 * Whether @bytes may go to the region. A verdict has asked for those of its
 * charge already; the head need not ask.
 */
static bool intake_has_room(struct weir_reorder *reorder, uint64_t bytes)
{
    if (reorder->account == NULL)
        return true;
    if (bytes <= reorder->room_bytes) {
        reorder->room_bytes -= reorder->room_bytes == UINT64_MAX ? 0 : bytes;
        return true;
    }
    return weir_account_has_room(reorder->account, bytes);
}

/* What waits at @sequence, or will, goes to the region; *ret_bytes: what it takes there. */
static int intake_put(struct weir_reorder *reorder, uint64_t sequence,
                      const struct reorder_load *load, struct weir_slot *ret_slot,
                      size_t *ret_bytes)
{
    int r;

    if (!intake_has_room(reorder, load->bytes))
        return -EAGAIN;
    *ret_bytes = load->bytes;
    if (load->object != NULL)
        r = intake_put_object(reorder, sequence, load->object, ret_slot, ret_bytes);
    else if (load->bytes <= reorder->put_bytes_max)
        r = weir_region_put(reorder->region, load->data, load->bytes,
                            intake_label(reorder, sequence), ret_slot);
    else
        r = intake_put_pieces(reorder, sequence, load->data, load->bytes, ret_slot);
    if (r < 0 && r != -EAGAIN)
        reorder->failed_spill_count++;
    return r;
}

static void intake_spilled(struct weir_reorder *reorder, uint64_t sequence, size_t bytes)
{
    reorder->spilled_bytes += bytes;
    reorder->spilled_count++;
    reorder->spill_count++;
    reorder->spill_bytes += bytes;
    reorder->scan = weir__min(reorder->scan, sequence);
}

/*
 * The furthest item that is in memory goes to the region; its charge is the
 * caller's to settle. -EFBIG: this one cannot, others may.
 */
static int intake_spill_one(struct weir_reorder *reorder, uint64_t sequence, uint64_t *ret_bytes)
{
    struct weir__window_view view;
    struct weir_slot slot;
    size_t bytes;
    int r;

    weir__window_get(&reorder->window, sequence, &view);
    WEIR_ASSERT(view.kind == WINDOW_MEMORY || view.kind == WINDOW_OBJECT);
    r = intake_put(
        reorder, sequence,
        &(struct reorder_load){.data = view.data, .object = view.object, .bytes = view.bytes},
        &slot, &bytes);
    if (r < 0)
        return r;

    weir__window_spill(&reorder->window, sequence, slot, bytes);
    reorder->memory_bytes -= view.bytes;
    reorder->object_bytes -= view.is_object ? view.bytes : 0;
    intake_spilled(reorder, sequence, bytes);
    weir__reorder_let_go(reorder, view.object);
    *ret_bytes = view.bytes;
    return 0;
}

/*
 * Spill the furthest, down to @from, until @bytes are free; *ret_bytes is what
 * is, and still charged. 0: enough, or nothing left to spill.
 */
static int intake_spill_from(struct weir_reorder *reorder, uint64_t from, uint64_t bytes,
                             uint64_t *ret_bytes)
{
    uint64_t sequence = UINT64_MAX;

    *ret_bytes = 0;
    while (*ret_bytes < bytes) {
        uint64_t freed = 0;
        int r;

        if (!weir__window_last(&reorder->window, WINDOW_MARK_MEMORY, sequence, &sequence) ||
            sequence < from)
            return 0;
        r = intake_spill_one(reorder, sequence, &freed);
        /* One that is too large for the region keeps nobody else in memory. */
        if (r < 0 && r != -EFBIG)
            return r;
        if (r == -EFBIG && sequence-- == 0)
            return 0;
        *ret_bytes += freed;
    }
    return 0;
}

static uint64_t intake_hot_end(const struct weir_reorder *reorder)
{
    return reorder->next + weir__min(reorder->hot_items, UINT64_MAX - reorder->next);
}

/* Behind the hot zone; *ret_bytes come free. 0 or why it is not more. */
static int intake_spill_free(struct weir_reorder *reorder, uint64_t bytes, uint64_t *ret_bytes)
{
    int r = intake_spill_from(reorder, intake_hot_end(reorder), bytes, ret_bytes);

    weir__reorder_refund(reorder, *ret_bytes);
    weir__reorder_tell_slack(reorder);
    return r;
}

uint64_t weir_reorder_spill(struct weir_reorder *reorder, uint64_t bytes)
{
    uint64_t freed;

    WEIR_ASSERT(weir__reorder_is_mine(reorder));

    if (reorder->region == NULL)
        return 0;
    /* What stopped it shows in the figures; what was freed counts. */
    (void)intake_spill_free(reorder, bytes, &freed);
    return freed;
}

uint64_t weir__reorder_relieve(struct weir__relief_member *member, uint64_t bytes, int *ret_result)
{
    struct weir_reorder *reorder = WEIR_CONTAINER_OF(member, struct weir_reorder, relief);
    uint64_t charged_bytes = reorder->charged_bytes;
    uint64_t freed;

    WEIR_ASSERT(weir__reorder_is_mine(reorder));

    *ret_result = 0;
    if (reorder->memory_bytes == 0)
        return 0;
    *ret_result = intake_spill_free(reorder, bytes, &freed);
    /* Not all that came free comes back: the working set is paid first. */
    reorder->reclaim_count += freed > 0;
    reorder->reclaim_bytes += charged_bytes - reorder->charged_bytes;
    return charged_bytes - reorder->charged_bytes;
}

/* A piece of the flush that a verdict asked for. */
static __attribute__((noinline)) void intake_pay_debt(struct weir_reorder *reorder, uint64_t bytes)
{
    uint64_t wanted;
    uint64_t freed;

    reorder->debt_bytes =
        weir__min(reorder->debt_bytes, weir_account_flush_bytes(reorder->account));
    wanted = weir__min(reorder->debt_bytes, bytes + FLUSH_STEP_BYTES);
    freed = weir_reorder_spill(reorder, wanted);
    reorder->debt_bytes -= weir__min(reorder->debt_bytes, freed);
    /* There is nothing to spill, or no room: a later verdict will ask again. */
    if (freed == 0)
        reorder->debt_bytes = 0;
}

void weir__intake_take_flush(struct weir_reorder *reorder)
{
    if (reorder->region != NULL)
        reorder->debt_bytes = weir_account_flush_bytes(reorder->account);
}

/* ---- In ------------------------------------------------------------------------------- */

/* O1; the last number of all has none behind it to be next. */
static bool intake_is_in_range(const struct weir_reorder *reorder, uint64_t sequence)
{
    return sequence >= reorder->next && sequence - reorder->next < reorder->window_items_max &&
           sequence != UINT64_MAX;
}

/* Whether @sequence may enter; 0, -EEXIST or -ERANGE. */
static int intake_admits(struct weir_reorder *reorder, uint64_t sequence)
{
    if (WEIR_UNLIKELY(!intake_is_in_range(reorder, sequence))) {
        reorder->range_count++;
        return -ERANGE;
    }
    if (WEIR_UNLIKELY(weir__window_contains(&reorder->window, sequence))) {
        reorder->duplicate_count++;
        return -EEXIST;
    }
    return 0;
}

static bool intake_is_full(const struct weir_reorder *reorder, size_t bytes)
{
    uint64_t held = reorder->memory_bytes + reorder->spilled_bytes;

    return held > reorder->window_bytes_max || bytes > reorder->window_bytes_max - held;
}

static void intake_entered(struct weir_reorder *reorder, uint64_t sequence)
{
    reorder->pushed_count++;
    if (reorder->window.item_count > reorder->item_count_max)
        reorder->item_count_max = reorder->window.item_count;
    if (sequence == reorder->next)
        reorder->head_is_here = true;
    weir__reorder_watch_stall(reorder);
}

/* Its payload is charged already, or nobody charges. Copied last, for that waits for the source. */
static inline int intake_push_memory(struct weir_reorder *reorder, uint64_t sequence,
                                     const struct reorder_load *load)
{
    void *copy = NULL;
    int r;

    if (load->object != NULL)
        r = weir__window_add_object(&reorder->window, sequence, load->bytes, load->object);
    else
        r = weir__window_add(&reorder->window, sequence, load->bytes, &copy);
    if (WEIR_UNLIKELY(r < 0))
        return r;
    reorder->memory_bytes += load->bytes;
    reorder->object_bytes += load->object != NULL ? load->bytes : 0;
    intake_entered(reorder, sequence);
    if (copy != NULL)
        memcpy(copy, load->data, load->bytes);
    return 0;
}

/* It is the furthest of all: straight to the region. */
static int intake_push_region(struct weir_reorder *reorder, uint64_t sequence,
                              const struct reorder_load *load)
{
    struct weir_slot slot;
    size_t bytes;
    int r;

    if (reorder->region == NULL)
        return -EAGAIN;
    if (load->object == NULL && load->bytes > reorder->put_bytes_max)
        return -EFBIG;
    r = intake_put(reorder, sequence, load, &slot, &bytes);
    if (r < 0)
        return r;
    r = weir__window_add_slot(&reorder->window, sequence, bytes, slot, load->object != NULL);
    if (r < 0) {
        weir_region_free(reorder->region, slot);
        reorder->rewritten_bytes += bytes;
        return r;
    }
    intake_spilled(reorder, sequence, bytes);
    intake_entered(reorder, sequence);
    weir__reorder_let_go(reorder, load->object);
    return 0;
}

/* What must still leave for the tables of one more item. */
static uint64_t intake_tables_due(const struct weir_reorder *reorder)
{
    return SPILLED_ITEM_BYTES - weir__min(SPILLED_ITEM_BYTES, reorder->credit_bytes);
}

/* One more item waits, and @freed has left for its tables; the rest is for those to come. */
static void intake_pay_tables(struct weir_reorder *reorder, uint64_t freed)
{
    uint64_t credit = weir__min(reorder->credit_bytes + freed, REORDER_CREDIT_BYTES_MAX);

    reorder->credit_bytes = credit - weir__min(credit, SPILLED_ITEM_BYTES);
}

/* Whether all memory is taken: where the governor has room in a region it does not say wait. */
static bool intake_is_at_hard(const struct weir_reorder *reorder, enum weir_verdict verdict)
{
    return verdict == WEIR_WAIT || weir_account_delay_ns(reorder->account) >= HARD_DELAY_NS;
}

/* Straight to the region; what has no bytes takes a place in the index only. */
static int intake_push_further(struct weir_reorder *reorder, uint64_t sequence,
                               const struct reorder_load *load)
{
    if (load->bytes == 0 && load->object == NULL)
        return intake_push_memory(reorder, sequence, load);
    return intake_push_region(reorder, sequence, load);
}

/*
 * All memory is taken, and nothing of ours can leave for the tables of this item. But
 * whoever pushes it may wait for just that to free what he holds, so they live on the
 * working set (O8): what the index really grows by is refunded, and the use stays as
 * it is. Not where only the account's own cap says wait, which no level will end.
 */
static int intake_push_lent(struct weir_reorder *reorder, uint64_t sequence,
                            const struct reorder_load *load)
{
    uint64_t index_bytes = reorder->heap.bytes;
    uint64_t grown;
    int r;

    if (weir_account_delay_ns(reorder->account) == 0 ||
        !weir__reorder_lend_tables(reorder, WINDOW_GROWTH_BYTES_MAX))
        return -EAGAIN;
    r = intake_push_further(reorder, sequence, load);
    grown = reorder->heap.bytes - index_bytes;
    WEIR_ASSERT(grown <= WINDOW_GROWTH_BYTES_MAX);
    weir__reorder_restore_tables(reorder, WINDOW_GROWTH_BYTES_MAX - grown);
    /* Where the region is full, too, it is memory that may come. */
    return r == -EDQUOT || r == -ENOSPC ? -EAGAIN : r;
}

/* There is memory again: the working set first. */
static __attribute__((noinline)) void intake_restore(struct weir_reorder *reorder)
{
    if (weir_account_delay_ns(reorder->account) < HARD_DELAY_NS)
        weir__reorder_restore_tables(reorder, RESTORE_STEP_BYTES);
}

/*
 * No memory was granted, and @freed of what is further does not make up for it:
 * straight to the region. At hard only if something else has left for the tables, or
 * the working set has them.
 */
static int intake_push_out(struct weir_reorder *reorder, uint64_t sequence,
                           const struct reorder_load *load, enum weir_verdict verdict,
                           uint64_t freed)
{
    uint64_t due = intake_tables_due(reorder);
    uint64_t room = reorder->room_bytes;
    uint64_t more = 0;
    int r = 0;

    if (reorder->tables_bytes > 0)
        intake_restore(reorder);
    /* The room that the verdict spoke of is for the item itself. */
    reorder->room_bytes = 0;
    if (reorder->region != NULL && freed < due)
        r = intake_spill_from(reorder, intake_hot_end(reorder), REORDER_CREDIT_BYTES_MAX, &more);
    reorder->room_bytes = room;
    weir__reorder_refund(reorder, freed + more);
    if (r < 0 && r != -EAGAIN)
        return r;
    if (freed + more < due && intake_is_at_hard(reorder, verdict))
        return intake_push_lent(reorder, sequence, load);

    r = intake_push_further(reorder, sequence, load);
    if (r == 0)
        intake_pay_tables(reorder, freed + more);
    return r;
}

/*
 * No memory was granted: take over the charge of items that are further, which
 * go to the region for it; or go there oneself.
 */
static __attribute__((noinline)) int intake_push_swap(struct weir_reorder *reorder,
                                                      uint64_t sequence,
                                                      const struct reorder_load *load,
                                                      enum weir_verdict verdict)
{
    uint64_t wanted = load->bytes + intake_tables_due(reorder);
    uint64_t bytes = load->bytes;
    uint64_t freed = 0;
    int r = 0;

    if (reorder->region != NULL)
        r = intake_spill_from(reorder, sequence + 1, wanted, &freed);
    if (freed < bytes && sequence != reorder->next) {
        if (r == 0)
            return intake_push_out(reorder, sequence, load, verdict, freed);
        /* The region took no more of ours: it will not take this one. */
        weir__reorder_refund(reorder, freed);
        return r;
    }

    r = intake_push_memory(reorder, sequence, load);
    if (r < 0) {
        weir__reorder_refund(reorder, freed);
    } else if (freed >= bytes) {
        weir__reorder_refund(reorder, freed - bytes);
        intake_pay_tables(reorder, freed - bytes);
    } else {
        weir__reorder_charge_head(reorder, bytes - freed);
    }
    return r;
}

static int intake_push_granted(struct weir_reorder *reorder, uint64_t sequence,
                               const struct reorder_load *load, enum weir_verdict verdict)
{
    int r;

    reorder->charged_bytes += load->bytes;
    r = intake_push_memory(reorder, sequence, load);
    if (r < 0)
        weir__reorder_refund(reorder, load->bytes);
    if (verdict == WEIR_FLUSH)
        weir__intake_take_flush(reorder);
    if (WEIR_UNLIKELY(reorder->tables_bytes > 0))
        intake_restore(reorder);
    return r;
}

/* What may go to the region for an item of @bytes that @verdict kept out of memory. */
static uint64_t intake_room(const struct weir_reorder *reorder, uint64_t sequence, uint64_t bytes,
                            enum weir_verdict verdict)
{
    if (sequence == reorder->next)
        return UINT64_MAX;
    return verdict == WEIR_SPILL ? bytes : 0;
}

static int intake_push_charged(struct weir_reorder *reorder, uint64_t sequence,
                               const struct reorder_load *load)
{
    enum weir_verdict verdict;
    int r = weir_account_charge(reorder->account, load->bytes, &verdict);

    /* More than will ever be granted: only the head has a right to it. */
    if (r < 0 && sequence != reorder->next)
        return reorder->region == NULL ? -EDQUOT : intake_push_region(reorder, sequence, load);
    if (r < 0)
        verdict = WEIR_WAIT;
    switch (verdict) {
    case WEIR_ADMIT:
    case WEIR_FLUSH:
        return intake_push_granted(reorder, sequence, load, verdict);
    case WEIR_SPILL:
    case WEIR_WAIT:
        break;
    }
    reorder->room_bytes = intake_room(reorder, sequence, load->bytes, verdict);
    r = intake_push_swap(reorder, sequence, load, verdict);
    reorder->room_bytes = 0;
    return r;
}

/* An item of no bytes takes a place in the index, which is asked for like any other memory. */
static __attribute__((noinline)) int intake_push_empty(struct weir_reorder *reorder,
                                                       uint64_t sequence)
{
    static const struct reorder_load nothing;
    enum weir_verdict verdict = WEIR_ADMIT;

    if (reorder->account == NULL || sequence == reorder->next ||
        weir_account_charge(reorder->account, SPILLED_ITEM_BYTES, &verdict) < 0)
        return intake_push_memory(reorder, sequence, &nothing);
    switch (verdict) {
    case WEIR_ADMIT:
    case WEIR_FLUSH:
        /* The books have it when a node is made. */
        weir_account_refund(reorder->account, SPILLED_ITEM_BYTES);
        return intake_push_granted(reorder, sequence, &nothing, verdict);
    case WEIR_SPILL:
    case WEIR_WAIT:
        break;
    }
    return intake_push_out(reorder, sequence, &nothing, verdict, 0);
}

/* The number that an item gets which came with @sequence. */
static uint64_t intake_number(const struct weir_reorder *reorder, uint64_t sequence)
{
    return reorder->passes_through ? weir__max(reorder->tail, reorder->next) : sequence;
}

static inline int intake_push_load(struct weir_reorder *reorder, uint64_t sequence,
                                   const struct reorder_load *load)
{
    int r = intake_admits(reorder, sequence);

    if (r < 0)
        return r;
    if (sequence != reorder->next && intake_is_full(reorder, load->bytes))
        return -EDQUOT;

    if (WEIR_UNLIKELY(load->bytes == 0 && load->object == NULL))
        r = intake_push_empty(reorder, sequence);
    else if (reorder->account == NULL)
        r = intake_push_memory(reorder, sequence, load);
    else
        r = intake_push_charged(reorder, sequence, load);
    if (r == 0)
        reorder->tail = sequence + 1;
    if (WEIR_UNLIKELY(reorder->debt_bytes > 0))
        intake_pay_debt(reorder, load->bytes);
    weir__reorder_tell_slack(reorder);
    return r;
}

int weir_reorder_push(struct weir_reorder *reorder, uint64_t sequence, const void *data,
                      size_t bytes)
{
    WEIR_ASSERT(weir__reorder_is_mine(reorder));
    WEIR_ASSERT(data != NULL || bytes == 0);

    /* The copy comes last: its source is on its way meanwhile. */
    for (size_t i = 0; i < bytes && i < PUSH_PREFETCH_MAX; i += 64)
        __builtin_prefetch((const char *)data + i);
    return intake_push_load(reorder, intake_number(reorder, sequence),
                            &(struct reorder_load){.data = data, .bytes = bytes});
}

int weir_reorder_push_object(struct weir_reorder *reorder, uint64_t sequence, void *take_object)
{
    const struct weir_reorder_codec *codec = &reorder->codec;

    WEIR_ASSERT(weir__reorder_is_mine(reorder));
    WEIR_ASSERT(take_object != NULL);

    if (codec->measure == NULL)
        return -EINVAL;
    return intake_push_load(
        reorder, intake_number(reorder, sequence),
        &(struct reorder_load){.object = take_object,
                               .bytes = codec->measure(codec->context, take_object)});
}

int weir_reorder_push_slot(struct weir_reorder *reorder, uint64_t sequence,
                           struct weir_slot take_slot)
{
    struct weir_slot_info info;
    int r;

    WEIR_ASSERT(weir__reorder_is_mine(reorder));

    if (reorder->region == NULL)
        return -EINVAL;
    sequence = intake_number(reorder, sequence);
    r = intake_admits(reorder, sequence);
    if (r < 0)
        return r;
    r = weir_region_slot(reorder->region, take_slot, &info);
    if (r < 0)
        return r;
    if (!info.committed)
        return -EINVAL;
    if (sequence != reorder->next && intake_is_full(reorder, info.bytes))
        return -EDQUOT;
    r = weir__window_add_slot(&reorder->window, sequence, info.bytes, take_slot, false);
    if (r < 0)
        return r;

    reorder->spilled_bytes += info.bytes;
    reorder->spilled_count++;
    reorder->scan = weir__min(reorder->scan, sequence);
    reorder->tail = sequence + 1;
    intake_entered(reorder, sequence);
    return 0;
}
