/* SPDX-License-Identifier: MIT */
#ifndef WEIR_WORKER_LOAN_H
#define WEIR_WORKER_LOAN_H

/*
 * loan - the part of a region's memory that goes back when the governor asks
 *
 * Of resident_bytes_max the least is part of the account's reserve; the rest is
 * charged while there is room, and given back when there is none.
 */

#include <weir/governor.h>
#include <weir/region.h>

#include <stdbool.h>
#include <stdint.h>

struct weir__loan {
    struct weir_governor *governor; /* NULL: there is none, and all below is 0 */
    struct weir_account *account;
    struct weir_region *region;
    struct weir_reclaimer reclaimer;
    bool is_registered;
    uint64_t account_max;   /* fixed; the account's cap, 0: none */
    uint64_t least_bytes;   /* fixed; in the reserve */
    uint64_t whole_bytes;   /* fixed; resident_bytes_max of the config, or less for a small file */
    uint64_t step_bytes;    /* fixed; by which it grows */
    uint64_t wish_bytes;    /* as the region was told last */
    uint64_t charged_bytes; /* N1; least_bytes included */
    uint64_t given_bytes;   /* ever given back */
    uint64_t grow_ns;       /* not before */
    uint64_t asked_ns;      /* when it was last */
    uint64_t broken_seen;   /* of the reclaimer's broken promises */
    uint32_t turns_left;    /* without a sleep, before it is left to the disk */
    bool is_slow;           /* the last was broken: only what is there is promised */
    bool was_asked;         /* since the last turn */
};

/* What the account of a region's owner keeps for it as a reserve. */
uint64_t weir__loan_reserve(const struct weir_region_config *config);

/* Whether some of its memory may be given back at all. */
bool weir__loan_is_possible(const struct weir_region_config *config);

/* The region has just been opened, with nothing in memory: it has the reserve, and what fits. */
void weir__loan_open(struct weir__loan *loan, struct weir_governor *governor,
                     struct weir_account *account, uint64_t account_max, struct weir_region *region,
                     const struct weir_region_config *config);

/* The region is closed; the account is still there. */
void weir__loan_close(struct weir__loan *loan);

/* Once a turn, after the region's poll; true: another turn brings more back. */
bool weir__loan_advance(struct weir__loan *loan);

/* After the account's poll: whether the governor has asked in it. */
bool weir__loan_was_asked(struct weir__loan *loan);

#endif
