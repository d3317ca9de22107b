/* SPDX-License-Identifier: MIT */
/* The protocols' requests and answers, as far as a load has to know them. */
#include "command.h"
#include "load.h"

static bool read_srp(const unsigned char *slot, struct load_answer *answer) {
    const unsigned char *unit = slot + SLOT_HEADER_BYTES;
    if (slot[SLOT_FORMAT_AT] != SLOT_FORMAT_SRP || unit[SRP_RSP_TYPE_AT] != SRP_TYPE_RSP)
        return false;
    answer->tag = load_be64(unit + SRP_RSP_TAG_AT);
    answer->room = (int32_t)load_be32(unit + SRP_RSP_REQUEST_LIMIT_DELTA_AT);
    answer->good = load_le16(slot + SLOT_LENGTH_AT) == SRP_RSP_BYTES && !unit[SRP_RSP_FLAGS_AT] &&
                   !unit[SRP_RSP_STATUS_AT];
    return true;
}

static bool read_vscsiif(const unsigned char *slot, struct load_answer *answer) {
    answer->tag = load_le16(slot + VSCSIIF_RSP_RQID_AT);
    answer->room = 1;
    answer->good = !load_le32(slot + VSCSIIF_RSP_RSLT_AT) &&
                   !load_le32(slot + VSCSIIF_RSP_RESIDUAL_AT) && !slot[VSCSIIF_RSP_SENSE_LEN_AT];
    return true;
}

static bool read_blkif(const unsigned char *slot, struct load_answer *answer, size_t operation_at,
                       size_t status_at) {
    answer->tag = load_le64(slot);
    answer->room = 1;
    answer->good = load_le16(slot + status_at) == BLKIF_RSP_OKAY;
    return slot[operation_at] == BLKIF_OP_READ || slot[operation_at] == BLKIF_OP_WRITE;
}

static bool read_blkif64(const unsigned char *slot, struct load_answer *answer) {
    return read_blkif(slot + BLKIF64_RESPONSE_ID_AT, answer, BLKIF64_RESPONSE_OPERATION_AT,
                      BLKIF64_RESPONSE_STATUS_AT);
}

static bool read_blkif32(const unsigned char *slot, struct load_answer *answer) {
    return read_blkif(slot + BLKIF32_RESPONSE_ID_AT, answer, BLKIF32_RESPONSE_OPERATION_AT,
                      BLKIF32_RESPONSE_STATUS_AT);
}

_Static_assert((int)BLKIF64_RW_SECTOR_NUMBER_AT == BLKIF64_INDIRECT_SECTOR_NUMBER_AT &&
                   (int)BLKIF32_RW_SECTOR_NUMBER_AT == BLKIF32_INDIRECT_SECTOR_NUMBER_AT,
               "one place for both forms of a request");

const struct load_protocol load_protocols[] = {
    {"srp", SLOT_HEADER_BYTES + SRP_CMD_CDB_AT + CDB16_LBA_AT, true, read_srp},
    {"vscsiif", VSCSIIF_CDB_AT + CDB16_LBA_AT, true, read_vscsiif},
    {"blkif64", BLKIF64_RW_SECTOR_NUMBER_AT, false, read_blkif64},
    {"blkif32", BLKIF32_RW_SECTOR_NUMBER_AT, false, read_blkif32},
};

const size_t load_protocols_count = sizeof load_protocols / sizeof *load_protocols;
