/* SPDX-License-Identifier: MIT */
#ifndef WEIR_DUMP_JSON_H
#define WEIR_DUMP_JSON_H

/* json - a region as one JSON object, for programs */

#include "listing.h"

#include <weir/view.h>

#include <stdbool.h>
#include <stddef.h>

struct json_wanted {
    bool slots;
    bool free;
    bool chunks;
    bool verify;
};

/* @ret_verdict: set if @wanted->verify */
void json_region(const struct weir_view *view, size_t region, const struct json_wanted *wanted,
                 struct verdict *ret_verdict);

#endif
