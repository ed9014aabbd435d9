/* SPDX-License-Identifier: MIT */
/*
 * mailbox - passing messages without a lock, and waking only who sleeps
 *
 *      sender                               receiver
 *      messages[tail] = m                   take messages[head]
 *      tail + 1      -- release/acquire ->  tail
 *      head          <- acquire/release --  head + 1
 *
 * Indexes run freely and are masked: full is tail - head == capacity. Each side
 * keeps the other's index as it last saw it; as long as that copy allows one
 * more step, the other's line is not touched.
 *
 * Going to sleep and leaving a message cross each other. Both sides write, put a
 * full fence, and then read what the other writes:
 *
 *      sender                               receiver
 *      A1  tail + 1                         B1  sleep_count odd
 *          fence                                fence
 *      A2  sleep_count odd? wake it         B2  all queues empty? sleep
 *
 * Fences are totally ordered. If the sender's is first, B2 sees A1 and the
 * receiver does not sleep; if the receiver's is first, A2 sees B1 and the sender
 * wakes it. In both cases the message is seen. The same holds with `woken` in
 * place of tail. The wake itself cannot be lost: it is a completion in the
 * receiver's ring, and the kernel does not sleep over one.
 *
 *   I1  tail - head <= capacity
 *   I2  a queue is pushed by one thread and popped by one thread
 *   I3  sleep_count is even whenever the owner's code runs outside of its sleep
 *   I4  a sender wakes a receiver at most once per sleep: it remembers the count
 *
 * Each sender wakes on its own account instead of taking the flag from the
 * others: one that is stopped between the flag and the wake delays nobody
 * else's message. The price is at most one doorbell per sender and sleep.
 */
#include "worker/mailbox.h"

#include "base/bits.h"
#include "base/check.h"
#include "base/fence.h"
#include "base/heap.h"
#include "base/sys.h"

#include <errno.h>
#include <sys/mman.h>

#define MAILBOX_WORKER_COUNT_MAX 1024
#define MAILBOX_MESSAGES_DEFAULT 1024
#define MAILBOX_MESSAGES_MAX     (UINT32_C(1) << 20)

_Static_assert(sizeof(struct weir__port) % MAILBOX_APART == 0, "ports do not share lines");
_Static_assert(sizeof(struct weir__queue) % MAILBOX_APART == 0, "queues do not share lines");

/* ---- Ports -------------------------------------------------------------- */

int weir__port_init(struct weir__port *port)
{
    int fd;
    int r = weir__sys_eventfd(&fd);

    if (r < 0)
        return r;
    *port = (struct weir__port){.ring_fd = -1, .event_fd = fd};
    return 0;
}

void weir__port_deinit(struct weir__port *port)
{
    WEIR_CHECK(port->sleep_count % 2 == 0); /* I3: a worker that sleeps has not stopped */
    weir__sys_close(port->ring_fd);
    weir__sys_close(port->event_fd);
}

int weir__port_attach(struct weir__port *port, int ring_fd)
{
    int fd;
    int r = weir__sys_duplicate(ring_fd, port->ring_fd, &fd);

    if (r < 0)
        return r;
    __atomic_store_n(&port->ring_fd, fd, __ATOMIC_RELAXED); /* seen before it first sleeps */
    __atomic_store_n(&port->stopped, 0, __ATOMIC_RELAXED);
    return 0;
}

void weir__port_detach(struct weir__port *port)
{
    WEIR_CHECK(port->sleep_count % 2 == 0); /* I3 */
    __atomic_store_n(&port->stopped, 1, __ATOMIC_RELAXED);
}

void weir__port_lie_down(struct weir__port *port)
{
    WEIR_ASSERT(port->sleep_count % 2 == 0); /* I3 */
    __atomic_store_n(&port->sleep_count, port->sleep_count + 1, __ATOMIC_RELEASE);
    weir__fence();
}

void weir__port_get_up(struct weir__port *port)
{
    WEIR_ASSERT(port->sleep_count % 2 == 1); /* I3 */
    __atomic_store_n(&port->sleep_count, port->sleep_count + 1, __ATOMIC_RELAXED);
}

uint64_t weir__port_sleep(const struct weir__port *port)
{
    uint64_t count = __atomic_load_n(&port->sleep_count, __ATOMIC_ACQUIRE);

    return count % 2 == 1 ? count : 0;
}

bool weir__port_call(struct weir__port *port)
{
    __atomic_store_n(&port->woken, 1, __ATOMIC_RELEASE);
    weir__fence();
    return weir__port_sleep(port) != 0;
}

bool weir__port_was_called(const struct weir__port *port)
{
    return __atomic_load_n(&port->woken, __ATOMIC_RELAXED) != 0;
}

void weir__port_take_call(struct weir__port *port)
{
    /* What the caller did before it called is seen by the turn that follows. */
    if (weir__port_was_called(port))
        (void)__atomic_exchange_n(&port->woken, 0, __ATOMIC_ACQ_REL);
}

/* ---- Queues ------------------------------------------------------------- */

static size_t mesh_index(const struct weir_mesh *mesh, uint32_t sender, uint32_t receiver)
{
    WEIR_ASSERT(sender < mesh->worker_count);
    WEIR_ASSERT(receiver < mesh->worker_count);
    return (size_t)receiver * mesh->worker_count + sender;
}

bool weir__mesh_push(struct weir_mesh *mesh, uint32_t sender, uint32_t receiver,
                     struct weir_message *message)
{
    size_t index = mesh_index(mesh, sender, receiver);
    struct weir__queue *queue = &mesh->queues[index];
    struct weir_message **messages = &mesh->messages[index * mesh->messages_max];
    uint32_t tail = queue->tail;

    if (tail - queue->head_known == mesh->messages_max) {
        queue->head_known = __atomic_load_n(&queue->head, __ATOMIC_ACQUIRE);
        WEIR_ASSERT(tail - queue->head_known <= mesh->messages_max); /* I1 */
        if (tail - queue->head_known == mesh->messages_max)
            return false;
    }
    messages[tail & (mesh->messages_max - 1)] = message;
    __atomic_store_n(&queue->tail, tail + 1, __ATOMIC_RELEASE);
    return true;
}

struct weir_message *weir__mesh_pop(struct weir_mesh *mesh, uint32_t sender, uint32_t receiver)
{
    size_t index = mesh_index(mesh, sender, receiver);
    struct weir__queue *queue = &mesh->queues[index];
    struct weir_message **messages = &mesh->messages[index * mesh->messages_max];
    uint32_t head = queue->head;

    if (head == queue->tail_known) {
        queue->tail_known = __atomic_load_n(&queue->tail, __ATOMIC_ACQUIRE);
        WEIR_ASSERT(queue->tail_known - head <= mesh->messages_max); /* I1 */
        if (head == queue->tail_known)
            return NULL;
    }

    struct weir_message *message = messages[head & (mesh->messages_max - 1)];
    __atomic_store_n(&queue->head, head + 1, __ATOMIC_RELEASE);
    return message;
}

bool weir__mesh_is_quiet(const struct weir_mesh *mesh, uint32_t receiver)
{
    for (uint32_t sender = 0; sender < mesh->worker_count; sender++) {
        const struct weir__queue *queue = &mesh->queues[mesh_index(mesh, sender, receiver)];
        if (queue->head != __atomic_load_n(&queue->tail, __ATOMIC_RELAXED))
            return false;
    }
    return true;
}

uint64_t weir__mesh_bytes(const struct weir_mesh *mesh)
{
    uint64_t queue_bytes =
        sizeof(struct weir__queue) + mesh->messages_max * sizeof(struct weir_message *);

    return mesh->worker_count * queue_bytes + sizeof(struct weir__port);
}

/* ---- Lifecycle ---------------------------------------------------------- */

static uint32_t mailbox_round_up(uint32_t count)
{
    return count <= 1 ? 1 : UINT32_C(1) << (weir__highest_bit(count - 1) + 1);
}

static size_t mesh_queue_bytes(const struct weir_mesh *mesh)
{
    return (size_t)mesh->worker_count * mesh->worker_count * sizeof(*mesh->queues);
}

static size_t mesh_message_bytes(const struct weir_mesh *mesh)
{
    return (size_t)mesh->worker_count * mesh->worker_count * mesh->messages_max *
           sizeof(*mesh->messages);
}

static size_t mesh_port_bytes(const struct weir_mesh *mesh)
{
    return mesh->worker_count * sizeof(*mesh->ports);
}

/* Zeroed, and without memory until it is touched: by the core that sends, on its node. */
static int mesh_map(size_t bytes, void **ret_data)
{
    return weir__sys_mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, ret_data);
}

static int mesh_init(struct weir_mesh *mesh)
{
    void *data;

    int r = mesh_map(mesh_queue_bytes(mesh), &data);
    if (r < 0)
        return r;
    mesh->queues = data;
    r = mesh_map(mesh_message_bytes(mesh), &data);
    if (r < 0)
        return r;
    mesh->messages = data;
    r = mesh_map(mesh_port_bytes(mesh), &data);
    if (r < 0)
        return r;
    mesh->ports = data;

    while (mesh->port_count < mesh->worker_count) {
        r = weir__port_init(&mesh->ports[mesh->port_count]);
        if (r < 0)
            return r;
        mesh->port_count++;
    }
    return 0;
}

int weir_mesh_create(uint32_t worker_count, uint32_t messages_max, struct weir_mesh **ret_mesh)
{
    if (worker_count == 0 || worker_count > MAILBOX_WORKER_COUNT_MAX)
        return -EINVAL;
    if (messages_max > MAILBOX_MESSAGES_MAX)
        return -EINVAL;

    struct weir_mesh *mesh = weir__heap_alloc(NULL, sizeof(*mesh));
    if (mesh == NULL)
        return -ENOMEM;
    mesh->worker_count = worker_count;
    mesh->messages_max =
        mailbox_round_up(messages_max != 0 ? messages_max : MAILBOX_MESSAGES_DEFAULT);

    int r = mesh_init(mesh);
    if (r < 0) {
        weir_mesh_destroy(mesh);
        return r;
    }
    *ret_mesh = mesh;
    return 0;
}

void weir_mesh_destroy(struct weir_mesh *mesh)
{
    if (mesh == NULL)
        return;

    for (uint32_t i = 0; i < mesh->port_count; i++)
        weir__port_deinit(&mesh->ports[i]);
    weir__sys_munmap(mesh->ports, mesh_port_bytes(mesh));
    weir__sys_munmap(mesh->messages, mesh_message_bytes(mesh));
    weir__sys_munmap(mesh->queues, mesh_queue_bytes(mesh));
    weir__heap_free(NULL, mesh, sizeof(*mesh));
}
