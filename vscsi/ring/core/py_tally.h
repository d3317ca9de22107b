/* SPDX-License-Identifier: MIT */
/* The Tally object, for the service that counts in it. */
#ifndef VSCSI_PY_TALLY_H
#define VSCSI_PY_TALLY_H

#include "binding.h"
#include "tally.h"

typedef struct {
    PyObject_HEAD struct tally tally;
} Tally;

#endif
