# SPDX-License-Identifier: MIT
"""Batches of the common table from the columns that a source has, and what its CDBs say."""

from collections.abc import Hashable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vscsi.capture.commands import BATCH_ROWS, SCHEMA, Operation
from vscsi.wire.cdb import lookup
from vscsi.wire.opcodes import GROUP_NAMES, VARIABLE_LENGTH, Command, DeviceType
from vscsi.wire.sense import parse_sense

MAX_NAMES = 1 << 12
"""Disks or channels that one file may name; the commands of those beyond are not read."""
_CDB_BYTES = 32
"""The longest CDB that the table of commands has a row for."""

Column: TypeAlias = "npt.NDArray[Any] | pa.Array | Sequence[Any] | int"


def assemble(rows: int, columns: Mapping[str, Column]) -> pa.RecordBatch:
    """Return a batch of SCHEMA with `rows` rows; a number stands for a column of it.

    Columns that are not given are null; 0, or false, where SCHEMA has no null. Values of numpy
    arrays must fit their column's type.
    """
    arrays = []
    for field in SCHEMA:
        given = columns.get(field.name)
        if given is None:
            array = _blank(field.name, rows)
        elif isinstance(given, pa.Array):
            array = given if given.type == field.type else given.cast(field.type, safe=False)
        elif isinstance(given, np.ndarray):
            kind = field.type.to_pandas_dtype()
            array = pa.array(given.astype(kind, copy=False), field.type)
        elif isinstance(given, int):
            kind = field.type.to_pandas_dtype()
            array = pa.array(np.full(rows, given, kind), field.type)
        else:
            array = pa.array(given, field.type)
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def empty() -> pa.RecordBatch:
    """Return a batch of SCHEMA without rows."""
    return assemble(0, {})


def joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Return the rows of one or more batches of SCHEMA as one."""
    if len(batches) == 1:
        return batches[0]
    (whole,) = pa.Table.from_batches(batches).combine_chunks().to_batches() or [empty()]
    return whole


def replaced(batch: pa.RecordBatch, columns: Mapping[str, Column]) -> pa.RecordBatch:
    """Return a batch of SCHEMA with some of its columns exchanged for others of its length."""
    kept = {name: batch.column(name) for name in SCHEMA.names if name not in columns}
    return assemble(batch.num_rows, {**kept, **columns})


def _blank(name: str, rows: int) -> pa.Array:
    return _blanks(name).slice(0, rows) if rows <= BATCH_ROWS else _make_blank(name, rows)


@cache
def _blanks(name: str) -> pa.Array:
    return _make_blank(name, BATCH_ROWS)


def _make_blank(name: str, rows: int) -> pa.Array:
    field = SCHEMA.field(name)
    if field.nullable:
        return pa.nulls(rows, field.type)
    return pa.array(np.zeros(rows, field.type.to_pandas_dtype()), field.type)


class Numbering:
    """Numbers for the disks or channels of a file, in the order in which they come up."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def number(self, key: Hashable) -> tuple[int, bool]:
        """Return a key's number and whether it is new; -1 when there are MAX_NAMES already."""
        found = self._numbers.get(key)
        if found is not None:
            return found, False
        if len(self._numbers) >= MAX_NAMES:
            return -1, False
        self._numbers[key] = len(self._numbers)
        return self._numbers[key], True


def of_cdbs(cdbs: pa.Array, device_type: DeviceType = DeviceType.DISK) -> dict[str, Column]:
    """Return opcode, service_action, operation, lba, blocks and fua of an array of CDBs.

    The CDBs are untrusted: what a null, an empty, a short or an unknown one cannot say is null.
    UNMAP's ranges are in its parameter list, so it has neither lba nor blocks.
    """
    rows = len(cdbs)
    lengths = pc.binary_length(cdbs).fill_null(0).to_numpy(zero_copy_only=False)
    table = _padded(cdbs, lengths)
    opcode = table[:, 0]
    known = lengths > 0
    action = np.zeros(rows, np.uint16)
    has_action = np.zeros(rows, bool)
    lba, blocks = np.zeros(rows, np.uint64), np.zeros(rows, np.uint32)
    has_lba = np.zeros(rows, bool)
    operation, fua = np.zeros(rows, np.uint8), np.zeros(rows, bool)
    # Groups of equal opcode and service action, that are wherever the opcode has them.
    both = np.where(
        opcode == VARIABLE_LENGTH,
        table[:, 8].astype(np.uint16) << 8 | table[:, 9],
        table[:, 1] & 0x1F,
    )
    groups = opcode.astype(np.uint32) << 16 | np.where(_acted()[opcode], both, 0)
    for group in np.unique(groups[known]):
        at = np.flatnonzero((groups == group) & known)
        first = table[at[0]].tobytes()
        if _acted()[first[0]]:
            end = 10 if first[0] == VARIABLE_LENGTH else 2
            has_action[at] = lengths[at] >= end
            action[at] = group & 0xFFFF
        row = lookup(first, device_type)
        if row is None:
            continue
        at = at[lengths[at] >= row.length]
        operation[at] = _operation(row)
        if "unmap" in row.fields and row.name.startswith("WRITE SAME"):
            operation[at[_values(table[at], row, "unmap") > 0]] = Operation.UNMAP
        if "fua" in row.fields:
            fua[at] = _values(table[at], row, "fua") > 0
        if "lba" in row.fields and "blocks" in row.fields:
            has_lba[at] = True
            lba[at] = _values(table[at], row, "lba")
            count = _values(table[at], row, "blocks")
            if row.length == 6:
                count[count == 0] = 256  # SBC-4: READ(6), WRITE(6)
            blocks[at] = count
    return {
        "opcode": pa.array(opcode, mask=~known),
        "service_action": pa.array(action, mask=~has_action),
        "operation": operation,
        "lba": pa.array(lba, mask=~has_lba),
        "blocks": pa.array(blocks, mask=~has_lba),
        "fua": fua,
    }


def _padded(cdbs: pa.Array, lengths: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return the first bytes of each, zeros behind its end: one row of _CDB_BYTES a CDB."""
    rows = len(cdbs)
    table = np.zeros((rows, _CDB_BYTES), np.uint8)
    cdbs = cdbs.cast(pa.binary())
    _, offsets, data = cdbs.buffers()
    if not rows or data is None:
        return table
    starts = np.frombuffer(offsets, np.int32)[cdbs.offset : cdbs.offset + rows].astype(np.int64)
    content = np.frombuffer(data, np.uint8)
    for length in np.unique(lengths[lengths > 0]):
        at = np.flatnonzero(lengths == length)
        wanted = np.arange(min(int(length), _CDB_BYTES))
        table[at[:, None], wanted] = content[starts[at, None] + wanted]
    return table


def _values(table: npt.NDArray[np.uint8], row: Command, name: str) -> npt.NDArray[np.uint64]:
    """Return a field of every CDB of one command."""
    field = row.fields[name]
    word = np.zeros(len(table), np.uint64)
    for at in range(field.offset, field.offset + field.size):
        word = word << np.uint64(8) | table[:, at].astype(np.uint64)
    return (word & np.uint64(field.mask)) >> np.uint64(field.shift)


@cache
def _acted() -> npt.NDArray[np.bool_]:
    """Return which opcodes have service actions."""
    acted = np.zeros(256, bool)
    acted[list(GROUP_NAMES)] = True
    return acted


_OPERATIONS = {
    "READ(": Operation.READ,
    "WRITE(": Operation.WRITE,
    "WRITE AND VERIFY(": Operation.WRITE,
    "WRITE SAME(": Operation.WRITE,
    "WRITE ATOMIC(": Operation.WRITE,
    "ORWRITE(": Operation.WRITE,
    "COMPARE AND WRITE": Operation.WRITE,
    "SYNCHRONIZE CACHE(": Operation.FLUSH,
    "UNMAP": Operation.UNMAP,
}
"""By the beginnings of the names in the table of commands."""


@cache
def _operation(row: Command) -> Operation:
    for beginning, operation in _OPERATIONS.items():
        if row.name.startswith(beginning):
            return operation
    return Operation.OTHER


def of_senses(senses: pa.Array) -> dict[str, Column]:
    """Return sense_key, asc and ascq of an array of sense data; null where they say nothing."""
    encoded = senses.dictionary_encode()
    parsed = [_sense(each.as_py()) for each in encoded.dictionary]
    return {
        name: pa.array([each[at] for each in parsed], pa.uint8()).take(encoded.indices)
        for at, name in enumerate(("sense_key", "asc", "ascq"))
    }


@lru_cache(1 << 12)
def _sense(data: bytes) -> tuple[int | None, int | None, int | None]:
    sense = parse_sense(data)
    return (sense.key, sense.asc, sense.ascq) if sense is not None else (None, None, None)
