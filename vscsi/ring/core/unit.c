/* SPDX-License-Identifier: MIT */
#include "unit.h"

void unit_init(struct unit *unit, struct store *store, uint32_t block_size, uint32_t max_bytes) {
    unit->store = store;
    unit->block_size = block_size;
    unit->max_bytes = max_bytes;
    pthread_mutex_init(&unit->lock, NULL);
    pthread_cond_init(&unit->empty, NULL);
}

void unit_wake(struct unit *unit) {
    pthread_mutex_lock(&unit->lock);
    pthread_cond_broadcast(&unit->empty);
    pthread_mutex_unlock(&unit->lock);
}

void unit_close(struct unit *unit) {
    atomic_fetch_add(&unit->closed, 1);
    if (!atomic_load(&unit->inside))
        return;
    pthread_mutex_lock(&unit->lock);
    while (atomic_load(&unit->inside))
        pthread_cond_wait(&unit->empty, &unit->lock);
    pthread_mutex_unlock(&unit->lock);
}

void unit_open(struct unit *unit) { atomic_fetch_sub(&unit->closed, 1); }
