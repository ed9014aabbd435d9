/* SPDX-License-Identifier: MIT */
#ifndef WEIR_GOVERNOR_LIMITS_H
#define WEIR_GOVERNOR_LIMITS_H

/* limits - how much memory this process may have at most, as the machine says */

#include <stdint.h>

/* What the machine says about us; 0: it does not say. */
struct weir__outside {
    int error;            /* the first file that was there and could not be read or understood */
    uint64_t limit_bytes; /* as weir__limits_bytes() */
    uint64_t usage_bytes; /* of our own cgroup, page cache included */
    uint64_t rss_bytes;
    uint32_t pressure_some; /* of the last ten seconds, in hundredths of a per cent */
    uint32_t pressure_full;
};

/* Paths as for weir__limits_bytes(). */
void weir__limits_look(const char *root, uint64_t ram_bytes, struct weir__outside *ret_outside);

/*
 * The smallest of @ram_bytes and of the memory limits of this process's cgroups
 * (v2 and v1) and of all cgroups above them; 0: nobody tells. @root stands before
 * every path: "" is the machine, tests give a tree of their own. *ret_error: as in
 * struct weir__outside.
 */
uint64_t weir__limits_bytes(const char *root, uint64_t ram_bytes, int *ret_error);

#endif
