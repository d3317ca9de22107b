# SPDX-License-Identifier: MIT
"""The table of commands is consistent, and says what independent decoders say."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vscsi.wire import cdb, parameters
from vscsi.wire.errors import WireError
from vscsi.wire.opcodes import COMMANDS, DeviceType, Direction, service_action_field

ROWS = [
    pytest.param(kind, row, id=f"{kind.name}-{row.name}")
    for kind, rows in COMMANDS.items()
    for row in rows
]


def bits_of(field, length):
    """Return the field's bits as an integer over the whole CDB."""
    return field.mask << 8 * (length - field.offset - field.size)


@pytest.mark.parametrize(("kind", "row"), ROWS)
def test_row_is_consistent(kind, row):
    """Its length is its opcode group's, and no two fields overlap."""
    head = bytes((row.opcode, 0, 0, 0, 0, 0, 0, 24))
    assert cdb.cdb_length(head) == row.length
    taken = 0xFF << 8 * (row.length - 1)
    taken |= 0xFF << 8 * (row.length - 1 - row.control_offset)
    if row.service_action is not None:
        taken |= bits_of(service_action_field(row.opcode), row.length)
    for field in row.fields.values():
        assert field.offset + field.size <= row.length
        assert not taken & bits_of(field, row.length)
        assert field.mask >> field.shift & (field.mask >> field.shift) + 1 == 0, "not contiguous"
        taken |= bits_of(field, row.length)


@pytest.mark.parametrize("kind", COMMANDS)
def test_codes_and_names_are_unique_within_a_device_type(kind):
    rows = COMMANDS[kind]
    assert len({(row.opcode, row.service_action) for row in rows}) == len(rows)
    assert len({row.name for row in rows}) == len(rows)
    with_actions = {row.opcode for row in rows if row.service_action is not None}
    assert not with_actions & {row.opcode for row in rows if row.service_action is None}


@pytest.mark.parametrize(("kind", "row"), ROWS)
@settings(max_examples=15)
@given(data=st.data())
def test_what_is_built_decodes_to_the_same_fields(kind, row, data):
    values = {
        name: data.draw(st.integers(0, field.mask >> field.shift))
        for name, field in row.fields.items()
    }
    if row.length == 6 and "blocks" in values:
        values["blocks"] = data.draw(st.integers(1, 256))
    built = cdb.build(row, **values, control=4)
    command = cdb.decode(built + bytes(3), kind)
    assert command.row is row
    assert command.data == built
    assert command.naca
    for name, value in values.items():
        assert (command.blocks if name == "blocks" else command.field(name)) == value
    assert row.name in cdb.describe(built, kind)


def test_six_byte_commands_move_256_blocks_for_0():
    command = cdb.decode(bytes.fromhex("081fffff0000"))
    assert (command.lba, command.blocks) == (0x1FFFFF, 256)
    assert cdb.build("WRITE(6)", lba=0x1FFFFF, blocks=256).hex() == "0a1fffff0000"
    assert cdb.decode(bytes.fromhex("28000000000000000000")).blocks == 0
    with pytest.raises(ValueError, match="0 blocks"):
        cdb.build("READ(6)", lba=0, blocks=0)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ("280800000800000008 00", "READ(10) lba 2048 blocks 8 FUA"),
        ("120183000a00", "INQUIRY alloc 10 EVPD page 0x83"),
        ("9e100000000000000000000000200000", "READ CAPACITY(16) lba 0 alloc 32"),
        ("1b0000000100", "START STOP UNIT START"),
        ("00000000000c", "TEST UNIT READY control 0x0c"),
        ("a31f000000000000000000 00", "MAINTENANCE IN [a31f00000000000000000000]"),
        ("c100", "opcode 0xc1 [c100]"),
        ("2800", "READ(10) [2800]"),
        ("", "no CDB"),
    ],
)
def test_describe(data, line):
    assert cdb.describe(bytes.fromhex(data)) == line


def test_the_same_opcode_is_another_command_on_a_tape():
    space = bytes.fromhex("080000000a00")
    assert cdb.decode(space).blocks == 10
    assert cdb.decode(space, DeviceType.TAPE).field("transfer_length") == 10
    assert cdb.describe(bytes.fromhex("010000000000"), DeviceType.TAPE) == "REWIND"
    assert cdb.describe(bytes.fromhex("43000000000000000c00")).startswith("READ TOC")
    assert cdb.lookup(bytes.fromhex("28"), DeviceType.CDROM) is cdb.named("READ(10)")


def test_32_byte_commands():
    built = cdb.build("READ(32)", lba=0x0102030405060708, blocks=3, fua=1)
    assert built.hex() == "7f000000000000180009080001020304050607080000000000000000" + "00000003"
    command = cdb.decode(built)
    assert (command.lba, command.blocks, command.fua) == (0x0102030405060708, 3, True)
    assert cdb.cdb_length(built) == 32
    with pytest.raises(WireError, match="with a length of 28"):
        cdb.decode(built[:7] + b"\x14" + built[8:])


@pytest.mark.parametrize("data", ["", "60", "7e", "c0", "7f000000000000", "7f00000000000019"])
def test_cdbs_without_a_length(data):
    with pytest.raises(WireError):
        cdb.cdb_length(bytes.fromhex(data))


@pytest.mark.parametrize("data", ["", "02", "2800", "a31f00000000000000000000", "ff" * 16])
def test_cdbs_that_do_not_decode(data):
    with pytest.raises(WireError):
        cdb.decode(bytes.fromhex(data))


def test_build_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="no command"):
        cdb.build("READ(9)")
    with pytest.raises(ValueError, match="has no field"):
        cdb.build("TEST UNIT READY", lba=1)
    with pytest.raises(ValueError, match="does not fit"):
        cdb.build("READ(10)", lba=1 << 32)


@given(st.binary(max_size=40))
def test_any_bytes_decode_or_are_refused(data):
    assert cdb.describe(data)
    try:
        command = cdb.decode(data)
    except WireError:
        return
    assert command.data == data[: command.row.length]


def test_tshark_decodes_the_same(tshark):
    for text, expected in tshark["commands"].items():
        kinds = {kind.value for kind in COMMANDS}
        kind = expected["device_type"] if expected["device_type"] in kinds else 0
        command = cdb.decode(bytes.fromhex(text), DeviceType(kind))
        for name, value in expected["fields"].items():
            ours = getattr(command, name) if hasattr(command, name) else command.field(name)
            assert int(ours) == value, (text, name)


SHORT_NAMES = {
    "PR IN": "PERSISTENT RESERVE IN",
    "PR OUT": "PERSISTENT RESERVE OUT",
    "OPCODES": "OPERATION CODES",
    "TPG": "TARGET PORT GROUPS",
    "TMF": "TASK MANAGEMENT FUNCTIONS",
}
OTHERWISE_NAMED = ("SA ", "alloc 8", "list length", "(MMC)", "bad", "invalid opcode")


def test_names_are_those_that_the_authors_of_the_cdbs_meant(cdb_names):
    compared = 0
    for text, meant in cdb_names.items():
        row = cdb.lookup(bytes.fromhex(text))
        if "invalid opcode" in meant or "bad S" in meant or "bad service" in meant:
            assert row is None, meant
        elif not any(word in meant for word in OTHERWISE_NAMED):
            for short, name in SHORT_NAMES.items():
                meant = meant.replace(short, name)
            first = row.name.split("(10)")[0] if row.name == "READ BUFFER(10)" else row.name
            assert meant.split()[:2] == first.split()[:2] or meant.startswith(first), meant
            compared += 1
    assert compared > 100


def test_scsi_debug_supports_the_commands_of_the_table(kernel_targets):
    data = next(e["data_in"] for e in kernel_targets if e["cdb"].startswith("a30c0000"))
    table = bytes.fromhex(data)
    descriptors = parameters.parse_all_commands(table)
    assert len(descriptors) == 52
    for entry in descriptors:
        has_action = entry.flags & parameters.SERVACTV
        head = bytes((entry.opcode, entry.service_action & 0xFF if has_action else 0))
        if entry.opcode == 0x7F:
            head = head[:1] + bytes(7) + entry.service_action.to_bytes(2, "big")
        row = cdb.lookup(head)
        if row is not None:  # zoned block commands are not in the table
            assert row.length == entry.cdb_length
            assert (row.service_action is not None) == bool(has_action)


def test_usage_map_of_read_10_is_scsi_debugs(kernel_targets):
    data = next(e["data_in"] for e in kernel_targets if e["cdb"].startswith("a30c0128"))
    theirs = parameters.parse_one_command(bytes.fromhex(data)).usage
    ours = cdb.named("READ(10)").usage_map()
    # They claim RARC, two obsolete bits and all but three bits of CONTROL besides.
    assert ours.hex() == "28f8ffffffff3fffff04"
    assert all(mine & ~other == 0 for mine, other in zip(ours, theirs, strict=True))


def test_usage_map_names_the_service_action_and_drops_ignored_fields():
    usage = cdb.named("REPORT SUPPORTED OPERATION CODES").usage_map()
    assert usage.hex() == "a30c87ffffffffffffff0004"
    plain = cdb.named("WRITE(16)").usage_map(ignored=("dpo", "fua", "group"))
    assert plain.hex() == "8ae0" + "ff" * 12 + "0004"
    assert cdb.named("READ(32)").usage_map()[:10].hex() == "7f0400000000" + "3f180009"


def test_directions_of_the_hot_commands():
    assert cdb.named("READ(10)").direction is Direction.IN
    assert cdb.named("WRITE(10)").direction is Direction.OUT
    assert cdb.named("UNMAP").direction is Direction.OUT
    assert cdb.named("SYNCHRONIZE CACHE(10)").direction is Direction.NONE
