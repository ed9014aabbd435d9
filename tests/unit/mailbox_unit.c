/* SPDX-License-Identifier: MIT */
#include "worker/mailbox.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

static struct weir_mesh *mesh_new(uint32_t worker_count, uint32_t messages_max)
{
    struct weir_mesh *mesh = NULL;

    assert_int_equal(weir_mesh_create(worker_count, messages_max, &mesh), 0);
    assert_non_null(mesh);
    return mesh;
}

static bool event_is_set(int fd)
{
    struct pollfd entry = {.fd = fd, .events = POLLIN};

    return poll(&entry, 1, 0) == 1;
}

static void mesh_refuses_nonsense(void **state)
{
    struct weir_mesh *mesh = NULL;

    (void)state;
    assert_int_equal(weir_mesh_create(0, 0, &mesh), -EINVAL);
    assert_int_equal(weir_mesh_create(1025, 0, &mesh), -EINVAL);
    assert_int_equal(weir_mesh_create(2, (1u << 20) + 1, &mesh), -EINVAL);
    assert_null(mesh);
    weir_mesh_destroy(NULL);
}

static void mesh_rounds_up(void **state)
{
    static const uint32_t cases[][2] = {{0, 1024}, {1, 1},       {2, 2},
                                        {3, 4},    {1000, 1024}, {1025, 2048}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct weir_mesh *mesh = mesh_new(1, cases[i][0]);
        assert_int_equal(mesh->messages_max, cases[i][1]);
        weir_mesh_destroy(mesh);
    }
}

static void queue_is_first_in_first_out(void **state)
{
    struct weir_mesh *mesh = mesh_new(2, 4);
    struct weir_message messages[64];
    uint32_t in = 0;
    uint32_t out = 0;

    (void)state;
    /* All fill grades, many times around. */
    for (uint32_t round = 0; round < 1000; round++) {
        uint32_t burst = round % 5;
        for (uint32_t i = 0; i < burst; i++)
            assert_true(weir__mesh_push(mesh, 0, 1, &messages[in++ % 64]));
        for (uint32_t i = 0; i < burst; i++)
            assert_ptr_equal(weir__mesh_pop(mesh, 0, 1), &messages[out++ % 64]);
        assert_null(weir__mesh_pop(mesh, 0, 1));
    }
    weir_mesh_destroy(mesh);
}

static void full_queue_refuses(void **state)
{
    struct weir_mesh *mesh = mesh_new(2, 4);
    struct weir_message messages[5];

    (void)state;
    for (int i = 0; i < 4; i++)
        assert_true(weir__mesh_push(mesh, 1, 0, &messages[i]));
    assert_false(weir__mesh_push(mesh, 1, 0, &messages[4]));
    assert_ptr_equal(weir__mesh_pop(mesh, 1, 0), &messages[0]);
    assert_true(weir__mesh_push(mesh, 1, 0, &messages[4]));
    assert_false(weir__mesh_push(mesh, 1, 0, &messages[0]));
    for (int i = 1; i < 5; i++)
        assert_ptr_equal(weir__mesh_pop(mesh, 1, 0), &messages[i]);
    assert_null(weir__mesh_pop(mesh, 1, 0));
    weir_mesh_destroy(mesh);
}

static void indexes_wrap(void **state)
{
    struct weir_mesh *mesh = mesh_new(1, 4);
    struct weir_message messages[4];

    (void)state;
    mesh->queues[0] =
        (struct weir__queue){UINT32_MAX - 1, UINT32_MAX - 1, UINT32_MAX - 1, UINT32_MAX - 1};
    for (int i = 0; i < 4; i++)
        assert_true(weir__mesh_push(mesh, 0, 0, &messages[i]));
    assert_false(weir__mesh_push(mesh, 0, 0, &messages[0]));
    for (int i = 0; i < 4; i++)
        assert_ptr_equal(weir__mesh_pop(mesh, 0, 0), &messages[i]);
    assert_null(weir__mesh_pop(mesh, 0, 0));
    weir_mesh_destroy(mesh);
}

static void pairs_do_not_mix(void **state)
{
    struct weir_mesh *mesh = mesh_new(3, 2);
    struct weir_message messages[3][3];

    (void)state;
    for (uint32_t from = 0; from < 3; from++)
        for (uint32_t to = 0; to < 3; to++)
            assert_true(weir__mesh_push(mesh, from, to, &messages[from][to]));
    for (uint32_t to = 0; to < 3; to++) {
        assert_false(weir__mesh_is_quiet(mesh, to));
        for (uint32_t from = 0; from < 3; from++) {
            assert_false(weir__mesh_is_quiet(mesh, to));
            assert_ptr_equal(weir__mesh_pop(mesh, from, to), &messages[from][to]);
        }
        assert_true(weir__mesh_is_quiet(mesh, to));
    }
    weir_mesh_destroy(mesh);
}

static void sleeper_is_seen(void **state)
{
    struct weir_mesh *mesh = mesh_new(1, 2);
    struct weir__port *port = &mesh->ports[0];

    (void)state;
    assert_int_equal(weir__port_sleep(port), 0);
    weir__port_lie_down(port);
    uint64_t first = weir__port_sleep(port);
    assert_int_not_equal(first, 0);
    weir__port_get_up(port);
    assert_int_equal(weir__port_sleep(port), 0);
    weir__port_lie_down(port);
    assert_int_not_equal(weir__port_sleep(port), 0);
    assert_int_not_equal(weir__port_sleep(port), first);
    weir__port_get_up(port);
    weir_mesh_destroy(mesh);
}

static void call_stays_until_it_is_taken(void **state)
{
    struct weir_mesh *mesh = mesh_new(1, 2);
    struct weir__port *port = &mesh->ports[0];

    (void)state;
    assert_false(weir__port_call(port)); /* awake: no bell */
    assert_true(weir__port_was_called(port));
    weir__port_lie_down(port);
    assert_true(weir__port_was_called(port));
    weir__port_get_up(port);
    weir__port_take_call(port);
    assert_false(weir__port_was_called(port));
    weir__port_lie_down(port);
    assert_true(weir__port_call(port));
    weir__port_get_up(port);
    assert_false(event_is_set(port->event_fd)); /* ringing is the caller's */
    weir_mesh_destroy(mesh);
}

static void descriptor_of_a_port_stays_ours(void **state)
{
    struct weir_mesh *mesh = mesh_new(1, 2);
    struct weir__port *port = &mesh->ports[0];

    (void)state;
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(weir__port_attach(port, fd), 0);
    int number = port->ring_fd;
    assert_int_not_equal(number, fd);
    close(fd);
    weir__port_detach(port);
    assert_int_equal(port->stopped, 1);
    assert_int_not_equal(fcntl(number, F_GETFD), -1);

    /* A second life has the same number. */
    fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_int_equal(weir__port_attach(port, fd), 0);
    assert_int_equal(port->ring_fd, number);
    assert_int_equal(port->stopped, 0);
    assert_int_equal(fcntl(number, F_GETFD), FD_CLOEXEC);
    close(fd);
    weir_mesh_destroy(mesh);
    assert_int_equal(fcntl(number, F_GETFD), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        {"a mesh refuses nonsense", mesh_refuses_nonsense, NULL, NULL, NULL},
        {"a queue's length is rounded up", mesh_rounds_up, NULL, NULL, NULL},
        {"a queue is first in, first out", queue_is_first_in_first_out, NULL, NULL, NULL},
        {"a full queue refuses and keeps what it has", full_queue_refuses, NULL, NULL, NULL},
        {"indexes wrap around", indexes_wrap, NULL, NULL, NULL},
        {"pairs do not mix", pairs_do_not_mix, NULL, NULL, NULL},
        {"a sleeper is seen, each sleep apart", sleeper_is_seen, NULL, NULL, NULL},
        {"a call stays until it is taken", call_stays_until_it_is_taken, NULL, NULL, NULL},
        {"the descriptor of a port stays ours", descriptor_of_a_port_stays_ours, NULL, NULL, NULL},
    };

    return cmocka_run_group_tests_name("mailbox", tests, NULL, NULL);
}
