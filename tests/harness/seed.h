/* SPDX-License-Identifier: MIT */
#ifndef WEIR_HARNESS_SEED_H
#define WEIR_HARNESS_SEED_H

/* seed - where the randomness of a test comes from: printed first, WEIR_SEED= repeats it */

#include "base/random.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static inline uint64_t harness_seed(void)
{
    const char *given = getenv("WEIR_SEED");
    uint64_t seed;

    if (given != NULL && *given != '\0') {
        seed = strtoull(given, NULL, 0);
    } else {
        struct timespec now;

        clock_gettime(CLOCK_REALTIME, &now);
        seed = weir__mix((uint64_t)now.tv_sec << 30 ^ (uint64_t)now.tv_nsec ^
                         (uint64_t)getpid() << 48);
    }
    printf("# WEIR_SEED=%" PRIu64 "\n", seed);
    fflush(stdout);
    return seed;
}

#endif
