/* SPDX-License-Identifier: MIT */
/*
 * governor_numa - the limit on a machine of several nodes, and in a cgroup of v2
 *
 * What unit tests show with nodes and groups made of files, here with those of a
 * kernel. The group needs root and a controller that nobody else has taken.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <weir/governor.h>

#include <errno.h>
#include <numa.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define MIB UINT64_C(1048576)

static void run_on_node(int node)
{
    cpu_set_t cpus;

    CPU_ZERO(&cpus);
    for (int cpu = 0; cpu < numa_num_configured_cpus(); cpu++)
        if (numa_node_of_cpu(cpu) == node)
            CPU_SET((size_t)cpu, &cpus);
    assert_int_equal(sched_setaffinity(0, sizeof(cpus), &cpus), 0);
}

static struct weir_node_stats node_of(const struct weir_governor *governor, size_t index)
{
    struct weir_node_stats nodes[WEIR_NODES_MAX];

    assert_true(weir_governor_nodes(governor, nodes, WEIR_NODES_MAX) > index);
    return nodes[index];
}

static struct weir_account *open_here(struct weir_governor *governor)
{
    const struct weir_account_config config = {.spillable = true};
    struct weir_account *account = NULL;

    assert_int_equal(weir_account_open(governor, &config, &account), 0);
    return account;
}

static enum weir_verdict charge(struct weir_account *account, uint64_t bytes)
{
    enum weir_verdict verdict = WEIR_WAIT;

    assert_int_equal(weir_account_charge(account, bytes, &verdict), 0);
    return verdict;
}

/* ---- Nodes -------------------------------------------------------------------- */

static void test_an_account_is_where_its_thread_runs(void **state)
{
    const struct weir_governor_config config = {.bytes_max = 1000 * MIB};
    struct weir_node_stats nodes[WEIR_NODES_MAX];
    struct weir_governor *governor;
    uint64_t sum_bytes = 0;

    (void)state;
    assert_int_equal(weir_governor_create(&config, &governor), 0);
    size_t count = weir_governor_nodes(governor, nodes, WEIR_NODES_MAX);
    assert_int_equal(count, numa_num_configured_nodes());
    for (size_t i = 0; i < count; i++) {
        sum_bytes += nodes[i].bytes_max;
        run_on_node((int)i);
        struct weir_account *account = open_here(governor);
        assert_int_equal(charge(account, 10 * MIB), WEIR_ADMIT);
        assert_int_equal(node_of(governor, i).charged_bytes, 10 * MIB);
        assert_int_equal(node_of(governor, i).account_count, 1);
        weir_account_close(account);
        assert_int_equal(node_of(governor, i).charged_bytes, 0);
    }
    assert_in_range(sum_bytes, 1000 * MIB - count, 1000 * MIB);
    weir_governor_destroy(governor);
}

static void test_a_node_borrows_before_it_spills(void **state)
{
    const struct weir_governor_config config = {.bytes_max = 1000 * MIB};
    struct weir_governor *governor;

    (void)state;
    assert_int_equal(weir_governor_create(&config, &governor), 0);
    run_on_node(0);
    struct weir_account *account = open_here(governor);
    uint64_t own_bytes = node_of(governor, 0).bytes_max;

    while (charge(account, MIB) == WEIR_ADMIT)
        continue;
    struct weir_node_stats node = node_of(governor, 0);
    assert_true(node.charged_bytes > own_bytes);
    assert_in_range(node.borrowed_bytes, own_bytes / 2 - MIB, own_bytes / 2);
    assert_int_equal(node_of(governor, 1).lent_bytes, node.borrowed_bytes);
    weir_account_refund(account, node.charged_bytes);
    assert_int_equal(node_of(governor, 0).borrowed_bytes, 0);
    assert_int_equal(node_of(governor, 1).lent_bytes, 0);
    weir_account_close(account);
    weir_governor_destroy(governor);
}

/* ---- A cgroup ------------------------------------------------------------------- */

#define GROUP_ROOT "/sys/fs/cgroup"
#define GROUP      GROUP_ROOT "/weir"

static bool put_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "we");

    if (file == NULL)
        return false;
    bool written = fputs(text, file) >= 0;
    return fclose(file) == 0 && written;
}

static bool enter_group(void)
{
    char pid[32];

    (void)mount("none", GROUP_ROOT, "cgroup2", 0, NULL); /* it may be there */
    if (!put_text(GROUP_ROOT "/cgroup.subtree_control", "+memory\n") ||
        (mkdir(GROUP, 0755) < 0 && errno != EEXIST))
        return false;
    snprintf(pid, sizeof(pid), "%d\n", (int)getpid());
    return put_text(GROUP "/memory.max", "268435456\n") && put_text(GROUP "/cgroup.procs", pid);
}

static void leave_group(void)
{
    char pid[32];

    snprintf(pid, sizeof(pid), "%d\n", (int)getpid());
    assert_true(put_text(GROUP_ROOT "/cgroup.procs", pid));
    assert_int_equal(rmdir(GROUP), 0);
}

static void test_a_share_follows_the_group(void **state)
{
    const struct weir_governor_config config = {.percent = 50, .node_count = 1};
    struct weir_governor_outside outside;
    struct weir_governor_stats stats;
    struct weir_governor *governor;

    (void)state;
    if (!enter_group()) {
        print_message("# passed over: no memory cgroup of v2 can be made here\n");
        return;
    }
    assert_int_equal(weir_governor_machine_bytes(), 256 * MIB);
    assert_int_equal(weir_governor_create(&config, &governor), 0);
    weir_governor_look(governor, &outside);
    assert_int_equal(outside.limit_bytes, 256 * MIB);
    assert_in_range(outside.usage_bytes, 1, 256 * MIB);
    assert_true(outside.rss_bytes > 0);
    weir_governor_stats(governor, &stats);
    assert_int_equal(stats.bytes_max, 128 * MIB);

    assert_true(put_text(GROUP "/memory.max", "201326592\n"));
    weir_governor_look(governor, NULL);
    weir_governor_stats(governor, &stats);
    assert_int_equal(stats.bytes_max, 96 * MIB);
    weir_governor_destroy(governor);
    leave_group();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"an account is where its thread runs", test_an_account_is_where_its_thread_runs, NULL,
         NULL, NULL},
        {"a node borrows before it spills", test_a_node_borrows_before_it_spills, NULL, NULL, NULL},
        {"a share follows the group", test_a_share_follows_the_group, NULL, NULL, NULL},
    };

    if (numa_available() < 0 || numa_num_configured_nodes() < 2) {
        printf("1..0 # SKIP one NUMA node\n");
        return 77;
    }
    return cmocka_run_group_tests_name("governor on two nodes", tests, NULL, NULL);
}
