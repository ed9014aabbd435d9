/* SPDX-License-Identifier: MIT */
#ifndef WEIR_WORKER_MAILBOX_H
#define WEIR_WORKER_MAILBOX_H

/*
 * mailbox - the queues of a mesh, and who sleeps
 *
 * Pure but for two descriptors: no thread, no ring. A port is what others may
 * touch of a worker; it lives as long as the mesh, so that it may be touched
 * after the worker has gone.
 */

#include <weir/worker.h>

#include <stdbool.h>
#include <stdint.h>

#define MAILBOX_APART 128 /* two lines: the prefetcher of x86 takes them in pairs */

/*
 * struct weir__port - where a worker is found by others
 * @sleep_count:  odd while it sleeps, or is about to; written by the owner
 * @woken:        somebody wants it to run a turn; set by any, taken by the owner
 * @stopped:      it was there and has gone
 * @ring_fd:      a duplicate of its ring's descriptor, -1 before the first
 *                start; kept until the mesh goes, so that the number never
 *                names a stranger's file
 * @event_fd:     what wakes it from outside a ring
 */
struct weir__port {
    _Alignas(MAILBOX_APART) uint64_t sleep_count;
    _Alignas(MAILBOX_APART) uint32_t woken;
    uint32_t stopped;
    int32_t ring_fd;
    int32_t event_fd;
};

/*
 * struct weir__queue - one direction of a pair
 *
 * Both sides keep a copy of the other's index and look again when it runs out.
 * All zero is an empty queue: pairs that never talk take no memory.
 */
struct weir__queue {
    _Alignas(MAILBOX_APART) uint32_t tail; /* written by the sender: next to fill */
    uint32_t head_known;                   /* the sender's copy */
    _Alignas(MAILBOX_APART) uint32_t head; /* written by the receiver: next to take */
    uint32_t tail_known;                   /* the receiver's copy */
};

struct weir_mesh {
    uint32_t worker_count;
    uint32_t messages_max;          /* a power of two */
    uint32_t port_count;            /* initialised: all, but while it is made */
    struct weir__port *ports;       /* worker_count */
    struct weir__queue *queues;     /* receiver * worker_count + sender */
    struct weir_message **messages; /* messages_max for each queue */
};

/* ---- Ports ---------------------------------------------------------------- */

int weir__port_init(struct weir__port *port);
void weir__port_deinit(struct weir__port *port);

/* Owner: it has a ring now. */
int weir__port_attach(struct weir__port *port, int ring_fd);

/* Owner: it has none any more. */
void weir__port_detach(struct weir__port *port);

/*
 * Owner, before it sleeps: announce it. Afterwards it must look once more at
 * everything that others may have left for it, and may sleep only if there is
 * nothing.
 */
void weir__port_lie_down(struct weir__port *port);

/* Owner, afterwards. */
void weir__port_get_up(struct weir__port *port);

/* Any, after leaving something for the owner: which sleep it must be woken from; 0: it is awake. */
uint64_t weir__port_sleep(const struct weir__port *port);

/* Any: make the owner run a turn. Whether its eventfd must be signalled for that. */
bool weir__port_call(struct weir__port *port);

/* Owner: whether somebody called since the last time. */
bool weir__port_was_called(const struct weir__port *port);
void weir__port_take_call(struct weir__port *port);

/* ---- Queues --------------------------------------------------------------- */

/* Sender. Whether there was room. */
bool weir__mesh_push(struct weir_mesh *mesh, uint32_t sender, uint32_t receiver,
                     struct weir_message *message);

/* Receiver. NULL: empty. */
struct weir_message *weir__mesh_pop(struct weir_mesh *mesh, uint32_t sender, uint32_t receiver);

/* Receiver: whether all queues that lead to it are empty. */
bool weir__mesh_is_quiet(const struct weir_mesh *mesh, uint32_t receiver);

/* An estimate of what the queues that lead to one worker hold. */
uint64_t weir__mesh_bytes(const struct weir_mesh *mesh);

#endif
