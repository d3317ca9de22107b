# SPDX-License-Identifier: MIT
"""What the table says beside the figures that the JSON has too."""

import io

import pytest
from rich.console import Console

from vscsi.bench.result import Comparison, PathResult
from vscsi.bench.table import added_us, caption, table, title
from vscsi.bench.workload import Workload

MACHINE = {
    "cpu": "A Processor of Some Maker",
    "cores": 2,
    "cores_usable": 2,
    "kernel": "Linux 6.1.0 x86_64",
    "python": "CPython 3.11.7",
    "load_average": 0.5,
}


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


def test_lines_around_a_table_are_as_wide_as_the_terminal() -> None:
    one = path(1000)
    told = Comparison(one.workload, "", 1, 5.0, 0.2, MACHINE, [one])
    out = io.StringIO()
    Console(file=out, width=150).print(table(told))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert lines[0] == title(told).plain == f"{one.workload.words}; 1 round of 5 s a path"
    assert lines[-1] == caption(told).plain
    assert max(map(len, lines[1:-1])) < len(lines[-1])
