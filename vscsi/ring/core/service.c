/* SPDX-License-Identifier: MIT */
#include "service.h"
#include "wait.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

enum {
    TOGETHER = 16,        /* answers that are published at once */
    LONG_BYTES = 1 << 16, /* a command of so many is answered before the next one begins */
    SPINS = 64,           /* looks at the ring between two at the clock */
    SPURIOUS_EVENTS = 64, /* after which events are looked at once a millisecond (XSA-332) */
};

struct unit *service_unit(struct service *service, const unsigned char *address) {
    for (size_t i = 0; i < service->places; i++) {
        struct place *place = &service->place[i];
        if (memcmp(place->address, address, sizeof place->address))
            continue;
        service->opened = atomic_load(&place->unit->gate->opened); /* before all that it guards */
        service->tally = place->tally;
        return atomic_load(&place->attention) ? NULL : place->unit;
    }
    return NULL;
}

void service_interrupt(struct service *service) {
    atomic_store(&service->interrupted, true);
    signal_event(service->wake);
}

void service_unstall(struct service *service) { clear_event(service->outgoing); }

/* Whether an event is pending: a peer that does not look must not stop us in the middle of I/O. */
static bool is_full(int fd) {
    struct pollfd event = {fd, POLLOUT, 0};
    return poll(&event, 1, 0) == 0;
}

/* Let go of the unit that `enter` has let us in to. */
static void leave(struct service *service) {
    if (service->inside)
        unit_leave(service->inside);
    service->inside = NULL;
}

/*
 * Enter a unit; false while its gate is closed, or if it was since the command was read: what that
 * was checked against may have changed. We stay until `leave`, through a batch: what orders memory
 * at a gate waits for every line that we have written to.
 */
static bool enter(struct service *service, struct unit *unit) {
    if (service->inside == unit)
        return true;
    leave(service);
    if (!unit_enter(unit))
        return false;
    service->inside = unit;
    return atomic_load(&unit->gate->opened) == service->opened;
}

/* Count what is answered as of now. */
static void count_answered(struct service *service) {
    uint64_t now = service->answered_count ? now_ns() : 0;
    for (unsigned i = 0; i < service->answered_count; i++) {
        const struct answered *each = &service->answered[i];
        uint64_t latency_ns = now - each->taken_ns;
        histogram_add(&service->histograms.latency_ns[each->operation], latency_ns, each->times);
        histogram_add(&service->histograms.bytes[each->operation], each->bytes, each->times);
        if (each->tally)
            tally_add(&each->tally->row[each->tally->row_of[each->code]], now, latency_ns,
                      each->bytes, each->times);
    }
    service->answered_count = 0;
}

/* Say how many commands are on the ring, as we saw it last, or under way. */
static uint32_t note_in_flight(struct service *service, bool handed_up) {
    uint32_t in_flight = service->batch + service->later.outstanding + service->others + handed_up;
    atomic_store_explicit(&service->in_flight, in_flight, memory_order_relaxed);
    return in_flight;
}

bool service_publish(struct service *service) {
    leave(service);
    ring_release(service->ring);
    int wanted = ring_publish(service->ring);
    count_answered(service);
    note_in_flight(service, false);
    if (wanted > 0) {
        if (!service->later.outstanding || !is_full(service->outgoing))
            signal_event(service->outgoing);
        tally_add_to(&service->notifications_sent, 1);
    }
    return wanted != RING_BROKEN;
}

/* Show the tap a message: that of the command at hand, or the answer that is put next to it. */
static void show(struct service *service, uint8_t way, const struct command *command,
                 const void *message, size_t bytes, uint32_t others) {
    bool request = way == WAY_TO_TARGET;
    struct tap_entry entry = {
        .time_ns = request ? service->taken_ns : now_ns(),
        .ring_index = request ? service->ring->take_index - 1 : service->ring->put_index,
        .in_flight = (uint16_t)(others + service->later.outstanding),
        .way = way,
        .message = (uint16_t)bytes,
        .descriptors = request ? (uint16_t)service->copied_bytes : 0,
    };
    if (tap_wanted(service->tap) && command->operation == (request ? OP_WRITE : OP_READ))
        tap_put_data(service->tap, entry, message, service->copied, command->segment,
                     command->length);
    else
        tap_put(service->tap, entry, message, service->copied, NULL);
}

void service_init(struct service *service, struct command *commands, size_t count,
                  unsigned char *slots) {
    for (int i = 0; i < OPERATIONS; i++) {
        histogram_clear(&service->histograms.latency_ns[i]);
        histogram_clear(&service->histograms.bytes[i]);
    }
    service->counting = true;
    service->commands = service->command = commands;
    service->commands_count = count;
    service->commands_used = 1;
    service->slots = slots;
    service->failed_end = &service->failed;
    later_init(&service->later);
}

/* A command that is not in use; NULL if all are. */
static struct command *take_unused(struct service *service) {
    struct command *command = service->unused;
    if (command)
        service->unused = command->next;
    else if (service->commands_used < service->commands_count)
        command = &service->commands[service->commands_used++];
    return command;
}

/* Where the slot of a command is kept. */
static unsigned char *kept_slot(struct service *service, const struct command *command) {
    return service->slots + (size_t)(command - service->commands) * service->slot_bytes;
}

static void put_unused(struct service *service, struct command *command) {
    command->next = service->unused;
    service->unused = command;
    if (!service->command)
        service->command = take_unused(service);
}

static void release(struct service *service, struct command *command) {
    if (service->protocol->release)
        service->protocol->release(service, command);
}

/* Note an answer, for when it is shown: most of a batch are alike. */
static void note_answered(struct service *service, const struct command *command) {
    unsigned count = service->answered_count;
    struct answered *last = &service->answered[count ? count - 1 : 0];
    if (count && last->taken_ns == command->taken_ns && last->tally == command->tally &&
        last->bytes == command->length && last->operation == command->operation &&
        last->code == command->code) {
        last->times++;
        return;
    }
    if (count == SERVICE_ANSWERED)
        count_answered(service);
    service->answered[service->answered_count++] =
        (struct answered){.taken_ns = command->taken_ns,
                          .tally = command->tally,
                          .bytes = command->length,
                          .times = 1,
                          .operation = (uint8_t)command->operation,
                          .code = command->code};
}

/*
 * Put the answer to a command that ended well, whose memory is still ours; others: taken,
 * unanswered, and not under way.
 */
static void answer(struct service *service, const struct command *command, bool shown,
                   uint32_t others) {
    unsigned char message[ANSWER_BYTES];
    size_t bytes = service->protocol->answer(service, command, message);
    tally_add_to(&service->executed, 1);
    if (service->counting)
        note_answered(service, command);
    if (shown)
        show(service, WAY_TO_INITIATOR, command, message, bytes, others);
    if (!ring_put(service->ring, message, bytes, false))
        ring_break(service->ring, "the peer leaves no room for answers");
}

/* Answer what has ended meanwhile, or keep it for Python; how many were answered. */
static unsigned reap(struct service *service) {
    unsigned answered = 0;
    struct command *command;
    while ((command = later_take(&service->later))) {
        unit_leave(command->unit);
        if (!command->error)
            answer(service, command, command->shown, service->batch);
        release(service, command);
        if (command->error) {
            command->next = NULL;
            *service->failed_end = command;
            service->failed_end = &command->next;
        } else {
            answered++;
            put_unused(service, command);
        }
    }
    return answered;
}

/* Wait for something that is under way, with all shown to the peer that has ended before. */
static void wait_for_later(struct service *service) {
    service_publish(service); /* false: who publishes next sees it too */
    later_wait(&service->later);
    reap(service);
}

/* Wait until nothing is under way; each is answered when it has ended. */
static void drain(struct service *service) {
    if (!service->later.outstanding)
        return;
    do
        wait_for_later(service);
    while (service->later.outstanding);
    service_publish(service);
}

/* Have the command at hand executed later; false if it can't be. */
static bool defer(struct service *service) {
    struct command *command = service->command;
    if (command->barrier || !later_start(&service->later, command))
        return false;
    memcpy(kept_slot(service, command), service->slot, service->slot_bytes);
    command->shown = service->shown;
    unit_enter_again(command->unit);
    service->command = take_unused(service);
    tally_add_to(&service->deferred, 1);
    return true;
}

enum execution { ANSWERED, UNDER_WAY, HANDED_UP };

/* Execute the command in `slot` here, and put its answer, or have that done later. */
static enum execution execute(struct service *service) {
    struct command *command = service->command;
    if (!service->protocol || !service->protocol->read(service, service->slot, command))
        return HANDED_UP;
    command->taken_ns = service->taken_ns;
    command->tally = service->tally;
    service->shown = tap_is_active(service->tap);
    if (service->shown && command->operation == OP_UNMAP) {
        service->shown = false; /* Python shows its parameter list; we have only what that says */
        release(service, command);
        return HANDED_UP;
    }
    if (service->shown)
        show(service, WAY_TO_TARGET, command, service->slot, service->slot_bytes,
             service->position);
    if (service->later.outstanding && (command->barrier || command->operation == OP_FLUSH))
        drain(service);
    bool done = false;
    if (enter(service, command->unit)) {
        int error = command_execute_now(command);
        if (error == EAGAIN) {
            if (defer(service))
                return UNDER_WAY;
            error = command_execute(command);
        }
        done = !error; /* an error is Python's to meet again, and to word */
    }
    if (done)
        answer(service, command, service->shown, service->batch - 1);
    release(service, command);
    return done ? ANSWERED : HANDED_UP;
}

/* Hand up the first command that failed; nothing is under way. */
static enum service_event hand_up_failed(struct service *service) {
    struct command *command = service->failed;
    if (!(service->failed = command->next))
        service->failed_end = &service->failed;
    memcpy(service->slot, kept_slot(service, command), service->slot_bytes);
    service->shown = command->shown;
    service->message_ns = command->taken_ns;
    put_unused(service, command);
    return SERVICE_MESSAGE;
}

/* Keep the message at hand until what came before it has been handed up. */
static void hold(struct service *service) {
    memcpy(service->held_slot, service->slot, service->slot_bytes);
    service->held_shown = service->shown;
    service->held_ns = service->message_ns;
    service->held = true;
}

static enum service_event take_held(struct service *service) {
    memcpy(service->slot, service->held_slot, service->slot_bytes);
    service->shown = service->held_shown;
    service->message_ns = service->held_ns;
    service->held = false;
    return SERVICE_MESSAGE;
}

/* Watch the ring for a while; whether something has come. */
static bool watch(struct service *service) {
    uint64_t until = 0;
    for (unsigned spin = 0;; spin++) {
        ring_prefetch(service->ring, 1); /* so that the slot comes along with the index */
        if (ring_waiting(service->ring) || atomic_load(&service->interrupted) ||
            (service->later.outstanding && later_ready(&service->later)))
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
    struct pollfd fds[3] = {{service->wake, POLLIN, 0},
                            {service->later.event, POLLIN, 0},
                            {service->incoming, POLLIN, 0}};
    bool passed_on = later_submit(&service->later);
    if (service->idle_events > SPURIOUS_EVENTS)
        poll(fds, 2, 1);
    poll(fds, 3, passed_on ? -1 : 1);
    if (fds[0].revents)
        clear_event(service->wake);
    if (fds[1].revents)
        later_clear(&service->later);
    if (fds[2].revents) {
        clear_event(service->incoming);
        service->idle_events++;
        tally_add_to(&service->notifications_received, 1);
    }
}

/* Take the next slot: execute its command, or leave it in `slot`. */
static enum execution take(struct service *service, int waiting, bool native) {
    if (service->batch)
        service->position++;
    else {
        service->batch = (uint32_t)waiting;
        service->position = 0;
        service->taken_ns = now_ns();
        peak_note(&service->most_in_flight, service->taken_ns, note_in_flight(service, false));
    }
    if (service->position % TOGETHER == 0)
        ring_prefetch(service->ring, service->batch < TOGETHER ? service->batch : TOGETHER);
    ring_take(service->ring, service->slot);
    if (native && service->protocol && service->batch > 1)
        service->protocol->hint(service, ring_next(service->ring));
    service->idle_events = 0;
    service->message_ns = service->taken_ns;
    service->shown = false;
    service->copied_bytes = 0;
    enum execution execution = native ? execute(service) : HANDED_UP;
    service->batch--;
    return execution;
}

/* The loop of service_run, which leaves commands under way. */
static enum service_event serve(struct service *service, bool native) {
    struct ring_end *ring = service->ring;
    unsigned unpublished = TOGETHER; /* what the caller put counts */
    for (;;) {
        if (atomic_load(&service->interrupted)) {
            atomic_store(&service->interrupted, false);
            return SERVICE_INTERRUPTED;
        }
        if (service->later.outstanding)
            unpublished += reap(service);
        if (service->failed) {
            drain(service);
            return hand_up_failed(service);
        }
        if (service->held)
            return take_held(service);
        struct command *command = service->command;
        if (!command) {
            wait_for_later(service);
            unpublished++;
            continue;
        }
        int waiting = service->batch && !ring->fault ? (int)service->batch : ring_waiting(ring);
        if (waiting == RING_BROKEN)
            return SERVICE_BROKEN;
        if (waiting) {
            enum execution execution = take(service, waiting, native);
            if (execution == HANDED_UP) {
                drain(service);
                if (!service->failed)
                    return SERVICE_MESSAGE;
                hold(service); /* what failed came first */
                continue;
            }
            unpublished += execution == ANSWERED;
        } else {
            leave(service);
            later_submit(&service->later);
        }
        if (unpublished && (!waiting || unpublished >= TOGETHER || command->length >= LONG_BYTES)) {
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

enum service_event service_run(struct service *service, bool native) {
    enum service_event event = serve(service, native);
    leave(service);
    drain(service);
    if (event != SERVICE_BROKEN && !service_publish(service))
        event = SERVICE_BROKEN;
    note_in_flight(service, event == SERVICE_MESSAGE);
    return event;
}
