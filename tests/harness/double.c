/* SPDX-License-Identifier: MIT */
/*
 * double - what the headers promise, in the simplest way, and failures at will
 */
#include "double.h"

#include "base/check.h"
#include "base/random.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- Region ------------------------------------------------------------------- */

void double_region_init(struct weir_region *region)
{
    *region = (struct weir_region){
        .seed = 1,
        .put_bytes_max = 4096,
        .fetch_bytes_max = 1 << 20,
        .item_bytes_max = 4 << 20,
        .bytes_max = UINT64_MAX,
        .pinned_bytes_max = UINT64_MAX,
    };
}

void double_region_deinit(struct weir_region *region)
{
    WEIR_CHECK(region->live_count == 0);
    WEIR_CHECK(region->pinned_bytes == 0);
    free(region->slots);
    free(region->requests);
}

void double_region_chill(struct weir_region *region)
{
    for (uint32_t i = 0; i < region->slot_count; i++) {
        region->slots[i].cold = true;
        region->slots[i].fetched = false;
    }
}

static void region_forget_fetched(struct weir_region *region)
{
    if (!region->forgets)
        return;
    for (uint32_t i = 0; i < region->slot_count; i++)
        region->slots[i].fetched = false;
}

static struct double_slot *region_find(const struct weir_region *region, struct weir_slot slot)
{
    struct double_slot *found;

    if (slot.index == 0 || slot.index > region->slot_count)
        return NULL;
    found = &region->slots[slot.index - 1];
    if (found->generation != slot.generation || found->generation % 2 == 0 || found->zombie)
        return NULL;
    return found;
}

static bool slot_is_here(const struct double_slot *slot)
{
    return !slot->cold || slot->fetched || slot->pins > 0;
}

static struct double_slot *region_vacant(struct weir_region *region, struct weir_slot *ret_slot)
{
    uint32_t index = 0;

    while (index < region->slot_count &&
           (region->slots[index].generation % 2 == 1 || region->slots[index].zombie))
        index++;
    if (index == region->slot_count) {
        uint32_t count = region->slot_count == 0 ? 64 : region->slot_count * 2;

        region->slots = realloc(region->slots, count * sizeof(*region->slots));
        WEIR_CHECK(region->slots != NULL);
        memset(region->slots + region->slot_count, 0,
               (count - region->slot_count) * sizeof(*region->slots));
        region->slot_count = count;
    }
    region->slots[index].generation++;
    *ret_slot =
        (struct weir_slot){.index = index + 1, .generation = region->slots[index].generation};
    return &region->slots[index];
}

int weir_region_alloc(struct weir_region *region, size_t bytes, struct weir_label label,
                      struct weir_slot *ret_slot)
{
    struct double_slot *slot;

    if (region->put_result < 0)
        return region->put_result;
    if (bytes > region->item_bytes_max)
        return -EFBIG;
    if (bytes > region->bytes_max - region->live_bytes)
        return -EDQUOT;
    slot = region_vacant(region, ret_slot);
    *slot = (struct double_slot){
        .label = label,
        .data = malloc(bytes > 0 ? bytes : 1),
        .bytes = bytes,
        .generation = ret_slot->generation,
    };
    WEIR_CHECK(slot->data != NULL);
    region->live_count++;
    region->live_bytes += bytes;
    return 0;
}

int weir_region_write(struct weir_region *region, struct weir_slot handle, uint64_t offset,
                      const void *data, size_t bytes)
{
    struct double_slot *slot = region_find(region, handle);

    if (slot == NULL)
        return -ESTALE;
    if (slot->committed || bytes > region->put_bytes_max || offset != slot->written ||
        bytes > slot->bytes - offset)
        return -EINVAL;
    if (region->put_result < 0)
        return region->put_result;
    if (region->writes_left > 0 && --region->writes_left == 0)
        return -EAGAIN;
    memcpy(slot->data + offset, data, bytes);
    slot->written += bytes;
    return 0;
}

int weir_region_commit(struct weir_region *region, struct weir_slot handle)
{
    struct double_slot *slot = region_find(region, handle);

    if (slot == NULL)
        return -ESTALE;
    if (slot->written != slot->bytes)
        return -EINVAL;
    slot->committed = true;
    slot->cold = region->puts_are_cold;
    return 0;
}

int weir_region_alloc_in_place(struct weir_region *region, size_t bytes, size_t alignment,
                               struct weir_label label, struct weir_slot *ret_slot, void **ret_data)
{
    int r;

    WEIR_CHECK(alignment == 0);
    if (bytes > region->put_bytes_max)
        return -EFBIG;
    r = weir_region_alloc(region, bytes, label, ret_slot);
    if (r < 0)
        return r;
    region_find(region, *ret_slot)->written = bytes;
    region->put_count++;
    *ret_data = region_find(region, *ret_slot)->data;
    return 0;
}

int weir_region_put(struct weir_region *region, const void *data, size_t bytes,
                    struct weir_label label, struct weir_slot *ret_slot)
{
    struct double_slot *slot;
    int r;

    if (bytes > region->put_bytes_max)
        return -EFBIG;
    r = weir_region_alloc(region, bytes, label, ret_slot);
    if (r < 0)
        return r;
    slot = region_find(region, *ret_slot);
    if (bytes > 0)
        memcpy(slot->data, data, bytes);
    slot->written = bytes;
    region->put_count++;
    return weir_region_commit(region, *ret_slot);
}

static void region_vacate(struct double_slot *slot)
{
    free(slot->data);
    slot->data = NULL;
    slot->zombie = false;
}

int weir_region_free(struct weir_region *region, struct weir_slot handle)
{
    struct double_slot *slot = region_find(region, handle);

    if (slot == NULL)
        return -ESTALE;
    region->live_count--;
    region->live_bytes -= slot->bytes;
    slot->generation++;
    if (slot->pins > 0)
        slot->zombie = true;
    else
        region_vacate(slot);
    return 0;
}

int weir_region_at(struct weir_region *region, struct weir_slot handle, const void **ret_data,
                   size_t *ret_bytes)
{
    const struct double_slot *slot = region_find(region, handle);

    if (slot == NULL || !slot->committed)
        return -ESTALE;
    if (!slot_is_here(slot))
        return -EAGAIN;
    *ret_data = slot->data;
    if (ret_bytes != NULL)
        *ret_bytes = slot->bytes;
    return 0;
}

int weir_region_pin(struct weir_region *region, struct weir_slot handle, const void **ret_data,
                    size_t *ret_bytes)
{
    struct double_slot *slot = region_find(region, handle);

    if (slot == NULL || !slot->committed)
        return -ESTALE;
    if (!slot_is_here(slot))
        return -EAGAIN;
    if (slot->pins++ == 0)
        region->pinned_bytes += slot->bytes;
    *ret_data = slot->data;
    if (ret_bytes != NULL)
        *ret_bytes = slot->bytes;
    return 0;
}

void weir_region_unpin(struct weir_region *region, struct weir_slot handle)
{
    struct double_slot *slot = &region->slots[handle.index - 1];

    WEIR_CHECK(slot->pins > 0);
    WEIR_CHECK(slot->generation - handle.generation <= 1);
    if (--slot->pins > 0)
        return;
    region->pinned_bytes -= slot->bytes;
    if (slot->zombie)
        region_vacate(slot);
}

int weir_region_slot(const struct weir_region *region, struct weir_slot handle,
                     struct weir_slot_info *ret_info)
{
    const struct double_slot *slot = region_find(region, handle);

    if (slot == NULL)
        return -ESTALE;
    *ret_info = (struct weir_slot_info){
        .bytes = slot->bytes,
        .label = slot->label,
        .resident = slot_is_here(slot),
        .committed = slot->committed,
    };
    return 0;
}

int weir_region_fetch(struct weir_region *region, const struct weir_slot *slots, size_t slot_count,
                      weir_fetch_fn *done, void *context)
{
    uint64_t bytes = region->pinned_bytes;

    WEIR_CHECK(slot_count >= 1 && slot_count <= 1024);
    for (size_t i = 0; i < slot_count; i++) {
        const struct double_slot *slot = region_find(region, slots[i]);

        if (slot != NULL && slot->bytes > region->fetch_bytes_max)
            return -EFBIG;
        bytes += slot != NULL ? slot->bytes : 0;
    }
    if (bytes > region->pinned_bytes_max)
        return -EAGAIN;

    region_forget_fetched(region);
    region->fetch_calls++;
    region->requests =
        realloc(region->requests, (region->request_count + slot_count) * sizeof(*region->requests));
    WEIR_CHECK(region->requests != NULL);
    for (size_t i = 0; i < slot_count; i++)
        region->requests[region->request_count++] =
            (struct double_request){.slot = slots[i], .done = done, .context = context};
    return 0;
}

int weir_region_poll(struct weir_region *region)
{
    size_t count = region->request_count;

    if (region->answers_max > 0 && region->answers_max < count)
        count = region->answers_max;
    region_forget_fetched(region);
    for (size_t i = 0; i < count; i++) {
        size_t index = weir__random_below(&region->seed, count - i);
        struct double_request request = region->requests[index];
        struct double_slot *slot = region_find(region, request.slot);
        int result = slot == NULL ? -ESTALE : region->fetch_result;

        /* What calls back may ask for more: that goes behind those of this poll. */
        region->requests[index] = region->requests[count - i - 1];
        memmove(&region->requests[count - i - 1], &region->requests[count - i],
                (region->request_count - (count - i)) * sizeof(request));
        region->request_count--;
        if (result == 0) {
            slot->fetched = true;
            region->fetched_count++;
        }
        request.done(request.context, request.slot, result);
    }
    return (int)count;
}

void weir_region_stats(const struct weir_region *region, struct weir_region_stats *ret_stats)
{
    *ret_stats = (struct weir_region_stats){
        .item_bytes_max = region->item_bytes_max,
        .put_bytes_max = region->put_bytes_max,
        .fetch_bytes_max = region->fetch_bytes_max,
        .live_bytes = region->live_bytes,
        .slot_count = region->live_count,
        .pinned_bytes = region->pinned_bytes,
    };
}

/* ---- Account ------------------------------------------------------------------ */

void double_account_init(struct weir_account *account)
{
    *account = (struct weir_account){
        .spill_at = UINT64_MAX,
        .wait_at = UINT64_MAX,
        .hard_at = UINT64_MAX,
        .never_at = UINT64_MAX,
        .room_bytes = UINT64_MAX,
    };
}

static void account_add(struct weir_account *account, uint64_t bytes)
{
    account->charged_bytes += bytes;
    if (account->charged_bytes > account->peak_bytes)
        account->peak_bytes = account->charged_bytes;
}

int weir_account_charge(struct weir_account *account, size_t bytes, enum weir_verdict *ret_verdict)
{
    if (bytes > account->never_at)
        return -EINVAL;
    *ret_verdict = WEIR_ADMIT;
    if (account->charged_bytes + bytes > account->wait_at)
        *ret_verdict = WEIR_WAIT;
    else if (account->charged_bytes + bytes > account->spill_at)
        *ret_verdict = WEIR_SPILL;
    if (*ret_verdict != WEIR_ADMIT)
        return 0;
    if (account->flush_next)
        *ret_verdict = WEIR_FLUSH;
    account->flush_next = false;
    account_add(account, bytes);
    return 0;
}

void weir_account_charge_forced(struct weir_account *account, size_t bytes)
{
    account->forced_bytes += bytes;
    account_add(account, bytes);
}

void weir_account_refund(struct weir_account *account, size_t bytes)
{
    WEIR_CHECK(bytes <= account->charged_bytes);
    account->charged_bytes -= bytes;
    account->returned_bytes += bytes;
}

void weir_account_add_reclaimer(struct weir_account *account, struct weir_reclaimer *reclaimer)
{
    WEIR_CHECK(account->reclaimer_count < DOUBLE_RECLAIMERS_MAX);
    reclaimer->account = account;
    account->reclaimers[account->reclaimer_count++] = reclaimer;
}

void weir_account_remove_reclaimer(struct weir_account *account, struct weir_reclaimer *reclaimer)
{
    uint32_t i = 0;

    while (i < account->reclaimer_count && account->reclaimers[i] != reclaimer)
        i++;
    WEIR_CHECK(i < account->reclaimer_count);
    account->reclaimer_count--;
    for (; i < account->reclaimer_count; i++)
        account->reclaimers[i] = account->reclaimers[i + 1];
}

uint64_t double_account_ask(struct weir_account *account, const char *name, uint64_t bytes)
{
    for (uint32_t i = 0; i < account->reclaimer_count; i++) {
        struct weir_reclaimer *reclaimer = account->reclaimers[i];
        uint64_t before = account->returned_bytes;

        if (strcmp(reclaimer->name, name) != 0)
            continue;
        uint64_t promised = reclaimer->reclaim(reclaimer, bytes);
        WEIR_CHECK(account->returned_bytes - before >= promised);
        return promised;
    }
    WEIR_CHECK(false);
    return 0;
}

uint64_t weir_account_flush_bytes(const struct weir_account *account)
{
    return account->flush_bytes;
}

bool weir_account_has_room(const struct weir_account *account, size_t bytes)
{
    return bytes <= account->room_bytes;
}

uint64_t weir_account_delay_ns(const struct weir_account *account)
{
    return account->charged_bytes >= account->hard_at ? UINT64_C(10000000) : 0;
}

static void account_book(void *context, int64_t bytes)
{
    struct weir_account *account = context;

    account->book_bytes += bytes;
    WEIR_CHECK(account->book_bytes >= 0);
    account->charged_bytes += (uint64_t)bytes;
    if (account->charged_bytes > account->peak_bytes)
        account->peak_bytes = account->charged_bytes;
}

struct weir_books weir_account_books(struct weir_account *account)
{
    return (struct weir_books){.charge = account_book, .context = account};
}
