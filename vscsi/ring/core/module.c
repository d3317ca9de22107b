/* SPDX-License-Identifier: MIT */
/* The module: its types, the functions on grant entries, the exceptions it raises. */
#include "binding.h"
#include "grant.h"
#include "py_tap.h"
#include "ring.h"

int convert_u32(PyObject *object, void *result) {
    unsigned long long value = PyLong_AsUnsignedLongLong(object);
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError))
            return 0;
        PyErr_Clear();
        value = UINT64_MAX;
    }
    if (value > UINT32_MAX) {
        PyErr_Format(PyExc_ValueError, "%R is not an unsigned number of 32 bits", object);
        return 0;
    }
    *(uint32_t *)result = (uint32_t)value;
    return 1;
}

void free_object(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *grant_error(PyObject *module, PyObject *reference, const char *reason) {
    const struct core_state *state = PyModule_GetState(module);
    PyErr_Format(state->grant_error, "grant reference %R: %s", reference, reason);
    return NULL;
}

/* The entry of a reference that came from a peer; NULL with an exception. */
static struct grant_entry *find_entry(PyObject *module, const Py_buffer *table,
                                      PyObject *reference) {
    if ((uintptr_t)table->buf % sizeof(uint32_t)) {
        PyErr_SetString(PyExc_ValueError, "the grant table is not aligned to 4 bytes");
        return NULL;
    }
    size_t entries = (size_t)table->len / sizeof(struct grant_entry);
    unsigned long long index = PyLong_AsUnsignedLongLong(reference);
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError))
            return NULL;
        PyErr_Clear();
        index = entries;
    }
    if (index >= entries) {
        grant_error(module, reference, "it is beyond the table");
        return NULL;
    }
    return (struct grant_entry *)table->buf + index;
}

int convert_domain(PyObject *object, void *result) {
    uint32_t value;
    if (!convert_u32(object, &value))
        return 0;
    if (value > UINT16_MAX) {
        PyErr_Format(PyExc_ValueError, "%R is not a domain id", object);
        return 0;
    }
    *(uint16_t *)result = (uint16_t)value;
    return 1;
}

static PyObject *py_grant_set(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"table", "reference", "domain", "frame", "readonly", NULL};
    Py_buffer table;
    PyObject *reference;
    uint16_t domain;
    uint32_t frame;
    int readonly;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "w*OO&O&$p:grant_set", names, &table, &reference,
                                     convert_domain, &domain, convert_u32, &frame, &readonly))
        return NULL;
    struct grant_entry *entry = find_entry(module, &table, reference);
    if (entry)
        grant_set(entry, domain, frame, readonly);
    PyBuffer_Release(&table);
    return entry ? Py_NewRef(Py_None) : NULL;
}

/* Revoke the references of a sequence; append those in use to `refused`. */
static bool end_all(PyObject *module, const Py_buffer *table, PyObject *references,
                    PyObject *refused) {
    Py_ssize_t length = PySequence_Size(references);
    bool good = length >= 0;
    for (Py_ssize_t i = 0; good && i < length; i++) {
        PyObject *reference = PySequence_GetItem(references, i);
        struct grant_entry *entry = reference ? find_entry(module, table, reference) : NULL;
        good = entry && (grant_end(entry) || !PyList_Append(refused, reference));
        Py_XDECREF(reference);
    }
    return good;
}

static PyObject *py_grant_end(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"table", "references", NULL};
    Py_buffer table;
    PyObject *references;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "w*O:grant_end", names, &table, &references))
        return NULL;
    PyObject *refused = PyList_New(0);
    if (refused && !end_all(module, &table, references, refused))
        Py_CLEAR(refused);
    PyBuffer_Release(&table);
    return refused;
}

/* Module */

static PyObject *add_type(PyObject *module, PyType_Spec *spec) {
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (type && PyModule_AddType(module, (PyTypeObject *)type))
        Py_CLEAR(type);
    return type;
}

static int execute(PyObject *module) {
    struct core_state *state = PyModule_GetState(module);
    PyObject *errors = PyImport_ImportModule("vscsi.wire.errors");
    if (!errors)
        return -1;
    state->ring_error = PyObject_GetAttrString(errors, "RingError");
    state->grant_error = PyObject_GetAttrString(errors, "GrantError");
    Py_DECREF(errors);
    if (!state->ring_error || !state->grant_error)
        return -1;
    state->ring_end = (PyTypeObject *)add_type(module, &ring_end_spec);
    state->page_map = (PyTypeObject *)add_type(module, &page_map_spec);
    state->grant_access = (PyTypeObject *)add_type(module, &grant_access_spec);
    state->store = (PyTypeObject *)add_type(module, &store_spec);
    state->unit = (PyTypeObject *)add_type(module, &unit_spec);
    state->service = (PyTypeObject *)add_type(module, &service_spec);
    state->tap = (PyTypeObject *)add_type(module, &tap_spec);
    state->tap_filter = (PyTypeObject *)add_type(module, &tap_filter_spec);
    state->tally = (PyTypeObject *)add_type(module, &tally_spec);
    state->load = (PyTypeObject *)add_type(module, &load_spec);
    if (!state->ring_end || !state->page_map || !state->grant_access || !state->store ||
        !state->unit || !state->service || !state->tap || !state->tap_filter || !state->tally ||
        !state->load)
        return -1;
    if (PyModule_AddIntConstant(module, "XEN_HEADER", RING_XEN_HEADER) ||
        PyModule_AddIntConstant(module, "PAIR_HEADER", RING_PAIR_HEADER))
        return -1;
    return 0;
}

static int traverse(PyObject *module, visitproc visit, void *arg) {
    struct core_state *state = PyModule_GetState(module);
    Py_VISIT(state->ring_end);
    Py_VISIT(state->page_map);
    Py_VISIT(state->grant_access);
    Py_VISIT(state->store);
    Py_VISIT(state->unit);
    Py_VISIT(state->service);
    Py_VISIT(state->tap);
    Py_VISIT(state->tap_filter);
    Py_VISIT(state->tally);
    Py_VISIT(state->load);
    Py_VISIT(state->ring_error);
    Py_VISIT(state->grant_error);
    return 0;
}

static int clear(PyObject *module) {
    struct core_state *state = PyModule_GetState(module);
    Py_CLEAR(state->ring_end);
    Py_CLEAR(state->page_map);
    Py_CLEAR(state->grant_access);
    Py_CLEAR(state->store);
    Py_CLEAR(state->unit);
    Py_CLEAR(state->service);
    Py_CLEAR(state->tap);
    Py_CLEAR(state->tap_filter);
    Py_CLEAR(state->tally);
    Py_CLEAR(state->load);
    Py_CLEAR(state->ring_error);
    Py_CLEAR(state->grant_error);
    return 0;
}

static PyMethodDef functions[] = {
    {"grant_set", METHOD(py_grant_set), NULL},
    {"grant_end", METHOD(py_grant_end), NULL},
    {"tap_packets", METHOD(py_tap_packets), NULL},
    {0},
};

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, execute}, {0}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,  .m_name = "vscsi.ring._core", .m_size = sizeof(struct core_state),
    .m_methods = functions, .m_slots = module_slots,      .m_traverse = traverse,
    .m_clear = clear,
};

PyMODINIT_FUNC PyInit__core(void);
PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&definition); }
