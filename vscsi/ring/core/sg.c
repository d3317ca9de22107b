/* SPDX-License-Identifier: MIT */
#include "sg.h"

#include "command.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <scsi/sg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Data-in land in memory of ours; data-out the kernel copies from where they are, once, before
 * the write of the command returns. */

enum {
    PAGE = 4096,
    SMALL_BYTES = 64 << 10, /* of a lane's buffer, until a command has more */
    AT_TAIL = 0x10,         /* SG_FLAG_Q_AT_TAIL: in the order of submission */
};

_Static_assert(sizeof(struct sg_iovec) == sizeof(struct iovec), "");

static int open_node(const char *path) { return open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC); }

struct sg *sg_new(const char *path) {
    struct sg *sg = calloc(1, sizeof *sg);
    char *copy = strdup(path);
    int anchor = sg && copy ? open_node(path) : -1;
    if (anchor < 0) {
        int error = sg && copy ? errno : ENOMEM;
        free(copy);
        free(sg);
        errno = error;
        return NULL;
    }
    sg->path = copy;
    sg->anchor = anchor;
    for (int i = 0; i < SG_LANES; i++)
        sg->fd[i] = -1;
    pthread_mutex_init(&sg->lock, NULL);
    return sg;
}

static void close_fd(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void sg_close(struct sg *sg) {
    close_fd(&sg->anchor);
    for (int i = 0; i < SG_LANES; i++)
        close_fd(&sg->fd[i]);
}

void sg_free(struct sg *sg) {
    if (!sg)
        return;
    sg_close(sg);
    pthread_mutex_destroy(&sg->lock);
    free(sg->path);
    free(sg);
}

void sg_lane_free(struct sg_lane *lane) {
    free(lane->buffer);
    lane->buffer = NULL;
    lane->size = 0;
}

/* Have room for a command's data-in; false if there is no memory. */
static bool make_room(struct sg_lane *lane, size_t wanted, size_t most) {
    if (lane->size >= wanted)
        return true;
    sg_lane_free(lane);
    size_t size = wanted <= SMALL_BYTES ? SMALL_BYTES : most;
    if (posix_memalign((void **)&lane->buffer, PAGE, size))
        lane->buffer = NULL;
    lane->size = lane->buffer ? size : 0;
    return lane->buffer;
}

static void keep_told(struct sg *sg, const struct command *command, const unsigned char *sense,
                      size_t length) {
    pthread_mutex_lock(&sg->lock);
    if (sg->told_count < SG_TOLD) {
        struct sg_told *told = &sg->told[sg->told_count++];
        told->cdb_length = command->cdb_length;
        memcpy(told->cdb, command->cdb, sizeof told->cdb);
        told->sense_length = (uint8_t)length;
        memcpy(told->sense, sense, length);
    }
    pthread_mutex_unlock(&sg->lock);
}

bool sg_take_told(struct sg *sg, struct sg_told *told) {
    pthread_mutex_lock(&sg->lock);
    bool some = sg->told_count;
    if (some) {
        *told = sg->told[0];
        sg->told_count--;
        memmove(sg->told, sg->told + 1, sg->told_count * sizeof *sg->told);
    }
    pthread_mutex_unlock(&sg->lock);
    return some;
}

static void scatter(const unsigned char *from, const struct iovec *segments, int count) {
    for (int i = 0; i < count; i++) {
        memcpy(segments[i].iov_base, from, segments[i].iov_len);
        from += segments[i].iov_len;
    }
}

/* Have the kernel execute a command; 0 if the header says what it came to. */
static int submit_and_wait(struct sg *sg, int *fd, struct sg_io_hdr *header) {
    if (sg->anchor < 0)
        return ENODEV;
    if (*fd < 0 && (*fd = open_node(sg->path)) < 0)
        return errno;
    if (write(*fd, header, sizeof *header) != sizeof *header)
        return errno;
    struct pollfd answer = {*fd, POLLIN, 0};
    int limit_ms = (int)(header->timeout + atomic_load(&sg->grace_ms)), ready;
    do
        ready = poll(&answer, 1, limit_ms);
    while (ready < 0 && errno == EINTR); /* no handler runs here: stopped, and continued */
    int error = ready ? 0 : ETIMEDOUT;
    if (!error && read(*fd, header, sizeof *header) != sizeof *header)
        error = ENODEV; /* what woke us was the unit leaving, with the command */
    if (error)
        close_fd(fd); /* the kernel keeps what it needs for the command */
    return error;
}

int sg_execute(struct command *command, struct sg_lane *lane) {
    struct store *store = command->unit->store;
    struct sg *sg = store->sg;
    bool in = command->operation == OP_READ;
    unsigned char sense[SG_SENSE_BYTES];
    struct sg_io_hdr header = {
        .interface_id = 'S',
        .dxfer_direction = in ? SG_DXFER_FROM_DEV : SG_DXFER_TO_DEV,
        .cmd_len = command->cdb_length,
        .mx_sb_len = sizeof sense,
        .dxfer_len = command->length,
        .cmdp = command->cdb,
        .sbp = sense,
        .timeout = atomic_load(&sg->timeout_ms),
        .flags = AT_TAIL,
    };
    if (in) {
        /* The kernel copies as much as was asked for, whatever has come: that is not for guests. */
        if (!make_room(lane, command->length, command->unit->max_bytes))
            return ENOMEM;
        header.dxferp = lane->buffer;
    } else if (command->segments == 1) {
        header.dxferp = command->segment[0].iov_base;
    } else {
        header.dxferp = command->segment;
        header.iovec_count = (unsigned short)command->segments;
    }
    int error = submit_and_wait(sg, &sg->fd[lane->number], &header);
    if (error == ETIMEDOUT) {
        atomic_store(&command->unit->state, 0);
        keep_told(sg, command, sense, 0);
    }
    if (error)
        return error;
    if (header.status || header.host_status || header.driver_status || header.resid) {
        size_t length = header.sb_len_wr < sizeof sense ? header.sb_len_wr : sizeof sense;
        if (length)
            keep_told(sg, command, sense, length);
        return EIO;
    }
    if (in) {
        scatter(lane->buffer, command->segment, command->segments);
        atomic_fetch_add_explicit(&store->staged_bytes, command->length, memory_order_relaxed);
    }
    return 0;
}
