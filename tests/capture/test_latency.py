# SPDX-License-Identifier: MIT
"""Percentiles against the nearest rank of the sorted latencies themselves."""

import math
from collections import Counter

from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st

from vscsi.capture.latency import PERCENTILES, Latencies

TIMES = st.lists(
    st.one_of(st.integers(1, 5000), st.integers(1, 10**7), st.integers(1, 10**11)), min_size=1
)


def nearest_rank(values: list[int], thousandths: int) -> int:
    """Return the least value that so many thousandths of all do not exceed."""
    return next(
        value
        for index, value in enumerate(sorted(values), 1)
        if 1000 * index >= thousandths * len(values)
    )


@given(TIMES)
def test_percentiles_are_those_of_the_recorded_latencies(values: list[int]) -> None:
    latencies = Latencies()
    latencies.add(Counter(values))
    figures = latencies.figures_us()
    assert figures is not None
    for name, thousandths in PERCENTILES.items():
        expected = nearest_rank(values, thousandths) / 1000
        assert math.isclose(figures[name], expected, rel_tol=1e-3)
    assert figures["min"] == min(values) / 1000
    assert figures["max"] == max(values) / 1000
    assert math.isclose(figures["mean"], sum(values) / len(values) / 1000, rel_tol=1e-12)
    assert latencies.count == len(values)


@given(TIMES, TIMES)
def test_adding_in_parts_is_adding_at_once(first: list[int], second: list[int]) -> None:
    parts, whole = Latencies(), Latencies()
    parts.add(Counter(first))
    parts.add(Counter(second))
    whole.add(Counter(first + second))
    assert parts.figures_us() == whole.figures_us()


def test_figures_never_exceed_the_maximum_nor_decrease() -> None:
    latencies = Latencies()
    latencies.add({1_000_003: 10})
    figures = latencies.figures_us()
    assert figures is not None
    ranks = [figures[name] for name in (*PERCENTILES, "max")]
    assert ranks == [1000.003] * 5


def test_nothing_counted_gives_no_figures() -> None:
    assert Latencies().figures_us() is None


def test_a_latency_of_zero_and_one_beyond_an_hour_are_counted() -> None:
    latencies = Latencies()
    latencies.add({0: 1, 2**63: 1})
    figures = latencies.figures_us()
    assert figures is not None
    assert (figures["min"], figures["max"], latencies.count) == (0, 2**63 / 1000, 2)


def test_the_encoded_histogram_is_what_hdrhistogram_tools_read() -> None:
    latencies = Latencies()
    latencies.add({1000: 90, 50_000: 10})
    decoded = HdrHistogram.decode(latencies.encoded())
    assert decoded.get_total_count() == 100
    assert decoded.get_value_at_percentile(90) == decoded.get_highest_equivalent_value(1000)
