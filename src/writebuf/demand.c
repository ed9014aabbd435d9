/* SPDX-License-Identifier: MIT */
/*
 * demand - what a set does when its account is asked for memory
 *
 *      account --- "writebuf flush", 50   begins flushes: it has to be written anyway
 *            `---- "writebuf spill", 100  moves blocks to the region, at once
 *
 * A flush is the cheaper way, but its end is the sink's. So the first promises only
 * where all that is asked for will come soon by what the last batch took, and not
 * twice without a batch in between; otherwise the flushes begin all the same, and
 * the next is asked meanwhile. Nobody waits for a sink that hangs.
 */
#include "writebuf/writebuf_state.h"

#include "base/bits.h"
#include "base/check.h"

#define DEMAND_FLUSH_COST 50u
#define DEMAND_SPILL_COST 100u

/* In one call: half a millisecond of copying. */
#define DEMAND_SPILL_BYTES (UINT64_C(1) << 20)

/* Half of the time that a promise has. */
#define DEMAND_SOON_NS UINT64_C(50000000)

/* What flushes can free: all but what is held up. */
static uint64_t demand_flushable(const struct weir_writebuf_set *set)
{
    uint64_t bytes = 0;

    WEIR_LIST_FOREACH (link, &set->buffers) {
        const struct weir_writebuf *buffer = WEIR_CONTAINER_OF(link, struct weir_writebuf, link);

        if (!weir__writebuf_is_held_up(buffer))
            bytes += buffer->memory_bytes;
    }
    return bytes;
}

/* Whether the sink, in batches like the last, takes @bytes soon. */
static bool demand_is_near(const struct weir_writebuf_set *set, uint64_t bytes)
{
    return set->ever.commit_count > set->promised_commit_count && set->pace_bytes > 0 &&
           set->pace_ns <= DEMAND_SOON_NS / (bytes / set->pace_bytes + 1);
}

static uint64_t demand_flush(struct weir_reclaimer *reclaimer, uint64_t bytes)
{
    struct weir_writebuf_set *set = reclaimer->context;

    WEIR_ASSERT(weir__writebuf_is_mine(set));

    /* The next poll begins them. */
    set->demand_bytes = weir__max(set->demand_bytes, bytes);
    set->is_short = true;
    if (demand_flushable(set) < bytes || !demand_is_near(set, bytes))
        return 0;
    set->promised_commit_count = set->ever.commit_count;
    return bytes;
}

static uint64_t demand_spill(struct weir_reclaimer *reclaimer, uint64_t bytes)
{
    struct weir_writebuf_set *set = reclaimer->context;

    /* Somebody polls the account from a call of the sink: blocks are being walked. */
    if (set->in_callback)
        return 0;
    return weir_writebuf_spill(set, weir__min(bytes, DEMAND_SPILL_BYTES));
}

void weir__demand_open(struct weir_writebuf_set *set)
{
    if (set->config.account == NULL)
        return;
    set->flush_reclaimer = (struct weir_reclaimer){.name = "writebuf flush",
                                                   .cost = DEMAND_FLUSH_COST,
                                                   .reclaim = demand_flush,
                                                   .context = set};
    weir_account_add_reclaimer(set->config.account, &set->flush_reclaimer);
    if (set->config.region == NULL)
        return;
    set->spill_reclaimer = (struct weir_reclaimer){.name = "writebuf spill",
                                                   .cost = DEMAND_SPILL_COST,
                                                   .reclaim = demand_spill,
                                                   .context = set};
    weir_account_add_reclaimer(set->config.account, &set->spill_reclaimer);
}

void weir__demand_close(struct weir_writebuf_set *set)
{
    if (set->config.account == NULL)
        return;
    weir_account_remove_reclaimer(set->config.account, &set->flush_reclaimer);
    if (set->config.region != NULL)
        weir_account_remove_reclaimer(set->config.account, &set->spill_reclaimer);
}
