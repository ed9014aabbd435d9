/* SPDX-License-Identifier: MIT */
#include <weir/worker.h>

#include "base/bits.h"
#include "base/clock.h"
#include "base/random.h"
#include "base/ring.h"

#include "answer.h"
#include "forbid.h"
#include "process.h"
#include "seed.h"
#include "tmpdir.h"
#include "worker/mailbox.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LONG_NS UINT64_C(20000000000) /* longer than any test may take */

/* PF_EXITING and PF_IO_WORKER of the kernel. */
#define THREAD_EXITING   0x4u
#define THREAD_IO_WORKER 0x10u

/* ---- Helpers -------------------------------------------------------------- */

/*
 * The kernel's own helpers end when they like, and a thread that was joined stays
 * in the list for a moment: flags, the 9th field of stat, tells both apart.
 */
static bool thread_counts(const char *id)
{
    char path[300];
    char line[512] = "";
    unsigned flags = THREAD_EXITING;

    snprintf(path, sizeof(path), "/proc/self/task/%s/stat", id);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    const char *name_end = fgets(line, sizeof(line), file) != NULL ? strrchr(line, ')') : NULL;
    if (name_end != NULL)
        assert_int_equal(sscanf(name_end, ") %*c %*d %*d %*d %*d %*d %u", &flags), 1);
    fclose(file);
    return (flags & (THREAD_EXITING | THREAD_IO_WORKER)) == 0;
}

static uint32_t thread_count(void)
{
    DIR *directory = opendir("/proc/self/task");
    uint32_t count = 0;

    assert_non_null(directory);
    for (struct dirent *entry = readdir(directory); entry != NULL; entry = readdir(directory))
        count += entry->d_name[0] != '.' && thread_counts(entry->d_name);
    closedir(directory);
    assert_true(count > 0); /* this one */
    return count;
}

static struct weir_worker *attach(const struct weir_worker_config *config)
{
    struct weir_worker *worker = NULL;

    assert_int_equal(weir_worker_attach(config, &worker), 0);
    assert_non_null(worker);
    return worker;
}

/* ---- The ring ------------------------------------------------------------- */

static struct weir_ring *ring_new(void)
{
    struct weir_ring *ring = NULL;

    assert_int_equal(weir__ring_open(8, false, &ring), 0);
    return ring;
}

static void ring_refuses_nonsense(void **state)
{
    struct weir_ring *ring = NULL;

    (void)state;
    assert_int_equal(weir__ring_open(0, false, &ring), -EINVAL);
    assert_int_equal(weir__ring_open(32769, false, &ring), -EINVAL);
    assert_null(ring);
    weir__ring_close(NULL);
}

static void more_than_the_queue_holds(void **state)
{
    struct weir_ring *ring = ring_new();
    struct answer operations[500];

    (void)state;
    for (size_t i = 0; i < 500; i++) {
        operations[i] = (struct answer){{answer_complete}, 1, 0, 0};
        io_uring_prep_nop(weir__ring_sqe(ring, &operations[i].operation));
    }
    assert_int_equal(weir__ring_in_flight(ring), 500);
    while (weir__ring_in_flight(ring) > 0)
        assert_true(weir__ring_wait(ring, LONG_NS) >= 0);
    for (size_t i = 0; i < 500; i++) {
        assert_int_equal(operations[i].count, 1);
        assert_int_equal(operations[i].result, 0);
    }
    weir__ring_close(ring);
}

static void wake_reaches_a_sleeping_ring(void **state)
{
    struct weir_ring *sleeper = ring_new();
    struct weir_ring *other = ring_new();
    struct answer failed = answer_open();

    (void)state;
    weir__ring_wake(other, weir__ring_fd(sleeper), &failed.operation);
    assert_int_equal(weir__ring_in_flight(other), 0);
    assert_int_equal(weir__ring_submit(other), 0);
    uint64_t begin_ns = weir__clock_ns();
    assert_int_equal(weir__ring_sleep(sleeper, LONG_NS), 0);
    assert_true(weir__clock_ns() - begin_ns < LONG_NS);
    assert_true(weir__ring_is_ready(sleeper));
    assert_true(weir__ring_reap(sleeper) >= 0);
    assert_false(weir__ring_is_ready(sleeper));
    assert_true(weir__ring_reap(other) >= 0);
    assert_int_equal(failed.count, 0);
    weir__ring_close(other);
    weir__ring_close(sleeper);
}

static void wake_of_nobody_is_told(void **state)
{
    struct weir_ring *ring = ring_new();
    struct answer failed = answer_open();
    int pair[2];

    (void)state;
    assert_int_equal(pipe(pair), 0);
    weir__ring_wake(ring, pair[0], &failed.operation);
    while (failed.count == 0)
        assert_true(weir__ring_wait(ring, LONG_NS) >= 0);
    assert_int_equal(failed.count, 1);
    assert_true(failed.result < 0);
    assert_int_equal(weir__ring_in_flight(ring), 0);
    close(pair[0]);
    close(pair[1]);
    weir__ring_close(ring);
}

static void cancel_all_leaves_nothing(void **state)
{
    struct weir_ring *ring = ring_new();
    struct answer operations[20];
    char buffers[20][16];
    int pair[2];

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    for (size_t i = 0; i < 20; i++) {
        operations[i] = answer_open();
        io_uring_prep_recv(weir__ring_sqe(ring, &operations[i].operation), pair[0], buffers[i],
                           sizeof(buffers[i]), 0);
    }
    weir__ring_cancel_all(ring);
    assert_int_equal(weir__ring_in_flight(ring), 0);
    for (size_t i = 0; i < 20; i++) {
        assert_int_equal(operations[i].count, 1);
        assert_int_equal(operations[i].result, -ECANCELED);
    }
    close(pair[0]);
    close(pair[1]);
    weir__ring_close(ring);
}

struct chain {
    struct weir_operation operation;
    struct weir_ring *ring;
    uint32_t count;
};

static void chain_complete(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct chain *chain = WEIR_CONTAINER_OF(operation, struct chain, operation);

    (void)result;
    (void)flags;
    if (++chain->count < 100)
        io_uring_prep_nop(weir__ring_sqe(chain->ring, operation));
}

static void reap_ends(void **state)
{
    struct chain chain = {{chain_complete}, ring_new(), 0};

    (void)state;
    io_uring_prep_nop(weir__ring_sqe(chain.ring, &chain.operation));
    assert_int_equal(weir__ring_reap(chain.ring), 1); /* and not 100 */
    assert_int_equal(chain.count, 1);
    while (weir__ring_in_flight(chain.ring) > 0)
        assert_true(weir__ring_wait(chain.ring, LONG_NS) >= 0);
    assert_int_equal(chain.count, 100);
    weir__ring_close(chain.ring);
}

/* ---- Attached workers ----------------------------------------------------- */

static void attach_refuses_nonsense(void **state)
{
    struct weir_worker *worker = NULL;
    struct weir_mesh *mesh;
    struct weir_worker_config config = {.reserved = {0, 0, 0, 0, 0, 0, 0, 1}};

    (void)state;
    assert_int_equal(weir_worker_attach(&config, &worker), -EINVAL);
    assert_int_equal(weir_worker_start(&config, &worker), -EINVAL);
    config = (struct weir_worker_config){.ring_entries = 32769};
    assert_int_equal(weir_worker_attach(&config, &worker), -EINVAL);
    config = (struct weir_worker_config){.pinned = true, .cpu = 100000};
    assert_int_equal(weir_worker_attach(&config, &worker), -EINVAL);
    assert_int_equal(weir_worker_start(&config, &worker), -EINVAL);

    assert_int_equal(weir_mesh_create(2, 0, &mesh), 0);
    config = (struct weir_worker_config){.mesh = mesh, .index = 2};
    assert_int_equal(weir_worker_attach(&config, &worker), -EINVAL);
    weir_mesh_destroy(mesh);
    assert_null(worker);
    weir_worker_stop(NULL);
}

static void operation_completes_in_poll(void **state)
{
    struct weir_worker *worker = attach(&(struct weir_worker_config){.name = "alone"});
    struct answer nop = {{answer_complete}, 1, 0, 0};

    (void)state;
    assert_null(weir_worker_region(worker));
    assert_null(weir_worker_account(worker));
    assert_non_null(weir_worker_ring(worker));
    io_uring_prep_nop(weir_worker_sqe(worker, &nop.operation));
    assert_int_equal(nop.count, 0);
    assert_int_equal(weir_worker_poll(worker, LONG_NS), 1);
    assert_int_equal(nop.count, 1);
    assert_int_equal(nop.result, 0);
    weir_worker_stop(worker);
}

static void poll_submits_before_it_returns(void **state)
{
    int pair[2];
    char byte = 0;
    struct weir_worker *worker = attach(&(struct weir_worker_config){.name = "alone"});
    struct chain chain = {{chain_complete}, weir_worker_ring(worker), 98};
    struct answer send = answer_open();

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    io_uring_prep_nop(weir_worker_sqe(worker, &chain.operation));
    (void)weir_worker_poll(worker, 0); /* completes the first, starts the second */
    assert_int_equal(chain.count, 99);
    while (chain.count < 100)
        (void)weir_worker_poll(worker, LONG_NS);

    io_uring_prep_send(weir_worker_sqe(worker, &send.operation), pair[0], "x", 1, 0);
    (void)weir_worker_poll(worker, 0);
    assert_int_equal(recv(pair[1], &byte, 1, MSG_DONTWAIT), 1);
    while (send.count == 0)
        (void)weir_worker_poll(worker, LONG_NS);
    close(pair[0]);
    close(pair[1]);
    weir_worker_stop(worker);
}

static void sleep_ends_at_the_tick(void **state)
{
    struct weir_worker *worker = attach(&(struct weir_worker_config){.tick_ns = 2000000});
    struct weir_worker_stats stats;

    (void)state;
    uint64_t begin_ns = weir__clock_ns();
    assert_int_equal(weir_worker_poll(worker, LONG_NS), 0);
    uint64_t slept_ns = weir__clock_ns() - begin_ns;
    assert_true(slept_ns >= 2000000);
    assert_true(slept_ns < LONG_NS);
    weir_worker_stats(worker, &stats);
    assert_int_equal(stats.turn_count, 1);
    assert_int_equal(stats.sleep_count, 1);
    assert_true(stats.busy_ns < slept_ns);

    assert_int_equal(weir_worker_poll(worker, 0), 0);
    weir_worker_stats(worker, &stats);
    assert_int_equal(stats.turn_count, 2);
    assert_int_equal(stats.sleep_count, 1);
    weir_worker_stop(worker);
}

static void wake_of_oneself_skips_the_sleep(void **state)
{
    struct weir_worker *worker = attach(&(struct weir_worker_config){.tick_ns = LONG_NS});
    struct weir_worker_stats stats;

    (void)state;
    weir_worker_wake(worker);
    assert_int_equal(weir_worker_poll(worker, LONG_NS), 0);
    weir_worker_stats(worker, &stats);
    assert_int_equal(stats.sleep_count, 0);
    weir_worker_stop(worker);
}

static void affinity_comes_back(void **state)
{
    cpu_set_t before;
    cpu_set_t during;
    cpu_set_t after;
    uint32_t cpu = 0;

    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
    while (!CPU_ISSET(cpu, &before))
        cpu++;
    struct weir_worker *worker =
        attach(&(struct weir_worker_config){.pinned = true, .cpu = cpu, .tick_ns = 1});
    assert_int_equal(sched_getaffinity(0, sizeof(during), &during), 0);
    assert_int_equal(CPU_COUNT(&during), 1);
    assert_true(CPU_ISSET(cpu, &during));
    (void)weir_worker_poll(worker, 0);
    struct weir_worker_stats stats;
    weir_worker_stats(worker, &stats);
    assert_int_equal(stats.cpu, cpu);
    assert_true(stats.ring_bytes > 0);
    weir_worker_stop(worker);
    assert_int_equal(sched_getaffinity(0, sizeof(after), &after), 0);
    assert_true(CPU_EQUAL(&before, &after));
}

static void stop_cancels_what_is_left(void **state)
{
    int pair[2];
    char buffer[16];
    struct weir_worker *worker = attach(&(struct weir_worker_config){0});
    struct answer receive = answer_open();

    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    io_uring_prep_recv(weir_worker_sqe(worker, &receive.operation), pair[0], buffer, sizeof(buffer),
                       0);
    (void)weir_worker_poll(worker, 0);
    assert_int_equal(receive.count, 0);
    weir_worker_stop(worker);
    assert_int_equal(receive.count, 1);
    assert_int_equal(receive.result, -ECANCELED);
    close(pair[0]);
    close(pair[1]);
}

static void helpers_are_bounded(void **state)
{
    struct weir_worker *worker = attach(&(struct weir_worker_config){0});
    unsigned counts[2] = {0, 0}; /* 0: only tell */

    (void)state;
    assert_int_equal(syscall(__NR_io_uring_register, weir__ring_fd(weir_worker_ring(worker)),
                             IORING_REGISTER_IOWQ_MAX_WORKERS, counts, 2),
                     0);
    assert_int_equal(counts[0], 16);
    assert_int_equal(counts[1], 16);
    weir_worker_stop(worker);
}

#define HELPERS_MAX 64

/* The kernel's helpers of the calling thread: their ids; how many. */
static uint32_t helpers_of_this_thread(pid_t *ret_ids)
{
    DIR *directory = opendir("/proc/self/task");
    char wanted[32];
    uint32_t count = 0;

    assert_non_null(directory);
    snprintf(wanted, sizeof(wanted), "iou-wrk-%d", (int)syscall(SYS_gettid));
    wanted[15] = '\0'; /* no more is kept of a name */
    for (struct dirent *entry = readdir(directory); entry != NULL; entry = readdir(directory)) {
        char path[300];
        char name[32] = "";

        snprintf(path, sizeof(path), "/proc/self/task/%s/comm", entry->d_name);
        FILE *file = entry->d_name[0] != '.' ? fopen(path, "re") : NULL;
        if (file == NULL)
            continue;
        if (fscanf(file, "%31s", name) == 1 && strcmp(name, wanted) == 0 && count < HELPERS_MAX)
            ret_ids[count++] = (pid_t)strtol(entry->d_name, NULL, 10);
        fclose(file);
    }
    closedir(directory);
    return count;
}

/* More at once than there may be helpers, each done by one; they linger for some seconds. */
static void keep_helpers_busy(struct weir_worker *worker)
{
    static struct answer nops[200];
    uint32_t done = 0;

    for (uint32_t i = 0; i < 200; i++) {
        nops[i] = answer_open();
        struct io_uring_sqe *sqe = weir_worker_sqe(worker, &nops[i].operation);
        io_uring_prep_nop(sqe);
        sqe->flags |= IOSQE_ASYNC;
    }
    while (done < 200) {
        (void)weir_worker_poll(worker, LONG_NS);
        done = 0;
        for (uint32_t i = 0; i < 200; i++)
            done += nops[i].count;
    }
}

static void helpers_run_beside(void **state)
{
    pid_t helpers[HELPERS_MAX];
    cpu_set_t allowed;
    cpu_set_t cpus;
    uint32_t cpu = 0;

    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
    while (!CPU_ISSET(cpu, &allowed))
        cpu++;

    /* Pinned: on its node's other cpus, where it has any. */
    struct weir_worker *worker = attach(&(struct weir_worker_config){.pinned = true, .cpu = cpu});
    keep_helpers_busy(worker);
    uint32_t count = helpers_of_this_thread(helpers);
    assert_in_range(count, 1, 32); /* 16 for files, 16 for all else */
    for (uint32_t i = 0; i < count; i++) {
        if (sched_getaffinity(helpers[i], sizeof(cpus), &cpus) < 0)
            continue; /* gone by now */
        assert_int_equal(CPU_ISSET(cpu, &cpus) != 0, CPU_COUNT(&allowed) == 1);
        for (size_t other = 0; other < CPU_SETSIZE; other++)
            assert_true(!CPU_ISSET(other, &cpus) || CPU_ISSET(other, &allowed));
    }
    weir_worker_stop(worker);
}

/* ---- Where memory lies ---------------------------------------------------- */

static bool has_one_node(void)
{
    return access("/sys/devices/system/node/node1", F_OK) != 0;
}

static void memory_is_told(void **state)
{
    static char item[65536];
    const char *directory = harness_tmpdir();
    struct weir_governor *governor;
    struct weir_worker_memory memory;
    struct weir_region_stats stats;

    (void)state;
    assert_non_null(directory);
    memset(item, 1, sizeof(item));
    assert_int_equal(
        weir_governor_create(&(struct weir_governor_config){.bytes_max = 256 << 20}, &governor), 0);
    struct weir_worker *worker = attach(&(struct weir_worker_config){
        .governor = governor,
        .region = {.directory = directory, .resident_bytes_max = 32 << 20},
    });
    int r = weir_worker_memory(worker, &memory);
    if (r == -EPERM || r == -EOPNOTSUPP) {
        print_message("# passed over: move_pages says %s\n", strerror(-r));
        weir_worker_stop(worker);
        weir_governor_destroy(governor);
        return;
    }
    assert_int_equal(r, 0);
    uint64_t before = memory.local_bytes + memory.remote_bytes;
    assert_true(memory.own.node_bytes[memory.node] >= 2 * 4096); /* itself, its account */
    for (uint64_t i = 0; i < 256; i++) {
        struct weir_slot slot;
        assert_int_equal(weir_region_put(weir_worker_region(worker), item, sizeof(item),
                                         (struct weir_label){.key = i}, &slot),
                         0);
    }

    /* What was put is there, and not much else. */
    assert_int_equal(weir_worker_memory(worker, &memory), 0);
    weir_region_stats(weir_worker_region(worker), &stats);
    assert_in_range(memory.local_bytes + memory.remote_bytes - before, 256 * sizeof(item) - 4096,
                    256 * sizeof(item) + (1 << 20));
    assert_in_range(memory.region.node_bytes[memory.node], 256 * sizeof(item),
                    stats.resident_bytes + stats.metadata_bytes + (4 << 20));
    assert_int_equal(memory.region.stride, 1);
    assert_true(memory.region.asked_bytes >= memory.region.node_bytes[memory.node]);
    if (has_one_node()) {
        assert_int_equal(memory.node, 0);
        assert_int_equal(memory.remote_bytes, 0);
    }
    weir_worker_stop(worker);
    weir_governor_destroy(governor);
}

static void memory_may_not_be_told(void **state)
{
    int status = 0;
    pid_t child = fork();

    (void)state;
    assert_true(child >= 0);
    if (child == 0) {
        struct weir_worker_memory memory = {.node = 99};
        struct weir_worker *worker = NULL;
        bool ok = weir_worker_attach(&(struct weir_worker_config){0}, &worker) == 0 &&
                  harness_forbid(__NR_move_pages) == 0 &&
                  weir_worker_memory(worker, &memory) == -EPERM && memory.node == 99;
        weir_worker_stop(worker);
        _exit(ok ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* ---- Messages, on one thread ---------------------------------------------- */

struct numbered {
    struct weir_message message;
    uint32_t number;
    uint32_t *next;
    struct weir_worker *received_by;
};

static void numbered_receive(struct weir_worker *worker, struct weir_message *message)
{
    struct numbered *numbered = WEIR_CONTAINER_OF(message, struct numbered, message);

    assert_int_equal(numbered->number, *numbered->next);
    (*numbered->next)++;
    numbered->received_by = worker;
}

static void message_arrives(void **state)
{
    struct weir_mesh *mesh;
    struct weir_worker *workers[2];
    struct numbered messages[4];
    uint32_t next = 0;

    (void)state;
    assert_int_equal(weir_mesh_create(2, 2, &mesh), 0);
    for (uint32_t i = 0; i < 2; i++)
        workers[i] =
            attach(&(struct weir_worker_config){.mesh = mesh, .index = i, .tick_ns = LONG_NS});
    assert_int_equal(weir_worker_index(workers[1]), 1);
    for (uint32_t i = 0; i < 4; i++)
        messages[i] = (struct numbered){{numbered_receive}, i, &next, NULL};

    assert_int_equal(weir_worker_send(workers[0], 2, &messages[0].message), -EINVAL);
    assert_int_equal(weir_worker_send(workers[0], 1, &messages[0].message), 0);
    assert_int_equal(weir_worker_send(workers[0], 1, &messages[1].message), 0);
    assert_int_equal(weir_worker_send(workers[0], 1, &messages[2].message), -EAGAIN);
    assert_int_equal(weir_worker_poll(workers[1], LONG_NS), 2); /* does not sleep */
    assert_int_equal(next, 2);
    assert_ptr_equal(messages[1].received_by, workers[1]);

    /* To itself. */
    assert_int_equal(weir_worker_send(workers[0], 0, &messages[2].message), 0);
    assert_int_equal(weir_worker_poll(workers[0], LONG_NS), 1);
    assert_ptr_equal(messages[2].received_by, workers[0]);

    /* To one who has gone. */
    weir_worker_stop(workers[1]);
    assert_int_equal(weir_worker_send(workers[0], 1, &messages[3].message), -ECANCELED);

    struct weir_worker_stats stats;
    weir_worker_stats(workers[0], &stats);
    assert_int_equal(stats.message_count, 1);
    assert_int_equal(stats.doorbell_count, 0); /* nobody slept */
    weir_worker_stop(workers[0]);
    weir_mesh_destroy(mesh);
}

static void alone_has_nobody_to_send_to(void **state)
{
    struct weir_worker *worker = attach(&(struct weir_worker_config){0});
    struct weir_message message = {NULL};

    (void)state;
    message.receive = numbered_receive;
    assert_int_equal(weir_worker_send(worker, 0, &message), -EINVAL);
    weir_worker_stop(worker);
}

struct endless {
    struct weir_message message;
    uint32_t count;
};

static void endless_receive(struct weir_worker *worker, struct weir_message *message)
{
    struct endless *endless = WEIR_CONTAINER_OF(message, struct endless, message);

    endless->count++;
    assert_int_equal(weir_worker_send(worker, weir_worker_index(worker), message), 0);
}

static void messages_do_not_starve_completions(void **state)
{
    struct weir_mesh *mesh;
    struct endless endless = {{endless_receive}, 0};
    struct answer nop = answer_open();

    (void)state;
    assert_int_equal(weir_mesh_create(1, 0, &mesh), 0);
    struct weir_worker *worker = attach(&(struct weir_worker_config){.mesh = mesh});
    assert_int_equal(weir_worker_send(worker, 0, &endless.message), 0);
    io_uring_prep_nop(weir_worker_sqe(worker, &nop.operation));
    for (int i = 0; i < 3 && nop.count == 0; i++)
        (void)weir_worker_poll(worker, 0);
    assert_int_equal(nop.count, 1);
    assert_true(endless.count > 0);
    weir_worker_stop(worker);
    weir_mesh_destroy(mesh);
}

/* ---- Foreign loops -------------------------------------------------------- */

static bool is_readable(int fd, int timeout_ms)
{
    struct pollfd look = {.fd = fd, .events = POLLIN};

    return poll(&look, 1, timeout_ms) == 1;
}

static void armed_worker_is_readable(void **state)
{
    struct weir_worker *worker = attach(&(struct weir_worker_config){.tick_ns = LONG_NS});
    struct answer read = answer_open();
    char byte;
    int ends[2];

    (void)state;
    assert_int_equal(pipe(ends), 0);
    io_uring_prep_read(weir_worker_sqe(worker, &read.operation), ends[0], &byte, 1, 0);
    assert_true(weir_worker_arm(worker)); /* and submits */
    assert_false(is_readable(weir_worker_fd(worker), 0));
    assert_int_equal(write(ends[1], "x", 1), 1);
    assert_true(is_readable(weir_worker_fd(worker), -1));
    assert_int_equal(read.count, 0); /* nothing completes but in poll */
    /* Before 6.4 the kernel may have had to give the read to a helper first. */
    while (weir_worker_poll(worker, 0) == 0) {
        bool sleeps = weir_worker_arm(worker);
        assert_true(!sleeps || is_readable(weir_worker_fd(worker), -1));
    }
    assert_int_equal(read.count, 1);
    assert_true(weir_worker_arm(worker));
    assert_false(is_readable(weir_worker_fd(worker), 0));

    /* Its own wish to go on, and a call from outside before it sleeps. */
    (void)weir_worker_poll(worker, 0);
    weir_worker_wake(worker);
    assert_false(weir_worker_arm(worker));
    weir_worker_stop(worker);
    close(ends[0]);
    close(ends[1]);
}

/* The other core sends when it is told to, and not before this one is armed. */
static void armed_worker_is_woken_by_messages(void **state)
{
    struct weir_mesh *mesh;
    struct weir_worker *other;
    struct numbered messages[2];
    uint32_t next = 0;

    (void)state;
    assert_int_equal(weir_mesh_create(2, 0, &mesh), 0);
    struct weir_worker *mine = attach(&(struct weir_worker_config){.mesh = mesh});
    other = attach(&(struct weir_worker_config){.mesh = mesh, .index = 1});
    for (uint32_t i = 0; i < 2; i++)
        messages[i] = (struct numbered){{numbered_receive}, i, &next, NULL};

    assert_true(weir_worker_arm(mine));
    assert_int_equal(weir_worker_send(other, 0, &messages[0].message), 0);
    assert_false(is_readable(weir_worker_fd(mine), 0)); /* the bell rings at the end of the turn */
    (void)weir_worker_poll(other, 0);
    assert_true(is_readable(weir_worker_fd(mine), -1));
    (void)weir_worker_poll(mine, 0);
    assert_int_equal(next, 1);

    /* What is there already forbids the sleep. */
    assert_int_equal(weir_worker_send(other, 0, &messages[1].message), 0);
    assert_false(weir_worker_arm(mine));
    (void)weir_worker_poll(mine, 0);
    assert_int_equal(next, 2);
    assert_true(weir_worker_arm(mine));
    weir_worker_stop(other);
    weir_worker_stop(mine); /* also while it is armed */
    weir_mesh_destroy(mesh);
}

/* ---- Budgets and reports -------------------------------------------------- */

struct reports {
    uint32_t counts[WEIR_REPORT_STALL + 1];
    uint32_t started_before; /* fall-backs told before on_start */
    struct weir_report last;
    uint64_t spin_ns;
    int sleep_ms;
};

static void report_note(struct weir_worker *worker, const struct weir_report *report, void *context)
{
    struct reports *reports = context;

    assert_non_null(worker);
    assert_true(strlen(report->text) > 0);
    reports->counts[report->kind]++;
    reports->last = *report;
}

static int report_start(struct weir_worker *worker, void *context)
{
    struct reports *reports = context;

    (void)worker;
    reports->started_before = reports->counts[WEIR_REPORT_FALLBACK];
    return 0;
}

static void spin(uint64_t ns)
{
    struct timespec now;
    uint64_t begin_ns;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    begin_ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
    do
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    while ((uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec - begin_ns < ns);
}

static void report_tick(struct weir_worker *worker, void *context)
{
    struct reports *reports = context;

    (void)worker;
    if (reports->spin_ns > 0)
        spin(reports->spin_ns);
    if (reports->sleep_ms > 0)
        (void)poll(NULL, 0, reports->sleep_ms);
}

static void long_turn_is_a_stall(void **state)
{
    struct reports reports = {.spin_ns = 0};
    struct weir_worker_stats stats;
    struct weir_worker *worker = attach(&(struct weir_worker_config){
        .stall_ns = 200000000,
        .report = report_note,
        .on_tick = report_tick,
        .context = &reports,
    });

    (void)state;
    /* A short turn is none, unless the machine itself stalls. */
    uint32_t stalls = 0;
    for (int i = 0; i < 10; i++) {
        stalls = reports.counts[WEIR_REPORT_STALL];
        (void)weir_worker_poll(worker, 0);
        if (reports.counts[WEIR_REPORT_STALL] == stalls)
            break;
    }
    assert_int_equal(reports.counts[WEIR_REPORT_STALL], stalls);

    reports.sleep_ms = 210;
    (void)weir_worker_poll(worker, 0);
    assert_int_equal(reports.counts[WEIR_REPORT_STALL], stalls + 1);
    assert_int_equal(reports.last.station, WEIR_STATION_TICK);
    assert_int_equal(reports.last.cause, WEIR_STALL_BLOCKED);
    assert_true(reports.last.ns >= 210000000);

    reports.sleep_ms = 0;
    reports.spin_ns = 210000000;
    (void)weir_worker_poll(worker, 0);
    assert_int_equal(reports.last.cause, WEIR_STALL_BUSY);
    assert_int_equal(reports.last.station, WEIR_STATION_TICK);

    weir_worker_stats(worker, &stats);
    assert_int_equal(stats.stall_count, reports.counts[WEIR_REPORT_STALL]);
    assert_true(stats.longest_turn_ns >= reports.last.ns);
    weir_worker_stop(worker);
}

/* Two threads on one cpu, and neither sleeps. */
struct rival {
    uint32_t cpu;
    uint32_t ended;
};

static void *rival_main(void *context)
{
    struct rival *rival = context;
    cpu_set_t cpus;

    CPU_ZERO(&cpus);
    CPU_SET(rival->cpu, &cpus);
    if (sched_setaffinity(0, sizeof(cpus), &cpus) == 0)
        while (__atomic_load_n(&rival->ended, __ATOMIC_RELAXED) == 0)
            continue;
    return NULL;
}

static void on_tick_until(struct weir_worker *worker, void *context)
{
    const struct reports *reports = context;
    uint64_t end_ns = weir__clock_ns() + reports->spin_ns;

    (void)worker;
    while (weir__clock_ns() < end_ns)
        continue;
}

static void preempted_turn_is_a_stall(void **state)
{
    struct reports reports = {.spin_ns = 0};
    struct rival rival = {0};
    cpu_set_t allowed;
    pthread_t thread;

    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
    while (!CPU_ISSET(rival.cpu, &allowed))
        rival.cpu++;
    struct weir_worker *worker = attach(&(struct weir_worker_config){
        .pinned = true,
        .cpu = rival.cpu,
        .stall_ns = 200000000,
        .report = report_note,
        .on_tick = on_tick_until,
        .context = &reports,
    });
    assert_int_equal(pthread_create(&thread, NULL, rival_main, &rival), 0);

    /* It wants to compute for little longer than the limit, and gets half of the cpu. */
    bool seen = false;
    reports.spin_ns = 210000000;
    for (int i = 0; i < 20 && !seen; i++) {
        (void)weir_worker_poll(worker, 0);
        assert_true(reports.counts[WEIR_REPORT_STALL] > 0);
        seen = reports.last.cause == WEIR_STALL_PREEMPTED;
    }
    assert_true(seen);
    assert_int_equal(reports.last.station, WEIR_STATION_TICK);
    __atomic_store_n(&rival.ended, 1, __ATOMIC_RELAXED);
    assert_int_equal(pthread_join(thread, NULL), 0);
    weir_worker_stop(worker);
}

struct slow {
    struct weir_message message;
    uint32_t *count;
};

static void slow_receive(struct weir_worker *worker, struct weir_message *message)
{
    (void)worker;
    spin(1000000);
    (*WEIR_CONTAINER_OF(message, struct slow, message)->count)++;
}

static void late_turn_leaves_the_rest(void **state)
{
    struct weir_mesh *mesh;
    struct weir_worker *workers[3];
    struct slow messages[3];
    uint32_t count = 0;

    (void)state;
    assert_int_equal(weir_mesh_create(3, 0, &mesh), 0);
    for (uint32_t i = 0; i < 3; i++) {
        workers[i] = attach(&(struct weir_worker_config){
            .mesh = mesh, .index = i, .tick_ns = LONG_NS, .turn_ns = 500000});
        messages[i] = (struct slow){{slow_receive}, &count};
        assert_int_equal(weir_worker_send(workers[i], 0, &messages[i].message), 0);
    }
    /* One sender's share is more than the turn may take; each of the others has its turn, unslept. */
    for (uint32_t i = 1; i <= 3; i++) {
        assert_int_equal(weir_worker_poll(workers[0], LONG_NS), 1);
        assert_int_equal(count, i);
    }
    for (uint32_t i = 0; i < 3; i++)
        weir_worker_stop(workers[i]);
    weir_mesh_destroy(mesh);
}

static void fall_backs_are_told(void **state)
{
    struct reports reports = {.spin_ns = 0};
    struct weir_worker_config config = {
        .region = {.directory = "/dev/shm", .bytes_max = 16 << 20, .memory_backed = true},
        .report = report_note,
        .on_start = report_start,
        .context = &reports,
    };

    (void)state;
    struct weir_worker *worker = attach(&config); /* tmpfs keeps what is dropped */
    assert_true(reports.started_before > 0);
    assert_int_equal(reports.counts[WEIR_REPORT_FALLBACK], reports.started_before);
    assert_int_equal(reports.counts[WEIR_REPORT_DEGRADED], 0);
    weir_worker_stop(worker);

    config.report = NULL; /* nobody has to listen */
    weir_worker_stop(attach(&config));
}

/* ---- Started workers ------------------------------------------------------ */

struct life {
    sem_t reached;
    int start_result;
    uint32_t starts;
    uint32_t ticks;
    uint32_t stops;
    uint32_t stops_wanted;
    char name[16];
    cpu_set_t affinity;
    bool blocks_term;
    bool blocks_bus;
};

static int life_start(struct weir_worker *worker, void *context)
{
    struct life *life = context;
    sigset_t blocked;

    (void)worker;
    life->starts++;
    pthread_getname_np(pthread_self(), life->name, sizeof(life->name));
    sched_getaffinity(0, sizeof(life->affinity), &life->affinity);
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    life->blocks_term = sigismember(&blocked, SIGTERM) == 1;
    life->blocks_bus = sigismember(&blocked, SIGBUS) == 1;
    return life->start_result;
}

static void life_tick(struct weir_worker *worker, void *context)
{
    struct life *life = context;

    (void)worker;
    life->ticks++;
    sem_post(&life->reached);
}

static bool life_stop(struct weir_worker *worker, void *context)
{
    struct life *life = context;

    (void)worker;
    return ++life->stops == life->stops_wanted;
}

static void life_of_a_worker(void **state)
{
    int descriptors = harness_fd_count();
    uint32_t threads = thread_count();
    struct life life = {.stops_wanted = 3};
    struct weir_worker *worker = NULL;
    cpu_set_t allowed;
    uint32_t cpu = 0;

    (void)state;
    sem_init(&life.reached, 0, 0);
    assert_int_equal(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
    while (!CPU_ISSET(cpu, &allowed))
        cpu++;
    struct weir_worker_config config = {
        .name = "a name that is far too long",
        .pinned = true,
        .cpu = cpu,
        .tick_ns = 1000000,
        .on_start = life_start,
        .on_tick = life_tick,
        .on_stop = life_stop,
        .context = &life,
    };
    assert_int_equal(weir_worker_start(&config, &worker), 0);
    assert_int_equal(life.starts, 1);
    assert_string_equal(life.name, "a name that is ");
    assert_int_equal(CPU_COUNT(&life.affinity), 1);
    assert_true(CPU_ISSET(cpu, &life.affinity));
    assert_true(life.blocks_term);
    assert_false(life.blocks_bus);
    for (int i = 0; i < 3; i++)
        sem_wait(&life.reached);
    weir_worker_stop(worker);
    assert_int_equal(life.starts, 1);
    assert_true(life.ticks >= 3);
    assert_int_equal(life.stops, 3);
    sem_destroy(&life.reached);
    assert_int_equal(harness_fd_count(), descriptors);
    assert_int_equal(thread_count(), threads);
}

static void failed_start_leaves_nothing(void **state)
{
    int descriptors = harness_fd_count();
    uint32_t threads = thread_count();
    struct life life = {.start_result = -EADDRINUSE};
    struct weir_worker *worker = NULL;
    struct weir_mesh *mesh;
    cpu_set_t before;
    cpu_set_t after;

    (void)state;
    sem_init(&life.reached, 0, 0);
    assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
    assert_int_equal(weir_mesh_create(1, 0, &mesh), 0);
    struct weir_worker_config config = {
        .mesh = mesh,
        .on_start = life_start,
        .on_tick = life_tick,
        .on_stop = life_stop,
        .context = &life,
    };
    for (int i = 0; i < 10; i++) {
        assert_int_equal(weir_worker_start(&config, &worker), -EADDRINUSE);
        assert_int_equal(weir_worker_attach(&config, &worker), -EADDRINUSE);
    }
    assert_null(worker);
    assert_int_equal(life.starts, 20);
    assert_int_equal(life.ticks, 0);
    assert_int_equal(life.stops, 0);

    /* The place in the mesh can still be taken. */
    life.start_result = 0;
    life.stops_wanted = 1;
    assert_int_equal(weir_worker_start(&config, &worker), 0);
    weir_worker_stop(worker);
    weir_mesh_destroy(mesh);
    assert_int_equal(sched_getaffinity(0, sizeof(after), &after), 0);
    assert_true(CPU_EQUAL(&before, &after));
    assert_int_equal(harness_fd_count(), descriptors);
    assert_int_equal(thread_count(), threads);
    sem_destroy(&life.reached);
}

static void stop_ends_a_long_sleep(void **state)
{
    struct weir_worker *worker = NULL;

    (void)state;
    uint64_t begin_ns = weir__clock_ns();
    for (int i = 0; i < 100; i++) {
        struct weir_worker_config config = {.tick_ns = LONG_NS};
        assert_int_equal(weir_worker_start(&config, &worker), 0);
        weir_worker_stop(worker);
    }
    assert_true(weir__clock_ns() - begin_ns < LONG_NS);
}

static void wake_from_outside_runs_a_turn(void **state)
{
    struct weir_worker *worker = NULL;
    struct life life = {.stops_wanted = 1};
    struct weir_worker_config config = {
        .tick_ns = LONG_NS, .on_tick = life_tick, .on_stop = life_stop, .context = &life};

    (void)state;
    sem_init(&life.reached, 0, 0);
    assert_int_equal(weir_worker_start(&config, &worker), 0);
    uint64_t begin_ns = weir__clock_ns();
    for (int i = 0; i < 1000; i++) {
        weir_worker_wake(worker);
        sem_wait(&life.reached); /* the turn that begins after the wake */
    }
    assert_true(weir__clock_ns() - begin_ns < LONG_NS);
    weir_worker_stop(worker);
    sem_destroy(&life.reached);
}

/* Ball games: a message goes round until it has been caught often enough. */
struct ball {
    struct weir_message message;
    uint32_t catches_left;
    uint32_t worker_count;
    sem_t *done;
};

static void ball_receive(struct weir_worker *worker, struct weir_message *message)
{
    struct ball *ball = WEIR_CONTAINER_OF(message, struct ball, message);

    if (--ball->catches_left == 0) {
        sem_post(ball->done);
        return;
    }
    uint32_t next = (weir_worker_index(worker) + 1) % ball->worker_count;
    assert_int_equal(weir_worker_send(worker, next, message), 0);
}

static int ball_start(struct weir_worker *worker, void *context)
{
    struct ball *ball = context;

    if (weir_worker_index(worker) != 0)
        return 0;
    return weir_worker_send(worker, ball->worker_count - 1, &ball->message);
}

static void sleepers_are_woken_by_messages(void **state)
{
    sem_t done;
    struct ball ball = {{ball_receive}, 3000, 3, &done};
    struct weir_worker *workers[3];
    struct weir_worker_stats stats;
    struct weir_mesh *mesh;
    uint64_t doorbells = 0;

    (void)state;
    sem_init(&done, 0, 0);
    assert_int_equal(weir_mesh_create(3, 0, &mesh), 0);
    uint64_t begin_ns = weir__clock_ns();
    for (uint32_t i = 3; i > 0; i--) {
        struct weir_worker_config config = {
            .mesh = mesh,
            .index = i - 1,
            .tick_ns = LONG_NS,
            .on_start = ball_start,
            .context = &ball,
        };
        assert_int_equal(weir_worker_start(&config, &workers[i - 1]), 0);
    }
    sem_wait(&done);
    assert_true(weir__clock_ns() - begin_ns < LONG_NS); /* no sleep lasted for a tick */
    for (uint32_t i = 0; i < 3; i++) {
        weir_worker_stats(workers[i], &stats);
        doorbells += stats.doorbell_count;
        weir_worker_stop(workers[i]);
    }
    assert_true(doorbells > 0);
    weir_mesh_destroy(mesh);
    sem_destroy(&done);
}

static void failed_doorbell_is_rung_again(void **state)
{
    sem_t done;
    struct ball ball = {{ball_receive}, 1000, 2, &done};
    struct weir_worker *workers[2];
    struct weir_mesh *mesh;

    (void)state;
    sem_init(&done, 0, 0);
    assert_int_equal(weir_mesh_create(3, 0, &mesh), 0);
    for (uint32_t i = 0; i < 2; i++) {
        struct weir_worker_config config = {.mesh = mesh, .index = i, .tick_ns = LONG_NS};
        assert_int_equal(weir_worker_start(&config, &workers[i]), 0);
    }

    /* What the others ring at is no ring any more. */
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    assert_true(null >= 0);
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(dup3(null, mesh->ports[i].ring_fd, O_CLOEXEC), mesh->ports[i].ring_fd);
    close(null);

    uint64_t begin_ns = weir__clock_ns();
    struct weir_worker *thrower = attach(&(struct weir_worker_config){.mesh = mesh, .index = 2});
    assert_int_equal(weir_worker_send(thrower, 0, &ball.message), 0);
    while (sem_trywait(&done) < 0)
        (void)weir_worker_poll(thrower, LONG_NS);
    assert_true(weir__clock_ns() - begin_ns < LONG_NS);
    weir_worker_stop(thrower);
    for (uint32_t i = 0; i < 2; i++)
        weir_worker_stop(workers[i]);
    weir_mesh_destroy(mesh);
    sem_destroy(&done);
}

static void place_can_be_taken_again(void **state)
{
    int descriptors = harness_fd_count();
    struct weir_mesh *mesh;
    struct numbered messages[3];
    uint32_t next = 0;

    (void)state;
    assert_int_equal(weir_mesh_create(2, 0, &mesh), 0);
    struct weir_worker_config config = {.mesh = mesh, .index = 1, .tick_ns = LONG_NS};
    struct weir_worker *sender = attach(&(struct weir_worker_config){.mesh = mesh, .index = 0});
    for (uint32_t i = 0; i < 3; i++)
        messages[i] = (struct numbered){{numbered_receive}, i, &next, NULL};

    /* Sent before there is anybody. */
    assert_int_equal(weir_worker_send(sender, 1, &messages[0].message), 0);
    struct weir_worker *receiver = attach(&config);
    assert_int_equal(weir_worker_poll(receiver, LONG_NS), 1);

    /* Left by one who goes, and taken by the next. */
    assert_int_equal(weir_worker_send(sender, 1, &messages[1].message), 0);
    weir_worker_stop(receiver);
    assert_int_equal(next, 1);
    assert_int_equal(weir_worker_send(sender, 1, &messages[2].message), -ECANCELED);
    receiver = attach(&config);
    assert_int_equal(weir_worker_send(sender, 1, &messages[2].message), 0);
    assert_int_equal(weir_worker_poll(receiver, LONG_NS), 2);
    assert_int_equal(next, 3);
    weir_worker_stop(receiver);
    weir_worker_stop(sender);
    weir_mesh_destroy(mesh);
    assert_int_equal(harness_fd_count(), descriptors);
}

/* ---- Memory --------------------------------------------------------------- */

#define MIB (UINT64_C(1) << 20)

static struct weir_governor *governor_new(uint64_t bytes_max)
{
    struct weir_governor *governor = NULL;

    assert_int_equal(
        weir_governor_create(
            &(struct weir_governor_config){.bytes_max = bytes_max, .node_count = 1}, &governor),
        0);
    return governor;
}

static uint64_t governor_charged(const struct weir_governor *governor)
{
    struct weir_governor_stats stats;

    weir_governor_stats(governor, &stats);
    return stats.charged_bytes;
}

static void region_is_paid_for(void **state)
{
    static const struct {
        uint64_t bytes_max;
        uint64_t resident_bytes_max;
        uint64_t charged_bytes;
    } cases[] = {
        {0, 0, 64 * MIB},
        {0, 16 * MIB, 16 * MIB},
        {32 * MIB, 0, 32 * MIB},
        {32 * MIB, UINT64_MAX, 32 * MIB},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct weir_governor *governor = governor_new(256 * MIB);
        struct weir_worker_config config = {
            .governor = governor,
            .account = {.reserve_bytes = 3 * MIB},
            .region = {.directory = harness_tmpdir(),
                       .bytes_initial = 8 * MIB,
                       .bytes_max = cases[i].bytes_max,
                       .resident_bytes_max = cases[i].resident_bytes_max},
        };
        struct weir_worker *worker = attach(&config);
        uint64_t charged_bytes = governor_charged(governor);
        assert_non_null(weir_worker_region(worker));
        assert_non_null(weir_worker_account(worker));

        /* The rest is the worker's own: ring, queues, tables of the region. */
        assert_true(charged_bytes > cases[i].charged_bytes + 3 * MIB);
        assert_true(charged_bytes < cases[i].charged_bytes + 5 * MIB);
        (void)weir_worker_poll(worker, 0);
        weir_worker_stop(worker);
        assert_int_equal(governor_charged(governor), 0);
        weir_governor_destroy(governor);
    }
}

static void region_that_does_not_fit(void **state)
{
    int descriptors = harness_fd_count();
    struct weir_governor *governor = governor_new(24 * MIB);
    struct weir_worker *worker = NULL;
    struct weir_worker_config config = {
        .governor = governor,
        .region = {.directory = harness_tmpdir()},
    };

    (void)state;
    assert_int_equal(weir_worker_start(&config, &worker), -EDQUOT);
    assert_int_equal(weir_worker_attach(&config, &worker), -EDQUOT);
    config.region.resident_bytes_max = 16 * MIB;
    config.account.reserve_bytes = UINT64_MAX;
    assert_int_equal(weir_worker_attach(&config, &worker), -EINVAL);

    /* One that fits, but cannot be opened. */
    config.account.reserve_bytes = 0;
    config.region.directory = "/nowhere";
    assert_int_equal(weir_worker_start(&config, &worker), -ENOENT);
    assert_null(worker);
    assert_int_equal(governor_charged(governor), 0);
    weir_governor_destroy(governor);
    assert_int_equal(harness_fd_count(), descriptors);
}

struct room {
    struct weir_worker *asked;
    uint32_t count;
    bool answer;
};

static struct room room;

static bool room_is_there(void *context, size_t bytes)
{
    (void)bytes;
    room.asked = context;
    room.count++;
    return room.answer;
}

static void has_room_is_asked_with_the_worker(void **state)
{
    struct weir_governor *governor = governor_new(64 * MIB);
    struct weir_worker_config config = {
        .governor = governor,
        .account = {.spillable = true, .has_room = room_is_there},
        .region = {.directory = harness_tmpdir(), .resident_bytes_max = 8 * MIB},
    };
    struct weir_worker *worker = attach(&config);
    enum weir_verdict verdict;

    (void)state;
    /* Above spill, so that room is asked for. */
    weir_account_charge_forced(weir_worker_account(worker), 52 * MIB);
    room = (struct room){.answer = true};
    assert_int_equal(weir_account_charge(weir_worker_account(worker), 4096, &verdict), 0);
    assert_int_equal(verdict, WEIR_SPILL);
    assert_ptr_equal(room.asked, worker);
    assert_true(room.count > 0);
    room.answer = false;
    assert_int_equal(weir_account_charge(weir_worker_account(worker), 4096, &verdict), 0);
    assert_int_not_equal(verdict, WEIR_SPILL);
    weir_worker_stop(worker);
    assert_int_equal(governor_charged(governor), 0);

    /* Without a region there is nowhere to spill to, and nobody is asked. */
    config.region.directory = NULL;
    worker = attach(&config);
    weir_account_charge_forced(weir_worker_account(worker), 60 * MIB);
    room = (struct room){.answer = true};
    assert_int_equal(weir_account_charge(weir_worker_account(worker), 4096, &verdict), 0);
    assert_int_not_equal(verdict, WEIR_SPILL);
    assert_int_equal(room.count, 0);
    weir_worker_stop(worker);
    weir_governor_destroy(governor);
}

struct waiting {
    struct weir_waiter waiter;
    struct weir_worker *worker;
    int result;
    sem_t woken;
};

static void waiting_wake(struct weir_waiter *waiter, int result)
{
    struct waiting *waiting = WEIR_CONTAINER_OF(waiter, struct waiting, waiter);

    waiting->result = result;
    weir_account_refund(weir_worker_account(waiting->worker), 8 * MIB);
    sem_post(&waiting->woken);
}

static int waiting_start(struct weir_worker *worker, void *context)
{
    struct waiting *waiting = context;

    waiting->worker = worker;
    waiting->waiter.wake = waiting_wake;
    return weir_account_wait(weir_worker_account(worker), &waiting->waiter, 8 * MIB, UINT64_MAX);
}

static void granted_waiter_ends_the_sleep(void **state)
{
    struct weir_governor *governor = governor_new(64 * MIB);
    struct weir_account *holder = NULL;
    struct waiting waiting = {.result = 1};
    struct weir_worker *worker = NULL;
    struct weir_worker_config config = {
        .governor = governor,
        .tick_ns = LONG_NS,
        .on_start = waiting_start,
        .context = &waiting,
    };

    (void)state;
    sem_init(&waiting.woken, 0, 0);
    assert_int_equal(
        weir_account_open(governor, &(struct weir_account_config){.transient = true}, &holder), 0);
    weir_account_charge_forced(holder, 63 * MIB);
    uint64_t begin_ns = weir__clock_ns();
    assert_int_equal(weir_worker_start(&config, &worker), 0);
    assert_int_equal(waiting.result, 1);
    weir_account_refund(holder, 63 * MIB);
    sem_wait(&waiting.woken);
    assert_true(weir__clock_ns() - begin_ns < LONG_NS);
    assert_int_equal(waiting.result, 0);
    weir_worker_stop(worker);
    weir_account_close(holder);
    assert_int_equal(governor_charged(governor), 0);
    weir_governor_destroy(governor);
    sem_destroy(&waiting.woken);
}

/* ---- Memory that a region gives back ---------------------------------------- */

#define LENT_LEAST (8 * MIB)
#define LENT_WHOLE (64 * MIB)

/* The books of a worker whose region gives memory back, and what a second account does beside it. */
struct lent {
    struct weir_governor *governor;
    struct weir_worker *worker;
    struct weir_account *other;
    struct weir_waiter waiter;
    uint64_t rest_bytes; /* what the account has beside the region's memory and tables */
    uint64_t other_bytes;
    uint64_t asked_count;
    uint64_t asked_ns; /* the last time that it was asked is not before */
    int woken;         /* 1: not yet */
    struct weir_slot slots[8192];
    uint32_t count;
};

static void lent_woken(struct weir_waiter *waiter, int result)
{
    WEIR_CONTAINER_OF(waiter, struct lent, waiter)->woken = result;
}

/* What is charged for the region's memory is what bounds it, and all of it is in the account. */
static uint64_t lent_look(struct lent *lent)
{
    struct weir_worker_stats stats;
    struct weir_region_stats region;
    struct weir_account_stats account;

    weir_worker_stats(lent->worker, &stats);
    weir_region_stats(weir_worker_region(lent->worker), &region);
    weir_account_stats(weir_worker_account(lent->worker), &account);
    assert_true(region.resident_bytes <= region.resident_bytes_max);
    assert_true(region.resident_bytes_max <= stats.region_charged_bytes);
    assert_true(stats.region_charged_bytes <= LENT_WHOLE);
    assert_true(stats.region_charged_bytes >= LENT_LEAST);
    uint64_t rest = account.charged_bytes - stats.region_charged_bytes - region.metadata_bytes;
    if (lent->rest_bytes == 0)
        lent->rest_bytes = rest;
    assert_int_equal(rest, lent->rest_bytes);
    return stats.region_charged_bytes;
}

static struct lent *lent_start(uint64_t bytes_max)
{
    struct lent *lent = test_calloc(1, sizeof(*lent));

    lent->governor = governor_new(bytes_max);
    lent->worker = attach(&(struct weir_worker_config){
        .governor = lent->governor,
        .tick_ns = 1000000,
        .region = {.directory = harness_tmpdir(),
                   .bytes_max = 512 * MIB,
                   .resident_bytes_max = LENT_WHOLE,
                   .resident_bytes_min = LENT_LEAST},
    });
    assert_int_equal(weir_account_open(lent->governor,
                                       &(struct weir_account_config){.name = "other"},
                                       &lent->other),
                     0);
    lent_look(lent);
    return lent;
}

static void lent_finish(struct lent *lent)
{
    weir_account_close(lent->other);
    weir_worker_stop(lent->worker);
    assert_int_equal(governor_charged(lent->governor), 0);
    weir_governor_destroy(lent->governor);
    test_free(lent);
}

static bool lent_is_bounded(struct lent *lent)
{
    struct weir_region_stats stats;

    weir_region_stats(weir_worker_region(lent->worker), &stats);
    if (stats.bounded)
        return true;
    printf("# passed over: this file system keeps pages in memory\n");
    lent_finish(lent);
    return false;
}

static uint64_t lent_turn(struct lent *lent)
{
    uint64_t begin_ns = weir__clock_ns();
    struct weir_account_stats account;

    (void)weir_worker_poll(lent->worker, LONG_NS);
    (void)weir_account_poll(lent->other);
    weir_account_stats(weir_worker_account(lent->worker), &account);
    if (account.asked_count != lent->asked_count) {
        lent->asked_count = account.asked_count;
        lent->asked_ns = begin_ns;
    }
    return lent_look(lent);
}

static void lent_put(struct lent *lent, uint64_t bytes)
{
    static unsigned char item[64 * 1024];

    for (uint64_t done = 0; done < bytes; done += sizeof(item)) {
        int r;
        while ((r = weir_region_put(weir_worker_region(lent->worker), item, sizeof(item),
                                    (struct weir_label){lent->count, 0},
                                    &lent->slots[lent->count])) == -EAGAIN)
            lent_turn(lent);
        assert_int_equal(r, 0);
        lent->count++;
        lent_look(lent);
    }
}

static void only_the_least_must_fit(void **state)
{
    struct weir_governor *governor = governor_new(64 * MIB);
    struct weir_worker *worker = NULL;
    struct weir_worker_stats stats;
    struct weir_region_stats region;
    struct weir_worker_config config = {
        .governor = governor,
        .region = {.directory = harness_tmpdir(), .resident_bytes_min = LENT_LEAST},
    };

    (void)state;
    /* 64 MiB do not fit under 64 MiB, but some of it does, and use stays calm. */
    worker = attach(&config);
    weir_worker_stats(worker, &stats);
    weir_region_stats(weir_worker_region(worker), &region);
    assert_int_equal(stats.region_charged_bytes, region.resident_bytes_max);
    assert_true(stats.region_charged_bytes > 32 * MIB);
    assert_true(governor_charged(governor) < 45 * MIB);
    assert_true(stats.region_charged_bytes < governor_charged(governor));

    /* A second has the little that is left. */
    struct weir_worker *second = attach(&config);
    weir_worker_stats(second, &stats);
    assert_int_equal(stats.region_charged_bytes, LENT_LEAST);
    weir_worker_stop(second);
    weir_worker_stop(worker);

    /* The account's own cap holds for it, too. */
    config.account.bytes_max = 24 * MIB;
    worker = attach(&config);
    weir_worker_stats(worker, &stats);
    assert_true(stats.region_charged_bytes > LENT_LEAST);
    assert_true(governor_charged(governor) <= 24 * MIB);
    struct weir_account_stats account;
    weir_account_stats(weir_worker_account(worker), &account);
    assert_int_equal(account.wait_count, 0); /* it is looked at, not tried */
    weir_worker_stop(worker);
    weir_governor_destroy(governor);

    governor = governor_new(7 * MIB);
    config.governor = governor;
    config.account.bytes_max = 0;
    assert_int_equal(weir_worker_attach(&config, &worker), -EDQUOT);
    assert_int_equal(governor_charged(governor), 0);
    weir_governor_destroy(governor);
}

/* Nobody pays for memory that a region has no file for; but all of that may stay. */
static void a_small_file_is_no_large_loan(void **state)
{
    struct weir_governor *governor = governor_new(1024 * MIB);
    struct weir_worker_stats stats;
    struct weir_region_stats region;
    struct weir_worker *worker = attach(&(struct weir_worker_config){
        .governor = governor,
        .region = {.directory = harness_tmpdir(),
                   .bytes_max = 32 * MIB,
                   .resident_bytes_max = 512 * MIB,
                   .resident_bytes_min = LENT_LEAST},
    });

    (void)state;
    weir_worker_stats(worker, &stats);
    assert_int_equal(stats.region_charged_bytes, 40 * MIB);
    for (uint32_t i = 0; i < 480; i++) {
        static unsigned char item[64 * 1024];
        struct weir_slot slot;
        assert_int_equal(weir_region_put(weir_worker_region(worker), item, sizeof(item),
                                         (struct weir_label){i, 0}, &slot),
                         0);
    }
    weir_region_stats(weir_worker_region(worker), &region);
    assert_true(region.resident_bytes >= 30 * MIB);
    assert_true(region.resident_bytes <= 40 * MIB);
    weir_worker_stop(worker);
    assert_int_equal(governor_charged(governor), 0);
    weir_governor_destroy(governor);
}

static void who_waits_gets_what_the_region_has(void **state)
{
    struct lent *lent = lent_start(128 * MIB);

    (void)state;
    assert_int_equal(lent_look(lent), LENT_WHOLE);
    if (!lent_is_bounded(lent))
        return;
    lent_put(lent, 48 * MIB); /* dirty: it must be written before it can be given */
    weir_account_charge_forced(lent->other, 62 * MIB);
    lent->waiter.wake = lent_woken;
    lent->woken = 1;
    assert_int_equal(weir_account_wait(lent->other, &lent->waiter, 20 * MIB, UINT64_MAX), 0);
    while (lent->woken == 1)
        lent_turn(lent);
    assert_int_equal(lent->woken, 0);
    assert_true(lent_look(lent) < LENT_WHOLE - 18 * MIB);

    /* And more, until all is calm. */
    while (lent_look(lent) > LENT_LEAST)
        lent_turn(lent);
    for (uint32_t i = 0; i < lent->count; i += 100) {
        size_t bytes = 0;
        unsigned char byte;
        assert_int_equal(
            weir_region_read(weir_worker_region(lent->worker), lent->slots[i], 0, &byte, 1, &bytes),
            0);
    }

    /* There is room again: it takes back what it gave, and nobody is told to flush for that. */
    struct weir_governor_stats before;
    struct weir_governor_stats after;
    weir_account_refund(lent->other, 82 * MIB);
    while (weir_governor_stats(lent->governor, &before), before.level != WEIR_LEVEL_CALM)
        lent_turn(lent);
    while (lent_look(lent) == LENT_LEAST)
        lent_turn(lent);
    assert_true(weir__clock_ns() - lent->asked_ns >= UINT64_C(500000000)); /* not at once */
    while (lent_look(lent) < LENT_WHOLE)
        lent_turn(lent);
    weir_governor_stats(lent->governor, &after);
    assert_int_equal(after.level_change_count, before.level_change_count);
    assert_int_equal(after.verdict_count[WEIR_FLUSH], before.verdict_count[WEIR_FLUSH]);
    lent_put(lent, 80 * MIB);
    struct weir_region_stats region;
    weir_region_stats(weir_worker_region(lent->worker), &region);
    assert_true(region.resident_bytes > LENT_WHOLE / 2);

    struct weir_worker_stats stats;
    weir_worker_stats(lent->worker, &stats);
    assert_true(stats.region_given_bytes >= LENT_WHOLE - LENT_LEAST);
    lent_finish(lent);
}

/* Where all of it is far from calm nothing is taken back. */
static void nothing_is_taken_where_it_is_tight(void **state)
{
    struct lent *lent = lent_start(128 * MIB);

    (void)state;
    if (!lent_is_bounded(lent))
        return;
    weir_account_charge_forced(lent->other, 100 * MIB);
    while (lent_look(lent) > LENT_LEAST)
        lent_turn(lent);
    weir_account_refund(lent->other, 20 * MIB); /* calm, but near soft */
    uint64_t begin_ns = weir__clock_ns();
    while (weir__clock_ns() - begin_ns < UINT64_C(700000000))
        lent_turn(lent);
    assert_int_equal(lent_look(lent), LENT_LEAST);
    weir_account_refund(lent->other, 30 * MIB); /* 50 are charged, and 89 may be */
    while (lent_look(lent) < 36 * MIB)
        lent_turn(lent);
    assert_true(governor_charged(lent->governor) < UINT64_C(128) * MIB * 70 / 100);
    lent_finish(lent);
}

/* Pins hold up what was asked for, until nobody wants it any more: then puts have it again. */
static void what_is_not_wanted_any_more_is_kept(void **state)
{
    struct lent *lent = lent_start(128 * MIB);
    struct weir_region *region = weir_worker_region(lent->worker);
    struct weir_region_stats stats;
    const void *data;

    (void)state;
    if (!lent_is_bounded(lent))
        return;
    lent_put(lent, 40 * MIB);
    for (uint32_t i = 0; i < lent->count; i += 32)
        assert_int_equal(weir_region_pin(region, lent->slots[i], &data, NULL), 0);
    weir_account_charge_forced(lent->other, 100 * MIB);
    do {
        lent_turn(lent);
        weir_region_stats(region, &stats);
    } while (stats.resident_wish_bytes >= 40 * MIB);
    assert_true(lent_look(lent) >= 40 * MIB);
    weir_account_refund(lent->other, 100 * MIB);
    uint64_t begin_ns = weir__clock_ns();
    uint32_t last = lent->count + 64;
    while (lent->count < last) { /* two chunks, at least, beside those that are pinned */
        static unsigned char item[64 * 1024];
        int r = weir_region_put(region, item, sizeof(item), (struct weir_label){0, 0},
                                &lent->slots[lent->count]);
        assert_true(r == 0 || r == -EAGAIN);
        assert_true(weir__clock_ns() - begin_ns < LONG_NS);
        lent->count += r == 0;
        lent_turn(lent);
    }
    for (uint32_t i = 0; i < last - 64; i += 32)
        weir_region_unpin(region, lent->slots[i]);
    lent_finish(lent);
}

static void books_are_exact_in_all_weathers(void **state)
{
    struct lent *lent = lent_start(128 * MIB);
    uint64_t random = harness_seed();
    uint32_t oldest = 0;

    (void)state;
    if (!lent_is_bounded(lent))
        return;
    for (uint32_t step = 0; step < 3000; step++) {
        uint64_t choice = weir__random_below(&random, 100);
        if (choice < 5) {
            weir_account_refund(lent->other, lent->other_bytes);
            lent->other_bytes = weir__random_below(&random, 120) * MIB;
            weir_account_charge_forced(lent->other, lent->other_bytes);
        } else if (choice < 50 && lent->count < 8100) {
            lent_put(lent, 64 * 1024 * (1 + weir__random_below(&random, 4)));
            while (lent->count - oldest > 1500)
                assert_int_equal(
                    weir_region_free(weir_worker_region(lent->worker), lent->slots[oldest++]), 0);
        } else {
            lent_turn(lent);
        }
    }
    weir_account_refund(lent->other, lent->other_bytes);
    weir_account_charge_forced(lent->other, 120 * MIB);
    lent_turn(lent); /* stopped on the way down */
    lent_finish(lent);
}

static int lent_fill(struct weir_worker *worker, void *context)
{
    static unsigned char item[64 * 1024];
    struct weir_slot slot;

    (void)context;
    for (uint32_t i = 0; i < 500; i++) {
        int r = weir_region_put(weir_worker_region(worker), item, sizeof(item),
                                (struct weir_label){i, 0}, &slot);
        if (r < 0)
            return r;
    }
    return 0;
}

/* It sleeps, and would for long: whoever is short rings. */
static void a_sleeping_workers_region_gives(void **state)
{
    struct weir_governor *governor = governor_new(128 * MIB);
    struct weir_worker *worker = NULL;
    struct weir_account *other = NULL;
    struct weir_waiter waiter = {.wake = NULL};
    struct weir_worker_stats stats;
    struct weir_worker_config config = {
        .governor = governor,
        .tick_ns = LONG_NS,
        .on_start = lent_fill,
        .region = {.directory = harness_tmpdir(),
                   .resident_bytes_max = LENT_WHOLE,
                   .resident_bytes_min = LENT_LEAST},
    };

    (void)state;
    uint64_t begin_ns = weir__clock_ns();
    assert_int_equal(weir_worker_start(&config, &worker), 0);
    assert_int_equal(
        weir_account_open(governor, &(struct weir_account_config){.name = "other"}, &other), 0);
    weir_account_charge_forced(other, 62 * MIB);
    int r = weir_account_wait(other, &waiter, 30 * MIB, begin_ns + LONG_NS);
    weir_worker_stats(worker, &stats);
    if (stats.region_given_bytes == 0)
        printf("# passed over: this file system keeps pages in memory\n");
    else
        assert_int_equal(r, 0);
    assert_true(weir__clock_ns() - begin_ns < LONG_NS);
    weir_account_close(other);
    weir_worker_stop(worker);
    assert_int_equal(governor_charged(governor), 0);
    weir_governor_destroy(governor);
}

struct fetched {
    uint32_t count;
    uint32_t good;
    struct weir_region *region;
};

static void fetched_done(void *context, struct weir_slot slot, int result)
{
    struct fetched *fetched = context;
    const void *data;
    size_t bytes;

    fetched->count++;
    if (result == 0 && weir_region_at(fetched->region, slot, &data, &bytes) == 0 &&
        bytes == 64 * 1024 && *(const unsigned char *)data == (unsigned char)slot.index)
        fetched->good++;
}

static void region_lives_on_the_loop(void **state)
{
    enum { COUNT = 1024 }; /* 64 MiB through a region of 8 */
    static unsigned char item[64 * 1024];
    static struct weir_slot slots[COUNT];
    struct weir_worker_config config = {
        .tick_ns = 1000000,
        .region = {.directory = harness_tmpdir(), .resident_bytes_max = 8 * MIB},
    };
    struct weir_worker *worker = attach(&config);
    struct weir_region *region = weir_worker_region(worker);
    struct fetched fetched = {0, 0, region};
    struct weir_region_stats stats;
    const void *data;
    size_t bytes;

    (void)state;
    for (uint32_t i = 0; i < COUNT; i++) {
        int r;
        while ((r = weir_region_put(region, item, sizeof(item), (struct weir_label){i, 0},
                                    &slots[i])) == -EAGAIN)
            (void)weir_worker_poll(worker, LONG_NS);
        assert_int_equal(r, 0);
        /* In place, while it is certainly resident. */
        assert_int_equal(weir_region_at(region, slots[i], &data, &bytes), 0);
        *(unsigned char *)(uintptr_t)data = (unsigned char)slots[i].index;
    }
    weir_region_stats(region, &stats);
    assert_true(stats.live_bytes == COUNT * sizeof(item));
    assert_true(stats.resident_bytes <= 8 * MIB);

    for (uint32_t i = 0; i < 16; i++) {
        int r;
        while ((r = weir_region_fetch(region, &slots[i], 1, fetched_done, &fetched)) == -EAGAIN)
            (void)weir_worker_poll(worker, LONG_NS);
        assert_int_equal(r, 0);
    }
    while (fetched.count < 16)
        (void)weir_worker_poll(worker, LONG_NS);
    assert_int_equal(fetched.good, 16);

    /* Stop with write-back and fetches under way. */
    for (uint32_t i = 100; i < 104; i++)
        (void)!weir_region_fetch(region, &slots[i], 1, fetched_done, &fetched);
    weir_worker_stop(worker);
    assert_int_equal(fetched.count, 16);
}

static void without_io_uring_it_refuses(void **state)
{
    (void)state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct weir_worker *worker = NULL;
        int descriptors = harness_fd_count();
        if (harness_forbid_io_uring() < 0)
            _exit(1);
        if (weir_worker_start(&(struct weir_worker_config){0}, &worker) != -EOPNOTSUPP)
            _exit(2);
        if (weir_worker_attach(&(struct weir_worker_config){0}, &worker) != -EOPNOTSUPP)
            _exit(3);
        _exit(harness_fd_count() == descriptors ? 0 : 4);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"a ring refuses nonsense", ring_refuses_nonsense, NULL, NULL, NULL},
        {"a ring takes more than its queue holds", more_than_the_queue_holds, NULL, NULL, NULL},
        {"a wake reaches a sleeping ring", wake_reaches_a_sleeping_ring, NULL, NULL, NULL},
        {"a wake that reaches nobody is told", wake_of_nobody_is_told, NULL, NULL, NULL},
        {"cancel leaves nothing in flight", cancel_all_leaves_nothing, NULL, NULL, NULL},
        {"a reap ends though completions go on", reap_ends, NULL, NULL, NULL},
        {"a worker refuses nonsense", attach_refuses_nonsense, NULL, NULL, NULL},
        {"an operation completes in poll", operation_completes_in_poll, NULL, NULL, NULL},
        {"poll submits before it returns", poll_submits_before_it_returns, NULL, NULL, NULL},
        {"a sleep ends at the tick", sleep_ends_at_the_tick, NULL, NULL, NULL},
        {"a wake of oneself skips the sleep", wake_of_oneself_skips_the_sleep, NULL, NULL, NULL},
        {"an attached thread gets its affinity back", affinity_comes_back, NULL, NULL, NULL},
        {"stop cancels what is left", stop_cancels_what_is_left, NULL, NULL, NULL},
        {"the kernel's helpers are bounded", helpers_are_bounded, NULL, NULL, NULL},
        {"the kernel's helpers run beside the core", helpers_run_beside, NULL, NULL, NULL},
        {"where its memory lies is told", memory_is_told, NULL, NULL, NULL},
        {"where its memory lies may be nobody's business", memory_may_not_be_told, NULL, NULL,
         NULL},
        {"a message arrives", message_arrives, NULL, NULL, NULL},
        {"a worker alone has nobody to send to", alone_has_nobody_to_send_to, NULL, NULL, NULL},
        {"messages do not starve completions", messages_do_not_starve_completions, NULL, NULL,
         NULL},
        {"an armed worker's descriptor is readable when something completes",
         armed_worker_is_readable, NULL, NULL, NULL},
        {"an armed worker is woken by messages", armed_worker_is_woken_by_messages, NULL, NULL,
         NULL},
        {"a long turn is a stall, told with its cause", long_turn_is_a_stall, NULL, NULL, NULL},
        {"a turn that lost the cpu is a stall, told with its cause", preempted_turn_is_a_stall,
         NULL, NULL, NULL},
        {"a late turn leaves the rest to the next", late_turn_leaves_the_rest, NULL, NULL, NULL},
        {"fall-backs are told before the start", fall_backs_are_told, NULL, NULL, NULL},
        {"the life of a worker", life_of_a_worker, NULL, NULL, NULL},
        {"a failed start leaves nothing", failed_start_leaves_nothing, NULL, NULL, NULL},
        {"stop ends a long sleep", stop_ends_a_long_sleep, NULL, NULL, NULL},
        {"a wake from outside runs a turn", wake_from_outside_runs_a_turn, NULL, NULL, NULL},
        {"sleepers are woken by messages", sleepers_are_woken_by_messages, NULL, NULL, NULL},
        {"a failed doorbell is rung again", failed_doorbell_is_rung_again, NULL, NULL, NULL},
        {"a place in the mesh can be taken again", place_can_be_taken_again, NULL, NULL, NULL},
        {"the region is paid for, and given back", region_is_paid_for, NULL, NULL, NULL},
        {"a region that does not fit is -EDQUOT", region_that_does_not_fit, NULL, NULL, NULL},
        {"only the least of a region must fit", only_the_least_must_fit, NULL, NULL, NULL},
        {"a small file is no large loan", a_small_file_is_no_large_loan, NULL, NULL, NULL},
        {"who waits gets what the region has, and it takes it back",
         who_waits_gets_what_the_region_has, NULL, NULL, NULL},
        {"nothing is taken back where it is tight", nothing_is_taken_where_it_is_tight, NULL, NULL,
         NULL},
        {"what is not wanted any more is kept", what_is_not_wanted_any_more_is_kept, NULL, NULL,
         NULL},
        {"the region's books are exact in all weathers", books_are_exact_in_all_weathers, NULL,
         NULL, NULL},
        {"a sleeping worker's region gives", a_sleeping_workers_region_gives, NULL, NULL, NULL},
        {"has_room is asked with the worker", has_room_is_asked_with_the_worker, NULL, NULL, NULL},
        {"a granted waiter ends the sleep", granted_waiter_ends_the_sleep, NULL, NULL, NULL},
        {"a region lives on the loop", region_lives_on_the_loop, NULL, NULL, NULL},
        {"without io_uring it refuses", without_io_uring_it_refuses, NULL, NULL, NULL},
    };

    return cmocka_run_group_tests_name("worker", tests, NULL, NULL);
}
