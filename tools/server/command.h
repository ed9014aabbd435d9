/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SERVER_COMMAND_H
#define WEIR_SERVER_COMMAND_H

/*
 * command - which commands there are, and what their words mean
 *
 * Pure: turns words into a struct call, or into the error that Redis gives. Who
 * carries a call out is told by its scope.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "resp.h"

#define COMMAND_ARGUMENTS_MAX 16              /* words of a command that is read whole */
#define COMMAND_KEY_MAX       4096            /* bytes of a key, or of the name of a stream */
#define COMMAND_COUNT_MAX     1024            /* items of one WPOP */
#define COMMAND_TTL_MAX       (INT64_MAX / 4) /* ms */

enum operation {
    OPERATION_GET,
    OPERATION_SET,
    OPERATION_DEL,
    OPERATION_EXISTS,
    OPERATION_INCR,
    OPERATION_STRLEN,
    OPERATION_EXPIRE,
    OPERATION_TTL,
    OPERATION_PERSIST,
    OPERATION_TYPE,
    OPERATION_WPUSH,
    OPERATION_WPOP,
    OPERATION_WSKIP,
    OPERATION_WINFO,
    OPERATION_DBSIZE,
    OPERATION_FLUSHALL,
    OPERATION_INFO,
    OPERATION_PING,
    OPERATION_ECHO,
    OPERATION_SELECT,
    OPERATION_CONFIG,
    OPERATION_COMMAND,
    OPERATION_CLIENT,
    OPERATION_HELLO,
    OPERATION_QUIT,
};

enum scope {
    SCOPE_SESSION, /* the connection itself answers */
    SCOPE_KEY,     /* one key's core */
    SCOPE_EACH,    /* each argument is a key; replies one by one, in an array (MGET) */
    SCOPE_SUM,     /* each argument is a key; one reply, the sum (DEL, EXISTS) */
    SCOPE_PAIRS,   /* key, value, key, value, ...; one reply (MSET) */
    SCOPE_ALL,     /* every core */
};

struct command {
    const char *name; /* in lower case, at most 8 letters */
    enum operation operation;
    enum scope scope;
    int arity;           /* as Redis counts: the name is one, negative means at least */
    uint32_t payload_at; /* the argument that may be of any size; 0: none */
    bool is_write;
    int64_t variant; /* INCR: the sign; EXPIRE, TTL: ms per unit */
};

enum call_flag {
    CALL_IF_MISSING = 1 << 0, /* NX */
    CALL_IF_THERE = 1 << 1,   /* XX */
    CALL_GET = 1 << 2,
    CALL_KEEP_TTL = 1 << 3,
    CALL_TTL = 1 << 4, /* ttl_ms is given */
    CALL_IF_LATER = 1 << 5,
    CALL_IF_EARLIER = 1 << 6,
    CALL_BLOCK = 1 << 7, /* block_ms is given; 0: for ever */
    CALL_AT = 1 << 8,    /* ttl_ms is a point in time since 1970 */
};

/* What a command asks for, in numbers. The slices are the caller's memory. */
struct call {
    enum operation operation;
    uint32_t flags;
    struct slice key;
    struct slice payload;
    int64_t number;    /* INCR: the step; TTL: ms per unit; WPOP: COUNT */
    int64_t ttl_ms;    /* with CALL_TTL */
    uint64_t sequence; /* WPUSH */
    uint64_t block_ms; /* with CALL_BLOCK */
};

/* NULL: there is none of that name. */
const struct command *command_find(struct slice name);

/* The table, for COMMAND. */
const struct command *command_table(size_t *ret_count);

/* Whether @argument_count words, the name included, are what it takes. */
bool command_takes(const struct command *command, uint64_t argument_count);

/*
 * command_read() - the words of a command of one key into @ret_call
 * @arguments:  the name included; one that came in pieces has its length and
 *              no data
 * @ret_error:  RESP_TEXT_MAX bytes: a whole error reply, when false comes back
 */
bool command_read(const struct command *command, const struct slice *arguments,
                  size_t argument_count, struct call *ret_call, char *ret_error);

/* Error replies, whole lines, in RESP_TEXT_MAX bytes. */
void command_error_unknown(const struct slice *arguments, size_t argument_count, char *ret_error);
void command_error_arity(const struct command *command, char *ret_error);

#endif
