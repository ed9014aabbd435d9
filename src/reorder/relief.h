/* SPDX-License-Identifier: MIT */
#ifndef WEIR_REORDER_RELIEF_H
#define WEIR_REORDER_RELIEF_H

/* relief - what the buffers of one account give when memory is short */

#include "base/list.h"

#include <stdint.h>

struct weir_account;
struct weir__relief;

/* A buffer that can give; embedded in it. */
struct weir__relief_member {
    struct weir__list link;
    struct weir__relief *relief; /* NULL: it is not a member */
};

/* From now on @member is asked when @account is; 0 or -ENOMEM. */
int weir__relief_join(struct weir__relief_member *member, struct weir_account *account);

/* Who is not a member may leave, too. */
void weir__relief_leave(struct weir__relief_member *member);

/*
 * Of intake.c: spill about @bytes. Returns what has come back to the account; *ret_result:
 * 0, or why the region took no more.
 */
uint64_t weir__reorder_relieve(struct weir__relief_member *member, uint64_t bytes, int *ret_result);

#endif
