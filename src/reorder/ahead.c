/* SPDX-License-Identifier: MIT */
/*
 * ahead - what comes back from the region before its turn, and who waits for it
 *
 * Records of fetches in order of sequence, from the batch that is asked for to the
 * address that pop or take hands out; and the queues of the thread: whose fetches
 * are under way, whose head the region refused, who is owed a call of ready. Why
 * pins yield, and why the context of a fetch is a number, stands in reorder.c.
 */
#include "reorder/reorder_state.h"

#include "base/bits.h"
#include "base/check.h"

#include <errno.h>
#include <string.h>

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

#define BUSY_BUCKETS 64u

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

/* O6. By id, so that the context of a fetch can outlive its buffer. */
static _Thread_local struct weir_reorder *ahead_busy[BUSY_BUCKETS];
static _Thread_local uint64_t ahead_last_id;
static _Thread_local uint64_t ahead_busy_count;
static _Thread_local uint64_t ahead_waiting_count;

/* Whose head the region refused to fetch, and who is owed a call of ready. */
static _Thread_local struct weir__list ahead_starved;
static _Thread_local struct weir__list ahead_ready_due;

/* ---- The busy table ----------------------------------------------------------- */

static void ahead_enlist(struct weir_reorder *reorder)
{
    struct weir_reorder **bucket = &ahead_busy[reorder->id % BUSY_BUCKETS];

    if (reorder->busy_link != NULL)
        return;
    reorder->busy_next = *bucket;
    reorder->busy_link = bucket;
    if (reorder->busy_next != NULL)
        reorder->busy_next->busy_link = &reorder->busy_next;
    *bucket = reorder;
    ahead_busy_count++;
}

static void ahead_delist(struct weir_reorder *reorder)
{
    if (reorder->busy_link == NULL)
        return;
    *reorder->busy_link = reorder->busy_next;
    if (reorder->busy_next != NULL)
        reorder->busy_next->busy_link = reorder->busy_link;
    reorder->busy_next = NULL;
    reorder->busy_link = NULL;
    ahead_busy_count--;
}

static struct weir_reorder *ahead_by_id(uint64_t id)
{
    struct weir_reorder *reorder = ahead_busy[id % BUSY_BUCKETS];

    while (reorder != NULL && reorder->id != id)
        reorder = reorder->busy_next;
    return reorder;
}

static struct weir__list *ahead_queue(struct weir__list *list)
{
    if (list->next == NULL)
        weir__list_init(list);
    return list;
}

static void ahead_set_starved(struct weir_reorder *reorder, bool is_starved)
{
    weir__list_remove(&reorder->starved);
    if (is_starved)
        weir__list_append(ahead_queue(&ahead_starved), &reorder->starved);
}

static void ahead_set_ready_due(struct weir_reorder *reorder, bool is_due)
{
    weir__list_remove(&reorder->ready_due);
    if (is_due)
        weir__list_append(ahead_queue(&ahead_ready_due), &reorder->ready_due);
}

static void ahead_set_waiting(struct weir_reorder *reorder, bool is_waiting)
{
    if (reorder->is_waiting == is_waiting)
        return;
    reorder->is_waiting = is_waiting;
    ahead_waiting_count += is_waiting ? 1 : UINT64_MAX;
}

void weir__ahead_end_wait(struct weir_reorder *reorder)
{
    ahead_set_waiting(reorder, false);
    ahead_set_starved(reorder, false);
    ahead_set_ready_due(reorder, reorder->is_take_due);
}

/* ---- Fetch records ------------------------------------------------------------ */

static struct reorder_fetch *ahead_fetch_at(const struct weir_reorder *reorder, uint32_t index)
{
    WEIR_ASSERT(index < reorder->fetch_count);
    return &reorder->fetches[reorder->fetch_first + index];
}

/* The first record at or after @sequence; fetch_count: none. */
static uint32_t ahead_fetch_index(const struct weir_reorder *reorder, uint64_t sequence)
{
    uint32_t low = 0;
    uint32_t high = reorder->fetch_count;

    if (high > 0 && ahead_fetch_at(reorder, high - 1)->sequence < sequence)
        return high;
    while (low < high) {
        uint32_t middle = (low + high) / 2;

        if (ahead_fetch_at(reorder, middle)->sequence < sequence)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct reorder_fetch *ahead_fetch_find(const struct weir_reorder *reorder, uint64_t sequence)
{
    uint32_t index = ahead_fetch_index(reorder, sequence);

    if (index == reorder->fetch_count || ahead_fetch_at(reorder, index)->sequence != sequence)
        return NULL;
    return ahead_fetch_at(reorder, index);
}

/* By slot: what was put has its sequence as key, what came by push_slot may have any. */
static struct reorder_fetch *ahead_fetch_by_slot(const struct weir_reorder *reorder,
                                                 struct weir_slot slot)
{
    struct weir_slot_info info;

    if (weir_region_slot(reorder->region, slot, &info) == 0) {
        struct reorder_fetch *fetch = ahead_fetch_find(reorder, info.label.key);

        if (fetch != NULL && fetch->slot.index == slot.index &&
            fetch->slot.generation == slot.generation)
            return fetch;
    }
    for (uint32_t i = 0; i < reorder->fetch_count; i++) {
        struct reorder_fetch *fetch = ahead_fetch_at(reorder, i);

        if (fetch->slot.index == slot.index && fetch->slot.generation == slot.generation)
            return fetch;
    }
    return NULL;
}

/* One more record fits, or -ENOMEM. */
static int ahead_fetch_reserve(struct weir_reorder *reorder)
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
static void ahead_fetch_insert(struct weir_reorder *reorder, uint64_t sequence,
                               const struct weir__window_view *view)
{
    uint32_t index = ahead_fetch_index(reorder, sequence);
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
    ahead_enlist(reorder);
}

/* Forget a record; what it pinned is the caller's. */
static void ahead_fetch_erase(struct weir_reorder *reorder, struct reorder_fetch *fetch)
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
        ahead_delist(reorder);
    }
}

/* Forget a record and what it holds; the item may be fetched again. */
static void ahead_fetch_drop(struct weir_reorder *reorder, struct reorder_fetch *fetch)
{
    if (fetch->state == FETCH_HELD)
        weir_region_unpin(reorder->region, fetch->slot);
    reorder->scan = weir__min(reorder->scan, fetch->sequence);
    ahead_fetch_erase(reorder, fetch);
}

/* What is only held ahead is let loose. */
static void ahead_yield(struct weir_reorder *reorder)
{
    for (uint32_t i = 0; i < reorder->fetch_count; i++) {
        struct reorder_fetch *fetch = ahead_fetch_at(reorder, i);

        if (fetch->state != FETCH_HELD || fetch->is_promised)
            continue;
        weir_region_unpin(reorder->region, fetch->slot);
        fetch->state = FETCH_LOOSE;
    }
}

/* One that was loose is gone: so are others, and what we believe of the room is wrong. */
static void ahead_lose(struct weir_reorder *reorder)
{
    for (uint32_t i = reorder->fetch_count; i-- > 0;)
        if (ahead_fetch_at(reorder, i)->state == FETCH_LOOSE)
            ahead_fetch_drop(reorder, ahead_fetch_at(reorder, i));
    reorder->extra_bytes = weir__min(reorder->extra_bytes * 2, FETCH_EXTRA_BYTES_MAX);
}

/* All buffers of this thread let go of what they hold ahead in @region. */
static void ahead_yield_all(const struct weir_region *region)
{
    for (uint32_t bucket = 0; bucket < BUSY_BUCKETS; bucket++) {
        struct weir_reorder *reorder = ahead_busy[bucket];

        while (reorder != NULL) {
            if (reorder->region == region)
                ahead_yield(reorder);
            reorder = reorder->busy_next;
        }
    }
}

void weir__ahead_forget(struct weir_reorder *reorder, uint64_t sequence)
{
    struct reorder_fetch *fetch;

    if (reorder->fetch_count == 0)
        return;
    /* One that is under way will be called back, and nobody will know it. */
    fetch = ahead_fetch_find(reorder, sequence);
    if (fetch != NULL)
        ahead_fetch_drop(reorder, fetch);
}

/* ---- Lifecycle ------------------------------------------------------------------ */

int weir__ahead_init(struct weir_reorder *reorder)
{
    reorder->scan = UINT64_MAX;
    reorder->extra_bytes = FETCH_EXTRA_BYTES;
    reorder->id = ++ahead_last_id;
    weir__list_init(&reorder->starved);
    weir__list_init(&reorder->ready_due);
    if (reorder->region == NULL)
        return 0;
    reorder->fetches =
        weir__heap_alloc(&reorder->heap, FETCH_RECORDS_MIN * sizeof(*reorder->fetches));
    if (reorder->fetches == NULL)
        return -ENOMEM;
    reorder->fetch_capacity = FETCH_RECORDS_MIN;
    return 0;
}

void weir__ahead_deinit(struct weir_reorder *reorder)
{
    while (reorder->fetch_count > 0)
        ahead_fetch_drop(reorder, ahead_fetch_at(reorder, reorder->fetch_count - 1));
    reorder->is_take_due = false;
    weir__ahead_stop_waiting(reorder);
    ahead_delist(reorder);
    weir__heap_free(&reorder->heap, reorder->fetches,
                    reorder->fetch_capacity * sizeof(*reorder->fetches));
}

/* ---- Fetching ------------------------------------------------------------------ */

static void ahead_fetched(void *context, struct weir_slot slot, int result);

/*
 * Whether the item at @sequence is to be fetched now: it is small enough, and
 * cold. What is in memory is pinned when it is popped: to pin it now would keep
 * a whole chunk for it.
 */
static bool ahead_wants(struct weir_reorder *reorder, const struct weir__window_view *view)
{
    struct weir_slot_info info;

    if (view->bytes == 0 || view->bytes > reorder->fetch_bytes_max)
        return false;
    return weir_region_slot(reorder->region, view->slot, &info) == 0 && !info.resident;
}

/* What this buffer may hold ahead, under way and loose included. */
static uint64_t ahead_share(const struct weir_reorder *reorder)
{
    return reorder->ahead_bytes_max / weir__max(ahead_busy_count, 1);
}

/*
 * Records for up to FETCH_BATCH items from `scan` on, as far as the bounds go;
 * the head is taken whatever its size. A batch is read together, so it is a part
 * of what may be held: one large read would leave the disk idle while it is used.
 */
static size_t ahead_gather(struct weir_reorder *reorder, struct weir_slot slots[FETCH_BATCH])
{
    uint64_t bytes_max = reorder->ahead_bytes + ahead_share(reorder) / FETCH_BATCHES;
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
        if (ahead_fetch_find(reorder, sequence) == NULL && ahead_wants(reorder, &view)) {
            if (sequence != reorder->next &&
                reorder->ahead_bytes + view.bytes + reorder->extra_bytes > ahead_share(reorder))
                break;
            if (ahead_fetch_reserve(reorder) < 0)
                break;
            ahead_fetch_insert(reorder, sequence, &view);
            slots[slot_count++] = view.slot;
        }
        reorder->scan = sequence + 1;
    }
    return slot_count;
}

/* Ask the region for a batch from `scan` on; 0, or what it said; *ret_count may be 0. */
static int ahead_fetch_batch(struct weir_reorder *reorder, size_t *ret_count)
{
    struct weir_slot slots[FETCH_BATCH];
    size_t slot_count = ahead_gather(reorder, slots);
    int r;

    *ret_count = slot_count;
    if (slot_count == 0)
        return 0;
    r = weir_region_fetch(reorder->region, slots, slot_count, ahead_fetched,
                          (void *)(uintptr_t)reorder->id);
    if (r < 0) {
        for (size_t i = 0; i < slot_count; i++)
            ahead_fetch_drop(reorder, ahead_fetch_by_slot(reorder, slots[i]));
        *ret_count = 0;
    }
    return r;
}

/* Not before one batch of what may be held is used, nor half of the records. */
void weir__ahead_fetch_more(struct weir_reorder *reorder)
{
    size_t slot_count;

    reorder->scan = weir__max(reorder->scan, reorder->next);
    if (reorder->scan - reorder->next > FETCH_DISTANCE)
        return;
    if (reorder->fetch_count > FETCH_RECORDS_MAX / 2 ||
        reorder->ahead_bytes > ahead_share(reorder) / FETCH_BATCHES * (FETCH_BATCHES - 1))
        return;

    do {
        if (ahead_fetch_batch(reorder, &slot_count) < 0)
            return;
        /* It goes well: more is dared. */
        if (slot_count > 0)
            reorder->extra_bytes =
                weir__max(reorder->extra_bytes - reorder->extra_bytes / 16, FETCH_EXTRA_BYTES_MIN);
    } while (slot_count > 0);
}

/* Ask for the item at @sequence alone. */
static int ahead_fetch_one(struct weir_reorder *reorder, uint64_t sequence)
{
    struct weir__window_view view;
    int r = ahead_fetch_reserve(reorder);

    if (r < 0)
        return -EAGAIN;
    weir__window_get(&reorder->window, sequence, &view);
    ahead_fetch_insert(reorder, sequence, &view);
    r = weir_region_fetch(reorder->region, &view.slot, 1, ahead_fetched,
                          (void *)(uintptr_t)reorder->id);
    if (r < 0)
        ahead_fetch_drop(reorder, ahead_fetch_find(reorder, sequence));
    return r;
}

/*
 * Fetch the head, which is cold and has no record, and what follows it; where
 * the region refuses, the head alone. -EAGAIN: what is out or under way must
 * come back first.
 */
static int ahead_fetch_head(struct weir_reorder *reorder)
{
    size_t slot_count;

    reorder->scan = reorder->next;
    if (ahead_fetch_batch(reorder, &slot_count) == 0 &&
        ahead_fetch_find(reorder, reorder->next) != NULL)
        return 0;
    return ahead_fetch_one(reorder, reorder->next);
}

/* Once round: one that is refused again waits for the next time. */
void weir__ahead_feed_starved(void)
{
    struct weir__list *starved = ahead_queue(&ahead_starved);
    struct weir__list round;

    if (weir__list_is_empty(starved))
        return;
    weir__list_append(starved, &round);
    while (starved->next != &round) {
        struct weir_reorder *reorder =
            WEIR_CONTAINER_OF(starved->next, struct weir_reorder, starved);

        ahead_set_starved(reorder, ahead_fetch_head(reorder) < 0);
    }
    weir__list_remove(&round);
}

/* Each call may destroy any buffer, so the queue is looked at anew after each. */
static void ahead_call_ready(void)
{
    struct weir__list *due = ahead_queue(&ahead_ready_due);

    while (!weir__list_is_empty(due)) {
        struct weir_reorder *reorder = WEIR_CONTAINER_OF(due->next, struct weir_reorder, ready_due);

        reorder->is_take_due = false;
        ahead_set_ready_due(reorder, false);
        if (reorder->ready != NULL)
            reorder->ready(reorder->context);
    }
}

/* What became of a fetch: pinned, failed, or loose because others need the room more (O7). */
static void ahead_settle(struct weir_reorder *reorder, struct reorder_fetch *fetch, int result,
                         bool is_awaited)
{
    if (result == 0) {
        reorder->fetch_done_count++;
        if (!is_awaited && ahead_waiting_count > 0) {
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
        ahead_fetch_erase(reorder, fetch);
}

/* From the poll of the region, for each slot that was asked for. */
static void ahead_fetched(void *context, struct weir_slot slot, int result)
{
    struct weir_reorder *reorder = ahead_by_id((uint64_t)(uintptr_t)context);
    struct reorder_fetch *fetch;
    bool is_awaited;
    bool is_wanted;

    if (reorder == NULL)
        return;
    fetch = ahead_fetch_by_slot(reorder, slot);
    if (fetch == NULL || fetch->state != FETCH_UNDERWAY)
        return;

    is_wanted = fetch->is_wanted;
    is_awaited = reorder->is_waiting && fetch->sequence == reorder->next;
    ahead_settle(reorder, fetch, result, is_awaited);
    if (is_awaited)
        ahead_set_waiting(reorder, false);
    reorder->is_take_due |= is_wanted;
    if (is_awaited || is_wanted)
        ahead_set_ready_due(reorder, true);
    weir__ahead_feed_starved();
    ahead_call_ready();
}

/* ---- Pins ----------------------------------------------------------------------- */

/*
 * What a record knows of the item at @sequence, and the region of its bytes. 0: it
 * is pinned, and has no record any more; -EAGAIN; or why it is not, told once.
 */
static int ahead_pin(struct weir_reorder *reorder, struct reorder_fetch *fetch,
                     struct weir_slot slot, const void **ret_data)
{
    int r;

    if (fetch != NULL && fetch->state == FETCH_HELD) {
        *ret_data = fetch->data;
        ahead_fetch_erase(reorder, fetch);
        return 0;
    }
    if (fetch != NULL && fetch->state == FETCH_FAILED) {
        r = fetch->result;
        ahead_fetch_erase(reorder, fetch);
        return r;
    }

    /* Nobody need wait for a fetch of what is in memory. */
    r = weir_region_pin(reorder->region, slot, ret_data, NULL);
    if (r == 0 && fetch != NULL)
        ahead_fetch_erase(reorder, fetch);
    return r;
}

static bool ahead_is_pinned(const struct weir_reorder *reorder,
                            const struct weir__window_view *view)
{
    return view->bytes > 0 && view->bytes <= reorder->fetch_bytes_max;
}

static int ahead_pin_head(struct weir_reorder *reorder, const struct weir__window_view *view,
                          const void **ret_data)
{
    struct reorder_fetch *fetch = ahead_fetch_find(reorder, reorder->next);
    bool is_under_way = fetch != NULL && fetch->state == FETCH_UNDERWAY;
    int r;

    *ret_data = NULL;
    weir__ahead_stop_waiting(reorder);
    if (!ahead_is_pinned(reorder, view))
        return 0;
    r = ahead_pin(reorder, fetch, view->slot, ret_data);
    if (r != -EAGAIN)
        return r;

    if (fetch != NULL && !is_under_way)
        ahead_lose(reorder);
    /* O7 */
    ahead_set_waiting(reorder, true);
    ahead_yield_all(reorder->region);
    if (is_under_way)
        return -EAGAIN;
    r = ahead_fetch_head(reorder);
    if (r == 0 || r == -EAGAIN) {
        ahead_set_starved(reorder, r < 0);
        return -EAGAIN;
    }
    ahead_set_waiting(reorder, false);
    return r;
}

/* Fetched like what is held ahead, and yields like that to heads; but somebody is told. */
static int ahead_pin_other(struct weir_reorder *reorder, uint64_t sequence,
                           const struct weir__window_view *view, const void **ret_data)
{
    struct reorder_fetch *fetch = ahead_fetch_find(reorder, sequence);
    int r;

    *ret_data = NULL;
    if (!ahead_is_pinned(reorder, view))
        return 0;
    r = ahead_pin(reorder, fetch, view->slot, ret_data);
    if (r != -EAGAIN)
        return r;

    if (fetch == NULL || fetch->state != FETCH_UNDERWAY) {
        if (fetch != NULL)
            ahead_lose(reorder);
        if (ahead_fetch_one(reorder, sequence) < 0)
            return -ENOMEM;
        fetch = ahead_fetch_find(reorder, sequence);
    }
    fetch->is_wanted = true;
    return -EAGAIN;
}

int weir__ahead_pin(struct weir_reorder *reorder, uint64_t sequence,
                    const struct weir__window_view *view, const void **ret_data)
{
    if (sequence == reorder->next)
        return ahead_pin_head(reorder, view, ret_data);
    return ahead_pin_other(reorder, sequence, view, ret_data);
}

/* ---- Audit ---------------------------------------------------------------------- */

void weir__ahead_audit(const struct weir_reorder *reorder)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < reorder->fetch_count; i++) {
        const struct reorder_fetch *fetch = ahead_fetch_at(reorder, i);
        struct weir__window_view view;

        if (i > 0)
            WEIR_CHECK(ahead_fetch_at(reorder, i - 1)->sequence < fetch->sequence);
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
