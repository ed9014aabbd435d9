/* SPDX-License-Identifier: MIT */
/*
 * connection - one client
 *
 *      socket --recv--> input --words--> requests --> owners
 *                                           |
 *                       queue of replies <--+   in the order of the commands
 *      socket <--send-- output <--emit--+
 *
 * The input is one chunk, charged at accept; what does not fit is a payload and
 * goes piece by piece to where it will stay, straight from the socket where that
 * is memory. Words of commands are not copied: the input stays where it is while
 * requests that point into it are under way.
 *
 *      start              parsed        filled
 *      | words of this cmd | not looked at | room |
 *
 * Everything happens in connection_tick(), once per turn for each connection
 * that something was told of: emit what is answered, read and send on what can
 * be, arm the socket. A turn makes at most one send and one receive each.
 *
 * What holds a client back: replies not yet sent, too many requests under way,
 * a blocked WPOP, a payload without a place, and, when memory runs short, the
 * pause that its own writes cost it (pace.h). Then its socket is not read; it is
 * never cut off for being slow.
 *
 *   N1  start <= parsed <= filled <= the chunk; bytes from start on are needed
 *   N2  the input moves only while in_flight is 0
 *   N3  replies leave in the order of the queue; only its head is emitted
 *   N4  memory of a connection is freed when no operation, no request and no
 *       message of it is anywhere else
 */
#include "connection.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <xxhash.h>

#include "output.h"
#include "session.h"
#include "stream.h"

#define CONNECTION_INPUT       ((uint32_t)(POOL_CHUNK_BYTES - sizeof(struct chunk)))
#define CONNECTION_RESERVE     512 /* of the input, for words behind a payload */
#define CONNECTION_REPLIES_MAX 256 /* not yet sent: then no more commands are read */
#define CONNECTION_VECTORS     16
#define CONNECTION_COPY_MAX    8192 /* longer values are sent from where they are */
#define CONNECTION_RETRY_NS    UINT64_C(100000000)
#define WORD_IN_PLACE          UINT32_MAX

enum phase {
    PHASE_WORDS,   /* words come from the input */
    PHASE_PLACE,   /* a payload waits for its place, or a piece to be written */
    PHASE_PAYLOAD, /* bytes go to the place of a payload */
    PHASE_TAIL,    /* the end of line behind it */
    PHASE_SKIP,    /* bytes that nobody takes */
};

enum reading {
    READING_NAME,
    READING_WORDS,   /* of a command that is read whole */
    READING_EACH,    /* of one that is carried out key by key */
    READING_NOTHING, /* the rest of a command that is refused */
};

enum mark {
    MARK_RELEASE, /* the reply of a request was sent */
    MARK_PIECE,   /* its piece was */
};

struct word {
    uint32_t offset; /* from start; WORD_IN_PLACE: a payload */
    uint32_t bytes;
};

/* Asks the owner of a blocked WPOP to answer it. */
struct cancel {
    struct weir_message message;
    struct connection *connection;
    struct request *request;
    struct cancel *next;
    uint32_t to; /* a queue that had no room */
    bool is_out;
};

struct connection {
    struct connection *next;
    struct connection *previous;
    struct connection *touched_next;
    struct connection *piece_next;
    struct shard *shard;
    uint64_t id;
    int fd;
    bool is_touched;
    bool is_served;  /* right now */
    bool must_serve; /* once more */
    bool is_waiting_piece;
    bool has_ended;  /* the client sends no more */
    bool is_closing; /* no more commands; close when all was sent */
    bool is_failed;  /* close now */
    bool is_shut;
    char name[CONNECTION_NAME_MAX + 1];

    struct weir_operation receive;
    struct weir_operation send;
    bool is_receiving;
    bool is_receiving_payload;
    bool is_sending;
    bool has_more; /* the last receive left bytes in the socket */

    struct chunk *input;
    uint32_t start;
    uint32_t parsed;
    uint32_t filled;
    struct resp_reader reader;
    enum phase phase;
    enum reading reading;
    const struct command *command;
    struct word words[COMMAND_ARGUMENTS_MAX];
    uint32_t word_count;
    struct request *parent; /* READING_EACH, but for MGET */
    struct request *payload;
    uint64_t left_bytes; /* PHASE_PAYLOAD, PHASE_SKIP */
    uint32_t kept;       /* where the words before a payload end in the input */
    bool is_key_bad;     /* of a pair: its value is dropped */
    char error[RESP_TEXT_MAX];

    struct request *first_reply;
    struct request *last_reply;
    uint32_t reply_count;
    uint32_t in_flight;
    struct request *barrier; /* a blocked WPOP: nothing is read on before it is answered */
    struct cancel cancel;

    struct output output;
    struct iovec vectors[CONNECTION_VECTORS];
    struct msghdr header;
    struct pace_seat pace;
    struct lane lanes[];
};

static void connection_fail(struct connection *connection);

static void connection_touch(struct connection *connection)
{
    struct shard *shard = connection->shard;

    if (connection->is_served)
        connection->must_serve = true;
    if (connection->is_served || connection->is_touched)
        return;
    connection->is_touched = true;
    connection->touched_next = shard->touched;
    shard->touched = connection;
}

struct lane *connection_lane(struct connection *connection, uint32_t index)
{
    return &connection->lanes[index];
}

const char *connection_name(const struct connection *connection)
{
    return connection->name;
}

bool connection_set_name(struct connection *connection, struct slice name)
{
    for (size_t i = 0; i < name.bytes; i++)
        if (name.data[i] < '!' || name.data[i] > '~')
            return false;
    if (name.bytes > CONNECTION_NAME_MAX)
        return false;
    memcpy(connection->name, name.data, name.bytes);
    connection->name[name.bytes] = '\0';
    return true;
}

uint64_t connection_id(const struct connection *connection)
{
    return connection->id;
}

void connection_quit(struct connection *connection)
{
    connection->is_closing = true;
}

/* ---- Pieces ------------------------------------------------------------------- */

static char *piece_take(struct connection *connection)
{
    struct shard *shard = connection->shard;
    char *piece = NULL;

    if (shard->piece_count < shard->piece_max)
        piece = malloc(shard->piece_bytes);
    if (piece != NULL) {
        shard->piece_count++;
        weir_account_charge_forced(shard->tables, memory_cost(shard->piece_bytes));
        return piece;
    }
    if (!connection->is_waiting_piece) {
        connection->is_waiting_piece = true;
        connection->piece_next = shard->piece_wait;
        shard->piece_wait = connection;
    }
    return NULL;
}

static void piece_give(struct shard *shard, char *piece)
{
    if (piece == NULL)
        return;
    free(piece);
    shard->piece_count--;
    weir_account_refund(shard->tables, memory_cost(shard->piece_bytes));
    while (shard->piece_wait != NULL) {
        struct connection *connection = shard->piece_wait;

        shard->piece_wait = connection->piece_next;
        connection->is_waiting_piece = false;
        connection_touch(connection);
    }
}

static void piece_wait_leave(struct connection *connection)
{
    struct connection **link = &connection->shard->piece_wait;

    if (!connection->is_waiting_piece)
        return;
    while (*link != connection)
        link = &(*link)->piece_next;
    *link = connection->piece_next;
    connection->is_waiting_piece = false;
}

/* ---- The queue of replies ------------------------------------------------------ */

static void reply_append(struct connection *connection, struct request *request)
{
    request->queue = NULL;
    if (connection->first_reply == NULL)
        connection->first_reply = request;
    else
        connection->last_reply->queue = request;
    connection->last_reply = request;
    connection->reply_count++;
}

static void reply_remove_first(struct connection *connection)
{
    connection->first_reply = connection->first_reply->queue;
    connection->reply_count--;
}

/* An answer that needs nobody else. */
static void reply_now(struct connection *connection, const char *text)
{
    struct request *request = request_make(connection->shard, connection);

    request_reply_text(request, text);
    request->is_answered = true;
    reply_append(connection, request);
}

static void request_end(struct shard *shard, struct request *request)
{
    piece_give(shard, request->piece);
    request->piece = NULL;
    shard_release(shard, request);
}

static void mark_passed(void *context, uint32_t kind, void *mark)
{
    struct connection *connection = context;
    struct request *request = mark;

    if (kind == MARK_RELEASE)
        request_end(connection->shard, request);
    else
        request->piece_state = PIECE_IDLE;
}

/* ---- Emitting ------------------------------------------------------------------ */

/* The rest of [data, data + bytes), from emit_offset on; whether all of it is out. */
static bool emit_bytes(struct connection *connection, struct request *request, const char *data,
                       size_t bytes)
{
    request->emit_offset +=
        output_copy(&connection->output, &connection->shard->pool, data + request->emit_offset,
                    bytes - (size_t)request->emit_offset);
    if (request->emit_offset < bytes)
        return false;
    request->emit_offset = 0;
    return true;
}

static bool emit_text(struct connection *connection, struct request *request)
{
    return emit_bytes(connection, request, request->text, request->text_bytes);
}

/* Bytes that stay where they are until the request is released. */
static bool emit_body(struct connection *connection, struct request *request, const char *data,
                      size_t bytes)
{
    if (bytes <= CONNECTION_COPY_MAX)
        return emit_bytes(connection, request, data, bytes);
    return output_refer(&connection->output, data, bytes);
}

/* One long value out of the region, piece by piece. */
static bool emit_pieces(struct connection *connection, struct request *request, uint64_t bytes)
{
    struct shard *shard = connection->shard;

    switch (request->piece_state) {
    case PIECE_IDLE:
        if (request->emit_offset == bytes) {
            piece_give(shard, request->piece);
            request->piece = NULL;
            request->emit_offset = 0;
            return true;
        }
        if (request->emit_offset == 0 && request->emit_index > 0 && connection->output.bytes > 0)
            return false; /* what was fetched for the items before is given back with the read */
        if (request->piece == NULL && (request->piece = piece_take(connection)) == NULL)
            return false;
        request->piece_offset = request->emit_offset;
        request->piece_bytes = bytes - request->emit_offset < shard->piece_bytes
                                   ? (uint32_t)(bytes - request->emit_offset)
                                   : (uint32_t)shard->piece_bytes;
        request->piece_state = PIECE_READING;
        request->stage = STAGE_READ;
        connection->in_flight++;
        shard_submit(shard, request);
        return false;
    case PIECE_READY:
        if (request->piece_result != (int)request->piece_bytes) {
            /* The length is out already: there is no way to tell but this. */
            connection_fail(connection);
            return false;
        }
        if (!output_has_room(&connection->output) ||
            !output_refer(&connection->output, request->piece, request->piece_bytes))
            return false;
        (void)output_mark(&connection->output, MARK_PIECE, request);
        request->piece_state = PIECE_SENDING;
        request->emit_offset += request->piece_bytes;
        return false;
    case PIECE_READING:
    case PIECE_SENDING:
        break;
    }
    return false;
}

static void text_set(struct request *request, size_t bytes)
{
    request->text_bytes = (uint32_t)bytes;
    request->emit_stage++;
}

/* header | body | end of line; the stages count up from 0. */
static bool emit_value(struct connection *connection, struct request *request)
{
    const uint64_t bytes =
        request->reply == REPLY_PIECES ? request->hold->bytes : request->value->bytes;

    switch (request->emit_stage) {
    case 0:
        text_set(request, resp_write_bulk_header(request->text, bytes));
        /* fallthrough */
    case 1:
        if (!emit_text(connection, request))
            return false;
        request->emit_stage = 2;
        /* fallthrough */
    case 2:
        if (request->reply == REPLY_PIECES
                ? !emit_pieces(connection, request, bytes)
                : !emit_body(connection, request, request->value->data, bytes))
            return false;
        memcpy(request->text, RESP_LINE_END, RESP_LINE_BYTES);
        text_set(request, RESP_LINE_BYTES);
        /* fallthrough */
    default:
        return emit_text(connection, request);
    }
}

static bool emit_items(struct connection *connection, struct request *request)
{
    const struct batch *batch = request->batch;

    for (;;) {
        const struct weir_item *item = &batch->items[request->emit_index];
        size_t at = 0;

        if (!output_has_room(&connection->output))
            return false;
        switch (request->emit_stage) {
        case 0:
            if (request->emit_index == 0)
                at = resp_write_array(request->text, batch->item_count);
            at += resp_write_array(request->text + at, 2);
            at += resp_write_unsigned(request->text + at, item->sequence);
            at += resp_write_bulk_header(request->text + at, item->bytes);
            text_set(request, at);
            /* fallthrough */
        case 1:
            if (!emit_text(connection, request))
                return false;
            request->emit_stage = 2;
            /* fallthrough */
        case 2:
            if (item->data == NULL && item->bytes > 0
                    ? !emit_pieces(connection, request, item->bytes)
                    : !emit_body(connection, request, item->data, item->bytes))
                return false;
            memcpy(request->text, RESP_LINE_END, RESP_LINE_BYTES);
            text_set(request, RESP_LINE_BYTES);
            /* fallthrough */
        default:
            if (!emit_text(connection, request))
                return false;
            request->emit_stage = 0;
            if (++request->emit_index == batch->item_count)
                return true;
        }
    }
}

static bool emit_one(struct connection *connection, struct request *request)
{
    switch (request->reply) {
    case REPLY_NONE:
    case REPLY_TEXT:
        return emit_text(connection, request);
    case REPLY_RAW:
        return emit_bytes(connection, request, request->value->data, request->value_bytes);
    case REPLY_VALUE:
    case REPLY_PIECES:
        return emit_value(connection, request);
    case REPLY_ITEMS:
        return emit_items(connection, request);
    }
    abort();
}

/* N3 */
static void connection_emit(struct connection *connection)
{
    struct request *request;

    /* A request that a cancel names must not become another one. */
    while ((request = connection->first_reply) != NULL && request->is_answered &&
           !connection->cancel.is_out && !connection->is_failed &&
           output_has_room(&connection->output)) {
        if (!emit_one(connection, request))
            return;
        reply_remove_first(connection);
        if (request->reply == REPLY_NONE || request->reply == REPLY_TEXT ||
            !output_mark(&connection->output, MARK_RELEASE, request))
            request_end(connection->shard, request);
    }
}

/* ---- Commands ------------------------------------------------------------------ */

static struct slice word_slice(const struct connection *connection, uint32_t index)
{
    const struct word word = connection->words[index];

    return (struct slice){
        .data = word.offset == WORD_IN_PLACE
                    ? NULL
                    : connection->input->data + connection->start + word.offset,
        .bytes = word.bytes,
    };
}

static void request_route(struct connection *connection, struct request *request)
{
    const struct slice key = request->call.key;
    const uint64_t hash =
        XXH3_64bits_withSeed(key.data, key.bytes, connection->shard->server->hash_seed);

    request->hash = (uint32_t)hash;
    request->owner = shard_of(connection->shard->server, hash);
}

static void request_send(struct connection *connection, struct request *request, enum stage stage)
{
    request->stage = stage;
    connection->in_flight++;
    shard_submit(connection->shard, request);
}

/*
 * Above soft a producer pauses for each item, longer as memory fills. What must
 * wait for memory may wait for the head of a stream behind it: so a SET pays when
 * it was read, a WPUSH only when it was accepted.
 */
static void connection_pace(struct connection *connection)
{
    struct shard *shard = connection->shard;
    const uint64_t delay_ns = weir_account_delay_ns(shard->values);

    if (delay_ns == 0)
        return;
    shard->figures.paced_count++;
    shard->figures.paced_ns += delay_ns;
    (void)pace_add(&shard->pace, &connection->pace, shard->now_ns, delay_ns);
}

static void connection_pace_read(struct connection *connection, enum operation operation)
{
    if (operation == OPERATION_SET || operation == OPERATION_INCR)
        connection_pace(connection);
}

/* A child has done, or its parent has no more words to come. */
static void parent_count_down(struct connection *connection, struct request *parent)
{
    if (--parent->remaining > 0)
        return;
    if (parent->call.operation == OPERATION_INFO)
        session_info(connection->shard, parent);
    else if (parent->reply != REPLY_NONE)
        assert(parent->is_failed); /* a child's error: the first one counts */
    else if (parent->call.operation == OPERATION_SET ||
             parent->call.operation == OPERATION_FLUSHALL)
        request_reply_text(parent, RESP_OK);
    else
        request_reply_integer(parent, parent->sum);
    parent->is_answered = true;
    connection_touch(connection);
}

static void parent_take(struct connection *connection, struct request *child)
{
    struct request *parent = child->parent;

    parent->sum += child->sum;
    if (child->is_failed && parent->reply == REPLY_NONE) {
        child->text[child->text_bytes] = '\0';
        request_reply_text(parent, child->text);
    }
    if (parent->value != NULL && child->value != NULL)
        memcpy(parent->value->data + child->owner * sizeof(struct shard_figures),
               child->value->data, sizeof(struct shard_figures));
    request_end(connection->shard, child);
    parent_count_down(connection, parent);
}

static struct request *parent_make(struct connection *connection, enum operation operation)
{
    struct request *parent = request_make(connection->shard, connection);

    parent->call.operation = operation;
    parent->remaining = 1; /* until all words were read */
    reply_append(connection, parent);
    return parent;
}

static void command_all(struct connection *connection)
{
    struct request *parent = parent_make(connection, connection->command->operation);
    const uint32_t worker_count = connection->shard->server->config.worker_count;

    parent->remaining += worker_count;
    if (parent->call.operation == OPERATION_INFO)
        parent->value = session_info_begin(connection->shard);
    for (uint32_t i = 0; i < worker_count; i++) {
        struct request *child = request_make(connection->shard, connection);

        child->call.operation = connection->command->operation;
        child->parent = parent;
        child->owner = i;
        request_send(connection, child, STAGE_COMMAND);
    }
    parent_count_down(connection, parent);
}

/* All words are there. */
static void command_whole(struct connection *connection)
{
    const struct command *command = connection->command;
    struct slice words[COMMAND_ARGUMENTS_MAX];
    struct request *request = connection->payload;

    if (command->scope == SCOPE_ALL) {
        command_all(connection);
        return;
    }
    if (request == NULL)
        request = request_make(connection->shard, connection);
    connection->payload = NULL;
    for (uint32_t i = 0; i < connection->word_count; i++)
        words[i] = word_slice(connection, i);
    reply_append(connection, request);
    if (command->scope == SCOPE_SESSION) {
        request->call.operation = command->operation;
        session_answer(connection, request, words, connection->word_count);
        request->is_answered = true;
        return;
    }
    if (!command_read(command, words, connection->word_count, &request->call, request->text)) {
        request_reply_text(request, request->text);
        request->is_answered = true;
        return;
    }
    request_route(connection, request);
    if (request->call.flags & CALL_BLOCK && request->call.operation == OPERATION_WPOP)
        connection->barrier = request;
    connection_pace_read(connection, request->call.operation);
    request_send(connection, request, STAGE_COMMAND);
}

/* One key of many, or one pair. */
static void command_unit(struct connection *connection)
{
    const struct command *command = connection->command;
    struct request *request = connection->payload;

    if (request == NULL)
        request = request_make(connection->shard, connection);
    connection->payload = NULL;
    request->call.operation = command->operation;
    request->call.key = word_slice(connection, 0);
    if (command->scope == SCOPE_PAIRS)
        request->call.payload = word_slice(connection, 1);
    request->parent = connection->parent;
    if (request->parent != NULL)
        request->parent->remaining++;
    else
        reply_append(connection, request);
    request->in_array = command->scope == SCOPE_EACH;
    request_route(connection, request);
    connection_pace_read(connection, request->call.operation);
    request_send(connection, request, STAGE_COMMAND);
}

/* A key that is too long to be there. */
static void command_unit_bad(struct connection *connection)
{
    if (connection->command->scope == SCOPE_EACH)
        reply_now(connection, RESP_NIL);
    else if (connection->command->scope == SCOPE_PAIRS && connection->parent->reply == REPLY_NONE)
        request_reply_text(connection->parent, "-ERR key is longer than 4096 bytes\r\n");
}

static void command_refuse(struct connection *connection, const char *error)
{
    connection->reading = READING_NOTHING;
    snprintf(connection->error, sizeof(connection->error), "%s", error);
}

/* The words of a command have come to their end. */
static void command_end(struct connection *connection)
{
    switch (connection->reading) {
    case READING_NAME:
        break;
    case READING_WORDS:
        command_whole(connection);
        break;
    case READING_EACH:
        if (connection->parent != NULL)
            parent_count_down(connection, connection->parent);
        break;
    case READING_NOTHING:
        if (connection->parent != NULL) {
            if (connection->parent->reply == REPLY_NONE)
                request_reply_text(connection->parent, connection->error);
            parent_count_down(connection, connection->parent);
        } else {
            reply_now(connection, connection->error);
        }
        break;
    }
    connection->parent = NULL;
    connection->reading = READING_NAME;
    connection->word_count = 0;
    connection->is_key_bad = false;
    connection->start = connection->parsed;
}

static void command_begin(struct connection *connection, struct slice name)
{
    const uint64_t word_count = connection->reader.arguments_left + 1;
    const struct command *command = command_find(name);
    char header[RESP_HEADER_MAX];
    char error[RESP_TEXT_MAX];

    connection->shard->figures.command_count++;
    connection->command = command;
    if (command == NULL) {
        /* Its words are wanted for the error, as far as they are at hand. */
        connection->reading = READING_WORDS;
        if (word_count <= COMMAND_ARGUMENTS_MAX)
            return;
        command_error_unknown(&name, 1, error);
        command_refuse(connection, error);
        return;
    }
    if (!command_takes(command, word_count)) {
        command_error_arity(command, error);
        command_refuse(connection, error);
        return;
    }
    switch (command->scope) {
    case SCOPE_SESSION:
    case SCOPE_KEY:
    case SCOPE_ALL:
        connection->reading = READING_WORDS;
        return;
    case SCOPE_EACH:
        header[resp_write_array(header, word_count - 1)] = '\0';
        reply_now(connection, header);
        break;
    case SCOPE_SUM:
    case SCOPE_PAIRS:
        connection->parent = parent_make(connection, command->operation);
        break;
    }
    connection->reading = READING_EACH;
    connection->word_count = 0;
    connection->start = connection->parsed;
}

static void unit_word(struct connection *connection, struct word word)
{
    const bool is_pair = connection->command->scope == SCOPE_PAIRS;

    if (connection->word_count == 0 && word.bytes > COMMAND_KEY_MAX)
        connection->is_key_bad = true;
    connection->words[connection->word_count++] = word;
    if (is_pair && connection->word_count == 1)
        return;
    if (connection->is_key_bad)
        command_unit_bad(connection);
    else
        command_unit(connection);
    connection->word_count = 0;
    connection->is_key_bad = false;
    connection->start = connection->parsed;
}

/* One more word of the command under way. */
static void connection_word(struct connection *connection, struct word word)
{
    switch (connection->reading) {
    case READING_NAME:
        connection->words[0] = word;
        connection->word_count = 1;
        command_begin(connection, word_slice(connection, 0));
        break;
    case READING_WORDS:
        if (connection->word_count < COMMAND_ARGUMENTS_MAX)
            connection->words[connection->word_count++] = word;
        else if (connection->command->scope == SCOPE_KEY)
            command_refuse(connection, "-ERR syntax error\r\n");
        break;
    case READING_EACH:
        unit_word(connection, word);
        break;
    case READING_NOTHING:
        connection->start = connection->parsed;
        break;
    }
    if (connection->reader.arguments_left > 0)
        return;
    if (connection->reading == READING_WORDS && connection->command == NULL) {
        struct slice words[COMMAND_ARGUMENTS_MAX];

        for (uint32_t i = 0; i < connection->word_count; i++)
            words[i] = word_slice(connection, i);
        command_error_unknown(words, connection->word_count, connection->error);
        connection->reading = READING_NOTHING;
    }
    command_end(connection);
}

static void connection_protocol_error(struct connection *connection, const char *error)
{
    char text[RESP_TEXT_MAX];

    if (connection->parent != NULL) {
        /* What was read of its keys takes effect; it is not answered. */
        connection->parent->reply = REPLY_TEXT;
        connection->parent->is_failed = true;
        connection->parent->text_bytes = 0;
        parent_count_down(connection, connection->parent);
        connection->parent = NULL;
    }
    snprintf(text, sizeof(text), "-ERR Protocol error: %s\r\n", error);
    reply_now(connection, text);
    connection->is_closing = true;
}

/* ---- Long words ----------------------------------------------------------------- */

/* The bytes of a word that cannot be taken are passed over. */
static void skip_begin(struct connection *connection, uint64_t bytes)
{
    connection->phase = PHASE_SKIP;
    connection->left_bytes = bytes;
}

static bool is_payload(const struct connection *connection)
{
    const struct command *command = connection->command;

    if (command == NULL || command->payload_at == 0)
        return false;
    if (connection->reading == READING_EACH)
        return command->scope == SCOPE_PAIRS && connection->word_count == 1 &&
               !connection->is_key_bad;
    return connection->reading == READING_WORDS && connection->word_count == command->payload_at;
}

static void payload_begin(struct connection *connection, uint64_t bytes)
{
    const struct command *command = connection->command;
    struct request *request = request_make(connection->shard, connection);
    const bool is_unit = connection->reading == READING_EACH;
    const bool has_key = command->scope != SCOPE_SESSION;

    request->call.operation = command->operation;
    request->call.payload.bytes = bytes;
    if (has_key)
        request->call.key = word_slice(connection, is_unit ? 0 : 1);
    if ((has_key && request->call.key.bytes > COMMAND_KEY_MAX) ||
        (command->operation == OPERATION_WPUSH &&
         !resp_unsigned(word_slice(connection, 2), &request->call.sequence))) {
        request_drop(connection->shard, request);
        command_refuse(connection, "-ERR value is not an integer or out of range\r\n");
        skip_begin(connection, bytes + RESP_LINE_BYTES);
        return;
    }
    if (has_key)
        request_route(connection, request);
    connection->payload = request;
    connection->kept = connection->parsed;
    connection->left_bytes = bytes;
    connection->phase = PHASE_PLACE;
    request_send(connection, request, STAGE_BEGIN);
}

/* The payload under way is refused; its error is in the reply. */
static void payload_refuse(struct connection *connection)
{
    struct request *request = connection->payload;

    connection->payload = NULL;
    request->text[request->text_bytes] = '\0';
    command_refuse(connection, request->text);
    request_end(connection->shard, request);
    skip_begin(connection, connection->left_bytes + RESP_LINE_BYTES);
}

/* BEGIN or PIECE came back. */
static void payload_answered(struct connection *connection, struct request *request)
{
    request->piece_bytes = 0;
    if (request->is_failed) {
        payload_refuse(connection);
        return;
    }
    if (connection->left_bytes > 0) {
        connection->phase = PHASE_PAYLOAD;
        return;
    }
    piece_give(connection->shard, request->piece);
    request->piece = NULL;
    connection->phase = PHASE_TAIL;
}

/* Where the next bytes of a payload go; *ret_bytes is how many fit. NULL: nowhere yet. */
static char *payload_target(struct connection *connection, size_t *ret_bytes)
{
    struct request *request = connection->payload;
    struct value *value = request->place.value;
    const uint64_t bytes = request->call.payload.bytes;

    if (value != NULL) {
        *ret_bytes = (size_t)connection->left_bytes;
        return value->data + (bytes - connection->left_bytes);
    }
    if (request->piece == NULL && (request->piece = piece_take(connection)) == NULL)
        return NULL;
    *ret_bytes = (size_t)connection->shard->piece_bytes - request->piece_bytes;
    if (*ret_bytes > connection->left_bytes)
        *ret_bytes = (size_t)connection->left_bytes;
    return request->piece + request->piece_bytes;
}

/* @bytes have come to where payload_target() said. */
static void payload_came(struct connection *connection, size_t bytes)
{
    struct request *request = connection->payload;

    connection->left_bytes -= bytes;
    if (request->place.value != NULL) {
        if (connection->left_bytes == 0)
            connection->phase = PHASE_TAIL;
        return;
    }
    request->piece_bytes += (uint32_t)bytes;
    if (request->piece_bytes < connection->shard->piece_bytes && connection->left_bytes > 0)
        return;
    connection->phase = PHASE_PLACE;
    request_send(connection, request, STAGE_PIECE);
}

static bool payload_feed(struct connection *connection)
{
    size_t there = connection->filled - connection->parsed;
    size_t room;
    char *target;

    if (there == 0)
        return false;
    target = payload_target(connection, &room);
    if (target == NULL)
        return false;
    if (there > room)
        there = room;
    memcpy(target, connection->input->data + connection->parsed, there);
    connection->parsed += (uint32_t)there;
    payload_came(connection, there);
    return true;
}

static bool skip_feed(struct connection *connection)
{
    uint64_t there = connection->filled - connection->parsed;

    if (there > connection->left_bytes)
        there = connection->left_bytes;
    connection->parsed += (uint32_t)there;
    connection->left_bytes -= there;
    connection->start = connection->parsed;
    if (connection->left_bytes > 0)
        return false;
    connection->phase = PHASE_WORDS;
    if (connection->reader.arguments_left == 0)
        command_end(connection);
    return true;
}

/* A word whose bytes the input cannot hold. */
static void connection_long_word(struct connection *connection)
{
    struct resp_reader *reader = &connection->reader;
    const uint64_t bytes = reader->bulk_bytes;
    const bool takes = is_payload(connection);

    reader->bulk_known = false;
    reader->arguments_left--;
    if (takes) {
        payload_begin(connection, bytes);
        return;
    }
    switch (connection->reading) {
    case READING_NAME:
        command_refuse(connection, "-ERR unknown command\r\n");
        break;
    case READING_WORDS:
        command_refuse(connection, connection->command == NULL
                                       ? "-ERR unknown command\r\n"
                                       : "-ERR an argument is too long\r\n");
        break;
    case READING_EACH:
        if (connection->command->scope == SCOPE_PAIRS && connection->word_count == 0) {
            connection->is_key_bad = true;
            connection->words[connection->word_count++] = (struct word){.offset = 0, .bytes = 0};
        } else {
            command_unit_bad(connection);
            connection->word_count = 0;
            connection->is_key_bad = false;
        }
        break;
    case READING_NOTHING:
        break;
    }
    skip_begin(connection, bytes + RESP_LINE_BYTES);
}

/* ---- Reading on ------------------------------------------------------------------ */

static bool connection_may_read_on(const struct connection *connection)
{
    return !connection->is_closing && !connection->is_failed && connection->barrier == NULL &&
           !connection->pace.is_paused && connection->reply_count < CONNECTION_REPLIES_MAX &&
           connection->output.bytes < OUTPUT_BYTES_MAX / 2;
}

static bool words_feed(struct connection *connection)
{
    struct resp_reader *reader = &connection->reader;
    uint32_t needed;
    struct slice word = {0};
    size_t used;
    const enum resp_result result =
        resp_next(reader, connection->input->data + connection->parsed,
                  connection->filled - connection->parsed, &used, &word);

    connection->parsed += (uint32_t)used;
    switch (result) {
    case RESP_COMMAND:
        if (reader->arguments_left == 0)
            connection->start = connection->parsed;
        return true;
    case RESP_ARGUMENT:
        connection_word(connection, (struct word){
                                        .offset = (uint32_t)(word.data - connection->input->data) -
                                                  connection->start,
                                        .bytes = (uint32_t)word.bytes,
                                    });
        return true;
    case RESP_ERROR:
        connection_protocol_error(connection, reader->error);
        return true;
    case RESP_MORE:
        break;
    }
    needed = connection->parsed - connection->start + RESP_LINE_BYTES;
    needed += reader->arguments_left > 1 ? CONNECTION_RESERVE : 0;
    if (reader->arguments_left > 0 && reader->bulk_known &&
        reader->bulk_bytes + needed > CONNECTION_INPUT) {
        connection_long_word(connection);
        return true;
    }
    if (connection->start > 0 || connection->filled < CONNECTION_INPUT)
        return false;
    connection_protocol_error(connection, reader->arguments_left == 0 ? "too big inline request"
                                                                      : "too big request");
    return true;
}

/* Until there is nothing to read, or a reason to wait; whether anything was done. */
static bool connection_read_on(struct connection *connection)
{
    bool has_read = false;
    bool goes_on = true;

    while (goes_on && connection_may_read_on(connection)) {
        switch (connection->phase) {
        case PHASE_WORDS:
            goes_on = words_feed(connection);
            break;
        case PHASE_PLACE:
            goes_on = false;
            break;
        case PHASE_PAYLOAD:
            goes_on = payload_feed(connection);
            break;
        case PHASE_TAIL:
            goes_on = connection->filled - connection->parsed >= RESP_LINE_BYTES;
            if (!goes_on)
                break;
            connection->parsed += RESP_LINE_BYTES;
            connection->phase = PHASE_WORDS;
            connection_word(connection,
                            (struct word){
                                .offset = WORD_IN_PLACE,
                                .bytes = (uint32_t)connection->payload->call.payload.bytes,
                            });
            break;
        case PHASE_SKIP:
            goes_on = skip_feed(connection);
            break;
        }
        has_read = has_read || goes_on;
    }
    return has_read;
}

/* ---- The socket ------------------------------------------------------------------ */

static void connection_fail(struct connection *connection)
{
    connection->is_failed = true;
    if (connection->is_shut)
        return;
    connection->is_shut = true;
    shutdown(connection->fd, SHUT_RDWR);
}

static void receive_complete(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct connection *connection =
        (struct connection *)(void *)((char *)operation - offsetof(struct connection, receive));

    connection->is_receiving = false;
    connection->has_more = (flags & IORING_CQE_F_SOCK_NONEMPTY) != 0;
    connection_touch(connection);
    if (result == -EINTR || result == -EAGAIN)
        return;
    if (result <= 0) {
        if (result == 0)
            connection->has_ended = true;
        else
            connection_fail(connection);
        return;
    }
    if (connection->is_receiving_payload)
        payload_came(connection, (size_t)result);
    else
        connection->filled += (uint32_t)result;
}

/* Room at the end of the input, if it may be made. */
static size_t input_room(struct connection *connection)
{
    if (connection->start > 0 && connection->in_flight == 0 &&
        (connection->start == connection->filled ||
         CONNECTION_INPUT - connection->filled < CONNECTION_INPUT / 2)) {
        /* N2 */
        memmove(connection->input->data, connection->input->data + connection->start,
                connection->filled - connection->start);
        connection->filled -= connection->start;
        connection->parsed -= connection->start;
        connection->start = 0;
    }
    return CONNECTION_INPUT - connection->filled;
}

static void connection_receive(struct connection *connection)
{
    struct io_uring_sqe *sqe;
    char *target = NULL;
    size_t room = 0;

    if (connection->is_receiving || connection->has_ended || connection->is_closing ||
        connection->is_failed || connection->phase == PHASE_PLACE)
        return;
    if ((connection->phase == PHASE_PAYLOAD || connection->phase == PHASE_TAIL) &&
        connection->parsed == connection->filled) {
        /* What the input had of the payload was copied to its place. */
        connection->parsed = connection->kept;
        connection->filled = connection->kept;
    }
    connection->is_receiving_payload =
        connection->phase == PHASE_PAYLOAD && connection->parsed == connection->filled;
    if (connection->is_receiving_payload) {
        target = payload_target(connection, &room);
        if (room > UINT32_MAX / 4)
            room = UINT32_MAX / 4;
    } else if (connection->barrier != NULL || connection_may_read_on(connection)) {
        room = input_room(connection);
        target = connection->input->data + connection->filled;
    }
    if (target == NULL || room == 0)
        return;
    connection->is_receiving = true;
    sqe = weir_worker_sqe(connection->shard->worker, &connection->receive);
    io_uring_prep_recv(sqe, connection->fd, target, room, 0);
    if (!connection->has_more)
        sqe->ioprio |= IORING_RECVSEND_POLL_FIRST;
}

static void send_complete(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct connection *connection =
        (struct connection *)(void *)((char *)operation - offsetof(struct connection, send));

    (void)flags;
    connection->is_sending = false;
    connection_touch(connection);
    if (result == -EINTR || result == -EAGAIN)
        result = 0;
    if (result < 0) {
        connection_fail(connection);
        return;
    }
    output_advance(&connection->output, &connection->shard->pool, (size_t)result, mark_passed,
                   connection);
}

static void connection_send(struct connection *connection)
{
    size_t bytes;
    int count;

    if (connection->is_sending || connection->is_failed || output_is_empty(&connection->output))
        return;
    count = output_gather(&connection->output, connection->vectors, CONNECTION_VECTORS, &bytes);
    if (count == 0) {
        output_advance(&connection->output, &connection->shard->pool, 0, mark_passed, connection);
        connection_touch(connection);
        return;
    }
    connection->header = (struct msghdr){
        .msg_iov = connection->vectors,
        .msg_iovlen = (size_t)count,
    };
    connection->is_sending = true;
    io_uring_prep_sendmsg(weir_worker_sqe(connection->shard->worker, &connection->send),
                          connection->fd, &connection->header, MSG_NOSIGNAL | MSG_WAITALL);
}

/* ---- Answers --------------------------------------------------------------------- */

void connection_answered(struct shard *shard, struct request *request)
{
    struct connection *connection = request->connection;

    (void)shard;
    connection->in_flight--;
    connection_touch(connection);
    switch (request->stage) {
    case STAGE_COMMAND:
        if (connection->barrier == request)
            connection->barrier = NULL;
        if (request->call.operation == OPERATION_WPUSH && !request->is_failed)
            connection_pace(connection);
        if (request->parent != NULL) {
            parent_take(connection, request);
            return;
        }
        /* In an array an error has no place: a key of another type is nothing there. */
        if (request->in_array && request->is_failed && request->text[1] == 'W')
            request_reply_text(request, RESP_NIL);
        request->is_answered = true;
        return;
    case STAGE_BEGIN:
    case STAGE_PIECE:
        payload_answered(connection, request);
        return;
    case STAGE_READ:
        request->piece_state = PIECE_READY;
        return;
    case STAGE_RELEASE:
        break;
    }
    abort();
}

/* ---- A blocked client that goes away ----------------------------------------------- */

static void cancel_returned(struct weir_worker *worker, struct weir_message *message)
{
    struct cancel *cancel = (struct cancel *)(void *)message;

    (void)worker;
    cancel->is_out = false;
    connection_touch(cancel->connection);
}

static void cancel_send(struct shard *shard, struct cancel *cancel, uint32_t index)
{
    if (weir_worker_send(shard->worker, index, &cancel->message) == 0)
        return;
    cancel->to = index;
    cancel->next = shard->cancels;
    shard->cancels = cancel;
    shard_nudge(shard);
}

/* Those that a queue had no room for. */
static void cancel_send_again(struct shard *shard)
{
    struct cancel *cancel = shard->cancels;

    shard->cancels = NULL;
    while (cancel != NULL) {
        struct cancel *next = cancel->next;

        cancel_send(shard, cancel, cancel->to);
        cancel = next;
    }
}

static void cancel_received(struct weir_worker *worker, struct weir_message *message)
{
    struct cancel *cancel = (struct cancel *)(void *)message;

    (void)worker;
    stream_cancel(shard_here(), cancel->request);
    cancel->message.receive = cancel_returned;
    cancel_send(shard_here(), cancel, cancel->request->origin);
}

static void connection_cancel(struct connection *connection)
{
    struct cancel *cancel = &connection->cancel;
    struct shard *shard = connection->shard;

    if (connection->barrier == NULL || cancel->is_out)
        return;
    if (connection->barrier->owner == shard->index) {
        stream_cancel(shard, connection->barrier);
        return;
    }
    cancel->is_out = true;
    cancel->request = connection->barrier;
    cancel->connection = connection;
    cancel->message.receive = cancel_received;
    cancel_send(shard, cancel, connection->barrier->owner);
}

/* ---- Lifecycle ------------------------------------------------------------------- */

static size_t connection_cost(const struct shard *shard)
{
    return memory_cost(sizeof(struct connection) +
                       shard->server->config.worker_count * sizeof(struct lane));
}

static void connection_open(struct shard *shard, int fd)
{
    static const char refusal[] = "-ERR max number of clients reached\r\n";
    const int yes = 1;
    struct connection *connection = NULL;

    shard->figures.accepted_count++;
    if (atomic_fetch_add(&shard->server->client_count, 1) >= shard->server->config.client_max ||
        shard->is_stopping)
        goto refuse;
    connection =
        calloc(1, sizeof(*connection) + shard->server->config.worker_count * sizeof(struct lane));
    if (connection == NULL)
        goto refuse;
    connection->input = pool_take(&shard->pool, false);
    if (connection->input == NULL)
        goto refuse;
    weir_account_charge_forced(shard->tables, connection_cost(shard));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
    connection->shard = shard;
    connection->fd = fd;
    connection->id = atomic_fetch_add(&shard->server->client_id, 1) + 1;
    connection->receive.complete = receive_complete;
    connection->send.complete = send_complete;
    connection->next = shard->connections;
    if (connection->next != NULL)
        connection->next->previous = connection;
    shard->connections = connection;
    shard->connection_count++;
    connection_touch(connection);
    return;

refuse:
    atomic_fetch_sub(&shard->server->client_count, 1);
    free(connection);
    (void)!send(fd, refusal, sizeof(refusal) - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    close(fd);
}

/* N4 */
static void connection_end(struct connection *connection)
{
    struct shard *shard = connection->shard;
    struct request *request;

    output_drop(&connection->output, &shard->pool, mark_passed, connection);
    while ((request = connection->first_reply) != NULL) {
        reply_remove_first(connection);
        request_end(shard, request);
    }
    if (connection->payload != NULL)
        request_end(shard, connection->payload);
    piece_wait_leave(connection);
    pace_leave(&shard->pace, &connection->pace);
    pool_give(&shard->pool, connection->input, false);
    close(connection->fd);
    if (connection->previous != NULL)
        connection->previous->next = connection->next;
    else
        shard->connections = connection->next;
    if (connection->next != NULL)
        connection->next->previous = connection->previous;
    shard->connection_count--;
    atomic_fetch_sub(&shard->server->client_count, 1);
    weir_account_refund(shard->tables, connection_cost(shard));
    free(connection);
}

/* Nothing is under way, and nothing comes of itself. */
static bool connection_is_idle(const struct connection *connection)
{
    return connection->in_flight == 0 && output_is_empty(&connection->output) &&
           (connection->first_reply == NULL || !connection->first_reply->is_answered);
}

static void connection_serve_once(struct connection *connection)
{
    do
        connection_emit(connection);
    while (connection_read_on(connection));

    connection->must_serve = false;
    if (connection->has_ended || connection->is_failed)
        connection_cancel(connection);
    if ((connection->has_ended || connection->is_closing) && connection_is_idle(connection))
        connection_fail(connection);
    if (!connection->is_failed) {
        connection_send(connection);
        connection_receive(connection);
    }
}

/* Everything that this connection can do now. */
static void connection_serve(struct connection *connection)
{
    connection->is_served = true;
    do
        connection_serve_once(connection);
    while (connection->must_serve);
    connection->is_served = false;

    if (connection->is_failed && !connection->is_receiving && !connection->is_sending &&
        connection->in_flight == 0 && !connection->cancel.is_out)
        connection_end(connection);
}

static void connection_resume(struct pace_seat *seat)
{
    connection_touch(
        (struct connection *)(void *)((char *)seat - offsetof(struct connection, pace)));
}

static void pace_complete(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    (void)operation;
    (void)result;
    (void)flags;
    shard_here()->pace_is_armed = false;
}

/* While anybody pauses there is a turn per grain. */
static void pace_arm(struct shard *shard)
{
    static struct __kernel_timespec grain = {.tv_nsec = PACE_GRAIN_NS};

    if (shard->pace.paused_count == 0 || shard->pace_is_armed || shard->is_stopping)
        return;
    shard->pace_is_armed = true;
    shard->pace_timer.complete = pace_complete;
    io_uring_prep_timeout(weir_worker_sqe(shard->worker, &shard->pace_timer), &grain, 0, 0);
}

void connection_tick(struct shard *shard)
{
    if (shard->cancels != NULL)
        cancel_send_again(shard);
    pace_turn(&shard->pace, shard->now_ns, connection_resume);
    while (shard->touched != NULL) {
        struct connection *connection = shard->touched;

        shard->touched = connection->touched_next;
        connection->is_touched = false;
        connection_serve(connection);
    }
    pace_arm(shard);
    if (!shard->accept_is_armed && !shard->is_stopping && shard->now_ns >= shard->accept_again_ns)
        connection_listen(shard);
}

void connection_close_all(struct shard *shard)
{
    for (struct connection *connection = shard->connections; connection != NULL;
         connection = connection->next) {
        connection_fail(connection);
        connection_touch(connection);
    }
    /* Ends the accept that is under way. */
    shutdown(shard->listen_fd, SHUT_RDWR);
}

static void accept_complete(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct shard *shard = shard_here();

    (void)operation;
    if (!(flags & IORING_CQE_F_MORE))
        shard->accept_is_armed = false;
    if (result >= 0)
        connection_open(shard, result);
    else if (result != -ECONNABORTED && result != -EINTR && result != -EAGAIN)
        shard->accept_again_ns =
            shard->now_ns + CONNECTION_RETRY_NS; /* no descriptors, no memory */
}

void connection_listen(struct shard *shard)
{
    shard->accept.complete = accept_complete;
    shard->accept_is_armed = true;
    io_uring_prep_multishot_accept(weir_worker_sqe(shard->worker, &shard->accept), shard->listen_fd,
                                   NULL, NULL, SOCK_CLOEXEC);
}
