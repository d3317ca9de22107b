/* SPDX-License-Identifier: MIT */
#include "tap.h"

#include "layout.h"
#include "xxh64.h"

#include <string.h>

enum { WRAP = UINT32_MAX, WORD = 8, OPTIONS_BYTES = 16, MIN_BLOCK = 12 };

_Static_assert(sizeof(struct tap_entry) % WORD == 0, "entries are whole words");
_Static_assert(MIN_BLOCK + (int)PCAPNG_PACKET_BYTES + (int)RECORD_BYTES + OPTIONS_BYTES + 4 <=
                   (int)TAP_PACKET_BYTES + (int)sizeof(struct tap_entry),
               "what a packet has beyond its entry");

static uint64_t round_up(uint64_t bytes, uint64_t unit) { return (bytes + unit - 1) & ~(unit - 1); }

/*
 * Find room for an entry, whose bytes and lost are set, and write its head, message and
 * descriptors; return where its data go, and in `end` what tap->put is with it. NULL: it is lost.
 */
static unsigned char *begin(struct tap *tap, struct tap_entry *entry, const void *message,
                            const void *descriptors, uint64_t *end) {
    uint64_t bytes =
        round_up(sizeof *entry + (uint64_t)entry->message + entry->descriptors + entry->data, WORD);
    uint64_t put = atomic_load_explicit(&tap->put, memory_order_relaxed);
    uint64_t taken = atomic_load_explicit(&tap->taken, memory_order_acquire);
    uint64_t at = put & (tap->size - 1);
    uint64_t skipped = tap->size - at < bytes ? tap->size - at : 0; /* entries lie together */
    if (bytes > TAP_MAX_ENTRY || tap->size - (put - taken) < skipped + bytes) {
        tap->lost++;
        atomic_fetch_add_explicit(&tap->dropped, 1, memory_order_relaxed);
        return NULL;
    }
    if (skipped) {
        uint32_t wrap = WRAP;
        memcpy(tap->bytes + at, &wrap, sizeof wrap);
        at = 0;
    }
    entry->bytes = (uint32_t)bytes;
    entry->lost = tap->lost;
    tap->lost = 0;
    unsigned char *to = tap->bytes + at;
    memcpy(to, entry, sizeof *entry);
    memcpy(to + sizeof *entry, message, entry->message);
    if (entry->descriptors)
        memcpy(to + sizeof *entry + entry->message, descriptors, entry->descriptors);
    *end = put + skipped + bytes;
    return to + sizeof *entry + entry->message + entry->descriptors;
}

void tap_put(struct tap *tap, struct tap_entry entry, const void *message, const void *descriptors,
             const void *data) {
    uint64_t end;
    unsigned char *to = begin(tap, &entry, message, descriptors, &end);
    if (!to)
        return;
    if (entry.data)
        memcpy(to, data, entry.data);
    atomic_store_explicit(&tap->put, end, memory_order_release);
}

void tap_put_data(struct tap *tap, struct tap_entry entry, const void *message,
                  const void *descriptors, const struct iovec *segments, uint32_t length) {
    uint32_t wanted = tap_wanted(tap);
    uint64_t end;
    entry.data = (uint32_t)tap_copy_bytes(wanted, length);
    unsigned char *to = begin(tap, &entry, message, descriptors, &end);
    if (!to)
        return;
    tap_copy(wanted, segments, length, to);
    atomic_store_explicit(&tap->put, end, memory_order_release);
}

static uint32_t head_bytes(uint32_t wanted, uint32_t length) {
    uint32_t head = wanted & ~(uint32_t)TAP_HASH;
    return head < length ? head : length;
}

size_t tap_copy_bytes(uint32_t wanted, uint32_t length) {
    return wanted && length ? sizeof(struct tap_data) + head_bytes(wanted, length) : 0;
}

size_t tap_copy(uint32_t wanted, const struct iovec *segments, uint32_t length,
                unsigned char *out) {
    size_t bytes = tap_copy_bytes(wanted, length);
    if (!bytes)
        return 0;
    struct tap_data data = {.length = length, .hashed = wanted & TAP_HASH ? 1 : 0};
    struct xxh64 hash;
    xxh64_begin(&hash);
    uint32_t head = head_bytes(wanted, length), left = data.hashed ? length : head;
    for (unsigned char *to = out + sizeof data; left; segments++) {
        uint32_t part = segments->iov_len < left ? (uint32_t)segments->iov_len : left;
        uint32_t kept = head < part ? head : part;
        memcpy(to, segments->iov_base, kept);
        if (data.hashed) {
            xxh64_add(&hash, to, kept); /* what is kept, even if somebody changes it meanwhile */
            xxh64_add(&hash, (const unsigned char *)segments->iov_base + kept, part - kept);
        }
        to += kept;
        head -= kept;
        left -= part;
    }
    data.xxh64 = xxh64_end(&hash);
    memcpy(out, &data, sizeof data);
    return bytes;
}

static void put16(unsigned char *at, uint16_t value) { memcpy(at, &value, sizeof value); }
static void put32(unsigned char *at, uint32_t value) { memcpy(at, &value, sizeof value); }
static void put64(unsigned char *at, uint64_t value) { memcpy(at, &value, sizeof value); }

/*
 * Write what a record says of an entry's data, and its payload, which `from` is; return the
 * payload's bytes.
 */
static size_t write_payload(const struct tap_path *path, const struct tap_entry *entry,
                            const unsigned char *from, unsigned char *record, unsigned char *to) {
    struct tap_data data;
    size_t bytes = 0;
    memcpy(&data, from, sizeof data);
    uint8_t kind = data.parameters ? PAYLOAD_HEAD : path->payload_kind;
    if (kind == PAYLOAD_XXH64 && data.hashed) {
        put64(to, data.xxh64);
        bytes = sizeof data.xxh64;
    } else if (kind == PAYLOAD_HEAD) {
        bytes = entry->data - sizeof data;
        if (!data.parameters && bytes > path->payload_bytes)
            bytes = path->payload_bytes;
        memcpy(to, from + sizeof data, bytes);
    } else {
        return 0;
    }
    put32(record + RECORD_DATA_LENGTH_AT, data.length);
    record[RECORD_PAYLOAD_KIND_AT] = kind;
    return bytes;
}

/* Write one packet block; return its bytes. */
static size_t write_packet(const struct tap_path *path, const struct tap_entry *entry,
                           const unsigned char *data, unsigned char *out) {
    size_t crossed = (size_t)entry->message + entry->descriptors;
    unsigned char *packet = out + PCAPNG_HEAD_BYTES, *record = packet + PCAPNG_PACKET_BYTES;
    memcpy(record + RECORD_BYTES, data, crossed);
    size_t captured = RECORD_BYTES + crossed;
    memset(record + RECORD_DATA_LENGTH_AT, 0, RECORD_MESSAGE_AT - RECORD_DATA_LENGTH_AT);
    if (entry->data)
        captured += write_payload(path, entry, data + crossed, record, record + captured);
    size_t padded = round_up(captured, 4), options = entry->lost ? OPTIONS_BYTES : 0;
    size_t bytes = MIN_BLOCK + PCAPNG_PACKET_BYTES + padded + options;
    uint64_t time_ns = entry->time_ns + path->clock_offset_ns;
    put32(out + PCAPNG_HEAD_TYPE_AT, PCAPNG_BLOCK_ENHANCED_PACKET);
    put32(out + PCAPNG_HEAD_LENGTH_AT, (uint32_t)bytes);
    put32(packet + PCAPNG_PACKET_INTERFACE_AT, path->interface);
    put32(packet + PCAPNG_PACKET_TIME_HIGH_AT, (uint32_t)(time_ns >> 32));
    put32(packet + PCAPNG_PACKET_TIME_LOW_AT, (uint32_t)time_ns);
    put32(packet + PCAPNG_PACKET_CAPTURED_LENGTH_AT, (uint32_t)captured);
    put32(packet + PCAPNG_PACKET_ORIGINAL_LENGTH_AT, (uint32_t)captured);
    record[RECORD_VERSION_AT] = RECORD_VERSION;
    record[RECORD_PROTOCOL_AT] = path->protocol;
    record[RECORD_DIRECTION_AT] = entry->way;
    record[RECORD_LAYOUT_AT] = path->layout;
    put16(record + RECORD_DOMAIN_AT, path->domain);
    put16(record + RECORD_DEVICE_AT, path->device);
    put16(record + RECORD_QUEUE_AT, path->queue);
    put16(record + RECORD_IN_FLIGHT_AT, entry->in_flight);
    put32(record + RECORD_RING_INDEX_AT, entry->ring_index);
    put16(record + RECORD_MESSAGE_LENGTH_AT, entry->message);
    put16(record + RECORD_SEGMENTS_LENGTH_AT, entry->descriptors);
    memset(record + captured, 0, padded - captured);
    unsigned char *option = record + padded;
    if (options) {
        put16(option, PCAPNG_EPB_DROPCOUNT);
        put16(option + 2, sizeof(uint64_t));
        put64(option + 4, entry->lost);
        put32(option + 12, 0); /* the options' end */
    }
    put32(option + options, (uint32_t)bytes);
    return bytes;
}

size_t tap_take(struct tap *tap, unsigned char *out, size_t room, uint64_t *entries) {
    uint64_t taken = atomic_load_explicit(&tap->taken, memory_order_relaxed);
    uint64_t put = atomic_load_explicit(&tap->put, memory_order_acquire);
    size_t written = 0;
    *entries = 0;
    while (taken != put) {
        const unsigned char *at = tap->bytes + (taken & (tap->size - 1));
        uint32_t bytes;
        memcpy(&bytes, at, sizeof bytes);
        if (bytes == WRAP) {
            taken += tap->size - (taken & (tap->size - 1));
            continue;
        }
        if (bytes > room - written)
            break;
        memcpy(out + written, at, bytes);
        written += bytes;
        taken += bytes;
        ++*entries;
    }
    atomic_store_explicit(&tap->taken, taken, memory_order_release);
    return written;
}

size_t tap_packets(const unsigned char *entries, size_t bytes, const struct tap_path *path,
                   unsigned char *out) {
    size_t written = 0;
    for (size_t at = 0; at < bytes;) {
        struct tap_entry entry;
        memcpy(&entry, entries + at, sizeof entry);
        entry.lost += at ? 0 : path->lost;
        written += write_packet(path, &entry, entries + at + sizeof entry, out + written);
        at += entry.bytes;
    }
    return written;
}
