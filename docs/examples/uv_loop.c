/* SPDX-License-Identifier: MIT */
#include <weir/worker.h>

#include <errno.h>
#include <stdlib.h>
#include <uv.h>

/* A worker in a libuv loop: polled when its descriptor or the tick says so, armed before each sleep. */
struct embedded {
    struct weir_worker *worker;
    uv_poll_t readable;
    uv_timer_t tick;
    uv_prepare_t before_sleep;
    uv_idle_t busy; /* while it runs the loop does not sleep */
};

static bool answered; /* by the other core */

static void receive(struct weir_worker *worker, struct weir_message *message)
{
    if (weir_worker_index(worker) == 0)
        answered = true;
    else if (weir_worker_send(worker, 0, message) < 0)
        abort(); /* a queue of 1024 messages is full of one */
}

static void on_readable(uv_poll_t *handle, int status, int events)
{
    (void)handle; /* on_sleep polls before the next sleep */
    (void)status;
    (void)events;
}

static void on_tick(uv_timer_t *handle)
{
    (void)handle;
}

static void on_busy(uv_idle_t *handle)
{
    (void)handle;
}

static void on_sleep(uv_prepare_t *handle)
{
    struct embedded *embedded = handle->data;

    weir_worker_poll(embedded->worker, 0);
    if (answered)
        uv_stop(handle->loop);
    if (weir_worker_arm(embedded->worker))
        uv_idle_stop(&embedded->busy);
    else
        uv_idle_start(&embedded->busy, on_busy);
}

static void embed(uv_loop_t *loop, struct embedded *embedded)
{
    uv_poll_init(loop, &embedded->readable, weir_worker_fd(embedded->worker));
    uv_poll_start(&embedded->readable, UV_READABLE, on_readable);
    uv_timer_init(loop, &embedded->tick);
    uv_timer_start(&embedded->tick, on_tick, 10, 10);
    uv_idle_init(loop, &embedded->busy);
    uv_prepare_init(loop, &embedded->before_sleep);
    embedded->before_sleep.data = embedded;
    uv_prepare_start(&embedded->before_sleep, on_sleep);
}

static void lift(uv_loop_t *loop, struct embedded *embedded)
{
    uv_close((uv_handle_t *)&embedded->readable, NULL);
    uv_close((uv_handle_t *)&embedded->tick, NULL);
    uv_close((uv_handle_t *)&embedded->before_sleep, NULL);
    uv_close((uv_handle_t *)&embedded->busy, NULL);
    uv_run(loop, UV_RUN_DEFAULT);
}

int main(void)
{
    struct weir_message message = {.receive = receive};
    struct embedded embedded = {.worker = NULL};
    struct weir_mesh *mesh = NULL;
    struct weir_worker *other = NULL;
    uv_loop_t loop;

    int r = uv_loop_init(&loop);
    if (r == 0)
        r = weir_mesh_create(2, 0, &mesh);
    if (r == 0)
        r = weir_worker_attach(&(struct weir_worker_config){.mesh = mesh, .index = 0},
                               &embedded.worker);
    if (r == 0)
        r = weir_worker_start(&(struct weir_worker_config){.mesh = mesh, .index = 1}, &other);

    if (r == 0)
        r = weir_worker_send(embedded.worker, 1, &message);
    if (r == 0) {
        embed(&loop, &embedded);
        uv_run(&loop, UV_RUN_DEFAULT);
        lift(&loop, &embedded);
    }

    weir_worker_stop(other);
    weir_worker_stop(embedded.worker);
    weir_mesh_destroy(mesh);
    uv_loop_close(&loop);
    return r == -EOPNOTSUPP ? 77 : r == 0 && answered ? 0 : 1; /* 77: io_uring is forbidden */
}
