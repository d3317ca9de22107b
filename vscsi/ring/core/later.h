/* SPDX-License-Identifier: MIT */
/*
 * Commands that would have to wait for a device, executed while the ring's thread goes on: reads
 * and writes by io_uring where there is one, all else (and all, without one) by a few threads.
 * One thread starts and takes.
 */
#ifndef VSCSI_LATER_H
#define VSCSI_LATER_H

#include "command.h"

#include <pthread.h>

#ifdef HAVE_LIBURING
#include <liburing.h>
#endif

enum {
    LATER_MAX = 128, /* commands under way */
    LATER_THREADS = SG_LANES,
};

struct later;

/* A thread, and what it has for itself. */
struct worker {
    struct later *later;
    pthread_t thread;
    struct sg_lane lane;
};

/* Commands in a row, by `next`. */
struct later_queue {
    struct command *first, **end;
};

struct later {
    int event; /* eventfd: readable once one has ended; -1 while none was ever started */
    unsigned outstanding;
    /* The threads', under the lock. */
    pthread_mutex_t lock;
    pthread_cond_t wanted;
    struct later_queue todo, done;
    unsigned queued; /* in `todo` */
    unsigned threads, idle;
    bool stopping;
    struct worker worker[LATER_THREADS];
    _Atomic unsigned done_count;
#ifdef HAVE_LIBURING
    struct io_uring uring;
    enum { URING_UNTRIED, URING_THERE, URING_REFUSED } uring_state;
    unsigned prepared; /* and not submitted */
#endif
};

void later_init(struct later *later);
/* Nothing may be outstanding. */
void later_close(struct later *later);

/* Begin to execute a command, which is ours until `later_take`; false if that can't be. */
bool later_start(struct later *later, struct command *command);

/* Pass on what was started, before one waits for anything; false if it must be tried again. */
bool later_submit(struct later *later);

/* A command that has ended, its `error` set and `moved` not; NULL if there is none yet. */
struct command *later_take(struct later *later);

/* Whether `later_take` may find one. */
static inline bool later_ready(struct later *later) {
#ifdef HAVE_LIBURING
    if (later->uring_state == URING_THERE && io_uring_cq_ready(&later->uring))
        return true;
#endif
    return atomic_load_explicit(&later->done_count, memory_order_acquire) != 0;
}

/* Wait until there may be one. */
void later_wait(struct later *later);

/* Empty `event`, before one looks whether there is one. */
void later_clear(struct later *later);

#endif
