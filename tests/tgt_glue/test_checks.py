# SPDX-License-Identifier: MIT
"""What LIO is handed for a CDB and a buffer: always the CDB's own length and direction."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgt_glue.checks import (
    MAX_SPLIT_BYTES,
    Geometry,
    Plan,
    length_of,
    needs_geometry,
    plan,
    plan_unknown,
    settle,
)
from vscsi.target.base import Nexus, Task
from vscsi.wire.cdb import build, decode, named
from vscsi.wire.errors import WireError
from vscsi.wire.opcodes import COMMANDS, DeviceType, Direction
from vscsi.wire.sense import Sense

LIMIT = 1 << 20
DISK = Geometry(1 << 20, 512)


def make_task(cdb, out=0, into=0):
    """Make a task with buffers of so many bytes."""
    return Task(
        Nexus("a", "b"),
        bytes(8),
        1,
        cdb,
        lambda _: None,
        data_out=[memoryview(bytes(out))] if out else (),
        data_in=[memoryview(bytearray(into))] if into else (),
    )


def planned(cdb, out=0, into=0, *, geometry=DISK, limit=LIMIT, device_type=DeviceType.DISK):
    """Plan a command; return task and plan."""
    task = make_task(cdb, out, into)
    return task, plan(task, decode(cdb, device_type), geometry, limit)


def code(sense):
    """Key, ASC and ASCQ as the standards' tables have them."""
    assert isinstance(sense, Sense)
    return f"{sense.key:x}/{sense.asc:02x}/{sense.ascq:02x}"


LENGTHS = [
    # name, fields, bytes (worked out by hand from the standards)
    ("READ(6)", {"blocks": 256}, 256 * 512),
    ("READ(10)", {"blocks": 3}, 1536),
    ("READ(32)", {"blocks": 3}, 1536),
    ("WRITE(16)", {"blocks": 3}, 1536),
    ("WRITE AND VERIFY(12)", {"blocks": 3, "bytchk": 0}, 1536),
    ("ORWRITE(16)", {"blocks": 3}, 1536),
    ("COMPARE AND WRITE", {"blocks": 3}, 3072),
    ("VERIFY(10)", {"blocks": 3, "bytchk": 0}, 0),
    ("VERIFY(12)", {"blocks": 3, "bytchk": 1}, 1536),
    ("VERIFY(16)", {"blocks": 3, "bytchk": 3}, 512),
    ("VERIFY(32)", {"blocks": 0, "bytchk": 3}, 0),
    ("WRITE SAME(10)", {"blocks": 3}, 512),
    ("WRITE SAME(16)", {"blocks": 0}, 512),
    ("WRITE SAME(16)", {"blocks": 3, "ndob": 1}, 0),
    ("UNMAP", {"parameter_list_length": 24}, 24),
    ("INQUIRY", {"allocation_length": 255}, 255),
    ("READ CAPACITY(10)", {}, 8),
    ("READ CAPACITY(16)", {"allocation_length": 32}, 32),
    ("MODE SELECT(10)", {"parameter_list_length": 30}, 30),
    ("FORMAT UNIT", {}, 0),
    ("FORMAT UNIT", {"fmtdata": 1}, None),
    ("REASSIGN BLOCKS", {}, None),
    ("SECURITY PROTOCOL IN", {"allocation_length": 3}, 3),
    ("SECURITY PROTOCOL IN", {"allocation_length": 3, "inc_512": 1}, 1536),
    ("SECURITY PROTOCOL OUT", {"parameter_list_length": 2, "inc_512": 1}, 1024),
    ("WRITE BUFFER", {"parameter_list_length": 70000}, 70000),
    ("PERSISTENT RESERVE OUT REGISTER", {"parameter_list_length": 24}, 24),
]


@pytest.mark.parametrize(("name", "fields", "expected"), LENGTHS)
def test_a_cdb_tells_its_length(name, fields, expected):
    assert length_of(decode(build(name, **fields)), 512) == expected


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("READ(6)", {"transfer_length": 1000}, 1000),
        ("READ(6)", {"fixed": 1, "transfer_length": 3}, None),
        ("WRITE(6)", {"transfer_length": 10}, 10),
        ("READ BLOCK LIMITS", {}, 6),
        ("READ BLOCK LIMITS", {"mloi": 1}, 20),
        ("READ POSITION", {}, 20),
        ("READ POSITION", {"form": 6}, 32),
        ("READ POSITION", {"form": 8, "allocation_length": 28}, 28),
    ],
)
def test_a_tapes_cdb_tells_its_length(name, fields, expected):
    row = named(name, DeviceType.TAPE)
    assert length_of(decode(build(row, **fields), DeviceType.TAPE), 512) == expected


@pytest.mark.parametrize("device_type", COMMANDS)
def test_every_command_has_a_length_or_is_known_to_tell_none(device_type):
    unsaid = {"REASSIGN BLOCKS", "READ CD"}
    for row in COMMANDS[device_type]:
        if row.direction is Direction.NONE or row.name == "ATA PASS-THROUGH(16)":
            continue
        fields = dict.fromkeys(
            {"blocks", "allocation_length", "parameter_list_length", "transfer_length"}
            & set(row.fields),
            2,
        )
        length = length_of(decode(build(row, **fields), device_type), 512)
        if row.name in unsaid:
            assert length is None, row.name
        elif not row.name.startswith(("VERIFY", "FORMAT UNIT")):
            assert length, row.name
        if row.name in ("READ CAPACITY(10)", "INQUIRY"):
            assert not needs_geometry(row)


@pytest.mark.parametrize("into", [1024, 700, 0, 5000])
def test_a_read_asks_for_what_its_cdb_says_whatever_the_buffer(into):
    cdb = build("READ(10)", lba=8, blocks=2)
    task, chosen = planned(cdb, into=into)
    (piece,) = chosen.pieces
    assert (chosen.direction, piece.cdb, piece.length) == (Direction.IN, cdb, 1024)
    assert chosen.all_or_nothing
    assert settle(task, decode(cdb), chosen, 1024) is None
    assert (task.moved, task.overflow) == (min(into, 1024), max(0, 1024 - into))


def test_a_read_with_a_data_out_buffer_is_still_a_read():
    """LIO would write the disk."""
    task, chosen = planned(build("READ(10)", blocks=2), out=1024)
    assert chosen.direction is Direction.IN
    settle(task, None, chosen, 1024)
    assert (task.moved, task.overflow) == (0, 1024)


@pytest.mark.parametrize("out", [1024, 2000])
def test_a_write_sends_what_its_cdb_says(out):
    task, chosen = planned(build("WRITE(10)", blocks=2), out=out)
    assert (chosen.direction, chosen.pieces[0].length) == (Direction.OUT, 1024)
    settle(task, None, chosen, 0)
    assert (task.moved, task.overflow) == (1024, 0)


@pytest.mark.parametrize(("out", "into"), [(1023, 0), (0, 0), (0, 1024)])
def test_a_write_without_all_of_its_data_is_refused(out, into):
    task, refusal = planned(build("WRITE(10)", blocks=2), out=out, into=into)
    assert code(refusal) == "5/0e/03"
    assert (task.moved, task.overflow) == (0, 1024 - out)


def test_a_command_without_data_gets_no_buffer():
    task, chosen = planned(build("SYNCHRONIZE CACHE(10)", blocks=9), out=512, into=512)
    assert (chosen.direction, chosen.length) == (Direction.NONE, 0)
    settle(task, None, chosen, 0)
    assert (task.moved, task.overflow) == (0, 0)


def test_parameter_data_beyond_the_buffer_are_an_overflow():
    task, chosen = planned(build("INQUIRY", allocation_length=96), into=36)
    assert not chosen.all_or_nothing
    settle(task, None, chosen, 60)  # of which LIO had 60
    assert (task.moved, task.overflow) == (36, 24)


@given(st.integers(1, MAX_SPLIT_BYTES // 512), st.integers(0, 1000), st.booleans())
def test_long_reads_and_writes_go_in_runs_of_blocks(blocks, lba, writes):
    name = "WRITE(16)" if writes else "READ(16)"
    cdb = build(name, lba=lba, blocks=blocks, fua=1, group=5)
    limit = 100 * 512 + 17
    _, chosen = planned(cdb, out=blocks * 512 if writes else 0, limit=limit)
    at = 0
    for piece in chosen.pieces:
        part = decode(piece.cdb)
        assert (part.row.name, part.fua, part.group) == (name, True, 5)
        assert (part.lba, piece.offset) == (lba + at, at * 512)
        assert piece.length == part.blocks * 512 <= limit
        at += part.blocks
    assert at == blocks


def test_the_longest_read_6_can_be_split():
    _, chosen = planned(build("READ(6)", lba=5, blocks=256), limit=200 * 512)
    parts = [decode(piece.cdb) for piece in chosen.pieces]
    assert [(part.lba, part.blocks) for part in parts] == [(5, 200), (205, 56)]


@pytest.mark.parametrize(
    ("cdb", "expected"),
    [
        (build("WRITE(16)", lba=1 << 20, blocks=4096), "5/21/00"),
        (build("WRITE(16)", lba=(1 << 20) - 1, blocks=4096), "5/21/00"),
        (build("READ(16)", lba=0, blocks=0xFFFFFFFF), "5/21/00"),
        (build("READ(16)", lba=0, blocks=MAX_SPLIT_BYTES // 512 + 1), "5/24/00"),
        (build("WRITE(16)", lba=0, blocks=4096), "5/0e/03"),
        (build("READ(32)", lba=0, blocks=4096), "5/24/00"),
        (build("ORWRITE(16)", lba=0, blocks=4096), "5/24/00"),
        (build("VERIFY(16)", lba=0, blocks=4096, bytchk=1), "5/24/00"),
        (build("WRITE BUFFER", parameter_list_length=(1 << 20) + 1), "5/24/00"),
        (build("SECURITY PROTOCOL IN", allocation_length=3000, inc_512=1), "5/24/00"),
    ],
)
def test_what_cannot_be_split_is_refused_before_anything_moves(cdb, expected):
    task, refusal = planned(cdb, out=600)
    assert code(refusal) == expected
    assert task.moved == 0


def test_a_huge_allocation_length_is_lowered_and_never_cuts_silently():
    cdb = build("READ CAPACITY(16)", allocation_length=0xFFFF_FFFF)
    task, chosen = planned(cdb, into=64)
    (piece,) = chosen.pieces
    assert (decode(piece.cdb).allocation_length, piece.length) == (LIMIT, LIMIT)
    assert settle(task, decode(cdb), chosen, 32) is None
    assert (task.moved, task.overflow) == (32, 0)
    assert code(settle(task, decode(cdb), chosen, LIMIT)) == "5/24/00"


@pytest.mark.parametrize(
    ("cdb", "out", "into", "direction", "length"),
    [
        (bytes.fromhex("c10000000000"), 5, 0, Direction.OUT, 5),
        (bytes.fromhex("1f0000000000").ljust(16, b"\0"), 0, 9, Direction.IN, 6),
        (bytes.fromhex("ff").ljust(16, b"\0"), 0, 0, Direction.NONE, 16),
    ],
)
def test_an_unknown_commands_buffer_tells_direction_and_length(cdb, out, into, direction, length):
    chosen = plan_unknown(make_task(cdb, out, into), LIMIT)
    assert isinstance(chosen, Plan)
    assert (chosen.direction, chosen.length) == (direction, out or into)
    assert len(chosen.pieces[0].cdb) == (6 if cdb[0] in (0x1F, 0xC1) else length)


@pytest.mark.parametrize(
    ("cdb", "out", "into", "expected"),
    [
        (b"", 0, 0, "5/24/00"),
        (b"\x1f\0\0", 0, 0, "5/24/00"),
        (b"\xc1\0\0", 0, 0, "5/24/00"),
        (b"\x7f", 0, 0, "5/24/00"),
        (b"\xc1" + bytes(15), 8, 8, "5/20/00"),
        (b"\xc1" + bytes(15), LIMIT + 1, 0, "5/24/00"),
    ],
)
def test_an_unknown_command_that_cannot_be_sent_is_refused(cdb, out, into, expected):
    assert code(plan_unknown(make_task(cdb, out, into), LIMIT)) == expected


def test_ata_pass_through_has_its_buffers_direction():
    row = named("ATA PASS-THROUGH(16)")
    _, chosen = planned(build(row, count=1), out=512)
    assert (chosen.direction, chosen.length) == (Direction.OUT, 512)


@given(st.binary(min_size=6, max_size=32), st.integers(0, 3000), st.integers(0, 3000))
def test_whatever_comes_the_kernel_is_never_asked_for_more_than_it_takes(cdb, out, into):
    task = make_task(cdb, out, into)
    try:
        known = decode(cdb)
    except WireError:
        chosen = plan_unknown(task, 2048)
    else:
        chosen = plan(task, known, Geometry(1 << 16, 512), 2048)
    if isinstance(chosen, Plan):
        assert all(piece.length <= 2048 for piece in chosen.pieces)
        assert min(len(piece.cdb) for piece in chosen.pieces) >= 6
        if chosen.direction is Direction.OUT:
            assert chosen.length <= out
