/* SPDX-License-Identifier: MIT */
/* Store and Unit: what the C path may do I/O on. */
#include "binding.h"
#include "py_unit.h"

#include <errno.h>
#include <stdlib.h>

typedef struct {
    PyObject_HEAD struct store store;
    Py_buffer memory; /* STORE_MEMORY */
} Store;

static Store *new_store(PyObject *type, enum store_kind kind) {
    allocfunc alloc = (allocfunc)PyType_GetSlot((PyTypeObject *)type, Py_tp_alloc);
    Store *self = (Store *)alloc((PyTypeObject *)type, 0);
    if (self) {
        self->store.kind = kind;
        self->store.fd = -1;
        pthread_mutex_init(&self->store.flushing, NULL);
    }
    return self;
}

static PyObject *null(PyObject *type, PyObject *Py_UNUSED(ignored)) {
    return (PyObject *)new_store(type, STORE_NULL);
}

static PyObject *file(PyObject *type, PyObject *number) {
    long fd = PyLong_AsLong(number);
    if (fd == -1 && PyErr_Occurred())
        return NULL;
    Store *self = new_store(type, STORE_FILE);
    if (self)
        self->store.fd = (int)fd;
    return (PyObject *)self;
}

static PyObject *memory(PyObject *type, PyObject *object) {
    Store *self = new_store(type, STORE_MEMORY);
    if (self && PyObject_GetBuffer(object, &self->memory, PyBUF_SIMPLE)) {
        Py_DECREF(self);
        return NULL;
    }
    if (self) {
        self->store.base = self->memory.buf;
        self->store.size = (uint64_t)self->memory.len;
    }
    return (PyObject *)self;
}

static void store_dealloc(PyObject *self) {
    PyBuffer_Release(&((Store *)self)->memory);
    pthread_mutex_destroy(&((Store *)self)->store.flushing);
    free_object(self);
}

static PyObject *flush(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    int error;
    Py_BEGIN_ALLOW_THREADS error = store_flush(&((Store *)self)->store);
    Py_END_ALLOW_THREADS if (!error) Py_RETURN_NONE;
    errno = error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyMethodDef store_methods[] = {
    {"null", null, METH_NOARGS | METH_CLASS, NULL},
    {"file", file, METH_O | METH_CLASS, NULL},
    {"memory", memory, METH_O | METH_CLASS, NULL},
    {"flush", flush, METH_NOARGS, NULL},
    {0},
};

static PyType_Slot store_slots[] = {
    {Py_tp_dealloc, store_dealloc},
    {Py_tp_methods, store_methods},
    {0},
};

PyType_Spec store_spec = {
    .name = "vscsi.ring._core.Store",
    .basicsize = sizeof(Store),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = store_slots,
};

/* Unit */

static PyObject *new_unit(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"store", "block_size", "max_bytes", NULL};
    PyTypeObject *store_type = ((struct core_state *)PyType_GetModuleState(type))->store;
    PyObject *store;
    uint32_t block_size, max_bytes;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O&O&:Unit", names, store_type, &store,
                                     convert_u32, &block_size, convert_u32, &max_bytes))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Unit *self = (Unit *)alloc(type, 0);
    if (self) {
        self->store = Py_NewRef(store);
        unit_init(&self->unit, &((Store *)store)->store, block_size, max_bytes);
    }
    return (PyObject *)self;
}

static void unit_dealloc(PyObject *self) {
    Py_CLEAR(((Unit *)self)->store);
    pthread_cond_destroy(&((Unit *)self)->unit.empty);
    pthread_mutex_destroy(&((Unit *)self)->unit.lock);
    free_object(self);
}

static PyObject *set(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"blocks", "ready", "writable", "write_cache", NULL};
    struct unit *unit = &((Unit *)self)->unit;
    unsigned long long blocks;
    int ready, writable, write_cache;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "K$ppp:set", names, &blocks, &ready, &writable,
                                     &write_cache))
        return NULL;
    uint32_t state = (ready ? UNIT_READY : 0) | (writable ? UNIT_WRITABLE : 0) |
                     (write_cache ? UNIT_WRITE_CACHE : 0);
    atomic_store(&unit->blocks, blocks);
    atomic_store(&unit->state, state);
    Py_RETURN_NONE;
}

static PyObject *close_gate(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    Py_BEGIN_ALLOW_THREADS unit_close(&((Unit *)self)->unit);
    Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

static PyObject *open_gate(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    unit_open(&((Unit *)self)->unit);
    Py_RETURN_NONE;
}

static PyMethodDef unit_methods[] = {
    {"set", METHOD(set), NULL},
    {"close", close_gate, METH_NOARGS, NULL},
    {"open", open_gate, METH_NOARGS, NULL},
    {0},
};

static PyType_Slot unit_slots[] = {
    {Py_tp_new, new_unit},
    {Py_tp_dealloc, unit_dealloc},
    {Py_tp_methods, unit_methods},
    {0},
};

PyType_Spec unit_spec = {
    .name = "vscsi.ring._core.Unit",
    .basicsize = sizeof(Unit),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = unit_slots,
};
