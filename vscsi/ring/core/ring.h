/* SPDX-License-Identifier: MIT */
/*
 * One end of a ring in memory that a peer shares and may change at any moment.
 *
 * Two layouts, one rule for events (ring.h of Xen: notify when the threshold lies in (old, new]):
 *   Xen ring   header of 64 bytes: req_prod @0, req_event @4, rsp_prod @8, rsp_event @12; then
 * slots that requests and responses share, response n over request n. pair       two one-way rings,
 * each with a header of 128 bytes: the producer's line (prod @0) and the consumer's (cons @64,
 * event @68); then slots. Indices are free-running u32, a slot is index & (entries - 1). Own
 * indices are kept here and never read back; the peer's are checked at each load. No Python, no
 * allocation, no locks.
 */
#ifndef VSCSI_RING_H
#define VSCSI_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    RING_XEN_HEADER = 64,
    RING_PAIR_HEADER = 128,
    RING_PAGE = 4096,
    RING_MAX_PAGES = 16,
    RING_MIN_SLOT = 4,
    RING_MAX_SLOT = 4096,
    RING_BROKEN = -1, /* the peer broke the rules: `fault` says how, and nothing works any more */
};

enum ring_kind { RING_XEN_FRONT, RING_XEN_BACK, RING_PAIR };

/* Where one direction lives in shared memory; `cons` exists in a pair only. */
struct ring_lane {
    _Atomic uint32_t *prod;
    _Atomic uint32_t *event;
    _Atomic uint32_t *cons;
    unsigned char *slots;
};

struct ring_end {
    struct ring_lane put;
    struct ring_lane take;
    enum ring_kind kind;
    uint32_t slot_size;
    uint32_t entries;
    uint32_t put_index;  /* the next slot to fill */
    uint32_t published;  /* what the peer was told of put_index */
    uint32_t take_index; /* the next slot to copy */
    uint32_t released;   /* pair: the peer's consumer index as last seen */
    const char *fault;   /* what the peer did, once it did */
    uint32_t fault_index;
};

/* Slots in `bytes` of ring memory: the largest power of two that fits, 0 if none does. */
uint32_t ring_entries(size_t bytes, size_t header, uint32_t slot_size);

/*
 * The four constructors. `memory` is aligned to 4 bytes, has room for at least one slot, and
 * outlives the end. A front writes the header(s), with `start` as first index; a back attaches: to
 * a Xen ring at rsp_prod (so what is unanswered is taken again), to a pair at its own indices.
 */
void ring_front(struct ring_end *end, void *memory, size_t bytes, uint32_t slot_size,
                uint32_t start);
void ring_back(struct ring_end *end, void *memory, size_t bytes, uint32_t slot_size);
void ring_pair_front(struct ring_end *end, void *requests, void *responses, size_t bytes,
                     uint32_t slot_size, uint32_t start);
void ring_pair_back(struct ring_end *end, void *requests, void *responses, size_t bytes,
                    uint32_t slot_size);

/*
 * Go on with slots of another size in the same ring memory of `bytes`: for a frontend that found
 * out its backend's ABI. False, and nothing changes, unless all that was put was published and
 * answered, and the ring has as many entries with either size.
 */
bool ring_change_slot_size(struct ring_end *end, size_t bytes, uint32_t slot_size);

/* Have everything fail from now on, for a reason that is ours to find. */
void ring_break(struct ring_end *end, const char *fault);

/* Each of these returns RING_BROKEN once the peer broke the rules. */

/* Slots that can be put now. A back may put one for each that it took. */
int ring_free(struct ring_end *end);
/* Copy a message (length <= slot_size) into the next slot; 0 if none is free, else 1. */
int ring_put(struct ring_end *end, const void *message, size_t length, bool zero_rest);
/* Show the peer what was put; 1 if it wants an event. */
int ring_publish(struct ring_end *end);
/* Slots that can be taken now. */
int ring_waiting(struct ring_end *end);
/* Ask for an event at the next message; 1 if one is there already (final check). */
int ring_arm(struct ring_end *end);

/* Copy the nth waiting slot, n < ring_waiting(); copy each once and decide on the copy alone. */
void ring_copy(const struct ring_end *end, uint32_t nth, void *slot);
/* Go past `count` slots that were copied. */
void ring_consume(struct ring_end *end, uint32_t count);

/*
 * For who takes many of the slots that ring_waiting() has counted: copy the next one and go past
 * it, which the peer of a pair learns by one ring_release() for all. Each look at a line that the
 * other CPU writes, and each write to one that it looks at, costs as much as a whole command.
 */
void ring_take(struct ring_end *end, void *slot);
void ring_release(struct ring_end *end);
/* The next slot to be taken, in shared memory: for hints alone. */
const unsigned char *ring_next(const struct ring_end *end);

/*
 * Have the lines at hand of the next `count` slots to be taken, and of as many to be put. Nothing
 * is looked at.
 */
void ring_prefetch(const struct ring_end *end, uint32_t count);

#endif
