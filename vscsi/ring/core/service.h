/* SPDX-License-Identifier: MIT */
/*
 * A backend's loop over one ring: take, copy, read, execute, answer, notify; without Python for the
 * commands that it knows, and handing up the others one by one. One thread runs it.
 */
#ifndef VSCSI_SERVICE_H
#define VSCSI_SERVICE_H

#include "grants.h"
#include "histogram.h"
#include "later.h"
#include "protocol.h"
#include "regions.h"
#include "ring.h"
#include "tally.h"
#include "tap.h"

enum {
    SERVICE_COPIED = 256 * 8, /* a command's segment descriptors of vscsiif or blkif */
    SERVICE_ANSWERED = 64,    /* answers that can wait to be shown */
};

enum service_event {
    SERVICE_MESSAGE,     /* a slot that Python handles: `slot`; nothing of ours is outstanding */
    SERVICE_INTERRUPTED, /* somebody called service_interrupt */
    SERVICE_BROKEN,      /* the ring is: see its fault */
};

/* Of the commands that were executed here, by operation. */
struct service_histograms {
    struct histogram latency_ns[OPERATIONS]; /* from when it was seen until its answer is shown */
    struct histogram bytes[OPERATIONS];
};

/* A command whose answer waits to be shown. */
struct answered {
    uint64_t taken_ns;
    struct tally *tally;
    uint32_t bytes;
    uint32_t times; /* how many in a row are alike */
    uint8_t operation, code;
};

struct service {
    struct ring_end *ring;
    const struct protocol *protocol; /* NULL: every slot is Python's */
    size_t places;
    struct place *place;
    struct regions regions; /* SRP */
    struct grants *grants;  /* vscsiif and blkif; NULL: we cannot map them here */
    uint32_t slot_bytes;
    uint64_t poll_ns;             /* how long a ring that was busy is watched before we sleep */
    int wake, incoming, outgoing; /* eventfds: ours; the peer's to us; ours to the peer */
    _Atomic bool interrupted;
    uint32_t idle_events; /* in a row */
    struct tap *tap;      /* where to show what crosses; NULL: nowhere */
    /* What was waiting when we last looked: it arrived then, one after the other. */
    uint64_t taken_ns;
    uint32_t batch, position; /* how many; those before the one at hand */
    bool shown;               /* the slot at hand, to the tap */
    struct unit *inside;      /* whose gate we have passed, or NULL */
    struct tally *tally;      /* of the addressed unit */
    uint32_t opened;          /* how often the gate of the addressed unit was, before the look */
    bool counting;            /* into the histograms: always, unless their cost is being measured */
    struct service_histograms histograms;
    struct answered answered[SERVICE_ANSWERED];
    unsigned answered_count;
    _Atomic uint64_t executed, deferred, notifications_sent, notifications_received;
    struct peak most_in_flight; /* on the ring, here, and Python's */
    _Atomic uint32_t in_flight;
    uint32_t others; /* commands that Python has under way, the one handed up not counted */
    unsigned char slot[RING_MAX_SLOT];
    uint64_t message_ns;                  /* when what is in there was seen */
    unsigned char copied[SERVICE_COPIED]; /* the segment descriptors that it points to */
    uint32_t copied_bytes;
    /* At most LATER_MAX; the first ones have been used. */
    struct command *commands;
    unsigned char *slots; /* of each that is under way */
    size_t commands_count, commands_used;
    struct command *command;              /* for the slot at hand; NULL: all are under way */
    struct command *unused;               /* in a row */
    struct command *failed, **failed_end; /* in a row: Python's, once nothing is under way */
    /* A message that waits for those. */
    bool held, held_shown;
    uint64_t held_ns;
    unsigned char held_slot[RING_MAX_SLOT];
    struct later later;
};

/* Prepare the commands, at least one, each with `slot_bytes` of the slots. */
void service_init(struct service *service, struct command *commands, size_t count,
                  unsigned char *slots);

/*
 * Serve until there is something for the caller. native: whether commands may be executed here at
 * all. Publishes first what the caller put on the ring, and sleeps when there is nothing to do.
 */
enum service_event service_run(struct service *service, bool native);

/* Show the peer what was put on the ring; false if that is broken. The thread that runs it. */
bool service_publish(struct service *service);

/* Make service_run return soon; any thread. */
void service_interrupt(struct service *service);

/* Free a notification that the peer stalls by filling its eventfd; any thread. */
void service_unstall(struct service *service);

/* The place of an address; NULL if there is none, or it has something to tell first. */
struct unit *service_unit(struct service *service, const unsigned char *address);

#endif
