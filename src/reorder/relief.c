/* SPDX-License-Identifier: MIT */
/*
 * relief - what the buffers of one account give when memory is short
 *
 *      account --- reclaimer --- relief --- buffer, buffer, buffer ...
 *                                             `--> asked in turn, a piece each
 *
 * A server has a buffer per stream, thousands on one account, most of them empty.
 * A reclaimer for each would be asked one by one, a poll apart, under the lock that
 * all cores share. So the account has one, which comes with the first buffer that
 * can spill and leaves with the last; it asks them in turn, and who was asked goes
 * to the end. One call gives a bounded part of what is wanted: it runs in a tick,
 * and who keeps a promise is asked again.
 *
 *   F1  a relief is in the table of its thread as long as it has members
 */
#include "reorder/relief.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/heap.h"
#include "base/random.h"

#include <weir/governor.h>

#include <errno.h>

#define RELIEF_COST       100u
#define RELIEF_CALL_BYTES (UINT64_C(1) << 20)  /* in one call: half a millisecond of copying */
#define RELIEF_TURN_BYTES (UINT64_C(64) << 10) /* of one buffer, before the next */
#define RELIEF_LOOKS_MAX  1024u                /* at buffers that have nothing, in one call */
#define RELIEF_BUCKETS    64u

struct weir__relief {
    struct weir__relief *next; /* F1 */
    struct weir_account *account;
    struct weir_reclaimer reclaimer;
    struct weir__list members;
    uint32_t member_count;
};

static _Thread_local struct weir__relief *relief_table[RELIEF_BUCKETS];

static struct weir__relief **relief_bucket(const struct weir_account *account)
{
    return &relief_table[weir__mix((uint64_t)(uintptr_t)account) % RELIEF_BUCKETS];
}

static uint64_t relief_reclaim(struct weir_reclaimer *reclaimer, uint64_t bytes)
{
    struct weir__relief *relief = reclaimer->context;
    uint64_t wanted = weir__min(bytes, RELIEF_CALL_BYTES);
    uint64_t barren_max = weir__min(relief->member_count, RELIEF_LOOKS_MAX);
    uint64_t barren_count = 0;
    uint64_t came = 0;
    int r = 0;

    /* Where one is refused by the region the others would be: it is a core's. */
    while (r == 0 && came < wanted && barren_count < barren_max) {
        struct weir__relief_member *member =
            WEIR_CONTAINER_OF(relief->members.next, struct weir__relief_member, link);

        weir__list_remove(&member->link);
        weir__list_append(&relief->members, &member->link);
        uint64_t more =
            weir__reorder_relieve(member, weir__min(wanted - came, RELIEF_TURN_BYTES), &r);
        barren_count = more > 0 ? 0 : barren_count + 1;
        came += more;
    }
    return came;
}

static struct weir__relief *relief_new(struct weir_account *account)
{
    struct weir__relief **bucket = relief_bucket(account);
    struct weir__relief *relief = weir__heap_alloc(NULL, sizeof(*relief));

    if (relief == NULL)
        return NULL;
    relief->account = account;
    weir__list_init(&relief->members);
    relief->next = *bucket;
    *bucket = relief;
    relief->reclaimer = (struct weir_reclaimer){
        .name = "reorder", .cost = RELIEF_COST, .reclaim = relief_reclaim, .context = relief};
    weir_account_add_reclaimer(account, &relief->reclaimer);
    return relief;
}

int weir__relief_join(struct weir__relief_member *member, struct weir_account *account)
{
    struct weir__relief *relief = *relief_bucket(account);

    while (relief != NULL && relief->account != account)
        relief = relief->next;
    if (relief == NULL)
        relief = relief_new(account);
    if (relief == NULL)
        return -ENOMEM;
    weir__list_append(&relief->members, &member->link);
    relief->member_count++;
    member->relief = relief;
    return 0;
}

void weir__relief_leave(struct weir__relief_member *member)
{
    struct weir__relief *relief = member->relief;
    struct weir__relief **link;

    if (relief == NULL)
        return;
    member->relief = NULL;
    weir__list_remove(&member->link);
    if (--relief->member_count > 0)
        return;
    WEIR_CHECK(weir__list_is_empty(&relief->members));
    weir_account_remove_reclaimer(relief->account, &relief->reclaimer);
    for (link = relief_bucket(relief->account); *link != relief; link = &(*link)->next)
        WEIR_ASSERT(*link != NULL);
    *link = relief->next;
    weir__heap_free(NULL, relief, sizeof(*relief));
}
