/* SPDX-License-Identifier: MIT */
#ifndef WEIR_HARNESS_PATTERN_H
#define WEIR_HARNESS_PATTERN_H

/* pattern - bytes that a seed and a position determine, so that any piece can be checked alone */

#include "base/random.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint64_t harness_pattern_word(uint64_t seed, uint64_t index)
{
    return weir__mix(seed * UINT64_C(0x9e3779b97f4a7c15) + index + 1);
}

/* The bytes [offset, offset + bytes) of the item @seed. */
static inline void harness_fill(void *data, size_t bytes, uint64_t seed, uint64_t offset)
{
    unsigned char *to = data;

    for (size_t i = 0; i < bytes;) {
        uint64_t at = offset + i;
        uint64_t word = harness_pattern_word(seed, at / 8) >> at % 8 * 8;
        size_t count = 8 - (size_t)(at % 8);
        if (count == 8 &&
            bytes - i >= 8) { /* nearly always; known at compile time it costs little */
            memcpy(to + i, &word, 8);
            i += 8;
            continue;
        }
        if (count > bytes - i)
            count = bytes - i;
        memcpy(to + i, &word, count);
        i += count;
    }
}

/* The position of the first byte that is not the item's; @bytes if all are. */
static inline size_t harness_differs_at(const void *data, size_t bytes, uint64_t seed,
                                        uint64_t offset)
{
    const unsigned char *from = data;

    for (size_t i = 0; i < bytes;) {
        uint64_t at = offset + i;
        uint64_t word = harness_pattern_word(seed, at / 8) >> at % 8 * 8;
        size_t count = 8 - (size_t)(at % 8);
        if (count > bytes - i)
            count = bytes - i;
        if (memcmp(from + i, &word, count) != 0) {
            while (from[i] == (unsigned char)word) {
                word >>= 8;
                i++;
            }
            return i;
        }
        i += count;
    }
    return bytes;
}

#endif
