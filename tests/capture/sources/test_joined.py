# SPDX-License-Identifier: MIT
"""Ends find their beginnings, against a naive join."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from vscsi.capture.commands import Fate
from vscsi.capture.sources.columns import assemble
from vscsi.capture.sources.joined import Joiner, Kind

EVENTS = st.lists(
    st.tuples(
        st.sampled_from([kind for kind in Kind if kind != Kind.LOSS]),
        st.tuples(st.integers(0, 1), st.integers(0, 3)),
    ),
    max_size=60,
)
CUTS = st.integers(1, 61)


def naive(events, limit):
    """All commands that end, with serial, disk, start, outstanding, fate and end; the rest."""
    waiting, over, serial, unmatched = [], [], 0, 0
    keys = []  # in the order since which something of theirs waits

    def leave(row):
        waiting.remove(row)
        if not any(other[4] == row[4] for other in waiting):
            keys.remove(row[4])

    def end(row, fate, at):
        leave(row)
        over.append((*row[:4], fate, at))

    for at, (kind, key) in enumerate(events):
        same = [row for row in waiting if row[4] == key]
        if kind is Kind.END and same:
            end(same[0], Fate.ANSWERED, at)
        elif kind is Kind.END:
            unmatched += 1
        elif kind is Kind.WITHDRAWN and same:
            leave(same[0])
        elif kind in (Kind.START, Kind.RESTART):
            if kind is Kind.RESTART and same:
                end(same[0], Fate.LOST, None)
            outstanding = sum(1 for row in waiting if row[1] == key[0])
            waiting.append((serial, key[0], at, outstanding, key))
            serial += 1
            if key not in keys:
                keys.append(key)
            if len(waiting) > limit:
                end(next(row for row in waiting if row[4] == keys[0]), Fate.LOST, None)
    return over, [(*row[:4], Fate.OPEN, None) for row in waiting], unmatched


def run(joiner, events, first):
    """Give a joiner some events, whose times are their places."""
    starts = [(key[0], first + at) for at, (kind, key) in enumerate(events) if kind <= Kind.RESTART]
    ends = np.array([first + at for at, (kind, _) in enumerate(events) if kind is Kind.END], int)
    columns = {
        "disk": np.array([disk for disk, _ in starts], int),
        "time_ns": np.array([at for _, at in starts], int),
    }
    kinds, keys = [kind for kind, _ in events], [key for _, key in events]
    return joiner.add(
        kinds, keys, assemble(len(starts), columns), {"status": np.full(len(ends), 7)}, ends
    )


def listed(batches):
    rows = []
    for row in pa.Table.from_batches(batches).to_pylist() if batches else []:
        ended = None if row["latency_ns"] is None else row["time_ns"] + row["latency_ns"]
        assert row["status"] == (7 if row["fate"] == Fate.ANSWERED else None)
        head = (row["serial"], row["disk"], row["time_ns"], row["outstanding"])
        rows.append((*head, row["fate"], ended))
    return rows


@given(EVENTS, CUTS, st.integers(1, 8))
def test_commands_are_what_a_naive_join_makes_of_the_events(events, size, limit):
    joiner, batches = Joiner(limit), []
    for first in range(0, len(events), size):
        batches += run(joiner, events[first : first + size], first)
    over, waiting, unmatched = naive(events, limit)
    assert listed(batches) == over
    assert listed(list(joiner.rest())) == waiting
    assert joiner.unmatched == unmatched


def test_what_waits_where_events_are_missing_is_lost():
    joiner = Joiner()
    key, events = (0, 1), [(Kind.START, (0, 1)), (Kind.START, (0, 2)), (Kind.START, (0, 1))]
    events += [(Kind.LOSS, ()), (Kind.LOSS, ()), (Kind.END, key)]
    rows = listed(list(run(joiner, [*events, (Kind.START, key), (Kind.END, key)], 0)))
    assert [(row[0], row[4]) for row in rows[:3]] == [(at, Fate.LOST) for at in range(3)]
    assert rows[3:] == [(3, 0, 6, 0, Fate.ANSWERED, 7)]
    assert joiner.unmatched == 1
