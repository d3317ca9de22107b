# SPDX-License-Identifier: MIT
"""An in-memory xenstore whose watch events go out when the test says so, and two halves on it.

The store is a model, independent of vscsi.domain.store: nodes with an owner and readers,
transactions that conflict node by node, merged watch events. `MemoryStore.hook` is called before
every operation of every client, which makes each a place where something else can happen.

The drivers map by object, not by number: every ring has reference 8, so a backend that took an
old ring for a new one is found out, however equal the keys are.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from vscsi.domain import toolstack
from vscsi.domain.base import DomainError, StoreError
from vscsi.domain.toolstack import Device
from vscsi.domain.xenbus import Backend, Frontend, XenbusState
from vscsi.wire.errors import WireError


class Killed(BaseException):
    """Unwinds the stack of a process that a test killed."""


@dataclass(frozen=True, eq=False)
class Node:
    value: str
    perms: tuple[str, ...]


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


class Operations:
    """Reads and writes as one domain, on a table of nodes."""

    def __init__(self, client: "MemoryClient", nodes: dict[str, Node]) -> None:
        self.client = client
        self.nodes = nodes
        self.accessed: set[str] = set()
        self.changed: dict[str, None] = {}

    def _nearest(self, path: str) -> Node:
        while path not in self.nodes:
            self.accessed.add(path)
            path = _parent(path)
        self.accessed.add(path)
        return self.nodes[path]

    def _check(self, path: str, rights: str) -> None:
        self.client.step()
        perms, domain = self._nearest(path).perms, self.client.domain
        mine = [p[0] for p in perms[1:] if p[1:] == str(domain)] or [perms[0][0]]
        if domain not in (0, int(perms[0][1:])) and mine[0] not in rights:
            raise StoreError("EACCES", path)

    def _get(self, path: str) -> Node:
        if path not in self.nodes:
            raise StoreError("ENOENT", path)
        return self.nodes[path]

    def _put(self, path: str, value: str) -> None:
        if path in self.nodes:
            perms = self.nodes[path].perms
        else:
            if _parent(path) not in self.nodes:
                self._put(_parent(path), "")
            perms = self.nodes[_parent(path)].perms
            if self.client.domain:
                perms = (f"n{self.client.domain}", *perms[1:])
        self.nodes[path] = Node(value, perms)
        self.accessed.add(path)
        self.changed[path] = None

    def read(self, path: str) -> str:
        self._check(path, "rb")
        value = self._get(path).value
        if not value.isascii():
            raise WireError("not text")
        return value

    def write(self, path: str, value: str) -> None:
        self._check(path, "wb")
        if path in self.client.store.full:
            raise StoreError("ENOSPC", path)
        self._put(path, value)

    def mkdir(self, path: str) -> None:
        self._check(path, "wb")
        if path not in self.nodes:
            self._put(path, "")

    def rm(self, path: str) -> None:
        self._check(path, "wb")
        self._get(path)
        for gone in [p for p in self.nodes if p == path or p.startswith(path + "/")]:
            del self.nodes[gone]
            self.accessed.add(gone)
            self.changed[gone] = None

    def directory(self, path: str) -> list[str]:
        self._check(path, "rb")
        self._get(path)
        return [p.rpartition("/")[2] for p in self.nodes if p != "/" and _parent(p) == path]

    def get_perms(self, path: str) -> list[str]:
        self._check(path, "rb")
        return list(self._get(path).perms)

    def set_perms(self, path: str, perms: Sequence[str]) -> None:
        self._check(path, "wb")
        self.nodes[path] = Node(self._get(path).value, tuple(perms))
        self.accessed.add(path)
        self.changed[path] = None


class Direct(Operations):
    """Operations outside a transaction: each one is seen at once."""

    def _put(self, path: str, value: str) -> None:
        super()._put(path, value)
        self.client.store.fire(self)

    def rm(self, path: str) -> None:
        super().rm(path)
        self.client.store.fire(self)


class MemoryClient(Direct):
    """One process's connection, as `domain`; `deliver` hands out one pending watch event."""

    def __init__(self, store: "MemoryStore", domain: int) -> None:
        super().__init__(self, store.nodes)
        self.store = store
        self.domain = domain
        self.dead = False
        self.conflicts = 0
        self.watches: dict[int, tuple[str, Callable[[str], None]]] = {}
        self.pending: dict[tuple[int, str], None] = {}

    def step(self) -> None:
        if self.store.hook is not None:
            self.store.hook(self)
        if self.dead:
            raise Killed

    @contextmanager
    def transaction(self) -> Iterator[Operations]:
        base = dict(self.store.nodes)
        operations = Operations(self, dict(base))
        yield operations
        self.step()
        nodes = self.store.nodes
        if any(nodes.get(p) is not base.get(p) for p in operations.accessed):
            self.conflicts += 1
            raise StoreError("EAGAIN")
        for path in operations.changed:
            if path in operations.nodes:
                nodes[path] = operations.nodes[path]
            else:
                nodes.pop(path, None)
        self.store.fire(operations)

    def watch(self, path: str, callback: Callable[[str], None]) -> Callable[[], None]:
        self.step()
        number = max(self.watches, default=0) + 1
        self.watches[number] = (path, callback)
        self.pending[number, path] = None

        def unwatch() -> None:
            self.watches.pop(number, None)
            self.pending = {key: None for key in self.pending if key[0] != number}

        return unwatch

    def deliver(self, which: int = 0) -> bool:
        """Deliver one of the pending events, in any order; False if there is none."""
        if not self.pending:
            return False
        number, path = list(self.pending)[which % len(self.pending)]
        del self.pending[number, path]
        self.watches[number][1](path)
        return True

    def kill(self) -> None:
        """End the process: nothing of it runs any more."""
        self.dead = True
        self.watches.clear()
        self.pending.clear()


@dataclass
class MemoryStore:
    nodes: dict[str, Node] = field(default_factory=dict)
    clients: list[MemoryClient] = field(default_factory=list)
    hook: Callable[[MemoryClient], None] | None = None
    full: set[str] = field(default_factory=set)
    """Paths that no quota is left for."""

    def __post_init__(self) -> None:
        self.nodes["/"] = Node("", ("n0",))
        for domain in range(3):
            home = f"/local/domain/{domain}"
            for path in ("/local", "/local/domain"):
                self.nodes.setdefault(path, Node("", ("n0",)))
            self.nodes[home] = Node("", (f"n{domain}" if domain == 0 else "n0", f"r{domain}"))
            self.nodes[f"{home}/error"] = Node("", (f"n{domain}",))

    def client(self, domain: int) -> MemoryClient:
        client = MemoryClient(self, domain)
        self.clients.append(client)
        return client

    def fire(self, operations: Operations) -> None:
        for path in operations.changed:
            for client in self.clients:
                for number, (watched, _) in client.watches.items():
                    if path == watched or path.startswith(watched + "/"):
                        client.pending[number, path] = None
        operations.changed = {}

    def settle(self, limit: int = 5000) -> None:
        """Deliver all events, and those that they cause; a half that never rests fails here."""
        for _ in range(limit):
            if not sum(client.deliver() for client in list(self.clients)):
                return
        pytest.fail("the halves do not come to rest")


# Both halves of a device over that store


DEVICE = Device("vbd", 1, 51712)
BACK, FRONT = DEVICE.backend_path, DEVICE.frontend_path


class Ring:
    """What a frontend grants; `owner` is the client whose memory it is."""

    def __init__(self, owner):
        self.owner = owner


class Ledger:
    """A driver's life as seen from outside: what it holds, and how often it was told what."""

    def __init__(self, world, client):
        self.world, self.client = world, client
        self.ring = None
        self.begun = self.ended = 0
        self.calls = []
        self.raises = {}

    def note(self, call):
        if self.client.dead:
            raise Killed
        self.calls.append(call)
        if call in self.raises:
            raise self.raises.pop(call)

    def begin(self):
        assert self.begun == self.ended, "connected twice without a disconnect"
        self.begun += 1

    def disconnect(self):
        self.ended += 1
        self.ring = None
        self.note("disconnect")


class BackDriver(Ledger):
    def features(self):
        self.note("features")
        return {"max-ring-page-order": "4"}

    def connect(self, frontend):
        self.begin()
        self.ring = self.world.granted.get(frontend.number("ring-ref"))
        self.note("connect")
        if self.ring is None or self.ring.owner.dead:
            raise DomainError("nothing is granted")
        return {"sectors": "2048"}

    def connected(self, frontend):
        self.note("connected")
        return {}

    def reconfigure(self, frontend):
        self.note("reconfigure")
        return {"vscsi-devs/dev-1/state": "3"}


class FrontDriver(Ledger):
    def prepare(self, backend):
        self.begin()
        backend.number("max-ring-page-order", 0, high=9)
        self.ring = self.world.granted[8] = Ring(self.client)
        self.note("prepare")
        return {"ring-ref": "8", "event-channel": "1"}

    def connect(self, backend):
        self.note("connect")
        backend.number("sectors", low=1)
        return {}

    def reconfigure(self, backend, state):
        self.note(f"reconfigure {state.name}")
        return {}


@dataclass
class Process:
    """A half, its driver and its connection: what dies together."""

    client: object
    driver: Ledger
    half: Backend | Frontend
    changes: list


class World:
    """A device with its two halves, either of which may be missing or played by the test."""

    drivers = BackDriver, FrontDriver

    def __init__(self, *, reconnect=False):
        self.store = MemoryStore()
        self.dom0 = self.store.client(0)
        self.granted = {}
        self.reconnect = reconnect
        toolstack.create(self.dom0, DEVICE)
        self.back = self.front = None

    def _process(self, kind, domain, driver, path, on_change, **options):
        client = self.store.client(domain)
        driver = driver(self, client)
        changes = []
        on_change = on_change or (lambda *change: changes.append(change))
        return Process(client, driver, kind(client, path, driver, on_change, **options), changes)

    def make_back(self, on_change=None):
        self.back = self._process(Backend, 0, BackDriver, BACK, on_change)
        return self.back

    def make_front(self, on_change=None):
        self.front = self._process(
            Frontend, 1, FrontDriver, FRONT, on_change, reconnect=self.reconnect
        )
        return self.front

    def start_back(self):
        self.make_back().half.start()

    def start_front(self):
        self.make_front().half.start()

    def grant_ring(self, reference=8):
        """Grant a ring as a frontend that the test plays."""
        self.granted[reference] = Ring(self.dom0)
        return self.granted[reference]

    def connect(self):
        self.start_back()
        self.start_front()
        self.store.settle()
        self.check_connected()
        return self

    def states(self):
        return (
            XenbusState(int(self.dom0.read(f"{BACK}/state"))),
            XenbusState(int(self.dom0.read(f"{FRONT}/state"))),
        )

    def check_connected(self):
        assert self.states() == (XenbusState.CONNECTED, XenbusState.CONNECTED)
        assert self.back.driver.ring is self.front.driver.ring is not None

    def check_released(self, *processes):
        for process in processes or (self.back, self.front):
            assert process.driver.begun == process.driver.ended
            assert process.driver.ring is None


@pytest.fixture(scope="session")
def memory_store() -> type[MemoryStore]:
    return MemoryStore


@pytest.fixture(scope="session")
def new_world() -> type[World]:
    return World


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(scope="session")
def killed() -> type[Killed]:
    return Killed
