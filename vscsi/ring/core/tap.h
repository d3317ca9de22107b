/* SPDX-License-Identifier: MIT */
/*
 * What crosses a ring, for whoever wants to see it: a byte ring of entries from the thread that
 * serves (which never waits: what finds no room is counted) to one that takes them. In a file they
 * are pcapng packets (vscsi/wire/pcapng.py) around records (vscsi/wire/record.py).
 */
#ifndef VSCSI_TAP_H
#define VSCSI_TAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* One message; `lost` says how many found no room just before it. */
struct tap_entry {
    uint32_t bytes; /* of the entry, whole words; all ones: the next one is at the start */
    uint32_t lost;
    uint64_t time_ns; /* of the monotonic clock */
    uint32_t ring_index;
    uint16_t in_flight;
    uint8_t way;
    uint8_t reserved;
    uint16_t message, descriptors; /* bytes that follow, one after the other */
    uint32_t data;                 /* and bytes of a struct tap_data with what follows that */
};

/* What is kept of a message's data: its first bytes follow, as many as were wanted. */
struct tap_data {
    uint64_t xxh64; /* of all of it, if `hashed` */
    uint32_t length;
    uint16_t hashed, parameters; /* a parameter list belongs to its command: it is always kept */
};

struct tap {
    unsigned char *bytes;
    uint64_t size; /* a power of two */
    _Atomic bool active;
    _Atomic uint32_t wanted; /* of data: how many first bytes, TAP_HASH */
    uint32_t lost;           /* the producer's own */
    _Atomic uint64_t dropped;
    _Alignas(64) _Atomic uint64_t put;
    _Alignas(64) _Atomic uint64_t taken;
};

static inline bool tap_is_active(const struct tap *tap) {
    return tap && atomic_load_explicit(&tap->active, memory_order_acquire);
}

/* TAP_HASH stands beside at most RECORD_MAX_PAYLOAD bytes. */
enum { TAP_HASH = 1u << 30, TAP_PARAMETERS = 1 << 14 };

/* What somebody wants of the data, now; 0: nothing, and that is all it costs. */
static inline uint32_t tap_wanted(const struct tap *tap) {
    return atomic_load_explicit(&tap->wanted, memory_order_relaxed);
}

/*
 * Show a message (the producer's thread). entry: all but bytes and lost. data: `entry.data` bytes
 * that tap_copy has written.
 */
void tap_put(struct tap *tap, struct tap_entry entry, const void *message, const void *descriptors,
             const void *data);

/*
 * The same with what is wanted of `length` bytes of data in the peer's memory. They are read here
 * once and by the store once: a peer that changes them meanwhile makes the two differ.
 */
void tap_put_data(struct tap *tap, struct tap_entry entry, const void *message,
                  const void *descriptors, const struct iovec *segments, uint32_t length);

/* Write what is wanted of data as a struct tap_data and what follows it; return the bytes. */
size_t tap_copy(uint32_t wanted, const struct iovec *segments, uint32_t length, unsigned char *out);
size_t tap_copy_bytes(uint32_t wanted, uint32_t length); /* how many these are */

/*
 * Take entries (one consumer's thread) into `out`, one after the other, as many as fit in `room`;
 * return their bytes and count them. TAP_MAX_ENTRY bytes hold one in any case.
 */
enum { TAP_MIN_SIZE = 1 << 13, TAP_MAX_ENTRY = 3 << 16 };
size_t tap_take(struct tap *tap, unsigned char *out, size_t room, uint64_t *entries);

/* What pcapng packets say of all entries of one ring. */
struct tap_path {
    uint32_t interface;
    uint64_t clock_offset_ns; /* from the monotonic clock to that of the file */
    uint32_t lost;            /* before the first, beside what that says */
    uint8_t protocol, layout;
    uint16_t domain, device, queue;
    uint8_t payload_kind;   /* what is written of data that entries hold more of */
    uint32_t payload_bytes; /* at most, of the first ones */
};

/*
 * Write `bytes` bytes of taken entries as packets; return their bytes: at most TAP_PACKET_BYTES for
 * each entry beyond its own.
 */
enum { TAP_PACKET_BYTES = 64 };
size_t tap_packets(const unsigned char *entries, size_t bytes, const struct tap_path *path,
                   unsigned char *out);

#endif
