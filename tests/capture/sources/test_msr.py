# SPDX-License-Identifier: MIT
"""MSR Cambridge CSV: its published example, a naive reader, and what is wrong with lines."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi.capture.commands import Operation

HEADER = b"Timestamp,Hostname,DiskNumber,Type,Offset,Size,ResponseTime\n"
PUBLISHED = b"""\
128166372003061629,usr,0,Read,7014609920,24576,41286
128166372016382155,usr,0,Write,1317441536,8192,1963
128166372026382245,usr,1,Read,2436440064,4096,1835
"""
"""In the shape of usr_0.csv of the traces."""


@pytest.mark.parametrize("head", [b"", HEADER, HEADER.lower().replace(b"\n", b"\r\n")])
def test_the_published_shape(read, head):
    rows, source = read("msr", head + PUBLISHED)
    # 128166372003061629 is 2007-02-22 17:00:00.306 UTC.
    assert [row["time_ns"] for row in rows] == [
        1_172_163_600_306_162_900,
        1_172_163_601_638_215_500,
        1_172_163_602_638_224_500,
    ]
    assert [row["operation"] for row in rows] == [Operation.READ, Operation.WRITE, Operation.READ]
    assert [(row["lba"], row["blocks"]) for row in rows] == [
        (13_700_410, 48),
        (2_573_128, 16),
        (4_758_672, 8),
    ]
    assert [(row["data_in"], row["data_out"]) for row in rows] == [(24576, 0), (0, 8192), (4096, 0)]
    assert [row["latency_ns"] for row in rows] == [4_128_600, 196_300, 183_500]
    assert [source.disks[row["disk"]].name for row in rows] == ["usr 0", "usr 0", "usr 1"]
    assert not source.troubles.notes


ROWS = st.lists(
    st.tuples(
        st.integers(0, 10**6),
        st.sampled_from(["usr", "web"]),
        st.integers(0, 2),
        st.sampled_from(["Read", "Write"]),
        st.integers(0, 1 << 40),
        st.integers(0, 1 << 20),
        st.integers(0, 10**6),
    ),
    min_size=1,
    max_size=40,
)


@given(ROWS)
def test_rows_are_what_a_naive_reader_says(read, rows):
    rows = sorted(rows, key=lambda row: row[0])
    stream = io.StringIO()
    csv.writer(stream).writerows(rows)
    found, source = read("msr", stream.getvalue().encode())
    assert len(found) == len(rows)
    ends = []
    for row, (time, host, number, kind, offset, size, latency) in zip(found, rows, strict=True):
        assert row["time_ns"] == time * 100
        assert source.disks[row["disk"]].name == f"{host} {number}"
        assert row["operation"] == (Operation.READ if kind == "Read" else Operation.WRITE)
        assert row["lba"] * 512 <= offset
        last = (row["lba"] + row["blocks"]) * 512
        assert offset + size <= last < offset + size + 512
        assert row["data_in"] + row["data_out"] == size
        assert row["latency_ns"] == latency * 100
        company = [end for disk, end in ends if disk == (host, number) and end > time]
        assert row["outstanding"] == len(company)
        ends.append(((host, number), time + latency))
    unaligned = any(row[4] % 512 or row[5] % 512 for row in rows)
    assert bool(source.troubles.notes) == unaligned


@pytest.mark.parametrize(
    "line",
    [
        b"128166372003061629,usr,0,Read,7014609920,24576",
        b"128166372003061629,usr,0,Read,7014609920,24576,41286,9",
        b"12816637200306162x,usr,0,Read,7014609920,24576,41286",
        b"128166372003061629,usr,0,Trim,7014609920,24576,41286",
        b"128166372003061629,usr,0,Read,-5,24576,41286",
        b"128166372003061629,usr,0,Read,5,99999999999999999999999,41286",
        b"128166372003061629,usr,0,Read,5,9999999999999,41286",
        b'128166372003061629,usr,0,"Read,5,4096,41286',
        b"128166372003061629,,0,Read,5,4096,41286,,,,",
        b"nonsense",
        b"x" * 200_000,
    ],
)
def test_a_line_that_is_none_costs_itself(read, line):
    rows, source = read("msr", PUBLISHED + line + b"\n" + PUBLISHED)
    assert len(rows) == 6
    assert source.troubles.skipped == 1
    assert source.troubles.first_skipped


def test_more_disks_than_a_trace_may_have_are_not_read(read):
    lines = [b"128166372003061629,host%d,0,Read,512,512,1\n" % number for number in range(5000)]
    rows, source = read("msr", b"".join(lines))
    assert len(rows) == len(source.disks) == 4096
    assert source.troubles.skipped == 5000 - 4096
