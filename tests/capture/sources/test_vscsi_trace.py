# SPDX-License-Identifier: MIT
"""CloudPhysics' .vscsi traces, built as libCacheSim declares their structures."""

import struct

import pytest

from vscsi.capture.commands import Operation

V1, V2 = struct.Struct("<IIIHHQQ"), struct.Struct("<HHIIIQQQ")


def record(version, opcode=0x28, length=4096, lbn=100, ts=5_000_000, rt=250, sn=1):
    if version == 1:
        return V1.pack(sn, length, 1, opcode, 1 << 8, lbn, ts)
    return V2.pack(opcode, 2 << 8, sn, length, 1, lbn, ts, rt)


@pytest.mark.parametrize("version", [1, 2])
def test_both_versions(read, version):
    text = record(version) + record(version, opcode=0x8A, ts=5_000_100, lbn=1 << 40)
    text += record(version, opcode=0x35, length=0, ts=5_000_200, lbn=0)
    text += record(version, opcode=0x12, length=36, ts=5_000_300, lbn=0)
    rows, source = read("vscsi-trace", text)
    names = ("time_ns", "opcode", "operation", "lba", "blocks", "data_in", "data_out")
    assert [tuple(row[name] for name in names) for row in rows] == [
        (5_000_000_000, 0x28, Operation.READ, 100, 8, 4096, 0),
        (5_000_100_000, 0x8A, Operation.WRITE, 1 << 40, 8, 0, 4096),
        (5_000_200_000, 0x35, Operation.FLUSH, 0, 0, 0, 0),
        (5_000_300_000, 0x12, Operation.OTHER, None, None, 36, 0),
    ]
    expected = [250_000] * 4 if version == 2 else [None] * 4
    assert [row["latency_ns"] for row in rows] == expected
    assert [row["outstanding"] for row in rows] == ([0, 1, 2, 2] if version == 2 else [0] * 4)
    assert source.format.endswith(f"version {version}")


@pytest.mark.parametrize("version", [1, 2])
def test_a_record_that_is_none_costs_itself_and_a_cut_one_is_said(read, version):
    text = record(version) * 3
    bad = record(version, lbn=1 << 60)
    rows, source = read("vscsi-trace", text + bad + text)
    assert len(rows) == 6
    assert (source.troubles.skipped, source.troubles.broken) == (1, "")
    assert source.troubles.first_skipped.startswith("record 3 ")
    rows, source = read("vscsi-trace", (text + text)[:-5])
    assert len(rows) == 5
    assert source.troubles.broken
