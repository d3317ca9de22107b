/* SPDX-License-Identifier: MIT */
/*
 * A logical unit as the C path sees it: blocks of a store, what may be done to them now, and a
 * gate.
 *
 * While the gate is closed nothing is executed here: commands then take the Python path, which
 * closes it for as long as its task set is not empty. So the two never run commands of one logical
 * unit at the same time, and every rule of SAM's about their order holds across both.
 *
 * Where each I_T nexus has a way of its own to the logical unit, each way is a unit here, and they
 * share one gate.
 */
#ifndef VSCSI_UNIT_H
#define VSCSI_UNIT_H

#include "store.h"

#include <stdatomic.h>

enum {
    UNIT_READY = 1, /* neither stopped nor gone */
    UNIT_WRITABLE = 2,
    UNIT_WRITE_CACHE = 4, /* without it each write is flushed before it is answered */
    UNIT_THIN = 8,        /* there is an UNMAP */
};

struct gate {
    _Atomic uint32_t closed; /* how many keep it closed */
    _Atomic uint32_t inside; /* commands that are being executed behind it */
    _Atomic uint32_t opened; /* how often it was; before that what is behind it may change */
    pthread_mutex_t lock;
    pthread_cond_t empty;
};

struct unit {
    struct store *store;
    _Atomic uint32_t block_size;
    uint32_t max_bytes; /* of one transfer */
    uint32_t max_unmap_blocks, max_unmap_descriptors;
    _Atomic uint64_t blocks;
    _Atomic uint32_t state;
    struct gate *gate; /* `own`, or another unit's */
    struct gate own;
};

void unit_init(struct unit *unit, struct store *store, uint32_t block_size, uint32_t max_bytes);
void unit_free(struct unit *unit);

/* Wake who waits in `unit_close`. */
void gate_wake(struct gate *gate);

/* Say that a command which was let in has ended. */
static inline void unit_leave(struct unit *unit) {
    struct gate *gate = unit->gate;
    if (atomic_fetch_sub(&gate->inside, 1) == 1 && atomic_load(&gate->closed))
        gate_wake(gate);
}

/* Begin to execute a command; false while the gate is closed. */
static inline bool unit_enter(struct unit *unit) {
    atomic_fetch_add(&unit->gate->inside, 1);
    if (!atomic_load(&unit->gate->closed))
        return true;
    unit_leave(unit);
    return false;
}

/* Begin another command while one is inside: then it needs no look at the gate. */
static inline void unit_enter_again(struct unit *unit) { atomic_fetch_add(&unit->gate->inside, 1); }

/* Close the gate and wait until nobody is inside; each call needs an `unit_open`. */
void unit_close(struct unit *unit);
void unit_open(struct unit *unit);

#endif
