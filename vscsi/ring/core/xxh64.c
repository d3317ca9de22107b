/* SPDX-License-Identifier: MIT */
#include "xxh64.h"

#include <string.h>

enum { STRIPE = sizeof((struct xxh64 *)0)->waiting, WORD = 8 };

static const uint64_t P1 = 0x9E3779B185EBCA87, P2 = 0xC2B2AE3D27D4EB4F, P3 = 0x165667B19E3779F9,
                      P4 = 0x85EBCA77C2B2AE63, P5 = 0x27D4EB2F165667C5;

static uint64_t rotate(uint64_t value, unsigned bits) {
    return value << bits | value >> (64 - bits);
}

static uint64_t word(const unsigned char *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static uint64_t mix(uint64_t lane, uint64_t value) { return rotate(lane + value * P2, 31) * P1; }

static void add_stripe(uint64_t *lane, const unsigned char *at) {
    for (unsigned i = 0; i < 4; i++)
        lane[i] = mix(lane[i], word(at + i * WORD));
}

void xxh64_begin(struct xxh64 *hash) { *hash = (struct xxh64){.lane = {P1 + P2, P2, 0, 0 - P1}}; }

void xxh64_add(struct xxh64 *hash, const unsigned char *data, size_t length) {
    size_t waiting = hash->length % STRIPE;
    hash->length += length;
    if (waiting) {
        size_t part = STRIPE - waiting < length ? STRIPE - waiting : length;
        memcpy(hash->waiting + waiting, data, part);
        data += part;
        length -= part;
        if (waiting + part < STRIPE)
            return;
        add_stripe(hash->lane, hash->waiting);
    }
    uint64_t lane[4]; /* in registers */
    memcpy(lane, hash->lane, sizeof lane);
    for (; length >= STRIPE; data += STRIPE, length -= STRIPE)
        add_stripe(lane, data);
    memcpy(hash->lane, lane, sizeof lane);
    memcpy(hash->waiting, data, length);
}

uint64_t xxh64_end(const struct xxh64 *hash) {
    const uint64_t *lane = hash->lane;
    uint64_t sum = lane[2] + P5; /* the seed is there, where no stripe was added */
    if (hash->length >= STRIPE) {
        sum = rotate(lane[0], 1) + rotate(lane[1], 7) + rotate(lane[2], 12) + rotate(lane[3], 18);
        for (unsigned i = 0; i < 4; i++)
            sum = (sum ^ mix(0, lane[i])) * P1 + P4;
    }
    sum += hash->length;
    const unsigned char *at = hash->waiting, *end = at + hash->length % STRIPE;
    for (; end - at >= WORD; at += WORD)
        sum = rotate(sum ^ mix(0, word(at)), 27) * P1 + P4;
    if (end - at >= WORD / 2) {
        uint32_t half;
        memcpy(&half, at, sizeof half);
        sum = rotate(sum ^ half * P1, 23) * P2 + P3;
        at += sizeof half;
    }
    for (; at < end; at++)
        sum = rotate(sum ^ *at * P5, 11) * P1;
    sum = (sum ^ sum >> 33) * P2;
    sum = (sum ^ sum >> 29) * P3;
    return sum ^ sum >> 32;
}
