/* SPDX-License-Identifier: MIT */
#ifndef WEIR_DUMP_TERMINAL_H
#define WEIR_DUMP_TERMINAL_H

/* terminal - what standard output can show, and figures for people */

#include <weir/view.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct terminal {
    size_t width;
    bool coloured; /* a terminal, and NO_COLOR is not set */
    bool unicode;  /* coloured, and its characters are UTF-8 */
};

void terminal_init(struct terminal *terminal);

#define TERMINAL_BYTES_MAX 16

/* "12.3 MiB"; returns @text */
const char *terminal_bytes(uint64_t bytes, char text[TERMINAL_BYTES_MAX]);

/* "cold" */
const char *terminal_chunk_state(enum weir_chunk_state state);

#endif
