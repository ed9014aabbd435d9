/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BASE_FENCE_H
#define WEIR_BASE_FENCE_H

/*
 * fence - barriers between words that are not the same
 *
 * ThreadSanitizer does not model fences and gcc says so. Where we use a full one
 * it decides who is woken, never who may read what: that is ordered by acquire
 * and release on the words themselves, which the sanitizer does see. The others
 * stand between the words of an entry and its tag; what was read in between is
 * thrown away unless the tag is the same afterwards.
 */

#if defined(__GNUC__) && !defined(__clang__)
# pragma GCC diagnostic push
# pragma GCC diagnostic ignored "-Wtsan"
#endif

static inline void weir__fence(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static inline void weir__fence_acquire(void)
{
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
}

static inline void weir__fence_release(void)
{
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

#if defined(__GNUC__) && !defined(__clang__)
# pragma GCC diagnostic pop
#endif

#endif
