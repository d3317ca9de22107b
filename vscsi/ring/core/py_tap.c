/* SPDX-License-Identifier: MIT */
/* Tap: a struct tap for one ring; put by its thread, taken by another. */
#include "py_tap.h"

#include "layout.h"

#include <stdlib.h>
#include <string.h>

static PyObject *new_tap(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"size", NULL};
    uint32_t size;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&:Tap", names, convert_u32, &size))
        return NULL;
    if (size < TAP_MIN_SIZE || (size & (size - 1))) {
        PyErr_Format(PyExc_ValueError, "%lu bytes are no power of two from %d on",
                     (unsigned long)size, TAP_MIN_SIZE);
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

/* Whether bytes are what `data` has returned. */
static bool is_data(const Py_buffer *data) {
    return !data->len || ((size_t)data->len >= sizeof(struct tap_data) &&
                          (size_t)data->len <= sizeof(struct tap_data) + RECORD_MAX_PAYLOAD);
}

static PyObject *put(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"way",     "time_ns",     "ring_index", "in_flight",
                            "message", "descriptors", "data",       NULL};
    Py_buffer message, descriptors, data = {0};
    unsigned long long time_ns;
    unsigned int way, ring_index, in_flight;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "IKIIy*y*|y*:put", names, &way, &time_ns,
                                     &ring_index, &in_flight, &message, &descriptors, &data))
        return NULL;
    bool good = message.len <= UINT16_MAX && descriptors.len <= UINT16_MAX && is_data(&data);
    if (good)
        tap_put(((Tap *)self)->tap,
                (struct tap_entry){
                    .time_ns = time_ns,
                    .ring_index = ring_index,
                    .in_flight = (uint16_t)(in_flight < UINT16_MAX ? in_flight : UINT16_MAX),
                    .way = (uint8_t)way,
                    .message = (uint16_t)message.len,
                    .descriptors = (uint16_t)descriptors.len,
                    .data = (uint32_t)data.len,
                },
                message.buf, descriptors.buf, data.buf);
    else
        PyErr_SetString(PyExc_ValueError, "too long for an entry, or no data of a tap");
    PyBuffer_Release(&message);
    PyBuffer_Release(&descriptors);
    PyBuffer_Release(&data);
    return good ? Py_NewRef(Py_None) : NULL;
}

/* Take the buffers that are in a sequence; false, with an exception, if something else is. */
static bool get_segments(PyObject *sequence, Py_buffer *buffers, Py_ssize_t count,
                         struct iovec *segments, size_t *length) {
    *length = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        int failed = item ? PyObject_GetBuffer(item, &buffers[i], PyBUF_SIMPLE) : -1;
        Py_XDECREF(item);
        if (failed) {
            while (i--)
                PyBuffer_Release(&buffers[i]);
            return false;
        }
        segments[i] = (struct iovec){buffers[i].buf, (size_t)buffers[i].len};
        *length += segments[i].iov_len;
    }
    return true;
}

static PyObject *data(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"segments", "length", "parameters", NULL};
    PyObject *sequence, *result = NULL;
    uint32_t length;
    int parameters = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO&|p:data", names, &sequence, convert_u32,
                                     &length, &parameters))
        return NULL;
    uint32_t wanted = tap_wanted(((Tap *)self)->tap);
    if (parameters)
        wanted = (wanted & TAP_HASH) | TAP_PARAMETERS;
    if (!wanted || !length)
        return PyBytes_FromStringAndSize(NULL, 0);
    Py_ssize_t count = PySequence_Size(sequence);
    if (count < 0)
        return NULL;
    size_t there, bytes = tap_copy_bytes(wanted, length);
    Py_buffer *buffers = calloc((size_t)count + 1, sizeof *buffers);
    struct iovec *segments = calloc((size_t)count + 1, sizeof *segments);
    unsigned char *out = malloc(bytes);
    if (!buffers || !segments || !out) {
        PyErr_NoMemory();
    } else if (get_segments(sequence, buffers, count, segments, &there)) {
        if (there >= length) {
            Py_BEGIN_ALLOW_THREADS tap_copy(wanted, segments, length, out);
            Py_END_ALLOW_THREADS((struct tap_data *)out)->parameters = (uint16_t)parameters;
            result = PyBytes_FromStringAndSize((const char *)out, (Py_ssize_t)bytes);
        } else {
            PyErr_SetString(PyExc_ValueError, "the segments are shorter than that");
        }
        while (count--)
            PyBuffer_Release(&buffers[count]);
    }
    free(out);
    free(segments);
    free(buffers);
    return result;
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

bool tap_entries_of(const unsigned char *bytes, size_t length, size_t *count) {
    size_t at = 0;
    for (*count = 0; length - at >= sizeof(struct tap_entry); ++*count) {
        struct tap_entry entry;
        memcpy(&entry, bytes + at, sizeof entry);
        if (entry.bytes > length - at || entry.bytes > TAP_MAX_ENTRY || entry.bytes % 8 ||
            entry.bytes < sizeof entry + (uint64_t)entry.message + entry.descriptors + entry.data ||
            (entry.data && entry.data < sizeof(struct tap_data)))
            return false;
        at += entry.bytes;
    }
    return at == length;
}

PyObject *py_tap_packets(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs) {
    static char *names[] = {"entries",  "interface",    "clock_offset_ns", "lost",
                            "protocol", "layout",       "domain",          "device",
                            "queue",    "payload_kind", "payload_bytes",   NULL};
    Py_buffer entries;
    unsigned int interface, lost, payload_bytes;
    long long offset;
    unsigned char protocol, layout, payload_kind;
    unsigned short domain, device, queue;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*$ILIbbHHHbI:tap_packets", names, &entries,
                                     &interface, &offset, &lost, &protocol, &layout, &domain,
                                     &device, &queue, &payload_kind, &payload_bytes))
        return NULL;
    struct tap_path path = {.interface = interface,
                            .clock_offset_ns = (uint64_t)offset,
                            .lost = lost,
                            .protocol = protocol,
                            .layout = layout,
                            .domain = domain,
                            .device = device,
                            .queue = queue,
                            .payload_kind = payload_kind,
                            .payload_bytes = payload_bytes};
    size_t count, length = (size_t)entries.len;
    PyObject *result = NULL;
    if (!tap_entries_of(entries.buf, length, &count)) {
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

static PyObject *get_wanted(PyObject *self, void *Py_UNUSED(closure)) {
    uint32_t wanted = tap_wanted(((Tap *)self)->tap);
    return Py_BuildValue("IO", wanted & ~(uint32_t)TAP_HASH,
                         wanted & TAP_HASH ? Py_True : Py_False);
}

static int set_wanted(PyObject *self, PyObject *value, void *Py_UNUSED(closure)) {
    unsigned int head;
    int hash;
    if (!value || !PyArg_ParseTuple(value, "Ip:wanted", &head, &hash))
        return -1;
    if (head > RECORD_MAX_PAYLOAD) {
        PyErr_Format(PyExc_ValueError, "%u bytes are more than %d", head, RECORD_MAX_PAYLOAD);
        return -1;
    }
    atomic_store(&((Tap *)self)->tap->wanted, head | (hash ? TAP_HASH : 0));
    return 0;
}

static PyObject *get_dropped(PyObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(atomic_load(&((Tap *)self)->tap->dropped));
}

static PyGetSetDef getset[] = {
    {"active", get_active, set_active, NULL, NULL},
    {"dropped", get_dropped, NULL, NULL, NULL},
    {"wanted", get_wanted, set_wanted, NULL, NULL},
    {0},
};

static PyMethodDef methods[] = {
    {"put", METHOD(put), NULL},
    {"data", METHOD(data), NULL},
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
