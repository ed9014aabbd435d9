/* SPDX-License-Identifier: MIT */
/*
 * slot - how entries are handed out
 *
 *      0   1 ........ used_count ........ ready_count ........ count_max
 *      -   | in use, or on the stack | have memory | reserved addresses |
 *
 * An entry that comes free goes onto a stack and is the next to be taken: the
 * stack is an array, so that taking needs no cold link, and entries further
 * down can be prefetched.
 *
 *   S1  the generation of a live slot, or of one freed since a sync, is odd, that
 *       of any other entry even
 *   S2  an entry is on the stack exactly when it is vacant
 *   S3  an entry whose generation is spent is never handed out again
 */
#include "region/slot.h"
