/* SPDX-License-Identifier: MIT */
/*
 * main - weir-server from its command line to its end
 *
 * Everything that can be wrong with the settings is found before a thread runs:
 * a wrong word or number ends in status 2, a machine that cannot carry it in
 * status 1, each with one line that says what. Then the main thread waits for a
 * signal, and looks at the machine once a second meanwhile.
 */
#include <argp.h>
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <malloc.h>
#include <netdb.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "shard.h"

#define MIB                 (UINT64_C(1) << 20)
#define WORKER_BYTES_MIN    (24 * MIB) /* region, tables, buffers of one core */
#define SPILL_BYTES_MIN     (16 * MIB) /* of one core */
#define SPILL_BYTES_MAX     (UINT64_C(1) << 40)
#define CLIENT_BYTES        UINT64_C(16384)
#define CLIENT_MAX          10000
#define SOFT_PERCENT_MIN    20
#define SPILL_PERCENT_MAX   98
#define LEVEL_POINTS        2 /* between soft, spill and the limit */
#define MAIN_MMAP_THRESHOLD (64 * 1024)
#define MAIN_WORKERS_MAX    256
#define MAIN_LISTEN_BACKLOG 511
#define MAIN_EXIT_USAGE     2

const char *argp_program_version = "weir-server " WEIR_VERSION;
const char *argp_program_bug_address = NULL;
error_t argp_err_exit_status = MAIN_EXIT_USAGE;

struct settings {
    struct server_config server;
    bool has_workers;
    bool has_client_max;
};

static _Noreturn void __attribute__((format(printf, 1, 2))) die(const char *format, ...)
{
    va_list arguments;

    fputs("weir-server: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(EXIT_FAILURE);
}

/* What shares of it are taken of. */
static uint64_t memory_of_machine(void)
{
    uint64_t bytes = weir_governor_machine_bytes();

    if (bytes == 0)
        die("nobody says how much memory this machine has: give --memory in bytes");
    return bytes;
}

/* ---- Words and numbers ----------------------------------------------------------- */

/* Decimal digits from @text on, at least one; what follows is in *ret_rest. */
static bool read_digits(const char *text, uint64_t *ret_value, const char **ret_rest)
{
    uint64_t value = 0;

    if (*text < '0' || *text > '9')
        return false;
    for (; *text >= '0' && *text <= '9'; text++) {
        const unsigned digit = (unsigned)(*text - '0');

        if (value > (UINT64_MAX - digit) / 10)
            return false;
        value = value * 10 + digit;
    }
    *ret_value = value;
    *ret_rest = text;
    return true;
}

/* 64m, 1g, 512k, 1048576, or 50% of @whole. */
static bool read_bytes(const char *text, uint64_t whole, uint64_t *ret_bytes)
{
    uint64_t value;
    uint64_t unit = 1;

    if (!read_digits(text, &value, &text))
        return false;
    if (text[0] == '%' && text[1] == '\0') {
        if (value == 0 || value > 100)
            return false;
        *ret_bytes = whole / 100 * value;
        return true;
    }
    switch (text[0]) {
    case '\0':
        break;
    case 'k':
    case 'K':
        unit = UINT64_C(1) << 10;
        break;
    case 'm':
    case 'M':
        unit = UINT64_C(1) << 20;
        break;
    case 'g':
    case 'G':
        unit = UINT64_C(1) << 30;
        break;
    case 't':
    case 'T':
        unit = UINT64_C(1) << 40;
        break;
    default:
        return false;
    }
    if (unit > 1 && text[1] != '\0')
        return false;
    if (value > UINT64_MAX / unit)
        return false;
    *ret_bytes = value * unit;
    return true;
}

static bool read_number(const char *text, uint64_t low, uint64_t high, uint64_t *ret_value)
{
    const char *rest;

    return read_digits(text, ret_value, &rest) && *rest == '\0' && *ret_value >= low &&
           *ret_value <= high;
}

enum key {
    KEY_BIND = 256,
    KEY_PORT,
    KEY_WORKERS,
    KEY_MEMORY,
    KEY_SOFT,
    KEY_SPILL,
    KEY_SPILL_DIR,
    KEY_SPILL_MAX,
    KEY_WAIT_MAX,
    KEY_MAX_CLIENTS,
};

/* Kept until all words were read: per cent of the disk needs the directory. */
static const char *spill_max_text = "8g";

static error_t parse_option(int key, char *text, struct argp_state *state)
{
    struct settings *settings = state->input;
    struct server_config *config = &settings->server;
    uint64_t value = 0;

    switch (key) {
    case KEY_BIND:
        config->address = text;
        return 0;
    case KEY_PORT:
        if (!read_number(text, 0, 65535, &value))
            argp_error(state, "--port is a number from 0 to 65535, not '%s'", text);
        config->port = (uint16_t)value;
        return 0;
    case KEY_WORKERS:
        if (!read_number(text, 1, MAIN_WORKERS_MAX, &value))
            argp_error(state, "--workers is a number from 1 to %d, not '%s'", MAIN_WORKERS_MAX,
                       text);
        config->worker_count = (uint32_t)value;
        settings->has_workers = true;
        return 0;
    case KEY_MEMORY:
        if (!read_bytes(text, strchr(text, '%') != NULL ? memory_of_machine() : 0,
                        &config->memory_bytes) ||
            config->memory_bytes == 0)
            argp_error(state, "--memory is like 64m, 1g or 50%%, not '%s'", text);
        return 0;
    case KEY_SOFT:
        if (!read_number(text, SOFT_PERCENT_MIN, SPILL_PERCENT_MAX - LEVEL_POINTS, &value))
            argp_error(state, "--soft is per cent of --memory, from %d to %d, not '%s'",
                       SOFT_PERCENT_MIN, SPILL_PERCENT_MAX - LEVEL_POINTS, text);
        config->soft_percent = (uint32_t)value;
        return 0;
    case KEY_SPILL:
        if (!read_number(text, SOFT_PERCENT_MIN + LEVEL_POINTS, SPILL_PERCENT_MAX, &value))
            argp_error(state, "--spill is per cent of --memory, from %d to %d, not '%s'",
                       SOFT_PERCENT_MIN + LEVEL_POINTS, SPILL_PERCENT_MAX, text);
        config->spill_percent = (uint32_t)value;
        return 0;
    case KEY_SPILL_DIR:
        config->spill_directory = text;
        return 0;
    case KEY_SPILL_MAX:
        if (!read_bytes(text, 100, &value))
            argp_error(state, "--spill-max is like 500m, 8g or 50%%, not '%s'", text);
        spill_max_text = text;
        return 0;
    case KEY_WAIT_MAX:
        if (!read_number(text, 0, 86400000, &config->wait_ms))
            argp_error(state, "--wait-max is milliseconds, at most a day, not '%s'", text);
        return 0;
    case KEY_MAX_CLIENTS:
        if (!read_number(text, 1, 1000000, &value))
            argp_error(state, "--max-clients is a number from 1 to 1000000, not '%s'", text);
        config->client_max = (uint32_t)value;
        settings->has_client_max = true;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "what is '%s'? settings begin with --", text);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_option options[] = {
    {"bind", KEY_BIND, "ADDRESS", 0, "Listen on this address (127.0.0.1)", 0},
    {"port", KEY_PORT, "PORT", 0, "Listen on this port; 0: any (6380)", 0},
    {"workers", KEY_WORKERS, "COUNT", 0,
     "Cores to run on (one per core this process may use, as far as the memory goes)", 0},
    {"memory", KEY_MEMORY, "BYTES", 0,
     "The limit: 64m, 1g, or per cent of what the machine or cgroup has (60%)", 0},
    {"soft", KEY_SOFT, "PERCENT", 0,
     "Of the limit: above it values go to files, and who writes is slowed down (80)", 0},
    {"spill", KEY_SPILL, "PERCENT", 0, "Of the limit: above it new values go there at once (90)",
     0},
    {"spill-dir", KEY_SPILL_DIR, "DIRECTORY", 0,
     "Where values go that memory has no room for (/var/tmp)", 0},
    {"spill-max", KEY_SPILL_MAX, "BYTES", 0,
     "At most this much there: 8g, or per cent of that file system (8g)", 0},
    {"wait-max", KEY_WAIT_MAX, "MS", 0, "A write waits at most this long for memory (5000)", 0},
    {"max-clients", KEY_MAX_CLIENTS, "COUNT", 0,
     "Connections at once (10000, or what an eighth of the memory has room for)", 0},
    {0},
};

static const struct argp argp = {
    .options = options,
    .parser = parse_option,
    .doc = "A server for keys and ordered streams that stays under its memory limit; what has no "
           "room runs over into files. Speaks the protocol of Redis.",
};

/* ---- Machine --------------------------------------------------------------------- */

static uint32_t allowed_cpus(uint32_t *ret_cpus, uint32_t cpu_max)
{
    cpu_set_t set;
    uint32_t count = 0;

    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof(set), &set) < 0)
        die("which cores may be used: %s", strerror(errno));
    for (uint32_t cpu = 0; cpu < CPU_SETSIZE && count < cpu_max; cpu++)
        if (CPU_ISSET(cpu, &set))
            ret_cpus[count++] = cpu;
    return count;
}

static void prepare_directory(const char *path)
{
    struct stat stat_of;
    struct statfs disk;

    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        die("--spill-dir %s: %s", path, strerror(errno));
    if (stat(path, &stat_of) < 0)
        die("--spill-dir %s: %s", path, strerror(errno));
    if (!S_ISDIR(stat_of.st_mode))
        die("--spill-dir %s: not a directory", path);
    if (access(path, W_OK | X_OK) < 0 || statfs(path, &disk) < 0)
        die("--spill-dir %s: %s", path, strerror(errno));
    if (disk.f_type == TMPFS_MAGIC || disk.f_type == RAMFS_MAGIC)
        die("--spill-dir %s: is on tmpfs, whose files are memory", path);
}

static uint64_t disk_bytes(const char *path)
{
    struct statvfs stat_of;

    if (statvfs(path, &stat_of) < 0)
        die("--spill-dir %s: %s", path, strerror(errno));
    return (uint64_t)stat_of.f_blocks * stat_of.f_frsize;
}

static void settle_memory(struct settings *settings, uint32_t cpu_count)
{
    struct server_config *config = &settings->server;
    const uint64_t machine_bytes = weir_governor_machine_bytes();
    const uint64_t affordable = config->memory_bytes / WORKER_BYTES_MIN;
    uint32_t wanted = settings->has_workers ? config->worker_count : cpu_count;

    if (config->memory_bytes < WORKER_BYTES_MIN) {
        fprintf(stderr, "weir-server: --memory %" PRIu64 ": at least 24m\n", config->memory_bytes);
        exit(MAIN_EXIT_USAGE);
    }
    if (machine_bytes > 0 && config->memory_bytes > machine_bytes)
        fprintf(stderr,
                "weir-server: --memory is more than the machine or its cgroup has (%" PRIu64
                " bytes)\n",
                machine_bytes);
    if (wanted > affordable) {
        fprintf(stderr,
                "weir-server: %u workers instead of %u: each needs 24 MiB of the memory limit\n",
                (unsigned)affordable, wanted);
        wanted = (uint32_t)affordable;
    }
    config->worker_count = wanted;
    if (!settings->has_client_max) {
        const uint64_t room = config->memory_bytes / 8 / CLIENT_BYTES;

        config->client_max = room < CLIENT_MAX ? (uint32_t)room : CLIENT_MAX;
    }
}

/* The governor would refuse them too, but not say which. */
static void settle_levels(const struct server_config *config)
{
    if (config->soft_percent + LEVEL_POINTS <= config->spill_percent)
        return;
    fprintf(stderr,
            "weir-server: --soft %" PRIu32 " is not at least %d below --spill %" PRIu32 "\n",
            config->soft_percent, LEVEL_POINTS, config->spill_percent);
    exit(MAIN_EXIT_USAGE);
}

static void settle_spill(struct server_config *config)
{
    prepare_directory(config->spill_directory);
    if (!read_bytes(spill_max_text, disk_bytes(config->spill_directory), &config->spill_bytes))
        abort(); /* it was read before */
    if (config->spill_bytes / config->worker_count < SPILL_BYTES_MIN) {
        fprintf(stderr, "weir-server: --spill-max: at least 16m for each of %u workers\n",
                config->worker_count);
        exit(MAIN_EXIT_USAGE);
    }
    if (config->spill_bytes / config->worker_count > SPILL_BYTES_MAX)
        config->spill_bytes = SPILL_BYTES_MAX * config->worker_count;
}

/* ---- Sockets --------------------------------------------------------------------- */

static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur == limit.rlim_max)
        return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}

static int listen_on(const struct addrinfo *address)
{
    const int yes = 1;
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &yes, sizeof(yes)) < 0 ||
        bind(fd, address->ai_addr, address->ai_addrlen) < 0 ||
        listen(fd, MAIN_LISTEN_BACKLOG) < 0) {
        const int r = -errno;

        close(fd);
        return r;
    }
    return fd;
}

static uint16_t *address_port(struct sockaddr *address)
{
    return address->sa_family == AF_INET6 ? &((struct sockaddr_in6 *)(void *)address)->sin6_port
                                          : &((struct sockaddr_in *)(void *)address)->sin_port;
}

/*
 * Another server of ours would share a port with SO_REUSEPORT, and each would
 * get half of the clients: a port that somebody has is refused.
 */
static void refuse_taken_port(const struct addrinfo *address)
{
    const int yes = 1;
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        die("socket: %s", strerror(errno));
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    if (bind(fd, address->ai_addr, address->ai_addrlen) < 0)
        die("bind: %s", strerror(errno));
    close(fd);
}

static void open_listeners(struct server_config *config, int *ret_fds)
{
    const struct addrinfo hints = {
        .ai_socktype = SOCK_STREAM,
        .ai_flags = AI_PASSIVE | AI_NUMERICSERV,
    };
    struct addrinfo *address;
    struct sockaddr_storage bound;
    socklen_t bound_bytes = sizeof(bound);
    char port[8];
    int r;

    snprintf(port, sizeof(port), "%u", config->port);
    r = getaddrinfo(config->address, port, &hints, &address);
    if (r != 0)
        die("--bind %s: %s", config->address, gai_strerror(r));
    if (config->port != 0)
        refuse_taken_port(address);
    for (uint32_t i = 0; i < config->worker_count; i++) {
        ret_fds[i] = listen_on(address);
        if (ret_fds[i] < 0)
            die("listening on %s:%u: %s", config->address, config->port, strerror(-ret_fds[i]));
        if (config->port != 0)
            continue;
        if (getsockname(ret_fds[i], (struct sockaddr *)&bound, &bound_bytes) < 0)
            die("getsockname: %s", strerror(errno));
        *address_port(address->ai_addr) = *address_port((struct sockaddr *)&bound);
        config->port = ntohs(*address_port(address->ai_addr));
    }
    freeaddrinfo(address);
}

/* ---- Life ------------------------------------------------------------------------ */

static int64_t clock_ms(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/*
 * Long values go back to the kernel when they are freed, and the heap of each
 * worker is its own: what is charged is then what is there.
 */
static void prepare_heap(uint32_t worker_count)
{
    mallopt(M_MMAP_THRESHOLD, MAIN_MMAP_THRESHOLD);
    mallopt(M_TRIM_THRESHOLD, MAIN_MMAP_THRESHOLD);
    mallopt(M_TOP_PAD, MAIN_MMAP_THRESHOLD);
    mallopt(M_MMAP_MAX, 1 << 20);
    mallopt(M_ARENA_MAX, (int)worker_count + 1);
}

static void explain_start(int r, const struct server_config *config)
{
    switch (r) {
    case -EOPNOTSUPP:
        die("the kernel forbids io_uring here (sysctl kernel.io_uring_disabled, or seccomp), or the "
            "file system of %s cannot reserve blocks",
            config->spill_directory);
    case -ENOSPC:
    case -EDQUOT:
        die("--spill-dir %s, or --memory, has no room to begin with: %s", config->spill_directory,
            strerror(-r));
    default:
        die("the workers do not start: %s", strerror(-r));
    }
}

/* Once a second, off the cores' turns: what the machine says, for INFO. */
static void look_until_signal(struct weir_governor *governor, const sigset_t *signals)
{
    const struct timespec second = {.tv_sec = 1};

    do
        weir_governor_look(governor, NULL);
    while (sigtimedwait(signals, NULL, &second) < 0);
}

int main(int argument_count, char **arguments)
{
    static uint32_t cpus[MAIN_WORKERS_MAX];
    static int listen_fds[MAIN_WORKERS_MAX];
    struct settings settings = {
        .server =
            {
                .address = "127.0.0.1",
                .port = 6380,
                .spill_directory = "/var/tmp",
                .wait_ms = 5000,
                .soft_percent = 80,
                .spill_percent = 90,
            },
    };
    struct server server = {0};
    struct weir_governor_config governor = {0};
    sigset_t signals;
    uint32_t cpu_count;
    int r;

    argp_parse(&argp, argument_count, arguments, 0, NULL, &settings);
    cpu_count = allowed_cpus(cpus, MAIN_WORKERS_MAX);
    if (settings.server.memory_bytes == 0)
        settings.server.memory_bytes = memory_of_machine() / 100 * 60;
    settle_levels(&settings.server);
    settle_memory(&settings, cpu_count);
    settle_spill(&settings.server);
    for (uint32_t i = cpu_count; i < settings.server.worker_count; i++)
        cpus[i] = cpus[i % cpu_count];
    prepare_heap(settings.server.worker_count);
    raise_descriptor_limit();
    (void)command_find((struct slice){.data = "get", .bytes = 3}); /* its table, before threads */

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);

    open_listeners(&settings.server, listen_fds);
    server.config = settings.server;
    server.start_ms = clock_ms(CLOCK_MONOTONIC);
    server.start_unix_ms = clock_ms(CLOCK_REALTIME);
    (void)!getrandom(&server.hash_seed, sizeof(server.hash_seed), GRND_NONBLOCK);
    governor.bytes_max = settings.server.memory_bytes;
    governor.soft_percent = settings.server.soft_percent;
    governor.soft_leave_percent = settings.server.soft_percent - 10;
    governor.spill_percent = settings.server.spill_percent;
    governor.spill_leave_percent = settings.server.spill_percent - 5;
    governor.dwell_ns = UINT64_C(100000000); /* ten changes of level in a second at most */
    r = weir_governor_create(&governor, &server.governor);
    if (r < 0)
        die("governor: %s", strerror(-r));
    r = weir_mesh_create(settings.server.worker_count, 4096, &server.mesh);
    if (r < 0)
        die("mesh: %s", strerror(-r));
    r = server_start(&server, listen_fds, cpus);
    if (r < 0)
        explain_start(r, &settings.server);

    printf("weir-server: ready on %s:%u, %u workers, limit %" PRIu64 " bytes, spill in %s\n",
           server.config.address, server.config.port, server.config.worker_count,
           server.config.memory_bytes, server.config.spill_directory);
    fflush(stdout);
    look_until_signal(server.governor, &signals);

    server_stop(&server);
    weir_mesh_destroy(server.mesh);
    weir_governor_destroy(server.governor);
    return EXIT_SUCCESS;
}
