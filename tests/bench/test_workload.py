# SPDX-License-Identifier: MIT
"""Which operations a workload is made of."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi.bench.workload import MODES, Workload

BLOCK = 4096


def workload(mode: str, *, blocks: int = 16, offset: int = 0, **rest: int) -> Workload:
    return Workload(mode, BLOCK, 4, offset * BLOCK, blocks * BLOCK, **rest)


@given(blocks=st.integers(1, 40), offset=st.integers(0, 9), tail=st.integers(0, BLOCK - 1))
@pytest.mark.parametrize("mode", ["read", "write", "rw"])
def test_sequential_operations_cover_the_range_in_order_and_begin_again(
    mode: str, blocks: int, offset: int, tail: int
) -> None:
    work = Workload(mode, BLOCK, 1, offset * BLOCK, blocks * BLOCK + tail)
    offsets = [at for _, at in islice(work.operations(), 2 * blocks)]
    once = [(offset + block) * BLOCK for block in range(blocks)]
    assert offsets == once + once


@given(blocks=st.integers(1, 40), offset=st.integers(0, 9), seed=st.integers(0, 99))
@pytest.mark.parametrize("mode", ["randread", "randwrite", "randrw"])
def test_random_operations_are_aligned_and_stay_in_the_range(
    mode: str, blocks: int, offset: int, seed: int
) -> None:
    work = workload(mode, blocks=blocks, offset=offset, seed=seed)
    for _, at in islice(work.operations(), 100):
        assert at % BLOCK == 0
        assert offset * BLOCK <= at <= (offset + blocks - 1) * BLOCK


def test_random_operations_reach_every_block_about_equally_often() -> None:
    counts = [0] * 16
    for _, at in islice(workload("randread").operations(), 16000):
        counts[at // BLOCK] += 1
    chi_squared = sum((count - 1000) ** 2 / 1000 for count in counts)
    assert chi_squared < 37.7  # 15 degrees of freedom, 0.1 %; the seed is fixed


@pytest.mark.parametrize("percent", [0, 1, 30, 50, 70, 99, 100])
@pytest.mark.parametrize("mode", ["rw", "randrw"])
def test_the_mix_has_its_share_of_reads(mode: str, percent: int) -> None:
    number = 20000
    operations = islice(workload(mode, read_percent=percent).operations(), number)
    reads = sum(not write for write, _ in operations)
    share = percent / 100
    assert abs(reads - number * share) <= 4 * (number * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("mode", MODES)
def test_only_mixed_modes_mix(mode: str) -> None:
    kinds = {write for write, _ in islice(workload(mode).operations(), 200)}
    expected = {"read": {False}, "write": {True}}
    assert kinds == expected.get(mode.removeprefix("rand"), {False, True})
    assert workload(mode).writes == (True in kinds)


@pytest.mark.parametrize("mode", ["randread", "randrw", "rw"])
def test_the_same_seed_gives_the_same_operations_and_another_seed_others(mode: str) -> None:
    first, again, other = (
        list(islice(workload(mode, seed=seed).operations(), 100)) for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other


def test_what_is_written_cannot_be_compressed_and_depends_on_the_seed() -> None:
    pattern = workload("write").pattern()
    assert len(pattern) == BLOCK
    assert len(set(pattern)) > 200
    assert pattern != workload("write", seed=1).pattern()


@pytest.mark.parametrize(
    "fields",
    [
        {"mode": "trim"},
        {"block_bytes": 0},
        {"depth": 0},
        {"offset_bytes": -1},
        {"size_bytes": BLOCK - 1},
        {"read_percent": 101},
        {"read_percent": -1},
    ],
)
def test_what_is_no_workload_is_refused(fields: dict[str, object]) -> None:
    good = {
        "mode": "read",
        "block_bytes": BLOCK,
        "depth": 1,
        "offset_bytes": 0,
        "size_bytes": BLOCK,
    }
    Workload(**good)
    with pytest.raises(ValueError, match=r"."):
        Workload(**good | fields)
