/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SERVER_SHARD_H
#define WEIR_SERVER_SHARD_H

/*
 * shard - one core of the server: what it owns, and its turn
 *
 * A shard is a worker with its connections, its keys and its streams. It shares
 * nothing with the others but the governor and a few counters; requests go
 * between them as messages.
 */

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <weir/governor.h>
#include <weir/region.h>
#include <weir/worker.h>

#include "keyspace.h"
#include "pace.h"
#include "pool.h"
#include "request.h"

struct cancel;

#define SHARD_OWNER_KEYS    1 /* owner tags in the region */
#define SHARD_OWNER_STREAMS 2
#define SHARD_HOLD_BUCKETS  256
#define SHARD_BUILDERS_MAX  16

/* What can be freed when memory is short, the cheapest first. */
enum {
    SHARD_RECLAIM_BUFFERS, /* vacant ones of the pool */
    SHARD_RECLAIM_HEAP,    /* shard 0: holes that malloc keeps */
    SHARD_RECLAIM_VALUES,  /* into the region */
    SHARD_RECLAIMERS,
};

struct server_config {
    uint64_t memory_bytes;
    uint64_t spill_bytes; /* of all workers */
    const char *spill_directory;
    uint64_t wait_ms;
    const char *address;
    uint16_t port;
    uint32_t worker_count;
    uint32_t client_max;
    uint32_t soft_percent;
    uint32_t spill_percent;
};

struct server {
    struct server_config config; /* fixed before the workers start */
    struct weir_governor *governor;
    struct weir_mesh *mesh;
    struct shard *shards;
    int64_t start_ms;
    int64_t start_unix_ms;
    uint64_t hash_seed; /* by chance: nobody can choose keys that collide */
    _Atomic uint64_t client_count;
    _Atomic uint64_t client_id;
    _Atomic uint64_t message_count; /* releases on their way: nobody else waits for them */
    _Atomic uint32_t quiet_count;   /* shards without connections, while stopping */
    _Atomic bool stopping;
};

/* What a shard tells of itself in INFO. */
struct shard_figures {
    struct weir_region_stats region;
    struct weir_account_stats values;
    struct weir_account_stats keys;
    struct weir_worker_stats worker;
    uint64_t key_count;
    uint64_t expire_count;
    uint64_t memory_count;
    uint64_t slot_count;
    uint64_t value_bytes;
    uint64_t stream_count;
    uint64_t connection_count;
    uint64_t command_count;
    uint64_t accepted_count;
    uint64_t hit_count;
    uint64_t miss_count;
    uint64_t expired_count;
    uint64_t spilled_count; /* values pushed out to the region */
    uint64_t direct_count;  /* new values that went there at once */
    uint64_t fetched_count; /* cold values brought back for a reply */
    uint64_t promoted_count;
    uint64_t parked_count;  /* commands that had to wait for memory */
    uint64_t refused_count; /* of these, answered -OOM */
    uint64_t hop_count;     /* commands that came from another core */
    uint64_t blocked_count; /* WPOPs that wait now */
    uint64_t drift_bytes;
    uint64_t paced_count; /* writes that their clients had to pause for */
    uint64_t paced_ns;
    uint64_t stall_counts[3]; /* by enum weir_stall_cause */
    struct weir_reclaimer reclaimers[SHARD_RECLAIMERS];
};

/* A cold value that replies wait for or are sending: its slot stays until the last has done. */
struct hold {
    struct hold *next;       /* in its bucket */
    struct hold *fetch_next; /* in the queue of those to be fetched */
    struct weir_slot slot;
    uint32_t bytes;
    uint32_t reference_count;
    bool is_dead;     /* no key has it any more: the last one frees the slot */
    bool is_fetching; /* queued or under way */
    struct request_list waiting;
};

/*
 * An item that grows in the region keeps a chunk in memory, and the region has
 * few: so few grow at a time. One whose client has stopped sending loses its
 * place when others wait.
 */
struct builder {
    struct weir_slot slot; /* all zero: vacant */
    uint64_t touched_ns;
};

/* Keys that FLUSHALL took away, to be freed a few at a time. */
struct dying {
    struct dying *next;
    struct keyspace keys;
    uint64_t cursor;
};

struct shard {
    struct server *server;
    uint32_t index;
    struct weir_worker *worker;
    struct weir_region *region;
    struct weir_account *values; /* the worker's: may be told to spill */
    struct weir_account *tables; /* keys, short values, buffers: never */
    struct weir_account *drift;  /* shard 0: memory that the books do not know */
    uint64_t drift_bytes;
    uint64_t trim_again_ns; /* the heap is not asked before */
    struct weir_reclaimer reclaimers[SHARD_RECLAIMERS];
    uint64_t now_ns;
    int64_t now_ms;

    struct slab slab;
    struct keyspace keys;
    struct dying *dying;
    uint64_t sweep_cursor;
    uint64_t value_memory_max; /* longer ones go to the region in any case */
    uint64_t piece_bytes;      /* of one piece of a long value */
    uint64_t whole_bytes_max;  /* cold values up to this are fetched at once */

    struct hold *holds[SHARD_HOLD_BUCKETS];
    uint32_t hold_count;
    struct hold *fetch_first;
    struct hold *fetch_last;
    uint64_t loose_bytes; /* values made for replies only */
    uint64_t loose_max;
    uint64_t fetching_bytes; /* asked for, for the same purpose */

    uint64_t staged_bytes; /* payloads put together in memory on their way to the region */
    uint64_t staged_max;
    uint64_t head_bytes_max; /* of a stream's head, in memory when the region is full */
    struct builder builders[SHARD_BUILDERS_MAX];
    uint32_t builder_max;

    struct request_list ready; /* woken: run again */
    struct request_list retry; /* the region is behind: run again in the next turn */
    struct request_list reads; /* STAGE_READ that the region had no room for */
    struct request *free_requests;
    uint32_t free_count;
    struct request_list *outbox; /* per shard: what its queue had no room for */
    struct request *waiting;     /* for an account, in no order */

    struct stream **stream_table;
    uint32_t stream_bits;
    uint32_t stream_count;
    struct stream *streams;         /* all, in a ring of two links */
    struct stream *stream_service;  /* those to look at in this turn */
    struct stream *stream_waiting;  /* those with blocked pops */
    struct weir_item *stream_items; /* room for the longest batch */
    uint64_t stream_tick_ns;
    uint32_t blocked_count;
    uint32_t dying_count; /* streams that were removed while items of theirs are out */

    struct pool pool;
    uint32_t piece_count; /* buffers of piece_bytes that are in use */
    uint32_t piece_max;
    struct connection *piece_wait; /* connections that wait for one */
    struct cancel *cancels;        /* that a queue had no room for */
    struct connection *connections;
    struct connection *touched;
    struct pace_wheel pace; /* connections that pause */
    struct weir_operation pace_timer;
    bool pace_is_armed;
    uint32_t connection_count;
    int listen_fd;
    struct weir_operation accept;
    bool accept_is_armed;
    uint64_t accept_again_ns; /* no descriptor was left: not before this */

    bool is_stopping;
    bool is_quiet;
    bool is_done; /* all is given back: on_stop may agree */
    bool region_is_full;
    uint64_t room_bytes; /* of the region, for all but the heads of streams; as of the last tick */
    uint64_t region_full_ns;
    bool region_is_behind; /* with writing: for now it takes nothing of its own accord */
    uint64_t region_behind_ns;
    bool is_calm;     /* below soft: cold values that are used may come back to memory */
    uint64_t tick_ns; /* when the slower things were last looked at */
    uint64_t slow_tick_ns;
    struct shard_figures figures;
};

/* The shard of this thread. */
struct shard *shard_here(void);

/* The core of a key. */
static inline uint32_t shard_of(const struct server *server, uint64_t hash)
{
    return (uint32_t)((hash >> 32) * server->config.worker_count >> 32);
}

/*
 * Starts all of them on their workers; on failure those that run are stopped.
 * The descriptors are the shards' from then on.
 */
int server_start(struct server *server, const int *listen_fds, const uint32_t *cpus);
void server_stop(struct server *server);

/* ---- Requests ----------------------------------------------------------------- */

/* Never NULL: without memory for so little, the process ends. */
struct request *request_make(struct shard *shard, struct connection *connection);
void request_drop(struct shard *shard, struct request *request);

/* To its owner, for its stage; answered later, or during the call. */
void shard_submit(struct shard *shard, struct request *request);

/* By the owner, once: back to the connection. */
void shard_answer(struct shard *shard, struct request *request);

/* By the origin: the reply was sent, or nobody wants it any more. */
void shard_release(struct shard *shard, struct request *request);

/* ---- Memory ------------------------------------------------------------------- */

enum progress {
    PROGRESS_DONE,  /* answer it */
    PROGRESS_LATER, /* it is answered by whoever has it now; its effect took place */
    PROGRESS_WAIT,  /* it waits for memory, and is run again from the beginning */
};

enum grant {
    GRANT_YES,   /* charged */
    GRANT_SPILL, /* not charged: into the region */
    GRANT_WAIT,  /* queued: PROGRESS_WAIT */
    GRANT_NEVER, /* it was answered -OOM */
};

/* Charge @bytes for a value (or, for keys and short values, an entry), kept in the request. */
enum grant shard_take_value(struct shard *shard, struct request *request, size_t bytes);
enum grant shard_take_entry(struct shard *shard, struct request *request, size_t bytes);

/* What it was granted and did not use goes back. */
void shard_take_back(struct shard *shard, struct request *request);

/* The region could not take it now: run it again in the next turn, until its deadline. */
enum progress shard_wait_region(struct shard *shard, struct request *request);

void shard_reply_oom(struct shard *shard, struct request *request);

/* There is more to do: do not sleep before the next turn. */
void shard_nudge(struct shard *shard);

/* Something was freed in the region. */
static inline void shard_region_freed(struct shard *shard)
{
    shard->region_is_full = false;
}

void shard_region_full(struct shard *shard);

/* It said -EAGAIN: for some milliseconds memory is used up to the limit instead. */
void shard_region_behind(struct shard *shard);

/* Whether the region takes @bytes more of what is no head of a stream. */
bool shard_has_room(struct shard *shard, uint64_t bytes);

#endif
