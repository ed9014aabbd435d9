/* SPDX-License-Identifier: MIT */
/*
 * pin - affinity and names of threads
 *
 * A pinned worker touches its memory first and so gets it from its own node, and
 * says so to the kernel (set_mempolicy), for page cache ignores mbind. The kernel's helpers (io-wq)
 * touch page cache on our behalf and must therefore stay on the node, but off
 * the cpu: a helper that is woken there takes it away for as long as it walks
 * pages (230 us per 4 MiB written back).
 */
#include "worker/pin.h"

#include <errno.h>
#include <numa.h>
#include <numaif.h>
#include <pthread.h>
#include <stdio.h>

#define PIN_WORD_BITS (8 * (int)sizeof(unsigned long))
#define PIN_NODES_MAX 1024

_Static_assert(sizeof(((struct weir__memory *)0)->nodes) * 8 == PIN_NODES_MAX, "a bit per node");

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

uint32_t weir__pin_node(void)
{
    unsigned cpu = 0;
    unsigned node = 0;

    return getcpu(&cpu, &node) == 0 ? node : 0;
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

/* The node of @cpu; -1: there is only one, or nodes are not known. */
static int pin_node(uint32_t cpu)
{
    pthread_mutex_lock(&pin_numa_lock);
    bool several = numa_available() >= 0 && numa_max_node() > 0;
    int node = several ? numa_node_of_cpu((int)cpu) : -1;
    pthread_mutex_unlock(&pin_numa_lock);
    return node;
}

int weir__pin_memory(uint32_t cpu, struct weir__memory *ret_before)
{
    unsigned long nodes[16] = {0};
    int node = pin_node(cpu);

    if (node < 0 || node >= PIN_NODES_MAX)
        return 0;
    if (get_mempolicy(&ret_before->policy, ret_before->nodes, PIN_NODES_MAX, NULL, 0) < 0)
        return -errno;
    nodes[node / PIN_WORD_BITS] = 1ul << node % PIN_WORD_BITS;
    return set_mempolicy(MPOL_PREFERRED, nodes, PIN_NODES_MAX) < 0 ? -errno : 1;
}

void weir__pin_memory_back(const struct weir__memory *before)
{
    (void)set_mempolicy(before->policy, before->nodes, PIN_NODES_MAX);
}

void weir__pin_name(const char *name)
{
    char kept[16];

    snprintf(kept, sizeof(kept), "%.15s", name);
    (void)pthread_setname_np(pthread_self(),
                             kept); /* a name is for people: nothing depends on it */
}
