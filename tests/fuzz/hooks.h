/* SPDX-License-Identifier: MIT */
/*
 * Put before each source file of the C core where a target wants to act in the midst of it: each
 * copy, each sleep, each look at an index or at the clock becomes a call of the target's. The
 * target itself is not meant: HOOKS_FOR_TARGET.
 */
#ifndef HOOKS_H
#define HOOKS_H

#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

void *hooked_memcpy(void *to, const void *from, size_t bytes);
void *hooked_memset(void *to, int byte, size_t bytes);
ssize_t hooked_pread(int fd, void *to, size_t bytes, off_t offset);
ssize_t hooked_pwrite(int fd, const void *from, size_t bytes, off_t offset);
ssize_t hooked_preadv(int fd, const struct iovec *segments, int count, off_t offset);
ssize_t hooked_pwritev(int fd, const struct iovec *segments, int count, off_t offset);
int hooked_poll(struct pollfd *fds, nfds_t count, int timeout_ms);
int hooked_clock_gettime(clockid_t clock, struct timespec *time);
void hooked_look(void); /* after a look at an index, or at what another thread sets */

#ifndef HOOKS_FOR_TARGET
#undef atomic_load_explicit
#define atomic_load_explicit(object, order)                                                        \
    ({                                                                                             \
        __auto_type looked = __c11_atomic_load(object, order);                                     \
        hooked_look();                                                                             \
        looked;                                                                                    \
    })
#define memcpy hooked_memcpy
#define memset hooked_memset
#define pread hooked_pread
#define pwrite hooked_pwrite
#define preadv hooked_preadv
#define pwritev hooked_pwritev
#define poll hooked_poll
#define clock_gettime hooked_clock_gettime

#endif

#endif
