/* SPDX-License-Identifier: MIT */
#include "pages.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/stat.h>

static bool within_file(int fd, const uint32_t *frames, size_t count) {
    struct stat status;
    if (fstat(fd, &status))
        return false;
    for (size_t i = 0; i < count; i++) {
        if (frames[i] >= status.st_size / PAGES_SIZE) {
            errno = EINVAL;
            return false;
        }
    }
    return true;
}

void *pages_map(int fd, const uint32_t *frames, size_t count, bool readonly) {
    if (!within_file(fd, frames, count))
        return NULL;
    /* Reserving first keeps others' mappings from where ours go. */
    unsigned char *area = mmap(NULL, count * PAGES_SIZE, PROT_NONE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED)
        return NULL;
    int protection = readonly ? PROT_READ : PROT_READ | PROT_WRITE;
    for (size_t first = 0, next; first < count; first = next) {
        for (next = first + 1; next < count && frames[next] == frames[next - 1] + 1; next++)
            ;
        if (mmap(area + first * PAGES_SIZE, (next - first) * PAGES_SIZE, protection,
                 MAP_SHARED | MAP_FIXED, fd, (off_t)frames[first] * PAGES_SIZE) == MAP_FAILED) {
            int reason = errno;
            pages_unmap(area, count);
            errno = reason;
            return NULL;
        }
    }
    return area;
}

void pages_unmap(void *address, size_t count) { munmap(address, count * PAGES_SIZE); }
