/* SPDX-License-Identifier: MIT */
/* PageMap: mapped frames, exported through the buffer protocol. */
#include "binding.h"
#include "pages.h"

typedef struct {
    PyObject_HEAD void *address;
    size_t count;
    bool readonly;
} PageMap;

/* The frame numbers of a sequence in memory of PyMem_Malloc; NULL with an exception. */
static uint32_t *frame_numbers(PyObject *sequence, size_t *count) {
    Py_ssize_t length = PySequence_Size(sequence);
    if (length < 0)
        return NULL;
    if (length == 0) {
        PyErr_SetString(PyExc_ValueError, "no frames to map");
        return NULL;
    }
    uint32_t *frames = PyMem_Calloc((size_t)length, sizeof *frames);
    if (!frames) {
        PyErr_NoMemory();
        return NULL;
    }
    for (Py_ssize_t i = 0; i < length; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        int converted = item && convert_u32(item, &frames[i]);
        Py_XDECREF(item);
        if (!converted) {
            PyMem_Free(frames);
            return NULL;
        }
    }
    *count = (size_t)length;
    return frames;
}

static PyObject *new_map(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"fd", "frames", "readonly", NULL};
    int fd, readonly;
    PyObject *sequence;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iO$p:PageMap", names, &fd, &sequence,
                                     &readonly))
        return NULL;
    size_t count;
    uint32_t *frames = frame_numbers(sequence, &count);
    if (!frames)
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PageMap *self = (PageMap *)alloc(type, 0);
    if (self) {
        self->count = count;
        self->readonly = readonly;
        self->address = pages_map(fd, frames, count, readonly);
        if (!self->address) {
            PyErr_SetFromErrno(PyExc_OSError);
            Py_DECREF(self);
            self = NULL;
        }
    }
    PyMem_Free(frames);
    return (PyObject *)self;
}

/* Each export holds a reference, so nothing points to the pages any more. */
static void dealloc(PyObject *self) {
    PageMap *map = (PageMap *)self;
    if (map->address)
        pages_unmap(map->address, map->count);
    free_object(self);
}

static int get_buffer(PyObject *self, Py_buffer *view, int flags) {
    PageMap *map = (PageMap *)self;
    return PyBuffer_FillInfo(view, self, map->address, (Py_ssize_t)(map->count * PAGES_SIZE),
                             map->readonly, flags);
}

static PyType_Slot slots[] = {
    {Py_tp_new, new_map},
    {Py_tp_dealloc, dealloc},
    {Py_bf_getbuffer, get_buffer},
    {0},
};

PyType_Spec page_map_spec = {
    .name = "vscsi.ring._core.PageMap",
    .basicsize = sizeof(PageMap),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};
