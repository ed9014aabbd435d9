/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BASE_CHECK_H
#define WEIR_BASE_CHECK_H

#define WEIR_LIKELY(x)   __builtin_expect(!!(x), 1)
#define WEIR_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* Before a function that is hardly ever called: it stays out of the way of those that are. */
#define WEIR_COLD __attribute__((cold, noinline))

_Noreturn void weir__check_failed(const char *expression, const char *file, int line);

/* Always on. For slow paths, and for anything that would corrupt a file. */
#define WEIR_CHECK(x) (WEIR_LIKELY(x) ? (void)0 : weir__check_failed(#x, __FILE__, __LINE__))

/* Off under NDEBUG, but still type-checked. For hot paths. */
#ifdef NDEBUG
# define WEIR_ASSERT(x) ((void)(0 && (x)))
#else
# define WEIR_ASSERT(x) WEIR_CHECK(x)
#endif

#endif
