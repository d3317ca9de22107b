# SPDX-License-Identifier: MIT
"""What is counted of the commands of a slice of time, in bounded memory."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from vscsi.analysis.columns import NONE, Ints
from vscsi.capture.commands import Fate

MAX_ROWS = 1024
"""Kinds of commands, over all disks, that a slice tells apart."""
USED = ("time_ns", "disk", "kind", "moved", "failed", "fate", "outstanding", "latency_ns")
"""Columns that are looked at."""
_KEPT_BITS = 11
"""Of a latency, so that few different ones are counted: as many as `Latencies` tells apart."""
_OTHERS = (1 << 20, -1)


@dataclass(slots=True)
class Counted:
    """Figures of commands of a kind."""

    count: int = 0
    bytes: int = 0
    errors: int = 0
    unanswered: int = 0
    latency_ns: Counter[int] = field(default_factory=Counter)
    """How often each occurred."""
    outstanding: int = 0
    outstanding_max: int = 0

    def add(self, other: "Counted") -> None:
        """Add another's."""
        self.count += other.count
        self.bytes += other.bytes
        self.errors += other.errors
        self.unanswered += other.unanswered
        self.latency_ns.update(other.latency_ns)
        self.outstanding += other.outstanding
        self.outstanding_max = max(self.outstanding_max, other.outstanding_max)

    def count_rows(self, rows: Mapping[str, Ints], at: Ints) -> None:
        """Add the rows at some places of columns."""
        self.count += len(at)
        self.bytes += int(rows["moved"][at].sum())
        self.errors += int(rows["failed"][at].sum())
        self.unanswered += int((rows["fate"][at] >= Fate.ABORTED).sum())
        outstanding = rows["outstanding"][at]
        self.outstanding += int(outstanding.sum())
        self.outstanding_max = max(self.outstanding_max, int(outstanding.max()))
        latency = rows["latency_ns"][at]
        self.latency_ns.update(_different(latency[latency != NONE]))


@dataclass(slots=True)
class Slice:
    """Figures of commands by their disk and kind; of what is too much kind by kind, together."""

    rows: dict[tuple[int, int], Counted] = field(default_factory=dict)
    latest_ns: int = 0
    """When the last of them ended."""

    def count(self, rows: Mapping[str, Ints], ends_ns: Ints) -> None:
        """Add commands, of which there is one at least: the columns USED, and their ends."""
        self.latest_ns = max(self.latest_ns, int(ends_ns.max()))
        both = rows["disk"] << 16 | rows["kind"]
        for key in np.unique(both).tolist():
            self._row(divmod(key, 1 << 16)).count_rows(rows, np.flatnonzero(both == key))

    def add(self, other: "Slice") -> None:
        """Add another's."""
        self.latest_ns = max(self.latest_ns, other.latest_ns)
        for key, counted in other.rows.items():
            self._row(key).add(counted)

    def _row(self, key: tuple[int, int]) -> Counted:
        if key not in self.rows and len(self.rows) >= MAX_ROWS:
            key = _OTHERS
        return self.rows.setdefault(key, Counted())


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
