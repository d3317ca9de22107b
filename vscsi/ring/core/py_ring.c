/* SPDX-License-Identifier: MIT */
/* RingEnd: a struct ring_end and the buffers that it works on. */
#include "binding.h"
#include "ring.h"

typedef struct {
    PyObject_HEAD struct ring_end end;
    Py_buffer memory[2];
    int held; /* buffers; none once closed */
} RingEnd;

static void let_go(RingEnd *self) {
    while (self->held > 0)
        PyBuffer_Release(&self->memory[--self->held]);
}

/* Make an object that holds `count` buffers which can carry a ring; NULL with an exception. */
static RingEnd *hold(PyTypeObject *type, PyObject *const *objects, int count, uint32_t slot_size) {
    if (slot_size < RING_MIN_SLOT || slot_size > RING_MAX_SLOT) {
        PyErr_Format(PyExc_ValueError, "a slot has %d to %d bytes, not %lu", RING_MIN_SLOT,
                     RING_MAX_SLOT, (unsigned long)slot_size);
        return NULL;
    }
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    RingEnd *self = (RingEnd *)alloc(type, 0);
    if (!self)
        return NULL;
    size_t header = count == 1 ? RING_XEN_HEADER : RING_PAIR_HEADER;
    for (int i = 0; i < count; i++) {
        Py_buffer *view = &self->memory[i];
        if (PyObject_GetBuffer(objects[i], view, PyBUF_WRITABLE))
            goto error;
        self->held++;
        if (view->len % RING_PAGE || view->len < RING_PAGE ||
            view->len > RING_MAX_PAGES * RING_PAGE || view->len != self->memory[0].len) {
            PyErr_Format(PyExc_ValueError,
                         "a ring has 1 to %d whole pages (a pair alike), not %zd bytes",
                         RING_MAX_PAGES, view->len);
            goto error;
        }
        if ((uintptr_t)view->buf % sizeof(uint32_t)) {
            PyErr_SetString(PyExc_ValueError, "ring memory is not aligned to 4 bytes");
            goto error;
        }
        if (!ring_entries((size_t)view->len, header, slot_size)) {
            PyErr_Format(PyExc_ValueError, "no slot of %lu bytes fits", (unsigned long)slot_size);
            goto error;
        }
    }
    return self;
error:
    Py_DECREF(self);
    return NULL;
}

static PyObject *front(PyObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"memory", "slot_size", "start", NULL};
    PyObject *memory;
    uint32_t slot_size, start = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO&|$O&:front", names, &memory, convert_u32,
                                     &slot_size, convert_u32, &start))
        return NULL;
    RingEnd *self = hold((PyTypeObject *)type, &memory, 1, slot_size);
    if (self)
        ring_front(&self->end, self->memory[0].buf, (size_t)self->memory[0].len, slot_size, start);
    return (PyObject *)self;
}

static PyObject *back(PyObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"memory", "slot_size", NULL};
    PyObject *memory;
    uint32_t slot_size;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO&:back", names, &memory, convert_u32,
                                     &slot_size))
        return NULL;
    RingEnd *self = hold((PyTypeObject *)type, &memory, 1, slot_size);
    if (self)
        ring_back(&self->end, self->memory[0].buf, (size_t)self->memory[0].len, slot_size);
    return (PyObject *)self;
}

static PyObject *pair_front(PyObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"requests", "responses", "slot_size", "start", NULL};
    PyObject *memory[2];
    uint32_t slot_size, start = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO&|$O&:pair_front", names, &memory[0],
                                     &memory[1], convert_u32, &slot_size, convert_u32, &start))
        return NULL;
    RingEnd *self = hold((PyTypeObject *)type, memory, 2, slot_size);
    if (self)
        ring_pair_front(&self->end, self->memory[0].buf, self->memory[1].buf,
                        (size_t)self->memory[0].len, slot_size, start);
    return (PyObject *)self;
}

static PyObject *pair_back(PyObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"requests", "responses", "slot_size", NULL};
    PyObject *memory[2];
    uint32_t slot_size;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO&:pair_back", names, &memory[0], &memory[1],
                                     convert_u32, &slot_size))
        return NULL;
    RingEnd *self = hold((PyTypeObject *)type, memory, 2, slot_size);
    if (self)
        ring_pair_back(&self->end, self->memory[0].buf, self->memory[1].buf,
                       (size_t)self->memory[0].len, slot_size);
    return (PyObject *)self;
}

static void dealloc(PyObject *self) {
    let_go((RingEnd *)self);
    free_object(self);
}

/* The end to work on; NULL with an exception if it was closed. */
static struct ring_end *open_end(PyObject *self) {
    RingEnd *ring = (RingEnd *)self;
    if (ring->held)
        return &ring->end;
    PyErr_SetString(PyExc_ValueError, "the ring end is closed");
    return NULL;
}

struct ring_end *ring_end_of(PyObject *ring) { return &((RingEnd *)ring)->end; }

bool ring_end_is_open(PyObject *ring) { return ((RingEnd *)ring)->held; }

PyObject *ring_end_error(PyObject *self) {
    const struct ring_end *end = &((RingEnd *)self)->end;
    const struct core_state *state = PyType_GetModuleState(Py_TYPE(self));
    PyErr_Format(state->ring_error, "%s: %lu (here: put %lu, taken %lu, %lu entries)", end->fault,
                 (unsigned long)end->fault_index, (unsigned long)end->published,
                 (unsigned long)end->take_index, (unsigned long)end->entries);
    return NULL;
}

static PyObject *truth(PyObject *self, int result) {
    return result == RING_BROKEN ? ring_end_error(self) : PyBool_FromLong(result);
}

static PyObject *put_message(PyObject *self, PyObject *message, bool zero_rest) {
    Py_buffer view;
    if (PyObject_GetBuffer(message, &view, PyBUF_SIMPLE))
        return NULL;
    PyObject *result = NULL;
    struct ring_end *end = open_end(self); /* after the message's own code has run */
    if (end && view.len > (Py_ssize_t)end->slot_size)
        PyErr_Format(PyExc_ValueError, "%zd bytes in a slot of %lu", view.len,
                     (unsigned long)end->slot_size);
    else if (end)
        result = truth(self, ring_put(end, view.buf, (size_t)view.len, zero_rest));
    PyBuffer_Release(&view);
    return result;
}

static PyObject *put(PyObject *self, PyObject *message) { return put_message(self, message, true); }

static PyObject *put_keep(PyObject *self, PyObject *message) {
    return put_message(self, message, false);
}

static PyObject *publish(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    struct ring_end *end = open_end(self);
    return end ? truth(self, ring_publish(end)) : NULL;
}

static PyObject *arm(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    struct ring_end *end = open_end(self);
    return end ? truth(self, ring_arm(end)) : NULL;
}

static PyObject *take(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"limit", NULL};
    uint32_t limit = UINT32_MAX;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O&:take", names, convert_u32, &limit))
        return NULL;
    /* This may collect garbage and run anyone's code; nothing below does. */
    PyObject *messages = PyList_New(0);
    struct ring_end *end = messages ? open_end(self) : NULL;
    if (!end)
        goto error;
    int waiting = ring_waiting(end);
    if (waiting == RING_BROKEN) {
        ring_end_error(self);
        goto error;
    }
    uint32_t count = (uint32_t)waiting < limit ? (uint32_t)waiting : limit;
    for (uint32_t i = 0; i < count; i++) {
        PyObject *message = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)end->slot_size);
        if (!message)
            goto error;
        ring_copy(end, i, PyBytes_AsString(message));
        int failed = PyList_Append(messages, message);
        Py_DECREF(message);
        if (failed)
            goto error;
    }
    ring_consume(end, count);
    return messages;
error:
    Py_XDECREF(messages);
    return NULL;
}

static PyObject *change_slot_size(PyObject *self, PyObject *number) {
    uint32_t slot_size;
    if (!convert_u32(number, &slot_size))
        return NULL;
    struct ring_end *end = open_end(self);
    if (!end)
        return NULL;
    size_t bytes = (size_t)((RingEnd *)self)->memory[0].len;
    if (slot_size < RING_MIN_SLOT || slot_size > RING_MAX_SLOT ||
        !ring_change_slot_size(end, bytes, slot_size)) {
        PyErr_Format(PyExc_ValueError, "slots of %lu bytes cannot be taken up here",
                     (unsigned long)slot_size);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *close_end(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    let_go((RingEnd *)self);
    Py_RETURN_NONE;
}

static PyObject *get_free(PyObject *self, void *Py_UNUSED(closure)) {
    struct ring_end *end = open_end(self);
    if (!end)
        return NULL;
    int slots = ring_free(end);
    return slots == RING_BROKEN ? ring_end_error(self) : PyLong_FromLong(slots);
}

/* What does not change under us can be read at any time, closed or broken: reports want it. */
static PyObject *get_number(PyObject *self, void *offset) {
    const unsigned char *end = (const unsigned char *)&((RingEnd *)self)->end;
    return PyLong_FromUnsignedLong(*(const uint32_t *)(end + (uintptr_t)offset));
}

#define FIELD(name) {#name, get_number, NULL, NULL, (void *)offsetof(struct ring_end, name)}

static PyGetSetDef getset[] = {
    FIELD(entries),
    FIELD(slot_size),
    FIELD(put_index),
    FIELD(take_index),
    {"free", get_free, NULL, NULL, NULL},
    {0},
};

static PyMethodDef methods[] = {
    {"front", METHOD(front) | METH_CLASS, NULL},
    {"back", METHOD(back) | METH_CLASS, NULL},
    {"pair_front", METHOD(pair_front) | METH_CLASS, NULL},
    {"pair_back", METHOD(pair_back) | METH_CLASS, NULL},
    {"put", put, METH_O, NULL},
    {"put_keep", put_keep, METH_O, NULL},
    {"publish", publish, METH_NOARGS, NULL},
    {"take", METHOD(take), NULL},
    {"arm", arm, METH_NOARGS, NULL},
    {"change_slot_size", change_slot_size, METH_O, NULL},
    {"close", close_end, METH_NOARGS, NULL},
    {0},
};

static PyType_Slot slots[] = {
    {Py_tp_dealloc, dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {0},
};

PyType_Spec ring_end_spec = {
    .name = "vscsi.ring._core.RingEnd",
    .basicsize = sizeof(RingEnd),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};
