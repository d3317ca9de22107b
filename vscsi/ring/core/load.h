/* SPDX-License-Identifier: MIT */
/*
 * A frontend's load on one ring: reads and writes from a fixed set of places (a buffer each, with
 * its request prepared by Python for either direction), sent, answered, measured and sent again
 * without Python. Closed loop: an answer frees its place for the next command. Open loop: commands
 * come at a fixed rate, and their time counts from when they were due, sent late or not.
 *
 * One thread runs it, and has the ring to itself meanwhile. Answers that are not clean, and
 * whatever else the backend says, are handed up one by one.
 */
#ifndef VSCSI_LOAD_H
#define VSCSI_LOAD_H

#include "grant.h"
#include "histogram.h"
#include "ring.h"

enum { LOAD_MAX_DEPTH = 4096 };

enum load_event {
    LOAD_ENDED,       /* nothing is outstanding any more */
    LOAD_ANSWER,      /* a slot for Python: `slot`, and whose command it answers: `answered` */
    LOAD_INTERRUPTED, /* somebody called load_interrupt */
    LOAD_BROKEN,      /* the ring is: see its fault */
};

/* What an answer says. */
struct load_answer {
    uint64_t tag; /* first_tag, and the place's number */
    int32_t room; /* commands that may be sent for it */
    bool good;    /* all was moved */
};

struct load;

/* What differs between protocols: where a request has its address, and what an answer means. */
struct load_protocol {
    const char *name;
    uint16_t address_at; /* 8 bytes */
    bool big_endian;
    /* Read a private copy of a slot; false if it is no answer to a command. */
    bool (*read)(const unsigned char *slot, struct load_answer *answer);
};

extern const struct load_protocol load_protocols[];
extern const size_t load_protocols_count;

/* A grant that exists while its command is outstanding. */
struct load_grant {
    struct grant_entry *entry;
    uint32_t frame;
    uint16_t domain;
    bool readonly;
};

/* A place's request in one direction. */
struct load_request {
    unsigned char *slot;
    uint32_t length; /* 0: there is none */
    uint32_t grants;
    struct load_grant *grant;
};

struct load_place {
    uint64_t began; /* when it was due */
    uint64_t address;
    bool write;
    bool on_ring;
    struct load_request request[2]; /* to read, to write */
};

struct load {
    struct ring_end *ring;
    const struct load_protocol *protocol;
    int wake, incoming, outgoing; /* eventfds: ours; the peer's to us; ours to the peer */
    uint64_t poll_ns;             /* how long an idle ring is watched before we sleep */
    _Atomic bool interrupted, stopped;

    /* What is done: see vscsi/bench/workload.py, whose operations these are. */
    uint64_t blocks, first_address, step; /* in the protocol's units */
    uint32_t read_percent;                /* 100: reads alone */
    bool mixed, at_random;
    uint64_t random, next_block;
    const uint64_t *list; /* or these, over and over: block * 2, + 1 for a write */
    uint64_t listed;      /* how many; 0: there is no list */
    double period_ns;     /* between arrivals; 0: closed loop */

    struct load_place *place;
    uint64_t first_tag;
    uint32_t depth;
    uint32_t *idle, *queue; /* places: free ones, a stack; begun and not on the ring yet, a FIFO */
    uint32_t idles, queue_first, queued;
    int64_t room; /* commands that may be put on the ring */

    /* This run */
    uint64_t began, ends, last, full_until, commands, arrivals;
    bool ended;
    uint64_t late, unsent;
    uint32_t most_outstanding, most_on_ring;
    uint64_t notifications_sent, notifications_received;
    struct histogram latency[2]; /* of reads, of writes */
    uint32_t answered;           /* a place, or LOAD_MAX_DEPTH */
    unsigned char slot[RING_MAX_SLOT];
};

/*
 * Start a run that ends after some time, or when so many commands were begun; then set `room`. With
 * a list it starts with the first operation, and the n-th of the first `depth` has the n-th place.
 */
void load_begin(struct load *load, uint64_t duration_ns, uint64_t commands);

/* Go on until there is something for the caller. Publishes first what that put on the ring. */
enum load_event load_run(struct load *load);

/* Commands begun and not answered. */
static inline uint32_t load_outstanding(const struct load *load) {
    return load->depth - load->idles;
}

/* Begin no more commands in this run and later ones; any thread, and signal handlers. */
void load_stop(struct load *load);

/* Make load_run return soon; any thread. */
void load_interrupt(struct load *load);

#endif
