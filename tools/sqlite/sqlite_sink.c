/* SPDX-License-Identifier: MIT */
/*
 * sqlite_sink - batches as transactions
 *
 * One connection, one transaction at a time, statements prepared per batch. The
 * position is written by the transaction that it speaks of; sequences are kept as
 * signed numbers of the same bits.
 */
#include "sqlite_sink.h"

#include <errno.h>
#include <inttypes.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

struct sqlite_sink {
    sqlite3 *database;
    sqlite3_stmt *put; /* of the batch that is open */
    sqlite3_stmt *remove;
    uint64_t id;
    bool is_open;
    char error[160]; /* of the last call that failed */
};

static int sink_error(int code)
{
    switch (code & 0xff) {
    case SQLITE_OK:
    case SQLITE_DONE:
    case SQLITE_ROW:
        return 0;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return -EAGAIN;
    case SQLITE_FULL:
        return -ENOSPC;
    case SQLITE_NOMEM:
        return -ENOMEM;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return -EBADMSG;
    case SQLITE_PERM:
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
    case SQLITE_AUTH:
        return -EACCES;
    default:
        return -EIO;
    }
}

static int sink_check(struct sqlite_sink *sink, int code)
{
    int r = sink_error(code);

    if (r < 0)
        snprintf(sink->error, sizeof(sink->error), "%s", sqlite3_errmsg(sink->database));
    return r;
}

static int sink_run(struct sqlite_sink *sink, const char *text)
{
    return sink_check(sink, sqlite3_exec(sink->database, text, NULL, NULL, NULL));
}

static int sink_prepare(struct sqlite_sink *sink, const char *form, uint64_t id,
                        sqlite3_stmt **ret_statement)
{
    char text[192];

    snprintf(text, sizeof(text), form, id);
    return sink_check(sink, sqlite3_prepare_v2(sink->database, text, -1, ret_statement, NULL));
}

/* A statement that was bound: run it to its end, and have it ready for the next. */
static int sink_step(struct sqlite_sink *sink, sqlite3_stmt *statement)
{
    int r = sink_check(sink, sqlite3_step(statement));

    sqlite3_reset(statement);
    return r;
}

static int sink_bind(struct sqlite_sink *sink, sqlite3_stmt *statement, int place, const void *data,
                     size_t bytes)
{
    /* No address would be NULL, and NULL is not a blob of no bytes. */
    if (bytes == 0)
        return sink_check(sink, sqlite3_bind_zeroblob(statement, place, 0));
    return sink_check(sink, sqlite3_bind_blob64(statement, place, data, bytes, SQLITE_STATIC));
}

/* ---- The sink ------------------------------------------------------------------- */

/* A batch that could not even be taken back is still to be seen, and must not be believed. */
static int sink_clear(struct sqlite_sink *sink)
{
    if (sink->is_open || sqlite3_get_autocommit(sink->database))
        return 0;
    return sink_run(sink, "ROLLBACK");
}

static int sink_position(void *context, uint64_t id, uint64_t *ret_sequence)
{
    struct sqlite_sink *sink = context;
    sqlite3_stmt *statement;
    int r = sink_clear(sink);

    if (r == 0)
        r = sink_prepare(sink, "SELECT sequence FROM weir_position WHERE id = %" PRId64, id,
                         &statement);
    if (r < 0)
        return r;
    int code = sqlite3_step(statement);
    uint64_t sequence = 0;
    if (code == SQLITE_ROW)
        sequence = (uint64_t)sqlite3_column_int64(statement, 0);
    sqlite3_finalize(statement);
    r = sink_check(sink, code);
    if (r == 0)
        *ret_sequence = sequence;
    return r;
}

static void sink_finalize(struct sqlite_sink *sink)
{
    sqlite3_finalize(sink->put);
    sqlite3_finalize(sink->remove);
    sink->put = NULL;
    sink->remove = NULL;
}

static void sink_end(struct sqlite_sink *sink)
{
    sink_finalize(sink);
    sink->is_open = false;
}

static void sink_abort(void *context, void *batch)
{
    struct sqlite_sink *sink = context;

    (void)batch;
    sink_end(sink);
    if (!sqlite3_get_autocommit(sink->database))
        sink_run(sink, "ROLLBACK");
}

static int sink_make_table(struct sqlite_sink *sink, uint64_t id)
{
    char text[128];

    snprintf(text, sizeof(text),
             "CREATE TABLE IF NOT EXISTS weir_%" PRIu64 " (key BLOB PRIMARY KEY, value BLOB)", id);
    return sink_run(sink, text);
}

static int sink_begin(void *context, uint64_t id, void **ret_batch)
{
    struct sqlite_sink *sink = context;

    if (sink->is_open)
        return -EAGAIN;
    int r = sink_clear(sink);
    if (r == 0)
        r = sink_run(sink, "BEGIN IMMEDIATE");
    if (r < 0)
        return r;
    sink->is_open = true;
    sink->id = id;
    r = sink_make_table(sink, id);
    if (r == 0)
        r = sink_prepare(sink,
                         "INSERT INTO weir_%" PRIu64 " (key, value) VALUES (?1, ?2)"
                         " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                         id, &sink->put);
    if (r == 0)
        r = sink_prepare(sink, "DELETE FROM weir_%" PRIu64 " WHERE key = ?1", id, &sink->remove);
    if (r < 0) {
        sink_abort(sink, NULL);
        return r;
    }
    *ret_batch = sink;
    return 0;
}

static int sink_put(void *context, void *batch, const struct weir_writebuf_record *record)
{
    struct sqlite_sink *sink = context;
    int r = sink_bind(sink, sink->put, 1, record->key, record->key_bytes);

    (void)batch;
    if (r == 0)
        r = sink_bind(sink, sink->put, 2, record->value, record->value_bytes);
    return r == 0 ? sink_step(sink, sink->put) : r;
}

static int sink_remove(void *context, void *batch, const struct weir_writebuf_record *record)
{
    struct sqlite_sink *sink = context;
    int r = sink_bind(sink, sink->remove, 1, record->key, record->key_bytes);

    (void)batch;
    return r == 0 ? sink_step(sink, sink->remove) : r;
}

static int sink_barrier(void *context, void *batch, const struct weir_writebuf_record *record)
{
    struct sqlite_sink *sink = context;
    char *text;
    int r;

    (void)batch;
    if (record->value_bytes == 0)
        return 0;
    /* What is prepared for the old shape would stand in the way of a new one. */
    sink_finalize(sink);
    text = sqlite3_mprintf("%.*s", (int)record->value_bytes, record->value);
    if (text == NULL)
        return -ENOMEM;
    r = sink_run(sink, text);
    sqlite3_free(text);
    /* Asked again it would begin with the first statement: the batch has to, too. */
    return r == -EAGAIN ? -EBUSY : r;
}

static int sink_commit(void *context, void *batch, uint64_t sequence)
{
    struct sqlite_sink *sink = context;
    sqlite3_stmt *statement;
    int r = sink_check(sink,
                       sqlite3_prepare_v2(sink->database,
                                          "INSERT INTO weir_position (id, sequence) VALUES (?1, ?2)"
                                          " ON CONFLICT (id) DO UPDATE SET sequence ="
                                          " excluded.sequence",
                                          -1, &statement, NULL));

    (void)batch;
    if (r < 0)
        return r;
    sqlite3_bind_int64(statement, 1, (sqlite3_int64)sink->id);
    sqlite3_bind_int64(statement, 2, (sqlite3_int64)sequence);
    r = sink_step(sink, statement);
    sqlite3_finalize(statement);
    if (r == 0)
        r = sink_run(sink, "COMMIT");
    if (r == 0)
        sink_end(sink);
    return r;
}

/* ---- Life ----------------------------------------------------------------------- */

struct weir_writebuf_sink sqlite_sink_functions(struct sqlite_sink *sink)
{
    return (struct weir_writebuf_sink){
        .position = sink_position,
        .begin = sink_begin,
        .put = sink_put,
        .remove = sink_remove,
        .barrier = sink_barrier,
        .commit = sink_commit,
        .abort = sink_abort,
        .context = sink,
    };
}

int sqlite_sink_open(const char *path, struct sqlite_sink **ret_sink)
{
    struct sqlite_sink *sink = calloc(1, sizeof(*sink));
    int r;

    if (sink == NULL)
        return -ENOMEM;
    r = sink_check(sink, sqlite3_open(path, &sink->database));
    /* With a log of what is ahead a commit is one write, and readers are not shut out. */
    if (r == 0)
        r = sink_run(sink, "PRAGMA journal_mode = WAL");
    if (r == 0)
        r = sink_run(sink, "CREATE TABLE IF NOT EXISTS weir_position"
                           " (id INTEGER PRIMARY KEY, sequence INTEGER NOT NULL)");
    if (r < 0) {
        sqlite_sink_close(sink);
        return r;
    }
    *ret_sink = sink;
    return 0;
}

void sqlite_sink_close(struct sqlite_sink *sink)
{
    if (sink == NULL)
        return;
    sqlite3_close(sink->database);
    free(sink);
}

const char *sqlite_sink_error(struct sqlite_sink *sink)
{
    return sink->error;
}

int sqlite_sink_rows(struct sqlite_sink *sink, uint64_t id,
                     int (*each)(void *context, const void *key, size_t key_bytes,
                                 const void *value, size_t value_bytes),
                     void *context)
{
    sqlite3_stmt *statement;
    int r =
        sink_prepare(sink, "SELECT key, value FROM weir_%" PRIu64 " ORDER BY key", id, &statement);
    int code = SQLITE_DONE;

    if (r < 0)
        return r;
    while (r == 0 && (code = sqlite3_step(statement)) == SQLITE_ROW)
        r = each(context, sqlite3_column_blob(statement, 0),
                 (size_t)sqlite3_column_bytes(statement, 0), sqlite3_column_blob(statement, 1),
                 (size_t)sqlite3_column_bytes(statement, 1));
    sqlite3_finalize(statement);
    return r != 0 ? r : sink_check(sink, code);
}
