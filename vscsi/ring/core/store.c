/* SPDX-License-Identifier: MIT */
#include "store.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

typedef ssize_t transfer_call(int fd, const struct iovec *segments, int count, off_t offset);

/* Repeat a call until all is moved: it may stop early. */
static int transfer(transfer_call *call, int fd, struct iovec *segments, int count, uint64_t offset,
                    size_t length) {
    for (;;) {
        ssize_t moved = call(fd, segments, count, (off_t)offset);
        if (moved == (ssize_t)length)
            return 0;
        if (moved < 0 && errno == EINTR)
            continue;
        if (moved <= 0)
            return moved ? errno : EIO; /* the file ends inside the range */
        offset += (uint64_t)moved;
        length -= (size_t)moved;
        while ((size_t)moved >= segments->iov_len) {
            moved -= (ssize_t)segments->iov_len;
            segments++;
            count--;
        }
        segments->iov_base = (unsigned char *)segments->iov_base + moved;
        segments->iov_len -= (size_t)moved;
    }
}

int store_read(struct store *store, struct iovec *segments, int count, uint64_t offset,
               size_t length) {
    if (store->kind == STORE_FILE)
        return transfer(preadv, store->fd, segments, count, offset, length);
    if (store->kind == STORE_MEMORY && (offset > store->size || length > store->size - offset))
        return EIO;
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
    if (store->kind == STORE_FILE)
        return transfer(pwritev, store->fd, segments, count, offset, length);
    if (store->kind == STORE_MEMORY && (offset > store->size || length > store->size - offset))
        return EIO;
    for (int i = 0; store->kind == STORE_MEMORY && i < count; i++) {
        memcpy(store->base + offset, segments[i].iov_base, segments[i].iov_len);
        offset += segments[i].iov_len;
    }
    return 0;
}

int store_flush(struct store *store) {
    if (store->kind != STORE_FILE)
        return 0;
    pthread_mutex_lock(&store->flushing); /* two at once: the kernel would tell only one of them */
    if (!store->flush_error && fdatasync(store->fd))
        store->flush_error = errno;
    int error = store->flush_error;
    pthread_mutex_unlock(&store->flushing);
    return error;
}
