/* SPDX-License-Identifier: MIT */
#ifndef WEIR_DUMP_PICTURE_H
#define WEIR_DUMP_PICTURE_H

/* picture - the file as a map in the terminal, one cell per chunk or group of chunks */

#include "terminal.h"

#include <weir/view.h>

void picture_draw(const struct weir_view *view, const struct terminal *terminal);

#endif
