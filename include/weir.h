/* SPDX-License-Identifier: MIT */
#ifndef WEIR_H
#define WEIR_H

/* weir - memory limits that hold, for thread-per-core servers; in reading order */

#include <weir/base.h>

#include <weir/region.h>

#include <weir/governor.h>

#include <weir/reorder.h>

#include <weir/writebuf.h>

#include <weir/scratch.h>

#include <weir/worker.h>

#include <weir/view.h>

#endif
