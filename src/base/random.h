/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BASE_RANDOM_H
#define WEIR_BASE_RANDOM_H

/*
 * random - a seeded generator and a mixer
 *
 * SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
 * Generators, OOPSLA 2014). Good enough to spread and to test; no secrets.
 */

#include <stdint.h>

static inline uint64_t weir__mix(uint64_t x)
{
    x ^= x >> 30;
    x *= UINT64_C(0xbf58476d1ce4e5b9);
    x ^= x >> 27;
    x *= UINT64_C(0x94d049bb133111eb);
    x ^= x >> 31;
    return x;
}

static inline uint64_t weir__random(uint64_t *state)
{
    *state += UINT64_C(0x9e3779b97f4a7c15);
    return weir__mix(*state);
}

/* A number below @bound, which is not 0; the bias is below 2^-32 for small bounds. */
static inline uint64_t weir__random_below(uint64_t *state, uint64_t bound)
{
    return weir__random(state) % bound;
}

#endif
