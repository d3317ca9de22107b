/* SPDX-License-Identifier: MIT */
/*
 * What a message of a ring is about, for who keeps some commands of a capture and not others.
 * Messages are a peer's: nothing is read beyond their bytes.
 */
#ifndef VSCSI_RULES_H
#define VSCSI_RULES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { RULES_MAX = 64 };

/* A command's opcode; action: its service action, or -1 for whichever it has. */
struct rule_opcode {
    uint8_t opcode;
    int32_t action;
};

/* A command is kept if it meets each of the conditions that there are. */
struct rules {
    bool by_lun, by_opcode, by_lba, by_status;
    uint32_t lun[RULES_MAX], luns;
    struct rule_opcode opcode[RULES_MAX];
    uint32_t opcodes;
    uint32_t operations;          /* blkif's, one bit each */
    uint64_t first_lba, last_lba; /* blkif's sectors */
    uint32_t status[256 / 32];    /* one bit each */
    bool failed;                  /* beside a status: answered as not executed, or not at all */
};

enum message_kind { MESSAGE_OTHER, MESSAGE_COMMAND, MESSAGE_FUNCTION, MESSAGE_ANSWER };

struct message {
    uint8_t protocol, layout, way; /* ON_SRP, LayoutCode, WAY_... */
    const unsigned char *bytes, *descriptors;
    size_t length, descriptors_length;
};

struct meaning {
    enum message_kind kind;
    uint64_t tag;
    bool meets; /* of a command: all but the status */
    bool failed;
    uint8_t status;
};

struct meaning rules_read(const struct rules *rules, const struct message *message);

/* Whether an answer has a status that is asked for. */
bool rules_meet_status(const struct rules *rules, bool failed, uint8_t status);

#endif
