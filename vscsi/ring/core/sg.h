/* SPDX-License-Identifier: MIT */
/*
 * Commands of a logical unit of the kernel's, through its SCSI generic node (sg v3): a read or
 * write is handed to the kernel as the CDB that the initiator sent.
 *
 * It is written to an open file and its outcome read from it: unlike SG_IO, that lets go of a
 * command that the kernel does not end. Each thread has a file of its own there, so answers need no
 * matching.
 */
#ifndef VSCSI_SG_H
#define VSCSI_SG_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct command;

enum {
    SG_CDB_BYTES = 16,
    SG_SENSE_BYTES = 96,
    SG_TOLD = 128, /* commands that failed and wait for Python, at most LATER_MAX */
    SG_LANES = 32, /* threads that may have one under way */
};

/* An I_T nexus' sg node. */
struct sg {
    char *path;
    int anchor;                  /* as long as it is open, no other unit gets the node's number */
    int fd[SG_LANES];            /* each a thread's; -1: not open */
    _Atomic uint32_t timeout_ms; /* after which the kernel aborts a command */
    _Atomic uint32_t grace_ms;   /* how long that may take, before we let go of it */
    pthread_mutex_t lock;
    /* Of commands that failed, oldest first: a unit attention is told but once, and what was let go
     * of (no sense data) must not be executed again. */
    struct sg_told {
        uint8_t cdb_length, sense_length;
        unsigned char cdb[SG_CDB_BYTES], sense[SG_SENSE_BYTES];
    } told[SG_TOLD];
    unsigned told_count;
};

/* What a thread has for its commands. */
struct sg_lane {
    unsigned number; /* below SG_LANES: of all threads that share a node another one */
    unsigned char *buffer;
    size_t size;
};

/* NULL and errno. */
struct sg *sg_new(const char *path);
void sg_free(struct sg *sg);

/* Close all files; no command is under way. */
void sg_close(struct sg *sg);

/*
 * Execute a read or write. 0 only if its status was GOOD and all of its data was moved; until then
 * no byte of data-in is where the initiator sees it. Else an errno, and sense data are kept. With
 * ETIMEDOUT the kernel still has the command, and the unit is not ready any more.
 */
int sg_execute(struct command *command, struct sg_lane *lane);

/* Take what the oldest command was told; false if there is none. */
bool sg_take_told(struct sg *sg, struct sg_told *told);

void sg_lane_free(struct sg_lane *lane);

#endif
