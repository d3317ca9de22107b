/* SPDX-License-Identifier: MIT */
#include "transfer.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * With one segment it is the simpler call, whose list the kernel need not copy and check; past the
 * C library, for which it is a cancellation point: that alone costs two locked operations.
 */
static ssize_t move(int fd, bool writing, const struct iovec *segments, int count, off_t offset) {
#ifdef __LP64__
    if (count == 1)
        return syscall(writing ? SYS_pwrite64 : SYS_pread64, fd, segments->iov_base,
                       segments->iov_len, offset);
#endif
    return (writing ? pwritev : preadv)(fd, segments, count, offset);
}

static void skip(struct iovec *segment, ssize_t bytes) {
    segment->iov_base = (unsigned char *)segment->iov_base + bytes;
    segment->iov_len -= (size_t)bytes;
}

int transfer(int fd, bool writing, struct iovec *segments, int count, uint64_t offset,
             size_t length) {
    size_t into = 0; /* what is moved of the first segment */
    while (length) {
        int few = count < IOV_MAX ? count : IOV_MAX;
        skip(segments, (ssize_t)into);
        ssize_t moved = move(fd, writing, segments, few, (off_t)offset);
        skip(segments, -(ssize_t)into);
        if (moved == (ssize_t)length)
            return 0;
        if (moved < 0 && errno == EINTR)
            continue;
        if (moved <= 0)
            return moved ? errno : EIO;
        offset += (uint64_t)moved;
        length -= (size_t)moved;
        into += (size_t)moved;
        while (count && into >= segments->iov_len) {
            into -= segments->iov_len;
            segments++;
            count--;
        }
    }
    return 0;
}

/* A place in a list. */
struct cursor {
    const struct iovec *segment, *end;
    size_t at;
};

static unsigned char *here(const struct cursor *cursor) {
    return (unsigned char *)cursor->segment->iov_base + cursor->at;
}

/* Go past `count` bytes of a segment, and past what is empty. */
static void go_on(struct cursor *cursor, size_t count) {
    cursor->at += count;
    while (cursor->segment < cursor->end && cursor->at == cursor->segment->iov_len) {
        cursor->segment++;
        cursor->at = 0;
    }
}

/* How many bytes can be moved as they are from here on. */
static size_t fit_here(const struct cursor *cursor, size_t alignment) {
    if ((uintptr_t)here(cursor) & (alignment - 1))
        return 0;
    return (cursor->segment->iov_len - cursor->at) & ~(alignment - 1);
}

enum staging { MEASURE, FILL, DRAIN };

/* Go past what must be staged together: whole alignments, but at the end of the list. */
static size_t stage(struct cursor *cursor, size_t alignment, unsigned char *buffer,
                    enum staging what) {
    size_t done = 0;
    while (cursor->segment < cursor->end && done < STAGING_BYTES) {
        size_t piece = cursor->segment->iov_len - cursor->at;
        size_t room = STAGING_BYTES - done;
        if (done & (alignment - 1))
            room = alignment - (done & (alignment - 1));
        else if (fit_here(cursor, alignment))
            break;
        piece = piece < room ? piece : room;
        if (what == FILL)
            memcpy(buffer + done, here(cursor), piece);
        else if (what == DRAIN)
            memcpy(here(cursor), buffer + done, piece);
        done += piece;
        go_on(cursor, piece);
    }
    return done;
}

int transfer_staged(struct store *store, bool writing, const struct iovec *segments, int count,
                    uint64_t offset) {
    size_t alignment = store->alignment;
    struct cursor cursor = {segments, segments + count, 0};
    int error = 0;
    go_on(&cursor, 0);
    while (!error && cursor.segment < cursor.end) {
        size_t done = fit_here(&cursor, alignment);
        if (done) {
            struct iovec whole = {here(&cursor), done};
            error = transfer(store->fd, writing, &whole, 1, offset, done);
            go_on(&cursor, done);
        } else {
            struct cursor start = cursor;
            pthread_mutex_lock(&store->staging);
            done = stage(&cursor, alignment, store->buffer, writing ? FILL : MEASURE);
            size_t rounded = (done + alignment - 1) & ~(alignment - 1);
            struct iovec whole = {store->buffer, rounded};
            if (writing && rounded != done)
                error = EINVAL;
            else
                error = transfer(store->fd, writing, &whole, 1, offset, rounded);
            if (!writing && !error)
                stage(&start, alignment, store->buffer, DRAIN);
            pthread_mutex_unlock(&store->staging);
            atomic_fetch_add_explicit(&store->staged_bytes, done, memory_order_relaxed);
        }
        offset += done;
    }
    return error;
}
