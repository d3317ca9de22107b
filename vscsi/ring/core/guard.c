/* SPDX-License-Identifier: MIT */
#include "guard.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

struct guard {
    sigjmp_buf back;
    int code;
};

/* Static TLS: the handler may run in a thread that has never copied, and may not allocate. */
static _Thread_local struct guard *volatile active __attribute__((tls_model("initial-exec")));

static struct sigaction before;

static void on_bus_error(int signal, siginfo_t *info, void *context) {
    struct guard *guard = active;
    if (guard && info->si_code > 0) { /* 0 and below: somebody sent it */
        guard->code = info->si_code;
        siglongjmp(guard->back, 1); /* SA_NODEFER: there is no mask to restore */
    }
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(signal, info, context);
    } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(signal);
    } else if (before.sa_handler == SIG_DFL || info->si_code > 0) {
        sigaction(SIGBUS, &before, NULL); /* what has faulted faults again, and ends the process */
        if (info->si_code <= 0)
            raise(signal);
    }
}

static void install(void) {
    struct sigaction ours = {.sa_sigaction = on_bus_error,
                             .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    sigemptyset(&ours.sa_mask);
    sigaction(SIGBUS, &ours, &before);
}

void guard_install(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install);
}

__attribute__((noinline)) static void copy(unsigned char *base, const struct iovec *segments,
                                           int count, bool to_base) {
    for (int i = 0; i < count; i++) {
        if (to_base)
            memcpy(base, segments[i].iov_base, segments[i].iov_len);
        else
            memcpy(segments[i].iov_base, base, segments[i].iov_len);
        base += segments[i].iov_len;
    }
}

int guard_copy(unsigned char *base, const struct iovec *segments, int count, bool to_base) {
    struct guard guard = {.code = 0};
    if (!sigsetjmp(guard.back, 0)) {
        active = &guard;
        atomic_signal_fence(memory_order_seq_cst);
        copy(base, segments, count, to_base);
        atomic_signal_fence(memory_order_seq_cst);
    }
    active = NULL;
    return guard.code;
}
