/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SERVER_REQUEST_H
#define WEIR_SERVER_REQUEST_H

/*
 * request - one command on its way: from its connection to the core of its key
 * and back
 *
 *      connection's core                      key's core (owner)
 *      made, queued for its reply  -------->  carried out, perhaps parked
 *      reply sent                  <--------  answered
 *                                  -------->  released: what the reply held
 *
 * Where both are the same core, the arrows are calls. A request is touched by
 * the core that has it and by no other. Its words lie in the input of its
 * connection, which stays where it is until the request is answered; the bytes
 * of its reply lie with the owner until it is released. So a command crosses
 * cores without a copy.
 */

#include <stdbool.h>
#include <stdint.h>

#include <weir/base.h>
#include <weir/governor.h>
#include <weir/reorder.h>
#include <weir/worker.h>

#include "command.h"
#include "keyspace.h"
#include "resp.h"

struct connection;
struct hold;
struct shard;
struct stream;

enum stage {
    STAGE_COMMAND, /* carry it out */
    STAGE_BEGIN,   /* a place for a payload that comes in pieces */
    STAGE_PIECE,   /* one piece of it, for the region */
    STAGE_READ,    /* one piece of a long value, out of the region */
    STAGE_RELEASE, /* let go of what the reply holds, and of the request */
};

enum reply {
    REPLY_NONE,
    REPLY_TEXT,   /* text, whole */
    REPLY_VALUE,  /* a bulk: the bytes of value */
    REPLY_RAW,    /* the bytes of value are the reply, as they are */
    REPLY_PIECES, /* a bulk: the bytes of hold's slot, read piece by piece */
    REPLY_ITEMS,  /* an array of pairs: what WPOP took */
};

/* The buffer of a reply that is read and sent piece by piece. */
enum piece_state {
    PIECE_IDLE,
    PIECE_READING, /* with the owner */
    PIECE_READY,
    PIECE_SENDING, /* in the output */
};

/* What WPOP took from a stream, until it was sent. */
struct batch {
    struct stream *stream;
    uint32_t item_count;
    uint32_t released_count; /* of the first: sent, and given back already */
    struct weir_item items[];
};

/* Where a payload that comes in pieces is put together. */
struct place {
    struct value *value; /* or, NULL: */
    struct weir_slot slot;
    uint64_t written_bytes; /* of the slot */
};

struct request_list {
    struct request *first;
    struct request *last;
};

struct request {
    struct weir_message message;
    struct weir_operation operation; /* STAGE_READ */
    struct weir_waiter waiter;
    struct request *next;  /* in one list of whoever has it */
    struct request *queue; /* the next reply of its connection */
    struct request *parent;
    struct connection *connection;
    uint32_t origin; /* core of the connection */
    uint32_t owner;  /* core of the key */
    uint32_t hash;
    enum stage stage;
    struct call call;
    struct place place;

    /* The owner's, while it has it. */
    struct shard *shard;
    struct request *lane_next;
    struct request *wait_next; /* all that wait for an account */
    struct request *wait_previous;
    struct weir_account *wait_account;
    size_t wait_bytes;
    size_t entry_charge; /* granted, not yet used */
    size_t value_charge;
    uint64_t deadline_ns; /* 0: it did not have to wait yet */
    int wake_result;
    bool is_parked; /* waits for memory */
    bool is_in_lane;
    struct stream *blocked_on; /* a WPOP that waits for items */

    /* The reply, the owner's words. */
    enum reply reply;
    bool is_answered;
    bool in_array;
    bool is_failed; /* the text is an error */
    uint32_t text_bytes;
    struct value *value;
    uint32_t value_bytes; /* REPLY_RAW: of the value */
    struct hold *hold;
    struct batch *batch;
    int64_t sum; /* SCOPE_SUM and SCOPE_ALL: what this core adds */

    /* The connection's. */
    uint64_t remaining; /* of a parent: children that are under way, and one while words come */
    uint32_t emit_stage;
    uint32_t emit_index;
    uint64_t emit_offset;
    char *piece; /* of its connection's core */
    uint32_t piece_bytes;
    uint64_t piece_offset;
    int piece_result;
    enum piece_state piece_state;
    char text[RESP_TEXT_MAX];
};

static inline void request_list_append(struct request_list *list, struct request *request)
{
    request->next = NULL;
    if (list->first == NULL)
        list->first = request;
    else
        list->last->next = request;
    list->last = request;
}

static inline struct request *request_list_take(struct request_list *list)
{
    struct request *request = list->first;

    if (request != NULL)
        list->first = request->next;
    return request;
}

/* Take @request out of the middle; it must be there. */
static inline void request_list_remove(struct request_list *list, struct request *request)
{
    struct request **link = &list->first;
    struct request *before = NULL;

    while (*link != request) {
        before = *link;
        link = &before->next;
    }
    *link = request->next;
    if (list->last == request)
        list->last = before;
}

/* ---- Replies ------------------------------------------------------------------ */

void request_reply_text(struct request *request,
                        const char *text); /* whole lines; "-..." is a failure */
void request_reply_integer(struct request *request, int64_t value);
void request_reply_bulk(struct request *request, const char *data, size_t bytes); /* at most 160 */

#endif
