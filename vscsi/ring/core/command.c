/* SPDX-License-Identifier: MIT */
#include "command.h"

#include <errno.h>
#include <string.h>

static const struct cdb_row *find_row(unsigned char opcode) {
    for (size_t i = 0; i < sizeof CDB_ROWS / sizeof *CDB_ROWS; i++)
        if (CDB_ROWS[i].opcode == opcode)
            return &CDB_ROWS[i];
    return NULL;
}

/* Copy the start of a command's segments. */
static void gather(const struct command *command, unsigned char *to, size_t length) {
    for (int i = 0; length; i++) {
        size_t part = command->segment[i].iov_len;
        part = part < length ? part : length;
        memcpy(to, command->segment[i].iov_base, part);
        to += part;
        length -= part;
    }
}

/* Turn UNMAP's parameter list of `length` bytes into ranges; false if anything about it is odd. */
static bool read_ranges(struct command *command, size_t length) {
    unsigned char list[UNMAP_BYTES + COMMAND_SEGMENTS * UNMAP_DESCRIPTOR_BYTES];
    const struct unit *unit = command->unit;
    if (length < UNMAP_BYTES || length > sizeof list)
        return false;
    gather(command, list, length);
    size_t told = load_be16(list + UNMAP_BLOCK_DESCRIPTOR_DATA_LENGTH_AT);
    size_t count = told / UNMAP_DESCRIPTOR_BYTES;
    if (told > length - UNMAP_BYTES || count > unit->max_unmap_descriptors)
        return false;
    uint64_t limit = atomic_load_explicit(&unit->blocks, memory_order_relaxed), total = 0;
    command->ranges = 0;
    for (size_t i = 0; i < count; i++) {
        const unsigned char *at = list + UNMAP_BYTES + i * UNMAP_DESCRIPTOR_BYTES;
        uint64_t lba = load_be64(at + UNMAP_DESCRIPTOR_LBA_AT);
        uint32_t blocks = load_be32(at + UNMAP_DESCRIPTOR_BLOCKS_AT);
        total += blocks;
        if (lba > limit || blocks > limit - lba || total > unit->max_unmap_blocks)
            return false;
        if (blocks)
            command->range[command->ranges++] =
                (struct range){lba * unit->block_size, (uint64_t)blocks * unit->block_size};
    }
    return true;
}

/* Take a read or write with its CDB, all of whose fields are the kernel's. */
static bool pass_on(struct command *command, const struct cdb_row *row, const unsigned char *cdb,
                    uint64_t bytes, uint64_t out, uint64_t in) {
    _Static_assert(SG_CDB_BYTES >= 16, "");
    bool reads = command->operation == OP_READ;
    memcpy(command->cdb, cdb, row->length);
    command->cdb_length = row->length;
    return (reads || command->operation == OP_WRITE) && bytes &&
           bytes <= command->unit->max_bytes && (reads ? in : out) == bytes && !(reads ? out : in);
}

bool command_read_cdb(struct command *command, struct unit *unit, const unsigned char *cdb,
                      size_t length, uint64_t out, uint64_t in) {
    const struct cdb_row *row = length ? find_row(cdb[0]) : NULL;
    if (!row || length < row->length || cdb[row->length - 1]) /* CONTROL: NACA and reserved bits */
        return false;
    uint32_t state = atomic_load_explicit(&unit->state, memory_order_acquire);
    if (!(state & UNIT_READY) || (cdb[1] & row->refused))
        return false;
    uint64_t blocks = load_be(cdb + row->blocks_offset, row->blocks_size);
    if (row->length == 6 && row->blocks_size && !blocks)
        blocks = 256;
    uint64_t lba = load_be(cdb + row->lba_offset, row->lba_size);
    if (row->lba_size == 3)
        lba &= row->lba_mask;
    uint64_t limit = atomic_load_explicit(&unit->blocks, memory_order_relaxed);
    command->code = row->opcode;
    if (row->operation == OP_UNMAP) {
        command->operation = OP_UNMAP;
        command->unit = unit;
        command->offset = command->length = 0;
        command->durable = !(state & UNIT_WRITE_CACHE);
        command->barrier = false;
        command->ranges = 0;
        return !in && out == blocks && (state & UNIT_THIN) && (state & UNIT_WRITABLE) &&
               (!out || read_ranges(command, (size_t)out));
    }
    if (lba > limit || blocks > limit - lba)
        return false;
    uint64_t bytes = blocks * unit->block_size;
    bool fua = cdb[1] & row->fua;
    command->operation = row->operation;
    command->unit = unit;
    command->offset = lba * unit->block_size;
    command->length = (uint32_t)bytes;
    command->durable = false;
    command->barrier = false;
    if (unit->store->kind == STORE_SG)
        return pass_on(command, row, cdb, bytes, out, in);
    switch (command->operation) {
    case OP_READ:
        command->barrier =
            fua; /* SBC-4 4.15: what is newer in the cache goes to the medium first */
        return !out && in == bytes && bytes <= unit->max_bytes;
    case OP_WRITE:
        command->durable = fua || !(state & UNIT_WRITE_CACHE);
        return !in && out == bytes && bytes <= unit->max_bytes && (state & UNIT_WRITABLE);
    case OP_FLUSH:
        command->length = 0;
        return !in && !out;
    case OP_READY:
        return !in && !out;
    default:
        return false;
    }
}

void command_hint(const struct unit *unit, const unsigned char *cdb) {
    const struct cdb_row *row = unit ? find_row(cdb[0]) : NULL;
    if (row && row->operation == OP_READ && row->length > 6)
        store_prefetch(unit->store,
                       load_be(cdb + row->lba_offset, row->lba_size) * unit->block_size);
}

static int unmap(struct command *command) {
    struct store *store = command->unit->store;
    for (int i = 0; i < command->ranges; i++) {
        int error = store_discard(store, command->range[i].offset, command->range[i].length);
        if (error)
            return error;
    }
    return command->durable ? store_flush(store) : 0;
}

int command_execute(struct command *command) {
    struct store *store = command->unit->store;
    int error = 0;
    if (command->operation == OP_UNMAP)
        return unmap(command);
    if (command->barrier || command->operation == OP_FLUSH)
        error = store_flush(store);
    if (error || !command->length)
        return error;
    if (command->operation == OP_READ)
        return store_read(store, command->segment, command->segments, command->offset,
                          command->length);
    if (!command->moved)
        error = store_write(store, command->segment, command->segments, command->offset,
                            command->length);
    return error || !command->durable ? error : store_flush(store);
}

int command_execute_now(struct command *command) {
    struct store *store = command->unit->store;
    if (store->kind == STORE_SG)
        return EAGAIN;
    if (!store->waits || command->operation == OP_READY)
        return command_execute(command);
    bool moves = command->operation == OP_READ || command->operation == OP_WRITE;
    if (command->barrier || command->durable || !moves)
        return EAGAIN;
    if (!command->length)
        return 0;
    return (command->operation == OP_READ ? store_read_now : store_write_now)(
        store, command->segment, command->segments, command->offset, command->length);
}
