# SPDX-License-Identifier: MIT
"""Counts what crosses the rings now, a window of time after another."""

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from vscsi.analysis.columns import NONE, Columns, Ints
from vscsi.analysis.notable import Teller, answer
from vscsi.analysis.window import DiskFigures, Failure, Figures, Waiting, Window
from vscsi.capture.commands import Fate
from vscsi.capture.latency import Latencies
from vscsi.capture.sources.ours.source import RingCapture

MAX_ROWS = 1024
"""Kinds of commands, over all disks, that a window tells apart."""
MAX_FAILURES = 5
_KEPT_BITS = 11
"""Of a latency, so that few different ones are counted: as many as `Latencies` tells apart."""
_OTHERS = (1 << 20, -1)


@dataclass(slots=True)
class _Counted:
    count: int = 0
    bytes: int = 0
    errors: int = 0
    unanswered: int = 0
    latency_ns: Counter[int] = field(default_factory=Counter)
    """How often each occurred."""
    outstanding: int = 0
    outstanding_max: int = 0

    def add(self, other: "_Counted") -> None:
        """Add another's."""
        self.count += other.count
        self.bytes += other.bytes
        self.errors += other.errors
        self.unanswered += other.unanswered
        self.latency_ns.update(other.latency_ns)
        self.outstanding += other.outstanding
        self.outstanding_max = max(self.outstanding_max, other.outstanding_max)


class Watch:
    """Counts the commands of a live capture: `run` in one thread, `window` in another."""

    def __init__(self, source: RingCapture) -> None:
        self._source = source
        self._columns = Columns()
        self._lock = threading.Lock()
        self._rows: dict[tuple[int, int], _Counted] = {}
        """By disk and kind."""
        self._failures: deque[Failure] = deque(maxlen=MAX_FAILURES)
        self._since_s = time.monotonic()
        self._dropped = 0
        self._latest_ns: int | None = None
        """When the last of the window's commands ended."""

    def run(self) -> None:
        """Count until the capture ends."""
        for batch in self._source:
            with self._lock:
                self._add(batch)

    def window(self) -> Window:
        """Return what has been counted since the last call, and begin anew."""
        time_ns = time.time_ns()
        with self._lock:
            rows, self._rows = self._rows, {}
            now_s = time.monotonic()
            waiting = self._waiting(time_ns)
            failures = tuple(self._failures)
            latest_ns, self._latest_ns = self._latest_ns, None
        seconds, self._since_s = now_s - self._since_s, now_s
        behind_s = 0.0 if latest_ns is None else max(0, time_ns - latest_ns) / 1e9
        dropped = self._source.dropped
        lost, self._dropped = dropped - self._dropped, dropped
        names = [disk.name for disk in self._source.disks]
        by_disk: dict[int, dict[int, _Counted]] = {number: {} for number in range(len(names))}
        for (disk, kind), counted in rows.items():
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
        return Window(time_ns, seconds, behind_s, lost, tuple(disks), failures)

    def _add(self, batch: pa.RecordBatch) -> None:
        raw = self._raw(batch)
        rows = {name: raw.column(name).to_numpy(False).astype(np.int64) for name in _USED}
        # What the capture's end leaves unanswered is no news of a window.
        over = rows["fate"] != Fate.OPEN
        rows = {name: column[over] for name, column in rows.items()}
        if not len(rows["disk"]):
            return
        ends_ns = rows["time_ns"] + np.maximum(rows["latency_ns"], 0)
        self._latest_ns = max(self._latest_ns or 0, int(ends_ns.max()))
        both = rows["disk"] << 16 | rows["kind"]
        for key in np.unique(both).tolist():
            self._count(divmod(key, 1 << 16), rows, np.flatnonzero(both == key))
        for at in np.flatnonzero(raw.column("failed").to_numpy(False))[-MAX_FAILURES:].tolist():
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

    def _count(self, key: tuple[int, int], rows: Mapping[str, Ints], at: Ints) -> None:
        if key not in self._rows and len(self._rows) >= MAX_ROWS:
            key = _OTHERS
        counted = self._rows.setdefault(key, _Counted())
        counted.count += len(at)
        counted.bytes += int(rows["moved"][at].sum())
        counted.errors += int(rows["failed"][at].sum())
        counted.unanswered += int((rows["fate"][at] >= Fate.ABORTED).sum())
        outstanding = rows["outstanding"][at]
        counted.outstanding += int(outstanding.sum())
        counted.outstanding_max = max(counted.outstanding_max, int(outstanding.max()))
        latency = rows["latency_ns"][at]
        counted.latency_ns.update(_different(latency[latency != NONE]))

    def _disk(
        self, name: str, kinds: Mapping[int, _Counted], seconds: float, waiting: Waiting
    ) -> DiskFigures:
        whole = _Counted()
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


_USED = ("time_ns", "disk", "kind", "moved", "failed", "fate", "outstanding", "latency_ns")
_NOBODY = Waiting(0, None, "")


def _different(latency_ns: Ints) -> dict[int, int]:
    """Return how often each latency occurs, of those between the extremes the first bits alone."""
    if not len(latency_ns):
        return {}
    values = np.maximum(latency_ns, 0)
    low, high = int(values.min()), int(values.max())
    _, bits = np.frexp(values.astype(np.float64))
    shift = np.maximum(bits - _KEPT_BITS, 0)
    rounded = values >> shift << shift
    rounded[values.argmin()], rounded[values.argmax()] = low, high
    different, counts = np.unique(np.maximum(rounded, low), return_counts=True)
    return dict(zip(different.tolist(), counts.tolist(), strict=True))


def _figures(
    kind: tuple[int | None, int | None, str], counted: _Counted, seconds: float
) -> Figures:
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
