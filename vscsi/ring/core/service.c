/* SPDX-License-Identifier: MIT */
#include "service.h"

#include <poll.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    TOGETHER = 16,        /* answers that are published at once */
    LONG_BYTES = 1 << 16, /* a command of so many is answered before the next one begins */
    SPINS = 64,           /* looks at the ring between two at the clock */
    SPURIOUS_EVENTS = 64, /* after which events are looked at once a millisecond (XSA-332) */
};

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

struct unit *service_unit(struct service *service, const unsigned char *address) {
    for (size_t i = 0; i < service->places; i++) {
        struct place *place = &service->place[i];
        if (!memcmp(place->address, address, sizeof place->address))
            return atomic_load_explicit(&place->attention, memory_order_acquire) ? NULL
                                                                                 : place->unit;
    }
    return NULL;
}

/* Add one to an eventfd, or empty it; neither cares whether the peer made it blocking. */
static void signal_event(int fd) {
    uint64_t one = 1;
    ssize_t written = write(fd, &one, sizeof one);
    (void)written; /* EAGAIN: an event is pending anyway */
}

static void clear_event(int fd) {
    uint64_t count;
    struct iovec into = {&count, sizeof count};
    ssize_t moved = preadv2(fd, &into, 1, -1, RWF_NOWAIT);
    (void)moved; /* EAGAIN: nothing is pending */
}

void service_interrupt(struct service *service) {
    atomic_store(&service->interrupted, true);
    signal_event(service->wake);
}

void service_unstall(struct service *service) { clear_event(service->outgoing); }

bool service_publish(struct service *service) {
    int wanted = ring_publish(service->ring);
    if (wanted > 0) {
        signal_event(service->outgoing);
        service->notifications_sent++;
    }
    return wanted != RING_BROKEN;
}

/* Execute the command in `slot` here, and put its answer; false if Python has to. */
static bool execute(struct service *service) {
    struct command *command = &service->command;
    if (!service->protocol || !service->protocol->read(service, service->slot, command))
        return false;
    bool done = false;
    if (unit_enter(command->unit)) {
        done = !command_execute(command); /* an error is Python's to meet again, and to word */
        unit_leave(command->unit);
    }
    if (service->protocol->release)
        service->protocol->release(service, command);
    if (!done)
        return false;
    unsigned char message[ANSWER_BYTES];
    size_t bytes = service->protocol->answer(service, command, message);
    service->executed++;
    if (!ring_put(service->ring, message, bytes, false))
        ring_break(service->ring, "the peer leaves no room for answers");
    return true;
}

/* Watch the ring for a while; whether something has come. */
static bool watch(struct service *service) {
    uint64_t until = 0;
    for (unsigned spin = 0;; spin++) {
        if (ring_waiting(service->ring) || atomic_load(&service->interrupted))
            return true;
        relax();
        if (spin % SPINS == SPINS - 1) {
            uint64_t now = now_ns();
            until = until ? until : now + service->poll_ns;
            if (now >= until)
                return false;
        }
    }
}

static void sleep_for_event(struct service *service) {
    struct pollfd fds[2] = {{service->wake, POLLIN, 0}, {service->incoming, POLLIN, 0}};
    if (service->idle_events > SPURIOUS_EVENTS)
        poll(fds, 1, 1);
    poll(fds, 2, -1);
    if (fds[0].revents)
        clear_event(service->wake);
    if (fds[1].revents) {
        clear_event(service->incoming);
        service->idle_events++;
        service->notifications_received++;
    }
}

enum service_event service_run(struct service *service, bool native) {
    struct ring_end *ring = service->ring;
    unsigned unpublished = TOGETHER; /* what the caller put counts */
    for (;;) {
        if (atomic_exchange(&service->interrupted, false)) {
            service_publish(service);
            return SERVICE_INTERRUPTED;
        }
        int waiting = ring_waiting(ring);
        if (waiting == RING_BROKEN)
            return SERVICE_BROKEN;
        if (waiting) {
            ring_copy(ring, 0, service->slot);
            ring_consume(ring, 1);
            service->idle_events = 0;
            if (!native || !execute(service)) {
                if (!service_publish(service))
                    return SERVICE_BROKEN;
                return SERVICE_MESSAGE;
            }
            unpublished++;
        }
        if (unpublished &&
            (!waiting || unpublished >= TOGETHER || service->command.length >= LONG_BYTES)) {
            unpublished = 0;
            if (!service_publish(service))
                return SERVICE_BROKEN;
        }
        if (waiting || (service->poll_ns && !service->idle_events && watch(service)))
            continue;
        int armed = ring_arm(ring);
        if (armed == RING_BROKEN)
            return SERVICE_BROKEN;
        if (!armed)
            sleep_for_event(service);
    }
}
