/* SPDX-License-Identifier: MIT */
/* The Unit object, for the services that execute commands on it. */
#ifndef VSCSI_PY_UNIT_H
#define VSCSI_PY_UNIT_H

#include "binding.h"
#include "unit.h"

typedef struct {
    PyObject_HEAD struct unit unit;
    PyObject *store;
    PyObject *gate; /* the unit whose gate it has; NULL: its own */
} Unit;

#endif
