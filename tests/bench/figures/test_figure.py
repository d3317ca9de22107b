# SPDX-License-Identifier: MIT
"""What rounds become: the median of the ratios, of the worst case, held against the goal."""

import itertools

import pytest

from vscsi.bench.figures.figure import (
    EXTRA_CPU,
    EXTRA_TIME,
    RATES,
    TIMES,
    Case,
    Measured,
    UnmeasurableError,
    at_least,
    at_most,
    result,
    unmeasured,
)


class Told:
    """A probe that says what it is told to, and when it was asked."""

    turns = itertools.count()

    def __init__(self, *operations, cpu_ns=0):
        self.asked = []
        self._measured = iter([Measured(each, 1_000_000_000, cpu_ns) for each in operations])

    def run(self, duration_s):
        self.asked.append(next(self.turns))
        return next(self._measured)


def case(values, limits, name="", **options):
    made = Case(name, Told(*values, **options), Told(*limits))
    for _ in values:
        made.measure(0)
    return made


def test_a_figure_is_the_median_of_the_ratios_within_the_rounds():
    # The medians' ratio would be 1: what disturbs a round disturbs both in it.
    found = result("f", RATES, at_least(0.5), [case([100, 10, 90], [100, 20, 45])])
    assert (found.value, found.low, found.high) == (1.0, 0.5, 2.0)
    assert found.met
    assert found.note == "90/s against 45/s"


def test_the_worst_case_is_the_figure_and_the_others_are_told():
    cases = [case([90], [100], "first"), case([80], [100], "second")]
    found = result("f", RATES, at_least(0.85), cases)
    assert found.value == 0.8
    assert not found.met
    assert found.note == "second: 80/s against 100/s; first 0.90"
    assert result("f", RATES, at_most(0.85), cases).value == 0.9


@pytest.mark.parametrize(
    ("how", "value"), [(TIMES, 2.0), (EXTRA_TIME, 1.0), (EXTRA_CPU, 0.2)], ids=str
)
def test_times_are_of_one_operation(how, value):
    cases = [case([500_000], [1_000_000], cpu_ns=100_000_000)]
    assert result("f", how, at_most(1), cases).value == pytest.approx(value)


def test_value_and_limit_take_turns_at_being_first():
    made = case([1, 1, 1, 1], [1, 1, 1, 1])
    first = [value < limit for value, limit in zip(made.value.asked, made.limit.asked, strict=True)]
    assert first == [True, False, True, False]


def test_what_cannot_be_measured_says_why_and_is_not_met():
    found = unmeasured("f", RATES, at_least(0.9), str(UnmeasurableError("no such store")))
    assert found.value is None
    assert not found.met
    assert found.goal == ">= 0.90"
    assert found.note == "not measured: no such store"
