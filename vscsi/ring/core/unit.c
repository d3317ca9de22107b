/* SPDX-License-Identifier: MIT */
#include "unit.h"

void unit_init(struct unit *unit, struct store *store, uint32_t block_size, uint32_t max_bytes) {
    unit->store = store;
    atomic_init(&unit->block_size, block_size);
    unit->max_bytes = max_bytes;
    unit->gate = &unit->own;
    pthread_mutex_init(&unit->own.lock, NULL);
    pthread_cond_init(&unit->own.empty, NULL);
}

void unit_free(struct unit *unit) {
    pthread_cond_destroy(&unit->own.empty);
    pthread_mutex_destroy(&unit->own.lock);
}

void gate_wake(struct gate *gate) {
    pthread_mutex_lock(&gate->lock);
    pthread_cond_broadcast(&gate->empty);
    pthread_mutex_unlock(&gate->lock);
}

void unit_close(struct unit *unit) {
    struct gate *gate = unit->gate;
    atomic_fetch_add(&gate->closed, 1);
    if (!atomic_load(&gate->inside))
        return;
    pthread_mutex_lock(&gate->lock);
    while (atomic_load(&gate->inside))
        pthread_cond_wait(&gate->empty, &gate->lock);
    pthread_mutex_unlock(&gate->lock);
}

void unit_open(struct unit *unit) {
    atomic_fetch_add(&unit->gate->opened, 1);
    atomic_fetch_sub(&unit->gate->closed, 1);
}
