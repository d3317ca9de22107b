/* SPDX-License-Identifier: MIT */
/* TapFilter: a struct filter for the entries of one ring's tap. One thread at a time. */
#include "py_tap.h"

#include "filter.h"

#include <stdlib.h>

typedef struct {
    PyObject_HEAD struct filter *filter;
} TapFilter;

/* Take each number of a sequence that is not None; how many, or -1 with an exception. */
static Py_ssize_t get_numbers(PyObject *sequence, uint32_t *numbers, Py_ssize_t room) {
    if (sequence == Py_None)
        return 0;
    Py_ssize_t count = PySequence_Size(sequence);
    if (count > room) {
        PyErr_Format(PyExc_ValueError, "%zd are more than %zd", count, room);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PySequence_GetItem(sequence, i);
        int good = item && convert_u32(item, &numbers[i]);
        Py_XDECREF(item);
        if (!good)
            return -1;
    }
    return count;
}

static bool get_rules(struct rules *rules, PyObject *luns, PyObject *opcodes, PyObject *lba,
                      PyObject *statuses) {
    enum { NUMBERS = 2 * RULES_MAX > 256 ? 2 * RULES_MAX : 256, NO_ACTION = 1 << 16 };
    uint32_t number[NUMBERS];
    unsigned long long first, last;
    Py_ssize_t count = get_numbers(luns, rules->lun, RULES_MAX);
    if (count < 0)
        return false;
    rules->by_lun = luns != Py_None;
    rules->luns = (uint32_t)count;
    if ((count = get_numbers(opcodes, number, RULES_MAX)) < 0)
        return false;
    rules->by_opcode = opcodes != Py_None;
    rules->opcodes = (uint32_t)count;
    for (Py_ssize_t i = 0; i < count; i++)
        rules->opcode[i] = (struct rule_opcode){
            (uint8_t)(number[i] >> 24),
            number[i] & NO_ACTION ? -1 : (int32_t)(number[i] & UINT16_MAX),
        };
    rules->by_lba = lba != Py_None;
    if (rules->by_lba && !PyArg_ParseTuple(lba, "KK:lba", &first, &last))
        return false;
    if (rules->by_lba) {
        rules->first_lba = first;
        rules->last_lba = last;
    }
    if ((count = get_numbers(statuses, number, 256)) < 0)
        return false;
    rules->by_status = statuses != Py_None;
    for (Py_ssize_t i = 0; i < count; i++)
        rules->status[number[i] % 256 / 32] |= 1u << number[i] % 32;
    return true;
}

static PyObject *new_filter(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"protocol", "layout",   "luns",   "opcodes", "operations",
                            "lba",      "statuses", "failed", NULL};
    unsigned char protocol, layout;
    unsigned int operations;
    int failed;
    PyObject *luns, *opcodes, *lba, *statuses;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "bb$OOIOOp:TapFilter", names, &protocol, &layout,
                                     &luns, &opcodes, &operations, &lba, &statuses, &failed))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    TapFilter *self = (TapFilter *)alloc(type, 0);
    if (!self)
        return NULL;
    self->filter = calloc(1, sizeof *self->filter);
    if (!self->filter || !filter_init(self->filter)) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    self->filter->protocol = protocol;
    self->filter->layout = layout;
    self->filter->rules.operations = operations;
    self->filter->rules.failed = failed;
    if (!get_rules(&self->filter->rules, luns, opcodes, lba, statuses)) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void dealloc(PyObject *self) {
    struct filter *filter = ((TapFilter *)self)->filter;
    if (filter)
        filter_free(filter);
    free(filter);
    free_object(self);
}

static PyObject *filtered(struct filter *filter, const unsigned char *entries, size_t bytes) {
    unsigned char *out = malloc(bytes + (filter->end - filter->first) + 1);
    if (!out)
        return PyErr_NoMemory();
    uint64_t kept;
    size_t written;
    Py_BEGIN_ALLOW_THREADS written =
        entries ? filter_take(filter, entries, bytes, out, &kept) : filter_end(filter, out, &kept);
    Py_END_ALLOW_THREADS PyObject *result =
        Py_BuildValue("y#K", out, (Py_ssize_t)written, (unsigned long long)kept);
    free(out);
    return result;
}

static PyObject *take(PyObject *self, PyObject *object) {
    Py_buffer entries;
    size_t count;
    if (PyObject_GetBuffer(object, &entries, PyBUF_SIMPLE))
        return NULL;
    PyObject *result = NULL;
    if (tap_entries_of(entries.buf, (size_t)entries.len, &count))
        result = filtered(((TapFilter *)self)->filter, entries.buf, (size_t)entries.len);
    else
        PyErr_SetString(PyExc_ValueError, "no entries of a tap");
    PyBuffer_Release(&entries);
    return result;
}

static PyObject *end(PyObject *self, PyObject *Py_UNUSED(nothing)) {
    return filtered(((TapFilter *)self)->filter, NULL, 0);
}

static PyObject *get_left_out(PyObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(((TapFilter *)self)->filter->left_out);
}

static PyGetSetDef getset[] = {
    {"left_out", get_left_out, NULL, NULL, NULL},
    {0},
};

static PyMethodDef methods[] = {
    {"take", take, METH_O, NULL},
    {"end", end, METH_NOARGS, NULL},
    {0},
};

static PyType_Slot slots[] = {
    {Py_tp_new, new_filter},
    {Py_tp_dealloc, dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {0},
};

PyType_Spec tap_filter_spec = {
    .name = "vscsi.ring._core.TapFilter",
    .basicsize = sizeof(TapFilter),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};
