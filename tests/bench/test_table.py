# SPDX-License-Identifier: MIT
"""What the table says beside the figures that the JSON has too."""

import pytest

from vscsi.bench.result import PathResult
from vscsi.bench.table import added_us
from vscsi.bench.workload import Workload


def path(*latencies_ns: int) -> PathResult:
    """Return a path whose operations took so long."""
    result = PathResult("path", Workload("randread", 512, 1, 0, 1 << 20))
    result.all.add(dict.fromkeys(latencies_ns, 1))
    return result


def test_what_a_path_adds_is_the_difference_of_the_medians() -> None:
    first, other = path(1000, 2000, 900_000), path(5000, 7000, 8000)
    assert added_us(other, first) == pytest.approx(5.0, abs=0.01)  # three digits are kept
    assert added_us(first, first) == 0.0
    assert added_us(path(), first) is None
    assert added_us(first, path()) is None
