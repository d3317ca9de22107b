/* SPDX-License-Identifier: MIT */
#include "ring.h"

#include <string.h>

_Static_assert(ATOMIC_INT_LOCK_FREE == 2 && sizeof(_Atomic uint32_t) == 4,
               "indices are lock-free words that two processes share");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "indices are little-endian");

enum { LINE = 64 };

static _Atomic uint32_t *word(void *memory, size_t offset) {
    return (_Atomic uint32_t *)((unsigned char *)memory + offset);
}

static uint32_t peek(_Atomic uint32_t *index) {
    return atomic_load_explicit(index, memory_order_acquire);
}

static void post(_Atomic uint32_t *index, uint32_t value) {
    atomic_store_explicit(index, value, memory_order_release);
}

uint32_t ring_entries(size_t bytes, size_t header, uint32_t slot_size) {
    if (bytes < header + slot_size)
        return 0;
    uint32_t entries = 1;
    while (2 * (size_t)entries * slot_size <= bytes - header)
        entries *= 2;
    return entries;
}

/* Constructors */

static struct ring_lane xen_lane(void *memory, size_t offset) {
    return (struct ring_lane){
        .prod = word(memory, offset),
        .event = word(memory, offset + 4),
        .slots = (unsigned char *)memory + RING_XEN_HEADER,
    };
}

static struct ring_lane pair_lane(void *memory) {
    return (struct ring_lane){
        .prod = word(memory, 0),
        .cons = word(memory, 64),
        .event = word(memory, 68),
        .slots = (unsigned char *)memory + RING_PAIR_HEADER,
    };
}

static void lane_init(struct ring_lane lane, uint32_t start) {
    if (lane.cons)
        post(lane.cons, start);
    post(lane.event, start + 1);
    post(lane.prod, start);
}

static void end_init(struct ring_end *end, enum ring_kind kind, uint32_t entries,
                     uint32_t slot_size, uint32_t put_index, uint32_t take_index) {
    end->kind = kind;
    end->slot_size = slot_size;
    end->entries = entries;
    end->put_index = end->published = put_index;
    end->take_index = take_index;
    end->released = put_index - entries; /* at a re-attach: no honest consumer is further behind */
    end->fault = NULL;
    end->fault_index = 0;
}

void ring_front(struct ring_end *end, void *memory, size_t bytes, uint32_t slot_size,
                uint32_t start) {
    end->put = xen_lane(memory, 0);
    end->take = xen_lane(memory, 8);
    end_init(end, RING_XEN_FRONT, ring_entries(bytes, RING_XEN_HEADER, slot_size), slot_size, start,
             start);
    memset(memory, 0, RING_XEN_HEADER);
    lane_init(end->put, start);
    lane_init(end->take, start);
}

void ring_back(struct ring_end *end, void *memory, size_t bytes, uint32_t slot_size) {
    end->put = xen_lane(memory, 8);
    end->take = xen_lane(memory, 0);
    uint32_t answered = peek(end->put.prod);
    end_init(end, RING_XEN_BACK, ring_entries(bytes, RING_XEN_HEADER, slot_size), slot_size,
             answered, answered);
}

void ring_pair_front(struct ring_end *end, void *requests, void *responses, size_t bytes,
                     uint32_t slot_size, uint32_t start) {
    end->put = pair_lane(requests);
    end->take = pair_lane(responses);
    end_init(end, RING_PAIR, ring_entries(bytes, RING_PAIR_HEADER, slot_size), slot_size, start,
             start);
    end->released = start;
    memset(requests, 0, RING_PAIR_HEADER);
    memset(responses, 0, RING_PAIR_HEADER);
    lane_init(end->put, start);
    lane_init(end->take, start);
}

void ring_pair_back(struct ring_end *end, void *requests, void *responses, size_t bytes,
                    uint32_t slot_size) {
    end->put = pair_lane(responses);
    end->take = pair_lane(requests);
    end_init(end, RING_PAIR, ring_entries(bytes, RING_PAIR_HEADER, slot_size), slot_size,
             peek(end->put.prod), peek(end->take.cons));
}

bool ring_change_slot_size(struct ring_end *end, size_t bytes, uint32_t slot_size) {
    bool idle = end->put_index == end->published && end->published == end->take_index;
    if (end->kind != RING_XEN_FRONT || !idle ||
        ring_entries(bytes, RING_XEN_HEADER, slot_size) != end->entries)
        return false;
    end->slot_size = slot_size;
    return true;
}

/* The peer's indices */

static int broken(struct ring_end *end, const char *fault, uint32_t index) {
    end->fault = fault;
    end->fault_index = index;
    return RING_BROKEN;
}

void ring_break(struct ring_end *end, const char *fault) { broken(end, fault, end->put_index); }

/* What an honest peer can have published beyond take_index at the very most. */
static uint32_t most_waiting(const struct ring_end *end) {
    switch (end->kind) {
    case RING_XEN_FRONT: /* a response for each request that it was shown */
        return end->published - end->take_index;
    case RING_XEN_BACK: /* a request for each slot that is not one still to be answered */
        return end->entries - (end->take_index - end->published);
    case RING_PAIR:
        break;
    }
    return end->entries;
}

int ring_waiting(struct ring_end *end) {
    if (end->fault)
        return RING_BROKEN;
    uint32_t produced = peek(end->take.prod);
    uint32_t waiting = produced - end->take_index;
    if (waiting > most_waiting(end))
        return broken(end, "the peer's producer index is out of range", produced);
    return (int)waiting;
}

int ring_free(struct ring_end *end) {
    if (end->fault)
        return RING_BROKEN;
    if (end->kind == RING_XEN_FRONT)
        return (int)(end->entries - (end->put_index - end->take_index));
    if (end->kind == RING_XEN_BACK)
        return (int)(end->take_index - end->put_index);
    uint32_t consumed = peek(end->put.cons);
    if (consumed - end->released > end->published - end->released)
        return broken(end, "the peer's consumer index is out of range", consumed);
    end->released = consumed;
    return (int)(end->entries - (end->put_index - consumed));
}

/* Messages */

static unsigned char *slot_at(const struct ring_end *end, struct ring_lane lane, uint32_t index) {
    return lane.slots + (size_t)(index & (end->entries - 1)) * end->slot_size;
}

/* Like ring_free; the peer's line of a pair is looked at only if its last index does not suffice.
 */
static int known_free(struct ring_end *end) {
    bool known = end->kind == RING_PAIR && !end->fault;
    uint32_t filled = end->put_index - end->released;
    return known && filled < end->entries ? (int)(end->entries - filled) : ring_free(end);
}

int ring_put(struct ring_end *end, const void *message, size_t length, bool zero_rest) {
    int slots = known_free(end);
    if (slots <= 0)
        return slots;
    unsigned char *slot = slot_at(end, end->put, end->put_index);
    memcpy(slot, message, length);
    if (zero_rest)
        memset(slot + length, 0, end->slot_size - length);
    end->put_index++;
    return 1;
}

int ring_publish(struct ring_end *end) {
    if (end->fault)
        return RING_BROKEN;
    uint32_t old = end->published;
    uint32_t new = end->put_index;
    if (new == old)
        return 0;
    post(end->put.prod, new);
    end->published = new;
    /* Without it the load may pass the store, and both ends go to sleep (as in ring_arm). */
    atomic_thread_fence(memory_order_seq_cst);
    return new - peek(end->put.event) < new - old;
}

void ring_copy(const struct ring_end *end, uint32_t nth, void *slot) {
    memcpy(slot, slot_at(end, end->take, end->take_index + nth), end->slot_size);
}

void ring_take(struct ring_end *end, void *slot) {
    ring_copy(end, 0, slot);
    end->take_index++;
}

const unsigned char *ring_next(const struct ring_end *end) {
    return slot_at(end, end->take, end->take_index);
}

void ring_release(struct ring_end *end) {
    if (end->take.cons)
        post(end->take.cons, end->take_index);
}

void ring_consume(struct ring_end *end, uint32_t count) {
    end->take_index += count;
    ring_release(end);
}

/* Get a line to write to. Without it the store waits for the line, and what comes behind it. */
static void prefetch_to_write(unsigned char *line) {
#if defined(__x86_64__)
    __asm__ volatile("prefetchw %0" : : "m"(*line)); /* __builtin_prefetch needs -mprfchw */
#else
    __builtin_prefetch(line, 1);
#endif
}

void ring_prefetch(const struct ring_end *end, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        unsigned char *slot = slot_at(end, end->take, end->take_index + i);
        for (uint32_t line = 0; line < end->slot_size; line += LINE)
            __builtin_prefetch(slot + line);
        prefetch_to_write(slot_at(end, end->put, end->put_index + i));
    }
}

int ring_arm(struct ring_end *end) {
    int waiting = ring_waiting(end);
    if (waiting == 0) {
        post(end->take.event, end->take_index + 1);
        atomic_thread_fence(memory_order_seq_cst);
        waiting = ring_waiting(end);
    }
    return waiting > 0 ? 1 : waiting;
}
