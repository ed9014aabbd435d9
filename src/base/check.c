/* SPDX-License-Identifier: MIT */
/*
 * check - the last words before a stop
 *
 * Nothing here allocates or locks: the state that failed a check may be
 * anything.
 */
#include "base/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

_Noreturn void weir__check_failed(const char *expression, const char *file, int line)
{
    char text[512];
    int length = snprintf(text, sizeof(text), "%s:%d: check failed: %s\n", file, line, expression);

    if (length > 0) {
        size_t bytes = (size_t)length < sizeof(text) ? (size_t)length : sizeof(text) - 1;
        ssize_t ignored = write(STDERR_FILENO, text, bytes);
        (void)ignored;
    }
    abort();
}
