/* SPDX-License-Identifier: MIT */
/* A command that the C path executes itself, and what a protocol makes of a slot. */
#ifndef VSCSI_COMMAND_H
#define VSCSI_COMMAND_H

#include "layout.h"
#include "sg.h"
#include "unit.h"

enum { COMMAND_SEGMENTS = 512 }; /* iovecs; what needs more takes the Python path */

/* A stretch of a store, in bytes. */
struct range {
    uint64_t offset, length;
};

struct tally;

struct command {
    enum operation operation;
    struct unit *unit;
    uint64_t offset; /* bytes of the store */
    uint32_t length; /* bytes, the sum of the segments */
    bool durable;    /* FUA, or no write cache: on stable storage before it is answered */
    bool barrier;    /* what was answered before it is on stable storage before it begins */
    unsigned char cdb[SG_CDB_BYTES]; /* of a unit of the kernel's: what that executes */
    uint8_t cdb_length;
    uint64_t tag; /* the protocol's, as it goes into the answer */
    uint8_t code; /* what it is counted as: the opcode; blkif's operation, for the answer too */
    struct tally *tally;
    int segments;
    int ranges; /* OP_UNMAP: in the segments' place, whose content it is */
    union {
        struct iovec segment[COMMAND_SEGMENTS];
        struct range range[COMMAND_SEGMENTS];
    };
    /* Grants that it holds, where segments are named by them. */
    size_t mapped;
    bool readonly;
    uint32_t reference[COMMAND_SEGMENTS];
    /* Of one that is executed later. */
    uint64_t taken_ns; /* when it was seen on the ring */
    struct command *next;
    bool moved; /* its data is where it belongs: a flush is left */
    bool shown; /* to the tap */
    int error;
};

/* Add memory to a command's segments; false if it has no room. What lies together is one. */
static inline bool command_add(struct command *command, unsigned char *base, size_t length) {
    if (command->segments) {
        struct iovec *last = &command->segment[command->segments - 1];
        if ((unsigned char *)last->iov_base + last->iov_len == base) {
            last->iov_len += length;
            return true;
        }
    }
    if (command->segments == COMMAND_SEGMENTS)
        return false;
    command->segment[command->segments++] = (struct iovec){base, length};
    return true;
}

/*
 * Read a CDB of `length` bytes whose buffers have `out` and `in` bytes. True, and operation, unit,
 * offset, length and durable are set, if the C path executes it: a command of CDB_ROWS that is in
 * range and permitted, with a buffer for just what it moves. All others are Python's, which knows
 * what to answer. The parameter list of UNMAP is copied out of the segments, once.
 */
bool command_read_cdb(struct command *command, struct unit *unit, const unsigned char *cdb,
                      size_t length, uint64_t out, uint64_t in);

/* Have the data fetched that a CDB of 16 bytes, which somebody may be writing, seems to read. No
 * unit, no data. */
void command_hint(const struct unit *unit, const unsigned char *cdb);

/* Execute it, or what `moved` leaves to do; 0 or an errno. */
int command_execute(struct command *command);

/* The same, but EAGAIN, and nothing is done yet, if that would have to wait for a device. */
int command_execute_now(struct command *command);

static inline uint16_t load_be16(const unsigned char *at) {
    uint16_t value;
    __builtin_memcpy(&value, at, sizeof value);
    return __builtin_bswap16(value);
}

static inline uint32_t load_be32(const unsigned char *at) {
    uint32_t value;
    __builtin_memcpy(&value, at, sizeof value);
    return __builtin_bswap32(value);
}

static inline uint64_t load_be64(const unsigned char *at) {
    uint64_t value;
    __builtin_memcpy(&value, at, sizeof value);
    return __builtin_bswap64(value);
}

static inline uint64_t load_be(const unsigned char *at, unsigned bytes) {
    if (bytes == 8)
        return load_be64(at);
    if (bytes == 4)
        return load_be32(at);
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++)
        value = value << 8 | at[i];
    return value;
}

static inline uint16_t load_le16(const unsigned char *at) {
    uint16_t value;
    __builtin_memcpy(&value, at, sizeof value);
    return value;
}

static inline uint32_t load_le32(const unsigned char *at) {
    uint32_t value;
    __builtin_memcpy(&value, at, sizeof value);
    return value;
}

static inline uint64_t load_le64(const unsigned char *at) {
    uint64_t value;
    __builtin_memcpy(&value, at, sizeof value);
    return value;
}

static inline void store_be32(unsigned char *at, uint32_t value) {
    value = __builtin_bswap32(value);
    __builtin_memcpy(at, &value, sizeof value);
}

#endif
