/* SPDX-License-Identifier: MIT */
/*
 * worker_numa - where a worker's memory lies, on a machine of several nodes
 *
 * The figure (weir_worker_memory()) is what is tested, and that it is true: beside it
 * stands what /proc/self/numa_maps says of the region's file and of its tables. Each
 * worker is started by a thread on another node, so that what is local is so because
 * the worker saw to it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/worker.h>

#include "tmpdir.h"

#include <errno.h>
#include <numa.h>
#include <numaif.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NODES_MAX  8
#define ITEM_BYTES 4096
#define ITEM_COUNT 5000 /* 20 MiB */

/* ---- The machine ---------------------------------------------------------- */

static int cpu_of_node(int node)
{
    for (int cpu = 0; cpu < numa_num_configured_cpus(); cpu++)
        if (numa_node_of_cpu(cpu) == node)
            return cpu;
    fail_msg("node %d has no cpu", node);
    return -1;
}

static void run_on(int cpu)
{
    cpu_set_t cpus;

    CPU_ZERO(&cpus);
    CPU_SET((size_t)cpu, &cpus);
    assert_int_equal(sched_setaffinity(0, sizeof(cpus), &cpus), 0);
}

/* Pages per node of all mappings whose line in numa_maps holds @what. */
static void count_pages(const char *what, uint64_t *ret_pages)
{
    FILE *maps = fopen("/proc/self/numa_maps", "re");
    char line[4096];

    assert_non_null(maps);
    memset(ret_pages, 0, NODES_MAX * sizeof(*ret_pages));
    while (fgets(line, sizeof(line), maps) != NULL) {
        if (strstr(line, what) == NULL)
            continue;
        for (char *rest = NULL, *word = strtok_r(line, " \n", &rest); word != NULL;
             word = strtok_r(NULL, " \n", &rest)) {
            int node;
            unsigned long pages;
            if (sscanf(word, "N%d=%lu", &node, &pages) == 2 && node < NODES_MAX)
                ret_pages[node] += pages;
        }
    }
    fclose(maps);
}

/* At least 99 % of them on @node, and there are some. */
static void assert_local(const char *what, int node, uint64_t pages_min)
{
    uint64_t pages[NODES_MAX];
    uint64_t all = 0;

    count_pages(what, pages);
    for (int i = 0; i < NODES_MAX; i++)
        all += pages[i];
    print_message("# %s: %lu of %lu pages on node %d\n", what, pages[node], all, node);
    assert_true(all >= pages_min);
    assert_true(pages[node] * 100 >= all * 99);
}

/* ---- Cases ---------------------------------------------------------------- */

struct filling {
    struct weir_worker_memory memory;
    int told; /* what the call said */
};

static int fill(struct weir_worker *worker, void *context)
{
    static char item[ITEM_BYTES];
    struct filling *filling = context;

    for (uint64_t i = 0; i < ITEM_COUNT; i++) {
        struct weir_slot slot;
        int r = weir_region_put(weir_worker_region(worker), item, sizeof(item),
                                (struct weir_label){.key = i}, &slot);
        if (r < 0)
            return r;
    }
    filling->told = weir_worker_memory(worker, &filling->memory);
    return 0;
}

/* All that was put is in memory, and at least 99 % of all on @node. */
static void assert_figure(const struct filling *filling, int node)
{
    const struct weir_worker_memory *memory = &filling->memory;

    assert_int_equal(filling->told, 0);
    print_message("# worker: %lu KiB on node %d, %lu elsewhere; of its own %lu of %lu KiB there\n",
                  memory->local_bytes >> 10, node, memory->remote_bytes >> 10,
                  memory->own.node_bytes[node] >> 10, memory->own.asked_bytes >> 10);
    assert_int_equal(memory->node, node);
    assert_true(memory->region.node_bytes[node] >= ITEM_COUNT * ITEM_BYTES);
    assert_true(memory->local_bytes * 100 >= (memory->local_bytes + memory->remote_bytes) * 99);
}

static void memory_is_local(void **state)
{
    const char *directory = harness_tmpdir();
    struct filling *filling = calloc(1, sizeof(*filling));

    (void)state;
    assert_non_null(directory);
    assert_non_null(filling);
    for (int node = 0; node <= numa_max_node(); node++) {
        struct weir_worker *worker = NULL;
        struct weir_worker_config config = {
            .pinned = true,
            .cpu = (uint32_t)cpu_of_node(node),
            .region = {.directory = directory, .resident_bytes_max = 32 << 20},
            .on_start = fill,
            .context = filling,
        };

        run_on(cpu_of_node((node + 1) % (numa_max_node() + 1)));
        assert_int_equal(weir_worker_start(&config, &worker), 0);
        assert_figure(filling, node);
        assert_local(directory, node, ITEM_COUNT);
        assert_local("memfd:weir.region", node, 40);
        weir_worker_stop(worker);
    }
    free(filling);
}

/* The same memory seen from the other node: the figure does not say local to please. */
static void memory_elsewhere_is_remote(void **state)
{
    struct filling filling = {.told = 1};
    struct weir_worker *worker = NULL;
    struct weir_worker_config config = {
        .region = {.directory = harness_tmpdir(), .resident_bytes_max = 32 << 20},
        .on_start = fill,
        .context = &filling,
    };

    (void)state;
    run_on(cpu_of_node(1));
    assert_int_equal(weir_worker_attach(&config, &worker), 0);
    assert_figure(&filling, 1);
    run_on(cpu_of_node(0));
    assert_int_equal(weir_worker_memory(worker, &filling.memory), 0);
    print_message("# from node 0: %lu KiB local, %lu remote\n", filling.memory.local_bytes >> 10,
                  filling.memory.remote_bytes >> 10);
    assert_int_equal(filling.memory.node, 0);
    assert_true(filling.memory.remote_bytes >= ITEM_COUNT * ITEM_BYTES);
    assert_true(filling.memory.remote_bytes * 100 >=
                (filling.memory.local_bytes + filling.memory.remote_bytes) * 95);
    weir_worker_stop(worker);
}

static void attached_thread_gets_its_policy_back(void **state)
{
    unsigned long before[16] = {3};
    unsigned long after[16] = {0};
    struct weir_worker *worker = NULL;
    int policy = -1;

    (void)state;
    run_on(cpu_of_node(0));
    assert_int_equal(set_mempolicy(MPOL_INTERLEAVE, before, 1024), 0);
    assert_int_equal(
        weir_worker_attach(
            &(struct weir_worker_config){.pinned = true, .cpu = (uint32_t)cpu_of_node(1)}, &worker),
        0);
    assert_int_equal(get_mempolicy(&policy, after, 1024, NULL, 0), 0);
    assert_int_equal(policy, MPOL_PREFERRED);
    assert_int_equal(after[0], 2);
    weir_worker_stop(worker);
    assert_int_equal(get_mempolicy(&policy, after, 1024, NULL, 0), 0);
    assert_int_equal(policy, MPOL_INTERLEAVE);
    assert_int_equal(after[0], 3);
    assert_int_equal(set_mempolicy(MPOL_DEFAULT, NULL, 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"a pinned worker's memory lies on its node", memory_is_local, NULL, NULL, NULL},
        {"seen from another node it is remote", memory_elsewhere_is_remote, NULL, NULL, NULL},
        {"an attached thread gets its memory policy back", attached_thread_gets_its_policy_back,
         NULL, NULL, NULL},
    };

    if (numa_available() < 0 || numa_max_node() < 1) {
        printf("1..0 # SKIP one NUMA node\n");
        return 77;
    }
    return cmocka_run_group_tests_name("worker on two nodes", tests, NULL, NULL);
}
