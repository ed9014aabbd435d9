/* SPDX-License-Identifier: MIT */
/*
 * seam - rules, and the wrappers that ask them
 *
 *      weir --> __wrap_weir__x() --> a rule strikes? --> the error
 *                                          |
 *                                          +-> __real_weir__x()
 *
 * An operation that goes wrong gets a stand-in: either the kernel never sees it
 * and the stand-in waits here with the error for the next reap, or the kernel
 * completes the stand-in, which then waits as long as the rule says. What waits
 * here is in flight for everybody who asks, and a ring with something waiting
 * does not sleep for long: so whoever waits for a completion comes around.
 *
 * Half of a read is all of it with the other half made unreadable: O_DIRECT would
 * refuse odd lengths, and that is not what is to be seen.
 */
#include "seam.h"

#include "process.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/heap.h"
#include "base/list.h"
#include "base/ring.h"
#include "base/sys.h"

#include <errno.h>
#include <inttypes.h>
#include <liburing.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SEAM_RULES_MAX   8
#define SEAM_RUN_SECONDS 120
#define SEAM_NAP_NS      UINT64_C(1000000)
#define SEAM_JUNK        0xee

enum seam_kind {
    KIND_CALL,
    KIND_OPERATION,
    KIND_HEAP,
};

static const struct {
    const char *name;
    enum seam_kind kind;
    int error;
} seam_table[SEAM_CALL_COUNT] = {
#define SEAM_CALL(name, error, ...) [SEAM_##name] = {#name, KIND_CALL, error},
#define SEAM_OWN(name, error)       [SEAM_##name] = {#name, KIND_CALL, error},
#define SEAM_OPERATION(name, error) [SEAM_##name] = {#name, KIND_OPERATION, error},
#define SEAM_HEAP(name, ...)        [SEAM_##name] = {#name, KIND_HEAP, ENOMEM},
#include "seam_calls.def"
};

struct seam_armed {
    struct seam_rule rule;
    uint64_t used; /* uses that it matched */
    bool is_of_run;
};

/* Stands in for an operation. */
struct seam_standin {
    struct weir_operation operation;
    struct weir__list link; /* of seam.waiting */
    struct weir_operation *theirs;
    struct weir_ring *ring;
    struct seam_rule rule;
    void *buffer;        /* of a read */
    struct seam_use use; /* of what is late */
    int32_t result;
    uint32_t flags;
    uint32_t reaps_left;
    uint64_t epoch; /* held only as long as it is the same */
    bool counted;
    bool halves; /* of SEAM_CUT: the whole is done, and half of it told */
    bool held;
    bool begins; /* of SEAM_LATE: when it is due it is done, and not told */
    bool due;    /* the reap that is under way delivers it */
};

static struct {
    pthread_mutex_t lock; /* of all that follows */
    struct seam_armed rules[SEAM_RULES_MAX];
    uint32_t rule_count;
    uint64_t fired;
    uint64_t run_fired; /* of these, the rule of seam_each() */
    uint64_t used[SEAM_CALL_COUNT];
    struct weir__list waiting;
    uint64_t epoch; /* how often all was released */
    char run[256];  /* the run of seam_each() that is under way; empty: none */
} seam = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .waiting = {&seam.waiting, &seam.waiting},
};

/* ---- Rules ---------------------------------------------------------------- */

static bool seam_covers(enum seam_call rule, enum seam_call call)
{
    if (rule < SEAM_CALL_COUNT)
        return rule == call;
    if (rule == SEAM_ANY)
        return true;
    enum seam_kind kind = seam_table[call].kind;
    return rule == SEAM_ANY_HEAP        ? kind == KIND_HEAP
           : rule == SEAM_ANY_OPERATION ? kind == KIND_OPERATION
                                        : kind == KIND_CALL;
}

/* What is to become of this use: a rule that strikes, its error filled in. */
static bool seam_strikes(const struct seam_use *use, struct seam_rule *ret_rule)
{
    bool strikes = false;

    pthread_mutex_lock(&seam.lock);
    seam.used[use->call]++;
    for (uint32_t i = 0; i < seam.rule_count; i++) {
        struct seam_armed *armed = &seam.rules[i];
        const struct seam_rule *rule = &armed->rule;
        if (!seam_covers(rule->call, use->call))
            continue;
        if (rule->matches != NULL && !rule->matches(use, rule->context))
            continue;
        armed->used++;
        if (strikes || armed->used < rule->at || armed->used - rule->at >= rule->times)
            continue;
        strikes = true;
        *ret_rule = *rule;
        if (ret_rule->error == 0 && rule->how != SEAM_DELAY && rule->how != SEAM_HOLD)
            ret_rule->error = seam_table[use->call].error;
        seam.fired++;
        seam.run_fired += armed->is_of_run;
    }
    pthread_mutex_unlock(&seam.lock);
    return strikes;
}

void seam_arm(struct seam_rule rule)
{
    rule.at = weir__max(rule.at, 1);
    rule.times = weir__max(rule.times, 1);
    pthread_mutex_lock(&seam.lock);
    WEIR_CHECK(seam.rule_count < SEAM_RULES_MAX);
    seam.rules[seam.rule_count++] = (struct seam_armed){.rule = rule};
    pthread_mutex_unlock(&seam.lock);
}

void seam_fail(enum seam_call call, uint64_t at)
{
    seam_arm((struct seam_rule){.call = call, .at = at});
}

void seam_fail_on(enum seam_call call, uint64_t at)
{
    seam_arm((struct seam_rule){.call = call, .at = at, .times = SEAM_FOR_GOOD});
}

uint64_t seam_fired(void)
{
    pthread_mutex_lock(&seam.lock);
    uint64_t fired = seam.fired;
    pthread_mutex_unlock(&seam.lock);
    return fired;
}

uint64_t seam_used(enum seam_call call)
{
    uint64_t used = 0;

    pthread_mutex_lock(&seam.lock);
    for (uint32_t i = 0; i < SEAM_CALL_COUNT; i++)
        used += seam_covers(call, (enum seam_call)i) ? seam.used[i] : 0;
    pthread_mutex_unlock(&seam.lock);
    return used;
}

static void seam_release_all(bool late_fails)
{
    pthread_mutex_lock(&seam.lock);
    seam.epoch++;
    WEIR_LIST_FOREACH (link, &seam.waiting) {
        struct seam_standin *standin = WEIR_CONTAINER_OF(link, struct seam_standin, link);
        standin->held = false;
        standin->reaps_left = 0;
        standin->begins &= !late_fails;
    }
    pthread_mutex_unlock(&seam.lock);
}

void seam_release(void)
{
    seam_release_all(false);
}

void seam_release_failed(void)
{
    seam_release_all(true);
}

void seam_lift(void)
{
    pthread_mutex_lock(&seam.lock);
    seam.rule_count = 0;
    pthread_mutex_unlock(&seam.lock);
    seam_release();
}

void seam_reset(void)
{
    seam_lift();
    pthread_mutex_lock(&seam.lock);
    seam.fired = 0;
    memset(seam.used, 0, sizeof(seam.used));
    pthread_mutex_unlock(&seam.lock);
}

const char *seam_name(enum seam_call call)
{
    if (call < SEAM_CALL_COUNT)
        return seam_table[call].name;
    return call == SEAM_ANY_CALL        ? "any call"
           : call == SEAM_ANY_OPERATION ? "any operation"
           : call == SEAM_ANY_HEAP      ? "any allocation"
                                        : "anything";
}

/* ---- Calls that answer at once ---------------------------------------------- */

#define SEAM_CALL(name, usual, parameters, arguments, ...)                                         \
 extern __typeof__(weir__##name) __real_weir__##name, __wrap_weir__##name;                         \
 int __wrap_weir__##name parameters                                                                \
 {                                                                                                 \
  struct seam_use use = {.call = SEAM_##name, __VA_ARGS__};                                        \
  struct seam_rule rule;                                                                           \
                                                                                                   \
  return seam_strikes(&use, &rule) ? -rule.error : __real_weir__##name arguments;                  \
 }
#define SEAM_OWN(name, error)                                                                      \
 extern __typeof__(weir__##name) __real_weir__##name, __wrap_weir__##name;
#define SEAM_OPERATION(name, usual) SEAM_OWN(name, usual)
#define SEAM_SEEN(name)             SEAM_OWN(name, 0)
#define SEAM_HEAP(name, parameters, arguments, ...)                                                \
 extern __typeof__(weir__##name) __real_weir__##name, __wrap_weir__##name;                         \
 void *__wrap_weir__##name parameters                                                              \
 {                                                                                                 \
  struct seam_use use = {.call = SEAM_##name, __VA_ARGS__};                                        \
  struct seam_rule rule;                                                                           \
                                                                                                   \
  return seam_strikes(&use, &rule) ? NULL : __real_weir__##name arguments;                         \
 }
#include "seam_calls.def"

/* ext4 keeps what it got before the disk was full. */
int __wrap_weir__sys_fallocate(int fd, int mode, uint64_t offset, uint64_t bytes)
{
    struct seam_use use = {
        .call = SEAM_sys_fallocate, .fd = fd, .mode = mode, .offset = offset, .bytes = bytes};
    struct seam_rule rule;

    if (!seam_strikes(&use, &rule))
        return __real_weir__sys_fallocate(fd, mode, offset, bytes);
    uint64_t half = weir__round_down(bytes / 2, 4096);
    if (rule.how == SEAM_CUT && half > 0)
        (void)__real_weir__sys_fallocate(fd, mode, offset, half);
    return -rule.error;
}

int __wrap_weir__sys_pread_all(int fd, void *buffer, size_t bytes, uint64_t offset)
{
    struct seam_use use = {.call = SEAM_sys_pread_all, .fd = fd, .offset = offset, .bytes = bytes};
    struct seam_rule rule;

    if (!seam_strikes(&use, &rule))
        return __real_weir__sys_pread_all(fd, buffer, bytes, offset);
    if (rule.how == SEAM_CUT && __real_weir__sys_pread_all(fd, buffer, bytes, offset) == 0)
        memset((char *)buffer + bytes / 2, SEAM_JUNK, bytes - bytes / 2);
    return -rule.error;
}

int __wrap_weir__sys_pwrite_all(int fd, const void *buffer, size_t bytes, uint64_t offset)
{
    struct seam_use use = {.call = SEAM_sys_pwrite_all, .fd = fd, .offset = offset, .bytes = bytes};
    struct seam_rule rule;

    if (!seam_strikes(&use, &rule))
        return __real_weir__sys_pwrite_all(fd, buffer, bytes, offset);
    if (rule.how == SEAM_CUT)
        (void)__real_weir__sys_pwrite_all(fd, buffer, bytes / 2, offset);
    return -rule.error;
}

uint64_t __wrap_weir__sys_ram_bytes(void)
{
    struct seam_use use = {.call = SEAM_sys_ram_bytes, .fd = -1};
    struct seam_rule rule;

    return seam_strikes(&use, &rule) ? 0 : __real_weir__sys_ram_bytes();
}

/* ---- What waits ------------------------------------------------------------- */

static void seam_wait_here(struct seam_standin *standin)
{
    pthread_mutex_lock(&seam.lock);
    if (standin->epoch != seam.epoch) {
        standin->held = false;
        standin->reaps_left = 0;
    }
    weir__list_append(&seam.waiting, &standin->link);
    pthread_mutex_unlock(&seam.lock);
}

/* The kernel is done with it. */
static void seam_came(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct seam_standin *standin = WEIR_CONTAINER_OF(operation, struct seam_standin, operation);
    struct weir_operation *theirs = standin->theirs;
    const struct seam_rule *rule = &standin->rule;

    if ((flags & IORING_CQE_F_MORE) != 0) {
        theirs->complete(theirs, result, flags);
        return;
    }
    if (standin->halves && result > 1) {
        if (standin->buffer != NULL)
            memset((char *)standin->buffer + result / 2, SEAM_JUNK, (size_t)(result - result / 2));
        result /= 2;
    }
    if (rule->how == SEAM_CUT || rule->how == SEAM_FAIL) {
        free(standin);
        theirs->complete(theirs, result, flags);
        return;
    }
    standin->result = rule->error != 0 ? -rule->error : result;
    standin->flags = flags;
    standin->held = rule->how == SEAM_HOLD;
    standin->reaps_left = rule->reaps;
    seam_wait_here(standin);
}

static struct weir_operation *seam_standin(struct weir_ring *ring, struct weir_operation *theirs,
                                           const struct seam_rule *rule, void *buffer)
{
    struct seam_standin *standin = malloc(sizeof(*standin));

    WEIR_CHECK(standin != NULL);
    pthread_mutex_lock(&seam.lock);
    uint64_t epoch = seam.epoch;
    pthread_mutex_unlock(&seam.lock);
    *standin = (struct seam_standin){
        .operation = {seam_came},
        .theirs = theirs,
        .ring = ring,
        .rule = *rule,
        .buffer = buffer,
        .epoch = epoch,
        .counted = true,
    };
    return &standin->operation;
}

/* Not done at all: its error comes with the next reap. */
static void seam_refuse(struct weir_ring *ring, struct weir_operation *theirs,
                        const struct seam_rule *rule, bool counted)
{
    struct seam_standin *standin =
        WEIR_CONTAINER_OF(seam_standin(ring, theirs, rule, NULL), struct seam_standin, operation);

    standin->result = -rule->error;
    standin->counted = counted;
    seam_wait_here(standin);
}

/* Not begun before it is released. */
static void seam_put_off(const struct seam_use *use, struct weir_operation *theirs,
                         const struct seam_rule *rule)
{
    struct seam_standin *standin = WEIR_CONTAINER_OF(seam_standin(use->ring, theirs, rule, NULL),
                                                     struct seam_standin, operation);

    standin->use = *use;
    standin->result = -rule->error;
    standin->held = true;
    standin->begins = true;
    seam_wait_here(standin);
}

static uint64_t seam_count(const struct weir_ring *ring, bool counted_only)
{
    uint64_t count = 0;

    pthread_mutex_lock(&seam.lock);
    WEIR_LIST_FOREACH (link, &seam.waiting) {
        const struct seam_standin *standin = WEIR_CONTAINER_OF(link, struct seam_standin, link);
        count += (ring == NULL || standin->ring == ring) && (standin->counted || !counted_only);
    }
    pthread_mutex_unlock(&seam.lock);
    return count;
}

uint64_t seam_held(void)
{
    return seam_count(NULL, false);
}

/* A reap begins: what has waited here long enough is delivered by it. */
static void seam_tick(const struct weir_ring *ring)
{
    pthread_mutex_lock(&seam.lock);
    WEIR_LIST_FOREACH (link, &seam.waiting) {
        struct seam_standin *standin = WEIR_CONTAINER_OF(link, struct seam_standin, link);
        const struct seam_rule *rule = &standin->rule;
        if (standin->ring != ring)
            continue;
        if (standin->held && rule->releases != NULL && rule->releases(rule->context))
            standin->held = false;
        if (standin->held)
            continue;
        standin->due |= standin->reaps_left == 0;
        standin->reaps_left -= standin->reaps_left > 0;
    }
    pthread_mutex_unlock(&seam.lock);
}

static struct seam_standin *seam_take_due(const struct weir_ring *ring)
{
    struct seam_standin *found = NULL;

    pthread_mutex_lock(&seam.lock);
    WEIR_LIST_FOREACH (link, &seam.waiting) {
        struct seam_standin *standin = WEIR_CONTAINER_OF(link, struct seam_standin, link);
        if (standin->ring != ring || !standin->due)
            continue;
        found = standin;
        weir__list_remove(link);
        break;
    }
    pthread_mutex_unlock(&seam.lock);
    return found;
}

/* What they start from their completions waits for the next reap. */
static int seam_deliver(const struct weir_ring *ring, uint32_t count_max)
{
    struct seam_standin *standin;
    int count = 0;

    while ((uint32_t)count < count_max && (standin = seam_take_due(ring)) != NULL) {
        struct seam_standin copy = *standin;
        free(standin);
        if (copy.begins) {
            __real_weir__ring_fallocate(copy.ring, copy.theirs, copy.use.fd, copy.use.mode,
                                        copy.use.offset, copy.use.bytes);
            continue;
        }
        copy.theirs->complete(copy.theirs, copy.result, copy.flags);
        count++;
    }
    return count;
}

/* ---- The ring --------------------------------------------------------------- */

uint32_t __wrap_weir__ring_in_flight(const struct weir_ring *ring)
{
    return __real_weir__ring_in_flight(ring) + (uint32_t)seam_count(ring, true);
}

bool __wrap_weir__ring_is_ready(const struct weir_ring *ring)
{
    return seam_count(ring, false) > 0 || __real_weir__ring_is_ready(ring);
}

void __wrap_weir__ring_close(struct weir_ring *ring)
{
    WEIR_CHECK(ring == NULL || seam_count(ring, false) == 0); /* its owner has reaped first */
    __real_weir__ring_close(ring);
}

void __wrap_weir__ring_cancel_all(struct weir_ring *ring)
{
    do {
        __real_weir__ring_cancel_all(ring);
        seam_release();
        seam_tick(ring);
        seam_deliver(ring, UINT32_MAX);
    } while (__wrap_weir__ring_in_flight(ring) > 0);
}

/* The kernel's go first, and count. */
int __wrap_weir__ring_reap(struct weir_ring *ring)
{
    struct seam_use use = {.call = SEAM_ring_reap, .ring = ring, .fd = -1};
    struct seam_rule rule;

    if (seam_strikes(&use, &rule))
        return -rule.error;
    seam_tick(ring);
    int count = __real_weir__ring_reap(ring);
    return count < 0 ? count : count + seam_deliver(ring, UINT32_MAX);
}

int __wrap_weir__ring_reap_some(struct weir_ring *ring, uint32_t count_max)
{
    struct seam_use use = {.call = SEAM_ring_reap_some, .ring = ring, .fd = -1};
    struct seam_rule rule;

    if (seam_strikes(&use, &rule))
        return -rule.error;
    seam_tick(ring);
    int count = __real_weir__ring_reap_some(ring, count_max);
    return count < 0 ? count : count + seam_deliver(ring, count_max - (uint32_t)count);
}

/* With something waiting here the kernel is not waited for, or not for long. */
static uint64_t seam_nap(struct weir_ring *ring, uint64_t timeout_ns)
{
    if (seam_count(ring, false) == 0)
        return timeout_ns;
    return __real_weir__ring_in_flight(ring) == 0 ? 0 : weir__min(timeout_ns, SEAM_NAP_NS);
}

int __wrap_weir__ring_sleep(struct weir_ring *ring, uint64_t timeout_ns)
{
    struct seam_use use = {.call = SEAM_ring_sleep, .ring = ring, .fd = -1};
    struct seam_rule rule;

    if (seam_strikes(&use, &rule))
        return -rule.error;
    return __real_weir__ring_sleep(ring, seam_nap(ring, timeout_ns));
}

int __wrap_weir__ring_wait(struct weir_ring *ring, uint64_t timeout_ns)
{
    struct seam_use use = {.call = SEAM_ring_wait, .ring = ring, .fd = -1};
    struct seam_rule rule;

    if (seam_strikes(&use, &rule))
        return -rule.error;
    seam_tick(ring);
    int count = __real_weir__ring_wait(ring, seam_nap(ring, timeout_ns));
    return count < 0 ? count : count + seam_deliver(ring, UINT32_MAX);
}

/* ---- Operations --------------------------------------------------------------- */

/* The operation to give to the ring; NULL: it is refused already. */
static struct weir_operation *seam_operation(const struct seam_use *use,
                                             struct weir_operation *theirs, void *buffer)
{
    struct seam_rule rule;

    if (!seam_strikes(use, &rule))
        return theirs;
    if (rule.how == SEAM_FAIL) {
        seam_refuse(use->ring, theirs, &rule, true);
        return NULL;
    }
    struct weir_operation *operation = seam_standin(use->ring, theirs, &rule, buffer);
    WEIR_CONTAINER_OF(operation, struct seam_standin, operation)->halves =
        rule.how == SEAM_CUT && buffer != NULL;
    return operation;
}

void __wrap_weir__ring_read(struct weir_ring *ring, struct weir_operation *operation, int fd,
                            void *buffer, uint32_t bytes, uint64_t offset)
{
    struct seam_use use = {
        .call = SEAM_ring_read, .ring = ring, .fd = fd, .offset = offset, .bytes = bytes};

    operation = seam_operation(&use, operation, buffer);
    if (operation != NULL)
        __real_weir__ring_read(ring, operation, fd, buffer, bytes, offset);
}

/* The first half is written. */
static void seam_write_half(const struct seam_use *use, struct weir_operation *operation,
                            const void *buffer)
{
    uint32_t half = (uint32_t)use->bytes / 2;

    if (half >= 4096) /* as O_DIRECT would */
        half -= half % 4096;
    __real_weir__ring_write(use->ring, operation, use->fd, buffer, half, use->offset);
}

void __wrap_weir__ring_write(struct weir_ring *ring, struct weir_operation *operation, int fd,
                             const void *buffer, uint32_t bytes, uint64_t offset)
{
    struct seam_use use = {
        .call = SEAM_ring_write, .ring = ring, .fd = fd, .offset = offset, .bytes = bytes};
    struct seam_rule rule;

    if (!seam_strikes(&use, &rule)) {
        __real_weir__ring_write(ring, operation, fd, buffer, bytes, offset);
    } else if (rule.how == SEAM_FAIL) {
        seam_refuse(ring, operation, &rule, true);
    } else if (rule.how == SEAM_CUT) {
        seam_write_half(&use, operation, buffer);
    } else {
        operation = seam_standin(ring, operation, &rule, NULL);
        __real_weir__ring_write(ring, operation, fd, buffer, bytes, offset);
    }
}

/* Of one that is cut short the first half is done, and the error told. */
void __wrap_weir__ring_fallocate(struct weir_ring *ring, struct weir_operation *operation, int fd,
                                 int mode, uint64_t offset, uint64_t bytes)
{
    struct seam_use use = {.call = SEAM_ring_fallocate,
                           .ring = ring,
                           .fd = fd,
                           .mode = mode,
                           .offset = offset,
                           .bytes = bytes};
    struct seam_rule rule;

    if (!seam_strikes(&use, &rule)) {
        __real_weir__ring_fallocate(ring, operation, fd, mode, offset, bytes);
    } else if (rule.how == SEAM_FAIL || rule.how == SEAM_CUT) {
        uint64_t half = weir__round_down(bytes / 2, 4096);
        if (rule.how == SEAM_CUT && half > 0)
            (void)__real_weir__sys_fallocate(fd, mode, offset, half);
        seam_refuse(ring, operation, &rule, true);
    } else if (rule.how == SEAM_LATE) {
        seam_put_off(&use, operation, &rule);
    } else {
        operation = seam_standin(ring, operation, &rule, NULL);
        __real_weir__ring_fallocate(ring, operation, fd, mode, offset, bytes);
    }
}

void __wrap_weir__ring_nop(struct weir_ring *ring, struct weir_operation *operation)
{
    struct seam_use use = {.call = SEAM_ring_nop, .ring = ring, .fd = -1};

    operation = seam_operation(&use, operation, NULL);
    if (operation != NULL)
        __real_weir__ring_nop(ring, operation);
}

void __wrap_weir__ring_sync_range(struct weir_ring *ring, struct weir_operation *operation, int fd,
                                  uint64_t offset, uint32_t bytes)
{
    struct seam_use use = {
        .call = SEAM_ring_sync_range, .ring = ring, .fd = fd, .offset = offset, .bytes = bytes};

    operation = seam_operation(&use, operation, NULL);
    if (operation != NULL)
        __real_weir__ring_sync_range(ring, operation, fd, offset, bytes);
}

void __wrap_weir__ring_fdatasync(struct weir_ring *ring, struct weir_operation *operation, int fd)
{
    struct seam_use use = {.call = SEAM_ring_fdatasync, .ring = ring, .fd = fd};

    operation = seam_operation(&use, operation, NULL);
    if (operation != NULL)
        __real_weir__ring_fdatasync(ring, operation, fd);
}

void __wrap_weir__ring_madvise(struct weir_ring *ring, struct weir_operation *operation,
                               void *address, uint32_t bytes, int advice)
{
    struct seam_use use = {
        .call = SEAM_ring_madvise, .ring = ring, .fd = -1, .mode = advice, .bytes = bytes};

    operation = seam_operation(&use, operation, NULL);
    if (operation != NULL)
        __real_weir__ring_madvise(ring, operation, address, bytes, advice);
}

/* Whoever asks for an entry fills it: a refused operation is a no-op that says the error. */
static void seam_refused(struct weir_operation *operation, int32_t result, uint32_t flags)
{
    struct seam_standin *standin = WEIR_CONTAINER_OF(operation, struct seam_standin, operation);
    struct weir_operation *theirs = standin->theirs;
    int32_t error = -standin->rule.error;

    if ((flags & IORING_CQE_F_MORE) != 0)
        return;
    (void)result;
    free(standin);
    theirs->complete(theirs, error, 0);
}

struct io_uring_sqe *__wrap_weir__ring_sqe(struct weir_ring *ring, struct weir_operation *operation)
{
    struct seam_use use = {.call = SEAM_ring_sqe, .ring = ring, .fd = -1};
    struct seam_rule rule;

    if (!seam_strikes(&use, &rule))
        return __real_weir__ring_sqe(ring, operation);
    operation = seam_standin(ring, operation, &rule, NULL);
    WEIR_CONTAINER_OF(operation, struct seam_standin, operation)->halves = rule.how == SEAM_CUT;
    if (rule.how == SEAM_FAIL)
        operation->complete = seam_refused;
    return __real_weir__ring_sqe(ring, operation);
}

void __wrap_weir__ring_wake(struct weir_ring *ring, int fd, struct weir_operation *failed)
{
    struct seam_use use = {.call = SEAM_ring_wake, .ring = ring, .fd = fd};
    struct seam_rule rule;

    if (seam_strikes(&use, &rule) && rule.how == SEAM_FAIL)
        seam_refuse(ring, failed, &rule, false);
    else
        __real_weir__ring_wake(ring, fd, failed);
}

/* ---- One after the other -------------------------------------------------------- */

static void seam_say(const char *text)
{
    ssize_t count = write(STDERR_FILENO, text, strlen(text));

    (void)count;
}

static void seam_signalled(int number)
{
    seam_say(number == SIGALRM ? "# it hangs: " : "# it ended: ");
    seam_say(seam.run);
    seam_say("\n");
    signal(SIGABRT, SIG_DFL);
    abort();
}

/* Of the signals that a sanitizer does not want for itself. */
static void seam_watch(void)
{
    static const int signals[] = {SIGALRM, SIGABRT, SIGBUS};
    struct sigaction action = {.sa_handler = seam_signalled};

    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        WEIR_CHECK(sigaction(signals[i], &action, NULL) == 0);
}

static void seam_describe(const struct seam_rule *rule)
{
    static const char *const hows[] = {"fails", "is cut short", "is delayed", "is held", "is late"};

    snprintf(seam.run, sizeof(seam.run), "%s, use %" PRIu64 " %s%s; WEIR_SEAM_AT=%" PRIu64,
             seam_name(rule->call), rule->at, hows[rule->how],
             rule->times == SEAM_FOR_GOOD ? " for good" : "", rule->at);
}

/* How many uses this rule made go wrong. */
static uint64_t seam_run(struct seam_rule rule, void (*run)(void *context), void *context)
{
    int fds = harness_fd_count();
    int maps = harness_map_count("weir-test-");

    seam_describe(&rule);
    seam_reset();
    seam_arm(rule);
    seam.rules[0].is_of_run = true;
    seam.run_fired = 0;
    alarm(SEAM_RUN_SECONDS);
    run(context);
    alarm(0);
    seam_reset();
    WEIR_CHECK(seam_held() == 0);
    WEIR_CHECK(harness_fd_count() == fds);
    WEIR_CHECK(harness_map_count("weir-test-") == maps);
    seam.run[0] = '\0';
    return seam.run_fired;
}

uint64_t seam_each(struct seam_rule rule, uint64_t stride, void (*run)(void *context),
                   void *context)
{
    const char *given = getenv("WEIR_SEAM_AT");
    uint64_t count = 0;

    seam_watch();
    if (given != NULL) {
        rule.at = strtoull(given, NULL, 0);
        return seam_run(rule, run, context) > 0;
    }
    for (rule.at = weir__max(rule.at, 1); seam_run(rule, run, context) > 0; rule.at += stride)
        count++;
    return count;
}

int seam_teardown(void **state)
{
    (void)state;
    alarm(0);
    if (seam.run[0] != '\0')
        printf("# in this run: %s\n", seam.run);
    fflush(stdout);
    seam.run[0] = '\0';
    seam_reset();
    return 0;
}
