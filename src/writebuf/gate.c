/* SPDX-License-Identifier: MIT */
/*
 * gate - who is flushed, and when
 *
 *      bytes, rows, age, demand, memory, quiet --> want --> gate --> flushes_max at once
 *                                                            first come, first served
 *
 * A buffer is in the gate at most once, whatever wants it flushed, and a ticket is
 * in the list of its buffer only: one that times out leaves by itself, and nobody
 * counts numbers that could be missed. What is paused or backs off keeps its
 * reasons and queues when that ends.
 *
 * Nothing here is done per record: a poll looks at all buffers only when the clock
 * has reached what one of them waits for, or when memory is short.
 */
#include "writebuf/writebuf_state.h"

#include "base/bits.h"
#include "base/check.h"

#include <weir/governor.h>

#include <errno.h>

/* Between two calls of ready where nothing was done meanwhile. */
#define GATE_READY_NS UINT64_C(1000000)

_Static_assert(sizeof(struct weir__list) == sizeof(((struct weir_writebuf_ticket *)0)->link),
               "a ticket is linked by its own words");

/* ---- The gate ------------------------------------------------------------------- */

static bool gate_may_queue(const struct weir_writebuf *buffer)
{
    return !buffer->is_queued && buffer->flush == NULL && !buffer->is_paused &&
           buffer->retry_ns == 0 && buffer->record_count > 0;
}

void weir__gate_want(struct weir_writebuf *buffer, enum writebuf_reason reason)
{
    struct weir_writebuf_set *set = buffer->set;

    if (buffer->record_count == 0) {
        buffer->reasons = 0;
        return;
    }
    buffer->reasons |= reason;
    if (!gate_may_queue(buffer))
        return;
    buffer->is_queued = true;
    buffer->queued_ns = set->now_ns;
    weir__list_append(&set->gate, &buffer->waiting);
    set->queued_count++;
}

void weir__gate_leave(struct weir_writebuf *buffer)
{
    if (!buffer->is_queued)
        return;
    weir__list_remove(&buffer->waiting);
    buffer->is_queued = false;
    buffer->set->queued_count--;
}

/* ---- Tickets -------------------------------------------------------------------- */

static struct weir__list *ticket_link(struct weir_writebuf_ticket *ticket)
{
    return (struct weir__list *)(void *)ticket->link;
}

static struct weir_writebuf_ticket *ticket_of(struct weir__list *link)
{
    return WEIR_CONTAINER_OF(link, struct weir_writebuf_ticket, link);
}

static void ticket_finish(struct weir_writebuf_set *set, struct weir_writebuf_ticket *ticket,
                          int result)
{
    weir__list_remove(ticket_link(ticket));
    ticket->result = result;
    weir__list_append(&set->finished, ticket_link(ticket));
}

/* Those whose records are committed, or all if it failed. */
void weir__gate_finish(struct weir_writebuf *buffer, int result)
{
    struct weir__list *link = buffer->tickets.next;

    while (link != &buffer->tickets) {
        struct weir_writebuf_ticket *ticket = ticket_of(link);

        link = link->next;
        if (result < 0 || ticket->sequence <= buffer->position)
            ticket_finish(buffer->set, ticket, result);
    }
}

/* Nobody asks for it any more: if nothing else does, it leaves the gate. */
static void gate_forget_demand(struct weir_writebuf *buffer)
{
    if (!weir__list_is_empty(&buffer->tickets))
        return;
    buffer->reasons &= ~(uint32_t)WRITEBUF_FOR_DEMAND;
    if (buffer->reasons == 0)
        weir__gate_leave(buffer);
}

int weir__gate_tell(struct weir_writebuf_set *set)
{
    struct weir__list now = set->finished;
    int count = 0;

    if (weir__list_is_empty(&set->finished))
        return 0;
    /* One that asks again when it is told, and is done at once, waits for the next time. */
    now.next->previous = &now;
    now.previous->next = &now;
    weir__list_init(&set->finished);
    while (!weir__list_is_empty(&now)) {
        struct weir_writebuf_ticket *ticket = ticket_of(now.next);

        weir__list_remove(ticket_link(ticket));
        ticket->buffer = NULL;
        ticket->done(ticket, ticket->result);
        count++;
    }
    return count;
}

void weir_writebuf_flush(struct weir_writebuf *buffer, struct weir_writebuf_ticket *ticket,
                         uint64_t deadline_ns)
{
    struct weir_writebuf_set *set = buffer->set;

    WEIR_ASSERT(weir__writebuf_is_mine(set));

    weir__gate_want(buffer, ticket != NULL ? WRITEBUF_FOR_DEMAND : WRITEBUF_FOR_REQUEST);
    if (ticket == NULL)
        return;
    WEIR_CHECK(ticket->done != NULL && ticket->buffer == NULL);
    ticket->buffer = buffer;
    ticket->sequence = buffer->last_sequence;
    ticket->deadline_ns = deadline_ns;
    weir__list_init(ticket_link(ticket));
    if (buffer->record_count == 0) {
        ticket_finish(set, ticket, 0);
        return;
    }
    weir__list_append(&buffer->tickets, ticket_link(ticket));
    weir__writebuf_due(set, deadline_ns);
}

int weir_writebuf_cancel(struct weir_writebuf *buffer, struct weir_writebuf_ticket *ticket)
{
    WEIR_ASSERT(weir__writebuf_is_mine(buffer->set));

    if (ticket->buffer != buffer)
        return -ENOENT;
    weir__list_remove(ticket_link(ticket));
    ticket->buffer = NULL;
    gate_forget_demand(buffer);
    return 0;
}

/* What wants it flushed now, after a flush. */
void weir__gate_again(struct weir_writebuf *buffer)
{
    const struct weir_writebuf_config *config = &buffer->set->config;
    uint32_t reasons = buffer->reasons & (WRITEBUF_FOR_REQUEST | WRITEBUF_FOR_REST);

    if (!weir__list_is_empty(&buffer->tickets))
        reasons |= WRITEBUF_FOR_DEMAND;
    if (buffer->held_bytes >= config->trigger_bytes)
        reasons |= WRITEBUF_FOR_BYTES;
    if (buffer->record_count >= config->trigger_rows)
        reasons |= WRITEBUF_FOR_ROWS;
    buffer->reasons = 0;
    if (reasons != 0)
        weir__gate_want(buffer, (enum writebuf_reason)reasons);
    if (buffer->record_count > 0 && config->trigger_age_ns != UINT64_MAX)
        weir__writebuf_due(buffer->set, buffer->oldest_ns + config->trigger_age_ns);
}

void weir__gate_stop(struct weir_writebuf *buffer, int result)
{
    weir__gate_leave(buffer);
    if (buffer->flush != NULL)
        weir__flush_leave(buffer->flush);
    weir__gate_finish(buffer, result);
}

static void gate_start(struct weir_writebuf_set *set, struct weir_writebuf *buffer)
{
    struct writebuf_flush *flush = set->flushes;
    uint64_t wait_ns = set->now_ns - buffer->queued_ns;

    while (flush->buffer != NULL)
        flush++;
    weir__gate_leave(buffer);
    set->ever.gate_wait_ns += wait_ns;
    set->ever.gate_wait_ns_max = weir__max(set->ever.gate_wait_ns_max, wait_ns);
    flush->buffer = buffer;
    flush->target_sequence = buffer->last_sequence;
    if (buffer->reasons == WRITEBUF_FOR_REPLAY) {
        struct weir__list *link = buffer->blocks.previous;

        set->ever.replay_count++;
        for (; link != &buffer->blocks; link = link->previous) {
            struct writebuf_block *block = WEIR_CONTAINER_OF(link, struct writebuf_block, link);

            if (!weir_slot_is_none(block->slot)) {
                flush->target_sequence = block->last_sequence;
                break;
            }
        }
    }
    flush->step = buffer->is_position_known ? WRITEBUF_STEP_PLAN : WRITEBUF_STEP_POSITION;
    flush->started_ns = set->now_ns;
    flush->moved_ns = set->now_ns;
    buffer->reasons = 0;
    buffer->flush = flush;
    set->flushing_count++;
    if (set->config.stall_ns_max != UINT64_MAX)
        weir__writebuf_due(set, set->now_ns + set->config.stall_ns_max);
}

/* ---- What time and memory ask for ----------------------------------------------- */

static void gate_expire_tickets(struct weir_writebuf *buffer)
{
    struct weir_writebuf_set *set = buffer->set;
    struct weir__list *link = buffer->tickets.next;
    bool has_expired = false;

    while (link != &buffer->tickets) {
        struct weir_writebuf_ticket *ticket = ticket_of(link);

        link = link->next;
        /* What is under way has begun in time. */
        if (buffer->flush != NULL && ticket->sequence <= buffer->flush->target_sequence)
            continue;
        if (ticket->deadline_ns > set->now_ns) {
            weir__writebuf_due(set, ticket->deadline_ns);
            continue;
        }
        set->ever.timeout_count++;
        has_expired = true;
        ticket_finish(set, ticket, -ETIMEDOUT);
    }
    if (has_expired)
        gate_forget_demand(buffer);
}

static void gate_tick_buffer(struct weir_writebuf *buffer)
{
    struct weir_writebuf_set *set = buffer->set;
    const struct weir_writebuf_config *config = &set->config;

    gate_expire_tickets(buffer);
    if (buffer->flush != NULL) {
        if (config->stall_ns_max != UINT64_MAX)
            weir__writebuf_due(set, buffer->flush->moved_ns + config->stall_ns_max);
        return;
    }
    if (buffer->retry_ns > set->now_ns) {
        weir__writebuf_due(set, buffer->retry_ns);
    } else if (buffer->retry_ns != 0) {
        buffer->retry_ns = 0;
        weir__gate_want(buffer, WRITEBUF_FOR_REST);
    }
    /* Appended before anybody told the time. */
    if (buffer->oldest_ns == 0)
        buffer->oldest_ns = set->now_ns;
    if (buffer->record_count > 0 && config->trigger_age_ns != UINT64_MAX) {
        if (set->now_ns - buffer->oldest_ns >= config->trigger_age_ns)
            weir__gate_want(buffer, WRITEBUF_FOR_AGE);
        else
            weir__writebuf_due(set, buffer->oldest_ns + config->trigger_age_ns);
    }
}

static void gate_tick(struct weir_writebuf_set *set)
{
    if (set->now_ns < set->due_ns)
        return;
    set->due_ns = UINT64_MAX;
    WEIR_LIST_FOREACH (link, &set->buffers)
        gate_tick_buffer(WEIR_CONTAINER_OF(link, struct weir_writebuf, link));
    if (set->config.quiet_ns != UINT64_MAX && set->spilled_bytes > 0 &&
        set->now_ns - set->quiet_since_ns < set->config.quiet_ns)
        weir__writebuf_due(set, set->quiet_since_ns + set->config.quiet_ns);
}

/* The one that holds most of what is short, of those that may queue. */
static struct weir_writebuf *gate_largest(const struct weir_writebuf_set *set, bool is_backlog)
{
    struct weir_writebuf *found = NULL;
    uint64_t found_bytes = 0;

    WEIR_LIST_FOREACH (link, &set->buffers) {
        struct weir_writebuf *buffer = WEIR_CONTAINER_OF(link, struct weir_writebuf, link);
        uint64_t bytes = is_backlog ? buffer->held_bytes : buffer->memory_bytes;

        if (bytes > found_bytes && gate_may_queue(buffer)) {
            found = buffer;
            found_bytes = bytes;
        }
    }
    return found;
}

/* Memory is short: have so much of it flushed as the account asks for, or was asked for. */
static void gate_relieve(struct weir_writebuf_set *set)
{
    uint64_t wanted;
    uint64_t bytes = 0;

    if (!set->is_short && !set->is_refused)
        return;
    wanted = set->config.account != NULL ? weir_account_flush_bytes(set->config.account) : 0;
    wanted = weir__max(wanted, set->demand_bytes);
    set->demand_bytes = 0;
    set->is_short = false;
    WEIR_LIST_FOREACH (link, &set->buffers) {
        struct weir_writebuf *buffer = WEIR_CONTAINER_OF(link, struct weir_writebuf, link);

        if (buffer->is_queued || buffer->flush != NULL)
            bytes += weir__max(buffer->memory_bytes, 1);
    }
    /* Somebody was refused: one flush at least. */
    if (set->is_refused)
        wanted = weir__max(wanted, 1);
    while (bytes < wanted) {
        struct weir_writebuf *buffer = gate_largest(set, set->is_full);

        if (buffer == NULL)
            return;
        weir__gate_want(buffer, WRITEBUF_FOR_MEMORY);
        bytes += weir__max(buffer->memory_bytes, 1);
    }
}

/* Nobody appends and nobody flushes: what was spilled can go now. */
static void gate_replay(struct weir_writebuf_set *set)
{
    struct weir_writebuf *found = NULL;

    if (set->ever.appended_count != set->quiet_count) {
        set->quiet_count = set->ever.appended_count;
        set->quiet_since_ns = set->now_ns;
        return;
    }
    if (set->spilled_bytes == 0 || set->config.quiet_ns == UINT64_MAX || set->queued_count > 0 ||
        set->flushing_count > 0 || set->now_ns - set->quiet_since_ns < set->config.quiet_ns)
        return;
    WEIR_LIST_FOREACH (link, &set->buffers) {
        struct weir_writebuf *buffer = WEIR_CONTAINER_OF(link, struct weir_writebuf, link);

        if (gate_may_queue(buffer) && buffer->spilled_bytes > 0 &&
            (found == NULL || buffer->spilled_bytes > found->spilled_bytes))
            found = buffer;
    }
    if (found != NULL)
        weir__gate_want(found, WRITEBUF_FOR_REPLAY);
}

int weir_writebuf_poll(struct weir_writebuf_set *set, uint64_t now_ns)
{
    int count = 0;

    WEIR_ASSERT(weir__writebuf_is_mine(set));
    WEIR_ASSERT(!set->in_callback);

    set->now_ns = weir__max(set->now_ns, now_ns);
    gate_replay(set);
    gate_tick(set);
    gate_relieve(set);
    while (!weir__list_is_empty(&set->gate) && set->flushing_count < set->config.flushes_max) {
        gate_start(set, WEIR_CONTAINER_OF(set->gate.next, struct weir_writebuf, waiting));
        count++;
    }
    for (uint32_t i = 0; i < set->config.flushes_max && set->flushing_count > 0; i++) {
        if (set->flushes[i].buffer != NULL)
            count += weir__flush_go_on(&set->flushes[i]);
    }
    count += weir__gate_tell(set);
    set->is_busy = count > 0;
    /* What the set has no part in may have changed, but who asks all the time keeps a core busy. */
    if (set->is_refused && (count > 0 || set->now_ns >= set->ready_ns)) {
        set->is_refused = false;
        set->ready_ns = set->now_ns + GATE_READY_NS;
        if (set->config.ready != NULL)
            set->config.ready(set->config.context);
    }
    return count;
}

uint64_t weir_writebuf_due_ns(const struct weir_writebuf_set *set)
{
    WEIR_ASSERT(weir__writebuf_is_mine(set));

    if (set->is_busy || set->is_short || !weir__list_is_empty(&set->finished) ||
        (set->queued_count > 0 && set->flushing_count < set->config.flushes_max))
        return set->now_ns;
    if (set->is_refused)
        return weir__min(set->due_ns, weir__max(set->ready_ns, set->now_ns));
    return set->due_ns;
}
