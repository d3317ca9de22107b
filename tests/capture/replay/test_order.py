# SPDX-License-Identifier: MIT
"""Rows back in the order of sending, from whatever order and batches they come in."""

import itertools

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from vscsi.capture.commands import SCHEMA
from vscsi.capture.replay.order import InOrder
from vscsi.capture.sources.columns import assemble


def batches_of(serials, cuts, data=None):
    """Cut rows with these serials into batches."""
    columns = {"serial": list(serials), "time_ns": list(serials)}
    if data is not None:
        columns["data"] = pa.array([data] * len(serials), pa.binary())
    whole = assemble(len(serials), columns)
    edges = sorted({0, len(serials), *(cut % (len(serials) + 1) for cut in cuts)})
    return [whole.slice(at, end - at) for at, end in itertools.pairwise(edges)]


def serials_in(order):
    found = []
    for piece in order:
        assert piece.schema == SCHEMA
        found += piece.column("serial").to_pylist()
    return found


@given(
    st.integers(0, 400),
    st.integers(0, 30),
    st.lists(st.integers(0, 400), max_size=20),
    st.randoms(use_true_random=False),
)
def test_rows_that_are_no_further_off_than_the_window_are_sorted(count, shift, cuts, random):
    serials = sorted(range(count), key=lambda serial: serial + random.uniform(0, shift))
    order = InOrder(batches_of(serials, cuts), rows=max(shift, 1))
    assert serials_in(order) == list(range(count))
    assert order.late == 0


@given(st.permutations(range(60)), st.lists(st.integers(0, 60), max_size=9), st.integers(1, 20))
def test_late_rows_are_counted_and_none_is_lost(serials, cuts, window):
    order = InOrder(batches_of(serials, cuts), rows=window)
    found = serials_in(order)
    assert sorted(found) == list(range(60))
    behind = np.maximum.accumulate(np.array(found))
    assert order.late == sum(
        serial < most for serial, most in zip(found[1:], behind[:-1], strict=True)
    )


def test_a_row_that_ends_at_the_very_end_comes_when_it_is_read():
    serials = [*range(1, 1000), 0]
    order = InOrder(batches_of(serials, range(0, 1000, 10)), rows=16)
    found = serials_in(order)
    assert found[:900] == list(range(1, 901))
    assert order.late == 1


def test_data_bound_the_window_too():
    serials = range(64)
    batches = batches_of(serials, range(64), data=bytes(1 << 20))
    held = []

    def counted():
        for batch in batches:
            held.append(batch)
            yield batch

    order = InOrder(counted(), rows=1 << 20, size_bytes=8 << 20)
    first = next(iter(order))
    assert first.column("serial")[0].as_py() == 0
    assert len(held) <= 9
