# SPDX-License-Identifier: MIT
"""Tally: each command in one bucket of each kind, sums, and the most of the last minute."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi.ring import Tally

LATENCY_NS, SIZES = Tally.bounds()
S = 10**9
ANY = st.integers(0, 2**40) | st.sampled_from(
    [bound + step for bound in (*LATENCY_NS, *SIZES) for step in (-1, 0, 1)]
)


def naive(values, bounds):
    """Return the counts that OpenMetrics has for values: in the first bucket that is not below."""
    return tuple(
        sum(low < value <= high for value in values)
        for low, high in zip((-1, *bounds), (*bounds, 2**64), strict=True)
    )


@given(st.lists(st.tuples(st.integers(0, 2), ANY, ANY)))
def test_every_command_is_in_one_bucket_of_its_row(commands):
    tally = Tally(bytes(256), 3)
    now = time.monotonic_ns()
    for row, latency_ns, length in commands:
        tally.add(row, now, latency_ns, length)
    expected = []
    for row in range(3):
        mine = [(latency_ns, length) for at, latency_ns, length in commands if at == row]
        if mine:
            latencies, lengths = zip(*mine, strict=True)
            counts = naive(latencies, LATENCY_NS), naive(lengths, SIZES)
            expected.append((row, *counts, sum(latencies), sum(lengths), max(latencies)))
    assert tally.read() == expected


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 10**9)), min_size=1))
def test_the_most_is_of_the_last_minute(values):
    """Of at least 50 s and at most 60: what is that old may be in it or not."""
    tally = Tally(bytes(256), 1)
    now = time.monotonic_ns() // (10 * S) * 10 * S
    ages = sorted(((now - ago * S, value) for ago, value in values), key=lambda pair: pair[0])
    for at, value in ages:
        tally.add(0, max(at, 0), value, 0)
    ((_, _, _, _, _, most),) = tally.read()
    end = time.monotonic_ns()
    young = [value for at, value in ages if at > end - 50 * S]
    maybe = [value for at, value in ages if at > end - 71 * S]
    assert max(young, default=0) <= most <= max(maybe, default=0)


def test_rows_that_there_are_not_are_refused():
    tally = Tally(bytes(255) + b"\1", 2)
    with pytest.raises(ValueError, match="no such row"):
        tally.add(2, 0, 0, 0)
    for rows, count in ((bytes(255), 1), (bytes(257), 1), (bytes(255) + b"\1", 1), (bytes(256), 0)):
        with pytest.raises(ValueError, match="rows"):
            Tally(rows, count)
    with pytest.raises(ValueError, match="rows"):
        Tally(bytes(256), 257)
