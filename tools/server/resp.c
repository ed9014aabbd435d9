/* SPDX-License-Identifier: MIT */
/*
 * resp - how commands are read and replies are written
 *
 *      *2 CRLF  $4 CRLF ECHO CRLF  $5 CRLF hello CRLF
 *      |        |                  |
 *      COMMAND  ARGUMENT           ARGUMENT
 *
 * The reader is a machine of three questions: is a command under way, is the
 * header of its next argument known, are its bytes here? It looks at each byte
 * of a header once per call and at no byte of an argument, so that reading a
 * command costs the same whatever its arguments weigh. It keeps no pointer.
 *
 * Numbers in comments name what the checks defend:
 *
 *   I1  *ret_used <= bytes, and what was used is never needed again
 *   I2  an argument handed out lies wholly inside the bytes given
 *   I3  after RESP_ERROR the reader is asked no more
 */
#include "resp.h"

#include <assert.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#define RESP_ARGUMENTS_MAX INT_MAX

static enum resp_result resp_fail(struct resp_reader *reader, const char *error)
{
    snprintf(reader->error, sizeof(reader->error), "%s", error);
    return RESP_ERROR;
}

/* ---- Numbers ---------------------------------------------------------------- */

bool resp_unsigned(struct slice text, uint64_t *ret_value)
{
    uint64_t value = 0;

    if (text.bytes == 0 || text.bytes > 20 || (text.bytes > 1 && text.data[0] == '0'))
        return false;
    for (size_t i = 0; i < text.bytes; i++) {
        const unsigned digit = (unsigned)(unsigned char)text.data[i] - '0';

        if (digit > 9 || value > (UINT64_MAX - digit) / 10)
            return false;
        value = value * 10 + digit;
    }
    *ret_value = value;
    return true;
}

bool resp_integer(struct slice text, int64_t *ret_value)
{
    const bool is_negative = text.bytes > 1 && text.data[0] == '-';
    uint64_t value;

    if (is_negative) {
        text.data++;
        text.bytes--;
    }
    if (!resp_unsigned(text, &value))
        return false;
    if (is_negative) {
        if (value == 0 || value > UINT64_C(1) << 63)
            return false;
        *ret_value = (int64_t)(0 - value);
        return true;
    }
    if (value > INT64_MAX)
        return false;
    *ret_value = (int64_t)value;
    return true;
}

bool resp_is_word(struct slice text, const char *word)
{
    size_t i = 0;

    for (; i < text.bytes && word[i] != '\0'; i++) {
        char c = text.data[i];

        if (c >= 'A' && c <= 'Z')
            c = (char)(c + ('a' - 'A'));
        if (c != word[i])
            return false;
    }
    return i == text.bytes && word[i] == '\0';
}

/* ---- Reading ---------------------------------------------------------------- */

/*
 * The line of a header, from behind its first character. RESP_ARGUMENT: it is
 * whole, *ret_used covers its end.
 */
static enum resp_result header_line(struct resp_reader *reader, const char *data, size_t bytes,
                                    const char *too_long, size_t *ret_used, struct slice *ret_line)
{
    const size_t window = bytes < RESP_HEADER_MAX ? bytes : RESP_HEADER_MAX;
    const char *end = memchr(data, '\r', window);

    if (end == NULL)
        return bytes >= RESP_HEADER_MAX ? resp_fail(reader, too_long) : RESP_MORE;
    if ((size_t)(end - data) + 1 >= bytes)
        return RESP_MORE;
    if (end[1] != '\n')
        return resp_fail(reader, "expected an end of line");
    ret_line->data = data + 1;
    ret_line->bytes = (size_t)(end - data) - 1;
    *ret_used = (size_t)(end - data) + RESP_LINE_BYTES;
    return RESP_ARGUMENT;
}

static enum resp_result array_begin(struct resp_reader *reader, const char *data, size_t bytes,
                                    size_t *ret_used)
{
    struct slice line;
    int64_t count;
    const enum resp_result result =
        header_line(reader, data, bytes, "too big mbulk count string", ret_used, &line);

    if (result != RESP_ARGUMENT)
        return result;
    if (!resp_integer(line, &count) || count > RESP_ARGUMENTS_MAX)
        return resp_fail(reader, "invalid multibulk length");
    reader->arguments_left = count > 0 ? (uint64_t)count : 0;
    reader->is_inline = false;
    return RESP_COMMAND;
}

static enum resp_result bulk_next(struct resp_reader *reader, const char *data, size_t bytes,
                                  size_t *ret_used, struct slice *ret_argument)
{
    size_t used = 0;

    if (!reader->bulk_known) {
        struct slice line;
        int64_t length;
        enum resp_result result;

        if (bytes == 0)
            return RESP_MORE;
        if (data[0] != '$') {
            const char c = data[0] >= ' ' && data[0] <= '~' ? data[0] : '?';

            snprintf(reader->error, sizeof(reader->error), "expected '$', got '%c'", c);
            return RESP_ERROR;
        }
        result = header_line(reader, data, bytes, "too big bulk count string", &used, &line);
        if (result != RESP_ARGUMENT)
            return result;
        if (!resp_integer(line, &length) || length < 0 || (uint64_t)length > RESP_BULK_MAX)
            return resp_fail(reader, "invalid bulk length");
        reader->bulk_bytes = (uint64_t)length;
        reader->bulk_known = true;
    }
    *ret_used = used;
    if (bytes - used < reader->bulk_bytes + RESP_LINE_BYTES)
        return RESP_MORE;

    ret_argument->data = data + used;
    ret_argument->bytes = (size_t)reader->bulk_bytes;
    *ret_used = used + (size_t)reader->bulk_bytes + RESP_LINE_BYTES;
    reader->bulk_known = false;
    reader->arguments_left--;
    return RESP_ARGUMENT;
}

/* ---- Inline commands: a line of words, some in quotes ------------------------ */

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\v' || c == '\f' || c == '\r';
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

static char escaped(char c)
{
    switch (c) {
    case 'n':
        return '\n';
    case 'r':
        return '\r';
    case 't':
        return '\t';
    case 'b':
        return '\b';
    case 'a':
        return '\a';
    default:
        return c;
    }
}

/*
 * One word from *offset on, by the rules of redis-cli: unescaped in place when
 * @out is not NULL. 1: a word; 0: the line has ended; -1: quotes do not match.
 */
static int inline_word(const char *line, size_t bytes, size_t *offset, char *out, size_t *ret_bytes)
{
    size_t at = *offset;
    size_t length = 0;
    char quote = '\0';

    while (at < bytes && is_space(line[at]))
        at++;
    if (at == bytes) {
        *offset = at;
        return 0;
    }
    for (; at < bytes && (quote != '\0' || !is_space(line[at])); at++) {
        char c = line[at];

        if (quote == '\0' && (c == '"' || c == '\'')) {
            quote = c;
            continue;
        }
        if (quote != '\0' && c == quote) {
            if (at + 1 < bytes && !is_space(line[at + 1]))
                return -1;
            quote = '\0';
            continue;
        }
        if (quote == '"' && c == '\\' && at + 1 < bytes) {
            if (line[at + 1] == 'x' && at + 3 < bytes && hex_digit(line[at + 2]) >= 0 &&
                hex_digit(line[at + 3]) >= 0) {
                c = (char)(hex_digit(line[at + 2]) * 16 + hex_digit(line[at + 3]));
                at += 3;
            } else {
                c = escaped(line[at + 1]);
                at++;
            }
        } else if (quote == '\'' && c == '\\' && at + 1 < bytes && line[at + 1] == '\'') {
            c = '\'';
            at++;
        }
        if (out != NULL)
            out[length] = c;
        length++;
    }
    if (quote != '\0')
        return -1;
    *offset = at;
    *ret_bytes = length;
    return 1;
}

static enum resp_result inline_begin(struct resp_reader *reader, const char *data, size_t bytes)
{
    const char *end = memchr(data, '\n', bytes);
    uint64_t count = 0;
    size_t offset = 0;
    size_t length;
    int r;

    if (end == NULL)
        return RESP_MORE;
    while ((r = inline_word(data, (size_t)(end - data), &offset, NULL, &length)) == 1)
        count++;
    if (r < 0)
        return resp_fail(reader, "unbalanced quotes in request");
    reader->is_inline = true;
    reader->arguments_left = count;
    reader->line_bytes = (size_t)(end - data) + 1;
    return RESP_COMMAND;
}

static enum resp_result inline_next(struct resp_reader *reader, char *data, size_t bytes,
                                    size_t *ret_used, struct slice *ret_argument)
{
    size_t offset = 0;
    size_t start = 0;
    size_t length = 0;

    assert(bytes >= reader->line_bytes);
    (void)bytes;
    while (is_space(data[start]))
        start++;
    /* Unescaping only shortens: the word is rewritten where it begins. */
    (void)inline_word(data + start, (size_t)reader->line_bytes - 1 - start, &offset, data + start,
                      &length);
    ret_argument->data = data + start;
    ret_argument->bytes = length;
    reader->arguments_left--;
    *ret_used = reader->arguments_left == 0 ? (size_t)reader->line_bytes : start + offset;
    reader->line_bytes -= *ret_used;
    return RESP_ARGUMENT;
}

enum resp_result resp_next(struct resp_reader *reader, char *data, size_t bytes, size_t *ret_used,
                           struct slice *ret_argument)
{
    *ret_used = 0;
    if (reader->arguments_left == 0) {
        enum resp_result result;

        if (bytes == 0)
            return RESP_MORE;
        if (data[0] == '*')
            return array_begin(reader, data, bytes, ret_used);
        result = inline_begin(reader, data, bytes);
        if (result == RESP_COMMAND && reader->arguments_left == 0)
            *ret_used = (size_t)reader->line_bytes;
        return result;
    }
    if (reader->is_inline)
        return inline_next(reader, data, bytes, ret_used, ret_argument);
    return bulk_next(reader, data, bytes, ret_used, ret_argument);
}

/* ---- Writing ---------------------------------------------------------------- */

static size_t write_number(char *out, char mark, uint64_t value, bool is_negative)
{
    char digits[20];
    size_t count = 0;
    size_t at = 0;

    do {
        digits[count++] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    out[at++] = mark;
    if (is_negative)
        out[at++] = '-';
    while (count > 0)
        out[at++] = digits[--count];
    out[at++] = '\r';
    out[at++] = '\n';
    return at;
}

size_t resp_write_integer(char *out, int64_t value)
{
    const bool is_negative = value < 0;

    return write_number(out, ':', is_negative ? 0 - (uint64_t)value : (uint64_t)value, is_negative);
}

size_t resp_write_unsigned(char *out, uint64_t value)
{
    return write_number(out, ':', value, false);
}

size_t resp_write_array(char *out, uint64_t count)
{
    return write_number(out, '*', count, false);
}

size_t resp_write_bulk_header(char *out, uint64_t bytes)
{
    return write_number(out, '$', bytes, false);
}
