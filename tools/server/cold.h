/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SERVER_COLD_H
#define WEIR_SERVER_COLD_H

/*
 * cold - values in the region: how they get there and back
 */

#include "shard.h"

/* The slot of a value, kept until cold_release() whatever becomes of its key; NULL: no memory. */
struct hold *cold_hold(struct shard *shard, struct weir_slot slot, uint32_t bytes);

/* Fill the reply with its bytes: now, or once they were fetched. Takes the hold over. */
enum progress cold_get(struct shard *shard, struct request *request, struct hold *hold);

/* A slot that no key has any more: freed now, or by the last reply that reads it. */
void cold_drop_slot(struct shard *shard, struct weir_slot slot);

/* A reply has done with its hold. */
void cold_release(struct shard *shard, struct hold *hold);

/* STAGE_READ: one piece; answered when it is there. */
void cold_read(struct shard *shard, struct request *request);

/* Ask the region for what replies wait for. */
void cold_fetch(struct shard *shard);

/*
 * Push values out, about @bytes of them but a bounded number at a time;
 * returns how many memory has back. 0: none can go now.
 */
uint64_t cold_push(struct shard *shard, uint64_t bytes);

/* What the governor's flush asks of this turn; whether there is more to do. */
bool cold_flush(struct shard *shard);

#endif
