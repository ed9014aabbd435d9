/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BASE_BITS_H
#define WEIR_BASE_BITS_H

/* bits - alignment, checked sums, bit positions */

#include "base/check.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WEIR_CONTAINER_OF(pointer, type, member)                                                   \
 ((type *)(void *)((char *)(pointer)-offsetof(type, member)))

static inline uint64_t weir__min(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t weir__max(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* @step is a power of two */
static inline uint64_t weir__round_down(uint64_t bytes, uint64_t step)
{
    return bytes & ~(step - 1);
}

/* @step is a power of two; the result fits */
static inline uint64_t weir__round_up(uint64_t bytes, uint64_t step)
{
    WEIR_ASSERT(bytes <= UINT64_MAX - (step - 1));
    return (bytes + step - 1) & ~(step - 1);
}

/* The position of the lowest bit that is set; @word is not 0. */
static inline uint32_t weir__lowest_bit(uint64_t word)
{
    WEIR_ASSERT(word != 0);
    return (uint32_t)__builtin_ctzll(word);
}

/* The position of the highest bit that is set; @word is not 0. */
static inline uint32_t weir__highest_bit(uint64_t word)
{
    WEIR_ASSERT(word != 0);
    return 63 - (uint32_t)__builtin_clzll(word);
}

/* The bits from @position (0 .. 63) upwards. */
static inline uint64_t weir__bits_from(uint32_t position)
{
    WEIR_ASSERT(position < 64);
    return ~UINT64_C(0) << position;
}

/* Whether every word of a reserved[] is 0. */
static inline bool weir__reserved_is_zero(const uint64_t reserved[8])
{
    uint64_t all = 0;

    for (int i = 0; i < 8; i++)
        all |= reserved[i];
    return all == 0;
}

#endif
