# SPDX-License-Identifier: MIT
"""The log-linear buckets: every value in one, none wider than 1/32 of its values."""

from collections.abc import Callable

VALUES = sorted(
    {
        min(max(0, (1 << power) + part * (1 << power) // 64 + step), (1 << 64) - 1)
        for power in range(64)
        for part in range(0, 64, 7)
        for step in (-1, 0, 1)
    }
)


def test_every_value_has_one_bucket_which_is_narrow(program: Callable[..., str]) -> None:
    *lines, totals = program("histogram", "address", *VALUES).splitlines()
    assert totals == f"{len(VALUES)} {VALUES[0]} {VALUES[-1]}"
    seen: dict[int, tuple[int, int]] = {}
    for value, line in zip(VALUES, lines, strict=True):
        index, first, last = map(int, line.split())
        assert first <= value <= last
        assert (last - first) * 32 <= max(first, 32)
        assert seen.setdefault(index, (first, last)) == (first, last)
    assert list(seen) == sorted(seen), "buckets ascend with their values"
