/* SPDX-License-Identifier: MIT */
/*
 * A protocol's read of one slot. What it accepts may be executed, and then is; after a refusal
 * nothing is held. While it reads, the guest's memory can't be touched but by copies, and what was
 * copied changes at once, as if the guest had been waiting for it: who looks twice is found out.
 *
 * Input: world.h's, then what changes memory (u8, 0: nothing does), then the slot.
 */
#include "world.h"

#define HOOKS_FOR_TARGET
#include "hooks.h"

static bool reading;
static uint8_t change;

/* The grant table is read word by word, as atomics. */
static unsigned char *const *const MAPPINGS[] = {&world.guest, &world.guest_readonly};

static void close_guest(bool closed) {
    for (size_t i = 0; i < 2; i++) {
        unsigned char *data = *MAPPINGS[i] + PAGES_SIZE;
        if (closed)
            __asan_poison_memory_region(data, GUEST_BYTES - PAGES_SIZE);
        else
            __asan_unpoison_memory_region(data, GUEST_BYTES - PAGES_SIZE);
    }
    reading = closed;
}

void *hooked_memcpy(void *to, const void *from, size_t bytes) {
#ifdef BARE /* what finds out others must find out this */
    return memcpy(to, from, bytes);
#endif
    if (!reading)
        return memcpy(to, from, bytes);
    close_guest(false);
    memcpy(to, from, bytes);
    for (size_t i = 0; i < 2; i++) {
        size_t at = (size_t)((const unsigned char *)from - *MAPPINGS[i]);
        for (size_t byte = at; at < GUEST_BYTES && byte < at + bytes; byte++)
            world.guest[byte] ^= change;
    }
    close_guest(true);
    return to;
}

void *hooked_memset(void *to, int byte, size_t bytes) { return memset(to, byte, bytes); }

ssize_t hooked_pread(int fd, void *to, size_t bytes, off_t offset) {
    return pread(fd, to, bytes, offset);
}

ssize_t hooked_pwrite(int fd, const void *from, size_t bytes, off_t offset) {
    return pwrite(fd, from, bytes, offset);
}

ssize_t hooked_preadv(int fd, const struct iovec *segments, int count, off_t offset) {
    return preadv(fd, segments, count, offset);
}

ssize_t hooked_pwritev(int fd, const struct iovec *segments, int count, off_t offset) {
    return pwritev(fd, segments, count, offset);
}

void hooked_look(void) {}

int hooked_poll(struct pollfd *fds, nfds_t count, int timeout_ms) {
    return poll(fds, count, timeout_ms);
}

int hooked_clock_gettime(clockid_t clock, struct timespec *time) {
    return clock_gettime(clock, time);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct area slot, message;
    struct input input = {data, size};
    world_make(&input);
    change = take8(&input);
    struct service *service = &world.service;
    struct command *command = world.command;
    area_reset(&slot, world.fuzzed->most_slot, service->slot_bytes, 0);
    take(&input, slot.base, service->slot_bytes);
    unsigned char copy[RING_MAX_SLOT];
    memcpy(copy, slot.base, service->slot_bytes);

    service->protocol->hint(service, slot.base);
    close_guest(true);
    bool accepted = service->protocol->read(service, slot.base, command);
    close_guest(false);
    count(accepted);
    CHECK(!memcmp(copy, slot.base, service->slot_bytes));
    area_check(&slot);
    if (accepted) {
        world_check_command(command);
        world.file_used = true;
        (void)command_execute(command); /* errors are the file's, which ends too soon */
        if (service->protocol->release)
            service->protocol->release(service, command);
        area_reset(&message, ANSWER_BYTES, ANSWER_BYTES, 0);
        size_t bytes = service->protocol->answer(service, command, message.base);
        CHECK(bytes <= ANSWER_BYTES && bytes <= service->slot_bytes);
        CHECK(!memcmp(message.base + world.fuzzed->answer_tag, copy + world.fuzzed->tag,
                      world.fuzzed->tag_bytes));
        area_check(&message);
    }
    world_check();
    later_close(&service->later);
    return 0;
}
