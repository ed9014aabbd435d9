/* SPDX-License-Identifier: MIT */
#ifndef WEIR_HARNESS_ANSWER_H
#define WEIR_HARNESS_ANSWER_H

/* answer - an operation that remembers what it completed with, and how often */

#include <weir/base.h>

#include "base/bits.h"

#include <stdint.h>

struct answer {
    struct weir_operation operation;
    int32_t result;
    uint32_t flags;
    uint32_t count; /* more than 1 is a fault of who completes it */
};

static inline void answer_complete(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct answer *answer = WEIR_CONTAINER_OF(operation, struct answer, operation);

    answer->result = result;
    answer->flags = flags;
    answer->count++;
}

static inline struct answer answer_open(void)
{
    return (struct answer){.operation = {.complete = answer_complete}};
}

#endif
