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
 *   O2  charged for payload == memory_bytes + popped_bytes - lent_bytes
 *   O3  lent_bytes <= working_bytes
 *   O4  fetch records are sorted, of items in the region, and their cost sums to
 *       ahead_bytes
 *   O5  before `scan`, what lies in the region has a record, or was in memory when
 *       it was looked at, or cannot be fetched, or has failed once
 *   O6  a buffer is in the busy table of its thread exactly if it has records
 *   O7  nothing is held ahead that has come while a buffer of the thread waited
 *
 * A region calls back what was asked for, even when the one who asked is gone,
 * and after its own end it calls back nothing. Neither a pointer nor a count of
 * calls to come would survive both, so the context of a fetch is a number, and
 * the busy table of the thread tells whose it is. The same table lets a buffer
 * whose fetch the region refuses take back what others only hold ahead.
 *
 * Not here: the index and the payload in memory (window.c); who is asked when the
 * account has to give memory back (relief.c).
 */
#include <weir/reorder.h>

#include "base/bits.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/heap.h"
#include "base/list.h"
#include "reorder/relief.h"
#include "reorder/window.h"

#include <weir/governor.h>
#include <weir/region.h>

#include <errno.h>
#include <pthread.h>
#include <string.h>

#define REORDER_WINDOW_ITEMS  (UINT64_C(1) << 32)
#define REORDER_HOT_ITEMS     16u
#define REORDER_WORKING_BYTES (UINT64_C(64) << 10)

/* Slots in one call to the region, and records to begin with: they take this much of the heap. */
#define FETCH_BATCH       128u
#define FETCH_BATCHES     6u /* that may be held ahead */
#define FETCH_RECORDS_MIN 32u
#define FETCH_RECORDS_MAX 1024u

/* An item further than this from next is not fetched yet. */
#define FETCH_DISTANCE UINT64_C(4096)

/* What an item takes of the room for fetches beyond its bytes: it is read with gaps and pages. */
#define FETCH_EXTRA_BYTES     UINT64_C(4096)
#define FETCH_EXTRA_BYTES_MIN UINT64_C(512)
#define FETCH_EXTRA_BYTES_MAX (UINT64_C(64) << 10)

/* A flush is paid in pieces, so that no push pays for all of it. */
#define FLUSH_STEP_BYTES (UINT64_C(256) << 10)

/* What an item in the region takes in memory: its share of a leaf here, its tables there. */
#define SPILLED_ITEM_BYTES UINT64_C(64)

/* Payload that leaves for tables leaves in runs: scattered items are read back one by one. */
#define CREDIT_BYTES_MAX (UINT64_C(32) << 10)

/* What weir_account_delay_ns() says at hard. */
#define HARD_DELAY_NS UINT64_C(10000000)

#define BUSY_BUCKETS 64u

#define PUSH_PREFETCH_MAX 2048u

_Static_assert(FETCH_BATCH <= 1024, "the region takes them at once");
_Static_assert(FETCH_RECORDS_MAX <= FETCH_DISTANCE, "the distance is what bounds small items");

enum fetch_state {
    FETCH_UNDERWAY,
    FETCH_HELD,   /* pinned */
    FETCH_LOOSE,  /* came, and may be gone again */
    FETCH_FAILED, /* result */
};

/* An item that is being fetched, or has been. */
struct reorder_fetch {
    uint64_t sequence;
    struct weir_slot slot;
    const void *data; /* FETCH_HELD */
    uint64_t bytes;
    uint64_t cost_bytes; /* its part of ahead_bytes */
    enum fetch_state state;
    int result;       /* FETCH_FAILED */
    bool is_promised; /* FETCH_HELD: ready was called for it */
    bool is_wanted;   /* take said -EAGAIN: ready is owed */
};

/* What a push brings. */
struct reorder_load {
    const void *data;
    void *object; /* NULL: @data */
    size_t bytes; /* in memory */
};

/* A large item on its way to the region in pieces. */
struct reorder_partial {
    uint64_t sequence;
    struct weir_slot slot; /* none: there is no such item */
    uint64_t offset;
};

struct weir_reorder {
    struct weir__window window;
    uint64_t next;
    uint64_t window_items_max; /* O1; fixed at create, as all up to @owner */
    uint64_t window_bytes_max;
    uint64_t working_bytes;
    struct weir_account *account;
    struct weir_region *region;
    void (*ready)(void *context);
    void *context;
    struct weir_reorder_codec codec;
    uint64_t put_bytes_max; /* of the region */
    uint64_t fetch_bytes_max;
    uint64_t ahead_bytes_max;
    uint32_t hot_items;
    bool passes_through;
    uint16_t label_owner;
    pthread_t owner;

    bool head_is_here;
    bool is_take_due; /* ready is owed for what take asked for; nothing of the head ends that */
    bool is_waiting;  /* pop said -EAGAIN: ready is owed; counted in reorder_waiting_count */

    uint64_t charged_bytes; /* O2 */
    uint64_t memory_bytes;  /* payload of what waits in memory */
    uint64_t popped_bytes;  /* payload in memory of what is out */
    uint64_t object_bytes;  /* of both, what objects take: not from packs */
    uint64_t lent_bytes;    /* O3 */
    uint64_t spilled_bytes;
    uint64_t spilled_count;
    uint64_t credit_bytes; /* have left for tables that are still to grow */
    uint64_t debt_bytes;   /* still to be spilled for a flush */
    uint64_t slack_bytes;  /* told to the books for packs beyond their payload */
    uint64_t room_bytes;   /* may go to the region without asking the account again */
    uint64_t tail;         /* what comes next, if it passes through */
    struct reorder_partial partial;

    struct reorder_fetch *fetches; /* O4; from @fetch_first on */
    uint32_t fetch_first;
    uint32_t fetch_count;
    uint32_t fetch_capacity;
    uint64_t ahead_bytes;
    uint64_t extra_bytes;            /* what an item is believed to take beyond its bytes */
    uint64_t scan;                   /* O5 */
    uint64_t id;                     /* the context of our fetches */
    struct weir_reorder *busy_next;  /* O6 */
    struct weir_reorder **busy_link; /* what points to us; NULL: not in the table */
    struct weir__list starved;
    struct weir__list ready_due;
    struct weir__relief_member relief;

    struct weir__heap heap;
    uint64_t stall_since_ns; /* 0: no stall now */
    uint64_t stall_count;
    uint64_t stall_ns;
    uint64_t stall_max_ns;
    uint64_t item_count_max;
    uint64_t popped_count;
    uint64_t pushed_count;
    uint64_t delivered_count;
    uint64_t taken_count;
    uint64_t skipped_count;
    uint64_t spill_count;
    uint64_t spill_bytes;
    uint64_t rewritten_bytes;
    uint64_t fetch_done_count;
    uint64_t duplicate_count;
    uint64_t range_count;
    uint64_t failed_spill_count;
    uint64_t failed_fetch_count;
    uint64_t reclaim_count;
    uint64_t reclaim_bytes;
};

/* O6. By id, so that the context of a fetch can outlive its buffer. */
static _Thread_local struct weir_reorder *reorder_busy[BUSY_BUCKETS];
static _Thread_local uint64_t reorder_last_id;
static _Thread_local uint64_t reorder_busy_count;
static _Thread_local uint64_t reorder_waiting_count;

/* Whose head the region refused to fetch, and who is owed a call of ready. */
static _Thread_local struct weir__list reorder_starved;
static _Thread_local struct weir__list reorder_ready_due;

static bool reorder_is_mine(const struct weir_reorder *reorder)
{
    return pthread_equal(reorder->owner, pthread_self());
}

/* ---- The busy table ----------------------------------------------------------- */

static void reorder_enlist(struct weir_reorder *reorder)
{
    struct weir_reorder **bucket = &reorder_busy[reorder->id % BUSY_BUCKETS];

    if (reorder->busy_link != NULL)
        return;
    reorder->busy_next = *bucket;
    reorder->busy_link = bucket;
    if (reorder->busy_next != NULL)
        reorder->busy_next->busy_link = &reorder->busy_next;
    *bucket = reorder;
    reorder_busy_count++;
}

static void reorder_delist(struct weir_reorder *reorder)
{
    if (reorder->busy_link == NULL)
        return;
    *reorder->busy_link = reorder->busy_next;
    if (reorder->busy_next != NULL)
        reorder->busy_next->busy_link = reorder->busy_link;
    reorder->busy_next = NULL;
    reorder->busy_link = NULL;
    reorder_busy_count--;
}

static struct weir_reorder *reorder_by_id(uint64_t id)
{
    struct weir_reorder *reorder = reorder_busy[id % BUSY_BUCKETS];

    while (reorder != NULL && reorder->id != id)
        reorder = reorder->busy_next;
    return reorder;
}

static struct weir__list *reorder_queue(struct weir__list *list)
{
    if (list->next == NULL)
        weir__list_init(list);
    return list;
}

static void reorder_set_starved(struct weir_reorder *reorder, bool is_starved)
{
    weir__list_remove(&reorder->starved);
    if (is_starved)
        weir__list_append(reorder_queue(&reorder_starved), &reorder->starved);
}

static void reorder_set_ready_due(struct weir_reorder *reorder, bool is_due)
{
    weir__list_remove(&reorder->ready_due);
    if (is_due)
        weir__list_append(reorder_queue(&reorder_ready_due), &reorder->ready_due);
}

static void reorder_set_waiting(struct weir_reorder *reorder, bool is_waiting)
{
    if (reorder->is_waiting == is_waiting)
        return;
    reorder->is_waiting = is_waiting;
    reorder_waiting_count += is_waiting ? 1 : UINT64_MAX;
}

/* The head is not what it was: nobody waits for a fetch of it any more. */
static void reorder_stop_waiting(struct weir_reorder *reorder)
{
    reorder_set_waiting(reorder, false);
    reorder_set_starved(reorder, false);
    reorder_set_ready_due(reorder, reorder->is_take_due);
}

/* ---- Books -------------------------------------------------------------------- */

/* @bytes of payload are charged, come what may: on the working set as far as it goes. */
static void reorder_charge_head(struct weir_reorder *reorder, uint64_t bytes)
{
    uint64_t lent = weir__min(bytes, reorder->working_bytes - reorder->lent_bytes);

    if (reorder->account == NULL)
        return;
    reorder->lent_bytes += lent;
    if (bytes > lent)
        weir_account_charge_forced(reorder->account, bytes - lent);
    reorder->charged_bytes += bytes - lent;
}

/* @bytes of payload left the memory; what the working set lent comes back first. */
static void reorder_refund(struct weir_reorder *reorder, uint64_t bytes)
{
    uint64_t lent = weir__min(bytes, reorder->lent_bytes);

    if (reorder->account == NULL)
        return;
    reorder->lent_bytes -= lent;
    if (bytes > lent)
        weir_account_refund(reorder->account, bytes - lent);
    WEIR_ASSERT(reorder->charged_bytes >= bytes - lent);
    reorder->charged_bytes -= bytes - lent;
}

/*
 * Tell the books what packs take beyond their payload. Not with every item:
 * what was told is never below the truth, and above it by a part of it.
 */
static void reorder_tell_slack(struct weir_reorder *reorder)
{
    uint64_t held = reorder->window.packs.bytes;
    uint64_t filled = reorder->memory_bytes + reorder->popped_bytes - reorder->object_bytes;
    uint64_t slack = held - weir__min(held, filled);
    uint64_t step = 256 + held / 64;
    uint64_t told = reorder->slack_bytes;

    if (slack <= told && told <= slack + 2 * step)
        return;
    told = slack == 0 ? 0 : slack + step;
    weir__heap_account(&reorder->heap, (int64_t)(told - reorder->slack_bytes));
    reorder->slack_bytes = told;
}

/* A stall begins when the head is missing while others wait, and ends with it. */
static void reorder_watch_stall(struct weir_reorder *reorder)
{
    bool is_stalled = !reorder->head_is_here && reorder->window.item_count > 0;

    if (is_stalled == (reorder->stall_since_ns != 0))
        return;
    if (is_stalled) {
        reorder->stall_since_ns = weir__clock_coarse_ns();
        reorder->stall_count++;
    } else {
        uint64_t stall_ns = weir__clock_coarse_ns() - reorder->stall_since_ns;

        reorder->stall_ns += stall_ns;
        reorder->stall_max_ns = weir__max(reorder->stall_max_ns, stall_ns);
        reorder->stall_since_ns = 0;
    }
}

/* ---- Fetch records ------------------------------------------------------------ */

static struct reorder_fetch *reorder_fetch_at(const struct weir_reorder *reorder, uint32_t index)
{
    WEIR_ASSERT(index < reorder->fetch_count);
    return &reorder->fetches[reorder->fetch_first + index];
}

/* The first record at or after @sequence; fetch_count: none. */
static uint32_t reorder_fetch_index(const struct weir_reorder *reorder, uint64_t sequence)
{
    uint32_t low = 0;
    uint32_t high = reorder->fetch_count;

    if (high > 0 && reorder_fetch_at(reorder, high - 1)->sequence < sequence)
        return high;
    while (low < high) {
        uint32_t middle = (low + high) / 2;

        if (reorder_fetch_at(reorder, middle)->sequence < sequence)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct reorder_fetch *reorder_fetch_find(const struct weir_reorder *reorder,
                                                uint64_t sequence)
{
    uint32_t index = reorder_fetch_index(reorder, sequence);

    if (index == reorder->fetch_count || reorder_fetch_at(reorder, index)->sequence != sequence)
        return NULL;
    return reorder_fetch_at(reorder, index);
}

/* By slot: what was put has its sequence as key, what came by push_slot may have any. */
static struct reorder_fetch *reorder_fetch_by_slot(const struct weir_reorder *reorder,
                                                   struct weir_slot slot)
{
    struct weir_slot_info info;

    if (weir_region_slot(reorder->region, slot, &info) == 0) {
        struct reorder_fetch *fetch = reorder_fetch_find(reorder, info.label.key);

        if (fetch != NULL && fetch->slot.index == slot.index &&
            fetch->slot.generation == slot.generation)
            return fetch;
    }
    for (uint32_t i = 0; i < reorder->fetch_count; i++) {
        struct reorder_fetch *fetch = reorder_fetch_at(reorder, i);

        if (fetch->slot.index == slot.index && fetch->slot.generation == slot.generation)
            return fetch;
    }
    return NULL;
}

/* One more record fits, or -ENOMEM. */
static int reorder_fetch_reserve(struct weir_reorder *reorder)
{
    struct reorder_fetch *fetches = reorder->fetches;
    uint32_t capacity = reorder->fetch_capacity * 2;

    if (reorder->fetch_first + reorder->fetch_count < reorder->fetch_capacity)
        return 0;
    if (reorder->fetch_first > 0) {
        memmove(fetches, fetches + reorder->fetch_first, reorder->fetch_count * sizeof(*fetches));
        reorder->fetch_first = 0;
        return 0;
    }
    if (capacity > FETCH_RECORDS_MAX)
        return -ENOMEM;
    fetches = weir__heap_resize(&reorder->heap, fetches, reorder->fetch_capacity * sizeof(*fetches),
                                capacity * sizeof(*fetches));
    if (fetches == NULL)
        return -ENOMEM;
    reorder->fetches = fetches;
    reorder->fetch_capacity = capacity;
    return 0;
}

/* A record of a fetch that begins; there is room for it. */
static void reorder_fetch_insert(struct weir_reorder *reorder, uint64_t sequence,
                                 const struct weir__window_view *view)
{
    uint32_t index = reorder_fetch_index(reorder, sequence);
    struct reorder_fetch *place = reorder->fetches + reorder->fetch_first + index;

    WEIR_ASSERT(reorder->fetch_first + reorder->fetch_count < reorder->fetch_capacity);
    memmove(place + 1, place, (reorder->fetch_count - index) * sizeof(*place));
    *place = (struct reorder_fetch){
        .sequence = sequence,
        .slot = view->slot,
        .bytes = view->bytes,
        .cost_bytes = view->bytes + reorder->extra_bytes,
        .state = FETCH_UNDERWAY,
    };
    reorder->fetch_count++;
    reorder->ahead_bytes += place->cost_bytes;
    reorder_enlist(reorder);
}

/* Forget a record; what it pinned is the caller's. */
static void reorder_fetch_erase(struct weir_reorder *reorder, struct reorder_fetch *fetch)
{
    uint32_t index = (uint32_t)(fetch - (reorder->fetches + reorder->fetch_first));

    reorder->ahead_bytes -= fetch->cost_bytes;
    reorder->fetch_count--;
    if (index == 0)
        reorder->fetch_first++;
    else
        memmove(fetch, fetch + 1, (reorder->fetch_count - index) * sizeof(*fetch));
    if (reorder->fetch_count == 0) {
        reorder->fetch_first = 0;
        reorder_delist(reorder);
    }
}

/* Forget a record and what it holds; the item may be fetched again. */
static void reorder_fetch_drop(struct weir_reorder *reorder, struct reorder_fetch *fetch)
{
    if (fetch->state == FETCH_HELD)
        weir_region_unpin(reorder->region, fetch->slot);
    reorder->scan = weir__min(reorder->scan, fetch->sequence);
    reorder_fetch_erase(reorder, fetch);
}

/* What is only held ahead is let loose. */
static void reorder_yield(struct weir_reorder *reorder)
{
    for (uint32_t i = 0; i < reorder->fetch_count; i++) {
        struct reorder_fetch *fetch = reorder_fetch_at(reorder, i);

        if (fetch->state != FETCH_HELD || fetch->is_promised)
            continue;
        weir_region_unpin(reorder->region, fetch->slot);
        fetch->state = FETCH_LOOSE;
    }
}

/* One that was loose is gone: so are others, and what we believe of the room is wrong. */
static void reorder_lose(struct weir_reorder *reorder)
{
    for (uint32_t i = reorder->fetch_count; i-- > 0;)
        if (reorder_fetch_at(reorder, i)->state == FETCH_LOOSE)
            reorder_fetch_drop(reorder, reorder_fetch_at(reorder, i));
    reorder->extra_bytes = weir__min(reorder->extra_bytes * 2, FETCH_EXTRA_BYTES_MAX);
}

/* All buffers of this thread let go of what they hold ahead in @region. */
static void reorder_yield_all(const struct weir_region *region)
{
    for (uint32_t bucket = 0; bucket < BUSY_BUCKETS; bucket++) {
        struct weir_reorder *reorder = reorder_busy[bucket];

        while (reorder != NULL) {
            if (reorder->region == region)
                reorder_yield(reorder);
            reorder = reorder->busy_next;
        }
    }
}

/* ---- Fetching ------------------------------------------------------------------ */

static void reorder_fetched(void *context, struct weir_slot slot, int result);

/*
 * Whether the item at @sequence is to be fetched now: it is small enough, and
 * cold. What is in memory is pinned when it is popped: to pin it now would keep
 * a whole chunk for it.
 */
static bool reorder_wants(struct weir_reorder *reorder, const struct weir__window_view *view)
{
    struct weir_slot_info info;

    if (view->bytes == 0 || view->bytes > reorder->fetch_bytes_max)
        return false;
    return weir_region_slot(reorder->region, view->slot, &info) == 0 && !info.resident;
}

/* What this buffer may hold ahead, under way and loose included. */
static uint64_t reorder_share(const struct weir_reorder *reorder)
{
    return reorder->ahead_bytes_max / weir__max(reorder_busy_count, 1);
}

/*
 * Records for up to FETCH_BATCH items from `scan` on, as far as the bounds go;
 * the head is taken whatever its size. A batch is read together, so it is a part
 * of what may be held: one large read would leave the disk idle while it is used.
 */
static size_t reorder_gather(struct weir_reorder *reorder, struct weir_slot slots[FETCH_BATCH])
{
    uint64_t bytes_max = reorder->ahead_bytes + reorder_share(reorder) / FETCH_BATCHES;
    size_t slot_count = 0;

    while (slot_count < FETCH_BATCH && (slot_count == 0 || reorder->ahead_bytes < bytes_max)) {
        struct weir__window_view view;
        uint64_t sequence;

        if (!weir__window_first(&reorder->window, WINDOW_MARK_REGION, reorder->scan, &sequence)) {
            reorder->scan = UINT64_MAX;
            break;
        }
        reorder->scan = sequence;
        if (sequence - reorder->next > FETCH_DISTANCE)
            break;
        weir__window_get(&reorder->window, sequence, &view);
        if (reorder_fetch_find(reorder, sequence) == NULL && reorder_wants(reorder, &view)) {
            if (sequence != reorder->next &&
                reorder->ahead_bytes + view.bytes + reorder->extra_bytes > reorder_share(reorder))
                break;
            if (reorder_fetch_reserve(reorder) < 0)
                break;
            reorder_fetch_insert(reorder, sequence, &view);
            slots[slot_count++] = view.slot;
        }
        reorder->scan = sequence + 1;
    }
    return slot_count;
}

/* Ask the region for a batch from `scan` on; 0, or what it said; *ret_count may be 0. */
static int reorder_fetch_batch(struct weir_reorder *reorder, size_t *ret_count)
{
    struct weir_slot slots[FETCH_BATCH];
    size_t slot_count = reorder_gather(reorder, slots);
    int r;

    *ret_count = slot_count;
    if (slot_count == 0)
        return 0;
    r = weir_region_fetch(reorder->region, slots, slot_count, reorder_fetched,
                          (void *)(uintptr_t)reorder->id);
    if (r < 0) {
        for (size_t i = 0; i < slot_count; i++)
            reorder_fetch_drop(reorder, reorder_fetch_by_slot(reorder, slots[i]));
        *ret_count = 0;
    }
    return r;
}

/*
 * Fetch what comes soon, in batches: not before one of what may be held is used,
 * nor half of the records.
 */
static void reorder_fetch_ahead(struct weir_reorder *reorder)
{
    size_t slot_count;

    if (reorder->spilled_count == 0)
        return;
    reorder->scan = weir__max(reorder->scan, reorder->next);
    if (reorder->scan - reorder->next > FETCH_DISTANCE)
        return;
    if (reorder->fetch_count > FETCH_RECORDS_MAX / 2 ||
        reorder->ahead_bytes > reorder_share(reorder) / FETCH_BATCHES * (FETCH_BATCHES - 1))
        return;

    do {
        if (reorder_fetch_batch(reorder, &slot_count) < 0)
            return;
        /* It goes well: more is dared. */
        if (slot_count > 0)
            reorder->extra_bytes =
                weir__max(reorder->extra_bytes - reorder->extra_bytes / 16, FETCH_EXTRA_BYTES_MIN);
    } while (slot_count > 0);
}

/* Ask for the item at @sequence alone. */
static int reorder_fetch_one(struct weir_reorder *reorder, uint64_t sequence)
{
    struct weir__window_view view;
    int r = reorder_fetch_reserve(reorder);

    if (r < 0)
        return -EAGAIN;
    weir__window_get(&reorder->window, sequence, &view);
    reorder_fetch_insert(reorder, sequence, &view);
    r = weir_region_fetch(reorder->region, &view.slot, 1, reorder_fetched,
                          (void *)(uintptr_t)reorder->id);
    if (r < 0)
        reorder_fetch_drop(reorder, reorder_fetch_find(reorder, sequence));
    return r;
}

/*
 * Fetch the head, which is cold and has no record, and what follows it; where
 * the region refuses, the head alone. -EAGAIN: what is out or under way must
 * come back first.
 */
static int reorder_fetch_head(struct weir_reorder *reorder)
{
    size_t slot_count;

    reorder->scan = reorder->next;
    if (reorder_fetch_batch(reorder, &slot_count) == 0 &&
        reorder_fetch_find(reorder, reorder->next) != NULL)
        return 0;
    return reorder_fetch_one(reorder, reorder->next);
}

/* Something was let go of, or came in: the starved try again, once round. */
static void reorder_feed_starved(void)
{
    struct weir__list *starved = reorder_queue(&reorder_starved);
    struct weir__list round;

    if (weir__list_is_empty(starved))
        return;
    weir__list_append(starved, &round);
    while (starved->next != &round) {
        struct weir_reorder *reorder =
            WEIR_CONTAINER_OF(starved->next, struct weir_reorder, starved);

        reorder_set_starved(reorder, reorder_fetch_head(reorder) < 0);
    }
    weir__list_remove(&round);
}

/* Each call may destroy any buffer, so the queue is looked at anew after each. */
static void reorder_call_ready(void)
{
    struct weir__list *due = reorder_queue(&reorder_ready_due);

    while (!weir__list_is_empty(due)) {
        struct weir_reorder *reorder = WEIR_CONTAINER_OF(due->next, struct weir_reorder, ready_due);

        reorder->is_take_due = false;
        reorder_set_ready_due(reorder, false);
        if (reorder->ready != NULL)
            reorder->ready(reorder->context);
    }
}

/* What became of a fetch: pinned, failed, or loose because others need the room more (O7). */
static void reorder_settle(struct weir_reorder *reorder, struct reorder_fetch *fetch, int result,
                           bool is_awaited)
{
    if (result == 0) {
        reorder->fetch_done_count++;
        if (!is_awaited && reorder_waiting_count > 0) {
            fetch->state = FETCH_LOOSE;
            return;
        }
        result = weir_region_pin(reorder->region, fetch->slot, &fetch->data, NULL);
    }
    if (result == 0) {
        fetch->state = FETCH_HELD;
        fetch->is_promised = is_awaited;
        return;
    }

    reorder->failed_fetch_count++;
    fetch->state = FETCH_FAILED;
    fetch->result = result;
    /* Ahead of its turn a failure is nobody's concern: it is tried again when it counts. */
    if (!is_awaited && !fetch->is_wanted)
        reorder_fetch_erase(reorder, fetch);
}

/* From the poll of the region, for each slot that was asked for. */
static void reorder_fetched(void *context, struct weir_slot slot, int result)
{
    struct weir_reorder *reorder = reorder_by_id((uint64_t)(uintptr_t)context);
    struct reorder_fetch *fetch;
    bool is_awaited;
    bool is_wanted;

    if (reorder == NULL)
        return;
    fetch = reorder_fetch_by_slot(reorder, slot);
    if (fetch == NULL || fetch->state != FETCH_UNDERWAY)
        return;

    is_wanted = fetch->is_wanted;
    is_awaited = reorder->is_waiting && fetch->sequence == reorder->next;
    reorder_settle(reorder, fetch, result, is_awaited);
    if (is_awaited)
        reorder_set_waiting(reorder, false);
    reorder->is_take_due |= is_wanted;
    if (is_awaited || is_wanted)
        reorder_set_ready_due(reorder, true);
    reorder_feed_starved();
    reorder_call_ready();
}

/* ---- Spilling ------------------------------------------------------------------- */

static struct weir_label reorder_label(const struct weir_reorder *reorder, uint64_t sequence)
{
    return (struct weir_label){.key = sequence, .owner = reorder->label_owner};
}

static void reorder_partial_drop(struct weir_reorder *reorder)
{
    if (weir_slot_is_none(reorder->partial.slot))
        return;
    reorder->rewritten_bytes += reorder->partial.offset;
    weir_region_free(reorder->region, reorder->partial.slot);
    reorder->partial = (struct reorder_partial){0};
}

/* Larger than a put: in pieces. What the region took stays there for the next try. */
static int reorder_put_pieces(struct weir_reorder *reorder, uint64_t sequence, const char *data,
                              size_t bytes, struct weir_slot *ret_slot)
{
    struct reorder_partial *partial = &reorder->partial;
    int r;

    if (partial->sequence != sequence)
        reorder_partial_drop(reorder);
    if (weir_slot_is_none(partial->slot)) {
        r = weir_region_alloc(reorder->region, bytes, reorder_label(reorder, sequence),
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
        reorder_partial_drop(reorder);
    return r;
}

/* Encoded where it will lie. -EFBIG: this one cannot go there, others may. */
static int reorder_put_object(struct weir_reorder *reorder, uint64_t sequence, const void *object,
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
                                   reorder_label(reorder, sequence), &slot, &buffer);
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
static bool reorder_has_room(struct weir_reorder *reorder, uint64_t bytes)
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
static int reorder_put(struct weir_reorder *reorder, uint64_t sequence,
                       const struct reorder_load *load, struct weir_slot *ret_slot,
                       size_t *ret_bytes)
{
    int r;

    if (!reorder_has_room(reorder, load->bytes))
        return -EAGAIN;
    *ret_bytes = load->bytes;
    if (load->object != NULL)
        r = reorder_put_object(reorder, sequence, load->object, ret_slot, ret_bytes);
    else if (load->bytes <= reorder->put_bytes_max)
        r = weir_region_put(reorder->region, load->data, load->bytes,
                            reorder_label(reorder, sequence), ret_slot);
    else
        r = reorder_put_pieces(reorder, sequence, load->data, load->bytes, ret_slot);
    if (r < 0 && r != -EAGAIN)
        reorder->failed_spill_count++;
    return r;
}

static void reorder_spilled(struct weir_reorder *reorder, uint64_t sequence, size_t bytes)
{
    reorder->spilled_bytes += bytes;
    reorder->spilled_count++;
    reorder->spill_count++;
    reorder->spill_bytes += bytes;
    reorder->scan = weir__min(reorder->scan, sequence);
}

/* Not of a popped one that the caller keeps: that is NULL. */
static void reorder_let_go(struct weir_reorder *reorder, void *object)
{
    if (object != NULL)
        reorder->codec.release(reorder->codec.context, object);
}

/*
 * The furthest item that is in memory goes to the region; its charge is the
 * caller's to settle. -EFBIG: this one cannot, others may.
 */
static int reorder_spill_one(struct weir_reorder *reorder, uint64_t sequence, uint64_t *ret_bytes)
{
    struct weir__window_view view;
    struct weir_slot slot;
    size_t bytes;
    int r;

    weir__window_get(&reorder->window, sequence, &view);
    WEIR_ASSERT(view.kind == WINDOW_MEMORY || view.kind == WINDOW_OBJECT);
    r = reorder_put(
        reorder, sequence,
        &(struct reorder_load){.data = view.data, .object = view.object, .bytes = view.bytes},
        &slot, &bytes);
    if (r < 0)
        return r;

    weir__window_spill(&reorder->window, sequence, slot, bytes);
    reorder->memory_bytes -= view.bytes;
    reorder->object_bytes -= view.is_object ? view.bytes : 0;
    reorder_spilled(reorder, sequence, bytes);
    reorder_let_go(reorder, view.object);
    *ret_bytes = view.bytes;
    return 0;
}

/*
 * Spill the furthest, down to @from, until @bytes are free; *ret_bytes is what
 * is, and still charged. 0: enough, or nothing left to spill.
 */
static int reorder_spill_from(struct weir_reorder *reorder, uint64_t from, uint64_t bytes,
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
        r = reorder_spill_one(reorder, sequence, &freed);
        /* One that is too large for the region keeps nobody else in memory. */
        if (r < 0 && r != -EFBIG)
            return r;
        if (r == -EFBIG && sequence-- == 0)
            return 0;
        *ret_bytes += freed;
    }
    return 0;
}

static uint64_t reorder_hot_end(const struct weir_reorder *reorder)
{
    return reorder->next + weir__min(reorder->hot_items, UINT64_MAX - reorder->next);
}

/* Behind the hot zone; *ret_bytes come free. 0 or why it is not more. */
static int reorder_spill_free(struct weir_reorder *reorder, uint64_t bytes, uint64_t *ret_bytes)
{
    int r = reorder_spill_from(reorder, reorder_hot_end(reorder), bytes, ret_bytes);

    reorder_refund(reorder, *ret_bytes);
    reorder_tell_slack(reorder);
    return r;
}

uint64_t weir_reorder_spill(struct weir_reorder *reorder, uint64_t bytes)
{
    uint64_t freed;

    WEIR_ASSERT(reorder_is_mine(reorder));

    if (reorder->region == NULL)
        return 0;
    /* What stopped it shows in the figures; what was freed counts. */
    (void)reorder_spill_free(reorder, bytes, &freed);
    return freed;
}

uint64_t weir__reorder_relieve(struct weir__relief_member *member, uint64_t bytes, int *ret_result)
{
    struct weir_reorder *reorder = WEIR_CONTAINER_OF(member, struct weir_reorder, relief);
    uint64_t charged_bytes = reorder->charged_bytes;
    uint64_t freed;

    WEIR_ASSERT(reorder_is_mine(reorder));

    *ret_result = 0;
    if (reorder->memory_bytes == 0)
        return 0;
    *ret_result = reorder_spill_free(reorder, bytes, &freed);
    /* Not all that came free comes back: the working set is paid first. */
    reorder->reclaim_count += freed > 0;
    reorder->reclaim_bytes += charged_bytes - reorder->charged_bytes;
    return charged_bytes - reorder->charged_bytes;
}

/* A piece of the flush that a verdict asked for. */
static void reorder_pay_debt(struct weir_reorder *reorder, uint64_t bytes)
{
    uint64_t wanted;
    uint64_t freed;

    if (reorder->debt_bytes == 0)
        return;
    reorder->debt_bytes =
        weir__min(reorder->debt_bytes, weir_account_flush_bytes(reorder->account));
    wanted = weir__min(reorder->debt_bytes, bytes + FLUSH_STEP_BYTES);
    freed = weir_reorder_spill(reorder, wanted);
    reorder->debt_bytes -= weir__min(reorder->debt_bytes, freed);
    /* There is nothing to spill, or no room: a later verdict will ask again. */
    if (freed == 0)
        reorder->debt_bytes = 0;
}

static void reorder_take_flush(struct weir_reorder *reorder)
{
    if (reorder->region != NULL)
        reorder->debt_bytes = weir_account_flush_bytes(reorder->account);
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
    reorder->scan = UINT64_MAX;
    reorder->extra_bytes = FETCH_EXTRA_BYTES;
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
    reorder->id = ++reorder_last_id;
    weir__list_init(&reorder->starved);
    weir__list_init(&reorder->ready_due);
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
    if (config->region != NULL) {
        reorder->fetch_capacity = FETCH_RECORDS_MIN;
        reorder->fetches =
            weir__heap_alloc(&heap, reorder->fetch_capacity * sizeof(*reorder->fetches));
        if (reorder->fetches == NULL)
            goto fail;
    }
    if (config->account != NULL && config->region != NULL &&
        weir__relief_join(&reorder->relief, config->account) < 0)
        goto fail;
    reorder->heap = heap;
    reorder->working_bytes = config->account != NULL ? working_bytes : 0;
    weir__window_init(&reorder->window, &reorder->heap);
    reorder_configure(reorder, config);
    if (is_flush)
        reorder_take_flush(reorder);

    *ret_reorder = reorder;
    return 0;

fail:
    if (reorder != NULL)
        weir__heap_free(&heap, reorder->fetches,
                        reorder->fetch_capacity * sizeof(*reorder->fetches));
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
        reorder_let_go(reorder, view.object);
        sequence++;
    }
}

void weir_reorder_destroy(struct weir_reorder *reorder)
{
    struct weir__heap heap;
    uint64_t sequence = 0;

    if (reorder == NULL)
        return;
    WEIR_ASSERT(reorder_is_mine(reorder));
    WEIR_CHECK(reorder->popped_count == 0);

    weir__relief_leave(&reorder->relief);
    while (reorder->fetch_count > 0)
        reorder_fetch_drop(reorder, reorder_fetch_at(reorder, reorder->fetch_count - 1));
    reorder->is_take_due = false;
    reorder_stop_waiting(reorder);
    reorder_delist(reorder);
    if (reorder->region != NULL)
        reorder_partial_drop(reorder);
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
        reorder_feed_starved();

    reorder_refund(reorder, reorder->memory_bytes);
    WEIR_CHECK(reorder->charged_bytes == 0);
    WEIR_CHECK(reorder->lent_bytes == 0);
    if (reorder->account != NULL)
        weir_account_refund(reorder->account, reorder->working_bytes);
    weir__heap_account(&reorder->heap, -(int64_t)reorder->slack_bytes);
    weir__heap_free(&reorder->heap, reorder->fetches,
                    reorder->fetch_capacity * sizeof(*reorder->fetches));
    heap = reorder->heap;
    weir__heap_free(&heap, reorder, sizeof(*reorder));
    WEIR_CHECK(heap.bytes == 0);
}

/* ---- In ------------------------------------------------------------------------------- */

/* Whether @sequence may enter; 0, -EEXIST or -ERANGE. */
static int reorder_admits(struct weir_reorder *reorder, uint64_t sequence)
{
    /* O1; the last number of all has none behind it to be next. */
    if (sequence < reorder->next || sequence - reorder->next >= reorder->window_items_max ||
        sequence == UINT64_MAX) {
        reorder->range_count++;
        return -ERANGE;
    }
    if (weir__window_contains(&reorder->window, sequence)) {
        reorder->duplicate_count++;
        return -EEXIST;
    }
    return 0;
}

static bool reorder_is_full(const struct weir_reorder *reorder, size_t bytes)
{
    uint64_t held = reorder->memory_bytes + reorder->spilled_bytes;

    return held > reorder->window_bytes_max || bytes > reorder->window_bytes_max - held;
}

static void reorder_entered(struct weir_reorder *reorder, uint64_t sequence)
{
    reorder->pushed_count++;
    if (reorder->window.item_count > reorder->item_count_max)
        reorder->item_count_max = reorder->window.item_count;
    if (sequence == reorder->next)
        reorder->head_is_here = true;
    reorder_watch_stall(reorder);
}

/* Its payload is charged already. */
static int reorder_push_memory(struct weir_reorder *reorder, uint64_t sequence,
                               const struct reorder_load *load)
{
    void *copy;
    int r;

    if (load->object != NULL)
        r = weir__window_add_object(&reorder->window, sequence, load->bytes, load->object);
    else
        r = weir__window_add(&reorder->window, sequence, load->bytes, &copy);
    if (r < 0)
        return r;
    if (load->object == NULL && load->bytes > 0)
        memcpy(copy, load->data, load->bytes);
    reorder->memory_bytes += load->bytes;
    reorder->object_bytes += load->object != NULL ? load->bytes : 0;
    reorder_entered(reorder, sequence);
    return 0;
}

/* It is the furthest of all: straight to the region. */
static int reorder_push_region(struct weir_reorder *reorder, uint64_t sequence,
                               const struct reorder_load *load)
{
    struct weir_slot slot;
    size_t bytes;
    int r;

    if (reorder->region == NULL)
        return -EAGAIN;
    if (load->object == NULL && load->bytes > reorder->put_bytes_max)
        return -EFBIG;
    r = reorder_put(reorder, sequence, load, &slot, &bytes);
    if (r < 0)
        return r;
    r = weir__window_add_slot(&reorder->window, sequence, bytes, slot, load->object != NULL);
    if (r < 0) {
        weir_region_free(reorder->region, slot);
        reorder->rewritten_bytes += bytes;
        return r;
    }
    reorder_spilled(reorder, sequence, bytes);
    reorder_entered(reorder, sequence);
    reorder_let_go(reorder, load->object);
    return 0;
}

/* What must still leave for the tables of one more item. */
static uint64_t reorder_tables_due(const struct weir_reorder *reorder)
{
    return SPILLED_ITEM_BYTES - weir__min(SPILLED_ITEM_BYTES, reorder->credit_bytes);
}

/* One more item waits, and @freed has left for its tables; the rest is for those to come. */
static void reorder_pay_tables(struct weir_reorder *reorder, uint64_t freed)
{
    uint64_t credit = weir__min(reorder->credit_bytes + freed, CREDIT_BYTES_MAX);

    reorder->credit_bytes = credit - weir__min(credit, SPILLED_ITEM_BYTES);
}

/* Whether all memory is taken: where the governor has room in a region it does not say wait. */
static bool reorder_is_at_hard(const struct weir_reorder *reorder, enum weir_verdict verdict)
{
    return verdict == WEIR_WAIT || weir_account_delay_ns(reorder->account) >= HARD_DELAY_NS;
}

/*
 * No memory was granted, and @freed of what is further does not make up for it:
 * straight to the region. At hard only if something else has left for the tables.
 */
static int reorder_push_out(struct weir_reorder *reorder, uint64_t sequence,
                            const struct reorder_load *load, enum weir_verdict verdict,
                            uint64_t freed)
{
    uint64_t due = reorder_tables_due(reorder);
    uint64_t room = reorder->room_bytes;
    uint64_t more = 0;
    int r = 0;

    /* The room that the verdict spoke of is for the item itself. */
    reorder->room_bytes = 0;
    if (reorder->region != NULL && freed < due)
        r = reorder_spill_from(reorder, reorder_hot_end(reorder), CREDIT_BYTES_MAX, &more);
    reorder->room_bytes = room;
    reorder_refund(reorder, freed + more);
    if (r < 0 && r != -EAGAIN)
        return r;
    if (freed + more < due && reorder_is_at_hard(reorder, verdict))
        return -EAGAIN;

    if (load->bytes == 0 && load->object == NULL)
        r = reorder_push_memory(reorder, sequence, load);
    else
        r = reorder_push_region(reorder, sequence, load);
    if (r == 0)
        reorder_pay_tables(reorder, freed + more);
    return r;
}

/*
 * No memory was granted: take over the charge of items that are further, which
 * go to the region for it; or go there oneself.
 */
static int reorder_push_swap(struct weir_reorder *reorder, uint64_t sequence,
                             const struct reorder_load *load, enum weir_verdict verdict)
{
    uint64_t wanted = load->bytes + reorder_tables_due(reorder);
    uint64_t bytes = load->bytes;
    uint64_t freed = 0;
    int r = 0;

    if (reorder->region != NULL)
        r = reorder_spill_from(reorder, sequence + 1, wanted, &freed);
    if (freed < bytes && sequence != reorder->next) {
        if (r == 0)
            return reorder_push_out(reorder, sequence, load, verdict, freed);
        /* The region took no more of ours: it will not take this one. */
        reorder_refund(reorder, freed);
        return r;
    }

    r = reorder_push_memory(reorder, sequence, load);
    if (r < 0) {
        reorder_refund(reorder, freed);
    } else if (freed >= bytes) {
        reorder_refund(reorder, freed - bytes);
        reorder_pay_tables(reorder, freed - bytes);
    } else {
        reorder_charge_head(reorder, bytes - freed);
    }
    return r;
}

static int reorder_push_granted(struct weir_reorder *reorder, uint64_t sequence,
                                const struct reorder_load *load, enum weir_verdict verdict)
{
    int r;

    reorder->charged_bytes += load->bytes;
    r = reorder_push_memory(reorder, sequence, load);
    if (r < 0)
        reorder_refund(reorder, load->bytes);
    if (verdict == WEIR_FLUSH)
        reorder_take_flush(reorder);
    return r;
}

/* What may go to the region for an item of @bytes that @verdict kept out of memory. */
static uint64_t reorder_room(const struct weir_reorder *reorder, uint64_t sequence, uint64_t bytes,
                             enum weir_verdict verdict)
{
    if (sequence == reorder->next)
        return UINT64_MAX;
    return verdict == WEIR_SPILL ? bytes : 0;
}

static int reorder_push_charged(struct weir_reorder *reorder, uint64_t sequence,
                                const struct reorder_load *load)
{
    enum weir_verdict verdict;
    int r = weir_account_charge(reorder->account, load->bytes, &verdict);

    /* More than will ever be granted: only the head has a right to it. */
    if (r < 0 && sequence != reorder->next)
        return reorder->region == NULL ? -EDQUOT : reorder_push_region(reorder, sequence, load);
    if (r < 0)
        verdict = WEIR_WAIT;
    switch (verdict) {
    case WEIR_ADMIT:
    case WEIR_FLUSH:
        return reorder_push_granted(reorder, sequence, load, verdict);
    case WEIR_SPILL:
    case WEIR_WAIT:
        break;
    }
    reorder->room_bytes = reorder_room(reorder, sequence, load->bytes, verdict);
    r = reorder_push_swap(reorder, sequence, load, verdict);
    reorder->room_bytes = 0;
    return r;
}

/* An item of no bytes takes a place in the index, which is asked for like any other memory. */
static int reorder_push_empty(struct weir_reorder *reorder, uint64_t sequence)
{
    static const struct reorder_load nothing;
    enum weir_verdict verdict = WEIR_ADMIT;

    if (reorder->account == NULL || sequence == reorder->next ||
        weir_account_charge(reorder->account, SPILLED_ITEM_BYTES, &verdict) < 0)
        return reorder_push_memory(reorder, sequence, &nothing);
    switch (verdict) {
    case WEIR_ADMIT:
    case WEIR_FLUSH:
        /* The books have it when a node is made. */
        weir_account_refund(reorder->account, SPILLED_ITEM_BYTES);
        return reorder_push_granted(reorder, sequence, &nothing, verdict);
    case WEIR_SPILL:
    case WEIR_WAIT:
        break;
    }
    return reorder_push_out(reorder, sequence, &nothing, verdict, 0);
}

/* The number that an item gets which came with @sequence. */
static uint64_t reorder_number(const struct weir_reorder *reorder, uint64_t sequence)
{
    return reorder->passes_through ? weir__max(reorder->tail, reorder->next) : sequence;
}

static int reorder_push_load(struct weir_reorder *reorder, uint64_t sequence,
                             const struct reorder_load *load)
{
    int r = reorder_admits(reorder, sequence);

    if (r < 0)
        return r;
    if (sequence != reorder->next && reorder_is_full(reorder, load->bytes))
        return -EDQUOT;

    if (load->bytes == 0 && load->object == NULL)
        r = reorder_push_empty(reorder, sequence);
    else if (reorder->account == NULL)
        r = reorder_push_memory(reorder, sequence, load);
    else
        r = reorder_push_charged(reorder, sequence, load);
    if (r == 0)
        reorder->tail = sequence + 1;
    reorder_pay_debt(reorder, load->bytes);
    reorder_tell_slack(reorder);
    return r;
}

int weir_reorder_push(struct weir_reorder *reorder, uint64_t sequence, const void *data,
                      size_t bytes)
{
    WEIR_ASSERT(reorder_is_mine(reorder));
    WEIR_ASSERT(data != NULL || bytes == 0);

    /* The copy comes last: its source can be on its way meanwhile. */
    for (size_t i = 0; i < bytes && i < PUSH_PREFETCH_MAX; i += 64)
        __builtin_prefetch((const char *)data + i);
    return reorder_push_load(reorder, reorder_number(reorder, sequence),
                             &(struct reorder_load){.data = data, .bytes = bytes});
}

int weir_reorder_push_object(struct weir_reorder *reorder, uint64_t sequence, void *take_object)
{
    const struct weir_reorder_codec *codec = &reorder->codec;

    WEIR_ASSERT(reorder_is_mine(reorder));
    WEIR_ASSERT(take_object != NULL);

    if (codec->measure == NULL)
        return -EINVAL;
    return reorder_push_load(
        reorder, reorder_number(reorder, sequence),
        &(struct reorder_load){.object = take_object,
                               .bytes = codec->measure(codec->context, take_object)});
}

int weir_reorder_push_slot(struct weir_reorder *reorder, uint64_t sequence,
                           struct weir_slot take_slot)
{
    struct weir_slot_info info;
    int r;

    WEIR_ASSERT(reorder_is_mine(reorder));

    if (reorder->region == NULL)
        return -EINVAL;
    sequence = reorder_number(reorder, sequence);
    r = reorder_admits(reorder, sequence);
    if (r < 0)
        return r;
    r = weir_region_slot(reorder->region, take_slot, &info);
    if (r < 0)
        return r;
    if (!info.committed)
        return -EINVAL;
    if (sequence != reorder->next && reorder_is_full(reorder, info.bytes))
        return -EDQUOT;
    r = weir__window_add_slot(&reorder->window, sequence, info.bytes, take_slot, false);
    if (r < 0)
        return r;

    reorder->spilled_bytes += info.bytes;
    reorder->spilled_count++;
    reorder->scan = weir__min(reorder->scan, sequence);
    reorder->tail = sequence + 1;
    reorder_entered(reorder, sequence);
    return 0;
}

/* ---- Out ------------------------------------------------------------------------------ */

/* What follows the head will be asked for next: have its bytes near. */
static void reorder_look_ahead(struct weir_reorder *reorder)
{
    struct weir__window_view view;

    reorder->head_is_here = weir__window_get(&reorder->window, reorder->next, &view);
    if (reorder->head_is_here && view.kind == WINDOW_MEMORY)
        __builtin_prefetch(view.data);
    reorder_watch_stall(reorder);
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
        reorder_partial_drop(reorder);
}

/* The head leaves, and next moves on. */
static void reorder_advance(struct weir_reorder *reorder, struct weir__window_view *ret_view)
{
    reorder_leave(reorder, reorder->next, ret_view);
    reorder->next++;
    reorder_stop_waiting(reorder);
    reorder_look_ahead(reorder);
}

/*
 * What a record knows of the item at @sequence, and the region of its bytes. 0: it
 * is pinned, and has no record any more; -EAGAIN; or why it is not, told once.
 */
static int reorder_pin(struct weir_reorder *reorder, struct reorder_fetch *fetch,
                       struct weir_slot slot, const void **ret_data)
{
    int r;

    if (fetch != NULL && fetch->state == FETCH_HELD) {
        *ret_data = fetch->data;
        reorder_fetch_erase(reorder, fetch);
        return 0;
    }
    if (fetch != NULL && fetch->state == FETCH_FAILED) {
        r = fetch->result;
        reorder_fetch_erase(reorder, fetch);
        return r;
    }

    /* Nobody need wait for a fetch of what is in memory. */
    r = weir_region_pin(reorder->region, slot, ret_data, NULL);
    if (r == 0 && fetch != NULL)
        reorder_fetch_erase(reorder, fetch);
    return r;
}

static bool reorder_is_pinned(const struct weir_reorder *reorder,
                              const struct weir__window_view *view)
{
    return view->bytes > 0 && view->bytes <= reorder->fetch_bytes_max;
}

/*
 * The address of the head, which lies in the region, pinned; NULL if it is read
 * in pieces or has no bytes. 0, -EAGAIN or why not.
 */
static int reorder_pin_head(struct weir_reorder *reorder, const struct weir__window_view *view,
                            const void **ret_data)
{
    struct reorder_fetch *fetch = reorder_fetch_find(reorder, reorder->next);
    bool is_under_way = fetch != NULL && fetch->state == FETCH_UNDERWAY;
    int r;

    *ret_data = NULL;
    reorder_stop_waiting(reorder);
    if (!reorder_is_pinned(reorder, view))
        return 0;
    r = reorder_pin(reorder, fetch, view->slot, ret_data);
    if (r != -EAGAIN)
        return r;

    if (fetch != NULL && !is_under_way)
        reorder_lose(reorder);
    /* O7 */
    reorder_set_waiting(reorder, true);
    reorder_yield_all(reorder->region);
    if (is_under_way)
        return -EAGAIN;
    r = reorder_fetch_head(reorder);
    if (r == 0 || r == -EAGAIN) {
        reorder_set_starved(reorder, r < 0);
        return -EAGAIN;
    }
    reorder_set_waiting(reorder, false);
    return r;
}

/*
 * The same of any other. It is fetched like what is held ahead, and yields like
 * that to heads; but somebody is told that it came.
 */
static int reorder_pin_other(struct weir_reorder *reorder, uint64_t sequence,
                             const struct weir__window_view *view, const void **ret_data)
{
    struct reorder_fetch *fetch = reorder_fetch_find(reorder, sequence);
    int r;

    *ret_data = NULL;
    if (!reorder_is_pinned(reorder, view))
        return 0;
    r = reorder_pin(reorder, fetch, view->slot, ret_data);
    if (r != -EAGAIN)
        return r;

    if (fetch == NULL || fetch->state != FETCH_UNDERWAY) {
        if (fetch != NULL)
            reorder_lose(reorder);
        if (reorder_fetch_one(reorder, sequence) < 0)
            return -ENOMEM;
        fetch = reorder_fetch_find(reorder, sequence);
    }
    fetch->is_wanted = true;
    return -EAGAIN;
}

/* The object that was encoded to @data, which is pinned unless it is NULL; 0 or what decode said. */
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
    int r;

    if (sequence == reorder->next)
        r = reorder_pin_head(reorder, view, &data);
    else
        r = reorder_pin_other(reorder, sequence, view, &data);
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
static void reorder_hand_out(struct weir_reorder *reorder, uint64_t sequence,
                             const struct weir__window_view *view, struct weir_item *item)
{
    reorder->popped_count++;
    if (view->kind != WINDOW_REGION) {
        *item = (struct weir_item){
            .sequence = sequence,
            .data = view->data,
            .bytes = view->bytes,
            .object = view->object,
            .hold = view->is_object ? (void *)reorder : view->pack,
        };
        reorder->popped_bytes += view->bytes;
    } else if (view->is_object) {
        /* What it was decoded from is of no use any more, and it is in memory now. */
        weir_region_free(reorder->region, view->slot);
        item->slot = (struct weir_slot){0};
        item->bytes = reorder->codec.measure(reorder->codec.context, item->object);
        item->hold = reorder;
        reorder_charge_head(reorder, item->bytes);
        reorder->popped_bytes += item->bytes;
        reorder->object_bytes += item->bytes;
        reorder_feed_starved();
    }
}

int weir_reorder_pop(struct weir_reorder *reorder, struct weir_item *ret_item)
{
    struct weir__window_view view;
    struct weir_item item;
    uint64_t sequence = reorder->next;
    int r;

    WEIR_ASSERT(reorder_is_mine(reorder));

    if (!reorder->head_is_here) {
        reorder_fetch_ahead(reorder);
        return -ENOENT;
    }
    weir__window_get(&reorder->window, sequence, &view);
    if (view.kind == WINDOW_REGION) {
        r = reorder_bring(reorder, sequence, &view, &item);
        if (r < 0)
            return r;
    }

    reorder_advance(reorder, &view);
    reorder_hand_out(reorder, sequence, &view, &item);
    reorder->delivered_count++;
    reorder_fetch_ahead(reorder);
    *ret_item = item;
    return 0;
}

int weir_reorder_take(struct weir_reorder *reorder, uint64_t sequence, struct weir_item *ret_item)
{
    struct weir__window_view view;
    struct weir_item item;
    int r;

    WEIR_ASSERT(reorder_is_mine(reorder));

    if (!weir__window_get(&reorder->window, sequence, &view))
        return -ENOENT;
    if (view.kind == WINDOW_REGION) {
        r = reorder_bring(reorder, sequence, &view, &item);
        if (r < 0)
            return r;
    }

    reorder_leave(reorder, sequence, &view);
    if (sequence == reorder->next) {
        reorder->head_is_here = false;
        reorder_stop_waiting(reorder);
    }
    reorder_watch_stall(reorder);
    reorder_hand_out(reorder, sequence, &view, &item);
    reorder->taken_count++;
    *ret_item = item;
    return 0;
}

void weir_reorder_release(struct weir_reorder *reorder, struct weir_item *item)
{
    WEIR_ASSERT(reorder_is_mine(reorder));
    WEIR_CHECK(reorder->popped_count > 0);

    reorder->popped_count--;
    if (item->hold != NULL) {
        if (item->hold == reorder) {
            reorder_let_go(reorder, item->object);
            reorder->object_bytes -= item->bytes;
        } else {
            weir__window_release(&reorder->window, item->hold);
        }
        reorder->popped_bytes -= item->bytes;
        reorder_refund(reorder, item->bytes);
        reorder_tell_slack(reorder);
    } else if (!weir_slot_is_none(item->slot)) {
        if (item->data != NULL)
            weir_region_unpin(reorder->region, item->slot);
        weir_region_free(reorder->region, item->slot);
        reorder_feed_starved();
    }
    *item = (struct weir_item){.sequence = item->sequence};
}

int weir_reorder_skip(struct weir_reorder *reorder)
{
    struct weir__window_view view;

    WEIR_ASSERT(reorder_is_mine(reorder));

    if (reorder->next == UINT64_MAX)
        return -ERANGE;
    reorder->skipped_count++;
    if (!reorder->head_is_here) {
        reorder->next++;
        reorder_look_ahead(reorder);
        return 0;
    }

    if (reorder->fetch_count > 0) {
        struct reorder_fetch *fetch = reorder_fetch_find(reorder, reorder->next);

        /* One that is under way will be called back, and nobody will know it. */
        if (fetch != NULL)
            reorder_fetch_drop(reorder, fetch);
    }
    reorder_advance(reorder, &view);
    if (view.kind == WINDOW_REGION) {
        weir_region_free(reorder->region, view.slot);
        reorder_feed_starved();
        return 0;
    }
    if (view.kind == WINDOW_MEMORY)
        weir__window_release(&reorder->window, view.pack);
    reorder->object_bytes -= view.is_object ? view.bytes : 0;
    reorder_let_go(reorder, view.object);
    reorder_refund(reorder, view.bytes);
    reorder_tell_slack(reorder);
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
    };

    WEIR_ASSERT(reorder_is_mine(reorder));

    weir__window_last(&reorder->window, WINDOW_MARK_ANY, UINT64_MAX, &stats.last_sequence);
    if (reorder->stall_since_ns != 0) {
        uint64_t stall_ns = weir__clock_coarse_ns() - reorder->stall_since_ns;

        stats.stall_ns += stall_ns;
        stats.stall_max_ns = weir__max(stats.stall_max_ns, stall_ns);
    }
    *ret_stats = stats;
}

/* ---- Audit ------------------------------------------------------------------------------ */

static void reorder_audit_fetches(const struct weir_reorder *reorder)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < reorder->fetch_count; i++) {
        const struct reorder_fetch *fetch = reorder_fetch_at(reorder, i);
        struct weir__window_view view;

        if (i > 0)
            WEIR_CHECK(reorder_fetch_at(reorder, i - 1)->sequence < fetch->sequence);
        WEIR_CHECK(fetch->sequence >= reorder->next);
        WEIR_CHECK(weir__window_get((struct weir__window *)(uintptr_t)&reorder->window,
                                    fetch->sequence, &view));
        WEIR_CHECK(view.kind == WINDOW_REGION);
        WEIR_CHECK(view.bytes == fetch->bytes);
        WEIR_CHECK(view.slot.index == fetch->slot.index);
        WEIR_CHECK(view.slot.generation == fetch->slot.generation);
        bytes += fetch->cost_bytes;
    }
    WEIR_CHECK(bytes == reorder->ahead_bytes);
    WEIR_CHECK((reorder->busy_link != NULL) == (reorder->fetch_count > 0));
    if (!weir__list_is_empty(&reorder->starved))
        WEIR_CHECK(reorder->is_waiting);
}

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

    WEIR_CHECK(reorder_is_mine(reorder));
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
        WEIR_CHECK(reorder->charged_bytes ==
                   memory_bytes + reorder->popped_bytes - reorder->lent_bytes);
    else
        WEIR_CHECK(reorder->charged_bytes == 0);
    WEIR_CHECK(reorder->lent_bytes <= reorder->working_bytes);
    WEIR_CHECK(reorder->credit_bytes <= CREDIT_BYTES_MAX);
    WEIR_CHECK(memory_bytes - pack_bytes <= reorder->object_bytes);
    pack_bytes = memory_bytes + reorder->popped_bytes - reorder->object_bytes;
    WEIR_CHECK(window->packs.bytes >= pack_bytes);
    WEIR_CHECK(reorder->slack_bytes >= window->packs.bytes - pack_bytes);
    if (reorder->region != NULL)
        reorder_audit_fetches(reorder);
}
