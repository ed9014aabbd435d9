/* SPDX-License-Identifier: MIT */
#ifndef WEIR_WORKER_PIN_H
#define WEIR_WORKER_PIN_H

/* pin - where a thread runs, where its helpers run, what it is called */

#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

/* Which cpus the calling thread may use. */
int weir__pin_get(cpu_set_t *ret_cpus);
int weir__pin_set(const cpu_set_t *cpus);

/* Only @cpu: -EINVAL if there is none such, or it is forbidden to us. */
int weir__pin_to(uint32_t cpu);

/* The cpu the calling thread runs on now. */
uint32_t weir__pin_cpu(void);

/* The node of that cpu; 0: there is one, or nodes are not known. */
uint32_t weir__pin_node(void);

/*
 * Where blocking helpers of a thread on @cpu should run: the cpus of its node
 * among @allowed, without @cpu itself if others remain.
 */
void weir__pin_helpers(const cpu_set_t *allowed, uint32_t cpu, cpu_set_t *ret_cpus);

/* Where a thread's memory came from before it was pinned. */
struct weir__memory {
    int policy;
    unsigned long nodes[16];
};

/*
 * Memory that the calling thread touches first, page cache too, comes from the
 * node of @cpu while that has any. 1: so it is; 0: there is one node; or a
 * negative errno.
 */
int weir__pin_memory(uint32_t cpu, struct weir__memory *ret_before);
void weir__pin_memory_back(const struct weir__memory *before);

/* At most 15 bytes are kept. */
void weir__pin_name(const char *name);

#endif
