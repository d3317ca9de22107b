# SPDX-License-Identifier: MIT
"""What the block layer's traces say of commands, as arrays, sorted by time on disk if need be."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from enum import IntEnum, IntFlag
from typing import IO, Any

import numpy as np
import numpy.typing as npt

EVENT = np.dtype(
    [
        ("time_ns", np.int64),
        ("sector", np.uint64),
        ("device", np.uint32),
        ("bytes", np.uint32),
        ("category", np.uint16),
        ("action", np.uint8),
        ("cdb_length", np.uint8),
        ("error", np.int16),
        ("cdb", np.uint8, 16),
    ],
    align=True,
)
"""One event of a command: an Action, a Category, an errno or 0, and of SCSI pass-through a CDB."""
RUN_EVENTS = 1 << 20
"""Events that are sorted in memory, and that a merge holds."""
Events = npt.NDArray[Any]


class Action(IntEnum):
    """What happened (linux/blktrace_api.h); the others are steps on the way between these."""

    QUEUE = 1
    REQUEUE = 6
    ISSUE = 7
    COMPLETE = 8


class Category(IntFlag):
    """To what it happened."""

    READ = 1 << 0
    WRITE = 1 << 1
    FLUSH = 1 << 2
    PC = 1 << 9
    NOTIFY = 1 << 10
    DISCARD = 1 << 13
    FUA = 1 << 15


_EMPTY = np.uint16(Category.FLUSH | Category.PC)
"""What may have no bytes."""


class Sorted:
    """Events of any order, in that of their times: a trace has one stream a CPU.

    What does not fit into RUN_EVENTS goes to a temporary file, one sorted run after the other. Of
    devices that have ISSUE events, QUEUE and its completion are left out: they count only where
    there is no driver's queue (device mapper, md).
    """

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._parts: list[Events] = []
        self._count = 0
        self._file: IO[bytes] | None = None
        self._runs: list[int] = []
        """Events in each run of the file."""
        self._issuing = np.zeros(0, np.uint32)

    def add(self, events: Events) -> None:
        """Take events."""
        issued = np.unique(events["device"][events["action"] == Action.ISSUE])
        # So many devices are none of a machine, but of a hostile file.
        self._issuing = np.union1d(self._issuing, issued)[: 1 << 16]
        events = self._wanted(events)
        self._parts.append(events)
        self._count += len(events)
        if self._count >= RUN_EVENTS:
            self._spill()

    def __iter__(self) -> Iterator[Events]:
        """Yield all events, some at a time; nothing can be added any more."""
        if self._file is None:
            yield self._wanted(self._run())
            return
        self._spill()
        yield from (self._wanted(events) for events in self._merged())

    def _wanted(self, events: Events) -> Events:
        steps = events["action"] == Action.QUEUE
        # A flush without data ends a second time, as what was queued; an error first ends nothing.
        empty = (events["action"] == Action.COMPLETE) & (events["bytes"] == 0)
        steps |= empty & (events["category"] & _EMPTY == 0)
        wanted: Events = events[~(steps & np.isin(events["device"], self._issuing))]
        return wanted

    def _run(self) -> Events:
        """Return what was added last, sorted."""
        events = np.concatenate(self._parts) if self._parts else np.zeros(0, EVENT)
        self._parts, self._count = [], 0
        return _by_time(events)

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
            self._stack.callback(self._file.close)
        run = self._run()
        self._file.write(run.tobytes())
        self._runs.append(len(run))

    def _merged(self) -> Iterator[Events]:
        """Merge the runs: what is not later than any run's next unread event can go."""
        piece = max(1, RUN_EVENTS // len(self._runs))
        starts = np.cumsum([0, *self._runs[:-1]]).tolist()
        left = list(self._runs)
        heads = [np.zeros(0, EVENT) for _ in self._runs]
        while True:
            for run, head in enumerate(heads):
                if not len(head) and left[run]:
                    heads[run] = self._read(starts[run], min(piece, left[run]))
                    starts[run] += len(heads[run])
                    left[run] -= len(heads[run])
            if not any(len(head) for head in heads):
                return
            until = min(
                (int(head["time_ns"][-1]) for run, head in enumerate(heads) if left[run]),
                default=np.iinfo(np.int64).max,
            )
            ready = []
            for run, head in enumerate(heads):
                cut = int(np.searchsorted(head["time_ns"], until, side="right"))
                ready.append(head[:cut])
                heads[run] = head[cut:]
            events = np.concatenate(ready)
            yield _by_time(events)

    def _read(self, start: int, count: int) -> Events:
        if self._file is None:
            return np.zeros(0, EVENT)
        self._file.seek(start * EVENT.itemsize)
        return np.frombuffer(self._file.read(count * EVENT.itemsize), EVENT)


def _by_time(events: Events) -> Events:
    time_ns = events["time_ns"]
    if np.all(time_ns[1:] >= time_ns[:-1]):
        return events
    ordered: Events = events[np.argsort(time_ns, kind="stable")]
    return ordered
