/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BASE_CLEANUP_H
#define WEIR_BASE_CLEANUP_H

/* cleanup - attributes for descriptors on cold paths */

#include "base/sys.h"

static inline void weir__cleanup_close(int *fd)
{
    weir__sys_close(*fd);
}

#define WEIR_CLEANUP_CLOSE __attribute__((cleanup(weir__cleanup_close)))

#endif
