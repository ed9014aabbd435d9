/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SERVER_STREAM_H
#define WEIR_SERVER_STREAM_H

/*
 * stream - the ordered streams of one core, each a weir_reorder
 */

#include "shard.h"

struct stream;

struct stream *stream_find(struct shard *shard, uint32_t hash, struct slice name);

enum progress stream_push(struct shard *shard, struct request *request);
enum progress stream_pop(struct shard *shard, struct request *request);
enum progress stream_skip(struct shard *shard, struct request *request);
enum progress stream_info(struct shard *shard, struct request *request);

/* Whether @request, were it a push of this sequence, is what the stream waits for. */
bool stream_wants(struct shard *shard, const struct request *request);

/* What is in it is gone; those who wait go on waiting. */
void stream_remove(struct shard *shard, struct stream *stream);
void stream_remove_all(struct shard *shard);

/* A reply has done with the items it took: with those before @count, or with all and the batch. */
void stream_release_some(struct batch *batch, uint32_t count);
void stream_release(struct shard *shard, struct batch *batch);

/* A blocked pop whose client is gone: answered with nothing, if it still waits. */
void stream_cancel(struct shard *shard, struct request *request);

/* Serve pops whose items have come, and those whose time is over. */
void stream_tick(struct shard *shard);

#endif
