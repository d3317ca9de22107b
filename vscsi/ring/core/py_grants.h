/* SPDX-License-Identifier: MIT */
/* The GrantAccess object, for the services that map grants. */
#ifndef VSCSI_PY_GRANTS_H
#define VSCSI_PY_GRANTS_H

#include "binding.h"
#include "grants.h"

typedef struct {
    PyObject_HEAD struct grants grants;
    Py_buffer memory[2]; /* to be written, to be read only */
} GrantAccess;

#endif
