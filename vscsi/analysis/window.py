# SPDX-License-Identifier: MIT
"""What crossed the rings within a window of time, as values; `vscsi top --json` is `to_json`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figures:
    """Commands that came to their ends within a window."""

    opcode: int | None
    service_action: int | None
    name: str
    count: int
    per_s: float
    bytes_per_s: float
    errors: int
    """Refused with a status, or not executed."""
    unanswered: int
    """Aborted, or their answers were lost."""
    latency_us: Mapping[str, float] | None
    """mean, min, p50, p90, p99, p99.9 and max, to 1 in 1000; None without answers."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Commands without an answer, when the window was told: a little after its end."""

    count: int
    oldest_s: float | None
    oldest: str
    """In words; empty without any."""


@dataclass(frozen=True, slots=True)
class DiskFigures:
    """One logical unit within a window."""

    disk: str
    total: Figures
    commands: tuple[Figures, ...]
    """Most frequent first."""
    outstanding_mean: float | None
    """As the window's commands found it when they were sent, themselves not counted."""
    outstanding_max: int | None
    waiting: Waiting


@dataclass(frozen=True, slots=True)
class Failure:
    """A command that failed, in words."""

    time_ns: int
    disk: str
    words: str
    answer: str


@dataclass(frozen=True, slots=True)
class Window:
    """A window of time: commands are in that in which they ended."""

    time_ns: int
    """Its end, since 1970."""
    seconds: float
    """How long it is: all that its rates are over."""
    behind_s: float
    """How long before its end the last of its commands ended: by so much, or less, it is late.
    Much, if neither the server nor this process has the time to keep up."""
    dropped: int
    """Messages that the server had to leave out since the window before was told."""
    disks: tuple[DiskFigures, ...]
    failures: tuple[Failure, ...]
    """The newest, oldest first; of windows before, too."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)
