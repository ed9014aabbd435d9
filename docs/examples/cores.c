/* SPDX-License-Identifier: MIT */
#include <weir/worker.h>

#include <errno.h>
#include <stdlib.h>

struct ping {
    struct weir_message message; /* first: a message is its ping */
};

static bool returned; /* of the first core, as all that core 0 touches */

static void receive(struct weir_worker *worker, struct weir_message *message)
{
    if (weir_worker_index(worker) == 0)
        returned = true;
    else if (weir_worker_send(worker, 0, message) < 0)
        abort(); /* a queue of 1024 messages is full of one */
}

/* Two cores: this thread is the first, weir makes the second, and a message goes there and back. */
int main(void)
{
    struct ping ping = {.message = {.receive = receive}};
    struct weir_mesh *mesh = NULL;
    struct weir_worker *mine = NULL;
    struct weir_worker *other = NULL;

    int r = weir_mesh_create(2, 0, &mesh);
    if (r == 0) {
        struct weir_worker_config config = {.name = "first", .mesh = mesh, .index = 0};
        r = weir_worker_attach(&config, &mine);
    }
    if (r == 0) {
        struct weir_worker_config config = {.name = "second", .mesh = mesh, .index = 1};
        r = weir_worker_start(&config, &other);
    }

    if (r == 0)
        r = weir_worker_send(mine, 1, &ping.message);
    while (r == 0 && !returned)
        weir_worker_poll(mine, 10000000);

    weir_worker_stop(other);
    weir_worker_stop(mine);
    weir_mesh_destroy(mesh);
    return r == -EOPNOTSUPP ? 77 : r == 0 ? 0 : 1; /* 77: the kernel forbids io_uring */
}
