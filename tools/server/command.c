/* SPDX-License-Identifier: MIT */
/*
 * command - the table of commands, and their options
 *
 * A name of at most eight letters is one word of 64 bits, so that finding it is
 * a comparison of words; the table is ordered by how often one asks. The texts
 * of errors are those of Redis 7.0: client libraries look at them.
 */
#include "command.h"

#include <stdio.h>
#include <string.h>

#define ERROR_SYNTAX  "-ERR syntax error\r\n"
#define ERROR_INTEGER "-ERR value is not an integer or out of range\r\n"
#define ERROR_KEY     "-ERR key is longer than 4096 bytes\r\n"

static const struct command commands[] = {
    {"get", OPERATION_GET, SCOPE_KEY, 2, 0, false, 0},
    {"set", OPERATION_SET, SCOPE_KEY, -3, 2, true, 0},
    {"wpush", OPERATION_WPUSH, SCOPE_KEY, 4, 3, true, 0},
    {"wpop", OPERATION_WPOP, SCOPE_KEY, -2, 0, true, 0},
    {"incr", OPERATION_INCR, SCOPE_KEY, 2, 0, true, 1},
    {"mget", OPERATION_GET, SCOPE_EACH, -2, 0, false, 0},
    {"mset", OPERATION_SET, SCOPE_PAIRS, -3, 2, true, 0},
    {"del", OPERATION_DEL, SCOPE_SUM, -2, 0, true, 0},
    {"exists", OPERATION_EXISTS, SCOPE_SUM, -2, 0, false, 0},
    {"decr", OPERATION_INCR, SCOPE_KEY, 2, 0, true, -1},
    {"incrby", OPERATION_INCR, SCOPE_KEY, 3, 0, true, 1},
    {"decrby", OPERATION_INCR, SCOPE_KEY, 3, 0, true, -1},
    {"strlen", OPERATION_STRLEN, SCOPE_KEY, 2, 0, false, 0},
    {"expire", OPERATION_EXPIRE, SCOPE_KEY, -3, 0, true, 1000},
    {"pexpire", OPERATION_EXPIRE, SCOPE_KEY, -3, 0, true, 1},
    {"ttl", OPERATION_TTL, SCOPE_KEY, 2, 0, false, 1000},
    {"pttl", OPERATION_TTL, SCOPE_KEY, 2, 0, false, 1},
    {"persist", OPERATION_PERSIST, SCOPE_KEY, 2, 0, true, 0},
    {"type", OPERATION_TYPE, SCOPE_KEY, 2, 0, false, 0},
    {"unlink", OPERATION_DEL, SCOPE_SUM, -2, 0, true, 0},
    {"wskip", OPERATION_WSKIP, SCOPE_KEY, 2, 0, true, 0},
    {"winfo", OPERATION_WINFO, SCOPE_KEY, 2, 0, false, 0},
    {"ping", OPERATION_PING, SCOPE_SESSION, -1, 1, false, 0},
    {"echo", OPERATION_ECHO, SCOPE_SESSION, 2, 1, false, 0},
    {"dbsize", OPERATION_DBSIZE, SCOPE_ALL, 1, 0, false, 0},
    {"flushall", OPERATION_FLUSHALL, SCOPE_ALL, -1, 0, true, 0},
    {"flushdb", OPERATION_FLUSHALL, SCOPE_ALL, -1, 0, true, 0},
    {"info", OPERATION_INFO, SCOPE_ALL, -1, 0, false, 0},
    {"select", OPERATION_SELECT, SCOPE_SESSION, 2, 0, false, 0},
    {"config", OPERATION_CONFIG, SCOPE_SESSION, -2, 0, false, 0},
    {"command", OPERATION_COMMAND, SCOPE_SESSION, -1, 0, false, 0},
    {"client", OPERATION_CLIENT, SCOPE_SESSION, -2, 0, false, 0},
    {"hello", OPERATION_HELLO, SCOPE_SESSION, -1, 0, false, 0},
    {"quit", OPERATION_QUIT, SCOPE_SESSION, -1, 0, false, 0},
};

#define COMMAND_COUNT (sizeof(commands) / sizeof(commands[0]))

static uint64_t name_word(const char *name, size_t bytes)
{
    uint64_t word = 0;

    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)name[i];

        if (c >= 'A' && c <= 'Z')
            c = (unsigned char)(c + ('a' - 'A'));
        word = word << 8 | c;
    }
    return word;
}

const struct command *command_find(struct slice name)
{
    static uint64_t words[COMMAND_COUNT];
    static bool words_known; /* filled by the first call, before the workers run: see main */
    uint64_t word;

    if (!words_known) {
        for (size_t i = 0; i < COMMAND_COUNT; i++)
            words[i] = name_word(commands[i].name, strlen(commands[i].name));
        words_known = true;
    }
    if (name.bytes == 0 || name.bytes > 8)
        return NULL;
    word = name_word(name.data, name.bytes);
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        if (words[i] == word && strlen(commands[i].name) == name.bytes)
            return &commands[i];
    return NULL;
}

const struct command *command_table(size_t *ret_count)
{
    *ret_count = COMMAND_COUNT;
    return commands;
}

bool command_takes(const struct command *command, uint64_t argument_count)
{
    if (command->scope == SCOPE_PAIRS && argument_count % 2 == 0)
        return false;
    return command->arity >= 0 ? argument_count == (uint64_t)command->arity
                               : argument_count >= (uint64_t)-command->arity;
}

/* ---- Errors ----------------------------------------------------------------- */

static bool call_error(char *ret_error, const char *text)
{
    snprintf(ret_error, RESP_TEXT_MAX, "%s", text);
    return false;
}

static bool call_error_ttl(char *ret_error, const struct command *command)
{
    snprintf(ret_error, RESP_TEXT_MAX, "-ERR invalid expire time in '%s' command\r\n",
             command->name);
    return false;
}

/* What a line of a reply can carry of foreign bytes. */
static void append_clean(char *out, size_t *at, size_t limit, struct slice text, size_t text_max)
{
    for (size_t i = 0; i < text.bytes && i < text_max && *at < limit; i++) {
        const char c = text.data[i];

        out[(*at)++] = c == '\r' || c == '\n' || c == '\0' ? ' ' : c;
    }
}

static void append_text(char *out, size_t *at, size_t limit, const char *text)
{
    while (*text != '\0' && *at < limit)
        out[(*at)++] = *text++;
}

void command_error_unknown(const struct slice *arguments, size_t argument_count, char *ret_error)
{
    const size_t limit = RESP_TEXT_MAX - 8;
    size_t at = 0;

    append_text(ret_error, &at, limit, "-ERR unknown command '");
    append_clean(ret_error, &at, limit, arguments[0], 128);
    append_text(ret_error, &at, limit, "', with args beginning with: ");
    for (size_t i = 1; i < argument_count && at < 160; i++) {
        append_text(ret_error, &at, limit, "'");
        append_clean(ret_error, &at, limit, arguments[i], 128);
        append_text(ret_error, &at, limit, "' ");
    }
    append_text(ret_error, &at, RESP_TEXT_MAX - 1, "\r\n");
    ret_error[at] = '\0';
}

void command_error_arity(const struct command *command, char *ret_error)
{
    snprintf(ret_error, RESP_TEXT_MAX, "-ERR wrong number of arguments for '%s' command\r\n",
             command->name);
}

/* ---- Options ---------------------------------------------------------------- */

/* @unit_ms times @text, as a time to live that is above 0 and adds up. */
static bool read_ttl(const struct command *command, struct slice text, int64_t unit_ms,
                     int64_t *ret_ms, char *ret_error)
{
    int64_t value;

    if (!resp_integer(text, &value))
        return call_error(ret_error, ERROR_INTEGER);
    if (value <= 0 || value > COMMAND_TTL_MAX / unit_ms)
        return call_error_ttl(ret_error, command);
    *ret_ms = value * unit_ms;
    return true;
}

static bool read_set(const struct command *command, const struct slice *arguments, size_t count,
                     struct call *call, char *ret_error)
{
    call->payload = arguments[2];
    for (size_t i = 3; i < count; i++) {
        const struct slice word = arguments[i];
        const bool has_time = (call->flags & (CALL_TTL | CALL_KEEP_TTL)) != 0;
        const bool is_seconds = resp_is_word(word, "ex") || resp_is_word(word, "exat");
        const bool is_at = resp_is_word(word, "exat") || resp_is_word(word, "pxat");

        if (resp_is_word(word, "nx") && !(call->flags & CALL_IF_THERE)) {
            call->flags |= CALL_IF_MISSING;
        } else if (resp_is_word(word, "xx") && !(call->flags & CALL_IF_MISSING)) {
            call->flags |= CALL_IF_THERE;
        } else if (resp_is_word(word, "get")) {
            call->flags |= CALL_GET;
        } else if (resp_is_word(word, "keepttl") && !(call->flags & CALL_TTL)) {
            call->flags |= CALL_KEEP_TTL;
        } else if ((is_seconds || is_at || resp_is_word(word, "px")) && !has_time &&
                   i + 1 < count) {
            call->flags |= CALL_TTL | (is_at ? CALL_AT : 0);
            if (!read_ttl(command, arguments[++i], is_seconds ? 1000 : 1, &call->ttl_ms, ret_error))
                return false;
        } else {
            return call_error(ret_error, ERROR_SYNTAX);
        }
    }
    return true;
}

static bool read_expire(const struct command *command, const struct slice *arguments, size_t count,
                        struct call *call, char *ret_error)
{
    const uint32_t later_or_earlier = CALL_IF_LATER | CALL_IF_EARLIER;
    int64_t value;

    for (size_t i = 3; i < count; i++) {
        if (resp_is_word(arguments[i], "nx")) {
            call->flags |= CALL_IF_MISSING;
        } else if (resp_is_word(arguments[i], "xx")) {
            call->flags |= CALL_IF_THERE;
        } else if (resp_is_word(arguments[i], "gt")) {
            call->flags |= CALL_IF_LATER;
        } else if (resp_is_word(arguments[i], "lt")) {
            call->flags |= CALL_IF_EARLIER;
        } else {
            size_t at = 0;

            append_text(ret_error, &at, RESP_TEXT_MAX, "-ERR Unsupported option ");
            append_clean(ret_error, &at, RESP_TEXT_MAX - 3, arguments[i], 128);
            append_text(ret_error, &at, RESP_TEXT_MAX - 1, "\r\n");
            ret_error[at] = '\0';
            return false;
        }
    }
    if ((call->flags & CALL_IF_MISSING) &&
        (call->flags & (CALL_IF_THERE | CALL_IF_LATER | CALL_IF_EARLIER)))
        return call_error(
            ret_error, "-ERR NX and XX, GT or LT options at the same time are not compatible\r\n");
    if ((call->flags & later_or_earlier) == later_or_earlier)
        return call_error(ret_error,
                          "-ERR GT and LT options at the same time are not compatible\r\n");
    if (!resp_integer(arguments[2], &value))
        return call_error(ret_error, ERROR_INTEGER);
    if (value > COMMAND_TTL_MAX / command->variant || value < -COMMAND_TTL_MAX / command->variant)
        return call_error_ttl(ret_error, command);
    call->ttl_ms = value * command->variant;
    return true;
}

static bool read_incr(const struct command *command, const struct slice *arguments, size_t count,
                      struct call *call, char *ret_error)
{
    call->number = command->variant;
    if (count == 2)
        return true;
    if (!resp_integer(arguments[2], &call->number))
        return call_error(ret_error, ERROR_INTEGER);
    if (command->variant < 0 && call->number == INT64_MIN)
        return call_error(ret_error, "-ERR decrement would overflow\r\n");
    call->number *= command->variant;
    return true;
}

static bool read_wpop(const struct slice *arguments, size_t count, struct call *call,
                      char *ret_error)
{
    call->number = 1;
    for (size_t i = 2; i < count; i += 2) {
        int64_t value;

        if (i + 1 == count)
            return call_error(ret_error, ERROR_SYNTAX);
        if (resp_is_word(arguments[i], "count")) {
            if (!resp_integer(arguments[i + 1], &value))
                return call_error(ret_error, ERROR_INTEGER);
            if (value <= 0)
                return call_error(ret_error, "-ERR value is out of range, must be positive\r\n");
            call->number = value < COMMAND_COUNT_MAX ? value : COMMAND_COUNT_MAX;
        } else if (resp_is_word(arguments[i], "block")) {
            if (!resp_integer(arguments[i + 1], &value) || value > COMMAND_TTL_MAX)
                return call_error(ret_error, "-ERR timeout is not an integer or out of range\r\n");
            if (value < 0)
                return call_error(ret_error, "-ERR timeout is negative\r\n");
            call->flags |= CALL_BLOCK;
            call->block_ms = (uint64_t)value;
        } else {
            return call_error(ret_error, ERROR_SYNTAX);
        }
    }
    return true;
}

bool command_read(const struct command *command, const struct slice *arguments,
                  size_t argument_count, struct call *ret_call, char *ret_error)
{
    memset(ret_call, 0, sizeof(*ret_call));
    ret_call->operation = command->operation;
    ret_call->key = arguments[1];
    if (ret_call->key.bytes > COMMAND_KEY_MAX)
        return call_error(ret_error, ERROR_KEY);

    switch (command->operation) {
    case OPERATION_SET:
        return read_set(command, arguments, argument_count, ret_call, ret_error);
    case OPERATION_INCR:
        return read_incr(command, arguments, argument_count, ret_call, ret_error);
    case OPERATION_EXPIRE:
        return read_expire(command, arguments, argument_count, ret_call, ret_error);
    case OPERATION_TTL:
        ret_call->number = command->variant;
        return true;
    case OPERATION_WPUSH:
        ret_call->payload = arguments[3];
        return resp_unsigned(arguments[2], &ret_call->sequence)
                   ? true
                   : call_error(ret_error, ERROR_INTEGER);
    case OPERATION_WPOP:
        return read_wpop(arguments, argument_count, ret_call, ret_error);
    case OPERATION_GET:
    case OPERATION_DEL:
    case OPERATION_EXISTS:
    case OPERATION_STRLEN:
    case OPERATION_PERSIST:
    case OPERATION_TYPE:
    case OPERATION_WSKIP:
    case OPERATION_WINFO:
    case OPERATION_DBSIZE:
    case OPERATION_FLUSHALL:
    case OPERATION_INFO:
    case OPERATION_PING:
    case OPERATION_ECHO:
    case OPERATION_SELECT:
    case OPERATION_CONFIG:
    case OPERATION_COMMAND:
    case OPERATION_CLIENT:
    case OPERATION_HELLO:
    case OPERATION_QUIT:
        break;
    }
    return true;
}
