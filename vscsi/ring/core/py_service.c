/* SPDX-License-Identifier: MIT */
/* Service: a struct service and what it holds of others. */
#include "binding.h"
#include "py_grants.h"
#include "py_tally.h"
#include "py_tap.h"
#include "py_unit.h"
#include "service.h"
#include "wait.h"

#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

typedef struct {
    PyObject_HEAD struct service service;
    PyObject *ring;
    PyObject *grants; /* NULL for None */
    PyObject *tap;
    PyObject *units[UNITS_MAX];   /* of each place */
    PyObject *tallies[UNITS_MAX]; /* the same */
    struct held_region {
        Py_ssize_t count;
        Py_buffer *buffers;
    } held[REGIONS_MAX]; /* of each region */
} Service;

static const struct protocol *const PROTOCOLS[] = {&srp_protocol, &vscsiif_protocol,
                                                   &blkif64_protocol, &blkif32_protocol};
static const char *const PROTOCOL_NAMES[] = {"srp", "vscsiif", "blkif64", "blkif32"};

/* The protocol of a name; NULL and no exception for None. */
static const struct protocol *protocol_named(PyObject *name) {
    for (size_t i = 0; name != Py_None && i < sizeof PROTOCOLS / sizeof *PROTOCOLS; i++) {
        int same =
            PyUnicode_Check(name) ? !PyUnicode_CompareWithASCIIString(name, PROTOCOL_NAMES[i]) : 0;
        if (same)
            return PROTOCOLS[i];
    }
    if (name != Py_None)
        PyErr_Format(PyExc_ValueError, "no protocol %R", name);
    return NULL;
}

static PyObject *new_service(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"ring",     "protocol", "grants", "incoming",
                            "outgoing", "poll_ns",  "tap",    NULL};
    const struct core_state *state = PyType_GetModuleState(type);
    PyObject *ring, *name, *grants, *tap;
    int incoming, outgoing;
    unsigned long long poll_ns;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O$OiiKO!:Service", names, state->ring_end,
                                     &ring, &name, &grants, &incoming, &outgoing, &poll_ns,
                                     state->tap, &tap))
        return NULL;
    if (grants != Py_None && !PyObject_TypeCheck(grants, state->grant_access)) {
        PyErr_SetString(PyExc_TypeError, "grants: a GrantAccess or None");
        return NULL;
    }
    const struct protocol *protocol = protocol_named(name);
    if (PyErr_Occurred())
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Service *self = (Service *)alloc(type, 0);
    if (!self)
        return NULL;
    struct service *service = &self->service;
    self->ring = Py_NewRef(ring);
    self->tap = Py_NewRef(tap);
    service->tap = ((Tap *)tap)->tap;
    service->ring = ring_end_of(ring);
    if (grants != Py_None) {
        self->grants = Py_NewRef(grants);
        service->grants = &((GrantAccess *)grants)->grants;
    }
    service->slot_bytes = service->ring->slot_size;
    service->protocol = protocol;
    service->poll_ns = poll_ns;
    service->place = PyMem_Calloc(UNITS_MAX, sizeof *service->place);
    size_t count = service->ring->entries < LATER_MAX ? service->ring->entries : LATER_MAX;
    struct command *commands = PyMem_Calloc(count, sizeof *commands);
    unsigned char *slots = PyMem_Calloc(count, service->slot_bytes);
    service_init(service, commands, count, slots);
    /* Of our own: who closes the others while we use them takes nothing away. */
    service->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    service->incoming = fcntl(incoming, F_DUPFD_CLOEXEC, 3);
    service->outgoing = fcntl(outgoing, F_DUPFD_CLOEXEC, 3);
    if (service->wake < 0 || service->incoming < 0 || service->outgoing < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_CLEAR(self);
    } else if (!service->place || !commands || !slots) {
        PyErr_NoMemory();
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static void close_fd(int *fd) {
    if (*fd > 0) /* 0 is "not there yet" */
        close(*fd);
    *fd = -1;
}

static void drop_region(Service *self, size_t index) {
    struct regions *regions = &self->service.regions;
    struct held_region *held = &self->held[index];
    for (Py_ssize_t i = 0; i < held->count; i++)
        PyBuffer_Release(&held->buffers[i]);
    PyMem_Free(held->buffers);
    PyMem_Free(regions->region[index].runs);
    regions->count--;
    regions->region[index] = regions->region[regions->count];
    *held = self->held[regions->count];
    self->held[regions->count] = (struct held_region){0};
}

static void let_go(Service *self) {
    if (self->ring)
        later_close(&self->service.later);
    while (self->service.regions.count)
        drop_region(self, 0);
    for (size_t i = 0; i < self->service.places; i++) {
        Py_CLEAR(self->units[i]);
        Py_CLEAR(self->tallies[i]);
    }
    self->service.places = 0;
    close_fd(&self->service.wake);
    close_fd(&self->service.incoming);
    close_fd(&self->service.outgoing);
    self->service.grants = NULL;
    Py_CLEAR(self->grants);
    Py_CLEAR(self->tap);
    Py_CLEAR(self->ring);
}

static void dealloc(PyObject *object) {
    Service *self = (Service *)object;
    let_go(self);
    PyMem_Free(self->service.place);
    PyMem_Free(self->service.commands);
    PyMem_Free(self->service.slots);
    free_object(object);
}

/* The service to work on; NULL with an exception if it was closed. */
static struct service *open_service(PyObject *self) {
    if (((Service *)self)->ring && ring_end_is_open(((Service *)self)->ring))
        return &((Service *)self)->service;
    PyErr_SetString(PyExc_ValueError, "the service is closed");
    return NULL;
}

static PyObject *run(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"native", NULL};
    struct service *service = open_service(self);
    int native;
    enum service_event event;
    if (!service || !PyArg_ParseTupleAndKeywords(args, kwargs, "$p:run", names, &native))
        return NULL;
    Py_BEGIN_ALLOW_THREADS event = service_run(service, native);
    Py_END_ALLOW_THREADS switch (event) {
    case SERVICE_MESSAGE:
        return PyBytes_FromStringAndSize((const char *)service->slot,
                                         (Py_ssize_t)service->slot_bytes);
    case SERVICE_BROKEN:
        return ring_end_error(((Service *)self)->ring);
    case SERVICE_INTERRUPTED:
        break;
    }
    Py_RETURN_NONE;
}

static PyObject *publish(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    struct service *service = open_service(self);
    if (!service)
        return NULL;
    bool good;
    Py_BEGIN_ALLOW_THREADS good = service_publish(service);
    Py_END_ALLOW_THREADS if (!good) return ring_end_error(((Service *)self)->ring);
    Py_RETURN_NONE;
}

static PyObject *interrupt(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    service_interrupt(&((Service *)self)->service);
    Py_RETURN_NONE;
}

static PyObject *unstall(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    service_unstall(&((Service *)self)->service);
    Py_RETURN_NONE;
}

/* Places */

static int convert_address(PyObject *object, void *result) {
    char *bytes;
    Py_ssize_t length;
    if (PyBytes_AsStringAndSize(object, &bytes, &length))
        return 0;
    struct place *place = result;
    if (length != sizeof place->address) {
        PyErr_Format(PyExc_ValueError, "an address of %zd bytes", length);
        return 0;
    }
    memcpy(place->address, bytes, sizeof place->address);
    return 1;
}

static struct place *find_place(struct service *service, const unsigned char *address) {
    for (size_t i = 0; i < service->places; i++)
        if (!memcmp(service->place[i].address, address, sizeof service->place->address))
            return &service->place[i];
    return NULL;
}

static PyObject *put_unit(PyObject *self, PyObject *args) {
    const struct core_state *state = PyType_GetModuleState(Py_TYPE(self));
    struct service *service = open_service(self);
    struct place wanted;
    PyObject *unit, *tally;
    if (!service || !PyArg_ParseTuple(args, "O&O!O!:put_unit", convert_address, &wanted,
                                      state->unit, &unit, state->tally, &tally))
        return NULL;
    struct place *place = find_place(service, wanted.address);
    if (!place) {
        if (service->places == UNITS_MAX) /* the others are Python's */
            Py_RETURN_NONE;
        place = &service->place[service->places++];
        memcpy(place->address, wanted.address, sizeof place->address);
    }
    size_t at = (size_t)(place - service->place);
    PyObject *old_unit = ((Service *)self)->units[at], *old_tally = ((Service *)self)->tallies[at];
    ((Service *)self)->units[at] = Py_NewRef(unit);
    ((Service *)self)->tallies[at] = Py_NewRef(tally);
    place->unit = &((Unit *)unit)->unit;
    place->tally = &((Tally *)tally)->tally;
    atomic_store(&place->attention, true);
    Py_XDECREF(old_unit);
    Py_XDECREF(old_tally);
    Py_RETURN_NONE;
}

static PyObject *clear_units(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    struct service *service = &((Service *)self)->service;
    for (size_t i = 0; i < service->places; i++) {
        Py_CLEAR(((Service *)self)->units[i]);
        Py_CLEAR(((Service *)self)->tallies[i]);
    }
    service->places = 0;
    Py_RETURN_NONE;
}

static PyObject *set_attention(PyObject *self, PyObject *args) {
    struct place wanted;
    int attention;
    if (!PyArg_ParseTuple(args, "O&p:set_attention", convert_address, &wanted, &attention))
        return NULL;
    struct place *place = find_place(&((Service *)self)->service, wanted.address);
    if (place)
        atomic_store(&place->attention, attention);
    Py_RETURN_NONE;
}

/* Regions */

static PyObject *add_region(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"handle", "runs", "readonly", NULL};
    struct service *service = open_service(self);
    PyObject *sequence;
    uint32_t handle;
    int readonly;
    if (!service || !PyArg_ParseTupleAndKeywords(args, kwargs, "O&O$p:add_region", names,
                                                 convert_u32, &handle, &sequence, &readonly))
        return NULL;
    Py_ssize_t count = PySequence_Size(sequence);
    size_t index = service->regions.count;
    if (count < 0)
        return NULL;
    if (index == REGIONS_MAX || !count) {
        PyErr_SetString(PyExc_ValueError, "no memory, or too many regions");
        return NULL;
    }
    struct region *region = &service->regions.region[index];
    struct held_region *held = &((Service *)self)->held[index];
    *region = (struct region){.handle = handle, .readonly = readonly, .count = (size_t)count};
    *held = (struct held_region){0};
    region->runs = PyMem_Calloc((size_t)count, sizeof *region->runs);
    held->buffers = PyMem_Calloc((size_t)count, sizeof *held->buffers);
    service->regions.count++;
    bool good = region->runs && held->buffers;
    if (!good)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; good && i < count; i++) {
        PyObject *run = PySequence_GetItem(sequence, i);
        Py_buffer *view = &held->buffers[i];
        good = run && !PyObject_GetBuffer(run, view, readonly ? PyBUF_SIMPLE : PyBUF_WRITABLE);
        Py_XDECREF(run);
        if (good) {
            held->count++;
            region->runs[i] = (struct run){.start = region->size, .base = view->buf};
            region->size += (uint64_t)view->len;
        }
    }
    if (!good) {
        drop_region((Service *)self, index);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *remove_region(PyObject *self, PyObject *number) {
    struct regions *regions = &((Service *)self)->service.regions;
    uint32_t handle;
    if (!convert_u32(number, &handle))
        return NULL;
    for (size_t i = 0; i < regions->count; i++) {
        if (regions->region[i].handle == handle) {
            drop_region((Service *)self, i);
            break;
        }
    }
    Py_RETURN_NONE;
}

static PyObject *close_service(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    let_go((Service *)self);
    Py_RETURN_NONE;
}

static PyObject *get_number(PyObject *self, void *offset) {
    const unsigned char *service = (const unsigned char *)&((Service *)self)->service;
    const _Atomic uint64_t *number = (const _Atomic uint64_t *)(service + (uintptr_t)offset);
    return PyLong_FromUnsignedLongLong(atomic_load_explicit(number, memory_order_relaxed));
}

static PyObject *get_taken_ns(PyObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(((Service *)self)->service.message_ns);
}

static PyObject *get_in_flight(PyObject *self, void *Py_UNUSED(closure)) {
    const struct service *service = &((Service *)self)->service;
    return PyLong_FromUnsignedLong(atomic_load_explicit(&service->in_flight, memory_order_relaxed));
}

static int set_others(PyObject *self, PyObject *value, void *Py_UNUSED(closure)) {
    return value && convert_u32(value, &((Service *)self)->service.others) ? 0 : -1;
}

static PyObject *get_others(PyObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLong(((Service *)self)->service.others);
}

static PyObject *get_most_in_flight(PyObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(
        peak_read(&((Service *)self)->service.most_in_flight, now_ns()));
}

#define COUNTER(name) {#name, get_number, NULL, NULL, (void *)offsetof(struct service, name)}

static PyObject *get_shown(PyObject *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(((Service *)self)->service.shown);
}

static PyObject *get_position(PyObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLong(((Service *)self)->service.position);
}

static PyObject *get_waiting(PyObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLong(((Service *)self)->service.batch);
}

static PyObject *get_counting(PyObject *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(((Service *)self)->service.counting);
}

static int set_counting(PyObject *self, PyObject *value, void *Py_UNUSED(closure)) {
    int counting = value ? PyObject_IsTrue(value) : 0;
    if (counting >= 0)
        ((Service *)self)->service.counting = counting;
    return counting < 0 ? -1 : 0;
}

/* By operation, of those that there were: latency in ns, and size in bytes. */
static PyObject *get_histograms(PyObject *self, void *Py_UNUSED(closure)) {
    static const char *const NAMES[OPERATIONS] = {OPERATION_NAMES};
    const struct service_histograms *all = &((Service *)self)->service.histograms;
    PyObject *result = PyDict_New();
    for (int i = 0; result && i < OPERATIONS; i++) {
        if (all->latency_ns[i].least > all->latency_ns[i].most)
            continue;
        PyObject *pair = Py_BuildValue("NN", histogram_told(&all->latency_ns[i]),
                                       histogram_told(&all->bytes[i]));
        if (!pair || PyDict_SetItemString(result, NAMES[i], pair))
            Py_CLEAR(result);
        Py_XDECREF(pair);
    }
    return result;
}

static PyGetSetDef getset[] = {
    {"counting", get_counting, set_counting, NULL, NULL},
    {"histograms", get_histograms, NULL, NULL, NULL},
    {"shown", get_shown, NULL, NULL, NULL},
    {"position", get_position, NULL, NULL, NULL},
    {"waiting", get_waiting, NULL, NULL, NULL},
    {"taken_ns", get_taken_ns, NULL, NULL, NULL},
    {"in_flight", get_in_flight, NULL, NULL, NULL},
    {"others", get_others, set_others, NULL, NULL},
    {"most_in_flight", get_most_in_flight, NULL, NULL, NULL},
    COUNTER(executed),
    COUNTER(deferred),
    COUNTER(notifications_sent),
    COUNTER(notifications_received),
    {0},
};

static PyMethodDef methods[] = {
    {"run", METHOD(run), NULL},
    {"publish", publish, METH_NOARGS, NULL},
    {"interrupt", interrupt, METH_NOARGS, NULL},
    {"unstall", unstall, METH_NOARGS, NULL},
    {"put_unit", put_unit, METH_VARARGS, NULL},
    {"clear_units", clear_units, METH_NOARGS, NULL},
    {"set_attention", set_attention, METH_VARARGS, NULL},
    {"add_region", METHOD(add_region), NULL},
    {"remove_region", remove_region, METH_O, NULL},
    {"close", close_service, METH_NOARGS, NULL},
    {0},
};

static PyType_Slot slots[] = {
    {Py_tp_new, new_service},
    {Py_tp_dealloc, dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, getset},
    {0},
};

PyType_Spec service_spec = {
    .name = "vscsi.ring._core.Service",
    .basicsize = sizeof(Service),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};
