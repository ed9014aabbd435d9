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

/*
 * Where blocking helpers of a thread on @cpu should run: the cpus of its node
 * among @allowed, without @cpu itself if others remain.
 */
void weir__pin_helpers(const cpu_set_t *allowed, uint32_t cpu, cpu_set_t *ret_cpus);

/* At most 15 bytes are kept. */
void weir__pin_name(const char *name);

#endif
