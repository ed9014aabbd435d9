/* SPDX-License-Identifier: MIT */
/*
 * governor_bench - what a charge and its refund cost below soft
 *
 * The yardstick is one atomic addition: less cannot tell anybody. Threads are
 * timed each on its own core time, so that a machine with fewer cores shows what
 * they cost, not that they wait.
 */
#include "bench.h"
#include "workload.h"

#include <weir/governor.h>

#include <errno.h>
#include <pthread.h>

#define GOVERNOR_BATCH   (1u << 16)
#define GOVERNOR_THREADS 2u

static struct weir_governor *governor_create(void)
{
    struct weir_governor *governor = NULL;

    bench_check(weir_governor_create(&(struct weir_governor_config){.bytes_max = UINT64_C(1) << 30},
                                     &governor),
                "weir_governor_create");
    return governor;
}

static struct weir_account *governor_account(struct weir_governor *governor)
{
    struct weir_account *account = NULL;

    bench_check(
        weir_account_open(governor, &(struct weir_account_config){.name = "bench"}, &account),
        "weir_account_open");
    return account;
}

static void governor_pairs(struct weir_account *account, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        enum weir_verdict verdict;
        bench_check(weir_account_charge(account, 64 + i % 1024, &verdict), "weir_account_charge");
        if (verdict != WEIR_ADMIT)
            bench_check(-EDQUOT, "weir_account_charge");
        weir_account_refund(account, 64 + i % 1024);
    }
}

static void governor_adds(uint64_t *word, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        __atomic_fetch_add(word, 64 + i % 1024, __ATOMIC_RELAXED);
}

/* ---- One thread ------------------------------------------------------------- */

static void governor_pair(struct bench *bench)
{
    struct bench_row *row = bench_row(bench, "charge + refund, below soft");
    struct weir_governor *governor = governor_create();
    struct weir_account *account = governor_account(governor);
    uint64_t rounds = bench_count(bench, 1u << 22) / GOVERNOR_BATCH;
    uint64_t word = 0;

    for (uint64_t i = 0; i < rounds; i++) {
        bench_start(bench);
        governor_pairs(account, GOVERNOR_BATCH);
        bench_lap(bench, row, BENCH_SELF, GOVERNOR_BATCH);
        governor_adds(&word, GOVERNOR_BATCH);
        bench_lap(bench, row, "atomic add", GOVERNOR_BATCH);
    }
    weir_account_close(account);
    weir_governor_destroy(governor);
}

/* ---- Two threads, two accounts ---------------------------------------------- */

struct governor_share {
    struct weir_governor *governor;
    pthread_barrier_t barrier;
    uint64_t count;
    _Alignas(64) uint64_t word;
};

struct governor_thread {
    struct governor_share *share;
    pthread_t thread;
    uint64_t pair_ns;
    uint64_t add_ns;
};

static void *governor_thread_run(void *context)
{
    struct governor_thread *self = context;
    struct governor_share *share = self->share;
    struct weir_account *account = governor_account(share->governor);

    pthread_barrier_wait(&share->barrier);
    uint64_t begin = bench_cpu_ns();
    governor_pairs(account, share->count);
    self->pair_ns = bench_cpu_ns() - begin;

    pthread_barrier_wait(&share->barrier);
    begin = bench_cpu_ns();
    governor_adds(&share->word, share->count);
    self->add_ns = bench_cpu_ns() - begin;
    weir_account_close(account);
    return NULL;
}

static void governor_threads(struct bench *bench)
{
    struct bench_row *row = bench_row(bench, "charge + refund, 2 threads, 2 accounts");
    struct governor_share share = {
        .governor = governor_create(),
        .count = bench_count(bench, 1u << 21),
    };
    struct governor_thread threads[GOVERNOR_THREADS];

    bench_check(-pthread_barrier_init(&share.barrier, NULL, GOVERNOR_THREADS),
                "pthread_barrier_init");
    for (uint32_t i = 0; i < GOVERNOR_THREADS; i++) {
        threads[i].share = &share;
        bench_check(-pthread_create(&threads[i].thread, NULL, governor_thread_run, &threads[i]),
                    "pthread_create");
    }
    for (uint32_t i = 0; i < GOVERNOR_THREADS; i++) {
        pthread_join(threads[i].thread, NULL);
        bench_add(row, BENCH_SELF, threads[i].pair_ns, share.count);
        bench_add(row, "atomic add, shared", threads[i].add_ns, share.count);
    }
    pthread_barrier_destroy(&share.barrier);
    weir_governor_destroy(share.governor);
}

const struct bench_case governor_cases[] = {
    {"pair", BENCH_CPU, governor_pair},
    {"threads", BENCH_CPU, governor_threads},
    {NULL, BENCH_CPU, NULL},
};
