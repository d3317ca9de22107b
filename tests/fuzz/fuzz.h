/* SPDX-License-Identifier: MIT */
/* What every fuzz target has: its input as numbers, checks, memory between canaries. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#define POISONS 1
#endif
#endif
#ifndef POISONS
#define __asan_poison_memory_region(at, bytes) ((void)(at), (void)(bytes))
#define __asan_unpoison_memory_region(at, bytes) ((void)(at), (void)(bytes))
#endif

/* Unlike assert it is there in every build, and libFuzzer keeps the input that fails it. */
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The input: numbers are little-endian, and zeros follow its end. */
struct input {
    const uint8_t *at;
    size_t left;
};

static inline void take(struct input *input, void *to, size_t bytes) {
    size_t there = bytes < input->left ? bytes : input->left;
    memset(to, 0, bytes);
    if (there)
        memcpy(to, input->at, there);
    input->at += there;
    input->left -= there;
}

static inline uint8_t take8(struct input *input) {
    uint8_t value;
    take(input, &value, sizeof value);
    return value;
}

static inline uint16_t take16(struct input *input) {
    uint16_t value;
    take(input, &value, sizeof value);
    return value;
}

static inline uint32_t take32(struct input *input) {
    uint32_t value;
    take(input, &value, sizeof value);
    return value;
}

static inline uint64_t take64(struct input *input) {
    uint64_t value;
    take(input, &value, sizeof value);
    return value;
}

/* Memory of exactly `size` bytes, with canaries (and ASan's poison) on both sides. */
enum { CANARY_BYTES = 64, CANARY = 0xc5 };

struct area {
    unsigned char *memory, *base;
    size_t capacity, size;
};

/* Give an area its size for this input, filled with a byte. */
static inline void area_reset(struct area *area, size_t capacity, size_t size, uint8_t fill) {
    size_t all = capacity + 2 * (size_t)CANARY_BYTES;
    if (!area->memory) {
        area->memory = malloc(all);
        CHECK(area->memory);
        area->base = area->memory + CANARY_BYTES;
        area->capacity = capacity;
    }
    CHECK(size <= area->capacity);
    __asan_unpoison_memory_region(area->memory, all);
    memset(area->memory, CANARY, all);
    memset(area->base, fill, size);
    area->size = size;
    __asan_poison_memory_region(area->memory, CANARY_BYTES);
    __asan_poison_memory_region(area->base + size, all - CANARY_BYTES - size);
}

static inline void area_check(const struct area *area) {
    size_t all = area->capacity + 2 * (size_t)CANARY_BYTES;
    __asan_unpoison_memory_region(area->memory, all);
    for (size_t i = 0; i < CANARY_BYTES; i++)
        CHECK(area->memory[i] == CANARY);
    for (size_t i = CANARY_BYTES + area->size; i < all; i++)
        CHECK(area->memory[i] == CANARY);
    __asan_poison_memory_region(area->memory, CANARY_BYTES);
    __asan_poison_memory_region(area->base + area->size, all - CANARY_BYTES - area->size);
}

/* How often what the target is about has happened: printed at the end, so that a test can see
 * that a corpus reaches it. */
static unsigned long tried, succeeded;

static void print_counts(void) { fprintf(stderr, "counts: %lu of %lu\n", succeeded, tried); }

static inline void count(bool success) {
    if (!tried++)
        atexit(print_counts);
    succeeded += success;
}

#endif
