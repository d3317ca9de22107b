/* SPDX-License-Identifier: MIT */
/* GrantAccess: another domain's memory, by the grants in it. */
#include "py_grants.h"

#include <stdlib.h>

static PyObject *new_access(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"memory", "readonly", "references", "domain", "limit", NULL};
    PyObject *memory, *readonly;
    uint32_t references, limit;
    uint16_t domain;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO$O&O&O&:GrantAccess", names, &memory,
                                     &readonly, convert_u32, &references, convert_domain, &domain,
                                     convert_u32, &limit))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    GrantAccess *self = (GrantAccess *)alloc(type, 0);
    if (!self)
        return NULL;
    struct grants *grants = &self->grants;
    grants_init(grants);
    if (PyObject_GetBuffer(memory, &self->memory[false], PyBUF_WRITABLE) ||
        PyObject_GetBuffer(readonly, &self->memory[true], PyBUF_SIMPLE)) {
        Py_DECREF(self);
        return NULL;
    }
    size_t bytes = (size_t)self->memory[false].len;
    grants->memory[false] = self->memory[false].buf;
    grants->memory[true] = self->memory[true].buf;
    grants->pages = (uint32_t)(bytes / PAGES_SIZE);
    grants->table = (struct grant_entry *)self->memory[false].buf;
    grants->references = references;
    grants->domain = domain;
    grants->limit = limit;
    grants->pin = calloc(references, sizeof *grants->pin);
    if (!grants->pin) {
        PyErr_NoMemory();
        Py_CLEAR(self);
    } else if ((size_t)self->memory[true].len != bytes || (uintptr_t)grants->table % 4 ||
               references > bytes / sizeof *grants->table) {
        PyErr_SetString(PyExc_ValueError, "not twice the same memory with a grant table in it");
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static void dealloc(PyObject *object) {
    GrantAccess *self = (GrantAccess *)object;
    PyBuffer_Release(&self->memory[false]);
    PyBuffer_Release(&self->memory[true]);
    free(self->grants.pin);
    pthread_mutex_destroy(&self->grants.lock);
    free_object(object);
}

/* The references of a sequence, which came from a peer: what cannot be one is beyond the table. */
static uint32_t *take_references(PyObject *sequence, Py_ssize_t *count) {
    *count = PySequence_Size(sequence);
    uint32_t *references =
        *count < 0 ? NULL : PyMem_Calloc((size_t)*count, 2 * sizeof *references); /* and frames */
    if (!references && *count >= 0)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; references && i < *count; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        unsigned long long value = item ? PyLong_AsUnsignedLongLong(item) : 0;
        Py_XDECREF(item);
        if (PyErr_Occurred()) {
            if (!PyErr_ExceptionMatches(PyExc_OverflowError)) {
                PyMem_Free(references);
                return NULL;
            }
            PyErr_Clear();
            value = UINT32_MAX;
        }
        references[i] = value < UINT32_MAX ? (uint32_t)value : UINT32_MAX;
    }
    return references;
}

static PyObject *refuse(PyObject *self, PyObject *sequence, Py_ssize_t at, const char *reason) {
    PyObject *error = ((struct core_state *)PyType_GetModuleState(Py_TYPE(self)))->grant_error;
    const struct grants *grants = &((GrantAccess *)self)->grants;
    if (at == PySequence_Size(sequence))
        return PyErr_Format(error, "%zd more pages than are mapped: the limit is %lu", at,
                            (unsigned long)grants->limit);
    PyObject *reference = PySequence_GetItem(sequence, at);
    if (reference)
        PyErr_Format(error, "grant reference %R: %s", reference, reason);
    Py_XDECREF(reference);
    return NULL;
}

static PyObject *map(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"references", "readonly", NULL};
    struct grants *grants = &((GrantAccess *)self)->grants;
    PyObject *sequence, *result = NULL;
    int readonly;
    Py_ssize_t count;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O$p:map", names, &sequence, &readonly))
        return NULL;
    uint32_t *references = take_references(sequence, &count);
    if (!references)
        return NULL;
    uint32_t *frames = references + count;
    size_t refused = 0;
    const char *reason = grants_map(grants, references, (size_t)count, readonly, frames, &refused);
    if (reason) {
        refuse(self, sequence, (Py_ssize_t)refused, reason);
    } else {
        result = PyList_New(count);
        for (Py_ssize_t i = 0; result && i < count; i++) {
            PyObject *frame = PyLong_FromUnsignedLong(frames[i]);
            if (!frame)
                Py_CLEAR(result);
            else
                PyList_SetItem(result, i, frame);
        }
        if (!result)
            grants_unmap(grants, references, (size_t)count, readonly);
    }
    PyMem_Free(references);
    return result;
}

static PyObject *unmap(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"references", "readonly", NULL};
    PyObject *sequence;
    int readonly;
    Py_ssize_t count;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O$p:unmap", names, &sequence, &readonly))
        return NULL;
    uint32_t *references = take_references(sequence, &count);
    if (!references)
        return NULL;
    bool good = grants_unmap(&((GrantAccess *)self)->grants, references, (size_t)count, readonly);
    PyMem_Free(references);
    if (good)
        Py_RETURN_NONE;
    PyErr_SetString(PyExc_ValueError, "a reference is not mapped so");
    return NULL;
}

static PyObject *get_mapped(PyObject *self, void *Py_UNUSED(ignored)) {
    return PyLong_FromUnsignedLong(grants_mapped(&((GrantAccess *)self)->grants));
}

static PyGetSetDef getset[] = {{"mapped", get_mapped, NULL, NULL, NULL}, {0}};

static PyMethodDef methods[] = {
    {"map", METHOD(map), NULL},
    {"unmap", METHOD(unmap), NULL},
    {0},
};

static PyType_Slot slots[] = {
    {Py_tp_new, new_access},
    {Py_tp_dealloc, dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {0},
};

PyType_Spec grant_access_spec = {
    .name = "vscsi.ring._core.GrantAccess",
    .basicsize = sizeof(GrantAccess),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};
