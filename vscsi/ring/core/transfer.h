/* SPDX-License-Identifier: MIT */
/* Moving all of a scatter-gather list between memory and a file. */
#ifndef VSCSI_TRANSFER_H
#define VSCSI_TRANSFER_H

#include "store.h"

/*
 * Repeat preadv or pwritev until `length` bytes are moved: they stop early, and take IOV_MAX
 * segments. 0 or an errno; EIO where the file ends inside the range. Leaves the iovecs as they are.
 */
int transfer(int fd, bool writing, struct iovec *segments, int count, uint64_t offset,
             size_t length);

/*
 * The same on a store with an alignment, which offset and, of a write, length have: segments that
 * have it too are moved as they are, only what lies between them goes through the store's buffer.
 */
int transfer_staged(struct store *store, bool writing, const struct iovec *segments, int count,
                    uint64_t offset);

#endif
