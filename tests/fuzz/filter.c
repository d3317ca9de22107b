/* SPDX-License-Identifier: MIT */
/*
 * rules_read and the filter of a capture: a message is read within its bytes; entries come out as
 * they went in, in order, each once; what is no command comes out, a command that does not meet the
 * rules does not.
 *
 * Input: protocol u8, layout u8, conditions u8 (1 LUN, 2 opcode, 4 LBA, 8 status, 16 failed), LUN
 * u8, opcode u8, first and last LBA u16, status u8. Then entries: flags u8 (1 to the initiator, 2
 * the batch ends), message's length u8, message, descriptors' length u8, descriptors.
 */
#include "filter.h"
#include "fuzz.h"
#include "layout.h"

enum { ENTRIES = 64, LONGEST = 256, BATCH = ENTRIES * (2 * LONGEST + 64) };

static unsigned char batch[BATCH], out[BATCH + FILTER_BYTES];
static struct {
    unsigned char bytes[2 * LONGEST];
    size_t message, descriptors;
    enum message_kind kind;
    bool meets;
} sent[ENTRIES];
static size_t entries, expected;

/* Compare what came out with what went in. */
static uint64_t check_out(size_t bytes) {
    uint64_t kept = 0;
    for (size_t at = 0; at < bytes; kept++) {
        struct tap_entry entry;
        memcpy(&entry, out + at, sizeof entry);
        CHECK(entry.ring_index >= expected && entry.ring_index < entries);
        for (; expected < entry.ring_index; expected++)
            CHECK(sent[expected].kind == MESSAGE_COMMAND || sent[expected].kind == MESSAGE_ANSWER);
        expected++;
        CHECK(sent[entry.ring_index].kind != MESSAGE_COMMAND || sent[entry.ring_index].meets);
        CHECK(entry.message == sent[entry.ring_index].message);
        CHECK(entry.descriptors == sent[entry.ring_index].descriptors);
        CHECK(!memcmp(out + at + sizeof entry, sent[entry.ring_index].bytes,
                      (size_t)entry.message + entry.descriptors));
        at += entry.bytes;
    }
    return kept;
}

/* Read a message where a byte beyond it is not ours. */
static struct meaning read_alone(const struct filter *filter, struct message message) {
    static struct area exact, table;
    area_reset(&exact, LONGEST, message.length, 0);
    area_reset(&table, LONGEST, message.descriptors_length, 0);
    memcpy(exact.base, message.bytes, message.length);
    memcpy(table.base, message.descriptors, message.descriptors_length);
    message.bytes = exact.base;
    message.descriptors = table.base;
    return rules_read(&filter->rules, &message);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input input = {data, size};
    struct filter filter = {.protocol = take8(&input), .layout = take8(&input)};
    CHECK(filter_init(&filter));
    uint8_t conditions = take8(&input);
    struct rules *rules = &filter.rules;
    rules->by_lun = conditions & 1;
    rules->by_opcode = conditions & 2;
    rules->by_lba = conditions & 4;
    rules->by_status = conditions & 8;
    rules->failed = conditions & 16;
    rules->luns = rules->opcodes = 1;
    rules->lun[0] = take8(&input);
    rules->opcode[0] = (struct rule_opcode){take8(&input), -1};
    rules->operations = 1u << rules->opcode[0].opcode % 32;
    rules->first_lba = take16(&input);
    rules->last_lba = take16(&input);
    uint8_t status = take8(&input);
    rules->status[status / 32] = 1u << status % 32;
    uint64_t kept = 0, now;
    size_t bytes = 0;
    entries = expected = 0;
    while (input.left && entries < ENTRIES) {
        uint8_t flags = take8(&input);
        sent[entries].message = take8(&input);
        take(&input, sent[entries].bytes, sent[entries].message);
        sent[entries].descriptors = take8(&input);
        unsigned char *descriptors = sent[entries].bytes + sent[entries].message;
        take(&input, descriptors, sent[entries].descriptors);
        struct message message = {.protocol = filter.protocol,
                                  .layout = filter.layout,
                                  .way = flags & 1,
                                  .bytes = sent[entries].bytes,
                                  .descriptors = descriptors,
                                  .length = sent[entries].message,
                                  .descriptors_length = sent[entries].descriptors};
        struct meaning meaning = read_alone(&filter, message);
        sent[entries].kind = meaning.kind;
        sent[entries].meets = meaning.meets;
        size_t length = message.length + message.descriptors_length;
        struct tap_entry entry = {.bytes = (uint32_t)((sizeof entry + length + 7) / 8 * 8),
                                  .ring_index = (uint32_t)entries,
                                  .way = message.way,
                                  .message = (uint16_t)message.length,
                                  .descriptors = (uint16_t)message.descriptors_length};
        memcpy(batch + bytes, &entry, sizeof entry);
        memcpy(batch + bytes + sizeof entry, sent[entries].bytes, length);
        bytes += entry.bytes;
        entries++;
        if (flags & 2) {
            kept += check_out(filter_take(&filter, batch, bytes, out, &now));
            bytes = 0;
        }
    }
    kept += check_out(filter_take(&filter, batch, bytes, out, &now));
    kept += check_out(filter_end(&filter, out, &now));
    CHECK(kept + filter.left_out == entries);
    count(kept && filter.left_out);
    filter_free(&filter);
    return 0;
}
