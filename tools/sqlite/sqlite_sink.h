/* SPDX-License-Identifier: MIT */
#ifndef WEIR_TOOLS_SQLITE_SINK_H
#define WEIR_TOOLS_SQLITE_SINK_H

/*
 * sqlite_sink - a SQLite database as the target of a writebuf
 *
 *      weir_<id>      (key BLOB PRIMARY KEY, value BLOB)   one per buffer
 *      weir_position  (id INTEGER PRIMARY KEY, sequence INTEGER)
 *
 * A batch is one transaction, its position part of it: what is committed is
 * there once, whatever happens between. A database has one writer, so a second
 * batch waits (-EAGAIN) until the first has ended; what it needs of memory and
 * of the region is done meanwhile. stall_ns_max of the set should be longer than
 * the batches of flushes_max buffers.
 *
 * The value of a barrier, if it has one, is SQL that is run in its place: "DELETE
 * FROM weir_7", "ALTER TABLE ...", or several such, with ';' between them.
 */

#include <weir/writebuf.h>

struct sqlite_sink;

/*
 * Open @path, or make it. 0, or a negative errno: -EACCES: not there, or not ours;
 * -EBADMSG: not a database; -EAGAIN: somebody else is writing; -ENOMEM, ...
 */
int sqlite_sink_open(const char *path, struct sqlite_sink **ret_sink);

/* Takes NULL; no batch may be open. */
void sqlite_sink_close(struct sqlite_sink *sink);

/* For weir_writebuf_config; good until close. */
struct weir_writebuf_sink sqlite_sink_functions(struct sqlite_sink *sink);

/* What SQLite said to the last call that failed, for people. */
const char *sqlite_sink_error(struct sqlite_sink *sink);

/* The rows of one buffer, in the order of their keys; 0, what @each says if not 0, or an error. */
int sqlite_sink_rows(struct sqlite_sink *sink, uint64_t id,
                     int (*each)(void *context, const void *key, size_t key_bytes,
                                 const void *value, size_t value_bytes),
                     void *context);

#endif
