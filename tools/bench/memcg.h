/* SPDX-License-Identifier: MIT */
#ifndef MEMCG_H
#define MEMCG_H

/*
 * memcg - a memory cgroup of our own (version 1), with a limit
 *
 * Takes root, and the controller not to be taken by version 2. Where no hierarchy
 * of it is mounted one is, below a directory of the caller's, and unmounted again.
 */

#include <stddef.h>
#include <stdint.h>

#define MEMCG_PATH_BYTES 512

struct memcg {
    char path[MEMCG_PATH_BYTES];  /* of the cgroup */
    char mount[MEMCG_PATH_BYTES]; /* what we mounted; empty: nothing */
};

/* 0; or a negative errno, and in @ret_reason, a string that lives for ever, why. */
int memcg_open(struct memcg *memcg, const char *directory, uint64_t limit_bytes,
               const char **ret_reason);

/* This process is in it from now on, and what it touches first is counted there. */
int memcg_enter(const struct memcg *memcg);

/* The most that was ever counted; 0: unknown. */
uint64_t memcg_peak_bytes(const struct memcg *memcg);

/* Nobody may be in it. */
void memcg_close(struct memcg *memcg);

#endif
