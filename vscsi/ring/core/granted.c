/* SPDX-License-Identifier: MIT */
#include "granted.h"

#include <string.h>

bool granted_map(struct service *service, struct command *command, bool readonly) {
    uint32_t frames[COMMAND_SEGMENTS];
    size_t count = (size_t)command->segments, refused;
    command->mapped = 0;
    if (!count)
        return true;
    if (grants_map(service->grants, command->reference, count, readonly, frames, &refused))
        return false;
    command->mapped = count;
    command->readonly = readonly;
    command->segments = 0;
    for (size_t i = 0; i < count; i++) {
        struct iovec part = command->segment[i];
        unsigned char *page = grants_page(service->grants, frames[i], readonly);
        command_add(command, page + (size_t)part.iov_base, part.iov_len);
    }
    return true;
}

void granted_release(struct service *service, struct command *command) {
    if (command->mapped)
        grants_unmap(service->grants, command->reference, command->mapped, command->readonly);
}

bool granted_copy(struct service *service, void *to, uint32_t reference, size_t offset,
                  size_t length) {
    uint32_t frame;
    size_t refused;
    if (length > PAGES_SIZE || offset > PAGES_SIZE - length ||
        grants_map(service->grants, &reference, 1, true, &frame, &refused))
        return false;
    memcpy(to, grants_page(service->grants, frame, true) + offset, length);
    grants_unmap(service->grants, &reference, 1, true);
    return true;
}
