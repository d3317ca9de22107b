# SPDX-License-Identifier: MIT
"""A captured command as one for the unit that gets it now, or why there is none."""

from dataclasses import dataclass
from enum import Enum, auto

from vscsi.capture.commands import Disk, Fate, Operation
from vscsi.capture.replay.pattern import pattern
from vscsi.capture.replay.step import Row
from vscsi.target.base import Attribute
from vscsi.transport.hba import Lun
from vscsi.wire import cdb as cdbs
from vscsi.wire.errors import SetupError, WireError
from vscsi.wire.opcodes import VARIABLE_LENGTH, Command, Direction, service_action_field
from vscsi.wire.parameters import build_unmap, parse_unmap

NO_DATA = "what it sends was not captured"
NO_RANGES = "its ranges were not captured"
NO_CDB = "the capture has no CDB of it"
NO_BLOCKS = "it names no blocks"
NOT_WHOLE = "its range is not whole blocks of the unit"
OTHER_BLOCKS = "it counts in blocks of another size"
NO_EQUIVALENT = "there is no such command for blocks of another size, or over blkif"
NOT_IN_BLKIF = "blkif has no request like it"
TOO_LONG = "it moves more than a path takes at a time"
CHANGES = "it may change the disk"

_WRITES = ("WRITE(", "WRITE AND VERIFY(", "WRITE ATOMIC(")
_WRITE_SAME = "WRITE SAME("
_HARMLESS = ("TEST UNIT READY", "PRE-FETCH(", "SYNCHRONIZE CACHE(", "VERIFY(")
_UNMAP = bytes((cdbs.named("UNMAP").opcode,))
_ONE_RANGE_BYTES = 24
_MAX_BYTES = 64 << 20
"""Of a command's data: all the memory that a frontend has."""
_LONGEST_CDB = 260


class Effect(Enum):
    """What a command does to the blocks that it names."""

    NONE = auto()
    READ = auto()
    WRITE = auto()
    """What is written then is known from the capture alone."""
    PATTERN = auto()
    """`pattern` is written."""
    CHANGE = auto()
    """Any other change; without a range, of anything."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The logical unit that gets commands now."""

    lun: Lun
    blocks: int
    block_bytes: int
    only_blocks: bool = False
    """Whether the path has requests for reads, writes, flushes and unmaps alone: blkif."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A command for a unit."""

    cdb: bytes
    data_out: bytes
    data_in: int
    attribute: Attribute
    effect: Effect
    lba: int = 0
    blocks: int = 0
    """The range that the effect is on; 0 blocks: anything."""
    as_recorded: bool = False
    """Whether the CDB and the sizes of the buffers are the captured ones."""
    wrapped: bool = False
    """Whether it goes to another address than it went to."""


def may_change(operation: int, opcode: int | None, service_action: int | None) -> bool:
    """Tell whether a command may change what is on the disk, or how the unit behaves."""
    if operation in (Operation.READ, Operation.FLUSH):
        return False
    if operation != Operation.OTHER or opcode is None:
        return True
    cdb = bytearray(_LONGEST_CDB)
    cdb[0] = opcode
    if service_action is not None:
        field = service_action_field(opcode)
        field.put(cdb, service_action & field.mask)
    row = cdbs.lookup(bytes(cdb))
    if row is None:
        return True
    return row.direction is not Direction.IN and not row.name.startswith(_HARMLESS)


def executed(row: Row) -> bool:
    """Tell whether a command was executed, as far as the capture knows: its addresses hold."""
    return row.fate == Fate.ANSWERED and not row.status


def translate(row: Row, disk: Disk, unit: Unit, *, wrap: bool = False) -> Wanted | str:
    """Return the command to send, or why there is none.

    wrap: have addresses beyond the unit's end begin again at its first block. Without, SetupError
    for those of a command that was executed.
    """
    in_blocks = row.operation != Operation.OTHER
    if unit.only_blocks and not in_blocks:
        return NOT_IN_BLKIF
    same_blocks = disk.block_bytes == unit.block_bytes
    try:
        if row.cdb is not None and not unit.only_blocks and (same_blocks or not in_blocks):
            return _recorded(row, row.cdb, unit, wrap, same_blocks)
        if not in_blocks:
            return NO_CDB
        return _built(row, disk, unit, wrap)
    except WireError:
        return NO_RANGES


# As it was


def _recorded(row: Row, cdb: bytes, unit: Unit, wrap: bool, same_blocks: bool) -> Wanted | str:
    command = cdbs.lookup(cdb)
    if command is None or len(cdb) < command.length:
        return _unknown(row, cdb)
    found = cdbs.decode(cdb) if cdb[0] != VARIABLE_LENGTH else cdbs.Cdb(command, cdb)
    cdb = cdb[: command.length]
    if command.name == "UNMAP":
        return _unmap(row, unit, _ranges(row), unit.block_bytes, wrap, cdb)
    lba, blocks = found.lba, found.blocks
    if "lba" in command.fields and not same_blocks and (lba or blocks):
        return OTHER_BLOCKS
    wrapped = False
    if "lba" in command.fields and row.operation != Operation.FLUSH:
        at = _placed(row, lba, blocks, unit, wrap)
        wrapped = at != lba
        if wrapped:
            changed = bytearray(cdb)
            command.fields["lba"].put(changed, at)
            cdb, lba = bytes(changed), at
    data_out, data_in = _lengths(row, found, unit)
    if data_out + data_in > _MAX_BYTES:
        return TOO_LONG
    effect = _effect(row, command)
    data = _captured(row, data_out)
    if data_out and data is None:
        data, effect = _made_up(found, lba, data_out, unit)
        if data is None:
            return NO_DATA
    return Wanted(
        cdb,
        data or b"",
        data_in,
        _attribute(row),
        effect,
        lba,
        blocks,
        as_recorded=not wrapped and (data_out, data_in) == (row.data_out, row.data_in),
        wrapped=wrapped,
    )


def _unknown(row: Row, cdb: bytes) -> Wanted | str:
    data = _captured(row, row.data_out)
    if data is None:
        return NO_DATA
    if row.data_in > _MAX_BYTES:
        return TOO_LONG
    return Wanted(cdb, data, row.data_in, _attribute(row), Effect.CHANGE, as_recorded=True)


def _lengths(row: Row, cdb: cdbs.Cdb, unit: Unit) -> tuple[int, int]:
    """Return the sizes of the buffers: as captured, or as a source that has none would have it."""
    if row.data_out or row.data_in or row.residual:
        return row.data_out, row.data_in
    wanted = cdb.blocks * unit.block_bytes
    if row.operation == Operation.READ:
        return 0, wanted
    if row.operation == Operation.WRITE and cdb.row.name.startswith(_WRITES):
        return wanted, 0
    return 0, cdb.allocation_length if cdb.row.direction is Direction.IN else 0


def _effect(row: Row, command: Command) -> Effect:
    if row.operation == Operation.READ:
        return Effect.READ
    if row.operation == Operation.WRITE and command.name.startswith(_WRITES):
        return Effect.WRITE
    changes = may_change(row.operation, row.opcode, row.service_action)
    return Effect.CHANGE if changes else Effect.NONE


def _captured(row: Row, length: int) -> bytes | None:
    """Return the whole of what was sent; None if the capture has not got it."""
    data = row.data or b""
    return data[:length] if len(data) >= length else None


def _made_up(cdb: cdbs.Cdb, lba: int, length: int, unit: Unit) -> tuple[bytes | None, Effect]:
    """Return data for what is captured without, None where made up data make no sense."""
    name = cdb.row.name
    if name.startswith(_WRITE_SAME) and length == unit.block_bytes:
        zeros = bytes(length) if cdb.field("unmap") else None
        return zeros or pattern(lba, 1, length), Effect.CHANGE
    if not name.startswith(_WRITES):
        return None, Effect.CHANGE
    whole = length == cdb.blocks * unit.block_bytes
    data = pattern(lba, -(-length // unit.block_bytes), unit.block_bytes)[:length]
    return data, Effect.PATTERN if whole else Effect.CHANGE


# In another form


def _built(row: Row, disk: Disk, unit: Unit, wrap: bool) -> Wanted | str:
    attribute = _attribute(row)
    if row.operation == Operation.FLUSH:
        cdb = cdbs.build("SYNCHRONIZE CACHE(16)")
        return Wanted(cdb, b"", 0, attribute, Effect.NONE)
    if row.operation == Operation.UNMAP and (row.cdb or b"")[:1] == _UNMAP:
        return _unmap(row, unit, _ranges(row), disk.block_bytes, wrap)
    if row.lba is None or not row.blocks:
        return NO_BLOCKS
    if row.cdb and row.operation == Operation.WRITE and not _is_plain_write(row.cdb):
        return NO_EQUIVALENT  # WRITE SAME, COMPARE AND WRITE
    if row.operation == Operation.UNMAP:
        return _unmap(row, unit, [(row.lba, row.blocks)], disk.block_bytes, wrap)
    span = _converted(row.lba, row.blocks, disk.block_bytes, unit)
    if span is None:
        return NOT_WHOLE
    lba, blocks = span
    at = _placed(row, lba, blocks, unit, wrap)
    length = blocks * unit.block_bytes
    if length > _MAX_BYTES:
        return TOO_LONG
    if row.operation == Operation.READ:
        cdb = cdbs.build("READ(16)", lba=at, blocks=blocks, fua=row.fua)
        return Wanted(cdb, b"", length, attribute, Effect.READ, at, blocks, wrapped=at != lba)
    cdb = cdbs.build("WRITE(16)", lba=at, blocks=blocks, fua=row.fua)
    data, effect = _captured(row, length), Effect.WRITE
    if data is None:
        data, effect = pattern(at, blocks, unit.block_bytes), Effect.PATTERN
    return Wanted(cdb, data, 0, attribute, effect, at, blocks, wrapped=at != lba)


def _is_plain_write(cdb: bytes) -> bool:
    command = cdbs.lookup(cdb)
    return command is not None and command.name.startswith(_WRITES)


def _converted(lba: int, blocks: int, block_bytes: int, unit: Unit) -> tuple[int, int] | None:
    """Return a range in the unit's blocks; None if it is not whole ones."""
    first, rest = divmod(lba * block_bytes, unit.block_bytes)
    count, rest_of_count = divmod(blocks * block_bytes, unit.block_bytes)
    return None if rest or rest_of_count else (first, count)


def _placed(row: Row, lba: int, blocks: int, unit: Unit, wrap: bool) -> int:
    """Return where a range goes."""
    if lba + blocks <= unit.blocks or (not executed(row) and not wrap):
        return lba
    if not wrap:
        raise SetupError(
            "replay",
            f"command {row.serial}",
            f"it reaches to block {lba + blocks}, and the unit has {unit.blocks}",
            "--wrap has such addresses begin again at 0",
        )
    return max(min(lba % unit.blocks, unit.blocks - blocks), 0)


def _ranges(row: Row) -> list[tuple[int, int]]:
    """Return what an UNMAP names; WireError if that was not captured."""
    data = _captured(row, row.data_out)
    if data:
        return parse_unmap(data)
    if row.lba is None or row.blocks is None or row.data_out > _ONE_RANGE_BYTES:
        raise WireError(NO_RANGES)
    return [(row.lba, row.blocks)]


def _unmap(
    row: Row,
    unit: Unit,
    ranges: list[tuple[int, int]],
    block_bytes: int,
    wrap: bool,
    cdb: bytes | None = None,
) -> Wanted | str:
    """Return an UNMAP of ranges in blocks of a size; cdb: the captured one, if it may stay."""
    spans = []
    for lba, blocks in ranges:
        span = _converted(lba, blocks, block_bytes, unit)
        if span is None:
            return NOT_WHOLE
        spans.append((_placed(row, *span, unit, wrap), span[1]))
    data = build_unmap(spans)
    recorded = cdb is not None and data == _captured(row, row.data_out)
    if cdb is None or not recorded:
        cdb = cdbs.build("UNMAP", parameter_list_length=len(data))
    first, last = min(spans, default=(0, 0)), max(sum(span) for span in spans or [(0, 0)])
    return Wanted(
        cdb,
        data,
        0,
        _attribute(row),
        Effect.CHANGE if spans else Effect.NONE,
        first[0],
        last - first[0],
        as_recorded=recorded,
    )


def _attribute(row: Row) -> Attribute:
    try:
        return Attribute(row.attribute or 0)
    except ValueError:
        return Attribute.SIMPLE
