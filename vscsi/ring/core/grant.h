/* SPDX-License-Identifier: MIT */
/*
 * Version 1 grant entries (grant_table.h of Xen): flags u16, domid u16, frame u32. Flags and domid
 * are accessed as one word, so that what is checked together is read together. The table is shared
 * with a domain that may rewrite it at any moment. The caller checks references against its length.
 */
#ifndef VSCSI_GRANT_H
#define VSCSI_GRANT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    GTF_permit_access = 1,
    GTF_type_mask = 3,
    GTF_readonly = 4,
    GTF_reading = 8,
    GTF_writing = 16,
};

struct grant_entry {
    _Atomic uint32_t access; /* flags in the low half, domid in the high half */
    _Atomic uint32_t frame;
};

/* Mark an entry in use, as the hypervisor would; NULL and the frame, or why it may not be. */
const char *grant_map(struct grant_entry *entry, uint16_t domain, bool readonly, uint32_t *frame);

/* Clear marks of `grant_map`: GTF_reading, GTF_writing or both. */
void grant_unmap(struct grant_entry *entry, uint16_t marks);

/* Publish an entry: the frame first, then domid and flags. */
void grant_set(struct grant_entry *entry, uint16_t domain, uint32_t frame, bool readonly);

/* Revoke an entry; false if the other domain has it mapped. */
bool grant_end(struct grant_entry *entry);

#endif
