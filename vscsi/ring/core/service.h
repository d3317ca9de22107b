/* SPDX-License-Identifier: MIT */
/*
 * A backend's loop over one ring: take, copy, read, execute, answer, notify; without Python for the
 * commands that it knows, and handing up the others one by one. One thread runs it.
 */
#ifndef VSCSI_SERVICE_H
#define VSCSI_SERVICE_H

#include "protocol.h"
#include "regions.h"
#include "ring.h"

enum service_event {
    SERVICE_MESSAGE,     /* a slot that Python handles: `slot`; nothing of ours is outstanding */
    SERVICE_INTERRUPTED, /* somebody called service_interrupt */
    SERVICE_BROKEN,      /* the ring is: see its fault */
};

struct service {
    struct ring_end *ring;
    const struct protocol *protocol; /* NULL: every slot is Python's */
    size_t places;
    struct place *place;
    struct regions regions; /* SRP */
    uint32_t slot_bytes;
    uint64_t poll_ns;             /* how long a ring that was busy is watched before we sleep */
    int wake, incoming, outgoing; /* eventfds: ours; the peer's to us; ours to the peer */
    _Atomic bool interrupted;
    uint32_t idle_events; /* in a row */
    uint64_t executed, notifications_sent, notifications_received;
    unsigned char slot[RING_MAX_SLOT];
    struct command command;
};

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
