# SPDX-License-Identifier: MIT
"""Counts what crosses the rings now, a window of time after another."""

import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from vscsi.analysis.columns import Columns, Ints
from vscsi.analysis.notable import Teller, answer
from vscsi.analysis.slices import USED, Counted, Slice
from vscsi.analysis.window import DiskFigures, Failure, Figures, Waiting, Window
from vscsi.capture.commands import Fate
from vscsi.capture.latency import Latencies
from vscsi.capture.sources.ours.source import RingCapture

MAX_FAILURES = 5
_AHEAD_S = 10.0
"""Commands that ended later than so long after a window are told then: the clock was set."""
_NS = 10**9


class Watch:
    """Counts the commands of a live capture: `run` in one thread, the others in another.

    Commands are told apart by when they ended, not by when they came to be known: slices of time
    that are as long as each other follow a beginning, and a window is some of them. Those that
    become known when their slice has been told are in the next that is.
    """

    def __init__(self, source: RingCapture, since_ns: int, slice_s: float) -> None:
        """Count those that end from a time on, since 1970; slice_s: how long a slice is."""
        self._source = source
        self._since_ns = since_ns
        self._until_ns: int | None = None
        self._slice_ns = round(slice_s * _NS)
        self._ahead = max(2, math.ceil(_AHEAD_S / slice_s))
        self._told = 0
        """How many slices have been."""
        self._columns = Columns()
        self._lock = threading.Lock()
        self._slices: dict[int, Slice] = {}
        self._failures: deque[Failure] = deque(maxlen=MAX_FAILURES)
        self._dropped = 0

    def run(self) -> None:
        """Count until the capture ends."""
        for batch in self._source:
            with self._lock:
                self._add(batch)

    def end(self, until_ns: int) -> None:
        """Count none that end from a time on, since 1970."""
        with self._lock:
            self._until_ns = until_ns

    def window(self, slices: int = 1) -> Window:
        """Return the next slices, whole ones."""
        first, self._told = self._told, self._told + slices
        return self._window(first, self._since_ns + self._told * self._slice_ns)

    def rest(self) -> Window:
        """Return what the windows have left until the `end`."""
        first, self._told = self._told, self._told + self._ahead + 1
        begin_ns = self._since_ns + first * self._slice_ns
        return self._window(first, max(self._until_ns or 0, begin_ns + 1))

    def _window(self, first: int, end_ns: int) -> Window:
        """Return what there is of the slices before `_told`, which begin with the first."""
        with self._lock:
            whole = Slice()
            for number in [each for each in self._slices if each < self._told]:
                whole.add(self._slices.pop(number))
            waiting = self._waiting(time.time_ns())
            failures = tuple(self._failures)
        seconds = (end_ns - self._since_ns - first * self._slice_ns) / _NS
        behind_s = max(0, end_ns - whole.latest_ns) / _NS if whole.rows else 0.0
        dropped = self._source.dropped
        lost, self._dropped = dropped - self._dropped, dropped
        names = [disk.name for disk in self._source.disks]
        by_disk: dict[int, dict[int, Counted]] = {number: {} for number in range(len(names))}
        for (disk, kind), counted in whole.rows.items():
            by_disk.setdefault(disk, {})[kind] = counted
        disks = (
            self._disk(
                names[disk] if disk < len(names) else "others",
                kinds,
                seconds,
                waiting.get(disk, _NOBODY),
            )
            for disk, kinds in by_disk.items()
        )
        return Window(end_ns, seconds, behind_s, lost, tuple(disks), failures)

    def _add(self, batch: pa.RecordBatch) -> None:
        raw = self._raw(batch)
        rows = {name: raw.column(name).to_numpy(False).astype(np.int64) for name in USED}
        ends_ns = rows["time_ns"] + np.maximum(rows["latency_ns"], 0)
        # What the capture's end leaves unanswered is no news of a window.
        over = rows["fate"] != Fate.OPEN
        if not self._told:  # later it is a clock that was set back
            over &= ends_ns >= self._since_ns
        if self._until_ns is not None:
            over &= ends_ns < self._until_ns
        numbers = (ends_ns - self._since_ns) // self._slice_ns
        numbers = np.clip(numbers, self._told, self._told + self._ahead)
        for number in np.unique(numbers[over]).tolist():
            at = np.flatnonzero(over & (numbers == number))
            part = self._slices.setdefault(number, Slice())
            part.count({name: column[at] for name, column in rows.items()}, ends_ns[at])
        for at in np.flatnonzero(over & (rows["failed"] != 0))[-MAX_FAILURES:].tolist():
            row, words = self._tell(batch, raw, at)
            disk = self._source.disks[row["disk"]].name
            self._failures.append(Failure(row["time_ns"], disk, words, answer(row)))

    def _raw(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        own = np.arange(len(self._source.channels)), np.arange(len(self._source.disks))
        return self._columns.raw(batch, self._source, 0, *own)

    def _tell(self, batch: pa.RecordBatch, raw: pa.RecordBatch, at: int) -> tuple[Any, str]:
        """Return a row's values, and its request in words."""
        row = batch.slice(at, 1).to_pylist()[0] | {"kind": raw.column("kind")[at].as_py()}
        teller = Teller(self._columns.kinds.all, self._source.disks, (), 0, 0)
        return row, teller.words(row)

    def _waiting(self, time_ns: int) -> dict[int, Waiting]:
        """Return what waits by disk."""
        batch = self._source.waiting()
        raw = self._raw(batch)
        of_disk: Ints = raw.column("disk").to_numpy()
        found = {}
        for disk in np.unique(of_disk).tolist():
            at = np.flatnonzero(of_disk == disk)
            row, words = self._tell(batch, raw, int(at[0]))
            found[disk] = Waiting(len(at), max(0, time_ns - row["time_ns"]) / 1e9, words)
        return found

    def _disk(
        self, name: str, kinds: Mapping[int, Counted], seconds: float, waiting: Waiting
    ) -> DiskFigures:
        whole = Counted()
        for each in kinds.values():
            whole.add(each)
        order = sorted(kinds.items(), key=lambda each: -each[1].count)
        return DiskFigures(
            disk=name,
            total=_figures((None, None, "all"), whole, seconds),
            commands=tuple(_figures(self._kind(kind), each, seconds) for kind, each in order),
            outstanding_mean=whole.outstanding / whole.count if whole.count else None,
            outstanding_max=whole.outstanding_max if whole.count else None,
            waiting=waiting,
        )

    def _kind(self, number: int) -> tuple[int | None, int | None, str]:
        if number < 0:
            return None, None, "others"
        kind = self._columns.kinds.all[number]
        return kind.opcode, kind.service_action, kind.name


_NOBODY = Waiting(0, None, "")


def _figures(kind: tuple[int | None, int | None, str], counted: Counted, seconds: float) -> Figures:
    latencies = Latencies()
    latencies.add(counted.latency_ns)
    return Figures(
        *kind,
        count=counted.count,
        per_s=counted.count / seconds,
        bytes_per_s=counted.bytes / seconds,
        errors=counted.errors,
        unanswered=counted.unanswered,
        latency_us=latencies.figures_us(),
    )
