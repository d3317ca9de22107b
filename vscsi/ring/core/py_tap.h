/* SPDX-License-Identifier: MIT */
/* The Tap object, for the service whose messages it shows. */
#ifndef VSCSI_PY_TAP_H
#define VSCSI_PY_TAP_H

#include "binding.h"
#include "tap.h"

typedef struct {
    PyObject_HEAD struct tap *tap;
} Tap;

/* Whether bytes are entries as `take` returns them, and how many. */
bool tap_entries_of(const unsigned char *bytes, size_t length, size_t *count);

PyObject *py_tap_packets(PyObject *module, PyObject *args, PyObject *kwargs);

#endif
