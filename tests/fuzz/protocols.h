/* SPDX-License-Identifier: MIT */
/* The ring protocols that are fuzzed: a line each. -DPROTOCOL=NAME chooses. */
#ifndef PROTOCOLS_H
#define PROTOCOLS_H

#include "protocol.h"
#include "ring.h"

struct fuzzed {
    const struct protocol *protocol;
    enum ring_kind ring;
    uint32_t least_slot, most_slot, slot_step;
    size_t tag, answer_tag, tag_bytes; /* where a request and its answer say which one it is */
};

enum { SRP, VSCSIIF, BLKIF64, BLKIF32 };

static const struct fuzzed FUZZED[] = {
    [SRP] = {&srp_protocol, RING_PAIR, 128, 448, 64, SLOT_HEADER_BYTES + SRP_CMD_TAG_AT,
             SLOT_HEADER_BYTES + SRP_RSP_TAG_AT, 8},
    [VSCSIIF] = {&vscsiif_protocol, RING_XEN_BACK, VSCSIIF_SLOT_SIZE, VSCSIIF_SLOT_SIZE, 1,
                 VSCSIIF_RQID_AT, VSCSIIF_RSP_RQID_AT, 2},
    [BLKIF64] = {&blkif64_protocol, RING_XEN_BACK, BLKIF64_SLOT_SIZE, BLKIF64_SLOT_SIZE, 1,
                 BLKIF64_RW_ID_AT, BLKIF64_RESPONSE_ID_AT, 8},
    [BLKIF32] = {&blkif32_protocol, RING_XEN_BACK, BLKIF32_SLOT_SIZE, BLKIF32_SLOT_SIZE, 1,
                 BLKIF32_RW_ID_AT, BLKIF32_RESPONSE_ID_AT, 8},
};

#endif
