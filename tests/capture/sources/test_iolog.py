# SPDX-License-Identifier: MIT
"""fio's I/O logs: one that fio wrote, and the examples of its manual."""

import itertools
from pathlib import Path

import pytest

from vscsi.capture.commands import Operation

CAPTURES = Path(__file__).parents[3] / "captures"
READ, WRITE, FLUSH, UNMAP = Operation.READ, Operation.WRITE, Operation.FLUSH, Operation.UNMAP


def listed(rows):
    names = ("time_ns", "operation", "lba", "blocks", "data_in", "data_out")
    return [tuple(row[name] for name in names) for row in rows]


def test_a_log_that_fio_wrote(read):
    """20 writes a second, a sync after every fourth: its times are microseconds."""
    rows, source = read("iolog", (CAPTURES / "fio-3.33.iolog").read_bytes())
    assert [row["operation"] for row in rows] == ([WRITE] * 4 + [FLUSH]) * 3 + [WRITE] * 4
    writes = [row for row in rows if row["operation"] == WRITE]
    assert sorted(row["lba"] for row in writes) == list(range(0, 128, 8))
    assert {row["blocks"] for row in writes} == {8}
    times = [row["time_ns"] for row in writes]
    assert {round((b - a) / 1e7) for a, b in itertools.pairwise(times)} == {5}
    assert [disk.name for disk in source.disks] == ["/tmp/fio.dat"]
    assert not source.troubles.skipped


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_version_2_has_pauses(read, line_end):
    text = b"""fio version 2 iolog
/dev/x add
/dev/x open
/dev/x read 0 4096
/dev/x wait 500 0
/dev/x  write 4096\t512
/dev/y trim 1048576 1048576
/dev/x wait 250 0
/dev/x datasync 0 0
/dev/x close
""".replace(b"\n", line_end)
    rows, source = read("iolog", text)
    assert listed(rows) == [
        (0, READ, 0, 8, 4096, 0),
        (500_000, WRITE, 8, 1, 0, 512),
        (500_000, UNMAP, 2048, 2048, 0, 0),
        (750_000, FLUSH, None, None, 0, 0),
    ]
    assert [source.disks[row["disk"]].name for row in rows] == [
        "/dev/x",
        "/dev/x",
        "/dev/y",
        "/dev/x",
    ]
    assert all(row["latency_ns"] is None and row["outstanding"] == 0 for row in rows)
    assert not source.troubles.skipped


def test_lines_that_are_none_are_counted(read):
    text = b"""fio version 3 iolog
1 /x add
2 /x open
3 /x read 0 4096
4 /x wait 100 0
5 /x read 0
6 /x read zero 4096
7 /x explode 0 4096
8 /x read 10 4096
nonsense
9 /x close
"""
    rows, source = read("iolog", text)
    assert listed(rows) == [(3000, READ, 0, 8, 4096, 0), (8000, READ, 0, 9, 4096, 0)]
    assert source.troubles.skipped == 5
    assert source.troubles.first_skipped
    assert len(source.troubles.notes) == 1  # not on block boundaries


def test_what_has_no_first_line_is_no_log(read):
    rows, source = read("iolog", b"1 /x read 0 4096\n")
    assert not rows
    assert source.troubles.broken
