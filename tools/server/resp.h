/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SERVER_RESP_H
#define WEIR_SERVER_RESP_H

/*
 * resp - the words of RESP2, in and out
 *
 * Pure: no input or output, no memory of its own, nothing beyond the bytes it
 * is given. The reader takes one token at a time from bytes that may end
 * anywhere; what it needs to know between two calls is in struct resp_reader.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RESP_BULK_MAX   UINT64_C(536870912) /* 512 MiB, as Redis */
#define RESP_HEADER_MAX 64                  /* of a line that holds one number */
#define RESP_TEXT_MAX   256                 /* no reply built in place is longer */

/* A piece of somebody else's memory. */
struct slice {
    const char *data;
    size_t bytes;
};

enum resp_result {
    RESP_MORE,     /* the token is not whole yet; nothing was used but a header */
    RESP_COMMAND,  /* a command begins: reader->arguments_left of them follow */
    RESP_ARGUMENT, /* one argument, in *ret_argument */
    RESP_ERROR,    /* nonsense: reader->error says what, in Redis' words */
};

struct resp_reader {
    uint64_t arguments_left; /* of this command, not yet taken; 0: between commands */
    uint64_t bulk_bytes;     /* of the argument under way; valid if bulk_known */
    bool bulk_known;         /* its header was read */
    bool is_inline;          /* this command is a line of words, not an array */
    uint64_t line_bytes;     /* inline: what is left of the line, its end included */
    char error[80];
};

/*
 * resp_next() - the next token of [data, data + bytes)
 * @data:      inline words are unescaped in place, so it is written to
 * @ret_used:  how many bytes were used, also with RESP_MORE (a bulk header whose
 *             bytes have not come yet)
 */
enum resp_result resp_next(struct resp_reader *reader, char *data, size_t bytes, size_t *ret_used,
                           struct slice *ret_argument);

/* Whether the whole slice is a decimal number that fits; no sign of plus, no leading zeros, as Redis. */
bool resp_integer(struct slice text, int64_t *ret_value);

/* The same for what has no sign: 0 .. UINT64_MAX. */
bool resp_unsigned(struct slice text, uint64_t *ret_value);

/* Whether @text is @word, letters of either case; @word is in lower case. */
bool resp_is_word(struct slice text, const char *word);

/* ---- Replies: each writes at @out, at most RESP_HEADER_MAX bytes, and says how many ---- */

size_t resp_write_integer(char *out, int64_t value);
size_t resp_write_unsigned(char *out, uint64_t value);
size_t resp_write_array(char *out, uint64_t count);
size_t resp_write_bulk_header(char *out, uint64_t bytes);

#define RESP_OK         "+OK\r\n"
#define RESP_NIL        "$-1\r\n"
#define RESP_NIL_ARRAY  "*-1\r\n"
#define RESP_LINE_END   "\r\n"
#define RESP_LINE_BYTES 2

#endif
