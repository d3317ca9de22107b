# SPDX-License-Identifier: MIT
"""Captured commands as numbers: what of a batch the later stages need, in numpy arrays.

Of CDBs, sense data and payloads only numbers are left; who needs the bytes looks at the batch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vscsi.capture.commands import Fate, Operation, Source
from vscsi.target.base import Status
from vscsi.wire import blkif
from vscsi.wire.cdb import lookup
from vscsi.wire.opcodes import GROUP_NAMES, VARIABLE_LENGTH, DeviceType

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Rows = dict[str, npt.NDArray[Any]]
"""Columns of RAW by their names."""

NONE = np.iinfo(np.int64).min
"""In an array of numbers: not known."""
FAR = 1 << 61
"""Addresses and times beyond are taken for this one, so that differences fit 64 bits."""
_LONGEST = 1 << 40
"""The same for lengths, so that sums do."""
NO_SENSE_CODE = -1

RAW = pa.schema(
    [
        pa.field("file", pa.int16()),
        pa.field("serial", pa.int64()),
        pa.field("time_ns", pa.int64()),
        pa.field("channel", pa.int32()),
        pa.field("disk", pa.int32()),
        pa.field("tag", pa.int64()),
        pa.field("kind", pa.int16()),
        pa.field("operation", pa.int8()),
        pa.field("fua", pa.bool_()),
        pa.field("lba", pa.int64()),
        pa.field("blocks", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("moved", pa.int64()),
        pa.field("outstanding", pa.int64()),
        pa.field("fate", pa.int8()),
        pa.field("failed", pa.bool_()),
        pa.field("latency_ns", pa.int64()),
        pa.field("sense", pa.int32()),
    ]
)
"""No nulls: NONE, and NO_SENSE_CODE. A tag's 64 bits are read as signed."""

_EXECUTED_WELL = (Status.GOOD, Status.CONDITION_MET, 0x10, 0x14)
"""The last two are SAM-2's INTERMEDIATE and INTERMEDIATE-CONDITION MET."""
_MAX_KINDS = 1 << 15


@dataclass(frozen=True, slots=True)
class CommandKind:
    """What `Kinds` numbers."""

    opcode: int | None
    service_action: int | None
    name: str


class Kinds:
    """Numbers for kinds of commands, given as they are met."""

    def __init__(self) -> None:
        self.all: list[CommandKind] = []
        self._numbers: dict[int, int] = {}
        self._by_value: dict[CommandKind, int] = {}

    def number(self, batch: pa.RecordBatch, blkif_rows: Bools, types: Ints) -> Ints:
        """Return the kind of each row.

        blkif_rows says whose opcode is blkif's, types the peripheral device type of their disks.
        """
        opcode = numbers(batch, "opcode", 0x1FF)
        action = numbers(batch, "service_action", -1) + 1
        operation = numbers(batch, "operation")
        code = opcode | action << 9 | operation << 26 | blkif_rows.astype(np.int64) << 34
        code |= types << 35
        codes, rows = np.unique(code, return_inverse=True)
        own = np.array([self._number(int(each)) for each in codes], np.int64)
        return own[rows]

    def _number(self, code: int) -> int:
        number = self._numbers.get(code)
        if number is None:
            kind = _kind(code)
            if len(self.all) >= _MAX_KINDS - 1:
                kind = CommandKind(None, None, "others")
            number = self._by_value.setdefault(kind, len(self.all))
            if number == len(self.all):
                self.all.append(kind)
            self._numbers[code] = number
        return number


def _kind(code: int) -> CommandKind:
    opcode: int | None = code & 0x1FF
    action: int | None = (code >> 9 & 0x1FFFF) - 1
    operation = Operation(code >> 26 & 0xFF) if code >> 26 & 0xFF <= max(Operation) else 0
    if opcode == 0x1FF or opcode is None:
        return CommandKind(None, None, Operation(operation).name.lower())
    if code >> 34 & 1:
        try:
            words = blkif.Operation(opcode).name.replace("_", " ")
        except ValueError:
            words = f"operation {opcode}"
        return CommandKind(opcode, None, f"blkif {words}")
    if action is None or action < 0:
        action = None
    return CommandKind(opcode, action, command_name(opcode, action, code >> 35))


def command_name(opcode: int, action: int | None, device_type: int) -> str:
    """Return the name of a SCSI command, or its numbers where it has none."""
    cdb = bytearray(16)
    cdb[0] = opcode
    if action is not None and opcode == VARIABLE_LENGTH:
        cdb[8:10] = action.to_bytes(2, "big")
    elif action is not None:
        cdb[1] = action & 0x1F
    try:
        row = lookup(bytes(cdb), DeviceType(device_type))
    except ValueError:
        row = lookup(bytes(cdb))
    if row is not None and row.service_action == action:
        return row.name
    name = GROUP_NAMES.get(opcode, f"opcode 0x{opcode:02x}")
    return name if action is None else f"{name} 0x{action:02x}"


def numbers(batch: pa.RecordBatch, name: str, missing: int = NONE) -> Ints:
    """Return a column of integers as int64; those above 63 bits come back as negative."""
    column = batch.column(name)
    if pa.types.is_uint64(column.type):
        column = column.view(pa.int64())
    elif column.type != pa.int64():
        column = column.cast(pa.int64())
    if column.null_count:
        column = pc.fill_null(column, missing)
    array: Ints = column.to_numpy(zero_copy_only=False)
    return array


def flags(batch: pa.RecordBatch, name: str) -> Bools:
    """Return a column of booleans."""
    array: Bools = batch.column(name).to_numpy(zero_copy_only=False)
    return array


class Columns:
    """Turns a source's batches into RAW, with disks and channels numbered over all sources."""

    def __init__(self) -> None:
        self.kinds = Kinds()

    def raw(
        self, batch: pa.RecordBatch, source: Source, file: int, channels: Ints, disks: Ints
    ) -> pa.RecordBatch:
        """Return a batch's numbers; channels and disks are the numbers of the source's own."""
        channel, disk = numbers(batch, "channel"), numbers(batch, "disk")
        scsi = [each.protocol == "blkif" for each in source.channels]
        types = np.array([int(each.device_type) for each in source.disks], np.int64)
        kind = self.kinds.number(batch, np.array(scsi, np.bool_)[channel], types[disk])
        length = np.clip(numbers(batch, "data_out"), 0, _LONGEST)
        length += np.clip(numbers(batch, "data_in"), 0, _LONGEST)
        fate, status = numbers(batch, "fate"), numbers(batch, "status", int(Status.GOOD))
        answered = fate == Fate.ANSWERED
        left = np.maximum(numbers(batch, "residual", 0), 0)
        values = {
            "file": np.full(batch.num_rows, file),
            "serial": numbers(batch, "serial"),
            "time_ns": np.clip(numbers(batch, "time_ns"), -FAR, FAR),
            "channel": channels[channel],
            "disk": disks[disk],
            "tag": numbers(batch, "tag"),
            "kind": kind,
            "operation": numbers(batch, "operation"),
            "fua": flags(batch, "fua"),
            "lba": _addresses(batch),
            "blocks": numbers(batch, "blocks"),
            "length": length,
            "moved": np.where(answered, np.maximum(length - left, 0), 0),
            "outstanding": numbers(batch, "outstanding"),
            "fate": fate,
            "failed": (answered & ~np.isin(status, _EXECUTED_WELL)) | (fate == Fate.FAILED),
            "latency_ns": _latency(batch),
            "sense": _sense(batch),
        }
        arrays = [pa.array(values[field.name].astype(_numpy(field))) for field in RAW]
        return pa.RecordBatch.from_arrays(arrays, schema=RAW)


def _addresses(batch: pa.RecordBatch) -> Ints:
    column = batch.column("lba")
    known = pc.fill_null(column, 0) if column.null_count else column
    lba = np.minimum(known.to_numpy(zero_copy_only=False), FAR).astype(np.int64)
    return np.where(column.is_null().to_numpy(zero_copy_only=False), NONE, lba)


def _latency(batch: pa.RecordBatch) -> Ints:
    latency = numbers(batch, "latency_ns")
    return np.where(latency == NONE, NONE, np.clip(latency, -FAR, FAR))


def _sense(batch: pa.RecordBatch) -> Ints:
    key = numbers(batch, "sense_key", NO_SENSE_CODE)
    code = key << 16 | numbers(batch, "asc", 0) << 8 | numbers(batch, "ascq", 0)
    return np.where(key < 0, NO_SENSE_CODE, code)


def _numpy(field: pa.Field) -> npt.DTypeLike:
    kind: npt.DTypeLike = field.type.to_pandas_dtype()
    return kind
