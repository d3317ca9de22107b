/* SPDX-License-Identifier: MIT */
/*
 * What the machine allows: the bare loops that the figures are told against.
 *
 *   limits NAME SECONDS CPU CPU FILE BLOCK BUFFERS
 *
 * prints "operations elapsed_ns cpu_ns". preadv and memcpy run on the first CPU, which is the
 * backend's; ring and eventfd have their answering thread there and the asking one on the second,
 * the frontend's. BUFFERS is the number of outstanding commands, of which each has a buffer.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    BETWEEN_CLOCKS = 64, /* operations between two looks at the clock */
    SLOT = 64,
    ENTRIES = 1024,
    TOGETHER =
        8,      /* slots that a side of the ring waits for: with fewer, lines go to and fro more */
    LINE = 128, /* two cache lines: the next one is fetched with each */
};

static struct {
    uint64_t duration_ns;
    int cpu[2];
    int fd;
    uint64_t size, block, buffers;
    unsigned char *memory; /* the buffers */
} run;

static uint64_t operations, elapsed_ns, cpu_ns;

static uint64_t clock_ns(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static cpu_set_t only(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    return set;
}

static void pin(int cpu) {
    cpu_set_t set = only(cpu);
    if (sched_setaffinity(0, sizeof set, &set))
        fail("sched_setaffinity");
}

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

/* A random block's offset in the file: xorshift64, and a multiplication in place of a division. */
static uint64_t random_offset(void) {
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return ((state >> 32) * (run.size / run.block) >> 32) * run.block;
}

static unsigned char *buffer_for(uint64_t number) {
    return run.memory + number % run.buffers * run.block;
}

static void read_block(uint64_t number, uint64_t offset) {
    struct iovec into = {buffer_for(number), run.block};
    if (preadv(run.fd, &into, 1, (off_t)offset) != (ssize_t)run.block)
        fail("preadv");
}

/* Repeat one operation by one thread. */
static void repeat(void (*operation)(uint64_t number)) {
    pin(run.cpu[0]);
    uint64_t cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID), began = clock_ns(CLOCK_MONOTONIC);
    do {
        for (int i = 0; i < BETWEEN_CLOCKS; i++)
            operation(operations++);
        elapsed_ns = clock_ns(CLOCK_MONOTONIC) - began;
    } while (elapsed_ns < run.duration_ns);
    cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
}

static void preadv_random(uint64_t number) { read_block(number, random_offset()); }

static void preadv_sequential(uint64_t number) {
    read_block(number, number % (run.size / run.block) * run.block);
}

static unsigned char *mapped;

static void memcpy_random(uint64_t number) {
    memcpy(buffer_for(number), mapped + random_offset(), run.block);
    __asm__ volatile("" ::: "memory"); /* somebody is to read the buffer */
}

static void read_clock(uint64_t number) {
    (void)number;
    clock_ns(CLOCK_MONOTONIC);
}

static void map_file(void) {
    mapped = mmap(NULL, run.size, PROT_READ, MAP_SHARED | MAP_POPULATE, run.fd, 0);
    if (mapped == MAP_FAILED)
        fail("mmap");
}

/* The rings: the producer's index on a line of its own, then the slots. */
static struct lane {
    _Alignas(LINE) _Atomic uint32_t produced;
    _Alignas(LINE) unsigned char slot[ENTRIES][SLOT];
} requests, responses;

static _Atomic bool stop;

/* Slots that the other side has produced beyond an index, if there are enough of them. */
static uint32_t waiting(struct lane *lane, uint32_t index) {
    uint32_t enough = run.buffers < 2 * TOGETHER ? 1 : TOGETHER;
    uint32_t count = atomic_load_explicit(&lane->produced, memory_order_acquire) - index;
    if (count >= enough)
        return count;
    relax();
    return 0;
}

static void *answer_ring(void *unused) {
    unsigned char message[SLOT];
    uint32_t index = 0;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        uint32_t end = index + waiting(&requests, index);
        if (end == index)
            continue;
        for (; index != end; index++) {
            memcpy(message, requests.slot[index % ENTRIES], SLOT);
            memcpy(responses.slot[index % ENTRIES], message, SLOT);
        }
        atomic_store_explicit(&responses.produced, index, memory_order_release);
    }
    return unused;
}

static void ask_ring(void) {
    unsigned char message[SLOT] = {0};
    uint32_t sent = 0, taken = 0, depth = (uint32_t)run.buffers, looks = 0;
    uint64_t began = 0; /* not before the other thread is there */
    for (;;) {
        for (; sent - taken < depth; sent++)
            memcpy(requests.slot[sent % ENTRIES], message, SLOT);
        atomic_store_explicit(&requests.produced, sent, memory_order_release);
        uint32_t end = taken + waiting(&responses, taken);
        for (; taken != end; taken++, operations++)
            memcpy(message, responses.slot[taken % ENTRIES], SLOT);
        if (!began && operations) {
            began = clock_ns(CLOCK_MONOTONIC);
        } else if (began && ++looks % BETWEEN_CLOCKS == 0) {
            elapsed_ns = clock_ns(CLOCK_MONOTONIC) - began;
            if (elapsed_ns >= run.duration_ns)
                return;
        }
    }
}

static int events[2]; /* to the answering thread, and back */

static void wait_event(int fd) {
    uint64_t count;
    if (read(fd, &count, sizeof count) != sizeof count)
        fail("read");
}

static void signal_event(int fd) {
    uint64_t one = 1;
    if (write(fd, &one, sizeof one) != sizeof one)
        fail("write");
}

static void *answer_events(void *unused) {
    for (uint64_t number = 0;; number++) {
        wait_event(events[0]);
        if (atomic_load(&stop))
            return unused;
        preadv_random(number);
        signal_event(events[1]);
    }
}

static void ask_events(void) {
    signal_event(events[0]);
    wait_event(events[1]); /* the other thread is there */
    uint64_t began = clock_ns(CLOCK_MONOTONIC);
    while (elapsed_ns < run.duration_ns) {
        signal_event(events[0]);
        wait_event(events[1]);
        operations++;
        elapsed_ns = clock_ns(CLOCK_MONOTONIC) - began;
    }
}

/* Have one thread ask and the other answer. */
static void exchange(void (*ask)(void), void *(*answer)(void *)) {
    pthread_t thread;
    pthread_attr_t there;
    cpu_set_t set = only(run.cpu[0]);
    pthread_attr_init(&there); /* from its start: ours may be one that lets nobody else run */
    if (pthread_attr_setaffinity_np(&there, sizeof set, &set))
        fail("pthread_attr_setaffinity_np");
    events[0] = eventfd(0, EFD_CLOEXEC);
    events[1] = eventfd(0, EFD_CLOEXEC);
    pin(run.cpu[1]);
    if (events[0] < 0 || events[1] < 0 || pthread_create(&thread, &there, answer, NULL))
        fail("exchange");
    ask();
    atomic_store(&stop, true);
    signal_event(events[0]);
    pthread_join(thread, NULL);
}

int main(int count, char **arguments) {
    if (count != 8) {
        fputs("limits NAME SECONDS CPU CPU FILE BLOCK BUFFERS\n", stderr);
        return 2;
    }
    const char *name = arguments[1];
    run.duration_ns = (uint64_t)(atof(arguments[2]) * 1e9);
    run.cpu[0] = atoi(arguments[3]);
    run.cpu[1] = atoi(arguments[4]);
    run.fd = open(arguments[5], O_RDONLY | O_CLOEXEC);
    run.block = strtoull(arguments[6], NULL, 10);
    run.buffers = strtoull(arguments[7], NULL, 10);
    off_t size = run.fd < 0 ? -1 : lseek(run.fd, 0, SEEK_END);
    if (size < (off_t)run.block)
        fail(arguments[5]);
    run.size = (uint64_t)size;
    if (!run.block || !run.buffers || run.buffers > ENTRIES ||
        posix_memalign((void **)&run.memory, 4096, run.block * run.buffers))
        fail("buffers");
    memset(run.memory, 1, run.block * run.buffers);
    if (!strcmp(name, "preadv"))
        repeat(preadv_random);
    else if (!strcmp(name, "preadv-sequential"))
        repeat(preadv_sequential);
    else if (!strcmp(name, "memcpy"))
        map_file(), repeat(memcpy_random);
    else if (!strcmp(name, "clock"))
        repeat(read_clock);
    else if (!strcmp(name, "ring"))
        exchange(ask_ring, answer_ring);
    else if (!strcmp(name, "eventfd"))
        exchange(ask_events, answer_events);
    else
        fail(name);
    printf("%llu %llu %llu\n", (unsigned long long)operations, (unsigned long long)elapsed_ns,
           (unsigned long long)cpu_ns);
    return 0;
}
