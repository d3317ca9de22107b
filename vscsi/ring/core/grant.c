/* SPDX-License-Identifier: MIT */
#include "grant.h"

/* Between a look and the swap, an honest domain changes an entry once at most; Xen gives up, too.
 */
enum { ATTEMPTS = 5 };

_Static_assert(sizeof(struct grant_entry) == 8, "the size of grant_entry_v1");

static bool swap(struct grant_entry *entry, uint32_t *seen, uint32_t wanted) {
    return atomic_compare_exchange_strong(&entry->access, seen, wanted);
}

const char *grant_map(struct grant_entry *entry, uint16_t domain, bool readonly, uint32_t *frame) {
    uint32_t marks = readonly ? GTF_reading : GTF_reading | GTF_writing;
    uint32_t seen = atomic_load(&entry->access);
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        if ((seen & GTF_type_mask) != GTF_permit_access)
            return "it grants no access";
        if (seen >> 16 != domain)
            return "it grants another domain access";
        if (!readonly && (seen & GTF_readonly))
            return "it grants read access only";
        if (swap(entry, &seen, seen | marks)) {
            *frame = atomic_load(&entry->frame);
            return NULL;
        }
    }
    return "it keeps changing";
}

void grant_unmap(struct grant_entry *entry, uint16_t marks) {
    atomic_fetch_and(&entry->access, ~(uint32_t)marks);
}

void grant_set(struct grant_entry *entry, uint16_t domain, uint32_t frame, bool readonly) {
    uint32_t flags = readonly ? GTF_permit_access | GTF_readonly : GTF_permit_access;
    atomic_store_explicit(&entry->frame, frame, memory_order_relaxed);
    atomic_store_explicit(&entry->access, (uint32_t)domain << 16 | flags, memory_order_release);
}

bool grant_end(struct grant_entry *entry) {
    uint32_t seen = atomic_load(&entry->access);
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        if (seen & (GTF_reading | GTF_writing))
            return false;
        if (swap(entry, &seen, 0))
            return true;
    }
    return false;
}
