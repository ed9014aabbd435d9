/* SPDX-License-Identifier: MIT */
/*
 * record - encode and decode one change
 */
#include "writebuf/record.h"

#include "base/check.h"

#include <errno.h>
#include <string.h>

struct record_header {
    uint64_t sequence;
    uint32_t value_bytes;
    uint16_t key_bytes;
    uint8_t operation;
    uint8_t zero;
};
_Static_assert(sizeof(struct record_header) == RECORD_HEADER_BYTES, "no padding");
_Static_assert(RECORD_VALUE_MAX <= UINT32_MAX && RECORD_KEY_MAX <= UINT16_MAX, "they fit");

void weir__record_encode(char *data, const struct weir_writebuf_record *record)
{
    struct record_header header = {
        .sequence = record->sequence,
        .value_bytes = (uint32_t)record->value_bytes,
        .key_bytes = (uint16_t)record->key_bytes,
        .operation = (uint8_t)record->operation,
    };

    WEIR_ASSERT(record->key_bytes <= RECORD_KEY_MAX);
    WEIR_ASSERT(record->value_bytes <= RECORD_VALUE_MAX);

    memcpy(data, &header, sizeof(header));
    if (record->key_bytes > 0)
        memcpy(data + sizeof(header), record->key, record->key_bytes);
    if (record->value_bytes > 0)
        memcpy(data + sizeof(header) + record->key_bytes, record->value, record->value_bytes);
}

int weir__record_decode(const char *data, uint64_t bytes, struct weir_writebuf_record *ret_record,
                        uint64_t *ret_bytes)
{
    struct record_header header;
    uint64_t total;

    if (bytes < sizeof(header))
        return -EBADMSG;
    memcpy(&header, data, sizeof(header));
    total = sizeof(header) + (uint64_t)header.key_bytes + header.value_bytes;
    if (total > bytes || header.operation > WEIR_WRITEBUF_BARRIER || header.zero != 0 ||
        header.sequence == 0 || header.value_bytes > RECORD_VALUE_MAX)
        return -EBADMSG;

    *ret_record = (struct weir_writebuf_record){
        .sequence = header.sequence,
        .key = data + sizeof(header),
        .value = data + sizeof(header) + header.key_bytes,
        .key_bytes = header.key_bytes,
        .value_bytes = header.value_bytes,
        .operation = (enum weir_writebuf_operation)header.operation,
    };
    *ret_bytes = total;
    return 0;
}
