/* SPDX-License-Identifier: MIT */
/* Tap: a struct tap for one ring; put by its thread, taken by another. */
#include "py_tap.h"

#include <stdlib.h>
#include <string.h>

static PyObject *new_tap(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"size", NULL};
    uint32_t size;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&:Tap", names, convert_u32, &size))
        return NULL;
    if (size < TAP_MAX_ENTRY || (size & (size - 1))) {
        PyErr_Format(PyExc_ValueError, "%lu bytes are no power of two from %d on",
                     (unsigned long)size, TAP_MAX_ENTRY);
        return NULL;
    }
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Tap *self = (Tap *)alloc(type, 0);
    if (!self)
        return NULL;
    self->tap = aligned_alloc(64, (sizeof *self->tap + 63) / 64 * 64);
    if (self->tap) {
        *self->tap = (struct tap){.size = size};
        self->tap->bytes = malloc(size); /* untouched pages cost nothing */
    }
    if (!self->tap || !self->tap->bytes) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void dealloc(PyObject *self) {
    struct tap *tap = ((Tap *)self)->tap;
    if (tap)
        free(tap->bytes);
    free(tap);
    free_object(self);
}

static PyObject *put(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"way",     "time_ns",     "ring_index", "in_flight",
                            "message", "descriptors", NULL};
    Py_buffer message, descriptors;
    unsigned long long time_ns;
    unsigned int way, ring_index, in_flight;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "IKIIy*y*:put", names, &way, &time_ns,
                                     &ring_index, &in_flight, &message, &descriptors))
        return NULL;
    tap_put(((Tap *)self)->tap,
            (struct tap_entry){
                .time_ns = time_ns,
                .ring_index = ring_index,
                .in_flight = (uint16_t)(in_flight < UINT16_MAX ? in_flight : UINT16_MAX),
                .way = (uint8_t)way,
                .message = (uint32_t)message.len,
                .descriptors = (uint32_t)descriptors.len,
            },
            message.buf, descriptors.buf);
    PyBuffer_Release(&message);
    PyBuffer_Release(&descriptors);
    Py_RETURN_NONE;
}

static PyObject *take(PyObject *self, PyObject *number) {
    uint32_t room;
    if (!convert_u32(number, &room))
        return NULL;
    unsigned char *out = malloc(room ? room : 1);
    if (!out)
        return PyErr_NoMemory();
    uint64_t entries;
    size_t written = tap_take(((Tap *)self)->tap, out, room, &entries);
    PyObject *result = Py_BuildValue("y#K", out, (Py_ssize_t)written, (unsigned long long)entries);
    free(out);
    return result;
}

/* Whether bytes are entries as `take` returns them. */
static bool are_entries(const unsigned char *bytes, size_t length, size_t *count) {
    size_t at = 0;
    for (*count = 0; length - at >= sizeof(struct tap_entry); ++*count) {
        struct tap_entry entry;
        memcpy(&entry, bytes + at, sizeof entry);
        if (entry.bytes > length - at ||
            entry.bytes < sizeof entry + (uint64_t)entry.message + entry.descriptors)
            return false;
        at += entry.bytes;
    }
    return at == length;
}

PyObject *py_tap_packets(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs) {
    static char *names[] = {"entries", "interface", "clock_offset_ns", "lost",  "protocol",
                            "layout",  "domain",    "device",          "queue", NULL};
    Py_buffer entries;
    unsigned int interface, lost;
    long long offset;
    unsigned char protocol, layout;
    unsigned short domain, device, queue;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*$ILIbbHHH:tap_packets", names, &entries,
                                     &interface, &offset, &lost, &protocol, &layout, &domain,
                                     &device, &queue))
        return NULL;
    struct tap_path path = {.interface = interface,
                            .clock_offset_ns = (uint64_t)offset,
                            .lost = lost,
                            .protocol = protocol,
                            .layout = layout,
                            .domain = domain,
                            .device = device,
                            .queue = queue};
    size_t count, length = (size_t)entries.len;
    PyObject *result = NULL;
    if (!are_entries(entries.buf, length, &count)) {
        PyErr_SetString(PyExc_ValueError, "no entries of a tap");
    } else {
        unsigned char *out = malloc(length + count * TAP_PACKET_BYTES + 1);
        size_t written = 0;
        if (out) {
            Py_BEGIN_ALLOW_THREADS written = tap_packets(entries.buf, length, &path, out);
            Py_END_ALLOW_THREADS result =
                PyBytes_FromStringAndSize((const char *)out, (Py_ssize_t)written);
        } else {
            PyErr_NoMemory();
        }
        free(out);
    }
    PyBuffer_Release(&entries);
    return result;
}

static PyObject *get_active(PyObject *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(tap_is_active(((Tap *)self)->tap));
}

static int set_active(PyObject *self, PyObject *value, void *Py_UNUSED(closure)) {
    int active = value ? PyObject_IsTrue(value) : 0;
    if (active >= 0)
        atomic_store(&((Tap *)self)->tap->active, active);
    return active < 0 ? -1 : 0;
}

static PyObject *get_dropped(PyObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(atomic_load(&((Tap *)self)->tap->dropped));
}

static PyGetSetDef getset[] = {
    {"active", get_active, set_active, NULL, NULL},
    {"dropped", get_dropped, NULL, NULL, NULL},
    {0},
};

static PyMethodDef methods[] = {
    {"put", METHOD(put), NULL},
    {"take", take, METH_O, NULL},
    {0},
};

static PyType_Slot slots[] = {
    {Py_tp_new, new_tap},
    {Py_tp_dealloc, dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {0},
};

PyType_Spec tap_spec = {
    .name = "vscsi.ring._core.Tap",
    .basicsize = sizeof(Tap),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};
