/* SPDX-License-Identifier: MIT */
/* Time, and the eventfds of an event channel. */
#ifndef VSCSI_WAIT_H
#define VSCSI_WAIT_H

#include <stdint.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static inline uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

/* Add one to an eventfd, or empty it; neither cares whether the peer made it blocking. */
static inline void signal_event(int fd) {
    uint64_t one = 1;
    ssize_t written = write(fd, &one, sizeof one);
    (void)written; /* EAGAIN: an event is pending anyway */
}

static inline void clear_event(int fd) {
    uint64_t count;
    struct iovec into = {&count, sizeof count};
    ssize_t moved = preadv2(fd, &into, 1, -1, RWF_NOWAIT);
    (void)moved; /* EAGAIN: nothing is pending */
}

#endif
