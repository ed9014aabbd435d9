/* SPDX-License-Identifier: MIT */
#ifndef RESIDENT_H
#define RESIDENT_H

/*
 * resident - what of a region is in memory, as the kernel counts
 *
 * The pages of its file in the page cache, whoever has them mapped, as mincore(2)
 * sees them; and by how much this process grew besides: buffers, tables, heap
 * (RssAnon and RssShmem). The caller's own memory must have been touched before.
 */

#include "bench.h"

struct resident {
    void *map; /* of the whole file, never touched */
    uint64_t map_bytes;
    unsigned char *pages;
    uint64_t process_bytes; /* before there was a region */
    uint64_t peak_bytes;
};

/* To be called before the region is opened. */
void resident_open(struct resident *resident);

/*
 * Find the file of the region that was opened: the one descriptor of a file of
 * @file_bytes that is no memfd. @bytes_max: its largest length.
 */
void resident_find(struct resident *resident, uint64_t file_bytes, uint64_t bytes_max);

/* Count now; the most of all counts is peak_bytes. */
void resident_count(struct resident *resident);

void resident_close(struct resident *resident);

#endif
