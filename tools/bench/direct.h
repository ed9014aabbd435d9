/* SPDX-License-Identifier: MIT */
#ifndef DIRECT_H
#define DIRECT_H

/*
 * direct - a yardstick: a file that is read past the page cache through a ring
 *
 * What the disk gives to whoever asks for blocks of one length, so many at a time.
 */

#include "bench.h"

#include <liburing.h>

#define DIRECT_DEPTH_MAX 128u

struct direct {
    struct io_uring ring;
    int fd;
    char *buffers;
    uint64_t asked_ns[DIRECT_DEPTH_MAX]; /* by buffer */
    size_t block_bytes;
    uint32_t depth;
    uint64_t block_count; /* of the file */
    uint64_t sum;
};

/* A file of so many blocks, written out and gone from memory. */
void direct_open(struct direct *direct, const struct bench *bench, uint64_t block_count,
                 size_t block_bytes, uint32_t depth);

/*
 * Read the blocks that @blocks names, and look at each. How long each took is a
 * latency of @side of @row; NULL: of nobody.
 */
void direct_read(struct direct *direct, const uint64_t *blocks, uint64_t count,
                 struct bench_row *row, const char *side);

void direct_close(struct direct *direct);

#endif
