/* SPDX-License-Identifier: MIT */
/*
 * Two ends of a ring as two processes (fork) or threads, echoing numbered messages of full slots.
 * Exits 0 if every request and every response came exactly once, in order and whole.
 *
 *   stress LAYOUT WAIT SIDES PAGES SLOT_SIZE MESSAGES START
 *   LAYOUT xen or pair; WAIT event (sleep until the event rule sends one) or poll; SIDES fork or
 * thread
 */
#include "ring.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { HANG_MS = 30000 };

static bool pair, sleeping;
static uint32_t slot_size, messages, start;
static size_t bytes;
static void *requests, *responses;
static int events[2]; /* [0] wakes the front, [1] the back */
static uint32_t sleeps[2];

static void fail(const char *side, const char *what, uint32_t number) {
    fprintf(stderr, "%s: %s at message %u\n", side, what, number);
    exit(1);
}

/* Every word of a message depends on its number, so a torn or stale slot shows. */
static void fill(unsigned char *slot, uint32_t number, uint32_t salt) {
    for (uint32_t at = 0, word = number; at < slot_size;
         at += 4, word = (word ^ salt) * 2654435761u)
        memcpy(slot + at, &word, slot_size - at < 4 ? slot_size - at : 4);
}

static void expect(const char *side, const unsigned char *slot, uint32_t number, uint32_t salt) {
    unsigned char wanted[RING_MAX_SLOT];
    fill(wanted, number, salt);
    if (memcmp(slot, wanted, slot_size))
        fail(side, "lost, doubled, reordered or torn", number);
}

static void publish(const char *side, struct ring_end *end, int event) {
    int wanted = ring_publish(end);
    if (wanted == RING_BROKEN)
        fail(side, end->fault, end->put_index);
    if (wanted && sleeping && eventfd_write(event, 1))
        fail(side, "no event sent", end->put_index);
}

static void pause_for(const char *side, struct ring_end *end, int which) {
    if (!sleeping) {
        sched_yield();
        return;
    }
    int there = ring_arm(end);
    if (there == RING_BROKEN)
        fail(side, end->fault, end->take_index);
    if (there)
        return;
    struct pollfd wait = {.fd = events[which], .events = POLLIN};
    eventfd_t count;
    if (poll(&wait, 1, HANG_MS) != 1 || eventfd_read(events[which], &count))
        fail(side, "lost wake-up", end->take_index);
    sleeps[which]++;
}

/* Varying batches, so that thresholds fall before, in and after them. */
static int batch(uint32_t *random, int most) {
    *random = *random * 1664525u + 1013904223u;
    int some = (int)(*random >> 24) % 8 + 1;
    return most < some || *random >> 30 == 0 ? most : some;
}

static void front(struct ring_end *end) {
    unsigned char slot[RING_MAX_SLOT];
    uint32_t sent = 0, received = 0, random = 1;
    while (received < messages) {
        int room = ring_free(end), waiting;
        if (room == RING_BROKEN)
            fail("front", end->fault, sent);
        /* The answers must find room in a pair's other ring, as credits see to in SRP. */
        if ((uint32_t)room > end->entries - (sent - received))
            room = (int)(end->entries - (sent - received));
        if ((uint32_t)room > messages - sent)
            room = (int)(messages - sent);
        for (int count = batch(&random, room); count > 0; count--) {
            fill(slot, sent++, 1);
            if (ring_put(end, slot, slot_size, true) != 1)
                fail("front", "no room", sent);
        }
        publish("front", end, events[1]);
        waiting = ring_waiting(end);
        if (waiting == RING_BROKEN)
            fail("front", end->fault, received);
        if (waiting == 0) {
            pause_for("front", end, 0);
            continue;
        }
        int count = batch(&random, waiting);
        for (int i = 0; i < count; i++) {
            ring_copy(end, (uint32_t)i, slot);
            expect("front", slot, received++, 2);
        }
        ring_consume(end, (uint32_t)count);
    }
    if (end->put_index != start + messages || end->take_index != start + messages)
        fail("front", "wrong last index", end->put_index);
}

static void back(struct ring_end *end) {
    unsigned char slot[RING_MAX_SLOT];
    uint32_t taken = 0, random = 2;
    while (taken < messages) {
        int waiting = ring_waiting(end);
        if (waiting == RING_BROKEN)
            fail("back", end->fault, taken);
        if (waiting == 0) {
            pause_for("back", end, 1);
            continue;
        }
        int count = batch(&random, waiting);
        for (int i = 0; i < count; i++) {
            ring_copy(end, (uint32_t)i, slot);
            expect("back", slot, taken + (uint32_t)i, 1);
        }
        ring_consume(end, (uint32_t)count);
        for (int i = 0; i < count; i++) {
            fill(slot, taken++, 2);
            if (ring_put(end, slot, slot_size, true) != 1)
                fail("back", "no room", taken);
        }
        publish("back", end, events[0]);
    }
}

static void *run_back(void *unused) {
    struct ring_end end;
    if (pair)
        ring_pair_back(&end, requests, responses, bytes, slot_size);
    else
        ring_back(&end, requests, bytes, slot_size);
    back(&end);
    return unused;
}

static void *shared(size_t size) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        exit(2);
    return memory;
}

int main(int argc, char **argv) {
    if (argc != 8)
        return 2;
    pair = !strcmp(argv[1], "pair");
    sleeping = !strcmp(argv[2], "event");
    bytes = strtoul(argv[4], NULL, 0) * RING_PAGE;
    slot_size = (uint32_t)strtoul(argv[5], NULL, 0);
    messages = (uint32_t)strtoul(argv[6], NULL, 0);
    start = (uint32_t)strtoul(argv[7], NULL, 0);
    requests = shared(bytes);
    responses = shared(bytes);
    events[0] = eventfd(0, 0);
    events[1] = eventfd(0, 0);

    struct ring_end end;
    if (pair)
        ring_pair_front(&end, requests, responses, bytes, slot_size, start);
    else
        ring_front(&end, requests, bytes, slot_size, start);
    int status = 0;
    if (!strcmp(argv[3], "fork")) {
        pid_t child = fork();
        if (child == 0) {
            run_back(NULL);
            return 0;
        }
        front(&end);
        if (waitpid(child, &status, 0) != child)
            return 2;
    } else {
        pthread_t thread;
        if (pthread_create(&thread, NULL, run_back, NULL))
            return 2;
        front(&end);
        pthread_join(thread, NULL);
    }
    printf("%u messages each way, %u entries, the front slept %u times\n", messages, end.entries,
           sleeps[0]);
    return status ? 1 : 0;
}
