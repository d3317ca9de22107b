# SPDX-License-Identifier: MIT
"""What is handed to LIO for a task, and what its answer means for the initiator's buffer.

LIO trusts its fabric: the direction of the data is the buffer's, whatever the opcode says (it would
write the disk for a READ with data-out), and a buffer whose length is not the CDB's is refused for
some commands, silently accepted for others. So the length and direction that a CDB has by its
standard are worked out here, LIO gets exactly those, and what an initiator's buffer lacks or has
over is settled here, as residual or refusal. Pure functions: no device, no clock.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vscsi.target.base import Task
from vscsi.target.refusals import (
    DATA_LENGTH_MISMATCH,
    INVALID_FIELD_IN_CDB,
    INVALID_OPCODE,
    bad_field,
    out_of_range,
)
from vscsi.wire.cdb import Cdb, cdb_length, named
from vscsi.wire.errors import WireError
from vscsi.wire.opcodes import Command, DeviceType, Direction
from vscsi.wire.sense import Sense

MAX_SPLIT_BYTES = 32 << 20
"""Of one READ or WRITE that is more than the kernel takes at once: what the embedded disk takes."""

_SHORTEST_CDB, _LONGEST_UNKNOWN_CDB = 6, 16


@dataclass(frozen=True, slots=True)
class Geometry:
    """A block device's size."""

    blocks: int
    block_size: int


@dataclass(frozen=True, slots=True)
class Piece:
    """One command for the kernel: all of a task, or a run of blocks of it."""

    cdb: bytes
    offset: int
    """In the task's data, in bytes."""
    length: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What to hand to LIO: the pieces one after the other, until one is not GOOD."""

    direction: Direction
    pieces: Sequence[Piece]
    all_or_nothing: bool = False
    """A status of GOOD means that all of the data has come."""
    residue_bytes: int = 0
    """What a tape's sense data count in where less came than was asked for; 0: it is no tape."""
    shortened: str = ""
    """A field of the CDB that was lowered; if as much comes, there may have been more."""

    @property
    def length(self) -> int:
        """Bytes that the whole may move."""
        return sum(piece.length for piece in self.pieces)


def needs_geometry(row: Command) -> bool:
    """Whether the length of a command's data depends on the size of a block."""
    return "blocks" in row.fields and row.direction is not Direction.NONE and row not in _UNSAID


def plan(task: Task, cdb: Cdb, geometry: Geometry | None, limit: int) -> Plan | Sense:
    """Plan a command of the table, or say why it is refused (and set the task's overflow).

    geometry: where `needs_geometry` says so. limit: bytes that the kernel takes at once.
    """
    if cdb.row is _ATA_PASS_THROUGH:  # SAT-4 12.2.2.2: direction and length from several fields
        return plan_unknown(task, limit)
    direction = cdb.row.direction
    if direction is Direction.NONE:
        return Plan(direction, [Piece(cdb.data, 0, 0)])
    buffer = task.data_out_length if direction is Direction.OUT else task.data_in_length
    length = length_of(cdb, geometry.block_size if geometry else 1)
    if length is None:
        length = buffer
    if length > limit:
        return _plan_long(task, cdb, geometry, limit, length)
    if direction is Direction.OUT and length > buffer:
        return _too_short(task, cdb, geometry, length)
    return Plan(
        direction, [Piece(cdb.data, 0, length)], cdb.row in _ALL_OR_NOTHING, _residue(cdb, length)
    )


def plan_unknown(task: Task, limit: int) -> Plan | Sense:
    """Plan a command that no table has: its buffer alone tells what it moves."""
    try:
        size = cdb_length(task.cdb)
    except WireError:  # vendor specific
        size = min(max(len(task.cdb), _SHORTEST_CDB), _LONGEST_UNKNOWN_CDB)
    if len(task.cdb) < size:
        return INVALID_FIELD_IN_CDB
    length_out, length_in = task.data_out_length, task.data_in_length
    if length_out and length_in:
        return INVALID_OPCODE  # sg has no bidirectional commands
    length = length_out or length_in
    if length > limit:
        return INVALID_FIELD_IN_CDB
    direction = Direction.OUT if length_out else Direction.IN if length_in else Direction.NONE
    return Plan(direction, [Piece(task.cdb[:size], 0, length)])


def settle(task: Task, cdb: Cdb | None, planned: Plan, arrived: int) -> Sense | None:
    """Set what a command that was GOOD has moved; return why it is refused after all, if it is.

    arrived: bytes of data-in, over all pieces.
    """
    if planned.direction is Direction.OUT:
        task.moved = planned.length
    elif planned.direction is Direction.IN:
        if planned.shortened and cdb is not None and arrived == planned.length:
            return bad_field(cdb, planned.shortened)
        task.moved = min(arrived, task.data_in_length)
        task.overflow = arrived - task.moved
    return None


def length_of(cdb: Cdb, block_size: int) -> int | None:
    """Return the bytes that a CDB says it moves at most, or None if it does not say."""
    row = cdb.row
    if row in _UNSAID:
        return None
    if row in _SPECIAL:
        return _SPECIAL[row](cdb, block_size)
    if "blocks" in row.fields:
        return cdb.blocks * block_size
    if "allocation_length" in row.fields:
        return cdb.allocation_length
    return cdb.parameter_list_length


def _plan_long(
    task: Task, cdb: Cdb, geometry: Geometry | None, limit: int, length: int
) -> Plan | Sense:
    """Plan what is more than the kernel takes at once."""
    row = cdb.row
    if row in _SPLIT and geometry is not None:
        if _is_out_of_range(cdb, geometry):
            return out_of_range(cdb)  # before the first piece moves anything
        if length > MAX_SPLIT_BYTES:
            return bad_field(cdb, "blocks")
        if row.direction is Direction.OUT and length > task.data_out_length:
            return _too_short(task, cdb, geometry, length)
        pieces = _split(cdb, geometry.block_size, limit)
        return Plan(row.direction, pieces, row in _ALL_OR_NOTHING)
    if row.direction is Direction.IN and cdb.allocation_length == length:
        lowered = bytearray(cdb.data)
        row.fields["allocation_length"].put(lowered, limit)
        piece = Piece(bytes(lowered), 0, limit)
        return Plan(row.direction, [piece], shortened="allocation_length")
    for field in ("blocks", "parameter_list_length", "allocation_length"):
        if field in row.fields:
            return bad_field(cdb, field)
    return INVALID_FIELD_IN_CDB


def _split(cdb: Cdb, block_size: int, limit: int) -> list[Piece]:
    step = limit // block_size
    pieces = []
    for first in range(0, cdb.blocks, step):
        blocks = min(step, cdb.blocks - first)
        part = bytearray(cdb.data)
        cdb.row.fields["lba"].put(part, cdb.lba + first)
        # READ(6) and WRITE(6): 0 stands for 256, which others don't reach in one piece.
        cdb.row.fields["blocks"].put(part, blocks % 256 if cdb.row.length == 6 else blocks)
        pieces.append(Piece(bytes(part), first * block_size, blocks * block_size))
    return pieces


def _too_short(task: Task, cdb: Cdb, geometry: Geometry | None, length: int) -> Sense:
    if geometry is not None and _is_out_of_range(cdb, geometry):
        return out_of_range(cdb)  # LIO's order
    task.overflow = length - task.data_out_length
    return DATA_LENGTH_MISMATCH


def _is_out_of_range(cdb: Cdb, geometry: Geometry) -> bool:
    return needs_geometry(cdb.row) and cdb.lba + cdb.blocks > geometry.blocks


# What CDBs mean that the names of their fields don't tell.


def _verify(cdb: Cdb, block_size: int) -> int:
    """BYTCHK (SBC-4 table 133): no data, that of all blocks, or that of one for all."""
    blocks = {0b01: cdb.blocks, 0b11: min(cdb.blocks, 1)}.get(cdb.field("bytchk"), 0)
    return blocks * block_size


def _write_same(cdb: Cdb, block_size: int) -> int:
    return 0 if cdb.field("ndob") else block_size


def _compare_and_write(cdb: Cdb, block_size: int) -> int:
    return 2 * cdb.blocks * block_size


def _security(cdb: Cdb, _block_size: int) -> int:
    unit = 512 if cdb.field("inc_512") else 1
    return unit * (cdb.allocation_length or cdb.parameter_list_length)


def _read_capacity_10(_cdb: Cdb, _block_size: int) -> int:
    return 8


def _read_block_limits(cdb: Cdb, _block_size: int) -> int:
    return 20 if cdb.field("mloi") else 6


def _read_position(cdb: Cdb, _block_size: int) -> int:
    """READ POSITION: short form 20 bytes, long form 32; the extended form is allocated."""
    return {0x00: 20, 0x01: 20, 0x06: 32}.get(cdb.field("form"), cdb.allocation_length)


def _format_unit(cdb: Cdb, _block_size: int) -> int | None:
    """FORMAT UNIT: with FMTDATA, a list whose length is in its header alone."""
    return None if cdb.field("fmtdata") else 0


def _tape_transfer(cdb: Cdb, _block_size: int) -> int | None:
    """READ(6), WRITE(6) of a tape: with FIXED, blocks whose size its mode parameters tell."""
    return None if cdb.field("fixed") else cdb.field("transfer_length")


def _residue(cdb: Cdb, length: int) -> int:
    """Return what INFORMATION counts after a tape's READ(6): with FIXED blocks, else bytes.

    No more is known of a block's size than that the buffer has room for all blocks: what came is
    the lesser of this and the kernel's own count.
    """
    if cdb.row is not _TAPE_READ:
        return 0
    return length // max(1, cdb.field("transfer_length")) if cdb.field("fixed") else 1


_Length = Callable[[Cdb, int], int | None]

_SPECIAL: dict[Command, _Length] = {
    named(name, device_type): length
    for length, device_type, names in (
        (_verify, DeviceType.DISK, ("VERIFY(10)", "VERIFY(12)", "VERIFY(16)", "VERIFY(32)")),
        (
            _write_same,
            DeviceType.DISK,
            ("WRITE SAME(10)", "WRITE SAME(16)", "WRITE SAME(32)"),
        ),
        (_compare_and_write, DeviceType.DISK, ("COMPARE AND WRITE",)),
        (_security, DeviceType.DISK, ("SECURITY PROTOCOL IN", "SECURITY PROTOCOL OUT")),
        (_read_capacity_10, DeviceType.DISK, ("READ CAPACITY(10)",)),
        (_format_unit, DeviceType.DISK, ("FORMAT UNIT",)),
        (_read_block_limits, DeviceType.TAPE, ("READ BLOCK LIMITS",)),
        (_read_position, DeviceType.TAPE, ("READ POSITION",)),
        (_tape_transfer, DeviceType.TAPE, ("READ(6)", "WRITE(6)")),
    )
    for name in names
}

_TAPE_READ = named("READ(6)", DeviceType.TAPE)
_ATA_PASS_THROUGH = named("ATA PASS-THROUGH(16)")
_UNSAID = frozenset(
    (
        named("REASSIGN BLOCKS"),  # the list's header has its length
        named("READ CD", DeviceType.CDROM),  # MMC-6: the size of a block follows from the fields
    )
)
"""Commands whose buffer alone tells their length."""

_READS = tuple(named(f"READ({size})") for size in (6, 10, 12, 16))
_ALL_OR_NOTHING = frozenset((*_READS, named("READ(32)")))
_SPLIT = frozenset(
    (
        *_READS,
        *(named(f"WRITE({size})") for size in (6, 10, 12, 16)),
        *(named(f"WRITE AND VERIFY({size})") for size in (10, 12, 16)),
    )
)
"""Commands that come to the same in several runs of blocks, as no other promise is made."""
