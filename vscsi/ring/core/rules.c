/* SPDX-License-Identifier: MIT */
#include "rules.h"

#include "command.h"

enum { FLAT = 1, EXTENDED_FLAT = 0xD2, SERVICE_ACTION = 0x1F, VARIABLE_LENGTH = 0x7F };

bool rules_meet_status(const struct rules *rules, bool failed, uint8_t status) {
    if (!rules->by_status)
        return true;
    return failed ? rules->failed : rules->status[status / 32] >> status % 32 & 1;
}

static bool meets_lun(const struct rules *rules, int64_t lun) {
    for (uint32_t i = 0; i < rules->luns; i++)
        if (rules->lun[i] == lun)
            return true;
    return !rules->by_lun;
}

/* The logical unit number of a SAM LUN as vscsi.wire.lun has it; -1 if it is none. */
static int64_t number_of(const unsigned char *lun) {
    bool extended = lun[0] == EXTENDED_FLAT;
    for (int i = extended ? 4 : 2; i < 8; i++)
        if (lun[i])
            return -1;
    if (extended)
        return lun[1] << 16 | lun[2] << 8 | lun[3];
    if (lun[0] >> 6 == FLAT)
        return (lun[0] & 0x3F) << 8 | lun[1];
    if (lun[0] == 0x80)
        return lun[1] >> 5 ? -1 : lun[1];
    return lun[0] ? -1 : lun[1];
}

static bool meets_range(const struct rules *rules, uint64_t lba, uint64_t blocks) {
    uint64_t last = lba + (blocks ? blocks - 1 : 0);
    last = last < lba ? UINT64_MAX : last;
    return lba <= rules->last_lba && last >= rules->first_lba;
}

static int32_t action_of(const unsigned char *cdb, size_t length) {
    if (cdb[0] == VARIABLE_LENGTH)
        return length < 10 ? -1 : load_be16(cdb + 8);
    return length < 2 ? -1 : cdb[1] & SERVICE_ACTION;
}

static bool meets_opcode(const struct rules *rules, const unsigned char *cdb, size_t length) {
    int32_t action = action_of(cdb, length);
    for (uint32_t i = 0; i < rules->opcodes; i++)
        if (rules->opcode[i].opcode == cdb[0] &&
            (rules->opcode[i].action < 0 || rules->opcode[i].action == action))
            return true;
    return !rules->by_opcode;
}

static bool meets_lba(const struct rules *rules, const unsigned char *cdb, size_t length) {
    int32_t action = action_of(cdb, length);
    for (size_t i = 0; rules->by_lba && i < sizeof CDB_RANGES / sizeof *CDB_RANGES; i++) {
        const struct cdb_range *row = &CDB_RANGES[i];
        if (row->opcode != cdb[0] || (row->action >= 0 && row->action != action))
            continue;
        if (length < row->length)
            return false;
        uint64_t lba = load_be(cdb + row->lba_offset, row->lba_size);
        uint64_t blocks = load_be(cdb + row->blocks_offset, row->blocks_size);
        if (row->lba_size == 3)
            lba &= row->lba_mask;
        if (row->length == 6 && row->blocks_size && !blocks)
            blocks = 256;
        return meets_range(rules, lba, blocks);
    }
    return !rules->by_lba;
}

static bool meets_cdb(const struct rules *rules, const unsigned char *cdb, size_t length) {
    if (!length)
        return !rules->by_opcode && !rules->by_lba;
    return meets_opcode(rules, cdb, length) && meets_lba(rules, cdb, length);
}

static struct meaning read_srp(const struct rules *rules, const struct message *message) {
    struct meaning meaning = {.kind = MESSAGE_OTHER};
    const unsigned char *unit = message->bytes + SLOT_HEADER_BYTES;
    if (message->length < SLOT_HEADER_BYTES || message->bytes[SLOT_FORMAT_AT] != SLOT_FORMAT_SRP)
        return meaning;
    size_t length = load_le16(message->bytes + SLOT_LENGTH_AT);
    if (!length || length > message->length - SLOT_HEADER_BYTES)
        return meaning;
    uint8_t type = unit[SRP_CMD_TYPE_AT];
    if (message->way == WAY_TO_TARGET && type == SRP_TYPE_CMD && length >= SRP_CMD_BYTES) {
        size_t cdb = length - SRP_CMD_CDB_AT, more = unit[SRP_CMD_ADDITIONAL_CDB_LENGTH_AT] & 0xFC;
        cdb = cdb < 16 + more ? cdb : 16 + more;
        meaning.kind = MESSAGE_COMMAND;
        meaning.tag = load_be64(unit + SRP_CMD_TAG_AT);
        meaning.meets = meets_lun(rules, number_of(unit + SRP_CMD_LUN_AT)) &&
                        meets_cdb(rules, unit + SRP_CMD_CDB_AT, cdb);
    } else if (message->way == WAY_TO_TARGET && type == SRP_TYPE_TSK_MGMT &&
               length >= SRP_TSK_MGMT_TAG_AT + 8) {
        meaning.kind = MESSAGE_FUNCTION;
        meaning.tag = load_be64(unit + SRP_TSK_MGMT_TAG_AT);
    } else if (message->way == WAY_TO_INITIATOR && type == SRP_TYPE_RSP &&
               length >= SRP_RSP_BYTES) {
        bool coded = unit[SRP_RSP_FLAGS_AT] & SRP_FLAG_RSPVALID && length >= SRP_RSP_BYTES + 4;
        meaning.kind = MESSAGE_ANSWER;
        meaning.tag = load_be64(unit + SRP_RSP_TAG_AT);
        meaning.failed = coded && unit[SRP_RSP_BYTES + 3];
        meaning.status = unit[SRP_RSP_STATUS_AT];
    }
    return meaning;
}

static struct meaning read_vscsiif(const struct rules *rules, const struct message *message) {
    const unsigned char *slot = message->bytes;
    struct meaning meaning = {.kind = MESSAGE_OTHER};
    bool answers = message->way == WAY_TO_INITIATOR; /* without what they leave as it was */
    if (message->length < (answers ? (size_t)VSCSIIF_RSP_RESERVED_AT : (size_t)VSCSIIF_SLOT_SIZE))
        return meaning;
    meaning.tag = load_le16(slot + VSCSIIF_RQID_AT);
    if (answers) {
        uint32_t result = load_le32(slot + VSCSIIF_RSP_RSLT_AT);
        meaning.kind = MESSAGE_ANSWER;
        meaning.failed = result >> 16 & 0xFF;
        meaning.status = (uint8_t)result;
    } else if (slot[VSCSIIF_ACT_AT] == VSCSIIF_ACT_CDB) {
        size_t length = slot[VSCSIIF_CMD_LEN_AT];
        length = length < VSCSIIF_CDB_BYTES ? length : VSCSIIF_CDB_BYTES;
        meaning.kind = MESSAGE_COMMAND;
        meaning.meets = meets_lun(rules, load_le16(slot + VSCSIIF_LUN_AT)) &&
                        meets_cdb(rules, slot + VSCSIIF_CDB_AT, length);
    } else {
        meaning.kind = MESSAGE_FUNCTION;
    }
    return meaning;
}

/* Where a layout of blkif's has what is looked at. */
struct offsets {
    size_t slot, id, sector, segments, indirect_id, indirect_sector, discard_id, discard_sector,
        discard_sectors, answer_id, answer_status, answer_bytes;
};

#define OFFSETS(abi)                                                                               \
    {abi##_SLOT_SIZE,                                                                              \
     abi##_RW_ID_AT,                                                                               \
     abi##_RW_SECTOR_NUMBER_AT,                                                                    \
     abi##_RW_SEGMENTS_AT,                                                                         \
     abi##_INDIRECT_ID_AT,                                                                         \
     abi##_INDIRECT_SECTOR_NUMBER_AT,                                                              \
     abi##_DISCARD_ID_AT,                                                                          \
     abi##_DISCARD_SECTOR_NUMBER_AT,                                                               \
     abi##_DISCARD_NR_SECTORS_AT,                                                                  \
     abi##_RESPONSE_ID_AT,                                                                         \
     abi##_RESPONSE_STATUS_AT,                                                                     \
     abi##_RESPONSE_STATUS_AT + 2}

static const struct offsets ALIGNED = OFFSETS(BLKIF64), PACKED = OFFSETS(BLKIF32);

/* The sectors of a table of segments, of which not all need be there. */
static uint64_t sectors_of(const unsigned char *table, size_t length, size_t count) {
    uint64_t sectors = 0;
    for (size_t i = 0; i < count && (i + 1) * BLKIF_SEGMENT_BYTES <= length; i++) {
        unsigned first = table[i * BLKIF_SEGMENT_BYTES + BLKIF_SEGMENT_FIRST_SECT_AT];
        unsigned last = table[i * BLKIF_SEGMENT_BYTES + BLKIF_SEGMENT_LAST_SECT_AT];
        sectors += last >= first ? last - first + 1 : 0;
    }
    return sectors;
}

static struct meaning read_blkif(const struct rules *rules, const struct message *message) {
    const struct offsets *at = message->layout == LAYOUT_X86_32 ? &PACKED : &ALIGNED;
    const unsigned char *slot = message->bytes;
    struct meaning meaning = {.kind = MESSAGE_OTHER};
    if (message->way == WAY_TO_INITIATOR) {
        if (message->length < at->answer_bytes)
            return meaning;
        meaning.kind = MESSAGE_ANSWER;
        meaning.tag = load_le64(slot + at->answer_id);
        meaning.failed = load_le16(slot + at->answer_status);
        return meaning;
    }
    if (message->length < at->slot)
        return meaning;
    uint8_t operation = slot[BLKIF64_RW_OPERATION_AT];
    size_t id = at->id, address = at->sector;
    uint64_t sectors;
    bool addressed = operation != BLKIF_OP_FLUSH_DISKCACHE;
    if (operation == BLKIF_OP_DISCARD) {
        id = at->discard_id;
        address = at->discard_sector;
        sectors = load_le64(slot + at->discard_sectors);
    } else if (operation == BLKIF_OP_INDIRECT) {
        id = at->indirect_id;
        address = at->indirect_sector;
        operation = slot[BLKIF64_INDIRECT_INDIRECT_OP_AT];
        sectors = sectors_of(message->descriptors, message->descriptors_length,
                             load_le16(slot + BLKIF64_INDIRECT_NR_SEGMENTS_AT));
    } else { /* further slots hold nothing but segments (FreeBSD's segment blocks) */
        size_t count = slot[BLKIF64_RW_NR_SEGMENTS_AT];
        size_t here = count < BLKIF_SEGMENTS ? count : BLKIF_SEGMENTS;
        sectors = sectors_of(slot + at->segments, at->slot - at->segments, here) +
                  sectors_of(slot + at->slot, message->length - at->slot, count - here);
        addressed = addressed && operation <= BLKIF_OP_WRITE_BARRIER;
    }
    meaning.kind = MESSAGE_COMMAND;
    meaning.tag = load_le64(slot + id);
    meaning.meets =
        (!rules->by_opcode || (operation < 32 && rules->operations >> operation & 1)) &&
        (!rules->by_lba || (addressed && meets_range(rules, load_le64(slot + address), sectors)));
    return meaning;
}

struct meaning rules_read(const struct rules *rules, const struct message *message) {
    switch (message->protocol) {
    case ON_SRP:
        return read_srp(rules, message);
    case ON_VSCSIIF:
        return read_vscsiif(rules, message);
    case ON_BLKIF:
        return read_blkif(rules, message);
    default:
        return (struct meaning){.kind = MESSAGE_OTHER};
    }
}
