/* SPDX-License-Identifier: MIT */
/*
 * pin - affinity and names of threads
 *
 * A pinned worker touches its memory first and so gets it from its own node;
 * file pages follow the cpu that touches them too. The kernel's helpers (io-wq)
 * touch page cache on our behalf and must therefore stay on the node, but off
 * the cpu: a helper that is woken there takes it away for as long as it walks
 * pages (230 us per 4 MiB written back).
 */
#include "worker/pin.h"

#include <errno.h>
#include <numa.h>
#include <pthread.h>
#include <stdio.h>

/* libnuma fills its table of nodes on first use, without a lock. */
static pthread_mutex_t pin_numa_lock = PTHREAD_MUTEX_INITIALIZER;

int weir__pin_get(cpu_set_t *ret_cpus)
{
    return -pthread_getaffinity_np(pthread_self(), sizeof(*ret_cpus), ret_cpus);
}

int weir__pin_set(const cpu_set_t *cpus)
{
    return -pthread_setaffinity_np(pthread_self(), sizeof(*cpus), cpus);
}

int weir__pin_to(uint32_t cpu)
{
    cpu_set_t cpus;

    if (cpu >= CPU_SETSIZE)
        return -EINVAL;
    CPU_ZERO(&cpus);
    CPU_SET(cpu, &cpus);
    return weir__pin_set(&cpus);
}

uint32_t weir__pin_cpu(void)
{
    int cpu = sched_getcpu();

    return cpu < 0 ? 0 : (uint32_t)cpu;
}

/* The cpus of @cpu's node; false where nodes are not known. */
static bool pin_node_cpus(uint32_t cpu, cpu_set_t *ret_cpus)
{
    if (numa_available() < 0)
        return false;

    int node = numa_node_of_cpu((int)cpu);
    struct bitmask *mask = numa_allocate_cpumask();
    bool known = node >= 0 && mask != NULL && numa_node_to_cpus(node, mask) == 0;

    CPU_ZERO(ret_cpus);
    for (unsigned i = 0; known && i < CPU_SETSIZE && i < mask->size; i++)
        if (numa_bitmask_isbitset(mask, i))
            CPU_SET(i, ret_cpus);
    if (mask != NULL)
        numa_bitmask_free(mask);
    return known;
}

void weir__pin_helpers(const cpu_set_t *allowed, uint32_t cpu, cpu_set_t *ret_cpus)
{
    cpu_set_t node;
    cpu_set_t both;

    *ret_cpus = *allowed;
    pthread_mutex_lock(&pin_numa_lock);
    bool known = pin_node_cpus(cpu, &node);
    pthread_mutex_unlock(&pin_numa_lock);
    if (known) {
        CPU_AND(&both, allowed, &node);
        if (CPU_COUNT(&both) > 0)
            *ret_cpus = both;
    }

    if (cpu < CPU_SETSIZE && CPU_ISSET(cpu, ret_cpus) && CPU_COUNT(ret_cpus) > 1)
        CPU_CLR(cpu, ret_cpus);
}

void weir__pin_name(const char *name)
{
    char kept[16];

    snprintf(kept, sizeof(kept), "%.15s", name);
    (void)pthread_setname_np(pthread_self(),
                             kept); /* a name is for people: nothing depends on it */
}
