/* SPDX-License-Identifier: MIT */
/*
 * worker_numa - where a worker's memory lies, on a machine of several nodes
 *
 * The kernel is asked for each page (/proc/self/numa_maps): of the region's file,
 * of its tables, of the ring. Each worker is started by a thread on another node,
 * so that what is local is so because the worker saw to it.
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
    struct weir_slot slots[ITEM_COUNT];
    int node;
    uint64_t local_count; /* pages of items, as move_pages sees them */
    uint64_t page_count;
};

static int fill(struct weir_worker *worker, void *context)
{
    static char item[ITEM_BYTES];
    struct weir_region *region = weir_worker_region(worker);
    struct filling *filling = context;

    for (uint64_t i = 0; i < ITEM_COUNT; i++) {
        item[0] = (char)i;
        int r = weir_region_put(region, item, sizeof(item), (struct weir_label){.key = i},
                                &filling->slots[i]);
        if (r < 0)
            return r;
    }
    for (uint64_t i = 0; i < ITEM_COUNT; i++) {
        const void *data;
        int node = -1;
        if (weir_region_at(region, filling->slots[i], &data, NULL) < 0)
            continue;
        void *page = (void *)((uintptr_t)data & ~(uintptr_t)4095);
        if (move_pages(0, 1, &page, NULL, &node, 0) != 0)
            return -EINVAL;
        filling->page_count++;
        filling->local_count += node == filling->node;
    }
    return 0;
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

        filling->node = node;
        filling->local_count = filling->page_count = 0;
        run_on(cpu_of_node((node + 1) % (numa_max_node() + 1)));
        assert_int_equal(weir_worker_start(&config, &worker), 0);
        print_message("# items: %lu of %lu pages on node %d\n", filling->local_count,
                      filling->page_count, node);
        assert_int_equal(filling->page_count, ITEM_COUNT);
        assert_true(filling->local_count * 100 >= filling->page_count * 99);
        assert_local(directory, node, ITEM_COUNT);
        assert_local("memfd:weir.region", node, 40);
        weir_worker_stop(worker);
    }
    free(filling);
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
        {"an attached thread gets its memory policy back", attached_thread_gets_its_policy_back,
         NULL, NULL, NULL},
    };

    if (numa_available() < 0 || numa_max_node() < 1) {
        printf("1..0 # SKIP one NUMA node\n");
        return 77;
    }
    return cmocka_run_group_tests_name("worker on two nodes", tests, NULL, NULL);
}
