/* SPDX-License-Identifier: MIT */
/* Store and Unit: what the C path may do I/O on. */
#include "binding.h"
#include "py_unit.h"
#include "sg.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

typedef struct {
    PyObject_HEAD struct store store;
    Py_buffer memory; /* STORE_MEMORY */
} Store;

static Store *new_store(PyObject *type, enum store_kind kind) {
    allocfunc alloc = (allocfunc)PyType_GetSlot((PyTypeObject *)type, Py_tp_alloc);
    Store *self = (Store *)alloc((PyTypeObject *)type, 0);
    if (self) {
        store_init(&self->store, kind);
    }
    return self;
}

static PyObject *fail(int error) {
    errno = error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* What a call without the interpreter lock came to. */
static PyObject *outcome(int error) {
    if (error)
        return fail(error);
    Py_RETURN_NONE;
}

static PyObject *null(PyObject *type, PyObject *Py_UNUSED(ignored)) {
    return (PyObject *)new_store(type, STORE_NULL);
}

static PyObject *file(PyObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"fd", "alignment", NULL};
    int fd;
    uint32_t alignment = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|O&:file", names, &fd, convert_u32,
                                     &alignment))
        return NULL;
    if (!alignment || alignment > STAGING_BYTES || alignment & (alignment - 1))
        return PyErr_Format(PyExc_ValueError, "an alignment of %u bytes", alignment);
    Store *self = new_store(type, STORE_FILE);
    int error = self ? store_use_file(&self->store, fd, alignment) : 0;
    if (!error)
        return (PyObject *)self;
    Py_DECREF(self);
    return fail(error);
}

static PyObject *mapped(PyObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"fd", "size", "writable", NULL};
    int fd, writable;
    unsigned long long size;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iK$p:mapped", names, &fd, &size, &writable))
        return NULL;
    Store *self = new_store(type, STORE_MAPPED);
    int error = self ? store_map(&self->store, fd, size, writable) : 0;
    if (!error)
        return (PyObject *)self;
    Py_DECREF(self);
    return fail(error);
}

static PyObject *generic(PyObject *type, PyObject *path) {
    PyObject *encoded;
    if (!PyUnicode_FSConverter(path, &encoded))
        return NULL;
    Store *self = new_store(type, STORE_SG);
    const char *name = PyBytes_AsString(encoded);
    if (self && name && !(self->store.sg = sg_new(name))) {
        Py_CLEAR(self);
        PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_DECREF(encoded);
    return (PyObject *)self;
}

static PyObject *set_limits(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"timeout_ms", "grace_ms", NULL};
    struct sg *sg = ((Store *)self)->store.sg;
    uint32_t timeout_ms, grace_ms;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "$O&O&:set_limits", names, convert_u32,
                                     &timeout_ms, convert_u32, &grace_ms))
        return NULL;
    if (sg) {
        atomic_store(&sg->timeout_ms, timeout_ms);
        atomic_store(&sg->grace_ms, grace_ms);
    }
    Py_RETURN_NONE;
}

static PyObject *take_told(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    struct sg *sg = ((Store *)self)->store.sg;
    struct sg_told told;
    PyObject *all = PyList_New(0);
    while (all && sg && sg_take_told(sg, &told)) {
        PyObject *one = Py_BuildValue("y#y#", told.cdb, (Py_ssize_t)told.cdb_length, told.sense,
                                      (Py_ssize_t)told.sense_length);
        if (!one || PyList_Append(all, one))
            Py_CLEAR(all);
        Py_XDECREF(one);
    }
    return all;
}

static PyObject *resize(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"size", "writable", NULL};
    struct store *store = &((Store *)self)->store;
    unsigned long long size;
    int writable;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "K$p:resize", names, &size, &writable))
        return NULL;
    return outcome(store->kind == STORE_MAPPED ? store_map(store, store->fd, size, writable) : 0);
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
    store_free(&((Store *)self)->store);
    free_object(self);
}

static PyObject *flush(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    int error;
    Py_BEGIN_ALLOW_THREADS error = store_flush(&((Store *)self)->store);
    Py_END_ALLOW_THREADS return outcome(error);
}

/* The buffers that a sequence holds, as iovecs. */
struct views {
    Py_ssize_t count;
    Py_buffer *buffers;
    struct iovec *segments;
    size_t length;
};

static void release_views(struct views *views) {
    for (Py_ssize_t i = 0; i < views->count; i++)
        PyBuffer_Release(&views->buffers[i]);
    PyMem_Free(views->buffers);
    PyMem_Free(views->segments);
}

/* Hold the buffers of a sequence; false with an exception. */
static bool hold_views(struct views *views, PyObject *sequence, int flags) {
    *views = (struct views){0};
    Py_ssize_t count = PySequence_Size(sequence);
    if (count < 0)
        return false;
    views->buffers = PyMem_Calloc((size_t)count, sizeof *views->buffers);
    views->segments = PyMem_Calloc((size_t)count, sizeof *views->segments);
    bool good = views->buffers && views->segments;
    if (!good)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; good && i < count; i++) {
        PyObject *view = PySequence_GetItem(sequence, i);
        Py_buffer *buffer = &views->buffers[i];
        good = view && !PyObject_GetBuffer(view, buffer, flags);
        Py_XDECREF(view);
        if (good) {
            views->count++;
            views->segments[i] = (struct iovec){buffer->buf, (size_t)buffer->len};
            views->length += (size_t)buffer->len;
        }
    }
    if (!good)
        release_views(views);
    return good;
}

static PyObject *move_views(PyObject *self, PyObject *args, bool writing) {
    struct store *store = &((Store *)self)->store;
    unsigned long long offset;
    PyObject *sequence;
    struct views views;
    if (!PyArg_ParseTuple(args, "KO", &offset, &sequence) ||
        !hold_views(&views, sequence, writing ? PyBUF_SIMPLE : PyBUF_WRITABLE))
        return NULL;
    int error, count = (int)views.count;
    Py_BEGIN_ALLOW_THREADS error =
        (writing ? store_write : store_read)(store, views.segments, count, offset, views.length);
    Py_END_ALLOW_THREADS release_views(&views);
    return outcome(error);
}

static PyObject *read_views(PyObject *self, PyObject *args) {
    return move_views(self, args, false);
}

static PyObject *write_views(PyObject *self, PyObject *args) {
    return move_views(self, args, true);
}

static PyObject *close_store(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    struct store *store = &((Store *)self)->store;
    store->fd = -1;
    if (store->sg)
        sg_close(store->sg);
    Py_RETURN_NONE;
}

static PyObject *discard(PyObject *self, PyObject *args) {
    unsigned long long offset, length;
    if (!PyArg_ParseTuple(args, "KK:discard", &offset, &length))
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS error = store_discard(&((Store *)self)->store, offset, length);
    Py_END_ALLOW_THREADS return outcome(error);
}

static PyObject *punch(PyObject *self, PyObject *args) {
    unsigned long long offset, length;
    if (!PyArg_ParseTuple(args, "KK:punch", &offset, &length))
        return NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS error = store_punch(&((Store *)self)->store, offset, length);
    Py_END_ALLOW_THREADS return outcome(error);
}

static PyObject *get_staged_bytes(PyObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(atomic_load(&((Store *)self)->store.staged_bytes));
}

static PyMethodDef store_methods[] = {
    {"null", null, METH_NOARGS | METH_CLASS, NULL},
    {"file", METHOD(file) | METH_CLASS, NULL},
    {"memory", memory, METH_O | METH_CLASS, NULL},
    {"mapped", METHOD(mapped) | METH_CLASS, NULL},
    {"generic", generic, METH_O | METH_CLASS, NULL},
    {"set_limits", METHOD(set_limits), NULL},
    {"take_told", take_told, METH_NOARGS, NULL},
    {"resize", METHOD(resize), NULL},
    {"readv", read_views, METH_VARARGS, NULL},
    {"writev", write_views, METH_VARARGS, NULL},
    {"flush", flush, METH_NOARGS, NULL},
    {"close", close_store, METH_NOARGS, NULL},
    {"discard", discard, METH_VARARGS, NULL},
    {"punch", punch, METH_VARARGS, NULL},
    {0},
};

static PyGetSetDef store_getset[] = {
    {"staged_bytes", get_staged_bytes, NULL, NULL, NULL},
    {0},
};

static PyType_Slot store_slots[] = {
    {Py_tp_dealloc, store_dealloc},
    {Py_tp_methods, store_methods},
    {Py_tp_getset, store_getset},
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
    static char *names[] = {
        "store", "block_size", "max_bytes", "max_unmap_blocks", "max_unmap_descriptors",
        "gate",  NULL};
    const struct core_state *state = PyType_GetModuleState(type);
    PyObject *store, *gate = NULL;
    uint32_t block_size, max_bytes, max_unmap_blocks = 0, max_unmap_descriptors = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O&O&|$O&O&O!:Unit", names, state->store,
                                     &store, convert_u32, &block_size, convert_u32, &max_bytes,
                                     convert_u32, &max_unmap_blocks, convert_u32,
                                     &max_unmap_descriptors, state->unit, &gate))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Unit *self = (Unit *)alloc(type, 0);
    if (self) {
        self->store = Py_NewRef(store);
        unit_init(&self->unit, &((Store *)store)->store, block_size, max_bytes);
        self->unit.max_unmap_blocks = max_unmap_blocks;
        self->unit.max_unmap_descriptors = max_unmap_descriptors;
        if (gate) {
            self->gate = Py_NewRef(gate);
            self->unit.gate = ((Unit *)gate)->unit.gate;
        }
    }
    return (PyObject *)self;
}

static void unit_dealloc(PyObject *self) {
    Py_CLEAR(((Unit *)self)->store);
    Py_CLEAR(((Unit *)self)->gate);
    unit_free(&((Unit *)self)->unit);
    free_object(self);
}

static PyObject *set(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"blocks", "ready", "writable", "write_cache", "thin", NULL};
    struct unit *unit = &((Unit *)self)->unit;
    unsigned long long blocks;
    int ready, writable, write_cache, thin;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "K$pppp:set", names, &blocks, &ready, &writable,
                                     &write_cache, &thin))
        return NULL;
    uint32_t state = (ready ? UNIT_READY : 0) | (writable ? UNIT_WRITABLE : 0) |
                     (write_cache ? UNIT_WRITE_CACHE : 0) | (thin ? UNIT_THIN : 0);
    atomic_store(&unit->blocks, blocks);
    atomic_store(&unit->state, state);
    Py_RETURN_NONE;
}

static PyObject *set_block_size(PyObject *self, PyObject *number) {
    uint32_t block_size;
    if (!convert_u32(number, &block_size))
        return NULL;
    atomic_store(&((Unit *)self)->unit.block_size, block_size);
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
    {"set_block_size", set_block_size, METH_O, NULL},
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
