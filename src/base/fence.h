/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BASE_FENCE_H
#define WEIR_BASE_FENCE_H

/*
 * fence - the full barrier between a store and a load of something else
 *
 * ThreadSanitizer does not model fences and gcc says so. Where we use one it
 * decides who is woken, never who may read what: that is ordered by acquire and
 * release on the words themselves, which the sanitizer does see.
 */

#if defined(__GNUC__) && !defined(__clang__)
# pragma GCC diagnostic push
# pragma GCC diagnostic ignored "-Wtsan"
#endif

static inline void weir__fence(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

#if defined(__GNUC__) && !defined(__clang__)
# pragma GCC diagnostic pop
#endif

#endif
