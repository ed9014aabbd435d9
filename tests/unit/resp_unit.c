/* SPDX-License-Identifier: MIT */
/* resp_unit - what resp.h, command.h and output.h promise */
#include "command.h"
#include "output.h"
#include "resp.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- Reading -------------------------------------------------------------------- */

/* All commands in @text, one line each, words in brackets; "!" and the error at the end. */
static void read_all(const char *text, size_t bytes, size_t step, char *out, size_t out_bytes)
{
    struct resp_reader reader = {0};
    char *data = malloc(bytes + 1);
    size_t start = 0;
    size_t end = 0;
    size_t at = 0;

    assert_non_null(data);
    memcpy(data, text, bytes);
    out[0] = '\0';
    for (;;) {
        struct slice word = {0};
        size_t used = SIZE_MAX;
        const enum resp_result result = resp_next(&reader, data + start, end - start, &used, &word);

        assert_true(used <= end - start);
        start += used;
        if (result == RESP_ERROR) {
            snprintf(out + at, out_bytes - at, "!%s", reader.error);
            break;
        }
        if (result == RESP_MORE) {
            if (end == bytes)
                break;
            end = end + step < bytes ? end + step : bytes;
            continue;
        }
        if (result == RESP_ARGUMENT) {
            assert_true(word.data >= data && word.data + word.bytes <= data + end);
            at += (size_t)snprintf(out + at, out_bytes - at, "[%.*s]", (int)word.bytes, word.data);
        }
        if (reader.arguments_left == 0)
            at += (size_t)snprintf(out + at, out_bytes - at, "\n");
    }
    free(data);
}

static void check_reading(const char *text, const char *expected)
{
    char out[4096];

    for (size_t step = 1; step <= strlen(text) + 1; step++) {
        read_all(text, strlen(text), step, out, sizeof(out));
        assert_string_equal(out, expected);
    }
}

static void test_commands_are_read_however_they_are_cut(void **state)
{
    (void)state;
    check_reading("*1\r\n$4\r\nPING\r\n", "[PING]\n");
    check_reading("*2\r\n$3\r\nGET\r\n$0\r\n\r\n*1\r\n$1\r\na\r\n", "[GET][]\n[a]\n");
    check_reading("*0\r\n*-1\r\n*1\r\n$4\r\n\r\n\r\n\r\n", "\n\n[\r\n\r\n]\n");
    check_reading("*2\r\n$1\r\n$\r\n$2\r\n*1\r\n", "[$][*1]\n");
}

static void test_inline_commands_have_words_and_quotes(void **state)
{
    (void)state;
    check_reading("PING\r\n", "[PING]\n");
    check_reading("  set  a\t\"b c\" \n", "[set][a][b c]\n");
    check_reading("\r\n\n   \r\nx\n", "\n\n\n[x]\n");
    check_reading("a \"\\x41\\n\\\"\" 'it\\'s \\n'\n", "[a][A\n\"][it's \\n]\n");
    check_reading("a \"\" ''\n", "[a][][]\n");
    check_reading("a \"b\n", "!unbalanced quotes in request");
    check_reading("a \"b\"c\n", "!unbalanced quotes in request");
    check_reading("PING\n*1\r\n$1\r\na\r\nPING\n", "[PING]\n[a]\n[PING]\n");
}

static void test_nonsense_is_an_error(void **state)
{
    (void)state;
    check_reading("*x\r\n", "!invalid multibulk length");
    check_reading("*2147483648\r\n", "!invalid multibulk length");
    check_reading("*\r\n", "!invalid multibulk length");
    check_reading("*1\r\nx", "!expected '$', got 'x'");
    check_reading("*1\r\n$-1\r\n", "!invalid bulk length");
    check_reading("*1\r\n$+1\r\n", "!invalid bulk length");
    check_reading("*1\r\n$536870913\r\n", "!invalid bulk length");
    check_reading("*1\r\n$18446744073709551617\r\n", "!invalid bulk length");
    check_reading("*00000000000000000000000000000000000000000000000000000000000000000000000000",
                  "!too big mbulk count string");
    check_reading("*1\r\n$0000000000000000000000000000000000000000000000000000000000000000000000",
                  "!too big bulk count string");
}

static void test_a_length_is_known_before_its_bytes(void **state)
{
    struct resp_reader reader = {0};
    char data[] = "*2\r\n$3\r\nSET\r\n$500000000\r\nabc";
    struct slice word;
    size_t used;
    size_t at = 0;

    (void)state;
    assert_int_equal(resp_next(&reader, data, sizeof(data) - 1, &used, &word), RESP_COMMAND);
    at += used;
    assert_int_equal(reader.arguments_left, 2);
    assert_int_equal(resp_next(&reader, data + at, sizeof(data) - 1 - at, &used, &word),
                     RESP_ARGUMENT);
    at += used;
    assert_int_equal(resp_next(&reader, data + at, sizeof(data) - 1 - at, &used, &word), RESP_MORE);
    at += used;
    assert_true(reader.bulk_known);
    assert_int_equal(reader.bulk_bytes, 500000000);
    assert_int_equal(at, sizeof(data) - 1 - 3);
}

static void test_random_bytes_end_in_more_or_error(void **state)
{
    static const char letters[] = "*$\r\n0123456789-ab\"' \\x";
    uint64_t seed = 1;

    (void)state;
    for (int round = 0; round < 20000; round++) {
        char text[64];
        char out[4096];
        size_t bytes = 0;

        for (; bytes < sizeof(text); bytes++) {
            seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
            if (seed >> 58 == 0)
                break;
            text[bytes] = letters[(seed >> 33) % (sizeof(letters) - 1)];
        }
        read_all(text, bytes, 1 + seed % 7, out, sizeof(out));
    }
}

/* ---- Numbers, words ------------------------------------------------------------- */

static struct slice slice(const char *text)
{
    return (struct slice){.data = text, .bytes = strlen(text)};
}

static void test_numbers_are_whole_or_nothing(void **state)
{
    static const char *const bad[] = {"",
                                      "-",
                                      "+1",
                                      " 1",
                                      "1 ",
                                      "01",
                                      "-0",
                                      "1x",
                                      "x",
                                      "--1",
                                      "9223372036854775808",
                                      "-9223372036854775809",
                                      "99999999999999999999999"};
    int64_t value;
    uint64_t big;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_false(resp_integer(slice(bad[i]), &value));
    assert_true(resp_integer(slice("0"), &value) && value == 0);
    assert_true(resp_integer(slice("-1"), &value) && value == -1);
    assert_true(resp_integer(slice("9223372036854775807"), &value) && value == INT64_MAX);
    assert_true(resp_integer(slice("-9223372036854775808"), &value) && value == INT64_MIN);
    assert_true(resp_unsigned(slice("18446744073709551615"), &big) && big == UINT64_MAX);
    assert_false(resp_unsigned(slice("18446744073709551616"), &big));
    assert_false(resp_unsigned(slice("-1"), &big));
}

static void test_written_numbers_read_back(void **state)
{
    static const int64_t values[] = {0, 1, -1, 9, 10, INT64_MAX, INT64_MIN};
    char out[RESP_HEADER_MAX];

    (void)state;
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        const size_t bytes = resp_write_integer(out, values[i]);
        int64_t value;

        assert_int_equal(out[0], ':');
        assert_memory_equal(out + bytes - 2, "\r\n", 2);
        assert_true(resp_integer((struct slice){.data = out + 1, .bytes = bytes - 3}, &value));
        assert_true(value == values[i]);
    }
    assert_int_equal(resp_write_bulk_header(out, 4096), 7);
    assert_memory_equal(out, "$4096\r\n", 7);
}

/* ---- Commands -------------------------------------------------------------------- */

static void test_every_command_is_found_in_either_case(void **state)
{
    size_t count;
    const struct command *table = command_table(&count);

    (void)state;
    for (size_t i = 0; i < count; i++) {
        char upper[16];
        size_t at = 0;

        assert_true(strlen(table[i].name) <= 8);
        for (; table[i].name[at] != '\0'; at++)
            upper[at] = (char)(table[i].name[at] - ('a' - 'A'));
        assert_ptr_equal(command_find(slice(table[i].name)), &table[i]);
        assert_ptr_equal(command_find((struct slice){.data = upper, .bytes = at}), &table[i]);
    }
    assert_null(command_find(slice("")));
    assert_null(command_find(slice("gett")));
    assert_null(command_find((struct slice){.data = "\0get", .bytes = 4}));
    assert_null(command_find(slice("flushallx")));
}

static bool read_words(const char *line, struct call *call, char *error)
{
    char text[256];
    struct resp_reader reader = {0};
    struct slice words[COMMAND_ARGUMENTS_MAX];
    size_t count = 0;
    size_t at = 0;

    snprintf(text, sizeof(text), "%s\n", line);
    for (;;) {
        size_t used;
        const enum resp_result result =
            resp_next(&reader, text + at, strlen(line) + 1 - at, &used, &words[count]);

        at += used;
        if (result == RESP_ARGUMENT)
            count++;
        if (result == RESP_ARGUMENT && reader.arguments_left == 0)
            break;
    }
    return command_read(command_find(words[0]), words, count, call, error);
}

static void test_options_are_what_redis_says(void **state)
{
    static const struct {
        const char *line;
        const char *error; /* NULL: none */
        uint32_t flags;
    } cases[] = {
        {"set k v", NULL, 0},
        {"set k v nx get", NULL, CALL_IF_MISSING | CALL_GET},
        {"SET k v XX KEEPTTL", NULL, CALL_IF_THERE | CALL_KEEP_TTL},
        {"set k v ex 10", NULL, CALL_TTL},
        {"set k v pxat 10", NULL, CALL_TTL | CALL_AT},
        {"set k v nx xx", "-ERR syntax error\r\n", 0},
        {"set k v ex 10 px 10", "-ERR syntax error\r\n", 0},
        {"set k v ex", "-ERR syntax error\r\n", 0},
        {"set k v ex 0", "-ERR invalid expire time in 'set' command\r\n", 0},
        {"set k v ex ten", "-ERR value is not an integer or out of range\r\n", 0},
        {"expire k 1 gt lt", "-ERR GT and LT options at the same time are not compatible\r\n", 0},
        {"expire k 1 what", "-ERR Unsupported option what\r\n", 0},
        {"expire k 9223372036854775807", "-ERR invalid expire time in 'expire' command\r\n", 0},
        {"wpush s 18446744073709551615 x", NULL, 0},
        {"wpush s -1 x", "-ERR value is not an integer or out of range\r\n", 0},
        {"wpop s count 5 block 0", NULL, CALL_BLOCK},
        {"wpop s count", "-ERR syntax error\r\n", 0},
        {"decrby k -9223372036854775808", "-ERR decrement would overflow\r\n", 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct call call;
        char error[RESP_TEXT_MAX] = "";

        assert_int_equal(read_words(cases[i].line, &call, error), cases[i].error == NULL);
        if (cases[i].error != NULL)
            assert_string_equal(error, cases[i].error);
        else
            assert_int_equal(call.flags, cases[i].flags);
    }
}

static void test_arity_is_that_of_the_table(void **state)
{
    (void)state;
    assert_true(command_takes(command_find(slice("get")), 2));
    assert_false(command_takes(command_find(slice("get")), 1));
    assert_false(command_takes(command_find(slice("get")), 3));
    assert_true(command_takes(command_find(slice("mset")), 5));
    assert_false(command_takes(command_find(slice("mset")), 4));
    assert_false(command_takes(command_find(slice("mset")), 1));
    assert_true(command_takes(command_find(slice("del")), 1000000));
}

static void test_an_error_line_carries_no_second_line(void **state)
{
    const struct slice words[] = {{.data = "a\r\n+OK", .bytes = 7}, {.data = "b\nc", .bytes = 3}};
    char error[RESP_TEXT_MAX];

    (void)state;
    command_error_unknown(words, 2, error);
    assert_string_equal(error,
                        "-ERR unknown command 'a  +OK ', with args beginning with: 'b c' \r\n");
}

/* ---- Output ---------------------------------------------------------------------- */

struct told {
    int marks[64];
    int count;
};

static void passed(void *context, uint32_t kind, void *mark)
{
    struct told *told = context;

    (void)kind;
    told->marks[told->count++] = *(int *)mark;
}

/* Random copies, references and marks; what is sent is what went in, marks come in their place. */
static void test_what_is_sent_is_what_was_given(void **state)
{
    static char source[200000];
    static char sent[4000000];
    static char given[4000000];
    static int numbers[100000];
    static size_t mark_at[100000];
    struct pool pool;
    struct output output = {0};
    struct told told = {0};
    uint64_t seed = 7;
    size_t given_bytes = 0;
    size_t sent_bytes = 0;
    int mark_count = 0;
    int told_count = 0;

    (void)state;
    pool_init(&pool, (struct weir_books){0}, 6);
    for (size_t i = 0; i < sizeof(source); i++)
        source[i] = (char)(i * 31 + i / 251);
    for (int round = 0; round < 60000 && given_bytes < sizeof(given) - 300000; round++) {
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407;
        const uint64_t dice = seed >> 33;
        const size_t bytes = (dice >> 4) % (dice % 16 == 0 ? 60000 : 300);
        const size_t from = (dice >> 10) % (sizeof(source) - 60000);
        size_t taken = 0;

        if (dice % 4 == 3) {
            struct iovec vectors[16];
            size_t all;
            size_t some;
            const int count = output_gather(&output, vectors, 16, &all);

            some = all == 0 ? 0 : 1 + (dice >> 5) % all;
            for (size_t left = some, i = 0; left > 0; i++) {
                const size_t part = left < vectors[i].iov_len ? left : vectors[i].iov_len;

                assert_true(i < (size_t)count);
                memcpy(sent + sent_bytes, vectors[i].iov_base, part);
                sent_bytes += part;
                left -= part;
            }
            output_advance(&output, &pool, some, passed, &told);
            for (int i = 0; i < told.count; i++, told_count++) {
                assert_int_equal(told.marks[i], told_count);
                assert_true(mark_at[told_count] <= sent_bytes);
            }
            told.count = 0;
            continue;
        }
        if (dice % 4 == 0)
            taken = output_copy(&output, &pool, source + from, bytes);
        else if (dice % 4 == 1 && output_has_room(&output) &&
                 output_refer(&output, source + from, bytes))
            taken = bytes;
        memcpy(given + given_bytes, source + from, taken);
        given_bytes += taken;
        if (dice % 4 == 2 && mark_count < 90000) {
            numbers[mark_count] = mark_count;
            mark_at[mark_count] = given_bytes;
            if (output_mark(&output, 1, &numbers[mark_count]))
                mark_count++;
        }
        assert_int_equal(output.bytes, given_bytes - sent_bytes);
    }
    assert_true(mark_count > 300 && sent_bytes > 1000000);
    assert_memory_equal(sent, given, sent_bytes);
    told.count = 0;
    output_drop(&output, &pool, passed, &told);
    assert_true(output_is_empty(&output));
    assert_int_equal(told_count + told.count, mark_count);
    pool_deinit(&pool); /* all chunks are back */
}

static void test_the_pool_refuses_what_is_beyond_it_but_never_the_first(void **state)
{
    struct pool pool;
    struct chunk *first[10];

    (void)state;
    pool_init(&pool, (struct weir_books){0}, 1);
    for (int i = 0; i < 10; i++)
        assert_non_null(first[i] = pool_take(&pool, false));
    struct chunk *spare = pool_take(&pool, true);
    assert_non_null(spare);
    assert_null(pool_take(&pool, true));
    pool_give(&pool, spare, true);
    assert_non_null(spare = pool_take(&pool, true));
    pool_give(&pool, spare, true);
    for (int i = 0; i < 10; i++)
        pool_give(&pool, first[i], false);
    pool_deinit(&pool);
}

static void test_the_pool_gives_back_what_nobody_had_for_a_while(void **state)
{
    struct pool pool;
    struct chunk *chunks[10];

    (void)state;
    pool_init(&pool, (struct weir_books){0}, 1);
    for (int i = 0; i < 10; i++)
        assert_non_null(chunks[i] = pool_take(&pool, false));
    for (int i = 0; i < 10; i++)
        pool_give(&pool, chunks[i], false);
    assert_int_equal(pool_trim(&pool, UINT64_MAX), 0); /* they were in use since */
    pool_age(&pool);
    for (int i = 0; i < 4; i++)
        assert_non_null(chunks[i] = pool_take(&pool, false));
    for (int i = 0; i < 4; i++)
        pool_give(&pool, chunks[i], false);
    assert_in_range(pool_trim(&pool, 1), POOL_CHUNK_BYTES, 2 * POOL_CHUNK_BYTES - 1);
    assert_int_equal(pool.vacant_count, 9);
    assert_in_range(pool_trim(&pool, UINT64_MAX), 5 * POOL_CHUNK_BYTES, 6 * POOL_CHUNK_BYTES - 1);
    assert_int_equal(pool.vacant_count, 4);
    assert_int_equal(pool_trim(&pool, UINT64_MAX), 0);
    pool_deinit(&pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"commands are read however they are cut", test_commands_are_read_however_they_are_cut,
         NULL, NULL, NULL},
        {"inline commands have words and quotes", test_inline_commands_have_words_and_quotes, NULL,
         NULL, NULL},
        {"nonsense is an error", test_nonsense_is_an_error, NULL, NULL, NULL},
        {"a length is known before its bytes", test_a_length_is_known_before_its_bytes, NULL, NULL,
         NULL},
        {"random bytes end in more or error", test_random_bytes_end_in_more_or_error, NULL, NULL,
         NULL},
        {"numbers are whole or nothing", test_numbers_are_whole_or_nothing, NULL, NULL, NULL},
        {"written numbers read back", test_written_numbers_read_back, NULL, NULL, NULL},
        {"every command is found in either case", test_every_command_is_found_in_either_case, NULL,
         NULL, NULL},
        {"options are what Redis says", test_options_are_what_redis_says, NULL, NULL, NULL},
        {"arity is that of the table", test_arity_is_that_of_the_table, NULL, NULL, NULL},
        {"an error line carries no second line", test_an_error_line_carries_no_second_line, NULL,
         NULL, NULL},
        {"what is sent is what was given", test_what_is_sent_is_what_was_given, NULL, NULL, NULL},
        {"the pool refuses what is beyond it but never the first",
         test_the_pool_refuses_what_is_beyond_it_but_never_the_first, NULL, NULL, NULL},
        {"the pool gives back what nobody had for a while",
         test_the_pool_gives_back_what_nobody_had_for_a_while, NULL, NULL, NULL},
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
