/* SPDX-License-Identifier: MIT */
#include "filter.h"

#include "layout.h"

#include <stdlib.h>
#include <string.h>

/* What is known of an entry that is held, in its `reserved`. */
enum verdict { KEPT, LEFT_OUT, UNDECIDED };

enum { PLACES = 2 * FILTER_OPEN };

static const uint64_t FREE = UINT64_MAX;

_Static_assert((int)FILTER_BYTES >= 2 * (int)TAP_MAX_ENTRY, "room for any entry");

bool filter_init(struct filter *filter) {
    filter->held = malloc(FILTER_BYTES); /* untouched pages cost nothing */
    filter->open = malloc(PLACES * sizeof *filter->open);
    if (!filter->held || !filter->open) {
        filter_free(filter);
        return false;
    }
    for (size_t i = 0; i < PLACES; i++)
        filter->open[i].at = FREE;
    filter->first = filter->end = 0;
    filter->base = filter->lost = filter->left_out = 0;
    filter->opened = 0;
    return true;
}

void filter_free(struct filter *filter) {
    free(filter->held);
    free(filter->open);
    filter->held = NULL;
    filter->open = NULL;
}

/* Commands by tag: open addressing; a place is at or behind where its tag belongs. */

static size_t home_of(uint64_t tag) { return (size_t)(tag * 0x9E3779B97F4A7C15u >> 32) % PLACES; }

static struct open_command *find(struct filter *filter, uint64_t tag) {
    size_t place = home_of(tag);
    while (filter->open[place].at != FREE && filter->open[place].tag != tag)
        place = (place + 1) % PLACES;
    return &filter->open[place];
}

static void forget(struct filter *filter, struct open_command *command) {
    size_t hole = (size_t)(command - filter->open);
    for (size_t next = (hole + 1) % PLACES; filter->open[next].at != FREE;
         next = (next + 1) % PLACES) {
        size_t home = home_of(filter->open[next].tag);
        if ((next + PLACES - home) % PLACES >= (next + PLACES - hole) % PLACES) {
            filter->open[hole] = filter->open[next];
            hole = next;
        }
    }
    filter->open[hole].at = FREE;
    filter->opened--;
}

static unsigned char *verdict_at(struct filter *filter, uint64_t at) {
    return filter->held + (at - filter->base) + offsetof(struct tap_entry, reserved);
}

/* Decide on a command, if that has not been done. */
static void decide(struct filter *filter, uint64_t at, bool kept) {
    if (at >= filter->base + filter->first && at < filter->base + filter->end &&
        *verdict_at(filter, at) == UNDECIDED)
        *verdict_at(filter, at) = kept ? KEPT : LEFT_OUT;
}

/* Give up all commands that are open. */
static void give_up(struct filter *filter) {
    for (size_t i = 0; i < PLACES; i++) {
        if (filter->open[i].at != FREE)
            decide(filter, filter->open[i].at, filter->rules.failed);
        filter->open[i].at = FREE;
    }
    filter->opened = 0;
}

/* Expect an answer to the command or function that is appended next. */
static void expect(struct filter *filter, uint64_t tag, bool function) {
    if (filter->opened == FILTER_OPEN)
        give_up(filter);
    struct open_command *command = find(filter, tag);
    if (command->at == FREE)
        filter->opened++;
    else /* its tag is used anew: it has no answer */
        decide(filter, command->at, filter->rules.failed);
    *command = (struct open_command){tag, filter->base + filter->end, function};
}

/* Whether an answer is kept; with it what it belongs to. */
static bool settle(struct filter *filter, const struct meaning *answer) {
    const struct rules *rules = &filter->rules;
    struct open_command *command = find(filter, answer->tag);
    bool kept = rules_meet_status(rules, answer->failed, answer->status);
    if (command->at == FREE) /* whose command was left out, or sent before the capture began */
        return kept && !rules->by_lun && !rules->by_opcode && !rules->by_lba;
    uint64_t at = command->at;
    bool function = command->function;
    forget(filter, command);
    if (at >= filter->base + filter->first && *verdict_at(filter, at) == UNDECIDED) {
        decide(filter, at, kept);
        return kept;
    }
    return function || !rules->by_status || rules->failed; /* as that was */
}

static enum verdict judge(struct filter *filter, const struct tap_entry *entry,
                          const unsigned char *bytes) {
    struct message message = {.protocol = filter->protocol,
                              .layout = filter->layout,
                              .way = entry->way,
                              .bytes = bytes,
                              .descriptors = bytes + entry->message,
                              .length = entry->message,
                              .descriptors_length = entry->descriptors};
    struct meaning meaning = rules_read(&filter->rules, &message);
    switch (meaning.kind) {
    case MESSAGE_COMMAND:
        if (!meaning.meets)
            return LEFT_OUT;
        expect(filter, meaning.tag, false);
        return filter->rules.by_status ? UNDECIDED : KEPT;
    case MESSAGE_FUNCTION:
        expect(filter, meaning.tag, true);
        return KEPT;
    case MESSAGE_ANSWER:
        return settle(filter, &meaning) ? KEPT : LEFT_OUT;
    default:
        return KEPT;
    }
}

/* Write what is decided and held up by nothing. */
static size_t pass_on(struct filter *filter, unsigned char *out, uint64_t *kept) {
    size_t written = 0;
    while (filter->first < filter->end) {
        unsigned char *at = filter->held + filter->first;
        struct tap_entry entry;
        memcpy(&entry, at, sizeof entry);
        if (entry.reserved == UNDECIDED)
            break;
        filter->first += entry.bytes;
        filter->lost += entry.lost;
        if (entry.reserved == LEFT_OUT) {
            filter->left_out++;
            continue;
        }
        entry.lost = filter->lost < UINT32_MAX ? (uint32_t)filter->lost : UINT32_MAX;
        entry.reserved = 0;
        filter->lost = 0;
        memcpy(out + written, &entry, sizeof entry);
        memcpy(out + written + sizeof entry, at + sizeof entry, entry.bytes - sizeof entry);
        written += entry.bytes;
        ++*kept;
    }
    if (filter->first == filter->end) {
        filter->base += filter->end;
        filter->first = filter->end = 0;
    }
    return written;
}

/* Have room for another entry; where there is none, half of what waits cannot wait any longer. */
static size_t make_room(struct filter *filter, size_t bytes, unsigned char *out, uint64_t *kept) {
    size_t written = 0;
    if (FILTER_BYTES - filter->end >= bytes)
        return 0;
    while (filter->end - filter->first > FILTER_BYTES / 2) {
        *verdict_at(filter, filter->base + filter->first) = filter->rules.failed ? KEPT : LEFT_OUT;
        written += pass_on(filter, out + written, kept);
    }
    memmove(filter->held, filter->held + filter->first, filter->end - filter->first);
    filter->base += filter->first;
    filter->end -= filter->first;
    filter->first = 0;
    return written;
}

size_t filter_take(struct filter *filter, const unsigned char *entries, size_t bytes,
                   unsigned char *out, uint64_t *kept) {
    size_t written = 0;
    *kept = 0;
    for (size_t at = 0; at < bytes;) {
        struct tap_entry entry;
        memcpy(&entry, entries + at, sizeof entry);
        written += make_room(filter, entry.bytes, out + written, kept);
        entry.reserved = (uint8_t)judge(filter, &entry, entries + at + sizeof entry);
        memcpy(filter->held + filter->end, &entry, sizeof entry);
        memcpy(filter->held + filter->end + sizeof entry, entries + at + sizeof entry,
               entry.bytes - sizeof entry);
        filter->end += entry.bytes;
        at += entry.bytes;
        written += pass_on(filter, out + written, kept);
    }
    return written;
}

size_t filter_end(struct filter *filter, unsigned char *out, uint64_t *kept) {
    *kept = 0;
    give_up(filter);
    return pass_on(filter, out, kept);
}
