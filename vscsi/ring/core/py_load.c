/* SPDX-License-Identifier: MIT */
/* Load: a struct load and what it holds of others. */
#include "binding.h"
#include "load.h"

#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

typedef struct {
    PyObject_HEAD struct load load;
    PyObject *ring;
    Py_buffer table; /* of grants; none without a buf */
    Py_buffer list;  /* of operations; the same */
    bool running;    /* then all but stop, interrupt and the figures is refused */
} Load;

static const char RUNNING[] = "the load is running";

static const struct load_protocol *protocol_named(const char *name) {
    for (size_t i = 0; i < load_protocols_count; i++)
        if (!strcmp(load_protocols[i].name, name))
            return &load_protocols[i];
    PyErr_Format(PyExc_ValueError, "no protocol %s", name);
    return NULL;
}

static bool acceptable(const struct load *load) {
    if (load->depth && load->depth <= LOAD_MAX_DEPTH && load->blocks && load->read_percent <= 100 &&
        load->period_ns >= 0)
        return true;
    PyErr_SetString(PyExc_ValueError, "depth, blocks, read_percent or period_ns is out of range");
    return false;
}

static bool allocate(struct load *load) {
    load->place = PyMem_Calloc(load->depth, sizeof *load->place);
    load->idle = PyMem_Calloc(load->depth, sizeof *load->idle);
    load->queue = PyMem_Calloc(load->depth, sizeof *load->queue);
    if (!load->place || !load->idle || !load->queue) {
        PyErr_NoMemory();
        return false;
    }
    for (uint32_t i = 0; i < load->depth; i++)
        load->idle[load->idles++] = load->depth - 1 - i;
    return true;
}

static bool open_events(struct load *load, int incoming, int outgoing) {
    /* Of our own: who closes the others while we use them takes nothing away. */
    load->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    load->incoming = fcntl(incoming, F_DUPFD_CLOEXEC, 3);
    load->outgoing = fcntl(outgoing, F_DUPFD_CLOEXEC, 3);
    if (load->wake >= 0 && load->incoming >= 0 && load->outgoing >= 0)
        return true;
    PyErr_SetFromErrno(PyExc_OSError);
    return false;
}

static PyObject *new_load(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"ring",      "protocol", "incoming",     "outgoing",  "table",
                            "poll_ns",   "depth",    "blocks",       "step",      "at_random",
                            "mixed",     "seed",     "read_percent", "period_ns", "first_address",
                            "first_tag", NULL};
    PyTypeObject *ring_type = ((struct core_state *)PyType_GetModuleState(type))->ring_end;
    PyObject *ring, *table;
    const char *name;
    int incoming, outgoing, at_random, mixed;
    unsigned long long poll_ns, blocks, first_address, step, seed, first_tag;
    uint32_t depth, read_percent;
    double period_ns;
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "O!s$iiOKO&KKppKO&dKK:Load", names, ring_type, &ring, &name, &incoming,
            &outgoing, &table, &poll_ns, convert_u32, &depth, &blocks, &step, &at_random, &mixed,
            &seed, convert_u32, &read_percent, &period_ns, &first_address, &first_tag))
        return NULL;
    const struct load_protocol *protocol = protocol_named(name);
    if (!protocol)
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Load *self = (Load *)alloc(type, 0);
    if (!self)
        return NULL;
    struct load *load = &self->load;
    load->ring = ring_end_of(ring);
    load->protocol = protocol;
    load->poll_ns = poll_ns;
    load->depth = depth;
    load->blocks = blocks;
    load->first_address = first_address;
    load->first_tag = first_tag;
    load->step = step;
    load->at_random = at_random;
    load->mixed = mixed;
    load->random = seed;
    load->read_percent = read_percent;
    load->period_ns = period_ns;
    load->answered = LOAD_MAX_DEPTH;
    load->ended = true;
    self->ring = Py_NewRef(ring);
    if (!acceptable(load) || !allocate(load) || !open_events(load, incoming, outgoing) ||
        (table != Py_None && PyObject_GetBuffer(table, &self->table, PyBUF_WRITABLE)))
        Py_CLEAR(self);
    return (PyObject *)self;
}

static void close_fd(int *fd) {
    if (*fd > 0) /* 0 is "not there yet" */
        close(*fd);
    *fd = -1;
}

static void free_request(struct load_request *request) {
    PyMem_Free(request->slot);
    PyMem_Free(request->grant);
    *request = (struct load_request){0};
}

static void let_go_of_list(Load *self) {
    if (!self->list.buf)
        return;
    PyBuffer_Release(&self->list);
    self->list.buf = NULL;
    self->load.list = NULL;
    self->load.listed = self->load.next_block = 0;
}

/* Take over a list of operations, or None; false with an exception. */
static bool take_list(Load *self, PyObject *operations) {
    let_go_of_list(self);
    if (operations == Py_None)
        return true;
    if (PyObject_GetBuffer(operations, &self->list, PyBUF_SIMPLE))
        return false;
    if (!self->list.len || self->list.len % (Py_ssize_t)sizeof *self->load.list ||
        (uintptr_t)self->list.buf % sizeof *self->load.list) {
        let_go_of_list(self);
        PyErr_SetString(PyExc_ValueError, "operations are an array of 64-bit numbers");
        return false;
    }
    self->load.list = self->list.buf;
    self->load.listed = (uint64_t)self->list.len / sizeof *self->load.list;
    return true;
}

static void let_go(Load *self) {
    struct load *load = &self->load;
    for (uint32_t i = 0; load->place && i < load->depth; i++) {
        free_request(&load->place[i].request[0]);
        free_request(&load->place[i].request[1]);
    }
    if (self->table.buf)
        PyBuffer_Release(&self->table);
    self->table.buf = NULL;
    let_go_of_list(self);
    close_fd(&load->wake);
    close_fd(&load->incoming);
    close_fd(&load->outgoing);
    Py_CLEAR(self->ring);
}

static void dealloc(PyObject *object) {
    Load *self = (Load *)object;
    let_go(self);
    PyMem_Free(self->load.place);
    PyMem_Free(self->load.idle);
    PyMem_Free(self->load.queue);
    free_object(object);
}

/* The load to work on; NULL with an exception if it was closed, or a thread is in it. */
static struct load *open_load(PyObject *object) {
    Load *self = (Load *)object;
    if (self->running)
        PyErr_SetString(PyExc_ValueError, RUNNING);
    else if (!self->ring || !ring_end_is_open(self->ring))
        PyErr_SetString(PyExc_ValueError, "the load or its ring is closed");
    else
        return &self->load;
    return NULL;
}

/* Take over a grant that was just made, and revoke it until it is needed; false, an exception. */
static bool take_grant(Load *self, PyObject *number, struct load_grant *grant) {
    uint32_t reference;
    if (!number || !convert_u32(number, &reference))
        return false;
    if (!self->table.buf || reference >= (size_t)self->table.len / sizeof(struct grant_entry)) {
        PyErr_Format(PyExc_ValueError, "reference %R is not in the table", number);
        return false;
    }
    grant->entry = (struct grant_entry *)self->table.buf + reference;
    uint32_t access = atomic_load(&grant->entry->access);
    grant->frame = atomic_load(&grant->entry->frame);
    grant->domain = (uint16_t)(access >> 16);
    grant->readonly = access & GTF_readonly;
    if (!(access & GTF_permit_access) || !grant_end(grant->entry)) {
        PyErr_Format(PyExc_ValueError, "reference %R grants nothing, or is mapped", number);
        return false;
    }
    return true;
}

static PyObject *prepare(PyObject *object, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"place", "write", "slot", "references", NULL};
    Load *self = (Load *)object;
    struct load *load = open_load(object);
    uint32_t number;
    int write;
    const char *slot;
    Py_ssize_t length;
    PyObject *references;
    if (!load || !PyArg_ParseTupleAndKeywords(args, kwargs, "$O&py#O:prepare", names, convert_u32,
                                              &number, &write, &slot, &length, &references))
        return NULL;
    Py_ssize_t count = PySequence_Size(references);
    if (count < 0)
        return NULL;
    if (number >= load->depth || length > (Py_ssize_t)load->ring->slot_size ||
        length < load->protocol->address_at + (Py_ssize_t)sizeof(uint64_t)) {
        PyErr_SetString(PyExc_ValueError, "no such place, or no request");
        return NULL;
    }
    struct load_request request = {
        .slot = PyMem_Malloc((size_t)length),
        .length = (uint32_t)length,
        .grants = (uint32_t)count,
        .grant = PyMem_Calloc((size_t)count + 1, sizeof *request.grant),
    };
    bool good = request.slot && request.grant;
    if (good)
        memcpy(request.slot, slot, (size_t)length);
    else
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; good && i < count; i++) {
        PyObject *reference = PySequence_GetItem(references, i);
        good = take_grant(self, reference, &request.grant[i]);
        Py_XDECREF(reference);
    }
    if (!good) {
        free_request(&request);
        return NULL;
    }
    struct load_request *place = &load->place[number].request[write];
    free_request(place);
    *place = request;
    Py_RETURN_NONE;
}

static PyObject *begin(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"duration_ns", "commands", "operations", NULL};
    struct load *load = open_load(self);
    unsigned long long duration_ns, commands;
    PyObject *operations = Py_None;
    if (!load || !PyArg_ParseTupleAndKeywords(args, kwargs, "KK|$O:begin", names, &duration_ns,
                                              &commands, &operations))
        return NULL;
    if (load_outstanding(load)) {
        PyErr_SetString(PyExc_ValueError, "commands of the last run are outstanding");
        return NULL;
    }
    bool reads = load->mixed || load->read_percent || operations != Py_None;
    bool writes = load->mixed || !load->read_percent || operations != Py_None;
    for (uint32_t i = 0; i < load->depth; i++) {
        const struct load_request *request = load->place[i].request;
        if ((reads && !request[0].length) || (writes && !request[1].length)) {
            PyErr_Format(PyExc_ValueError, "place %lu is not prepared", (unsigned long)i);
            return NULL;
        }
    }
    if (!take_list((Load *)self, operations))
        return NULL;
    load_begin(load, duration_ns, commands);
    Py_RETURN_NONE;
}

static PyObject *run(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    struct load *load = open_load(self);
    enum load_event event;
    if (!load)
        return NULL;
    ((Load *)self)->running = true;
    Py_BEGIN_ALLOW_THREADS event = load_run(load);
    Py_END_ALLOW_THREADS((Load *)self)->running = false;
    switch (event) {
    case LOAD_ANSWER:
        return PyBytes_FromStringAndSize((const char *)load->slot,
                                         (Py_ssize_t)load->ring->slot_size);
    case LOAD_BROKEN:
        return ring_end_error(((Load *)self)->ring);
    case LOAD_ENDED:
    case LOAD_INTERRUPTED:
        break;
    }
    Py_RETURN_NONE;
}

static PyObject *stop(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    load_stop(&((Load *)self)->load);
    Py_RETURN_NONE;
}

static PyObject *interrupt(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    load_interrupt(&((Load *)self)->load);
    Py_RETURN_NONE;
}

static PyObject *close_load(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    if (((Load *)self)->running) {
        PyErr_SetString(PyExc_ValueError, RUNNING);
        return NULL;
    }
    let_go((Load *)self);
    Py_RETURN_NONE;
}

PyObject *histogram_told(const struct histogram *histogram) {
    PyObject *buckets = PyList_New(0);
    for (uint32_t i = 0; buckets && i < HISTOGRAM_BUCKETS; i++) {
        if (!histogram->bucket[i])
            continue;
        uint64_t last = i + 1 < HISTOGRAM_BUCKETS ? histogram_floor(i + 1) - 1 : UINT64_MAX;
        uint64_t floor = histogram_floor(i), middle = floor + (last - floor) / 2;
        PyObject *pair = Py_BuildValue("KK", (unsigned long long)middle,
                                       (unsigned long long)histogram->bucket[i]);
        if (!pair || PyList_Append(buckets, pair))
            Py_CLEAR(buckets);
        Py_XDECREF(pair);
    }
    return buckets ? Py_BuildValue("KKN", (unsigned long long)histogram->least,
                                   (unsigned long long)histogram->most, buckets)
                   : NULL;
}

static PyObject *get_latency(PyObject *self, void *write) {
    return histogram_told(&((Load *)self)->load.latency[write != NULL]);
}

static PyObject *get_elapsed_ns(PyObject *self, void *Py_UNUSED(closure)) {
    const struct load *load = &((Load *)self)->load;
    return PyLong_FromUnsignedLongLong(load->last - load->began);
}

static PyObject *get_outstanding(PyObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLong(load_outstanding(&((Load *)self)->load));
}

static PyObject *get_answered(PyObject *self, void *Py_UNUSED(closure)) {
    uint32_t answered = ((Load *)self)->load.answered;
    if (answered == LOAD_MAX_DEPTH)
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLong(answered);
}

static PyObject *get_writing(PyObject *self, void *Py_UNUSED(closure)) {
    const struct load *load = &((Load *)self)->load;
    return PyBool_FromLong(load->answered < load->depth && load->place[load->answered].write);
}

static PyObject *get_room(PyObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromLongLong(((Load *)self)->load.room);
}

static int set_room(PyObject *self, PyObject *value, void *Py_UNUSED(closure)) {
    long long room = value ? PyLong_AsLongLong(value) : 0;
    if (PyErr_Occurred())
        return -1;
    ((Load *)self)->load.room = room;
    return 0;
}

static PyObject *get_u64(PyObject *self, void *offset) {
    const unsigned char *load = (const unsigned char *)&((Load *)self)->load;
    return PyLong_FromUnsignedLongLong(*(const uint64_t *)(load + (uintptr_t)offset));
}

static PyObject *get_u32(PyObject *self, void *offset) {
    const unsigned char *load = (const unsigned char *)&((Load *)self)->load;
    return PyLong_FromUnsignedLong(*(const uint32_t *)(load + (uintptr_t)offset));
}

#define NUMBER(name, get) {#name, get, NULL, NULL, (void *)offsetof(struct load, name)}

static PyGetSetDef getset[] = {
    {"reads", get_latency, NULL, NULL, NULL},
    {"writes", get_latency, NULL, NULL, (void *)1},
    {"elapsed_ns", get_elapsed_ns, NULL, NULL, NULL},
    {"outstanding", get_outstanding, NULL, NULL, NULL},
    {"answered", get_answered, NULL, NULL, NULL},
    {"answered_write", get_writing, NULL, NULL, NULL},
    {"room", get_room, set_room, NULL, NULL},
    {"commands", get_u64, NULL, NULL, (void *)offsetof(struct load, arrivals)},
    NUMBER(late, get_u64),
    NUMBER(unsent, get_u64),
    NUMBER(notifications_sent, get_u64),
    NUMBER(notifications_received, get_u64),
    NUMBER(most_outstanding, get_u32),
    NUMBER(most_on_ring, get_u32),
    {0},
};

static PyMethodDef methods[] = {
    {"prepare", METHOD(prepare), NULL},
    {"begin", METHOD(begin), NULL},
    {"run", run, METH_NOARGS, NULL},
    {"stop", stop, METH_NOARGS, NULL},
    {"interrupt", interrupt, METH_NOARGS, NULL},
    {"close", close_load, METH_NOARGS, NULL},
    {0},
};

static PyType_Slot slots[] = {
    {Py_tp_new, new_load},
    {Py_tp_dealloc, dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {0},
};

PyType_Spec load_spec = {
    .name = "vscsi.ring._core.Load",
    .basicsize = sizeof(Load),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};
