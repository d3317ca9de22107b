/* SPDX-License-Identifier: MIT */
/*
 * A load (load.c) against a backend that answers every command: exits 0 if each was answered once,
 * asked for a block of the range, and found its grants in effect.
 *
 *   load_loop PROTOCOL DEPTH COMMANDS POLL_NS [FIRST_CPU]
 *   Prints ns a command, and CPU ns a command of the load's thread.
 */
#include "command.h"
#include "load.h"
#include "wait.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

enum { BLOCKS = 1000, STEP = 8, FIRST = 64, PAGES = 4, GRANTS = 3, BACK = 7 };

static _Alignas(4096) unsigned char rings[2][PAGES * RING_PAGE];
static struct grant_entry table[4096 * GRANTS];
static struct load load;
static struct ring_end front, back;
static uint64_t answered;
static int to_back, cpu = -1;
static bool srp;

static void fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static void pin(int which) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)which, &set);
    if (cpu >= 0)
        sched_setaffinity(0, sizeof set, &set);
}

static uint64_t address_of(const unsigned char *slot) {
    uint64_t address;
    memcpy(&address, slot + load.protocol->address_at, sizeof address);
    return load.protocol->big_endian ? __builtin_bswap64(address) : address;
}

/* Answer a request as a backend would that found its pages. */
static void answer(const unsigned char *slot) {
    unsigned char message[RING_MAX_SLOT] = {0};
    uint64_t address = address_of(slot), tag = 0;
    if ((address - FIRST) % STEP || (address - FIRST) / STEP >= BLOCKS)
        fail("a block outside of the range");
    memcpy(&tag, slot, 2);
    for (uint32_t i = 0; !srp && i < GRANTS; i++) {
        uint32_t frame;
        if (grant_map(&table[tag * GRANTS + i], BACK, false, &frame) || frame != tag + i)
            fail("a page that is not granted");
        grant_unmap(&table[tag * GRANTS + i], GTF_reading | GTF_writing);
    }
    if (srp) {
        unsigned char *unit = message + SLOT_HEADER_BYTES;
        message[SLOT_FORMAT_AT] = SLOT_FORMAT_SRP;
        message[SLOT_LENGTH_AT] = SRP_RSP_BYTES;
        unit[SRP_RSP_TYPE_AT] = SRP_TYPE_RSP;
        store_be32(unit + SRP_RSP_REQUEST_LIMIT_DELTA_AT, 1);
        memcpy(unit + SRP_RSP_TAG_AT, slot + SLOT_HEADER_BYTES + SRP_CMD_TAG_AT, 8);
    } else {
        memcpy(message + VSCSIIF_RSP_RQID_AT, slot + VSCSIIF_RQID_AT, 2);
    }
    if (ring_put(&back, message, SLOT_HEADER_BYTES + SRP_RSP_BYTES, false) != 1)
        fail("no room for an answer");
    answered++;
}

static void *serve(void *commands) {
    pin(cpu + 1);
    unsigned char slot[RING_MAX_SLOT];
    while (answered < *(uint64_t *)commands) {
        int waiting = ring_waiting(&back);
        if (waiting == RING_BROKEN)
            fail(back.fault);
        for (int i = 0; i < waiting; i++) {
            ring_copy(&back, 0, slot);
            ring_consume(&back, 1);
            answer(slot);
        }
        if (ring_publish(&back) == 1)
            signal_event(load.incoming);
        if (!waiting && !load.poll_ns && !ring_arm(&back)) {
            struct pollfd fd = {to_back, POLLIN, 0};
            if (poll(&fd, 1, 30000) != 1)
                fail("lost wake-up");
            clear_event(to_back);
        }
    }
    return NULL;
}

static void prepare(uint32_t number) {
    struct load_request *request = &load.place[number].request[0];
    request->length =
        srp ? SLOT_HEADER_BYTES + SRP_CMD_BYTES + SRP_DESCRIPTOR_BYTES : VSCSIIF_SLOT_SIZE;
    request->slot = calloc(1, RING_MAX_SLOT);
    memcpy(request->slot, &number, 2);
    uint64_t tag = __builtin_bswap64(number);
    if (srp)
        memcpy(request->slot + SLOT_HEADER_BYTES + SRP_CMD_TAG_AT, &tag, sizeof tag);
    request->grants = srp ? 0 : GRANTS;
    request->grant = calloc(GRANTS, sizeof *request->grant);
    for (uint32_t i = 0; i < GRANTS; i++)
        request->grant[i] =
            (struct load_grant){&table[number * GRANTS + i], number + i, BACK, false};
}

int main(int argc, char **argv) {
    if (argc < 5)
        fail("load_loop PROTOCOL DEPTH COMMANDS POLL_NS [FIRST_CPU]");
    srp = !strcmp(argv[1], "srp");
    load.protocol = &load_protocols[srp ? 0 : 1];
    load.depth = (uint32_t)atoi(argv[2]);
    uint64_t commands = (uint64_t)atoll(argv[3]);
    load.poll_ns = (uint64_t)atoll(argv[4]);
    cpu = argc > 5 ? atoi(argv[5]) : -1;
    if (srp) {
        ring_pair_front(&front, rings[0], rings[1], sizeof rings[0], 128, UINT32_MAX - 1000);
        ring_pair_back(&back, rings[0], rings[1], sizeof rings[0], 128);
    } else {
        ring_front(&front, rings[0], RING_PAGE, VSCSIIF_SLOT_SIZE, UINT32_MAX - 1000);
        ring_back(&back, rings[0], RING_PAGE, VSCSIIF_SLOT_SIZE);
    }
    load.ring = &front;
    load.wake = eventfd(0, EFD_NONBLOCK);
    load.incoming = eventfd(0, EFD_NONBLOCK);
    load.outgoing = to_back = eventfd(0, EFD_NONBLOCK);
    load.blocks = BLOCKS;
    load.first_address = FIRST;
    load.step = STEP;
    load.read_percent = 100;
    load.at_random = true;
    load.place = calloc(load.depth, sizeof *load.place);
    load.idle = calloc(load.depth, sizeof *load.idle);
    load.queue = calloc(load.depth, sizeof *load.queue);
    for (uint32_t i = 0; i < load.depth; i++) {
        prepare(i);
        load.idle[load.idles++] = i;
    }
    pthread_t thread;
    pthread_create(&thread, NULL, serve, &commands);
    pin(cpu);
    load_begin(&load, UINT64_MAX, commands);
    load.room = (int64_t)front.entries - 4;
    struct timespec cpu_time;
    if (load_run(&load) != LOAD_ENDED)
        fail(front.fault ? front.fault : "an answer that is not clean");
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu_time);
    pthread_join(thread, NULL);
    uint64_t counted = 0;
    for (uint32_t i = 0; i < HISTOGRAM_BUCKETS; i++)
        counted += load.latency[0].bucket[i];
    if (counted != commands || answered != commands || load_outstanding(&load))
        fail("not each command was answered once");
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (table[i].access)
            fail("a grant is left");
    printf("%.1f %.1f\n", (double)(load.last - load.began) / (double)commands,
           (double)(cpu_time.tv_sec * 1000000000 + cpu_time.tv_nsec) / (double)commands);
    return 0;
}
