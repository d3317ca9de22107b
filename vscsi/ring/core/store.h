/* SPDX-License-Identifier: MIT */
/* A run of bytes with scatter-gather reads and writes: what vscsi/target/stores are made of. */
#ifndef VSCSI_STORE_H
#define VSCSI_STORE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct sg;

enum store_kind {
    STORE_NULL,   /* reads as zeros, forgets what is written */
    STORE_MEMORY, /* memory of this process alone */
    STORE_FILE,   /* a regular file or block device, through the page cache or O_DIRECT */
    STORE_MAPPED, /* a file that is mapped whole */
    STORE_SG,     /* an sg node: reads and writes are its own CDBs, and are executed later */
};

enum { STAGING_BYTES = 1 << 20, PREFETCH_BYTES = 1 << 10 };

struct store {
    enum store_kind kind;
    int fd;                       /* STORE_FILE, STORE_MAPPED */
    unsigned char *_Atomic base;  /* STORE_MEMORY, STORE_MAPPED */
    _Atomic uint64_t size;        /* the same */
    struct store_mapping *mapped; /* STORE_MAPPED: all that were ever made; for one thread */
    uint32_t alignment;           /* STORE_FILE: of offsets, lengths and memory; a power of two */
    bool waits;                   /* a call may have to wait for a device */
    _Atomic bool reads_now, writes_now; /* RWF_NOWAIT is known here, as far as we know */
    pthread_mutex_t flushing;
    int flush_error; /* of the first flush that failed: what it lost stays lost */
    pthread_mutex_t staging;
    unsigned char *buffer; /* with an alignment: STAGING_BYTES for what does not have it */
    struct sg *sg;         /* STORE_SG: ours */
    _Atomic uint64_t staged_bytes;
};

/* A store without anything; the others are made from it. */
void store_init(struct store *store, enum store_kind kind);
/* Make it a file's, `alignment` being 1 or O_DIRECT's. 0 or an errno. */
int store_use_file(struct store *store, int fd, uint32_t alignment);
/* Make it a mapped file's, or map what a file has become. 0 or an errno. Any thread, one at a time;
 * the others go on. */
int store_map(struct store *store, int fd, uint64_t size, bool writable);
void store_free(struct store *store);

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
/* Deallocate a range, which reads as zeros then; write them where there are no holes. */
int store_discard(struct store *store, uint64_t offset, uint64_t length);

/* The same, but EAGAIN where they would have to wait (or fail): then the iovecs are as they were.
 */
int store_read_now(struct store *store, struct iovec *segments, int count, uint64_t offset,
                   size_t length);
int store_write_now(struct store *store, struct iovec *segments, int count, uint64_t offset,
                    size_t length);

/* Begin to fetch what is at an offset, which may be any, if it is memory: a few lines, from where
 * the processor goes on by itself. */
static inline void store_prefetch(const struct store *store, uint64_t offset) {
    if (store->kind != STORE_MAPPED && store->kind != STORE_MEMORY)
        return;
    uint64_t size = atomic_load_explicit(&store->size, memory_order_acquire);
    if (offset >= size || size - offset < PREFETCH_BYTES)
        return;
    const unsigned char *at = atomic_load_explicit(&store->base, memory_order_relaxed) + offset;
    for (size_t line = 0; line < PREFETCH_BYTES; line += 64)
        __builtin_prefetch(at + line);
}

/* Whether all that is moved has a store's alignment: io_uring can do it. */
bool store_is_aligned(const struct store *store, const struct iovec *segments, int count);

/* Punch a hole, and nothing else. */
int store_punch(struct store *store, uint64_t offset, uint64_t length);

#endif
