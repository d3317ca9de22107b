/* SPDX-License-Identifier: MIT */
/* Copies from and to a mapped file that may become shorter meanwhile. */
#ifndef VSCSI_GUARD_H
#define VSCSI_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/uio.h>

/* Have SIGBUS in such a copy end the copy; every other goes where it went before. */
void guard_install(void);

/*
 * Copy from `base` into the segments, or from them to `base`. 0, or the si_code of the SIGBUS
 * that it met: a page that has no memory (BUS_ADRERR) or bad memory.
 */
int guard_copy(unsigned char *base, const struct iovec *segments, int count, bool to_base);

#endif
