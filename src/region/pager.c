/* SPDX-License-Identifier: MIT */
/*
 * pager - which chunks are in memory: written, dropped, brought back
 *
 *      FRESH --store--> DIRTY --> WRITING --> CLEAN --> COLD
 *                         ^                     |         |
 *                         +------ wanted again -+- FILLING+
 *
 * Write-back and drop are two steps. The kernel tells of a failed write once,
 * and not always to the range that failed; so a clean chunk is dropped only when
 * all write-backs that were under way when it became clean have succeeded. After
 * an error everything that is still in memory is dirtied again, and nothing is
 * dropped until all of that has been written.
 *
 *   T1  a chunk in state WRITING has exactly one write, whose checksums are computed
 *       or which is under way
 *   T2  no store goes to a chunk that is WRITING, CLEAN, COLD or FILLING
 *   T3  while suspect_count > 0 nothing is dropped
 *   T4  a chunk in which an item is filled in place is neither written nor renewed
 *   T5  nor is one written or given up whose pages are being made ahead of need: the
 *       kernel would make them anew, and nobody would know
 *   T6  a chunk into which an item is written by itself, or that is zeroed through the
 *       ring, stays COLD meanwhile
 */
#include "region/region_state.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/fence.h"

#include <errno.h>
#include <fcntl.h>

#define PAGER_FULL_BYTES (LAYOUT_CHUNK_BYTES / 8 * 7)
#define PAGER_RETRY_NS   UINT64_C(100000000)
#define PAGER_SLOW_NS    UINT64_C(200000000) /* for a chunk: slower than 10 MiB/s */
#define PAGER_SUSPECT    UINT64_MAX /* as the ticket of a chunk that must be written again */
#define PAGER_HOLE_TRIES 8
#define PAGER_LOOK_MAX   64 /* chunks in the wrong state that a choice passes over */
#define PAGER_LEND_BYTES                                                                           \
 (8 * LAYOUT_CHUNK_BYTES)  /* so long before the file is as long as it gets */
#define PAGER_AHEAD_PART 8 /* of the chunks in memory, that are not to be dirty */

/* ---- Dropping ----------------------------------------------------------- */

static bool pager_is_summing(const struct weir__write *write)
{
    return write->chunk != CHUNK_NO && write->ticket == 0;
}

static uint64_t pager_oldest_ticket(const struct weir__pager *pager)
{
    uint64_t oldest = UINT64_MAX;

    for (uint32_t i = 0; i < REGION_WRITE_COUNT; i++)
        if (pager->writes[i].ticket != 0)
            oldest = weir__min(oldest, pager->writes[i].ticket);
    return oldest;
}

bool weir__pager_drop(struct weir_region *region)
{
    struct weir__pager *pager = &region->pager;
    uint64_t oldest = pager_oldest_ticket(pager);

    if (pager->suspect_count > 0) /* T3 */
        return false;
    for (uint32_t i = region->chunks.queues[CHUNK_CLEAN].head; i != 0;
         i = region->chunks.table[i - 1].next) {
        if (region->chunks.table[i - 1].ticket >= oldest)
            return false;
        if (weir__chunk_pins(&region->chunks, i - 1) > 0)
            continue;
        if (weir__store_drop(region, i - 1) < 0)
            return false;
        weir__chunk_turn(&region->chunks, i - 1, CHUNK_COLD);
        return true;
    }
    return false;
}

/* Not where the sum may change: there each part must come down by itself. */
static bool pager_may_lend(const struct weir_region *region)
{
    return region->pager.writes_back && weir__bound_is_fixed(region);
}

/*
 * What fetches do not use is lent while chunks are cleaned: the more may be dirty
 * the more dies unwritten, and each byte written then costs another one moved. Not
 * while much is pinned, for what is pinned cannot be had back.
 */
uint64_t weir__pager_chunks_max(const struct weir_region *region)
{
    uint64_t own = region->chunks.resident_max;

    if (!pager_may_lend(region) || region->chunks.pinned_count > own / 2 ||
        weir__clean_may_grow(region, PAGER_LEND_BYTES))
        return own;
    uint64_t others = region->cleaner.buffer_bytes + weir__fetches_recent(region);
    return weir__max(own, (region->resident_bytes_max - others) / LAYOUT_CHUNK_BYTES);
}

/* Beside @bytes no more is in memory than may be. */
static bool pager_leaves(const struct weir_region *region, uint64_t bytes)
{
    uint64_t chunk_bytes = region->chunks.resident_count * LAYOUT_CHUNK_BYTES;

    return !pager_may_lend(region) ||
           chunk_bytes + region->fetches.bytes + weir__clean_bytes(region) + bytes <=
               region->resident_bytes_max;
}

bool weir__pager_yield(struct weir_region *region, uint64_t bytes)
{
    while (!pager_leaves(region, bytes))
        if (!weir__pager_drop(region) && !weir__growth_take_back(region)) {
            region->pager.wanted = true;
            return false;
        }
    return true;
}

bool weir__pager_spares(struct weir_region *region, uint64_t bytes)
{
    while (!pager_leaves(region, bytes))
        if (!weir__pager_drop(region))
            return false;
    return true;
}

bool weir__pager_has_room(const struct weir_region *region)
{
    return region->pager.suspect_count == 0 &&
           region->chunks.resident_count < weir__pager_chunks_max(region);
}

bool weir__pager_make_room(struct weir_region *region, uint64_t chunk_count)
{
    while (region->chunks.resident_count + chunk_count > weir__pager_chunks_max(region)) {
        if (!weir__pager_drop(region) && !weir__growth_take_back(region)) {
            region->pager.wanted = true;
            region->pager.refused = true;
            return false;
        }
    }
    region->pager.refused = false;
    return true;
}

/* It is as new; its memory, if it had any, went unwritten. */
static void pager_zeroed(struct weir_region *region, uint64_t chunk)
{
    region->pager.cannot_zero = false;
    region->chunks.table[chunk].unfillable = 0;
    weir__chunk_turn(&region->chunks, chunk, CHUNK_FRESH);
    weir__space_wake(region, chunk);
}

static void pager_zero_complete(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct weir__zeroing *zeroing = WEIR_CONTAINER_OF(operation, struct weir__zeroing, operation);
    struct weir_region *region = zeroing->region;
    uint64_t chunk = zeroing->chunk;

    (void)flags;
    WEIR_ASSERT(weir__chunk_state(&region->chunks, chunk) == CHUNK_COLD); /* T6 */
    WEIR_ASSERT(weir__chunk_live(&region->chunks, chunk) == 0);
    zeroing->chunk = CHUNK_NO;
    region->pager.zeroing_count--;
    region->chunks.table[chunk].staged--;
    if (result == 0)
        pager_zeroed(region, chunk);
    else if (weir__chunk_is_aside(&region->chunks, chunk))
        weir__chunk_file(&region->chunks, chunk);
}

/*
 * The kernel waits with it for all that is written past the page cache, so while
 * something is the ring does it; false: it cannot now.
 */
static bool pager_zero_later(struct weir_region *region, uint64_t chunk)
{
    struct weir__pager *pager = &region->pager;

    if (region->stager.under_way_count == 0 ||
        weir__chunk_state(&region->chunks, chunk) != CHUNK_COLD)
        return false;
    for (uint32_t i = 0; i < REGION_ZERO_COUNT; i++) {
        struct weir__zeroing *zeroing = &pager->zeroings[i];
        if (zeroing->chunk != CHUNK_NO)
            continue;
        zeroing->chunk = chunk;
        pager->zeroing_count++;
        region->chunks.table[chunk].staged++;
        weir__ring_fallocate(region->ring, &zeroing->operation, region->store.data_fd,
                             FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, chunk * LAYOUT_CHUNK_BYTES,
                             LAYOUT_CHUNK_BYTES);
        return true;
    }
    return false;
}

/* Its memory goes without being written; where blocks cannot be zeroed it rests. */
void weir__pager_empty(struct weir_region *region, uint64_t chunk)
{
    enum weir__chunk_state state = weir__chunk_state(&region->chunks, chunk);

    if (state != CHUNK_CLEAN && state != CHUNK_COLD)
        return;
    if (weir__chunk_pins(&region->chunks, chunk) > 0 || weir__growth_gives_back(region) ||
        region->chunks.table[chunk].staged > 0) /* T6 */
        return;
    if (pager_zero_later(region, chunk)) {
        weir__clean_forget(region, chunk);
        return;
    }
    if (weir__store_zero(region, chunk) < 0)
        return; /* it rests until it is revived, or becomes a hole */
    weir__clean_forget(region, chunk);
    pager_zeroed(region, chunk);
}

/* ---- Write-back --------------------------------------------------------- */

static bool pager_is_suspect(const struct weir_region *region, uint64_t chunk)
{
    return region->chunks.table[chunk].ticket == PAGER_SUSPECT;
}

void weir__pager_forget_suspect(struct weir_region *region, uint64_t chunk)
{
    if (!pager_is_suspect(region, chunk))
        return;
    region->chunks.table[chunk].ticket = 0;
    if (--region->pager.suspect_count == 0)
        region->pager.error = 0;
}

/*
 * For a moment there are zeroes where its bytes were, and a second copy of them in memory.
 * If the owner is killed then, the next one tells by the checksums which items are whole.
 */
static void pager_renew(struct weir_region *region, uint64_t chunk)
{
    struct weir__figures *figures = weir__region_figures(region);
    struct weir__walk items = {.chunk = chunk};

    if (weir__region_is_named(region))
        (void)weir__space_sum(region, &items, UINT64_MAX);
    weir__fence_release();
    weir__word_store(&figures->renewing, chunk + 1);
    weir__word_add(&figures->move_count, 2);
    weir__fence_release();
    weir__store_renew(region, chunk);
    weir__fence_release();
    weir__word_add(&figures->move_count, 2);
    weir__fence_release();
    weir__word_store(&figures->renewing, 0);
}

static void pager_suspect(struct weir_region *region, uint64_t chunk)
{
    pager_renew(region, chunk);
    if (!pager_is_suspect(region, chunk))
        region->pager.suspect_count++;
    region->chunks.table[chunk].ticket = PAGER_SUSPECT;
    weir__chunk_turn(&region->chunks, chunk, CHUNK_DIRTY);
    weir__space_wake(region, chunk);
}

void weir__pager_doubt(struct weir_region *region, int error)
{
    struct weir__pager *pager = &region->pager;

    region->write_error_count++;
    pager->error = error;
    pager->retry_ns = weir__clock_ns() + PAGER_RETRY_NS;
    for (uint32_t i = 0; i < REGION_WRITE_COUNT; i++)
        pager->writes[i].doubted = pager->writes[i].ticket != 0;
    /* The kernel may have tried to write these by itself, and told only now. */
    weir__growth_doubt(region);
    for (uint32_t i = region->chunks.queues[CHUNK_DIRTY].head; i != 0;
         i = region->chunks.table[i - 1].next) {
        if (region->chunks.table[i - 1].placed > 0) /* T4 */
            region->chunks.table[i - 1].doubted = 1;
        else
            pager_renew(region, i - 1);
    }
    for (uint32_t i = 0; i < REGION_WRITE_COUNT; i++)
        if (pager_is_summing(&pager->writes[i]))
            pager_renew(region, pager->writes[i].chunk);
    while (region->chunks.queues[CHUNK_CLEAN].count > 0)
        pager_suspect(region, region->chunks.queues[CHUNK_CLEAN].head - 1);
}

/*
 * What failed and is not stored anew yet: because it is under way, or filled in
 * place. The kernel may have forgotten that it is newer than the disk.
 */
int weir__pager_in_doubt(const struct weir_region *region)
{
    const struct weir__pager *pager = &region->pager;
    bool is_doubted = false;

    for (uint32_t i = 0; i < REGION_WRITE_COUNT; i++)
        is_doubted |= pager->writes[i].ticket != 0 && pager->writes[i].doubted;
    for (uint32_t i = region->chunks.queues[CHUNK_DIRTY].head; i != 0;
         i = region->chunks.table[i - 1].next)
        is_doubted |= region->chunks.table[i - 1].doubted != 0;
    if (!is_doubted)
        return 0;
    return pager->error < 0 ? pager->error : -EIO;
}

static void pager_failed(struct weir_region *region, uint64_t chunk, int error)
{
    region->pager.error_fresh = error;
    weir__pager_doubt(region, error);
    pager_suspect(region, chunk);
}

static void pager_written(struct weir_region *region, uint64_t chunk)
{
    struct weir__pager *pager = &region->pager;

    pager->wanted = false; /* who still waits says so again */
    weir__word_add(&weir__region_figures(region)->written_bytes, LAYOUT_CHUNK_BYTES);
    weir__pager_forget_suspect(region, chunk);
    region->chunks.table[chunk].ticket = pager->ticket_last;
    weir__chunk_turn(&region->chunks, chunk, CHUNK_CLEAN);
    if (weir__chunk_live(&region->chunks, chunk) == 0)
        weir__pager_empty(region, chunk);
}

static void pager_write_complete(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct weir__write *write = WEIR_CONTAINER_OF(operation, struct weir__write, operation);
    struct weir_region *region = write->region;

    (void)flags;
    uint64_t chunk = write->chunk;

    WEIR_ASSERT(weir__chunk_state(&region->chunks, chunk) == CHUNK_WRITING); /* T1 */
    write->ticket = 0;
    write->chunk = CHUNK_NO;
    region->pager.is_slow = weir__clock_ns() - write->begun_ns >= PAGER_SLOW_NS;
    if (result < 0)
        pager_failed(region, chunk, result);
    else if (write->doubted)
        pager_suspect(region, chunk);
    else
        pager_written(region, chunk);
}

void weir__pager_unplace(struct weir_region *region, uint64_t offset, uint64_t space)
{
    weir__chunks_unplace(&region->chunks, offset, space);
    for (uint64_t i = weir__chunk_of(offset); i <= weir__chunk_of(offset + space - 1); i++) {
        struct weir__chunk *entry = &region->chunks.table[i];
        if (entry->placed > 0 || entry->doubted == 0)
            continue;
        entry->doubted = 0;
        pager_renew(region, i);
    }
}

/* What is above the mark belongs to no extent that could rest: it is never written. */
static bool pager_is_above_mark(const struct weir_region *region, uint64_t chunk)
{
    return chunk * LAYOUT_CHUNK_BYTES >= region->mark_bytes;
}

/* What is left of the chunk of the mark becomes an extent, that it may rest like any other. */
static void pager_raise_mark(struct weir_region *region, uint64_t chunk)
{
    uint64_t end = (chunk + 1) * LAYOUT_CHUNK_BYTES;

    WEIR_ASSERT(!pager_is_above_mark(region, chunk));

    if (end > region->mark_bytes)
        weir__space_release(region, weir__space_bump(region, end - region->mark_bytes));
}

/* It is stored to no more; first come the checksums. */
static void pager_seal(struct weir_region *region, struct weir__write *write, uint64_t chunk)
{
    weir__chunk_turn(&region->chunks, chunk, CHUNK_WRITING);
    pager_raise_mark(region, chunk);
    weir__space_rest(region, chunk);
    write->chunk = chunk;
    write->sums = (struct weir__walk){.chunk = chunk};
    write->doubted = false;
}

/* What is left of the budget; all of it sealed chunks have died in part meanwhile, or wholly. */
static uint64_t pager_write(struct weir_region *region, struct weir__write *write, uint64_t budget)
{
    uint64_t chunk = write->chunk;

    budget = weir__space_sum(region, &write->sums, budget);
    if (!write->sums.is_done)
        return budget;
    write->ticket = ++region->pager.ticket_last;
    write->begun_ns = weir__clock_ns();
    weir__store_write(region, &write->operation, chunk);
    return budget;
}

/*
 * The chunk of the mark is being filled. But a suspect one is written all the
 * same: puts may need new chunks, and get none before nothing is suspect.
 */
static bool pager_may_write(const struct weir_region *region, uint64_t chunk)
{
    if (region->chunks.table[chunk].placed > 0 || /* T4 */
        weir__growth_is_prefaulting(region, chunk) /* T5 */)
        return false;
    if (pager_is_suspect(region, chunk))
        return true;
    if (pager_is_above_mark(region, chunk))
        return !region->pager.cannot_zero;
    return (chunk + 1) * LAYOUT_CHUNK_BYTES <= region->mark_bytes;
}

/*
 * The chunk of the mark, half full as it may be: when all others are pinned or
 * filled in place, an item that does not fit in it would never get another.
 */
static uint64_t pager_choose_mark(const struct weir_region *region)
{
    uint64_t chunk = weir__chunk_of(region->mark_bytes);

    if (!region->pager.refused || region->mark_bytes % LAYOUT_CHUNK_BYTES == 0 ||
        weir__chunk_state(&region->chunks, chunk) != CHUNK_DIRTY ||
        weir__chunk_pins(&region->chunks, chunk) > 0 || region->chunks.table[chunk].open > 0 ||
        weir__growth_is_prefaulting(region, chunk)) /* T5 */
        return CHUNK_NO;
    return chunk;
}

static uint64_t pager_choose_suspect(const struct weir_region *region)
{
    for (uint32_t i = region->chunks.queues[CHUNK_DIRTY].head; i != 0;
         i = region->chunks.table[i - 1].next)
        if (pager_is_suspect(region, i - 1) && pager_may_write(region, i - 1))
            return i - 1;
    return CHUNK_NO;
}

/* One in which nothing is live: it need not be written to go. */
static uint64_t pager_choose_dead(const struct weir_region *region)
{
    uint64_t chunk = weir__chunks_emptiest(&region->chunks, CHUNK_KIND_DIRTY, CHUNK_NO);

    for (uint32_t left = PAGER_LOOK_MAX;
         left > 0 && chunk != CHUNK_NO && region->chunks.table[chunk].fill == 1; left--) {
        if (weir__chunk_live(&region->chunks, chunk) == 0 && pager_may_write(region, chunk))
            return chunk;
        chunk = weir__chunks_emptiest(&region->chunks, CHUNK_KIND_DIRTY, chunk);
    }
    return CHUNK_NO;
}

/* The oldest that is nearly full: one that is a little less full than all others must go, too. */
static uint64_t pager_choose_old(const struct weir_region *region)
{
    uint32_t i = region->chunks.queues[CHUNK_DIRTY].head;

    for (uint32_t left = PAGER_LOOK_MAX; left > 0 && i != 0; left--) {
        if (weir__chunk_live(&region->chunks, i - 1) >= PAGER_FULL_BYTES &&
            pager_may_write(region, i - 1) && region->chunks.table[i - 1].open == 0)
            return i - 1;
        i = region->chunks.table[i - 1].next;
    }
    return CHUNK_NO;
}

/*
 * The chunk to write next. One of which nothing is live; else the oldest that is
 * nearly full, or the fullest: its free space rests from then on. For somebody who
 * waits the fullest in any case, and one that is being filled if there is no other.
 */
static uint64_t pager_choose(const struct weir_region *region, bool urgent)
{
    uint64_t open = CHUNK_NO;
    uint64_t chunk = region->pager.suspect_count > 0 ? pager_choose_suspect(region) : CHUNK_NO;

    if (chunk == CHUNK_NO)
        chunk = pager_choose_dead(region);
    if (chunk == CHUNK_NO)
        chunk = pager_choose_old(region);
    if (chunk != CHUNK_NO)
        return chunk;
    chunk = weir__chunks_fullest(&region->chunks, CHUNK_KIND_DIRTY, CHUNK_NO);
    for (uint32_t left = PAGER_LOOK_MAX; left > 0 && chunk != CHUNK_NO; left--) {
        if (!urgent && weir__chunk_live(&region->chunks, chunk) < PAGER_FULL_BYTES)
            return CHUNK_NO;
        if (pager_may_write(region, chunk)) {
            if (region->chunks.table[chunk].open == 0)
                return chunk;
            open = open == CHUNK_NO ? chunk : open;
        }
        chunk = weir__chunks_fullest(&region->chunks, CHUNK_KIND_DIRTY, chunk);
    }
    if (!urgent)
        return CHUNK_NO;
    return open != CHUNK_NO ? open : pager_choose_mark(region);
}

/* A dirty chunk in which nothing is live gives its memory up without being written. */
static bool pager_forget(struct weir_region *region, uint64_t chunk)
{
    struct weir__pager *pager = &region->pager;

    int r = weir__store_zero(region, chunk);

    pager->cannot_zero = r < 0;
    if (r < 0 && !pager_is_above_mark(region, chunk))
        return false;
    /* Above the mark it stays as it is and is stored to next: what it holds is nobody's. */
    weir__pager_forget_suspect(region, chunk);
    region->chunks.table[chunk].ticket = 0;
    if (r == 0)
        weir__chunk_turn(&region->chunks, chunk, CHUNK_FRESH);
    return true;
}

/*
 * One at a time while the disk is slow: nothing is dropped before all that are under
 * way have succeeded, and puts would have to wait for the last of them.
 */
static struct weir__write *pager_idle_write(struct weir__pager *pager)
{
    struct weir__write *idle = NULL;

    for (uint32_t i = 0; i < REGION_WRITE_COUNT; i++) {
        if (pager->writes[i].chunk == CHUNK_NO)
            idle = &pager->writes[i];
        else if (pager->is_slow)
            return NULL;
    }
    return idle;
}

/*
 * Later is better: what dies in memory need never be written. But room for a few
 * chunks is kept ahead, for a write takes its time. With memory lent half of that
 * will do, also for who waits: puts begin chunks no faster than others are emptied.
 */
static bool pager_should_write(const struct weir_region *region)
{
    const struct weir__pager *pager = &region->pager;

    if (pager->suspect_count > 0)
        return weir__clock_ns() >= pager->retry_ns;
    uint64_t chunks_max = weir__pager_chunks_max(region);
    uint64_t ahead = weir__max(chunks_max / PAGER_AHEAD_PART, 1);
    bool is_wanted = pager->wanted;
    if (chunks_max > region->chunks.resident_max) {
        ahead = (ahead + 1) / 2;
        is_wanted = is_wanted && region->chunks.queues[CHUNK_WRITING].count < ahead;
    }
    uint64_t stored =
        region->chunks.queues[CHUNK_DIRTY].count + region->chunks.queues[CHUNK_FRESH].count;
    return is_wanted || stored + ahead > chunks_max;
}

/* More is dirty than may be in memory from now on: it is written half full as it may be. */
static bool pager_is_over(const struct weir_region *region)
{
    const struct weir__chunk_queue *queues = region->chunks.queues;

    return region->chunks.resident_count >
           weir__pager_chunks_max(region) + queues[CHUNK_WRITING].count +
               queues[CHUNK_CLEAN].count + queues[CHUNK_FRESH].count;
}

/* ---- Coming back --------------------------------------------------------- */

static void pager_revived(struct weir_region *region, uint64_t chunk)
{
    region->pager.revival.count++;
    weir__clean_forget(region, chunk);
    weir__chunk_turn(&region->chunks, chunk, CHUNK_DIRTY);
    weir__space_wake(region, chunk);
}

static void pager_revival_complete(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct weir__revival *revival = WEIR_CONTAINER_OF(operation, struct weir__revival, operation);
    struct weir_region *region = revival->region;

    (void)flags;
    WEIR_ASSERT(weir__chunk_state(&region->chunks, revival->chunk) == CHUNK_FILLING);
    if (result < 0) { /* EFAULT where a store would have raised SIGBUS */
        revival->is_under_way = false;
        region->read_error_count++;
        region->pager.error_fresh = result == -EFAULT ? -EIO : result;
        region->chunks.table[revival->chunk].unfillable =
            result != -EAGAIN && result != -EINTR && result != -ENOMEM;
        weir__store_drop(region, revival->chunk);
        weir__chunk_turn(&region->chunks, revival->chunk, CHUNK_COLD);
        if (weir__chunk_live(&region->chunks, revival->chunk) == 0)
            weir__pager_empty(region, revival->chunk);
        return;
    }
    revival->is_verifying = true;
    revival->items = (struct weir__walk){.chunk = revival->chunk};
}

/* What came back is looked at before anybody gets an address of it. */
static void pager_verify(struct weir_region *region, uint64_t budget)
{
    struct weir__revival *revival = &region->pager.revival;

    weir__space_verify(region, &revival->items, budget);
    if (!revival->items.is_done)
        return;
    revival->is_verifying = false;
    revival->is_under_way = false;
    pager_revived(region, revival->chunk);
}

/* ---- Advancing ----------------------------------------------------------- */

void weir__pager_advance(struct weir_region *region, uint64_t budget)
{
    struct weir__pager *pager = &region->pager;
    struct weir__write *write;

    /* What a named region was opened with is cold, also where all may be in memory. */
    if (!pager->writes_back) {
        if (pager->revival.is_verifying)
            pager_verify(region, budget);
        return;
    }

    /* One write per pass is enough for somebody who waits; more follow with the next dirty chunk. */
    while ((write = pager_idle_write(pager)) != NULL && pager_should_write(region)) {
        if (weir__table_ready(region, region->spare_min) < 0)
            break;
        bool urgent = (pager->wanted && region->chunks.queues[CHUNK_WRITING].count == 0) ||
                      pager_is_over(region);
        uint64_t chunk = pager_choose(region, urgent);
        if (chunk == CHUNK_NO)
            break;
        pager->wanted = false;
        if (weir__chunk_live(&region->chunks, chunk) == 0 && pager_forget(region, chunk))
            continue;
        pager_seal(region, write, chunk);
    }
    for (uint32_t i = 0; i < REGION_WRITE_COUNT; i++)
        if (pager_is_summing(&pager->writes[i]))
            budget = pager_write(region, &pager->writes[i], budget);

    if (pager->revival.is_verifying)
        pager_verify(region, budget);
    if (region->chunks.resident_count >= weir__pager_chunks_max(region))
        weir__pager_drop(region);
}

bool weir__pager_is_busy(const struct weir_region *region)
{
    const struct weir__revival *revival = &region->pager.revival;

    return pager_oldest_ticket(&region->pager) != UINT64_MAX || region->pager.zeroing_count > 0 ||
           (revival->is_under_way && !revival->is_verifying);
}

bool weir__pager_has_sums(const struct weir_region *region)
{
    for (uint32_t i = 0; i < REGION_WRITE_COUNT; i++)
        if (pager_is_summing(&region->pager.writes[i]))
            return true;
    return region->pager.revival.is_verifying;
}

/* ---- Revival ------------------------------------------------------------ */

void weir__pager_revive_chunk(struct weir_region *region, uint64_t chunk)
{
    struct weir__revival *revival = &region->pager.revival;
    enum weir__chunk_state state = weir__chunk_state(&region->chunks, chunk);

    if (state == CHUNK_CLEAN) {
        pager_revived(region, chunk);
        return;
    }
    if (state != CHUNK_COLD || revival->is_under_way ||
        region->chunks.table[chunk].staged > 0 || /* T6 */
        region->chunks.table[chunk].unfillable != 0 || !weir__pager_make_room(region, 1))
        return;
    weir__chunk_turn(&region->chunks, chunk, CHUNK_FILLING);
    revival->chunk = chunk;
    revival->is_under_way = true;
    weir__store_fill(region, &revival->operation, chunk);
}

static bool pager_may_revive(const struct weir_region *region, uint64_t chunk, uint64_t space)
{
    return LAYOUT_CHUNK_BYTES - weir__chunk_live(&region->chunks, chunk) >= space &&
           region->chunks.table[chunk].unfillable == 0 &&
           weir__space_has_hole(region, chunk, space);
}

/* Among the emptiest; then among those that the cleaner gave up. */
static uint64_t pager_choose_hole(const struct weir_region *region, uint64_t space)
{
    const struct weir__chunks *chunks = &region->chunks;
    uint64_t chunk = weir__chunks_emptiest(chunks, CHUNK_KIND_WRITTEN, CHUNK_NO);

    for (uint32_t left = PAGER_HOLE_TRIES; left > 0 && chunk != CHUNK_NO; left--) {
        if (pager_may_revive(region, chunk, space))
            return chunk;
        chunk = weir__chunks_emptiest(chunks, CHUNK_KIND_WRITTEN, chunk);
    }
    for (chunk = 0; chunk < weir__chunk_of(region->store.file_bytes); chunk++)
        if (weir__chunk_is_aside(chunks, chunk) && pager_may_revive(region, chunk, space))
            return chunk;
    return CHUNK_NO;
}

bool weir__pager_revive(struct weir_region *region, uint64_t space)
{
    struct weir__pager *pager = &region->pager;
    bool is_more_soon = pager->zeroing_count > 0 || weir__stage_has_freed(region);

    if (weir__growth_resting(region) < space)
        return is_more_soon;
    if (pager->revival.is_under_way)
        return true;
    /* There was no such hole, and nothing has changed since. */
    if (space >= pager->no_hole_bytes && region->resting_bytes == pager->no_hole_resting_bytes &&
        region->resting_count == pager->no_hole_resting_count)
        return is_more_soon;

    uint64_t chunk = pager_choose_hole(region, space);
    if (chunk == CHUNK_NO) {
        pager->no_hole_bytes = space;
        pager->no_hole_resting_bytes = region->resting_bytes;
        pager->no_hole_resting_count = region->resting_count;
        return is_more_soon;
    }
    weir__pager_revive_chunk(region, chunk); /* if it is written into, not before that has ended */
    return true;
}

/* ---- Lifecycle ---------------------------------------------------------- */

void weir__pager_init(struct weir_region *region)
{
    struct weir__pager *pager = &region->pager;

    pager->no_hole_bytes = UINT64_MAX;
    pager->writes_back = weir__bound_split(region, region->bound.bytes_min).chunk_count <
                         weir__chunk_of(region->bytes_max);
    for (uint32_t i = 0; i < REGION_WRITE_COUNT; i++)
        pager->writes[i] = (struct weir__write){
            .operation = {pager_write_complete},
            .region = region,
            .chunk = CHUNK_NO,
        };
    for (uint32_t i = 0; i < REGION_ZERO_COUNT; i++)
        pager->zeroings[i] = (struct weir__zeroing){
            .operation = {pager_zero_complete},
            .region = region,
            .chunk = CHUNK_NO,
        };
    pager->revival = (struct weir__revival){
        .operation = {pager_revival_complete},
        .region = region,
    };
}
