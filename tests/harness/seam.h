/* SPDX-License-Identifier: MIT */
#ifndef WEIR_HARNESS_SEAM_H
#define WEIR_HARNESS_SEAM_H

/*
 * seam - any kernel call, ring operation or allocation fails when the test says so
 *
 * All that weir asks of the kernel passes base/sys, base/ring or base/heap. A
 * program linked with seam_dep has these calls wrapped by the linker; the library
 * is the one that is shipped. A rule says which use of which call goes wrong, and
 * how:
 *
 *      seam_fail(SEAM_sys_fallocate, 3);           the third, once, with -ENOSPC
 *      seam_fail_on(SEAM_ring_read, 1);            all of them from now on
 *      seam_arm((struct seam_rule){                and everything else
 *          .call = SEAM_ring_read,
 *          .at = 2,
 *          .how = SEAM_HOLD,
 *      });
 *      ...
 *      assert_true(seam_fired() > 0);
 *      seam_lift();
 *
 * What is said first counts from then on; of several rules the first that strikes
 * is obeyed. seam_each() runs a scenario once for each use:
 *
 *      seam_each((struct seam_rule){.call = SEAM_ANY_CALL}, 1, scenario, NULL);
 *
 * Any thread may meet a rule; arm and lift while no other is at work.
 */

#include <stdbool.h>
#include <stdint.h>

struct weir_ring;

/* SEAM_sys_open, SEAM_ring_read, SEAM_heap_alloc, ... and whole kinds of them. */
enum seam_call {
#define SEAM_CALL(name, ...)        SEAM_##name,
#define SEAM_OWN(name, error)       SEAM_##name,
#define SEAM_OPERATION(name, error) SEAM_##name,
#define SEAM_HEAP(name, ...)        SEAM_##name,
#include "seam_calls.def"
    SEAM_CALL_COUNT,
    SEAM_ANY_CALL,      /* that answers at once: sys, and the ring itself */
    SEAM_ANY_OPERATION, /* that completes through a ring */
    SEAM_ANY_HEAP,
    SEAM_ANY,
};

/* How a use goes wrong. Calls that are not operations know FAIL and CUT. */
enum seam_how {
    SEAM_FAIL,  /* it is not done; it answers, or completes with, the error */
    SEAM_CUT,   /* the first half is done: a read that is short, an allocation that stops */
    SEAM_DELAY, /* an operation is done and completes rule.reaps reaps later */
    SEAM_HOLD,  /* and completes when it is released */
    SEAM_LATE,  /* ring_fallocate only: it is not even begun before that */
};

#define SEAM_FOR_GOOD UINT64_MAX

/* One use, as far as the call has such a thing; for rules that look closer. */
struct seam_use {
    enum seam_call call;
    struct weir_ring *ring;
    const char *path;
    int fd;
    int mode; /* flags, advice */
    uint64_t offset;
    uint64_t bytes;
};

struct seam_rule {
    enum seam_call call; /* or SEAM_ANY... */
    uint64_t at;         /* of its uses the at-th from now on; 0: the first */
    uint64_t times;      /* and so many; 0: one; SEAM_FOR_GOOD: until it is lifted */
    enum seam_how how;
    int error;      /* positive; 0: what the call says usually; late: what it really says */
    uint32_t reaps; /* of SEAM_DELAY */
    /* Uses that it answers false for are not counted. NULL: all of them are. */
    bool (*matches)(const struct seam_use *use, void *context);
    /* What was held comes when this answers true. NULL: with seam_release(). */
    bool (*releases)(void *context);
    void *context;
};

void seam_arm(struct seam_rule rule);
void seam_fail(enum seam_call call, uint64_t at);    /* once, with its usual error */
void seam_fail_on(enum seam_call call, uint64_t at); /* and all later ones */

/* How many uses went wrong since the last seam_reset(). */
uint64_t seam_fired(void);

/* Uses of @call since the last seam_reset(), whether they went wrong or not. */
uint64_t seam_used(enum seam_call call);

/* Operations that are delayed or held. */
uint64_t seam_held(void);

/* What is held completes with the next reap of its ring; what is late begins. */
void seam_release(void);

/* The same, but what is late is never done: it completes with its error. */
void seam_release_failed(void);

/* No rule is left, and what was held is released. */
void seam_lift(void);

/* The same, and all counts begin anew. */
void seam_reset(void);

/*
 * Run @run with the first use going wrong, then with that @stride further on, and
 * so on until a run in which none did; in how many one did. A run may lift the rule,
 * and arm others, which do not count.
 *
 * Each run ends within two minutes, or the process ends and says which it was; so
 * it does for any other signal. Afterwards there are as many descriptors and
 * mappings of files as before. WEIR_SEAM_AT= runs one number alone.
 */
uint64_t seam_each(struct seam_rule rule, uint64_t stride, void (*run)(void *context),
                   void *context);

/* The name of @call; of a kind, what it stands for. */
const char *seam_name(enum seam_call call);

/* A teardown for cmocka: says which run of seam_each() was not finished, and disarms. */
int seam_teardown(void **state);

#define SEAM_TEST(sentence, function) SEAM_TEST_OF(sentence, function, NULL)

/* @what is where *state points. */
#define SEAM_TEST_OF(sentence, function, what)                                                     \
 {                                                                                                 \
  sentence, function, NULL, seam_teardown, (void *)(uintptr_t)(what)                               \
 }

#endif
