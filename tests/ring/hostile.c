/* SPDX-License-Identifier: MIT */
/*
 * Every call on every kind of ring end, in random order, while the shared memory is scribbled on.
 * The memory comes from malloc in its exact size: AddressSanitizer sees any step beyond it.
 *
 *   hostile ROUNDS
 */
#include "ring.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t state = 20060301;

static uint32_t dice(uint32_t sides) {
    state = state * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)state * sides >> 32);
}

/* A header word set to something near an index in use, or to anything. */
static void scribble(const struct ring_end *end, void *memory) {
    static const size_t offsets[] = {0, 4, 8, 12, 64, 68};
    uint32_t bases[] = {end->put_index, end->take_index, end->put_index + end->entries,
                        end->take_index + end->entries, dice(UINT32_MAX)};
    uint32_t value = bases[dice(5)] + dice(5) - 2;
    memcpy((char *)memory + offsets[dice(6)], &value, sizeof value);
}

/* One end's life; counts what was taken, returns whether the peer was found out. */
static bool live(uint32_t *taken) {
    uint32_t slot_size = dice(2) ? RING_MIN_SLOT + dice(300) : RING_MIN_SLOT + dice(3900);
    size_t bytes = RING_PAGE * (1 + dice(RING_MAX_PAGES));
    uint32_t start = UINT32_MAX - dice(20);
    void *memory[2] = {malloc(bytes), malloc(bytes)};
    unsigned char slot[RING_MAX_SLOT] = {0};
    if (!memory[0] || !memory[1])
        exit(2);
    memset(memory[0], 0, bytes);
    memset(memory[1], 0, bytes);

    struct ring_end end;
    switch (dice(4)) {
    case 0:
        ring_front(&end, memory[0], bytes, slot_size, start);
        break;
    case 1:
        ring_back(&end, memory[0], bytes, slot_size);
        break;
    case 2:
        ring_pair_front(&end, memory[0], memory[1], bytes, slot_size, start);
        break;
    default:
        ring_pair_back(&end, memory[0], memory[1], bytes, slot_size);
    }
    for (int step = 0; step < 60 && end.entries; step++) {
        int waiting;
        switch (dice(6)) {
        case 0:
            ring_put(&end, slot, dice(slot_size + 1), dice(2));
            break;
        case 1:
            ring_publish(&end);
            break;
        case 2:
            ring_arm(&end);
            break;
        case 3:
            if (ring_free(&end) > (int)end.entries)
                exit(3);
            break;
        case 4:
            waiting = ring_waiting(&end);
            if (waiting > (int)end.entries)
                exit(4);
            for (int i = 0; i < waiting; i++)
                ring_copy(&end, (uint32_t)i, slot);
            if (waiting > 0) {
                ring_consume(&end, (uint32_t)waiting);
                *taken += (uint32_t)waiting;
            }
            break;
        default:
            scribble(&end, memory[dice(2)]);
        }
    }
    free(memory[0]);
    free(memory[1]);
    return end.fault != NULL;
}

int main(int argc, char **argv) {
    uint32_t found_out = 0, taken = 0;
    uint32_t rounds = argc == 2 ? (uint32_t)strtoul(argv[1], NULL, 0) : 0;
    for (uint32_t i = 0; i < rounds; i++)
        found_out += live(&taken);
    printf("%u of %u peers found out, %u slots taken\n", found_out, rounds, taken);
    /* Both happen often, or this tested nothing. */
    return found_out > rounds / 4 && taken > rounds ? 0 : 1;
}
