/* SPDX-License-Identifier: MIT */
#ifndef WEIR_HARNESS_PROGRAM_H
#define WEIR_HARNESS_PROGRAM_H

/* program - how a program of cases begins: its arguments, and what it needs */

#include "forbid.h"
#include "tmpdir.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define CASE(sentence, function)                                                                   \
 {                                                                                                 \
  sentence, function, NULL, NULL, NULL                                                             \
 }

static bool harness_is_synchronous; /* io_uring is forbidden */

/*
 * --synchronous forbids io_uring; any other argument is the name of the cases to run.
 * False: nothing can be run here, and that has been said.
 */
static inline bool harness_begin(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--synchronous") == 0)
            harness_is_synchronous = true;
        else
            cmocka_set_test_filter(argv[i]);
    }
    if (harness_tmpdir() == NULL) {
        printf("1..0 # SKIP there is no disk to write to\n");
        return false;
    }
    if (harness_is_synchronous && harness_forbid_io_uring() < 0) {
        printf("1..0 # SKIP no system call can be forbidden here\n");
        return false;
    }
    return true;
}

#endif
