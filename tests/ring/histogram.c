/* SPDX-License-Identifier: MIT */
/* Each argument is a value: print its bucket, that one's first value and the next one's. */
#include "histogram.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    static struct histogram histogram;
    histogram_clear(&histogram);
    for (int i = 1; i < argc; i++) {
        uint64_t value = strtoull(argv[i], NULL, 10);
        uint32_t index = histogram_index(value);
        histogram_add(&histogram, value, 1);
        printf("%" PRIu32 " %" PRIu64 " %" PRIu64 "\n", index, histogram_floor(index),
               index + 1 < HISTOGRAM_BUCKETS ? histogram_floor(index + 1) - 1 : UINT64_MAX);
    }
    uint64_t count = 0;
    for (uint32_t i = 0; i < HISTOGRAM_BUCKETS; i++)
        count += histogram.bucket[i];
    printf("%" PRIu64 " %" PRIu64 " %" PRIu64 "\n", count, histogram.least, histogram.most);
    return 0;
}
