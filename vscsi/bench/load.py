# SPDX-License-Identifier: MIT
"""The interface of a load generator, and what one run of it yields.

A load drives one path with one workload. `vscsi.bench.compare` knows loads alone: another
generator, or another kind of path, is another `Load`.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from vscsi.bench.workload import Offered

Clock = Callable[[], int]
"""Returns nanoseconds from any start, never less than before."""


@dataclass(slots=True)
class Run:
    """What one run of a load did. Times in ns.

    An operation is a command that ended well; others are in `errors`, by reason, and nowhere else.
    """

    elapsed_ns: int = 0
    """From the first submission to the last completion."""
    cpu_ns: int = 0
    """CPU time of the threads that submitted and completed."""
    outstanding: int = 0
    """Most commands that were submitted and not done at a time."""
    on_ring: int | None = None
    """Most requests that were on the ring at a time, up to now; None without a ring."""
    read_latencies: Counter[int] = field(default_factory=Counter)
    write_latencies: Counter[int] = field(default_factory=Counter)
    """How often each latency was seen: from submission, or when it was due, to completion."""
    late: int | None = None
    """Open loop: commands that found no free place when they were due, and were sent later."""
    unsent: int | None = None
    """Open loop: commands that were due and had found no place at the end of the run."""
    errors: Counter[str] = field(default_factory=Counter)
    failure: str | None = None
    """Why the path is of no more use; what was counted before holds."""

    @property
    def operations(self) -> int:
        """Commands that ended well."""
        return self.read_latencies.total() + self.write_latencies.total()


@dataclass(frozen=True, slots=True)
class Counters:
    """Counters of a path since it connected; None where an end does not tell."""

    frontend_notifications: int | None = None
    frontend_staged_bytes: int | None = None
    backend_notifications: int | None = None
    backend_staged_bytes: int | None = None
    backend_requests: int | None = None
    """Requests that the backend took from the ring."""
    backend_cpu_ns: int | None = None
    """CPU time of the backend's serving thread."""


class Load(Protocol):
    """Drives one path. Methods but `stop` are called one at a time, from one thread."""

    name: str
    """What the user called the path."""

    @property
    def workload(self) -> Offered:
        """What it does."""

    def run(self, duration_ns: int) -> Run:
        """Work for a while, finish what is outstanding, and tell. Does not raise for the path."""

    def stop(self) -> None:
        """End the run, and any later one, early and in order; from any thread or signal handler."""

    def counters(self) -> Counters:
        """Return the counters as they are; TransportError if an end does not answer."""

    def parameters(self) -> Mapping[str, object]:
        """Return what was negotiated."""

    def close(self) -> None:
        """Give back what the load itself holds; the path stays its owner's."""
