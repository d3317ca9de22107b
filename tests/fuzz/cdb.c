/* SPDX-License-Identifier: MIT */
/*
 * command_read_cdb: what it accepts is what a reading of SBC-4 by hand says, in range and
 * permitted. To refuse is always right: Python reads those.
 *
 * Input: state u8, block size u8, blocks u64, max_bytes u32, data-out u64, data-in u64, CDB's
 * length u8, CDB, the data-out of an UNMAP.
 */
#include "command.h"
#include "fuzz.h"

enum { LONGEST_CDB = 32, LONGEST_LIST = 300 };

struct reading {
    enum operation operation;
    size_t length;
    uint64_t lba, blocks;
    bool fua, protect;
};

/* SBC-4 5.10 to 5.12, 5.22 and following, SPC-4 6.47; false for other commands. */
static bool read_by_hand(const uint8_t *cdb, size_t length, struct reading *reading) {
    static const struct {
        uint8_t opcode, length, lba, lba_bytes, blocks, blocks_bytes;
        enum operation operation;
    } COMMANDS[] = {
        {0x00, 6, 0, 0, 0, 0, OP_READY},   {0x08, 6, 1, 3, 4, 1, OP_READ},
        {0x0a, 6, 1, 3, 4, 1, OP_WRITE},   {0x28, 10, 2, 4, 7, 2, OP_READ},
        {0x2a, 10, 2, 4, 7, 2, OP_WRITE},  {0xa8, 12, 2, 4, 6, 4, OP_READ},
        {0xaa, 12, 2, 4, 6, 4, OP_WRITE},  {0x88, 16, 2, 8, 10, 4, OP_READ},
        {0x8a, 16, 2, 8, 10, 4, OP_WRITE}, {0x35, 10, 2, 4, 7, 2, OP_FLUSH},
        {0x91, 16, 2, 8, 10, 4, OP_FLUSH}, {0x42, 10, 0, 0, 7, 2, OP_UNMAP},
    };
    for (size_t i = 0; i < sizeof COMMANDS / sizeof *COMMANDS; i++) {
        if (!length || COMMANDS[i].opcode != cdb[0] || COMMANDS[i].length > length)
            continue;
        *reading =
            (struct reading){.operation = COMMANDS[i].operation, .length = COMMANDS[i].length};
        for (unsigned at = 0; at < COMMANDS[i].lba_bytes; at++)
            reading->lba = reading->lba << 8 | cdb[COMMANDS[i].lba + at];
        for (unsigned at = 0; at < COMMANDS[i].blocks_bytes; at++)
            reading->blocks = reading->blocks << 8 | cdb[COMMANDS[i].blocks + at];
        if (reading->length == 6) {
            reading->lba &= 0x1fffff;
            if (reading->operation != OP_READY && !reading->blocks)
                reading->blocks = 256;
        } else if (reading->operation != OP_FLUSH && reading->operation != OP_UNMAP) {
            reading->protect = cdb[1] >> 5;
            reading->fua = cdb[1] & 8;
        }
        return true;
    }
    return false;
}

static uint64_t number(const uint8_t *at, unsigned bytes) {
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++)
        value = value << 8 | at[i];
    return value;
}

/* SBC-4 5.35: the ranges are those of the list's descriptors, in order, but for empty ones. */
static void check_ranges(const struct command *command, const uint8_t *list, size_t length) {
    const struct unit *unit = command->unit;
    uint64_t blocks = atomic_load(&unit->blocks), total = 0;
    size_t told = length ? (size_t)number(list + 2, 2) : 0;
    int next = 0;
    CHECK(!length || (length >= 8 && told <= length - 8));
    for (const uint8_t *at = list + 8; at + 16 <= list + 8 + told; at += 16) {
        uint64_t lba = number(at, 8), some = number(at + 8, 4);
        CHECK(lba <= blocks && some <= blocks - lba);
        total += some;
        if (!some)
            continue;
        CHECK(next < command->ranges);
        CHECK(command->range[next].offset == lba * unit->block_size);
        CHECK(command->range[next++].length == some * unit->block_size);
    }
    CHECK(next == command->ranges && total <= unit->max_unmap_blocks);
    CHECK(told / 16 <= unit->max_unmap_descriptors);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct command command;
    static struct store store = {.kind = STORE_NULL};
    static struct unit unit;
    static struct area bytes, list, halves[2];
    struct input input = {data, size};
    uint32_t state = take8(&input);
    uint32_t block_size = 512u << take8(&input) % 4;
    uint64_t blocks = take64(&input) % (INT64_MAX / block_size); /* a store's size is an off_t */
    uint32_t max_bytes = take32(&input);
    uint64_t out = take64(&input), in = take64(&input);
    size_t length = take8(&input) % (LONGEST_CDB + 1);
    area_reset(&bytes, LONGEST_CDB, length, 0);
    take(&input, bytes.base, length);
    bool unmaps = length && bytes.base[0] == 0x42;
    if (unmaps)
        out %= LONGEST_LIST;
    area_reset(&list, LONGEST_LIST, unmaps ? out : 0, 0);
    take(&input, list.base, list.size);
    size_t half = list.size / 3;
    area_reset(&halves[0], LONGEST_LIST, half, 0);
    area_reset(&halves[1], LONGEST_LIST, list.size - half, 0);
    memcpy(halves[0].base, list.base, half);
    memcpy(halves[1].base, list.base + half, list.size - half);
    command.segments = 0;
    for (int i = 0; i < 2; i++)
        if (halves[i].size)
            command_add(&command, halves[i].base, halves[i].size);
    if (!unit.store)
        unit_init(&unit, &store, block_size, max_bytes);
    unit.block_size = block_size;
    unit.max_bytes = max_bytes;
    unit.max_unmap_descriptors = 8;
    unit.max_unmap_blocks = max_bytes;
    atomic_store(&unit.blocks, blocks);
    atomic_store(&unit.state, state);

    const uint8_t *cdb = bytes.base;
    bool accepted = command_read_cdb(&command, &unit, cdb, length, out, in);
    count(accepted);
    area_check(&bytes);
    if (!accepted)
        return 0;
    struct reading reading = {0};
    CHECK(read_by_hand(cdb, length, &reading));
    CHECK(command.unit == &unit && command.operation == reading.operation);
    CHECK(state & UNIT_READY);
    CHECK(!cdb[reading.length - 1] && !reading.protect);
    if (command.operation == OP_UNMAP) {
        CHECK(state & UNIT_WRITABLE && state & UNIT_THIN && !in && out == reading.blocks);
        CHECK(command.durable == !(state & UNIT_WRITE_CACHE) && !(cdb[1] & 1));
        check_ranges(&command, list.base, list.size);
        return 0;
    }
    CHECK(reading.lba <= blocks && reading.blocks <= blocks - reading.lba);
    CHECK(command.offset == reading.lba * block_size);
    uint64_t transfer = 0;
    if (command.operation == OP_READ || command.operation == OP_WRITE)
        transfer = reading.blocks * block_size;
    CHECK(command.length == transfer && transfer <= max_bytes);
    CHECK(out == (command.operation == OP_WRITE ? transfer : 0));
    CHECK(in == (command.operation == OP_READ ? transfer : 0));
    if (command.operation == OP_WRITE) {
        CHECK(state & UNIT_WRITABLE);
        CHECK(command.durable == (reading.fua || !(state & UNIT_WRITE_CACHE)));
    }
    CHECK(command.operation != OP_READ || command.barrier == reading.fua);
    return 0;
}
