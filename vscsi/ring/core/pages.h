/* SPDX-License-Identifier: MIT */
/* Frames of a file (a guest's memory) at consecutive addresses. */
#ifndef VSCSI_PAGES_H
#define VSCSI_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PAGES_SIZE = 4096 };

/*
 * Map `count` > 0 frames of PAGES_SIZE bytes, in any order, repeated or not. NULL and errno if it
 * cannot be done, EINVAL if a frame lies beyond the file's end. The caller sees to it that the
 * file cannot shrink (F_SEAL_SHRINK): touching a page that is gone raises SIGBUS.
 */
void *pages_map(int fd, const uint32_t *frames, size_t count, bool readonly);

void pages_unmap(void *address, size_t count);

#endif
