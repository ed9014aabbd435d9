/* SPDX-License-Identifier: MIT */
#ifndef WORKLOAD_H
#define WORKLOAD_H

/*
 * workload - numbers, sizes and bytes that are the same in every run
 */

#include <stddef.h>
#include <stdint.h>

/* SplitMix64; the state is the seed. */
static inline uint64_t workload_random(uint64_t *state)
{
    uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);

    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static inline uint64_t workload_below(uint64_t *state, uint64_t bound)
{
    return workload_random(state) % bound;
}

/* 0 .. @count - 1 in random order; free() it. */
uint32_t *workload_shuffle(uint64_t seed, uint32_t count);

/*
 * 0 .. @count - 1, each at most @window places behind or before its turn: what
 * arrives when every item is late by a random part of the window. free() it.
 */
uint32_t *workload_jumble(uint64_t seed, uint32_t count, uint32_t window);

/* Log-normal lengths, median 1 KiB, sigma 1.5, cut off to 64 B .. 256 KiB; free() it. */
uint32_t *workload_sizes(uint64_t seed, uint32_t count);

#define WORKLOAD_SIZE_MAX     (256u << 10)
#define WORKLOAD_SOURCE_LINES (UINT64_C(1) << 20)

/*
 * Memory that was touched before: the yardstick copies into it from the front
 * on and begins again, as an allocator would that does nothing else.
 */
struct workload_memory {
    char *base;
    size_t bytes;
    size_t cursor;
};

void workload_memory_open(struct workload_memory *memory, size_t bytes);
void workload_memory_close(struct workload_memory *memory);

/* The next @bytes of it, at most WORKLOAD_SIZE_MAX. */
static inline char *workload_memory_next(struct workload_memory *memory, size_t bytes)
{
    size_t room = (bytes + 15) / 16 * 16;

    if (memory->cursor + room > memory->bytes)
        memory->cursor = 0;
    memory->cursor += room;
    return memory->base + memory->cursor - room;
}

/*
 * So much memory was used before, by whomever, and is free again. A virtual
 * machine gets its memory from the host when it first touches it, at a tenth of
 * the speed: that would be measured once, and be nobody's.
 */
void workload_machine(uint64_t bytes);

/*
 * Where items come from: a random place of 64 MiB each time, so that neither
 * side finds its source in a cache.
 */
struct workload_source {
    struct workload_memory memory;
    uint64_t random;
};

void workload_source_open(struct workload_source *source, uint64_t seed);
void workload_source_close(struct workload_source *source);

static inline const char *workload_source_next(struct workload_source *source)
{
    return source->memory.base + workload_random(&source->random) % WORKLOAD_SOURCE_LINES * 64;
}

/* The compiler must believe that somebody looks at @data. */
static inline void workload_use(const void *data)
{
    __asm__ volatile("" : : "g"(data) : "memory");
}

#endif
