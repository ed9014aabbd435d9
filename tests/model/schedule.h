/* SPDX-License-Identifier: MIT */
#ifndef WEIR_MODEL_SCHEDULE_H
#define WEIR_MODEL_SCHEDULE_H

/*
 * schedule - threads as a game: one at a time, who is next is drawn, time is a number
 *
 * Put before every source by -include. What threads do to each other, atomic
 * accesses, locks, conditions, the clock, the barrier of leases, becomes a point at
 * which another one may go on. So the real code meets orders that a machine shows
 * once in a year, and the same again for the same seed.
 */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

void schedule_point(void);
pthread_t schedule_self(void);
int schedule_lock(pthread_mutex_t *lock);
int schedule_unlock(pthread_mutex_t *lock);
int schedule_wait(pthread_cond_t *condition, pthread_mutex_t *lock, uint64_t deadline_ns);
int schedule_wake(pthread_cond_t *condition);
int schedule_clock(struct timespec *ret_now);
int schedule_announce_barrier(void);

static inline uint64_t schedule_ns(const struct timespec *time)
{
    return (uint64_t)time->tv_sec * UINT64_C(1000000000) + (uint64_t)time->tv_nsec;
}

/* Nobody else runs between two points, so these need not be atomic themselves. */
#undef atomic_load_explicit
#undef atomic_store_explicit
#undef atomic_fetch_add_explicit
#undef atomic_fetch_sub_explicit
#undef atomic_fetch_or_explicit
#undef atomic_fetch_and_explicit
#undef atomic_compare_exchange_strong_explicit
#undef atomic_compare_exchange_weak_explicit
#define atomic_load_explicit(p, order)         (schedule_point(), *(p))
#define atomic_store_explicit(p, v, order)     (schedule_point(), (void)(*(p) = (v)))
#define atomic_fetch_add_explicit(p, v, order) (schedule_point(), (*(p) += (v)) - (v))
#define atomic_fetch_sub_explicit(p, v, order) (schedule_point(), (*(p) -= (v)) + (v))
#define atomic_fetch_or_explicit(p, v, order)  (schedule_point(), (void)(*(p) |= (v)))
#define atomic_fetch_and_explicit(p, v, order) (schedule_point(), (void)(*(p) &= (v)))
#define atomic_compare_exchange_strong_explicit(p, e, d, order, other)                             \
 (schedule_point(), *(p) == *(e) ? (*(p) = (d), true) : (*(e) = *(p), false))
#define atomic_compare_exchange_weak_explicit atomic_compare_exchange_strong_explicit

#define pthread_self                    schedule_self
#define pthread_mutex_lock              schedule_lock
#define pthread_mutex_unlock            schedule_unlock
#define pthread_cond_wait(c, l)         schedule_wait(c, l, UINT64_MAX)
#define pthread_cond_timedwait(c, l, t) schedule_wait(c, l, schedule_ns(t))
#define pthread_cond_broadcast          schedule_wake
#define clock_gettime(clock, now)       schedule_clock(now)
#define weir__sys_barrier               schedule_point
#define weir__sys_announce_barrier      schedule_announce_barrier

#endif
