/* SPDX-License-Identifier: MIT */
/*
 * Another domain's memory, and which of its grants are in use here, and by how many.
 *
 * The domain may rewrite its grant table at any moment. A reference in use keeps the frame that it
 * had when it was mapped, and its entry carries Xen's marks (GTF_reading, GTF_writing). Any thread.
 */
#ifndef VSCSI_GRANTS_H
#define VSCSI_GRANTS_H

#include "grant.h"
#include "pages.h"

#include <pthread.h>

/* A reference's users; its frame counts while it has any. */
struct pin {
    uint32_t frame, readers, writers;
};

struct grants {
    unsigned char *memory[2]; /* the domain's pages, mapped to be written and to be read only */
    uint32_t pages;
    struct grant_entry *table; /* in them */
    uint32_t references;       /* entries of the table */
    struct pin *pin;           /* of each */
    uint16_t domain;           /* that entries must name: ours */
    uint32_t limit, mapped;    /* references mapped at a time */
    pthread_mutex_t lock;
};

void grants_init(struct grants *grants);

/*
 * Map references, which may repeat; all of them or none. NULL and each one's frame, or why not, and
 * which one does not permit it: `count` if they are too many.
 */
const char *grants_map(struct grants *grants, const uint32_t *references, size_t count,
                       bool readonly, uint32_t *frames, size_t *refused);

/* References that are mapped now, each as often as it is. */
uint32_t grants_mapped(struct grants *grants);

/* Undo it; false if one (and then none of those behind it) is not mapped so. */
bool grants_unmap(struct grants *grants, const uint32_t *references, size_t count, bool readonly);

/* Where a mapped frame is. */
static inline unsigned char *grants_page(const struct grants *grants, uint32_t frame,
                                         bool readonly) {
    return grants->memory[readonly] + (size_t)frame * PAGES_SIZE;
}

#endif
