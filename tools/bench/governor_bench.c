/* SPDX-License-Identifier: MIT */
/*
 * governor_bench - what a charge and its refund cost
 *
 * The yardstick is one atomic addition: without leases less could not tell anybody.
 * Threads are timed each on its own core time, so that a machine with fewer cores
 * shows what they cost, not that they wait.
 */
#include "bench.h"
#include "workload.h"

#include <weir/governor.h>

#include <errno.h>
#include <pthread.h>

#define GOVERNOR_BATCH   (1u << 16)
#define GOVERNOR_THREADS 2u
#define GOVERNOR_ROUNDS  16

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
        enum weir_verdict verdict = WEIR_WAIT;
        if (weir_account_charge(account, 64 + i % 1024, &verdict) < 0 || verdict != WEIR_ADMIT)
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

    bench_at_most(row, BENCH_NS, BENCH_SELF, 5);
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

enum { THREADS_PAIRS, THREADS_PLAIN, THREADS_ADDS, THREADS_KINDS };

/*
 * The same loads and stores as a pair from the lease, and nothing that another
 * thread has ever seen: what two threads of a core can do beside each other.
 */
struct governor_plain {
    _Alignas(64) volatile uint64_t spent;
    volatile uint64_t drawn;
    volatile uint64_t limit;
    volatile uint32_t busy;
    volatile uint32_t closed;
    volatile uint64_t peak;
    volatile uint64_t admit_count;
    _Alignas(64) volatile uint64_t remote;
    volatile uint64_t balance;
    volatile uint64_t granted;
    volatile uint64_t reserve;
};

static __attribute__((noinline)) int
governor_plain_charge(struct governor_plain *plain, uint64_t bytes, enum weir_verdict *ret_verdict)
{
    if (plain->closed != 0)
        return -EINVAL;
    plain->busy = 1;
    if (plain->closed != 0)
        return -EINVAL;

    uint64_t spent = plain->spent;

    if (bytes > plain->drawn - spent)
        return -EINVAL;
    plain->spent = spent + bytes;
    plain->busy = 0;
    if (plain->closed != 0)
        return -EINVAL;
    *ret_verdict = WEIR_ADMIT;
    plain->admit_count++;
    return plain->spent > plain->peak ? -EINVAL : 0;
}

static __attribute__((noinline)) void governor_plain_refund(struct governor_plain *plain,
                                                            uint64_t bytes)
{
    uint64_t remote = plain->remote;
    uint64_t net = plain->balance + plain->spent + plain->granted - remote;

    if (net - plain->reserve < bytes || plain->closed != 0)
        return;
    plain->busy = 1;
    if (plain->closed != 0)
        return;

    uint64_t spent = plain->spent - bytes;

    if (plain->drawn - spent > plain->limit)
        return;
    plain->spent = spent;
    plain->busy = 0;
    if (plain->closed != 0)
        plain->admit_count = 0;
}

static void governor_plainly(struct governor_plain *plain, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        enum weir_verdict verdict = WEIR_WAIT;
        if (governor_plain_charge(plain, 64 + i % 1024, &verdict) < 0 || verdict != WEIR_ADMIT)
            bench_check(-EDQUOT, "governor_plain_charge");
        governor_plain_refund(plain, 64 + i % 1024);
    }
}

struct governor_share {
    struct weir_governor *governor;
    pthread_barrier_t barrier;
    uint64_t count;
    _Alignas(64) uint64_t word;
};

/* What a thread took for each kind: beside the other, and while the other slept. */
struct governor_thread {
    struct governor_share *share;
    struct weir_account *account;
    struct governor_plain plain;
    pthread_t thread;
    uint32_t index;
    uint64_t beside_ns[THREADS_KINDS];
    uint64_t alone_ns[THREADS_KINDS];
};

static uint64_t governor_part(struct governor_thread *self, int kind)
{
    struct governor_share *share = self->share;
    uint64_t begin = bench_cpu_ns();

    if (kind == THREADS_PAIRS)
        governor_pairs(self->account, share->count);
    else if (kind == THREADS_PLAIN)
        governor_plainly(&self->plain, share->count);
    else
        governor_adds(&share->word, share->count);
    return bench_cpu_ns() - begin;
}

static void *governor_thread_run(void *context)
{
    struct governor_thread *self = context;

    self->account = governor_account(self->share->governor);
    for (int round = 0; round < GOVERNOR_ROUNDS; round++)
        for (int kind = 0; kind < THREADS_KINDS; kind++) {
            pthread_barrier_wait(&self->share->barrier);
            self->beside_ns[kind] += governor_part(self, kind);
            for (uint32_t i = 0; i < GOVERNOR_THREADS; i++) {
                pthread_barrier_wait(&self->share->barrier);
                if (i == self->index)
                    self->alone_ns[kind] += governor_part(self, kind);
            }
        }
    weir_account_close(self->account);
    return NULL;
}

static void governor_threads(struct bench *bench)
{
    struct bench_row *row = bench_row(bench, "charge + refund, 2 threads, 2 accounts");
    struct governor_share share = {
        .governor = governor_create(),
        .count = bench_count(bench, 1u << 20) / GOVERNOR_ROUNDS,
    };
    struct governor_thread threads[GOVERNOR_THREADS];
    double beside[THREADS_KINDS] = {0};
    double alone[THREADS_KINDS] = {0};

    bench_check(-pthread_barrier_init(&share.barrier, NULL, GOVERNOR_THREADS),
                "pthread_barrier_init");
    for (uint32_t i = 0; i < GOVERNOR_THREADS; i++) {
        threads[i] = (struct governor_thread){
            .share = &share,
            .index = i,
            .plain = {.drawn = 1u << 20, .limit = 1u << 21, .peak = 1u << 20}};
        bench_check(-pthread_create(&threads[i].thread, NULL, governor_thread_run, &threads[i]),
                    "pthread_create");
    }
    for (uint32_t i = 0; i < GOVERNOR_THREADS; i++) {
        pthread_join(threads[i].thread, NULL);
        for (int kind = 0; kind < THREADS_KINDS; kind++) {
            beside[kind] += (double)threads[i].beside_ns[kind];
            alone[kind] += (double)threads[i].alone_ns[kind];
        }
        uint64_t count = share.count * GOVERNOR_ROUNDS;
        bench_add(row, BENCH_SELF, threads[i].beside_ns[THREADS_PAIRS], count);
        bench_add(row, "plain loads and stores", threads[i].beside_ns[THREADS_PLAIN], count);
        bench_add(row, "atomic add, shared", threads[i].beside_ns[THREADS_ADDS], count);
    }
    bench_at_least(row, BENCH_FIGURE, "part of what two plain loops reach", 0.95);
    /* How much of its speed alone each keeps beside the other, one compared with the other. */
    bench_figure(row, "part of what two plain loops reach",
                 alone[THREADS_PAIRS] / beside[THREADS_PAIRS] * beside[THREADS_PLAIN] /
                     alone[THREADS_PLAIN]);
    pthread_barrier_destroy(&share.barrier);
    weir_governor_destroy(share.governor);
}

/* ---- Above soft ------------------------------------------------------------- */

static void governor_soft(struct bench *bench)
{
    struct bench_row *row = bench_row(bench, "charge + refund, above soft");
    struct weir_governor *governor = governor_create();
    struct weir_account *account = governor_account(governor);
    uint64_t rounds = bench_count(bench, 1u << 22) / GOVERNOR_BATCH;
    enum weir_verdict verdict;
    uint64_t word = 0;

    weir_account_charge_forced(account, (UINT64_C(1) << 30) / 100 * 82);
    bench_check(weir_account_charge(account, 64, &verdict), "weir_account_charge"); /* FLUSH */
    for (uint64_t i = 0; i < rounds; i++) {
        bench_start(bench);
        governor_pairs(account, GOVERNOR_BATCH);
        bench_lap(bench, row, BENCH_SELF, GOVERNOR_BATCH);
        governor_adds(&word, GOVERNOR_BATCH);
        governor_adds(&word, GOVERNOR_BATCH);
        bench_lap(bench, row, "two atomic adds", GOVERNOR_BATCH);
    }
    weir_account_close(account);
    weir_governor_destroy(governor);
}

const struct bench_case governor_cases[] = {
    {"pair", BENCH_CPU, governor_pair},
    {"threads", BENCH_CPU, governor_threads},
    {"soft", BENCH_CPU, governor_soft},
    {NULL, BENCH_CPU, NULL},
};
