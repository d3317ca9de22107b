# SPDX-License-Identifier: MIT
"""Sets of buckets, and what options make of them."""

import pytest

from vscsi.analysis.buckets import SETS, parse
from vscsi.analysis.result import MEASURES
from vscsi.wire.errors import SetupError


@pytest.mark.parametrize("name", SETS)
def test_a_set_has_ascending_bounds_for_every_measure(name: str) -> None:
    bounds = parse([name]).bounds
    assert set(bounds) == set(MEASURES)
    for each in bounds.values():
        assert list(each) == sorted(set(each))


def test_esx_is_the_default_and_has_the_buckets_that_vscsistats_prints() -> None:
    bounds = parse().bounds
    assert bounds["latency_us"] == (1, 10, 100, 500, 1000, 5000, 15000, 30000, 50000, 100000)
    assert bounds["outstanding"] == (1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32, 64)
    assert bounds["io_length_bytes"][:6] == (512, 1024, 2048, 4095, 4096, 8191)
    assert bounds["seek_distance_blocks"][0] == -500000
    assert len(bounds["seek_distance_blocks"]) == 27


def test_numbers_are_for_all_measures_or_for_one() -> None:
    buckets = parse(["1,2,4", "latency_us=-5,50"])
    assert buckets.bounds["outstanding"] == (1, 2, 4)
    assert buckets.bounds["latency_us"] == (-5, 50)
    assert buckets.name == "1,2,4 latency_us=-5,50"


@pytest.mark.parametrize(
    "word",
    ["", "linear", "4,2", "1,1", "1,x", "latency_us=", "1" * 30, "1" + ",9" * 300],
)
def test_what_is_no_set_of_buckets_is_refused(word: str) -> None:
    with pytest.raises(SetupError, match="esx or pow2"):
        parse([word])


def test_a_measure_that_is_none_is_told_which_there_are() -> None:
    with pytest.raises(SetupError, match=r"no measure 'speed'; there is io_length_bytes, .*_us"):
        parse(["speed=1"])
