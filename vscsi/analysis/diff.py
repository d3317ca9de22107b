# SPDX-License-Identifier: MIT
"""Two analyses side by side: two captures, or two paths of one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vscsi.analysis.result import MEASURES, Analysis, CommandRow, Histogram, Latency


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of both; ratio is b over a, None without both or over nothing."""

    what: str
    """As in "READ(10)"; "all" for the whole capture."""
    figure: str
    """As in "latency p99 us"."""
    a: float | None
    b: float | None

    @property
    def ratio(self) -> float | None:
        """Return b over a."""
        return self.b / self.a if self.a and self.b is not None else None


@dataclass(frozen=True, slots=True)
class Shift:
    """How far two histograms of one measure are apart."""

    measure: str
    klass: str
    """all, read or write."""
    distance: float | None
    """The greatest difference of their cumulative shares over all bounds (Kolmogorov-Smirnov's,
    as far as buckets tell): 0 for the same shape, 1 for nothing in common; None if one is empty or
    their bounds differ."""
    a_mean: float | None
    b_mean: float | None


@dataclass(frozen=True, slots=True)
class Diff:
    """What differs; all figures are there, so that what is the same can be seen too."""

    a_name: str
    b_name: str
    a: Analysis
    b: Analysis
    differences: tuple[Difference, ...]
    shifts: tuple[Shift, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values: both analyses whole, and what differs."""
        return {
            "a_name": self.a_name,
            "b_name": self.b_name,
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            "differences": [
                {
                    "what": each.what,
                    "figure": each.figure,
                    "a": each.a,
                    "b": each.b,
                    "ratio": each.ratio,
                }
                for each in self.differences
            ],
            "shifts": [
                {
                    "measure": each.measure,
                    "class": each.klass,
                    "distance": each.distance,
                    "a_mean": each.a_mean,
                    "b_mean": each.b_mean,
                }
                for each in self.shifts
            ],
        }


def compare(a_name: str, a: Analysis, b_name: str, b: Analysis) -> Diff:
    """Return how b differs from a."""
    differences = [
        *_pairs("all", _CAPTURE, a, b),
        *_pairs("all", _ROW, a.total, b.total),
    ]
    ours = {each.name: each for each in a.commands}
    theirs = {each.name: each for each in b.commands}
    for name in dict.fromkeys([*ours, *theirs]):
        differences += _pairs(name, _ROW, ours.get(name), theirs.get(name))
    senses = {(row.key, row.asc, row.ascq): row.words for row in (*a.sense, *b.sense)}
    for key, words in senses.items():
        counts = [
            sum(row.count for row in each.sense if (row.key, row.asc, row.ascq) == key)
            for each in (a, b)
        ]
        differences.append(Difference(words, "count", counts[0], counts[1]))
    shifts = [
        Shift(measure, klass, distance(first, second), first.mean, second.mean)
        for measure in MEASURES
        for klass in ("all", "read", "write")
        for first, second in [
            (getattr(a.histograms[measure], klass), getattr(b.histograms[measure], klass))
        ]
    ]
    return Diff(a_name, b_name, a, b, tuple(differences), tuple(shifts))


def distance(a: Histogram, b: Histogram) -> float | None:
    """Return the greatest difference of cumulative shares; None where there is none."""
    if a.bounds != b.bounds or not a.count or not b.count:
        return None
    greatest, below_a, below_b = 0.0, 0, 0
    for in_a, in_b in zip(a.counts, b.counts, strict=True):
        below_a, below_b = below_a + in_a, below_b + in_b
        greatest = max(greatest, abs(below_a / a.count - below_b / b.count))
    return greatest


def _pairs(
    what: str, figures: Mapping[str, Callable[[Any], float | None]], a: object, b: object
) -> list[Difference]:
    return [
        Difference(what, name, None if a is None else figure(a), None if b is None else figure(b))
        for name, figure in figures.items()
    ]


def _rate(analysis: Analysis) -> float | None:
    return analysis.total.count / analysis.duration_s if analysis.duration_s else None


def _bandwidth(analysis: Analysis) -> float | None:
    return analysis.total.bytes / 1e6 / analysis.duration_s if analysis.duration_s else None


def _latency(name: str) -> Callable[[CommandRow], float | None]:
    def figure(row: CommandRow) -> float | None:
        latency: Latency | None = row.latency_us
        value: float | None = None if latency is None else getattr(latency, name)
        return value

    return figure


_CAPTURE: Mapping[str, Callable[[Analysis], float | None]] = {
    "duration s": lambda each: each.duration_s,
    "commands/s": _rate,
    "MB/s": _bandwidth,
    "unanswered at the end": lambda each: each.unanswered,
    "working set bytes": lambda each: each.reuse.working_set_bytes,
}
_ROW: Mapping[str, Callable[[CommandRow], float | None]] = {
    "count": lambda row: row.count,
    "bytes": lambda row: row.bytes,
    "errors": lambda row: row.errors,
    **{
        f"latency {name} us": _latency(attribute)
        for name, attribute in (
            *(("mean", "mean"), ("p50", "p50"), ("p90", "p90"), ("p99", "p99")),
            *(("p99.9", "p999"), ("max", "max")),
        )
    },
}
