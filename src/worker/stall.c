/* SPDX-License-Identifier: MIT */
/*
 * stall - how a long turn is told apart
 *
 *      sample        turn                                   end
 *      | cpu, sleeps | completions | messages | region | tick |  longer than the limit?
 *
 * Where: each station has its time. Why: the kernel's counters of the thread,
 * now against the last sample. If it was on a cpu for longer than the limit, the
 * code of the station is to blame, however busy the machine is; else whether the
 * thread went to sleep by itself or was made to wait tells a disk or a lock from
 * a neighbour. The sample is at most a quarter of the limit older than the turn,
 * so what came before it hardly counts.
 */
#include "worker/stall.h"

#include <string.h>

static void stall_sample(struct weir__stall *stall, uint64_t now_ns)
{
    stall->sample_ns = now_ns;
    weir__sys_thread_usage(&stall->sample);
}

void weir__stall_init(struct weir__stall *stall, uint64_t limit_ns)
{
    *stall = (struct weir__stall){.limit_ns = limit_ns};
}

void weir__stall_begin(struct weir__stall *stall, uint64_t now_ns, bool slept)
{
    stall->begin_ns = now_ns;
    stall->mark_ns = now_ns;
    memset(stall->station_ns, 0, sizeof(stall->station_ns));
    if (slept || now_ns - stall->sample_ns > stall->limit_ns / 4)
        stall_sample(stall, now_ns);
}

void weir__stall_mark(struct weir__stall *stall, enum weir_station station, uint64_t now_ns)
{
    stall->station_ns[station] += now_ns - stall->mark_ns;
    stall->mark_ns = now_ns;
}

static enum weir_station stall_station(const struct weir__stall *stall)
{
    enum weir_station longest = WEIR_STATION_COMPLETIONS;

    for (enum weir_station i = longest; i < WEIR_STATION_COUNT; i++)
        if (stall->station_ns[i] > stall->station_ns[longest])
            longest = i;
    return longest;
}

static enum weir_stall_cause stall_cause(const struct weir__usage *before,
                                         const struct weir__usage *after, uint64_t limit_ns)
{
    if (after->cpu_ns - before->cpu_ns >= limit_ns)
        return WEIR_STALL_BUSY;
    if (after->blocked_count != before->blocked_count)
        return WEIR_STALL_BLOCKED;
    return WEIR_STALL_PREEMPTED;
}

bool weir__stall_end(struct weir__stall *stall, struct weir_report *ret_report)
{
    static const char *const texts[] = {
        [WEIR_STALL_BUSY] = "a turn took too long: it computed",
        [WEIR_STALL_PREEMPTED] = "a turn took too long: something else had the cpu",
        [WEIR_STALL_BLOCKED] = "a turn took too long: it slept in the kernel",
    };
    uint64_t ns = stall->mark_ns - stall->begin_ns;

    if (ns <= stall->limit_ns)
        return false;

    struct weir__usage before = stall->sample;
    stall_sample(stall, stall->mark_ns);
    enum weir_stall_cause cause = stall_cause(&before, &stall->sample, stall->limit_ns);
    *ret_report = (struct weir_report){
        .kind = WEIR_REPORT_STALL,
        .text = texts[cause],
        .ns = ns,
        .station = stall_station(stall),
        .cause = cause,
        .major_fault_count = stall->sample.major_fault_count - before.major_fault_count,
    };
    return true;
}
