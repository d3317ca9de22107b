# SPDX-License-Identifier: MIT
"""Order and company of commands that come with their latencies, against a naive computation."""

import itertools

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from vscsi.capture.commands import Troubles
from vscsi.capture.sources.columns import assemble
from vscsi.capture.sources.complete import InOrder, Outstanding

COMMANDS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(0, 12)), max_size=40
)
CUTS = st.lists(st.integers(0, 40), max_size=4)


def naive(commands):
    """For each, those before it of its disk that end after its time (or one before it)."""
    counts, now, seen = [], -(1 << 62), []
    for disk, time, latency in commands:
        now = max(now, time)
        counts.append(sum(1 for other, end in seen if other == disk and end > now))
        seen.append((disk, time + latency))
    return counts


def cut_up(items, cuts):
    edges = sorted({0, len(items), *(min(cut, len(items)) for cut in cuts)})
    return [items[a:b] for a, b in itertools.pairwise(edges)]


def counted(counter, commands):
    table = np.array(commands, np.int64).reshape(-1, 3)
    return counter.add(table[:, 0].astype(np.int32), table[:, 1], table[:, 2]).tolist()


@given(COMMANDS, CUTS)
def test_outstanding_is_what_a_naive_count_says(commands, cuts):
    counter = Outstanding()
    found = [count for part in cut_up(commands, cuts) for count in counted(counter, part)]
    assert found == naive(commands)


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first():
    counter = Outstanding(limit=2)
    assert counted(counter, [(0, 0, 100), (0, 1, 100), (0, 2, 50)]) == [0, 1, 2]
    assert counted(counter, [(0, 10, 1)]) == [2]
    assert counted(counter, [(0, 51, 1)]) == [1]
    assert counted(counter, [(0, 60, 1)]) == [0]  # the one that ends at 101 had been the oldest


def in_order(commands, cuts, window):
    """All rows that come out, and the notes."""
    order, batches = InOrder(window), []
    for part in cut_up(commands, cuts):
        columns = {
            "disk": np.array([row[0] for row in part]),
            "time_ns": np.array([row[1] for row in part]),
            "latency_ns": np.array([row[2] for row in part]),
        }
        batches += order.add(assemble(len(part), columns))
    batches += order.rest()
    troubles = Troubles()
    order.note(troubles)
    rows = [row for batch in batches for row in batch.to_pylist()]
    return rows, troubles


@given(COMMANDS, CUTS)
def test_rows_that_are_near_their_places_are_put_there(commands, cuts):
    rows, troubles = in_order(commands, cuts, len(commands) + 1)
    ordered = sorted(commands, key=lambda row: row[1])
    assert [(row["disk"], row["time_ns"], row["latency_ns"]) for row in rows] == ordered
    assert [row["outstanding"] for row in rows] == naive(ordered)
    assert [row["serial"] for row in rows] == list(range(len(commands)))
    assert not troubles.notes


@given(st.lists(st.integers(0, 4), max_size=60), CUTS)
def test_so_are_those_within_the_window_of_a_long_file(delays, cuts):
    commands = [(0, at + delay, 3) for at, delay in enumerate(delays)]
    rows, troubles = in_order(commands, cuts, 5)
    assert [row["time_ns"] for row in rows] == sorted(row[1] for row in commands)
    assert not troubles.notes


@given(COMMANDS, CUTS, st.integers(1, 10))
def test_no_row_is_lost_however_far_it_is_from_its_place(commands, cuts, window):
    rows, troubles = in_order(commands, cuts, window)
    found = [(row["disk"], row["time_ns"], row["latency_ns"]) for row in rows]
    assert sorted(found) == sorted(commands)
    assert [row["serial"] for row in rows] == list(range(len(commands)))
    assert [row["outstanding"] for row in rows] == naive(found)
    times = [row["time_ns"] for row in rows]
    assert bool(troubles.notes) == (times != sorted(times))


def test_a_row_without_latency_is_nobodys_company():
    order = InOrder()
    columns = {"time_ns": np.array([1, 1, 1]), "latency_ns": pa.array([None, 5, 5], pa.int64())}
    list(order.add(assemble(3, columns)))
    (batch,) = order.rest()
    assert batch.column("outstanding").to_pylist() == [0, 0, 1]
