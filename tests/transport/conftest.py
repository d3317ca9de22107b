# SPDX-License-Identifier: MIT
"""A served target, stores that can be watched and held, and frontends that say what a test says."""

import contextlib
import gc
import json
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vscsi
from vscsi.domain.keys import XenbusState, fetch, read_state, transact
from vscsi.domain.local import BACKEND_DOMAIN, LocalGuest
from vscsi.domain.toolstack import Device
from vscsi.ring import RingEnd
from vscsi.target.buffers import length
from vscsi.target.disk import Disk
from vscsi.target.stores.memory import MemoryStore
from vscsi.transport.export import Export
from vscsi.wire import blkif, mad, srp, vscsiif
from vscsi.wire.srp_ring import SlotFormat, build_slot, parse_slot

HANG_S = 30.0
"""Only to fail what hangs."""
CAPTURES = Path(__file__).parents[2] / "captures"


# What no test may leave behind


class ErrorRecords(logging.Handler):
    """Collects what is logged as an error: a fault of ours that was survived is still one."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.records = []

    def emit(self, record):
        self.records.append(self.format(record))


def open_files():
    """Return what each descriptor of this process is."""
    files = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that listed the others
            files[name] = os.readlink(f"/proc/self/fd/{name}")
    return files


def leaked(before):
    """Return descriptors beyond those before, once what nobody refers to is collected."""
    for collect in (lambda: None, gc.collect):
        collect()
        left = {name: what for name, what in open_files().items() if name not in before}
        if not left:
            break
    return left


@pytest.fixture(autouse=True)
def nothing_left():
    """No error logged, no exception in a thread, no descriptor and no thread left over."""
    handler = ErrorRecords()
    logging.getLogger().addHandler(handler)
    raised = []
    hook, threading.excepthook = threading.excepthook, raised.append
    files, threads = open_files(), set(threading.enumerate())
    yield handler.records
    threading.excepthook = hook
    logging.getLogger().removeHandler(handler)
    assert not raised
    assert not handler.records
    for thread in set(threading.enumerate()) - threads:
        # One that another thread is just starting is listed, but cannot be joined yet.
        eventually(lambda thread=thread: thread._started.is_set(), "a thread's start")
        thread.join(HANG_S)
        assert not thread.is_alive(), thread
    assert not leaked(files)


def eventually(condition, what="it"):
    """Wait for something that another thread brings about and that nothing signals."""
    end = time.monotonic() + HANG_S
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"{what} does not come about")
        time.sleep(0.001)


# Serving


class WatchedStore(MemoryStore):
    """A memory store that logs what is asked of it, and fails or waits where a test says so."""

    def __init__(self, size_bytes=1 << 20, **options):
        super().__init__(size_bytes, **options)
        self.native = None  # all of it goes through here
        self.log = []
        self.errors = {}
        """By operation: the errno to fail with."""
        self._held = set()
        self._changed = threading.Condition()
        self.inside = 0
        """Calls that are being held."""

    def hold(self, operation="read"):
        """Hold calls of an operation from now on."""
        with self._changed:
            self._held.add(operation)

    def release(self):
        """Let go of what is held."""
        with self._changed:
            self._held.clear()
            self._changed.notify_all()

    def wait_held(self, count=1):
        """Wait until as many calls are being held."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.inside >= count, HANG_S)

    def _pass(self, operation, *what):
        with self._changed:
            self.inside += 1
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: operation not in self._held, HANG_S)
            self.inside -= 1
        self.log.append((operation, *what))
        if operation in self.errors:
            raise OSError(self.errors[operation], os.strerror(self.errors[operation]))

    def readv(self, offset, views):
        self._pass("read", offset, length(views))
        super().readv(offset, views)

    def writev(self, offset, views):
        self._pass("write", offset, length(views))
        super().writev(offset, views)

    def flush(self):
        self._pass("flush")

    def discard(self, offset, length):
        self._pass("discard", offset, length)
        super().discard(offset, length)

    @property
    def content(self):
        """All bytes; writable."""
        return self._memory


class Server:
    """An Export in this process, and a look behind it."""

    def __init__(self, directory, stores, *, block_size=512, write_cache=True, **options):
        self.directory = directory
        self.stores = stores
        self.store = stores[0]
        self.disks = [
            Disk(store, block_size=block_size, identity=f"disk {n}", write_cache=write_cache)
            for n, store in enumerate(stores)
        ]
        self.export = Export(directory, dict(enumerate(self.disks)), **options)
        self.export.start()

    def connect(self, kind, options=""):
        """Connect a path; its options may also come with its kind, as in srp?queues=2."""
        kind, mark, own = kind.partition("?")
        options = options or mark + own
        return vscsi.connect(f"{kind}:{self.directory}{options}")

    def guest(self, domain):
        return self.export._guests[domain]

    def end(self, domain, kind):
        """Return a domain's (first) backend end of a kind."""
        devices = self.guest(domain).devices
        return next(each.queues.ends[0] for each in devices if each.device.kind == kind)

    def mapped(self, domain):
        return self.guest(domain).peer.grants.mapped

    def stop(self):
        for store in self.stores:
            if isinstance(store, WatchedStore):
                store.release()
        self.export.stop()


@pytest.fixture(autouse=True)
def little_memory(monkeypatch):
    """Guests with less memory are connected faster."""
    monkeypatch.setattr("vscsi.transport.srp.frontend.ARENA_BYTES", 5 << 20)
    monkeypatch.setattr("vscsi.transport.frontend.MEMORY_BYTES", 16 << 20)


@pytest.fixture
def serve(tmp_path, nothing_left):
    """Serve stores (default: one watched MiB) in a directory of their own."""
    with contextlib.ExitStack() as stack:
        count = 0

        def make(*stores, **options):
            nonlocal count
            count += 1
            server = Server(tmp_path / f"run{count}", stores or (WatchedStore(),), **options)
            stack.callback(server.stop)
            return server

        yield make


@pytest.fixture
def server(serve):
    return serve(workers=4)


@pytest.fixture(scope="session")
def watched_store():
    return WatchedStore


@pytest.fixture(scope="session", name="eventually")
def eventually_fixture():
    return eventually


@pytest.fixture(scope="session")
def capture():
    def load(name):
        text = (CAPTURES / name).read_text()
        if name.endswith(".jsonl"):
            return [json.loads(line) for line in text.splitlines()]
        return json.loads(text)

    return load


# Frontends played by a test


class RawFrontend:
    """A domain with one device whose ring, keys and grants are the test's own."""

    kind = ""
    slot_size = 0
    rings = ("ring-ref",)

    def __init__(self, directory, *, handle=0, guest=None):
        self._own_guest = guest is None
        self.guest = guest or LocalGuest(directory)
        self.memory = self.guest.memory
        self.store = self.guest.store
        self.domain = self.guest.domain
        device = Device(self.kind, self.domain, handle, BACKEND_DOMAIN)
        self.path, self.backend = device.frontend_path, device.backend_path
        self.ring = None
        self.events = None
        self.taken = deque()
        self._changed = threading.Condition()
        self._unwatch = self.store.watch(f"{self.backend}/state", self._notice)

    def _notice(self, _path):
        with self._changed:
            self._changed.notify_all()

    # xenbus

    def state(self):
        return read_state(self.store, self.backend)

    def wait(self, *states):
        """Wait until the backend is in one of these states; return which."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.state() in states, HANG_S), self.state()
        return self.state()

    def publish(self, state, keys=()):
        def body(operations):
            for key, value in dict(keys).items():
                if value is not None:
                    operations.write(f"{self.path}/{key}", value)
                elif fetch(operations, f"{self.path}/{key}") is not None:
                    operations.rm(f"{self.path}/{key}")
            operations.write(f"{self.path}/state", str(int(state)))

        transact(self.store, body)

    def error(self):
        """Return the reason that the backend published."""
        return fetch(self.store, f"{self.backend}/error")

    def published(self, key):
        return fetch(self.store, f"{self.backend}/{key}")

    def keys(self, pages=1):
        """Make rings and an event channel; return the keys that say so."""
        keys, memories = {}, []
        for name in self.rings:
            frames = self.memory.alloc(pages, contiguous=True)
            references = self.memory.grant(frames, BACKEND_DOMAIN, readonly=False)
            memories.append(self.memory.view(frames[0], pages))
            if pages == 1:
                keys[name] = str(references[0])
            else:
                keys |= {f"{name}{n}": str(each) for n, each in enumerate(references)}
                keys["ring-page-order"] = str(pages.bit_length() - 1)
        self.ring_memory = memories
        self.ring = self.make_ring(memories)
        if self.events is not None:
            self.events.close()
        self.events = self.guest.event_channel()
        self.taken.clear()
        return {**keys, "event-channel": str(self.events.port)}

    def make_ring(self, memories):
        return RingEnd.front(memories[0], self.slot_size)

    def connect(self, pages=1, **keys):
        """Connect with keys of our own beside, or instead of, the proper ones."""
        self.wait(XenbusState.INIT_WAIT)
        mine = {**self.keys(pages), **{key.replace("_", "-"): v for key, v in keys.items()}}
        self.publish(XenbusState.INITIALISED, mine)
        if self.wait(XenbusState.CONNECTED, XenbusState.CLOSING) is XenbusState.CONNECTED:
            self.publish(XenbusState.CONNECTED)
        return self

    def reopen(self):
        """Let go of a channel that the backend has closed, and be ready for another."""
        self.publish(XenbusState.CLOSED)
        self.wait(XenbusState.CLOSED, XenbusState.INIT_WAIT)
        self.publish(XenbusState.INITIALISING)
        self.wait(XenbusState.INIT_WAIT)

    # The ring

    def put(self, *slots):
        """Put messages and tell the backend."""
        for slot in slots:
            assert self.ring.put(slot)
        self.ring.publish()
        self.events.notify()

    def slots(self, count=1):
        """Wait for this many slots from the backend; fewer if the channel closes before."""
        found = []
        poll = select.poll()
        poll.register(self.events.fileno(), select.POLLIN)
        end = time.monotonic() + HANG_S
        while True:
            while self.taken and len(found) < count:
                found.append(self.taken.popleft())
            if len(found) == count:
                return found
            closed = self.state() is not XenbusState.CONNECTED
            self.taken.extend(self.ring.take())
            if self.taken or self.ring.arm():
                continue
            if closed:
                return found
            poll.poll(10)  # the event channel closes without a sign: look at the state as well
            self.events.clear()
            assert time.monotonic() < end, "the backend does not answer"

    def page(self, content=b"", *, readonly=False):
        """Allocate and grant a page; return its reference and its memory."""
        (frame,) = self.memory.alloc(1)
        (reference,) = self.memory.grant([frame], BACKEND_DOMAIN, readonly=readonly)
        view = self.memory.view(frame)
        view[: len(content)] = content
        return reference, view

    def closed(self):
        """Wait until the backend has closed the channel; return its reason."""
        self.wait(XenbusState.CLOSING, XenbusState.CLOSED)
        return self.error()

    def close(self):
        if self.events is not None:
            self.events.close()
        if self.ring is not None:
            self.ring.close()
        if self._own_guest:
            self.guest.close()


class RawSrp(RawFrontend):
    """SRP: information units and MADs in slots of 128 bytes."""

    kind = "vsrp"
    slot_size = 128
    rings = ("ring-ref", "response-ring-ref")

    def make_ring(self, memories):
        return RingEnd.pair_front(*memories, self.slot_size)

    def send(self, kind, **fields):
        self.put(build_slot(SlotFormat.SRP, srp.build_iu(kind, **fields)))

    def receive(self):
        """Return the next unit from the target, None if the channel is closed."""
        slots = self.slots()
        if not slots:
            return None
        form, unit = parse_slot(slots[0])
        return mad.parse_mad(unit) if form is SlotFormat.MAD else srp.parse_iu(unit)

    def ask(self, kind, **fields):
        self.send(kind, **fields)
        return self.receive()

    def mad(self, kind, **fields):
        self.put(build_slot(SlotFormat.MAD, mad.build_mad(kind, tag=7, **fields)))
        return self.receive()

    def login(self, **fields):
        return self.ask(
            srp.IuType.LOGIN_REQ,
            **{
                "tag": 0x10AD,
                "requested_max_it_iu_length": 124,
                "required_buffer_formats": 6,
                "initiator_port_id": b"initiator port 1",
                **fields,
            },
        )

    def region(self, handle=1, pages=4, *, readonly=False, frames=None):
        """Register memory; return its frames."""
        frames = frames or self.memory.alloc(pages, contiguous=True)
        references = self.memory.grant(frames, BACKEND_DOMAIN, readonly=readonly)
        listed = [self.page(each, readonly=True)[0] for each in mad.build_directory(references)]
        reply = self.mad(
            mad.MadType.REGISTER_REGION,
            handle=handle,
            flags=int(readonly),
            pages=len(frames),
            directory=listed,
        )
        assert reply.status == mad.MadStatus.SUCCESS
        return frames

    def command(self, cdb, tag=1, *, lun=bytes(8), **fields):
        self.send(srp.IuType.CMD, tag=tag, lun=lun, **srp.cdb_fields(cdb), **fields)

    def execute(self, cdb, tag=1, **fields):
        self.command(cdb, tag, **fields)
        return self.receive()

    def ready(self):
        """Send TEST UNIT READY until no unit attention is in the way."""
        while self.execute(bytes(6), 0xA77).status != 0:
            pass
        return self


class RawVscsiif(RawFrontend):
    """vscsiif: one page, slots of 252 bytes."""

    kind = "vscsi"
    slot_size = vscsiif.SLOT_SIZE

    def request(self, **fields):
        """Send a request and return its response, None if the channel is closed."""
        self.put(vscsiif.build_request(**fields))
        slots = self.slots()
        return vscsiif.parse_response(slots[0]) if slots else None

    def ready(self):
        """Send TEST UNIT READY until no unit attention is in the way."""
        while self.request(cdb=bytes(6), direction=3).rslt != 0:
            pass
        return self


class RawBlkif(RawFrontend):
    """blkif in any layout."""

    kind = "vbd"

    def __init__(self, directory, *, layout=blkif.X86_64, handle=51712, **options):
        self.layout = layout
        self.slot_size = layout.slot_size
        super().__init__(directory, handle=handle, **options)

    def connect(self, pages=1, **keys):
        return super().connect(pages, **{"protocol": self.layout.protocol, **keys})

    def request(self, operation, /, **fields):
        """Send a request and return its response, None if the channel is closed."""
        self.put(self.layout.build_request(operation, **fields))
        slots = self.slots()
        return self.layout.parse_response(slots[0]) if slots else None


RAW = {"srp": RawSrp, "vscsiif": RawVscsiif, "blkif": RawBlkif}


@pytest.fixture
def raw(server) -> Iterator[Callable[..., RawFrontend]]:
    """Make a frontend of our own: `raw("srp")`; attached, with nothing published yet."""
    with contextlib.ExitStack() as stack:

        def make(protocol, *, at=None, **options):
            frontend = RAW[protocol]((at or server).directory, **options)
            stack.callback(frontend.close)
            return frontend

        yield make


@pytest.fixture
def checker(server):
    """Another domain at work meanwhile: `checker()` fails unless it still gets right answers."""
    with server.connect("srp") as hba:
        lun = hba.lun(0)
        last = server.disks[0].blocks - 1

        def check():
            lun.write(last, b"other domain".ljust(512, b"."))
            assert lun.read(last, 1).startswith(b"other domain")

        yield check
        check()
