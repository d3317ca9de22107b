/* SPDX-License-Identifier: MIT */
#include "load.h"
#include "wait.h"

#include <poll.h>
#include <string.h>

enum {
    AHEAD = 16,        /* slots whose cache lines are asked for at once */
    SPINS = 64,        /* looks at the ring between two at the clock */
    EARLY_NS = 100000, /* before a command is due we are awake: timers may be late */
};

/* Operations */

/* splitmix64 (Steele, Lea, Flood 2014), as Workload.operations has it. */
static uint64_t next_random(struct load *load) {
    uint64_t z = load->random += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint64_t next_below(struct load *load, uint64_t limit) {
    return (uint64_t)((__extension__(unsigned __int128) next_random(load) * limit) >> 64);
}

/* Return the next operation's block, and say whether it is a write. */
static uint64_t next_operation(struct load *load, bool *write) {
    uint64_t block = load->next_block;
    if (!load->listed && load->at_random) {
        block = next_below(load, load->blocks);
    } else {
        uint64_t end = load->listed ? load->listed : load->blocks;
        load->next_block = block + 1 == end ? 0 : block + 1;
    }
    if (load->listed) {
        uint64_t operation = load->list[block];
        *write = operation & 1;
        return operation >> 1;
    }
    *write = load->mixed ? next_below(load, 100) >= load->read_percent : !load->read_percent;
    return block;
}

/* Begin the next operation in a free place; it is due at `due`. */
static void begin(struct load *load, uint64_t due) {
    uint32_t number = load->idle[--load->idles];
    struct load_place *place = &load->place[number];
    uint64_t block = next_operation(load, &place->write);
    place->address = load->first_address + block * load->step;
    place->began = due;
    uint32_t at = load->queue_first + load->queued++;
    load->queue[at < load->depth ? at : at - load->depth] = number;
    load->arrivals++;
}

static uint64_t next_due(const struct load *load) {
    return load->began + (uint64_t)((double)load->arrivals * load->period_ns);
}

/* Take note of the end of the run, and of what was due until then and is not begun. */
static void end_run(struct load *load, uint64_t now) {
    load->ended = true;
    uint64_t until = now < load->ends ? now : load->ends;
    if (load->period_ns > 0 && load->arrivals < load->commands && next_due(load) < until)
        load->unsent = 1 + (uint64_t)((double)(until - next_due(load) - 1) / load->period_ns);
}

/* Begin what may begin now. */
static void begin_all(struct load *load, uint64_t now) {
    while (!load->ended) {
        uint64_t due = load->period_ns > 0 ? next_due(load) : now;
        if (load->arrivals >= load->commands || due >= load->ends || load->stopped) {
            end_run(load, now);
        } else if (due > now) {
            break; /* not yet */
        } else if (now >= load->ends && (!load->idles || due < load->full_until)) {
            end_run(load, now); /* the backlog is not worked off */
        } else if (!load->idles) {
            break;
        } else {
            load->late += due < load->full_until;
            begin(load, due);
        }
    }
    uint32_t outstanding = load_outstanding(load);
    if (outstanding > load->most_outstanding)
        load->most_outstanding = outstanding;
}

/* The ring */

static void patch(const struct load_protocol *protocol, unsigned char *slot, uint64_t address) {
    address = protocol->big_endian ? __builtin_bswap64(address) : address;
    memcpy(slot + protocol->address_at, &address, sizeof address);
}

/* Put on the ring what it takes; false if that is broken. */
static bool send_queue(struct load *load) {
    while (load->queued && load->room > 0) {
        struct load_place *place = &load->place[load->queue[load->queue_first]];
        struct load_request *request = &place->request[place->write];
        patch(load->protocol, request->slot, place->address);
        int put = ring_put(load->ring, request->slot, request->length, false);
        if (put <= 0)
            return put == 0;
        for (uint32_t i = 0; i < request->grants; i++) {
            const struct load_grant *grant = &request->grant[i];
            grant_set(grant->entry, grant->domain, grant->frame, grant->readonly);
        }
        place->on_ring = true;
        load->queue_first = load->queue_first + 1 == load->depth ? 0 : load->queue_first + 1;
        load->queued--;
        load->room--;
        uint32_t on_ring = load_outstanding(load) - load->queued;
        if (on_ring > load->most_on_ring)
            load->most_on_ring = on_ring;
    }
    return true;
}

static bool publish(struct load *load) {
    int wanted = ring_publish(load->ring);
    if (wanted > 0) {
        signal_event(load->outgoing);
        load->notifications_sent++;
    }
    return wanted != RING_BROKEN;
}

/* Take an answer's command from its place; false if the backend holds on to its memory. */
static bool complete(struct load *load, const struct load_answer *answer, uint64_t now) {
    uint32_t number = (uint32_t)(answer->tag - load->first_tag);
    struct load_place *place = &load->place[number];
    const struct load_request *request = &place->request[place->write];
    for (uint32_t i = 0; i < request->grants; i++) {
        if (!grant_end(request->grant[i].entry)) {
            ring_break(load->ring, "pages are still mapped after the answer");
            return false;
        }
    }
    place->on_ring = false;
    load->full_until = load->idles ? load->full_until : now;
    load->idle[load->idles++] = number;
    load->room += answer->room;
    load->last = now;
    if (answer->good)
        histogram_add(&load->latency[place->write], now - place->began, 1);
    return true;
}

/* Take `waiting` answers, or as many as until one is Python's: then LOAD_ANSWER. */
static enum load_event take(struct load *load, uint32_t waiting, uint64_t now) {
    for (uint32_t i = 0; i < waiting; i++) {
        struct load_answer answer = {0};
        ring_copy(load->ring, i, load->slot);
        bool ours = load->protocol->read(load->slot, &answer);
        uint64_t number = answer.tag - load->first_tag;
        ours = ours && number < load->depth && load->place[number].on_ring;
        if (ours && !complete(load, &answer, now))
            return LOAD_BROKEN;
        if (!ours || !answer.good) {
            load->answered = ours ? (uint32_t)number : LOAD_MAX_DEPTH;
            ring_consume(load->ring, i + 1);
            return LOAD_ANSWER;
        }
    }
    ring_consume(load->ring, waiting);
    return LOAD_ENDED;
}

/* Waiting */

/* Watch the ring until something has come, or is due; false if it is time to sleep. */
static bool watch(struct load *load, uint64_t now, uint64_t due) {
    bool soon = due - now <= EARLY_NS;
    uint64_t until = soon ? due : now + load->poll_ns;
    for (unsigned spin = 0; now < until; spin++) {
        ring_prefetch(load->ring, 1); /* so that the slot comes along with the index */
        if (ring_waiting(load->ring) || atomic_load(&load->interrupted))
            return true;
        relax();
        if (soon || spin % SPINS == SPINS - 1)
            now = now_ns();
    }
    return now >= due;
}

static void sleep_for_event(struct load *load, uint64_t due) {
    struct pollfd fds[2] = {{load->wake, POLLIN, 0}, {load->incoming, POLLIN, 0}};
    struct timespec left, *timeout = NULL;
    if (due != UINT64_MAX) {
        uint64_t now = now_ns(), ns = due > now ? due - now : 0;
        uint64_t early = load->poll_ns ? EARLY_NS : 0;
        ns = ns > early ? ns - early : 0;
        left = (struct timespec){(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
        timeout = &left;
    }
    ppoll(fds, 2, timeout, NULL);
    if (fds[0].revents)
        clear_event(load->wake);
    if (fds[1].revents) {
        clear_event(load->incoming);
        load->notifications_received++;
    }
}

/* When there is something to do even if no answer comes. */
static uint64_t look_next(const struct load *load) {
    if (load->ended)
        return UINT64_MAX;
    if (load->period_ns > 0 && load->idles && next_due(load) < load->ends)
        return next_due(load);
    return load->ends;
}

/* Running */

void load_begin(struct load *load, uint64_t duration_ns, uint64_t commands) {
    load->began = load->last = now_ns();
    load->ends = duration_ns < UINT64_MAX - load->began ? load->began + duration_ns : UINT64_MAX;
    load->commands = commands;
    load->room = 0;
    if (load->listed) {
        load->next_block = 0;
        for (uint32_t i = 0; i < load->depth; i++)
            load->idle[i] = load->depth - 1 - i;
    }
    atomic_store(&load->interrupted, false);
    load->ended = false;
    load->arrivals = load->full_until = load->late = load->unsent = 0;
    load->most_outstanding = load->most_on_ring = 0;
    load->notifications_sent = load->notifications_received = 0;
    histogram_clear(&load->latency[0]);
    histogram_clear(&load->latency[1]);
}

enum load_event load_run(struct load *load) {
    for (;;) {
        if (atomic_load(&load->interrupted)) {
            atomic_store(&load->interrupted, false);
            publish(load);
            return LOAD_INTERRUPTED;
        }
        int waiting = ring_waiting(load->ring);
        if (waiting == RING_BROKEN)
            return LOAD_BROKEN;
        uint64_t now = now_ns();
        if (waiting) {
            ring_prefetch(load->ring, waiting < AHEAD ? (uint32_t)waiting : AHEAD);
            enum load_event event = take(load, (uint32_t)waiting, now);
            if (event != LOAD_ENDED)
                return event;
        }
        begin_all(load, now);
        if (!send_queue(load) || !publish(load))
            return LOAD_BROKEN;
        uint32_t on_ring = load_outstanding(load) - load->queued;
        if (load->ended && !on_ring && !load->queued)
            return LOAD_ENDED;
        if (load->queued && load->room > 0 && !on_ring)
            continue; /* no slot is free yet */
        uint64_t due = look_next(load);
        if (load->poll_ns && watch(load, now, due))
            continue;
        int armed = ring_arm(load->ring);
        if (armed == RING_BROKEN)
            return LOAD_BROKEN;
        if (!armed)
            sleep_for_event(load, due);
    }
}

void load_stop(struct load *load) {
    atomic_store(&load->stopped, true);
    signal_event(load->wake);
}

void load_interrupt(struct load *load) {
    atomic_store(&load->interrupted, true);
    signal_event(load->wake);
}
