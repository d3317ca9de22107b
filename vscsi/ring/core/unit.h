/* SPDX-License-Identifier: MIT */
/*
 * A logical unit as the C path sees it: blocks of a store, what may be done to them now, and a
 * gate.
 *
 * While the gate is closed nothing is executed here: commands then take the Python path, which
 * closes it for as long as its task set is not empty. So the two never run commands of one logical
 * unit at the same time, and every rule of SAM's about their order holds across both.
 */
#ifndef VSCSI_UNIT_H
#define VSCSI_UNIT_H

#include "store.h"

#include <stdatomic.h>

enum {
    UNIT_READY = 1, /* neither stopped nor gone */
    UNIT_WRITABLE = 2,
    UNIT_WRITE_CACHE = 4, /* without it each write is flushed before it is answered */
};

struct unit {
    struct store *store;
    uint32_t block_size;
    uint32_t max_bytes; /* of one transfer */
    _Atomic uint64_t blocks;
    _Atomic uint32_t state;
    _Atomic uint32_t closed; /* how many keep the gate closed */
    _Atomic uint32_t inside; /* commands that are being executed here */
    pthread_mutex_t lock;
    pthread_cond_t empty;
};

void unit_init(struct unit *unit, struct store *store, uint32_t block_size, uint32_t max_bytes);

/* Wake who waits in `unit_close`. */
void unit_wake(struct unit *unit);

/* Say that a command which was let in has ended. */
static inline void unit_leave(struct unit *unit) {
    if (atomic_fetch_sub(&unit->inside, 1) == 1 && atomic_load(&unit->closed))
        unit_wake(unit);
}

/* Begin to execute a command; false while the gate is closed. */
static inline bool unit_enter(struct unit *unit) {
    atomic_fetch_add(&unit->inside, 1);
    if (!atomic_load(&unit->closed))
        return true;
    unit_leave(unit);
    return false;
}

/* Close the gate and wait until nobody is inside; each call needs an `unit_open`. */
void unit_close(struct unit *unit);
void unit_open(struct unit *unit);

#endif
