/* SPDX-License-Identifier: MIT */
/*
 * XXH64 with seed 0, of data in pieces (the xxHash fast digest algorithm, version 0.1.1, by Yann
 * Collet: doc/xxhash_spec.md of its repository).
 */
#ifndef VSCSI_XXH64_H
#define VSCSI_XXH64_H

#include <stddef.h>
#include <stdint.h>

struct xxh64 {
    uint64_t lane[4];
    uint64_t length;
    unsigned char waiting[32]; /* `length` modulo 32 bytes: no whole stripe yet */
};

void xxh64_begin(struct xxh64 *hash);
/* Each byte is read once: others may be writing it. */
void xxh64_add(struct xxh64 *hash, const unsigned char *data, size_t length);
uint64_t xxh64_end(const struct xxh64 *hash);

#endif
