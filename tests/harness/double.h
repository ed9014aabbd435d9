/* SPDX-License-Identifier: MIT */
#ifndef WEIR_TESTS_DOUBLE_H
#define WEIR_TESTS_DOUBLE_H

/*
 * double - a region and an account that do what the test says
 *
 * They stand in for the real ones behind the same headers, at link time: a
 * program that links this file gets no other. The region calls back in no useful
 * order, and on request it is as unkind as its contract allows: what was fetched
 * and not pinned is gone with the next fetch or poll.
 */

#include <weir/governor.h>
#include <weir/region.h>

#include <stdbool.h>
#include <stdint.h>

#define DOUBLE_RECLAIMERS_MAX 8

struct double_slot {
    struct weir_label label;
    char *data;
    uint64_t bytes;
    uint64_t written;
    uint32_t generation; /* odd: live */
    uint32_t pins;
    bool committed;
    bool cold;
    bool fetched; /* in memory although it is cold */
    bool zombie;  /* freed while pinned */
};

struct double_request {
    struct weir_slot slot;
    weir_fetch_fn *done;
    void *context;
};

struct weir_region {
    struct double_slot *slots;
    uint32_t slot_count;
    struct double_request *requests;
    size_t request_count;
    uint64_t seed;

    /* The test's to set. */
    uint64_t put_bytes_max;
    uint64_t fetch_bytes_max;
    uint64_t item_bytes_max;
    uint64_t bytes_max;        /* of live items: -EDQUOT beyond */
    uint64_t pinned_bytes_max; /* a fetch that would pass it answers -EAGAIN */
    bool puts_are_cold;
    bool forgets;         /* what was fetched and not pinned is gone with the next fetch or poll */
    int put_result;       /* not 0: what put, alloc and write answer */
    uint32_t writes_left; /* pieces until write answers -EAGAIN, once; 0: no such end */
    int fetch_result;     /* not 0: what fetches are told in poll */
    size_t answers_max;   /* fetches that one poll calls back, the oldest first; 0: all */

    /* The test's to read. */
    uint64_t live_count;
    uint64_t live_bytes;
    uint64_t pinned_bytes;
    uint64_t put_count;
    uint64_t fetch_calls;
    uint64_t fetched_count;
};

struct weir_account {
    /* The test's to set. */
    uint64_t spill_at;   /* charged beyond: WEIR_SPILL */
    uint64_t wait_at;    /* charged beyond: WEIR_WAIT */
    uint64_t hard_at;    /* charged from here on: the longest delay */
    uint64_t never_at;   /* a charge beyond: -EINVAL */
    uint64_t room_bytes; /* a spill of more is told that there is no room */
    uint64_t flush_bytes;
    bool flush_next; /* the next charge that is granted says so */

    /* The test's to read. */
    uint64_t charged_bytes;
    uint64_t forced_bytes; /* ever */
    uint64_t peak_bytes;
    int64_t book_bytes;      /* through the books, and part of charged_bytes */
    uint64_t returned_bytes; /* ever refunded */
    struct weir_reclaimer *reclaimers[DOUBLE_RECLAIMERS_MAX]; /* in the order they came */
    uint32_t reclaimer_count;
};

void double_region_init(struct weir_region *region);

/* All must have been freed; a request may be left. */
void double_region_deinit(struct weir_region *region);

/* What is in memory and not pinned goes cold. */
void double_region_chill(struct weir_region *region);

void double_account_init(struct weir_account *account);

/* The reclaimer of @name is asked for @bytes, and keeps its promise at once; returns that. */
uint64_t double_account_ask(struct weir_account *account, const char *name, uint64_t bytes);

#endif
