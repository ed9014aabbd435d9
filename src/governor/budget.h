/* SPDX-License-Identifier: MIT */
#ifndef WEIR_GOVERNOR_BUDGET_H
#define WEIR_GOVERNOR_BUDGET_H

/*
 * budget - the arithmetic of one limit with its levels
 *
 * Pure: no clock, no lock, no memory. Whoever owns a budget keeps its use and
 * its level in one word, asks here what a change means, and publishes the answer
 * with a compare-and-swap:
 *
 *      63                       7   6   5   4        3        2         1   0
 *      | bytes in use, signed   | edition | closed | capped | waiting | level |
 *
 * So a charge sees use, level and queue in one look, and a refund learns from
 * its one subtraction whether anybody has to be told.
 */

#include <weir/governor.h>

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define BUDGET_BYTES_LIMIT  (UINT64_C(1) << 54)
#define BUDGET_DELAY_MAX_NS UINT64_C(10000000)
#define BUDGET_LEVEL_COUNT  4
#define BUDGET_CHANGES_MAX  10 /* in as many dwells */

#define WORD_LEVEL   UINT64_C(3)
#define WORD_WAITING UINT64_C(4)  /* a waiter is queued that wants bytes of this budget */
#define WORD_CAPPED  UINT64_C(8)  /* a waiter is queued that its own account's cap holds */
#define WORD_CLOSED  UINT64_C(16) /* no account has a lease: the use is exact */
#define WORD_EDITION UINT64_C(96) /* of the limits; here, so that a sum for others fails */
#define WORD_SHIFT   7

#define WORD_EDITION_ONE UINT64_C(32)

/*
 * Read by charges while it is changed: whoever read a mixture finds another edition
 * in the word, and his compare-and-swap fails.
 */
struct weir__budget {
    _Atomic uint64_t bytes_max;
    _Atomic uint64_t enter_bytes[BUDGET_LEVEL_COUNT]; /* of a level: begins above; not [CALM] */
    _Atomic uint64_t leave_bytes[BUDGET_LEVEL_COUNT]; /* of a level: ends at or below; [CALM]:
                                                       * below it there are leases again */
    _Atomic uint64_t lease_bytes;                     /* all leases together, at most */
    _Atomic uint64_t dwell_ns;
};

/* What a charge is answered, and the level that follows. The verdict is never WEIR_FLUSH. */
struct weir__plan {
    enum weir_verdict verdict;
    enum weir_level level;
};

static inline enum weir_level weir__word_level(uint64_t word)
{
    return (enum weir_level)(word & WORD_LEVEL);
}

/* What is in use; a word that a racing over-refund took below 0 counts as 0. */
static inline uint64_t weir__word_bytes(uint64_t word)
{
    int64_t bytes = (int64_t)word >> WORD_SHIFT;

    return bytes > 0 ? (uint64_t)bytes : 0;
}

static inline uint64_t weir__word_with_level(uint64_t word, enum weir_level level)
{
    return (word & ~WORD_LEVEL) | (uint64_t)level;
}

/* 0, or -EINVAL. @machine_bytes is what percentages are of; NULL @config: all defaults. */
int weir__budget_init(struct weir__budget *budget, const struct weir_governor_config *config,
                      uint64_t machine_bytes);

/* @to becomes what @from is, field by field. */
void weir__budget_publish(struct weir__budget *to, const struct weir__budget *from);

/*
 * The level after looking downwards: @use_bytes are in use, it has lasted @lasted_ns,
 * and in the last BUDGET_CHANGES_MAX dwells there were @change_count changes.
 */
enum weir_level weir__budget_settle(const struct weir__budget *budget, enum weir_level level,
                                    uint64_t use_bytes, uint64_t lasted_ns, uint32_t change_count);

/* The level after use has grown to @use_bytes. */
enum weir_level weir__budget_raise(const struct weir__budget *budget, enum weir_level level,
                                   uint64_t use_bytes);

/* Whether @bytes more stay at or below hard; nothing fits also where forced bytes are above it. */
static inline bool weir__budget_fits(const struct weir__budget *budget, uint64_t use_bytes,
                                     uint64_t bytes)
{
    return bytes == 0 || (use_bytes <= budget->bytes_max && bytes <= budget->bytes_max - use_bytes);
}

/* @level is settled; @bytes is at most BUDGET_BYTES_LIMIT; @may_spill: the overflow takes it. */
struct weir__plan weir__budget_plan(const struct weir__budget *budget, enum weir_level level,
                                    uint64_t use_bytes, uint64_t bytes, bool may_spill);

/* The same for a charge that something else refuses: a cap, or who came first. */
struct weir__plan weir__budget_refuse(const struct weir__budget *budget, enum weir_level level,
                                      uint64_t use_bytes, uint64_t bytes, bool may_spill);

/* What must go to come down to soft's leave level; 0 in calm. */
uint64_t weir__budget_excess(const struct weir__budget *budget, enum weir_level level,
                             uint64_t use_bytes);

uint64_t weir__budget_delay_ns(const struct weir__budget *budget, uint64_t use_bytes);

#endif
