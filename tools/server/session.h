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

/* Fill the reply to INFO; the figures of all shards are there. */
void session_info(struct shard *shard, struct request *request);

#endif
