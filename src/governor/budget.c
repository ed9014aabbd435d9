/* SPDX-License-Identifier: MIT */
/*
 * budget - levels that rise by what is wanted and fall by what is used
 *
 *      use   0 ......... soft_leave .. soft .. spill_leave .. spill .. hard
 *      CALM  |---------------------------->|
 *      SOFT              |<------------------------------------->|
 *      SPILL                                   |<------------------------>|
 *      HARD                                              hard_leave |<----|
 *
 * A level that refuses (SPILL, HARD) would never be reached by use alone, for
 * what it refuses is not used. So it begins with the charge that wants to pass
 * it, provided that use is above its leave level: one huge item that finds no
 * room while the rest is calm changes nothing for the others.
 *
 *   B1  a level ends only when use is at or below its leave level, and it has
 *       lasted dwell_ns; then all levels under it that use has left end with it
 *   B2  a plan admits only what stays at or below hard
 *   B3  a level rises at once, however short the one before was
 *   B4  in any ten dwells there are at most ten changes. Rises cannot wait, so a
 *       fall does: it leaves room for itself and for all the rises that may follow
 */
#include "governor/budget.h"

#include "base/bits.h"
#include "base/check.h"

#include <errno.h>

#define BUDGET_PERCENT           60
#define BUDGET_SOFT              80
#define BUDGET_SOFT_LEAVE        70
#define BUDGET_SPILL             90
#define BUDGET_SPILL_LEAVE       85
#define BUDGET_HARD_LEAVE        97
#define BUDGET_LEASES            1
#define BUDGET_POINTS_BETWEEN    2
#define BUDGET_POINTS_TO_LEAVE   1
#define BUDGET_DELAY_STEPS_SHIFT 10

_Static_assert(WEIR_LEVEL_HARD == BUDGET_LEVEL_COUNT - 1, "levels count from calm to hard");
_Static_assert(WEIR_LEVEL_HARD <= WORD_LEVEL, "a level fits its bits");
_Static_assert(BUDGET_BYTES_LIMIT < UINT64_C(1) << (63 - WORD_SHIFT - 1),
               "a limit's worth of granted and of forced bytes fit the word together");

static uint64_t budget_percent_of(uint64_t bytes, uint32_t percent)
{
    return bytes / 100 * percent + bytes % 100 * percent / 100;
}

static uint32_t budget_default(uint32_t percent, uint32_t percent_default)
{
    return percent != 0 ? percent : percent_default;
}

int weir__budget_init(struct weir__budget *budget, const struct weir_governor_config *config,
                      uint64_t machine_bytes)
{
    static const struct weir_governor_config defaults;

    if (config == NULL)
        config = &defaults;

    uint32_t percent = budget_default(config->percent, BUDGET_PERCENT);
    uint32_t soft = budget_default(config->soft_percent, BUDGET_SOFT);
    uint32_t soft_leave = budget_default(config->soft_leave_percent, BUDGET_SOFT_LEAVE);
    uint32_t spill = budget_default(config->spill_percent, BUDGET_SPILL);
    uint32_t spill_leave = budget_default(config->spill_leave_percent, BUDGET_SPILL_LEAVE);
    uint32_t hard_leave = budget_default(config->hard_leave_percent, BUDGET_HARD_LEAVE);

    if (!weir__reserved_is_zero(config->reserved) || percent > 100 ||
        config->pressure_percent > 100)
        return -EINVAL;
    if (soft > 100 || spill > 100 || soft + BUDGET_POINTS_BETWEEN > spill ||
        spill + BUDGET_POINTS_BETWEEN > 100)
        return -EINVAL;
    if (soft_leave > soft - BUDGET_POINTS_TO_LEAVE ||
        spill_leave > spill - BUDGET_POINTS_TO_LEAVE || hard_leave > 100 - BUDGET_POINTS_TO_LEAVE)
        return -EINVAL;

    uint64_t bytes_max =
        config->bytes_max != 0 ? config->bytes_max : budget_percent_of(machine_bytes, percent);

    if (bytes_max == 0 || bytes_max > BUDGET_BYTES_LIMIT)
        return -EINVAL;

    uint64_t lease_bytes = budget_percent_of(bytes_max, BUDGET_LEASES);
    uint64_t soft_leave_bytes = budget_percent_of(bytes_max, soft_leave);

    *budget = (struct weir__budget){
        .bytes_max = bytes_max,
        .enter_bytes = {0, budget_percent_of(bytes_max, soft), budget_percent_of(bytes_max, spill),
                        bytes_max},
        .leave_bytes = {soft_leave_bytes - weir__min(soft_leave_bytes, lease_bytes),
                        soft_leave_bytes, budget_percent_of(bytes_max, spill_leave),
                        budget_percent_of(bytes_max, hard_leave)},
        .lease_bytes = lease_bytes,
        .dwell_ns = config->dwell_ns,
    };
    return 0;
}

void weir__budget_publish(struct weir__budget *to, const struct weir__budget *from)
{
    to->bytes_max = from->bytes_max;
    for (int level = 0; level < BUDGET_LEVEL_COUNT; level++) {
        to->enter_bytes[level] = from->enter_bytes[level];
        to->leave_bytes[level] = from->leave_bytes[level];
    }
    to->lease_bytes = from->lease_bytes;
    to->dwell_ns = from->dwell_ns;
}

enum weir_level weir__budget_settle(const struct weir__budget *budget, enum weir_level level,
                                    uint64_t use_bytes, uint64_t lasted_ns, uint32_t change_count)
{
    enum weir_level before = level;

    if (lasted_ns < budget->dwell_ns)
        return level;
    while (level > WEIR_LEVEL_CALM && use_bytes <= budget->leave_bytes[level])
        level--;
    while (level < before &&
           change_count + 1 + (uint32_t)(WEIR_LEVEL_HARD - level) > BUDGET_CHANGES_MAX) /* B4 */
        level++;
    return level;
}

/* The highest level that @wanted_bytes enters and @use_bytes would not leave at once. */
static enum weir_level budget_reach(const struct weir__budget *budget, enum weir_level level,
                                    uint64_t use_bytes, uint64_t wanted_bytes)
{
    for (int reach = WEIR_LEVEL_HARD; reach > (int)level; reach--) {
        if (wanted_bytes <= budget->enter_bytes[reach] || use_bytes <= budget->leave_bytes[reach])
            continue;
        /* Soft refuses nothing, so nothing but use begins it. */
        if (reach == WEIR_LEVEL_SOFT && use_bytes <= budget->enter_bytes[WEIR_LEVEL_SOFT])
            continue;
        return (enum weir_level)reach;
    }
    return level;
}

enum weir_level weir__budget_raise(const struct weir__budget *budget, enum weir_level level,
                                   uint64_t use_bytes)
{
    return budget_reach(budget, level, use_bytes, use_bytes);
}

struct weir__plan weir__budget_refuse(const struct weir__budget *budget, enum weir_level level,
                                      uint64_t use_bytes, uint64_t bytes, bool may_spill)
{
    return (struct weir__plan){
        .verdict = may_spill ? WEIR_SPILL : WEIR_WAIT,
        .level = budget_reach(budget, level, use_bytes, use_bytes + bytes),
    };
}

struct weir__plan weir__budget_plan(const struct weir__budget *budget, enum weir_level level,
                                    uint64_t use_bytes, uint64_t bytes, bool may_spill)
{
    uint64_t wanted_bytes = use_bytes + bytes;
    bool hard = level == WEIR_LEVEL_HARD || wanted_bytes > budget->bytes_max;
    bool spill = level >= WEIR_LEVEL_SPILL || wanted_bytes > budget->enter_bytes[WEIR_LEVEL_SPILL];

    WEIR_ASSERT(bytes <= BUDGET_BYTES_LIMIT);
    if (hard || (spill && may_spill))
        return weir__budget_refuse(budget, level, use_bytes, bytes, may_spill);

    WEIR_ASSERT(wanted_bytes <= budget->bytes_max); /* B2 */
    return (struct weir__plan){
        .verdict = WEIR_ADMIT,
        .level = weir__budget_raise(budget, level, wanted_bytes),
    };
}

uint64_t weir__budget_excess(const struct weir__budget *budget, enum weir_level level,
                             uint64_t use_bytes)
{
    uint64_t target_bytes = budget->leave_bytes[WEIR_LEVEL_SOFT];

    if (level == WEIR_LEVEL_CALM || use_bytes <= target_bytes)
        return 0;
    return use_bytes - target_bytes;
}

/*
 * The square of the way from soft to hard: it begins without a step, and a
 * producer at the middle pays a quarter.
 */
uint64_t weir__budget_delay_ns(const struct weir__budget *budget, uint64_t use_bytes)
{
    uint64_t soft_bytes = budget->enter_bytes[WEIR_LEVEL_SOFT];

    if (use_bytes <= soft_bytes)
        return 0;
    if (use_bytes >= budget->bytes_max)
        return BUDGET_DELAY_MAX_NS;

    uint64_t way = budget->bytes_max - soft_bytes;
    uint64_t steps;

    /* In 1024ths of the way; of a huge way first divide, of a tiny one first multiply. */
    if (way > UINT64_MAX >> BUDGET_DELAY_STEPS_SHIFT)
        steps = (use_bytes - soft_bytes) / (way >> BUDGET_DELAY_STEPS_SHIFT);
    else
        steps = ((use_bytes - soft_bytes) << BUDGET_DELAY_STEPS_SHIFT) / way;
    return BUDGET_DELAY_MAX_NS * steps * steps >> (2 * BUDGET_DELAY_STEPS_SHIFT);
}
