/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SCRATCH_STATE_H
#define WEIR_SCRATCH_STATE_H

/*
 * scratch_state - what a store is made of, for the files of this folder
 *
 *      scratch.c   the store: the cap, the account, the directory
 *      writer.c    appends, in whole blocks; seal and abort
 *      reader.c    reads, in whole pages, verified
 *      body        the bytes of a file: in memory, or on disk with checksums
 *      transfer    one piece on its way to the disk or back
 */

#include <weir/scratch.h>

#include "base/heap.h"
#include "base/list.h"
#include "base/ring.h"

#include <pthread.h>

#define SCRATCH_PAGE_BYTES   UINT64_C(4096)
#define SCRATCH_BLOCK_BYTES  (UINT64_C(128) << 10)
#define SCRATCH_MEMORY_BYTES (UINT64_C(64) << 10)
#define SCRATCH_START_MAX    (UINT64_C(1) << 30) /* of one operation: its result is an int32 */

struct weir_scratch {
    pthread_t owner; /* fixed: the one thread that may call us */
    struct weir__heap heap;
    struct weir_account *account;
    struct weir_ring *ring;
    bool owns_ring;
    char *directory;          /* fixed; NULL: a store was given */
    size_t directory_bytes;   /* of that string, with its end */
    bool made_directory;      /* by us: it goes at the end */
    uint64_t bytes_max;       /* fixed */
    uint64_t memory_max;      /* fixed; of one file */
    uint64_t floor_bytes;     /* fixed */
    struct weir_disk_cap cap; /* fixed; take NULL: none */
    struct weir_scratch_store store;
    struct weir__list done; /* transfers that complete with the next poll */
    uint32_t done_count;
    uint32_t under_way_count; /* transfers; those of done too */
    struct weir_scratch_stats figures;
};

/* ---- transfer.c --------------------------------------------------------- */

struct weir__body;

/*
 * One piece on its way. @complete is called once, from poll, with 0 or what went
 * wrong; until then the body is held and the buffer belongs to the transfer.
 */
struct weir__transfer {
    struct weir_operation operation;
    struct weir__list link;
    struct weir__body *body;
    void (*complete)(struct weir__transfer *transfer, int result);
    char *buffer;
    uint64_t bytes;
    uint64_t offset;
    uint64_t moved_bytes;
    int result; /* of what is done already */
    bool writes;
    bool flushes; /* written through the page cache: now out of it */
};

void weir__transfer_write(struct weir__transfer *transfer, struct weir__body *body, char *buffer,
                          uint64_t bytes, uint64_t offset);
void weir__transfer_read(struct weir__transfer *transfer, struct weir__body *body, char *buffer,
                         uint64_t bytes, uint64_t offset);

/* Nothing to be moved: completes with @result all the same, from poll. */
void weir__transfer_nothing(struct weir__transfer *transfer, struct weir__body *body, int result);

/* For stores that poll themselves; how many were completed. */
int weir__transfers_complete(struct weir_scratch *scratch);

/* ---- body.c ------------------------------------------------------------- */

/* The writer, the file, each reader and each transfer hold it. */
struct weir__body {
    struct weir_scratch *scratch;
    uint32_t holder_count;
    bool has_rolled;
    bool direct;         /* it passes by the page cache */
    int fd;              /* -1: not rolled, or in a given store */
    void *file;          /* of a given store */
    uint64_t bytes;      /* B1: appended, and taken from the cap */
    uint64_t disk_bytes; /* reserved on disk */
    char *block;         /* what is not on disk: all of it, or the end while it is written */
    uint64_t block_bytes;
    uint64_t *sums; /* of the pages on disk */
    uint64_t sum_count;
};

struct weir__body *weir__body_new(struct weir_scratch *scratch);
void weir__body_hold(struct weir__body *body);
void weir__body_let_go(struct weir__body *body);

/* The block becomes at least @bytes long. */
int weir__body_grow_block(struct weir__body *body, uint64_t bytes);
void weir__body_free_block(struct weir__body *body);

/* From now on whole blocks go to a file. */
int weir__body_roll(struct weir__body *body);

/* Room on disk, and for checksums, for [offset, offset + bytes). */
int weir__body_reserve(struct weir__body *body, uint64_t offset, uint64_t bytes);

/* The checksums of pages that are about to be written, and whether those that came are right. */
void weir__body_sum(struct weir__body *body, const char *data, uint64_t bytes, uint64_t offset);
int weir__body_verify(const struct weir__body *body, const char *data, uint64_t bytes,
                      uint64_t offset);

/* Blocking; whole pages; reserved and summed by the caller, or to be verified. */
int weir__body_write(struct weir__body *body, const char *data, uint64_t bytes, uint64_t offset);
int weir__body_read(struct weir__body *body, char *data, uint64_t bytes, uint64_t offset);

/* ---- scratch.c ---------------------------------------------------------- */

bool weir__scratch_is_mine(const struct weir_scratch *scratch);

/* B1: all of @bytes, or -EDQUOT. */
int weir__scratch_take(struct weir_scratch *scratch, uint64_t bytes);
void weir__scratch_give(struct weir_scratch *scratch, uint64_t bytes);

/* Whether the account would rather have @bytes in memory than on disk. */
bool weir__scratch_has_memory(const struct weir_scratch *scratch, uint64_t bytes);

/* Make the directory if it is not there yet. */
int weir__scratch_prepare(struct weir_scratch *scratch);

/* ---- reader.c ----------------------------------------------------------- */

struct weir_scratch_file *weir__file_new(struct weir__body *body);

#endif
