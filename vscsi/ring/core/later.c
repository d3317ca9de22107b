/* SPDX-License-Identifier: MIT */
#include "later.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { STACK_BYTES = 256 << 10, RETRY_MS = 1 };

static void queue_init(struct later_queue *queue) {
    queue->first = NULL;
    queue->end = &queue->first;
}

static void queue_put(struct later_queue *queue, struct command *command) {
    command->next = NULL;
    *queue->end = command;
    queue->end = &command->next;
}

static struct command *queue_take(struct later_queue *queue) {
    struct command *command = queue->first;
    if (command && !(queue->first = command->next))
        queue->end = &queue->first;
    return command;
}

void later_init(struct later *later) {
    later->event = -1;
    pthread_mutex_init(&later->lock, NULL);
    pthread_cond_init(&later->wanted, NULL);
    queue_init(&later->todo);
    queue_init(&later->done);
}

void later_close(struct later *later) {
    pthread_mutex_lock(&later->lock);
    later->stopping = true;
    pthread_cond_broadcast(&later->wanted);
    pthread_mutex_unlock(&later->lock);
    for (unsigned i = 0; i < later->threads; i++)
        pthread_join(later->worker[i].thread, NULL);
#ifdef HAVE_LIBURING
    if (later->uring_state == URING_THERE)
        io_uring_queue_exit(&later->uring);
#endif
    if (later->event >= 0)
        close(later->event);
    pthread_cond_destroy(&later->wanted);
    pthread_mutex_destroy(&later->lock);
}

/* Threads */

_Static_assert((int)SG_TOLD >= (int)LATER_MAX, "");

static int execute(struct worker *worker, struct command *command) {
    if (command->unit->store->kind == STORE_SG)
        return sg_execute(command, &worker->lane);
    return command_execute(command);
}

static void *work(void *argument) {
    struct worker *worker = argument;
    struct later *later = worker->later;
    pthread_mutex_lock(&later->lock);
    for (;;) {
        struct command *command = queue_take(&later->todo);
        if (!command) {
            if (later->stopping)
                break;
            later->idle++;
            pthread_cond_wait(&later->wanted, &later->lock);
            later->idle--;
            continue;
        }
        later->queued--;
        pthread_mutex_unlock(&later->lock);
        command->error = execute(worker, command);
        pthread_mutex_lock(&later->lock);
        queue_put(&later->done, command);
        /* Who takes one takes all: those that come while there are some need no event. */
        if (!atomic_fetch_add_explicit(&later->done_count, 1, memory_order_release)) {
            uint64_t one = 1;
            ssize_t written = write(later->event, &one, sizeof one);
            (void)written;
        }
    }
    pthread_mutex_unlock(&later->lock);
    sg_lane_free(&worker->lane);
    return NULL;
}

/* Start another thread; without signals, which are for Python's. */
static void add_thread(struct later *later) {
    sigset_t all, before;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigfillset(&all);
    sigdelset(&all, SIGBUS); /* a copy's from a mapped file */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    struct worker *worker = &later->worker[later->threads];
    worker->later = later;
    worker->lane.number = later->threads;
    if (!pthread_create(&worker->thread, &attributes, work, worker))
        later->threads++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

static bool give_to_thread(struct later *later, struct command *command) {
    pthread_mutex_lock(&later->lock);
    queue_put(&later->todo, command);
    /* A thread that was woken is idle until it runs: it is for what was queued before. */
    if (++later->queued > later->idle && later->threads < LATER_THREADS)
        add_thread(later);
    pthread_cond_signal(&later->wanted);
    bool good = later->threads;
    if (!good) {
        queue_init(&later->todo); /* it alone is there */
        later->queued = 0;
    }
    pthread_mutex_unlock(&later->lock);
    return good;
}

/* io_uring */

#ifdef HAVE_LIBURING
static bool uring_is_there(struct later *later) {
    if (later->uring_state == URING_UNTRIED) {
        later->uring_state = URING_REFUSED; /* many containers do */
        if (!io_uring_queue_init(LATER_MAX, &later->uring, 0)) {
            if (!io_uring_register_eventfd(&later->uring, later->event))
                later->uring_state = URING_THERE;
            else
                io_uring_queue_exit(&later->uring);
        }
    }
    return later->uring_state == URING_THERE;
}

static bool give_to_uring(struct later *later, struct command *command) {
    struct store *store = command->unit->store;
    if (store->kind != STORE_FILE ||
        (command->operation != OP_READ && command->operation != OP_WRITE) || command->barrier ||
        !store_is_aligned(store, command->segment, command->segments) || !uring_is_there(later))
        return false;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&later->uring);
    if (!sqe)
        return false;
    if (command->operation == OP_READ)
        io_uring_prep_readv(sqe, store->fd, command->segment, (unsigned)command->segments,
                            command->offset);
    else
        io_uring_prep_writev(sqe, store->fd, command->segment, (unsigned)command->segments,
                             command->offset);
    io_uring_sqe_set_data(sqe, command);
    later->prepared++;
    return true;
}

/* What io_uring is done with and that has ended; the rest a thread goes on with. */
static struct command *take_from_uring(struct later *later) {
    struct io_uring_cqe *cqe;
    while (later->uring_state == URING_THERE && !io_uring_peek_cqe(&later->uring, &cqe)) {
        struct command *command = io_uring_cqe_get_data(cqe);
        /* Less, or an error: who tries again finds out, and does what is left to do. */
        command->moved = cqe->res == (int)command->length;
        io_uring_cqe_seen(&later->uring, cqe);
        command->error = 0;
        if (command->moved && !command->durable)
            return command;
        if (!give_to_thread(later, command)) {
            command->error = command_execute(command);
            return command;
        }
    }
    return NULL;
}
#endif

bool later_start(struct later *later, struct command *command) {
    if (later->event < 0)
        later->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (later->event < 0)
        return false;
#ifdef HAVE_LIBURING
    if (give_to_uring(later, command)) {
        later->outstanding++;
        return true;
    }
#endif
    if (!give_to_thread(later, command))
        return false;
    later->outstanding++;
    return true;
}

bool later_submit(struct later *later) {
#ifdef HAVE_LIBURING
    if (later->prepared) {
        int submitted = io_uring_submit(&later->uring); /* EAGAIN, EBUSY: no memory, for now */
        if (submitted > 0)
            later->prepared -= (unsigned)submitted;
    }
    return !later->prepared;
#else
    (void)later;
    return true;
#endif
}

struct command *later_take(struct later *later) {
    struct command *command = NULL;
#ifdef HAVE_LIBURING
    command = take_from_uring(later);
#endif
    if (!command && atomic_load_explicit(&later->done_count, memory_order_acquire)) {
        pthread_mutex_lock(&later->lock);
        command = queue_take(&later->done);
        atomic_fetch_sub_explicit(&later->done_count, 1, memory_order_relaxed);
        pthread_mutex_unlock(&later->lock);
    }
    if (command) {
        command->moved = false;
        later->outstanding--;
    }
    return command;
}

void later_wait(struct later *later) {
    while (!later_ready(later)) {
        struct pollfd event = {later->event, POLLIN, 0};
        poll(&event, 1, later_submit(later) ? -1 : RETRY_MS);
        later_clear(later);
    }
}

void later_clear(struct later *later) {
    uint64_t count;
    ssize_t got = read(later->event, &count, sizeof count);
    (void)got; /* EAGAIN: nothing has ended since */
}
