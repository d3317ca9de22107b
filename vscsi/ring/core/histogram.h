/* SPDX-License-Identifier: MIT */
/*
 * Counts of values (latencies in ns, sizes in bytes) in log-linear buckets: 32 for each power of
 * two, so that a bucket is no wider than 1/32 of its values. One thread adds.
 */
#ifndef VSCSI_HISTOGRAM_H
#define VSCSI_HISTOGRAM_H

#include <stdint.h>

enum { HISTOGRAM_BITS = 5, HISTOGRAM_BUCKETS = (64 - HISTOGRAM_BITS + 1) << HISTOGRAM_BITS };

struct histogram {
    uint64_t least, most; /* of all values; meaningless while all buckets are empty */
    uint64_t bucket[HISTOGRAM_BUCKETS];
};

static inline uint32_t histogram_index(uint64_t value) {
    uint32_t shift = 0;
    if (value >> (HISTOGRAM_BITS + 1))
        shift = (uint32_t)(63 - HISTOGRAM_BITS - __builtin_clzll(value));
    return (shift << HISTOGRAM_BITS) + (uint32_t)(value >> shift);
}

/* The least value of a bucket; that of the next one is its end. */
static inline uint64_t histogram_floor(uint32_t index) {
    uint32_t shift = index >> (HISTOGRAM_BITS + 1) ? (index >> HISTOGRAM_BITS) - 1 : 0;
    return (uint64_t)(index - (shift << HISTOGRAM_BITS)) << shift;
}

static inline void histogram_clear(struct histogram *histogram) {
    *histogram = (struct histogram){.least = UINT64_MAX};
}

static inline void histogram_add(struct histogram *histogram, uint64_t value, uint32_t times) {
    histogram->least = value < histogram->least ? value : histogram->least;
    histogram->most = value > histogram->most ? value : histogram->most;
    histogram->bucket[histogram_index(value)] += times;
}

#endif
