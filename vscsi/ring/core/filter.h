/* SPDX-License-Identifier: MIT */
/*
 * The entries of one ring's tap that meet rules: a command and its answer are both kept or both
 * left out, in their order. What is no command (logins, task management, MADs) is kept.
 *
 * Where the status decides, a command and what came after it wait for its answer: at most
 * FILTER_BYTES of entries and FILTER_OPEN commands. Those beyond that are taken for unanswered.
 */
#ifndef VSCSI_FILTER_H
#define VSCSI_FILTER_H

#include "rules.h"
#include "tap.h"

enum { FILTER_BYTES = 4 << 20, FILTER_OPEN = 1 << 12 };

/* A command that waits for its answer. */
struct open_command {
    uint64_t tag;
    uint64_t at; /* of its entry, in bytes since the start; all ones: a free place */
    bool function;
};

struct filter {
    struct rules rules;
    uint8_t protocol, layout;
    unsigned char *held; /* FILTER_BYTES: entries from `first` to `end`, the first one undecided */
    size_t first, end;
    uint64_t base;             /* what `at` is of held[0] */
    struct open_command *open; /* a table of 2 * FILTER_OPEN */
    uint32_t opened;
    uint64_t lost;     /* before the next entry that is kept */
    uint64_t left_out; /* in all */
};

/* Have the fields below `layout` be those of an empty filter; false if there is no memory. */
bool filter_init(struct filter *filter);
void filter_free(struct filter *filter);

/*
 * Take `bytes` bytes of taken entries; write what is kept of them, and of what had waited, to
 * `out`; return its bytes, at most `bytes` + FILTER_BYTES, and count its entries.
 */
size_t filter_take(struct filter *filter, const unsigned char *entries, size_t bytes,
                   unsigned char *out, uint64_t *kept);

/* Write what waits, all of it unanswered, as there will be no more; at most FILTER_BYTES. */
size_t filter_end(struct filter *filter, unsigned char *out, uint64_t *kept);

#endif
