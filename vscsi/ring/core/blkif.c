/* SPDX-License-Identifier: MIT */
/*
 * blkif: reads, writes, barriers and flushes with their segments in the request or in indirect
 * pages, discards. FreeBSD's segment blocks are Python's. The vbd's disk stands at the address of
 * zeros; whether SCSI has stopped it makes no difference here.
 */
#include "granted.h"

#include <string.h>

/* More are refused by Python; so many are in the first of the indirect pages. */
enum { INDIRECT_SEGMENTS = 256, SECTORS_OF_PAGE = PAGES_SIZE / BLKIF_SECTOR_SIZE };

_Static_assert((int)INDIRECT_SEGMENTS <= (int)BLKIF_SEGMENTS_PER_PAGE, "");

/* Where an ABI has the fields that are not at one place in all. */
struct layout {
    size_t id, sector, segments;
    size_t indirect_id, indirect_sector, indirect_pages;
    size_t discard_id, discard_sector, discard_sectors;
    size_t answer_bytes;
};

#define LAYOUT(abi)                                                                                \
    {abi##_RW_ID_AT,                                                                               \
     abi##_RW_SECTOR_NUMBER_AT,                                                                    \
     abi##_RW_SEGMENTS_AT,                                                                         \
     abi##_INDIRECT_ID_AT,                                                                         \
     abi##_INDIRECT_SECTOR_NUMBER_AT,                                                              \
     abi##_INDIRECT_INDIRECT_GREFS_AT,                                                             \
     abi##_DISCARD_ID_AT,                                                                          \
     abi##_DISCARD_SECTOR_NUMBER_AT,                                                               \
     abi##_DISCARD_NR_SECTORS_AT,                                                                  \
     abi##_RESPONSE_TRAILING_AT}

static const struct layout ALIGNED = LAYOUT(BLKIF64), PACKED = LAYOUT(BLKIF32);

static const struct layout *layout_of(const struct service *service) {
    return service->protocol == &blkif32_protocol ? &PACKED : &ALIGNED;
}

/* Name the segments of a table; their sectors, 0 if one is wrong. */
static uint64_t add_segments(struct command *command, const unsigned char *table, size_t count) {
    uint64_t sectors = 0;
    for (size_t i = 0; i < count; i++) {
        const unsigned char *segment = table + i * BLKIF_SEGMENT_BYTES;
        unsigned first = segment[BLKIF_SEGMENT_FIRST_SECT_AT];
        unsigned last = segment[BLKIF_SEGMENT_LAST_SECT_AT];
        unsigned moved = last - first + 1;
        if (first > last || last >= SECTORS_OF_PAGE ||
            !granted_add(command, load_le32(segment + BLKIF_SEGMENT_GREF_AT),
                         first * (size_t)BLKIF_SECTOR_SIZE, moved * (size_t)BLKIF_SECTOR_SIZE))
            return 0;
        sectors += moved;
    }
    return sectors;
}

/* Find a request's range; false if that is not in the disk, or not whole blocks. */
static bool find_range(const struct unit *unit, uint64_t sector, uint64_t sectors,
                       struct range *range) {
    uint64_t blocks = atomic_load_explicit(&unit->blocks, memory_order_relaxed);
    uint64_t limit = blocks * (unit->block_size / BLKIF_SECTOR_SIZE);
    if (sector > limit || sectors > limit - sector)
        return false;
    *range = (struct range){sector * BLKIF_SECTOR_SIZE, sectors * BLKIF_SECTOR_SIZE};
    return !((range->offset | range->length) % unit->block_size);
}

/* Read a request whose operation and segments are known. */
static bool read_transfer(struct service *service, struct command *command, unsigned operation,
                          uint64_t sector, const unsigned char *table, size_t count) {
    uint32_t state = atomic_load_explicit(&command->unit->state, memory_order_acquire);
    bool writes = operation != BLKIF_OP_READ;
    command->code = (uint8_t)operation;
    command->operation = writes ? OP_WRITE : OP_READ;
    /* Frontends without barriers send a write that must be durable as a flush with data. */
    command->barrier = operation == BLKIF_OP_WRITE_BARRIER || operation == BLKIF_OP_FLUSH_DISKCACHE;
    command->durable = command->barrier || (writes && !(state & UNIT_WRITE_CACHE));
    command->segments = 0;
    uint64_t sectors = add_segments(command, table, count);
    struct range range;
    if (!sectors || (writes && !(state & UNIT_WRITABLE)) ||
        !find_range(command->unit, sector, sectors, &range))
        return false;
    command->offset = range.offset;
    command->length = (uint32_t)range.length;
    return granted_map(service, command, writes);
}

static bool read_discard(struct command *command, const unsigned char *slot,
                         const struct layout *layout) {
    uint32_t state = atomic_load_explicit(&command->unit->state, memory_order_acquire);
    uint64_t sectors = load_le64(slot + layout->discard_sectors);
    command->code = BLKIF_OP_DISCARD;
    command->operation = OP_UNMAP;
    command->barrier = false;
    command->durable = !(state & UNIT_WRITE_CACHE);
    command->offset = command->length = 0;
    command->segments = 0;
    command->mapped = 0;
    command->ranges = 1;
    memcpy(&command->tag, slot + layout->discard_id, sizeof command->tag);
    return sectors && (state & UNIT_WRITABLE) &&
           find_range(command->unit, load_le64(slot + layout->discard_sector), sectors,
                      &command->range[0]);
}

static bool read_indirect(struct service *service, struct command *command,
                          const unsigned char *slot, const struct layout *layout) {
    unsigned operation = slot[BLKIF64_INDIRECT_INDIRECT_OP_AT];
    size_t count = load_le16(slot + BLKIF64_INDIRECT_NR_SEGMENTS_AT);
    if ((operation != BLKIF_OP_READ && operation != BLKIF_OP_WRITE) || count > INDIRECT_SEGMENTS ||
        !granted_copy(service, service->copied, load_le32(slot + layout->indirect_pages), 0,
                      count * BLKIF_SEGMENT_BYTES))
        return false;
    service->copied_bytes = (uint32_t)count * BLKIF_SEGMENT_BYTES;
    memcpy(&command->tag, slot + layout->indirect_id, sizeof command->tag);
    return read_transfer(service, command, operation, load_le64(slot + layout->indirect_sector),
                         service->copied, count);
}

/* Of the only unit that there is. */
static const unsigned char ADDRESS[sizeof((struct place *)NULL)->address];

static bool read_command(struct service *service, const unsigned char *slot,
                         struct command *command) {
    const struct layout *layout = layout_of(service);
    unsigned operation = slot[BLKIF64_RW_OPERATION_AT];
    size_t count = slot[BLKIF64_RW_NR_SEGMENTS_AT];
    command->unit = service_unit(service, ADDRESS);
    if (!command->unit || !service->grants)
        return false;
    if (operation == BLKIF_OP_INDIRECT)
        return read_indirect(service, command, slot, layout);
    if (operation == BLKIF_OP_DISCARD)
        return read_discard(command, slot, layout);
    if (operation > BLKIF_OP_FLUSH_DISKCACHE || count > BLKIF_SEGMENTS)
        return false;
    memcpy(&command->tag, slot + layout->id, sizeof command->tag); /* back as it came */
    if (!count && operation >= BLKIF_OP_WRITE_BARRIER) {
        command->code = (uint8_t)operation;
        command->operation = OP_FLUSH;
        command->barrier = command->durable = false;
        command->length = 0;
        command->segments = 0;
        return granted_map(service, command, true);
    }
    return read_transfer(service, command, operation, load_le64(slot + layout->sector),
                         slot + layout->segments, count);
}

static size_t answer(struct service *service, const struct command *command,
                     unsigned char *message) {
    size_t bytes = layout_of(service)->answer_bytes;
    memset(message, 0, bytes);
    memcpy(message + BLKIF64_RESPONSE_ID_AT, &command->tag, sizeof command->tag);
    message[BLKIF64_RESPONSE_OPERATION_AT] = command->code; /* its status is BLKIF_RSP_OKAY */
    return bytes; /* behind it the slot keeps what the frontend put there */
}

/* What is at one place in both. */
_Static_assert(BLKIF64_RW_OPERATION_AT == 0 && BLKIF32_RW_OPERATION_AT == 0 &&
                   (int)BLKIF64_RW_NR_SEGMENTS_AT == (int)BLKIF32_RW_NR_SEGMENTS_AT &&
                   (int)BLKIF64_INDIRECT_INDIRECT_OP_AT == (int)BLKIF32_INDIRECT_INDIRECT_OP_AT &&
                   (int)BLKIF64_INDIRECT_NR_SEGMENTS_AT == (int)BLKIF32_INDIRECT_NR_SEGMENTS_AT &&
                   (int)BLKIF64_RESPONSE_ID_AT == (int)BLKIF32_RESPONSE_ID_AT &&
                   (int)BLKIF64_RESPONSE_OPERATION_AT == (int)BLKIF32_RESPONSE_OPERATION_AT &&
                   BLKIF_RSP_OKAY == 0,
               "of io/blkif.h");

static void hint(struct service *service, const unsigned char *slot) {
    const struct unit *unit = service_unit(service, ADDRESS);
    if (unit)
        store_prefetch(unit->store,
                       load_le64(slot + layout_of(service)->sector) * BLKIF_SECTOR_SIZE);
}

const struct protocol blkif64_protocol = {
    .read = read_command, .hint = hint, .release = granted_release, .answer = answer};
const struct protocol blkif32_protocol = {
    .read = read_command, .hint = hint, .release = granted_release, .answer = answer};
