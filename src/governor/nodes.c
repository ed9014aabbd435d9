/* SPDX-License-Identifier: MIT */
/*
 * nodes - budgets that move, uses that do not
 *
 *      node 0   | used by accounts of node 0 .............. | room |
 *                      of its own budget | borrowed from 1
 *      node 1   | used by accounts of node 1 | room | lent to 0
 *
 * A charge takes from the room of its account's node and asks nobody else. Only when
 * that is short does the governor's lock come, and room of the nearest node that has
 * some to spare becomes room of this one; it is noted whose it is. What comes back to
 * a node that owes goes on to whom it owes, the farthest first, before the node has
 * it itself, but for a little that keeps a use that swings from the lock. So in the
 * end each node uses its own.
 *
 * The limit of all is not kept here but by the word (ledger.c), which every charge
 * passes as well: nodes decide where, the word whether.
 *
 *   N1  room = budget + all borrowed - all lent - used; below zero only by forced
 *       charges, or after the budgets were lowered
 *   N2  what a node has lent is what the others owe to it
 *   N3  a node borrows at most its bound, and lends nothing of the part for which it
 *       would be told to flush itself
 */
#include "governor/nodes.h"

#include "base/bits.h"
#include "base/sys.h"
#include "governor/budget.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NODES_DISTANCE_OWN   10
#define NODES_DISTANCE_OTHER 20
#define NODES_BORROW_PERCENT 50
#define NODES_TEXT_BYTES     4096
#define NODES_BYTES_MAX      (UINT64_C(1) << 56) /* eight of them are no overflow */
#define NODES_DISTANCE_MAX   1000000

/* ---- What the machine says ------------------------------------------------------ */

struct nodes_names {
    bool present[WEIR_NODES_MAX];
    bool too_many;
};

static int nodes_note_name(void *context, const char *name)
{
    struct nodes_names *names = context;
    char *end = NULL;

    if (strncmp(name, "node", 4) != 0 || name[4] < '0' || name[4] > '9')
        return 0;

    unsigned long number = strtoul(name + 4, &end, 10);

    if (*end != '\0')
        return 0;
    if (number < WEIR_NODES_MAX)
        names->present[number] = true;
    else
        names->too_many = true;
    return 0;
}

static int nodes_read(const char *root, uint32_t index, const char *name, char *text)
{
    char path[256];
    int length =
        snprintf(path, sizeof(path), "%s/sys/devices/system/node/node%u/%s", root, index, name);

    if (length < 0 || (size_t)length >= sizeof(path))
        return -EFBIG;
    return weir__sys_read_text(path, text, NODES_TEXT_BYTES);
}

/* "Node 0 MemTotal:  1024 kB" */
static int nodes_parse_memory(const char *text, uint64_t *ret_bytes)
{
    const char *total = strstr(text, "MemTotal:");
    char *end = NULL;

    if (total == NULL)
        return -EBADMSG;

    uint64_t kib = strtoull(total + strlen("MemTotal:"), &end, 10);

    if (end == total + strlen("MemTotal:") || kib > NODES_BYTES_MAX >> 10)
        return -EBADMSG;
    *ret_bytes = kib << 10;
    return 0;
}

/* One number for each node that is there, in order; ours have no gaps, or we gave up. */
static int nodes_parse_distances(const char *text, uint32_t count, uint32_t *ret_distances)
{
    for (uint32_t other = 0; other < count; other++) {
        char *end = NULL;
        unsigned long distance = strtoul(text, &end, 10);

        if (end == text || distance > NODES_DISTANCE_MAX)
            return -EBADMSG;
        ret_distances[other] = (uint32_t)distance;
        text = end;
    }
    return 0;
}

static int topology_read_node(const char *root, uint32_t index, struct weir__topology *topology)
{
    char text[NODES_TEXT_BYTES];
    int r = nodes_read(root, index, "meminfo", text);

    if (r == 0)
        r = nodes_parse_memory(text, &topology->memory_bytes[index]);
    if (r == 0)
        r = nodes_read(root, index, "distance", text);
    if (r == 0)
        r = nodes_parse_distances(text, topology->count, topology->distances[index]);
    return r;
}

int weir__topology_read(const char *root, struct weir__topology *ret_topology)
{
    struct nodes_names names = {0};
    struct weir__topology topology = {0};
    char path[256];
    int length = snprintf(path, sizeof(path), "%s/sys/devices/system/node", root);

    *ret_topology = (struct weir__topology){.count = 1};
    if (length < 0 || (size_t)length >= sizeof(path) ||
        weir__sys_list(path, nodes_note_name, &names) < 0 || names.too_many)
        return 0;

    for (uint32_t i = 0; i < WEIR_NODES_MAX && names.present[i]; i++)
        topology.count = i + 1;
    for (uint32_t i = topology.count; i < WEIR_NODES_MAX; i++)
        if (names.present[i])
            return 0;
    for (uint32_t i = 0; i < topology.count && topology.count > 1; i++) {
        int r = topology_read_node(root, i, &topology);
        if (r < 0)
            return r;
    }
    if (topology.count > 1)
        *ret_topology = topology;
    return 0;
}

uint32_t weir__nodes_here(const struct weir__nodes *nodes)
{
    unsigned cpu = 0;
    unsigned node = 0;

    if (nodes->count == 0 || getcpu(&cpu, &node) < 0 || node >= nodes->count)
        return 0;
    return node;
}

/* ---- Budgets -------------------------------------------------------------------- */

/* @part of @whole, of @bytes. */
static uint64_t nodes_share(uint64_t bytes, uint64_t part, uint64_t whole)
{
    return whole > 0 ? (uint64_t)((__uint128_t)bytes * part / whole) : 0;
}

static int nodes_init_budgets(struct weir__nodes *nodes, const struct weir_governor_config *config,
                              const struct weir__topology *topology,
                              const struct weir__budget *budget)
{
    uint64_t memory_bytes = 0;

    for (uint32_t i = 0; i < topology->count; i++)
        memory_bytes += topology->memory_bytes[i];
    for (uint32_t i = 0; i < nodes->count; i++) {
        struct weir__node *node = &nodes->nodes[i];
        if (config != NULL && config->node_count > 0)
            node->budget_bytes = config->nodes[i].bytes_max;
        else if (memory_bytes > 0)
            node->budget_bytes =
                nodes_share(budget->bytes_max, topology->memory_bytes[i], memory_bytes);
        else
            node->budget_bytes = budget->bytes_max / nodes->count;
        if (node->budget_bytes > BUDGET_BYTES_LIMIT)
            return -EINVAL;
    }
    return 0;
}

static void nodes_init_order(struct weir__nodes *nodes, const struct weir_governor_config *config,
                             const struct weir__topology *topology)
{
    for (uint32_t i = 0; i < nodes->count; i++) {
        const uint32_t *distances = config != NULL && config->node_count > 0
                                        ? config->nodes[i].distances
                                        : topology->distances[i];
        uint32_t *nearest = nodes->nodes[i].nearest;
        for (uint32_t other = 0, count = 0; other < nodes->count; other++) {
            uint32_t place = count++;
            for (; place > 0; place--) {
                uint32_t before = nearest[place - 1];
                bool nearer = (other == i && before != i) ||
                              (before != i && distances[other] < distances[before]);
                if (!nearer)
                    break;
                nearest[place] = before;
            }
            nearest[place] = other;
        }
    }
}

int weir__nodes_init(struct weir__nodes *nodes, const struct weir_governor_config *config,
                     const struct weir__topology *topology, const struct weir__budget *budget)
{
    uint32_t count =
        config != NULL && config->node_count > 0 ? config->node_count : topology->count;
    uint32_t percent = config != NULL && config->borrow_percent > 0 ? config->borrow_percent
                                                                    : NODES_BORROW_PERCENT;

    memset(nodes, 0, sizeof(*nodes));
    if (count > WEIR_NODES_MAX || percent > 100)
        return -EINVAL;
    if (config != NULL && config->node_count > 0 && config->nodes == NULL && count > 1)
        return -EINVAL;
    if (count <= 1)
        return 0;

    nodes->count = count;
    int r = nodes_init_budgets(nodes, config, topology, budget);
    if (r < 0)
        return r;
    nodes_init_order(nodes, config, topology);
    for (uint32_t i = 0; i < count; i++) {
        struct weir__node *node = &nodes->nodes[i];
        uint64_t soft = nodes_share(node->budget_bytes, budget->enter_bytes[WEIR_LEVEL_SOFT],
                                    budget->bytes_max);
        uint64_t spill = nodes_share(node->budget_bytes, budget->enter_bytes[WEIR_LEVEL_SPILL],
                                     budget->bytes_max);
        node->lend_keep_bytes = node->budget_bytes - soft;
        node->spill_bytes = node->budget_bytes - spill;
        node->borrow_max_bytes = nodes_share(node->budget_bytes, percent, 100);
        node->room_bytes = (int64_t)node->budget_bytes;
    }
    return 0;
}

void weir__nodes_change(struct weir__nodes *nodes, const struct weir__nodes *other)
{
    WEIR_CHECK(nodes->count == other->count);
    for (uint32_t i = 0; i < nodes->count; i++) {
        struct weir__node *node = &nodes->nodes[i];
        const struct weir__node *from = &other->nodes[i];
        int64_t more = (int64_t)from->budget_bytes - (int64_t)node->budget_bytes;

        node->budget_bytes = from->budget_bytes;
        node->lend_keep_bytes = from->lend_keep_bytes;
        node->spill_bytes = from->spill_bytes;
        node->borrow_max_bytes = from->borrow_max_bytes;
        memcpy(node->nearest, from->nearest, sizeof(node->nearest));
        atomic_fetch_add_explicit(&node->room_bytes, more, memory_order_acq_rel);
    }
    for (uint32_t i = 0; i < nodes->count; i++)
        weir__nodes_repay(nodes, i);
}

/* ---- Borrowing (under the lock) --------------------------------------------------- */

static uint64_t node_debt(const struct weir__node *node)
{
    return atomic_load_explicit(&node->debt_bytes, memory_order_relaxed);
}

static uint64_t node_may_borrow(const struct weir__node *node)
{
    return node->borrow_max_bytes - weir__min(node->borrow_max_bytes, node_debt(node));
}

static uint64_t nodes_to_spare(const struct weir__nodes *nodes, uint32_t index)
{
    uint64_t room = weir__nodes_room(nodes, index);
    uint64_t keep = nodes->nodes[index].lend_keep_bytes;

    return room - weir__min(room, keep);
}

uint64_t weir__nodes_reach(const struct weir__nodes *nodes, uint32_t index)
{
    const struct weir__node *node = &nodes->nodes[index];
    int64_t room = atomic_load_explicit(&node->room_bytes, memory_order_acquire);
    uint64_t others = 0;

    if (nodes->count == 0)
        return UINT64_MAX;
    for (uint32_t i = 0; i < nodes->count; i++)
        if (i != index)
            others += nodes_to_spare(nodes, i);
    room += (int64_t)weir__min(others, node_may_borrow(node));
    return room > 0 ? (uint64_t)room : 0;
}

static uint64_t nodes_missing(uint64_t wanted, int64_t room)
{
    if (room < 0)
        return wanted + (uint64_t)-room;
    return wanted - weir__min(wanted, (uint64_t)room);
}

bool weir__nodes_borrow(struct weir__nodes *nodes, uint32_t index, uint64_t bytes, uint64_t keep)
{
    struct weir__node *node = &nodes->nodes[index];
    uint64_t most = node_may_borrow(node); /* N3 */

    for (uint32_t i = 1; i < nodes->count; i++) {
        if (weir__nodes_take(nodes, index, bytes, keep))
            return true;

        uint32_t lender = node->nearest[i];
        int64_t room = atomic_load_explicit(&node->room_bytes, memory_order_acquire);
        uint64_t wanted = nodes_missing(bytes + keep, room);
        uint64_t part = weir__min(weir__min(wanted, most), nodes_to_spare(nodes, lender));

        if (part == 0 || !weir__nodes_take(nodes, lender, part, 0))
            continue;
        most -= part;
        node->debts[lender] += part; /* N2 */
        nodes->nodes[lender].lent_bytes += part;
        atomic_fetch_add_explicit(&node->debt_bytes, part, memory_order_acq_rel);
        atomic_fetch_add_explicit(&node->room_bytes, (int64_t)part, memory_order_acq_rel);
    }
    if (weir__nodes_take(nodes, index, bytes, keep))
        return true;
    weir__nodes_repay(nodes, index); /* it was not enough: nobody keeps what he cannot use */
    return false;
}

void weir__nodes_repay(struct weir__nodes *nodes, uint32_t index)
{
    struct weir__node *node = &nodes->nodes[index];

    for (uint32_t i = nodes->count; i > 1 && node_debt(node) > 0; i--) {
        uint32_t lender = node->nearest[i - 1];
        uint64_t room = weir__nodes_room(nodes, index);
        uint64_t part = weir__min(node->debts[lender], room - weir__min(room, node->spill_bytes));

        if (part == 0 || !weir__nodes_take(nodes, index, part, 0))
            continue;
        node->debts[lender] -= part;
        nodes->nodes[lender].lent_bytes -= part;
        atomic_fetch_sub_explicit(&node->debt_bytes, part, memory_order_acq_rel);
        (void)weir__nodes_give(nodes, lender, part);
    }
}

uint64_t weir__nodes_use(const struct weir__nodes *nodes, uint32_t index)
{
    const struct weir__node *node = &nodes->nodes[index];
    int64_t has = (int64_t)(node->budget_bytes + node_debt(node) - node->lent_bytes);
    int64_t use = has - atomic_load_explicit(&node->room_bytes, memory_order_acquire);

    return use > 0 ? (uint64_t)use : 0;
}
