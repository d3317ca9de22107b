# SPDX-License-Identifier: MIT
"""Order-dependent columns equal those of loops over the rows, however the rows are cut."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analysis import naive
from tests.analysis.made import Made, row, tables
from vscsi.analysis.columns import Columns
from vscsi.analysis.features import STREAMS, Features
from vscsi.capture.commands import Fate

NAMES = {"gap": "gap_ns", "outstanding": "outstanding", "seek": "seek", "closest": "closest"}


def in_order(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return the columns of RAW of rows, in the order of sending."""
    source = Made(rows, batch_rows=max(1, len(rows)))
    numbers = np.arange(2)
    columns = Columns()
    for batch in source:
        raw = columns.raw(batch, source, 0, numbers, numbers)
        order = np.argsort(raw.column("serial").to_numpy())
        return {
            name: raw.column(name).to_numpy(zero_copy_only=False)[order]
            for name in raw.schema.names
        }
    return {}


def added(rows: list[dict[str, Any]], cuts: list[int]) -> list[dict[str, Any]]:
    """Return rows of FEATURES, added piece by piece."""
    whole = in_order(rows)
    features = Features(np.array([512, 512]))
    found = []
    edges = [0, *sorted({min(cut, len(rows)) for cut in cuts}), len(rows)]
    for start, stop in pairwise(edges):
        if stop > start:
            piece = {name: values[start:stop] for name, values in whole.items()}
            found += features.add(piece).to_pylist()
    return found


@settings(deadline=None, max_examples=80)
@given(tables(), st.lists(st.integers(0, 60), max_size=4))
def test_columns_equal_a_naive_computation(rows: list[dict[str, Any]], cuts: list[int]) -> None:
    found = added(rows, cuts)
    assert len(found) == len(rows)
    for stream in STREAMS:
        expected = naive.features(rows, stream)
        for ours, theirs, sent in zip(found, expected, rows, strict=True):
            for name, column in NAMES.items():
                value = theirs[name]
                if name == "outstanding" and stream == "all":
                    value = sent["outstanding"]
                assert ours[f"{column}_{stream}"] == value, (name, stream)
            assert ours[f"run_{stream}"] == theirs["run"]


@pytest.mark.parametrize(
    ("lba", "aligned"), [(0, 20), (1, 9), (8, 12), (24, 12), (2048, 20), (2**32, 20), (3 * 16, 13)]
)
def test_alignment_is_of_the_first_byte(lba: int, aligned: int) -> None:
    assert added([row(0, lba=lba)], [])[0]["alignment"] == aligned


def test_an_address_of_64_bits_is_far_away_and_nothing_overflows() -> None:
    rows = [row(0, lba=2**64 - 1, blocks=2**32 - 1), row(1, lba=0), row(2, lba=2**63)]
    first, second, third = added(rows, [])
    assert first["lba"] == third["lba"] == 1 << 61
    assert second["seek_all"] < -(1 << 60) < 1 << 60 < third["seek_all"]


def test_times_at_the_ends_of_64_bits_do_not_overflow() -> None:
    rows = [row(0, time_ns=-(2**63)), row(1, time_ns=2**63 - 1, latency_ns=2**63 - 1)]
    first, second = added(rows, [])
    assert first["gap_ns_all"] is None
    assert second["gap_ns_all"] == 1 << 62


def test_a_clock_that_steps_back_makes_no_gap() -> None:
    found = added([row(0, time_ns=9000), row(1, time_ns=10), row(2, time_ns=9500)], [1])
    assert [each["gap_ns_all"] for each in found] == [None, 0, 500]


def test_what_never_ends_is_found_under_way_by_all_after_it() -> None:
    rows = [row(0, fate=int(Fate.OPEN), latency_ns=None), *(row(n) for n in range(1, 5))]
    found = added(rows, [1, 2])
    assert [each["outstanding_operation"] for each in found] == [0, 1, 1, 1, 1]
