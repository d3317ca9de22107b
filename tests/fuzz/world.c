/* SPDX-License-Identifier: MIT */
#include "world.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

struct world world;

/* Map the guest's memory between pages that nobody may touch. */
static unsigned char *map_guest(int fd, int protection) {
    size_t all = GUEST_BYTES + 2 * (size_t)PAGES_SIZE;
    unsigned char *around = mmap(NULL, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(around != MAP_FAILED);
    void *at = mmap(around + PAGES_SIZE, GUEST_BYTES, protection, MAP_SHARED | MAP_FIXED, fd, 0);
    CHECK(at == around + PAGES_SIZE);
    return at;
}

/* What stays the same for all inputs. */
static void make_once(void) {
    int fd = memfd_create("guest", MFD_CLOEXEC);
    CHECK(fd >= 0 && !ftruncate(fd, GUEST_BYTES));
    world.guest = map_guest(fd, PROT_READ | PROT_WRITE);
    world.guest_readonly = map_guest(fd, PROT_READ);
    close(fd);
    world.file = memfd_create("file", MFD_CLOEXEC);
    CHECK(world.file >= 0);
    static const struct {
        enum store_kind kind;
        uint32_t block_size;
        uint64_t blocks;
    } KINDS[UNITS] = {{STORE_MEMORY, 512, STORE_BYTES / 512},
                      {STORE_NULL, 512, UINT64_C(1) << 40},
                      {STORE_FILE, 4096, FILE_BYTES / 4096 + 2}};
    for (size_t i = 0; i < UNITS; i++) {
        struct unit *unit = &world.unit[i];
        store_init(&world.store[i], KINDS[i].kind);
        unit_init(unit, &world.store[i], KINDS[i].block_size, 1 << 20);
        unit->max_unmap_blocks = 1 << 16;
        unit->max_unmap_descriptors = 256;
        atomic_store(&unit->blocks, KINDS[i].blocks);
        world.place[i].unit = unit;
        world.place[i].address[1] = (unsigned char)i; /* SAM-5 4.7.7.2: peripheral device */
        if (world.fuzzed == &FUZZED[VSCSIIF]) {       /* channel, id and LUN, little-endian */
            world.place[i].address[1] = 0;
            world.place[i].address[4] = (unsigned char)i;
        }
    }
    CHECK(!store_use_file(&world.store[2], world.file, 1));
    grants_init(&world.grants);
    world.grants.table = (struct grant_entry *)world.guest;
    world.grants.references = PAGES_SIZE / sizeof(struct grant_entry);
    world.grants.pin = world.pin;
    world.grants.limit = 512;
    struct service *service = &world.service;
    service->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    service->incoming = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    service->outgoing = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    CHECK(service->wake >= 0 && service->incoming >= 0 && service->outgoing >= 0);
}

static void make_ring(uint32_t slot_size) {
    size_t header = world.fuzzed->ring == RING_PAIR ? RING_PAIR_HEADER : RING_XEN_HEADER;
    size_t bytes = header + slot_size * (size_t)ENTRIES;
    uint32_t start = UINT32_MAX - 5;
    CHECK(bytes <= PAGES_SIZE);
    struct ring_end front;
    unsigned char *requests = world.guest + REQUESTS_AT, *responses = world.guest + RESPONSES_AT;
    if (world.fuzzed->ring == RING_PAIR) {
        ring_pair_front(&front, requests, responses, bytes, slot_size, start);
        ring_pair_back(&world.ring, requests, responses, bytes, slot_size);
    } else {
        ring_front(&front, requests, bytes, slot_size, start);
        ring_back(&world.ring, requests, bytes, slot_size);
    }
}

void world_set_unit(size_t index, uint8_t byte) {
    uint32_t state = byte & (ATTENTION - 1);
    if (!index && state & UNIT_WRITABLE)
        world.was_writable = true;
    atomic_store(&world.unit[index].state, state);
    atomic_store(&world.place[index].attention, byte & ATTENTION);
}

void world_add_region(struct input *input) {
    struct regions *regions = &world.service.regions;
    uint32_t handle = take8(input);
    uint8_t flags = take8(input);
    size_t index = regions->count;
    size_t runs = 1 + (flags >> 1) % RUNS;
    if (index == REGIONS_MAX)
        return;
    struct region *region = &regions->region[regions->count++];
    *region = (struct region){
        .handle = handle, .readonly = flags & 1, .count = runs, .runs = world.runs[index]};
    for (size_t i = 0; i < runs; i++) {
        size_t offset = take16(input) % GUEST_BYTES, length = 1 + (size_t)take16(input);
#ifdef RACE /* two of our threads would race for indices */
        offset = offset < DATA_AT ? DATA_AT : offset;
#endif
        if (length > GUEST_BYTES - offset)
            length = GUEST_BYTES - offset;
        unsigned char *base = region->readonly ? world.guest_readonly : world.guest;
        region->runs[i] = (struct run){region->size, base + offset};
        region->size += length;
        if (!region->readonly && offset < DATA_AT)
            atomic_store(&world.ring_is_data, true);
    }
}

static void drain(int fd) {
    uint64_t value;
    while (read(fd, &value, sizeof value) > 0)
        continue;
}

void world_make(struct input *input) {
    world.fuzzed = &FUZZED[PROTOCOL];
    if (!world.guest)
        make_once();
    memset(world.guest, 0, GUEST_BYTES);
    area_reset(&world.memory, STORE_BYTES, STORE_BYTES, 0x5a);
    atomic_store(&world.store[0].base, world.memory.base);
    atomic_store(&world.store[0].size, STORE_BYTES);
    if (world.service.executed || world.file_used)
        CHECK(!ftruncate(world.file, 0));
    CHECK(!ftruncate(world.file, FILE_BYTES));
    world.file_used = false;
    memset(world.pin, 0, sizeof world.pin);
    world.grants.mapped = 0;
    world.was_writable = false;

    struct service *service = &world.service;
    int wake = service->wake, incoming = service->incoming, outgoing = service->outgoing;
    drain(wake);
    drain(incoming);
    drain(outgoing);
    memset(service, 0, sizeof *service);
    service->wake = wake;
    service->incoming = incoming;
    service->outgoing = outgoing;
    service->ring = &world.ring;
    service->protocol = world.fuzzed->protocol;
    service->tap = &world.tap;
    memset(&world.tap, 0, sizeof world.tap);
    world.tap.bytes = world.tapped;
    world.tap.size = sizeof world.tapped;
    service->place = world.place;
    service->places = UNITS;
    service->grants = world.fuzzed->ring == RING_PAIR ? NULL : &world.grants;
    uint32_t sizes =
        (world.fuzzed->most_slot - world.fuzzed->least_slot) / world.fuzzed->slot_step + 1;
    uint8_t how = take8(input);
    service->slot_bytes = world.fuzzed->least_slot + how % sizes * world.fuzzed->slot_step;
#ifdef RACE
    how = 0;
#endif
    size_t first = how & 128 ? 0 : DATA_AT;
    atomic_store(&world.ring_is_data, service->grants && !first);
    world.grants.memory[0] = world.guest + first;
    world.grants.memory[1] = world.guest_readonly + first;
    world.grants.pages = (uint32_t)((GUEST_BYTES - first) / PAGES_SIZE);
    make_ring(service->slot_bytes);
    for (size_t i = 0; i < ENTRIES; i++)
        world.command[i].moved = false;
    service_init(service, world.command, world.ring.entries, world.slots);
    for (size_t i = 0; i < UNITS; i++)
        world_set_unit(i, take8(input));
    for (uint8_t regions = take8(input) % 8; regions; regions--)
        world_add_region(input);
    for (uint8_t patches = take8(input) % 64; patches; patches--) {
        size_t offset = take16(input) % GUEST_BYTES, length = take8(input);
        take(input, world.guest + offset, length < GUEST_BYTES - offset ? length : 0);
        if (offset < DATA_AT && offset + length > REQUESTS_AT)
            atomic_store(&world.ring_is_data, true);
    }
}

/* Whether memory lies in one run of a region, or in the pages of grants that are held. */
static bool is_lent(const struct command *command, const unsigned char *base, size_t length,
                    bool writable) {
    const unsigned char *memory = world.grants.memory[!writable];
    if (world.service.grants) {
        for (size_t i = 0; i < command->mapped; i++) {
            const struct pin *pin = &world.pin[command->reference[i]];
            const unsigned char *page = memory + pin->frame * (size_t)PAGES_SIZE;
            CHECK(writable ? pin->writers : pin->readers);
            if (base >= page && base < page + PAGES_SIZE)
                return base + length <= page + PAGES_SIZE ||
                       is_lent(command, page + PAGES_SIZE,
                               length - (size_t)(page + PAGES_SIZE - base), writable);
        }
        return false;
    }
    for (size_t i = 0; i < world.service.regions.count; i++) {
        const struct region *region = &world.service.regions.region[i];
        for (size_t run = 0; run < region->count && !(writable && region->readonly); run++) {
            uint64_t end = run + 1 < region->count ? region->runs[run + 1].start : region->size;
            unsigned char *from = region->runs[run].base;
            unsigned char *to = from + (end - region->runs[run].start);
            if (base >= from && base < to &&
                (base + length <= to ||
                 is_lent(command, to, length - (size_t)(to - base), writable)))
                return true;
        }
    }
    return false;
}

void world_check_command(const struct command *command) {
    const struct unit *unit = command->unit;
    size_t index = (size_t)(unit - world.unit);
    CHECK(unit >= world.unit && index < UNITS);
    CHECK(!atomic_load(&world.place[index].attention));
    CHECK((unsigned)command->operation < OPERATIONS);
    uint64_t size = atomic_load(&unit->blocks) * unit->block_size, sum = 0;
    uint32_t state = atomic_load(&unit->state);
    if (command->operation == OP_UNMAP) {
        CHECK(state & UNIT_WRITABLE && command->ranges >= 0 && command->ranges <= COMMAND_SEGMENTS);
        for (int i = 0; i < command->ranges; i++) {
            struct range range = command->range[i];
            CHECK(range.offset <= size && range.length <= size - range.offset);
            CHECK(!(range.offset % unit->block_size) && !(range.length % unit->block_size));
        }
        return;
    }
    CHECK(command->offset <= size && command->length <= size - command->offset);
    CHECK(command->length <= unit->max_bytes || world.service.grants);
    CHECK(!(command->offset % unit->block_size) && !(command->length % unit->block_size));
    bool reads = command->operation == OP_READ, writes = command->operation == OP_WRITE;
    CHECK(!writes || state & UNIT_WRITABLE);
    CHECK(!writes || state & UNIT_WRITE_CACHE || command->durable);
    CHECK(reads || writes || !command->length);
    CHECK(command->segments >= 0 && command->segments <= COMMAND_SEGMENTS);
    for (int i = 0; i < command->segments; i++) {
        const struct iovec *segment = &command->segment[i];
        CHECK(!segment->iov_len || is_lent(command, segment->iov_base, segment->iov_len, reads));
        sum += segment->iov_len;
    }
    CHECK(sum == command->length || !(reads || writes));
}

void world_check(void) {
    for (size_t i = 0; i < UNITS; i++)
        CHECK(!atomic_load(&world.unit[i].own.inside));
    area_check(&world.memory);
    if (!world.was_writable)
        for (size_t i = 0; i < STORE_BYTES; i++)
            CHECK(world.memory.base[i] == 0x5a);
    CHECK(!world.grants.mapped);
    for (size_t i = 0; i < world.grants.references; i++)
        CHECK(!world.pin[i].readers && !world.pin[i].writers);
}
