/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BASE_LIST_H
#define WEIR_BASE_LIST_H

/* list - a circular, intrusive, doubly linked list with a sentinel */

#include "base/bits.h"

#include <stdbool.h>

struct weir__list {
    struct weir__list *next;
    struct weir__list *previous;
};

#define WEIR_LIST_FOREACH(link, list)                                                              \
 for (struct weir__list *link = (list)->next; link != (list); link = link->next)

static inline void weir__list_init(struct weir__list *list)
{
    list->next = list;
    list->previous = list;
}

static inline bool weir__list_is_empty(const struct weir__list *list)
{
    return list->next == list;
}

static inline void weir__list_append(struct weir__list *list, struct weir__list *link)
{
    link->previous = list->previous;
    link->next = list;
    list->previous->next = link;
    list->previous = link;
}

/* Afterwards @link is a list of its own: removing twice does no harm. */
static inline void weir__list_remove(struct weir__list *link)
{
    link->previous->next = link->next;
    link->next->previous = link->previous;
    weir__list_init(link);
}

#endif
