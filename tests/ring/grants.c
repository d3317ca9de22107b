/* SPDX-License-Identifier: MIT */
/*
 * Two threads map and unmap a domain's grants while the domain takes them back and gives them
 * again, or (hostile) writes anything into its table. An honest domain writes to a page while it
 * is not granted: that nobody reads it then is what the sanitizer sees.
 *
 *   grants ROUNDS honest|hostile
 */
#include "grants.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGES = 6, REFERENCES = 6, DOMAIN = 7, LIMIT = 8 };

static _Alignas(PAGES_SIZE) unsigned char memory[PAGES * PAGES_SIZE];
static struct grant_entry table[REFERENCES];
static struct pin pins[REFERENCES];
static struct grants grants = {.memory = {memory, memory},
                               .pages = PAGES,
                               .table = table,
                               .references = REFERENCES,
                               .pin = pins,
                               .domain = DOMAIN,
                               .limit = LIMIT};
static bool hostile;
static unsigned long rounds;
static atomic_ulong mapped, refusals, taken_back;
static atomic_bool stopped;

static uint32_t dice(uint32_t *state, uint32_t sides) {
    *state = *state * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)*state * sides >> 32);
}

static void check(bool good, const char *what) {
    if (!good) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

/* What a page says: whether it is granted. */
static unsigned char *page(uint32_t frame) { return grants_page(&grants, frame, true); }

static void *use(void *seed) {
    uint32_t state = *(uint32_t *)seed;
    while (!hostile && !taken_back)
        sched_yield(); /* until the domain is at it */
    for (unsigned long round = 0; round < rounds; round++) {
        uint32_t references[3], frames[3], again[3];
        size_t count = 1 + dice(&state, 3), refused = count + 1;
        bool readonly = dice(&state, 2);
        for (size_t i = 0; i < count; i++)
            references[i] = dice(&state, 50) ? dice(&state, REFERENCES) : REFERENCES;
        if (grants_map(&grants, references, count, readonly, frames, &refused)) {
            check(refused <= count, "nobody is refused");
            refusals++;
            continue;
        }
        mapped++;
        for (size_t i = 0; i < count; i++) {
            check(references[i] < REFERENCES && frames[i] < PAGES, "beyond the memory");
            check(hostile || *page(frames[i]), "a page that is not granted");
        }
        if (!grants_map(&grants, references, count, readonly, again, &refused)) {
            check(!memcmp(frames, again, count * sizeof *frames), "a frame that changes");
            check(grants_unmap(&grants, references, count, readonly), "the second mapping");
        }
        check(grants_unmap(&grants, references, count, readonly), "the first mapping");
    }
    return NULL;
}

static void *own(void *seed) {
    uint32_t state = *(uint32_t *)seed;
    while (!stopped) {
        uint32_t reference = dice(&state, REFERENCES);
        struct grant_entry *entry = &table[reference];
        if (hostile) {
            uint32_t domain = dice(&state, 8) ? DOMAIN : dice(&state, 10);
            atomic_store(&entry->access, domain << 16 | dice(&state, 32));
            atomic_store(&entry->frame, dice(&state, 8) ? dice(&state, PAGES) : UINT32_MAX);
        } else if (grant_end(entry)) {
            *page(reference) = 0;
            *page(reference) = 1;
            grant_set(entry, DOMAIN, reference, dice(&state, 4) == 0);
            taken_back++;
        }
    }
    return NULL;
}

int main(int argc, char **argv) {
    uint32_t seeds[] = {2006, 3, 1};
    pthread_t threads[3];
    rounds = argc > 1 ? strtoul(argv[1], NULL, 0) : 0;
    hostile = argc > 2 && !strcmp(argv[2], "hostile");
    grants_init(&grants);
    for (uint32_t reference = 0; reference < REFERENCES; reference++) {
        *page(reference) = 1;
        grant_set(&table[reference], DOMAIN, reference, false);
    }
    for (int i = 0; i < 3; i++)
        pthread_create(&threads[i], NULL, i < 2 ? use : own, &seeds[i]);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    stopped = true;
    pthread_join(threads[2], NULL);
    check(!grants_mapped(&grants), "something is still mapped");
    for (uint32_t reference = 0; reference < REFERENCES; reference++) {
        check(!pins[reference].readers && !pins[reference].writers, "a reference in use");
        check(hostile || !(table[reference].access & (GTF_reading | GTF_writing)), "a mark");
    }
    printf("%lu mapped, %lu refused, %lu taken back\n", mapped, refusals, taken_back);
    return mapped && refusals && (hostile || taken_back) ? 0 : 1;
}
