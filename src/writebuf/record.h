/* SPDX-License-Identifier: MIT */
#ifndef WEIR_WRITEBUF_RECORD_H
#define WEIR_WRITEBUF_RECORD_H

/*
 * record - a change as bytes, the same in memory and in the region
 *
 *      0          8        12        14   15        16
 *      | sequence | value  | key     | op | zero    | key ... | value ...
 *
 * Pure: no syscalls, no memory. Bytes that come back from a disk are decoded as
 * foreign: whatever they are, nothing beyond them is read.
 */

#include <weir/writebuf.h>

#include <stdint.h>

#define RECORD_HEADER_BYTES 16u
#define RECORD_KEY_MAX      UINT64_C(65535)
#define RECORD_VALUE_MAX    (UINT64_C(1) << 30)

/* As many bytes as it takes; key and value are within their limits. */
static inline uint64_t weir__record_bytes(const struct weir_writebuf_record *record)
{
    return RECORD_HEADER_BYTES + (uint64_t)record->key_bytes + record->value_bytes;
}

/* @data has room for weir__record_bytes(). */
void weir__record_encode(char *data, const struct weir_writebuf_record *record);

/*
 * @bytes: from @data to the end of what is there. 0, or -EBADMSG: not a record, or
 * not all of one.
 */
int weir__record_decode(const char *data, uint64_t bytes, struct weir_writebuf_record *ret_record,
                        uint64_t *ret_bytes);

#endif
