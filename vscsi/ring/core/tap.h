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

/* One message; `lost` says how many found no room just before it. */
struct tap_entry {
    uint32_t bytes; /* of the entry, whole words; all ones: the next one is at the start */
    uint32_t lost;
    uint64_t time_ns; /* of the monotonic clock */
    uint32_t ring_index;
    uint16_t in_flight;
    uint8_t way;
    uint8_t reserved;
    uint32_t message, descriptors; /* bytes that follow, one after the other */
};

struct tap {
    unsigned char *bytes;
    uint64_t size; /* a power of two */
    _Atomic bool active;
    uint32_t lost; /* the producer's own */
    _Atomic uint64_t dropped;
    _Alignas(64) _Atomic uint64_t put;
    _Alignas(64) _Atomic uint64_t taken;
};

static inline bool tap_is_active(const struct tap *tap) {
    return tap && atomic_load_explicit(&tap->active, memory_order_acquire);
}

/* Show a message (the producer's thread). entry: all but bytes and lost. */
void tap_put(struct tap *tap, struct tap_entry entry, const void *message, const void *descriptors);

/*
 * Take entries (one consumer's thread) into `out`, one after the other, as many as fit in `room`;
 * return their bytes and count them. TAP_MAX_ENTRY bytes hold one in any case.
 */
enum { TAP_MAX_ENTRY = 1 << 13 };
size_t tap_take(struct tap *tap, unsigned char *out, size_t room, uint64_t *entries);

/* What pcapng packets say of all entries of one ring. */
struct tap_path {
    uint32_t interface;
    uint64_t clock_offset_ns; /* from the monotonic clock to that of the file */
    uint32_t lost;            /* before the first, beside what that says */
    uint8_t protocol, layout;
    uint16_t domain, device, queue;
};

/*
 * Write `bytes` bytes of taken entries as packets; return their bytes: at most TAP_PACKET_BYTES for
 * each entry beyond its own.
 */
enum { TAP_PACKET_BYTES = 64 };
size_t tap_packets(const unsigned char *entries, size_t bytes, const struct tap_path *path,
                   unsigned char *out);

#endif
