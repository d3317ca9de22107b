/* SPDX-License-Identifier: MIT */
/*
 * What was answered on one ring, for whoever asks while it is served: counts in a few buckets with
 * round bounds, and maxima of the last minute. One thread adds, any reads; nobody waits.
 */
#ifndef VSCSI_TALLY_H
#define VSCSI_TALLY_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define TALLY_LATENCY_NS                                                                           \
    2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000, 1000000, 2000000, 5000000, 10000000,  \
        20000000, 50000000, 100000000, 200000000, 500000000, 1000000000, 2000000000, 5000000000,   \
        10000000000, 30000000000
#define TALLY_BYTES                                                                                \
    512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288, 1048576, 4194304

enum {
    TALLY_LATENCIES = sizeof (uint64_t[]){TALLY_LATENCY_NS} / sizeof(uint64_t),
    TALLY_SIZES = sizeof (uint64_t[]){TALLY_BYTES} / sizeof(uint64_t),
    TALLY_OPCODES = 256,
    PEAK_WINDOWS = 6,
    PEAK_WINDOW_S = 10,
};

/* The most of each of the last windows. */
struct peak {
    struct {
        _Atomic uint64_t window, most;
    } of[PEAK_WINDOWS];
};

/* Of the commands of one opcode, or of all that have no other place. */
struct tally_row {
    _Atomic uint64_t latency[TALLY_LATENCIES + 1]; /* the last one: beyond all bounds */
    _Atomic uint64_t size[TALLY_SIZES + 1];
    _Atomic uint64_t latency_ns, bytes; /* sums */
    struct peak longest_ns;
};

/* Of one logical unit over one ring. */
struct tally {
    uint8_t row_of[TALLY_OPCODES]; /* by the opcode; blkif: by the operation */
    size_t rows;
    struct tally_row *row;
};

/* Add to what this thread alone writes. */
static inline void tally_add_to(_Atomic uint64_t *count, uint64_t value) {
    value += atomic_load_explicit(count, memory_order_relaxed);
    atomic_store_explicit(count, value, memory_order_relaxed);
}

static inline void peak_note(struct peak *peak, uint64_t now, uint64_t value) {
    uint64_t window = now / (PEAK_WINDOW_S * UINT64_C(1000000000));
    _Atomic uint64_t *known = &peak->of[window % PEAK_WINDOWS].window;
    _Atomic uint64_t *most = &peak->of[window % PEAK_WINDOWS].most;
    if (atomic_load_explicit(known, memory_order_relaxed) == window &&
        atomic_load_explicit(most, memory_order_relaxed) >= value)
        return;
    atomic_store_explicit(most, value, memory_order_relaxed);
    atomic_store_explicit(known, window, memory_order_relaxed);
}

static inline uint64_t peak_read(const struct peak *peak, uint64_t now) {
    uint64_t window = now / (PEAK_WINDOW_S * UINT64_C(1000000000)), most = 0;
    for (int i = 0; i < PEAK_WINDOWS; i++) {
        uint64_t value = atomic_load_explicit(&peak->of[i].most, memory_order_relaxed);
        if (atomic_load_explicit(&peak->of[i].window, memory_order_relaxed) + PEAK_WINDOWS >
                window &&
            value > most)
            most = value;
    }
    return most;
}

/* The first bound that a value is not above; how many there are, if it is above all. */
static inline size_t tally_bucket(const uint64_t *bounds, size_t count, uint64_t value) {
    size_t bucket = 0;
    while (bucket < count && value > bounds[bucket])
        bucket++;
    return bucket;
}

/* Count so many answers that are shown now, each of so many bytes. */
static inline void tally_add(struct tally_row *row, uint64_t now, uint64_t latency_ns,
                             uint64_t bytes, uint32_t times) {
    static const uint64_t LATENCY_NS[] = {TALLY_LATENCY_NS}, BYTES[] = {TALLY_BYTES};
    tally_add_to(&row->latency[tally_bucket(LATENCY_NS, TALLY_LATENCIES, latency_ns)], times);
    tally_add_to(&row->latency_ns, latency_ns * times);
    tally_add_to(&row->size[tally_bucket(BYTES, TALLY_SIZES, bytes)], times);
    tally_add_to(&row->bytes, bytes * times);
    peak_note(&row->longest_ns, now, latency_ns);
}

#endif
