/* SPDX-License-Identifier: MIT */
/* What the files of the Python binding share; stable ABI of 3.11, heap types. */
#ifndef VSCSI_BINDING_H
#define VSCSI_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>

struct core_state {
    PyTypeObject *ring_end;
    PyTypeObject *page_map;
    PyTypeObject *grant_access;
    PyTypeObject *store;
    PyTypeObject *unit;
    PyTypeObject *service;
    PyTypeObject *tap;
    PyTypeObject *tap_filter;
    PyTypeObject *tally;
    PyTypeObject *load;
    PyObject *ring_error;  /* vscsi.wire.errors.RingError */
    PyObject *grant_error; /* vscsi.wire.errors.GrantError */
};

extern PyType_Spec ring_end_spec;
extern PyType_Spec page_map_spec;
extern PyType_Spec grant_access_spec;
extern PyType_Spec store_spec;
extern PyType_Spec unit_spec;
extern PyType_Spec service_spec;
extern PyType_Spec tap_spec;
extern PyType_Spec tap_filter_spec;
extern PyType_Spec tally_spec;
extern PyType_Spec load_spec;

/* The ring end of a RingEnd, whether it is not closed, and RingError for what its peer did. */
struct ring_end *ring_end_of(PyObject *ring);
bool ring_end_is_open(PyObject *ring);
PyObject *ring_end_error(PyObject *ring);

/* A method table's entry for a function that takes keywords. */
#define METHOD(function) (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS

/* An "O&" converter to uint32_t; unlike "I" it refuses what does not fit. */
int convert_u32(PyObject *object, void *result);
/* The same to uint16_t, for a domain's id. */
int convert_domain(PyObject *object, void *result);

struct histogram;
/* A histogram as (least, most, [(middle of a bucket, count), ...]); NULL with an exception. */
PyObject *histogram_told(const struct histogram *histogram);

/* Free an object of one of our heap types. */
void free_object(PyObject *self);

#endif
