/* SPDX-License-Identifier: MIT */
#include "store.h"

#include "guard.h"
#include "sg.h"
#include "transfer.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

/* A mapping stays until the store goes: somebody may be copying through it. */
struct store_mapping {
    struct store_mapping *next;
    void *base;
    size_t size;
};

void store_init(struct store *store, enum store_kind kind) {
    store->kind = kind;
    store->fd = -1;
    store->alignment = 1;
    pthread_mutex_init(&store->flushing, NULL);
    pthread_mutex_init(&store->staging, NULL);
}

void store_free(struct store *store) {
    while (store->mapped) {
        struct store_mapping *mapping = store->mapped;
        store->mapped = mapping->next;
        munmap(mapping->base, mapping->size);
        free(mapping);
    }
    free(store->buffer);
    store->buffer = NULL;
    sg_free(store->sg);
    store->sg = NULL;
    pthread_mutex_destroy(&store->flushing);
    pthread_mutex_destroy(&store->staging);
}

/* Whether a file has a device below it, and is not just memory. */
static bool may_wait(int fd) {
    struct stat status;
    struct statfs system;
    if (fstat(fd, &status) || !S_ISREG(status.st_mode) || fstatfs(fd, &system))
        return true;
    return system.f_type != TMPFS_MAGIC && system.f_type != RAMFS_MAGIC &&
           system.f_type != HUGETLBFS_MAGIC;
}

int store_use_file(struct store *store, int fd, uint32_t alignment) {
    store->fd = fd;
    store->alignment = alignment;
    store->waits = may_wait(fd);
    atomic_init(&store->reads_now, alignment == 1);
    atomic_init(&store->writes_now, alignment == 1);
    if (alignment > 1 && posix_memalign((void **)&store->buffer, alignment, STAGING_BYTES))
        return ENOMEM;
    return 0;
}

int store_map(struct store *store, int fd, uint64_t size, bool writable) {
    if (size > atomic_load(&store->size)) {
        struct store_mapping *mapping = malloc(sizeof *mapping);
        if (!mapping)
            return ENOMEM;
        void *base = mmap(NULL, size, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, 0);
        if (base == MAP_FAILED) {
            free(mapping);
            return errno;
        }
        guard_install();
        *mapping = (struct store_mapping){store->mapped, base, size};
        store->mapped = mapping;
        atomic_store(&store->base, base); /* before the size: who sees that sees this */
    }
    store->fd = fd;
    store->waits = may_wait(fd);
    atomic_store(&store->size, size);
    return 0;
}

bool store_is_aligned(const struct store *store, const struct iovec *segments, int count) {
    uintptr_t bits = 0;
    for (int i = 0; store->alignment > 1 && i < count; i++)
        bits |= (uintptr_t)segments[i].iov_base | segments[i].iov_len;
    return !(bits & (store->alignment - 1));
}

static int move_file(struct store *store, bool writing, struct iovec *segments, int count,
                     uint64_t offset, size_t length) {
    if (store_is_aligned(store, segments, count))
        return transfer(store->fd, writing, segments, count, offset, length);
    return transfer_staged(store, writing, segments, count, offset);
}

/* Copy between a mapped file and segments. */
static int copy_mapped(struct store *store, const struct iovec *segments, int count,
                       uint64_t offset, size_t length, bool writing) {
    uint64_t size = atomic_load_explicit(&store->size, memory_order_acquire);
    if (offset > size || length > size - offset)
        return EIO;
    unsigned char *base = atomic_load_explicit(&store->base, memory_order_relaxed) + offset;
    int code = guard_copy(base, segments, count, writing);
    if (!code)
        return 0;
    struct stat status;
    bool there = !fstat(store->fd, &status) && (uint64_t)status.st_size >= offset + length;
    return writing && there && code == BUS_ADRERR ? ENOSPC : EIO; /* a hole that can't be filled */
}

int store_read(struct store *store, struct iovec *segments, int count, uint64_t offset,
               size_t length) {
    switch (store->kind) {
    case STORE_SG:
        return EIO; /* not without its CDB */
    case STORE_FILE:
        return move_file(store, false, segments, count, offset, length);
    case STORE_MAPPED:
        return copy_mapped(store, segments, count, offset, length, false);
    case STORE_MEMORY:
        if (offset > store->size || length > store->size - offset)
            return EIO;
        break;
    case STORE_NULL:
        break;
    }
    for (int i = 0; i < count; i++) {
        if (store->kind == STORE_NULL)
            memset(segments[i].iov_base, 0, segments[i].iov_len);
        else
            memcpy(segments[i].iov_base, store->base + offset, segments[i].iov_len);
        offset += segments[i].iov_len;
    }
    return 0;
}

int store_write(struct store *store, struct iovec *segments, int count, uint64_t offset,
                size_t length) {
    switch (store->kind) {
    case STORE_SG:
        return EIO; /* not without its CDB */
    case STORE_FILE:
        return move_file(store, true, segments, count, offset, length);
    case STORE_MAPPED:
        return copy_mapped(store, segments, count, offset, length, true);
    case STORE_MEMORY:
        if (offset > store->size || length > store->size - offset)
            return EIO;
        break;
    case STORE_NULL:
        return 0;
    }
    for (int i = 0; i < count; i++) {
        memcpy(store->base + offset, segments[i].iov_base, segments[i].iov_len);
        offset += segments[i].iov_len;
    }
    return 0;
}

/* What a call that may not wait has moved: all, or it is as if it had not been made. */
static int moved_now(ssize_t moved, size_t length, _Atomic bool *known) {
    if (moved == (ssize_t)length)
        return 0;
    if (moved < 0 && errno == EOPNOTSUPP)
        atomic_store_explicit(known, false, memory_order_relaxed);
    return EAGAIN;
}

int store_read_now(struct store *store, struct iovec *segments, int count, uint64_t offset,
                   size_t length) {
    if (store->kind != STORE_FILE || !store->waits)
        return store_read(store, segments, count, offset, length);
    if (!atomic_load_explicit(&store->reads_now, memory_order_relaxed))
        return EAGAIN;
    return moved_now(preadv2(store->fd, segments, count, (off_t)offset, RWF_NOWAIT), length,
                     &store->reads_now);
}

int store_write_now(struct store *store, struct iovec *segments, int count, uint64_t offset,
                    size_t length) {
    if (store->kind != STORE_FILE || !store->waits)
        return store_write(store, segments, count, offset, length);
    if (store->alignment > 1)
        return EAGAIN;
    /* A file system that cannot tell (ext4): the page cache takes it, nearly always at once. */
    if (!atomic_load_explicit(&store->writes_now, memory_order_relaxed))
        return store_write(store, segments, count, offset, length);
    return moved_now(pwritev2(store->fd, segments, count, (off_t)offset, RWF_NOWAIT), length,
                     &store->writes_now);
}

/* Whether a file still is what is mapped of it: what is written behind its end is lost silently. */
static int still_whole(const struct store *store) {
    struct stat status;
    if (fstat(store->fd, &status))
        return errno;
    return S_ISREG(status.st_mode) && (uint64_t)status.st_size < store->size ? EIO : 0;
}

int store_flush(struct store *store) {
    if (store->kind == STORE_NULL || store->kind == STORE_MEMORY)
        return 0;
    int error = store->kind == STORE_MAPPED ? still_whole(store) : 0;
    if (error)
        return error;
    pthread_mutex_lock(&store->flushing); /* two at once: the kernel would tell only one of them */
    /* What was written through a mapping is dirty like the rest: no msync that could find more. */
    if (!store->flush_error && fdatasync(store->fd))
        store->flush_error = errno;
    error = store->flush_error;
    pthread_mutex_unlock(&store->flushing);
    return error;
}

int store_punch(struct store *store, uint64_t offset, uint64_t length) {
    int result;
    do
        result = fallocate(store->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                           (off_t)length);
    while (result && errno == EINTR);
    return result ? errno : 0;
}

/* Write zeros, a MiB at a time. */
static int write_zeros(struct store *store, uint64_t offset, uint64_t length) {
    enum { PIECES = 16 };
    static _Alignas(4096) unsigned char zeros[1 << 16];
    int error = 0;
    while (length && !error) {
        struct iovec segments[PIECES];
        int count = 0;
        uint64_t now = 0;
        for (; count < PIECES && now < length; count++) {
            size_t piece = length - now < sizeof zeros ? (size_t)(length - now) : sizeof zeros;
            segments[count] = (struct iovec){zeros, piece};
            now += piece;
        }
        error = store_write(store, segments, count, offset, now);
        offset += now;
        length -= now;
    }
    return error;
}

int store_discard(struct store *store, uint64_t offset, uint64_t length) {
    if (!length || store->kind == STORE_NULL)
        return 0;
    if (store->kind == STORE_MEMORY)
        return write_zeros(store, offset, length);
    int error = store_punch(store, offset, length);
    return error == EOPNOTSUPP || error == ENOSYS ? write_zeros(store, offset, length) : error;
}
