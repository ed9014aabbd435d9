/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SERVER_CONNECTION_H
#define WEIR_SERVER_CONNECTION_H

/*
 * connection - one client's socket on the ring of its core
 */

#include "shard.h"

#define CONNECTION_NAME_MAX 64

/* Requests of one connection that wait for memory at one owner; the owner's. */
struct lane {
    struct request *first;
    struct request *last;
    uint32_t other_count; /* of these, no WPUSH */
};

/* The lane of @connection at shard @index. */
struct lane *connection_lane(struct connection *connection, uint32_t index);

/* Accept clients on the shard's listener. */
void connection_listen(struct shard *shard);

/* A request came back, on its origin. */
void connection_answered(struct shard *shard, struct request *request);

/* Everything that connections can do now; at the end of each turn. */
void connection_tick(struct shard *shard);

/* Close all of them; they are gone when shard->connection_count is 0. */
void connection_close_all(struct shard *shard);

/* What a session remembers. */
const char *connection_name(const struct connection *connection);
bool connection_set_name(struct connection *connection, struct slice name);
uint64_t connection_id(const struct connection *connection);
void connection_quit(struct connection *connection);

#endif
