/* SPDX-License-Identifier: MIT */
/* What a ring protocol is to the C loop: how a slot becomes a command, and a command an answer. */
#ifndef VSCSI_PROTOCOL_H
#define VSCSI_PROTOCOL_H

#include "command.h"

enum { ANSWER_BYTES = 128, UNITS_MAX = 256 };

/* How the initiator addresses a logical unit, and whether that has something to tell it first. */
struct place {
    unsigned char address[8];
    struct unit *unit;
    struct tally *tally; /* NULL: what is executed is not counted there */
    _Atomic bool attention;
};

struct service;

struct protocol {
    /*
     * Read a private copy of a slot. True if the command is the C path's; its memory is then ours
     * until `release`. False, and nothing is held: Python reads the same copy.
     */
    bool (*read)(struct service *service, const unsigned char *slot, struct command *command);
    /*
     * Look where the data seem to be of a command that was not copied yet, and have them fetched.
     * The peer may be writing the slot: nothing else may depend on it.
     */
    void (*hint)(struct service *service, const unsigned char *slot);
    /* Let go of a command's memory; NULL if there is nothing to do. */
    void (*release)(struct service *service, struct command *command);
    /* Write the answer to a command that ended well; return its bytes, at most ANSWER_BYTES. */
    size_t (*answer)(struct service *service, const struct command *command,
                     unsigned char *message);
};

extern const struct protocol srp_protocol, vscsiif_protocol, blkif64_protocol, blkif32_protocol;

#endif
