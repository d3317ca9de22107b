/* SPDX-License-Identifier: MIT */
/* The memory that an SRP initiator registered, by handle: runs of mapped pages. */
#ifndef VSCSI_REGIONS_H
#define VSCSI_REGIONS_H

#include "command.h"

enum { REGIONS_MAX = 64 };

/* A stretch of a region that lies together in our memory. */
struct run {
    uint64_t start; /* in the region */
    unsigned char *base;
};

struct region {
    uint32_t handle;
    bool readonly;
    uint64_t size;
    size_t count;
    struct run *runs; /* ascending; the caller's, as long as the region is there */
};

struct regions {
    size_t count;
    struct region region[REGIONS_MAX];
};

/* Add the memory that a descriptor names to a command; false if it may not be touched so. */
bool regions_add(const struct regions *regions, struct command *command, uint32_t handle,
                 uint64_t address, uint64_t length, bool writable);

/* Copy `length` bytes out of a region; false if they are not all in it. */
bool regions_copy(const struct regions *regions, void *to, uint32_t handle, uint64_t address,
                  size_t length);

#endif
