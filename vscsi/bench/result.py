# SPDX-License-Identifier: MIT
"""What came out of a comparison: a path's rounds, and the figures made of them."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import NamedTuple

from vscsi.bench.load import Counters, Run
from vscsi.bench.workload import Offered
from vscsi.capture.latency import Latencies

FORMAT_VERSION = 1
"""Of the JSON; raised when a key changes its meaning or goes."""


class Spread(NamedTuple):
    """A figure over the rounds."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread | None:
    """Return median, least and most; None of nothing."""
    return Spread(statistics.median(values), min(values), max(values)) if values else None


def total(values: Sequence[int | None]) -> int | None:
    """Return the sum; None of nothing, or where one is not told."""
    told = [value for value in values if value is not None]
    return sum(told) if told and len(told) == len(values) else None


@dataclass(frozen=True, slots=True)
class Round:
    """What one measured run of a path did; counters are differences over that run."""

    operations: int
    reads: int
    writes: int
    errors: int
    elapsed_s: float
    frontend_cpu_ns: int
    late: int | None
    unsent: int | None
    counters: Counters

    @property
    def operations_per_s(self) -> float:
        """Operations that ended well, a second."""
        return self.operations / self.elapsed_s if self.elapsed_s else 0.0


@dataclass(slots=True)
class PathResult:
    """Everything that was measured of one path."""

    name: str
    workload: Offered
    parameters: Mapping[str, object] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    reads: Latencies = field(default_factory=Latencies)
    writes: Latencies = field(default_factory=Latencies)
    all: Latencies = field(default_factory=Latencies)
    errors: Counter[str] = field(default_factory=Counter)
    failure: str | None = None
    outstanding: int = 0
    on_ring: int | None = None

    def take(self, run: Run, before: Counters, after: Counters) -> None:
        """Add a measured run, with the counters before and after it."""
        self.rounds.append(
            Round(
                operations=run.operations,
                reads=run.read_latencies.total(),
                writes=run.write_latencies.total(),
                errors=run.errors.total(),
                elapsed_s=run.elapsed_ns / 1e9,
                frontend_cpu_ns=run.cpu_ns,
                late=run.late,
                unsent=run.unsent,
                counters=difference(before, after),
            )
        )
        self.reads.add(run.read_latencies)
        self.writes.add(run.write_latencies)
        self.all.add(run.read_latencies)
        self.all.add(run.write_latencies)
        self.note(run)

    def note(self, run: Run) -> None:
        """Take from a run what counts even if its time does not: errors, depth, its failure."""
        self.errors += run.errors
        self.failure = self.failure or run.failure
        self.outstanding = max(self.outstanding, run.outstanding)
        self.on_ring = run.on_ring

    def total(self, counter: str) -> int | None:
        """Return a counter over all rounds, by its name in Counters; None where it is not told."""
        return total([getattr(each.counters, counter) for each in self.rounds])

    @property
    def late(self) -> int | None:
        """Commands of an open loop that were sent late for want of a place; None in a closed."""
        return total([each.late for each in self.rounds])

    @property
    def unsent(self) -> int | None:
        """Commands of an open loop that were due and never sent; None in a closed one."""
        return total([each.unsent for each in self.rounds])

    @property
    def operations(self) -> int:
        """Commands that ended well, over all rounds."""
        return sum(each.operations for each in self.rounds)

    @property
    def commands(self) -> int:
        """Commands that ended, over all rounds."""
        return self.operations + sum(each.errors for each in self.rounds)

    def per_command(self, total: float | None) -> float | None:
        """Return a total over all rounds divided by the commands of all rounds."""
        return None if total is None or not self.commands else total / self.commands

    @property
    def frontend_cpu_us(self) -> float | None:
        """CPU time of the frontend's threads a command, in us."""
        return self.per_command(sum(each.frontend_cpu_ns for each in self.rounds) / 1000)

    @property
    def backend_cpu_us(self) -> float | None:
        """CPU time of the backend's serving thread a command, in us."""
        total = self.total("backend_cpu_ns")
        return self.per_command(None if total is None else total / 1000)

    @property
    def effective_depth(self) -> int:
        """Commands that were under way at a time: no more than the ring took.

        Where a command takes several requests, so many times fewer commands fill the ring.
        """
        requests = self.per_command(self.total("backend_requests"))
        if self.on_ring is None:
            return self.outstanding
        return min(self.outstanding, math.ceil(self.on_ring / max(1.0, requests or 1.0)))

    def operations_per_s(self) -> Spread | None:
        """Return the rate over the rounds."""
        return spread([each.operations_per_s for each in self.rounds])

    def ratio_to(self, other: "PathResult") -> Spread | None:
        """Return this path's rate divided by another's, round by round."""
        pairs = zip(self.rounds, other.rounds, strict=False)
        return spread(
            [
                mine.operations_per_s / theirs.operations_per_s
                for mine, theirs in pairs
                if theirs.operations_per_s
            ]
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """A workload, where and how it was run, and what came out for each path."""

    workload: Offered
    started: str
    """ISO 8601, UTC."""
    rounds: int
    runtime_s: float
    """Measured of each path, over all rounds."""
    ramp_s: float
    """Before each round of each path, not measured."""
    machine: Mapping[str, object]
    paths: Sequence[PathResult]

    @property
    def problems(self) -> list[str]:
        """One line for each path that failed or had errors."""
        lines = [f"{path.name}: {path.failure}" for path in self.paths if path.failure]
        for path in self.paths:
            if path.errors:
                (reason, _), *_ = path.errors.most_common(1)
                lines.append(f"{path.name}: {path.errors.total()} commands failed, as in: {reason}")
        return lines

    def as_json(self) -> dict[str, object]:
        """Return everything as values of JSON; docs/bench.md says what each key means."""
        return {
            "format": "vscsi-bench",
            "version": FORMAT_VERSION,
            "started": self.started,
            "machine": dict(self.machine),
            "workload": self.workload.as_json(),
            "rounds": self.rounds,
            "runtime_s": self.runtime_s,
            "ramp_s": self.ramp_s,
            "paths": [path_json(path, self.paths[0]) for path in self.paths],
        }


def path_json(path: PathResult, first: PathResult) -> dict[str, object]:
    """Return one path's part of the JSON."""
    rate, ratio = path.operations_per_s(), path.ratio_to(first)
    megabytes = path.workload.mean_bytes / 1e6
    return {
        "path": path.name,
        "parameters": dict(path.parameters),
        "failure": path.failure,
        "errors": dict(path.errors),
        "depth": {
            "effective": path.effective_depth,
            "outstanding": path.outstanding,
            "on_ring": path.on_ring,
        },
        "operations": path.operations,
        "late": path.late,
        "unsent": path.unsent,
        "reads": path.reads.count,
        "writes": path.writes.count,
        "operations_per_s": rate and rate._asdict(),
        "megabytes_per_s": rate
        and {key: value * megabytes for key, value in rate._asdict().items()},
        "ratio_to_first": ratio and ratio._asdict(),
        "latency_us": {
            "all": path.all.figures_us(),
            "reads": path.reads.figures_us(),
            "writes": path.writes.figures_us(),
        },
        "latency_hdr": path.all.encoded(),
        "cpu_us_per_command": {"frontend": path.frontend_cpu_us, "backend": path.backend_cpu_us},
        "notifications_per_command": {
            "frontend": path.per_command(path.total("frontend_notifications")),
            "backend": path.per_command(path.total("backend_notifications")),
        },
        "staged_bytes": {
            "frontend": path.total("frontend_staged_bytes"),
            "backend": path.total("backend_staged_bytes"),
        },
        "backend_requests": path.total("backend_requests"),
        "rounds": [
            {**asdict(each), "operations_per_s": each.operations_per_s} for each in path.rounds
        ],
    }


def difference(before: Counters, after: Counters) -> Counters:
    """Return how far each counter went, None where one of the ends did not tell."""
    changes = {}
    for each in fields(Counters):
        first, last = getattr(before, each.name), getattr(after, each.name)
        changes[each.name] = None if first is None or last is None else last - first
    return Counters(**changes)
