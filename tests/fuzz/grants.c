/* SPDX-License-Identifier: MIT */
/*
 * The grants of a domain that rewrites its table: what is mapped was granted, frames are memory,
 * each mapping is counted, and nothing is held after a refusal.
 *
 * Input: calls: code u8 and its arguments.
 */
#include "grants.h"
#include "fuzz.h"

enum { PAGES = 4, REFERENCES = 64, BATCH = 8, DOMAIN = 3, MOST_MAPPED = 40, HELD = 16 };

/* What is mapped, by a model: a batch keeps the frames that it was given. */
struct held {
    size_t count;
    bool readonly;
    uint32_t reference[BATCH], frame[BATCH];
};

static struct held held[HELD];
static size_t batches;
static struct grants grants;
static struct area table, pins;

static struct grant_entry *entry(uint32_t reference) {
    return (struct grant_entry *)table.base + reference;
}

static uint32_t users(uint32_t reference, bool readonly) {
    uint32_t found = 0;
    for (size_t i = 0; i < batches; i++)
        for (size_t at = 0; at < held[i].count; at++)
            found += held[i].reference[at] == reference && held[i].readonly == readonly;
    return found;
}

static void check_counts(void) {
    uint32_t all = 0;
    for (uint32_t reference = 0; reference < REFERENCES; reference++) {
        CHECK(grants.pin[reference].readers == users(reference, true));
        CHECK(grants.pin[reference].writers == users(reference, false));
        all += users(reference, true) + users(reference, false);
    }
    CHECK(grants.mapped == all && all <= MOST_MAPPED);
}

static void map(struct input *input) {
    uint8_t how = take8(input);
    if (batches == HELD)
        return;
    struct held *batch = &held[batches];
    batch->count = 1 + how % BATCH;
    batch->readonly = how & 128;
    bool wide = how & 64;
    uint32_t before[REFERENCES];
    for (size_t i = 0; i < batch->count; i++)
        batch->reference[i] = wide ? take32(input) : take8(input) % (REFERENCES + 2);
    for (uint32_t i = 0; i < REFERENCES; i++)
        before[i] = atomic_load(&entry(i)->access);
    size_t refused = SIZE_MAX;
    const char *why = grants_map(&grants, batch->reference, batch->count, batch->readonly,
                                 batch->frame, &refused);
    count(!why);
    if (why) {
        for (uint32_t i = 0; i < REFERENCES; i++) { /* marks that others need stay */
            CHECK((atomic_load(&entry(i)->access) & ~(uint32_t)(GTF_reading | GTF_writing)) ==
                  (before[i] & ~(uint32_t)(GTF_reading | GTF_writing)));
            if (!users(i, true) && !users(i, false))
                CHECK(!(atomic_load(&entry(i)->access) & ~before[i]));
        }
        CHECK(refused <= batch->count);
        return;
    }
    for (size_t i = 0; i < batch->count; i++) {
        uint32_t reference = batch->reference[i], access = before[reference % REFERENCES];
        CHECK(reference < REFERENCES && batch->frame[i] < PAGES);
        bool pinned = users(reference, false) || (batch->readonly && users(reference, true));
        if (!pinned) { /* then the entry is what permits it */
            CHECK((access & GTF_type_mask) == GTF_permit_access && access >> 16 == DOMAIN);
            CHECK(batch->readonly || !(access & GTF_readonly));
        }
        if (!users(reference, true) && !users(reference, false))
            CHECK(batch->frame[i] == atomic_load(&entry(reference)->frame));
        uint32_t marks = batch->readonly ? GTF_reading : GTF_reading | GTF_writing;
        CHECK(pinned || (atomic_load(&entry(reference)->access) & marks) == marks);
        for (size_t other = 0; other < batches; other++) /* who is there keeps his frame */
            for (size_t at = 0; at < held[other].count; at++)
                CHECK(held[other].reference[at] != reference ||
                      held[other].frame[at] == batch->frame[i]);
    }
    batches++;
}

static void unmap(struct held *batch) {
    CHECK(grants_unmap(&grants, batch->reference, batch->count, batch->readonly));
    struct held gone = *batch;
    *batch = held[--batches];
    for (size_t i = 0; i < gone.count; i++) {
        uint32_t access = atomic_load(&entry(gone.reference[i])->access);
        if (!users(gone.reference[i], false))
            CHECK(!(access & GTF_writing));
        if (!users(gone.reference[i], false) && !users(gone.reference[i], true))
            CHECK(!(access & GTF_reading));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input input = {data, size};
    area_reset(&table, REFERENCES * sizeof(struct grant_entry),
               REFERENCES * sizeof(struct grant_entry), 0);
    area_reset(&pins, REFERENCES * sizeof(struct pin), REFERENCES * sizeof(struct pin), 0);
    batches = 0;
    if (!grants.table)
        grants_init(&grants);
    grants.pages = PAGES;
    grants.table = entry(0);
    grants.references = REFERENCES;
    grants.pin = (struct pin *)pins.base;
    grants.domain = DOMAIN;
    grants.limit = MOST_MAPPED;
    grants.mapped = 0;
    while (input.left) {
        uint8_t code = take8(&input);
        uint32_t reference = code / 8 % REFERENCES, value;
        switch (code % 6) {
        case 0:
            map(&input);
            break;
        case 1:
            if (batches)
                unmap(&held[code / 8 % batches]);
            break;
        case 2: /* the domain grants a page, or takes a grant back, as it should */
            reference = take8(&input) % REFERENCES;
            if (code & 64)
                grant_end(entry(reference));
            else
                grant_set(entry(reference), DOMAIN, take8(&input) % (PAGES + 1), code & 128);
            break;
        case 3: /* as it shouldn't; but marks of ours are not to vanish, or the model is lost */
            value = take32(&input);
            if (!users(reference, true) && !users(reference, false))
                atomic_store(&entry(reference)->access, value);
            break;
        case 4:
            atomic_store(&entry(reference)->frame, take32(&input));
            break;
        default: { /* who holds nothing lets go of nothing */
            uint32_t beyond[2] = {REFERENCES + take8(&input), reference};
            bool readonly = code & 8, there = users(reference, readonly);
            CHECK(!grants_unmap(&grants, beyond, 1, readonly));
            CHECK(there || !grants_unmap(&grants, beyond + 1, 1, readonly));
        }
        }
        check_counts();
    }
    while (batches)
        unmap(&held[0]);
    check_counts();
    area_check(&table);
    area_check(&pins);
    return 0;
}
