/* SPDX-License-Identifier: MIT */
#ifndef WEIR_DUMP_LISTING_H
#define WEIR_DUMP_LISTING_H

/* listing - a region in words and columns, and the check of its checksums */

#include <weir/view.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What weir_view_verify() said of the slots of one region. */
struct verdict {
    uint64_t good;
    uint64_t unsummed; /* never written back: there is no checksum yet */
    uint64_t changed;  /* freed or moved while we looked */
    uint64_t bad;
};

/* Called for each bad slot, in order; @result: -EBADMSG, -EIO, ... */
typedef void listing_bad_fn(void *context, const struct weir_view_extent *extent, int result);

void listing_summary(const struct weir_view *view, size_t region);
void listing_slots(const struct weir_view *view);
void listing_free(const struct weir_view *view);
void listing_histogram(const struct weir_view *view);

/* 0 or a negative errno */
int listing_hex(const struct weir_view *view, uint32_t index);

void listing_verify(const struct weir_view *view, struct verdict *ret_verdict, listing_bad_fn *bad,
                    void *context);
void listing_verdict(const struct weir_view *view, size_t region, struct verdict *ret_verdict);

/* Where @offset is: the state of its chunk. */
const char *listing_chunk_state_at(const struct weir_view *view, uint64_t offset);

#endif
