# SPDX-License-Identifier: MIT
"""What a captured command becomes on another unit: other blocks, other size, other protocol."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vscsi.capture.commands import Disk, Fate, Operation
from vscsi.capture.replay.pattern import pattern
from vscsi.capture.replay.step import Row
from vscsi.capture.replay.translate import (
    NO_BLOCKS,
    NO_CDB,
    NO_DATA,
    NO_EQUIVALENT,
    NO_RANGES,
    NOT_IN_BLKIF,
    NOT_WHOLE,
    OTHER_BLOCKS,
    TOO_LONG,
    Effect,
    Unit,
    may_change,
    translate,
)
from vscsi.wire import cdb as cdbs
from vscsi.wire.errors import SetupError
from vscsi.wire.opcodes import COMMANDS, DeviceType
from vscsi.wire.parameters import build_unmap, parse_unmap

DISK = Disk("a", block_bytes=512)
UNIT = Unit(None, 1000, 512)
BLKIF = Unit(None, 1000, 512, only_blocks=True)
LARGE_BLOCKS = Unit(None, 1000, 4096)


def row(cdb=None, operation=Operation.OTHER, **fields):
    base = {
        **dict.fromkeys(Row._fields),
        "serial": 0,
        "time_ns": 0,
        "channel": 0,
        "disk": 0,
        "operation": operation,
        "fua": False,
        "data_out": 0,
        "data_in": 0,
        "fate": Fate.ANSWERED,
    }
    if cdb is not None:
        found = cdbs.decode(cdb)
        base |= {"cdb": cdb, "opcode": cdb[0], "service_action": found.service_action}
        if "blocks" in found.row.fields:
            base |= {"lba": found.lba, "blocks": found.blocks}
    return Row(**{**base, **fields})


def block(operation, lba, blocks, **fields):
    """A row of a source without CDBs."""
    return row(None, operation, lba=lba, blocks=blocks, **fields)


def decoded(wanted):
    found = cdbs.decode(wanted.cdb)
    return found.row.name, found.lba, found.blocks


@pytest.mark.parametrize("operation", [Operation.READ, Operation.WRITE])
@pytest.mark.parametrize("unit", [UNIT, BLKIF])
def test_block_traces_become_sbc(operation, unit):
    wanted = translate(block(operation, 8, 4, fua=True), DISK, unit)
    assert decoded(wanted) == (f"{operation.name}(16)", 8, 4)
    assert cdbs.decode(wanted.cdb).fua
    assert not wanted.as_recorded
    length = 4 * 512
    if operation is Operation.READ:
        assert (wanted.data_in, wanted.data_out) == (length, b"")
    else:
        assert (wanted.data_in, wanted.data_out) == (0, pattern(8, 4, 512))
        assert wanted.effect is Effect.PATTERN


def test_flush_and_unmap_of_block_traces():
    flush = translate(row(None, Operation.FLUSH), DISK, UNIT)
    assert decoded(flush) == ("SYNCHRONIZE CACHE(16)", 0, 0)
    unmap = translate(block(Operation.UNMAP, 7, 9), DISK, UNIT)
    assert cdbs.decode(unmap.cdb).parameter_list_length == len(unmap.data_out)
    assert parse_unmap(unmap.data_out) == [(7, 9)]
    assert (unmap.lba, unmap.blocks, unmap.effect) == (7, 9, Effect.CHANGE)


@pytest.mark.parametrize("name", ["READ(6)", "READ(10)", "READ(12)", "READ(16)", "READ(32)"])
def test_reads_of_any_form_stay_as_they_are(name):
    cdb = cdbs.build(name, lba=5, blocks=2)
    given = row(cdb + bytes(3), Operation.READ, lba=5, blocks=2, data_in=1024)
    wanted = translate(given, DISK, UNIT)
    assert (wanted.cdb, wanted.data_in, wanted.effect) == (cdb, 1024, Effect.READ)
    assert wanted.as_recorded


def test_other_sizes_of_blocks():
    read = row(cdbs.build("READ(10)", lba=16, blocks=8), Operation.READ, data_in=4096)
    wanted = translate(read, DISK, LARGE_BLOCKS)
    assert decoded(wanted) == ("READ(16)", 2, 1)
    assert wanted.data_in == 4096
    odd = row(cdbs.build("READ(10)", lba=17, blocks=8), Operation.READ, data_in=4096)
    assert translate(odd, DISK, LARGE_BLOCKS) == NOT_WHOLE
    seek = row(cdbs.build("VERIFY(10)", lba=16, blocks=8))
    assert translate(seek, DISK, LARGE_BLOCKS) == OTHER_BLOCKS
    other = translate(row(cdbs.build("TEST UNIT READY")), DISK, LARGE_BLOCKS)
    assert other.as_recorded


def test_unmap_lists():
    ranges = build_unmap([(8, 8), (80, 16)])
    cdb = cdbs.build("UNMAP", parameter_list_length=len(ranges))
    whole = row(cdb, Operation.UNMAP, data_out=len(ranges), data=ranges)
    same = translate(whole, DISK, UNIT)
    assert (same.cdb, same.data_out, same.as_recorded) == (cdb, ranges, True)
    assert (same.lba, same.blocks) == (8, 88)
    large = translate(whole, DISK, LARGE_BLOCKS)
    assert parse_unmap(large.data_out) == [(1, 1), (10, 2)]
    assert translate(whole._replace(data=ranges[:20]), DISK, UNIT) == NO_RANGES
    one = row(cdb, Operation.UNMAP, data_out=24, lba=8, blocks=2)
    assert parse_unmap(translate(one, DISK, UNIT).data_out) == [(8, 2)]
    assert translate(whole._replace(data=b"\xff" * len(ranges)), DISK, UNIT) == NO_RANGES


def test_data_that_were_not_captured():
    write = row(cdbs.build("WRITE(10)", lba=3, blocks=2), Operation.WRITE, data_out=1024)
    assert translate(write, DISK, UNIT).data_out == pattern(3, 2, 512)
    cut = translate(write._replace(data=b"d" * 1000), DISK, UNIT)
    assert cut.data_out == pattern(3, 2, 512)
    whole = translate(write._replace(data=b"d" * 1024), DISK, UNIT)
    assert (whole.data_out, whole.effect) == (b"d" * 1024, Effect.WRITE)
    short = translate(write._replace(data_out=512), DISK, UNIT)
    assert (short.data_out, short.effect) == (pattern(3, 1, 512), Effect.CHANGE)
    same = row(cdbs.build("WRITE SAME(16)", lba=3, blocks=9), Operation.WRITE, data_out=512)
    assert translate(same, DISK, UNIT).data_out == pattern(3, 1, 512)
    unmap = cdbs.build("WRITE SAME(16)", lba=3, blocks=9, unmap=1)
    zeros = translate(row(unmap, Operation.UNMAP, data_out=512), DISK, UNIT)
    assert (zeros.data_out, zeros.effect) == (bytes(512), Effect.CHANGE)
    for name in ("COMPARE AND WRITE", "PERSISTENT RESERVE OUT RESERVE"):
        assert translate(row(cdbs.build(name), data_out=24), DISK, UNIT) == NO_DATA


def test_over_blkif_only_what_blkif_has():
    assert translate(row(cdbs.build("INQUIRY"), data_in=36), DISK, BLKIF) == NOT_IN_BLKIF
    same = row(cdbs.build("WRITE SAME(16)", lba=3, blocks=9), Operation.WRITE, data_out=512)
    assert translate(same, DISK, BLKIF) == NO_EQUIVALENT
    read = row(cdbs.build("READ(6)", lba=3, blocks=9), Operation.READ, data_in=9 * 512)
    assert decoded(translate(read, DISK, BLKIF)) == ("READ(16)", 3, 9)


def test_what_has_no_cdb_and_no_blocks():
    assert translate(row(None), DISK, UNIT) == NO_CDB
    assert translate(row(None, Operation.READ), DISK, UNIT) == NO_BLOCKS


def test_a_command_of_no_known_opcode_goes_as_it_is_if_its_data_are_there():
    given = row(None)._replace(cdb=b"\xc1" + bytes(5), opcode=0xC1, data_out=4)
    assert translate(given, DISK, UNIT) == NO_DATA
    wanted = translate(given._replace(data=b"abcd"), DISK, UNIT)
    assert (wanted.cdb, wanted.data_out) == (b"\xc1" + bytes(5), b"abcd")


def test_buffers_that_a_source_has_not():
    read = row(cdbs.build("READ(10)", lba=3, blocks=9), Operation.READ)
    assert translate(read, DISK, UNIT).data_in == 9 * 512
    inquiry = row(cdbs.build("INQUIRY", allocation_length=96))
    assert translate(inquiry, DISK, UNIT).data_in == 96


def test_beyond_the_end():
    read = row(cdbs.build("READ(10)", lba=999, blocks=2), Operation.READ, data_in=1024)
    with pytest.raises(SetupError, match="block 1001, and the unit has 1000"):
        translate(read, DISK, UNIT)
    refused = read._replace(status=2)
    assert decoded(translate(refused, DISK, UNIT)) == ("READ(10)", 999, 2)
    wrapped = translate(read, DISK, UNIT, wrap=True)
    assert decoded(wrapped) == ("READ(10)", 998, 2)
    assert wrapped.wrapped
    assert not wrapped.as_recorded
    far = translate(block(Operation.WRITE, 5003, 2), DISK, UNIT, wrap=True)
    assert decoded(far) == ("WRITE(16)", 3, 2)
    assert far.data_out == pattern(3, 2, 512)


def test_no_length_decides_an_allocation():
    huge = row(cdbs.build("WRITE(16)", lba=0, blocks=1), Operation.WRITE, data_out=1 << 60)
    assert translate(huge, DISK, UNIT) == TOO_LONG
    assert translate(huge._replace(data_out=0, data_in=1 << 60), DISK, UNIT) == TOO_LONG
    assert translate(block(Operation.READ, 0, 1 << 31, status=2), DISK, UNIT) == TOO_LONG
    unknown = row(None)._replace(cdb=b"\xc1" + bytes(5), opcode=0xC1, data_in=1 << 60)
    assert translate(unknown, DISK, UNIT) == TOO_LONG


@given(
    st.sampled_from(list(Operation)),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 1 << 20),
    st.sampled_from((UNIT, BLKIF, LARGE_BLOCKS)),
    st.booleans(),
)
def test_what_is_sent_is_within_the_unit(operation, lba, blocks, unit, wrap):
    try:
        wanted = translate(block(operation, lba, blocks), DISK, unit, wrap=wrap)
    except SetupError:
        assert not wrap
        return
    if isinstance(wanted, str) or blocks * 512 > unit.blocks * unit.block_bytes:
        return
    assert wanted.lba + wanted.blocks <= unit.blocks


@given(st.binary(max_size=40), st.sampled_from(list(Operation)), st.binary(max_size=60))
def test_any_bytes_are_translated_or_left_out(cdb, operation, data):
    given = row(None, operation)._replace(
        cdb=cdb, opcode=cdb[0] if cdb else None, data=data, data_out=len(data), status=2
    )
    for unit in (UNIT, BLKIF, LARGE_BLOCKS):
        translate(given, DISK, unit, wrap=True)


def test_what_may_change_a_disk():
    names = {
        command.name
        for command in COMMANDS[DeviceType.DISK]
        if not may_change(Operation.OTHER, command.opcode, command.service_action)
    }
    assert {"INQUIRY", "TEST UNIT READY", "READ CAPACITY(16)", "REPORT LUNS", "VERIFY(10)"} <= names
    assert {"PERSISTENT RESERVE IN READ KEYS", "SYNCHRONIZE CACHE(10)"} <= names
    assert not names & {"FORMAT UNIT", "MODE SELECT(6)", "SANITIZE OVERWRITE", "START STOP UNIT"}
    assert not names & {"COMPARE AND WRITE", "PERSISTENT RESERVE OUT RESERVE", "WRITE BUFFER"}
    assert may_change(Operation.OTHER, 0xC1, None)
    assert may_change(Operation.UNMAP, 0x42, None)
    assert not may_change(Operation.READ, 0x28, None)
