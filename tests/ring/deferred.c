/* SPDX-License-Identifier: MIT */
/*
 * The loop over a ring whose disk makes every command wait, with the threads that stand in for
 * io_uring: deferred IMAGE ROUNDS. Writes (each through to the disk), a flush and reads of the
 * image's blocks; what is read must be what was written.
 */
#include "service.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { BLOCK = 512, DEPTH = 40, COMMANDS = 32, SLOT = 128, RING_BYTES = 1 << 14, UNIT = 7 };

static unsigned char requests[RING_BYTES], responses[RING_BYTES];
static unsigned char memory[DEPTH * BLOCK], slots[COMMANDS * SLOT];
static struct ring_end front, back;
static struct service service;
static struct command commands[COMMANDS];

static void check(bool good, const char *what) {
    if (!good) {
        fprintf(stderr, "%s\n", what);
        exit(1);
    }
}

/* Put a command on the block `lba`, into or from the memory's block of the same number. */
static void put(unsigned char opcode, uint32_t lba) {
    unsigned char slot[SLOT] = {0}, *unit = slot + SLOT_HEADER_BYTES;
    bool moves = opcode == 0x28 || opcode == 0x2A;
    slot[SLOT_FORMAT_AT] = SLOT_FORMAT_SRP;
    slot[SLOT_LENGTH_AT] = SRP_CMD_BYTES + (moves ? SRP_DESCRIPTOR_BYTES : 0);
    unit[SRP_CMD_TYPE_AT] = SRP_TYPE_CMD;
    memcpy(unit + SRP_CMD_TAG_AT, &lba, sizeof lba);
    unit[SRP_CMD_CDB_AT] = opcode;
    if (moves) {
        unsigned char *descriptor = unit + SRP_CMD_BYTES;
        unit[SRP_CMD_DATA_FORMATS_AT] =
            (unsigned char)(opcode == 0x28 ? SRP_BUFFER_DIRECT : SRP_BUFFER_DIRECT << 4);
        store_be32(unit + SRP_CMD_CDB_AT + 2, lba);
        unit[SRP_CMD_CDB_AT + 8] = 1;
        store_be32(descriptor + SRP_DESCRIPTOR_ADDRESS_AT + 4, lba * BLOCK);
        store_be32(descriptor + SRP_DESCRIPTOR_HANDLE_AT, UNIT);
        store_be32(descriptor + SRP_DESCRIPTOR_LENGTH_AT, BLOCK);
    }
    check(ring_put(&front, slot, sizeof slot, false) == 1, "no room");
}

/* Have all that was put executed; what Python gets comes last. */
static void run(unsigned expected) {
    unsigned char slot[SLOT] = {0};
    slot[SLOT_FORMAT_AT] = SLOT_FORMAT_MAD;
    check(ring_put(&front, slot, sizeof slot, false) == 1, "no room");
    ring_publish(&front);
    check(service_run(&service, true) == SERVICE_MESSAGE, "no message");
    check(service.slot[SLOT_FORMAT_AT] == SLOT_FORMAT_MAD, "a command failed");
    check(ring_waiting(&front) == (int)expected, "not all are answered");
    ring_consume(&front, expected);
    ring_arm(&front);
}

int main(int count, char **arguments) {
    check(count == 3, "deferred IMAGE ROUNDS");
    int fd = open(arguments[1], O_RDWR);
    static struct store store;
    static struct unit unit;
    static struct place place = {.unit = &unit};
    struct run whole = {0, memory};
    store_init(&store, STORE_FILE);
    check(fd >= 0 && !store_use_file(&store, fd, 1), "open");
    store.waits = true; /* on a tmpfs as well */
    atomic_store(&store.reads_now, false);
    unit_init(&unit, &store, BLOCK, 1 << 20);
    atomic_store(&unit.blocks, DEPTH);
    atomic_store(&unit.state, UNIT_READY | UNIT_WRITABLE);
    ring_pair_front(&front, requests, responses, RING_BYTES, SLOT, 0);
    ring_pair_back(&back, requests, responses, RING_BYTES, SLOT);
    service.ring = &back;
    service.protocol = &srp_protocol;
    service.place = &place;
    service.places = 1;
    service.slot_bytes = SLOT;
    service.regions.count = 1;
    service.regions.region[0] =
        (struct region){.handle = UNIT, .size = sizeof memory, .count = 1, .runs = &whole};
    service.wake = eventfd(0, EFD_NONBLOCK);
    service.incoming = eventfd(0, EFD_NONBLOCK);
    service.outgoing = eventfd(0, EFD_NONBLOCK);
    service_init(&service, commands, COMMANDS, slots);
    for (int round = 0; round < atoi(arguments[2]); round++) {
        for (unsigned i = 0; i < sizeof memory; i++)
            memory[i] = (unsigned char)(i / BLOCK * 3 + i + (unsigned)round);
        for (uint32_t lba = 0; lba < DEPTH; lba++)
            put(0x2A, lba);
        put(0x35, 0);
        run(DEPTH + 1);
        memset(memory, 0, sizeof memory);
        for (uint32_t lba = 0; lba < DEPTH; lba++)
            put(0x28, lba);
        run(DEPTH);
        for (unsigned i = 0; i < sizeof memory; i++)
            check(memory[i] == (unsigned char)(i / BLOCK * 3 + i + (unsigned)round), "wrong data");
    }
    check(!atomic_load(&unit.own.inside), "somebody is still inside");
    printf("%llu of %llu\n", (unsigned long long)service.deferred,
           (unsigned long long)service.executed);
    later_close(&service.later);
    store_free(&store);
    return 0;
}
