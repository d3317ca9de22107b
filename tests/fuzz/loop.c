/* SPDX-License-Identifier: MIT */
/*
 * service_run against a frontend that is a program: it puts requests, moves indices, sets event
 * thresholds, rewrites slots and whatever they name, stalls events; and what Python does between
 * two runs. A step whose code has its top bit set is made in the midst of the service's work,
 * the others where the service would sleep or looks at the clock. So one thread runs both sides,
 * and an input always means the same. With -DRACE the frontend is a second thread instead.
 *
 * Input: world.h's; number of slots u8 (mod 8), each: length u8, bytes; steps to the end.
 */
#include "world.h"

#define HOOKS_FOR_TARGET
#include "hooks.h"

#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    LIBRARY = 8,
    MOST_CALLS = 20000, /* of hooks: a ring that feeds itself must end */
    TAGS = 1 << 12,
    POLL_NS = 1000,
    MEANWHILE = 0x80,
};

/* Memory as a peer writes it: TSan is to see what our threads do to each other, not this. */
#define PEER __attribute__((no_sanitize("thread"), noinline))

/* The frontend, as an honest one keeps count. */
static struct {
    uint32_t put, published, taken;
    bool honest;
    uint64_t next_tag;
    bool waiting[TAGS]; /* tags that are to be answered */
    unsigned char slot[LIBRARY][RING_MAX_SLOT];
    struct input steps;
    bool gate_closed[UNITS];
} front;

/* What Python is asked to do between two runs. */
static struct {
    pthread_mutex_t lock;
    uint8_t code;
    uint8_t bytes[32];
    bool native, answers;
} python = {.lock = PTHREAD_MUTEX_INITIALIZER};

static uint64_t handed_up, put_by_python;
#ifdef RACE
static _Atomic bool over;
#else
static uint64_t now_ns;
static unsigned calls;
#endif

PEER static void poke(unsigned char *to, const unsigned char *from, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        ((volatile unsigned char *)to)[i] = from[i];
}

PEER static void poke_word(unsigned char *at, uint32_t value) {
    *(volatile uint32_t *)at = value;
    __sync_synchronize();
}

PEER static uint32_t peek_word(const unsigned char *at) {
    __sync_synchronize();
    return *(const volatile uint32_t *)at;
}

PEER static void peek(unsigned char *to, const unsigned char *from, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        to[i] = ((const volatile unsigned char *)from)[i];
}

static bool is_pair(void) { return world.fuzzed->ring == RING_PAIR; }

static unsigned char *word(bool response, size_t pair_at, size_t xen_at) {
    if (!is_pair())
        return world.guest + REQUESTS_AT + xen_at + (response ? 8 : 0);
    return world.guest + (response ? RESPONSES_AT : REQUESTS_AT) + pair_at;
}

static unsigned char *producer(bool response) { return word(response, 0, 0); }
static unsigned char *event(bool response) { return word(response, 68, 4); }

static unsigned char *slot_at(bool response, uint32_t index) {
    size_t at = is_pair() ? RING_PAIR_HEADER : RING_XEN_HEADER;
    unsigned char *ring = world.guest + (is_pair() && response ? RESPONSES_AT : REQUESTS_AT);
    return ring + at + (size_t)(index % ENTRIES) * world.service.slot_bytes;
}

static void add_to(int fd, uint64_t value) {
    ssize_t written = write(fd, &value, sizeof value);
    (void)written;
}

/* Whether nobody has written to the ring but by its rules. */
static bool is_honest(void) { return front.honest && !atomic_load(&world.ring_is_data); }

static void put_request(uint8_t which) {
    uint32_t released = is_pair() ? peek_word(word(false, 64, 0)) : front.taken;
    if (is_honest() && (front.put - front.taken >= ENTRIES || front.put - released >= ENTRIES))
        return;
    unsigned char *slot = front.slot[which % LIBRARY];
    uint64_t tag = front.next_tag % TAGS;
    if (is_honest()) {
        if (front.waiting[tag])
            return;
        front.waiting[tag] = true;
    }
    front.next_tag++;
    memcpy(slot + world.fuzzed->tag, &tag, world.fuzzed->tag_bytes);
    poke(slot_at(false, front.put++), slot, world.service.slot_bytes);
}

static void publish_requests(void) {
    uint32_t fresh = front.put - front.published;
    poke_word(producer(false), front.put);
    front.published = front.put;
    if (front.put - peek_word(event(false)) < fresh)
        add_to(world.service.incoming, 1);
}

/* Take answers; honest on both sides, each is one's to a request that had none. */
static void take_answers(uint8_t most) {
    unsigned char slot[RING_MAX_SLOT];
    uint32_t waiting = peek_word(producer(true)) - front.taken;
    if (is_honest())
        CHECK(waiting <= front.published - front.taken);
    for (uint32_t i = 0; i < waiting && i <= most && i < ENTRIES; i++, front.taken++) {
        uint64_t tag = 0;
        peek(slot, slot_at(true, front.taken), world.service.slot_bytes);
        memcpy(&tag, slot + world.fuzzed->answer_tag, world.fuzzed->tag_bytes);
        if (is_honest()) {
            CHECK(tag < TAGS && front.waiting[tag]);
            front.waiting[tag] = false;
        }
    }
    if (is_pair())
        poke_word(word(true, 64, 0), front.taken);
    poke_word(event(true), front.taken + 1);
}

/* Break the rules: any word of the headers, or any bytes. */
static void scribble(struct input *steps) {
    static const size_t WORDS[] = {0, 4, 8, 12, 64, 68};
    uint8_t how = take8(steps);
    unsigned char *ring = world.guest + (how & 1 ? RESPONSES_AT : REQUESTS_AT);
    if (how & 2) {
        unsigned char bytes[64];
        size_t offset = take16(steps) % GUEST_BYTES, length = how / 4;
        take(steps, bytes, length);
        if (length > GUEST_BYTES - offset)
            length = GUEST_BYTES - offset;
        poke(world.guest + offset, bytes, length);
        if (offset < DATA_AT && offset + length > REQUESTS_AT)
            front.honest = false;
        return;
    }
    front.honest = false;
    uint32_t value = how & 64 ? take32(steps) : front.put + (uint32_t)(int8_t)take8(steps);
    poke_word(ring + WORDS[how / 4 % 6], value);
}

static void patch_slot(struct input *steps) {
    unsigned char *slot = front.slot[take8(steps) % LIBRARY];
    size_t at = take8(steps), length = 1 + take8(steps) % 16;
    take(steps, slot + at, length);
}

/* Close or open a unit's gate, and use its store while nobody is inside. */
static void use_gate(uint8_t which) {
    size_t i = which % UNITS;
    struct unit *unit = &world.unit[i];
    if (front.gate_closed[i]) {
        unit_open(unit);
    } else {
#ifndef RACE
        if (atomic_load(&unit->own.inside))
            return; /* to wait would be for ourselves */
#endif
        unit_close(unit);
        if (i == 0)
            memset(world.memory.base, 0x5a, 64); /* TSan sees whether the gate orders this */
    }
    front.gate_closed[i] = !front.gate_closed[i];
}

/* Take what the tap was shown: whole entries of what crosses the ring. */
static void take_tapped(void) {
    static unsigned char out[TAP_MAX_ENTRY];
    uint64_t told = 0, entries = 0;
    size_t bytes = tap_take(&world.tap, out, sizeof out, &told);
    for (size_t at = 0; at < bytes; entries++) {
        struct tap_entry entry;
        CHECK(bytes - at >= sizeof entry);
        memcpy(&entry, out + at, sizeof entry);
        CHECK(entry.bytes >= sizeof entry && entry.bytes <= bytes - at);
        CHECK(entry.message + entry.descriptors <= entry.bytes - sizeof entry);
        CHECK(entry.message <= world.service.slot_bytes && entry.descriptors <= SERVICE_COPIED);
        CHECK(entry.way == WAY_TO_TARGET || entry.way == WAY_TO_INITIATOR);
        at += entry.bytes;
    }
    CHECK(entries == told);
}

static void ask_python(uint8_t code, struct input *steps) {
    pthread_mutex_lock(&python.lock);
    python.code = code;
    take(steps, python.bytes, sizeof python.bytes / 2);
    pthread_mutex_unlock(&python.lock);
    service_interrupt(&world.service);
}

/* The frontend's next step. */
static void make_step(struct input *steps) {
    uint8_t code = take8(steps) & (MEANWHILE - 1);
    switch (code % 14) {
    case 0:
        put_request(code / 14);
        break;
    case 1:
        put_request(code / 14);
        publish_requests();
        break;
    case 2:
        publish_requests();
        break;
    case 3:
        take_answers(take8(steps));
        break;
    case 4:
        scribble(steps);
        break;
    case 5:
        patch_slot(steps);
        break;
    case 6:
        service_unstall(&world.service); /* the peer's look, too */
        take_tapped();
        break;
    case 7:
        add_to(code & 64 ? world.service.outgoing : world.service.incoming,
               code & 32 ? UINT64_MAX - 1 : 1);
        break;
    case 8:
        service_interrupt(&world.service);
        break;
    case 9:
        use_gate(take8(steps));
        break;
    case 10: {
        uint8_t which = take8(steps);
        world_set_unit(which % UNITS, take8(steps));
        break;
    }
    case 11: /* a unit that became smaller, or again what it was */
        atomic_store(&world.unit[0].blocks, (uint64_t)take8(steps) % (STORE_BYTES / 512 + 1));
        break;
    default:
        ask_python(code, steps);
    }
}

/* Make it, if there is one for now. */
static bool step(bool meanwhile) {
    static bool stepping; /* what a step calls of the core has hooks, too */
    struct input *steps = &front.steps;
    if (stepping || !steps->left || (meanwhile && !(*steps->at & MEANWHILE)))
        return false;
    stepping = true;
    make_step(steps);
    stepping = false;
#ifdef RACE
    sched_yield();
#endif
    return true;
}

/* Python's part */

static void do_what_was_asked(void) {
    pthread_mutex_lock(&python.lock);
    struct input bytes = {python.bytes, sizeof python.bytes};
    uint8_t code = python.code;
    python.code = 0;
    struct regions *regions = &world.service.regions;
    if (code % 14 == 12) {
        if (code & 64 && regions->count)
            regions->region[take8(&bytes) % regions->count] = regions->region[--regions->count];
        else
            world_add_region(&bytes);
    } else if (code) {
        uint8_t how = take8(&bytes);
        python.native = !(how & 1);
        python.answers = !(how & 2);
        world.service.poll_ns = how & 4 ? POLL_NS : 0;
        atomic_store(&world.tap.active, how & 8);
    }
    pthread_mutex_unlock(&python.lock);
}

static void answer_as_python(void) {
    unsigned char message[RING_MAX_SLOT] = {0};
    if (!python.answers)
        return;
    memcpy(message + world.fuzzed->answer_tag, world.service.slot + world.fuzzed->tag,
           world.fuzzed->tag_bytes);
    int put = ring_put(&world.ring, message, world.service.slot_bytes, true);
    if (put == 1)
        put_by_python++;
    else if (!put)
        ring_break(&world.ring, "no room for Python's answer");
}

/* Checks */

static void check_counts(uint32_t start, enum service_event event) {
    const struct service *service = &world.service;
    const struct ring_end *ring = &world.ring;
    uint64_t failed = 0;
    for (const struct command *command = service->failed; command; command = command->next)
        failed++;
    uint32_t done = (uint32_t)(service->executed + handed_up + failed);
    uint32_t lost = ring->take_index - start - done; /* with the ring: no answer could be put */
    CHECK(!lost || (lost == 1 && event == SERVICE_BROKEN));
    CHECK(!service->later.outstanding);
    uint32_t answers = (uint32_t)(service->executed + put_by_python);
    CHECK(ring->put_index - start <= answers);
    CHECK(ring->fault || ring->put_index - start == answers);
    CHECK((event == SERVICE_BROKEN) <= (ring->fault != NULL));
    CHECK(event == SERVICE_BROKEN || ring->fault || ring->published == ring->put_index);
    for (size_t i = 0; i < UNITS; i++)
        CHECK(!atomic_load(&world.unit[i].own.inside));
}

/* A ring is broken only by who broke its rules. */
static void check_fault(void) {
    const struct ring_end *ring = &world.ring;
    CHECK(!is_honest());
    if (strstr(ring->fault, "producer")) {
        uint32_t most =
            is_pair() ? ring->entries : ring->entries - (ring->take_index - ring->published);
        CHECK(ring->fault_index - ring->take_index > most);
    } else if (strstr(ring->fault, "consumer")) {
        CHECK(ring->fault_index - ring->released > ring->published - ring->released);
    } else {
        CHECK(strstr(ring->fault, "room"));
        CHECK(is_pair() && ring->put_index - ring->released == ring->entries);
    }
}

/* Where a frontend that kept to the rules stands in the end: each request had its way. */
static void check_whole(uint32_t start) {
    take_answers(UINT8_MAX);
    uint64_t unanswered = 0;
    for (size_t i = 0; i < TAGS; i++)
        unanswered += front.waiting[i];
    uint32_t unpublished = front.put - front.published;
    CHECK(front.published == world.ring.take_index);
    CHECK(unanswered == handed_up - put_by_python + unpublished);
    CHECK(front.taken - start == world.service.executed + put_by_python);
}

/* Hooks: the core calls these. */

#ifdef RACE
PEER static void fill(unsigned char *to, int byte, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        ((volatile unsigned char *)to)[i] = (unsigned char)byte;
}

static bool is_guest(const void *at) {
    const unsigned char *byte = at;
    return (byte >= world.guest && byte < world.guest + GUEST_BYTES) ||
           (byte >= world.guest_readonly && byte < world.guest_readonly + GUEST_BYTES);
}

/* TSan sees what is ours of a copy, and not what is the guest's. */
void *hooked_memcpy(void *to, const void *from, size_t bytes) {
    unsigned char part[256];
    if (!is_guest(to) && !is_guest(from))
        return memcpy(to, from, bytes);
    for (size_t at = 0, length; at < bytes; at += length) {
        length = bytes - at < sizeof part ? bytes - at : sizeof part;
        if (is_guest(from))
            peek(part, (const unsigned char *)from + at, length);
        else
            memcpy(part, (const unsigned char *)from + at, length);
        if (is_guest(to))
            poke((unsigned char *)to + at, part, length);
        else
            memcpy((unsigned char *)to + at, part, length);
    }
    return to;
}

void *hooked_memset(void *to, int byte, size_t bytes) {
    if (!is_guest(to))
        return memset(to, byte, bytes);
    fill(to, byte, bytes);
    return to;
}

int hooked_clock_gettime(clockid_t clock, struct timespec *time) {
    return clock_gettime(clock, time);
}

void hooked_look(void) {}

int hooked_poll(struct pollfd *fds, nfds_t count, int timeout_ms) {
    /* Not where it waits for its own threads. */
    if (timeout_ms < 0 && fds->fd == world.service.wake && atomic_load(&over))
        service_interrupt(&world.service);
    return poll(fds, count, timeout_ms);
}
#else
static void check_gates(void) {
    for (size_t i = 0; i < UNITS; i++)
        CHECK(!atomic_load(&world.unit[i].own.inside) || !front.gate_closed[i]);
}

static void end_if_endless(void) {
    if (++calls > MOST_CALLS) {
        front.steps.left = 0;
        front.honest = false;
        service_interrupt(&world.service);
    }
}

void *hooked_memcpy(void *to, const void *from, size_t bytes) {
    memcpy(to, from, bytes);
    end_if_endless();
    check_gates();
    step(true);
    return to;
}

void *hooked_memset(void *to, int byte, size_t bytes) { return memset(to, byte, bytes); }

void hooked_look(void) { step(true); }

int hooked_clock_gettime(clockid_t clock, struct timespec *time) {
    (void)clock;
    end_if_endless();
    if (world.service.poll_ns)
        step(false);
    now_ns += POLL_NS / 4;
    *time = (struct timespec){(time_t)(now_ns / 1000000000), (long)(now_ns % 1000000000)};
    return 0;
}

int hooked_poll(struct pollfd *fds, nfds_t count, int timeout_ms) {
    end_if_endless();
    int ready = poll(fds, count, 0);
    if (!ready && timeout_ms < 0 && is_honest())
        CHECK(peek_word(producer(false)) == world.ring.take_index); /* no wake-up is lost */
    while (!ready && timeout_ms < 0) {
        if (!step(false))
            service_interrupt(&world.service);
        ready = poll(fds, count, 0);
    }
    return ready;
}
#endif

/* The kernel's copies; TSan would take them for ours. */
ssize_t hooked_pread(int fd, void *to, size_t bytes, off_t offset) {
    return syscall(SYS_pread64, fd, to, bytes, offset);
}

ssize_t hooked_pwrite(int fd, const void *from, size_t bytes, off_t offset) {
    return syscall(SYS_pwrite64, fd, from, bytes, offset);
}

ssize_t hooked_preadv(int fd, const struct iovec *segments, int count, off_t offset) {
    return syscall(SYS_preadv, fd, segments, count, offset, 0);
}

ssize_t hooked_pwritev(int fd, const struct iovec *segments, int count, off_t offset) {
    return syscall(SYS_pwritev, fd, segments, count, offset, 0);
}

static void make(struct input *input) {
    memset(&front, 0, sizeof front);
    world_make(input);
    front.put = front.published = front.taken = world.ring.take_index;
    front.honest = true;
    for (uint8_t i = take8(input) % (LIBRARY + 1); i; i--)
        take(input, front.slot[i - 1], take8(input));
    front.steps = *input;
    python.native = python.answers = true;
    python.code = 0;
    handed_up = put_by_python = 0;
#ifdef RACE
    atomic_store(&over, false);
    world.store[2].waits = true; /* so that threads execute its commands */
#else
    now_ns = calls = 0;
#endif
}

#ifdef RACE
static pthread_t thread;
static bool joined;

static void *run_front(void *unused) {
    while (step(false))
        continue;
    atomic_store(&over, true);
    service_interrupt(&world.service);
    return unused;
}
#endif

/* Whether the frontend has made its last step, and sends no interrupts any more. */
static bool is_over(void) {
#ifdef RACE
    if (atomic_load(&over) && !joined)
        joined = !pthread_join(thread, NULL);
    return joined;
#else
    return !front.steps.left;
#endif
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input input = {data, size};
    make(&input);
    struct service *service = &world.service;
    uint32_t start = world.ring.take_index;
#ifdef RACE
    joined = false;
    CHECK(!pthread_create(&thread, NULL, run_front, NULL));
#endif
    bool last = false;
    for (;;) {
        bool ends = is_over();
        enum service_event event = service_run(service, python.native);
        handed_up += event == SERVICE_MESSAGE;
        check_counts(start, event);
        if (event == SERVICE_BROKEN)
            break;
        if (event == SERVICE_MESSAGE) {
            answer_as_python();
            continue;
        }
        if (last && !service->failed)
            break;
        do_what_was_asked();
        last = ends; /* the last run goes on until nothing is left to do */
    }
#ifdef RACE
    if (!joined)
        pthread_join(thread, NULL);
#endif
    count(service->executed);
    for (uint8_t i = 0; i < UNITS; i++)
        if (front.gate_closed[i])
            use_gate(i);
    if (world.ring.fault)
        check_fault();
    else if (is_honest())
        check_whole(start);
    world_check();
    later_close(&service->later);
    return 0;
}
