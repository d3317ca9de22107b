/* SPDX-License-Identifier: MIT */
#include "grants.h"

void grants_init(struct grants *grants) {
    /* It is held for a few loads and swaps: to spin is better than to sleep. */
    pthread_mutexattr_t adaptive;
    pthread_mutexattr_init(&adaptive);
    pthread_mutexattr_settype(&adaptive, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&grants->lock, &adaptive);
    pthread_mutexattr_destroy(&adaptive);
}

static const char *pin(struct grants *grants, uint32_t reference, bool readonly, uint32_t *frame) {
    if (reference >= grants->references)
        return "it is beyond the table";
    struct pin *pin = &grants->pin[reference];
    struct grant_entry *entry = &grants->table[reference];
    bool used = pin->readers || pin->writers;
    if (!used || !(readonly || pin->writers)) { /* a mark is missing */
        uint32_t found;
        const char *refusal = grant_map(entry, grants->domain, readonly, &found);
        if (refusal)
            return refusal;
        if (!used && found >= grants->pages) {
            grant_unmap(entry, readonly ? GTF_reading : GTF_reading | GTF_writing);
            return "its frame is not memory";
        }
        if (!used)
            pin->frame = found;
    }
    if (readonly)
        pin->readers++;
    else
        pin->writers++;
    *frame = pin->frame;
    return NULL;
}

static bool unpin(struct grants *grants, uint32_t reference, bool readonly) {
    if (reference >= grants->references)
        return false;
    struct pin *pin = &grants->pin[reference];
    uint32_t *users = readonly ? &pin->readers : &pin->writers;
    if (!*users)
        return false;
    (*users)--;
    if (!pin->readers && !pin->writers)
        grant_unmap(&grants->table[reference], GTF_reading | GTF_writing);
    else if (!readonly && !pin->writers)
        grant_unmap(&grants->table[reference], GTF_writing);
    return true;
}

const char *grants_map(struct grants *grants, const uint32_t *references, size_t count,
                       bool readonly, uint32_t *frames, size_t *refused) {
    const char *refusal = NULL;
    size_t done = 0;
    pthread_mutex_lock(&grants->lock);
    if (count > grants->limit - grants->mapped) {
        refusal = "too many are mapped";
        *refused = count;
    }
    for (; !refusal && done < count; done++) {
        refusal = pin(grants, references[done], readonly, &frames[done]);
        if (refusal) {
            *refused = done;
            break;
        }
    }
    if (!refusal)
        grants->mapped += (uint32_t)count;
    else
        while (done)
            unpin(grants, references[--done], readonly);
    pthread_mutex_unlock(&grants->lock);
    return refusal;
}

uint32_t grants_mapped(struct grants *grants) {
    pthread_mutex_lock(&grants->lock);
    uint32_t mapped = grants->mapped;
    pthread_mutex_unlock(&grants->lock);
    return mapped;
}

bool grants_unmap(struct grants *grants, const uint32_t *references, size_t count, bool readonly) {
    size_t done = 0;
    pthread_mutex_lock(&grants->lock);
    while (done < count && unpin(grants, references[done], readonly))
        done++;
    grants->mapped -= (uint32_t)done;
    pthread_mutex_unlock(&grants->lock);
    return done == count;
}
