/* SPDX-License-Identifier: MIT */
#include "command.h"

static const struct cdb_row *find_row(unsigned char opcode) {
    for (size_t i = 0; i < sizeof CDB_ROWS / sizeof *CDB_ROWS; i++)
        if (CDB_ROWS[i].opcode == opcode)
            return &CDB_ROWS[i];
    return NULL;
}

bool command_read_cdb(struct command *command, struct unit *unit, const unsigned char *cdb,
                      size_t length, uint64_t out, uint64_t in) {
    const struct cdb_row *row = length ? find_row(cdb[0]) : NULL;
    if (!row || length < row->length || cdb[row->length - 1]) /* CONTROL: NACA and reserved bits */
        return false;
    uint32_t state = atomic_load_explicit(&unit->state, memory_order_acquire);
    if (!(state & UNIT_READY) || (cdb[1] & row->protect))
        return false;
    uint64_t blocks = load_be(cdb + row->blocks_offset, row->blocks_size);
    if (row->length == 6 && row->blocks_size && !blocks)
        blocks = 256;
    uint64_t lba = load_be(cdb + row->lba_offset, row->lba_size);
    if (row->lba_size == 3)
        lba &= row->lba_mask;
    uint64_t limit = atomic_load_explicit(&unit->blocks, memory_order_relaxed);
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

int command_execute(struct command *command) {
    struct store *store = command->unit->store;
    int error = 0;
    if (command->barrier || command->operation == OP_FLUSH)
        error = store_flush(store);
    if (error || !command->length)
        return error;
    if (command->operation == OP_READ)
        return store_read(store, command->segment, command->segments, command->offset,
                          command->length);
    error =
        store_write(store, command->segment, command->segments, command->offset, command->length);
    return error || !command->durable ? error : store_flush(store);
}
