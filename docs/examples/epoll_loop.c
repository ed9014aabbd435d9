/* SPDX-License-Identifier: MIT */
#include <weir/worker.h>

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

static bool answered; /* by the other core */

static void receive(struct weir_worker *worker, struct weir_message *message)
{
    if (weir_worker_index(worker) == 0)
        answered = true;
    else if (weir_worker_send(worker, 0, message) < 0)
        abort(); /* a queue of 1024 messages is full of one */
}

/* One turn of an epoll loop that also serves a worker; -1: the foreign descriptor is readable. */
static int turn(int epoll, struct weir_worker *worker)
{
    struct epoll_event event;

    weir_worker_poll(worker, 0);
    int timeout_ms = weir_worker_arm(worker) ? 10 : 0; /* the tick */
    int count = epoll_wait(epoll, &event, 1, timeout_ms);
    return count == 1 && event.data.ptr != worker ? -1 : 0;
}

/* The loop is ours; a message to another core and back comes between what we wait for anyway. */
int main(void)
{
    struct weir_message message = {.receive = receive};
    struct weir_mesh *mesh = NULL;
    struct weir_worker *mine = NULL;
    struct weir_worker *other = NULL;
    struct epoll_event event = {.events = EPOLLIN};
    int ends[2];
    int epoll = epoll_create1(EPOLL_CLOEXEC);

    if (epoll < 0 || pipe(ends) < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event) < 0)
        return 1;

    int r = weir_mesh_create(2, 0, &mesh);
    if (r == 0)
        r = weir_worker_attach(&(struct weir_worker_config){.mesh = mesh, .index = 0}, &mine);
    if (r == 0)
        r = weir_worker_start(&(struct weir_worker_config){.mesh = mesh, .index = 1}, &other);
    if (r == 0) {
        event.data.ptr = mine;
        r = epoll_ctl(epoll, EPOLL_CTL_ADD, weir_worker_fd(mine), &event);
    }

    if (r == 0)
        r = weir_worker_send(mine, 1, &message);
    while (r == 0 && !answered)
        r = turn(epoll, mine);
    if (r == 0)
        r = write(ends[1], "x", 1) == 1 ? 0 : 1;
    while (r == 0)
        r = turn(epoll, mine);

    weir_worker_stop(other);
    weir_worker_stop(mine);
    weir_mesh_destroy(mesh);
    return r == -EOPNOTSUPP ? 77 : r == -1 && answered ? 0 : 1; /* 77: io_uring is forbidden */
}
