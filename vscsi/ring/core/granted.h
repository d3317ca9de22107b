/* SPDX-License-Identifier: MIT */
/* Commands whose segments lie in one granted page each: those of vscsiif and blkif. */
#ifndef VSCSI_GRANTED_H
#define VSCSI_GRANTED_H

#include "service.h"

/*
 * Name `length` bytes of a page as a command's next segment, which is within the page; false if it
 * has no room. Where that is follows with `granted_map`.
 */
static inline bool granted_add(struct command *command, uint32_t reference, size_t offset,
                               size_t length) {
    if (command->segments == COMMAND_SEGMENTS)
        return false;
    command->reference[command->segments] = reference;
    command->segment[command->segments++] = (struct iovec){(void *)offset, length};
    return true;
}

/* Map what was named, until `granted_release`; false, and nothing is, if the domain forbids it. */
bool granted_map(struct service *service, struct command *command, bool readonly);

void granted_release(struct service *service, struct command *command);

/* Copy `length` bytes out of a page; false if they are not all in it, or it may not be read. */
bool granted_copy(struct service *service, void *to, uint32_t reference, size_t offset,
                  size_t length);

#endif
