/* SPDX-License-Identifier: MIT */
/*
 * session - PING to QUIT, and INFO
 *
 * Long replies are put together in a value for replies only, so that they are
 * in the books and go out like any other value. What Redis has and we do not
 * (databases, persistence, scripts) is answered as a server would that has them
 * switched off.
 */
#include "session.h"

#include <fnmatch.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cold.h"
#include "stock.h"

#define SESSION_INFO_BYTES    8192
#define SESSION_INFO_PER_CORE 1536
#define SESSION_HOLDERS       8
#define SESSION_COMMAND_BYTES 8192
#define SESSION_CONFIG_BYTES  2048

/* A growing text in a value; what does not fit is left out. */
struct paper {
    char *data;
    size_t bytes;
    size_t bytes_max;
};

static void __attribute__((format(printf, 2, 3)))
paper_print(struct paper *paper, const char *format, ...)
{
    const size_t room = paper->bytes_max - paper->bytes;
    va_list arguments;
    int length;

    va_start(arguments, format);
    length = vsnprintf(paper->data + paper->bytes, room, format, arguments);
    va_end(arguments);
    if (length > 0 && (size_t)length < room)
        paper->bytes += (size_t)length;
}

static struct value *paper_begin(struct shard *shard, size_t bytes, struct paper *ret_paper)
{
    struct value *value = stock_make_loose(shard, bytes);

    if (value != NULL)
        *ret_paper = (struct paper){.data = value->data, .bytes_max = bytes};
    return value;
}

static void paper_reply(struct request *request, struct value *value, const struct paper *paper)
{
    request->value = value;
    request->value_bytes = (uint32_t)paper->bytes;
    request->reply = REPLY_RAW;
}

static void reply_bulk(struct shard *shard, struct request *request, struct slice text)
{
    struct value *value;

    if (text.bytes <= 160) {
        request_reply_bulk(request, text.data, text.bytes);
        return;
    }
    value = stock_make_loose(shard, text.bytes);
    if (value == NULL) {
        shard_reply_oom(shard, request);
        return;
    }
    memcpy(value->data, text.data, text.bytes);
    request->value = value;
    request->reply = REPLY_VALUE;
}

/* A word given back, which may have come in pieces. */
static void reply_word(struct shard *shard, struct request *request, struct slice word)
{
    if (request->place.value != NULL) {
        request->value = request->place.value;
        request->place.value = NULL;
        request->reply = REPLY_VALUE;
    } else if (!weir_slot_is_none(request->place.slot)) {
        request->hold = cold_hold(shard, request->place.slot, (uint32_t)word.bytes);
        cold_drop_slot(shard, request->place.slot); /* freed with the hold */
        request->place.slot = (struct weir_slot){0};
        request->reply = REPLY_PIECES;
    } else {
        reply_bulk(shard, request, word);
    }
}

/* ---- CONFIG, COMMAND, CLIENT, HELLO ---------------------------------------------- */

struct setting {
    const char *name;
    char value[32];
};

static size_t config_settings(const struct server_config *config, struct setting *ret_settings)
{
    size_t count = 0;
    const struct setting settings[] = {
        {"save", ""},
        {"appendonly", "no"},
        {"databases", "1"},
        {"timeout", "0"},
        {"tcp-keepalive", "0"},
        {"proto-max-bulk-len", "536870912"},
        {"maxmemory-policy", "noeviction"},
    };

    for (; count < sizeof(settings) / sizeof(settings[0]); count++)
        ret_settings[count] = settings[count];
    ret_settings[count].name = "maxmemory";
    snprintf(ret_settings[count++].value, 32, "%" PRIu64, config->memory_bytes);
    ret_settings[count].name = "maxclients";
    snprintf(ret_settings[count++].value, 32, "%" PRIu32, config->client_max);
    ret_settings[count].name = "port";
    snprintf(ret_settings[count++].value, 32, "%u", config->port);
    ret_settings[count].name = "io-threads";
    snprintf(ret_settings[count++].value, 32, "%" PRIu32, config->worker_count);
    return count;
}

static bool pattern_matches(struct slice pattern, const char *name)
{
    char text[64];

    if (pattern.bytes >= sizeof(text))
        return false;
    memcpy(text, pattern.data, pattern.bytes);
    text[pattern.bytes] = '\0';
    return fnmatch(text, name, FNM_CASEFOLD | FNM_NOESCAPE) == 0;
}

static void answer_config(struct shard *shard, struct request *request, const struct slice *words,
                          size_t word_count)
{
    struct setting settings[16];
    const size_t setting_count = config_settings(&shard->server->config, settings);
    struct paper paper;
    struct value *value;
    size_t count = 0;
    bool is_wanted[16] = {false};

    if (resp_is_word(words[1], "resetstat") || resp_is_word(words[1], "rewrite")) {
        request_reply_text(request, RESP_OK);
        return;
    }
    if (!resp_is_word(words[1], "get")) {
        request_reply_text(request, "-ERR settings are given on the command line\r\n");
        return;
    }
    if (word_count < 3) {
        request_reply_text(request, "-ERR wrong number of arguments for 'config|get' command\r\n");
        return;
    }
    for (size_t i = 0; i < setting_count; i++) {
        for (size_t j = 2; j < word_count; j++)
            is_wanted[i] = is_wanted[i] || pattern_matches(words[j], settings[i].name);
        count += is_wanted[i];
    }
    value = paper_begin(shard, SESSION_CONFIG_BYTES, &paper);
    if (value == NULL) {
        shard_reply_oom(shard, request);
        return;
    }
    paper_print(&paper, "*%zu\r\n", count * 2);
    for (size_t i = 0; i < setting_count; i++)
        if (is_wanted[i])
            paper_print(&paper, "$%zu\r\n%s\r\n$%zu\r\n%s\r\n", strlen(settings[i].name),
                        settings[i].name, strlen(settings[i].value), settings[i].value);
    paper_reply(request, value, &paper);
}

static void answer_command(struct shard *shard, struct request *request, const struct slice *words,
                           size_t word_count)
{
    size_t count;
    const struct command *table = command_table(&count);
    struct paper paper;
    struct value *value;

    if (word_count > 1 && resp_is_word(words[1], "count")) {
        request_reply_integer(request, (int64_t)count);
        return;
    }
    if (word_count > 1 && !resp_is_word(words[1], "info")) {
        request_reply_text(request, "*0\r\n");
        return;
    }
    value = paper_begin(shard, SESSION_COMMAND_BYTES, &paper);
    if (value == NULL) {
        shard_reply_oom(shard, request);
        return;
    }
    paper_print(&paper, "*%zu\r\n", count);
    for (size_t i = 0; i < count; i++) {
        const bool has_key = table[i].scope != SCOPE_SESSION && table[i].scope != SCOPE_ALL;
        const bool is_many = has_key && table[i].scope != SCOPE_KEY;

        paper_print(&paper, "*10\r\n$%zu\r\n%s\r\n:%d\r\n*1\r\n+%s\r\n:%d\r\n:%d\r\n:%d\r\n",
                    strlen(table[i].name), table[i].name, table[i].arity,
                    table[i].is_write ? "write" : "readonly", has_key, is_many ? -1 : has_key,
                    table[i].scope == SCOPE_PAIRS ? 2 : has_key);
        paper_print(&paper, "*0\r\n*0\r\n*0\r\n*0\r\n");
    }
    paper_reply(request, value, &paper);
}

static void answer_client(struct connection *connection, struct request *request,
                          const struct slice *words, size_t word_count)
{
    const char *name = connection_name(connection);

    if (resp_is_word(words[1], "setname") && word_count == 3) {
        request_reply_text(request, connection_set_name(connection, words[2])
                                        ? RESP_OK
                                        : "-ERR Client names cannot contain spaces, newlines or "
                                          "special characters.\r\n");
    } else if (resp_is_word(words[1], "getname") && word_count == 2) {
        if (name[0] == '\0')
            request_reply_text(request, RESP_NIL);
        else
            request_reply_bulk(request, name, strlen(name));
    } else if (resp_is_word(words[1], "id") && word_count == 2) {
        request_reply_integer(request, (int64_t)connection_id(connection));
    } else if (resp_is_word(words[1], "setinfo") && word_count == 4) {
        request_reply_text(request, RESP_OK);
    } else {
        request_reply_text(request, "-ERR unknown subcommand or wrong number of arguments. Try "
                                    "CLIENT HELP.\r\n");
    }
}

static void answer_hello(struct connection *connection, struct shard *shard,
                         struct request *request, const struct slice *words, size_t word_count)
{
    struct paper paper;
    struct value *value;
    int64_t version = 2;

    if (word_count > 1 && !resp_integer(words[1], &version)) {
        request_reply_text(request, "-ERR Protocol version is not an integer or out of range\r\n");
        return;
    }
    if (version != 2) {
        request_reply_text(request, "-NOPROTO unsupported protocol version\r\n");
        return;
    }
    for (size_t i = 2; i < word_count; i += 2) {
        if (resp_is_word(words[i], "setname") && i + 1 < word_count &&
            connection_set_name(connection, words[i + 1]))
            continue;
        request_reply_text(request, "-ERR Syntax error in HELLO option\r\n");
        return;
    }
    value = paper_begin(shard, SESSION_CONFIG_BYTES, &paper);
    if (value == NULL) {
        shard_reply_oom(shard, request);
        return;
    }
    paper_print(&paper,
                "*14\r\n$6\r\nserver\r\n$11\r\nweir-server\r\n$7\r\nversion\r\n$%zu\r\n%s\r\n"
                "$5\r\nproto\r\n:2\r\n$2\r\nid\r\n:%" PRIu64 "\r\n",
                strlen(weir_version()), weir_version(), connection_id(connection));
    paper_print(&paper, "$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n"
                        "$7\r\nmodules\r\n*0\r\n");
    paper_reply(request, value, &paper);
}

void session_answer(struct connection *connection, struct request *request,
                    const struct slice *words, size_t word_count)
{
    struct shard *shard = shard_here();

    switch (request->call.operation) {
    case OPERATION_PING:
        if (word_count > 2)
            request_reply_text(request, "-ERR wrong number of arguments for 'ping' command\r\n");
        else if (word_count == 2)
            reply_word(shard, request, words[1]);
        else
            request_reply_text(request, "+PONG\r\n");
        return;
    case OPERATION_ECHO:
        reply_word(shard, request, words[1]);
        return;
    case OPERATION_SELECT: {
        int64_t index;

        if (!resp_integer(words[1], &index))
            request_reply_text(request, "-ERR value is not an integer or out of range\r\n");
        else
            request_reply_text(request, index == 0 ? RESP_OK : "-ERR DB index is out of range\r\n");
        return;
    }
    case OPERATION_CONFIG:
        answer_config(shard, request, words, word_count);
        return;
    case OPERATION_COMMAND:
        answer_command(shard, request, words, word_count);
        return;
    case OPERATION_CLIENT:
        answer_client(connection, request, words, word_count);
        return;
    case OPERATION_HELLO:
        answer_hello(connection, shard, request, words, word_count);
        return;
    case OPERATION_QUIT:
        request_reply_text(request, RESP_OK);
        connection_quit(connection);
        return;
    case OPERATION_GET:
    case OPERATION_SET:
    case OPERATION_DEL:
    case OPERATION_EXISTS:
    case OPERATION_INCR:
    case OPERATION_STRLEN:
    case OPERATION_EXPIRE:
    case OPERATION_TTL:
    case OPERATION_PERSIST:
    case OPERATION_TYPE:
    case OPERATION_WPUSH:
    case OPERATION_WPOP:
    case OPERATION_WSKIP:
    case OPERATION_WINFO:
    case OPERATION_DBSIZE:
    case OPERATION_FLUSHALL:
    case OPERATION_INFO:
        break;
    }
    abort();
}

/* ---- INFO ------------------------------------------------------------------------ */

static const char *level_name(enum weir_level level)
{
    switch (level) {
    case WEIR_LEVEL_CALM:
        return "calm";
    case WEIR_LEVEL_SOFT:
        return "soft";
    case WEIR_LEVEL_SPILL:
        return "spill";
    case WEIR_LEVEL_HARD:
        return "hard";
    }
    return "?";
}

#define FIGURE(paper, name, value) paper_print(paper, name ":%" PRIu64 "\r\n", (uint64_t)(value))

static void info_server(struct paper *paper, const struct shard *shard)
{
    const struct server *server = shard->server;

    paper_print(paper,
                "# Server\r\nredis_version:7.0.0\r\nweir_version:%s\r\nredis_mode:standalone\r\n"
                "tcp_port:%u\r\nspill_dir:%s\r\n",
                weir_version(), server->config.port, server->config.spill_directory);
    FIGURE(paper, "process_id", getpid());
    FIGURE(paper, "uptime_in_seconds", (shard->now_ms - server->start_ms) / 1000);
    FIGURE(paper, "workers", server->config.worker_count);
    paper_print(paper, "\r\n# Clients\r\n");
    FIGURE(paper, "connected_clients", atomic_load(&server->client_count));
    FIGURE(paper, "maxclients", server->config.client_max);
}

static const char *reason_name(enum weir_wait_reason reason)
{
    switch (reason) {
    case WEIR_REASON_NONE:
        return "none";
    case WEIR_REASON_LIMIT:
        return "limit";
    case WEIR_REASON_NODE:
        return "node";
    case WEIR_REASON_CAP:
        return "cap";
    case WEIR_REASON_TURN:
        return "turn";
    }
    return "?";
}

static void info_levels(struct paper *paper, const struct shard *shard,
                        const struct weir_governor_stats *stats)
{
    static const char *const verdicts[] = {"admit", "flush", "spill", "wait"};

    paper_print(paper, "memory_level:%s\r\n", level_name(stats->level));
    FIGURE(paper, "memory_level_changes", stats->level_change_count);
    FIGURE(paper, "memory_level_since_ms", (shard->now_ns - stats->level_since_ns) / 1000000);
    FIGURE(paper, "memory_soft_bytes", stats->soft_bytes);
    FIGURE(paper, "memory_spill_bytes", stats->spill_bytes);
    for (int level = WEIR_LEVEL_CALM; level <= WEIR_LEVEL_HARD; level++)
        paper_print(paper,
                    "memory_level_%s_count:%" PRIu64 "\r\nmemory_level_%s_ms:%" PRIu64 "\r\n",
                    level_name(level), stats->level_count[level], level_name(level),
                    stats->level_ns[level] / 1000000);
    for (int verdict = WEIR_ADMIT; verdict <= WEIR_WAIT; verdict++)
        paper_print(paper, "memory_verdict_%s:%" PRIu64 "\r\n", verdicts[verdict],
                    stats->verdict_count[verdict]);
    FIGURE(paper, "memory_delay_us", weir_account_delay_ns(shard->values) / 1000);
}

static void info_waiters(struct paper *paper, const struct weir_governor_stats *stats)
{
    FIGURE(paper, "memory_waiters", stats->waiter_count);
    FIGURE(paper, "memory_oldest_waiter_ms", stats->oldest_waiter_ns / 1000000);
    paper_print(paper, "memory_oldest_waiter:%s\r\nmemory_wait_reason:%s\r\n",
                stats->oldest_waiter_name, reason_name(stats->reason));
    FIGURE(paper, "memory_longest_wait_ms", stats->stall_ns_max / 1000000);
    FIGURE(paper, "memory_timeouts", stats->timeout_count);
    FIGURE(paper, "memory_hopeless_waits", stats->refused_count);
}

/* As of the last look, which the main thread takes once a second. */
static void info_outside(struct paper *paper, const struct shard *shard,
                         const struct weir_governor_outside *outside)
{
    FIGURE(paper, "machine_limit_bytes", outside->limit_bytes);
    FIGURE(paper, "machine_usage_bytes", outside->usage_bytes);
    FIGURE(paper, "machine_rss_bytes", outside->rss_bytes);
    paper_print(paper, "machine_drift_bytes:%" PRId64 "\r\n", outside->drift_bytes);
    paper_print(paper, "machine_pressure_some:%" PRIu32 ".%02" PRIu32 "\r\n",
                outside->pressure_some / 100, outside->pressure_some % 100);
    paper_print(paper, "machine_pressure_full:%" PRIu32 ".%02" PRIu32 "\r\n",
                outside->pressure_full / 100, outside->pressure_full % 100);
    FIGURE(paper, "machine_look_ms_ago", (shard->now_ns - outside->look_ns) / 1000000);
}

static void info_memory(struct paper *paper, const struct shard *shard, uint64_t drift_bytes)
{
    struct weir_governor_figures figures;
    struct weir_account_stats holders[SESSION_HOLDERS];
    const struct weir_governor_stats *stats = &figures.governor;

    weir_governor_figures(shard->server->governor, &figures, holders, SESSION_HOLDERS);
    paper_print(paper, "\r\n# Memory\r\n");
    FIGURE(paper, "used_memory", stats->charged_bytes);
    FIGURE(paper, "used_memory_peak", stats->peak_bytes);
    FIGURE(paper, "maxmemory", stats->bytes_max);
    FIGURE(paper, "memory_leases_bytes", stats->lease_bytes);
    FIGURE(paper, "memory_drift_bytes", drift_bytes);
    info_levels(paper, shard, stats);
    info_waiters(paper, stats);
    info_outside(paper, shard, &figures.outside);
    for (size_t i = 0; i < figures.account_count; i++)
        paper_print(paper,
                    "holder%zu:name=%s,bytes=%" PRIu64 ",peak=%" PRIu64 ",forced=%" PRIu64
                    ",spillable=%d,waiters=%" PRIu64 "\r\n",
                    i, holders[i].name, holders[i].charged_bytes, holders[i].peak_bytes,
                    holders[i].forced_bytes, holders[i].spillable, holders[i].waiter_count);
}

struct sums {
    uint64_t live_bytes;
    uint64_t file_bytes;
    uint64_t disk_bytes;
    uint64_t resident_bytes;
    uint64_t written_bytes;
    uint64_t read_bytes;
    uint64_t slot_count;
    struct shard_figures figures;
};

static void sum_up(const struct shard_figures *all, uint32_t count, struct sums *ret_sums)
{
    memset(ret_sums, 0, sizeof(*ret_sums));
    for (uint32_t i = 0; i < count; i++) {
        const struct shard_figures *from = &all[i];
        struct shard_figures *to = &ret_sums->figures;

        ret_sums->live_bytes += from->region.live_bytes;
        ret_sums->file_bytes += from->region.file_bytes;
        ret_sums->disk_bytes += from->region.disk_bytes;
        ret_sums->resident_bytes += from->region.resident_bytes;
        ret_sums->written_bytes += from->region.written_bytes;
        ret_sums->read_bytes += from->region.read_bytes;
        ret_sums->slot_count += from->region.slot_count;
        to->key_count += from->key_count;
        to->expire_count += from->expire_count;
        to->memory_count += from->memory_count;
        to->slot_count += from->slot_count;
        to->value_bytes += from->value_bytes;
        to->stream_count += from->stream_count;
        to->command_count += from->command_count;
        to->accepted_count += from->accepted_count;
        to->hit_count += from->hit_count;
        to->miss_count += from->miss_count;
        to->expired_count += from->expired_count;
        to->spilled_count += from->spilled_count;
        to->direct_count += from->direct_count;
        to->fetched_count += from->fetched_count;
        to->promoted_count += from->promoted_count;
        to->parked_count += from->parked_count;
        to->refused_count += from->refused_count;
        to->hop_count += from->hop_count;
        to->blocked_count += from->blocked_count;
        to->drift_bytes += from->drift_bytes;
        to->paced_count += from->paced_count;
        to->paced_ns += from->paced_ns;
    }
}

static void info_sums(struct paper *paper, const struct sums *sums)
{
    const struct shard_figures *figures = &sums->figures;

    paper_print(paper, "\r\n# Spill\r\n");
    FIGURE(paper, "spill_live_bytes", sums->live_bytes);
    FIGURE(paper, "spill_file_bytes", sums->file_bytes);
    FIGURE(paper, "spill_disk_bytes", sums->disk_bytes);
    FIGURE(paper, "spill_resident_bytes", sums->resident_bytes);
    FIGURE(paper, "spill_written_bytes", sums->written_bytes);
    FIGURE(paper, "spill_read_bytes", sums->read_bytes);
    FIGURE(paper, "spill_items", sums->slot_count);
    paper_print(paper, "\r\n# Stats\r\n");
    FIGURE(paper, "total_connections_received", figures->accepted_count);
    FIGURE(paper, "total_commands_processed", figures->command_count);
    FIGURE(paper, "commands_from_other_cores", figures->hop_count);
    FIGURE(paper, "keyspace_hits", figures->hit_count);
    FIGURE(paper, "keyspace_misses", figures->miss_count);
    FIGURE(paper, "expired_keys", figures->expired_count);
    FIGURE(paper, "values_pushed_out", figures->spilled_count);
    FIGURE(paper, "values_spilled_at_once", figures->direct_count);
    FIGURE(paper, "values_fetched", figures->fetched_count);
    FIGURE(paper, "values_promoted", figures->promoted_count);
    FIGURE(paper, "writes_parked", figures->parked_count);
    FIGURE(paper, "writes_refused", figures->refused_count);
    FIGURE(paper, "writes_paced", figures->paced_count);
    FIGURE(paper, "writes_paced_ms", figures->paced_ns / 1000000);
    FIGURE(paper, "blocked_pops", figures->blocked_count);
    FIGURE(paper, "streams", figures->stream_count);
    FIGURE(paper, "values_in_memory", figures->memory_count);
    FIGURE(paper, "values_in_spill", figures->slot_count);
    FIGURE(paper, "value_bytes", figures->value_bytes);
}

static void info_workers(struct paper *paper, const struct shard_figures *all, uint32_t count)
{
    paper_print(paper, "\r\n# Workers\r\n");
    for (uint32_t i = 0; i < count; i++) {
        const struct shard_figures *figures = &all[i];
        const struct weir_region_stats *region = &figures->region;

        paper_print(paper,
                    "worker%" PRIu32 ":cpu=%" PRIu32 ",clients=%" PRIu64 ",keys=%" PRIu64
                    ",streams=%" PRIu64 ",commands=%" PRIu64 ",charged_values=%" PRIu64
                    ",charged_tables=%" PRIu64,
                    i, figures->worker.cpu, figures->connection_count, figures->key_count,
                    figures->stream_count, figures->command_count, figures->values.charged_bytes,
                    figures->keys.charged_bytes);
        paper_print(paper,
                    ",resident=%" PRIu64 ",resident_max=%" PRIu64 ",live=%" PRIu64 ",file=%" PRIu64
                    ",disk=%" PRIu64 ",written=%" PRIu64 ",put=%" PRIu64 ",dirty=%" PRIu64
                    ",fetched=%" PRIu64 ",pinned=%" PRIu64 ",tables=%" PRIu64,
                    region->resident_bytes, region->resident_bytes_max, region->live_bytes,
                    region->file_bytes, region->disk_bytes, region->written_bytes,
                    region->put_bytes, region->dirty_bytes, region->fetched_bytes,
                    region->pinned_bytes, region->metadata_bytes);
        paper_print(
            paper,
            ",write_errors=%" PRIu64 ",read_errors=%" PRIu64
            ",bounded=%d,degraded=%d,turns=%" PRIu64 ",longest_turn_us=%" PRIu64
            ",stalls_busy=%" PRIu64 ",stalls_preempted=%" PRIu64 ",stalls_blocked=%" PRIu64 "\r\n",
            region->write_error_count, region->read_error_count, region->bounded, region->degraded,
            figures->worker.turn_count, figures->worker.longest_turn_ns / 1000,
            figures->stall_counts[WEIR_STALL_BUSY], figures->stall_counts[WEIR_STALL_PREEMPTED],
            figures->stall_counts[WEIR_STALL_BLOCKED]);
    }
}

static void info_reclaimers(struct paper *paper, const struct shard_figures *all, uint32_t count)
{
    paper_print(paper, "\r\n# Reclaimers\r\n");
    for (uint32_t i = 0; i < count; i++) {
        for (int j = 0; j < SHARD_RECLAIMERS; j++) {
            const struct weir_reclaimer *reclaimer = &all[i].reclaimers[j];

            if (reclaimer->account == NULL)
                continue;
            paper_print(paper,
                        "reclaimer_%s_%" PRIu32 ":cost=%" PRIu32 ",asked=%" PRIu64
                        ",asked_bytes=%" PRIu64 ",came_bytes=%" PRIu64 ",broken=%" PRIu64 "\r\n",
                        reclaimer->name, i, reclaimer->cost, reclaimer->asked_count,
                        reclaimer->asked_bytes, reclaimer->came_bytes, reclaimer->broken_count);
        }
    }
}

struct value *session_info_begin(struct shard *shard)
{
    const size_t bytes = shard->server->config.worker_count * sizeof(struct shard_figures);
    struct value *value = stock_make_loose(shard, bytes);

    if (value != NULL)
        memset(value->data, 0, bytes);
    return value;
}

void session_info(struct shard *shard, struct request *request)
{
    const uint32_t count = shard->server->config.worker_count;
    struct value *figures = request->value;
    const struct shard_figures *all;
    struct sums sums;
    struct paper paper;
    char header[RESP_HEADER_MAX];
    size_t header_bytes;
    struct value *value =
        paper_begin(shard, SESSION_INFO_BYTES + SESSION_INFO_PER_CORE * count, &paper);

    request->value = value;
    if (value == NULL || figures == NULL) {
        if (figures != NULL)
            stock_unref(shard, figures);
        shard_reply_oom(shard, request);
        return;
    }
    all = (const struct shard_figures *)(const void *)figures->data;
    /* The text goes behind its header, whose length is known at the end. */
    paper.bytes = RESP_HEADER_MAX;
    sum_up(all, count, &sums);
    info_server(&paper, shard);
    info_memory(&paper, shard, sums.figures.drift_bytes);
    info_sums(&paper, &sums);
    info_workers(&paper, all, count);
    info_reclaimers(&paper, all, count);
    paper_print(&paper, "\r\n# Keyspace\r\ndb0:keys=%" PRIu64 ",expires=%" PRIu64 ",avg_ttl=0\r\n",
                sums.figures.key_count + sums.figures.stream_count, sums.figures.expire_count);
    header_bytes = resp_write_bulk_header(header, paper.bytes - RESP_HEADER_MAX);
    memmove(paper.data + header_bytes, paper.data + RESP_HEADER_MAX, paper.bytes - RESP_HEADER_MAX);
    memcpy(paper.data, header, header_bytes);
    paper.bytes -= RESP_HEADER_MAX - header_bytes;
    paper_print(&paper, "\r\n");
    stock_unref(shard, figures);
    paper_reply(request, value, &paper);
}
