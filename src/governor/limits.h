/* SPDX-License-Identifier: MIT */
#ifndef WEIR_GOVERNOR_LIMITS_H
#define WEIR_GOVERNOR_LIMITS_H

/* limits - how much memory this process may have at most, as the machine says */

#include <stdint.h>

/*
 * The smallest of @ram_bytes and of the memory limits of this process's cgroups
 * (v2 and v1) and of all cgroups above them. @root stands before every path:
 * "" is the machine, tests give a tree of their own.
 */
uint64_t weir__limits_bytes(const char *root, uint64_t ram_bytes);

#endif
