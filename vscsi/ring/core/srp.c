/* SPDX-License-Identifier: MIT */
/* SRP: a CMD with direct or indirect buffers, and the RSP of a command that ended well. */
#include "service.h"

#include <string.h>

enum { TABLE_ENTRIES = 256 }; /* of an indirect descriptor that is not in the unit */

static bool add_descriptor(struct service *service, struct command *command,
                           const unsigned char *at, bool writable, uint64_t *total) {
    uint32_t length = load_be32(at + SRP_DESCRIPTOR_LENGTH_AT);
    *total += length;
    return regions_add(&service->regions, command, load_be32(at + SRP_DESCRIPTOR_HANDLE_AT),
                       load_be64(at + SRP_DESCRIPTOR_ADDRESS_AT), length, writable);
}

/* Resolve an indirect buffer of `local` table entries in the unit; its bytes, or -1. */
static int64_t add_indirect(struct service *service, struct command *command,
                            const unsigned char *area, size_t room, unsigned local, bool writable) {
    unsigned char table[TABLE_ENTRIES * SRP_DESCRIPTOR_BYTES];
    size_t head = SRP_DESCRIPTOR_BYTES + 4, copied = local * (size_t)SRP_DESCRIPTOR_BYTES;
    if (room < head + copied)
        return -1;
    uint32_t bytes = load_be32(area + SRP_DESCRIPTOR_LENGTH_AT);
    uint32_t count = bytes / SRP_DESCRIPTOR_BYTES;
    if (bytes % SRP_DESCRIPTOR_BYTES || count > TABLE_ENTRIES || local > count)
        return -1;
    memcpy(table, area + head, copied);
    if (local < count &&
        !(regions_copy(&service->regions, table, load_be32(area + SRP_DESCRIPTOR_HANDLE_AT),
                       load_be64(area + SRP_DESCRIPTOR_ADDRESS_AT), bytes)))
        return -1;
    memcpy(table, area + head, copied);
    uint64_t total = 0;
    for (uint32_t i = 0; i < count; i++)
        if (!add_descriptor(service, command, table + i * SRP_DESCRIPTOR_BYTES, writable, &total))
            return -1;
    return total == load_be32(area + SRP_DESCRIPTOR_BYTES) ? (int64_t)total : -1;
}

static bool read_command(struct service *service, const unsigned char *slot,
                         struct command *command) {
    size_t length = load_le16(slot + SLOT_LENGTH_AT);
    const unsigned char *unit = slot + SLOT_HEADER_BYTES;
    if (slot[SLOT_FORMAT_AT] != SLOT_FORMAT_SRP || length < SRP_CMD_BYTES ||
        length > service->slot_bytes - SLOT_HEADER_BYTES || unit[SRP_CMD_TYPE_AT] != SRP_TYPE_CMD ||
        unit[SRP_CMD_ATTRIBUTE_AT] & 7 || unit[SRP_CMD_ADDITIONAL_CDB_LENGTH_AT])
        return false;
    struct unit *addressed = service_unit(service, unit + SRP_CMD_LUN_AT);
    unsigned formats = unit[SRP_CMD_DATA_FORMATS_AT];
    unsigned out = formats >> 4, in = formats & 15, form = out | in;
    if (!addressed || (out && in))
        return false;
    command->segments = 0;
    int64_t bytes = 0;
    const unsigned char *area = unit + SRP_CMD_BYTES;
    size_t room = length - SRP_CMD_BYTES;
    if (form == SRP_BUFFER_DIRECT) {
        uint64_t total = 0;
        if (room < SRP_DESCRIPTOR_BYTES || !add_descriptor(service, command, area, in, &total))
            return false;
        bytes = (int64_t)total;
    } else if (form == SRP_BUFFER_INDIRECT) {
        unsigned local = unit[in ? SRP_CMD_DATA_IN_COUNT_AT : SRP_CMD_DATA_OUT_COUNT_AT];
        bytes = add_indirect(service, command, area, room, local, in);
    } else if (form) {
        return false;
    }
    memcpy(&command->tag, unit + SRP_CMD_TAG_AT, sizeof command->tag); /* back as it came */
    return bytes >= 0 && command_read_cdb(command, addressed, unit + SRP_CMD_CDB_AT, 16,
                                          out ? (uint64_t)bytes : 0, in ? (uint64_t)bytes : 0);
}

static size_t answer(struct service *service, const struct command *command,
                     unsigned char *message) {
    (void)service;
    enum { BYTES = SLOT_HEADER_BYTES + SRP_RSP_BYTES };
    memset(message, 0, BYTES);
    message[SLOT_FORMAT_AT] = SLOT_FORMAT_SRP;
    message[SLOT_LENGTH_AT] = SRP_RSP_BYTES;
    unsigned char *unit = message + SLOT_HEADER_BYTES;
    unit[SRP_RSP_TYPE_AT] = SRP_TYPE_RSP;
    store_be32(unit + SRP_RSP_REQUEST_LIMIT_DELTA_AT, 1); /* the request's credit */
    memcpy(unit + SRP_RSP_TAG_AT, &command->tag, sizeof command->tag);
    return BYTES;
}

static void hint(struct service *service, const unsigned char *slot) {
    const unsigned char *unit = slot + SLOT_HEADER_BYTES;
    command_hint(service_unit(service, unit + SRP_CMD_LUN_AT), unit + SRP_CMD_CDB_AT);
}

const struct protocol srp_protocol = {.read = read_command, .hint = hint, .answer = answer};
