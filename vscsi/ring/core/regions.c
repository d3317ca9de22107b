/* SPDX-License-Identifier: MIT */
#include "regions.h"

#include <string.h>

/* The region that holds a range; NULL if none does. */
static const struct region *find(const struct regions *regions, uint32_t handle, uint64_t address,
                                 uint64_t length) {
    for (size_t i = 0; i < regions->count; i++) {
        const struct region *region = &regions->region[i];
        if (region->handle == handle)
            return address <= region->size && length <= region->size - address ? region : NULL;
    }
    return NULL;
}

/* The last run that begins at or before an address. */
static size_t run_at(const struct region *region, uint64_t address) {
    size_t low = 0, high = region->count;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (region->runs[middle].start <= address)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static uint64_t end_of(const struct region *region, size_t run) {
    return run + 1 < region->count ? region->runs[run + 1].start : region->size;
}

bool regions_add(const struct regions *regions, struct command *command, uint32_t handle,
                 uint64_t address, uint64_t length, bool writable) {
    const struct region *region = find(regions, handle, address, length);
    if (!region || (writable && region->readonly))
        return false;
    for (size_t run = run_at(region, address); length; run++) {
        uint64_t part = end_of(region, run) - address;
        if (part > length)
            part = length;
        if (!command_add(command, region->runs[run].base + (address - region->runs[run].start),
                         part))
            return false;
        address += part;
        length -= part;
    }
    return true;
}

bool regions_copy(const struct regions *regions, void *to, uint32_t handle, uint64_t address,
                  size_t length) {
    const struct region *region = find(regions, handle, address, length);
    if (!region)
        return false;
    unsigned char *next = to;
    for (size_t run = run_at(region, address); length; run++) {
        uint64_t part = end_of(region, run) - address;
        if (part > length)
            part = length;
        memcpy(next, region->runs[run].base + (address - region->runs[run].start), part);
        next += part;
        address += part;
        length -= part;
    }
    return true;
}
