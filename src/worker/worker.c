/* SPDX-License-Identifier: MIT */
/*
 * worker - the loop of a core, and its beginning and end
 *
 *      +--> wake those we wrote to and who sleep
 *      |    nothing left for us? sleep until a completion, at most tick_ns
 *      |    completions   those that were there when we looked
 *      |    messages      a quantum of each sender's
 *      |    region        its own budget
 *      |    waiters       those that were granted
 *      +--- on_tick
 *
 * Each station has a bound, so none of them keeps the others waiting; what is
 * left over is seen before the next sleep. What a turn queued in the ring is
 * submitted by the same system call that sleeps.
 *
 * Messages are written at once; doorbells wait for the end of the turn, so that
 * a burst costs one fence and each sleeper one entry in our ring. Who sleeps and
 * why nobody is forgotten is told in mailbox.c. From outside of a worker the
 * doorbell is an eventfd, whose read is always under way in the ring.
 *
 * At the end the order is that of trust: the region closes while the ring runs,
 * what others left under way is cancelled and reaped, so that the kernel holds
 * no buffer of ours; then the ring, then the account that paid for all of it.
 *
 * Not here: the queues and who sleeps (mailbox.c), cpus (pin.c), long turns (stall.c),
 * what of the region's memory comes and goes (loan.c), where memory lies (locality.c).
 *
 *   I1  the ring is opened, used and closed on the worker's thread
 *   I2  the ring is closed with nothing in flight
 *   I3  a turn does not begin inside a turn
 *   I4  a peer is woken at most once per its sleep (by us)
 */
#include <weir/worker.h>

#include "worker/loan.h"
#include "worker/mailbox.h"
#include "worker/pin.h"
#include "worker/stall.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/fence.h"
#include "base/heap.h"
#include "base/ring.h"
#include "base/sys.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#define WORKER_RING_ENTRIES_DEFAULT 256
#define WORKER_RING_ENTRIES_MAX     32768
#define WORKER_RING_ENTRIES_MIN     32 /* below that it is not worth it */
#define WORKER_TICK_NS_DEFAULT      UINT64_C(10000000)
#define WORKER_TURN_NS_DEFAULT      UINT64_C(1000000)
#define WORKER_STALL_NS_DEFAULT     UINT64_C(25000000)
#define WORKER_COMPLETIONS_PER_TURN 1024
#define WORKER_COMPLETIONS_PER_LOOK 64  /* at the clock */
#define WORKER_MESSAGES_PER_TURN    256 /* over all senders */
#define WORKER_MESSAGES_PER_SENDER  8   /* but no sender gets less */
#define WORKER_HELPER_COUNT_MAX     16
#define WORKER_NAME_BYTES           16

/* Another worker of the mesh, as we know it. */
struct worker_peer {
    struct weir_operation wake_failed; /* our doorbell did not reach it */
    struct weir__port *port;
    uint64_t sleep_woken; /* I4: the sleep that we last woke it from */
    bool touched;         /* we left something for it since the last doorbells */
};

struct weir_worker {
    struct weir_worker_config config; /* fixed; pointers in it are not followed after start */
    char name[WORKER_NAME_BYTES];
    pthread_t thread;      /* I1 */
    bool attached;         /* fixed: the thread is the caller's */
    bool in_turn;          /* I3 */
    bool again;            /* it asked for another turn itself */
    bool armed;            /* it sleeps in a foreign loop, and others know */
    bool degraded;         /* the region is, and that was reported */
    bool closing;          /* what completes now is not started again */
    bool port_is_own;      /* no mesh: port_alone is initialised */
    bool affinity_changed; /* of an attached thread: given back at the end */
    cpu_set_t affinity;    /* what the thread was allowed before it was pinned */
    bool memory_changed;   /* the same for where its memory comes from */
    struct weir__memory memory;
    struct weir_ring *ring; /* I1 */
    struct weir_region *region;
    struct weir_account *account;
    struct weir__loan loan; /* what of the region's memory is not in the account's reserve */
    uint64_t own_bytes;     /* charged for queues, ring and this */
    struct weir_mesh *mesh;
    struct weir__port *port;
    struct weir__port port_alone;
    struct worker_peer *peers; /* one for each worker of the mesh */
    uint32_t *touched;         /* which of them are */
    uint32_t touched_count;
    uint32_t message_quantum;
    uint32_t sender_next;       /* whose queue is looked at first */
    struct weir_operation bell; /* the read of event_fd that is always under way */
    uint64_t bell_value;
    uint64_t mark_ns; /* when the turn began */
    struct weir__stall stall;

    pthread_mutex_t lock; /* of what follows: how the start went */
    pthread_cond_t answered;
    bool has_answer;
    int answer;

    uint32_t stopping;              /* set by any thread */
    struct weir_worker_stats stats; /* written by the worker, read by any */
};

/* The worker whose turn this thread is in. */
static _Thread_local struct weir_worker *worker_current;

static bool worker_is_mine(const struct weir_worker *worker)
{
    return pthread_equal(worker->thread, pthread_self());
}

/* The one writer is the worker: no read-modify-write is needed. */
static void worker_count(uint64_t *figure, uint64_t more)
{
    __atomic_store_n(figure, *figure + more, __ATOMIC_RELAXED);
}

/* ---- Doorbells ---------------------------------------------------------- */

static void worker_touch(struct weir_worker *worker, uint32_t index)
{
    struct worker_peer *peer = &worker->peers[index];

    if (peer->touched || index == worker->config.index)
        return;
    peer->touched = true;
    worker->touched[worker->touched_count++] = index;
}

static void worker_wake_failed(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct worker_peer *peer = WEIR_CONTAINER_OF(operation, struct worker_peer, wake_failed);

    (void)result;
    (void)flags;
    weir__sys_eventfd_signal(peer->port->event_fd);
}

/* The other half of the sleep in worker_sleep(): see mailbox.c. */
static void worker_ring_doorbells(struct weir_worker *worker)
{
    if (worker->touched_count == 0)
        return;

    weir__fence();
    for (uint32_t i = 0; i < worker->touched_count; i++) {
        struct worker_peer *peer = &worker->peers[worker->touched[i]];
        uint64_t sleep = weir__port_sleep(peer->port);

        peer->touched = false;
        if (sleep == 0 || sleep == peer->sleep_woken) /* I4 */
            continue;
        peer->sleep_woken = sleep;
        weir__ring_wake(worker->ring, __atomic_load_n(&peer->port->ring_fd, __ATOMIC_RELAXED),
                        &peer->wake_failed);
        worker_count(&worker->stats.doorbell_count, 1);
    }
    worker->touched_count = 0;
}

static void worker_listen(struct weir_worker *worker)
{
    weir__ring_read(worker->ring, &worker->bell, worker->port->event_fd, &worker->bell_value,
                    sizeof(worker->bell_value), 0);
}

static void worker_bell(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct weir_worker *worker = WEIR_CONTAINER_OF(operation, struct weir_worker, bell);

    (void)flags;
    WEIR_CHECK(result == (int32_t)sizeof(worker->bell_value) || result == -ECANCELED ||
               result == -EINTR || result == -EAGAIN);
    if (!worker->closing)
        worker_listen(worker);
}

/* ---- The loop ----------------------------------------------------------- */

static bool worker_has_mail(const struct weir_worker *worker)
{
    return worker->mesh != NULL && !weir__mesh_is_quiet(worker->mesh, worker->config.index);
}

/* First lie down, then look: in this order nothing can come in between. False: it must get up. */
static bool worker_lie_down(struct weir_worker *worker)
{
    weir__port_lie_down(worker->port);
    return !weir__port_was_called(worker->port) && !worker_has_mail(worker) &&
           !weir__ring_is_ready(worker->ring);
}

/* Whether it slept; then mark_ns is the end of the sleep. */
static bool worker_sleep(struct weir_worker *worker, uint64_t timeout_ns)
{
    bool slept = worker_lie_down(worker);

    if (slept) {
        int r = weir__ring_sleep(worker->ring, weir__min(timeout_ns, worker->config.tick_ns));
        WEIR_CHECK(r == 0); /* the kernel lost completions: nothing that waits for one can go on */
        worker_count(&worker->stats.sleep_count, 1);
        worker->mark_ns = weir__clock_ns();
    }
    weir__port_get_up(worker->port);
    return slept;
}

/* Back from a sleep in a foreign loop. */
static bool worker_disarm(struct weir_worker *worker)
{
    bool was_armed = worker->armed;

    if (was_armed)
        weir__port_get_up(worker->port);
    worker->armed = false;
    return was_armed;
}

/* ---- Stations of a turn ------------------------------------------------- */

static void worker_report(struct weir_worker *worker, const struct weir_report *report)
{
    if (worker->config.report != NULL)
        worker->config.report(worker, report, worker->config.context);
}

/* Whether the turn has had its time; what is left over comes with the next. */
static bool worker_is_late(struct weir_worker *worker, uint64_t now_ns)
{
    bool is_late = now_ns - worker->mark_ns > worker->config.turn_ns;

    worker->again |= is_late;
    return is_late;
}

static uint32_t worker_complete(struct weir_worker *worker)
{
    uint32_t count = 0;
    int some;

    do {
        some = weir__ring_reap_some(worker->ring, WORKER_COMPLETIONS_PER_LOOK);
        WEIR_CHECK(some >= 0);
        count += (uint32_t)some;
        if (some > 0)
            weir__stall_mark(&worker->stall, WEIR_STATION_COMPLETIONS, weir__clock_ns());
    } while (some == WORKER_COMPLETIONS_PER_LOOK && count < WORKER_COMPLETIONS_PER_TURN &&
             !worker_is_late(worker, worker->stall.mark_ns));
    return count;
}

static uint32_t worker_receive_from(struct weir_worker *worker, uint32_t sender)
{
    uint32_t count = 0;

    while (count < worker->message_quantum) {
        struct weir_message *message = weir__mesh_pop(worker->mesh, sender, worker->config.index);
        if (message == NULL)
            break;
        message->receive(worker, message);
        count++;
    }
    return count;
}

/* From each sender its quantum; when it gets late the next turn begins where this one ends. */
static uint32_t worker_receive(struct weir_worker *worker)
{
    uint32_t senders = worker->mesh != NULL ? worker->mesh->worker_count : 0;
    uint32_t count = 0;

    for (uint32_t left = senders; left > 0; left--) {
        uint32_t some = worker_receive_from(worker, worker->sender_next);
        worker->sender_next = (worker->sender_next + 1) % senders;
        count += some;
        if (some == 0)
            continue;
        weir__stall_mark(&worker->stall, WEIR_STATION_MESSAGES, weir__clock_ns());
        if (worker_is_late(worker, worker->stall.mark_ns))
            break;
    }
    return count;
}

/* Told once when it begins and once when it is over. */
static void worker_watch_region(struct weir_worker *worker, int result)
{
    struct weir_region_stats stats;

    if (result >= 0 && !worker->degraded)
        return;
    weir_region_stats(worker->region, &stats);
    if (stats.degraded == worker->degraded)
        return;
    worker->degraded = stats.degraded;
    worker_report(worker, &(struct weir_report){
                              .kind = WEIR_REPORT_DEGRADED,
                              .text = stats.degraded ? "the region's write-back failed"
                                                     : "the region's write-back succeeds again",
                              .error = stats.degraded ? result : 0,
                          });
}

static void worker_count_region(struct weir_worker *worker)
{
    const struct weir__loan *loan = &worker->loan;
    uint64_t charged_bytes = loan->governor != NULL    ? loan->charged_bytes
                             : worker->account != NULL ? weir__loan_reserve(&worker->config.region)
                                                       : 0;

    __atomic_store_n(&worker->stats.region_charged_bytes, charged_bytes, __ATOMIC_RELAXED);
    __atomic_store_n(&worker->stats.region_given_bytes, loan->given_bytes, __ATOMIC_RELAXED);
}

/* What comes back of the region's memory is known to the account before it is polled. */
static void worker_work(struct weir_worker *worker)
{
    bool is_lent = worker->loan.governor != NULL;

    if (worker->region != NULL)
        worker_watch_region(worker, weir_region_poll(worker->region));
    if (is_lent)
        worker->again |= weir__loan_advance(&worker->loan);
    if (worker->account != NULL)
        (void)weir_account_poll(worker->account);
    if (is_lent) {
        worker->again |= weir__loan_was_asked(&worker->loan);
        worker_count_region(worker);
    }
    if (worker->region != NULL || worker->account != NULL)
        weir__stall_mark(&worker->stall, WEIR_STATION_REGION, weir__clock_ns());
}

static void worker_account_turn(struct weir_worker *worker, uint32_t completions, uint32_t messages)
{
    struct weir_report report;
    uint64_t now_ns = weir__clock_ns();
    uint64_t turn_ns = now_ns - worker->mark_ns;

    weir__stall_mark(&worker->stall, WEIR_STATION_TICK, now_ns);
    if (weir__stall_end(&worker->stall, &report)) {
        worker_count(&worker->stats.stall_count, 1);
        worker_report(worker, &report);
    }

    worker_count(&worker->stats.turn_count, 1);
    worker_count(&worker->stats.completion_count, completions);
    worker_count(&worker->stats.message_count, messages);
    worker_count(&worker->stats.busy_ns, turn_ns);
    if (turn_ns > worker->stats.longest_turn_ns)
        __atomic_store_n(&worker->stats.longest_turn_ns, turn_ns, __ATOMIC_RELAXED);
    __atomic_store_n(&worker->stats.cpu, weir__pin_cpu(), __ATOMIC_RELAXED);
    worker->mark_ns = now_ns;
}

static int worker_turn(struct weir_worker *worker, uint64_t timeout_ns)
{
    WEIR_CHECK(!worker->in_turn); /* I3 */
    worker->in_turn = true;
    struct weir_worker *outer = worker_current; /* a thread may have several attached */
    worker_current = worker;

    bool slept = worker_disarm(worker);
    worker_ring_doorbells(worker);
    if (timeout_ns > 0 && !worker->again)
        slept |= worker_sleep(worker, timeout_ns);
    worker->again = false;

    weir__stall_begin(&worker->stall, worker->mark_ns, slept);
    weir__port_take_call(worker->port);
    uint32_t completions = worker_complete(worker);
    uint32_t messages = worker_receive(worker);
    worker_work(worker);
    if (worker->config.on_tick != NULL)
        worker->config.on_tick(worker, worker->config.context);

    worker_account_turn(worker, completions, messages);
    worker_current = outer;
    worker->in_turn = false;
    return (int)(completions + messages);
}

int weir_worker_poll(struct weir_worker *worker, uint64_t timeout_ns)
{
    WEIR_ASSERT(worker->attached);
    WEIR_ASSERT(worker_is_mine(worker));

    worker->mark_ns = weir__clock_ns();
    int count = worker_turn(worker, timeout_ns);

    /* The caller may be away for long: nothing waits for the next turn. */
    worker_ring_doorbells(worker);
    int r = weir__ring_submit(worker->ring);
    WEIR_CHECK(r == 0 || r == -EBUSY || r == -EAGAIN);
    return count;
}

int weir_worker_fd(const struct weir_worker *worker)
{
    return weir__ring_fd(worker->ring);
}

bool weir_worker_arm(struct weir_worker *worker)
{
    WEIR_ASSERT(worker->attached);
    WEIR_ASSERT(worker_is_mine(worker));
    WEIR_CHECK(!worker->in_turn);

    /* What was begun since the last poll. */
    worker_ring_doorbells(worker);
    int r = weir__ring_submit(worker->ring);
    WEIR_CHECK(r == 0 || r == -EBUSY || r == -EAGAIN);
    if (worker->again || r < 0)
        return false;
    worker->armed = true;
    if (!worker_lie_down(worker))
        worker_disarm(worker);
    return worker->armed;
}

/* The last part of the loop: until the user says that nothing is under way any more. */
static void worker_run_down(struct weir_worker *worker)
{
    if (worker->config.on_stop == NULL)
        return;
    while (!worker->config.on_stop(worker, worker->config.context))
        (void)worker_turn(worker, worker->config.tick_ns);
}

static void worker_run(struct weir_worker *worker)
{
    worker->mark_ns = weir__clock_ns();
    while (__atomic_load_n(&worker->stopping, __ATOMIC_ACQUIRE) == 0)
        (void)worker_turn(worker, worker->config.tick_ns);
    worker_run_down(worker);
}

/* ---- Books -------------------------------------------------------------- */

static bool worker_has_room(void *context, size_t bytes)
{
    struct weir_worker *worker = context;

    if (worker->region == NULL)
        return false;
    if (worker->config.account.has_room == NULL)
        return true;
    return worker->config.account.has_room(worker, bytes);
}

static void worker_notify(void *context)
{
    weir_worker_wake(context);
}

static int worker_open_account(struct weir_worker *worker)
{
    if (worker->config.governor == NULL)
        return 0;

    struct weir_account_config config = worker->config.account;
    uint64_t resident_bytes = weir__loan_reserve(&worker->config.region);
    if (config.reserve_bytes > UINT64_MAX - resident_bytes)
        return -EINVAL;
    config.name = worker->name;
    config.reserve_bytes += resident_bytes;
    config.has_room = worker_has_room;
    config.notify = worker_notify;
    config.context = worker;

    int r = weir_account_open(worker->config.governor, &config, &worker->account);
    if (r < 0)
        return r;
    worker->own_bytes = sizeof(*worker) + weir__ring_kernel_bytes(worker->ring);
    if (worker->mesh != NULL)
        worker->own_bytes += weir__mesh_bytes(worker->mesh);
    weir_account_charge_forced(worker->account, worker->own_bytes);
    return 0;
}

static void worker_close_account(struct weir_worker *worker)
{
    if (worker->account == NULL)
        return;
    weir_account_refund(worker->account, worker->own_bytes);
    weir_account_close(worker->account);
    worker->account = NULL;
}

/* ---- Lifecycle ---------------------------------------------------------- */

static void worker_fall_back(struct weir_worker *worker, const char *text, int error)
{
    worker_report(worker, &(struct weir_report){
                              .kind = WEIR_REPORT_FALLBACK,
                              .text = text,
                              .error = error,
                          });
}

static int worker_pin(struct weir_worker *worker)
{
    int r = weir__pin_get(&worker->affinity);

    if (r < 0)
        return r;
    if (!worker->config.pinned)
        return 0;
    r = weir__pin_to(worker->config.cpu);
    if (r < 0)
        return r;
    worker->affinity_changed = true;
    r = weir__pin_memory(worker->config.cpu, &worker->memory);
    if (r < 0)
        worker_fall_back(worker, "memory comes from any node: set_mempolicy is refused", r);
    worker->memory_changed = r > 0;
    return 0;
}

static int worker_open_ring(struct weir_worker *worker)
{
    uint32_t entry_count = worker->config.ring_entries;
    int r = weir__ring_open(entry_count, false, &worker->ring);

    /* Before 5.12, and in some containers, the queues are locked memory. */
    while (r == -ENOMEM && entry_count > WORKER_RING_ENTRIES_MIN) {
        entry_count /= 2;
        r = weir__ring_open(entry_count, false, &worker->ring);
    }
    if (r < 0)
        return r;
    if (entry_count < worker->config.ring_entries)
        worker_fall_back(worker, "the ring is smaller than asked for: see RLIMIT_MEMLOCK", -ENOMEM);
    if (!weir__ring_is_deferred(worker->ring))
        worker_fall_back(worker, "completions interrupt the core: the kernel is before 6.1", 0);

    cpu_set_t cpus = worker->affinity;
    if (worker->config.pinned)
        weir__pin_helpers(&worker->affinity, worker->config.cpu, &cpus);
    r = weir__ring_bound_helpers(worker->ring, WORKER_HELPER_COUNT_MAX, &cpus);
    if (r < 0)
        worker_fall_back(worker, "the kernel's helper threads are not bounded", r);
    worker->stats.ring_bytes = weir__ring_kernel_bytes(worker->ring);
    return 0;
}

static int worker_open_port(struct weir_worker *worker)
{
    if (worker->mesh == NULL) {
        int r = weir__port_init(&worker->port_alone);
        if (r < 0)
            return r;
        worker->port_is_own = true;
        worker->port = &worker->port_alone;
    }

    struct weir__port *port =
        worker->mesh != NULL ? &worker->mesh->ports[worker->config.index] : &worker->port_alone;
    int r = weir__port_attach(port, weir__ring_fd(worker->ring));
    if (r < 0)
        return r;
    worker->port = port;
    worker->bell.complete = worker_bell;
    worker_listen(worker);
    return 0;
}

static int worker_open_peers(struct weir_worker *worker)
{
    if (worker->mesh == NULL)
        return 0;

    uint32_t count = worker->mesh->worker_count;
    worker->peers = weir__heap_alloc(NULL, count * sizeof(*worker->peers));
    worker->touched = weir__heap_alloc(NULL, count * sizeof(*worker->touched));
    if (worker->peers == NULL || worker->touched == NULL)
        return -ENOMEM;
    for (uint32_t i = 0; i < count; i++) {
        worker->peers[i].wake_failed.complete = worker_wake_failed;
        worker->peers[i].port = &worker->mesh->ports[i];
    }
    worker->message_quantum =
        (uint32_t)weir__max(WORKER_MESSAGES_PER_TURN / count, WORKER_MESSAGES_PER_SENDER);
    return 0;
}

static void worker_tell_region(struct weir_worker *worker)
{
    struct weir_region_stats stats;

    weir_region_stats(worker->region, &stats);
    if (!stats.bounded)
        worker_fall_back(worker,
                         "the file system keeps what the region drops: its memory is a wish", 0);
    if (!stats.direct)
        worker_fall_back(worker, "the file system has no O_DIRECT: fetches pass the page cache", 0);
    if (stats.movable)
        worker_fall_back(worker, "no address space reserved: growth may move the region", 0);
}

static int worker_open_region(struct weir_worker *worker)
{
    if (worker->config.region.directory == NULL)
        return 0;

    struct weir_region_config config = worker->config.region;
    config.ring = worker->ring;
    if (worker->account != NULL)
        config.books = weir_account_books(worker->account);
    int r = weir_region_open(&config, &worker->region);
    if (r < 0)
        return r;
    worker_tell_region(worker);
    if (worker->account != NULL && weir__loan_is_possible(&config))
        weir__loan_open(&worker->loan, worker->config.governor, worker->account,
                        worker->config.account.bytes_max, worker->region, &config);
    worker_count_region(worker);
    return 0;
}

/* What the ring does not take any more goes the other way: a wake too many does no harm. */
static void worker_submit_last_doorbells(struct weir_worker *worker)
{
    int r = weir__ring_submit(worker->ring);

    WEIR_CHECK(r == 0 || r == -EBUSY || r == -EAGAIN);
    if (r == 0 || worker->peers == NULL)
        return;
    for (uint32_t i = 0; i < worker->mesh->worker_count; i++)
        if (i != worker->config.index)
            weir__sys_eventfd_signal(worker->peers[i].port->event_fd);
}

/* What worker_open() made, whole or half, in reverse. */
static void worker_close(struct weir_worker *worker)
{
    weir_region_close(worker->region);
    worker->region = NULL;
    weir__loan_close(&worker->loan);

    worker->closing = true;
    if (worker->port != NULL && worker->peers != NULL)
        worker_ring_doorbells(worker);
    if (worker->ring != NULL) {
        weir__ring_cancel_all(worker->ring);
        worker_submit_last_doorbells(worker);
        WEIR_CHECK(weir__ring_in_flight(worker->ring) == 0); /* I2 */
    }
    if (worker->port != NULL)
        weir__port_detach(worker->port);
    weir__ring_close(worker->ring);
    worker_close_account(worker);

    if (worker->mesh != NULL) {
        uint32_t count = worker->mesh->worker_count;
        weir__heap_free(NULL, worker->touched, count * sizeof(*worker->touched));
        weir__heap_free(NULL, worker->peers, count * sizeof(*worker->peers));
    }
    if (worker->attached && worker->affinity_changed)
        (void)weir__pin_set(&worker->affinity);
    if (worker->attached && worker->memory_changed)
        weir__pin_memory_back(&worker->memory);
}

static int worker_open(struct weir_worker *worker)
{
    worker->thread = pthread_self();

    int r = worker_pin(worker);
    if (r == 0)
        r = worker_open_ring(worker);
    if (r == 0)
        r = worker_open_port(worker);
    if (r == 0)
        r = worker_open_peers(worker);
    if (r == 0)
        r = worker_open_account(worker);
    if (r == 0)
        r = worker_open_region(worker);
    if (r == 0 && worker->config.on_start != NULL)
        r = worker->config.on_start(worker, worker->config.context);
    if (r < 0)
        worker_close(worker);
    return r;
}

static bool worker_config_is_valid(const struct weir_worker_config *config)
{
    if (!weir__reserved_is_zero(config->reserved))
        return false;
    if (config->mesh != NULL && config->index >= config->mesh->worker_count)
        return false;
    return config->ring_entries <= WORKER_RING_ENTRIES_MAX;
}

static int worker_create(const struct weir_worker_config *config, struct weir_worker **ret_worker)
{
    if (!worker_config_is_valid(config))
        return -EINVAL;

    struct weir_worker *worker =
        weir__heap_alloc_aligned(NULL, sizeof(*worker), _Alignof(struct weir_worker));
    if (worker == NULL)
        return -ENOMEM;
    memset(worker, 0, sizeof(*worker));
    worker->config = *config;
    worker->mesh = config->mesh;
    if (worker->config.ring_entries == 0)
        worker->config.ring_entries = WORKER_RING_ENTRIES_DEFAULT;
    if (worker->config.tick_ns == 0)
        worker->config.tick_ns = WORKER_TICK_NS_DEFAULT;
    if (worker->config.turn_ns == 0)
        worker->config.turn_ns = WORKER_TURN_NS_DEFAULT;
    if (worker->config.stall_ns == 0)
        worker->config.stall_ns = WORKER_STALL_NS_DEFAULT;
    weir__stall_init(&worker->stall, worker->config.stall_ns);
    if (config->name != NULL)
        snprintf(worker->name, sizeof(worker->name), "%.15s", config->name);
    else
        snprintf(worker->name, sizeof(worker->name), "weir-%u", config->index % 10000);
    pthread_mutex_init(&worker->lock, NULL);
    pthread_cond_init(&worker->answered, NULL);
    *ret_worker = worker;
    return 0;
}

/* The port goes last: who stops us may still be about to ring. */
static void worker_destroy(struct weir_worker *worker)
{
    if (worker->port_is_own)
        weir__port_deinit(&worker->port_alone);
    pthread_cond_destroy(&worker->answered);
    pthread_mutex_destroy(&worker->lock);
    weir__heap_free(NULL, worker, sizeof(*worker));
}

static void *worker_main(void *context)
{
    struct weir_worker *worker = context;

    weir__pin_name(worker->name);
    int r = worker_open(worker);

    pthread_mutex_lock(&worker->lock);
    worker->answer = r;
    worker->has_answer = true;
    pthread_cond_signal(&worker->answered);
    pthread_mutex_unlock(&worker->lock);
    if (r < 0)
        return NULL;

    worker_run(worker);
    worker_close(worker);
    return NULL;
}

/* A signal belongs to the program's own threads; a fault belongs to whoever made it. */
static int worker_create_thread(struct weir_worker *worker, pthread_t *ret_thread)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE,  SIGILL,
                                 SIGTRAP, SIGSYS, SIGABRT, SIGPROF};
    sigset_t blocked;
    sigset_t before;

    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
        sigdelset(&blocked, faults[i]);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    int r = -pthread_create(ret_thread, NULL, worker_main, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return r;
}

int weir_worker_start(const struct weir_worker_config *config, struct weir_worker **ret_worker)
{
    struct weir_worker *worker;
    int r = worker_create(config, &worker);
    if (r < 0)
        return r;

    pthread_t thread;
    r = worker_create_thread(worker, &thread);
    if (r < 0) {
        worker_destroy(worker);
        return r;
    }

    pthread_mutex_lock(&worker->lock);
    while (!worker->has_answer)
        pthread_cond_wait(&worker->answered, &worker->lock);
    r = worker->answer;
    pthread_mutex_unlock(&worker->lock);
    if (r < 0) {
        pthread_join(thread, NULL);
        worker_destroy(worker);
        return r;
    }
    *ret_worker = worker;
    return 0;
}

int weir_worker_attach(const struct weir_worker_config *config, struct weir_worker **ret_worker)
{
    struct weir_worker *worker;
    int r = worker_create(config, &worker);
    if (r < 0)
        return r;

    worker->attached = true;
    r = worker_open(worker);
    if (r < 0) {
        worker_destroy(worker);
        return r;
    }
    *ret_worker = worker;
    return 0;
}

void weir_worker_stop(struct weir_worker *worker)
{
    if (worker == NULL)
        return;

    WEIR_CHECK(worker->attached == worker_is_mine(worker));
    if (worker->attached) {
        worker->mark_ns = weir__clock_ns();
        worker_disarm(worker);
        worker_run_down(worker);
        worker_close(worker);
    } else {
        __atomic_store_n(&worker->stopping, 1, __ATOMIC_RELEASE);
        if (weir__port_call(worker->port)) /* at once: we are about to wait for it */
            weir__sys_eventfd_signal(worker->port->event_fd);
        pthread_join(worker->thread, NULL);
    }
    worker_destroy(worker);
}

void weir_worker_wake(struct weir_worker *worker)
{
    struct weir_worker *caller = worker_current;

    if (worker_is_mine(worker)) {
        worker->again = true;
        return;
    }
    if (!weir__port_call(worker->port))
        return;

    /* A worker in its turn rings with the rest of its doorbells; all others at once. */
    if (caller != NULL && caller->mesh != NULL && caller->mesh == worker->mesh)
        worker_touch(caller, worker->config.index);
    else
        weir__sys_eventfd_signal(worker->port->event_fd);
}

struct weir_ring *weir_worker_ring(struct weir_worker *worker)
{
    return worker->ring;
}

struct weir_region *weir_worker_region(struct weir_worker *worker)
{
    return worker->region;
}

struct weir_account *weir_worker_account(struct weir_worker *worker)
{
    return worker->account;
}

uint32_t weir_worker_index(const struct weir_worker *worker)
{
    return worker->config.index;
}

struct io_uring_sqe *weir_worker_sqe(struct weir_worker *worker, struct weir_operation *operation)
{
    WEIR_ASSERT(worker_is_mine(worker));
    return weir__ring_sqe(worker->ring, operation);
}

/* ---- Messages ----------------------------------------------------------- */

int weir_worker_send(struct weir_worker *worker, uint32_t index, struct weir_message *message)
{
    WEIR_ASSERT(worker_is_mine(worker));
    WEIR_ASSERT(message->receive != NULL);

    if (worker->mesh == NULL || index >= worker->mesh->worker_count)
        return -EINVAL;
    if (__atomic_load_n(&worker->mesh->ports[index].stopped, __ATOMIC_RELAXED) != 0)
        return -ECANCELED;
    if (!weir__mesh_push(worker->mesh, worker->config.index, index, message))
        return -EAGAIN;
    worker_touch(worker, index);
    return 0;
}

/* ---- Statistics --------------------------------------------------------- */

void weir_worker_stats(const struct weir_worker *worker, struct weir_worker_stats *ret_stats)
{
    const struct weir_worker_stats *stats = &worker->stats;

    *ret_stats = (struct weir_worker_stats){
        .turn_count = __atomic_load_n(&stats->turn_count, __ATOMIC_RELAXED),
        .sleep_count = __atomic_load_n(&stats->sleep_count, __ATOMIC_RELAXED),
        .completion_count = __atomic_load_n(&stats->completion_count, __ATOMIC_RELAXED),
        .message_count = __atomic_load_n(&stats->message_count, __ATOMIC_RELAXED),
        .doorbell_count = __atomic_load_n(&stats->doorbell_count, __ATOMIC_RELAXED),
        .busy_ns = __atomic_load_n(&stats->busy_ns, __ATOMIC_RELAXED),
        .longest_turn_ns = __atomic_load_n(&stats->longest_turn_ns, __ATOMIC_RELAXED),
        .stall_count = __atomic_load_n(&stats->stall_count, __ATOMIC_RELAXED),
        .ring_bytes = stats->ring_bytes,
        .cpu = __atomic_load_n(&stats->cpu, __ATOMIC_RELAXED),
        .region_charged_bytes = __atomic_load_n(&stats->region_charged_bytes, __ATOMIC_RELAXED),
        .region_given_bytes = __atomic_load_n(&stats->region_given_bytes, __ATOMIC_RELAXED),
    };
}
