/* SPDX-License-Identifier: MIT */
/*
 * regions_add and regions_copy: byte by byte what a descriptor names, or nothing.
 *
 * Input: number of regions u8; each: handle u8, flags u8 (1 read-only, bits 1-3 runs - 1), runs of
 * offset u16 and length u8. Then calls: kind u8 (1 copy, 2 writable, 4 long numbers, 8 begin with
 * few segments left), handle u8, address, length.
 */
#include "regions.h"
#include "fuzz.h"

enum {
    MEMORY = 1024,
    REGIONS = 4,
    RUNS = 8,
    RUN_BYTES = 64,
    LONGEST = RUNS * RUN_BYTES,
    MOST_BYTES = 2048
};

static struct area memory;
static struct regions regions;
static struct run runs[REGIONS][RUNS];
static unsigned char *named[REGIONS][LONGEST]; /* where each byte of a region is */
static unsigned char *expected[MOST_BYTES];    /* where each byte of the command is to be */
static size_t bytes_expected;

static void register_region(struct input *input, size_t index) {
    struct region *region = &regions.region[index];
    *region = (struct region){.handle = take8(input), .runs = runs[index]};
    uint8_t flags = take8(input);
    region->readonly = flags & 1;
    region->count = 1 + (flags >> 1) % RUNS;
    for (size_t run = 0; run < region->count; run++) {
        size_t offset = take16(input) % (MEMORY - RUN_BYTES);
        size_t length = 1 + take8(input) % RUN_BYTES;
        runs[index][run] = (struct run){region->size, memory.base + offset};
        for (size_t i = 0; i < length; i++)
            named[index][region->size++] = memory.base + offset + i;
    }
}

/* The region of a handle and range, as a model sees it; -1 if there is none. */
static int find_by_hand(uint8_t handle, uint64_t address, uint64_t length) {
    for (size_t i = 0; i < regions.count; i++)
        if (regions.region[i].handle == handle)
            return address + length >= address && address + length <= regions.region[i].size
                       ? (int)i
                       : -1;
    return -1;
}

/* Begin a command that has so many segments already, each of a byte that adjoins no other. */
static void begin(struct command *command, int segments) {
    static unsigned char others[2 * COMMAND_SEGMENTS];
    bytes_expected = 0;
    for (command->segments = 0; command->segments < segments; command->segments++) {
        unsigned char *byte = &others[2 * command->segments];
        command->segment[command->segments] = (struct iovec){byte, 1};
        expected[bytes_expected++] = byte;
    }
}

/* Its segments once a range is added: what lies together is one. */
static size_t segments_after(int region, uint64_t address, uint64_t length) {
    for (uint64_t i = 0; i < length; i++)
        expected[bytes_expected + i] = named[region][address + i];
    size_t segments = 0;
    for (size_t i = 0; i < bytes_expected + length; i++)
        segments += !i || expected[i] != expected[i - 1] + 1;
    return segments;
}

static void check_segments(const struct command *command) {
    size_t next = 0;
    for (int i = 0; i < command->segments; i++) {
        unsigned char *base = command->segment[i].iov_base;
        for (size_t at = 0; at < command->segment[i].iov_len; at++) {
            CHECK(next < bytes_expected);
            CHECK(base + at == expected[next++]);
        }
    }
    CHECK(next == bytes_expected);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct command command;
    static struct area copy;
    struct input input = {data, size};
    area_reset(&memory, MEMORY, MEMORY, 0);
    for (size_t i = 0; i < MEMORY; i++)
        memory.base[i] = (unsigned char)(i * 7 + (i >> 8));
    regions.count = take8(&input) % (REGIONS + 1);
    for (size_t i = 0; i < regions.count; i++)
        register_region(&input, i);
    command.segments = 0;
    while (input.left) {
        uint8_t kind = take8(&input), handle = take8(&input);
        uint64_t address = kind & 4 ? take64(&input) : take16(&input);
        uint64_t length = kind & 4 ? take64(&input) : take16(&input);
        int region = find_by_hand(handle, address, length);
        if (kind & 1) {
            area_reset(&copy, LONGEST, region < 0 ? 0 : length, 0);
            bool done = regions_copy(&regions, copy.base, handle, address, length);
            CHECK(done == (region >= 0));
            for (size_t i = 0; done && i < length; i++)
                CHECK(copy.base[i] == *named[region][address + i]);
            area_check(&copy);
            count(done);
            continue;
        }
        if (!command.segments || bytes_expected > MOST_BYTES - LONGEST)
            begin(&command, kind & 8 ? COMMAND_SEGMENTS - kind / 16 % 4 : kind / 16 % 4);
        size_t segments = segments_after(region, address, region < 0 ? 0 : length);
        bool permitted = region >= 0 && !(kind & 2 && regions.region[region].readonly) &&
                         segments <= COMMAND_SEGMENTS;
        bool added = regions_add(&regions, &command, handle, address, length, kind & 2);
        count(added);
        CHECK(added == permitted);
        if (added) {
            bytes_expected += length;
            check_segments(&command);
        } else {
            command.segments = 0; /* a command that was refused is not gone on with */
        }
    }
    area_check(&memory);
    return 0;
}
