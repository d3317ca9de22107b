/* SPDX-License-Identifier: MIT */
/* Tally: a struct tally; added to by one thread, read by any. */
#include "py_tally.h"
#include "wait.h"

#include <string.h>

static PyObject *new_tally(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"row_of", "rows", NULL};
    Py_buffer row_of;
    uint32_t rows;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*O&:Tally", names, &row_of, convert_u32,
                                     &rows))
        return NULL;
    Tally *self = NULL;
    const unsigned char *of = row_of.buf;
    bool good = row_of.len == TALLY_OPCODES && rows <= TALLY_OPCODES;
    for (int i = 0; good && i < TALLY_OPCODES; i++)
        good = of[i] < rows;
    if (!good) {
        PyErr_SetString(PyExc_ValueError, "rows of opcodes that there are not");
    } else {
        allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
        self = (Tally *)alloc(type, 0);
    }
    if (self) {
        struct tally *tally = &self->tally;
        memcpy(tally->row_of, of, TALLY_OPCODES);
        tally->rows = rows;
        tally->row = PyMem_Calloc(tally->rows, sizeof *tally->row);
        if (!tally->row) {
            Py_CLEAR(self);
            PyErr_NoMemory();
        }
    }
    PyBuffer_Release(&row_of);
    return (PyObject *)self;
}

static void dealloc(PyObject *self) {
    PyMem_Free(((Tally *)self)->tally.row);
    free_object(self);
}

static PyObject *add(PyObject *self, PyObject *args) {
    const struct tally *tally = &((Tally *)self)->tally;
    unsigned long long now, latency_ns, bytes;
    uint32_t row;
    if (!PyArg_ParseTuple(args, "O&KKK:add", convert_u32, &row, &now, &latency_ns, &bytes))
        return NULL;
    if (row >= tally->rows) {
        PyErr_SetString(PyExc_ValueError, "no such row");
        return NULL;
    }
    tally_add(&tally->row[row], now, latency_ns, bytes, 1);
    Py_RETURN_NONE;
}

static PyObject *counts_told(const _Atomic uint64_t *counts, size_t length, uint64_t *total) {
    PyObject *result = PyTuple_New((Py_ssize_t)length);
    for (size_t i = 0; result && i < length; i++) {
        uint64_t count = atomic_load_explicit(&counts[i], memory_order_relaxed);
        *total += count;
        PyObject *number = PyLong_FromUnsignedLongLong(count);
        if (!number || PyTuple_SetItem(result, (Py_ssize_t)i, number))
            Py_CLEAR(result);
    }
    return result;
}

static PyObject *read_row(const struct tally_row *row, size_t number, uint64_t now,
                          uint64_t *total) {
    uint64_t sizes = 0;
    return Py_BuildValue(
        "nNNKKK", (Py_ssize_t)number, counts_told(row->latency, TALLY_LATENCIES + 1, total),
        counts_told(row->size, TALLY_SIZES + 1, &sizes),
        (unsigned long long)atomic_load_explicit(&row->latency_ns, memory_order_relaxed),
        (unsigned long long)atomic_load_explicit(&row->bytes, memory_order_relaxed),
        (unsigned long long)peak_read(&row->longest_ns, now));
}

static PyObject *read_all(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    const struct tally *tally = &((Tally *)self)->tally;
    uint64_t now = now_ns();
    PyObject *result = PyList_New(0);
    for (size_t i = 0; result && i < tally->rows; i++) {
        uint64_t total = 0;
        PyObject *row = read_row(&tally->row[i], i, now, &total);
        if (!row || (total && PyList_Append(result, row)))
            Py_CLEAR(result);
        Py_XDECREF(row);
    }
    return result;
}

static PyObject *bounds_told(const uint64_t *bounds, size_t length) {
    PyObject *result = PyTuple_New((Py_ssize_t)length);
    for (size_t i = 0; result && i < length; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(bounds[i]);
        if (!number || PyTuple_SetItem(result, (Py_ssize_t)i, number))
            Py_CLEAR(result);
    }
    return result;
}

static PyObject *bounds(PyObject *Py_UNUSED(type), PyObject *Py_UNUSED(ignored)) {
    static const uint64_t LATENCY_NS[] = {TALLY_LATENCY_NS}, BYTES[] = {TALLY_BYTES};
    return Py_BuildValue("NN", bounds_told(LATENCY_NS, TALLY_LATENCIES),
                         bounds_told(BYTES, TALLY_SIZES));
}

static PyMethodDef methods[] = {
    {"add", add, METH_VARARGS, NULL},
    {"read", read_all, METH_NOARGS, NULL},
    {"bounds", bounds, METH_NOARGS | METH_STATIC, NULL},
    {0},
};

static PyType_Slot slots[] = {
    {Py_tp_new, new_tally},
    {Py_tp_dealloc, dealloc},
    {Py_tp_methods, methods},
    {0},
};

PyType_Spec tally_spec = {
    .name = "vscsi.ring._core.Tally",
    .basicsize = sizeof(Tally),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};
