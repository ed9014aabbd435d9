/* SPDX-License-Identifier: MIT */
/*
 * resp_fuzz - bytes become a client, whose words must not depend on their cuts
 *
 *      | cut | what the client sends ...
 *
 * The stream is read at once, and again in pieces whose lengths follow from the
 * first byte; both must give the same tokens, each inside the bytes that had
 * come, and what has a length must be preceded by it. Commands that are whole
 * are read by the table too. Each run has bytes of its own, exactly as many as
 * there are, so that a sanitizer sees what is read beyond. Built with
 * FUZZ_CANARY the second reading errs about words of three bytes.
 */
#include "command.h"
#include "resp.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FUZZ_TOKENS_MAX 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void expect(bool holds, const char *what)
{
    if (holds)
        return;
    fprintf(stderr, "resp_fuzz: %s\n", what);
    abort();
}

static uint64_t mix(uint64_t sum, uint64_t value)
{
    return (sum ^ value) * UINT64_C(1099511628211);
}

static uint64_t mix_bytes(uint64_t sum, struct slice word)
{
    for (size_t i = 0; i < word.bytes; i++)
        sum = mix(sum, (unsigned char)word.data[i]);
    return mix(sum, word.bytes);
}

/* A word of an array stands behind its length; its end is not looked at, as in Redis. */
static void check_header(const char *start, struct slice word)
{
    char header[32];
    const int length = snprintf(header, sizeof(header), "$%zu\r\n", word.bytes);

    expect(word.data - start >= length && memcmp(word.data - length, header, (size_t)length) == 0,
           "a word without its length");
}

/* What the table makes of a command: any answer will do, but an answer. */
static void read_command(const struct slice *words, size_t count)
{
    const struct command *command = command_find(words[0]);
    char error[RESP_TEXT_MAX];
    struct call call;

    if (command == NULL) {
        command_error_unknown(words, count, error);
    } else if (!command_takes(command, count)) {
        command_error_arity(command, error);
    } else {
        if (command->scope != SCOPE_KEY)
            return;
        if (command_read(command, words, count, &call, error))
            return;
    }
    const size_t bytes = strnlen(error, sizeof(error));
    expect(bytes > 4 && bytes < sizeof(error), "an error without an end");
    expect(error[0] == '-' && strcmp(error + bytes - 2, "\r\n") == 0, "an error that is no line");
    expect(strchr(error, '\r') == error + bytes - 2, "an error of two lines");
}

/* A sum over all tokens; @step: bytes that come at a time. */
static uint64_t read_all(const uint8_t *data, size_t bytes, size_t step, bool errs)
{
    struct resp_reader reader = {0};
    struct slice words[COMMAND_ARGUMENTS_MAX];
    size_t word_count = 0;
    char *copy = malloc(bytes > 0 ? bytes : 1);
    uint64_t sum = 1;
    size_t at = 0;
    size_t end = 0;

    expect(copy != NULL, "no memory");
    if (bytes > 0)
        memcpy(copy, data, bytes);
    for (int tokens = 0; tokens < FUZZ_TOKENS_MAX;) {
        struct slice word = {0};
        size_t used = SIZE_MAX;
        const enum resp_result result = resp_next(&reader, copy + at, end - at, &used, &word);

        expect(used <= end - at, "more was used than there is");
        at += used;
        if (result == RESP_MORE) {
            if (end == bytes)
                break;
            end = end + step < bytes ? end + step : bytes;
            continue;
        }
        tokens++;
        sum = mix(sum, (uint64_t)result);
        if (result == RESP_ERROR) {
            expect(reader.error[0] != '\0', "an error that says nothing");
            break;
        }
        if (result == RESP_COMMAND)
            word_count = 0;
        if (result == RESP_ARGUMENT) {
            expect(word.data >= copy && word.data + word.bytes <= copy + end, "a word outside");
            if (!reader.is_inline)
                check_header(copy, word);
            if (errs && word.bytes == 3)
                word.bytes--;
            sum = mix_bytes(sum, word);
            if (word_count < COMMAND_ARGUMENTS_MAX)
                words[word_count++] = word;
            if (reader.arguments_left == 0)
                read_command(words, word_count);
        }
        sum = mix(sum, reader.arguments_left);
    }
    free(copy);
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    bool errs = false;

    if (bytes == 0)
        return 0;
#ifdef FUZZ_CANARY
    errs = true;
#endif
    const uint64_t whole = read_all(data + 1, bytes - 1, SIZE_MAX / 2, false);
    const uint64_t cut = read_all(data + 1, bytes - 1, (size_t)1 + data[0] % 64, errs);
    expect(whole == cut, "the cuts matter");
    return 0;
}
