/* SPDX-License-Identifier: MIT */
/* A run of bytes with scatter-gather reads and writes: the C core's end of vscsi/target/stores. */
#ifndef VSCSI_STORE_H
#define VSCSI_STORE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum store_kind {
    STORE_NULL,   /* reads as zeros, forgets what is written */
    STORE_MEMORY, /* memory of this process, mapped from a file or not */
    STORE_FILE,   /* a regular file or block device, through the page cache */
};

struct store {
    enum store_kind kind;
    int fd;              /* STORE_FILE */
    unsigned char *base; /* STORE_MEMORY */
    uint64_t size;       /* STORE_MEMORY */
    pthread_mutex_t flushing;
    int flush_error; /* of the first flush that failed: what it lost stays lost */
};

/*
 * Each returns 0, or an errno and promises nothing about the range. Any thread. The caller keeps
 * within the size and sees to it that `length` is what the segments add up to. The iovecs are the
 * caller's and are changed.
 */
int store_read(struct store *store, struct iovec *segments, int count, uint64_t offset,
               size_t length);
int store_write(struct store *store, struct iovec *segments, int count, uint64_t offset,
                size_t length);
/* Returns when every write that has returned is on stable storage. */
int store_flush(struct store *store);

#endif
