/* SPDX-License-Identifier: MIT */
/* vscsiif: a CDB with its segments, in the request or in descriptor memory, and its response. */
#include "granted.h"

#include <string.h>

enum {
    GRANTED_SEGMENTS = 256, /* that descriptor memory may hold; more are refused by Python */
    ADDRESS_BYTES = VSCSIIF_LUN_AT + 2 - VSCSIIF_CHANNEL_AT, /* channel, id and lun */
};

_Static_assert(GRANTED_SEGMENTS *VSCSIIF_SEGMENT_BYTES <= (int)SERVICE_COPIED, "");
_Static_assert(ADDRESS_BYTES == 6 && (int)VSCSIIF_RSP_RESERVED_AT <= (int)ANSWER_BYTES, "");

/* Replace descriptors of descriptor memory by what is in it; how many they are, or -1. */
static int copy_table(struct service *service, const unsigned char *areas, int count,
                      unsigned char *table) {
    size_t bytes = 0;
    for (int i = 0; i < count; i++) {
        const unsigned char *area = areas + i * VSCSIIF_SEGMENT_BYTES;
        size_t length = load_le16(area + VSCSIIF_SEGMENT_LENGTH_AT);
        if (length % VSCSIIF_SEGMENT_BYTES ||
            length > GRANTED_SEGMENTS * VSCSIIF_SEGMENT_BYTES - bytes ||
            !granted_copy(service, table + bytes, load_le32(area + VSCSIIF_SEGMENT_GREF_AT),
                          load_le16(area + VSCSIIF_SEGMENT_OFFSET_AT), length))
            return -1;
        bytes += length;
    }
    return (int)(bytes / VSCSIIF_SEGMENT_BYTES);
}

/* Name the segments of a table; their bytes, or -1. */
static int64_t add_segments(struct command *command, const unsigned char *table, int count) {
    int64_t total = 0;
    for (int i = 0; i < count; i++) {
        const unsigned char *segment = table + i * VSCSIIF_SEGMENT_BYTES;
        size_t offset = load_le16(segment + VSCSIIF_SEGMENT_OFFSET_AT);
        size_t length = load_le16(segment + VSCSIIF_SEGMENT_LENGTH_AT);
        if (offset + length > PAGES_SIZE ||
            !granted_add(command, load_le32(segment + VSCSIIF_SEGMENT_GREF_AT), offset, length))
            return -1;
        total += (int64_t)length;
    }
    return total;
}

static struct unit *addressed(struct service *service, const unsigned char *slot) {
    unsigned char address[sizeof service->place->address] = {0};
    memcpy(address, slot + VSCSIIF_CHANNEL_AT, ADDRESS_BYTES);
    return service_unit(service, address);
}

static bool read_command(struct service *service, const unsigned char *slot,
                         struct command *command) {
    if (slot[VSCSIIF_ACT_AT] != VSCSIIF_ACT_CDB || slot[VSCSIIF_CMD_LEN_AT] > VSCSIIF_CDB_BYTES)
        return false;
    struct unit *unit = addressed(service, slot);
    unsigned direction = slot[VSCSIIF_DIRECTION_AT], segments = slot[VSCSIIF_NR_SEGMENTS_AT];
    int count = (int)(segments & ~(unsigned)VSCSIIF_SG_GRANT);
    if (!unit || !service->grants || count > VSCSIIF_SEGMENTS ||
        (direction != VSCSIIF_DIRECTION_TO_DEVICE && direction != VSCSIIF_DIRECTION_FROM_DEVICE &&
         direction != VSCSIIF_DIRECTION_NONE))
        return false;
    const unsigned char *table = slot + VSCSIIF_SEGMENTS_AT;
    if (segments & VSCSIIF_SG_GRANT) {
        count = copy_table(service, table, count, service->copied);
        service->copied_bytes = count > 0 ? (uint32_t)count * VSCSIIF_SEGMENT_BYTES : 0;
        table = service->copied;
    }
    if (direction == VSCSIIF_DIRECTION_NONE && count > 0)
        count = 0; /* whatever they name */
    command->segments = 0;
    int64_t bytes = count < 0 ? -1 : add_segments(command, table, count);
    bool out = direction == VSCSIIF_DIRECTION_TO_DEVICE;
    if (bytes < 0 || !granted_map(service, command, out))
        return false;
    command->tag = load_le16(slot + VSCSIIF_RQID_AT);
    if (command_read_cdb(command, unit, slot + VSCSIIF_CDB_AT, slot[VSCSIIF_CMD_LEN_AT],
                         out ? (uint64_t)bytes : 0, out ? 0 : (uint64_t)bytes))
        return true;
    granted_release(service, command);
    return false;
}

static size_t answer(struct service *service, const struct command *command,
                     unsigned char *message) {
    (void)service;
    memset(message, 0, VSCSIIF_RSP_RESERVED_AT);
    message[VSCSIIF_RSP_RQID_AT] = (unsigned char)command->tag;
    message[VSCSIIF_RSP_RQID_AT + 1] = (unsigned char)(command->tag >> 8);
    return VSCSIIF_RSP_RESERVED_AT; /* behind it the slot keeps what the frontend put there */
}

static void hint(struct service *service, const unsigned char *slot) {
    command_hint(addressed(service, slot), slot + VSCSIIF_CDB_AT);
}

const struct protocol vscsiif_protocol = {
    .read = read_command, .hint = hint, .release = granted_release, .answer = answer};
