/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SERVER_STOCK_H
#define WEIR_SERVER_STOCK_H

/*
 * stock - what commands do to the keys of one core
 */

#include "shard.h"

/* Carry out the call of a request, as far as it gets. */
enum progress stock_run(struct shard *shard, struct request *request);

/* STAGE_BEGIN, STAGE_PIECE: a payload in pieces. */
enum progress stock_begin(struct shard *shard, struct request *request);
enum progress stock_piece(struct shard *shard, struct request *request);

/* The place of a payload that no command took. */
void stock_drop_place(struct shard *shard, struct request *request);

/* A value loses a reference. */
void stock_unref(struct shard *shard, struct value *value);

/* A value of @bytes for replies only, in the books; NULL: no memory. */
struct value *stock_make_loose(struct shard *shard, size_t bytes);

/* Looks at some keys for those that have expired, frees some that were flushed. */
void stock_sweep(struct shard *shard);

/* Frees everything, for the end. */
void stock_clear(struct shard *shard);

#endif
