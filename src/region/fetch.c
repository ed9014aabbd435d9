/* SPDX-License-Identifier: MIT */
/*
 * fetch - what is addressable for a while: pins, and items brought back
 *
 *      request --> hold (one per item) --> read (one per run of neighbours)
 *                  pins, keeps             buffer, shared by its holds
 *
 * A hold is an item that is pinned, being fetched, fetched, or under
 * construction. Fetched bytes lie in the buffer of a read; when the last hold of
 * a read goes, the buffer goes. What nobody pins lingers, oldest first out, until
 * another read needs its room. Reads that find none wait in order: so a caller
 * may ask for a thousand slots at once and memory stays within bytes_max.
 *
 * A piece has its buffer only while it is read, so pieces always come to an end;
 * holds may be pinned for long, and often until a piece has come. So a share of
 * bytes_max is for pieces alone, and neither kind waits behind the other.
 *
 * Nothing is read through the mapping: a failing disk is an error code here.
 *
 *   F1  bytes counts the buffers of all reads; it never passes bytes_max, and
 *       those of holds leave step_bytes of it. While bytes_max comes down both may
 *       be over: then no read for holds begins, and of pieces one at a time
 *   F2  a hold is idle (in the list) exactly when its read is done and nobody
 *       pins or keeps it
 *   F3  a request is answered once, from poll; until then its hold is kept
 *   F4  peak_bytes is the most that bytes was in this window, or bytes_max if there
 *       was not enough: so much is not lent to chunks
 *   F5  staged_bytes counts the buffers of items that are written out or were, each
 *       of one hold; none is begun beyond their share
 */
#include "region/region_state.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/random.h"
#include "base/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define FETCH_ALIGNMENT    UINT64_C(4096)
#define FETCH_COALESCE_MAX (UINT64_C(1) << 20) /* neighbours are read together up to here */
#define FETCH_GAP_MAX      UINT64_C(16384)     /* and across gaps of this much */
#define FETCH_SLOT_COUNT   1024
#define FETCH_READING_MAX  128 /* under way at once: a ring of any kind takes them, a disk is busy */
#define FETCH_AGAIN_MAX    8
#define FETCH_WINDOW_NS    UINT64_C(1000000000)  /* what was used in the last two is not lent */
#define FETCH_STAGED_PART  4                     /* of the buffers, for staged items at most */
#define FETCH_STEP_BYTES   (UINT64_C(256) << 10) /* of a piece, of a blocking read */

_Static_assert(FETCH_ALIGNMENT == ARENA_PAGE_BYTES, "buffers begin and end where reads may");

/* One read of the file into a buffer: for holds, or a piece for somebody's own buffer. */
struct fetch_read {
    struct weir_operation operation;
    struct weir_region *region;
    struct weir__list link;  /* pending; told, for a piece; else alone */
    struct weir__list holds; /* that have their bytes here */
    uint64_t offset;         /* in the file, aligned */
    uint64_t bytes;          /* aligned */
    char *buffer;            /* NULL: pending */
    uint64_t buffer_bytes;
    uint32_t user_count; /* its holds, and the ring while it is under way */
    uint32_t again_count;
    bool is_done;
    bool is_staged;               /* nothing is read: the bytes were here first */
    struct weir_operation *piece; /* theirs; NULL: this read is for holds */
    struct weir_slot piece_slot;
    void *piece_buffer;
    uint64_t piece_item;   /* where the item lay when this step was submitted */
    uint32_t piece_mark;   /* and how often it had moved */
    uint64_t piece_offset; /* in the file, of the next byte to come */
    uint64_t piece_bytes;
    uint64_t piece_copied; /* of these */
    int32_t piece_result;
};

/* One slot of one weir_region_fetch(). */
struct fetch_request {
    struct weir__list link; /* of its hold, or told */
    struct weir_slot slot;
    struct weir__hold *hold; /* kept for this request; NULL: none yet */
    weir_fetch_fn *done;
    void *context;
    int error; /* 0: look again when it is told */
};

struct weir__hold {
    struct weir__hold *next; /* in its bucket */
    struct weir_slot slot;
    struct weir__list idle;
    struct weir__list of_read;
    struct weir__list requests; /* that wait for the read */
    struct fetch_read *read;    /* NULL: the item is in the mapping */
    uint64_t offset;            /* of the item in the file */
    uint32_t move_mark;         /* of the item then */
    bool is_again;              /* read once more: what came first was not what was put */
    uint64_t bytes;             /* its length */
    uint32_t pin_count;
    uint32_t keep_count;    /* answered requests that poll has yet to tell; who writes it out */
    bool is_kept;           /* it is being written out */
    bool is_mapped;         /* pinned in the mapping, not in the buffer of its read */
    uint64_t mapped_offset; /* of the item then: what is pinned is not moved */
    bool is_stale;          /* freed meanwhile */
    struct weir__build *build;
};

struct weir__build {
    XXH3_state_t sum;       /* of what was written; 64-byte aligned */
    uint64_t given_bytes;   /* of whole pieces: where the next one begins */
    uint64_t written_bytes; /* beyond that while a piece stopped half way */
    uint64_t open_chunk;    /* where the next byte goes */
};

uint64_t weir__sum(const struct weir__entry *entry, const void *data)
{
    return weir__sum_of(weir__word_load(&entry->key), weir__word_load(&entry->tag),
                        XXH3_64bits(data, weir__entry_bytes(entry)));
}

/* ---- Holds -------------------------------------------------------------- */

static struct weir__hold **fetch_bucket(const struct weir_region *region, struct weir_slot slot)
{
    uint64_t hash = weir__mix((uint64_t)slot.generation << 32 | slot.index);

    return (struct weir__hold **)&region->fetches.buckets[hash % REGION_HOLD_BUCKETS];
}

static struct weir__hold *fetch_find(const struct weir_region *region, struct weir_slot slot)
{
    struct weir__hold *hold = *fetch_bucket(region, slot);

    while (hold != NULL &&
           (hold->slot.index != slot.index || hold->slot.generation != slot.generation))
        hold = hold->next;
    return hold;
}

static struct weir__hold *fetch_hold(struct weir_region *region, struct weir_slot slot)
{
    const struct weir__entry *entry = weir__region_entry(region, slot.index);
    struct weir__hold *hold = weir__heap_alloc(&region->heap, sizeof(*hold));
    struct weir__hold **bucket = fetch_bucket(region, slot);

    if (hold == NULL)
        return NULL;
    *hold = (struct weir__hold){
        .next = *bucket,
        .slot = slot,
        .offset = weir__entry_offset(entry),
        .move_mark = weir__region_move_mark(region, slot.index),
        .bytes = weir__entry_bytes(entry),
    };
    weir__list_init(&hold->idle);
    weir__list_init(&hold->of_read);
    weir__list_init(&hold->requests);
    *bucket = hold;
    region->fetches.hold_count++;
    return hold;
}

static void fetch_add_bytes(struct weir_region *region, const struct fetch_read *read,
                            int64_t bytes)
{
    region->fetches.bytes += (uint64_t)bytes;
    region->fetches.peak_bytes = weir__max(region->fetches.peak_bytes, region->fetches.bytes);
    if (read->piece != NULL)
        region->fetches.piece_bytes += (uint64_t)bytes;
    weir__word_store(&weir__region_figures(region)->fetched_bytes, region->fetches.bytes);
}

static void fetch_let_go(struct weir_region *region, struct fetch_read *read)
{
    WEIR_ASSERT(read->user_count > 0);
    if (--read->user_count > 0)
        return;

    weir__list_remove(&read->link);
    if (read->is_staged)
        region->fetches.staged_bytes -= read->buffer_bytes;
    if (read->buffer != NULL) {
        weir__arena_free(&region->fetches.arena, read->buffer, read->buffer_bytes);
        fetch_add_bytes(region, read, -(int64_t)read->buffer_bytes);
    }
    weir__heap_free(&region->heap, read, sizeof(*read));
}

static void fetch_drop_hold(struct weir_region *region, struct weir__hold *hold)
{
    struct weir__hold **at = fetch_bucket(region, hold->slot);

    WEIR_ASSERT(weir__list_is_empty(&hold->requests));
    WEIR_ASSERT(hold->pin_count == 0 && hold->keep_count == 0);

    while (*at != hold)
        at = &(*at)->next;
    *at = hold->next;
    region->fetches.hold_count--;
    weir__list_remove(&hold->idle);
    weir__list_remove(&hold->of_read);
    if (hold->read != NULL)
        fetch_let_go(region, hold->read);
    weir__heap_free(&region->heap, hold, sizeof(*hold));
}

/* Nobody pins or keeps it: it lingers (F2), or goes. */
static void fetch_settle(struct weir_region *region, struct weir__hold *hold)
{
    if (hold->pin_count > 0 || hold->keep_count > 0 || hold->build != NULL)
        return;
    if (hold->read != NULL && !hold->read->is_done)
        return;
    if (hold->is_stale || hold->read == NULL) {
        fetch_drop_hold(region, hold);
        return;
    }
    weir__list_remove(&hold->idle);
    weir__list_append(&region->fetches.idle, &hold->idle);
}

/* ---- Reads -------------------------------------------------------------- */

static char *fetch_data(const struct weir__hold *hold)
{
    return hold->read->buffer + (hold->offset - hold->read->offset);
}

/* The disk may not have them yet, and perhaps never will. */
void weir__fetches_overlay(const struct weir_region *region, uint64_t offset, uint64_t bytes,
                           char *to)
{
    uint64_t end = offset + bytes;

    for (uint64_t at = offset; at < end;) {
        uint64_t chunk = weir__chunk_of(at);
        uint64_t part_end = weir__min(end, (chunk + 1) * LAYOUT_CHUNK_BYTES);
        if (weir__chunk_is_resident(weir__chunk_state(&region->chunks, chunk)))
            memcpy(to + (at - offset), region->store.base + at, part_end - at);
        at = part_end;
    }
}

static int fetch_verify(const struct weir_region *region, const struct weir__hold *hold)
{
    uint64_t sum = region->slots.sums[hold->slot.index];
    const struct weir__entry *entry = weir__region_entry(region, hold->slot.index);

    weir__fetches_overlay(region, hold->offset, hold->bytes, fetch_data(hold));

    if (sum == 0 || sum == weir__sum(entry, fetch_data(hold)))
        return 0;
    return -EBADMSG;
}

static void fetch_answer(struct weir_region *region, struct weir__hold *hold, int error)
{
    while (!weir__list_is_empty(&hold->requests)) {
        struct fetch_request *request =
            WEIR_CONTAINER_OF(hold->requests.next, struct fetch_request, link);
        weir__list_remove(&request->link);
        weir__list_append(&region->fetches.told, &request->link);
        request->error = error;
        if (error == 0) {
            request->hold = hold;
            hold->keep_count++;
        }
    }
}

/* The cleaner gave the item another place while it was read: what came may be anything. */
static bool fetch_has_moved(const struct weir_region *region, const struct weir__hold *hold)
{
    return hold->offset != weir__entry_offset(weir__region_entry(region, hold->slot.index)) ||
           hold->move_mark != weir__region_move_mark(region, hold->slot.index);
}

static struct fetch_read *fetch_new_read(struct weir_region *region, struct weir__list *pending,
                                         uint64_t offset, uint64_t end);

/* @hold, so far of @read, has a read of its own now; false: there is no memory. */
static bool fetch_alone(struct weir_region *region, struct weir__hold *hold,
                        struct fetch_read *read)
{
    struct fetch_read *own =
        fetch_new_read(region, &region->fetches.pending, hold->offset, hold->offset + hold->bytes);

    if (own == NULL)
        return false;
    weir__list_remove(&hold->of_read);
    weir__list_append(&own->holds, &hold->of_read);
    hold->read = own;
    own->user_count++;
    fetch_let_go(region, read);
    return true;
}

/* What is wrong is wrong with one place of many: each of its holds has a read of its own now. */
static void fetch_split(struct weir_region *region, struct fetch_read *read)
{
    struct weir__list *next;

    for (struct weir__list *at = read->holds.next; at != &read->holds; at = next) {
        struct weir__hold *hold = WEIR_CONTAINER_OF(at, struct weir__hold, of_read);
        next = at->next;
        if (!hold->is_stale && !fetch_has_moved(region, hold))
            (void)fetch_alone(region, hold, read);
    }
}

/*
 * Other bytes than were put, twice: the item is damaged. But one that is here in
 * part may have been read while that part was on its way to the disk: it is not
 * said for good of those.
 */
static void fetch_damaged(struct weir_region *region, const struct weir__hold *hold)
{
    const struct weir__entry *entry = weir__slots_find(&region->slots, hold->slot, EXTENT_LIVE);

    if (entry != NULL && weir__chunk_is_one(hold->offset, weir__entry_space(entry)))
        weir__space_damage(region, hold->slot.index);
}

/* What is known of @hold now that its read is done. */
static int fetch_outcome(const struct weir_region *region, const struct weir__hold *hold, int error)
{
    if (hold->is_stale)
        return -ESTALE;
    if (fetch_has_moved(region, hold))
        return -EAGAIN;
    return error < 0 ? error : fetch_verify(region, hold);
}

static void fetch_read_done(struct weir_region *region, struct fetch_read *read, int error)
{
    struct weir__list *next;

    read->is_done = true;
    for (struct weir__list *at = read->holds.next; at != &read->holds; at = next) {
        struct weir__hold *hold = WEIR_CONTAINER_OF(at, struct weir__hold, of_read);
        int answer = fetch_outcome(region, hold, error);

        next = at->next;
        if (answer == -EBADMSG && !hold->is_again) {
            hold->is_again = true;
            if (fetch_alone(region, hold, read))
                continue;
        }
        if (answer == -EBADMSG)
            fetch_damaged(region, hold);
        if (answer < 0 && answer != -ESTALE && answer != -EAGAIN)
            region->read_error_count++;
        fetch_answer(region, hold, answer);
        if (answer < 0) {
            weir__list_remove(&hold->of_read);
            hold->read = NULL;
            fetch_let_go(region, read);
        }
        fetch_settle(region, hold);
    }
    fetch_let_go(region, read);
}

static void fetch_piece_done(struct weir_region *region, struct fetch_read *read, int error)
{
    read->is_done = true;
    read->piece_result = error < 0 ? error : (int32_t)read->piece_bytes;
    if (error < 0 && error != -ESTALE)
        region->read_error_count++;
    weir__list_append(&region->fetches.told_pieces, &read->link);
}

static void fetch_submit(struct weir_region *region, struct fetch_read *read)
{
    region->fetches.reading_count++;
    weir__ring_read(region->ring, &read->operation, region->store.direct_fd, read->buffer,
                    (uint32_t)read->bytes, read->offset);
}

/* What the next step of a piece reads. */
static void fetch_piece_aim(struct fetch_read *read)
{
    uint64_t end = read->piece_offset + (read->piece_bytes - read->piece_copied);

    read->offset = weir__round_down(read->piece_offset, FETCH_ALIGNMENT);
    read->bytes =
        weir__min(weir__round_up(end, FETCH_ALIGNMENT) - read->offset, read->buffer_bytes);
}

/* A step of a piece has come; false: there are more. */
static bool fetch_piece_step(struct fetch_read *read)
{
    char *to = (char *)read->piece_buffer + read->piece_copied;
    uint64_t skipped = read->piece_offset - read->offset;
    uint64_t bytes = weir__min(read->piece_bytes - read->piece_copied, read->bytes - skipped);

    memcpy(to, read->buffer + skipped, bytes);
    weir__fetches_overlay(read->region, read->piece_offset, bytes, to);
    read->piece_copied += bytes;
    read->piece_offset += bytes;
    fetch_piece_aim(read);
    return read->piece_copied == read->piece_bytes;
}

/* An item that is whole: in the file, or on its way there. */
static const struct weir__entry *fetch_whole(const struct weir_region *region,
                                             struct weir_slot slot)
{
    const struct weir__entry *entry = weir__slots_find(&region->slots, slot, EXTENT_LIVE);

    return entry != NULL ? entry : weir__slots_find(&region->slots, slot, EXTENT_STAGED);
}

/* Of a damaged item pieces can be had. */
static const struct weir__entry *fetch_item(const struct weir_region *region, struct weir_slot slot)
{
    const struct weir__entry *entry = fetch_whole(region, slot);

    return entry != NULL ? entry : weir__slots_find(&region->slots, slot, EXTENT_DAMAGED);
}

static void fetch_piece_came(struct weir_region *region, struct fetch_read *read, int error)
{
    const struct weir__entry *entry = fetch_item(region, read->piece_slot);

    if (entry == NULL) {
        error = -ESTALE; /* also where the file ends before it now */
    } else if (weir__entry_offset(entry) != read->piece_item ||
               weir__region_move_mark(region, read->piece_slot.index) != read->piece_mark) {
        /* The cleaner gave the item another place: this step again. */
        read->piece_offset += weir__entry_offset(entry) - read->piece_item;
        read->piece_item = weir__entry_offset(entry);
        read->piece_mark = weir__region_move_mark(region, read->piece_slot.index);
        fetch_piece_aim(read);
        fetch_submit(region, read);
        return;
    }
    if (error < 0 || fetch_piece_step(read))
        fetch_piece_done(region, read, error);
    else
        fetch_submit(region, read);
}

/* Where the file is not read past the page cache, what a read left there goes again. */
void weir__fetches_uncache(const struct weir_region *region, uint64_t offset, uint64_t bytes)
{
    if (!region->store.direct)
        weir__sys_fadvise(region->store.direct_fd, offset, bytes, POSIX_FADV_DONTNEED);
}

static void fetch_read_complete(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct fetch_read *read = WEIR_CONTAINER_OF(operation, struct fetch_read, operation);
    struct weir_region *region = read->region;

    (void)flags;
    region->fetches.reading_count--;
    weir__fetches_uncache(region, read->offset, read->bytes);
    /* Once more in any case: a direct read can answer with the error of an earlier write. */
    uint32_t again_max = result == -EAGAIN || result == -EINTR ? FETCH_AGAIN_MAX : 1;
    if (result < 0 && read->again_count < again_max) {
        read->again_count++;
        fetch_submit(region, read);
        return;
    }
    /* The range lies inside the file: a short read is a broken one. */
    int error = result < 0 ? result : (uint64_t)result == read->bytes ? 0 : -EIO;
    if (error == 0)
        weir__word_add(&weir__region_figures(region)->read_bytes, read->bytes);
    if (read->piece != NULL) {
        fetch_piece_came(region, read, error);
        return;
    }
    if (error < 0 && read->holds.next != read->holds.previous)
        fetch_split(region, read);
    fetch_read_done(region, read, error);
}

static struct fetch_read *fetch_new_read(struct weir_region *region, struct weir__list *pending,
                                         uint64_t offset, uint64_t end)
{
    struct fetch_read *read = weir__heap_alloc(&region->heap, sizeof(*read));

    if (read == NULL)
        return NULL;
    *read = (struct fetch_read){
        .operation = {fetch_read_complete},
        .region = region,
        .offset = weir__round_down(offset, FETCH_ALIGNMENT),
        .user_count = 1,
    };
    read->bytes = weir__round_up(end, FETCH_ALIGNMENT) - read->offset;
    weir__list_init(&read->holds);
    weir__list_append(pending, &read->link);
    return read;
}

/* The first piece is let in besides, as of buffers there is one for it. */
static bool fetch_may_submit(const struct weir__fetches *fetches, const struct fetch_read *read)
{
    return fetches->reading_count < FETCH_READING_MAX ||
           (read->piece != NULL && fetches->piece_bytes == 0);
}

/*
 * Whether there is memory for @bytes. What is lent comes back: at once what is on
 * disk, else it is written first, and all of it, so that one wait is enough. Where
 * that does not help, for writes fail or all is pinned, the cleaner stands still and
 * has a buffer that it does not need.
 */
static bool fetch_has_memory(struct weir_region *region, uint64_t bytes)
{
    struct weir__fetches *fetches = &region->fetches;

    if (weir__pager_yield(region, bytes))
        return true;
    fetches->peak_bytes = fetches->bytes_max;
    return weir__clean_is_idle(region) && weir__clean_yield(region) &&
           weir__pager_yield(region, bytes);
}

/* Bytes in buffers of holds. */
static uint64_t fetch_held(const struct weir__fetches *fetches)
{
    return fetches->bytes - fetches->piece_bytes;
}

/* Whether @bytes more are within the bound (F1). */
static bool fetch_fits(const struct weir__fetches *fetches, uint64_t bytes, bool is_piece)
{
    uint64_t with_step = fetch_held(fetches) + fetches->step_bytes;

    if (is_piece)
        return fetches->bytes + bytes <= weir__max(fetches->bytes_max, with_step);
    return fetches->bytes + bytes <= fetches->bytes_max && with_step + bytes <= fetches->bytes_max;
}

/* Oldest first, until @bytes have room; false: what is left is pinned or under way. */
static bool fetch_make_room(struct weir_region *region, uint64_t bytes, bool is_piece)
{
    struct weir__fetches *fetches = &region->fetches;
    uint64_t for_piece = fetches->step_bytes - weir__min(fetches->piece_bytes, fetches->step_bytes);
    uint64_t need = bytes + (is_piece ? 0 : for_piece);

    while (!fetch_fits(fetches, bytes, is_piece) || !fetch_has_memory(region, need)) {
        if (weir__list_is_empty(&fetches->idle))
            return false;
        fetch_drop_hold(region, WEIR_CONTAINER_OF(fetches->idle.next, struct weir__hold, idle));
    }
    return true;
}

static void fetch_start_list(struct weir_region *region, struct weir__list *pending)
{
    struct weir__fetches *fetches = &region->fetches;

    while (!weir__list_is_empty(pending)) {
        struct fetch_read *read = WEIR_CONTAINER_OF(pending->next, struct fetch_read, link);

        if (!fetch_may_submit(fetches, read) ||
            !fetch_make_room(region, read->bytes, read->piece != NULL))
            return;
        weir__list_remove(&read->link);
        read->buffer_bytes = read->bytes;
        read->buffer = weir__arena_alloc(&fetches->arena, read->bytes);
        if (read->buffer == NULL) {
            if (read->piece != NULL)
                fetch_piece_done(region, read, -ENOMEM);
            else
                fetch_read_done(region, read, -ENOMEM);
            continue;
        }
        fetch_add_bytes(region, read, (int64_t)read->bytes);
        fetch_submit(region, read);
    }
}

void weir__fetches_start(struct weir_region *region)
{
    struct weir__fetches *fetches = &region->fetches;

    fetch_start_list(region, &fetches->pending);
    /* Of pieces there is always one; more only of what holds leave. */
    if (fetches->piece_bytes == 0 || weir__list_is_empty(&fetches->pending))
        fetch_start_list(region, &fetches->pending_pieces);
}

/* ---- Fetch -------------------------------------------------------------- */

static void fetch_tell(struct weir_region *region, struct fetch_request *request, int error)
{
    request->error = error;
    weir__list_append(&region->fetches.told, &request->link);
}

/* The item is cold and in no buffer: it joins @read if that can reach so far, else begins one. */
static struct fetch_read *fetch_add(struct weir_region *region, struct fetch_request *request,
                                    struct fetch_read *read)
{
    struct weir__hold *hold = fetch_hold(region, request->slot);

    if (hold == NULL) {
        fetch_tell(region, request, -ENOMEM);
        return read;
    }

    uint64_t end = hold->offset + hold->bytes;
    uint64_t reach = read == NULL ? 0 : weir__round_up(end, FETCH_ALIGNMENT) - read->offset;
    uint64_t coalesce_max = weir__min(FETCH_COALESCE_MAX, region->fetches.bytes_min / 2);
    bool joins = read != NULL && hold->offset <= read->offset + read->bytes + FETCH_GAP_MAX &&
                 reach <= coalesce_max;
    if (joins)
        read->bytes = weir__max(read->bytes, reach);
    else
        read = fetch_new_read(region, &region->fetches.pending, hold->offset, end);
    if (read == NULL) {
        fetch_drop_hold(region, hold);
        fetch_tell(region, request, -ENOMEM);
        return NULL;
    }
    hold->read = read;
    read->user_count++;
    weir__list_append(&read->holds, &hold->of_read);
    weir__list_append(&hold->requests, &request->link);
    return read;
}

/* Who answers @request: a read under way, one that begins now, or the next poll. */
static struct fetch_read *fetch_place(struct weir_region *region, struct fetch_request *request,
                                      struct fetch_read *read)
{
    const struct weir__entry *entry = fetch_whole(region, request->slot);

    if (entry == NULL) {
        fetch_tell(region, request, weir__slots_lost(&region->slots, request->slot));
        return read;
    }
    struct weir__hold *hold = fetch_find(region, request->slot);
    if (hold != NULL && hold->read != NULL && !hold->read->is_done) {
        weir__list_append(&hold->requests, &request->link);
        return read;
    }
    if (hold != NULL || weir__region_is_resident(region, entry)) {
        fetch_tell(region, request, 0);
        return read;
    }
    return fetch_add(region, request, read);
}

struct fetch_order {
    uint64_t offset;
    size_t index;
};

static int fetch_compare(const void *a, const void *b)
{
    const struct fetch_order *first = a;
    const struct fetch_order *second = b;

    return first->offset < second->offset ? -1 : first->offset > second->offset;
}

static void fetch_free_requests(struct weir_region *region, struct weir__list *list)
{
    while (!weir__list_is_empty(list)) {
        struct fetch_request *request = WEIR_CONTAINER_OF(list->next, struct fetch_request, link);
        weir__list_remove(&request->link);
        if (request->hold != NULL)
            request->hold->keep_count--;
        weir__heap_free(&region->heap, request, sizeof(*request));
    }
}

int weir_region_fetch(struct weir_region *region, const struct weir_slot *slots, size_t slot_count,
                      weir_fetch_fn *done, void *context)
{
    struct fetch_order order[FETCH_SLOT_COUNT];
    struct weir__list requests;
    struct fetch_read *read = NULL;

    WEIR_ASSERT(pthread_equal(region->owner, pthread_self()));
    if (slots == NULL || done == NULL || slot_count == 0 || slot_count > FETCH_SLOT_COUNT)
        return -EINVAL;

    for (size_t i = 0; i < slot_count; i++) {
        const struct weir__entry *entry = fetch_whole(region, slots[i]);
        /* Also if it is in memory now: it may be cold when it is told. */
        if (entry != NULL && weir__entry_bytes(entry) > weir__fetches_item_max(region))
            return -EFBIG;
        order[i] = (struct fetch_order){entry != NULL ? weir__entry_offset(entry) : 0, i};
    }
    qsort(order, slot_count, sizeof(order[0]), fetch_compare);

    weir__list_init(&requests);
    for (size_t i = 0; i < slot_count; i++) {
        struct fetch_request *request = weir__heap_alloc(&region->heap, sizeof(*request));
        if (request == NULL) {
            fetch_free_requests(region, &requests);
            return -ENOMEM;
        }
        *request = (struct fetch_request){
            .slot = slots[order[i].index],
            .done = done,
            .context = context,
        };
        weir__list_append(&requests, &request->link);
    }
    region->fetch_count += slot_count;
    while (!weir__list_is_empty(&requests)) {
        struct fetch_request *request =
            WEIR_CONTAINER_OF(requests.next, struct fetch_request, link);
        weir__list_remove(&request->link);
        read = fetch_place(region, request, read);
    }
    weir__fetches_start(region);
    return 0;
}

/* Where @bytes of an item lie in memory; NULL: not all of them do. */
static const char *fetch_here(const struct weir_region *region, struct weir_slot slot,
                              const struct weir__entry *entry, uint64_t offset, uint64_t bytes)
{
    uint64_t at = weir__entry_offset(entry) + offset;

    if (bytes > 0 && weir__chunks_are_resident(&region->chunks, at, bytes))
        return region->store.base + at;
    const char *data = weir__fetches_at(region, slot);
    return data != NULL ? data + offset : NULL;
}

int weir_region_fetch_into(struct weir_region *region, struct weir_slot slot, uint64_t offset,
                           void *buffer, size_t bytes, struct weir_operation *operation)
{
    const struct weir__entry *entry = fetch_item(region, slot);

    WEIR_ASSERT(pthread_equal(region->owner, pthread_self()));
    if (entry == NULL)
        return -ESTALE;
    uint64_t length = weir__entry_bytes(entry);
    if (operation == NULL || bytes > INT32_MAX || offset > length || bytes > length - offset)
        return -EINVAL;

    uint64_t at = weir__entry_offset(entry) + offset;
    struct fetch_read *read =
        fetch_new_read(region, &region->fetches.pending_pieces, at, at + bytes);
    if (read == NULL)
        return -ENOMEM;
    read->bytes = weir__min(read->bytes, region->fetches.step_bytes);
    read->piece = operation;
    read->piece_slot = slot;
    read->piece_buffer = buffer;
    read->piece_item = weir__entry_offset(entry);
    read->piece_mark = weir__region_move_mark(region, slot.index);
    read->piece_offset = at;
    read->piece_bytes = bytes;
    const char *here = fetch_here(region, slot, entry, offset, bytes);
    if (bytes == 0 || here != NULL) {
        weir__list_remove(&read->link);
        if (bytes > 0)
            memcpy(buffer, here, bytes);
        read->is_done = true;
        read->piece_result = (int32_t)bytes;
        weir__list_append(&region->fetches.told_pieces, &read->link);
        return 0;
    }
    weir__fetches_start(region);
    return 0;
}

/* ---- Telling ------------------------------------------------------------ */

static int fetch_look(struct weir_region *region, const struct fetch_request *request)
{
    const void *data;

    if (fetch_whole(region, request->slot) == NULL)
        return weir__slots_lost(&region->slots, request->slot); /* also if its read failed before */
    if (request->error < 0)
        return request->error;
    return weir_region_at(region, request->slot, &data, NULL);
}

/* One request; false: it was cold again and waits for a read now. */
static bool fetch_tell_one(struct weir_region *region, struct fetch_request *request)
{
    struct weir__hold *hold = request->hold;
    int result = fetch_look(region, request);

    if (result == -EAGAIN) { /* cold again, or moved while it was read */
        WEIR_ASSERT(hold == NULL);
        fetch_place(region, request, NULL);
        return false;
    }
    region->delivers = true;
    request->done(request->context, request->slot, result);
    region->delivers = false;
    if (hold != NULL) {
        hold->keep_count--;
        fetch_settle(region, hold);
    }
    weir__heap_free(&region->heap, request, sizeof(*request));
    return true;
}

/* What was not used for a window or two is lent to chunks, its memory as well. */
static void fetch_watch(struct weir_region *region)
{
    struct weir__fetches *fetches = &region->fetches;
    uint64_t now_ns = weir__clock_coarse_ns();

    if (weir__fetches_recent(region) == 0 || now_ns - fetches->window_ns < FETCH_WINDOW_NS)
        return;
    uint64_t recent = weir__fetches_recent(region);
    fetches->window_ns = now_ns;
    fetches->peak_before = fetches->peak_bytes;
    fetches->peak_bytes = fetches->bytes;
    if (region->pager.writes_back && weir__bound_is_fixed(region) &&
        weir__fetches_recent(region) < recent)
        weir__arena_give_back(&fetches->arena);
}

int weir__fetches_advance(struct weir_region *region)
{
    struct weir__fetches *fetches = &region->fetches;
    struct weir__list round;
    int count = 0;

    fetch_watch(region);
    /* What a callback asks for is told in the next round. */
    weir__list_init(&round);
    while (!weir__list_is_empty(&fetches->told)) {
        struct weir__list *first = fetches->told.next;
        weir__list_remove(first);
        weir__list_append(&round, first);
    }
    while (!weir__list_is_empty(&round)) {
        struct fetch_request *request = WEIR_CONTAINER_OF(round.next, struct fetch_request, link);
        weir__list_remove(&request->link);
        count += fetch_tell_one(region, request);
    }

    while (!weir__list_is_empty(&fetches->told_pieces)) {
        struct weir__list *first = fetches->told_pieces.next;
        weir__list_remove(first);
        weir__list_append(&round, first);
    }
    while (!weir__list_is_empty(&round)) {
        struct fetch_read *read = WEIR_CONTAINER_OF(round.next, struct fetch_read, link);
        struct weir_operation *theirs = read->piece;
        int32_t result = read->piece_result;

        if (fetch_item(region, read->piece_slot) == NULL)
            result = -ESTALE;
        weir__list_remove(&read->link);
        fetch_let_go(region, read);
        region->delivers = true;
        theirs->complete(theirs, result, 0);
        region->delivers = false;
        count++;
    }
    weir__fetches_start(region);
    return count;
}

/* Blocking, around the ring, in steps that need no large buffer. */
int weir__fetches_read(struct weir_region *region, uint64_t offset, void *buffer, uint64_t bytes)
{
    uint64_t step_max =
        weir__min(FETCH_STEP_BYTES, weir__round_up(bytes, FETCH_ALIGNMENT)) + FETCH_ALIGNMENT;
    char *step = weir__arena_alloc(&region->fetches.arena, step_max);
    char *to = buffer;
    int r = 0;

    if (step == NULL)
        return -ENOMEM;
    while (bytes > 0) {
        uint64_t from = weir__round_down(offset, FETCH_ALIGNMENT);
        uint64_t count = weir__min(bytes, step_max - (offset - from));
        uint64_t read_bytes = weir__round_up(offset + count, FETCH_ALIGNMENT) - from;
        r = weir__sys_pread_all(region->store.direct_fd, step, read_bytes, from);
        if (r < 0) /* once more: it may have been the error of a write */
            r = weir__sys_pread_all(region->store.direct_fd, step, read_bytes, from);
        weir__fetches_uncache(region, from, read_bytes);
        if (r < 0) {
            region->read_error_count++;
            break;
        }
        memcpy(to, step + (offset - from), count);
        weir__fetches_overlay(region, offset, count, to);
        weir__word_add(&weir__region_figures(region)->read_bytes, read_bytes);
        to += count;
        offset += count;
        bytes -= count;
    }
    weir__arena_free(&region->fetches.arena, step, step_max);
    return r;
}

bool weir__fetches_are_held(const struct weir_region *region, struct weir_slot slot)
{
    const struct weir__hold *hold = fetch_find(region, slot);

    return hold != NULL && (hold->pin_count > 0 || hold->build != NULL);
}

void weir__fetches_read_own(struct weir_region *region, struct weir_operation *operation,
                            char *buffer, uint64_t bytes, uint64_t offset)
{
    weir__ring_read(region->ring, operation, region->store.direct_fd, buffer, (uint32_t)bytes,
                    offset);
}

const void *weir__fetches_at(const struct weir_region *region, struct weir_slot slot)
{
    const struct weir__hold *hold = fetch_find(region, slot);

    if (hold == NULL || hold->is_mapped || hold->read == NULL || !hold->read->is_done)
        return NULL;
    return fetch_data(hold);
}

uint64_t weir__fetches_item_max(const struct weir_region *region)
{
    /* An item begins and ends anywhere in a page. */
    return region->fetches.bytes_min - region->fetches.step_bytes - 2 * FETCH_ALIGNMENT;
}

bool weir__fetches_free(struct weir_region *region, struct weir_slot slot)
{
    struct weir__hold *hold = fetch_find(region, slot);

    if (hold == NULL)
        return false;
    hold->is_stale = true;
    if (hold->pin_count > 0 || hold->is_kept)
        return true;
    fetch_settle(region, hold);
    return false;
}

/* ---- Items that are written out ----------------------------------------- */

static uint64_t fetch_share(const struct weir__fetches *fetches)
{
    return fetches->bytes_max / FETCH_STAGED_PART;
}

/* What lingers of them goes, oldest first, until @bytes more are within their share (F5). */
static bool fetch_share_has(struct weir_region *region, uint64_t bytes)
{
    struct weir__fetches *fetches = &region->fetches;
    uint64_t share = fetch_share(fetches);
    struct weir__list *next;

    if (bytes > share)
        return false;
    for (struct weir__list *at = fetches->staged.next;
         at != &fetches->staged && fetches->staged_bytes + bytes > share; at = next) {
        struct fetch_read *read = WEIR_CONTAINER_OF(at, struct fetch_read, link);
        struct weir__hold *hold = WEIR_CONTAINER_OF(read->holds.next, struct weir__hold, of_read);
        next = at->next;
        if (!weir__list_is_empty(&hold->idle))
            fetch_drop_hold(region, hold);
    }
    return fetches->staged_bytes + bytes <= share;
}

/*
 * Only what is idle: a fetch that waits is first, and nothing is written to make room.
 * Of what was fetched the oldest goes, but nothing that is larger than the share.
 */
bool weir__fetches_may_keep(struct weir_region *region, uint64_t bytes)
{
    struct weir__fetches *fetches = &region->fetches;

    if (!weir__list_is_empty(&fetches->pending) || bytes > weir__fetches_item_max(region) ||
        !fetch_share_has(region, bytes))
        return false;
    while (!fetch_fits(fetches, bytes, false)) {
        if (weir__list_is_empty(&fetches->idle))
            return false;
        struct weir__hold *oldest = WEIR_CONTAINER_OF(fetches->idle.next, struct weir__hold, idle);
        if (oldest->read->buffer_bytes > fetch_share(fetches))
            return false;
        fetch_drop_hold(region, oldest);
    }
    if (weir__pager_spares(region, bytes))
        return true;
    /* It is lent: so much of it is to come back (F4). */
    fetches->peak_bytes = weir__max(fetches->peak_bytes, fetches->bytes + bytes);
    return false;
}

char *weir__fetches_keep(struct weir_region *region, struct weir_slot slot, uint64_t offset,
                         uint64_t bytes)
{
    struct weir__fetches *fetches = &region->fetches;
    struct fetch_read *read = fetch_new_read(region, &fetches->staged, offset, offset + bytes);

    WEIR_ASSERT(offset % FETCH_ALIGNMENT == 0);
    if (read == NULL)
        return NULL;
    struct weir__hold *hold = fetch_hold(region, slot);
    char *buffer = hold != NULL ? weir__arena_alloc(&fetches->arena, read->bytes) : NULL;
    if (buffer == NULL) {
        if (hold != NULL)
            fetch_drop_hold(region, hold);
        fetch_let_go(region, read);
        return NULL;
    }
    read->buffer = buffer;
    read->buffer_bytes = read->bytes;
    read->is_done = true;
    read->is_staged = true;
    fetches->staged_bytes += read->bytes;
    fetch_add_bytes(region, read, (int64_t)read->bytes);
    weir__list_append(&read->holds, &hold->of_read);
    hold->bytes = bytes;
    hold->read = read;
    hold->keep_count = 1;
    hold->is_kept = true;
    return buffer;
}

void weir__fetches_unkeep(struct weir_region *region, struct weir_slot slot)
{
    struct weir__hold *hold = fetch_find(region, slot);

    WEIR_CHECK(hold != NULL && hold->is_kept && hold->keep_count > 0);

    bool is_free = hold->is_stale && hold->pin_count == 0; /* else with the last unpin */
    hold->keep_count--;
    hold->is_kept = false;
    fetch_settle(region, hold);
    if (is_free)
        weir__sync_release(region, slot.index);
}

/* ---- Pins --------------------------------------------------------------- */

int weir_region_pin(struct weir_region *region, struct weir_slot slot, const void **ret_data,
                    size_t *ret_bytes)
{
    const void *data;
    size_t bytes;
    int r = weir_region_at(region, slot, &data, &bytes);

    if (r < 0)
        return r;

    struct weir__hold *hold = fetch_find(region, slot);
    if (hold == NULL)
        hold = fetch_hold(region, slot);
    if (hold == NULL)
        return -ENOMEM;
    if (hold->pin_count++ == 0) {
        weir__list_remove(&hold->idle);
        hold->is_mapped = hold->read == NULL || !hold->read->is_done;
        weir__word_add(&weir__region_figures(region)->pinned_bytes, bytes);
        hold->mapped_offset = weir__entry_offset(weir__region_entry(region, slot.index));
        if (hold->is_mapped)
            weir__chunks_pin(&region->chunks, hold->mapped_offset, weir__extent_space(bytes));
        region->pin_count++;
        region->fetched_pin_count += !hold->is_mapped;
    }
    data = hold->is_mapped ? region->store.base + hold->mapped_offset : fetch_data(hold);
    *ret_data = data;
    if (ret_bytes != NULL)
        *ret_bytes = bytes;
    return 0;
}

void weir_region_unpin(struct weir_region *region, struct weir_slot slot)
{
    struct weir__hold *hold = fetch_find(region, slot);

    WEIR_ASSERT(pthread_equal(region->owner, pthread_self()));
    WEIR_CHECK(hold != NULL && hold->pin_count > 0);

    if (--hold->pin_count > 0)
        return;
    weir__word_add(&weir__region_figures(region)->pinned_bytes, -hold->bytes);
    region->pin_count--;
    weir__clean_look_again(region, weir__region_entry(region, slot.index));
    bool is_free = hold->is_stale && !hold->is_kept;
    region->fetched_pin_count -= !hold->is_mapped;
    if (hold->is_mapped)
        weir__chunks_unpin(&region->chunks, hold->mapped_offset, weir__extent_space(hold->bytes));
    hold->is_mapped = false;
    fetch_settle(region, hold);
    if (is_free)
        weir__sync_release(region, slot.index);
}

/* ---- Items under construction ------------------------------------------- */

int weir__build_begin(struct weir_region *region, struct weir_slot slot, uint64_t bytes)
{
    struct weir__hold *hold = fetch_hold(region, slot);

    if (hold == NULL)
        return -ENOMEM;
    hold->bytes = bytes;
    hold->build = weir__heap_alloc_aligned(&region->heap, sizeof(*hold->build), 64);
    if (hold->build == NULL) {
        fetch_drop_hold(region, hold);
        return -ENOMEM;
    }
    XXH3_64bits_reset(&hold->build->sum);
    hold->build->given_bytes = 0;
    hold->build->written_bytes = 0;
    hold->build->open_chunk = weir__chunk_of(hold->offset);
    region->chunks.table[hold->build->open_chunk].open++;
    return 0;
}

uint64_t weir__build_written(const struct weir_region *region, struct weir_slot slot)
{
    const struct weir__hold *hold = fetch_find(region, slot);

    WEIR_CHECK(hold != NULL && hold->build != NULL);
    return hold->build->written_bytes;
}

uint64_t weir__build_given(const struct weir_region *region, struct weir_slot slot)
{
    const struct weir__hold *hold = fetch_find(region, slot);

    WEIR_CHECK(hold != NULL && hold->build != NULL);
    return hold->build->given_bytes;
}

void weir__build_give(struct weir_region *region, struct weir_slot slot, uint64_t bytes)
{
    fetch_find(region, slot)->build->given_bytes = bytes;
}

void weir__build_wrote(struct weir_region *region, struct weir_slot slot, const void *data,
                       size_t bytes)
{
    struct weir__hold *hold = fetch_find(region, slot);
    struct weir__build *build = hold->build;
    uint64_t last = weir__chunk_of(hold->offset + weir__extent_space(hold->bytes) - 1);

    XXH3_64bits_update(&build->sum, data, bytes);
    build->written_bytes += bytes;
    region->chunks.table[build->open_chunk].open--;
    build->open_chunk = weir__min(weir__chunk_of(hold->offset + build->written_bytes), last);
    region->chunks.table[build->open_chunk].open++;
}

uint64_t weir__build_end(struct weir_region *region, struct weir_slot slot)
{
    struct weir__hold *hold = fetch_find(region, slot);
    const struct weir__entry *entry = weir__region_entry(region, slot.index);
    uint64_t sum = weir__sum_of(weir__word_load(&entry->key), weir__word_load(&entry->tag),
                                XXH3_64bits_digest(&hold->build->sum));

    region->chunks.table[hold->build->open_chunk].open--;
    weir__clean_look_again(region, entry);
    weir__heap_free(&region->heap, hold->build, sizeof(*hold->build));
    hold->build = NULL;
    fetch_drop_hold(region, hold);
    return sum;
}

/* ---- Size --------------------------------------------------------------- */

void weir__fetches_resize(struct weir_region *region, uint64_t bytes_max)
{
    struct weir__fetches *fetches = &region->fetches;

    WEIR_ASSERT(bytes_max >= fetches->bytes_min);
    if (bytes_max == fetches->bytes_max)
        return;
    fetches->bytes_max = bytes_max;
    weir__arena_limit(&fetches->arena, bytes_max);
}

/* With too much in holds there is one more piece than fits, that it may come to an end. */
uint64_t weir__fetches_bound(const struct weir_region *region)
{
    const struct weir__fetches *fetches = &region->fetches;
    uint64_t held = fetch_held(fetches);

    if (held + fetches->step_bytes <= fetches->bytes_max)
        return fetches->bytes;
    return weir__max(fetches->bytes, held + fetches->step_bytes);
}

void weir__fetches_shrink(struct weir_region *region)
{
    struct weir__fetches *fetches = &region->fetches;

    while (weir__fetches_bound(region) > fetches->bytes_max && !weir__list_is_empty(&fetches->idle))
        fetch_drop_hold(region, WEIR_CONTAINER_OF(fetches->idle.next, struct weir__hold, idle));
}

/* ---- Lifecycle ---------------------------------------------------------- */

void weir__fetches_init(struct weir_region *region, uint64_t bytes_max, uint64_t bytes_min)
{
    struct weir__fetches *fetches = &region->fetches;

    weir__arena_open(&fetches->arena, bytes_max, region->wipes);
    fetches->bytes_max = bytes_max;
    fetches->bytes_min = bytes_min;
    fetches->step_bytes =
        weir__min(weir__round_down(bytes_min / 4, FETCH_ALIGNMENT), FETCH_STEP_BYTES);
    weir__list_init(&fetches->pending);
    weir__list_init(&fetches->pending_pieces);
    weir__list_init(&fetches->told);
    weir__list_init(&fetches->told_pieces);
    weir__list_init(&fetches->idle);
    weir__list_init(&fetches->staged);
}

void weir__fetches_deinit(struct weir_region *region)
{
    struct weir__fetches *fetches = &region->fetches;

    WEIR_CHECK(fetches->reading_count == 0);
    fetch_free_requests(region, &fetches->told);
    while (!weir__list_is_empty(&fetches->told_pieces))
        fetch_let_go(region, WEIR_CONTAINER_OF(fetches->told_pieces.next, struct fetch_read, link));
    for (uint32_t i = 0; i < REGION_HOLD_BUCKETS; i++) {
        while (fetches->buckets[i] != NULL) {
            struct weir__hold *hold = fetches->buckets[i];
            WEIR_CHECK(hold->pin_count == 0);
            fetch_free_requests(region, &hold->requests);
            if (hold->build != NULL)
                weir__build_end(region, hold->slot);
            else
                fetch_drop_hold(region, hold);
        }
    }
    WEIR_CHECK(fetches->hold_count == 0);
    while (!weir__list_is_empty(&fetches->pending))
        fetch_let_go(region, WEIR_CONTAINER_OF(fetches->pending.next, struct fetch_read, link));
    while (!weir__list_is_empty(&fetches->pending_pieces))
        fetch_let_go(region,
                     WEIR_CONTAINER_OF(fetches->pending_pieces.next, struct fetch_read, link));
    weir__arena_close(&fetches->arena);
}
