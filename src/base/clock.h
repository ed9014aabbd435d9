/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BASE_CLOCK_H
#define WEIR_BASE_CLOCK_H

/* clock - monotonic nanoseconds */

#include <stdint.h>
#include <time.h>

static inline uint64_t weir__clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/* To the tick of the kernel, some milliseconds, for a tenth of the price. */
static inline uint64_t weir__clock_coarse_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

#endif
