/* SPDX-License-Identifier: MIT */
/*
 * workload - numbers, sizes and bytes that are the same in every run
 */
#include "workload.h"

#include "bench.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define WORKLOAD_MEDIAN   1024.0
#define WORKLOAD_SIGMA    1.5
#define WORKLOAD_SIZE_MIN 64.0

static uint32_t *workload_array(uint32_t count)
{
    uint32_t *array = malloc((size_t)count * sizeof(*array));

    if (array == NULL)
        bench_check(-ENOMEM, "malloc");
    return array;
}

uint32_t *workload_shuffle(uint64_t seed, uint32_t count)
{
    uint32_t *order = workload_array(count);

    for (uint32_t i = 0; i < count; i++) {
        uint32_t j = (uint32_t)workload_below(&seed, i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    return order;
}

/* ---- Order ------------------------------------------------------------------ */

static int workload_order(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a;
    uint64_t right = *(const uint64_t *)b;

    return (left > right) - (left < right);
}

uint32_t *workload_jumble(uint64_t seed, uint32_t count, uint32_t window)
{
    uint32_t *order = workload_array(count);
    uint64_t *arrivals = malloc((size_t)count * sizeof(*arrivals));

    if (arrivals == NULL)
        bench_check(-ENOMEM, "malloc");
    for (uint32_t i = 0; i < count; i++)
        arrivals[i] = (i + workload_below(&seed, window)) << 32 | i;
    qsort(arrivals, count, sizeof(*arrivals), workload_order);
    for (uint32_t i = 0; i < count; i++)
        order[i] = (uint32_t)arrivals[i];
    free(arrivals);
    return order;
}

/* ---- Sizes ------------------------------------------------------------------ */

/* Above 0, at most 1. */
static double workload_fraction(uint64_t *state)
{
    return (double)((workload_random(state) >> 11) + 1) / (double)(UINT64_C(1) << 53);
}

uint32_t *workload_sizes(uint64_t seed, uint32_t count)
{
    uint32_t *sizes = workload_array(count);

    for (uint32_t i = 0; i < count; i++) {
        double normal = sqrt(-2 * log(workload_fraction(&seed))) *
                        cos(2 * 3.14159265358979323846 * workload_fraction(&seed));
        double bytes = WORKLOAD_MEDIAN * exp(WORKLOAD_SIGMA * normal);
        bytes = bytes < WORKLOAD_SIZE_MIN ? WORKLOAD_SIZE_MIN : bytes;
        sizes[i] = bytes > WORKLOAD_SIZE_MAX ? WORKLOAD_SIZE_MAX : (uint32_t)bytes;
    }
    return sizes;
}

/* ---- Bytes ------------------------------------------------------------------ */

void workload_memory_open(struct workload_memory *memory, size_t bytes)
{
    bytes = bytes < 2 * WORKLOAD_SIZE_MAX ? 2 * WORKLOAD_SIZE_MAX : bytes;
    char *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (base == MAP_FAILED)
        bench_check(-errno, "mmap");
    /* As the region asks for it: the yardstick is not to lose by its pages. */
    madvise(base, bytes, MADV_HUGEPAGE);
    memset(base, 0x5a, bytes);
    *memory = (struct workload_memory){.base = base, .bytes = bytes};
}

void workload_memory_close(struct workload_memory *memory)
{
    munmap(memory->base, memory->bytes);
}

void workload_machine(uint64_t bytes)
{
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t bytes_most = (uint64_t)sysconf(_SC_AVPHYS_PAGES) * page_bytes / 2;

    bytes = bytes < bytes_most ? bytes : bytes_most;
    bytes = bytes / page_bytes * page_bytes;
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return;
    /* In large pages, as a file may have them: else the kernel would have others for it. */
    madvise(base, bytes, MADV_HUGEPAGE);
    memset(base, 0x5a, bytes);
    munmap(base, bytes);
}

void workload_source_open(struct workload_source *source, uint64_t seed)
{
    workload_memory_open(&source->memory, WORKLOAD_SOURCE_LINES * 64 + WORKLOAD_SIZE_MAX);
    source->random = seed;
    for (size_t i = 0; i < source->memory.bytes; i += sizeof(uint64_t)) {
        uint64_t word = workload_random(&seed);
        memcpy(source->memory.base + i, &word, sizeof(word));
    }
}

void workload_source_close(struct workload_source *source)
{
    workload_memory_close(&source->memory);
}
