# SPDX-License-Identifier: MIT
"""A served memory disk, clocks that the tests drive, and initiators that do as they are told."""

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from vscsi.target.disk import Disk
from vscsi.target.stores.memory import MemoryStore
from vscsi.transport.export import Export
from vscsi.transport.initiator import (
    Buffer,
    Command,
    InitiatorStatistics,
    ManagementCommand,
    TransportError,
)

SIZE_BYTES = 1 << 20
STEP_NS = 1000


class CountingClock:
    """A clock that goes on by one step whenever somebody looks; from any thread."""

    def __init__(self) -> None:
        self._steps = itertools.count()

    def __call__(self) -> int:
        """Return the time in ns."""
        return next(self._steps) * STEP_NS


class ScriptedInitiator:
    """An initiator that hands every command to a function of the test's."""

    def __init__(self, serve: Callable[[Command], None]) -> None:
        self.statistics = InitiatorStatistics()
        self.serve = serve
        self.allocated: list[Buffer] = []
        self.freed: list[Buffer] = []

    def alloc(self, length: int) -> Buffer:
        """Return a buffer, and remember it."""
        self.allocated.append(Buffer(memoryview(bytearray(length)), len(self.allocated) * length))
        return self.allocated[-1]

    def free(self, buffer: Buffer) -> None:
        """Remember it."""
        self.freed.append(buffer)

    def submit(self, command: Command) -> None:
        """Hand it on."""
        self.statistics.commands += 1
        self.serve(command)

    def manage(self, request: ManagementCommand) -> None:
        """Refuse."""
        raise TransportError("none of that")

    def parameters(self) -> Mapping[str, object]:
        """Return nothing."""
        return {}

    def backend_statistics(self) -> Mapping[str, object]:
        """Return nothing."""
        return {}

    def close(self) -> None:
        """Do nothing."""


class WatchedStore(MemoryStore):
    """A memory store that notes what it is asked for, fails where it is told to, and can wait."""

    def __init__(self) -> None:
        super().__init__(SIZE_BYTES)
        self.native = None  # all of it goes through here
        self.asked: list[tuple[str, int, int]] = []
        self.bad_offsets: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()

    def readv(self, offset: int, views: object) -> None:
        """Note, wait, fail or read."""
        self._ask("read", offset, views)
        super().readv(offset, views)

    def writev(self, offset: int, views: object) -> None:
        """Note, wait, fail or write."""
        self._ask("write", offset, views)
        super().writev(offset, views)

    def _ask(self, what: str, offset: int, views: object) -> None:
        self.asked.append((what, offset, sum(map(len, views))))
        assert self.gate.wait(60)
        if offset in self.bad_offsets:
            raise OSError(5, "Input/output error")


@pytest.fixture
def clock() -> CountingClock:
    """Return a clock of its own."""
    return CountingClock()


@pytest.fixture
def scripted() -> type[ScriptedInitiator]:
    """Return the class."""
    return ScriptedInitiator


@pytest.fixture
def store() -> WatchedStore:
    """Return the store below the served disk."""
    return WatchedStore()


@pytest.fixture
def served(tmp_path: Path, store: WatchedStore) -> Iterator[Path]:
    """Serve the store as LUN 0, and return the directory."""
    export = Export(tmp_path / "run", {0: Disk(store)})
    export.start()
    yield tmp_path / "run"
    export.stop()
