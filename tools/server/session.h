/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SERVER_SESSION_H
#define WEIR_SERVER_SESSION_H

/*
 * session - what a connection answers without asking another core
 */

#include "connection.h"

/* Fill the reply to a command of SCOPE_SESSION. */
void session_answer(struct connection *connection, struct request *request,
                    const struct slice *words, size_t word_count);

/* Room for the figures of all shards, zeroed; NULL: no memory. */
struct value *session_info_begin(struct shard *shard);

/* Fill the reply to INFO; its value has the figures, by shard. */
void session_info(struct shard *shard, struct request *request);

#endif
