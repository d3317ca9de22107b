# SPDX-License-Identifier: MIT
"""A figure: cases of a value beside its limit, measured in turns, and held against a goal."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vscsi.bench.result import Spread

PAUSE_S = 0.05
"""Between two loops: idle rings go to sleep, and a kept off process has its turn."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a loop did in a while. Times in ns."""

    operations: int
    elapsed_ns: int
    cpu_ns: int
    """Of the thread that executes the operations: a path's backend, or the bare loop itself."""

    @property
    def rate_per_s(self) -> float:
        """Operations in a second."""
        return self.operations * 1e9 / self.elapsed_ns

    @property
    def time_us(self) -> float:
        """Time for one operation: at depth 1 its round trip."""
        return self.elapsed_ns / self.operations / 1e3

    @property
    def cpu_us(self) -> float:
        """CPU time for one operation."""
        return self.cpu_ns / self.operations / 1e3


class Probe(Protocol):
    """Something whose speed can be measured again and again."""

    def run(self, duration_s: float) -> Measured:
        """Work for a while; UnmeasurableError if that cannot be."""


class UnmeasurableError(Exception):
    """Why a figure cannot be measured here, or yet."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a value and its limit become one number, and how both are shown."""

    unit: str
    of: Callable[[Measured, Measured], float]
    shown: Callable[[Measured], float]
    shown_unit: str = " us"
    digits: str = ".2f"


RATES = Comparison(
    "ratio", lambda a, b: a.rate_per_s / b.rate_per_s, lambda a: a.rate_per_s, "/s", ",.0f"
)
TIMES = Comparison("ratio", lambda a, b: a.time_us / b.time_us, lambda a: a.time_us)
EXTRA_TIME = Comparison("us", lambda a, b: a.time_us - b.time_us, lambda a: a.time_us)
EXTRA_CPU = Comparison("us", lambda a, b: a.cpu_us - b.cpu_us, lambda a: a.cpu_us)


@dataclass(slots=True)
class Case:
    """A value and its limit, and what the rounds brought."""

    name: str
    """What distinguishes it from the figure's other cases."""
    value: Probe
    limit: Probe
    rounds: list[tuple[Measured, Measured]] = field(default_factory=list)

    def measure(self, duration_s: float) -> None:
        """Measure both, the limit first in every other round."""

        def run(probe: Probe) -> Measured:
            time.sleep(PAUSE_S)
            return probe.run(duration_s)

        if len(self.rounds) % 2:
            limit, value = run(self.limit), run(self.value)
        else:
            value, limit = run(self.value), run(self.limit)
        self.rounds.append((value, limit))


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should reach."""

    value: float
    least: bool
    """Whether it is the least; else the most."""

    def __str__(self) -> str:
        """Return it as the issues write it."""
        return f"{'>=' if self.least else '<='} {self.value:.2f}"

    def met(self, value: float) -> bool:
        """Tell whether a value reaches it."""
        return value >= self.value if self.least else value <= self.value


def at_least(value: float) -> Goal:
    """Return the goal of a figure that should be large."""
    return Goal(value, least=True)


def at_most(value: float) -> Goal:
    """Return the goal of a figure that should be small."""
    return Goal(value, least=False)


@dataclass(slots=True)
class Result:
    """A figure as it goes into figures.json; value, low and high are None if there is none."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    goal: str
    met: bool
    unit: str
    note: str


def result(name: str, how: Comparison, goal: Goal, cases: Sequence[Case]) -> Result:
    """Return median and extremes of the rounds, of the case that is worst."""

    def over(case: Case) -> Spread:
        numbers = [how.of(value, limit) for value, limit in case.rounds]
        return Spread(statistics.median(numbers), min(numbers), max(numbers))

    worst = (min if goal.least else max)(cases, key=lambda case: over(case).median)
    value, low, high = over(worst)
    ours = statistics.median(how.shown(value) for value, _ in worst.rounds)
    theirs = statistics.median(how.shown(limit) for _, limit in worst.rounds)
    note = f"{ours:{how.digits}}{how.shown_unit} against {theirs:{how.digits}}{how.shown_unit}"
    if len(cases) > 1:
        rest = (f"{case.name} {over(case).median:.2f}" for case in cases if case is not worst)
        note = f"{worst.name}: {note}; {', '.join(rest)}"
    return Result(name, value, low, high, str(goal), goal.met(value), how.unit, note)


def unmeasured(name: str, how: Comparison, goal: Goal, reason: str) -> Result:
    """Return the result of a figure that could not be measured."""
    return Result(name, None, None, None, str(goal), False, how.unit, f"not measured: {reason}")
