/* SPDX-License-Identifier: MIT */
/*
 * What is around a service: a guest's memory with a ring in it, registered regions, logical units
 * on stores. Made from the input:
 *
 *   slot size u8 (top bit: the ring's pages can be granted); each unit: state and attention u8;
 * regions u8, each: handle u8, flags u8 (1 read-only, bits 1-2 runs - 1), runs of offset u16 and
 * length u16 (+ 1); patches of the guest's memory u8, each: offset u16, length u8, bytes.
 *
 * The guest's pages: the grant table, requests (or all of a Xen ring), responses, data.
 */
#ifndef WORLD_H
#define WORLD_H

#include "fuzz.h"
#include "protocols.h"
#include "service.h"

enum {
    GUEST_PAGES = 8,
    GUEST_BYTES = GUEST_PAGES * PAGES_SIZE,
    REQUESTS_AT = 1 * PAGES_SIZE,
    RESPONSES_AT = 2 * PAGES_SIZE,
    DATA_AT = 3 * PAGES_SIZE,
    UNITS = 3, /* on memory, on nothing, on a file that ends before the unit does */
    RUNS = 4,
    ENTRIES = 8, /* few, so that the ring's ends meet */
    STORE_BYTES = 1 << 13,
    FILE_BYTES = 1 << 14,
    ATTENTION = 16, /* of a unit's byte; the bits below are its state */
};

struct world {
    const struct fuzzed *fuzzed;
    unsigned char *guest, *guest_readonly; /* its memory, mapped twice */
    int file;
    struct area memory; /* of the first store */
    struct store store[UNITS];
    struct unit unit[UNITS];
    struct place place[UNITS];
    struct run runs[REGIONS_MAX][RUNS];
    struct grants grants;
    struct pin pin[PAGES_SIZE / sizeof(struct grant_entry)];
    struct ring_end ring;
    struct service service;
    struct tap tap;
    unsigned char tapped[2 * TAP_MAX_ENTRY];
    struct command command[ENTRIES];
    unsigned char slots[ENTRIES * RING_MAX_SLOT];
    bool was_writable;         /* the first unit, ever */
    bool file_used;            /* other than by the service */
    _Atomic bool ring_is_data; /* commands may write to the ring's pages */
};

extern struct world world;

/* Make it anew. */
void world_make(struct input *input);
void world_add_region(struct input *input);
/* Set a unit's state as its byte says. */
void world_set_unit(size_t index, uint8_t byte);
/* A command that was read is one that may be executed. */
void world_check_command(const struct command *command);
/* Nothing is held, no gate is entered, nothing beside the memory was touched. */
void world_check(void);

#endif
